"""What a trial is expected to take, from its counts, and where it stands: nothing here is timed or run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import trial_table
from sae_placebo.core.checkpoints import State, Work
from sae_placebo.core.progress import Progress
from sae_placebo.core.store import Step, Store
from sae_placebo.models.specs import shape_of
from sae_placebo.trial import run as trial_module
from sae_placebo.trial.estimates import estimate, of_usual_machine, rates_key
from sae_placebo.trial.machine import Machine, load, save, usual_threads
from sae_placebo.trial.plan import Plan, plan_steps
from sae_placebo.trial.remaining import outlook_of, remaining
from sae_placebo.trial.spec import load_trial

ARMS = {
    "trained": {"control": "trained"},
    "redraw": {"control": "redraw"},
    "frozen": {"dictionary": "frozen_decoder"},
}
Planner = Callable[..., Plan]


@pytest.fixture
def planned(tiny_model: Path, tiny_text: Path) -> Planner:
    """Return plans of a tiny trial with some settings changed."""

    def plan(**changes: Any) -> Plan:
        table = trial_table(tiny_model, tiny_text, arms=ARMS)
        for key, value in changes.items():
            *parents, last = key.split("__")
            inner = table
            for parent in parents:
                inner = inner[parent]
            inner[last] = value
        return plan_steps(load_trial(table))

    return plan


def seconds(
    plan: Plan, machine: Machine | None = None, done: tuple[str, ...] = ()
) -> dict[str, float]:
    """Return the seconds of each stage; steps of the stages in `done` are not left."""
    found: dict[str, float] = {}
    machine = machine or of_usual_machine(plan.spec, threads=1)  # not as many as the tests have
    for piece in estimate(plan, lambda step: step.stage not in done, machine):
        found[piece.stage] = found.get(piece.stage, 0.0) + piece.seconds
    return found


def test_every_stage_has_its_minutes(planned: Planner) -> None:
    plan = planned()
    found = seconds(plan)
    assert set(found) == {step.stage for step in plan.steps()} | {"report"}
    assert all(value > 0 for value in found.values())


def test_what_is_done_costs_nothing(planned: Planner) -> None:
    stages = {step.stage for step in planned().steps()}
    left = seconds(planned(), done=tuple(stages - {"use"}))
    assert set(left) == {"build", "use", "report"}  # the model is loaded, and built again
    assert set(seconds(planned(), done=tuple(stages))) == {"report"}


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("train", {"text__train_tokens": 60_000}),
        ("train", {"sae_seeds": [0, 1, 2, 3]}),
        ("harvest", {"text__heldout_tokens": 20_000}),
        ("measure", {"text__heldout_tokens": 20_000}),
        ("profile", {"sae_seeds": [0, 1, 2, 3, 4, 5, 6, 7]}),
        ("baselines", {"model_seeds": [0, 1, 2, 3]}),
        ("baselines", {"baselines__iterations": 30_000}),
        ("use", {"use__latents": 32}),
        ("use", {"use__nulls": 99}),
        ("use", {"use__masks": {"n_masks": 640, "n_tokens": 1_000}}),
        ("use", {"use__arms": ["trained", "redraw", "frozen"]}),
        ("audit", {"audit__tokens": 1_024}),
        ("audit", {"audit__meta_steps": 10_000}),
    ],
)
def test_more_of_it_takes_longer(planned: Planner, stage: str, changes: dict[str, Any]) -> None:
    few, many = seconds(planned())[stage], seconds(planned(**changes))[stage]
    assert many > 1.004 * few


def test_a_control_of_the_dictionary_reads_no_activations_of_its_own(planned: Planner) -> None:
    two = {name: arm for name, arm in ARMS.items() if name != "frozen"}
    without, beside = seconds(planned(arms=two)), seconds(planned())
    assert beside["harvest"] == pytest.approx(without["harvest"])
    assert without["train"] < beside["train"] < 2 * without["train"]


def test_draws_are_fitted_to_the_training_tokens_before_they_are_read(planned: Planner) -> None:
    models = {arm: ARMS[arm] for arm in ("trained", "redraw")}
    drawn = {kind: models | {kind: {"data": kind}} for kind in ("gaussian", "surrogate")}
    machine = replace(of_usual_machine(planned().spec, 1), reading=1e-2)  # the model takes longest
    for arms in drawn.values():
        few, many = (seconds(planned(arms=one, model_seeds=[0]), machine) for one in (models, arms))
        # the moments' pass reads 6,000 tokens; held-out tokens and those to train on are drawn
        assert many["harvest"] - few["harvest"] == pytest.approx(60, rel=0.2)
        assert many["train"] - few["train"] < 30


def test_more_threads_take_less(planned: Planner) -> None:
    plan = planned()
    one, four = (seconds(plan, of_usual_machine(plan.spec, n)) for n in (1, 4))
    for stage in ("harvest", "train", "measure", "profile", "baselines", "use"):
        assert four[stage] < one[stage]


def test_a_slower_machine_takes_longer(planned: Planner) -> None:
    plan = planned()
    usual = of_usual_machine(plan.spec, 2)
    slow = replace(usual, numbers=0.5, code=0.5)
    for stage in ("tokenize", "measure", "profile", "baselines"):
        assert seconds(plan, slow)[stage] == pytest.approx(2 * seconds(plan, usual)[stage], rel=0.2)


def test_sizes_of_a_model_are_known_without_torch(planned: Planner) -> None:
    found = shape_of(planned().spec.model)
    assert (found.layers, found.width, found.vocabulary) == (3, 32, 512)
    assert found.layer_weights == 32 * (4 * 32 + 3 * 64)


def test_a_probe_is_kept_for_runs_of_the_same_sizes(planned: Planner, tmp_path: Path) -> None:
    plan, wider = planned(), planned(saes__topk={"kind": "topk", "d_sae": 128, "k": 4})
    found = replace(of_usual_machine(plan.spec, usual_threads()), numbers=0.25, key=rates_key(plan))
    assert load(tmp_path, rates_key(plan)) is None
    save(found, tmp_path)
    assert load(tmp_path, rates_key(plan)) == found
    assert load(tmp_path, rates_key(wider)) is None
    assert not outlook_of(plan, Store(tmp_path)).rough
    assert outlook_of(wider, Store(tmp_path)).rough
    (tmp_path / "machine.json").write_text(json.dumps(asdict(found) | {"unheard_of": 1}))
    assert load(tmp_path, rates_key(plan)) is None


def finish(store: Store, steps: list[Step]) -> None:
    for step in steps:
        with store.write(step, seconds=10.0) as draft:
            (draft / "file").write_text("whole")


def test_a_trial_says_from_where_it_goes_on(planned: Planner, tmp_path: Path) -> None:
    plan, store = planned(), Store(tmp_path)
    steps = list(plan.steps())
    n = len(steps)
    assert remaining(plan, store) == f"none of {n} steps is done"
    finish(store, steps[:3])
    goes_on = f"goes on at {steps[3].stage} of {steps[3].name}"
    assert remaining(plan, store) == f"3 of {n} steps are done; {goes_on}"
    assert outlook_of(plan, store).spent == pytest.approx(30, abs=1)
    finish(store, steps[3:])
    assert remaining(plan, store) == f"all {n} steps are done"


def test_artefacts_of_an_older_version_are_said_to_be_old(planned: Planner, tmp_path: Path) -> None:
    plan, store = planned(), Store(tmp_path)
    before = remaining(plan, store)
    finish(store, [Step("match", "trained", 3, {}, ())])  # what `profile` was called
    told = remaining(plan, store)
    assert told == (
        f"{before}; {str(tmp_path / 'match')!r}, of an older version of sae-placebo, is not read and can be "
        "deleted"
    )


def test_a_stopped_training_is_named_with_how_far_it_was(planned: Planner, tmp_path: Path) -> None:
    plan, store = planned(), Store(tmp_path)
    group = [plan.train[one] for one in plan.groups[0]]
    work = Work(store, group, "weights")
    work._save("moments", State(6_000, {}, [("x", {"x": torch.zeros(1)})]))
    work._save("train", State(2_280, {}, [("x", {"x": torch.zeros(1)})]))
    told = remaining(plan, store)
    assert told.endswith("a training of frozen, trained stopped at 38% goes on from its checkpoint")
    finish(store, group)
    assert "checkpoint" not in remaining(plan, store)


class Notes(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def test_where_a_run_goes_on_is_said_before_anything_is_loaded(
    planned: Planner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, notes = planned(), Notes()
    finish(Store(tmp_path), list(plan.steps())[:2])

    class Loaded(Exception):
        pass

    def loads(*_: Any) -> Any:
        raise Loaded

    for name in ("environment", "describe_device"):
        monkeypatch.setattr(trial_module, name, loads)
    monkeypatch.setattr(Store, "find", loads)  # which hashes files
    with pytest.raises(Loaded):
        trial_module.run(plan.spec, tmp_path, progress=notes)
    assert len(notes.notes) == 1
    assert notes.notes[0].startswith(f"2 of {len(list(plan.steps()))} steps are done; goes on at")
    assert "from counts and a usual machine" in notes.notes[0]
