"""Heads that write a known direction where they attend to known tokens, planted into a real model.

They are the positive control of ties to circuitry: it is known what writes the direction, where, and whether
anything was made to read it. The head keeps its own attention; its value becomes a linear detector of the
tokens, fitted on text, and its output the direction alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from sae_placebo.causal.circuits.components import LayerParts, layer_parts, mlp_matrices
from sae_placebo.causal.circuits.matrices import matrix
from sae_placebo.causal.circuits.streams import StreamReader
from sae_placebo.causal.use.base import Directions, Subject
from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import numpy_generator

_PENALTY = 1e-3
"""The ridge of the detectors, as a share of their inputs' mean square."""
_READING = 0.25
"""This share of an MLP's inner rows is made to read a direction."""
_FIRES = 0.5
"""A direction fires where its head writes more than this share of the tenth largest amount that it writes."""
_LARGEST = 10


@dataclass(frozen=True)
class Plant:
    """One planted direction.

    Attributes:
        token: The id that is written about.
        layer: The layer of the head that writes; None: the embedding of the token writes it.
        head: Its number.
        read: Whether an MLP behind the hookpoint is made to read it.
    """

    token: int
    layer: int | None = None
    head: int = 0
    read: bool = True


def plant(
    subject: Subject, plants: Sequence[Plant], strength: float, seed: int
) -> Float[torch.Tensor, "d_in plant"]:
    """Change a subject's model in place so that it holds the plants, and return their directions.

    What a head writes where it attends to the token alone is `strength` times the root mean square of the
    activations' distance from their mean, and an MLP's rows read it as strongly as a row reads all else.

    Args:
        subject: The model, a copy of one's own, and tokens to fit detectors on.
        plants: What is planted. Each head is taken once.
        strength: How much is written.
        seed: The seed of the directions and of the rows that read them.

    Raises:
        SpecError: a head is taken twice or shares its value with others, no MLP is behind the hookpoint, or
            the model is not in single precision.
        ModelError: the model's layers are not understood.
    """
    model: Any = subject.downstream.model
    if next(model.parameters()).dtype != torch.float32:
        raise SpecError("the model is not in single precision; load it so to plant heads")
    heads = [(one.layer, one.head) for one in plants if one.layer is not None]
    if len(set(heads)) < len(heads):
        raise SpecError("two plants take the same head; give each its own")
    x = subject.activations.float().cpu()
    size = strength * float((x - x.mean(0)).square().sum(1).mean().sqrt())
    random = numpy_generator(seed, "planted directions")
    drawn = torch.from_numpy(random.standard_normal((x.shape[1], len(plants))).astype(np.float32))
    directions: torch.Tensor = torch.linalg.qr(drawn)[0]
    parts = layer_parts(model)
    place = subject.downstream.hookpoint
    behind = [p for p in parts if p.index > place.layer]
    if not behind and any(one.read for one in plants):
        raise SpecError(f"no MLP lies behind {place.name}, so nothing can read what is planted")
    detectors = _detectors(subject, parts, plants)
    with torch.no_grad():
        for i, one in enumerate(plants):
            if one.layer is None:
                weight = model.get_input_embeddings().weight
                weight[one.token] += (size * directions[:, i]).to(weight)
            else:
                _write(parts[one.layer], one.head, detectors[i], size * directions[:, i])
        reading = list(mlp_matrices(model, behind).values()) if behind else []
        for i, one in enumerate(plants):
            if one.read:
                for module in reading[int(random.integers(len(reading)))]:
                    _read(module, directions[:, i], random)
    return directions


