"""Compiled worlds are models made from programs, so their weights say what they compute, and from what.

A RASP program compiled by Tracr becomes an ordinary GPT-2 of Hugging Face, without norms. Rotation and
compression hide the coordinates that Tracr names, so that an SAE has to find them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from sae_placebo.core.errors import ModelError, NotEstimable, SpecError, unknown_name
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import numpy_generator
from sae_placebo.lab.worlds.base import Variable, World
from sae_placebo.lab.worlds.program_models import (
    Basis,
    VariableValues,
    as_gpt2,
    residual_basis,
    unembedding,
)
from sae_placebo.lab.worlds.programs import (
    BOS,
    PROGRAMS,
    Assembled,
    LayerWeights,
    Program,
    assemble,
)
from sae_placebo.models.hookpoints import ON_STREAM, parse_hookpoint

_AGREE = 5e-4
"""Largest difference from Tracr's own residual stream of a model that is not compressed with loss.

With rotation, the steps of the MLPs are differences of sums of size 100, which single precision resolves to
about 1e-4."""
_FEWEST_KEPT = 0.95
"""Least share of tokens whose output a compression with loss has to keep."""
_GAP = 1e-3
"""Numbers that differ by less count as one value, since attention leaks about 1e-5."""


@dataclass(frozen=True, eq=False)
class Access:
    """What a layer's weights read and write, by variable; the variable `one` is a constant.

    Attributes:
        reads: The parts with non-zero weights on a variable: `q.H` and `k.H` are the scores and `v.H` the
            values of head H, and `mlp` is the MLP. That weights read a variable does not say that its value
            matters.
        writes: The parts that write a variable: `head.H` and `mlp`.
    """

    reads: Mapping[str, tuple[str, ...]]
    writes: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, eq=False, kw_only=True)
class CompiledWorld(World):
    """A compiled program, its variables, and where they are.

    Attributes:
        directions: What each value of a variable adds to the residual stream, by the variable's name; the
            value "none" adds zeros.
        value_names: The program's names of a variable's values, by the variable's name.
        access: What each layer reads and writes.
        embedded: Names of the variables that the embedding writes.
        output: Name of the variable that the unembedding reads.
        classes: The program's output that each token id stands for in the logits.
        tokens: The token that each id stands for in the rows.
    """

    directions: Mapping[str, Float[torch.Tensor, "_ d"]]
    value_names: Mapping[str, tuple[str, ...]]
    access: tuple[Access, ...]
    embedded: tuple[str, ...]
    output: str
    classes: tuple[str, ...]
    tokens: tuple[str, ...]

    def is_present(self, variable: str, hookpoint: str) -> bool:
        """Return whether the variable has been written by the time the model reaches a hookpoint.

        At the output of an attention or MLP layer, and at attention's heads (`z`), this says whether that
        layer itself writes it.

        Raises:
            NotEstimable: there is no such variable.
            SpecError: the hookpoint is unknown.
        """
        if variable not in self.directions:
            raise NotEstimable(unknown_name("variable", variable, self.directions))
        place = parse_hookpoint(hookpoint)
        if place.site not in ON_STREAM:
            writers = self.access[place.layer].writes.get(variable, ())
            by_heads = any(writer != "mlp" for writer in writers)
            if place.site in ("z", "attn_out"):
                return by_heads
            if place.site == "mlp_out":
                return "mlp" in writers
            if by_heads:
                return True
        before = self.access[: place.layer + (place.site == "resid_post")]
        return variable in self.embedded or any(variable in layer.writes for layer in before)


def reads(world: CompiledWorld, layer: int) -> Mapping[str, tuple[str, ...]]:
    """Return the parts of a layer that have non-zero weights on each variable, by its name; see `Access`."""
    return world.access[layer].reads


def writes(world: CompiledWorld, layer: int) -> Mapping[str, tuple[str, ...]]:
    """Return the parts of a layer that write each variable, by its name; see `Access`."""
    return world.access[layer].writes


def compiled(
    program: str,
    seed: int,
    *,
    rotate: bool = True,
    compress: bool = True,
    compress_to: int | None = None,
    length: int = 8,
    sharpness: float = 3.0,
    n_rows: int = 512,
) -> CompiledWorld:
    """Return a compiled program as a world; there are 8 training rows to each held-out one.

    A compiled program answers with certainty, so that a divergence would be zero or infinite. The logits are
    therefore those of a soft answer: `sharpness` for the output, 0 for any other value. Where the output is
    a number x, the value v has the logit -4 sharpness ((x - v) / range)^2, up to a constant.

    Rotation is exact, since there are no norms. Compression keeps the span of all activations, those after
    attention included, and of the differences between each variable's values. The span of activations alone
    would not do: `is_a` is a linear function of `tokens` there, so that no edit could change one of them
    alone, and one could not say which of them is used. `numbers` has both ranks.

    Args:
        program: Name of the program, one of `PROGRAMS`.
        seed: Seed of rows, rotation and projection.
        rotate: Whether all that reads and writes the residual stream is multiplied by a random orthogonal
            matrix.
        compress: Whether directions are left out that no activation and no edit reaches.
        compress_to: Number of dimensions of a random projection below that rank, in which the model reads by
            least squares over the activations. On the rows this is without loss down to the rank of the
            activations, and with loss below. None projects nothing.
        length: Number of tokens in a row behind the starting one.
        sharpness: Logit of the output above the others.
        n_rows: Number of held-out rows.

    Raises:
        MissingExtra: Tracr is not installed.
        SpecError: there is no such program, `compress_to` is out of range, or it changes more than 5% of the
            outputs.
        ModelError: the model does not compute what Tracr's own model computes.
    """
    chosen = PROGRAMS[program]
    source = assemble(chosen, length)
    ids = _rows(source, chosen, numpy_generator(seed, "world", program, "rows"), 9 * n_rows, length)
    trace = source.trace(ids).astype(np.float64)
    table = {name: _values(source, name, trace[-1]) for name in source.dims if name != "one"}
    basis = residual_basis(source, trace, table, (rotate, compress, compress_to), seed)
    head, classes = unembedding(source, table[source.output], sharpness)
    model = as_gpt2(source, basis, head)
    numbers = _checked(model, source, basis, ids, trace, table[source.output].values)
    access = tuple(_access(source, layer) for layer in source.layers)
    needed = {source.output}.union(*(layer.reads for layer in access)) - set(chosen.ignored)
    return CompiledWorld(
        name=f"compiled {program}",
        model=model,
        rows=ids[:n_rows],
        train_rows=ids[n_rows:],
        variables=tuple(_variable(name, x, name in needed, n_rows) for name, x in table.items()),
        hookpoints=("resid_pre.0", *(f"resid_post.{i}" for i in range(len(access)))),
        numbers=numbers,
        directions={
            name: torch.from_numpy((x.levels @ basis.write).astype(np.float32))
            for name, x in table.items()
        },
        value_names={name: x.names for name, x in table.items()},
        access=access,
        embedded=tuple(
            name
            for name, dims in source.dims.items()
            if source.wte[:, dims].any() or source.wpe[:, dims].any()
        ),
        output=source.output,
        classes=classes,
        tokens=source.tokens,
    )


# --- rows and variables ------------------------------------------------------------------------------


def _rows(
    source: Assembled, program: Program, random: np.random.Generator, n: int, length: int
) -> Int64[np.ndarray, "row pos"]:
    """Return rows of independent, uniform tokens, each row behind the starting token."""
    letters = np.array([source.tokens.index(token) for token in program.vocabulary], np.int64)
    drawn = letters[random.integers(len(letters), size=(n, length))]
    start = np.full((n, 1), source.tokens.index(BOS), np.int64)
    return np.concatenate([start, drawn], axis=1)


def _values(
    source: Assembled, name: str, final: Float[np.ndarray, "row pos dim"]
) -> VariableValues:
    """Return the values of a variable, read from the last stream, since nothing is ever overwritten."""
    dims = source.dims[name]
    coordinates = final[..., dims]
    if source.is_number(name):
        numbers = np.unique(coordinates)
        starts = np.flatnonzero(np.diff(numbers, prepend=-np.inf) > _GAP)
        means = np.add.reduceat(numbers, starts) / np.diff(np.append(starts, len(numbers)))
        values = np.searchsorted(numbers[starts], coordinates[..., 0], side="right") - 1
        levels = np.zeros((len(means), final.shape[-1]))
        levels[:, dims[0]] = means
        return VariableValues(values, levels, tuple(f"{mean:.4g}" for mean in means))
    best = np.where(coordinates.max(-1) > 0.5, coordinates.argmax(-1), len(dims))
    present, values = np.unique(best, return_inverse=True)
    levels = np.zeros((len(present), final.shape[-1]))
    one_hot = present[present < len(dims)]
    levels[np.arange(len(one_hot)), dims[one_hot]] = 1.0
    labels = [source.labels[i].partition(":")[2] for i in dims] + ["none"]
    names = tuple(labels[i] for i in present)
    return VariableValues(values.reshape(best.shape).astype(np.int64), levels, names)


def _variable(name: str, values: VariableValues, needed: bool, n_rows: int) -> Variable:
    return Variable(
        name=name,
        values=values.values[:n_rows],
        train_values=values.values[n_rows:],
        n_values=len(values.names),
        role="used" if needed else "passenger",
    )


def _access(source: Assembled, layer: LayerWeights) -> Access:
    """Return what a layer reads and writes with non-zero weights."""
    readers: dict[str, list[str]] = {name: [] for name in source.dims}
    writers: dict[str, list[str]] = {name: [] for name in source.dims}
    live = layer.mlp_out.any(1)
    for name, dims in source.dims.items():
        for head in range(len(layer.query)):
            scores = layer.query[head] @ layer.key[head].T
            moved = layer.value[head] @ layer.out[head]
            for part, weights in {"q": scores, "k": scores.T, "v": moved}.items():
                if weights[dims].any():
                    readers[name].append(f"{part}.{head}")
            if moved[:, dims].any():
                writers[name].append(f"head.{head}")
        if layer.mlp_in[dims][:, live].any():
            readers[name].append("mlp")
        if layer.mlp_out[:, dims].any():
            writers[name].append("mlp")
    kept = [{k: tuple(v) for k, v in x.items() if v} for x in (readers, writers)]
    return Access(*kept)


# --- whether the model computes the program ----------------------------------------------------------


def _checked(
    model: Any,
    source: Assembled,
    basis: Basis,
    ids: Int64[np.ndarray, "row pos"],
    trace: Float[np.ndarray, "site row pos dim"],
    output: Int64[np.ndarray, "row pos"],
) -> dict[str, float]:
    """Return how far the model is from Tracr's own on all rows, as `numbers` of the world.

    Raises:
        ModelError: the model should be exact and is not.
        SpecError: too many outputs are lost.
    """
    with torch.no_grad():
        run = model(input_ids=torch.from_numpy(ids), output_hidden_states=True)
    streams = torch.stack(run.hidden_states).double().numpy() @ basis.read
    error = float(np.abs(streams - trace[::2]).max())
    dims = source.dims[source.output]
    coordinates = trace[-1][..., dims]
    if source.is_number(source.output):
        wanted, defined = output, np.ones_like(output, dtype=bool)
    else:
        wanted, defined = coordinates.argmax(-1), coordinates.max(-1) > 0.5
    defined[:, 0] = False
    kept = float((run.logits.argmax(-1).numpy() == wanted)[defined].mean())
    if basis.is_exact and (error > _AGREE or kept < 1):
        raise ModelError(
            f"the compiled model is {error:.2g} off Tracr's residual stream and gives its output at "
            f"{kept:.2%} of tokens; {_AGREE} and all were expected: use shorter rows."
        )
    if kept < _FEWEST_KEPT:
        raise SpecError(
            f"compress_to keeps the output at {kept:.1%} of tokens, at least {_FEWEST_KEPT:.0%} are "
            f"needed: raise it towards {basis.activation_rank}, from which nothing is lost."
        )
    return {
        "rank": float(basis.rank),
        "activation_rank": float(basis.activation_rank),
        "tracr_width": float(len(source.labels)),
        "width": float(basis.write.shape[1]),
        "outputs_kept": kept,
        "residual_error": error,
    }
