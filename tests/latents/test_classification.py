"""The decision list, rule by rule."""

from __future__ import annotations

import numpy as np
import pandas
import pytest
from pydantic import ValidationError

from sae_placebo.latents.classes.classification import (
    CLASS_NAMES,
    CLASSES,
    ClassThresholds,
    classify,
    decide,
    is_arbitrary,
    not_estimable,
)

PLAIN = {
    **{"n_active": 500.0, "density": 0.01, "effective_tokens": 100.0},
    **{"top_token_mass": 0.1, "top_token_recall": 0.1, "family_mass": 0.1},
}
DOMAIN = {"domain_precision": 0.8, "domain_recall": 0.29, "domain_auc": 0.59, "seed_r": 0.4}
ONE = {"top_token_mass": 0.9, "effective_tokens": 1.5, "family_mass": 0.95}
CASES: dict[str, tuple[dict[str, float], str]] = {
    "never active": ({"n_active": 0, "density": 0.0}, "dead"),
    "seven times": ({"n_active": 7}, "ultra_rare"),
    "density not judged": ({"n_active": 8, "density": 5e-7}, "ultra_rare"),
    "dense, though on one token": ({**ONE, "density": 0.11, "top_token_recall": 0.9}, "dense"),
    "one token": ({**ONE, "top_token_recall": 0.8}, "single_token"),
    "one token along a PC": ({**ONE, "top_token_recall": 0.8, "pc_cosine": 0.9}, "single_token"),
    "norm": ({"norm_correlation": -0.51}, "artefact"),
    "PC": ({"pc_cosine": 0.81, "r2_position": 0.9}, "artefact"),
    "antipode": ({"antipodality": 0.81}, "artefact"),
    "position": ({"r2_position": 0.3}, "positional"),
    "position, in bits": ({"position_bits": 0.05}, "positional"),
    "behind BOS": ({"position_bits": 0.1, "r2_previous": 0.9, "r2_token": 0.0}, "positional"),
    "covered": ({**ONE, "ngram_cover": 0.95, "top_token_recall": 0.3}, "n_gram"),
    "both tokens": ({"r2_pair": 0.5, "r2_token": 0.4, "r2_previous": 0.3}, "pair_set"),
    "a pair that tells more than a token that tells much": (
        {"r2_pair": 0.9, "r2_token": 0.7, "r2_previous": 0.1, "r2_window": 0.9},
        "pair_set",
    ),
    "a token that tells nearly all": (
        {"r2_pair": 0.75, "r2_token": 0.7, "r2_previous": 0.1, "r2_window": 0.9},
        "token_set",
    ),
    "the tokens around": ({"r2_token": 0.3, "r2_pair": 0.4, "r2_window": 0.5}, "bag_or_window"),
    "in part": ({"r2_token": 0.3, "r2_pair": 0.2, "r2_window": 0.1}, "partly_explained"),
    "hardly": ({"r2_token": 0.1, "r2_pair": np.nan, "r2_window": 0.29}, "unexplained"),
    "previous alone": ({"r2_pair": 0.5, "r2_token": 0.0, "r2_previous": 0.45}, "previous_token"),
    "in context": ({**ONE, "top_token_recall": 0.4, "context_gain": 0.1}, "token_in_context"),
    "by a window": (
        {**ONE, "top_token_recall": 0.4, "r2_window": 0.6, "r2_token": 0.4},
        "token_in_context",
    ),
    "partial recall": ({**ONE, "top_token_recall": 0.6, "context_gain": 0.2}, "token_family"),
    "forms": ({"family_mass": 0.9}, "token_family"),
    "few tokens": ({"effective_tokens": 5.0}, "token_family"),
    "copies": ({"induction_d": 0.8, "r2_bag": 0.9, "r2_token": 0.0}, "induction"),
    "bag": ({"r2_bag": 0.3, "r2_pair": 0.2, "r2_token": 0.09}, "context"),
    "a bag that the token tells as well": (
        {"r2_bag": 0.3, "r2_pair": 0.2, "r2_token": 0.1},
        "unexplained",
    ),
    "attribute": ({"attribute_r2": 0.3}, "attribute"),
    "attribute of a list": ({"attribute_r2": 0.3, "effective_tokens": 20.0}, "undecided"),
    "output": ({**DOMAIN, "unembedding_kurtosis": 10.1, "output_lift": 1.51}, "output"),
    "kurtosis alone": ({"unembedding_kurtosis": 20.0, "output_lift": 1.5}, "undecided"),
    "subset": (DOMAIN, "arbitrary_subset"),
    "subset found again": ({**DOMAIN, "seed_r": 0.5}, "undecided"),
    "subset, no other seed": ({**DOMAIN, "seed_r": np.nan}, "undecided"),
    "most of the domain": ({**DOMAIN, "domain_recall": 0.3}, "undecided"),
    "predictable subset": ({**DOMAIN, "domain_auc": 0.6}, "undecided"),
    "nothing": ({}, "undecided"),
}
EXPECTED = [answer for _, answer in CASES.values()]


