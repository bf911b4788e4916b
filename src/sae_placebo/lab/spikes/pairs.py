"""Pairs of spikes that occur together: does an SAE keep them apart, or merge them into one latent?

A sparsity penalty counts active latents, so two features that often occur together cost less as one latent
than as two. Pairs are planted with three relations: a *child* never occurs without its parent, two spikes
occur *together* at a stated rate, and, as the null, two are *independent*. Pairs of all three share each
training. What became of a pair is a decision list, the first outcome that applies:

- *apart*: each of the two has a latent of its own. Such a latent points along its spike (a cosine of at least
  `Thresholds.cosine`), hardly along the other one (a cosine below `Thresholds.part`), and detects its spike
  (F1 of at least `Thresholds.f1`);
- *one*: only one of the two has a latent of its own;
- *merged*: neither has, and one latent lies in the plane of both, points partly along each, detects "one of
  the two is active" with the same F1, and fires on at least `Thresholds.share` of the tokens of each;
- *lost*: none of these.

So an absorbed pair, where the parent has a latent of its own and the child rides in one with it, is *one*.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64
from pydantic import Field

from sae_placebo.core.errors import SpecError
from sae_placebo.core.spec import Distinct, Spec, numpy_generator
from sae_placebo.lab.spikes.grid import packed_together
from sae_placebo.lab.spikes.outcomes import OutcomeRules, Thresholds, f1_of
from sae_placebo.lab.spikes.planting import Planting, Spike
from sae_placebo.lab.spikes.recovery import decoder_cosines
from sae_placebo.saes import SAE

INDEPENDENT, TOGETHER, CHILD = "independent", "together", "child"
RELATIONS = (TOGETHER, CHILD, INDEPENDENT)
"""How two spikes of a pair occur; the last is the null of the others."""
APART, MERGED, ONE, LOST = "apart", "merged", "one", "lost"
PAIR_OUTCOMES = (APART, MERGED, ONE, LOST)

_CANDIDATES = 8
"""Largest number of latents past the cosine thresholds whose detectors are tried, the best by firing."""
_PER_PAIR = 2
PER_REPEAT = _PER_PAIR * len(RELATIONS)
"""Spikes of one repeat at a frequency and a magnitude."""


class PairGrid(Spec):
    """Frequencies, magnitudes and company of pairs, and how the pairs share trainings."""

    frequencies: Distinct[float] = (8e-3,)
    """Probabilities that the first spike of a pair is active on a token."""
    magnitudes: Distinct[float] = (0.5,)
    """Mean lengths of both spikes, in units of the activations' rms norm about their mean."""
    rate: float = Field(0.8, gt=0, lt=1)
    """Probability that the second spike is active where the first one is, for `together` and `child`."""
    repeats: int = Field(12, ge=1)
    """Number of pairs of each relation, frequency and magnitude."""
    per_training: int = Field(40, ge=1)
    """Largest number of spikes in one training."""
    energy_share: float = Field(0.04, gt=0)
    """Largest energy of the spikes in one training, as a share of the activations' about their mean."""
    amplitude: Literal["constant", "uniform", "lognormal"] = "lognormal"
    """Law of the spikes' lengths, as in `Spike`."""

    def trainings(self, seed: int) -> list[list[Spike]]:
        """Return the spikes of each training; the two of a pair follow each other.

        One pair of each relation is packed as a unit, so that each training holds the null as well.

        Args:
            seed: Seed of the order in which pairs are packed.

        Raises:
            SpecError: the pairs of one unit do not fit into a training.
        """
        units = [
            [spike for relation in RELATIONS for spike in self.pair(relation, f, m, k)]
            for k in range(self.repeats)
            for f in self.frequencies
            for m in self.magnitudes
        ]
        order = numpy_generator(seed, "pair grid").permutation(len(units))
        return packed_together([units[i] for i in order], self.per_training, self.energy_share)

    def pair(self, relation: str, frequency: float, magnitude: float, number: int) -> list[Spike]:
        """Return the two spikes of a pair; their names begin with the relation."""
        name = f"{relation} {frequency:g} {magnitude:g} {number}"
        law: dict[str, Any] = {"magnitude": magnitude, "amplitude": self.amplitude}
        first = Spike(name=f"{name} first", frequency=frequency, **law)
        company: dict[str, Any] = {"frequency": frequency}
        if relation == CHILD:
            company = {"frequency": self.rate * frequency, "parent": first.name}
        elif relation == TOGETHER:
            # without the first, the second is active on the rest of its tokens; there may be too few for it
            if frequency * (2 - self.rate) > 1:
                raise SpecError(
                    f"two spikes of frequency {frequency:g} are together on {2 - 1 / frequency:.4g} or more "
                    f"of the first one's tokens, not on {self.rate:g}: raise this rate (together) or lower "
                    "the frequency"
                )
            phi = (self.rate - frequency) / (1 - frequency)
            company |= {"beside": first.name, "correlation": phi}
        return [first, Spike(name=f"{name} second", **law, **company)]


