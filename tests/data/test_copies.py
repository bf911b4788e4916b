"""Held-out text that is in the training text too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import trial_table
from sae_placebo.core.errors import TextError
from sae_placebo.core.progress import Progress
from sae_placebo.core.store import Store
from sae_placebo.data import copies
from sae_placebo.data.copies import Overlap, sketches, warning
from sae_placebo.data.text import TextSpec, cut
from sae_placebo.data.token_files import read_text_facts
from sae_placebo.report import read_tables, render
from sae_placebo.report.sections.recorded import repeated_of, splits_of
from sae_placebo.trial.plan import plan_steps
from sae_placebo.trial.spec import load_trial
from sae_placebo.trial.stages.materials import Materials
from synthetic_trial import Settings, write_trial


def tokens(n: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 50_000, n).tolist()


def compared(heldout: list[list[int]], train: list[list[int]]) -> dict[str, int | float]:
    """Return the counts where a document's text is its token ids, and all of it is in rows."""
    found = Overlap(sketches([str(ids) for ids in heldout], heldout), heldout)
    for sketch, ids in zip(sketches([str(ids) for ids in train], train), train, strict=True):
        found.add(sketch, ids)
    return found.counts()


def grams(ids: list[int]) -> set[tuple[int, ...]]:
    n = copies.SHINGLE
    return {tuple(ids[i : i + n]) for i in range(max(1, len(ids) - n + 1))}


def resemblance(a: list[int], b: list[int]) -> float:
    return len(grams(a) & grams(b)) / len(grams(a) | grams(b))


