"""The compiled step against plain arithmetic."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from sae_placebo.core.errors import SpecError
from sae_placebo.core.workers import Workers
from sae_placebo.saes import SAE, SAES, TopKSpec, fast
from sae_placebo.saes.fast_selection import Aside, Search, select_both, select_sites
from sae_placebo.saes.kernels import Workspace
from sae_placebo.saes.selection import Selection, Sites, select
from sae_placebo.saes.training import Fit, TrainingSpec

pytest.importorskip("numba")
from sae_placebo.saes import compiled_selection as compiled

D_IN = 20


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_both(
    inputs: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor, chosen: Selection
) -> tuple[Sites, Sites]:
    plain = select(inputs, {"W_enc": weights.t(), "b_enc": bias}, chosen, Workspace())
    rows = {"W_enc": weights, "b_enc": bias}
    with Workers() as workers:
        offsets, latents, z = select_sites(inputs, rows, chosen, Workspace(), workers)
    return plain, Sites(offsets, latents.long(), z)


def same(plain: Sites, found: Sites) -> None:
    assert torch.equal(plain.offsets, found.offsets)
    for first, stop in zip(plain.offsets[:-1], plain.offsets[1:], strict=True):
        row = slice(int(first), int(stop))
        expected, order = plain.latents[row].sort()
        latents, other = found.latents[row].sort()
        assert torch.equal(expected, latents)
        torch.testing.assert_close(plain.z[row][order], found.z[row][other])


CHOICES = [
    Selection("row", 1),
    Selection("row", 7),
    Selection("row", 64),
    Selection("batch", 6.5),
    Selection("batch", 3, torch.tensor(1.2)),
    Selection("batch", 3, torch.tensor(99.0)),
    Selection("above"),
    Selection("above", threshold=torch.tensor(0.8)),
]


@pytest.mark.parametrize("d_sae", [1, 7, 64, 83, 400])
@pytest.mark.parametrize("chosen", CHOICES, ids=lambda c: f"{c.kind}-{c.k}")
@pytest.mark.parametrize("n_tokens", [1, 300])
def test_selects_what_plain_arithmetic_selects(
    d_sae: int, chosen: Selection, n_tokens: int
) -> None:
    if chosen.kind == "row":
        chosen = Selection("row", min(chosen.k, d_sae))
    x, weights, bias = draw(n_tokens, D_IN), draw(d_sae, D_IN, seed=1) / 4, draw(d_sae, seed=2) / 3
    same(*by_both(x, weights, bias, chosen))


def test_selects_above_one_threshold_per_latent() -> None:
    threshold = draw(83, seed=5).abs()
    chosen = Selection("above", threshold=threshold)
    same(*by_both(draw(200, D_IN), draw(83, D_IN, seed=1) / 4, draw(83, seed=2), chosen))


@pytest.mark.parametrize("chosen", CHOICES, ids=lambda c: f"{c.kind}-{c.k}")
def test_ties_zeros_and_few_positives_are_met_alike(chosen: Selection) -> None:
    weights = draw(96, D_IN, seed=1) / 4
    weights[32:64], weights[64:] = weights[:32], weights[:32]
    bias = torch.zeros(96)
    x = draw(120, D_IN)
    x[10:20] = 0
    x[20:40] = x[40:60]
    same(*by_both(x, weights, bias, chosen))
    bias = torch.full((96,), -1.5)  # fewer than k are positive
    same(*by_both(x, weights, bias, chosen))


@pytest.mark.parametrize("d_sae", [83, 400])
def test_more_sites_than_there_is_room_for(d_sae: int) -> None:
    # all latents fire on all tokens: far beyond the room that is set aside at first
    x, weights = draw(2000, D_IN), draw(d_sae, D_IN, seed=1) / 4
    same(*by_both(x, weights, torch.full((d_sae,), 50.0), Selection("above")))


ODD = {
    "inf": [float("inf")],
    "nan": [float("nan")],
    "negative nan": [-float("nan")],
    "both": [float("inf"), float("nan"), -float("inf"), -float("nan"), 3.0],
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD.keys())
@pytest.mark.parametrize("d_sae", [7, 64, 83])
def test_a_row_never_gives_more_than_k_sites_whatever_its_values(
    d_sae: int, odd: list[float]
) -> None:
    z = draw(30, d_sae)
    z[:, : d_sae - 1] = torch.tensor(odd).repeat(d_sae)[: d_sae - 1]
    # as if callers had room for k of every token and no more: what lies behind it must stay
    size, k = 30 * 4 + d_sae, 4
    found, places = np.full(size + 500, 7.0, np.float32), np.zeros(size + 500, np.int32)
    lanes, counts = np.empty(d_sae // 8 + 8, np.float32), np.zeros(30, np.int32)
    bits, bias = found.view(np.int32), np.zeros(d_sae, np.float32)

    at = compiled.select_rows(z.numpy(), bias, k, lanes, found, bits, places, counts, 0)

    assert counts.max() <= k
    assert at == counts.sum()
    assert (found[size:] == 7).all()
    offsets = np.array([0, size], np.int64)
    compiled.keep_batch(found[:size], bits[:size], places[:size], offsets, 5)
    assert offsets[-1] <= 5


@pytest.mark.parametrize("search", [False, True])
@pytest.mark.parametrize("chosen", CHOICES[1:], ids=lambda c: f"{c.kind}-{c.k}")
def test_weights_that_are_not_finite_give_no_more_sites_than_there_is_room_for(
    chosen: Selection, search: bool
) -> None:
    x, weights = draw(300, D_IN) * 1e30, draw(96, D_IN, seed=1) * 1e30
    weights[::5], weights[::7] = float("inf"), float("nan")
    rows = {"W_enc": weights, "b_enc": torch.zeros(96)}
    aside = Aside(torch.arange(96) % 3 == 0, 6)
    with Workers() as workers:
        found, others = select_both(
            x, rows, chosen, aside, Workspace(), workers, Search(weights) if search else None
        )
    assert others[0].diff().max() <= 6
    for offsets, latents, z in (found, others):
        assert offsets[-1] == len(latents) == len(z)
        assert latents.min() >= 0
        assert latents.max() < 96
    if chosen.kind == "row":
        assert found[0].diff().max() <= chosen.k
    if chosen.kind == "batch":
        assert len(found[1]) <= chosen.target(300, 96)


def test_training_that_diverges_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fast.SWITCH, "1")
    spec = TopKSpec(d_sae=64, k=4)
    fit = Fit(spec.create(D_IN, 0), TrainingSpec(learning_rate=1e20, dead_after_tokens=400), 30_000)

    def train() -> None:
        for seed in range(40):
            fit.step(draw(256, D_IN, seed=seed))

    with pytest.raises(SpecError, match="training diverged"):
        train()


def fitted(kind: str, parts: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch, on: str) -> Fit:
    monkeypatch.setenv(fast.SWITCH, on)
    settings = {"k": 4} if "k" in SAES[kind].model_fields else {"l0": 4.0}
    spec = SAES[kind](d_sae=64, **settings)
    fit = Fit(spec.create(D_IN, 0), TrainingSpec(learning_rate=3e-3, dead_after_tokens=400), 30_000)
    assert (fit._fast is not None) == (on == "1" and kind in SPARSE)
    for part in parts:
        fit.step(part)
    return fit


SPARSE = {"topk", "batchtopk", "relu", "p_annealed", "jumprelu"} & set(SAES)


@pytest.mark.parametrize("kind", sorted(SPARSE))
def test_long_runs_stay_together(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that fall silent for hundreds of steps and wake again follow dense Adam."""
    basis = draw(D_IN, D_IN, seed=3)
    half, other = basis[:10], basis[10:]
    parts = [draw(40, 10, seed=i).abs() @ (half if 30 < i < 300 else other) / 3 for i in range(340)]
    quick, plain = (fitted(kind, parts, monkeypatch, on) for on in ("1", "0"))
    late = [log[-20:] for log in (quick.log(), plain.log())]
    for column in ("fvu", "l0"):
        mine, theirs = (sum(row[column] for row in rows) / len(rows) for rows in late)
        assert mine == pytest.approx(theirs, rel=0.05), column


