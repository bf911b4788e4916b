"""Sets of scores say more of trained SAEs than the scoreboard, each about one thing that can go wrong.

A set is a function of one trained SAE that returns its scores, each with its null (what chance gives) and
with the best that is possible, where these exist. `scored` takes a set's scores of several SAEs together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sae_placebo.core.errors import NotEstimable, SpecError, unknown_name
from sae_placebo.core.progress import Track, untracked
from sae_placebo.core.spec import Registry, distinct
from sae_placebo.lab import GeneratorSpec, Sample
from sae_placebo.lab.experiments.base import LabTraining
from sae_placebo.lab.experiments.phase import SeedMean, mean_of
from sae_placebo.lab.text_tables import bounds, in_columns, number
from sae_placebo.saes import SAE

SCORING = "score SAEs"
"""The progress of `scored` has this name."""


@dataclass(frozen=True)
class TrainedOn:
    """An SAE that was trained on a generator.

    Attributes:
        generator: Drew the tokens.
        lab: How the SAE was trained.
        sae: The SAE in the generator's units.
        start: The SAE before training, in the same units.
        draw: Held-out tokens with their truth.
        seed: Seed of the initial weights, of the tokens, and of what the scores draw.
    """

    generator: GeneratorSpec
    lab: LabTraining
    sae: SAE
    start: SAE
    draw: Sample
    seed: int


@dataclass(frozen=True)
class Scored:
    """A score of one SAE.

    Attributes:
        name: What is measured.
        value: The score; None, with a note, where there is none.
        null: What chance gives; None where that is not known.
        best: What the truth, or the best dictionary, gives; None where that is not known.
        low: Lower bound of the 95% interval over `of`; None where there is no interval.
        high: Upper bound.
        n: How many units the score is of.
        of: What these are.
        note: A reason, or what else must be said.
    """

    name: str
    value: float | None
    null: float | None = None
    best: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    of: str = ""
    note: str = ""


@dataclass(frozen=True)
class ScoreSet:
    """Scores that are computed together.

    Attributes:
        name: Name of the set.
        about: What it says, in a sentence, and what its null is.
        measure: Returns the scores of one SAE. It raises `NotEstimable` where the generator or the SAE has
            none of them.
    """

    name: str
    about: str
    measure: Callable[[TrainedOn], list[Scored]] = field(compare=False)


SCORE_SETS: Registry[ScoreSet] = Registry("set of scores")
"""Every set of scores is registered here."""


@dataclass(frozen=True)
class SetLine:
    """A score's mean over SAEs of several seeds, with the first one's interval.

    Attributes:
        set: Name of the set.
        name: Name of the score; empty, with a reason, where the set has none for these SAEs.
        trained: The mean over seeds.
        null: The null, as a mean over seeds; None where there is none.
        best: What is possible, as a mean over seeds; None where there is none.
        first: The score of the first SAE that has it.
    """

    set: str
    name: str
    trained: SeedMean
    null: float | None
    best: float | None
    first: Scored

    def row(self) -> dict[str, Any]:
        """Return the line as one row of a table."""
        first = self.first
        means = {"value": self.trained.mean, "low": self.trained.low, "high": self.trained.high}
        of_first = {"first_low": first.low, "first_high": first.high, "n": first.n, "of": first.of}
        others = {"seeds": self.trained.n, "null": self.null, "best": self.best}
        note = first.note or self.trained.reason or ""
        return {"set": self.set, "score": self.name, **means, **others, **of_first, "note": note}


def sets_of(text: str) -> list[ScoreSet]:
    """Return the sets that a text names: names separated by commas, or `all`.

    Raises:
        SpecError: a name is unknown or given twice, there is none, or there are others beside `all`.
    """
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if not names:
        raise SpecError(f"no set of scores is named: give all, or some of {', '.join(SCORE_SETS)}")
    if names == ("all",):
        return list(SCORE_SETS.entries.values())
    if "all" in names:
        others = ", ".join(name for name in names if name != "all")
        raise SpecError(f"all are asked for, and {others or 'all'} besides: give all alone")
    for name in distinct(names):
        if name not in SCORE_SETS.entries:
            raise SpecError(unknown_name("set of scores", name, ["all", *SCORE_SETS.entries]))
    return [SCORE_SETS[name] for name in names]


def scored(
    sets: Sequence[ScoreSet], saes: Sequence[TrainedOn], track: Track = untracked
) -> list[SetLine]:
    """Return the scores of SAEs that differ in their seed, set after set.

    Args:
        sets: What is measured.
        saes: The SAEs, one or more.
        track: Shows how many sets of how many SAEs are done.
    """
    lines: list[SetLine] = []
    with track(SCORING, len(sets) * len(saes), "sets") as advance:
        for one in sets:
            found: list[list[Scored]] = []
            reason = ""
            for sae in saes:
                try:
                    found.append(one.measure(sae))
                except NotEstimable as lack:
                    reason = str(lack)
                advance(1)
            if not found:
                nothing = SeedMean(None, None, None, 0, reason)
                lines.append(
                    SetLine(one.name, "", nothing, None, None, Scored("", None, note=reason))
                )
            lines += _joined(one.name, found)
    return lines


def _joined(name: str, found: Sequence[Sequence[Scored]]) -> list[SetLine]:
    """Return a line for every score that some SAE has, in the order in which they come."""
    by_name: dict[str, list[Scored]] = {}
    for scores in found:
        for score in scores:
            by_name.setdefault(score.name, []).append(score)
    lines = []
    for title, scores in by_name.items():
        known = next((score for score in scores if score.value is not None), scores[0])
        values = [{"value": score.value, "reason": score.note} for score in scores]
        nulls, bests = ([getattr(s, part) for s in scores] for part in ("null", "best"))
        mean = mean_of(values, "value")
        lines.append(SetLine(name, title, mean, _mean(nulls), _mean(bests), known))
    return lines


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def in_lines(lines: Sequence[SetLine]) -> str:
    """Return scores as text, one table for each set under the sentence that says what it is about."""
    parts = []
    for name in dict.fromkeys(line.set for line in lines):
        own = [line for line in lines if line.set == name]
        head = f"{name}: {SCORE_SETS[name].about}"
        if not own[0].name:
            parts.append(f"{head}\n  none: {own[0].first.note}")
            continue
        rows: list[tuple[str, ...]] = [
            ("  ", "trained", "95% over seeds", "SAEs", "null", "best", "first SAE: 95%", "of", "")
        ]
        rows += [_texts(line) for line in own]
        parts.append(f"{head}\n{in_columns(rows)}")
    return "\n\n".join(parts)


def _texts(line: SetLine) -> tuple[str, ...]:
    first, mean = line.first, line.trained
    of = "" if first.n is None else f"{first.n:,} {first.of}"
    note = first.note
    if mean.low is None and mean.reason and not note:
        note = mean.reason
    return (
        f"  {line.name}",
        number(mean.mean),
        bounds(mean.low, mean.high),
        str(mean.n),
        "" if line.null is None else number(line.null),
        "" if line.best is None else number(line.best),
        bounds(first.low, first.high),
        of,
        note,
    )
