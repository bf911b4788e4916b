"""The model that `pylm` must beat: interpolated modified Kneser-Ney over token ids.

Counts of every order lie in a trie of sorted arrays: an n-gram is named by its rank, and its key is
the rank of its first n - 1 tokens followed by the bits of its last token.

Source: Chen and Goodman 1998 (TR-10-98), section 3 (modified Kneser-Ney: three discounts per order,
continuation counts below the highest order). Deviations: the unigrams are interpolated with the
uniform distribution, and n-grams that begin with BOS keep their raw counts below the highest order
since nothing can stand before them (both as in Heafield et al. 2013); BOS is never predicted except
by the uniform distribution's share; `tune` searches the discounts on development text.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int32, Int64, UInt16, UInt64

BOS = 0
Tokens = UInt16[np.ndarray, " token"]
Discounts = Float64[np.ndarray, "order three"]


def depths(tokens: Tokens) -> Int64[np.ndarray, " token"]:
    """Return each token's place in its document: 0 for the BOS that opens it."""
    if not len(tokens) or tokens[0] != BOS:
        raise ValueError(f"token ids must open with a BOS (id {BOS}); put one before each document")
    places = np.arange(len(tokens))
    opened = np.where(tokens == BOS, places, 0)
    return places - np.maximum.accumulate(opened)


@dataclass(frozen=True)
class Level:
    """The n-grams of one order, sorted by key; `adjusted` holds their continuation counts."""

    keys: Int64[np.ndarray, " gram"]
    raw: Int32[np.ndarray, " gram"]
    adjusted: Int32[np.ndarray, " gram"]


@dataclass(frozen=True)
class Counts:
    """All n-grams up to an order: `levels[n]` holds those of n tokens (`levels[0]` is empty)."""

    vocabulary: int
    levels: tuple[Level, ...]

    @property
    def bits(self) -> int:
        """Bits that one token takes in a key."""
        return (self.vocabulary - 1).bit_length()

    def extend(
        self, n: int, prefix: Int64[np.ndarray, " token"], last: Int64[np.ndarray, " token"]
    ) -> Int64[np.ndarray, " token"]:
        """Return the ranks of the n-grams (prefix, last), -1 where never seen or no prefix."""
        keys = self.levels[n].keys
        wanted = (prefix << self.bits) | last
        found = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where((prefix >= 0) & (keys[found] == wanted), found, -1)

    def contexts(
        self, n: int, counts: Int32[np.ndarray, " gram"]
    ) -> Int32[np.ndarray, "four context"]:
        """Return per context of order n: total, and how many followers count 1, 2, and 3 or more."""
        size = 1 if n == 1 else len(self.levels[n - 1].keys)
        parents = self.levels[n].keys >> self.bits
        total = np.bincount(parents, weights=counts, minlength=size)
        groups = [counts == 1, counts == 2, counts >= 3]
        return np.stack([total, *(np.bincount(parents[g], minlength=size) for g in groups)]).astype(
            np.int32
        )


def count(tokens: Tokens, order: int, vocabulary: int) -> Counts:
    """Return all n-grams of documents joined behind BOS, up to `order`; none crosses a BOS."""
    place = depths(tokens)
    counts = Counts(vocabulary, ())
    levels: list[Level] = [Level(np.zeros(0, np.int64), *(np.zeros(0, np.int32) for _ in "ra"))]
    below = np.zeros(len(tokens), dtype=np.int64)  # rank of the (n-1)-gram that ends at each token
    opening = np.zeros(0, dtype=bool)
    for n in range(1, order + 1):
        ends = np.flatnonzero(place >= n - 1)
        prefix = below[ends - 1] if n > 1 else np.zeros(len(ends), dtype=np.int64)
        keys = (prefix << counts.bits) | tokens[ends]
        by_key = np.argsort(keys)
        keys, ends = keys[by_key], ends[by_key]
        new = np.concatenate([[True], keys[1:] != keys[:-1]])
        first = np.flatnonzero(new)
        raw = np.diff(first, append=len(keys)).astype(np.int32)
        if n > 1:
            levels[-1] = _continued(levels[-1], below[ends[first]], opening)
        opening = place[ends[first]] == n - 1
        if n == 1:
            raw[opening] = 0  # BOS opens contexts and is never predicted
        below = np.full(len(tokens), -1, dtype=np.int64)
        below[ends] = np.cumsum(new) - 1
        levels.append(Level(keys[first], raw, raw))
    return replace(counts, levels=tuple(levels))


