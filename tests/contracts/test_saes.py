"""What every registered architecture must do."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from sae_placebo.core.errors import SpecError
from sae_placebo.saes import (
    PARAMETERS,
    SAE,
    SAES,
    Codes,
    Context,
    PenalizedSpec,
    SAESpec,
    TopKSpec,
    fast,
    parse_sae,
)
from sae_placebo.saes.formats import saelens
from sae_placebo.saes.kernels import Workspace
from sae_placebo.saes.training import Fit, TrainingSpec

D_IN, D_SAE = 24, 80


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Steps this small only wait for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


KINDS = pytest.mark.parametrize("kind", sorted(SAES))


def small(kind: str, **settings: object) -> SAESpec:
    table: dict[str, object] = {"kind": kind, "d_sae": D_SAE, "k": 6, **settings}
    if issubclass(SAES[kind], PenalizedSpec):
        table["l0"] = float(table.pop("k"))
    return parse_sae(table)


def at(spec: SAESpec, dead: torch.Tensor) -> Context:
    """Half-way through the training, with a penalty where there is one."""
    return Context(dead, 0.5, spec.first_coefficient())


def moved(spec: SAESpec, d_in: int = D_IN, seed: int = 3) -> dict[str, torch.Tensor]:
    """Parameters away from their symmetric start, in double precision."""
    random = torch.Generator().manual_seed(seed)
    return {
        name: (tensor + 0.1 * torch.randn(tensor.shape, generator=random)).double()
        for name, tensor in spec.create(d_in, seed).params.items()
    }


def batch(n_tokens: int, d_in: int = D_IN, seed: int = 5) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(n_tokens, d_in, generator=random, dtype=torch.float64)


def no_dead() -> torch.Tensor:
    return torch.zeros(D_SAE, dtype=torch.bool)


def planted(n_tokens: int, n_true: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sparse sums of unit directions, centered and scaled, and the directions."""
    random = torch.Generator().manual_seed(seed)
    truth = torch.nn.functional.normalize(torch.randn(n_true, D_IN, generator=random), dim=1)
    active = torch.rand(n_tokens, n_true, generator=random) < 3 / n_true
    x = (active * (0.5 + torch.rand(n_tokens, n_true, generator=random))) @ truth
    x -= x.mean(dim=0)
    return x * math.sqrt(D_IN / x.square().sum(dim=1).mean()), truth


def mean_best_cosine(sae: SAE, truth: torch.Tensor) -> float:
    return float((truth @ sae.params["W_dec"].t()).amax(dim=1).mean())


@KINDS
def test_shapes_and_start(kind: str) -> None:
    sae = small(kind).create(D_IN, seed=0)
    assert sae.d_in == D_IN
    assert sae.d_sae == D_SAE
    assert tuple(sae.params) == sae.spec.parameters
    assert sae.spec.parameters[:4] == PARAMETERS
    assert sae.params["W_enc"].shape == (D_IN, D_SAE)
    assert sae.params["W_dec"].shape == (D_SAE, D_IN)
    lengths = sae.params["W_enc"].norm(dim=0)
    torch.testing.assert_close(lengths, lengths[:1].expand(D_SAE))
    assert 0.1 < float(lengths[0]) < 1.0001
    torch.testing.assert_close(sae.params["W_enc"] / lengths, sae.params["W_dec"].t())
    assert not sae.params["b_enc"].any()
    assert not sae.params["b_dec"].any()
    torch.testing.assert_close(sae.params["W_dec"].norm(dim=1), torch.ones(D_SAE))


@pytest.mark.parametrize("k", [2, 8, 40])
def test_the_first_scale_explains_isotropic_activations_best(k: int) -> None:
    sae = parse_sae({"kind": "topk", "d_sae": 400, "k": k}).create(50, seed=0)
    x = torch.randn(2000, 50, generator=torch.Generator().manual_seed(1))
    explained = {}
    for factor in (0.7, 1.0, 1.4):
        params = {**sae.params, "W_enc": sae.params["W_enc"] * factor}
        other = SAE(sae.spec, params)
        error = x - other.decode(other.encode(x))
        explained[factor] = 1 - float(error.square().sum() / x.square().sum())
    assert max(explained, key=explained.__getitem__) == 1.0
    assert explained[1.0] > 0


