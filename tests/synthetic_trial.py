"""Tables of a trial that never ran, for tests of what reads tables.

Every table has the columns of its schema and passes its check; metrics and classes are those of the
package. Nothing here is a measurement. `write_trial` puts the files of a trial folder on disk; the same
arguments give the same bytes. `FACTORIAL` are the arms of a trial with every kind of control.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sae_placebo.core.store import read_json, write_json
from sae_placebo.core.tables import SCHEMAS
from sae_placebo.core.trial_files import FORMAT, with_tables
from sae_placebo.latents.classes.classification import CLASS_NAMES
from sae_placebo.stats.designs import ArmParts, designs, quads
from sae_placebo.trial.record import EVERY_METRIC
from synthetic_use import use_tables

HOOKPOINT = "resid_post.3"
SAE = "topk-k32-d2048"
WORDS = [
    "the", "of", "and", "to", "in", "a", "is", "that", "for", "was", "on", "with", "as", "by",
    "at", "from", "his", "an", "were", "are", "which", "this", "be", "had", "not", "or", "have",
    "one", "it", "but", "all", "their", "new", "also", "two", "first", "who", "been", "after",
    "other", "time", "when", "some", "more",
]  # fmt: skip
EVIL = "</script><img src=x onerror=alert(1)>"
KEEP = ["embeddings", "unembedding"]
# each arm's parts, and how far its values lie from the trained model's (0) to a placebo's (1)
FACTORIAL: Mapping[str, tuple[dict[str, Any], float]] = {
    "trained": ({"control": {"kind": "trained"}}, 0.0),
    "redraw": ({"control": {"kind": "redraw", "keep": []}}, 1.0),
    "redraw_keep_embeddings": ({"control": {"kind": "redraw", "keep": KEEP}}, 0.7),
    "redraw_embeddings": ({"control": {"kind": "redraw_embeddings"}}, 0.6),
    "init": ({"control": {"kind": "init"}}, 0.95),
    "revision": ({"control": {"kind": "revision", "revision": "step512"}}, 0.5),
    "permute": ({"control": {"kind": "permute"}}, 0.9),
    "spectrum": ({"control": {"kind": "spectrum"}}, 0.8),
    "cascade_1": ({"control": {"kind": "cascade", "last": 1}}, 0.1),
    "cascade_2": ({"control": {"kind": "cascade", "last": 2}}, 0.35),
    "cascade_4": ({"control": {"kind": "cascade", "last": 4}}, 0.65),
    "noise_per_type": ({"control": {"kind": "noise_embeddings", "per": "type"}}, 0.85),
    "shuffle": ({"control": {"kind": "trained"}, "data": {"kind": "shuffle_tokens"}}, 0.4),
    "redraw_shuffle": (
        {"control": {"kind": "redraw", "keep": []}, "data": {"kind": "shuffle_tokens"}},
        1.0,
    ),
    "frozen_decoder": (
        {"control": {"kind": "trained"}, "dictionary": {"kind": "frozen_decoder", "init": "cov"}},
        0.3,
    ),
    "pca": ({"control": {"kind": "trained"}, "dictionary": {"kind": "pca"}}, 0.45),
}


@dataclass
class Settings:
    """What the made-up trial holds."""

    arms: tuple[str, ...] = ("trained", "redraw", "redraw_keep_embeddings")
    model_seeds: int = 2
    sae_seeds: int = 2
    latents: int = 400
    kept_per_sae: int = 30
    passages: int = 5
    passage_tokens: int = 64
    hookpoints: tuple[str, ...] = (HOOKPOINT,)
    token: str | None = None
    document: str | None = None
    drop: tuple[str, ...] = field(default_factory=tuple)
    kinds: Mapping[str, tuple[dict[str, Any], float]] = field(default_factory=dict)

    @classmethod
    def every_control(cls, **rest: Any) -> Settings:
        """Return a trial with an arm of every kind of control."""
        return cls(arms=tuple(FACTORIAL), kinds=FACTORIAL, **rest)

    @property
    def parts(self) -> dict[str, ArmParts]:
        """What each arm changes."""
        return {
            arm: ArmParts.of(p["control"], p.get("data"), p.get("dictionary"))
            for arm, (p, _) in self.kinds.items()
        }


def _metric(name: str, high: float, low: float, half: float) -> Level:
    """Return what the package says of a metric, with made-up levels."""
    one = EVERY_METRIC[name]
    return name, one.unit, one.better, one.null, high, low, half


Level = tuple[str, str, str, str, float, float, float]
# the share of latents in each class, of the trained arm and of a placebo, and the half-width of the
# effect; the other classes share what is left
_MIX = {
    **{"dead": (0.05, 0.07, 0.03), "ultra_rare": (0.03, 0.02, 0.02), "dense": (0.02, 0.05, 0.01)},
    **{"single_token": (0.22, 0.58, 0.05), "token_family": (0.13, 0.06, 0.03)},
    "unexplained": (0.44, 0.11, 0.05),
}
_LEFT = 0.11 / (len(CLASS_NAMES) - len(_MIX))
SHARES = {name: _MIX.get(name, (_LEFT, _LEFT, 0.01)) for name in CLASS_NAMES}
# metric, unit, better, null text, arm level, control level, half-width of the effect
METRICS: tuple[Level, ...] = (
    _metric("median_density", 0.021, 0.033, 0.002),
    _metric("explained_variance", 0.79, 0.67, 0.02),
    _metric("explained_variance_above_gaussian", 0.55, 0.12, 0.06),
    _metric("lookup_relative_explained_variance", 0.31, 0.02, 0.05),
    _metric("mean_token_entropy_bits", 4.1, 1.9, 0.4),
    _metric("token_entropy_share_of_null", 0.6, 0.3, 0.06),
    _metric("sae_bits", 310.0, 380.0, 12.0),
    _metric("seed_mmcs", 0.4, 0.41, 0.03),
    *(_metric(f"share_{name}", *SHARES[name]) for name in CLASS_NAMES),
)
COVERAGE: tuple[Level, ...] = (
    _metric("coverage_token", 0.81, 0.78, 0.03),
    _metric("coverage_window", 0.55, 0.41, 0.04),
    _metric("coverage_context", 0.42, 0.19, 0.05),
)
LABELS = {
    "token": ("kind.keyword", "kind.operator", "kind.number", "bracket.open"),
    "window": ("role.call_target", "role.attribute", "line.first_token"),
    "context": ("inside.loop", "inside.docstring", "role.reuse", "inside.class", EVIL),
    "rare": ("inside.decorator",),
}


def _metrics(settings: Settings) -> tuple[Level, ...]:
    return (*METRICS, *COVERAGE) if settings.kinds else METRICS


def _level(settings: Settings, arm: str, high: float, low: float) -> float:
    """Return an arm's value between the trained model's and a full placebo's."""
    distance = settings.kinds[arm][1]
    return (1 - distance) * high + distance * low


