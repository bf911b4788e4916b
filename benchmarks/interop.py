"""Do our readers compute what the libraries compute that trained the SAEs?

    python benchmarks/interop.py [--peer NAME ...] [--fixtures] [--work FOLDER] [--python NAME=PYTHON ...]

Each peer, in an environment of its own (`environments.py`), trains small SAEs of every architecture that it
has on activations of `pylm`, saves them its own way and writes its own codes of a fixed batch of tokens
that it did not train on. `sae_placebo.saes.formats.read_sae` reads the same folders. Compared are the sets
of active latents, which must be equal, and values: the largest difference over a token's largest code, and
likewise of the reconstruction.

`--fixtures` trains smaller ones, on the first columns of the activations, and puts them into
tests/saes/given.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import subprocess
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import machine
import torch
from environments import PEERS, ROOT, pythons
from interop_cases import Task
from safetensors.torch import load_file, save_file

from sae_placebo.core.errors import PlaceboError
from sae_placebo.models.loading import load_model, load_tokenizer
from sae_placebo.models.specs import model_folder
from sae_placebo.saes.formats import read_sae

HERE = Path(__file__).parent
FIXTURES = HERE.parent / "tests" / "saes" / "given"
WORKERS = {
    "sae-lens": ("saelens", "interop_saelens.py"),
    "sparsify": ("sparsify", "interop_sparsify.py"),
    "dictionary-learning": ("dictionary_learning", "interop_dictionary_learning.py"),
}
FULL = {"width": 0, "d_sae": 320, "steps": 120, "tokens": 1024}
SMALL = {"width": 32, "d_sae": 48, "steps": 100, "tokens": 32}
N_ROWS, CONTEXT_TOKENS = 320, 128
LAYER = 2
LEFT_OUT = (
    "runs",
    "refused-*",
    "april-update*",
    "gated-anneal*",
    "standard-checkpoint*",
    "topk-multi*",
)
"""What the fixtures have no use for: other trainings of classes that they have, and what is refused."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=HERE / "results" / "interop.json")
    parser.add_argument("--into", type=Path, default=HERE.parent / "docs/reference/sae-formats.md")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--python", action="append", default=[])
    parser.add_argument("--peer", action="append", choices=sorted(WORKERS))
    parser.add_argument("--fixtures", action="store_true")
    given = parser.parse_args()
    work = given.work or Path(tempfile.mkdtemp(prefix="interop-"))
    work.mkdir(parents=True, exist_ok=True)
    rows = work / "rows.safetensors"
    if not rows.exists():
        save_file(activations(), rows)
    versions: dict[str, str] = {}
    installed = pythons(given.root, tuple(given.python))
    for peer, (name, script) in WORKERS.items():
        if given.peer and peer not in given.peer:
            continue
        if peer not in installed:
            print(f"{peer}: skipped, {PEERS[peer].requirement} is not installed", flush=True)
            continue
        shutil.rmtree(work / name, ignore_errors=True)
        if name == "saelens":
            shutil.rmtree(work / "gemma_scope", ignore_errors=True)
        versions |= trained(installed[peer], script, rows, work / name, given.fixtures)
        print(f"{peer}: trained", flush=True)
    found = compared(work, rows, SMALL if given.fixtures else FULL)
    for case in found:
        print(json.dumps(case), flush=True)
    if given.fixtures:
        put_fixtures(work, rows)
        return
    result = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine.describe(),
        "versions": versions | {"torch": torch.__version__},
        "task": FULL,
        "cases": found,
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    given.into.write_text(filled(given.into.read_text(encoding="utf-8"), result), encoding="utf-8")
    if wrong := [case["case"] for case in found if not case["equal"]]:
        raise SystemExit(f"not equal: {', '.join(wrong)}")


