"""Each arm's models are built from the reference model; what was done to them is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sae_placebo.core import memory
from sae_placebo.core.errors import ModelError
from sae_placebo.core.lazy import torch
from sae_placebo.core.store import write_json
from sae_placebo.models.activation_files import write_heads
from sae_placebo.models.diagnostics import card
from sae_placebo.models.embeddings import embedding, unembedding
from sae_placebo.trial.artefacts import Artefacts
from sae_placebo.trial.plan import ArmModel
from sae_placebo.trial.recipes import missed, read_hash
from sae_placebo.trial.stages.arm_models import MadeModels, arm_models, named


def build_measured(artefacts: Artefacts) -> None:
    """Build the arms whose models are measured on text, so that what one misses is told before training."""
    plan, spec = artefacts.plan, artefacts.spec
    for one, step in plan.build.items():
        if spec.arms[one.arm].control.text_tokens and artefacts.store.find(step) is None:
            _build(artefacts, one)
            memory.give_back()


def build_arms(artefacts: Artefacts, arms: Sequence[ArmModel]) -> MadeModels | None:
    """Build the models of arms that read the same activations, and keep their recipes and cards.

    Returns:
        The first arm's models, which are read for all of them; None where their activations were read and
        their SAEs trained already.
    """
    plan, store, made = artefacts.plan, artefacts.store, None
    unread = any(store.find(of[arms[0]]) is None for of in (plan.harvest, plan.fit_text))
    unread = unread or any(store.find(plan.train[one]) is None for one in arms)
    for one in arms:
        if store.find(plan.build[one]) is None or (unread and made is None):
            found = _build(artefacts, one)
            made = found if made is None else made
    return made if unread else None


def _build(artefacts: Artefacts, one: ArmModel) -> MadeModels:
    with artefacts.progress.track(f"build {one.label}", 1, "model") as advance:
        made = arm_models(artefacts, one)
        with named(one):
            _keep(artefacts, one, made)
            for hookpoint, why in missed(made.recipe).items():
                artefacts.progress.note(
                    f"{one.label} has no value at {hookpoint}: {why}; raise the arm's tolerance to count it"
                )
        advance(1)
    return made


def _keep(artefacts: Artefacts, one: ArmModel, made: MadeModels) -> None:
    """Keep what was done to the models, and their diagnostics card."""
    plan, store, spec = artefacts.plan, artefacts.store, artefacts.spec
    for step in (plan.build[one], plan.harvest[one], plan.train[one]):
        folder = store.find(step)
        if folder and read_hash(folder) != made.recipe["read_hash"]:
            raise ModelError(
                f"other weights than behind the store's {step.stage} artefact (another torch?); "
                "go back to its versions or choose another --store"
            )
    if store.find(plan.build[one]) is not None:
        return
    rows, n = artefacts.materials.rows_of(one)["heldout"], spec.harvest.card_rows
    ids, usable = torch.from_numpy(rows.token_ids[:n]).long(), torch.from_numpy(rows.usable()[:n])
    documents = torch.from_numpy(rows.documents[:n]).long()
    with store.write(plan.build[one]) as draft:
        write_json(draft / "recipe.json", made.recipe)
        found: dict[str, Any] = {}
        for hookpoints, model in made.models:
            found |= card(model, hookpoints, ids, usable, spec.harvest.outlier_ratio, documents)
        write_json(draft / "card.json", {name: found[name] for name in spec.hookpoints})
        _, model = made.models[0]  # a gain changes neither of the two
        write_heads(draft, {"embedding": embedding(model), "unembedding": unembedding(model)})
