"""Edits behind kept prefixes against whole forwards with the edit hooked in, on many architectures."""

from __future__ import annotations

import pytest
import torch
import transformers

from architectures import CONFIGS, D_IN, VOCABULARY, build
from sae_placebo.causal.use.downstream import Downstream, kl
from sae_placebo.core.errors import ModelError
from sae_placebo.models.reading import replaced

LENGTH, POSITION, WINDOW = 12, 5, 3


def _ids() -> torch.Tensor:
    return (torch.arange(LENGTH) * 13 + 5).remainder(VOCABULARY)


def _by_hooks(model: torch.nn.Module, hookpoint: str, delta: torch.Tensor) -> torch.Tensor:
    """Return the cost of an edit from two whole forwards."""

    def edit(x: torch.Tensor) -> torch.Tensor:
        edited = x.clone()
        edited[:, POSITION] += delta
        return edited

    with torch.no_grad():
        clean = model(input_ids=_ids()[None], use_cache=False).logits[0].double().log_softmax(-1)
        with replaced(model, hookpoint, edit):
            found = (
                model(input_ids=_ids()[None], use_cache=False).logits[0].double().log_softmax(-1)
            )
    cost = (clean.exp() * (clean - found)).sum(-1)
    return cost[POSITION : POSITION + WINDOW + 1].sum()


@pytest.mark.parametrize("name", CONFIGS)
def test_an_edit_costs_what_a_whole_forward_says(name: str) -> None:
    model = build(name)
    deltas = torch.randn(3, D_IN, generator=torch.Generator().manual_seed(0))
    for hookpoint in (
        "resid_pre.0",
        "resid_post.0",
        "z.1",
        "mlp_in.1",
        "mlp_out.1",
        "resid_post.2",
    ):
        try:
            behind = Downstream(model, hookpoint)
        except ModelError:
            assert hookpoint == "mlp_out.1"
            continue
        row = behind.read(_ids())
        found = behind.kl_of_edits(row, POSITION, deltas, WINDOW)
        expected = torch.stack([_by_hooks(model, hookpoint, delta) for delta in deltas])
        assert torch.allclose(found.double(), expected, rtol=2e-3, atol=1e-6), hookpoint
        assert (expected > 1e-4).any()


OTHER_KINDS = (
    *("rwkv", "openai_gpt", "opt_projected", "mamba2", "jamba", "recurrent_gemma"),
    *("zamba2", "falcon_h1", "deepseek_v3", "gpt_oss", "xlstm", "lfm2"),
)


@pytest.mark.parametrize("name", OTHER_KINDS)
def test_an_edit_costs_the_same_in_other_kinds_of_layers(name: str) -> None:
    model = build(name)
    deltas = torch.randn(2, D_IN, generator=torch.Generator().manual_seed(0))
    for hookpoint in ("resid_pre.1", "resid_post.0", "resid_post.2"):
        behind = Downstream(model, hookpoint)
        found = behind.kl_of_edits(behind.read(_ids()), POSITION, deltas, WINDOW)
        expected = torch.stack([_by_hooks(model, hookpoint, delta) for delta in deltas])
        assert torch.allclose(found.double(), expected, rtol=2e-3, atol=1e-6), hookpoint
        assert (expected > 1e-4).any()


def test_an_edit_of_heads_that_are_wider_than_the_stream() -> None:
    model = build("llama_wide_heads")
    deltas = torch.randn(2, 2 * D_IN, generator=torch.Generator().manual_seed(0))
    behind = Downstream(model, "z.1")
    row = behind.read(_ids())
    assert (row.site.shape[1], row.entering.shape[1]) == (2 * D_IN, D_IN)
    found = behind.kl_of_edits(row, POSITION, deltas, WINDOW)
    expected = torch.stack([_by_hooks(model, "z.1", delta) for delta in deltas])
    assert torch.allclose(found.double(), expected, rtol=2e-3, atol=1e-6)
    assert (expected > 1e-4).any()


def test_what_is_changed_between_layers_is_told() -> None:
    # RWKV halves the residual stream behind every few layers
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = transformers.RwkvConfig(
            hidden_size=D_IN, num_hidden_layers=4, vocab_size=VOCABULARY, rescale_every=2
        )
        model = transformers.RwkvForCausalLM(made).eval().requires_grad_(False)
    delta = torch.randn(1, D_IN, generator=torch.Generator().manual_seed(0))
    for hookpoint in ("resid_post.0", "resid_pre.2", "resid_pre.3"):
        behind = Downstream(model, hookpoint)
        found = behind.kl_of_edits(behind.read(_ids()), POSITION, delta, WINDOW)
        expected = _by_hooks(model, hookpoint, delta[0])
        assert torch.allclose(found[0].double(), expected, rtol=2e-3, atol=1e-8), hookpoint
    with pytest.raises(ModelError, match=r"what leaves layer 1 before layer 2.*use resid_pre\.2"):
        Downstream(model, "resid_post.1")


def test_a_model_that_cannot_be_run_from_the_hookpoint_on_is_refused() -> None:
    model = build("llama")
    seen: list[torch.Tensor] = []
    # the last layer reads the first one's output past the residual stream
    model.model.layers[0].register_forward_hook(lambda _, __, out: seen.append(out))
    model.model.layers[2].register_forward_hook(lambda _, __, out: out + seen[-1].roll(1, 1))
    assert Downstream(model, "resid_pre.0")
    with pytest.raises(ModelError, match=r"run from resid_post\.1 on does not give what the whole"):
        Downstream(model, "resid_post.1")


def test_the_prefix_is_kept_where_it_can_be() -> None:
    kept = {name for name in CONFIGS if Downstream(build(name), "resid_post.1").keeps_prefix}
    assert {"llama", "gpt2", "gpt_neox", "qwen2", "opt", "phi", "gemma"} <= kept


def test_nothing_is_left_behind() -> None:
    model = build("llama")
    before = model(input_ids=_ids()[None]).logits
    behind = Downstream(model, "resid_post.1")
    behind.kl_of_edits(behind.read(_ids()), POSITION, torch.ones(1, D_IN), WINDOW)
    assert torch.equal(model(input_ids=_ids()[None]).logits, before)
    assert not any("forward" in vars(layer) for layer in behind.layers)


def test_no_edit_costs_nothing_and_gradients_reach_the_hookpoint() -> None:
    behind = Downstream(build("gpt2"), "resid_pre.1")
    row = behind.read(_ids())
    assert behind.kl_of_edits(row, POSITION, torch.zeros(2, D_IN), WINDOW).abs().max() < 1e-9
    x = row.entering[None].clone().requires_grad_(True)
    behind.logits(row.token_ids[None], x)[0, -1, 3].backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_divergence_is_exact_where_it_is_small() -> None:
    logits = torch.randn(1, 4, 50, generator=torch.Generator().manual_seed(1))
    moved = logits + 1e-3 * torch.randn(1, 4, 50, generator=torch.Generator().manual_seed(2))
    p, q = (x.double().log_softmax(-1) for x in (logits[0], moved))
    exact = (p.exp() * (p - q[0])).sum(-1)
    assert torch.allclose(kl(p[:].float(), moved)[0].double(), exact, rtol=1e-2)
    assert (kl(p.float(), moved) >= 0).all()