def two_worlds(first: int, then: int, last: int) -> list[torch.Tensor]:
    """Batches from one half of the dimensions, then from the other, then from the first again."""
    worlds = [1] * first + [0] * then + [1] * last
    parts = [draw(30, D_IN, seed=i) for i in range(len(worlds))]
    for part, world in zip(parts, worlds, strict=True):
        part[:, 10 * world : 10 * world + 10] = 0
    return parts


def half_and_half(k: int) -> SAE:
    """An SAE whose latents each live in one half of the dimensions."""
    sae = TopKSpec(d_sae=40, k=k, aux_coefficient=0.0).create(D_IN, 0)
    sae.params["W_dec"][:20, :10] = 0
    sae.params["W_dec"][20:, 10:] = 0
    sae.params["W_dec"].div_(sae.params["W_dec"].norm(dim=1, keepdim=True))
    sae.params["W_enc"].copy_(sae.params["W_dec"].t())
    return sae


def test_a_row_without_gradient_follows_dense_adam(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents learn, are silent for twice the patience, and learn again."""
    start, parts = half_and_half(2), two_worlds(10, 350, 3)

    def run(on: str) -> Fit:
        monkeypatch.setenv(fast.SWITCH, on)
        fit = Fit(start, TrainingSpec(learning_rate=1e-3, decay_share=0.0), 3000)
        for part in parts:
            fit.step(part)
        return fit

    quick, plain = run("1"), run("0")
    assert quick._fast.patience < 200
    for name, expected in plain.sae().params.items():
        moved = (expected - start.params[name]).norm()
        assert (quick.sae().params[name] - expected).norm() < 1e-3 * moved, name
    mine, theirs = quick.state(), plain.state()
    for name in ("W_dec.exp_avg_sq", "W_enc.exp_avg_sq", "W_enc.exp_avg"):
        error = (mine[name] - theirs[name]).norm() / theirs[name].norm()
        assert error < 1e-3, name


def test_the_same_bits_with_any_split_and_every_time() -> None:
    def run() -> dict[str, torch.Tensor]:
        fit = Fit(TopKSpec(d_sae=300, k=5).create(D_IN, 0), TrainingSpec(), 4000)
        for i in range(8):
            fit.step(draw(500, D_IN, seed=i))
        return fit.state()

    first, again = run(), run()
    assert all(
        torch.equal(
            first[name],
            again[name],
        )
        for name in first
        if name != "log"
    )


def test_restored_state_continues_to_the_same_bits_when_rows_are_quiet() -> None:
    parts = two_worlds(3, 12, 15)
    training = TrainingSpec(beta1=0.1, dead_after_tokens=100)  # quiet after few steps
    start = half_and_half(2)
    straight = Fit(start, training, 900)
    for part in parts[:15]:
        straight.step(part)
    state = straight.state()
    assert (state["W_dec.quiet"] > straight._fast.patience).any()
    resumed = Fit(start, training, 900)
    resumed.restore(state)
    for part in parts[15:]:
        straight.step(part)
        resumed.step(part)
    for name, tensor in straight.sae().params.items():
        assert torch.equal(tensor, resumed.sae().params[name])


def test_switched_off_there_is_no_compiled_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fast.SWITCH, "0")
    fit = Fit(TopKSpec(d_sae=8, k=1).create(4, 0), TrainingSpec(), 100)
    assert fit._fast is None
    assert "W_dec.quiet" not in fit.state()


def searched(x: torch.Tensor, k: int, d_sae: int, given_up_after: float) -> tuple[float, Search]:
    weights = torch.nn.functional.normalize(draw(d_sae, x.shape[1], seed=1), dim=1)
    rows, search = {"W_enc": weights, "b_enc": torch.zeros(d_sae)}, Search(weights)
    plain, _ = by_both(x, weights, rows["b_enc"], Selection("row", k))
    with Workers() as workers:
        _, latents, z = select_sites(x, rows, Selection("row", k), Workspace(), workers, search)
    assert len(latents) == len(plain.latents)
    exact = x @ weights.t()
    tokens = torch.arange(len(x)).repeat_interleave(k)
    torch.testing.assert_close(z, exact[tokens, latents.long()], rtol=1e-4, atol=1e-5)
    wanted = set(zip(plain.tokens().tolist(), plain.latents.tolist(), strict=True))
    mine = set(zip(tokens.tolist(), latents.tolist(), strict=True))
    return len(wanted & mine) / len(wanted), search


def test_a_search_finds_nearly_all_and_its_values_are_exact() -> None:
    share, search = searched(draw(400, 64), 8, 900, 0.999)
    assert share > 0.9995
    assert search.agreement > 0.999
    assert not search.given_up


def test_a_search_that_misses_is_measured_and_given_up() -> None:
    x = draw(400, 64)
    x[:, 0] *= 3000  # one huge entry takes all 8 bits, and the weights there are made zero below

    share, search = searched(x, 8, 900, 0.999)
    assert share > 0.999 or search.given_up
    flat = torch.cat([draw(300, 63) / 1000, torch.full((300, 1), 40.0)], dim=1)
    weights = torch.cat([draw(500, 63, seed=1), torch.zeros(500, 1)], dim=1)
    rows, search = {"W_enc": weights, "b_enc": torch.zeros(500)}, Search(weights)
    with Workers() as workers:
        select_sites(flat, rows, Selection("row", 8), Workspace(), workers, search)
        assert search.given_up
        assert search.agreement < 0.9
        found = select_sites(flat, rows, Selection("row", 8), Workspace(), workers, search)
    plain, _ = by_both(flat, weights, rows["b_enc"], Selection("row", 8))
    assert torch.equal(found[1].long().sort().values, plain.latents.sort().values)


def test_a_search_for_a_batch_agrees() -> None:
    x, weights = draw(300, 64), torch.nn.functional.normalize(draw(600, 64, seed=1), dim=1)
    rows, search = {"W_enc": weights, "b_enc": torch.zeros(600)}, Search(weights)
    chosen = Selection("batch", 6, torch.tensor(1.5))
    with Workers() as workers:
        offsets, latents, z = select_sites(x, rows, chosen, Workspace(), workers, search)
    same(by_both(x, weights, rows["b_enc"], chosen)[0], Sites(offsets, latents.long(), z))
    assert search.agreement == 1.0


def test_training_with_a_search_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [draw(100, D_IN, seed=i) for i in range(30)]
    ends = {}
    for search in ("exact", "int8"):
        training = TrainingSpec(search=search)
        fit = Fit(TopKSpec(d_sae=100, k=4).create(D_IN, 0), training, 3000)
        for part in parts:
            fit.step(part)
        ends[search] = fit.log()[-1]["fvu"]
    assert ends["int8"] == pytest.approx(ends["exact"], rel=0.02)
