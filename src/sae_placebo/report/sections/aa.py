"""How many of a trial's A/A intervals leave the null out, and how many would by chance.

The A/A interval of a control is the same under every contrast with it, and is counted once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sae_placebo.report.sections.base import View
from sae_placebo.report.sections.contrasts import bounds, contrasts, covers_null, null_of
from sae_placebo.report.wording import confidence_level, enumerated, finite, metric_title, number

_FEW_DF = 2


@dataclass
class KindTally:
    """The A/A intervals of all controls of one kind.

    Attributes:
        kind: Kind of control.
        controls: Names of the arms, in the order in which they were counted.
        total: Number of intervals.
        points: How many of them have no width and are at the null, since nothing varied.
        outside: How many of them leave the null out.
    """

    kind: str
    controls: dict[str, None] = field(default_factory=dict)
    total: int = 0
    points: int = 0
    outside: int = 0

    def expected(self, chance: float) -> float:
        """Return how many leave the null out by chance: the share `chance` of those of some width."""
        return chance * (self.total - self.points)


@dataclass(frozen=True)
class AAIntervals:
    """The distinct A/A intervals of a trial, counted.

    Attributes:
        total: Number of intervals: one per control, metric, hookpoint and SAE.
        points: How many of them have no width and are at the null, since nothing varied.
        outside: By control, the names of the metrics whose A/A interval leaves the null out.
        chance: Share of intervals that leaves the null out by chance alone.
        few: Sentences on intervals whose variance rests on very few re-draws.
        kinds: The counts by kind of control.
    """

    total: int
    points: int
    outside: dict[str, list[str]]
    chance: float
    few: tuple[str, ...]
    kinds: tuple[KindTally, ...] = ()

    @property
    def n_outside(self) -> int:
        """Number of intervals that leave the null out."""
        return sum(map(len, self.outside.values()))

    @property
    def expected(self) -> str:
        """Number of intervals that are expected to leave the null out by chance, in words."""
        expected = self.chance * (self.total - self.points)
        return f"about {round(expected)}" if expected >= 0.5 else "fewer than one"


def tally(view: View) -> AAIntervals:
    """Return the distinct A/A intervals of all contrasts, counted."""
    every = contrasts(view)
    many_places = len({(c.hookpoint, c.sae) for c in every}) > 1
    seen: set[tuple[str, ...]] = set()
    points = 0
    outside: dict[str, list[str]] = {}
    controls: dict[str, None] = {}
    kinds: dict[str, KindTally] = {}
    for contrast in every:
        for row in contrast.rows:
            key = (contrast.hookpoint, contrast.sae, contrast.control, str(row["metric"]))
            low, high = bounds(row, "aa_")
            if low is None or key in seen:
                continue
            seen.add(key)
            controls[contrast.control] = None
            kind = _kind(view, contrast.control)
            of_kind = kinds.setdefault(kind, KindTally(kind))
            of_kind.controls[contrast.control] = None
            of_kind.total += 1
            point = low == high == null_of(row)
            points += point
            of_kind.points += point
            if covers_null(row, "aa_") is False:
                of_kind.outside += 1
                name = metric_title(row["metric"], row["unit"])
                where = f" at {contrast.hookpoint}, {contrast.sae}" if many_places else ""
                outside.setdefault(contrast.control, []).append(name + where)
    few = _few_redraws(view, list(controls))
    chance = 1 - confidence_level(view.tables.trial)
    return AAIntervals(len(seen), points, outside, chance, few, (*kinds.values(),))


def _kind(view: View, control: str) -> str:
    """Return the kinds of an arm's controls, joined by "+"; its name where they are not described."""
    parts = view.parts.get(control)
    if parts is None:
        return control
    kinds = [parts.kind, parts.data, parts.dictionary]
    if len([kind for kind in kinds if kind]) > 1 and parts.kind == "trained":
        kinds = kinds[1:]
    return " + ".join(kind for kind in kinds if kind)


