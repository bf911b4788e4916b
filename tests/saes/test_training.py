from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch

from sae_placebo.core.errors import ModelError, SpecError
from sae_placebo.saes import PARAMETERS, SAE, Context, TopKSpec
from sae_placebo.saes.training import Fit, TrainingSpec, train

D_IN, D_SAE = 16, 64


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Steps this small only wait for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def batch(n_tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n_tokens, D_IN, generator=torch.Generator().manual_seed(seed))


def start(seed: int = 0, **settings: object) -> SAE:
    return TopKSpec(d_sae=D_SAE, **{"k": 4, **settings}).create(D_IN, seed)


def fit(sae: SAE | None = None, total_tokens: int = 1000, **settings: object) -> Fit:
    return Fit(sae or start(), TrainingSpec(**settings), total_tokens)


def test_decoder_rows_stay_unit_and_the_start_is_copied() -> None:
    sae = start()
    before = sae.params["W_dec"].clone()
    running = fit(sae, learning_rate=0.01)
    for seed in range(5):
        running.step(batch(200, seed))
        norms = running.sae().params["W_dec"].norm(dim=1)
        torch.testing.assert_close(norms, torch.ones(D_SAE))
    assert torch.equal(sae.params["W_dec"], before)
    assert (running.sae().params["W_dec"] - before).abs().max() > 1e-3


def test_step_is_adam_on_the_projected_gradient() -> None:
    running = fit(total_tokens=10_000, learning_rate=1e-2, warmup_share=0, decay_share=0)
    params = {name: tensor.clone() for name, tensor in start().params.items()}
    betas = (running.spec.beta1, running.spec.beta2)
    leaves = [params[name].requires_grad_() for name in PARAMETERS]
    adam = torch.optim.Adam(leaves, lr=1e-2, betas=betas)
    alive = torch.zeros(D_SAE, dtype=torch.bool)
    for seed in range(4):
        running.step(batch(200, seed))
        adam.zero_grad()
        running._sae_spec.evaluate(params, batch(200, seed), Context(alive)).loss.backward()
        with torch.no_grad():
            rows = params["W_dec"]
            rows.grad -= (rows.grad * rows).sum(dim=1, keepdim=True) * rows
            adam.step()
            rows /= rows.norm(dim=1, keepdim=True)
    for name in PARAMETERS:
        found, expected = running.sae().params[name], params[name].detach()
        assert (found - expected).norm() / expected.norm() < 1e-5, name


def test_step_size_rises_and_falls() -> None:
    spec = TrainingSpec(warmup_share=0.1, decay_share=0.2)
    shares = [spec.share(before, before + 100, 1000) for before in range(0, 1000, 100)]
    assert shares == pytest.approx([1, 1, 1, 1, 1, 1, 1, 1, 1, 0.5])
    assert spec.share(0, 20, 1000) == pytest.approx(0.2)
    assert spec.share(1000, 1100, 1000) == 0
    assert TrainingSpec(learning_rate=0.5).peak(64) == 0.5
    assert TrainingSpec().peak(1024) == pytest.approx(2 * TrainingSpec().peak(4096))


def test_log_has_a_row_per_step() -> None:
    running = fit()
    for size in (300, 1, 200):
        running.step(batch(size))
    rows = running.log()
    assert [row["tokens"] for row in rows] == [300, 301, 501]
    assert rows[0]["fvu"] > 0
    assert rows[0]["dead_share"] == 0
    assert rows[1]["fvu"] is None or math.isfinite(rows[1]["fvu"])
    assert running.log() == rows


def test_logged_fvu_is_that_of_the_batch() -> None:
    sae, x = start(), batch(300) + 0.3
    running = fit(sae)
    running.step(x)
    missed = (sae.decode(sae.encode(x)) - x).square().sum()
    expected = missed / (x - x.mean(dim=0)).square().sum()
    assert running.log()[0]["fvu"] == pytest.approx(float(expected), rel=1e-4)


