"""An SAE that failed to train is no result: the summary and the report say so first."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from sae_placebo.latents.classes.classification import not_estimable
from sae_placebo.report import read_tables
from sae_placebo.report.build import render
from sae_placebo.stats.failed_fits import failed_fits
from sae_placebo.trial.results import Trial
from synthetic_trial import SAE, Settings, seal_trial, write_trial

PLACE = "resid_post.2"


def measured(arm: str, ev: float, l0: float, dead: float, null: float = 0.3) -> pd.DataFrame:
    values = {"explained_variance": ev, "l0": l0, "share_dead": dead}
    keys = {"arm": arm, "hookpoint": PLACE, "sae": SAE}
    rows = [{**keys, "metric": name, "value": value} for name, value in values.items()]
    nulls = [null, math.nan, math.nan]
    return pd.DataFrame(rows).assign(null_value=nulls)


def effect(metric: str) -> dict[str, str]:
    return {"arm": "a", "control": "b", "hookpoint": PLACE, "sae": SAE, "metric": metric}


@pytest.mark.parametrize(
    ("ev", "l0", "dead", "said"),
    [
        (-6.8e6, 4.0, 0.5, "worse than their mean would (explained variance -6.8e+06)"),
        (0.5, 0.0, 0.5, "no live latent"),
        (0.5, 4.0, 1.0, "no live latent"),
        (-0.2, 0.0, 1.0, "(explained variance -0.2) and has no live latent"),
    ],
)
def test_a_failed_sae_is_said_with_its_arm_and_what_to_do(
    ev: float, l0: float, dead: float, said: str
) -> None:
    failed = failed_fits(pd.concat([measured("a", 0.7, 4, 0.1), measured("b", ev, l0, dead)]))
    (sentence,) = failed.sentences
    assert "training of b failed" in sentence
    assert PLACE in sentence
    assert said in sentence
    assert "training.learning_rate" in sentence
    assert failed.unread(effect("share_single_token")) == "the training of b failed"
    assert failed.unread(effect("share_single_token") | {"hookpoint": "elsewhere"}) is None


def test_what_was_fitted_is_read_and_unknown_values_are_no_failure() -> None:
    good = pd.concat([measured("a", 0.7, 4, 0.1), measured("b", math.nan, math.nan, math.nan)])
    assert failed_fits(good).sentences == ()
    assert failed_fits(good.iloc[:0]).sentences == ()
    assert failed_fits(good).unread(effect("explained_variance_above_gaussian")) is None


def test_a_gaussian_null_that_failed_spoils_only_what_is_measured_against_it() -> None:
    failed = failed_fits(pd.concat([measured("a", 0.7, 4, 0.1), measured("b", 0.6, 4, 0.1, -50)]))
    (sentence,) = failed.sentences
    assert "b's Gaussian null failed" in sentence
    assert failed.unread(effect("explained_variance_above_gaussian"))
    assert failed.unread(effect("mean_token_entropy_bits")) is None


def test_summary_and_report_show_no_number_of_a_failed_sae(tmp_path: Path) -> None:
    folder = write_trial(tmp_path / "trial", Settings(latents=20))
    path = folder / "measurements.parquet"
    table = pd.read_parquet(path)
    place = table["hookpoint"].iloc[0]
    at = (table["arm"] == "redraw") & (table["metric"] == "explained_variance")
    assert at.any()
    assert "failed" not in render(read_tables(folder)).split("<main>")[0]
    table.loc[at & (table["hookpoint"] == place), "value"] = -3.0
    table.to_parquet(path)
    seal_trial(folder)

    lines = Trial(folder).summary().splitlines()
    assert lines[0].startswith("The training of redraw failed")
    of_place = [line for line in lines[1:] if f" at {place}, " in line]
    about = [line for line in of_place if "redraw:" in line or ", redraw -" in line]
    assert about
    assert all("not read: the training of redraw failed" in line for line in about)
    assert not any("not read" in line for line in lines[1:] if line not in about)

    page = render(read_tables(folder))
    head = page[page.index("<header>") : page.index("</header>")]
    assert "The training of redraw failed" in head
    section = page[page.index('<section id="headline">') :]
    section = section[: section.index("</section>")]
    assert section.count('<p class="verdict">Not read:') == len(about)
    assert "redraw is not read: the training of redraw failed." in section


def test_a_reason_is_no_second_not_estimable() -> None:
    import numpy as np

    nothing = dict.fromkeys(
        ("top_token_mass", "top_token_recall", "domain_precision", "domain_recall"),
        np.full(3, np.nan),
    )
    reasons = not_estimable({"n_active": np.zeros(3), **nothing})
    assert reasons["single_token"] == (
        "nothing is known of top_token_mass and top_token_recall for any latent"
    )
