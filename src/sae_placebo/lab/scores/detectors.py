"""How well a latent's firing detects the feature that it is matched to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int64

from sae_placebo.core.errors import NotEstimable
from sae_placebo.lab.scores.matching import Matching, code_matrix, same_tokens
from sae_placebo.saes import Codes
from sae_placebo.stats.proportions import wilson
from sae_placebo.stats.quantiles import mean_half_width

_FEWEST_FIRINGS = 20


@dataclass(frozen=True)
class LatentMean:
    """A mean over `n` latents with its 95% interval, and the mean of the null over the same latents."""

    value: float
    low: float
    high: float
    n: int
    null: float


@dataclass(frozen=True)
class SupportRecall:
    """Share of all active (token, feature) pairs, pooled, on which the feature's latent fires."""

    value: float
    low: float
    high: float
    n: int
    """Number of active pairs, which the interval takes as independent."""
    null: float
    """Share that the same rates reach by chance."""


@dataclass(frozen=True, eq=False)
class Detectors:
    """How well each latent detects the feature that it is matched to.

    Scores are NaN for a latent that has no feature, or never fires, or whose feature is never active.
    """

    target: Int64[np.ndarray, " latent"]
    """Feature that the latent is matched to; -1 where there is none."""
    precision: Float[np.ndarray, " latent"]
    recall: Float[np.ndarray, " latent"]
    f1: Float[np.ndarray, " latent"]
    null_f1: Float[np.ndarray, " latent"]
    """F1 that independence gives: 2 p q / (p + q), with the rates p of the feature and q of the latent."""
    firing_rate: Float[np.ndarray, " latent"]
    feature_rate: Float[np.ndarray, " latent"]
    threshold: Float[np.ndarray, " latent"]
    """Code above which F1 is best on the even tokens. It is NaN for fewer than 20 firings there, or where the
    feature is not active on both even and odd tokens."""
    f1_at_threshold: Float[np.ndarray, " latent"]
    """F1 of codes above the threshold, on the odd tokens."""
    support_recall: SupportRecall

    def mean(
        self, of: Literal["precision", "recall", "f1", "f1_at_threshold"] = "f1", dead: bool = False
    ) -> LatentMean:
        """Return the mean of a score over latents, which the interval takes as drawn from very many.

        Args:
            of: Score to average. Its null is what firing independently at the latent's rate reaches; that of
                `f1_at_threshold` is the null of `f1`.
            dead: Whether latents without a score count as 0; if not, they are left out.

        Raises:
            NotEstimable: fewer than two latents count.
        """
        values = getattr(self, of)
        null = self.null_f1
        if of == "precision":
            null = np.where(np.isfinite(values), self.feature_rate, np.nan)
        if of == "recall":
            null = np.where(np.isfinite(values), self.firing_rate, np.nan)
        if dead:
            values, null = np.nan_to_num(values), np.nan_to_num(null)
        known = np.isfinite(values)
        n = int(known.sum())
        if n < 2:
            raise NotEstimable(f"{n} latents fire and have a feature: a mean needs two or more")
        value = float(values[known].mean())
        half = mean_half_width(values[known])
        return LatentMean(value, value - half, value + half, n, float(np.nanmean(null[known])))


