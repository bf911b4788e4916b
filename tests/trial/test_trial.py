"""A whole trial on a tiny model: its tables, its resumption, its refusals."""

from __future__ import annotations

import contextlib
import hashlib
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import sae_placebo as sp
from conftest import save_model, save_tokenizer, trial_table, write_toml
from sae_placebo.core.errors import ModelError, PlaceboError, StageFault, StoreError
from sae_placebo.core.progress import Progress
from sae_placebo.core.sealing import file_hash, read_json, sealed, write_json
from sae_placebo.core.tables import SCHEMAS
from sae_placebo.trial import results
from sae_placebo.trial.plan import plan_steps
from sae_placebo.trial.results import EVERY_METRIC, TABLES
from sae_placebo.trial.spec import load_trial
from sae_placebo.trial.tables.ties import lacking


class Spy(Progress):
    """Keeps what was worked on."""

    def __init__(self) -> None:
        self.labels: list[str] = []
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    @property
    def told(self) -> list[str]:
        """What was said, beside the line that says where the run goes on."""
        return [note for note in self.notes if " steps are done" not in note]

    @property
    def made(self) -> list[str]:
        """What was worked on, beside the look at what is there."""
        return [label for label in self.labels if label != "check what is there"]

    def track(self, label: str, total: int, unit: str = "tokens", before: int = 0) -> Any:
        self.labels.append(label)
        return super().track(label, total, unit, before)


def hashes(folder: Path) -> dict[str, str]:
    return {
        name: hashlib.sha256((folder / f"{name}.parquet").read_bytes()).hexdigest()
        for name in TABLES
    }


@pytest.fixture(scope="module")
def table(tiny_model: Path, tiny_text: Path) -> dict[str, Any]:
    return trial_table(tiny_model, tiny_text)


