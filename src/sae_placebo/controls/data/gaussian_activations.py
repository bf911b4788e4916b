"""The control that puts Gaussian draws in the place of the activations, and leaves the text as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from sae_placebo.controls.data.base import DATA_CONTROLS, ActivationControl
from sae_placebo.data.text import Rows
from sae_placebo.models.activations import Calibration
from sae_placebo.models.gaussian import GaussianCounting


@DATA_CONTROLS.add
class GaussianActivations(ActivationControl):
    """It replaces activations by Gaussian draws with the mean and covariance of the arm's own.

    The rows keep their tokens and labels, so that every metric can be computed, but the draws know
    nothing of them: what a metric finds in them, it finds without structure beyond second moments. The
    draws are made where the activations would be read, by `gaussian.GaussianReader`.

    Source: the Gaussian toy data of Heap, Lawson, Farnik and Aitchison 2025 (arXiv 2501.17727).
    Differs: the mean and covariance are those of a real model's activations.
    """

    kind: Literal["gaussian"] = "gaussian"

    preserves: ClassVar[frozenset[str]] = frozenset(
        {"layout", "document_unigrams", "unigrams", "bigrams", "order", "mean_and_covariance"}
    )
    destroys: ClassVar[frozenset[str]] = frozenset({"token_means", "token_identity"})

    def counting(
        self, rows: Rows, calibrations: Mapping[str, Calibration], seed: int
    ) -> GaussianCounting:
        """Return what counts the activations' mean and covariance."""
        return GaussianCounting(calibrations)
