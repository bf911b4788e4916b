"""How many latents are active, how often, and how many never."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from sae_placebo.errors import NotEstimable
from sae_placebo.metrics.base import METRICS, Evidence, Metric, ratio


def firings(
    evidence: Evidence, weights: Float[np.ndarray, "document replicate"]
) -> Float[np.ndarray, "latent replicate"]:
    """Return on how many tokens each latent is active, under each column of weights."""

    def compute() -> Float[np.ndarray, "latent replicate"]:
        from scipy.sparse import coo_matrix

        documents = evidence.documents[evidence.code_tokens]
        counts = coo_matrix(
            (np.ones(len(documents)), (evidence.latents, documents)),
            shape=(evidence.d_sae, evidence.n_documents),
        ).tocsr()
        found: Float[np.ndarray, "latent replicate"] = counts @ weights
        return found

    return evidence.shared("firings", weights, compute)


def densities(
    evidence: Evidence, weights: Float[np.ndarray, "document replicate"]
) -> Float[np.ndarray, "latent replicate"]:
    """Return the share of tokens on which each latent is active; NaN where there are no tokens."""
    tokens = evidence.document_tokens @ weights
    counts = firings(evidence, weights)
    return ratio(counts, np.broadcast_to(tokens, counts.shape))


def _l0(
    evidence: Evidence, weights: Float[np.ndarray, "document replicate"]
) -> Float[np.ndarray, " replicate"]:
    codes = np.bincount(
        evidence.documents, weights=np.diff(evidence.offsets), minlength=evidence.n_documents
    )
    return ratio(codes @ weights, evidence.document_tokens @ weights)


def _dead_share(
    evidence: Evidence, weights: Float[np.ndarray, "document replicate"]
) -> Float[np.ndarray, " replicate"]:
    share = (firings(evidence, weights) == 0).mean(0)
    return np.where(evidence.document_tokens @ weights > 0, share, np.nan)


def _dense_share(
    evidence: Evidence, weights: Float[np.ndarray, "document replicate"]
) -> Float[np.ndarray, " replicate"]:
    dense = densities(evidence, weights) > evidence.thresholds.dense_density
    return np.where(evidence.document_tokens @ weights > 0, dense.mean(0), np.nan)


def _median_density(
    evidence: Evidence, weights: Float[np.ndarray, "document replicate"]
) -> Float[np.ndarray, " replicate"]:
    found = densities(evidence, weights)
    found = np.where(found > 0, found, np.nan)
    alive = ~np.isnan(found).all(0)
    if not alive[0]:
        raise NotEstimable("every latent is dead")
    medians = np.full(found.shape[1], np.nan)
    medians[alive] = np.nanmedian(found[:, alive], axis=0)
    return medians


METRICS.add(
    "l0",
    Metric(
        name="l0",
        unit="latents",
        better="neither",
        null="none: it is what the arms should share before anything else is compared",
        definition="mean number of active latents per token",
        source="In common use.",
        compute=_l0,
    ),
)
METRICS.add(
    "dead_share",
    Metric(
        name="dead_share",
        unit="share",
        better="lower",
        null="none: it depends on the recipe",
        definition="share of latents that are active on no held-out token; it falls with the "
        "number of tokens",
        source="Bricken et al. 2023, on the held-out tokens instead of a fixed sample.",
        compute=_dead_share,
    ),
)
METRICS.add(
    "dense_share",
    Metric(
        name="dense_share",
        unit="share",
        better="neither",
        null="none: the value in the placebo arms is the comparison",
        definition="share of latents, dead ones included, that are active on more than a tenth of "
        "the tokens (`dense_density` of the thresholds)",
        source="Sun et al. 2025 (arXiv 2506.15679), threshold 0.1.",
        compute=_dense_share,
    ),
)
METRICS.add(
    "median_density",
    Metric(
        name="median_density",
        unit="share",
        better="neither",
        null="none: the value in the placebo arms is the comparison",
        definition="median, over latents that are not dead, of the share of tokens on which the "
        "latent is active",
        source="In common use.",
        compute=_median_density,
    ),
)
