from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from pylm import ngram

from conftest import library_text

VOCABULARY = 40


def small_text(seed: int, n_documents: int = 30) -> NDArray[np.uint16]:
    """Documents over 39 tokens with a heavy tail and short repeats."""
    generator = np.random.default_rng(seed)
    documents = []
    for _ in range(n_documents):
        body = np.minimum(generator.geometric(0.15, 60), VOCABULARY - 1)
        documents.append(np.concatenate([[0], body, body[:20]]))
    return np.concatenate(documents).astype(np.uint16)


def bytes_of(texts: list[str]) -> NDArray[np.uint16]:
    """One token per byte: bytes 1 to 256 behind BOS."""
    parts = [np.frombuffer(b"\0" + t.encode(), np.uint8).astype(np.uint16) for t in texts]
    for part in parts:
        part[1:] += 1
    return np.concatenate(parts)


@pytest.mark.parametrize("order", [1, 2, 5, 6])
@pytest.mark.parametrize("tuned", [False, True])
def test_probabilities_sum_to_one_after_any_context(order: int, tuned: bool) -> None:
    text = small_text(0)
    model = ngram.KneserNey(ngram.count(text, 6, VOCABULARY), order)
    if tuned:
        model = ngram.tune(model, small_text(1, 5))
    generator = np.random.default_rng(2)
    contexts = [text[i : i + 7] for i in generator.integers(0, len(text) - 7, 30)]  # seen
    contexts += [generator.integers(1, VOCABULARY, 7).astype(np.uint16) for _ in range(30)]
    contexts += [text[:0], text[:1], text[:3]]
    for context in contexts:
        p = model.distribution(context)
        assert p.min() > 0
        assert p.sum() == pytest.approx(1, abs=1e-9)


def test_a_text_and_the_distribution_agree_token_by_token() -> None:
    counts = ngram.count(small_text(0), 5, VOCABULARY)
    text = small_text(3, 2)
    for order in (3, 5):  # 3 of 5: the highest order uses raw counts, whatever was counted above
        model = ngram.KneserNey(counts, order)
        starts = np.maximum.accumulate(np.where(text == 0, np.arange(len(text)), 0))
        expected = [
            np.log2(model.distribution(text[starts[i] : i])[text[i]])
            for i in range(len(text))
            if text[i]
        ]
        np.testing.assert_allclose(model.log2_probabilities(text), expected, atol=1e-6)


def test_a_bigram_model_worked_by_hand() -> None:
    # a b a b a c, a=1 b=2 c=3, one document. Bigrams: (0 a) 1, (a b) 2, (b a) 2, (a c) 1.
    text = np.array([0, 1, 2, 1, 2, 1, 3], dtype=np.uint16)
    discounts = np.array([[0.5, 1.0, 1.5], [0.5, 1.0, 1.5]])
    model = ngram.KneserNey(ngram.count(text, 2, 4), 2, discounts)
    # continuation counts: a after 0 and b: 2; b after a: 1; c after a: 1; in all 4
    kept = (0.5 * 2 + 1.0 * 1) / 4
    one = {1: (2 - 1) / 4, 2: (1 - 0.5) / 4, 3: (1 - 0.5) / 4, 0: 0.0}
    one = {token: p + kept / 4 for token, p in one.items()}
    # after a: b twice, c once; kept (0.5 + 1.0) / 3
    two = {1: 0.0, 2: (2 - 1) / 3, 3: (1 - 0.5) / 3, 0: 0.0}
    two = {token: p + 1.5 / 3 * one[token] for token, p in two.items()}
    found = model.distribution(np.array([0, 1], dtype=np.uint16))
    np.testing.assert_allclose(found, [two[t] for t in range(4)])
    # c was never followed by anything: the unigrams alone
    np.testing.assert_allclose(
        model.distribution(np.array([3], dtype=np.uint16)), [one[t] for t in range(4)]
    )


