"""Features of tokens that need no model: keys of lookup tables, bags and windows of embedding rows.

Nothing here depends on an SAE, so that all SAEs that are read at the same tokens share it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64, Integer
from pydantic import Field

from sae_placebo.core.spec import LARGEST, Distinct, Spec, numpy_generator
from sae_placebo.latents.base import TokenTable
from sae_placebo.latents.ladder.block_sums import (
    BlockKeys,
    BlockSums,
    Keys,
    LookupKeys,
    TokenBlock,
    gram_of,
    parts_of,
)
from sae_placebo.latents.ladder.fit_text import LadderText

AT_ONCE = 4_096


class LadderSpec(Spec):
    """Settings of the ladder.

    Attributes:
        fit_tokens: How many tokens of the training text tables and readouts are fitted on at most, in whole
            documents. Each takes 4 bytes of memory for every dimension of the arm's and of the placebo's
            activations, every dense feature and every column of `readout`: with all else as it is, the
            default takes 8 GiB at a width of 768.
        prior: How many occurrences the shorter context's prediction is worth in a lookup table.
        least_pair: A pair of tokens that occurs less often in the fitted documents is backed off to the
            token.
        position_bins: Number of bins of the position in the row, of about equal numbers of tokens.
        decays: Decay per token of each bag of previous tokens, between 0 and 1.
        bag: How many leading principal components of the embedding rows a bag adds up.
        window: How many leading principal components of its embedding row are read, for the current token,
            the one before, and so on.
        readout: How many dimensions of the placebo's activations are read. Where there are more, the leading
            principal components are.
        penalties: Ridge penalties to choose from, in units of the mean eigenvalue.
        partners: How many placebo latents a latent is predicted from; 0 for none.
        partner_tokens: On how many fitted tokens these are searched for, at most.
        least_active: Active tokens in the fitted and in the scored documents below which a latent has no R2,
            since that would be a ratio of two noises.
    """

    fit_tokens: int = Field(2**20, ge=1, lt=LARGEST)
    prior: float = Field(default=1.0, gt=0)
    least_pair: int = Field(2, ge=1)
    position_bins: int = Field(16, ge=2)
    decays: Distinct[Annotated[float, Field(gt=0, lt=1)]] = (0.7, 0.97)
    bag: int = Field(32, ge=1)
    window: tuple[Annotated[int, Field(ge=1, lt=LARGEST)], ...] = Field(
        (32, 32, 16, 16, 8, 8, 8, 8), min_length=1
    )
    readout: int = Field(256, ge=1)
    penalties: Distinct[Annotated[float, Field(gt=0)]] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    partners: int = Field(4, ge=0)
    partner_tokens: int = Field(20_000, ge=1)
    least_active: int = Field(10, ge=1)


@dataclass(frozen=True, eq=False)
class TokenFeatures:
    """What is known of the tokens without a model, which all SAEs that are read at them share.

    Features (components of embedding rows, their means by token, bins) are those of the whole text to fit
    on, whichever portion of it is fitted on. What is fitted to a target knows the portion alone.

    Attributes:
        text: The tokens, and what they serve.
        keys: Keys of the tables of the current token, the token before, and both; bins of the position.
        x: The columns of `Readouts` that need no placebo. Rows are the fitted tokens by portion, then those
            chosen on, then the scored ones by group, so that the rows of a portion or a block are a view.
        blocks: The tokens to choose on, then the scored ones by group.
        source: What stands for a token in bags and windows, in words for people.
        spec: Settings.
    """

    text: LadderText
    keys: LookupKeys
    x: Float32[np.ndarray, "ordered feature"]
    blocks: tuple[TokenBlock, ...]
    source: str
    spec: LadderSpec

    @classmethod
    def of(
        cls,
        text: LadderText,
        embeddings: Float[np.ndarray, "vocabulary d_embed"] | None,
        seed: int,
        spec: LadderSpec,
    ) -> TokenFeatures:
        """Return the features of the tokens.

        Args:
            text: The tokens, and what they serve.
            embeddings: Row of each token id, the trained model's W_E; None for fixed random rows.
            seed: It names the draw of the random rows.
            spec: Settings.
        """
        tokens, fit = text.tokens, np.concatenate(text.fit)
        blocks = _blocks(len(fit), text.choose, text.score)
        held = np.concatenate([block.tokens for block in blocks])
        order = np.concatenate([fit, held])
        ids, before = tokens.ids.astype(np.int64), tokens.previous.astype(np.int64)
        width = int(tokens.rows.token_ids.max()) + 1
        rows, source = _token_rows(tokens, fit, embeddings, seed, spec)
        ends = np.arange(1, spec.position_bins) / spec.position_bins
        edges = np.unique(np.quantile(tokens.positions[fit], ends))
        keys = LookupKeys(
            words=Keys.among(ids, fit, spec.prior),
            previous=Keys.among(before, fit, spec.prior, wanted=held),
            # pairs are sorted by the current token, since it comes first
            pairs=Keys.among(ids * width + before, fit, spec.prior, spec.least_pair, held),
            bins=np.searchsorted(edges, tokens.positions, side="right").astype(np.int64),
            n_bins=len(edges) + 1,
        )
        x, n_bag = _features(tokens, rows, order, spec), n_bag_columns(spec)
        less_words(x, keys.words, order, len(fit), 1 + n_bag)
        scale_columns(x, len(fit), (slice(1, 1 + n_bag), slice(1 + n_bag, None)))
        return cls(text, keys, x, blocks, source, spec)

    @functools.cached_property
    def fit(self) -> Int64[np.ndarray, " fitted"]:
        """The tokens that may be fitted on, by portion."""
        return np.concatenate(self.text.fit)

    @functools.cached_property
    def order(self) -> Int64[np.ndarray, " ordered"]:
        """Token of each row of the features."""
        return np.concatenate([self.fit, *(block.tokens for block in self.blocks)])

    @property
    def added(self) -> tuple[slice, ...]:
        """Rows of the features that each portion adds to the one before."""
        ends = self.text.n_fitted
        return tuple(map(slice, (0, *ends), ends))

    @functools.cached_property
    def counted(self) -> tuple[LookupKeys, ...]:
        """The keys as each portion of the text to fit on counts them."""
        return tuple(self.keys.counted(self.fit[:n]) for n in self.text.n_fitted)

    @functools.cached_property
    def word_of_pair(self) -> Int64[np.ndarray, " key"]:
        """Key of the current token of each pair."""
        words, pairs = self.keys.words, self.keys.pairs
        of = np.full(len(pairs.n), len(words.n) - 1, dtype=np.int64)
        of[pairs.of] = words.of
        of[-1] = len(words.n) - 1
        return of

    @functools.cached_property
    def fit_grams(self) -> tuple[Float64[np.ndarray, "feature feature"], ...]:
        """X'X of the features on the tokens that each portion adds to the one before."""
        return tuple(gram_of((self.x[rows],)) for rows in self.added)

    @functools.cached_property
    def sums(self) -> tuple[BlockSums, ...]:
        """Sums of the features that need no placebo over each block, the one to choose on first."""
        return tuple(
            BlockSums.of(BlockKeys.of(self.keys, block), (self.x[block.rows],), None)
            for block in self.blocks
        )


