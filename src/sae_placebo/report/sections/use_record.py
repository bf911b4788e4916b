"""How often the test of use is wrong where the answer is known, shown beside the verdicts."""

from __future__ import annotations

import functools
import json
from importlib.resources import files
from typing import Any

from sae_placebo.proportions import wilson
from sae_placebo.report.sections.asked import percent
from sae_placebo.report.wording import Estimate, count, number

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
    if auroc is None:
        score = Estimate("–", None, "no world has both kinds there", said)
    else:
        score = Estimate(number(auroc, 3), None, f"lowest {number(one['lowest'], 2)}", said)
    cells = {name: _share(*one[name]) for name in ("false_not_used", "false_used", "undetermined")}
    slivers = _share(*one["slivers"])
    return {
        "name": one["name"],
        "auroc": score,
        "auroc_short": auroc is not None and auroc < LEAST_AUROC,
        "slivers": slivers,
        "not_used_short": _rate(one["false_not_used"]) > FALSE_NOT_USED,
        "slivers_short": _rate(one["slivers"]) > FALSE_NOT_USED,
        "used_short": _rate(one["false_used"]) > FALSE_USED,
        "baseline": one["baseline"],
        **cells,
    }


def _rate(counted: list[int]) -> float:
    return counted[0] / counted[1] if counted[1] else 0.0


def _share(hits: int, n: int) -> Estimate:
    if not n:
        return Estimate("–", None, "there are none", "0")
    return percent((hits / n, *wilson(hits, n)), f"{hits} of {count(n)}")
