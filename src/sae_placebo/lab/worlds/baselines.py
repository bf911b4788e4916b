"""Simpler statistics could also say which directions a model uses; worlds score them beside the verdicts.

Each gives one number per direction, and a higher number says more use. None of them edits an activation by a
finite amount.
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
    """Simpler statistics of directions; a higher number says more use.

    Attributes:
        values: Values of each statistic, by its name; NaN for a direction that none of the read tokens holds.
        reasons: Why a statistic is NaN for all directions, by its name.
    """

    values: dict[str, Float64[np.ndarray, " direction"]]
    reasons: dict[str, str]


def baselines(
    subject: Subject, directions: Directions, seed: int, spec: ScreenSpec | None = None
) -> Baselines:
    """Return the simpler statistics of directions.

    In these definitions, d is the direction, a is how much of it a token holds, and g is the gradient of the
    log probability of a label drawn from the model. Means are over the tokens that hold the direction, unless
    something else is said.

    - firing rate: the share of tokens that hold the direction.
    - variance: the mean of a^2 over all tokens.
    - logit lens: |W_U d|, with the gains of the final norm in W_U (nostalgebraist 2020).
    - gradient x activation: |mean of a (g . d)|; and, between bars, the mean of |a (g . d)|.
    - attribution patching: the mean of |(a' - a) (g . d)|, where a' is how much another token that holds the
      direction has (Nanda 2023; Syed et al. 2023, arXiv 2310.10348). Differs: the metric is the log
      probability of drawn labels.
    - Fisher screen: the mean of (a g . d)^2 as in `causal.use.screen`, without its nulls.
    - weight readers: the largest norm of W d over all matrices W that read the site, in standard deviations
      above random directions (`causal.circuits.weights`).

    Args:
        subject: The model and its held-out tokens.
        directions: The directions.
        seed: Seed of all draws.
        spec: Numbers of tokens and labels of the gradients; None takes the defaults.
    """
    values = {
        "firing rate": directions.n_active / directions.amounts.shape[0],
        "variance": np.asarray(directions.amounts.power(2).mean(axis=0), np.float64).ravel(),
    }
    values |= _gradients(subject, directions, seed, spec or ScreenSpec())
    reasons: dict[str, str] = {}
    try:
        values["logit lens"] = _logit_lens(subject, directions)
        above = weight_capability(subject, directions, seed).above_random
        readers = np.where(np.isfinite(above), above, -np.inf).max(1)
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
    """Return the four statistics that need gradients, which are computed once for all of them."""
    sums = _ScoreSums(directions, seed)
    tally = ScreenTally(subject, directions, spec, seed)
    rows = drawn_rows(subject, spec.tokens, seed)
    for gradients in sampled_gradients(subject, rows, spec.samples, seed):
        tally.add(gradients)
        sums.add(gradients)
    screened = tally.finish()
    return sums.finish() | {"Fisher screen": screened.phi}


class _ScoreSums:
    """Sums of first-order effects over tokens and drawn labels, by direction."""

    def __init__(self, directions: Directions, seed: int) -> None:
        self.directions = directions
        # by way of columns, so that both matrices have the same order of entries
        self.amounts = directions.by_direction.tocsr()
        self.other = _others(directions, seed)
        n = len(directions)
        self.signed, self.size, self.swapped, self.n = (np.zeros(n) for _ in range(4))

    def add(self, gradients: Gradients) -> None:
        """Add the effects at some tokens."""
        n = len(self.directions)
        amounts, other = self.amounts[gradients.tokens], self.other[gradients.tokens]
        cells = np.repeat(np.arange(len(gradients.tokens)), np.diff(amounts.indptr))
        columns = amounts.indices.astype(np.int64)
        for gradient in gradients.sampled.cpu().numpy():
            slope = along(gradient, self.directions.vectors, cells, columns).astype(np.float64)
            removed, resampled = slope * amounts.data, slope * (other.data - amounts.data)
            self.signed += np.bincount(columns, removed, minlength=n)
            self.size += np.bincount(columns, np.abs(removed), minlength=n)
            self.swapped += np.bincount(columns, np.abs(resampled), minlength=n)
            self.n += np.bincount(columns, minlength=n)

    def finish(self) -> dict[str, Float64[np.ndarray, " direction"]]:
        """Return the mean effects, by the name of the statistic."""
        with np.errstate(invalid="ignore"):
            return {
                "gradient x activation": np.abs(self.signed) / self.n,
                "|gradient x activation|": self.size / self.n,
                "attribution patching": self.swapped / self.n,
            }


def _others(directions: Directions, seed: int) -> Any:
    """Return the amounts as CSR of the same pattern, with each direction's amounts moved to other tokens."""
    by = directions.by_direction.copy()
    random = numpy_generator(seed, "baselines", "other amounts")
    for start, stop in zip(by.indptr[:-1], by.indptr[1:], strict=True):
        step = int(random.integers(1, max(stop - start, 2)))
        order: Int64[np.ndarray, " held"] = (np.arange(stop - start) + step) % max(stop - start, 1)
        held: Float[np.ndarray, " held"] = by.data[start:stop]
        by.data[start:stop] = held[order]
    return by.tocsr()
