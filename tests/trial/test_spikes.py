"""Spikes in a finished trial: nothing planted is the trial's own SAE, and nothing is done twice."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import sae_placebo as sp
from conftest import trial_table
from sae_placebo.core.errors import SpecError, StoreError
from sae_placebo.core.progress import Progress
from sae_placebo.core.sealing import read_json
from sae_placebo.core.store import Store
from sae_placebo.report import read_tables
from sae_placebo.report.build import render_section
from sae_placebo.report.sections import SECTIONS, View
from sae_placebo.report.spike_files import FEATURE_COLUMNS, PAIR_COLUMNS, SUMMARY_COLUMNS
from sae_placebo.stats.proportions import wilson
from sae_placebo.trial.artefacts import Artefacts
from sae_placebo.trial.plan import ArmModel, plan_steps
from sae_placebo.trial.spec import TrialSpec, load_trial
from sae_placebo.trial.spikes.activations import ArmActivations, read_activations
from sae_placebo.trial.spikes.planning import matched_kinds, numbers, subject_of
from sae_placebo.trial.spikes.run import Spikes
from sae_placebo.trial.spikes.trainings import Trainings
from sae_placebo.trial.stages.build import build_arms
from sae_placebo.trial.stages.harvest import harvest_arms
from sae_placebo.trial.stages.train import train_arms
from synthetic_trial import Settings, write_trial

GRID: dict[str, Any] = {"frequencies": "0.02,0.04", "magnitudes": (0.05, 0.4), "repeats": 3}


class Said(Progress):
    """Keeps what is noted."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture(scope="module")
def spec(tiny_model: Path, tiny_text: Path) -> TrialSpec:
    arms = {
        "trained": {"control": "trained"},
        "redraw": {"control": "redraw"},
        "still": {"dictionary": "frozen_decoder"},
    }
    table = trial_table(tiny_model, tiny_text, model_seeds=[0], arms=arms)
    table["text"] |= {"train_tokens": 8_000}
    return load_trial(table)


def trained(spec: TrialSpec, store: Path) -> Path:
    """Run a trial as far as its SAEs."""
    artefacts = Artefacts(plan_steps(spec), Store(store), Progress())
    with artefacts.store.lock():
        for arms in artefacts.plan.groups:
            model = build_arms(artefacts, arms)
            if model is not None:
                train_arms(artefacts, arms, harvest_arms(artefacts, arms, model))
    return store


