"""The report: what it says, that data cannot become markup, and what a browser makes of it."""

from __future__ import annotations

import base64
import dataclasses
import errno
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from sae_placebo.core.errors import StoreError
from sae_placebo.core.escaping import visible
from sae_placebo.core.trial_files import FORMAT
from sae_placebo.report import build_report, read_tables, render
from sae_placebo.report.build import embed_json
from sae_placebo.report.dots import Curve, DotRow, dose_curve, dot_rows
from sae_placebo.report.palette import ArmStyle
from sae_placebo.report.plots import label
from sae_placebo.report.sections import SECTIONS, View
from sae_placebo.report.sections.aa import in_short, sentences, tally
from sae_placebo.report.sections.arms import kept_groups
from sae_placebo.report.sections.contrasts import contrasts, ordered, within_aa
from sae_placebo.report.sections.headline import WANTED, cautions, sentence, verdict
from sae_placebo.report.sections.latents import _pieces
from sae_placebo.report.wording import (
    Estimate,
    decimals_for,
    fitting,
    interval,
    metric_title,
    number,
    token_label,
    wrapped,
)
from synthetic_trial import EVIL, METRICS, Settings, seal_trial, write_trial

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Page(HTMLParser):
    """Every element with its attributes, every text with the names of the elements around it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._inside: list[str] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self._inside.append(f"/{tag}")

    def handle_data(self, data: str) -> None:
        inside = self._inside[-1] if self._inside else ""
        self.raw.get(inside, self.texts).append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def figures(self) -> dict[str, Any]:
        found = [t for t in self.raw["script"] if t.startswith('{"forest')]
        return dict(json.loads(found[0])) if found else {}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trial(tmp_path_factory.mktemp("full") / "trial")


@pytest.fixture(scope="module")
def page(full: Path) -> Page:
    return Page(build_report(full).read_text(encoding="utf-8"))


# --- the whole page ----------------------------------------------------------------------------


def test_all_sections_are_there_in_order(page: Page) -> None:
    anchors = [attrs["id"] for tag, attrs in page.elements if tag == "section"]
    assert anchors == [
        *(
            "arms",
            "headline",
            "claims",
            "given",
            "matching",
            "effects",
            "designs",
            "dose",
            "data",
            "coverage",
        ),
        *("classes", "origin", "fit_curve", "use", "circuits", "partners", "ladder", "baselines"),
        *(
            "spikes",
            "misleading",
            "entropy",
            "latents",
            "cards",
            "calibrated",
            "validity",
            "settings",
            "definitions",
            "limits",
        ),
    ]


def test_same_tables_same_bytes_and_a_small_page(tmp_path: Path) -> None:
    settings = Settings(latents=800, kept_per_sae=60, hookpoints=("resid_post.3",))
    folder = write_trial(tmp_path / "trial", settings)
    assert len(pd.read_parquet(folder / "passages.parquet")) == 5 * 60 * 5
    first = build_report(folder, tmp_path / "a")
    second = build_report(folder, tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["index.html"]
    assert second.stat().st_size < 8_000_000


def test_nothing_is_loaded_from_outside(page: Page) -> None:
    for tag, attrs in page.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            value = attrs.get(name)
            assert value is None or value.startswith(("#", "data:,")), (tag, name, value)
        assert not any(name.startswith("on") for name in attrs)
    assert "@import" not in page.raw["style"][0]
    assert "url(" not in page.raw["style"][0]


def test_torch_is_not_imported(full: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from sae_placebo.report import read_tables, render\n"
        f"render(read_tables(pathlib.Path({str(full)!r})))\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_policy_names_exactly_the_scripts_of_the_page(page: Page) -> None:
    import hashlib

    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv"))
    assert policy is not None
    code = [t for t in page.raw["script"] if not t.startswith('{"forest')]
    digests = [base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() for t in code]
    assert re.findall(r"'sha256-([^']+)'", policy) == digests


# --- what is said --------------------------------------------------------------------------------


def test_reasons_and_seeds_are_said(page: Page) -> None:
    for words in (
        "no token occurs twice in the training split",
        "one document holds 96% of the loss",
        "attention weights are not returned",
        "lm_head.weight is tied to embed_tokens.weight",
        "The latents are a random sample, not a choice.",
        "2 model re-draws per placebo",
        "One hookpoint, resid_post.3",
    ):
        assert words in page.text, words


def test_headline_takes_the_named_metrics_first() -> None:
    metrics = ["l0", "token_entropy_share_of_null", "mean_token_entropy_bits"]
    metrics += ["share_single_token", "explained_variance_above_gaussian"]
    assert ordered(metrics, WANTED) == [
        "mean_token_entropy_bits",
        "share_single_token",
        "explained_variance_above_gaussian",
    ]
    assert ordered(["l0"], WANTED) == []


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({}, "differs", "trained is higher than redraw by 2.0 bits."),
        ({"effect": -2.0, "low": -3.0, "high": -1.0}, "differs", "is lower than redraw by 2.0"),
        ({"low": -1.0, "high": 5.0}, "unclear", "cannot tell trained from redraw"),
        ({"low": None, "reason": "one SAE seed"}, "unknown", "no interval: one SAE seed"),
        ({"effect": None, "low": None, "reason": "none"}, "unknown", "cannot be estimated: none"),
    ],
)
def test_a_sentence_says_what_the_interval_allows(
    full: Path, change: dict[str, Any], kind: str, words: str
) -> None:
    view = View.of(read_tables(full))
    contrast = contrasts(view)[0]
    row = next(r for r in contrast.rows if r["metric"] == "mean_token_entropy_bits")
    row = {**row, "effect": 2.0, "low": 1.5, "high": 2.5} | change
    assert verdict(row)[0] == kind
    assert words in sentence(row, contrast, "95% interval")


@pytest.mark.parametrize(
    ("effect", "aa", "within"),
    [
        (2.0, (-1.0, 1.0), False),
        (2.0, (-0.5, 2.0), True),
        (-2.0, (-0.5, 2.0), True),
        (2.0, (None, None), None),
        (None, (-1.0, 1.0), None),
    ],
)
def test_an_effect_no_larger_than_its_aa_interval_is_no_finding(
    effect: float | None, aa: tuple[float | None, float | None], within: bool | None
) -> None:
    row = {"effect": effect, "low": 1.0, "high": 3.0, "aa_low": aa[0], "aa_high": aa[1]}
    assert within_aa(row) is within
    assert any("it is no finding" in words for words in cautions(row)) is bool(within)
    if within and effect is not None and effect > 0:
        assert verdict(row) == ("differs", "Higher, but within A/A")


def test_an_interval_much_narrower_than_its_aa_interval_is_said_to_be() -> None:
    row = {"effect": 9.0, "low": 8.9, "high": 9.1, "aa_low": -0.4, "aa_high": 0.4}
    assert ["may be too narrow" in words for words in cautions(row)] == [True]
    assert cautions(row | {"aa_low": -0.2, "aa_high": 0.2}) == []


def test_effects_within_aa_are_marked_in_card_and_table(tmp_path: Path) -> None:
    folder = write_trial(tmp_path / "trial", Settings(latents=20))
    effects = pd.read_parquet(folder / "effects.parquet")
    effects.loc[:, ["aa_low", "aa_high"]] = [-1e-9, 1e-9]
    effects.to_parquet(folder / "effects.parquet")
    assert 'class="within"' not in render(read_tables(folder))
    at = (effects["metric"] == "mean_token_entropy_bits") & (effects["control"] == "redraw")
    effects.loc[at, ["aa_low", "aa_high"]] = [-50.0, 50.0]
    effects.to_parquet(folder / "effects.parquet")
    page = render(read_tables(folder))
    table = page[page.index('<section id="effects">') : page.index('<section id="designs">')]
    assert table.count('<span class="within">within A/A</span>') == int(at.sum()) == 2
    assert page.count("Within A/A: the effect is no larger") == 2


def test_the_record_of_masks_precision_model_and_environments_is_told(tmp_path: Path) -> None:
    folder = write_trial(tmp_path / "trial", Settings(latents=20))
    text = " ".join(Page(render(read_tables(folder))).text.split())
    for words in (
        "example/tiny-lm (dequantized from 4-bit)",
        "4,104 of the tokens left out in trained for outlying norm",
        "norm outliers, resid_post.3, trained",
        "the fast product was used: its error is 4.0e-7 against 2.5e-7 of the default, limit 2e-6",
        "Environment of the artefacts",
    ):
        assert words in text, words
    assert text.count("norm above 10 x median") == 1
    assert "different environments" not in text
    trial = json.loads((folder / "trial.json").read_text())
    trial["environments"] += [{"versions": {"torch": "2.12.0"}, "threads": 2}]
    trial["environments"] += trial["environments"][:1]
    del trial["model_note"]
    (folder / "trial.json").write_text(json.dumps(trial))
    text = " ".join(Page(render(read_tables(folder))).text.split())
    assert "made under 2 different environments, which differ in torch (2.13.0 or 2.12.0)" in text
    assert "dequantized" not in text


def test_a_forest_marks_null_interval_and_aa_on_each_rows_own_scale(page: Page) -> None:
    figure = page.figures()["forest-0"]
    traces = {trace["name"]: trace for trace in figure["data"]}
    sides = [traces["effect, 95% interval"], traces["effect within A/A, 95% interval"]]
    assert sides[0]["marker"]["color"] != sides[1]["marker"]["color"]
    main: dict[str, Any] = {k: [v for side in sides for v in side[k]] for k in ("x", "y")}
    main["error_x"] = {
        k: [v for side in sides for v in side["error_x"][k]] for k in ("array", "arrayminus")
    }
    ends = [
        (x - down, x + up)
        for x, up, down in zip(
            main["x"], main["error_x"]["array"], main["error_x"]["arrayminus"], strict=True
        )
    ]
    assert all(-1.0001 <= low < high <= 1.0001 for low, high in ends)
    assert len(main["x"]) == len(METRICS) - 2  # one has no interval, one no estimate
    assert len(traces["effect, no interval"]["x"]) == 1
    assert len(traces["A/A interval"]["x"]) == 3 * (len(METRICS) - 1)
    nulls = [s for s in figure["layout"]["shapes"] if s["x0"] == s["x1"] == 0]
    assert len(nulls) == len(METRICS) - 1  # a piece per row that shows anything
    assert all(any(s["y0"] < y < s["y1"] for s in nulls) for y in main["y"])


def test_shares_of_latents_are_in_percent(full: Path) -> None:
    effects = read_tables(full).effects
    table = effects[effects["metric"] == "share_dense"]
    raw = float(table["effect"].iloc[0])
    row = next(r for r in contrasts(View.of(read_tables(full)))[0].rows if "dense" in r["metric"])
    assert row["unit"] == "%"
    assert row["effect"] == pytest.approx(100 * raw)
    assert row["arm_low"] == pytest.approx(100 * float(table["arm_low"].iloc[0]))


def test_an_interval_below_zero_is_not_clipped(tmp_path: Path) -> None:
    folder = write_trial(tmp_path / "trial", Settings(latents=40))
    effects = pd.read_parquet(folder / "effects.parquet")
    effects.loc[effects["metric"] == "share_dead", ["arm_low", "arm_high"]] = [-0.08, 1.2]
    effects.to_parquet(folder / "effects.parquet")
    page = Page(render(read_tables(folder)))
    low, high = page.figures()["classes-0"]["layout"]["xaxis"]["range"]
    assert low < -8
    assert high > 120
    assert "[\N{MINUS SIGN}8%, 120%]" in page.text


def test_aa_intervals_are_counted_once_per_control(full: Path) -> None:
    tables = read_tables(full)
    effects = tables.effects
    known = effects[effects["aa_low"].notna()]
    distinct = len(known.drop_duplicates(["metric", "control"]))
    assert distinct < len(known)
    twins = {"metric": "median_density", "control": "redraw"}
    at = (effects[list(twins)] == pd.Series(twins)).all(axis=1)
    assert at.sum() == 2
    effects.loc[at, ["aa_effect", "aa_low", "aa_high"]] = [0.2, 0.1, 0.3]
    found = tally(View.of(tables))
    assert (found.total, found.n_outside, found.points) == (distinct, 1, 0)
    assert found.outside == {"redraw": ["Median density"]}
    said = " ".join(sentences(found))
    assert f"There are {distinct} A/A intervals" in said
    assert "1 leaves 0 out: median density in redraw." in said
    assert f"about {round(0.05 * distinct)} would" in said
    assert (
        "borrowed from the other control's re-draws and has one degree of freedom of its own"
        in said
    )
    assert f"Of {distinct} A/A intervals" in in_short(found)
    effects.loc[at, ["aa_effect", "aa_low", "aa_high"]] = 0.0
    found = tally(View.of(tables))
    assert (found.total, found.n_outside, found.points) == (distinct, 0, 1)


def test_aa_intervals_of_many_redraws_are_not_called_rough(tmp_path: Path) -> None:
    folder = write_trial(tmp_path / "trial", Settings(latents=20, model_seeds=6))
    assert tally(View.of(read_tables(folder))).few == ()


def test_the_headline_shows_every_contrast_and_what_it_asks(page: Page) -> None:
    cards = [a for _, a in page.elements if "headline" in (a.get("class") or "").split()]
    assert len(cards) == 3 * 3
    for words in (
        "asks what training put into the weights, all together",
        "asks what training put into the weights beyond embeddings",
        "asks what trained embeddings alone change",
        "Reported elsewhere on random models: the dominant class there",
        "Fit of the SAEs: explained variance is ",
    ):
        assert words in page.text, words


def test_the_arms_are_told_in_groups_and_counts(full: Path, page: Page) -> None:
    view = View.of(read_tables(full))
    assert kept_groups(view, "redraw") == ()
    assert kept_groups(view, "redraw_keep_embeddings") == ("embeddings",)
    assert "212 of outlying norm in some arm" in page.text
    assert "16,384 tokens for Residual norm" in page.text


def test_class_shares_have_intervals_and_n(page: Page) -> None:
    figure = page.figures()["classes-0"]
    assert [trace["name"] for trace in figure["data"]] == [
        "trained",
        "redraw",
        "redraw_keep_embeddings",
    ]
    for trace in figure["data"]:
        assert all(up > 0 for up in trace["error_x"]["array"])
        assert all("800 latents" in t or "1,600 latents" in t for t in trace["text"])


def test_entropy_panels_hold_all_latents_that_have_one(full: Path, page: Page) -> None:
    latents = pd.read_parquet(full / "latents.parquet")
    figure = page.figures()["entropy-0"]
    bars = [trace for trace in figure["data"] if trace["type"] == "bar"]
    assert len(bars) == 3
    for bar in bars:
        assert sum(bar["y"]) == pytest.approx(100, abs=0.05)
    n = latents[latents["arm"] == "redraw"]["token_entropy_bits"].notna().sum()
    assert any(f"n = {n:,}" in note["text"] for note in figure["layout"]["annotations"])


def test_an_arm_has_one_color_in_every_plot(page: Page) -> None:
    figures = page.figures()
    by_name = {t["name"]: t["marker"]["color"] for t in figures["classes-0"]["data"]}
    bars = {
        t["name"]: t["marker"]["color"] for t in figures["entropy-0"]["data"] if t["type"] == "bar"
    }
    assert by_name == bars
    assert len(set(by_name.values())) == 3
    forest = {t["name"]: t for t in figures["forest-0"]["data"]}
    assert forest["effect, 95% interval"]["marker"]["color"] == by_name["redraw"]


def test_plotly_accepts_every_figure(page: Page) -> None:
    import plotly.graph_objects as go

    figures = page.figures()
    assert {key.split("-")[0] for key in figures} == {
        "forest",
        "classes",
        "use",
        "circuits",
        "entropy",
    }
    for figure in figures.values():
        go.Figure(figure)


def test_every_plot_has_titled_axes(page: Page) -> None:
    for key, figure in page.figures().items():
        assert figure["layout"]["xaxis"]["title"]["text"], key
    assert "(bits)" in page.figures()["entropy-0"]["layout"]["xaxis"]["title"]["text"]


# --- edges ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "drop",
    [
        ("effects",),
        ("passages",),
        ("latents",),
        ("measurements",),
        ("trial",),
        ("effects", "latents", "measurements", "passages"),
        ("effects", "latents", "measurements", "passages", "trial"),
    ],
)
def test_a_missing_table_is_said(tmp_path: Path, drop: tuple[str, ...]) -> None:
    folder = write_trial(tmp_path / "trial", Settings(latents=60, drop=drop))
    page = Page(render(read_tables(folder)))
    for name in drop:
        file = "trial.json" if name == "trial" else f"{name}.parquet"
        assert f"{file} is not in the trial folder." in page.text
    assert sum(tag == "section" for tag, _ in page.elements) == len(SECTIONS)


def test_empty_tables_one_arm_and_few_latents(tmp_path: Path) -> None:
    folder = write_trial(tmp_path / "one", Settings(arms=("trained",), latents=40))
    text = Page(render(read_tables(folder))).text
    assert "effects.parquet is empty." in text
    assert "counted from the latents table" in text
    for name in ("effects", "latents", "measurements", "passages"):
        path = folder / f"{name}.parquet"
        pd.read_parquet(path).iloc[:0].to_parquet(path)
    assert "latents.parquet is empty." in Page(render(read_tables(folder))).text


def test_all_latents_dead(tmp_path: Path) -> None:
    folder = write_trial(tmp_path / "dead", Settings(latents=40, drop=("passages",)))
    latents = pd.read_parquet(folder / "latents.parquet")
    latents.loc[:, ["token_entropy_bits", "token_entropy_null_bits"]] = float("nan")
    latents["class"] = "dead"
    latents.to_parquet(folder / "latents.parquet")
    assert "No latent has a token entropy." in Page(render(read_tables(folder))).text


def test_many_arms_and_hookpoints(tmp_path: Path) -> None:
    arms = ("trained", *(f"arm{i}" for i in range(8)))
    settings = Settings(arms=arms, latents=30, hookpoints=("resid_post.1", "resid_post.2"))
    folder = write_trial(tmp_path / "many", settings)
    page = Page(render(read_tables(folder)))
    assert len([k for k in page.figures() if k.startswith("forest")]) == 2 * 9
    assert "resid_post.2" in page.text


def test_folders_may_be_text(tmp_path: Path) -> None:
    folder = write_trial(tmp_path / "trial", Settings(drop=("effects", "latents", "passages")))
    assert build_report(str(folder)) == folder / "report" / "index.html"
    page = build_report(str(folder), str(tmp_path / "out"))
    assert page == tmp_path / "out" / "index.html"
    assert page.read_bytes() == (folder / "report" / "index.html").read_bytes()


def test_a_folder_that_is_none_and_a_broken_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not a folder"):
        build_report(tmp_path / "nowhere")
    (tmp_path / "trial.json").write_text("{")
    with pytest.raises(StoreError, match="not JSON"):
        build_report(tmp_path)
    (tmp_path / "trial.json").write_text("{}")
    with pytest.raises(StoreError, match="lacks the trial's settings"):
        build_report(tmp_path)
    (tmp_path / "trial.json").write_text(json.dumps({"format": FORMAT, "spec": {"name": "tiny"}}))
    (tmp_path / "effects.parquet").write_text("no")
    with pytest.raises(StoreError, match="cannot be read"):
        build_report(tmp_path)


def test_a_folder_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_trial(tmp_path / "trial", Settings(drop=("effects", "latents", "passages")))
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="is not a folder; choose another one"):
        build_report(folder, tmp_path / "file")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    # a test that runs as root may write anywhere
    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(StoreError, match=r"cannot be written to .*Read-only file system"):
        build_report(folder)


# --- data stays data -------------------------------------------------------------------------------


def test_data_cannot_become_markup(tmp_path: Path) -> None:
    evil = Settings(
        arms=(f"a{EVIL}", f"b{EVIL}\"' onload=x", "c{{7*7}}"),
        latents=40,
        token=f'{EVIL}"><svg onload=alert(2)>\u2028\u202e',
        document=f"doc{EVIL}",
        hookpoints=(f"resid{EVIL}",),
    )
    folder = write_trial(tmp_path / "evil", evil)
    page = Page(build_report(folder).read_text(encoding="utf-8"))
    plain = write_trial(tmp_path / "plain", Settings(arms=("a", "b", "c"), latents=40))
    safe = Page(build_report(plain).read_text(encoding="utf-8"))

    tags = {tag for tag, _ in page.elements}
    assert tags <= {tag for tag, _ in safe.elements}
    assert not tags & {"img", "svg", "iframe", "object"}
    names = {(tag, name) for tag, attrs in page.elements for name in attrs}
    assert names <= {(tag, name) for tag, attrs in safe.elements for name in attrs}
    count = [sum(tag == "script" for tag, _ in p.elements) for p in (page, safe)]
    assert count == [3, 3]
    assert EVIL in page.text
    assert "c49" not in page.text
    assert "\u202e" not in page.text
    # plotly reads tags in labels: none of the data's may be left
    labels = json.dumps(page.figures())
    assert "onerror" in labels
    assert "<img" not in labels
    assert "</script" not in labels


def test_control_characters_of_any_text_are_made_visible(tmp_path: Path) -> None:
    odd = "\x1b[2J\x07\x7f\x9b\u202e"
    settings = Settings(latents=20, arms=("trained", f"b{odd}"), hookpoints=(f"resid{odd}",))
    folder = write_trial(tmp_path / "odd", settings)
    record = json.loads((folder / "trial.json").read_text(encoding="utf-8"))

    def spoiled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: spoiled(one) for key, one in value.items()}
        if isinstance(value, list):
            return [spoiled(one) for one in value]
        return f"{value}{odd}\ud800" if value == "example/tiny-lm" else value

    text = json.dumps(spoiled(record))
    assert "\\ud800" in text
    (folder / "trial.json").write_text(text, encoding="utf-8")
    seal_trial(folder)
    page = build_report(folder).read_text(encoding="utf-8")
    raw = page.split("<script", maxsplit=1)[0]
    assert "example/tiny-lm⟨001B⟩[2J⟨0007⟩⟨007F⟩⟨009B⟩⟨202E⟩⟨D800⟩" in raw
    assert not set(raw) & set(odd.replace("[2J", ""))


def test_embedded_json_cannot_leave_its_element() -> None:
    value = {"</script>": ["<!--", "&amp;", "\u2028\u2029"]}
    text = embed_json(value)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == value


def test_a_number_that_is_not_finite_is_a_gap_in_a_figure() -> None:
    nan, inf = float("nan"), float("inf")
    row = DotRow(
        "a row", ArmStyle(0, "#000000", "circle"), nan, -inf, inf, 2, "1 document", (nan, inf)
    )
    curve = Curve("a curve", row.style, (1.0, 2.0), (nan, inf), (nan, 0.0), (inf, nan), "ab", "nm")
    figures = {
        "deep": {
            "data": [{"x": (1.5, nan), "error_x": {"array": [[inf], np.float64(-inf), 3, "nan"]}}]
        },
        "dots": dot_rows([row, dataclasses.replace(row, value=0.5, low=0.4, high=0.6)], "share"),
        "none": dot_rows([row], "share"),
        "curve": dose_curve([curve], "dose", "bits"),
    }
    drawn = json.loads(embed_json(figures), parse_constant=pytest.fail)
    assert drawn["deep"]["data"] == [
        {"x": [1.5, None], "error_x": {"array": [[None], None, 3, "nan"]}}
    ]
    points = [trace for trace in drawn["dots"]["data"] if trace["mode"] == "markers"]
    assert [trace["x"] for trace in points] == [[None], [0.5]]
    low, high = drawn["dots"]["layout"]["xaxis"]["range"]  # of what can be drawn
    assert 0.3 < low < 0.4 < 0.6 < high < 0.7
    assert drawn["curve"]["data"][0]["y"] == [None, None]
    assert number(nan) == number(-inf, 2) == "–"
    assert fitting(nan, nan, inf) == fitting(None, None, None)


def test_labels_show_tags_and_entities_literally() -> None:
    assert label("<b>&amp;\n") == "&lt;b&gt;&amp;amp;⏎"


# --- wording ---------------------------------------------------------------------------------------


def test_numbers_are_rounded_to_their_interval() -> None:
    assert decimals_for(0.8, 1.6) == 2
    assert number(-1.234, 2) == "\N{MINUS SIGN}1.23"
    assert number(-0.001, 2) == "0.00"
    assert number(12345.6, 0) == "12,346"
    assert number(None) == "–"
    assert interval(-0.004, 1.2, 1, signed=True) == "[0.0, +1.2]"
    assert metric_title("mean_token_entropy_bits", "bits") == "Mean token entropy"


def test_an_estimate_shows_three_digits_and_never_hides_its_side_of_zero() -> None:
    assert fitting(32.0, 31.9990, 32.0001) == 1
    assert fitting(0.0, -0.00006, 0.00006) == 4
    assert fitting(-0.0005, -0.00104, 0.00005) == 4
    assert number(0.0002, fitting(7.5, 0.0002, 15.1)) != "0"
    assert fitting(0.0, 0.0, 0.0) == 0
    assert interval(0.0, 0.0, 0) == "(no variation)"
    assert interval(-0.22, 0.27, 2, unit="%") == "[\N{MINUS SIGN}0.22%, 0.27%]"


def test_a_long_name_is_broken_and_not_cut() -> None:
    assert wrapped("redraw_keep_embeddings", 12) == ["redraw_keep_", "embeddings"]
    assert "".join(wrapped("b" * 60, 25)) == "b" * 60
    assert max(map(len, wrapped("b" * 60, 25))) <= 25


def test_an_estimate_without_n_or_interval_cannot_be_shown() -> None:
    with pytest.raises(ValueError, match="neither interval nor reason"):
        Estimate("1", None, None, "3")
    with pytest.raises(ValueError, match="without n"):
        Estimate("1", "[0, 2]", None, "")


def test_tokens_show_what_they_hold() -> None:
    assert visible("a\nb\t") == "a⏎b⇥"
    assert visible("\u202eabc\x00") == "⟨202E⟩abc⟨0000⟩"
    assert token_label(" the") == "·the"
    assert token_label("  ") == "··"
    assert token_label("") == "(empty)"


def test_pieces_join_quiet_tokens_and_mark_the_peak() -> None:
    found = _pieces(["a", "b", "c", "d"], [0.0, 0.0, 4.0, 2.0], 2, 4.0)
    assert found == [("ab", 0, False), ("c", 9, True), ("d", 5, False)]


# --- a browser -------------------------------------------------------------------------------------


class Browser:
    """Chromium behind its debugging pipe; every message that it sends unasked is kept."""

    def __init__(self, home: Path) -> None:
        assert CHROMIUM is not None
        to_read, self._to = os.pipe()
        self._from, from_write = os.pipe()
        flags = [
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *(f"--user-data-dir={home}", "--remote-debugging-pipe", "about:blank"),
        ]
        # the browser reads commands from descriptor 3 and writes to 4
        wiring = f'exec "$@" 3<&{to_read} 4>&{from_write}'
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", wiring, "-", CHROMIUM, *flags],
            pass_fds=(to_read, from_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(from_write)
        self._rest, self._n, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(t["targetId"] for t in targets if t["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._n += 1
        message: dict[str, Any] = {"id": self._n, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                read = os.read(self._from, 1 << 20)
                assert read, "the browser went away"
                self._rest += read
            head, self._rest = self._rest.split(b"\0", 1)
            answer = json.loads(head)
            if answer.get("id") == self._n:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self.events.append(answer)

    def js(self, code: str) -> Any:
        found = self.call(
            "Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def open(self, path: Path, width: int) -> None:
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        self.call("Page.navigate", url=path.as_uri())
        for _ in range(2_400):  # two minutes: a busy machine loads a page slowly
            if (
                self.js("document.readyState") == "complete"
                and self.js("location.protocol") == "file:"
            ):
                return
            time.sleep(0.05)
        raise AssertionError("the page did not load")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=120)
        os.close(self._to)
        os.close(self._from)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        # where a change is handed in, a page that no browser opened is a fault
        required = os.environ.get("SAE_PLACEBO_BROWSER") == "required"
        (pytest.fail if required else pytest.skip)("no chromium is installed")
    home = Path(tempfile.mkdtemp())
    started = Browser(home)
    yield started
    started.close()
    shutil.rmtree(home, ignore_errors=True)


DRAWN = """(async () => {
  const plots = Array.from(document.querySelectorAll(".plot"));
  const empty = (p) => !p.querySelector(".main-svg .trace, .main-svg .point");
  for (let i = 0; i < 2400 && plots.some(empty); i++) {
    await new Promise((go) => setTimeout(go, 50));
  }
  return plots.filter((p) => !empty(p) && p.offsetHeight > 100).length;
})()"""
CUT = """Array.from(document.querySelectorAll(".plot")).flatMap((plot) => {
  const box = plot.getBoundingClientRect();
  return Array.from(plot.querySelectorAll(".main-svg text")).filter((text) => {
    const own = text.getBoundingClientRect();
    return own.width && (own.left < box.left - 1 || own.right > box.right + 1);
  }).map((text) => text.textContent);
})"""


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("kind", ["full", "evil", "empty"])
def test_a_browser_shows_it_without_errors_or_requests(
    browser: Browser, tmp_path: Path, kind: str, width: int
) -> None:
    settings = {
        "full": Settings(latents=100),
        "evil": Settings(arms=("trained", EVIL, "b" * 60), latents=60, token=EVIL, document=EVIL),
        "empty": Settings(drop=("effects", "latents", "measurements", "passages", "trial")),
    }[kind]
    index = build_report(write_trial(tmp_path / "trial", settings))
    browser.events.clear()
    browser.open(index, width)
    plots = browser.js("document.querySelectorAll('.plot').length")
    assert plots == (0 if kind == "empty" else 15)
    # without scrolling: a printer and a picture of the whole page need all of them
    assert browser.js(DRAWN) == plots
    assert browser.js("window.scrollY") == 0
    assert browser.js(CUT) == []
    assert browser.js("document.documentElement.scrollWidth") <= width
    assert (
        browser.js("document.querySelectorAll('img, main a[href]:not([href^=\"#\"])').length") == 0
    )
    for event in browser.events:
        method, params = event.get("method"), event.get("params", {})
        assert method not in ("Runtime.exceptionThrown", "Log.entryAdded"), params
        assert method != "Runtime.consoleAPICalled", params
        if method == "Network.requestWillBeSent":
            assert params["request"]["url"].startswith(("file:", "data:"))


def test_the_headline_begins_on_the_first_screen(browser: Browser, full: Path) -> None:
    browser.open(build_report(full), 1280)
    place = "document.querySelector('#{}').getBoundingClientRect().top"
    assert browser.js(place.format("headline")) < 900
    cards = browser.js(
        "Array.from(document.querySelector('.cards').children)"
        ".map((card) => card.getBoundingClientRect().top)"
    )
    assert len(cards) == 3
    assert len(set(cards)) == 1
    table = "document.querySelector('#arms .box')"
    assert browser.js(f"{table}.scrollWidth <= {table}.clientWidth")


def test_the_filter_hides_other_classes(browser: Browser, full: Path) -> None:
    browser.open(build_report(full), 1280)
    choose = """(() => {
      const select = document.querySelector("#latent-filter select[name=class]");
      select.value = "unexplained";
      select.dispatchEvent(new Event("change"));
      return Array.from(document.querySelectorAll("[data-class]"))
        .filter((group) => group.offsetHeight > 0).map((group) => group.dataset.class);
    })()"""
    assert browser.js(choose) == ["unexplained"]


def test_definitions_are_the_ones_that_the_trial_recorded(tmp_path: Path) -> None:
    folder = write_trial(tmp_path / "trial", Settings(latents=20))
    trial = json.loads((folder / "trial.json").read_text())
    text = Page(render(read_tables(folder))).text
    assert "median_density" in text.split("not described", 1)[1][:200]
    trial["metrics"] = {"median_density": {"unit": "share", "definition": "<what it was then>"}}
    (folder / "trial.json").write_text(json.dumps(trial))
    assert "<what it was then>" in Page(render(read_tables(folder))).text
