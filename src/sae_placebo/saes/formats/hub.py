"""SAEs on the Hugging Face hub: one folder of a repository is fetched, without pickles but `ae.pt`."""

from __future__ import annotations

import re
import socket
import urllib.parse
import urllib.request
from pathlib import Path

from sae_placebo.core.errors import StoreError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?:/[^/\\:*?]+)*")
_FILES = ("*.json", "*.safetensors", "params.npz", "ae.pt")


def is_hub_id(source: str) -> bool:
    """Return whether a text has the form of a repository, `owner/name`, or of a folder in one."""
    return bool(_ID.fullmatch(source)) and ".." not in source.split("/")


def fetched(source: str, revision: str | None) -> Path:
    """Return a local folder with the files of an SAE on the hub.

    What was fetched before is not fetched again, and is found without a network.

    Args:
        source: `owner/name`, or `owner/name/folder`.
        revision: Branch, tag or commit; None is the main branch.

    Raises:
        StoreError: there is no such repository or folder, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    unreachable = (
        f"{source!r} is no file or folder here, and the Hugging Face hub cannot be reached; give a folder, "
        "or fetch it first where there is a network."
    )

    owner, name, *rest = source.split("/")
    folder = "/".join(rest)
    # a folder alone, and the settings of the run above it
    patterns = [f"{folder}/{file}" if folder else file for file in _FILES] + ["config.json"]
    try:
        root = Path(
            snapshot_download(
                f"{owner}/{name}",
                revision=revision,
                allow_patterns=patterns,
                local_files_only=not answers(),
            )
        )
    except LocalEntryNotFoundError as problem:
        raise StoreError(unreachable) from problem
    except HfHubHTTPError as problem:
        raise StoreError(
            f"{source!r} is no folder here, and the Hugging Face hub does not give it "
            f"({' '.join(str(problem).split())[:200]})"
        ) from problem
    except (OSError, ValueError) as problem:
        raise StoreError(unreachable) from problem
    found = root / folder
    if not found.is_dir():
        raise StoreError(f"the repository {owner}/{name} holds no folder {folder!r}")
    return found


def answers() -> bool:
    """Return whether the hub's name resolves: without, huggingface_hub tries again for long."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies():  # then the proxy resolves it
        return True
    host = urllib.parse.urlsplit(constants.ENDPOINT).hostname
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True
