"""Text: sources of documents, cut into rows of tokens; see `rows` for what a row is.

Training and held-out rows come from different documents. Rows of .py files carry labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_placebo.core.errors import TextError
from sae_placebo.core.progress import Advance, unheard
from sae_placebo.core.spec import numpy_generator
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
from sae_placebo.data.text_spec import TextSpec
from sae_placebo.data.tokenizing import GIVE_IDS, Encoder, NoTokenizer, vocabulary
from sae_placebo.data.usable import UsableTokens, excluded_ids, usable_positions

__all__ = [
    "Document", "Rows", "TextSpec", "Tokenized", "cut", "documents", "holds_ids", "identify",
    "library_files", "may_have_labels", "paths", "tokenize", "vocabulary",
]  # fmt: skip

_TOKENIZED_AT_ONCE = 32


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


def holds_ids(spec: TextSpec) -> bool | None:
    """Return whether the text is given as token ids; None for a dataset, which is not asked.

    Only the first record that holds anything is read.

    Raises:
        TextError: a file up to that record cannot be read.
    """
    if spec.source.startswith("hf:"):
        return None
    for name, path in named_files(spec.source):
        if not is_table(path):
            return False
        for document in read_documents(name, path, spec.field):
            if not document.is_empty:
                return document.ids is not None
    return False


def documents(
    spec: TextSpec, seed: int, skipped: Counter[str] | None = None, n_ids: int | None = None
) -> Iterator[Document]:
    """Yield documents in a random order fixed by `seed` (datasets: in their own order).

    Records that are null or empty are left out, and counted in `skipped` as `empty`; a file that is
    empty is yielded.

    Args:
        spec: The settings of the text.
        seed: The trial's.
        skipped: Where documents that are left out are counted.
        n_ids: How many token ids the model has; None where that is not known.

    Raises:
        TextError: a file or record cannot be read, or some hold text and others token ids.
    """
    first: Document | None = None
    for document in _read(spec, seed, Counter() if skipped is None else skipped, n_ids):
        first = first or document
        if (first.ids is None) != (document.ids is None):
            text, ids = (document, first) if document.ids is None else (first, document)
            raise TextError(
                f"text.source {spec.source!r} mixes text ({text.name!r}) and token ids ({ids.name!r}); give "
                "one of the two"
            )
        yield document


def _read(
    spec: TextSpec, seed: int, skipped: Counter[str], n_ids: int | None
) -> Iterator[Document]:
    if spec.source.startswith("hf:"):
        for document in stream_documents(spec.source, spec.field, spec.split, n_ids):
            if document.is_empty:
                skipped["empty"] += 1
            else:
                yield document
        return
    files = named_files(spec.source)
    order = numpy_generator(seed, "documents")
    if not any(is_table(path) for _, path in files):
        for i in order.permutation(len(files)):  # read one by one: most are never needed
            name, path = files[i]
            yield from read_documents(name, path, spec.field, n_ids)
        return
    found = []
    for name, path in files:
        for document in read_documents(name, path, spec.field, n_ids):
            if document.is_empty and is_table(path):
                skipped["empty"] += 1
            else:
                found.append(document)
    for i in order.permutation(len(found)):
        yield found[i]


@dataclass(frozen=True)
class Tokenized:
    """The rows of each split, and what is said about the documents behind them, as JSON.

    Attributes:
        splits: Rows of `heldout` and `train`.
        skipped: Documents left out, of those that were read: `empty` ones, `one_token` ones, of
            which no row has two tokens, and, where some tokens do not count, `no_usable_token` ones.
        shared: What the held-out text shares with the training text; see `overlap`.
        ids_were_given: Whether the documents were given as token ids.
    """

    splits: dict[str, Rows]
    skipped: dict[str, int]
    shared: dict[str, int | float]
    ids_were_given: bool = False


@dataclass(frozen=True)
class _Drawn:
    """A document that is in rows: its name, its rows of tokens without BOS, and its sketch."""

    name: str
    rows: list[TokenRun]
    sketch: Sketch


def tokenize(spec: TextSpec, tokenizer: Any, seed: int) -> dict[str, Rows]:
    """Return the rows of the splits `heldout` and `train`; see `cut`."""
    return cut(spec, tokenizer, seed).splits


def cut(
    spec: TextSpec,
    tokenizer: Any,
    seed: int,
    advance: Advance = unheard,
    n_ids: int | None = None,
) -> Tokenized:
    """Return the text as rows of the splits `heldout` and `train`; no document is in both.

    Documents come in an order fixed by `seed`; held-out rows are filled first, then training rows,
    each to exactly the tokens asked for. Two documents may have the same text: that is counted.

    Args:
        spec: The settings of the text.
        tokenizer: Of the model; `NoTokenizer` where it has none and the text is token ids.
        seed: The trial's.
        advance: It is told how many tokens of a document were taken.
        n_ids: How many token ids the model has; None where that is not known.

    Raises:
        TextError: the text cannot be read, or holds fewer tokens than were asked for, or none.
    """
    bos = tokenizer.bos_token_id if spec.bos == "auto" else None
    skipped: Counter[str] = Counter(empty=0, one_token=0)
    rule = UsableTokens(
        usable_positions(spec.positions, spec.context_tokens),
        excluded_ids(spec.exclude_tokens, tokenizer, n_ids),
    )
    heldout, train = RowsBuilder(bos, rule), RowsBuilder(bos, rule)
    cutter = _Cutter(spec, tokenizer, heldout, n_ids)
    stream = _tokenized(spec, cutter, seed, skipped)
    held = list(_fill(heldout, stream, spec.heldout_tokens, advance))
    if heldout.n_tokens == spec.heldout_tokens:
        overlap = Overlap(*zip(*held, strict=True))
        for sketch, piece in _fill(train, stream, spec.train_tokens, advance):
            overlap.add(sketch, piece)
    if train.n_tokens < spec.train_tokens:
        n_documents = len(heldout.names) + len(train.names)
        raise _too_short(spec, heldout.n_tokens + train.n_tokens, n_documents, skipped)
    labelled = heldout.labelled() or train.labelled()
    splits = {"heldout": heldout.build(labelled), "train": train.build(labelled)}
    return Tokenized(splits, dict(skipped), overlap.counts(), cutter.ids_were_given)


def _fill(
    filled: RowsBuilder, stream: Iterator[_Drawn], target: int, advance: Advance
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
            kept = filled.add(piece, target - have)
            have += filled.sizes[-1]
            taken += kept.ids
        filled.names.append(document.name)
        advance(have - before)
        yield document.sketch, taken


def _too_short(spec: TextSpec, tokens: int, n_documents: int, skipped: Counter[str]) -> TextError:
    left_out = f"{skipped['empty']:,} documents are empty, {skipped['one_token']:,} have one token"
    unused = skipped["no_usable_token"]
    if unused:
        left_out += f", {unused:,} have none that counts (text.positions, text.exclude_tokens)"
    if n_documents == 0:
        why = "every document is empty"
        if skipped["one_token"] or unused:
            why = f"{left_out}, and a row takes two"
        return TextError(f"text.source {spec.source!r} holds no text to read: {why}")
    cap = spec.max_document_tokens
    limit = "" if cap is None else f" (at most {cap:,} from each: text.max_document_tokens)"
    more = f"; {left_out}" if skipped.total() else ""
    kind = "tokens" if spec.positions is None and spec.exclude_tokens is False else "usable tokens"
    return TextError(
        f"text.source {spec.source!r} holds {tokens:,} {kind} in {n_documents:,} documents{limit}{more}, "
        f"and train_tokens + heldout_tokens asks for {spec.train_tokens + spec.heldout_tokens:,}; ask for "
        "fewer or add text"
    )


class _Cutter:
    """Makes documents into token ids, and these into rows.

    Args:
        spec: The settings of the text.
        tokenizer: Of the model.
        rows: Any rows of the text, which say what counts and what BOS is.
        n_ids: How many token ids the model has.
    """

    def __init__(
        self, spec: TextSpec, tokenizer: Any, rows: RowsBuilder, n_ids: int | None
    ) -> None:
        self.spec, self.tokenizer, self.rows, self.n_ids = spec, tokenizer, rows, n_ids
        self.encoder = Encoder(tokenizer, spec.special_tokens)
        body = spec.context_tokens - (rows.bos is not None)
        cap = spec.max_document_tokens
        self.body = body if cap is None else min(body, cap)
        self.ids_were_given = False

    def encode(self, pending: list[Document]) -> list[tuple[Any, Any]]:
        """Return the token ids of documents, and what each covers; ids that are given are taken as they are.

        BOS in front of a document is taken off where it is put in front of every row.
        """
        if pending[0].ids is not None:
            self.ids_were_given, bos = True, self.rows.bos
            ids: list[Any] = [document.ids or [] for document in pending]
            return [(one[1:] if one and one[0] == bos else one, None) for one in ids]
        if isinstance(self.tokenizer, NoTokenizer):
            raise TextError(
                f"text.source {self.spec.source!r} is text, and the model has no tokenizer; {GIVE_IDS}"
            )
        python = any(document.python for document in pending)
        return list(self.encoder.encode([one.text for one in pending], spans=python))

    def rows_of(
        self, document: Document, tokens: Any, places: Any, start: np.random.Generator
    ) -> tuple[list[TokenRun], str]:
        """Return the rows of a document that have a token that counts, and why where there are none."""
        body, cap = self.body, self.spec.max_document_tokens
        n_rows = -(-len(tokens) // body)
        most = n_rows if cap is None else cap // body
        first = int(start.integers(0, max(1, n_rows - most + 1)))
        begin, end = first * body, min((first + most) * body, len(tokens))
        labels = None
        if document.python and places is not None and end > begin:
            labels = label_tokens(document.text, places, begin, end)
        run = TokenRun(list(tokens[begin:end]), labels)
        rows = [run[i : i + body] for i in range(0, end - begin, body)]
        long = [row for row in rows if len(row.ids) > 1]
        if not long:
            return [], "one_token" if len(tokens) else "empty"
        return [row for row in long if self.rows.usable(row).any()], "no_usable_token"


def _tokenized(
    spec: TextSpec, cutter: _Cutter, seed: int, skipped: Counter[str]
) -> Iterator[_Drawn]:
    """Yield each document that gives a row of two tokens, BOS not included, or more."""
    start = numpy_generator(seed, "document starts")
    pending: list[Document] = []

    def cut_pending() -> Iterator[_Drawn]:
        encoded = cutter.encode(pending)
        texts = [document.text if document.ids is None else None for document in pending]
        found = sketches(texts, [ids for ids, _ in encoded])
        for document, (tokens, places), sketch in zip(pending, encoded, found, strict=True):
            kept, why = cutter.rows_of(document, tokens, places, start)
            if kept:
                yield _Drawn(document.name, kept, sketch)
            else:
                skipped[why] += 1
        pending.clear()

    for document in documents(spec, seed, skipped, cutter.n_ids):
        pending.append(document)
        if len(pending) == _TOKENIZED_AT_ONCE:
            yield from cut_pending()
    if pending:
        yield from cut_pending()
