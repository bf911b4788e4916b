"""The control whose dictionary is the principal directions, which second moments alone give."""

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
from sae_placebo.core.lazy import torch
from sae_placebo.saes import SAE

_NEVER = -1e4
"""Bias of a latent that can never fire: its encoder row is zero, so this is its pre-activation."""


@DICTIONARY_CONTROLS.add
class PCA(DictionaryControl):
    """Latents 2i and 2i + 1 are the i-th principal direction of the activations, plus and minus.

    The encoder is the transpose of the decoder, `b_dec` is the mean and `b_enc` is zero; nothing is trained.
    Codes are above zero, which is why both signs are needed; of each pair at most one fires. With `d_sae`
    below `2 d_in` there are the leading directions only. With more, the latents left over can never fire:
    they have a zero encoder row, a bias of -10,000 (finite, so that it survives arithmetic), and as decoder
    the row of the SAE's start, of unit norm.

    This is not PCA with k components. PCA takes the same k directions for every token and is the best linear
    reconstruction. A TopK SAE of this kind picks each token's own k largest projections out of all of them,
    which explains at least as much of every token (the directions are orthogonal, so what is explained is
    the sum of the squared projections taken). At k = d_in it explains everything. It knows the covariance
    and nothing else of the activations: what an SAE finds beyond it is not in second moments.

    Where an architecture reaches its L0 by learning, one level for all latents is set on Gaussian
    draws, and where that shrinks codes they are scaled back, as in `Untrained`.

    Source: this package.
    """

    kind: Literal["pca"] = "pca"
    parts_encoder: ClassVar[bool] = True

    preserves: ClassVar[frozenset[str]] = frozenset({"recipe"})
    destroys: ClassVar[frozenset[str]] = frozenset(
        {
            "initial_decoder",
            "encoder_learned",
            "biases_learned",
            "decoder_learned",
            "decoder_free",
        }
    )
    draws: ClassVar[bool] = False

    @property
    def needs_moments(self) -> bool:
        """True, since the directions come from the moments."""
        return True

    @property
    def frozen(self) -> frozenset[str]:
        """The names of all tensors."""
        return ALL

    def start(self, sae: SAE, moments: StreamMoments | None, seed: int, sae_seed: int) -> SAE:
        """Return the SAE with principal directions; see the class."""
        del sae_seed  # another SAE has the same directions
        moments = self.require(moments, sae)
        rows = sae.params["W_dec"].clone()
        directions = moments.spectrum[1].t().to(rows)
        signed = torch.stack([directions, -directions], dim=1).flatten(0, 1)
        n = min(len(signed), sae.d_sae)
        rows[:n] = torch.nn.functional.normalize(signed[:n], dim=1)
        encoder, thresholds = rows.clone(), torch.zeros_like(sae.params["b_enc"])
        encoder[n:], thresholds[n:] = 0.0, _NEVER
        start = replaced(
            sae,
            W_enc=encoder.t(),
            b_enc=thresholds,
            W_dec=rows,
            b_dec=moments.mean.to(sae.params["b_dec"]).clone(),
        )
        level = at_target_l0(start, moments, seed, 0)
        if torch.equal(level.params["b_enc"], thresholds):
            return level  # codes are projections on orthogonal directions: their best scale is 1
        return scaled_encoder(level, moments, seed, 0)
