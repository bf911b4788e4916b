"""What a control is: a change to the model that destroys some of what training put there.

A control declares what it preserves and what it destroys, in the words of `INVARIANTS`, and the contract
tests check both. `build` applies a control to a copy of the reference and records what it did.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from jaxtyping import Bool, Int64

from sae_placebo.controls.model.tensors import Tensor, hashes, in_parallel, tensors
from sae_placebo.controls.settings import validated
from sae_placebo.core.errors import SpecError
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import Registry, Spec
from sae_placebo.models.specs import ModelSpec

Group = Literal["embeddings", "unembedding", "positions", "norms", "biases"]
GROUPS: tuple[Group, ...] = get_args(Group)
"""Groups of tensors that a setting `keep` may name."""

INVARIANTS: Mapping[str, str] = {
    "shapes": "every tensor's name, shape and dtype, and which tensors are tied",
    "tensor_mean_and_variance": "every tensor's mean and variance, up to sampling error",
    "tensor_marginals": "the values of every tensor, in whatever order",
    "spectra": "the singular values of every matrix: each expert's apart, a fused one as stored",
    "embeddings": "the token embedding's bits, read or not",
    "unembedding": "the output head's bits",
    "positions": "the learned position embedding's bits, where there is one",
    "norms": "the bits of every normalization's gain and bias",
    "biases": "the bits of every other bias",
    "block_weights": "the bits of every other tensor: the layers' matrices",
    "other_layers": "the bits of every decoder layer that the settings do not name",
    "embedding_row_norms": "the norm of the vector with which each token id enters",
    "lexical_geometry": "the angles between the vectors with which token ids enter",
    "token_identity": "that a token id enters with one vector, wherever it stands",
}
"""What a control may leave as it was."""


class Control(Spec, ABC):
    """One kind of change to a model. Each has a file of its own and is registered in `CONTROLS`."""

    kind: str

    preserves: ClassVar[frozenset[str]]
    """What every control of this kind leaves as it was, in words of `INVARIANTS`."""
    destroys: ClassVar[frozenset[str]]
    """What every control of this kind changes, in words of `INVARIANTS`."""

    @property
    def draws(self) -> bool:
        """Return whether another model seed gives another model; otherwise there is one model."""
        return True

    @property
    def drawn(self) -> Control:
        """Return the control whose draws these are: the control itself, or the one to which it is added."""
        return self

    @property
    def ablates_attention(self) -> bool:
        """Return whether attention writes nothing in the model that is made."""
        return False

    @property
    def is_fair(self) -> bool:
        """Return whether the current token explains as much of activations as in the trained model."""
        return False

    @property
    def text_tokens(self) -> int:
        """Return how many tokens of the training text the model that is made is measured on; 0 for none."""
        return 0

    def shared_models(
        self, reference: torch.nn.Module, text: SampleText
    ) -> tuple[tuple[str, ...], ...]:
        """Return the hookpoints of the text in groups, each of which is read from one model.

        There is one group, with every hookpoint, unless hookpoints have models of their own.

        Args:
            reference: The trained model.
            text: The text, with every hookpoint of the trial.
        """
        return (text.hookpoints,)

    def preserved(self) -> frozenset[str]:
        """Return what this control leaves as it was with its settings."""
        return self.preserves

    def destroyed(self) -> frozenset[str]:
        """Return what this control changes with its settings, as far as the model has it."""
        return self.destroys

    def identity(self, model: ModelSpec) -> Any:
        """Return what the result depends on beside the settings, as JSON for artefact keys.

        It is None where the result depends on nothing else. No torch is loaded for it.
        """
        return None

    def check_layers(self, n_layers: int) -> None:
        """Refuse settings that name a layer which a model of `n_layers` decoder layers lacks.

        Raises:
            SpecError: there is no such layer.
        """

    def check_source(self, model: ModelSpec) -> None:
        """Refuse settings that name a checkpoint which the reference, loaded from `model`, lacks.

        Raises:
            ModelError: there is no such checkpoint.
        """

    def seen_at_hookpoints(self, tied: bool) -> Control:
        """Return a control with the same effect at hookpoints, the same one for all that share this effect.

        Controls for which the same one is returned give the same activations at every hookpoint.

        Args:
            tied: Whether the model's output head is tied to its embedding; True where that is not known.
        """
        return self

    @abstractmethod
    def apply(
        self,
        model: torch.nn.Module,
        seed: int,
        model_seed: int,
        source: ModelSpec | None = None,
        text: SampleText | None = None,
    ) -> Record:
        """Change `model` in place and return what was touched and what was kept.

        Random draws come from generators that are named by seed, model seed and tensor alone.

        Args:
            model: A copy of the reference.
            seed: The trial's seed.
            model_seed: The seed of the re-draw.
            source: What the reference was loaded from, for controls that load another checkpoint of it.
            text: The text and the hookpoints that the model is for, for controls with `text_tokens`.
        """


@dataclass(frozen=True)
class SampleText:
    """The text that a control may measure models on, and the hookpoints that its model is for.

    Attributes:
        token_ids: Rows of tokens, padded on the right.
        mask: True where a token counts. All tokens are read, also as context.
        documents: Which document each row is of.
        hookpoints: Canonical names of where the model that is made will be read.
        outlier_ratio: A token whose norm exceeds this multiple of the median does not count.
        known: What an earlier build of the same model recorded, which is then made again from it.
    """

    token_ids: Int64[torch.Tensor, "row pos"]
    mask: Bool[torch.Tensor, "row pos"]
    documents: Int64[torch.Tensor, " row"]
    hookpoints: tuple[str, ...]
    outlier_ratio: float = math.inf
    known: Mapping[str, Any] | None = None


@dataclass
class Record:
    """What applying a control did to each tensor."""

    touched: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    """Why each other tensor was kept, by its name: a group that the settings name, or a reason."""
    notes: list[str] = field(default_factory=list)
    calibration: dict[str, Any] | None = None
    """What was measured on text to make the model, as JSON; None where nothing was."""


def change_all(
    found: Iterable[Tensor], record: Record, change: Callable[[Tensor], str | None]
) -> None:
    """Call `change` on every tensor and record what became of it.

    Args:
        found: The tensors.
        record: The record that is added to.
        change: A function that changes a tensor in place, or returns why the tensor keeps its value.
    """
    found = list(found)
    for tensor, reason in zip(found, in_parallel(change, found), strict=True):
        if reason is None:
            record.touched.append(tensor.name)
        else:
            record.kept[tensor.name] = reason
            record.notes.append(f"{tensor.name} has {reason}: it keeps its value")


class Recipe(Spec):
    """How an arm's model was made, which is enough to make it again and to check that it is the same."""

    control: dict[str, Any]
    """The control's settings."""
    seed: int
    model_seed: int
    touched: tuple[str, ...]
    """Names of the tensors that the control changed; a tied tensor appears once."""
    kept: dict[str, str]
    """Why every other tensor was kept, by its name."""
    notes: tuple[str, ...]
    weight_hash: str
    """SHA-256 over the names, shapes, dtypes and bytes of the model's tensors."""
    read_hash: str
    """The same without what only the output head holds; activations can depend on nothing else."""
    calibration: dict[str, Any] | None = None
    """What was measured on text to make the model; None where nothing was."""


