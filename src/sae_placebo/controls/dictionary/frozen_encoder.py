"""The control that leaves encoder directions at random and trains everything else."""

from __future__ import annotations

from typing import ClassVar, Literal

from sae_placebo.controls.dictionary.base import (
    DICTIONARY_CONTROLS,
    RandomDirections,
    StreamMoments,
    replaced,
    scaled_encoder,
)
from sae_placebo.saes import SAE


@DICTIONARY_CONTROLS.add
class FrozenEncoder(RandomDirections):
    """`W_enc` stays at random unit directions; thresholds `b_enc`, decoder and `b_dec` are trained.

    What a latent responds to is then random, and only its threshold is learned. A latent of this SAE that
    looks interpretable was found in random projections of the activations.

    Decoder rows have unit norm, so with `W_enc` held fast nothing could correct the codes' scale, and what
    such an SAE explains would be an accident of it. So one global scale is fitted before `W_enc` is frozen
    (`dictionary.base.scaled_encoder`); `scaled = false` leaves the rows at unit norm.

    Source: Korznikov et al. 2026 (arXiv 2602.14111), "Frozen Encoder": random encoder, threshold and
    decoder trained. Differs: as `FrozenDecoder` does; the decoder starts at the encoder's directions; the
    scale is ours, since the paper says nothing of one.
    """

    kind: Literal["frozen_encoder"] = "frozen_encoder"
    parts_encoder: ClassVar[bool] = True
    scaled: bool = True
    """Whether the frozen encoder has the global scale that suits the activations best."""

    preserves: ClassVar[frozenset[str]] = frozenset(
        {"recipe", "biases_learned", "decoder_learned", "decoder_free"}
    )
    destroys: ClassVar[frozenset[str]] = frozenset({"encoder_learned"})

    @property
    def needs_moments(self) -> bool:
        """Whether the scale or the directions come from the moments."""
        return self.scaled or self.init == "cov"

    @property
    def frozen(self) -> frozenset[str]:
        """The name of the encoder's weights."""
        return frozenset({"W_enc"})

    def start(self, sae: SAE, moments: StreamMoments | None, seed: int, sae_seed: int) -> SAE:
        """Return the SAE at its random directions, with the encoder's times the scale; see the class."""
        start = super().start(sae, moments, seed, sae_seed)
        if self.scaled:
            return scaled_encoder(start, self.require(moments, sae), seed, sae_seed)
        rows = start.params["W_dec"]
        return replaced(sae, W_enc=rows.clone().t(), W_dec=rows.clone())
