from __future__ import annotations

import numpy as np
import pytest

from planted_latents import WIDTH, assert_same, case_of, named, planted, rescaled
from sae_placebo.audits import label_information
from sae_placebo.audits.base import Case
from sae_placebo.audits.probes import areas, best_f1, fit_probes


def _case(missed: bool) -> Case:
    """Label 0 is atom 0, label 1 is atom 1; the SAE has no latent for atom 0 where it is missed."""
    draw = np.random.default_rng(0)
    n = 160 * (WIDTH - 1)
    atoms = np.linalg.qr(draw.normal(size=(24, 24)))[0]
    codes = (draw.random((n, 24)) < 0.1) * draw.uniform(0.5, 1.5, size=(n, 24))
    codes[:, :2] = draw.random((n, 2)) < 0.2
    kept = codes.copy()
    kept[:, 0] *= not missed
    x = codes @ atoms + 0.05 * draw.normal(size=(n, 24))
    return case_of(x, kept, atoms, labels=codes[:, :2] > 0)


def test_a_label_without_a_latent_is_in_the_error() -> None:
    found = label_information.run(_case(missed=True))
    assert named(found, "error_share/label 0").value > 0.95
    assert named(found, "lost_share/label 0").value > 0.95
    assert abs(named(found, "error_share/label 1").value) < 0.05
    assert abs(named(found, "lost_share/label 1").value) < 0.05
    assert named(found, "error_share").value == pytest.approx(0.5, abs=0.05)
    assert named(found, "auroc_error").value == pytest.approx(0.75, abs=0.03)


def test_a_label_with_a_latent_is_not_in_the_error() -> None:
    found = label_information.run(_case(missed=False))
    bits = named(found, "bits_activation")
    entropy = -(0.2 * np.log2(0.2) + 0.8 * np.log2(0.8))
    assert bits.value == pytest.approx(entropy, abs=0.05)
    assert bits.low <= bits.value <= bits.high
    accuracy = named(found, "accuracy_activation")
    assert accuracy.value > 0.99
    assert accuracy.low <= accuracy.value <= accuracy.high
    assert accuracy.null_low < 0.5 < accuracy.null_high
    assert abs(named(found, "error_share").value) < 0.03
    for source in ("error", "reconstruction", "activation"):
        assert named(found, f"auroc_{source}").null == pytest.approx(0.5, abs=0.05)
        assert abs(named(found, f"bits_{source}").null) < 0.03


def test_probes_reach_the_maximum_of_the_likelihood() -> None:
    from sklearn.linear_model import LogisticRegression

    draw = np.random.default_rng(1)
    x = (draw.normal(size=(4_000, 8)) * np.arange(1, 9) ** 2 + 3).astype(np.float32)
    weights = draw.normal(size=(8, 3)) / np.arange(1, 9)[:, None] ** 2
    y = draw.random((4_000, 3)) < 1 / (1 + np.exp(-(x - 3) @ weights * 2 + np.array([0, 2, 4])))
    found = fit_probes(x, y)
    for task in range(3):
        # the same ridge: nearly white features, 1e-4 of the mean loss
        exact = LogisticRegression(C=1 / (4_000 * 1e-4), max_iter=2_000).fit(
            (x - 3) / x.std(0), y[:, task]
        )
        logits = exact.decision_function((x - 3) / x.std(0))
        assert np.abs(found.logits(x)[:, task] - logits).mean() < 0.05


def test_areas_and_thresholds_have_their_hand_computed_values() -> None:
    scores = np.array([[3.0], [2.0], [2.0], [1.0]])
    yes = np.array([[True], [True], [False], [False]])
    assert areas(scores, yes)[0] == pytest.approx(3.5 / 4)
    assert best_f1(scores[:, 0], yes[:, 0]) == (pytest.approx(0.8), 1.5)


def test_lengths_of_decoder_rows_do_not_matter() -> None:
    truth = planted(n_rows=80)
    case = case_of(truth.x, truth.codes * 0.8, truth.atoms, labels=truth.codes[:, :2] > 0)
    assert_same(label_information.run(case), label_information.run(rescaled(case)), tolerance=2e-3)
