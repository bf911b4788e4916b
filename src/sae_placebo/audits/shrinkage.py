"""Shrinkage: reconstructions, and single latents, that are systematically too short or too long.

The length of a reconstruction alone does not show it: an unbiased reconstruction that explains a share EV of
the variance is sqrt(EV) times as long as the activation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from sae_placebo.audits.base import AUDITS, Audit, Audited, Case, Finding, Quantity, over_documents
from sae_placebo.audits.overlap import random_rows
from sae_placebo.causal.use.base import Directions, latent_directions
from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.spec import numpy_generator
from sae_placebo.stats.bootstrap import percentile_interval, resampled_units
from sae_placebo.stats.proportions import wilson
from sae_placebo.stats.quantiles import student_quantile

N_STRENGTHS = 4
"""Parts, equally many amounts in each, that a latent's amounts are sorted into by strength."""
MIN_FIRINGS = 30
"""The fewest tokens on which a latent must be active to have a scale of its own."""
_BLOCK = 1 << 18


@dataclass(frozen=True, eq=False)
class Scales:
    """The factors that latents' amounts should be multiplied by to fit the activations best.

    Attributes:
        scale: The factor s_j of each latent; NaN with fewer than `MIN_FIRINGS` tokens.
        half_width: Half the width of its 95% interval, by the jackknife over documents; NaN where it has
            no scale, or is active in one document alone.
        firings: Tokens that each latent is active on.
    """

    scale: Float64[np.ndarray, " latent"]
    half_width: Float64[np.ndarray, " latent"]
    firings: Int64[np.ndarray, " latent"]

    @property
    def known(self) -> Int64[np.ndarray, " known"]:
        """Latents with a scale and an interval."""
        return np.flatnonzero(np.isfinite(self.scale) & np.isfinite(self.half_width))


def run(case: Case) -> Audited:
    """Return gamma, the length ratio with its unbiased value as the null, and the scale of single latents.

    Raises:
        NotEstimable: no latent is active on any held-out token.
    """
    directions = latent_directions(case.reading)
    if directions.amounts.nnz == 0:
        raise NotEstimable("no latent is active on the held-out tokens: hold out more of them")
    findings = _gammas(case)
    amounts = directions.amounts.data.astype(np.float64)
    tokens = np.repeat(np.arange(case.n_tokens), np.diff(directions.amounts.indptr))
    error = case.error.numpy()
    along = amounts * projections(error, directions.vectors, tokens, directions.amounts.indices)
    scales = scales_of(directions, tokens, along, case.documents)
    # the null has the same amounts, tokens and errors, along directions that are nobody's
    random = numpy_generator(case.seed, "audit", "shrinkage", "directions")
    rows = random_rows(len(directions), directions.vectors.shape[1], random)
    aside = amounts * projections(error, rows, tokens, directions.amounts.indices)
    null = scales_of(directions, tokens, aside, case.documents)
    findings += _of_latents(scales, null, case.seed)
    findings += _by_strength(case, directions, tokens, along, aside)
    columns = {"scale": scales.scale, "scale_half_width": scales.half_width}
    return Audited(findings, columns)


def _gammas(case: Case) -> list[Finding]:
    """Return gamma with either center, and the ratio of lengths."""
    x, x_hat, bias = case.x.numpy(), case.reconstruction.numpy(), case.b_dec.numpy()
    n, findings = case.n_tokens, []
    for name, centers in (("mean", (x.mean(0), x_hat.mean(0))), ("b_dec", (bias, bias))):
        a, b = x - centers[0], x_hat - centers[1]
        parts = np.stack(
            [
                np.einsum("td,td->t", b, b, dtype=np.float64),
                np.einsum("td,td->t", a, b, dtype=np.float64),
                np.einsum("td,td->t", a, a, dtype=np.float64),
                np.einsum("td,td->t", a - b, a - b, dtype=np.float64),
            ]
        )
        gamma, reason = over_documents(_gamma, parts, case.documents, case.seed), ""
        if not math.isfinite(gamma[0]):
            gamma = math.nan, math.nan, math.nan
            reason = "the reconstruction is the same at every token: it has no size to compare"
        findings.append(Finding("shrinkage", f"gamma_{name}", *gamma, n, 1.0, reason=reason))
        if name == "mean":
            length = over_documents(_length, parts, case.documents, case.seed)
            unbiased = over_documents(_root_of_share, parts, case.documents, case.seed)
            findings.append(Finding("shrinkage", "length_ratio", *length, n, *unbiased))
    return findings


