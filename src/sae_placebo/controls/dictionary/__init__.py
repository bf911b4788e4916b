"""Dictionary controls: SAEs of which a part is not learned. Each kind has a file of its own."""

from __future__ import annotations

from sae_placebo.controls.dictionary.base import (
    DICTIONARY_CONTROLS,
    DICTIONARY_INVARIANTS,
    DictionaryControl,
    StreamMoments,
    parse_dictionary,
)
from sae_placebo.controls.dictionary.frozen_decoder import FrozenDecoder
from sae_placebo.controls.dictionary.frozen_encoder import FrozenEncoder
from sae_placebo.controls.dictionary.pca import PCA
from sae_placebo.controls.dictionary.retrained import Retrained
from sae_placebo.controls.dictionary.soft_frozen import SoftFrozen
from sae_placebo.controls.dictionary.untrained import Untrained

__all__ = [
    "DICTIONARY_CONTROLS",
    "DICTIONARY_INVARIANTS",
    "PCA",
    "DictionaryControl",
    "FrozenDecoder",
    "FrozenEncoder",
    "Retrained",
    "SoftFrozen",
    "StreamMoments",
    "Untrained",
    "parse_dictionary",
]
