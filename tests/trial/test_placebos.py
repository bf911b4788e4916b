"""Which placebo and which sibling every arm's SAEs get, and why some get none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conftest import save_model, save_tokenizer, trial_table
from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.trial.placebos import Held, placebo_of, sibling_of
from sae_placebo.trial.plan import ArmModel
from sae_placebo.trial.reference import reference_placebo
from sae_placebo.trial.spec import TrialSpec, load_trial

ARMS = {
    "trained": {"control": "trained"},
    "redraw": {"control": "redraw"},
    "kept": {"control": "redraw", "keep": ["embeddings"]},
    "init": {"control": "init"},
    "embeddings": {"control": "redraw_embeddings"},
    "shuffled": {"control": "trained", "data": {"kind": "shuffle_tokens"}},
    "gaussian": {"control": "trained", "data": {"kind": "gaussian"}},
    "surrogate": {"control": "trained", "data": {"kind": "surrogate"}},
    "redraw_surrogate": {"control": "redraw", "data": {"kind": "surrogate"}},
    "unattending": {"control": "ablate_attention", "of": "redraw"},
    "deaf": {"control": "ablate_attention"},
    "frozen": {"control": "trained", "dictionary": {"kind": "frozen_decoder"}},
    "redraw_frozen": {"control": "redraw", "dictionary": {"kind": "frozen_decoder"}},
}

SAE = "topk"
"""Label of the one SAE in `conftest.trial_table`."""


@pytest.fixture
def table(tiny_model: Path, tiny_text: Path) -> dict[str, Any]:
    return trial_table(tiny_model, tiny_text, arms=ARMS, model_seeds=[3, 5, 9], sae_seeds=[1, 4, 6])


@pytest.fixture
def spec(table: dict[str, Any]) -> TrialSpec:
    return load_trial(table)


def among(table: dict[str, Any], *arms: str, **changes: Any) -> TrialSpec:
    return load_trial(table | {"arms": {name: ARMS[name] for name in arms}} | changes)


def test_the_redraw_that_keeps_embeddings_is_the_reference(
    table: dict[str, Any], spec: TrialSpec
) -> None:
    assert reference_placebo(spec) == "kept"
    assert reference_placebo(among(table, "trained", "init", "redraw")) == "redraw"
    assert reference_placebo(among(table, "trained", "redraw_frozen", "init")) == "init"


def test_a_placebo_without_attention_is_the_last_choice(table: dict[str, Any]) -> None:
    assert reference_placebo(among(table, "trained", "unattending", "init")) == "init"
    assert reference_placebo(among(table, "trained", "unattending")) == "unattending"
    with pytest.raises(NotEstimable, match="no arm re-draws"):
        reference_placebo(among(table, "trained", "deaf"))


def test_an_ablated_redraw_shares_bits_with_the_redraw(table: dict[str, Any]) -> None:
    spec = among(table, "trained", "redraw", "unattending", model_seeds=[3])
    with pytest.raises(NotEstimable, match="shares bits"):
        placebo_of(spec, ArmModel("unattending", 3), SAE, 1)


@pytest.mark.parametrize(
    "arm", ["embeddings", "shuffled", "gaussian", "surrogate", "frozen", "redraw_frozen"]
)
def test_what_does_not_redraw_the_weights_of_the_model_alone_cannot_serve(
    table: dict[str, Any], arm: str
) -> None:
    with pytest.raises(NotEstimable, match="no arm re-draws"):
        reference_placebo(among(table, "trained", arm))
    with pytest.raises(SpecError, match=f"structure.placebo is '{arm}'"):
        reference_placebo(load_trial(table | {"structure": {"placebo": arm}}))


def test_a_placebo_is_asked_for_by_name(table: dict[str, Any]) -> None:
    assert reference_placebo(load_trial(table | {"structure": {"placebo": "init"}})) == "init"
    with pytest.raises(SpecError, match=r"structure.placebo: .*'nobody'"):
        reference_placebo(load_trial(table | {"structure": {"placebo": "nobody"}}))


@pytest.mark.parametrize(("seed", "following"), [(1, 4), (4, 6), (6, 1)])
def test_the_sae_seed_is_the_next_one_and_goes_round(
    spec: TrialSpec, seed: int, following: int
) -> None:
    trained = ArmModel("trained", None)
    assert placebo_of(spec, trained, SAE, seed) == Held(ArmModel("kept", 3), following)
    assert sibling_of(spec, trained, SAE, seed) == Held(trained, following)


@pytest.mark.parametrize("arm", ["kept", "redraw", "init", "embeddings", "redraw_frozen"])
@pytest.mark.parametrize(("seed", "following"), [(3, 5), (5, 9), (9, 3)])
def test_a_drawn_arm_is_held_against_the_next_redraw(
    spec: TrialSpec, arm: str, seed: int, following: int
) -> None:
    held = placebo_of(spec, ArmModel(arm, seed), SAE, 1)
    assert held == Held(ArmModel("kept", following), 4)
    assert sibling_of(spec, ArmModel(arm, seed), SAE, 1) == Held(ArmModel(arm, seed), 4)


def test_an_arm_that_reads_other_tokens_or_none_has_no_placebo(spec: TrialSpec) -> None:
    with pytest.raises(NotEstimable, match="text is rewritten"):
        placebo_of(spec, ArmModel("shuffled", 3), SAE, 1)
    with pytest.raises(NotEstimable, match="activations are drawn"):
        placebo_of(spec, ArmModel("gaussian", 3), SAE, 1)
    assert placebo_of(spec, ArmModel("frozen", None), SAE, 1).one == ArmModel("kept", 3)


@pytest.mark.parametrize("arm", ["surrogate", "redraw_surrogate"])
def test_a_surrogate_follows_its_tokens_and_has_a_placebo(
    table: dict[str, Any], spec: TrialSpec, arm: str
) -> None:
    assert placebo_of(spec, ArmModel(arm, 3), SAE, 1) == Held(ArmModel("kept", 5), 4)
    alone = among(table, "trained", "kept", arm, model_seeds=[3])
    if arm == "surrogate":
        assert placebo_of(alone, ArmModel(arm, 3), SAE, 1).one == ArmModel("kept", 3)
    else:  # its moments are those of the same weights
        with pytest.raises(NotEstimable, match="shares bits"):
            placebo_of(alone, ArmModel(arm, 3), SAE, 1)


def test_one_redraw_is_no_placebo_of_itself_and_one_seed_no_sibling(table: dict[str, Any]) -> None:
    spec = load_trial(table | {"model_seeds": [3], "sae_seeds": [1]})
    with pytest.raises(NotEstimable, match="at least two model_seeds"):
        placebo_of(spec, ArmModel("kept", 3), SAE, 1)
    with pytest.raises(NotEstimable, match="shares bits"):
        placebo_of(spec, ArmModel("redraw", 3), SAE, 1)
    other = table | {"arms": table["arms"] | {"init": {"control": "init"}}, "model_seeds": [3]}
    held = placebo_of(load_trial(other | {"sae_seeds": [1]}), ArmModel("init", 3), SAE, 1)
    assert held == Held(ArmModel("kept", 3), 1)
    with pytest.raises(NotEstimable, match="at least two sae_seeds"):
        sibling_of(spec, ArmModel("trained", None), SAE, 1)


def test_an_arm_that_reads_the_placebos_only_redraw_is_not_held_against_itself(
    table: dict[str, Any],
) -> None:
    one_seed = {"model_seeds": [3]}
    spec = among(table, "trained", "redraw", "redraw_frozen", **one_seed)
    assert reference_placebo(spec) == "redraw"
    with pytest.raises(NotEstimable, match="at least two model_seeds"):
        placebo_of(spec, ArmModel("redraw_frozen", 3), SAE, 1)
    spec = among(table, "trained", "redraw", "redraw_frozen")
    assert placebo_of(spec, ArmModel("redraw_frozen", 3), SAE, 1).one == ArmModel("redraw", 5)


def test_a_kept_head_behind_the_hookpoints_makes_no_other_placebo(
    table: dict[str, Any], tmp_path: Path
) -> None:
    save_model(tmp_path, tie_word_embeddings=False)
    save_tokenizer(tmp_path)
    both = {"control": "redraw", "keep": ["embeddings", "unembedding"]}
    arms = {"trained": ARMS["trained"], "kept": ARMS["kept"], "both": both}
    spec = load_trial(table | {"arms": arms, "model_seeds": [3], "model": {"id": str(tmp_path)}})
    assert reference_placebo(spec) == "kept"
    with pytest.raises(NotEstimable, match="at least two model_seeds"):
        placebo_of(spec, ArmModel("both", 3), SAE, 1)
