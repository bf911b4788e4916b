"""Every dictionary control on every architecture: what it declares is what training does."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from sae_placebo.controls.dictionary import (
    DICTIONARY_CONTROLS,
    DICTIONARY_INVARIANTS,
    PCA,
    DictionaryControl,
    FrozenDecoder,
    SoftFrozen,
    StreamMoments,
    Untrained,
    parse_dictionary,
)
from sae_placebo.controls.dictionary.base import at_target_l0
from sae_placebo.core.errors import ModelError, NotEstimable, SpecError
from sae_placebo.saes import PARAMETERS, SAE, SAES, SAESpec, parse_sae
from sae_placebo.saes.training import Fit, TrainingSpec

D_IN, D_SAE, K = 24, 80, 4
N_TRAIN = 20_000

SETTINGS: list[dict[str, Any]] = [
    {"kind": "frozen_decoder"},
    {"kind": "frozen_decoder", "init": "cov"},
    {"kind": "frozen_encoder"},
    {"kind": "frozen_encoder", "init": "cov"},
    {"kind": "frozen_encoder", "init": "cov", "scaled": False},
    {"kind": "soft_frozen"},
    {"kind": "soft_frozen", "init": "cov", "cosine": 0.9},
    {"kind": "untrained"},
    {"kind": "pca"},
    {"kind": "retrained"},
]


def _name(table: dict[str, Any]) -> str:
    return "-".join(map(str, table.values()))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=sorted(kind for kind in SAES if not SAES[kind].ties_encoder))
def spec(request: pytest.FixtureRequest) -> SAESpec:
    """Every SAE whose encoder and decoder can part; for the others, see `test_a_tied_sae_...`."""
    return recipe(request.param)


@pytest.fixture(params=SETTINGS, ids=_name, scope="module")
def control(request: pytest.FixtureRequest) -> DictionaryControl:
    return parse_dictionary(request.param)


def recipe(kind: str = "topk", d_sae: int = D_SAE, k: int = K) -> SAESpec:
    sparsity = "k" if "k" in SAES[kind].model_fields else "l0"
    return parse_sae({"kind": kind, "d_sae": d_sae, sparsity: k})


@functools.cache
def activations() -> torch.Tensor:
    """Sparse sums of 40 planted directions, some of them much stronger than others, and noise."""
    random = torch.Generator().manual_seed(11)
    truth = torch.nn.functional.normalize(torch.randn(40, D_IN, generator=random), dim=1)
    truth *= torch.linspace(0.3, 2.0, 40)[:, None]
    active = torch.rand(N_TRAIN + 4000, 40, generator=random) < 3 / 40
    x = (active * (0.5 + torch.rand(active.shape, generator=random))) @ truth
    x += 0.05 * torch.randn(x.shape, generator=random)
    # not quite centered, as a sample's mean is not quite the stream's
    return (x - x.mean(0)) * math.sqrt(D_IN / x.var(dim=0).sum()) + 0.05


@functools.cache
def moments() -> StreamMoments:
    x = activations()[:N_TRAIN].double()
    return StreamMoments(x.mean(0).float(), torch.cov(x.T, correction=0).float())


def start(control: DictionaryControl, spec: SAESpec, seed: int = 0) -> SAE:
    given = moments() if control.needs_moments else None
    return control.start(spec.create(D_IN, seed), given, 0, seed)


def trained(sae: SAE, control: DictionaryControl | None = None, n: int = N_TRAIN) -> Fit:
    held = (control.frozen, control.decoder_cosine) if control else (frozenset(), None)
    fit = Fit(sae, TrainingSpec(learning_rate=1e-2, dead_after_tokens=3000), n, *held)
    for part in activations()[:n].split(100):
        fit.step(part)
    return fit


@functools.cache
def reached(kind: str) -> float:
    """Held-out variance that the SAE trained as usual explains."""
    return explained(trained(recipe(kind).create(D_IN, 0)).sae())


def explained(sae: SAE) -> float:
    x = activations()[N_TRAIN:]
    missed = (x - sae.decode(sae.encode(x))).square().sum()
    return float(1 - missed / (x - x.mean(0)).square().sum())


def cosines(a: SAE, b: SAE) -> torch.Tensor:
    return (a.params["W_dec"].double() * b.params["W_dec"].double()).sum(dim=1)


def test_every_control_is_tested() -> None:
    assert {table["kind"] for table in SETTINGS} == set(DICTIONARY_CONTROLS)
    assert all(
        cls.__doc__ and "Source:" in cls.__doc__ for cls in DICTIONARY_CONTROLS.entries.values()
    )


def test_declarations_cover_every_word_once(control: DictionaryControl) -> None:
    assert control.preserved() | control.destroyed() == set(DICTIONARY_INVARIANTS)
    assert not control.preserved() & control.destroyed()
    assert parse_dictionary(control.model_dump(mode="json")) == control


def test_what_is_declared_is_what_training_does(control: DictionaryControl, spec: SAESpec) -> None:
    usual, before = spec.create(D_IN, 0), start(control, spec)
    fit = trained(before, control, n=2000)
    after = fit.sae()
    same = {n: torch.equal(before.params[n], after.params[n]) for n in spec.parameters}
    unit = after.params["W_dec"].norm(dim=1)
    found = {
        "recipe": after.spec == spec
        and all(after.params[n].shape == usual.params[n].shape for n in spec.parameters)
        and bool(((unit - 1).abs() < 1e-5).all()),
        "initial_decoder": torch.equal(before.params["W_dec"], usual.params["W_dec"]),
        "encoder_learned": not same["W_enc"],
        "biases_learned": not same["b_enc"] and not same["b_dec"],
        "decoder_learned": not same["W_dec"],
        "decoder_free": not same["W_dec"] and control.decoder_cosine is None,
    }
    assert set(found) == set(DICTIONARY_INVARIANTS)
    assert {word for word, kept in found.items() if kept} == control.preserved()
    learned = {name: kept for name, kept in same.items() if name not in spec.buffers}
    frozen = set(learned) if control.frozen == set(PARAMETERS) else control.frozen
    assert frozen == {name for name, kept in learned.items() if kept}
    # what no gradient reaches follows the codes in every arm
    assert not any(same[name] for name in spec.buffers)
    assert found["biases_learned"] or (same["b_enc"] and same["b_dec"])
    assert fit.tokens == 2000


def test_a_limited_decoder_stays_within_its_cone_and_reaches_its_edge(spec: SAESpec) -> None:
    free = trained(spec.create(D_IN, 0)).sae()
    for cosine in (0.8, 0.95):
        control = SoftFrozen(cosine=cosine)
        before = start(control, spec)
        found = cosines(before, trained(before, control).sae())
        assert (found >= cosine - 1e-5).all()
        assert ((found - cosine).abs() < 1e-4).sum() > D_SAE // 10
        assert (cosines(before, free) < cosine).any()


@pytest.mark.parametrize("spec", ["topk", "batchtopk"], indirect=True)
def test_learning_more_explains_more(spec: SAESpec) -> None:
    """Where k fixes the L0; a penalty needs longer to settle, and shrinks codes."""
    usual = reached(spec.kind)
    found = {
        _name(t): explained(trained(start(c := parse_dictionary(t), spec), c).sae())
        for t in SETTINGS
        if parse_dictionary(t).frozen or parse_dictionary(t).kind == "soft_frozen"
    }
    assert all(value < usual - 0.02 for value in found.values()), (usual, found)
    assert found["untrained"] < found["frozen_decoder"] < found["soft_frozen"]
    assert found["untrained"] < found["frozen_encoder"]
    assert found["frozen_encoder-cov-False"] < found["frozen_encoder-cov"] - 0.02
    # the start is not what makes the difference: from the covariance's directions, training gets there
    free = explained(trained(start(FrozenDecoder(init="cov"), spec)).sae())
    assert free > max(found.values()) + 0.02


def test_starts_leave_their_input_alone_and_repeat(
    control: DictionaryControl, spec: SAESpec
) -> None:
    sae = spec.create(D_IN, 0)
    kept = {name: tensor.clone() for name, tensor in sae.params.items()}
    mean = moments().mean.clone()
    first = control.start(sae, moments(), 0, 0)
    again = control.start(spec.create(D_IN, 0), moments(), 0, 0)
    for name in spec.parameters:
        assert torch.equal(first.params[name], again.params[name])
        assert first.params[name].dtype == torch.float32
        first.params[name].fill_(7.0)
        assert torch.equal(sae.params[name], kept[name])
    assert torch.equal(moments().mean, mean)


def test_another_seed_is_another_dictionary_where_the_control_draws(
    control: DictionaryControl, spec: SAESpec
) -> None:
    a, b = start(control, spec, 0), start(control, spec, 1)
    x = activations()[:500]
    same = torch.equal(a.encode(x).dense(), b.encode(x).dense())
    assert same == (not control.draws)


def test_moments_are_asked_for_where_they_are_needed(control: DictionaryControl) -> None:
    sae = recipe().create(D_IN, 0)
    if control.needs_moments:
        with pytest.raises(SpecError, match="none were given"):
            control.start(sae, None, 0, 0)
        with pytest.raises(SpecError, match="24 dimensions, the SAE reads 16"):
            control.start(recipe().create(16, 0), moments(), 0, 0)
        with pytest.raises(NotEstimable, match="no variance"):
            control.start(sae, StreamMoments(torch.zeros(D_IN), torch.zeros(D_IN, D_IN)), 0, 0)
        with pytest.raises(ModelError, match="NaN or infinity"):
            control.start(
                sae, StreamMoments(torch.zeros(D_IN), torch.full((D_IN, D_IN), math.nan)), 0, 0
            )
    else:
        without, with_them = control.start(sae, None, 0, 0), control.start(sae, moments(), 0, 0)
        for name in PARAMETERS:
            assert torch.equal(without.params[name], with_them.params[name])


# --- each kind -------------------------------------------------------------------------------------


def test_directions_from_the_covariance_have_the_law_of_a_normalized_gaussian() -> None:
    n = 20_000
    sae = start(FrozenDecoder(init="cov"), recipe(d_sae=n))
    rows = sae.params["W_dec"]
    encoder = sae.params["W_enc"].t()
    torch.testing.assert_close(encoder / encoder.norm(dim=1, keepdim=True), rows)
    assert float(encoder.norm(dim=1).diff().abs().max()) < 1e-6
    random = torch.Generator().manual_seed(4)
    factor = torch.linalg.cholesky(moments().covariance.double()).float()
    gaussian = torch.randn(n, D_IN, generator=random) @ factor.T
    expected = torch.nn.functional.normalize(gaussian, dim=1)
    difference = (rows.T @ rows - expected.T @ expected) / n
    assert difference.abs().max() < 6 * (2 / n) ** 0.5 * (rows.T @ rows / n).diagonal().max()
    # and not that of a uniform one
    assert (rows.T @ rows / n - torch.eye(D_IN) / D_IN).abs().max() > 0.015


def test_a_confined_cloud_has_directions_in_its_subspace() -> None:
    basis, _ = torch.linalg.qr(torch.randn(D_IN, 3, generator=torch.Generator().manual_seed(1)))
    confined = StreamMoments(torch.zeros(D_IN), 8 * basis @ basis.T)
    rows = FrozenDecoder(init="cov").start(recipe().create(D_IN, 0), confined, 0, 0).params["W_dec"]
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(D_SAE))
    torch.testing.assert_close((rows @ basis).norm(dim=1), torch.ones(D_SAE), rtol=0, atol=1e-3)


def test_a_tied_sae_has_no_control_that_parts_its_matrices() -> None:
    tied = [kind for kind in SAES if SAES[kind].ties_encoder]
    assert tied == ["tied"]
    parting = {kind for kind, one in DICTIONARY_CONTROLS.entries.items() if one.parts_encoder}
    assert parting == {"frozen_decoder", "frozen_encoder", "pca", "untrained"}
    for kind, table in ((one["kind"], one) for one in SETTINGS):
        if kind in parting:
            continue
        control, plain = parse_dictionary(table), recipe("tied")
        fit = trained(start(control, plain), control, n=2000)
        after = fit.sae().params
        assert torch.equal(after["W_enc"], after["W_dec"].t())


def test_the_untrained_scale_is_the_best_one_on_a_gaussian(spec: SAESpec) -> None:
    sae, plain = start(Untrained(), spec), spec.create(D_IN, 0)
    ratio = sae.params["W_enc"] / plain.params["W_enc"]
    scale = float(ratio.flatten()[0])
    torch.testing.assert_close(ratio, torch.full_like(ratio, scale))
    if not shrinks(spec):
        # against unit decoder rows: codes of rows that overlap overshoot
        assert 0.2 < float(sae.params["W_enc"][:, 0].norm()) < 0.95
    assert torch.equal(sae.params["b_dec"], moments().mean)
    x = moments().draw(20_000, torch.Generator().manual_seed(8))

    def missed(factor: float) -> float:
        units = ("W_enc", *spec.in_activation_units)
        scaled = SAE(spec, sae.params | {name: sae.params[name] * factor for name in units})
        return float((x - scaled.decode(scaled.encode(x))).square().sum())

    assert missed(1.0) < min(missed(0.9), missed(1.1))
    # the scale moves no code from one latent to another
    centered = SAE(spec, {**plain.params, "b_dec": moments().mean})
    centered = at_target_l0(centered, moments(), 0, 0)
    mine, theirs = sae.encode(x[:300]).dense(), centered.encode(x[:300]).dense()
    torch.testing.assert_close(mine, scale * theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["untrained", "pca"])
def test_what_is_not_trained_has_the_l0_that_is_asked_for_on_a_gaussian(
    kind: str, spec: SAESpec
) -> None:
    x = moments().draw(20_000, torch.Generator().manual_seed(8))
    for k in (2, 7):
        sae = start(parse_dictionary(kind), recipe(spec.kind, k=k))
        assert len(sae.encode(x).values) / len(x) == pytest.approx(k, rel=0.03)
        # of the levels of all latents, none is another
        level = sae.params.get("threshold", sae.params["b_enc"])
        assert float((level.max() - level[level > -100].min()).abs()) < 1e-6


def test_a_recipe_without_a_target_keeps_its_dense_start() -> None:
    spec = parse_sae({"kind": "relu", "d_sae": D_SAE, "coefficient": 0.1})
    sae = start(Untrained(), spec)
    assert not sae.params["b_enc"].any()
    x = moments().draw(1000, torch.Generator().manual_seed(8))
    assert len(sae.encode(x).values) / len(x) == pytest.approx(D_SAE / 2, rel=0.1)


def shrinks(spec: SAESpec) -> bool:
    """Whether codes are what exceeds a level, so that a level makes them smaller."""
    return spec.kind in ("relu", "p_annealed")


def test_principal_directions_beat_a_fixed_choice_of_as_many() -> None:
    x = activations()[N_TRAIN:]
    values, vectors = moments().spectrum
    assert (values.diff() <= 0).all()
    for k in (1, 4, 12):
        sae = start(PCA(), recipe(k=k))
        codes = sae.encode(x)
        assert (codes.dense()[:, 0:48:2] * codes.dense()[:, 1:48:2] == 0).all()
        assert not codes.dense()[:, 48:].any()
        fixed = (((x - moments().mean) @ vectors[:, :k].float()) ** 2).sum()
        per_token = ((sae.decode(codes) - moments().mean) ** 2).sum()
        assert per_token > fixed
    complete = start(PCA(), recipe(k=D_IN))
    torch.testing.assert_close(complete.decode(complete.encode(x)), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("d_sae", [1, 7, 48, 49])
def test_a_narrow_dictionary_has_the_leading_directions_and_a_wide_one_silent_latents(
    d_sae: int,
) -> None:
    sae = start(PCA(), recipe(d_sae=d_sae, k=1))
    vectors = moments().spectrum[1].float()
    for latent in range(min(d_sae, 48)):
        signed = vectors[:, latent // 2] * (-1) ** latent
        torch.testing.assert_close(sae.params["W_dec"][latent], signed)
        torch.testing.assert_close(sae.params["W_enc"][:, latent], signed)
    for latent in range(48, d_sae):
        assert not sae.params["W_enc"][:, latent].any()
        assert -math.inf < sae.params["b_enc"][latent] < -100
        assert float(sae.params["W_dec"][latent].norm()) == pytest.approx(1)
    fit = trained(sae, PCA())
    assert fit.dead().tolist()[48:] == [True] * max(0, d_sae - 48)


# --- the settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("frozen_decode", "Did you mean 'frozen_decoder'"),
        ({"kind": "soft_frozen", "cosin": 0.8}, "Did you mean 'cosine'"),
        ({"kind": "pca", "init": "iso"}, "no setting of dictionary control 'pca' is called 'init'"),
        ({"kind": "frozen_encoder", "init": "uniform"}, "frozen_encoder', init: "),
        ({"kind": "soft_frozen", "cosine": 1.0}, "soft_frozen', cosine: "),
        ({"init": "iso"}, "names its `kind`; known: frozen_decoder, frozen_encoder, pca"),
        (3, 'such as {kind = "frozen_decoder"}; found 3'),
        (None, "found None"),
    ],
)
def test_wrong_values_say_what_is_allowed(value: Any, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_dictionary(value)
    assert message in str(caught.value)


def test_a_name_alone_is_a_control() -> None:
    assert parse_dictionary("soft_frozen") == SoftFrozen(init="iso", cosine=0.8)
    assert parse_dictionary({"kind": "pca"}) == PCA()
