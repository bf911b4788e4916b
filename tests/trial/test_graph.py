"""Attribution graphs of a finished trial, one arm of which has its attention ablated."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

import sae_placebo as sp
from conftest import save_model, trial_table
from sae_placebo.causal.circuits.edges import EdgeSpec
from sae_placebo.causal.circuits.graph import GraphSpec, attribution_graph
from sae_placebo.cli import main as cli
from sae_placebo.core.errors import MissingExtra, NotEstimable, SpecError, StoreError
from sae_placebo.data.text import TextSpec
from sae_placebo.data.tokenizing import vocabulary
from sae_placebo.models.loading import load_model, load_tokenizer
from sae_placebo.saes.formats import saelens
from sae_placebo.trial.graph import PromptGraph
from sae_placebo.trial.graph_inputs import GraphChoice, _among, _places, token_ids
from sae_placebo.trial.spec import load_trial

PLACES = ("resid_post.0", "resid_post.1")
PROMPT = "def main(argv):\n    return"
HOSTILE = "</script><img src=x>$x$"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A copy of the tiny model that a test may change."""
    folder = tmp_path_factory.mktemp("model")
    shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def table(model: Path, tiny_text: Path) -> dict[str, Any]:
    table = trial_table(model, tiny_text, name="graphs", hookpoints=list(PLACES), model_seeds=[0])
    # neither arms nor SAEs by name: the record sorts them
    table["arms"] = {
        "trained": {"control": "trained"},
        "redraw": {"control": "redraw"},
        "deaf": {"control": "ablate_attention", "of": {"control": "redraw"}},
    }
    topk = table["saes"].pop("topk")
    table["saes"] = {"wide": topk, "narrow": topk | {"d_sae": 48}}
    table["use"] |= {"arms": ["trained", "deaf"], "latents": 4}
    table["audit"] |= {"arms": []}
    return table


