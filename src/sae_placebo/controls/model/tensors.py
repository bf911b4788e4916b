"""The tensors of a model: which group each is in, which are tied, and what they hash to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from sae_placebo.core.lanes import take_threads
from sae_placebo.core.lazy import torch

NOISE_ATTRIBUTE = "sae_placebo_noise"
"""Attribute that `noise_embeddings` sets on the embedding module, since no tensor shows that change."""


@dataclass(frozen=True)
class Tensor:
    """One parameter of a model, under its first name."""

    name: str
    parameter: torch.Tensor
    groups: tuple[str, ...]
    """Its groups: one of `GROUPS` or `block_weights`, and more than one where it is tied."""
    also: tuple[str, ...]
    """Its other names, where it is tied."""


def tensors(model: torch.nn.Module) -> list[Tensor]:
    """Return each parameter of a model once, with its groups, which follow from the model's structure.

    `embeddings` and `unembedding` are the parameters of the modules that the model gives as its input and
    output embeddings (an output head's bias included). `norms` are those of modules whose class is called a
    norm, `positions` those of any other embedding table, `biases` other one-dimensional tensors called bias,
    and the rest is `block_weights`. The first of these that fits counts. Tied tensors are recognized by the
    memory that they share.
    """
    owners = _owners(model)
    found: dict[Any, Tensor] = {}
    for module_name, module in model.named_modules():
        for short, parameter in module.named_parameters(recurse=False):
            name = f"{module_name}.{short}" if module_name else short
            group = owners.get(id(module)) or _group(module, short, parameter)
            key = storage(parameter)
            if twin := found.get(key):
                groups = tuple(dict.fromkeys([*twin.groups, group]))
                found[key] = Tensor(twin.name, twin.parameter, groups, (*twin.also, name))
            else:
                found[key] = Tensor(name, parameter, (group,), ())
    return list(found.values())


def input_embeddings(model: Any) -> Any:
    """Return the module that turns token ids into vectors."""
    return model.get_input_embeddings()


def _owners(model: Any) -> dict[int, str]:
    """Return the groups of the modules that own input and output embeddings, by the modules' ids."""
    head = model.get_output_embeddings()
    owners = {} if head is None else {id(head): "unembedding"}
    owners[id(input_embeddings(model))] = "embeddings"
    return owners


def _group(module: torch.nn.Module, short: str, parameter: torch.Tensor) -> str:
    if "Norm" in type(module).__name__:
        return "norms"
    if isinstance(module, torch.nn.Embedding):
        return "positions"
    if parameter.ndim == 1 and short.endswith("bias"):
        return "biases"
    return "block_weights"


def storage(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Return a key that two tensors share exactly where they are views of the same numbers."""
    if tensor.numel() == 0:
        return (id(tensor),)
    return (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()))


def tie_notes(found: Iterable[Tensor]) -> list[str]:
    """Return one sentence for each tied tensor, which names the tensors that it is tied to."""
    return [f"{', '.join(t.also)} is tied to {t.name}: one tensor" for t in found if t.also]


T = TypeVar("T")
R = TypeVar("R")


def in_parallel(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Return `function` of every item, in order, computed in as many threads as torch has, without gradients.

    It is for work on whole tensors that no thread shares: drawing is serial within a tensor, so one tensor
    per thread is the only way to use a second core. The result depends on no thread's speed.
    """

    def call(item: T) -> R:
        with torch.no_grad():  # the mode belongs to a thread
            return function(item)

    n_threads = torch.get_num_threads()
    if n_threads == 1:
        return [call(item) for item in items]
    # one of torch's threads for each of ours: two pools on the same cores wait for each other
    one: dict[str, Any] = {"initializer": take_threads, "initargs": (1,)}
    try:
        with ThreadPoolExecutor(n_threads, **one) as pool:
            return list(pool.map(call, items))
    finally:
        torch.set_num_threads(n_threads)  # what threads started later begin with


@dataclass(frozen=True)
class Hashes:
    """Hashes of the numbers of a model."""

    weight: str
    """Hash of all numbers."""
    read: str
    """Hash of those that activations can depend on: all except what only the output head holds."""


def hashes(model: torch.nn.Module) -> Hashes:
    """Return SHA-256s over names, shapes, dtypes and bytes of all parameters and saved buffers.

    A tensor that is tied to another is hashed once, and that the two are tied is hashed as well. What is put
    in the place of the embedding's output (`noise_embeddings`) counts by the names that it is drawn by.
    """
    state = dict(sorted(model.state_dict().items()))
    whose = {name: storage(tensor) for name, tensor in state.items()}
    once = {key: state[name] for name, key in whose.items()}
    digests = dict(zip(once, in_parallel(_digest, once.values()), strict=True))
    noise = getattr(input_embeddings(model), NOISE_ATTRIBUTE, None)
    extra = "" if noise is None else f"noise|{noise.key}|"
    heads = _head_names(model)
    upstream = {name: key for name, key in whose.items() if name not in heads}
    return Hashes(
        _combined(state, whose, digests, extra), _combined(state, upstream, digests, extra)
    )


def _combined(
    state: Mapping[str, torch.Tensor],
    whose: Mapping[str, Any],
    digests: Mapping[Any, str],
    extra: str,
) -> str:
    total = hashlib.sha256(extra.encode())
    first: dict[Any, str] = {}
    for name, key in whose.items():
        twin = first.setdefault(key, name)
        tensor = state[name]
        total.update(f"{name}|{twin}|{tuple(tensor.shape)}|{tensor.dtype}|{digests[key]}|".encode())
    return total.hexdigest()


def _digest(tensor: torch.Tensor) -> str:
    flat = tensor.detach().contiguous().cpu().reshape(-1)
    data: Any = flat.view(torch.uint8).numpy()  # hashed where it lies
    return hashlib.sha256(data).hexdigest()


def _head_names(model: Any) -> set[str]:
    """Return the names of the output head's tensors."""
    head = model.get_output_embeddings()
    if head is None:
        return set()
    prefix = next(name for name, module in model.named_modules() if module is head)
    return {f"{prefix}.{name}" for name in head.state_dict()}


def weight_hash(model: torch.nn.Module) -> str:
    """Return the SHA-256 of all numbers that the model computes with; see `hashes`."""
    return hashes(model).weight
