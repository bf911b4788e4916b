"""The settings of the text."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from sae_placebo.core.errors import SpecError
from sae_placebo.core.spec import Spec, distinct
from sae_placebo.data.documents import LIBRARY, paths
from sae_placebo.data.usable import check_positions, usable_positions


class TextSpec(Spec):
    """The settings of the text: where it comes from and how it is cut.

    Attributes:
        source: `python-stdlib` (the running interpreter's own library), a file, a folder or a glob
            of .txt, .md, .rst, .py, .jsonl and .parquet files, all but the last also with .gz or .zst
            behind, or `hf:NAME[:CONFIG]` for a Hugging Face dataset, streamed
            (`pip install "sae-placebo[hub]"`).
        field: Column that holds the text in .jsonl, .parquet and datasets, or lists of token ids in its
            place, which are taken as they are. At its default `text`, a record without a text may have
            its token ids under `ids` or `input_ids`.
        split: Split of a Hugging Face dataset.
        context_tokens: Tokens in a row, BOS included.
        train_tokens: Tokens to train on, BOS and padding not counted.
        heldout_tokens: Tokens to measure on, from other documents.
        max_document_tokens: Most tokens taken from one document, so that there are many documents to
            resample; a longer document gives a run of rows from a random start. None: all.
        bos: `auto` puts the tokenizer's BOS in front of each row where it has one; `none` never does.
        special_tokens: Whether a special token that is written out in a document, such as
            `<|endoftext|>`, is read as that token; otherwise it is text like any other.
        positions: start[, stop[, step]]: which positions of a row count, as of a Python slice, with BOS
            at 0. The first never does. None: all others. Tokens elsewhere are read by the model, and
            neither trained on nor measured nor counted in `train_tokens` and `heldout_tokens`.
        exclude_tokens: Token ids that do not count either, wherever they stand; true: every special token
            of the tokenizer.
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
    positions: tuple[int, ...] | None = Field(None, min_length=1, max_length=3)
    exclude_tokens: (
        bool
        | Annotated[
            tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1), AfterValidator(distinct)
        ]
    ) = False

    @property
    def key(self) -> dict[str, Any]:
        """Return the settings as they are hashed: those that came later only where they are set."""
        found = self.model_dump(mode="json")
        for name in ("positions", "exclude_tokens"):
            if found[name] == type(self).model_fields[name].default:
                del found[name]
        return found

    @property
    def row_tokens(self) -> int:
        """Return how many tokens of a full row count, at most."""
        return int(usable_positions(self.positions, self.context_tokens).sum())

    @property
    def read_per_token(self) -> float:
        """Return how many tokens of a full row the model reads for each that counts, the first left out."""
        return 1.0 if self.positions is None else (self.context_tokens - 1) / self.row_tokens

    @model_validator(mode="after")
    def _positions_make_sense(self) -> TextSpec:
        if self.positions is not None:
            check_positions(self.positions, self.context_tokens)
        return self

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
