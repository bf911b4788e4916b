"""The control that keeps each token's mean activation, and puts a Gaussian in the place of the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from sae_placebo.controls.data.base import DATA_CONTROLS, ActivationControl
from sae_placebo.data.text import Rows
from sae_placebo.models.activations import Calibration
from sae_placebo.models.surrogate import SurrogateCounting


@DATA_CONTROLS.add
class Surrogate(ActivationControl):
    """It replaces an activation by E[x | token] and a Gaussian draw; mean and covariance are the arm's own.

    The space of embeddings is structured already: tokens that are alike have means that are alike. What a
    metric finds in these activations, it finds in that structure alone, with nothing computed from
    context. The table of means is shrunk so that it has the variance that lies between tokens, no more:
    the current token explains as much of the surrogate as of the arm's activations. The Gaussian has the
    covariance that the table leaves. See `models.surrogate` for the estimates.

    Source: none found that trains SAEs on it; `models.surrogate` names what it resembles.

    Attributes:
        key: What a mean belongs to: the token, or the pair of it and the token before it, which is shrunk
            towards the token's own. A pair needs an entry; see `token_tables.Entries.of`.
    """

    kind: Literal["surrogate"] = "surrogate"
    key: Literal["token", "pair"] = "token"

    preserves: ClassVar[frozenset[str]] = frozenset(
        {
            *("layout", "document_unigrams", "unigrams", "bigrams", "order"),
            *("mean_and_covariance", "token_means"),
        }
    )
    destroys: ClassVar[frozenset[str]] = frozenset({"token_identity"})
    is_fair: ClassVar[bool] = True

    def counting(
        self, rows: Rows, calibrations: Mapping[str, Calibration], seed: int
    ) -> SurrogateCounting:
        """Return what counts means by token or pair, and the activations' second moments."""
        return SurrogateCounting(rows, calibrations, seed, self.key == "pair")
