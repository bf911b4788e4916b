"""Documents: which files a source names, and what text is in them.

`docs/reference/text.md` holds the rules. What cannot be read is refused by name; nothing is guessed.
"""

from __future__ import annotations

import codecs
import glob
import hashlib
import io
import json
import os
import stat
import sysconfig
import tokenize
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_placebo.core.errors import MissingExtra, SpecError, TextError

LIBRARY = "python-stdlib"
_TABLES = (".jsonl", ".parquet")
_COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
SUFFIXES = (".txt", ".md", ".rst", ".py", *_TABLES)
ALLOWED = f"{', '.join(SUFFIXES)}, all but .parquet also with .gz or .zst behind"
# the interpreter's own library without its test folders and without what was installed later
_NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
# UTF-32's little-endian mark begins with UTF-16's
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_MAGIC = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst", b"PAR1\x15": ".parquet"}
_JSON_KINDS = {float: "a number", bool: "true or false", list: "a list", dict: "an object"}


@dataclass(frozen=True)
class Document:
    """One document: a name that a reader can find it by, its text, whether it is a .py file."""

    name: str
    text: str
    python: bool = False


def suffix(path: Path) -> str:
    """Return the kind of a file as one of `SUFFIXES`, compressed or not; empty where it is none."""
    last = path.suffix.lower()
    inner = Path(path.stem).suffix.lower() if last in _COMPRESSED else last
    if inner not in SUFFIXES or (inner == ".parquet" and last != inner):
        return ""
    return inner


def paths(source: str) -> list[Path]:
    """Return the files that a local source names, sorted; a file that several links reach is one.

    Raises:
        SpecError: nothing is there, a file of a kind that cannot be read, or a folder that cannot be listed.
    """
    # unlike Path's methods, these three say no to a name that is too long, or of a user who is unknown
    root = os.path.expanduser(source)  # noqa: PTH111
    if os.path.isdir(root):  # noqa: PTH112
        found = [path for path in _files(_walk(root)) if suffix(path)]
    elif os.path.isfile(root):  # noqa: PTH113
        found = [Path(root)]
    else:
        matches = glob.glob(root, recursive=True)  # noqa: PTH207 - the pattern may be absolute
        found = _files(map(Path, matches))
    if not found:
        raise SpecError(
            f"no text is at {source!r:.80}: give 'python-stdlib', an existing file, folder or glob with "
            f"files that end in {ALLOWED}, or 'hf:NAME'"
        )
    wrong = next((path for path in found if not suffix(path)), None)
    if wrong is not None:
        raise SpecError(f"{str(wrong)!r} cannot be read as text: files may end in {ALLOWED}")
    return found


def _walk(root: str) -> Iterator[Path]:
    """Yield what lies in a folder and its folders; links to folders are not followed."""

    def refuse(error: OSError) -> None:
        raise _unreadable(error.filename, error, SpecError)

    for folder, _, names in os.walk(root, onerror=refuse):
        yield from (Path(folder, name) for name in names)


def _files(candidates: Iterable[Path]) -> list[Path]:
    """Return the regular files, sorted; of several paths to one file, that with the fewest parts."""
    found: dict[tuple[int, int], Path] = {}
    for path in sorted(candidates, key=lambda path: (len(path.parts), path.parts)):
        try:
            facts = path.stat()
        except PermissionError as error:
            raise _unreadable(path, error, SpecError) from None
        except OSError:  # a link to nothing, or to itself
            continue
        if stat.S_ISREG(facts.st_mode):
            found.setdefault((facts.st_dev, facts.st_ino), path)
    return sorted(found.values(), key=lambda path: path.parts)


