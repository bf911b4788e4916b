"""What is read from files of every kind, and the one sentence about what is not."""

from __future__ import annotations

import codecs
import gzip
import json
import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from sae_placebo.core.errors import SpecError, TextError
from sae_placebo.data.documents import stream_documents
from sae_placebo.data.text import TextSpec, documents, identify, may_have_labels, paths

RIVER = "the river rose in spring, and the mill stood still until June. "


def spec(source: object, **changes: Any) -> TextSpec:
    return TextSpec(source=str(source), train_tokens=300, heldout_tokens=100, **changes)


def read(source: object, **changes: Any) -> dict[str, str]:
    return {d.name: d.text for d in documents(spec(source, **changes), 0)}


def refused(source: object, **changes: Any) -> str:
    """Return the sentence about a source, which must be the error of a user's text."""
    with pytest.raises(TextError) as caught:
        read(source, **changes)
    message = str(caught.value)
    assert "\n" not in message
    return message


def put(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue().to_pybytes())


# --- records ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e", "\t"])
def test_only_a_line_feed_ends_a_record(tmp_path: Path, mark: str) -> None:
    texts = [f"{i}:{mark} {RIVER}{mark}{RIVER}" for i in range(40)]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    raw = "\n".join(line.replace(json.dumps(mark)[1:-1], mark) for line in lines)
    assert raw.count(mark) == 80
    found = read(put(tmp_path / "a.jsonl", raw))
    assert found == {f"a.jsonl:{i}": text for i, text in enumerate(texts, start=1)}


def test_a_byte_order_mark_is_no_text_wherever_files_were_joined(tmp_path: Path) -> None:
    line = json.dumps({"text": RIVER}).encode() + b"\r\n"
    put(tmp_path / "a.jsonl", codecs.BOM_UTF8 + line + b"\r\n" + codecs.BOM_UTF8 + line)
    put(tmp_path / "b.jsonl.gz", gzip.compress(codecs.BOM_UTF8 + line) * 2)
    assert read(tmp_path) == dict.fromkeys(
        ("a.jsonl:1", "a.jsonl:3", "b.jsonl.gz:1", "b.jsonl.gz:2"), RIVER
    )


def test_null_and_empty_records_are_left_out_and_counted_alike(tmp_path: Path) -> None:
    values = [None, "", "one", "", None, "two", "NaN"]
    put(tmp_path / "a.jsonl", "\n".join(json.dumps({"text": v, "n": 1e999}) for v in values))
    pq.write_table(pa.table({"text": values}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"text": pa.nulls(3)}), tmp_path / "c.parquet")
    for name, n in (("a.jsonl", 4), ("b.parquet", 4), ("c.parquet", 3)):
        skipped: Counter[str] = Counter()
        found = [d.text for d in documents(spec(tmp_path / name), 0, skipped)]
        assert sorted(found) == ([] if n == 3 else ["NaN", "one", "two"])
        assert skipped == {"empty": n}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": "\\ud800 x"}', r"half of a surrogate pair \(U\+D800, character 1 "),
        ('{"text": "x\\udfff"}', r"half of a surrogate pair \(U\+DFFF, character 2 "),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + ', "text": "x"}', "nested too deeply"),
        ("[" * 100_000, "nested too deeply"),
        ('["a", "b"]', "not a JSON object but a list"),
        ("[", "not a JSON object"),
        ("3", "not a JSON object but a number"),
        ('"x"', "not a JSON object but text"),
        ("null", "not a JSON object but text or null"),
        ('{"text": "a"} {"text": "b"}', r"not a JSON object \(Extra data, column 15\)"),
        ('{"text": "a", "text": "b"}', "has the key 'text' twice"),
        (r'{"text": "a", "te\u0078t": "b"}', "has the key 'text' twice"),
        ('{"text": ["a"]}', "'text' is a list, not text"),
        ('{"text": {"text": "a"}}', "'text' is an object, not text"),
        ('{"text": NaN}', "'text' is a number, not text"),
        ('{"text": ' + "1" * 5_000 + "}", "'text' is a number, not text"),
        ('{"text": true}', "'text' is true or false, not text"),
        ('{"body": "x", "id": 1}', r"no 'text' key \(its keys: 'body', 'id'\); set text.field"),
    ],
)
def test_records_that_cannot_be_read_are_named_by_file_and_line(
    tmp_path: Path, line: str, words: str
) -> None:
    path = put(tmp_path / "a.jsonl", json.dumps({"text": "fine"}) + "\n" + line + "\n")
    message = refused(path)
    assert f"'{path}:2'" in message
    assert len(message) < 400
    with pytest.raises(TextError, match=words):
        read(path)


