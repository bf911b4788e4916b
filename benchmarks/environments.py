"""Install the peers, each into an environment of its own; what cannot be installed is skipped by name.

    python benchmarks/environments.py [--root .venv-bench] [--peer sae-lens ...]

Every peer gets the torch that this package is tested with, so that both sides call the same
products. Benchmarks find the environments by `pythons()`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent / ".venv-bench"
TORCH = "torch==2.13.0"
_STAMP = "installed"


@dataclass(frozen=True)
class Peer:
    """A pinned peer: what is installed, what is removed again, and what must import afterwards."""

    requirement: str
    checked: str
    removed: tuple[str, ...] = ()


PEERS = {
    "sae-lens": Peer("sae-lens==6.54.12", "sae_lens"),
    # its torchvision is made for another torch build, and transformers imports it where it is found
    "dictionary-learning": Peer(
        "dictionary-learning==0.1.0", "dictionary_learning.trainers.top_k", ("torchvision",)
    ),
    "sparsify": Peer("eai-sparsify==1.3.3", "sparsify, schedulefree"),
}


def python_of(name: str, root: Path = ROOT) -> Path:
    return root / name / "bin" / "python"


def pythons(root: Path = ROOT, given: tuple[str, ...] = ()) -> dict[str, str]:
    """Return the Python of every peer that is installed; `given` holds NAME=PYTHON, which wins."""
    found = {name: str(python_of(name, root)) for name in PEERS if (root / name / _STAMP).exists()}
    return found | dict(item.split("=", 1) for item in given)


def install(name: str, root: Path) -> str | None:
    """Install one peer; return None, or what went wrong in a line."""
    folder, peer, python = root / name, PEERS[name], python_of(name, root)
    wanted = f"{TORCH} {peer.requirement}\n"
    stamp = folder / _STAMP
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return None
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    constraint = root / "constraints.txt"
    root.mkdir(parents=True, exist_ok=True)
    constraint.write_text(TORCH + "\n", encoding="utf-8")
    steps = [
        [sys.executable, "-m", "venv", str(folder)],
        [*pip, TORCH],
        [*pip, "-c", str(constraint), peer.requirement, "safetensors"],
        *([str(python), "-m", "pip", "uninstall", "-q", "-y", gone] for gone in peer.removed),
        [str(python), "-c", f"import {peer.checked}"],
    ]
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            return lines[-1][:300] if lines else f"exit status {done.returncode}"
    stamp.write_text(wanted, encoding="utf-8")
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--peer", action="append", choices=sorted(PEERS))
    arguments = parser.parse_args()
    for name in arguments.peer or PEERS:
        problem = install(name, arguments.root)
        print(f"{name}: {'skipped: ' + problem if problem else 'installed'}", flush=True)


if __name__ == "__main__":
    main()
