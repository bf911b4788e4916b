"""A stretch of characters on which labels are painted."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool

from sae_placebo.data.labels.catalogue import NAMES

ROW_OF = {name: row for row, name in enumerate(NAMES)}


class Canvas:
    """Labels of the characters [start, stop) of a text; what is painted outside is dropped.

    Attributes:
        start: First character.
        stop: Behind the last character.
        rows: [label, char] which labels hold.
    """

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop
        self.rows: Bool[np.ndarray, "label char"] = np.zeros((len(NAMES), stop - start), dtype=bool)

    def paint(self, label: str, start: int, stop: int, holds: bool = True) -> None:
        """Set one label of the characters [start, stop) of the text."""
        if stop > self.start and start < self.stop:
            row = self.rows[ROW_OF[label]]
            row[max(start - self.start, 0) : stop - self.start] = holds

    def row(self, label: str) -> Bool[np.ndarray, " char"]:
        """Return one label of all characters, to be changed in place."""
        row: Bool[np.ndarray, " char"] = self.rows[ROW_OF[label]]
        return row
