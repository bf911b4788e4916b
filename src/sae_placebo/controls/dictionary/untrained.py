"""The control that leaves the SAE as it starts, except for one scale."""

from __future__ import annotations

from typing import ClassVar, Literal

from sae_placebo.controls.dictionary.base import (
    ALL,
    DICTIONARY_CONTROLS,
    DictionaryControl,
    StreamMoments,
    at_target_l0,
    replaced,
    scaled_encoder,
)
from sae_placebo.saes import SAE


@DICTIONARY_CONTROLS.add
class Untrained(DictionaryControl):
    """It is the trained SAE's start: random rows, and their transpose times one global scale as the encoder.

    Without a scale the codes overshoot, and the variance explained would say more about that than about the
    dictionary. The scale goes into `W_enc` and changes neither which latents fire nor where; see
    `dictionary.base.scaled_encoder`. `b_dec` is the activations' mean, and `b_enc` is zero.

    Where an architecture reaches its L0 by learning, this SAE cannot. Instead one level for all latents is
    set on Gaussian draws (`dictionary.base.at_target_l0`), in the thresholds or in `b_enc`. A recipe without
    a target keeps its dense start. The threshold of the BatchTopK kinds is a running mean, not a learned
    tensor, and follows the codes as in training.

    Source: the reference "linear TopK with one global scale"; `random_dictionary_ev(..., "linear")`
    is the same on isotropic noise.
    """

    kind: Literal["untrained"] = "untrained"
    parts_encoder: ClassVar[bool] = True

    preserves: ClassVar[frozenset[str]] = frozenset({"recipe", "initial_decoder"})
    destroys: ClassVar[frozenset[str]] = frozenset(
        {"encoder_learned", "biases_learned", "decoder_learned", "decoder_free"}
    )

    @property
    def needs_moments(self) -> bool:
        """True, since the scale and `b_dec` come from the moments."""
        return True

    @property
    def frozen(self) -> frozenset[str]:
        """The names of all tensors."""
        return ALL

    def start(self, sae: SAE, moments: StreamMoments | None, seed: int, sae_seed: int) -> SAE:
        """Return the SAE's start with the scale and the mean; see the class."""
        moments = self.require(moments, sae)
        mean = moments.mean.to(sae.params["b_dec"])
        start = at_target_l0(replaced(sae, b_dec=mean.clone()), moments, seed, sae_seed)
        return scaled_encoder(start, moments, seed, sae_seed)
