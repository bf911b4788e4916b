"""Codes with few atoms: orthogonal matching pursuit, its non-negative form, and plain truncation."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int32, Int64

from sae_placebo.core.lazy import torch

_CHUNK_NUMBERS = 1 << 20
"""Numbers that a chunk of tokens may take at a time, in products or in bases: 4 MB."""
_NEARLY = 0.1
"""Length of a remainder below which rounding in the first pass of Gram-Schmidt matters."""
_IN_SPAN = 1e-3
"""Length of a unit atom's remainder below which the atom counts as a sum of those before it."""


@dataclass(frozen=True, eq=False)
class AtomCodes:
    """A sparse code: atoms and coefficients of each token. A slot whose value is 0 is not used.

    Attributes:
        atoms: Index of the atom in each slot; without meaning where the value is 0.
        values: Coefficient of the atom's unit direction, of either sign.
        n_atoms: How many atoms the dictionary has.
    """

    atoms: Int32[np.ndarray, "token slot"]
    values: Float32[np.ndarray, "token slot"]
    n_atoms: int

    @functools.cached_property
    def matrix(self) -> Any:
        """The code as a scipy CSR matrix [token, atom], without zeros."""
        from scipy.sparse import csr_matrix

        used = self.values != 0
        ends = np.concatenate([[0], np.cumsum(used.sum(axis=1))])
        shape = (len(self.atoms), max(self.n_atoms, 1))
        return csr_matrix((self.values[used], self.atoms[used], ends), shape=shape)

    @property
    def sparsity(self) -> float:
        """The mean number of atoms that a token uses."""
        return float((self.values != 0).sum() / max(len(self.values), 1))

    def of_tokens(self, tokens: Int64[np.ndarray, " some"]) -> AtomCodes:
        """Return the code of some of the tokens."""
        return AtomCodes(self.atoms[tokens], self.values[tokens], self.n_atoms)

    def decode(
        self, directions: Float32[np.ndarray, "atom d_in"]
    ) -> Float32[np.ndarray, "token d_in"]:
        """Return the sum of coefficients times directions of each token."""
        if not len(directions):
            return np.zeros((len(self.atoms), directions.shape[1]), dtype=np.float32)
        decoded: Float32[np.ndarray, "token d_in"] = self.matrix @ directions
        return decoded

    def largest(self, k: int) -> AtomCodes:
        """Return the code with each token's k largest coefficients, in absolute value, and no others."""
        if k >= self.values.shape[1]:
            return self
        kept = np.argpartition(-np.abs(self.values), k - 1, axis=1)[:, :k]
        return AtomCodes(
            np.take_along_axis(self.atoms, kept, axis=1),
            np.take_along_axis(self.values, kept, axis=1),
            self.n_atoms,
        )

    @classmethod
    def of(cls, matrix: Any) -> AtomCodes:
        """Return the code that a scipy CSR matrix [token, atom] holds."""
        counts = np.diff(matrix.indptr)
        width = int(counts.max(initial=0))
        atoms = np.zeros((matrix.shape[0], width), dtype=np.int32)
        values = np.zeros((matrix.shape[0], width), dtype=np.float32)
        used = np.arange(width) < counts[:, None]
        atoms[used], values[used] = matrix.indices, matrix.data
        return cls(atoms, values, int(matrix.shape[1]))


@dataclass(frozen=True, eq=False)
class Path:
    """The atoms of each token in the order in which pursuit took them, which give codes of every length.

    Attributes:
        atoms: Atoms in the order in which they were taken.
        along: Product of the token with what each atom added: a unit direction at right angles to the atoms
            before it.
        mix: The atoms as sums of these directions, upper triangular; None where they are the same.
        n_atoms: How many atoms the dictionary has.
    """

    atoms: Int32[np.ndarray, "token step"]
    along: Float32[np.ndarray, "token step"]
    mix: Float32[np.ndarray, "token step step"] | None
    n_atoms: int

    def of_tokens(self, tokens: slice) -> Path:
        """Return the path of some of the tokens."""
        mix = None if self.mix is None else self.mix[tokens]
        return Path(self.atoms[tokens], self.along[tokens], mix, self.n_atoms)

    def at(self, k: int) -> AtomCodes:
        """Return the least-squares code on the first k atoms."""
        along = self.along[:, :k]
        if self.mix is None or not along.size:
            return AtomCodes(self.atoms[:, :k], along, self.n_atoms)
        mix = torch.from_numpy(np.ascontiguousarray(self.mix[:, : along.shape[1], :k]))
        right = torch.from_numpy(np.ascontiguousarray(along))[:, :, None]
        values = torch.linalg.solve_triangular(mix, right, upper=True)[:, :, 0].numpy()
        return AtomCodes(self.atoms[:, :k], np.where(along == 0, 0, values), self.n_atoms)


