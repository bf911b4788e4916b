"""A trial whose trained arm's SAE is given: read from a folder, held against placebos of its recipe."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import sae_placebo as sp
from conftest import trial_table
from sae_placebo.core.errors import PlaceboError, SpecError
from sae_placebo.saes.formats import read_sae, saelens
from sae_placebo.trial.given import _unit_rows
from sae_placebo.trial.sizes import check_sizes
from sae_placebo.trial.spec import load_trial

PLACE = "resid_post.1"


def table_of(model: Path, text: Path, name: str, **changes: Any) -> dict[str, Any]:
    arms = {
        "trained": {"control": "trained"},
        "retrained": {"dictionary": "retrained"},
        "redraw": {"control": "redraw"},
    }
    made = trial_table(model, text, name=name, hookpoints=[PLACE], arms=arms, **changes)
    made["contrasts"] = [["trained", "retrained"], ["retrained", "redraw"], ["trained", "redraw"]]
    made["audit"] |= {"arms": ["trained"]}
    made["use"] |= {"latents": 4, "arms": ["trained", "redraw"]}
    return made


@pytest.fixture(scope="module")
def first(tiny_model: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> sp.Trial:
    """A trial that trains its own SAEs; the retrained arm is the trained one there."""
    folder = tmp_path_factory.mktemp("first")
    return sp.run(table_of(tiny_model, tiny_text, "first"), folder)


@pytest.fixture(scope="module")
def folder(first: sp.Trial, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first trial's SAE of seed 0, as another library would have left it."""
    (found,) = (first.folder.parents[1] / "train").glob(f"trained-*/{PLACE}/*/seed-0")
    mine = tmp_path_factory.mktemp("mine") / "sae"
    shutil.copytree(found, mine)
    config = json.loads((mine / "cfg.json").read_text())
    kept = {key: config["metadata"][key] for key in ("sae_lens_version", "hook_name")}
    (mine / "cfg.json").write_text(json.dumps(config | {"metadata": kept}))
    return mine


