"""SAELens trains, saves and encodes: every architecture and setting of it that is read. Runs in its
environment."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interop_cases import Task, done, task

HOOK = "blocks.2.hook_resid_post"


@dataclass(frozen=True)
class Case:
    """An SAE to train: an architecture and its settings, by SAELens's names."""

    architecture: str
    settings: dict[str, Any] = field(default_factory=dict)
    hook: str = HOOK
    checkpoint: bool = False
    """Whether a checkpoint of the middle of the training is a case of its own too."""


# pylm's activations have a standard deviation of 8: thresholds and penalties are made for that
JUMP = {
    "jumprelu_sparsity_loss_mode": "quadratic",
    "target_l0": 8.0,
    "jumprelu_bandwidth": 2.0,
    "jumprelu_init_threshold": 10.0,
    "decoder_init_norm": 1.0,
}
L1 = {"l1_coefficient": 20.0}
L1_OF_WHITE = {"l1_coefficient": 3.0}
L1_OF_TOKENS = {"l1_coefficient": 120.0}
BATCH = {"k": 6.5, "topk_threshold_lr": 0.2}
AVERAGE = {"normalize_activations": "expected_average_only_in"}
WHITE = {"normalize_activations": "covariance_whitening"}
APART = {"apply_b_dec_to_input": False}
CASES = {
    "standard": Case("standard", L1),
    "topk": Case("topk", {"k": 8, "rescale_acts_by_decoder_norm": False}),
    "topk-rescaled": Case("topk", {"k": 8}, checkpoint=True),
    "jumprelu": Case("jumprelu", JUMP),
    "gated": Case("gated", L1),
    "batchtopk": Case("batchtopk", {**BATCH, "rescale_acts_by_decoder_norm": False}),
    "batchtopk-rescaled-average": Case("batchtopk", {**BATCH, **AVERAGE}, checkpoint=True),
    "matryoshka": Case("matryoshka_batchtopk", {**BATCH, "k": 8.0}),
    "standard-apart": Case("standard", {**L1, **APART}),
    "gated-apart": Case("gated", {**L1, **APART}),
    "topk-apart-average": Case("topk", {"k": 8, **APART, **AVERAGE}, checkpoint=True),
    "standard-layer-norm": Case(
        "standard", {**L1_OF_TOKENS, "normalize_activations": "layer_norm"}
    ),
    "standard-constant-norm": Case(
        "standard", {**L1_OF_TOKENS, "normalize_activations": "constant_norm_rescale"}
    ),
    "topk-whitened": Case("topk", {"k": 8, **WHITE}, checkpoint=True),
    "gated-apart-whitened": Case("gated", {**L1_OF_WHITE, **APART, **WHITE}, checkpoint=True),
    "topk-hook-z": Case(
        "topk", {"k": 8, "reshape_activations": "hook_z"}, hook="blocks.2.attn.hook_z"
    ),
    "jumprelu-bfloat16": Case("jumprelu", {**JUMP, "dtype": "bfloat16"}),
}
HEADS = 4


def main() -> None:
    asked = task()
    warnings.simplefilter("ignore")
    import sae_lens

    for name, case in CASES.items():
        train(asked, name, case)
    old(asked)
    gemma_scope(asked)
    done(sae_lens=sae_lens.__version__)