@pytest.fixture(scope="module")
def store(spec: TrialSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(spec, tmp_path_factory.mktemp("spikes") / "runs")


@pytest.fixture(scope="module")
def found(spec: TrialSpec, store: Path) -> Spikes:
    return sp.spikes(spec, store, **GRID)


def activations_of(spec: TrialSpec, store: Path, arm: str) -> tuple[Artefacts, ArmActivations]:
    artefacts = Artefacts(plan_steps(spec), Store(store), Progress())
    return artefacts, read_activations(artefacts, subject_of(spec, {"arm": arm}))


@pytest.mark.parametrize("arm", ["trained", "redraw", "still"])
def test_with_nothing_planted_the_sae_is_the_trials_own_bit_for_bit(
    spec: TrialSpec, store: Path, arm: str
) -> None:
    artefacts, activations = activations_of(spec, store, arm)
    one = ArmModel(arm, spec.seeds_of(arm)[0])
    for seed in spec.sae_seeds:
        again = activations.train(None, spec.saes["topk"], seed, lambda n: None)
        own = artefacts.sae((one, "resid_post.1", "topk", seed))
        for name, tensor in own.params.items():
            assert torch.equal(again.params[name], tensor), name


def test_one_row_per_feature_and_shares_that_are_counts_of_rows(found: Spikes) -> None:
    table, summary, record = found.table, found.summary, found.record
    assert tuple(table.columns) == FEATURE_COLUMNS
    assert tuple(summary.columns) == SUMMARY_COLUMNS
    assert len(table) == record["n_spikes"] == 2 * 2 * 3
    assert table["training"].nunique() == record["n_trainings"]
    judged = table[table["outcome"].notna()]
    assert len(judged)
    whole = summary[summary["frequency"].isna()].set_index("name")
    for name in ("detected", "lost"):
        hits = int((judged["outcome"] == name).sum())
        assert whole.loc[name, "value"] == hits / len(judged)
        assert (whole.loc[name, "low"], whole.loc[name, "high"]) == wilson(hits, len(judged))
        assert whole.loc[name, "n"] == len(judged)
    assert whole.loc["decoys", "n"] == table["null_judged"].sum()
    cell = summary[(summary["frequency"] == 0.04) & (summary["magnitude"] == 0.4)]
    assert set(cell["name"]) == {"detected", "split", "composed", "absorbed", "lost"}
    assert cell["value"].sum() == pytest.approx(1.0)
    # what is long and frequent points further along its direction than what is hardly there, or never was
    large = table[(table["magnitude"] == 0.4) & (table["frequency"] == 0.04)]["cosine"].mean()
    assert large > table[table["magnitude"] == 0.05]["cosine"].mean() + 0.05
    assert large > table["null_cosine"].mean() + 0.05
    assert "held-out tokens" in found.text()


def test_a_second_call_trains_nothing_and_says_the_same(
    spec: TrialSpec, store: Path, found: Spikes, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in found.folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(Trainings, "_train", None)
    said = Said()
    again = sp.spikes(spec, store, **GRID, progress=said)
    assert again.folder == found.folder
    assert any("all are done" in note for note in said.notes)
    after = {path: path.read_bytes() for path in found.folder.rglob("*") if path.is_file()}
    assert {p: b for p, b in after.items() if p.suffix != ".json"} == {
        p: b for p, b in before.items() if p.suffix != ".json"
    }


def test_stopped_with_an_interrupt_it_goes_on_to_the_same_tables(
    spec: TrialSpec, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"frequencies": [0.04], "magnitudes": [0.3], "seeds": "0,1,2"}
    whole = sp.spikes(spec, store, **asked, repeats=1)
    expected = whole.table
    kept = sorted((whole.folder / "trainings").iterdir())
    assert len(kept) == 3
    shutil.rmtree(whole.folder)
    train, done = ArmActivations.train, list[int]()

    def stopping(self: ArmActivations, *arguments: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        return train(self, *arguments)

    monkeypatch.setattr(ArmActivations, "train", stopping)
    with pytest.raises(KeyboardInterrupt):
        sp.spikes(spec, store, **asked, repeats=1)
    assert [p.name for p in kept if p.exists()] == ["0000.json", "0001.json"]
    assert not (whole.folder / "record.json").exists()
    # one of the two is damaged since: it is moved aside, and done again with the third
    kept[1].write_text("{")
    done.clear()
    said = Said()
    again = sp.spikes(spec, store, **asked, repeats=1, progress=said)
    assert len(done) == 2
    assert any("1 are done; about" in note for note in said.notes)
    assert any("0001.json.aside-1" in note for note in said.notes)
    assert again.table.equals(expected)


def test_other_settings_get_a_folder_of_their_own(
    spec: TrialSpec, store: Path, found: Spikes
) -> None:
    other = sp.spikes(spec, store, **{**GRID, "repeats": 1}, arm="redraw")
    assert other.folder.parent == found.folder.parent
    assert other.folder.name.startswith("spikes-redraw-0-resid_post.1-topk-")
    assert set(other.table["arm"]) == {"redraw"}
    assert found.record["arm"] == "trained"


def test_pairs_come_back_by_kind_of_sae_beside_their_null(spec: TrialSpec, store: Path) -> None:
    said = Said()
    pairs = sp.spikes(
        spec, store, composed=True, frequencies=[0.03], magnitudes="0.25", repeats=2, progress=said
    )
    (note,) = [note for note in said.notes if note.startswith("spikes: ")]
    assert re.search(
        r"24 features are planted in \d trainings of [78],\d+ tokens \(topk, relu\)", note
    )
    assert re.search(
        r"about [\d:]+ left, by a probe of this machine \(relu [\d,]+, topk [\d,]+ tokens/s\)", note
    )
    table, summary = pairs.table, pairs.summary
    assert tuple(table.columns) == PAIR_COLUMNS
    assert table.groupby(["kind", "relation"]).size().to_dict() == {
        (kind, relation): 2
        for kind in ("topk", "relu")
        for relation in ("together", "child", "independent")
    }
    # the same plantings for all kinds
    topk, relu = (table[table["kind"] == kind].reset_index(drop=True) for kind in ("topk", "relu"))
    assert topk["pair"].tolist() == relu["pair"].tolist()
    assert topk["n_both"].tolist() == relu["n_both"].tolist()
    together = topk[topk["relation"] == "together"]
    rate = (together["n_both"] / together["n_first"]).mean()
    assert rate == pytest.approx(0.8, abs=0.15)
    l0 = summary[summary["name"] == "l0"].set_index("kind")
    assert l0.loc["topk", "value"] == pytest.approx(4, abs=0.2)
    # 30 steps are too few for a penalty to arrive there, and that is said
    assert l0.loc["relu", "value"] > 5
    assert pairs.record["unmatched"] == ["relu"]
    assert "not matched: the L0 of relu is further than 5% from the 4" in pairs.text()
    shares = summary[summary["relation"].notna()]
    assert set(shares["name"]) == {"apart", "merged", "one", "lost"}
    assert ((shares["low"] <= shares["value"]) & (shares["value"] <= shares["high"])).all()
    assert "independent (null)" in pairs.text()


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"arm": "redrw"}, "no arm of this trial is called 'redrw'. Did you mean 'redraw'?"),
        ({"hookpoint": "resid_post.0"}, "no hookpoint of this trial is called 'resid_post.0'"),
        ({"hookpoint": "nowhere"}, "no hookpoint is called 'nowhere'"),
        ({"sae": "top"}, "no SAE of this trial is called 'top'. Did you mean 'topk'?"),
        ({"frequencies": "0.1,x"}, "frequencies holds 'x'; it takes numbers above 0 and below 1"),
        ({"frequencies": "1e-5"}, "plant more frequent ones"),
        ({"magnitudes": [0.1, 0.1]}, "magnitudes holds a number twice"),
        ({"magnitudes": [9.0]}, "make it smaller"),
        ({"magnitudes": "1e300"}, "make it smaller or rarer"),
        ({"repeats": 10**8}, "features are asked for, and 20,000 are the most: lower repeats"),
        ({"composed": "no"}, "composed is True or False; found 'no'"),
        ({"composed": True, "kinds": 3}, "kinds holds 3; it takes kinds of SAE: "),
        ({"composed": True, "frequencies": "0.95"}, "raise this rate (together)"),
        ({"repeats": 0}, "repeats is 0"),
        ({"repeats": "3"}, "a whole number of 1 or more"),
        ({"seeds": [0.5]}, "whole numbers of 0 or more"),
        ({"seeds": "0,-1"}, "whole numbers of 0 or more"),
        ({"kinds": "topk"}, "kinds is of pairs"),
        ({"together": 0.5}, "together is of pairs"),
        ({"composed": True, "together": 1.5}, "a rate between 0 and 1"),
        ({"composed": True, "kinds": "topk,nonsense"}, "no SAE is called 'nonsense'"),
        ({"composed": True, "kinds": "topk,topk"}, "a kind twice"),
        ({"arms": "x"}, "no argument of spikes is called 'arms'"),
    ],
)
def test_mistakes_are_one_sentence(
    spec: TrialSpec, store: Path, asked: dict[str, Any], says: str
) -> None:
    with pytest.raises(SpecError) as caught:
        sp.spikes(spec, store, **asked)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_trial_that_is_not_finished_is_refused(
    spec: TrialSpec, store: Path, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match=r"not finished in .* are missing"):
        sp.spikes(spec, tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    some = tmp_path / "some"
    shutil.copytree(store, some)
    shutil.rmtree(some / "train")
    with pytest.raises(StoreError, match=r"1 of the \d artefacts .*\(train\); `sae-placebo run"):
        sp.spikes(spec, some)


def test_kinds_are_matched_in_l0(spec: TrialSpec) -> None:
    own = spec.saes["topk"]
    found = matched_kinds(("topk", "relu", "batchtopk", "jumprelu"), own, 4.0)
    assert found["topk"] is own
    assert {kind: sae.l0_target() for kind, sae in found.items()} == dict.fromkeys(found, 4.0)
    assert {sae.d_sae for sae in found.values()} == {own.d_sae}


def test_numbers_are_read_from_text() -> None:
    assert numbers("x", "0.1, 2e-1") == (0.1, 0.2)
    assert numbers("x", None) is None
    assert numbers("x", 0.3) == (0.3,)
    for wrong in ("", "nan", "inf", "0", "-1"):
        with pytest.raises(SpecError, match="x holds"):
            numbers("x", wrong)


def test_with_more_steps_the_kinds_have_the_same_l0(
    tiny_model: Path, tiny_text: Path, tmp_path: Path
) -> None:
    arms = {"trained": {"control": "trained"}, "redraw": {"control": "redraw"}}
    table = trial_table(tiny_model, tiny_text, model_seeds=[0], sae_seeds=[0], arms=arms)
    table["text"] |= {"train_tokens": 8_000}
    table["training"] = {"batch_tokens": 32}
    short = load_trial(table)
    asked: dict[str, Any] = {"frequencies": [0.02], "magnitudes": [0.3], "repeats": 1}
    pairs = sp.spikes(short, trained(short, tmp_path / "runs"), composed=True, **asked)
    assert pairs.record["unmatched"] == []
    assert "not matched" not in pairs.text()


def test_the_report_shows_what_was_planted_and_not_what_has_changed(
    spec: TrialSpec, store: Path, found: Spikes
) -> None:
    sp.spikes(spec, store, composed=True, frequencies=[0.03], magnitudes="0.25", repeats=2)
    folder = write_trial(store / "trials" / spec.name, Settings(latents=20))
    path = folder / "trial.json"
    path.write_text(json.dumps(read_json(path) | {"spec": spec.model_dump(mode="json")}))
    section = SECTIONS["spikes"]

    def shown() -> str:
        return render_section(section, View.of(read_tables(folder)))

    page = shown()
    assert "Features planted into trained, resid_post.1, topk" in page
    assert "Pairs planted into trained, resid_post.1, topk" in page
    assert "Not matched: the L0 of relu" in page
    whole = found.summary[found.summary["frequency"].isna()].set_index("name")
    lost = 100 * whole.loc["lost", "value"]
    assert f'<span class="value">{lost:.0f}%</span>' in page
    assert page.count('data-n="') > 20
    for cell in re.findall(
        r'<td class="estimate num" data-n="([^"]*)">(.*?)</td>', page, re.DOTALL
    ):
        n, said = cell
        assert n
        assert 'class="interval"' in said or 'class="reason"' in said
    heading = "Features planted into trained"
    n_whole = page.count(heading)
    summary = found.folder / "summary.parquet"
    before = summary.read_bytes()
    summary.write_bytes(before[:-1])
    page = shown()
    assert "is not what was written (summary.parquet has" in page
    assert page.count(heading) == n_whole - 1
    summary.write_bytes(before)
    path.write_text(json.dumps(read_json(path) | {"spec": {"name": "other"}}))
    assert "is of a trial of this name with other settings" in shown()
    shutil.rmtree(folder)


def test_without_spikes_the_report_says_how_to_plant_them(tmp_path: Path) -> None:
    folder = write_trial(tmp_path / "trials" / "demo", Settings(latents=20))
    page = render_section(SECTIONS["spikes"], View.of(read_tables(folder)))
    assert "sae-placebo spikes TRIAL_FILE --store RUNS --composed" in page
