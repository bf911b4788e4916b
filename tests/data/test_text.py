from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from conftest import save_tokenizer
from sae_placebo.core.errors import MissingExtra, TextError
from sae_placebo.data.text import TextSpec, documents, identify, library_files, tokenize, vocabulary
from sae_placebo.data.token_files import read_rows, write_rows


def spec(source: object = "python-stdlib", **changes: Any) -> TextSpec:
    table = {"context_tokens": 16, "train_tokens": 300, "heldout_tokens": 100} | changes
    return TextSpec(source=str(source), **table)


def test_library_has_no_tests_and_no_installed_packages() -> None:
    parts = {part for path in library_files() for part in path.parts}
    assert not parts & {"test", "tests", "idle_test", "site-packages", "__pycache__"}
    assert any(path.name == "argparse.py" for path in library_files())


def test_splits_hold_exactly_the_tokens_asked_for_from_different_documents(
    tiny_tokenizer: Any,
) -> None:
    splits = tokenize(spec(max_document_tokens=60), tiny_tokenizer, seed=0)
    assert splits["train"].usable().sum() == 300
    assert splits["heldout"].usable().sum() == 100
    assert not set(splits["train"].names) & set(splits["heldout"].names)
    for rows in splits.values():
        per_document = np.bincount(rows.documents, rows.usable().sum(1))
        assert per_document.max() <= 60
        assert np.all(np.diff(rows.documents) >= 0)


@pytest.fixture(scope="module")
def many_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many-texts")
    for i, path in enumerate(library_files()[:80]):
        (folder / f"{i}.txt").write_text((path.read_text(encoding="utf-8") * 400)[:400])
    return folder


@pytest.mark.parametrize("bos", ["auto", "none"])
@pytest.mark.parametrize("cap", [8, 9, 14, 15, 16, 29, 30, 31])
def test_a_document_never_gives_more_than_its_cap(
    tiny_tokenizer: Any, many_texts: Path, cap: int, bos: str
) -> None:
    table = {"max_document_tokens": cap, "bos": bos}
    splits = tokenize(spec(many_texts, **table), tiny_tokenizer, seed=0)
    for rows, wanted in ((splits["train"], 300), (splits["heldout"], 100)):
        assert rows.usable().sum() == wanted
        taken = np.bincount(rows.documents, rows.lengths - (bos == "auto"))
        assert taken.max() <= cap
        assert taken.max() >= min(cap, 15) - 1


def test_rows_are_runs_of_their_document_behind_bos(tiny_tokenizer: Any, tmp_path: Path) -> None:
    texts = {f"{i}.txt": f"document {i}: " + "word " * 40 for i in range(8)}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    splits = tokenize(spec(tmp_path, train_tokens=200, heldout_tokens=100), tiny_tokenizer, seed=1)
    for rows in splits.values():
        assert np.all(rows.token_ids[:, 0] == tiny_tokenizer.bos_token_id)
        assert not rows.usable()[:, 0].any()
        for ids, length, document in zip(rows.token_ids, rows.lengths, rows.documents, strict=True):
            assert np.all(ids[length:] == 0)
            text = tiny_tokenizer.decode(ids[1:length], clean_up_tokenization_spaces=False)
            assert text in texts[rows.names[document]]


def test_order_depends_on_the_seed_alone(tiny_tokenizer: Any) -> None:
    a, b, c = (tokenize(spec(), tiny_tokenizer, seed) for seed in (0, 0, 1))
    assert np.array_equal(a["train"].token_ids, b["train"].token_ids)
    assert a["train"].names != c["train"].names


def test_without_bos_the_first_position_is_masked_all_the_same(tmp_path: Path) -> None:
    tokenizer = save_tokenizer(tmp_path, bos=False)
    rows = tokenize(spec(), tokenizer, 0)["train"]
    assert rows.usable().sum() == 300
    assert not rows.usable()[:, 0].any()


