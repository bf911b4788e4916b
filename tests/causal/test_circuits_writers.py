"""Shares of parts in latents: exact sums on many architectures, planted writers, calibrated nulls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from architectures import CONFIGS, D_IN, VOCABULARY, build
from sae_placebo.causal.circuits.heads import noted_patterns
from sae_placebo.causal.circuits.sources import sources
from sae_placebo.causal.circuits.streams import StreamReader
from sae_placebo.causal.circuits.writers import Writers, WriterSpec, writers
from sae_placebo.causal.use.base import Directions, Subject
from sae_placebo.causal.use.downstream import Downstream
from sae_placebo.core.errors import NotEstimable
from sae_placebo.data.rows import Rows
from sae_placebo.latents.base import TokenTable

N_ROWS, WIDTH = 24, 12
SPEC = WriterSpec(tokens=1000, groups=4, pseudo=80, fewest=5)


def make_subject(model: torch.nn.Module, hookpoint: str, n_rows: int = N_ROWS) -> Subject:
    draw = np.random.default_rng(0)
    ids = draw.integers(3, VOCABULARY, (n_rows, WIDTH)).astype(np.int32)
    lengths = draw.integers(WIDTH - 3, WIDTH + 1, n_rows).astype(np.int32)
    rows = Rows(
        ids, lengths, (np.arange(n_rows) // 2).astype(np.int32),
        tuple(f"d{i}" for i in range(n_rows // 2)),
    )  # fmt: skip
    places = np.argwhere(rows.usable())
    words = tuple(f"w{i}" for i in range(VOCABULARY))
    downstream = Downstream(model, hookpoint)
    site, _ = downstream.read_rows(torch.from_numpy(ids.astype(np.int64)))
    return Subject(
        downstream, TokenTable(rows, places, words), site[places[:, 0], places[:, 1]].float()
    )


def fired(x: torch.Tensor, encoder: torch.Tensor, n: int) -> Directions:
    """Directions that are held by the tokens of their encoder's largest pre-activations."""
    z = (x @ encoder).numpy()
    kept = z >= np.sort(z, axis=0)[-n]
    amounts = csr_matrix(np.where(kept, np.abs(z) + 1e-3, 0).astype(np.float32))
    vectors = torch.nn.functional.normalize(encoder.T, dim=1).numpy().astype(np.float32)
    return Directions(vectors, amounts)


def found(
    name: str, hookpoint: str = "resid_post.1", m: int = 6
) -> tuple[Subject, torch.Tensor, Directions, Writers]:
    subject = make_subject(build(name), hookpoint)
    encoder = torch.randn(D_IN, m, generator=torch.Generator().manual_seed(3))
    directions = fired(subject.activations, encoder, 25)
    return subject, encoder, directions, writers(subject, encoder, directions, SPEC, 0)


# --- exactness -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_shares_sum_to_one_without_a_rest(name: str) -> None:
    _, _, _, result = found(name)
    assert len(result.parts) == 1 + 2 * 4 + 2 + 1
    np.testing.assert_allclose(result.shares.sum(1), 1, atol=1e-6)
    assert np.abs(result.shares[:, -1]).max() < 1e-3


def test_share_is_the_formula() -> None:
    subject, encoder, directions, result = found("llama")
    e = encoder.numpy().astype(np.float64)
    outputs: dict[str, list[np.ndarray]] = {"embedding": [], "x": []}
    for _, columns, x in StreamReader(subject).read(np.arange(N_ROWS)):
        outputs["embedding"].append(columns[0])
        outputs["x"].append(x)
    embedding, x = (np.concatenate(outputs[k]).astype(np.float64) for k in ("embedding", "x"))
    np.testing.assert_allclose(x, subject.activations.numpy(), atol=1e-4)
    active = directions.amounts.toarray() > 0
    for i in range(e.shape[1]):
        moved = (embedding[active[:, i]].mean(0) - embedding.mean(0)) @ e[:, i]
        whole = (x[active[:, i]].mean(0) - x.mean(0)) @ e[:, i]
        assert result.shares[i, 0] == pytest.approx(moved / whole, abs=1e-4)


@pytest.mark.parametrize(
    ("hookpoint", "n_parts"), [("resid_pre.0", 2), ("attn_out.1", 5), ("mlp_out.1", 2)]
)
def test_other_sites(hookpoint: str, n_parts: int) -> None:
    _, _, _, result = found("llama", hookpoint)
    assert len(result.parts) == n_parts
    assert np.abs(result.shares[:, -1]).max() < 1e-3


# --- planted writers ---------------------------------------------------------------------------------


