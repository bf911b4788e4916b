"""The ladder of every arm as a table: each rung's R2, and what it adds to the rung before."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import pandas
from sae_placebo.core.tables.structure import LADDER
from sae_placebo.latents.ladder.fitting import RUNGS
from sae_placebo.stats.effects import arm_bounds
from sae_placebo.stats.replicates import ReplicateKey, Replicates, ReplicateTable
from sae_placebo.stats.spreads import Spreads

SUBJECTS = {"latents": "ladder_r2_", "activations": "activations_r2_"}
COLUMNS = LADDER.names


def ladder_table(
    table: ReplicateTable, latents: Any, widths: Mapping[str, int], min_firings: int, level: float
) -> Any:
    """Return one row per arm, hookpoint, SAE, subject and rung but the constant.

    A row is about all SAEs of an arm together, so that its seeds are null. Its `n` is the number of judged
    latents, or of dimensions of the activations.

    Args:
        table: Every metric of every SAE under document weights.
        latents: One row per latent, from which the judged ones are counted.
        widths: Number of dimensions of the activations, by hookpoint.
        min_firings: Active tokens from which a latent is judged.
        level: Level of the intervals.
    """
    judged = latents[latents["n_active"] >= min_firings]
    counts = judged.groupby(["arm", "hookpoint", "sae"]).size().to_dict()
    places = dict.fromkeys(
        (c.arm, c.hookpoint, c.sae) for c in table if c.metric == "ladder_r2_token"
    )
    values, gains = Spreads(table), Spreads(_gains(table, places))
    rows = [
        row | {"n": counts.get(place, 0) if subject == "latents" else widths.get(place[1])}
        for place in places
        for subject in SUBJECTS
        for row in _rungs(values, gains, place, subject, level)
    ]
    whole = ("model_seed", "sae_seed", "n")
    numbers = ("value", "low", "high", "gain", "gain_low", "gain_high")
    types = dict.fromkeys(whole, "Int64") | dict.fromkeys(numbers, "float64")
    return pandas.DataFrame(rows, columns=list(COLUMNS)).astype(types)


def _gains(table: ReplicateTable, places: Iterable[tuple[str, str, str]]) -> ReplicateTable:
    """Return what each rung adds to the rung before that can be estimated, under the metric's name."""
    gains = dataclasses.replace(table)
    for arm, hookpoint, sae in places:
        for subject in SUBJECTS.values():
            before: Replicates | None = None
            for rung in RUNGS[1:]:
                cell = ReplicateKey(arm, hookpoint, sae, subject + rung)
                try:
                    r2 = table[cell]
                except NotEstimable as refusal:
                    gains.add(cell, 0, 0, None, reason=str(refusal))
                    continue
                step = r2.values if before is None else r2.values - before.values
                gains.put(cell, dataclasses.replace(r2, values=step))
                before = r2
    return gains


def _rungs(
    values: Spreads, gains: Spreads, place: tuple[str, str, str], subject: str, level: float
) -> Iterator[dict[str, Any]]:
    """Yield the rows of one arm, hookpoint, SAE and subject, with each rung's gain over the one before."""
    arm, hookpoint, sae = place
    for rung in RUNGS[1:]:
        row: dict[str, Any] = dict.fromkeys(COLUMNS)
        row |= {"arm": arm, "hookpoint": hookpoint, "sae": sae, "subject": subject, "rung": rung}
        cell = ReplicateKey(arm, hookpoint, sae, SUBJECTS[subject] + rung)
        try:
            row |= {"value": values.table[cell].point, "gain": gains.table[cell].point}
            row["low"], row["high"] = arm_bounds(values, cell, level)
            row["gain_low"], row["gain_high"] = arm_bounds(gains, cell, level)
        except NotEstimable as refusal:
            row["reason"] = str(refusal)
        yield row
