"""The settings by which it is measured whether a model uses directions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from sae_placebo.causal.use.joint import JointSpec
from sae_placebo.causal.use.masks import MaskSpec
from sae_placebo.causal.use.worst import WorstSpec
from sae_placebo.core.errors import SpecError
from sae_placebo.core.spec import Spec, distinct
from sae_placebo.models.hookpoints import HookpointNames

_PARTS = {"null_firings": "firings"}
"""The first setting of each pair counts a part of what the second counts, so it cannot be larger."""


class UseSpec(Spec):
    """How use is measured, and when a direction counts as used or as not used.

    The cost of an edit is KL(unedited || edited) of the model's next-token predictions, in nats. Effects
    are costs as shares of a **full swap**, which is what it costs to replace the whole activation of a
    token by that of another token.
    """

    arms: Annotated[tuple[str, ...], AfterValidator(distinct)] | None = None
    """The arms whose SAEs are tested, each in its first re-draw and first SAE seed. Without a list these
    are the trained arm and the reference placebo; an empty list tests none."""
    hookpoints: HookpointNames | None = None
    """The hookpoints at which use is measured; without a list, all of the trial's."""
    latents: Annotated[int, Field(ge=1)] | Literal["all"] = 300
    """How many latents of each SAE get a verdict. They are drawn evenly from the cells of class and
    origin. With `all`, every latent that fires often enough gets one."""
    firings: int = Field(32, ge=2)
    """At how many firings each direction is ablated. They are drawn by importance, with replacement."""
    screen_tokens: int = Field(50_000, ge=1)
    """At most this many held-out tokens are read by the gradients that tell which firings are important."""
    swap_tokens: int = Field(400, ge=1)
    """At so many random tokens a full swap, the unit of effects, is measured."""
    window: int = Field(4, ge=0)
    """The predictions at this many tokens after the edited one are compared too, beside its own."""
    null_firings: int = Field(32, ge=1)
    """At the first so many of these draws, null directions are ablated as well."""
    nulls: int = Field(12, ge=3)
    """How many null directions each direction is compared with. Null costs of all directions are pooled, so
    p-values reach down to 1 / (1 + directions * nulls). With 12, one used direction among many cannot pass
    at a false discovery rate of .05, and two can."""
    false_discovery_rate: float = Field(0.05, gt=0, lt=1)
    """The false discovery rate among the directions called used (Benjamini-Hochberg, with Storey's share of
    true nulls)."""
    least_effect: float = Field(0.001, gt=0)
    """The smallest effect of interest: the lower bound of a used direction's effect is at least this
    share of a full swap."""
    negligible: float = Field(0.0005, gt=0)
    """An effect is negligible if its upper bound, at firings drawn uniformly, is below this share of a full
    swap."""
    negligible_of_null: float = Field(0.1, gt=0, lt=1)
    """An effect is negligible as well if the upper bound of its ratio to that of null directions is below
    this. For an ablation of a large direction costs something whatever it means, since norms rescale the
    rest."""
    uniform_firings: int = Field(92, ge=4)
    """A direction must have been ablated at this many firings, drawn uniformly, before it may be called not
    used. With 92, one that is critical at 5% of its firings is missed at most once in 100 times."""
    uniform_nulls: int = Field(2, ge=1)
    """How many null directions, new ones at each, are ablated at these firings."""
    documents: int = Field(20, ge=4)
    """These firings must lie in this many documents."""
    group_size: int = Field(8, ge=1)
    """At most so many latents are asked about as one group; 1 for no groups."""
    group_cosine: float = Field(0.7, gt=0, le=1)
    """Latents belong to one group if the cosine of their decoder directions is at least this, in size."""
    group_overlap: float = Field(0.5, gt=0, le=1)
    """They do as well if at least this share of the tokens that hold one of both hold both."""
    masks: MaskSpec = MaskSpec()
    joint: JointSpec = JointSpec()
    worst: WorstSpec = WorstSpec()
    pseudo: int = Field(40, ge=0)
    """How many pseudo-latents are tested, whose p-values must be uniform; 0 for none."""
    covariance_directions: int = Field(40, ge=0)
    """How many directions of the activations' covariance are tested, at the tokens and amounts of latents;
    0 for none."""
    untrained_directions: int = Field(80, ge=0)
    """How many directions of an untrained dictionary are tested, each on its own top tokens; 0 for none.
    What latents have beyond them is what the SAE adds."""
    shown_per_cell: int = Field(4, ge=0)
    """How many latents of each pair of origin and use get a card in the report, with passages of text and
    with a patch of their top reader."""
    error_directions: int = Field(12, ge=0)
    """How many principal components of what the SAE misses are tested as well."""

    @model_validator(mode="after")
    def _limits_do_not_cross(self) -> UseSpec:
        fields = type(self).model_fields
        for part, whole in _PARTS.items():
            n, most = getattr(self, part), getattr(self, whole)
            # a default may be larger than a whole that the user made smaller: it then means all of it
            if n > most and n != fields[part].default:
                raise SpecError(
                    f"{part} is {n} and {whole} {most}: the former are some of the latter; lower {part} or "
                    f"raise {whole}"
                )
        if self.negligible > self.least_effect:
            raise SpecError(
                f"negligible is {self.negligible:g} and least_effect {self.least_effect:g}: an effect "
                "between them would be both of interest and negligible; lower negligible or raise "
                "least_effect"
            )
        return self
