"""Latents and features are matched, by direction or by activation, and their agreement is scored."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int64

from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.core.lazy import torch
from sae_placebo.lab.generators.base import GeneratorTruth
from sae_placebo.latents.partners.assignment import AssignmentSpec, assign, unit_rows
from sae_placebo.saes import Codes

_CHUNK_NUMBERS = 1 << 24
"""Numbers of a block of cosines: 64 MB."""


@dataclass(frozen=True, eq=False)
class Matching:
    """Which latent goes with which feature, and how similar they are.

    A similarity is a cosine of directions, or a correlation of codes; `kind` says which. Rows of zeros, and
    codes that never vary, have similarity 0 to everything.
    """

    feature: Int64[np.ndarray, " latent"]
    """Feature that the assignment gives to the latent, one to one; -1 where none was left."""
    similarity: Float[np.ndarray, " latent"]
    """Absolute similarity of the assigned pair; NaN where there is none."""
    nearest: Int64[np.ndarray, " latent"]
    """Feature of the largest absolute similarity, which latents may share; -1 where all of them are 0."""
    nearest_similarity: Float[np.ndarray, " latent"]
    """Similarity to the nearest feature, with its sign."""
    signed: Float[np.ndarray, " latent"]
    """Largest similarity of the latent to a feature, where the opposite direction is another."""
    best: Float[np.ndarray, " feature"]
    """Largest similarity of the feature to a latent, where the opposite direction is another."""
    best_latent: Int64[np.ndarray, " feature"]
    """Latent that has it."""
    mcc: float
    """Mean absolute similarity of the assigned pairs, which are as many as the smaller side has rows."""
    mcc_signed: float
    """Mean similarity of the pairs of the assignment with the largest sum of signed similarities."""
    kind: Literal["direction", "activation"]
    method: str
    """`optimal`, or `greedy` where there are too many rows; see `latents.partners.assignment.assign`."""

    @property
    def mmcs(self) -> float:
        """Return the mean over features of the largest similarity to a latent.

        It is a recall, blind to what other latents there are.
        """
        return float(self.best.mean())

    @property
    def mmcs_of_latents(self) -> float:
        """Return the mean over latents of the largest similarity to a feature, which is a precision."""
        return float(self.signed.mean())

    @property
    def multiplicity(self) -> Int64[np.ndarray, " feature"]:
        """Return, for each feature, the number of latents whose nearest feature it is."""
        return np.bincount(self.nearest[self.nearest >= 0], minlength=len(self.best)).astype(
            np.int64
        )

    @property
    def uniqueness(self) -> float:
        """Return the number of features that are nearest to some latent, divided by that of latents.

        For random directions and many more features than latents it is near 1 - latents / (2 features).
        """
        return float((self.multiplicity > 0).sum() / len(self.nearest))

    @property
    def pairs(self) -> Int64[np.ndarray, "pair 2"]:
        """Return the assigned pairs (latent, feature), in order of latents."""
        latents = np.flatnonzero(self.feature >= 0)
        return np.stack([latents, self.feature[latents]], axis=1).astype(np.int64)


def matching(
    learned: Float[torch.Tensor, "latent d_in"],
    truth: GeneratorTruth | Float[torch.Tensor, "feature d_in"],
    spec: AssignmentSpec | None = None,
) -> Matching:
    """Return the matching of latents' decoder rows with features' directions; lengths do not matter.

    The assignment is the Hungarian one (scipy, cubic at worst), once by absolute and once by signed cosine.
    With more than `spec.optimal_up_to` rows (4,096 if not given) on either side, nearest pairs are taken
    first instead; their sum is a little smaller, so compare it only with nulls made the same way.

    Args:
        learned: Decoder rows.
        truth: Truth, or its directions.
        spec: Says up to how many rows the assignment is the best one.

    Source: MCC as in SynthSAEBench (arXiv 2602.14687); MMCS as in Sharkey, Braun and Millidge (2022).

    Raises:
        SpecError: one side has no rows, or widths differ.
    """
    directions = truth.dictionary if isinstance(truth, GeneratorTruth) else truth
    if not len(learned) or not len(directions) or learned.shape[1] != directions.shape[1]:
        raise SpecError(
            f"rows of shape {tuple(learned.shape)} and {tuple(directions.shape)} cannot be matched: "
            "give at least one of each, of one width"
        )
    rows, features = _rows(learned), _rows(directions)
    size = max(1, _CHUNK_NUMBERS // len(features))
    blocks = (rows[first : first + size] @ features.T for first in range(0, len(rows), size))
    plain, signed = assign(rows, features, spec, signed=False), assign(rows, features, spec)
    return _matching(
        blocks,
        (plain.partner, plain.cosine),
        float(np.nanmean(signed.cosine)),
        "direction",
        plain.method,
    )


def matching_by_activation(found: Codes, true: Codes) -> Matching:
    """Return the matching of latents with features by the correlation of their codes over tokens.

    It counts when a latent fires, not where it points. The matrix [latent, feature] of correlations is held
    in memory, and its Hungarian assignment is always the best one, however long it takes.

    Raises:
        SpecError: the numbers of tokens differ, so the codes are of different tokens.
        NotEstimable: no feature is active, or no latent fires.
    """
    same_tokens(found, true)
    from scipy.optimize import linear_sum_assignment

    correlations = correlation(code_matrix(found), code_matrix(true))
    latents, features = linear_sum_assignment(-np.abs(correlations))
    partner = np.full(found.d_sae, -1, np.int64)
    similarity = np.full(found.d_sae, np.nan)
    partner[latents], similarity[latents] = features, np.abs(correlations[latents, features])
    rows, columns = linear_sum_assignment(-correlations)
    mean = float(correlations[rows, columns].mean())
    return _matching([correlations], (partner, similarity), mean, "activation", "optimal")


def same_tokens(found: Codes, true: Codes) -> None:
    """Check that an SAE's codes and the true ones are of the same tokens and can be compared.

    Raises:
        SpecError: the numbers of tokens differ, so the codes are of different tokens.
        NotEstimable: no feature is active, or no latent fires.
    """
    if found.n_tokens != true.n_tokens:
        raise SpecError(
            f"{found.n_tokens} tokens' codes cannot be compared with {true.n_tokens} tokens': encode "
            "the tokens of the same draw"
        )
    if not len(true.latents) or not len(found.latents):
        raise NotEstimable("no feature is active on these tokens, or no latent fires")


def code_matrix(codes: Codes, threshold: float | None = None) -> Any:
    """Return codes as scipy CSR [token, latent], float64; with a threshold, 1 stands where they exceed it.

    Codes count by their absolute value, since those of features of several dimensions may be negative, so a
    threshold of 0 gives 1 for every code that is not 0.
    """
    from scipy.sparse import csr_matrix

    values = codes.values.numpy().astype(np.float64)
    if threshold is not None:
        values = (np.abs(values) > threshold).astype(np.float64)
    shape = (codes.n_tokens, codes.d_sae)
    matrix = csr_matrix((values, codes.latents.numpy(), codes.offsets.numpy()), shape=shape)
    if threshold:
        matrix.eliminate_zeros()
    return matrix


def correlation(a: Any, b: Any) -> Float[np.ndarray, "column other"]:
    """Return correlations of the columns of two sparse matrices, which have the same tokens as rows.

    They are 0 where a column has no variance.
    """
    n = a.shape[0]
    means = [np.asarray(part.mean(axis=0)).ravel() for part in (a, b)]
    squares = [np.asarray(part.multiply(part).mean(axis=0)).ravel() for part in (a, b)]
    sds = [
        np.sqrt(np.maximum(square - mean**2, 0))
        for mean, square in zip(means, squares, strict=True)
    ]
    covariance = (a.T @ b).toarray() / n - np.outer(means[0], means[1])
    scale = np.outer(*[np.where(sd > 1e-9, sd, np.inf) for sd in sds])
    correlations: Float[np.ndarray, "column other"] = covariance / scale
    return correlations


def _rows(rows: Float[torch.Tensor, "row d_in"]) -> Float[np.ndarray, "row d_in"]:
    return unit_rows(rows.detach().double().numpy())


def _matching(
    blocks: Iterable[Float[np.ndarray, "_ feature"]],
    assigned: tuple[Int64[np.ndarray, " latent"], Float[np.ndarray, " latent"]],
    mcc_signed: float,
    kind: Literal["direction", "activation"],
    method: str,
) -> Matching:
    """Return the matching whose similarities come in blocks of latents, in order, to all features."""
    nearest, near, signed = [], [], []
    best: Any = None
    best_latent: Any = None
    first = 0
    for block in blocks:
        at = np.abs(block).argmax(axis=1)
        value = block[np.arange(len(block)), at]
        nearest.append(np.where(value != 0, at, -1).astype(np.int64))
        near.append(value)
        signed.append(block.max(axis=1))
        row = block.argmax(axis=0).astype(np.int64)
        top = block[row, np.arange(block.shape[1])].astype(np.float64)
        if best is None:
            best, best_latent = top, row
        else:
            best_latent = np.where(top > best, row + first, best_latent)
            best = np.maximum(top, best)
        first += len(block)
    partner, similarity = assigned
    return Matching(
        feature=partner,
        similarity=similarity.astype(np.float64),
        nearest=np.concatenate(nearest),
        nearest_similarity=np.concatenate(near).astype(np.float64),
        signed=np.concatenate(signed).astype(np.float64),
        best=best,
        best_latent=best_latent,
        mcc=float(np.nanmean(similarity)),
        mcc_signed=mcc_signed,
        kind=kind,
        method=method,
    )
