"""The Gaussian nulls of the SAEs that read the same activations: the same recipes on Gaussian draws.

There is one per arm, hookpoint and recipe, with the first SAE seed: between two seeds it moved by 0.0005
of explained variance (median of 75 pairs; at most 0.005); between arms it differs by up to 0.4.
A null takes the SAE's own steps: as many draws in each as there were tokens, at the same step sizes. It
learns from the training tokens' mean and covariance, and is scored on the held-out tokens', as the
SAE is. Each batch is drawn once for all SAEs of a hookpoint, and so are the draws that are scored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_placebo.core.checkpoints import Checkpoint, State, Work
from sae_placebo.core.lazy import torch
from sae_placebo.core.progress import Advance
from sae_placebo.core.spec import generator
from sae_placebo.models import gaussian
from sae_placebo.models.activation_files import read_activations
from sae_placebo.models.activations import Calibration
from sae_placebo.models.gaussian import GaussianDraw, SecondMoments
from sae_placebo.saes import SAE
from sae_placebo.saes.kernels import Workspace
from sae_placebo.saes.training import Fit, step_all
from sae_placebo.trial.spec import TrialSpec

Member = tuple[str, str, int]
"""An SAE at a hookpoint is named by the key of its training, its label and its seed."""

Scores = dict[str, dict[str, dict[str, dict[str, Any]]]]
"""What each null explains, as JSON: by key of the training, hookpoint, label and seed; one seed each."""


@dataclass
class Nulls:
    """The Gaussian nulls of the SAEs that are trained in one pass over the stream.

    Args:
        spec: The trial's protocol.
        harvest: The harvest artefact, with the held-out activations.
        calibrations: How activations are masked, centered and scaled, by hookpoint.
        starts: Returns new fits of a hookpoint and some SAE seeds, as the SAEs started.
        work: Where checkpoints are kept.
    """

    spec: TrialSpec
    harvest: Path
    calibrations: Mapping[str, Calibration]
    starts: Callable[[str, Sequence[int]], dict[Member, Fit]]
    work: Work
    done: int = 0
    scores: Scores = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._reset()
        saved = self.work.load("null")
        if saved is not None and not self.work.fits(saved, self._restore):
            self._reset()

    def _reset(self) -> None:
        self.done, self.scores = 0, {}
        self._place = (0, 0)
        self._fits: dict[Member, Fit] = {}
        self._random: torch.Generator | None = None

    def run(
        self,
        moments: Mapping[str, SecondMoments],
        steps: Sequence[tuple[int, Mapping[str, int]]],
        advance: Advance,
    ) -> None:
        """Train what is left and score it.

        Args:
            moments: Of the training tokens, by hookpoint.
            steps: Of the SAEs: tokens offered, and tokens of the batch by hookpoint.
            advance: Called with the tokens of each step.
        """
        with self.work.during("null", self._state) as checkpoint:
            for index, hookpoint in list(enumerate(self.spec.hookpoints))[self._place[0] :]:
                if not self._fits:
                    with self.work.step():
                        self._begin(hookpoint)
                one, sizes = self.calibrations[hookpoint], [s[hookpoint] for _, s in steps]
                draw = moments[hookpoint].sampler(one)
                self._train(
                    index, draw, [offered for offered, _ in steps], sizes, advance, checkpoint
                )
                found = self._scored(hookpoint, one)
                with self.work.step():
                    for (key, label, seed), record in found.items():
                        of_key = self.scores.setdefault(key, {}).setdefault(hookpoint, {})
                        of_key.setdefault(label, {})[str(seed)] = record
                    self._fits, self._random, self._place = {}, None, (index + 1, 0)

    def _begin(self, hookpoint: str) -> None:
        self._fits = self.starts(hookpoint, self.spec.sae_seeds[:1])
        self._random = generator(self.spec.seed, "gaussian", "training")

    def _train(
        self,
        index: int,
        draw: GaussianDraw,
        offered: Sequence[int],
        sizes: Sequence[int],
        advance: Advance,
        checkpoint: Callable[[], None],
    ) -> None:
        workspace = Workspace()
        assert self._random is not None
        for step in range(self._place[1], len(sizes)):
            with self.work.step():
                x = draw(sizes[step], self._random).to(self.spec.device)
                step_all(list(self._fits.values()), x, workspace, offered[step])
                self._place = (index, step + 1)
                self.done += offered[step]
            advance(offered[step])
            checkpoint()

    def _scored(self, hookpoint: str, one: Calibration) -> dict[Member, dict[str, float | int]]:
        x = read_activations(self.harvest, hookpoint)
        unseen = SecondMoments(one.mean)
        unseen.add(x[one.keeps(x)])
        draw = _Once(unseen.sampler(one))
        return {
            member: gaussian.score(placed(fit.sae(), "cpu"), draw, self.spec.seed).record()
            for member, fit in self._fits.items()
        }

    def _state(self) -> State:
        parts = [(_part(member), fit.state) for member, fit in self._fits.items()]
        if self._random is not None:
            state = self._random.get_state()
            parts.append(("draws", lambda: {"generator": state}))
        record = {"place": self._place, "scores": self.scores, "draws": self._random is not None}
        return State(self.done, record, ((name, made()) for name, made in parts))

    def _restore(self, saved: Checkpoint) -> None:
        hookpoint, step = saved.record["place"]
        if saved.record["draws"]:
            self._begin(self.spec.hookpoints[hookpoint])
            for member, fit in self._fits.items():
                fit.restore(saved.part(_part(member)))
            assert self._random is not None
            self._random.set_state(saved.part("draws")["generator"])
        self.done, self._place, self.scores = saved.done, (hookpoint, step), saved.record["scores"]


@dataclass
class _Once:
    """Draws that are made once: every SAE of a hookpoint is scored on the same ones.

    They are drawn by name, so each would draw the same bits again.
    """

    draw: GaussianDraw
    drawn: torch.Tensor | None = None

    def __call__(self, n: int, random: torch.Generator, /) -> torch.Tensor:
        if self.drawn is None or len(self.drawn) != n:
            self.drawn = self.draw(n, random)
        return self.drawn


def placed(sae: SAE, device: str) -> SAE:
    """Return the SAE with its tensors on a device; those that are there already are not copied."""
    return SAE(sae.spec, {name: tensor.to(device) for name, tensor in sae.params.items()})


def _part(member: Member) -> str:
    key, label, seed = member
    return f"{key[:16]} {label} {seed}"
