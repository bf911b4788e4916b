from __future__ import annotations

import numpy as np
import pytest

from planted_readings import reading_of, token_table, without_group
from sae_placebo.data.labels.base import Labels
from sae_placebo.latents.base import Encoded, Folds
from sae_placebo.latents.columns.attributes import SPELLING, attributes, spelling

WORDS = (
    *(
        " the",
        " cat",
        " dogs",
        "Paris",
        " Berlin",
        "NASA",
        "EU",
        "1984",
        "7",
        "...",
        "(",
        "  ",
        "\n",
    ),
    *("\n    ", "walking", " walked", "slowly", "é", " naïve", "class", "x", "extraordinary"),
)


def held(text: str) -> set[str]:
    row = spelling((text,), np.array([0]))[0]
    return {
        name.removeprefix("spelling.") for name, there in zip(SPELLING, row, strict=True) if there
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" the", {"leading_space", "lower_case", "length_3"}),
        ("Ġdogs", {"leading_space", "lower_case", "suffix_s", "length_4_5"}),
        (" Berlin", {"leading_space", "capitalized", "length_6_8"}),
        ("NASA", {"all_caps", "length_4_5"}),
        ("A", {"capitalized", "length_1"}),
        ("1984", {"digits", "length_4_5"}),
        ("...", {"punctuation", "length_3"}),
        ("\n    ", {"white_space", "newline"}),
        ("  ", {"white_space"}),
        ("class", {"lower_case", "length_4_5"}),
        ("slowly", {"lower_case", "suffix_ly", "length_6_8"}),
        ("walking", {"lower_case", "suffix_ing", "length_6_8"}),
        ("walked", {"lower_case", "suffix_ed", "length_6_8"}),
        ("é", {"lower_case", "non_ascii", "length_1"}),
        ("\ufffd", {"non_ascii", "length_1"}),
        ("extraordinary", {"lower_case", "length_9_or_more"}),
        ("", set()),
    ],
)
def test_spelling(text, expected):
    assert held(text) == expected


@pytest.fixture(scope="module")
def planted() -> tuple[Encoded, Folds]:
    """Latents: 0 digits, 1 a label, 2 capitalized with noise, 3 dead, 4 a label of too few tokens,
    others at random. Labels are known in three rows of four."""
    draw = np.random.default_rng(4)
    ids = draw.integers(0, len(WORDS), (300, 33))
    there = draw.random((300, 33, 3)) < [0.2, 0.01, 0.5]
    known = np.broadcast_to(np.arange(300)[:, None] % 4 > 0, (300, 33)).copy()
    there[..., 1] &= draw.random((300, 33)) < 0.5
    there &= known[..., None]
    bits = np.packbits(there, axis=-1, bitorder="little")
    tokens = token_table(ids, 12, WORDS, Labels(("a", "rare", "b"), bits, known))
    place = tuple(tokens.places.T)
    codes = np.where(draw.random((len(tokens), 40)) < 0.1, draw.random((len(tokens), 40)), 0)
    is_digit = np.array([w.strip().isdigit() for w in WORDS])[tokens.ids]
    capital = np.isin(tokens.ids, [WORDS.index("Paris"), WORDS.index(" Berlin")])
    codes[:, 0] = 3.0 * is_digit
    # where labels are unknown the latent does what it likes
    codes[:, 1] = np.where(known[place], 2.0 * there[place][:, 0], draw.random(len(tokens)) < 0.5)
    codes[:, 2] = np.maximum(capital + draw.normal(0, 0.3, len(tokens)), 0)
    codes[:, 3] = 0
    codes[:, 4] = there[place][:, 1]
    return reading_of(tokens, codes), Folds.of(tokens.documents, 12, 0, 4)


def test_planted_attributes_are_found_with_their_share(planted):
    reading, folds = planted
    columns, names = attributes(reading, folds)
    r2 = columns["attribute_r2"]
    assert r2.shape == (40, 5)
    assert r2[0] == pytest.approx(1, abs=1e-4)
    assert names[0] == "spelling.digits"
    assert r2[1] == pytest.approx(1, abs=1e-4)
    assert names[1] == "a"
    dense = reading.codes.toarray().astype(np.float64)[:, 2]
    capital = np.isin(reading.tokens.ids, [3, 4])
    assert r2[2, 0] == pytest.approx(np.corrcoef(dense, capital)[0, 1] ** 2, abs=1e-5)
    assert names[2] == "spelling.capitalized"
    assert np.isnan(r2[3]).all()
    assert names[3] is None


def test_an_attribute_of_few_tokens_is_left_out(planted):
    columns, names = attributes(*planted)
    assert names[4] != "rare"
    assert (columns["attribute_r2"][4] < 0.05).all()


def test_null_of_random_firing(planted):
    reading, folds = planted
    r2 = attributes(reading, folds)[0]["attribute_r2"][5:, 0]
    assert r2.mean() < 2 * 2 * np.log(22) / len(reading.tokens)


def test_folds_are_the_statistic_without_their_documents(planted):
    reading, folds = planted
    found = attributes(reading, folds)[0]["attribute_r2"]
    for group in range(folds.n_groups):
        again = attributes(without_group(reading, folds, group), folds)[0]["attribute_r2"][:, 0]
        np.testing.assert_allclose(found[:, 1 + group], again, atol=1e-5)


def test_text_without_labels_has_spelling_alone():
    draw = np.random.default_rng(5)
    tokens = token_table(draw.integers(0, len(WORDS), (60, 33)), 6, WORDS)
    codes = np.stack([np.isin(tokens.ids, [12, 13]), draw.random(len(tokens)) < 0.2], axis=1)
    columns, names = attributes(reading_of(tokens, codes), Folds.of(tokens.documents, 6, 0, 3))
    assert names[0] == "spelling.newline"
    assert columns["attribute_r2"][0] == pytest.approx(1, abs=1e-5)
    assert columns["attribute_r2"][1, 0] < 0.02
