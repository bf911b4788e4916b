"""PCA, both as a dictionary of which few components are used and as a dense code."""

from __future__ import annotations

import numpy as np

from sae_placebo.baselines.base import BASELINES, Baseline, Dictionary, Material

PCA_DENSE = "pca_dense"
"""The name of the code without atoms, whose bits are R(PCA)."""


def fit_pca(material: Material) -> Dictionary:
    """Return the dictionary of the covariance's eigenvectors, the one of the largest variance first."""
    x = material.activations.astype(np.float32)
    _, vectors = np.linalg.eigh((x.T @ x).astype(np.float64))
    rows = np.ascontiguousarray(vectors[:, ::-1].T, dtype=np.float32)
    return Dictionary("pca", rows, material.center, rows.size)


def fit_dense(material: Material) -> Dictionary:
    """Return a dictionary without atoms: all that is coded is the residual, in its principal components."""
    none = np.zeros((0, material.activations.shape[1]), dtype=np.float32)
    return Dictionary(PCA_DENSE, none, material.center, 0)


BASELINES.add(
    Baseline(
        "pca",
        "PCA",
        "Eigenvectors of the covariance; a token is written with the components that are largest "
        "for it.",
        "The usual PCA; the choice of components by token, and not once for all, is ours and favors "
        "PCA in variance while it pays for indices.",
        fit_pca,
    ),
)
BASELINES.add(
    Baseline(
        PCA_DENSE,
        "PCA, dense",
        "No sparse code: every principal component is quantized with one step and coded, which "
        "spends no bits on components below the step.",
        "Transform coding (Goyal 2001), which is reverse water-filling but for the loss of a scalar "
        "quantizer, about a quarter bit per coded component.",
        fit_dense,
    ),
)
