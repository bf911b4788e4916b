"""How far one arm's number may be off: over documents, SAE seeds and re-draws, each part counted once.

With Y[m, s] the number of re-draw m and SAE seed s, the mean squares of a two-way layout are

    models:    S var_m(mean over s)      sae seeds:    M var_s(mean over m)      joint:    what is left,

and the variance of the mean of Y is (models + sae seeds - joint) / (M S): what depends on a re-draw and a
seed together is in all three, and is counted once. Each mean square is moderated (`stats.moderation`):
two seeds leave it one degree of freedom, and a trial has many such numbers. The prior is taken over the
cells of one kind: all hookpoints, SAEs and arms of a metric, and for shares of latents all of these
metrics together, on the scale on which a count has variance 1 (`stats.scales`). Re-draws are of one
kind only within a family of controls.

Between re-draws, a metric on its own scale has few mean squares, and all hookpoints and SAEs of an arm share
its re-draws. So there the prior of an arm is made without the arm's own, and its degrees of freedom d are put
together with the f that the other arms of the family have at that place: 1 / (1 / d + 1 / f), which is never
above f.

The variance over documents comes from the bootstrap. What a document and a seed do together is in the
spread between seeds already, so it is taken off: the mean, over the resamples, of the same formula applied
to what the resample changed.

A share counts latents, and its variance is never taken below that of as many independent ones
(`CountScale`): 1 / (M S).

Source: the two-way layout, Scheffe 1959 (The Analysis of Variance, chapter 4); moderation, Smyth 2004.
The sum of parts was counted two and three times by the pigeonhole bootstrap (Owen 2007), from which an
earlier version took it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from sae_placebo.core.errors import NotEstimable
from sae_placebo.stats.components import (
    MODEL_SEEDS,
    SAE_SEEDS,
    Component,
    defined,
    document_component,
)
from sae_placebo.stats.moderation import VariancePrior, moderated, variance_priors
from sae_placebo.stats.replicates import ReplicateKey, Replicates, ReplicateTable
from sae_placebo.stats.scales import CountScale, OwnScale, Scale

JOINT = "joint"
ONE = {
    SAE_SEEDS: "one SAE seed: the variation between seeds cannot be estimated; give at least two "
    "sae_seeds",
    MODEL_SEEDS: "one re-draw of the control: the variation between re-draws cannot be "
    "estimated; give at least two model_seeds",
}
_COUNTS = "shares of latents"
# below this expected count the scale of counts is not steady, and says nothing of other counts
_LEAST_COUNT = 1.0


class MeanSquare(NamedTuple):
    """A mean square and its degrees of freedom."""

    value: float
    df: float


def mean_squares(y: Float[np.ndarray, "model sae_seed"], drawn: bool) -> dict[str, MeanSquare]:
    """Return the mean squares of a two-way layout by source; a model that is given is no source."""
    n_models, n_seeds = y.shape
    found: dict[str, MeanSquare] = {}
    if n_seeds > 1:
        value = n_models * float(y.mean(axis=0).var(ddof=1))
        found[SAE_SEEDS] = MeanSquare(value, n_seeds - 1)
    if drawn and n_models > 1:
        value = n_seeds * float(y.mean(axis=1).var(ddof=1))
        found[MODEL_SEEDS] = MeanSquare(value, n_models - 1)
    if drawn and n_models > 1 and n_seeds > 1:
        left = y - y.mean(axis=0) - y.mean(axis=1, keepdims=True) + y.mean()
        df = (n_models - 1) * (n_seeds - 1)
        found[JOINT] = MeanSquare(float((left**2).sum()) / df, df)
    return found


def variance_of_mean(squares: dict[str, MeanSquare], n: int) -> dict[str, float]:
    """Return by source what it adds to the variance of the mean of n values; joint parts count once."""
    parts = {name: one.value / n for name, one in squares.items() if name != JOINT}
    total = sum(parts.values())
    if JOINT in squares and total > 0:
        once = max(total - squares[JOINT].value / n, *parts.values())
        parts = {name: part * once / total for name, part in parts.items()}
    return parts


@dataclass(frozen=True)
class Spread:
    """The mean of an arm, or of a signed sum of arms, on its scale, and the parts of its variance.

    Attributes:
        scale: The scale of everything here.
        center: Mean over seeds.
        replicates: The same in each resample of the documents.
        with_documents: What of the variance over documents the seeds' parts hold too.
        seeds: Parts of SAE seeds and re-draws.
        measured: Their sum before it was raised to what as many independent latents would vary.
    """

    scale: Scale
    center: float
    replicates: Float[np.ndarray, " replicate"]
    with_documents: float
    seeds: tuple[Component, ...]
    measured: float

    def components(self, n_documents: int) -> tuple[Component, ...]:
        """Return all parts, that of the documents first.

        Raises:
            NotEstimable: see `document_component`.
        """
        documents = document_component(self.replicates, n_documents, self.with_documents)
        return (documents, *self.seeds)


@dataclass
class Spreads:
    """The spread of every arm's number in a table of replicates, moderated over its cells.

    Attributes:
        table: The values under document weights.
        shares_on_own_scale: Whether shares are taken as they are; each is then moderated by its own cells.
    """

    table: ReplicateTable
    shares_on_own_scale: bool = False
    _squares: dict[ReplicateKey, dict[str, MeanSquare]] = field(init=False, repr=False)
    _arms: dict[ReplicateKey, Spread] = field(init=False, repr=False, default_factory=dict)
    _others: dict[tuple[ReplicateKey, str], MeanSquare] = field(
        init=False, repr=False, default_factory=dict
    )
    _priors: dict[tuple[str, str], dict[tuple[str, str], VariancePrior]] = field(
        init=False, repr=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        self._squares = dict(self._measured())

    def _measured(self) -> Iterator[tuple[ReplicateKey, dict[str, MeanSquare]]]:
        for key in self.table:
            # arms that share their SAEs would count one variance twice
            if self.table.same_as.get(key.arm, key.arm) != key.arm:
                continue
            try:
                found = self.table[key]
            except NotEstimable:
                continue
            scale, least = self.scale(found), 0.0
            if isinstance(scale, CountScale):
                count = found.point * scale.n
                if not _LEAST_COUNT <= count <= scale.n - _LEAST_COUNT:
                    continue
                # two counts that are equal differ by less than their rounding, and not by nothing
                least = 1 / (12 * count * (1 - found.point))
            squares = mean_squares(scale.forward(found.values[:, :, 0]), found.drawn)
            yield (
                key,
                {name: MeanSquare(max(one.value, least), one.df) for name, one in squares.items()},
            )

    def scale(self, found: Replicates) -> Scale:
        """Return the scale on which an arm's seeds are averaged."""
        if found.counted and not self.shares_on_own_scale:
            return CountScale(found.counted)
        return OwnScale(found.is_share)

    def _counts(self, key: ReplicateKey) -> bool:
        return self.table.counted(key) > 0 and not self.shares_on_own_scale

    def prior(self, key: ReplicateKey, source: str, without_own_arm: bool = False) -> VariancePrior:
        """Return what the cells like one say of a source's mean square.

        That of re-draws of a metric on its own scale is made without the cell's own arm. Its variance is off
        by how much true variances differ and by how few squares it is made of: both count in its df.
        """
        kind = _COUNTS if self._counts(key) else key.metric
        few = source == MODEL_SEEDS and not self._counts(key)
        own = self.table.same_as.get(key.arm, key.arm) if without_own_arm or few else ""
        if (kind, own) not in self._priors:
            groups = self._groups(kind, own)
            self._priors[kind, own] = variance_priors(groups)
        found = self._priors[kind, own].get(
            self._group(key, source), VariancePrior(float("nan"), 0.0)
        )
        if not few:
            return found
        df = (found.df, self.others(key, source).df)
        return VariancePrior(found.variance, 1 / sum(1 / one for one in df) if min(df) > 0 else 0.0)

    def others(self, key: ReplicateKey, source: str) -> MeanSquare:
        """Return the pooled mean square of the other arms of a cell's family, at its place; df 0 for none."""
        if (key, source) not in self._others:
            self._others[key, source] = self._pooled(key, source)
        return self._others[key, source]

    def _pooled(self, key: ReplicateKey, source: str) -> MeanSquare:
        own, family = self.table.same_as.get(key.arm, key.arm), self.table.families.get(key.arm)
        squares: list[MeanSquare] = []
        for arm in sorted(self.table.drawn - {key.arm}):
            # an arm with another's SAEs says nothing that the other does not
            twin = self.table.same_as.get(arm, arm)
            counted_already = twin != arm and twin in self.table.drawn
            if twin == own or counted_already or self.table.families.get(arm) != family:
                continue
            with contextlib.suppress(NotEstimable):
                found = self.table[key._replace(arm=arm)]
                y = self.scale(found).forward(found.values[:, :, 0])
                squares += [one for n, one in mean_squares(y, True).items() if n == source]
        df = sum(one.df for one in squares)
        return MeanSquare(sum(one.value * one.df for one in squares) / df if df else 0.0, df)

    def _group(self, key: ReplicateKey, source: str) -> tuple[str, str]:
        return source, self.table.families.get(key.arm, "") if source == MODEL_SEEDS else ""

    def _groups(
        self, kind: str, without: str
    ) -> dict[tuple[str, str], tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]]:
        """Return the mean squares of a kind and their degrees of freedom, by source."""
        groups: dict[tuple[str, str], list[MeanSquare]] = {}
        for key, squares in self._squares.items():
            if (_COUNTS if self._counts(key) else key.metric) == kind and key.arm != without:
                for source, square in squares.items():
                    groups.setdefault(self._group(key, source), []).append(square)
        return {
            name: (np.array([s.value for s in group]), np.array([float(s.df) for s in group]))
            for name, group in groups.items()
        }

    def moderated(
        self, key: ReplicateKey, source: str, own: MeanSquare, without_own_arm: bool = False
    ) -> MeanSquare:
        """Return a mean square of one arm drawn towards those of the cells like it."""
        return _drawn_towards(own, self.prior(key, source, without_own_arm))

    def of(self, key: ReplicateKey) -> Spread:
        """Return the spread of one arm's number; it is computed once for all contrasts.

        Raises:
            NotEstimable: a seed's value is missing; there is one SAE seed, one re-draw of a model that is
                drawn, or one document.
        """
        if key not in self._arms:
            self._arms[key] = self.signed({key: 1})
        return self._arms[key]

    def signed(self, signs: Mapping[ReplicateKey, int]) -> Spread:
        """Return the spread of a signed sum of arms, such as an arm minus its control.

        Where all seeds go by the same names, the sum is taken seed by seed, so that what the arms share
        there cancels; it is drawn towards what it would be if they shared nothing. Where names differ, the
        arms' parts are added up. An SAE that is given is no draw: one is enough, and where there are
        several, their spread counts.

        Raises:
            NotEstimable: as `of`.
        """
        arms = {key: self.table[key] for key in signs}
        given = [key for key in arms if self.table.is_given(key)]
        for key, found in arms.items():
            if len(found.sae_seeds) < 2 and key not in given:
                raise NotEstimable(ONE[SAE_SEEDS])
            if found.drawn and len(found.model_seeds) < 2:
                raise NotEstimable(ONE[MODEL_SEEDS])
        drawn = {found.model_seeds for found in arms.values() if found.drawn}
        of_one_name = len({found.sae_seeds for found in arms.values()}) == 1 and len(drawn) <= 1
        if of_one_name and (not given or len(arms) == 1):
            return self._paired(signs, arms)
        parts = [self._paired({key: sign}, {key: arms[key]}) for key, sign in signs.items()]
        return Spread(
            parts[0].scale,
            sum(part.center for part in parts),
            np.sum([part.replicates for part in parts], axis=0),
            sum(part.with_documents for part in parts),
            tuple(one for part in parts for one in part.seeds),
            sum(part.measured for part in parts),
        )

    def _paired(
        self, signs: Mapping[ReplicateKey, int], arms: Mapping[ReplicateKey, Replicates]
    ) -> Spread:
        """Return the spread of a signed sum of arms whose seeds go by the same names."""
        scale = self.scale(next(iter(arms.values())))
        n_models = max(len(found.values) for found in arms.values())
        drawn = any(found.drawn for found in arms.values())
        y = np.zeros(1)
        for key, sign in signs.items():
            y = y + sign * scale.forward(arms[key].values)
        squares = {}
        for source, own in mean_squares(y[:, :, 0], drawn).items():
            priors = []
            for key, found in arms.items():
                prior = self.prior(key, source)
                if source == SAE_SEEDS:
                    times = n_models / len(found.values)
                    priors.append(VariancePrior(times * prior.variance, prior.df))
                elif found.drawn:
                    priors.append(prior)
            variance = sum(prior.variance for prior in priors)
            df = min(prior.df for prior in priors)
            squares[source] = _drawn_towards(own, VariancePrior(variance, df))
        # one given SAE is no draw: its latents are not taken as some of many
        least = scale.least_variance if len(signs) == 1 and squares else 0.0
        n_documents = self.table.n_documents[next(iter(signs)).hookpoint]
        return Spread(
            scale,
            float(y[:, :, 0].mean()),
            y[:, :, 1:].mean(axis=(0, 1)),
            _with_documents(y, drawn, n_documents),
            components_of(squares, y[:, :, 0].size, least),
            float(sum(variance_of_mean(squares, y[:, :, 0].size).values())),
        )


