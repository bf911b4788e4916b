"""Harvesting against its floor: a bare forward, stopped at the same layer, over the same rows.

    python benchmarks/harvest.py [--model FOLDER_OR_ID] [--hookpoint resid_post.5] [--rounds 5]

Both sides run in this process in alternating rounds, in the same precision. `bare` is a loop that
calls the base model with one hook that stops it and does nothing with the value. `harvest` is what a
trial does: read, mask, gather into a block, and shuffle, center and scale into batches. Ratios are of
medians; the spread is over rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from sae_placebo import precision
from sae_placebo.activations import FORWARD_ROWS, batches, blocks, calibrate, row_order
from sae_placebo.models import (
    ModelSpec,
    Reader,
    convert,
    decoder_layers,
    load_model,
    load_tokenizer,
    parse_hookpoint,
    truncate,
)
from sae_placebo.text import TextSpec, tokenize


class Stopped(Exception):
    """Ends the bare forward."""


def bare(model: torch.nn.Module, layer: int, ids: torch.Tensor) -> None:
    def stop(*_: object) -> None:
        raise Stopped

    handle = decoder_layers(model)[layer].register_forward_hook(stop)
    try:
        with torch.inference_mode():
            for part in ids.split(FORWARD_ROWS):
                with contextlib.suppress(Stopped):
                    model.model(input_ids=part, use_cache=False)
    finally:
        handle.remove()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--hookpoint", default="resid_post.5")
    parser.add_argument("--tokens", type=int, default=16_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cache", type=Path, default=Path("runs/benchmarks"))
    arguments = parser.parse_args()
    source, spec = arguments.model, ModelSpec(id=arguments.model)
    if spec.is_packaged:
        source = str(arguments.cache / "model")
        if not (Path(source) / "config.json").exists():
            Path(source).mkdir(parents=True, exist_ok=True)
            convert(spec, Path(source))
    model, tokenizer = load_model(source), load_tokenizer(source)
    rows = tokenize(
        TextSpec(train_tokens=arguments.tokens, heldout_tokens=1_000), tokenizer, seed=0
    )["train"]
    truncate(model, [arguments.hookpoint])
    reader = Reader(model, [arguments.hookpoint])
    order = row_order(len(rows.lengths), 0)
    ids = torch.from_numpy(rows.token_ids[order]).long()
    layer = parse_hookpoint(arguments.hookpoint).layer

    def harvest() -> None:
        calibrations = None
        for index, block in enumerate(blocks(reader, rows, order, 256)):
            calibrations = calibrations or calibrate(block, 10.0)
            for _ in batches(block, calibrations, 1_024, 0, index):
                pass

    sides: dict[str, Callable[[], None]] = {
        "bare": lambda: bare(model, layer, ids),
        "harvest": harvest,
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    with precision.fast_products():
        for round_ in range(arguments.rounds + 1):
            for name, side in sides.items():
                start = time.perf_counter()
                side()
                if round_:  # the first round warms caches
                    seconds[name].append(time.perf_counter() - start)
    n = int(ids.numel())
    ratios = [h / b for h, b in zip(seconds["harvest"], seconds["bare"], strict=True)]
    print(
        json.dumps(
            {
                "hookpoint": arguments.hookpoint,
                "tokens": n,
                "bare_tokens_per_second": round(n / statistics.median(seconds["bare"])),
                "harvest_tokens_per_second": round(n / statistics.median(seconds["harvest"])),
                "ratio_median": round(statistics.median(ratios), 3),
                "ratio_min_max": [round(min(ratios), 3), round(max(ratios), 3)],
                "precision": precision.describe(),
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
