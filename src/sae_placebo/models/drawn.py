"""What draws activations in a model's place has this form, and what is counted to fit it has that one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int64

from sae_placebo.core.lazy import torch
from sae_placebo.data.rows import Rows
from sae_placebo.models.activations import ActivationBlock


@runtime_checkable
class DrawnReader(Protocol):
    """Reads draws where a model's activations would be read; it needs no model."""

    widths: dict[str, int]
    """The width of the activations at each hookpoint, by canonical name."""

    @property
    def names(self) -> tuple[str, ...]:
        """Return the hookpoints' names."""

    def read(
        self, token_ids: Int64[torch.Tensor, "row pos"]
    ) -> dict[str, Float[torch.Tensor, "row pos d_in"]]:
        """Return draws by hookpoint, in model units, on the CPU; the same row gives the same bits."""

    def diagnostics(self, heldout: Rows) -> dict[str, dict[str, Any]]:
        """Return what the draws' law is like, by hookpoint, in the form of `diagnostics.card`."""


@runtime_checkable
class Counting(Protocol):
    """What is counted of a model's activations, in one pass, to draw others in their place."""

    def add(self, block: ActivationBlock) -> None:
        """Count a block of training tokens, norm outliers left out."""

    def state(self) -> Iterator[tuple[str, Mapping[str, torch.Tensor]]]:
        """Yield what was counted, part by part, for a checkpoint."""

    def restore(self, part: Callable[[str], Mapping[str, torch.Tensor]]) -> None:
        """Go on counting from a checkpoint's parts."""

    def reader(self, seed: int, model_seed: int) -> DrawnReader:
        """Return what reads draws of the law that was counted.

        Args:
            seed: The trial's seed.
            model_seed: The arm's model seed; another one gives other draws.
        """
