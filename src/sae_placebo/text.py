"""Text: sources of documents, cut into rows of tokens; see `rows` for what a row is.

Training and held-out rows come from different documents. Rows of .py files carry labels.
"""

from __future__ import annotations

import glob
import hashlib
import json
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from sae_placebo.errors import MissingExtra, SpecError, TextError
from sae_placebo.labels.align import label_tokens
from sae_placebo.progress import Advance, unheard
from sae_placebo.rows import Piece, Rows, RowsBuilder
from sae_placebo.spec import Spec, numpy_generator

__all__ = [
    "Document", "Rows", "TextSpec", "documents", "identify", "library_files", "paths", "tokenize",
    "vocabulary",
]  # fmt: skip

SUFFIXES = (".txt", ".md", ".rst", ".py", ".jsonl", ".parquet")
# the interpreter's own library without its test folders and without what was installed later
_NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
_TOKENIZED_AT_ONCE = 32


class TextSpec(Spec):
    """Where the text comes from and how it is cut.

    Attributes:
        source: `python-stdlib` (the running interpreter's own library), a file, a folder or a glob
            of .txt, .md, .rst, .py, .jsonl and .parquet files, or `hf:NAME[:CONFIG]` for a Hugging
            Face dataset, streamed (`pip install "sae-placebo[hub]"`).
        field: Column that holds the text in .jsonl, .parquet and datasets.
        split: Split of a Hugging Face dataset.
        context_tokens: Tokens in a row, BOS included.
        train_tokens: Tokens to train on, BOS and padding not counted.
        heldout_tokens: Tokens to measure on, from other documents.
        max_document_tokens: Most tokens taken from one document, so that there are many documents to
            resample; a longer document gives a run of rows from a random start. None: all.
        bos: `auto` puts the tokenizer's BOS in front of each row where it has one; `none` never does.
    """

    source: str = Field("python-stdlib", min_length=1)
    field: str = "text"
    split: str = "train"
    context_tokens: int = Field(128, ge=8)
    train_tokens: int = Field(ge=1)
    heldout_tokens: int = Field(ge=1)
    max_document_tokens: int | None = Field(1_016, ge=8)
    bos: Literal["auto", "none"] = "auto"

    @model_validator(mode="after")
    def _local_source_exists(self) -> TextSpec:
        if self.source.startswith("hf:"):
            if not self.source.removeprefix("hf:").partition(":")[0].strip():
                raise SpecError(
                    f"text.source {self.source!r} names no dataset: write hf:NAME or hf:NAME:CONFIG"
                )
        elif self.source != "python-stdlib":
            paths(self.source)
        return self


@dataclass(frozen=True)
class Document:
    """One document: a name that a reader can find it by, its text, whether it is a .py file."""

    name: str
    text: str
    python: bool = False


def paths(source: str) -> list[Path]:
    """Return the files that a local source names, sorted.

    Raises:
        SpecError: nothing is there, or a file of a kind that cannot be read.
    """
    root = Path(source).expanduser()
    if root.is_dir():
        found = sorted(p for p in root.rglob("*") if p.is_file() and p.suffix in SUFFIXES)
    elif root.is_file():
        found = [root]
    else:
        matches = glob.glob(str(root), recursive=True)  # noqa: PTH207 - the pattern may be absolute
        found = sorted(Path(match) for match in matches if Path(match).is_file())
    if not found:
        raise SpecError(
            f"no text is at {source!r}: give 'python-stdlib', an existing file, folder or glob with "
            f"{', '.join(SUFFIXES)} files, or 'hf:NAME'"
        )
    wrong = next((p for p in found if p.suffix not in SUFFIXES), None)
    if wrong is not None:
        raise SpecError(
            f"{str(wrong)!r} cannot be read as text: files may be {', '.join(SUFFIXES)}"
        )
    return found


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


def _labelled(spec: TextSpec) -> list[tuple[str, Path]]:
    if spec.source == "python-stdlib":
        root = Path(sysconfig.get_path("stdlib"))
        return [(p.relative_to(root).as_posix(), p) for p in library_files()]
    files = paths(spec.source)
    shared = Path(*_common_parts(files)) if len(files) > 1 else files[0].parent
    return [(p.relative_to(shared).as_posix(), p) for p in files]


