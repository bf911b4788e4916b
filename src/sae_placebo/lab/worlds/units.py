"""The units whose use is judged at a site of a world: latents, named by their values, or values."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float64, Int64

from sae_placebo.causal.use.base import Directions, Subject, latent_directions
from sae_placebo.causal.use.downstream import Downstream
from sae_placebo.causal.use.spec import UseSpec
from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import torch
from sae_placebo.data.rows import Rows
from sae_placebo.lab.scores.matching import code_matrix
from sae_placebo.lab.worlds.base import Variable, World
from sae_placebo.lab.worlds.compiled import CompiledWorld
from sae_placebo.lab.worlds.dictionaries import LatentLabel, activations, label_latents, train_sae
from sae_placebo.latents.base import Encoded, TokenTable

_SHORT = 0.25
"""A value is left out where its direction is shorter than this share of its variable's longest: the commonest
values are near the mean, so that little changes when they are removed."""

Statistic = Callable[[Subject, Directions], Float64[np.ndarray, " direction"]]
"""A function of a model behind a hookpoint and of directions there that returns one number per direction; a
higher one says more use."""


def world_subject(world: World, hookpoint: str) -> Subject:
    """Return a world's model from a hookpoint on, with its held-out rows; each row is one document."""
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
    """Directions at a hookpoint, and what each stands for.

    Attributes:
        directions: The directions, and how much of each every token holds.
        names: Name of each direction: `variable=value`, or `none`.
        variables: Name of the variable that each direction stands for; empty where it stands for none.
        carried: Share that each direction holds of what its value adds to the activation.
    """

    directions: Directions
    names: tuple[str, ...]
    variables: tuple[str, ...]
    carried: Float[np.ndarray, " direction"]


def latent_units(world: World, subject: Subject, sae: Any) -> Units:
    """Return an SAE's latents as units, each named by the variable's value that it stands for.

    Args:
        world: The world.
        subject: The world's model and held-out tokens, from `world_subject`.
        sae: An SAE of the activations at the subject's hookpoint.
    """
    codes = code_matrix(sae.encode(subject.activations)).astype(np.float32)
    codes.eliminate_zeros()
    codes.sort_indices()
    reading = Encoded(sae, subject.tokens, codes, subject.activations)
    labels = label_latents(world, codes, subject.tokens.places)
    names = tuple(label.name for label in labels)
    directions = latent_directions(reading)
    carried = np.array([_carried(world, subject, directions, i, x) for i, x in enumerate(labels)])
    return Units(directions, names, tuple(label.variable or "" for label in labels), carried)


def _carried(
    world: World, subject: Subject, directions: Directions, latent: int, label: LatentLabel
) -> float:
    """Return the share of a label's contrast that a latent holds; NaN where the latent stands for none.

    The contrast is the mean activation of tokens with the value less that of tokens without.
    """
    if label.variable is None:
        return float("nan")
    rows, positions = subject.tokens.places.T
    has = world.variable(label.variable).values[rows, positions] == label.value
    if has.all() or not has.any():
        return float("nan")
    contrast = has / has.sum() - ~has / (~has).sum()
    apart = contrast @ subject.activations.double().numpy()
    by = directions.by_direction
    held = slice(by.indptr[latent], by.indptr[latent + 1])
    amount = float(contrast[by.indices[held]] @ by.data[held].astype(np.float64))
    along = float(directions.vectors[latent].astype(np.float64) @ apart)
    return amount * along / max(float(apart @ apart), 1e-30)


