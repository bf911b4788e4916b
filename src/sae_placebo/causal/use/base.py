"""What is asked whether the model uses it: directions at a hookpoint, and how much of each a token holds.

Latents of an SAE are such directions, and so are random ones, the main directions of what the SAE
misses, and those of another dictionary: every measure of use takes any of them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int64

from sae_placebo.causal.use.downstream import CleanRow, Downstream
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import numpy_generator
from sae_placebo.latents.base import Encoded, TokenTable


@dataclass(frozen=True, eq=False)
class Subject:
    """A model behind one hookpoint, and the held-out tokens that it is asked on.

    Attributes:
        downstream: The model behind the hookpoint.
        tokens: What was read.
        activations: At the hookpoint, in model units.
    """

    downstream: Downstream
    tokens: TokenTable
    activations: Float[torch.Tensor, "token d_in"]

    def ids_of(self, row: int) -> Int64[torch.Tensor, " pos"]:
        """Return the token ids of a row without its padding."""
        rows = self.tokens.rows
        return torch.from_numpy(rows.token_ids[row, : rows.lengths[row]].astype(np.int64))

    def clean(self, row: int) -> CleanRow:
        """Return what the model makes of a row, unedited."""
        return self.downstream.read(self.ids_of(row))

    def by_row(
        self, tokens: Int64[np.ndarray, " some"]
    ) -> Iterator[tuple[int, Int64[np.ndarray, " here"]]]:
        """Yield each row that some tokens lie in, and which of them do, as indices into `tokens`."""
        rows = self.tokens.places[tokens, 0]
        order = np.argsort(rows, kind="stable")
        cuts = np.flatnonzero(np.diff(rows[order])) + 1
        for part in np.split(order, cuts) if len(order) else ():
            yield int(rows[part[0]]), part


@dataclass(frozen=True, eq=False)
class Directions:
    """Unit directions, and how much of each every held-out token holds.

    Attributes:
        vectors: [direction, d_in], of length 1; zero rows are never asked about.
        amounts: scipy CSR [token, direction], in model units: what is taken away by an ablation. May be
            below 0 where a direction has two sides.
    """

    vectors: Float32[np.ndarray, "direction d_in"]
    amounts: Any

    def __len__(self) -> int:
        return len(self.vectors)

    @functools.cached_property
    def by_direction(self) -> Any:
        """The amounts as scipy CSC: `indptr`, `indices` (tokens, ascending) and `data` by direction."""
        return self.amounts.tocsc()

    @functools.cached_property
    def n_active(self) -> Int64[np.ndarray, " direction"]:
        """Tokens that hold some of each."""
        return np.asarray(np.diff(self.by_direction.indptr), dtype=np.int64)

    def at(self, token: int) -> tuple[Int64[np.ndarray, " active"], Float32[np.ndarray, " active"]]:
        """Return the directions that a token holds, and how much of each."""
        here = slice(self.amounts.indptr[token], self.amounts.indptr[token + 1])
        return self.amounts.indices[here].astype(np.int64), self.amounts.data[here]


def latent_directions(reading: Encoded) -> Directions:
    """Return the decoder directions of an SAE's latents, with activations times decoder norms.

    The sum over directions of amount times vector, plus `b_dec`, is the reconstruction.
    """
    decoder = reading.sae.params["W_dec"].detach().float().cpu().numpy()
    return _scaled(decoder, reading.codes)


def _scaled(rows: Float[np.ndarray, "direction d_in"], codes: Any) -> Directions:
    norms = np.linalg.norm(rows, axis=1)
    unit = rows / np.where(norms > 0, norms, 1)[:, None]
    amounts = codes.tocsr().astype(np.float32)
    amounts.data = amounts.data * norms.astype(np.float32)[amounts.indices]
    return Directions(unit.astype(np.float32), amounts)


def pseudo_latents(like: Directions, seed: int, n: int) -> Directions:
    """Return random directions that are held by the tokens, and as much, as some of the given ones are.

    Nothing about them is special to the model: measures of use must find p-values uniform.

    Args:
        like: Directions whose amounts are taken over, drawn among those held by some token.
        seed: Names the draw.
        n: Directions, at most as many as are held.
    """
    random = numpy_generator(seed, "pseudo-latents")
    held = np.flatnonzero(like.n_active)
    chosen = np.sort(random.choice(held, min(n, len(held)), replace=False))
    rows = random.standard_normal((len(chosen), like.vectors.shape[1]))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    amounts = like.by_direction[:, chosen].tocsr()
    return Directions(rows.astype(np.float32), amounts)


def error_directions(reading: Encoded, n: int) -> Directions:
    """Return the main directions of what the SAE misses: principal components of x - x_hat.

    Amounts are the projections of the error on them, less their mean, at every token.

    Args:
        reading: The SAE on the held-out tokens.
        n: Components.
    """
    from scipy.sparse import csr_matrix

    codes = reading.codes
    decoder = reading.sae.params["W_dec"].detach().float().cpu().numpy()
    bias = reading.sae.params["b_dec"].detach().float().cpu().numpy()
    x = reading.activations.detach().float().cpu().numpy()
    error = x - codes @ decoder - bias
    error -= error.mean(0)
    vectors = np.linalg.eigh((error.T @ error).astype(np.float64))[1][:, ::-1][:, :n].T
    amounts = error @ vectors.T.astype(np.float32)
    return Directions(vectors.astype(np.float32).copy(), csr_matrix(amounts))
