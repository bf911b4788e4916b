"""How a worker in a peer's environment hands over an SAE, and what the peer computes with it.

Every case is a folder of the peer's own files and, beside it, `<case>.expected.safetensors`: the peer's own
codes of the fixed batch and its reconstruction of the first tokens.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ["TQDM_DISABLE"] = "1"

RECONSTRUCTED = 16
"""Tokens whose reconstruction is kept."""


@dataclass(frozen=True)
class Task:
    """What a worker is asked for.

    Attributes:
        model: Folder of a Hugging Face model.
        rows: File with the token ids of training rows, and with the activations of the site.
        out: Where cases go.
        width: Leading columns of the activations that are used; all where it is 0.
        d_sae: Latents.
        steps: Training steps of `batch_tokens` tokens.
        tokens: Tokens of the fixed batch.
    """

    model: str
    rows: str
    out: str
    width: int
    d_sae: int
    steps: int
    tokens: int
    batch_tokens: int = 512

    def activations(self) -> tuple[Any, Any]:
        """Return the training activations and the fixed batch, which is not among them."""
        from safetensors.torch import load_file

        found = load_file(self.rows)["activations"].float()
        found = found[:, : self.width] if self.width else found
        found = found.contiguous()
        return found[self.tokens :], found[: self.tokens]

    def stream(self) -> Iterator[Any]:
        """Yield batches of training tokens for ever, in an order of their own."""
        import torch

        kept, _ = self.activations()
        random = torch.Generator().manual_seed(0)
        while True:
            for part in torch.randperm(len(kept), generator=random).split(self.batch_tokens):
                if len(part) == self.batch_tokens:
                    yield kept[part].clone()

    def folder(self, case: str) -> Path:
        return Path(self.out) / case

    def write(self, case: str, codes: Any, reconstruction: Any, **more: float) -> None:
        """Write what the peer computes of a case: dense codes, and numbers that its files lack."""
        import torch
        from safetensors.torch import save_file

        tensors = {
            "codes": codes.detach().float().contiguous(),
            "reconstruction": reconstruction[:RECONSTRUCTED].detach().float().contiguous(),
            **{name: torch.tensor(value) for name, value in more.items()},
        }
        save_file(tensors, Path(self.out) / f"{case}.expected.safetensors")


def task() -> Task:
    """Return the task, which the parent writes to standard input."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    return Task(**json.loads(sys.stdin.readline()))


def done(**versions: str) -> None:
    """Tell the parent that all cases are written, and by which versions."""
    print("\n" + json.dumps(versions), flush=True)
