from __future__ import annotations

import numpy as np
import pytest
import torch

from sae_placebo.core.spec import generator
from sae_placebo.data.text import Rows
from sae_placebo.latents.classes.classification import ClassThresholds
from sae_placebo.latents.measurement import HeldOut, MeasurementSpec, gather, held_out, measure
from sae_placebo.latents.metrics import METRICS
from sae_placebo.saes import SAE, parse_sae
from sae_placebo.stats.effects import document_weights

WORDS = [f"w{i}" for i in range(12)]


@pytest.fixture
def rows() -> Rows:
    random = np.random.default_rng(3)
    lengths = random.integers(5, 11, size=24).astype(np.int32)
    token_ids = random.integers(1, 12, size=(24, 10)).astype(np.int32)
    token_ids[np.arange(10) >= lengths[:, None]] = 0
    documents = np.repeat(np.arange(6), 4).astype(np.int32)
    return Rows(token_ids, lengths, documents, tuple("abcdef"))


@pytest.fixture
def tokens(rows: Rows) -> HeldOut:
    n = int(rows.usable().sum())
    first, second = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    first[5], second[[5, 9]] = True, True
    return held_out(rows, [first, second], WORDS)


@pytest.fixture
def sae() -> SAE:
    spec = parse_sae({"kind": "topk", "d_sae": 16, "k": 3})
    return spec.create(8, 0)


def activations(tokens: HeldOut) -> torch.Tensor:
    """Activations that a token's id mostly decides."""
    random = generator(0, "activations")
    of_token = torch.randn(12, 8, generator=random)
    ids = torch.from_numpy(tokens.token_ids.astype(np.int64))
    return of_token[ids] + 0.1 * torch.randn(len(ids), 8, generator=random)


def no_lookup() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([3]), torch.stack([torch.ones(8), torch.zeros(8)])


def test_a_token_that_is_an_outlier_in_any_arm_is_left_out_of_all(
    rows: Rows, tokens: HeldOut
) -> None:
    assert len(tokens.places) == rows.usable().sum() - 2
    read = np.argwhere(rows.usable())
    left = {tuple(place) for place in read} - {tuple(place) for place in tokens.places}
    assert left == {tuple(read[5]), tuple(read[9])}


def test_sums_per_document_equal_the_plain_ones(tokens: HeldOut, sae: SAE) -> None:
    x = activations(tokens)
    found = gather(sae, x, tokens, no_lookup(), None, ClassThresholds())
    error = (x - sae.decode(sae.encode(x))).double().square().sum(1).numpy()
    table = torch.where(torch.from_numpy(tokens.token_ids == 3)[:, None], 1.0, 0.0)
    lookup = (x - table).double().square().sum(1).numpy()
    for document in range(6):
        own = tokens.documents == document
        assert found.squared_error[document] == pytest.approx(error[own].sum())
        assert found.lookup_error[document] == pytest.approx(lookup[own].sum())
        assert np.allclose(found.activation_sum[document], x.numpy()[own].sum(0), atol=1e-4)


def test_a_measurement_is_the_same_twice_and_says_what_is_missing(
    tokens: HeldOut, sae: SAE
) -> None:
    x, weights = activations(tokens), document_weights(6, 20, 0)
    spec = MeasurementSpec(thresholds=ClassThresholds(min_firings=1))
    once, again = (measure(sae, x, tokens, no_lookup(), None, weights, spec) for _ in range(2))
    assert once.measurements.equals(again.measurements)
    assert once.coverage.equals(again.coverage)
    assert (once.codes != again.codes).nnz == 0
    by_metric = once.measurements.set_index("metric")
    missing = by_metric.loc["explained_variance_above_gaussian"]
    assert np.isnan(missing["value"])
    assert "Gaussian" in missing["reason"]
    assert by_metric.loc["l0", "value"] <= 3
    assert set(once.replicates) < set(by_metric.index)
    assert set(by_metric.index) == set(METRICS)
    assert not [name for name in by_metric.index if name.startswith(("share_", "origin_"))]


def test_codes_are_what_the_sae_makes_of_the_tokens(tokens: HeldOut, sae: SAE) -> None:
    x, weights = activations(tokens), document_weights(6, 20, 0)
    found = measure(sae, x, tokens, no_lookup(), None, weights, MeasurementSpec())
    assert found.codes.shape == (len(tokens.places), sae.d_sae)
    np.testing.assert_array_equal(found.codes.toarray(), sae.encode(x).dense().numpy())
