"""Tables of every arm's latents: which arm serves as placebo, and what each row is held against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from conftest import trial_table
from sae_placebo.latents.classes.classification import ClassThresholds
from sae_placebo.latents.origin.decoy_scores import SCORES
from sae_placebo.stats.replicates import ReplicateKey, ReplicateTable
from sae_placebo.trial.spec import TrialSpec, load_trial
from sae_placebo.trial.tables.latents import (
    attention_ablated,
    decoys_of,
    mechanism_of,
    partners_of,
)

PLACES = ("resid_post.0", "resid_post.1")
N = 40


@pytest.fixture
def table(tiny_model: Path, tiny_text: Path) -> dict[str, Any]:
    arms = {
        "trained": {"control": "trained"},
        "redraw": {"control": "redraw"},
        "kept": {"control": "redraw", "keep": ["embeddings"]},
        "shuffled": {"control": "trained", "data": {"kind": "shuffle_tokens"}},
    }
    return trial_table(tiny_model, tiny_text, arms=arms, hookpoints=list(PLACES))


@pytest.fixture
def spec(table: dict[str, Any]) -> TrialSpec:
    return load_trial(table)


def latents(spec: TrialSpec) -> pd.DataFrame:
    """Made-up latents; the trained arm's stand out by their attribute, in nothing else."""
    draw, parts = np.random.default_rng(3), []
    for arm in spec.arms:
        for model_seed in spec.seeds_of(arm):
            for place in spec.hookpoints:
                for sae_seed in spec.sae_seeds:
                    part = pd.DataFrame({"latent": np.arange(N)})
                    part["arm"], part["hookpoint"], part["sae"] = arm, place, "topk"
                    part["model_seed"], part["sae_seed"] = model_seed, sae_seed
                    part["class"] = "other"
                    part["is_arbitrary"] = draw.random(N) < (0.2 if place == PLACES[0] else 0.7)
                    for name in ("placebo_r", "seed_r", "placebo_null_r", "seed_null_r"):
                        part[name] = draw.random(N)
                    for name in ("placebo", "seed"):
                        part[f"has_{name}_partner"] = (part[f"{name}_r"] > 0.5).astype(float)
                        part[f"null_has_{name}_partner"] = 0.0
                    part["shared"], part["domain_auc"], part["mlp_auc"] = 1.0, 0.55, 0.56
                    part["attribute_r2"] = draw.random(N) + (arm == "trained")
                    part["r2_window"] = draw.random(N)
                    parts.append(part)
    found = pd.concat(parts, ignore_index=True)
    return found.astype({"model_seed": "Int64", "sae_seed": "Int64"})


def test_partners_have_two_rows_per_latent_and_say_against_whom(spec: TrialSpec) -> None:
    given = latents(spec)
    found = partners_of(spec, given)
    assert len(found) == 2 * len(given)
    kinds = found.groupby("arm")["comparison"].agg(set).to_dict()
    assert kinds == {arm: {"aa" if arm == "kept" else "placebo", "seed"} for arm in spec.arms}
    others = found.drop_duplicates(["arm", "model_seed", "sae_seed", "comparison"])
    by = others.groupby(["arm", "comparison", "sae_seed"])["other"].agg(list)
    assert by["trained", "placebo", 0] == ["kept-0, SAE seed 1"]
    assert by["trained", "placebo", 1] == ["kept-0, SAE seed 0"]
    assert by["trained", "seed", 0] == ["trained, SAE seed 1"]
    assert by["kept", "aa", 0] == ["kept-1, SAE seed 1", "kept-0, SAE seed 1"]
    of_text = found[(found["arm"] == "shuffled") & (found["comparison"] == "placebo")]
    assert of_text["other"].isna().all()
    assert of_text["reason"].str.contains("text is rewritten").all()
    assert found.loc[found["other"].notna(), "reason"].isna().all()


def test_partners_carry_each_comparisons_own_numbers(spec: TrialSpec) -> None:
    given = latents(spec)
    found = partners_of(spec, given)
    keys = ["arm", "model_seed", "sae_seed", "hookpoint", "sae", "latent"]
    for name in ("placebo", "seed"):
        part = found[(found["comparison"] == "seed") == (name == "seed")]
        both = part.merge(given, on=keys, suffixes=("", "_given"))
        assert len(both) == len(given)
        assert both["correlation"].equals(both[f"{name}_r"])
        assert both["null_correlation"].equals(both[f"{name}_null_r"])
        assert both["has_partner"].equals(both[f"has_{name}_partner"])
        assert (both["shared"].notna() == (name == "seed")).all()


