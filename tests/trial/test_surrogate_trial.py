"""A trial with surrogates, from text to report: where they have numbers, and where a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import sae_placebo as sp
from conftest import trial_table
from sae_placebo.core.progress import Progress
from sae_placebo.core.store import Store
from sae_placebo.models.activation_files import read_activations, read_drawn
from sae_placebo.models.diagnostics import r2_of_token
from sae_placebo.trial.artefacts import Artefacts
from sae_placebo.trial.plan import ArmModel, plan_steps
from sae_placebo.trial.spec import load_trial

SURROGATES = ("surrogate", "surrogate_pair", "redraw_surrogate")
PLACE = "resid_post.1"


@pytest.fixture(scope="module")
def table(tiny_model: Path, tiny_text: Path) -> dict[str, Any]:
    arms = {
        "trained": {"control": "trained"},
        "redraw": {"control": "redraw", "keep": ["embeddings"]},
        "surrogate": {"data": "surrogate"},
        "surrogate_pair": {"data": {"kind": "surrogate", "key": "pair"}},
        "redraw_surrogate": {"control": "redraw", "data": "surrogate"},
        "gaussian": {"data": "gaussian"},
    }
    table = trial_table(tiny_model, tiny_text, arms=arms, name="surrogates", model_seeds=[0])
    table["use"], table["audit"] = {"arms": []}, {"arms": []}
    return table


@pytest.fixture(scope="module")
def finished(table: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> sp.Trial:
    return sp.run(table, tmp_path_factory.mktemp("surrogates"))


@pytest.fixture(scope="module")
def artefacts(table: dict[str, Any], finished: sp.Trial) -> Artefacts:
    store = Store(finished.folder.parents[1])
    return Artefacts(plan_steps(load_trial(table)), store, Progress())


def test_its_card_says_what_was_estimated_and_what_is_off(
    artefacts: Artefacts, finished: sp.Trial
) -> None:
    arms = finished.record["arms"]
    for arm in SURROGATES:
        for record in arms[arm]["records"]:
            card = record["diagnostics"][PLACE]
            assert 0 < card["surrogate_token_variance"]["value"] < 1
            assert card["surrogate_token_variance"]["standard_error"] > 0
            assert card["surrogate_moment_error"]["value"] < 0.05
            assert 0 <= card["surrogate_unseen_share"]["value"] < 0.5
            assert "token_r2" in card  # of the arm's model
            assert ("surrogate_pair_variance" in card) == (arm == "surrogate_pair")
    for arm in ("trained", "redraw", "gaussian"):
        card = arms[arm]["records"][0]["diagnostics"][PLACE]
        assert not any(name.startswith("surrogate") for name in card)
    step = artefacts.plan.harvest[ArmModel("surrogate", 0)]
    assert read_drawn(artefacts.store.path(step))[PLACE].items() <= card_of(finished).items()
    report = finished.report.read_text(encoding="utf-8")
    assert "Surrogate: variance between tokens" in report


def card_of(finished: sp.Trial) -> dict[str, Any]:
    (record,) = finished.record["arms"]["surrogate"]["records"]
    card: dict[str, Any] = record["diagnostics"][PLACE]
    return card


def test_tokens_explain_as_much_of_it_as_of_the_model(artefacts: Artefacts) -> None:
    plan, found = artefacts.plan, {}
    rows = artefacts.materials.rows["heldout"]
    ids = rows.token_ids[rows.usable()]
    for arm, seed in (("trained", None), ("surrogate", 0), ("gaussian", 0)):
        x = read_activations(artefacts.store.path(plan.harvest[ArmModel(arm, seed)]), PLACE)
        found[arm] = r2_of_token(x, torch.from_numpy(ids.astype("int64")))
    assert found["surrogate"] == pytest.approx(found["trained"], abs=0.1)
    assert found["gaussian"] < 0.5 * found["surrogate"]


def test_its_latents_have_ladders_partners_and_classes(finished: sp.Trial) -> None:
    latents = finished.latents
    for arm in ("surrogate", "surrogate_pair"):  # the other's moments share bits with the placebo
        own = latents[(latents["arm"] == arm) & (latents["density"] > 0)]
        assert own["class"].notna().all()
        assert own["has_placebo_partner"].notna().any()
    drawn = latents.query("arm == 'gaussian'")
    assert drawn["has_placebo_partner"].isna().all()
    said = finished.measurements.query("arm == 'gaussian' and value.isna()")["reason"]
    assert said.str.contains("belong to no token").any()
    said = finished.measurements.query("arm in @SURROGATES and value.isna()")["reason"]
    assert not said.str.contains("belong to no token").any()


def test_what_needs_a_model_is_null_with_a_reason(finished: sp.Trial) -> None:
    own = finished.latents.query("arm in @SURROGATES")
    assert own["induction_d"].isna().all()
