"""Gaussian draws in the place of activations: matched moments, and the same bits for the same row."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.spec import generator
from sae_placebo.data.text import Rows
from sae_placebo.models.activations import blocks, calibrate
from sae_placebo.models.gaussian import GaussianReader, SecondMoments, gaussian_draws

D_IN = 6
NAMES = ("resid_post.0", "resid_post.2")


def _moments(seed: int) -> SecondMoments:
    random = generator(seed, "points")
    mixing = torch.randn(4, D_IN, generator=random)  # confined to four dimensions of six
    points = torch.randn(5_000, 4, generator=random) @ mixing + 10 * torch.arange(D_IN)
    moments = SecondMoments(points[0])
    moments.add(points[:3_000])
    moments.add(points[3_000:])
    return moments


MOMENTS = {name: _moments(i) for i, name in enumerate(NAMES)}


def reader(seed: int = 0, model_seed: int = 0) -> GaussianReader:
    draws = {name: one.sampler() for name, one in MOMENTS.items()}
    return GaussianReader(draws, dict.fromkeys(NAMES, D_IN), seed, model_seed)


def rows(n: int, width: int = 16) -> torch.Tensor:
    return torch.randint(0, 50, (n, width), generator=generator(7, "rows"))


def test_the_interface_is_that_of_a_models_reader() -> None:
    one = reader()
    assert one.names == NAMES
    assert one.widths == dict.fromkeys(NAMES, D_IN)
    found = one.read(rows(3))
    assert tuple(found) == NAMES
    assert {(x.shape, x.dtype) for x in found.values()} == {((3, 16, D_IN), torch.float32)}
    assert not any(x.requires_grad for x in found.values())
    assert one.read(rows(0))[NAMES[0]].shape == (0, 16, D_IN)


def test_the_same_row_gives_the_same_bits_in_any_batch_order_and_call() -> None:
    ids = rows(9)
    whole = reader().read(ids)
    same = reader()
    same.read(ids[4:])  # nothing is kept between calls
    order = torch.tensor([8, 3, 0, 5])
    for name in NAMES:
        assert torch.equal(same.read(ids[order])[name], whole[name][order])
        for i in range(len(ids)):
            assert torch.equal(same.read(ids[i : i + 1])[name][0], whole[name][i])
        # rows that are views of another layout
        assert torch.equal(same.read(ids.T.contiguous().T)[name], whole[name])


def test_rows_hookpoints_and_seeds_draw_independently() -> None:
    ids = rows(2)
    base = reader().read(ids)
    whitened = [base[name].double() for name in NAMES]
    assert not torch.equal(whitened[0][0], whitened[0][1])
    for other in (reader(model_seed=1), reader(seed=1)):
        assert not torch.equal(other.read(ids)[NAMES[0]], base[NAMES[0]])
    # with the same law at two hookpoints, the draws still differ
    draw = MOMENTS[NAMES[0]].sampler()
    twins = GaussianReader({"a": draw, "b": draw}, {"a": D_IN, "b": D_IN}, 0, 0).read(ids)
    assert not torch.equal(twins["a"], twins["b"])
    changed = ids.clone()
    changed[0, 5] += 1
    again = reader().read(changed)[NAMES[0]]
    assert not torch.equal(again[0, :5], base[NAMES[0]][0, :5])
    assert torch.equal(again[1], base[NAMES[0]][1])


@pytest.mark.parametrize("name", NAMES)
def test_draws_have_the_mean_and_covariance_in_model_units(name: str) -> None:
    x = reader().read(rows(2_000))[name].reshape(-1, D_IN).double()
    mean, covariance = MOMENTS[name].mean_and_covariance()
    scale = covariance.diagonal().sqrt()
    assert torch.allclose((x.mean(0) - mean) / scale, torch.zeros(D_IN).double(), atol=0.03)
    correlations = (torch.cov(x.T) - covariance) / torch.outer(scale, scale)
    assert float(correlations.abs().max()) < 0.04
    # Gaussian along any direction: no excess kurtosis
    direction = torch.linalg.eigh(covariance).eigenvectors[:, -1]
    along = (x - mean) @ direction
    kurtosis = float((along**4).mean() / along.var() ** 2 - 3)
    assert abs(kurtosis) < 5 * (24 / len(x)) ** 0.5
    # what was confined to four dimensions stays there
    flat = torch.linalg.eigh(covariance).eigenvectors[:, 0]
    assert float(((x - mean) @ flat).abs().max()) < 1e-3


def test_calibrated_draws_are_the_draws_in_model_units_centered_and_scaled() -> None:
    moments = MOMENTS[NAMES[0]]
    full = Rows(
        rows(64).numpy().astype(np.int32),
        np.full(64, 16, np.int32),
        np.zeros(64, np.int32),
        ("d",),
    )
    block = next(iter(blocks(reader(), full, np.arange(64), 64)))
    calibration = calibrate(block, 10.0)[NAMES[0]]
    raw = moments.sampler()(500, generator(1, "x"))
    scaled = moments.sampler(calibration)(500, generator(1, "x"))
    expected = (raw - calibration.mean) * calibration.factor
    assert torch.allclose(scaled, expected, atol=1e-3)
    assert float(scaled.square().sum(1).mean()) == pytest.approx(D_IN, rel=0.15)


def test_stored_moments_draw_the_same_bits() -> None:
    moments = MOMENTS[NAMES[1]]
    draws = [moments.sampler(), gaussian_draws(*moments.mean_and_covariance())]
    first, second = (draw(100, generator(2, "x")) for draw in draws)
    assert torch.equal(first, second)


def test_moments_of_nothing_are_refused() -> None:
    with pytest.raises(NotEstimable, match="no activation was counted"):
        SecondMoments(torch.zeros(3)).sampler()
