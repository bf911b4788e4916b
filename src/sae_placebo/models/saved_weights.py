"""Which files of a saved model's folder its weights are read from, by its config and its index.

This needs no torch, so a folder that lacks one of them is refused before any work.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from sae_placebo.core.errors import ModelError
from sae_placebo.core.file_names import name_fault
from sae_placebo.models.weight_files import no_json

_WEIGHTS, _INDEX = "model", ".safetensors.index.json"
_PART = re.compile(r"-of-\d+\.safetensors$")


def config_parts(path: Path) -> list[dict[str, Any]]:
    """Return the tables of a config.json, the decoder's own first."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise no_json(path, error) from None
    except RecursionError as error:
        raise no_json(path, error) from None
    if not isinstance(config, dict):
        raise ModelError(
            f"{path} holds {type(config).__name__}, not an object of settings; fetch it again."
        )
    text = config.get("text_config", {})
    if not isinstance(text, dict):
        raise ModelError(
            f"{path}: text_config is {json.dumps(text):.40}, not an object of settings; mend it or "
            "leave it out."
        )
    return [text, config]


def weight_files(folder: Path) -> list[Path]:
    """Return every file of weights that can be read when the model in a folder is loaded.

    Links are followed, since what they lead to is read and hashed; the hub's cache is made of them.

    Raises:
        ModelError: an index, or the config, names a file outside the folder or one that is missing.
    """
    found = {path for path in folder.glob("*.safetensors") if path.is_file()}
    for index in sorted(folder.glob(f"*{_INDEX}")):
        found |= _indexed(folder, index)
    for part in config_parts(folder / "config.json"):
        named = part.get("transformers_weights")
        if isinstance(named, str):
            path = _inside(folder, named, folder / "config.json")
            found |= _indexed(folder, path) if named.endswith(_INDEX) else {path}
    return sorted(found)


def check_weights(folder: Path) -> None:
    """Refuse a model's folder whose weights cannot be loaded for want of a file, before any work.

    Raises:
        ModelError: the folder holds an adapter, no weights, pickled ones, parts without the index that joins
            them, or weights under a name that is not looked for.
    """
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{folder} holds an adapter (adapter_config.json) beside a model; merge the two where you trust "
            "them (merge_and_unload) and write the result with model.save_pretrained."
        )
    found = [path.name for path in weight_files(folder) if path.suffix == ".safetensors"]
    if not found:
        pickled = [p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt")]
        said = f"only pickled weights ({pickled[0]})" if pickled else "no weights"
        raise ModelError(
            f"{folder} holds {said}; *.safetensors is needed, because nothing is unpickled. Load it where "
            "you trust it and write it with model.save_pretrained."
        )
    whole, index = f"{_WEIGHTS}.safetensors", f"{_WEIGHTS}{_INDEX}"
    parts = config_parts(folder / "config.json")
    named = any(isinstance(part.get("transformers_weights"), str) for part in parts)
    if named or (folder / whole).is_file() or (folder / index).is_file():
        return
    if any(_PART.search(name) for name in found):
        raise ModelError(
            f"{folder} holds {len(found)} parts of the weights ({found[0]}, ...) and no {index}, which says "
            "what is in which; fetch that file, or write the model again with model.save_pretrained."
        )
    raise ModelError(
        f"{folder} holds {found[0]}, and weights are looked for in {whole}, or in the parts that {index} "
        "names; rename the file, or write the model again with model.save_pretrained."
    )


def _indexed(folder: Path, index: Path) -> set[Path]:
    """Return the files that an index of weights names, and itself."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{index} cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise no_json(index, error) from None
    names = content.get("weight_map", {}) if isinstance(content, dict) else None
    if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
        raise ModelError(
            f"{index} holds no table 'weight_map' of tensors and their files; fetch it again."
        )
    return {index, *(_inside(folder, name, index) for name in sorted(set(names.values())))}


def _inside(folder: Path, name: str, told_by: Path) -> Path:
    parts = name.replace("\\", "/").split("/")
    if ".." in parts or not parts[0] or ":" in parts[0]:
        raise ModelError(
            f"{told_by} names weights outside of its folder ({name!r:.80}), which are not followed; copy "
            "them into the folder and name them there."
        )
    path = folder / name
    if name_fault(path) is not None or not path.is_file():
        raise ModelError(
            f"{told_by} names {name!r:.80}, which is not there; fetch the model again."
        )
    return path