def activations() -> dict[str, torch.Tensor]:
    """Return rows of Python code, and what leaves a layer and an MLP of pylm at all but BOS."""
    import sysconfig

    tokenizer, model = load_tokenizer("pylm"), load_model("pylm")
    ids: list[int] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        ids += tokenizer(path.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
        if len(ids) > N_ROWS * CONTEXT_TOKENS:
            break
    width = CONTEXT_TOKENS - 1
    rows = torch.tensor(ids[: N_ROWS * width]).reshape(-1, width)
    rows = torch.cat([torch.full((len(rows), 1), tokenizer.bos_token_id), rows], dim=1)
    mlp: list[torch.Tensor] = []
    layers = model.model.layers
    layers[LAYER - 1].mlp.register_forward_hook(lambda *parts: mlp.append(parts[2]))
    residual: list[torch.Tensor] = []
    layers[LAYER].register_forward_hook(
        lambda *parts: residual.append(parts[2][0] if isinstance(parts[2], tuple) else parts[2])
    )
    with torch.no_grad():
        for part in rows.split(32):
            model(part)
    return {
        "token_ids": rows,
        "activations": torch.cat(residual)[:, 1:].flatten(0, 1).contiguous(),
        "mlp_activations": torch.cat(mlp)[:, 1:].flatten(0, 1).contiguous(),
    }


def trained(python: str, script: str, rows: Path, out: Path, small: bool) -> dict[str, str]:
    """Run a worker in its environment, and return the versions that it tells."""
    out.mkdir(parents=True)
    task = Task(str(model_folder("pylm", None)), str(rows), str(out), **(SMALL if small else FULL))
    done = subprocess.run(
        [python, str(HERE / script)],
        input=json.dumps(asdict(task)) + "\n",
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{script}: {done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def place(folder: Path) -> Path:
    """Return what is named to read a case: the file of a checkpoint, else the folder of the weights."""
    files = [p for p in sorted(folder.rglob("*")) if p.suffix in (".pt", ".npz", ".safetensors")]
    if not files:
        raise SystemExit(f"{folder} holds no weights")
    return files[0] if files[0].parent.name == "checkpoints" else files[0].parent


def compared(work: Path, rows: Path, task: dict[str, int]) -> list[dict[str, Any]]:
    """Return, of each case, how far our codes are from the peer's."""
    kept = load_file(rows)
    cases = []
    for expected in sorted(work.glob("*/*.expected.safetensors")):
        name = expected.name.removesuffix(".expected.safetensors")
        source = kept["mlp_activations" if "mlp" in name else "activations"]
        own_width = expected.parent.name == "sparsify"
        batch = source[: task["tokens"], : None if own_width else task["width"] or None].float()
        folder = place(expected.parent / name)
        cases.append(
            {"format": expected.parent.name, "case": name, **differences(folder, batch, expected)}
        )
    for folder in sorted(work.glob("*/refused-*")):
        try:
            read_sae(place(folder))
            said = None
        except PlaceboError as refusal:
            said = str(refusal).split(": ", 1)[-1]
        case = folder.name.removeprefix("refused-")
        cases.append(
            {"format": folder.parent.name, "case": case, "refused": said, "equal": said is not None}
        )
    return cases


def differences(folder: Path, batch: torch.Tensor, expected: Path) -> dict[str, Any]:
    """Return what is compared of one SAE."""
    theirs = load_file(expected)
    given = read_sae(folder)
    if given.normalization == "missing_factor":
        given = given.with_factor(float(theirs["factor"]))
    codes = given.encode(batch)
    decoded = given.decode(codes, batch)[: len(theirs["reconstruction"])]
    dense = codes.dense()
    largest = theirs["codes"].amax(dim=1, keepdim=True).clamp_min(1e-30)
    sets = int(((dense > 0) != (theirs["codes"] > 0)).sum())
    of_codes = float(((dense - theirs["codes"]).abs() / largest).max())
    scale = theirs["reconstruction"].abs().amax(dim=1, keepdim=True)
    of_decoded = float(((decoded - theirs["reconstruction"]).abs() / scale).max())
    return {
        "kind": given.sae.spec.kind,
        "normalization": given.normalization,
        "l0": float((theirs["codes"] > 0).sum(dim=1).float().mean()),
        "active_sets_differ": sets,
        "codes": of_codes,
        "reconstruction": of_decoded,
        "equal": sets == 0 and of_codes <= 1e-5 and of_decoded <= 1e-5,
    }


def put_fixtures(work: Path, rows: Path) -> None:
    """Replace the SAEs in tests/saes/given by those of this run, and the batch."""
    shutil.rmtree(FIXTURES, ignore_errors=True)
    for name in sorted({name for name, _ in WORKERS.values()} | {"gemma_scope"}):
        if (work / name).is_dir():
            shutil.copytree(work / name, FIXTURES / name, ignore=shutil.ignore_patterns(*LEFT_OUT))
    kept = load_file(rows)
    count = SMALL["tokens"]
    batch = {key: kept[key][:count].contiguous() for key in ("activations", "mlp_activations")}
    save_file(batch, FIXTURES / "batch.safetensors")
    size = sum(path.stat().st_size for path in FIXTURES.rglob("*") if path.is_file())
    print(f"{FIXTURES}: {size / 1e6:.2f} MB", flush=True)


def filled(page: str, result: dict[str, Any]) -> str:
    """Return the page with the table of a result between its marks."""
    head = ["format", "SAE", "kind here", "L0", "active sets differ at", "codes", "reconstruction"]
    lines = [head, ["---"] * len(head)]
    for case in result["cases"]:
        if "refused" in case:
            lines.append([case["format"], case["case"], f"refused: {case['refused']}", *["-"] * 4])
            continue
        lines.append(
            [
                case["format"],
                case["case"],
                case["kind"],
                f"{case['l0']:.1f}",
                f"{case['active_sets_differ']} sites",
                f"{case['codes']:.1e}",
                f"{case['reconstruction']:.1e}",
            ]
        )
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    told = ", ".join(f"{name} {version}" for name, version in sorted(result["versions"].items()))
    before, rest = page.split("<!-- interop -->")
    _, after = rest.split("<!-- /interop -->")
    return f"{before}<!-- interop -->\n\n{result['date']}, {told}.\n\n{table}\n\n<!-- /interop -->{after}"


if __name__ == "__main__":
    main()
