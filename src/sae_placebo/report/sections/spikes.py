"""The section on spike-ins: what the trial's SAE finds of features whose truth is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sae_placebo.report.sections.base import SECTIONS, Content, Section, View
from sae_placebo.report.spike_files import Planted
from sae_placebo.report.tables import records
from sae_placebo.report.wording import Estimate, count, counted, estimated, finite

_OUTCOMES = ("detected", "split", "composed", "absorbed", "lost")
_PAIR_OUTCOMES = ("apart", "merged", "one", "lost")
_LIMITS = ("limit_50", "limit_95")
_NULL = "independent"
Row = Mapping[str, Any]


def _share(row: Row | None, noun: str) -> Estimate:
    """Return a share in percent with its interval and n."""
    if row is None:
        return Estimate("–", None, "not written", counted(0, noun))
    value, low, high = (finite(row[name]) for name in ("value", "low", "high"))
    n, reason = counted(row["n"] or 0, noun), str(row["reason"] or "not judged")
    if value is None or low is None or high is None:
        return Estimate("–", None, reason, n)
    return estimated(100 * value, 100 * low, 100 * high, n, reason, decimals=0, unit="%")


def _limit(row: Row | None) -> Estimate:
    if row is None:
        return Estimate("–", None, "not written", counted(0, "feature"))
    value, low, high = (finite(row[name]) for name in ("value", "low", "high"))
    n = counted(row["n"] or 0, "feature")
    told = estimated(value, low, high, n, str(row["reason"] or "not estimable"), decimals=2)
    if finite(row["extrapolated"]):
        return Estimate(told.value, told.interval, "outside what was planted", told.n)
    return told


def _of(rows: Sequence[Row], **keys: Any) -> Row | None:
    """Return the row with these values, None where there is none."""
    return next((r for r in rows if all(r[key] == value for key, value in keys.items())), None)


def _features(planted: Planted) -> dict[str, Any]:
    rows = records(planted.summary)
    cells = dict.fromkeys((r["frequency"], r["magnitude"]) for r in rows if r["magnitude"])
    frequencies = list(dict.fromkeys(r["frequency"] for r in rows if r["name"] in _LIMITS))
    nulls = (("decoys", "decoy"), ("without", "feature"))
    return {
        "whole": [
            {"name": name, "share": _share(_of(rows, name=name, frequency=None), "feature")}
            for name in _OUTCOMES
        ],
        "nulls": {name: _share(_of(rows, name=name, frequency=None), n) for name, n in nulls},
        "limits": [
            {
                "frequency": f"{frequency:g}",
                "cells": [_limit(_of(rows, name=name, frequency=frequency)) for name in _LIMITS],
            }
            for frequency in frequencies
        ],
        "cells": [
            {
                "frequency": f"{frequency:g}",
                "magnitude": f"{magnitude:g}",
                "shares": [
                    _share(
                        _of(rows, name=name, frequency=frequency, magnitude=magnitude), "feature"
                    )
                    for name in _OUTCOMES
                ],
            }
            for frequency, magnitude in cells
        ],
    }


def _pairs(planted: Planted) -> dict[str, Any]:
    rows = records(planted.summary)
    kinds = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [row for row in rows if row["kind"] == kind]
        places = dict.fromkeys(
            (r["relation"], r["frequency"], r["magnitude"]) for r in own if r["relation"]
        )
        kinds.append(
            {
                "kind": str(kind),
                "l0": _l0(_of(own, name="l0")),
                "rows": [
                    {
                        "relation": str(relation),
                        "frequency": f"{frequency:g}",
                        "magnitude": f"{magnitude:g}",
                        "is_null": relation == _NULL,
                        "shares": [
                            _share(
                                _of(
                                    own,
                                    name=name,
                                    relation=relation,
                                    frequency=frequency,
                                    magnitude=magnitude,
                                ),
                                "pair",
                            )
                            for name in _PAIR_OUTCOMES
                        ],
                    }
                    for relation, frequency, magnitude in places
                ],
            }
        )
    record = planted.record
    return {
        "kinds": kinds,
        "rate": f"{record['grid']['rate']:g}",
        "unmatched": [str(kind) for kind in record["unmatched"]],
        "tolerance": f"{100 * record['l0_tolerance']:g}%",
    }


def _l0(row: Row | None) -> Estimate:
    if row is None or finite(row["value"]) is None:
        return Estimate("–", None, "not written", counted(0, "training"))
    n = counted(row["n"], "training")
    return estimated(float(row["value"]), None, None, n, str(row["reason"]), decimals=2)


def _shown(planted: Planted) -> dict[str, Any]:
    record = planted.record
    return {
        "is_pairs": planted.is_pairs,
        "where": f"{record['arm']}, {record['hookpoint']}, {record['sae']}",
        "n_spikes": count(record["n_spikes"]),
        "n_trainings": counted(record["n_trainings"], "training"),
        "heldout": count(record["heldout_tokens"]),
        **(_pairs(planted) if planted.is_pairs else _features(planted)),
    }


def build(view: View) -> Content:
    """Return, for each set of spike-ins, what came back beside its null."""
    planted = view.tables.planted
    values = {
        "sets": [_shown(one) for one in planted.sets],
        "problems": list(planted.problems),
        "outcomes": _OUTCOMES,
        "pair_outcomes": _PAIR_OUTCOMES,
    }
    return Content(values, {})


SECTIONS.add(Section("spikes", "What would this SAE find?", (), build))
