"""sparsify trains on the model itself, saves and encodes. Runs in its environment."""

from __future__ import annotations

import shutil
from pathlib import Path

from interop_cases import Task, done, task


def main() -> None:
    asked = task()
    from importlib.metadata import version

    small = {"num_latents": asked.d_sae, "k": 8}
    train(asked, {"topk": "layers.2"}, small)
    train(asked, {"topk-multi": "layers.2"}, small | {"multi_topk": True})
    # a module's output that is not the residual stream, and two seeds in one run
    train(asked, {"topk-mlp": "layers.1.mlp/seed1"}, small, seeds=[0, 1])
    if not asked.width:  # as wide as the model: too large for a file of the repository
        train(asked, {"topk-expansion": "layers.2"}, {"expansion_factor": 1, "k": 8})
    train(asked, {"refused-groupmax": "layers.2"}, small | {"activation": "groupmax"})
    train(asked, {"refused-transcoder": "layers.2"}, small | {"transcode": True})
    train(
        asked,
        {"refused-skip": "layers.2"},
        small | {"transcode": True, "skip_connection": True},
    )
    done(sparsify=version("eai-sparsify"))


def train(
    asked: Task, cases: dict[str, str], settings: dict[str, object], seeds: list[int] | None = None
) -> None:
    """Train by `Trainer.fit`, and write each of `cases`, which names folders of the run."""
    import torch
    from datasets import Dataset
    from safetensors.torch import load_file
    from sparsify import SaeConfig, TrainConfig, Trainer
    from sparsify.sparse_coder import SparseCoder
    from transformers import AutoModel

    rows = load_file(asked.rows)["token_ids"][: 8 * asked.steps]
    model = AutoModel.from_pretrained(asked.model, dtype=torch.float32)
    run = Path(asked.out) / "runs" / next(iter(cases))
    hookpoints = sorted({folder.split("/")[0] for folder in cases.values()})
    trainer = Trainer(
        TrainConfig(
            sae=SaeConfig(**settings),
            batch_size=8,
            optimizer="adam",
            lr=3e-3,
            lr_warmup_steps=1,
            hookpoints=hookpoints,
            init_seeds=seeds or [0],
            log_to_wandb=False,
            save_dir=str(run.parent),
            run_name=run.name,
        ),
        Dataset.from_dict({"input_ids": rows}).with_format("torch"),
        model,
    )
    trainer.fit()
    kept = load_file(asked.rows)
    for case, name in cases.items():
        folder = asked.folder(case) / name
        shutil.copytree(run / name, folder)
        if case.startswith("refused"):
            continue
        batch = kept["mlp_activations" if "mlp" in name else "activations"][: asked.tokens].float()
        theirs = SparseCoder.load_from_disk(folder)
        with torch.no_grad():
            found = theirs.encode(batch)
            decoded = theirs.decode(found.top_acts, found.top_indices)
        codes = torch.zeros(len(batch), theirs.num_latents)
        codes.scatter_(1, found.top_indices, found.top_acts)
        asked.write(case, codes, decoded)
    shutil.rmtree(run)


if __name__ == "__main__":
    main()
