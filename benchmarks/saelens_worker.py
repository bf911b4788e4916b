"""Trains one TopK SAE with SAELens' own runner, on rows of token ids that are given to it.

Reads settings as JSON from standard input: model folder, hook, rows, sizes. Its store, its trainer, its
model wrapper with an early stop at the hook. Ends with a line of JSON; runs in the peer's environment.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

seconds: Counter[str] = Counter()


def clock(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def clocked(*positional: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return call(*positional, **named)
        finally:
            seconds[name] += time.perf_counter() - start

    return clocked


def main() -> None:
    begin = time.perf_counter()
    given = json.loads(sys.stdin.readline())
    import torch

    torch.set_num_threads(given["threads"])
    if given["products"] != "default":
        torch.set_float32_matmul_precision(given["products"])
    import sae_lens
    from datasets import Dataset
    from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig
    from sae_lens.llm_sae_training_runner import LanguageModelSAETrainingRunner
    from sae_lens.training.activations_store import ActivationsStore
    from sae_lens.training.sae_trainer import SAETrainer
    from safetensors.torch import load_file

    seconds["imports"] = time.perf_counter() - begin
    ids = load_file(given["rows"])["token_ids"].tolist()
    config = LanguageModelSAERunnerConfig(
        sae=sae_lens.TopKTrainingSAEConfig(
            d_in=given["d_in"], d_sae=given["d_sae"], k=given["k"], normalize_activations="none"
        ),
        model_name=given["model"],
        model_class_name="AutoModelForCausalLM",
        model_from_pretrained_kwargs={"dtype": "float32"},
        hook_name=given["hook"],
        streaming=False,
        context_size=given["context_tokens"],
        prepend_bos=False,  # rows hold it already
        sequence_separator_token=None,
        training_tokens=given["training_tokens"],
        train_batch_size_tokens=given["batch_tokens"],
        store_batch_size_prompts=given["forward_rows"],
        n_batches_in_buffer=given["buffer_rows"],
        lr=given["learning_rate"],
        logger=LoggingConfig(log_to_wandb=False),
        checkpoint_path=None,
        output_path=given["output"],
        device="cpu",
        verbose=False,
    )
    # in its environment alone, for the shares: two clock readings per call
    ActivationsStore.get_activations = clock("forward", ActivationsStore.get_activations)
    ActivationsStore.__next__ = clock("next batch", ActivationsStore.__next__)
    SAETrainer.step = clock("step", SAETrainer.step)
    start = time.perf_counter()
    runner = LanguageModelSAETrainingRunner(
        config, override_dataset=Dataset.from_dict({"input_ids": ids})
    )
    seconds["load"] = time.perf_counter() - start
    runner.run()
    found = {
        "clocks": dict(seconds),
        "seconds": time.perf_counter() - begin,
        "torch": torch.__version__,
        "sae_lens": sae_lens.__version__,
    }
    print("\n" + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