def library_files() -> list[Path]:
    """Return the .py files of the running interpreter's standard library, without tests, sorted."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(
        p for p in root.rglob("*.py") if not _NOT_LIBRARY & set(p.relative_to(root).parts)
    )
    if not files:
        raise TextError(
            f"this Python has no readable library at {str(root)!r} (a zipped one?); give text.source "
            "another value"
        )
    return files


def named_files(source: str) -> list[tuple[str, Path]]:
    """Return the files of a local source, each with its path below what all of them share."""
    if source == LIBRARY:
        files, shared = library_files(), Path(sysconfig.get_path("stdlib"))
    else:
        files = paths(source)
        shared = Path(os.path.commonpath([path.parent for path in files]))
    return [(path.relative_to(shared).as_posix(), path) for path in files]


def identify_files(files: Iterable[tuple[str, Path]]) -> str:
    """Return a hash of the names and the content of files."""
    content = hashlib.sha256()
    for name, path in files:
        try:
            with path.open("rb") as stream:
                held = hashlib.file_digest(stream, "sha256").digest()
        except OSError as error:
            raise _unreadable(path, error) from None
        content.update(name.encode(errors="surrogateescape") + b"\0" + held)
    return content.hexdigest()


def is_table(path: Path) -> bool:
    """Return whether a file holds many documents, one per record."""
    return suffix(path) in _TABLES


def read_documents(name: str, path: Path, field: str) -> Iterator[Document]:
    """Yield the documents of a file; null and empty ones too, as empty text.

    Raises:
        TextError: the file or a record cannot be read, or is not text; says which and what to do.
    """
    name = name.encode(errors="surrogateescape").decode(errors="backslashreplace")
    kind = suffix(path)
    if kind in _TABLES:
        texts = _column(path, field) if kind == ".parquet" else _lines(path, field)
        for number, text in texts:
            yield Document(f"{name}:{number}", text or "")
    else:
        yield Document(name, _whole(path), python=kind == ".py")


def _whole(path: Path) -> str:
    content = _content(path)
    fallback = _declared(content) if suffix(path) == ".py" else "utf-8"
    text = _decoded(path, content, fallback)
    return _sound(text.replace("\r\n", "\n").replace("\r", "\n"), repr(str(path)))


def _declared(content: bytes) -> str:
    """Return the encoding that Python source declares; UTF-8 where it declares none that is known."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        b" ".decode(encoding)  # some codecs make no text
    except (SyntaxError, LookupError, UnicodeError):
        return "utf-8"
    return encoding


def _content(path: Path) -> bytes:
    """Return what a file holds, decompressed if it is named as compressed."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None
    codec = _COMPRESSED.get(path.suffix.lower())
    if codec is None:
        _check_magic(path, content)
        return content
    import pyarrow as pa

    try:
        if not content:
            raise EOFError("the file is empty")
        with pa.input_stream(pa.BufferReader(content), compression=codec) as stream:
            return bytes(stream.read())
    except (pa.ArrowException, OSError, EOFError) as error:
        raise TextError(
            f"{str(path)!r} cannot be decompressed as {codec} ({_reason(error)}); replace it or leave it "
            "out of text.source"
        ) from None


def _check_magic(path: Path, content: bytes) -> None:
    """Refuse a file whose first bytes are those of another kind than its name says."""
    for magic, other in _MAGIC.items():
        if content.startswith(magic) and path.suffix.lower() != other:
            raise TextError(
                f"{str(path)!r} is not what its name says: its first bytes are those of a {other} file; "
                "mend the name or the file, or leave it out of text.source"
            )


def _decoded(path: Path, content: bytes, encoding: str = "utf-8") -> str:
    """Return the text that bytes stand for; a byte order mark decides over `encoding`, and is left out."""
    for mark, marked in _MARKS:
        if content.startswith(mark):
            content, encoding = content[len(mark) :], marked
            break
    try:
        text = content.decode(encoding)
    except UnicodeError as error:
        where = ""
        if isinstance(error, UnicodeDecodeError):
            where = f" (byte {error.start}: {error.object[error.start]:#04x})"
        raise TextError(
            f"{str(path)!r} is not {encoding.upper()}{where}; convert it to UTF-8 or leave it out of "
            "text.source"
        ) from None
    if text.count("\0") * 8 > len(text):
        raise TextError(
            f"{str(path)!r} is UTF-16 or UTF-32 without a byte order mark, or no text: "
            f"{text.count(chr(0)):,} of its {len(text):,} characters are null; convert it to UTF-8 or leave "
            "it out of text.source"
        )
    return text


def _sound(text: str, where: str) -> str:
    """Return `text`, which must be whole characters: half of a surrogate pair is none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TextError(
            f"{where} holds half of a surrogate pair (U+{ord(text[error.start]):04X}, character "
            f"{error.start + 1} of the text), which is no character; mend it or leave it out of text.source"
        ) from None
    return text


def _lines(path: Path, field: str) -> Iterator[tuple[int, str | None]]:
    """Yield line number and text of each record; only a line feed ends a line."""
    for number, line in enumerate(_decoded(path, _content(path)).split("\n"), start=1):
        record = line.removeprefix("\ufeff")  # where files with marks were joined
        if record.strip():
            yield number, _field(record, field, repr(f"{path}:{number}"))


