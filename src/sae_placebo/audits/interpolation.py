"""What the model loses when an activation is moved towards its reconstruction, and on beyond it.

A curve that stays low and then rises shows a region in which the model does not mind the change. One that
rises at once, before the curve of other pushes of the same length, shows that the error lies along directions
that the model reads.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from jaxtyping import Float64, Int64

from sae_placebo.audits.base import AUDITS, Audit, Audited, Case, Finding, Quantity, over_documents
from sae_placebo.audits.edits import (
    FLOOR,
    Pushes,
    chosen,
    costs,
    mean_of,
    ordinary,
    ratio_of,
    runnable,
)
from sae_placebo.core.lazy import torch

NAME = "interpolation"
FAR = 2.0
"""Where the curve ends, in lengths of the error."""


def lengths_of(steps: int) -> Float64[np.ndarray, " step"]:
    """Return where the curve is read, without 0, in lengths of the error."""
    return np.linspace(0, FAR, steps)[1:]


def curves(
    case: Case, tokens: Int64[np.ndarray, " token"]
) -> tuple[Float64[np.ndarray, "token step"], Float64[np.ndarray, "token step"]]:
    """Return what moving each token's activation costs the model, in nats, at each length.

    The first curve moves it towards the reconstruction. The second, its null, moves it along covariance
    mixtures, and is the mean over `spec.draws` of them.

    Raises:
        NotEstimable: the model cannot be run.
    """
    pushes, lengths = Pushes(case), lengths_of(case.spec.steps)
    kinds = [("error", "")] + [("covariance", f"along {i}") for i in range(case.spec.draws)]
    ways = [pushes.draw(kind, tokens, name) for kind, name in kinds]
    edits = torch.stack([way * float(t) for way in ways for t in lengths], dim=1)
    nats = costs(case, tokens, edits).reshape(len(tokens), len(ways), len(lengths))
    return nats[:, 0], nats[:, 1:].mean(1)


def width(
    curve: Float64[np.ndarray, "step replicate"], lengths: Float64[np.ndarray, " step"]
) -> Float64[np.ndarray, " replicate"]:
    """Return where each curve first reaches half of its value at the end, in lengths of the error.

    Between two steps, the root of the cost is taken to be a straight line, as it is where the cost is
    quadratic. A quadratic curve has a width of 1.41 = FAR / sqrt(2). The width of a curve that ends at 0 is
    NaN.
    """
    roots = np.sqrt(np.concatenate([np.zeros((1, curve.shape[1])), np.maximum(curve, 0)]))
    places = np.concatenate([[0.0], lengths])
    half = roots[-1] / math.sqrt(2)
    after = np.argmax(roots >= half, axis=0)
    replicate = np.arange(curve.shape[1])
    before = np.maximum(after - 1, 0)
    low, high = roots[before, replicate], roots[after, replicate]
    part = (half - low) / np.where(high > low, high - low, 1)
    return np.where(roots[-1] > 0, places[before] + part * (places[after] - places[before]), np.nan)


def _widths(
    case: Case,
    tokens: Int64[np.ndarray, " token"],
    error: Float64[np.ndarray, "token step"],
    mixture: Float64[np.ndarray, "token step"],
) -> list[Finding]:
    """Return the width of the error's plateau, with that of mixtures as its null, and their difference."""
    documents, lengths = case.documents[tokens], lengths_of(case.spec.steps)
    n_steps, n, seed = len(lengths), len(tokens), case.seed
    if min(error.mean(0)[-1], mixture.mean(0)[-1]) <= FLOOR:
        reason = "the pushes cost the model nothing"
        return [
            Finding(NAME, name, math.nan, n=n, reason=reason)
            for name in ("plateau", "plateau_gain")
        ]
    value = over_documents(lambda s: width(s, lengths), error.T, documents, seed)
    null = over_documents(lambda s: width(s, lengths), mixture.T, documents, seed)
    both = np.concatenate([error.T, mixture.T])
    gain = over_documents(
        lambda s: width(s[:n_steps], lengths) - width(s[n_steps:], lengths), both, documents, seed
    )
    return [
        Finding(NAME, "plateau", *value, n, *null),
        Finding(NAME, "plateau_gain", *gain, n, null=0.0),
    ]


def _run(case: Case) -> Audited:
    runnable(case)
    tokens = chosen(case, max(case.spec.tokens // 2, 1), ordinary(case))
    documents, seed = case.documents[tokens], case.seed
    error, mixture = curves(case, tokens)
    findings = [Finding(NAME, "curve", 0.0, 0.0, 0.0, len(tokens), 0.0, 0.0, 0.0, at=0.0)]
    for i, t in enumerate(lengths_of(case.spec.steps)):
        cost = mean_of(NAME, "curve", error[:, i], documents, seed)
        null = mean_of(NAME, "curve", mixture[:, i], documents, seed)
        ratio = ratio_of(NAME, "curve_ratio", error[:, i], mixture[:, i], documents, seed)
        findings += [
            replace(cost, null=null.value, null_low=null.low, null_high=null.high, at=float(t)),
            replace(ratio, at=float(t)),
        ]
    return Audited(findings + _widths(case, tokens, error, mixture))


_QUANTITIES = (
    Quantity(
        "curve", "nats per token", "lower", "the same along covariance mixtures",
        "Mean KL(P || P') with the activation moved towards its reconstruction by `at` lengths of the "
        "error (1 is the reconstruction, 2 as far again), summed over the token's prediction and the next "
        "ones in the window.",
        "Where it lies above the mixtures' from the first step, the error is along directions that the "
        "model reads: keep it in interventions.", along="lengths of the error"),
    Quantity(
        "curve_ratio", "1", "lower", "1",
        "The curve over that of covariance mixtures, at the same length.",
        "A ratio that falls with the length means that small errors hurt most for their size: more "
        "explained variance will not cure it.", along="lengths of the error"),
    Quantity(
        "plateau", "lengths of the error", "higher", "that of covariance mixtures; 1.41 for a quadratic",
        "Length at which the curve first reaches half of its value at 2 lengths of the error.",
        "Below the null, the model feels small parts of the error already: do not call small errors safe.",
    ),
    Quantity(
        "plateau_gain", "lengths of the error", "higher", "0",
        "The plateau's width less that of covariance mixtures.",
        "Draw no conclusion from the plateau when this interval holds 0.",
    ),
)  # fmt: skip

AUDITS.add(
    Audit(
        NAME,
        "Along the error",
        "How soon does the model feel the error, on the way to the reconstruction and beyond?",
        "Lee and Heimersheim (2024, arXiv 2410.12555). Deviations: the curve is of single tokens, in the "
        "length of each token's own error; width at half of the end's value, which is ours; half of the "
        "audit's tokens are read, since each takes all lengths.",
        _QUANTITIES,
        _run,
    ),
)
