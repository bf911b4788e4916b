from __future__ import annotations

import math

import numpy as np
import pytest

from planted_latents import WIDTH, Planted, assert_same, case_of, named, planted, rescaled
from sae_placebo.audits import latent_geometry
from sae_placebo.audits.overlap import random_overlap


def _with(truth: Planted, codes: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([truth.codes, codes], 1), np.concatenate([truth.atoms, rows], 0)


def test_dense_latents_are_told_apart() -> None:
    truth = planted(d_in=64, n_atoms=60)
    n, draw = len(truth.codes), np.random.default_rng(1)
    signed = draw.normal(size=n)
    positions = np.tile(np.arange(1, WIDTH), n // (WIDTH - 1))
    coin = (draw.random((n, 2)) < 0.4).astype(float)
    codes = np.stack(
        [
            np.maximum(signed, 0),
            np.maximum(-signed, 0),
            (positions < 9) & (draw.random(n) < 0.9),
            coin[:, 0],
            coin[:, 1],
        ],
        1,
    )
    rows = draw.normal(size=(5, 64))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[1] = -rows[0]
    codes[:, 2:] *= [0.1, 9, 1]
    codes, decoder = _with(truth, codes, rows)
    x = codes @ decoder
    found = latent_geometry.run(case_of(x, codes, decoder))
    assert named(found, "dense_share").value == pytest.approx(5 / 65)
    assert named(found, "dense_antipodal").value == pytest.approx(2 / 5)
    assert named(found, "dense_position").value == pytest.approx(1 / 5)
    assert named(found, "dense_pc").value >= 1 / 5
    assert found.latents["antipodality"][60] == pytest.approx(1, abs=1e-5)
    assert found.latents["pc_share"][63] > 0.9
    assert named(found, "dense_antipodal").null == 0


def test_dead_latents_have_the_rule_of_three() -> None:
    truth = planted()
    codes = truth.codes.copy()
    codes[:, :12] = 0
    found = latent_geometry.run(case_of(truth.x, codes, truth.atoms))
    dead, bound = named(found, "dead_share"), named(found, "dead_rate_bound")
    assert dead.value == 0.25
    assert dead.low < 0.25 < dead.high
    assert dead.null == 0
    assert bound.value == pytest.approx(3 / len(codes))
    # the chance of silence at that rate is a twentieth
    assert (1 - bound.value) ** len(codes) == pytest.approx(0.05, abs=0.001)


def test_rare_latents_are_no_sign_of_death() -> None:
    draw = np.random.default_rng(2)
    n = 160 * (WIDTH - 1)
    codes = (draw.random((n, 2_000)) < 1 / n).astype(float)
    rows = draw.normal(size=(2_000, 24))
    found = latent_geometry.run(case_of(codes @ rows, codes, rows))
    dead = named(found, "dead_share")
    assert dead.value == pytest.approx(math.exp(-1), abs=0.04)
    assert dead.null == pytest.approx(dead.value, abs=0.06)


def test_overlap_of_random_rows_is_the_null_and_mixing_exceeds_it() -> None:
    truth = planted(d_in=32, n_atoms=400, rate=0.01)
    assert random_overlap(768) == pytest.approx(math.sqrt(2 / (math.pi * 768)), rel=1e-3)
    one = named(latent_geometry.run(case_of(truth.x, truth.codes, truth.atoms)), "c_dec")
    assert one.value == pytest.approx(one.null, abs=0.003)
    mixed = truth.atoms + 0.7 * np.roll(truth.atoms, 1, axis=0) + 0.7 * truth.atoms[:1]
    two = latent_geometry.run(case_of(truth.x, truth.codes, mixed))
    assert named(two, "c_dec").value > one.value + 0.03
    # a common direction is what the matched null allows for
    assert named(two, "c_dec_matched").null > one.null + 0.03


def test_projections_behind_l0_are_larger_on_mixed_rows() -> None:
    draw = np.random.default_rng(4)
    atoms = np.linalg.qr(draw.normal(size=(40, 40)))[0]
    codes = (draw.random((160 * (WIDTH - 1), 40)) < 0.1) * 1.0
    x = codes @ atoms
    mixed = atoms + 0.5 * np.roll(atoms, 1, axis=0) + 0.5 * np.roll(atoms, 2, axis=0)
    clean = named(latent_geometry.run(case_of(x, codes, atoms)), "s_n", at=8.0)
    wrong = named(latent_geometry.run(case_of(x, codes, mixed)), "s_n", at=8.0)
    assert abs(clean.value) < 0.02
    assert wrong.value > clean.value + 0.1
    assert clean.low <= clean.value <= clean.high


def test_interference_is_that_of_the_shuffled_codes_when_latents_are_independent() -> None:
    truth = planted(n_rows=800)
    found = named(
        latent_geometry.run(case_of(truth.x, truth.codes, truth.atoms)), "interference_share"
    )
    assert found.value == pytest.approx(found.null, abs=0.02)
    codes = truth.codes.copy()
    codes[:, 1] = codes[:, 0]
    rows = truth.atoms.copy()
    rows[1] = rows[0]
    twins = latent_geometry.run(case_of(codes @ rows, codes, rows))
    share, pairs = named(twins, "interference_share"), named(twins, "interference_pairs")
    assert share.low > share.null + 0.005
    assert pairs.low > pairs.null + 0.01
    assert twins.latents["interference"][0] > 0.9


def test_interference_of_a_pair_has_its_closed_form() -> None:
    draw = np.random.default_rng(0)
    n, cosine = 160 * (WIDTH - 1), 0.6
    on = draw.random(n) < 0.2
    rows = np.array([[1.0, 0, 0, 0], [cosine, 0.8, 0, 0]])
    codes = np.stack([on, on], 1).astype(float)
    found = latent_geometry.run(case_of(codes @ rows, codes, rows))
    assert named(found, "interference_share").value == pytest.approx(
        2 * cosine / (2 + 2 * cosine), abs=1e-5
    )
    assert found.latents["interference"] == pytest.approx([cosine, cosine], abs=1e-5)


def test_lengths_of_decoder_rows_do_not_matter() -> None:
    truth = planted()
    case = case_of(truth.x, truth.codes, truth.atoms)
    assert_same(latent_geometry.run(case), latent_geometry.run(rescaled(case)))
