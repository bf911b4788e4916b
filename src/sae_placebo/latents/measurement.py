"""One pass of an SAE over an arm's held-out activations, from which every metric is computed.

The SAE is read in model units. What leaves this module is its codes and its tables: the measurements with
their document replicates, and the coverage of labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int32, Int64
from pydantic import Field

from sae_placebo.core.lazy import pandas, torch
from sae_placebo.core.spec import Spec
from sae_placebo.core.tables import KEYS
from sae_placebo.core.tables.effects import MEASUREMENTS
from sae_placebo.data.readability import Readability
from sae_placebo.data.text import Rows
from sae_placebo.latents.classes.classification import ClassThresholds
from sae_placebo.latents.metrics import METRICS, Evidence, coverage_table
from sae_placebo.latents.metrics import measure as evaluate
from sae_placebo.models.gaussian import GaussianNull
from sae_placebo.saes import SAE, Codes

COLUMNS = tuple(name for name in MEASUREMENTS.without(KEYS) if name != "latent")
"""Columns of the table of measurements, here and in `profile`."""
_CHUNK_TOKENS = 8_192


class MeasurementSpec(Spec):
    """Settings of the measurement, and how much of it is kept to be shown.

    Attributes:
        replicates: Number of resamples of the documents behind each interval.
        thresholds: Where one class of latents ends and the next begins.
        shown_per_class: How many latents of each class, drawn at random, have their passages kept.
        passages: How many top activating passages of each shown latent are kept, each from another document.
        tokens_before: How many tokens are shown before the peak.
        tokens_after: How many tokens are shown after the peak.
        l0_tolerance: Largest difference from the trained arm's mean L0, relative to it, at which the
            report calls an arm matched.
    """

    replicates: int = Field(200, ge=20)
    thresholds: ClassThresholds = ClassThresholds()
    shown_per_class: int = Field(12, ge=0)
    passages: int = Field(4, ge=1)
    tokens_before: int = Field(24, ge=0)
    tokens_after: int = Field(12, ge=0)
    l0_tolerance: float = Field(0.05, gt=0)


@dataclass(frozen=True)
class HeldOut:
    """The held-out tokens that no arm leaves out.

    Attributes:
        rows: The rows that the tokens come from.
        places: [token, 2] row and position of each, in reading order.
        usable: [read] which of the tokens that were read are kept.
        vocabulary: Text of each token id.
        readability: How far each label can be read off tokens; None where tokens have no labels.
    """

    rows: Rows
    places: Int64[np.ndarray, "token two"]
    usable: Bool[np.ndarray, " read"]
    vocabulary: Sequence[str]
    readability: Readability | None = None

    @property
    def token_ids(self) -> Int32[np.ndarray, " token"]:
        """Id of each token."""
        ids: np.ndarray = self.rows.token_ids[self.places[:, 0], self.places[:, 1]]
        return ids

    @property
    def documents(self) -> Int32[np.ndarray, " token"]:
        """Document of each token, ascending."""
        documents: np.ndarray = self.rows.documents[self.places[:, 0]]
        return documents


def held_out(
    rows: Rows, outliers: Sequence[Bool[np.ndarray, " read"]], vocabulary: Sequence[str]
) -> HeldOut:
    """Return the held-out tokens that are an outlier in no arm.

    Args:
        rows: Held-out rows; they were read in order.
        outliers: One array for each arm's model, of which tokens that were read exceed its limit.
        vocabulary: Text of each token id.
    """
    row, position = np.nonzero(rows.usable())
    usable = ~np.logical_or.reduce(list(outliers))
    places = np.stack([row, position], axis=1)[usable].astype(np.int64)
    return HeldOut(rows, places, usable, vocabulary)


@dataclass(frozen=True)
class Measurement:
    """Tables about one SAE, and its codes.

    Attributes:
        measurements: One row per metric, with the columns `COLUMNS`.
        replicates: Values of each metric under resampled documents, [replicate]; 0 is the point estimate.
        coverage: One row per label of the tokens; there are none without labels.
        codes: The SAE's codes of the tokens, scipy CSR [token, d_sae].
    """

    measurements: Any
    replicates: dict[str, Float[np.ndarray, " replicate"]]
    coverage: Any
    codes: Any


def measure(
    sae: SAE,
    activations: Float[torch.Tensor, "token d_in"],
    tokens: HeldOut,
    lookup: tuple[torch.Tensor, torch.Tensor],
    gaussian: GaussianNull | None,
    weights: Float[np.ndarray, "document replicate"],
    spec: MeasurementSpec,
) -> Measurement:
    """Return everything measured about one SAE on the held-out tokens.

    Args:
        sae: The SAE, folded, in model units.
        activations: Activations at `tokens`, in model units.
        tokens: The tokens that the activations were read at.
        lookup: Ids seen in training and the table E[x | token]; see `activations.TokenMeans`.
        gaussian: What the same recipe reached on a Gaussian of the same covariance; None where it was not
            trained there.
        weights: Document multiplicities; column 0 is ones.
        spec: Thresholds and amounts.
    """
    from scipy.sparse import csr_matrix

    evidence = gather(sae, activations, tokens, lookup, gaussian, spec.thresholds)
    labels = tokens.rows.labels
    if tokens.readability is not None and labels is not None:
        evidence = replace(evidence, truth=tokens.readability.truth(labels, tokens.places))
    rows, replicates = [], {}
    for name, measured in evaluate(evidence, weights).items():
        value = None
        if measured.values is not None:
            replicates[name] = measured.values
            value = float(measured.values[0])
        unit, n = METRICS[name].unit, METRICS[name].n_tokens(evidence)
        rows.append([name, value, unit, measured.null_value, n, measured.reason])
    return Measurement(
        measurements=pandas.DataFrame(rows, columns=list(COLUMNS)),
        replicates=replicates,
        coverage=coverage_table(evidence),
        codes=csr_matrix(
            (evidence.values, evidence.latents, evidence.offsets),
            shape=(evidence.n_tokens, evidence.d_sae),
        ),
    )


def gather(
    sae: SAE,
    activations: Float[torch.Tensor, "token d_in"],
    tokens: HeldOut,
    lookup: tuple[torch.Tensor, torch.Tensor],
    gaussian: GaussianNull | None,
    thresholds: ClassThresholds,
) -> Evidence:
    """Return what the metrics read of one SAE, after encoding and decoding once.

    Args:
        sae: As in `measure`, like the four that follow.
        activations: Activations at `tokens`, in model units.
        tokens: The tokens that the activations were read at.
        lookup: Ids seen in training and the table E[x | token].
        gaussian: What the same recipe reached on a Gaussian of the same covariance.
        thresholds: Where one class of latents ends and the next begins.
    """
    n_documents = len(tokens.rows.names)
    ids = torch.from_numpy(tokens.token_ids.astype(np.int64))
    documents = torch.from_numpy(tokens.documents.astype(np.int64))
    seen, table = lookup
    entry = torch.full((len(tokens.vocabulary),), len(seen))
    entry[seen] = torch.arange(len(seen))
    sums = {
        name: torch.zeros(n_documents, dtype=torch.float64)
        for name in ("squared_error", "lookup_error", "activation_energy")
    }
    totals = torch.zeros(n_documents, activations.shape[1], dtype=torch.float64)
    parts: list[Codes] = []
    for first in range(0, len(ids), _CHUNK_TOKENS):
        chunk = slice(first, first + _CHUNK_TOKENS)
        x, owner = activations[chunk], documents[chunk]
        codes = sae.encode(x)
        parts.append(codes)
        for name, values in (
            ("squared_error", x - sae.decode(codes)),
            ("lookup_error", x - table[entry[ids[chunk]]]),
            ("activation_energy", x),
        ):
            sums[name].index_add_(0, owner, values.double().square().sum(1))
        totals.index_add_(0, owner, x.double())
    codes = Codes.concatenate(parts)
    return Evidence(
        token_ids=tokens.token_ids,
        documents=tokens.documents,
        n_documents=n_documents,
        offsets=codes.offsets.numpy(),
        latents=codes.latents.numpy(),
        values=codes.values.numpy(),
        d_sae=sae.d_sae,
        vocabulary=tokens.vocabulary,
        squared_error=sums["squared_error"].numpy(),
        activation_sum=totals.numpy(),
        activation_energy=sums["activation_energy"].numpy(),
        lookup_error=sums["lookup_error"].numpy(),
        gaussian_null_ev=None if gaussian is None else gaussian.explained_variance,
        gaussian_null_tokens=None if gaussian is None else gaussian.n_tokens,
        thresholds=thresholds,
    )
