"""The ladder: how much of a latent predictors of increasing complexity explain on held-out documents.

Rungs are nested: each has all predictors of the rungs before it. Lookup tables and ridge readouts are fitted
on one set of documents. The weight of each predictor, per latent and anew at each rung, and the ridge penalty
are chosen on a second set, and R2 is taken on a third. What the last rungs leave is accounted for neither by
anything simpler nor by another model that is read linearly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64

from sae_placebo.latents.base import Columns, Encoded, Folds, Placebo
from sae_placebo.latents.ladder.chosen_penalties import readout, weigh
from sae_placebo.latents.ladder.inner_products import (
    N_LOOKUPS,
    PAIR,
    POSITION,
    PREVIOUS,
    TOKEN,
    Fitted,
    PieceProducts,
)
from sae_placebo.latents.ladder.predictors import Readouts
from sae_placebo.latents.ladder.targets import Latents
from sae_placebo.latents.ladder.token_features import LadderSpec, TokenFeatures
from sae_placebo.latents.ladder.vectors import Vector

RUNGS = (
    *("constant", "position", "token", "pair", "bag", "window"),
    *("placebo_readout", "placebo_latents"),
)
NO_PLACEBO = "there is no placebo beside this SAE"
_LATENTS_AT_ONCE = 8_192
READOUTS = ("bag_alone", "bag", "window", "placebo_readout")
_SOLO = ("r2_position", "r2_token", "r2_previous", "r2_pair", "r2_bag")


@dataclass(frozen=True, eq=False)
class Ladder:
    """Held-out R2 by rung; NaN where a latent has none.

    Attributes:
        rungs: Names of the rungs, from the constant upwards.
        r2: R2 of each latent; fold g + 1 is without the scored documents of group g, with nothing refitted.
        whole: R2 of the activation vector, its dimensions weighted by their variance.
        solo: `r2_position`, `r2_token`, `r2_previous`, `r2_pair` and `r2_bag` of each predictor alone, over
            the constant; and `r2_window`, which is the rung "window".
        reasons: Why a rung cannot be estimated, by rung.
        features: What stands for a token in bags and windows.
    """

    rungs: tuple[str, ...]
    r2: Float[np.ndarray, "rung latent fold"]
    whole: Float[np.ndarray, "rung fold"]
    solo: Columns
    reasons: dict[str, str]
    features: str

    def mean(self) -> Float64[np.ndarray, "rung fold"]:
        """Return each rung's mean R2 over the latents that have one at the rung "constant"."""
        living = np.isfinite(self.r2[0, :, 0])
        if not living.any():
            return np.full((len(self.rungs), self.r2.shape[2]), np.nan)
        values = self.r2[:, living]
        n = np.isfinite(values).sum(1)
        return np.asarray(np.where(n > 0, np.nansum(values, axis=1) / np.maximum(n, 1), np.nan))


