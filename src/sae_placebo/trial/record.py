"""The record of a trial: what was compared and how, as `trial.json` holds it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from sae_placebo.baselines import savings
from sae_placebo.core import precision
from sae_placebo.core.store import Store, read_json
from sae_placebo.data.rows import Rows
from sae_placebo.data.text import TextSpec
from sae_placebo.data.token_files import read_rows, read_text_facts
from sae_placebo.data.usable import usable_positions
from sae_placebo.latents.metrics import METRICS
from sae_placebo.latents.metrics import structure as structure_metrics
from sae_placebo.latents.metrics.base import Declared
from sae_placebo.models import loading as models
from sae_placebo.models.activation_files import outliers, read_calibrations, read_drawn
from sae_placebo.trial.given import read_given
from sae_placebo.trial.plan import ArmModel, Plan
from sae_placebo.trial.spec import TrialSpec
from sae_placebo.trial.table_files import read_table
from sae_placebo.trial.tables.audit import described_audits
from sae_placebo.trial.tables.use import use_record

EVERY_METRIC: Mapping[str, Declared] = {
    **METRICS.entries,
    **structure_metrics.DECLARED,
    **savings.DECLARED,
}
"""Every number about an SAE, by name, with its declaration, whichever stage it comes from."""

CONFIDENCE = 0.95
"""Share of trials in which an interval of the effects is to hold the true effect."""


def record(plan: Plan, store: Store) -> dict[str, Any]:
    """Return what was compared and how, as values that `trial.json` can hold.

    Args:
        plan: The trial, every step of which is done.
        store: The store that holds its artefacts.
    """
    spec = plan.spec
    rows = read_rows(store.path(plan.tokenize))
    arms: dict[str, Any] = {}
    for arm, controls in spec.arms.items():
        redraws = [ArmModel(arm, seed) for seed in spec.seeds_of(arm)]
        arms[arm] = {
            **controls.model_dump(mode="json"),
            "model_seeds": [one.model_seed for one in redraws],
            "records": [_arm_record(plan, store, one) for one in redraws],
        }
    seconds: dict[str, float] = {}
    for step in plan.steps():
        seconds[step.stage] = round(seconds.get(step.stage, 0.0) + store.seconds(step), 1)
    return {
        "name": spec.name,
        "model_note": models.describe(spec.model),
        "spec": spec.model_dump(mode="json"),
        "arms": arms,
        "shared": [
            {"arm": arm, "same_as": twin, "why": _why_shared(spec, arm, twin)}
            for arm, twin in plan.same_as().items()
        ],
        "text": {
            "source": spec.text.source,
            **read_text_facts(store.path(plan.tokenize)),
            "splits": {
                split: {
                    "n_documents": len(one.names),
                    "n_tokens": int(one.usable().sum()),
                    "n_rows": len(one.lengths),
                }
                for split, one in rows.items()
            },
        },
        "masks": {split: _masks(plan, store, one, split) for split, one in rows.items()},
        "use": use_record(plan, store),
        "audits": described_audits() if plan.audit else {},
        "metrics": {name: _described(metric) for name, metric in EVERY_METRIC.items()},
        "confidence": CONFIDENCE,
        "precision": precision.describe(),
        "environments": store.environments(plan.steps()),
        "seconds": seconds,
        "artefacts": {f"{s.stage}/{s.folder_name}": s.key for s in plan.steps()},
    }


def _why_shared(spec: TrialSpec, arm: str, twin: str) -> str:
    if spec.arms[arm] == spec.arms[twin]:
        return "their settings are the same, so the SAEs were trained once"
    if models.ties_embeddings(spec.model) is False:
        return (
            "what differs cannot reach a hookpoint (the output head of an untied model lies behind all "
            "of them), so the SAEs are the same ones and were trained once"
        )
    return "their models are the same one (the output head is the embedding), so it was used once"


def _described(metric: Declared) -> dict[str, str]:
    keys = ("unit", "better", "null", "definition", "source", "reads")
    return {key: str(getattr(metric, key)) for key in keys}


def _arm_record(plan: Plan, store: Store, one: ArmModel) -> dict[str, Any]:
    folder = store.path(plan.build[one])
    calibrations = read_calibrations(store.path(plan.harvest[one]))
    drawn = read_drawn(store.path(plan.harvest[one]))
    card = read_json(folder / "card.json")
    return {
        "model_seed": one.model_seed,
        "recipe": read_json(folder / "recipe.json"),
        # the card is of the arm's model; what was drawn in its place is described beside it
        "diagnostics": {name: {**entries, **drawn.get(name, {})} for name, entries in card.items()},
        "calibration": {name: c.record() for name, c in calibrations.items()},
        "gaussian_null": read_json(store.path(plan.train[one]) / "gaussian.json"),
        "given": read_given(store.path(plan.train[one])),
    }


def _told(text: TextSpec) -> str:
    """Return in words which tokens the settings of the text leave out."""
    told = []
    if text.positions is not None:
        told.append(f"positions outside text.positions = {list(text.positions)}")
    if text.exclude_tokens is not False:
        ids = "every special token"
        if text.exclude_tokens is not True:
            ids = f"the token ids {', '.join(map(str, text.exclude_tokens))}"
        told.append(f"{ids} (text.exclude_tokens)")
    return "; ".join(told)


def _left_out(text: TextSpec, rows: Rows) -> dict[str, int]:
    """Return how many tokens the settings of the text leave out; nothing where they leave out none."""
    if rows.left_out is None:
        return {}
    real = dataclasses.replace(rows, left_out=None).usable() & rows.left_out
    inside = usable_positions(text.positions, rows.token_ids.shape[1])
    return {
        "outside_positions": int(real[:, ~inside].sum()),
        "excluded_tokens": int(real[:, inside].sum()),
    }


def _masks(plan: Plan, store: Store, rows: Any, split: str) -> dict[str, Any]:
    """Return how many positions of a split each rule leaves out, and the rules in words."""
    counts: dict[str, Any] = {
        "rule": "position 0 of each row, padding, and tokens whose norm exceeds "
        f"{plan.spec.harvest.outlier_ratio:g} x the arm's median",
        "position_0": len(rows.lengths),
        "padding": int(rows.token_ids.size - rows.lengths.sum()),
        **_left_out(plan.spec.text, rows),
    }
    if rows.left_out is not None:
        counts["rule"] = f"{_told(plan.spec.text)}; {counts['rule']}"
    if split == "heldout":
        folders = {one.label: store.path(step) for one, step in plan.harvest.items()}
        for hookpoint in plan.spec.hookpoints:
            found = {label: outliers(f, hookpoint) for label, f in folders.items()}
            for label, flags in found.items():
                counts[f"outlier_norm {hookpoint} {label}"] = int(flags.sum())
            union = np.logical_or.reduce(list(found.values()))
            counts[f"outlier_norm {hookpoint} any arm (left out of all)"] = int(union.sum())
    else:
        total = int(rows.usable().sum())
        for one, step in plan.train.items():
            log = read_table(store.path(step) / "log.parquet")
            if log.empty:
                continue  # all of its SAEs are given
            for hookpoint, seen in log.groupby("hookpoint")["tokens"].max().items():
                counts[f"outlier_norm {hookpoint} {one.label}"] = total - int(seen)
    return counts