def test_the_planted_writer_is_found() -> None:
    """The model writes one head's output, and nothing else, into a plane that one encoder reads."""
    model = build("llama")
    plane = torch.eye(D_IN)[:, :2]
    with torch.no_grad():
        across = torch.eye(D_IN) - plane @ plane.T
        model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight @ across)
        for index, layer in enumerate(model.model.layers[:2]):
            layer.mlp.down_proj.weight.copy_(across @ layer.mlp.down_proj.weight)
            weight = across @ layer.self_attn.o_proj.weight
            if index == 1:
                weight[0, 16:24] += 0.3 * torch.linspace(-1, 1, 8)
            layer.self_attn.o_proj.weight.copy_(weight)
    subject = make_subject(model, "resid_post.1", 40)
    encoder = torch.randn(D_IN, 12, generator=torch.Generator().manual_seed(1))
    encoder[:, 0] = plane[:, 0]
    result = writers(subject, encoder, fired(subject.activations, encoder, 40), SPEC, 0)
    names = [part.name for part in result.parts]
    head = names.index("L1.H2")
    assert result.shares[0, head] == pytest.approx(1, abs=1e-3)
    assert result.above[0, head]
    assert result.above_both[0, head]
    assert result.top(0, 1)["part"].tolist() == ["L1.H2"]
    assert result.above_both[0].sum() == 1
    assert result.low[0, head] <= result.shares[0, head] <= result.high[0, head]
    assert result.shares[0, head] > result.angle_null95[0, head]


# --- nulls -------------------------------------------------------------------------------------------


def test_angle_null_is_that_of_drawn_encoders() -> None:
    subject, encoder, directions, result = found("llama", m=2)
    draw = np.random.default_rng(0)
    active = np.asarray(directions.amounts[:, 0].toarray()).ravel() > 0
    x = subject.activations.numpy().astype(np.float64)
    dx = x[active].mean(0) - x.mean(0)
    unit = dx / np.linalg.norm(dx)
    e = encoder[:, 0].numpy().astype(np.float64)
    cosine = e @ unit / np.linalg.norm(e)
    w = draw.standard_normal((3000, D_IN))
    w -= (w @ unit)[:, None] * unit
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    drawn = cosine * unit + np.sqrt(1 - cosine**2) * w
    embedding = np.concatenate([c[0] for _, c, _ in StreamReader(subject).read(np.arange(N_ROWS))])
    moved = embedding[active].mean(0) - embedding.mean(0)
    null = drawn @ moved / (drawn @ dx)
    assert result.angle_null95[0, 0] == pytest.approx(np.quantile(null, 0.95), abs=0.03)
    assert result.angle_p[0, 0] == pytest.approx((null >= result.shares[0, 0]).mean(), abs=0.03)


def test_random_encoders_are_seldom_above() -> None:
    subject = make_subject(build("llama"), "resid_post.1", 120)
    encoder = torch.randn(D_IN, 200, generator=torch.Generator().manual_seed(9))
    directions = fired(subject.activations, encoder, 60)
    spec = WriterSpec(tokens=2000, pseudo=400)
    result = writers(subject, encoder, directions, spec, 0)
    family = (result.pseudo_p[:, result.is_head] <= 0.05).any(1)
    assert family.mean() <= 0.1
    assert result.above_both.any(1).mean() <= 0.1


def test_silent_latents_have_a_reason() -> None:
    subject = make_subject(build("llama"), "resid_post.1")
    encoder = torch.randn(D_IN, 3, generator=torch.Generator().manual_seed(3))
    directions = fired(subject.activations, encoder, 25)
    amounts = directions.amounts.tolil()
    amounts[:, 1] = 0
    directions = Directions(directions.vectors, csr_matrix(amounts))
    result = writers(subject, encoder, directions, SPEC, 0)
    assert np.isnan(result.shares[1]).all()
    assert np.isfinite(result.shares[0]).all()
    assert "fires on 0" in result.reasons[1]
    assert not result.reasons[0]
    assert not result.above[1].any()
    with pytest.raises(NotEstimable, match="fires on 0"):
        result.top(1)


def test_same_seed_same_bits() -> None:
    first, second = found("gpt2")[3], found("gpt2")[3]
    np.testing.assert_array_equal(first.shares, second.shares)
    np.testing.assert_array_equal(first.pseudo_p, second.pseudo_p)


# --- sources -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["llama", "mistral", "qwen3", "gpt2", "gemma2", "granite", "gpt_neox"]
)
def test_sources_sum_to_what_the_head_writes(name: str) -> None:
    subject = make_subject(build(name), "resid_post.1", 4)
    encoder = torch.randn(D_IN, generator=torch.Generator().manual_seed(3))
    before = subject.downstream.model.config._attn_implementation
    stream = StreamReader(subject)
    tokens, columns, _ = next(iter(stream.read(np.arange(4))))
    block = next(i for i, b in enumerate(stream.blocks) if b.parts[0].layer == 1)
    output = stream.blocks[block].output
    assert output is not None
    width = output.shape[2]
    for head in (0, 3):
        z = torch.from_numpy(columns[block][:, head * width : (head + 1) * width])
        expected = z @ output[head].T @ encoder
        table = sources(subject, encoder, 1, head, tokens[:3], n=WIDTH)
        whole = table.groupby("firing")["contribution"].sum().to_numpy()
        np.testing.assert_allclose(whole, expected[:3].numpy(), rtol=2e-3, atol=1e-4)
        assert (table["attention"] >= 0).all()
    assert subject.downstream.model.config._attn_implementation == before


def test_sources_of_heads_behind_the_hookpoint_are_refused() -> None:
    subject = make_subject(build("llama"), "resid_post.0", 4)
    with pytest.raises(NotEstimable, match=r"L1\.H0"):
        sources(subject, torch.ones(D_IN), 1, 0, np.array([0]))
    with noted_patterns(subject.downstream.model, lambda *_: None, range(1)):
        pass
    assert not any(len(m._forward_hooks) for m in subject.downstream.model.modules())