def test_closed_form_discounts_follow_the_counts_of_counts() -> None:
    counts = np.repeat([1, 2, 3, 4, 9], [40, 15, 8, 5, 3]).astype(np.int32)
    y = 40 / 70
    expected = [1 - 2 * y * 15 / 40, 2 - 3 * y * 8 / 15, 3 - 4 * y * 5 / 8]
    np.testing.assert_allclose(ngram.closed_form(counts), expected)


def test_no_ngram_crosses_a_document() -> None:
    counts = ngram.count(np.array([0, 1, 2, 0, 3, 1], dtype=np.uint16), 2, 4)
    keys = counts.levels[2].keys
    first = counts.levels[1].keys[keys >> counts.bits]
    pairs = set(zip(first.tolist(), (keys & 3).tolist(), strict=True))
    assert pairs == {(0, 1), (1, 2), (0, 3), (3, 1)}
    with pytest.raises(ValueError, match="BOS"):
        ngram.count(np.array([1, 2], dtype=np.uint16), 2, 4)


def test_beats_add_one_on_library_text_and_gains_with_order_and_tuning() -> None:
    texts = [t[:8_000] for t in library_text(24)]
    train, dev, held = bytes_of(texts[:16]), bytes_of(texts[16:20]), bytes_of(texts[20:])
    counts = ngram.count(train, 5, 257)
    losses = {n: -ngram.KneserNey(counts, n).log2_probabilities(held).mean() for n in (1, 2, 3, 5)}
    assert losses[5] < losses[3] < losses[2] < losses[1]
    pairs = np.zeros((257, 257))
    np.add.at(pairs, (train[:-1], train[1:]), 1)
    p = (pairs + 1) / (pairs.sum(axis=1, keepdims=True) + 257)
    scored = held[1:] != 0
    add_one = -np.log2(p[held[:-1], held[1:]])[scored].mean()
    assert losses[2] < add_one - 0.05
    plain = ngram.KneserNey(counts, 5)
    tuned = ngram.tune(plain, dev)
    of_dev = [-m.log2_probabilities(dev).mean() for m in (plain, tuned)]
    assert of_dev[1] < of_dev[0]
    assert (tuned.discounts >= 0).all()
    assert (tuned.discounts <= [1, 2, 3]).all()
    cache = ngram.tune_cache(tuned, dev)
    assert -cache.log2_probabilities(held).mean() < -tuned.log2_probabilities(held).mean()


def test_a_cache_counts_only_what_stands_before_in_the_document() -> None:
    text = np.array([0, 1, 2, 1, 2, 0, 1, 2], dtype=np.uint16)
    found = ngram.cached(text)
    np.testing.assert_array_equal(found.count[0], [0, 0, 1, 1, 0, 0])
    np.testing.assert_array_equal(found.total[0], [0, 1, 2, 3, 0, 1])
    np.testing.assert_array_equal(found.count[1], [0, 0, 0, 1, 0, 0])  # (1, 2) seen once before
    np.testing.assert_array_equal(found.total[1], [0, 0, 0, 1, 0, 0])
    # every continuation's p, tried one by one, sums to one
    total = 0.0
    for token in range(4):
        tried = np.array([0, 1, 2, 1, 2, 1, token], dtype=np.uint16)
        scored = ngram.cached(tried).probabilities(4, 2.0)
        total += scored[-1] if token else 0.0
        if not token:  # BOS is not scored: it has only what every order leaves to the uniform
            total += 0.01 / 4 / 5.01 * (2 / 4) * (2 / 3)
    assert total == pytest.approx(1, abs=1e-3)


def test_seen_shares_count_runs_inside_a_document() -> None:
    train = np.concatenate([[0], np.arange(1, 31), [0], np.arange(60, 90)]).astype(np.uint16)
    copy, half, short = np.arange(3, 28), np.r_[np.arange(1, 16), np.arange(40, 50)], [1, 2, 3]
    text = np.concatenate([[0], copy, [0], half, [0], short]).astype(np.uint16)
    found = ngram.seen_shares(train, text, length=10)
    np.testing.assert_allclose(found, [1, 6 / 16, 0])
