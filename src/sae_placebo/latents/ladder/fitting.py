"""The predictions of every rung: fitted on a portion of the text to fit on, weighed on other tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float32, Float64

from sae_placebo.latents.ladder.chosen_penalties import readout, weigh
from sae_placebo.latents.ladder.inner_products import (
    N_LOOKUPS,
    PAIR,
    POSITION,
    PREVIOUS,
    TOKEN,
    Fitted,
    PieceProducts,
)
from sae_placebo.latents.ladder.predictors import Readouts
from sae_placebo.latents.ladder.targets import PortionOfLatents
from sae_placebo.latents.ladder.vectors import PortionOfVector

RUNGS = (
    *("constant", "position", "token", "pair", "bag", "window"),
    *("placebo_readout", "placebo_latents"),
)
SOLO = ("r2_position", "r2_token", "r2_previous", "r2_pair", "r2_bag")
_READOUTS = ("bag_alone", "bag", "window", "placebo_readout")
_LOOKUPS = {
    "constant": (),
    "position": ((POSITION,),),
    "token": ((POSITION,), (TOKEN,)),
    "pair": ((POSITION,), (TOKEN,), (PAIR,)),
    "r2_position": ((POSITION,),),
    "r2_token": ((TOKEN,),),
    "r2_previous": ((PREVIOUS,),),
    # the table of pairs predicts what tokens add plus what pairs add to them, with one weight
    "r2_pair": ((TOKEN, PAIR),),
}
"""Predictions from lookups alone: the pieces that each weight is for."""


def fit(
    target: PortionOfLatents | PortionOfVector,
    portion: int,
    readouts: Readouts,
    penalties: Sequence[float],
) -> Fitted:
    """Return all predictions of a target, without those of a placebo where there is none.

    Args:
        target: What is predicted, as the portion knows it.
        portion: Index of the portion of the text to fit on.
        readouts: What is read linearly.
        penalties: Ridge penalties to choose from.
    """
    weighing = _Weighing.of(target.moments(readouts.choose))
    for name, mixes in _LOOKUPS.items():
        weighing.add(name, mixes)
    for name in _READOUTS:
        reading = readouts.readings[portion].get(name)
        if reading is None:
            continue
        left = weighing.left_over(None if name == "bag_alone" else weighing.last)
        features = weighing.chosen.features
        coefficients = readout(reading, target.fitted, left, features, penalties)
        weighing.read(name, reading.columns, coefficients)
    n_partners = weighing.n_pieces - N_LOOKUPS
    return Fitted((*RUNGS, *SOLO), weighing.weights, tuple(weighing.readouts), n_partners)


@dataclass
class _Weighing:
    """Predictions that are weighed on the tokens to choose on, as they come.

    Attributes:
        chosen: Inner products over these tokens.
        products: Products of the pieces with the features, computed once for all readouts.
        gram: Inner products of the pieces, then of the readouts that there are so far.
        weights: By prediction, the weights of the pieces, then of the readouts.
        readouts: Columns and coefficients of each readout; None where there is none yet.
        last: The rung that was weighed last.
    """

    chosen: PieceProducts
    products: tuple[Float32[np.ndarray, "target feature"], ...]
    gram: Float64[np.ndarray, "target piece piece"]
    weights: dict[str, Float64[np.ndarray, "target piece"]] = field(default_factory=dict)
    readouts: list[tuple[slice, Float32[np.ndarray, "target part"]] | None] = field(
        default_factory=lambda: [None] * len(_READOUTS)
    )
    last: str = "pair"

    @classmethod
    def of(cls, chosen: PieceProducts) -> _Weighing:
        """Begin with no prediction."""
        products = tuple(chosen.products(slice(0, len(chosen.gram))))
        once = replace(chosen, products=lambda rows: [product[rows] for product in products])
        return cls(once, products, once.with_room(len(_READOUTS)))

    @property
    def n_pieces(self) -> int:
        """Number of pieces that are no readouts: the target, lookups and partners."""
        return int(self.chosen.gram.shape[1])

    def add(self, name: str, mixes: Sequence[Sequence[int]]) -> None:
        """Weigh a prediction, which has one weight for each of `mixes`, a sum of pieces."""
        together = np.zeros((len(mixes), self.gram.shape[1]))
        for mix, pieces in zip(together, mixes, strict=True):
            mix[list(pieces)] = 1
        events = self.chosen.squares**2 / np.maximum(self.chosen.fourths, 1e-300)
        self.weights[name] = weigh(self.gram, together, events)

    def read(
        self, name: str, columns: slice, coefficients: Float32[np.ndarray, "target part"]
    ) -> None:
        """Take a readout, and weigh the predictions that have it: rungs with all lookups, or it alone."""
        number = _READOUTS.index(name)
        self.readouts[number] = columns, coefficients
        self.chosen.put(self.gram, {number: (columns, coefficients)})
        own = (self.n_pieces + number,)
        if name == "bag_alone":
            self.add("r2_bag", (own,))
            return
        self.add(name, (*_LOOKUPS["pair"], own))
        self.last = name
        if name == "placebo_readout":
            partners = ((piece,) for piece in range(N_LOOKUPS, self.n_pieces))
            self.add("placebo_latents", (*_LOOKUPS["pair"], own, *partners))

    def left_over(self, rung: str | None) -> Float32[np.ndarray, "target feature"]:
        """Return X'r, with r what a rung leaves of each target; None leaves all but the mean."""
        left = self.products[0].copy()
        if rung is None:
            return left
        weights = self.weights[rung].astype(np.float32)
        for piece in (POSITION, TOKEN, PAIR):
            left -= weights[:, piece, None] * self.products[piece]
        for number, read in enumerate(self.readouts, self.n_pieces):
            if read is not None and weights[:, number].any():
                columns, coefficients = read
                features = self.chosen.features[columns].astype(np.float32)
                left -= (weights[:, number, None] * coefficients) @ features
        return left
