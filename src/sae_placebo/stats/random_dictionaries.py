"""A dictionary of random directions reaches these numbers where there is nothing to find.

Two numbers of an SAE look like structure and need not be: how near a decoder row lies to some row of
another dictionary, and the variance explained. Both are large for random directions as soon as there
are many of them. The functions here measure how large, from scratch and at any size, so that a
result can be quoted above its line.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Float32, Int64

from sae_placebo.core.errors import SpecError
from sae_placebo.core.spec import numpy_generator

CODERS = ("linear", "least_squares", "omp", "pca")
"""Codes are found in one of these ways; see `random_dictionary_ev`."""

_CHUNK_NUMBERS = 1 << 23
"""Numbers of a product held at a time: 32 MB."""


def random_max_cosine(
    d: int, m: int, seed: int, n_queries: int = 400, signed: bool = True
) -> float:
    """Return the mean, over random unit queries, of the largest cosine to m random unit vectors.

    This is the null of "mean max cosine similarity" between two dictionaries: what two unrelated
    ones of m latents reach in d dimensions. Memory: a chunk of the vectors and of the cosines.

    Args:
        d: Dimensions.
        m: Vectors in the dictionary.
        seed: Names the draws, with d and m.
        n_queries: Queries to average over.
        signed: Whether opposite directions are apart; if not, the cosine's absolute value counts.

    Raises:
        SpecError: a size is below 1.
    """
    _positive(d=d, m=m, n_queries=n_queries)
    random = numpy_generator(seed, "random_max_cosine", d, m)
    queries = _unit_rows(random, n_queries, d)
    best = np.full(n_queries, -np.inf, np.float32)
    size = max(1, _CHUNK_NUMBERS // max(d, n_queries))
    for first in range(0, m, size):
        cosines = queries @ _unit_rows(random, min(size, m - first), d).T
        if not signed:
            np.abs(cosines, out=cosines)
        np.maximum(best, cosines.max(axis=1), out=best)
    return float(best.mean(dtype=np.float64))


def expected_max_cosine(d: int, m: int, signed: bool = True) -> float:
    """Return the mean of what `random_max_cosine` draws, by integration instead of by drawing.

    The cosines of one query to m independent uniform directions are independent, and (1 + cosine) / 2
    has a Beta((d - 1) / 2, (d - 1) / 2) distribution F; so the mean of the largest is the integral
    of 1 - F^m. For m that fit no memory as well.

    Raises:
        SpecError: d is below 2 or m below 1.
    """
    _beta_is_defined(d, m)
    from scipy import special

    # on both sides of the tail's scale the integrand is flat; 4,096 points are far finer than it
    t = np.linspace(0.0 if not signed else -1.0, 1.0, 4097)
    tail = special.betainc((d - 1) / 2, (d - 1) / 2, (1 - t) / 2)
    above = np.clip(tail if signed else 2 * tail, 0.0, 1.0)
    with np.errstate(divide="ignore"):  # log of zero where every vector lies above
        none_above = np.exp(m * np.log1p(-above))
    return float(np.trapezoid(1 - none_above, t) + t[0])


def cosine_passed_once(d: int, m: int, signed: bool = True) -> float:
    """Return the t that one of m random unit vectors passes on average: m P(cosine > t) = 1.

    The usual quick approximation of `expected_max_cosine`, and a little below it. The more usual
    sqrt(2 ln m / d), a Gaussian's, overshoots by up to a fifth.

    Raises:
        SpecError: d is below 2 or m below 1.
    """
    _beta_is_defined(d, m)
    from scipy import special

    share = 1 / m if signed else 1 / (2 * m)
    return float(1 - 2 * special.betaincinv((d - 1) / 2, (d - 1) / 2, share))


def random_dictionary_ev(
    d_in: int, d_sae: int, k: int, coder: str, seed: int, n_samples: int = 64
) -> float:
    """Return the share of isotropic Gaussian noise's energy that k random directions explain.

    Nothing is learned and there is nothing to learn: a quoted explained variance says something only
    above this line. By `coder`:

    - `linear`: the k largest products with the dictionary's rows, where above zero, are the codes,
      times one scale for all samples, the best one: a TopK autoencoder as it starts;
    - `least_squares`: the same k rows, with the best coefficients of either sign;
    - `omp`: orthogonal matching pursuit: k times the row with the largest product, in absolute
      value, with what is left, and then the best coefficients of all rows so far;
    - `pca`: no dictionary: k fixed orthogonal directions, k / d_in on average.

    Args:
        d_in: Dimensions.
        d_sae: Rows of the dictionary; `pca` does without.
        k: Rows used per sample.
        coder: How codes are found.
        seed: Names the draws, with d_in and d_sae: coders share dictionary and samples.
        n_samples: Samples of noise.

    Raises:
        SpecError: a size is below 1, k exceeds d_in or d_sae, or there is no such coder.
    """
    _positive(d_in=d_in, d_sae=d_sae, k=k, n_samples=n_samples)
    if coder not in CODERS:
        raise SpecError(f"no coder is called {coder!r}; known: {', '.join(CODERS)}")
    if k > min(d_in, d_sae):
        raise SpecError(
            f"k is {k}, but {d_sae} rows in {d_in} dimensions span at most {min(d_in, d_sae)}: "
            "lower k"
        )
    samples = numpy_generator(seed, "random_dictionary_ev", "samples", d_in).standard_normal(
        (n_samples, d_in), np.float32
    )
    energy = _energy(samples)
    if coder == "pca":
        return _energy(samples[:, :k]) / energy
    rows = _unit_rows(
        numpy_generator(seed, "random_dictionary_ev", "rows", d_in, d_sae), d_sae, d_in
    )
    # products with all rows, and k rows for each sample
    size = max(1, _CHUNK_NUMBERS // max(d_sae, k * d_in))
    chunks = [samples[first : first + size] for first in range(0, n_samples, size)]
    if coder == "linear":
        sums = np.sum([_linear(rows, x, k) for x in chunks], axis=0)
        along, length = float(sums[0]), float(sums[1])
        return along**2 / (length * energy)
    missed = sum((_refitted if coder == "least_squares" else _pursued)(rows, x, k) for x in chunks)
    return 1 - missed / energy


def _linear(
    rows: Float32[np.ndarray, "row d_in"], x: Float32[np.ndarray, "sample d_in"], k: int
) -> tuple[float, float]:
    """Return <x, x_hat> and |x_hat|^2, summed over samples, at scale 1."""
    products = x @ rows.T
    chosen = _largest(products, k)
    codes = np.maximum(np.take_along_axis(products, chosen, axis=1), 0)
    decoded = np.einsum("sk,skd->sd", codes, rows[chosen])
    return float(np.sum(x * decoded, dtype=np.float64)), _energy(decoded)


def _refitted(
    rows: Float32[np.ndarray, "row d_in"], x: Float32[np.ndarray, "sample d_in"], k: int
) -> float:
    """Return the energy missed by the best combination of the k rows with the largest products."""
    chosen = rows[_largest(x @ rows.T, k)].astype(np.float64)
    basis, _ = np.linalg.qr(chosen.transpose(0, 2, 1))
    found = np.einsum("sdk,sd->sk", basis, x.astype(np.float64))
    return _energy(x) - _energy(found)


def _pursued(
    rows: Float32[np.ndarray, "row d_in"], x: Float32[np.ndarray, "sample d_in"], k: int
) -> float:
    """Return the energy missed after k steps of orthogonal matching pursuit."""
    left = x.astype(np.float64)
    basis = np.zeros((len(x), k, x.shape[1]))
    for step in range(k):
        chosen = np.abs(left.astype(np.float32) @ rows.T).argmax(axis=1)
        new = rows[chosen].astype(np.float64)
        for _ in range(2):  # Gram and Schmidt need a second pass to be exact
            within = np.einsum("skd,sd->sk", basis, new)
            new -= np.einsum("sk,skd->sd", within, basis)
        new /= np.linalg.norm(new, axis=1, keepdims=True)
        basis[:, step] = new
        left -= np.einsum("sd,sd->s", new, left)[:, None] * new
    return _energy(left)


def _largest(products: Float32[np.ndarray, "sample row"], k: int) -> Int64[np.ndarray, "sample k"]:
    return np.argpartition(products, -k, axis=1)[:, -k:]


def _unit_rows(random: np.random.Generator, n: int, d: int) -> Float32[np.ndarray, "n d"]:
    rows = random.standard_normal((n, d), np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def _energy(x: Float[np.ndarray, "..."]) -> float:
    return float(np.sum(np.square(x, dtype=np.float64)))


def _positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise SpecError(f"{name} is {size}; a random dictionary needs sizes of 1 or more")


def _beta_is_defined(d: int, m: int) -> None:
    if d < 2 or m < 1 or not math.isfinite(m):
        raise SpecError(f"directions need d of 2 or more and m of 1 or more; found d={d}, m={m}")
