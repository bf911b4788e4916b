"""Random directions: uniform ones, and ones that follow the activations' covariance."""

from __future__ import annotations

import numpy as np

from sae_placebo.baselines.base import BASELINES, Baseline, Dictionary, Material, unit_rows


def _normal(material: Material, name: str) -> np.ndarray:
    """Return a row of independent standard normal draws for each atom."""
    shape = (material.n_atoms, material.activations.shape[1])
    return material.random(name).standard_normal(shape, np.float32)


def fit_random(material: Material) -> Dictionary:
    """Return the dictionary of uniform directions, which are the same for every arm of this width."""
    rows = unit_rows(_normal(material, "random"), "random")
    return Dictionary("random", rows, material.center, 0)


def fit_covariance(material: Material) -> Dictionary:
    """Return the dictionary of directions of Gaussian draws with the activations' covariance.

    The receiver must be sent the covariance; the draws follow from a seed.
    """
    x = material.activations
    d_in = x.shape[1]
    values, vectors = np.linalg.eigh((x.T @ x).astype(np.float64) / len(x))
    root = (vectors * np.sqrt(np.maximum(values, 0))).T.astype(np.float32)
    rows = unit_rows(_normal(material, "covariance") @ root, "covariance")
    return Dictionary("covariance", rows, material.center, d_in * (d_in + 1) // 2)


BASELINES.add(
    Baseline(
        "random",
        "Random directions",
        "Uniform unit directions: what many directions explain without having been learned.",
        "Korznikov et al. 2026 (arXiv 2602.14111), iso; there an encoder is trained for them, here "
        "they are pursued.",
        fit_random,
    ),
)
BASELINES.add(
    Baseline(
        "covariance",
        "Frozen, by covariance",
        "Directions of Gaussian draws with the activations' covariance: what is learned is the "
        "second moments alone.",
        "Korznikov et al. 2026 (arXiv 2602.14111), cov; there an encoder is trained for them, here "
        "they are pursued.",
        fit_covariance,
    ),
)