def _blocks(
    start: int,
    choose: Int64[np.ndarray, " chosen"],
    score: Sequence[tuple[int, Int64[np.ndarray, "_"]]],
) -> tuple[TokenBlock, ...]:
    """Return the blocks, whose rows in the features follow one another from row `start`."""
    blocks = []
    for group, tokens in ((-1, choose), *score):
        blocks.append(TokenBlock(tokens, group, slice(start, start + len(tokens))))
        start += len(tokens)
    return tuple(blocks)


def n_bag_columns(spec: LadderSpec) -> int:
    """Return how many columns the bags have together."""
    return len(spec.decays) * spec.bag


def _token_rows(
    tokens: TokenTable,
    fit: Int64[np.ndarray, " fitted"],
    embeddings: Float[np.ndarray, "vocabulary d_embed"] | None,
    seed: int,
    spec: LadderSpec,
) -> tuple[Float32[np.ndarray, "id part"], str]:
    """Return a row for each token id, and in words what the rows are.

    Rows of embeddings are centered and turned into principal components of the fitted tokens, the leading
    ones first, and padded with zeros where there are too few.
    """
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


def _features(
    tokens: TokenTable,
    rows: Float32[np.ndarray, "vocabulary part"],
    order: Int64[np.ndarray, " ordered"],
    spec: LadderSpec,
) -> Float32[np.ndarray, "ordered feature"]:
    """Return ones, bags, bags once more, and windows, neither centered nor scaled, of tokens in `order`."""
    ids, row, n_bag = tokens.rows.token_ids, tokens.places[:, 0], n_bag_columns(spec)
    features = np.empty((len(order), 1 + 2 * n_bag + sum(spec.window)), dtype=np.float32)
    place = np.full(len(tokens), -1, dtype=np.int64)
    place[order] = np.arange(len(order))
    at_once = max(1, AT_ONCE // ids.shape[1])
    for first in range(0, len(ids), at_once):
        start, stop = np.searchsorted(row, [first, first + at_once])
        used = np.flatnonzero(place[start:stop] >= 0)
        at = place[start:stop][used]
        bags = _bags(rows[ids[first : first + at_once], : spec.bag], spec)
        places = tokens.places[start:stop][used]
        part = bags[places[:, 0] - first, places[:, 1]]
        windows = _windows(ids, places, rows, spec)
        features[at] = np.concatenate([np.ones((len(at), 1), "f4"), part, part, windows], axis=1)
    return features


def _bags(
    rows: Float32[np.ndarray, "row position part"], spec: LadderSpec
) -> Float32[np.ndarray, "row position feature"]:
    """Return decayed sums, for each decay, of the vectors of the tokens before within the row."""
    decays = np.asarray(spec.decays, dtype=np.float32)[:, None]
    bag = np.zeros((*rows.shape[:2], len(spec.decays), spec.bag), dtype=np.float32)
    for p in range(1, rows.shape[1]):
        bag[:, p] = decays * bag[:, p - 1] + rows[:, p - 1, None]
    return bag.reshape(*rows.shape[:2], -1)


def _windows(
    ids: Integer[np.ndarray, "row position"],
    places: Int64[np.ndarray, "token 2"],
    rows: Float32[np.ndarray, "vocabulary part"],
    spec: LadderSpec,
) -> Float32[np.ndarray, "token feature"]:
    """Return the vectors of the last tokens side by side; those before the row began are 0."""
    row, position = places.T
    parts = []
    for back, width in enumerate(spec.window):
        there = position >= back
        part = rows[ids[row, np.maximum(position - back, 0)], :width]
        parts.append(part * there[:, None].astype(np.float32))
    return np.concatenate(parts, axis=1)


def less_words(
    x: Float32[np.ndarray, "ordered part"],
    words: Keys,
    order: Int64[np.ndarray, " ordered"],
    n_fit: int,
    first: int,
) -> None:
    """Subtract from features, in place, their mean by current token, as the table with its prior has it.

    Args:
        x: Features.
        words: Keys of the table of the current token.
        order: Token of each row; the fitted ones come first.
        n_fit: Number of fitted tokens.
        first: Columns before this one are left as they are.
    """
    n = (words.n + words.prior).astype(np.float32)[:, None]
    sums = words.adder(order[:n_fit]) @ x[:n_fit]
    table = ((sums + words.prior * _moment(x[:n_fit])) / n).astype(np.float32)
    table[:, :first] = 0
    of = words.of[order]
    for part in parts_of(len(x), AT_ONCE):
        x[part] -= table[of[part]]


def scale_columns(
    x: Float32[np.ndarray, "ordered part"], n_fit: int, together: tuple[slice, ...]
) -> None:
    """Give columns, in place, mean 0 and variance 1 on the fitted tokens; constant columns become 0.

    Args:
        x: Features.
        n_fit: Number of fitted tokens, which come first.
        together: Groups of columns. A column is constant if its deviation is tiny beside the largest of its
            group. Columns in no group are left as they are.
    """
    mean = _moment(x[:n_fit])
    deviation = np.sqrt(_moment(x[:n_fit], mean.astype(np.float32)))
    scale, shift = np.ones(x.shape[1]), np.zeros(x.shape[1])
    for columns in together:
        spread = deviation[columns]
        usable = spread > 1e-6 * max(float(spread.max(initial=0.0)), 1e-30)
        scale[columns] = np.where(usable, 1 / np.where(usable, spread, 1), 0)
        shift[columns] = mean[columns]
    scale32, shift32 = scale.astype(np.float32), shift.astype(np.float32)
    for part in parts_of(len(x), AT_ONCE):
        x[part] -= shift32
        x[part] *= scale32


def _moment(
    x: Float32[np.ndarray, "chosen part"], about: Float32[np.ndarray, " part"] | None = None
) -> Float64[np.ndarray, " part"]:
    """Return the mean of each column or, where `about` is given, of its squared difference from it."""
    total = np.zeros(x.shape[1])
    for part in parts_of(len(x), AT_ONCE):
        values = x[part]
        if about is not None:
            values = values - about
            values *= values
        total += np.ones(len(values), dtype=np.float32) @ values
    return total / len(x)
