"""The section on classes: all seventeen, the two starred ones, and how far they hang on thresholds."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from sae_placebo.latents.classes.classification import CLASS_NAMES
from sae_placebo.report import read_tables
from sae_placebo.report.build import render_section
from sae_placebo.report.sections import SECTIONS, View, classes
from sae_placebo.report.tables import Tables
from synthetic_trial import Settings, write_trial


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    folder = write_trial(tmp_path_factory.mktemp("classes") / "trial", Settings(latents=200))
    return read_tables(folder)


def seventeen(tables: Tables, sensitivity: pd.DataFrame | None = None) -> Tables:
    latents = tables.latents.copy()
    # a single latent of induction: too few to draw
    kinds = [name for name in CLASS_NAMES if name != "induction"]
    latents["class"] = [kinds[i % len(kinds)] for i in range(len(latents))]
    latents.loc[latents.index[0], "class"] = "induction"
    effects = tables.effects[~tables.effects["metric"].str.startswith("share_")]
    fields = {**vars(tables), "latents": latents, "effects": effects}
    if sensitivity is not None:
        fields["sensitivity"] = sensitivity
    return Tables(**fields)


def test_small_classes_are_in_the_table_alone(tables):
    view = View.of(seventeen(tables))
    block = SECTIONS["classes"].build(view).values["blocks"][0]
    assert block["small"] == ["induction"]
    assert [row["kind"] for row in block["rows"]] == list(CLASS_NAMES)
    figure = SECTIONS["classes"].build(view).figures[block["figure"]]
    assert figure["layout"]["height"] < 16 * (24 + 17 * 6) + 200
    page = render_section(SECTIONS["classes"], view)
    assert (
        "Not drawn, below 1% in every arm that has a share, or withheld in all: induction." in page
    )


def test_starred_classes_are_counted_per_arm(tables):
    block = SECTIONS["classes"].build(View.of(seventeen(tables))).values["blocks"][0]
    latents = seventeen(tables).latents
    place = (latents["hookpoint"] == block["hookpoint"]) & (latents["sae"] == block["sae"])
    for row in block["starred"]:
        here = latents[place & (latents["arm"] == row["name"])]
        n = (here["class"] == "arbitrary_subset").sum()
        assert row["cells"][1]["count"] == f"{n} of {len(here)}"


def test_a_class_without_an_estimate_says_why(tables):
    effects = tables.effects.copy()
    shares = effects["metric"] == "share_dense"
    numbers = [c for c in effects if c.endswith(("value", "low", "high")) or c == "effect"]
    effects.loc[shares, numbers] = float("nan")
    effects.loc[shares, "reason"] = "nothing is known of density"
    latents = tables.latents[tables.latents["class"] != "dense"]
    view = View.of(Tables(**{**vars(tables), "effects": effects, "latents": latents}))
    block = SECTIONS["classes"].build(view).values["blocks"][0]
    cells = next(row["cells"] for row in block["rows"] if row["kind"] == "dense")
    assert all(cell.value == "–" and "density" in cell.reason for cell in cells)


def test_sensitivity_is_shown_most_first(tables):
    place = dict(zip(("hookpoint", "sae"), tables.places[0], strict=True))
    row = {**place, "arm": "trained", "value": 0.9, "moved_to": 0.72, "n_latents": 200}
    rows = [
        {
            **row,
            "threshold": "mass",
            "change": -0.2,
            "n_moved": 4,
            "most_moved": "unexplained > n_gram",
        },
        {**row, "threshold": "mass", "change": 0.2, "n_moved": 0, "most_moved": None},
        {
            **row,
            "threshold": "recall",
            "change": -0.2,
            "n_moved": 9,
            "most_moved": "unexplained > dead",
        },
        {**row, "threshold": "pc_cosine", "change": 0.2, "n_moved": 0, "most_moved": None},
    ]
    table = pd.DataFrame([{**one, "share_moved": 0.0, "reason": None} for one in rows])
    view = View.of(seventeen(tables, table))
    found = SECTIONS["classes"].build(view).values["blocks"][0]["sensitivity"]
    assert [one["threshold"] for one in found["rows"]] == ["recall", "mass"]
    assert found["rows"][1]["cells"][0]["share"].value == "2.0%"
    assert found["rows"][1]["cells"][0]["most"] == "unexplained → n gram"
    assert found["still"] == ["pc_cosine"]
    assert "No latent changes class with: pc_cosine." in render_section(SECTIONS["classes"], view)


def test_a_class_that_is_not_claimed_says_so(tables, monkeypatch):
    monkeypatch.setattr(classes, "unclaimed", lambda: {"context": "half of them are missed"})
    page = render_section(SECTIONS["classes"], View.of(seventeen(tables)))
    assert "not claimed: half of them are missed" in page
