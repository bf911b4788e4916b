"""What comes back of planted features: detected, split, composed, absorbed, or lost.

A latent that points along a spike need not fire with it, and one that fires with it need not point along
it, so both are asked: the cosine of its decoder row, and the F1 of its code as a detector of the spike on
held-out tokens. The detector is "code above a threshold". The threshold is the best one on one half of
the tokens and is counted on the other, both ways, so that weak firings elsewhere, which a short training
leaves, are told from a latent that is about something else. F1 with the threshold 0 is given as well.

Beside each stands what there is to get for nothing: the same from the same SAE for *decoys*, spikes of the
same law that were never planted, and, where one is given, from an SAE trained without the planting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.core.lazy import torch
from sae_placebo.lab.spikes.keys import TokenKeys
from sae_placebo.lab.spikes.outcomes import DETECTED, OUTCOMES, OutcomeRules, Thresholds
from sae_placebo.lab.spikes.plant import Planting
from sae_placebo.saes import SAE
from sae_placebo.stats.proportions import wilson

_CHUNK_TOKENS = 1 << 14


@dataclass(frozen=True)
class RecoveredDirections:
    """What one SAE makes of some directions, planted or not; arrays over them.

    Attributes:
        outcome: One of `OUTCOMES`; empty where too few tokens were there to judge.
        n_tokens: Held-out tokens on which each is active.
        cosine: Largest cosine of a decoder row; for a circle, of its projection on the plane.
        latent: The latent that counts for it: among those past the cosine threshold the one with the
            largest F1, else the one with the largest cosine.
        f1: F1 of that latent as a detector, its threshold from other tokens; NaN without a token.
        firing_f1: The same with the threshold 0.
        precision: Of firing at all; NaN where it never fires.
        recall: Of firing at all.
        best_f1: Largest F1 of any latent's firing at all, whatever its direction.
        n_latents: Latents past the cosine threshold that are as precise as `share` asks.
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
        """Whether each was active on enough tokens."""
        return np.array([bool(one) for one in self.outcome], dtype=bool)

    @property
    def detected(self) -> Bool[np.ndarray, " spike"]:
        """Whether each was detected."""
        return np.array([one == DETECTED for one in self.outcome], dtype=bool)

    def counts(self) -> dict[str, int]:
        """Return how many have each outcome, those not judged under an empty name."""
        return {name: self.outcome.count(name) for name in (*OUTCOMES, "")}


