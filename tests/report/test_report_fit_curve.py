"""The section on the text that the ladder is fitted on: curves, what is withheld, and where they end."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pandas as pd

from sae_placebo.core.tables.structure import FIT_CURVE
from sae_placebo.report import read_tables
from sae_placebo.report.build import render_section
from sae_placebo.report.sections import SECTIONS, View
from sae_placebo.report.sections.fit_curve import SHOWN
from synthetic_trial import Settings, write_trial


def curve(place: tuple[str, str], arms: list[str]) -> pd.DataFrame:
    rows = []
    for arm in arms:
        for metric in SHOWN:
            for portion, value in enumerate((0.4, 0.5, 0.55, 0.57)):
                row = {"arm": arm, "hookpoint": place[0], "sae": place[1], "metric": metric}
                row |= {"portion": portion, "fit_tokens": 15_000 * 2**portion}
                row |= {"fit_documents": 20 * 2**portion, "value": value}
                row |= {"low": value - 0.02, "high": value + 0.02}
                if portion == 3:
                    row |= {"change": 0.02, "change_se": 0.004}
                    row["withheld"] = None if arm == "trained" else "withheld: it <moved>"
                    row |= {"end": 0.6, "end_low": 0.55, "end_high": 0.65}
                rows.append(row)
    return pd.DataFrame(rows).reindex(columns=list(FIT_CURVE.names))


def test_curves_are_shown_with_what_is_withheld(tmp_path: Path) -> None:
    tables = read_tables(write_trial(tmp_path / "trial", Settings(latents=8)))
    arms = tables.arms[:2]
    tables = dataclasses.replace(tables, fit_curve=curve(tables.places[0], arms))
    view, section = View.of(tables), SECTIONS["fit_curve"]
    content = section.build(view)
    assert len(content.figures) == 2
    for figure in content.figures.values():
        assert len(figure["data"]) == len(arms)
        assert figure["data"][0]["x"] == [15_000.0, 30_000.0, 60_000.0, 120_000.0]
    html = render_section(section, view)
    assert html.count("told: less than a tenth") == len(SHOWN)
    assert html.count("withheld: it &lt;moved&gt;") == len(SHOWN)
    assert "[0.550, 0.650]" in html
    assert "120,000 tokens of 160 documents" in html


def test_without_curves_it_says_so(tmp_path: Path) -> None:
    tables = read_tables(write_trial(tmp_path / "trial", Settings(latents=8)))
    assert "fit_curve" in render_section(SECTIONS["fit_curve"], View.of(tables))
