"""Matched training: every SAE of one arm in one pass over the token stream.

Arms differ in their model alone. Tokens, their order and shuffles, the SAEs' initial bits, the
optimizer and the number of tokens are the same; activations are centered and scaled to a common
mean squared norm.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_placebo import artefacts, gaussian
from sae_placebo.activations import Block, Calibration, TokenMeans, batches, blocks, row_order
from sae_placebo.controls.dictionary import DictionaryControl, Moments
from sae_placebo.gaussian import SecondMoments
from sae_placebo.interop import saelens
from sae_placebo.lazy import torch
from sae_placebo.models import Reader, parse_hookpoint
from sae_placebo.plans import ArmModel
from sae_placebo.progress import Advance
from sae_placebo.protocol import TrialSpec
from sae_placebo.saes.kernels import Workspace
from sae_placebo.spec import generator
from sae_placebo.text import Rows
from sae_placebo.training import Fit, train


@dataclass
class ArmTraining:
    """The SAEs of one arm, and what is learned of its activations on the way.

    Args:
        spec: The trial's protocol.
        reader: Of the arm's model.
        rows: The training rows.
        harvest: The arm's harvest artefact: calibrations and held-out activations.
        vocabulary_size: Number of token ids.
        control: What is done to the dictionaries; None: they are trained in full.
    """

    spec: TrialSpec
    reader: Reader | gaussian.GaussianReader
    rows: Rows
    harvest: Path
    vocabulary_size: int
    control: DictionaryControl | None = None
    fits: dict[tuple[str, str, int], Fit] = field(default_factory=dict)
    lookups: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    moments: dict[str, SecondMoments] = field(default_factory=dict)
    steps: list[tuple[int, dict[str, int]]] = field(default_factory=list)

    @functools.cached_property
    def calibrations(self) -> dict[str, Calibration]:
        """How the activations are masked, centered and scaled, by hookpoint."""
        return artefacts.read_calibrations(self.harvest)

    @property
    def n_tokens(self) -> int:
        """Tokens of the stream, outliers included."""
        return int(self.rows.usable().sum())

    @functools.cached_property
    def _before(self) -> dict[str, Moments]:
        """Moments of the training stream, by hookpoint, for dictionaries that are made of them."""
        if self.control is None or not self.control.needs_moments:
            return {}
        found = {name: SecondMoments(one.mean) for name, one in self.calibrations.items()}
        for block in self._blocks():
            for name, x in block.activations.items():
                found[name].add(x[self.calibrations[name].keeps(x)])
        return {name: _scaled(one, self.calibrations[name]) for name, one in found.items()}

    def _starts(self, hookpoint: str) -> dict[tuple[str, str, int], Fit]:
        spec, control = self.spec, self.control
        fits = {}
        for label, sae in spec.saes.items():
            for seed in spec.sae_seeds:
                start = sae.create(self.reader.d_in, seed)
                held: dict[str, Any] = {}
                if control is not None:
                    start = control.start(start, self._before.get(hookpoint), spec.seed, seed)
                    held = {"frozen": control.frozen, "decoder_cosine": control.decoder_cosine}
                fits[hookpoint, label, seed] = Fit(start, spec.training, self.n_tokens, **held)
        return fits

    def _blocks(self) -> Iterator[Block]:
        order = row_order(len(self.rows.lengths), self.spec.seed)
        return blocks(self.reader, self.rows, order, self.spec.harvest.block_rows)

    def fit(self, advance: Advance) -> None:
        """Train the SAEs, and gather E[x | token] and the covariance from the same stream."""
        centers = {name: one.mean for name, one in self.calibrations.items()}
        means = {name: TokenMeans(self.vocabulary_size, c) for name, c in centers.items()}
        self.moments = {name: SecondMoments(c) for name, c in centers.items()}
        by_hookpoint = {name: self._starts(name) for name in self.spec.hookpoints}
        self.fits = {key: fit for fits in by_hookpoint.values() for key, fit in fits.items()}
        members = {name: list(fits.values()) for name, fits in by_hookpoint.items()}
        train(self._stream(means), members, advance)
        self.lookups = {name: one.table() for name, one in means.items()}

    def _stream(
        self, means: Mapping[str, TokenMeans]
    ) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
        """Yield the arm's batches; on the way, count activations and note the batches' sizes."""
        spec = self.spec
        for index, block in enumerate(self._blocks()):
            for name, x in block.activations.items():
                kept = self.calibrations[name].keeps(x)
                ids, x = (block.token_ids, x) if kept.all() else (block.token_ids[kept], x[kept])
                means[name].add(ids, x)
                self.moments[name].add(x)
            size = spec.training.batch_tokens
            for offered, batch in batches(block, self.calibrations, size, spec.seed, index):
                self.steps.append((offered, {name: len(x) for name, x in batch.items()}))
                yield offered, batch

    def fit_nulls(self, advance: Advance) -> dict[str, dict[str, dict[str, Any]]]:
        """Train every recipe and seed on Gaussian draws; return what each explains, as JSON.

        A null takes the arm's own steps: as many draws in each as the arm had tokens, at the same
        step sizes. It learns from the training tokens' mean and covariance, and is scored on the
        held-out tokens', as the arm's SAEs are.
        """
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for hookpoint in self.spec.hookpoints:
            one = self.calibrations[hookpoint]
            draw, fits = self.moments[hookpoint].sampler(one), self._starts(hookpoint)
            random = generator(self.spec.seed, "gaussian", "training")
            workspace = Workspace()
            for offered, sizes in self.steps:
                x = draw(sizes[hookpoint], random)
                for fit in fits.values():
                    fit.step(x, workspace, offered)
                advance(offered)
            unseen = self._heldout_moments(hookpoint).sampler(one)
            found[hookpoint] = {label: {} for label in self.spec.saes}
            for (_, label, seed), fit in fits.items():
                scored = gaussian.score(fit.sae(), unseen, self.spec.seed)
                found[hookpoint][label][str(seed)] = scored.record()
        return found

    def _heldout_moments(self, hookpoint: str) -> SecondMoments:
        one = self.calibrations[hookpoint]
        x = artefacts.read_activations(self.harvest, hookpoint)
        moments = SecondMoments(one.mean)
        moments.add(x[one.keeps(x)])
        return moments

    def write(self, folder: Path, build: Path, one: ArmModel) -> None:
        """Write the SAEs in model units, the lookup tables and the training log.

        Args:
            folder: Where to.
            build: The arm's build artefact, whose recipe every SAE carries.
            one: The arm and its re-draw.
        """
        provenance = artefacts.provenance(build, self.spec, one)
        artefacts.copy_recipe(build, folder)
        logs: list[dict[str, Any]] = []
        for (hookpoint, label, seed), fit in self.fits.items():
            scale = self.calibrations[hookpoint]
            keys = {"hookpoint": hookpoint, "sae": label, "sae_seed": seed}
            saelens.write(
                fit.sae().fold(scale.mean, scale.factor),
                artefacts.sae_folder(folder, hookpoint, label, seed),
                {**provenance, **_hook_names(hookpoint), "sae_seed": seed},
            )
            logs += [keys | row for row in fit.log()]
        artefacts.write_lookup(folder, self.lookups)
        artefacts.write_records(folder / "log.parquet", logs)


def _scaled(counted: SecondMoments, by: Calibration) -> Moments:
    """Return moments in the centered and scaled units of training."""
    mean, covariance = counted.mean_and_covariance()
    return Moments(((mean - by.mean) * by.factor).float(), (covariance * by.factor**2).float())


def _hook_names(hookpoint: str) -> dict[str, str]:
    """Return a hookpoint under our name and, as SAELens asks, under TransformerLens's."""
    place = parse_hookpoint(hookpoint)
    return {"hookpoint": hookpoint, "hook_name": f"blocks.{place.layer}.hook_{place.site}"}
