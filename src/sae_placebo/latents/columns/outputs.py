"""Latents that promote tokens that come next, by the weights and by what does come next."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int64

from sae_placebo.core.lazy import torch
from sae_placebo.latents.base import Columns, Encoded, Folds
from sae_placebo.latents.latent_blocks import (
    LatentBlock,
    latent_blocks,
    leave_out,
    on_every_fold,
    token_groups,
)

N_PROMOTED = 20
# hits and expected hits that every latent starts with, so that a few lucky hits are no lift
PRIOR_HITS = 5.0
# how many elements of [latent, vocabulary] are held at once
_TABLE = 1 << 23


def outputs(
    reading: Encoded,
    folds: Folds,
    unembedding: Float[torch.Tensor, "vocabulary d_in"]
    | Float[np.ndarray, "vocabulary d_in"]
    | None,
) -> Columns:
    """Return how strongly each latent promotes a few tokens, and how much more often these come next.

    Columns, which are NaN for latents that never fire and where there is no unembedding:
        unembedding_kurtosis: Plain kurtosis, E(c - Ec)^4 / Var(c)^2, over the vocabulary, of the cosines c
            of the decoder row with the rows of W_U. Its null, the value of a random direction, is about 3,
            and more where rows of W_U are clustered. A unit that predicts tokens has more than 10. It is
            the same in every fold.
        output_lift: (hits + 5) / (expected + 5), a ratio with null 1. Hits are the active tokens whose next
            token is one of the 20 with the largest W_U . d. Expected is the sum, over the same active
            tokens, of the share of those 20 among the next tokens of all held-out tokens with the same
            current id, whether or not the latent fires there. NaN where the expected number is 0.

    Tokens at the end of a row have no next token and do not count. Rates of rare ids are not shrunk towards
    a common rate, from which alone a latent of one rare token would get a lift. Rates count the token itself,
    so that an id that occurs once expects what it gets and pulls the lift to 1; the five hits do the same
    where little is expected (a lift of 1.5 then needs three hits or more). Shares are those of all documents
    in every fold; hits and expectations are those of the fold.

    A latent of any context changes the rates of any 20 tokens: with a random W_U, 2% of the latents of a
    small model of code had a lift above 1.5, at a mean of 1.00. The null to compare with is the placebo's
    share.

    Args:
        reading: The SAE and its tokens.
        folds: Groups of documents that are left out.
        unembedding: W_U, with the final norm's gain multiplied in where there is one; rows beyond the
            vocabulary of the tokens are left out.

    Source: kurtosis of cosines, Gurnee et al. 2024 (arXiv 2401.12181), who call a neuron above 10 a
    prediction neuron. The lift that is matched on the current token is of this package.
    """
    n_folds = 1 + folds.n_groups
    if unembedding is None:
        nothing = np.full((reading.d_sae, n_folds), np.nan)
        return {"unembedding_kurtosis": nothing, "output_lift": nothing.copy()}
    kurtosis, promoted = _promoted(
        reading, torch.as_tensor(unembedding)[: len(reading.tokens.vocabulary)]
    )
    return {
        "unembedding_kurtosis": on_every_fold(kurtosis, folds),
        "output_lift": _lift(reading, folds, promoted),
    }


def _promoted(
    reading: Encoded, unembedding: Float[torch.Tensor, "vocabulary d_in"]
) -> tuple[Float[np.ndarray, " latent"], Int64[np.ndarray, "latent rank"]]:
    """Return the kurtosis of each living latent's cosines with W_U, and the tokens that it promotes."""
    decoder = reading.sae.params["W_dec"].detach().float()
    living = np.flatnonzero(np.diff(reading.by_latent.indptr))
    weights = unembedding.detach().to(decoder.device).float()
    length = torch.linalg.vector_norm(weights, dim=1)
    scale = torch.where(length > 0, 1 / length, 0.0)
    n = min(N_PROMOTED, len(weights))
    kurtosis = np.full(reading.d_sae, np.nan)
    promoted = np.zeros((reading.d_sae, n), dtype=np.int64)
    step = max(1, _TABLE // len(weights))
    for begin in range(0, len(living), step):
        part = living[begin : begin + step]
        logits = decoder[torch.from_numpy(part).to(decoder.device)] @ weights.t()
        promoted[part] = torch.topk(logits, n, dim=1, sorted=False).indices.cpu().numpy()
        logits.mul_(scale)
        logits.sub_(logits.mean(1, keepdim=True)).square_()
        variance = logits.mean(1)
        fourth = logits.square_().mean(1)
        ratio = torch.where(variance > 0, fourth / variance.square(), torch.nan)
        kurtosis[part] = ratio.cpu().numpy()
    return kurtosis, promoted


def _lift(
    reading: Encoded, folds: Folds, promoted: Int64[np.ndarray, "latent rank"]
) -> Float[np.ndarray, "latent fold"]:
    """Return how much more often the promoted tokens come next than the current token alone implies."""
    following = reading.tokens.following.astype(np.int64)
    ids, types = np.unique(reading.tokens.ids, return_inverse=True)
    ends = following < 0
    n_vocabulary = len(reading.tokens.vocabulary)
    # tokens that have no next one point to an empty column behind the last one
    types, nexts = np.where(ends, len(ids), types), np.where(ends, n_vocabulary, following)
    shares = _next_shares(types[~ends], nexts[~ends], (n_vocabulary, len(ids) + 1))
    groups = token_groups(reading, folds)
    lift = np.full((reading.d_sae, 1 + folds.n_groups), np.nan)
    for block in latent_blocks(reading, latents=max(1, _TABLE // (n_vocabulary + 1))):
        hit, expected = _tables(block, promoted[block.latents], shares)
        owners, tokens = block.owners, block.tokens
        cells = groups[tokens]
        hits = leave_out(block.sums(cells, folds.n_groups, hit[owners, nexts[tokens]]))
        rates = expected[owners, types[tokens]]
        chance = leave_out(block.sums(cells, folds.n_groups, rates))
        possible = leave_out(block.sums(cells, folds.n_groups, (rates > 0).astype(np.float32))) > 0
        ratios = (hits + PRIOR_HITS) / (chance + PRIOR_HITS)
        lift[block.latents] = np.where(possible, ratios, np.nan)
    return lift


def _next_shares(
    types: Int64[np.ndarray, " token"],
    nexts: Int64[np.ndarray, " token"],
    shape: tuple[int, int],
) -> Any:
    """Return the share of each next token after each current one, CSR [next, type]."""
    from scipy.sparse import csr_matrix

    size = np.maximum(np.bincount(types, minlength=shape[1]), 1)
    counts = csr_matrix((1 / size[types], (nexts, types)), shape=shape)
    return counts.astype(np.float32)


def _tables(
    block: LatentBlock, promoted: Int64[np.ndarray, "latent rank"], shares: Any
) -> tuple[Float32[np.ndarray, "latent next"], Float32[np.ndarray, "latent type"]]:
    """Return which tokens each latent promotes, and how often they follow each current token."""
    from scipy.sparse import csr_matrix

    n_latents, n_promoted = promoted.shape
    hit = np.zeros((n_latents, shares.shape[0] + 1), dtype=np.float32)
    hit[np.arange(n_latents)[:, None], promoted] = 1
    bounds = np.arange(n_latents + 1) * n_promoted
    chosen = csr_matrix(
        (np.ones(promoted.size, np.float32), promoted.ravel(), bounds),
        shape=(n_latents, shares.shape[0]),
    )
    return hit, (chosen @ shares).toarray()
