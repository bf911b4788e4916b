"""One latent's firing is split by the kind of function of active features that explains it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

PARTS = ("main_effect", "conjunction", "complement", "explained")

_FEWEST_FIRINGS = 20
_MOST_FEATURES = 8
_MOST_CELLS = 96
_FEWEST_TOKENS = 8
"""Tokens with the same features active are left out if they are fewer than this: their rate is not known."""
_COVERED = 0.95
_SURE = 4.5
"""A feature takes part if its correlation with firing is more than this many standard errors."""


class Cells(NamedTuple):
    """Tokens grouped into cells by which of a few features are active on them.

    Attributes:
        active: Whether each feature is active on the tokens of the cell.
        n: Number of tokens of the cell.
        rate: Share of the cell's tokens on which the latent fires.
    """

    active: Bool[np.ndarray, "cell feature"]
    n: Float[np.ndarray, " cell"]
    rate: Float[np.ndarray, " cell"]


def firing_parts(
    tokens: Int[np.ndarray, " firing"], together: Float[np.ndarray, " feature"], active: Any
) -> dict[str, float]:
    """Return the `PARTS` of one latent's firing.

    They are empty if it fires too seldom to tell, or on all tokens; only `explained` is there, with 0, if it
    fires for no feature.

    Args:
        tokens: Tokens on which the latent fires.
        together: On how many of them each feature is active.
        active: scipy CSC [token, feature], 1 where a feature is active.
    """
    n_tokens = active.shape[0]
    if not _FEWEST_FIRINGS <= len(tokens) < n_tokens:
        return {}
    chosen = _chosen(len(tokens), together, active)
    if not len(chosen):
        return {"explained": 0.0}
    cells = _cells(tokens, chosen, active)
    if len(cells.n) < 2:
        return {"explained": 0.0}
    return split(cells)


def split(cells: Cells) -> dict[str, float]:
    """Return the shares of `PARTS` that the rates of cells give.

    Sampling noise of the rates adds the noise of each cell times its leverage in the fit to every explained
    sum of squares; that much is taken off.
    """
    n, rate = cells.n, cells.rate
    noise = rate * (1 - rate) * n / np.maximum(n - 1, 1)
    mean = float((n * rate).sum() / n.sum())
    whole = n.sum() * mean * (1 - mean)
    if not whole > 0:
        return {"explained": 0.0}

    def explained(
        fitted: Float[np.ndarray, " cell"], leverage: Float[np.ndarray, " cell"]
    ) -> float:
        return float((n * (fitted - mean) ** 2).sum() - (noise * (leverage - n / n.sum())).sum())

    every = explained(rate, np.ones(len(n)))
    if not every > 1e-9 * whole:
        return {"explained": 0.0}
    single = min(max(explained(*_sum_of_effects(cells, mean)), 0.0), every)
    rising = min(max(explained(*_never_falling(cells, mean)), single), every)
    return {
        "main_effect": single / every,
        "conjunction": (rising - single) / every,
        "complement": (every - rising) / every,
        "explained": min(every / whole, 1.0),
    }


def _chosen(fired: int, together: Float[np.ndarray, " feature"], active: Any) -> Any:
    """Return the features that firing is surely correlated with, the surest first."""
    n = active.shape[0]
    counts = np.diff(active.indptr).astype(np.float64)
    covariance = together - fired * counts / n
    # the standard deviation of `covariance` if firing were independent of the feature
    sd = np.sqrt(fired * (1 - fired / n) * counts * (1 - counts / n) / n)
    z = np.abs(covariance) / np.where(sd > 0, sd, np.inf)
    most = min(_MOST_FEATURES, len(z))
    top = np.argpartition(-z, most - 1)[:most]
    top = top[z[top] > _SURE]
    return top[np.argsort(-z[top], kind="stable")]


def _cells(tokens: Int[np.ndarray, " firing"], chosen: Any, active: Any) -> Cells:
    """Return the cells of as many features as leave most tokens in cells whose rate is known."""
    code = np.zeros(active.shape[0], dtype=np.int64)
    for bit, feature in enumerate(chosen):
        code[active.indices[active.indptr[feature] : active.indptr[feature + 1]]] |= 1 << bit
    n_bits = len(chosen)
    n = np.bincount(code, minlength=1 << n_bits)
    fired = np.bincount(code[tokens], minlength=1 << n_bits)
    while True:
        known = n >= _FEWEST_TOKENS
        covered = n[known].sum() >= _COVERED * active.shape[0]
        if n_bits == 1 or (covered and known.sum() <= _MOST_CELLS):
            break
        # the last feature is the least sure
        n_bits -= 1
        n, fired = n.reshape(2, -1).sum(axis=0), fired.reshape(2, -1).sum(axis=0)
    at = np.flatnonzero(known)
    bits = (at[:, None] >> np.arange(n_bits)) & 1
    return Cells(bits.astype(bool), n[at].astype(np.float64), fired[at] / n[at])


def _sum_of_effects(
    cells: Cells, mean: float
) -> tuple[Float[np.ndarray, " cell"], Float[np.ndarray, " cell"]]:
    """Return the best fit by a constant plus non-negative effects of single features, and its leverage."""
    from scipy.optimize import nnls

    n = cells.n
    columns = cells.active.astype(np.float64)
    columns -= (n @ columns) / n.sum()
    root = np.sqrt(n)[:, None]
    effects, _ = nnls(root * columns, root[:, 0] * (cells.rate - mean))
    used = root * columns[:, effects > 0]
    leverage = n / n.sum()
    if used.shape[1]:
        basis, sizes, _ = np.linalg.svd(used, full_matrices=False)
        leverage = leverage + np.square(basis[:, sizes > 1e-9 * sizes[0]]).sum(axis=1)
    return mean + columns @ effects, leverage


def _never_falling(
    cells: Cells, mean: float
) -> tuple[Float[np.ndarray, " cell"], Float[np.ndarray, " cell"]]:
    """Return the best fit by a function that no further active feature lowers, and its leverage.

    This is isotonic regression on the order of sets by inclusion. The projection onto its cone is what a
    projection onto the polar cone leaves, and that one is non-negative least squares on the order's covers.
    """
    from scipy.optimize import nnls

    low, high = _covers(cells.active)
    rate, n = cells.rate, cells.n
    if not len(low) or (rate[high] >= rate[low]).all():
        return rate, np.ones(len(n))
    root = np.sqrt(n)
    steps = np.zeros((len(n), len(low)))
    at = np.arange(len(low))
    steps[high, at] += 1 / root[high]
    steps[low, at] -= 1 / root[low]
    raised, _ = nnls(steps, -root * (rate - mean), maxiter=50 * len(low))
    fitted = mean + (root * (rate - mean) + steps @ raised) / root
    # cells joined by a step that had to be raised share a level
    _, level = np.unique(np.round(fitted, 9), return_inverse=True)
    return fitted, n / np.bincount(level, n)[level]


def _covers(
    active: Bool[np.ndarray, "cell feature"],
) -> tuple[Int[np.ndarray, " cover"], Int[np.ndarray, " cover"]]:
    """Return the pairs of cells of which the first lies within the second, with no cell between them."""
    part = active.astype(np.int64)
    within = (part @ (1 - part).T == 0) & ~np.eye(len(part), dtype=bool)
    between = (within.astype(np.int64) @ within.astype(np.int64)) > 0
    low, high = np.nonzero(within & ~between)
    return low, high
