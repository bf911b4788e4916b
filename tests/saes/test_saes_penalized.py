"""Penalties, their weight, and what each architecture promises beyond the contracts."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from sae_placebo.core.errors import SpecError
from sae_placebo.saes import Context, SAESpec, parse_sae
from sae_placebo.saes.jumprelu import LEAST_THRESHOLD, MIDDLE
from sae_placebo.saes.kernels import Workspace
from sae_placebo.saes.p_annealed import SOFTENING
from sae_placebo.saes.training import Fit, TrainingSpec

D_IN, D_SAE = 24, 80
KINDS = ("relu", "p_annealed", "jumprelu", "gated", "tied")
TABLES: tuple[dict[str, object], ...] = (
    {"kind": "relu"},
    {"kind": "relu", "scaling": "mean"},
    {"kind": "relu", "scaling": "mean_both"},
    {"kind": "p_annealed"},
    {"kind": "jumprelu"},
    {"kind": "jumprelu", "loss": "tanh"},
    {"kind": "jumprelu", "loss": "quadratic"},
    {"kind": "gated"},
    {"kind": "tied"},
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Steps this small only wait for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def named(table: dict[str, object]) -> str:
    return "-".join(str(value) for value in table.values())


def made(kind: str, **settings: object) -> SAESpec:
    return parse_sae({"kind": kind, "d_sae": D_SAE, "l0": 6.0, **settings})


def moved(spec: SAESpec, shift: float = 0.0) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(3)
    params = {
        name: (tensor + 0.1 * torch.randn(tensor.shape, generator=random)).double()
        for name, tensor in spec.create(D_IN, 3).params.items()
    }
    params["b_enc"] += shift
    return params


def batch(n_tokens: int, seed: int = 5) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(n_tokens, D_IN, generator=random, dtype=torch.float64)


def at(coefficient: float, share: float = 0.5) -> Context:
    return Context(torch.zeros(D_SAE, dtype=torch.bool), share, coefficient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shift", [0.0, -1.8])
@pytest.mark.parametrize("n_tokens", [1, 700])
@pytest.mark.parametrize("table", TABLES, ids=named)
def test_sparse_and_dense_steps_equal_the_plain_one(
    table: dict[str, object], n_tokens: int, shift: float, dtype: torch.dtype
) -> None:
    spec = made(**table)  # type: ignore[arg-type]
    params = {name: tensor.to(dtype) for name, tensor in moved(spec, shift).items()}
    x = batch(n_tokens).to(dtype)
    fast = spec.gradients(params, x, at(0.7), Workspace())
    plain = spec.plain_gradients(params, x, at(0.7))
    allowed = 1e-10 if dtype == torch.float64 else 1e-5
    assert fast.loss.dtype == dtype
    assert float((fast.loss - plain.loss).abs() / plain.loss) < allowed
    assert torch.equal(fast.fired, plain.fired)
    assert int(fast.active) == int(plain.active)
    for name, expected in plain.gradients.items():
        error = (fast.gradients[name] - expected).abs().max()
        assert error <= allowed * expected.abs().max(), name
    for name, value in plain.buffers.items():
        torch.testing.assert_close(fast.buffers[name], value)


@pytest.mark.parametrize("kind", KINDS)
def test_the_strength_is_given_exactly_once(kind: str) -> None:
    with pytest.raises(SpecError, match="neither of l0 and coefficient"):
        parse_sae({"kind": kind, "d_sae": 8})
    with pytest.raises(SpecError, match="both of l0 and coefficient"):
        parse_sae({"kind": kind, "d_sae": 8, "l0": 2.0, "coefficient": 1.0})
    with pytest.raises(SpecError, match="l0 is 5 but d_sae is 8"):
        parse_sae({"kind": kind, "d_sae": 8, "l0": 5.0})


def test_the_quadratic_penalty_needs_its_l0() -> None:
    with pytest.raises(SpecError, match="quadratic"):
        parse_sae({"kind": "jumprelu", "d_sae": 8, "loss": "quadratic", "coefficient": 1.0})
    both = made("jumprelu", loss="quadratic", coefficient=5.0)
    assert both.steer(5.0, 100.0, 0.9) == 5.0


@pytest.mark.parametrize("kind", KINDS)
def test_a_fixed_coefficient_rises_and_stays(kind: str) -> None:
    spec = parse_sae({"kind": kind, "d_sae": 8, "coefficient": 3.0, "warmup_share": 0.1})
    assert spec.first_coefficient() == 0
    assert spec.steer(0.0, 4.0, 0.05) == pytest.approx(1.5)
    assert spec.steer(1.5, 4.0, 0.6) == 3.0
    assert parse_sae(
        {"kind": kind, "d_sae": 8, "coefficient": 3.0, "warmup_share": 0.0}
    ).first_coefficient() == 3.0  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_steering_raises_the_coefficient_where_l0_is_too_high(kind: str) -> None:
    spec = made(kind)
    assert spec.steer(1.0, 8.0, 0.6) > spec.steer(1.0, 6.0, 0.6) > spec.steer(1.0, 5.0, 0.6)
    assert spec.steer(1.0, 6.0, 0.6) == pytest.approx(MIDDLE if kind == "jumprelu" else 1.0)
    assert math.isfinite(spec.steer(1.0, 0.0, 0.6))
    assert spec.steer(1.0, 0.0, 0.6) > 0


@pytest.mark.parametrize("table", TABLES, ids=named)
def test_l0_arrives_at_its_target(table: dict[str, object]) -> None:
    spec = parse_sae({"d_sae": 128, "l0": 8.0, **table})
    x = _sparse_sums(44_000)
    fit = Fit(spec.create(D_IN, 0), TrainingSpec(), 40_000)
    for part in x[:40_000].split(200):
        fit.step(part)
    codes = fit.sae().encode(x[40_000:])
    assert len(codes.values) / 4_000 == pytest.approx(8.0, rel=0.1)


def _sparse_sums(n_tokens: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    truth = torch.nn.functional.normalize(torch.randn(100, D_IN, generator=random), dim=1)
    active = torch.rand(n_tokens, 100, generator=random) < 0.06
    x = (active * (0.5 + torch.rand(n_tokens, 100, generator=random))) @ truth
    x -= x.mean(dim=0)
    return x * math.sqrt(D_IN / float(x.square().sum(dim=1).mean()))


def test_scalings_of_relu_are_one_objective_in_other_units() -> None:
    params, x = moved(made("relu")), batch(50)
    expected = made("relu").evaluate(params, x, at(2.0)).loss
    for scaling, unit in (("sum", 1.0), ("mean", D_IN), ("mean_both", D_IN / D_SAE)):
        spec = made("relu", scaling=scaling, l0=None, coefficient=2.0 / unit)
        torch.testing.assert_close(spec.evaluate(params, x, at(2.0 / unit)).loss, expected)
        steered = made("relu", scaling=scaling)
        torch.testing.assert_close(steered.evaluate(params, x, at(2.0)).loss, expected)


def test_annealing_ends_at_p_end_and_never_jumps() -> None:
    spec = made("p_annealed", p_end=0.3, anneal_from=0.2, anneal_to=0.6)
    params, x = moved(spec), batch(300)
    params |= {name: torch.ones((), dtype=torch.float64) for name in spec.buffers}
    before = None
    for share in (0.0, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8):
        found = spec.evaluate(params, x, at(1.0, share))
        loss = float(found.loss)
        assert before is None or loss == pytest.approx(before, rel=1e-12)
        before, params = loss, {**params, **found.buffers}
        expected = 1 - 0.7 * min(1.0, max(0.0, (share - 0.2) / 0.4))
        assert float(params["exponent"]) == pytest.approx(expected)
    assert float(params["penalty_scale"]) != 1


def test_the_annealed_penalty_is_l1_at_first_and_bounded_at_zero() -> None:
    annealed, relu = made("p_annealed"), made("relu")
    start = {name: tensor.double() for name, tensor in annealed.create(D_IN, 0).params.items()}
    one, other = (spec.plain_gradients(start, batch(90), at(1.5)) for spec in (annealed, relu))
    torch.testing.assert_close(one.loss, other.loss)
    torch.testing.assert_close(one.gradients["W_enc"], other.gradients["W_enc"])
    start["exponent"].fill_(0.2)
    tiny = torch.tensor([1e-30], dtype=torch.float64)
    more = annealed.at_sites(start, torch.tensor([0]), tiny, tiny * 0, at(1.0), 1)
    assert float(more.to_z) == pytest.approx(0.2 * SOFTENING**-0.8 / D_IN)
    with pytest.raises(SpecError, match="anneal_from"):
        made("p_annealed", anneal_from=0.8, anneal_to=0.8)


def test_jumprelu_keeps_codes_whole_and_its_threshold_positive() -> None:
    spec = made("jumprelu")
    sae = spec.create(D_IN, 0)
    x = batch(200).float()
    z = (x @ sae.params["W_enc"]).double()
    codes = sae.encode(x).dense().double()
    torch.testing.assert_close(codes, z * (z > spec.first_threshold(D_IN)), rtol=1e-5, atol=1e-5)
    spec.constrain(sae.params | {"threshold": sae.params["threshold"].sub_(5)})
    assert float(sae.params["threshold"].max()) == pytest.approx(LEAST_THRESHOLD)


@pytest.mark.parametrize(("d_in", "d_sae"), [(64, 512), (256, 1024)])
def test_jumprelu_starts_in_scale_with_twice_its_l0(d_in: int, d_sae: int) -> None:
    """A start that overshoots is unlearned before anything is learned; one far from l0 never arrives."""
    sae = parse_sae({"kind": "jumprelu", "d_sae": d_sae, "l0": 16.0}).create(d_in, 0)
    x = torch.randn(2_000, d_in, generator=torch.Generator().manual_seed(4))
    codes = sae.encode(x)
    assert len(codes.values) / len(x) == pytest.approx(32.0, rel=0.1)
    missed = float((x - sae.decode(codes)).square().mean() / x.square().mean())
    assert missed < 0.9
    for factor in (0.7, 1.4):
        other = float((x - factor * sae.decode(codes)).square().mean() / x.square().mean())
        assert other > missed


@pytest.mark.parametrize("loss", ["l0", "tanh", "quadratic"])
def test_the_threshold_gradient_is_a_finite_difference_over_the_box(loss: str) -> None:
    """With many tokens, a box estimator is the slope of the smoothed expected loss."""
    spec = parse_sae(
        {
            "kind": "jumprelu",
            "d_sae": 1,
            "l0": 0.4,
            "loss": loss,
            "bandwidth": 0.02,
            "tanh_scale": 1.0,
        }
    )
    x = torch.linspace(-3, 3, 60_001, dtype=torch.float64)[:, None]
    params = {
        "W_enc": torch.ones(1, 1).double(), "b_enc": torch.zeros(1).double(),
        "W_dec": torch.ones(1, 1).double(), "b_dec": torch.zeros(1).double(),
        "threshold": torch.ones(1).double(),
    }  # fmt: skip
    context = Context(torch.zeros(1, dtype=torch.bool), 0.5, 0.3)
    found = spec.plain_gradients(params, x, context).gradients["threshold"]
    ends = [
        float(spec.evaluate({**params, "threshold": params["threshold"] + step}, x, context).loss)
        for step in (0.01, -0.01)
    ]
    # a curved penalty has the mean of its slopes at both ends, not that of its chord
    assert float(found) == pytest.approx((ends[0] - ends[1]) / 0.02, rel=0.1)


def test_the_tanh_loss_pulls_silent_latents_up() -> None:
    spec = made("jumprelu", loss="tanh", pre_act_coefficient=0.1)
    params = moved(spec)
    params["b_enc"][0] = -50
    gradients = spec.plain_gradients(params, batch(100), at(1.0)).gradients
    assert float(gradients["b_enc"][0]) == pytest.approx(-0.1 / D_IN)
    assert float(gradients["threshold"][0]) == pytest.approx(0.1 / D_IN)


def test_a_gated_decoder_learns_from_the_reconstruction_alone() -> None:
    spec = made("gated")
    params, x = moved(spec), batch(60)
    found = spec.plain_gradients(params, x, at(2.0)).gradients["W_dec"]
    decoder = params["W_dec"].clone().requires_grad_()
    energy = spec.evaluate({**params, "W_dec": decoder}, x, at(2.0)).squared_error
    (expected,) = torch.autograd.grad(energy / x.numel(), decoder)
    torch.testing.assert_close(found, expected)


def test_a_new_gated_sae_is_a_relu_sae() -> None:
    x = batch(100).float()
    gated, relu = made("gated").create(D_IN, 0), made("relu").create(D_IN, 0)
    relu.params.update({name: gated.params[name] for name in relu.params})
    torch.testing.assert_close(gated.encode(x).dense(), relu.encode(x).dense())
