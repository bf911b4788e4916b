"""Tiny models of many architectures, built from configs: no download, a few milliseconds each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers

N_LAYERS, D_IN, VOCABULARY, CONTEXT = 3, 32, 101, 64

_NEW: dict[str, Any] = {
    "hidden_size": D_IN,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_ROPE = _NEW | {"intermediate_size": 64, "max_position_embeddings": CONTEXT}
_GROUPED = _ROPE | {"num_key_value_heads": 2}
_HEADED = _GROUPED | {"head_dim": 8}
_OLD: dict[str, Any] = {
    "n_embd": D_IN,
    "n_layer": N_LAYERS,
    "n_head": 4,
    "n_positions": CONTEXT,
    "vocab_size": VOCABULARY,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_OPT = _NEW | {
    "ffn_dim": 64,
    "max_position_embeddings": CONTEXT,
    "word_embed_proj_dim": D_IN,
}

# name: (model type, settings)
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _HEADED | {"tie_word_embeddings": True}),
    "llama_untied": ("llama", _HEADED | {"tie_word_embeddings": False, "attention_bias": True}),
    "mistral": ("mistral", _HEADED | {"sliding_window": 4}),
    "qwen2": ("qwen2", _GROUPED),
    "qwen3": ("qwen3", _HEADED),
    "qwen3_moe": (
        "qwen3_moe",
        _HEADED | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    ),
    "gemma": ("gemma", _HEADED),
    "gemma2": ("gemma2", _HEADED | {"sliding_window": 4}),
    "gemma3": ("gemma3_text", _HEADED | {"sliding_window": 4}),
    "glm4": ("glm4", _HEADED),
    "granite": ("granite", _GROUPED | {"residual_multiplier": 0.3}),
    "cohere": ("cohere", _ROPE),
    "olmo2": ("olmo2", _ROPE),
    "phi": ("phi", _ROPE),
    "phi3": ("phi3", _ROPE),
    "stablelm": ("stablelm", _GROUPED),
    "gpt2": ("gpt2", _OLD),
    "gptj": ("gptj", _OLD | {"rotary_dim": 4}),
    "gpt_neo": (
        "gpt_neo",
        {
            "hidden_size": D_IN,
            "num_layers": N_LAYERS,
            "num_heads": 4,
            "vocab_size": VOCABULARY,
            "attention_types": [[["global", "local", "global"], 1]],
            "window_size": 4,
            "max_position_embeddings": CONTEXT,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "gpt_neox": ("gpt_neox", _ROPE),
    "gpt_neox_sequential": ("gpt_neox", _ROPE | {"use_parallel_residual": False}),
    "opt": ("opt", _OPT),
    "bloom": ("bloom", {"hidden_size": D_IN, **_OLD}),
    "mpt": (
        "mpt",
        {
            "d_model": D_IN,
            "n_layers": N_LAYERS,
            "n_heads": 4,
            "vocab_size": VOCABULARY,
            "max_seq_len": CONTEXT,
        },
    ),
    "falcon": ("falcon", _NEW),
    "falcon_new": ("falcon", _NEW | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon_alibi": ("falcon", _NEW | {"alibi": True, "parallel_attn": False}),
}
"""Models whose layers add attention and MLP to the residual stream."""

OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "opt_post_norm": ("opt", _OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    "mamba": ("mamba", _NEW),
    "bert": ("bert", _ROPE),
}
"""Models in which a term or causality is missing."""


def _further() -> dict[str, tuple[str, dict[str, Any]]]:
    import architecture_list

    return architecture_list.CONFIGS


def config(name: str) -> Any:
    """Return the tiny config called `name`."""
    model_type, settings = (CONFIGS | OTHERS | _further())[name]
    return transformers.AutoConfig.for_model(model_type, **settings)


def build(name: str, seed: int = 0) -> Any:
    """Return the tiny model called `name`, no parameter of which is constant.

    Fresh models have gains of 1 and biases of 0, which would hide a norm or bias that is lost.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        level = transformers.utils.logging.get_verbosity()
        transformers.utils.logging.set_verbosity_error()
        try:
            model = transformers.AutoModelForCausalLM.from_config(config(name))
        finally:
            transformers.utils.logging.set_verbosity(level)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval().requires_grad_(False).float()


def token_ids(n_rows: int = 2, n_positions: int = 11, seed: int = 0) -> torch.Tensor:
    """Return random token ids [row pos], none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (n_rows, n_positions), generator=generator)


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread: for tiny models more of them only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
