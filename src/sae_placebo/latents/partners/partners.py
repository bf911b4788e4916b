"""Whether another SAE has the same latent: the best partner by activation on the same tokens.

Decoder rows of two models are in unrelated bases, so that a cosine between them says nothing, while the
activations of two latents on the same tokens can always be compared. The work grows with the pairs of latents
that are active on the same token, about tokens x L0 x L0. No array of latent x latent is held: each latent of
a is compared with all of b in one row of memory.

A best partner is a maximum over thousands of candidates, and is large for that reason alone. It is therefore
given with two nulls: what the same codes reach when one side is moved in time, and what the same firing rates
reach when latents fire independently.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int32, Int64, Integer
from pydantic import Field

from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.core.spec import Spec, numpy_generator
from sae_placebo.latents.base import Columns, Folds
from sae_placebo.latents.partners.products import Products


class PartnerSpec(Spec):
    """When a latent counts as having a partner, and what its null is."""

    threshold: float = Field(0.5, gt=0, le=1)
    """Least correlation of a partner; .5 is a quarter of the variance in common."""
    null_quantile: float = Field(0.95, gt=0, lt=1)
    """Quantile of the null among latents of similar firing rate, which a partner must reach as well."""
    strata: int = Field(10, ge=1)
    """Number of groups of latents by firing rate, of equal size; there are fewer where latents are few."""
    latents_per_stratum: int = Field(40, ge=1)
    """Fewest latents in a group; with fewer, a quantile of the null would be too uncertain."""
    shift: Literal["within_documents", "stream"] = "within_documents"
    """How b's tokens are moved for the null. `within_documents` rotates each document by a random offset, so
    that both sides still read the same document; `stream` rotates all tokens by at least the length of the
    longest document, so that they do not."""


@dataclass(frozen=True, eq=False)
class Partners:
    """The best partner of every latent of a among the latents of b.

    Attributes:
        partner: [latent] the latent of b; -1 where a's latent never fires (or none of b's does).
        correlation: [latent, fold] Pearson correlation of activations over all tokens with that partner,
            which is chosen on all documents and not again in each fold; NaN without a partner.
        jaccard: [latent, fold] number of tokens on which both fire, divided by that on which either does.
        f1: [latent, fold] 2 x both / (firings of a + firings of b).
        f1_null: [latent] F1 of independent firing at these two rates, 2 p q / (p + q).
        shifted: [latent] the null: correlation with the best partner when b is moved in time.
        by_rate: [latent] expected correlation of *firing* with the best of b's latents if all of
            these fired independently of a's, at their own rates.
        n_active: [latent] number of tokens on which a's latent fires.
        n_tokens: Number of tokens.
        reason: Why `shifted` is NaN; None where it is not.
    """

    partner: Int32[np.ndarray, " latent"]
    correlation: Float[np.ndarray, "latent fold"]
    jaccard: Float[np.ndarray, "latent fold"]
    f1: Float[np.ndarray, "latent fold"]
    f1_null: Float[np.ndarray, " latent"]
    shifted: Float[np.ndarray, " latent"]
    by_rate: Float[np.ndarray, " latent"]
    n_active: Int64[np.ndarray, " latent"]
    n_tokens: int
    reason: str | None

    @property
    def columns(self) -> Columns:
        """The statistics that have a value on each fold, by name."""
        return {
            "partner_correlation": self.correlation,
            "partner_jaccard": self.jaccard,
            "partner_f1": self.f1,
        }

    def null_share(self, threshold: float) -> float:
        """Return the share, among latents that fire, of those whose null reaches `threshold`.

        Raises:
            NotEstimable: there is no null, or no latent fires.
        """
        known = self.shifted[np.isfinite(self.shifted)]
        if not len(known):
            raise NotEstimable(self.reason or "no latent fires")
        return float(np.mean(known >= threshold))


def best_partners(
    a: Any,
    b: Any,
    documents: Integer[np.ndarray, " token"],
    folds: Folds,
    spec: PartnerSpec | None = None,
    seed: int = 0,
    threads: int = 1,
) -> Partners:
    """Return the best partner of each latent of `a` in `b`, with its nulls.

    Dead latents of b are no candidates. Candidates that never fire together with a's latent have a
    correlation a little below 0, and where there are no others, the largest of these is taken. Ties go to the
    first latent.

    Memory holds the codes, `a` again by latent, 24 bytes x (latents of a and b) x groups, and one number per
    latent of b and thread; without compiled loops, it also holds blocks of 32 MB.

    Args:
        a: Codes, scipy CSR or CSC [token, latent]; CSC, such as `Encoded.by_latent`, saves a sort.
        b: Codes of the other SAE on the same tokens, scipy CSR.
        documents: Document of each token, ascending.
        folds: Groups of documents.
        spec: How b is moved for the null.
        seed: It names the null's draw.
        threads: Number of threads of the compiled loops; the result does not depend on it.

    Raises:
        SpecError: the numbers of tokens differ, or documents are not in order.

    Source: the measure is that of Bricken et al. (2023), "universality": the largest Pearson
    correlation over tokens. Deviations: it is exact over all tokens, and has folds and both nulls.
    """
    if not a.shape[0] == b.shape[0] == len(documents):
        raise SpecError(
            f"codes of {a.shape[0]} and {b.shape[0]} tokens and documents of {len(documents)} cannot be "
            "paired: read all three from the same held-out tokens"
        )
    spec = spec or PartnerSpec()
    group = folds.groups[documents].astype(np.int64)
    n_group = np.bincount(group, minlength=folds.n_groups).astype(np.float64)
    products = Products(a, b, group, folds.n_groups, threads)
    partner = products.best(np.arange(len(documents)))[0]
    shifted, reason = np.full(a.shape[1], np.nan), None
    try:
        null_partner, score = products.best(moved(documents, spec.shift, seed))
        scale = products.scale_a
        ok = (null_partner >= 0) & (scale > 0)
        shifted[ok] = score[ok] * scale[ok] / len(documents)
    except NotEstimable as why:
        reason = str(why)
    both = products.pairs(partner)
    sums = np.stack([*products.sums_a, *products.sums_b[:, :, partner], *(part.T for part in both)])
    whole = sums.sum(axis=1, keepdims=True)
    n = np.concatenate([[n_group.sum()], n_group.sum() - n_group])
    # [sum, fold, latent]
    values = np.concatenate([whole, whole - sums], axis=1)
    correlation, jaccard, f1 = _agreement(values, n[:, None])
    silent = partner < 0
    for column in (correlation, jaccard, f1):
        column[:, silent] = np.nan
    rates = whole[[2, 5], 0] / len(documents)
    with np.errstate(invalid="ignore"):
        f1_null = np.where(silent, np.nan, 2 * rates[0] * rates[1] / (rates[0] + rates[1]))
    n_active = np.rint(products.sums_a[2].sum(axis=0)).astype(np.int64)
    return Partners(
        partner=partner,
        correlation=np.ascontiguousarray(correlation.T),
        jaccard=np.ascontiguousarray(jaccard.T),
        f1=np.ascontiguousarray(f1.T),
        f1_null=f1_null,
        shifted=shifted,
        by_rate=independent_best(n_active, products.sums_b[2].sum(axis=0), len(documents)),
        n_active=n_active,
        n_tokens=len(documents),
        reason=reason,
    )


def _agreement(
    v: Float[np.ndarray, "sum fold latent"], n: Float[np.ndarray, "fold one"]
) -> tuple[Float[np.ndarray, "fold latent"], ...]:
    """Return correlation, Jaccard and F1, with NaN for 0/0.

    Args:
        v: Sums of a, of its squares and of its firings, the same of b, and sums of the products of a and b
            and of their joint firings.
        n: Number of tokens of each fold.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        cov = v[6] - v[0] * v[3] / n
        spread = (v[1] - v[0] ** 2 / n) * (v[4] - v[3] ** 2 / n)
        # a latent that is constant but for rounding has no correlation
        spread = np.where(spread > 1e-20 * v[1] * v[4], spread, np.nan)
        correlation = np.clip(cov / np.sqrt(spread), -1.0, 1.0)
        return correlation, v[7] / (v[2] + v[5] - v[7]), 2 * v[7] / (v[2] + v[5])


