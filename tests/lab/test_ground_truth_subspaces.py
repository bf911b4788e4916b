"""Features of several dimensions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from planted_truths import drawn, relu_sae, rescaled
from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.core.spec import generator
from sae_placebo.lab import GeneratorTruth, Sample
from sae_placebo.lab.scores.composition import composition
from sae_placebo.lab.scores.subspaces import subspace_recovery

N_ATOMS = 8


def circle(n_tokens: int = 6_000) -> Sample:
    """Return tokens on a circle, a third of the time, and a line in some 30 dimensions."""
    random = generator(0, "circle")
    basis, _ = torch.linalg.qr(torch.randn(30, 30, generator=random))
    angle = torch.rand(n_tokens, generator=random) * 2 * math.pi
    on = (torch.rand(n_tokens, 2, generator=random) < 0.33).float()
    dense = torch.stack([angle.cos() * on[:, 0], angle.sin() * on[:, 0], on[:, 1]], dim=1)
    truth = GeneratorTruth(basis.t()[:3].contiguous(), torch.full((3,), 0.33), subspaces=((0, 1),))
    return drawn(dense, truth)


def cut(truth: GeneratorTruth) -> torch.Tensor:
    angle = torch.arange(N_ATOMS) * 2 * math.pi / N_ATOMS
    points = torch.stack([angle.cos(), angle.sin()], dim=1) @ truth.dictionary[:2]
    return torch.cat([points, truth.dictionary[2:]])


def test_a_circle_cut_into_eight_atoms() -> None:
    draw = circle()
    sae = relu_sae(cut(draw.truth), bias=-0.8)
    codes = sae.encode(draw.x)
    for found in (
        subspace_recovery(sae.params["W_dec"], draw.truth),
        subspace_recovery(sae.params["W_dec"], draw.truth, codes),
        subspace_recovery(rescaled(sae).params["W_dec"], draw.truth),
    ):
        assert found.dimensions.tolist() == [2]
        assert found.atoms.tolist() == [N_ATOMS]
        assert found.atoms_per_feature == N_ATOMS
        assert found.similarity == pytest.approx([1.0])
        assert found.largest_angle == pytest.approx([0.0], abs=0.05)
        assert found.serves.tolist() == [0] * N_ATOMS + [-1]
        assert found.null[0] < 0.5
        assert found.null_sd[0] > 0
    # by cosine to one of two axes most atoms are combinations; as one feature none is
    parts = composition(sae, draw)
    assert parts.order == pytest.approx(np.ones(N_ATOMS + 1))
    assert parts.decoder_atomic == 1.0


def test_one_atom_spans_half_of_a_plane() -> None:
    truth = circle(10).truth
    found = subspace_recovery(cut(truth)[[1, N_ATOMS]], truth)
    assert found.atoms.tolist() == [1]
    assert found.similarity == pytest.approx([0.5])
    assert found.largest_angle == pytest.approx([90.0])


def test_atoms_that_lean_out_of_the_plane() -> None:
    truth = circle(10).truth
    outside = torch.linalg.svd(truth.dictionary, full_matrices=True).Vh[5]
    tilt = math.radians(20)
    rows = math.cos(tilt) * truth.dictionary[:2].clone()
    rows[0] += math.sin(tilt) * outside
    rows[1] = truth.dictionary[1]
    found = subspace_recovery(rows, truth)
    assert found.largest_angle == pytest.approx([20.0], abs=0.1)
    assert found.similarity == pytest.approx([(1 + math.cos(tilt) ** 2) / 2], abs=1e-4)


def test_latents_that_never_fire_serve_nothing() -> None:
    draw = circle()
    rows = cut(draw.truth)
    bias = torch.full((len(rows),), -0.8)
    bias[:4] = -9.0
    sae = relu_sae(rows, bias=bias)
    found = subspace_recovery(rows, draw.truth, sae.encode(draw.x))
    assert found.atoms.tolist() == [4]
    none = subspace_recovery(rows[N_ATOMS:], draw.truth)
    assert none.atoms.tolist() == [0]
    assert np.isnan([none.similarity[0], none.null[0], none.atoms_per_feature]).all()
    assert none.mean_similarity == 0.0


def test_random_rows_reach_the_null() -> None:
    truth = GeneratorTruth(torch.eye(4, 6), torch.full((4,), 0.1), subspaces=((0, 1), (2, 3)))
    random = generator(0, "test")
    found = subspace_recovery(torch.randn(40, 6, generator=random), truth, draws=60)
    assert (found.atoms > 2).all()
    assert np.abs(found.similarity - found.null).max() < 5 * found.null_sd.max() + 0.02


def test_what_has_no_subspace_is_refused() -> None:
    with pytest.raises(NotEstimable, match="one dimension"):
        subspace_recovery(torch.eye(3), GeneratorTruth(torch.eye(3), torch.ones(3)))
    with pytest.raises(SpecError, match="no spread"):
        subspace_recovery(torch.eye(30), circle(10).truth, draws=1)
