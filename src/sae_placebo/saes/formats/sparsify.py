"""SAEs of EleutherAI's sparsify: `cfg.json` beside `sae.safetensors`, in a folder named for its hookpoint.

Tensors: `encoder.weight` [d_sae, d_in], `encoder.bias`, `W_dec` [d_sae, d_in], `b_dec`. Codes are the k
    largest of `max((x - b_dec) W + bias, 0)`: the kind `topk`. The settings of the run, `config.json`, lie
    in a folder above.

Read against eai-sparsify 1.3.3, `sparse_coder.py`, `fused_encoder.py` and `config.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sae_placebo.core.errors import StoreError
from sae_placebo.saes.formats.base import FORMATS, Candidate, Format, Remarks, make_sae
from sae_placebo.saes.formats.given import Given
from sae_placebo.saes.formats.sites import Site, hookpoint_of, layer_of, number_of, text_of
from sae_placebo.saes.formats.tensor_files import read_settings

CONFIG = "cfg.json"
_SETTINGS = frozenset(
    (
        "activation",
        "expansion_factor",
        "normalize_decoder",
        "num_latents",
        "k",
        "multi_topk",
        "skip_connection",
        "transcode",
        "d_in",
        "signed",
    )
)
_HOOKPOINT = re.compile(r"(?:[A-Za-z_]\w*\.)*(?:layers|blocks|h)\.\d+(?:\.[A-Za-z_]\w*)*")


def recognises(candidate: Candidate) -> bool:
    """Return whether a file has sparsify's name of the encoder, and none of another library's decoder."""
    weights = candidate.weights
    safetensors = weights.path.name.endswith((".safetensors", ".index.json"))
    return (
        safetensors and "encoder.weight" in weights.names and "decoder.weight" not in weights.names
    )


def read(candidate: Candidate) -> Given:
    """Return the SAE; see `reading.read_sae`."""
    config, weights = candidate.settings(CONFIG), candidate.weights
    remarks = Remarks(candidate.folder / CONFIG)
    _check(config, remarks)
    d_sae, d_in = weights.matrix("encoder.weight")
    if "W_skip" in weights.names:
        raise remarks.refuse("the weights hold W_skip, as a transcoder's do, which no SAE has")
    weights.need({"W_dec": (d_sae, d_in), "encoder.bias": (d_sae,), "b_dec": (d_in,)})
    _check_sizes(config, d_in, d_sae, remarks)
    remarks.precision(weights, weights.names)
    params = {
        "W_enc": weights.read("encoder.weight").t(),
        "b_enc": weights.read("encoder.bias"),
        "W_dec": weights.read("W_dec"),
        "b_dec": weights.read("b_dec"),
    }
    sae = make_sae("topk", params, remarks, {"k": config.get("k", 32)})
    return Given(
        sae=sae,
        format="sparsify",
        site=_site(candidate),
        notes=tuple(remarks.notes),
        warnings=tuple(remarks.warnings),
    )


def _check(config: Mapping[str, Any], remarks: Remarks) -> None:
    if unknown := sorted(set(config) - _SETTINGS):
        raise remarks.refuse(
            f"the setting {unknown[0]!r:.80} is not one of eai-sparsify 1.3.3's, and may change the codes; "
            "remove it where it does not"
        )
    activation = config.get("activation", "topk")
    if activation != "topk":
        reason = ": each of k groups of latents has one winner" if activation == "groupmax" else ""
        raise remarks.refuse(f"the activation {activation!r:.80} is not read{reason}; topk is")
    for key, reason in (
        ("transcode", "it predicts another site than it reads"),
        ("skip_connection", "it adds a linear map of its input, as a transcoder does"),
        ("signed", "its codes are signed, and codes here are above zero"),
    ):
        if config.get(key):
            raise remarks.refuse(f"{key} is {config[key]!r:.80}, which is not read: {reason}")


def _check_sizes(config: Mapping[str, Any], d_in: int, d_sae: int, remarks: Remarks) -> None:
    if config.get("d_in", d_in) != d_in:
        raise remarks.refuse(f"d_in is {config['d_in']!r:.80}, but the encoder reads {d_in}")
    # 0 means: by the expansion factor
    latents = config.get("num_latents") or None
    if latents is None and isinstance(config.get("expansion_factor"), int):
        latents = d_in * config["expansion_factor"]
    if latents not in (None, d_sae):
        raise remarks.refuse(
            f"num_latents and expansion_factor give {latents!r:.80} latents, but the weights have {d_sae}"
        )


def _site(candidate: Candidate) -> Site:
    """Return the site: the folder that is named as a module of the model, and the run's settings above it."""
    above = [candidate.folder, *list(candidate.folder.absolute().parents)[:2]]
    hook = next((f.name for f in above if _HOOKPOINT.fullmatch(f.name)), None)
    run: dict[str, Any] = {}
    for folder in above[1:]:
        try:
            found = read_settings(folder / "config.json")
        except StoreError:  # it says more about the site, and no code depends on it
            continue
        if isinstance(found.get("sae"), dict):
            run = found
            break
    excluded = run.get("exclude_tokens")
    return Site(
        model=text_of(run, "model"),
        hook=hook,
        hookpoint=hookpoint_of(hook),
        layer=layer_of(hook),
        context_tokens=number_of(run, "ctx_len"),
        excluded_tokens=tuple(excluded) if isinstance(excluded, list) and excluded else None,
        dataset=text_of(run, "dataset"),
    )


FORMATS.add(Format("sparsify", "sparsify", recognises, read))
