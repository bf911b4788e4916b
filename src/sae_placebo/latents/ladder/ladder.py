"""The ladder: how much of a latent each ever less simple predictor explains on held-out documents.

Rungs are nested: each has all predictors before it. Lookup tables and ridge readouts are fitted on one
set of documents; the weight of each predictor, per latent and anew at each rung, and the ridge penalty
are chosen on a second; R2 is taken on a third. What the last rungs leave is what nothing simpler, and no
other model read linearly, accounts for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64

from sae_placebo.latents.base import Columns, Encoded, Folds, Placebo
from sae_placebo.latents.ladder.pieces import (
    N_LOOKUPS,
    PAIR,
    POSITION,
    PREVIOUS,
    TOKEN,
    Fitted,
    PieceProducts,
)
from sae_placebo.latents.ladder.predictors import Readouts
from sae_placebo.latents.ladder.ridge import readout, weigh
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
        r2: Of each latent; fold g + 1 is without the scored documents of group g, nothing refitted.
        whole: Of the activation vector, dimensions weighted by their variance.
        solo: `r2_position`, `r2_token`, `r2_previous`, `r2_pair`, `r2_bag`: each alone, over the
            constant; and `r2_window`, the rung "window".
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

    R2 = 1 - SSE / SST, SST about the fitted documents' mean, not clipped: below 0 it is worse than a
    constant. A rung's prediction is the mean plus a weighted sum of: what the position's bin, the
    current token and the pair of tokens add (lookup tables, backed off to one another); one ridge
    readout, jointly of all dense features up to the rung; for the last rung, the placebo latents most
    correlated with it on the fitted documents. Weights are least squares on the documents to choose on
    (`ridge.weigh`), per latent; the ridge penalty is chosen there per latent; a table's prior is fixed.

    Deviations from a stagewise fit: the weights of lower rungs are chosen anew at each rung, and a
    readout is fitted beside the table of tokens (whose mean is taken off its features), not to a
    table's residuals, which are too small on the documents that the table was counted on.

    Args:
        reading: The SAE on the held-out tokens.
        folds: Groups, and which documents serve what.
        embeddings: The trained model's W_E; None for fixed random rows by token.
        placebo: The other model at the same tokens; None for none.
        seed: Of random rows and of the tokens on which placebo latents are looked for.
        spec: Settings.
        readouts: `Readouts.of(TokenFeatures.of(...), placebo.activations)`, where they are at hand.
        whole: `whole_ladder` of the same activations and placebo, where it is at hand.

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
    sse, sst, solo, living = (np.concatenate(found, axis=-2) for found in zip(*parts, strict=True))
    r2 = _r2(sse, sst, living)
    alone = dict(zip(_SOLO, _r2(solo, sst, living), strict=True))
    alone["r2_window"] = r2[RUNGS.index("window")]
    if whole is None:
        whole = whole_ladder(reading.activations.float().cpu().numpy(), readouts, others, spec)
    reasons = {} if placebo is not None else dict.fromkeys(RUNGS[-2:], NO_PLACEBO)
    return Ladder(RUNGS, r2, whole, alone, reasons, readouts.tokens.source)


def no_ladder(n_latents: int, n_folds: int, reason: str) -> Ladder:
    """Return a ladder of which nothing is known, and why.

    Args:
        n_latents: Latents of the SAE.
        n_folds: Folds, the whole among them.
        reason: Why no rung can be estimated.
    """
    r2 = np.full((len(RUNGS), n_latents, n_folds), np.nan)
    solo = {name: r2[0].copy() for name in (*_SOLO, "r2_window")}
    return Ladder(RUNGS, r2, r2[:, 0].copy(), solo, dict.fromkeys(RUNGS, reason), "nothing")


def whole_ladder(
    values: Float[np.ndarray, "token target"], readouts: Readouts, placebo: Any, spec: LadderSpec
) -> Float64[np.ndarray, "rung fold"]:
    """Return R2 by rung of a vector: 1 - total SSE / total SST over its dimensions.

    Args:
        values: The vectors at the tokens.
        readouts: Features of the same tokens, with the placebo's if there is one.
        placebo: CSR [token, placebo latent], or None.
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
    """Return the placebo latents most correlated, in size, with each target on fitted tokens."""
    m = codes.shape[1]
    if placebo is None or not spec.partners:
        return np.zeros((0, m), dtype=np.int64)
    step = -(-len(tokens.fit) // spec.partner_tokens)
    at = tokens.fit[::step]
    a, b = codes[at], placebo[at]
    n, k = len(at), min(spec.partners, placebo.shape[1])
    scale = (1 / np.maximum(np.sqrt(_variance(b, n)), 1e-20)).astype(np.float32)
    mean = np.asarray(b.mean(axis=0)).ravel()
    found = np.empty((k, m), dtype=np.int64)
    for first in range(0, m, 512):
        part = a[:, first : first + 512]
        products = part.T @ b
        both = products if isinstance(products, np.ndarray) else products.toarray()
        both -= np.outer(np.asarray(part.mean(axis=0)).ravel() * n, mean)
        # the scale of the target changes no order
        both *= scale
        np.abs(both, out=both)
        found[:, first : first + 512] = np.argpartition(both, -k, axis=1)[:, -k:].T
    return found


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
    """Return squared errors by rung, of the constant and of each predictor alone, and who lives."""
    fitted = _fitted(targets, targets.moments(readouts.choose), readouts, spec)
    m, n_groups = len(targets.n_fitted), readouts.tokens.n_groups
    errors = np.zeros((len(fitted.names), m, 1 + n_groups))
    active = np.zeros((m, 1 + n_groups))
    for sums in readouts.score:
        group = 1 + sums.keys.block.group
        active[:, group], errors[:, :, group] = targets.errors(sums, fitted)
    for values in (errors, active):
        # of each group until here; now all of them, then all but one
        values[..., 0] = values[..., 1:].sum(-1)
        values[..., 1:] = values[..., :1] - values[..., 1:]
    living = active >= spec.least_active
    living[targets.n_fitted < spec.least_active] = False
    return errors[: len(RUNGS)], errors[0], errors[len(RUNGS) :], living


def _fitted(
    targets: Latents | Vector, chosen: PieceProducts, readouts: Readouts, spec: LadderSpec
) -> Fitted:
    """Return the fitted predictions; those of a placebo that is not there are left out."""
    events = chosen.squares**2 / np.maximum(chosen.fourths, 1e-300)
    m, k = chosen.gram.shape[:2]
    # once for all readouts
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
    # what pairs add to tokens, and tokens: the table of pairs
    both = np.eye(gram.shape[1])[[TOKEN, PAIR]].sum(0, keepdims=True)
    weights["r2_pair"] = weigh(gram, both, events)
    return Fitted((*RUNGS, *_SOLO), weights, tuple(fitted), k - N_LOOKUPS)


def _left(
    products: Sequence[Float32[np.ndarray, "target feature"]],
    features: Float64[np.ndarray, "feature feature"],
    weights: Float64[np.ndarray, "target piece"],
    readouts: Sequence[tuple[slice, Any] | None],
) -> Float32[np.ndarray, "target feature"]:
    """Return X'r of what a rung leaves over."""
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
    usable = living & (sst > 0)
    return np.where(usable, 1 - sse / np.where(usable, sst, 1), np.nan)
