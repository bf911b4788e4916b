"""Effects of arms against controls, with intervals over documents, SAE seeds and model seeds.

Three things could have come out otherwise: which documents were held out, the SAE's initial bits,
and how a control's weights were re-drawn. They are crossed: every document is read by every SAE. An
effect is the mean over all SAEs of an arm minus that of its control, and its variance is

    documents + SAE seeds + re-draws - what the two do together,

each part counted once and moderated over the cells like it (`stats.spreads`). Seeds go by the same names in
every arm, so the difference is taken seed by seed. Intervals are made of the parts as `stats.components`
says, and those of shares as `stats.inference` says.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import pandas
from sae_placebo.core.spec import numpy_generator
from sae_placebo.core.tables.effects import EFFECTS
from sae_placebo.stats.bootstrap import resampled_counts
from sae_placebo.stats.components import interval
from sae_placebo.stats.inference import AnyDifference, ArmNumber, Difference, difference
from sae_placebo.stats.multiplicity import MultiplicitySpec, judged, p_values
from sae_placebo.stats.placebo_effects import placebo_against_placebo
from sae_placebo.stats.replicates import ReplicateKey, Replicates, ReplicateTable
from sae_placebo.stats.spreads import Spreads


def document_weights(
    n_documents: int, replicates: int, seed: int
) -> Float[np.ndarray, "document replicate_plus_one"]:
    """Return how often each document counts in each bootstrap replicate.

    Column 0 is all ones: the held-out documents themselves. Every other column is a draw of
    n_documents with replacement. All arms share these weights.
    """
    draws = resampled_counts(numpy_generator(seed, "document bootstrap"), n_documents, replicates)
    return np.concatenate([np.ones((1, n_documents)), draws]).T


@runtime_checkable
class Described(Protocol):
    """The words with which a table of effects describes a metric."""

    @property
    def unit(self) -> str:
        """Return the metric's unit."""

    @property
    def better(self) -> str:
        """Return whether higher, lower or neither is better."""

    @property
    def null(self) -> str:
        """Return the metric's null in words."""


def effects(
    table: ReplicateTable,
    contrasts: Sequence[tuple[str, str]],
    metrics: Mapping[str, Described],
    confidence: float = 0.95,
    spec: MultiplicitySpec | None = None,
) -> pandas.DataFrame:
    """Return one row for every contrast, hookpoint, SAE and metric: arm minus control.

    What cannot be estimated is null and `reason` says why. The columns that begin with aa_ hold the
    same difference between two halves of the control's own re-draws, which is 0 but for chance. The
    columns of p and q values and the conclusion are those of `stats.multiplicity`.

    Args:
        table: Every arm's values under the same document weights.
        contrasts: Pairs of arm and control; both may be controls.
        metrics: What each metric is; `metrics.METRICS.entries` will do.
        confidence: Of every interval.
        spec: Level, smallest effects of interest and families; the defaults unless given.
    """
    spec, spreads = spec or MultiplicitySpec(), Spreads(table)
    rows: list[dict[str, Any]] = []
    places = list(dict.fromkeys((c.hookpoint, c.sae, c.metric) for c in table))
    for arm, control in contrasts:
        for hookpoint, sae, metric in places:
            pair = (
                ReplicateKey(arm, hookpoint, sae, metric),
                ReplicateKey(control, hookpoint, sae, metric),
            )
            if pair[0] in table and pair[1] in table:
                row, found = _row(spreads, pair, metrics[metric], confidence)
                rows.append(row | p_values(row, found, spec))
    made = pandas.DataFrame(rows, columns=list(COLUMNS))
    kinds = {name: "Int64" if name.startswith("n_") else "float64" for name in _NUMBERS}
    return judged(made.astype(kinds), spec)


COLUMNS = EFFECTS.names
_TEXTS = {column.name for column in EFFECTS.columns if column.kind == "string"}
_NUMBERS = [name for name in COLUMNS if name not in _TEXTS]


def _row(
    spreads: Spreads,
    pair: tuple[ReplicateKey, ReplicateKey],
    metric: Described,
    confidence: float,
) -> tuple[dict[str, Any], AnyDifference | None]:
    """Return a row without its tests, and the difference that they are of, where there is one."""
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    table, (cell, against) = spreads.table, pair
    row |= {"metric": cell.metric, "hookpoint": cell.hookpoint, "sae": cell.sae}
    row |= {"arm": cell.arm, "control": against.arm, "null": 0.0}
    row |= {"unit": metric.unit, "better": metric.better}
    n_documents = table.n_documents[cell.hookpoint]
    row |= {"n_documents": n_documents, "n_tokens": table.n_tokens[cell.hookpoint]}

    reasons: list[str] = []
    values: list[Replicates] = []
    numbers: list[ArmNumber] = []
    for side, name in zip(pair, ("arm", "control"), strict=True):
        try:
            found = table[side]
            values.append(found)
            row |= {f"{name}_value": found.point, f"n_{name}_models": len(found.model_seeds)}
            row["n_sae_seeds"] = len(found.sae_seeds)
            number = ArmNumber.of(spreads, side)
        except NotEstimable as refusal:
            reasons.append(str(refusal))
            continue
        numbers.append(number)
        around = number.bounds(confidence)
        row |= {f"{name}_low": around.low, f"{name}_high": around.high}
    row["metric_null"] = _null_of(metric, pair, table)
    made: AnyDifference | None = None
    if pair in table.withheld:
        reasons.append(table.withheld[pair])
        numbers.clear()
    elif len(values) == 2:
        row["effect"] = values[0].point - values[1].point
    if len(numbers) == 2:
        try:
            made = difference(spreads, pair)
            row |= _around(made, confidence)
        except NotEstimable as refusal:
            reasons.append(str(refusal))
    row["reason"] = "; ".join(dict.fromkeys(reasons)) or None
    return row | placebo_against_placebo(spreads, against, confidence), made


def _null_of(
    metric: Described, pair: tuple[ReplicateKey, ReplicateKey], table: ReplicateTable
) -> str:
    """Return the metric's null in words, with its number in each arm that has one."""
    numbers = []
    for side in pair:
        with contextlib.suppress(NotEstimable):
            value = table[side].null_value
            if value is not None:
                numbers.append(f"{value:.3g} in {side.arm}")
    return f"{metric.null} ({', '.join(numbers)})" if numbers else metric.null


def _around(found: AnyDifference, confidence: float) -> dict[str, float | None]:
    """Return the interval of a difference; that of shares is not symmetric, and has no df."""
    if isinstance(found, Difference):
        return interval(found.value, found.components, confidence)._asdict()
    return found.bounds(confidence)._asdict() | {"se": found.se}


def arm_bounds(
    spreads: Spreads, cell: ReplicateKey, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the interval of one arm's mean.

    Raises:
        NotEstimable: one SAE seed, one re-draw of a model that is drawn, or one document.
    """
    around = ArmNumber.of(spreads, cell).bounds(confidence)
    return around.low, around.high
