"""Interactions of 2x2 designs: the difference between two effects, with its interval.

With four arms a, b, c, d the interaction is (a - b) - (c - d): the effect of one factor, less the
same effect at the other level of the second factor. It is 0 where the two factors add up. Its
variance follows the rules of `stats.effects.effect_interval`: the signed sum of the four arms is taken
within every bootstrap replicate of the documents, for every SAE seed and for every re-draw by the
same name, and only then is its variation estimated, so that what the arms share cancels. An arm whose
model is given has one value, which is the same beside every re-draw of the others.

Source: the contrast of a two-by-two factorial (Fisher 1935, The Design of Experiments, chapter 6);
the variance is our own extension of `effect_interval` from two arms to four.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import pandas
from sae_placebo.core.tables.effects import INTERACTIONS
from sae_placebo.stats.effects import (
    Component,
    Described,
    Interval,
    between,
    document_component,
    interval,
)
from sae_placebo.stats.replicates import ReplicateKey, Replicates, ReplicateTable

SIGNS = (1, -1, -1, 1)
"""These are the signs of the four arms in (a - b) - (c - d)."""
COLUMNS = INTERACTIONS.names
_COUNTS = ("n_documents", "n_tokens", "n_sae_seeds")
_SIZES = ("effect", "low", "high", "se", "df", "null")


def interactions(
    table: ReplicateTable,
    quads: Mapping[str, Sequence[str]],
    metrics: Mapping[str, Described],
    confidence: float = 0.95,
) -> pandas.DataFrame:
    """Return one row for every design, hookpoint, SAE and metric: (a - b) - (c - d).

    What cannot be estimated is null and `reason` says why. `cells` holds the names of a, b, c and d,
    `n_models` how many models each of them has.

    Args:
        table: Every arm's values under the same document weights.
        quads: Design's name to the four arms; `designs.quads` finds them.
        metrics: What each metric is; `metrics.METRICS.entries` will do.
        confidence: Of every interval.

    Raises:
        ValueError: a design does not have four arms.
    """
    rows: list[dict[str, Any]] = []
    places = list(dict.fromkeys((c.hookpoint, c.sae, c.metric) for c in table))
    for design, arms in quads.items():
        if len(arms) != 4:
            raise ValueError(f"{design}: an interaction has four arms, not {len(arms)}")
        for hookpoint, sae, metric in places:
            cells = [ReplicateKey(arm, hookpoint, sae, metric) for arm in arms]
            if all(cell in table for cell in cells):
                row = _row(table, cells, confidence)
                rows.append(row | {"design": design, "unit": metrics[metric].unit})
    found = pandas.DataFrame(rows, columns=list(COLUMNS))
    kinds = dict.fromkeys(_COUNTS, "Int64") | dict.fromkeys(_SIZES, "float64")
    return found.astype(kinds)


def _row(table: ReplicateTable, cells: Sequence[ReplicateKey], confidence: float) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    hookpoint = cells[0].hookpoint
    row |= {"metric": cells[0].metric, "hookpoint": hookpoint, "sae": cells[0].sae, "null": 0.0}
    row |= {"cells": [cell.arm for cell in cells]}
    row |= {"n_documents": table.n_documents[hookpoint], "n_tokens": table.n_tokens[hookpoint]}
    sides: list[Replicates] = []
    reasons: list[str] = []
    for cell in cells:
        try:
            sides.append(table[cell])
        except NotEstimable as refusal:
            reasons.append(str(refusal))
    if tuple(cells) in table.withheld:
        reasons.append(table.withheld[tuple(cells)])
    elif len(sides) == 4:
        row["effect"] = sum(s * side.point for s, side in zip(SIGNS, sides, strict=True))
        row["n_sae_seeds"] = min(len(side.sae_seeds) for side in sides)
        row["n_models"] = [len(side.model_seeds) for side in sides]
        try:
            around = signed_interval(sides, SIGNS, table.n_documents[hookpoint], confidence)
            row |= {"low": around.low, "high": around.high, "se": around.se, "df": around.df}
        except NotEstimable as refusal:
            reasons.append(str(refusal))
    row["reason"] = "; ".join(dict.fromkeys(reasons)) or None
    return row


def signed_interval(
    sides: Sequence[Replicates], signs: Sequence[int], n_documents: int, confidence: float = 0.95
) -> Interval:
    """Return the interval of a signed sum of arms; with signs 1 and -1, that of their effect.

    Raises:
        NotEstimable: one SAE seed, one re-draw of a model that is drawn, or one document.
    """
    signed = list(zip(signs, sides, strict=True))
    estimate = sum(sign * side.point for sign, side in signed)
    replicates = np.sum([sign * side.replicates for sign, side in signed], axis=0)
    step = max(side.step for side in sides)
    parts = [document_component(replicates, n_documents)]
    by_sae_seed = [(side.sae_seeds, sign * side.by_sae_seed) for sign, side in signed]
    parts += _paired(by_sae_seed, "sae_seeds", step)
    drawn = [(side.model_seeds, sign * side.by_model) for sign, side in signed if side.drawn]
    parts += _paired(drawn, "model_seeds", step)
    return interval(estimate, parts, confidence)


def _paired(
    signed: Sequence[tuple[tuple[int, ...], Float[np.ndarray, " seed"]]],
    source: Literal["sae_seeds", "model_seeds"],
    step: float,
) -> list[Component]:
    """Return a component per set of names: arms of the same names are summed seed by seed."""
    sums: dict[tuple[int, ...], Float[np.ndarray, " seed"]] = {}
    for names, values in signed:
        sums[names] = sums[names] + values if names in sums else values
    return [between(values, source, step) for values in sums.values()]
