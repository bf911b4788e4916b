"""Flags: planted bad tokens are found without the model, and flags that say 30% are right 30% of the time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from planted_errors import case_of, named, noise, tiny
from sae_placebo.audits.base import AUDITS
from sae_placebo.audits.untrusted_tokens import COLUMNS, chance_of, crossed, known
from sae_placebo.stats.ranking import auroc


def test_logistic_regression_finds_planted_weights() -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((20_000, 3)) * [1, 10, 1] + [0, 3, 0]
    truth = 1 / (1 + np.exp(-(-1 + 1.5 * x[:, 0] - 0.1 * (x[:, 1] - 3))))
    fitted = chance_of(x, random.random(20_000) < truth)(x)
    assert np.abs(fitted - truth).mean() < 0.01
    constant = chance_of(np.ones((50, 1)), np.arange(50) < 5)(np.ones((2, 1)))
    assert constant == pytest.approx([0.1, 0.1], abs=0.01)


def test_planted_bad_tokens_are_flagged_and_flags_are_calibrated() -> None:
    subject = tiny(80, 24)
    random = torch.Generator().manual_seed(1)
    size = torch.rand(len(subject.activations), 1, generator=random) ** 2
    case = case_of(subject, noise(subject) * 3 * size)
    found = AUDITS["untrusted_tokens"].run(case)
    flag = found.tokens["flag"]
    assert flag.shape == (case.n_tokens,)
    assert ((flag >= 0) & (flag <= 1)).all()
    one = named(found.findings, "auroc")
    assert one.low > 0.8
    assert named(found.findings, "auroc_length").value == pytest.approx(one.null)
    error = named(found.findings, "calibration_error")
    assert error.value < 2 * error.null_high
    share = named(found.findings, "cost_flagged")
    assert share.low > 1.5 * share.null
    assert share.value <= named(found.findings, "cost_worst").value
    points = [point for point in found.findings if point.name == "reliability"]
    assert len(points) == 5
    assert points[-1].value > points[0].value
    assert {q.name for q in found.findings} == {
        q.name for q in AUDITS["untrusted_tokens"].quantities
    }


def test_costs_that_nothing_foretells_give_chance() -> None:
    subject = tiny(80, 24)
    case = case_of(subject, noise(subject))
    tokens = np.arange(case.n_tokens)
    nats = np.random.default_rng(0).exponential(size=case.n_tokens)
    flag, alone, worst = crossed(case, tokens, nats)
    assert auroc(flag, worst) == pytest.approx(0.5, abs=0.08)
    assert auroc(alone, worst) == pytest.approx(0.5, abs=0.08)
    assert worst.mean() == pytest.approx(0.1, abs=0.03)


def test_no_flag_is_fitted_on_its_own_document() -> None:
    subject = tiny(80, 24)
    case = case_of(subject, noise(subject))
    tokens = np.arange(case.n_tokens)
    nats = np.random.default_rng(0).exponential(size=case.n_tokens)
    fit, score = case.halves()
    before = crossed(case, tokens, nats)[0]
    nats[score] = nats[score][::-1]
    after = crossed(case, tokens, nats)[0]
    # flags of one half come of the other's costs, which have not changed
    assert np.allclose(before[score], after[score])
    assert not np.allclose(before[fit], after[fit])


def test_what_is_known_of_tokens() -> None:
    subject = tiny(80, 24)
    case = case_of(subject, noise(subject))
    columns = known(case, np.arange(900))
    assert columns.shape == (case.n_tokens, len(COLUMNS))
    assert np.isfinite(columns).all()
    error = case.error.norm(dim=1).double().log().numpy()
    assert np.allclose(columns[:, 0], error, atol=1e-5)
    assert np.allclose(np.expm1(columns[:, 4]), np.diff(case.reading.codes.indptr))
