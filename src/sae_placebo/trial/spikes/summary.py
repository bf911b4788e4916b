"""What trainings with spikes say together: shares with score intervals, detection limits, nulls, and n.

An interval of a share takes each planted feature as one draw (Wilson); that of a limit is a bootstrap over
trainings where there are five or more (see `lab.spikes.limits`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import pandas
from sae_placebo.lab.spikes.limits import Limit, limit_of
from sae_placebo.lab.spikes.outcomes import DETECTED, OUTCOMES
from sae_placebo.lab.spikes.pairs import PAIR_OUTCOMES, RELATIONS
from sae_placebo.report.spike_files import FEATURE_COLUMNS, PAIR_COLUMNS, PAIRS, SUMMARY_COLUMNS
from sae_placebo.report.wording import counted
from sae_placebo.stats.proportions import wilson
from sae_placebo.trial.spikes.planning import SpikePlan

Row = dict[str, Any]
LIMITS = {"limit_50": 0.5, "limit_95": 0.95}
"""Names of detection limits in a summary, and the share that is detected from there on."""
_NONE_JUDGED = "none was active on enough held-out tokens to be judged"


def table_of(plan: SpikePlan, trained: Sequence[Row]) -> Any:
    """Return a DataFrame with one row per planted feature, or per planted pair."""
    one = plan.subject.one
    about = {
        "arm": one.arm,
        "model_seed": one.model_seed,
        "hookpoint": plan.subject.hookpoint,
        "sae": plan.subject.sae,
    }
    rows = [
        {**about, **{name: value for name, value in training.items() if name != "rows"}, **row}
        for training in trained
        for row in training["rows"]
    ]
    columns = PAIR_COLUMNS if plan.task == PAIRS else FEATURE_COLUMNS
    table = pandas.DataFrame(rows, columns=list(columns))
    texts = {name: "str" for name in ("outcome", "without_outcome") if name in columns}
    whole = ("model_seed", "first_latent", "second_latent", "shared_latent")
    return table.astype(texts | {name: "Int64" for name in whole if name in columns})


def summary_of(plan: SpikePlan, trained: Sequence[Row]) -> Any:
    """Return a DataFrame with one row per share, limit or null; see `SUMMARY_COLUMNS`."""
    rows = list(_of_pairs(trained, plan.l0) if plan.task == PAIRS else _of_features(trained))
    table = pandas.DataFrame(rows, columns=list(SUMMARY_COLUMNS))
    numbers = ("frequency", "magnitude", "value", "low", "high", "extrapolated")
    texts = ("relation", "reason")
    return table.astype(dict.fromkeys(numbers, "float64") | dict.fromkeys(texts, "str"))


def limit_from(trained: Sequence[Row]) -> Limit:
    """Return the detection limit that all judged features show together.

    Raises:
        NotEstimable: see `limit_of`.
    """
    judged = [
        (row, training["training"])
        for training in trained
        for row in training["rows"]
        if row["outcome"] is not None
    ]
    return limit_of(
        np.array([row["frequency"] for row, _ in judged]),
        np.array([row["magnitude"] for row, _ in judged]),
        np.array([row["outcome"] == DETECTED for row, _ in judged], dtype=bool),
        np.array([training for _, training in judged]),
        0,
    )


# --- single features ---------------------------------------------------------------------------------


def _of_features(trained: Sequence[Row]) -> Iterator[Row]:
    kind = trained[0]["kind"]
    rows = [row for training in trained for row in training["rows"]]
    yield from _shares(rows, OUTCOMES, kind=kind)
    yield _share(
        sum(row["null_detected"] for row in rows),
        sum(row["null_judged"] for row in rows),
        kind=kind,
        name="decoys",
        unit="share of decoys",
    )
    without = [row["without_outcome"] for row in rows if row["without_outcome"] is not None]
    hits = sum(outcome == DETECTED for outcome in without)
    unit = "share of features"
    yield _share(hits, len(without), kind=kind, name="without", unit=unit)
    cells = dict.fromkeys((row["frequency"], row["magnitude"]) for row in rows)
    for frequency, magnitude in sorted(cells):
        own = [r for r in rows if (r["frequency"], r["magnitude"]) == (frequency, magnitude)]
        yield from _shares(own, OUTCOMES, kind=kind, frequency=frequency, magnitude=magnitude)
    yield from _limits(trained, sorted({row["frequency"] for row in rows}), kind)


def _limits(trained: Sequence[Row], frequencies: Sequence[float], kind: str) -> Iterator[Row]:
    """Yield the magnitudes from which on a feature of each frequency is detected."""
    n = sum(row["outcome"] is not None for training in trained for row in training["rows"])
    limit, why = None, ""
    try:
        limit = limit_from(trained)
    except NotEstimable as reason:
        why = str(reason)
    for frequency in frequencies:
        for name, share in LIMITS.items():
            row: Row = {"kind": kind, "frequency": frequency, "name": name, "n": n}
            row |= {"unit": "magnitude", "reason": why or None}
            if limit is not None:
                row |= _limit(limit, share, frequency)
            yield row


def _limit(limit: Limit, share: float, frequency: float) -> Row:
    try:
        found = limit.magnitude(share, frequency)
    except NotEstimable as reason:
        return {"reason": str(reason)}
    if not math.isfinite(found.value) or not math.isfinite(found.high):
        far = f"no magnitude bounds it from above; 95% of draws are above {found.low:.3g}"
        return {"reason": far, "extrapolated": found.extrapolated}
    return {
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "extrapolated": found.extrapolated,
    }


# --- pairs -------------------------------------------------------------------------------------------


def _of_pairs(trained: Sequence[Row], l0_target: float) -> Iterator[Row]:
    for kind, l0 in reached_l0(trained).items():
        own = [training for training in trained if training["kind"] == kind]
        yield _l0_row(own, kind, l0, l0_target)
        rows = [row for training in own for row in training["rows"]]
        cells = sorted({(row["frequency"], row["magnitude"]) for row in rows})
        for relation in RELATIONS:
            for frequency, magnitude in cells:
                some = [
                    row
                    for row in rows
                    if row["relation"] == relation
                    and (row["frequency"], row["magnitude"]) == (frequency, magnitude)
                ]
                keys = {"relation": relation, "frequency": frequency, "magnitude": magnitude}
                yield from _shares(some, PAIR_OUTCOMES, kind=kind, unit="share of pairs", **keys)


def reached_l0(trained: Sequence[Row]) -> dict[str, float]:
    """Return by kind the mean number of active latents per held-out token, over trainings."""
    kinds = dict.fromkeys(training["kind"] for training in trained)
    return {
        kind: float(np.mean([row["l0"] for row in trained if row["kind"] == kind]))
        for kind in kinds
    }


def unmatched(l0: Mapping[str, float], target: float, tolerance: float) -> list[str]:
    """Return the kinds whose L0 is further from what was asked for than a share `tolerance` of it."""
    return [kind for kind, value in l0.items() if abs(value / target - 1) > tolerance]


def _l0_row(trained: Sequence[Row], kind: str, value: float, target: float) -> Row:
    each = [training["l0"] for training in trained]
    return {
        "kind": kind,
        "name": "l0",
        "value": value,
        "n": len(each),
        "unit": "active latents per token",
        "reason": f"single trainings: {min(each):.2f} to {max(each):.2f}; {target:g} was asked for",
    }


# --- shares ------------------------------------------------------------------------------------------


def _shares(
    rows: Sequence[Row], outcomes: Sequence[str], unit: str = "share of features", **keys: Any
) -> Iterator[Row]:
    """Yield the share of each outcome among the features or pairs that could be judged."""
    judged = [row["outcome"] for row in rows if row["outcome"] is not None]
    for name in outcomes:
        yield _share(judged.count(name), len(judged), name=name, unit=unit, **keys)


def _share(hits: int, n: int, **keys: Any) -> Row:
    if not n:
        return {**keys, "n": 0, "reason": _NONE_JUDGED}
    low, high = wilson(hits, n)
    return {**keys, "value": hits / n, "low": low, "high": high, "n": n}


# --- in words ----------------------------------------------------------------------------------------


def in_words(record: Mapping[str, Any], summary: Any) -> str:
    """Return the summary as lines for a terminal; every number has its interval and n."""
    where = f"{record['arm']}, {record['hookpoint']}, {record['sae']}"
    of, n_tokens = counted(record["n_spikes"], "feature"), record["heldout_tokens"]
    trainings = counted(record["n_trainings"], "training")
    first = f"{where}: {of} in {trainings}; judged on {n_tokens:,} held-out tokens"
    rows = summary.astype(object).where(summary.notna(), None).to_dict("records")
    if record["task"] == PAIRS:
        off = [_unmatched_line(record)] if record["unmatched"] else []
        return "\n".join([first, *off, *_pair_lines(rows)])
    return "\n".join([first, *_feature_lines(rows)])


def _feature_lines(rows: Sequence[Row]) -> Iterator[str]:
    whole = {row["name"]: row for row in rows if row["frequency"] is None}
    yield "of all: " + "; ".join(f"{name} {_told(whole[name])}" for name in OUTCOMES)
    yield (
        f"null: decoys {_told(whole['decoys'])}; the same features in the trial's SAE, without them "
        f"{_told(whole['without'])}"
    )
    limits = [row for row in rows if row["name"] in LIMITS]
    if limits and all(row["value"] is None for row in limits):
        yield f"detection limit: none ({limits[0]['reason']})"
        return
    for row in limits:
        share = f"{LIMITS[row['name']]:.0%}"
        beyond = ", outside what was planted" if row["extrapolated"] else ""
        yield f"at frequency {row['frequency']:g}, {share} detected from magnitude {_told(row)}{beyond}"


def _unmatched_line(record: Mapping[str, Any]) -> str:
    kinds = " and ".join(record["unmatched"])
    return (
        f"not matched: the L0 of {kinds} is further than {record['l0_tolerance']:.0%} from the "
        f"{record['l0_target']:g} that was asked for, so that kinds may differ for that alone; train on "
        "more tokens or in smaller batches"
    )


def _pair_lines(rows: Sequence[Row]) -> Iterator[str]:
    by: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["name"] == "l0":
            trainings = counted(row["n"], "training")
            yield f"{row['kind']}: L0 {row['value']:.2f} over {trainings}, {row['reason']}"
            continue
        by.setdefault(
            (row["kind"], row["frequency"], row["magnitude"], row["relation"]), []
        ).append(row)
    for (kind, frequency, magnitude, relation), own in by.items():
        said = "; ".join(f"{row['name']} {_told(row)}" for row in own)
        null = " (null)" if relation == RELATIONS[-1] else ""
        yield f"{kind}, frequency {frequency:g}, magnitude {magnitude:g}, {relation}{null}: {said}"


def _told(row: Row) -> str:
    if row["value"] is None:
        return f"not estimable ({row['reason']})"
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}] of {row['n']:,}"
