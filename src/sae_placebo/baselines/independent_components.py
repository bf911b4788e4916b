"""ICA, which finds directions along which activations are as far from Gaussian as can be."""

from __future__ import annotations

import warnings

import numpy as np
from jaxtyping import Float32

from sae_placebo.baselines.base import BASELINES, Baseline, Dictionary, Material
from sae_placebo.baselines.pursuit import AtomCodes, largest_products
from sae_placebo.core.errors import NotEstimable

_LEAST_SPREAD = 1e-6
"""Variance of a principal component, relative to the first's, below which ICA leaves it out."""


def fit_ica(material: Material) -> Dictionary:
    """Return the dictionary of the mixing matrix's columns, at length 1.

    The native code consists of the k sources that contribute most, as the unmixing matrix gives them.

    Raises:
        NotEstimable: FastICA failed on these activations.
    """
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    x = material.activations[: material.spec.ica_tokens]
    # directions of next to no variance would be blown up to unit variance, rounding and all
    spread = np.linalg.eigvalsh(np.cov(x.astype(np.float64), rowvar=False))
    n_spread = int((spread > _LEAST_SPREAD * spread.max()).sum())
    model = FastICA(
        n_components=max(1, min(n_spread, len(x) // 4)),
        whiten="unit-variance",
        whiten_solver="eigh",
        max_iter=material.spec.iterations,
        random_state=material.random_state("ica"),
    )
    with warnings.catch_warnings():  # a fixed number of iterations is what the settings ask for
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        warnings.simplefilter("ignore", UserWarning)
        try:
            model.fit(x.astype(np.float64))
        except (ValueError, np.linalg.LinAlgError) as failure:
            raise NotEstimable(f"FastICA broke off: {failure}") from failure
    lengths = np.linalg.norm(model.mixing_, axis=0)
    rows = np.ascontiguousarray((model.mixing_ / lengths).T, dtype=np.float32)
    unmixing = np.ascontiguousarray((model.components_ * lengths[:, None]).T, dtype=np.float32)

    def native(x: Float32[np.ndarray, "token d_in"], k: int) -> AtomCodes:
        return largest_products(x @ unmixing, k)

    return Dictionary("ica", rows, material.center, rows.size, native)


BASELINES.add(
    Baseline(
        "ica",
        "ICA",
        "Columns of FastICA's mixing matrix: directions whose sources are as independent, that is "
        "as non-Gaussian, as can be.",
        "Hyvarinen and Oja 2000, as in scikit-learn (parallel, logcosh); a fixed number of "
        "iterations on a sample.",
        fit_ica,
    ),
)