def _gamma(s: Float64[np.ndarray, "part replicate"]) -> Float64[np.ndarray, " replicate"]:
    """Return E|x_hat|^2 / E[x . x_hat]."""
    ratio = s[0] / np.where(s[1] != 0, s[1], np.nan)
    return np.asarray(np.where(s[0] > 0, ratio, np.nan))


def _length(s: Float64[np.ndarray, "part replicate"]) -> Float64[np.ndarray, " replicate"]:
    """Return the root of E|x_hat|^2 / E|x|^2."""
    return np.asarray(np.sqrt(s[0] / np.where(s[2] > 0, s[2], np.nan)))


def _root_of_share(s: Float64[np.ndarray, "part replicate"]) -> Float64[np.ndarray, " replicate"]:
    """Return the root of the explained variance, which is the length ratio without a bias."""
    explained = 1 - s[3] / np.where(s[2] > 0, s[2], np.nan)
    return np.asarray(np.sqrt(np.maximum(explained, 0)))


def projections(
    x: Float32[np.ndarray, "token d_in"],
    rows: Float32[np.ndarray, "latent d_in"],
    tokens: Int64[np.ndarray, " active"],
    latents: np.ndarray,
) -> Float64[np.ndarray, " active"]:
    """Return the product of a token's vector with a latent's row at each active pair of the two.

    Args:
        x: A vector for each token.
        rows: A row for each latent.
        tokens: The token of each active pair, ascending.
        latents: The latent of each active pair.
    """
    out = np.empty(len(tokens))
    for start in range(0, len(tokens), _BLOCK):
        part = slice(start, start + _BLOCK)
        out[part] = np.einsum("nd,nd->n", x[tokens[part]], rows[latents[part]])
    return out


def scales_of(
    directions: Directions,
    tokens: Int64[np.ndarray, " active"],
    along: Float64[np.ndarray, " active"],
    documents: np.ndarray,
) -> Scales:
    """Return s_j = 1 + sum_t a_tj e_t.d_j / sum_t a_tj^2 of each latent, and its interval over documents.

    Args:
        directions: Unit rows d_j and amounts a_tj (codes times decoder norms).
        tokens: The token of each amount.
        along: The amount a_tj times the error's projection e_t . d_j, for each amount.
        documents: The document of each token.
    """
    latents, amounts = directions.amounts.indices, directions.amounts.data.astype(np.float64)
    n = directions.amounts.shape[1]
    present, owner = np.unique(documents, return_inverse=True)
    squares = np.bincount(latents, amounts**2, n)
    firings = np.bincount(latents, minlength=n)
    enough = (firings >= MIN_FIRINGS) & (squares > 0)
    excess = np.divide(
        np.bincount(latents, along, n), squares, out=np.full(n, np.nan), where=enough
    )
    # what a document's tokens say beyond the common scale; documents are the independent draws
    rest = along - np.nan_to_num(excess)[latents] * amounts**2
    cell = latents.astype(np.int64) * len(present) + owner[tokens]
    sums = np.bincount(cell, rest, n * len(present)).reshape(n, len(present))
    seen = np.bincount(cell, minlength=n * len(present)).reshape(n, len(present)) > 0
    weight = np.bincount(cell, amounts**2, n * len(present)).reshape(n, len(present))
    count = seen.sum(1)
    ok = enough & (count >= 2)
    # the jackknife: how far s_j goes when a document is left out
    left = np.where(seen, squares[:, None] - weight, 1.0)
    moves = np.divide(sums, left, out=np.full(sums.shape, np.nan), where=left > 0)
    moves = np.where(seen, moves, 0)
    center = moves.sum(1, keepdims=True) / np.maximum(count, 1)[:, None]
    spread = (np.where(seen, moves - center, 0) ** 2).sum(1) * (count - 1) / np.maximum(count, 1)
    half = student_quantile(np.maximum(count - 1, 1)) * np.sqrt(spread)
    half = np.where(ok, half, np.nan)
    return Scales(1 + excess, half, firings.astype(np.int64))


