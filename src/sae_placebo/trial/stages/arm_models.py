"""The models of an arm: one, or several where hookpoints have models of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sae_placebo.controls import Recipe, SampleText, build
from sae_placebo.core.errors import ModelError, SpecError
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import digest
from sae_placebo.core.store import read_json
from sae_placebo.models.activations import row_order
from sae_placebo.trial.artefacts import Artefacts
from sae_placebo.trial.plan import ArmModel


@dataclass(frozen=True)
class MadeModels:
    """The models of an arm and how they were made.

    Attributes:
        models: The hookpoints that are read from each model, and the model.
        recipe: The arm's recipe, as JSON. Where hookpoints are calibrated, `models` in it holds what was
            measured of each model, with its hashes; the hashes of the recipe are then those of all models
            together.
    """

    models: tuple[tuple[tuple[str, ...], Any], ...]
    recipe: dict[str, Any]


def arm_models(artefacts: Artefacts, one: ArmModel) -> MadeModels:
    """Return every model of an arm, made from the reference model, and the arm's recipe.

    The same bits are made whenever they are built: what was measured to make them is taken from the arm's
    artefact where there is one.
    """
    made, recipes = [], []
    for text in _texts(artefacts, one):
        model, recipe = _made(artefacts, one, text)
        made.append((text.hookpoints, model))
        recipes.append(recipe)
    return MadeModels(tuple(made), _joined(recipes))


def arm_model(
    artefacts: Artefacts, one: ArmModel, hookpoints: Sequence[str] = ()
) -> tuple[Any, dict[str, Any]]:
    """Return the model of an arm that some hookpoints are read from, and the arm's recipe.

    Args:
        artefacts: Of the trial; the arm is built where its hookpoints may have models of their own.
        one: The arm and its re-draw.
        hookpoints: Canonical names. Without one, the arm's first model is returned.

    Raises:
        SpecError: the hookpoints are read from different models.
        ModelError: the control cannot be applied, or the model has other weights than when it was built.
    """
    texts = _texts(artefacts, one)
    able = [text for text in texts if set(hookpoints) <= set(text.hookpoints)]
    if not able:
        raise SpecError(
            f"{', '.join(hookpoints)} of arm {one.label} are read from different models, since each is "
            "calibrated by itself: ask about one of them at a time"
        )
    model, recipe = _made(artefacts, one, able[0])
    if len(texts) == 1:
        return model, _joined([recipe])
    kept = _kept_recipe(artefacts, one) or {}
    (known,) = [m for m in kept["models"] if tuple(m["hookpoints"]) == able[0].hookpoints]
    if known["read_hash"] != recipe.read_hash:
        raise ModelError(
            f"arm {one.label}: the model of {', '.join(able[0].hookpoints)} has other weights than when it "
            "was built (another torch?); go back to its versions or choose another --store"
        )
    return model, kept


def models_asked(artefacts: Artefacts, one: ArmModel, hookpoints: Sequence[str]) -> dict[str, Any]:
    """Return the model that each of some hookpoints of an arm is read from; no model is made twice."""
    found: dict[str, Any] = {}
    for text in _texts(artefacts, one):
        asked = [name for name in hookpoints if name in text.hookpoints]
        if asked:
            model, _ = arm_model(artefacts, one, asked)
            found |= dict.fromkeys(asked, model)
    return found


@contextlib.contextmanager
def named(one: ArmModel) -> Iterator[None]:
    """Put the arm's name before what is wrong with its model."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"arm {one.label}: {error}") from error


def _texts(artefacts: Artefacts, one: ArmModel) -> list[SampleText]:
    """Return for each model of an arm the hookpoints that it is for, and what it is measured on."""
    spec = artefacts.spec
    control = spec.arms[one.arm].control
    if not control.text_tokens:
        nothing = torch.empty(0, 0, dtype=torch.int64)
        return [SampleText(nothing, nothing.bool(), nothing[:, 0:0].flatten(), spec.hookpoints)]
    text = _sample(artefacts, one, control.text_tokens)
    kept = _kept_recipe(artefacts, one)
    if kept is not None:
        return [
            replace(text, hookpoints=tuple(known["hookpoints"]), known=known)
            for known in kept["models"]
        ]
    with named(one):
        groups = control.shared_models(artefacts.materials.reference, text)
    return [replace(text, hookpoints=group) for group in groups]


def _sample(artefacts: Artefacts, one: ArmModel, n_tokens: int) -> SampleText:
    """Return the head of the training stream as the arm reads it, of at least so many tokens."""
    spec, rows = artefacts.spec, artefacts.materials.rows_of(one)["train"]
    order, usable = row_order(len(rows.lengths), spec.seed), rows.usable()
    n_rows = 1 + int(np.searchsorted(usable[order].sum(1).cumsum(), n_tokens))
    rows_read = order[:n_rows]
    return SampleText(
        torch.from_numpy(rows.token_ids[rows_read].astype(np.int64)),
        torch.from_numpy(usable[rows_read]),
        torch.from_numpy(rows.documents[rows_read].astype(np.int64)),
        spec.hookpoints,
        spec.harvest.outlier_ratio,
    )


def _made(artefacts: Artefacts, one: ArmModel, text: SampleText) -> tuple[Any, Recipe]:
    spec = artefacts.spec
    control = spec.arms[one.arm].control
    seed = one.model_seed if control.draws and one.model_seed is not None else 0
    reference = artefacts.materials.reference
    with named(one):
        return build(reference, control, spec.seed, seed, source=spec.model, text=text)


def _kept_recipe(artefacts: Artefacts, one: ArmModel) -> dict[str, Any] | None:
    folder = artefacts.store.find(artefacts.plan.build[one])
    return None if folder is None else read_json(folder / "recipe.json")


def _joined(recipes: Sequence[Recipe]) -> dict[str, Any]:
    """Return the recipe of an arm, as JSON, from those of its models."""
    tables = [recipe.model_dump(mode="json") for recipe in recipes]
    measured = [table.pop("calibration") for table in tables]
    arm = dict(tables[0])
    if measured[0] is None:
        return arm
    hashes = ("weight_hash", "read_hash")
    arm["models"] = [
        {**found, **{name: table[name] for name in hashes}}
        for found, table in zip(measured, tables, strict=True)
    ]
    if len(tables) > 1:
        arm |= {name: digest([table[name] for table in tables]) for name in hashes}
        arm["notes"] = list(dict.fromkeys(note for table in tables for note in table["notes"]))
        touched = dict.fromkeys(name for table in tables for name in table["touched"])
        arm["touched"] = list(touched)
        arm["kept"] = {name: why for name, why in arm["kept"].items() if name not in touched}
    return arm
