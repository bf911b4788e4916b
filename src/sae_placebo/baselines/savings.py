"""Bits of SAEs and what they save beyond existing methods, as metrics by which arms are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from sae_placebo.baselines.base import BASELINES, BaselinesSpec
from sae_placebo.baselines.compare import ENCODER, PURSUIT, BaselinesResult, methods_frame
from sae_placebo.baselines.marginal import BEST, COMMON, Choice, Marginal
from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import pandas
from sae_placebo.latents.metrics.base import Declared

_SOURCE = "This package; see `baselines.marginal`."
_BITS = "This package; see `baselines.rate`."

DECLARED: dict[str, Declared] = {
    one.name: one
    for one in (
        Declared(
            name="marginal_structure_above_gaussian",
            unit="bits/token",
            better="higher",
            null="0: no more than on Gaussian activations with the same means and covariances",
            definition="bits per token at the headline distortion with 2m atoms of an existing method, the "
            "one that is best in the trained arm, minus those with m of its atoms and m latents of the SAE "
            "(neither is above dense PCA); minus what this is on Gaussian activations with the same means "
            "and covariances, for the same dictionaries",
            source=_SOURCE,
        ),
        Declared(
            name="bits_added_by_latents",
            unit="bits/token",
            better="higher",
            null="0: the SAE's latents add nothing to the existing method",
            definition="bits per token at the headline distortion with m atoms of an existing method, the "
            "one that is best in the trained arm, minus those with these and m latents of the SAE",
            source=_SOURCE,
        ),
        Declared(
            name="marginal_structure_share",
            unit="share of dense PCA's bits",
            better="higher",
            null="0: the SAE's latents are worth as much as so many more atoms of the existing method",
            definition="marginal structure, on the activations alone, as a share of the bits of dense PCA",
            source=_SOURCE,
        ),
        Declared(
            name="marginal_structure_envelope",
            unit="bits/token",
            better="higher",
            null="0: no SAE's latents are worth more than so many more atoms of the existing method",
            definition="marginal structure, on the activations alone, of the SAE, of all the trial's SAEs of "
            "this seed, whose latents need the fewest bits on the documents to choose on: the lower envelope "
            "over recipes, where there are several",
            source=_SOURCE,
        ),
        Declared(
            name="sae_bits",
            unit="bits/token",
            better="neither",
            null="the bits of dense PCA on the same arm",
            definition="bits per token to transmit the activations at the headline distortion with the "
            "codes of the SAE's own encoder, cut to as many atoms as is shortest: indices, values and what "
            "is left over; the dictionary itself not counted",
            source=_BITS,
        ),
        Declared(
            name="sae_pursuit_bits",
            unit="bits/token",
            better="neither",
            null="the bits of dense PCA on the same arm",
            definition="the same with the SAE's decoder and the pursuit that codes every existing method",
            source=_BITS,
        ),
    )
}
"""The declarations of the metrics that `saved` returns, by name."""

ABOUT_ONE = (
    *("baseline", "method", "n_atoms", "bits_pca", "bits_halved", "bits_doubled", "bits_joined"),
    *("atoms_doubled", "atoms_joined", "reason"),
)
"""Columns of the rows that `beyond_methods` returns."""

Replicates = dict[str, Float[np.ndarray, " replicate"]]


def refused(reason: str) -> BaselinesResult:
    """Return the result of a comparison that could not be made: every baseline with the reason."""
    rows: list[dict[str, Any]] = [
        {"baseline": name, "reason": reason} for name in BASELINES.entries
    ]
    none = Choice(None, reason=reason)
    return BaselinesResult(methods_frame(rows), {}, Marginal({}, none, none, {}), 0, 0, reason)


def saved(
    found: BaselinesResult,
    reading: str,
    weights: Float[np.ndarray, "document replicate"],
    spec: BaselinesSpec,
) -> tuple[Any, Replicates]:
    """Return the table of metrics of one SAE, and their values under each column of document weights.

    Args:
        found: The comparison for the SAE's arm.
        reading: The SAE's name in it, `<label>/<seed>`.
        weights: How often each document counts; column 0 is ones.
        spec: The settings, of which the first distortion is the headline.
    """
    distortion = spec.distortions[0]
    values: Mapping[str, Callable[[], Float[np.ndarray, " replicate"]]] = {
        "marginal_structure_above_gaussian": lambda: (
            found.marginal.gain(reading).bits(weights)
            - found.marginal.gain(reading, by_chance=True).bits(weights)
        ),
        "bits_added_by_latents": lambda: found.marginal.gain(reading).added(weights),
        "marginal_structure_share": lambda: found.marginal.gain(reading).share(weights),
        "marginal_structure_envelope": lambda: found.marginal.gain(_shortest(found, reading)).bits(
            weights
        ),
        "sae_bits": lambda: found.of_sae(reading, ENCODER, distortion).per_token(weights),
        "sae_pursuit_bits": lambda: found.of_sae(reading, PURSUIT, distortion).per_token(weights),
    }
    rows, replicates = [], Replicates()
    for name, declared in DECLARED.items():
        value = null = None
        try:
            replicates[name] = values[name]()
            value, why = float(replicates[name][0]), found.caveat
            null = found.dense_bits if name.startswith("sae_") else 0.0
        except NotEstimable as refusal:
            why = found.reason or str(refusal)
        rows.append([name, value, declared.unit, null, found.n_scored, why])
    columns = ["metric", "value", "unit", "null_value", "n", "reason"]
    return pandas.DataFrame(rows, columns=columns), replicates


def _shortest(found: BaselinesResult, reading: str) -> str:
    """Return, of the SAEs of this seed, the one whose latents need the fewest bits beside the method.

    Raises:
        NotEstimable: there is one SAE of this seed, or one of them has no bits; the message says why.
    """
    seed = reading.rpartition("/")[2]
    readings = dict.fromkeys(name for name, _ in found.marginal.gains)
    of_seed = [name for name in readings if name.rpartition("/")[2] == seed]
    if len(of_seed) < 2:
        raise NotEstimable("there is one recipe, whose envelope is its own marginal structure")
    return min(of_seed, key=lambda name: found.marginal.gain(name).joined.chosen_bits)


def beyond_methods(
    found: BaselinesResult, reading: str, weights: Float[np.ndarray, "document replicate"]
) -> tuple[list[dict[str, Any]], Replicates]:
    """Return what one SAE saves beyond every existing method, and the values under document weights.

    The rows have the columns of the table `marginal` that are about one SAE; replicates are named
    `<method>/bits` and `<method>/share`, and the nulls of the best method and of the common one
    `best/gaussian` and `common/gaussian`.
    """
    rows, replicates = [], Replicates()
    methods = dict.fromkeys(method for one, method in found.marginal.gains if one == reading)
    for method in (*methods, BEST, COMMON):
        row: dict[str, Any] = {"baseline": method, "reason": found.caveat}
        try:
            gain = found.marginal.gain(reading, method)
            replicates |= {
                f"{method}/bits": gain.bits(weights),
                f"{method}/share": gain.share(weights),
            }
            ones = weights[:, :1]
            row |= {
                "method": gain.method,
                "n_atoms": gain.size,
                "bits_pca": float(gain.dense.per_token(ones)[0]),
                "bits_doubled": float(gain.doubled.documents.per_token(ones)[0]),
                "bits_joined": float(gain.joined.documents.per_token(ones)[0]),
                "atoms_doubled": gain.doubled.n_atoms,
                "atoms_joined": gain.joined.n_atoms,
            }
            if isinstance(gain.halved, str):
                row["reason"] = gain.halved
            else:
                row["bits_halved"] = float(gain.halved.documents.per_token(ones)[0])
            if method in (BEST, COMMON):
                chance = found.marginal.gain(reading, method, by_chance=True)
                replicates[f"{method}/gaussian"] = chance.bits(weights)
        except NotEstimable as refusal:
            row["reason"] = found.reason or str(refusal)
        rows.append(row)
    return rows, replicates
