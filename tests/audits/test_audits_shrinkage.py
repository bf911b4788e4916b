from __future__ import annotations

import numpy as np
import pytest

from planted_latents import WIDTH, assert_same, case_of, named, planted, rescaled
from sae_placebo.audits import shrinkage
from sae_placebo.core.errors import NotEstimable
from sae_placebo.lab.experiments.base import LabTraining, fit_on
from sae_placebo.lab.generators.high_expansion import HighExpansionSpec
from sae_placebo.saes import ReLUSpec
from sae_placebo.saes.training_spec import TrainingSpec


def test_soft_threshold_of_one_feature_has_its_closed_form() -> None:
    """A single-feature L1 SAE with r = 1, lambda = 1 gives f = 1/2, so gamma = 1/2 and s = 2."""
    n = 128 * (WIDTH - 1)
    active = np.random.default_rng(0).random(n) < 0.3
    atom = np.zeros((1, 6))
    atom[0, 2] = 1
    r, lam = 1.0, 1.0
    code = active[:, None] * max(r - lam / 2, 0)
    found = shrinkage.run(case_of(r * active[:, None] * atom, code, atom))
    assert named(found, "gamma_mean").value == pytest.approx(0.5, abs=1e-6)
    assert named(found, "gamma_b_dec").value == pytest.approx(0.5, abs=1e-6)
    assert found.latents["scale"][0] == pytest.approx(r / (r - lam / 2), abs=1e-5)


def test_a_trained_sae_of_one_feature_shrinks_by_half_the_penalty() -> None:
    generator = HighExpansionSpec(d_in=8, n_features=1, l0=0.5, sigma=0)
    training = TrainingSpec(batch_tokens=256, learning_rate=5e-3, decay_share=0.5, beta2=0.999)
    lab = LabTraining(steps=600, training=training, bias="none")
    spec = ReLUSpec(d_sae=1, coefficient=1.0, warmup_share=0.2)
    (trained,) = fit_on(generator, {"l1": spec}, lab, (0,)).values()
    draw = generator.held_out(20 * (WIDTH - 1))
    codes, rows = trained.sae.encode(draw.x).dense().numpy(), trained.sae.params["W_dec"].numpy()
    active = draw.codes.dense()[:, 0].numpy() > 0
    assert codes[active] * np.linalg.norm(rows) == pytest.approx(0.5, abs=0.01)
    found = shrinkage.run(case_of(draw.x.numpy(), codes, rows))
    assert named(found, "gamma_b_dec").value == pytest.approx(0.5, abs=0.01)


def test_an_unbiased_sae_that_misses_much_has_gamma_1_and_a_short_reconstruction() -> None:
    truth = planted()
    kept = truth.codes.copy()
    kept[:, 24:] = 0
    orthogonal = np.linalg.qr(np.random.default_rng(0).normal(size=(48, 48)))[0]
    case = case_of(truth.codes @ orthogonal, kept, orthogonal)
    found = shrinkage.run(case)
    gamma, length = named(found, "gamma_mean"), named(found, "length_ratio")
    assert gamma.low < 1 < gamma.high
    assert abs(gamma.value - 1) < 0.01
    assert length.value < 0.8
    assert length.value == pytest.approx(length.null, abs=0.01)


def test_scale_falls_with_strength_under_a_constant_subtraction() -> None:
    truth = planted(n_rows=400)
    orthogonal = np.linalg.qr(np.random.default_rng(0).normal(size=(48, 48)))[0]
    x = truth.codes @ orthogonal
    found = shrinkage.run(case_of(x, np.maximum(truth.codes - 0.25, 0), orthogonal))
    curve = [f for f in found.findings if f.name == "scale_by_strength"]
    values = [f.value for f in sorted(curve, key=lambda f: f.at)]
    assert values[0] > 1.6
    assert values[-1] < 1.3
    assert values == sorted(values, reverse=True)
    assert all(abs(f.null - 1) < 0.05 for f in curve)
    assert named(found, "share_shrunk").value == 1
    assert named(found, "gamma_b_dec").value < 0.9


def test_intervals_of_scales_hold_where_there_is_nothing_to_find() -> None:
    truth = planted(n_rows=400)
    draw = np.random.default_rng(5)
    x = truth.x + 0.3 * draw.normal(size=(len(truth.codes), 24))
    found = shrinkage.run(case_of(x, truth.codes, truth.atoms))
    outside = named(found, "share_shrunk").value + named(found, "share_overshot").value
    assert outside <= 0.15
    assert abs(named(found, "scale_median").value - 1) < 0.01


def test_lengths_of_decoder_rows_do_not_matter() -> None:
    truth = planted()
    case = case_of(truth.x, np.maximum(truth.codes - 0.2, 0), truth.atoms)
    assert_same(shrinkage.run(case), shrinkage.run(rescaled(case)))


def test_a_silent_sae_says_so() -> None:
    truth = planted()
    with pytest.raises(NotEstimable, match="no latent is active"):
        shrinkage.run(case_of(truth.x, np.zeros_like(truth.codes), truth.atoms))
