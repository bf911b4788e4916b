"""Values that theory or other people's computations give, found again by this package's code."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from sae_placebo.data.labels.truth import best_threshold, count_outcomes, f1_scores
from sae_placebo.latents.metrics.entropy_null import entropy_null

# plug-in entropy, in bits, of n random positions of a text with 50,000 types under Zipf's law
ZIPF_ENTROPY = {20: 4.2, 50: 5.2, 100: 6.0, 200: 6.8, 1_000: 8.2, 10_000: 9.7}
PERIODS = [(2, 2), (10, 50), (50, 4), (100, 1_000)]


def zipf(n_types: int = 50_000) -> np.ndarray:
    weights = 1 / np.arange(1, n_types + 1)
    return weights / weights.sum()


def expected_plug_in_bits(p: np.ndarray, n: int) -> float:
    """Return the exact mean over n independent draws: log2 n - sum of E[k log2 k] / n, k binomial(n, p)."""
    total = 0.0
    for part in (p[:100], p[100:]):
        k = np.arange(2, min(n, binom.isf(1e-15, n, part[0])) + 1)[:, None]
        total += float((binom.pmf(k, n, part) * k * np.log2(k)).sum())
    return float(np.log2(n)) - total / n


@pytest.mark.parametrize(("n", "published"), ZIPF_ENTROPY.items())
def test_plug_in_entropy_of_random_positions(n: int, published: float) -> None:
    p = zipf()
    text = np.rint(p * 2e7).astype(np.int64)[:, None]
    null = entropy_null(text).at(np.array([[float(n)]]))[0, 0]
    # k is taken as binomial(K, n / N): the text is thinned, and no sample has exactly n positions
    assert null == pytest.approx(expected_plug_in_bits(p, n), abs=0.04 / n**0.5)
    # published to one digit, from a simulation of its own; at n = 20 the expectation is 4.13
    assert null == pytest.approx(published, abs=0.09 if n == 20 else 0.05)


def test_entropy_of_all_positions_is_that_of_the_text() -> None:
    p = zipf()
    text = np.rint(p * 2e7).astype(np.int64)[:, None]
    whole = entropy_null(text).at(np.array([[float(text.sum())]]))[0, 0]
    assert whole == pytest.approx(-(p * np.log2(p)).sum(), abs=1e-4)


@pytest.mark.parametrize(("label_period", "says_period"), PERIODS)
def test_f1_of_a_predictor_that_knows_nothing(label_period: int, says_period: int) -> None:
    # a label at rate p, a predictor at rate q, exactly independent of it: precision p, recall q
    token = np.arange(label_period * says_period)
    present = (token % label_period == 0)[:, None]
    says = (token // label_period % says_period == 0)[:, None]
    p, q = 1 / label_period, 1 / says_period
    documents = token * 7 // len(token)

    def f1(predicted: np.ndarray) -> float:
        counts = count_outcomes(predicted, present, documents, 7)
        return float(f1_scores(counts, np.ones((7, 1)))[0, 0])

    assert f1(says) == pytest.approx(2 * p * q / (p + q), rel=1e-12)
    # the best that knows nothing says yes always (Lipton, Elkan and Naryanaswamy 2014)
    always = 2 * p / (1 + p)
    assert f1(np.ones_like(says)) == pytest.approx(always, rel=1e-12)
    constant = np.ones(len(token))
    assert best_threshold(constant, present[:, 0], int(present.sum()))[0] == pytest.approx(always)
