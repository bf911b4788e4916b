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

_PARTS = {"null_firings": "firings", "first_nulls": "nulls", "glance_nulls": "first_nulls"}
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
    """At how many tokens each direction is ablated, at most one per document."""
    window: int = Field(4, ge=0)
    """The predictions at this many tokens after the edited one are compared too, beside its own."""
    null_firings: int = Field(16, ge=1)
    """At this many of the firings, null directions are ablated as well."""
    first_nulls: int = Field(9, ge=1)
    """Every direction is compared with this many null directions at first. It gets the rest only where
    its p-value after these is below `give_up`."""
    glance_nulls: int = Field(4, ge=1)
    """After this many of the first nulls a direction is dropped early, if it is sure by then that it will
    be given up."""
    nulls: int = Field(24, ge=1)
    """How many null directions there are in all. More firings make a sharper test than more nulls, since
    p-values below 1 / (nulls + 1) come from a tail that is fitted to the nulls."""
    give_up: float = Field(0.3, gt=0, le=1)
    """A direction whose p-value after the first nulls is at least this gets no further nulls."""
    false_discovery_rate: float = Field(0.05, gt=0, lt=1)
    """The false discovery rate among the directions said to cost more than their nulls
    (Benjamini-Hochberg)."""
    least_effect: float = Field(0.001, gt=0)
    """The smallest effect of interest: the lower bound of a used direction's effect is at least this
    share of a full swap."""
    negligible: float = Field(0.0005, gt=0)
    """An effect is negligible if its upper bound is below this share of a full swap."""
    negligible_of_null: float = Field(0.1, gt=0, lt=1)
    """An effect is negligible as well if its upper bound is below this share of the mean effect of null
    directions. For an ablation of a large direction costs something whatever it means, since norms
    rescale the rest."""
    documents: int = Field(20, ge=2)
    """A direction must have been ablated in this many documents before it may be called not used."""
    masks: MaskSpec = MaskSpec()
    joint: JointSpec = JointSpec()
    worst: WorstSpec = WorstSpec()
    pseudo: int = Field(40, ge=0)
    """How many pseudo-latents are tested, whose p-values must be uniform; 0 for none."""
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
