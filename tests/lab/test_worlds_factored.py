"""A factored world: its rows and variables by hand, its model against its rule, its measured truth."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch
from pydantic import ValidationError

from sae_placebo.core.errors import ModelError, NotEstimable
from sae_placebo.lab.worlds import (
    PRESETS,
    FactoredSpec,
    Grammar,
    World,
    activations,
    factored,
    label_latents,
    train_sae,
    truth,
)
from sae_placebo.lab.worlds.base import _draws

SMALL = PRESETS["small"].model_copy(update={"duplicates": True})
EMBEDDING = "resid_pre.0"


@pytest.fixture(scope="module")
def world() -> World:
    return factored(SMALL, seed=3)


@pytest.fixture(scope="module")
def doubled() -> Grammar:
    return Grammar(SMALL, 3)


# --- the grammar, without a model ------------------------------------------------------------------


def test_variables_are_what_the_tokens_say(doubled: Grammar) -> None:
    rows = doubled.rows(20, "here")
    read, factors = doubled.read(rows), doubled.factors[rows]
    marked = -1
    for t in range(rows.shape[1]):
        a, b, c, kind = factors[7, t]
        if kind == 1:
            marked = c
        assert read["a"][7, t] == a
        assert read["b"][7, t] == b
        assert read["a_previous"][7, t] == (factors[7, t - 1, 0] if t else 4)
        assert read["c_last"][7, t] == (marked if marked >= 0 else 2)
        assert read["a_first"][7, t] == (4 if kind == 3 else a)
        assert read["a_second"][7, t] == (4 if kind == 2 else a)


def test_a_swap_changes_its_variable_and_no_other_of_the_token(doubled: Grammar) -> None:
    tokens = np.arange(doubled.spec.n_vocabulary)
    column = {"a": 0, "b": 1, "c": 2, "marker": 3, "a_first": 3, "a_second": 3}
    swaps = doubled.swaps(doubled.rows(2, "here"))
    for name, factor in column.items():
        for options in swaps[name].alternatives.T:
            known = options >= 0
            changed = doubled.factors[options[known]] != doubled.factors[tokens[known]]
            assert changed[:, factor].all()
            assert changed.sum() == known.sum() > 0
    # each value of b but the token's own, once
    others = np.sort(doubled.factors[swaps["b"].alternatives[5], 1])
    assert others.tolist() == [b for b in range(8) if b != doubled.factors[5, 1]]


def test_target_follows_its_variables_alone() -> None:
    grammar = Grammar(SMALL, 3)
    rows = grammar.rows(20, "here")
    swaps, read = grammar.swaps(rows), grammar.read(rows)
    before = grammar.target(rows)
    assert torch.allclose(before.sum(-1), torch.ones(20, 16))
    moved = {}
    for name in ("a", "b", "c"):
        other = rows.copy()
        other[:, 6] = swaps[name].alternatives[rows[:, 6], 0]
        moved[name] = (grammar.target(other) - before).abs().sum(-1) > 1e-6
    assert not moved["b"].any()
    assert moved["a"].nonzero()[:, 1].unique().tolist() == [6, 7]
    assert (moved["c"].any(1).numpy() == (read["marker"][:, 6] == 1)).all()
    assert moved["c"][:, 7:].any()


def test_a_token_is_the_sum_of_its_directions(doubled: Grammar) -> None:
    spec, factors = doubled.spec, doubled.factors
    x = doubled.embedding
    ids = {tuple(row): i for i, row in enumerate(factors.tolist())}
    # parallelograms: what changing a adds does not depend on b; b is longer than a
    steps = [x[ids[1, b, 0, 0]] - x[ids[2, b, 0, 0]] for b in (0, 5)]
    assert torch.allclose(steps[0], steps[1], atol=1e-5)
    # a carrier that a token lacks is what the two kinds differ by; both carriers have norm 1
    first = x[ids[1, 0, 0, 0]] - x[ids[1, 0, 0, 3]]
    assert float(first.norm()) == pytest.approx(spec.d_model**0.5 / 2, rel=1e-4)
    b = [x[ids[0, v, 0, 0]] for v in range(8)]
    a = [x[ids[v, 0, 0, 0]] for v in range(4)]
    spread = [float(torch.stack(v).var(0).sum()) for v in (a, b)]
    assert spread[1] > 1.2 * spread[0] / 2  # two carriers vary with a


def test_presets_say_what_they_are() -> None:
    spec = PRESETS["superposed"]
    assert spec.n_directions > spec.d_model
    assert PRESETS["duplicates"].duplicates
    assert PRESETS["default"] == FactoredSpec()
    with pytest.raises(ValidationError, match="lower n_b"):
        FactoredSpec(n_b=512)


# --- the world --------------------------------------------------------------------------------------


def test_model_follows_the_rule_over_the_whole_vocabulary(world: World) -> None:
    grammar = Grammar(SMALL, 3)
    assert world.numbers["excess_nats"] <= SMALL.margin_nats < world.numbers["ignorance_nats"] / 5
    assert (world.rows == grammar.rows(SMALL.held_out_rows, "held out")).all()
    with torch.no_grad():
        logits = world.model(input_ids=torch.from_numpy(world.rows[:40])).logits.double()
    wanted = grammar.target(world.rows[:40]).double()
    share = SMALL.n_a / SMALL.n_vocabulary
    full = (wanted * share)[..., torch.from_numpy(grammar.factors[:, 0])]
    apart = (full * (full.log() - logits.log_softmax(-1))).sum(-1)
    assert (apart > -1e-9).all()
    assert float(apart.mean()) == pytest.approx(world.numbers["excess_nats"], rel=0.3)
    assert torch.equal(world.model.get_input_embeddings().weight, grammar.embedding)
    assert not any(p.requires_grad for p in world.model.parameters())
    assert not world.model.training


def test_a_model_that_has_not_learned_is_refused() -> None:
    with pytest.raises(ModelError, match="raise steps or margin_nats"):
        factored(SMALL.model_copy(update={"steps": 2}), seed=3)


def test_truth_tells_used_from_passenger_at_the_embedding(world: World) -> None:
    found = {v.name: truth(world, EMBEDDING, v.name) for v in world.variables if v.name in "abc"}
    a, b, c = found["a"], found["b"], found["c"]
    assert a.interval[0] < a.effect_nats < a.interval[1]
    assert a.effect_nats > 0.5
    assert a.share_of_full_swap > 0.3
    assert b.interval[1] < 0.1 * a.interval[0]
    assert c.interval[0] > b.interval[1]
    silent = truth(world, EMBEDDING, "c", where="inactive")
    assert silent.interval[1] < 0.1 * c.interval[0]
    assert a.n == SMALL.held_out_rows
    assert a.n_rows == SMALL.held_out_rows


def test_truth_at_the_embedding_is_the_swap_of_the_input(world: World) -> None:
    draws = _draws(world, world.variable("a"), "active", 1, 0)
    ids = torch.from_numpy(world.rows[draws.rows])
    other = ids.clone()
    other[torch.arange(len(ids)), torch.from_numpy(draws.positions)] = torch.from_numpy(
        draws.tokens
    )
    with torch.no_grad():
        p, q = (world.model(input_ids=x).logits.double().log_softmax(-1) for x in (ids, other))
    costs = (p.exp() * (p - q)).sum(-1).numpy()
    at = np.arange(costs.shape[1])
    within = (at >= draws.positions[:, None]) & (at <= draws.positions[:, None] + 8)
    expected = float((costs * within).sum(1).mean())
    assert truth(world, EMBEDDING, "a").effect_nats == pytest.approx(expected, rel=1e-3)


def test_either_carrier_suffices(world: World) -> None:
    """Without one carrier nothing is missed; with another value in both, much is."""
    both = truth(world, EMBEDDING, "a")
    for carrier in ("a_first", "a_second"):
        single = truth(world, EMBEDDING, carrier)
        assert single.interval[1] < 0.1 * both.interval[0]
        with pytest.raises(NotEstimable, match="0 held-out rows"):
            truth(world, EMBEDDING, carrier, where="inactive")


def test_what_was_read_already_is_not_read_again(world: World) -> None:
    """The last site feeds the head alone: a swap there moves this token's prediction and no other."""
    last = world.hookpoints[-1]
    now = truth(world, last, "a", window=0)
    assert now.effect_nats == pytest.approx(truth(world, last, "a").effect_nats, rel=1e-5)
    # attention brings the value before: it is nowhere at the embedding, and must be there at the end
    assert truth(world, EMBEDDING, "a_previous").effect_nats < 1e-9
    assert truth(world, last, "a_previous").effect_nats > 0.1


