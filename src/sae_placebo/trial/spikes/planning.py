"""What `spikes` is asked: an SAE of a trial, what is planted for it, and in how many trainings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from sae_placebo.core.errors import SpecError, StoreError, unknown_name
from sae_placebo.core.spec import digest
from sae_placebo.core.store import Store
from sae_placebo.lab.spikes.grid import Grid
from sae_placebo.lab.spikes.outcomes import Thresholds
from sae_placebo.lab.spikes.pairs import PER_REPEAT, PairGrid
from sae_placebo.lab.spikes.planting import Spike
from sae_placebo.models.hookpoints import parse_hookpoint
from sae_placebo.report.spike_files import FEATURES, PAIRS
from sae_placebo.saes import SAES, SAESpec, parse_sae
from sae_placebo.trial.plan import ArmModel, Plan
from sae_placebo.trial.spec import TrialSpec

MOST = 20_000
"""Features that are planted at most: more take hours to be packed into trainings, and days to be trained."""
VERSION = 1
"""It is raised by hand when what is written changes its meaning."""
DECOYS = 5
"""Decoys of each planted feature."""
KINDS = ("topk", "relu")
"""Kinds of SAE that pairs are planted for, where none are named."""

Numbers = Sequence[float] | float | str | None
"""A number, several, or text that has them with commas between them."""


class Asked(TypedDict, total=False):
    """What may be asked of `spikes`; what is left out, or None, has its default."""

    arm: str | None
    """An arm of the trial, of which the first re-draw is read; the trained one unless given."""
    hookpoint: str | None
    """A hookpoint of the trial; the first unless given."""
    sae: str | None
    """Label of an SAE of the trial; the first unless given."""
    frequencies: Numbers
    """Shares of tokens that features are active on."""
    magnitudes: Numbers
    """Mean lengths, in units of the activations' rms norm about their mean."""
    repeats: int | None
    """Features, or pairs of each relation, of each frequency and magnitude."""
    seeds: Sequence[int] | int | str | None
    """Everything is planted once with each; 0 unless given."""
    composed: bool
    """Plant pairs that occur together, and measure whether they are merged, by kind of SAE."""
    kinds: Sequence[str] | str | None
    """Kinds of SAE for `composed`, matched in L0; `KINDS` unless given."""
    together: float | None
    """For `composed`: how often the second of a pair is active where the first one is."""


def check_asked(asked: Asked) -> None:
    """Refuse words that `spikes` does not know, and what is of pairs only where none are planted.

    Raises:
        SpecError: it is so.
    """
    for name in asked:
        if name not in Asked.__annotations__:
            raise SpecError(unknown_name("argument of spikes", name, Asked.__annotations__))
    composed = asked.get("composed")
    if composed is not None and not isinstance(composed, bool):
        raise SpecError(f"composed is True or False; found {composed!r:.40}")
    if composed:
        return
    for name in ("kinds", "together"):
        if asked.get(name) is not None:
            raise SpecError(
                f"{name} is of pairs: give composed (--composed) as well, or leave it out"
            )


@dataclass(frozen=True)
class Subject:
    """The SAE of a trial whose recipe is trained with features planted: its arm's model, and its names."""

    one: ArmModel
    hookpoint: str
    sae: str


def subject_of(spec: TrialSpec, asked: Asked) -> Subject:
    """Return the SAE that is meant: by default the trained arm's first, and the first re-draw of an arm.

    Raises:
        SpecError: the trial has no arm, hookpoint or SAE of that name.
    """
    arm, hookpoint, sae = asked.get("arm"), asked.get("hookpoint"), asked.get("sae")
    arm = spec.trained_arm if arm is None else arm
    if arm not in tuple(spec.arms):
        raise SpecError(unknown_name("arm of this trial", arm, spec.arms))
    place = spec.hookpoints[0] if hookpoint is None else parse_hookpoint(hookpoint).name
    if place not in spec.hookpoints:
        raise SpecError(unknown_name("hookpoint of this trial", place, spec.hookpoints))
    label = next(iter(spec.saes)) if sae is None else sae
    if label not in tuple(spec.saes):
        raise SpecError(unknown_name("SAE of this trial", label, spec.saes))
    return Subject(ArmModel(arm, spec.seeds_of(arm)[0]), place, label)


