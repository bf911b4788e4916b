"""Put the trained model into the package: `python -m pylm.install`."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

PACKAGED = Path(__file__).parents[1] / "src" / "sae_placebo" / "pylm"
# an early checkpoint for the control `revision`: it knows pairs of tokens, and cannot copy yet
REVISION = "step400"


def install(work: Path) -> None:
    """Replace the packaged model by the one in `work`, with one early revision and its record."""
    if not (work / "final" / "model.safetensors").exists():
        raise SystemExit(f"{work}/final holds no model; run `python -m pylm.train` to its end")
    shutil.rmtree(PACKAGED, ignore_errors=True)
    shutil.copytree(work / "final", PACKAGED)
    shutil.copytree(work / REVISION, PACKAGED / "revisions" / REVISION)
    record = {
        "data": json.loads((work / "data.json").read_text()),
        "curve": [json.loads(line) for line in (work / "curve.jsonl").read_text().splitlines()],
        "evaluation": json.loads((work / "evaluation.json").read_text()),
    }
    (PACKAGED / "training.json").write_text(json.dumps(record) + "\n")


def main() -> None:
    """Run `python -m pylm.install`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/pylm"))
    install(parser.parse_args().work)


if __name__ == "__main__":
    main()
