"""How SAEs are audited: the settings."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from sae_placebo.core.spec import Spec, distinct
from sae_placebo.models.hookpoints import HookpointNames


class AuditSpec(Spec):
    """How SAEs are audited."""

    arms: Annotated[tuple[str, ...], AfterValidator(distinct)] | None = None
    """Arms whose SAEs are audited, in their first re-draw and SAE seed; none given: the trained arm and the
    reference placebo. An empty list audits none."""
    hookpoints: HookpointNames | None = None
    """Hookpoints that are audited; none given: all of the trial's."""
    tokens: int = Field(1_024, ge=64)
    """Tokens at which the model is run with an edited activation; drawn from all documents."""
    draws: int = Field(2, ge=1)
    """Random pushes of each kind for each of these tokens."""
    window: int = Field(4, ge=1)
    """Predictions that an edit may change: its own token's and those of the next ones."""
    steps: int = Field(6, ge=3)
    """Lengths at which the curve along the error is read."""
    ridge_tokens: int = Field(40_000, ge=100)
    """Tokens, at most, on which linear predictions of the error are fitted."""
    meta_steps: int = Field(1_500, ge=10)
    """Training steps of the SAE of decoder rows."""
    labels: int = Field(24, ge=1)
    """Labels of tokens that are asked about, at most; those with the most tokens."""
    hedging_latents: int = Field(64, ge=2)
    """Latents that are added to test for hedging."""
    hedging_tokens: int = Field(60_000, ge=1_000)
    """Tokens of that continued training."""
