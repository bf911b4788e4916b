"""The ladder: how much of a latent predictors of increasing complexity explain on held-out documents.

Rungs are nested: each has all predictors of the rungs before it. Lookup tables and ridge readouts are fitted
on one set of documents, and on an eighth, a quarter and half of it. The weight of each predictor, per latent
and anew at each rung, and the ridge penalty are chosen on a second set, and R2 is taken on a third. What the
last rungs leave is accounted for neither by anything simpler nor by another model that is read linearly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from sae_placebo.latents.base import Columns
from sae_placebo.latents.ladder.fit_text import Stacked
from sae_placebo.latents.ladder.fitting import RUNGS, SOLO, fit
from sae_placebo.latents.ladder.predictors import Readouts
from sae_placebo.latents.ladder.targets import Latents
from sae_placebo.latents.ladder.token_features import TokenFeatures
from sae_placebo.latents.ladder.vectors import Vector

NO_PLACEBO = "there is no placebo beside this SAE"
_LATENTS_AT_ONCE = 8_192


@dataclass(frozen=True, eq=False)
class Ladder:
    """Held-out R2 by rung; NaN where a latent has none.

    Attributes:
        rungs: Names of the rungs, from the constant upwards.
        by_portion: R2 of each latent, fitted on each portion of the text to fit on; fold g + 1 is without
            the scored documents of group g, with nothing refitted.
        whole_by_portion: R2 of the activation vector, its dimensions weighted by their variance.
        alone_by_portion: R2 of each predictor alone, over the constant, in the order of `fitting.SOLO`.
        fit_tokens, fit_documents: Tokens and documents of each portion.
        reasons: Why a rung cannot be estimated, by rung.
        features: What stands for a token in bags and windows.
    """

    rungs: tuple[str, ...]
    by_portion: Float[np.ndarray, "portion rung latent fold"]
    whole_by_portion: Float[np.ndarray, "portion rung fold"]
    alone_by_portion: Float[np.ndarray, "portion predictor latent fold"]
    fit_tokens: tuple[int, ...]
    fit_documents: tuple[int, ...]
    reasons: dict[str, str]
    features: str

    @property
    def r2(self) -> Float[np.ndarray, "rung latent fold"]:
        """R2 of each latent, fitted on all of the text to fit on."""
        return np.asarray(self.by_portion[-1])

    @property
    def whole(self) -> Float[np.ndarray, "rung fold"]:
        """R2 of the activation vector, fitted on all of the text to fit on."""
        return np.asarray(self.whole_by_portion[-1])

    def columns(self, portion: int = -1) -> Columns:
        """Return what classes read: every predictor alone, and the rungs of which there is none alone.

        Args:
            portion: Index of the portion of the text to fit on; all of it unless it is given.
        """
        rungs = zip(self.rungs, self.by_portion[portion], strict=True)
        alone = zip(SOLO, self.alone_by_portion[portion], strict=True)
        return {f"r2_{name}": r2 for name, r2 in rungs} | dict(alone)

    def mean(self) -> Float64[np.ndarray, "rung fold"]:
        """Return each rung's mean R2 over the latents that have one at the rung "constant"."""
        living = np.isfinite(self.r2[0, :, 0])
        if not living.any():
            return np.full((len(self.rungs), self.r2.shape[2]), np.nan)
        values = self.r2[:, living]
        n = np.isfinite(values).sum(1)
        return np.asarray(np.where(n > 0, np.nansum(values, axis=1) / np.maximum(n, 1), np.nan))


def ladder(
    codes: Stacked,
    readouts: Readouts,
    placebo: Stacked | None,
    whole: Float[np.ndarray, "portion rung fold"] | None = None,
) -> Ladder:
    """Return R2 by rung of every latent of an SAE.

    R2 = 1 - SSE / SST, with SST about the mean over the fitted documents. It is not clipped: below 0 a
    prediction is worse than a constant. A rung's prediction is the mean plus a weighted sum of three things:
    what the position's bin, the current token and the pair of tokens add (lookup tables, backed off to one
    another); one ridge readout of all dense features up to the rung together; and, on the last rung, the
    placebo latents that correlate most with the latent on the fitted documents. The weights are least squares
    on the documents to choose on (`chosen_penalties.weigh`), and the ridge penalty is chosen there, both per
    latent. A table's prior is fixed.

    Deviations from a stagewise fit: the weights of lower rungs are chosen anew at each rung, and a readout is
    fitted beside the table of tokens (the token's mean is subtracted from its features), not to a table's
    residuals, which are too small on the documents that the table was counted on.

    Args:
        codes: Codes of the SAE, CSR [token, latent], at the tokens of `readouts`.
        readouts: What is read of the tokens, and of the placebo's activations if there is one.
        placebo: Codes of the placebo at the same tokens; None for none.
        whole: `whole_ladder` of the activations that the SAE reads; NaN where it is not given.
    """
    tokens, parts, m = readouts.tokens, [], codes.shape[1]
    for first in range(0, m, _LATENTS_AT_ONCE):
        some = codes
        if m > _LATENTS_AT_ONCE:
            some = codes.columns(slice(first, first + _LATENTS_AT_ONCE))
        partners = _partners(some, placebo, tokens)
        parts.append(_climb(Latents(some, readouts, partners, placebo), readouts))
    sse, sst, solo, living = (np.concatenate(part, axis=-2) for part in zip(*parts, strict=True))
    r2 = _r2(sse, sst[:, None], living[:, None])
    alone = _r2(solo, sst[:, None], living[:, None])
    reasons = {} if placebo is not None else dict.fromkeys(RUNGS[-2:], NO_PLACEBO)
    if whole is None:
        whole = np.full((*r2.shape[:2], r2.shape[3]), np.nan)
    sizes = tokens.text.n_fitted, tokens.text.n_documents
    return Ladder(RUNGS, r2, whole, alone, *sizes, reasons, tokens.source)


