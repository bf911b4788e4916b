"""The findings about use and circuits are turned into tables and numbers that trials keep."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from sae_placebo.causal.circuits.readers import Readers
from sae_placebo.causal.circuits.spec import CircuitSpec
from sae_placebo.causal.circuits.ties import tied
from sae_placebo.causal.circuits.traces import KINDS
from sae_placebo.causal.circuits.writers import Writers
from sae_placebo.causal.examination import Examination
from sae_placebo.causal.use.control_directions import CONTROLS, PSEUDO
from sae_placebo.causal.use.firings import Firings
from sae_placebo.causal.use.null_test import costlier_share
from sae_placebo.causal.use.rule import USED, USES, sensitivity, used_beside
from sae_placebo.causal.use.sampling import share
from sae_placebo.causal.use.spec import UseSpec
from sae_placebo.core.lazy import pandas
from sae_placebo.core.store import read_json, write_json
from sae_placebo.core.tables import KEYS
from sae_placebo.core.tables.use import DIRECTIONS, READERS, WRITERS
from sae_placebo.stats.clustered_shares import Bounded, difference

LIMITS = tuple(float(x) for x in np.geomspace(1e-4, 1e-1, 13))
"""The sensitivity curve has a point at each of these smallest effects of interest."""
NAMES = ("use", "readers", "writers", "directions", "patched", "use_passages")
"""The tables of one SAE have these names; the last two are of latents that get a card."""


def write_use(
    draft: Path, found: Examination, spec: UseSpec, circuits: CircuitSpec, seed: int
) -> None:
    """Write one SAE's tables and `use.json` into a folder.

    Args:
        draft: The folder.
        found: What was found about the SAE.
        spec: How use was asked about.
        circuits: How many readers and writers are kept.
        seed: The trial's seed, for the bootstrap of shares.
    """
    tables = {
        "use": latent_rows(found, spec, circuits.level),
        "readers": reader_rows(found.readers, circuits.kept),
        "writers": writer_rows(found.writers, circuits.kept),
        "directions": direction_rows(found),
    }
    for name, table in tables.items():
        table.to_parquet(draft / f"{name}.parquet", index=False)
    write_json(draft / "use.json", record(found, spec, seed))


def read_use(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the tables by name, and the record."""
    tables = {name: pandas.read_parquet(folder / f"{name}.parquet") for name in NAMES}
    return tables, dict(read_json(folder / "use.json"))


def latent_rows(found: Examination, spec: UseSpec, level: float) -> pandas.DataFrame:
    """Return one row per latent of the SAE; what was not asked about one is null."""
    asked, measured, n = found.answer.asked, found.answer.measured, len(found.answer.measured.p)
    which = found.latents
    columns: dict[str, Any] = {"latent": np.arange(n)}
    verdict, reason = np.full(n, None, dtype=object), np.full(n, None, dtype=object)
    verdict[which] = np.array(USES, dtype=object)[found.answer.verdicts.verdict]
    reason[which] = found.answer.verdicts.reason
    weight, beats = np.full(n, np.nan), np.full(n, np.nan)
    weight[which], beats[which] = found.weights, found.answer.verdicts.beats_nulls
    survives = np.full(n, np.nan)
    survives[which] = measured.survives[which]
    columns |= {"use": verdict, "use_reason": reason, "use_weight": weight}
    for name, one in (("effect", measured.effect), ("beside", measured.beside)):
        columns |= {name: one.mean, f"{name}_low": one.low, f"{name}_high": one.high}
    q = np.full(n, np.nan)
    q[which] = found.answer.verdicts.q
    columns |= {
        "effect_resampled": asked.resampled.mean,
        "effect_documents": measured.effect.n.astype(np.float64),
        "null_effect": measured.null,
        "null_firings": _firings(asked.null_costs.firings, n),
        "effect_at_nulls": asked.own / asked.unit,
        "null_ratio": asked.ratio.mean,
        "null_ratio_low": asked.ratio.low,
        "null_ratio_high": asked.ratio.high,
        "use_p": asked.p,
        "use_p_effect": measured.effect.p_below(spec.least_effect),
        "use_q": q,
        "n_nulls": np.where(np.isfinite(asked.p), float(spec.nulls), np.nan),
        "beats_nulls": beats,
        "survives_joint": survives,
    }
    columns |= _absence_columns(found, spec) | _group_columns(found)
    if found.screen is not None:
        screen = found.screen
        columns |= {"screen": screen.phi / 2, "screen_ratio": screen.ratio, "screen_p": screen.p}
    else:
        columns |= dict.fromkeys(("screen", "screen_ratio", "screen_p"), np.full(n, np.nan))
    for i, kind in enumerate(KINDS):
        split = np.full(n, np.nan) if found.readers is None else found.readers.path_split[:, i]
        columns[f"path_{kind}"] = split
    columns |= _ties(found, n, level)
    return pandas.DataFrame(columns)


