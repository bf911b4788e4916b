"""Tiny configs of the architectures in docs/reference/architectures.md, beside those of `architectures`.

Name: (model type, settings). What is special about one stands in its name.
"""

from __future__ import annotations

from typing import Any

from architectures import _GROUPED, _HEADED, _NEW, _OLD, _OPT, _ROPE, D_IN, N_LAYERS

_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
_LATENT = _ROPE | {
    **{"num_key_value_heads": 4, "kv_lora_rank": 8, "q_lora_rank": 12, "qk_rope_head_dim": 4},
    **{"qk_nope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2},
    **{"moe_intermediate_size": 16, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
    **{"n_shared_experts": 1},
}
_SSM = {"state_size": 4, "time_step_rank": 2, "conv_kernel": 4}
_BLOCK_SSM = {"mamba_d_state": 8, "mamba_d_conv": 4, "mamba_n_heads": 4, "mamba_d_head": 16}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama_wide_heads": ("llama", _GROUPED | {"head_dim": 16}),
    "llama_mqa": ("llama", _ROPE | {"num_key_value_heads": 1}),
    "mixtral": ("mixtral", _GROUPED | _LOCAL),
    "ministral": ("ministral", _HEADED),
    "qwen2_moe": (
        "qwen2_moe",
        _GROUPED | _MOE | {"shared_expert_intermediate_size": 16, "decoder_sparse_step": 1},
    ),
    "qwen3_next": (
        "qwen3_next",
        _HEADED
        | _MOE
        | {
            **{"shared_expert_intermediate_size": 16, "linear_num_key_heads": 2},
            **{"linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        },
    ),
    "vaultgemma": ("vaultgemma", _HEADED),
    "olmo": ("olmo", _ROPE),
    "olmo3": ("olmo3", _ROPE | {"sliding_window": 4}),
    "olmoe": ("olmoe", _ROPE | {"num_experts": 4, "num_experts_per_tok": 2}),
    "phimoe": ("phimoe", _GROUPED | _LOCAL),
    "starcoder2": ("starcoder2", _GROUPED),
    "gpt_bigcode": ("gpt_bigcode", _OLD | {"multi_query": True}),
    "codegen": ("codegen", _OLD | {"rotary_dim": 4, "n_ctx": 64}),
    "openai_gpt": ("openai-gpt", _OLD),
    "ctrl": ("ctrl", _OLD | {"dff": 64}),
    "cohere2": ("cohere2", _HEADED | {"sliding_window": 4}),
    "granitemoe": ("granitemoe", _GROUPED | _LOCAL),
    "deepseek_v2": ("deepseek_v2", _LATENT),
    "deepseek_v3": ("deepseek_v3", _LATENT),
    "glm": ("glm", _HEADED),
    "glm4_moe": (
        "glm4_moe",
        _HEADED | _MOE | {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1},
    ),
    "smollm3": ("smollm3", _GROUPED),
    "exaone4": ("exaone4", _HEADED | {"sliding_window": 4}),
    "nemotron": ("nemotron", _HEADED),
    "persimmon": ("persimmon", _ROPE),
    "helium": ("helium", _HEADED),
    "arcee": ("arcee", _GROUPED),
    "apertus": ("apertus", _GROUPED),
    "seed_oss": ("seed_oss", _HEADED),
    "hunyuan": ("hunyuan_v1_dense", _HEADED),
    "ernie4_5": ("ernie4_5", _HEADED),
    "gpt_oss": ("gpt_oss", _HEADED | _LOCAL | {"sliding_window": 4}),
    "jetmoe": (
        "jetmoe",
        _ROPE
        | {
            "kv_channels": 8,
            "num_key_value_heads": 2,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
    ),
    "llama4": (
        "llama4_text",
        _HEADED | _LOCAL | {"intermediate_size_mlp": 64, "num_experts_per_tok": 1},
    ),
    "lfm2": (
        "lfm2",
        _GROUPED | {"layer_types": ["conv", "full_attention", "conv"], "block_multiple_of": 8},
    ),
    "nanochat": ("nanochat", _GROUPED),
    "biogpt": ("biogpt", _ROPE),
    "xglm": (
        "xglm",
        {
            **{"d_model": D_IN, "num_layers": N_LAYERS, "attention_heads": 4, "ffn_dim": 64},
            **{"vocab_size": 101, "max_position_embeddings": 64, "pad_token_id": 0},
            **{"bos_token_id": 1, "eos_token_id": 2},
        },
    ),
    "opt_projected": ("opt", _OPT | {"word_embed_proj_dim": 16}),
    "gpt_neox_japanese": ("gpt_neox_japanese", _NEW | {"intermediate_multiple_size": 2}),
    "falcon_mqa": ("falcon", _NEW | {"multi_query": True, "new_decoder_architecture": False}),
    "bert_decoder": ("bert", _ROPE | {"is_decoder": True}),
    "roberta_decoder": ("roberta", _ROPE | {"is_decoder": True, "max_position_embeddings": 66}),
    "mamba": ("mamba", _NEW | _SSM),
    "mamba2": (
        "mamba2",
        _NEW | {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    ),
    "falcon_mamba": ("falcon_mamba", _NEW | _SSM),
    "rwkv": ("rwkv", _NEW | {"attention_hidden_size": D_IN, "intermediate_size": 64}),
    "recurrent_gemma": (
        "recurrent_gemma",
        _HEADED | {"lru_width": D_IN, "attention_window_size": 8, "conv1d_width": 4},
    ),
    "jamba": (
        "jamba",
        _GROUPED
        | {
            **{"num_experts": 2, "num_experts_per_tok": 1, "attn_layer_period": 2},
            **{"attn_layer_offset": 1, "use_mamba_kernels": False, "mamba_d_state": 4},
            **{"mamba_dt_rank": 2},
        },
    ),
    "bamba": (
        "bamba",
        _GROUPED
        | _BLOCK_SSM
        | {"attn_layer_indices": [1], "mamba_chunk_size": 8, "mamba_n_groups": 1},
    ),
    "falcon_h1": (
        "falcon_h1",
        _GROUPED
        | _BLOCK_SSM
        | {"mamba_d_ssm": 64, "mamba_chunk_size": 8, "mamba_n_groups": 1, "head_dim": 8},
    ),
    "zamba2": (
        "zamba2",
        _GROUPED
        | {
            **{"mamba_d_state": 8, "n_mamba_heads": 4, "mamba_ngroups": 1, "chunk_size": 8},
            "layers_block_type": ["mamba", "hybrid", "mamba"],
        },
    ),
    "xlstm": ("xlstm", _NEW | {"num_heads": 4}),
    "xlnet": (
        "xlnet",
        {"d_model": D_IN, "n_layer": N_LAYERS, "n_head": 4, "d_inner": 64, "vocab_size": 101},
    ),
    "bert": ("bert", _ROPE),
    "roberta": ("roberta", _ROPE | {"max_position_embeddings": 66}),
    "bart": (
        "bart",
        {
            **{"d_model": D_IN, "decoder_layers": N_LAYERS, "encoder_layers": N_LAYERS},
            **{"decoder_attention_heads": 4, "encoder_attention_heads": 4, "vocab_size": 101},
            **{"decoder_ffn_dim": 64, "encoder_ffn_dim": 64, "max_position_embeddings": 64},
        },
    ),
    "t5": (
        "t5",
        {"d_model": D_IN, "num_layers": N_LAYERS, "num_heads": 4, "d_kv": 8, "d_ff": 64}
        | {"vocab_size": 101},
    ),
}