def _of_latents(scales: Scales, null: Scales, seed: int) -> list[Finding]:
    """Return the median and spread of scales, and the shares of latents that are shrunk or overshoot."""
    known = scales.known
    names = ("scale_median", "scale_spread", "share_shrunk", "share_overshot")
    if len(known) == 0:
        reason = f"no latent is active on {MIN_FIRINGS} tokens of 2 documents: hold out more tokens"
        return [Finding("shrinkage", name, math.nan, of="latents", reason=reason) for name in names]
    n, values, nulls = len(known), scales.scale[known], null.scale[known]
    random = numpy_generator(seed, "audit", "shrinkage", "latents")
    draws = resampled_units(random, n, 400)
    findings = []
    for name, statistic in (("scale_median", np.median), ("scale_spread", _quartile_range)):
        value, by_chance = (float(statistic(column, axis=0)) for column in (values, nulls))
        bounds = percentile_interval(statistic(values[draws], axis=1))
        findings.append(Finding("shrinkage", name, value, *bounds, n, by_chance, of="latents"))
    for name, sign in (("share_shrunk", 1), ("share_overshot", -1)):
        hits, by_chance = _beyond(scales, known, sign), _beyond(null, known, sign) / n
        bounds = wilson(hits, n)
        findings.append(Finding("shrinkage", name, hits / n, *bounds, n, by_chance, of="latents"))
    return findings


def _quartile_range(values: np.ndarray, axis: int) -> np.ndarray:
    low, high = np.quantile(values, [0.25, 0.75], axis=axis)
    return np.asarray(high - low)


def _beyond(scales: Scales, known: Int64[np.ndarray, " known"], sign: int) -> int:
    """Return how many latents' intervals lie above 1, or below 1 where the sign is -1."""
    return int((sign * (scales.scale[known] - 1) > scales.half_width[known]).sum())


def strengths(directions: Directions) -> Int64[np.ndarray, " active"]:
    """Return which fourth of its latent's amounts, sorted by size, each amount is in; 0 is the weakest."""
    latents = directions.amounts.indices
    order = np.lexsort((directions.amounts.data, latents))
    counts = np.bincount(latents, minlength=directions.amounts.shape[1])
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    rank = np.arange(len(order)) - starts
    out = np.empty(len(order), dtype=np.int64)
    out[order] = rank * N_STRENGTHS // np.repeat(counts, counts)
    return out


def _by_strength(
    case: Case,
    directions: Directions,
    tokens: Int64[np.ndarray, " active"],
    along: Float64[np.ndarray, " active"],
    aside: Float64[np.ndarray, " active"],
) -> list[Finding]:
    """Return the scale of all latents' amounts together, for each fourth of the strengths."""
    level, squares = strengths(directions), directions.amounts.data.astype(np.float64) ** 2
    n = case.n_tokens

    def scale(s: Float[np.ndarray, "part replicate"]) -> Float64[np.ndarray, " replicate"]:
        return np.asarray(1 + s[0] / np.where(s[1] > 0, s[1], np.nan))

    name, of, findings = "scale_by_strength", "activations", []
    for part in range(N_STRENGTHS):
        inside = level == part
        sums = [
            np.bincount(tokens[inside], values[inside], n).astype(np.float64)
            for values in (along, squares, aside)
        ]
        value = over_documents(scale, np.stack(sums[:2]), case.documents, case.seed)
        null = over_documents(scale, np.stack([sums[2], sums[1]]), case.documents, case.seed)
        at, count = (part + 0.5) / N_STRENGTHS, int(inside.sum())
        reason = "" if math.isfinite(value[0]) else "no activation is of this strength"
        findings.append(Finding("shrinkage", name, *value, count, *null, at, of, reason))
    return findings