@KINDS
def test_initial_bits_depend_on_the_seed_alone(kind: str) -> None:
    torch.manual_seed(1)
    first = small(kind).create(D_IN, seed=7)
    torch.manual_seed(2)
    same = small(kind).create(D_IN, seed=7)
    sparser = small(kind, k=3).create(D_IN, seed=7)
    other = small(kind).create(D_IN, seed=8)
    assert all(torch.equal(first.params[name], same.params[name]) for name in PARAMETERS)
    assert torch.equal(first.params["W_dec"], sparser.params["W_dec"])
    assert (first.params["W_dec"] - other.params["W_dec"]).abs().max() > 0.1


@KINDS
@pytest.mark.parametrize("n_tokens", [0, 1, 1200])
def test_codes_are_sparse_and_positive(kind: str, n_tokens: int) -> None:
    sae = small(kind).create(D_IN, seed=0)
    x = batch(n_tokens).float()
    codes = sae.encode(x)
    assert codes.n_tokens == n_tokens
    counts = codes.offsets.diff()
    assert len(codes.values) == int(counts.sum())
    if isinstance(sae.spec, TopKSpec):
        assert (counts <= 6).all()
    assert (codes.values > 0).all()
    assert sae.decode(codes).shape == (n_tokens, D_IN)
    dense = codes.dense()
    assert int((dense > 0).sum()) == len(codes.values)
    expected = dense @ sae.params["W_dec"] + sae.params["b_dec"]
    torch.testing.assert_close(sae.decode(codes), expected, rtol=1e-5, atol=1e-5)


@KINDS
def test_codes_do_not_depend_on_the_split(kind: str) -> None:
    sae = small(kind).create(D_IN, seed=0)
    x = batch(900).float()
    parts = Codes.concatenate([sae.encode(part) for part in x.split(250)])
    whole = sae.encode(x)
    assert torch.equal(parts.offsets, whole.offsets)
    torch.testing.assert_close(parts.dense(), whole.dense(), rtol=1e-5, atol=1e-6)


@KINDS
@pytest.mark.parametrize("n_dead", [0, 1, 5, 40])
@pytest.mark.parametrize("n_tokens", [1, 700])
def test_fast_gradients_equal_plain_ones(kind: str, n_tokens: int, n_dead: int) -> None:
    spec = small(kind)
    params, x = moved(spec), batch(n_tokens)
    dead = no_dead()
    dead[torch.randperm(D_SAE, generator=torch.Generator().manual_seed(1))[:n_dead]] = True
    fast = spec.gradients(params, x, at(spec, dead), Workspace())
    plain = spec.plain_gradients(params, x, at(spec, dead))
    assert torch.equal(fast.fired, plain.fired)
    torch.testing.assert_close(fast.loss, plain.loss, rtol=1e-10, atol=0)
    assert set(fast.gradients) == set(spec.parameters) - spec.buffers
    for name in fast.gradients:
        expected = plain.gradients[name]
        error = (fast.gradients[name] - expected).abs().max() / expected.abs().max()
        assert error < 1e-10, name
    assert set(fast.buffers) == set(plain.buffers) == spec.buffers
    for name, value in plain.buffers.items():
        torch.testing.assert_close(fast.buffers[name], value, rtol=1e-6, atol=0)