def thresholds(partners: Partners, spec: PartnerSpec | None = None) -> Float[np.ndarray, " latent"]:
    """Return the correlation from which each latent counts as having a partner; NaN where it never fires.

    It is the larger of `spec.threshold` and the null's quantile among latents of similar firing rate, since
    rare latents correlate more strongly by chance than frequent ones.

    Raises:
        NotEstimable: there is no null to take a quantile of.
    """
    spec = spec or PartnerSpec()
    known = np.flatnonzero(np.isfinite(partners.shifted))
    if not len(known):
        raise NotEstimable(partners.reason or "no latent fires, so none has a partner")
    n = max(1, min(spec.strata, len(known) // spec.latents_per_stratum))
    least = np.full(len(partners.partner), np.nan)
    order = known[np.argsort(partners.n_active[known], kind="stable")]
    for stratum in np.array_split(order, n):
        quantile = np.quantile(partners.shifted[stratum], spec.null_quantile, method="higher")
        least[stratum] = max(spec.threshold, float(quantile))
    return least


def has_partner(
    partners: Partners, spec: PartnerSpec | None = None
) -> Float[np.ndarray, "latent fold"]:
    """Return 1 where a latent has a partner, 0 where it has none, NaN where it never fires.

    The partner and the threshold are those of all documents in every fold; the correlation is not.

    Raises:
        NotEstimable: there is no null; see `Partners.reason`.
    """
    least = thresholds(partners, spec)[:, None]
    known = np.isfinite(partners.correlation) & np.isfinite(least)
    return np.where(known, (partners.correlation >= least).astype(np.float64), np.nan)


def null_has_partner(
    partners: Partners, spec: PartnerSpec | None = None
) -> Float[np.ndarray, " latent"]:
    """Return what `has_partner` returns for partners after b is moved in time; its mean is the null share.

    Raises:
        NotEstimable: there is no null; see `Partners.reason`.
    """
    least = thresholds(partners, spec)
    known = np.isfinite(least)
    return np.where(known, (partners.shifted >= least).astype(np.float64), np.nan)


def moved(
    documents: Integer[np.ndarray, " token"], shift: str, seed: int
) -> Int64[np.ndarray, " token"]:
    """Return which token of b is paired with each token of a in the null.

    Raises:
        SpecError: documents are not in order.
        NotEstimable: there are too few tokens, or documents too short, to move anything.
    """
    n = len(documents)
    if np.any(np.diff(documents) < 0):
        raise SpecError("documents are not in ascending order: sort tokens by document first")
    random = numpy_generator(seed, "moved partners", shift)
    starts = np.flatnonzero(np.diff(documents, prepend=documents[:1] - 1))
    lengths = np.diff(starts, append=n)
    if shift == "stream":
        longest = int(lengths.max(initial=0))
        if n < 2 * longest or n < 2:
            raise NotEstimable(
                f"the longest document has {longest} of {n} tokens: the stream cannot be moved past it"
            )
        offset = int(random.integers(longest, n - longest + 1))
        turned: Int64[np.ndarray, " token"] = (np.arange(n) + offset) % n
        return turned
    still = int(lengths[lengths < 2].sum())
    if n == 0 or still > 0.01 * n:
        raise NotEstimable(f"{still} of {n} tokens are alone in their document and cannot be moved")
    offsets = 1 + np.floor(random.random(len(lengths)) * np.maximum(lengths - 1, 0)).astype(
        np.int64
    )
    owner = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(n) - starts[owner]
    rotated: Int64[np.ndarray, " token"] = starts[owner] + (place + offsets[owner]) % lengths[owner]
    return rotated


def independent_best(
    n_a: Integer[np.ndarray, " latent"], n_b: Float[np.ndarray, " other"], n_tokens: int
) -> Float[np.ndarray, " latent"]:
    """Return the expected best correlation of firing if b's latents fire independently of a's.

    If one latent fires on n of T tokens and another on m, the number of tokens in common is about
    Binomial(min(n, m), max(n, m) / T), and the correlation of the two is (common - n m / T) over the
    root of n (1 - n/T) m (1 - m/T). The expected best over all m is the integral of 1 - the product of their
    distribution functions. It is computed at 12 sizes of n, interpolated linearly in log n, and at 24 sizes
    of m. NaN where n is 0 or T.

    Deviation: activations count as 0 or 1. A rare latent of b that fires strongly where a does can
    correlate more in activation than in firing.
    """
    expected: Float[np.ndarray, " latent"] = np.full(len(n_a), np.nan)
    fires, others = (n_a > 0) & (n_a < n_tokens), n_b[(n_b > 0) & (n_b < n_tokens)]
    if not fires.any() or not len(others):
        return expected
    from scipy.special import bdtr

    sizes = np.unique(np.geomspace(n_a[fires].min(), n_a[fires].max(), 12))
    edges = np.geomspace(others.min(), others.max() * (1 + 1e-9), 25)
    bins = np.clip(np.searchsorted(edges, others, side="right") - 1, 0, 23)
    weight = np.bincount(bins, minlength=24)
    m = np.bincount(bins, others, minlength=24)[weight > 0] / weight[weight > 0]
    # most of the change is near 0
    x = np.linspace(0, 1, 65)[:, None, None] ** 2
    n, m = sizes[None, :, None], m[None, None, :]
    spread = np.sqrt(n * (1 - n / n_tokens) * m * (1 - m / n_tokens))
    common = np.floor(n * m / n_tokens + x * spread)
    trials = np.maximum(np.rint(np.minimum(n, m)), 1).astype(np.int64)
    share = np.maximum(n, m) / n_tokens
    at_most = np.where(common < trials, bdtr(np.minimum(common, trials), trials, share), 1.0)
    with np.errstate(divide="ignore"):
        none_above = np.exp((np.log(at_most) * weight[weight > 0]).sum(axis=2))
    at_sizes = np.trapezoid(1 - none_above, x[:, 0, 0], axis=0)
    expected[fires] = np.interp(np.log(n_a[fires]), np.log(sizes), at_sizes)
    return expected
