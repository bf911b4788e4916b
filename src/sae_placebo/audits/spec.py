"""The settings of audits."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from sae_placebo.core.spec import Spec, distinct
from sae_placebo.models.hookpoints import HookpointNames


class AuditSpec(Spec):
    """How SAEs are audited."""

    arms: Annotated[tuple[str, ...], AfterValidator(distinct)] | None = None
    """Arms whose SAEs are audited, each in its first re-draw and SAE seed; the trained arm and the
    reference placebo unless given. An empty list audits none."""
    hookpoints: HookpointNames | None = None
    """Hookpoints that are audited; all of the trial's unless given."""
    tokens: int = Field(1_024, ge=64)
    """Tokens at which the model is run with an edited activation; drawn from all documents."""
    draws: int = Field(2, ge=1)
    """Random pushes of each kind for each of these tokens."""
    window: int = Field(4, ge=1)
    """Later predictions that the cost of an edit is summed over, beside the edited token's own."""
    steps: int = Field(6, ge=3)
    """Lengths at which the curve along the error is read."""
    ridge_tokens: int = Field(40_000, ge=100)
    """The most tokens on which linear predictions of the error are fitted."""
    meta_steps: int = Field(1_500, ge=10)
    """Training steps of the SAE of decoder rows."""
    labels: int = Field(24, ge=1)
    """The most labels of tokens that are probed; the labels with the most tokens are taken."""
    hedging_latents: int = Field(64, ge=2)
    """Latents that are added to the SAE to test for hedging."""
    hedging_tokens: int = Field(60_000, ge=1_000)
    """Tokens of the training that goes on with and without the added latents."""