def require_trained(plan: Plan, store: Store, subject: Subject, command: str) -> None:
    """See to it that a trial's activations were harvested and the arm's SAEs trained.

    Raises:
        StoreError: they were not.
    """
    needed = [plan.tokenize, *plan.harvests, plan.build[subject.one], plan.train[subject.one]]
    left = [step.stage for step in needed if not store.has(step)]
    if left:
        raise StoreError(
            f"trial {plan.spec.name!r} is not finished in {str(store.root)!r}: {len(left)} of the "
            f"{len(needed)} artefacts that spikes are planted with are missing "
            f"({', '.join(dict.fromkeys(left))}); `{command}` makes them"
        )


# --- what is planted ---------------------------------------------------------------------------------


def numbers(name: str, given: Any, most: float = math.inf) -> tuple[float, ...] | None:
    """Return the numbers of an option, each above 0 and below `most`; None where it was not given.

    Raises:
        SpecError: something is no such number, or none is left.
    """
    if given is None:
        return None
    listed: Any = given.split(",") if isinstance(given, str) else given
    words = listed if isinstance(listed, Iterable) else (listed,)
    found = []
    for word in words:
        try:
            value = float(word)
        except (TypeError, ValueError):
            value = math.nan
        if not 0 < value < most:
            limit = "" if math.isinf(most) else f" and below {most:g}"
            raise SpecError(
                f"{name} holds {word!r:.40}; it takes numbers above 0{limit}, with commas between them"
            )
        found.append(value)
    if not found or len(set(found)) < len(found):
        raise SpecError(f"{name} holds {'a number twice' if found else 'no number'}")
    return tuple(found)


def seeds_of(given: Any) -> tuple[int, ...]:
    """Return the seeds of the plantings; 0 alone where none are given.

    Raises:
        SpecError: something is no whole number of 0 or more, one is given twice, or there is none.
    """
    if given is None:
        return (0,)
    listed: Any = given.split(",") if isinstance(given, str) else given
    words = listed if isinstance(listed, Iterable) else (listed,)
    texts = [str(word).strip() for word in words]
    if not texts or not all(t.isascii() and t.isdecimal() and len(t) < 16 for t in texts):
        raise SpecError(
            f"seeds holds {', '.join(texts)!r:.40}; it takes whole numbers of 0 or more, with commas "
            "between them"
        )
    found = tuple(int(text) for text in texts)
    if len(set(found)) < len(found):
        raise SpecError("seeds holds a number twice")
    return found