def _seeds(settings: Settings, arm: str) -> list[int | None]:
    """The trained model is drawn once, without a seed; so is what no control draws."""
    given = arm == settings.arms[0]
    if settings.kinds:
        parts = settings.parts[arm]
        given = parts.kind in ("trained", "revision") and parts.data is None
    return [None] if given else [*range(settings.model_seeds)]


def _whole_numbers(table: pd.DataFrame) -> pd.DataFrame:
    seeds = ["model_seed", "sae_seed", *(["latent"] if "latent" in table else [])]
    return table.astype(dict.fromkeys(seeds, "Int64"))


def _rng(*names: object) -> np.random.Generator:
    return np.random.default_rng([ord(c) for c in "/".join(map(str, names))])


def _card(i: int, seed: int) -> dict[str, Any]:
    values = {
        "residual_norm": (41.2 - 9.5 * i + 0.3 * seed, "model units"),
        "block_to_embedding_ratio": (3.4 - 1.1 * i + 0.02 * seed, "ratio"),
        "token_r2": (0.31 + 0.3 * i, "share of variance"),
        "participation_ratio": (38.5 + 60.0 * (i == 1), "dimensions"),
        "attention_entropy": (2.2 + 1.9 * (i > 0), "nats"),
    }
    card: dict[str, Any] = {
        key: {"value": value, "unit": unit, "n": 16384, "reason": None}
        for key, (value, unit) in values.items()
    }
    card["attention_entropy_max"] = {
        "value": None, "unit": "nats", "n": 0, "reason": "attention weights are not returned"
    }  # fmt: skip
    return card


