from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from sae_placebo.causal.use.downstream import Downstream
from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.core.spec import generator
from sae_placebo.lab.worlds.compiled import CompiledWorld, compiled, reads, writes
from sae_placebo.lab.worlds.programs import BOS, PROGRAMS, assemble, tracr_module
from sae_placebo.lab.worlds.resampling import (
    CompiledTruth,
    Place,
    draw_donors,
    effects_of_edits,
    variable_edits,
    variable_truth,
)

pytest.importorskip("tracr")
# what takes long is XLA's compilation of single operations
pytest.importorskip("jax").config.update("jax_disable_most_optimizations", True)

_ROWS = 96


@cache
def world(program: str, rotate: bool = True, compress: bool = True) -> CompiledWorld:
    return compiled(program, 3, rotate=rotate, compress=compress, n_rows=_ROWS)


def cells(found: CompiledWorld) -> dict[tuple[str, str], CompiledTruth]:
    return {
        (hookpoint, v.name): variable_truth(found, hookpoint, v.name, n=192)
        for hookpoint in found.hookpoints
        for v in found.variables
        if found.is_present(v.name, hookpoint)
    }


def letters(found: CompiledWorld, row: np.ndarray) -> list[str]:
    return [found.tokens[i] for i in row[1:]]


# the program's variables, by name, as Tracr's own causal evaluator of RASP has them
def interpreted(program: str, row: list[str]) -> dict[str, list[object]]:
    evaluate = tracr_module("rasp.causal_eval").evaluate
    rasp = tracr_module("rasp.rasp")
    todo, found = [PROGRAMS[program].build(rasp)], {}
    while todo:
        part = todo.pop()
        todo += part.children
        if not isinstance(part, rasp.Selector):
            found[part.name] = evaluate(part, row)
    return found


def agrees(text: str, value: object) -> bool:
    if value is None:
        return text == "none"
    if text.replace(".", "", 1).isdigit() and isinstance(value, int | float):
        return abs(float(text) - float(value)) < 1e-3
    return text == str(value)


@pytest.mark.parametrize("program", ["fraction", "majority", "pattern", "decoy"])
def test_the_model_computes_the_program(program: str) -> None:
    found = world(program)
    decoded = found.model(input_ids=torch.from_numpy(found.rows[:24])).logits.argmax(-1)
    for row, answers in zip(found.rows[:24], decoded, strict=True):
        wanted = interpreted(program, letters(found, row))[found.output]
        for value, answer in zip(wanted, answers[1:], strict=True):
            assert value is None or agrees(found.classes[answer], value)


@pytest.mark.parametrize("program", ["fraction", "majority", "pattern", "decoy"])
def test_variables_have_the_values_that_rasp_gives_them(program: str) -> None:
    found = world(program)
    for i, row in enumerate(found.rows[:12]):
        for name, wanted in interpreted(program, letters(found, row)).items():
            names = found.value_names[name]
            for v, value in zip(found.variable(name).values[i, 1:], wanted, strict=True):
                assert agrees(names[v], value), name


def test_counting_what_came_before() -> None:
    # Tracr's evaluator refuses a selector on a variable that is none somewhere
    found = world("count_previous")
    decoded = found.model(input_ids=torch.from_numpy(found.rows[:24])).logits.argmax(-1)
    for row, answers in zip(found.rows[:24], decoded, strict=True):
        text = letters(found, row)
        for i in range(1, len(text)):
            assert found.classes[answers[i + 1]] == str(text[:i].count(text[i - 1]))


@pytest.mark.parametrize("program", ["fraction", "count_previous", "decoy"])
def test_the_stream_is_that_of_tracr(program: str) -> None:
    source = assemble(PROGRAMS[program], 8)
    plain = world(program, rotate=False, compress=False)
    trace = source.trace(plain.rows[:24])
    ids = torch.from_numpy(plain.rows[:24])
    hidden = plain.model(input_ids=ids, output_hidden_states=True).hidden_states
    dim = len(source.labels)
    for i, stream in enumerate(hidden):
        assert np.abs(stream[..., :dim].numpy() - trace[2 * i]).max() < 1e-5
        assert not stream[..., dim:].any()
    assert world(program).numbers["residual_error"] < 2e-4