def planted_directions(
    subject: Subject, plants: Sequence[Plant], vectors: Float[torch.Tensor, "d_in plant"]
) -> Directions:
    """Return planted directions as latents that fire where they are written, with what is written.

    A direction of the embedding fires at its token. That of a head fires where the head writes more than half
    of the tenth largest amount that it writes.

    Args:
        subject: The model with the plants, read again.
        plants: What was planted.
        vectors: What `plant` returned.
    """
    from scipy.sparse import csr_matrix

    amounts = np.zeros((len(subject.tokens), len(plants)), dtype=np.float32)
    stream = StreamReader(subject)
    places = subject.tokens.places
    ids = subject.tokens.rows.token_ids[places[:, 0], places[:, 1]]
    for tokens, columns, _ in stream.read(np.unique(places[:, 0])):
        for block, values in zip(stream.blocks, columns, strict=True):
            for i, one in enumerate(plants):
                if block.output is None or block.parts[0].layer != one.layer:
                    continue
                width = block.output.shape[2]
                through = vectors[:, i] @ block.output[one.head]
                mixed = values[:, one.head * width : (one.head + 1) * width]
                amounts[tokens, i] = mixed @ through.numpy()
    for i, one in enumerate(plants):
        if one.layer is None:
            amounts[:, i] = ids == one.token
        else:
            least = _FIRES * np.sort(amounts[:, i])[-_LARGEST]
            amounts[:, i] *= amounts[:, i] > max(least, 0)
    return Directions(vectors.T.numpy().astype(np.float32).copy(), csr_matrix(amounts))


def _detectors(
    subject: Subject, parts: Sequence[LayerParts], plants: Sequence[Plant]
) -> list[Float[torch.Tensor, " d_in"] | None]:
    """Return, for each plant of a head, what is 1 more at its token than elsewhere, from what values read."""
    found: list[Any] = [None] * len(plants)
    rows = np.unique(subject.tokens.places[:, 0])
    table = subject.tokens.rows
    for layer in sorted({one.layer for one in plants if one.layer is not None}):
        module = parts[layer].attention.value.module
        inputs: list[torch.Tensor] = []
        ids = []

        def keep(_: Any, args: tuple[Any, ...], inputs: list[Any] = inputs) -> None:
            inputs.append(args[0].detach().reshape(-1, args[0].shape[-1]).float().cpu())

        handle = module.register_forward_pre_hook(keep)
        try:
            for row in rows:
                one_row = table.token_ids[row, : table.lengths[row]].astype(np.int64)
                ids.append(one_row)
                with torch.no_grad():
                    subject.downstream.model(torch.from_numpy(one_row)[None])
        finally:
            handle.remove()
        x, read = torch.cat(inputs), np.concatenate(ids)
        for i, one in enumerate(plants):
            if one.layer == layer:
                found[i] = _detector(x, read == one.token)
    return found


def _detector(
    x: Float[torch.Tensor, "token d_in"], is_token: Bool[np.ndarray, " token"]
) -> Float[torch.Tensor, " d_in"]:
    """Return the ridge regression of a token on the inputs, less their mean.

    Raises:
        NotEstimable: the text does not have the token.
    """
    if not is_token.any():
        raise NotEstimable("the text does not have a planted token")
    y = torch.from_numpy(is_token.astype(np.float32))
    x, y = x - x.mean(0), y - y.mean()
    gram = x.T @ x
    penalty = _PENALTY * gram.diagonal().mean() * torch.eye(len(gram))
    found: torch.Tensor = torch.linalg.solve(gram + penalty, x.T @ y)
    return found


def _write(
    part: LayerParts,
    head: int,
    detector: Float[torch.Tensor, " d_in"] | None,
    vector: Float[torch.Tensor, " d_in"],
) -> None:
    """Make a head's first value the detector, and its output the vector times this value."""
    attention = part.attention
    if attention.value.n_heads != attention.n_heads:
        raise SpecError(f"heads of layer {part.index} share their values; none can be planted")
    assert detector is not None
    columns = attention.value.columns[head]
    value, output = matrix(attention.value.module), matrix(attention.output)
    value[torch.from_numpy(columns)] = 0
    value[int(columns[0])] = detector
    width = attention.head_dim
    output[:, head * width : (head + 1) * width] = 0
    output[:, head * width] = vector / attention.term.scale


def _read(
    module: torch.nn.Module, vector: Float[torch.Tensor, " d_in"], random: np.random.Generator
) -> None:
    """Make a share of a matrix's rows read a direction, each as strongly as it reads all others together."""
    weight = matrix(module)
    rows = random.choice(len(weight), max(int(_READING * len(weight)), 1), replace=False)
    at = torch.from_numpy(np.sort(rows).astype(np.int64))
    signs = torch.from_numpy(random.choice([-1.0, 1.0], len(rows)).astype(np.float32))
    weight[at] += (signs * weight[at].norm(dim=1))[:, None] * vector