def ladder(
    reading: Encoded,
    folds: Folds,
    embeddings: Float[np.ndarray, "vocabulary d_embed"] | None,
    placebo: Placebo | None,
    seed: int,
    spec: LadderSpec,
    readouts: Readouts | None = None,
    whole: Float[np.ndarray, "rung fold"] | None = None,
) -> Ladder:
    """Return R2 by rung of every latent, and of the activation vector as a whole.

    R2 = 1 - SSE / SST, with SST about the mean over the fitted documents. It is not clipped: below 0 a
    prediction is worse than a constant. A rung's prediction is the mean plus a weighted sum of three things:
    what the position's bin, the current token and the pair of tokens add (lookup tables, backed off to one
    another); one ridge readout of all dense features up to the rung together; and, on the last rung, the
    placebo latents that correlate most with the latent on the fitted documents. The weights are least squares
    on the documents to choose on (`ridge.weigh`), and the ridge penalty is chosen there, both per latent. A
    table's prior is fixed.

    Deviations from a stagewise fit: the weights of lower rungs are chosen anew at each rung, and a readout is
    fitted beside the table of tokens (the token's mean is subtracted from its features), not to a table's
    residuals, which are too small on the documents that the table was counted on.

    Args:
        reading: The SAE on the held-out tokens.
        folds: Groups of documents, and the purpose that each document serves.
        embeddings: The trained model's W_E; None for fixed random rows by token.
        placebo: The other model at the same tokens; None for none.
        seed: It names the draw of the random rows.
        spec: Settings.
        readouts: `Readouts.of(TokenFeatures.of(...), placebo.activations)`, where it is computed already.
        whole: `whole_ladder` of the same activations and placebo, where it is computed already.

    Raises:
        NotEstimable: no documents to fit, choose or score on.
    """
    if readouts is None:
        tokens = TokenFeatures.of(reading.tokens, folds, embeddings, seed, spec)
        readouts = Readouts.of(tokens, None if placebo is None else placebo.activations)
    others = None if placebo is None else placebo.codes.tocsr()
    parts = []
    for first in range(0, reading.d_sae, _LATENTS_AT_ONCE):
        codes = reading.codes
        if reading.d_sae > _LATENTS_AT_ONCE:
            codes = reading.by_latent[:, first : first + _LATENTS_AT_ONCE].tocsr()
        partners = _partners(codes, others, readouts.tokens, spec)
        parts.append(_climb(Latents(codes, readouts, partners, others), readouts, spec))
    sse, sst, solo, living = (np.concatenate(part, axis=-2) for part in zip(*parts, strict=True))
    r2 = _r2(sse, sst, living)
    alone = dict(zip(_SOLO, _r2(solo, sst, living), strict=True))
    alone["r2_window"] = r2[RUNGS.index("window")]
    if whole is None:
        whole = whole_ladder(reading.activations.float().cpu().numpy(), readouts, others, spec)
    reasons = {} if placebo is not None else dict.fromkeys(RUNGS[-2:], NO_PLACEBO)
    return Ladder(RUNGS, r2, whole, alone, reasons, readouts.tokens.source)


def no_ladder(n_latents: int, n_folds: int, reason: str) -> Ladder:
    """Return a ladder whose values are all NaN, with the reason why.

    Args:
        n_latents: Number of latents of the SAE.
        n_folds: Number of folds, the one with all documents included.
        reason: Why no rung can be estimated.
    """
    r2 = np.full((len(RUNGS), n_latents, n_folds), np.nan)
    solo = {name: r2[0].copy() for name in (*_SOLO, "r2_window")}
    return Ladder(RUNGS, r2, r2[:, 0].copy(), solo, dict.fromkeys(RUNGS, reason), "nothing")


def whole_ladder(
    values: Float[np.ndarray, "token target"], readouts: Readouts, placebo: Any, spec: LadderSpec
) -> Float64[np.ndarray, "rung fold"]:
    """Return R2 by rung of a vector, which is 1 - total SSE / total SST over its dimensions.

    Args:
        values: The vectors at the tokens.
        readouts: Features of the same tokens, with the placebo's if there is one.
        placebo: Codes of the placebo, CSR [token, placebo latent], or None.
        spec: Settings.
    """
    dense = np.asarray(values, dtype=np.float32)
    partners = _partners(dense, placebo, readouts.tokens, spec)
    sse, sst, _, _ = _climb(Vector(dense, readouts, partners, placebo), readouts, spec)
    total = sst.sum(0)
    return np.asarray(1 - sse.sum(1) / np.where(total > 0, total, np.nan))


def _partners(
    codes: Any, placebo: Any, tokens: TokenFeatures, spec: LadderSpec
) -> Int64[np.ndarray, "partner target"]:
    """Return the placebo latents whose correlation with each target on fitted tokens is largest in size."""
    m = codes.shape[1]
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
    targets: Latents | Vector, readouts: Readouts, spec: LadderSpec
) -> tuple[
    Float64[np.ndarray, "rung target fold"],
    Float64[np.ndarray, "target fold"],
    Float64[np.ndarray, "solo target fold"],
    Bool[np.ndarray, "target fold"],
]:
    """Return sums of squared errors by rung, of the constant and of each predictor alone.

    The last array says which targets are active often enough to have an R2.
    """
    fitted = _fitted(targets, targets.moments(readouts.choose), readouts, spec)
    m, n_groups = len(targets.n_fitted), readouts.tokens.n_groups
    errors = np.zeros((len(fitted.names), m, 1 + n_groups))
    active = np.zeros((m, 1 + n_groups))
    for sums in readouts.score:
        group = 1 + sums.keys.block.group
        active[:, group], errors[:, :, group] = targets.errors(sums, fitted)
    for values in (errors, active):
        # until here each value is of one group; from here it is of all groups, then of all but one
        values[..., 0] = values[..., 1:].sum(-1)
        values[..., 1:] = values[..., :1] - values[..., 1:]
    living = active >= spec.least_active
    living[targets.n_fitted < spec.least_active] = False
    return errors[: len(RUNGS)], errors[0], errors[len(RUNGS) :], living


