"""The curve along the error: its ends and its width are known where the curve is."""

from __future__ import annotations

import numpy as np
import pytest

from planted_errors import case_of, named, noise, tiny
from sae_placebo.audits.base import AUDITS
from sae_placebo.audits.interpolation import curves, lengths_of, width
from sae_placebo.audits.random_pushes import Pushes, chosen, costs, ordinary


def test_width_of_curves_in_closed_form() -> None:
    places = lengths_of(6)
    assert places[0] == pytest.approx(0.4)
    assert places[-1] == pytest.approx(2)
    quadratic, late = places**2, np.array([0, 0, 0, 0, 1.0])
    early = np.array([1.0, 1, 1, 1, 1])
    found = width(np.stack([quadratic, late, early, 0 * early], axis=1), places)
    assert found[0] == pytest.approx(np.sqrt(2))
    assert 1.6 < found[1] < 2
    assert found[2] < 0.4
    assert np.isnan(found[3])


def test_the_curve_passes_through_the_reconstruction() -> None:
    subject = tiny()
    case = case_of(subject, noise(subject))
    tokens = chosen(case, 100, ordinary(case))
    error, mixture = curves(case, tokens)
    at_one = int(np.flatnonzero(np.isclose(lengths_of(case.spec.steps), 1))[0])
    nats = costs(case, tokens, Pushes(case).draw("error", tokens, "")[:, None])[:, 0]
    assert np.allclose(error[:, at_one], nats, rtol=1e-4, atol=1e-7)
    assert (np.diff(error.mean(0)) > 0).all()
    assert error.shape == mixture.shape


def test_a_mixture_in_place_of_the_error_gives_the_mixtures_curve() -> None:
    subject = tiny()
    first = case_of(subject, noise(subject))
    error = -Pushes(first).draw("covariance", np.arange(first.n_tokens), "the error itself")
    findings = AUDITS["interpolation"].run(case_of(subject, error)).findings
    ratios = [one for one in findings if one.name == "curve_ratio"]
    assert len(ratios) == 4
    assert all(one.low <= 1 <= one.high for one in ratios)
    gain = named(findings, "plateau_gain")
    assert gain.low <= 0 <= gain.high
    assert [one.at for one in findings if one.name == "curve"] == pytest.approx([0, 0.5, 1, 1.5, 2])
    assert {one.name for one in findings} == {
        one.name for one in AUDITS["interpolation"].quantities
    }


def test_no_error_has_no_plateau_and_a_reason() -> None:
    subject = tiny(8, 12)
    findings = AUDITS["interpolation"].run(case_of(subject, 0 * subject.activations)).findings
    assert named(findings, "plateau").reason