def settings_of(asked: Task, case: Case, d_in: int) -> dict[str, Any]:
    from sae_lens.saes.sae import SAEMetadata

    more = {}
    if case.architecture == "matryoshka_batchtopk":
        more["matryoshka_widths"] = [asked.d_sae // 4, asked.d_sae // 2, asked.d_sae]
    return {
        "d_in": d_in,
        "d_sae": asked.d_sae,
        **case.settings,
        **more,
        "metadata": SAEMetadata(
            model_name="pylm", hook_name=case.hook, prepend_bos=True, context_size=128
        ),
    }


def train(asked: Task, name: str, case: Case) -> None:
    """Train one SAE by `SAETrainer`, and write it as a training leaves it, and half-way."""
    import torch
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.registry import get_sae_training_class
    from sae_lens.training.sae_trainer import SAETrainer

    _, batch = asked.activations()
    model, config = get_sae_training_class(case.architecture)
    sae = model(config(**settings_of(asked, case, batch.shape[1])))
    dtype = torch.bfloat16 if case.settings.get("dtype") == "bfloat16" else torch.float32
    stream = (rows.to(dtype) for rows in asked.stream())
    total = asked.steps * asked.batch_tokens
    trainer: Any = None

    def half_way(checkpoint_path: Path | None) -> None:
        folder = asked.folder(f"{name}-checkpoint")
        sae.save_model(folder)
        trainer.activation_scaler.save(str(folder / "activation_scaler.json"))
        expect_checkpoint(asked, name, trainer, batch)

    trainer = SAETrainer(
        cfg=SAETrainerConfig(
            n_checkpoints=int(case.checkpoint),
            checkpoint_path=None,
            save_final_checkpoint=False,
            total_training_samples=total,
            device="cpu",
            autocast=False,
            lr=1e-2 if case.architecture == "jumprelu" else 3e-3,
            lr_end=1e-3,
            lr_scheduler_name="constant",
            lr_warm_up_steps=0,
            adam_beta1=0.9,
            adam_beta2=0.999,
            lr_decay_steps=0,
            n_restart_cycles=1,
            train_batch_size_samples=asked.batch_tokens,
            dead_feature_window=50,
            feature_sampling_window=50,
            logger=LoggingConfig(log_to_wandb=False),
            n_batches_for_norm_estimate=8,
        ),
        sae=sae,
        data_provider=stream,
        save_checkpoint_fn=half_way,
    )
    trainer.fit()
    sae.save_inference_model(asked.folder(name))
    expect(asked, name, batch)


def expect(asked: Task, name: str, batch: Any, **more: float) -> None:
    """Write what SAELens computes with a folder that it reads."""
    import sae_lens
    import torch

    theirs = sae_lens.SAE.load_from_disk(asked.folder(name), dtype="float32")
    hook_z = theirs.cfg.reshape_activations == "hook_z"
    x = batch.unflatten(1, (HEADS, -1)) if hook_z else batch
    x = x * more.get("factor", 1.0)
    with torch.no_grad():
        codes = theirs.encode(x)
        decoded = theirs.decode(codes) / more.get("factor", 1.0)
    asked.write(name, codes, decoded.flatten(1), **more)


def expect_checkpoint(asked: Task, name: str, trainer: Any, batch: Any) -> None:
    """Write what the training SAE computes of scaled activations; a batch's codes as it would export them."""
    import copy

    import sae_lens
    import torch

    scaler = trainer.activation_scaler
    sae = copy.deepcopy(trainer.sae)
    scaled = scaler(batch).float()
    with torch.no_grad():
        if sae.cfg.architecture() in ("batchtopk", "matryoshka_batchtopk"):
            folder = asked.folder(f"{name}-exported")
            sae.save_inference_model(folder)
            sae = sae_lens.SAE.load_from_disk(folder)
            shutil.rmtree(folder)
        codes = sae.encode(scaled)
        decoded = scaler.unscale(sae.decode(codes).double())
    asked.write(f"{name}-checkpoint", codes, decoded)


def old(asked: Task) -> None:
    """Write folders as SAELens 3 to 5 did, of the weights above, and what SAELens computes with them."""
    _, batch = asked.activations()
    factor = batch.shape[1] ** 0.5 / float(batch.norm(dim=1).mean())
    flat = {"hook_point": HOOK, "hook_point_layer": 2, "hook_point_head_index": None}
    named = {"hook_name": HOOK, "hook_layer": 2, "hook_head_index": None}
    cases: dict[str, tuple[str, dict[str, Any]]] = {
        "v3-standard": (
            "standard",
            {**flat, "activation_fn": "relu", "normalize_activations": False},
        ),
        "v3-standard-average": ("standard", {**flat, "normalize_activations": True}),
        "v4-gated": ("gated", {**named, "architecture": "gated"}),
        "v4-jumprelu": ("jumprelu", {**named, "architecture": "jumprelu"}),
        "v5-topk": (
            "topk",
            {
                **named,
                "architecture": "topk",
                "activation_fn_str": "topk",
                "activation_fn_kwargs": {"k": 8},
            },
        ),
        "v5-topk-hook-z": (
            "topk",
            {
                **named,
                "hook_name": "blocks.2.attn.hook_z",
                "architecture": "standard",
                "activation_fn_str": "topk",
                "activation_fn_kwargs": {"k": 8},
            },
        ),
    }
    for name, (source, settings) in cases.items():
        folder = asked.folder(name)
        shutil.copytree(asked.folder(source), folder)
        config = {
            "d_in": batch.shape[1],
            "d_sae": asked.d_sae,
            "dtype": "torch.float32",
            "device": "cpu",
            "model_name": "pylm",
            "apply_b_dec_to_input": True,
            "finetuning_scaling_factor": False,
            "context_size": 128,
            "prepend_bos": True,
            "dataset_path": "python-stdlib",
            "sae_lens_training_version": None,
            **settings,
        }
        (folder / "cfg.json").write_text(json.dumps(config), encoding="utf-8")
        more = {"factor": factor} if settings.get("normalize_activations") is True else {}
        expect(asked, name, batch, **more)


def gemma_scope(asked: Task) -> None:
    """Write a JumpReLU SAE as Gemma Scope's files are, and read it by SAELens's own loader of those."""
    import numpy as np
    import torch
    from sae_lens.loading import pretrained_sae_loaders as loaders
    from sae_lens.registry import get_sae_class
    from safetensors.torch import load_file

    _, batch = asked.activations()
    tensors = load_file(asked.folder("jumprelu") / "sae_weights.safetensors")
    root = Path(asked.out).parent / "gemma_scope"
    for name, lower in (("params", False), ("params-lower-case", True)):
        folder = root / name
        folder.mkdir(parents=True)
        arrays = {
            (key.lower() if lower and key.startswith("W_") else key): value.numpy()
            for key, value in tensors.items()
        }
        np.savez(folder / "params.npz", **arrays)
        loaders.hf_hub_download = lambda folder=folder, **_: str(folder / "params.npz")
        config, state, _ = loaders.gemma_2_sae_huggingface_loader(
            "google/gemma-scope-2b-pt-res",
            "layer_2/width_16k/average_l0_8",
            cfg_overrides={"d_in": batch.shape[1], "d_sae": asked.d_sae},
        )
        config = loaders.handle_config_defaulting(config)
        model, settings = get_sae_class(config["architecture"])
        sae = model(settings.from_dict(config))
        sae.load_state_dict(state)
        with torch.no_grad():
            codes = sae.encode(batch)
            decoded = sae.decode(codes)
        Task(**{**vars(asked), "out": str(root)}).write(name, codes, decoded)


if __name__ == "__main__":
    main()
