"""Draws that generators have in common: random supports, orthonormal rows, and codes made of parts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from jaxtyping import Float, Float32, Int64

from sae_placebo.core.errors import SpecError
from sae_placebo.core.lazy import torch
from sae_placebo.saes import Codes


def independent_support(
    rates: Float[torch.Tensor, " feature"], n_tokens: int, random: torch.Generator
) -> tuple[Int64[torch.Tensor, " active"], Int64[torch.Tensor, " active"]]:
    """Return (token, feature) of every active pair, ascending; all pairs are independent.

    A Poisson process of intensity -log(1 - p_i) leaves a cell of the table [token, feature] empty with
    probability 1 - p_i, so the cells that it hits are Bernoulli draws, exactly. The cost is one per hit,
    not one per cell, which pays where features are many and rare.

    Args:
        rates: Probability of each feature, below 1.
        n_tokens: Number of tokens.
        random: Random numbers to draw from.
    """
    n_features = len(rates)
    hazard = -torch.log1p(-rates.double())
    edges = hazard.cumsum(0)
    whole = float(edges[-1])
    hits = int(torch.poisson(torch.tensor(whole * n_tokens).double(), generator=random))
    places = torch.rand(hits, generator=random, dtype=torch.float64) * n_tokens
    # the top of the last token is a hit of it, whatever rounding does
    tokens = places.long().clamp_max(n_tokens - 1)
    within = ((places - tokens) * whole).contiguous()
    features = torch.searchsorted(edges, within, right=True).clamp_max(n_features - 1)
    cells = torch.unique(tokens * n_features + features)
    return cells // n_features, cells % n_features


def codes_of(
    tokens: Int64[torch.Tensor, " active"],
    features: Int64[torch.Tensor, " active"],
    values: Float[torch.Tensor, " active"],
    n_tokens: int,
    n_features: int,
) -> Codes:
    """Return the codes that hold these values, in order of tokens; zeros are left out."""
    order = torch.argsort(tokens, stable=True)
    order = order[values[order] != 0]
    return Codes(
        _offsets(torch.bincount(tokens[order], minlength=n_tokens)),
        features[order],
        values[order].float(),
        n_features,
    )


def codes_of_parts(
    parts: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], n_tokens: int, n_features: int
) -> Codes:
    """Return the codes that hold the values of all parts, each (tokens, features, values); see `codes_of`."""
    tokens, features, values = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return codes_of(tokens, features, values, n_tokens, n_features)


def packed(
    values: Float32[torch.Tensor, "token slot"],
    features: Int64[torch.Tensor, "token slot"] | None = None,
    n_features: int | None = None,
) -> Codes:
    """Return codes that hold the entries of `values` above zero.

    Args:
        values: Amplitudes; a slot that is not above zero holds nothing.
        features: Feature of each slot; None means that slot i is feature i.
        n_features: Number of features; None means as many as there are slots.
    """
    active = values > 0
    chosen = active.nonzero()[:, 1] if features is None else features[active]
    offsets = _offsets(active.sum(dim=1))
    return Codes(offsets, chosen, values[active], n_features or values.shape[1])


def _offsets(counts: Int64[torch.Tensor, " token"]) -> Int64[torch.Tensor, " token_plus_one"]:
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))


def orthonormal_rows(n: int, d_in: int, random: torch.Generator) -> Float32[torch.Tensor, "n d_in"]:
    """Return `n` orthonormal rows, in a uniformly random orientation.

    Source: Mezzadri (2007) for the signs that make the orientation uniform.

    Raises:
        SpecError: there are more rows than dimensions.
    """
    if n > d_in:
        raise SpecError(f"{n} orthonormal rows do not fit in {d_in} dimensions: raise d_in")
    gaussian = torch.randn(d_in, n, generator=random, dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    rows: torch.Tensor = (q * r.diagonal().sign()).t().float().contiguous()
    return rows


def consecutive_groups(sizes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Return the rows of each group where groups of these sizes follow one another from row 0."""
    ends = accumulate(sizes)
    return tuple(tuple(range(end - size, end)) for size, end in zip(sizes, ends, strict=True))
