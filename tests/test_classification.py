"""The decision list, rule by rule."""

from __future__ import annotations

import numpy as np
import pandas
import pytest
from pydantic import ValidationError

from sae_placebo.classification import CLASS_NAMES, CLASSES, ClassThresholds, classify, decide

COLUMNS = [
    *("n_active", "density", "effective_tokens"),
    *("top_token_mass", "top_token_recall", "family_mass"),
]
CASES = {
    "dead": (0, 0.0, np.nan, np.nan, np.nan, np.nan),
    "fewer than min_firings": (7, 0.9, 1.0, 1.0, 1.0, 1.0),
    "density not judged": (8, 5e-7, 1.0, 1.0, 1.0, 1.0),
    "dense, though on one token": (500, 0.11, 1.0, 1.0, 1.0, 1.0),
    "one token": (100, 0.1, 1.5, 0.9, 0.8, 0.9),
    "one token, partial recall": (100, 0.01, 1.5, 0.95, 0.79, 0.95),
    "family of forms": (100, 0.01, 9.0, 0.4, 0.9, 0.9),
    "few tokens": (100, 0.01, 5.0, 0.3, 0.9, 0.4),
    "many tokens": (100, 0.01, 5.1, 0.89, 0.9, 0.89),
}
EXPECTED = [
    *("dead", "ultra_rare", "ultra_rare", "dense", "single_token"),
    *("token_family", "token_family", "token_family", "other"),
]


@pytest.fixture
def table() -> pandas.DataFrame:
    return pandas.DataFrame(list(CASES.values()), columns=COLUMNS, index=list(CASES))


def test_every_rule_in_order(table: pandas.DataFrame) -> None:
    assert classify(table).tolist() == EXPECTED
    assert set(EXPECTED) == set(CLASS_NAMES)


def test_nulls_of_a_nullable_table(table: pandas.DataFrame) -> None:
    assert classify(table.convert_dtypes()).tolist() == EXPECTED


def test_replicates_are_judged_alike(table: pandas.DataFrame) -> None:
    columns = {name: np.stack([table[name].to_numpy()] * 3, axis=1) for name in COLUMNS}
    found = decide(columns, ClassThresholds())
    assert found.shape == (len(CASES), 3)
    for replicate in range(3):
        assert [CLASS_NAMES[index] for index in found[:, replicate]] == EXPECTED


def test_thresholds_move_the_borders(table: pandas.DataFrame) -> None:
    loose = ClassThresholds(min_firings=5, dense_density=0.5, recall=0.5, effective_tokens=10)
    found = dict(zip(CASES, classify(table, loose), strict=True))
    assert found["dense, though on one token"] == "single_token"
    assert found["one token, partial recall"] == "single_token"
    assert found["many tokens"] == "token_family"
    with pytest.raises(ValidationError):
        ClassThresholds(mass=1.5)


def test_every_class_says_what_it_is_and_where_it_occurs() -> None:
    for kind in CLASSES:
        assert kind.definition
        assert kind.on_random_models
