"""Effects of arms against controls, with intervals over documents, SAE seeds and model seeds.

Three things could have come out otherwise: which documents were held out, the SAE's initial bits,
and how a control's weights were re-drawn. They are crossed: every document is read by every SAE,
and the SAE seeds and the re-draws go by the same names in every arm, so a difference between arms
is taken seed by seed before its variation is estimated. With Y[m, s] the difference for re-draw m
and SAE seed s,

    effect = mean of Y,    variance = V_documents + s2(mean of Y over s) / M + s2(mean over m) / S.

V_documents is the variance of the effect over bootstrap replicates that draw documents with
replacement, the seeds held as they are, times n / (n - 1). The two others are what the rescaled
bootstrap of Rao and Wu (1988, JASA 83:231), n - 1 draws out of n, converges to for a mean; they are
written down instead of drawn. The plain bootstrap over two seeds has half the variance, and its
percentile interval covers half the time.

Product weights for all three factors (the pigeonhole bootstrap of Owen 2007, Annals of Applied
Statistics 1:386) would count what depends on a seed and a re-draw jointly three times; the sum
above counts it twice, and noise peculiar to a document, a seed and a re-draw three times. So the
interval errs to the wide side. Subtracting the surplus needs the interaction's own variance, for
which two seeds by two re-draws leave one degree of freedom; the sums are kept.

An interval is estimate +- q sqrt(variance), where q averages the two Student quantiles, that of the
documents and that of the seeds, weighted by their variances (Cochran 1964, Biometrics 20:191; the
seeds' own parts are pooled by Satterthwaite's rule). Satterthwaite's rule for all parts together
covers only 88% of the time where two seeds vary much more than the documents do: when the two
happen to agree, it credits the estimate with the documents' degrees of freedom. In simulations with
60 documents and two or three of each seed, 95% intervals cover 93% to 98% of the time, and 99%
where almost all variation is joint. With two seeds an interval is wide: that is what two seeds can
say.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import pandas
from sae_placebo.core.spec import numpy_generator
from sae_placebo.core.tables.effects import EFFECTS
from sae_placebo.stats.bootstrap import resampled_counts
from sae_placebo.stats.quantiles import student_quantile
from sae_placebo.stats.replicates import ReplicateKey, Replicates, ReplicateTable

# a metric may be undefined in a few resamples; above this share the interval would mean another
# thing
_MOST_UNDEFINED = 0.1


def document_weights(
    n_documents: int, replicates: int, seed: int
) -> Float[np.ndarray, "document replicate_plus_one"]:
    """Return how often each document counts in each bootstrap replicate.

    Column 0 is all ones: the held-out documents themselves. Every other column is a draw of
    n_documents with replacement. All arms share these weights.
    """
    draws = resampled_counts(numpy_generator(seed, "document bootstrap"), n_documents, replicates)
    return np.concatenate([np.ones((1, n_documents)), draws]).T


class Component(NamedTuple):
    """The part that one source has in an estimate's variance."""

    source: str
    variance: float
    df: float


class Interval(NamedTuple):
    """A two-sided interval of half-width t(df) * se; df is None where nothing varies."""

    low: float
    high: float
    se: float
    df: float | None


def interval(
    estimate: float, components: Sequence[Component], confidence: float = 0.95
) -> Interval:
    """Return the interval for an estimate whose variance is the sum of its components.

    Where nothing varies at all, it is a point. The degrees of freedom are those of the Student
    quantile that results.

    Source: Cochran 1964, between the documents and the seeds; Satterthwaite 1946 (Biometrics
    Bulletin 2:110) among the seeds' components.
    """
    from scipy.special import stdtridf

    variance = sum(part.variance for part in components)
    if variance <= 0:
        return Interval(estimate, estimate, 0.0, None)
    quantile = 0.0
    for seeds in (False, True):
        parts = [part for part in components if (part.source != "documents") is seeds]
        of_these = sum(part.variance for part in parts)
        if of_these > 0:
            df = of_these**2 / sum(part.variance**2 / part.df for part in parts)
            quantile += of_these / variance * student_quantile(df, confidence)
    half = quantile * variance**0.5
    equivalent = float(stdtridf((1 + confidence) / 2, quantile))
    return Interval(estimate - half, estimate + half, variance**0.5, equivalent)


def document_component(replicates: Float[np.ndarray, " replicate"], n_documents: int) -> Component:
    """Return the variance over documents of an estimate, from its bootstrap replicates.

    Its degrees of freedom are those of n_documents, less what a finite number of replicates costs.

    Raises:
        NotEstimable: fewer than two documents or replicates, or too many undefined replicates.
    """
    if n_documents < 2:
        raise NotEstimable("one document: the variation between documents cannot be estimated")
    if len(replicates) < 2:
        raise NotEstimable("fewer than two bootstrap replicates of the documents")
    defined = replicates[np.isfinite(replicates)]
    if len(defined) < (1 - _MOST_UNDEFINED) * len(replicates) or len(defined) < 2:
        raise NotEstimable(
            f"undefined in {len(replicates) - len(defined)} of {len(replicates)} resamples of the "
            "documents; hold out more of them"
        )
    variance = float(defined.var(ddof=1)) * n_documents / (n_documents - 1)
    df = 1 / (1 / (n_documents - 1) + 1 / (len(defined) - 1))
    return Component("documents", variance, df)