@pytest.fixture(scope="module")
def finished(table: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> sp.Trial:
    """A finished trial; tests that change its store copy it first."""
    return sp.run(table, tmp_path_factory.mktemp("graphs"))


@pytest.fixture(scope="module")
def graph(finished: sp.Trial) -> PromptGraph:
    before = snapshot(finished)
    found = finished.graph(PROMPT)
    assert snapshot(finished) == before  # nothing is written into the store
    return found


def snapshot(trial: sp.Trial) -> dict[str, int]:
    files = (path for path in trial.folder.parents[1].rglob("*") if path.is_file())
    return {str(path): path.stat().st_mtime_ns for path in files}


def copied(trial: sp.Trial, to: Path) -> sp.Trial:
    shutil.copytree(trial.folder.parents[1], to, dirs_exist_ok=True)
    return sp.Trial(to / "trials" / trial.folder.name)


def sae_of(trial: sp.Trial, arm: str, hookpoint: str, label: str = "wide", seed: int = 0) -> Any:
    (train,) = (trial.folder.parents[1] / "train").glob(f"{arm}-*")
    return saelens.read(train / hookpoint / label / f"seed-{seed}")


def test_it_is_the_graph_of_the_trained_model_and_its_first_saes(
    finished: sp.Trial, graph: PromptGraph, model: Path
) -> None:
    tokenizer = load_tokenizer(model)
    ids = torch.tensor(tokenizer(f"<s>{PROMPT}")["input_ids"])
    assert torch.equal(graph.token_ids, ids)
    saes = [(name, sae_of(finished, "trained", name)) for name in PLACES]
    assert graph.graph == attribution_graph(load_model(model), ids, saes, vocabulary(tokenizer))
    assert "arm trained, SAE wide, seed 0" in graph.summary()


def test_arm_sae_hookpoint_and_seed_are_chosen(finished: sp.Trial) -> None:
    found = finished.graph(
        "def f(", "redraw", "narrow", ["model.layers.1"], sae_seed=1, model_seed=0
    )
    assert found.graph.hookpoints == ("resid_post.1",)
    assert "arm redraw-0, SAE narrow, seed 1" in found.summary()
    assert {n.index for n in found.graph.nodes if n.kind == "latent"} <= set(range(48))
    codes = sae_of(finished, "redraw", "resid_post.1", "narrow", 1)
    assert codes.params["W_dec"].shape[0] == 48
    small = finished.graph("def f(", hookpoints=PLACES[::-1], settings=GraphSpec(expand=2))
    assert small.graph.hookpoints == PLACES
    assert sum(node.kind == "latent" for node in small.graph.nodes) == 4
    again = small.another("def f(")
    assert again.graph == small.graph
    assert small.another("class A").graph.tokens != small.graph.tokens


def test_latents_that_pass_are_not_explained_or_tied(
    finished: sp.Trial, graph: PromptGraph
) -> None:
    said = finished.latents.query("arm == 'trained' and sae == 'wide' and sae_seed == 0")
    use = finished.use.query("arm == 'trained' and sae == 'wide' and sae_seed == 0")
    assert use["tied"].notna().any()
    nodes = {
        (graph.graph.hookpoints[n.depth - 1], n.index)
        for n in graph.graph.nodes
        if n.kind == "latent"
    }
    assert set(zip(graph.latents["hookpoint"], graph.latents["latent"], strict=True)) == nodes
    for row in graph.latents.itertuples():
        own = said[(said["hookpoint"] == row.hookpoint) & (said["latent"] == row.latent)].iloc[0]
        tie = use[(use["hookpoint"] == row.hookpoint) & (use["latent"] == row.latent)]["tied"].iloc[
            0
        ]
        assert (row.origin, row.evidence) == (own["origin"], own["evidence"])
        assert row.tied == tie or (np.isnan(row.tied) and np.isnan(tie))
        assert row.passes == (own["origin"] == "not_explained" or tie == 1)
        assert ((row.hookpoint, row.latent) in graph.pale) == (not row.passes)
    assert graph.pale
    drawn = [
        trace for trace in graph.figure().data if trace.name == "latent no better than the placebo"
    ]
    of_pale = [
        n
        for n in graph.graph.nodes
        if n.kind == "latent" and (graph.graph.hookpoints[n.depth - 1], n.index) in graph.pale
    ]
    assert len(drawn[0].x) == len(of_pale)


def test_an_arm_that_was_not_asked_about_has_no_ties(finished: sp.Trial) -> None:
    found = finished.graph("def f(", "redraw")
    assert found.latents["tied"].isna().all()
    assert found.latents["origin"].notna().all()


def test_edges_are_tested_between_neighboring_hookpoints(
    finished: sp.Trial, graph: PromptGraph
) -> None:
    found = graph.edges(EdgeSpec(confirm=2, firings=2, nulls=9))
    assert set(found["source_hookpoint"]) == {PLACES[0]}
    assert set(found["target_hookpoint"]) == {PLACES[1]}
    source, target = (sae_of(finished, "trained", name).params for name in PLACES)
    unit = torch.nn.functional.normalize(source["W_dec"], dim=1)
    row = found.iloc[0]
    expected = float(unit[int(row["source"])] @ target["W_enc"][:, int(row["target"])])
    assert row["alignment"] == pytest.approx(expected, rel=1e-4)
    assert (found["n_firings"] > 0).sum() == 2
    shown = {name: set(graph.latents.query(f"hookpoint == '{name}'")["latent"]) for name in PLACES}
    for edge in found.itertuples():
        assert edge.in_graph == (
            edge.source in shown[PLACES[0]] and edge.target in shown[PLACES[1]]
        )
    one = finished.graph("def f(", hookpoints=PLACES[:1])
    with pytest.raises(NotEstimable, match=r"only resid_post\.0; name two hookpoints"):
        one.edges()


def test_heads_write_latents_and_take_them_from_tokens(graph: PromptGraph) -> None:
    heads = graph.heads(n=2)
    known = heads[heads["reason"] == ""]
    assert set(known["kind"]) == {"head"}
    assert known.groupby(["hookpoint", "latent"]).size().eq(2).all()
    assert heads[heads["reason"] != ""]["share"].isna().all()
    both = graph.latents[["hookpoint", "latent"]].merge(heads, on=["hookpoint", "latent"])
    assert len(both) == len(heads)
    best = known.iloc[0]
    n = len(graph.token_ids)
    found = graph.sources(int(best["latent"]), str(best["hookpoint"]), n=n)
    assert set(found["head"]) == {best["part"]}
    for position, part in found.groupby("position"):
        assert part["contribution"].sum() == pytest.approx(part["whole"].iloc[0], abs=1e-4)
        assert part["attention"].sum() == pytest.approx(1, abs=1e-4)
        assert sorted(part["source"]) == list(range(int(str(position)) + 1))
        texts = [graph.graph.tokens[i] for i in part["source"]]
        assert part["source_text"].tolist() == texts
    active = {
        n.position
        for n in graph.graph.nodes
        if (n.kind, n.index) == ("latent", best["latent"])
        and graph.graph.hookpoints[n.depth - 1] == best["hookpoint"]
    }
    assert active <= set(found["position"])
    other = graph.sources(int(best["latent"]), str(best["hookpoint"]), head=(0, 3), n=1)
    assert set(other["head"]) == {"L0.H3"}


def test_what_a_graph_does_not_have_is_refused(graph: PromptGraph) -> None:
    with pytest.raises(SpecError, match="the graph has latent 999 nowhere"):
        graph.sources(999)
    latent = int(graph.latents.query("hookpoint == 'resid_post.0'")["latent"].iloc[0])
    with pytest.raises(SpecError, match=r"has latent .* at mlp_out.0 nowhere"):
        graph.sources(latent, "mlp_out.0")
    with pytest.raises(NotEstimable, match=r"L7\.H0 does not write to resid_post\.0"):
        graph.sources(latent, "resid_post.0", head=(7, 0))


def test_pictures_open_offline_and_hold_no_markup_of_the_prompt(
    graph: PromptGraph, tmp_path: Path
) -> None:
    hostile = graph.another(HOSTILE)
    page = hostile.save(tmp_path / "graph.html").read_text(encoding="utf-8")
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=", page)
    assert "Plotly.newPlot" in page
    assert hostile.save(tmp_path / "again.html").read_text(encoding="utf-8") == page
    svg = graph.save(tmp_path / "graph.svg").read_text(encoding="utf-8")
    ElementTree.fromstring(svg)
    assert "latent no better than the placebo" in svg
    assert graph.save(tmp_path / "graph.PNG").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(
        SpecError, match=r"names no kind of picture: end it in \.html, \.svg or \.png"
    ):
        graph.save(tmp_path / "graph.pdf")
    (tmp_path / "folder.html").mkdir()
    for name, said in (
        ("nowhere/graph.html", "cannot be written, since .*nowhere' is no folder; make it"),
        ("folder.html", "is a folder; give the name of a file"),
        ("a\0.html", "holds a NUL character"),
    ):
        with pytest.raises(StoreError, match=said):
            graph.save(tmp_path / name)


def test_without_matplotlib_a_page_is_still_written(
    graph: PromptGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"pip install 'sae-placebo\[plots\]'"):
        graph.save(tmp_path / "graph.svg")
    assert graph.save(tmp_path / "graph.html").exists()


@pytest.mark.parametrize(
    ("prompt", "choice", "message"),
    [
        ("", {}, "the prompt is empty"),
        ("def " * 40, {}, r"the prompt has \d+ tokens, and the trial's rows.*, 32; shorten it"),
        ("a\ud800", {}, "the prompt holds half of a character at position 1"),
        ("def", {"arm": "redrawn"}, "no arm is called 'redrawn'. Did you mean 'redraw'"),
        ("def", {"sae": "topk"}, "no SAE is called 'topk'"),
        ("def", {"hookpoints": ["resid_post.2"]}, r"no hookpoint is called 'resid_post\.2'"),
        ("def", {"hookpoints": ["blocks"]}, "no hookpoint is called 'blocks'"),
        ("def", {"hookpoints": []}, "a graph was asked for at no hookpoint"),
        ("def", {"sae_seed": 7}, "sae_seed 7 is none of the trial's for this arm: 0, 1"),
        ("def", {"model_seed": 1}, "model_seed 1 .* none, since nothing is drawn"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_sentence(
    finished: sp.Trial, prompt: str, choice: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        finished.graph(prompt, **choice)
    assert "\n" not in str(caught.value)


def test_hookpoints_off_the_stream_are_left_out_unless_asked_for(table: dict[str, Any]) -> None:
    arms = {name: table["arms"][name] for name in ("trained", "redraw")}
    places = ["mlp_out.1", "resid_post.1", "resid_pre.0", "resid_pre.1"]
    spec = load_trial(table | {"hookpoints": places, "arms": arms, "use": {}})
    spec_use = [place[1] for place in _places(spec, GraphChoice())]
    assert spec_use == ["resid_pre.1", "resid_post.1"]
    assert [p[1] for p in _places(spec, GraphChoice(hookpoints=["mlp_out.1"]))] == ["mlp_out.1"]


@pytest.mark.parametrize("seed", [True, 0.0, "0", [0]])
def test_a_seed_that_is_no_whole_number_is_refused(seed: Any) -> None:
    with pytest.raises(SpecError) as caught:
        _among("sae_seed", seed, (0, 1))
    assert str(caught.value) == f"sae_seed {seed!r} is none of the trial's for this arm: 0, 1"
    assert type(_among("sae_seed", np.int64(1), (0, 1))) is int


def test_where_activations_are_drawn_there_is_no_graph(table: dict[str, Any]) -> None:
    spec = load_trial(table | {"arms": table["arms"] | {"drawn": {"data": "gaussian"}}})
    with pytest.raises(
        SpecError, match="activations of arm 'drawn' are drawn and no model goes on"
    ):
        _places(spec, GraphChoice("drawn"))


def test_characters_that_a_tokenizer_does_not_know_are_refused() -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"def": 0, "?": 1}, unk_token="?")), unk_token="?"
    )
    text = TextSpec(context_tokens=8, train_tokens=1, heldout_tokens=1)
    assert token_ids("def", tokenizer, text).tolist() == [0]
    with pytest.raises(
        SpecError, match="token 1 of the prompt is unknown to the model's tokenizer"
    ):
        token_ids("été", tokenizer, text)


def test_a_store_without_its_artefacts_says_which_are_gone(
    finished: sp.Trial, tmp_path: Path
) -> None:
    trial = copied(finished, tmp_path)
    found = trial.graph("def f(")
    for folder in (tmp_path / "measure").glob("trained-*"):
        shutil.rmtree(folder)
    with pytest.raises(
        StoreError, match=r"holds no measure/trained-.* any more.*run the trial again"
    ):
        trial.graph("def f(").edges()
    assert trial.graph("def f(").graph == found.graph
    with pytest.raises(StoreError, match="holds no measure/trained-"):
        found.heads()
    (train,) = (tmp_path / "train").glob("trained-*")
    with next(train.rglob("*.safetensors")).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(StoreError, match=r"artefact train/trained-.* is damaged"):
        trial.graph("def f(")
    shutil.rmtree(train)
    with pytest.raises(StoreError, match=r"holds no train/trained-.* any more"):
        trial.graph("def f(")


def test_another_model_in_its_place_is_noticed(finished: sp.Trial, model: Path) -> None:
    kept = {path: path.read_bytes() for path in model.iterdir() if path.is_file()}
    try:
        save_model(model, initializer_range=0.1)
        with pytest.raises(StoreError, match=r"model or text of the trial .* are not those"):
            finished.graph("def f(")
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
    assert finished.graph("def f(").graph.nodes


# --- attention that is ablated ---------------------------------------------------------------------


def test_without_attention_the_last_token_is_all_there_is(finished: sp.Trial) -> None:
    found = finished.graph(PROMPT, "deaf")
    last = len(found.token_ids) - 1
    assert {node.position for node in found.graph.nodes} == {last}
    assert len({node.position for node in finished.graph(PROMPT, "redraw").graph.nodes}) > 3
    heads = found.heads()
    assert np.allclose(heads.loc[heads["reason"] == "", "share"], 0)


def test_an_arm_without_attention_goes_through_every_stage(finished: sp.Trial) -> None:
    assert set(finished.latents["control_kind"]) >= {"redraw", "redraw + ablate_attention"}
    asked = [one for one in finished.record["use"] if one["arm"] == "deaf"]
    assert len(asked) == 2 * 2
    assert not any(one.get("refused") for one in asked)
    deaf, redraw = (
        finished.record["arms"][arm]["records"][0]["recipe"] for arm in ("deaf", "redraw")
    )
    assert deaf["weight_hash"] != redraw["weight_hash"]
    assert set(deaf["touched"]) == set(redraw["touched"])
    assert any(note.startswith("attention writes nothing") for note in deaf["notes"])
    assert "attention ablated: it writes zero" in finished.report.read_text(encoding="utf-8")
    entropy = finished.measurements.query("metric == 'mean_token_entropy_bits'")
    means = entropy.groupby("arm")["value"].mean()
    assert means["deaf"] < means["redraw"]  # an activation is a function of its token
    tested = finished.mechanism.query("name == 'needs_attention'")
    assert not tested["reason"].str.contains("no arm whose attention").any()


# --- the command line ------------------------------------------------------------------------------


def call(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> int:
    monkeypatch.setattr(sys, "argv", ["sae-placebo", "graph", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_command_writes_a_page_and_says_what_it_shows(
    finished: sp.Trial,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "graph.html"
    asked = ("--arm", "redraw", "--hookpoint", "resid_post.1", "--sae-seed", 1)
    assert call(monkeypatch, finished.folder, "--prompt", "def f(", "--out", out, *asked) == 0
    said = capsys.readouterr().out
    assert "arm redraw-0, SAE wide, seed 1" in said
    assert said.rstrip().endswith(f"graph: {out}")
    assert "<h1" in out.read_text(encoding="utf-8")
    assert call(monkeypatch, finished.folder, "--prompt", "def", "--out", tmp_path / "a.gif") == 1
    assert "names no kind of picture" in capsys.readouterr().err
    assert call(monkeypatch, finished.folder, "--prompt", "") == 1
    assert capsys.readouterr().err.startswith("error: the prompt is empty")
    assert call(monkeypatch, tmp_path, "--prompt", "def") == 1
    assert "holds no trial.json" in capsys.readouterr().err