def edited(ids: list[int], every: int, seed: int) -> list[int]:
    """Return ids with each `every`-th replaced."""
    new = tokens(len(ids), seed)
    return [new[i] if i % every == every // 2 else one for i, one in enumerate(ids)]


def test_different_documents_share_nothing() -> None:
    found = compared(
        [tokens(400, i) for i in range(30)], [tokens(400, 100 + i) for i in range(200)]
    )
    assert found == {
        "n_documents": 30,
        "n_copies": 0,
        "n_near_copies": 0,
        "share_of_tokens": 0.0,
        "share_of_tokens_in_runs": 0.0,
    }
    assert warning(found) is None


@pytest.mark.parametrize("n", [1, 2, 4, 5, 12, 13, 50, 3_000])
def test_copies_are_found_at_any_length_and_place(n: int) -> None:
    heldout = [tokens(n, i) for i in range(10)]
    train = [tokens(n, 100 + i) for i in range(150)]
    train[7], train[63], train[64], train[149] = heldout[2], heldout[4], heldout[2], heldout[9]
    found = compared(heldout, train)
    assert found["n_copies"] == 3
    assert found["n_near_copies"] == 0
    assert found["share_of_tokens"] == pytest.approx(0.3)
    assert found["share_of_tokens_in_runs"] == pytest.approx(0.3 if n >= copies.RUN else 0.0)


@pytest.mark.parametrize("n", [30, 300, 3_000])
def test_near_copies_are_those_that_resemble(n: int) -> None:
    # an edit of one token changes five 5-grams of each document
    whole = tokens(n, 0)
    alike, unlike = edited(whole, min(100, n), 1), edited(whole, 12, 2)
    assert n == 30 or resemblance(whole, alike) > 0.88
    assert resemblance(whole, unlike) < 0.5
    found = compared([whole], [unlike, tokens(n, 3)])
    assert (found["n_copies"], found["n_near_copies"]) == (0, 0)
    if n > 30:
        found = compared([tokens(n, 5), whole], [unlike, alike])
        assert (found["n_copies"], found["n_near_copies"]) == (0, 1)
        assert found["share_of_tokens"] == pytest.approx(0.5)
    longer = whole + tokens(n // 20, 4)
    found = compared([whole], [longer])
    assert found["n_near_copies"] == (resemblance(whole, longer) >= 0.8)


def test_the_estimate_is_that_of_all_5_grams() -> None:
    """Of 40 pairs each, within four standard errors of what counting all 5-grams says."""
    for every in (20, 40, 100, 400):
        estimates, exact = [], []
        for i in range(40):
            one = tokens(800 + 100 * (i % 4), 1_000 + i)
            other = edited(one, every, 2_000 + i)[: 700 + 50 * (i % 7)]
            held = sketches(["x", "y"], [one, other])
            counted = Overlap(held[:1], [one])
            estimates.append(counted._resemblance(held[1].least, np.array([0]))[0])
            exact.append(resemblance(one, other))
        error = np.sqrt(np.mean(exact) * (1 - np.mean(exact)) / copies.SKETCH)
        assert np.abs(np.array(estimates) - exact).max() < 5 * error
        assert abs(np.mean(estimates) - np.mean(exact)) < 4 * error / np.sqrt(40)


def test_short_documents_are_compared_exactly() -> None:
    for n, m in ((5, 5), (6, 8), (40, 44), (100, 90)):
        one = tokens(n, n)
        other = one[:m] + tokens(max(0, m - n), 9)
        held = sketches(["x", "y"], [one, other])
        found = Overlap(held[:1], [one])._resemblance(held[1].least, np.array([0]))[0]
        assert found == pytest.approx(resemblance(one, other))


def test_shared_runs_are_counted_token_by_token() -> None:
    heldout = [tokens(100, 1), tokens(100, 2), tokens(12, 3)]
    train = [
        tokens(50, 4) + heldout[0][20:33] + tokens(50, 5),  # 13
        heldout[1][60:72] + tokens(30, 6) + heldout[1][72:84],  # twice 12: no run
        heldout[0][80:100] + tokens(3, 7),  # 20, at the end
        heldout[2],  # no run is so short
        heldout[0][90:] + heldout[1][:10],
    ]
    found = compared(heldout, train)
    assert found["share_of_tokens_in_runs"] == pytest.approx(33 / 212)
    # a run never goes over the end of a document
    found = compared([tokens(10, 8), tokens(10, 9)], [tokens(10, 8) + tokens(10, 9)])
    assert found["share_of_tokens_in_runs"] == 0.0


def test_what_all_documents_begin_with_makes_none_a_copy() -> None:
    head = tokens(200, 0)
    found = compared(
        [head + tokens(200, i) for i in range(1, 30)],
        [head + tokens(200, 100 + i) for i in range(100)],
    )
    assert (found["n_copies"], found["n_near_copies"]) == (0, 0)
    assert found["share_of_tokens_in_runs"] == pytest.approx(0.5)
    said = warning(found)
    assert said is not None
    assert "50.0% of the held-out tokens lie in runs of 13 tokens" in said


# --- from files to the report ----------------------------------------------------------------


def write(path: Path, texts: list[str]) -> Path:
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return path


def varied(n: int, shift: int = 0) -> list[str]:
    words = [
        "river",
        "spring",
        "mill",
        "stood",
        "still",
        "until",
        "June",
        "rose",
        "stone",
        "bridge",
    ]
    draw = np.random.default_rng(shift)
    return [f"{i} " + " ".join(draw.choice(words, 60)) for i in range(n)]


def test_documents_that_are_in_both_splits_are_counted(tmp_path: Path, tiny_tokenizer: Any) -> None:
    texts = varied(30)
    table = {"context_tokens": 32, "train_tokens": 3_000, "heldout_tokens": 1_500}
    for repeats in (texts, [text.replace("1", "one", 1) for text in texts]):
        one = TextSpec(source=str(write(tmp_path / "a.jsonl", texts + repeats)), **table)
        found = cut(one, tiny_tokenizer, 0)
        names = {split: rows.names for split, rows in found.splits.items()}
        numbers = {k: {(int(n.partition(":")[2]) - 1) % 30 for n in v} for k, v in names.items()}
        n_both = len(numbers["heldout"] & numbers["train"])
        assert n_both > 3
        counted = found.shared["n_copies"] + found.shared["n_near_copies"]
        assert counted == sum(
            (int(n.partition(":")[2]) - 1) % 30 in numbers["train"] for n in names["heldout"]
        )
        if repeats is texts:
            assert found.shared["n_copies"] == counted
            assert found.shared["share_of_tokens"] <= found.shared["share_of_tokens_in_runs"] + 0.05


def test_a_copy_is_found_when_other_parts_of_it_were_drawn(
    tmp_path: Path, tiny_tokenizer: Any
) -> None:
    long = [" ".join(varied(20, i)) for i in range(6)]
    table = {"context_tokens": 16, "train_tokens": 60, "heldout_tokens": 60}
    for name, text in {f"{i}{j}": text for i, text in enumerate(long) for j in "ab"}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    one = TextSpec(source=str(tmp_path), max_document_tokens=15, **table)
    found = cut(one, tiny_tokenizer, 0)
    both = {n[0] for n in found.splits["train"].names}
    held = [n[0] in both for n in found.splits["heldout"].names]
    assert sum(held) > 0
    assert found.shared["n_copies"] == sum(held)


class Notes(Progress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, message: str) -> None:
        self.said.append(message)


def test_a_trial_says_so_keeps_it_and_reports_it(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "a.jsonl", varied(100) * 2 + ["", "e"])
    plan = plan_steps(load_trial(trial_table(tiny_model, source)))
    store, progress = Store(tmp_path / "store"), Notes()
    folder = Materials(plan, store, progress).tokens
    facts = read_text_facts(folder)
    assert facts["skipped"] == {"empty": 1, "one_token": 1} | {
        "one_token": facts["skipped"]["one_token"]
    }
    assert facts["shared"]["n_copies"] > 0
    (said,) = [one for one in progress.said if "held-out documents" in one]
    assert said.startswith("text: ")
    assert f"({facts['shared']['n_copies']} copies, " in said
    trial = {"text": {"source": "x", "splits": {"train": {"n_tokens": 1}}, **facts}}
    assert said == f"text: {repeated_of(trial)}"
    assert splits_of(trial).keys() == {"train"}
    for broken in ({}, {"text": {"shared": {"n_copies": "many"}}}, {"text": {"shared": 3}}):
        assert repeated_of(broken) is None


def test_the_page_warns_of_what_was_trained_on(tmp_path: Path) -> None:
    folder = write_trial(tmp_path, Settings(latents=5, arms=("trained", "redraw")))
    trial = json.loads((folder / "trial.json").read_text())
    shared = {"n_documents": 40, "n_copies": 20, "n_near_copies": 0, "share_of_tokens": 0.5}
    trial["text"] |= {"shared": shared | {"share_of_tokens_in_runs": 0.5}}
    (folder / "trial.json").write_text(json.dumps(trial))
    said = (
        "20 of 40 held-out documents are also in the training text (20 copies, 0 near copies; 50.0%"
    )
    assert said in render(read_tables(folder))


def test_text_that_changes_while_it_is_read_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", varied(200))
    plan, store = plan_steps(load_trial(trial_table(tiny_model, source))), Store(tmp_path / "store")
    write(source, varied(200, shift=1))
    with pytest.raises(TextError, match="changed while they were read; run again"):
        _ = Materials(plan, store, Progress()).tokens
    assert store.find(plan.tokenize) is None
    again = plan_steps(load_trial(trial_table(tiny_model, source)))
    assert Materials(again, store, Progress()).tokens.is_dir()
