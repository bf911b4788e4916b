"""Where a latent comes from: explained, not explained, or undetermined, each with its evidence.

**Explained**: predictors that read tokens, positions, embeddings or a placebo model explain at least the
limit of the latent's held-out variance, or the placebo SAE has a partner of it. The evidence is the first
rung of the ladder that reaches the limit.
**Not explained**: every rung stays below the limit by more than two standard errors, the placebo SAE has no
partner, and the SAE of another seed has one, so that the latent is not an accident of one training.
**Undetermined**: everything else, with the reason.

A verdict is about origin, not about use. "Not explained" means that nothing that was tried explains it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int8, Shaped

ORIGINS = ("explained", "not_explained", "undetermined")
EXPLAINED, NOT_EXPLAINED, UNDETERMINED = range(3)

EVIDENCE = {
    "position": "its position in the row",
    "token": "the current token",
    "pair": "the previous and the current token",
    "bag": "a decayed bag of the tokens before",
    "window": "the embeddings of the last tokens",
    "placebo_readout": "the placebo model's activations",
    "placebo_latents": "the placebo SAE's latents",
}
"""Rungs of the ladder in its order, each with what it reads, in words."""

PARTNER = "a partner in the placebo SAE"
_STANDARD_ERRORS = 2.0


@dataclass(frozen=True, eq=False)
class Verdicts:
    """The verdict on every latent, with its evidence.

    Attributes:
        verdict: [latent, fold] index into `ORIGINS`.
        evidence: [latent] the evidence for the verdict of fold 0, or why it is undetermined.
    """

    verdict: Int8[np.ndarray, "latent fold"]
    evidence: Shaped[np.ndarray, " latent"]

    def share(self, verdict: int) -> Float[np.ndarray, " fold"]:
        """Return the share of all latents with this verdict."""
        share: Float[np.ndarray, " fold"] = (self.verdict == verdict).mean(axis=0)
        return share


def verdicts(
    judged: Bool[np.ndarray, "latent fold"],
    rungs: dict[str, Float[np.ndarray, "latent fold"]],
    in_placebo: Bool[np.ndarray, "latent fold"] | None,
    in_sibling: Bool[np.ndarray, "latent fold"] | None,
    explained: float,
    reasons: dict[str, str],
) -> Verdicts:
    """Return the verdict on every latent.

    Args:
        judged: Whether the latent fires often enough to be judged.
        rungs: Held-out R2 of nested rungs, by the keys of `EVIDENCE`; NaN where it is not estimable.
        in_placebo: Whether the placebo SAE has a partner of the latent; None where there is no placebo.
        in_sibling: Whether the SAE of another seed has a partner; None where there is no such SAE.
        explained: R2 from which a rung explains a latent.
        reasons: Why there is no `placebo` and no `sibling`.
    """
    shape = judged.shape
    verdict = np.full(shape, UNDETERMINED, dtype=np.int8)
    evidence = np.full(shape[0], "fires too rarely to be judged", dtype=object)
    open_ = judged.copy()
    near = np.zeros(shape, dtype=bool)
    for name, label in EVIDENCE.items():
        if name not in rungs:
            continue
        r2 = rungs[name]
        reached = open_ & (r2 >= explained)
        verdict[reached], evidence[reached[:, 0]] = EXPLAINED, f"explained by {label}"
        open_ &= ~reached
        near |= r2 + _STANDARD_ERRORS * jackknife_se(r2)[:, None] >= explained
    if in_placebo is None:
        evidence[open_[:, 0]] = reasons.get("placebo", "no placebo read the same tokens")
        return Verdicts(verdict, evidence)
    paired = open_ & in_placebo
    verdict[paired], evidence[paired[:, 0]] = EXPLAINED, f"has {PARTNER}"
    open_ &= ~paired
    close = open_ & near
    evidence[close[:, 0]] = "a rung explains nearly enough of it, within two standard errors"
    open_ &= ~close
    unknown = open_ & ~np.isfinite(last_known(rungs))
    evidence[unknown[:, 0]] = "its activations do not vary on the documents that are scored"
    open_ &= ~unknown
    if in_sibling is None:
        evidence[open_[:, 0]] = reasons.get("sibling", "there is no SAE of another seed")
        return Verdicts(verdict, evidence)
    alone = open_ & ~in_sibling
    evidence[alone[:, 0]] = "the SAE of another seed has no partner of it"
    open_ &= ~alone
    verdict[open_] = NOT_EXPLAINED
    evidence[open_[:, 0]] = (
        "no rung explains it, the placebo SAE has no partner of it, the SAE of another seed has one"
    )
    return Verdicts(verdict, evidence)


def last_known(
    rungs: dict[str, Float[np.ndarray, "latent fold"]],
) -> Float[np.ndarray, "latent fold"]:
    """Return the R2 of the last rung that is not NaN, by latent and fold; NaN where all are."""
    last = np.full(next(iter(rungs.values())).shape, np.nan)
    for name in EVIDENCE:
        if name in rungs:
            last = np.where(np.isfinite(rungs[name]), rungs[name], last)
    return last


def jackknife_se(values: Float[np.ndarray, "latent fold"]) -> Float[np.ndarray, " latent"]:
    """Return the standard error of each latent's value, from the groups left out; NaN folds are skipped.

    Source: the delete-a-group jackknife (Kott 2001): (G - 1) / G times the sum of squared differences.
    """
    left = values[:, 1:]
    n = np.isfinite(left).sum(axis=1)
    mean = np.nansum(left, axis=1) / np.maximum(n, 1)
    squares = np.nansum((left - mean[:, None]) ** 2, axis=1)
    error: Float[np.ndarray, " latent"] = np.sqrt(squares * (n - 1).clip(0) / np.maximum(n, 1))
    return error