def _firings(firings: Firings, n: int) -> Any:
    """Return at how many firings each direction was ablated; NaN where at none."""
    counts = np.bincount(firings.sets, minlength=n).astype(np.float64)
    return np.where(counts > 0, counts, np.nan)


def _absence_columns(found: Examination, spec: UseSpec) -> dict[str, Any]:
    """Return what was measured of each latent at firings drawn uniformly, and what that would take."""
    measured, n = found.answer.measured, len(found.answer.measured.p)
    absence = measured.absence
    needed = np.full(n, np.nan)
    few = measured.n_active[found.latents] < spec.uniform_firings
    rates = np.maximum(measured.n_active[found.latents][few], 1) / found.n_tokens
    needed[found.latents[few]] = np.ceil(spec.uniform_firings / rates)
    return {
        "uniform_firings": np.where(absence.n_firings > 0, absence.n_firings, np.nan),
        "uniform_effect_high": absence.effect.high,
        "uniform_ratio_high": absence.ratio.high,
        "last_in_high": absence.last.high,
        "unseen_share": absence.unseen,
        "tokens_needed": needed,
    }


def _group_columns(found: Examination) -> dict[str, Any]:
    """Return each latent's group of related latents, and what was found when it was asked as one."""
    groups = found.answer.groups
    of, inside = groups.of_direction, groups.of_direction >= 0
    names = ("group", "group_size", "group_effect", "group_effect_low", "group_p", "group_used")
    columns: dict[str, Any] = {name: np.full(len(of), np.nan) for name in names}
    if groups.asked is None:
        return columns
    by_group = (
        np.arange(len(groups.members)),
        np.array([len(members) for members in groups.members]),
        groups.asked.effect.mean,
        groups.asked.effect.low,
        groups.asked.p,
        groups.used,
    )
    for name, values in zip(names, by_group, strict=True):
        columns[name][inside] = np.asarray(values, dtype=np.float64)[of[inside]]
    return columns


def _ties(found: Examination, n: int, level: float) -> dict[str, Any]:
    """Return both p-values of each latent and whether it is tied; null without readers or writers."""
    if found.readers is None or found.writers is None:
        return dict.fromkeys(("written_p", "read_p", "tied"), np.full(n, np.nan))
    return asdict(tied(found.writers, found.readers, level))


def reader_rows(readers: Readers | None, kept: int) -> pandas.DataFrame:
    """Return the readers with the largest scores of each latent, with share and null percentile."""
    names = list(READERS.without(KEYS))
    if readers is None:
        return pandas.DataFrame(columns=names)
    total = np.nansum(readers.score, axis=1)
    known = np.flatnonzero(np.isfinite(readers.score).any(axis=1) & (total > 0))
    order = np.argsort(-np.nan_to_num(readers.score[known], nan=-1), axis=1, kind="stable")[
        :, :kept
    ]
    rows = []
    for latent, top in zip(known, order, strict=True):
        for rank, m in enumerate(top):
            rows.append(
                [
                    int(latent),
                    rank,
                    readers.names[m],
                    readers.kinds[m],
                    float(readers.score[latent, m] / total[latent]),
                    float(readers.signed[latent, m]),
                    float(readers.percentile[latent, m]),
                    int(readers.n[latent]),
                ]
            )
    return pandas.DataFrame(rows, columns=names)


def writer_rows(writers: Writers | None, kept: int) -> pandas.DataFrame:
    """Return the parts with the largest shares of each latent, with interval and nulls."""
    rows = []
    if writers is not None:
        order = np.argsort(-np.nan_to_num(writers.shares, nan=-np.inf), axis=1, kind="stable")[
            :, :kept
        ]
        for latent in np.flatnonzero([not why for why in writers.reasons]):
            for rank, part in enumerate(order[latent]):
                rows.append({"rank": rank} | writers.row(int(latent), int(part)))
    if not rows:
        return pandas.DataFrame(columns=list(WRITERS.without(KEYS)))
    return pandas.DataFrame(rows)


