"""Settings of SAELens 3 to 5, put into the words of 6, with the defaults that 6 gives them.

Their `cfg.json` is flat: it has no `metadata`, names some settings otherwise, and may hold the settings of
the whole training, which are not looked at. Source: `handle_pre_6_0_config` in SAELens 6.54.12, and
`SAEConfig` and `get_activation_fn` in 5.11.0, 4.4.5 and 3.23.4.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sae_placebo.saes.formats.base import Remarks

_RENAMED = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn": "activation_fn_str",
}
_KEPT = (
    "d_in",
    "d_sae",
    "dtype",
    "device",
    "apply_b_dec_to_input",
    "normalize_activations",
    "reshape_activations",
)
_METADATA = (
    "model_name",
    "hook_name",
    "hook_head_index",
    "model_from_pretrained_kwargs",
    "prepend_bos",
    "exclude_special_tokens",
    "context_size",
    "seqpos_slice",
    "dataset_path",
    "sae_lens_training_version",
)


def is_old(config: Mapping[str, Any]) -> bool:
    """Return whether settings are of a version before 6: they name none, or a lower one."""
    metadata = config.get("metadata")
    inner = metadata if isinstance(metadata, dict) else {}
    version = config.get("sae_lens_version") or inner.get("sae_lens_version")
    number = re.match(r"\d+", str(version or ""))
    return number is None or int(number[0]) < 6


def renewed(config: Mapping[str, Any], remarks: Remarks) -> dict[str, Any]:
    """Return the settings in the words of version 6.

    Raises:
        StoreError: the activation function is not read.
    """
    old = {_RENAMED.get(key, key): value for key, value in config.items()}
    function = old.get("activation_fn_str") or "relu"
    arguments = old.get("activation_fn_kwargs")
    k = arguments.get("k") if isinstance(arguments, dict) else None
    architecture = old.get("architecture", "standard")
    k = old.get("k") if k is None and architecture == "topk" else k
    if function not in ("relu", "topk"):
        raise remarks.refuse(
            f"the activation function {function!r:.80} is not read; relu and topk are"
        )
    if function == "topk" or architecture == "topk":
        if architecture not in ("standard", "topk"):
            raise remarks.refuse(
                f"topk is not read together with the architecture {architecture!r:.80}"
            )
        if k is None:
            raise remarks.refuse("the SAE keeps each token's k largest, and k is not given")
        architecture = "topk"
    hook = old.get("hook_name")
    normalization = old.get("normalize_activations")
    if isinstance(normalization, bool) or normalization is None:
        normalization = "expected_average_only_in" if normalization else "none"
    old.setdefault("prepend_bos", True)
    new = {key: old[key] for key in _KEPT if key in old}
    new |= {
        "architecture": architecture,
        "normalize_activations": normalization,
        "metadata": {key: old[key] for key in _METADATA if key in old},
    }
    new.setdefault("apply_b_dec_to_input", True)
    is_z = isinstance(hook, str) and ("hook_z" in hook or hook.endswith("_z"))
    new.setdefault("reshape_activations", "hook_z" if is_z else "none")
    if architecture == "topk":
        new["k"] = k
    if old.get("finetuning_scaling_factor"):
        new["finetuning_scaling_factor"] = True
    return new
