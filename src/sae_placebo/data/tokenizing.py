"""From text to token ids, so that no text can pass for a tokenizer's special token.

The text of a special token, such as `<|endoftext|>` in a page about language models, is ordinary text
and not the end of a document. Tokenizers read it as the special token unless they are told otherwise,
and telling them (`split_special_tokens`) is not enough: where the vocabulary holds the special token as
a piece, as SentencePiece's do, or where merges lead to it, the piece is found all the same. There it is
spelled here, with the longest other pieces of the vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Span = tuple[int, int]
Encoded = tuple[list[int], Sequence[Span] | None]
"""A document as its token ids, and the characters [start, stop) that each covers where that is known."""


@dataclass(frozen=True)
class Encoder:
    """A tokenizer that adds nothing to a text and takes no part of it for a special token.

    Args:
        tokenizer: Of transformers, fast or not.
        special_tokens: Whether the text of a special token is that token after all.
    """

    tokenizer: Any
    special_tokens: bool = False

    def encode(self, texts: Sequence[str], spans: bool) -> list[Encoded]:
        """Return the token ids of each text, and what they cover if `spans` and the tokenizer can tell."""
        spans = spans and self._fast
        found = self._call(list(texts), return_offsets_mapping=spans)
        ids: list[list[int]] = found["input_ids"]
        places = found["offset_mapping"] if spans else [None] * len(ids)
        return [
            self._ordinary(*one) if self._holds_special(*one[:2]) else one[1:]
            for one in zip(texts, ids, places, strict=True)
        ]

    @property
    def _fast(self) -> bool:
        return bool(getattr(self.tokenizer, "is_fast", False))

    def _call(self, texts: list[str], **settings: Any) -> Any:
        return self.tokenizer(texts, add_special_tokens=False, verbose=False, **settings)

    @functools.cached_property
    def _special(self) -> Mapping[int, str]:
        """The text of each special token: those with a role, and those that are marked as special."""
        if self.special_tokens:
            return {}
        known, found = self.tokenizer, {}
        for text in map(str, known.all_special_tokens):
            found[int(known.convert_tokens_to_ids(text))] = text
        for i, token in getattr(known, "added_tokens_decoder", {}).items():
            if token.special:
                found[i] = token.content
        return {i: text for i, text in found.items() if len(text) > 1}

    @functools.cached_property
    def _unknown(self) -> int | None:
        return getattr(self.tokenizer, "unk_token_id", None)

    @functools.cached_property
    def _certain(self) -> frozenset[int]:
        """Special ids that no ordinary text has; the unknown token's is what odd characters have."""
        return frozenset(self._special) - {self._unknown}

    def _holds_special(self, text: str, ids: Sequence[int]) -> bool:
        unknown = self._special.get(-1 if self._unknown is None else self._unknown)
        return not self._certain.isdisjoint(ids) or (unknown is not None and unknown in text)

    def _ordinary(self, text: str, ids: list[int], places: Sequence[Span] | None) -> Encoded:
        """Return a text's tokens once more, with every special token that it spells out as text."""
        wanted = places is not None
        if not self._fast:
            return self._spelled_out(text, self._split(text, ids), None)
        found = self._call([text], split_special_tokens=True, return_offsets_mapping=True)
        ids, places = self._spelled_out(text, found["input_ids"][0], found["offset_mapping"][0])
        return ids, places if wanted else None

    def _split(self, text: str, ids: list[int]) -> list[int]:
        try:
            found: list[int] = self._call([text], split_special_tokens=True)["input_ids"][0]
        except ValueError:  # mistral-common's tokenizers, which never read special tokens from text
            return ids
        return found

    def _spelled_out(self, text: str, ids: list[int], places: Sequence[Span] | None) -> Encoded:
        """Return tokens with the special ones among them spelled by others."""
        spelled: list[int] = []
        covered: list[Span] = []
        for at, i in enumerate(ids):
            start, stop = places[at] if places is not None else (0, 0)
            pieces = [(i, 0)]
            if self._is_written(i, text, text[start:stop] if places is not None else None):
                pieces = self._spelling(i)
            exact = stop - start == sum(n for _, n in pieces)
            for piece, n in pieces:
                spelled.append(piece)
                end = start + n if exact else stop
                covered.append((start, end))
                start = end if exact else start
        return spelled, None if places is None else covered

    def _is_written(self, i: int, text: str, covered: str | None) -> bool:
        """Return whether a token is special and stands for its own text."""
        special = self._special.get(i)
        if special is None:
            return False
        if i == self._unknown:  # without spans nobody knows which of them are odd characters
            return covered is not None and covered.strip() == special
        return special in text if covered is None else covered != ""

    def _spelling(self, i: int) -> list[tuple[int, int]]:
        """Return the pieces that spell a special token, each with its number of characters."""
        text, pieces, at = self._special[i], list[tuple[int, int]](), 0
        while at < len(text):
            stop = len(text)
            while stop > at and text[at:stop] not in self._pieces:
                stop -= 1
            if stop > at:
                pieces.append((self._pieces[text[at:stop]], stop - at))
            else:
                stop = at + 1
                units = [self._pieces.get(f"<0x{byte:02X}>") for byte in text[at:stop].encode()]
                if (
                    None in units
                ):  # words, or characters: as any other that is not in the vocabulary
                    return [(i if self._unknown is None else self._unknown, len(text))]
                pieces += [(unit, 0) for unit in units[:-1] if unit is not None]
                pieces.append((units[-1] or 0, 1))
            at = stop
        return pieces

    @functools.cached_property
    def _pieces(self) -> dict[str, int]:
        found: dict[str, int] = self.tokenizer.get_vocab()
        return {piece: i for piece, i in found.items() if i not in self._special}


def vocabulary(tokenizer: Any, n_ids: int | None = None) -> list[str]:
    """Return the text of each token id; bytes that are no character alone show as U+FFFD.

    Args:
        tokenizer: Of the model; where it is `NoTokenizer`, ids show as `#7`.
        n_ids: How many ids there are at least; those that the tokenizer lacks show likewise.
    """
    if isinstance(tokenizer, NoTokenizer):
        found = []
    else:
        ids = [[i] for i in range(len(tokenizer))]
        found = list(tokenizer.batch_decode(ids, clean_up_tokenization_spaces=False))
    most = max(n_ids or 0, tokenizer.n_ids if isinstance(tokenizer, NoTokenizer) else 0)
    return found + [f"#{i}" for i in range(len(found), most)]


@dataclass(frozen=True)
class NoTokenizer:
    """Stands for the tokenizer of a model that has none; its text is given as token ids.

    Attributes:
        n_ids: How many token ids the model has.
        bos_token_id: What the model's config names so; None where it names none of the model's ids.
    """

    n_ids: int
    bos_token_id: int | None = None


GIVE_IDS = (
    "save one in its folder with tokenizer.save_pretrained, or give token ids in the place of text: a .jsonl "
    "or .parquet file whose records have a list of them, with its name as text.field (such as field = 'ids')"
)
"""What to do about a model without a tokenizer."""

NO_WORDS = "the model has no tokenizer, so nobody knows how its tokens are spelled"
"""Why a number that is read off the spelling of tokens is not there."""


def is_numbered(vocabulary: Sequence[str]) -> bool:
    """Return whether each token is shown as its number, since no tokenizer says what it stands for."""
    return len(vocabulary) > 0 and all(text == f"#{i}" for i, text in enumerate(vocabulary))