def value_units(world: World, subject: Subject) -> Units:
    """Return the values of a world's variables as units: what each value adds to the activation at the site.

    In a compiled world this is known. In another world it is estimated from the training rows, by least
    squares of the activation on the values of all variables at once, less each variable's mean. Of duplicates
    the carriers enter and not the variable that they carry. A token that has the value holds as much of the
    unit direction as the value's vector is long, and other tokens hold nothing.

    Args:
        world: The world.
        subject: The world's model and held-out tokens, from `world_subject`.
    """
    from scipy.sparse import csr_matrix

    rows, positions = subject.tokens.places.T
    vectors, columns, names, variables = [], [], [], []
    for variable, levels in _levels(world, subject):
        values = variable.values[rows, positions]
        lengths = np.linalg.norm(levels, axis=1)
        for value, level in enumerate(levels):
            length = float(lengths[value])
            if length > max(1e-6, _SHORT * float(lengths.max())):
                vectors.append(level / length)
                columns.append((values == value) * length)
                names.append(f"{variable.name}={value}")
                variables.append(variable.name)
    amounts = csr_matrix(np.stack(columns, axis=1).astype(np.float32))
    directions = Directions(np.stack(vectors).astype(np.float32), amounts)
    return Units(directions, tuple(names), tuple(variables), np.ones(len(names)))


def _levels(
    world: World, subject: Subject
) -> list[tuple[Variable, Float[np.ndarray, "value d_in"]]]:
    """Return the variables with what each of their values adds to the activation; see `value_units`."""
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
    # of all solutions the smallest, in which the values of a variable sum to 0
    gram = np.linalg.pinv(design.T @ design, hermitian=True, rcond=1e-9)
    solution = gram @ (design.T @ (x - x.mean(0)))
    cuts = np.cumsum([v.n_values for v in tried])[:-1]
    pairs = zip(tried, np.split(solution, cuts), blocks, strict=True)
    return [(v, levels - block.mean(0) @ levels) for v, levels, block in pairs]


def held_often(
    subject: Subject, directions: Directions, n_documents: int
) -> Int64[np.ndarray, " chosen"]:
    """Return the indices of the directions that tokens of at least `n_documents` documents hold."""
    by, documents = directions.by_direction, subject.tokens.documents
    counts = [
        len(np.unique(documents[by.indices[start:stop]]))
        for start, stop in zip(by.indptr[:-1], by.indptr[1:], strict=True)
    ]
    often = (np.array(counts) >= n_documents) & directions.vectors.any(axis=1)
    return np.flatnonzero(often).astype(np.int64)


@dataclass(frozen=True, eq=False)
class JudgedSite:
    """A site of a world with the directions whose use is judged there.

    Attributes:
        hookpoint: Name of the site's hookpoint.
        subject: The world's model behind it, and the held-out tokens.
        units: All directions at the site, and what they stand for.
        which: Indices of those that enough rows hold.
    """

    hookpoint: str
    subject: Subject
    units: Units
    which: Int64[np.ndarray, " unit"]

    def judged(self, statistic: Statistic) -> Float64[np.ndarray, " unit"]:
        """Return a statistic of the judged directions.

        The function gets copies of the model, the tokens, the activations and the directions, so that it
        cannot change ours: neither by what it writes into them nor by a hook that it leaves in the model.
        """
        own, ours = self.units.directions, self.subject
        directions = Directions(own.vectors.copy(), own.amounts.copy())
        subject = Subject(
            Downstream(copy.deepcopy(ours.downstream.model), self.hookpoint),
            copy.deepcopy(ours.tokens),
            ours.activations.clone(),
        )
        dtype = torch.get_default_dtype()
        try:
            values: Float64[np.ndarray, " direction"] = np.asarray(
                statistic(subject, directions), np.float64
            )
        finally:
            torch.set_default_dtype(dtype)
        judged: Float64[np.ndarray, " unit"] = values[self.which]
        return judged


def judged_site(
    world: World,
    hookpoint: str,
    seed: int,
    spec: UseSpec,
    units: Literal["latents", "values"] = "latents",
) -> JudgedSite:
    """Return a site's directions and which of them are judged; see `score_world`.

    Raises:
        NotEstimable: no direction is held by enough rows.
    """
    subject = world_subject(world, hookpoint)
    if units == "latents":
        judged = latent_units(world, subject, train_sae(world, hookpoint, seed))
    else:
        judged = value_units(world, subject)
    which = held_often(subject, judged.directions, spec.documents)
    if not len(which):
        raise NotEstimable(f"no direction at {hookpoint} is held by {spec.documents} rows")
    return JudgedSite(hookpoint, subject, judged, which)
