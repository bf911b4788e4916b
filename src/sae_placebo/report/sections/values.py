"""Each arm's own value of each metric, found on whichever side of a contrast it stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sae_placebo.report.sections.base import View
from sae_placebo.report.sections.contrasts import Row, bounds, ordered, scaled, side_estimate
from sae_placebo.report.tables import at, records
from sae_placebo.report.wording import Estimate, finite

COVERAGE = ("coverage_context", "coverage_window", "coverage_token")
# what the sections on designs show, the most telling first; classes of latents come behind
MAIN = (
    ("mean_token_entropy_bits", "token*entropy"),
    ("explained_variance_above_gaussian", "variance*above"),
    ("lookup_relative_explained_variance", "lookup"),
    *((name,) for name in COVERAGE),
    ("explained_variance",),
)

Place = tuple[str, str]
Pair = tuple[str, str]


@dataclass(frozen=True)
class ArmValues:
    """One hookpoint and SAE: rows of the effects table by contrast, and sides by arm.

    Attributes:
        rows: (arm, control), metric -> row, as shown.
        sides: arm, metric -> a row and the side of it that the arm is on.
    """

    rows: dict[tuple[Pair, str], Row]
    sides: dict[tuple[str, str], tuple[Row, str]]

    @property
    def metrics(self) -> list[str]:
        """Every metric, in the table's order."""
        return list(dict.fromkeys(metric for _, metric in self.rows))

    def estimate(self, arm: str | None, metric: str) -> Estimate | None:
        """Return an arm's own value, if any contrast has it."""
        found = self.sides.get((arm or "", metric))
        return None if found is None else side_estimate(*found)

    def value(self, arm: str | None, metric: str) -> float | None:
        """Return an arm's own value as a number."""
        found = self.sides.get((arm or "", metric))
        return None if found is None else finite(found[0].get(f"{found[1]}_value"))

    def bounds(self, arm: str | None, metric: str) -> tuple[float | None, float | None]:
        """Return the interval of an arm's own value."""
        found = self.sides.get((arm or "", metric))
        return (None, None) if found is None else bounds(found[0], f"{found[1]}_")

    def unit(self, metric: str) -> str:
        """Return a metric's unit, as shown."""
        return next(
            (str(row["unit"] or "") for (_, m), row in self.rows.items() if m == metric), ""
        )


def values_at(view: View, place: Place) -> ArmValues:
    """Return what the effects table holds at one hookpoint and SAE."""
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


def held(values: ArmValues, arms: Sequence[str | None]) -> bool:
    """Whether at least two of the arms have values here."""
    known = {arm for arm, _ in values.sides}
    return len([arm for arm in arms if arm in known]) >= 2
