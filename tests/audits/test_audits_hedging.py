from __future__ import annotations

import numpy as np
import pytest
import torch

from planted_latents import WIDTH, assert_same, case_of, named, rescaled
from sae_placebo.audits import hedging
from sae_placebo.audits.base import AuditSpec, Case
from sae_placebo.core.errors import NotEstimable
from sae_placebo.saes import SAE

N = 320 * (WIDTH - 1)


def _case(mixed: bool) -> Case:
    """Eight parents have latents, their eight correlated children none; mixed rows hold the child too."""
    draw = np.random.default_rng(0)
    atoms = np.linalg.qr(draw.normal(size=(32, 32)))[0][:16]
    parents = draw.random((N, 8)) < 0.1
    children = parents & (draw.random((N, 8)) < 0.5)
    x = parents @ atoms[:8] + children @ atoms[8:]
    rows = atoms[:8] + (0.5 * atoms[8:] if mixed else 0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    codes = np.maximum(x @ rows.T - 0.2, 0)
    spec = AuditSpec(hedging_latents=8, hedging_tokens=10_000)
    case = case_of(x, codes, rows, spec=spec, b_enc=np.full(8, -0.2), W_enc=rows.T)
    # the children can only be given up where there is room for them
    assert case.reading.sae.d_in // 4 == 8
    return case


def _spec_k(case: Case, k: int) -> Case:
    from dataclasses import replace

    from sae_placebo.saes.topk import TopKSpec

    sae = SAE(TopKSpec(d_sae=case.reading.d_sae, k=k), case.reading.sae.params)
    return replace(case, reading=replace(case.reading, sae=sae))


def test_rows_that_hedge_move_along_the_new_latents() -> None:
    found = hedging.run(_spec_k(_case(mixed=True), 3))
    rate, projection = named(found, "hedging"), named(found, "projection")
    assert named(found, "new_used").value >= 0.5
    assert projection.value > projection.null_high
    assert rate.value > rate.null_high
    share = named(found, "direction_share")
    assert share.null == pytest.approx(0.5, abs=0.05)
    assert share.low < share.value < share.high


def test_new_latents_that_are_frozen_out_give_no_hedging() -> None:
    case = _spec_k(_case(mixed=False), 3)
    living = np.arange(8)
    extended = hedging.extended(case.reading.sae, 4, living, 0)
    assert extended.d_sae == 12
    x = case.reading.activations[:64]
    extended.params["b_enc"][8:] = -1e6
    before, after = case.reading.sae.encode(x).dense(), extended.encode(x).dense()
    torch.testing.assert_close(after[:, :8], before)
    torch.testing.assert_close(
        extended.params["W_dec"][8:].norm(dim=1), torch.ones(4), atol=1e-5, rtol=0
    )


def test_a_random_subspace_is_exactly_the_null() -> None:
    draw = np.random.default_rng(3)
    rows = draw.normal(size=(200, 32)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    change = 0.05 * draw.normal(size=(200, 32)).astype(np.float32)
    span = np.linalg.qr(draw.normal(size=(32, 8)))[0].astype(np.float32)
    continued = hedging.Continued(change, rows, span, 1.0)
    findings, _ = hedging._measured(continued, 0, 200, np.arange(200))
    by_name = {f.name: f for f in findings}
    projection = by_name["projection"]
    assert projection.null_low - 0.02 <= projection.value <= projection.null_high + 0.02
    assert by_name["hedging"].value < 0.05
    along = hedging.Continued((change @ span) @ span.T, rows, span, 1.0)
    findings, _ = hedging._measured(along, 0, 200, np.arange(200))
    assert findings[2].value == pytest.approx(1, abs=1e-5)
    r, r0 = findings[1].value, findings[1].null
    assert findings[0].value == pytest.approx((r - r0) / (1 - r0))


def test_lengths_of_decoder_rows_do_not_matter() -> None:
    case = _spec_k(_case(mixed=True), 3)
    assert_same(hedging.run(case), hedging.run(rescaled(case)), tolerance=1e-4)


def test_too_few_dimensions_are_refused() -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(40 * (WIDTH - 1), 6))
    with pytest.raises(NotEstimable, match="8 dimensions or more"):
        hedging.run(case_of(x, np.maximum(x, 0), np.eye(6)))
