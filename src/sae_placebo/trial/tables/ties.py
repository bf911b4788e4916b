"""The table of ties to circuitry: shares per arm, the trained one against each re-draw, and A/A."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_placebo.core.lazy import pandas
from sae_placebo.core.store import Store
from sae_placebo.core.tables import SCHEMAS
from sae_placebo.stats.clustered_shares import (
    Counted,
    Dispersion,
    between,
    difference,
    interval,
    steadied,
)
from sae_placebo.trial.failures import refusal
from sae_placebo.trial.plan import Place, Plan
from sae_placebo.trial.reference import re_draws, tie_arms
from sae_placebo.trial.table_files import read_table

MEASURES = {"tied": "tied", "written": "written_p", "read": "read_p"}
"""What is counted of a latent, and its column of a table of ties."""
EVERY = "all"
"""The class that stands for all latents."""


@dataclass(frozen=True)
class _Counts:
    """What was counted at one hookpoint with one kind of SAE.

    Attributes:
        hits: By arm, measure and class.
        trained: Name of the trained arm.
        controls: Names of the others.
    """

    hits: Mapping[tuple[str, str, str], Counted]
    trained: str
    controls: tuple[str, ...]


def ties_table(plan: Plan, store: Store) -> Any:
    """Return the table `ties` of a trial; without an SAE that was asked it has no rows."""
    asked = {place: step for place, step in plan.ties.items() if not refusal(store.path(step))}
    used = {place: step for place, step in plan.use.items() if not refusal(store.path(step))}
    arms = tie_arms(plan.spec)
    found: dict[tuple[str, str], dict[tuple[str, str, str], list[tuple[int, int]]]] = {}
    for place in plan.tied_places:
        step, name = (asked.get(place), "ties") if place in plan.ties else (used.get(place), "use")
        if step is None:
            continue
        table = read_table(store.path(step) / f"{name}.parquet")
        latents = read_table(store.path(plan.profile[place]) / "latents.parquet")
        table = table.merge(latents[["latent", "class"]], on="latent", how="left")
        cell = found.setdefault((place[1], place[2]), defaultdict(list))
        for key, counted in _counted(place, table, plan.spec.circuits.level):
            cell[key].append(counted)
    rows = []
    for (hookpoint, sae), cell in found.items():
        hits = {
            key: Counted(tuple(h for h, _ in x), tuple(n for _, n in x)) for key, x in cell.items()
        }
        controls = tuple(arm for arm in arms if arm != plan.spec.trained_arm)
        counts = _Counts(hits, plan.spec.trained_arm, controls)
        rows += [
            {"hookpoint": hookpoint, "sae": sae} | row for row in _rows(counts, _lacking(plan))
        ]
    return pandas.DataFrame(rows) if rows else SCHEMAS["ties"].empty()


def _counted(
    place: Place, table: Any, level: float
) -> Iterator[tuple[tuple[str, str, str], tuple[int, int]]]:
    """Yield arm, measure and class, with how many latents have the property and how many were judged."""
    judged = table[np.isfinite(table["tied"].to_numpy(np.float64))]
    for measure, column in MEASURES.items():
        values = judged[column].to_numpy(np.float64)
        has = values > 0 if measure == "tied" else values <= level
        yield (place[0].arm, measure, EVERY), (int(has.sum()), len(has))
        if measure == "tied":
            kinds = judged["class"].to_numpy(object)
            for kind in judged["class"].dropna().unique():
                of_kind = kinds == kind
                yield (
                    (place[0].arm, measure, str(kind)),
                    (int(has[of_kind].sum()), int(of_kind.sum())),
                )


def _rows(counts: _Counts, lacking: Sequence[str]) -> Iterator[dict[str, Any]]:
    own = {key: between(counted) for key, counted in counts.hits.items()}
    dispersed = {key: steadied(one, _alike(own, key[1])) for key, one in own.items()}
    for (arm, measure, kind), counted in counts.hits.items():
        # classes are too small to tell: they have the dispersion of all latents of their arm
        over = dispersed[arm, measure, EVERY]
        yield _row("share", arm, None, measure, kind) | _share(counted, over)
    for control in counts.controls:
        for arm, measure, kind in counts.hits:
            pair = (counts.trained, measure, kind), (control, measure, kind)
            if arm == counts.trained and pair[1] in counts.hits:
                overs = [dispersed[one, measure, EVERY] for one in (counts.trained, control)]
                both = [counts.hits[key] for key in pair]
                yield _row("contrast", arm, control, measure, kind) | _contrast(both, overs)
        for measure in MEASURES:
            if (control, measure, EVERY) in counts.hits:
                others = {key: one for key, one in own.items() if key[0] != control}
                over = steadied(Dispersion(float("nan"), 0.0), _alike(others, measure))
                halves = _halves(counts.hits[control, measure, EVERY])
                row = _row("aa", control, control, measure, EVERY)
                yield row | (
                    _contrast(halves, [over, over])
                    if halves
                    else {"reason": "one re-draw: no A/A; give model_seeds two"}
                )
    for reason in lacking:
        yield _row("contrast", counts.trained, None, "tied", EVERY) | {"reason": reason}


def _alike(own: Mapping[tuple[str, str, str], Dispersion], measure: str) -> list[Dispersion]:
    """Return the dispersions of all latents of every arm, in one measure."""
    return [one for (_, of, kind), one in own.items() if of == measure and kind == EVERY]


def _halves(counted: Counted) -> list[Counted]:
    """Return two halves of an arm's re-draws, as two arms; nothing where there is one re-draw."""
    half = len(counted.n) // 2
    if not half:
        return []
    return [Counted(counted.hits[a:b], counted.n[a:b]) for a, b in ((0, half), (half, 2 * half))]


