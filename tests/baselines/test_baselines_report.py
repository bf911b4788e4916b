"""The section on simpler baselines shows every baseline, with n and an interval or a reason."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))
from sae_placebo.baselines.compare import COLUMNS
from sae_placebo.core.tables.baselines import MARGINAL
from sae_placebo.report import read_tables
from sae_placebo.report.build import render_section
from sae_placebo.report.sections import View
from sae_placebo.report.sections.baselines import METRIC, SECTIONS, build
from synthetic_trial import Settings, write_trial


def baselines_table(arms: list[str]) -> pd.DataFrame:
    rows = []
    for i, arm in enumerate(arms):
        for baseline, reading, coding, bits in (
            ("pca", None, "pursuit", 300.0),
            ("kmeans", None, "pursuit", 250.0),
            ("sae", "topk/0", "encoder", 240.0 + 30 * i),
            ("sae", "topk/1", "encoder", 244.0 + 30 * i),
            ("sae", "topk/0", "pursuit", 230.0 + 30 * i),
            ("embeddings", None, None, np.nan),
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
                    "coding": coding,
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


def marginal_table(arms: list[str], place: tuple[str, str]) -> pd.DataFrame:
    rows = []
    for arm in arms:
        gains = ("kmeans", -6.8), ("random", 85.0), ("best", -6.8), ("common", -6.8)
        for baseline, gain in gains:
            row: dict[str, object] = dict.fromkeys(MARGINAL.names, np.nan)
            row |= {
                "arm": arm,
                "hookpoint": place[0],
                "sae": place[1],
                "baseline": baseline,
                "method": "kmeans" if baseline in ("best", "common") else baseline,
                "reason": None if baseline == "kmeans" else "one <SAE> seed",
                "n_saes": 4,
                "n_atoms": 2048.0,
                "bits_pca": 275.7,
                "bits_halved": 160.1,
                "bits_doubled": 148.3,
                "bits_joined": 148.3 - gain,
                "gain": gain,
                "share": gain / 275.7,
            }
            if baseline == "kmeans":
                row |= {"gain_low": gain - 4, "gain_high": gain + 4}
            if baseline in ("best", "common"):
                row |= {"gaussian": 0.5, "above": gain - 0.5}
            rows.append(row)
    return pd.DataFrame(rows)


def view(tmp_path: Path, with_methods: bool) -> View:
    tables = read_tables(write_trial(tmp_path / "trial", Settings(latents=5)))
    if not with_methods:
        return View.of(tables)
    effects = tables.effects
    first = effects["metric"].iloc[0]
    more = effects[effects["metric"] == first].assign(metric=METRIC, unit="bits/token")
    tables = dataclasses.replace(
        tables,
        effects=pd.concat([effects, more], ignore_index=True),
        marginal=marginal_table(tables.arms, tables.places[0]),
    )
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
    assert names == ["SAE topk, by pursuit", "SAE topk", "k-means", "PCA", "rows of W_E"]
    assert trained["rows"][1]["bits"].value == "242"
    assert trained["rows"][1]["bits"].interval == "[237, 247]"
    assert "2,000 tokens, 14 documents, 2 fits" in trained["rows"][1]["bits"].n
    assert trained["rows"][4]["bits"].reason == "the rows of <W_E> are not known"
    html = render_section(SECTIONS["baselines"], found)
    assert "<W_E>" not in html
    assert "&lt;W_E&gt;" in html


def test_what_latents_save_stands_beside_every_method_and_chance(tmp_path: Path) -> None:
    found = view(tmp_path, True)
    first = build(found).values["marginal"][0]
    assert len(first["methods"]) == 4 * len(found.arms)
    kmeans, random, best, common = first["methods"][:4]
    assert [one["name"] for one in (kmeans, random, best, common)] == [
        "k-means",
        "random directions",
        "the best of them: k-means",
        "that of every arm, the trained arm's best: k-means",
    ]
    assert kmeans["gain"].interval == "[\u221210.8, \u22122.8]"
    assert kmeans["above"] is None
    assert best["above"].value == "\u22127.30"
    assert common["above"].value == "\u22127.30"
    assert random["gain"].reason == "one <SAE> seed"
    assert first["effects"]
    html = render_section(SECTIONS["baselines"], found)
    assert "Marginal structure" in html
    assert "one &lt;SAE&gt; seed" in html


def test_a_trial_without_the_table_says_so(tmp_path: Path) -> None:
    html = render_section(SECTIONS["baselines"], view(tmp_path, False))
    assert "no baselines.parquet" in html
