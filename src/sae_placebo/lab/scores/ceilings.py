"""How much of the true support can be found at all, by a coder that is given the true dictionary.

A score of an SAE means little without this ceiling: with many features per token in few dimensions no
coder can tell which ones are active, and in some published tests that limit lies near the score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool, Float, Int64

from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import torch
from sae_placebo.lab.generators.base import Sample
from sae_placebo.lab.scores.inference import nonnegative_pursuit
from sae_placebo.saes import SAE, SAESpec


@dataclass(frozen=True)
class Ceilings:
    """What coders that know the dictionary find, as shares of the active (token, feature) pairs."""

    omp: float
    """Share that orthogonal matching pursuit finds, given how many features each token has."""
    linear: float
    """Share that the largest products with the dictionary's rows find, given the same: what an encoder of one
    linear layer can do that has the true directions."""
    tokens: int
    """Number of tokens that the shares were measured on."""
    nonnegative: float = float("nan")
    """Share that orthogonal matching pursuit finds when it also knows that codes are not negative, given the
    same; NaN where the codes of some feature may be negative."""


def ceilings(
    draw: Sample, n_tokens: int = 512, *, over: Literal["pairs", "tokens"] = "pairs"
) -> Ceilings:
    """Return the ceilings on the first `n_tokens` tokens of a draw.

    Pursuit is greedy, so the best possible coder can do better. `omp` takes products in absolute value;
    `nonnegative` uses that codes are positive.

    Args:
        draw: Tokens with their true codes.
        n_tokens: Number of tokens to measure on, from the first.
        over: With `pairs`, the share is that of all active pairs, a pooled recall. With `tokens` it is that
            of a token's active features, averaged over the tokens that have any; tokens of few features,
            which are easier, then count as much as the others.

    Source: Pati, Rezaiifar and Krishnaprasad, "Orthogonal matching pursuit" (1993); Bruckstein, Elad and
    Zibulevsky (2008) for the non-negative form, see `inference.nonnegative_pursuit`.

    Raises:
        NotEstimable: no feature is active on these tokens.
    """
    n_tokens = min(n_tokens, len(draw.x))
    x, rows = draw.x[:n_tokens].double(), draw.truth.dictionary.double()
    last = int(draw.codes.offsets[n_tokens])
    if last == 0:
        raise NotEstimable("no feature is active on the tokens drawn, so there is none to find")
    true = torch.zeros(n_tokens, len(rows), dtype=torch.bool)
    true[draw.codes.tokens()[:last], draw.codes.latents[:last]] = True
    counts = draw.codes.offsets[: n_tokens + 1].diff()
    ranked = (x @ rows.t()).topk(int(counts.max()), dim=1).indices
    nonnegative = float("nan")
    if not draw.truth.subspaces:
        taken = nonnegative_pursuit(x, rows, int(counts.max())).atoms
        nonnegative = _found_share(taken, counts, true, over)
    return Ceilings(
        omp=_found_share(_pursued(x, rows, counts), counts, true, over),
        linear=_found_share(ranked, counts, true, over),
        tokens=n_tokens,
        nonnegative=nonnegative,
    )


def from_truth(sae: SAESpec, draw: Sample, seed: int) -> SAE:
    """Return an SAE that starts at the truth: the first latents' rows are the features.

    Training it separates a fault of the objective, which moves the SAE away from the truth, from a fault of
    the optimization, which fails to get there from a random start.

    Raises:
        NotEstimable: the SAE has fewer latents than there are features.
    """
    truth = draw.truth
    if sae.d_sae < truth.n_features:
        raise NotEstimable(
            f"an SAE of {sae.d_sae} latents cannot start at {truth.n_features} features"
        )
    start = sae.create(truth.dictionary.shape[1], seed)
    rows = start.params["W_dec"].clone()
    rows[: truth.n_features] = truth.dictionary
    return SAE(sae, {**start.params, "W_dec": rows, "W_enc": rows.clone().t()})


def _pursued(
    x: Float[torch.Tensor, "token d_in"],
    rows: Float[torch.Tensor, "feature d_in"],
    counts: Int64[torch.Tensor, " token"],
) -> Int64[torch.Tensor, "token most"]:
    """Return, per token, the features in the order in which pursuit takes them."""
    left, taken = x.clone(), torch.empty(len(x), 0, dtype=torch.int64)
    for _ in range(int(counts.max())):
        products = (left @ rows.t()).abs()
        products.scatter_(1, taken, -1.0)
        taken = torch.cat([taken, products.argmax(dim=1, keepdim=True)], dim=1)
        chosen = rows[taken]
        gram = chosen @ chosen.transpose(1, 2)
        weights = torch.linalg.solve(gram, chosen @ x[:, :, None])
        left = x - (chosen * weights).sum(dim=1)
    return taken


def _found_share(
    ranked: Int64[torch.Tensor, "token most"],
    counts: Int64[torch.Tensor, " token"],
    true: Bool[torch.Tensor, "token feature"],
    over: str,
) -> float:
    """Return the share of true features among each token's first ones; `counts` says how many are taken."""
    within = torch.arange(ranked.shape[1]) < counts[:, None]
    hits = (true.gather(1, ranked) & within).sum(dim=1)
    if over == "pairs":
        return float(hits.sum() / counts.sum())
    occupied = counts > 0
    return float((hits[occupied] / counts[occupied]).mean())
