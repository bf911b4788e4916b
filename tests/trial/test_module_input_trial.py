"""One trial at inputs of modules, of which attention's is wider than the residual stream."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import architecture_survey
import architectures
from sae_placebo.core.store import read_json
from sae_placebo.saes.formats import saelens
from sae_placebo.trial import sizes
from sae_placebo.trial.estimates import of_usual_machine
from sae_placebo.trial.reference import module_inputs
from sae_placebo.trial.spec import load_trial

SITES = ["z", "mlp_in", "resid_post"]
WIDTHS = {"z.1": 64, "mlp_in.1": 32, "resid_post.1": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inputs")


@pytest.fixture(scope="module")
def result(folder: Path) -> Path:
    with architectures.one_thread():
        architecture_survey.save("llama_wide_heads", folder / "model")
        return architecture_survey._run(folder / "model", folder, SITES)


def table(folder: Path) -> dict[str, Any]:
    return architecture_survey.tiny_table(folder / "model", folder / "text.jsonl", list(WIDTHS))


def test_every_stage_is_run_at_the_hookpoints_own_width(result: Path, folder: Path) -> None:
    latents = pd.read_parquet(result / "latents.parquet")
    assert set(latents["hookpoint"]) == set(WIDTHS)
    assert latents.groupby("hookpoint")["token_entropy_bits"].count().min() == 48
    saved = sorted((folder / "store").glob("train/*/**/cfg.json"))
    names = {
        "blocks.1.attn.hook_z": 64,
        "blocks.1.mlp.hook_in": 32,
        "blocks.1.hook_resid_post": 32,
    }
    found = []
    for path in saved:
        sae = saelens.read(path.parent)
        text = path.read_text(encoding="utf-8")
        (name,) = [name for name in names if name in text]
        assert sae.d_in == names[name]
        found.append(name)
    assert set(found) == set(names)
    measured = pd.read_parquet(result / "measurements.parquet")
    trained = measured[measured["metric"] == "explained_variance"].set_index("hookpoint")["value"]
    assert ((trained > 0) & (trained < 1)).all()


def test_use_is_asked_there_and_readers_and_writers_are_refused(result: Path) -> None:
    use = {one["hookpoint"]: one for one in read_json(result / "trial.json")["use"]}
    for place in WIDTHS:
        assert "refused" not in use[place]
        assert use[place]["n_latents"] > 0
        assert use[place]["full_swap_nats"] is not None
    assert use["resid_post.1"]["reasons"] == {}
    for place in ("z.1", "mlp_in.1"):
        reasons = use[place]["reasons"]
        assert set(reasons) == {"readers", "writers"}
        assert all(why.startswith(f"{place} is the input of a module") for why in reasons.values())
    audits = pd.read_parquet(result / "audits.parquet")
    pushed = audits[audits["audit"] == "random_pushes"].groupby("hookpoint")["value"].count()
    assert (pushed > 0).all()


def test_what_needs_the_streams_coordinates_is_null_with_a_reason(result: Path) -> None:
    latents = pd.read_parquet(result / "latents.parquet").set_index("hookpoint")
    for place in ("z.1", "mlp_in.1"):
        assert latents.loc[place, "unembedding_kurtosis"].isna().all()
    assert latents.loc["resid_post.1", "unembedding_kurtosis"].notna().all()
    measured = pd.read_parquet(result / "measurements.parquet")
    shares = measured[measured["metric"] == "share_output"].set_index("hookpoint")
    assert shares.loc["z.1", "value"].isna().all()
    assert shares.loc["z.1", "reason"].str.contains("unembedding_kurtosis").all()
    methods = pd.read_parquet(result / "baselines.parquet")
    rows = methods[methods["baseline"] == "embeddings"].set_index("hookpoint")["reason"]
    assert rows["z.1"].str.contains("input of a module").all()
    assert not rows["resid_post.1"].str.contains("input of a module").any()


def test_sizes_and_estimates_count_the_hookpoints_own_width(result: Path, folder: Path) -> None:
    spec = load_trial(table(folder))
    assert module_inputs(spec.hookpoints) == ("z.1", "mlp_in.1")
    held = next(n for n in sizes.memory_needs(spec) if n.setting == "text.heldout_tokens")
    assert held.n_bytes == 300 * sum(WIDTHS.values()) * 4
    narrow = spec.model_copy(update={"hookpoints": ("resid_post.1",)})
    wide, one = (of_usual_machine(each, 1).sae["topk"] for each in (spec, narrow))
    assert wide == pytest.approx(2 * one)
