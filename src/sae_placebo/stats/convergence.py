"""Whether a number still moves as more text is fitted on, and where its curve would end.

A number that is made by fitting moves with how much there is to fit on. It is told only where twice the text
moves it by less than a tenth of itself, with its standard error taken into account:

    |share(2x) - share(1x)| + 1.64 se < share(2x) / 10.

The two shares are of the same latents, seeds and documents, so that the standard error is that of their
difference, seed by seed and document by document. The same holds of an effect, with the difference of the
arms in place of a share. A share of 0 is thus never told: a tenth of it is no room at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from sae_placebo.core.errors import NotEstimable
from sae_placebo.stats.interactions import signed_interval
from sae_placebo.stats.replicates import ReplicateKey, Replicates, ReplicateTable
from sae_placebo.stats.spreads import Spreads

ROOM = 0.1
"""Part of a share by which twice the text may move it."""
ONE_SIDED = 1.64
"""Standard errors below which a normal deviate is 95 times in 100."""
EXPONENTS = np.linspace(0.1, 2.0, 77)
"""Exponents among which that of a curve is looked for."""
_ROUNDING = 1e-9
_FEWEST = 4
"""Fewest points of a curve of three parameters that leave one to judge it by."""


@dataclass(frozen=True)
class Change:
    """By how much twice the text moves a number.

    Attributes:
        change: The number from all of the text, less that from half of it.
        se: Its standard error over documents and seeds; None where it cannot be estimated.
        share: What a tenth is taken of.
        withheld: Why the number is not told; None where it is.
    """

    change: float
    se: float | None
    share: float
    withheld: str | None


def change(
    halves: Sequence[Replicates],
    wholes: Sequence[Replicates],
    signs: Sequence[int],
    n_documents: int,
    *,
    is_rest: bool = False,
) -> Change:
    """Return by how much twice the text moves a signed sum of arms, such as one arm or an effect.

    Args:
        halves: The arms' numbers from half of the text.
        wholes: The same from all of it.
        signs: The sign of each arm.
        n_documents: Documents that the numbers are of.
        is_rest: Whether what is read of one arm is 1 less the number, as of an R2.
    """
    moved = [
        replace(whole, values=whole.values - half.values)
        for half, whole in zip(halves, wholes, strict=True)
    ]
    value = float(sum(sign * whole.point for sign, whole in zip(signs, wholes, strict=True)))
    share = 1 - value if is_rest and len(wholes) == 1 else value
    by = float(sum(sign * one.point for sign, one in zip(signs, moved, strict=True)))
    try:
        se = _se(moved, signs, n_documents)
    except NotEstimable as refusal:
        why = f"withheld: it is not known whether more text to fit on moves it: {refusal}"
        return Change(by, None, share, why)
    if abs(by) + ONE_SIDED * se < ROOM * abs(share):
        return Change(by, se, share, None)
    what = "what it leaves" if is_rest and len(wholes) == 1 else "it"
    moves = f"twice the text to fit on moved it by {by:+.2g} ± {ONE_SIDED * se:.2g}"
    why = f"withheld: {moves}; a tenth of {what} is {ROOM * abs(share):.2g}"
    return Change(by, se, share, why)


def _se(moved: Sequence[Replicates], signs: Sequence[int], n_documents: int) -> float:
    """Return the standard error of a signed sum of arms, from these alone."""
    drawn = frozenset(str(i) for i, one in enumerate(moved) if one.drawn)
    table = ReplicateTable({"": n_documents}, {"": 0}, drawn)
    cells = [ReplicateKey(str(i), "", "", "") for i in range(len(moved))]
    for cell, one in zip(cells, moved, strict=True):
        table.put(cell, one)
    return signed_interval(Spreads(table, shares_on_own_scale=True), cells, signs).se


@lru_cache
def _fits(n_tokens: tuple[int, ...]) -> tuple[list[Any], Any]:
    """Return, by exponent, the design of a curve over these points and its least-squares solver."""
    n = np.asarray(n_tokens, dtype=np.float64) / n_tokens[-1]
    designs = [np.stack([np.ones_like(n), n**-c], axis=1) for c in EXPONENTS]
    return designs, np.stack([np.linalg.pinv(design) for design in designs])


def end_of_curve(n_tokens: Sequence[int], points: Sequence[Replicates]) -> Replicates:
    """Return where a curve would end that falls or rises as a + b n^-c: a, of each seed and replicate.

    The exponent c is fitted to the mean over seeds, anew in every replicate of the documents; a and b are
    fitted to each seed with it. All fits are least squares.

    Args:
        n_tokens: Tokens that were fitted on, by point.
        points: The number at each point, of the same seeds and documents.

    Raises:
        NotEstimable: too few points; the exponent is at an end of what is tried, so that points do not tell
            a curve that bends from a line or a step; or the end lies outside 0 to 1.

    Source: the power law of learning curves (Hestness et al. 2017, arXiv 1712.00409).
    """
    if len(points) < _FEWEST:
        raise NotEstimable(f"{len(points)} portions of text to fit on; a curve needs {_FEWEST}")
    values = np.stack([point.values for point in points])
    pooled = values.mean(axis=(1, 2))
    designs, solvers = _fits(tuple(n_tokens))
    missed = [
        np.square(pooled - design @ (solver @ pooled)).sum(0)
        for design, solver in zip(designs, solvers, strict=True)
    ]
    chosen = np.argmin(np.stack(missed), axis=0)
    exponent = float(EXPONENTS[chosen[0]])
    if chosen[0] in (0, len(EXPONENTS) - 1):
        raise NotEstimable(
            f"the curve's exponent is the last that is tried ({exponent:g}): its points do not show an end"
        )
    # [replicate, point] times [point, model, seed, replicate]
    ends = np.einsum("rp,pmsr->msr", solvers[chosen, 0], values)
    end = float(ends[:, :, 0].mean())
    if not -_ROUNDING <= end <= 1 + _ROUNDING:
        raise NotEstimable(f"the curve would end at {end:.3f}, outside 0 to 1")
    return replace(points[-1], values=ends)
