"""The sections on use, circuits and cards: the crossed table, links to evidence, what is not known."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from sae_placebo.causal.use.sampling import share
from sae_placebo.report import Tables, read_tables, render
from sae_placebo.report.build import render_section
from sae_placebo.report.sections import SECTIONS, View
from sae_placebo.report.sections.use_rows import weighted_share
from sae_placebo.report.tables import at, places
from synthetic_trial import EVIL, Settings, write_trial


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    folder = write_trial(tmp_path_factory.mktemp("use") / "trial", Settings(latents=60))
    return read_tables(folder)


@pytest.fixture(scope="module")
def page(tables: Tables) -> str:
    return render(tables)


def block(tables: Tables, name: str = "use") -> dict[str, Any]:
    return dict(SECTIONS[name].build(View.of(tables)).values["blocks"][0])


def asked(tables: Tables, arm: str) -> pd.DataFrame:
    return tables.use[(tables.use["arm"] == arm) & tables.use["use"].notna()]


def test_shares_are_those_of_the_package() -> None:
    random = np.random.default_rng(0)
    for n in (1, 7, 300):
        holds, weight = random.random(n) < 0.2, 1 + 5 * random.random(n)
        assert weighted_share(holds, weight) == pytest.approx(share(holds, weight), abs=1e-12)
    assert weighted_share(np.zeros(0, dtype=bool), np.zeros(0)) is None
    assert weighted_share(np.zeros(9, dtype=bool), np.ones(9))[0] == 0


def test_cells_are_weighted_shares_that_add_up(tables: Tables) -> None:
    for grid in block(tables)["grids"]:
        rows = asked(tables, grid["name"])
        assert grid["n"] == str(len(rows))
        cells = {
            (row["origin"], use): cell
            for row in grid["rows"]
            for use, cell in zip(("used", "not_used", "undetermined"), row["cells"], strict=False)
        }
        assert sum(int(cell["n"]) for cell in cells.values()) == len(rows)
        for (origin, use), cell in cells.items():
            holds = ((rows["origin"] == origin) & (rows["use"] == use)).to_numpy()
            weight = rows["use_weight"].to_numpy(dtype=float)
            expected = share(holds, weight)
            shown = [
                float(x)
                for x in re.findall(r"[\d.]+", f"{cell['share'].value} {cell['share'].interval}")
            ]
            assert shown == pytest.approx([100 * x for x in expected], abs=0.6)
            assert cell["carried"] == ((origin, use) == ("explained", "not_used"))


def test_the_named_cell_lists_its_latents(tables: Tables) -> None:
    for one in block(tables)["carried"]:
        rows = asked(tables, one["name"])
        rows = rows[(rows["origin"] == "explained") & (rows["use"] == "not_used")]
        assert {row["latent"] for row in one["listed"]} == set(rows["latent"])
        assert one["rest"] == 0
    text = render_section(SECTIONS["use"], View.of(tables))
    assert "Data structure that the model carries but does not use" in text


def test_every_link_of_the_page_arrives(page: str) -> None:
    anchors = [unescape(one) for one in re.findall(r'\bid="([^"]*)"', page)]
    assert len(anchors) == len(set(anchors))
    links = {unescape(one) for one in re.findall(r'href="#([^"]*)"', page)}
    assert not links - set(anchors)
    assert {one.split("-")[0] for one in links} >= {"cell", "card", "term"}


def test_a_latent_can_be_followed_from_the_table_to_its_evidence(tables: Tables) -> None:
    view = View.of(tables)
    table = render_section(SECTIONS["use"], view)
    cards = render_section(SECTIONS["cards"], view)
    cells = re.findall(r'<a href="#(cell-[^"]*)">(\d+) asked</a>', table)
    assert len(cells) > 8
    n_cards = 0
    for anchor, n in cells:
        part = cards.split(f'id="{anchor}"')[1].split('<div class="cell"')[0]
        assert f"{n} asked" in part
        found = part.split('<details class="latent')[1:]
        n_cards += len(found)
        for card in found:
            text = re.sub(r"<[^>]*>", "", card)
            for said in (
                "token explains it",
                "null directions",
                "Written by",
                "Read by",
                "p = 0.02",
            ):
                assert said in text, said
            assert 'class="passage"' in card
        # every latent of the cell has a card, or is named below the cards
        named = re.findall(r"</strong>: ([\d, ]+)", part)
        assert len(found) + sum(len(one.split(",")) for one in named) == int(n)
    assert n_cards == len(tables.use_passages.drop_duplicates(["arm", "latent"]))


def test_latents_without_passages_are_named_without_a_card(tables: Tables) -> None:
    bare = dataclasses.replace(tables, use_passages=tables.use_passages.iloc[:0])
    cells = block(bare, "cards")["cells"]
    assert sum(len(cell["cards"]) for cell in cells) == 0
    named = sum(len(latents) for cell in cells for _, latents in cell["others"])
    assert named == int(tables.use["use"].notna().sum())
    render(bare)


def test_reasons_add_up_to_the_undetermined(tables: Tables) -> None:
    found = block(tables)
    for i, grid in enumerate(found["grids"]):
        left = found["reasons"]
        counts = [int(row["cells"][i].n.split(" ")[0]) for row in left]
        assert f"{sum(counts)} asked" == grid["sums"][2]["share"].n


def test_curves_have_limits_and_the_chosen_point(tables: Tables) -> None:
    content = SECTIONS["use"].build(View.of(tables))
    joint = content.figures["use-0-joint"]
    names = [trace["name"] for trace in joint["data"]]
    assert "limit: 0.5%" in names
    assert joint["layout"]["xaxis"]["type"] == "log"
    star = joint["data"][-1]
    assert star["x"] == [160, 160]
    assert star["y"] == [pytest.approx(0.4)] * 2
    moved = content.figures["use-0-moved_used"]
    assert moved["data"][0]["x"][0] == pytest.approx(0.01)
    json.dumps(content.figures, allow_nan=False)


def test_a_refused_arm_says_why(tables: Tables) -> None:
    told = [dict(one) for one in tables.trial["use"]]
    why = "no latent fires on enough <held-out> tokens"
    keep = {k: told[1][k] for k in ("arm", "model_seed", "sae_seed", "hookpoint", "sae")}
    trial = {**tables.trial, "use": [told[0], keep | {"refused": why}]}
    names = ("use", "readers", "writers", "directions", "patched", "use_passages", "ties")
    frames = {n: getattr(tables, n) for n in names}
    frames = {n: one[one["arm"] != keep["arm"]] for n, one in frames.items()}
    text = render_section(
        SECTIONS["use"], View.of(dataclasses.replace(tables, trial=trial, **frames))
    )
    assert "was not asked" in text
    assert "&lt;held-out&gt;" in text


def test_a_null_says_at_how_many_firings_it_was_asked(tables: Tables) -> None:
    """The effect is of 30 documents and its null of 16 of them: there the latent's own effect is told."""
    cards = " ".join(
        re.sub(r"<[^>]*>", "", render_section(SECTIONS["cards"], View.of(tables))).split()
    )
    assert len(re.findall(r"30 documents Null directions", cards)) > 5
    assert len(re.findall(r"16 documents, where its own is [\d.]+%; p", cards)) > 5
    errors = block(tables)["errors"][0]["rows"]
    assert {row["null"].n for row in errors} == {row["at_nulls"].n for row in errors}
    assert {row["null"].n for row in errors} == {"16 documents"}
    assert {row["effect"].n for row in errors} == {"32 documents"}


