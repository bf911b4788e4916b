"""The SAE as it starts, with one scale."""

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
    """The trained SAE's start: random rows, the encoder their transpose, times one global scale.

    Without a scale the codes overshoot, and the variance explained would say more about that than
    about the dictionary. The scale sits in `W_enc` and changes neither which latents fire nor where;
    see `dictionary.base.scaled_encoder`. `b_dec` is the activations' mean and `b_enc` zero.

    Where an architecture reaches its L0 by learning, nothing does so here: one level for all latents
    is set on Gaussian draws (`dictionary.base.at_target_l0`), in the thresholds or in `b_enc`. A
    recipe without a target keeps its dense start. The threshold of the BatchTopK kinds is a running
    mean, not a learned tensor, and follows the codes as in training.

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
        """True: the scale and `b_dec` come from them."""
        return True

    @property
    def frozen(self) -> frozenset[str]:
        """Every tensor."""
        return ALL

    def start(self, sae: SAE, moments: StreamMoments | None, seed: int, sae_seed: int) -> SAE:
        """Return the start with its scale and its mean; see the class."""
        moments = self.require(moments, sae)
        mean = moments.mean.to(sae.params["b_dec"])
        start = at_target_l0(replaced(sae, b_dec=mean.clone()), moments, seed, sae_seed)
        return scaled_encoder(start, moments, seed, sae_seed)