_ONE = {
    "sae_seeds": "one SAE seed: the variation between seeds cannot be estimated; give at least two "
    "sae_seeds",
    "model_seeds": "one re-draw of the control: the variation between re-draws cannot be "
    "estimated; give at least two model_seeds",
}


def between(
    means: Float[np.ndarray, " seed"],
    source: Literal["sae_seeds", "model_seeds"],
    step: float = 0.0,
) -> Component:
    """Return the variance of the mean of independent seeds, estimated from their spread.

    A metric that moves in steps can give the same value twice by chance; two equal counts are not
    certainty. So the variance of one value is taken to be at least that of its rounding, step^2 / 12.

    Raises:
        NotEstimable: there is one seed.
    """
    if len(means) < 2:
        raise NotEstimable(_ONE[source])
    variance = max(float(means.var(ddof=1)), step**2 / 12)
    return Component(source, variance / len(means), len(means) - 1)


__all__ = [
    "COLUMNS",
    "Component",
    "Described",
    "Interval",
    "ReplicateKey",
    "ReplicateTable",
    "Replicates",
    "arm_interval",
    "between",
    "document_component",
    "document_weights",
    "effect_interval",
    "effects",
    "interval",
]


@runtime_checkable
class Described(Protocol):
    """The words with which a table of effects describes a metric."""

    @property
    def unit(self) -> str:
        """Return the metric's unit."""

    @property
    def better(self) -> str:
        """Return whether higher, lower or neither is better."""

    @property
    def null(self) -> str:
        """Return the metric's null in words."""


def effects(
    table: ReplicateTable,
    contrasts: Sequence[tuple[str, str]],
    metrics: Mapping[str, Described],
    confidence: float = 0.95,
) -> pandas.DataFrame:
    """Return one row for every contrast, hookpoint, SAE and metric: arm minus control.

    What cannot be estimated is null and `reason` says why. The columns that begin with aa_ hold the
    same difference between two halves of the control's own re-draws, which is 0 but for chance.

    Args:
        table: Every arm's values under the same document weights.
        contrasts: Pairs of arm and control; both may be controls.
        metrics: What each metric is; `metrics.METRICS.entries` will do.
        confidence: Of every interval.
    """
    rows: list[dict[str, Any]] = []
    places = list(dict.fromkeys((c.hookpoint, c.sae, c.metric) for c in table))
    for arm, control in contrasts:
        for hookpoint, sae, metric in places:
            pair = (
                ReplicateKey(arm, hookpoint, sae, metric),
                ReplicateKey(control, hookpoint, sae, metric),
            )
            if pair[0] in table and pair[1] in table:
                rows.append(_row(table, pair, metrics[metric], confidence))
    found = pandas.DataFrame(rows, columns=list(COLUMNS))
    kinds = {name: "Int64" if name.startswith("n_") else "float64" for name in _NUMBERS}
    return found.astype(kinds)


COLUMNS = EFFECTS.names
_TEXTS = {"metric", "hookpoint", "sae", "arm", "control", "unit", "better", "metric_null"}
_TEXTS |= {"reason", "aa_control", "aa_reason"}
_NUMBERS = [name for name in COLUMNS if name not in _TEXTS]


def _row(
    table: ReplicateTable,
    pair: tuple[ReplicateKey, ReplicateKey],
    metric: Described,
    confidence: float,
) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    cell, against = pair
    row |= {"metric": cell.metric, "hookpoint": cell.hookpoint, "sae": cell.sae}
    row |= {"arm": cell.arm, "control": against.arm, "null": 0.0}
    row |= {"unit": metric.unit, "better": metric.better, "metric_null": metric.null}
    n_documents = table.n_documents[cell.hookpoint]
    row |= {"n_documents": n_documents, "n_tokens": table.n_tokens[cell.hookpoint]}

    reasons: list[str] = []
    sides: list[Replicates] = []
    nulls: list[str] = []
    for side, name in zip(pair, ("arm", "control"), strict=True):
        try:
            found = table[side]
        except NotEstimable as refusal:
            reasons.append(str(refusal))
            continue
        sides.append(found)
        row[f"{name}_value"] = found.point
        row[f"n_{name}_models"] = len(found.model_seeds)
        row["n_sae_seeds"] = len(found.sae_seeds)
        if found.null_value is not None:
            nulls.append(f"{found.null_value:.3g} in {side.arm}")
        with contextlib.suppress(NotEstimable):
            around = arm_interval(found, n_documents, confidence)
            row |= {f"{name}_low": around.low, f"{name}_high": around.high}
    if nulls:
        row["metric_null"] = f"{metric.null} ({', '.join(nulls)})"
    if pair in table.withheld:
        reasons.append(table.withheld[pair])
    elif len(sides) == 2:
        row["effect"] = sides[0].point - sides[1].point
        try:
            around = effect_interval(sides[0], sides[1], n_documents, confidence)
            row |= {"low": around.low, "high": around.high, "se": around.se, "df": around.df}
        except NotEstimable as refusal:
            reasons.append(str(refusal))
    row["reason"] = "; ".join(dict.fromkeys(reasons)) or None
    return row | _placebo_against_placebo(table, against, confidence)


