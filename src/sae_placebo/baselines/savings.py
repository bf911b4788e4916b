"""Bits that an SAE saves over simpler baselines, as metrics by which arms are compared."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from sae_placebo.baselines.base import BASELINES, BaselinesSpec
from sae_placebo.baselines.compare import BaselinesResult, methods_frame
from sae_placebo.baselines.marginal import best_simpler, bits_saved
from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import pandas
from sae_placebo.latents.metrics.base import Declared

DECLARED: dict[str, Declared] = {
    one.name: one
    for one in (
        Declared(
            name="bits_saved",
            unit="bits/token",
            better="higher",
            null="0: as long as the best simpler baseline's code; arm minus placebo is marginal structure",
            definition="bits per token that the best simpler baseline (PCA, ICA, k-means, a non-negative "
            "dictionary, neurons, rows of W_E, random directions) takes to transmit the activations at the "
            "headline distortion, minus the bits that the SAE takes",
            source="This package; see `baselines.marginal`.",
        ),
        Declared(
            name="sae_bits",
            unit="bits/token",
            better="neither",
            null="the best simpler baseline's bits on the same arm",
            definition="bits per token to transmit the activations at the headline distortion with the "
            "SAE's atoms: indices, values and what is left over; the dictionary itself not counted",
            source="This package; see `baselines.rate`.",
        ),
    )
}
"""The declarations of the metrics that `saved` returns, by name."""


def refused(reason: str) -> BaselinesResult:
    """Return the result of a comparison that could not be made: every baseline with the reason."""
    rows: list[dict[str, Any]] = [
        {"baseline": name, "reason": reason} for name in BASELINES.entries
    ]
    return BaselinesResult(methods_frame(rows), {}, 0, reason)


def saved(
    found: BaselinesResult,
    reading: str,
    weights: Float[np.ndarray, "document replicate"],
    spec: BaselinesSpec,
) -> tuple[Any, dict[str, Float[np.ndarray, " replicate"]]]:
    """Return the table of metrics of one SAE, and their values under each column of document weights.

    Args:
        found: The comparison for the SAE's arm.
        reading: The SAE's name in it.
        weights: How often each document counts; column 0 is ones.
        spec: The settings, of which the first distortion is the headline.
    """
    distortion = spec.distortions[0]
    rows, replicates = [], {}
    try:
        sae, simpler = found.of_sae(reading, distortion), found.simpler(distortion)
        best = best_simpler(simpler)
        replicates["bits_saved"] = bits_saved(sae, simpler, weights)
        replicates["sae_bits"] = sae.per_token(weights)
        nulls = {"bits_saved": 0.0, "sae_bits": float(simpler[best].per_token(weights[:, :1])[0])}
        reason, n = None, int(sae.tokens.sum())
    except (NotEstimable, KeyError) as refusal:
        why = found.reason or str(refusal)
        reason, n, nulls = f"its bits cannot be counted: {why}", 0, {}
    for name, declared in DECLARED.items():
        value = float(replicates[name][0]) if name in replicates else None
        rows.append([name, value, declared.unit, nulls.get(name), n, reason])
    columns = ["metric", "value", "unit", "null_value", "n", "reason"]
    return pandas.DataFrame(rows, columns=columns), replicates