@pytest.mark.parametrize("key", ["内容", "te\u00e4", 'a"b', "a\\b"])
def test_a_key_that_is_there_twice_is_refused_however_it_is_written(
    tmp_path: Path, key: str
) -> None:
    for first in (json.dumps(key), json.dumps(key, ensure_ascii=False)):
        line = (
            f'{{{first}: "one", {json.dumps(key, ensure_ascii=False)}: "two", "o": {{{first}: 3}}}}'
        )
        path = put(tmp_path / "a.jsonl", line + "\n")
        assert "twice" in refused(path, field=key)
    once = f'{{{json.dumps(key)}: "one", "o": {{{json.dumps(key)}: "two"}}}}'
    assert read(put(tmp_path / "b.jsonl", once + "\n"), field=key) == {"b.jsonl:1": "one"}


def test_what_stands_beside_the_text_may_be_anything(tmp_path: Path) -> None:
    line = (
        '{"n": ' + "1" * 5_000 + ', "m": [{"text": 1}, -Infinity], "text": "one", "o": {"text": 2}}'
    )
    assert read(put(tmp_path / "a.jsonl", line)) == {"a.jsonl:1": "one"}
    assert read(put(tmp_path / "b.jsonl", '{"a.b": "one", "a": {"b": "two"}}'), field="a.b") == {
        "b.jsonl:1": "one"
    }


def test_a_pair_of_surrogates_and_an_escaped_null_are_characters(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", '{"text": "\\ud83d\\ude00 \\u0000 x"}')
    assert read(path) == {"a.jsonl:1": "\U0001f600 \0 x"}


# --- encodings -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.py"])
@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
def test_a_byte_order_mark_tells_the_encoding(
    tmp_path: Path, name: str, mark: bytes, encoding: str
) -> None:
    text = "# é \U0001f600\nx = 1\n"
    assert read(put(tmp_path / name, mark + text.encode(encoding))) == {name: text}
    record = json.dumps({"text": text}, ensure_ascii=False)
    path = put(tmp_path / "a.jsonl", mark + record.encode(encoding))
    assert read(path) == {"a.jsonl:1": text}


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.py"])
def test_utf16_without_a_mark_is_not_read_as_noise(
    tmp_path: Path, name: str, encoding: str
) -> None:
    path = put(tmp_path / name, json.dumps({"text": RIVER}).encode(encoding))
    assert "UTF-16 or UTF-32 without a byte order mark, or no text" in refused(path)


def test_a_stray_null_is_a_character(tmp_path: Path) -> None:
    assert read(put(tmp_path / "a.txt", RIVER + "\0")) == {"a.txt": RIVER + "\0"}


@pytest.mark.parametrize(
    "content", [b"caf\xe9", b"\xff\xfea\x00\x00", b"\x89PNG\r\n\x1a\n\x00", b"\xed\xa0\x80"]
)
def test_other_encodings_are_refused_by_file_and_byte(tmp_path: Path, content: bytes) -> None:
    for name in ("a.txt", "a.py", "a.jsonl"):
        message = refused(put(tmp_path / name, content))
        assert f"'{tmp_path / name}' is not UTF-" in message
        assert "(byte " in message


@pytest.mark.parametrize(
    ("head", "encoding"),
    [
        ("# -*- coding: latin-1 -*-", "latin-1"),
        ("#!/usr/bin/python\n# vim: set fileencoding=cp1252 :", "cp1252"),
        ("# coding: utf-8", "utf-8"),
        ("# coding: nothing-of-the-kind", "utf-8"),
        ("# coding: rot13", "utf-8"),
        ("# coding: utf-16", "utf-8"),
    ],
)
def test_python_source_is_read_as_it_declares(tmp_path: Path, head: str, encoding: str) -> None:
    text = head + "\nx = 'é'\n"
    assert read(put(tmp_path / "a.py", text.encode(encoding))) == {"a.py": text}
    if encoding != "utf-8":  # only Python declares so
        assert "is not UTF-8" in refused(put(tmp_path / "a.txt", text.encode(encoding)))


def test_line_ends_of_whole_files_are_line_feeds_and_a_last_one_is_not_needed(
    tmp_path: Path,
) -> None:
    assert read(put(tmp_path / "a.txt", "a\r\nb\rc\nd")) == {"a.txt": "a\nb\nc\nd"}
    assert read(put(tmp_path / "a.jsonl", '{"text": "a\\r\\nb"}\r\n{"text": "c"}')) == {
        "a.jsonl:1": "a\r\nb",
        "a.jsonl:2": "c",
    }


# --- compression -----------------------------------------------------------------------------


@pytest.mark.parametrize(("end", "packed"), [(".gz", gzip.compress), (".zst", zstd)])
def test_compressed_files_are_read_whole(tmp_path: Path, end: str, packed: Any) -> None:
    record = json.dumps({"text": RIVER}).encode() + b"\n"
    put(tmp_path / f"a.jsonl{end}", packed(record) + packed(record))  # several members
    put(tmp_path / f"b.TXT{end.upper()}", packed(b"") + packed(b"a\r\nb"))
    put(tmp_path / f"c.py{end}", packed(codecs.BOM_UTF8 + b"x = 1\n"))
    assert read(tmp_path) == {
        f"a.jsonl{end}:1": RIVER,
        f"a.jsonl{end}:2": RIVER,
        f"b.TXT{end.upper()}": "a\nb",
        f"c.py{end}": "x = 1\n",
    }
    assert {d.name for d in documents(spec(tmp_path), 0) if d.python} == {f"c.py{end}"}
    assert may_have_labels(spec(tmp_path))
    before = identify(spec(tmp_path))
    put(tmp_path / f"c.py{end}", packed(b"x = 2\n"))
    assert identify(spec(tmp_path)) != before


@pytest.mark.parametrize(("end", "packed"), [(".gz", gzip.compress), (".zst", zstd)])
def test_damaged_compressed_files_are_named(tmp_path: Path, end: str, packed: Any) -> None:
    whole = packed(os.urandom(3_000) + RIVER.encode())
    path = tmp_path / f"a.txt{end}"
    for content in (whole[:-3], whole[:50], whole + whole[:50], whole + b"more", b"", b"plain"):
        message = refused(put(path, content))
        assert f"'{path}' cannot be decompressed as" in message


def test_files_that_are_not_what_their_names_say(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["one"]}), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    for name, content, kind in (
        ("a.txt", gzip.compress(b"x"), ".gz"),
        ("a.jsonl", zstd(b"x"), ".zst"),
        ("b.parquet", gzip.compress(whole), ".gz"),
        ("b.jsonl", whole, ".parquet"),
    ):
        message = refused(put(tmp_path / name, content))
        assert (
            f"{name}' is not what its name says: its first bytes are those of a {kind}" in message
        )
    assert read(put(tmp_path / "c.txt", "PAR1 is how it starts"))  # text may say so