def _drawn_towards(own: MeanSquare, prior: VariancePrior) -> MeanSquare:
    value, df = moderated(np.array(own.value), own.df, prior)
    return MeanSquare(float(value), float(df))


def components_of(
    squares: dict[str, MeanSquare], n: int, least: float = 0.0
) -> tuple[Component, ...]:
    """Return the seeds' parts of the variance of a mean of n values.

    Args:
        squares: Mean squares by source, moderated or not.
        n: SAEs that the mean is over.
        least: What one value varies by at least.
    """
    parts = variance_of_mean(squares, n)
    total = sum(parts.values())
    if total < least / n:
        return (Component(SAE_SEEDS, least / n, squares[SAE_SEEDS].df),)
    return tuple(Component(name, part, squares[name].df) for name, part in parts.items())


def _with_documents(
    y: Float[np.ndarray, "model sae_seed replicate"], drawn: bool, n_documents: int
) -> float:
    """Return the variance over documents that the spread between seeds holds too."""
    known = np.isfinite(y).all(axis=(0, 1))
    defined(np.where(known, 0.0, np.nan)[1:], n_documents)
    changed = y[:, :, known] - y[:, :, :1]
    n_models, n_seeds, n_draws = changed.shape
    n = n_models * n_seeds
    by_source = {}
    if n_seeds > 1:
        by_source[SAE_SEEDS] = n_models * changed.mean(axis=0).var(axis=0, ddof=1).mean()
    if drawn and n_models > 1:
        by_source[MODEL_SEEDS] = n_seeds * changed.mean(axis=1).var(axis=0, ddof=1).mean()
    if drawn and n_models > 1 and n_seeds > 1:
        rows, columns = changed.mean(axis=0), changed.mean(axis=1)[:, None]
        left = changed - rows - columns + changed.mean(axis=(0, 1))
        by_source[JOINT] = (left**2).sum() / ((n_models - 1) * (n_seeds - 1)) / n_draws
    # each resample has the variance of n - 1 of n documents, and replicate 0 changes nothing
    squares = {name: MeanSquare(float(value), 1) for name, value in by_source.items()}
    total = sum(variance_of_mean(squares, n).values())
    return float(total * n_draws / max(n_draws - 1, 1))
