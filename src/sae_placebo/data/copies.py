"""Held-out text that is in the training text too: copies, near copies, and shared runs of tokens.

What was trained on a document knows it by heart, so a held-out document that is also among the
training documents makes every measurement look better than it is, and the documents are fewer than
the intervals assume. Three things are counted, each over all held-out documents or tokens:

- A **copy** has the same text, character by character, as a training document, or the same token ids where
  documents are given as these.
- A **near copy** has a resemblance of at least 0.8 with a training document and is no copy. The
  resemblance of two documents is the number of distinct 5-grams of token ids that both hold, over the
  number that either holds. It is estimated from each document's 128 least hashes of 5-grams (standard
  error 0.035 at 0.8; exact for documents with fewer): Broder 1997, "On the resemblance and containment
  of documents", section 4. 5-grams and 0.8 are those of Lee et al. 2022, "Deduplicating training data
  makes language models better", section 4.2, who compare pairs that pass once more by edit distance.
- A held-out token is in a **shared run** if 13 consecutive tokens of its document, it among them, are
  also consecutive in a training document, counting only tokens that are in the rows. Brown et al.
  2020, "Language models are few-shot learners", appendix C: 13-grams, there of words. Touvron et al.
  2023, "Llama 2", appendix A.6, count tokens likewise and call text with less than 20% of them clean.

Copies are compared whole, whatever part of them was drawn into rows. Only what is held out is kept in
memory; training documents pass by once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt64

SHINGLE = 5
SKETCH = 128
RESEMBLANCE = 0.8
RUN = 13
CLEAN = 0.2
"""A trial says so where at least this share of held-out tokens lies in shared runs."""
_AT_ONCE = 64
_ODD = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xD6E8FEB86659FD93)
_SHIFT = np.uint64(32)

COUNTED = frozenset(
    {"n_documents", "n_copies", "n_near_copies", "share_of_tokens", "share_of_tokens_in_runs"}
)
"""`Overlap.counts` returns numbers of these names."""

Tokens = Sequence[int]


@dataclass(frozen=True)
class Sketch:
    """A sketch of a whole document: a hash of its text, and its least hashes of 5-grams, sorted.

    Of a document that is given as token ids, the hash is of these.
    """

    text: bytes
    least: UInt64[np.ndarray, " hash"]


def sketches(texts: Sequence[str | None], ids: Sequence[Tokens]) -> list[Sketch]:
    """Return the sketch of each document, given as text, None where it has none, and as token ids."""
    hashes, starts = _hashes(ids, SHINGLE)
    found = []
    for text, tokens, start in zip(texts, ids, starts, strict=True):
        # a document of fewer tokens is one 5-gram, with nothing behind it
        own = hashes[start : start + max(len(tokens) - SHINGLE + 1, 1)]
        whole = np.asarray(tokens, dtype="<i8").tobytes() if text is None else text.encode()
        found.append(Sketch(hashlib.blake2b(whole, digest_size=16).digest(), _least(own)))
    return found


def _least(hashes: UInt64[np.ndarray, " gram"]) -> UInt64[np.ndarray, " hash"]:
    few = 4 * SKETCH
    if len(hashes) > 2 * few:  # sorting all of a long document's would take most of the time
        least = _distinct(np.partition(hashes, few)[:few])
        if len(least) >= SKETCH:
            return least[:SKETCH]
    return _distinct(hashes)[:SKETCH]


def _distinct(hashes: UInt64[np.ndarray, " gram"]) -> UInt64[np.ndarray, " hash"]:
    """Return the hashes sorted, each once; for a few hundred of them much faster than `np.unique`."""
    values = np.sort(hashes)
    return np.asarray(values[np.append(True, values[1:] != values[:-1])])


def _hashes(
    documents: Sequence[Tokens], n: int
) -> tuple[UInt64[np.ndarray, " token"], Int64[np.ndarray, " document"]]:
    """Return a hash of the `n` tokens from each token on, and where each document starts.

    A document is followed by n - 1 tokens that no vocabulary has, so no hash is of two documents.
    """
    lengths = np.array([len(document) + n - 1 for document in documents], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    ids = np.zeros(int(lengths.sum()) + n - 1, dtype=np.uint64)
    for start, document in zip(starts, documents, strict=True):
        ids[start : start + len(document)] = np.asarray(document, dtype=np.uint64) + np.uint64(1)
    mixed = _mixed(ids)
    size = len(ids) - n + 1
    found = mixed[:size].copy()
    for k in range(1, n):
        found *= _ODD
        found += mixed[k : k + size]
    return _mixed(found), starts


def _mixed(values: UInt64[np.ndarray, " value"]) -> UInt64[np.ndarray, " value"]:
    """Return values that are spread over all 64 bits, different ones for different values."""
    values = (values ^ (values >> _SHIFT)) * _MIX
    values = (values ^ (values >> _SHIFT)) * _MIX
    return np.asarray(values ^ (values >> _SHIFT))


class Overlap:
    """Counts what training documents share with held-out ones.

    Args:
        heldout: The sketch of each held-out document.
        runs: The tokens of each that are in rows.
    """

    def __init__(self, heldout: Sequence[Sketch], runs: Sequence[Tokens]) -> None:
        self._sizes = np.array([len(run) for run in runs], dtype=np.int64)
        self._digests: dict[bytes, list[int]] = {}
        for i, one in enumerate(heldout):
            self._digests.setdefault(one.text, []).append(i)
        self._sketches = np.full((len(heldout), SKETCH), np.iinfo(np.uint64).max, dtype=np.uint64)
        for row, one in zip(self._sketches, heldout, strict=True):
            row[: len(one.least)] = one.least
        self._n_hashes = np.array([len(one.least) for one in heldout], dtype=np.int64)
        held = np.arange(SKETCH) < self._n_hashes[:, None]
        values, owners = self._sketches[held], np.nonzero(held)[0]
        order = np.argsort(values, kind="stable")
        self._values, self._owners = values[order], owners[order]
        self._copies = np.zeros(len(heldout), dtype=bool)
        self._near = np.zeros(len(heldout), dtype=bool)
        hashes, self._starts = _hashes(runs, RUN)
        places = _places(self._starts, self._sizes)
        self._runs, self._of_place = np.unique(hashes[places], return_inverse=True)
        self._places, self._n_places = places, len(hashes)
        self._shared = np.zeros(len(self._runs), dtype=bool)
        n_bits = min(len(self._runs).bit_length() + 4, 24)
        self._shift = np.uint64(64 - n_bits)
        self._first_bits = np.zeros(1 << n_bits, dtype=bool)
        self._first_bits[self._runs >> self._shift] = True
        self._waiting: list[tuple[Sketch, Tokens]] = []

    def add(self, sketch: Sketch, run: Tokens) -> None:
        """Compare a training document, given by its sketch and its tokens that are in rows."""
        self._waiting.append((sketch, run))
        if len(self._waiting) == _AT_ONCE:
            self._compare()

    def _compare(self) -> None:
        if not self._waiting:
            return
        documents, runs = zip(*self._waiting, strict=True)
        self._waiting = []
        for one in documents:
            self._copies[self._digests.get(one.text, [])] = True
        self._compare_sketches([one.least for one in documents])
        hashes, starts = _hashes(runs, RUN)
        places = _places(starts, np.array([len(run) for run in runs], dtype=np.int64))
        asked = hashes[places]
        # most runs are nowhere: a look at a table of their first bits tells so faster than a search
        asked = asked[self._first_bits[asked >> self._shift]]
        at = np.minimum(np.searchsorted(self._runs, asked), max(len(self._runs) - 1, 0))
        self._shared[at[self._runs[at] == asked]] = True

    def _compare_sketches(self, documents: Sequence[UInt64[np.ndarray, "_"]]) -> None:
        """Mark held-out documents that resemble one of these.

        A document that resembles another shares at least that part of its sketch; so of its hashes, all
        but that part cannot all be missing there, and the rarest are enough to find who may resemble it.
        """
        values = np.concatenate(documents)
        low = np.searchsorted(self._values, values, "left")
        n_owners = np.searchsorted(self._values, values, "right") - low
        stop = 0
        for least in documents:
            own = slice(stop, stop := stop + len(least))
            first = int((1 - RESEMBLANCE) * len(least) + 1e-9) + 1
            rarest = np.argsort(n_owners[own], kind="stable")[:first]
            if n_owners[own][rarest[-1]] == 0:
                continue
            spans = [
                self._owners[low[own][i] : low[own][i] + n_owners[own][i]]
                for i in rarest
                if n_owners[own][i]
            ]
            candidates = np.unique(np.concatenate(spans))
            candidates = candidates[~(self._near | self._copies)[candidates]]
            near = self._resemblance(least, candidates) >= RESEMBLANCE
            self._near[candidates[near]] = True

    def _resemblance(
        self, least: UInt64[np.ndarray, " hash"], candidates: Int64[np.ndarray, " candidate"]
    ) -> np.ndarray:
        """Return the estimated resemblance of a sketch with those of some held-out documents.

        Of the least hashes of both documents together, it is the share that both have. The rank of a
        shared hash among them is its rank in each, less the shared ones before it.
        """
        theirs = self._sketches[candidates]
        at = np.minimum(np.searchsorted(least, theirs), len(least) - 1)
        both = (least[at] == theirs) & (np.arange(SKETCH) < self._n_hashes[candidates, None])
        n_both = np.cumsum(both, axis=1)
        rank = at + np.arange(SKETCH) - (n_both - 1)
        union = len(least) + self._n_hashes[candidates] - n_both[:, -1]
        size = np.minimum(SKETCH, union)
        return np.asarray((both & (rank < size[:, None])).sum(axis=1) / size)

    def counts(self) -> dict[str, int | float]:
        """Return how many held-out documents and which share of their tokens are in the training text."""
        self._compare()
        near, n = self._near & ~self._copies, int(self._sizes.sum())
        # a run covers every token from its first on
        covered = np.zeros(self._n_places + RUN, dtype=np.int64)
        begins = self._places[self._shared[self._of_place]]
        np.add.at(covered, begins, 1)
        np.add.at(covered, begins + RUN, -1)
        in_runs = int((np.cumsum(covered) > 0).sum())
        return {
            "n_documents": len(self._sizes),
            "n_copies": int(self._copies.sum()),
            "n_near_copies": int(near.sum()),
            "share_of_tokens": float(self._sizes[self._copies | near].sum() / n),
            "share_of_tokens_in_runs": in_runs / n,
        }


def _places(
    starts: Int64[np.ndarray, " document"], sizes: Int64[np.ndarray, " document"]
) -> Int64[np.ndarray, " place"]:
    """Return the tokens from which on a document has `RUN` tokens."""
    n = np.maximum(sizes - RUN + 1, 0)
    return np.asarray(np.repeat(starts - (np.cumsum(n) - n), n) + np.arange(n.sum()))


def warning(counts: Mapping[str, int | float]) -> str | None:
    """Return the sentence that a trial says about held-out text that was trained on; None where none was."""
    copies, near = counts["n_copies"], counts["n_near_copies"]
    advice = "measurements on them are better than on unseen text: leave repeated text out of text.source"
    if copies + near:
        return (
            f"{copies + near:,.0f} of {counts['n_documents']:,.0f} held-out documents are also in the "
            f"training text ({copies:,.0f} copies, {near:,.0f} near copies; "
            f"{counts['share_of_tokens']:.1%} of the held-out tokens); {advice}"
        )
    if counts["share_of_tokens_in_runs"] >= CLEAN:
        return (
            f"{counts['share_of_tokens_in_runs']:.1%} of the held-out tokens lie in runs of {RUN} tokens "
            f"that the training text holds too; {advice}"
        )
    return None
