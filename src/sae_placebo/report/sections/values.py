"""Each arm's value of each metric, taken from the effects table, on whichever side of a contrast it is."""

from __future__ import annotations

from dataclasses import dataclass

from sae_placebo.report.sections.base import View
from sae_placebo.report.sections.contrasts import Row, bounds, ordered, scaled, side_estimate
from sae_placebo.report.tables import Place, at, records
from sae_placebo.report.wording import Estimate, finite

COVERAGE = ("coverage_context", "coverage_window", "coverage_token")
# what the sections on designs show, the most telling first; shares of classes follow
MAIN = (
    ("mean_token_entropy_bits", "token*entropy"),
    ("explained_variance_above_gaussian", "variance*above"),
    ("lookup_relative_explained_variance", "lookup"),
    *((name,) for name in COVERAGE),
    ("explained_variance",),
)

Pair = tuple[str, str]
"""An arm and its control."""


@dataclass(frozen=True)
class ArmValues:
    """What the effects table holds at one hookpoint and SAE, by contrast and by arm.

    Attributes:
        rows: The row of each contrast and metric, as it is shown.
        sides: For each arm and metric, a row that has its value, and the side of it that the arm is on.
    """

    rows: dict[tuple[Pair, str], Row]
    sides: dict[tuple[str, str], tuple[Row, str]]

    @property
    def metrics(self) -> list[str]:
        """Every metric, in the table's order."""
        return list(dict.fromkeys(metric for _, metric in self.rows))

    def estimate(self, arm: str | None, metric: str) -> Estimate | None:
        """Return an arm's value as it is shown; None where no contrast has it."""
        side = self.sides.get((arm or "", metric))
        return None if side is None else side_estimate(*side)

    def value(self, arm: str | None, metric: str) -> float | None:
        """Return an arm's value as a number; None where no contrast has it."""
        side = self.sides.get((arm or "", metric))
        return None if side is None else finite(side[0].get(f"{side[1]}_value"))

    def bounds(self, arm: str | None, metric: str) -> tuple[float | None, float | None]:
        """Return the interval of an arm's value; two Nones where it has none."""
        side = self.sides.get((arm or "", metric))
        return (None, None) if side is None else bounds(side[0], f"{side[1]}_")

    def unit(self, metric: str) -> str:
        """Return the unit in which a metric is shown; empty where no row has the metric."""
        return next(
            (str(row["unit"] or "") for (_, m), row in self.rows.items() if m == metric), ""
        )


def values_at(view: View, place: Place) -> ArmValues:
    """Return what the effects table holds at one hookpoint and SAE, shares in percent."""
    rows: dict[tuple[Pair, str], Row] = {}
    sides: dict[tuple[str, str], tuple[Row, str]] = {}
    for row in map(scaled, records(at(view.tables.effects, place))):
        pair, metric = (str(row["arm"]), str(row["control"])), str(row["metric"])
        rows.setdefault((pair, metric), row)
        for side, arm in zip(("arm", "control"), pair, strict=True):
            if finite(row.get(f"{side}_value")) is not None:
                sides.setdefault((arm, metric), (row, side))
    return ArmValues(rows, sides)


def main_metrics(values: ArmValues) -> list[str]:
    """Return the metrics that a design is shown for: the leading ones, then the class shares."""
    classes = [metric for metric in values.metrics if metric.startswith("share_")]
    return [*ordered(values.metrics, MAIN), *classes]
