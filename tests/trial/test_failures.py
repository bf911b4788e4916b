"""One job of `use` or `audit` that cannot be done: the rest is, and nothing passes in silence."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import architecture_survey
import architectures
import sae_placebo as sp
from sae_placebo.audits.base import AUDITS
from sae_placebo.core.errors import ModelError, NotEstimable, StageFault, StoreError
from sae_placebo.core.progress import Progress
from sae_placebo.core.store import Store
from sae_placebo.trial import failures
from sae_placebo.trial.plan import plan_steps
from sae_placebo.trial.spec import load_trial
from sae_placebo.trial.stages import questions
from sae_placebo.trial.stages import use as uses


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with architectures.one_thread():
        yield


class Notes(Progress):
    """Keeps what was noted."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def raises(error: Exception) -> Any:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def test_what_fails_is_told_kept_apart_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture_survey.save("gpt2", tmp_path / "model")
    text = architecture_survey.word_text(tmp_path / "text.jsonl")
    table = architecture_survey.tiny_table(tmp_path / "model", text, ["resid_post.1", "mlp_out.1"])
    store, folder = tmp_path / "store", tmp_path / "store" / "trials" / "tiny"
    monkeypatch.setattr(
        "sae_placebo.models.loading.load_tokenizer", architecture_survey.word_tokenizer
    )
    real = uses.examine

    def fails_at_mlps(subject: Any, *rest: Any) -> Any:
        if subject.downstream.hookpoint.site == "mlp_out":
            raise TypeError("<b>forward() got an unexpected keyword</b>")
        return real(subject, *rest)

    flags = AUDITS["untrusted_tokens"]
    with monkeypatch.context() as broken:
        broken.setattr(uses, "examine", fails_at_mlps)
        spoiled = dataclasses.replace(flags, run=raises(ZeroDivisionError("by 0")))
        broken.setitem(AUDITS._entries, "untrusted_tokens", spoiled)
        notes = Notes()
        with pytest.raises(StageFault, match=r"use: trained, mlp_out\.1, topk.*TypeError") as fault:
            sp.run(table, store, progress=notes)
    # everything else is there, and both say so
    assert str(folder / "report") in str(fault.value)
    assert isinstance(fault.value.__cause__, TypeError)
    assert any("use: trained, mlp_out.1, topk failed" in note for note in notes.notes)
    trial = sp.Trial(folder)
    told = {one["hookpoint"]: one for one in trial.record["use"]}
    assert "refused" not in told["resid_post.1"]
    assert "TypeError at test_failures.py" in told["mlp_out.1"]["refused"]
    page = trial.report.read_text(encoding="utf-8")
    assert "&lt;b&gt;forward() got an unexpected keyword" in page
    audits = _audits(trial)
    for place in ("resid_post.1", "mlp_out.1"):
        assert "ZeroDivisionError" in audits[place, "untrusted_tokens"]
        assert audits[place, "random_pushes"] == ""

    # a fault is no result: its jobs, and only these, are done by the next run
    steps = plan_steps(load_trial(table))
    made = {step.key: Store(store).seconds(step) for step in steps.steps()}
    behind, times = questions._Asked.behind, list[str]()

    def once(asked: questions._Asked, hookpoint: str) -> Any:
        times.append(hookpoint)
        if len(times) > 1:  # `use` has the model, the audits do not
            raise ModelError("it has no such place")
        return behind(asked, hookpoint)

    built, models_asked = list[str](), questions.models_asked

    def counted(artefacts: Any, one: Any, hookpoints: Any) -> Any:
        built.append(one.label)
        return models_asked(artefacts, one, hookpoints)

    monkeypatch.setattr(questions, "models_asked", counted)
    monkeypatch.setattr(questions._Asked, "behind", once)
    monkeypatch.setattr(uses, "examine", raises(NotEstimable("no latent fires")))
    again = sp.run(table, store)
    assert built == ["trained"]  # once for use and for audits
    told = {one["hookpoint"]: one for one in again.record["use"]}
    assert "refused" not in told["resid_post.1"]
    assert told["mlp_out.1"]["refused"] == "no latent fires"
    audits = _audits(again)
    # a refusal takes only the audits that need the model
    assert (
        audits["mlp_out.1", "random_pushes"]
        == audits["mlp_out.1", "untrusted_tokens"]
        == "it has no such place"
    )
    assert audits["mlp_out.1", "latent_geometry"] == ""
    kept = [step for step in steps.steps() if step.stage not in ("audit", "use")]
    assert all(Store(store).seconds(step) == made[step.key] for step in kept)

    # and a refusal is one: it is not tried again
    monkeypatch.setattr(uses, "examine", raises(AssertionError("asked again")))
    monkeypatch.setattr(questions, "Downstream", raises(AssertionError("asked again")))
    assert sp.run(table, store).record["use"] == again.record["use"]


def _audits(trial: sp.Trial) -> dict[tuple[str, str], str]:
    """Return by hookpoint and audit why it has no number; nothing where it has."""
    table = pd.read_parquet(trial.folder / "audits.parquet")
    return {
        key: "" if rows["value"].notna().any() else rows["reason"].iloc[0]
        for key, rows in table.groupby(["hookpoint", "audit"])
    }


NO_MEMORY = RuntimeError("DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize("error", [StoreError("full"), OSError("gone"), MemoryError(), NO_MEMORY])
def test_what_would_spare_no_other_job_is_raised(error: Exception) -> None:
    found = failures.Failures()
    with pytest.raises(type(error)):
        found.attempt("a job", raises(error))
    assert found.n == 0


def test_faults_are_counted_and_named(tmp_path: Path) -> None:
    found, notes = failures.Failures(), []
    found.note = notes.append
    assert found.attempt("one", raises(ModelError("no"))) == failures.Failure("no", is_fault=False)
    assert found.attempt("two", lambda: None) is None
    found.raised(tmp_path)
    assert not notes
    for name in ("three", "four", "five", "six"):
        failure = found.attempt(name, raises(KeyError("x")))
        assert failure is not None
        assert "KeyError" in failure.reason
        assert failure.is_fault
    with pytest.raises(StageFault, match="three; four; five and 1 more failed"):
        found.raised(tmp_path)
    assert len(notes) == found.n == 4
