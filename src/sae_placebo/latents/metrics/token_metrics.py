"""Over how many tokens an SAE's latents are spread, as one number per SAE: token entropies."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from sae_placebo.core.errors import NotEstimable
from sae_placebo.latents.metrics.base import METRICS, Evidence, Metric, ratio
from sae_placebo.latents.metrics.sparsity import firings
from sae_placebo.latents.metrics.tokens import token_entropies, token_null

# with fewer effective positions the null is near 0 bits, and a share of it means nothing
_FEWEST_EFFECTIVE = 2.0


def _mean_over_judged(
    evidence: Evidence,
    n_active: Float[np.ndarray, "latent replicate"],
    what: Float[np.ndarray, "latent replicate"],
) -> Float[np.ndarray, " replicate"]:
    """Return the mean over latents with min_firings active tokens in the replicate."""
    judged = (n_active >= evidence.thresholds.min_firings) & np.isfinite(what)
    if not judged[:, 0].any():
        raise NotEstimable(
            f"no latent is active on {evidence.thresholds.min_firings} held-out tokens or more"
        )
    sums = np.where(judged, what, 0).sum(0, dtype=np.float64)
    return ratio(sums, judged.sum(0).astype(np.float64))


def _mean_token_entropy(
    evidence: Evidence, weights: Float[np.ndarray, "document replicate"]
) -> Float[np.ndarray, " replicate"]:
    entropies = token_entropies(evidence, weights)
    return _mean_over_judged(evidence, entropies.n_active, entropies.token_entropy_bits)


def _null_entropy(evidence: Evidence) -> float | None:
    ones = np.ones((evidence.n_documents, 1))
    null = token_null(evidence, ones)[1]
    return float(_mean_over_judged(evidence, firings(evidence, ones), null)[0])


def _entropy_share(
    evidence: Evidence, weights: Float[np.ndarray, "document replicate"]
) -> Float[np.ndarray, " replicate"]:
    entropies = token_entropies(evidence, weights)
    enough = entropies.n_effective >= _FEWEST_EFFECTIVE
    null = np.where(enough, entropies.token_entropy_null_bits, 0)
    share = ratio(entropies.token_entropy_bits.astype(np.float64), null.astype(np.float64))
    return _mean_over_judged(evidence, entropies.n_active, share)


METRICS.add(
    Metric(
        name="mean_token_entropy_bits",
        unit="bits",
        better="neither",
        null="the mean, over the same latents, of the token entropy at as many random positions",
        definition="mean over latents with at least min_firings active tokens of the entropy over "
        "token ids of their activation mass, all activations included",
        source="Heap et al. 2025 (arXiv 2501.17727). Differs: all activations instead of the top "
        "examples; bits, where the paper states no base.",
        compute=_mean_token_entropy,
        null_number=_null_entropy,
    ),
)
METRICS.add(
    Metric(
        name="token_entropy_share_of_null",
        unit="share",
        better="neither",
        null="1: as spread over tokens as random positions",
        definition="mean over latents with at least min_firings active tokens, and two effective "
        "positions, of token entropy divided by its value at n_effective random positions",
        source="This package.",
        compute=_entropy_share,
        null_number=lambda evidence: 1.0,
    ),
)
