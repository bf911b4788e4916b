"""The control that trains everything, but keeps decoder directions within a cone about their start."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from sae_placebo.controls.dictionary.base import DICTIONARY_CONTROLS, RandomDirections


@DICTIONARY_CONTROLS.add
class SoftFrozen(RandomDirections):
    """Each decoder row keeps a cosine of at least `cosine` to its random start.

    After each step, a row outside its cone is turned back to the nearest direction inside; nothing else is
    held back. At 0.8 a row may turn by 37 degrees, which is not close to frozen: in d dimensions a cosine of
    0.8 is far above what unrelated directions have. The control separates "directions were learned" from
    "directions were adjusted".

    Source: Korznikov et al. 2026 (arXiv 2602.14111), "Soft-Frozen Decoder", cosine at least 0.8.
    Differs: as `FrozenDecoder` does.
    """

    kind: Literal["soft_frozen"] = "soft_frozen"
    cosine: float = Field(0.8, ge=0, lt=1)
    """Least cosine of a decoder row to its start."""

    preserves: ClassVar[frozenset[str]] = frozenset(
        {"recipe", "encoder_learned", "biases_learned", "decoder_learned"}
    )
    destroys: ClassVar[frozenset[str]] = frozenset({"decoder_free"})

    @property
    def decoder_cosine(self) -> float | None:
        """The least cosine, which is the setting `cosine`."""
        return self.cosine
