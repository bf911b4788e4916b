"""What latents are predicted from: keys of lookup tables, and features of tokens and of a placebo.

Nothing here depends on an SAE, so that all SAEs read at the same tokens share it: `TokenFeatures` per
set of tokens, `Readouts` per set of tokens and placebo model.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64, Integer
from pydantic import Field

from sae_placebo.errors import NotEstimable
from sae_placebo.lazy import torch
from sae_placebo.spec import Spec, numpy_generator
from sae_placebo.structure.base import Folds, TokenTable

FIT, CHOOSE, SCORE = 0, 1, 2
_TOKENS_AT_ONCE = 65_536


class LadderSpec(Spec):
    """Settings of the ladder.

    Attributes:
        prior: Occurrences that the shorter context's prediction is worth in a lookup table.
        least_pair: Pairs of tokens seen less often in the fitted documents are backed off to the token.
        position_bins: Bins of the position in the row, of about equal numbers of tokens.
        decays: Of the bags of previous tokens, per token; each bag has `bag` dimensions.
        bag: Leading principal components of the embedding rows that a bag adds up.
        window: Leading principal components of the embedding row, for the current token, the one before,
            and so on.
        readout: Dimensions of the placebo's activations that are read: all of them, or, of more, the
            leading principal components.
        penalties: Ridge penalties to choose from, in units of the mean eigenvalue.
        partners: Placebo latents that a latent is predicted from.
        partner_tokens: Fitted tokens on which these are looked for, at most.
        least_active: Active tokens in the fitted and in the scored documents below which a latent has no
            R2: it would be a ratio of two noises.
    """

    prior: float = Field(default=1.0, gt=0)
    least_pair: int = 2
    position_bins: int = 16
    decays: tuple[float, ...] = (0.7, 0.97)
    bag: int = 32
    window: tuple[int, ...] = (32, 32, 16, 16, 8, 8, 8, 8)
    readout: int = 256
    penalties: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    partners: int = 4
    partner_tokens: int = 20_000
    least_active: int = 10


@dataclass(frozen=True, eq=False)
class Keys:
    """The keys of one lookup table.

    Attributes:
        of: Key of each token; `len(n) - 1` where the table has none and backs off.
        n: Occurrences in the fitted documents, 0 for the last.
        prior: Occurrences that what is backed off to is worth.
    """

    of: Int64[np.ndarray, " token"]
    n: Int64[np.ndarray, " key"]
    prior: float

    @classmethod
    def among(
        cls,
        keys: Integer[np.ndarray, " token"],
        fit: Int64[np.ndarray, " fitted"],
        prior: float,
        least: int = 1,
    ) -> Keys:
        """Return the keys seen at least `least` times at the tokens `fit`."""
        known, n = np.unique(keys[fit], return_counts=True)
        known, n = known[n >= least], n[n >= least]
        if not len(known):
            return cls(np.zeros(len(keys), dtype=np.int64), np.zeros(1, dtype=np.int64), prior)
        at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
        of = np.where(known[at] == keys, at, len(known)).astype(np.int64)
        return cls(of, np.append(n, 0).astype(np.int64), prior)

    @functools.cached_property
    def rest(self) -> Float64[np.ndarray, " key"]:
        """Weight of what is backed off to: prior / (n + prior)."""
        return np.asarray(self.prior / (self.n + self.prior))

    def sums(self, tokens: Int64[np.ndarray, " chosen"]) -> Any:
        """Return the sparse matrix [key, chosen] that adds up by key, nothing for the last key."""
        found = adder(self.of[tokens], len(self.n))
        found.data[found.indptr[-2] :] = 0
        return found


def adder(keys: Int64[np.ndarray, " chosen"], n_keys: int) -> Any:
    """Return the float32 CSR matrix [key, chosen] that adds up by key."""
    from scipy.sparse import csr_matrix

    ones = np.ones(len(keys), dtype=np.float32)
    return csr_matrix((ones, (keys, np.arange(len(keys)))), shape=(n_keys, len(keys)))


@dataclass(frozen=True, eq=False)
class Block:
    """Tokens that are summed over together: those chosen on, or those of one scored group."""

    tokens: Int64[np.ndarray, " chosen"]
    group: int


@dataclass(frozen=True, eq=False)
class TokenFeatures:
    """What can be known of the tokens without a model: shared by all SAEs read at them.

    Attributes:
        words: Table of the current token.
        previous: Table of the token before.
        pairs: Table of both.
        bins: Bin of each position.
        n_bins: Bins.
        dense: [token, feature] bags, then windows; as they are, neither centered nor scaled.
        fit: Fitted tokens.
        choose: Tokens to choose on.
        score: Scored tokens by group of documents.
        source: What stands for a token in bags and windows, for people.
        spec: Settings.
    """

    words: Keys
    previous: Keys
    pairs: Keys
    bins: Int64[np.ndarray, " token"]
    n_bins: int
    dense: Float32[np.ndarray, "token feature"]
    fit: Int64[np.ndarray, " fitted"]
    choose: Block
    score: tuple[Block, ...]
    n_groups: int
    source: str
    spec: LadderSpec

    @classmethod
    def of(
        cls,
        tokens: TokenTable,
        folds: Folds,
        embeddings: Float[np.ndarray, "vocabulary d_embed"] | None,
        seed: int,
        spec: LadderSpec,
    ) -> TokenFeatures:
        """Return the features of the tokens.

        Args:
            tokens: What was read.
            folds: Which documents are fitted, chosen and scored on.
            embeddings: Row of each token id, the trained model's W_E; None for fixed random rows.
            seed: Of the random rows.
            spec: Settings.

        Raises:
            NotEstimable: no token is left to fit, choose or score on.
        """
        purposes = folds.purposes[tokens.documents]
        fit, choose, score = (np.flatnonzero(purposes == p) for p in (FIT, CHOOSE, SCORE))
        for found, what in ((fit, "fit"), (choose, "choose penalties"), (score, "score")):
            if not len(found):
                raise NotEstimable(f"no document to {what} on: the ladder needs more documents")
        groups = folds.groups[tokens.documents[score]]
        ids, before = tokens.ids.astype(np.int64), tokens.previous.astype(np.int64)
        width = int(tokens.rows.token_ids.max()) + 1
        rows, source = _token_rows(tokens, fit, embeddings, seed, spec)
        edges = np.unique(
            np.quantile(
                tokens.positions[fit], np.arange(1, spec.position_bins) / spec.position_bins
            )
        )
        return cls(
            words=Keys.among(ids, fit, spec.prior),
            previous=Keys.among(before, fit, spec.prior),
            # the current token first: pairs are then sorted by it
            pairs=Keys.among(ids * width + before, fit, spec.prior, spec.least_pair),
            bins=np.searchsorted(edges, tokens.positions, side="right").astype(np.int64),
            n_bins=len(edges) + 1,
            dense=np.concatenate([_bags(tokens, rows, spec), _windows(tokens, rows, spec)], axis=1),
            fit=fit,
            choose=Block(choose, -1),
            score=tuple(Block(score[groups == g], int(g)) for g in np.unique(groups)),
            n_groups=folds.n_groups,
            source=source,
            spec=spec,
        )

    def __len__(self) -> int:
        return len(self.bins)

    @functools.cached_property
    def word_of_pair(self) -> Int64[np.ndarray, " key"]:
        """Key of the current token of each pair."""
        found = np.full(len(self.pairs.n), len(self.words.n) - 1, dtype=np.int64)
        found[self.pairs.of] = self.words.of
        found[-1] = len(self.words.n) - 1
        return found


def _token_rows(
    tokens: TokenTable,
    fit: Int64[np.ndarray, " fitted"],
    embeddings: Float[np.ndarray, "vocabulary d_embed"] | None,
    seed: int,
    spec: LadderSpec,
) -> tuple[Float32[np.ndarray, "id part"], str]:
    """Return a row per token id, leading principal components first, and what the rows are."""
    width = max(spec.bag, *spec.window)
    n_ids = int(tokens.rows.token_ids.max()) + 1
    if embeddings is None:
        drawn = numpy_generator(seed, "token rows of the ladder").standard_normal((n_ids, width))
        return drawn.astype(np.float32), "fixed random rows by token"
    if len(embeddings) < n_ids:
        raise ValueError(f"embeddings of {len(embeddings)} tokens, but ids up to {n_ids - 1}")
    table = np.asarray(embeddings[:n_ids], dtype=np.float32)
    weight = np.bincount(tokens.ids[fit], minlength=n_ids)[:n_ids] / len(fit)
    table = table - weight.astype(np.float32) @ table
    covariance = (table * weight[:, None]).T @ table
    vectors = np.linalg.eigh(covariance)[1][:, ::-1][:, :width]
    rows = (table @ vectors).astype(np.float32)
    missing = width - rows.shape[1]
    return np.pad(rows, ((0, 0), (0, max(missing, 0)))), "embedding rows of the model"


def _bags(
    tokens: TokenTable, rows: Float32[np.ndarray, "vocabulary part"], spec: LadderSpec
) -> Float32[np.ndarray, "token feature"]:
    """Return decayed sums of the rows of the tokens before, within the row, per decay."""
    ids = tokens.rows.token_ids
    row, position = tokens.places.T
    found = np.empty((len(tokens), len(spec.decays) * spec.bag), dtype=np.float32)
    decays = np.asarray(spec.decays, dtype=np.float32)[:, None]
    at_once = max(1, _TOKENS_AT_ONCE // ids.shape[1])
    for first in range(0, len(ids), at_once):
        part = rows[ids[first : first + at_once], : spec.bag]
        bag = np.zeros((*part.shape[:2], len(spec.decays), spec.bag), dtype=np.float32)
        for p in range(1, part.shape[1]):
            bag[:, p] = decays * bag[:, p - 1] + part[:, p - 1, None]
        start, stop = np.searchsorted(row, [first, first + at_once])
        here = slice(start, stop)
        found[here] = bag[row[here] - first, position[here]].reshape(stop - start, -1)
    return found


def _windows(
    tokens: TokenTable, rows: Float32[np.ndarray, "vocabulary part"], spec: LadderSpec
) -> Float32[np.ndarray, "token feature"]:
    """Return the rows of the last tokens, 0 before the row began, one position after the other."""
    row, position = tokens.places.T
    parts = []
    for back, width in enumerate(spec.window):
        there = position >= back
        part = rows[tokens.rows.token_ids[row, np.maximum(position - back, 0)], :width]
        parts.append(part * there[:, None])
    return np.concatenate(parts, axis=1).astype(np.float32)


@dataclass(frozen=True, eq=False)
class BlockSums:
    """Sums of the features over the tokens of a block, by key.

    `*_keys` are the keys that occur, `*_at` which of them each token has; `word_shares` are sums weighted
    by the share that the table of pairs has in the prediction, n / (n + prior).
    """

    block: Block
    x: Float32[np.ndarray, "chosen feature"]
    gram: Float64[np.ndarray, "feature feature"]
    share: Float32[np.ndarray, " chosen"]
    bins: Int64[np.ndarray, " chosen"]
    word_at: Int64[np.ndarray, " chosen"]
    pair_at: Int64[np.ndarray, " chosen"]
    word_keys: Int64[np.ndarray, " word"]
    word_sums: Float32[np.ndarray, "word feature"]
    word_shares: Float32[np.ndarray, "word feature"]
    pair_keys: Int64[np.ndarray, " pair"]
    pair_sums: Float32[np.ndarray, "pair feature"]
    bin_sums: Float32[np.ndarray, "bin feature"]


@dataclass(frozen=True, eq=False)
class Readouts:
    """Features that are read linearly, each column of mean 0 and variance 1 on the fitted tokens.

    Columns: ones; the bag as it is; then, less the mean by current token (the table's, with its prior):
    bag, window, activations of the placebo. With the table of the current token beside them, the latter
    explain what that table does not (Frisch, Waugh and Lovell).

    Attributes:
        tokens: The features of the tokens.
        x: [token, feature].
        bag_alone, bag, window, placebo: Columns; each of the last three holds those before it.
            `placebo` is None where there is no placebo.
    """

    tokens: TokenFeatures
    x: Float32[np.ndarray, "token feature"]
    bag_alone: slice
    bag: slice
    window: slice
    placebo: slice | None

    @classmethod
    def of(
        cls, tokens: TokenFeatures, activations: Float[torch.Tensor, "token d_in"] | None
    ) -> Readouts:
        """Return the features of the tokens with those of the placebo's model, if there is one."""
        n_bag = len(tokens.spec.decays) * tokens.spec.bag
        parts = [tokens.dense]
        if activations is not None:
            parts.append(_leading(activations, tokens.fit, tokens.spec.readout))
        inner = [_less_words(part, tokens) for part in parts]
        alone = tokens.dense[:, :n_bag]
        ones = np.ones((len(tokens), 1), dtype=np.float32)
        x = np.concatenate([ones, *(_scaled(part, tokens.fit) for part in (alone, *inner))], axis=1)
        start = 1 + n_bag
        n_token = tokens.dense.shape[1]
        return cls(
            tokens=tokens,
            x=x,
            bag_alone=slice(1, start),
            bag=slice(start, start + n_bag),
            window=slice(start, start + n_token),
            placebo=slice(start, x.shape[1]) if activations is not None else None,
        )

    @functools.cached_property
    def fit_gram(self) -> Float64[np.ndarray, "feature feature"]:
        """X'X on the fitted tokens."""
        return _gram(self.x[self.tokens.fit])

    @functools.cached_property
    def choose(self) -> BlockSums:
        """Sums over the tokens that are chosen on."""
        return self._sums(self.tokens.choose)

    @functools.cached_property
    def score(self) -> tuple[BlockSums, ...]:
        """Sums over the scored tokens, by group of documents."""
        return tuple(self._sums(block) for block in self.tokens.score)

    @functools.cached_property
    def readings(self) -> dict[str, Reading]:
        """Each readout's columns and the eigenvectors of its X'X on the fitted tokens."""
        named = {
            "bag_alone": self.bag_alone,
            "bag": self.bag,
            "window": self.window,
            "placebo_readout": self.placebo,
        }
        return {
            name: Reading.of(self.fit_gram, columns)
            for name, columns in named.items()
            if columns is not None
        }

    def _sums(self, block: Block) -> BlockSums:
        tokens, x = self.tokens, self.x[block.tokens]
        share = (1 - tokens.pairs.rest[tokens.pairs.of[block.tokens]]).astype(np.float32)
        words, at_word = np.unique(tokens.words.of[block.tokens], return_inverse=True)
        pairs, at_pair = np.unique(tokens.pairs.of[block.tokens], return_inverse=True)
        by_word = adder(at_word, len(words))
        return BlockSums(
            block=block,
            x=x,
            gram=_gram(x),
            share=share,
            bins=tokens.bins[block.tokens],
            word_at=at_word.astype(np.int64),
            pair_at=at_pair.astype(np.int64),
            word_keys=words,
            word_sums=by_word @ x,
            word_shares=by_word.multiply(share).tocsr() @ x,
            pair_keys=pairs,
            pair_sums=adder(at_pair, len(pairs)) @ x,
            bin_sums=adder(tokens.bins[block.tokens], tokens.n_bins) @ x,
        )


@dataclass(frozen=True, eq=False)
class Reading:
    """Columns of a readout and the eigenvectors of their X'X on the fitted tokens."""

    columns: slice
    values: Float64[np.ndarray, " feature"]
    vectors: Float32[np.ndarray, "feature feature"]

    @classmethod
    def of(cls, gram: Float64[np.ndarray, "all all"], columns: slice) -> Reading:
        """Return the columns with the eigenvectors of their part of `gram`."""
        values, vectors = np.linalg.eigh(gram[columns, columns])
        return cls(columns, np.maximum(values, 0), vectors.astype(np.float32))


def _parts(n: int) -> Iterator[slice]:
    for first in range(0, n, _TOKENS_AT_ONCE):
        yield slice(first, min(first + _TOKENS_AT_ONCE, n))


def _gram(x: Float32[np.ndarray, "chosen feature"]) -> Float64[np.ndarray, "feature feature"]:
    total = np.zeros((x.shape[1], x.shape[1]))
    for part in _parts(len(x)):
        total += x[part].T @ x[part]
    return total


def _leading(
    activations: Float[torch.Tensor, "token d_in"], fit: Int64[np.ndarray, " fitted"], width: int
) -> Float32[np.ndarray, "token part"]:
    """Return activations as they are, or, of more than `width` dimensions, the leading components."""
    x = activations.detach().float().cpu().numpy()
    if x.shape[1] <= width:
        return np.asarray(x)
    centered = x[fit] - x[fit].mean(0)
    vectors = np.linalg.eigh(_gram(centered))[1][:, ::-1][:, :width]
    return np.asarray(x @ vectors.astype(np.float32))


def _less_words(
    x: Float32[np.ndarray, "token part"], tokens: TokenFeatures
) -> Float32[np.ndarray, "token part"]:
    """Return features less their mean by current token, as the table with its prior has it."""
    mean = x[tokens.fit].mean(0)
    words = tokens.words
    n = (words.n + words.prior).astype(np.float32)[:, None]
    sums = words.sums(tokens.fit) @ x[tokens.fit]
    table = (sums + words.prior * mean) / n
    return np.asarray(x - table.astype(np.float32)[words.of])


def _scaled(
    x: Float32[np.ndarray, "token part"], fit: Int64[np.ndarray, " fitted"]
) -> Float32[np.ndarray, "token part"]:
    """Return columns of mean 0 and variance 1 on the fitted tokens; constant ones become 0."""
    mean, deviation = x[fit].mean(0), x[fit].std(0)
    usable = deviation > 1e-6 * max(float(deviation.max(initial=0.0)), 1e-30)
    scale = np.where(usable, 1 / np.where(usable, deviation, 1), 0)
    return np.asarray((x - mean) * scale, dtype=np.float32)
