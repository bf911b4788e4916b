"""Planted features are looked for in an SAE: each is detected, split, composed, absorbed, or lost.

A latent that points along a spike need not fire with it, and one that fires with it need not point along it.
So both are measured: the cosine of the decoder row, and the F1 of the code as a detector of the spike on
held-out tokens. The detector is "code at or above a threshold". The threshold is chosen on one half of the
tokens and applied to the other, both ways. So a latent that also fires weakly elsewhere, as after a short
training, is told from one that is about something else. F1 with the threshold 0 is given as well.

There are two nulls. *Decoys* are spikes of the same law that were never planted, looked for in the same SAE.
Where an SAE that was trained without the planting is given, the planted spikes are looked for in it, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.core.lazy import torch
from sae_placebo.lab.scores.matching import code_matrix
from sae_placebo.lab.spikes.keys import TokenKeys
from sae_placebo.lab.spikes.outcomes import DETECTED, OUTCOMES, OutcomeRules, Thresholds
from sae_placebo.lab.spikes.planting import Planting
from sae_placebo.saes import SAE, Codes
from sae_placebo.stats.proportions import wilson

_CHUNK_TOKENS = 1 << 14
_COUNTS = ("n_tokens", "latent", "n_latents")
"""Fields of `RecoveredDirections` that are whole numbers."""


@dataclass(frozen=True)
class RecoveredDirections:
    """What one SAE makes of the directions of spikes, planted or not; arrays over spikes.

    F1 and recall are NaN for a spike that is active on no held-out token.

    Attributes:
        outcome: One of `OUTCOMES`; empty where the spike is active on too few tokens to judge.
        n_tokens: Number of held-out tokens on which the spike is active.
        cosine: Largest cosine of a decoder row; for a circle, the length of its projection on the plane.
        latent: The latent that is scored: among those past the cosine threshold the one with the largest F1,
            else the one with the largest cosine.
        f1: F1 of that latent as a detector, with thresholds chosen on other tokens.
        firing_f1: F1 of that latent as a detector with the threshold 0.
        precision: Share of that latent's firings that are on the spike's tokens; NaN where it never fires.
        recall: Share of the spike's tokens on which that latent fires.
        best_f1: Largest F1, with the threshold 0, over all latents whatever their direction.
        n_latents: Number of latents past the cosine threshold whose precision is at least `Thresholds.share`.
    """

    outcome: tuple[str, ...]
    n_tokens: Int64[np.ndarray, " spike"]
    cosine: Float64[np.ndarray, " spike"]
    latent: Int64[np.ndarray, " spike"]
    f1: Float64[np.ndarray, " spike"]
    firing_f1: Float64[np.ndarray, " spike"]
    precision: Float64[np.ndarray, " spike"]
    recall: Float64[np.ndarray, " spike"]
    best_f1: Float64[np.ndarray, " spike"]
    n_latents: Int64[np.ndarray, " spike"]

    @property
    def judged(self) -> Bool[np.ndarray, " spike"]:
        """Whether each spike was active on enough tokens to be judged."""
        return np.array([bool(outcome) for outcome in self.outcome], dtype=bool)

    @property
    def detected(self) -> Bool[np.ndarray, " spike"]:
        """Whether each spike was detected."""
        return np.array([outcome == DETECTED for outcome in self.outcome], dtype=bool)

    def counts(self) -> dict[str, int]:
        """Return how many spikes have each outcome; those not judged are counted under an empty name."""
        return {name: self.outcome.count(name) for name in (*OUTCOMES, "")}


@dataclass(frozen=True)
class Recovered:
    """What an SAE recovered of planted spikes, and its nulls.

    Attributes:
        plan: The planted spikes.
        found: What the SAE makes of the spikes.
        null: What the SAE makes of the decoys; those of one spike follow each other.
        decoys: Number of decoys of each spike.
        without: What an SAE that was trained without the spikes makes of them, on the same planted tokens;
            None where no such SAE was given.
    """

    plan: Planting
    found: RecoveredDirections
    null: RecoveredDirections
    decoys: int
    without: RecoveredDirections | None = None

    def null_share(self) -> tuple[float, float, float, int]:
        """Return `share_detected` of the decoys."""
        return share_detected(self.null)

    def table(self) -> list[dict[str, Any]]:
        """Return one row per spike, in types that JSON has; a number that does not exist is None."""
        rows = []
        for i, spike in enumerate(self.plan.spikes):
            decoys = slice(i * self.decoys, (i + 1) * self.decoys)
            row: dict[str, Any] = {
                "name": spike.name,
                "frequency": spike.frequency,
                "magnitude": spike.magnitude,
                "outcome": self.found.outcome[i] or None,
                "n_tokens": int(self.found.n_tokens[i]),
                "cosine": _number(self.found.cosine[i]),
                "f1": _number(self.found.f1[i]),
                "firing_f1": _number(self.found.firing_f1[i]),
                "best_f1": _number(self.found.best_f1[i]),
                "n_latents": int(self.found.n_latents[i]),
                "null_cosine": _mean(self.null.cosine[decoys]),
                "null_f1": _mean(self.null.f1[decoys]),
                "null_best_f1": _mean(self.null.best_f1[decoys]),
                "null_detected": int(self.null.detected[decoys].sum()),
                "null_judged": int(self.null.judged[decoys].sum()),
            }
            if self.without is not None:
                row["without_outcome"] = self.without.outcome[i] or None
                row["without_cosine"] = _number(self.without.cosine[i])
                row["without_f1"] = _number(self.without.f1[i])
            rows.append(row)
        return rows


def recovered(
    sae: SAE,
    x: Float[torch.Tensor, "token d_in"],
    plan: Planting,
    keys: TokenKeys,
    thresholds: Thresholds | None = None,
    *,
    decoys: int = 5,
    covariance: Float64[np.ndarray, "d_in d_in"] | None = None,
    without: SAE | None = None,
) -> Recovered:
    """Return what an SAE recovered of planted spikes, scored on held-out tokens that have them.

    Args:
        sae: An SAE trained on activations with the spikes planted, in the activations' units.
        x: Held-out activations with the spikes planted.
        plan: The planted spikes; decoder rows are compared with its dictionary.
        keys: Keys of the held-out tokens.
        thresholds: Thresholds between outcomes; None takes the defaults.
        decoys: Number of decoys per spike.
        covariance: The activations' covariance, which is needed where a direction is drawn from it.
        without: An SAE trained without the spikes, for a second null.

    Raises:
        SpecError: `x` and `keys` have different numbers of tokens.
    """
    if len(x) != len(keys):
        raise SpecError(f"{len(x)} activations and the keys of {len(keys)} tokens were given")
    limits = thresholds or Thresholds()
    others = decoy_plan(plan, decoys, covariance)
    active, elsewhere = plan.active(keys), others.active(keys)
    codes = codes_on(sae, x)
    return Recovered(
        plan=plan,
        found=look(sae, codes, plan, active, limits),
        null=look(sae, codes, others, elsewhere, limits),
        decoys=decoys,
        without=None
        if without is None
        else look(without, codes_on(without, x), plan, active, limits),
    )


def decoy_plan(
    plan: Planting, each: int, covariance: Float64[np.ndarray, "d_in d_in"] | None = None
) -> Planting:
    """Return a plan of spikes of the same law as those of `plan`, to be looked for and not planted.

    Directions, tokens and amplitudes are drawn under other names. Frequencies are kept; relations to other
    spikes and to token ids are dropped.

    Args:
        plan: The planted spikes.
        each: Number of decoys of each spike.
        covariance: The activations' covariance, which is needed where a direction is drawn from it.
    """
    alone = {
        "parent": None,
        "beside": None,
        "correlation": 0.0,
        "token_ids": (),
        "token_frequency": None,
    }
    spikes = [
        spike.model_copy(update=alone | {"name": f"{spike.name} decoy {k}"})
        for spike in plan.spikes
        for k in range(each)
    ]
    d_in = plan.dictionary.shape[1]
    return Planting.of(spikes, plan.seed, d_in, plan.scale, covariance, orthogonal=False)


def codes_on(sae: SAE, x: Float[torch.Tensor, "token d_in"]) -> Any:
    """Return an SAE's codes of tokens as a scipy CSC matrix [token, latent], zeros not stored."""
    codes = Codes.concatenate([sae.encode(part) for part in torch.split(x, _CHUNK_TOKENS)])
    return code_matrix(codes).astype(np.float32).tocsc()


