"""One row per latent: how often it fires, how strongly, and on what."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from sae_placebo.core.lazy import pandas
from sae_placebo.latents.metrics.base import Evidence
from sae_placebo.latents.metrics.tokens import token_statistics


def latent_table(
    evidence: Evidence, weights: Float[np.ndarray, "document fold"] | None = None
) -> pandas.DataFrame:
    """Return what is known about every latent of one SAE from the tokens it is active on.

    Columns: latent, n_tokens, n_active, density (share of tokens), token_entropy_bits,
    n_effective, token_entropy_null_bits, effective_tokens, top_token (its string), top_token_mass,
    top_token_recall, family_mass (shares), mean_activation (over active tokens) and
    max_activation (model units). What a latent that never fires cannot have is null. The terms
    are those of `TokenStatistics`.

    Args:
        evidence: About the SAE.
        weights: Document weights whose column 0 is ones, for which token statistics are known already;
            the table is of that column. None: ones alone.
    """
    ones = np.ones((evidence.n_documents, 1))
    found = token_statistics(evidence, ones if weights is None else weights)
    active = found.n_active[:, 0]
    dead = active == 0
    sums = np.bincount(evidence.latents, evidence.values, minlength=evidence.d_sae)
    largest = np.zeros(evidence.d_sae, dtype=np.float32)
    np.maximum.at(largest, evidence.latents, evidence.values)
    top = [None if token < 0 else evidence.vocabulary[token] for token in found.top_token[:, 0]]
    return pandas.DataFrame(
        {
            "latent": np.arange(evidence.d_sae),
            "n_tokens": np.full(evidence.d_sae, evidence.n_tokens),
            "n_active": active.astype(np.int64),
            "density": found.density[:, 0],
            "token_entropy_bits": found.token_entropy_bits[:, 0].astype(np.float64),
            "n_effective": found.n_effective[:, 0].astype(np.float64),
            "token_entropy_null_bits": found.token_entropy_null_bits[:, 0].astype(np.float64),
            "effective_tokens": found.effective_tokens[:, 0].astype(np.float64),
            "top_token": np.array(top, dtype=object),
            "top_token_mass": found.top_token_mass[:, 0].astype(np.float64),
            "top_token_recall": found.top_token_recall[:, 0].astype(np.float64),
            "family_mass": found.family_mass[:, 0].astype(np.float64),
            "mean_activation": np.where(dead, np.nan, sums / np.maximum(active, 1)),
            "max_activation": np.where(dead, np.nan, largest.astype(np.float64)),
        }
    )
