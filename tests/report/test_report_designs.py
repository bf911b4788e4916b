"""What the report says of factorials, doses, labels, and of trials with very many arms."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from sae_placebo.report import Tables, read_tables
from sae_placebo.report.build import render, render_section
from sae_placebo.report.palette import arm_styles
from sae_placebo.report.plots import Panel, entropy_panels
from sae_placebo.report.sections import SECTIONS, View
from sae_placebo.report.sections.aa import by_kind, tally
from sae_placebo.report.sections.dose import orders_as_extreme, rank_correlation
from synthetic_trial import EVIL, FACTORIAL, Settings, write_trial


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = Settings.every_control(latents=20, kept_per_sae=3, passages=1)
    return write_trial(tmp_path_factory.mktemp("every") / "trial", settings)


@pytest.fixture(scope="module")
def view(folder: Path) -> View:
    return View.of(read_tables(folder))


def values(view: View, name: str) -> dict[str, Any]:
    return dict(SECTIONS[name].build(view).values)


def test_the_trained_arm_is_the_one_without_any_control(view: View) -> None:
    assert view.trained == "trained"
    assert view.arms[0] == "trained"
    turned = dict(reversed(view.tables.trial["arms"].items()))
    tables = Tables(
        trial={**view.tables.trial, "arms": turned},
        **{n: getattr(view.tables, n) for n in ("effects", "latents", "measurements", "passages")},
    )
    assert tables.trained() == "trained"
    del turned["trained"]
    assert tables.trained() == "trained"  # the tables still hold it


def test_the_factorial_has_cells_margins_and_interaction(view: View) -> None:
    (design,) = values(view, "designs")["designs"]
    (place,) = design["places"]
    assert [one["name"] for one in place["pair"]] == ["redraw_keep_embeddings", "redraw"]
    grid = next(g for g in place["grids"] if g["id"] == "share_single_token")
    assert [[c["arm"] for c in row["cells"]] for row in grid["rows"]] == [
        ["trained", "redraw_embeddings"],
        ["redraw_keep_embeddings", "redraw"],
    ]
    # 0.22 to 0.58 with distances 0, .6, .7 and 1: (a - b) - (c - d) = -.36 (.3 - .6), in percent
    effects = view.tables.effects
    for row, pair in zip(grid["rows"], [(0, 1), (2, 3)], strict=True):
        names = ["trained", "redraw_embeddings", "redraw_keep_embeddings", "redraw"]
        arm, control = (names[i] for i in pair)
        known = effects[
            (effects["arm"] == arm)
            & (effects["control"] == control)
            & (effects["metric"] == "share_single_token")
        ]
        shown = float(row["effect"]["value"].value.replace("−", "-"))
        assert shown == pytest.approx(100 * known["effect"].item(), abs=0.6)
    assert grid["interaction"].value == "−11"
    assert grid["interaction"].n.endswith("models 1, 2, 2, 2")
    assert "do not simply add up" in grid["says"]
    without = next(g for g in place["grids"] if g["id"] == "coverage_token")
    assert without["says"].startswith("Cannot tell")


def test_the_named_row_is_prominent(view: View) -> None:
    html = render_section(SECTIONS["designs"], view)
    assert "What a real W_E buys on random blocks" in html
    assert html.index("What a real W_E buys") < html.index('class="grids"')


def test_a_lacking_arm_is_asked_for(tmp_path: Path) -> None:
    arms = ("trained", "redraw", "redraw_keep_embeddings", "shuffle")
    settings = Settings(
        arms=arms, kinds={arm: FACTORIAL[arm] for arm in arms}, latents=20, passages=1
    )
    view = View.of(read_tables(write_trial(tmp_path / "trial", settings)))
    html = render_section(SECTIONS["designs"], view)
    assert "redraw_embeddings = {control = &#34;redraw_embeddings&#34;}" in html
    assert "one of the four arms is lacking" in html
    html = render_section(SECTIONS["data"], view)
    assert "data = &#34;shuffle_tokens&#34;}" in html
    assert "no dose-response curve" in render_section(SECTIONS["dose"], view)


def test_doses_are_in_order_with_their_rank_correlation(view: View) -> None:
    (curve,) = values(view, "dose")["curves"]
    assert curve["doses"] == ["0", "1", "2", "4"]
    panel = next(p for p in curve["panels"] if p["id"] == "share_single_token")
    assert panel["rank"].value == "+1.00"
    assert "2 of 24 orders" in panel["rank"].reason
    figure = SECTIONS["dose"].build(view).figures[panel["figure"]]
    assert figure["data"][0]["x"] == [0, 1, 2, 4]
    assert figure["data"][0]["text"][0].startswith("<b>trained</b>")
    assert len(figure["data"][0]["error_y"]["array"]) == 4


def test_rank_correlation() -> None:
    doses = [0.0, 1.0, 2.0, 3.0]
    assert rank_correlation(doses[:3], [3.0, 5.0, 4.0]) == pytest.approx(0.5)
    assert rank_correlation(doses, [1.0, 1.0, 2.0, 2.0]) == pytest.approx(0.894, abs=1e-3)
    assert rank_correlation(doses[:2], [1.0, 2.0]) is None
    assert rank_correlation(doses[:3], [1.0, 1.0, 1.0]) is None
    assert orders_as_extreme(doses[:3], [3.0, 2.0, 1.0]) == (2, 6)
    many = [float(i) for i in range(9)]
    assert orders_as_extreme(many, many) is None


def test_coverage_by_group_and_label(view: View) -> None:
    (block,) = values(view, "coverage")["blocks"]
    assert [group["name"] for group in block["groups"]] == ["context", "window", "token"]
    context = block["groups"][0]
    assert context["n_labels"] == 5
    assert [e["arm"] for e in context["effects"]] == list(view.arms[1:])
    assert {x["name"]: x["value"] for x in context["baselines"]} == {
        "lookup": "0.200", "bigram": "0.300", "window": "0.330",
    }  # fmt: skip
    strongest = [row["trained"] for row in block["strongest"]]
    assert strongest == sorted(strongest, reverse=True)
    assert {row["group"] for row in block["strongest"]} == {"context"}
    table = view.tables.coverage
    row = block["strongest"][0]
    own = table[(table["label"] == row["label"]) & (table["arm"] == "trained")]
    assert row["trained"] == pytest.approx(own["f1"].mean())
    others = table[(table["label"] == row["label"]) & (table["arm"] != "trained")]
    assert row["best_value"] == pytest.approx(others.groupby("arm")["f1"].mean().max())
    rare = block["rows"][-1]
    assert rare["group"] == "rare"
    assert rare["value"].value == "–"
    assert "too rare" in rare["value"].reason


def test_labels_cannot_become_markup(folder: Path) -> None:
    page = render(read_tables(folder))
    assert EVIL not in page.replace("</script>", "", 2)[: page.index('id="figures"')]
    assert "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;" in page


def test_trials_without_labels_or_factorials_say_so(tmp_path: Path) -> None:
    folder = write_trial(tmp_path / "trial", Settings(latents=20, passages=1))
    tables = read_tables(folder)
    assert tables.missing == ()
    view = View.of(tables)
    assert "has no labels" in render_section(SECTIONS["coverage"], view)
    assert "does not cross the model with the data" in render_section(SECTIONS["data"], view)


def test_aa_is_counted_per_kind_of_control(view: View) -> None:
    found = tally(view)
    rows = by_kind(found)
    assert sum(int(row["total"]) for row in rows[:-1]) == int(rows[-1]["total"]) == found.total
    assert sum(int(row["outside"]) for row in rows[:-1]) == found.n_outside
    cascade = next(row for row in rows if row["kind"] == "cascade")
    assert cascade["controls"] == "cascade_1, cascade_2, cascade_4"
    assert float(cascade["expected"]) == pytest.approx(0.05 * int(cascade["total"]), abs=0.06)
    assert "redraw + shuffle_tokens" in [row["kind"] for row in rows]


def test_many_arms_are_told_apart(view: View) -> None:
    looks = {(style.color, style.marker) for style in view.styles.values()}
    assert len(looks) == len(view.arms) == 16
    assert len({style.color for style in view.styles.values()}) == 6
    assert view.styles["shuffle"].color == view.styles["redraw_shuffle"].color
    few = arm_styles(["a", "b", "c", "d", "e", "f"], "a")
    assert len({style.color for style in few.values()}) == 6


def test_many_contrasts_are_shown_together_and_folded(view: View) -> None:
    built = values(view, "effects")
    assert built["folded"]
    assert len(built["overview"]) >= 4
    figures = SECTIONS["effects"].build(view).figures
    figure = figures[built["overview"][0]["figure"]]
    names = [note["text"] for note in figure["layout"]["annotations"] if note["x"] == 0]
    assert len(names) == 19
    assert "redraw_keep_embeddings − redraw" in names
    assert "<article" not in render_section(SECTIONS["headline"], view)


def test_panels_do_not_overlap_however_many() -> None:
    panels = [Panel(f"arm{i}", [50.0, 50.0], [10.0, 90.0], 1.0, 10) for i in range(20)]
    styles = arm_styles([panel.arm for panel in panels], "arm0")
    layout = entropy_panels([0.0, 1.0, 2.0], panels, styles)["layout"]
    domains = [layout["yaxis" + (str(i) if i > 1 else "")]["domain"] for i in range(1, 21)]
    for upper, lower in itertools.pairwise(domains):
        assert upper[0] > lower[1]
    assert all(high > low for low, high in domains)


def test_arms_not_trained_twice_and_what_metrics_read(folder: Path, tmp_path: Path) -> None:
    trial = json.loads((folder / "trial.json").read_text())
    trial["shared"] = [
        {"arm": "redraw_wu", "same_as": "redraw", "why": "W_U lies after <every> hookpoint"}
    ]
    trial["metrics"] = {
        "sae_bits": {"unit": "bits", "reads": ["W_E"]},
        "share_dead": {"unit": "share"},
    }
    (tmp_path / "trial.json").write_text(json.dumps(trial))
    view = View.of(read_tables(tmp_path))
    assert "W_U lies after &lt;every&gt; hookpoint." in render_section(SECTIONS["settings"], view)
    html = render_section(SECTIONS["definitions"], view)
    assert "<th>Reads</th>" in html
    assert "<td>W_E</td>" in html


def test_controls_of_data_and_dictionary_are_described(view: View) -> None:
    html = render_section(SECTIONS["arms"], view)
    assert "the model as trained; data: shuffle tokens" in html
    assert "dictionary: frozen decoder (init cov)" in html
    assert "12 placebo arms" in html
    asks = {(q["arm"], q["control"]) for q in values(view, "headline")["questions"]}
    assert ("trained", "redraw") in asks
    assert ("trained", "redraw_shuffle") not in asks


def test_interactions_of_other_arms_are_not_taken(folder: Path, tmp_path: Path) -> None:
    tables = read_tables(folder)
    wrong = tables.interactions.assign(
        cells=pd.Series([["a", "b", "c", "d"]] * len(tables.interactions))
    )
    given = {n: getattr(tables, n) for n in ("effects", "latents", "measurements", "passages")}
    view = View.of(Tables(trial=tables.trial, interactions=wrong, **given))
    assert "interactions.parquet has no such row" in render_section(SECTIONS["designs"], view)