def trial_json(settings: Settings) -> dict[str, Any]:
    kinds = ["trained", "redraw", "redraw"]
    arms: dict[str, Any] = {}
    for i, arm in enumerate(settings.arms):
        control = {"kind": kinds[min(i, 2)]} | ({"keep": ["embeddings"]} if i == 2 else {})
        extra: dict[str, Any] = {}
        if settings.kinds:
            given = settings.kinds[arm][0]
            control = given["control"]
            extra = {"data": given.get("data"), "dictionary": given.get("dictionary")}
        records = [
            {
                "model_seed": seed,
                "recipe": {
                    "control": control,
                    "seed": 0,
                    "model_seed": seed or 0,
                    "touched": [] if i == 0 else [f"layers.{j}.mlp.weight" for j in range(9)],
                    "kept": {"embed_tokens.weight": "embeddings"} if i == 2 else {},
                    "notes": ["lm_head.weight is tied to embed_tokens.weight: drawn once"],
                    "weight_hash": "0" * 64,
                },
                "diagnostics": {place: _card(i, seed or 0) for place in settings.hookpoints},
            }
            for seed in _seeds(settings, arm)
        ]
        arms[arm] = {"control": control, "model_seeds": [*_seeds(settings, arm)]} | extra
        arms[arm]["records"] = records
    return {
        "name": "synthetic",
        "format": FORMAT,
        "spec": {
            "name": "synthetic",
            "model": {"id": "example/tiny-lm", "revision": None},
            "hookpoints": [*settings.hookpoints],
            "saes": {SAE: {"kind": "topk", "k": 32, "d_sae": 2048}},
            "training": {"tokens": 4_000_000, "batch_tokens": 4096, "dtype": "float32"},
            "sae_seeds": [*range(settings.sae_seeds)],
            "statistics": {"confidence": 0.95, "replicates": 2000},
        },
        "arms": arms,
        "text": {
            "source": "made-up stories",
            "context_tokens": 128,
            "n_documents": 5200,
            "n_tokens": 4_300_000,
            "splits": {
                "train": {"n_documents": 5000, "n_tokens": 4_000_000},
                "calibration": {"n_documents": 40, "n_tokens": 32_768},
                "heldout": {"n_documents": 160, "n_tokens": 120_000},
            },
        },
        "masks": {
            "train": {
                "rule": "position 0, padding, norm above 10 x median",
                "position_0": 31250,
                **{
                    f"outlier_norm {place} {arm}": 4104 if i == 0 else 0
                    for place in settings.hookpoints
                    for i, arm in enumerate(settings.arms)
                },
            },
            "heldout": {
                "rule": "position 0, padding, norm above 10 x median",
                "position_0": 937,
                "padding": 20111,
                f"outlier_norm {settings.hookpoints[0]} any arm (left out of all)": 212,
            },
        },
        "precision": {
            "fast": True,
            "fast_error": 4.04e-7,
            "default_error": 2.53e-7,
            "bound": 2e-6,
            "unit": "relative root mean square",
        },
        "model_note": "dequantized from 4-bit",
        "environments": [{"versions": {"torch": "2.13.0"}, "threads": 2}],
        "versions": {"sae_placebo": "0.1.0", "torch": "2.13.0"},
        "seconds": {"harvest": 41.0, "train": 118.4},
    }