def test_what_cannot_be_swapped_has_no_truth(world: World) -> None:
    with pytest.raises(NotEstimable, match="no variable is called 'd'"):
        truth(world, EMBEDDING, "d")
    with pytest.raises(NotEstimable, match="0 held-out rows"):
        truth(world, EMBEDDING, "a", where="inactive")


# --- dictionaries -----------------------------------------------------------------------------------


def test_sae_finds_the_factors_and_labels_say_so(world: World) -> None:
    sae = train_sae(world, EMBEDDING, seed=0)
    x = activations(world, EMBEDDING, world.rows).flatten(0, 1)
    codes = sae.encode(x)
    error = (sae.decode(codes) - x).square().sum() / (x - x.mean(0)).square().sum()
    assert float(error) < 0.2
    csr = scipy.sparse.csr_matrix(
        (codes.values.numpy(), codes.latents.numpy(), codes.offsets.numpy()),
        shape=(len(x), sae.d_sae),
    )
    labels = label_latents(world, csr, variables=["a", "b", "c", "marker"])
    assert len(labels) == 256
    found = {label.name for label in labels}
    assert {f"b={v}" for v in range(8)} <= found
    assert sum(f"a={v}" in found for v in range(4)) >= 3


def test_planted_latents_get_their_labels(world: World) -> None:
    values = {v.name: v.values.ravel() for v in world.variables}
    random = np.random.default_rng(0)
    marked = world.variable("c").active
    assert marked is not None
    planted = [
        (values["b"] == 5) * random.uniform(0.5, 2, values["b"].size),
        (values["a"] == 2) * 1.0,
        (values["c"] == 1) & marked.ravel(),
        random.random(values["b"].size) < 0.1,
        np.zeros(values["b"].size),
    ]
    codes = scipy.sparse.csr_matrix(np.stack(planted, 1).astype(np.float32))
    labels = label_latents(world, codes)
    assert [label.name for label in labels[:2]] == ["b=5", "a=2"]
    assert labels[2].variable == "c"
    assert [label.name for label in labels[3:]] == ["none", "none"]
    assert labels[1].correlation == pytest.approx(1.0)
    assert np.isnan(labels[4].correlation)
