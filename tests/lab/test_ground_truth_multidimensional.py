"""G11: blocks occur at their rate, lie on their surfaces, and span what the truth says."""

from __future__ import annotations

import pytest
import torch

from sae_placebo.core.spec import generator
from sae_placebo.lab.generators.base import GENERATORS, compose
from sae_placebo.lab.generators.multidimensional import MultidimensionalSpec

N = 20_000
SPEC = MultidimensionalSpec()


def test_blocks_are_active_as_a_whole_at_their_rate() -> None:
    truth, drawn = SPEC.truth, SPEC.draw(N, generator(0, "t"))
    dense = drawn.codes.dense()
    assert truth.n_features == 8 * 2 + 4 * 3 + 4 * 4
    assert len(truth.subspaces) == len(SPEC.shapes) == 16
    l0 = 0.0
    for group in truth.subspaces:
        active = dense[:, list(group)] != 0
        assert float((active.any(1) != active.all(1)).float().mean()) < 1e-3
        rate = float(active.any(1).float().mean())
        assert rate == pytest.approx(2 / 16, abs=5 * (0.125 * 0.875 / N) ** 0.5)
        l0 += rate
    assert l0 == pytest.approx(2, abs=0.06)
    assert torch.allclose(drawn.x, compose(drawn.codes, truth.dictionary), atol=1e-5)
    assert float(drawn.codes.values.min()) < 0


def test_rows_are_orthonormal_within_blocks_and_points_on_their_surface() -> None:
    truth, dense = SPEC.truth, SPEC.draw(N, generator(0, "t")).codes.dense()
    for group, shape in zip(truth.subspaces, SPEC.shapes, strict=True):
        rows = truth.dictionary[list(group)]
        assert torch.allclose(rows @ rows.t(), torch.eye(len(rows)), atol=1e-5)
        points = dense[:, list(group)]
        points = points[(points != 0).any(1)]
        assert torch.allclose(points.norm(dim=1), torch.ones(len(points)), atol=1e-4)
        # all directions alike: second moments are the identity over the dimension
        moments = points.t() @ points / len(points)
        assert torch.allclose(moments, torch.eye(len(group)) / len(group), atol=0.04)
        assert float(points.mean(0).abs().max()) < 0.07
        if shape == "torus":
            half = torch.full((len(points),), 0.5)
            assert torch.allclose(points[:, :2].square().sum(1), half, atol=1e-4)


def test_a_spread_of_radius_leaves_the_surface() -> None:
    spec = MultidimensionalSpec(circles=4, spheres=0, tori=0, l0_blocks=1.0, radius_std=0.1)
    dense = spec.draw(N, generator(0, "t")).codes.dense()
    radius = dense.unflatten(1, (4, 2)).norm(dim=2)
    assert radius[radius > 0].std() == pytest.approx(0.1, abs=0.005)
    assert not spec.truth.is_identifiable


def test_equal_names_give_equal_tokens() -> None:
    first, again = (SPEC.draw(300, generator(1, "t")) for _ in range(2))
    assert torch.equal(first.x, again.x)
    assert GENERATORS["multidimensional"] is MultidimensionalSpec


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no feature"):
        MultidimensionalSpec(circles=0, spheres=0, tori=0)
    with pytest.raises(ValueError, match="lower l0_blocks"):
        MultidimensionalSpec(circles=1, spheres=0, tori=0, l0_blocks=2.0)
    with pytest.raises(ValueError, match="4 dimensions does not fit in 3"):
        MultidimensionalSpec(d_in=3)
