"""Trainings that stop anywhere and go on to the same bits; arms that share one pass."""

from __future__ import annotations

import math
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import trial_table, write_toml
from sae_placebo.core import checkpoints, interrupts
from sae_placebo.core.checkpoints import Work
from sae_placebo.core.devices import describe_device, settings
from sae_placebo.core.errors import SpecError
from sae_placebo.core.progress import Progress
from sae_placebo.core.sealing import read_json, sealed, write_json
from sae_placebo.core.store import MANIFEST, Store
from sae_placebo.data.token_files import read_rows
from sae_placebo.models.surrogate import SurrogateCounting
from sae_placebo.saes.training import Fit
from sae_placebo.trial.artefacts import Artefacts
from sae_placebo.trial.plan import ArmModel, plan_steps
from sae_placebo.trial.recipes import read_hash
from sae_placebo.trial.results import environment
from sae_placebo.trial.spec import load_trial
from sae_placebo.trial.stages import stream
from sae_placebo.trial.stages.build import build_arms
from sae_placebo.trial.stages.harvest import harvest_arms
from sae_placebo.trial.stages.train import train_arms

ARMS: dict[str, Any] = {
    "trained": {"control": "trained"},
    "redraw": {"control": "redraw"},
    "pca": {"dictionary": "pca"},
    "frozen": {"dictionary": {"kind": "frozen_decoder", "init": "cov"}},
    "soft_frozen": {"dictionary": "soft_frozen"},
    "gaussian": {"data": "gaussian"},
    "surrogate": {"data": {"kind": "surrogate", "key": "pair"}},
}


class Spy(Progress):
    """Keeps what was worked on, from where, and what was noted."""

    def __init__(self) -> None:
        self.before: dict[str, int] = {}
        self.total: dict[str, int] = {}
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def track(self, label: str, total: int, unit: str = "tokens", before: int = 0) -> Any:
        self.before[label], self.total[label] = before, total
        return super().track(label, total, unit, before)


@pytest.fixture(scope="module")
def table(tiny_model: Path, tiny_text: Path) -> dict[str, Any]:
    table = trial_table(tiny_model, tiny_text, arms=ARMS, model_seeds=[0], name="stopped")
    table["hookpoints"] = ["resid_post.0", "resid_post.1"]
    table["text"] |= {"train_tokens": 4_000, "heldout_tokens": 1_000}
    table["harvest"] = {"block_rows": 48, "calibration_rows": 32, "card_rows": 16}
    table["measurement"] = {"replicates": 20, "shown_per_class": 1}
    return table


def train(table: dict[str, Any], store: Path, progress: Progress | None = None) -> None:
    """Do what `run` does up to the measurements."""
    progress = progress or Progress()
    place = Store(store, progress.note, environment() | describe_device("cpu"))
    with place.lock(), settings("cpu"), interrupts.listening():
        checkpoints.clear(place)
        artefacts = Artefacts(plan_steps(load_trial(table)), place, progress)
        for arms in artefacts.plan.groups:
            model = build_arms(artefacts, arms)
            if model is not None:
                train_arms(artefacts, arms, harvest_arms(artefacts, arms, model))


@pytest.fixture(scope="module")
def finished(table: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("uninterrupted")
    train(table, store)
    return store


@pytest.fixture(scope="module")
def few(table: dict[str, Any]) -> dict[str, Any]:
    """One group of three arms."""
    return table | {"arms": {arm: ARMS[arm] for arm in ("trained", "pca", "soft_frozen")}}


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write checkpoints as if a trial took hours, however long one takes to write."""
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 0.1)
    monkeypatch.setattr(checkpoints, "STOP_SECONDS", math.inf)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch, often: None) -> None:
    """Write a checkpoint after every step."""
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "_WORK_PER_WRITING", 0.0)


def content(store: Path) -> dict[str, bytes]:
    """Return every file of the train artefacts but the manifests, which hold the time taken."""
    return {
        path.relative_to(store).as_posix(): path.read_bytes()
        for path in sorted((store / "train").rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


def stop_at(
    monkeypatch: pytest.MonkeyPatch,
    n: int,
    stop: Callable[[], None],
    of: type = Fit,
    name: str = "step",
) -> None:
    """Call `stop` in the n-th step from here on, of an optimizer or another, before it is taken."""
    taken, step = 0, getattr(of, name)

    def counted(self: Any, *arguments: Any, **named: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == n:
            stop()
        return step(self, *arguments, **named)

    monkeypatch.setattr(of, name, counted)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def stopped(
    table: dict[str, Any], store: Path, n: int, stop: Callable[[], None] = interrupt
) -> None:
    """Run a trial that is stopped in its n-th optimizer step."""
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, n, stop)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            train(table, store)


KILLED = """
import os, signal, sys
from sae_placebo.cli import main as cli
from sae_placebo.core import checkpoints
from sae_placebo.models.surrogate import SurrogateCounting
from sae_placebo.saes.training import Fit

checkpoints.CHECKPOINT_SECONDS = float(sys.argv.pop(1))
checkpoints._WORK_PER_WRITING = 0.0  # also on a disk that takes long to write one
left, step = int(sys.argv.pop(1)), Fit.step

def counted(self, *arguments, **named):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *arguments, **named)

