"""The text of a special token is text, whatever kind of tokenizer reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import save_tokenizer
from sae_placebo.data.text import TextSpec, cut, tokenize
from sae_placebo.data.tokenizing import Encoder

SYMBOLS = list("abcdefghijklmnopqrstuvwxyz<>/|_0123456789")
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")


def fast(core: Any, **roles: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **(names | roles))


def unigram(folder: Path) -> Any:
    """As SentencePiece's: special tokens are pieces of the vocabulary, with the best score of all."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = [(one, 0.0) for one in SPECIAL]
    pieces += [(one, -3.0) for one in [*SYMBOLS, "▁", "</"]]
    core = Tokenizer(models.Unigram(pieces, unk_id=0))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    core.add_special_tokens(list(SPECIAL))
    return fast(core)


def merged(folder: Path) -> Any:
    """As Llama's: merges of the vocabulary lead to a special token, odd characters are bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    pieces = [*SPECIAL, *(f"<0x{i:02X}>" for i in range(256)), *SYMBOLS, "▁", "s>"]
    core = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=[("s", ">"), ("<", "s>")],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    core.add_special_tokens(list(SPECIAL))
    return fast(core)


def words(folder: Path) -> Any:
    """Whole words, in lower case: a special token may be written in capitals."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

    vocabulary = {one: i for i, one in enumerate([*SPECIAL, "a", "b", "<", "s", "x"])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer, core.normalizer = (
        pre_tokenizers.WhitespaceSplit(),
        normalizers.Lowercase(),
    )
    core.add_special_tokens([AddedToken(one, normalized=True, special=True) for one in SPECIAL])
    return fast(core)


def slow_bytes(folder: Path) -> Any:
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer(extra_ids=3)


def slow_bpe(folder: Path) -> Any:
    """A tokenizer written in Python, whose merges lead to a special token."""
    from transformers import CTRLTokenizer

    pieces = ["<unk>", "<s>", *(f"{one}@@" for one in SYMBOLS), *SYMBOLS, "s>"]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\ns ></w>\n< s></w>\n")
    found = CTRLTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    found.add_special_tokens({"bos_token": "<s>"})
    return found


KINDS: list[Callable[[Path], Any]] = [save_tokenizer, unigram, merged, words, slow_bytes, slow_bpe]


def specials(tokenizer: Any) -> set[int]:
    unknown = tokenizer.unk_token_id
    return {i for i in tokenizer.all_special_ids if i != unknown}


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_the_text_of_a_special_token_is_text(make: Callable[[Path], Any], tmp_path: Path) -> None:
    tokenizer = make(tmp_path)
    written = [one for one in tokenizer.all_special_tokens if one != "<unk>"]
    texts = [f"a {one} b" for one in written] + [f"a{one}{one}b x" for one in written] + ["a b"]
    encoder = Encoder(tokenizer)
    found = encoder.encode(texts, spans=False)
    asked = Encoder(tokenizer, special_tokens=True).encode(texts, spans=False)
    for (ids, _), (as_special, _) in zip(found[:-1], asked[:-1], strict=True):
        assert not specials(tokenizer) & set(ids)
        if make is not words:  # to which a word with more around it is another word
            assert specials(tokenizer) & set(as_special)
    assert found[-1] == asked[-1]
    plain = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert [ids for ids, _ in asked] == plain


@pytest.mark.parametrize("make", KINDS[:3], ids=lambda make: make.__name__)
def test_every_character_of_it_is_covered_once(make: Callable[[Path], Any], tmp_path: Path) -> None:
    tokenizer = make(tmp_path)
    text = "a </s> b<s>x<s></s>"
    ids, spans = Encoder(tokenizer).encode([text], spans=True)[0]
    assert spans is not None
    assert len(ids) == len(spans)
    assert specials(tokenizer).isdisjoint(ids)
    covered = np.zeros(len(text), dtype=int)
    for start, stop in spans:
        covered[start:stop] += 1
    solid = np.array([c != " " for c in text])
    assert np.all(covered[solid] >= 1)
    assert covered[2:].max() == 1  # the mark in front of a text may cover its first character too
    assert tokenizer.decode(ids).replace(" ", "") == text.replace(" ", "")


def test_longest_pieces_spell_it_and_nothing_else_changes(tmp_path: Path) -> None:
    tokenizer = unigram(tmp_path)
    read = Encoder(tokenizer)
    (ids, spans), (alone, _) = read.encode(["x</s>y", "xy"], spans=True)
    assert tokenizer.convert_ids_to_tokens(ids) == ["▁", "x", "</", "s", ">", "y"]
    assert spans is not None
    assert spans[2:] == [(1, 3), (3, 4), (4, 5), (5, 6)]
    assert tokenizer.convert_ids_to_tokens(alone) == ["▁", "x", "y"]
    ids, _ = Encoder(merged(tmp_path)).encode(["x<s>"], spans=False)[0]
    assert merged(tmp_path).convert_ids_to_tokens(ids) == ["▁", "x", "<", "s>"]


def test_odd_characters_stay_unknown_where_the_unknown_token_is_spelled(tmp_path: Path) -> None:
    tokenizer = unigram(tmp_path)
    for spans in (False, True):
        ids, _ = Encoder(tokenizer).encode(["aéb<unk>bé"], spans)[0]
        pieces = tokenizer.convert_ids_to_tokens(ids)
        assert pieces[-8:] == ["b", "<", "u", "n", "k", ">", "b", "<unk>"]
        assert pieces[:3] == ["▁", "a", "<unk>"]


def test_a_special_token_in_capitals_is_text_too(tmp_path: Path) -> None:
    tokenizer = words(tmp_path)
    ids, _ = Encoder(tokenizer).encode(["A <S> B"], spans=False)[0]
    assert specials(tokenizer).isdisjoint(ids)
    assert ids[0] == tokenizer.convert_tokens_to_ids("a")
    assert ids[-1] == tokenizer.convert_tokens_to_ids("b")


def test_a_role_given_to_one_character_does_not_take_it_from_the_text(tmp_path: Path) -> None:
    tokenizer = unigram(tmp_path)
    tokenizer.eos_token = "x"
    text = "axb"
    assert (
        Encoder(tokenizer).encode([text], spans=False)[0][0]
        == (tokenizer([text], add_special_tokens=False)["input_ids"][0])
    )


def test_added_tokens_that_are_not_special_stay_whole(tmp_path: Path) -> None:
    for make in (save_tokenizer, slow_bytes):
        tokenizer = make(tmp_path)
        tokenizer.add_tokens(["whole"])
        i = tokenizer.convert_tokens_to_ids("whole")
        (ids, _), (mixed, _) = Encoder(tokenizer).encode(["a whole b", "whole </s>"], spans=False)
        assert i in ids
        assert specials(tokenizer).isdisjoint(mixed)


def test_rows_hold_special_tokens_only_where_asked(tmp_path: Path) -> None:
    tokenizer = save_tokenizer(tmp_path)
    for i in range(12):
        (tmp_path / f"{i}.txt").write_text(f"document {i} </s> and <s> " * 30)
    table = {"context_tokens": 16, "train_tokens": 300, "heldout_tokens": 100}
    held = {}
    for asked in (False, True):
        one = TextSpec(source=str(tmp_path / "*.txt"), special_tokens=asked, **table)
        rows = tokenize(one, tokenizer, 0)["train"]
        ids = rows.token_ids[rows.usable()]
        held[asked] = {int(i) for i in ids} & set(tokenizer.all_special_ids)
        assert np.all(rows.token_ids[:, 0] == tokenizer.bos_token_id)
    assert held == {False: set(), True: set(tokenizer.all_special_ids)}
    assert TextSpec(source=str(tmp_path), **table).special_tokens is False


def test_a_tokenizer_that_adds_tokens_itself_adds_none(tmp_path: Path) -> None:
    from tokenizers import processors

    tokenizer = save_tokenizer(tmp_path)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", bos), ("</s>", eos)]
    )
    assert tokenizer("x")["input_ids"][-1] == eos
    (tmp_path / "a.txt").write_text("a </s> river rose " * 100)
    (tmp_path / "b.txt").write_text("and the mill stood " * 100)
    one = TextSpec(
        source=str(tmp_path / "*.txt"), context_tokens=16, train_tokens=60, heldout_tokens=60
    )
    for rows in tokenize(one, tokenizer, 0).values():
        assert np.all(rows.token_ids[:, 0] == bos)
        assert not np.isin(rows.token_ids[rows.usable()], [bos, eos]).any()


def test_documents_of_one_token_are_counted_and_named_when_there_are_no_others(
    tmp_path: Path, tiny_tokenizer: Any
) -> None:
    from sae_placebo.core.errors import TextError

    lines = ["e"] * 5 + [""] * 3
    path = tmp_path / "a.jsonl"
    table = {"context_tokens": 16, "train_tokens": 20, "heldout_tokens": 20}
    path.write_text("\n".join(json.dumps({"text": line}) for line in lines))
    with pytest.raises(TextError, match="3 documents are empty, 5 have one token, and a row takes"):
        tokenize(TextSpec(source=str(path), **table), tiny_tokenizer, 0)
    lines += [f"{i} the river rose in spring, and the mill stood still" for i in range(4)]
    path.write_text("\n".join(json.dumps({"text": line}) for line in lines))
    found = cut(TextSpec(source=str(path), **table), tiny_tokenizer, 0)
    assert found.skipped["empty"] == 3
    assert 1 <= found.skipped["one_token"] <= 5  # of those drawn before the rows were full
    assert all(rows.lengths.min() >= 2 for rows in found.splits.values())
