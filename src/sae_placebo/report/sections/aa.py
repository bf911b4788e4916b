"""What the A/A comparisons say together: how many leave the null out, and how many would by chance.

The A/A interval of a control is the same under every contrast against it, so it is counted once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sae_placebo.report.sections.base import View
from sae_placebo.report.sections.contrasts import bounds, contrasts, covers_null, null_of
from sae_placebo.report.wording import confidence_level, finite, metric_title, number

_FEW_DF = 2


@dataclass
class KindTally:
    """The A/A intervals of all controls of one kind."""

    kind: str
    controls: dict[str, None] = field(default_factory=dict)
    total: int = 0
    points: int = 0
    outside: int = 0

    def expected(self, chance: float) -> float:
        """Return how many leave the null out by chance: the level times those of some width."""
        return chance * (self.total - self.points)


@dataclass(frozen=True)
class AAIntervals:
    """The distinct A/A intervals of a trial.

    Attributes:
        total: Intervals, each control's once per metric, hookpoint and SAE.
        points: Of these, the ones of no width at the null: nothing varied.
        outside: Control -> names of the metrics whose A/A interval leaves the null out.
        kinds: The same by kind of control.
        chance: Share that leaves the null out by chance alone.
        few: Sentences on intervals whose variance rests on very few re-draws.
    """

    total: int
    points: int
    outside: dict[str, list[str]]
    chance: float
    few: tuple[str, ...]
    kinds: tuple[KindTally, ...] = ()

    @property
    def n_outside(self) -> int:
        """How many leave the null out."""
        return sum(map(len, self.outside.values()))

    @property
    def expected(self) -> str:
        """How many are expected to leave the null out by chance, in words."""
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
    """Return the kinds of an arm's controls, joined; its name where they are not described."""
    parts = view.parts.get(control)
    if parts is None:
        return control
    kinds = [parts.kind, parts.data, parts.dictionary]
    if len([kind for kind in kinds if kind]) > 1 and parts.kind == "trained":
        kinds = kinds[1:]
    return " + ".join(kind for kind in kinds if kind)


def by_kind(found: AAIntervals) -> list[dict[str, str]]:
    """Return the tally per kind of control and of all together, as rows."""
    every = KindTally("all together", {}, found.total, found.points, found.n_outside)
    rows = [*found.kinds, every] if len(found.kinds) > 1 else [every]
    return [
        {
            "kind": row.kind,
            "controls": ", ".join(row.controls),
            "total": str(row.total),
            "points": str(row.points),
            "outside": str(row.outside),
            "expected": number(row.expected(found.chance), 1),
        }
        for row in rows
        if found.total
    ]


def sentences(found: AAIntervals) -> list[str]:
    """Return the tally in words; nothing where there is no A/A interval."""
    if not found.total:
        return []
    many = "is 1 A/A interval" if found.total == 1 else f"are {found.total} A/A intervals"
    said = f"There {many} (one per metric and re-drawn control); "
    said += "none leaves 0 out. " if not found.outside else f"{found.n_outside} "
    if found.outside:
        names = [f"{_joined(metrics)} in {arm}" for arm, metrics in found.outside.items()]
        verb = "leaves" if found.n_outside == 1 else "leave"
        said += f"{verb} 0 out: {'; '.join(names)}. "
    width = found.total - found.points
    if found.points:
        said += (
            f"{found.points} {'has' if found.points == 1 else 'have'} no width, since nothing "
            f"varied; of the other {width}, {found.expected} would by chance "
            f"({100 * found.chance:g}% of them). "
        )
    else:
        said += f"By chance {found.expected} would ({100 * found.chance:g}% of them). "
    said += "The metrics are correlated, so this count is a look and not a test."
    return [said, *found.few]


def in_short(found: AAIntervals) -> str:
    """Return the tally as one limit of the report."""
    few = f" {' '.join(found.few)}" if found.few else ""
    return (
        f"Of {found.total} A/A intervals, where nothing but the random draw differs, "
        f"{found.n_outside or 'none'} {'leaves' if found.n_outside < 2 else 'leave'} 0 out; "
        f"{found.expected} would by chance.{few}"
    )


def _joined(names: list[str]) -> str:
    texts = [name if name[:2].isupper() else name[:1].lower() + name[1:] for name in names]
    return ", ".join(texts[:-1]) + (" and " if len(texts) > 1 else "") + texts[-1]


def _redraws(view: View) -> dict[str, int]:
    """Return how many re-draws each arm has, as the effects table says."""
    found: dict[str, int] = {}
    table = view.tables.effects
    for side, column in (("arm", "n_arm_models"), ("control", "n_control_models")):
        for arm, n in table[[side, column]].dropna().itertuples(index=False):
            known = finite(int(n))
            if arm != view.trained and known is not None:
                found[str(arm)] = max(found.get(str(arm), 0), int(known))
    return found


def _few_redraws(view: View, controls: list[str]) -> tuple[str, ...]:
    """Return what rests on one or two degrees of freedom, controls alike in one sentence."""
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
    said = []
    for (source, df), names in alike.items():
        if df <= _FEW_DF:
            freedom = "one degree of freedom" if df == 1 else f"{df} degrees of freedom"
            said.append(
                f"The variance between re-draws behind the A/A intervals of {_plain(names)} is "
                f"{source} and has {freedom}: such an interval can be far too wide or far too "
                "narrow."
            )
    return tuple(said)


def _plain(names: list[str]) -> str:
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]
