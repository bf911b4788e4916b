"""A trial of a model with LayerNorm that is read without each token's mean, in every arm and every stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sae_placebo as sp
from conftest import save_tokenizer, trial_table
from sae_placebo.core.errors import SpecError
from sae_placebo.core.progress import Progress
from sae_placebo.core.store import Store
from sae_placebo.models.activation_files import read_activations
from sae_placebo.models.hookpoints import parse_hookpoint
from sae_placebo.models.specs import ModelSpec
from sae_placebo.saes.formats import read_sae
from sae_placebo.trial.artefacts import Artefacts
from sae_placebo.trial.given import ready
from sae_placebo.trial.plan import ArmModel, plan_steps
from sae_placebo.trial.spec import load_trial

PLACE = "resid_post.1"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a 3-layer GPT-2 of width 32, whose stream has a mean."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("layer-norms")
    config = GPT2Config(
        bos_token_id=0,
        eos_token_id=1,
        vocab_size=512,
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=256,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = GPT2LMHeadModel(config).eval()
    made.transformer.wte.weight.data += 0.5
    made.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def table(model: Path, tiny_text: Path) -> dict[str, Any]:
    keep = {"control": "redraw", "keep": ["embeddings"]}
    arms = {
        "trained": {"control": "trained"},
        "calibrated": {"control": "redraw_calibrated", "of": keep, "tokens": 2_000},
        "redraw": {"control": "redraw"},
        "init": {"control": "init"},
        "gaussian": {"data": "gaussian"},
        "surrogate": {"data": "surrogate"},
    }
    made = trial_table(
        model, tiny_text, name="centred", hookpoints=[PLACE], arms=arms, model_seeds=[0]
    )
    made["model"]["centred"] = True
    made["sae_seeds"] = [0]
    made["audit"] |= {"arms": ["trained"]}
    made["use"] |= {"latents": 4, "arms": ["trained", "redraw"]}
    return made


@pytest.fixture(scope="module")
def finished(table: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> sp.Trial:
    return sp.run(table, tmp_path_factory.mktemp("centred"))


@pytest.fixture(scope="module")
def artefacts(table: dict[str, Any], finished: sp.Trial) -> Artefacts:
    return Artefacts(plan_steps(load_trial(table)), Store(finished.folder.parents[1]), Progress())


def test_no_arm_has_a_mean(artefacts: Artefacts) -> None:
    for one, step in artefacts.plan.harvest.items():
        x = read_activations(artefacts.store.path(step), PLACE)
        assert float(x.mean(1).abs().max()) < 1e-3, one  # drawn ones keep rounding of a covariance
        assert float(x.square().mean()) > 0.01, one
    embedding = artefacts.head(ArmModel("trained", None), "embedding")
    assert embedding is not None
    assert float(embedding.float().mean(1).abs().max()) < 1e-3


def test_every_stage_has_numbers(finished: sp.Trial) -> None:
    assert finished.record["spec"]["model"]["centred"] is True
    effects = finished.effects.query("metric == 'explained_variance'")
    assert {"calibrated", "redraw", "init", "gaussian", "surrogate"} <= set(effects["control"])
    assert effects["effect"].notna().all()
    (record,) = finished.record["arms"]["calibrated"]["records"]
    (found,) = record["recipe"]["models"][0]["values"].values()
    assert abs(found["reached"] - found["target"]) <= 0.02
    used = {one["arm"]: one for one in finished.record["use"]}
    assert {"trained", "redraw"} <= set(used)
    assert not any(one.get("refused") for one in used.values())


def test_writers_add_up_to_what_is_read(artefacts: Artefacts) -> None:
    from sae_placebo.causal.circuits.streams import StreamReader
    from sae_placebo.causal.use.base import Subject
    from sae_placebo.causal.use.downstream import Downstream
    from sae_placebo.trial.stages.arm_models import arm_model

    one = ArmModel("trained", None)
    made, _ = arm_model(artefacts, one, [PLACE])
    subject = Subject(
        Downstream(made, PLACE), artefacts.tokens(one, PLACE), artefacts.activations(one, PLACE)
    )
    stream = StreamReader(subject)
    assert parse_hookpoint(PLACE) == subject.downstream.hookpoint
    row = int(subject.tokens.places[0, 0])
    _, columns, x = next(stream.read(np.array([row])))
    parts = [
        values if block.output is None else values @ _flat(block.output)
        for block, values in zip(stream.blocks, columns, strict=True)
    ]
    rest = x - sum(parts)  # biases: the same at every token, and without a mean
    np.testing.assert_allclose(rest, np.broadcast_to(rest[:1], rest.shape), atol=1e-4)
    np.testing.assert_allclose(rest.mean(1), 0, atol=1e-4)
    site = subject.clean(row).site[subject.tokens.places[subject.tokens_in(np.array([row])), 1]]
    np.testing.assert_allclose(site.numpy(), x, atol=1e-4)


def _flat(output: torch.Tensor) -> np.ndarray[Any, Any]:
    return output.permute(0, 2, 1).reshape(-1, output.shape[1]).numpy()


def test_the_text_is_shared_with_a_trial_that_is_not_centred(table: dict[str, Any]) -> None:
    plain = plan_steps(load_trial(table | {"model": {"id": table["model"]["id"]}}))
    centred = plan_steps(load_trial(table))
    assert plain.tokenize.key == centred.tokenize.key
    for stage in ("build", "harvest", "train"):
        pairs = zip(getattr(plain, stage).values(), getattr(centred, stage).values(), strict=True)
        assert all(one.key != other.key for one, other in pairs)


def test_rms_norms_are_refused_when_the_file_is_read(
    table: dict[str, Any], tiny_model: Path
) -> None:
    with pytest.raises(SpecError, match=r"model.centred is true, and .* has RMSNorms"):
        load_trial(table | {"model": {"id": str(tiny_model), "centred": True}})


# --- given SAEs --------------------------------------------------------------------------------------


def saved(artefacts: Artefacts, folder: Path, **arguments: Any) -> Path:
    """Write the trial's SAE as SAELens does, with the arguments that its model was loaded with."""
    import shutil

    (found,) = artefacts.store.path(artefacts.plan.train[ArmModel("trained", None)]).glob(
        f"{PLACE}/*/seed-0"
    )
    shutil.copytree(found, folder)
    config = json.loads((folder / "cfg.json").read_text())
    kept = {key: config["metadata"][key] for key in ("sae_lens_version", "hook_name")}
    kept["model_from_pretrained_kwargs"] = arguments
    (folder / "cfg.json").write_text(json.dumps(config | {"metadata": kept}))
    return folder


