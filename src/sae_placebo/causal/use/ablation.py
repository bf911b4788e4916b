"""What it costs the model to lose a direction at a token: finite ablations, and the full swap.

The activation loses what it holds of the direction, or gets what another firing held; the rest of it,
the SAE's error included, stays. The cost is the divergence of later predictions, in nats per firing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from sae_placebo.causal.use.base import Directions, Subject
from sae_placebo.causal.use.downstream import Downstream
from sae_placebo.causal.use.firings import Firings
from sae_placebo.causal.use.side_by_side import side_by_side
from sae_placebo.core.lazy import torch
from sae_placebo.core.progress import Advance, unheard
from sae_placebo.core.spec import numpy_generator


@dataclass(frozen=True, eq=False)
class Ablations:
    """Costs of edits, by firing; of the full swap, by token visited.

    Attributes:
        firings: Where what was ablated.
        amounts: What each firing's token holds of its direction, in model units.
        zero: Nats per firing when it is removed.
        resample: Nats per firing when it becomes what another firing of the direction held.
        full: Nats per token when the whole activation becomes another token's.
        visited: The tokens of `full`.
    """

    firings: Firings
    amounts: Float64[np.ndarray, " firing"]
    zero: Float64[np.ndarray, " firing"]
    resample: Float64[np.ndarray, " firing"]
    full: Float64[np.ndarray, " visited"]
    visited: Int64[np.ndarray, " visited"]

    @property
    def full_swap(self) -> float:
        """Mean cost of a full swap, in nats per token: the unit of effects."""
        return float(self.full.mean())


def ablate(
    subject: Subject,
    directions: Directions,
    firings: Firings,
    window: int,
    seed: int,
    advance: Advance = unheard,
) -> Ablations:
    """Return what each firing's ablation costs the model.

    Args:
        subject: The model behind the hookpoint, and the tokens.
        directions: What is ablated.
        firings: Where; the edits of one token share a pass.
        window: Later tokens whose predictions are compared.
        seed: Names the draws of the values that a firing is resampled to and swapped with.
        advance: Told how many firings are done.

    Source: zero and resample ablation as in Chan et al. (2022, causal scrubbing) and Li and Janson
    (2024, arXiv 2409.09951); of one latent, with the reconstruction error left in place, as in Marks et
    al. (2024, arXiv 2403.19647).
    """
    random = numpy_generator(seed, "values that firings are resampled to")
    own, other = _amounts(directions, firings, random.random(len(firings)))
    visited = np.unique(firings.tokens)
    # any token but itself, all equally likely
    swap = random.integers(1, len(subject.activations), len(visited))
    swap = (visited + swap) % len(subject.activations)
    zero, resample = np.zeros(len(firings)), np.zeros(len(firings))
    full = np.zeros(len(visited))
    starts = np.append(np.searchsorted(firings.tokens, visited), len(firings))
    x = subject.activations

    def work(model: Downstream, row: int, part: Int64[np.ndarray, " here"]) -> int:
        clean = model.read(subject.ids_of(row))
        for i in part:
            token, here = visited[i], slice(starts[i], starts[i + 1])
            vectors = torch.from_numpy(directions.vectors[firings.directions[here]])
            scale = torch.from_numpy(
                np.concatenate([-own[here], other[here] - own[here]]).astype(np.float32)
            )
            deltas = torch.cat(
                [torch.cat([vectors, vectors]) * scale[:, None], (x[swap[i]] - x[token])[None]]
            )
            position = int(subject.tokens.places[token, 1])
            cost = model.kl_of_edits(clean, position, deltas, window).double().cpu().numpy()
            n = here.stop - here.start
            zero[here], resample[here], full[i] = cost[:n], cost[n : 2 * n], cost[2 * n]
        return int(sum(starts[i + 1] - starts[i] for i in part))

    for n in side_by_side(subject.downstream, list(subject.by_row(visited)), work):
        advance(n)
    return Ablations(firings, own, zero, resample, full, visited)


def _amounts(
    directions: Directions, firings: Firings, drawn: Float64[np.ndarray, " firing"]
) -> tuple[Float64[np.ndarray, " firing"], Float64[np.ndarray, " firing"]]:
    """Return what each firing's token holds, and what a random firing of the same direction does."""
    by = directions.by_direction
    own, other = np.empty(len(firings)), np.empty(len(firings))
    order = np.argsort(firings.directions, kind="stable")
    cuts = np.flatnonzero(np.diff(firings.directions[order])) + 1
    for part in np.split(order, cuts) if len(order) else ():
        direction = firings.directions[part[0]]
        here = slice(by.indptr[direction], by.indptr[direction + 1])
        values = by.data[here]
        own[part] = values[np.searchsorted(by.indices[here], firings.tokens[part])]
        other[part] = values[(drawn[part] * len(values)).astype(np.int64)]
    return own, other
