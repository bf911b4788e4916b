"""Absorption and split families: labels that are spread over latents, or that their main latents miss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from sae_placebo.audits.absorption import (
    FULL_COSINE,
    FULL_SHARE,
    JUMP,
    MOST_ABSORBERS,
    MOST_LATENTS,
    PART_COSINE,
    RATES,
    VERSIONS,
    Chooser,
    Family,
    absorbed,
)
from sae_placebo.audits.base import AUDITS, Audit, Audited, Case, Finding, Quantity, over_documents
from sae_placebo.audits.overlap import random_rows
from sae_placebo.audits.probes import (
    Tasks,
    best_f1,
    f1_of,
    fit_probes,
    label_tasks,
    letter_tasks,
    with_null,
)
from sae_placebo.causal.use.base import Directions, latent_directions
from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.spec import numpy_generator
from sae_placebo.stats.bootstrap import percentile_interval, resampled_units

KINDS = ("label", "letter")
"""Kinds of tasks: labels of the text, and first letters of tokens."""


@dataclass(eq=False)
class Answers:
    """The families of a set of tasks, and what is absorbed at each scored token.

    Attributes:
        families: The family of each task.
        probe: F1 of each task's probe on x.
        hits: For each task [token], whether the label holds there and the probe on x says so.
        rates: For each of `RATES` and each task [token], whether, or how much of, the label is absorbed
            there.
    """

    families: list[Family] = field(default_factory=list)
    probe: list[float] = field(default_factory=list)
    hits: list[Bool[np.ndarray, " token"]] = field(default_factory=list)
    rates: dict[str, list[Float64[np.ndarray, " token"]]] = field(
        default_factory=lambda: {name: [] for name in RATES}
    )


def run(case: Case) -> Audited:
    """Return family sizes and absorption for labels and for first letters, each with two nulls.

    Raises:
        NotEstimable: no latent is active, or neither kind of label can be probed.
    """
    directions = latent_directions(case.reading)
    if not directions.n_active.any():
        raise NotEstimable("no latent is active on the held-out tokens: hold out more of them")
    findings: list[Finding] = []
    refused: list[str] = []
    for kind, make in (("label", label_tasks), ("letter", letter_tasks)):
        try:
            findings += _of_kind(case, directions, make(case), kind)
        except NotEstimable as refusal:
            refused.append(str(refusal))
            findings += [
                Finding("label_families", name, math.nan, of="labels", reason=str(refusal))
                for name in _names(kind)
            ]
    if len(refused) == len(KINDS):
        raise NotEstimable("; and ".join(refused))
    return Audited(findings)


def _of_kind(case: Case, directions: Directions, tasks: Tasks, kind: str) -> list[Finding]:
    random = numpy_generator(case.seed, "audit", "families", kind)
    (tasks, null), (fit, score) = with_null(case, tasks, random, "families", kind)
    bench = LabelBench(case.x.numpy() - case.b_dec.numpy(), directions, fit, score)
    real, moved = bench.answers(tasks), bench.answers(null)
    drawn = bench.of_directions(*random_tasks(bench.x, tasks, fit, random))
    findings = _rates(case, kind, (real, moved, drawn), score)
    findings += _means(kind, (real, moved, drawn), case.seed)
    return findings + _by_label(case, kind, tasks.names, (real, drawn), score)


def random_tasks(
    x: Float32[np.ndarray, "token d_in"],
    tasks: Tasks,
    fit: Int64[np.ndarray, " chosen"],
    random: np.random.Generator,
) -> tuple[Tasks, Float32[np.ndarray, "task d_in"]]:
    """Return labels that hold where x lies far along random directions, and these unit directions.

    Each holds for as large a share of the tokens to fit on as the given label in its place.
    """
    rows = random_rows(len(tasks.names), x.shape[1], random)
    along = x @ rows.T
    rates = tasks.present[fit].mean(0)
    limits = [np.quantile(along[fit, i], 1 - rate) for i, rate in enumerate(rates)]
    return Tasks(tasks.names, along > np.array(limits, dtype=np.float32), tasks.known), rows


@dataclass(frozen=True, eq=False)
class LabelBench:
    """The activations and codes in which labels are looked for.

    Attributes:
        x: Activations less b_dec.
        directions: Unit decoder rows, and codes times decoder norms.
        fit: Tokens that probes are fitted and families chosen on.
        score: Tokens that they are scored on.
    """

    x: Float32[np.ndarray, "token d_in"]
    directions: Directions
    fit: Int64[np.ndarray, " chosen"]
    score: Int64[np.ndarray, " scored"]

    def answers(self, tasks: Tasks) -> Answers:
        """Return the families of tasks and what is absorbed, by a logistic probe on x for each task."""
        probes = fit_probes(self.x[self.fit], tasks.present[self.fit])
        lengths = np.linalg.norm(probes.weights, axis=1)
        unit = probes.weights / np.maximum(lengths, 1e-30)[:, None]
        logits = (probes.logits(self.x[self.fit]), probes.logits(self.x[self.score]))
        return self._answers(tasks, unit, logits)

    def of_directions(self, tasks: Tasks, rows: Float32[np.ndarray, "task d_in"]) -> Answers:
        """Return the same as `answers` for labels that unit directions define: each is its own probe."""
        return self._answers(tasks, rows, (self.x[self.fit] @ rows.T, self.x[self.score] @ rows.T))

    def _answers(
        self,
        tasks: Tasks,
        unit: Float32[np.ndarray, "task d_in"],
        logits: tuple[Float32[np.ndarray, "fit task"], Float32[np.ndarray, "scored task"]],
    ) -> Answers:
        codes, held = self.directions.amounts[self.fit], self.directions.amounts[self.score]
        chooser = Chooser(codes)
        cosines = self.directions.vectors @ unit.T
        along = self.x[self.score] @ unit.T
        out = Answers()
        for task in range(len(tasks.names)):
            yes, truth = tasks.present[self.fit, task], tasks.present[self.score, task]
            limit = best_f1(logits[0][:, task], yes)[1]
            says = logits[1][:, task] > limit
            family = chooser.family(yes, held, truth)
            out.families.append(family)
            out.probe.append(f1_of(says, truth))
            hits = says & truth
            out.hits.append(hits)
            rates = absorbed(held, cosines[:, task], along[:, task], hits, family.latents)
            for name, values in rates.items():
                out.rates[name].append(values)
        return out


def _mean_of_ratios(n: int) -> Callable[[Float64[np.ndarray, "part replicate"]], Any]:
    """Return a function from sums of n numerators and n denominators to the mean of their ratios.

    Ratios whose denominator is 0 are left out; the mean is NaN where all are.
    """

    def statistic(s: Float64[np.ndarray, "part replicate"]) -> Float64[np.ndarray, " replicate"]:
        there = s[n:] > 0
        ratio = np.divide(s[:n], s[n:], out=np.zeros_like(s[:n]), where=there)
        count = there.sum(0)
        mean = np.full(s.shape[1], np.nan)
        np.divide(ratio.sum(0), count, out=mean, where=count > 0)
        return mean

    return statistic


def _rate(
    case: Case,
    answers: Answers,
    name: str,
    tasks: Int64[np.ndarray, " task"],
    score: Int64[np.ndarray, " scored"],
) -> tuple[float, float, float]:
    """Return the mean over tasks of what is absorbed at their hits, and its interval; NaN without tasks."""
    if len(tasks) == 0:
        return math.nan, math.nan, math.nan
    parts = np.stack([part[task] for part in (answers.rates[name], answers.hits) for task in tasks])
    return over_documents(
        _mean_of_ratios(len(tasks)), parts.astype(np.float64), case.documents[score], case.seed
    )


def _rates(
    case: Case,
    kind: str,
    answers: tuple[Answers, Answers, Answers],
    score: Int64[np.ndarray, " scored"],
) -> list[Finding]:
    """Return the means over labels of each of `RATES`, with either null."""
    real, moved, drawn = answers
    # a value and its nulls are means over the same labels: those that a probe found in all of them
    found_by = np.array([[hits.any() for hits in each.hits] for each in answers])
    tasks = np.flatnonzero(found_by.all(0) if found_by.all(0).any() else found_by[0])
    n = int(sum(real.hits[task].sum() for task in tasks))
    findings = []
    for rate in RATES:
        value = _rate(case, real, rate, tasks, score)
        reason = "" if math.isfinite(value[0]) else "no probe found its label"
        for answer, suffix in ((drawn, ""), (moved, "_permuted")):
            name, null = f"{kind}_{rate}{suffix}", _rate(case, answer, rate, tasks, score)
            findings.append(Finding("label_families", name, *value, n, *null, reason=reason))
    return findings


def _means(kind: str, answers: tuple[Answers, Answers, Answers], seed: int) -> list[Finding]:
    """Return the mean size of families and their mean F1, with the null of each."""
    real, moved, drawn = answers
    families = (real.families, drawn.families)
    columns = {
        "size": tuple([float(len(family.latents)) for family in side] for side in families),
        "f1_best": tuple([family.first for family in side] for side in families),
        "f1_family": tuple([family.whole for family in side] for side in families),
        "f1_probe": (real.probe, moved.probe),
    }
    findings = []
    for name, sides in columns.items():
        values, nulls = (np.array(side) for side in sides)
        # the same labels on both sides
        known = np.isfinite(values) & np.isfinite(nulls)
        known = known if known.any() else np.isfinite(values)
        mean, null, n = _mean(values[known], seed), _mean(nulls[known], seed), int(known.sum())
        undefined = "no latent is active more often with a label"
        reason = "" if math.isfinite(mean[0]) else undefined
        findings.append(
            Finding("label_families", f"{kind}_{name}", *mean, n, *null, of="labels", reason=reason)
        )
    return findings


def _by_label(
    case: Case,
    kind: str,
    labels: tuple[str, ...],
    answers: tuple[Answers, Answers],
    score: Int64[np.ndarray, " scored"],
) -> list[Finding]:
    """Return each label's family size and full absorption, with those of random directions as nulls."""
    findings = []
    for i, label in enumerate(labels):
        n = int(answers[0].hits[i].sum())
        size, null = (float(len(answer.families[i].latents)) for answer in answers)
        findings.append(Finding("label_families", f"{kind}_size/{label}", size, n=n, null=null))
        name, reason = f"{kind}_full_family/{label}", "" if n else "the probe never found it"
        rates = [_rate(case, each, "full_family", np.array([i]), score) for each in answers]
        findings.append(Finding("label_families", name, *rates[0], n, *rates[1], reason=reason))
    return findings


