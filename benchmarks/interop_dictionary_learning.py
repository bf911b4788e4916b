"""dictionary_learning trains every class that it has, saves and encodes. Runs in its environment."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from interop_cases import Task, done, task

STEPS = {"warmup_steps": 1}
PENALTY = {**STEPS, "sparsity_warmup_steps": 1}
THRESHOLD = {**STEPS, "k": 8, "threshold_start_step": 4, "threshold_beta": 0.9}


def main() -> None:
    asked = task()
    from importlib.metadata import version

    from dictionary_learning.dictionary import AutoEncoderNew
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.gated_anneal import GatedAnnealTrainer
    from dictionary_learning.trainers.gdm import GatedSAETrainer
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
    from dictionary_learning.trainers.p_anneal import PAnnealTrainer
    from dictionary_learning.trainers.standard import StandardTrainer, StandardTrainerAprilUpdate
    from dictionary_learning.trainers.top_k import TopKTrainer

    # its own default for the last power, 0, divides by zero
    anneal = {"anneal_start": asked.steps // 2, "n_sparsity_updates": 2, "p_end": 0.2}
    trained: dict[str, tuple[Any, dict[str, Any]]] = {
        "standard": (StandardTrainer, {**PENALTY, "l1_penalty": 20.0}),
        "april-update": (StandardTrainerAprilUpdate, {**PENALTY, "l1_penalty": 20.0}),
        "new": (
            StandardTrainerAprilUpdate,
            {**PENALTY, "l1_penalty": 20.0, "dict_class": AutoEncoderNew},
        ),
        "p-anneal": (PAnnealTrainer, {**PENALTY, **anneal, "initial_sparsity_penalty": 20.0}),
        "gated": (GatedSAETrainer, {**PENALTY, "l1_penalty": 20.0}),
        "gated-anneal": (
            GatedAnnealTrainer,
            {**PENALTY, **anneal, "initial_sparsity_penalty": 20.0},
        ),
        "topk": (TopKTrainer, THRESHOLD),
        "batchtopk": (BatchTopKTrainer, THRESHOLD),
        "matryoshka": (
            MatryoshkaBatchTopKTrainer,
            {**THRESHOLD, "group_fractions": [0.25, 0.25, 0.5]},
        ),
    }
    scaled: dict[str, tuple[Any, dict[str, Any]]] = {
        "jumprelu": (JumpReluTrainer, {**PENALTY, "target_l0": 8.0, "bandwidth": 0.05}),
        "standard-scaled": (StandardTrainer, {**PENALTY, "l1_penalty": 0.3}),
        "gated-scaled": (GatedSAETrainer, {**PENALTY, "l1_penalty": 0.3}),
        "batchtopk-scaled": (BatchTopKTrainer, THRESHOLD),
    }
    train(asked, trained, scaled=False)
    train(asked, scaled, scaled=True)
    done(dictionary_learning=version("dictionary-learning"))


class Batches:
    """An iterable of batches with the settings that `trainSAE` writes into config.json."""

    def __init__(self, asked: Task, d_in: int) -> None:
        self.config = {"d_submodule": d_in, "io": "out", "ctx_len": 128}
        self._asked = asked

    def __iter__(self) -> Any:
        return self._asked.stream()


def train(asked: Task, cases: dict[str, tuple[Any, dict[str, Any]]], scaled: bool) -> None:
    """Train side by side by `trainSAE`; write what it saves last, and its checkpoint of the middle."""
    import torch
    from dictionary_learning.trainers.gated_anneal import GatedAnnealTrainer
    from dictionary_learning.training import trainSAE

    _, batch = asked.activations()
    configs = [
        {
            "trainer": trainer,
            "steps": asked.steps,
            "activation_dim": batch.shape[1],
            "dict_size": asked.d_sae,
            "layer": 2,
            "lm_name": "pylm",
            **({} if trainer is GatedAnnealTrainer else {"submodule_name": "resid_post_layer_2"}),
            "lr": 3e-3,
            "seed": 0,
            "device": "cpu",
            **settings,
        }
        for trainer, settings in cases.values()
    ]
    run = Path(asked.out) / f"run-{scaled}"
    trainSAE(
        data=Batches(asked, batch.shape[1]),
        trainer_configs=configs,
        steps=asked.steps,
        save_steps=[asked.steps // 2],
        save_dir=str(run),
        normalize_activations=scaled,
        device="cpu",
        autocast_dtype=torch.float32,
    )
    for index, case in enumerate(cases):
        folder = asked.folder(case)
        shutil.move(run / f"trainer_{index}", folder)
        config = json.loads((folder / "config.json").read_text())
        if case == "new":  # its trainer writes the name of the class that it usually trains
            config["trainer"]["dict_class"] = "AutoEncoderNew"
            (folder / "config.json").write_text(json.dumps(config))
        half = folder / "checkpoints" / f"ae_{asked.steps // 2}.pt"
        if case in ("standard", "jumprelu"):
            other = asked.folder(f"{case}-checkpoint")
            (other / "checkpoints").mkdir(parents=True)
            shutil.copy(folder / "config.json", other)
            shutil.copy(half, other / "checkpoints")
            expect(asked, f"{case}-checkpoint", other / "checkpoints" / half.name, config, batch)
        shutil.rmtree(half.parent)
        expect(asked, case, folder / "ae.pt", config, batch)
        if scaled and case in ("jumprelu", "batchtopk-scaled"):
            backup(asked, case, config, batch)
    shutil.rmtree(run)


def load(path: Path, config: dict[str, Any]) -> Any:
    """Return a dictionary as the library loads it, its decoder as it was saved."""
    from dictionary_learning import dictionary
    from dictionary_learning.trainers import batch_top_k, matryoshka_batch_top_k, top_k

    name = config["trainer"]["dict_class"]
    homes = (dictionary, top_k, batch_top_k, matryoshka_batch_top_k)
    model = next(getattr(home, name) for home in homes if hasattr(home, name))
    if name == "AutoEncoder":
        return model.from_pretrained(str(path), normalize_decoder=False)
    return model.from_pretrained(str(path))


def expect(asked: Task, case: str, path: Path, config: dict[str, Any], batch: Any) -> None:
    import torch

    theirs = load(path, config)
    with torch.no_grad():
        codes = theirs.encode(batch)
        asked.write(case, codes, theirs.decode(codes))


def backup(asked: Task, case: str, config: dict[str, Any], batch: Any) -> None:
    """Write the same SAE as the repository's backups are: unscaled, under `ae`, with its factor."""
    import torch
    from dictionary_learning.training import get_norm_factor

    theirs = load(asked.folder(case) / "ae.pt", config)
    factor = get_norm_factor(list(zip_first(asked, 4)), steps=4)
    expected = theirs.encode(batch), theirs.decode(theirs.encode(batch))
    theirs.scale_biases(1 / factor)
    optimizer = torch.optim.Adam(theirs.parameters(), lr=1e-3)
    folder = asked.folder(f"{case}-backup")
    folder.mkdir()
    shutil.copy(asked.folder(case) / "config.json", folder)
    torch.save(
        {
            "step": asked.steps,
            "ae": theirs.state_dict(),
            "optimizer": optimizer.state_dict(),
            "config": config["trainer"],
            "norm_factor": factor,
        },
        folder / "ae.pt",
    )
    asked.write(f"{case}-backup", *expected)


def zip_first(asked: Task, count: int) -> Any:
    for _, rows in zip(range(count), asked.stream(), strict=False):
        yield rows


if __name__ == "__main__":
    main()