def test_a_compressed_parquet_file_is_no_kind_of_text(tmp_path: Path) -> None:
    put(tmp_path / "a.parquet.gz", b"")
    for source in (tmp_path / "a.parquet.gz", tmp_path / "*"):
        with pytest.raises(ValidationError, match=r"all but \.parquet also with \.gz"):
            spec(source)


# --- parquet ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["one", None, "two"], pa.large_string()),
        pa.array(["one", None, "two"]).dictionary_encode(),
        pa.chunked_array([["one"], [None], ["two"]], pa.string()),
    ],
)
def test_columns_of_text_in_every_form(tmp_path: Path, column: Any) -> None:
    pq.write_table(pa.table({"text": column, "a": [[1], [2], [3]]}), tmp_path / "a.parquet")
    assert read(tmp_path) == {"a.parquet:1": "one", "a.parquet:3": "two"}


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array([{"b": "x"}]), "struct"),
        (pa.array([b"x"]).dictionary_encode(), "dictionary<values=binary"),
        (pa.array([True]), "bool"),
    ],
)
def test_columns_that_are_not_text_are_refused(tmp_path: Path, column: Any, kind: str) -> None:
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    message = refused(tmp_path)
    assert f"'text' is {kind}" in message
    assert "not text; set text.field" in message


def test_a_column_there_twice_or_with_broken_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["x"])] * 2, ["text", "text"]), path)
    assert "has two columns 'text'" in refused(path)
    broken = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff")]
    )
    pq.write_table(pa.table({"text": broken}), path)
    assert "'text' holds bytes that are not UTF-8" in refused(path)


# --- files and folders -----------------------------------------------------------------------


