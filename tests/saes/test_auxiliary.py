"""AuxK by hand and by compiled loops, against autograd on dense arithmetic."""

from __future__ import annotations

import pytest
import torch

from sae_placebo.core.workers import Workers
from sae_placebo.saes import SAE, BatchTopKSpec, TopKSpec, auxiliary
from sae_placebo.saes.base import Context
from sae_placebo.saes.fast_selection import Aside, Search, select_both
from sae_placebo.saes.kernels import Workspace
from sae_placebo.saes.selection import Selection
from sae_placebo.saes.training import Fit, TrainingSpec

D_IN, D_SAE = 16, 400
NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def start(level: float = 0.0, twins: bool = False) -> dict[str, torch.Tensor]:
    decoder = torch.nn.functional.normalize(draw(D_SAE, D_IN, seed=1), dim=1)
    if twins:  # three latents to every direction: ties at most edges
        decoder[100:200], decoder[200:300] = decoder[:100], decoder[:100]
    bias = torch.full((D_SAE,), level) if twins else level + draw(D_SAE, seed=2) / 10
    return {
        "W_enc": decoder.t().contiguous(),
        "b_enc": bias,
        "W_dec": torch.nn.functional.normalize(draw(D_SAE, D_IN, seed=3), dim=1),
        "b_dec": draw(D_IN, seed=4) / 10,
    }


def dead_but(living: int) -> torch.Tensor:
    order = torch.randperm(D_SAE, generator=torch.Generator().manual_seed(5))
    return torch.ones(D_SAE, dtype=torch.bool).index_fill_(0, order[:living], False)


def by_autograd(
    params: dict[str, torch.Tensor],
    x: torch.Tensor,
    error: torch.Tensor,
    dead: torch.Tensor,
    k: int,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    leaves = {name: tensor.double().requires_grad_() for name, tensor in params.items()}
    z = (x.double() - leaves["b_dec"]) @ leaves["W_enc"] + leaves["b_enc"]
    loss = auxiliary.plain(z, leaves["W_dec"], -error.double(), dead, 0.3, k)
    return loss.detach(), dict(
        zip(NAMES, torch.autograd.grad(loss, [leaves[n] for n in NAMES]), strict=True)
    )


def whole(found: auxiliary.Auxiliary) -> dict[str, torch.Tensor]:
    matrix, vector = torch.zeros(D_SAE, D_IN), torch.zeros(D_SAE)
    return {
        "W_enc": matrix.index_add(0, found.latents, found.to_encoder).t(),
        "b_enc": vector.index_add(0, found.latents, found.to_b_enc),
        "W_dec": matrix.index_add(0, found.latents, found.to_decoder),
        "b_dec": found.to_b_dec,
    }


def compiled(
    params: dict[str, torch.Tensor],
    x: torch.Tensor,
    error: torch.Tensor,
    aside: Aside,
    search: Search | None = None,
) -> auxiliary.Auxiliary:
    rows = params | {"W_enc": params["W_enc"].t().contiguous()}
    inputs, workspace = x - params["b_dec"], Workspace()
    with Workers() as workers:
        _, sites = select_both(inputs, rows, Selection("row", 3), aside, workspace, workers, search)
        return auxiliary.at_sites(rows, inputs, error, sites, 0.3, workspace, workers)


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name in NAMES:
        missed = (found[name] - expected[name]).norm() / expected[name].norm()
        assert missed < 1e-5, name


# few above zero at a level of -2; at -6 only some tokens have one
@pytest.mark.parametrize("level", [0.0, -2.0, -6.0])
@pytest.mark.parametrize("k", [1, 5, 64])
@pytest.mark.parametrize("way", ["dense", "sites"])
def test_many_dead_latents_learn_what_autograd_says(way: str, k: int, level: float) -> None:
    params, dead = start(level), dead_but(60)
    x, error = 2 * draw(333, D_IN, seed=6), draw(333, D_IN, seed=7)
    loss, expected = by_autograd(params, x, error, dead, k)
    if way == "dense":
        found = auxiliary.by_hand(params, x - params["b_dec"], error, dead, 0.3, k)
    else:
        pytest.importorskip("numba")
        found = compiled(params, x, error, Aside(dead, k))
    assert found is not None
    assert float(found.loss) == pytest.approx(float(loss), rel=1e-5)
    assert dead[found.latents].all()
    close(whole(found), expected)


def test_ties_go_to_the_lower_latents_in_both_ways() -> None:
    pytest.importorskip("numba")
    params, dead = start(twins=True), dead_but(60)
    x, error = draw(200, D_IN, seed=6), draw(200, D_IN, seed=7)
    x[:20] = params["b_dec"]  # nothing is above zero
    dense = auxiliary.by_hand(params, x - params["b_dec"], error, dead, 0.3, 7)
    assert dense is not None
    close(whole(compiled(params, x, error, Aside(dead, 7))), whole(dense))


def test_no_dead_latent_above_zero_leaves_nothing_to_learn() -> None:
    pytest.importorskip("numba")
    params, x, error = start(-99.0), draw(200, D_IN), draw(200, D_IN, seed=7)
    found = compiled(params, x, error, Aside(dead_but(60), 7))
    assert float(found.loss) == pytest.approx(0.3, rel=1e-6)
    assert len(found.latents) == 0
    assert not found.to_b_dec.any()


def test_a_search_finds_nearly_all_of_the_dead_too() -> None:
    pytest.importorskip("numba")
    params, dead = start(), dead_but(60)
    x, error = draw(333, D_IN, seed=6), draw(333, D_IN, seed=7)
    _, expected = by_autograd(params, x, error, dead, 9)
    search = Search(params["W_enc"].t().contiguous())
    found = whole(compiled(params, x, error, Aside(dead, 9), search))
    for name in NAMES:
        assert (found[name] - expected[name]).norm() < 0.02 * expected[name].norm(), name


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("living", [30, D_SAE - 6])
@pytest.mark.parametrize("kind", [TopKSpec, BatchTopKSpec])
def test_a_compiled_step_has_the_gradients_of_autograd(
    kind: type[TopKSpec] | type[BatchTopKSpec], living: int, threads: int
) -> None:
    pytest.importorskip("numba")
    spec = kind(d_sae=D_SAE, k=4, k_aux=11)
    sae = SAE(spec, spec.create(D_IN, 0).params | start())
    x, dead = draw(300, D_IN, seed=8), dead_but(living)
    expected = spec.plain_gradients(sae.params, x, Context(dead))
    fit = Fit(sae, TrainingSpec(beta1=0.0, beta2=0.5, dead_after_tokens=50), 3000)
    assert fit.is_compiled
    assert expected.gradients is not None
    gradients = dict(expected.gradients)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        fit._silent_tokens[dead] = 50
        fit.step(x)
    finally:
        torch.set_num_threads(before)
    assert fit.log()[-1]["loss"] == pytest.approx(float(expected.loss), rel=1e-5)
    decoder = sae.params["W_dec"]
    along = (gradients["W_dec"] * decoder).sum(dim=1, keepdim=True)
    gradients["W_dec"] = gradients["W_dec"] - along * decoder
    state = fit.state()
    for name in NAMES:  # without beta1 Adam's mean is the gradient
        mean = state[f"{name}.exp_avg"]
        gradient = gradients[name]
        gradient = gradient if mean.shape == gradient.shape else gradient.t()
        assert (mean - gradient).norm() < 2e-5 * gradient.norm(), name
