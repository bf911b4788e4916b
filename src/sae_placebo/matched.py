"""Matched training: every SAE of one arm in one pass over the token stream.

Arms differ in their model alone. Tokens, their order and shuffles, the SAEs' initial bits, the
optimizer and the number of tokens are the same; activations are centered and scaled to a common
mean squared norm.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_placebo import artefacts, gaussian
from sae_placebo.activations import Block, Calibration, TokenMeans, batches, blocks, row_order
from sae_placebo.gaussian import SecondMoments
from sae_placebo.interop import saelens
from sae_placebo.lazy import torch
from sae_placebo.models import Reader, parse_hookpoint
from sae_placebo.progress import Advance
from sae_placebo.protocol import TrialSpec
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
        calibrations: One per hookpoint.
        vocabulary_size: Number of token ids.
    """

    spec: TrialSpec
    reader: Reader
    rows: Rows
    calibrations: Mapping[str, Calibration]
    vocabulary_size: int
    fits: dict[tuple[str, str, int], Fit] = field(default_factory=dict)
    lookups: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    moments: dict[str, SecondMoments] = field(default_factory=dict)

    @property
    def n_tokens(self) -> int:
        """Tokens of the stream, outliers included."""
        return int(self.rows.usable().sum())

    @property
    def n_null_tokens(self) -> int:
        """Draws that the Gaussian nulls are trained on: one SAE seed per recipe and hookpoint."""
        return self.n_tokens * len(self.spec.saes) * len(self.spec.hookpoints)

    def fit(self, advance: Advance) -> None:
        """Train the SAEs, and gather E[x | token] and the covariance from the same stream."""
        spec, d_in = self.spec, self.reader.d_in
        means = {name: TokenMeans(self.vocabulary_size, d_in) for name in spec.hookpoints}
        self.moments = {name: SecondMoments(one.mean) for name, one in self.calibrations.items()}
        self.fits = {
            (hookpoint, label, seed): Fit(sae.create(d_in, seed), spec.training, self.n_tokens)
            for hookpoint in spec.hookpoints
            for label, sae in spec.saes.items()
            for seed in spec.sae_seeds
        }

        def stream() -> Iterator[dict[str, torch.Tensor]]:
            order = row_order(len(self.rows.lengths), spec.seed)
            for index, block in enumerate(
                blocks(self.reader, self.rows, order, spec.harvest.block_rows)
            ):
                self._gather(block, means)
                yield from batches(
                    block, self.calibrations, spec.training.batch_tokens, spec.seed, index
                )

        by_hookpoint = {
            hookpoint: [fit for key, fit in self.fits.items() if key[0] == hookpoint]
            for hookpoint in spec.hookpoints
        }
        train(stream(), by_hookpoint, advance)
        self.lookups = {name: one.table() for name, one in means.items()}

    def _gather(self, block: Block, means: Mapping[str, TokenMeans]) -> None:
        for name, x in block.activations.items():
            kept = x.norm(dim=1) <= self.calibrations[name].norm_limit
            if not kept.all():
                means[name].add(block.token_ids[kept], x[kept])
                self.moments[name].add(x[kept])
            else:
                means[name].add(block.token_ids, x)
                self.moments[name].add(x)

    def fit_nulls(self, advance: Advance) -> dict[str, dict[str, dict[str, float | int]]]:
        """Train each recipe, with its first seed, on Gaussian draws; return what it explains.

        The number of tokens and of steps is that of the arm's own training.
        """
        spec = self.spec
        found: dict[str, dict[str, dict[str, float | int]]] = {}
        for hookpoint in spec.hookpoints:
            draw = self.moments[hookpoint].sampler(self.calibrations[hookpoint])
            found[hookpoint] = {}
            for label, sae in spec.saes.items():
                start = sae.create(self.reader.d_in, spec.sae_seeds[0])
                fit = Fit(start, spec.training, self.n_tokens)
                random = generator(spec.seed, "gaussian", "training")
                left = self.n_tokens
                while left > 0:
                    n = min(left, spec.training.batch_tokens)
                    fit.step(draw(n, random))
                    left -= n
                    advance(n)
                found[hookpoint][label] = gaussian.score(fit.sae(), draw, spec.seed).record()
        return found

    def write(self, folder: Path, provenance: Mapping[str, Any]) -> None:
        """Write the SAEs in model units, the lookup tables and the training log.

        Args:
            folder: Where to.
            provenance: Metadata of every SAE: which model it was trained on.
        """
        logs: list[dict[str, Any]] = []
        for (hookpoint, label, seed), fit in self.fits.items():
            one = self.calibrations[hookpoint]
            keys = {"hookpoint": hookpoint, "sae": label, "sae_seed": seed}
            saelens.write(
                fit.sae().fold(one.mean, one.factor),
                artefacts.sae_folder(folder, hookpoint, label, seed),
                {**provenance, **_hook_names(hookpoint), "sae_seed": seed},
            )
            logs += [keys | row for row in fit.log()]
        artefacts.write_lookup(folder, self.lookups)
        artefacts.write_records(folder / "log.parquet", logs)


def _hook_names(hookpoint: str) -> dict[str, str]:
    """Return a hookpoint under our name and, as SAELens asks, under TransformerLens's."""
    place = parse_hookpoint(hookpoint)
    return {"hookpoint": hookpoint, "hook_name": f"blocks.{place.layer}.hook_{place.site}"}
