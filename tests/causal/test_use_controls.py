"""Directions that nobody trained, on a model that reads the subspace in which its activations vary."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from scipy.sparse import csr_matrix

from planted_subjects import random_directions, rows, subject_of
from sae_placebo.causal.use.base import Directions, Subject, pseudo_latents
from sae_placebo.causal.use.control_directions import covariance_directions, untrained_directions
from sae_placebo.causal.use.evidence import Asked, ask_alone
from sae_placebo.causal.use.null_test import costlier_share
from sae_placebo.causal.use.spec import UseSpec

WIDTH, READ, N_IDS = 32, 4, 40
"""Activations vary in the first `READ` dimensions, and hardly in the others; the head reads those alone."""
N = 60
SPEC = UseSpec(firings=6, null_firings=6, nulls=12, window=0, swap_tokens=100)


@pytest.fixture(scope="module")
def subject() -> Subject:
    config = transformers.GPT2Config(
        **{"n_embd": WIDTH, "n_layer": 1, "n_head": 2, "n_inner": 2, "n_positions": 32},
        **{"vocab_size": N_IDS, "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 0},
    )
    model = transformers.GPT2LMHeadModel(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    model.transformer.ln_f = torch.nn.Identity()
    random = np.random.default_rng(0)
    sizes = np.r_[np.ones(READ), np.full(WIDTH - READ, 0.05)]
    model.transformer.wte.weight[:] = torch.from_numpy(random.normal(size=(N_IDS, WIDTH)) * sizes)
    model.lm_head.weight[:, :READ] = torch.from_numpy(random.normal(size=(N_IDS, READ)))
    return subject_of(model, "resid_post.0", rows(vocabulary=N_IDS))


@pytest.fixture(scope="module")
def like(subject: Subject) -> Directions:
    return random_directions(subject, n=N, per_token=4)


def costlier(found: Asked) -> tuple[float, float, float]:
    return costlier_share(found.p, np.ones(len(found.p)), np.arange(len(found.p)), 0)


def test_what_lies_where_activations_vary_costs_more_and_isotropic_directions_do_not(
    subject: Subject, like: Directions
) -> None:
    latents = ask_alone(subject, like, SPEC, 0)
    drawn = {
        "pseudo": pseudo_latents(like, 0, N),
        "covariance": covariance_directions(subject, like, 0, N),
        "untrained": untrained_directions(subject, like, 0, N),
    }
    found = {
        kind: ask_alone(subject, directions, SPEC, 0, kind=kind, beside=latents)
        for kind, directions in drawn.items()
    }
    assert costlier(found["covariance"])[1] > 0.6
    assert costlier(found["untrained"])[1] > 0.4
    assert costlier(found["pseudo"])[1] == 0
    # the nulls of the latents are counted as well
    assert found["pseudo"].test.n_nulls == 2 * N * SPEC.nulls


def test_covariance_directions_hold_what_latents_hold_where_activations_vary(
    subject: Subject, like: Directions
) -> None:
    found = covariance_directions(subject, like, 3, 10)
    assert len(found) == 10
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-6)
    assert (np.linalg.norm(found.vectors[:, :READ], axis=1) > 0.9).all()
    columns = {tuple(column) for column in like.amounts.T.toarray()}
    assert {tuple(column) for column in found.amounts.T.toarray()} <= columns
    again = covariance_directions(subject, like, 3, 10)
    assert np.array_equal(found.vectors, again.vectors)
    assert not np.array_equal(found.vectors, covariance_directions(subject, like, 4, 10).vectors)
    assert len(covariance_directions(subject, like, 3, 10 * N)) == N


def test_untrained_directions_fire_on_their_own_top_tokens(
    subject: Subject, like: Directions
) -> None:
    found = untrained_directions(subject, like, 3, 10)
    x = subject.activations.numpy().astype(np.float64)
    projected = (x - x.mean(0)) @ found.vectors.T
    held = found.amounts.toarray()
    assert (found.n_active > 0).all()
    assert set(found.n_active) <= set(like.n_active)
    taken_over = {tuple(np.sort(column[column != 0])) for column in like.amounts.toarray().T}
    for amounts, values in zip(held.T, projected.T, strict=True):
        on = amounts != 0
        # as much as a latent holds, the most where the projection is largest
        assert tuple(np.sort(amounts[on])) in taken_over
        further = values[on][:, None] > values[on] + 1e-6  # equal tokens project alike
        assert (amounts[on][:, None] >= amounts[on])[further].all()
        assert values[on].min() >= values[~on].max() - 1e-6


def test_no_direction_fires_below_the_mean(subject: Subject, like: Directions) -> None:
    held = csr_matrix(np.ones((len(subject.tokens), N), dtype=np.float32))
    everywhere = Directions(like.vectors, held)
    found = untrained_directions(subject, everywhere, 0, 5)
    assert (found.amounts.data > 0).all()
    assert (found.n_active < len(subject.tokens)).all()
