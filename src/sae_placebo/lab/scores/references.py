"""Dictionaries of methods much simpler than an SAE, which are scored on the truth as an SAE is.

PCA, ICA and k-means are those of `baselines`; K-SVD is here. The codes of each are found by inference, so
that no encoder decides how good a dictionary looks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32

from sae_placebo.baselines.base import BaselinesSpec, Dictionary, Material
from sae_placebo.baselines.centroids import fit_kmeans
from sae_placebo.baselines.independent_components import fit_ica
from sae_placebo.baselines.principal_components import fit_pca
from sae_placebo.baselines.pursuit import AtomCodes
from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import numpy_generator
from sae_placebo.lab.scores.inference import omp

Kind = Literal["pca", "ica", "kmeans", "ksvd"]
_ROUNDS = 20
_TIGHT = 0.99
"""Cosine above which two atoms count as one."""


@dataclass(frozen=True, eq=False)
class Reference:
    """A dictionary of one of these methods.

    Attributes:
        kind: Baseline that found it.
        directions: Unit rows; their sign means nothing, except for k-means.
        center: Vector that is subtracted before coding and added afterwards; zero for K-SVD, which does not
            center.
    """

    kind: Kind
    directions: Float32[torch.Tensor, "atom d_in"]
    center: Float32[torch.Tensor, " d_in"]

    def codes(
        self, x: Float[torch.Tensor, "token d_in"], k: int, *, nonnegative: bool = False
    ) -> AtomCodes:
        """Return codes of at most k atoms for each token, by orthogonal matching pursuit."""
        return omp(x - self.center, self.directions, k, nonnegative=nonnegative)

    def decode(self, codes: AtomCodes) -> Float32[torch.Tensor, "token d_in"]:
        """Return, for each token, the sum of the atoms weighted by the codes, plus the center."""
        return torch.from_numpy(codes.decode(self.directions.numpy())) + self.center


def reference_dictionary(
    kind: Kind, x: Float[torch.Tensor, "token d_in"], n: int, seed: int, k: int = 5
) -> Reference:
    """Return a reference dictionary with at most n atoms, fitted on `x`.

    PCA and ICA have d_in atoms at most, the others n. `baselines` names the sources of PCA (the directions of
    the n largest variances), ICA (FastICA, 200 iterations at most) and k-means, and `ksvd` that of K-SVD.

    Args:
        kind: Baseline to fit.
        x: Tokens to fit on; neither centered nor scaled.
        n: Number of atoms.
        seed: Names whatever the method draws.
        k: Atoms per token while K-SVD learns; the other methods do not use it.

    Raises:
        SpecError: there is no atom, there are fewer than two tokens, or the kind is unknown.
        NotEstimable: the method cannot be fitted to `x`.
    """
    if n < 1 or len(x) < 2:
        raise SpecError(f"{n} atoms and {len(x)} tokens: needed are at least 1 and 2")
    numbers = np.ascontiguousarray(x.detach().cpu().float().numpy())
    if kind == "ksvd":
        rows = ksvd(numbers, n, k, seed)
        return Reference(kind, torch.from_numpy(rows), torch.zeros(x.shape[1]))
    if kind not in _METHODS:
        raise SpecError(f"no reference is called {kind!r}; known: {', '.join(_METHODS)}, ksvd")
    center = numbers.mean(axis=0)
    material = Material(
        numbers - center,
        center,
        np.zeros(len(numbers), dtype=np.int64),
        None,
        n,
        seed,
        BaselinesSpec(ica_tokens=len(numbers) if len(numbers) >= 100 else 100, iterations=200),
    )
    fitted = _METHODS[kind](material)
    return Reference(kind, torch.from_numpy(fitted.directions[:n]), torch.from_numpy(fitted.center))


_METHODS: Mapping[str, Callable[[Material], Dictionary]] = {
    "pca": fit_pca,
    "ica": fit_ica,
    "kmeans": fit_kmeans,
}


def ksvd(
    x: Float32[np.ndarray, "token d_in"], n: int, k: int, seed: int, rounds: int = _ROUNDS
) -> Float32[np.ndarray, "atom d_in"]:
    """Return n unit rows that give tokens sparse codes of at most k atoms, of either sign.

    A round codes all tokens by orthogonal matching pursuit. It then turns one atom after the other to what
    the other atoms leave of the tokens that use it, and refits the coefficients of these tokens.

    Args:
        x: Tokens to fit on.
        n: Number of atoms.
        k: Atoms per token, at most.
        seed: Names the tokens that atoms start at.
        rounds: Number of rounds.

    Source: Aharon, Elad and Bruckstein, "K-SVD" (2006). Differs: one step of the power method replaces an
    SVD (Rubinstein, Zibulevsky and Elad 2008). Atoms start at tokens drawn at random. An atom that no token
    uses, or that lies within a cosine of 0.99 of another, is replaced by the token that is coded worst.

    Raises:
        SpecError: k is below 1.
        NotEstimable: there are fewer tokens other than zero than there are atoms.
    """
    if k < 1:
        raise SpecError(f"a token cannot be coded with {k} atoms: give k of 1 or more")
    lengths = np.linalg.norm(x, axis=1)
    usable = np.flatnonzero(lengths > 1e-6 * max(float(lengths.max()), 1e-30))
    if len(usable) < n:
        raise NotEstimable(
            f"K-SVD starts {n} atoms at tokens, of which {len(usable)} are not zero: give more tokens"
        )
    random = numpy_generator(seed, "ksvd", n, k, x.shape[1])
    first = random.choice(usable, n, replace=False)
    rows = (x[first] / lengths[first, None]).astype(np.float64)
    tokens = torch.from_numpy(x)
    for _ in range(rounds):
        codes = omp(tokens, torch.from_numpy(rows.astype(np.float32)), k)
        rows = _updated(x.astype(np.float64), rows, codes)
    rounded: Float32[np.ndarray, "atom d_in"] = rows.astype(np.float32)
    return rounded


def _updated(
    x: Float[np.ndarray, "token d_in"], rows: Float[np.ndarray, "atom d_in"], codes: AtomCodes
) -> Float[np.ndarray, "atom d_in"]:
    """Return the atoms after one pass over them."""
    rows = rows.copy()
    by_atom = codes.matrix.astype(np.float64).tocsc()
    left = x - by_atom @ rows
    for atom in range(len(rows)):
        part = slice(by_atom.indptr[atom], by_atom.indptr[atom + 1])
        users, weights = by_atom.indices[part], by_atom.data[part]
        twin = np.abs(rows @ rows[atom])
        twin[atom:] = 0
        if not len(users) or twin.max() > _TIGHT:
            worst = int(np.square(left).sum(axis=1).argmax())
            length = float(np.linalg.norm(left[worst]))
            if length > 0:
                left[users] += np.outer(weights, rows[atom])
                by_atom.data[part] = 0
                rows[atom] = left[worst] / length
                left[worst] = 0  # the next atom to be replaced takes another token
            continue
        target = left[users] + np.outer(weights, rows[atom])
        turned = weights @ target
        length = float(np.linalg.norm(turned))
        if length > 0:
            rows[atom] = turned / length
            left[users] = target - np.outer(target @ rows[atom], rows[atom])
    return rows
