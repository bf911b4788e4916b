"""Text: sources of documents, cut into rows of tokens; see `rows` for what a row is.

Training and held-out rows come from different documents. Rows of .py files carry labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from sae_placebo.core.errors import SpecError, TextError
from sae_placebo.core.progress import Advance, unheard
from sae_placebo.core.spec import Spec, numpy_generator
from sae_placebo.data.copies import Overlap, Sketch, sketches
from sae_placebo.data.documents import (
    LIBRARY,
    Document,
    identify_files,
    is_table,
    library_files,
    named_files,
    paths,
    read_documents,
    stream_documents,
    suffix,
)
from sae_placebo.data.labels.align import label_tokens
from sae_placebo.data.rows import Rows, RowsBuilder, TokenRun
from sae_placebo.data.tokenizing import Encoder, vocabulary

__all__ = [
    "Document", "Rows", "TextSpec", "Tokenized", "cut", "documents", "identify", "library_files",
    "may_have_labels", "paths", "tokenize", "vocabulary",
]  # fmt: skip

_TOKENIZED_AT_ONCE = 32


class TextSpec(Spec):
    """The settings of the text: where it comes from and how it is cut.

    Attributes:
        source: `python-stdlib` (the running interpreter's own library), a file, a folder or a glob
            of .txt, .md, .rst, .py, .jsonl and .parquet files, all but the last also with .gz or .zst
            behind, or `hf:NAME[:CONFIG]` for a Hugging Face dataset, streamed
            (`pip install "sae-placebo[hub]"`).
        field: Column that holds the text in .jsonl, .parquet and datasets.
        split: Split of a Hugging Face dataset.
        context_tokens: Tokens in a row, BOS included.
        train_tokens: Tokens to train on, BOS and padding not counted.
        heldout_tokens: Tokens to measure on, from other documents.
        max_document_tokens: Most tokens taken from one document, so that there are many documents to
            resample; a longer document gives a run of rows from a random start. None: all.
        bos: `auto` puts the tokenizer's BOS in front of each row where it has one; `none` never does.
        special_tokens: Whether a special token that is written out in a document, such as
            `<|endoftext|>`, is read as that token; otherwise it is text like any other.
    """

    source: str = Field("python-stdlib", min_length=1)
    field: str = Field("text", min_length=1)
    split: str = Field("train", min_length=1)
    context_tokens: int = Field(128, ge=8)
    train_tokens: int = Field(ge=1)
    heldout_tokens: int = Field(ge=1)
    max_document_tokens: int | None = Field(1_016, ge=8)
    bos: Literal["auto", "none"] = "auto"
    special_tokens: bool = False

    @model_validator(mode="after")
    def _local_source_exists(self) -> TextSpec:
        if self.source.startswith("hf:"):
            if not self.source.removeprefix("hf:").partition(":")[0].strip():
                raise SpecError(
                    f"text.source {self.source!r} names no dataset: write hf:NAME or hf:NAME:CONFIG"
                )
        elif self.source != LIBRARY:
            paths(self.source)
        return self


def may_have_labels(spec: TextSpec) -> bool:
    """Return whether some documents are Python, whose tokens have labels."""
    if spec.source.startswith("hf:"):
        return False
    return spec.source == LIBRARY or any(suffix(path) == ".py" for path in paths(spec.source))


def identify(spec: TextSpec) -> dict[str, Any]:
    """Return JSON facts that change when the text does: names and a hash of the content.

    A Hugging Face dataset is streamed, so it is known by its name alone.

    Raises:
        TextError: a file cannot be read.
    """
    if spec.source.startswith("hf:"):
        return {"source": spec.source, "field": spec.field, "split": spec.split}
    files = named_files(spec.source)
    return {"files": len(files), "sha256": identify_files(files)}


def documents(spec: TextSpec, seed: int, skipped: Counter[str] | None = None) -> Iterator[Document]:
    """Yield documents in a random order fixed by `seed` (datasets: in their own order).

    Records that are null or empty are left out, and counted in `skipped` as `empty`; a file that is
    empty is yielded.
    """
    skipped = Counter() if skipped is None else skipped
    if spec.source.startswith("hf:"):
        for document in stream_documents(spec.source, spec.field, spec.split):
            if document.text:
                yield document
            else:
                skipped["empty"] += 1
        return
    files = named_files(spec.source)
    order = numpy_generator(seed, "documents")
    if not any(is_table(path) for _, path in files):
        for i in order.permutation(len(files)):  # read one by one: most are never needed
            name, path = files[i]
            yield from read_documents(name, path, spec.field)
        return
    found = []
    for name, path in files:
        for document in read_documents(name, path, spec.field):
            if document.text or not is_table(path):
                found.append(document)
            else:
                skipped["empty"] += 1
    for i in order.permutation(len(found)):
        yield found[i]


@dataclass(frozen=True)
class Tokenized:
    """The rows of each split, and what is said about the documents behind them, as JSON.

    Attributes:
        splits: Rows of `heldout` and `train`.
        skipped: Documents left out, of those that were read: `empty` ones, and `one_token` ones, of
            which no row has two tokens.
        shared: What the held-out text shares with the training text; see `overlap`.
    """

    splits: dict[str, Rows]
    skipped: dict[str, int]
    shared: dict[str, int | float]


@dataclass(frozen=True)
class _Drawn:
    """A document that is in rows: its name, its rows of tokens without BOS, and its sketch."""

    name: str
    rows: list[TokenRun]
    sketch: Sketch


def tokenize(spec: TextSpec, tokenizer: Any, seed: int) -> dict[str, Rows]:
    """Return the rows of the splits `heldout` and `train`; see `cut`."""
    return cut(spec, tokenizer, seed).splits


def cut(spec: TextSpec, tokenizer: Any, seed: int, advance: Advance = unheard) -> Tokenized:
    """Return the text as rows of the splits `heldout` and `train`; no document is in both.

    Documents come in an order fixed by `seed`; held-out rows are filled first, then training rows,
    each to exactly the tokens asked for. Two documents may have the same text: that is counted.
    `advance` is told how many tokens of a document were taken.

    Raises:
        TextError: the text cannot be read, or holds fewer tokens than were asked for, or none.
    """
    bos = tokenizer.bos_token_id if spec.bos == "auto" else None
    skipped: Counter[str] = Counter(empty=0, one_token=0)
    stream = _tokenized(spec, tokenizer, seed, skipped)
    heldout, held = RowsBuilder(), list[tuple[Sketch, list[int]]]()
    train = RowsBuilder()
    for sketch, piece in _fill(heldout, stream, spec.heldout_tokens, bos, advance):
        held.append((sketch, piece))
    if heldout.n_tokens(bos) == spec.heldout_tokens:
        overlap = Overlap(*zip(*held, strict=True))
        for sketch, piece in _fill(train, stream, spec.train_tokens, bos, advance):
            overlap.add(sketch, piece)
    if train.n_tokens(bos) < spec.train_tokens:
        found = [one.n_tokens(bos) for one in (heldout, train)]
        raise _too_short(spec, sum(found), len(heldout.names) + len(train.names), skipped)
    labelled = heldout.labelled() or train.labelled()
    splits = {
        name: one.build(spec.context_tokens, bos, labelled)
        for name, one in (("heldout", heldout), ("train", train))
    }
    return Tokenized(splits, dict(skipped), overlap.counts())


def _fill(
    filled: RowsBuilder, stream: Iterator[_Drawn], target: int, bos: int | None, advance: Advance
) -> Iterator[tuple[Sketch, list[int]]]:
    """Fill rows to exactly the tokens asked for; yield each document's sketch and tokens in rows."""
    have = 0
    while have < target:
        document = next(stream, None)
        if document is None:
            return
        taken: list[int] = []
        before = have
        for piece in document.rows:
            if have == target:
                break
            # without BOS, the row's first token is read by the model but not by us
            kept = piece[: target - have + (bos is None)]
            filled.add(kept)
            have += len(kept.ids) - (bos is None)
            taken += kept.ids
        filled.names.append(document.name)
        advance(have - before)
        yield document.sketch, taken


def _too_short(spec: TextSpec, tokens: int, n_documents: int, skipped: Counter[str]) -> TextError:
    left_out = f"{skipped['empty']:,} documents are empty, {skipped['one_token']:,} have one token"
    if n_documents == 0:
        why = (
            f"{left_out}, and a row takes two"
            if skipped["one_token"]
            else "every document is empty"
        )
        return TextError(f"text.source {spec.source!r} holds no text to read: {why}")
    cap = spec.max_document_tokens
    limit = "" if cap is None else f" (at most {cap:,} from each: text.max_document_tokens)"
    more = f"; {left_out}" if skipped.total() else ""
    return TextError(
        f"text.source {spec.source!r} holds {tokens:,} tokens in {n_documents:,} documents{limit}{more}, "
        f"and train_tokens + heldout_tokens asks for {spec.train_tokens + spec.heldout_tokens:,}; ask for "
        "fewer or add text"
    )


def _tokenized(
    spec: TextSpec, tokenizer: Any, seed: int, skipped: Counter[str]
) -> Iterator[_Drawn]:
    """Yield each document that gives a row of two tokens, BOS not included, or more."""
    body = spec.context_tokens - (spec.bos == "auto" and tokenizer.bos_token_id is not None)
    cap = spec.max_document_tokens
    body = body if cap is None else min(body, cap)
    start = numpy_generator(seed, "document starts")
    encoder = Encoder(tokenizer, spec.special_tokens)
    pending: list[Document] = []

    def cut_pending() -> Iterator[_Drawn]:
        texts = [document.text for document in pending]
        encoded = encoder.encode(texts, spans=any(document.python for document in pending))
        found = sketches(texts, [ids for ids, _ in encoded])
        for document, (tokens, places), sketch in zip(pending, encoded, found, strict=True):
            n_rows = -(-len(tokens) // body)
            most = n_rows if cap is None else cap // body
            first = int(start.integers(0, max(1, n_rows - most + 1)))
            begin, end = first * body, min((first + most) * body, len(tokens))
            labels = None
            if document.python and places is not None and end > begin:
                labels = label_tokens(document.text, places, begin, end)
            run = TokenRun(tokens[begin:end], labels)
            rows = [run[i : i + body] for i in range(0, end - begin, body)]
            kept = [row for row in rows if len(row.ids) > 1]
            if kept:
                yield _Drawn(document.name, kept, sketch)
            else:
                skipped["one_token" if tokens else "empty"] += 1
        pending.clear()

    for document in documents(spec, seed, skipped):
        pending.append(document)
        if len(pending) == _TOKENIZED_AT_ONCE:
            yield from cut_pending()
    if pending:
        yield from cut_pending()
