"""Fixtures: a tiny language model with a tokenizer of its own, built offline."""

from __future__ import annotations

import json
import os
import signal
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import scipy.linalg  # noqa: F401  its library is limited only once it is loaded
import threadpoolctl
from hypothesis import HealthCheck, settings

os.environ["HF_HUB_OFFLINE"] = "1"
# tests run in as many processes as there are cores; two thread pools on one core wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
# and one that was loaded before this file was read: a child reads the variable, with other last bits
threadpoolctl.threadpool_limits(int(os.environ["OMP_NUM_THREADS"]), "blas")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# the same examples everywhere, however long one takes
settings.register_profile(
    "any machine",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("any machine")


@pytest.fixture(scope="session", autouse=True)
def _interrupts_arrive() -> None:
    """A shell that starts tests in the background has them ignore Ctrl-C, and children inherit it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def library_text(n_files: int = 40) -> list[str]:
    root = Path(sysconfig.get_path("stdlib"))
    return [p.read_text(encoding="utf-8") for p in sorted(root.glob("*.py"))[:n_files]]


def save_tokenizer(folder: Path, bos: bool = True) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(library_text(10), trainer)
    special = {"bos_token": "<s>"} if bos else {}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", **special)
    fast.save_pretrained(folder)
    return fast


def save_model(folder: Path, **settings: Any) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **{
            "vocab_size": 512,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "tie_word_embeddings": True,
            "initializer_range": 0.3,
        }
        | settings
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a 3-layer Llama of width 32 with a byte-level BPE of 512 and a BOS token."""
    folder = tmp_path_factory.mktemp("tiny-model")
    save_model(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_model: Path) -> Any:
    from sae_placebo.models.loading import load_tokenizer

    return load_tokenizer(str(tiny_model))


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .jsonl file of 40 documents, one of which tries to break out of a page."""
    folder = tmp_path_factory.mktemp("tiny-text")
    path = folder / "corpus.jsonl"
    lines = [json.dumps({"text": text[2_000:6_000]}) for text in library_text(40)]
    evil = "</script><img src=x onerror=alert(1)> " * 60
    path.write_text("\n".join([*lines, json.dumps({"text": evil})]), encoding="utf-8")
    return path


def trial_table(model: Path, text: Path, **changes: Any) -> dict[str, Any]:
    """Settings of a trial that takes a few seconds."""
    table: dict[str, Any] = {
        "name": "tiny",
        "hookpoints": ["resid_post.1"],
        "model_seeds": [0, 1],
        "sae_seeds": [0, 1],
        "model": {"id": str(model)},
        "text": {
            "source": str(text),
            "context_tokens": 32,
            "train_tokens": 6_000,
            "heldout_tokens": 2_000,
            "max_document_tokens": 310,
        },
        "arms": {
            "trained": {"control": "trained"},
            "redraw": {"control": "redraw"},
            "redraw_keep_embeddings": {"control": "redraw", "keep": ["embeddings"]},
        },
        "saes": {"topk": {"kind": "topk", "d_sae": 64, "k": 4}},
        "training": {"batch_tokens": 256, "learning_rate": 3e-3, "dead_after_tokens": 2_000},
        "harvest": {"block_rows": 64},
        "measurement": {"replicates": 40, "shown_per_class": 3},
        "baselines": {
            **{"n_atoms": 32, "nmf_atoms": 8, "fit_tokens": 400, "ica_tokens": 300},
            **{"nmf_tokens": 200, "iterations": 3, "choose_tokens": 200, "score_tokens": 100},
            **{"sae_pursuit_tokens": 20, "coded_tokens": 8, "n_labels": 3},
        },
        "use": {
            **{"latents": 8, "firings": 6, "documents": 4, "nulls": 9},
            **{"pseudo": 4, "covariance_directions": 2, "untrained_directions": 3},
            **{"error_directions": 2, "swap_tokens": 60},
            "masks": {"n_masks": 4, "n_pivots": 0, "n_tokens": 300},
            "joint": {"n_tokens": 300, "replicates": 100, "min_documents": 2},
            "worst": {"n_tokens": 150, "steps": 2},
        },
        "circuits": {
            "readers": {"tokens": 400, "nulls": 40, "reader_nulls": 20},
            "writers": {"tokens": 400, "pseudo": 80, "fewest": 5},
        },
        "audit": {
            **{"tokens": 64, "draws": 1, "window": 1, "steps": 3, "ridge_tokens": 300},
            **{"meta_steps": 10, "labels": 2, "hedging_latents": 4, "hedging_tokens": 1_000},
        },
    }
    return table | changes


def write_toml(path: Path, table: dict[str, Any]) -> Path:
    """Write nested tables as TOML."""

    def dump(value: Any) -> str:
        return json.dumps(value)

    lines: list[str] = []

    def emit(prefix: str, part: dict[str, Any]) -> None:
        if prefix:
            lines.append(f"[{prefix}]")
        lines.extend(f"{k} = {dump(v)}" for k, v in part.items() if not isinstance(v, dict))
        for k, v in part.items():
            if isinstance(v, dict):
                emit(f"{prefix}.{k}" if prefix else k, v)

    emit("", table)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
