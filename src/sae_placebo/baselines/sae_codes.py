"""SAEs as dictionaries: their decoder's directions, and the codes of their own encoder."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from sae_placebo.baselines.base import Dictionary
from sae_placebo.baselines.pursuit import AtomCodes, refitted
from sae_placebo.baselines.rate import CodedVectors
from sae_placebo.baselines.sampling import Sample, as_numpy
from sae_placebo.baselines.settings import Coder
from sae_placebo.latents.base import Encoded

SAE = "sae"
"""The name that tables give to SAEs as a baseline."""


def sae_dictionary(reading: Encoded) -> Dictionary:
    """Return an SAE's decoder as a dictionary, with unit rows and the decoder bias as the center."""
    decoder = as_numpy(reading.sae.params["W_dec"]).astype(np.float32)
    lengths = np.maximum(np.linalg.norm(decoder, axis=1, keepdims=True), 1e-12)
    center = reading.sae.params["b_dec"].detach().cpu().numpy().astype(np.float32)
    return Dictionary(SAE, (decoder / lengths).astype(np.float32), center, decoder.size)


def encoded(reading: Encoded, dictionary: Dictionary, sample: Sample) -> CodedVectors:
    """Return the codes of the SAE's own encoder.

    A code with fewer atoms than the encoder gives has its largest ones, with refitted coefficients.
    """
    vectors = sample.vectors.moved(sample.center - dictionary.center)
    choose, score = (_codes(reading, tokens) for tokens in (sample.choose, sample.score))
    widest = max(choose.values.shape[1], score.values.shape[1])

    def coder(codes: AtomCodes, x: Float32[np.ndarray, "token d_in"]) -> Coder:
        def at(n_atoms: int) -> AtomCodes:
            if n_atoms >= widest:
                return codes
            return refitted(codes.largest(n_atoms), x, dictionary.directions)

        return at

    coders = coder(choose, vectors.choose), coder(score, vectors.score)
    return CodedVectors(vectors, *coders, widest, widest)


def strongest_first(reading: Encoded, codes: Any) -> Float32[np.ndarray, "atom d_in"]:
    """Return the latents' directions, that with the largest summed squared activation first.

    Args:
        reading: The SAE.
        codes: What its encoder gives at the tokens that activations are summed over, scipy CSR.
    """
    lengths = np.linalg.norm(as_numpy(reading.sae.params["W_dec"]), axis=1)
    squares = np.square(codes.data, dtype=np.float64)
    energy = np.bincount(codes.indices, weights=squares, minlength=codes.shape[1]) * lengths**2
    return sae_dictionary(reading).directions[np.argsort(-energy, kind="stable")]


def _codes(reading: Encoded, tokens: Int64[np.ndarray, " token"]) -> AtomCodes:
    """Return the encoder's codes of some tokens, as coefficients of the decoder's unit rows."""
    lengths = np.linalg.norm(as_numpy(reading.sae.params["W_dec"]), axis=1)
    codes = AtomCodes.of(reading.codes[tokens].tocsr())
    return AtomCodes(
        codes.atoms, codes.values * lengths[codes.atoms].astype(np.float32), codes.n_atoms
    )
