"""Tables that are made of every arm's latents: partners, decoys, and the mechanism's predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import pandas
from sae_placebo.latents.classes.classification import ClassThresholds
from sae_placebo.latents.columns.mechanism import mechanism_predictions
from sae_placebo.latents.origin.decoy_scores import decoy_table
from sae_placebo.stats.replicates import ReplicateTable
from sae_placebo.trial.arms import ArmSpec
from sae_placebo.trial.placebos import Held, placebo_of, sibling_of
from sae_placebo.trial.plan import ArmModel
from sae_placebo.trial.reference import reference_placebo
from sae_placebo.trial.spec import TrialSpec

_KEYS = ["arm", "model_seed", "sae_seed", "hookpoint", "sae"]
_RATIO = "block_to_embedding_ratio"


_UNCHOSEN = ("frozen_decoder", "untrained")
"""Controls of the dictionary that leave its directions as they were drawn."""


def decoys_of(spec: TrialSpec, latents: Any, measured: ReplicateTable) -> Any:
    """Return how many trained latents pass where a share of what passes is a placebo's.

    Args:
        spec: The trial's.
        latents: All arms' latents.
        measured: Every metric of every SAE, with what is withheld of it.
    """
    placebo, why = None, None
    try:
        placebo = reference_placebo(spec)
    except NotEstimable as refusal:
        why = str(refusal)
    rate = spec.structure.decoy_rate
    withheld = {
        (cells[0].hookpoint, cells[0].sae, cells[0].metric): f"{cells[0].arm}: {moves}"
        for cells, moves in measured.withheld.items()
        if len(cells) == 1 and cells[0].arm in (spec.trained_arm, placebo)
    }
    same = [arm for arm, one in spec.arms.items() if _is_of_trained_model(one)]
    return decoy_table(latents, spec.trained_arm, placebo, same, why, rate, spec.seed, withheld)


def _is_of_trained_model(arm: ArmSpec) -> bool:
    """Return whether an arm is a dictionary of the trained model whose directions no training chose."""
    untouched = arm.control.kind == "trained" and arm.data is None
    return untouched and arm.dictionary is not None and arm.dictionary.kind in _UNCHOSEN


def partners_of(spec: TrialSpec, latents: Any) -> Any:
    """Return a row per latent and SAE that it is held against: the placebo's, and another seed's."""
    try:
        placebo = reference_placebo(spec)
    except NotEstimable:
        placebo = None
    finders: Mapping[str, Callable[..., Held]] = {"placebo": placebo_of, "seed": sibling_of}
    parts = []
    for (arm, model_seed, sae_seed), own in latents.groupby(_KEYS[:3], dropna=False, sort=False):
        one = ArmModel(str(arm), None if pandas.isna(model_seed) else int(model_seed))
        for name, find in finders.items():
            part = own[[*_KEYS, "latent", "class"]].copy()
            part["comparison"] = "aa" if name == "placebo" and arm == placebo else name
            part["other"], part["reason"] = None, None
            for sae in part["sae"].unique():
                here = part["sae"] == sae
                try:
                    held = find(spec, one, str(sae), int(sae_seed))
                    part.loc[here, "other"] = f"{held.one.label}, SAE seed {held.sae_seed}"
                except NotEstimable as refusal:
                    part.loc[here, "reason"] = str(refusal)
            part["correlation"], part["null_correlation"] = own[f"{name}_r"], own[f"{name}_null_r"]
            part["has_partner"] = own[f"has_{name}_partner"]
            part["null_has_partner"] = own[f"null_has_{name}_partner"]
            part["shared"] = own["shared"] if name == "seed" else np.nan
            parts.append(part)
    found = pandas.concat(parts, ignore_index=True)
    texts = {"other": "str", "reason": "str"}
    return found.astype(texts)


def mechanism_of(
    spec: TrialSpec,
    latents: Any,
    cards: Mapping[str, Mapping[str, Any]],
    thresholds: ClassThresholds,
) -> Any:
    """Return the predictions about arbitrary subsets of contexts, tested on arms whose weights are drawn.

    Args:
        spec: The trial's protocol.
        latents: Every arm's latents.
        cards: By arm, the diagnostics of one of its models, by hookpoint.
        thresholds: Correlation at which a latent counts as found again.
    """
    ablated = attention_ablated(spec)
    arms = [a for a, one in spec.arms.items() if one.control.draws and not one.rewrites_text]
    rows: list[dict[str, Any]] = []
    for sae, own in latents[latents["arm"].isin(arms)].groupby("sae", sort=False):
        table = own.rename(columns={"domain_auc": "linear_auc"})
        shares = [
            {
                "arm": arm,
                "layer": list(spec.hookpoints).index(hookpoint),
                "n_arbitrary": int(part["is_arbitrary"].sum()),
                "n_latents": len(part),
                "block_ratio": _ratio(cards.get(str(arm), {}).get(str(hookpoint), {})),
            }
            for (arm, hookpoint), part in own.groupby(["arm", "hookpoint"], sort=False)
        ]
        found = mechanism_predictions(
            table,
            pandas.DataFrame(shares),
            {arm: twin for arm, twin in ablated.items() if arm in arms},
            seed=spec.seed,
            thresholds=thresholds,
        )
        rows += [{"sae": sae, **dataclasses.asdict(one)} for one in found]
    names = ("sae", "name", "says", "outcome", "estimate", "low", "high", "n", "reason")
    return pandas.DataFrame(rows, columns=list(names)).assign(hookpoint="all")


def attention_ablated(spec: TrialSpec) -> dict[str, str | None]:
    """Return the arms whose attention is ablated, each with the arm that differs in that alone, or None."""
    twins: dict[str, str | None] = {}
    for arm, one in spec.arms.items():
        if one.control.ablates_attention:
            attending = one.model_copy(update={"control": one.control.drawn})
            twins[arm] = next((a for a, other in spec.arms.items() if other == attending), None)
    return twins


def _ratio(card: Mapping[str, Any]) -> float:
    value = (card.get(_RATIO) or {}).get("value")
    return float("nan") if value is None else float(value)
