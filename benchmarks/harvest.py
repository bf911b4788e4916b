"""Harvesting beside a bare truncated forward and beside SAELens' own store, alternating in one run.

    python benchmarks/harvest.py [--model gpt2-shaped] [--peer-python PYTHON] [--rounds 5] [--out FILE]

Sides, all over the same rows of 128 tokens and the same weights:

- *bare*: the model as transformers gives it, sixteen rows per forward, stopped by a hook that does
  nothing with the value. In float32 with the faster product and the kept heap that trials use, in
  float32 as installed, and in bfloat16. *bare, faster forms*: the same in the forms that harvesting uses,
  so that what reading, masking, gathering and shuffling cost can be told from what the forms gain.
- *ours*: what a trial does: read, mask, gather into blocks, and shuffle, center and scale into batches.
- *SAELens store*: `ActivationsStore.next_batch` until the model has run as many tokens, over the
  transformers model in SAELens' own wrapper, which stops at the hook. *installed*, as it comes; *tuned*,
  with the faster product and a heap that keeps its pages, set from outside.

Every side takes a turn per round, in alternating order; ratios are taken within a round. The share of
the machine that other processes took is recorded with each turn; `ratios` counts rounds in which it was
at most a tenth on both sides, `ratios_all` counts all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import environments
import machine
import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from timing import QUIET, spread, timed, wait_until_quiet

from sae_placebo.core import precision
from sae_placebo.data.rows import Rows
from sae_placebo.models.activations import FORWARD_ROWS, HarvestSpec, batches, blocks, calibrate
from sae_placebo.models.harvest_precision import arm_reader
from sae_placebo.models.loading import decoder_layers, load_model, parse_hookpoint, truncate

KEPT_HEAP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
CONTEXT = 128
PLACES = {"gpt2-shaped": "resid_post.6", "pylm": "resid_post.2"}
Turn = Callable[[], dict[str, float]]


class Stopped(Exception):
    """Ends the bare forward."""


def make(name: str) -> Any:
    """Return a model in float32: GPT-2 small's shape with random weights, or one that is loaded."""
    if name != "gpt2-shaped":
        return load_model(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    return model.eval().requires_grad_(False)


def random_rows(n_rows: int, vocabulary: int) -> Rows:
    ids = np.random.default_rng(0).integers(1, vocabulary, (n_rows, CONTEXT)).astype(np.int32)
    return Rows(ids, np.full(n_rows, CONTEXT, np.int32), np.zeros(n_rows, np.int32), ("random",))


def bare(model: Any, layer: int, rows: Rows) -> None:
    def stop(*_: object) -> None:
        raise Stopped

    handle = decoder_layers(model)[layer].register_forward_hook(stop)
    try:
        with torch.inference_mode():
            for part in torch.from_numpy(rows.token_ids).long().split(FORWARD_ROWS):
                with contextlib.suppress(Stopped):
                    model.base_model(input_ids=part, use_cache=False)
    finally:
        handle.remove()


def own_sides(name: str, rows: Rows, wait: float) -> dict[str, Turn]:
    """Return the sides that run in this process."""
    place = PLACES.get(name, "resid_post.5")
    layer, model = parse_hookpoint(place).layer, make(name)
    truncate(model, [place])
    exact, _ = arm_reader(model, [place], rows, HarvestSpec(), 0)
    reduced, _ = arm_reader(model, [place], rows, HarvestSpec(precision="bf16"), 0)
    order = np.arange(len(rows.lengths))

    # a trial calibrates an arm once, before its stream
    calibrations = calibrate(next(blocks(exact, rows, order[:16], 16)), 3.0)

    def harvest(reader: Any) -> None:
        for index, block in enumerate(blocks(reader, rows, order, 64)):
            for _ in batches(block, calibrations, 1_024, 0, index):
                pass

    def turn(work: Callable[[], None], tuned: bool = True) -> Turn:
        def run() -> dict[str, float]:
            wait_until_quiet(wait)
            with contextlib.ExitStack() as stack:
                if tuned:
                    stack.enter_context(precision.fast_products())
                    stack.enter_context(precision.kept_heap())
                seconds, foreign = timed(work)
            return {"seconds": seconds, "foreign": foreign, "tokens": rows.token_ids.size}

        return run

    def in_forms(reader: Any) -> None:
        with reader.forms():
            bare(reader.model, layer, rows)

    return {
        "bare fp32 installed": turn(lambda: bare(model, layer, rows), tuned=False),
        "bare fp32": turn(lambda: bare(model, layer, rows)),
        "bare fp32, faster forms": turn(lambda: in_forms(exact)),
        "ours fp32": turn(lambda: harvest(exact)),
        "bare bf16": turn(lambda: bare(reduced.model, layer, rows)),
        "bare bf16, faster forms": turn(lambda: in_forms(reduced)),
        "ours bf16": turn(lambda: harvest(reduced)),
    }


class Store:
    """SAELens' store in a process of its own, which draws on request."""

    def __init__(self, python: str, tuned: bool, given: dict[str, Any]) -> None:
        worker = Path(__file__).with_name("harvest_peer.py")
        self.process = subprocess.Popen(
            [python, str(worker)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **(KEPT_HEAP if tuned else {})},
        )
        self._say(json.dumps(given | {"products": "medium" if tuned else "highest"}))
        self._answer()

    def _say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise SystemExit(f"SAELens' store ended with status {self.process.wait()}")

    def turn(self) -> dict[str, float]:
        self._say("go")
        return self._answer()

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@contextlib.contextmanager
def stores(python: str | None, name: str, rows: Rows, wait: float) -> Iterator[dict[str, Store]]:
    """Start the peer's stores on the same weights and rows; none without a Python that has the peer."""
    if python is None:
        yield {}
        return
    with tempfile.TemporaryDirectory() as folder:
        model = make(name)
        model.save_pretrained(f"{folder}/model")
        save_file({"token_ids": torch.from_numpy(rows.token_ids)}, f"{folder}/rows.safetensors")
        layers, layer = (
            decoder_layers(model),
            parse_hookpoint(PLACES.get(name, "resid_post.5")).layer,
        )
        given = {
            "model": f"{folder}/model",
            "rows": f"{folder}/rows.safetensors",
            "hook": next(n for n, module in model.named_modules() if module is layers[layer]),
            "d_in": model.config.hidden_size,
            "forward_rows": FORWARD_ROWS,
            "tokens": rows.token_ids.size,
            "threads": torch.get_num_threads(),
            "wait": wait,
        }
        found: dict[str, Store] = {}
        try:
            for tuned in (False, True):
                label = f"SAELens store {'tuned' if tuned else 'installed'}"
                found[label] = Store(python, tuned, given)
            yield found
        finally:
            for one in found.values():
                one.end()


def compare(name: str, python: str | None, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return speeds, foreign shares and ratios of all sides on one model."""
    vocabulary = make(name).config.vocab_size
    rows = random_rows(arguments.rows, vocabulary)
    with stores(python, name, rows, arguments.wait) as peers:
        sides = own_sides(name, rows, arguments.wait)
        sides |= {label: one.turn for label, one in peers.items()}
        rounds: list[dict[str, dict[str, float]]] = []
        for index in range(arguments.rounds + 1):
            order = list(sides) if index % 2 else list(reversed(sides))
            rounds.append({label: sides[label]() for label in order})
    del rounds[0]  # warms caches
    speeds = [{n: t["tokens"] / t["seconds"] for n, t in one.items()} for one in rounds]

    def ratios(quiet: bool) -> dict[str, Any]:
        found = {}
        for mine in ("ours fp32", "ours bf16"):
            for other in sides:
                if other.startswith("ours"):
                    continue
                values = [
                    speed[mine] / speed[other]
                    if not quiet or max(t[mine]["foreign"], t[other]["foreign"]) <= QUIET
                    else math.nan
                    for speed, t in zip(speeds, rounds, strict=True)
                ]
                found[f"{mine} / {other}"] = spread(values)
        return found

    return {
        "tokens_per_second": {n: spread([speed[n] for speed in speeds]) for n in sides},
        "foreign_share": {n: spread([one[n]["foreign"] for one in rounds]) for n in sides},
        "ratios": ratios(True),
        "ratios_all": ratios(False),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", action="append", help="gpt2-shaped, pylm, or a folder")
    parser.add_argument("--peer-python", default=environments.pythons().get("sae-lens"))
    parser.add_argument("--rows", type=int, default=64, help="of 128 tokens, per turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--wait", type=float, default=2.0, help="seconds per turn, for quiet")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    python = arguments.peer_python
    if python is None or not Path(python).exists():
        print("SAELens is skipped: no Python that has it (--peer-python)", file=sys.stderr)
        python = None
    models = arguments.model or list(PLACES)
    results: dict[str, Any] = {
        "models": {name: compare(name, python, arguments) for name in models},
        "skipped": [] if python else ["sae-lens"],
        "precision": precision.describe(),
        "versions": machine.versions("torch", "transformers"),
    }
    settings = {n: getattr(arguments, n) for n in ("rows", "rounds", "wait")}
    settings |= {"context": CONTEXT, "hookpoints": PLACES, "threads": torch.get_num_threads()}
    if arguments.out:
        machine.save(arguments.out, "harvest", settings, results)
    else:
        print(json.dumps(machine.rounded(settings | results), indent=1))


if __name__ == "__main__":
    main()