def test_restored_state_continues_to_the_same_bits() -> None:
    def running() -> Fit:
        return fit(learning_rate=0.01, dead_after_tokens=150)

    whole, first, second = running(), running(), running()
    empty = first.state()
    for seed in range(6):
        whole.step(batch(100, seed))
    for seed in range(3):
        first.step(batch(100, seed))
    second.step(batch(77, 9))
    second.restore(first.state())
    for seed in range(3, 6):
        second.step(batch(100, seed))
    assert all(torch.equal(second.state()[name], part) for name, part in whole.state().items())
    assert second.log() == whole.log()
    second.restore(empty)
    assert torch.equal(second.sae().params["W_enc"], start().params["W_enc"])
    with pytest.raises(SpecError, match="saved state"):
        Fit(TopKSpec(d_sae=8, k=2).create(D_IN, 0), TrainingSpec(), 10).restore(empty)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_activations_that_are_not_finite_are_refused_and_change_nothing(bad: float) -> None:
    running = fit()
    running.step(batch(50))
    before = running.state()
    x = batch(60)
    x[[3, 9], 2] = bad
    with pytest.raises(ModelError, match="2 of 60 tokens"):
        running.step(x)
    assert all(torch.equal(before[name], part) for name, part in running.state().items())


def test_divergence_is_named() -> None:
    running = fit()
    with pytest.raises(SpecError, match="diverged"):
        running.step(torch.full((4, D_IN), 1e30))


def test_an_empty_batch_does_nothing() -> None:
    running = fit()
    running.step(batch(0))
    assert running.tokens == 0
    assert running.log() == []


def test_train_steps_every_fit_on_the_same_batches() -> None:
    seeds = [fit(start(seed)) for seed in (0, 1)]
    other = fit(start(0, k=2))
    alone = fit(start(1))
    seen: list[int] = []
    batches = [{"a": batch(100, n), "b": batch(100, n + 50)} for n in range(3)]
    sized = [(100, part) for part in batches] + [(7, {"a": batch(7, 3), "b": batch(7, 53)})]
    train(sized, {"a": seeds, "b": [other]}, seen.append)
    assert seen == [100, 100, 100, 7]
    for x in (*(part["a"] for part in batches), batch(7, 3)):
        alone.step(x)
    # buffers are shared between fits, results are not
    assert torch.equal(seeds[1].sae().params["W_dec"], alone.sae().params["W_dec"])
    assert other.tokens == 307
    with pytest.raises(SpecError, match="the batches hold no 'c'"):
        train(sized, {"c": [other]}, seen.append)


def test_the_step_size_follows_the_stream_and_not_what_was_left_out() -> None:
    whole, gappy = fit(total_tokens=400), fit(total_tokens=400)
    for n in range(4):
        x = batch(100, n)
        whole.step(x)
        gappy.step(x[:60], None, 100)
    rates = [[row["learning_rate"] for row in running.log()] for running in (whole, gappy)]
    assert rates[0] == rates[1]
    assert (whole.tokens, gappy.tokens, gappy.offered_tokens) == (400, 240, 400)


