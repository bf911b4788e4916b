"""A small trial from committed SAEs and text onwards, whose numbers of every stage are known.

Training is left out: rounding steers it differently on every processor. The SAEs are held still in it, so
that what a training writes beside them (lookup tables, Gaussian nulls, log) is made as ever.

    python tests/golden_trial.py saes      trains the SAEs anew
    python tests/golden_trial.py numbers   writes the numbers of now, with the versions of the stages
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

import sae_placebo as sp
from sae_placebo.saes import PARAMETERS, SAE, TopKSpec
from sae_placebo.saes.training import Fit
from sae_placebo.trial.plan import VERSIONS
from sae_placebo.trial.stages import train

FOLDER = Path(__file__).parent / "trial" / "golden"
NUMBERS = FOLDER / "numbers.json"

TABLE: dict[str, Any] = {
    "name": "golden",
    "hookpoints": ["resid_post.1"],
    "model_seeds": [0, 1],
    "sae_seeds": [0, 1],
    "model": {"id": "pylm"},
    "text": {
        "source": str(FOLDER / "text.jsonl"),
        **{"context_tokens": 64, "train_tokens": 5_500, "heldout_tokens": 6_000},
        "max_document_tokens": 250,
    },
    "arms": {"trained": {"control": "trained"}, "redraw": {"control": "redraw"}},
    "saes": {"topk": {"kind": "topk", "d_sae": 64, "k": 8}},
    "training": {"batch_tokens": 512},
    "harvest": {"block_rows": 64, "precision": "fp32"},
    "measurement": {"replicates": 40, "shown_per_class": 1},
    "baselines": {
        **{"n_atoms": 64, "nmf_atoms": 8, "fit_tokens": 1_000, "ica_tokens": 300},
        **{"nmf_tokens": 200, "iterations": 2, "choose_tokens": 400, "score_tokens": 400},
        **{"sae_pursuit_tokens": 20, "coded_tokens": 8, "n_labels": 1},
    },
    "use": {
        **{"latents": 8, "firings": 6, "documents": 4, "nulls": 9},
        **{"pseudo": 2, "covariance_directions": 2, "untrained_directions": 2},
        "error_directions": 2,
        "masks": {"n_masks": 2, "n_pivots": 0, "n_tokens": 200},
        "joint": {"n_tokens": 200, "replicates": 100, "min_documents": 2},
        "worst": {"n_tokens": 100, "steps": 1},
    },
    "circuits": {
        "readers": {"tokens": 300, "nulls": 20, "reader_nulls": 20},
        "writers": {"tokens": 300, "pseudo": 80, "fewest": 5},
    },
    "audit": {
        **{"tokens": 64, "draws": 1, "window": 1, "steps": 3, "ridge_tokens": 4_000},
        **{"meta_steps": 10, "labels": 1, "hedging_latents": 4, "hedging_tokens": 1_000},
    },
}

LOOSE = "use: use "
"""Numbers that begin so hang on which firings are drawn, by importance that is read off tokens drawn from
predictions: rounding draws others, and they are held to no more than their size."""

# the other numbers are no counts, and hang neither on steps of a quantizer (bits), nor on tokens drawn from
# predictions (screen, readers), nor on an order of nearly equal values (ranks)
LATENTS = (
    *("density", "token_entropy_bits", "token_entropy_null_bits", "mean_activation"),
    *("max_activation", "norm_correlation", "pc_cosine", "position_bits", "unembedding_kurtosis"),
    *("r2_position", "r2_token", "r2_previous", "r2_bag", "r2_window", "r2_placebo_readout"),
    *("r2_placebo_latents", "placebo_r", "seed_r"),
)
METRICS = (
    *("explained_variance", "explained_variance_above_gaussian", "l0", "mean_token_entropy_bits"),
    *("lookup_relative_explained_variance", "token_entropy_share_of_null"),
)
BASELINES = ("random", "neurons", "embeddings", "pca", "sae")
AUDITS = ("random_pushes", "interpolation", "error_parts", "shrinkage")


def start(spec: TopKSpec, d_in: int, seed: int) -> SAE:
    """Return the committed SAE of a seed, in the units of training."""
    return SAE(spec, load_file(FOLDER / f"sae-{seed}.safetensors"))


@contextmanager
def held_still() -> Iterator[None]:
    """Begin every training with the committed SAEs, and change nothing in it."""

    def still(sae: SAE, spec: Any, n: int, **others: Any) -> Fit:
        return Fit(sae, spec, n, **(others | {"frozen": frozenset(PARAMETERS)}))

    with mock.patch.object(TopKSpec, "create", start), mock.patch.object(train, "Fit", still):
        yield


def run(store: Path) -> sp.Trial:
    """Return the trial, made in `store`."""
    with held_still():
        return sp.run(TABLE, store)


def numbers(trial: sp.Trial) -> dict[str, float]:
    """Return means over what a table holds of one arm, by stage, table and column."""
    found: dict[str, float] = {}

    def add(stage: str, name: str, rows: pd.DataFrame, columns: tuple[str, ...]) -> None:
        for arm, part in rows.groupby("arm"):
            for column in columns:
                values = part[column].to_numpy(np.float64, na_value=np.nan)
                found[f"{stage}: {name} {column}, {arm}"] = float(np.nanmean(values))

    def table(name: str) -> pd.DataFrame:
        return pd.read_parquet(trial.folder / f"{name}.parquet")

    measured = table("measurements")
    for metric in METRICS:
        add("measure", metric, measured[measured["metric"] == metric], ("value",))
    add("profile", "latents", table("latents"), LATENTS)
    add("profile", "ladder", table("ladder"), ("value",))
    baselines = table("baselines")
    for name in BASELINES:
        own = baselines[baselines["baseline"] == name]
        add("baselines", name, own, ("explained_variance", "lookup_relative_ev"))
    add("use", "use", table("use"), ("effect", "null_effect"))
    for one in trial.record["use"]:
        found[f"use: full swap, {one['arm']}"] = float(one["full_swap_nats"])
    add("use", "writers", table("writers"), ("share",))
    audits = table("audits")
    for name in AUDITS:
        add("audit", name, audits[audits["audit"] == name], ("value", "null"))
    effects = table("effects")
    for metric in METRICS:
        add("compare", metric, effects[effects["metric"] == metric], ("effect", "se"))
    return found


def train_saes() -> None:
    """Train both SAEs on Python's standard library and keep them, in the units of training."""
    kept: dict[int, SAE] = {}

    class Kept(Fit):
        def sae(self) -> SAE:
            kept[len(kept)] = (made := super().sae())
            return made

    table = TABLE | {"training": {}}
    table["text"] = {"source": "python-stdlib", "context_tokens": 128}
    table["text"] |= {"train_tokens": 200_000, "heldout_tokens": 5_000}
    with tempfile.TemporaryDirectory() as store, mock.patch.object(train, "Fit", Kept):
        from sae_placebo.core.progress import Progress
        from sae_placebo.core.store import Store
        from sae_placebo.trial.artefacts import Artefacts
        from sae_placebo.trial.plan import plan_steps
        from sae_placebo.trial.spec import load_trial
        from sae_placebo.trial.stages.build import build_arms
        from sae_placebo.trial.stages.harvest import harvest_arms

        plan = plan_steps(load_trial(table))
        artefacts = Artefacts(plan, Store(Path(store)), Progress())
        with artefacts.store.lock():
            arms = plan.groups[0]  # the trained model
            reader = harvest_arms(artefacts, arms, build_arms(artefacts, arms))
            train.train_arms(artefacts, arms, reader)
    for seed in (0, 1):
        params = {name: x.contiguous() for name, x in kept[seed].params.items()}
        save_file(params, FOLDER / f"sae-{seed}.safetensors")


def main() -> None:
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    if sys.argv[1:] == ["saes"]:
        train_saes()
    elif sys.argv[1:] == ["numbers"]:
        with tempfile.TemporaryDirectory() as store:
            made = {"versions": VERSIONS, "numbers": numbers(run(Path(store)))}
        NUMBERS.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    else:
        sys.exit(str(__doc__))


if __name__ == "__main__":
    main()
