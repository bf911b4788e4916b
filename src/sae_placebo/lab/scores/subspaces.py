"""Whether latents span features of several dimensions, and how many latents that takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64

from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import numpy_generator
from sae_placebo.lab.generators.base import GeneratorTruth
from sae_placebo.saes import Codes


@dataclass(frozen=True, eq=False)
class SubspaceRecovery:
    """How far latents span each feature of several dimensions.

    A latent serves the feature that holds most of its row's squared length, if that is more than half.
    Similarities and angles are NaN where no latent serves a feature, since there is no span to compare.
    """

    dimensions: Int64[np.ndarray, " feature"]
    """Number of dimensions of the feature."""
    atoms: Int64[np.ndarray, " feature"]
    """Number of latents that serve the feature; it takes one per dimension at least to span all of it."""
    similarity: Float[np.ndarray, " feature"]
    """Mean squared cosine of the principal angles between the feature's subspace and the main directions, as
    many as it has dimensions, of the latents that serve it. A direction that no latent gives counts as 0."""
    largest_angle: Float[np.ndarray, " feature"]
    """Largest principal angle in degrees; 90 where latents span too few dimensions."""
    null: Float[np.ndarray, " feature"]
    """Mean similarity of as many rows of a random dictionary, those that lie nearest to the subspace."""
    null_sd: Float[np.ndarray, " feature"]
    """Standard deviation of that similarity between draws."""
    serves: Int64[np.ndarray, " latent"]
    """Feature that the latent serves; -1 where it serves none."""

    @property
    def mean_similarity(self) -> float:
        """Return the mean similarity over features, where one that no latent serves counts as 0."""
        return float(np.nan_to_num(self.similarity).mean())

    @property
    def mean_null(self) -> float:
        """Return the mean of the null over the same features."""
        return float(np.nan_to_num(self.null).mean())

    @property
    def atoms_per_feature(self) -> float:
        """Return the mean number of latents over features that any serves, or NaN if none is served."""
        served = self.atoms[self.atoms > 0]
        return float(served.mean()) if len(served) else float("nan")


def subspace_recovery(
    learned: Float[torch.Tensor, "latent d_in"],
    truth: GeneratorTruth,
    codes: Codes | None = None,
    *,
    seed: int = 0,
    draws: int = 20,
) -> SubspaceRecovery:
    """Return how well latents span each of the truth's features of several dimensions.

    Args:
        learned: Decoder rows; lengths do not matter.
        truth: Truth, with its subspaces.
        codes: Codes of the SAE on some tokens, by which latents count with the energy that they give, and
            those that never fire do not count. With None, all rows count alike.
        seed: Names the draws of the null.
        draws: Number of random dictionaries, 2 or more.

    Source: principal angles, Bjorck and Golub (1973).

    Raises:
        NotEstimable: the truth has no feature of several dimensions.
        SpecError: there are fewer than 2 draws.
    """
    if not truth.subspaces:
        raise NotEstimable("all features have one dimension, so there is no subspace to find")
    if draws < 2:
        raise SpecError(f"{draws} draws have no spread: take 2 or more")
    rows = learned.detach().double().numpy()
    lengths = np.linalg.norm(rows, axis=1)
    rows = rows / np.maximum(lengths, 1e-12)[:, None]
    weights = np.where(lengths > 0, 1.0, 0.0) if codes is None else _energies(codes, lengths)
    spans = [truth.dictionary[list(group)].double().numpy() for group in truth.subspaces]
    serves = _serves(rows, weights > 0, spans)
    random = numpy_generator(seed, "subspaces", *rows.shape)
    atoms = np.bincount(serves[serves >= 0], minlength=len(spans)).astype(np.int64)
    cosines = [
        _cosines(rows[serves == at], weights[serves == at], span) for at, span in enumerate(spans)
    ]
    null = np.full((draws, len(spans)), np.nan)
    for draw in range(draws):
        directions = random.standard_normal(rows.shape)
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        for at, span in enumerate(spans):
            if atoms[at]:
                near = np.argsort(-np.square(directions @ span.T).sum(axis=1))[: atoms[at]]
                drawn = _cosines(directions[near], np.ones(len(near)), span)
                null[draw, at] = np.square(drawn).mean()
    served = atoms > 0
    return SubspaceRecovery(
        dimensions=np.array([len(span) for span in spans], dtype=np.int64),
        atoms=atoms,
        similarity=np.where(served, [np.square(values).mean() for values in cosines], np.nan),
        largest_angle=np.where(
            served, [np.degrees(np.arccos(min(1.0, values.min()))) for values in cosines], np.nan
        ),
        null=null.mean(axis=0),
        null_sd=null.std(axis=0, ddof=1),
        serves=serves,
    )


def _energies(codes: Codes, lengths: Float[np.ndarray, " latent"]) -> Float[np.ndarray, " latent"]:
    squares = np.bincount(
        codes.latents.numpy(), np.square(codes.values.double().numpy()), minlength=codes.d_sae
    )
    energies: Float[np.ndarray, " latent"] = squares * lengths**2
    return energies


def _serves(
    rows: Float[np.ndarray, "latent d_in"],
    counts: Bool[np.ndarray, " latent"],
    spans: list[Float[np.ndarray, "_ d_in"]],
) -> Int64[np.ndarray, " latent"]:
    shares = np.stack([np.square(rows @ span.T).sum(axis=1) for span in spans], axis=1)
    best = shares.argmax(axis=1)
    most = shares[np.arange(len(rows)), best]
    return np.where(counts & (most > 0.5), best, -1).astype(np.int64)


def _cosines(
    rows: Float[np.ndarray, "served d_in"],
    weights: Float[np.ndarray, " served"],
    span: Float[np.ndarray, "dimension d_in"],
) -> Float[np.ndarray, " dimension"]:
    """Return the cosines of the principal angles, one per dimension of the span, 0 where rows give none."""
    cosines = np.zeros(len(span))
    if not len(rows):
        return cosines
    _, sizes, directions = np.linalg.svd(rows * np.sqrt(weights)[:, None], full_matrices=False)
    main = directions[: len(span)][sizes[: len(span)] > 1e-6 * sizes[0]]
    values = np.linalg.svd(main @ span.T, compute_uv=False)
    cosines[: len(values)] = np.minimum(values, 1.0)
    return cosines