_SCALE = (
    "s_j = argmin over s of E|e + (1 - s) a_j d_j|^2 over the tokens where latent j is active, "
    "with the "
    "error e, unit decoder row d_j and amount a_j = code times decoder norm: above 1, the latent "
    "is too weak"
)
AUDITS.add(
    Audit(
        name="shrinkage",
        title="Shrinkage",
        question="Is what the SAE reconstructs systematically too small?",
        source="gamma: Rajamanoharan et al. 2024 (arXiv 2404.16014). Differs: both sides are "
        "centered. "
        "Scale of a latent and its dependence on strength: after Wright and Sharkey 2024, here in "
        "closed "
        "form. Intervals over documents are ours.",
        quantities=(
            Quantity(
                "gamma_mean",
                "1",
                "neither",
                "1: unbiased, whatever is missing; below 1: shrinkage",
                "E|x_hat|^2 / E[x . x_hat], each centered by its own mean",
                "Below 1, divide the codes by gamma or train with a gated, TopK or JumpReLU SAE "
                "before you "
                "compare sizes of effects.",
            ),
            Quantity(
                "gamma_b_dec",
                "1",
                "neither",
                "1: unbiased, whatever is missing; below 1: shrinkage",
                "E|x_hat|^2 / E[x . x_hat], both less b_dec",
                "If it differs from the one centered by means, b_dec is not where the codes are "
                "zero on "
                "average: read sizes from the centered one.",
            ),
            Quantity(
                "length_ratio",
                "1",
                "neither",
                "sqrt(explained variance), the ratio of an unbiased reconstruction",
                "root of E|x_hat|^2 / E|x|^2, each centered by its own mean",
                "Never read this as shrinkage: only its distance to the null beside it is.",
            ),
            Quantity(
                "scale_median",
                "1",
                "neither",
                "the same along random directions, with the same amounts and errors: about 1",
                f"median over latents of {_SCALE}",
                "Above 1, steer and ablate with codes times this number.",
            ),
            Quantity(
                "scale_spread",
                "1",
                "lower",
                "the same along random directions: what noise alone spreads",
                f"distance of the quartiles over latents of {_SCALE}",
                "If it is well above its null, no single factor repairs the SAE: rescale latent "
                "by latent.",
            ),
            Quantity(
                "share_shrunk",
                "share",
                "lower",
                "the same along random directions: about .025",
                "share of latents whose interval of s_j lies above 1",
                "Multiply the codes of these latents by their s_j before comparing strengths "
                "across latents.",
            ),
            Quantity(
                "share_overshot",
                "share",
                "lower",
                "the same along random directions: about .025",
                "share of latents whose interval of s_j lies below 1",
                "These latents add more than is there: suspect that they stand in for others "
                "active with them.",
            ),
            Quantity(
                "scale_by_strength",
                "1",
                "neither",
                "the same along random directions: about 1 at every strength",
                "s over the activations in one fourth of their latent's strengths, all latents "
                "pooled; the "
                "place is the middle of that fourth",
                "If weak activations have another scale than strong ones, do not read a doubled "
                "code as a "
                "doubled feature.",
                along="quarter of the strengths, its middle",
            ),
        ),
        run=run,
    ),
)
