"""Text that is given as token ids, and models without a tokenizer."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sae_placebo.core.errors import TextError
from sae_placebo.data.text import TextSpec, cut, documents, holds_ids, vocabulary
from sae_placebo.data.tokenizing import NoTokenizer, is_numbered

NONE = NoTokenizer(n_ids=500, bos_token_id=1)


def spec(source: object, **changes: Any) -> TextSpec:
    table = {"context_tokens": 16, "train_tokens": 300, "heldout_tokens": 100} | changes
    return TextSpec(source=str(source), **table)


def lines(path: Path, *records: Any) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return path


def random_documents(n: int = 30, length: int = 40) -> list[list[int]]:
    return np.random.default_rng(0).integers(2, 500, (n, length)).tolist()


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "int32"])
@pytest.mark.parametrize("field", ["ids", "input_ids", "tokens"])
def test_rows_hold_the_ids_as_they_are(tmp_path: Path, kind: str, field: str) -> None:
    given = random_documents()
    if kind == "jsonl":
        path = lines(tmp_path / "a.jsonl", *({field: ids} for ids in given))
    else:
        path = tmp_path / "a.parquet"
        values = [np.array(ids, dtype="int32") for ids in given] if kind == "int32" else given
        pd.DataFrame({field: values}).to_parquet(path)
    # `ids` and `input_ids` are found where `text.field` is left at its default
    table = {} if field != "tokens" else {"field": field}
    text = spec(path, **table)
    assert holds_ids(text)
    found = cut(text, NONE, seed=0, n_ids=500)
    assert found.ids_were_given
    for rows, n in ((found.splits["train"], 300), (found.splits["heldout"], 100)):
        assert rows.usable().sum() == n
        assert np.all(rows.token_ids[:, 0] == 1)
        assert rows.labels is None
        for row, length, owner in zip(rows.token_ids, rows.lengths, rows.documents, strict=True):
            number = int(rows.names[owner].rpartition(":")[2])
            whole, part = given[number - 1], row[1:length].tolist()
            assert any(whole[i : i + len(part)] == part for i in range(len(whole)))


def test_bos_in_front_of_a_document_is_not_doubled(tmp_path: Path) -> None:
    given = [[1, *ids] for ids in random_documents()]
    path = lines(tmp_path / "a.jsonl", *({"ids": ids} for ids in given))
    with_bos = cut(spec(path), NONE, seed=0).splits["train"]
    assert np.all(with_bos.token_ids[:, 0] == 1)
    assert not (with_bos.token_ids[:, 1:][with_bos.usable()[:, 1:]] == 1).any()
    without = cut(spec(path, bos="none"), NONE, seed=0).splits["train"]
    assert (without.token_ids == 1).sum() == len(without.names)
    no_bos = cut(spec(path), NoTokenizer(500), seed=0).splits["train"]
    assert np.array_equal(no_bos.token_ids, without.token_ids)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([5, 1.5], ("1.5 as item 2", "whole numbers")),
        ([5.0], ("5.0 as item 1",)),
        ([True], ("true as item 1",)),
        ([3, "4"], ("text as item 2",)),
        ([None], ("null as item 1",)),
        ([[3]], ("a list as item 1",)),
        ([3, -1], ("-1 as item 2", "from 0 on")),
        ([500], ("500 as item 1", "the model has 500 of them: 0 to 499")),
        ([10**30], ("1e+30 as item 1",)),
        (["a", "b"], ("is a list, not text",)),
    ],
)
def test_ids_that_are_none_are_named_by_file_and_line(
    tmp_path: Path, ids: list[Any], words: tuple[str, ...]
) -> None:
    path = lines(tmp_path / "a.jsonl", {"ids": [1, 2]}, {"ids": ids})
    with pytest.raises(TextError) as caught:
        list(documents(spec(path), 0, n_ids=500))
    for one in (f"{path}:2", "'ids'", *words):
        assert one in str(caught.value)


def test_a_row_of_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pd.DataFrame({"ids": [[1, 2], [3, 500]]}).to_parquet(path)
    with pytest.raises(
        TextError, match=r"a\.parquet' row 2: 'ids' has 500 as item 2.*has 500 of them"
    ):
        list(documents(spec(path), 0, n_ids=500))
    pd.DataFrame({"ids": [[1.5]]}).to_parquet(path)
    with pytest.raises(
        TextError, match=r"'ids' is list<.*double>, which is not text, and no lists"
    ):
        list(documents(spec(path), 0))


def test_where_the_number_of_ids_is_not_known_rows_limit_them(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"ids": [2**31]})
    with pytest.raises(TextError, match=r"2147483648 as item 1.*below 2\*\*31"):
        list(documents(spec(path), 0))


def test_empty_and_null_ids_are_counted_as_empty(tmp_path: Path) -> None:
    records = [{"ids": ids} for ids in (*random_documents(), [], None, [1], [7])]
    path = lines(tmp_path / "a.jsonl", *records)
    counts: Counter[str] = Counter()
    assert len(list(documents(spec(path), 0, counts))) == 32
    assert counts == {"empty": 2}


def test_text_and_ids_are_not_mixed(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"text": "words"}, {"ids": [1, 2]})
    with pytest.raises(
        TextError, match=r"mixes text \('a\.jsonl:1'\) and token ids \('a\.jsonl:2'\)"
    ):
        list(documents(spec(path), 0))
    lines(tmp_path / "b.jsonl", {"ids": [1, 2]})
    lines(tmp_path / "a.jsonl", {"text": "words"})
    with pytest.raises(TextError, match="mixes text"):
        list(documents(spec(tmp_path), 0))


def test_a_record_with_both_is_text_and_a_named_field_has_no_substitute(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"text": "words", "ids": [1, 2]})
    assert holds_ids(spec(path)) is False
    assert holds_ids(spec(path, field="ids")) is True
    with pytest.raises(TextError, match="has no 'body' key"):
        holds_ids(spec(path, field="body"))
    assert holds_ids(spec("python-stdlib")) is False
    assert holds_ids(spec("hf:some/set")) is None


def test_text_without_a_tokenizer_says_how_to_give_ids(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"text": "words"})
    with pytest.raises(TextError, match=r"no tokenizer.*list of them.*text\.field"):
        cut(spec(path), NONE, seed=0)


def test_copies_are_found_among_ids(tmp_path: Path) -> None:
    given = random_documents(4)
    path = lines(tmp_path / "a.jsonl", *({"ids": ids} for ids in given for _ in range(2)))
    found = cut(spec(path, train_tokens=160, heldout_tokens=120), NONE, seed=1).shared
    assert found["n_documents"] == 3
    assert found["n_copies"] > 0
    assert found["share_of_tokens_in_runs"] > 0


def test_ids_are_shown_as_numbers_where_nothing_says_more(tiny_tokenizer: Any) -> None:
    assert vocabulary(NoTokenizer(3)) == ["#0", "#1", "#2"]
    assert is_numbered(vocabulary(NoTokenizer(3)))
    n = len(tiny_tokenizer)
    longer = vocabulary(tiny_tokenizer, n + 2)
    assert longer[:n] == vocabulary(tiny_tokenizer)
    assert longer[n:] == [f"#{n}", f"#{n + 1}"]
    assert not is_numbered(longer)