@pytest.fixture(scope="module")
def finished(table: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> sp.Trial:
    """A finished trial; tests that change its store copy it first."""
    return sp.run(table, tmp_path_factory.mktemp("finished"))


def copied(trial: sp.Trial, to: Path) -> Path:
    store = trial.folder.parents[1]
    shutil.copytree(store, to, dirs_exist_ok=True)
    return to


def test_the_folder_holds_the_documented_files(finished: sp.Trial) -> None:
    assert {path.stem for path in finished.folder.glob("*.parquet")} == set(TABLES)
    for name in TABLES:
        assert set(SCHEMAS[name].names) <= set(getattr(finished, name).columns)
    assert finished.report.exists()
    assert set(finished.record["arms"]) == {"trained", "redraw", "redraw_keep_embeddings"}


def test_ties_stand_beside_both_re_draws_and_their_a_a(finished: sp.Trial) -> None:
    both = ("redraw_keep_embeddings", "redraw")
    ties = finished.ties
    ties = ties[(ties["class"] == "all") & (ties["measure"] == "tied")]
    found = {(row.comparison, row.arm, row.control): row for row in ties.itertuples()}
    expected = {("contrast", "trained", arm) for arm in both} | {("aa", arm, arm) for arm in both}
    shares = {arm: row for (kind, arm, _), row in found.items() if kind == "share"}
    assert set(shares) == {"trained", *both}
    assert {key for key in found if key[0] != "share"} == expected
    assert all(row.n_saes == 2 and row.n_latents > 0 for row in shares.values())
    for arm in both:
        row = found["contrast", "trained", arm]
        assert row.value == pytest.approx(shares["trained"].value - shares[arm].value)
        assert -1 <= row.low <= row.value <= row.high <= 1
        aa = found["aa", arm, arm]
        assert (aa.n_saes, aa.control_saes) == (1, 1)
        assert aa.low <= aa.value <= aa.high
    asked = finished.use
    first = asked[(asked["arm"] == "trained") & asked["tied"].notna()]
    both_small = (first["written_p"] <= 0.05) & (first["read_p"] <= 0.05)
    assert (first["tied"] == both_small).all()


def test_directions_that_nobody_trained_are_asked_beside_latents(finished: sp.Trial) -> None:
    for one in finished.record["use"]:
        used, of_latents = one["untrained"]["used"], one["shares"]["used"]
        assert [one[kind]["n"] for kind in ("pseudo", "covariance", "untrained")] == [4, 2, 3]
        assert used["low"] <= used["share"] <= used["high"]
        margin = one["untrained"]["margin"]
        assert margin["share"] == pytest.approx(of_latents["share"] - used["share"])
        assert -1 <= margin["low"] <= margin["share"] <= margin["high"] <= 1
    kinds = pd.read_parquet(finished.folder / "directions.parquet").groupby("arm")["kind"]
    assert all(set(kind) == {"error", "pseudo", "covariance", "untrained"} for _, kind in kinds)


def test_a_trial_without_a_kind_of_re_draw_says_so(table: dict[str, Any]) -> None:
    arms = {name: arm for name, arm in table["arms"].items() if name != "redraw"}
    plan = plan_steps(load_trial(table | {"arms": arms}))
    (sentence,) = lacking(plan)
    assert "add arms.redraw.control = 'redraw'" in sentence
    assert lacking(plan_steps(load_trial(table))) == []
    table = table | {"circuits": table["circuits"] | {"arms": ["trained", "redraw"]}}
    assert lacking(plan_steps(load_trial(table))) == [
        "circuits.arms leaves redraw_keep_embeddings out"
    ]
    nothing = table | {"use": {"arms": []}, "circuits": {}}
    assert not plan_steps(load_trial(nothing)).ties


def test_a_writer_that_forgets_a_column_fails_and_the_result_stays(
    finished: sp.Trial, table: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = copied(finished, tmp_path)
    whole = results.l0_matches
    monkeypatch.setattr(
        results, "l0_matches", lambda *given: whole(*given).drop(columns="tolerance")
    )
    with pytest.raises(StageFault, match=r"matching\.parquet: the column 'tolerance' is missing"):
        sp.run(table, store)
    monkeypatch.undo()
    again = sp.Trial(store / "trials" / "tiny")
    again.check()
    assert again.matching["tolerance"].notna().all()


def test_latents_have_a_row_per_arm_seed_and_latent(finished: sp.Trial) -> None:
    table = finished.latents
    assert len(table) == 5 * 2 * 64
    assert table["class"].notna().all()
    assert table.groupby("arm")["model_seed"].nunique().to_dict() == {
        "redraw": 2,
        "redraw_keep_embeddings": 2,
        "trained": 0,
    }


def test_effects_stand_beside_their_null_interval_n_and_placebo(finished: sp.Trial) -> None:
    table = finished.effects
    assert set(zip(table["arm"], table["control"], strict=True)) == {
        ("trained", "redraw"),
        ("trained", "redraw_keep_embeddings"),
        ("redraw_keep_embeddings", "redraw"),
    }
    assert set(table["metric"]) == set(EVERY_METRIC)
    assert set(sp.METRICS) < set(EVERY_METRIC)
    estimated = table[table["low"].notna()]
    assert len(estimated) > 20
    assert (estimated["low"] <= estimated["effect"]).all()
    assert (estimated["effect"] <= estimated["high"]).all()
    assert (table["low"].notna() | table["reason"].notna()).all()
    known = table[table["effect"].notna()]
    assert (known["n_sae_seeds"] == 2).all()
    assert (known["n_control_models"] == 2).all()
    of_trained = table[table["arm"] == "trained"]
    assert (of_trained["n_arm_models"].dropna() == 1).all()
    shares = known[known["metric"].str.startswith("share_")]
    assert len(shares) >= 3 * 3
    for _, group in shares.groupby(["arm", "control"]):
        # of so little text most shares of classes that read the ladder are withheld
        assert group["arm_value"].sum() <= 1.0 + 1e-9
        assert group["effect"].to_numpy() == pytest.approx(
            (group["arm_value"] - group["control_value"]).to_numpy(), abs=1e-12
        )
    measured = finished.measurements
    shares = measured[measured["metric"].str.startswith("share_")]
    for _, group in shares.groupby(["arm", "model_seed", "sae_seed"], dropna=False):
        assert group["value"].sum() == pytest.approx(1.0)


def test_every_arm_reads_the_same_tokens(finished: sp.Trial, table: dict[str, Any]) -> None:
    assert finished.latents["n_tokens"].nunique() == 1
    measured = finished.measurements
    l0 = measured[measured["metric"] == "l0"]["value"]
    assert np.allclose(l0, 4.0, atol=0.05)


def test_text_that_tries_to_break_out_of_the_page_is_text(tiny_model: Path, tmp_path: Path) -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    for i in range(60):
        (tmp_path / f"{i}.txt").write_text(f"{evil} {i} " * 12)
    table = trial_table(tiny_model, tmp_path, model_seeds=[0], sae_seeds=[0])
    table["text"] |= {"train_tokens": 3_000, "heldout_tokens": 1_000, "max_document_tokens": 124}
    page = sp.run(table, tmp_path / "store").report.read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert "onerror=alert(1)>" not in page


def test_one_seed_gives_no_interval_and_says_why(table: dict[str, Any], tmp_path: Path) -> None:
    effects = sp.run(table | {"model_seeds": [0], "sae_seeds": [0]}, tmp_path).effects
    assert effects["low"].isna().all()
    labels = effects["metric"].str.startswith("coverage")
    assert effects["reason"][labels].str.contains("the text has no labels").all()
    # bits are counted on the few documents that are scored, and some resamples have none of them
    bits = effects["metric"].str.contains(r"^sae_(?:pursuit_)?bits|^marginal_structure")
    known = effects["effect"].notna()
    assert effects["reason"][known & ~bits].str.contains("seed").all()
    assert effects["reason"].notna().all()
    withheld = effects["reason"].str.contains("withheld")  # so little text settles no share
    assert ((known & ~bits) | withheld).sum() > 0.5 * len(effects)
    assert (known & ~bits).sum() > 0.2 * len(effects)
    assert effects["aa_low"].isna().all()
    assert effects["aa_reason"].notna().all()


def test_a_second_run_does_nothing_and_changes_nothing(
    finished: sp.Trial, table: dict[str, Any], tmp_path: Path
) -> None:
    store = copied(finished, tmp_path / "store")
    spy = Spy()
    again = sp.run(table, store, progress=spy)
    assert spy.labels == ["check what is there", "compare and report"]
    assert spy.notes[0].startswith("all ")
    assert not spy.told
    assert hashes(again.folder) == hashes(finished.folder)


def test_a_new_arm_changes_no_number_of_the_others(
    finished: sp.Trial, table: dict[str, Any], tmp_path: Path
) -> None:
    store = copied(finished, tmp_path / "store")
    arms = table["arms"] | {"redraw_keep_norms": {"control": "redraw", "keep": ["norms"]}}
    spy = Spy()
    more = sp.run(table | {"arms": arms}, store, progress=spy, replace=True)
    assert not any(label.startswith("train redraw-") for label in spy.labels)
    merged = more.measurements.merge(
        finished.measurements,
        on=["arm", "model_seed", "sae_seed", "hookpoint", "sae", "metric"],
        suffixes=("", "_before"),
    )
    assert len(merged) == len(finished.measurements)
    assert np.array_equal(merged["value"], merged["value_before"], equal_nan=True)


def test_a_damaged_artefact_is_named_and_rebuilt_to_the_same_bits(
    finished: sp.Trial, table: dict[str, Any], tmp_path: Path
) -> None:
    store = copied(finished, tmp_path / "store")
    plan = plan_steps(load_trial(table))
    one = next(iter(plan.train))
    path = store / "train" / plan.train[one].folder_name / "lookup.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    measured = next(iter(plan.measure.values()))
    (store / "measure" / measured.folder_name / "coverage.parquet").write_bytes(b"PAR1")
    spy = Spy()
    again = sp.run(table, store, progress=spy)
    first, second = spy.told
    assert plan.train[one].folder_name in first
    assert "lookup.safetensors has other bytes than were written" in first
    assert "coverage.parquet has 4 bytes" in second
    assert hashes(again.folder) == hashes(finished.folder)


def test_arms_swapped_in_the_store_are_named_and_put_back(
    finished: sp.Trial, table: dict[str, Any], tmp_path: Path
) -> None:
    store = copied(finished, tmp_path / "store")
    for stage in ("train", "measure"):
        one, other = (
            next(store.glob(f"{stage}/{name}-0-*")) for name in ("redraw", "redraw_keep_embeddings")
        )
        one.rename(store / "kept")
        other.rename(one)
        (store / "kept").rename(other)
    spy = Spy()
    again = sp.run(table, store, progress=spy)
    assert spy.made == ["compare and report"]
    assert len(spy.told) == 2
    assert all("had changed places with redraw" in note for note in spy.told)
    assert hashes(again.folder) == hashes(finished.folder)


def test_another_trials_artefact_is_named_and_the_stage_is_done_again(
    finished: sp.Trial, table: dict[str, Any], tmp_path: Path
) -> None:
    store = copied(finished, tmp_path / "store")
    first, second = sorted((store / "measure").iterdir())[:2]
    shutil.rmtree(first)
    shutil.copytree(second, first)
    spy = Spy()
    again = sp.run(table, store, progress=spy)
    assert spy.made == ["measure 1 SAEs", "compare and report"]
    assert f"{first.name} is damaged (it is that of measure/{second.name})" in spy.told[0]
    assert (first.with_name(f"{first.name}.aside-1") / "codes.safetensors").exists()
    assert hashes(again.folder) == hashes(finished.folder)


def test_a_table_that_was_changed_is_made_anew_and_kept(
    finished: sp.Trial, table: dict[str, Any], tmp_path: Path
) -> None:
    store, spy = copied(finished, tmp_path / "store"), Spy()
    path = store / "trials" / "tiny" / "effects.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(StoreError, match="is not what the trial wrote"):
        _ = sp.Trial(path.parent).effects
    again = sp.run(table, store, progress=spy)
    assert hashes(again.folder) == hashes(finished.folder)
    assert len(spy.told) == 1
    assert path.with_name("effects.parquet.aside-1").read_bytes() == b"PAR1"
    again.check()


@pytest.mark.slow
def test_killed_at_random_points_and_resumed_gives_identical_results(
    finished: sp.Trial, table: dict[str, Any], tmp_path: Path
) -> None:
    path, store = write_toml(tmp_path / "trial.toml", table), tmp_path / "store"
    command = [
        sys.executable,
        "-m",
        "sae_placebo.cli.main",
        "run",
        str(path),
        "--store",
        str(store),
    ]
    draw = random.Random(7)
    finished_before: dict[Path, int] = {}
    for _ in range(5):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        # where it goes on, a look at what is there and the model's loading, then so many pieces of work
        # end; then a moment passes
        for _ in range(3 + draw.randint(3, 9)):
            process.stderr.readline()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0.0, 0.25))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (store / "trials").exists()
        done = {path: path.stat().st_mtime_ns for path in store.glob("*/*/manifest.json")}
        assert finished_before.items() <= done.items()  # what was finished is not done again
        finished_before = done
    assert 3 < len(finished_before) < len(list(plan_steps(load_trial(path)).steps()))
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert hashes(store / "trials" / "tiny") == hashes(finished.folder)