def direction_rows(found: Examination) -> pandas.DataFrame:
    """Return the main directions of the error, and control directions: effects and p-values."""
    parts = []
    for kind, asked in (("error", found.errors), *found.controls.items()):
        if asked is None:
            continue
        n = len(asked.p)
        variance = found.error_variance if kind == "error" else np.full(n, np.nan)
        parts.append(
            pandas.DataFrame(
                {
                    "kind": kind,
                    "index": np.arange(n),
                    "variance": variance,
                    "effect": asked.effect.mean,
                    "effect_low": asked.effect.low,
                    "effect_high": asked.effect.high,
                    "null_effect": asked.null / asked.unit,
                    "null_firings": np.bincount(asked.null_costs.firings.sets, minlength=n),
                    "effect_at_nulls": asked.own / asked.unit,
                    "p": asked.p,
                    "documents": asked.effect.n,
                }
            )
        )
    if not parts:
        return pandas.DataFrame(columns=list(DIRECTIONS.without(KEYS)))
    return pandas.concat(parts, ignore_index=True)


def record(found: Examination, spec: UseSpec, seed: int) -> dict[str, Any]:
    """Return the numbers about the SAE as a whole, for JSON; what is not known is null."""
    asked, groups = found.answer.asked, found.answer.groups
    shares = {}
    for i, name in enumerate(USES):
        shares[name] = _share(share(found.answer.verdicts.verdict == i, found.weights))
    curve = sensitivity(found.answer.measured, spec, np.array(LIMITS))
    return {
        "n_latents": len(found.latents),
        "n_firings": len(asked.ablated.firings),
        "n_visited": len(np.unique(asked.ablated.firings.tokens)),
        "full_swap_nats": _or_none(asked.unit),
        "shares": shares,
        "costlier": _costlier(found, seed),
        "groups": {"n": len(groups.members), "used": int(groups.used.sum())},
        "sensitivity": {
            "limits": list(LIMITS),
            **{name: [float(x) for x in curve[:, i]] for i, name in enumerate(USES)},
        },
        "joint": _joint(found),
        "worst": _worst(found),
        **{kind: _control(found, kind, spec, seed) for kind in CONTROLS},
        "reasons": found.reasons,
    }


def _joint(found: Examination) -> dict[str, Any] | None:
    joint = found.answer.joint
    if joint is None:
        return None
    return {
        "sizes": [int(x) for x in joint.sizes],
        "cost": [_or_none(x) for x in joint.cost],
        "low": [_or_none(x) for x in joint.low],
        "high": [_or_none(x) for x in joint.high],
        "full_nats": joint.full_joint_nats,
        "limit_nats": joint.limit,
        "survive": len(joint.s_star),
        "n_documents": joint.n_documents,
        "n_tokens": joint.n_tokens,
    }


def _worst(found: Examination) -> dict[str, Any] | None:
    worst = found.answer.worst
    if worst is None:
        return None
    return {
        "sizes": [int(x) for x in worst.sizes],
        "shares": [_or_none(x) for x in worst.shares],
        "holds": worst.holds,
        "survive": len(worst.s_star),
        "n_tokens": worst.n_tokens,
    }


def _costlier(found: Examination, seed: int) -> dict[str, Any]:
    """Return the share of latents that truly cost more than null directions; related ones go together."""
    which, of = found.latents, found.answer.groups.of_direction
    clusters = np.where(of >= 0, of, len(of) + np.arange(len(of)))[which]
    return _share(costlier_share(found.answer.asked.p[which], found.weights, clusters, seed))


def _control(found: Examination, kind: str, spec: UseSpec, seed: int) -> dict[str, Any] | None:
    """Return what the test finds of one kind of control directions, and what latents have beyond them.

    It is null where none were asked. Of pseudo-latents it is told as well how uniform their p-values are.
    """
    asked = found.controls.get(kind)
    if asked is None or not np.isfinite(asked.p).any():
        return None
    known = np.isfinite(asked.p)
    p = asked.p[known]
    verdicts, expected = found.answer.verdicts, asked.expected / asked.unit
    used = used_beside(found.answer.measured, asked.p, asked.effect, expected, spec)[known]
    own, latents = (
        Bounded(*share(*shared))
        for shared in ((used, np.ones(len(p))), (verdicts.verdict == USED, found.weights))
    )
    costlier = costlier_share(p, np.ones(len(p)), np.arange(len(p)), seed)
    told = {
        "n": len(p),
        "costlier": _share(costlier),
        "n_used": int(used.sum()),
        "used": _share(own),
        "margin": _share(difference(latents, own)),
    }
    return told | _uniform(p) if kind == PSEUDO else told


def _uniform(p: Float64[np.ndarray, " direction"]) -> dict[str, float]:
    """Return how uniform p-values are on directions that mean nothing."""
    from scipy.stats import kstest

    return {
        "below_5_percent": float((p <= 0.05).mean()),
        "below_half_percent": float((p <= 0.005).mean()),
        "ks_p": float(kstest(p, "uniform").pvalue),
    }


def _share(bounded: tuple[float, float, float]) -> dict[str, Any]:
    return dict(zip(("share", "low", "high"), map(_or_none, bounded), strict=True))


def _or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
