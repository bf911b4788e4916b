"""SAEs of Gemma Scope (1): `params.npz` alone, in `layer_N/width_W/average_l0_K/`.

Arrays: `W_enc` [d_in, d_sae], `W_dec` [d_sae, d_in], `b_enc`, `b_dec`, `threshold`, in capitals or not.
    Codes are JumpReLU's, of x itself: b_dec is not taken away. The file holds no settings: what is known of
    the site stands in the names of its folders. Attention's SAEs read all heads, flattened. BOS stood
    before each text, and its own activations were not trained on.

Source: Lieberum et al., "Gemma Scope", arXiv 2408.05147; SAELens 6.54.12, `gemma_2_sae_huggingface_loader`.
"""

from __future__ import annotations

import math
import re

from sae_placebo.saes.formats import folding
from sae_placebo.saes.formats.base import (
    FORMATS,
    Candidate,
    Format,
    Remarks,
    encoder_by_latents,
    make_sae,
)
from sae_placebo.saes.formats.given import Given
from sae_placebo.saes.formats.sites import Site

_RELEASE = re.compile(r"gemma-scope-(2b|9b|27b)-(pt|it)-(res|mlp|att|transcoders)")
_SITES = {
    "res": ("resid_post", "hook_resid_post"),
    "mlp": ("mlp_out", "hook_mlp_out"),
    "att": ("z", "attn.hook_z"),
}
_NAMES = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")


def recognises(candidate: Candidate) -> bool:
    """Return whether a `.npz` file has one of the two matrices, in capitals or not."""
    weights = candidate.weights
    lower = {name.lower() for name in weights.names}
    return weights.path.suffix == ".npz" and bool({"w_enc", "w_dec"} & lower)


def read(candidate: Candidate) -> Given:
    """Return the SAE; see `reading.read_sae`."""
    weights = candidate.weights
    remarks = Remarks(weights.path)
    release, layer, l0, embedding = _named(candidate)
    if release and release[3] == "transcoders":
        raise remarks.refuse("a transcoder is not read: it predicts another site than it reads")
    theirs = {name: name for name in _NAMES}
    theirs |= {
        n: n.lower() for n in _NAMES if n not in weights.names and n.lower() in weights.names
    }
    d_in, d_sae = weights.matrix(theirs["W_enc"])
    vectors = ("b_enc", "threshold")
    weights.need(
        {
            theirs["W_dec"]: (d_sae, d_in),
            theirs["b_dec"]: (d_in,),
            **{theirs[name]: (d_sae,) for name in vectors},
        }
    )
    if extra := weights.names - set(theirs.values()):
        raise remarks.refuse(f"arrays that no SAE of Gemma Scope has: {', '.join(sorted(extra))}")
    remarks.precision(weights, weights.names)
    params = {name: weights.read(theirs[name]) for name in ("W_dec", "b_dec", *vectors)}
    params["W_enc"] = encoder_by_latents(weights, theirs["W_enc"], linear=False)
    folding.subtract_b_dec(params)
    remarks.note("The encoder reads x itself; its bias here holds b_dec W_enc.")
    if embedding:
        params["W_enc"].div_(math.sqrt(d_in))
        params["W_dec"].mul_(math.sqrt(d_in))
        params["b_dec"].mul_(math.sqrt(d_in))
        remarks.warn(
            "An SAE of embeddings: its tensors are scaled so that it reads embeddings times sqrt(d_in), "
            "as the model does; SAELens scales the matrices alike and leaves b_dec as it is."
        )
    if release is None:
        remarks.note(
            "No folder above is named as a release (gemma-scope-2b-pt-res): the model and the site are "
            "not known, and a transcoder could not be told from an SAE."
        )
    return Given(
        sae=make_sae("jumprelu", params, remarks, {}),
        format="gemma_scope",
        site=_site(release, layer, l0, embedding),
        heads=bool(release and release[3] == "att"),
        notes=tuple(remarks.notes),
        warnings=tuple(remarks.warnings),
    )


def _named(candidate: Candidate) -> tuple[re.Match[str] | None, int | None, float | None, bool]:
    """Return what folders are named for: the release, layer and L0, and whether embeddings are read."""
    folders = candidate.folder.absolute().parts
    path = "/".join(folders)
    layer, l0 = re.search(r"layer_(\d+)", path), re.search(r"average_l0_(\d+)", path)
    return (
        _RELEASE.search(path),
        int(layer[1]) if layer else None,
        float(l0[1]) if l0 else None,
        "embedding" in folders,
    )


def _site(
    release: re.Match[str] | None, layer: int | None, l0: float | None, embedding: bool
) -> Site:
    model = hook = hookpoint = None
    if release:
        model = f"google/gemma-2-{release[1]}{'-it' if release[2] == 'it' else ''}"
        site, name = _SITES[release[3]]
        if embedding:
            hook, hookpoint = "hook_embed", "resid_pre.0"
        elif layer is not None:
            hook, hookpoint = f"blocks.{layer}.{name}", f"{site}.{layer}"
    return Site(model, hook, hookpoint, layer, prepend_bos=True, context_tokens=1024, l0=l0)


FORMATS.add(Format("gemma_scope", "Gemma Scope 1", recognises, read))
