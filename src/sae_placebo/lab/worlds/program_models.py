"""A compiled program becomes a GPT-2, whose residual stream has a basis other than Tracr's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from sae_placebo.core.errors import ModelError, SpecError
from sae_placebo.core.lazy import torch, transformers
from sae_placebo.core.spec import numpy_generator
from sae_placebo.lab.worlds.programs import BOS, PAD, Assembled

_NO_CLASS = -20.0
"""Logit of a token id that stands for no output of the program."""


@dataclass(frozen=True, eq=False)
class VariableValues:
    """The values of a variable that occur.

    Attributes:
        values: Index of the variable's value at each token.
        levels: What each value adds to Tracr's residual stream.
        names: The program's name of each value.
    """

    values: Int64[np.ndarray, "row pos"]
    levels: Float[np.ndarray, "value dim"]
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Basis:
    """How the model's residual stream x carries Tracr's: x = stream @ write, and stream = x @ read.

    Attributes:
        write: Maps Tracr's stream to the model's.
        read: Maps the model's stream to Tracr's.
        rank: Number of dimensions that activations and edits span.
        activation_rank: Number of dimensions that activations span.
        is_exact: Whether reading is without loss on the rows.
    """

    write: Float[np.ndarray, "dim d"]
    read: Float[np.ndarray, "d dim"]
    rank: int
    activation_rank: int
    is_exact: bool


def residual_basis(
    source: Assembled,
    trace: Float[np.ndarray, "site row pos dim"],
    table: Mapping[str, VariableValues],
    how: tuple[bool, bool, int | None],
    seed: int,
) -> Basis:
    """Return the basis in which a model carries Tracr's residual stream; see `compiled`.

    Args:
        source: The compiled program.
        trace: Tracr's residual stream at every site.
        table: Values of the variables, by name.
        how: Whether to rotate, whether to compress, and the number of dimensions to project to or None.
        seed: Seed of rotation and projection.

    Raises:
        SpecError: the number of dimensions to project to is below 1 or above the rank.
    """
    rotate, compress, compress_to = how
    dim = trace.shape[-1]
    flat = trace.reshape(-1, dim)
    second = flat.T @ flat / len(flat)
    edits = [x.levels - x.levels[:1] for x in table.values()]
    kept = _span(np.concatenate([_span(second).T, *edits]))
    rank, activation_rank = kept.shape[1], _span(second).shape[1]
    carrier = kept if compress or compress_to is not None else np.eye(dim)
    reading = carrier.T
    if compress_to is not None:
        if not 0 < compress_to <= rank:
            raise SpecError(
                f"compress_to is {compress_to}, allowed is 1 to {rank}, the rank of what is kept "
                "without projection: choose a width in that range or leave it out."
            )
        random = numpy_generator(seed, "world", "compiled", "projection")
        carrier = carrier @ np.linalg.qr(random.standard_normal((rank, compress_to)))[0]
        inner = carrier.T @ second @ carrier
        reading = np.linalg.pinv(inner, rcond=1e-9, hermitian=True) @ carrier.T @ second
    heads, key = source.layers[0].query.shape[0], source.layers[0].query.shape[2]
    width = heads * max(key, -(-carrier.shape[1] // heads))
    turn = np.eye(width)[: carrier.shape[1]]
    if rotate:
        random = numpy_generator(seed, "world", "compiled", "rotation")
        turn = np.linalg.qr(random.standard_normal((width, width)))[0][: carrier.shape[1]]
    exact = compress_to is None or compress_to >= activation_rank
    return Basis(carrier @ turn, turn.T @ reading, rank, activation_rank, exact)


def _span(x: Float[np.ndarray, "row dim"]) -> Float[np.ndarray, "dim rank"]:
    """Return an orthonormal basis of the rows, without directions that only leaks of attention reach."""
    _, sizes, right = np.linalg.svd(x, full_matrices=False)
    return np.ascontiguousarray(right[sizes > 1e-8 * sizes[0]].T)


def unembedding(
    source: Assembled, output: VariableValues, sharpness: float
) -> tuple[Float[np.ndarray, "dim token"], tuple[str, ...]]:
    """Return the unembedding in Tracr's basis, and the program's output that each token id stands for.

    Args:
        source: The compiled program.
        output: Values of the output variable.
        sharpness: Logit of the output above the others; see `compiled`.

    Raises:
        ModelError: the program has no constant coordinate.
    """
    dims = source.dims[source.output]
    if "one" not in source.dims:
        raise ModelError("the program has no constant coordinate: an attention head adds one.")
    one = source.dims["one"][0]
    number = source.is_number(source.output)
    classes = output.names if number else tuple(source.labels[i].partition(":")[2] for i in dims)
    head = np.zeros((len(source.labels), max(len(source.tokens), len(classes))))
    head[one, len(classes) :] = _NO_CLASS
    if number:
        v = output.levels[:, dims[0]]
        scale = 4 * sharpness / (v.max() - v.min()) ** 2
        head[dims[0], : len(v)] = 2 * scale * v
        head[one, : len(v)] = -scale * v**2
    else:
        head[dims, np.arange(len(dims))] = sharpness
    return head, classes


def as_gpt2(source: Assembled, basis: Basis, head: Float[np.ndarray, "dim token"]) -> Any:
    """Return a GPT-2 with a program's weights, and with identities in the place of norms.

    Args:
        source: The compiled program.
        basis: The basis of the model's residual stream.
        head: The unembedding in Tracr's basis.
    """
    n_heads, _, key = source.layers[0].query.shape
    width = basis.write.shape[1]
    inner = max(layer.mlp_in.shape[1] for layer in source.layers)
    start, pad = source.tokens.index(BOS), source.tokens.index(PAD)
    config = transformers.GPT2Config(
        vocab_size=head.shape[1],
        n_positions=max(len(source.wpe), 16),
        n_embd=width,
        n_layer=len(source.layers),
        n_head=n_heads,
        n_inner=inner,
        activation_function="relu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=start,
        eos_token_id=None,
        pad_token_id=pad,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        model: Any = transformers.GPT2LMHeadModel(config)
    stack = model.transformer
    stack.ln_f = torch.nn.Identity()
    state: dict[Any, np.ndarray] = {
        stack.wte.weight: source.wte @ basis.write,
        stack.wpe.weight: source.wpe @ basis.write,
        model.lm_head.weight: (basis.read @ head).T,
    }
    size = width // n_heads
    for block, layer in zip(stack.h, source.layers, strict=True):
        block.ln_1, block.ln_2 = torch.nn.Identity(), torch.nn.Identity()
        # GPT-2 divides scores by the root of its head size, Tracr by the root of its key size
        queries = layer.query * np.sqrt(size / key)
        state |= {
            block.attn.c_attn.weight: basis.read
            @ np.concatenate([_heads(w, size) for w in (queries, layer.key, layer.value)], axis=1),
            block.attn.c_proj.weight: _heads(layer.out.swapaxes(1, 2), size).T @ basis.write,
            block.mlp.c_fc.weight: basis.read @ layer.mlp_in,
            block.mlp.c_proj.weight: layer.mlp_out @ basis.write,
        }
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for parameter, value in state.items():
            parameter[: len(value)] = torch.from_numpy(np.ascontiguousarray(value))
    model.requires_grad_(False)
    model.eval()
    return model


def _heads(
    weights: Float[np.ndarray, "head dim key"], size: int
) -> Float[np.ndarray, "dim key_of_all"]:
    """Return the heads side by side, each padded to `size`."""
    n_heads, dim, key = weights.shape
    padded = np.zeros((dim, n_heads, size))
    padded[:, :, :key] = weights.transpose(1, 0, 2)
    return padded.reshape(dim, n_heads * size)