def test_too_little_text_says_how_much_there_is(tiny_tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("only a few words here")
    with pytest.raises(TextError, match=r"holds \d+ tokens in 1 documents .* asks for 400"):
        tokenize(spec(tmp_path / "a.txt"), tiny_tokenizer, 0)


def test_empty_text_is_told_apart(tiny_tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(TextError, match="every document is empty"):
        tokenize(spec(tmp_path / "a.txt"), tiny_tokenizer, 0)


def test_missing_text_and_wrong_kinds_are_refused_by_the_spec(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="no text is at"):
        spec(tmp_path / "nothing*")
    (tmp_path / "a.bin").write_text("x")
    with pytest.raises(ValidationError, match="cannot be read as text"):
        spec(tmp_path / "a.bin")


def test_a_file_that_is_not_utf8_is_named_with_its_byte(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(TextError, match=r"latin.txt' is not UTF-8 \(byte 3: 0xe9\)"):
        list(documents(spec(tmp_path), 0))


def test_jsonl_and_parquet_give_a_document_per_record(tmp_path: Path) -> None:
    import pandas as pd

    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}\n')
    pd.DataFrame({"text": ["three", None, "four"]}).to_parquet(tmp_path / "b.parquet")
    found = {d.name: d.text for d in documents(spec(tmp_path), 0)}
    assert found == {
        "a.jsonl:1": "one",
        "a.jsonl:3": "two",
        "b.parquet:1": "three",
        "b.parquet:3": "four",
    }


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("not json", "not a JSON object"),
        ('{"body": "x"}', "'text' key"),
        ('{"text": 3}', "not text"),
    ],
)
def test_bad_records_are_named_by_line(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "fine"}) + "\n" + line)
    with pytest.raises(TextError, match=rf"a.jsonl:2.*{words}"):
        list(documents(spec(tmp_path), 0))


def test_a_parquet_file_without_the_column_lists_its_own(tmp_path: Path) -> None:
    import pandas as pd

    pd.DataFrame({"body": ["x"]}).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(TextError, match=r"no column 'text'; it has body"):
        list(documents(spec(tmp_path), 0))


def test_a_broken_parquet_file_is_named(tmp_path: Path) -> None:
    import pandas as pd

    path = tmp_path / "b.parquet"
    pd.DataFrame({"text": [f"{i} words" for i in range(2_000)]}).to_parquet(path)
    whole = path.read_bytes()
    broken = bytearray(whole)
    broken[8:4_000] = b"\xff" * 3_992  # the footer is fine, the pages are not
    for content in (b"", b"not parquet at all", whole[:-20], bytes(broken)):
        path.write_bytes(content)
        with pytest.raises(TextError, match=r"b\.parquet' cannot be read as parquet"):
            list(documents(spec(tmp_path), 0))


@pytest.mark.parametrize(
    ("values", "kind"), [([1, 2], "int64"), ([b"x"], "binary"), ([["x"]], "list")]
)
def test_a_parquet_column_that_is_not_text(tmp_path: Path, values: list[Any], kind: str) -> None:
    import pandas as pd

    pd.DataFrame({"text": values}).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(TextError, match=rf"b\.parquet': 'text' is {kind}.*not text"):
        list(documents(spec(tmp_path), 0))


def test_a_parquet_column_of_categories_is_text(tmp_path: Path) -> None:
    import pandas as pd

    pd.DataFrame({"text": pd.Categorical(["a", "b", "a"])}).to_parquet(tmp_path / "b.parquet")
    assert sorted(d.text for d in documents(spec(tmp_path), 0)) == ["a", "a", "b"]


@pytest.mark.parametrize("source", ["hf:", "hf: ", "hf::config"])
def test_a_dataset_without_a_name_is_refused(source: str) -> None:
    with pytest.raises(ValidationError, match="names no dataset: write hf:NAME"):
        spec(source)


def test_identity_follows_content_and_not_place(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("same")
        (tmp_path / folder / "b.txt").write_text("other")
    first = identify(spec(tmp_path / "one"))
    assert first == identify(spec(tmp_path / "two"))
    (tmp_path / "two" / "b.txt").write_text("changed")
    assert first != identify(spec(tmp_path / "two"))


def test_a_hub_dataset_without_the_extra_gives_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"pip install 'sae-placebo\[hub\]'"):
        list(documents(spec("hf:some/set"), 0))


def write_sources(folder: Path, n: int = 6, body: str = "") -> None:
    body = body or "def function_{i}(first, second):\n    return first + second * 'é'\n\n\n"
    for i in range(n):
        (folder / f"{i}.py").write_text(body.format(i=i) * 12, encoding="utf-8")


def held(rows: Any, label: str) -> np.ndarray:
    places = np.argwhere(np.ones(rows.token_ids.shape, dtype=bool))
    found = rows.labels.at(places)[:, rows.labels.names.index(label)]
    return found.reshape(rows.token_ids.shape)


