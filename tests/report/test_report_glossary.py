"""The glossary: whole, one definition each, the same on the page of docs/concepts and in the report."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
from html import unescape
from pathlib import Path

import pandas as pd
import pytest

from sae_placebo.baselines import BASELINES
from sae_placebo.controls.data import DATA_CONTROLS
from sae_placebo.controls.dictionary import DICTIONARY_CONTROLS
from sae_placebo.controls.model.base import CONTROLS
from sae_placebo.latents.classes.classification import CLASSES
from sae_placebo.latents.ladder.fitting import RUNGS
from sae_placebo.latents.origin.decoy_scores import SCORES
from sae_placebo.latents.origin.rule import ORIGINS
from sae_placebo.report import Tables, read_tables
from sae_placebo.report.build import render
from sae_placebo.report.glossary import Group, glossary, markdown
from sae_placebo.report.words import Term
from sae_placebo.trial.results import EVERY_METRIC
from synthetic_trial import Settings, write_trial

DOCS = Path(__file__).parents[2] / "docs"


def described() -> dict[str, dict[str, str]]:
    keys = ("unit", "null", "definition", "source")
    return {n: {key: str(getattr(one, key)) for key in keys} for n, one in EVERY_METRIC.items()}


@pytest.fixture(scope="module")
def groups() -> dict[str, Group]:
    return {group.kind: group for group in glossary(described())}


def test_the_page_is_what_the_package_says() -> None:
    spec = importlib.util.spec_from_file_location("glossary_page", DOCS / "glossary.py")
    assert spec is not None
    assert spec.loader is not None
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    written = (DOCS / "concepts" / "glossary.md").read_text(encoding="utf-8")
    assert written == page.text(), "run: python docs/glossary.py"


def test_every_name_of_a_registry_has_one_term(groups: dict[str, Group]) -> None:
    names = {kind: [term.name for term in group.terms] for kind, group in groups.items()}
    assert names["metric"] == list(EVERY_METRIC)
    assert names["class"] == [kind.name for kind in CLASSES]
    assert names["origin"] == list(ORIGINS)
    assert names["rung"] == list(RUNGS)
    assert names["score"] == list(SCORES)
    assert names["baseline"] == list(BASELINES.entries)
    controls = [*CONTROLS.entries, *DATA_CONTROLS.entries, *DICTIONARY_CONTROLS.entries]
    assert sorted(names["control"]) == sorted(controls)
    for found in names.values():
        assert len(found) == len(set(found))


def test_what_the_report_may_not_import_is_defined_alike(groups: dict[str, Group]) -> None:
    for term in groups["score"].terms:
        assert term.definition == SCORES[term.name].definition
    for term in groups["baseline"].terms:
        baseline = BASELINES.entries[term.name]
        assert (term.definition, term.source) == (baseline.definition, baseline.source)


def test_every_number_has_unit_null_and_source(groups: dict[str, Group]) -> None:
    for kind, group in groups.items():
        for term in group.terms:
            assert term.definition, term.name
            if kind not in ("word", "control"):
                assert term.unit, term.name
                assert term.null, term.name
                assert term.source, term.name
            assert not term.page or (DOCS / "concepts" / f"{term.page}.md").exists(), term.page
            page = re.fullmatch(r"(docs/reference/.*\.md)\.", term.source)
            assert page is None or (DOCS.parent / page[1]).exists(), term.source


def test_a_pipe_does_not_end_a_cell() -> None:
    text = markdown([Group("word", "Words", (Term("a", "b | c"),))])
    assert "| a | b \\| c | – | – | – |" in text


def with_structure(tables: Tables) -> Tables:
    """Return the tables with one row of everything that names a term."""
    place = {"arm": tables.arms[0], "hookpoint": tables.places[0][0], "sae": tables.places[0][1]}
    placebo = {"arm": tables.arms[1]}
    decoys = [{**place, "score": name, "rate": 0.1} for name in (*SCORES, "<new> score")]
    baselines = [
        {**place, "baseline": name, "distortion": 0.2, "bits": 9.0}
        for name in (*BASELINES.entries, "new<b>")
    ]
    baselines.append(
        {**place, "baseline": "sae", "reading": "topk/0", "distortion": 0.2, "bits": 8.0}
    )
    rungs = [
        {**place, "subject": "latents", "rung": name, "value": 0.1, "gain": 0.1, "n": 9}
        for name in RUNGS[1:]
    ]
    partners = [
        {
            **place, "sae_seed": 0, "latent": i, "class": "single_token", "comparison": one,
            "correlation": 0.5, "has_partner": 1.0, "null_has_partner": 0.0, "shared": 1.0,
        }
        for i, one in enumerate(("placebo", "seed"))
    ]  # fmt: skip
    latents = tables.latents.copy()
    latents["origin"] = "not_explained"
    effects = tables.effects.copy()
    share = effects.iloc[[0]].assign(control=placebo["arm"])
    parts = [share.assign(metric=f"origin_{verdict}") for verdict in ORIGINS]
    frames = {"decoys": decoys, "baselines": baselines, "ladder": rungs, "partners": partners}
    made = {
        name: pd.DataFrame(rows).reindex(columns=getattr(tables, name).columns)
        for name, rows in frames.items()
    }
    effects = pd.concat([effects, *parts], ignore_index=True)
    return dataclasses.replace(tables, **made, latents=latents, effects=effects)


@pytest.mark.parametrize("recorded", [True, False])
def test_every_link_to_a_term_arrives(tmp_path: Path, recorded: bool) -> None:
    folder = write_trial(tmp_path / "trial", Settings(latents=20))
    if recorded:
        trial = json.loads((folder / "trial.json").read_text())
        trial["metrics"] = described()
        (folder / "trial.json").write_text(json.dumps(trial))
    page = render(with_structure(read_tables(folder)))
    anchors = [unescape(one) for one in re.findall(r'\bid="(term-[^"]*)"', page)]
    links = {unescape(one) for one in re.findall(r'href="#(term-[^"]*)"', page)}
    assert len(anchors) == len(set(anchors))
    assert not links - set(anchors)
    expected = {
        *(f"term-origin-{name}" for name in ORIGINS),
        *(f"term-score-{name}" for name in SCORES),
        *(f"term-rung-{name}" for name in RUNGS[1:]),
        *(f"term-baseline-{name}" for name in BASELINES.entries),
        *(
            "term-class-single_token",
            "term-word-partner",
            "term-word-SAE",
            "term-metric-median_density",
        ),
    }
    assert not expected - links
    assert "<new>" not in page
    assert "new<b>" not in page
