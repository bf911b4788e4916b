"""The tokens of one arm that baselines are fitted on, chosen on and scored on.

Methods are fitted on the text that the SAEs were trained on, so that both dictionaries of a comparison have
had the same text. Held-out documents serve to choose and to score.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int64

from sae_placebo.baselines.base import BaselinesSpec
from sae_placebo.baselines.residual import squared
from sae_placebo.baselines.settings import FEWEST_TOKENS
from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.precision import ROUNDING_ENERGY
from sae_placebo.core.spec import numpy_generator
from sae_placebo.latents.base import Encoded, Folds, TokenTable

_ROWS = 1 << 16
"""Tokens that the table of means takes in at a time."""
_ADDED = (0.001, 0.01, 0.05, 0.2, 0.5)
"""Occurrences that may be added to those of each token id."""
_PURPOSES = ("fit", "choose", "score")
_NEARLY_ALL = 0.95
"""Share of the tokens that SAEs were trained on from which they count as all: outliers are left out."""


@dataclass(frozen=True, eq=False)
class FitText:
    """The text that existing methods are fitted on.

    Attributes:
        activations: Activations [token, d_in], NumPy or torch, also of tokens that are not used.
        tokens: Which of these tokens are used.
        ids: Token id of each that is used.
        codes: What each SAE's encoder gives at each that is used, scipy CSR [token, d_sae], by SAE.
        n_trained: Tokens that the SAEs were trained on; None where it is not known.
        is_held_out: Whether it consists of the held-out documents to fit on, which are not scored then.
    """

    activations: Any
    tokens: Int64[np.ndarray, " used"]
    ids: Any
    codes: Mapping[str, Any]
    n_trained: int | None = None
    is_held_out: bool = False

    @classmethod
    def held_out(
        cls, activations: Any, tokens: TokenTable, folds: Folds, saes: Mapping[str, Encoded]
    ) -> FitText:
        """Return the held-out documents to fit on, where there is no text of its own to fit on."""
        there = np.flatnonzero(folds.purposes[tokens.documents] == 0)
        codes = {name: sae.codes[there] for name, sae in saes.items()}
        return cls(activations, there, tokens.ids[there], codes, is_held_out=True)


@dataclass(frozen=True, eq=False)
class Vectors:
    """What is coded: vectors at the tokens to choose on, and at those to score on.

    Attributes:
        choose: Vectors at the tokens to choose on.
        score: Vectors at the tokens to score on, which are of other documents.
        documents: Document of each token to choose on.
        choose_energy: Mean squared distance of the activations at the tokens to choose on from their mean.
        energy: Squared distance of each scored token's activation from the mean of all. What may be left is
            a share of these, also where the vectors are themselves what a table leaves of activations.
    """

    choose: Float32[np.ndarray, "chosen d_in"]
    score: Float32[np.ndarray, "token d_in"]
    documents: Int64[np.ndarray, " chosen"]
    choose_energy: float
    energy: Float[np.ndarray, " token"]

    @classmethod
    def of(
        cls,
        choose: Float32[np.ndarray, "chosen d_in"],
        score: Float32[np.ndarray, "token d_in"],
        documents: Int64[np.ndarray, " chosen"],
    ) -> Vectors:
        """Return vectors that are activations themselves, less any center."""
        energy = [squared(x - x.mean(axis=0)) for x in (choose, score)]
        return cls(choose, score, documents, float(energy[0].mean()), energy[1])

    def moved(self, shift: Float32[np.ndarray, " d_in"]) -> Vectors:
        """Return the vectors plus `shift`."""
        return dataclasses.replace(self, choose=self.choose + shift, score=self.score + shift)

    def gaussian(self, seed: int) -> Vectors:
        """Return Gaussian vectors with the same means and covariances.

        Those to choose on and those to score on keep each their own.
        """
        drawn = []
        for name, x in (("choose", self.choose), ("score", self.score)):
            values, vectors = np.linalg.eigh(np.cov(x, rowvar=False).astype(np.float64))
            root = (vectors * np.sqrt(np.maximum(values, 0))).T.astype(np.float32)
            random = numpy_generator(seed, "baselines", "gaussian", name, x.shape[1])
            drawn.append(random.standard_normal(x.shape, np.float32) @ root + x.mean(axis=0))
        return Vectors.of(drawn[0], drawn[1], self.documents)


@dataclass(frozen=True, eq=False)
class Sample:
    """The tokens of one arm that are used, and their activations less `center`.

    Attributes:
        fit: Tokens of the text to fit on that dictionaries are fitted on, in an order that is drawn.
        choose: Tokens that settings, probabilities and probes are chosen and fitted on.
        score: Tokens that are coded and scored.
        center: Mean activation of the tokens in `fit`.
        x_fit: Activations of the tokens in `fit`, less `center`.
        vectors: Activations of the tokens in `choose` and in `score`, less `center`.
        looked_up: What is left of these by their token id's mean activation in all of the text to fit on.
        id_bits: Bits that the token id of each token in `score` takes, under frequencies in this text.
        n_ids: Token ids that have a mean.
        probe: Places in `choose` of the tokens that probes are fitted on.
        documents: The document of each token in `score`.
        n_documents: How many documents are held out.
        stream_tokens: Tokens that the bits of a dictionary are spread over.
        n_trained: Tokens that the SAEs were trained on; None where it is not known.
    """

    fit: Int64[np.ndarray, " fitted"]
    choose: Int64[np.ndarray, " chosen"]
    score: Int64[np.ndarray, " token"]
    center: Float32[np.ndarray, " d_in"]
    x_fit: Float32[np.ndarray, "fitted d_in"]
    vectors: Vectors
    looked_up: Vectors
    id_bits: Float[np.ndarray, " token"]
    n_ids: int
    probe: Int64[np.ndarray, " probed"]
    documents: Int64[np.ndarray, " token"]
    n_documents: int
    stream_tokens: int
    n_trained: int | None

    @property
    def caveat(self) -> str | None:
        """Say that settings were chosen on few tokens, or that methods had less text than the SAEs."""
        chosen, fitted, said = len(self.choose), len(self.fit), []
        if chosen < FEWEST_TOKENS:
            said.append(f"settings were chosen on {chosen} tokens, fewer than {FEWEST_TOKENS}")
        if self.n_trained is not None and fitted < _NEARLY_ALL * self.n_trained:
            text = f"{fitted} of the {self.n_trained} tokens that SAEs were trained on"
            said.append(f"methods were fitted on {text}")
        return "; ".join(said) or None


def as_numpy(x: Any) -> Float[np.ndarray, "row d_in"]:
    """Return a matrix of NumPy or torch as a NumPy array, without its gradient."""
    return np.asarray(x.detach().cpu().numpy() if hasattr(x, "detach") else x)


def draw_sample(
    x: Float[np.ndarray, "token d_in"],
    tokens: TokenTable,
    folds: Folds,
    text: FitText,
    seed: int,
    spec: BaselinesSpec,
) -> Sample:
    """Return the tokens that baselines are compared on, which are the same for every arm.

    They depend on the held-out tokens, their documents' purposes, the length of the text to fit on and the
    seed alone.

    Args:
        x: Activations at the held-out tokens.
        tokens: The held-out tokens.
        folds: Which purpose each document serves.
        text: The text to fit on.
        seed: The seed that the draws are named by.
        spec: Settings, which say how many tokens are drawn for each purpose.

    Raises:
        NotEstimable: a purpose has fewer than 50 tokens, or the scored activations do not vary.
    """
    fit, choose, score = _drawn(folds.purposes[tokens.documents], text, seed, spec)
    choose, score = np.sort(choose), np.sort(score)
    to_fit_on = as_numpy(text.activations)
    x_fit = to_fit_on[text.tokens[fit]].astype(np.float32)
    center = x_fit.mean(axis=0, dtype=np.float64).astype(np.float32)
    x_fit -= center
    x_choose, x_score = (x[part].astype(np.float32) - center for part in (choose, score))
    vectors = Vectors.of(x_choose, x_score, tokens.documents[choose].astype(np.int64))
    spreads = vectors.choose_energy * len(choose), float(vectors.energy.sum())
    for part, spread in zip((choose, score), spreads, strict=True):
        if not spread > ROUNDING_ENERGY * float(np.square(x[part], dtype=np.float64).sum()):
            raise NotEstimable("the scored activations do not vary: there is nothing to explain")
    # the means are over every token to fit on: they are cheap, and they are the line to beat
    means = _token_means(to_fit_on, text.tokens, center, text.ids)
    id_bits = _id_bits(text.ids, tokens.ids[choose], len(tokens.vocabulary))
    return Sample(
        *(fit, choose, score, center, x_fit, vectors),
        looked_up=dataclasses.replace(
            vectors,
            choose=x_choose - means(tokens.ids[choose]),
            score=x_score - means(tokens.ids[score]),
        ),
        id_bits=id_bits[tokens.ids[score]],
        n_ids=len(np.unique(text.ids)),
        probe=np.unique(np.linspace(0, len(choose) - 1, spec.probe_tokens).round().astype(int)),
        documents=tokens.documents[score].astype(np.int64),
        n_documents=tokens.n_documents,
        stream_tokens=spec.stream_tokens or len(text.tokens),
        n_trained=text.n_trained,
    )


def _drawn(
    purposes: Int64[np.ndarray, " token"], text: FitText, seed: int, spec: BaselinesSpec
) -> list[Int64[np.ndarray, " some"]]:
    """Return tokens of the text to fit on, and held-out tokens to choose and to score on, as drawn.

    With a text of its own to fit on, all held-out documents that do not serve to choose are scored.

    Raises:
        NotEstimable: a purpose has fewer than 50 tokens.
    """
    limits = spec.fit_tokens, spec.choose_tokens, spec.score_tokens
    scored = purposes == 2 if text.is_held_out else purposes != 1
    serving = np.arange(len(text.tokens)), np.flatnonzero(purposes == 1), np.flatnonzero(scored)
    drawn = []
    for purpose, (some, limit) in enumerate(zip(serving, limits, strict=True)):
        if len(some) < 50:
            raise NotEstimable(
                "the comparison with baselines needs 50 tokens to fit on, as many of held-out documents "
                f"to choose on and to score on, and has {len(some)} to {_PURPOSES[purpose]} on: give more "
                "text, or hold out more documents"
            )
        random = numpy_generator(seed, "methods", "tokens", purpose)
        drawn.append(random.permutation(some)[:limit])
    return drawn


def _id_bits(fit: Any, choose: Any, n_ids: int) -> Float[np.ndarray, " id"]:
    """Return the length of each token id under its frequency in the text to fit on.

    Occurrences are added to every id's: the number that codes the tokens to choose on best.

    Args:
        fit: Token ids of the text to fit on.
        choose: Token ids of the tokens to choose on.
        n_ids: How many ids there are.
    """
    seen, check = (np.bincount(ids, minlength=n_ids) for ids in (fit, choose))
    lengths = [-np.log2((seen + extra) / (len(fit) + extra * n_ids)) for extra in _ADDED]
    return min(lengths, key=lambda bits: float(check @ bits))


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
        ids: Token id of each of these tokens.
    """
    from scipy.sparse import csr_matrix

    known, index, seen = np.unique(ids, return_inverse=True, return_counts=True)
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
