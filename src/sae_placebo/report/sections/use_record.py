"""How often the test of use is wrong on worlds, where the answer is known; the page shows it."""

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
"""Limits that the test is meant to keep: the shares of two errors, and the AUROC of its effects."""


@functools.cache
def _record() -> dict[str, Any]:
    """Return what `benchmarks/worlds.py draw` wrote."""
    text = files("sae_placebo.report").joinpath("on_worlds.json").read_text(encoding="utf-8")
    recorded: dict[str, Any] = json.loads(text)
    return recorded


def record() -> list[dict[str, Any]]:
    """Return a row per kind of world and site, with marks where the test does not keep its limits."""
    return [_row(row) for row in _record()["rows"]]


def _row(row: dict[str, Any]) -> dict[str, Any]:
    auroc, n_worlds = row["auroc"], row["worlds"]
    n = f"{n_worlds} of {row['of']} worlds" if n_worlds != row["of"] else f"{n_worlds} worlds"
    score = Estimate("–", None, "no world has both kinds there", n)
    if auroc is not None:
        short = ", below .95" if auroc < LEAST_AUROC else ""
        score = Estimate(number(auroc, 3), None, f"lowest {number(row['lowest'], 2)}{short}", n)
    name, _, best = row["baseline"].rpartition(" ")
    baseline = Estimate(best or "–", None, name or "none has a value", n)
    limits = {"false_not_used": FALSE_NOT_USED, "slivers": FALSE_NOT_USED, "false_used": FALSE_USED}
    shares = {key: _share(row[key], most) for key, most in (limits | {"undetermined": 1.0}).items()}
    return {"name": row["name"], "auroc": score, "baseline": baseline, **shares}


def _share(counted: list[int], most: float) -> Estimate:
    """Return a share in percent, as it is shown, with a remark where it is above a limit.

    Args:
        counted: How many there are of a kind, and of how many.
        most: The limit, as a share.
    """
    hits, n = counted
    if not n:
        return Estimate("–", None, "there are none", "0")
    shown = percent((hits / n, *wilson(hits, n)), f"{hits} of {count(n)}")
    return shown if hits / n <= most else replace(shown, reason=f"more than {100 * most:g}%")