def effects_table(settings: Settings) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    trained = settings.arms[0]
    contrasts = [(trained, control) for control in settings.arms[1:]]
    if settings.kinds:
        parts = settings.parts
        contrasts += [pair for design in designs(parts) for pair in design.contrasts(parts)]
    elif len(settings.arms) > 2:
        contrasts.append((settings.arms[2], settings.arms[1]))
    for place in settings.hookpoints:
        for arm, control in dict.fromkeys(contrasts):
            for metric, unit, better, null, high_level, low_level, half in _metrics(settings):
                rng = _rng("effect", place, arm, control, metric)
                a = high_level if arm == trained else 0.7 * low_level + 0.3 * high_level
                c = low_level if control == settings.arms[1] else 0.7 * low_level + 0.3 * high_level
                if settings.kinds:
                    a = _level(settings, arm, high_level, low_level)
                    c = _level(settings, control, high_level, low_level)
                effect = a - c + 0.1 * half * rng.normal()
                a, h = c + effect, half / 1.4
                aa = 0.3 * half * rng.normal()
                row = {
                    "metric": metric, "hookpoint": place, "sae": SAE, "arm": arm,
                    "control": control, "effect": effect, "low": effect - half,
                    "high": effect + half, "se": half / 2, "df": 3.2, "null": 0.0, "unit": unit,
                    "better": better, "arm_value": a, "arm_low": max(0, a - h), "arm_high": a + h,
                    "control_value": c, "control_low": max(0, c - h), "control_high": c + h,
                    "metric_null": null, "n_documents": 160, "n_tokens": 118_000,
                    "n_sae_seeds": settings.sae_seeds,
                    "n_arm_models": len(_seeds(settings, arm)),
                    "n_control_models": len(_seeds(settings, control)), "reason": None,
                    "aa_effect": aa, "aa_low": aa - 0.8 * half, "aa_high": aa + 0.8 * half,
                    "aa_control": f"{control}: model seed 0 and 1", "aa_reason": None,
                }  # fmt: skip
                if metric == "sae_bits":
                    row |= {"low": None, "high": None, "se": None, "df": None}
                    row |= {"reason": "one document holds 96% of the loss"}
                if metric == "lookup_relative_explained_variance" and control == settings.arms[1]:
                    row |= dict.fromkeys(("effect", "low", "high", "arm_value", "arm_low"))
                    row |= dict.fromkeys(("arm_high", "aa_effect", "aa_low", "aa_high"))
                    row |= {"reason": "no token occurs twice in the training split"}
                    row |= {"aa_reason": "one model re-draw"}
                rows.append(row)
    return pd.DataFrame(rows)


def _class_mix(settings: Settings, arm: str) -> list[float]:
    side = 0 if arm == settings.arms[0] else 1
    return [share[side] for share in SHARES.values()]


def _latent_row(kind: str, rng: np.random.Generator, token: str | None) -> dict[str, Any]:
    if kind == "dead":
        return {"class": kind, "n_active": 0, "density": 0.0}
    top_mass = {"single_token": 0.95, "token_family": 0.6, "dense": 0.05}.get(kind, 0.2)
    entropy = {"single_token": 0.5, "token_family": 1.8, "dense": 8.5}.get(kind, 4.6)
    bits = float(max(0.0, entropy + 0.5 * rng.normal()))
    n = 2 if kind == "ultra_rare" else int(rng.integers(30, 4000))
    n = 30_000 + n if kind == "dense" else n
    null_bits = min(float(np.log2(n) * 0.92), 9.4 + 0.1 * float(rng.normal()))
    peak = float(rng.gamma(4, 2))
    row: dict[str, Any] = {
        "class": kind, "n_active": n, "density": n / 118_000,
        "top_token": token or f" {WORDS[int(rng.integers(len(WORDS)))]}", "top_token_mass": top_mass,
        "top_token_recall": float(rng.uniform(0.2, 1)), "mean_activation": peak / 4,
        "family_mass": min(1.0, top_mass * 1.1), "max_activation": peak,
    }  # fmt: skip
    if kind != "ultra_rare":
        row |= {
            "token_entropy_bits": min(bits, null_bits), "n_effective": n / 2.0,
            "token_entropy_null_bits": null_bits, "effective_tokens": 2.0**bits,
        }  # fmt: skip
    return row


def latents_table(settings: Settings) -> pd.DataFrame:
    rows = []
    for place in settings.hookpoints:
        for arm in settings.arms:
            for model_seed in _seeds(settings, arm):
                for sae_seed in range(settings.sae_seeds):
                    rng = _rng("latents", place, arm, model_seed, sae_seed)
                    kinds = rng.choice(CLASS_NAMES, settings.latents, p=_class_mix(settings, arm))
                    for latent, kind in enumerate(kinds):
                        key = {
                            "arm": arm, "control_kind": "redraw", "model_seed": model_seed,
                            "sae_seed": sae_seed, "hookpoint": place, "sae": SAE,
                            "latent": latent, "n_tokens": 118_000,
                        }  # fmt: skip
                        rows.append(key | _latent_row(str(kind), rng, settings.token))
    return _whole_numbers(pd.DataFrame(rows))


