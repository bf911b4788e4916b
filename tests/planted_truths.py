"""Draws and SAEs made by hand, whose scores are known."""

from __future__ import annotations

import torch

from sae_placebo.core.spec import generator
from sae_placebo.lab import GeneratorTruth, Sample
from sae_placebo.lab.generators.base import compose
from sae_placebo.saes import SAE, Codes, ReLUSpec


def sparse(dense: torch.Tensor) -> Codes:
    """Return codes that hold what is not zero."""
    offsets = torch.zeros(len(dense) + 1, dtype=torch.int64)
    torch.cumsum((dense != 0).sum(dim=1), dim=0, out=offsets[1:])
    at = dense.nonzero()
    return Codes(offsets, at[:, 1], dense[at[:, 0], at[:, 1]].float(), dense.shape[1])


def drawn(dense: torch.Tensor, truth: GeneratorTruth) -> Sample:
    codes = sparse(dense)
    return Sample(compose(codes, truth.dictionary), codes, truth)


def relu_sae(
    decoder: torch.Tensor, encoder: torch.Tensor | None = None, bias: float | torch.Tensor = 0.0
) -> SAE:
    """Return an SAE with these rows; encoder rows are the decoder's if not given."""
    n, d_in = decoder.shape
    params = {
        "W_enc": (decoder if encoder is None else encoder).t().clone(),
        "b_enc": torch.zeros(n) + bias,
        "W_dec": decoder.clone(),
        "b_dec": torch.zeros(d_in),
    }
    return SAE(ReLUSpec(d_sae=n, coefficient=0.1), params)


def rescaled(sae: SAE, seed: int = 0) -> SAE:
    """Return the same SAE with rows of other lengths, and codes that make up for it."""
    factor = torch.rand(sae.d_sae, generator=generator(seed, "lengths")) * 4 + 0.25
    return SAE(
        sae.spec,
        {
            "W_enc": sae.params["W_enc"] / factor,
            "b_enc": sae.params["b_enc"] / factor,
            "W_dec": sae.params["W_dec"] * factor[:, None],
            "b_dec": sae.params["b_dec"],
        },
    )


def independent(rates: torch.Tensor, n_tokens: int, seed: int = 0) -> torch.Tensor:
    """Return zeros and ones [token, feature], each feature by itself."""
    random = generator(seed, "independent")
    return (torch.rand(n_tokens, len(rates), generator=random) < rates).float()


def two_sets(items: int, n_tokens: int, d_in: int | None = None) -> Sample:
    """Return tokens with one feature of each of two sets, of amplitude 1."""
    random = generator(0, "two sets")
    first = torch.randint(items, (n_tokens,), generator=random)
    second = torch.randint(items, (n_tokens,), generator=random) + items
    dense = torch.zeros(n_tokens, 2 * items)
    dense[torch.arange(n_tokens), first] = 1.0
    dense[torch.arange(n_tokens), second] = 1.0
    truth = GeneratorTruth(
        torch.eye(2 * items, d_in or 2 * items),
        torch.full((2 * items,), 1 / items),
        exclusive=(tuple(range(items)), tuple(range(items, 2 * items))),
    )
    return drawn(dense, truth)


def pair_sae(items: int, d_in: int | None = None) -> SAE:
    """Return an SAE with a latent for each pair of `two_sets`, that fires for both together alone."""
    eye = torch.eye(2 * items, d_in or 2 * items)
    rows = torch.stack([eye[i] + eye[items + j] for i in range(items) for j in range(items)])
    return relu_sae(rows / 2**0.5, rows, -1.5)


def hierarchy(n_tokens: int, dependent: bool = True, d_in: int = 50) -> Sample:
    """Return a parent of rate 0.25 and three children of rate 0.05, which need it if dependent."""
    rates = torch.tensor([0.25, 0.05, 0.05, 0.05])
    if dependent:
        dense = independent(torch.tensor([0.25, 0.2, 0.2, 0.2]), n_tokens)
        dense[:, 1:] *= dense[:, :1]
    else:
        dense = independent(rates, n_tokens)
    return drawn(dense, GeneratorTruth(torch.eye(4, d_in), rates, parents=(-1, 0, 0, 0)))


def absorbing_sae(d_in: int = 50) -> SAE:
    """Return the SAE that absorbs: each child's latent is half the parent, whose own latent has holes."""
    eye = torch.eye(4, d_in)
    encoder = eye.clone()
    encoder[0] -= eye[1:].sum(dim=0)
    decoder = eye.clone()
    decoder[1:] = (eye[1:] + eye[0]) / 2**0.5
    return relu_sae(decoder, encoder)