def planted_with_dead_latents() -> tuple[SAE, torch.Tensor]:
    """Half of the latents start too low to be among the k largest, but not always below zero."""
    random = torch.Generator().manual_seed(77)
    truth = torch.nn.functional.normalize(torch.randn(48, D_IN, generator=random), dim=1)
    active = torch.rand(12_000, 48, generator=random) < 4 / 48
    x = (active * (0.5 + torch.rand(12_000, 48, generator=random))) @ truth
    x -= x.mean(dim=0)
    sae = start()
    sae.params["b_enc"][: D_SAE // 2] = -2.5 * sae.params["W_enc"][:, 0].norm()
    return sae, x * math.sqrt(D_IN / x.square().sum(dim=1).mean())


def test_auxk_revives_dead_latents() -> None:
    sae, x = planted_with_dead_latents()
    dead = {}
    for coefficient in (0.0, 1 / 32):
        spec = TopKSpec(d_sae=D_SAE, k=4, aux_coefficient=coefficient)
        running = Fit(
            SAE(spec, sae.params), TrainingSpec(learning_rate=5e-3, dead_after_tokens=2000), len(x)
        )
        for part in x.split(200):
            running.step(part)
        dead[coefficient] = int(running.dead().sum())
    assert dead[0.0] > 10
    assert dead[1 / 32] < dead[0.0] / 2


def test_auxk_reaches_the_encoder_and_the_decoder_of_dead_latents() -> None:
    sae, x = planted_with_dead_latents()
    dead = torch.arange(D_SAE) < D_SAE // 2
    found = {}
    for coefficient in (0.0, 1 / 32):
        spec = TopKSpec(d_sae=D_SAE, k=4, aux_coefficient=coefficient)
        found[coefficient] = Fit(SAE(spec, sae.params), TrainingSpec(), 1)._sae_spec.gradients(
            sae.params, x[:2000], Context(dead), Fit(sae, TrainingSpec(), 1)._workspace
        )
    for name, rows in (("W_enc", lambda t: t.t()[dead]), ("W_dec", lambda t: t[dead])):
        without, with_aux = (rows(found[c].gradients[name]) for c in (0.0, 1 / 32))
        silent = ~found[0.0].fired[dead]
        assert silent.sum() > 10
        assert not without[silent].any()
        assert (with_aux[silent].abs().amax(dim=1) > 0).all(), name


def test_padded_slots_get_no_gradient() -> None:
    sae = start()
    below = -2.0 * float(sae.params["W_enc"][:, 0].norm())
    sae.params["b_enc"][:] = below
    x = batch(20)
    z = x @ sae.params["W_enc"] + below
    positive = (z > 0).any(dim=0)
    assert (z > 0).sum(dim=1).min() < 4
    running = fit(sae, learning_rate=1e-2, warmup_share=0)
    running.step(x)
    moved = running.sae().params["b_enc"] != sae.params["b_enc"]
    assert moved.any()
    assert not (moved & ~positive).any()


def test_default_step_size_suits_a_short_run() -> None:
    """250 steps: the usual rate for long runs is too small, ten times ours is too large."""
    random = torch.Generator().manual_seed(5)
    truth = torch.nn.functional.normalize(torch.randn(64, D_IN * 2, generator=random), dim=1)
    active = torch.rand(26_000, 64, generator=random) < 3 / 64
    x = (active * (0.5 + torch.rand(26_000, 64, generator=random))) @ truth
    x -= x.mean(dim=0)
    x *= math.sqrt(D_IN * 2 / x.square().sum(dim=1).mean())
    spec = TopKSpec(d_sae=128, k=4)
    missed = {}
    for factor in (1 / 7, 1, 10):
        training = TrainingSpec(learning_rate=factor * TrainingSpec().peak(128))
        running = Fit(spec.create(D_IN * 2, seed=0), training, 25_000)
        for part in x[:25_000].split(100):
            running.step(part)
        sae, held_out = running.sae(), x[25_000:]
        reconstruction = sae.decode(sae.encode(held_out))
        missed[factor] = float((reconstruction - held_out).square().sum() / held_out.square().sum())
    assert missed[1] < 0.7 * missed[1 / 7]
    assert missed[1] < 0.7 * missed[10]


# --- tensors held back -----------------------------------------------------------------------------

PARTS = [frozenset(names) for n in range(5) for names in itertools.combinations(PARAMETERS, n)]


def held(frozen: frozenset[str] = frozenset(), cosine: float | None = None, seed: int = 0) -> Fit:
    spec = TrainingSpec(learning_rate=0.03, dead_after_tokens=150, warmup_share=0)
    return Fit(start(seed), spec, 1000, frozen, cosine)


@pytest.mark.parametrize("frozen", PARTS, ids=lambda names: "-".join(sorted(names)) or "none")
def test_frozen_tensors_keep_their_bits_and_the_others_move(frozen: frozenset[str]) -> None:
    running, before = held(frozen), start()
    for seed in range(4):
        running.step(batch(100, seed))
    after = running.sae()
    moved = {n for n in PARAMETERS if not torch.equal(before.params[n], after.params[n])}
    assert moved == set(PARAMETERS) - frozen
    assert running.tokens == running.offered_tokens == 400
    assert running.dead().any() == (running.log()[-1]["dead_share"] > 0)


def test_a_frozen_tensor_does_not_change_the_first_step_of_the_others() -> None:
    usual, frozen = held(), held(frozenset({"W_dec", "b_dec"}))
    for running in (usual, frozen):
        running.step(batch(200))
    for name in ("W_enc", "b_enc"):
        assert torch.equal(usual.sae().params[name], frozen.sae().params[name])


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    # the log's NaN, for a loss that is null, equals nothing
    return a.keys() == b.keys() and all(
        torch.equal(a[name].nan_to_num(-1), b[name].nan_to_num(-1)) for name in a
    )


def test_a_fit_without_learning_counts_and_logs_as_the_others_do() -> None:
    usual, idle = held(), held(frozenset(PARAMETERS))
    x = batch(300) + 0.2
    usual.step(x)
    idle.step(x, offered_tokens=320)
    first, same = usual.log()[0], idle.log()[0]
    assert same["fvu"] == pytest.approx(first["fvu"], rel=1e-5)
    assert (same["tokens"], same["learning_rate"], same["loss"]) == (300, 0.0, None)
    assert (idle.tokens, idle.offered_tokens) == (300, 320)
    assert torch.equal(idle._silent_tokens, usual._silent_tokens)
    x[5, 1] = math.nan
    kept = idle.state()
    with pytest.raises(ModelError, match="1 of 300 tokens"):
        idle.step(x)
    assert same_bits(kept, idle.state())


def test_decoder_rows_turn_no_further_than_the_cone_and_to_its_nearest_edge() -> None:
    free = held()
    free.step(batch(200))
    edge = float((start().params["W_dec"] * free.sae().params["W_dec"]).sum(dim=1).median())
    limited = held(cosine=edge)
    limited.step(batch(200))
    s, r = (sae.params["W_dec"].double() for sae in (start(), free.sae()))
    found = limited.sae().params["W_dec"].double()
    cosines = (s * r).sum(dim=1)
    outside = cosines < edge - 1e-6
    assert outside.any()
    assert not outside.all()
    torch.testing.assert_close(found[~outside], r[~outside])
    torch.testing.assert_close(found.norm(dim=1), torch.ones(D_SAE).double())
    torch.testing.assert_close(
        (s * found).sum(dim=1)[outside],
        torch.full((int(outside.sum()),), edge).double(),
        rtol=0,
        atol=5e-7,
    )
    # nearest: the angle to where the row went is the angle by which that is outside
    turned = (found * r).sum(dim=1)[outside].clamp(max=1).acos()
    expected = cosines[outside].acos() - math.acos(edge)
    torch.testing.assert_close(turned, expected, rtol=0, atol=1e-3)


def test_rows_at_and_opposite_to_their_start_are_held_back_as_well() -> None:
    running = held(cosine=0.8)
    rows = start().params["W_dec"].clone()
    rows[0] *= -1
    rows[1] = torch.nn.functional.normalize(-rows[1] + 1e-4 * rows[2], dim=0)
    running._hold_back(rows)
    assert torch.equal(rows[0], start().params["W_dec"][0])
    cosines = (rows * start().params["W_dec"]).sum(dim=1)
    assert cosines[1] == pytest.approx(0.8, abs=1e-5)
    assert torch.equal(rows[2:], start().params["W_dec"][2:])
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(D_SAE))


