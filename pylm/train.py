"""Train pylm: `python -m pylm.train`. Seeded, resumable, and done in one pass over the corpus.

Matrices inside the blocks take Muon steps (orthogonalized momentum), everything else AdamW steps;
both learn at a rate that rises for `WARMUP`, stays, and falls to zero over the last `DECAY`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from pylm.data import Tokens, prepare
from sae_placebo.core.spec import numpy_generator

WARMUP, DECAY = 0.02, 0.6
# kept as `revision`s: before anything is learned, before and after copying is
KEPT_STEPS = (0, 50, 100, 200, 400, 800, 1600)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the model, beside the corpus."""

    seed: int = 0
    vocabulary: int = 4096
    width: int = 256
    layers: int = 4
    heads: int = 8
    hidden: int = 704
    context_tokens: int = 256
    rows: int = 32
    steps: int = 2600
    muon_rate: float = 0.015
    adam_rate: float = 5e-3
    weight_decay: float = 0.01

    def model(self) -> LlamaForCausalLM:
        """Return the model at its initial weights, drawn from the seed."""
        config = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            max_position_embeddings=self.context_tokens,
            rms_norm_eps=1e-5,
            bos_token_id=0,
            eos_token_id=0,
            tie_word_embeddings=False,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return LlamaForCausalLM(config)


def optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Return Muon for the blocks' matrices and AdamW for the rest."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    inside = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in inside]
    muon = torch.optim.Muon(
        matrices, lr=recipe.muon_rate, momentum=0.95, weight_decay=recipe.weight_decay
    )
    adam = torch.optim.AdamW(
        rest, lr=recipe.adam_rate, betas=(0.9, 0.95), weight_decay=recipe.weight_decay, fused=True
    )
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return [muon, adam]


def rate(step: int, steps: int) -> float:
    """Return the learning rate of a step as a share of its peak."""
    rise = (step + 1) / max(1, round(WARMUP * steps))
    fall = (steps - step) / max(1, round(DECAY * steps))
    return min(1.0, rise, fall)


def batches(tokens: Any, recipe: Recipe, start: int) -> Iterator[torch.Tensor]:
    """Yield the batches from step `start` on: rows behind a BOS, each token of the corpus once."""
    body = recipe.context_tokens - 1
    n_rows = len(tokens) // body
    order = numpy_generator(recipe.seed, "rows").permutation(n_rows)
    for step in range(start, recipe.steps):
        places = np.arange(step * recipe.rows, (step + 1) * recipe.rows) % n_rows
        rows = np.zeros((recipe.rows, recipe.context_tokens), dtype=np.int64)
        for i, row in enumerate(order[places]):
            rows[i, 1:] = tokens[row * body : (row + 1) * body]
        yield torch.from_numpy(rows)


def loss_of(model: Any, rows: torch.Tensor) -> torch.Tensor:
    """Return the mean loss in nats of every token but the first of its row."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=rows, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())


def train(recipe: Recipe, tokens: Tokens, work: Path, until: int | None = None) -> None:
    """Train from the last checkpoint, or from the start; write the curve and kept revisions."""
    model = recipe.model()
    steps = optimizers(model, recipe)
    start = _resume(work, recipe, model, steps)
    curve = (work / "curve.jsonl").open("a")
    began, seen = time.perf_counter(), 0
    last = recipe.steps if until is None else until
    for step, rows in enumerate(batches(tokens.splits["train"], recipe, start), start=start):
        if step in KEPT_STEPS:
            export(model, work / f"step{step}", tokens, work)
        if step >= last:
            break
        for optimizer in steps:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate(step, recipe.steps)
        loss = loss_of(model, rows)
        loss.backward()
        for optimizer in steps:
            optimizer.step()
            optimizer.zero_grad()
        seen += rows.numel()
        if (step + 1) % 10 == 0:
            speed = seen / (time.perf_counter() - began)
            line = {"step": step + 1, "loss_nats": round(loss.item(), 4), "tokens_s": round(speed)}
            curve.write(json.dumps(line) + "\n")
            curve.flush()
            left = (last - step - 1) * rows.numel() / speed / 60
            sys.stdout.write(f"{line}  {left:.0f} min left\n")
            sys.stdout.flush()
        if (step + 1) % 100 == 0 or step + 1 == last:
            _keep(work, recipe, model, steps, step + 1)
    if last == recipe.steps:
        export(model, work / "final", tokens, work)


def export(model: LlamaForCausalLM, folder: Path, tokens: Tokens, work: Path) -> None:
    """Write the model in fp16 with its tokenizer, as transformers reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict() | {"architectures": ["LlamaForCausalLM"], "dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    for path in (work / "tokenizer").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())


def _keep(work: Path, recipe: Recipe, model: Any, steps: list[Any], step: int) -> None:
    held = {f"model.{name}": value for name, value in model.state_dict().items()}
    for i, optimizer in enumerate(steps):
        for j, state in optimizer.state_dict()["state"].items():
            held |= {f"{i}.{j}.{k}": torch.as_tensor(v).clone() for k, v in state.items()}
    save_file(
        {name: value.contiguous() for name, value in held.items()},
        work / "checkpoint.part",
        metadata={"step": str(step), "recipe": json.dumps(asdict(recipe))},
    )
    (work / "checkpoint.part").replace(work / "checkpoint.safetensors")


def _resume(work: Path, recipe: Recipe, model: Any, steps: list[Any]) -> int:
    path = work / "checkpoint.safetensors"
    if not path.exists():
        return 0
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        about = file.metadata()
    if json.loads(about["recipe"]) != asdict(recipe):
        raise SystemExit(f"{path} is of another recipe; remove it, or give another --work")
    held = load_file(path)
    model.load_state_dict({n.removeprefix("model."): v for n, v in held.items() if n[:1] == "m"})
    for i, optimizer in enumerate(steps):
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in held.items():
            if name.startswith(f"{i}."):
                _, j, key = name.split(".", 2)
                state.setdefault(int(j), {})[key] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return int(about["step"])


def main() -> None:
    """Run `python -m pylm.train`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/pylm"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--until", type=int, help="stop after so many steps, to have the early ones"
    )
    parser.add_argument("--muon-rate", type=float, default=Recipe.muon_rate)
    parser.add_argument("--adam-rate", type=float, default=Recipe.adam_rate)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    recipe = Recipe(muon_rate=given.muon_rate, adam_rate=given.adam_rate)
    tokens = prepare(given.work, recipe.vocabulary)
    train(recipe, tokens, given.work, given.until)


if __name__ == "__main__":
    main()
