"""Documents: which files a source names, and what text is in them.

`docs/reference/text.md` holds the rules. What cannot be read is refused by name; nothing is guessed.
"""

from __future__ import annotations

import glob
import hashlib
import io
import os
import stat
import sysconfig
import tokenize
import zlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sae_placebo.core.errors import MissingExtra, SpecError, TextError
from sae_placebo.data.contents import COMPRESSED, bytes_of, decoded, reason, sound, unreadable
from sae_placebo.data.records import Value, column, held_by, lines, value_of

LIBRARY = "python-stdlib"
_TABLES = (".jsonl", ".parquet")
SUFFIXES = (".txt", ".md", ".rst", ".py", *_TABLES)
ALLOWED = f"{', '.join(SUFFIXES)}, all but .parquet also with .gz or .zst behind"
# the interpreter's own library without its test folders and without what was installed later
_NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True)
class Document:
    """One document: a name that a reader can find it by, and its text, or the ids of its tokens.

    Attributes:
        name: Its file, or its file and line or row.
        text: Empty where ids are given.
        python: Whether it is a .py file.
        ids: Token ids, which are taken as they are; None where there is text.
    """

    name: str
    text: str
    python: bool = False
    ids: array[int] | None = None

    @property
    def is_empty(self) -> bool:
        """Return whether it holds nothing."""
        return not (self.text if self.ids is None else self.ids)


def _document(name: str, value: Value) -> Document:
    return (
        Document(name, "", ids=value) if isinstance(value, array) else Document(name, value or "")
    )


def suffix(path: Path) -> str:
    """Return the kind of a file as one of `SUFFIXES`, compressed or not; empty where it is none."""
    last = path.suffix.lower()
    inner = Path(path.stem).suffix.lower() if last in COMPRESSED else last
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
        raise unreadable(error.filename, error, SpecError)

    for folder, _, names in os.walk(root, onerror=refuse):
        yield from (Path(folder, name) for name in names)


def _files(candidates: Iterable[Path]) -> list[Path]:
    """Return the regular files, sorted; of several paths to one file, that with the fewest parts."""
    found: dict[tuple[int, int], Path] = {}
    for path in sorted(candidates, key=lambda path: (len(path.parts), path.parts)):
        try:
            facts = path.stat()
        except PermissionError as error:
            raise unreadable(path, error, SpecError) from None
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
            raise unreadable(path, error) from None
        content.update(name.encode(errors="surrogateescape") + b"\0" + held)
    return content.hexdigest()


def is_table(path: Path) -> bool:
    """Return whether a file holds many documents, one per record."""
    return suffix(path) in _TABLES


def read_documents(
    name: str, path: Path, field: str, n_ids: int | None = None
) -> Iterator[Document]:
    """Yield the documents of a file; null and empty ones too, as empty text.

    Args:
        name: What the file is called.
        path: Where it lies.
        field: Key or column that holds the text, or the token ids.
        n_ids: How many token ids the model has; None where that is not known.

    Raises:
        TextError: the file or a record cannot be read, or is not text; says which and what to do.
    """
    name = name.encode(errors="surrogateescape").decode(errors="backslashreplace")
    kind = suffix(path)
    if kind in _TABLES:
        read = column if kind == ".parquet" else lines
        for number, value in read(path, field, n_ids):
            yield _document(f"{name}:{number}", value)
    else:
        yield Document(name, _whole(path), python=kind == ".py")


def _whole(path: Path) -> str:
    content = bytes_of(path)
    fallback = _declared(content) if suffix(path) == ".py" else "utf-8"
    text = decoded(path, content, fallback)
    return sound(text.replace("\r\n", "\n").replace("\r", "\n"), repr(str(path)))


def _declared(content: bytes) -> str:
    """Return the encoding that Python source declares; UTF-8 where it declares none that is known."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        b" ".decode(encoding)  # some codecs make no text
    except (SyntaxError, LookupError, UnicodeError):
        return "utf-8"
    return encoding


def stream_documents(
    source: str, field: str, split: str, n_ids: int | None = None
) -> Iterator[Document]:
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
            key = held_by(record, field)
            if key not in record:
                raise TextError(
                    f"dataset {name!r} has no column {key!r}; it has {', '.join(record)}: set "
                    "text.field"
                )
            where = f"record {number} of dataset {name!r}"
            yield _document(f"{name}:{number}", value_of(record[key], key, where, n_ids))
    except (OSError, ValueError, EOFError, zlib.error, NotImplementedError) as error:
        raise TextError(
            f"dataset {name!r} cannot be streamed ({reason(error)}); check the name and the network, or "
            "give text.source a local file"
        ) from error
