"""How every number that hangs on the ladder moves with the text that it is fitted on, and which are withheld.

The share of a class of latents is one of these. It is told as well where no portion of the text gives another
one, so that a class that no arm has is not withheld.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import pandas
from sae_placebo.core.store import Store
from sae_placebo.core.tables.structure import FIT_CURVE
from sae_placebo.latents.metrics.ladder_shares import is_r2
from sae_placebo.latents.metrics.structure import DECLARED
from sae_placebo.stats.convergence import Change, change, end_of_curve
from sae_placebo.stats.effects import arm_bounds
from sae_placebo.stats.interactions import SIGNS
from sae_placebo.stats.replicates import ReplicateKey, Replicates, ReplicateTable
from sae_placebo.stats.spreads import Spreads
from sae_placebo.trial.plan import Plan
from sae_placebo.trial.recipes import read_missed
from sae_placebo.trial.table_files import read_replicates, read_table

_ABOUT_HALF = 0.6
"""Part of the text up to which the last portion but one counts as half of it."""
_UNKNOWN = (
    "withheld: the text to fit on has too few documents for half of it, so that it is not known whether "
    "more of it moves the number"
)


@dataclass(frozen=True)
class FitCurves:
    """The numbers of the ladder by portion of the text to fit on.

    Attributes:
        tables: Values, a table for each portion.
        sizes: By hookpoint, tokens and documents of each portion.
        cells: Every arm's number.
    """

    tables: tuple[ReplicateTable, ...]
    sizes: Mapping[str, list[tuple[int, int]]]
    cells: tuple[ReplicateKey, ...]

    @classmethod
    def read(cls, plan: Plan, store: Store, measured: ReplicateTable) -> FitCurves:
        """Return the curves that the profiles of a trial left.

        Args:
            plan: The trial's.
            store: Where its artefacts are.
            measured: Every metric of every SAE, on the same documents.
        """
        tables: list[ReplicateTable] = []
        sizes: dict[str, list[tuple[int, int]]] = {}
        cells: dict[ReplicateKey, None] = {}
        for (one, hookpoint, sae, sae_seed), step in plan.profile.items():
            folder = store.path(step)
            rows, values = read_table(folder / "curve.parquet"), read_replicates(folder)
            why = read_missed(store.path(plan.build[one])).get(hookpoint)
            if why is not None:
                rows, values = rows.assign(value=np.nan, reason=why), {}
            by_portion = rows.drop_duplicates("portion").sort_values("portion")
            found = list(zip(by_portion["fit_tokens"], by_portion["fit_documents"], strict=True))
            sizes[hookpoint] = max(sizes.get(hookpoint, []), found, key=len)
            for row in rows.itertuples():
                while len(tables) <= row.portion:
                    tables.append(dataclasses.replace(measured))
                cells[ReplicateKey(one.arm, hookpoint, sae, row.metric)] = None
                counts = DECLARED[row.metric].counts_latents
                tables[row.portion].add(
                    ReplicateKey(one.arm, hookpoint, sae, row.metric),
                    one.model_seed or 0,
                    sae_seed,
                    values.get(f"{row.metric}@{row.portion}"),
                    reason=None if pandas.isna(row.reason) else str(row.reason),
                    counted=plan.spec.saes[sae].d_sae if counts else 0,
                )
        return cls(tuple(tables), sizes, tuple(cells))

    def _change(self, cells: Sequence[ReplicateKey], signs: Sequence[int]) -> Change | None:
        """Return what the second half of the text moves a signed sum of arms by; None without halves."""
        hookpoint, metric = cells[0].hookpoint, cells[0].metric
        sizes = [tokens for tokens, _ in self.sizes[hookpoint]]
        last = len(sizes) - 1
        if last < 1 or sizes[last - 1] > _ABOUT_HALF * sizes[last]:
            return None
        points = [[table[cell] for cell in cells] for table in self.tables[: last + 1]]
        if metric.startswith("share_") and _never_moved(points):
            value = sum(sign * one.point for sign, one in zip(signs, points[-1], strict=True))
            return Change(0.0, 0.0, float(value), None)
        n = self.tables[0].n_documents[hookpoint]
        return change(points[-2], points[-1], signs, n, is_rest=is_r2(metric))

    def withhold(
        self,
        measured: ReplicateTable,
        contrasts: Iterable[tuple[str, str]],
        quads: Iterable[Sequence[str]],
    ) -> None:
        """Withhold every number, effect and interaction that twice the text still moves.

        An effect is withheld with either of its arms.

        Args:
            measured: Every metric of every SAE; what is withheld is written into it.
            contrasts: Pairs of arm and control.
            quads: The four arms of each interaction.
        """
        signs = {1: (1,), 2: (1, -1), 4: SIGNS}
        places = dict.fromkeys(cell[1:] for cell in self.cells)
        of_arms = [(cell,) for cell in self.cells]
        of_several = [
            tuple(ReplicateKey(arm, *place) for arm in arms)
            for arms in (*contrasts, *quads)
            for place in places
        ]
        for cells in (*of_arms, *of_several):
            try:
                found = self._change(cells, signs[len(cells)])
            except NotEstimable:
                continue  # it has no value, and a reason of its own
            why = _UNKNOWN if found is None else found.withheld
            if why is not None:
                measured.withheld[cells] = why

    def rows(self, level: float) -> Any:
        """Return the table `fit_curve`, with intervals at `level`."""
        spreads, ends, rows = [Spreads(table) for table in self.tables], self._ends(), []
        for cell in self.cells:
            sizes = self.sizes[cell.hookpoint]
            for portion, (tokens, documents) in enumerate(sizes):
                row: dict[str, Any] = dict.fromkeys(FIT_CURVE.names)
                row |= {"arm": cell.arm, "hookpoint": cell.hookpoint, "sae": cell.sae}
                row |= {"metric": cell.metric, "portion": portion}
                row |= {"fit_tokens": tokens, "fit_documents": documents}
                row |= _value(spreads[portion], cell, level, ("value", "low", "high", "reason"))
                if portion == len(sizes) - 1:
                    names = ("end", "end_low", "end_high", "end_reason")
                    row |= self._told(cell) | _value(ends, cell, level, names)
                rows.append(row)
        whole = dict.fromkeys(("portion", "fit_tokens", "fit_documents"), "Int64")
        numbers = ("value", "low", "high", "change", "change_se", "end", "end_low", "end_high")
        table = pandas.DataFrame(rows, columns=list(FIT_CURVE.names))
        return table.astype(whole | dict.fromkeys(numbers, "float64"))

    def _told(self, cell: ReplicateKey) -> dict[str, Any]:
        try:
            found = self._change((cell,), (1,))
        except NotEstimable as refusal:
            return {"withheld": str(refusal)}
        if found is None:
            return {"withheld": _UNKNOWN}
        return {"change": found.change, "change_se": found.se, "withheld": found.withheld}

    def _ends(self) -> Spreads:
        """Return where every curve would end."""
        ends = dataclasses.replace(self.tables[0])
        for cell in self.cells:
            sizes = self.sizes[cell.hookpoint]
            try:
                points = [table[cell] for table in self.tables[: len(sizes)]]
                ends.put(cell, end_of_curve([tokens for tokens, _ in sizes], points))
            except NotEstimable as refusal:
                why = str(refusal).removeprefix(f"{cell.arm}: ")  # the table names the arm itself
                ends.add(cell, 0, 0, None, reason=why)
        return Spreads(ends)


def _never_moved(points: Sequence[Sequence[Replicates]]) -> bool:
    """Return whether no portion gives another number than the whole, in any seed and any resample."""
    return all(
        np.array_equal(one.values, whole.values)
        for point in points
        for one, whole in zip(point, points[-1], strict=True)
    )


def _value(
    spreads: Spreads, cell: ReplicateKey, level: float, names: tuple[str, str, str, str]
) -> dict[str, Any]:
    """Return a number, its bounds, and why they are missing, under these names."""
    found: dict[str, Any] = {}
    try:
        found[names[0]] = spreads.table[cell].point
        found[names[1]], found[names[2]] = arm_bounds(spreads, cell, level)
    except NotEstimable as refusal:
        found[names[3]] = str(refusal)
    return found
