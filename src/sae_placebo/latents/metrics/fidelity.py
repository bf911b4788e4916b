"""How well the SAE reconstructs its activations, and how much of that a null reaches as well.

Every score is a ratio of sums over all tokens, never a mean of ratios per token or per batch.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from sae_placebo.core.errors import NotEstimable
from sae_placebo.latents.metrics.base import METRICS, Evidence, Metric, ratio


def explained_variance(
    evidence: Evidence, weights: Float[np.ndarray, "document replicate"]
) -> Float[np.ndarray, " replicate"]:
    """Return the share of the activations' variance that the reconstruction keeps.

    1 is perfect and 0 is as good as the mean; it can be negative. The mean is that of the weighted
    tokens, so that the variance of a resample is about its own mean.

    Raises:
        NotEstimable: fewer than two tokens, or activations that do not vary.
    """
    if evidence.n_tokens < 2:
        raise NotEstimable("explained variance needs at least two held-out tokens")
    tokens = evidence.document_tokens @ weights
    energy = evidence.activation_energy @ weights
    total = evidence.activation_sum.astype(np.float64).T @ weights
    of_mean = ratio((total**2).sum(0), tokens)
    variance = energy - of_mean
    # energies are sums of squares: a difference below their rounding error is no variance
    variance[variance <= 1e-12 * energy] = np.nan
    if np.isnan(variance[0]):
        raise NotEstimable("the activations do not vary over the held-out tokens")
    return 1 - ratio(evidence.squared_error @ weights, variance)


def _above_gaussian(
    evidence: Evidence, weights: Float[np.ndarray, "document replicate"]
) -> Float[np.ndarray, " replicate"]:
    null = evidence.gaussian_null_ev
    if null is None:
        raise NotEstimable("the same recipe was not trained on a matched Gaussian")
    if not null < 1:
        raise NotEstimable("the recipe explains the matched Gaussian fully: no room above it")
    return (explained_variance(evidence, weights) - null) / (1 - null)


def _lookup_relative(
    evidence: Evidence, weights: Float[np.ndarray, "document replicate"]
) -> Float[np.ndarray, " replicate"]:
    if evidence.lookup_error is None:
        raise NotEstimable("no table of mean activations per token was fitted")
    left = evidence.lookup_error @ weights
    if not left[0] > 1e-12 * (evidence.activation_energy @ weights)[0]:
        raise NotEstimable("the token table leaves nothing to explain")
    return 1 - ratio(evidence.squared_error @ weights, left)


METRICS.add(
    Metric(
        name="explained_variance",
        unit="share",
        better="higher",
        null="what the same recipe reaches on a Gaussian with the activations' mean and "
        "covariance; not 0",
        definition="1 - sum |x - x_hat|^2 / sum |x - mean|^2 over all held-out tokens",
        source="Gao et al. 2024 (arXiv 2406.04093) report its complement; the Gaussian control is "
        "from the toy experiments of Heap et al. 2025 (arXiv 2501.17727).",
        compute=explained_variance,
        null_number=lambda evidence: evidence.gaussian_null_ev,
    ),
)
METRICS.add(
    Metric(
        name="explained_variance_above_gaussian",
        unit="share",
        better="higher",
        null="0: no better than on a Gaussian with the same mean and covariance",
        definition="(EV - EV_G) / (1 - EV_G), EV_G being the explained variance that the same "
        "recipe reaches on the matched Gaussian",
        source="This package. EV_G is held fixed in the bootstrap.",
        compute=_above_gaussian,
        null_number=lambda evidence: 0.0,
    ),
)
METRICS.add(
    Metric(
        name="lookup_relative_explained_variance",
        unit="share",
        better="higher",
        null="0: a table with one vector per token id does as well; below 0 the table does better",
        definition="1 - sum |x - x_hat|^2 / sum |x - E[x | token]|^2, with E fitted on training "
        "tokens",
        source="This package; after the per-token lookup of Dooms and Wilhelm 2025 "
        "(arXiv 2502.17332), which is a decoder bias there and a baseline here.",
        compute=_lookup_relative,
        null_number=lambda evidence: 0.0,
    ),
)
