"""The tokens of one arm that baselines are fitted on, chosen on and scored on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int64

from sae_placebo.baselines.base import BaselinesSpec
from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.precision import ROUNDING_ENERGY
from sae_placebo.core.spec import numpy_generator
from sae_placebo.latents.base import Folds, TokenTable

_ROWS = 1 << 16
"""Tokens that the table of means takes in at a time."""
_PURPOSES = ("fit", "choose", "score")


@dataclass(frozen=True, eq=False)
class Sample:
    """The tokens of one arm that are used, and their activations less `center`.

    Attributes:
        fit: Tokens that dictionaries are fitted on.
        choose: Tokens that probabilities and probes are fitted on.
        score: Tokens that are coded and scored.
        center: Mean activation of the tokens in `fit`.
        x_fit: Activations of the tokens in `fit`, less `center`.
        x_choose: Activations of the tokens in `choose`, less `center`.
        x_score: Activations of the tokens in `score`, less `center`.
        documents: The document of each token in `score`.
        n_documents: How many documents are held out.
        energy: Squared distance of each activation in `x_score` from their mean.
        lookup_error: Squared distance of each activation in `x_score` from the mean activation of its token
            id on all documents to fit on.
        stream_tokens: Tokens that the bits of a dictionary are spread over.
    """

    fit: Int64[np.ndarray, " fitted"]
    choose: Int64[np.ndarray, " chosen"]
    score: Int64[np.ndarray, " token"]
    center: Float32[np.ndarray, " d_in"]
    x_fit: Float32[np.ndarray, "fitted d_in"]
    x_choose: Float32[np.ndarray, "chosen d_in"]
    x_score: Float32[np.ndarray, "token d_in"]
    documents: Int64[np.ndarray, " token"]
    n_documents: int
    energy: Float[np.ndarray, " token"]
    lookup_error: Float[np.ndarray, " token"]
    stream_tokens: int


def as_numpy(x: Any) -> Float[np.ndarray, "row d_in"]:
    """Return a matrix of NumPy or torch as a NumPy array, without its gradient."""
    return np.asarray(x.detach().cpu().numpy() if hasattr(x, "detach") else x)


def draw_sample(
    x: Float[np.ndarray, "token d_in"],
    tokens: TokenTable,
    folds: Folds,
    seed: int,
    spec: BaselinesSpec,
) -> Sample:
    """Return the tokens that baselines are compared on, which are the same for every arm.

    They depend on the held-out tokens, their documents' purposes and the seed alone.

    Args:
        x: Activations at the held-out tokens.
        tokens: The held-out tokens.
        folds: Which purpose each document serves.
        seed: The seed that the draws are named by.
        spec: Settings, which say how many tokens are drawn for each purpose.

    Raises:
        NotEstimable: a purpose has fewer than 50 tokens, or the scored activations do not vary.
    """
    purposes = folds.purposes[tokens.documents]
    drawn = []
    for purpose, limit in enumerate((spec.fit_tokens, spec.choose_tokens, spec.score_tokens)):
        serving = np.flatnonzero(purposes == purpose)
        if len(serving) < 50:
            raise NotEstimable(
                "the comparison with baselines needs 50 tokens of documents to fit on, as many to "
                f"choose on and to score on, and has {len(serving)} to {_PURPOSES[purpose]} on: hold out "
                "more documents"
            )
        random = numpy_generator(seed, "methods", "tokens", purpose)
        drawn.append(np.sort(random.permutation(serving)[:limit]))
    fit, choose, score = drawn
    center = x[fit].mean(axis=0, dtype=np.float64).astype(np.float32)
    x_fit, x_choose, x_score = (x[part].astype(np.float32) - center for part in drawn)
    centered = x_score - x_score.mean(axis=0)
    energy = np.einsum("td,td->t", centered, centered, dtype=np.float64)
    if not energy.sum() > ROUNDING_ENERGY * float(np.square(x[score], dtype=np.float64).sum()):
        raise NotEstimable("the scored activations do not vary: there is nothing to explain")
    # the means are over every token to fit on: they are cheap, and they are the line to beat
    every = np.flatnonzero(purposes == 0)
    means = _token_means(x, every, center, tokens.ids)
    missed = x_score - means(tokens.ids[score])
    return Sample(
        *(fit, choose, score, center, x_fit, x_choose, x_score),
        documents=tokens.documents[score].astype(np.int64),
        n_documents=tokens.n_documents,
        energy=energy,
        lookup_error=np.einsum("td,td->t", missed, missed, dtype=np.float64),
        stream_tokens=spec.stream_tokens or len(every),
    )


def _token_means(
    x: Float[np.ndarray, "token d_in"],
    rows: Int64[np.ndarray, " fitted"],
    center: Float32[np.ndarray, " d_in"],
    ids: Any,
) -> Callable[[Any], Float32[np.ndarray, "other d_in"]]:
    """Return a function from token ids to their mean activations less the center; 0 for ids not seen.

    Args:
        x: Activations.
        rows: Tokens that means are taken over.
        center: A vector that is subtracted from the means.
        ids: Token id of each activation.
    """
    from scipy.sparse import csr_matrix

    known, index, seen = np.unique(ids[rows], return_inverse=True, return_counts=True)
    means = np.zeros((len(known) + 1, x.shape[1]), dtype=np.float32)
    for first in range(0, len(rows), _ROWS):
        part, place = rows[first : first + _ROWS], index[first : first + _ROWS]
        shares = (1 / seen[place]).astype(np.float32)
        shape = (len(part), len(means))
        spread = csr_matrix((shares, place, np.arange(len(part) + 1)), shape=shape)
        means += spread.T @ x[part].astype(np.float32)
    means[:-1] -= center

    def at(wanted: Any) -> Float32[np.ndarray, "other d_in"]:
        place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        return np.asarray(means[np.where(known[place] == wanted, place, len(known))])

    return at
