"""Tracr compiles small RASP programs, which a causal transformer can run, to weights.

It gives every variable of a program its own coordinates in the residual stream. They are written once and
never overwritten, so the weights show which head or MLP reads or writes a variable.
Source: Lindner et al., "Tracr: Compiled Transformers as a Laboratory for Interpretability" (2023).
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from sae_placebo.core.errors import MissingExtra, ModelError
from sae_placebo.core.spec import Registry

BOS = "compiler_bos"
"""The token that Tracr's models expect first in every row."""
PAD = "compiler_pad"
"""The token that pads rows in Tracr's models."""


@dataclass(frozen=True)
class Program:
    """A RASP program and the tokens that it reads.

    Attributes:
        build: A function of Tracr's `rasp` module that returns the output expression; all parts of the
            expression must be named.
        vocabulary: All tokens but the one that starts a row.
        summary: What the output is, in one sentence.
        ignored: Names of variables that weights read though their values change nothing.
    """

    build: Callable[[Any], Any]
    vocabulary: tuple[str, ...]
    summary: str
    ignored: tuple[str, ...] = ()


PROGRAMS: Registry[Program] = Registry("compiled program")


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """Weights of one layer in Tracr's basis.

    There are no biases, and scores are not yet divided by the root of the key size.
    """

    query: Float[np.ndarray, "head dim key"]
    key: Float[np.ndarray, "head dim key"]
    value: Float[np.ndarray, "head dim key"]
    out: Float[np.ndarray, "head key dim"]
    mlp_in: Float[np.ndarray, "dim hidden"]
    mlp_out: Float[np.ndarray, "hidden dim"]


@dataclass(frozen=True, eq=False)
class Assembled:
    """A compiled program: its weights in a basis with names, and Tracr's own forward pass.

    Attributes:
        dims: Coordinates of each variable, by its name; the variable `one` is a constant.
        labels: Name of each coordinate: `variable:value`, or the variable alone where it holds a number.
        tokens: The token that each id stands for.
        wte: Embeddings of tokens.
        wpe: Embeddings of positions; the first position is the row's start and has none.
        layers: Weights of the layers, in order.
        output: Name of the variable that is the program's output.
        trace: A function of rows that runs Tracr's forward pass and returns the residual stream after the
            embedding, and after each attention and each MLP in turn.
    """

    dims: dict[str, Int64[np.ndarray, " _"]]
    labels: tuple[str, ...]
    tokens: tuple[str, ...]
    wte: Float[np.ndarray, "token dim"]
    wpe: Float[np.ndarray, "pos dim"]
    layers: tuple[LayerWeights, ...]
    output: str
    trace: Callable[[Int64[np.ndarray, "row pos"]], Float[np.ndarray, "site row pos dim"]]

    def is_number(self, variable: str) -> bool:
        """Return whether the variable is a number in one coordinate, rather than one coordinate per value."""
        return ":" not in self.labels[self.dims[variable][0]]


def tracr_module(name: str) -> Any:
    """Return one of Tracr's modules, by its name inside Tracr.

    Raises:
        MissingExtra: Tracr is not installed.
    """
    try:
        return importlib.import_module(f"tracr.{name}")
    except ImportError:
        raise MissingExtra("compiled worlds need Tracr: pip install tracr-pypi") from None


def assemble(program: Program, length: int) -> Assembled:
    """Return the program compiled for rows of up to `length` tokens behind the starting one.

    Names lose the running numbers that Tracr adds, and coordinates are sorted by name, so that one
    program compiles to the same arrays whatever was compiled before it.

    Raises:
        MissingExtra: Tracr is not installed.
        ModelError: two variables of the program have one name.
    """
    rasp, compiling = tracr_module("rasp.rasp"), tracr_module("compiler.compiling")
    expression = program.build(rasp)
    model = compiling.compile_rasp_to_model(
        expression,
        set(program.vocabulary),
        length,
        causal=True,
        compiler_bos=BOS,
        compiler_pad=PAD,
        # Steps are 1/exactness wide and must fit between 1/length and 1/(length + 1), from which counts are
        # read: Tracr's default of 100 is too flat from length 7 on.
        mlp_exactness=max(100, int(2.5 * length * (length + 1))),
    )
    cleaned = [_clean(label) for label in model.residual_labels]
    if len(set(cleaned)) != len(cleaned):
        raise ModelError("two variables of a RASP program have one name: give each its own.")
    order = np.array(sorted(range(len(cleaned)), key=lambda i: _sort_key(cleaned[i])))
    labels = tuple(cleaned[i] for i in order)
    params = {k: {a: np.array(b) for a, b in v.items()} for k, v in model.params.items()}
    encoding = model.input_encoder.encoding_map
    return Assembled(
        dims=_dims(labels),
        labels=labels,
        tokens=tuple(str(token) for token in sorted(encoding, key=lambda token: encoding[token])),
        wte=params["token_embed"]["embeddings"][:, order],
        wpe=params["pos_embed"]["embeddings"][:, order],
        layers=_layers(params, model.model_config, order),
        output=_clean(expression.label),
        trace=_tracer(model, order),
    )


def _clean(label: str) -> str:
    """Return a coordinate's label without the running numbers that Tracr adds to names."""
    name, colon, value = label.partition(":")
    return re.sub(r"_\d+(?=_|$)", "", name) + colon + value


