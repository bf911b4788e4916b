"""The token's id and what the mean activation of its id leaves: the line that a lookup table draws."""

from __future__ import annotations

import numpy as np

from sae_placebo.baselines.base import BASELINES, Baseline, Dictionary, Material

TOKEN_TABLE = "token_table"
"""The name of the baseline that sends token ids."""


def fit_token_table(material: Material) -> Dictionary:
    """Return a dictionary without atoms, whose entries are a mean for every token id.

    The means themselves, the lengths of ids, and what is left of activations are in `sampling.Sample`.
    """
    d_in = material.activations.shape[1]
    none = np.zeros((0, d_in), dtype=np.float32)
    n_ids = len(np.unique(material.token_ids))
    return Dictionary(TOKEN_TABLE, none, material.center, n_ids * d_in)


BASELINES.add(
    Baseline(
        TOKEN_TABLE,
        "Token table",
        "The token's id is sent, under frequencies in the text to fit on, and what the mean "
        "activation of the id leaves is coded in its principal components.",
        "Ours: what a lookup table of the current token is worth, in the unit of the others.",
        fit_token_table,
    ),
)
