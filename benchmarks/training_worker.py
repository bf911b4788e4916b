"""Trains one SAE from start to end and prints its curve; `whole_training.py` starts it everywhere.

Only steps are timed: held-out checks between them are not, nor is drawing the batch. The last line of
standard output is JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import machine
import timing
import torch
from sides import SIDES, Setting, Side, Unsupported
from step_worker import set_products

from data import load

_EVALUATED_AT_ONCE = 2048


def held_out(side: Side, x: torch.Tensor) -> tuple[float, float]:
    """Return the share of variance explained, and the mean number of active latents per token."""
    missed, active = 0.0, 0.0
    with torch.no_grad():
        for part in x.split(_EVALUATED_AT_ONCE):
            found, n = side.reconstruct(part)
            missed += float((part - found).double().square().sum())
            active += n
    variance = float((x - x.mean(dim=0)).double().square().sum())
    return 1 - missed / variance, active / len(x)


def marks(n_steps: int, n_checks: int) -> set[int]:
    """Return after which steps the SAE is checked: denser at the start, and at the end."""
    shares = [(one / n_checks) ** 1.7 for one in range(1, n_checks + 1)]
    return {max(1, round(share * n_steps)) for share in shares}


def train(side: Side, setting: Setting, x: torch.Tensor, n_heldout: int, n_checks: int) -> Any:
    """Return the curve, total seconds, and the largest share that others took of the machine."""
    kept, stream = x[:n_heldout], x[n_heldout:]
    checked = marks(setting.steps, n_checks)
    ev, l0 = held_out(side, kept)
    curve = [{"tokens": 0, "seconds": 0.0, "explained_variance": ev, "l0": l0}]
    seconds, others = 0.0, 0.0
    for step in range(setting.steps):
        first = step * setting.batch_tokens
        batch = stream[first : first + setting.batch_tokens].contiguous()
        taken, foreign = timing.timed(lambda batch=batch: side.step(batch))  # type: ignore[misc]
        seconds += taken
        others += foreign * taken
        if step + 1 in checked:
            ev, l0 = held_out(side, kept)
            tokens = (step + 1) * setting.batch_tokens
            curve.append({"tokens": tokens, "seconds": seconds, "explained_variance": ev, "l0": l0})
    return {"curve": curve, "seconds": seconds, "foreign": others / seconds}


def main() -> None:
    settings = json.loads(sys.stdin.readline())
    torch.set_num_threads(settings["threads"])
    products = set_products(settings["products"])
    setting = Setting(**settings["setting"])
    x = load(settings["data"])
    try:
        side = SIDES[settings["side"]](setting)
        # compiled loops are compiled, and libraries loaded, on an SAE that is thrown away
        spare = SIDES[settings["side"]](setting)
        for _ in range(2):
            spare.step(x[: setting.batch_tokens].contiguous())
        del spare
    except Unsupported as reason:
        print(json.dumps({"unsupported": str(reason)}), flush=True)
        return
    found = train(side, setting, x, settings["n_heldout"], settings["n_checks"])
    about = {"products": products, "torch": machine.versions("torch")["torch"], "notes": side.notes}
    print(json.dumps(found | about), flush=True)


if __name__ == "__main__":
    main()
