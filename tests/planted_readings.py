"""Readings whose codes are set by hand: an SAE's latents with known behavior on known tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix

from sae_placebo.data.labels.base import Labels
from sae_placebo.data.rows import Rows
from sae_placebo.latents.base import Encoded, Folds, TokenTable
from sae_placebo.saes import SAE
from sae_placebo.saes.topk import TopKSpec


def token_table(
    token_ids: np.ndarray,
    n_documents: int,
    vocabulary: tuple[str, ...],
    labels: Labels | None = None,
) -> TokenTable:
    """Full rows without padding, documents of about equal length; position 0 is not read."""
    n_rows, width = token_ids.shape
    rows = Rows(
        token_ids=token_ids.astype(np.int32),
        lengths=np.full(n_rows, width, dtype=np.int32),
        documents=(np.arange(n_rows) * n_documents // n_rows).astype(np.int32),
        names=tuple(f"document {i}" for i in range(n_documents)),
        labels=labels,
    )
    return TokenTable(rows, np.argwhere(rows.usable()), vocabulary)


def reading_of(
    tokens: TokenTable,
    codes: np.ndarray,
    activations: np.ndarray | None = None,
    **params: Any,
) -> Encoded:
    """A reading with these codes [token, latent]; other tensors are given, or drawn at random."""
    d_sae = codes.shape[1]
    draw = np.random.default_rng(7)
    if activations is None:
        activations = draw.normal(size=(len(tokens), 6))
    d_in = activations.shape[1]
    weights = {
        "W_enc": draw.normal(size=(d_in, d_sae)),
        "b_enc": np.zeros(d_sae),
        "W_dec": draw.normal(size=(d_sae, d_in)),
        "b_dec": np.zeros(d_in),
    } | params
    sae = SAE(
        TopKSpec(d_sae=d_sae, k=1),
        {
            name: torch.tensor(np.asarray(value), dtype=torch.float32)
            for name, value in weights.items()
        },
    )
    sparse = csr_matrix(codes.astype(np.float32))
    return Encoded(sae, tokens, sparse, torch.tensor(activations, dtype=torch.float32))


def without_group(reading: Encoded, folds: Folds, group: int) -> Encoded:
    """The reading on the documents of all other groups."""
    kept = folds.groups[reading.tokens.documents] != group
    tokens = TokenTable(reading.tokens.rows, reading.tokens.places[kept], reading.tokens.vocabulary)
    return Encoded(
        reading.sae, tokens, reading.codes[kept], reading.activations[torch.from_numpy(kept)]
    )
