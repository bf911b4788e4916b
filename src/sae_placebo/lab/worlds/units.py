"""What is asked about in a world: latents with the value that each stands for, or the values themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from sae_placebo.causal.use.base import Directions, Subject, latent_directions
from sae_placebo.causal.use.downstream import Downstream
from sae_placebo.core.lazy import torch
from sae_placebo.data.rows import Rows
from sae_placebo.lab.worlds.base import Variable, World
from sae_placebo.lab.worlds.compiled import CompiledWorld
from sae_placebo.lab.worlds.dictionaries import LatentLabel, activations, label_latents
from sae_placebo.latents.base import Encoded, TokenTable

_SHORT = 0.25
"""Values shorter than this share of their variable's longest are left out: the commonest values are near
the mean, and say little by being taken away."""


def world_subject(world: World, hookpoint: str) -> Subject:
    """Return a world's model behind a hookpoint, with its held-out rows, each a document of its own."""
    n, length = world.rows.shape
    rows = Rows(
        world.rows.astype(np.int32),
        np.full(n, length, dtype=np.int32),
        np.arange(n, dtype=np.int32),
        tuple(f"row {i}" for i in range(n)),
    )
    places = np.argwhere(rows.usable()).astype(np.int64)
    x = activations(world, hookpoint, world.rows)
    site = x[torch.from_numpy(places[:, 0]), torch.from_numpy(places[:, 1])].clone()
    return Subject(Downstream(world.model, hookpoint), TokenTable(rows, places, ()), site)


@dataclass(frozen=True, eq=False)
class Units:
    """Directions with names: what each stands for.

    Attributes:
        directions: At the hookpoint.
        names: Of each, `variable=value`, or `none`.
        variables: Of each; empty where it stands for none.
        carried: Of each, the share of what its value adds to the activation that it holds.
    """

    directions: Directions
    names: tuple[str, ...]
    variables: tuple[str, ...]
    carried: Float[np.ndarray, " direction"]


def latent_units(world: World, subject: Subject, sae: Any) -> Units:
    """Return an SAE's latents, named by the variable's value that each stands for."""
    codes = sae.encode(subject.activations)
    sparse = _csr(codes, len(subject.tokens), sae.d_sae)
    reading = Encoded(sae, subject.tokens, sparse, subject.activations)
    labels = label_latents(world, sparse, subject.tokens.places)
    names = tuple(label.name for label in labels)
    directions = latent_directions(reading)
    carried = np.array([_carried(world, subject, directions, i, x) for i, x in enumerate(labels)])
    return Units(directions, names, tuple(label.variable or "" for label in labels), carried)


def _carried(
    world: World, subject: Subject, directions: Directions, latent: int, label: LatentLabel
) -> float:
    """Return the share of (mean activation with the value, less that without) that a latent holds."""
    if label.variable is None:
        return float("nan")
    rows, positions = subject.tokens.places.T
    has = world.variable(label.variable).values[rows, positions] == label.value
    if has.all() or not has.any():
        return float("nan")
    contrast = has / has.sum() - ~has / (~has).sum()
    apart = contrast @ subject.activations.double().numpy()
    by = directions.by_direction
    here = slice(by.indptr[latent], by.indptr[latent + 1])
    amount = float(contrast[by.indices[here]] @ by.data[here].astype(np.float64))
    along = float(directions.vectors[latent].astype(np.float64) @ apart)
    return amount * along / max(float(apart @ apart), 1e-30)


def value_units(world: World, subject: Subject) -> Units:
    """Return what each value of each variable adds to the activation at the site.

    Of a compiled world that is known. Of another, it is read off the training rows: least squares of the
    activation on all variables' values at once, a variable's mean left out; of duplicates the carriers, not
    the whole. A token that has the value holds as much of it as the value is long, and others nothing.
    """
    from scipy.sparse import csr_matrix

    rows, positions = subject.tokens.places.T
    vectors, columns, names, variables = [], [], [], []
    for variable, levels in _levels(world, subject):
        here = variable.values[rows, positions]
        lengths = np.linalg.norm(levels, axis=1)
        for value, level in enumerate(levels):
            length = float(lengths[value])
            if length > max(1e-6, _SHORT * float(lengths.max())):
                vectors.append(level / length)
                columns.append((here == value) * length)
                names.append(f"{variable.name}={value}")
                variables.append(variable.name)
    amounts = csr_matrix(np.stack(columns, axis=1).astype(np.float32))
    directions = Directions(np.stack(vectors).astype(np.float32), amounts)
    return Units(directions, tuple(names), tuple(variables), np.ones(len(names)))


def _levels(
    world: World, subject: Subject
) -> list[tuple[Variable, Float[np.ndarray, "value d_in"]]]:
    hookpoint = subject.downstream.hookpoint.name
    if isinstance(world, CompiledWorld):
        present = [v for v in world.variables if world.is_present(v.name, hookpoint)]
        return [(v, world.directions[v.name].numpy()) for v in present]
    wholes = {v.whole for v in world.variables}
    tried = [v for v in world.variables if v.name not in wholes]
    # as held-out rows are read: without the first position
    x = activations(world, hookpoint, world.train_rows)[:, 1:].flatten(0, 1).double().numpy()
    blocks = [
        (v.train_values[:, 1:].ravel()[:, None] == np.arange(v.n_values)).astype(np.float64)
        for v in tried
    ]
    design = np.concatenate([block - block.mean(0) for block in blocks], axis=1)
    # the smallest of all solutions: values of a variable are worth 0 together
    gram = np.linalg.pinv(design.T @ design, hermitian=True, rcond=1e-9)
    found = gram @ (design.T @ (x - x.mean(0)))
    cuts = np.cumsum([v.n_values for v in tried])[:-1]
    pairs = zip(tried, np.split(found, cuts), blocks, strict=True)
    return [(v, levels - block.mean(0) @ levels) for v, levels, block in pairs]


def _csr(codes: Any, n_tokens: int, d_sae: int) -> Any:
    from scipy.sparse import csr_matrix

    parts = (x.numpy() for x in (codes.values, codes.latents, codes.offsets))
    values, latents, offsets = parts
    found = csr_matrix((values.astype(np.float32), latents, offsets), shape=(n_tokens, d_sae))
    found.eliminate_zeros()
    found.sort_indices()
    return found


def held_often(
    subject: Subject, directions: Directions, n_documents: int
) -> Int64[np.ndarray, " some"]:
    """Return the directions that at least `n_documents` documents hold."""
    by, documents = directions.by_direction, subject.tokens.documents
    counts = [
        len(np.unique(documents[by.indices[start:stop]]))
        for start, stop in zip(by.indptr[:-1], by.indptr[1:], strict=True)
    ]
    some = (np.array(counts) >= n_documents) & directions.vectors.any(axis=1)
    return np.flatnonzero(some).astype(np.int64)
