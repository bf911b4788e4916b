"""Random supports of many rare features, without a table of tokens times features."""

from __future__ import annotations

from jaxtyping import Float, Float32, Int64

from sae_placebo.core.errors import SpecError
from sae_placebo.core.lazy import torch
from sae_placebo.saes import Codes


def independent_support(
    rates: Float[torch.Tensor, " feature"], n_tokens: int, random: torch.Generator
) -> tuple[Int64[torch.Tensor, " active"], Int64[torch.Tensor, " active"]]:
    """Return (token, feature) of every active pair, ascending; all pairs are independent.

    A Poisson process of intensity -log(1 - p_i) leaves a cell empty with probability 1 - p_i, so the
    cells that it hits are Bernoulli draws, exactly, at a cost per hit and not per cell.

    Args:
        rates: Probability of each feature, below 1.
        n_tokens: How many tokens.
        random: Names the draw.
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
    """Return the codes that hold these values, in order of tokens; zeros are kept out."""
    order = torch.argsort(tokens, stable=True)
    order = order[values[order] != 0]
    offsets = torch.zeros(n_tokens + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(tokens[order], minlength=n_tokens), dim=0, out=offsets[1:])
    return Codes(offsets, features[order], values[order].float(), n_features)


def orthonormal_rows(n: int, d_in: int, random: torch.Generator) -> Float32[torch.Tensor, "n d_in"]:
    """Return `n` orthonormal rows, in a uniformly random orientation.

    Raises:
        SpecError: there are more rows than dimensions.
    """
    if n > d_in:
        raise SpecError(f"{n} orthonormal rows do not fit in {d_in} dimensions: raise d_in")
    gaussian = torch.randn(d_in, n, generator=random, dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    # signs that make the orientation uniform (Mezzadri 2007)
    rows: torch.Tensor = (q * r.diagonal().sign()).t().float().contiguous()
    return rows


def packed(
    values: Float32[torch.Tensor, "token slot"],
    features: Int64[torch.Tensor, "token slot"] | None = None,
    n_features: int | None = None,
) -> Codes:
    """Return codes that hold the entries of `values` above zero.

    Args:
        values: Amplitudes; a slot at zero holds nothing.
        features: The feature of each slot; None: slot i is feature i.
        n_features: How many features there are; None: as many as slots.
    """
    active = values > 0
    chosen = active.nonzero()[:, 1] if features is None else features[active]
    offsets = torch.zeros(len(values) + 1, dtype=torch.int64)
    torch.cumsum(active.sum(dim=1), dim=0, out=offsets[1:])
    return Codes(offsets, chosen, values[active], n_features or values.shape[1])