def by_kind(intervals: AAIntervals) -> list[dict[str, str]]:
    """Return the rows of a table: the counts of each kind of control, and of all together."""
    kinds, n_outside = intervals.kinds, intervals.n_outside
    every = KindTally("all together", {}, intervals.total, intervals.points, n_outside)
    rows = [*kinds, every] if len(kinds) > 1 else [every]
    return [
        {
            "kind": row.kind,
            "controls": ", ".join(row.controls),
            "total": str(row.total),
            "points": str(row.points),
            "outside": str(row.outside),
            "expected": number(row.expected(intervals.chance), 1),
        }
        for row in rows
        if intervals.total
    ]


def sentences(intervals: AAIntervals) -> list[str]:
    """Return the counts in sentences; nothing where there is no A/A interval."""
    total, points, n_outside = intervals.total, intervals.points, intervals.n_outside
    if not total:
        return []
    many = "is 1 A/A interval" if total == 1 else f"are {total} A/A intervals"
    text = f"There {many} (one per metric and re-drawn control); "
    if intervals.outside:
        names = [
            f"{enumerated([_within_sentence(metric) for metric in metrics])} in {arm}"
            for arm, metrics in intervals.outside.items()
        ]
        verb = "leaves" if n_outside == 1 else "leave"
        text += f"{n_outside} {verb} 0 out: {'; '.join(names)}. "
    else:
        text += "none leaves 0 out. "
    share = f"({100 * intervals.chance:g}% of them)"
    if points:
        text += (
            f"{points} {'has' if points == 1 else 'have'} no width, since nothing varied; "
            f"of the other {total - points}, {intervals.expected} would by chance {share}. "
        )
    else:
        text += f"By chance {intervals.expected} would {share}. "
    text += "The metrics are correlated, so this count is a look and not a test."
    return [text, *intervals.few]


def in_short(intervals: AAIntervals) -> str:
    """Return the counts as one of the report's limits."""
    n_outside = intervals.n_outside
    few = f" {' '.join(intervals.few)}" if intervals.few else ""
    return (
        f"Of {intervals.total} A/A intervals, where nothing but the random draw differs, "
        f"{n_outside or 'none'} {'leaves' if n_outside < 2 else 'leave'} 0 out; "
        f"{intervals.expected} would by chance.{few}"
    )


def _within_sentence(name: str) -> str:
    """Return a title as it is written within a sentence: without its capital, but for abbreviations."""
    return name if name[:2].isupper() else name[:1].lower() + name[1:]


def _redraws(view: View) -> dict[str, int]:
    """Return how many re-draws each arm but the trained one has, by the effects table."""
    redraws: dict[str, int] = {}
    table = view.tables.effects
    for side, column in (("arm", "n_arm_models"), ("control", "n_control_models")):
        for arm, n in table[[side, column]].dropna().itertuples(index=False):
            known = finite(int(n))
            if arm != view.trained and known is not None:
                redraws[str(arm)] = max(redraws.get(str(arm), 0), int(known))
    return redraws


def _few_redraws(view: View, controls: list[str]) -> tuple[str, ...]:
    """Return a sentence for the controls whose A/A variance rests on one or two degrees of freedom.

    Controls with the same number of them, from the same source, are in one sentence.
    """
    redraws = _redraws(view)
    alike: dict[tuple[str, int], list[str]] = {}
    for control in controls:
        n = redraws.get(control, 0)
        others = [m - 1 for arm, m in redraws.items() if arm != control and m > 1]
        if n == 2 and others:
            source = "the other control's" if len(others) == 1 else "the other controls'"
            alike.setdefault((f"borrowed from {source} re-draws", sum(others)), []).append(control)
        elif n > 2:
            alike.setdefault(("taken from its own re-draws", n - 2), []).append(control)
    few = []
    for (source, df), names in alike.items():
        if df <= _FEW_DF:
            freedom = "one degree of freedom" if df == 1 else f"{df} degrees of freedom"
            few.append(
                f"The variance between re-draws behind the A/A intervals of {enumerated(names)} is "
                f"{source} and has {freedom} of its own: where few numbers of its kind steady it, such an "
                "interval can be far too wide or far too narrow."
            )
    return tuple(few)
