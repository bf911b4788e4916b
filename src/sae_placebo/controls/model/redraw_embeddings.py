"""The control that draws the token embedding at random, each row as long as it was, under trained blocks."""

from __future__ import annotations

from typing import ClassVar, Literal

from sae_placebo.controls.model.base import (
    CONTROLS,
    INVARIANTS,
    Control,
    Record,
    SampleText,
    change_all,
)
from sae_placebo.controls.model.redraw import draw
from sae_placebo.controls.model.tensors import Tensor, tensors, tie_notes
from sae_placebo.core.errors import ModelError
from sae_placebo.core.lazy import torch
from sae_placebo.models.specs import ModelSpec

_ROWS = 4096
_DESTROYS = frozenset(
    {
        "embeddings",
        "unembedding",
        "lexical_geometry",
        "tensor_mean_and_variance",
        "tensor_marginals",
        "spectra",
    }
)


@CONTROLS.add
class RedrawEmbeddings(Control):
    """It replaces each row of W_E by one of the same norm in a random direction; all else stays as trained.

    What is left of a token is that it is itself, and how long its vector was; which tokens are alike is lost.
    With `redraw`, `redraw` keeping the embeddings, and the trained arm, it makes the 2 x 2 of embeddings x
    blocks.

    Directions are uniform on the sphere, since they are those of Gaussian rows. The Gaussian bits are those
    that `redraw` draws for W_E, so the two arms with a re-drawn W_E share each token's direction except for
    the mean of W_E's entries, which `redraw` adds. Norms are kept; the rows' mean and the spread of their
    coordinates are not. A row of zeros stays.

    Where W_U is tied to W_E, it is replaced with it, and the recipe says so; where it is not, it stays.
    Learned positions stay.

    Source: none that we know of; proposed as the missing cell of Heap, Lawson, Farnik and Aitchison
    2025 (arXiv 2501.17727).
    """

    kind: Literal["redraw_embeddings"] = "redraw_embeddings"

    preserves: ClassVar[frozenset[str]] = frozenset(INVARIANTS) - _DESTROYS
    destroys: ClassVar[frozenset[str]] = _DESTROYS

    def apply(
        self,
        model: torch.nn.Module,
        seed: int,
        model_seed: int,
        source: ModelSpec | None = None,
        text: SampleText | None = None,
    ) -> Record:
        """Re-draw W_E in place; see the base class."""
        found = tensors(model)
        record = Record(notes=tie_notes(found))
        chosen = [t for t in found if "embeddings" in t.groups]
        for tensor in found:
            if tensor in chosen:
                if "unembedding" in tensor.groups:
                    record.notes.append(f"{tensor.name} is W_U as well: it goes with W_E")
            elif "unembedding" in tensor.groups:
                record.kept[tensor.name] = "not tied to the embeddings"
            else:
                record.kept[tensor.name] = "trained"
        change_all(chosen, record, lambda tensor: _redraw_rows(tensor, seed, model_seed))
        return record


def _redraw_rows(tensor: Tensor, seed: int, model_seed: int) -> None:
    """Give each row of a tensor a random direction, in place.

    Raises:
        ModelError: the tensor holds values that are not finite.
    """
    weight = tensor.parameter
    drawn = draw(torch.empty(weight.shape), tensor.name, 0.0, 1.0, seed, model_seed)
    for rows, new in zip(torch.split(weight, _ROWS), torch.split(drawn, _ROWS), strict=True):
        norms = torch.linalg.vector_norm(rows.double(), dim=1)
        if not bool(norms.isfinite().all()):
            raise ModelError(
                f"{tensor.name} holds values that are not finite; its rows have no norm to keep. Mend "
                "the model's weights."
            )
        scale = norms / torch.linalg.vector_norm(new.to(rows.device).double(), dim=1)
        rows.copy_(new.to(rows.device).double() * scale[:, None])