def test_rotation_and_compression_change_no_prediction() -> None:
    plain, hidden = world("count_previous", rotate=False, compress=False), world("count_previous")
    np.testing.assert_array_equal(plain.rows, hidden.rows)
    ids = torch.from_numpy(plain.rows)
    torch.testing.assert_close(
        plain.model(input_ids=ids).logits, hidden.model(input_ids=ids).logits, atol=2e-3, rtol=0
    )
    numbers = hidden.numbers
    assert numbers["activation_rank"] <= numbers["rank"] < numbers["tracr_width"]
    # no coordinate is a variable's own any more
    direction = hidden.directions["previous"][0]
    assert float(direction.abs().max() / direction.norm()) < 0.9


def test_the_stream_is_the_sum_of_what_variables_add() -> None:
    found = world("pattern")
    below = Downstream(found.model, "resid_post.1")
    site, _ = below.read_rows(torch.from_numpy(found.rows))
    parts = [
        found.directions[v.name][torch.from_numpy(v.values)]
        for v in found.variables
        if found.is_present(v.name, "resid_post.1")
    ]
    rest = (site - torch.stack(parts).sum(0)).flatten(0, 1)
    # what is left is the constant
    assert float((rest - rest[0]).abs().max()) < 1e-3


def test_projection_below_the_rank_is_checked() -> None:
    exact = world("pattern").numbers
    kept = compiled("pattern", 3, compress_to=int(exact["activation_rank"]), n_rows=_ROWS)
    assert kept.numbers["outputs_kept"] == 1
    assert kept.model.config.n_embd < exact["tracr_width"]
    with pytest.raises(SpecError, match=r"keeps the output at .* at least 95%"):
        compiled("pattern", 3, compress_to=4, n_rows=_ROWS)
    with pytest.raises(SpecError, match="allowed is 1 to"):
        compiled("pattern", 3, compress_to=500, n_rows=_ROWS)


def test_read_and_write_sets() -> None:
    found = world("count_previous")
    assert {"indices", "tokens", "one"} == set(found.embedded)
    assert writes(found, 0)["previous"] == ("head.0",)
    assert reads(found, 0)["indices"] == ("q.0", "k.0")
    assert {"q.0", "k.0"} <= set(reads(found, 1)["previous"])
    assert "indices" not in reads(found, 1)
    assert writes(found, 1)["count"] == ("mlp",)
    assert found.is_present("previous", "resid_post.0")
    assert found.is_present("previous", "attn_out.0")
    assert not found.is_present("previous", "mlp_out.0")
    assert found.is_present("previous", "z.0")
    assert found.is_present("previous", "mlp_in.0")
    with pytest.raises(NotEstimable, match="nothing has written"):
        variable_truth(found, "resid_pre.0", "previous")
    with pytest.raises(NotEstimable, match="Did you mean 'previous'"):
        found.is_present("previos", "resid_pre.0")


@pytest.mark.parametrize("program", ["fraction", "count_previous", "pattern", "decoy"])
def test_only_what_is_read_later_is_used(program: str) -> None:
    found = world(program)
    truths = cells(found)
    assert any(x.is_used for x in truths.values())
    assert any(not x.is_used for x in truths.values())
    for (hookpoint, name), x in truths.items():
        first = 0 if hookpoint == "resid_pre.0" else int(hookpoint[-1]) + 1
        read = name == found.output or any(
            name in reads(found, i) for i in range(first, len(found.access))
        )
        assert read or not x.is_used, (hookpoint, name)
        # no half-measures: what is not used leaves nothing behind
        assert x.is_used or x.share < 1e-3, (hookpoint, name)
    last = found.hookpoints[-1]
    assert [name for (at, name), x in truths.items() if at == last and x.is_used] == [found.output]


