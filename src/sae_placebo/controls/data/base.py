"""What a data control is: a change to what the model reads, or to what is read from it.

A data control leaves the model alone. It rewrites the rows of tokens, or, as an `ActivationControl`, has
the activations replaced while the text stays. Each declares what it preserves and what it destroys, in the
words of `DATA_INVARIANTS`, and the contract tests check both.

The first position of a row is never rewritten: it is BOS, or, without BOS, a token that the model reads
and that no measurement uses. Padding, row lengths and documents stay as they are.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int32

from sae_placebo.controls.settings import validated
from sae_placebo.core.errors import SpecError, TextError
from sae_placebo.core.spec import Registry, Spec, numpy_generator
from sae_placebo.data.text import Rows
from sae_placebo.models.activations import Calibration
from sae_placebo.models.drawn import Counting

DATA_INVARIANTS: Mapping[str, str] = {
    "layout": "row lengths, documents and their names, each row's first position, padding",
    "document_unigrams": "how often each document holds each token, exactly",
    "unigrams": "the split's, or the training split's, token frequencies, up to sampling error",
    "bigrams": "the training split's frequencies of adjacent pairs, up to sampling error",
    "order": "how tokens depend on others further back than the one before",
    "mean_and_covariance": "the activations' mean and covariance, up to sampling error",
    "token_means": "the mean activation of each common token, up to sampling error",
    "token_identity": "that an activation is the model's answer to its token and what precedes it",
}
"""What a control may keep. The first five are about the rows of tokens, the last three about activations."""


class DataControl(Spec, ABC):
    """One kind of change to the data. Each has a file of its own and is registered in `DATA_CONTROLS`."""

    kind: str

    preserves: ClassVar[frozenset[str]]
    """What every control of this kind leaves as it was, in words of `DATA_INVARIANTS`."""
    destroys: ClassVar[frozenset[str]]
    """What it changes: every other word of `DATA_INVARIANTS`."""
    draws: ClassVar[bool] = True
    """Whether another model seed gives other data."""
    of_activations: ClassVar[bool] = False
    """Whether the text stays as it is and the activations are replaced; see `ActivationControl`."""
    is_fair: ClassVar[bool] = False
    """Whether it leaves an SAE as much to explain as the token explains of the model's activations.

    A control that differs in that differs in explained variance whatever else it destroys.
    """

    @property
    def follows_tokens(self) -> bool:
        """Return whether an activation belongs to its token: it holds something of it."""
        return not self.preserves.isdisjoint({"token_means", "token_identity"})

    @abstractmethod
    def rewrite(self, splits: Mapping[str, Rows], seed: int, model_seed: int) -> dict[str, Rows]:
        """Return the splits with other tokens in the same layout; the given rows are not touched.

        Labels are dropped from rows whose tokens changed, since they were true of the text as it was. The
        draws depend on both seeds, the kind and the split's name, and on no model. So arms with different
        models and the same data control read the same tokens.

        Args:
            splits: The rows of each split, by its name.
            seed: The trial's seed.
            model_seed: The seed of the re-draw.
        """

    def random(self, seed: int, model_seed: int, split: str) -> np.random.Generator:
        """Return the generator that controls of this kind rewrite `split` with."""
        return numpy_generator(seed, "data", self.kind, model_seed, split)


class ActivationControl(DataControl, ABC):
    """A control that leaves the text as it is and puts draws in the place of the model's activations."""

    of_activations: ClassVar[bool] = True

    def rewrite(self, splits: Mapping[str, Rows], seed: int, model_seed: int) -> dict[str, Rows]:
        """Return the splits as they are."""
        return dict(splits)

    @abstractmethod
    def counting(self, rows: Rows, calibrations: Mapping[str, Calibration], seed: int) -> Counting:
        """Return what counts the training activations of a model, to draw others in their place.

        Args:
            rows: The training rows, all of which are counted.
            calibrations: How activations are masked and centered, by hookpoint.
            seed: The trial's seed.
        """


def _sorted(cls: type[DataControl]) -> None:
    if cls.preserves & cls.destroys or cls.preserves | cls.destroys != set(DATA_INVARIANTS):
        raise ValueError(
            f"{cls.__name__} must sort each of {sorted(DATA_INVARIANTS)} into preserves or destroys"
        )


DATA_CONTROLS: Registry[type[DataControl]] = Registry("data control", _sorted)
"""Every data control, by kind; each sorts every word of `DATA_INVARIANTS` once."""


def parse_data(value: object) -> DataControl:
    """Return the data control that an arm's `data` names: "unigram", or {"kind": "unigram"}.

    Raises:
        SpecError: the value is neither a name nor a table, there is no such control, or it has no such
            setting.
    """
    example = 'data = "shuffle_tokens" or data = {kind = "shuffle_tokens"}'
    if not isinstance(value, (str, Mapping)):
        raise SpecError(f"an arm's data control is written {example}; found {value!r:.80}.")
    settings: dict[str, Any] = {"kind": value} if isinstance(value, str) else dict(value)
    name = settings.pop("kind", None)
    if not isinstance(name, str):
        known = ", ".join(sorted(DATA_CONTROLS))
        raise SpecError(f"an arm's data control names its kind: {example}; known: {known}.")
    return validated(DATA_CONTROLS[name], settings, f"data control {name!r}")


def training_tokens(splits: Mapping[str, Rows], kind: str) -> Int32[np.ndarray, " token"]:
    """Return the usable tokens of the split `train`, in reading order.

    Args:
        splits: The rows of each split, by its name.
        kind: The kind of the control, which an error names.

    Raises:
        TextError: there are no tokens, so nothing can be drawn from their frequencies.
    """
    rows = splits.get("train")
    tokens = np.empty(0, np.int32) if rows is None else rows.token_ids[rows.usable()]
    if not len(tokens):
        raise TextError(
            f"data control {kind!r} draws from the training tokens, and there are none; raise "
            "text.train_tokens."
        )
    return tokens


def rewritten(rows: Rows, tokens: Int32[np.ndarray, " token"]) -> Rows:
    """Return `rows` without labels, and with `tokens`, in reading order, at the usable positions."""
    token_ids = rows.token_ids.copy()
    token_ids[rows.usable()] = tokens
    labelled = any(field.name == "labels" for field in dataclasses.fields(rows))
    dropped: dict[str, Any] = {"labels": None} if labelled else {}
    return dataclasses.replace(rows, token_ids=token_ids, **dropped)
