"""Profiles of latents that were planted: class, verdict, partners, and the numbers that come of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from planted_readings import reading_of, token_table
from sae_placebo.latents.base import Encoded, Folds
from sae_placebo.latents.classes.classification import CLASS_NAMES, ClassThresholds
from sae_placebo.latents.columns.domains import domains_of
from sae_placebo.latents.ladder.fit_text import LadderText, Stacked
from sae_placebo.latents.ladder.fitting import RUNGS
from sae_placebo.latents.ladder.ladder import Ladder, ladder, whole_ladder
from sae_placebo.latents.ladder.predictors import Readouts
from sae_placebo.latents.ladder.token_features import LadderSpec, TokenFeatures
from sae_placebo.latents.measurement import MeasurementSpec
from sae_placebo.latents.metrics import METRICS
from sae_placebo.latents.metrics.structure import DECLARED
from sae_placebo.latents.origin.rule import ORIGINS
from sae_placebo.latents.partners.assignment import sharing
from sae_placebo.latents.profile import Around, Profile, profile
from sae_placebo.latents.spec import StructureSpec
from sae_placebo.stats.effects import document_weights

N_ROWS, WIDTH, D_IN, D_SAE, VOCABULARY = 80, 100, 64, 90, 60
DEAD, RARE, DENSE, TOKEN, FOUND_AGAIN, IN_PLACEBO, ALONE = range(7)
REPLICATES = 30
SPEC = StructureSpec(ladder=LadderSpec(readout=16))
SHOWN = MeasurementSpec(replicates=REPLICATES, shown_per_class=2, passages=2)


@dataclasses.dataclass
class Scene:
    """An SAE, what stands around it, and where its latents went in the other SAEs."""

    reading: Encoded
    folds: Folds
    around: Around
    to_sibling: np.ndarray

    def profile(self, around: Around | None = None, spec: StructureSpec = SPEC) -> Profile:
        n = self.reading.tokens.n_documents
        weights = document_weights(n, REPLICATES, 0)
        return profile(self.reading, self.folds, around or self.around, weights, spec, SHOWN, 0)


def drawn_codes(draw: np.random.Generator, ids: np.ndarray) -> np.ndarray:
    """Return [token, latent]: most fire at random on 3% of the tokens."""
    n = len(ids)
    values = draw.gamma(2.0, 1.0, (n, D_SAE)) + 0.1
    codes = np.where(draw.random((n, D_SAE)) < 0.03, values, 0)
    codes[:, DEAD] = 0
    codes[:, RARE] = 0
    codes[draw.choice(n, 4, replace=False), RARE] = 1
    codes[:, DENSE] = np.where(draw.random(n) < 0.2, values[:, DENSE], 0)
    codes[:, TOKEN] = np.where(ids == 7, 1 + 0.1 * draw.random(n), 0)
    return codes


def climbed(reading: Encoded, folds: Folds, x: torch.Tensor | None, placebo: Any | None) -> Ladder:
    text = LadderText.within(reading.tokens, folds, 0)
    features = TokenFeatures.of(text, None, 0, SPEC.ladder)
    readouts = Readouts.of(features, () if x is None else [x])
    others = None if placebo is None else Stacked([placebo])
    whole = whole_ladder(Stacked([reading.activations.numpy()]), readouts, others)
    return ladder(Stacked([reading.codes]), readouts, others, whole)


@pytest.fixture(scope="module")
def scene() -> Scene:
    draw = np.random.default_rng(5)
    table = token_table(
        draw.integers(0, VOCABULARY, (N_ROWS, WIDTH)),
        40,
        tuple(f" t{i}" for i in range(VOCABULARY)),
    )
    n = len(table)
    codes = drawn_codes(draw, table.ids)
    others = drawn_codes(draw, np.roll(table.ids, 999)), drawn_codes(draw, np.roll(table.ids, 555))
    to = draw.permutation(D_SAE)
    sibling, placebo = others
    for latent in (DENSE, TOKEN, FOUND_AGAIN, IN_PLACEBO):
        sibling[:, to[latent]] = codes[:, latent] * draw.uniform(0.8, 1.2, n)
    placebo[:, 30] = codes[:, IN_PLACEBO] * draw.uniform(0.8, 1.2, n)
    reading = reading_of(table, codes, draw.normal(size=(n, D_IN)))
    folds = Folds.of(table.documents, table.n_documents, 0, 8)
    x = torch.from_numpy(draw.normal(size=(n, D_IN)).astype(np.float32))
    others = csr_matrix(placebo.astype(np.float32))
    directions = tuple(reading.sae.params[name].numpy() for name in ("W_dec", "W_dec"))
    around = Around(
        ladder=climbed(reading, folds, x, others),
        placebo=others,
        rates=np.array([60.0, 120.0, 240.0]),
        sibling=csr_matrix(sibling.astype(np.float32)),
        shared=sharing(directions, directions),
        repeats=None,
        unembedding=None,
        embedding=None,
        domains=domains_of(table, 0),
        reasons={"repeats": "none were read"},
    )
    return Scene(reading, folds, around, to)


@pytest.fixture(scope="module")
def found(scene: Scene) -> Profile:
    return scene.profile()


def test_planted_latents_are_in_their_class(found: Profile) -> None:
    classes = found.latents["class"].tolist()
    assert classes[: TOKEN + 1] == ["dead", "ultra_rare", "dense", "single_token"]
    assert set(classes) <= set(CLASS_NAMES)
    assert (found.latents["class"][ALONE:] == "unexplained").mean() > 0.9


def test_planted_latents_have_their_verdict_and_its_evidence(found: Profile) -> None:
    table = found.latents
    assert set(table["origin"]) <= set(ORIGINS)
    expected = {
        DEAD: ("undetermined", "too rarely"),
        RARE: ("undetermined", "too rarely"),
        TOKEN: ("explained", "explained by the current token"),
        FOUND_AGAIN: ("not_explained", "no rung explains it"),
        IN_PLACEBO: ("explained", "placebo SAE"),
        ALONE: ("undetermined", "another seed has no partner"),
    }
    for latent, (verdict, evidence) in expected.items():
        assert table["origin"][latent] == verdict, latent
        assert evidence in table["evidence"][latent], latent


def test_partners_are_where_they_were_planted(scene: Scene, found: Profile) -> None:
    table = found.latents
    for latent in (DENSE, TOKEN, FOUND_AGAIN, IN_PLACEBO):
        assert table["seed_partner"][latent] == scene.to_sibling[latent]
        assert table["has_seed_partner"][latent] == 1
        assert table["seed_r"][latent] > 0.8
    assert table["placebo_partner"][IN_PLACEBO] == 30
    assert table["has_placebo_partner"][[FOUND_AGAIN, ALONE, IN_PLACEBO]].tolist() == [0, 0, 1]
    assert table["has_seed_partner"][ALONE] == 0
    assert table["seed_partner"].isna()[DEAD]
    assert np.isnan(table["has_seed_partner"][DEAD])
    assert (table["seed_null_r"].dropna() < 0.5).all()


def test_every_number_has_a_value_or_a_reason(scene: Scene, found: Profile) -> None:
    table = found.measurements
    assert table["metric"].is_unique
    assert set(table["metric"]) == set(DECLARED)
    assert not set(table["metric"]) & set(METRICS)
    assert (table["value"].isna() == table["reason"].notna()).all()
    assert (table["n"] == len(scene.reading.tokens)).all()
    known = table[table["value"].notna()].set_index("metric")
    assert set(known.index) == {name for name in found.replicates if "@" not in name}
    for name in known.index:
        values = found.replicates[name]
        assert values.shape == (REPLICATES + 1,) or values.shape == (REPLICATES,)
        assert values[0] == known["value"][name]
        assert known["unit"][name] == DECLARED[name].unit


def test_shares_are_counts_of_the_table_and_add_up(found: Profile) -> None:
    values = found.measurements.set_index("metric")
    for column, names, prefix in (
        ("class", CLASS_NAMES, "share_"),
        ("origin", ORIGINS, "origin_"),
    ):
        counts = found.latents[column].value_counts()
        known = [name for name in names if f"{prefix}{name}" in found.replicates]
        for name in known:
            expected = counts.get(name, 0) / D_SAE
            assert values["value"][f"{prefix}{name}"] == pytest.approx(expected), name
        total = np.sum([found.replicates[f"{prefix}{name}"] for name in known], axis=0)
        np.testing.assert_allclose(total, 1)
        assert {"share_dead", "origin_explained"} & {f"{prefix}{name}" for name in known}


def test_a_class_that_cannot_be_told_has_no_share_and_says_what_is_not_known(
    found: Profile,
) -> None:
    table = found.measurements.set_index("metric")
    for name, column in (
        ("induction", "induction_d"),
        ("output", "unembedding_kurtosis"),
    ):
        row = table.loc[f"share_{name}"]
        assert np.isnan(row["value"])
        assert column in row["reason"]
    assert (found.latents["class"] != "induction").all()


def test_the_ladder_of_the_activations_is_the_given_one(scene: Scene, found: Profile) -> None:
    values = found.measurements.set_index("metric")["value"]
    for rung, given in zip(RUNGS[1:], scene.around.ladder.whole[1:, 0], strict=True):
        assert values[f"activations_r2_{rung}"] == given


def test_an_sae_shares_all_directions_with_itself(found: Profile) -> None:
    values = found.measurements.set_index("metric")["value"]
    assert values["seed_shared"] == 1
    assert values["seed_mmcs"] == pytest.approx(1, abs=1e-5)
    assert values["seed_pw_mcc"] == pytest.approx(1, abs=1e-5)
    assert (found.latents["shared"] == 1).all()


def test_passages_are_of_latents_of_their_class(found: Profile) -> None:
    drawn = found.latents.set_index("latent").loc[found.passages["latent"].unique()]
    assert drawn["class"].value_counts().max() <= 2
    assert "dead" not in set(drawn["class"])


def test_without_a_placebo_nothing_is_said_of_origins(scene: Scene) -> None:
    why = {"placebo": "its text is rewritten", "sibling": "one SAE seed"}
    bare = dataclasses.replace(
        scene.around,
        placebo=None,
        sibling=None,
        shared=None,
        ladder=climbed(scene.reading, scene.folds, None, None),
        reasons=why,
    )
    found = scene.profile(bare)
    table = found.measurements.set_index("metric")
    for name in ("has_placebo_partner", *(f"origin_{verdict}" for verdict in ORIGINS)):
        assert np.isnan(table["value"][name])
        assert table["reason"][name] == why["placebo"]
    for name in ("has_seed_partner", "seed_shared", "seed_mmcs", "seed_pw_mcc"):
        assert table["reason"][name] == why["sibling"]
    assert found.latents["origin"][TOKEN] == "explained"
    assert found.latents["evidence"][FOUND_AGAIN] == why["placebo"]
    assert (found.latents["origin"] != "not_explained").all()
    assert found.latents["has_seed_partner"].isna().all()


def test_a_null_that_cannot_be_had_is_the_reason_for_every_latent(scene: Scene) -> None:
    one_document = dataclasses.replace(
        scene.around, sibling=csr_matrix(scene.around.sibling.shape, dtype=np.float32)
    )
    found = scene.profile(one_document)
    row: Any = found.measurements.set_index("metric").loc["has_seed_partner"]
    assert np.isnan(row["value"])
    assert row["reason"]
    assert (found.latents["origin"] != "not_explained").all()


def test_the_same_twice(scene: Scene, found: Profile) -> None:
    again = scene.profile()
    for name in ("latents", "measurements", "passages", "sensitivity", "curve"):
        assert getattr(found, name).equals(getattr(again, name)), name
    for name, values in found.replicates.items():
        np.testing.assert_array_equal(values, again.replicates[name])


def test_the_thresholds_are_those_of_the_settings(scene: Scene) -> None:
    strict = ClassThresholds(min_firings=len(scene.reading.tokens))
    shown = SHOWN.model_copy(update={"thresholds": strict})
    weights = document_weights(scene.reading.tokens.n_documents, REPLICATES, 0)
    found = profile(scene.reading, scene.folds, scene.around, weights, SPEC, shown, 0)
    assert set(found.latents["class"]) == {"dead", "ultra_rare"}
    assert set(found.latents["origin"]) == {"undetermined"}
