"""One color and one marker per arm, the same in every plot and beside every name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Okabe and Ito's palette, told apart with the common color-vision deficiencies; yellow left out,
# since it vanishes on white.
_TRAINED = "#0072B2"
_PLACEBOS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("diamond", "square", "triangle-up", "triangle-down", "cross", "x", "star")
MUTED = "#8C8C8C"


@dataclass(frozen=True)
class ArmStyle:
    """How an arm looks; `index` names its CSS class `arm-<index>`."""

    index: int
    color: str
    marker: str


def arm_styles(arms: Sequence[str], trained: str | None) -> dict[str, ArmStyle]:
    """Return each arm's look; the trained arm always has the same one.

    Colors repeat after five placebos; the markers then differ.
    """
    styles: dict[str, ArmStyle] = {}
    placebos = 0
    for arm in arms:
        if arm == trained:
            styles[arm] = ArmStyle(0, _TRAINED, "circle")
            continue
        color = _PLACEBOS[placebos % len(_PLACEBOS)]
        styles[arm] = ArmStyle(placebos + 1, color, _MARKERS[placebos % len(_MARKERS)])
        placebos += 1
    return styles