Fit.step = counted
cli.main()
"""


@pytest.mark.slow
def test_killed_at_five_random_steps_it_ends_in_the_same_bytes(
    finished: Path, table: dict[str, Any], tmp_path: Path
) -> None:
    path, store = write_toml(tmp_path / "trial.toml", table), tmp_path / "store"
    draw, resumed = random.Random(4), 0
    before: dict[Path, int] = {}
    run = ["run", str(path), "--store", str(store)]
    for _ in range(
        5
    ):  # of some 800 optimizer steps: 6 arms x 4 SAEs, as many nulls, 17 batches each
        command = [sys.executable, "-c", KILLED, "0.02", str(draw.randint(40, 150)), *run]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        resumed += "before a stop" in done.stderr
        assert "ignored" not in done.stderr
        whole = {p: p.stat().st_mtime_ns for p in store.glob("*/*/*") if p.name == MANIFEST}
        assert before.items() <= whole.items()  # what was finished is not done again
        before = whole
    command = [sys.executable, "-m", "sae_placebo.cli.main", *run]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert resumed + ("before a stop" in done.stderr) >= 2
    assert content(store) == content(finished)
    assert not (store / "checkpoints").exists()


@pytest.fixture(scope="module")
def n_steps(finished: Path) -> int:
    import pandas as pd

    log = pd.read_parquet(next(finished.glob("train/trained-*")) / "log.parquet")
    return int(log.groupby(["hookpoint", "sae", "sae_seed"]).size().iloc[0])


# in the first step, in the middle of a block, of a batch and at the end; in the nulls, at the second
# hookpoint's
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0, 1.4])
def test_an_interrupt_ends_the_step_and_is_gone_on_from(
    finished: Path, few: dict[str, Any], tmp_path: Path, share: float, n_steps: int
) -> None:
    store, n, name = tmp_path / "store", int(share * 12 * n_steps) + 1, "trained and 2 more"
    n -= share == 1.0
    stopped(few, store, n)
    spy = Spy()
    train(few, store, spy)
    assert not spy.notes
    done = min(-(-n // 12), n_steps) / n_steps
    assert spy.before[f"train {name}"] == pytest.approx(done * spy.total[f"train {name}"], abs=256)
    done = max(-(-(n - 12 * n_steps) // 3), 0) / n_steps / 2
    total = spy.total[f"gaussian null {name}"]
    assert spy.before[f"gaussian null {name}"] == pytest.approx(done * total, abs=256)
    assert content(store).items() <= content(finished).items()
    assert len(list(store.glob("train/*"))) == 3
    assert not (store / "checkpoints").exists()
    assert read_json(next(store.glob("train/trained-*")) / MANIFEST)["seconds"] > 0


def test_sigterm_is_an_exit_that_keeps_the_work(few: dict[str, Any], tmp_path: Path) -> None:
    store, handlers = tmp_path / "store", signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 50, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit) as caught:
            train(few, store)
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is handlers
    assert list(store.glob("checkpoints/*/train-*"))


def test_an_error_in_the_middle_of_a_step_leaves_no_checkpoint(
    few: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_SECONDS", math.inf)
    store = tmp_path / "store"

    def somebody_elses() -> None:
        raise KeyboardInterrupt  # not held back: some of the SAEs have taken the step

    stopped(few, store, 21, somebody_elses)
    assert not list(store.glob("checkpoints/*/train-*"))


def test_arms_that_read_the_same_activations_share_one_pass(
    table: dict[str, Any], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_steps(load_trial(table))
    assert [[one.arm for one in group] for group in plan.groups] == [
        ["trained", "pca", "frozen", "soft_frozen"],
        ["redraw"],
        ["gaussian"],
        ["surrogate"],
    ]
    read, blocks = [0], stream.TrainingStream.blocks

    def counted(passed: stream.TrainingStream, first: int = 0) -> Any:
        read[0] += len(passed.rows.lengths) - first * passed.spec.harvest.block_rows
        return blocks(passed, first)

    monkeypatch.setattr(stream.TrainingStream, "blocks", counted)
    alone = tmp_path / "alone"
    pair = {arm: ARMS[arm] for arm in ("trained", "redraw")}
    train(table | {"arms": pair}, alone)
    before, read[0] = content(alone), 0
    spy = Spy()
    train(table | {"arms": {**pair, "pca": ARMS["pca"]}}, alone, spy)
    assert "train trained" not in spy.total
    n_rows, added = _training_rows(alone, plan), read[0]
    assert added == 2 * n_rows  # once for moments, once for training
    train(table, alone)
    # two more arms; gaussian and surrogate, each once to fit what is drawn and once for training
    assert read[0] - added == 6 * n_rows
    assert before.items() <= content(alone).items()
    assert content(alone) == content(finished)


def _training_rows(store: Path, plan: Any) -> int:
    return len(read_rows(store / "tokenize" / plan.tokenize.folder_name)["train"].lengths)


def test_an_arm_that_is_added_after_a_stop_does_not_cost_the_others_theirs(
    finished: Path, table: dict[str, Any], few: dict[str, Any], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    pair = {arm: ARMS[arm] for arm in ("trained", "soft_frozen")}
    stopped(table | {"arms": pair}, store, 60)
    spy = Spy()
    train(few, store, spy)
    assert spy.before["train trained and 1 more"] > 0
    assert spy.before["train pca"] == 0
    assert content(store).items() <= content(finished).items()


@pytest.fixture
def cut(half: Path, tmp_path: Path) -> Path:
    """A store with one training stopped half way."""
    shutil.copytree(half, tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture(scope="module")
def half(few: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("half")
    stopped(few, store, 100)
    return store


def _record(store: Path) -> Path:
    return next(store.glob("checkpoints/*/train-*/checkpoint.json"))


def _flip(store: Path) -> str:
    path = sorted(_record(store).parent.glob("*.safetensors"))[-1]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return "missing or has changed"


def _of_other_weights(store: Path) -> str:
    path = _record(store)
    write_json(path, sealed(read_json(path) | {"weights": "0" * 64}))
    return "trained on other weights"


def _of_other_versions(store: Path) -> str:
    path = _record(store)
    environment = read_json(path)["environment"] | {"torch": "0.1"}
    write_json(path, sealed(read_json(path) | {"environment": environment}))
    return "written under another torch"


def _of_other_steps(store: Path) -> str:
    home = _record(store).parents[1]
    home.rename(home.with_name("0" * 16))
    return "of other steps than its folder"


@pytest.mark.parametrize("damage", [_flip, _of_other_weights, _of_other_versions, _of_other_steps])
def test_a_damaged_or_foreign_checkpoint_is_named_and_never_trusted(
    cut: Path, few: dict[str, Any], damage: Callable[[Path], str]
) -> None:
    plan = plan_steps(load_trial(few))
    notes: list[str] = []
    store = Store(cut, notes.append, environment() | describe_device("cpu"))
    (group,) = plan.groups
    weights = read_hash(store.path(plan.build[group[0]]))
    work = Work(store, [plan.train[one] for one in group], weights)
    found = work.load("train")
    assert found is not None
    assert found.done > 0
    assert not notes
    said = damage(cut)
    assert work.load("train") is None
    assert len(notes) == 1
    assert "is ignored (" in notes[0]
    assert said in notes[0]


def test_a_checkpoint_that_does_not_fit_is_not_gone_on_from(
    cut: Path, few: dict[str, Any], finished: Path
) -> None:
    path, spy = _record(cut), Spy()
    record = read_json(path)
    name = next(name for name in record["files"] if name.startswith("fit"))
    record["files"][name] = record["files"]["steps"]
    write_json(path, sealed(record))
    train(few, cut, spy)
    assert "ignored (it does not fit" in spy.notes[0]
    assert spy.before["train trained and 2 more"] == 0
    assert content(cut).items() <= content(finished).items()


def test_a_checkpoint_that_cannot_be_read_is_named_and_removed(cut: Path) -> None:
    path = _record(cut)
    notes: list[str] = []
    path.write_text(path.read_text()[:-40])
    checkpoints.clear(Store(cut, notes.append))
    assert "its record cannot be read" in notes[0]
    assert not path.parent.exists()
    assert path.parents[1].joinpath(f"{path.parent.name}.aside-1").is_dir()


def test_what_a_finished_step_left_behind_is_removed(
    cut: Path, few: dict[str, Any], tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    shutil.copytree(cut / "checkpoints", kept)
    train(few, cut)
    shutil.copytree(kept, cut / "checkpoints")
    spy = Spy()
    train(few, cut, spy)
    assert not (cut / "checkpoints").exists()
    assert not spy.total


@pytest.mark.usefixtures("always")
def test_a_store_that_takes_no_checkpoint_does_not_stop_the_work(
    few: dict[str, Any], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Iterator[Any]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "_write_parts", full)
    spy = Spy()
    train(few, tmp_path / "store", spy)
    assert spy.notes
    assert all("no checkpoint was written" in note for note in spy.notes)
    assert content(tmp_path / "store").items() <= content(finished).items()


@pytest.mark.usefixtures("always")
def test_a_surrogate_is_fitted_to_the_same_bits_after_a_stop(
    table: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    alone = table | {"arms": {arm: ARMS[arm] for arm in ("trained", "surrogate")}}
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 2, interrupt, SurrogateCounting, "add")
        with pytest.raises(KeyboardInterrupt):
            train(alone, tmp_path)
    assert list(tmp_path.glob("checkpoints/*/source-*"))
    assert not list(tmp_path.glob("harvest/surrogate-*"))
    spy = Spy()
    train(alone, tmp_path, spy)
    assert 0 < spy.before["moments surrogate-0"] < spy.total["moments surrogate-0"]
    assert content(tmp_path).items() <= content(finished).items()
    (drawn,) = tmp_path.glob("harvest/surrogate-*/drawn.json")
    (whole,) = finished.glob("harvest/surrogate-*/drawn.json")
    assert drawn.read_bytes() == whole.read_bytes()


@pytest.mark.usefixtures("always")
def test_only_the_last_checkpoint_of_each_phase_is_kept(
    few: dict[str, Any], tmp_path: Path
) -> None:
    stopped(few, tmp_path, 100)
    phases = sorted(path.name.partition("-")[0] for path in tmp_path.glob("checkpoints/*/*-*"))
    assert phases == ["moments", "train"]


def test_the_device_is_checked_early_and_is_in_no_key(table: dict[str, Any]) -> None:
    import torch

    spec = load_trial(table)
    assert spec.device == "cpu"
    with pytest.raises(SpecError, match=r"device is 'gpu'; allowed are 'cpu', 'cuda'"):
        load_trial(table, overrides=["device=gpu"])
    elsewhere = spec.model_copy(update={"device": "cuda"})
    assert elsewhere.model_dump() == spec.model_dump()
    assert [s.key for s in plan_steps(elsewhere).steps()] == [
        s.key for s in plan_steps(spec).steps()
    ]
    if not torch.cuda.is_available():
        with pytest.raises(SpecError, match="finds no CUDA device here: write device = 'cpu'"):
            load_trial(table, overrides=["device=cuda:0"])


def test_the_device_is_recorded_in_manifests(finished: Path, table: dict[str, Any]) -> None:
    step = plan_steps(load_trial(table)).train[ArmModel("trained", None)]
    manifest = read_json(finished / "train" / step.folder_name / MANIFEST)
    assert manifest["environment"]["device"] == "cpu"


def test_steps_that_stopped_at_one_place_go_on_together(tmp_path: Path) -> None:
    from sae_placebo.core.checkpoints import State, together
    from sae_placebo.core.store import Step, Store

    a, b, c = (Step("train", name, 1, name) for name in "abc")
    store = Store(tmp_path)
    work = Work(store, [a, c], "weights")
    with pytest.raises(KeyboardInterrupt), work.during("train", lambda: State(7, {}, ())):
        raise KeyboardInterrupt
    assert together(store, [a, b, c], "train") == [[a, c], [b]]
    assert together(store, [b, c], "train") == [[b], [c]]
    assert together(store, [a, b, c], "null") == [[a, b, c]]
    alone = Work(store, [c], "weights").load("train")
    assert alone is not None
    assert alone.done == 7
    assert Work(store, [b, c], "weights").load("train") is None