def grid_of(asked: Asked, d_in: int) -> Grid | PairGrid:
    """Return what is planted, as many features at a time as the activations' width lets be orthogonal.

    Raises:
        SpecError: a number is out of its range, or they make more than `MOST` features.
    """
    repeats, together = asked.get("repeats"), asked.get("together")
    given: dict[str, Any] = {
        "frequencies": numbers("frequencies", asked.get("frequencies"), 1.0),
        "magnitudes": numbers("magnitudes", asked.get("magnitudes")),
        "repeats": repeats,
        "rate": together,
    }
    if repeats is not None and (type(repeats) is not int or repeats < 1):
        raise SpecError(f"repeats is {repeats!r:.40}; it takes a whole number of 1 or more")
    if together is not None and not (isinstance(together, float) and 0 < together < 1):
        raise SpecError(f"together is {together!r:.40}; it is a rate between 0 and 1")
    kind: type[Grid] | type[PairGrid] = PairGrid if asked.get("composed") else Grid
    most = max(1, min(kind.model_fields["per_training"].default, d_in // 2))
    settings = {name: value for name, value in given.items() if value is not None}
    grid = kind(**settings, per_training=most)
    n = (
        len(grid.frequencies)
        * len(grid.magnitudes)
        * grid.repeats
        * len(seeds_of(asked.get("seeds")))
    )
    n *= PER_REPEAT if isinstance(grid, PairGrid) else 1
    if n > MOST:
        raise SpecError(
            f"{n:,} features are asked for, and {MOST:,} are the most: lower repeats, or give fewer "
            "frequencies, magnitudes or seeds"
        )
    return grid


def kinds_of(given: Any) -> tuple[str, ...]:
    """Return the kinds of SAE that are asked for; `KINDS` where none are.

    Raises:
        SpecError: something is no name.
    """
    if given is None:
        return KINDS
    listed: Any = given.split(",") if isinstance(given, str) else given
    words = tuple(listed) if isinstance(listed, Iterable) else (listed,)
    for word in words:
        if not isinstance(word, str):
            raise SpecError(f"kinds holds {word!r:.40}; it takes kinds of SAE: {', '.join(SAES)}")
    return tuple(word.strip() for word in words)


def matched_kinds(kinds: Sequence[str], own: SAESpec, l0: float) -> dict[str, SAESpec]:
    """Return SAEs of several kinds, as wide as the trial's own and made for the same L0.

    Where the trial's own is of a kind, that is the trial's own; the others have the defaults of their kind.

    Args:
        kinds: Their kinds.
        own: The trial's SAE.
        l0: The number of active latents per token.

    Raises:
        SpecError: there is no such kind, one is named twice, or one cannot have this L0.
    """
    if len(set(kinds)) < len(kinds) or not kinds:
        raise SpecError(f"kinds holds {'a kind twice' if kinds else 'no kind'}")
    found = {}
    for kind in kinds:
        fields = SAES[kind].model_fields
        if own.kind == kind and own.l0_target() is not None:
            found[kind] = own
            continue
        setting = "l0" if "l0" in fields else "k"
        whole = setting == "k" and isinstance(fields["k"].default, int)
        value = max(1, round(l0)) if whole else float(l0)
        found[kind] = parse_sae({"kind": kind, "d_sae": own.d_sae, setting: value})
    return found


# --- the trainings -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Training:
    """One training with features planted.

    Attributes:
        index: Its place among the trainings.
        kind: Kind of its SAE.
        seed: Seed of the directions, tokens and amplitudes of what is planted.
        sae_seed: Seed of the SAE's first weights, one of the trial's.
        spikes: What is planted.
    """

    index: int
    kind: str
    seed: int
    sae_seed: int
    spikes: tuple[Spike, ...]


@dataclass(frozen=True)
class SpikePlan:
    """Everything that decides the result of spike-ins into one arm's activations.

    Attributes:
        subject: The SAE of the trial.
        grid: What is planted.
        seeds: Seeds of the plantings: everything in the grid is planted once with each.
        saes: By kind, what is trained.
        thresholds: Between outcomes.
        inputs: Keys of the trial's artefacts that are read.
        sae_seeds: The trial's; trainings take them in turn.
        l0: The number of active latents per token that the trial asks for, or else got.
    """

    subject: Subject
    grid: Grid | PairGrid
    seeds: tuple[int, ...]
    saes: Mapping[str, SAESpec]
    thresholds: Thresholds
    inputs: tuple[str, ...]
    sae_seeds: tuple[int, ...]
    l0: float

    @property
    def task(self) -> str:
        """Return what is planted: single features, or pairs."""
        return PAIRS if isinstance(self.grid, PairGrid) else FEATURES

    @property
    def settings(self) -> dict[str, Any]:
        """Return all settings as JSON."""
        one = self.subject.one
        return {
            "version": VERSION,
            "task": self.task,
            "arm": one.arm,
            "model_seed": one.model_seed,
            "hookpoint": self.subject.hookpoint,
            "sae": self.subject.sae,
            "grid": self.grid.model_dump(mode="json"),
            "seeds": list(self.seeds),
            "saes": {kind: sae.model_dump(mode="json") for kind, sae in self.saes.items()},
            "sae_seeds": list(self.sae_seeds),
            "thresholds": self.thresholds.model_dump(mode="json"),
            "decoys": DECOYS,
            "inputs": list(self.inputs),
        }

    @property
    def key(self) -> str:
        """Return the hash of all settings: 64 hexadecimal digits."""
        return digest(self.settings)

    @property
    def name(self) -> str:
        """Return the name of the folder: readable, and other for other settings."""
        subject = self.subject
        named = f"{self.task}-{subject.one.label}-{subject.hookpoint}-{subject.sae}"
        return f"{named}-{self.key[:12]}"

    def trainings(self) -> list[Training]:
        """Return the trainings in their order; all kinds of SAE get the same plantings and seeds."""
        groups = [(seed, spikes) for seed in self.seeds for spikes in self.grid.trainings(seed)]
        found: list[Training] = []
        for kind in self.saes:
            for i, (seed, spikes) in enumerate(groups):
                sae_seed = self.sae_seeds[i % len(self.sae_seeds)]
                found.append(Training(len(found), kind, seed, sae_seed, tuple(spikes)))
        return found
