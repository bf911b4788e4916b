"""The screen against exact Fisher information, explicit nulls, and directions whose use is planted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from scipy.stats import kstest

from architectures import build
from planted_subjects import random_directions, subject_of, tiny_subject
from sae_placebo.causal.use.base import Directions, Subject, pseudo_latents
from sae_placebo.causal.use.gradients import drawn_rows, sampled_gradients
from sae_placebo.causal.use.matched import MatchedSums, shared_nulls
from sae_placebo.causal.use.screen import ScreenSpec, screen

SPEC = ScreenSpec(samples=2, nulls=199)


def _exact_fisher(subject: Subject, row: int, position: int) -> torch.Tensor:
    """Return sum over predictions of J' (diag p - p p') J, J the Jacobian at one token."""
    behind = subject.downstream
    clean = subject.clean(row)
    ids, entering = clean.token_ids[None], clean.entering[None]

    def logits(x: torch.Tensor) -> Any:
        delta = torch.zeros_like(clean.site)[None].index_put(
            (torch.tensor([0]), torch.tensor([position])), x[None]
        )
        return behind.logits(ids, entering, delta)[0]

    jacobian = torch.autograd.functional.jacobian(
        logits, torch.zeros(clean.site.shape[1]), vectorize=True
    )
    p = clean.log_probs.exp()
    centered = jacobian - (p[..., None] * jacobian).sum(1, keepdim=True)
    return torch.einsum("tv,tvi,tvj->ij", p, centered, centered)


def test_squared_gradients_estimate_fisher_information() -> None:
    subject = tiny_subject("gpt2", "resid_post.1")
    row = drawn_rows(subject, 15, 0)
    (found,) = sampled_gradients(subject, row, 600, 0)
    at = 4
    position = int(subject.tokens.places[found.tokens[at], 1])
    exact = _exact_fisher(subject, int(row[0]), position)
    estimate = torch.einsum("si,sj->ij", found.sampled[:, at], found.sampled[:, at]) / 600
    assert torch.trace(estimate) == pytest.approx(float(torch.trace(exact)), rel=0.1)
    assert (estimate - exact).norm() < 0.25 * exact.norm()


def test_nulls_are_those_of_explicit_directions() -> None:
    subject = tiny_subject()
    directions = random_directions(subject, n=6)
    nulls = shared_nulls(0, 7, 32)
    tally = MatchedSums(directions, nulls)
    (found,) = sampled_gradients(subject, drawn_rows(subject, 60, 0), 2, 0)
    tally.add(found.tokens, found.tokens % 2, found.site, found.sampled[:, :, None])
    expected, score = np.zeros((6, 7)), np.zeros(6)
    for t, token in enumerate(found.tokens):
        x = found.site[t] / found.site[t].norm()
        across = nulls - (nulls @ x)[:, None] * x
        across /= across.norm(dim=1, keepdim=True)
        for i, amount in zip(*directions.at(int(token)), strict=True):
            d = torch.from_numpy(directions.vectors[i])
            u = (d @ x) * x + (1 - (d @ x) ** 2).sqrt() * across
            assert torch.allclose(u @ x, (d @ x).expand(7), atol=1e-5)
            expected[i] += (amount * (u @ found.sampled[:, t].T).numpy()).__pow__(2).mean(1)
            score[i] += float((amount * (found.sampled[:, t] @ d)).square().mean())
    assert np.allclose(tally.null[:, 0], expected, rtol=1e-3)
    assert np.allclose(tally.score.sum(0)[:, 0], score, rtol=1e-3)


def test_labels_do_not_depend_on_what_is_run_together(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = tiny_subject()
    rows = drawn_rows(subject, 100, 0)
    together = list(sampled_gradients(subject, rows, 2, 0))
    monkeypatch.setattr("sae_placebo.causal.use.gradients._POSITIONS", 16)
    alone = list(sampled_gradients(subject, rows, 2, 0))
    assert len(together) == 1
    assert len(alone) == len(rows)
    a, b = together[0].sampled, torch.cat([g.sampled for g in alone], 1)
    assert torch.allclose(a, b, rtol=1e-3, atol=1e-6)


def test_pseudo_latents_have_uniform_p() -> None:
    subject = tiny_subject("llama_untied", "resid_post.1")
    directions = pseudo_latents(random_directions(subject, n=300, per_token=8), 3, 300)
    found = screen(subject, directions, SPEC.model_copy(update={"fewest": 1}), 0)
    assert kstest(found.p, "uniform").pvalue > 0.001
    assert 0.01 < (found.p < 0.05).mean() < 0.1
    assert np.median(found.ratio) == pytest.approx(1, abs=0.15)


def _planted() -> tuple[Subject, Directions]:
    """Direction 0 reaches the logits alone, direction 1 not at all, direction 2 is held by three tokens."""
    model = build("gpt2")
    model.transformer.ln_f = torch.nn.Identity()
    d_in = 32
    vectors = np.linalg.qr(np.random.default_rng(0).standard_normal((d_in, 3)))[0].T
    used, passenger = (torch.from_numpy(v).float() for v in vectors[:2])
    head = model.lm_head.weight
    head -= torch.outer(head @ passenger, passenger)
    head += 3 * torch.outer(head @ used, used)
    subject = subject_of(model, "resid_post.2")
    amounts = np.ones((len(subject.tokens), 3), dtype=np.float32)
    amounts[3:, 2] = 0
    return subject, Directions(vectors.astype(np.float32), csr_matrix(amounts))


def test_planted_use_is_found_and_a_passenger_is_not() -> None:
    subject, directions = _planted()
    found = screen(subject, directions, SPEC, 0)
    assert found.p[0] < 0.005
    assert found.ratio[0] > 5
    assert found.phi[1] < 1e-9
    assert found.p[1] == 1
    assert list(found.n) == [600, 600, 3]
    assert np.isnan([found.phi[2], found.p[2], found.ratio[2], found.null_mean[2]]).all()
    assert 0.7 < found.split[0] <= 1
    assert np.isnan(found.stability)


def test_same_seed_same_bits_and_few_tokens_are_whole_rows() -> None:
    subject = tiny_subject()
    directions = random_directions(subject)
    spec = ScreenSpec(tokens=50, nulls=19, fewest=1)
    a, b = screen(subject, directions, spec, 1), screen(subject, directions, spec, 1)
    assert np.array_equal(a.phi, b.phi, equal_nan=True)
    assert a.n.sum() == 45 * 3
    c = screen(subject, directions, spec, 2)
    assert not np.array_equal(a.n, c.n)


def test_half_of_phi_predicts_small_ablations() -> None:
    subject = tiny_subject("gpt_neox", "resid_post.0")
    directions = random_directions(subject, n=8, per_token=1)
    small = Directions(directions.vectors, directions.amounts * 0.05)
    found = screen(subject, small, ScreenSpec(samples=60, nulls=9), 0)
    costs = np.zeros(8)
    for i in range(8):
        for token in small.by_direction[:, [i]].indices[:12]:
            row, position = subject.tokens.places[token]
            edit = -float(small.amounts[token, i]) * torch.from_numpy(small.vectors[[i]])
            cost = subject.downstream.kl_of_edits(subject.clean(int(row)), int(position), edit, 99)
            costs[i] += float(cost) / min(12, int(found.n[i]))
    assert np.median(found.phi / 2 / costs) == pytest.approx(1, abs=0.3)
