"""A loaded model is checked before anything is read from it; each refusal is one sentence."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from sae_placebo.core.errors import ModelError
from sae_placebo.core.lazy import torch
from sae_placebo.models.forward_pass import base_model, own_code
from sae_placebo.models.sites import decoder_layers, first_tensor, text_config

_LEAK, _LEAK_OF_ENCODERS = 1e-4, 1e-6
"""Change of earlier positions, in standard deviations, from which on it is no rounding. Models of classes
that are encoders or decoders, and are not said to be decoders, are not given the benefit of the doubt."""
_OTHER_HEADS = re.compile(
    r"For(SequenceClassification|TokenClassification|QuestionAnswering|MultipleChoice|MaskedLM)$"
)


def check_config(parts: Sequence[Mapping[str, Any]], source: str) -> None:
    """Refuse weights of which a causal language model would be only a part.

    Args:
        parts: Tables of the config.json, as `models.saved_weights.config_parts` gives them.
        source: What the model is called in the sentence.

    Raises:
        ModelError: an encoder-decoder, or weights of another head than a language model's.
    """
    kind = next((part["model_type"] for part in parts if "model_type" in part), "unknown type")
    if any(part.get("is_encoder_decoder") is True for part in parts):
        raise ModelError(
            f"{source} is an encoder-decoder ({kind}), not a causal language model: its decoder means "
            "nothing without what the encoder gives it; use a model that is a decoder alone."
        )
    named = [name for part in parts for name in part.get("architectures") or ()]
    others = [name for name in named if isinstance(name, str) and _OTHER_HEADS.search(name)]
    if others and len(others) == len(named):
        raise ModelError(
            f"{source} holds the weights of {others[0]}, which was not trained to predict the next token; "
            "use a causal language model."
        )


def check_tensors(model: Any, info: Mapping[str, Any], source: str) -> None:
    """Refuse weights that lack a tensor of the model, hold one that it has no place for, or are not finite.

    Args:
        model: As loaded.
        info: What was missing and what was left over, as transformers tells it.
        source: What the model is called in the sentence.

    Raises:
        ModelError: as above.
    """
    name = type(model).__name__
    for key, held_shape, shape in sorted(info["mismatched_keys"]):
        raise ModelError(
            f"the weights of {source} have other shapes than its config.json says: {key} is "
            f"{list(held_shape)} in the weights and {list(shape)} by config.json; mend config.json, or fetch "
            "the weights that belong to it."
        )
    absent = sorted(info["missing_keys"])
    if absent:
        raise ModelError(
            f"the weights of {source} lack {len(absent)} of the tensors that {name} needs "
            f"({', '.join(absent[:3])}{', ...' if len(absent) > 3 else ''}); they would be random: mend "
            "config.json if it asks for too much, or fetch the weights again."
        )
    layers = decoder_layers(model)
    path = next(n for n, m in model.named_modules() if m is layers).rpartition(".")[2]
    left = sorted(map(str, info["unexpected_keys"]))
    held = [int(m[1]) for key in left if (m := re.search(rf"(?:^|\.){path}\.(\d+)\.", key))]
    if held and max(held) >= len(layers):
        raise ModelError(
            f"the weights of {source} hold {max(held) + 1} decoder layers, and its config.json names "
            f"{len(layers)}, so that the last ones would be left out; mend the number there."
        )
    surplus = [key for key in left if _belongs(model, key)]
    if surplus:
        raise ModelError(
            f"the weights of {source} hold {len(surplus)} tensors that {name} has no place for "
            f"({', '.join(surplus[:3])}, ...), so it would not compute what was trained; mend config.json."
        )
    for key, parameter in model.named_parameters():
        if parameter.is_floating_point() and not bool(parameter.isfinite().all()):
            n = int((~parameter.isfinite()).sum())
            raise ModelError(
                f"the weights of {source} are not finite in float32: {n:,} of the {parameter.numel():,} "
                f"entries of {key}; fetch or write them again."
            )


def _belongs(model: torch.nn.Module, key: str) -> bool:
    """Return whether a tensor that was left over belongs to a part that the model has.

    Other parts, such as an image encoder, change nothing of what the model computes; neither do
    buffers that older versions of transformers wrote.
    """
    owner, _, leaf = key.rpartition(".")
    if leaf in ("masked_bias", "inv_freq"):
        return False
    modules = dict(model.named_modules())
    module = modules.get(owner)
    return bool(owner) and module is not None and getattr(module, leaf, None) is None


def check_forward(model: torch.nn.Module, source: str) -> None:
    """Refuse a model whose layers do not pass on a residual stream, or in which tokens see later ones.

    Raises:
        ModelError: the residual stream is narrower than 2 or is not [row, pos, d_model], a layer is not run
            once per forward, or a token changes what earlier positions hold.
    """
    config, name = text_config(model), type(model).__name__
    width = int(config.hidden_size)
    if width < 2:
        raise ModelError(
            f"{source} has a residual stream of {width} number; an SAE needs 2 or more."
        )
    rows = torch.arange(6).remainder(config.vocab_size).repeat(2, 1)
    rows[1, -1] = (rows[1, -1] + 1) % config.vocab_size
    shapes: dict[int, list[tuple[int, ...]]] = {}
    with ExitStack() as stack, torch.inference_mode():
        for i, layer in enumerate(decoder_layers(model)):

            def note(_: Any, args: Any, output: Any, i: int = i) -> None:
                shapes.setdefault(i, []).append(tuple(first_tensor(output).shape))

            stack.callback(layer.register_forward_hook(note).remove)
        with own_code(model, source):
            output = base_model(model)(input_ids=rows, use_cache=False)
        hidden = output[0][:, :-1]
    # values that are not finite are told where they are read, with their hookpoint
    scale = float(hidden.std())
    encoder = getattr(config, "is_decoder", True) is False
    leak = float((hidden[0] - hidden[1]).abs().max())
    if math.isfinite(scale) and leak > (_LEAK_OF_ENCODERS if encoder else _LEAK) * scale:
        why = f" {name} is an encoder unless its config.json says is_decoder." if encoder else ""
        raise ModelError(
            f"{source} is not causal: a token changes what earlier positions hold.{why}"
        )
    expected = (*rows.shape, width)
    for i in range(len(decoder_layers(model))):
        found = shapes.get(i, [])
        if found != [expected]:
            said = (
                f"gives {found[0]} where" if len(found) == 1 else f"runs {len(found)} times where"
            )
            wanted = f"{expected} [row, pos, d_model]" if len(found) == 1 else "once"
            raise ModelError(
                f"{name} has no residual stream that can be read: its layer {i} {said} {wanted} was expected."
            )
