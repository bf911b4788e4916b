"""The reconstruction's cost beside pushes of its length: errors that are planted get the ratio they must."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from planted_errors import SPEC, case_of, lengths, named, noise, tiny
from sae_placebo.audits.base import AUDITS, audit
from sae_placebo.audits.edits import (
    KINDS,
    Pushes,
    chosen,
    costs,
    covariance_pushes,
    ordinary,
)
from sae_placebo.audits.random_pushes import self_test
from sae_placebo.causal.use.base import Subject


def test_pushes_have_the_errors_length_and_their_own_law() -> None:
    subject = tiny()
    case = case_of(subject, noise(subject))
    pushes, tokens = Pushes(case), np.arange(300)
    error = pushes.draw("error", tokens, "")
    assert torch.allclose(error, -case.error[tokens], atol=1e-6)
    for kind in KINDS:
        push = pushes.draw(kind, tokens, "a")
        assert torch.allclose(push.norm(dim=1), error.norm(dim=1), rtol=1e-4)
        assert torch.equal(push, pushes.draw(kind, tokens, "a"))
        assert not torch.allclose(push, pushes.draw(kind, tokens, "b"))
    x = case.reading.activations[tokens]
    pushed = x + pushes.draw("same_cosine", tokens, "a")
    found = case.reconstruction[tokens]
    cosine = torch.nn.functional.cosine_similarity
    assert torch.allclose(cosine(x, pushed), cosine(x, found), atol=1e-4)
    assert torch.allclose(pushed.norm(dim=1), found.norm(dim=1), rtol=1e-4)
    shorter, longer = pushes.rescaled(tokens)
    assert torch.allclose((x + shorter).norm(dim=1), found.norm(dim=1), rtol=1e-4)
    assert torch.allclose((x + longer).norm(dim=1), x.norm(dim=1), rtol=1e-4)
    assert torch.allclose(cosine(x + longer, found), torch.ones(300), atol=1e-4)


@pytest.mark.parametrize("kind", ["error", *KINDS])
def test_a_row_may_have_one_token(kind: str) -> None:
    subject = tiny()
    pushes = Pushes(case_of(subject, noise(subject)))
    alone = pushes.draw(kind, np.array([7]), "a")
    error = pushes.draw("error", np.array([7]), "")
    assert alone.shape == error.shape
    assert torch.allclose(alone.norm(dim=1), error.norm(dim=1), rtol=1e-4)


def test_covariance_pushes_have_twice_the_covariance() -> None:
    random = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=random)
    sigma = (root @ root.T + torch.eye(6)).double()
    push = covariance_pushes(sigma, 200_000, random).double()
    assert push.mean(0).abs().max() < 0.05
    assert torch.allclose(push.T @ push / len(push), 2 * sigma, atol=0.02 * float(sigma.max()) * 2)


@pytest.mark.parametrize("kind", ["isotropic", "covariance"])
def test_a_push_in_place_of_the_error_has_ratio_one(kind: str) -> None:
    subject = tiny()
    case = case_of(subject, noise(subject), SPEC.model_copy(update={"tokens": 128}))
    found = [self_test(replace(case, seed=seed), kind) for seed in range(6)]
    # 95% intervals: 4 of 6 or more hold the truth in all but 2 of 1,000 runs
    assert sum(one.low <= 1 <= one.high for one in found) >= 4
    assert np.mean([one.value for one in found]) == pytest.approx(1, abs=0.05)
    assert max(one.high - one.low for one in found) < 0.5


@pytest.mark.parametrize("kind", ["isotropic", "covariance"])
def test_a_planted_error_has_ratio_one_against_its_own_law(kind: str) -> None:
    subject = tiny()
    first = case_of(subject, noise(subject))
    error = -Pushes(first).draw(kind, np.arange(first.n_tokens), "the error itself")
    case = case_of(subject, error)
    found = named(AUDITS["random_pushes"].run(case).findings, f"ratio_{kind}")
    assert found.low <= 1 <= found.high
    assert found.null == 1


def test_an_error_that_the_model_reads_stands_out_and_one_of_length_is_told() -> None:
    subject = tiny()
    x = subject.activations
    worst = _worst_directions(subject)
    case = case_of(subject, worst * lengths(subject))
    findings = AUDITS["random_pushes"].run(case).findings
    for kind in ("isotropic", "covariance", "mixture", "same_cosine"):
        assert named(findings, f"ratio_{kind}").low > 1
    shrunk = AUDITS["random_pushes"].run(case_of(subject, 0.3 * x)).findings
    assert named(shrunk, "norm_share").value == pytest.approx(1, abs=1e-3)
    assert named(shrunk, "at_norm_of_x").value == pytest.approx(0, abs=1e-3)
    declared = {one.name for one in AUDITS["random_pushes"].quantities}
    assert {one.name for one in findings} == declared


def test_outliers_are_told_apart() -> None:
    subject = tiny()
    subject.activations[7] *= 40
    case = case_of(subject, noise(subject))
    assert not ordinary(case)[7]
    assert 7 not in chosen(case, 10_000, ordinary(case))
    findings = AUDITS["random_pushes"].run(case).findings
    assert named(findings, "ratio_outliers").n == 1


def test_costs_are_those_of_the_edits_and_tokens_come_from_all_documents() -> None:
    subject = tiny()
    case = case_of(subject, noise(subject))
    tokens = chosen(case, 240, ordinary(case))
    assert len(tokens) == len(set(tokens)) == 240
    assert len(np.unique(case.documents[tokens])) >= 25
    edits = Pushes(case).draw("error", tokens, "")[:, None]
    nats = costs(case, tokens, edits)
    row, position = subject.tokens.places[tokens[11]]
    alone = subject.downstream.kl_of_edits(subject.clean(int(row)), int(position), edits[11], 2)
    assert nats[11, 0] == pytest.approx(float(alone[0]), rel=1e-5)
    assert len(chosen(case, 10**6, ordinary(case))) == case.n_tokens


def test_without_a_model_there_is_a_reason() -> None:
    subject = tiny(8, 12)
    case = replace(case_of(subject, noise(subject)), subject=None)
    found = audit(case, ("random_pushes",))["random_pushes"].findings
    assert all(math.isnan(one.value) and "cannot be run" in one.reason for one in found)


def _worst_directions(subject: Subject) -> torch.Tensor:
    """For each token the unit direction along which the next-token prediction changes most."""
    unembedding = subject.downstream.model.get_output_embeddings().weight.detach()
    top = torch.linalg.svd(unembedding - unembedding.mean(0), full_matrices=False).Vh[0]
    return top.expand(len(subject.activations), -1).clone()
