"""Planted latents of every class are found as what they are."""

from __future__ import annotations

import numpy as np
import pytest

from sae_placebo.latents.base import Folds
from sae_placebo.latents.classes.classification import CLASS_NAMES, CLASSES, ClassThresholds, decide
from sae_placebo.latents.classes.planted import (
    PlantedSpec,
    confusion,
    plant,
    planted_columns,
    wilson,
)


def test_the_diagonal_of_the_confusion_matrix() -> None:
    spec = PlantedSpec(documents=320, rows_per_document=2, per_class=8, seed=3)
    planted = plant(spec)
    tokens = planted.reading.tokens
    columns = planted_columns(planted, Folds.of(tokens.documents, tokens.n_documents, 0))
    needed = {name for kind in CLASSES for names in kind.needs for name in names}
    assert needed <= set(columns)
    found = decide(columns, ClassThresholds())[:, 0]
    table = confusion(planted.truth, found).set_index(["planted", "found"])
    for kind in CLASSES[:-1]:
        row = table.loc[(kind.name, kind.name)]
        assert row["n_planted"] == spec.per_class
        if kind.claimed:
            # with .9 of them found, fewer than 6 of 8 have a chance of 4%; of 5, of .5%
            assert row["n"] >= 5, f"{kind.name}: {row['n']} of {row['n_planted']}"
    # those of a class that is not claimed are missed, not mistaken for another class
    others = set(table.loc["context"].index) - {"context"}
    assert others <= {"unexplained"}
    share = np.mean(found == planted.truth)
    assert share >= 0.9, share


def test_the_same_spec_plants_the_same_latents() -> None:
    spec = PlantedSpec(documents=16, rows_per_document=1, context=32, per_class=3)
    one, other = plant(spec), plant(spec)
    assert (one.reading.codes != other.reading.codes).nnz == 0
    assert one.reading.codes.shape[1] == 3 * (len(CLASS_NAMES) - 1)


def test_a_confusion_matrix_by_hand() -> None:
    truth = np.array([0, 0, 0, 0, 3], dtype=np.int8)
    found = np.array([0, 0, 0, 3, 4], dtype=np.int8)
    table = confusion(truth, found).set_index(["planted", "found"])
    assert table.loc[("dead", "dead"), "share"] == 0.75
    assert table.loc[("dead", "single_token"), "n"] == 1
    # a class of which none is found is there, with 0
    assert table.loc[("single_token", "single_token"), "n"] == 0
    assert len(table) == 4


def test_wilson() -> None:
    # Agresti and Coull 1998: 0 of 10 gives an interval up to .278
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
