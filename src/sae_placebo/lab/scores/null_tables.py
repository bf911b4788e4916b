"""What dictionaries that learned nothing score on a truth, and how far above that a score lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32

from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import numpy_generator
from sae_placebo.lab.generators.base import GeneratorTruth
from sae_placebo.lab.scores.matching import Matching, matching
from sae_placebo.lab.scores.recovery import normalized
from sae_placebo.latents.partners.assignment import AssignmentSpec

Atoms = Literal["sphere", "gaussian", "data"]


@dataclass(frozen=True)
class Null:
    """What dictionaries that learned nothing reach on one score.

    Attributes:
        mean: Mean over draws.
        sd: Standard deviation between draws.
        draws: Number of draws.
    """

    mean: float
    sd: float
    draws: int

    def z(self, score: float) -> float:
        """Return how many standard deviations of the null a score lies above it.

        Raises:
            NotEstimable: all draws have the same score.
        """
        if not self.sd > 0:
            raise NotEstimable("all random dictionaries score the same, so there is no z")
        return (score - self.mean) / self.sd

    def above(self, score: float) -> float:
        """Return (score - null) / (1 - null), which is 0 at chance and 1 for the truth itself.

        Raises:
            NotEstimable: chance alone reaches 1.
        """
        if not self.mean < 1:
            raise NotEstimable("random dictionaries reach 1, so nothing can lie above them")
        return (score - self.mean) / (1 - self.mean)


@dataclass(frozen=True)
class MatchingNull:
    """What random dictionaries reach on each score of a `Matching`.

    Attributes:
        mmcs: Mean over features of the largest cosine.
        mmcs_of_latents: Mean over latents of the largest cosine.
        mean_max_abs: Mean over features of the largest absolute cosine.
        mcc: Mean absolute cosine of assigned pairs.
        mcc_signed: Mean cosine of the pairs of the best signed assignment.
        uniqueness: Number of distinct nearest features per latent.
        atoms: Law of the random rows; see `matching_null`.
    """

    mmcs: Null
    mmcs_of_latents: Null
    mean_max_abs: Null
    mcc: Null
    mcc_signed: Null
    uniqueness: Null
    atoms: Atoms


def matching_null(
    truth: GeneratorTruth | Float[torch.Tensor, "feature d_in"],
    d_sae: int,
    seed: int,
    *,
    atoms: Atoms = "sphere",
    x: Float[torch.Tensor, "token d_in"] | None = None,
    draws: int = 8,
    spec: AssignmentSpec | None = None,
) -> MatchingNull:
    """Return what `d_sae` random rows reach on this very truth.

    Args:
        truth: Truth, or its directions.
        d_sae: Number of random rows.
        seed: Names the draws.
        atoms: Law of the rows. `sphere` has uniform directions. `gaussian` draws from N(0, covariance of
            `x`), since real activations prefer some directions, and so do rows that only follow them. `data`
            takes tokens of `x` as they are, none twice.
        x: Activations, for `gaussian` and `data`.
        draws: Number of dictionaries drawn, 2 or more.
        spec: As in `matching`, since the null of a greedy assignment is greedy.

    Raises:
        SpecError: there are fewer than 2 draws, or activations are missing or too few.
    """
    directions = truth.dictionary if isinstance(truth, GeneratorTruth) else truth
    if draws < 2:
        raise SpecError(f"{draws} draws have no spread: take 2 or more")
    random = numpy_generator(seed, "matching null", directions.shape[1], d_sae, atoms)
    rows = _Rows(atoms, directions.shape[1], x)
    return _gathered(
        [_scored(rows.drawn(d_sae, random), directions, spec) for _ in range(draws)], atoms
    )


def random_null(
    d_in: int,
    n_features: int,
    d_sae: int,
    seed: int,
    draws: int | None = None,
    spec: AssignmentSpec | None = None,
) -> MatchingNull:
    """Return what random rows reach on random features, where both are uniform directions.

    Args:
        d_in: Number of dimensions.
        n_features: Number of features.
        d_sae: Number of rows.
        seed: Names the draws.
        draws: Number of pairs of dictionaries; None draws as many as make 2,000 pairs of rows, 4 to 400.
        spec: As in `matching`.

    Raises:
        SpecError: a size is below 1, or there are fewer than 2 draws.
    """
    if min(d_in, n_features, d_sae) < 1:
        raise SpecError(f"sizes are 1 or more; found {d_in}, {n_features}, {d_sae}")
    draws = draws or min(400, max(4, math.ceil(2000 / min(n_features, d_sae))))
    if draws < 2:
        raise SpecError(f"{draws} draws have no spread: take 2 or more")
    random = numpy_generator(seed, "random null", d_in, n_features, d_sae)
    rows = _Rows("sphere", d_in, None)
    return _gathered(
        [
            _scored(rows.drawn(d_sae, random), rows.drawn(n_features, random), spec)
            for _ in range(draws)
        ],
        "sphere",
    )


class _Rows:
    """Random rows are drawn from one law; see `matching_null`."""

    def __init__(
        self, atoms: Atoms, d_in: int, x: Float[torch.Tensor, "token d_in"] | None
    ) -> None:
        self.atoms, self.d_in = atoms, d_in
        if atoms == "sphere":
            return
        if x is None or len(x) < 2:
            raise SpecError(f"random rows like the activations ({atoms}) need activations: give x")
        self.x = x.detach().float().numpy()
        if atoms == "gaussian":
            values, vectors = np.linalg.eigh(np.cov(self.x, rowvar=False))
            self.root = (vectors * np.sqrt(np.maximum(values, 0))).T.astype(np.float32)

    def drawn(self, n: int, random: np.random.Generator) -> Float32[torch.Tensor, "row d_in"]:
        if self.atoms == "data":
            if n > len(self.x):
                raise SpecError(
                    f"{n} rows cannot be {len(self.x)} tokens, none twice: draw more tokens"
                )
            return torch.from_numpy(self.x[random.choice(len(self.x), n, replace=False)])
        noise = random.standard_normal((n, self.d_in), np.float32)
        return torch.from_numpy(noise @ self.root if self.atoms == "gaussian" else noise)


def _scored(
    rows: Float[torch.Tensor, "latent d_in"],
    directions: Float[torch.Tensor, "feature d_in"],
    spec: AssignmentSpec | None,
) -> tuple[Matching, float]:
    """Return the matching, and the mean largest absolute cosine of features."""
    either = torch.cat([rows, -rows])
    absolute = normalized(either) @ normalized(directions).t()
    return matching(rows, directions, spec), float(absolute.max(dim=0).values.double().mean())


def _gathered(scored: Sequence[tuple[Matching, float]], atoms: Atoms) -> MatchingNull:
    def of(values: list[float]) -> Null:
        return Null(float(np.mean(values)), float(np.std(values, ddof=1)), len(values))

    return MatchingNull(
        mmcs=of([matched.mmcs for matched, _ in scored]),
        mmcs_of_latents=of([matched.mmcs_of_latents for matched, _ in scored]),
        mean_max_abs=of([absolute for _, absolute in scored]),
        mcc=of([matched.mcc for matched, _ in scored]),
        mcc_signed=of([matched.mcc_signed for matched, _ in scored]),
        uniqueness=of([matched.uniqueness for matched, _ in scored]),
        atoms=atoms,
    )
