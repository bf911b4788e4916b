"""What a control is: a change to the model that destroys some of what training put there.

A control declares what it preserves and what it destroys, in the words of `INVARIANTS`; the contract
tests hold it to both. `build` applies one to a copy of the reference and records what it did.
"""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from pydantic import ValidationError

from sae_placebo.errors import SpecError, unknown_name
from sae_placebo.lazy import torch
from sae_placebo.spec import Registry, Spec

Group = Literal["embeddings", "unembedding", "positions", "norms", "biases"]
GROUPS: tuple[Group, ...] = get_args(Group)

INVARIANTS: Mapping[str, str] = {
    "shapes": "every tensor's name, shape and dtype, and which tensors are tied",
    "tensor_mean_and_variance": "every tensor's mean and variance, up to sampling error",
    "embeddings": "the token embedding's bits",
    "unembedding": "the output head's bits",
    "positions": "the learned position embedding's bits, where there is one",
    "norms": "the bits of every normalization's gain and bias",
    "biases": "the bits of every other bias",
    "block_weights": "the bits of every other tensor: the layers' matrices",
}


class Control(Spec, ABC):
    """One kind of change to a model; a subclass per file, registered in `CONTROLS`."""

    kind: str

    preserves: ClassVar[frozenset[str]]
    """What every control of this kind leaves as it was (words of `INVARIANTS`)."""
    destroys: ClassVar[frozenset[str]]
    """What every control of this kind changes."""
    draws: ClassVar[bool] = True
    """Whether another model seed gives another model; a control that draws nothing has one model."""

    def preserved(self) -> frozenset[str]:
        """Return what this control leaves as it was, its settings included."""
        return self.preserves

    def destroyed(self) -> frozenset[str]:
        """Return what this control changes, its settings included, where the model has it."""
        return self.destroys

    @abstractmethod
    def apply(self, model: torch.nn.Module, seed: int, model_seed: int) -> Record:
        """Change `model` in place and return what was touched and what was kept.

        Random draws come from `spec.generator(seed, kind, model_seed, tensor name)` alone.
        """


@dataclass
class Record:
    """What applying a control did to each tensor."""

    touched: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    """Tensor name to why it was kept: a group that the settings name, or a reason."""
    notes: list[str] = field(default_factory=list)


class Recipe(Spec):
    """How an arm's model was made: enough to make it again and to check that it is the same."""

    control: dict[str, Any]
    """The control's settings."""
    seed: int
    model_seed: int
    touched: tuple[str, ...]
    """Tensors that the control changed, by name; a tied tensor appears once."""
    kept: dict[str, str]
    """Every other tensor, with why it was kept."""
    notes: tuple[str, ...]
    weight_hash: str
    """SHA-256 over the names, shapes, dtypes and bytes of the model's tensors."""


CONTROLS: Registry[type[Control]] = Registry("control")


def register(cls: type[Control]) -> type[Control]:
    """Add a control to `CONTROLS` under its kind; its declarations must be words of `INVARIANTS`."""
    unknown = (cls.preserves | cls.destroys) - set(INVARIANTS)
    if unknown:
        raise ValueError(f"{cls.__name__} declares {sorted(unknown)}, not in INVARIANTS")
    CONTROLS.add(cls.model_fields["kind"].default, cls)
    return cls


def parse_control(table: object) -> Control:
    """Return the control of an arm's table, such as `{control = "redraw", keep = ["embeddings"]}`.

    A control's own dump, with `kind` in the place of `control`, is read as well.

    Raises:
        SpecError: not a table, no such control, or a setting that it does not have or allow.
    """
    if not isinstance(table, Mapping):
        raise SpecError(f'an arm is a table such as {{control = "redraw"}}; found {table!r:.80}')
    settings = dict(table)
    name = settings.pop("control", None) or settings.pop("kind", None)
    if not isinstance(name, str):
        raise SpecError(f"an arm names its control; known: {', '.join(sorted(CONTROLS))}.")
    cls = CONTROLS[name]
    known = [key for key in cls.model_fields if key != "kind"]
    for key in settings:
        if key not in known:
            raise SpecError(unknown_name(f"setting of control {name!r}", key, known or ["(none)"]))
    try:
        return cls.model_validate(settings)
    except ValidationError as error:
        raise SpecError(_first_problem(name, error)) from None


