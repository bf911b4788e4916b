"""Phase diagrams: resumed to the same table, drawn from planted scores, refused by name."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sae_placebo.cli.toy import toy
from sae_placebo.core.errors import MissingExtra, SpecError
from sae_placebo.core.pictures import INK, svg_of
from sae_placebo.core.progress import Progress
from sae_placebo.lab.experiments.base import LabTraining
from sae_placebo.lab.experiments.phase import (
    MEASURES,
    PhaseDiagram,
    PhaseSpec,
    mean_of,
    phase_spec,
    run_phase,
)
from sae_placebo.lab.experiments.phase_drawing import (
    SCALE,
    color_of,
    draw_phase,
    interactive,
    static,
)
from sae_placebo.lab.experiments.scoreboard import SCORES, in_lines, sae_for, scoreboard
from sae_placebo.lab.experiments.sweeps import Axis, generator_of, parse_axes, parse_settings
from sae_placebo.lab.scores.closed_forms import composition_boundary


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny(**settings: Any) -> PhaseSpec:
    axes = parse_axes("lambda=0.05:0.2,correlation=0:1,width=6")
    small = {"seeds": 2, "steps": 20, "heldout_tokens": 512}
    return phase_spec(axes, {"items": 2}, **{**small, **settings})


def table_of(folder: Path) -> Any:
    return json.loads((folder / "phase.json").read_text())


class Stopped(Exception):
    pass


class StopAfter(Progress):
    """Stops the work at a number of tokens, as Ctrl-C does; counts what is done."""

    def __init__(self, most: int = 10**9) -> None:
        self.left, self.before = most, -1

    def track(self, label: str, total: int, unit: str = "tokens", before: int = 0) -> Any:
        import contextlib

        self.before = before

        def advance(n: int) -> None:
            self.left -= n
            if self.left == 0:
                raise Stopped

        return contextlib.nullcontext(advance)


def test_a_run_that_stopped_gives_the_same_table(tmp_path: Path) -> None:
    spec = tiny()
    assert len(spec.cells) == 4
    each = spec.cells[0].n_tokens
    run_phase(spec, tmp_path / "whole")
    with pytest.raises(Stopped):
        run_phase(spec, tmp_path / "parts", progress=StopAfter(2 * each))
    kept = {file: file.read_bytes() for file in (tmp_path / "parts/cells").iterdir()}
    assert len(kept) == 2
    # what was cut short is done again, not taken
    broken = next(iter(kept))
    broken.write_text("{")
    again = StopAfter()
    resumed = run_phase(spec, tmp_path / "parts", progress=again)
    # three of four cells were left, and every token of theirs was counted
    assert (again.before, 10**9 - again.left) == (each, 3 * each)
    assert all(f.read_bytes() == content for f, content in kept.items() if f != broken)
    assert table_of(tmp_path / "whole") == table_of(tmp_path / "parts")
    assert len(resumed.done) == 4
    for cell in resumed.done:
        assert resumed.score(cell, "mmcs").n == 2
        assert resumed.score(cell, "ev").mean != resumed.null(cell, "ev").mean
        assert cell.generator.truth.is_identifiable is (cell.at["correlation"] < 1)


def test_processes_give_the_bits_of_one(tmp_path: Path) -> None:
    spec = tiny(steps=5)
    axis = Axis(name="lambda", values=(0.05, 0.2))
    spec = spec.model_copy(update={"axes": (axis,)})
    run_phase(spec, tmp_path / "one")
    counted = StopAfter()
    run_phase(spec, tmp_path / "two", workers=2, progress=counted)
    assert 10**9 - counted.left == sum(cell.n_tokens for cell in spec.cells)
    assert table_of(tmp_path / "one") == table_of(tmp_path / "two")


def test_other_settings_are_other_cells(tmp_path: Path) -> None:
    keys = {cell.key for cell in tiny().cells}
    assert keys & {cell.key for cell in tiny(seeds=3).cells} == set()
    assert keys & {cell.key for cell in tiny(sae="tied").cells} == set()
    more = phase_spec(
        parse_axes("lambda=0.05:0.1:0.2,correlation=0:1,width=6"),
        {"items": 2},
        seeds=2,
        steps=20,
        heldout_tokens=512,
    )
    assert keys < {cell.key for cell in more.cells}


def test_training_takes_lambda_and_width_where_the_cell_says() -> None:
    for cell in phase_spec(parse_axes("lambda,correlation,width"), {}).cells:
        assert cell.sae.d_sae == cell.at["width"]
        assert cell.sae.model_dump()["coefficient"] == cell.at["lambda"]
        assert cell.generator.model_dump()["correlation"] == cell.at["correlation"]
        assert cell.lab.bias == "none"
    free = phase_spec(parse_axes("items=2:3,solo=0.5,lambda=0.3"), {}).cells
    assert [cell.sae.d_sae for cell in free] == [8, 15]
    assert all(cell.generator.model_dump()["solo"] == 0.5 for cell in free)
    assert all(cell.sae.model_dump()["coefficient"] == 0.3 for cell in free)


def planted(spec: PhaseSpec) -> PhaseDiagram:
    """Composed above lambda*(f) in every width, seeds that agree, but for one cell that does not."""
    found = {}
    for i, cell in enumerate(spec.cells):
        above = cell.at["lambda"] > composition_boundary(cell.at["correlation"])
        seeds = []
        for seed in range(5):
            share = 0.96 if above else 0.02
            wide = 0.9 * seed / 4 if i == 0 else 0.01 * seed
            one = {"conjunction": share - wide * (1 if above else -1), "atomic": 1 - share}
            one |= {"contrast": one["conjunction"] - one["atomic"], "mmcs": 0.9, "ev": 0.9}
            seeds.append({**one, "l0": 2.0, "reason": None})
        empty = dict.fromkeys(MEASURES) | {"reason": "no latent fires <here>"}
        trained = [empty] * 5 if i == 1 else seeds
        found[cell.key] = {"trained": trained, "untrained": seeds, "seconds": 1.0}
    del found[spec.cells[2].key]
    return PhaseDiagram(spec, found)


def cells_beside(line: tuple[Any, Any], shares: Any) -> list[tuple[bool, bool]]:
    """Return, of every colored cell in a column that a line crosses, whether it is above and composed."""
    beside = []
    for row, column in zip(*np.nonzero(~np.ma.getmaskarray(shares)), strict=True):
        i = int(np.abs(np.asarray(line[0]) - column).argmin())
        if abs(line[0][i] - column) <= 0.04:
            beside.append((bool(row > line[1][i]), bool(shares[row, column] > 0)))
    return beside


def test_a_planted_boundary_is_drawn_between_the_colors() -> None:
    spec = phase_spec(parse_axes("lambda,correlation,width=8:24"), {})
    *panels, bar = static(planted(spec)).axes
    assert len(panels) == 2
    assert [text.get_text() for text in bar.get_yticklabels()] == [*SCALE.values()]
    # the line of the narrow panel is dashed: 16 pairs do not fit 8 latents
    lines = [axes.get_lines() for axes in panels]
    assert [[line.get_linestyle() for line in one] for one in lines] == [["--"], ["-"]]
    assert sum(len(axes.texts) for axes in panels) == len(spec.cells)
    for axes, (line,) in zip(panels, lines, strict=True):
        # only numbers come after the line: a white cell would hide it
        assert all(text.get_zorder() > line.get_zorder() for text in axes.texts)
        below = [*axes.collections, *axes.patches]
        assert all(artist.get_zorder() < line.get_zorder() for artist in below)
    # two cells have no color: what cannot be estimated has a whole outline, what is not done a dotted one
    hatched = [patch for axes in panels for patch in axes.patches if patch.get_hatch()]
    assert len(hatched) == 1
    outlines = [p.get_linestyle() for axes in panels for p in axes.patches if not p.get_hatch()]
    assert sorted(outlines) == ["-", ":"]
    texts = [text.get_text() for axes in panels for text in axes.texts]
    assert (texts.count("–"), texts.count("")) == (1, 1)
    assert all(re.fullmatch(r"-?\d+ / \d+", text) for text in texts if len(text) > 1)
    # every colored cell of a panel lies on the side of the line that it was planted on
    mesh = panels[1].collections[0]
    colors = mesh.to_rgba(mesh.get_array())
    assert np.array_equal(colors[..., 0] > colors[..., 2], (mesh.get_array() > 0).filled(False))
    beside = cells_beside(lines[1][0].get_data(), mesh.get_array())
    assert len(beside) >= 20
    assert all(above is composed for above, composed in beside)


def boundaries(figure: Any) -> list[Any]:
    """Return the traces of the analytic boundary, those of the legend with them."""
    return [one for one in figure.data if one.type == "scatter" and one.line.color == INK]


def test_the_page_shows_the_same_and_loads_nothing(tmp_path: Path) -> None:
    spec = phase_spec(parse_axes("lambda,correlation,width=8:24"), {})
    phase = planted(spec)
    figure = interactive(phase)
    heatmaps = [trace for trace in figure.data if trace.type == "heatmap"]
    details = [text for trace in heatmaps for row in trace.hovertext for text in row]
    assert len(details) == len(spec.cells)
    assert sum("not done yet" in text for text in details) == 1
    assert sum("no latent fires &lt;here&gt;" in text for text in details) == 1
    inside = [line for line in boundaries(figure) if line.x[0] is not None]
    assert [trace.line.dash for trace in inside] == ["dash", "solid"]
    wide = [trace for trace in figure.data if trace.type == "scatter" and trace.fillpattern.shape]
    assert [trace.x.count(None) for trace in wide] == [1, 1]  # the cell, and the legend
    values = np.ma.masked_invalid(np.array(heatmaps[1].z, dtype=float))
    beside = cells_beside((inside[1].x, inside[1].y), values)
    assert len(beside) >= 20
    assert all(above is composed for above, composed in beside)
    labels = {note.text for note in figure.layout.annotations}
    assert {"–", "4 / 98"} < labels
    outlines = {shape.line.dash for shape in figure.layout.shapes}
    assert outlines == {"solid", "dot"}

    text = draw_phase(phase, tmp_path).read_text(encoding="utf-8")
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    markup = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"(src|href)=|@import|url\(", markup)
    assert "default-src 'none'" in markup
    assert len(scripts) == 2
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in markup
    assert "no latent fires &lt;here&gt;" in markup
    assert "no latent fires <here>" not in text
    assert "not done yet" in markup


def test_the_picture_has_the_same_bytes_and_its_words_as_text(tmp_path: Path) -> None:
    phase = planted(phase_spec(parse_axes("lambda,correlation,width=8:24"), {}))
    draw_phase(phase, tmp_path)
    drawing = (tmp_path / "phase.svg").read_text(encoding="utf-8")
    assert drawing == svg_of(static(phase), "Composed against atomic latents")
    texts = [one.text for one in ElementTree.fromstring(drawing).iter() if one.tag.endswith("text")]
    assert {"4 / 98", "–", "8 latents", "* not identifiable", "all composed"} < set(texts)


def test_without_matplotlib_the_page_is_written_and_the_picture_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    phase = PhaseDiagram(tiny(), {})
    with pytest.raises(MissingExtra, match=r"pip install 'sae-placebo\[plots\]'"):
        draw_phase(phase, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["phase.html"]
    short = ["--seeds", "2", "--steps", "5", "--workers", "1", "--items", "2"]
    arguments = ["compose", "--out", str(tmp_path), "--sweep", "lambda=0.1:0.3", *short]
    done = CliRunner().invoke(toy, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert "phase.svg is left out: " in done.output
    assert f"page: {tmp_path / 'phase.html'}" in done.output


def test_without_lambda_and_correlation_there_is_no_line() -> None:
    for sweep in ("lambda", "solo,items", "lambda,solo,width=8:16:20:24"):
        spec = phase_spec(parse_axes(sweep), {})
        phase = PhaseDiagram(spec, {})
        figure = static(phase)
        assert not any(axes.get_lines() for axes in figure.axes)
        svg_of(figure, "")
        figure = interactive(phase)
        assert not boundaries(figure)
        heatmaps = [trace for trace in figure.data if trace.type == "heatmap"]
        details = [text for trace in heatmaps for row in trace.hovertext for text in row]
        assert sum("not done yet" in text for text in details) == len(spec.cells)


def test_colors_run_from_atomic_to_composed() -> None:
    assert color_of(-1) == "#0072b2"
    assert color_of(1) == "#d55e00"
    assert color_of(0) == "#f2f2f0"


def test_means_have_intervals_or_reasons() -> None:
    seeds = [{"ev": value, "reason": None} for value in (0.1, 0.2, 0.3)]
    found = mean_of(seeds, "ev")
    assert found.n == 3
    assert found.mean == pytest.approx(0.2)
    half = 4.302652729911275 * 0.1 / math.sqrt(3)
    assert found.low == pytest.approx(0.2 - half)
    assert found.high == pytest.approx(0.2 + half)
    same = mean_of(seeds[:1] * 3, "ev")
    assert (same.low, same.spread) == (None, None)
    assert same.reason == "all 3 seeds gave this very value"
    gone = {"ev": None, "reason": "no latent fires"}
    assert mean_of([gone, *seeds[:1]], "ev").n == 1
    assert mean_of([gone], "ev") == (None, None, None, 0, "no latent fires")


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ("lamda", "Did you mean 'lambda'"),
        ("lambda,corelation", "Did you mean 'correlation'"),
        ("amplitude", "no setting to sweep is called 'amplitude'"),
        ("boost", "no default values for a sweep of 'boost'"),
        ("lambda=a:b", "numbers apart by colons"),
        ("lambda=0.2:0.1", "must rise"),
        ("lambda,correlation,width,solo", "one to three sweeps"),
        ("", "one to three sweeps"),
        ("lambda,lambda", "swept twice"),
        ("lambda=0.1,lambda=0.2", "a setting is swept twice: lambda, lambda"),
        ("lambda=0.1:0.2,lambda=0.1", "a setting is swept twice: lambda, lambda"),
        ("width=4,lambda=0.1,width=6", "a setting is swept twice: width, lambda, width"),
        ("lambda=nan", "lambda is swept over nan: give finite numbers"),
        ("lambda=0.1,width=1e400", "width is swept over inf: give finite numbers"),
        ("lambda=0.1:0.1", "the values of lambda must rise; found [0.1, 0.1]"),
        ("width=3.5:8", "whole"),
        ("correlation=0:2", "correlation = 2"),
        ("lambda=0:1,items=1:2", "items = 1"),
    ],
)
def test_bad_sweeps_are_refused_by_name(sweep: str, said: str) -> None:
    with pytest.raises(SpecError, match=re.escape(said)) as refusal:
        assert phase_spec(parse_axes(sweep), {}).cells
    assert "\n" not in str(refusal.value)


def test_a_setting_that_is_fixed_twice_is_refused_without_the_command_line() -> None:
    one, other = (Axis(name="lambda", values=(value,)) for value in (0.1, 0.2))
    with pytest.raises(SpecError, match="swept twice: lambda, lambda"):
        phase_spec([one, other])


def test_what_is_fixed_is_not_swept_and_saes_have_a_penalty() -> None:
    with pytest.raises(SpecError, match="swept and fixed at"):
        phase_spec(parse_axes("correlation"), {"correlation": 0.5})
    with pytest.raises(SpecError, match="has no penalty"):
        phase_spec(parse_axes("lambda"), {}, sae="topk")
    with pytest.raises(SpecError, match="setting of generator 'composed_sets'"):
        assert phase_spec(parse_axes("lambda"), {"item": 4}).cells
    with pytest.raises(SpecError, match="name=value"):
        parse_settings(["items"])
    with pytest.raises(SpecError, match="the setting 'items' is given twice"):
        parse_settings(["items=4", "items=5"])
    assert parse_settings(["items=4", "amplitude=constant"]) == {
        "items": 4,
        "amplitude": "constant",
    }


def test_the_command_says_where_the_page_is_and_trains(tmp_path: Path) -> None:
    run = CliRunner()
    short = ["--seeds", "2", "--steps", "5", "--workers", "1"]
    arguments = ["compose", "--out", str(tmp_path), "--sweep", "lambda=0.1:0.3,width=4:6"]
    done = run.invoke(toy, [*arguments, "--items", "2", *short], catch_exceptions=False)
    assert done.exit_code == 0
    assert f"page: {tmp_path / 'phase.html'}" in done.output
    assert "4 cells" in done.output
    listed = run.invoke(toy, ["generators"], catch_exceptions=False).output
    assert re.search(r"^composed_sets +Two sets A and B", listed, re.MULTILINE)


@pytest.mark.slow
def test_processes_are_stopped_and_gone_on_from(tmp_path: Path) -> None:
    cells = tmp_path / "cells"
    sizes = ["--items", "2", "--seeds", "2", "--steps", "400", "--workers", "2"]
    sweep = ["--sweep", "lambda=0.05:0.1:0.2:0.3:0.4:0.6,width=4:8"]
    words = ["-m", "sae_placebo.cli.main", "toy", "compose", "--out", str(tmp_path), *sweep, *sizes]
    command = [sys.executable, *words]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list(cells.glob("*.json")):
        assert running.poll() is None
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=300)
    assert running.returncode == 130, said
    assert "Traceback" not in said
    before = {path: path.stat().st_mtime_ns for path in cells.iterdir()}
    assert 0 < len(before) < 12
    assert not list(cells.glob("*.part"))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list(cells.iterdir())) == 12
    assert before.items() <= {path: path.stat().st_mtime_ns for path in cells.iterdir()}.items()


def test_scores_stand_between_chance_and_ceiling() -> None:
    made = generator_of("composed_sets", {"items": 2})
    lab = LabTraining(steps=200, bias="none")
    lines = {
        line.name: line
        for line in scoreboard(made, sae_for(made, "topk", {}), lab, range(2), heldout_tokens=1024)
    }
    assert set(lines) == set(SCORES)
    for name in ("ev", "mmcs", "recall"):
        line = lines[name]
        null, found, top = line.null.mean, line.trained.mean, line.ceiling
        assert null is not None
        assert found is not None
        assert top is not None
        assert null < found <= top + 1e-6, name
        assert line.trained.n == 2
    assert lines["l0"].ceiling == pytest.approx(2.0)
    text = in_lines(list(lines.values()))
    assert len(text.split("\n")) == 1 + len(SCORES)
