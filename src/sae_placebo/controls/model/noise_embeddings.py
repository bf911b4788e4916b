"""The control that feeds trained blocks random vectors in the place of token embeddings."""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar, Literal

from jaxtyping import Float, Int64

from sae_placebo.controls.model.base import CONTROLS, INVARIANTS, Control, Record, SampleText
from sae_placebo.controls.model.redraw import draw
from sae_placebo.controls.model.tensors import (
    NOISE_ATTRIBUTE,
    input_embeddings,
    storage,
    tensors,
    tie_notes,
)
from sae_placebo.core.errors import ModelError
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import canonical, generator
from sae_placebo.models.specs import ModelSpec

_ROWS = 4096
_IDENTITY = frozenset({"token_identity"})
_DESTROYS = frozenset({"lexical_geometry", "embedding_row_norms"})


@CONTROLS.add
class NoiseEmbeddings(Control):
    """It puts a random vector in the place of each token's embedding; every tensor stays as trained.

    With `per = "occurrence"`, each position of each row gets a vector of its own, so nothing is left of
    which token stands there. This is the floor. With `per = "type"`, each token id has one vector, wherever
    it stands. That differs from `redraw_embeddings` in that a token's norm is random as well (norms of
    trained rows tell frequent tokens from rare ones), that W_E's mean vector is kept, and that a tied W_U
    stays as trained.

    Vectors are Gaussian. Each coordinate has the mean and variance over the vocabulary of what the embedding
    module puts out (Gemma's scales its rows). Every id counts once, used or not.

    A row's noise is drawn from a generator that is named by seed, model seed and the row's token ids. So it
    is the same in whatever batch the row is read, and two rows of the same ids get the same noise. It belongs
    to a whole row: a row that is read in pieces, or one token at a time from a cache, gets other noise. The
    vectors per type are the Gaussian bits that `redraw` draws for W_E.

    No tensor changes; the recipe's hashes count the noise.

    Source: "Control" of Heap, Lawson, Farnik and Aitchison 2025 (arXiv 2501.17727). Differs: theirs
    is N(0, 1), whatever the scale of W_E; theirs is drawn anew in each forward.
    """

    kind: Literal["noise_embeddings"] = "noise_embeddings"
    per: Literal["occurrence", "type"] = "occurrence"
    """What gets a vector of its own: each occurrence of a token, or each token id."""

    preserves: ClassVar[frozenset[str]] = frozenset(INVARIANTS) - _DESTROYS - _IDENTITY
    destroys: ClassVar[frozenset[str]] = _DESTROYS

    def preserved(self) -> frozenset[str]:
        """Return what the kind preserves, together with token identity where noise is per type."""
        return self.preserves | (_IDENTITY if self.per == "type" else frozenset())

    def destroyed(self) -> frozenset[str]:
        """Return what the kind destroys, together with token identity where noise is per occurrence."""
        return self.destroys | (_IDENTITY if self.per == "occurrence" else frozenset())

    def apply(
        self,
        model: torch.nn.Module,
        seed: int,
        model_seed: int,
        source: ModelSpec | None = None,
        text: SampleText | None = None,
    ) -> Record:
        """Put the noise behind the model's embedding module; no tensor is changed. See the base class."""
        found = tensors(model)
        embedding = input_embeddings(model)
        mean, std = _output_moments(embedding)
        key = canonical([self.kind, self.per, seed, model_seed])
        noise: Any
        if self.per == "occurrence":
            noise = OccurrenceNoise(key, seed, model_seed, mean, std)
        else:
            weight = storage(embedding.weight)
            name = next(t.name for t in found if storage(t.parameter) == weight)
            table = draw(torch.empty(embedding.weight.shape), name, 0.0, 1.0, seed, model_seed)
            noise = TypeNoise(key, table.mul_(std).add_(mean))
        setattr(embedding, NOISE_ATTRIBUTE, noise)
        embedding.register_forward_hook(noise, with_kwargs=True)
        notes = [
            *tie_notes(found),
            f"noise per {self.per} takes the place of the embedding's output",
        ]
        return Record(kept={t.name: "trained" for t in found}, notes=notes)


class OccurrenceNoise:
    """A forward hook that puts a vector of its own in the place of each token's embedding.

    Args:
        key: What hashes of the model count the noise by.
        seed: The trial's seed.
        model_seed: The seed of the re-draw.
        mean: Mean of each coordinate.
        std: Standard deviation of each coordinate.
    """

    def __init__(
        self,
        key: str,
        seed: int,
        model_seed: int,
        mean: Float[torch.Tensor, " d_in"],
        std: Float[torch.Tensor, " d_in"],
    ) -> None:
        self.key = key
        self._names = (seed, model_seed)
        self._mean, self._std = mean, std

    def __call__(self, _: Any, args: Any, kwargs: Any, output: torch.Tensor) -> torch.Tensor:
        """Return the noise that takes the place of `output`, drawn row by row."""
        ids = _ids(args, kwargs).cpu().long()
        rows = [self.of_row(row) for row in ids.reshape(-1, ids.shape[-1])]
        return torch.stack(rows).reshape(output.shape).to(output.device, output.dtype)

    def of_row(self, ids: Int64[torch.Tensor, " pos"]) -> Float[torch.Tensor, "pos d_in"]:
        """Return the vectors of one row, whose token ids name the draw."""
        named = hashlib.sha256(ids.contiguous().numpy().astype("<i8").tobytes()).hexdigest()
        seed, model_seed = self._names
        source = generator(seed, "noise_embeddings", model_seed, named)
        noise = torch.empty(len(ids), len(self._mean)).normal_(generator=source)
        return noise.mul_(self._std).add_(self._mean)


class TypeNoise:
    """A forward hook that looks token ids up in a table of random vectors.

    Args:
        key: What hashes of the model count the noise by.
        table: The vector of each token id.
    """

    def __init__(self, key: str, table: Float[torch.Tensor, "token d_in"]) -> None:
        self.key = key
        self._table = table

    def __call__(self, _: Any, args: Any, kwargs: Any, output: torch.Tensor) -> torch.Tensor:
        """Return the rows of the table that take the place of `output`."""
        found = self._table[_ids(args, kwargs).cpu()]
        return found.to(output.device, output.dtype)


def _ids(args: Any, kwargs: Any) -> torch.Tensor:
    ids = args[0] if args else kwargs["input"]
    assert isinstance(ids, torch.Tensor)
    return ids


def _output_moments(
    embedding: Any,
) -> tuple[Float[torch.Tensor, " d_in"], Float[torch.Tensor, " d_in"]]:
    """Return each coordinate's mean and standard deviation over the rows that the module puts out."""
    n_ids, width = embedding.weight.shape
    total = torch.zeros(width, dtype=torch.float64)
    square = torch.zeros(width, dtype=torch.float64)
    every = torch.arange(n_ids, device=embedding.weight.device)
    for ids in torch.split(every, _ROWS):
        rows = embedding(ids).double().cpu()
        total += rows.sum(0)
        square += rows.square().sum(0)
    mean = total / n_ids
    std = (square / n_ids - mean.square()).clamp_min(0.0).sqrt()
    if not bool((mean.isfinite() & std.isfinite()).all()):
        raise ModelError(
            "the token embedding holds values that are not finite; noise cannot be matched to it. Mend "
            "the model's weights."
        )
    return mean.float(), std.float()