def _continued(
    level: Level, suffixes: Int64[np.ndarray, " longer"], opening: Bool[np.ndarray, " gram"]
) -> Level:
    """Return the level with how many different tokens stand before each of its n-grams."""
    before = np.bincount(suffixes, minlength=len(level.keys)).astype(np.int32)
    return replace(level, adjusted=np.where(opening, level.raw, before))


@dataclass(frozen=True)
class Matches:
    """What a text finds in the counts, per order and scored token; `followers` is per 1, 2, 3+."""

    count: Int32[np.ndarray, "order token"]
    total: Int32[np.ndarray, "order token"]
    followers: Float32[np.ndarray, "three order token"]


class KneserNey:
    """Interpolated modified Kneser-Ney of one order over counts of that order or more."""

    def __init__(self, counts: Counts, order: int, discounts: Discounts | None = None) -> None:
        self.counts, self.order = counts, order
        used = [level.adjusted for level in counts.levels[:order]] + [counts.levels[order].raw]
        self.used = used
        self.tables = [
            counts.contexts(n, used[n]) if n else np.zeros((4, 0), np.int32)
            for n in range(order + 1)
        ]
        self.discounts = (
            np.stack([closed_form(used[n]) for n in range(1, order + 1)])
            if discounts is None
            else discounts
        )

    def matches(self, tokens: Tokens) -> Matches:
        """Return what every token but BOS finds, from its document's start on."""
        place, last = depths(tokens), tokens.astype(np.int64)
        scored = tokens != BOS
        shape = (self.order, int(scored.sum()))
        found = Matches(*(np.zeros(s, t) for s, t in _shapes(shape)))
        below = np.zeros(len(tokens), dtype=np.int64)
        for n in range(1, self.order + 1):
            before = np.concatenate([[-1], below[:-1]]) if n > 1 else below
            before = np.where(place >= n - 1, before, -1)
            here = self.counts.extend(n, before, last)
            at, of = here[scored], before[scored]
            found.count[n - 1] = np.where(at >= 0, self.used[n][at], 0)
            total, *followers = np.where(of >= 0, self.tables[n][:, of], 0)
            found.total[n - 1] = total
            found.followers[:, n - 1] = followers
            below = here
        return found

    def log2_probabilities(self, tokens: Tokens) -> Float64[np.ndarray, " scored"]:
        """Return log2 p of every token but BOS given the document before it."""
        return np.asarray(np.log2(self.mix(self.matches(tokens), self.discounts)))

    def mix(self, found: Matches, discounts: Discounts) -> Float64[np.ndarray, " scored"]:
        """Return the tokens' probabilities under given discounts (equation 25 of the source)."""
        p = np.full(found.count.shape[1], 1 / self.counts.vocabulary)
        for n in range(self.order):
            p = interpolate(p, found, n, discounts[n])
        return p

    def distribution(self, context: Tokens) -> Float64[np.ndarray, " vocabulary"]:
        """Return p of every token after `context`, which need not open with a BOS."""
        bits = self.counts.bits
        p = np.full(self.counts.vocabulary, 1 / self.counts.vocabulary)
        for n in range(1, self.order + 1):
            of = self._rank(context, n - 1)
            if of < 0 or not self.tables[n][0, of]:
                continue
            total, *followers = self.tables[n][:, of]
            keys = self.counts.levels[n].keys
            low, high = np.searchsorted(keys, [of << bits, (of + 1) << bits])
            seen = self.used[n][low:high]
            p *= self.discounts[n - 1] @ np.asarray(followers) / total
            taken = np.concatenate([[0.0], self.discounts[n - 1]])[np.minimum(seen, 3)]
            p[keys[low:high] & ((1 << bits) - 1)] += (seen - taken) / total
        return p

    def _rank(self, context: Tokens, n: int) -> int:
        """Return the rank of the context's last n tokens, -1 if never seen or not so many."""
        if n > len(context) or BOS in context[len(context) - n + 1 :]:
            return -1
        rank = np.zeros(1, dtype=np.int64)
        for i, token in enumerate(context[len(context) - n :], start=1):
            rank = self.counts.extend(i, rank, np.array([token], dtype=np.int64))
        return int(rank[0])


