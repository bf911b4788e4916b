"""Where the easy ways to ask about use go wrong, and the ones that the package takes do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from test_use_redundancy import EITHER, PASSENGERS, READ, SIZE, _held, _model
from test_use_redundancy import USED as READ_ALONE
from test_use_redundancy import D as WIDTH

from architectures import build
from planted_readings import token_table
from planted_subjects import rows, subject_of
from sae_placebo.causal.use import null_directions
from sae_placebo.causal.use.ablation import ablate, full_swap
from sae_placebo.causal.use.absence import ask_absence
from sae_placebo.causal.use.base import Directions, Subject, pseudo_latents, single_sets
from sae_placebo.causal.use.downstream import Downstream
from sae_placebo.causal.use.evidence import ask, ask_alone
from sae_placebo.causal.use.firings import uniform_firings
from sae_placebo.causal.use.masks import MaskSpec
from sae_placebo.causal.use.rule import NOT_USED, REDUNDANT
from sae_placebo.causal.use.screen import ScreenSpec, screen
from sae_placebo.causal.use.spec import UseSpec
from sae_placebo.data.rows import Rows
from sae_placebo.latents.base import TokenTable

# --- the null has to be at the angle to the activation that the direction is at ------------------------

_FIRINGS = 3
_NULLS = UseSpec(firings=_FIRINGS, null_firings=_FIRINGS, window=1, nulls=24)
_N = 80
_COSINE = 0.7


def aligned(subject: Subject, seed: int) -> Directions:
    """Directions that mean nothing, each held by one token id at a cosine of 0.7 with its embedding.

    Across the embedding they are random, so no other direction at that angle is less special.
    """
    random = np.random.default_rng(seed)
    x, ids = subject.activations.numpy(), subject.tokens.ids
    chosen = random.choice(np.flatnonzero(np.bincount(ids) >= _FIRINGS + 1), _N)
    held = ids[:, None] == chosen
    unit = np.stack([x[here][0] for here in held.T])
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    across = random.standard_normal(unit.shape)
    across -= (across * unit).sum(1, keepdims=True) * unit
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    vectors = (_COSINE * unit + np.sqrt(1 - _COSINE**2) * across).astype(np.float32)
    return Directions(vectors, csr_matrix(np.where(held, x @ vectors.T, 0).astype(np.float32)))


def rejected(subject: Subject, directions: Directions, seed: int) -> float:
    """Share of directions with p of at most 5%."""
    return float((ask_alone(subject, directions, _NULLS, seed).p <= 0.05).mean())


@pytest.fixture(scope="module")
def untrained() -> Subject:
    return subject_of(build("llama"), "resid_pre.0", rows(60, 16))


def test_ours_is_calibrated_on_directions_that_mean_nothing(untrained: Subject) -> None:
    found = [rejected(untrained, aligned(untrained, seed), seed) for seed in range(2)]
    found += [
        rejected(untrained, pseudo_latents(aligned(untrained, seed), seed, _N), seed)
        for seed in range(2)
    ]
    assert 0.02 <= np.mean(found) <= 0.09, found


def test_isotropic_nulls_are_not(untrained: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    def isotropic(vectors: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = vectors / vectors.norm(dim=1, keepdim=True)
        return found

    monkeypatch.setattr(null_directions, "turned", isotropic)
    found = [rejected(untrained, aligned(untrained, seed), seed) for seed in range(2)]
    assert np.mean(found) > 0.12, found


# --- gradients are flat behind steps and hard attention -------------------------------------------------


def test_gradients_alone_are_wrong_on_a_compiled_program() -> None:
    """More programs, and what gradients take for used, are in test_worlds_compiled.py."""
    pytest.importorskip("tracr")
    pytest.importorskip("jax").config.update("jax_disable_most_optimizations", True)
    from sae_placebo.lab.worlds.compiled import compiled
    from sae_placebo.lab.worlds.resampling import variable_truth

    world, hookpoint, name = compiled("majority", 3, n_rows=96), "resid_post.0", "is_a"
    n, length = world.rows.shape
    documents = np.arange(n, dtype=np.int32)
    table = Rows(
        world.rows.astype(np.int32),
        np.full(n, length, dtype=np.int32),
        documents,
        tuple(str(i) for i in documents),
    )
    places = np.argwhere(np.arange(length) + np.zeros((n, 1)) >= 1).astype(np.int64)
    behind = Downstream(world.model, hookpoint)
    site, _ = behind.read_rows(torch.from_numpy(world.rows))
    x = site[places[:, 0], places[:, 1]].clone()
    subject = Subject(behind, TokenTable(table, places, ()), x)
    # the variable is 1 or 0, so that ablating its direction is what it says
    level = (world.directions[name][1] - world.directions[name][0]).numpy()
    size = np.linalg.norm(level)
    values = world.variable(name).values[places[:, 0], places[:, 1]]
    amounts = csr_matrix((values * size)[:, None].astype(np.float32))
    direction = Directions((level / size)[None].astype(np.float32), amounts)

    predicted = screen(subject, direction, ScreenSpec(nulls=50), 0).phi[0] / 2
    sets = single_sets(direction)
    firings = uniform_firings(sets, np.array([0]), 60, 0)
    cost = ablate(subject, sets, firings, length, 0).zero.mean()
    assert variable_truth(world, hookpoint, name, n=192).is_used
    assert cost > 0.1 * full_swap(subject, length, 400, 0), "finite ablation finds it"
    assert predicted < 1e-3 * cost, "and gradients do not"


# --- either of two suffices -----------------------------------------------------------------------------


def _world(density: float, n_documents: int, length: int, seed: int) -> tuple[Subject, Directions]:
    """Return the planted model, with either of the two held by one token id of a frequency.

    Either suffices; both are held at the same tokens. The other directions are held by half of all ids.
    """
    random = np.random.default_rng(seed)
    held = _held(random)
    held[:, EITHER] = 0
    held[0, EITHER] = 1
    head = np.zeros((SIZE, WIDTH), dtype=np.float32)
    head[:, [READ, READ_ALONE]] = random.normal(size=(SIZE, 2))
    downstream = Downstream(_model(held, head), "resid_post.0")
    chance = np.full(SIZE, (1 - density) / (SIZE - 1))
    chance[0] = density
    ids = random.choice(SIZE, (n_documents, length), p=chance)
    tokens = token_table(ids, n_documents, tuple(f"t{i}" for i in range(SIZE)))
    vectors = np.eye(WIDTH, dtype=np.float32)[:13]
    amounts = held[tokens.ids]
    subject = Subject(downstream, tokens, torch.from_numpy(amounts @ vectors))
    return subject, Directions(vectors, csr_matrix(amounts))


@pytest.mark.parametrize("density", [0.5, 0.05])
def test_neither_of_two_that_each_suffice_is_called_unused(density: float) -> None:
    """`benchmarks/redundancy.py` has 200 worlds, down to densities of .0005."""
    subject, directions = _world(density, 60, 30, 3)
    answer = ask(
        subject,
        directions,
        np.arange(13),
        UseSpec(window=2, firings=16, null_firings=8, masks=MaskSpec(n_masks=16)),
        1,
    )
    verdict, effect = answer.verdicts.verdict, answer.asked.effect
    # alone, each of the two costs nothing at all
    assert (effect.high[EITHER] < UseSpec().negligible).all()
    assert not (verdict[EITHER] == NOT_USED).any()
    assert set(answer.verdicts.reason[EITHER]) <= {REDUNDANT}
    assert answer.groups.of_direction[0] == answer.groups.of_direction[1] >= 0
    assert (verdict[PASSENGERS] == NOT_USED).all()


def test_as_the_last_to_go_a_rare_pair_is_not_negligible() -> None:
    """Per token of all text a rare pair costs next to nothing, so that joint removal lets both go."""
    subject, pair = _world(0.005, 300, 30, 3)
    sets = single_sets(pair)
    spec = UseSpec(window=1, uniform_firings=30)
    joint = np.array([*EITHER, *PASSENGERS])
    both = ask_absence(subject, sets, np.array(EITHER), joint, {}, spec, 0)
    assert (both.effect.high[EITHER] < spec.negligible).all()
    assert (both.last.low[EITHER] > 100 * spec.negligible).all()
    less = np.array([0, *PASSENGERS])
    one = ask_absence(subject, sets, np.array([0]), less, {}, spec, 0)
    assert one.last.high[0] < spec.negligible, "where the other one stays it can go"
    known = ask_absence(subject, sets, np.array([0]), less, {0: np.array(EITHER)}, spec, 0)
    assert known.last.low[0] > 100 * spec.negligible, "where they are related it cannot"
    assert one.unseen[0] == pytest.approx(1 - 0.01 ** (1 / 30))