def pursue(
    x: Float32[np.ndarray, "token d_in"],
    directions: Float32[np.ndarray, "atom d_in"],
    k: int,
    begun: Path | None = None,
) -> Path:
    """Return k steps of orthogonal matching pursuit, with coefficients of either sign.

    Each step takes the atom with the largest absolute product with what is left of the token, and projects
    the token on all atoms so far. Where the dictionary is orthonormal, the atoms are those of the k largest
    products, and all are found at once. An atom that adds no direction is taken with coefficient 0. All
    arithmetic is in single precision.

    Args:
        x: Activations less the dictionary's center.
        directions: The dictionary's unit rows.
        k: Steps; at most as many as there are atoms and dimensions.
        begun: The first steps of the same pursuit, which are not taken again.

    Source: Pati, Rezaiifar and Krishnaprasad 1993. Differs: tokens are taken in chunks, and a second pass of
    Gram-Schmidt follows where the first one loses digits.
    """
    n_atoms, d_in = directions.shape
    k = min(k, n_atoms, d_in)
    if k < 1:
        empty = np.zeros((len(x), 0))
        return Path(empty.astype(np.int32), empty.astype(np.float32), None, n_atoms)
    if n_atoms <= d_in:
        off = np.abs(directions @ directions.T - np.eye(n_atoms, dtype=np.float32)).max()
        if off < 1e-4:
            codes = largest_products(x @ directions.T, k)
            order = np.argsort(-np.abs(codes.values), axis=1, kind="stable")
            atoms = np.take_along_axis(codes.atoms, order, axis=1)
            return Path(atoms, np.take_along_axis(codes.values, order, axis=1), None, n_atoms)
    size = max(1, _CHUNK_NUMBERS // max(n_atoms, k * d_in))
    rows = torch.from_numpy(np.ascontiguousarray(directions))
    parts = []
    for first in range(0, len(x), size):
        part = slice(first, first + size)
        parts.append(_pursue(torch.from_numpy(x[part]), rows, k, begun and begun.of_tokens(part)))
    atoms, along, mix = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    return Path(atoms.astype(np.int32), along, mix, n_atoms)


def _pursue(
    x: Float[torch.Tensor, "token d_in"],
    rows: Float[torch.Tensor, "atom d_in"],
    k: int,
    begun: Path | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the atoms, products and mix of one chunk of tokens; see `Path`."""
    n, d_in = x.shape
    basis = torch.zeros(n, k, d_in)
    mix = torch.eye(k).repeat(n, 1, 1)
    along, atoms = torch.zeros(n, k), torch.zeros(n, k, dtype=torch.int64)
    left, done = x.clone(), 0
    if begun is not None and begun.mix is not None:
        done = begun.along.shape[1]
        atoms[:, :done], along[:, :done] = map(torch.from_numpy, (begun.atoms, begun.along))
        mix[:, :done, :done] = before = torch.from_numpy(begun.mix)
        # atoms are sums of the directions before them, so that these follow from the atoms
        basis[:, :done] = torch.linalg.solve_triangular(
            before.transpose(1, 2), rows[atoms[:, :done]], upper=False
        )
        basis[:, :done] *= (along[:, :done, None] != 0).float()  # an atom that added no direction
        left -= torch.bmm(along[:, None, :done], basis[:, :done])[:, 0]
    for step in range(done, k):
        products = left @ rows.T
        chosen = products.abs_().argmax(dim=1)
        new, so_far = rows[chosen], basis[:, :step]
        # twice is enough: the second pass takes out what rounding left of the first
        within = torch.bmm(so_far, new[:, :, None])
        rest = new - torch.bmm(within.transpose(1, 2), so_far)[:, 0]
        length = rest.norm(dim=1)
        near = (length < _NEARLY).nonzero()[:, 0]
        if len(near):
            again = torch.bmm(so_far[near], rest[near, :, None])
            rest[near] -= torch.bmm(again.transpose(1, 2), so_far[near])[:, 0]
            within[near] += again
            length[near] = rest[near].norm(dim=1)
        fresh = length > _IN_SPAN
        new = torch.where(fresh[:, None], rest / length.clamp_min(1e-20)[:, None], 0.0)
        basis[:, step], atoms[:, step] = new, chosen
        mix[:, :step, step] = torch.where(fresh[:, None], within[:, :, 0], 0.0)
        mix[:, step, step] = torch.where(fresh, length, 1.0)
        along[:, step] = (new * left).sum(dim=1)
        left -= along[:, step, None] * new
    return atoms, along, mix


def pursue_nonnegative(
    x: Float32[np.ndarray, "token d_in"], directions: Float32[np.ndarray, "atom d_in"], k: int
) -> AtomCodes:
    """Return a code with at most k atoms and without coefficients below 0, as an SAE's codes are.

    Each step takes the atom with the largest product with what is left of the token, if that is above 0, and
    adds the product to the atom's coefficient. An atom may be taken again. At the end, 30 sweeps of
    coordinate descent find the best non-negative coefficients of the atoms that were taken.

    Args:
        x: Activations less the dictionary's center.
        directions: The dictionary's unit rows.
        k: The most atoms of a token.

    Source: non-negative matching pursuit (Bruckstein, Elad and Zibulevsky 2008). Differs: coefficients are
    refitted at the end alone and not at every step.
    """
    n_atoms, d_in = directions.shape
    k = min(k, n_atoms)
    rows = torch.from_numpy(np.ascontiguousarray(directions))
    size = max(1, _CHUNK_NUMBERS // max(n_atoms, k * d_in))
    atoms, values = [], []
    for first in range(0, len(x), size):
        part = torch.from_numpy(x[first : first + size])
        left, taken = part.clone(), torch.zeros(len(part), k, dtype=torch.int64)
        for step in range(k):
            best, taken[:, step] = (left @ rows.T).max(dim=1)
            left -= best.clamp_min(0)[:, None] * rows[taken[:, step]]
        # an atom taken twice keeps its first slot
        taken, _ = taken.sort(dim=1)
        again = torch.zeros_like(taken, dtype=torch.bool)
        again[:, 1:] = taken[:, 1:] == taken[:, :-1]
        chosen = rows[taken]
        gram = torch.bmm(chosen, chosen.transpose(1, 2))
        right = torch.bmm(chosen, part[:, :, None])[:, :, 0]
        code = torch.zeros(len(part), k)
        for _ in range(30):
            for slot in range(k):
                pull = right[:, slot] - (gram[:, slot] * code).sum(dim=1) + code[:, slot]
                code[:, slot] = torch.where(again[:, slot], 0.0, pull.clamp_min(0))
        atoms.append(taken)
        values.append(code)
    return AtomCodes(torch.cat(atoms).numpy().astype(np.int32), torch.cat(values).numpy(), n_atoms)


def refitted(
    codes: AtomCodes,
    x: Float32[np.ndarray, "token d_in"],
    directions: Float32[np.ndarray, "atom d_in"],
) -> AtomCodes:
    """Return the code with the same atoms and the coefficients of the least squared error, of either sign."""
    width = codes.values.shape[1]
    size = max(1, _CHUNK_NUMBERS // max(1, width * directions.shape[1]))
    rows = torch.from_numpy(np.ascontiguousarray(directions))
    values = np.zeros_like(codes.values)
    for first in range(0, len(x) if width else 0, size):
        part = slice(first, first + size)
        used = torch.from_numpy(codes.values[part] != 0)
        chosen = rows[torch.from_numpy(codes.atoms[part]).long()] * used[:, :, None]
        gram = torch.bmm(chosen, chosen.transpose(1, 2))
        # slots that are not used keep 0; the ridge is for atoms that point the same way
        gram += torch.diag_embed((~used).float() + 1e-5)
        right = torch.bmm(chosen, torch.from_numpy(x[part])[:, :, None])
        values[part] = torch.linalg.solve(gram, right)[:, :, 0].numpy()
    return AtomCodes(codes.atoms, values, codes.n_atoms)


class Pursuit:
    """The codes of tokens by pursuit, with any number of atoms; what was pursued once is kept."""

    def __init__(
        self,
        x: Float32[np.ndarray, "token d_in"],
        directions: Float32[np.ndarray, "atom d_in"],
    ) -> None:
        """Take activations, less the dictionary's center, and the dictionary's unit rows."""
        self._x, self._directions = x, directions
        self._path: Path | None = None

    def __call__(self, k: int) -> AtomCodes:
        """Return the least-squares code on the first k atoms that pursuit takes."""
        if self._path is None or self._path.along.shape[1] < min(k, *self._directions.shape):
            self._path = pursue(self._x, self._directions, k, self._path)
        return self._path.at(k)


def largest_products(products: Float32[np.ndarray, "token atom"], k: int) -> AtomCodes:
    """Return the code of each token's k largest products, in absolute value."""
    n, n_atoms = products.shape
    atoms = np.broadcast_to(np.arange(n_atoms, dtype=np.int32), (n, n_atoms))
    return AtomCodes(atoms, products.astype(np.float32), n_atoms).largest(k)