def look(
    sae: SAE,
    codes: Any,
    plan: Planting,
    active: Sequence[Bool[np.ndarray, " token"]],
    thresholds: Thresholds,
) -> RecoveredDirections:
    """Return what an SAE makes of the directions of a plan, planted or not.

    Args:
        sae: The SAE.
        codes: The SAE's codes of held-out tokens, from `codes_on`.
        plan: The spikes with their directions and parents.
        active: For each spike, whether it is active on each token, from `Planting.active`.
        thresholds: Thresholds between outcomes.
    """
    from scipy import sparse

    on = sparse.csr_matrix(np.stack(active).astype(np.float32)) if active else None
    ones = codes.copy()
    ones.data = np.ones_like(ones.data)
    together = np.zeros((0, sae.d_sae)) if on is None else np.asarray((on @ ones).todense())
    per_latent = np.asarray(ones.sum(0), dtype=np.float64).ravel()
    cosines = decoder_cosines(sae, plan)
    rules = OutcomeRules(codes, per_latent, thresholds)
    rows = [
        rules.one(
            cosines[i],
            together[i].astype(np.float64),
            active[i],
            _children(plan, active, i),
            spike.dimension,
        )
        for i, spike in enumerate(plan.spikes)
    ]
    columns: dict[str, Any] = {"outcome": tuple(row["outcome"] for row in rows)}
    for name in (field.name for field in fields(RecoveredDirections)[1:]):
        dtype = np.int64 if name in _COUNTS else np.float64
        columns[name] = np.array([row[name] for row in rows], dtype=dtype)
    return RecoveredDirections(**columns)


