"""What a finished trial says about its latents: classes, verdicts, partners, ladder, bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import sae_placebo as sp
from conftest import trial_table
from sae_placebo.latents.classes.classification import CLASS_NAMES
from sae_placebo.latents.ladder.fitting import RUNGS
from sae_placebo.latents.metrics import ladder_shares, replicated
from sae_placebo.latents.metrics.structure import WITHOUT_LADDER
from sae_placebo.latents.origin.rule import ORIGINS
from sae_placebo.trial.results import EVERY_METRIC

KEYS = ["arm", "model_seed", "sae_seed", "hookpoint", "sae"]


@pytest.fixture(scope="module")
def table(tiny_model: Path, tiny_text: Path) -> dict[str, Any]:
    arms = {
        "trained": {"control": "trained"},
        "redraw": {"control": "redraw"},
        "shuffled": {"data": "shuffle_tokens"},
    }
    return trial_table(tiny_model, tiny_text, arms=arms, name="profiles")


@pytest.fixture(scope="module")
def trial(table: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> sp.Trial:
    return sp.run(table, tmp_path_factory.mktemp("profiles"))


def values(trial: sp.Trial) -> Any:
    return trial.measurements.set_index(["arm", "model_seed", "sae_seed", "metric"])["value"]


@pytest.mark.parametrize(
    ("column", "names", "prefix"),
    [("class", CLASS_NAMES, "share_"), ("origin", ORIGINS, "origin_")],
)
def test_shares_of_classes_and_verdicts_are_those_of_the_latents(
    trial: sp.Trial, column: str, names: tuple[str, ...], prefix: str
) -> None:
    wanted = [f"{prefix}{name}" for name in names]
    measured = trial.measurements.query("metric in @wanted")
    measured = measured.set_index([*KEYS, "metric"])["value"].unstack("metric")[wanted]
    counted = trial.latents.groupby(KEYS, dropna=False)[column].value_counts(normalize=True)
    counted = counted.unstack(column).reindex(columns=list(names), fill_value=0.0).fillna(0.0)
    of_latents = counted.set_axis(wanted, axis=1).reindex(measured.index)
    # other tokens are no evidence of what the trained arm or the model made
    absent = {name for name in wanted if column == "origin"}
    shuffled = measured.index.get_level_values("arm") == "shuffled"
    of_latents.loc[shuffled, list(absent)] = np.nan
    pd.testing.assert_frame_equal(measured, of_latents, check_names=False, rtol=1e-9)
    assert measured.loc[~shuffled].sum(axis=1).to_numpy() == pytest.approx(1)
    assert (measured > 0).any().sum() >= 2


def test_every_number_has_its_declaration_and_a_value_or_a_reason(trial: sp.Trial) -> None:
    measured = trial.measurements
    assert set(measured["metric"]) == set(EVERY_METRIC)
    missing = measured[measured["value"].isna()]
    assert missing["reason"].notna().all()


def test_an_arm_with_other_tokens_has_no_verdicts_but_a_ladder(trial: sp.Trial) -> None:
    effects = trial.effects
    of = effects[effects["control"] == "shuffled"].set_index("metric")
    assert "rewritten" in of.loc["origin_explained", "reason"]
    assert "rewritten" in of.loc["ladder_r2_placebo_latents", "reason"]
    assert np.isfinite(of.loc["ladder_r2_token", "control_value"])


def test_every_share_of_the_ladder_has_its_curve_and_what_moves_is_withheld(
    trial: sp.Trial,
) -> None:
    curve = trial.fit_curve
    classes = {f"share_{name}" for name in CLASS_NAMES} - set(WITHOUT_LADDER)
    hang = set(ladder_shares.DECLARED) | classes | set(replicated.DECLARED)
    hang.remove("replicated_with_rule")
    assert "share_n_gram" in classes
    assert "share_single_token" not in classes
    assert set(curve["metric"]) == hang
    place = ["arm", "hookpoint", "sae", "metric"]
    sizes = curve.groupby(place)["portion"].agg(list)
    assert {tuple(portions) for portions in sizes} == {(0, 1, 2, 3)}
    whole = curve[curve["portion"] == 3].set_index(place)
    assert whole["fit_tokens"].nunique() == 1
    # the curve ends in what every SAE's number is, whether that is told or not
    measured = trial.measurements[trial.measurements["metric"].isin(hang)]
    # an arm has a number where every SAE of it has one
    values = measured.groupby(place)["value"]
    means = values.mean()[values.count() == values.size()]
    assert len(means) == whole["value"].notna().sum() > 30
    np.testing.assert_allclose(means, whole.loc[means.index, "value"])
    told = whole["value"].notna() & whole["withheld"].isna()
    assert 0 < told.sum() < len(means)
    for row in trial.effects[trial.effects["metric"].isin(hang)].itertuples():
        sides = [(arm, row.hookpoint, row.sae, row.metric) for arm in (row.arm, row.control)]
        for value, side in zip((row.arm_value, row.control_value), sides, strict=True):
            assert np.isfinite(value) == told[side]
        assert np.isnan(row.effect) or all(told[side] for side in sides)
        assert np.isfinite(row.effect) or row.reason


def test_a_placebo_is_held_against_another_re_draw_of_it(trial: sp.Trial) -> None:
    partners = pd.read_parquet(trial.folder / "partners.parquet")
    others = partners.groupby(["arm", "model_seed", "sae_seed", "comparison"], dropna=False)[
        "other"
    ]
    first = others.first()
    assert first["redraw", 0, 0, "aa"] == "redraw-1, SAE seed 1"
    assert first["redraw", 1, 1, "aa"] == "redraw-0, SAE seed 0"
    assert first["redraw", 0, 0, "seed"] == "redraw-0, SAE seed 1"
    trained = partners[(partners["arm"] == "trained") & (partners["comparison"] == "placebo")]
    assert set(trained["other"]) == {"redraw-0, SAE seed 0", "redraw-0, SAE seed 1"}


def test_the_tables_behind_the_sections_are_there(trial: sp.Trial) -> None:
    ladder = pd.read_parquet(trial.folder / "ladder.parquet")
    assert set(ladder["rung"]) == set(RUNGS[1:])
    baselines = pd.read_parquet(trial.folder / "baselines.parquet")
    assert set(baselines["arm"]) == {"trained", "redraw", "shuffled"}
    assert {"pca", "kmeans", "random", "token_table", "sae"} <= set(baselines["baseline"])
    marginal = pd.read_parquet(trial.folder / "marginal.parquet")
    assert set(marginal["arm"]) == {"trained", "redraw", "shuffled"}
    assert {"pca", "kmeans", "best"} <= set(marginal["baseline"])
    known = marginal.dropna(subset="gain")
    assert len(known) > 0
    assert known["bits_halved"].notna().all()
    saved = known["bits_doubled"] - known["bits_joined"]
    np.testing.assert_allclose(saved, known["gain"], atol=1e-9)
    assert (known["gain_low"].isna() | (known["gain_low"] <= known["gain"])).all()
    assert known["reason"].str.contains("fewer than 8000").all()
    # so few tokens are said beside every number, and are of the text that SAEs were trained on
    assert known["reason"].str.contains(r"fitted on \d+ of the \d+ tokens that SAEs").all()
    common = marginal[marginal["baseline"] == "common"].set_index("arm")
    best = marginal[(marginal["baseline"] == "best") & (marginal["arm"] == "trained")]
    assert set(common["method"]) == set(best["method"])
    assert common["n_atoms"].nunique() == 1
    effects = pd.read_parquet(trial.folder / "effects.parquet")
    of_redraw = effects[(effects["arm"] == "trained") & (effects["control"] == "redraw")]
    above, envelope, share = (
        of_redraw[of_redraw["metric"] == f"marginal_structure_{name}"].iloc[0]
        for name in ("above_gaussian", "envelope", "share")
    )
    gap = common.loc["trained", "above"] - common.loc["redraw", "above"]
    assert above["effect"] == pytest.approx(gap)
    assert "one recipe" in envelope["reason"]
    # the share is a number, and the quantity is tested once, in bits
    assert pd.notna(share["effect"])
    assert pd.isna(share["conclusion"])
    assert share["family"] != above["family"]
    decoys = pd.read_parquet(trial.folder / "decoys.parquet")
    assert (decoys["passing"].notna() | decoys["reason"].notna()).all()
    mechanism = pd.read_parquet(trial.folder / "mechanism.parquet")
    assert len(mechanism) == 5


def test_the_same_spec_gives_the_same_bits(
    trial: sp.Trial, table: dict[str, Any], tmp_path: Path
) -> None:
    again = sp.run(table, tmp_path)
    names = ("latents", "measurements", "effects", "baselines", "partners", "ladder", "decoys")
    for name in (*names, "fit_curve"):
        pd.testing.assert_frame_equal(
            pd.read_parquet(trial.folder / f"{name}.parquet"),
            pd.read_parquet(again.folder / f"{name}.parquet"),
            check_exact=True,
        )
