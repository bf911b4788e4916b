"""SAEs that are objects of another library, in memory: written into a folder that `read_sae` reads.

SAELens's own objects are saved by SAELens. Of any other object the tensors are taken by name, and every
architecture that they may belong to is tried on activations: the one whose codes are the object's is it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Float

from sae_placebo.core.errors import PlaceboError, SpecError, StoreError
from sae_placebo.core.lazy import torch
from sae_placebo.saes.base import SAE, parse_sae
from sae_placebo.saes.formats import folding, saelens

_NAMES = {
    "W_dec": ("W_dec",),
    "W_enc": ("W_enc", "encoder.weight"),
    "b_enc": ("b_enc", "encoder.bias"),
    "b_dec": ("b_dec", "decoder.bias", "bias", "pre_bias"),
    "threshold": ("threshold",),
}
"""Our names of tensors, and what other libraries call them."""
_TRIED = 512
"""Activations on which an object and a candidate are compared."""
_EQUAL = 1e-4
"""Codes may differ by this share of a token's largest code."""


def is_object(source: Any) -> bool:
    """Return whether an SAE is given as an object, and not as the name of a file or folder."""
    return all(callable(getattr(source, name, None)) for name in ("encode", "decode"))


def save_object(sae: Any, folder: Path, activations: Callable[[], torch.Tensor]) -> None:
    """Write an SAE that is an object into a folder that `read_sae` reads.

    Args:
        sae: An SAE of SAELens, or any object with `encode` (activations [token, d_in] to dense codes
            [token, d_sae]), `decode` and `W_dec` [d_sae, d_in]. Its encoder is a matrix `W_enc` or
            `encoder.weight`, with or without biases, a `threshold` or a `k`.
        folder: Made if it does not exist.
        activations: Returns some of the activations that it reads; asked for where they are needed.

    Raises:
        SpecError: it is no such object, or its codes are those of no architecture that is computed here.
        StoreError: SAELens cannot save it.
    """
    if type(sae).__module__.startswith("sae_lens."):
        save = getattr(sae, "save_inference_model", None) or sae.save_model
        try:
            save(str(folder))
        except Exception as problem:
            raise StoreError(f"SAELens could not save the SAE: {problem}") from problem
        return
    saelens.write(_same_sae(sae, activations()), folder, {})


def _same_sae(sae: Any, x: Float[torch.Tensor, "token d_in"]) -> SAE:
    """Return an SAE of ours whose codes of some activations are the object's."""
    tensors = _tensors(sae)
    d_sae, d_in = tensors["W_dec"].shape
    if x.shape[1] != d_in:
        raise SpecError(
            f"the SAE object's W_dec is {d_sae} x {d_in}, and the activations have width {x.shape[1]}: it "
            "belongs to another model or place"
        )
    x = x[:_TRIED]
    with torch.no_grad():
        asked = sae.encode(x)
        asked = (asked[0] if isinstance(asked, tuple) else asked).detach().float().cpu()
        if asked.shape != (len(x), d_sae):
            raise SpecError(
                f"encode of the SAE object gives {list(asked.shape)} for activations {list(x.shape)}; "
                f"expected [token, d_sae], which is [{len(x)}, {d_sae}]"
            )
        back = sae.decode(sae.encode(x)).detach().float().cpu()
    nearest = math.inf
    for one in _candidates(sae, tensors, int((asked > 0).sum(dim=1).max())):
        off = max(_differs(one.encode(x).dense(), asked), _differs(one.decode(one.encode(x)), back))
        if off <= _EQUAL:
            return one
        nearest = min(nearest, off)
    raise SpecError(
        "the SAE object encodes or decodes as no architecture here does: the nearest of ReLU, JumpReLU and "
        f"TopK, with and without b_dec taken off first, differs by {nearest:.3g} of a token's largest value. "
        "Save it in a format that read_sae reads"
    )


def _differs(found: torch.Tensor, asked: torch.Tensor) -> float:
    largest = asked.abs().amax(dim=1, keepdim=True).clamp_min(1e-12)
    return float(((found - asked).abs() / largest).max())


def _tensors(sae: Any) -> dict[str, torch.Tensor]:
    """Return the object's tensors under our names, laid out as here, in float32.

    Raises:
        SpecError: it has no decoder, or no matrix as its encoder.
    """
    found = {}
    for name, others in _NAMES.items():
        for other in others:
            value = _attribute(sae, other)
            if isinstance(value, torch.Tensor) and value.ndim:
                found[name] = value.detach().float().cpu().clone()
                break
    for name in ("W_dec", "W_enc"):
        if name not in found or found[name].ndim != 2:
            raise SpecError(
                f"the SAE object {type(sae).__name__} has no matrix {' or '.join(_NAMES[name])}: an object "
                "needs encode, decode, W_dec [d_sae, d_in] and the encoder's matrix; else give its folder"
            )
    d_sae, d_in = found["W_dec"].shape
    turned = found["W_enc"].shape == (d_sae, d_in) and d_sae != d_in
    if turned or _attribute(sae, "W_enc") is None:  # as a Linear keeps it, though square
        found["W_enc"] = found["W_enc"].t().contiguous()
    shapes = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "b_dec": (d_in,), "threshold": (d_sae,)}
    for name, shape in shapes.items():
        if name in found and tuple(found[name].shape) != shape:
            raise SpecError(
                f"{name} of the SAE object is {list(found[name].shape)}; expected {list(shape)}"
            )
    return {"b_enc": torch.zeros(d_sae), "b_dec": torch.zeros(d_in)} | found


def _attribute(sae: Any, name: str) -> Any:
    for part in name.split("."):
        sae = getattr(sae, part, None)
    return sae


def _candidates(sae: Any, tensors: Mapping[str, torch.Tensor], most: int) -> Iterator[SAE]:
    """Yield SAEs that an object with these tensors may be; `most` of its codes of a token are above 0."""
    d_sae = len(tensors["W_dec"])
    kinds: list[dict[str, Any]] = []
    if "threshold" in tensors:
        kinds.append({"kind": "jumprelu", "coefficient": 0.0})
    k = _attribute(sae, "k") or _attribute(sae, "cfg.k")
    k = int(k) if k is not None and 0 < int(k) <= d_sae else most
    kinds += [{"kind": "relu", "coefficient": 0.0}]
    kinds += [{"kind": "topk", "k": k}] if 0 < k <= d_sae else []
    for settings in kinds:
        spec = parse_sae({"d_sae": d_sae, **settings})
        for apart in (False, True):
            params = {name: tensors[name].clone() for name in spec.parameters if name in tensors}
            if apart:
                folding.subtract_b_dec(params)
            try:
                yield SAE(spec, params)
            except PlaceboError:
                continue