@pytest.fixture(scope="module")
def x(artefacts: Artefacts) -> torch.Tensor:
    return artefacts.activations(ArmModel("trained", None), PLACE)


def test_an_sae_of_a_centred_model_needs_a_centred_trial(
    artefacts: Artefacts, x: torch.Tensor, model: Path, tiny_model: Path, tmp_path: Path
) -> None:
    given = read_sae(saved(artefacts, tmp_path / "sae", center_writing_weights=True))
    assert given.site.model_arguments == {"center_writing_weights": True}
    centred = ModelSpec(id=str(model), centred=True)
    assert not any("center_writing" in note for note in ready(given, x, PLACE, centred)[1])
    for source in (ModelSpec(id=str(model)), None):
        with pytest.raises(SpecError, match=r"set \[model\] centred = true"):
            ready(given, x, PLACE, source)
    # TransformerLens leaves RMSNorms as they are, whatever it is asked
    _, notes = ready(given, x, PLACE, ModelSpec(id=str(tiny_model)))
    assert "does not do to RMSNorms" in notes[-1]


def test_an_sae_of_an_uncentred_model_in_a_centred_trial_is_noted(
    artefacts: Artefacts, x: torch.Tensor, model: Path, tmp_path: Path
) -> None:
    given = read_sae(saved(artefacts, tmp_path / "sae"))
    _, notes = ready(given, x, PLACE, ModelSpec(id=str(model), centred=True))
    assert "does not ask for center_writing_weights" in notes[-1]
    assert not ready(given, x, PLACE, ModelSpec(id=str(model)))[1]


def test_folded_norms_change_nothing_on_the_stream_and_are_noted(
    artefacts: Artefacts, x: torch.Tensor, model: Path, tmp_path: Path
) -> None:
    given = read_sae(saved(artefacts, tmp_path / "sae", fold_ln=True))
    _, notes = ready(given, x, PLACE, ModelSpec(id=str(model)))
    assert "fold_ln = True, which changes nothing at resid_post.1" in notes[-1]
