"""Every arm has one color and one marker, the same in every plot and beside every name.

Up to five controls have a color each. More colors would be a rainbow that nobody can keep in mind:
beyond five, the color says what a control changes, and the marker which control it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sae_placebo.stats.designs import ArmParts

# Okabe and Ito's palette, whose colors people with the common color-vision deficiencies can tell
# apart; its yellow is left out, since it vanishes on white.
_TRAINED = "#0072B2"
_PLACEBOS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_SHAPES = ("diamond", "square", "triangle-up", "triangle-down", "cross", "x", "star")
_MARKERS = (*_SHAPES, *(f"{shape}-open" for shape in _SHAPES))
MUTED = "#8C8C8C"

CHANGED = (
    "the whole model, W_E with it",
    "W_E alone, or all but W_E",
    "the last blocks",
    "the data",
    "the dictionary",
)
"""What an arm changes, in the order of the colors, where there are more controls than colors."""


@dataclass(frozen=True)
class ArmStyle:
    """How an arm looks.

    Attributes:
        index: Number in the CSS class `arm-<index>`, which gives the arm's name its color.
        color: The same color, in plots.
        marker: Plotly's name of the marker.
    """

    index: int
    color: str
    marker: str


def many(arms: Sequence[str], trained: str | None) -> bool:
    """Return whether there are more controls than colors."""
    return len([arm for arm in arms if arm != trained]) > len(_PLACEBOS)


def arm_styles(
    arms: Sequence[str], trained: str | None, parts: Mapping[str, ArmParts] | None = None
) -> dict[str, ArmStyle]:
    """Return each arm's look; that of the trained arm is the same in every trial.

    Args:
        arms: In the report's order, which is that of the colors.
        trained: The arm without a control; None where there is none.
        parts: What each arm changes, which its color says where there are more controls than colors.
    """
    styles: dict[str, ArmStyle] = {}
    grouped = many(arms, trained)
    used = [0] * len(_PLACEBOS)
    for arm in arms:
        if arm == trained:
            styles[arm] = ArmStyle(0, _TRAINED, "circle")
            continue
        group = changed((parts or {}).get(arm)) if grouped else sum(used)
        shape = used[group] if grouped else group
        styles[arm] = ArmStyle(group + 1, _PLACEBOS[group], _MARKERS[shape % len(_MARKERS)])
        used[group] += 1
    return styles


def changed(parts: ArmParts | None) -> int:
    """Return the index in `CHANGED` of what an arm changes; 0 where that is not recorded."""
    if parts is None:
        return 0
    if parts.dictionary is not None:
        return 4
    if parts.data is not None:
        return 3
    if parts.kind == "cascade":
        return 2
    keeps = parts.control.get("keep") or ()
    of_embeddings = parts.kind in ("redraw_embeddings", "noise_embeddings")
    return 1 if of_embeddings or "embeddings" in keeps else 0
