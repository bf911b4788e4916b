"""What an audit of an SAE is: one question about where the SAE misleads, answered by numbers with nulls.

An audit reads a `Case`, which is an SAE on held-out tokens together with the model behind it, and returns
findings. A finding is a number with its interval and its null: the value of the same number where there is
nothing to find.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64, Integer

from sae_placebo.audits.spec import AuditSpec as AuditSpec
from sae_placebo.causal.use.base import Subject
from sae_placebo.core.errors import ModelError, NotEstimable
from sae_placebo.core.lazy import torch
from sae_placebo.core.progress import Track, untracked
from sae_placebo.core.spec import Registry, numpy_generator
from sae_placebo.data.labels.truth import TokenLabels
from sae_placebo.latents.base import Encoded
from sae_placebo.stats.bootstrap import percentile_interval, resampled_counts

RESAMPLES = 1000
"""Resamples of the documents behind an interval."""


@dataclass(frozen=True, eq=False)
class Case:
    """One SAE under audit.

    Attributes:
        reading: The SAE's codes and the activations at the held-out tokens, in model units.
        subject: The model behind the SAE's hookpoint, on the same tokens; None where it cannot be run.
        labels: The labels of the tokens; None where there are none.
        others: Other SAEs of the same activations by name (architecture and seed). They tell what another
            dictionary can explain.
        spec: The settings of the audits.
        seed: The seed that all random draws are named by.
        letters: Whether first letters may take the place of labels. They may not where other arms of the
            trial have labels, since their numbers could not be compared with those of letters.
        track: Shows the progress of long work within an audit.
        no_subject: Why the model cannot be run, where `subject` is None.
    """

    reading: Encoded
    subject: Subject | None
    labels: TokenLabels | None
    others: dict[str, Encoded]
    spec: AuditSpec
    seed: int
    letters: bool = True
    track: Track = untracked
    no_subject: str = "the model cannot be run: audit an arm that has one"

    @property
    def x(self) -> Float32[torch.Tensor, "token d_in"]:
        """The activations in single precision, on the CPU."""
        return self.reading.activations.float().cpu()

    @property
    def b_dec(self) -> Float32[torch.Tensor, " d_in"]:
        """The SAE's decoder bias in single precision, on the CPU."""
        return self.reading.sae.params["b_dec"].detach().float().cpu()

    @functools.cached_property
    def reconstruction(self) -> Float32[torch.Tensor, "token d_in"]:
        """The SAE's reconstruction of every token."""
        rows = self.reading.sae.params["W_dec"].detach().float().cpu().numpy()
        codes = self.reading.codes
        return torch.from_numpy(np.ascontiguousarray(codes @ rows, dtype=np.float32)) + self.b_dec

    @functools.cached_property
    def error(self) -> Float32[torch.Tensor, "token d_in"]:
        """The activations less their reconstruction."""
        return self.x - self.reconstruction

    @functools.cached_property
    def documents(self) -> Int64[np.ndarray, " token"]:
        """The document that each token lies in."""
        return self.reading.tokens.documents.astype(np.int64)

    @property
    def n_tokens(self) -> int:
        """The number of held-out tokens."""
        return len(self.reading.tokens)

    def halves(self) -> tuple[Bool[np.ndarray, " token"], Bool[np.ndarray, " token"]]:
        """Return which tokens to fit on and which to score on; the two lie in different documents.

        Raises:
            NotEstimable: the tokens lie in fewer than four documents.
        """
        present = np.unique(self.documents)
        if len(present) < 4:
            raise NotEstimable(
                f"the held-out tokens lie in {len(present)} of the 4 documents that a split in two needs: "
                "hold out more documents"
            )
        order = numpy_generator(self.seed, "audit", "halves").permutation(present)
        fit = np.isin(self.documents, order[: len(order) // 2])
        return fit, ~fit


@dataclass(frozen=True)
class Finding:
    """A number about one SAE, and the same number where there is nothing to find.

    Attributes:
        audit: Name of the audit that found it.
        name: Name of the number, unique within the audit.
        value: The number; NaN where it cannot be estimated.
        low, high: Bounds of its 95% interval; NaN where there is no interval.
        n: How many tokens, or other units named in `of`, the number is taken over.
        null: The value where there is nothing to find; NaN where that is known in words alone.
        null_low, null_high: Bounds of the null's range or interval; NaN where the null is exact.
        at: The place on a curve that the number is a point of; NaN for other numbers.
        of: What `n` counts.
        reason: Why there is no value; empty where there is one.
    """

    audit: str
    name: str
    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    null: float = math.nan
    null_low: float = math.nan
    null_high: float = math.nan
    at: float = math.nan
    of: str = "tokens"
    reason: str = ""


@dataclass(frozen=True)
class Audited:
    """The result of one audit of one SAE.

    Attributes:
        findings: Numbers about the whole SAE.
        latents: Columns [latent] by name, with a number for each latent; NaN where a latent has none.
        tokens: Columns [token] by name, with a number for each held-out token; NaN where it has none.
    """

    findings: list[Finding]
    latents: dict[str, Float64[np.ndarray, " latent"]] = field(default_factory=dict)
    tokens: dict[str, Float64[np.ndarray, " token"]] = field(default_factory=dict)


@dataclass(frozen=True)
class Quantity:
    """The declaration of one number of an audit.

    Attributes:
        name: The number's name, as in `Finding`.
        unit: Its unit, such as "share" or "nats"; "1" for pure numbers.
        better: Whether higher or lower values are better, or neither.
        null: The value where there is nothing to find, in words.
        definition: The formula, in words.
        advice: One sentence on what to do about a bad value; the report shows it.
        along: What `Finding.at` measures where the numbers are points of a curve; empty for others.
    """

    name: str
    unit: str
    better: Literal["higher", "lower", "neither"]
    null: str
    definition: str
    advice: str = ""
    along: str = ""


@dataclass(frozen=True)
class Audit:
    """One question about where an SAE misleads.

    Attributes:
        name: Identifier in tables and settings.
        title: Heading in the report.
        question: The question, in one sentence.
        source: The paper that it is taken from, and every deviation from it.
        quantities: The declarations of its numbers.
        run: A function from a case to findings, which raises `NotEstimable` where it can say nothing.
    """

    name: str
    title: str
    question: str
    source: str
    quantities: tuple[Quantity, ...]
    run: Callable[[Case], Audited]


AUDITS: Registry[Audit] = Registry("audit")
"""Every audit whose module has been imported, by name."""


def audit(case: Case, names: tuple[str, ...] | None = None) -> dict[str, Audited]:
    """Return the results of audits of one SAE, by the audits' names.

    An audit that cannot be made raises nothing: its findings have no values, and the reason instead.

    Args:
        case: The SAE.
        names: The audits to make; all in `AUDITS` unless given.
    """
    results = {}
    for name in AUDITS.entries if names is None else names:
        try:
            results[name] = AUDITS[name].run(case)
        except (ModelError, NotEstimable) as refusal:
            results[name] = refused(name, str(refusal))
    return results


def refused(name: str, reason: str) -> Audited:
    """Return the result of an audit that could not be made: all its numbers, NaN, with the reason."""
    numbers = AUDITS[name].quantities
    return Audited([Finding(name, number.name, math.nan, reason=reason) for number in numbers])


def over_documents(
    statistic: Callable[[Float64[np.ndarray, "part replicate"]], Float64[np.ndarray, " replicate"]],
    parts: Float[np.ndarray, "part token"],
    documents: Integer[np.ndarray, " token"],
    seed: int,
) -> tuple[float, float, float]:
    """Return a statistic of sums over tokens, with its 95% interval over documents.

    Args:
        statistic: A function from the sums of each part [part, replicate] to values [replicate], such as
            `lambda s: s[0] / s[1]` for a ratio of means.
        parts: The numbers of each token that are summed.
        documents: The document that each token lies in.
        seed: The seed that the bootstrap is named by.

    Returns:
        The value, and the 2.5% and 97.5% quantiles over resamples of the documents. Both bounds are NaN
        with fewer than two documents.
    """
    present, owner = np.unique(documents, return_inverse=True)
    sums = np.stack([np.bincount(owner, part.astype(np.float64), len(present)) for part in parts])
    value = float(statistic(sums.sum(1, keepdims=True))[0])
    n = len(present)
    if n < 2:
        return value, math.nan, math.nan
    random = numpy_generator(seed, "audit", "bootstrap", n)
    weights = resampled_counts(random, n, RESAMPLES)
    with np.errstate(divide="ignore", invalid="ignore"):
        replicates = statistic(sums @ weights.T)
    return value, *percentile_interval(replicates, leave_out_undefined=True)
