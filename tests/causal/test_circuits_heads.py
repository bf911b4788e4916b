"""Induction and previous-token heads: those built by hand are found, and no others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from scipy.sparse import csr_matrix

from architectures import CONFIGS, VOCABULARY, build
from sae_placebo.causal.circuits.heads import HeadScores, HeadSpec, head_scores, written_by_heads
from sae_placebo.causal.circuits.writers import WriterSpec, writers
from sae_placebo.causal.use.base import Directions, Subject
from sae_placebo.causal.use.downstream import Downstream
from sae_placebo.core.errors import NotEstimable
from sae_placebo.data.rows import Rows
from sae_placebo.latents.base import TokenTable

WIDTH, WORDS, HEAD = 25, 60, 16


def text(n_rows: int = 20, width: int = WIDTH, vocabulary: int = WORDS) -> Rows:
    draw = np.random.default_rng(1)
    ids = draw.integers(3, vocabulary, (n_rows, width)).astype(np.int32)
    ids[:, 0] = 0
    return Rows(
        ids, np.full(n_rows, width, dtype=np.int32), np.arange(n_rows, dtype=np.int32),
        tuple(f"d{i}" for i in range(n_rows)),
    )  # fmt: skip


def induction_model(written: float = 1.0) -> torch.nn.Module:
    """L0.H0 copies the token before into dimensions of its own; L1.H2 looks for the present one in them.

    `written` is the size of the copy beside that of the token's own embedding.
    """
    config = transformers.GPT2Config(
        n_embd=64, n_layer=2, n_head=4, n_positions=WIDTH, vocab_size=WORDS,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval().requires_grad_(False)
    draw = torch.Generator().manual_seed(0)
    for parameter in model.transformer.h.parameters():
        parameter.zero_()
    for layer in model.transformer.h:
        layer.ln_1.weight.fill_(1)
        layer.ln_2.weight.fill_(1)
    codes = torch.randn(WORDS, HEAD, generator=draw)
    codes = torch.nn.functional.normalize(codes - codes.mean(1, keepdim=True), dim=1)
    places = torch.randn(WIDTH, HEAD, generator=draw)
    places = torch.nn.functional.normalize(places, dim=1)
    model.transformer.wte.weight.zero_()
    model.transformer.wte.weight[:, :HEAD] = codes
    model.transformer.wpe.weight.zero_()
    model.transformer.wpe.weight[:, 32 : 32 + WIDTH] = torch.eye(WIDTH)
    first, second = model.transformer.h[0].attn, model.transformer.h[1].attn
    query, key, value = (slice(64 * i, 64 * i + HEAD) for i in range(3))
    first.c_attn.weight[33 : 32 + WIDTH, query] = 20 * places[:-1]
    first.c_attn.weight[32 : 32 + WIDTH, key] = places
    first.c_attn.weight[:HEAD, value] = torch.eye(HEAD)
    first.c_proj.weight[:HEAD, HEAD : 2 * HEAD] = written * torch.eye(HEAD)
    query, key = slice(2 * HEAD, 3 * HEAD), slice(64 + 2 * HEAD, 64 + 3 * HEAD)
    second.c_attn.weight[:HEAD, query] = 20 * torch.eye(HEAD)
    second.c_attn.weight[HEAD : 2 * HEAD, key] = torch.eye(HEAD) / written
    return model


def test_built_heads_are_found() -> None:
    model = induction_model()
    before = model.config._attn_implementation
    scores = head_scores(model, text(), 0, HeadSpec(repeat_rows=20, block=12))
    assert model.config._attn_implementation == before
    assert scores.kind == ["previous token", "", "", "", "", "", "induction", ""]
    assert scores.previous[0] > 0.9
    assert scores.induction[6] > 0.8
    assert scores.induction_fresh[6] < 0.2
    # a head with no weights attends evenly: it scores its null
    np.testing.assert_allclose(scores.previous[1], scores.previous_null[1], rtol=1e-4)
    np.testing.assert_allclose(scores.induction[3], scores.induction_null[3], rtol=1e-4)
    queries = np.arange(2, WIDTH)
    np.testing.assert_allclose(scores.previous_null[1], (1 / (queries + 1)).mean(), rtol=1e-5)
    assert scores.n_previous == 20 * (WIDTH - 2)
    table = scores.table()
    assert len(table) == 8
    assert (
        (table["previous_low"] <= table["previous"]) & (table["previous"] <= table["previous_high"])
    ).all()


def test_weights_that_sum_to_more_than_one_by_rounding_stay_within_their_interval() -> None:
    one = np.array([1 + 1e-7])
    same = dict.fromkeys(("previous", "induction"), one)
    errors = dict.fromkeys(("previous_se", "induction_se"), np.zeros(1))
    nulls = dict.fromkeys(("previous_null", "induction_null", "induction_fresh"), np.full(1, 0.1))
    first = np.zeros(1, dtype=np.int64)
    table = HeadScores(
        first, first, **same, **errors, **nulls, n_previous=2, n_induction=2, least=0.2
    ).table()
    for name in ("previous", "induction"):
        assert table[name + "_low"][0] <= table[name][0] <= table[name + "_high"][0] == 1


def test_latents_of_found_heads_are_named() -> None:
    # half as large as the embedding: random encoders then have far from all of their share in the head
    model, rows = induction_model(written=0.5), text(60)
    scores = head_scores(model, rows, 0, HeadSpec(repeat_rows=20, block=12))
    downstream = Downstream(model, "resid_post.0")
    places = np.argwhere(rows.usable())
    site, _ = downstream.read_rows(torch.from_numpy(rows.token_ids.astype(np.int64)))
    tokens = TokenTable(rows, places, tuple(str(i) for i in range(WORDS)))
    subject = Subject(downstream, tokens, site[places[:, 0], places[:, 1]])
    encoder = torch.zeros(64, 2)
    encoder[:HEAD, 0] = model.transformer.wte.weight[7, :HEAD]  # fires on token 7
    encoder[HEAD : 2 * HEAD, 1] = model.transformer.wte.weight[7, :HEAD]  # on what comes behind it
    # by the token's id: many tokens share the largest pre-activation, up to rounding
    ids = rows.token_ids
    fires = np.stack([ids[places[:, 0], places[:, 1] - back] == 7 for back in (0, 1)], axis=1)
    directions = Directions(
        torch.nn.functional.normalize(encoder.T, dim=1).numpy(),
        csr_matrix(fires.astype(np.float32)),
    )
    spec = WriterSpec(tokens=2000, groups=4, pseudo=320)
    found = writers(subject, encoder, directions, spec, 0)
    assert found.pseudo_null95[1, 1] < 0.95
    assert found.pseudo_p[1, 1] < spec.level / 2
    import pandas as pd

    classes = pd.DataFrame({"latent": [0, 1], "class": ["single_token", "previous"]})
    table = written_by_heads(found, scores, classes)
    assert set(table["head_kind"]) == {"previous token"}
    by_latent = table.set_index("latent")
    assert by_latent.loc[1, "share"] == pytest.approx(1, abs=1e-3)
    assert by_latent.loc[1, "class"] == "previous"
    assert by_latent.loc[0, "share"] < 0.1
    assert list(by_latent.loc[[0, 1], "above"]) == [False, True]


@pytest.mark.parametrize(
    "name", ["llama", "mistral", "gpt_neox", "bloom", "opt", "falcon", "qwen3"]
)
def test_scores_are_the_attention_weights(name: str) -> None:
    assert name in CONFIGS
    model = build(name)
    rows = text(3, 12, VOCABULARY)
    scores = head_scores(model, rows, 0, HeadSpec(text_rows=3, repeat_rows=2, block=5))
    model.config._attn_implementation = "eager"
    ids = torch.from_numpy(rows.token_ids.astype(np.int64))
    patterns = model(input_ids=ids, output_attentions=True).attentions
    queries = torch.arange(2, 12)
    expected = torch.stack([p[:, :, queries, queries - 1].mean((0, 2)) for p in patterns])
    np.testing.assert_allclose(scores.previous, expected.ravel().numpy(), rtol=1e-3, atol=1e-5)
    reach = (patterns[0] > 0).any(1)[0, 2:].sum(-1)
    np.testing.assert_allclose(scores.previous_null[0], (1 / reach).mean(), rtol=1e-4)


def test_untrained_heads_have_no_name() -> None:
    scores = head_scores(build("llama"), text(20, 25, VOCABULARY), 0, HeadSpec(block=10))
    assert scores.kind == [""] * 12


def test_short_texts_are_refused() -> None:
    with pytest.raises(NotEstimable, match="two blocks of 3"):
        head_scores(build("llama"), text(4, 8, VOCABULARY), 0)
    with pytest.raises(NotEstimable, match="0 rows"):
        head_scores(build("llama"), text(4, 3, VOCABULARY), 0)