@dataclass(frozen=True)
class Recovered:
    """What came back of a plan, beside its nulls.

    Attributes:
        plan: What was planted.
        found: Of the spikes.
        null: Of the decoys, the decoys of a spike side by side.
        decoys: How many there are of each spike.
        without: Of the spikes, from an SAE trained without them, on the same planted tokens; None: not asked.
    """

    plan: Planting
    found: RecoveredDirections
    null: RecoveredDirections
    decoys: int
    without: RecoveredDirections | None = None

    def null_share(self) -> tuple[float, float, float, int]:
        """Return the share of decoys that count as detected, its interval, and how many were judged.

        Raises:
            NotEstimable: no decoy was active on enough tokens.
        """
        hits, n = int(self.null.detected.sum()), int(self.null.judged.sum())
        low, high = wilson(hits, n)
        return hits / n, low, high, n

    def table(self) -> list[dict[str, Any]]:
        """Return one row per spike, ready for JSON; what cannot be told is null."""
        rows = []
        for i, spike in enumerate(self.plan.spikes):
            mine = slice(i * self.decoys, (i + 1) * self.decoys)
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
                "null_cosine": _mean(self.null.cosine[mine]),
                "null_f1": _mean(self.null.f1[mine]),
                "null_best_f1": _mean(self.null.best_f1[mine]),
                "null_detected": int(self.null.detected[mine].sum()),
                "null_judged": int(self.null.judged[mine].sum()),
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
    """Return what `sae` made of a plan, on held-out tokens that hold it.

    Args:
        sae: Trained on activations with the plan in them, in the activations' units.
        x: Held-out activations with the plan in them.
        plan: What was planted; its dictionary is what decoder rows are held against.
        keys: What names the held-out tokens.
        thresholds: Where outcomes end.
        decoys: Unplanted directions per spike.
        covariance: Needed where a direction is drawn from it.
        without: An SAE trained without the planting.

    Raises:
        SpecError: `x` and `keys` are of different tokens, by their number.
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

    Directions, tokens and amplitudes are drawn under other names; relations to other spikes and to tokens
    are dropped, the frequency kept.
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
    """Return the codes of tokens: a scipy CSC matrix [token, latent], zeros not stored."""
    from scipy import sparse

    parts = []
    for part in torch.split(x, _CHUNK_TOKENS):
        codes = sae.encode(part)
        shape = (codes.n_tokens, sae.d_sae)
        stored = (codes.values.numpy(), codes.latents.numpy(), codes.offsets.numpy())
        parts.append(sparse.csr_matrix(stored, shape=shape))
    return sparse.vstack(parts).tocsc()


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
        codes: As `codes_on` gives it.
        plan: Directions, and who is whose parent.
        active: On which tokens each spike is active, as `Planting.active` gives it.
        thresholds: Where outcomes end.
    """
    from scipy import sparse

    on = sparse.csr_matrix(np.stack(active).astype(np.float32)) if active else None
    ones = codes.copy()
    ones.data = np.ones_like(ones.data)
    together = np.zeros((0, sae.d_sae)) if on is None else np.asarray((on @ ones).todense())
    per_latent = np.asarray(ones.sum(0), dtype=np.float64).ravel()
    cosines = _cosines(sae, plan)
    judge = OutcomeRules(codes, per_latent, thresholds)
    scored = [
        judge.one(
            cosines[i],
            together[i].astype(np.float64),
            active[i],
            _children(plan, active, i),
            spike.dimension,
        )
        for i, spike in enumerate(plan.spikes)
    ]
    names = (
        "n_tokens",
        "cosine",
        "latent",
        "f1",
        "firing_f1",
        "precision",
        "recall",
        "best_f1",
        "n_latents",
    )
    whole = {"n_tokens", "latent", "n_latents"}
    columns = {
        name: np.array(
            [one[name] for one in scored], dtype=np.int64 if name in whole else np.float64
        )
        for name in names
    }
    return RecoveredDirections(outcome=tuple(one["outcome"] for one in scored), **columns)


def _cosines(sae: SAE, plan: Planting) -> Float64[np.ndarray, "spike latent"]:
    """Return cosines of decoder rows to directions; to planes, the length of the projection."""
    decoder = torch.nn.functional.normalize(sae.params["W_dec"].detach().float(), dim=1)
    along = (plan.dictionary @ decoder.t()).numpy().astype(np.float64)
    found = [
        along[rows[0]] if len(rows) == 1 else np.linalg.norm(along[list(rows)], axis=0)
        for rows in plan.rows
    ]
    return np.stack(found) if found else np.zeros((0, sae.d_sae))


def _children(
    plan: Planting, active: Sequence[Bool[np.ndarray, " token"]], index: int
) -> Bool[np.ndarray, " token"] | None:
    name = plan.spikes[index].name
    mine = [on for spike, on in zip(plan.spikes, active, strict=True) if spike.parent == name]
    return np.logical_or.reduce(mine) if mine else None


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _mean(values: Float64[np.ndarray, " decoy"]) -> float | None:
    good = values[np.isfinite(values)]
    return float(good.mean()) if len(good) else None


def share_detected(found: RecoveredDirections) -> tuple[float, float, float, int]:
    """Return the share of judged spikes that were detected, its interval, and how many were judged.

    Raises:
        NotEstimable: none was judged.
    """
    n = int(found.judged.sum())
    if not n:
        raise NotEstimable("no spike was active on enough held-out tokens to be judged")
    hits = int(found.detected.sum())
    low, high = wilson(hits, n)
    return hits / n, low, high, n
