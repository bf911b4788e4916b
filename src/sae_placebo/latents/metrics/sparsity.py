"""How many latents are active, how often, and how many never are; and whether arms agree in this."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import pandas
from sae_placebo.core.tables import effects as schemas
from sae_placebo.latents.metrics.base import METRICS, Evidence, Metric, ratio


def by_document(evidence: Evidence, what: Float[np.ndarray, " active"]) -> Any:
    """Return the sum over each latent's codes in each document, CSR [latent, document].

    Args:
        evidence: The evidence about the SAE.
        what: The number that is summed, for each code.
    """
    from scipy.sparse import coo_matrix

    documents = evidence.documents[evidence.code_tokens]
    shape = (evidence.d_sae, evidence.n_documents)
    return coo_matrix((what, (evidence.latents, documents)), shape=shape).tocsr()


def firings(
    evidence: Evidence, weights: Float[np.ndarray, "document replicate"]
) -> Float[np.ndarray, "latent replicate"]:
    """Return on how many tokens each latent is active, under each column of weights."""

    def compute() -> Float[np.ndarray, "latent replicate"]:
        counts = by_document(evidence, np.ones(len(evidence.latents)))
        weighted: Float[np.ndarray, "latent replicate"] = counts @ weights
        return weighted

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
    density = densities(evidence, weights)
    density = np.where(density > 0, density, np.nan)
    alive = ~np.isnan(density).all(0)
    if not alive[0]:
        raise NotEstimable("every latent is dead")
    medians = np.full(density.shape[1], np.nan)
    medians[alive] = np.nanmedian(density[:, alive], axis=0)
    return medians


def l0_matches(
    measurements: Any, targets: Mapping[str, float | None], trained: str, tolerance: float
) -> Any:
    """Return how far each arm's L0 is from the trained arm's, with a row per arm, hookpoint and SAE.

    The L0 compared is the one measured on held-out tokens, not the one in the settings. It is the mean over
    all SAEs of an arm, of all seeds.

    Args:
        measurements: A trial's table of that name.
        targets: For each SAE label, the L0 in its settings; None where they have none.
        trained: Name of the arm to which the others are to be matched.
        tolerance: Largest relative difference at which an arm counts as matched.

    Returns:
        A DataFrame with the columns arm, hookpoint, sae, l0, l0_least and l0_most (of single SAEs), n_saes,
        n_tokens, target, relative_to_target, relative_to_trained, tolerance, matched, and reason (why the
        comparison is null).
    """
    rows = []
    values = measurements[measurements["metric"] == "l0"]
    means = values.groupby(["arm", "hookpoint", "sae"], sort=False)["value"].mean()
    for (arm, hookpoint, sae), rows_of in values.groupby(["arm", "hookpoint", "sae"], sort=False):
        l0, usual = means[arm, hookpoint, sae], means.get((trained, hookpoint, sae), math.nan)
        known, target = rows_of["value"].dropna(), targets.get(sae)
        away, reason = _relative(l0, usual), None
        if away is None:
            reasons = rows_of["reason"].dropna().astype(str)
            reason = "the trained arm has no active latents to compare with"
            if not len(known):
                reason = reasons.iloc[0] if len(reasons) else "L0 was not measured"
        rows.append(
            {
                "arm": arm,
                "hookpoint": hookpoint,
                "sae": sae,
                "l0": float(l0),
                "l0_least": known.min(),
                "l0_most": known.max(),
                "n_saes": len(known),
                "n_tokens": int(rows_of["n"].max()),
                "target": target,
                "relative_to_target": _relative(l0, target),
                "relative_to_trained": away,
                "tolerance": tolerance,
                "matched": None if away is None else abs(away) <= tolerance,
                "reason": reason,
            }
        )
    types = {"n_saes": "Int64", "n_tokens": "Int64", "matched": "boolean"} | dict.fromkeys(
        ("target", "relative_to_target", "relative_to_trained"), "float64"
    )
    return pandas.DataFrame(rows, columns=list(MATCHING)).astype(types)


MATCHING = schemas.MATCHING.names
"""Columns of the table that `l0_matches` returns."""


def _relative(value: float, to: float | None) -> float | None:
    known = to is not None and math.isfinite(value) and math.isfinite(to) and to > 0
    return float(value / to - 1) if known and to else None


METRICS.add(
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