def _sort_key(label: str) -> tuple[str, float, str]:
    name, _, value = label.partition(":")
    number = float(value) if re.fullmatch(r"-?\d+(\.\d+)?", value) else 0.0
    return name, number, value


def _dims(labels: tuple[str, ...]) -> dict[str, Int64[np.ndarray, " _"]]:
    names = [label.partition(":")[0] for label in labels]
    return {
        name: np.array([i for i, other in enumerate(names) if other == name], np.int64)
        for name in dict.fromkeys(names)
    }


def _layers(
    params: dict[str, dict[str, np.ndarray]], config: Any, order: np.ndarray
) -> tuple[LayerWeights, ...]:
    """Return the weights of Tracr's layers with the coordinates in `order`."""

    def split(name: str) -> np.ndarray:
        w = params[name]["w"][order]
        heads: np.ndarray = w.reshape(len(order), config.num_heads, config.key_size)
        return heads.transpose(1, 0, 2)

    layers = []
    for i in range(config.num_layers):
        at = f"transformer/layer_{i}"
        out = params[f"{at}/attn/linear"]["w"][:, order]
        layers.append(
            LayerWeights(
                query=split(f"{at}/attn/query"),
                key=split(f"{at}/attn/key"),
                value=split(f"{at}/attn/value"),
                out=out.reshape(config.num_heads, config.key_size, len(order)),
                mlp_in=params[f"{at}/mlp/linear_1"]["w"][order],
                mlp_out=params[f"{at}/mlp/linear_2"]["w"][:, order],
            )
        )
    if any(np.any(p["b"]) for p in params.values() if "b" in p):
        raise ModelError("Tracr compiled a program to weights with biases, which are not expected.")
    return tuple(layers)


def _tracer(
    model: Any, order: np.ndarray
) -> Callable[[Int64[np.ndarray, "row pos"]], Float[np.ndarray, "site row pos dim"]]:
    def trace(rows: Int64[np.ndarray, "row pos"]) -> Float[np.ndarray, "site row pos dim"]:
        output = model.forward(model.params, rows.astype(np.int32)).transformer_output
        streams = np.stack([np.array(x) for x in (output.input_embeddings, *output.residuals)])
        return np.ascontiguousarray(streams[..., order])

    return trace


# --- the programs ------------------------------------------------------------------------------------

_LETTERS = ("a", "b", "c", "d", "e")


def _previous(rasp: Any) -> Any:
    step = rasp.Select(rasp.indices, rasp.indices, lambda key, query: key == query - 1)
    return rasp.Aggregate(step.named("step"), rasp.tokens).named("previous")


def _fraction(rasp: Any) -> Any:
    is_a = rasp.numerical((rasp.tokens == "a").named("is_a"))
    before = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.LEQ).named("before")
    return rasp.numerical(rasp.Aggregate(before, is_a, default=0)).named("fraction")


def _majority(rasp: Any) -> Any:
    return rasp.Map(lambda x: x > 0.3, _fraction(rasp)).named("majority")


def _repeat(rasp: Any) -> Any:
    return rasp.SequenceMap(lambda x, y: x == y, _previous(rasp), rasp.tokens).named("repeat")


def _count(rasp: Any) -> Any:
    same = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ).named("same")
    return rasp.SelectorWidth(same).named("count")


def _count_previous(rasp: Any) -> Any:
    previous = _previous(rasp)
    same = rasp.Select(previous, previous, rasp.Comparison.EQ).named("same")
    return rasp.SelectorWidth(same).named("count")


def _rank(rasp: Any) -> Any:
    smaller = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.LT).named("smaller")
    return rasp.SelectorWidth(smaller).named("rank")


def _pattern(rasp: Any) -> Any:
    is_a = (rasp.tokens == "a").named("is_a")
    is_b = (rasp.tokens == "b").named("is_b")
    step = rasp.Select(rasp.indices, rasp.indices, lambda key, query: key == query - 1)
    was_a = rasp.Aggregate(step.named("step"), is_a).named("was_a")
    return (was_a & is_b).named("pattern")


def _decoy(rasp: Any) -> Any:
    is_a = (rasp.tokens == "a").named("is_a")
    return rasp.SequenceMap(lambda count, _: count, _count(rasp), is_a).named("kept")


for _name, _entry in {
    "fraction": Program(_fraction, _LETTERS, "The share of `a` among the tokens so far."),
    "majority": Program(_majority, _LETTERS, "Whether more than 0.3 of the tokens so far are `a`."),
    "repeat": Program(_repeat, _LETTERS, "Whether the token is the one before it."),
    "count": Program(_count, _LETTERS, "How often the token has occurred so far."),
    "count_previous": Program(
        _count_previous, _LETTERS, "How often the token before has itself been one before."
    ),
    "rank": Program(
        _rank, _LETTERS, "How many tokens so far come before this one in the alphabet."
    ),
    "pattern": Program(_pattern, _LETTERS[:3], "Whether this is the `b` of an `ab`."),
    "decoy": Program(
        _decoy,
        _LETTERS[:4],
        "How often the token has occurred so far; whether it is `a` is read and changes nothing.",
        ignored=("is_a",),
    ),
}.items():
    PROGRAMS.add(_entry, name=_name)
