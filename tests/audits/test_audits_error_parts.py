"""The error in parts: each planted part is found under its own name."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from planted_errors import case_of, lengths, named, noise, reading_with, tiny
from planted_readings import token_table
from sae_placebo.audits.base import AUDITS, AuditSpec, Case, Finding
from sae_placebo.audits.error_parts import PARTS, shares, split

D_IN, N_ROWS, WIDTH = 10, 120, 51


def plain(error_of: object = None, seed: int = 0) -> tuple[torch.Tensor, torch.Generator]:
    """Random activations with correlated columns."""
    random = torch.Generator().manual_seed(seed)
    root = torch.randn(D_IN, D_IN, generator=random)
    return torch.randn(N_ROWS * (WIDTH - 1), D_IN, generator=random) @ root, random


def without_model(x: torch.Tensor, error: torch.Tensor, bias: float = 0.0) -> Case:
    """A case of an SAE that errs so, with no model behind it."""
    ids = np.random.default_rng(0).integers(0, 9, (N_ROWS, WIDTH))
    tokens = token_table(ids, N_ROWS // 2, tuple("abcdefghi"))
    return Case(reading_with(tokens, x, error, bias), None, None, {}, AuditSpec(), 0)


def run(case: Case) -> list[Finding]:
    """What the audit finds."""
    return AUDITS["error_parts"].run(case).findings


def test_mere_shrinkage_is_linear_and_nothing_else() -> None:
    x, _ = plain()
    found = run(without_model(x, 0.3 * x))
    assert named(found, "r2_error").value == pytest.approx(1, abs=1e-4)
    assert named(found, "share_shrinkage").value == pytest.approx(1, abs=1e-4)
    after = named(found, "r2_after_scale")
    assert math.isnan(after.value)
    assert after.reason
    assert named(found, "fvu_nl").value == pytest.approx(0, abs=1e-4)
    assert named(found, "fvu").value == pytest.approx(0.09, rel=0.01)


def test_white_noise_is_not_linear() -> None:
    x, random = plain()
    found = run(without_model(x, torch.randn(x.shape, generator=random)))
    after = named(found, "r2_after_scale")
    assert after.value == pytest.approx(after.null, abs=0.02)
    for name in ("r2_error", "r2_size"):
        assert named(found, name).value == pytest.approx(0, abs=0.02)
    # noise is in the reconstruction too, so that a part of it goes with the scale
    noise_share = D_IN / float((x**2).sum(1).mean())
    assert named(found, "share_rest").value == pytest.approx(1, abs=2 * noise_share + 0.02)
    assert named(found, "fvu_nl").value == pytest.approx(named(found, "fvu").value, rel=0.03)


def test_each_part_is_found_under_its_name() -> None:
    x, random = plain()
    offset = torch.zeros(len(x), D_IN) + torch.linspace(-1, 1, D_IN)
    direction = torch.randn(D_IN, generator=random)
    direction /= direction.norm()
    linear = (x @ direction)[:, None] * direction
    sparse = torch.zeros_like(x)
    sparse[torch.rand(len(x), generator=random) < 0.1, 3] = 4.0
    for name, error in (("offset", offset), ("linear", linear), ("other", sparse)):
        case = without_model(x, error)
        tokens = case.reading.tokens
        case.others["other"] = reading_with(tokens, x, x - sparse)
        found = run(case)
        assert named(found, f"share_{name}").value > 0.8, name
        assert sum(named(found, f"share_{part}").value for part in PARTS) == pytest.approx(1)
    # what another SAE knows lies above what a dictionary that learned nothing could have told
    own = named(found, "share_other")
    assert own.low > own.null_high


def test_a_scale_about_the_bias_is_shrinkage() -> None:
    x, _ = plain()
    x = x + 5
    error = 0.25 * (x - 5)
    case = without_model(x, error, bias=5.0)
    found = split(case)
    assert named(shares(case, found), "share_shrinkage").value == pytest.approx(1, abs=1e-4)
    assert np.allclose(found.parts.sum(0), case.error[found.tokens].numpy(), atol=1e-6)


def test_squared_size_of_the_error_is_foretold() -> None:
    x, random = plain()
    size = (x[:, :1] - x[:, 0].min() + 0.1).sqrt()
    free = torch.randn(x.shape, generator=random)
    found = run(without_model(x, size * free / free.norm(dim=1, keepdim=True)))
    one = named(found, "r2_size")
    assert one.value > 0.95
    assert one.null < 0.1


def test_what_parts_cost_adds_up() -> None:
    subject = tiny()
    x = subject.activations
    case = case_of(subject, 0.3 * x + 0.1 * noise(subject))
    found = run(case)
    costs = [named(found, f"cost_{part}").value for part in PARTS if part != "other"]
    assert sum(costs) == pytest.approx(1)
    assert costs[0] > 0.9
    assert named(found, "alone_shrinkage").value == pytest.approx(costs[0])
    assert named(found, "cost_shrinkage").null > 0.8
    assert "no other SAE" in named(found, "cost_other").reason
    assert {one.name for one in found} == {one.name for one in AUDITS["error_parts"].quantities}
    assert float(lengths(subject).mean()) > 0
