"""Directions that are given without any fit: the coordinate axes, and the rows of W_E."""

from __future__ import annotations

import numpy as np

from sae_placebo.baselines.base import BASELINES, Baseline, Dictionary, Material, unit_rows
from sae_placebo.core.errors import NotEstimable


def fit_neurons(material: Material) -> Dictionary:
    """Return the dictionary of coordinate axes."""
    axes = np.eye(material.activations.shape[1], dtype=np.float32)
    return Dictionary("neurons", axes, material.center, 0)


def fit_embeddings(material: Material) -> Dictionary:
    """Return the dictionary of rows of W_E at length 1, of the tokens most frequent in the text to fit on.

    Raises:
        NotEstimable: W_E was not given, or its rows are not as wide as the activations.
    """
    table = material.embeddings
    d_in = material.activations.shape[1]
    if table is None:
        raise NotEstimable(
            "the rows of W_E are not known for this arm, or are no directions at this hookpoint, where the "
            "input of a module is read"
        )
    if table.shape[1] != d_in:
        raise NotEstimable(f"the rows of W_E have {table.shape[1]} numbers, the activations {d_in}")
    ids, seen = np.unique(material.token_ids, return_counts=True)
    order = np.argsort(-seen, kind="stable")[: material.n_atoms]
    rows = unit_rows(table[ids[order]].astype(np.float32), "W_E")
    return Dictionary("embeddings", rows, material.center, rows.size)


BASELINES.add(
    Baseline(
        "neurons",
        "Raw neurons",
        "The coordinate axes: no direction is sought.",
        "The usual baseline of Bricken et al. 2023, here coded like every other dictionary.",
        fit_neurons,
    ),
)
BASELINES.add(
    Baseline(
        "embeddings",
        "Rows of W_E",
        "Embeddings of the most frequent tokens of the text to fit on, as directions.",
        "Ours: what the input's own directions explain. The rows are the arm's own W_E.",
        fit_embeddings,
    ),
)
