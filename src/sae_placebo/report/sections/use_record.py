"""How often the test of use is wrong where the answer is known, shown beside the verdicts."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from importlib.resources import files
from typing import Any

from sae_placebo.report.sections.use_rows import percent
from sae_placebo.report.wording import Estimate, count, number
from sae_placebo.stats.proportions import wilson

FALSE_NOT_USED, FALSE_USED, LEAST_AUROC = 0.01, 0.05, 0.95
"""What the test is meant to keep to."""


@functools.cache
def _record() -> dict[str, Any]:
    """Return what `benchmarks/worlds.py draw` wrote."""
    text = files("sae_placebo.report").joinpath("on_worlds.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def record() -> list[dict[str, Any]]:
    """Return a row per kind of world and site, with marks where the test falls short."""
    return [_row(one) for one in _record()["rows"]]


def _row(one: dict[str, Any]) -> dict[str, Any]:
    auroc, n = one["auroc"], one["worlds"]
    said = f"{n} of {one['of']} worlds" if n != one["of"] else f"{n} worlds"
    score = Estimate("–", None, "no world has both kinds there", said)
    if auroc is not None:
        short = ", below .95" if auroc < LEAST_AUROC else ""
        score = Estimate(number(auroc, 3), None, f"lowest {number(one['lowest'], 2)}{short}", said)
    name, _, best = one["baseline"].rpartition(" ")
    baseline = Estimate(best or "–", None, name or "none has a value", said)
    limits = {"false_not_used": FALSE_NOT_USED, "slivers": FALSE_NOT_USED, "false_used": FALSE_USED}
    shares = {key: _share(one[key], most) for key, most in (limits | {"undetermined": 1.0}).items()}
    return {"name": one["name"], "auroc": score, "baseline": baseline, **shares}


def _share(counted: list[int], most: float) -> Estimate:
    """Return a share, of hits and of how many, as shown; beside one above `most` it says so."""
    hits, n = counted
    if not n:
        return Estimate("–", None, "there are none", "0")
    found = percent((hits / n, *wilson(hits, n)), f"{hits} of {count(n)}")
    if hits / n <= most:
        return found
    return replace(found, reason=f"more than {100 * most:g}%")
