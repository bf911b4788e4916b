"""What latents save beyond every existing method as a table, with intervals over documents and seeds."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

from sae_placebo.baselines.marginal import BEST, COMMON
from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import pandas
from sae_placebo.core.tables.baselines import MARGINAL
from sae_placebo.stats.effects import arm_bounds
from sae_placebo.stats.replicates import ReplicateKey, ReplicateTable
from sae_placebo.stats.spreads import Spreads

_MEANS = (
    *("n_atoms", "bits_pca", "bits_halved", "bits_doubled", "bits_joined"),
    *("atoms_doubled", "atoms_joined"),
)
_NUMBERS = tuple(one.name for one in MARGINAL.columns if one.kind == "float")


def marginal_table(rows: Any, table: ReplicateTable, level: float) -> Any:
    """Return one row per arm, hookpoint, SAE and existing method, about all seeds together.

    Args:
        rows: One row per SAE and method of every model, as `savings.beyond_methods` gives them, with the
            columns arm, hookpoint and sae.
        table: The gains under document weights, as metrics `<method>/bits`, `<method>/share` and
            `<method>/gaussian`.
        level: Level of the intervals.
    """
    keys = ["arm", "hookpoint", "sae", "baseline"]
    found, spreads = [], (Spreads(table), Spreads(_above(table)))
    for place, part in rows.groupby(keys, sort=False):
        row: dict[str, Any] = dict(zip(keys, place, strict=True))
        # a column without any number is read back as one of objects
        row |= {name: pandas.to_numeric(part[name], errors="coerce").mean() for name in _MEANS}
        methods = dict.fromkeys(part["method"].dropna())
        row |= {"method": ", ".join(methods) or None, "n_saes": len(part)}
        reasons = dict.fromkeys(str(reason) for reason in part["reason"].dropna())
        for name, kind in (("gain", "bits"), ("share", "share"), ("gaussian", "gaussian")):
            if kind != "gaussian" or row["baseline"] in (BEST, COMMON):
                row |= _interval(spreads, place, (kind, name), level, reasons)
        found.append(row | {"reason": "; ".join(reasons) or None})
    made = pandas.DataFrame(found, columns=list(MARGINAL.names))
    return made.astype(dict.fromkeys(_NUMBERS, "float64") | {"n_saes": "Int64"})


def _above(table: ReplicateTable) -> ReplicateTable:
    """Return the gains above those on Gaussian activations, where there are such."""
    above = dataclasses.replace(table)
    for cell in table:
        method, _, kind = cell.metric.partition("/")
        if kind == "gaussian" and method in (BEST, COMMON):
            with contextlib.suppress(NotEstimable):
                gain, chance = table[cell._replace(metric=f"{method}/bits")], table[cell]
                above.put(cell, dataclasses.replace(gain, values=gain.values - chance.values))
    return above


def _interval(
    spreads: tuple[Spreads, Spreads],
    place: tuple[str, ...],
    names: tuple[str, str],
    level: float,
    reasons: dict[str, None],
) -> dict[str, float]:
    """Return the value and bounds of one number; why there is none is added to `reasons`.

    Of the gain on Gaussian activations there are also those of the gain above it.
    """
    arm, hookpoint, sae, baseline = place
    (kind, name), row = names, dict[str, float]()
    cell = ReplicateKey(arm, hookpoint, sae, f"{baseline}/{kind}")
    shown = [(name, spreads[0]), ("above", spreads[1])][: 2 if kind == "gaussian" else 1]
    try:
        for called, of in shown:
            row[called] = of.table[cell].point
            row[f"{called}_low"], row[f"{called}_high"] = arm_bounds(of, cell, level)
    except NotEstimable as refusal:
        reasons[str(refusal)] = None
    return row