def _mean(values: Float64[np.ndarray, " label"], seed: int) -> tuple[float, float, float]:
    """Return a mean over labels, those that are NaN left out, and its bootstrap interval over labels."""
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return math.nan, math.nan, math.nan
    if len(values) == 1:
        return float(values[0]), math.nan, math.nan
    random = numpy_generator(seed, "audit", "families", "bootstrap", len(values))
    many = values[resampled_units(random, len(values), 1_000)].mean(1)
    return float(values.mean()), *percentile_interval(many)


_OF = {"label": "labels of the text", "letter": "first letters of tokens"}
_DRAWN = "the same for labels that say where x lies far along random directions, equally often"
_MOVED = "the same with labels that changed places with those of other documents"
_MAIN = {
    "single": "the best latent (inflated where a label is split over latents)",
    "family": "all latents of the label's family",
}


def _names(kind: str) -> list[str]:
    return [quantity.name for quantity in _quantities(kind)]


def _quantities(kind: str) -> list[Quantity]:
    out = []
    for version in VERSIONS:
        definitions = {
            "full": f"mean over {_OF[kind]} of the share of tokens that have the label, and whose "
            "probe on x says so, on "
            f"which {_MAIN[version]} are silent and another latent, with a cosine of "
            f"{FULL_COSINE} or more to the probe, "
            f"carries {FULL_SHARE} or more of x's projection on it",
            "fraction": f"mean over {_OF[kind]} and such tokens of the projection of up to "
            f"{MOST_ABSORBERS} other latents "
            f"(cosine {PART_COSINE} or more), over theirs plus that of {_MAIN[version]}",
        }
        for measure, definition in definitions.items():
            for null, suffix in ((_DRAWN, ""), (_MOVED, "_permuted")):
                out.append(
                    Quantity(
                        f"{kind}_{measure}_{version}{suffix}",
                        "share",
                        "lower",
                        null,
                        definition,
                        "Only what exceeds both nulls is absorption: there, a silent latent does "
                        "not mean that the "
                        "label is absent."
                        if version == "family"
                        else "",
                    )
                )
    out += [
        Quantity(
            f"{kind}_size",
            "latents",
            "lower",
            _DRAWN,
            f"mean over {_OF[kind]} of the latents in the family: each raises F1 of a logistic "
            f"probe on the family's codes "
            f"by more than {JUMP}; at most {MOST_LATENTS}",
            "Steer or ablate the whole family, not its best latent.",
        ),
        Quantity(
            f"{kind}_f1_best",
            "F1",
            "higher",
            _DRAWN,
            f"mean over {_OF[kind]} of the F1 of the family's best latent, on other documents",
            "If it is far below the probe's, do not use a single latent as a detector.",
        ),
        Quantity(
            f"{kind}_f1_family",
            "F1",
            "higher",
            _DRAWN,
            f"mean over {_OF[kind]} of the F1 of a logistic probe on the family's codes, on other "
            f"documents",
            "Use the family as a detector if it comes near the probe.",
        ),
        Quantity(
            f"{kind}_f1_probe",
            "F1",
            "higher",
            _MOVED,
            f"mean over {_OF[kind]} of the F1 of a logistic probe on x, on other documents",
            "This is the ceiling: labels that it misses say nothing about the SAE.",
        ),
    ]
    return out


AUDITS.add(
    Audit(
        name="label_families",
        title="Absorption and split families",
        question="Is a label spread over latents, or swallowed by others where its own latents "
        "should fire?",
        source="Chanin et al. 2024 (arXiv 2409.14507), without integrated gradients, as SAEBench "
        "(Karvonen et al. 2025). "
        "Deviations: decoder norms are folded into codes; probes have a small ridge in whitened "
        "coordinates; latents "
        "join a family by the gradient of the logistic loss instead of an L1 probe; any labels, "
        "not letters alone; "
        "projections are of x - b_dec; both nulls.",
        quantities=tuple(quantity for kind in KINDS for quantity in _quantities(kind)),
        run=run,
    ),
)
