"""Latents whose firings are a few fixed sequences of tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int, Int64

from sae_placebo.latents.base import Columns, Encoded, Folds
from sae_placebo.latents.latent_blocks import LatentBlock, latent_blocks, leave_out, token_groups
from sae_placebo.latents.metrics.base import ratio

N_COMMON = 5
# each fold picks its own five pairs of so many
_CANDIDATES = 16


def ngrams(reading: Encoded, folds: Folds) -> Columns:
    """Return how much of a latent's firing a few n-grams cover.

    Columns:
        ngram_cover: Share of the active positions whose pair (token before, current token) is one of
            the latent's five most common pairs; 0 to 1. Its null, firing at random, is the share of the
            text's own five most common pairs, a few percent, and 5 / n_active for n_active below a few
            dozens. Each fold picks its five among the sixteen that are most common on all documents.
            NaN where the latent never fires.

    Longer n-grams are not counted, because they cannot change the value: each n-gram ends with one
    pair, so that the five most common pairs cover at least what the five most common trigrams do, and the
    best of n = 2 and n = 3 is n = 2. For the same reason a latent of one frequent sequence has the cover
    of its last pair. A latent of one token, whatever comes before, has a low value unless that token
    follows few others, which is why the token classes come first.

    Source: n-gram units, Voita et al. 2023 (arXiv 2309.04827); five n-grams that cover 95% is the
    definition of this package.
    """
    groups = token_groups(reading, folds)
    before, ids = reading.tokens.previous.astype(np.int64), reading.tokens.ids
    _, pairs = np.unique(before * len(reading.tokens.vocabulary) + ids, return_inverse=True)
    n_pairs = int(pairs.max(initial=0)) + 1
    cover = np.full((reading.d_sae, 1 + folds.n_groups), np.nan)
    for block in latent_blocks(reading):
        names = pairs[block.tokens]
        counts = _common(_counts(block, names, n_pairs), names, groups[block.tokens], block, folds)
        covered = -np.partition(-leave_out(counts), N_COMMON - 1, axis=1)[:, :N_COMMON].sum(1)
        n = leave_out(block.sums(groups[block.tokens], folds.n_groups))
        cover[block.latents] = ratio(covered, n)
    return {"ngram_cover": cover}


def _counts(block: LatentBlock, names: Int64[np.ndarray, " entry"], n_pairs: int) -> Any:
    """Return how often each latent fires on each pair, CSR [latent, pair], pairs in no order."""
    from scipy.sparse import csr_matrix

    n = len(names)
    shape = (len(block.bounds) - 1, n)
    # the product of entries by latent and pair of each entry sums equal pairs without sorting them
    entries = csr_matrix((np.ones(n, np.int32), np.arange(n), block.bounds), shape=shape)
    owner = csr_matrix((np.ones(n, np.int32), names, np.arange(n + 1)), shape=(n, n_pairs))
    return entries @ owner


def _common(
    counts: Any,
    names: Int64[np.ndarray, " entry"],
    groups: Int64[np.ndarray, " entry"],
    block: LatentBlock,
    folds: Folds,
) -> Float[np.ndarray, "latent candidate group"]:
    """Return how often each latent fires on its most common pairs, by group of documents."""
    n_latents, n_pairs = counts.shape
    by_group = np.zeros((n_latents, _CANDIDATES, folds.n_groups))
    rank = np.full(n_pairs, -1, dtype=np.int64)
    for latent in range(n_latents):
        row = slice(counts.indptr[latent], counts.indptr[latent + 1])
        candidates = most_common(counts.indices[row], counts.data[row], _CANDIDATES)
        rank[candidates] = np.arange(len(candidates))
        entries = slice(block.bounds[latent], block.bounds[latent + 1])
        place = rank[names[entries]]
        kept = place >= 0
        cells = place[kept] * folds.n_groups + groups[entries][kept]
        sums = np.bincount(cells, minlength=_CANDIDATES * folds.n_groups)
        by_group[latent] = sums.reshape(_CANDIDATES, folds.n_groups)
        rank[candidates] = -1
    return by_group


def most_common(
    pairs: Int[np.ndarray, " pair"], counts: Int[np.ndarray, " pair"], n: int
) -> Int[np.ndarray, " kept"]:
    """Return the n pairs of the largest counts; of equal counts those of the smallest index are kept.

    With a partition alone it would depend on the processor which of these are kept.
    """
    if len(pairs) <= n:
        return pairs
    last = np.partition(counts, -n)[-n]
    above, level = pairs[counts > last], np.sort(pairs[counts == last])
    return np.concatenate([above, level[: n - len(above)]])
