"""Positions and tokens that are read by the model and do not count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from sae_placebo.controls.data import parse_data
from sae_placebo.core.errors import TextError
from sae_placebo.core.spec import digest
from sae_placebo.data.text import TextSpec, cut, tokenize
from sae_placebo.data.token_files import read_rows, write_rows
from sae_placebo.data.tokenizing import NoTokenizer
from sae_placebo.latents.ladder.fit_text import rows_to_fit_on

NONE = NoTokenizer(n_ids=50, bos_token_id=1)


def spec(source: object = "python-stdlib", **changes: Any) -> TextSpec:
    table = {"context_tokens": 16, "train_tokens": 300, "heldout_tokens": 100} | changes
    return TextSpec(source=str(source), **table)


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ids") / "ids.jsonl"
    drawn = np.random.default_rng(0).integers(2, 50, (90, 37)).tolist()
    path.write_text("\n".join(json.dumps({"ids": one}) for one in drawn), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("positions", "wanted"),
    [
        ([4], range(4, 16)),
        ([0, 3], (1, 2)),
        ([2, 10, 3], (2, 5, 8)),
        ([2, -4], range(2, 12)),
        ([-3], (13, 14, 15)),
        ([2, 99], range(2, 16)),
    ],
)
@pytest.mark.parametrize("bos", ["auto", "none"])
def test_positions_are_a_slice_of_the_context(
    ids: Path, positions: list[int], wanted: Any, bos: str
) -> None:
    text = spec(ids, positions=positions, bos=bos)
    assert text.row_tokens == len(list(wanted))
    for split, n in (("train", 300), ("heldout", 100)):
        rows = tokenize(text, NONE, 0)[split]
        usable = rows.usable()
        assert usable.sum() == n
        assert usable.any(1).all()
        assert set(np.nonzero(usable)[1]) == set(wanted)
        # what does not count is read all the same
        assert np.all((rows.lengths > 1) & (rows.lengths <= 16))


def test_excluded_ids_do_not_count(ids: Path) -> None:
    rows = tokenize(spec(ids, exclude_tokens=[7, 9]), NONE, 0)["train"]
    assert rows.usable().sum() == 300
    assert not np.isin(rows.token_ids[rows.usable()], [7, 9]).any()
    assert np.isin(rows.token_ids, [7, 9]).any()


def test_every_special_token_is_excluded(tiny_tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one </s> two " * 200)
    (tmp_path / "b.txt").write_text("three </s> four " * 200)
    text = spec(tmp_path, exclude_tokens=True, special_tokens=True)
    rows = tokenize(text, tiny_tokenizer, 0)["train"]
    end = tiny_tokenizer.eos_token_id
    assert (rows.token_ids == end).any()
    assert not (rows.token_ids[rows.usable()] == end).any()


def test_defaults_leave_rows_and_keys_as_they_were(ids: Path) -> None:
    plain = spec(ids)
    assert not {"positions", "exclude_tokens"} & plain.key.keys()
    assert digest(plain.key) != digest(spec(ids, positions=[2]).key)
    assert spec(ids, positions=[2, 5], exclude_tokens=True).key["positions"] == [2, 5]
    rows = tokenize(plain, NONE, 0)["train"]
    assert rows.left_out is None
    every = tokenize(spec(ids, positions=[0]), NONE, 0)["train"]
    assert every.left_out is None
    assert np.array_equal(rows.token_ids, every.token_ids)


def test_the_mask_is_kept_with_the_rows(ids: Path, tmp_path: Path) -> None:
    splits = tokenize(spec(ids, positions=[2, 9], exclude_tokens=[5]), NONE, 0)
    write_rows(tmp_path, splits)
    for split, rows in read_rows(tmp_path).items():
        assert np.array_equal(rows.usable(), splits[split].usable())
    some = rows_to_fit_on(splits["train"], 100, 0)
    assert 0 < some.usable().sum() < 200
    assert not (some.token_ids[some.usable()] == 5).any()
    assert set(np.nonzero(some.usable())[1]) <= set(range(2, 9))


@pytest.mark.parametrize("kind", ["shuffle_tokens", "unigram", "markov"])
def test_rewritten_text_leaves_out_the_same_places(ids: Path, kind: str) -> None:
    splits = tokenize(spec(ids, positions=[3, 12], exclude_tokens=[5, 6]), NONE, 0)
    made = parse_data(kind).rewrite(splits, 0, 0)
    for split, rows in made.items():
        usable = splits[split].usable()
        assert np.array_equal(rows.usable(), usable)
        assert np.array_equal(rows.token_ids[~usable], splits[split].token_ids[~usable])
        assert not np.isin(rows.token_ids[usable], [5, 6]).any()
        assert not np.array_equal(rows.token_ids[usable], splits[split].token_ids[usable])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"positions": []}, "at least 1"),
        ({"positions": [1, 2, 3, 4]}, "at most 3"),
        ({"positions": [1.5]}, "integer"),
        ({"positions": [2, 10, 0]}, "has the step 0"),
        ({"positions": [2, 10, -1]}, "has the step -1"),
        ({"positions": [16]}, "leaves no position of a row of 16"),
        ({"positions": [0, 1]}, "leaves no position"),
        ({"positions": [9, 4]}, "leaves no position"),
        ({"exclude_tokens": [-1]}, "greater than or equal to 0"),
        ({"exclude_tokens": [3, 3]}, "given twice"),
        ({"exclude_tokens": []}, "at least 1"),
        ({"exclude_tokens": "all"}, "boolean"),
    ],
)
def test_settings_without_sense_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        spec(**changes)


def test_ids_that_the_model_lacks_are_refused(ids: Path) -> None:
    with pytest.raises(TextError, match=r"exclude_tokens holds 50, and the model has 50 token ids"):
        cut(spec(ids, exclude_tokens=[50]), NONE, 0, n_ids=50)
    with pytest.raises(TextError, match=r"exclude_tokens is true.*no tokenizer.*give their ids"):
        cut(spec(ids, exclude_tokens=True), NONE, 0, n_ids=50)


def test_documents_without_a_token_that_counts_are_told(ids: Path) -> None:
    text = spec(ids, exclude_tokens=list(range(2, 50)))
    with pytest.raises(TextError, match=r"no text to read.*90 have none that counts"):
        cut(text, NONE, 0)
    with pytest.raises(TextError, match="usable tokens"):
        cut(spec(ids, positions=[14]), NONE, 0)
