"""Values that theory or other people's computations give, found again by this package's code."""

from __future__ import annotations

import numpy as np
import pytest

from sae_placebo.data.labels.truth import f1_scores
from sae_placebo.latents.metrics.entropy_null import entropy_null

# plug-in entropy, in bits, of n random positions of a text with 50,000 types under Zipf's law
ZIPF_ENTROPY = {20: 4.2, 50: 5.2, 100: 6.0, 200: 6.8, 1_000: 8.2, 10_000: 9.7}


def zipf(n_types: int = 50_000) -> np.ndarray:
    weights = 1 / np.arange(1, n_types + 1)
    return weights / weights.sum()


@pytest.mark.parametrize(("n", "bits"), ZIPF_ENTROPY.items())
def test_plug_in_entropy_of_random_positions(n: int, bits: float) -> None:
    p = zipf()
    assert -(p * np.log2(p)).sum() == pytest.approx(10.9, abs=0.05)  # what no n draws reach
    random = np.random.default_rng(n)
    found = []
    for _ in range(max(20, 20_000 // n)):
        k = np.unique(random.choice(len(p), n, p=p), return_counts=True)[1]
        found.append(np.log2(n) - (k * np.log2(k)).sum() / n)
    # published to one digit, from a simulation of its own; at n = 20 it is 4.12 in expectation
    assert np.mean(found) == pytest.approx(bits, abs=0.1)
    text = np.rint(p * 2e7).astype(np.int64)[:, None]
    null = entropy_null(text).at(np.array([[float(n)]]))[0, 0]
    assert null == pytest.approx(np.mean(found), abs=0.03)


@pytest.mark.parametrize(("p", "q"), [(0.5, 0.5), (0.1, 0.02), (0.02, 0.3), (0.01, 0.001)])
def test_f1_of_a_predictor_that_knows_nothing(p: float, q: float) -> None:
    # a label at rate p, a predictor at rate q that is independent of it: precision p, recall q
    random = np.random.default_rng(0)
    n = 2_000_000_000
    hits = random.binomial(n, p * q)
    counts = [hits, round(n * q) - hits, round(n * p) - hits]
    f1 = f1_scores(np.array([[counts]], dtype=np.int64), np.ones((1, 1)))[0, 0]
    assert f1 == pytest.approx(2 * p * q / (p + q), rel=0.03)
    # the best that knows nothing says yes always
    assert 2 * p * q / (p + q) <= 2 * p / (1 + p)
