"""Many effects at once: how surprising, how large, and which of them are shown to be nothing.

An interval answers for one effect. A table holds hundreds, and of those that are nothing one in
twenty leaves zero out. So each effect gets a p value; within each **family** these become q values,
the largest share of false ones among all that are at least as small (Benjamini and Hochberg 1995).
A family is what a reader looks through at once: every contrast, of every metric of one group, at one
hookpoint, of one SAE.

Surprising is not large. The **smallest effect of interest** is the size below which nobody would act
on a difference; it is a setting, chosen before the data. Against it two more tests are made: whether
the effect is beyond it, and whether it is within it on both sides (equivalence). What is neither is
inconclusive: a wide interval shows no absence.

A share of latents is judged in log odds, whatever its size: from 1.5% to 0.2% is far, from 51.5% to 50.2%
is not. For any other metric a size that is set may be larger than both values, as 0.02 is beside an R2 of
0.0009 and one of 0.0014, and any two such values would be equivalent. So equivalence is within the size that
is set and within half of the larger of the two values: no value is equivalent to one that is twice as large.

P values are of the effect's own interval: below 0.05 exactly where that at 95% leaves the hypothesis out
(`stats.inference`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float
from pydantic import Field

from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import pandas
from sae_placebo.core.spec import Spec
from sae_placebo.stats.inference import (
    AnyDifference,
    DifferenceOfShares,
    p_of_large,
    p_of_none,
    p_of_small,
)

LOG_ODDS = "log odds"
ABOVE = "above the smallest effect of interest"
SMALL = "different but small"
EQUIVALENT = "equivalent"
INCONCLUSIVE = "inconclusive"
CONCLUSIONS = (ABOVE, SMALL, EQUIVALENT, INCONCLUSIVE)

_SMALL_VALUES = (
    "the smallest effect of interest is more than half of the larger value, so that equivalence within it "
    "would say nothing; within half of that value it is not shown"
)

Size = Annotated[float, Field(gt=0)]

_BY_UNIT: Mapping[str, float] = {
    "share": 0.05,
    "F1": 0.05,
    "AUROC": 0.05,
    "R2": 0.02,
    "cosine": 0.05,
    "correlation": 0.05,
    "bits": 0.25,
    "bits per token": 0.25,
    "bits/token": 0.25,
    "nats": 0.05,
    "latents": 1.0,
}
# explained variance moves little between recipes that differ in kind; a median density is near
# k / d_sae, a few hundredths, where 0.05 would call everything equivalent
_BY_METRIC: Mapping[str, float] = {
    "*explained_variance*": 0.02,
    "fvu": 0.02,
    "median_density": 0.005,
}
_GROUPS: Mapping[str, str] = {
    "*explained_variance*": "reconstruction",
    "fvu": "reconstruction",
    "l0": "sparsity",
    "median_density": "sparsity",
    "share_*": "classes",
    "mean_token_entropy_bits": "tokens",
    "token_entropy_*": "tokens",
    "marginal_structure_share": "bits as a share",
}


class MultiplicitySpec(Spec):
    """How effects are judged together.

    Attributes:
        level: Largest share of false ones among the conclusions of one kind in a family.
        share_log_odds: Smallest effect of interest of shares of latents, in log odds; 0.405 is half as much
            again, 3% against 2%.
        by_unit: Smallest effect of interest of metrics with this unit.
        by_metric: The same by metric, before that of its unit; a name or a pattern such as
            `coverage_*`, the first that fits.
        groups: Metric, or pattern, to group of metrics. What none fits belongs to the group of its
            name's first word.
    """

    level: float = Field(0.05, gt=0, lt=0.5)
    share_log_odds: Size = 0.405
    by_unit: dict[str, Size] = Field(default_factory=lambda: dict(_BY_UNIT))
    by_metric: dict[str, Size] = Field(default_factory=lambda: dict(_BY_METRIC))
    groups: dict[str, str] = Field(default_factory=lambda: dict(_GROUPS))

    def seoi(self, metric: str, unit: str) -> float | None:
        """Return the smallest effect of interest, in the metric's unit; None where none is set."""
        found = _first(self.by_metric, metric)
        return self.by_unit.get(unit) if found is None else found

    def group(self, metric: str) -> str:
        """Return the group that a metric belongs to."""
        return _first(self.groups, metric) or metric.partition("_")[0]


def _first(table: Mapping[str, Any], name: str) -> Any:
    if name in table:
        return table[name]
    return next((value for key, value in table.items() if fnmatchcase(name, key)), None)