def passages_table(settings: Settings, latents: pd.DataFrame) -> pd.DataFrame:
    rows = []
    keys = ["arm", "model_seed", "sae_seed", "hookpoint", "sae"]
    for key, group in latents[latents["n_active"] > 0].groupby(keys, sort=False, dropna=False):
        named = dict(zip(keys, key, strict=True))
        if named["sae_seed"] != 0:
            continue
        kept = group.sample(min(settings.kept_per_sae, len(group)), random_state=0)
        for latent, top, peak_value in kept[["latent", "top_token", "max_activation"]].itertuples(
            index=False
        ):
            rng = _rng("passages", *key, latent)
            for rank in range(settings.passages):
                n, peak = settings.passage_tokens, int(rng.integers(4, settings.passage_tokens))
                tokens = [f" {WORDS[i]}" for i in rng.integers(len(WORDS), size=n)]
                tokens[0], tokens[peak], tokens[max(0, peak - 3)] = "Once", top, "\n"
                values = np.where(rng.random(n) < 0.08, rng.random(n) * peak_value * 0.6, 0.0)
                values[peak] = peak_value * (1 - 0.1 * rank)
                rows.append(
                    named | {
                        "latent": latent, "rank": rank,
                        "document": settings.document or f"stories/{rng.integers(999):03d}.txt",
                        "tokens": tokens, "activations": [float(v) for v in values], "peak": peak,
                    }
                )  # fmt: skip
    return _whole_numbers(pd.DataFrame(rows))


def measurements_table(settings: Settings) -> pd.DataFrame:
    rows = []
    for place in settings.hookpoints:
        for arm in settings.arms:
            for model_seed in _seeds(settings, arm):
                for sae_seed in range(settings.sae_seeds):
                    rng = _rng("measure", place, arm, model_seed, sae_seed)
                    for metric, unit, _, _, high_level, low_level, half in _metrics(settings):
                        level = high_level if arm == settings.arms[0] else low_level
                        missing = (
                            metric == "lookup_relative_explained_variance"
                            and arm != settings.arms[0]
                        )
                        rows.append({
                            "arm": arm, "model_seed": model_seed, "sae_seed": sae_seed,
                            "hookpoint": place, "sae": SAE, "latent": None, "metric": metric,
                            "value": None if missing else level + 0.2 * half * rng.normal(),
                            "unit": unit, "null_value": 0.0, "n": 118_000,
                            "reason": "no token occurs twice" if missing else None,
                        })  # fmt: skip
    return _whole_numbers(pd.DataFrame(rows))


def coverage_table(settings: Settings) -> pd.DataFrame:
    """Return a line per SAE and label; text that is rewritten has no labels."""
    rows: list[dict[str, Any]] = []
    levels = {name[9:]: (high, low) for name, *_, high, low, _ in COVERAGE} | {"rare": (0.3, 0.3)}
    for place in settings.hookpoints:
        for arm in settings.arms:
            if settings.parts[arm].data is not None:
                continue
            for model_seed in _seeds(settings, arm):
                for sae_seed in range(settings.sae_seeds):
                    for group, labels in LABELS.items():
                        for i, label in enumerate(labels):
                            rng = _rng("coverage", place, arm, model_seed, sae_seed, label)
                            f1 = _level(settings, arm, *levels[group]) + 0.03 * rng.normal()
                            none = group == "rare"
                            rows.append({
                                "arm": arm, "model_seed": model_seed, "sae_seed": sae_seed,
                                "hookpoint": place, "sae": SAE, "label": label, "group": group,
                                "f1": None if none else f1 - 0.04 * i,
                                "latent": None if none else int(rng.integers(2048)),
                                "threshold": None if none else 0.5,
                                "fit_f1": None if none else f1 + 0.02,
                                "lookup_f1": 0.9 if group == "token" else 0.2,
                                "bigram_f1": 0.9 if group == "token" else 0.3,
                                "window_f1": 0.92 if group != "context" else 0.33,
                                "base_rate": 0.02 * (i + 1), "n_positive": 2400 * (i + 1),
                                "n_tokens": 118_000,
                                "reason": "12 positive tokens: too rare" if none else None,
                            })  # fmt: skip
    found = pd.DataFrame(rows)
    return _whole_numbers(found) if len(found) else found


