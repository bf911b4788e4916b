"""G12: dimensions of concepts, and gated pairs that no half-space takes apart."""

from __future__ import annotations

import pytest
import torch

from sae_placebo.core.spec import generator
from sae_placebo.lab.generators.base import GENERATORS
from sae_placebo.lab.generators.heterogeneous import HeterogeneousSpec

N = 20_000
SPEC = HeterogeneousSpec()


def test_concepts_have_their_rate_dimension_and_radius() -> None:
    truth, dense = SPEC.truth, SPEC.draw(N, generator(0, "t")).codes.dense()
    error = 5 * (0.1 * 0.9 / N) ** 0.5
    for index, group in enumerate(SPEC.concepts()):
        points = dense[:, list(group)]
        on = (points != 0).any(1)
        assert float(on.float().mean()) == pytest.approx(0.1, abs=error)
        rows = truth.dictionary[list(group)]
        assert torch.allclose(rows @ rows.t(), torch.eye(len(group)), atol=1e-5)
        assert int(torch.linalg.matrix_rank(points[on])) == len(group)
        radius = points[on].norm(dim=1)
        low, high = (1.0, 1.0) if len(group) > 1 else (0.5, 1.5)
        if index >= len(SPEC.dimensions):
            low, high = SPEC.outer if (index - len(SPEC.dimensions)) % 2 else SPEC.inner
        assert low - 1e-4 < float(radius.min()) <= float(radius.max()) < high + 1e-4
    assert truth.subspaces == tuple(g for g in SPEC.concepts() if len(g) > 1)


def test_gated_concepts_share_a_plane_and_exclude_each_other() -> None:
    truth, dense = SPEC.truth, SPEC.draw(N, generator(0, "t")).codes.dense()
    gated = SPEC.concepts()[len(SPEC.dimensions) :]
    assert len(gated) == 4
    for inner, outer in zip(gated[::2], gated[1::2], strict=True):
        assert torch.equal(truth.dictionary[list(inner)], truth.dictionary[list(outer)])
    assert len(truth.exclusive) == 2 * 4
    for group in truth.exclusive:
        assert int((dense[:, list(group)] != 0).sum(1).max()) == 1


def test_no_half_space_of_the_plane_finds_the_inner_concept() -> None:
    dense = SPEC.draw(N, generator(0, "t")).codes.dense()
    inner, outer = SPEC.concepts()[-2:]
    plane = dense[:, list(inner)] + dense[:, list(outer)]
    label = (dense[:, list(inner)] != 0).any(1)
    best = 0.0
    for angle in torch.linspace(0, 6.28, 25):
        along = plane @ torch.stack([angle.cos(), angle.sin()])
        for cut in torch.linspace(-2.4, 2.4, 33):
            fires = along > cut
            hits = float((fires & label).sum())
            best = max(best, 2 * hits / float(fires.sum() + label.sum()))
    # 1 for the ring that the truth is
    assert best < 0.7
    radius = plane.norm(dim=1)
    assert torch.equal((radius > 0.25) & (radius < 1.5), label)


def test_equal_names_give_equal_tokens() -> None:
    first, again = (SPEC.draw(300, generator(1, "t")) for _ in range(2))
    assert torch.equal(first.x, again.x)
    assert GENERATORS["heterogeneous"] is HeterogeneousSpec
    # lists are what files hold
    assert HeterogeneousSpec.model_validate(SPEC.model_dump(mode="json")) == SPEC


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit in 4"):
        HeterogeneousSpec(d_in=4)
    with pytest.raises(ValueError, match="must ascend"):
        HeterogeneousSpec(inner=(0.5, 2.2))
    with pytest.raises(ValueError, match=r"below 0\.5"):
        HeterogeneousSpec(rate=0.6)
    with pytest.raises(ValueError, match="there is no concept"):
        HeterogeneousSpec(dimensions=(), gated_pairs=0)