def adjusted(p: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """Return the q value of each p value of one family; NaN stays NaN and counts as no test.

    Where every hypothesis is true and the tests are independent or positively dependent, the chance
    of any q at or below a level is at most that level; in general the expected share of false ones
    among those is.

    Source: Benjamini and Hochberg 1995 (JRSS B 57:289); under positive dependence, Benjamini and
    Yekutieli 2001 (Annals of Statistics 29:1165).
    """
    from scipy.stats import false_discovery_control

    q = np.full(len(p), np.nan)
    tests = np.isfinite(p)
    q[tests] = false_discovery_control(p[tests])
    return q


def share_of_true_nulls(
    p: Float[np.ndarray, " test"],
    above: float = 0.5,
    weights: Float[np.ndarray, " test"] | None = None,
) -> float:
    """Return the share of tests in which there is nothing to find (pi0), at most 1; NaN counts as no test.

    P values above a cut are nearly all of true nulls, which spread evenly; one is added to their count, so
    that q values times this share still hold at few tests.

    Args:
        p: P values of one family.
        above: The cut.
        weights: Weights of mean 1 by which p values will be divided; none where they will not be.

    Raises:
        NotEstimable: there is no p value.

    Source: Storey 2002 (JRSS B 64:479); the added 1 is of Storey, Taylor and Siegmund 2004 (JRSS B 66:187).
    With weights: Ramdas, Barber, Wainwright and Jordan 2019 (Annals of Statistics 47:2790), where the largest
    weight takes the place of the 1.
    """
    known = np.isfinite(p)
    if not known.any():
        raise NotEstimable("there is no p value")
    w = np.ones(known.sum()) if weights is None else weights[known]
    true = float(w.max() + w[p[known] > above].sum())
    return min(1.0, true / ((1 - above) * float(w.sum())))


def p_values(
    row: Mapping[str, Any], found: AnyDifference | None, spec: MultiplicitySpec
) -> dict[str, Any]:
    """Return an effect's family and its p values: `p`, `above_p` and `equivalent_p`.

    `p` is of no effect, `above_p` of an effect within the smallest effect of interest `seoi`,
    `equivalent_p` of an effect outside it, or outside `equivalence_margin` where that is less; that one is
    null where both values are 0. `conclusion_reason` says why there is none.

    Args:
        row: Its metric, hookpoint, sae, unit, reason and the values of the two arms are read.
        found: The difference; None where it cannot be estimated.
        spec: Sizes and groups.
    """
    metric = str(row["metric"])
    family = f"{spec.group(metric)} at {row['hookpoint']}, {row['sae']}"
    seoi, unit = spec.seoi(metric, str(row["unit"])), str(row["unit"])
    if isinstance(found, DifferenceOfShares):
        seoi, unit = spec.share_log_odds, LOG_ODDS
    made: dict[str, Any] = {"family": family, "seoi": seoi, "seoi_unit": unit if seoi else None}
    try:
        if found is None:
            raise NotEstimable(str(row["reason"]))
        made["p"] = p_of_none(found)
    except NotEstimable as refusal:
        return made | {"conclusion_reason": str(refusal)}
    if seoi is None:
        why = f"no smallest effect of interest is set for {metric} or its unit {row['unit']!r}"
        return made | {"conclusion_reason": why}
    made["above_p"] = p_of_small(found, seoi)
    margin = seoi
    if not isinstance(found, DifferenceOfShares):
        margin = equivalence_margin(seoi, row["arm_value"], row["control_value"])
    if margin > 0:
        made["equivalent_p"] = p_of_large(found, margin)
    return made


def equivalence_margin(seoi: float, arm: float, control: float) -> float:
    """Return within what two values of a metric on its own scale are equivalent.

    It is the smallest effect of interest, and at most half of the larger value in size.
    """
    return min(seoi, max(abs(arm), abs(control)) / 2)


def judged(effects: pandas.DataFrame, spec: MultiplicitySpec) -> pandas.DataFrame:
    """Return the table of effects with q values and conclusions, rows and order as they were.

    Each p value has its q value within the family. A conclusion is drawn at the level of the spec:

    - above the smallest effect of interest: `q` and `above_q` are small;
    - different but small: `q` and `equivalent_q` are small;
    - equivalent: `equivalent_q` is small and `q` is not;
    - inconclusive: anything else; `conclusion_reason` says whether it differs from zero, and whether both
      values are too small for equivalence to mean something.

    The conclusion is null where there is no p value or no smallest effect of interest, and
    `conclusion_reason` says why.

    Args:
        effects: Columns `stats.effects.COLUMNS`, those of `p_values` filled in.
        spec: The level.
    """
    made = effects.copy()
    for members in made.groupby("family", sort=False).indices.values():
        for name in ("p", "above_p", "equivalent_p"):
            column = made.columns.get_loc(f"{name.removesuffix('p')}q")
            p = made[name].to_numpy(np.float64)[members]
            made.iloc[members, column] = adjusted(p)
    read = ["q", "above_q", "equivalent_q", "conclusion_reason", "seoi", "seoi_unit"]
    read += ["arm_value", "control_value"]
    drawn = [_concluded(row, spec.level) for row in made[read].to_dict("records")]
    made["conclusion"] = _texts([conclusion for conclusion, _ in drawn])
    made["conclusion_reason"] = _texts([reason for _, reason in drawn])
    return made


def _texts(values: Sequence[Any]) -> Any:
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def _concluded(row: Mapping[str, Any], level: float) -> tuple[str | None, str | None]:
    if isinstance(row["conclusion_reason"], str):
        return None, row["conclusion_reason"]
    differs = row["q"] <= level
    if differs and row["above_q"] <= level:
        return ABOVE, None
    if row["equivalent_q"] <= level:
        return (SMALL if differs else EQUIVALENT), None
    said = "differs from zero, but" if differs else "may be zero, and"
    if row["seoi_unit"] != LOG_ODDS:
        margin = equivalence_margin(row["seoi"], row["arm_value"], row["control_value"])
        if margin < row["seoi"]:
            return INCONCLUSIVE, f"it {said} {_SMALL_VALUES}"
    return INCONCLUSIVE, f"it {said} may be above or below the smallest effect of interest"
