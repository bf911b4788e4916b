"""The values of metrics under document weights, gathered by arm and seed for `stats.effects`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from sae_placebo.core.errors import NotEstimable


class ReplicateKey(NamedTuple):
    """A table of replicates is looked up by one of these."""

    arm: str
    hookpoint: str
    sae: str
    metric: str


@dataclass(frozen=True)
class Replicates:
    """One metric of one arm: all its seeds under all document weights.

    Attributes:
        values: Value for each re-draw of the model, SAE seed and document weight; replicate 0 is
            the point estimate.
        model_seeds: Names of the re-draws.
        sae_seeds: Names of the SAE seeds.
        drawn: Whether another re-draw could have been made. False for a model that is given, such
            as the trained one: it is no source of variation.
        counted: How many things the metric is a share of, such as d_sae latents; 0 where it counts none.
        is_share: Whether it is a share of things whose number differs between SAEs.
        null_value: The metric's own null, averaged over the seeds; None where it has no number.
    """

    values: Float[np.ndarray, "model sae_seed replicate"]
    model_seeds: tuple[int, ...]
    sae_seeds: tuple[int, ...]
    drawn: bool
    null_value: float | None = None
    counted: int = 0
    is_share: bool = False

    @property
    def point(self) -> float:
        """Return the mean over seeds on the held-out documents as they are."""
        return float(self.values[:, :, 0].mean())

    @property
    def replicates(self) -> Float[np.ndarray, " replicate"]:
        """Return the mean over seeds under each bootstrap replicate of the documents."""
        found: Float[np.ndarray, " replicate"] = self.values[:, :, 1:].mean(axis=(0, 1))
        return found

    @property
    def by_model(self) -> Float[np.ndarray, " model"]:
        """Return the mean over SAE seeds of each re-draw."""
        found: Float[np.ndarray, " model"] = self.values[:, :, 0].mean(axis=1)
        return found

    @property
    def by_sae_seed(self) -> Float[np.ndarray, " sae_seed"]:
        """Return the mean over re-draws of each SAE seed."""
        found: Float[np.ndarray, " sae_seed"] = self.values[:, :, 0].mean(axis=0)
        return found


@dataclass
class ReplicateTable:
    """The values of every metric of every SAE under the same document weights.

    Attributes:
        n_documents: Held-out documents that have tokens, by hookpoint.
        n_tokens: Held-out tokens, by hookpoint.
        drawn: The arms whose model is drawn, and could be drawn again; in all others it is given.
        families: What is drawn in each arm, in a word: re-draws of one family are taken to vary
            alike. Arms that are not named here are of one family.
        same_as: Arms whose SAEs are another arm's, and that arm.
        given: The arms and SAEs that are given, and are no draw: another seed of them is not asked about.
        shares: Metrics that are shares of things whose number differs between SAEs.
        withheld: Why a number is not told though it was measured, by the cells that it is made of: one arm's,
            both of an effect, or all four of an interaction.
    """

    n_documents: Mapping[str, int]
    n_tokens: Mapping[str, int]
    drawn: frozenset[str]
    families: Mapping[str, str] = field(default_factory=dict)
    same_as: Mapping[str, str] = field(default_factory=dict)
    given: frozenset[tuple[str, str]] = frozenset()
    shares: frozenset[str] = frozenset()
    withheld: dict[tuple[ReplicateKey, ...], str] = field(default_factory=dict, init=False)
    _values: dict[ReplicateKey, dict[tuple[int, int], Float[np.ndarray, " replicate"]]] = field(
        default_factory=dict, init=False, repr=False
    )
    _nulls: dict[ReplicateKey, list[float]] = field(default_factory=dict, init=False, repr=False)
    _counted: dict[ReplicateKey, int] = field(default_factory=dict, init=False, repr=False)
    _reasons: dict[ReplicateKey, str] = field(default_factory=dict, init=False, repr=False)

    def add(
        self,
        cell: ReplicateKey,
        model_seed: int,
        sae_seed: int,
        values: Float[np.ndarray, " replicate"] | None,
        null_value: float | None = None,
        reason: str | None = None,
        counted: int = 0,
    ) -> None:
        """Add one SAE's values of one metric, or the reason why there are none.

        `counted` is how many things the metric is a share of, such as d_sae latents.
        """
        self._counted[cell] = counted
        of_cell = self._values.setdefault(cell, {})
        if values is None or not np.isfinite(values[0]):
            self._reasons.setdefault(cell, reason or "no reason was recorded")
            return
        of_cell[model_seed, sae_seed] = values
        if null_value is not None:
            self._nulls.setdefault(cell, []).append(null_value)

    def put(self, cell: ReplicateKey, found: Replicates) -> None:
        """Add all seeds of one cell."""
        for m, model_seed in enumerate(found.model_seeds):
            for s, sae_seed in enumerate(found.sae_seeds):
                values = found.values[m, s]
                self.add(cell, model_seed, sae_seed, values, counted=found.counted)

    def is_given(self, cell: ReplicateKey) -> bool:
        """Return whether the SAEs of a cell are given."""
        return (cell.arm, cell.sae) in self.given

    def counted(self, cell: ReplicateKey) -> int:
        """Return how many things the metric of a cell is a share of; 0 where it counts none."""
        return self._counted.get(cell, 0)

    def __iter__(self) -> Iterator[ReplicateKey]:
        return iter(self._values)

    def __contains__(self, cell: object) -> bool:
        return cell in self._values

    def __getitem__(self, cell: ReplicateKey) -> Replicates:
        """Return all seeds of one cell.

        Raises:
            NotEstimable: a seed's value is missing or withheld; the message says why.
        """
        if (cell,) in self.withheld:
            raise NotEstimable(f"{cell.arm}: {self.withheld[cell,]}")
        if cell not in self._values:
            raise NotEstimable(f"{cell.arm}: not measured")
        if cell in self._reasons:
            raise NotEstimable(f"{cell.arm}: {self._reasons[cell]}")
        values = self._values[cell]
        model_seeds = tuple(sorted({model for model, _ in values}))
        sae_seeds = tuple(sorted({sae for _, sae in values}))
        if len(values) != len(model_seeds) * len(sae_seeds):
            raise NotEstimable(
                f"{cell.arm}: {len(values)} SAEs, not one for each of {len(model_seeds)} model "
                f"seeds by {len(sae_seeds)} sae_seeds"
            )
        nulls = self._nulls.get(cell, [])
        return Replicates(
            values=np.array([[values[m, s] for s in sae_seeds] for m in model_seeds]),
            model_seeds=model_seeds,
            sae_seeds=sae_seeds,
            drawn=cell.arm in self.drawn,
            counted=self.counted(cell),
            is_share=cell.metric in self.shares,
            null_value=float(np.mean(nulls)) if len(nulls) == len(values) else None,
        )
