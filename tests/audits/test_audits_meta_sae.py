from __future__ import annotations

import numpy as np
import pytest

from planted_latents import WIDTH, assert_same, case_of, named, rescaled
from sae_placebo.audits import meta_sae
from sae_placebo.audits.base import AuditSpec, Case
from sae_placebo.core.errors import NotEstimable

ROWS, D_IN, PARTS, STEPS = 16_384, 768, 768, 3_840
"""The published size: 21 rows per meta-latent, which are as many as dimensions; 60 epochs."""


def _power_law(draw: np.random.Generator, n: int, d_in: int) -> np.ndarray:
    return draw.normal(size=(n, d_in)) * np.arange(1, d_in + 1) ** -0.5


def _sums_of_four(draw: np.random.Generator, n: int, d_in: int, parts: int) -> np.ndarray:
    dictionary = draw.normal(size=(parts, d_in))
    dictionary /= np.linalg.norm(dictionary, axis=1, keepdims=True)
    rows = np.zeros((n, d_in))
    for row in rows:
        chosen = draw.choice(parts, 4, replace=False)
        row += draw.uniform(0.5, 1.5, size=4) @ dictionary[chosen]
    return rows


def _explained(rows: np.ndarray, steps: int) -> float:
    parts = meta_sae.meta_explained(rows.astype(np.float32), steps, 0)
    return float(1 - parts[:, 0].sum() / parts[:, 1].sum())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "reached", "within"),
    [("isotropic", 0.12, 0.03), ("power law", 0.41, 0.05), ("sums of four", 0.95, 0.05)],
)
def test_what_random_and_composed_rows_reach(kind: str, reached: float, within: float) -> None:
    draw = np.random.default_rng(0)
    rows = {
        "isotropic": lambda: draw.normal(size=(ROWS, D_IN)),
        "power law": lambda: _power_law(draw, ROWS, D_IN),
        "sums of four": lambda: _sums_of_four(draw, ROWS, D_IN, PARTS),
    }[kind]()
    assert _explained(rows, STEPS) == pytest.approx(reached, abs=within)


def _case(rows: np.ndarray, steps: int) -> Case:
    n = 40 * (WIDTH - 1)
    codes = np.zeros((n, len(rows)))
    codes[np.arange(len(rows)) % n, np.arange(len(rows))] = 1
    return case_of(np.zeros((n, rows.shape[1])), codes, rows, spec=AuditSpec(meta_steps=steps))


def test_only_the_matched_null_sees_through_anisotropy() -> None:
    draw = np.random.default_rng(1)
    found = meta_sae.run(_case(_power_law(draw, 1_344, 64), 150))
    assert named(found, "fve_isotropic").value > named(found, "fve_isotropic").null + 0.1
    assert abs(named(found, "excess").value) < 0.06
    composed = meta_sae.run(_case(_sums_of_four(draw, 1_344, 64, 64), 300))
    assert named(composed, "excess").low > 0.3


def test_lengths_of_decoder_rows_do_not_matter() -> None:
    draw = np.random.default_rng(2)
    case = _case(_power_law(draw, 400, 32), 20)
    assert_same(meta_sae.run(case), meta_sae.run(rescaled(case)))


def test_too_few_rows_are_refused() -> None:
    draw = np.random.default_rng(3)
    with pytest.raises(NotEstimable, match="336 or more"):
        meta_sae.run(_case(_power_law(draw, 100, 32), 20))