def test_what_was_not_measured_is_said(tables: Tables) -> None:
    use = tables.use.copy()
    for name in (
        "tied",
        "path_qk",
        "path_ov",
        "path_mlp",
        "path_unembedding",
        "null_effect",
        "use_p",
    ):
        use[name] = np.nan
    names = ("readers", "writers", "directions", "patched", "ties")
    none = {n: getattr(tables, n).iloc[:0] for n in names}
    trial = {k: v for k, v in tables.trial.items() if k != "use"}
    bare = dataclasses.replace(tables, trial=trial, use=use, **none)
    content = SECTIONS["circuits"].build(View.of(bare))
    assert not content.figures
    cards = render_section(SECTIONS["cards"], View.of(bare))
    assert "No writers are known." in cards
    assert "Readers were not measured" in cards
    assert "not held against nulls" in cards
    assert "nan" not in re.sub(r"<[^>]*>", "", render(bare).split("<script")[0]).lower().split()


def test_a_trial_that_never_asked_says_so(tables: Tables) -> None:
    names = ("use", "readers", "writers", "directions", "patched", "use_passages", "ties")
    trial = {k: v for k, v in tables.trial.items() if k != "use"}
    never = dataclasses.replace(
        tables, trial=trial, **{n: getattr(tables, n).iloc[:0] for n in names}
    )
    for name in ("use", "circuits", "cards"):
        text = render_section(SECTIONS[name], View.of(never))
        assert "no model was asked" in text