def _common_parts(files: list[Path]) -> tuple[str, ...]:
    parts = zip(*(p.parent.parts for p in files), strict=False)
    shared: list[str] = []
    for names in parts:
        if len(set(names)) > 1:
            break
        shared.append(names[0])
    return tuple(shared)


def identify(spec: TextSpec) -> dict[str, Any]:
    """Return JSON facts that change when the text does: names and a hash of the content.

    A Hugging Face dataset is streamed, so it is known by its name alone.
    """
    if spec.source.startswith("hf:"):
        return {"source": spec.source, "field": spec.field, "split": spec.split}
    content = hashlib.sha256()
    files = _labelled(spec)
    for name, path in files:
        content.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return {"files": len(files), "sha256": content.hexdigest()}


def documents(spec: TextSpec, seed: int) -> Iterator[Document]:
    """Yield documents in a random order fixed by `seed` (datasets: in their own order)."""
    if spec.source.startswith("hf:"):
        yield from _hub_documents(spec)
        return
    files = _labelled(spec)
    order = numpy_generator(seed, "documents")
    if all(path.suffix not in (".jsonl", ".parquet") for _, path in files):
        for i in order.permutation(len(files)):  # read one by one: most are never needed
            yield _whole(*files[i])
        return
    found = [
        document for name, path in files for document in _file_documents(name, path, spec.field)
    ]
    for i in order.permutation(len(found)):
        yield found[i]


def _whole(name: str, path: Path) -> Document:
    return Document(name, _read(path), python=path.suffix == ".py")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TextError(
            f"{str(path)!r} is not UTF-8 (byte {error.start}: {error.object[error.start]:#04x}); convert "
            "it to UTF-8 or leave it out of text.source"
        ) from None
    except OSError as error:
        raise TextError(f"{str(path)!r} cannot be read ({error.strerror})") from None


def _file_documents(name: str, path: Path, field: str) -> Iterator[Document]:
    if path.suffix == ".jsonl":
        for number, line in enumerate(_read(path).splitlines(), start=1):
            if line.strip():
                yield Document(f"{name}:{number}", _field(line, field, f"{path}:{number}"))
    elif path.suffix == ".parquet":
        for number, text in enumerate(_column(path, field), start=1):
            if text:
                yield Document(f"{name}:{number}", text)
    else:
        yield _whole(name, path)


def _column(path: Path, field: str) -> Iterator[str | None]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as table:
            schema = table.schema_arrow
            if field not in schema.names:
                raise TextError(
                    f"{str(path)!r} has no column {field!r}; it has {', '.join(schema.names)}: set "
                    "text.field"
                )
            kind = schema.field(field).type
            plain = kind.value_type if pa.types.is_dictionary(kind) else kind
            if not (pa.types.is_string(plain) or pa.types.is_large_string(plain)):
                raise TextError(f"{str(path)!r}: {field!r} is {kind}, not text; set text.field")
            for batch in table.iter_batches(columns=[field]):
                yield from batch.column(0).to_pylist()
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TextError(
            f"{str(path)!r} cannot be read as parquet ({reason}); replace it or leave it out of "
            "text.source"
        ) from None


def _field(line: str, field: str, where: str) -> str:
    try:
        text = json.loads(line)[field]
    except (ValueError, KeyError, TypeError):
        raise TextError(
            f"{where} is not a JSON object with a {field!r} key; mend the line or set text.field"
        ) from None
    if not isinstance(text, str):
        raise TextError(f"{where}: {field!r} is {type(text).__name__}, not text")
    return text