def _row(comparison: str, arm: str, control: str | None, measure: str, kind: str) -> dict[str, Any]:
    named = {"comparison": comparison, "arm": arm, "control": control, "measure": measure}
    numbers = dict.fromkeys(("value", "low", "high", "dispersion"), np.nan)
    counts = dict.fromkeys(("n_latents", "n_saes", "control_latents", "control_saes"), 0)
    return named | {"class": kind} | numbers | counts | {"reason": None}


def _share(counted: Counted, over: Dispersion) -> dict[str, Any]:
    n, saes = sum(counted.n), len(counted.n)
    found = {"n_latents": n, "n_saes": saes, "dispersion": over.ratio}
    if not n:
        return found | {"reason": "no latent was judged"}
    return found | interval(counted, over)._asdict()


def _contrast(both: Sequence[Counted], overs: Sequence[Dispersion]) -> dict[str, Any]:
    first, second = both
    found = {
        "n_latents": sum(first.n),
        "n_saes": len(first.n),
        "control_latents": sum(second.n),
        "control_saes": len(second.n),
    }
    if not (sum(first.n) and sum(second.n)):
        return found | {"reason": "no latent was judged in one of the two"}
    ends = [interval(one, over) for one, over in zip(both, overs, strict=True)]
    return found | difference(*ends)._asdict()


def _lacking(plan: Plan) -> list[str]:
    """Return a sentence for each kind of re-draw that the trial lacks or was not asked of."""
    found = re_draws(plan.spec)
    said = {
        False: "the trial has no re-draw of all weights with its embeddings: add "
        "arms.redraw.control = 'redraw'",
        True: "the trial has no re-draw that keeps the embeddings: add arms.keep.control = 'redraw', "
        "arms.keep.keep = ['embeddings', 'unembedding']",
    }
    lacking = []
    for keeps, sentence in said.items():
        if keeps not in found:
            lacking.append(sentence)
        elif found[keeps] not in tie_arms(plan.spec):
            lacking.append(f"circuits.arms leaves {found[keeps]} out")
    return lacking