def no_ladder(n_latents: int, n_folds: int, reason: str) -> Ladder:
    """Return a ladder whose values are all NaN, with the reason why.

    Args:
        n_latents: Number of latents of the SAE.
        n_folds: Number of folds, the one with all documents included.
        reason: Why no rung can be estimated.
    """
    r2 = np.full((1, len(RUNGS), n_latents, n_folds), np.nan)
    alone = r2[:, : len(SOLO)].copy()
    reasons = dict.fromkeys(RUNGS, reason)
    return Ladder(RUNGS, r2, r2[:, :, 0].copy(), alone, (0,), (0,), reasons, "nothing")


def whole_ladder(
    values: Stacked, readouts: Readouts, placebo: Stacked | None
) -> Float64[np.ndarray, "portion rung fold"]:
    """Return R2 by rung of a vector, which is 1 - total SSE / total SST over its dimensions.

    Args:
        values: The vectors at the tokens, float32.
        readouts: Features of the same tokens, with the placebo's if there is one.
        placebo: Codes of the placebo, CSR [token, placebo latent], or None.
    """
    partners = _partners(values, placebo, readouts.tokens)
    sse, sst, _, _ = _climb(Vector(values, readouts, partners, placebo), readouts)
    total = sst.sum(1)[:, None]
    return np.asarray(1 - sse.sum(2) / np.where(total > 0, total, np.nan))


def _partners(
    codes: Stacked, placebo: Stacked | None, tokens: TokenFeatures
) -> Int64[np.ndarray, "partner target"]:
    """Return the placebo latents whose correlation with each target on fitted tokens is largest in size."""
    m, spec = codes.shape[1], tokens.spec
    if placebo is None or not spec.partners:
        return np.zeros((0, m), dtype=np.int64)
    step = -(-len(tokens.fit) // spec.partner_tokens)
    at = tokens.fit[::step]
    a, b = codes[at], placebo[at]
    n, k = len(at), min(spec.partners, placebo.shape[1])
    scale = (1 / np.maximum(np.sqrt(_variance(b, n)), 1e-20)).astype(np.float32)
    mean = np.asarray(b.mean(axis=0)).ravel()
    partners = np.empty((k, m), dtype=np.int64)
    for first in range(0, m, 512):
        part = a[:, first : first + 512]
        products = part.T @ b
        both = products if isinstance(products, np.ndarray) else products.toarray()
        both -= np.outer(np.asarray(part.mean(axis=0)).ravel() * n, mean)
        # the scale of the target changes no order
        both *= scale
        np.abs(both, out=both)
        partners[:, first : first + 512] = np.argpartition(both, -k, axis=1)[:, -k:].T
    return partners


def _variance(codes: Any, n: int) -> Float64[np.ndarray, " other"]:
    square = np.asarray(codes.multiply(codes).sum(axis=0, dtype=np.float64)).ravel() / n
    mean = np.asarray(codes.sum(axis=0, dtype=np.float64)).ravel() / n
    return np.asarray(square - mean**2)


def _climb(
    targets: Latents | Vector, readouts: Readouts
) -> tuple[
    Float64[np.ndarray, "portion rung target fold"],
    Float64[np.ndarray, "portion target fold"],
    Float64[np.ndarray, "portion solo target fold"],
    Bool[np.ndarray, "portion target fold"],
]:
    """Return sums of squared errors by rung, of the constant and of each predictor alone.

    The last array says which targets are active often enough to have an R2.
    """
    spec, text = readouts.tokens.spec, readouts.tokens.text
    portions = [targets.at(portion) for portion in range(len(text.fit))]
    fits = [fit(one, p, readouts, spec.penalties) for p, one in enumerate(portions)]
    m, names = len(portions[0].n_fitted), len(fits[0].names)
    errors = np.zeros((len(portions), names, m, 1 + text.n_groups))
    active = np.zeros((m, 1 + text.n_groups))
    for sums in readouts.score:
        group = 1 + sums.keys.block.group
        for portion, (one, fitted) in enumerate(zip(portions, fits, strict=True)):
            active[:, group], errors[portion, :, :, group] = one.errors(sums, fitted)
    for values in (errors, active):
        # until here each value is of one group; from here it is of all groups, then of all but one
        values[..., 0] = values[..., 1:].sum(-1)
        values[..., 1:] = values[..., :1] - values[..., 1:]
    fires = np.stack([one.n_fitted >= spec.least_active for one in portions])
    living = (active >= spec.least_active) & fires[:, :, None]
    rungs = len(RUNGS)
    return errors[:, :rungs], errors[:, 0], errors[:, rungs:], living


def _r2(
    sse: Float64[np.ndarray, "*#what target fold"],
    sst: Float64[np.ndarray, "*#what target fold"],
    living: Bool[np.ndarray, "*#what target fold"],
) -> Float64[np.ndarray, "..."]:
    """Return R2 from the sums of squared errors and of squares; NaN where either says too little."""
    usable = living & (sst > 0)
    return np.where(usable, 1 - sse / np.where(usable, sst, 1), np.nan)
