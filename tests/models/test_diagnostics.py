from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import architectures
from sae_placebo.controls import Redraw, build
from sae_placebo.core.errors import NotEstimable
from sae_placebo.models.diagnostics import card, participation_ratio, r2_of_token
from sae_placebo.models.loading import Reader

KEYS = {
    "outlier_share",
    "residual_norm",
    "block_to_embedding_ratio",
    "token_r2",
    "participation_ratio",
    "attention_entropy",
    "attention_entropy_max",
}
PLACES = ["resid_pre.0", "resid_pre.1", "attn_out.1", "mlp_out.1", "resid_post.1", "resid_post.2"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with architectures.one_thread():
        yield


def usual_mask(ids: torch.Tensor) -> torch.Tensor:
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, 0] = False
    mask[0, 15:] = False  # padding
    return mask


@pytest.mark.parametrize("name", list(architectures.CONFIGS))
def test_a_card_of_every_architecture(name: str) -> None:
    model = architectures.build(name)
    ids = architectures.token_ids(12, 20)
    mask = usual_mask(ids)
    before = model.config._attn_implementation
    found = card(model, PLACES, ids, mask)
    assert model.config._attn_implementation == before
    assert list(found) == PLACES
    json.dumps(found, allow_nan=False)
    x = {n: v[mask].double() for n, v in Reader(model, PLACES).read(ids).items()}
    for place, values in found.items():
        assert set(values) == KEYS
        assert values["residual_norm"]["value"] == pytest.approx(float(x[place].norm(dim=1).mean()))
        assert values["residual_norm"]["n"] == int(mask.sum())
    ratio = {place: found[place]["block_to_embedding_ratio"]["value"] for place in PLACES}
    size = x["resid_pre.0"].norm(dim=1).mean()
    assert ratio["resid_pre.0"] == 0.0
    added = (x["resid_post.1"] - x["resid_pre.0"]).norm(dim=1).mean()
    assert ratio["resid_post.1"] == pytest.approx(float(added / size))
    assert ratio["mlp_out.1"] == pytest.approx(float(x["mlp_out.1"].norm(dim=1).mean() / size))
    for place in PLACES[1:]:
        entropy, most = (found[place][f"attention_entropy{end}"] for end in ("", "_max"))
        assert entropy["n"] == most["n"] == int(mask[:4].sum())
        assert 0 < entropy["value"] < most["value"]
    full = float(np.log2(np.arange(1, 21))[np.nonzero(mask[:4].numpy())[1]].mean())
    reach = found["resid_post.1"]["attention_entropy_max"]["value"]
    if name in ("mistral", "gemma3", "gpt_neo"):  # a sliding window of 4 in layer 1
        assert 1.9 < reach <= 2.0
    else:
        assert reach == pytest.approx(full)


def test_outliers_are_counted_and_enter_nothing_else() -> None:
    model = architectures.build("llama")
    ids = architectures.token_ids(12, 20)
    mask = usual_mask(ids)
    with torch.no_grad():
        model.model.embed_tokens.weight[ids[3, 7]] *= 1e3
    spiked = (ids == ids[3, 7]) & mask
    found = card(model, ["resid_pre.0"], ids, mask, 20.0)["resid_pre.0"]
    assert found["outlier_share"]["value"] == pytest.approx(float(spiked.sum() / mask.sum()))
    rest = card(model, ["resid_pre.0"], ids, mask & ~spiked)["resid_pre.0"]
    assert rest["outlier_share"]["value"] == 0.0
    for name in ("residual_norm", "token_r2", "participation_ratio"):
        assert found[name] == rest[name]


def test_attention_entropy_by_hand() -> None:
    model = architectures.build("gpt2")
    ids = architectures.token_ids(3, 9)
    mask = usual_mask(ids)
    model.set_attn_implementation("eager")
    patterns = model(ids, output_attentions=True).attentions
    for place, layer in (("resid_pre.1", 0), ("attn_out.1", 1), ("resid_post.2", 2)):
        p = patterns[layer].double()
        bits = -(p * p.clamp_min(1e-300).log2()).sum(-1).mean(1)[mask].mean()
        found = card(model, [place], ids, mask)[place]["attention_entropy"]
        assert found["value"] == pytest.approx(float(bits))
        assert found["unit"] == "bits"


