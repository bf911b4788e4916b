"""What a comparison with existing methods is given beside an arm's held-out activations and its SAEs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sae_placebo.baselines.marginal import Choice
from sae_placebo.baselines.sampling import FitText


@dataclass(frozen=True, eq=False)
class Given:
    """What is known of an arm beside its activations.

    Attributes:
        embeddings: Rows of the arm's W_E, NumPy or torch; None where they are not known.
        text: The text to fit on, as the arm reads it: that on which its SAEs were trained. Where there is
            none, methods are fitted on the held-out documents to fit on.
        common: The method that arms are compared beyond; None where it is the best one of this arm.
    """

    embeddings: Any = None
    text: FitText | None = None
    common: Choice | None = None
