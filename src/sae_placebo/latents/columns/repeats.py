"""Induction: latents that fire because a sequence of tokens has occurred before.

Tokens that are drawn at random have no structure but their repetition, so that a latent that fires more on
the second occurrence of a block has copied something from the first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int32, Int64, Integer

from sae_placebo.core.errors import SpecError
from sae_placebo.core.spec import numpy_generator
from sae_placebo.latents.base import Columns, Folds
from sae_placebo.latents.latent_blocks import on_every_fold

# fewest pairs with activity over which a mean difference is given
_PAIRS = 10


def repeat_rows(
    vocabulary_size: int,
    usable: Integer[np.ndarray, " id"],
    n_rows: int,
    block: int,
    seed: int,
    bos: int | None = None,
    repeated: bool = True,
) -> Int32[np.ndarray, "row pos"]:
    """Return rows that hold a random block of tokens twice, behind BOS where there is one.

    No token occurs twice in a block where there are enough usable ids, so that what follows a token is
    known once it has been seen.

    Args:
        vocabulary_size: Number of ids of the model.
        usable: Ids to draw from, each with equal probability: ordinary tokens, no BOS and no padding.
        n_rows: Number of rows.
        block: Tokens in the block; a row has twice as many, and BOS.
        seed: The same seed gives the same rows.
        bos: Id in front of each row; None for none.
        repeated: False puts another random block in the place of the first. The second blocks are the same
            either way, so that the repetition alone differs between the two, not the position.

    Raises:
        SpecError: A usable id, or BOS, is outside the vocabulary; or there are fewer than two ids.
    """
    ids = np.unique(usable)
    outside = np.append(ids, ids[:0] if bos is None else bos)
    if len(ids) < 2:
        raise SpecError(
            f"the held-out text has {len(ids)} distinct token{'' if len(ids) == 1 else 's'} to draw "
            "repeated blocks from, and two are needed; raise text.heldout_tokens or give other text"
        )
    if outside.min() < 0 or outside.max() >= vocabulary_size:
        raise SpecError(
            f"repeated blocks are drawn from token ids {outside.min()} to {outside.max()}, BOS included; "
            f"the model has 0 to {vocabulary_size - 1}"
        )
    second = _blocks(ids, n_rows, block, numpy_generator(seed, "repeated blocks"))
    first = second
    if not repeated:
        first = _blocks(ids, n_rows, block, numpy_generator(seed, "blocks that do not repeat"))
    ahead = np.full((n_rows, int(bos is not None)), bos or 0)
    return np.concatenate([ahead, first, second], axis=1).astype(np.int32)


def _blocks(
    ids: Integer[np.ndarray, " id"], n_rows: int, block: int, draw: np.random.Generator
) -> Int64[np.ndarray, "row pos"]:
    again = block > len(ids)
    rows = [draw.choice(ids, block, replace=again) for _ in range(n_rows)]
    return np.array(rows, dtype=np.int64).reshape(n_rows, block)


def occurrences(
    n_rows: int, block: int, bos: bool
) -> tuple[Int64[np.ndarray, "token two"], Int64[np.ndarray, "token two"]]:
    """Return the places (row, pos) of the first and of the second occurrence of each token.

    The first token of a block is left out: what comes before its second occurrence is new.
    """
    rows, places = np.divmod(np.arange(n_rows * (block - 1)), block - 1)
    first = np.stack([rows, places + 1 + int(bos)], axis=1).astype(np.int64)
    return first, first + np.array([0, block])


def induction(codes_first: Any, codes_second: Any, folds: Folds) -> Columns:
    """Return how much more each latent fires when its token's block occurs for the second time.

    Columns, which are the same in every fold, since random rows belong to no document:
        induction_d: Cohen's d, (mean of a on second occurrences - mean on first ones) / pooled sd, over all
            tokens, with a = 0 where the latent is silent, in standard deviations. The pooled variance is
            the mean of the two. Null 0, with a standard error of about sqrt(2 / n_tokens). A latent that
            fires on a share p of second occurrences alone, always equally, has sqrt(2 p / (1 - p)), so
            that 0.8 needs p = .24. NaN for latents that are silent on both.
        induction_active_d: The same over the pairs of which the latent fires on either occurrence, so that
            rare firing is no reason for a low value. Null 0, since the two of a pair are exchangeable. NaN
            where there are fewer than 10 such pairs, or a does not vary over them.

    First and second occurrences differ in position as well. To keep the position the same, give the codes on
    second blocks of `repeat_rows(..., repeated=False)` as `codes_first`.

    Args:
        codes_first: Codes on the first occurrences, scipy CSR [token, d_sae].
        codes_second: Codes on the second occurrences, of the same tokens in the same order.
        folds: They decide how many folds there are.

    Source: repeated random tokens, Olsson et al. 2022 (arXiv 2209.11895), who use them for attention heads.
    The effect size by latent is of this package.
    """
    n = codes_first.shape[0]
    count_1, sum_1, square_1 = _moments(codes_first)
    count_2, sum_2, square_2 = _moments(codes_second)
    both = (codes_first > 0).multiply(codes_second > 0)
    pairs = count_1 + count_2 - np.asarray(both.sum(0), dtype=np.float64).ravel()

    def effect(size: Float[np.ndarray, " latent"]) -> Float[np.ndarray, " latent"]:
        with np.errstate(invalid="ignore", divide="ignore"):
            spread_1 = (square_1 - sum_1**2 / size) / (size - 1)
            spread_2 = (square_2 - sum_2**2 / size) / (size - 1)
            pooled = (spread_1 + spread_2) / 2
            d: Float[np.ndarray, " latent"] = (sum_2 - sum_1) / size / np.sqrt(pooled)
        # what rounding leaves of a constant is no spread
        flat = pooled <= 1e-9 * (square_1 + square_2) / np.maximum(size, 1)
        return np.where(flat | (size < 2), np.nan, d)

    overall = np.where(pairs > 0, effect(np.full(pairs.shape, float(n))), np.nan)
    active = np.where(pairs >= _PAIRS, effect(pairs), np.nan)
    return {
        "induction_d": on_every_fold(overall, folds),
        "induction_active_d": on_every_fold(active, folds),
    }


def no_induction(d_sae: int, folds: Folds) -> Columns:
    """Return the columns of `induction` where no repeated block was read: NaN."""
    nothing = on_every_fold(np.full(d_sae, np.nan), folds)
    return {"induction_d": nothing, "induction_active_d": nothing}


def _moments(
    codes: Any,
) -> tuple[
    Float[np.ndarray, " latent"], Float[np.ndarray, " latent"], Float[np.ndarray, " latent"]
]:
    """Return how often each latent fires, the sum of its activations and that of their squares."""
    values = codes.data.astype(np.float64)

    def sums(what: Float[np.ndarray, " entry"]) -> Float[np.ndarray, " latent"]:
        # where there are no entries, NumPy counts in integers
        return np.bincount(codes.indices, what, minlength=codes.shape[1]).astype(np.float64)

    return sums((values > 0).astype(np.float64)), sums(values), sums(values * values)
