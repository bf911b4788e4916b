"""What an audit of an SAE is: one question about where it misleads, with its null, in one file.

An audit reads a `Case`, an SAE on held-out tokens with the model behind it, and returns findings. A
finding is a number with its interval and, beside it, what the same number is where there is nothing to find.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Integer

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


@dataclass(frozen=True, eq=False)
class Case:
    """One SAE under audit.

    Attributes:
        reading: The SAE on held-out tokens, in model units.
        subject: The model behind its hookpoint, on the same tokens; None where it cannot be run, and
            `no_subject` says why.
        labels: What is known of the tokens; None where nothing is.
        others: SAEs of the same activations, for what another dictionary can explain: by name, that is
            its architecture and seed.
        spec: How it is audited.
        seed: Names all draws.
        letters: Whether first letters may stand for labels: not where other arms of the trial have labels,
            with which the numbers are to be compared.
        track: Shows long work within an audit.
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

    @functools.cached_property
    def reconstruction(self) -> Float32[torch.Tensor, "token d_in"]:
        """The SAE's reconstruction of every token."""
        params, csr = self.reading.sae.params, self.reading.codes
        rows = params["W_dec"].detach().float().cpu().numpy()
        found = torch.from_numpy(np.ascontiguousarray(csr @ rows, dtype=np.float32))
        return found + params["b_dec"].detach().float().cpu()

    @functools.cached_property
    def error(self) -> Float32[torch.Tensor, "token d_in"]:
        """The activations less their reconstruction."""
        return self.reading.activations.float().cpu() - self.reconstruction

    @property
    def documents(self) -> Integer[np.ndarray, " token"]:
        """Document of each token."""
        return self.reading.tokens.documents

    @property
    def n_tokens(self) -> int:
        """Held-out tokens."""
        return len(self.reading.tokens)

    def halves(self) -> tuple[Bool[np.ndarray, " token"], Bool[np.ndarray, " token"]]:
        """Return tokens to fit on and tokens to score on: of different documents.

        Raises:
            NotEstimable: there are fewer than four documents.
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
        audit: Which audit found it.
        name: Of the number, unique within the audit.
        value: NaN where it cannot be estimated; `reason` says why.
        low, high: 95% interval; NaN where there is none.
        n: What it is of, tokens unless `of` says else.
        null: What the value is where there is nothing to find; NaN where that is known in words alone.
        null_low, null_high: Range or interval of the null; NaN where it is exact.
        at: Place on a curve; NaN where the finding is no point of one.
        of: What `n` counts.
        reason: Why there is no value.
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
    """What one audit says of one SAE.

    Attributes:
        findings: Numbers.
        latents: Numbers by latent, [latent], by name; NaN where a latent has none.
        tokens: Numbers by held-out token, [token], by name; NaN where a token has none.
    """

    findings: list[Finding]
    latents: dict[str, Float64[np.ndarray, " latent"]] = field(default_factory=dict)
    tokens: dict[str, Float64[np.ndarray, " token"]] = field(default_factory=dict)


@dataclass(frozen=True)
class Quantity:
    """What one number of an audit is.

    Attributes:
        name: As in `Finding`.
        unit: "share", "nats", "1" for pure numbers, ...
        better: Whether higher or lower is better, or neither.
        null: The value where there is nothing to find, in words.
        definition: The formula in words.
        advice: What to do about a bad value, one sentence; shown in the report.
        along: What `Finding.at` is, for points of a curve.
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
        name: Identifier.
        title: Heading.
        question: What it asks, one sentence.
        source: Paper, and every deviation from it.
        quantities: What its numbers are.
        run: Case to findings; raises `NotEstimable` where it can say nothing.
    """

    name: str
    title: str
    question: str
    source: str
    quantities: tuple[Quantity, ...]
    run: Callable[[Case], Audited]


AUDITS: Registry[Audit] = Registry("audit")
"""Every audit, by name."""


def audit(case: Case, names: tuple[str, ...] | None = None) -> dict[str, Audited]:
    """Return what audits say of an SAE, by name; one that cannot be made says why in its findings."""
    found = {}
    for name in AUDITS.entries if names is None else names:
        one = AUDITS[name]
        try:
            found[name] = one.run(case)
        except (ModelError, NotEstimable) as refusal:
            found[name] = refused(name, str(refusal))
    return found


def refused(name: str, reason: str) -> Audited:
    """Return what an audit says that could not be made: none of its numbers, and why."""
    numbers = AUDITS[name].quantities
    return Audited([Finding(name, one.name, math.nan, reason=reason) for one in numbers])


def over_documents(
    statistic: Callable[[Float64[np.ndarray, "part replicate"]], Float64[np.ndarray, " replicate"]],
    parts: Float[np.ndarray, "part token"],
    documents: Integer[np.ndarray, " token"],
    seed: int,
) -> tuple[float, float, float]:
    """Return a statistic of sums over tokens, with its 95% interval over documents.

    Args:
        statistic: From the sums of each part, [part, replicate], to values: `lambda s: s[0] / s[1]` for a
            ratio of means.
        parts: What is summed, by token.
        documents: Of each token.
        seed: Names the bootstrap.

    Returns:
        The value, and the bootstrap's 2.5% and 97.5% quantiles; NaN bounds of fewer than two documents.
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
        found = statistic(sums @ weights.T)
    return value, *percentile_interval(found, leave_out_undefined=True)
