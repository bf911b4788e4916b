"""SAEs in folders of SAELens 3 to 6: `cfg.json` beside `sae_weights.safetensors`.

| `architecture` there | kind here | tensors beside W_enc, W_dec, b_dec |
|---|---|---|
| standard | relu | b_enc |
| topk | topk | b_enc |
| jumprelu | jumprelu; batchtopk or matryoshka where it was trained as such | b_enc, threshold |
| gated | gated | b_gate, b_mag, r_mag |
| batchtopk, matryoshka_batchtopk (checkpoints) | batchtopk, matryoshka | b_enc, topk_threshold |

Read against SAELens 6.54.12, 5.11.0, 4.4.5 and 3.23.4. A checkpoint may have the factor or the whitening of
its activations beside it (`activation_scaler.json`, `activation_whitening.safetensors`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sae_placebo.core.lazy import torch
from sae_placebo.saes.base import SAE
from sae_placebo.saes.formats import folding, saelens
from sae_placebo.saes.formats.base import (
    FORMATS,
    Candidate,
    Format,
    Remarks,
    encoder_by_latents,
    make_sae,
    prefixes,
)
from sae_placebo.saes.formats.given import Given, Normalization
from sae_placebo.saes.formats.saelens_old import is_old, renewed
from sae_placebo.saes.formats.sites import Site, hookpoint_of, layer_of, number_of, text_of
from sae_placebo.saes.formats.tensor_files import SafetensorsFile, TensorFile, read_settings

CONFIG = "cfg.json"
SCALER, WHITENING = "activation_scaler.json", "activation_whitening.safetensors"

_KINDS = {
    "standard": "relu",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "gated": "gated",
    "batchtopk": "batchtopk",
    "matryoshka_batchtopk": "matryoshka",
}
_REFUSED = {
    "abstopk": "its codes are signed, and codes here are above zero",
    "matching_pursuit": "its codes are found one after another",
    "temporal": "it reads a sequence, and an SAE here reads a token",
    "transcoder": "it predicts another site than it reads",
    "skip_transcoder": "it predicts another site than it reads",
    "jumprelu_transcoder": "it predicts another site than it reads",
    "jumprelu_skip_transcoder": "it predicts another site than it reads",
}
_NAMES: Mapping[str, Mapping[str, str]] = {
    "gated": {"b_enc": "b_gate", "b_mag": "b_mag", "r_mag": "r_mag"},
    "jumprelu": {"b_enc": "b_enc", "threshold": "threshold"},
}
"""Our names of the vectors over latents, and theirs, where there are others than `b_enc`."""
_SETTINGS = frozenset(
    (
        "architecture",
        "d_in",
        "d_sae",
        "dtype",
        "device",
        "apply_b_dec_to_input",
        "normalize_activations",
        "reshape_activations",
        "metadata",
        "sae_lens_version",
        "finetuning_scaling_factor",
        "k",
        "rescale_acts_by_decoder_norm",
        "decoder_init_norm",
        "l1_coefficient",
        "lp_norm",
        "l1_warm_up_steps",
        "l0_coefficient",
        "l0_warm_up_steps",
        "aux_loss_coefficient",
        "use_sparse_activations",
        "topk_threshold_lr",
        "matryoshka_widths",
        "use_matryoshka_aux_loss",
        "jumprelu_init_threshold",
        "jumprelu_bandwidth",
        "jumprelu_sparsity_loss_mode",
        "jumprelu_tanh_scale",
        "jumprelu_ste_to_input",
        "pre_act_loss_coefficient",
        "target_l0",
    )
)
"""All settings of 6.54.12's architectures that are read; what is not here may change the codes."""
_NORMALIZATIONS = (
    "none",
    "expected_average_only_in",
    "constant_norm_rescale",
    "layer_norm",
    "covariance_whitening",
)
_FINETUNED = ("scaling_factor", "finetuning_scaling_factor")
"""Names of what versions 3 to 5 multiply codes by when they decode them."""
_THRESHOLD_MENDED = (6, 54, 9)
"""The version from which on the threshold of a rescaled BatchTopK is divided by the factor too."""


def recognises(candidate: Candidate) -> bool:
    """Return whether a file has SAELens's names of the two matrices."""
    weights = candidate.weights
    safetensors = weights.path.name.endswith((".safetensors", ".index.json"))
    return (
        safetensors
        and bool({"W_enc", "W_dec"} & weights.names)
        and "encoder.weight" not in weights.names
    )


def read(candidate: Candidate) -> Given:
    """Return the SAE; see `reading.read_sae`."""
    config, weights = candidate.settings(CONFIG), candidate.weights
    remarks = Remarks(candidate.folder / CONFIG)
    if "sae_placebo_spec" in _metadata(config):
        return Given(saelens.read(candidate.folder), "saelens", _site(_metadata(config)))
    if is_old(config):
        config = renewed(config, remarks)
    _check(config, remarks)
    sae = _sae(config, weights, remarks)
    normalization = _fold_normalization(config, candidate, sae.params, remarks)
    return Given(
        sae=sae,
        format="saelens",
        site=_site(_metadata(config)),
        normalization=normalization,
        heads=config.get("reshape_activations", "none") == "hook_z",
        notes=tuple(remarks.notes),
        warnings=tuple(remarks.warnings),
    )


