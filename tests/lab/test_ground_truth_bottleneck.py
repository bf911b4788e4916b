"""G2: phases of the toy model of superposition, and tokens made of what it keeps."""

from __future__ import annotations

import math

import pytest
import torch

from sae_placebo.core.spec import generator
from sae_placebo.lab import GENERATORS
from sae_placebo.lab.generators.bottleneck import BottleneckSpec, phase


@pytest.mark.parametrize(
    ("sparsity", "geometry", "kept", "dimensions"),
    [
        (0.0, "orthogonal", 2, (0.98, 1.02)),
        (0.7, "antipodal", 4, (0.47, 0.53)),
        (0.9, "antipodal", 4, (0.47, 0.53)),
        (0.99, "polygon", 5, (0.28, 0.36)),
    ],
)
def test_superposition_comes_in_phases_as_features_grow_rare(
    sparsity: float, geometry: str, kept: int, dimensions: tuple[float, float]
) -> None:
    found = phase(BottleneckSpec(n_features=5, d_in=2, sparsity=sparsity))
    assert found.geometry == geometry
    assert found.n_kept == kept
    assert dimensions[0] < found.dimensions_per_feature < dimensions[1]
    overlaps = found.overlaps[found.kept]
    if geometry == "orthogonal":
        assert float(overlaps.max()) < 0.05
        # the two that matter most
        assert found.kept.tolist() == [True, True, False, False, False]
    else:
        assert float(overlaps.min()) > 0.7


def test_tokens_are_what_the_hidden_layer_holds() -> None:
    spec = BottleneckSpec(n_features=5, d_in=2, sparsity=0.7)
    draw = spec.draw(20_000, generator(0, "t"))
    assert draw.truth.n_features == len(spec.kept) == 4
    dense = draw.codes.dense()
    lengths = spec.columns[list(spec.kept)].norm(dim=1)
    u = dense / lengths
    assert torch.allclose(draw.x, u @ spec.columns[list(spec.kept)], atol=1e-5)
    assert float(u.max()) <= 1 + 1e-6
    rates = (dense > 0).double().mean(dim=0)
    error = 5 * math.sqrt(0.3 * 0.7 / 20_000)
    assert rates.tolist() == pytest.approx(draw.truth.rates.tolist(), abs=error)
    assert u[u > 0].mean() == pytest.approx(0.5, abs=0.01)
    assert torch.allclose(draw.truth.dictionary.norm(dim=1), torch.ones(4), atol=1e-6)
    assert GENERATORS["bottleneck"] is BottleneckSpec


def test_models_and_tokens_are_named_by_settings() -> None:
    spec = BottleneckSpec(n_features=4, d_in=2, steps=50)
    first = torch.cat(list(spec.stream(1_000, 100, "a")))
    assert torch.equal(first, torch.cat(list(spec.stream(1_000, 100, "a"))))
    assert not torch.equal(first, torch.cat(list(spec.stream(1_000, 100, "b"))))
    other = spec.model_copy(update={"seed": 1})
    assert not torch.equal(spec.columns, other.columns)
    # training again, not taken from what is kept
    from sae_placebo.lab.generators import bottleneck

    columns = spec.columns
    bottleneck._trained.cache_clear()
    assert torch.equal(columns, spec.columns)
