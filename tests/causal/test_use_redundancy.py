"""Random masks, joint removal and worst masks where it is known what the model reads.

A GPT-2 without norms or attention. Its last MLP computes min(x0 + x1, 1): either of two directions
suffices. Its head reads that, x2, and x3 - x4, which undo each other; nothing reads the others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import pytest
import torch
import transformers
from scipy.sparse import csr_matrix

from architectures import VOCABULARY, build
from planted_readings import token_table
from sae_placebo.causal.use.base import Directions, Subject
from sae_placebo.causal.use.downstream import Downstream
from sae_placebo.causal.use.joint import JointSpec, joint_removal
from sae_placebo.causal.use.masks import MaskSpec, random_masks
from sae_placebo.causal.use.removal import (
    batches,
    costs,
    discovery_documents,
    partners,
    rows_of,
    swapped,
)
from sae_placebo.causal.use.worst import WorstSpec, worst_case
from sae_placebo.core.errors import NotEstimable

D, N_OUT, SIZE = 24, 7, 40
EITHER, USED, UNDONE, PASSENGERS = [0, 1], 2, [3, 4], list(range(5, 13))
READ = 20
"""The dimension that the MLP writes to."""


def _held(random: np.random.Generator) -> np.ndarray:
    """Which directions each token id holds; the pairs are held together."""
    held = (random.random((SIZE, 13)) < 0.5).astype(np.float32)
    held[:, 1] = held[:, 0]
    held[:, 4] = held[:, 3]
    return held


def _model(held: np.ndarray, head: np.ndarray) -> torch.nn.Module:
    config = transformers.GPT2Config(
        n_embd=D, n_layer=2, n_head=2, n_inner=2, n_positions=32, vocab_size=SIZE,
        activation_function="relu", tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    body = model.transformer
    body.wte.weight[:, :13] = torch.from_numpy(held)
    for block in body.h:
        block.ln_1, block.ln_2 = torch.nn.Identity(), torch.nn.Identity()
    body.ln_f = torch.nn.Identity()
    last = body.h[1].mlp
    last.c_fc.weight[EITHER] = 1
    last.c_fc.bias[1] = -1
    last.c_proj.weight[:, READ] = torch.tensor([1.0, -1.0])
    model.lm_head.weight[:] = torch.from_numpy(head)
    return model


@pytest.fixture(scope="module")
def world() -> tuple[Subject, Directions, np.ndarray]:
    """The subject, its directions, and the head [vocabulary, d_in]."""
    random = np.random.default_rng(3)
    held = _held(random)
    head = np.zeros((SIZE, D), dtype=np.float32)
    head[:, [READ, USED, 3]] = random.normal(size=(SIZE, 3))
    head[:, 4] = -head[:, 3]
    downstream = Downstream(_model(held, head), "resid_post.0")
    vocabulary = tuple(f"t{i}" for i in range(SIZE))
    tokens = token_table(random.integers(0, SIZE, (60, 16)), 24, vocabulary)
    vectors = np.eye(D, dtype=np.float32)[:13]
    amounts = held[tokens.ids]
    x = torch.from_numpy(amounts @ vectors)
    return Subject(downstream, tokens, x), Directions(vectors, csr_matrix(amounts)), head


def _kl(clean: np.ndarray, edited: np.ndarray) -> np.ndarray:
    p, q = (z - np.log(np.exp(z).sum(-1, keepdims=True)) for z in (clean, edited))
    return (np.exp(p) * (p - q)).sum(-1)


def _logits(x: np.ndarray, head: np.ndarray) -> np.ndarray:
    inner = x.copy()
    inner[:, READ] += np.minimum(x[:, 0] + x[:, 1], 1)
    return inner @ head.T


def _lost(world: tuple[Subject, Directions, np.ndarray], some: list[int]) -> np.ndarray:
    """Cost of removing some directions at every token of the table, from the planted formula."""
    subject, _, head = world
    x = subject.activations.numpy().astype(np.float64)
    less = x.copy()
    less[:, some] = 0
    return _kl(_logits(x, head), _logits(less, head))


def test_masks_give_banzhaf_values(world: tuple[Subject, Directions, np.ndarray]) -> None:
    subject, directions, _ = world
    spec = MaskSpec(n_tokens=100_000, n_masks=64)
    found = random_masks(subject, directions, np.arange(13), spec, 1)
    tokens = subject.tokens
    here = discovery_documents(tokens, 1)[tokens.documents]
    read = [0, 1, 2, 3, 4]
    truth = np.zeros(13)
    for gone in product([0, 1], repeat=5):
        cost = _lost(world, [i for i in read if gone[i]])[here].sum()
        truth[:5] += cost * (2 * np.array(gone) - 1) / 16
    firings = np.asarray((directions.amounts[here] != 0).sum(0)).ravel()
    truth /= firings
    assert np.array_equal(found.n, firings)
    assert np.all(np.abs(found.beta - truth) < 4 * found.se + 1e-4), (found.beta, truth)
    # found by single ablation: nothing
    assert _lost(world, [0])[here].max() < 1e-9
    assert truth[0] > 0.05
    assert found.beta[0] > 10 * found.se[0]
    # windows reach over tokens that hold other things, so passengers get noise: within its error
    # (above), and a small part of what is used
    assert np.all(truth[PASSENGERS] == 0)
    assert np.all(np.abs(found.beta[PASSENGERS]) < 0.1 * found.beta[USED])


def test_gradients_at_other_masks_lower_the_variance_alone(
    world: tuple[Subject, Directions, np.ndarray],
) -> None:
    subject, directions, _ = world
    spread = {}
    means = {}
    for n in (0, 4):
        spec = MaskSpec(n_tokens=120, n_masks=4, n_pivots=n)
        draws = np.array(
            [
                random_masks(subject, directions, np.arange(13), spec, seed).beta
                for seed in range(12)
            ]
        )
        spread[n], means[n] = draws.std(0), draws.mean(0)
    assert np.median(spread[4]) < 0.7 * np.median(spread[0])
    error = np.sqrt((spread[0] ** 2 + spread[4] ** 2) / 11)
    assert np.all(np.abs(means[4] - means[0]) < 4 * error)


def test_each_position_of_overlapping_windows_counts_once() -> None:
    """A direction held by every token is charged with the whole cost, once, over its firings."""
    model = build("llama")
    random = np.random.default_rng(0)
    tokens = token_table(random.integers(3, VOCABULARY, (6, 12)), 6, ("",) * VOCABULARY)
    vector = random.normal(size=(1, 32)).astype(np.float32)
    vector /= np.linalg.norm(vector)
    amounts = np.full((len(tokens), 1), 0.5, dtype=np.float32)
    subject = Subject(Downstream(model, "resid_post.0"), tokens, torch.zeros(len(tokens), 32))
    directions = Directions(vector, csr_matrix(amounts))
    found = random_masks(subject, directions, np.array([0]), MaskSpec(n_masks=2), 0)
    rows = rows_of(subject, discovery_documents(tokens, 0), 10_000, 0, "random masks")
    expected = 0.0
    for batch in batches(subject, rows):
        delta = batch.placed(np.repeat(-0.5 * vector, len(batch.tokens), 0))
        with torch.no_grad():
            expected += float(costs(subject, batch, delta).sum())
    assert found.beta[0] == pytest.approx(expected / found.n[0], rel=1e-4)


def test_what_is_not_held_has_no_number(world: tuple[Subject, Directions, np.ndarray]) -> None:
    subject, directions, _ = world
    amounts = directions.amounts.copy().tolil()
    amounts[:, 7] = 0
    fewer = Directions(directions.vectors, csr_matrix(amounts))
    found = random_masks(subject, fewer, np.array([7, 2]), MaskSpec(n_masks=4, n_tokens=100), 0)
    assert found.which.tolist() == [2, 7]
    assert np.isnan(found.beta[1])
    assert np.isnan(found.se[1])
    assert found.reason(1) is not None
    assert found.reason(0) is None


def test_halves_of_documents_are_alike() -> None:
    tokens = token_table(np.zeros((41, 9), dtype=int), 13, ("",))
    chosen = discovery_documents(tokens, 0)
    assert len(chosen) == 13
    assert chosen.sum() in (6, 7)
    sizes = np.bincount(tokens.documents)
    assert abs(sizes[chosen].sum() - sizes[~chosen].sum()) <= sizes.max()
    assert any((discovery_documents(tokens, seed) != chosen).any() for seed in range(1, 5))


def test_one_of_two_that_each_suffice_is_kept(
    world: tuple[Subject, Directions, np.ndarray],
) -> None:
    subject, directions, _ = world
    spec = MaskSpec(n_tokens=100_000)
    beta = random_masks(subject, directions, np.arange(13), spec, 1).beta
    single = np.array([_lost(world, [i]).mean() for i in range(13)])
    joint = JointSpec(n_tokens=100_000)
    tokens = subject.tokens
    here = ~discovery_documents(tokens, 1)[tokens.documents]

    by_single = np.argsort(single, kind="stable")
    curve = joint_removal(subject, directions, by_single, joint, 1)
    assert by_single[:2].tolist() == EITHER, "single ablation puts both before all others"
    assert curve.s_star.tolist() == [0], "and the second cannot be removed any more"

    by_both = np.argsort(np.maximum(single, beta), kind="stable")
    curve = joint_removal(subject, directions, by_both, joint, 1)
    assert set(PASSENGERS) <= set(curve.s_star.tolist())
    assert len(set(EITHER) & set(curve.s_star.tolist())) < 2
    assert USED not in curve.s_star
    for size, cost in zip(curve.sizes, curve.cost, strict=True):
        assert cost == pytest.approx(_lost(world, by_both[:size].tolist())[here].mean(), abs=1e-5)
    assert np.all((curve.low <= curve.cost) & (curve.cost <= curve.high))
    assert curve.n_tokens == here.sum()
    assert curve.limit == pytest.approx(0.005 * curve.full_joint_nats)


def test_full_swaps_are_among_other_tokens(
    world: tuple[Subject, Directions, np.ndarray],
) -> None:
    subject, directions, head = world
    curve = joint_removal(subject, directions, np.arange(13), JointSpec(n_tokens=300), 1)
    rows = rows_of(subject, ~discovery_documents(subject.tokens, 1), 300, 1, "joint removal")
    partner = partners(subject, rows, 1)
    tokens = np.flatnonzero(partner >= 0)
    assert sorted(partner[tokens]) == tokens.tolist()
    assert not (partner[tokens] == tokens).any()
    x = subject.activations.numpy().astype(np.float64)
    cost = _kl(_logits(x[tokens], head), _logits(x[partner[tokens]], head))
    assert curve.full_joint_nats == pytest.approx(cost.mean(), rel=1e-4)
    batch = next(batches(subject, rows))
    edit = swapped(subject, batch, partner).flatten(0, 1)[batch.cells]
    assert torch.allclose(batch.site.flatten(0, 1)[batch.cells] + edit,
                          subject.activations[partner[batch.tokens]])  # fmt: skip


def test_removal_together_tells_how_far_it_is(
    world: tuple[Subject, Directions, np.ndarray],
) -> None:
    subject, directions, _ = world
    told: dict[str, list[int]] = {}
    totals: dict[str, int] = {}

    @contextlib.contextmanager
    def track(label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        totals[label], told[label] = total, []
        yield told[label].append

    which = np.arange(13)
    random_masks(subject, directions, which, MaskSpec(n_tokens=300), 1, track)
    joint_removal(subject, directions, which, JointSpec(n_tokens=300), 1, track)
    # passengers hold at once, what undoes each other takes rounds
    worst_case(subject, directions, np.arange(13), WorstSpec(n_tokens=400, rounds=3), 1, track)
    assert sum(told["remove among others"]) == totals["remove among others"]
    for label in ("remove together", "look for the worst masks"):
        assert len(told[label]) >= 3
        assert 0 < sum(told[label]) <= totals[label]


def test_few_documents_give_no_bound(world: tuple[Subject, Directions, np.ndarray]) -> None:
    subject, directions, _ = world
    with pytest.raises(NotEstimable, match="confirmation documents"):
        joint_removal(subject, directions, np.arange(13), JointSpec(min_documents=13), 1)


def test_worst_masks_find_what_undoes_each_other(
    world: tuple[Subject, Directions, np.ndarray],
) -> None:
    subject, directions, _ = world
    s_star = np.array([*PASSENGERS, *UNDONE])
    found = worst_case(subject, directions, s_star, WorstSpec(n_tokens=400), 1)
    assert found.joint[0] < 1e-6, "removed together they cost nothing"
    assert found.shares[0] > 0.1
    assert found.holds
    assert len(set(UNDONE) & set(found.s_star.tolist())) <= 1 or found.worst[-1] < 1e-6
    assert set(PASSENGERS) <= set(found.s_star.tolist())
    without = worst_case(subject, directions, np.array(PASSENGERS), WorstSpec(n_tokens=400), 1)
    assert without.sizes.tolist() == [len(PASSENGERS)]
    assert without.worst[0] < 1e-6


def test_a_limit_that_is_not_met_is_said(world: tuple[Subject, Directions, np.ndarray]) -> None:
    subject, directions, _ = world
    spec = WorstSpec(n_tokens=200, rounds=0)
    found = worst_case(subject, directions, np.array([USED, *PASSENGERS]), spec, 1)
    assert not found.holds
    assert found.s_star.tolist() == [USED, *PASSENGERS]
    assert found.worst[0] >= found.joint[0] > 0


def test_the_same_seed_gives_the_same_numbers(
    world: tuple[Subject, Directions, np.ndarray],
) -> None:
    subject, directions, _ = world
    spec = MaskSpec(n_tokens=200, n_masks=4)
    one, two = (random_masks(subject, directions, np.arange(13), spec, 5) for _ in range(2))
    assert np.array_equal(one.beta, two.beta)
