"""A factored world is a small Llama trained until it follows the rule of its grammar."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from sae_placebo.core.errors import ModelError
from sae_placebo.core.lazy import torch, transformers
from sae_placebo.core.progress import Advance, unheard
from sae_placebo.core.spec import generator
from sae_placebo.lab.worlds.base import World
from sae_placebo.lab.worlds.grammar import FactoredSpec, Grammar

_WARMUP = 0.05
_FIRST_STD = 0.08


def factored(spec: FactoredSpec | None = None, seed: int = 0, advance: Advance = unheard) -> World:
    """Return a world whose tokens are sums of factors, and whose model follows a known rule.

    A token is (a, b, c, kind); its embedding is frozen, the sum of one random direction for each of the four.
    The next token depends on a_t, on a_{t-1}, and on c at the last marker: `kind` says which tokens are
    markers, and at other tokens c does not matter. b matters nowhere (see `b_weight`), though its directions
    are longer than the others. With `duplicates`, a has two carriers; either suffices, since some tokens lack
    one.

    Rows are independent draws of tokens, the same whatever the rule is. The model is trained, on fresh rows,
    on the exact distribution that the rule gives at every position (`grammar.FactoredSpec`), not on tokens
    drawn from it, so that only the optimizer can keep it from the rule. Its output head is, like its
    embedding, a sum over factors.

    The variables are a, b, c (active at markers), marker, a_previous, and c_last (the value of c at the last
    marker, or n_c where there is none yet). With duplicates there are also the carriers a_first and a_second
    (n_a where a token lacks the carrier; active where it has both). The world's `numbers` are `excess_nats`,
    the mean divergence of the rule from the model on held-out rows; `entropy_nats`, the rule's entropy; and
    `ignorance_nats`, the divergence of the rule from a model that knows only how frequent each a is.

    Args:
        spec: Settings of the world; None takes the defaults. `grammar.PRESETS` has others by name.
        seed: Seed of directions, rule and rows, and of the model's initial weights and training rows.
        advance: Called with 1 after each training step of the model.

    Raises:
        ModelError: the model is not within `margin_nats` of the rule after `steps` steps.
    """
    spec = spec or FactoredSpec()
    grammar = Grammar(spec, seed)
    rows = grammar.rows(spec.held_out_rows, "held out")
    train_rows = grammar.rows(spec.train_rows, "SAE")
    model = _new_model(grammar)
    heads = _train(model, grammar, advance)
    _set_head(model, grammar, heads)
    numbers = _numbers(model, grammar, rows)
    excess = numbers["excess_nats"]
    if not excess <= spec.margin_nats:
        raise ModelError(
            f"the model of a factored world (seed {seed}) is {excess:.4f} nats per token from its rule "
            f"after {spec.steps} steps, and {spec.margin_nats} are allowed: raise steps or margin_nats, "
            "or take fewer values or a wider model"
        )
    return World(
        name=f"factored-{'used' if spec.b_weight else 'passenger'}-{seed}",
        model=model,
        rows=rows,
        train_rows=train_rows,
        variables=grammar.variables(rows, train_rows),
        hookpoints=("resid_pre.0", *(f"resid_post.{i}" for i in range(spec.n_layers))),
        swaps=grammar.swaps(rows),
        numbers=numbers,
    )


def _new_model(grammar: Grammar) -> Any:
    """Return an untrained model with the grammar's frozen embedding."""
    spec = grammar.spec
    config = transformers.LlamaConfig(
        vocab_size=spec.n_vocabulary,
        hidden_size=spec.d_model,
        intermediate_size=4 * spec.d_model,
        num_hidden_layers=spec.n_layers,
        num_attention_heads=spec.n_heads,
        num_key_value_heads=spec.n_heads,
        max_position_embeddings=max(64, spec.row_tokens),
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        model: Any = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.dim() == 2:
                random = generator(grammar.seed, "world", "start", name)
                weights.normal_(0, _FIRST_STD, generator=random)
        model.model.embed_tokens.weight.copy_(grammar.embedding)
    model.model.embed_tokens.weight.requires_grad_(False)
    return model.float()


def _train(model: Any, grammar: Grammar, advance: Advance) -> torch.Tensor:
    """Train the model on the rule, in place, and return the head's rows, factor after factor."""
    spec = grammar.spec
    random = generator(grammar.seed, "world", "start", "head")
    heads = _FIRST_STD * torch.randn(sum(spec.sizes), spec.d_model, generator=random)
    heads.requires_grad_(True)
    trained = [p for p in model.model.parameters() if p.requires_grad] + [heads]
    adam = torch.optim.AdamW(trained, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    model.train()
    for step in range(spec.steps):
        rows = grammar.rows(spec.batch_rows, "model", step)
        adam.param_groups[0]["lr"] = spec.learning_rate * _share(step, spec.steps)
        hidden = model.model(input_ids=torch.from_numpy(rows), use_cache=False).last_hidden_state
        loss = _loss(hidden @ heads.T, grammar.target(rows), spec)
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        adam.step()
        advance(1)
    model.eval().requires_grad_(False)
    for weights in trained:
        weights.grad = None
    return heads.detach()


def _share(step: int, steps: int) -> float:
    """Return the share of the peak step size, which rises linearly and falls to zero by half a cosine."""
    rise = max(1, round(_WARMUP * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def _loss(
    logits: Float[torch.Tensor, "row pos value"],
    target: Float[torch.Tensor, "row pos a"],
    spec: FactoredSpec,
) -> Float[torch.Tensor, ""]:
    """Return the cross entropy over the whole vocabulary, computed as a sum over factors.

    A token's logit is the sum of its factors' logits, so the model's distribution is a product over factors,
    as the rule's is.
    """
    a, *others = torch.split(logits, list(spec.sizes), dim=-1)
    total = -(target * a.log_softmax(-1)).sum(-1)
    for factor in others:
        total = total - factor.log_softmax(-1).mean(-1)
    mean: torch.Tensor = total.mean()
    return mean


def _set_head(model: Any, grammar: Grammar, heads: torch.Tensor) -> None:
    """Write the model's head: the row of each token of the vocabulary is the sum of its factors' rows."""
    starts = np.cumsum([0, *grammar.spec.sizes[:-1]])
    rows = torch.from_numpy(grammar.factors + starts)
    with torch.no_grad():
        model.lm_head.weight.copy_(heads[rows].sum(1))


def _numbers(model: Any, grammar: Grammar, rows: Int64[np.ndarray, "row pos"]) -> dict[str, float]:
    """Return `numbers` of the world: how far the model is from the rule on rows, in nats per token."""
    spec = grammar.spec
    target = grammar.target(rows).double()
    others = math.log(spec.n_vocabulary / spec.n_a)
    entropy = -float((target * target.log()).sum(-1).mean())
    share = target.mean((0, 1))
    cross = []
    with torch.no_grad():
        for ids, wanted in zip(
            torch.split(torch.from_numpy(rows), 64), torch.split(target, 64), strict=True
        ):
            log_p = model(input_ids=ids, use_cache=False).logits.log_softmax(-1)
            # a is the slowest factor of a token's id: each value has one run of the vocabulary
            by_a = log_p.unflatten(-1, (spec.n_a, -1)).double().mean(-1)
            cross.append(-(wanted * by_a).sum(-1))
    return {
        "excess_nats": float(torch.cat(cross).mean()) - entropy - others,
        "entropy_nats": entropy,
        "ignorance_nats": -float((share * share.log()).sum()) - entropy,
    }
