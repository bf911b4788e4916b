"""One gain for what a block adds to the residual stream, set in the block's own weights.

The weights that attention or MLP writes with are scaled: its last matrix with bias, every expert's alike, or
the norm that stands between it and the stream. Which these are is measured: on a few tokens, what the module
adds has to be halved when they are. So what is made is an ordinary model, and there is no table of
architectures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from sae_placebo.controls.model.outputs import last_matrices, loose_biases, run_few_tokens
from sae_placebo.controls.model.tensors import storage
from sae_placebo.core.errors import ModelError
from sae_placebo.core.lazy import torch
from sae_placebo.models.hookpoints import Hookpoint
from sae_placebo.models.sites import StreamTerm, first_tensor, resolve, text_config

_ROUNDING = 1e-4
"""Terms that differ by no more than this share of their norm are the same."""
_REFUSED = "so that what its blocks add cannot be calibrated; leave out the arms that calibrate."


@dataclass(frozen=True)
class _Scaled:
    """A parameter that is scaled, as it was drawn; the model adds `offset` to it (Gemma's norms: 1)."""

    parameter: torch.nn.Parameter
    drawn: torch.Tensor
    offset: float

    def set(self, gain: float) -> None:
        value = self.drawn
        if gain != 1.0:  # exact where nothing is scaled
            value = (self.drawn + self.offset) * gain - self.offset
        self.parameter.copy_(value)


@dataclass(frozen=True)
class BlockGain:
    """The parameters that scale what one block adds to the residual stream."""

    scaled: tuple[_Scaled, ...]

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Return the parameters that are scaled."""
        return [one.parameter for one in self.scaled]

    def set(self, gain: float) -> None:
        """Have the block add `gain` times what its drawn weights add, given the same inputs."""
        with torch.no_grad():
            for one in self.scaled:
                one.set(gain)


def block_gains(model: torch.nn.Module, n_blocks: int) -> list[BlockGain]:
    """Return what scales each of the first blocks of a model; its weights count as gain 1.

    Raises:
        ModelError: a block does more than add an attention's and an MLP's output to the stream, two blocks
            share weights, or no weights are found that scale what is added.
    """
    name = type(model).__name__
    places = [Hookpoint(site, i) for i in range(n_blocks) for site in ("attn_out", "mlp_out")]
    try:
        terms = resolve(model, places).terms
    except ModelError as error:
        cause = str(error).partition(": ")[2].partition(" Use resid")[0].rstrip(".") or str(error)
        raise ModelError(
            f"what blocks of {name} add cannot be told apart ({cause}), {_REFUSED}"
        ) from error
    found = _writers(model, [terms[place] for place in places], places)
    blocks = [BlockGain((*a, *b)) for a, b in zip(found[::2], found[1::2], strict=True)]
    owners: dict[Any, int] = {}
    for index, block in enumerate(blocks):
        for parameter in block.parameters:
            if owners.setdefault(storage(parameter), index) != index:
                raise ModelError(f"blocks of {name} share weights, {_REFUSED}")
    return blocks


def _writers(
    model: torch.nn.Module, terms: Sequence[StreamTerm], places: Sequence[Hookpoint]
) -> list[tuple[_Scaled, ...]]:
    """Return for each term the parameters that scale it."""
    modules = [term.module for term in terms]
    calls, last = _calls(model, modules), last_matrices(model, modules)
    width, found = int(text_config(model).hidden_size), []
    for term, place, call, matrix in zip(terms, places, calls, last, strict=True):
        candidates = _candidates(term.module, matrix, width)
        working = next((c for c in candidates if _halves(term, call, c)), None)
        if working is None:
            raise ModelError(
                f"no weights of {type(model).__name__} were found that scale {place.name}, {_REFUSED}"
            )
        found.append(working)
    return found


def _candidates(
    module: torch.nn.Module, last: torch.nn.Module | None, width: int
) -> Iterator[tuple[_Scaled, ...]]:
    """Yield sets of parameters that may scale what a module adds, the likeliest first."""
    if "Norm" in type(module).__name__:
        own = dict(module.named_parameters(recurse=False))
        for offset in (0.0, 1.0):
            yield tuple(
                _Scaled(p, p.clone(), offset if name == "weight" else 0.0)
                for name, p in own.items()
            )
        return
    by_leaf: dict[str, list[torch.nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        by_leaf.setdefault(_leaf(name), []).append(parameter)
    names = {id(one): name for name, one in module.named_modules()}
    first = [] if last is None else [_leaf(f"{names[id(last)]}.weight".lstrip("."))]
    # a matrix that is called last is registered last, too, but for fused experts, which call no module
    for leaf in dict.fromkeys([*first, *reversed(by_leaf)]):
        chosen = [*by_leaf.get(leaf, ()), *loose_biases(module, width)]
        yield tuple(_Scaled(p, p.clone(), 0.0) for p in {id(p): p for p in chosen}.values())


def _leaf(name: str) -> str:
    """Return what a parameter's matrix is called inside of its owner: the same for every expert's."""
    *owners, short = name.split(".")
    if short in ("weight", "bias"):
        return owners[-1] if owners else ""
    return short.removesuffix("_bias")  # experts that are fused


_Call = tuple[tuple[Any, ...], dict[str, Any]]


def _calls(model: torch.nn.Module, modules: Sequence[torch.nn.Module]) -> list[_Call]:
    """Return what each module is called with in a forward of a few tokens."""
    found: dict[int, _Call] = {}

    def note(index: int) -> Callable[..., None]:
        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found[index] = tuple(map(_copied, args)), {k: _copied(v) for k, v in kwargs.items()}

        return hook

    with ExitStack() as stack, torch.no_grad():
        for index, module in enumerate(modules):
            handle = module.register_forward_pre_hook(note(index), with_kwargs=True)
            stack.callback(handle.remove)
        run_few_tokens(model)
    return [found[index] for index in range(len(modules))]


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


def _halves(term: StreamTerm, call: _Call, candidate: tuple[_Scaled, ...]) -> bool:
    """Return whether what a module adds is halved when these parameters are."""
    if not candidate:
        return False
    added = _added(term, call)
    with torch.no_grad():
        for one in candidate:
            one.set(0.5)
        half = _added(term, call)
        for one in candidate:
            one.set(1.0)
    return bool((half - 0.5 * added).norm() <= _ROUNDING * added.norm())


def _added(term: StreamTerm, call: _Call) -> torch.Tensor:
    """Return what a module adds to the stream when it is called so, in double precision."""
    args, kwargs = tuple(map(_copied, call[0])), {k: _copied(v) for k, v in call[1].items()}
    with torch.no_grad():
        output = first_tensor(term.module.forward(*args, **kwargs)).double()
    return output if term.subtract is None else output - call[0][term.subtract].double()
