"""The figures of the documents are drawn from the committed results."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(FOLDER))
import plot  # noqa: E402
import spike_figures  # noqa: E402
import world_figures  # noqa: E402


def texts_of(path: Path) -> set[str]:
    root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    return {one.text or "" for one in root.iter() if one.tag.endswith("text")}


@pytest.mark.parametrize("which", ["plot", "spikes", "worlds"])
def test_figures_are_drawn_from_the_results(
    which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = FOLDER / "results"
    if which == "plot":
        monkeypatch.setattr(
            sys, "argv", ["plot", "--results", str(results), "--out", str(tmp_path)]
        )
        plot.main()
        steps = json.loads((results / "sae_step.json").read_text(encoding="utf-8"))["cells"]
        texts = texts_of(tmp_path / "step-ratios.svg")
        assert {f"{cell['kind']} {cell['d_in']} x {cell['d_sae']}" for cell in steps[:1]} < texts
        assert {"SAELens, tuned", "sae-placebo", "training tokens"} <= texts_of(
            tmp_path / "training-relu.svg"
        )
    elif which == "spikes":
        spike_figures.draw(results, tmp_path)
        for model in ("pylm", "smollm2"):
            texts = texts_of(tmp_path / f"spikes-{model}.svg")
            assert {"trained", "redraw", "share of tokens"} < texts
    else:
        world_figures.draw(results, tmp_path)
        assert "swap of b" in texts_of(tmp_path / "twins.svg")
        assert {"effect / null", "factored, default: latents"} < texts_of(tmp_path / "worlds.svg")