def _first_problem(name: str, error: ValidationError) -> str:
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "literal_error" and problem["loc"][:1] == ("keep",):
        return f"control {name!r}: " + unknown_name(
            "tensor group to keep", str(problem["input"]), GROUPS
        )
    return f"control {name!r}, {where}: {problem['msg']} (found {problem['input']!r})."


def build(
    reference: torch.nn.Module, control: Control, seed: int, model_seed: int
) -> tuple[Any, Recipe]:
    """Return a controlled copy of `reference`, and the recipe that it was made by.

    The reference is not touched. The same reference, control, seed and model seed give the same bits.
    """
    model = _copy(reference)
    with torch.no_grad():
        record = control.apply(model, seed, model_seed)
    recipe = Recipe(
        control=control.model_dump(mode="json"),
        seed=seed,
        model_seed=model_seed,
        touched=tuple(record.touched),
        kept=record.kept,
        notes=tuple(record.notes),
        weight_hash=weight_hash(model),
    )
    return model, recipe


def _copy(reference: torch.nn.Module) -> torch.nn.Module:
    model = copy.deepcopy(reference)
    # parameters that share memory without being one object are parted by deepcopy
    for tensor in tensors(reference):
        for name in tensor.also:
            model.get_parameter(name).data = model.get_parameter(tensor.name).data
    return model


def weight_hash(model: torch.nn.Module) -> str:
    """Return the SHA-256 over names, shapes, dtypes and bytes of all parameters and saved buffers.

    A tensor tied to another is hashed once; that the two are tied is hashed as well.
    """
    total = hashlib.sha256()
    first: dict[Any, str] = {}
    for name, tensor in sorted(model.state_dict().items()):
        twin = first.setdefault(_storage(tensor), name)
        total.update(f"{name}|{twin}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        if twin == name:
            flat = tensor.detach().contiguous().cpu().reshape(-1)
            total.update(flat.view(torch.uint8).numpy())
    return total.hexdigest()


def _storage(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Return what two tensors share exactly when they are views of the same numbers."""
    if tensor.numel() == 0:
        return (id(tensor),)
    return (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()))


@dataclass(frozen=True)
class Tensor:
    """One parameter of a model, under its first name."""

    name: str
    parameter: torch.Tensor
    groups: tuple[str, ...]
    """What it is: one group of `GROUPS` or `block_weights`; a tied tensor may be two."""
    also: tuple[str, ...]
    """Its other names, where it is tied."""


def tensors(model: torch.nn.Module) -> list[Tensor]:
    """Return each parameter once, with its groups, found by structure.

    `embeddings` and `unembedding` are what the model says its input and output embeddings are (an
    output head's bias included); `norms` are the parameters of modules whose class is called a norm;
    `positions` is any other embedding table; `biases` are other one-dimensional tensors called bias;
    the rest is `block_weights`. The first of these that fits counts. Tied tensors are recognized by
    the memory that they share.
    """
    owners = _owners(model)
    found: dict[Any, Tensor] = {}
    for module_name, module in model.named_modules():
        for short, parameter in module.named_parameters(recurse=False):
            name = f"{module_name}.{short}" if module_name else short
            group = owners.get(id(module)) or _group(module, short, parameter)
            key = _storage(parameter)
            if twin := found.get(key):
                groups = tuple(dict.fromkeys([*twin.groups, group]))
                found[key] = Tensor(twin.name, twin.parameter, groups, (*twin.also, name))
            else:
                found[key] = Tensor(name, parameter, (group,), ())
    return list(found.values())


def _owners(model: Any) -> dict[int, str]:
    head = model.get_output_embeddings()
    owners = {} if head is None else {id(head): "unembedding"}
    owners[id(model.get_input_embeddings())] = "embeddings"
    return owners


def _group(module: torch.nn.Module, short: str, parameter: torch.Tensor) -> str:
    if "Norm" in type(module).__name__:
        return "norms"
    if isinstance(module, torch.nn.Embedding):
        return "positions"
    if parameter.ndim == 1 and short.endswith("bias"):
        return "biases"
    return "block_weights"


def tie_notes(found: Iterable[Tensor]) -> list[str]:
    """Return one sentence per tied tensor."""
    return [f"{', '.join(t.also)} is tied to {t.name}: one tensor" for t in found if t.also]
