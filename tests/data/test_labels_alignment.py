from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_labels import SNIPPETS

from conftest import library_text
from sae_placebo.data.labels import NAMES, Labels, TokenLabels, label_tokens
from sae_placebo.data.labels.align import cover
from sae_placebo.data.labels.python import mark


def make_tokenizer(**changes: Any) -> Any:
    """A BPE of 600 tokens: `pre`, `norm` and `post` replace byte-level splitting and nothing."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = changes.get("pre") or pre_tokenizers.ByteLevel(add_prefix_space=False)
    if "norm" in changes:
        tokenizer.normalizer = changes["norm"]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*library_text(6), *SNIPPETS], trainer)
    if "post" in changes:
        tokenizer.post_processor = changes["post"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    from tokenizers import normalizers, pre_tokenizers, processors

    byte_level = pre_tokenizers.ByteLevel
    return {
        "bytes": make_tokenizer(),
        "prefix": make_tokenizer(pre=byte_level(add_prefix_space=True)),
        "trimmed": make_tokenizer(post=processors.ByteLevel(trim_offsets=True)),
        "metaspace": make_tokenizer(pre=pre_tokenizers.Metaspace()),
        "nfkd": make_tokenizer(norm=normalizers.NFKD()),
        "lower": make_tokenizer(norm=normalizers.Lowercase()),
        "longer": make_tokenizer(norm=normalizers.Replace("return", "RETURN_RETURN")),
        "strip": make_tokenizer(norm=normalizers.Strip()),
    }


ALL = ["bytes", "prefix", "trimmed", "metaspace", "nfkd", "lower", "longer", "strip"]


def offsets_of(tokenizer: Any, text: str) -> list[tuple[int, int]]:
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return [tuple(span) for span in encoded["offset_mapping"]]


def unpacked(labels: TokenLabels) -> np.ndarray:
    return np.unpackbits(labels.bits, axis=-1, count=len(NAMES), bitorder="little").astype(bool)


def test_labels_are_packed_lowest_bit_first() -> None:
    names = tuple(f"l{i}" for i in range(10))
    held = np.zeros((2, 3, 10), dtype=bool)
    held[1, 2, [0, 3, 9]] = True
    held[0, 1, 8] = True
    labels = Labels(names, np.packbits(held, axis=-1, bitorder="little"), held.any(-1))
    assert labels.bits.shape == (2, 3, 2)
    assert labels.bits[1, 2].tolist() == [0b1001, 0b10]
    places = np.array([[1, 2], [0, 1], [0, 0]])
    assert np.array_equal(labels.at(places), held[places[:, 0], places[:, 1]])


def test_a_label_holds_for_any_character_that_is_not_white_space() -> None:
    text = "def f(x):\n    return  x\n"
    spans = [
        (0, 3),
        (3, 5),
        (5, 6),
        (6, 7),
        (7, 9),
        (9, 13),
        (13, 20),
        (20, 21),
        (21, 23),
        (23, 24),
    ]
    labels = label_tokens(text, spans, 0, len(spans))
    held = unpacked(labels)
    assert labels.known.all()

    def of(i: int) -> set[str]:
        return {name for name, one in zip(NAMES, held[i], strict=True) if one}

    assert of(4) >= {"kind.operator", "bracket.closing", "block.colon", "line.last"}
    assert of(5) == {"kind.newline", "block.depth_1", "inside.function_body"}
    assert "kind.newline" not in of(4)
    # the white space in front counts for nothing: return's value starts behind it
    assert "inside.return" in of(8)
    assert "inside.return" not in of(7)
    assert "kind.name" in of(8)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    parts=st.lists(st.sampled_from(SNIPPETS), min_size=1, max_size=4),
    share=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_token_labels_are_those_of_the_characters(
    tokenizers: dict[str, Any], name: str, parts: list[str], share: tuple[float, float]
) -> None:
    text = "".join(parts)
    offsets = offsets_of(tokenizers[name], text)
    spans = cover(text, offsets, 0, len(offsets))
    rows = mark(text, 0, len(text))
    assert rows is not None
    if name not in ("strip",):  # which drops the white space around the text, and nothing else
        seen = np.zeros(len(text), dtype=bool)
        for start, stop in spans:
            seen[start:stop] = True
        assert seen.all() or (
            name == "trimmed" and not text[np.flatnonzero(seen)[-1] + 1 :].strip()
        )
    # any run of tokens is labelled as it is within the whole
    first, stop = sorted(int(one * len(offsets)) for one in share)
    labels = label_tokens(text, offsets, first, stop)
    held = unpacked(labels)
    assert len(held) == stop - first
    for i, (begin, end) in enumerate(spans[first:stop]):
        assert labels.known[i] == (end > begin)
        solid = [j for j in range(begin, end) if not text[j].isspace()]
        expected = rows[:, solid or range(begin, end)].any(axis=1)
        assert np.array_equal(held[i], expected)


def test_the_bytes_of_one_character_have_the_same_labels(tokenizers: dict[str, Any]) -> None:
    text = "x = 'ab'  # 😀\n"
    offsets = offsets_of(tokenizers["bytes"], text)
    place = text.index("😀")
    parts = [i for i, span in enumerate(offsets) if span == (place, place + 1)]
    assert len(parts) > 1
    held = unpacked(label_tokens(text, offsets, 0, len(offsets)))[parts]
    assert held[:, NAMES.index("kind.comment")].all()
    assert (held == held[0]).all()


def test_a_name_is_found_behind_characters_of_many_bytes(tokenizers: dict[str, Any]) -> None:
    text = "été = '日本'; naïve = f(ключ=1)\n"  # `ast` counts bytes, offsets count characters
    offsets = offsets_of(tokenizers["bytes"], text)
    held = unpacked(label_tokens(text, offsets, 0, len(offsets)))
    for label, words in {
        "role.assignment_target": ["été", "naïve"],
        "role.keyword_argument": ["ключ"],
        "role.call_target": ["f"],
    }.items():
        found = {j for i in np.flatnonzero(held[:, NAMES.index(label)]) for j in range(*offsets[i])}
        wanted = {j for w in words for j in range(text.index(w), text.index(w) + len(w))}
        assert {j for j in found if not text[j].isspace()} == wanted


def test_text_that_does_not_parse_is_unknown_throughout(tokenizers: dict[str, Any]) -> None:
    text = "this is prose and no code\n"
    offsets = offsets_of(tokenizers["bytes"], text)
    labels = label_tokens(text, offsets, 0, len(offsets))
    assert not labels.known.any()
    assert not labels.bits.any()


def test_no_tokens_have_no_labels() -> None:
    labels = label_tokens("x = 1\n", [(0, 1)], 1, 1)
    assert labels.bits.shape == (0, len(NAMES) // 8)