def _metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    found = config.get("metadata")
    return found if isinstance(found, dict) else {}


def _check(config: Mapping[str, Any], remarks: Remarks) -> None:
    """Refuse what would be computed wrongly, by name."""
    architecture = str(config.get("architecture"))
    if architecture in _REFUSED:
        raise remarks.refuse(f"architecture {architecture!r} is not read: {_REFUSED[architecture]}")
    if architecture not in _KINDS:
        raise remarks.refuse(f"architecture is {architecture!r:.80}; {', '.join(_KINDS)} are read")
    if unknown := sorted(set(config) - _SETTINGS):
        raise remarks.refuse(
            f"the setting {unknown[0]!r:.80} is not one of SAELens 6.54.12's, and may change the codes; "
            "remove it where it does not"
        )
    allowed: dict[str, tuple[Any, ...]] = {
        "apply_b_dec_to_input": (True, False),
        "rescale_acts_by_decoder_norm": (True, False),
        "normalize_activations": _NORMALIZATIONS,
        "reshape_activations": ("none", "hook_z"),
    }
    for key, values in allowed.items():
        if key in config and config[key] not in values:
            raise remarks.refuse(
                f"{key} is {config[key]!r:.80}; {', '.join(map(str, values))} are read"
            )


def _sae(config: Mapping[str, Any], weights: TensorFile, remarks: Remarks) -> SAE:
    """Return the SAE of centered activations, before what is done to activations is written into it."""
    kind = _KINDS[str(config["architecture"])]
    names = dict(_NAMES.get(kind, {"b_enc": "b_enc"}))
    logarithm = kind == "jumprelu" and "log_threshold" in weights.names
    if logarithm:
        names["threshold"] = "log_threshold"
    batch = kind in ("batchtopk", "matryoshka")
    d_sae, d_in = weights.matrix("W_dec")
    shapes = {"W_enc": (d_in, d_sae), "b_dec": (d_in,)}
    shapes |= dict.fromkeys(names.values(), (d_sae,)) | ({"topk_threshold": ()} if batch else {})
    weights.need(shapes)
    extra = weights.names - set(shapes) - {"W_dec", *_FINETUNED}
    if extra:
        raise remarks.refuse(
            f"{weights.path.name} has tensors that no SAE of this architecture has: "
            f"{', '.join(sorted(extra))}"
        )
    for key, size in (("d_in", d_in), ("d_sae", d_sae)):
        if config.get(key, size) != size:
            raise remarks.refuse(f"{key} is {config[key]!r:.80}, but W_dec is {[d_sae, d_in]}")
    remarks.precision(weights, weights.names)
    params = {
        "W_enc": encoder_by_latents(weights, "W_enc", linear=False),
        "W_dec": weights.read("W_dec"),
        "b_dec": weights.read("b_dec"),
        **{ours: weights.read(theirs) for ours, theirs in names.items()},
    }
    if logarithm:
        params["threshold"].exp_()
        remarks.note("The thresholds are the exponentials of log_threshold.")
    if batch:
        params["threshold"] = torch.tensor(weights.number("topk_threshold"))
    kind, settings = _kind_and_settings(kind, config, params, remarks)
    _fold(config, weights, params, remarks)
    return make_sae(kind, params, remarks, settings)


def _kind_and_settings(
    kind: str, config: Mapping[str, Any], params: dict[str, torch.Tensor], remarks: Remarks
) -> tuple[str, dict[str, Any]]:
    """Return the kind that an SAE was trained as, and its settings; its threshold becomes that kind's."""
    if kind == "topk":
        return kind, {"k": config.get("k")}
    metadata = _metadata(config)
    details = metadata.get("training_architecture_details")
    trained = {**(details if isinstance(details, dict) else {}), **config}
    if kind == "jumprelu":
        trained_as = _KINDS.get(str(metadata.get("training_architecture")))
        if trained_as not in ("batchtopk", "matryoshka") or "k" not in trained:
            return kind, {}
        _warn_of_old_threshold(metadata, trained, remarks)
        if bool((params["threshold"] != params["threshold"][0]).any()):
            return kind, {}
        params["threshold"] = params["threshold"][0].clone()
        kind = trained_as
    if kind not in ("batchtopk", "matryoshka"):
        return kind, {}
    settings: dict[str, Any] = {"k": trained.get("k")}
    if isinstance(settings["k"], int):
        settings["k"] = float(settings["k"])
    widths = trained.get("matryoshka_widths")
    if kind == "matryoshka" and isinstance(widths, list):
        settings["prefixes"] = prefixes(widths, len(params["W_dec"]), remarks)
    remarks.note(
        "Codes are those above one threshold, as SAELens exports a BatchTopK SAE; in training a batch "
        "kept its largest."
    )
    return kind, settings


