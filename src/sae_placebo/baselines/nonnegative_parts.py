"""Non-negative matrix factorization, as a dictionary for activations that have either sign."""

from __future__ import annotations

import warnings

import numpy as np

from sae_placebo.baselines.base import BASELINES, Baseline, Dictionary, Material, unit_rows


def fit_nmf(material: Material) -> Dictionary:
    """Return the dictionary of the parts that non-negative factorization finds in [relu(x), relu(-x)].

    A part h in that space of twice as many dimensions gives the direction h[:d_in] - h[d_in:].

    Raises:
        NotEstimable: all parts are zero.
    """
    from sklearn.decomposition import NMF
    from sklearn.exceptions import ConvergenceWarning

    x = material.activations[: material.spec.nmf_tokens]
    doubled = np.maximum(np.concatenate([x, -x], axis=1), 0)
    model = NMF(
        n_components=min(material.spec.nmf_atoms, material.n_atoms, len(x) // 4),
        init="nndsvda",
        max_iter=material.spec.iterations,
        random_state=material.random_state("nmf"),
    )
    with warnings.catch_warnings():  # a fixed number of iterations is what the settings ask for
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(doubled)
    parts, d_in = model.components_, x.shape[1]
    rows = unit_rows((parts[:, :d_in] - parts[:, d_in:]).astype(np.float32), "NMF")
    return Dictionary("nmf", rows, material.center, rows.size)


BASELINES.add(
    Baseline(
        "nmf",
        "Non-negative parts",
        "Non-negative matrix factorization of [relu(x), relu(-x)]; a part stands for the direction "
        "that its two halves make together.",
        "Lee and Seung 1999, coordinate descent as in scikit-learn. NMF needs input without signs: "
        "the doubling is ours, and so is coding with the parts by pursuit.",
        fit_nmf,
    ),
)
