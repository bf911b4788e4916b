"""Settings of what is asked about use."""

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
"""Settings that count some of what another counts."""


class UseSpec(Spec):
    """How use is measured, and when a direction counts as used or as not used.

    Effects are shares of a **full swap**: what it costs to replace the whole activation of a token by
    that of another one.
    """

    arms: Annotated[tuple[str, ...], AfterValidator(distinct)] | None = None
    """Arms whose models are asked, in their first re-draw and SAE seed; none given: the trained arm and the
    reference placebo. An empty list asks none."""
    hookpoints: HookpointNames | None = None
    """Hookpoints that are asked about; none given: all of the trial's."""
    latents: Annotated[int, Field(ge=1)] | Literal["all"] = 300
    """Latents of each SAE that get a verdict, drawn evenly from the cells of class and origin; or `all`."""
    firings: int = Field(32, ge=2)
    """Tokens at which each is ablated, at most one per document."""
    window: int = Field(4, ge=0)
    """Later tokens whose predictions are compared, beside that at the token itself."""
    null_firings: int = Field(16, ge=1)
    """Of these, the ones at which null directions are ablated as well."""
    first_nulls: int = Field(9, ge=1)
    """Null directions that every candidate is held against; the rest only where it matters."""
    glance_nulls: int = Field(4, ge=1)
    """After so many of these, a candidate that is sure to be given up is not asked about any more."""
    nulls: int = Field(24, ge=1)
    """Null directions in all. More firings make a sharper test than more nulls, since p-values below
    1 / (nulls + 1) come of a tail fitted to the nulls."""
    give_up: float = Field(0.3, gt=0, le=1)
    """p-value after the first nulls from which on the rest is left out."""
    false_discovery_rate: float = Field(0.05, gt=0, lt=1)
    """Of directions called used for beating their nulls (Benjamini-Hochberg)."""
    least_effect: float = Field(0.001, gt=0)
    """Smallest effect of interest: a used direction has at least this share of a full swap."""
    negligible: float = Field(0.0005, gt=0)
    """Largest effect of a direction that is not used, as a share of a full swap."""
    negligible_of_null: float = Field(0.1, gt=0, lt=1)
    """Or as a share of what null directions cost: ablations of large directions cost something whatever they
    mean, since norms rescale the rest."""
    documents: int = Field(20, ge=2)
    """Documents that a direction must be ablated in before it may be called not used."""
    masks: MaskSpec = MaskSpec()
    joint: JointSpec = JointSpec()
    worst: WorstSpec = WorstSpec()
    pseudo: int = Field(40, ge=0)
    """Pseudo-latents, on which p-values must be uniform; 0 for none."""
    shown_per_cell: int = Field(4, ge=0)
    """Latents of each pair of origin and use that get a card: passages, and their top reader patched."""
    error_directions: int = Field(12, ge=0)
    """Principal components of what the SAE misses that are asked about as well."""

    @model_validator(mode="after")
    def _limits_do_not_cross(self) -> UseSpec:
        fields = type(self).model_fields
        for part, whole in _PARTS.items():
            n, most = getattr(self, part), getattr(self, whole)
            # a default is for any whole, and means all of a smaller one
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