def interactions_table(settings: Settings) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for design, cells in quads(settings.parts).items():
        for place in settings.hookpoints:
            for metric, unit, _, _, high, low, half in _metrics(settings):
                levels = [_level(settings, arm, high, low) for arm in cells]
                effect = levels[0] - levels[1] - levels[2] + levels[3]
                bare = metric == "sae_bits"
                rows.append({
                    "design": design, "metric": metric, "hookpoint": place, "sae": SAE,
                    "effect": effect, "low": None if bare else effect - 1.5 * half,
                    "high": None if bare else effect + 1.5 * half, "se": half, "df": 3.0,
                    "null": 0.0, "unit": unit, "cells": list(cells), "n_documents": 160,
                    "n_tokens": 118_000, "n_sae_seeds": settings.sae_seeds,
                    "n_models": [len(_seeds(settings, arm)) for arm in cells],
                    "reason": "one document holds 96% of the loss" if bare else None,
                })  # fmt: skip
    return pd.DataFrame(rows)


def matching_table(settings: Settings) -> pd.DataFrame:
    """Every arm is matched but the last, of three or more, which has 12% fewer active latents."""
    rows = []
    for place in settings.hookpoints:
        for i, arm in enumerate(settings.arms):
            off = i > 1 and i == len(settings.arms) - 1
            l0 = 31.9 * (0.88 if off else 1 - 0.001 * i)
            rows.append(
                {
                    "arm": arm,
                    "hookpoint": place,
                    "sae": SAE,
                    "l0": l0,
                    "l0_least": l0 - 0.2,
                    "l0_most": l0 + 0.2,
                    "n_saes": settings.sae_seeds * len(_seeds(settings, arm)),
                    "n_tokens": 65_536,
                    "target": 32.0,
                    "relative_to_target": l0 / 32 - 1,
                    "relative_to_trained": l0 / 31.9 - 1,
                    "tolerance": 0.05,
                    "matched": not off,
                    "reason": None,
                }
            )
    return pd.DataFrame(rows).astype({"matched": "boolean"})


_STAND_INS: Mapping[str, Any] = {
    **{"control_kind": "redraw", "origin": "undetermined", "is_arbitrary": False},
    "evidence": "no placebo read the same tokens",
    **{"layer": 1, "head": -1, "above_both": False, "family": "made up"},
}
"""What columns hold that may not be null and that no table here invents anything for."""


def framed(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with every column of its schema, which it passes; what was not invented is null."""
    schema = SCHEMAS[name]
    if not len(table):
        return schema.empty()
    table = table.reset_index(drop=True)
    for column in schema.columns:
        if column.name not in table and not column.optional:
            value = None if column.nullable else _STAND_INS[column.name]
            table[column.name] = pd.Series([value] * len(table), dtype=object).infer_objects()
    table = table[[*schema.names]].astype(
        {column.name: "Int64" for column in schema.columns if column.kind == "int"}
    )
    schema.check(table)
    return table


def write_trial(folder: Path, settings: Settings | None = None) -> Path:
    """Return `folder` holding the made-up trial; `settings.drop` names tables to leave out."""
    settings = settings or Settings()
    folder.mkdir(parents=True, exist_ok=True)
    latents = latents_table(settings)
    tables = {
        "effects": effects_table(settings),
        "latents": latents,
        "measurements": measurements_table(settings),
        "passages": passages_table(settings, latents),
        "matching": matching_table(settings),
    }
    if settings.kinds:
        tables["coverage"] = coverage_table(settings)
        tables["interactions"] = interactions_table(settings)
    found, told = use_tables(latents, tables["passages"], settings.arms[:2])
    tables |= found
    for name, schema in SCHEMAS.items():
        if name not in settings.drop:
            table = framed(name, tables.get(name, schema.empty()))
            table.to_parquet(folder / f"{name}.parquet", index=False)
    if "trial" not in settings.drop:
        (folder / "trial.json").write_text(json.dumps(trial_json(settings) | {"use": told}))
    return folder


def seal_trial(folder: Path) -> Path:
    """Return a trial's folder whose record holds the hashes of its tables, as one that ran does."""
    path = folder / "trial.json"
    write_json(path, with_tables(read_json(path), folder))
    return folder