def _shapes(shape: tuple[int, int]) -> list[tuple[tuple[int, ...], type]]:
    return [(shape, np.int32), (shape, np.int32), ((3, *shape), np.float32)]


def interpolate(
    p: Float64[np.ndarray, " scored"],
    found: Matches,
    n: int,
    discounts: Float[np.ndarray, " three"],
) -> Float64[np.ndarray, " scored"]:
    """Return order n + 1's probabilities from the next lower order's."""
    seen, total = found.count[n], found.total[n]
    taken = np.concatenate([[0.0], discounts])[np.minimum(seen, 3)]
    kept = np.tensordot(discounts, found.followers[:, n], 1)
    return np.where(total > 0, (seen - taken + kept * p) / np.maximum(total, 1), p)


def closed_form(counts: Int32[np.ndarray, " gram"]) -> Float64[np.ndarray, " three"]:
    """Return D1, D2, D3+ from counts of counts (equation 26); .5, 1, 1.5 where one is missing."""
    n1, n2, n3, n4 = (int((counts == k).sum()) for k in (1, 2, 3, 4))
    if not all((n1, n2, n3, n4)):
        return np.array([0.5, 1.0, 1.5])
    y = n1 / (n1 + 2 * n2)
    found = np.array([1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    return np.asarray(np.clip(found, 0, [1, 2, 3]))


def tune(model: KneserNey, dev: Tokens, sweeps: int = 24) -> KneserNey:
    """Return the model with discounts found by coordinate search on development text.

    Each of the 3 x order discounts moves by steps that halve when neither way gains, within [0, k]
    so that every distribution still sums to one; the start is the closed form.
    """
    found = model.matches(dev)
    best = model.discounts.copy()
    steps = np.full(best.shape, 0.16)
    low = np.inf
    for _ in range(sweeps):
        below = np.full(found.count.shape[1], 1 / model.counts.vocabulary)
        for n in range(model.order):
            for k in range(3):
                low = _step(found, best, steps, (n, k), below, low)
            below = interpolate(below, found, n, best[n])
        if steps.max() < 0.01:
            break
    return KneserNey(model.counts, model.order, best)


def _step(
    found: Matches,
    best: Discounts,
    steps: Discounts,
    at: tuple[int, int],
    below: Float64[np.ndarray, " scored"],
    low: float,
) -> float:
    """Move one discount in place if that lowers the loss, else halve its step; return the loss."""
    here = best[at]
    for move in (0.0, steps[at], -steps[at]) if np.isinf(low) else (steps[at], -steps[at]):
        best[at] = np.clip(here + move, 0, at[1] + 1)
        p = below
        for n in range(at[0], len(best)):
            p = interpolate(p, found, n, best[n])
        loss = -float(np.log2(p).mean())
        if loss < low:
            if move:
                return loss
            low = loss
    best[at] = here
    steps[at] /= 2
    return low


@dataclass(frozen=True)
class Cached:
    """What the document so far says of each scored token: orders 1 to 3 of its own n-grams."""

    count: Int64[np.ndarray, "three token"]
    total: Int64[np.ndarray, "three token"]

    def probabilities(self, vocabulary: int, strength: float) -> Float64[np.ndarray, " scored"]:
        """Return the cache's p: each order smoothed by `strength` pseudo-counts of the next lower."""
        p = np.full(self.count.shape[1], 1 / vocabulary)
        for n in range(3):
            theta = strength if n else 0.01  # whatever follows has been weighed by the mixture
            p = (self.count[n] + theta * p) / (self.total[n] + theta)
        return p

    def buckets(self) -> Int64[np.ndarray, " scored"]:
        """Return 0 to 9: the longest context seen before in the document, and how often."""
        place = np.arange(1, 4)[:, None] * (self.total > 0)
        longest = place.max(axis=0)
        times = self.total[np.maximum(longest - 1, 0), np.arange(len(longest))]
        often = np.digitize(times, [2, 4])
        return np.where(longest > 0, 1 + 3 * (longest - 1) + often, 0)


def cached(tokens: Tokens) -> Cached:
    """Return each scored token's counts in its document before it."""
    place = depths(tokens)
    scored = tokens != BOS
    gram = np.cumsum(tokens == BOS)  # of no tokens: the document
    seen = np.maximum(place - 1, 0)
    counts, totals = [], []
    for n in range(3):
        before, total = (gram, seen) if n == 0 else (_shift(gram), _shift(seen))
        keys = (before << 16) | tokens
        gram = np.unique(keys, return_inverse=True)[1]
        seen = _earlier(gram)
        counts.append(seen[scored])
        totals.append(total[scored])
    return Cached(np.stack(counts), np.stack(totals))


def _shift(values: Int64[np.ndarray, " token"]) -> Int64[np.ndarray, " token"]:
    return np.concatenate([[0], values[:-1]])


def _earlier(names: Int64[np.ndarray, " token"]) -> Int64[np.ndarray, " token"]:
    """Return how often each token's name stands before it."""
    order = np.argsort(names, kind="stable")
    ordered = names[order]
    new = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    places = np.arange(len(names))
    earlier = np.empty(len(names), dtype=np.int64)
    earlier[order] = places - np.maximum.accumulate(np.where(new, places, 0))
    return earlier


@dataclass(frozen=True)
class CacheMixture:
    """An n-gram model mixed with a cache of the document so far, by weights per bucket.

    Source: Kuhn and De Mori 1990 (a cache beside an n-gram model); bigrams and trigrams of the
    document and weights by how well its context is known are added here, to the cache's advantage.
    """

    model: KneserNey
    strength: float
    weights: Float64[np.ndarray, " ten"]

    def log2_probabilities(self, tokens: Tokens) -> Float64[np.ndarray, " scored"]:
        """Return log2 p of every token but BOS given the document before it."""
        found = cached(tokens)
        weight = self.weights[found.buckets()]
        cache = found.probabilities(self.model.counts.vocabulary, self.strength)
        static = 2 ** self.model.log2_probabilities(tokens)
        return np.asarray(np.log2((1 - weight) * static + weight * cache))


def tune_cache(model: KneserNey, dev: Tokens) -> CacheMixture:
    """Return the mixture with the strength and weights that suit development text best (EM)."""
    found, static = cached(dev), 2 ** model.log2_probabilities(dev)
    buckets = found.buckets()
    best, low = CacheMixture(model, 1.0, np.zeros(10)), np.inf
    for strength in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0):
        cache = found.probabilities(model.counts.vocabulary, strength)
        weights = np.full(10, 0.1)
        for _ in range(40):
            share = weights[buckets] * cache
            share /= share + (1 - weights[buckets]) * static
            size = np.bincount(buckets, minlength=10)
            weights = np.bincount(buckets, weights=share, minlength=10) / np.maximum(size, 1)
        mixed = (1 - weights[buckets]) * static + weights[buckets] * cache
        if (loss := -float(np.log2(mixed).mean())) < low:
            best, low = CacheMixture(model, strength, weights), loss
    return best


def seen_shares(train: Tokens, text: Tokens, length: int = 20) -> Float64[np.ndarray, " document"]:
    """Return per document the share of its runs of `length` tokens that stand in training text.

    Runs are compared by a 64-bit polynomial hash; documents shorter than a run have share 0.
    """
    known = np.unique(_runs(train, length))
    hashes = _runs(text, length)
    place = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    documents = np.cumsum(text == BOS) - 1
    whole = depths(text)[length - 1 :] >= length  # neither BOS nor another document inside
    of = documents[length - 1 :][whole]
    n = int(documents[-1]) + 1
    hits = np.bincount(of, weights=(known[place] == hashes)[whole], minlength=n)
    return np.asarray(hits / np.maximum(np.bincount(of, minlength=n), 1))


def _runs(tokens: Tokens, length: int) -> UInt64[np.ndarray, " run"]:
    """Return the hash of every run of `length` tokens, by its start."""
    total = np.zeros(len(tokens) - length + 1, dtype=np.uint64)
    for i in range(length):
        total = total * np.uint64(0x9E3779B97F4A7C15) + tokens[i : i + len(total)] + np.uint64(1)
    return total
