"""What else could say which directions a model uses: simpler statistics, scored beside the verdicts.

Each is a number per direction, the higher the more used. None of them has an edit of finite size in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int64

from sae_placebo.causal.circuits.components import final_norm
from sae_placebo.causal.circuits.matrices import matrix
from sae_placebo.causal.circuits.weights import weight_capability
from sae_placebo.causal.use.base import Directions, Subject
from sae_placebo.causal.use.gradients import Gradients, drawn_rows, sampled_gradients
from sae_placebo.causal.use.removal import along
from sae_placebo.causal.use.screen import ScreenSpec, ScreenTally
from sae_placebo.core.errors import ModelError
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import numpy_generator

BASELINES = (
    "firing rate",
    "variance",
    "logit lens",
    "gradient x activation",
    "|gradient x activation|",
    "attribution patching",
    "Fisher screen",
    "weight readers",
)
"""Names of all baselines."""


@dataclass(frozen=True, eq=False)
class Baselines:
    """Simpler statistics of some directions; the higher, the more used.

    Attributes:
        values: [direction] of each by name; NaN for directions that no token read holds.
        reasons: Why all of one are NaN, by name.
    """

    values: dict[str, Float64[np.ndarray, " direction"]]
    reasons: dict[str, str]


def baselines(
    subject: Subject, directions: Directions, seed: int, spec: ScreenSpec | None = None
) -> Baselines:
    """Return the baselines of directions.

    - firing rate: share of tokens that hold the direction.
    - variance: mean over tokens of the amount's square.
    - logit lens: |W_U d|, the final norm's gains taken in (nostalgebraist 2020).
    - gradient x activation: |mean| over the tokens that hold it of a (g . d), with g the gradient of log
      probabilities of drawn labels; and the mean of |a (g . d)|.
    - attribution patching: mean |(a' - a) (g . d)|, a' what another token that holds it has (Nanda 2023;
      Syed et al. 2023, arXiv 2310.10348). Differs: the metric is the log probability of drawn labels.
    - Fisher screen: `use.screen`, mean of (a g . d)^2, without its nulls.
    - weight readers: of all matrices that read the site, the largest norm of W d in standard deviations
      above random directions (`circuits.weights`).

    Args:
        subject: The model and its held-out tokens.
        directions: Asked about.
        seed: Names all draws.
        spec: Tokens and labels of the gradients; None: the defaults.
    """
    values = {
        "firing rate": directions.n_active / directions.amounts.shape[0],
        "variance": np.asarray(directions.amounts.power(2).mean(axis=0), np.float64).ravel(),
    }
    values |= _gradients(subject, directions, seed, spec or ScreenSpec())
    reasons: dict[str, str] = {}
    try:
        values["logit lens"] = _logit_lens(subject, directions)
        found = weight_capability(subject, directions, seed)
        readers = np.where(np.isfinite(found.above_random), found.above_random, -np.inf).max(1)
        values["weight readers"] = np.where(np.isfinite(readers), readers, np.nan)
    except ModelError as refusal:
        for name in ("logit lens", "weight readers"):
            if name not in values:
                values[name], reasons[name] = np.full(len(directions), np.nan), str(refusal)
    return Baselines({name: values[name].astype(np.float64) for name in BASELINES}, reasons)


def _logit_lens(subject: Subject, directions: Directions) -> Float64[np.ndarray, " direction"]:
    model: Any = subject.downstream.model
    norm = final_norm(model)
    head = matrix(model.get_output_embeddings()).float().cpu()
    weight = norm.core(head[None] * norm.weight.to(head.device))[0].double()
    # a constant added to all logits changes no prediction
    weight = weight - weight.mean(0)
    vectors = torch.from_numpy(directions.vectors).double()
    squares = ((vectors @ (weight.T @ weight)) * vectors).sum(1)
    return np.asarray(squares.clamp_min(0).sqrt().numpy(), np.float64)


def _gradients(
    subject: Subject, directions: Directions, seed: int, spec: ScreenSpec
) -> dict[str, Float64[np.ndarray, " direction"]]:
    """Return everything that one reading of the gradients gives."""
    sums = _ScoreSums(directions, seed)
    tally = ScreenTally(subject, directions, spec, seed)
    rows = drawn_rows(subject, spec.tokens, seed)
    for found in sampled_gradients(subject, rows, spec.samples, seed):
        tally.add(found)
        sums.add(found)
    screened = tally.finish()
    return sums.finish() | {"Fisher screen": screened.phi}


class _ScoreSums:
    """Sums over tokens and samples of first-order effects, by direction."""

    def __init__(self, directions: Directions, seed: int) -> None:
        self.directions = directions
        # by way of columns, so that both have one order of entries
        self.amounts = directions.by_direction.tocsr()
        self.other = _others(directions, seed)
        n = len(directions)
        self.signed, self.size, self.swapped, self.n = (np.zeros(n) for _ in range(4))

    def add(self, found: Gradients) -> None:
        n = len(self.directions)
        amounts, other = self.amounts[found.tokens], self.other[found.tokens]
        cells = np.repeat(np.arange(len(found.tokens)), np.diff(amounts.indptr))
        columns = amounts.indices.astype(np.int64)
        for gradient in found.sampled.cpu().numpy():
            slope = along(gradient, self.directions.vectors, cells, columns).astype(np.float64)
            removed, resampled = slope * amounts.data, slope * (other.data - amounts.data)
            self.signed += np.bincount(columns, removed, minlength=n)
            self.size += np.bincount(columns, np.abs(removed), minlength=n)
            self.swapped += np.bincount(columns, np.abs(resampled), minlength=n)
            self.n += np.bincount(columns, minlength=n)

    def finish(self) -> dict[str, Float64[np.ndarray, " direction"]]:
        with np.errstate(invalid="ignore"):
            return {
                "gradient x activation": np.abs(self.signed) / self.n,
                "|gradient x activation|": self.size / self.n,
                "attribution patching": self.swapped / self.n,
            }


def _others(directions: Directions, seed: int) -> Any:
    """Return the amounts with those of each direction in another order: CSR of the same pattern."""
    by = directions.by_direction.copy()
    random = numpy_generator(seed, "baselines", "other amounts")
    for start, stop in zip(by.indptr[:-1], by.indptr[1:], strict=True):
        step = int(random.integers(1, max(stop - start, 2)))
        order: Int64[np.ndarray, " held"] = (np.arange(stop - start) + step) % max(stop - start, 1)
        held: Float[np.ndarray, " held"] = by.data[start:stop]
        by.data[start:stop] = held[order]
    return by.tocsr()
