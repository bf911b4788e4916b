"""Interactions of 2x2 designs: the difference between two effects, with its interval.

With four arms a, b, c, d the interaction is (a - b) - (c - d): the effect of one factor, less the
same effect at the other level of the second factor. It is 0 where the two factors add up. Its
variance follows the rules of `stats.effects`: the signed sum of the four arms is taken within every bootstrap
replicate of the documents, for every SAE seed and every re-draw by the same name, so that what the arms share
there cancels. An arm whose model is given has one value, the same beside every re-draw of the others. Shares
are taken on their own scale here, where a signed sum of four has a meaning.

Source: the contrast of a two-by-two factorial (Fisher 1935, The Design of Experiments, chapter 6);
the variance is our own extension from two arms to four.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import pandas
from sae_placebo.core.tables.effects import INTERACTIONS
from sae_placebo.stats.components import Interval, interval
from sae_placebo.stats.effects import Described
from sae_placebo.stats.replicates import ReplicateKey, Replicates, ReplicateTable
from sae_placebo.stats.spreads import Spreads

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
    spreads = Spreads(table, shares_on_own_scale=True)
    places = list(dict.fromkeys((c.hookpoint, c.sae, c.metric) for c in table))
    for design, arms in quads.items():
        if len(arms) != 4:
            raise ValueError(f"{design}: an interaction has four arms, not {len(arms)}")
        for hookpoint, sae, metric in places:
            cells = [ReplicateKey(arm, hookpoint, sae, metric) for arm in arms]
            if all(cell in table for cell in cells):
                row = _row(spreads, cells, confidence)
                rows.append(row | {"design": design, "unit": metrics[metric].unit})
    found = pandas.DataFrame(rows, columns=list(COLUMNS))
    kinds = dict.fromkeys(_COUNTS, "Int64") | dict.fromkeys(_SIZES, "float64")
    return found.astype(kinds)


def _row(spreads: Spreads, cells: Sequence[ReplicateKey], confidence: float) -> dict[str, Any]:
    table = spreads.table
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
            around = signed_interval(spreads, cells, SIGNS, confidence)
            row |= {"low": around.low, "high": around.high, "se": around.se, "df": around.df}
        except NotEstimable as refusal:
            reasons.append(str(refusal))
    row["reason"] = "; ".join(dict.fromkeys(reasons)) or None
    return row


def signed_interval(
    spreads: Spreads, cells: Sequence[ReplicateKey], signs: Sequence[int], confidence: float = 0.95
) -> Interval:
    """Return the interval of a signed sum of arms; with signs 1 and -1, that of their effect.

    Raises:
        NotEstimable: one SAE seed, one re-draw of a model that is drawn, or one document.
    """
    table = spreads.table
    estimate = sum(sign * table[cell].point for sign, cell in zip(signs, cells, strict=True))
    spread = spreads.signed(dict(zip(cells, signs, strict=True)))
    parts = spread.components(table.n_documents[cells[0].hookpoint])
    return interval(estimate, parts, confidence)
