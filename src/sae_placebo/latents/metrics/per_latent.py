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
    """Return what is known about every latent of one SAE from the tokens on which it is active.

    Columns: latent, n_tokens, n_active, density (share of tokens), token_entropy_bits, n_effective,
    token_entropy_null_bits, effective_tokens, top_token (its string), top_token_mass, top_token_recall,
    family_mass (shares), mean_activation (over active tokens) and max_activation (model units). Columns that
    are undefined for a latent that never fires are null there. The terms are those of `TokenStatistics`.

    Args:
        evidence: The evidence about the SAE.
        weights: Document weights whose column 0 is ones, for which token statistics are computed already;
            the table is about that column. None for ones alone.
    """
    ones = np.ones((evidence.n_documents, 1))
    statistics = token_statistics(evidence, ones if weights is None else weights)
    active = statistics.n_active[:, 0]
    dead = active == 0
    sums = np.bincount(evidence.latents, evidence.values, minlength=evidence.d_sae)
    largest = np.zeros(evidence.d_sae, dtype=np.float32)
    np.maximum.at(largest, evidence.latents, evidence.values)
    top = [
        None if token < 0 else evidence.vocabulary[token] for token in statistics.top_token[:, 0]
    ]

    def first(name: str) -> Float[np.ndarray, " latent"]:
        return np.asarray(getattr(statistics, name)[:, 0], dtype=np.float64)

    entropies = ("token_entropy_bits", "n_effective", "token_entropy_null_bits", "effective_tokens")
    shares = ("top_token_mass", "top_token_recall", "family_mass")
    return pandas.DataFrame(
        {
            "latent": np.arange(evidence.d_sae),
            "n_tokens": np.full(evidence.d_sae, evidence.n_tokens),
            "n_active": active.astype(np.int64),
            **{name: first(name) for name in ("density", *entropies)},
            "top_token": np.array(top, dtype=object),
            **{name: first(name) for name in shares},
            "mean_activation": np.where(dead, np.nan, sums / np.maximum(active, 1)),
            "max_activation": np.where(dead, np.nan, largest.astype(np.float64)),
        }
    )
