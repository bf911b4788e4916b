"""Code lengths are those of a real coder, and find structure exactly where it was planted."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest

from sae_placebo.baselines.base import BaselinesSpec, Dictionary
from sae_placebo.baselines.bits import CodeModel, Histograms, IndexModel, Quantized, quantize
from sae_placebo.baselines.coder import decode, encode
from sae_placebo.baselines.pursuit import AtomCodes, Pursuit
from sae_placebo.baselines.rate import CodedVectors, TokenBits, dictionary_bits, token_bits
from sae_placebo.baselines.residual import water_filling
from sae_placebo.baselines.sampling import Vectors
from sae_placebo.baselines.settings import Choosing, choose
from sae_placebo.core.errors import NotEstimable

SPEC = BaselinesSpec(coded_tokens=64)


def some_codes(n: int, n_atoms: int, slots: int, seed: int) -> AtomCodes:
    random = np.random.default_rng(seed)
    popularity = 1 / np.arange(1, n_atoms + 1)
    keys = random.exponential(size=(n, n_atoms)) / popularity
    atoms = np.argpartition(keys, slots, axis=1)[:, :slots].astype(np.int32)
    values = random.laplace(size=(n, slots)).astype(np.float32) * 4
    values[random.random((n, slots)) < 0.3] = 0
    return AtomCodes(atoms, values, n_atoms)


@pytest.mark.parametrize("scale", [1.0, 400.0])
def test_the_range_coder_gives_the_tokens_back_and_has_the_length_that_was_said(
    scale: float,
) -> None:
    pytest.importorskip("constriction")
    random = np.random.default_rng(0)
    learn, codes = (quantize(some_codes(n, 96, 9, n), 0.5) for n in (800, 250))
    # components of very different sizes; at the larger scale most of them are escaped
    sizes = np.geomspace(0.02, 3, 12) * scale
    rest = [np.rint(random.laplace(size=(n, 12)) * sizes).astype(np.int64) for n in (800, 250)]
    model = CodeModel.fit(learn, rest[0])
    lengths = model.lengths(codes, rest[1])
    message = encode(model, codes, rest[1])
    assert message.bits == pytest.approx(lengths.sum(), rel=0.005)

    found, residual = decode(model, message)
    np.testing.assert_array_equal(found.counts, codes.counts)
    np.testing.assert_array_equal(found.atoms, codes.atoms)
    np.testing.assert_array_equal(found.levels, codes.levels)
    np.testing.assert_array_equal(residual, rest[1])


def test_a_set_of_atoms_has_the_probability_that_its_model_says() -> None:
    log_odds = np.log(np.array([0.1, 0.5, 2.0, 0.01, 1.0]))
    model = IndexModel(log_odds)
    for size in range(6):
        sets = list(itertools.combinations(range(5), size))
        codes = Quantized(
            np.full(len(sets), size),
            np.array(sets, dtype=np.int64).ravel(),
            np.ones(size * len(sets), dtype=np.int64),
            5,
        )
        odds = np.array([np.exp(log_odds[list(one)].sum()) for one in sets])
        np.testing.assert_allclose(model.lengths(codes), -np.log2(odds / odds.sum()), atol=1e-9)
        assert model.suffix_sums(5)[0, size] == pytest.approx(np.log(odds.sum()))


def test_histograms_are_probabilities_and_leave_out_what_cannot_be() -> None:
    random = np.random.default_rng(1)
    symbols = np.rint(random.laplace(size=400) * 5).astype(np.int64)
    symbols = symbols[symbols != 0]
    found = Histograms.fit(symbols, np.zeros(len(symbols), dtype=np.int64), 3, zero=False)
    np.testing.assert_allclose(found.table.sum(axis=1), 1)
    assert np.all(found.table[:, 255] == 0)
    assert np.all(np.delete(found.table, 255, axis=1) > 0)


def test_uniform_atoms_cost_the_binomial() -> None:
    random = np.random.default_rng(2)
    n, m, k = 4000, 64, 5
    atoms = np.argsort(random.random((n, m)), axis=1)[:, :k].astype(np.int32)
    codes = quantize(AtomCodes(atoms, np.ones((n, k), np.float32), m), 1.0)
    from scipy.special import comb

    bits = IndexModel.fit(codes).lengths(codes).mean()
    assert bits == pytest.approx(np.log2(comb(m, k)), abs=0.05)


def test_water_filling_on_equal_and_on_unequal_variances() -> None:
    assert water_filling(np.full(8, 4.0), 8.0) == pytest.approx(8 * 0.5 * np.log2(4))
    # the level is 1: the small component is dropped whole, the large one keeps 1
    assert water_filling(np.array([16.0, 0.5]), 1.5) == pytest.approx(0.5 * np.log2(16))
    assert water_filling(np.array([1.0, 1.0]), 2.0) == 0.0


def vectors_of(learn: np.ndarray, score: np.ndarray) -> Vectors:
    return Vectors.of(learn, score, np.arange(len(learn)) * 8 // len(learn))


def planted(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return activations that are sums of 4 of 200 directions in 32 dimensions, and the directions."""
    rows = np.random.default_rng(7).standard_normal((200, 32)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    random = np.random.default_rng(seed)
    x = np.zeros((n, 32), dtype=np.float32)
    for _ in range(4):
        size = 1 + random.random(n).astype(np.float32)
        x += size[:, None] * rows[random.integers(0, 200, n)]
    return x, rows


def bits_at(
    rows: np.ndarray, x: list[np.ndarray], distortion: float, spec: BaselinesSpec = SPEC
) -> TokenBits:
    dictionary = Dictionary("any", rows, np.zeros(rows.shape[1], np.float32), rows.size)
    coded = CodedVectors.pursued(dictionary, vectors_of(*x), spec.most_atoms)
    return token_bits(dictionary, coded, distortion, spec)


def test_planted_sparsity_is_cheap_with_its_own_directions_and_with_no_others() -> None:
    learn, rows = planted(2500, 1)
    score, _ = planted(1500, 2)
    other = np.random.default_rng(9).standard_normal(rows.shape).astype(np.float32)
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    none = np.zeros((0, 32), np.float32)
    own, wrong, dense = (
        bits_at(one, [learn, score], 0.01).parts.sum(axis=0).mean() for one in (rows, other, none)
    )
    assert own < dense - 12
    assert wrong > dense - 3
    # a Gaussian with the same covariance has no sparse structure to find
    random = np.random.default_rng(3)
    root = np.linalg.cholesky(np.cov(learn.T) + 1e-6 * np.eye(32)).T
    noise = [(random.standard_normal((n, 32)) @ root).astype(np.float32) for n in (2500, 1500)]
    on_noise, dense_noise = (
        bits_at(one, noise, 0.01).parts.sum(axis=0).mean() for one in (rows, none)
    )
    assert on_noise > dense_noise - 3


def test_every_method_reaches_the_distortion_and_dense_code_nears_the_bound() -> None:
    random = np.random.default_rng(4)
    sizes = np.sqrt(np.geomspace(8, 0.05, 16))
    x = [(random.standard_normal((n, 16)) * sizes).astype(np.float32) for n in (6000, 3000)]
    for distortion in (0.3, 0.05):
        found = bits_at(np.zeros((0, 16), np.float32), x, distortion)
        assert found.reached == pytest.approx(distortion, rel=1e-3)
        bound = water_filling(sizes**2, distortion * float((sizes**2).sum()))
        # a scalar quantizer loses at most .26 bits for each component that it codes
        assert bound < found.parts.sum(axis=0).mean() < bound + 0.26 * 16
        # together, tokens miss nothing of the distortion, so that adjusting moves no total
        assert found.adjusted.sum() == pytest.approx(found.parts.sum(), rel=1e-9)
        # 64 tokens: the last word of 32 bits weighs
        assert found.coder_ratio == pytest.approx(1, abs=0.05) or np.isnan(found.coder_ratio)


def test_adjusted_bits_follow_the_curve_to_first_order() -> None:
    learn, rows = planted(2500, 1)
    score, _ = planted(1500, 2)
    # with a third of the directions, so that there is much left to code
    near, far = (bits_at(rows[:60], [learn, score], d) for d in (0.05, 0.055))
    moved = near.slope * (0.055 - 0.05) * near.energy.sum()
    saved = near.parts.sum() - far.parts.sum()
    assert moved == pytest.approx(saved, rel=0.25)


def test_the_bits_of_a_dictionary() -> None:
    rows = np.eye(4, dtype=np.float32)
    known = Dictionary("axes", rows, np.zeros(4, np.float32), 0)
    sent = Dictionary("learned", rows, np.zeros(4, np.float32), rows.size)
    assert dictionary_bits(sent) - dictionary_bits(known) == 16 * 16
    assert dictionary_bits(known) == 16 * (16 + 8)


def test_without_constriction_lengths_stay_and_the_coder_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learn, rows = planted(600, 1)
    score, _ = planted(300, 2)
    before = bits_at(rows, [learn, score], 0.01)
    monkeypatch.setitem(sys.modules, "constriction", None)
    after = bits_at(rows, [learn, score], 0.01)
    np.testing.assert_array_equal(before.parts, after.parts)
    assert np.isnan(after.coder_ratio)
    codes = quantize(some_codes(50, 20, 3, 0), 0.5)
    rest = np.zeros((50, 2), dtype=np.int64)
    with pytest.raises(NotEstimable, match="sae-placebo\\[baselines\\]"):
        encode(CodeModel.fit(codes, rest), codes, rest)


@pytest.mark.parametrize("distortion", [0.2, 0.02])
def test_settings_are_the_best_of_the_whole_grid(distortion: float) -> None:
    learn, rows = planted(1500, 1)
    wrong = np.random.default_rng(9).standard_normal(rows.shape).astype(np.float32)
    wrong /= np.linalg.norm(wrong, axis=1, keepdims=True)
    vectors = vectors_of(learn, learn)
    tokens = Choosing.of(learn, vectors.documents, distortion * vectors.choose_energy)
    assert not np.isin(vectors.documents[tokens.learn], vectors.documents[tokens.judge]).any()
    for directions in (rows, wrong):
        dictionary = Dictionary("any", directions, np.zeros(32, np.float32), 0)
        coder = Pursuit(learn, directions)
        found = choose(dictionary, tokens, coder, 32, 32, 2)
        grid = {
            (k, j): tokens.bits(dictionary, coder(k), tokens.even_step * 2 ** (j / 2))
            for k in (11, 8, 6, 4, 3, 2, 1)
            for j in range(-3, 9)
        }
        # a shorter code elsewhere on the grid is shorter by next to nothing
        assert found.bits < min(grid.values()) + 0.3
        if directions is rows:  # 4 are planted, a fifth makes up for one that was missed
            assert 3 <= found.n_atoms <= 6
            assert found.bits == pytest.approx(grid[found.n_atoms, round(2 * np.log2(found.step))])


def test_a_setting_on_the_edge_of_the_grid_is_not_estimable() -> None:
    learn, rows = planted(1500, 1)
    with pytest.raises(NotEstimable, match=r"2 atoms.*edge.*most_atoms"):
        bits_at(rows, [learn, learn], 0.02, SPEC.model_copy(update={"most_atoms": 2}))
    # where a token cannot have more, it is no edge
    few = bits_at(rows[:1], [learn, learn], 0.02)
    assert few.settings.n_atoms in (0, 1)
    assert bits_at(np.zeros((0, 32), np.float32), [learn, learn], 0.02).settings.n_atoms == 0