def _field(line: str, field: str, where: str) -> str | None:
    """Return the text of one record; None where it is null.

    Control characters within strings are read as they are. Numbers are not needed, and a long one
    would be refused as an integer.
    """
    outermost: list[tuple[str, Any]] = []

    def kept(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        outermost[:] = pairs  # objects are ended from within, so the line's own comes last
        return dict(pairs)

    try:
        record = json.loads(line, strict=False, parse_int=float, object_pairs_hook=kept)
    except RecursionError:
        raise TextError(
            f"{where} is nested too deeply to be read; flatten the record or leave it out"
        ) from None
    except json.JSONDecodeError as error:
        raise TextError(
            f"{where} is not a JSON object ({error.msg}, column {error.colno}); mend the line or leave it "
            "out"
        ) from None
    if not isinstance(record, dict):
        kind = _JSON_KINDS.get(type(record), "text or null")
        raise TextError(
            f"{where} is not a JSON object but {kind}; write an object with a {field!r} key per line"
        )
    if field not in record:
        keys = ", ".join(map(repr, list(record)[:10])) or "none"
        raise TextError(f"{where} has no {field!r} key (its keys: {keys}); set text.field")
    if [name for name, _ in outermost].count(field) > 1:  # of two values a dict has the last
        raise TextError(f"{where} has the key {field!r} twice; leave one of them out")
    return _text_of(record[field], field, where)


def _text_of(value: Any, field: str, where: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        kind = _JSON_KINDS.get(type(value), type(value).__name__)
        raise TextError(f"{where}: {field!r} is {kind}, not text; set text.field")
    return _sound(value, where)


def _column(path: Path, field: str) -> Iterator[tuple[int, str | None]]:
    """Yield record number and text of each record."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    before = 0
    try:
        with path.open("rb") as stream:
            _check_magic(path, stream.read(8))
            with pq.ParquetFile(stream) as table:
                _check_column(path, table.schema_arrow, field)
                for batch in table.iter_batches(columns=[field]):
                    texts = batch.column(0).to_pylist()
                    yield from enumerate(texts, start=before + 1)
                    before += len(texts)
    except UnicodeDecodeError:
        raise TextError(
            f"{str(path)!r}: {field!r} holds bytes that are not UTF-8 behind record {before:,}; write the "
            "file anew or leave it out of text.source"
        ) from None
    except (pa.ArrowException, OSError) as error:
        raise TextError(
            f"{str(path)!r} cannot be read as parquet ({_reason(error)}); replace it or leave it out of "
            "text.source"
        ) from None


def _check_column(path: Path, schema: Any, field: str) -> None:
    """Refuse a column that is missing, there twice, or not text; one of nulls alone may be text."""
    import pyarrow as pa

    if schema.names.count(field) != 1:
        found = "two columns" if field in schema.names else "no column"
        raise TextError(
            f"{str(path)!r} has {found} {field!r}; it has {', '.join(schema.names)}: set text.field"
        )
    kind = schema.field(field).type
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    is_text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_null)
    if not any(each(plain) for each in is_text) and str(plain) != "string_view":
        raise TextError(f"{str(path)!r}: {field!r} is {kind}, not text; set text.field")


def stream_documents(source: str, field: str, split: str) -> Iterator[Document]:
    """Yield the documents of a Hugging Face dataset in its order; null ones as empty text."""
    try:
        import datasets
    except ImportError:
        raise MissingExtra(
            f"text.source {source!r} needs the datasets library: pip install 'sae-placebo[hub]'"
        ) from None
    name, _, config = source.removeprefix("hf:").partition(":")
    try:
        records = datasets.load_dataset(name, config or None, split=split, streaming=True)
        for number, record in enumerate(records):
            if field not in record:
                raise TextError(
                    f"dataset {name!r} has no column {field!r}; it has {', '.join(record)}: set "
                    "text.field"
                )
            text = _text_of(record[field], field, f"record {number} of dataset {name!r}")
            yield Document(f"{name}:{number}", text or "")
    except (OSError, ValueError, EOFError, zlib.error, NotImplementedError) as error:
        raise TextError(
            f"dataset {name!r} cannot be streamed ({_reason(error)}); check the name and the network, or "
            "give text.source a local file"
        ) from error


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _unreadable(
    path: object, error: OSError, kind: type[SpecError] | type[TextError] = TextError
) -> SpecError | TextError:
    return kind(
        f"{str(path)!r} cannot be read ({error.strerror}); make it readable or leave it out of text.source"
    )