def detectors(
    found: Codes,
    true: Codes,
    matched: Matching,
    by: Literal["nearest", "assigned"] = "nearest",
) -> Detectors:
    """Return how well each latent's firing says whether its feature is active.

    Args:
        found: Codes of the SAE.
        true: True codes of the same tokens.
        matched: Matching of the same SAE and truth, by direction or by activation.
        by: Whether a latent's feature is the nearest one, which several latents may share, as in
            SynthSAEBench, or the one that it is assigned. Support recall always goes by assignment.

    Raises:
        SpecError: the numbers of tokens differ, so the codes are of different tokens.
        NotEstimable: no feature is active, or no latent fires.
    """
    same_tokens(found, true)
    target = matched.nearest if by == "nearest" else matched.feature
    fires, active = code_matrix(found, 0.0).tocsc(), code_matrix(true, 0.0).tocsc()
    n_tokens = found.n_tokens
    fired, on = np.diff(fires.indptr), np.diff(active.indptr)
    hits = _both(fires, active, target)
    p = np.where(target >= 0, on[target], np.nan) / n_tokens
    q = fired / n_tokens
    known = (fired > 0) & (target >= 0) & np.nan_to_num(p > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(known, hits / fired, np.nan)
        recall = np.where(known, hits / (p * n_tokens), np.nan)
        f1 = np.where(known, 2 * hits / (fired + p * n_tokens), np.nan)
        null = np.where(known, 2 * p * q / (p + q), np.nan)
    threshold, at_threshold = _swept(code_matrix(found).tocsc(), active, target)
    return Detectors(
        target=target,
        precision=precision,
        recall=recall,
        f1=f1,
        null_f1=null,
        firing_rate=q,
        feature_rate=p,
        threshold=threshold,
        f1_at_threshold=at_threshold,
        support_recall=_pooled(fires, active, matched),
    )


def _both(
    fires: Any, active: Any, target: Int64[np.ndarray, " latent"]
) -> Float[np.ndarray, " latent"]:
    """Return the number of tokens on which each latent fires while its feature is active."""
    latents = np.flatnonzero(target >= 0)
    both = np.zeros(len(target))
    together = fires[:, latents].multiply(active[:, target[latents]])
    both[latents] = np.asarray(together.sum(axis=0)).ravel()
    return both


def _pooled(fires: Any, active: Any, matched: Matching) -> SupportRecall:
    pairs = matched.pairs
    target = np.full(len(matched.feature), -1, dtype=np.int64)
    target[pairs[:, 0]] = pairs[:, 1]
    hits = float(_both(fires, active, target).sum())
    n_tokens = active.shape[0]
    on = np.diff(active.indptr).astype(np.float64)
    fired = np.diff(fires.indptr).astype(np.float64)
    n = int(on.sum())
    by_chance = float((on[pairs[:, 1]] * fired[pairs[:, 0]]).sum()) / n_tokens
    return SupportRecall(hits / n, *wilson(hits, n), n, by_chance / n)


def _swept(
    codes: Any, active: Any, target: Int64[np.ndarray, " latent"]
) -> tuple[Float[np.ndarray, " latent"], Float[np.ndarray, " latent"]]:
    """Return each latent's best threshold on even tokens, and its F1 on odd ones.

    All thresholds between any two codes that occur are tried. The tokens that chose a threshold cannot say
    how good it is, so the other half does.
    """
    threshold, score = np.full(len(target), np.nan), np.full(len(target), np.nan)
    state: Any = np.zeros(active.shape[0], dtype=bool)
    for latent in np.flatnonzero(target >= 0):
        part = slice(codes.indptr[latent], codes.indptr[latent + 1])
        tokens, values = codes.indices[part], codes.data[part]
        where = active.indices[active.indptr[target[latent]] : active.indptr[target[latent] + 1]]
        even = tokens % 2 == 0
        n_even = int((where % 2 == 0).sum())
        if even.sum() < _FEWEST_FIRINGS or not 0 < n_even < len(where):
            continue
        state[where] = True
        right = state[tokens]
        state[where] = False
        order = np.argsort(-values[even], kind="stable")
        sorted_values = values[even][order]
        f1 = 2 * np.cumsum(right[even][order]) / (np.arange(1, len(order) + 1) + n_even)
        # a threshold lies below all of its ties
        last = np.append(np.diff(sorted_values) != 0, True)
        best = int(np.where(last, f1, -1.0).argmax())
        below = sorted_values[best + 1] if best + 1 < len(order) else 0.0
        threshold[latent] = (sorted_values[best] + below) / 2 if below else 0.0
        kept = ~even & (values > threshold[latent])
        score[latent] = 2 * right[kept].sum() / (kept.sum() + len(where) - n_even)
    return threshold, score