def _fitted(
    targets: Latents | Vector, chosen: PieceProducts, readouts: Readouts, spec: LadderSpec
) -> Fitted:
    """Return the fitted predictions, without those of a placebo where there is none."""
    events = chosen.squares**2 / np.maximum(chosen.fourths, 1e-300)
    m, k = chosen.gram.shape[:2]
    # the products are computed once for all readouts
    products = tuple(chosen.products(slice(0, m)))
    chosen = replace(chosen, products=lambda rows: [product[rows] for product in products])
    gram = chosen.with_room(len(READOUTS))
    fitted: list[tuple[slice, Any] | None] = [None] * len(READOUTS)
    pair, partners = (POSITION, TOKEN, PAIR), tuple(range(N_LOOKUPS, k))
    weights = {"constant": np.zeros((m, gram.shape[1]))}

    def weighed(*pieces: int) -> Float64[np.ndarray, "target piece"]:
        return weigh(gram, np.eye(gram.shape[1])[list(pieces)], events)

    weights["position"], weights["token"] = weighed(POSITION), weighed(POSITION, TOKEN)
    weights["pair"] = below = weighed(*pair)
    for i, name in enumerate(READOUTS):
        reading = readouts.readings.get(name)
        if reading is None:
            continue
        left = products[0]
        if name in RUNGS:
            left = _left(products, chosen.features, below, fitted)
        b = readout(reading, targets.fitted, left, chosen.features, spec.penalties)
        fitted[i] = reading.columns, b
        chosen.put(gram, {i: (reading.columns, b)})
        if name in RUNGS:
            weights[name] = below = weighed(*pair, k + i)
            if name == "placebo_readout":
                weights["placebo_latents"] = weighed(*pair, k + i, *partners)
        else:
            weights["r2_bag"] = weighed(k + i)
    weights["r2_position"], weights["r2_token"] = weighed(POSITION), weighed(TOKEN)
    weights["r2_previous"] = weighed(PREVIOUS)
    # the table of pairs predicts what tokens add plus what pairs add to them, as one piece
    both = np.eye(gram.shape[1])[[TOKEN, PAIR]].sum(0, keepdims=True)
    weights["r2_pair"] = weigh(gram, both, events)
    return Fitted((*RUNGS, *_SOLO), weights, tuple(fitted), k - N_LOOKUPS)


def _left(
    products: Sequence[Float32[np.ndarray, "target feature"]],
    features: Float64[np.ndarray, "feature feature"],
    weights: Float64[np.ndarray, "target piece"],
    readouts: Sequence[tuple[slice, Any] | None],
) -> Float32[np.ndarray, "target feature"]:
    """Return X'r, with r what a rung leaves of each target on the tokens to choose on."""
    of = weights.astype(np.float32)
    left: Float32[np.ndarray, "target feature"] = products[0].copy()
    for piece in (POSITION, TOKEN, PAIR):
        left -= of[:, piece, None] * products[piece]
    for i, read in enumerate(readouts, of.shape[1] - len(readouts)):
        if read is not None and of[:, i].any():
            columns, b = read
            left -= (of[:, i, None] * b) @ features[columns].astype(np.float32)
    return left


def _r2(
    sse: Float64[np.ndarray, "what target fold"],
    sst: Float64[np.ndarray, "target fold"],
    living: Bool[np.ndarray, "target fold"],
) -> Float64[np.ndarray, "what target fold"]:
    """Return R2 from the sums of squared errors and of squares; NaN where either says too little."""
    usable = living & (sst > 0)
    return np.where(usable, 1 - sse / np.where(usable, sst, 1), np.nan)