@pytest.fixture(scope="module")
def given(
    first: sp.Trial,
    folder: Path,
    tiny_model: Path,
    tiny_text: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> sp.Trial:
    made = table_of(tiny_model, tiny_text, "given")
    (label,) = made["saes"]
    made["saes"][label] |= {"given": str(folder)}
    return sp.run(made, tmp_path_factory.mktemp("given"))


def test_without_a_given_sae_the_retrained_arm_shares_the_trained_ones(first: sp.Trial) -> None:
    (shared,) = first.record["shared"]
    assert (shared["arm"], shared["same_as"]) == ("retrained", "trained")


def test_a_given_sae_has_the_numbers_that_it_had_where_it_was_trained(
    first: sp.Trial, given: sp.Trial
) -> None:
    def numbers(trial: sp.Trial, arm: str, seed: int) -> pd.Series[float]:
        rows = trial.measurements.query("arm == @arm and sae_seed == @seed and latent.isna()")
        names = ["l0", "explained_variance", "mean_token_entropy_bits", "share_single_token"]
        return rows.set_index("metric").loc[names, "value"]

    pd.testing.assert_series_equal(
        numbers(given, "trained", 0), numbers(first, "trained", 0), rtol=1e-4
    )
    # what it was trained as is trained again, to the same bits
    pd.testing.assert_series_equal(numbers(given, "retrained", 1), numbers(first, "trained", 1))
    assert set(given.latents.query("arm == 'trained'")["sae_seed"]) == {0}


def test_one_given_sae_has_effects_with_intervals_and_no_stability(given: sp.Trial) -> None:
    effects = given.effects.set_index(["metric", "arm", "control"])
    found = effects.loc[("explained_variance", "trained", "redraw")]
    assert np.isfinite(found["low"])
    assert np.isfinite(found["effect"])
    partners = effects.loc[("has_seed_partner", "trained", "redraw")]
    assert np.isnan(partners["effect"])
    assert "one SAE is given" in partners["reason"]
    own = given.latents.query("arm == 'trained'")
    assert own["rule"].isna().all()
    assert own["rule_reason"].str.contains("one SAE is given").all()
    assert given.latents.query("arm == 'retrained'")["has_seed_partner"].notna().any()


def test_the_record_and_the_page_say_what_was_given(given: sp.Trial, folder: Path) -> None:
    (record,) = given.record["arms"]["trained"]["records"]
    (said,) = record["given"]
    assert said["path"] == str(folder)
    assert said["hook"] == "blocks.1.hook_resid_post"
    assert said["explained_variance"] > 0
    page = given.report.read_text()
    # every contrast says which of the two it is
    assert "what the model makes: recipe and tokens are the same" in page
    assert "what the model and the given SAE&#39;s training make together" in page
    assert "what tokens, text and recipe of the given SAE&#39;s training make together" in page
    assert "SAEs that were given" in page
    assert "given minus it" in page


def test_the_recipe_is_read_from_the_file_where_it_is_not_written(
    tiny_model: Path, tiny_text: Path, folder: Path
) -> None:
    made = table_of(tiny_model, tiny_text, "recipe")
    (label, recipe), *_ = made["saes"].items()
    made["saes"] = {label: {"given": str(folder)}}
    spec = load_trial(made)
    assert spec.saes[label].kind == recipe["kind"]
    assert spec.saes[label].d_sae == recipe["d_sae"]
    assert spec.given == {label: {"trained": (str(folder),)}}
    assert load_trial(spec.model_dump(mode="json")) == spec


def test_unit_rows_change_no_reconstruction(folder: Path) -> None:
    sae = read_sae(folder).sae
    x = torch.randn(50, sae.d_in, generator=torch.Generator().manual_seed(0))
    lengths = torch.linspace(0.5, 2, sae.d_sae)
    for kind in ("relu", "jumprelu", "gated"):
        spec = saelens.parse_sae({"kind": kind, "d_sae": sae.d_sae, "l0": 4})
        made = spec.create(sae.d_in, 0)
        noise = torch.Generator().manual_seed(1)
        params = {
            name: tensor + 0.01 * torch.rand(tensor.shape, generator=noise)
            for name, tensor in made.params.items()
        }
        params["W_dec"] = params["W_dec"] * lengths[:, None]
        free = type(made)(spec, params)
        unit = _unit_rows(free)
        norms = torch.linalg.vector_norm(unit.params["W_dec"], dim=1)
        torch.testing.assert_close(norms, torch.ones_like(norms))
        torch.testing.assert_close(unit.decode(unit.encode(x)), free.decode(free.encode(x)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hookpoints": ["resid_post.0"]}, r"trained at blocks\.1\.hook_resid_post"),
        ({"hookpoints": ["resid_post.0", PLACE]}, "2 hookpoints: leave one"),
        ({"given": {"nobody": "x"}}, "nobody"),
        ({"given": {"redraw": "x"}}, "drawn 2 times"),
        ({"given": {"retrained": "x"}}, "dictionary control"),
        ({"given": ["x", "y", "z"]}, "has 3 SAEs .* 2 sae_seeds"),
        ({"given": 3}, "path of an SAE, a list of paths"),
        ({"given": []}, "path of an SAE, a list of paths"),
        ({"given": "nowhere"}, "nowhere"),
        ({"d_sae": 96}, "has 64 latents, and saes.topk.d_sae is 96"),
    ],
)
def test_what_does_not_fit_is_refused(
    change: dict[str, Any],
    message: str,
    tiny_model: Path,
    tiny_text: Path,
    folder: Path,
    tmp_path: Path,
) -> None:
    made = table_of(tiny_model, tiny_text, "wrong")
    (label,) = made["saes"]
    width = {"d_sae": change.pop("d_sae", 64)}
    made["saes"][label] |= {"given": change.pop("given", str(folder)), **width}
    with pytest.raises(PlaceboError, match=message):
        check_sizes(load_trial(made | change), tmp_path)
    with pytest.raises(PlaceboError, match=message):
        sp.run(made | change, tmp_path)
    assert not (tmp_path / "harvest").exists()


def test_an_sae_of_another_model_is_refused_before_anything_runs(
    tiny_model: Path, tiny_text: Path, tmp_path: Path
) -> None:
    spec = saelens.parse_sae({"kind": "topk", "d_sae": 64, "k": 4})
    saelens.write(spec.create(48, 0), tmp_path / "other", {})
    made = table_of(tiny_model, tiny_text, "wrong")
    (label,) = made["saes"]
    made["saes"][label] |= {"given": str(tmp_path / "other")}
    with pytest.raises(SpecError, match=r"width 48, and those at resid_post\.1 have 32"):
        check_sizes(load_trial(made), tmp_path)


def test_topk_rows_of_other_lengths_are_refused_by_name(folder: Path) -> None:
    sae = read_sae(folder).sae
    lengths = torch.linspace(1, 2, sae.d_sae)[:, None]
    params = dict(sae.params) | {"W_dec": sae.params["W_dec"] * lengths}
    with pytest.raises(SpecError, match=r"keeps the largest codes .* norms from 1 to 2"):
        _unit_rows(type(sae)(sae.spec, params))


def test_topk_rows_of_one_length_are_scaled_with_their_codes(folder: Path) -> None:
    sae = read_sae(folder).sae
    params = dict(sae.params) | {"W_dec": sae.params["W_dec"] * 3}
    unit = _unit_rows(type(sae)(sae.spec, params))
    x = torch.randn(50, sae.d_in, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        unit.decode(unit.encode(x)),
        type(sae)(sae.spec, params).decode(type(sae)(sae.spec, params).encode(x)),
    )
    torch.testing.assert_close(unit.encode(x).values, 3 * sae.encode(x).values)
