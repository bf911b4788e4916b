"""k-means, with centroids as directions."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from sae_placebo.baselines.base import BASELINES, Baseline, Dictionary, Material
from sae_placebo.baselines.pursuit import AtomCodes
from sae_placebo.core.errors import NotEstimable


def fit_kmeans(material: Material) -> Dictionary:
    """Return the dictionary of centroids, less the center and at length 1.

    The native code of a token is the nearest centroid alone, at the centroid's own length.

    Raises:
        NotEstimable: there are fewer than ten tokens to fit on.
    """
    from sklearn.cluster import MiniBatchKMeans

    x = material.activations
    n_atoms = min(material.n_atoms, len(x) // 5)
    if n_atoms < 2:
        raise NotEstimable(f"k-means needs ten tokens or more to fit on; found {len(x)}")
    model = MiniBatchKMeans(
        n_clusters=n_atoms,
        batch_size=4096,
        init="random",
        n_init=1,
        max_iter=8,
        random_state=material.random_state("kmeans"),
        compute_labels=False,
    ).fit(x)
    means = np.asarray(model.cluster_centers_, dtype=np.float32)
    lengths = np.maximum(np.linalg.norm(means, axis=1), 1e-12)
    rows = (means / lengths[:, None]).astype(np.float32)

    def native(x: Float32[np.ndarray, "token d_in"], k: int) -> AtomCodes:
        near = (x @ means.T - 0.5 * lengths**2).argmax(axis=1)
        values = lengths[near].astype(np.float32)
        return AtomCodes(near[:, None].astype(np.int32), values[:, None], len(rows))

    return Dictionary("kmeans", rows, material.center, rows.size, native)


BASELINES.add(
    Baseline(
        "kmeans",
        "k-means",
        "Centroids as directions; its own code is the nearest centroid, the code compared here uses "
        "as many as every other baseline.",
        "MiniBatchKMeans of scikit-learn, random start, at most 8 passes.",
        fit_kmeans,
    ),
)