class _Own(NamedTuple):
    """The best latent that is about one spike and not about the other; -1 where no latent is."""

    latent: int
    cosine: float
    f1: float


def pair_rows(
    sae: SAE,
    codes: Any,
    plan: Planting,
    active: Sequence[Bool[np.ndarray, " token"]],
    thresholds: Thresholds,
) -> list[dict[str, Any]]:
    """Return what became of each pair of a plan: one row per pair, in types that JSON has.

    Args:
        sae: An SAE trained on activations with the pairs planted.
        codes: The SAE's codes of held-out tokens with the pairs planted, from `codes_on`.
        plan: Pairs from `PairGrid.trainings`: the spikes of one follow each other.
        active: For each spike, whether it is active on each token, from `Planting.active`.
        thresholds: Thresholds between outcomes.
    """
    cosines = decoder_cosines(sae, plan)
    fires = np.asarray((codes > 0).sum(0), dtype=np.float64).ravel()
    rules = OutcomeRules(codes, fires, thresholds)
    rows = []
    for i in range(0, len(plan.spikes), _PER_PAIR):
        first = plan.spikes[i]
        judge = _Pair(rules, cosines[i : i + 2], active[i], active[i + 1])
        rows.append(
            {
                "relation": first.name.split()[0],
                "pair": first.name.rsplit(" ", 1)[0],
                "frequency": first.frequency,
                "magnitude": first.magnitude,
                **judge.row(),
            }
        )
    return rows


class _Pair:
    """One pair held against all latents of an SAE."""

    def __init__(
        self,
        rules: OutcomeRules,
        cosines: Float64[np.ndarray, "two latent"],
        first: Bool[np.ndarray, " token"],
        second: Bool[np.ndarray, " token"],
    ) -> None:
        self.rules, self.limits, self.cosines = rules, rules.limits, cosines
        self.first, self.second = first, second

    def row(self) -> dict[str, Any]:
        """Return the pair's outcome and the numbers behind it; None where it cannot be judged."""
        own = [self._own(0, self.first), self._own(1, self.second)]
        shared, shared_f1 = self._shared()
        counts = {
            "n_first": int(self.first.sum()),
            "n_second": int(self.second.sum()),
            "n_both": int((self.first & self.second).sum()),
        }
        n_own = sum(one.latent >= 0 for one in own)
        outcome: str | None = LOST
        if min(counts["n_first"], counts["n_second"]) < self.limits.least_tokens:
            outcome = None
        elif n_own:
            outcome = APART if n_own == _PER_PAIR else ONE
        elif shared >= 0:
            outcome = MERGED
        row: dict[str, Any] = {"outcome": outcome, **counts}
        for name, one in zip(("first", "second"), own, strict=True):
            found = one.latent >= 0
            row[f"{name}_latent"] = one.latent if found else None
            row[f"{name}_cosine"] = one.cosine if found else None
            row[f"{name}_f1"] = one.f1 if found else None
        row["shared_latent"] = shared if shared >= 0 else None
        row["shared_f1"] = shared_f1 if shared >= 0 else None
        return row

    def _own(self, which: int, active: Bool[np.ndarray, " token"]) -> _Own:
        """Return the latent that detects one spike best among those that are not about the other."""
        along, other = self.cosines[which], np.abs(self.cosines[1 - which])
        near = np.flatnonzero((along >= self.limits.cosine) & (other < self.limits.part))
        best = _Own(-1, 0.0, 0.0)
        for latent in self._first_of(near, active):
            f1 = f1_of(self.rules.predicted(int(latent), active), active)
            if f1 >= self.limits.f1 and f1 > best.f1:
                best = _Own(int(latent), float(along[latent]), f1)
        return best

    def _shared(self) -> tuple[int, float]:
        """Return the latent that stands for both spikes, and its F1 as a detector of either; -1 for none."""
        limits, either = self.limits, self.first | self.second
        in_plane = np.linalg.norm(self.cosines, axis=0) >= limits.cosine
        near = np.flatnonzero(in_plane & (self.cosines >= limits.part).all(0))
        best, best_f1 = -1, 0.0
        for latent in self._first_of(near, either):
            predicted = self.rules.predicted(int(latent), either)
            recalled = [
                predicted[on].mean() if on.any() else 0.0 for on in (self.first, self.second)
            ]
            f1 = f1_of(predicted, either)
            if f1 >= limits.f1 and min(recalled) >= limits.share and f1 > best_f1:
                best, best_f1 = int(latent), f1
        return best, best_f1

    def _first_of(self, latents: np.ndarray, active: Bool[np.ndarray, " token"]) -> np.ndarray:
        """Return the latents whose firing goes best with the active tokens, the best first."""
        together = np.asarray((self.rules.codes[:, latents] > 0)[active].sum(0)).ravel()
        firing = 2 * together / np.maximum(self.rules.per_latent[latents] + active.sum(), 1)
        chosen: np.ndarray = latents[np.argsort(-firing, kind="stable")][:_CANDIDATES]
        return chosen
