"""Groups of directions that may share what they stand for, so that they are also asked about as one.

Structure can be split over several latents, each of which costs little to lose. Two latents are **related**
if their decoder directions are nearly parallel, or if they mostly fire on the same tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from sae_placebo.causal.use.base import Directions
from sae_placebo.causal.use.spec import UseSpec


def related_groups(
    directions: Directions, which: Int64[np.ndarray, " asked"], spec: UseSpec
) -> list[Int64[np.ndarray, "_"]]:
    """Return groups of related directions, each with a member that is asked; no direction is in two.

    A group grows around an asked direction that is in none yet: it takes in those most like it that are
    free, up to `group_size` in all. Members need not be asked themselves. How alike two are is the larger
    of the size of the cosine and of the overlap, each over the least that makes them related.

    Args:
        directions: All directions at the hookpoint.
        which: The directions that are asked, ascending.
        spec: From where on two are related, and how large a group may be.
    """
    held: Any = (directions.amounts != 0).astype(np.float32).tocsc()
    free = directions.n_active > 0
    groups = []
    for i in which:
        if not free[i]:
            continue
        alike = _alikeness(directions, held, int(i), spec)
        near = np.flatnonzero((alike >= 1) & free)
        near = near[near != i]
        order = near[np.argsort(-alike[near], kind="stable")][: spec.group_size - 1]
        if len(order):
            members = np.sort(np.append(order, i)).astype(np.int64)
            free[members] = False
            groups.append(members)
    return groups


def group_of(
    groups: list[Int64[np.ndarray, "_"]], n_directions: int
) -> Int64[np.ndarray, " direction"]:
    """Return the index of each direction's group; -1 where it is in none."""
    found = np.full(n_directions, -1, dtype=np.int64)
    for i, members in enumerate(groups):
        found[members] = i
    return found


def _alikeness(
    directions: Directions, held: Any, i: int, spec: UseSpec
) -> Float64[np.ndarray, " direction"]:
    """Return how alike all directions are to one of them: at least 1 where they are related.

    `held` is scipy CSC [token, direction], 1 where a token holds a direction.
    """
    cosine = np.abs(directions.vectors @ directions.vectors[i]).astype(np.float64)
    both = np.asarray((held.T @ held[:, [i]]).todense(), dtype=np.float64).ravel()
    either = directions.n_active + directions.n_active[i] - both
    overlap = both / np.maximum(either, 1)
    return np.asarray(np.maximum(cosine / spec.group_cosine, overlap / spec.group_overlap))
