"""What it costs to build each control, against copying the model's weights.

    python benchmarks/controls.py [--model FOLDER_OR_ID] [--rounds 3] [--threads 2] [--json FILE]

All sides run in this process in alternating rounds. `copy` is `copy.deepcopy` of the model, what any
control begins with. `control` is what the control does to the copy; `hash` is what the recipe's two
hashes take, of every arm alike. Medians over rounds of wall and of processor time. Ratios are of
processor time, so that what else the machine does counts little: (copy + control) / copy, and the
whole of `build` against that of the trained arm, (copy + control + hash) / (copy + hash).
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sae_placebo.controls import Control, parse_control
from sae_placebo.controls.model.tensors import hashes
from sae_placebo.models.loading import ModelSpec, decoder_layers, load_model

TABLES: tuple[dict[str, Any], ...] = (
    {"control": "redraw"},
    {"control": "redraw", "keep": ["embeddings", "unembedding"]},
    {"control": "init"},
    {"control": "redraw_embeddings"},
    {"control": "permute"},
    {"control": "cascade", "last": 1},
    {"control": "noise_embeddings", "per": "occurrence"},
    {"control": "noise_embeddings", "per": "type"},
    {"control": "spectrum"},
)


def timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return what a call returns, its wall seconds and its processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = call()
    return found, time.perf_counter() - wall, time.process_time() - cpu


def one_round(reference: Any, controls: dict[str, Control], source: ModelSpec) -> dict[str, Any]:
    found: dict[str, Any] = {}
    copies = []
    for name, control in controls.items():
        model, *copied = timed(partial(copy.deepcopy, reference))
        with torch.no_grad():
            found[name] = timed(partial(control.apply, model, 0, 0, source))[1:]
        copies.append(copied)
        if "hash" not in found:
            found["hash"] = timed(partial(hashes, model))[1:]
    found["copy"] = [statistics.median(c[i] for c in copies) for i in (0, 1)]
    return found


def label(table: dict[str, Any]) -> str:
    rest = [f"{k}={v if not isinstance(v, list) else '+'.join(v)}" for k, v in table.items()]
    return " ".join([str(table["control"]), *rest[1:]])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--revision", help="folder or hub id of another checkpoint, to time that")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    reference, source = load_model(args.model), ModelSpec(id=args.model)
    tables = list(TABLES)
    if args.revision:
        tables.append({"control": "revision", "source": args.revision})
    controls = {label(table): parse_control(table) for table in tables}
    rounds = [one_round(reference, controls, source) for _ in range(args.rounds)]
    names = ["copy", "hash", *controls]
    wall, cpu = (
        {name: statistics.median(r[name][i] for r in rounds) for name in names} for i in (0, 1)
    )
    n = sum(p.numel() for p in reference.parameters())
    print(
        f"{n / 1e6:.1f}M parameters, {len(decoder_layers(reference))} layers, {args.threads} threads"
    )
    for name in names:
        ratio = ""
        if name not in ("copy", "hash"):
            base, built = cpu["copy"], cpu["copy"] + cpu["hash"]
            ratio = f"{(base + cpu[name]) / base:6.2f} x copy {(built + cpu[name]) / built:6.2f} x build"
        print(f"{name:44s} {wall[name]:8.2f} s wall {cpu[name]:8.2f} s processor {ratio}")
    if args.json:
        args.json.write_text(
            json.dumps({"parameters": n, "wall": wall, "processor": cpu}, indent=1)
        )


if __name__ == "__main__":
    main()
