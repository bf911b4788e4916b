"""Any causal language model: load it, and read its activations.

What needs no torch, so that a trial's plan can be checked at once, is in `models.specs`.
"""

from __future__ import annotations

import importlib.util
import io
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from typing import Any, TypeVar

from sae_placebo.core.errors import ModelError, PlaceboError
from sae_placebo.core.lazy import torch, transformers
from sae_placebo.models.checks import check_config, check_forward, check_tensors
from sae_placebo.models.hookpoints import parse_hookpoint
from sae_placebo.models.reading import Reader, replaced, truncate
from sae_placebo.models.saved_weights import check_weights, config_parts, weight_files
from sae_placebo.models.sites import decoder_layers
from sae_placebo.models.specs import (
    PACKAGED,
    ModelSpec,
    config_path,
    describe,
    identify,
    layer_count,
    missing_package,
    model_folder,
    packaged_file,
    position_limit,
    source_name,
    ties_embeddings,
)
from sae_placebo.models.tokenizer_files import check_tokenizer, tokenizer_files
from sae_placebo.models.weight_files import damage

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
    "ties_embeddings",
    "truncate",
]


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
    path = packaged_file()
    if not all(importlib.util.find_spec(name) for name in ("gguf", "accelerate")):
        raise missing_package()
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
        source: A hub id, a folder, `pylm`, or `smollm2-135m`.
        revision: Branch, tag or commit of a hub id; name of a folder's revision.

    Raises:
        ModelError: no such model, not a causal language model, weights that are pickled, quantized
            or incomplete, code of its own, or a `source` that is no name.
        MissingExtra: the packaged model was asked for and is not installed.
    """
    source = source_name(source)
    if source == PACKAGED:
        return _dequantized()[0]
    folder = model_folder(source, revision)
    if folder:
        check_config(config_parts(folder / "config.json"), source)
        check_weights(folder)

    def load() -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder or source,
            revision="main" if folder else revision or "main",
            local_files_only=folder is not None or not _hub_answers(),
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, with their shapes
        )

    model, info = _loaded(source, revision, load, weight_files)
    path = None if folder else config_path(ModelSpec(id=source, revision=revision))
    if path is not None:
        check_config(config_parts(path), source)
    check_tensors(model, info, source)
    return _prepared(model, source)


def load_tokenizer(source: str | Path, revision: str | None = None) -> Any:
    """Return the model's tokenizer; arguments and errors as for `load_model`."""
    source = source_name(source)
    if source == PACKAGED:
        path = packaged_file()
        if not importlib.util.find_spec("gguf"):
            raise missing_package()
        with _quiet():
            return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    folder = model_folder(source, revision)
    if folder:
        check_tokenizer(folder, source)

    def load() -> Any:
        return transformers.AutoTokenizer.from_pretrained(
            folder or source,
            revision="main" if folder else revision or "main",
            local_files_only=folder is not None or not _hub_answers(),
            trust_remote_code=False,
        )

    return _loaded(source, revision, load, tokenizer_files)


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


T = TypeVar("T")


def _loaded(
    source: str, revision: str | None, load: Callable[[], T], files: Callable[[Path], list[Path]]
) -> T:
    """Return what `load` returns; what goes wrong becomes one sentence, which names the file at fault.

    Args:
        source: A hub id or a folder.
        revision: As for `load_model`.
        load: Loads it, or a part of it.
        files: Returns those of a model's folder that `load` reads beside its config.json.
    """
    try:
        with _quiet():
            return load()
    except PlaceboError:
        raise
    except Exception as error:  # transformers raises nearly every class there is
        config = None
        with suppress(ModelError):  # a name that no hub takes
            config = config_path(ModelSpec(id=source, revision=revision))
        read = files(config.parent) if config else []
        damaged = next(filter(None, map(damage, read)), None)
        raise ModelError(
            damaged or _explain(source, error, config, files is weight_files)
        ) from error


def _explain(source: str, error: Exception, config: Path | None, of_model: bool) -> str:
    text = " ".join(str(error).split())
    lower = text.lower()
    if "trust_remote_code" in lower or "custom code" in lower:
        return (
            f"{source} brings code of its own, which is not run; use a model that transformers has."
        )
    if "unrecognized configuration class" in lower:
        return f"{source} is not a causal language model that transformers can load."
    if model_folder(source) is None and any(
        sign in lower for sign in ("couldn't connect", "offline", "connection", "cached")
    ):
        return (
            f"{source!r} is no folder here, and the Hugging Face hub cannot be reached; give a folder, "
            f"{PACKAGED!r}, or fetch it first where there is a network."
        )
    if "not a valid model identifier" in lower or "not a local folder" in lower:
        return f"{source!r} is neither a folder nor a model on the Hugging Face hub."
    if "safetensors" in lower and "does not appear" in lower:
        return f"{source} has no safetensors weights; nothing is unpickled, so pick a revision that has."
    said = f"{type(error).__name__}: {text[:300]}"
    if config is None:
        return f"{source} cannot be loaded ({said}); fetch it again, or load another model."
    if of_model:
        return (
            f"{source} cannot be loaded as {config} describes it ({said}); mend config.json, or load "
            "another model."
        )
    names = ", ".join(path.name for path in tokenizer_files(config.parent)) or "no file"
    return (
        f"the tokenizer of {source} ({names}) cannot be loaded with {config} ({said}); mend config.json, or "
        "save the tokenizer again with tokenizer.save_pretrained."
    )


def _prepared(model: Any, source: str) -> Any:
    model.eval().requires_grad_(False)
    odd = {n for n, p in model.named_parameters() if type(p.data) is not torch.Tensor}
    odd |= {n for n, p in model.named_parameters() if p.dtype != torch.float32}
    if odd:
        raise ModelError(
            f"{source} has tensors that are not plain float32 ({sorted(odd)[0]}, ...), as quantized weights "
            "are; use the weights before they were quantized."
        )
    check_forward(model, source)
    return model


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
