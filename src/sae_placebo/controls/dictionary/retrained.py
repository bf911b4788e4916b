"""The control of a given SAE: the same recipe, trained on what the trial's other SAEs are trained on."""

from __future__ import annotations

from typing import ClassVar, Literal

from sae_placebo.controls.dictionary.base import (
    DICTIONARY_CONTROLS,
    DICTIONARY_INVARIANTS,
    DictionaryControl,
    StreamMoments,
    replaced,
)
from sae_placebo.saes import SAE


@DICTIONARY_CONTROLS.add
class Retrained(DictionaryControl):
    """It is trained in full, by the recipe, where the trained arm's SAE was given.

    Where an SAE is given, the trained arm differs from a placebo in what its SAE was trained on as well as in
    the model. This arm has the trained model and the placebos' training. So given minus retrained is tokens,
    text and recipe together, and retrained minus a placebo is the model. In a trial that trains all of its
    SAEs it is the trained arm once more, and shares its SAEs.

    Source: this package.
    """

    kind: Literal["retrained"] = "retrained"

    preserves: ClassVar[frozenset[str]] = frozenset(DICTIONARY_INVARIANTS)
    destroys: ClassVar[frozenset[str]] = frozenset()

    def start(self, sae: SAE, moments: StreamMoments | None, seed: int, sae_seed: int) -> SAE:
        """Return the start of the trained SAE."""
        return replaced(sae)