def test_a_damaged_text_is_noticed_even_when_all_else_is_done(
    finished: sp.Trial, table: dict[str, Any], tmp_path: Path
) -> None:
    store = copied(finished, tmp_path / "store")
    path = next(store.glob("tokenize/*/names.json"))
    path.write_text(path.read_text().replace("corpus", "corpse", 1))
    spy = Spy()
    again = sp.run(table, store, progress=spy)
    assert "names.json" in spy.told[0]
    assert hashes(again.folder) == hashes(finished.folder)


def test_a_control_that_draws_otherwise_is_not_mixed_with_its_old_saes(
    finished: sp.Trial, table: dict[str, Any], tmp_path: Path
) -> None:
    store = copied(finished, tmp_path / "store")
    folder = next(store.glob("train/redraw-0-*"))
    recipe = read_json(folder / "recipe.json") | {"read_hash": "0" * 64}
    write_json(folder / "recipe.json", recipe)
    manifest = read_json(folder / "manifest.json")
    facts = {"bytes": (folder / "recipe.json").stat().st_size}
    facts["sha256"] = file_hash(folder / "recipe.json")
    manifest["files"]["recipe.json"] = facts
    write_json(folder / "manifest.json", sealed(manifest))
    shutil.rmtree(next(store.glob("build/redraw-0-*")))
    with pytest.raises(ModelError, match=r"arm redraw-0: other weights than behind the .* train"):
        sp.run(table, store)