def test_decoys_are_of_the_placebo_and_of_the_same_model(table: dict[str, Any]) -> None:
    arms = table["arms"] | {"frozen": {"dictionary": "frozen_decoder"}}
    spec = load_trial(table | {"arms": arms})
    found = decoys_of(spec, latents(spec), ReplicateTable({}, {}, frozenset()))
    assert len(found) == len(PLACES) * len(SCORES)
    assert set(found["placebo"]) <= {"kept", "frozen"}
    rows = found[found["score"] == "attribute_r2"]
    assert (rows["n_targets"] == 2 * N).all()
    assert (rows["n_decoys"] == rows["placebo"].map({"kept": 4 * N, "frozen": 2 * N})).all()
    assert (rows["passing"] > N).all()
    assert (rows["achieved"] <= spec.structure.decoy_rate).all()
    absent = found[found["score"] == "induction_d"]
    assert absent["passing"].isna().all()
    assert absent["reason"].notna().all()


def test_without_decoys_of_the_same_model_nothing_is_told(spec: TrialSpec) -> None:
    found = decoys_of(spec, latents(spec), ReplicateTable({}, {}, frozenset()))
    assert found["passing"].isna().all()
    assert found["reason"].str.contains("be of the same model").all()


def test_a_score_of_the_ladder_is_withheld_with_its_share(spec: TrialSpec) -> None:
    measured = ReplicateTable({}, {}, frozenset())
    cell = ReplicateKey("trained", PLACES[0], "topk", "explained_up_to_window")
    measured.withheld[(cell,)] = "withheld: it moves"
    found = decoys_of(spec, latents(spec), measured)
    moves = found["reason"] == "trained: withheld: it moves"
    assert list(found.loc[moves, "score"]) == ["stable_unexplained"]
    assert list(found.loc[moves, "hookpoint"]) == [PLACES[0]]


def test_without_a_placebo_decoys_say_why(table: dict[str, Any]) -> None:
    arms = {name: table["arms"][name] for name in ("trained", "shuffled")}
    spec = load_trial(table | {"arms": arms})
    found = decoys_of(spec, latents(spec), ReplicateTable({}, {}, frozenset()))
    assert found["passing"].isna().all()
    assert found["reason"].str.contains("no arm re-draws").all()
    assert (found["n_decoys"] == 0).all()
    partners = partners_of(spec, latents(spec))
    assert partners.loc[partners["comparison"] == "placebo", "other"].isna().all()


def test_the_mechanism_is_tested_on_drawn_arms_alone(spec: TrialSpec) -> None:
    given = latents(spec)
    found = mechanism_of(spec, given, {}, ClassThresholds()).set_index("name")
    deeper = found.loc["grows_with_depth"]
    assert deeper["outcome"] == "holds"
    assert deeper["estimate"] == pytest.approx(0.5, abs=0.1)
    assert found.loc["needs_attention", "outcome"] == "not estimable"
    assert found.loc["grows_with_blocks", "outcome"] == "not estimable"  # no cards were given
    drawn = given["arm"].isin(["redraw", "kept"])
    swapped = given.assign(is_arbitrary=given["is_arbitrary"].where(drawn, False))
    again = mechanism_of(spec, swapped, {}, ClassThresholds()).set_index("name")
    assert again.loc["grows_with_depth", "estimate"] == deeper["estimate"]


def test_attention_is_compared_between_arms_that_differ_in_it_alone(table: dict[str, Any]) -> None:
    arms = table["arms"] | {
        "unattending": {"control": "ablate_attention", "of": {"control": "redraw"}},
        "deaf": {"control": "ablate_attention"},
    }
    spec = load_trial(table | {"arms": arms})
    assert attention_ablated(spec) == {"unattending": "redraw", "deaf": "trained"}
    given = latents(spec)
    given.loc[given["arm"] == "unattending", "is_arbitrary"] = False
    given.loc[given["arm"] == "kept", "is_arbitrary"] = True  # it differs in more than attention
    found = (
        mechanism_of(spec, given, {}, ClassThresholds()).set_index("name").loc["needs_attention"]
    )
    of_redraw = given[given["arm"] == "redraw"]["is_arbitrary"]
    assert found["outcome"] == "holds"
    assert found["estimate"] == pytest.approx(of_redraw.mean())
    assert f"{of_redraw.sum()} of {len(of_redraw)} latents with attention, 0 of" in found["n"]
    alone = load_trial(table | {"arms": {a: arms[a] for a in ("trained", "kept", "unattending")}})
    none = mechanism_of(alone, latents(alone), {}, ClassThresholds()).set_index("name")
    assert (
        "no arm differs from unattending in attention alone"
        in none.loc["needs_attention", "reason"]
    )
