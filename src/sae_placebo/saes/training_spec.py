"""How SAEs are trained: the settings."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from sae_placebo.core.spec import Spec


class TrainingSpec(Spec):
    """How SAEs are trained: Adam, a warm-up, a linear decay."""

    batch_tokens: int = Field(1024, ge=1)
    """Tokens per step; a batch may hold fewer."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak step size. None is `4e-3 / sqrt(d_sae / 2**11)`, made for the 200 to 500 steps of a
    trial; for tens of thousands of steps the usual `2e-4 / sqrt(d_sae / 2**14)` leaves fewer dead
    latents."""
    warmup_share: float = Field(0.05, ge=0, le=1)
    """Share of the training tokens over which the step size rises from zero, linearly."""
    decay_share: float = Field(0.2, ge=0, le=1)
    """Share of the training tokens, at the end, over which it falls to zero, linearly."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Adam's memory of the gradient."""
    beta2: float = Field(0.98, ge=0, lt=1)
    """Adam's memory of its square. The usual 0.999 remembers the large gradients of the start for longer
    than a short run lasts: on real activations 0.98 explains more (fvu 0.235 against 0.238 after 150
    steps, 0.405 against 0.406 on re-drawn weights), on planted dictionaries it recovers more."""
    dead_after_tokens: int = Field(10_000, ge=1)
    """A latent is dead, and learns from what the others miss, once it has been silent for this many
    tokens. Far below the usual 10 million, for runs of a few hundred thousand."""

    search: Literal["exact", "int8"] = "exact"
    """How the active latents are found. `int8` looks for candidates in 8-bit products and computes
    those in float32; how many of the exact ones it finds is measured and logged, and below 99.9% it is
    given up. It needs the compiled loops, and pays from about 4,000 latents."""

    def peak(self, d_sae: int) -> float:
        """Return the peak step size for an SAE of this width."""
        # 175 steps of 1,024 tokens, a real residual stream (d_in 576), 2,048 latents; held-out fvu
        # and silent share: 1.6e-3 0.152, 0%; 4e-3 0.126, 3%; 6.4e-3 0.124, 11%; 1.3e-2 0.135, 34%.
        return self.learning_rate or 4e-3 / math.sqrt(d_sae / 2**11)

    def share(self, before: int, after: int, total_tokens: int) -> float:
        """Return the share of the peak step size for the step between two token counts."""
        rising = after / max(self.warmup_share * total_tokens, 1)
        falling = (total_tokens - before) / max(self.decay_share * total_tokens, 1)
        return max(0.0, min(1.0, rising, falling))
