"""The control that leaves decoder directions at random and trains everything else."""

from __future__ import annotations

from typing import ClassVar, Literal

from sae_placebo.controls.dictionary.base import DICTIONARY_CONTROLS, RandomDirections


@DICTIONARY_CONTROLS.add
class FrozenDecoder(RandomDirections):
    """Decoder rows stay at random unit directions; encoder and both biases are trained.

    What is left is how well codes can be learned for directions that mean nothing. What this SAE reaches is
    owed to the encoder, and to the number of directions. It shows whether a metric of latents needs a
    learned dictionary at all.

    Source: Korznikov et al. 2026 (arXiv 2602.14111), "Frozen Decoder", with both of its laws of
    directions. Differs: `iso` takes the very bits that the trained SAE starts from; any architecture may be
    used (theirs are BatchTopK, JumpReLU, ReLU and TopK), with this package's optimizer and, where an
    architecture has one, its term that revives dead latents through the encoder.
    """

    kind: Literal["frozen_decoder"] = "frozen_decoder"
    parts_encoder: ClassVar[bool] = True

    preserves: ClassVar[frozenset[str]] = frozenset({"recipe", "encoder_learned", "biases_learned"})
    destroys: ClassVar[frozenset[str]] = frozenset({"decoder_learned", "decoder_free"})

    @property
    def frozen(self) -> frozenset[str]:
        """The name of the decoder's rows."""
        return frozenset({"W_dec"})
