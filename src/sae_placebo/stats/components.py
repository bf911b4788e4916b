"""An estimate's variance as a sum of parts, and the interval that comes of it.

An interval is estimate +- q sqrt(variance), where q averages the two Student quantiles, that of the
documents and that of the seeds, weighted by their variances (Cochran 1964, Biometrics 20:191; the
seeds' own parts are pooled by Satterthwaite's rule, 1946, Biometrics Bulletin 2:110). Satterthwaite's rule
for all parts together covers only 88% of the time where two seeds vary much more than the documents do:
when the two happen to agree, it credits the estimate with the documents' degrees of freedom.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from sae_placebo.core.errors import NotEstimable
from sae_placebo.stats.quantiles import normal_quantile, student_quantile

DOCUMENTS, SAE_SEEDS, MODEL_SEEDS = "documents", "sae_seeds", "model_seeds"

# a metric may be undefined in a few resamples; above this share the interval would mean another thing
_MOST_UNDEFINED = 0.1


class Component(NamedTuple):
    """The part that one source has in an estimate's variance; its `df` may be inf."""

    source: str
    variance: float
    df: float


class Interval(NamedTuple):
    """A two-sided interval of half-width t(df) * se; df is None where nothing varies."""

    low: float
    high: float
    se: float
    df: float | None


def half_width(components: Sequence[Component], confidence: float = 0.95) -> float:
    """Return how far an interval reaches to either side; 0 where nothing varies."""
    variance = sum(part.variance for part in components)
    if variance <= 0:
        return 0.0
    quantile = 0.0
    for seeds in (False, True):
        parts = [part for part in components if (part.source != DOCUMENTS) is seeds]
        of_these = sum(part.variance for part in parts)
        if of_these > 0:
            shares = sum((part.variance / of_these) ** 2 / part.df for part in parts)
            q = student_quantile(1 / shares, confidence) if shares else normal_quantile(confidence)
            quantile += of_these / variance * q
    return float(quantile * variance**0.5)


def interval(
    estimate: float, components: Sequence[Component], confidence: float = 0.95
) -> Interval:
    """Return the interval for an estimate whose variance is the sum of its components.

    Where nothing varies at all, it is a point. The degrees of freedom are those of the Student
    quantile that results.
    """
    from scipy.special import stdtridf

    variance = sum(part.variance for part in components)
    half = half_width(components, confidence)
    if half == 0:
        return Interval(estimate, estimate, 0.0, None)
    df = float(stdtridf((1 + confidence) / 2, half / variance**0.5))
    return Interval(estimate - half, estimate + half, variance**0.5, df)


def defined(
    replicates: Float[np.ndarray, " replicate"], n_documents: int
) -> Float[np.ndarray, " known"]:
    """Return the bootstrap replicates that are numbers.

    Raises:
        NotEstimable: fewer than two documents or replicates, or too many undefined replicates.
    """
    if n_documents < 2:
        raise NotEstimable("one document: the variation between documents cannot be estimated")
    if len(replicates) < 2:
        raise NotEstimable("fewer than two bootstrap replicates of the documents")
    known = replicates[np.isfinite(replicates)]
    if len(known) < (1 - _MOST_UNDEFINED) * len(replicates) or len(known) < 2:
        raise NotEstimable(
            f"undefined in {len(replicates) - len(known)} of {len(replicates)} resamples of the "
            "documents; hold out more of them"
        )
    return known


def document_component(
    replicates: Float[np.ndarray, " replicate"], n_documents: int, counted_elsewhere: float = 0.0
) -> Component:
    """Return the variance over documents of an estimate, from its bootstrap replicates.

    Its degrees of freedom are those of n_documents, less what a finite number of replicates costs.

    Args:
        replicates: The estimate in each resample of the documents.
        n_documents: Documents that were resampled.
        counted_elsewhere: What of this variance the spread between seeds holds too, and is taken off.

    Raises:
        NotEstimable: see `defined`.
    """
    known = defined(replicates, n_documents)
    variance = float(known.var(ddof=1)) - counted_elsewhere
    df = 1 / (1 / (n_documents - 1) + 1 / (len(known) - 1))
    return Component(DOCUMENTS, max(variance, 0.0) * n_documents / (n_documents - 1), df)