def test_a_file_name_that_is_no_text_is_shown_and_hashed(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9.txt")
    put(tmp_path / odd, RIVER)
    put(tmp_path / "b.txt", RIVER)
    assert read(tmp_path) == {"caf\\xe9.txt": RIVER, "b.txt": RIVER}
    before = identify(spec(tmp_path))
    (tmp_path / odd).rename(tmp_path / os.fsdecode(b"caf\xe8.txt"))
    assert identify(spec(tmp_path)) != before
    put(tmp_path / os.fsdecode(b"\xff.jsonl"), "{")
    refused(tmp_path).encode()


def test_a_file_is_one_document_however_many_links_lead_to_it(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    put(tmp_path / "deep" / "er" / "zz.txt", RIVER)
    (tmp_path / "deep" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "deep" / "nowhere.txt").symlink_to("missing.txt")
    (tmp_path / "deep" / "itself.txt").symlink_to("itself.txt")
    (tmp_path / "deep" / "er" / "aa_of_zz_in_er.txt").symlink_to("zz.txt")
    (tmp_path / "folder.txt").mkdir()
    for source in (tmp_path, tmp_path / "**" / "*.txt"):
        assert len(paths(str(source))) == 1
        assert list(read(source).values()) == [RIVER]


def test_suffixes_in_capitals_are_the_same(tmp_path: Path) -> None:
    put(tmp_path / "A.TXT", RIVER)
    put(tmp_path / "B.PY", "x = 1\n")
    put(tmp_path / "C.JSONL", json.dumps({"text": RIVER}))
    assert read(tmp_path).keys() == {"A.TXT", "B.PY", "C.JSONL:1"}
    assert may_have_labels(spec(tmp_path))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet", "a.txt.gz"])
def test_an_unreadable_file_is_named_by_plan_and_run(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / name, RIVER)
    one = spec(tmp_path)

    def deny(*args: Any, **settings: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", deny)
    monkeypatch.setattr(Path, "read_bytes", deny)
    for work in (identify, lambda one: list(documents(one, 0))):
        with pytest.raises(TextError, match=rf"{name}' cannot be read .*Permission denied"):
            work(one)


def test_a_folder_that_cannot_be_listed_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "a.txt", RIVER)

    def walk(root: str, onerror: Any) -> Any:
        onerror(PermissionError(13, "Permission denied", str(tmp_path / "closed")))
        return iter([])

    monkeypatch.setattr(os, "walk", walk)
    with pytest.raises(SpecError, match=r"closed' cannot be read \(Permission denied\)"):
        paths(str(tmp_path))


@pytest.mark.parametrize("source", ["x" * 5_000, "~nobody-of-that-name/a.txt", "a\0b", "[", "**"])
def test_a_source_that_cannot_be_is_one_sentence(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValidationError, match="no text is at"):
        spec(source)


# --- datasets --------------------------------------------------------------------------------


def serve(
    monkeypatch: pytest.MonkeyPatch, records: list[Any], error: Exception | None = None
) -> None:
    def load_dataset(name: str, config: str | None, split: str, streaming: bool) -> Any:
        yield from records
        if error is not None:
            raise error

    module = SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(__import__("sys").modules, "datasets", module)


def test_null_and_empty_records_of_a_dataset_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, [{"text": "one"}, {"text": None}, {"text": ""}, {"text": "two"}])
    skipped: Counter[str] = Counter()
    found = {d.name: d.text for d in documents(spec("hf:some/set"), 0, skipped)}
    assert found == {"some/set:0": "one", "some/set:3": "two"}
    assert skipped == {"empty": 2}


def test_a_dataset_may_hold_token_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, [{"input_ids": [3, 4]}, {"input_ids": []}, {"input_ids": [5]}])
    found = list(stream_documents("hf:some/set", "text", "train", 6))
    assert [list(one.ids or []) for one in found] == [[3, 4], [], [5]]
    with pytest.raises(
        TextError, match="record 2 of dataset 'some/set': 'input_ids' has 5 as item 1"
    ):
        list(stream_documents("hf:some/set", "text", "train", 5))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (["a", "b"], "'text' is a list, not text"),
        (b"x", "'text' is bytes, not text"),
        (0, "'text' is a number, not text"),
        ("\ud800", "half of a surrogate pair"),
    ],
)
def test_records_of_a_dataset_that_are_not_text_are_refused(
    monkeypatch: pytest.MonkeyPatch, value: Any, words: str
) -> None:
    serve(monkeypatch, [{"text": "one"}, {"text": value}])
    message = refused("hf:some/set")
    assert words in message
    assert "record 1 of dataset 'some/set'" in message


@pytest.mark.parametrize("error", [EOFError(), OSError(""), ValueError("bad\nsplit")])
def test_a_dataset_that_stops_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    serve(monkeypatch, [{"text": "one"}], error)
    assert "dataset 'some/set' cannot be streamed (" in refused("hf:some/set")