def arm_interval(arm: Replicates, n_documents: int, confidence: float = 0.95) -> Interval:
    """Return the interval of one arm's mean.

    Raises:
        NotEstimable: one SAE seed, one re-draw of a model that is drawn, or one document.
    """
    documents = document_component(arm.replicates, n_documents)
    return interval(arm.point, [documents, *_seeds(arm)], confidence)


def effect_interval(
    arm: Replicates, control: Replicates, n_documents: int, confidence: float = 0.95
) -> Interval:
    """Return the interval of arm minus control.

    Seeds that go by the same names on both sides are paired; where names differ, the variation on
    each side is added up. A model that is given adds none.

    Raises:
        NotEstimable: one SAE seed, one re-draw of a model that is drawn, or one document.
    """
    parts = [document_component(arm.replicates - control.replicates, n_documents)]
    estimate, step = arm.point - control.point, max(arm.step, control.step)
    if arm.sae_seeds == control.sae_seeds:
        parts.append(between(arm.by_sae_seed - control.by_sae_seed, "sae_seeds", step))
    else:
        parts += [between(side.by_sae_seed, "sae_seeds", step) for side in (arm, control)]
    if arm.drawn and control.drawn and arm.model_seeds == control.model_seeds:
        parts.append(between(arm.by_model - control.by_model, "model_seeds", step))
    else:
        drawn = [side for side in (arm, control) if side.drawn]
        parts += [between(side.by_model, "model_seeds", step) for side in drawn]
    return interval(estimate, parts, confidence)


def _seeds(arm: Replicates) -> list[Component]:
    parts = [between(arm.by_sae_seed, "sae_seeds", arm.step)]
    if arm.drawn:
        parts.append(between(arm.by_model, "model_seeds", arm.step))
    return parts


def _placebo_against_placebo(
    table: ReplicateTable, cell: ReplicateKey, confidence: float
) -> dict[str, Any]:
    """Return the A/A columns: the first half of a control's re-draws minus the second half.

    The variance between re-draws must come from elsewhere than the difference itself, which would
    be covered by construction: from within the halves where there are three re-draws or more; with
    two, from the re-draws of other arms of its family at the same place, pooled, which takes it that
    these vary alike. A mean over SAE seeds of a
    re-draw holds all that depends on it and on the SAE seeds jointly, and what depends on the SAE
    seed alone cancels, so SAE seeds add no part of their own.
    """
    try:
        control = table[cell]
        if not control.drawn:
            raise NotEstimable(f"{cell.arm}: its model is given, not drawn")
        n = len(control.model_seeds)
        if n < 2:
            raise NotEstimable(_ONE["model_seeds"])
    except NotEstimable as refusal:
        return {"aa_reason": str(refusal)}
    first, second = control.by_model[: n // 2], control.by_model[n // 2 :]
    estimate = float(first.mean() - second.mean())
    names = [str(seed) for seed in control.model_seeds]
    found: dict[str, Any] = {
        "aa_effect": estimate,
        "aa_control": f"{cell.arm}: model_seed {', '.join(names[: n // 2])} minus "
        f"{', '.join(names[n // 2 :])}",
    }
    try:
        spread = [first, second] if n > 2 else _other_redraws(table, cell)
        df = sum(len(group) - 1 for group in spread)
        squares = sum(float(((group - group.mean()) ** 2).sum()) for group in spread)
        variance = max(squares / df, control.step**2 / 12) * (1 / len(first) + 1 / len(second))
        halves = control.values[: n // 2], control.values[n // 2 :]
        difference = halves[0].mean(axis=(0, 1)) - halves[1].mean(axis=(0, 1))
        parts = [
            document_component(difference[1:], table.n_documents[cell.hookpoint]),
            Component("model_seeds", variance, df),
        ]
    except NotEstimable as refusal:
        return found | {"aa_reason": str(refusal)}
    around = interval(estimate, parts, confidence)
    return found | {"aa_low": around.low, "aa_high": around.high}


def _other_redraws(table: ReplicateTable, cell: ReplicateKey) -> list[Float[np.ndarray, " model"]]:
    groups: list[Float[np.ndarray, " model"]] = []
    own = table.same_as.get(cell.arm, cell.arm)
    for arm in sorted(table.drawn - {cell.arm}):
        # an arm that shares its SAEs would cover the difference by construction
        if table.same_as.get(arm, arm) == own:
            continue
        if table.families.get(arm) != table.families.get(cell.arm):
            continue
        with contextlib.suppress(NotEstimable):
            other = table[cell._replace(arm=arm)]
            if len(other.model_seeds) > 1:
                groups.append(other.by_model)
    if not groups:
        raise NotEstimable(
            "two re-draws, and no other control of its family: the variation between "
            "re-draws cannot be estimated apart from this difference; give at least three model_seeds"
        )
    return groups
