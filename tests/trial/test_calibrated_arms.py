"""A trial whose placebo is calibrated: each hookpoint is read from its own model, by every stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import sae_placebo as sp
from conftest import trial_table
from sae_placebo.core.errors import SpecError
from sae_placebo.core.progress import Progress
from sae_placebo.core.store import Store
from sae_placebo.models.activation_files import read_activations
from sae_placebo.models.loading import Reader
from sae_placebo.trial.arms import parse_arm
from sae_placebo.trial.artefacts import Artefacts
from sae_placebo.trial.costs import plan_table
from sae_placebo.trial.plan import ArmModel, plan_steps
from sae_placebo.trial.spec import load_trial
from sae_placebo.trial.stages import questions
from sae_placebo.trial.stages.arm_models import arm_model, arm_models, models_asked

HOOKPOINTS = ["resid_post.1", "mlp_out.1"]
ARM = {
    "control": "redraw_calibrated",
    "of": {"control": "redraw", "keep": ["embeddings"]},
    "tokens": 2_000,
}
CALIBRATED = ArmModel("calibrated", 0)


@pytest.fixture(scope="module")
def table(tiny_model: Path, tiny_text: Path) -> dict[str, Any]:
    arms = {"trained": {"control": "trained"}, "calibrated": ARM}
    changes: dict[str, Any] = {"hookpoints": HOOKPOINTS, "model_seeds": [0], "arms": arms}
    made = trial_table(tiny_model, tiny_text, name="calibrated", **changes)
    made["sae_seeds"] = [0]
    made["audit"] |= {"arms": []}
    made["use"] |= {"latents": 4}
    return made


@pytest.fixture(scope="module")
def finished(table: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> sp.Trial:
    return sp.run(table, tmp_path_factory.mktemp("calibrated"))


@pytest.fixture(scope="module")
def artefacts(table: dict[str, Any], finished: sp.Trial) -> Artefacts:
    store = Store(finished.folder.parents[1])
    return Artefacts(plan_steps(load_trial(table)), store, Progress())


def test_the_trial_has_every_number_and_says_how_its_models_were_made(finished: sp.Trial) -> None:
    effects = finished.effects.query("metric == 'explained_variance' and control == 'calibrated'")
    assert set(effects["hookpoint"]) == set(HOOKPOINTS)
    assert effects["effect"].notna().all()
    (record,) = finished.record["arms"]["calibrated"]["records"]
    models = record["recipe"]["models"]
    assert [model["hookpoints"] for model in models] == [[name] for name in HOOKPOINTS]
    for model in models:
        (found,) = model["values"].values()
        assert abs(found["reached"] - found["target"]) <= 0.02
        assert found["participation_ratio"] > 1
        assert found["norm"] > 0
        assert model["block_passes"] > 0
        assert model["tokens"] >= 2_000
    assert models[0]["read_hash"] != models[1]["read_hash"]
    (trained,) = finished.record["arms"]["trained"]["records"]
    for name in HOOKPOINTS:
        for card in (record["diagnostics"][name], trained["diagnostics"][name]):
            assert card["token_component"]["value"] is not None
    page = (finished.folder / "report" / "index.html").read_text()
    assert "Between tokens, other documents" in page


def test_each_hookpoint_was_read_from_its_own_model(artefacts: Artefacts) -> None:
    rows = artefacts.materials.rows["heldout"]
    ids = torch.from_numpy(rows.token_ids[:4]).long()
    usable = torch.from_numpy(rows.usable()[:4])
    folder = artefacts.store.path(artefacts.plan.harvest[CALIBRATED])
    found = {}
    for name in HOOKPOINTS:
        model, _ = arm_model(artefacts, CALIBRATED, [name])
        found[name] = Reader(model, HOOKPOINTS).read(ids)
        kept = read_activations(folder, name)[: int(usable.sum())]
        torch.testing.assert_close(kept, found[name][name][usable], rtol=1e-3, atol=1e-4)
    first, second = (found[name]["resid_post.1"] for name in HOOKPOINTS)
    assert float((first - second).abs().max()) > 0.01


def test_what_is_asked_is_asked_of_the_hookpoints_model(
    artefacts: Artefacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = models_asked(artefacts, CALIBRATED, HOOKPOINTS)
    asked = questions._built(artefacts, CALIBRATED, HOOKPOINTS)
    for name in HOOKPOINTS:
        expected = models[name].state_dict()
        behind = asked.behind(name).model.state_dict()
        assert all(torch.equal(expected[n], behind[n]) for n in expected)
    a, b = (models[name].state_dict() for name in HOOKPOINTS)
    assert not all(torch.equal(a[n], b[n]) for n in a)
    trained = models_asked(artefacts, ArmModel("trained", None), HOOKPOINTS)
    assert trained["resid_post.1"] is trained["mlp_out.1"]


def test_one_model_is_asked_for_what_another_reads(artefacts: Artefacts) -> None:
    with pytest.raises(
        SpecError, match=r"resid_post.1, mlp_out.1 of arm calibrated-0 are read from"
    ):
        arm_model(artefacts, CALIBRATED, HOOKPOINTS)


def test_the_same_weights_are_made_from_what_the_store_holds(artefacts: Artefacts) -> None:
    folder = artefacts.store.path(artefacts.plan.build[CALIBRATED])
    recorded = json.loads((folder / "recipe.json").read_text())
    again = arm_models(artefacts, CALIBRATED).recipe
    assert again["read_hash"] == recorded["read_hash"]
    assert again["weight_hash"] == recorded["weight_hash"]


def test_ties_and_use_were_asked_of_the_placebo(finished: sp.Trial) -> None:
    use = finished.use.query("arm == 'calibrated'")
    assert set(use["hookpoint"]) == set(HOOKPOINTS)


def test_other_text_or_hookpoints_are_another_model(table: dict[str, Any]) -> None:
    step = plan_steps(load_trial(table)).build[CALIBRATED]
    shorter = table | {"text": table["text"] | {"train_tokens": 5_000}}
    fewer = table | {"hookpoints": HOOKPOINTS[:1]}
    stricter = table | {"arms": table["arms"] | {"calibrated": ARM | {"tolerance": 0.01}}}
    for other in (shorter, fewer, stricter):
        assert plan_steps(load_trial(other)).build[CALIBRATED].key != step.key


def test_what_cannot_be_reached_is_null_with_the_reason(
    table: dict[str, Any], tmp_path: Path
) -> None:
    arms = table["arms"] | {"calibrated": ARM | {"tolerance": 1e-9}}
    fewer = {"hookpoints": HOOKPOINTS[:1], "use": {"arms": []}, "arms": arms}
    trial = sp.run(table | fewer, tmp_path)
    why = r"no gains .* at resid_post.1: 0\.\d+ is sought, 0\.\d+ is the nearest"
    own = trial.measurements[trial.measurements["arm"] == "calibrated"]
    assert own["value"].isna().all()
    assert own["reason"].str.contains(why).all()
    assert trial.effects["effect"].isna().all()
    assert trial.effects["reason"].str.contains(why).all()
    assert trial.effects["arm_value"].notna().any()
    assert not trial.claims["claimed"].any()
    assert trial.claims["reason"].str.contains("not estimable against calibrated").all()


@pytest.mark.parametrize(
    ("arm", "fair"),
    [
        (ARM, True),
        ({"data": "surrogate"}, True),
        (ARM | {"data": "surrogate"}, True),
        # a surrogate's token explains what it explains in the model that the surrogate is of
        ({"control": "redraw", "data": "surrogate"}, False),
        ({"control": "ablate_attention", "data": "surrogate"}, False),
        (ARM | {"data": "shuffle_tokens"}, False),
        ({"control": "redraw"}, False),
        ({"dictionary": "frozen_decoder"}, False),
    ],
)
def test_a_fair_placebo_has_the_trained_models_token(arm: dict[str, Any], fair: bool) -> None:
    assert parse_arm(arm).is_fair == fair


def test_a_trial_whose_first_placebo_is_calibrated_is_planned(
    table: dict[str, Any], tmp_path: Path
) -> None:
    # JSON's values are TOML's too
    lines = [f"{key} = {json.dumps(value)}" for key, value in _flat(table)]
    (tmp_path / "trial.toml").write_text("\n".join(lines) + "\n")
    said = plan_table(
        tmp_path / "trial.toml", tmp_path, overrides=[], probe=True, progress=Progress()
    )
    assert "minutes" in said


def _flat(table: dict[str, Any], before: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in table.items():
        name = f"{before}{json.dumps(key)}"
        found += _flat(value, f"{name}.") if isinstance(value, dict) else [(name, value)]
    return found