def test_what_depends_on_the_position_alone_changes_across_positions_only() -> None:
    x = variable_truth(world("count_previous"), "resid_pre.0", "indices", n=192)
    assert x.within.effect_nats == 0
    assert x.across.share_of_full_swap > 0.1


def test_weights_that_read_do_not_say_used() -> None:
    found = world("decoy")
    assert found.variable("is_a").role == "passenger"
    assert reads(found, 1)["is_a"] == ("mlp",)
    x = variable_truth(found, "resid_post.0", "is_a", n=192)
    assert x.share < 1e-3
    assert variable_truth(found, "resid_post.0", "count", n=192).is_used


def predicted_by_gradients(found: CompiledWorld, hookpoint: str, variable: str) -> float:
    """KL of the same edits to second order: half the mean square of (score . edit)."""
    below = Downstream(found.model, hookpoint)
    random = generator(0, "test", hookpoint, variable)
    worst = 0.0
    places: tuple[Place, ...] = ("within", "across")
    for place in places:
        donors = draw_donors(found, place, 192)
        ids = torch.from_numpy(found.rows[donors.rows])
        site, entering = below.read_rows(ids)
        delta = torch.zeros_like(site, requires_grad=True)
        log_probs = below.logits(ids, entering, delta).log_softmax(-1)
        labels = torch.multinomial(
            log_probs.detach().exp().flatten(0, 1), 1, generator=random
        ).view_as(ids)
        score = log_probs.gather(-1, labels[..., None]).sum()
        (gradient,) = torch.autograd.grad(score, delta)
        here = gradient[torch.arange(len(ids)), torch.from_numpy(donors.positions)]
        edits = variable_edits(found, variable, donors)
        worst = max(worst, float((here * edits).sum(-1).square().mean()) / 2)
    return worst


def test_gradients_miss_what_hard_attention_and_steps_read() -> None:
    missed = {
        "majority": ("is_a", "resid_post.0"),
        "count_previous": ("previous", "resid_post.0"),
        "pattern": ("indices", "resid_post.0"),
    }
    for program, (variable, hookpoint) in missed.items():
        found = world(program)
        x = variable_truth(found, hookpoint, variable, n=192)
        assert x.share > 0.3, program
        assert x.effect_nats > 0.3, program
        assert predicted_by_gradients(found, hookpoint, variable) < 1e-3 * x.effect_nats, program
    # and they take for used what the output does not depend on
    found = world("decoy")
    assert variable_truth(found, "resid_post.0", "is_a", n=192).share < 1e-3
    assert predicted_by_gradients(found, "resid_post.0", "is_a") > 0.05
    # where the way to the output is linear they are right
    found = world("fraction")
    x = variable_truth(found, "resid_post.0", "is_a", n=192)
    predicted = predicted_by_gradients(found, "resid_post.0", "is_a")
    assert 0.3 < predicted / x.effect_nats < 3


def test_batches_agree_with_edits_of_single_tokens() -> None:
    found = world("pattern")
    below = Downstream(found.model, "resid_post.0")
    assert below.keeps_prefix
    donors = draw_donors(found, "across", 6)
    edits = variable_edits(found, "is_a", donors)
    batch = effects_of_edits(found, below, donors, edits)
    for i in range(6):
        row = below.read(torch.from_numpy(found.rows[donors.rows[i]]))
        single = below.kl_of_edits(row, int(donors.positions[i]), edits[i : i + 1], window=8)
        assert float(single[0]) == pytest.approx(batch[i], abs=1e-4)


def test_one_seed_one_world() -> None:
    first, second = (compiled("pattern", 5, n_rows=_ROWS) for _ in range(2))
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    np.testing.assert_array_equal(first.rows, second.rows)
    assert (first.rows[:, 0] == first.tokens.index(BOS)).all()
    other = compiled("pattern", 6, n_rows=_ROWS)
    assert not np.array_equal(first.rows, other.rows)


def test_an_unknown_program_is_named() -> None:
    with pytest.raises(SpecError, match="Did you mean 'repeat'"):
        compiled("repeats", 0)
