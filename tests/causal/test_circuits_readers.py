"""Readers: gradients that sum to the whole, finite edits that agree with them, and planted readers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from architectures import CONFIGS, D_IN, build
from planted_subjects import random_directions, subject_of, tiny_subject
from sae_placebo.causal.circuits.patching import PatchSpec, confirm_reader
from sae_placebo.causal.circuits.readers import ReadersSpec, readers, survey
from sae_placebo.causal.circuits.traces import KINDS, ReaderTrace, check_sum
from sae_placebo.causal.circuits.weights import weight_capability
from sae_placebo.causal.use.base import Directions, Subject
from sae_placebo.causal.use.gradients import drawn_rows, sampled_gradients
from sae_placebo.causal.use.screen import screen
from sae_placebo.core.errors import ModelError, NotEstimable, SpecError

SPEC = ReadersSpec(nulls=49, reader_nulls=49)


@pytest.mark.parametrize("name", CONFIGS)
def test_readers_sum_to_the_gradient_at_the_hookpoint(name: str) -> None:
    model = build(name)
    for hookpoint in ("resid_pre.0", "resid_post.1", "attn_out.1", "mlp_out.1", "resid_post.2"):
        subject = subject_of(model, hookpoint)
        trace = ReaderTrace(subject.downstream)
        (found,) = sampled_gradients(subject, drawn_rows(subject, 30, 0), 1, 0, trace)
        assert found.readers is not None
        assert found.sampled.abs().max() > 1e-3
        missed = (found.readers.sum(2) - found.sampled).norm() / found.sampled.norm()
        assert missed < 1e-4, (hookpoint, trace.names)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_reader_that_is_missed_is_told() -> None:
    with pytest.raises(ModelError, match="account for"):
        check_sum(torch.ones(1, 2, 3, 4), torch.full((1, 2, 4), 4.0))


def test_names_and_kinds() -> None:
    trace = ReaderTrace(tiny_subject("llama", "resid_post.1").downstream)
    assert trace.names == [
        "q.2.0", "q.2.1", "q.2.2", "q.2.3", "k.2.0", "k.2.1", "v.2.0", "v.2.1", "mlp.2", "unembedding",
    ]  # fmt: skip
    assert trace.kinds == ["qk"] * 6 + ["ov"] * 2 + ["mlp", "unembedding"]
    after_attention = ReaderTrace(tiny_subject("llama", "attn_out.2").downstream)
    assert after_attention.names == ["mlp.2", "unembedding"]
    parallel = ReaderTrace(tiny_subject("gptj", "attn_out.2").downstream)
    assert parallel.names == ["unembedding"]


@pytest.mark.parametrize("name", ["llama_untied", "gpt_neox", "opt", "gemma2"])
def test_small_edits_of_one_reader_cost_what_its_gradient_says(name: str) -> None:
    subject = tiny_subject(name, "resid_post.1")
    directions = random_directions(subject, n=1, per_token=1)
    directions = Directions(directions.vectors, directions.amounts * 0.02)
    trace = ReaderTrace(subject.downstream)
    row = drawn_rows(subject, 15, 0)
    (found,) = sampled_gradients(subject, row, 800, 0, trace)
    assert found.readers is not None
    token = found.tokens[3]
    d = torch.from_numpy(directions.vectors[0]) * float(directions.amounts[token, 0])
    spec = PatchSpec(nulls=1, window=99)
    for m, reader in enumerate(trace.names):
        predicted = float((found.readers[:, 3, m] @ d).square().mean() / 2)
        patched = confirm_reader(subject, directions, 0, reader, np.array([token]), spec, 0, trace)
        assert patched.kl[0] == pytest.approx(predicted, rel=0.35, abs=1e-10), reader


def test_survey_is_screen_and_readers() -> None:
    subject = tiny_subject()
    directions = random_directions(subject)
    one, two = survey(subject, directions, SPEC, 0)
    alone, read = screen(subject, directions, SPEC, 0), readers(subject, directions, SPEC, 0)
    assert np.allclose(one.phi, alone.phi, rtol=1e-4)
    assert np.array_equal(two.score, read.score)
    assert np.allclose(read.path_split.sum(1), 1)
    assert read.path_split.shape == (40, len(KINDS))
    assert ((read.percentile >= 0) & (read.percentile <= 1)).all()


def test_signed_parts_sum_to_the_change_in_log_probability() -> None:
    subject = tiny_subject("gpt2", "resid_post.0")
    directions = random_directions(subject, n=5, per_token=1)
    read = readers(subject, directions, SPEC, 0)
    total = 0.0
    for token in directions.by_direction[:, [2]].indices:
        row, position = (int(v) for v in subject.tokens.places[token])
        clean = subject.clean(row)
        step = torch.zeros_like(clean.site)[None]
        step[0, position] = torch.from_numpy(directions.vectors[2]) * 1e-2
        logp = [
            subject.downstream.logits(clean.token_ids[None], clean.entering[None], sign * step)[0]
            .double().log_softmax(-1)[torch.arange(15), clean.token_ids[1:]].sum()
            for sign in (1, -1)
        ]  # fmt: skip
        total += float(directions.amounts[token, 2] * (logp[0] - logp[1]) / 2e-2)
    assert read.signed[2].sum() == pytest.approx(total / read.n[2], rel=0.02)


def _planted() -> tuple[Subject, Directions]:
    """Direction 0 is read by the last MLP alone, direction 1 by the values of one head alone."""
    model = build("llama_untied")
    layer: Any = model.model.layers[2]
    for norm in (layer.input_layernorm, layer.post_attention_layernorm, model.model.norm):
        norm.weight.fill_(1)
    vectors = np.linalg.qr(np.random.default_rng(0).standard_normal((D_IN, 2)))[0].T
    basis = torch.from_numpy(vectors).float()
    attention, mlp = layer.self_attn, layer.mlp
    reading = [attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj]
    for module in (*reading, model.lm_head):
        module.weight -= module.weight @ basis.T @ basis
    mlp.up_proj.weight += torch.outer(torch.randn(64, generator=_random()), basis[0])
    # values of the second group of heads
    attention.v_proj.weight[8:] += torch.outer(torch.randn(8, generator=_random()), basis[1])
    subject = subject_of(model, "resid_post.1")
    amounts = np.full((len(subject.tokens), 2), 0.5, dtype=np.float32)
    return subject, Directions(vectors.astype(np.float32), csr_matrix(amounts))


def _random() -> torch.Generator:
    return torch.Generator().manual_seed(2)


def test_planted_readers_are_found_and_confirmed() -> None:
    subject, directions = _planted()
    read = readers(subject, directions, SPEC, 0)
    assert read.names[read.top(0, 1)[0]] == "mlp.2"
    assert read.names[read.top(1, 1)[0]] == "v.2.1"
    split = dict(zip(KINDS, read.path_split.T, strict=True))
    assert split["mlp"][0] > 0.9
    assert split["ov"][1] > 0.9
    trace = ReaderTrace(subject.downstream)
    tokens = np.arange(0, 600, 40)
    for direction, reader in enumerate(("mlp.2", "v.2.1")):
        for name in ("mlp.2", "v.2.1", "v.2.0", "q.2.1", "unembedding"):
            found = confirm_reader(
                subject, directions, direction, name, tokens, PatchSpec(), 0, trace
            )
            assert found.null.shape == (15, 19)
            assert (found.p == 0.05) == (name == reader), (reader, name)


def test_saturated_attention_has_no_gradient_and_is_confirmed_all_the_same() -> None:
    subject, directions = _planted()
    attention = subject.downstream.model.model.layers[2].self_attn
    d = torch.from_numpy(directions.vectors[0])
    attention.q_proj.weight[0:8] += 60 * torch.outer(torch.ones(8), d)
    attention.k_proj.weight[0:8] *= 200
    attention.k_proj.bias[0:8] *= 200
    amounts = directions.amounts.copy()
    amounts.data[:] = 8.0
    directions = Directions(directions.vectors, amounts)
    trace = ReaderTrace(subject.downstream)
    (found,) = sampled_gradients(subject, drawn_rows(subject, 600, 0), 4, 0, trace)
    assert found.readers is not None
    along = found.readers[:, :, trace.names.index("q.2.0")] @ d * 8
    predicted = (along.square().mean(0) / 2).numpy()
    tokens = np.arange(9, 600, 14)
    patched = confirm_reader(subject, directions, 0, "q.2.0", tokens, PatchSpec(), 0, trace)
    costly = patched.kl > 1e-3
    assert costly.sum() >= 5
    assert np.median(predicted[tokens][costly] / patched.kl[costly]) < 0.05


def test_questions_without_an_answer_are_refused() -> None:
    subject, directions = _planted()
    with pytest.raises(SpecError, match=r"q\.9\.0"):
        confirm_reader(subject, directions, 0, "q.9.0", np.array([3]), PatchSpec(), 0)
    with pytest.raises(NotEstimable):
        confirm_reader(subject, directions, 0, "mlp.2", np.array([], dtype=int), PatchSpec(), 0)


def test_weights_name_the_planted_readers_and_are_one_on_average() -> None:
    subject, directions = _planted()
    found = weight_capability(subject, directions, 0)
    assert found.names[:4] == ("q.2.0", "q.2.1", "q.2.2", "q.2.3")
    at = dict(zip(found.names, found.gain.T, strict=True))
    assert at["mlp.2"][0] > 1.3 > 1e-3 > at["mlp.2"][1]
    assert at["ov.2.3"][1] > 1.3 > 1e-3 > at["ov.2.3"][0]
    assert at["ov.2.0"].max() < 1e-3
    assert at["unembedding"].max() < 1e-2
    isotropic = weight_capability(subject, random_directions(subject, n=400), 0)
    assert np.allclose(np.square(isotropic.gain).mean(0), 1, atol=0.2)
    assert np.abs(isotropic.above_others.mean(0)).max() < 1e-6


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_of_every_architecture(name: str) -> None:
    subject = tiny_subject(name, "resid_post.1")
    found = weight_capability(subject, random_directions(subject, n=5), 0, n_random=50)
    assert np.isfinite(found.gain).all()
    assert found.names[-1] == "unembedding"