def test_what_is_not_there_is_null_with_a_reason() -> None:
    ids = architectures.token_ids(2, 8)
    mask = torch.ones_like(ids, dtype=torch.bool)
    first = card(architectures.build("llama"), ["resid_pre.0"], ids, mask)["resid_pre.0"]
    assert first["attention_entropy"] == {
        "value": None,
        "unit": "bits",
        "n": 0,
        "reason": "no attention lies below the first layer",
    }
    mamba = card(architectures.build("mamba"), ["resid_post.0"], ids, mask)["resid_post.0"]
    assert mamba["attention_entropy"]["value"] is None
    assert "does not return its weights" in mamba["attention_entropy"]["reason"]
    empty = card(architectures.build("llama"), ["resid_post.0"], ids, ~mask)["resid_post.0"]
    for row in empty.values():
        assert row["value"] is None
        assert row["reason"]
        assert row["n"] == 0


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_value_that_is_not_finite_is_null_with_a_reason(
    monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    monkeypatch.setattr("sae_placebo.models.diagnostics._mean_norm", lambda x: value)
    monkeypatch.setattr("sae_placebo.models.diagnostics._entropy", lambda *_: (value, value, 5))
    ids = architectures.token_ids(4, 12)
    found = card(architectures.build("llama"), ["resid_post.1"], ids, usual_mask(ids))
    json.dumps(found, allow_nan=False)
    row = found["resid_post.1"]
    for name in ("residual_norm", "attention_entropy", "attention_entropy_max"):
        assert row[name]["value"] is None
        assert f"comes out as {value}" in row[name]["reason"]
    assert row["participation_ratio"]["value"] is not None


def test_the_embedding_is_explained_by_the_token_and_blocks_dilute_it() -> None:
    model = architectures.build("llama")
    ids = architectures.token_ids(20, 20)
    mask = usual_mask(ids)
    found = card(model, ["resid_pre.0", "resid_post.2"], ids, mask)
    assert found["resid_pre.0"]["token_r2"]["value"] == pytest.approx(1.0)
    assert found["resid_post.2"]["token_r2"]["value"] < 0.5
    redrawn, _ = build(model, Redraw(keep=("embeddings",)), 0, 0)
    again = card(redrawn, ["resid_pre.0", "resid_post.2"], ids, mask)
    assert again["resid_pre.0"] == found["resid_pre.0"]
    assert again["resid_post.2"] != found["resid_post.2"]


def brute_force_r2(x: np.ndarray, tokens: np.ndarray) -> float:
    keep = [t for t in range(len(tokens)) if (tokens == tokens[t]).sum() >= 2]
    missed = total = 0.0
    for t in keep:
        others = [s for s in keep if s != t]
        same = [s for s in others if tokens[s] == tokens[t]]
        missed += float(((x[t] - x[same].mean(0)) ** 2).sum())
        total += float(((x[t] - x[others].mean(0)) ** 2).sum())
    return 1 - missed / total


def test_r2_of_token_is_the_leave_one_out_one() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 12, 40)
    x = rng.normal(size=(40, 5)) + rng.normal(size=(12, 5))[tokens] + 100.0
    found = r2_of_token(torch.from_numpy(x), torch.from_numpy(tokens))
    assert found == pytest.approx(brute_force_r2(x, tokens))
    assert 0.1 < found < 0.9


def test_r2_of_token_is_not_inflated_where_tokens_say_nothing() -> None:
    # rare tokens: the plain share between token means would be about 0.5 here
    rng = np.random.default_rng(0)
    values: list[float] = []
    for _ in range(20):
        tokens = rng.integers(0, 200, 400)
        x = rng.normal(size=(400, 8))
        values.append(r2_of_token(torch.from_numpy(x), torch.from_numpy(tokens)))
    assert max(values) < 0.0


def _same_up_to_rounding() -> torch.Tensor:
    """One row five times, as a model gives it: one number is off by its last bit."""
    x = torch.full((5, 3), 0.1)
    x[1, 0] = x[1, 0].nextafter(torch.tensor(1.0))
    return x


def test_r2_of_token_needs_repeats_and_variance() -> None:
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(NotEstimable, match="0 distinct tokens occur at least twice"):
        r2_of_token(x, torch.arange(6))
    with pytest.raises(NotEstimable, match="1 distinct tokens"):
        r2_of_token(x, torch.tensor([1, 1, 1, 2, 3, 4]))
    with pytest.raises(NotEstimable, match="no variance"):
        r2_of_token(torch.ones(4, 3), torch.tensor([1, 1, 2, 2]))
    with pytest.raises(NotEstimable, match="no variance"):
        r2_of_token(_same_up_to_rounding(), torch.tensor([1, 1, 2, 2, 2]))


def test_participation_ratio_counts_dimensions() -> None:
    x = torch.cat([torch.eye(6), -torch.eye(6)])
    assert participation_ratio(x) == pytest.approx(6.0)
    scale = torch.tensor([3.0, 1.0, 0, 0, 0, 0])
    assert participation_ratio(x * scale + 50) == pytest.approx((9 + 1) ** 2 / (81 + 1), rel=1e-5)
    # fewer tokens than dimensions: by the Gram matrix
    wide = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    eigenvalues = torch.linalg.eigvalsh(torch.cov(wide.double().T)).clamp_min(0)
    expected = float(eigenvalues.sum() ** 2 / eigenvalues.square().sum())
    assert participation_ratio(wide) == pytest.approx(expected)
    assert participation_ratio(wide) <= 4
    with pytest.raises(NotEstimable, match="1 tokens"):
        participation_ratio(wide[:1])
    with pytest.raises(NotEstimable, match="no variance"):
        participation_ratio(torch.ones(4, 3))
    with pytest.raises(NotEstimable, match="no variance"):
        participation_ratio(_same_up_to_rounding())


def test_uniform_attention_reaches_its_maximum() -> None:
    model: Any = architectures.build("gpt2")
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_attn.weight[:, : architectures.D_IN] = 0.0  # no queries: no preference
            block.attn.c_attn.bias[: architectures.D_IN] = 0.0
    ids = architectures.token_ids(2, 8)
    mask = usual_mask(ids)
    found = card(model, ["resid_post.1"], ids, mask)["resid_post.1"]
    assert found["attention_entropy"]["value"] == pytest.approx(
        found["attention_entropy_max"]["value"], rel=1e-5
    )
    mean = sum(math.log2(n) for n in range(2, 9)) / 7
    assert found["attention_entropy_max"]["value"] == pytest.approx(mean)
