"""How an arm's model was made is kept with it, and with everything that was made of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_placebo.core.store import read_json, write_json
from sae_placebo.trial.plan import ArmModel
from sae_placebo.trial.spec import TrialSpec


def copy_recipe(build: Path, folder: Path) -> None:
    """Copy the recipe of the arm's model to what was made with it."""
    write_json(folder / "recipe.json", read_json(build / "recipe.json"))


def missed(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Return the hookpoints at which an arm's model is not what its control seeks, each with the reason."""
    values = [model["values"] for model in recipe.get("models", ())]
    return {
        name: found["reason"]
        for by_hookpoint in values
        for name, found in by_hookpoint.items()
        if found["reason"] is not None
    }


def read_missed(folder: Path) -> dict[str, str]:
    """Return the same of a build artefact."""
    return missed(read_json(folder / "recipe.json"))


def read_hash(folder: Path) -> str:
    """Return the hash of the weights that SAE inputs depend on, of a build, harvest or train artefact."""
    return str(read_json(folder / "recipe.json")["read_hash"])


def provenance(folder: Path, spec: TrialSpec, one: ArmModel) -> dict[str, Any]:
    """Return what is kept in the metadata of every SAE of an arm: which model it was trained on.

    Args:
        folder: The arm's build artefact.
        spec: The protocol.
        one: The arm and its re-draw.
    """
    recipe = read_json(folder / "recipe.json")
    return {
        "model_name": Path(spec.model.id).name if Path(spec.model.id).exists() else spec.model.id,
        "context_size": spec.text.context_tokens,
        "dataset_path": spec.text.source,
        "training_tokens": spec.text.train_tokens,
        "arm": one.arm,
        **spec.arms[one.arm].model_dump(mode="json"),
        "model_seed": one.model_seed,
        "weight_hash": recipe["weight_hash"],
        "read_hash": recipe["read_hash"],
        "touched_tensors": len(recipe["touched"]),
    }
