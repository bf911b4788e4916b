"""Intervals are held to what they say: trials in which the truth is known are made and counted.

Two kinds of truth. In an **A/A trial** two arms are re-draws of the same control, so every effect is
zero whatever the metric; how often a 95% interval leaves zero out is measured on real SAEs. In a
**planted trial** the values themselves are drawn, from variances that are set, so each source of
variation can be made to dominate.

An A/A trial needs no run of its own. A **pool** is one trial whose control was re-drawn many times;
its re-draws are dealt into two arms of a few each, again and again. Trials dealt in one round share
no re-draw; trials of different rounds do, and all of a pool share documents, SAE seeds and text. So
the standard error of a share comes from how much it differs between pools, which share the
reference model and the collection of text alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from pydantic import Field

from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import pandas
from sae_placebo.core.spec import Spec, numpy_generator
from sae_placebo.stats.effects import document_weights, effects
from sae_placebo.stats.inference import ArmNumber, difference
from sae_placebo.stats.replicates import ReplicateKey, Replicates, ReplicateTable
from sae_placebo.stats.spreads import Spreads

KINDS: Mapping[str, str] = {
    "paired": "two arms whose re-draws go by the same names, as all of a trial's do",
    "unpaired": "two arms whose re-draws go by other names",
    "halves": "the A/A columns: two halves of one control's re-draws",
    "borrowed": "the A/A columns of a control with two re-draws: the other control's variance",
}
"""An interval of an A/A difference is made in one of these ways, each as `stats.effects.effects` does it."""
_FIRST, _SECOND, _BOTH, _ALL = "first", "second", "both", "all"


@dataclass(frozen=True)
class _Undescribed:
    """A metric of which nothing is told: calibration needs no words."""

    unit: str = ""
    better: str = "neither"
    null: str = "0"


# what is asked of a 95% interval: it leaves the truth out between 3% and 7% of the time
_FEWEST, _MOST = 0.6, 1.4


class DealSpec(Spec):
    """How a pool of re-draws is dealt into A/A trials.

    Attributes:
        each: Re-draws in each of the two arms.
        trials: A/A trials made of one pool.
        confidence: Confidence of every interval.
    """

    each: int = Field(2, ge=2)
    trials: int = Field(20, ge=1)
    confidence: float = Field(0.95, gt=0.5, lt=1)


class Deal(NamedTuple):
    """One A/A trial: the round it was dealt in, and the re-draws of its two arms."""

    round: int
    first: tuple[int, ...]
    second: tuple[int, ...]


def deals(model_seeds: Sequence[int], spec: DealSpec, seed: int = 0) -> list[Deal]:
    """Return the A/A trials of a pool; those of one round share no re-draw.

    Raises:
        NotEstimable: the pool has fewer re-draws than one A/A trial takes.
    """
    size = 2 * spec.each
    if len(model_seeds) < size:
        raise NotEstimable(
            f"{len(model_seeds)} re-draws; an A/A trial of {spec.each} against {spec.each} takes {size}"
        )
    random = numpy_generator(seed, "A/A deals")
    found: list[Deal] = []
    turn = 0
    while len(found) < spec.trials:
        order = [model_seeds[i] for i in random.permutation(len(model_seeds))]
        for start in range(0, len(order) - size + 1, size):
            hand = order[start : start + size]
            found.append(Deal(turn, tuple(hand[: spec.each]), tuple(hand[spec.each :])))
        turn += 1
    return found[: spec.trials]


def aa_trials(
    pool: ReplicateTable,
    arm: str,
    spec: DealSpec | None = None,
    seed: int = 0,
) -> pandas.DataFrame:
    """Return one row for every A/A trial of a pool, kind of interval and metric.

    Columns: trial, round, kind (of `KINDS`), metric, hookpoint, sae, effect, low, high, se, reason.
    Every metric of the pool is there, whatever it is. `borrowed` is there with two re-draws to an
    arm, since only then does a trial borrow.

    Args:
        pool: The values of a trial in which `arm` has many re-draws.
        arm: A control that draws.
        spec: How the re-draws are dealt.
        seed: Seed of the deals.

    Raises:
        NotEstimable: the arm is not there, or has too few re-draws.
    """
    spec = spec or DealSpec()
    cells: dict[ReplicateKey, Replicates] = {}
    refused: list[dict[str, Any]] = []
    for cell in pool:
        if cell.arm == arm:
            try:
                cells[cell] = pool[cell]
            except NotEstimable as refusal:
                refused.append(_row(cell, {"reason": str(refusal)}))
    if not cells:
        raise NotEstimable(f"no metric of {arm!r} could be estimated in this pool")
    model_seeds = next(iter(cells.values())).model_seeds
    rows: list[dict[str, Any]] = []
    for number, deal in enumerate(deals(model_seeds, spec, seed)):
        for made in (*_intervals(pool, cells, deal, spec), *_refusals(refused, spec)):
            rows.append({"trial": number, "round": deal.round, **made})
    return pandas.DataFrame(rows)


def _row(cell: ReplicateKey, values: Mapping[str, Any]) -> dict[str, Any]:
    place = {"metric": cell.metric, "hookpoint": cell.hookpoint, "sae": cell.sae}
    empty = dict.fromkeys(("effect", "low", "high", "se"), float("nan"))
    return {**place, **empty, "reason": None, **values}


def _kinds(spec: DealSpec) -> list[str]:
    return [kind for kind in KINDS if kind != "borrowed" or spec.each == 2]


def _refusals(refused: Sequence[Mapping[str, Any]], spec: DealSpec) -> list[dict[str, Any]]:
    return [{"kind": kind, **row} for kind in _kinds(spec) for row in refused]


def _intervals(
    pool: ReplicateTable,
    cells: Mapping[ReplicateKey, Replicates],
    deal: Deal,
    spec: DealSpec,
) -> list[dict[str, Any]]:
    """Return the rows of one A/A trial: each kind of interval, as `effects` makes it."""
    arms = {_FIRST: deal.first, _SECOND: deal.second, _BOTH: (*deal.first, *deal.second)}
    apart = {_FIRST: range(spec.each), _SECOND: range(spec.each, 2 * spec.each)}
    together = {_FIRST: range(spec.each), _SECOND: range(spec.each)}
    halves = {_BOTH: range(2 * spec.each)}
    drawn: list[tuple[str, str, Mapping[str, range], tuple[str, str]]] = [
        ("paired", "", together, (_FIRST, _SECOND)),
        ("unpaired", "", apart, (_FIRST, _SECOND)),
        ("halves", "aa_", halves, (_BOTH, _BOTH)),
        ("borrowed", "aa_", apart, (_SECOND, _FIRST)),
    ]
    rows = []
    described = dict.fromkeys((cell.metric for cell in cells), _Undescribed())
    for kind, prefix, named, pair in drawn:
        if kind not in _kinds(spec):
            continue
        table = ReplicateTable(pool.n_documents, pool.n_tokens, frozenset(arms))
        for cell, found in cells.items():
            for arm, names in named.items():
                _put(table, cell._replace(arm=arm), found, arms[arm], names)
        made = effects(table, [pair], described, spec.confidence).to_dict("records")
        for row in made:
            cell = ReplicateKey(_FIRST, row["hookpoint"], row["sae"], row["metric"])
            kept = {name: row[f"{prefix}{name}"] for name in ("effect", "low", "high", "reason")}
            # the A/A columns hold no standard error
            kept["se"] = float("nan") if prefix else row["se"]
            rows.append({"kind": kind, **_row(cell, kept)})
    return rows


def _put(
    table: ReplicateTable,
    cell: ReplicateKey,
    found: Replicates,
    redraws: Sequence[int],
    names: Sequence[int],
) -> None:
    for redraw, name in zip(redraws, names, strict=True):
        of_redraw = found.values[found.model_seeds.index(redraw)]
        for sae_seed, values in zip(found.sae_seeds, of_redraw, strict=True):
            table.add(cell, name, sae_seed, values, counted=found.counted)


RATES: tuple[str, ...] = (
    *("kind", "metric", "share", "se", "n_trials", "n_pools", "n_apart", "n_points", "n_missing"),
    *("variance_ratio", "verdict", "reason"),
)
"""The table of `rates` has these columns."""


def rates(trials: pandas.DataFrame, confidence: float = 0.95) -> pandas.DataFrame:
    """Return, for each kind of interval and metric, how often the interval leaves zero out.

    - `share`: of the `n_trials` whose interval has a width. Null, with a `reason`, where there is
      none.
    - `se`: its standard error, from how the share differs between the pools; never below that of as
      many independent trials, and null with one pool.
    - `n_apart`: trials that share no re-draw, those of each pool's first round.
    - `n_points`: intervals of no width at zero: nothing varied. `n_missing`: no interval.
    - `variance_ratio`: mean squared effect over mean squared standard error. 1 where the standard
      error is right, below 1 where it is too large. Null for kinds that come without one.
    - `verdict`: `within` where the share is 3% to 7% (for 95%); `too narrow` or `too wide` where it is
      outside by more than two standard errors, its own or that of as many independent trials at the
      limit, whichever is larger; else `not told apart`.

    The rows of the metric `all` hold every metric together; their standard error, between pools, holds
    that metrics go together.

    Args:
        trials: Rows of `aa_trials` of all pools, with a column `pool`.
        confidence: Of the intervals.
    """
    every = trials.assign(metric=_ALL)
    both = pandas.concat([every, trials], ignore_index=True)
    rows = []
    for (kind, metric), group in both.groupby(["kind", "metric"], sort=False):
        rows.append({"kind": kind, "metric": metric, **_rate(group, 1 - confidence)})
    return pandas.DataFrame(rows, columns=list(RATES))


def _rate(group: pandas.DataFrame, chance: float) -> dict[str, Any]:
    known = group[group["low"].notna()]
    wide = known[known["high"] > known["low"]]
    made: dict[str, Any] = {"n_trials": len(wide), "n_points": len(known) - len(wide)}
    made["n_missing"] = len(group) - len(known)
    made["n_apart"] = int((wide["round"] == 0).sum())
    made["n_pools"] = wide["pool"].nunique()
    if not len(wide):
        reasons = [r for r in group["reason"] if isinstance(r, str)]
        return made | {"reason": reasons[0] if reasons else "nothing varied in any trial"}
    outside = (wide["low"] > 0) | (wide["high"] < 0)
    share = float(outside.mean())
    squares = float((wide["se"] ** 2).sum()) if wide["se"].notna().all() else float("nan")
    made |= {"share": share, "variance_ratio": None}
    if squares > 0 and wide["metric"].iloc[0] != _ALL:
        made["variance_ratio"] = float((wide["effect"] ** 2).sum()) / squares
    by_pool = outside.groupby(wide["pool"]).mean().to_numpy(np.float64)
    if len(by_pool) < 2:
        return made | {"reason": "one pool: no standard error, so no verdict"}
    least = (share * (1 - share) / len(wide)) ** 0.5
    se = max(float(by_pool.std(ddof=1)) / len(by_pool) ** 0.5, least)
    return made | {"se": se, "verdict": _verdict(share, se, len(wide), chance)}


def _verdict(share: float, se: float, n: int, chance: float) -> str:
    low, high = _FEWEST * chance, _MOST * chance
    if low <= share <= high:
        return "within"
    limit = low if share < low else high
    # few events hardly differ between pools; the error is at least what it would be at the limit
    error = max(se, (limit * (1 - limit) / n) ** 0.5)
    if abs(share - limit) <= 2 * error:
        return "not told apart"
    return "too narrow" if share > high else "too wide"


# --- trials whose truth is planted


@dataclass(frozen=True)
class Spread:
    """Standard deviations of what varies, each as that of the mean over all that there is of it.

    Attributes:
        documents: That of the mean over documents.
        sae_seeds: That of the mean over SAE seeds.
        models: That of the mean over re-draws.
        joint: That of the mean of what depends on a re-draw and a SAE seed together.
        reading: That of the mean of what depends on a document and a re-draw together.
    """

    documents: float
    sae_seeds: float
    models: float
    joint: float
    reading: float = 0.0


SPREADS: Mapping[str, Spread] = {
    "documents": Spread(1.0, 0.0, 0.0, 0.0),
    "SAE seeds": Spread(0.2, 1.0, 0.0, 0.0),
    "models": Spread(0.2, 0.0, 1.0, 0.0),
    "seed x model": Spread(0.2, 0.0, 0.0, 1.0),
    "document x model": Spread(0.2, 0.0, 0.0, 0.0, 1.0),
    "all": Spread(1.0, 1.0, 1.0, 0.5),
}
SHAPES = ((60, 2, 2), (60, 3, 3), (60, 3, 2), (200, 4, 4))
"""The table of coverage has these numbers of documents, re-draws and SAE seeds."""


class TrialShare(NamedTuple):
    """A share of n trials, with its binomial standard error."""

    share: float
    se: float
    n: int

    @classmethod
    def of(cls, count: int, n: int) -> TrialShare:
        """Return count / n."""
        share = float(count / n)
        return cls(share, (share * (1 - share) / n) ** 0.5, n)


def planted(
    random: np.random.Generator,
    weights: Float[np.ndarray, "document replicate"],
    models: int,
    sae_seeds: int,
    spread: Spread,
) -> tuple[Replicates, Replicates]:
    """Return a given arm and a drawn control whose true difference is 0, values normal.

    The two share no document noise and no seed noise, so each `Spread` is that of their difference.
    """
    n = len(weights)
    by_document = random.normal(0, spread.documents * n**0.5, (2, n)) / 2**0.5
    documents = by_document @ weights / n
    given = documents[0] + random.normal(0, spread.sae_seeds * sae_seeds**0.5, (1, sae_seeds, 1))
    of_models = random.normal(0, spread.models * models**0.5, (models, 1, 1))
    scale = spread.joint * (models * sae_seeds) ** 0.5
    joint = random.normal(0, scale, (models, sae_seeds, 1))
    readings = random.normal(0, spread.reading * (models * n) ** 0.5, (models, 1, n)) @ weights / n
    seeds = tuple(range(sae_seeds))
    return (
        Replicates(given, (0,), seeds, drawn=False),
        Replicates(
            documents[1] + of_models + joint + readings, tuple(range(models)), seeds, drawn=True
        ),
    )


def planted_coverage(
    shape: tuple[int, int, int],
    spread: Spread,
    trials: int,
    seed: int = 0,
    *,
    replicates: int = 100,
    confidence: float = 0.95,
) -> dict[str, TrialShare]:
    """Return how often intervals hold the truth: of the `effect`, and of the `control` alone.

    Args:
        shape: Documents, re-draws and SAE seeds.
        spread: What varies how much.
        trials: Planted trials.
        seed: Seed of all draws.
        replicates: Resamples of the documents.
        confidence: Of the intervals.
    """
    n_documents, models, sae_seeds = shape
    random = numpy_generator(seed, "planted trials", *shape)
    hits = {"effect": 0, "control": 0}
    cells = [ReplicateKey(arm, "here", "sae", "planted") for arm in ("arm", "control")]
    for trial in range(trials):
        weights = document_weights(n_documents, replicates, seed * trials + trial)
        table = ReplicateTable({"here": n_documents}, {"here": n_documents}, frozenset({"control"}))
        for cell, side in zip(
            cells, planted(random, weights, models, sae_seeds, spread), strict=True
        ):
            _put(table, cell, side, side.model_seeds, side.model_seeds)
        spreads = Spreads(table)
        around = difference(spreads, (cells[0], cells[1])).bounds(confidence)
        hits["effect"] += around.low <= 0 <= around.high
        alone = ArmNumber.of(spreads, cells[1]).bounds(confidence)
        hits["control"] += alone.low <= 0 <= alone.high
    return {name: TrialShare.of(count, trials) for name, count in hits.items()}


def planted_placebo(redraws: int, trials: int, seed: int = 0) -> TrialShare:
    """Return how often the A/A interval of a control leaves zero out, over planted trials.

    Three controls vary alike, 60 documents, two SAE seeds; re-draws differ most, and what depends on
    a re-draw and a SAE seed together half as much.
    """
    random = numpy_generator(seed, "planted placebos", redraws)
    described = {"planted": _Undescribed()}
    outside, spread = 0, Spread(0.1, 0.0, 1.0, 0.5)
    for trial in range(trials):
        weights = document_weights(60, 100, seed * trials + trial)
        table = ReplicateTable({"here": 60}, {"here": 60}, frozenset("abc"))
        for arm in "abc":
            control = planted(random, weights, redraws, 2, spread)[1]
            for m, s in np.ndindex(redraws, 2):
                table.add(ReplicateKey(arm, "here", "sae", "planted"), m, s, control.values[m, s])
        row = effects(table, [("b", "a")], described).iloc[0]
        outside += not row["aa_low"] <= 0 <= row["aa_high"]
    return TrialShare.of(outside, trials)
