"""G3: rates, pairs and amplitudes as stated, and what else makes the same tokens."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from sae_placebo.core.spec import generator
from sae_placebo.lab import GENERATORS
from sae_placebo.lab.generators.composed_sets import ComposedSetsSpec

N = 40_000


def near(share: float, expected: float) -> bool:
    return abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / N) + 1e-9


@pytest.mark.parametrize("solo", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("boost", [0.0, 0.3])
def test_items_and_pairs_have_their_rates(solo: float, boost: float) -> None:
    spec = ComposedSetsSpec(items=3, solo=solo, boost=boost)
    draw = spec.draw(N, generator(0, "t"))
    active = draw.codes.dense() > 0
    for share, rate in zip(active.double().mean(dim=0), draw.truth.rates, strict=True):
        assert near(float(share), float(rate))
    assert draw.truth.l0 == pytest.approx(2 - solo, abs=1e-5)
    single = active.sum(dim=1) == 1
    assert near(float(single.double().mean()), solo)
    for group in draw.truth.exclusive:
        assert int(active[:, list(group)].sum(dim=1).max()) == 1
    pairs = active[:, :3].double().t() @ active[:, 3:].double() / N
    expected = torch.full((3, 3), (1 - boost) / 9)
    expected[0, 0] += boost
    for share, rate in zip(pairs.flatten(), expected.flatten() * (1 - solo), strict=True):
        assert near(float(share), float(rate))


@pytest.mark.parametrize("f", [0.0, 0.5, 0.9, 1.0])
def test_amplitudes_have_the_stated_correlation(f: float) -> None:
    codes = ComposedSetsSpec(correlation=f).draw(N, generator(0, "t")).codes
    a, b = codes.values.reshape(-1, 2).t()
    expected = f / math.hypot(f, 1 - f)
    assert float(torch.corrcoef(torch.stack([a, b]))[0, 1]) == pytest.approx(expected, abs=0.02)
    assert float(a.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(b.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(b.var()) == pytest.approx(((1 - f) ** 2 + f**2) / 12, rel=0.03)
    assert float(codes.values.min()) > 0
    if f == 1:
        assert torch.equal(a, b)


def test_tokens_are_sums_and_the_frame_is_orthonormal_where_it_fits() -> None:
    draw = ComposedSetsSpec(solo=0.5).draw(500, generator(0, "t"))
    assert draw.x.shape == (500, 8)
    assert torch.allclose(draw.x, draw.codes.dense() @ draw.truth.dictionary, atol=1e-6)
    for width, items in ((8, 4), (20, 4)):
        rows = ComposedSetsSpec(d_in=width, items=items).truth.dictionary
        assert torch.allclose(rows @ rows.t(), torch.eye(8), atol=1e-6)
    for width in (2, 5):
        rows = ComposedSetsSpec(d_in=width).truth.dictionary
        assert torch.allclose(rows.norm(dim=1), torch.ones(8), atol=1e-6)
    polygon = ComposedSetsSpec(d_in=2).truth.dictionary
    cosines = polygon @ polygon.t() - 2 * torch.eye(8)
    assert torch.allclose(cosines.max(dim=1).values, torch.tensor(0.5**0.5), atol=1e-5)
    assert ComposedSetsSpec(items=8).d_in == 16
    assert ComposedSetsSpec().d_in == 8
    assert GENERATORS["composed_sets"] is ComposedSetsSpec


@pytest.mark.parametrize(
    ("settings", "number"),
    [
        ({"amplitude": "constant"}, 2),
        ({"correlation": 1.0}, 2),
        ({"correlation": 1.0, "boost": 0.5}, 2),
        ({"correlation": 1.0, "items": 2}, 3),
        ({"amplitude": "constant", "d_in": 5}, 2),
        ({"correlation": 0.9}, 0),
        ({}, 0),
        ({"amplitude": "constant", "solo": 0.25}, 0),
        ({"correlation": 1.0, "solo": 1.0}, 0),
    ],
)
def test_alternatives_make_the_very_same_tokens(settings: dict[str, object], number: int) -> None:
    spec = ComposedSetsSpec.model_validate(settings)
    truth = spec.truth
    assert truth.is_identifiable == (number == 0)
    assert len(truth.alternatives) == number
    x = spec.held_out(100).x.double().numpy()
    for rows in truth.alternatives.values():
        assert rows.shape == truth.dictionary.shape
        assert torch.allclose(rows.norm(dim=1), torch.ones(len(rows)), atol=1e-6)
        assert float((rows * truth.dictionary).sum(dim=1).min()) < 0.99
        assert max(nnls(rows.double().numpy().T, token)[1] for token in x) < 1e-5


def test_where_the_truth_is_identifiable_a_shift_does_not_make_the_tokens() -> None:
    shared = ComposedSetsSpec(correlation=1.0)
    (rows, _) = shared.truth.alternatives.values()
    x = ComposedSetsSpec(correlation=0.0).held_out(100).x.double().numpy()
    residuals = [nnls(rows.double().numpy().T, token)[1] for token in x]
    assert float(np.mean(residuals)) > 0.05


def test_equal_names_give_equal_tokens() -> None:
    spec = ComposedSetsSpec(solo=0.2)
    first, again = (torch.cat(list(spec.stream(3_000, 512, "a"))) for _ in range(2))
    other = torch.cat(list(spec.stream(3_000, 512, "b")))
    assert first.shape == (3_000, 8)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(spec.held_out(50).x, ComposedSetsSpec(solo=0.2).held_out(50).x)
    assert not torch.equal(
        spec.truth.dictionary, ComposedSetsSpec(solo=0.2, seed=1).truth.dictionary
    )


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        ComposedSetsSpec(items=1)
    with pytest.raises(ValueError, match="valid integer"):
        ComposedSetsSpec.model_validate({"items": "four"})