def test_text_from_tables_stays_text(tables: Tables) -> None:
    use = tables.use.copy()
    for name in ("use_reason", "evidence", "class"):
        use.loc[use["use"].notna(), name] = EVIL
    writers, readers = tables.writers.assign(part=EVIL), tables.readers.assign(reader=EVIL)
    patched = tables.patched.assign(reader=EVIL)
    evil = dataclasses.replace(tables, use=use, writers=writers, readers=readers, patched=patched)
    page = render(evil)
    assert "<img" not in page.split("<script>")[0]
    assert "&lt;img" in page


def test_ties_and_top_components_are_counted(tables: Tables) -> None:
    found = block(tables, "circuits")
    ties, shown = at(tables.ties, places(tables.ties)[0]), found["tied"]
    for arm, cell in zip(shown["arms"], shown["rows"][0]["cells"], strict=True):
        own = (ties["arm"] == arm["name"]) & (ties["comparison"] == "share")
        row = ties[own & (ties["measure"] == "tied") & (ties["class"] == "all")].iloc[0]
        assert cell.value == f"{100 * row['value']:.1f}%"
        assert cell.n == f"{row['n_latents']} latents of {row['n_saes']} SAEs"
        assert "%, " in str(cell.interval)
    contrast, aa = shown["against"]
    assert (contrast["is_aa"], aa["is_aa"]) == (False, True)
    assert contrast["cells"][0].value.startswith("+")
    assert aa["cells"][0].interval is not None
    assert shown["lacking"] == ["no arm keeps the embeddings"]
    top = found["writers"][0]["rows"]
    own = tables.writers[
        (tables.writers["arm"] == found["writers"][0]["name"]) & (tables.writers["rank"] == 0)
    ]
    assert top[0]["share"].n == f"{own['part'].value_counts().max()} of {len(own)}"
    assert top[0]["null"].value == "97.0%"
    assert found["patched"]["arms"][0]["share"].value == "100%"


def test_the_record_on_worlds_marks_where_the_test_falls_short(monkeypatch: Any) -> None:
    from sae_placebo.report.sections import use_record

    row = {
        "name": "a world: a site",
        "of": 10,
        "worlds": 4,
        "auroc": 0.9,
        "lowest": 0.7,
        "baseline": "",
        "false_not_used": [2, 32],
        "slivers": [0, 9],
        "false_used": [0, 0],
        "undetermined": [1, 2],
    }
    monkeypatch.setattr(use_record, "_record", lambda: {"rows": [row]})
    (shown,) = use_record.record()
    assert "below .95" in shown["auroc"].reason
    assert shown["false_not_used"].reason == "more than 1%"
    assert shown["slivers"].reason is None
    assert shown["false_used"].reason == "there are none"
    assert "4 of 10" in shown["auroc"].n
    monkeypatch.undo()
    assert len(use_record.record()) >= 12


def test_directions_that_nobody_trained_stand_beside_latents(tables: Tables) -> None:
    found = block(tables)["costlier"]
    arms = list(dict.fromkeys(row["name"] for row in found))
    for arm in arms:
        own = [row for row in found if row["name"] == arm]
        terms = ["", "untrained dictionary", "covariance direction", "pseudo-latent", "group"]
        assert [row["term"] for row in own] == terms
        latents, untrained = own[:2]
        assert (latents["costlier"].value, latents["used"].value) == ("70%", "30%")
        assert latents["margin"] is None
        assert untrained["used"].n == "16 of 80 directions"
        assert untrained["margin"].value == "10%"
    text = render_section(SECTIONS["use"], View.of(tables))
    assert "untrained dictionary" in text
    old = [one | {"untrained": None} for one in tables.trial["use"]]
    fewer = block(dataclasses.replace(tables, trial=tables.trial | {"use": old}))["costlier"]
    assert "untrained dictionary" not in {row["term"] for row in fewer}
