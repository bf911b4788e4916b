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
