"""The tie: kept to the last bit, with the gradient of one matrix."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sae_placebo.saes import SAE, Context, ReLUSpec, TiedSpec
from sae_placebo.saes.formats import saelens
from sae_placebo.saes.kernels import Workspace
from sae_placebo.saes.training import Fit, TrainingSpec

D_IN, D_SAE = 12, 40


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def batch(n_tokens: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(n_tokens, D_IN, generator=torch.Generator().manual_seed(seed))


def is_tied(sae: SAE) -> bool:
    return torch.equal(sae.params["W_enc"], sae.params["W_dec"].t())


def context() -> Context:
    return Context(torch.zeros(D_SAE, dtype=torch.bool), 0.5, 0.4)


def trained(frozen: frozenset[str] = frozenset(), cosine: float | None = None) -> tuple[SAE, SAE]:
    start = TiedSpec(d_sae=D_SAE, coefficient=0.4).create(D_IN, 0)
    fit = Fit(start, TrainingSpec(learning_rate=1e-2), 4000, frozen, cosine)
    for part in torch.split(batch(4000), 200):
        fit.step(part)
    return start, fit.sae()


@pytest.mark.parametrize("bias", [0.0, -2.5])
def test_the_gradient_is_that_of_one_matrix_by_autograd(bias: float) -> None:
    """A dense and a sparse batch, against an objective with a single leaf."""
    spec = TiedSpec(d_sae=D_SAE, coefficient=0.4)
    params = {name: tensor.double() for name, tensor in spec.create(D_IN, 1).params.items()}
    params["b_enc"] += bias
    x = batch(300).double()
    one = params["W_dec"].clone().requires_grad_()
    codes = ((x - params["b_dec"]) @ one.t() + params["b_enc"]).relu()
    loss = ((codes @ one + params["b_dec"] - x).square().sum() + 0.4 * codes.sum()) / x.numel()
    (expected,) = torch.autograd.grad(loss, one)
    found = spec.gradients(params, x, context(), Workspace())
    torch.testing.assert_close(found.loss, loss.detach())
    assert found.gradients is not None
    both = found.gradients["W_dec"] + found.gradients["W_enc"].t()
    torch.testing.assert_close(both, expected)
    # the decoder alone would be another gradient
    untied = ReLUSpec(d_sae=D_SAE, coefficient=0.4).gradients(params, x, context(), Workspace())
    assert untied.gradients is not None
    assert (untied.gradients["W_dec"] - expected).abs().max() > 0.1 * expected.abs().max()


@pytest.mark.parametrize("cosine", [None, 0.9])
def test_the_tie_is_kept_to_the_last_bit(cosine: float | None, tmp_path: Path) -> None:
    start, sae = trained(cosine=cosine)
    assert is_tied(start)
    assert is_tied(sae)
    assert (sae.params["W_dec"] - start.params["W_dec"]).abs().max() > 0.05
    torch.testing.assert_close(sae.params["W_dec"].norm(dim=1), torch.ones(D_SAE))
    folded = sae.fold(batch(1)[0], 0.3)
    assert is_tied(folded)
    saelens.write(folded, tmp_path, {})
    again = saelens.read(tmp_path)
    assert isinstance(again.spec, TiedSpec)
    assert is_tied(again)
    assert torch.equal(again.encode(batch(50)).dense(), folded.encode(batch(50)).dense())


def test_a_frozen_decoder_holds_the_encoder_too() -> None:
    start, sae = trained(frozenset({"W_dec"}))
    assert torch.equal(start.params["W_dec"], sae.params["W_dec"])
    assert is_tied(sae)
    assert not torch.equal(start.params["b_enc"], sae.params["b_enc"])


def test_a_run_that_stopped_goes_on_to_the_same_bits() -> None:
    spec, parts = TiedSpec(d_sae=D_SAE, l0=4.0), torch.split(batch(3000), 200)
    whole = Fit(spec.create(D_IN, 0), TrainingSpec(), 3000)
    for part in parts:
        whole.step(part)
    first = Fit(spec.create(D_IN, 0), TrainingSpec(), 3000)
    for part in parts[:7]:
        first.step(part)
    second = Fit(spec.create(D_IN, 9), TrainingSpec(), 3000)
    second.restore(first.state())
    for part in parts[7:]:
        second.step(part)
    for name, tensor in whole.sae().params.items():
        assert torch.equal(tensor, second.sae().params[name])


def test_one_feature_is_shrunk_by_half_of_the_coefficient() -> None:
    """x = a d with a constant: the code of the optimum is a - coefficient / 2."""
    direction = torch.zeros(D_IN)
    direction[0] = 2.0
    start = TiedSpec(d_sae=1, coefficient=1.0, warmup_share=0.0).create(D_IN, 0)
    start.params["W_dec"][0] = torch.nn.functional.normalize(direction + 0.5, dim=0)
    fit = Fit(start, TrainingSpec(learning_rate=1e-2), 64_000, frozenset({"b_dec"}))
    for _ in range(1000):
        fit.step(direction.expand(64, -1))
    sae = fit.sae()
    assert float(sae.params["W_dec"][0, 0]) == pytest.approx(1.0, abs=1e-3)
    assert float(sae.encode(direction[None]).values[0]) == pytest.approx(1.5, abs=0.01)
