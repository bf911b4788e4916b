"""The section on simpler baselines shows every baseline, with n and an interval or a reason."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))
from sae_placebo.baselines.compare import COLUMNS
from sae_placebo.report import read_tables
from sae_placebo.report.build import render_section
from sae_placebo.report.sections import View
from sae_placebo.report.sections.baselines import SECTIONS, build
from synthetic_trial import Settings, write_trial


def baselines_table(arms: list[str]) -> pd.DataFrame:
    rows = []
    for i, arm in enumerate(arms):
        for baseline, reading, bits in (
            ("pca", None, 300.0),
            ("kmeans", None, 250.0),
            ("sae", "topk/0", 240.0 + 30 * i),
            ("sae", "topk/1", 244.0 + 30 * i),
            ("embeddings", None, np.nan),
        ):
            known = np.isfinite(bits)
            for distortion in (0.2, 0.05) if known else (np.nan,):
                more = 100 if distortion == 0.05 else 0
                row: dict[str, object] = dict.fromkeys(COLUMNS, np.nan)
                row |= {
                    "arm": arm,
                    "model_seed": 0,
                    "hookpoint": "resid_post.1",
                    "baseline": baseline,
                    "reading": reading,
                    "reason": None if known else "the rows of <W_E> are not known",
                    "n_tokens": 2000.0,
                    "n_documents": 14.0,
                    "distortion": distortion,
                    "bits": bits + more,
                    "bits_low": bits + more - 5,
                    "bits_high": bits + more + 5,
                    "explained_variance": 0.7 if known else np.nan,
                    "ev_low": 0.68 if known else np.nan,
                    "ev_high": 0.72 if known else np.nan,
                }
                rows.append(row)
    return pd.DataFrame(rows)


def view(tmp_path: Path, with_methods: bool) -> View:
    tables = read_tables(write_trial(tmp_path / "trial", Settings(latents=5)))
    if not with_methods:
        return View.of(tables)
    effects = tables.effects
    first = effects["metric"].iloc[0]
    saved = effects[effects["metric"] == first].assign(metric="bits_saved", unit="bits/token")
    tables = dataclasses.replace(tables, effects=pd.concat([effects, saved], ignore_index=True))
    found = View.of(tables)
    # whether or not the tables of a trial name it already
    object.__setattr__(tables, "baselines", baselines_table(found.arms))
    return found


def test_methods_by_arm_the_shortest_first_and_seeds_averaged(tmp_path: Path) -> None:
    found = view(tmp_path, True)
    content = build(found)
    (block,) = content.values["blocks"]
    assert block["left"] == "20%"
    trained = block["arms"][0]
    names = [row["name"] for row in trained["rows"]]
    assert names == ["SAE topk", "k-means", "PCA", "rows of W_E"]
    assert trained["rows"][0]["bits"].value == "242"
    assert trained["rows"][0]["bits"].interval == "[237, 247]"
    assert "2,000 tokens, 14 documents, 2 fits" in trained["rows"][0]["bits"].n
    assert trained["rows"][3]["bits"].reason == "the rows of <W_E> are not known"
    assert content.values["marginal"]
    html = render_section(SECTIONS["baselines"], found)
    assert "<W_E>" not in html
    assert "&lt;W_E&gt;" in html
    assert "Marginal structure" in html


def test_a_trial_without_the_table_says_so(tmp_path: Path) -> None:
    html = render_section(SECTIONS["baselines"], view(tmp_path, False))
    assert "no baselines.parquet" in html
