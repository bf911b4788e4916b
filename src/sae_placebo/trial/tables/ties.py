"""The table of ties to circuitry: shares per arm, the trained one against each re-draw, and A/A."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    pooled,
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
class Counts:
    """What was counted at one hookpoint with one kind of SAE.

    Attributes:
        hits: By arm, measure and class.
        trained: Name of the trained arm.
        controls: Names of the others.
        dispersions: By measure, the arm and the over-dispersion of every share of all latents in the trial.
    """

    hits: Mapping[tuple[str, str, str], Counted]
    trained: str
    controls: tuple[str, ...]
    dispersions: Mapping[str, Sequence[tuple[str, Dispersion]]]

    def over(self, measure: str, without: str = "") -> Dispersion:
        """Return the over-dispersion of a measure in a trial, without that of one arm."""
        return pooled([one for arm, one in self.dispersions[measure] if arm != without])


def ties_table(plan: Plan, store: Store) -> Any:
    """Return the table `ties` of a trial; without an SAE that was asked it has no rows."""
    asked = {place: step for place, step in plan.ties.items() if not refusal(store.path(step))}
    used = {place: step for place, step in plan.use.items() if not refusal(store.path(step))}
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
    cells = {
        place: {
            key: Counted(tuple(h for h, _ in x), tuple(n for _, n in x)) for key, x in cell.items()
        }
        for place, cell in found.items()
    }
    dispersions = dispersions_of(cells.values())
    controls = tuple(arm for arm in tie_arms(plan.spec) if arm != plan.spec.trained_arm)
    rows = []
    for (hookpoint, sae), hits in cells.items():
        counts = Counts(hits, plan.spec.trained_arm, controls, dispersions)
        rows += [
            {"hookpoint": hookpoint, "sae": sae} | row for row in rows_of(counts, lacking(plan))
        ]
    return pandas.DataFrame(rows) if rows else SCHEMAS["ties"].empty()


def dispersions_of(
    cells: Iterable[Mapping[tuple[str, str, str], Counted]],
) -> dict[str, list[tuple[str, Dispersion]]]:
    """Return by measure the arm and the over-dispersion of every share of all latents."""
    found: dict[str, list[tuple[str, Dispersion]]] = {measure: [] for measure in MEASURES}
    for cell in cells:
        for (arm, measure, kind), counted in cell.items():
            if kind == EVERY:
                found[measure].append((arm, between(counted)))
    return found


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


def rows_of(counts: Counts, without: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of one place: shares, contrasts, A/A, and a row for each kind that lacks.

    Args:
        counts: What was counted.
        without: Why there is no contrast with a kind of re-draw, a sentence each.
    """
    for (arm, measure, kind), counted in counts.hits.items():
        yield _row("share", arm, None, measure, kind) | _share(counted, counts.over(measure))
    for control in counts.controls:
        for arm, measure, kind in counts.hits:
            if arm == counts.trained and (control, measure, kind) in counts.hits:
                both = [counts.hits[one, measure, kind] for one in (counts.trained, control)]
                contrast = _contrast(both, counts.over(measure))
                yield _row("contrast", arm, control, measure, kind) | contrast
        for measure in MEASURES:
            if (control, measure, EVERY) in counts.hits:
                halves = _halves(counts.hits[control, measure, EVERY])
                aa = {"reason": "one re-draw, so no A/A: give model_seeds two"}
                if halves:  # what is compared must not say how much it varies
                    aa = _contrast(halves, counts.over(measure, without=control))
                yield _row("aa", control, control, measure, EVERY) | aa
    for reason in without:
        yield _row("contrast", counts.trained, None, "tied", EVERY) | {"reason": reason}


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


def _contrast(both: Sequence[Counted], over: Dispersion) -> dict[str, Any]:
    first, second = both
    found: dict[str, Any] = {
        "dispersion": over.ratio,
        "n_latents": sum(first.n),
        "n_saes": len(first.n),
        "control_latents": sum(second.n),
        "control_saes": len(second.n),
    }
    if not (sum(first.n) and sum(second.n)):
        return found | {"reason": "no latent was judged in one of the two"}
    return found | difference(*(interval(one, over) for one in both))._asdict()


def lacking(plan: Plan) -> list[str]:
    """Return a sentence for each kind of re-draw that the trial lacks or was not asked of."""
    found = re_draws(plan.spec)
    said = {
        False: "the trial has no re-draw of all weights with its embeddings: add "
        "arms.redraw.control = 'redraw'",
        True: "the trial has no re-draw that keeps the embeddings: add arms.keep.control = 'redraw', "
        "arms.keep.keep = ['embeddings', 'unembedding']",
    }
    sentences = []
    for keeps, sentence in said.items():
        if keeps not in found:
            sentences.append(sentence)
        elif found[keeps] not in tie_arms(plan.spec):
            sentences.append(f"circuits.arms leaves {found[keeps]} out")
    return sentences
