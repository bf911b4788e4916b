"""The scores by which trained latents are compared with decoys, and the table of what passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from sae_placebo.core.lazy import pandas
from sae_placebo.core.tables.structure import DECOYS
from sae_placebo.latents.origin.decoys import decoys


class DecoyScore(NamedTuple):
    """One score of a latent; a larger value should be less like a placebo's.

    Attributes:
        definition: What it is, in words.
        of: Returns it for each row of a table of latents.
        hangs_on: The share of the ladder with which it is withheld.
    """

    definition: str
    of: Callable[[Any], Float[np.ndarray, " latent"]]
    hangs_on: str | None = None


def _column(name: str) -> Callable[[Any], Float[np.ndarray, " latent"]]:
    """Return the function from a latent table to a column of it, which is NaN where there is none."""

    def values(latents: Any) -> Float[np.ndarray, " latent"]:
        if name not in latents:
            return np.full(len(latents), np.nan)
        column: Float[np.ndarray, " latent"] = latents[name].to_numpy(np.float64, na_value=np.nan)
        return column

    return values


def _stable_unexplained(latents: Any) -> Float[np.ndarray, " latent"]:
    """Return the lesser of 1 - R2 of the ladder's token rungs and the correlation with a sibling."""
    left = 1 - np.clip(_column("r2_window")(latents), 0, 1)
    lesser: Float[np.ndarray, " latent"] = np.minimum(left, _column("seed_r")(latents))
    return lesser


SCORES: Mapping[str, DecoyScore] = {
    "stable_unexplained": DecoyScore(
        "the lesser of 1 - R2 of the ladder up to the embeddings of a window, and the correlation with "
        "the best partner in the SAE of another seed: not explained by tokens, and yet no accident",
        _stable_unexplained,
        "explained_up_to_window",
    ),
    "attribute_r2": DecoyScore(
        "share of variance removed by the best attribute of the token (its spelling, its labels)",
        _column("attribute_r2"),
    ),
    "induction_d": DecoyScore(
        "how much more it fires on repeated than on fresh random blocks, in standard deviations",
        _column("induction_d"),
    ),
    "output_lift": DecoyScore(
        "how much more often its promoted tokens come next than after the same current token",
        _column("output_lift"),
    ),
    "token_entropy_bits": DecoyScore(
        "token entropy in bits: how many different tokens it is active on",
        _column("token_entropy_bits"),
    ),
}
"""Scores by name, in the order of the table."""

COLUMNS = DECOYS.names


_NOT_OF_MODEL = (
    "directions of a trained model may score higher than a placebo's whatever was learned, so some decoys "
    'must be of the same model: it takes an arm such as {dictionary = "frozen_decoder"}'
)


def decoy_table(
    latents: Any,
    trained: str,
    placebo: str | None,
    same_model: Sequence[str],
    why: str | None,
    rate: float,
    seed: int,
    withheld: Mapping[tuple[str, str, str], str],
) -> pandas.DataFrame:
    """Return how many trained latents pass each score's threshold, by hookpoint and SAE.

    Decoys are the latents of the placebo, and of dictionaries of the trained model whose decoder rows no
    training chose, of which there must be one; of these kinds, those count with which the fewest pass.

    Args:
        latents: All arms' latents. A latent that fires too rarely to be judged has null scores, and passes
            no threshold.
        trained: The arm whose latents are targets.
        placebo: The arm of another model whose latents are decoys; None where there is none.
        same_model: Arms of the trained model whose latents are decoys.
        why: Why there is no placebo.
        rate: Share of decoys that is allowed among what passes.
        seed: It names the draws of the intervals.
        withheld: Why a number of the ladder is withheld, by hookpoint, SAE and metric.
    """
    rows: list[dict[str, Any]] = []
    for (hookpoint, sae), part in latents.groupby(["hookpoint", "sae"], sort=False):
        for name, score in SCORES.items():
            kinds: list[str | None] = (
                [placebo, *same_model] if placebo is not None else [*same_model]
            )
            reason = withheld.get((str(hookpoint), str(sae), score.hangs_on or ""))
            if not same_model:
                reason = reason or (why if placebo is None else None) or _NOT_OF_MODEL
            row = {"hookpoint": hookpoint, "sae": sae, "arm": trained, "score": name, "rate": rate}
            found = [
                row | _passing(part, score, trained, kind, reason, rate, seed)
                for kind in kinds or [None]
            ]
            rows.append(_fewest(found))
    return pandas.DataFrame(rows, columns=list(COLUMNS))


def _fewest(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return, of the rows by kind of decoys, the one with which the fewest latents pass.

    A kind at no score of which few enough are decoys has no threshold and lets none pass.
    """
    none_pass = [one for one in found if "threshold" in one and one["threshold"] is None]
    known = [one for one in found if one.get("reason") is None]
    return (none_pass or sorted(known, key=lambda one: one["passing"]) or [*found])[0]


def _passing(
    part: Any,
    score: DecoyScore,
    trained: str,
    kind: str | None,
    reason: str | None,
    rate: float,
    seed: int,
) -> dict[str, Any]:
    """Return what passes with the latents of one arm as decoys, or why nothing can be said."""
    targets, others = part[part["arm"] == trained], part[part["arm"] == kind]
    row: dict[str, Any] = {"placebo": kind, "n_targets": len(targets), "n_decoys": len(others)}
    if reason is None and not len(others):
        reason = "no placebo's latents"
    if reason is not None:
        return row | {"reason": reason}
    scores = [score.of(side).astype(np.float64) for side in (targets, others)]
    if not all(np.isfinite(values).any() for values in scores):
        return row | {"reason": "no trained latent, or no decoy, has this score"}
    seeds = [_sae_of(side) for side in (targets, others)]
    passed = decoys(scores[0], scores[1], rate, seeds[0], seeds[1], seed)
    return row | {c: getattr(passed, c) for c in COLUMNS if hasattr(passed, c)}


def _sae_of(latents: Any) -> np.ndarray:
    """Return a number for each latent's SAE, one for each pair of model re-draw and SAE seed."""
    keys = [
        latents[name].astype("Int64").fillna(-1).to_numpy() for name in ("model_seed", "sae_seed")
    ]
    saes: np.ndarray = np.unique(np.stack(keys), axis=1, return_inverse=True)[1].reshape(-1)
    return saes