@pytest.mark.parametrize(
    ("frozen", "cosine"),
    [({"W_dec"}, None), ({"W_enc", "b_enc"}, None), (set(PARAMETERS), None), (set(), 0.95)],
)
def test_held_back_fits_continue_to_the_same_bits(frozen: set[str], cosine: float | None) -> None:
    whole, first = held(frozenset(frozen), cosine), held(frozenset(frozen), cosine)
    second = held(frozenset(frozen), cosine, seed=1)  # all of it is in the state, the cones as well
    for seed in range(6):
        whole.step(batch(100, seed))
    for seed in range(3):
        first.step(batch(100, seed))
    second.restore(first.state())
    for seed in range(3, 6):
        second.step(batch(100, seed))
    assert same_bits(whole.state(), second.state())
    assert second.log() == whole.log()


def test_a_state_continues_only_where_the_same_is_held_back() -> None:
    kinds = [held(), held(frozenset({"W_dec"})), held(frozenset(PARAMETERS)), held(cosine=0.8)]
    for one, other in itertools.permutations(kinds, 2):
        with pytest.raises(SpecError, match="continue with the settings"):
            one.restore(other.state())


def test_wrong_limits_are_refused() -> None:
    with pytest.raises(SpecError, match="Did you mean 'W_dec'"):
        held(frozenset({"W_decoder"}))
    for cosine in (1.0, -0.1, math.nan):
        with pytest.raises(SpecError, match="freeze W_dec"):
            held(cosine=cosine)


def test_a_start_that_is_given_away_trains_to_the_same_bits() -> None:
    sae, again = start(), start()
    again.params["W_enc"] = again.params["W_dec"].t()  # one memory, two tensors
    sae.params["W_enc"] = sae.params["W_dec"].t().clone()
    kept = Fit(sae, TrainingSpec(learning_rate=0.01), 1000)
    given = Fit(again, TrainingSpec(learning_rate=0.01), 1000, copied=False)
    for seed in range(3):
        kept.step(batch(200, seed))
        given.step(batch(200, seed))
    for name, tensor in kept.sae().params.items():
        assert torch.equal(tensor, given.sae().params[name]), name
    assert torch.equal(again.params["b_dec"], given.sae().params["b_dec"])