def _declared(cls: type[Control]) -> None:
    unknown = (cls.preserves | cls.destroys) - set(INVARIANTS)
    if unknown:
        raise ValueError(f"{cls.__name__} declares {sorted(unknown)}, not in INVARIANTS")


CONTROLS: Registry[type[Control]] = Registry("control", _declared)
"""Every control of the model, by kind; what each declares are words of `INVARIANTS`."""


def parse_control(table: object) -> Control:
    """Return the control of an arm's table, such as `{control = "redraw", keep = ["embeddings"]}`.

    A control's own dump, with `kind` in the place of `control`, is read as well.

    Raises:
        SpecError: this is no table, there is no such control, or it does not have or allow a setting.
    """
    if not isinstance(table, Mapping):
        raise SpecError(f'an arm is a table such as {{control = "redraw"}}; found {table!r:.80}')
    settings = dict(table)
    name = settings.pop("control", None) or settings.pop("kind", None)
    if not isinstance(name, str):
        found = "" if name is None else f"found {name!r:.80}; "
        raise SpecError(f"an arm names its control; {found}known: {', '.join(sorted(CONTROLS))}.")
    return validated(CONTROLS[name], settings, f"control {name!r}", GROUPS)


def build(
    reference: torch.nn.Module,
    control: Control,
    seed: int,
    model_seed: int,
    source: ModelSpec | None = None,
    text: SampleText | None = None,
) -> tuple[Any, Recipe]:
    """Return a controlled copy of `reference`, and the recipe that it was made by.

    The reference is not touched. The same reference, control, seed and model seed give the same bits.

    Args:
        reference: The trained model.
        control: The control that is applied to the copy.
        seed: The trial's seed.
        model_seed: The seed of the re-draw; without effect where the control draws nothing.
        source: What the reference was loaded from. Control `revision` needs it unless it names a source.
        text: The text and the hookpoints that the model is for. A control with `text_tokens` needs it.

    Raises:
        ModelError: the control cannot be applied to this model.
        SpecError: the control names a layer that the model does not have.
    """
    model = _copy(reference)
    with torch.no_grad():
        record = control.apply(model, seed, model_seed, source, text)
    found = hashes(model)
    recipe = Recipe(
        control=control.model_dump(mode="json"),
        seed=seed,
        model_seed=model_seed,
        touched=tuple(record.touched),
        kept=record.kept,
        notes=tuple(record.notes),
        weight_hash=found.weight,
        read_hash=found.read,
        calibration=record.calibration,
    )
    return model, recipe


def _copy(reference: torch.nn.Module) -> torch.nn.Module:
    model = copy.deepcopy(reference)
    # parameters that share memory without being one object are parted by deepcopy
    for tensor in tensors(reference):
        for name in tensor.also:
            model.get_parameter(name).data = model.get_parameter(tensor.name).data
    return model
