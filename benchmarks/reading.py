"""How much memory reading an SAE takes, as a multiple of its size, format by format.

    python benchmarks/reading.py [--d-sae 65536] [--d-in 2304] [--out FILE] [--work FOLDER]

A file of random numbers is written in each format, and read in a process of its own. The peak is that of the
process's resident memory, mapped files included, above what it was with all libraries loaded and a small SAE
read. Linux alone says it (VmHWM).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine

READER = """
import json, re, sys, time
from sae_placebo.saes.formats import read_sae
import torch
torch.set_num_threads(1)
read_sae(sys.argv[1])
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before, start = peak(), time.perf_counter()
given = read_sae(sys.argv[2])
seconds = time.perf_counter() - start
size = sum(tensor.nbytes for tensor in given.sae.params.values())
print(json.dumps({"size": size, "peak": peak() - before, "seconds": seconds}))
"""


def saelens(folder: Path, tensors: dict[str, Any], **settings: Any) -> None:
    from safetensors.torch import save_file

    save_file(tensors, folder / "sae_weights.safetensors")
    config = {
        "architecture": "standard",
        "d_in": len(tensors["b_dec"]),
        "d_sae": len(tensors["b_enc"]),
        "dtype": "float32",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12"},
        **settings,
    }
    (folder / "cfg.json").write_text(json.dumps(config), encoding="utf-8")


def saelens_folded(folder: Path, tensors: dict[str, Any]) -> None:
    """One that is rescaled, reads x itself and has a factor beside it: all that is folded."""
    more = {"architecture": "topk", "k": 32, "rescale_acts_by_decoder_norm": True}
    average = {"normalize_activations": "expected_average_only_in", "apply_b_dec_to_input": False}
    saelens(folder, tensors, **more, **average)
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 0.5}', encoding="utf-8")


def sparsify(folder: Path, tensors: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    renamed = {
        "encoder.weight": tensors["W_enc"].reshape(tensors["W_dec"].shape),
        "encoder.bias": tensors["b_enc"],
        "W_dec": tensors["W_dec"],
        "b_dec": tensors["b_dec"],
    }
    save_file(renamed, folder / "sae.safetensors")
    config = {"k": 32, "num_latents": len(tensors["b_enc"]), "d_in": len(tensors["b_dec"])}
    (folder / "cfg.json").write_text(json.dumps(config), encoding="utf-8")


def dictionary_learning(folder: Path, tensors: dict[str, Any]) -> None:
    import torch

    renamed = {
        "bias": tensors["b_dec"],
        "encoder.weight": tensors["W_enc"].reshape(tensors["W_dec"].shape),
        "encoder.bias": tensors["b_enc"],
        "decoder.weight": tensors["W_dec"].reshape(tensors["W_enc"].shape),
    }
    torch.save(renamed, folder / "ae.pt")
    config = {"trainer": {"dict_class": "AutoEncoder"}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def gemma_scope(folder: Path, tensors: dict[str, Any]) -> None:
    import numpy as np

    arrays = tensors | {"threshold": tensors["b_enc"]}
    np.savez(folder / "params.npz", **{name: array.numpy() for name, array in arrays.items()})


def ours(folder: Path, tensors: dict[str, Any]) -> None:
    from sae_placebo.saes import SAE, parse_sae
    from sae_placebo.saes.formats import saelens

    spec = parse_sae({"kind": "relu", "d_sae": len(tensors["b_enc"]), "l0": 8.0})
    saelens.write(SAE(spec, tensors), folder, {})


WRITERS: dict[str, Callable[[Path, dict[str, Any]], None]] = {
    "saelens": saelens,
    "saelens, all that is folded": saelens_folded,
    "sparsify": sparsify,
    "dictionary_learning": dictionary_learning,
    "gemma_scope": gemma_scope,
    "ours": ours,
}


def written(
    folder: Path, writer: Callable[[Path, dict[str, Any]], None], shape: tuple[int, int]
) -> Path:
    """Return a folder with an SAE of random numbers of this d_sae and d_in."""
    import torch

    d_sae, d_in = shape
    random = torch.Generator().manual_seed(0)
    sizes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_enc": (d_sae,), "b_dec": (d_in,)}
    folder.mkdir(parents=True)
    writer(folder, {name: torch.rand(size, generator=random) for name, size in sizes.items()})
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--d-sae", type=int, default=65_536)
    parser.add_argument("--d-in", type=int, default=2304)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/reading.json")
    parser.add_argument("--work", type=Path)
    given = parser.parse_args()
    work = given.work or Path(tempfile.mkdtemp(prefix="reading-"))
    results = []
    for name, writer in WRITERS.items():
        small = written(work / "small", writer, (64, 16))
        large = written(work / "large", writer, (given.d_sae, given.d_in))
        command = [sys.executable, "-c", READER, str(small), str(large)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        shutil.rmtree(work / "small")
        shutil.rmtree(work / "large")
        found = json.loads(done.stdout)
        results.append({"format": name, **found, "times_size": found["peak"] / found["size"]})
        print(json.dumps(results[-1]), flush=True)
    settings = {"d_sae": given.d_sae, "d_in": given.d_in}
    machine.save(given.out, "reading", settings, {"formats": results})


if __name__ == "__main__":
    main()
