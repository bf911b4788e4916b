"""Metrics on their own scale whose truth is planted: how often A/A and effects leave 0 out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from sae_placebo.core.spec import numpy_generator
from sae_placebo.stats.calibration import Spread, TrialShare
from sae_placebo.stats.effects import document_weights
from sae_placebo.stats.inference import difference
from sae_placebo.stats.placebo_effects import placebo_against_placebo
from sae_placebo.stats.replicates import ReplicateKey, ReplicateTable
from sae_placebo.stats.spreads import Spreads

APART = "apart"
"""The arm whose re-draws may vary more than the others'."""
FAMILIES = {"trained": "", "frozen": "", "shuffled": "data"} | dict.fromkeys(
    ("one", "two", "three", APART), "weights"
)
"""The arms of the demo: two are given, five are drawn, four of these alike."""
SPREAD = Spread(documents=0.2, sae_seeds=0.3, models=1.0, joint=0.2)
"""Standard deviations of one document mean, one SAE seed, one re-draw and one SAE."""
_DOCUMENTS, _RESAMPLES = 55, 100


class RedrawCoverage(NamedTuple):
    """How the intervals of planted arms did.

    Attributes:
        arms: Which arms: those of the family that vary alike, `apart`, or the one alone in its family.
        placebo: How often A/A leaves 0 out; None where there is no A/A interval.
        effect: How often trained minus control, which is 0, leaves 0 out.
        width: Median half-width of the effect's interval over the true standard deviation of the effect.
        placebo_width: The same of A/A.
    """

    arms: str
    placebo: TrialShare | None
    effect: TrialShare
    width: float
    placebo_width: float | None


def planted_redraws(
    shape: tuple[int, int], times: float, trials: int, seed: int = 0, spread: Spread = SPREAD
) -> list[RedrawCoverage]:
    """Return how often intervals leave 0 out in trials of one metric, in which every effect is 0.

    Values are normal. Half of what documents and SAE seeds vary is shared by all arms.

    Args:
        shape: Re-draws of each control, and SAE seeds.
        times: Standard deviation of re-draws of the arm `apart` over that of the others'.
        trials: Planted trials.
        seed: Seed of all draws.
        spread: What varies how much.
    """
    random = numpy_generator(seed, "planted re-draws", *shape, str(times))
    groups = {"alike": ("one", "two", "three"), APART: (APART,), "alone": ("shuffled",)}
    seen: dict[str, list[tuple[float, ...]]] = {name: [] for name in groups}
    for trial in range(trials):
        weights = document_weights(_DOCUMENTS, _RESAMPLES, seed * trials + trial)
        spreads = Spreads(_table(random, weights, shape, times, spread))
        for name, arms in groups.items():
            for arm in arms:
                cells = [ReplicateKey(one, "here", "sae", "planted") for one in ("trained", arm)]
                around = difference(spreads, (cells[0], cells[1])).bounds()
                aa = placebo_against_placebo(spreads, cells[1], 0.95)
                placebo = (aa["aa_effect"], aa.get("aa_low", np.nan), aa.get("aa_high", np.nan))
                effect = (around.low + around.high) / 2
                seen[name].append((effect, *around, *placebo))
    return [_coverage(name, np.array(rows)) for name, rows in seen.items()]


def _coverage(name: str, rows: Float[np.ndarray, "trial number"]) -> RedrawCoverage:
    told = []
    for value, low, high in (rows[:, :3].T, rows[:, 3:].T):
        width = float(np.median(high - low) / 2 / value.std())
        told.append((TrialShare.of(int(((low > 0) | (high < 0)).sum()), len(rows)), width))
    effect, placebo = told
    if not np.isfinite(rows[:, 4]).any():
        return RedrawCoverage(name, None, effect[0], effect[1], None)
    return RedrawCoverage(name, placebo[0], *effect, placebo[1])


def _table(
    random: np.random.Generator,
    weights: Float[np.ndarray, "document replicate"],
    shape: tuple[int, int],
    times: float,
    spread: Spread,
) -> ReplicateTable:
    drawn = frozenset(arm for arm, family in FAMILIES.items() if family)
    table = ReplicateTable({"here": _DOCUMENTS}, {"here": _DOCUMENTS}, drawn, FAMILIES)
    of_document, half = spread.documents * _DOCUMENTS**0.5, 0.5**0.5
    documents = random.normal(0, of_document, _DOCUMENTS)
    seeds = random.normal(0, spread.sae_seeds, shape[1])
    for arm in FAMILIES:
        n_models = shape[0] if arm in drawn else 1
        own = random.normal(0, of_document, _DOCUMENTS)
        values = half * (documents + own) @ weights / _DOCUMENTS
        values = values + half * (seeds + random.normal(0, spread.sae_seeds, shape[1]))[:, None]
        values = values + random.normal(0, spread.joint, (n_models, shape[1], 1))
        if arm in drawn:
            sd = spread.models * (times if arm == APART else 1.0)
            values = values + random.normal(0, sd, (n_models, 1, 1))
        for m, s in np.ndindex(n_models, shape[1]):
            table.add(ReplicateKey(arm, "here", "sae", "planted"), m, s, values[m, s])
    return table
