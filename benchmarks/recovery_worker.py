"""Train SAEs on a prepared stream and encode its held-out tokens: the part that runs at each side.

    python benchmarks/recovery_worker.py FOLDER < jobs

Used by `recovery.py`; a job is one line of JSON. SAELens' environment need not have this package.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from machine import versions
from safetensors.torch import load_file, save_file

BATCH, HELD_OUT = 1024, 8192
WARMUP, DECAY = 0.05, 0.2
DEAD_TOKENS = 10_000
Job = dict[str, Any]
Tensors = dict[str, torch.Tensor]


def rows(data: Tensors, first: int, last: int) -> torch.Tensor:
    """Return the tokens from `first` to `last`, centered and scaled."""
    offsets = data["offsets"][first : last + 1]
    part = slice(int(offsets[0]), int(offsets[-1]))
    x = torch.nn.functional.embedding_bag(
        data["features"][part],
        data["dictionary"],
        offsets - offsets[0],
        per_sample_weights=data["values"][part],
        mode="sum",
        include_last_offset=True,
    )
    return (x - data["mean"]) * data["factor"]


def batches(data: Tensors) -> Iterator[torch.Tensor]:
    n_train = len(data["offsets"]) - 1 - HELD_OUT
    for first in range(0, n_train - BATCH + 1, BATCH):
        yield rows(data, first, first + BATCH)


def train_ours(job: Job, data: Tensors, held_out: torch.Tensor) -> tuple[Tensors, float]:
    from sae_placebo.saes import SAE, parse_sae
    from sae_placebo.saes.training import Fit, TrainingSpec

    n_tokens = (len(data["offsets"]) - 1 - HELD_OUT) // BATCH * BATCH
    spec = parse_sae({"kind": job["kind"], "d_sae": job["d_sae"], **job["ours"]})
    start = spec.create(data["dictionary"].shape[1], job["seed"])
    if job["start"] == "truth":
        rows = start.params["W_dec"].clone()
        rows[: len(data["dictionary"])] = data["dictionary"]
        start = SAE(spec, {**start.params, "W_dec": rows, "W_enc": rows.clone().t()})
    fit = Fit(start, TrainingSpec(batch_tokens=BATCH, learning_rate=job["rate"]), n_tokens)
    began = time.perf_counter()
    for x in batches(data):
        fit.step(x)
    seconds = time.perf_counter() - began
    sae = fit.sae()
    codes = sae.encode(held_out)
    found = {"offsets": codes.offsets, "latents": codes.latents, "values": codes.values}
    return {"W_dec": sae.params["W_dec"], "x_hat": sae.decode(codes), **found}, seconds


def peer_sae(job: Job, d_in: int) -> Any:
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
    from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

    made: dict[str, tuple[Any, Any]] = {
        "topk": (TopKTrainingSAE, TopKTrainingSAEConfig),
        "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
        "relu": (StandardTrainingSAE, StandardTrainingSAEConfig),
        "jumprelu": (JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig),
    }
    torch.manual_seed(job["seed"])
    sae, config = made[job["kind"]]
    return sae(config(d_in=d_in, d_sae=job["d_sae"], **job["peer"]))


def train_saelens(job: Job, data: Tensors, held_out: torch.Tensor) -> tuple[Tensors, float]:
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    steps = (len(data["offsets"]) - 1 - HELD_OUT) // BATCH
    sae = peer_sae(job, data["dictionary"].shape[1])
    settings: dict[str, Any] = {}
    if job["rate"] is not None:
        settings = {
            "lr": job["rate"],
            "lr_warm_up_steps": max(2, round(WARMUP * steps)),
            "lr_decay_steps": round(DECAY * steps),
            "dead_feature_window": max(1, DEAD_TOKENS // BATCH),
        }
    config = SAETrainerConfig(
        total_training_samples=steps * BATCH, train_batch_size_samples=BATCH, **settings
    )
    # the runner of SAELens fills this in; the trainer by itself does not
    config.lr_end = config.lr_end or config.lr / 10
    trainer = SAETrainer(config, sae, batches(data))
    began = time.perf_counter()
    trainer.fit()
    seconds = time.perf_counter() - began
    sae.eval()
    with torch.no_grad():
        if job["kind"] == "batchtopk":  # as SAELens saves it: one threshold for all latents
            pre = sae.encode_with_hidden_pre(held_out)[1]
            codes = pre.relu() * (pre > sae.topk_threshold)
        else:
            codes = sae.encode(held_out)
        tokens, latents = codes.nonzero().unbind(dim=1)
        found = {
            "offsets": torch.cat([torch.zeros(1).long(), (codes > 0).sum(dim=1).cumsum(0)]),
            "latents": latents,
            "values": codes[tokens, latents].float(),
            "x_hat": sae.decode(codes.float()),
        }
        return {"W_dec": sae.W_dec.detach().clone(), **found}, seconds


TRAINERS: dict[str, Callable[[Job, Tensors, torch.Tensor], tuple[Tensors, float]]] = {
    "fast": train_ours,
    "plain": train_ours,
    "saelens": train_saelens,
}


def work(folder: Path) -> None:
    """Run in a worker: train every job on the lines of input, one file of tensors each."""
    torch.set_num_threads(1)
    data: Tensors = {}
    for line in sys.stdin:
        job: Job = json.loads(line)
        data = data or load_file(folder / job["data"])
        n_tokens = len(data["offsets"]) - 1
        held_out = rows(data, n_tokens - HELD_OUT, n_tokens)
        found, seconds = TRAINERS[job["side"]](job, data, held_out)
        missed = (found.pop("x_hat") - held_out).square().sum()
        variance = (held_out - held_out.mean(dim=0)).square().sum()
        save_file({name: t.contiguous() for name, t in found.items()}, folder / job["result"])
        numbers = {"fvu": float(missed / variance), "seconds": seconds}
        here = versions("torch", "sae-lens", "numba")
        print(json.dumps({**numbers, "versions": here}), flush=True)


if __name__ == "__main__":
    work(Path(sys.argv[1]))