@pytest.mark.parametrize("bos", ["auto", "none"])
@pytest.mark.parametrize("cap", [None, 21, 60])
def test_labels_follow_the_tokens_through_rows_and_random_starts(
    tiny_tokenizer: Any, tmp_path: Path, bos: str, cap: int | None
) -> None:
    write_sources(tmp_path, 40)
    splits = tokenize(spec(tmp_path, bos=bos, max_document_tokens=cap), tiny_tokenizer, seed=3)
    for rows in splits.values():
        assert rows.labels is not None
        real = np.arange(16) < rows.lengths[:, None]
        real[:, 0] &= bos == "none"
        assert np.array_equal(rows.labels.known, real)
        assert not rows.labels.bits[~real].any()
        words = np.array([tiny_tokenizer.decode([i]) for i in range(len(tiny_tokenizer))])
        text = words[rows.token_ids]
        keyword = np.isin(np.char.strip(text), ["def", "return"]) & real
        assert np.array_equal(held(rows, "kind.keyword") & keyword, keyword)
        closing = np.char.find(text, ")") >= 0
        assert np.array_equal(held(rows, "bracket.closing"), closing & real)
        # not one of them could be read off the word alone
        assert not (held(rows, "role.parameter") & held(rows, "inside.function_body")).any()
        body, head = held(rows, "inside.function_body"), np.char.strip(text) == "def"
        assert body[real].any()
        assert not body[head & real].any()


def test_asking_for_labels_changes_no_token(tiny_tokenizer: Any, tmp_path: Path) -> None:
    for folder, suffix in (("code", ".py"), ("prose", ".txt")):
        (tmp_path / folder).mkdir()
        write_sources(tmp_path / folder)
        for path in list((tmp_path / folder).iterdir()):
            path.rename(path.with_suffix(suffix))
    code, prose = (tokenize(spec(tmp_path / f), tiny_tokenizer, 0) for f in ("code", "prose"))
    for split, rows in code.items():
        assert np.array_equal(rows.token_ids, prose[split].token_ids)
        assert rows.labels is not None
        assert prose[split].labels is None


def test_prose_and_broken_code_among_code_are_unknown(tiny_tokenizer: Any, tmp_path: Path) -> None:
    write_sources(tmp_path, 3)
    (tmp_path / "a.md").write_text("x = 1\n" * 30)
    (tmp_path / "b.py").write_text("def broken(:\n" * 30)
    rows = tokenize(
        spec(tmp_path, train_tokens=170, heldout_tokens=100, max_document_tokens=64),
        tiny_tokenizer,
        0,
    )
    known = {}
    for one in rows.values():
        assert one.labels is not None
        for i, owner in enumerate(one.documents):
            known.setdefault(one.names[owner], []).append(one.labels.known[i].any())
    assert len(known) == 5
    assert not any(known["a.md"] + known["b.py"])
    assert all(all(known[name]) for name in known if name not in ("a.md", "b.py"))


def test_records_of_a_table_have_no_labels(tiny_tokenizer: Any, tmp_path: Path) -> None:
    line = json.dumps({"text": "x = 1\n" * 60})
    (tmp_path / "a.jsonl").write_text("\n".join([line] * 8))
    splits = tokenize(spec(tmp_path), tiny_tokenizer, 0)
    assert all(rows.labels is None for rows in splits.values())


def test_a_tokenizer_that_tells_no_offsets_gives_no_labels(
    tiny_tokenizer: Any, tmp_path: Path
) -> None:
    class Slow:
        bos_token_id = tiny_tokenizer.bos_token_id
        is_fast = False
        all_special_tokens = ()
        unk_token_id = None

        def __call__(self, texts: list[str], **settings: Any) -> Any:
            assert not settings.pop("return_offsets_mapping", False)
            return tiny_tokenizer(texts, **settings)

    write_sources(tmp_path)
    splits = tokenize(spec(tmp_path), Slow(), 0)
    assert all(rows.labels is None for rows in splits.values())


def test_labels_survive_writing_and_old_artefacts_have_none(
    tiny_tokenizer: Any, tmp_path: Path
) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "new").mkdir()
    write_sources(tmp_path / "code")
    splits = tokenize(spec(tmp_path / "code"), tiny_tokenizer, 0)
    write_rows(tmp_path / "new", splits)
    for split, rows in read_rows(tmp_path / "new").items():
        labels, written = rows.labels, splits[split].labels
        assert labels is not None
        assert written is not None
        assert labels.names == written.names
        assert np.array_equal(labels.bits, written.bits)
        assert np.array_equal(labels.known, written.known)
    (tmp_path / "new" / "labels.json").unlink()
    assert all(rows.labels is None for rows in read_rows(tmp_path / "new").values())


def test_vocabulary_decodes_each_token_alone(tiny_tokenizer: Any) -> None:
    words = vocabulary(tiny_tokenizer)
    assert len(words) == len(tiny_tokenizer)
    ids = tiny_tokenizer("return self", add_special_tokens=False)["input_ids"]
    assert "".join(words[i] for i in ids) == "return self"