def test_a_recipe_has_one_gaussian_null_which_takes_the_steps_of_its_saes(
    finished: sp.Trial, table: dict[str, Any]
) -> None:
    rates = {}
    for folder in (finished.folder.parents[1] / "train").iterdir():
        log = pd.read_parquet(folder / "log.parquet")
        rates[folder.name] = log[log["sae_seed"] == 0]["learning_rate"].tolist()
        nulls = read_json(folder / "gaussian.json")["resid_post.1"]["topk"]
        assert set(nulls) == {"0"}
        assert all(0 < null["explained_variance"] < 1 for null in nulls.values())
    first = next(iter(rates.values()))
    assert len(first) > 20
    assert all(other == first for other in rates.values())  # step sizes are matched between arms


def test_a_model_that_gives_nan_names_arm_and_layer(table: dict[str, Any], tmp_path: Path) -> None:
    import torch

    model = save_model(tmp_path / "model")
    with torch.no_grad():  # finite weights, whose products are not
        model.model.layers[1].mlp.down_proj.weight[0] = 3e38
    model.save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model")
    broken = table | {"model": {"id": str(tmp_path / "model")}}
    with pytest.raises(ModelError, match=r"arm trained: .*resid_post.1"):
        sp.run(broken, tmp_path / "store")


def test_a_model_without_a_tokenizer_is_refused(table: dict[str, Any], tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    with pytest.raises(ModelError, match="tokenizer"):
        sp.run(table | {"model": {"id": str(tmp_path / "model")}}, tmp_path / "store")


def test_a_hub_id_without_a_network_is_one_sentence(table: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(PlaceboError) as caught:
        sp.run(table | {"model": {"id": "nobody/nothing-here"}}, tmp_path)
    assert "nobody/nothing-here" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_results_that_are_not_there_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="run the trial to its end"):
        _ = sp.Trial(str(tmp_path)).effects


def test_saved_saes_are_in_model_units_and_carry_their_provenance(
    finished: sp.Trial, table: dict[str, Any]
) -> None:
    import json

    import torch

    from sae_placebo.models.activation_files import read_activations
    from sae_placebo.saes.formats import saelens
    from sae_placebo.trial.artefacts import sae_folder

    plan = plan_steps(load_trial(table))
    store = finished.folder.parents[1]
    for one, step in plan.train.items():
        folder = sae_folder(store / "train" / step.folder_name, "resid_post.1", "topk", 0)
        metadata = json.loads((folder / "cfg.json").read_text())["metadata"]
        assert metadata["arm"] == one.arm
        assert len(metadata["weight_hash"]) == 64
        x = read_activations(store / "harvest" / plan.harvest[one].folder_name, "resid_post.1")
        sae = saelens.read(folder)
        error = (x - sae.decode(sae.encode(x))).square().sum() / (x - x.mean(0)).square().sum()
        assert float(error) < 1.0
        assert torch.allclose(sae.params["W_dec"].norm(dim=1), torch.ones(64), atol=1e-5)


def test_tables_are_plain_parquet(finished: sp.Trial) -> None:
    assert pd.read_parquet(finished.folder / "effects.parquet").equals(finished.effects)


def test_every_audit_is_made_of_the_trained_sae_and_the_placebos(finished: sp.Trial) -> None:
    from sae_placebo.audits import AUDITS

    found = finished.audits
    assert set(found["arm"]) == {"trained", "redraw_keep_embeddings"}
    for _, rows in found.groupby("arm"):
        assert list(dict.fromkeys(rows["audit"])) == list(AUDITS)
    # what has no value says why
    missing = found[found["value"].isna()]
    assert (missing["reason"].str.len() > 0).all()
    assert set(finished.record["audits"]) == set(AUDITS)
    html = finished.report.read_text(encoding="utf-8")
    assert "Where this SAE misleads" in html