@KINDS
@pytest.mark.parametrize("way", ["compiled", "sparse"])
def test_fast_steps_equal_plain_ones_in_float32(
    kind: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = small(kind)
    training = TrainingSpec(learning_rate=1e-3, dead_after_tokens=300)
    start = spec.create(D_IN, seed=0)
    # without AuxK a latent is silent only where it is far from firing
    start.params["b_enc"][:30] = -8.0 if isinstance(spec, PenalizedSpec) else -1.7

    def trained() -> tuple[Fit, list[float | None]]:
        fit = Fit(start, training, 1000)
        for part in batch(1000).float().split(200):
            fit.step(part)
        return fit, [row["dead_share"] for row in fit.log()]

    monkeypatch.setenv(fast.SWITCH, "1" if way == "compiled" else "0")
    quick, quick_dead = trained()
    monkeypatch.setenv(fast.SWITCH, "0")
    monkeypatch.setattr(type(spec), "gradients", SAESpec.gradients)
    plain, plain_dead = trained()
    assert quick_dead == plain_dead
    assert max(quick_dead) > 0.1
    for name in spec.parameters:
        expected = plain.sae().params[name]
        error = (quick.sae().params[name] - expected).norm() / expected.norm()
        assert error < 1e-5, name


@KINDS
def test_fast_equals_plain_on_zeros_and_ties(kind: str) -> None:
    spec = small(kind)
    zeros = torch.zeros(9, D_IN, dtype=torch.float64)
    start = {name: tensor.double() for name, tensor in spec.create(D_IN, 0).params.items()}
    dead = no_dead()
    dead[:9] = True
    found = spec.gradients(start, zeros, at(spec, dead), Workspace())
    assert float(found.loss) == 0
    assert not found.fired.any()
    assert not any(tensor.any() for tensor in found.gradients.values())

    tied = moved(spec)
    for name in ("W_enc", "W_dec"):
        side = tied[name].t() if name == "W_enc" else tied[name]
        side[20:40] = side[:20]
    tied["b_enc"][20:40] = tied["b_enc"][:20]
    fast = spec.gradients(tied, batch(300), at(spec, dead), Workspace())
    plain = spec.plain_gradients(tied, batch(300), at(spec, dead))
    for name in plain.gradients:
        torch.testing.assert_close(fast.gradients[name], plain.gradients[name])


@KINDS
def test_gradients_reach_every_parameter(kind: str) -> None:
    spec = small(kind)
    found = spec.gradients(moved(spec), batch(800), at(spec, no_dead()), Workspace())
    assert found.fired.all()
    for name in set(spec.parameters) - spec.buffers:
        gradient = found.gradients[name]
        side = gradient.t() if name == "W_enc" else gradient
        assert (side.abs() > 0).all(), name


# a threshold's gradient is that of a box that stands for a step; a gated SAE's auxiliary term takes the
# decoder as a constant
NO_DERIVATIVES = {"jumprelu": frozenset({"threshold"}), "gated": frozenset({"W_dec", "b_dec"})}


@KINDS
def test_gradients_are_derivatives(kind: str) -> None:
    spec = small(kind, d_sae=12, k=3)
    params = moved(spec, d_in=5)
    x, dead = batch(4, d_in=5), torch.zeros(12, dtype=torch.bool)
    found = spec.gradients(params, x, at(spec, dead), Workspace())
    estimated = NO_DERIVATIVES.get(kind, frozenset()) | spec.buffers
    for name in set(spec.parameters) - estimated:
        for place in ((0,) * params[name].ndim, (-1,) * params[name].ndim):
            ends = []
            for step in (1e-6, -1e-6):
                nudged = {key: tensor.clone() for key, tensor in params.items()}
                nudged[name][place] += step
                ends.append(float(spec.evaluate(nudged, x, at(spec, dead)).loss))
            slope = (ends[0] - ends[1]) / 2e-6
            assert slope == pytest.approx(float(found.gradients[name][place]), abs=1e-7)


@KINDS
def test_saved_sae_is_bit_identical(kind: str, tmp_path: object) -> None:
    fit = Fit(small(kind).create(D_IN, seed=0), TrainingSpec(), 400)
    fit.step(batch(400).float())
    sae = fit.sae()
    saelens.write(sae, tmp_path / "sae", {})
    again = saelens.read(tmp_path / "sae")
    assert again.spec == sae.spec
    assert tuple(again.params) == tuple(sae.params)
    assert all(torch.equal(again.params[name], sae.params[name]) for name in sae.params)


@KINDS
def test_folded_sae_reads_model_units(kind: str) -> None:
    fit = Fit(small(kind).create(D_IN, seed=0), TrainingSpec(learning_rate=0.01), 1000)
    for part in batch(1000).float().split(100):
        fit.step(part)
    sae = fit.sae()
    factor, mean = 0.37, batch(1, seed=9).float()[0] * 4
    scaled = batch(300, seed=11).float()
    x = scaled / factor + mean
    folded = sae.fold(mean, factor)
    codes, reference = folded.encode(x), sae.encode(scaled)
    torch.testing.assert_close(codes.dense() * factor, reference.dense(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        folded.decode(codes), sae.decode(reference) / factor + mean, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(folded.params["W_dec"].norm(dim=1), torch.ones(D_SAE))
    with pytest.raises(SpecError, match="above zero"):
        sae.fold(mean, 0.0)


# what is planted has 3 active of 40; inner prefixes must hold all 40, or they learn sums of them
RECOVERY: dict[str, tuple[dict[str, object], float]] = {
    "batchtopk": ({"k": 3}, 0.94),
    "matryoshka": ({"k": 3, "prefixes": [0.5, 1.0]}, 0.91),
    # a penalty on sums of codes shrinks them, and merges directions where few may be active
    "relu": ({"k": 6}, 0.94),
    # 40 directions in 24 dimensions overlap, and a tied encoder cannot turn away from the others
    "tied": ({"k": 6}, 0.85),
    "p_annealed": ({"k": 6}, 0.9),
    "gated": ({"k": 3}, 0.94),
    "jumprelu": ({"k": 3}, 0.94),
}


@KINDS
def test_recovers_a_planted_dictionary(kind: str) -> None:
    x, truth = planted(40_000, n_true=40, seed=1234)
    settings, least = RECOVERY.get(kind, ({"k": 4}, 0.97))
    start = small(kind, **settings).create(D_IN, seed=0)
    fit = Fit(start, TrainingSpec(learning_rate=1e-2), len(x))
    for part in x.split(100):
        fit.step(part)
    before, after = mean_best_cosine(start, truth), mean_best_cosine(fit.sae(), truth)
    assert before < 0.6
    assert after > least


@KINDS
def test_wrong_tables_are_refused_with_the_nearest_name(kind: str) -> None:
    with pytest.raises(SpecError, match="Did you mean 'd_sae'"):
        parse_sae({"kind": kind, "d_sea": 8})
    with pytest.raises(SpecError, match=r"sae\.d_sae"):
        parse_sae({"kind": kind, "d_sae": "many"})
    with pytest.raises(SpecError, match=r"sae\.d_sae"):
        parse_sae({"kind": kind})


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(SpecError, match="Did you mean 'topk'"):
        parse_sae({"kind": "topkk", "d_sae": 8})
    with pytest.raises(SpecError, match="needs a `kind`"):
        parse_sae({"d_sae": 8})


def test_k_above_d_sae_is_refused_with_both_numbers() -> None:
    with pytest.raises(SpecError, match=r"k is 64 but d_sae is 32"):
        parse_sae({"kind": "topk", "d_sae": 32, "k": 64})


# --- BatchTopK and Matryoshka ----------------------------------------------------------------------

BATCH = pytest.mark.parametrize("kind", ["batchtopk", "matryoshka"])


@BATCH
def test_k_may_be_a_fraction_and_the_threshold_keeps_it_in_use(kind: str) -> None:
    x, _ = planted(20_000, n_true=40, seed=7)
    fit = Fit(small(kind, k=2.5).create(D_IN, 0), TrainingSpec(learning_rate=1e-2), 15_000)
    for part in x[:15_000].split(100):
        fit.step(part)
    assert all(row["l0"] == pytest.approx(2.5) for row in fit.log())
    sae = fit.sae()
    codes = sae.encode(x[15_000:])
    assert len(codes.values) / 5000 == pytest.approx(2.5, rel=0.05)
    assert float(codes.values.min()) > float(sae.params["threshold"]) > 0
    counts = codes.offsets.diff()
    assert counts.min() < 2 < 3 < counts.max()
    # what a token's codes are does not depend on its neighbors
    alone = sae.encode(x[15_003:15_004])
    torch.testing.assert_close(alone.dense(), codes.dense()[3:4], rtol=1e-5, atol=1e-6)


@BATCH
def test_the_threshold_is_a_running_mean_of_the_least_positive_code(kind: str) -> None:
    spec = small(kind, threshold_rate=0.25)
    params, context = spec.create(D_IN, 0).params, Context(no_dead())
    expected = 0.0
    for part in batch(600).float().split(200):
        z = (part - params["b_dec"]) @ params["W_enc"] + params["b_enc"]
        least = float(z.flatten().sort(descending=True).values[6 * 200 - 1])
        expected = least if expected == 0 else 0.75 * expected + 0.25 * least
        params = params | dict(spec.gradients(params, part, context, Workspace()).buffers)
        assert float(params["threshold"]) == pytest.approx(expected, rel=1e-5)
    # a batch without positive codes leaves it alone
    still = spec.gradients(params, torch.zeros(5, D_IN), context, Workspace())
    assert torch.equal(still.buffers["threshold"], params["threshold"])


@BATCH
def test_a_wrong_guess_changes_no_result(kind: str) -> None:
    spec = small(kind)
    x, context = batch(300), Context(no_dead())
    found = []
    for threshold in (0.0, 0.5, 1e6):
        params = moved(spec) | {"threshold": torch.tensor(threshold, dtype=torch.float64)}
        found.append(spec.gradients(params, x, context, Workspace()))
    for name in PARAMETERS:
        assert torch.equal(found[0].gradients[name], found[1].gradients[name])
        assert torch.equal(found[0].gradients[name], found[2].gradients[name])


def test_one_prefix_is_batchtopk_and_a_latent_learns_from_the_prefixes_that_hold_it() -> None:
    whole = small("matryoshka", prefixes=[1.0])
    params, x, context = moved(whole), batch(300), Context(no_dead())
    plain = small("batchtopk").gradients(params, x, context, Workspace())
    nested = whole.gradients(params, x, context, Workspace())
    for name in PARAMETERS:
        torch.testing.assert_close(nested.gradients[name], plain.gradients[name])
    # with no weight on the inner prefix, its latents learn from the whole alone, as all others do
    outer = small("matryoshka", prefixes=[0.5, 1.0], weights=[0.0, 1.0])
    torch.testing.assert_close(
        outer.gradients(params, x, context, Workspace()).gradients["W_dec"],
        plain.gradients["W_dec"],
    )
    inner = small("matryoshka", prefixes=[0.5, 1.0]).gradients(params, x, context, Workspace())
    late = inner.gradients["W_dec"][40:]
    torch.testing.assert_close(late, plain.gradients["W_dec"][40:])
    assert (inner.gradients["W_dec"][:40] - plain.gradients["W_dec"][:40]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prefixes": [0.5, 0.25, 1.0]}, "each must have more than the one before"),
        ({"prefixes": [0.001, 0.002, 1.0]}, r"have \[1, 1, 80\] latents"),
        ({"prefixes": [0.5]}, "the last is 1"),
        ({"prefixes": []}, "the last is 1"),
        ({"prefixes": [0.0, 1.0]}, "above 0"),
        ({"weights": [1.0]}, "1.0] for 5 prefixes"),
        ({"k": 81}, "k is 81 but d_sae is 80"),
        ({"k": 0}, "greater than 0"),
    ],
)
def test_wrong_prefixes_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        small("matryoshka", **settings)