def decoder_cosines(sae: SAE, plan: Planting) -> Float64[np.ndarray, "spike latent"]:
    """Return cosines of decoder rows to directions; for planes, the lengths of their projections."""
    decoder = torch.nn.functional.normalize(sae.params["W_dec"].detach().float(), dim=1)
    along = (plan.dictionary @ decoder.t()).numpy().astype(np.float64)
    cosines = [
        along[rows[0]] if len(rows) == 1 else np.linalg.norm(along[list(rows)], axis=0)
        for rows in plan.rows
    ]
    return np.stack(cosines) if cosines else np.zeros((0, sae.d_sae))


def _children(
    plan: Planting, active: Sequence[Bool[np.ndarray, " token"]], index: int
) -> Bool[np.ndarray, " token"] | None:
    """Return whether a child of a spike is active, by token; None where the spike has no child."""
    name = plan.spikes[index].name
    children = [on for spike, on in zip(plan.spikes, active, strict=True) if spike.parent == name]
    return np.logical_or.reduce(children) if children else None


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _mean(values: Float64[np.ndarray, " decoy"]) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else None


def share_detected(found: RecoveredDirections) -> tuple[float, float, float, int]:
    """Return the share of judged spikes that were detected, the ends of its 95% interval, and their number.

    Raises:
        NotEstimable: no spike was active on enough tokens to be judged.
    """
    n = int(found.judged.sum())
    if not n:
        raise NotEstimable("no spike was active on enough held-out tokens to be judged")
    hits = int(found.detected.sum())
    low, high = wilson(hits, n)
    return hits / n, low, high, n
