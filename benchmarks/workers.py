"""The parent's side of a worker: one process per side and setting, alive through the run."""

from __future__ import annotations

import json
import math
import os
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sides import Setting

KEPT_HEAP = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
"""A heap that keeps its pages: large temporaries are not mapped and faulted anew in every step."""


@dataclass(frozen=True)
class Condition:
    """Under what a side runs: which float32 product, which environment variables."""

    name: str
    products: str = "default"
    environment: dict[str, str] = field(default_factory=dict)


INSTALLED = Condition("installed")
TUNED = Condition("tuned", "medium", KEPT_HEAP)
# what a trial runs under: the package chooses the product itself, the heap is as it comes
TRIAL = Condition("trial", "trial")
TRIAL_TUNED = Condition("tuned", "trial", KEPT_HEAP)
PLAIN = Condition("plain", "trial", {"SAE_PLACEBO_COMPILED": "0"})


class Worker:
    """One process that steps on request; `problem` says why there is none."""

    def __init__(
        self,
        python: str,
        side: str,
        condition: Condition,
        setting: Setting,
        rest: dict[str, Any],
    ) -> None:
        label = condition.name if not setting.search else f"{condition.name} {setting.search}"
        self.name, self.side, self.condition = f"{side} {label}", side, label
        self.setting = setting
        self.held_bytes: float | None = None
        self.problem: str | None = None
        self.about: dict[str, Any] = {}
        script = Path(__file__).with_name("step_worker.py")
        self._process = subprocess.Popen(
            [python, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **condition.environment},
        )
        self._ask({"side": side, "setting": asdict(setting), "products": condition.products} | rest)

    def ready(self) -> None:
        """Wait until the side is built; workers are started together and built side by side."""
        found = self._answer()
        if self.problem is None and "unsupported" in found:
            self.problem = found["unsupported"]
            self._process.wait()
        self.about = found

    def _ask(self, value: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(value) + "\n")
        self._process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # peers print on import
                return dict(json.loads(line))
        assert self._process.stderr is not None
        last = [line for line in self._process.stderr.read().splitlines() if line.strip()]
        status = self._process.wait()
        self.problem = last[-1][:300] if last else f"ended with status {status}"
        return {}

    def run(self, most_foreign: float) -> float:
        """Return the seconds of the fastest quiet step of a turn; NaN if there was none."""
        self._ask({})
        found = self._answer()
        if not found:
            raise SystemExit(f"{self.name}: {self.problem}")
        self.held_bytes = found["held_bytes"]
        quiet = [
            taken
            for taken, foreign in zip(found["seconds"], found["foreign"], strict=True)
            if not foreign > most_foreign
        ]
        return min(quiet, default=math.nan)

    def memory(self) -> dict[str, Any] | None:
        """Return the most held beyond weights and Adam's two moments, in bytes and as a share.

        The share is of weights, moments and one batch. The batch itself was there before.
        """
        if self.held_bytes is None or self.side == "floor":
            return None
        state = 3 * 4 * self.about["n_parameters"]
        batch = 4 * self.setting.batch_tokens * self.setting.d_in
        beyond = self.held_bytes - state
        return {"state_bytes": state, "beyond_bytes": beyond, "share": beyond / (state + batch)}

    def end(self) -> None:
        if self._process.poll() is None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()
