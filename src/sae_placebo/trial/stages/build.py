"""Each arm's model is built from the reference model; what was done to it is kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from sae_placebo.controls import build
from sae_placebo.core.errors import ModelError
from sae_placebo.core.lazy import torch
from sae_placebo.core.store import write_json
from sae_placebo.models.activation_files import write_heads
from sae_placebo.models.diagnostics import card
from sae_placebo.models.embeddings import embedding, unembedding
from sae_placebo.trial.artefacts import Artefacts
from sae_placebo.trial.plan import ArmModel
from sae_placebo.trial.recipes import read_hash


def build_arms(artefacts: Artefacts, arms: Sequence[ArmModel]) -> Any | None:
    """Build the models of arms that read the same activations, and keep their recipes and cards.

    Returns:
        The first arm's model, which is read for all of them; None where their activations were read and
        their SAEs trained already.
    """
    plan, store, model = artefacts.plan, artefacts.store, None
    unread = any(store.find(of[arms[0]]) is None for of in (plan.harvest, plan.fit_text))
    unread = unread or any(store.find(plan.train[one]) is None for one in arms)
    for one in arms:
        if store.find(plan.build[one]) is None or (unread and model is None):
            made = _build(artefacts, one)
            model = made if model is None else model
    return model if unread else None


def arm_model(artefacts: Artefacts, one: ArmModel) -> tuple[Any, dict[str, Any]]:
    """Return an arm's model, made from the reference model, and its recipe as JSON.

    The same bits are made whenever it is built.
    """
    spec = artefacts.spec
    control = spec.arms[one.arm].control
    seed = one.model_seed if control.draws and one.model_seed is not None else 0
    with named(one):
        model, recipe = build(
            artefacts.materials.reference, control, spec.seed, seed, source=spec.model
        )
    return model, recipe.model_dump(mode="json")


@contextlib.contextmanager
def named(one: ArmModel) -> Iterator[None]:
    """Put the arm's name before what is wrong with its model."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"arm {one.label}: {error}") from error


def _build(artefacts: Artefacts, one: ArmModel) -> Any:
    with artefacts.progress.track(f"build {one.label}", 1, "model") as advance:
        model, recipe = arm_model(artefacts, one)
        with named(one):
            _keep(artefacts, one, model, recipe)
        advance(1)
    return model


def _keep(artefacts: Artefacts, one: ArmModel, model: Any, recipe: dict[str, Any]) -> None:
    """Keep what was done to the model, and its diagnostics card."""
    plan, store, spec = artefacts.plan, artefacts.store, artefacts.spec
    for made in (plan.build[one], plan.harvest[one], plan.train[one]):
        folder = store.find(made)
        if folder and read_hash(folder) != recipe["read_hash"]:
            raise ModelError(
                f"other weights than behind the store's {made.stage} artefact (another torch?); "
                "go back to its versions or choose another --store"
            )
    if store.find(plan.build[one]) is not None:
        return
    rows, n = artefacts.materials.rows_of(one)["heldout"], spec.harvest.card_rows
    ids, usable = torch.from_numpy(rows.token_ids[:n]).long(), torch.from_numpy(rows.usable()[:n])
    with store.write(plan.build[one]) as draft:
        write_json(draft / "recipe.json", recipe)
        found = card(model, spec.hookpoints, ids, usable, spec.harvest.outlier_ratio)
        write_json(draft / "card.json", found)
        write_heads(draft, {"embedding": embedding(model), "unembedding": unembedding(model)})