def _hub_documents(spec: TextSpec) -> Iterator[Document]:
    try:
        import datasets
    except ImportError:
        raise MissingExtra(
            f"text.source {spec.source!r} needs the datasets library: pip install 'sae-placebo[hub]'"
        ) from None
    name, _, config = spec.source.removeprefix("hf:").partition(":")
    try:
        stream = datasets.load_dataset(name, config or None, split=spec.split, streaming=True)
        for number, record in enumerate(stream):
            if spec.field not in record:
                raise TextError(
                    f"dataset {name!r} has no column {spec.field!r}; it has {', '.join(record)}: set "
                    "text.field"
                )
            if record[spec.field]:
                yield Document(f"{name}:{number}", str(record[spec.field]))
    except (OSError, ConnectionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise TextError(
            f"dataset {name!r} cannot be streamed ({reason}); check the name and the network, or give "
            "text.source a local file"
        ) from error


def tokenize(
    spec: TextSpec, tokenizer: Any, seed: int, advance: Advance = unheard
) -> dict[str, Rows]:
    """Return the rows of the splits `heldout` and `train`; no document is in both.

    Documents come in an order fixed by `seed`; held-out rows are filled first, then training rows,
    each to exactly the tokens asked for. `advance` is told how many tokens of a document were taken.

    Raises:
        TextError: the text holds fewer tokens than were asked for, or none.
    """
    bos = tokenizer.bos_token_id if spec.bos == "auto" else None
    stream = _tokenized(spec, tokenizer, seed)
    wanted = {"heldout": spec.heldout_tokens, "train": spec.train_tokens}
    splits: dict[str, RowsBuilder] = {}
    total = n_documents = 0
    for split, target in wanted.items():
        filled = splits[split] = RowsBuilder()
        have = 0
        while have < target:
            document = next(stream, None)
            if document is None:
                raise _too_short(spec, total + have, n_documents + len(filled.names))
            name, pieces = document
            before = have
            for piece in pieces:
                if have == target:
                    break
                # without BOS, the row's first token is read by the model but not by us
                kept = piece[: target - have + (bos is None)]
                filled.add(kept)
                have += len(kept.ids) - (bos is None)
            filled.names.append(name)
            advance(have - before)
        total, n_documents = total + have, n_documents + len(filled.names)
    labelled = any(one.labelled() for one in splits.values())
    return {name: one.build(spec.context_tokens, bos, labelled) for name, one in splits.items()}


def _too_short(spec: TextSpec, tokens: int, n_documents: int) -> TextError:
    if n_documents == 0:
        return TextError(f"text.source {spec.source!r} holds no text: every document is empty")
    cap = spec.max_document_tokens
    limit = "" if cap is None else f" (at most {cap:,} from each: text.max_document_tokens)"
    return TextError(
        f"text.source {spec.source!r} holds {tokens:,} tokens in {n_documents:,} documents{limit}, and "
        f"train_tokens + heldout_tokens asks for {spec.train_tokens + spec.heldout_tokens:,}; ask for "
        "fewer or add text"
    )


def _tokenized(spec: TextSpec, tokenizer: Any, seed: int) -> Iterator[tuple[str, list[Piece]]]:
    """Yield each document's name and its rows of tokens, BOS not included."""
    body = spec.context_tokens - (spec.bos == "auto" and tokenizer.bos_token_id is not None)
    cap = spec.max_document_tokens
    body = body if cap is None else min(body, cap)
    start = numpy_generator(seed, "document starts")
    pending: list[Document] = []

    def cut() -> Iterator[tuple[str, list[Piece]]]:
        ids, offsets = _encode(tokenizer, pending)
        for document, tokens, places in zip(pending, ids, offsets, strict=True):
            n_rows = -(-len(tokens) // body)
            most = n_rows if cap is None else cap // body
            first = int(start.integers(0, max(1, n_rows - most + 1)))
            begin, end = first * body, min((first + most) * body, len(tokens))
            labels = None
            if document.python and places is not None and end > begin:
                labels = label_tokens(document.text, places, begin, end)
            run = Piece(tokens[begin:end], labels)
            rows = [run[i : i + body] for i in range(0, end - begin, body)]
            kept = [row for row in rows if len(row.ids) > 1]
            if kept:
                yield document.name, kept
        pending.clear()

    for document in documents(spec, seed):
        pending.append(document)
        if len(pending) == _TOKENIZED_AT_ONCE:
            yield from cut()
    if pending:
        yield from cut()


def _encode(
    tokenizer: Any, found: list[Document]
) -> tuple[list[list[int]], Sequence[Sequence[tuple[int, int]] | None]]:
    """Return the token ids of documents, and the characters that each token covers where needed."""
    # tokenizers written in Python cannot tell
    wanted = any(d.python for d in found) and getattr(tokenizer, "is_fast", False)
    encoded = tokenizer(
        [d.text for d in found],
        add_special_tokens=False,
        verbose=False,
        return_offsets_mapping=bool(wanted),
    )
    return encoded["input_ids"], encoded["offset_mapping"] if wanted else [None] * len(found)


def vocabulary(tokenizer: Any) -> list[str]:
    """Return the text of each token id; bytes that are no character alone show as U+FFFD."""
    ids = range(len(tokenizer))
    return list(tokenizer.batch_decode([[i] for i in ids], clean_up_tokenization_spaces=False))