def _warn_of_old_threshold(
    metadata: Mapping[str, Any], trained: Mapping[str, Any], remarks: Remarks
) -> None:
    written = re.match(r"(\d+)\.(\d+)\.(\d+)", str(metadata.get("sae_lens_version", "")))
    if (
        trained.get("rescale_acts_by_decoder_norm")
        and written
        and tuple(map(int, written.groups())) < _THRESHOLD_MENDED
    ):
        remarks.warn(
            f"SAELens {written[0]} saved the threshold of a rescaled BatchTopK SAE off by the factor of "
            "its activations, if it was trained with expected_average_only_in (mended in 6.54.9): compare "
            "its L0 with that of its training."
        )


def _fold(
    config: Mapping[str, Any],
    weights: TensorFile,
    params: dict[str, torch.Tensor],
    remarks: Remarks,
) -> None:
    """Write into the tensors what SAELens computes around them, but for the normalization."""
    default = config["architecture"] in ("batchtopk", "matryoshka_batchtopk")
    if config.get("rescale_acts_by_decoder_norm", default):
        folding.fold_decoder_norms(params)
        remarks.note(
            "The decoder's norms are written into the encoder (rescale_acts_by_decoder_norm)."
        )
    for name in weights.names.intersection(_FINETUNED):
        weights.need({name: (len(params["W_dec"]),)})
        factors = weights.read(name)
        if float((factors - 1).abs().max()) <= 1e-5:
            continue
        if not config.get("finetuning_scaling_factor"):
            raise remarks.refuse(
                f"the weights hold a {name} that is not 1, and the setting finetuning_scaling_factor, which "
                "says whether it is used, is not true"
            )
        params["W_dec"].mul_(factors[:, None])
        remarks.note(
            f"Decoder rows are multiplied by {name}, which codes are when they are decoded."
        )
    if not config.get("apply_b_dec_to_input", True):
        folding.subtract_b_dec(params)
        remarks.note("The encoder's bias holds b_dec W_enc (apply_b_dec_to_input is false).")


def _fold_normalization(
    config: Mapping[str, Any],
    candidate: Candidate,
    params: dict[str, torch.Tensor],
    remarks: Remarks,
) -> Normalization:
    """Write what is done to activations into the tensors where it can be, and return what remains."""
    kind = config.get("normalize_activations", "none")
    if kind == "expected_average_only_in":
        path = candidate.folder / SCALER
        factor = read_settings(path).get("scaling_factor") if path.is_file() else None
        if factor is None:
            remarks.note(
                "Activations were multiplied by one factor in training (expected_average_only_in), which the "
                "folder lacks."
            )
            return "missing_factor"
        if not isinstance(factor, int | float) or not factor > 0:
            raise remarks.refuse(f"{SCALER} gives the factor {factor!r:.80}, not a number above 0")
        folding.fold_factor(params, float(factor))
        remarks.note(f"Activations are multiplied by {factor:.6g}, the factor in {SCALER}.")
        return "none"
    if kind == "covariance_whitening":
        path = candidate.folder / WHITENING
        if not path.is_file():
            raise remarks.refuse(
                f"the SAE reads whitened activations (covariance_whitening), and {WHITENING} is not in its "
                "folder; the whitening cannot be estimated, since its axes are arbitrary"
            )
        table, d_in = SafetensorsFile(path), len(params["b_dec"])
        table.need({"mean": (d_in,), "matrix": (d_in, d_in), "inverse_matrix": (d_in, d_in)})
        parts = (table.read(name) for name in ("mean", "matrix", "inverse_matrix"))
        folding.fold_whitening(params, *parts)
        remarks.note(f"The whitening in {WHITENING} is written into the tensors.")
        return "none"
    if kind == "layer_norm":
        return "layer_norm"
    return "constant_norm_rescale" if kind == "constant_norm_rescale" else "none"


def _site(metadata: Mapping[str, Any]) -> Site:
    hook = text_of(metadata, "hook_name")
    bos, excluded = metadata.get("prepend_bos"), metadata.get("exclude_special_tokens")
    positions, arguments = (
        metadata.get("seqpos_slice"),
        metadata.get("model_from_pretrained_kwargs"),
    )
    l0 = metadata.get("l0")
    return Site(
        model=text_of(metadata, "model_name"),
        hook=hook,
        hookpoint=hookpoint_of(hook) or hookpoint_of(text_of(metadata, "hf_hook_name")),
        layer=layer_of(hook),
        head=number_of(metadata, "hook_head_index"),
        prepend_bos=bos if isinstance(bos, bool) else None,
        context_tokens=number_of(metadata, "context_size"),
        positions=_positions(positions),
        excluded_tokens=tuple(excluded) if isinstance(excluded, list) else excluded,
        model_arguments=dict(arguments) if isinstance(arguments, dict) else {},
        l0=float(l0) if isinstance(l0, int | float) else None,
        dataset=text_of(metadata, "dataset_path"),
    )


FORMATS.add(Format("saelens", "SAELens 3 to 6", recognises, read))


def _positions(value: Any) -> tuple[int | None, ...] | None:
    """Return start, stop and step of the positions that were used; None where all were (`[null]`)."""
    if not isinstance(value, list | tuple) or all(part is None for part in value):
        return None
    return tuple(value)
