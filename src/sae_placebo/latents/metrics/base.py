"""What a metric reads, what it declares, and how all metrics are evaluated at once.

A metric turns the evidence about one SAE into one number for each column of document weights. A weight is a
multiplicity: 2 means that the document counts twice. Column 0 is all ones, so that value 0 is the point
estimate. The other columns are bootstrap replicates, which are the same for every arm, so that differences
between arms are paired.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float, Float32, Int32, Int64, Integer, Num

from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.spec import Registry
from sae_placebo.data.labels.truth import TokenLabels
from sae_placebo.latents.classes.classification import ClassThresholds

R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything that the metrics in `METRICS` read about one SAE on the held-out tokens.

    Masked positions have been removed, so that every token counts. Codes are compressed sparse rows over
    tokens; the order of the latents within a token has no meaning.

    Attributes:
        token_ids: Token id at each position.
        documents: Document of each position, 0 to n_documents - 1, ascending.
        n_documents: Number of held-out documents; some may have no tokens left.
        offsets: Where each token's codes begin in `latents` and `values`, and where the last ones end.
        latents: Index of each active latent.
        values: The latent's activation, above 0.
        d_sae: Number of latents in the SAE, active or not.
        vocabulary: The string of each token id, for families and for people.
        squared_error: Sum over a document's tokens of |x - x_hat|^2.
        activation_sum: Sum over a document's tokens of x.
        activation_energy: Sum over a document's tokens of |x|^2.
        lookup_error: Sum over a document's tokens of |x - E[x | token]|^2, with the table E fitted
            on training tokens; None where no table was fitted.
        gaussian_null_ev: Explained variance that the same recipe reaches on a Gaussian with the
            activations' mean and covariance; None where no SAE was trained there.
        gaussian_null_tokens: Number of tokens on which that was scored.
        thresholds: Where the classes of latents end.
        truth: Labels of the tokens; None where the text has no labels.
    """

    token_ids: Integer[np.ndarray, " token"]
    documents: Integer[np.ndarray, " token"]
    n_documents: int
    offsets: Int64[np.ndarray, " token_plus_one"]
    latents: Integer[np.ndarray, " active"]
    values: Float32[np.ndarray, " active"]
    d_sae: int
    vocabulary: Sequence[str]
    squared_error: Float[np.ndarray, " document"]
    activation_sum: Float[np.ndarray, "document d_in"]
    activation_energy: Float[np.ndarray, " document"]
    lookup_error: Float[np.ndarray, " document"] | None = None
    gaussian_null_ev: float | None = None
    gaussian_null_tokens: int | None = None
    thresholds: ClassThresholds = field(default_factory=ClassThresholds)
    truth: TokenLabels | None = None
    _kept: dict[tuple[str, int, bytes], Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse evidence whose parts do not fit together."""
        n = len(self.token_ids)
        if len(self.documents) != n or len(self.offsets) != n + 1:
            raise ValueError("token_ids, documents and offsets differ in their number of tokens")
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.latents):
            raise ValueError("offsets do not span the codes")
        if len(self.squared_error) != self.n_documents:
            raise ValueError(
                f"squared_error has {len(self.squared_error)} documents, not {self.n_documents}"
            )
        if n and (self.documents[0] < 0 or self.documents[-1] >= self.n_documents):
            raise ValueError("a document index is outside 0 to n_documents - 1")
        if np.any(np.diff(self.documents) < 0):
            raise ValueError("documents must be ascending")
        if n and not 0 <= self.token_ids.min() <= self.token_ids.max() < len(self.vocabulary):
            raise ValueError("a token id is outside the vocabulary")
        if len(self.latents) and not 0 <= self.latents.min() <= self.latents.max() < self.d_sae:
            raise ValueError("a latent index is outside 0 to d_sae - 1")
        if len(self.values) and not self.values.min() > 0:
            raise ValueError("codes hold a value that is not above 0")
        if self.truth is not None and (
            len(self.truth.known) != n or len(self.truth.second_half) != self.n_documents
        ):
            raise ValueError("truth is about other tokens or documents")

    @property
    def n_tokens(self) -> int:
        """Number of held-out tokens, each of which counts."""
        return len(self.token_ids)

    @property
    def document_tokens(self) -> Int64[np.ndarray, " document"]:
        """Number of tokens of each document."""
        return np.bincount(self.documents, minlength=self.n_documents).astype(np.int64)

    @property
    def code_tokens(self) -> Int32[np.ndarray, " active"]:
        """Token of each code."""
        return np.repeat(np.arange(self.n_tokens, dtype=np.int32), np.diff(self.offsets))

    def shared(
        self, name: str, weights: Num[np.ndarray, "document replicate"], compute: Callable[[], R]
    ) -> R:
        """Return what `compute` returns, which is computed once for this name and these weights.

        The result is kept as long as the evidence.
        """
        key = (name, weights.shape[1], hashlib.sha256(weights.tobytes()).digest())
        if key not in self._kept:
            self._kept[key] = compute()
        value: R = self._kept[key]
        return value


Values = Callable[
    [Evidence, Float[np.ndarray, "document replicate"]], Float[np.ndarray, " replicate"]
]


class Number(NamedTuple):
    """A number on each fold with its null, or the reason why there is no number."""

    values: Float[np.ndarray, " fold"] | None
    null_value: float | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Declared:
    """What a number about one SAE is, with what is needed to interpret it.

    Attributes:
        name: The number's name in tables.
        unit: Its unit; "share" for proportions, "1" for other pure numbers.
        better: Whether higher or lower is better, or neither.
        null: The value where there is nothing to find, in words.
        definition: The formula in words.
        source: Paper and every deviation from it.
        counts_latents: Whether it is a share of latents, and so changes in steps of one over d_sae.
        share_of: What it is a share of, where that is some of the latents, whose number differs from SAE to
            SAE; its bounds are cut at 0 and 1. Empty where it is of all, or no share.
        reads: What of the model it depends on: `activations` at a hookpoint, which W_U cannot change
            unless it is W_E, or `outputs`, which depend on W_U too. It decides which cells of the
            W_E x W_U factorial can differ.
    """

    name: str
    unit: str
    better: Literal["higher", "lower", "neither"]
    null: str
    definition: str
    source: str
    counts_latents: bool = False
    share_of: str = ""
    reads: Literal["activations", "outputs"] = "activations"


@dataclass(frozen=True, kw_only=True)
class Metric(Declared):
    """A number that is computed from the evidence about one SAE.

    Attributes:
        compute: Function that returns the values under each column of document weights; a value that is
            undefined is NaN.
        null_number: Function that returns the null as a number for one SAE, where there is such a number.
        counted: Function that returns how many tokens the metric and its null are computed from; None where
            that is all held-out tokens.
        grain: What one value is about.
    """

    compute: Values
    null_number: Callable[[Evidence], float | None] | None = None
    counted: Callable[[Evidence], int] | None = None
    grain: Literal["sae"] = "sae"

    def values(
        self, evidence: Evidence, weights: Num[np.ndarray, "document replicate"]
    ) -> Float[np.ndarray, " replicate"]:
        """Return the metric under each column of document multiplicities.

        A replicate in which the metric is undefined is NaN.

        Raises:
            NotEstimable: the value under column 0 is undefined; the message says why.
        """
        if weights.shape[0] != evidence.n_documents:
            raise ValueError(
                f"weights are for {weights.shape[0]} documents, not {evidence.n_documents}"
            )
        if evidence.n_tokens == 0:
            raise NotEstimable("no held-out token is left after masking")
        values = self.compute(evidence, weights.astype(np.float64))
        if not np.isfinite(values[0]):
            raise NotEstimable(f"{self.name} is undefined on these tokens")
        values[~np.isfinite(values)] = np.nan
        return values

    def null_value(self, evidence: Evidence) -> float | None:
        """Return the null for this SAE as a number, or None where it is known in words only."""
        return None if self.null_number is None else self.null_number(evidence)

    def n_tokens(self, evidence: Evidence) -> int:
        """Return how many tokens the metric and its null are computed from, for this SAE."""
        return evidence.n_tokens if self.counted is None else self.counted(evidence)


METRICS: Registry[Metric] = Registry("metric")


@dataclass(frozen=True)
class Measured:
    """One metric of one SAE: its values and null, or the reason why there are none."""

    values: Float[np.ndarray, " replicate"] | None
    null_value: float | None
    reason: str | None


def measure(
    evidence: Evidence,
    weights: Num[np.ndarray, "document replicate"],
    metrics: Mapping[str, Metric] | None = None,
) -> dict[str, Measured]:
    """Return every metric of one SAE under every column of document weights.

    A metric that cannot be estimated is returned as well, with its reason.

    Args:
        evidence: The evidence about the SAE.
        weights: Document multiplicities; column 0 is ones.
        metrics: The metrics by name; None for those of `METRICS`.
    """
    measured: dict[str, Measured] = {}
    for name, metric in (METRICS.entries if metrics is None else metrics).items():
        try:
            measured[name] = Measured(
                metric.values(evidence, weights), metric.null_value(evidence), None
            )
        except NotEstimable as refusal:
            measured[name] = Measured(None, None, str(refusal))
    return measured


def ratio(
    numerator: Float[np.ndarray, "*shape"], denominator: Float[np.ndarray, "*shape"]
) -> Float[np.ndarray, "*shape"]:
    """Return numerator / denominator, NaN where the denominator is not above 0."""
    out = np.full(np.shape(denominator), np.nan)
    np.divide(numerator, denominator, out=out, where=np.asarray(denominator) > 0)
    return out
