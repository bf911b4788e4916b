"""G13: the parts of a token, their shares, and errors of one kind each."""

from __future__ import annotations

import pytest
import torch

from sae_placebo.core.spec import generator
from sae_placebo.lab.generators.base import GENERATORS
from sae_placebo.lab.generators.dark_matter import DarkMatterSpec
from sae_placebo.lab.generators.superposition import SuperpositionSpec

N = 20_000
SPEC = DarkMatterSpec(d_in=32, n_features=48, l0=2.0, decay=0.98, dense=3)


def _linear_share(error: torch.Tensor, x: torch.Tensor) -> float:
    """Return the share of the error's variance that a linear map of x explains, on other tokens."""
    half = len(x) // 2
    x, error = (x - x.mean(0)).double(), (error - error.mean(0)).double()
    fitted = torch.linalg.lstsq(x[:half], error[:half]).solution
    left = error[half:] - x[half:] @ fitted
    return 1 - float(left.square().sum() / error[half:].square().sum())


def test_parts_sum_to_the_draw_and_have_their_shares() -> None:
    parts = SPEC.parts(N, generator(0, "t"))
    drawn = SPEC.draw(N, generator(0, "t"))
    assert torch.equal(parts.draw.x, drawn.x)
    assert torch.allclose(parts.sparse + parts.dense + parts.noise, drawn.x, atol=1e-5)
    energies = [float(part.var(dim=0).sum()) for part in (parts.sparse, parts.dense, parts.noise)]
    assert [e / sum(energies) for e in energies] == pytest.approx(SPEC.shares, abs=0.01)
    assert sum(SPEC.shares) == pytest.approx(1)
    rates = SPEC.truth.rates
    counts = torch.bincount(drawn.codes.latents, minlength=48)
    assert ((counts - N * rates).abs() < 5 * (N * rates).sqrt() + 3).all()


def test_the_dictionary_is_that_of_g1_and_dense_rows_are_orthonormal() -> None:
    plain = SuperpositionSpec(d_in=32, n_features=48, l0=2.0, decay=0.98)
    assert torch.equal(SPEC.truth.dictionary, plain.truth.dictionary)
    rows = SPEC.dense_rows
    assert torch.allclose(rows @ rows.t(), torch.eye(3), atol=1e-5)
    parts = SPEC.parts(200, generator(0, "t"))
    assert torch.allclose(parts.dense @ rows.t() @ rows, parts.dense, atol=1e-5)


def test_errors_are_linear_in_x_by_their_kind() -> None:
    quiet = SPEC.model_copy(update={"dense": 0, "noise": 0.0})
    parts = quiet.parts(N, generator(0, "t"))
    # what shrinkage alone misses is a multiple of x
    assert _linear_share(parts.draw.x - 0.8 * parts.sparse, parts.draw.x) > 0.9999
    shares = []
    for std in (0.05, 0.25, 1.0):
        spec = SPEC.model_copy(update={"dense_std": std, "noise": 0.05})
        parts = spec.parts(N, generator(0, "t"))
        shares.append(_linear_share(parts.draw.x - parts.sparse, parts.draw.x))
    assert shares[0] < shares[1] < shares[2]
    assert shares[0] < 0.3
    assert shares[2] > 0.9


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="lower dense"):
        DarkMatterSpec(d_in=4, dense=5)
    with pytest.raises(ValueError, match="lower l0"):
        DarkMatterSpec(n_features=2, l0=3.0, decay=1.0)
    assert GENERATORS["dark_matter"] is DarkMatterSpec