@pytest.fixture
def table() -> pandas.DataFrame:
    return pandas.DataFrame([PLAIN | case for case, _ in CASES.values()], index=list(CASES))


def test_every_rule_in_order(table: pandas.DataFrame) -> None:
    found = dict(zip(CASES, classify(table), strict=True))
    assert found == {case: answer for case, (_, answer) in CASES.items()}
    assert set(EXPECTED) == set(CLASS_NAMES)


def test_nulls_of_a_nullable_table(table: pandas.DataFrame) -> None:
    assert classify(table.convert_dtypes()).tolist() == EXPECTED


def test_folds_are_judged_alike(table: pandas.DataFrame) -> None:
    columns = {name: np.stack([table[name].to_numpy()] * 3, axis=1) for name in table}
    found = decide(columns, ClassThresholds())
    assert found.shape == (len(CASES), 3)
    for fold in range(3):
        assert [CLASS_NAMES[index] for index in found[:, fold]] == EXPECTED


def test_missing_columns_satisfy_no_rule(table: pandas.DataFrame) -> None:
    simple = {"dead", "ultra_rare", "dense", "single_token", "token_family", "undecided"}
    columns = {name: table[name].to_numpy() for name in PLAIN}
    found = {CLASS_NAMES[index] for index in decide(columns, ClassThresholds())}
    assert found == simple
    assert set(not_estimable(columns)) == set(CLASS_NAMES) - simple
    assert "seed_r" in not_estimable(columns)["arbitrary_subset"]


def test_a_class_is_estimable_where_one_set_of_its_columns_is_known() -> None:
    nothing = np.full((4, 2), np.nan)
    columns = {"n_active": np.ones((4, 2)), "pc_cosine": nothing, "antipodality": nothing}
    assert "artefact" in not_estimable(columns)
    columns["norm_correlation"] = np.where(np.arange(4)[:, None] == 1, 0.2, nothing)
    assert "artefact" not in not_estimable(columns)
    assert "dead" not in not_estimable(columns)
    assert "undecided" not in not_estimable({})


def test_thresholds_move_the_borders(table: pandas.DataFrame) -> None:
    loose = ClassThresholds(
        min_firings=5, dense_density=0.5, recall=0.5, effective_tokens=10, seed_r=1
    )
    found = dict(zip(CASES, classify(table, loose), strict=True))
    assert found["dense, though on one token"] == "single_token"
    assert found["partial recall"] == "single_token"
    # without the condition on other seeds, it does not matter whether there are any
    assert found["subset, no other seed"] == "arbitrary_subset"
    assert found["subset found again"] == "arbitrary_subset"
    with pytest.raises(ValidationError):
        ClassThresholds(mass=1.5)


def test_subsets_are_known_without_other_seeds(table: pandas.DataFrame) -> None:
    found = is_arbitrary({name: table[name].to_numpy() for name in table}, ClassThresholds())
    names = {case for case, one in zip(CASES, found, strict=True) if one}
    assert names == {"output", "subset", "subset found again", "subset, no other seed"}


def test_every_class_says_what_it_is_and_where_it_occurs() -> None:
    for kind in CLASSES:
        assert kind.definition
        assert kind.on_random_models
        assert kind.needs or kind.name == "undecided"
        assert kind.claimed is not bool(kind.unclaimed)
