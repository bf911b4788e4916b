"""What it costs the model to lose a direction at a token, by finite ablations.

With x the activation of a token, d the unit direction and a the amount of it that the token holds, three
edits are made at one token each:

- zero ablation, x -> x - a d: the direction is removed;
- resample ablation, x -> x + (a' - a) d: its amount becomes a', that of another firing of it;
- the full swap, x -> x': the whole activation becomes that of another token. Its mean cost is the unit of
  effects.

Ablations leave the rest of the activation as it was, the SAE's error included. The cost of an edit is
KL(unedited || edited), summed over the predictions at the token and at a few tokens after it, in nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from sae_placebo.causal.use.base import Directions, Subject, grouped
from sae_placebo.causal.use.downstream import Downstream
from sae_placebo.causal.use.firings import Firings
from sae_placebo.causal.use.parallel_rows import side_by_side
from sae_placebo.core.lazy import torch
from sae_placebo.core.progress import Advance, unheard
from sae_placebo.core.spec import numpy_generator


@dataclass(frozen=True, eq=False)
class Ablations:
    """The costs of ablations by firing, and of full swaps by token.

    Attributes:
        firings: The firings that were ablated.
        amounts: The amount of its direction that each firing's token holds, in model units.
        zero: The cost of each firing's zero ablation, in nats.
        resample: The cost of each firing's resample ablation, in nats.
        full: The cost of a full swap at each token in `visited`, in nats.
        visited: The tokens of the firings, each once, ascending.
    """

    firings: Firings
    amounts: Float64[np.ndarray, " firing"]
    zero: Float64[np.ndarray, " firing"]
    resample: Float64[np.ndarray, " firing"]
    full: Float64[np.ndarray, " visited"]
    visited: Int64[np.ndarray, " visited"]

    @property
    def full_swap(self) -> float:
        """The mean cost of a full swap, in nats per token, which is the unit of effects."""
        return float(self.full.mean())


def ablate(
    subject: Subject,
    directions: Directions,
    firings: Firings,
    window: int,
    seed: int,
    advance: Advance = unheard,
) -> Ablations:
    """Return what it costs the model to lose each firing, and to have each of their tokens swapped.

    All edits of one token share one pass of the model.

    Args:
        subject: The model behind the hookpoint, and the tokens.
        directions: The directions that are ablated.
        firings: The firings at which they are ablated.
        window: The predictions at this many tokens after the edited one are compared too.
        seed: The seed of the amounts that firings are resampled to, and of the tokens swapped in.
        advance: It is called with the number of firings done.

    Source: zero and resample ablation are those of Chan et al. (2022, causal scrubbing) and Li and Janson
    (2024, arXiv 2409.09951). Ablating one latent with the reconstruction error left in place is that of
    Marks et al. (2024, arXiv 2403.19647).
    """
    random = numpy_generator(seed, "values that firings are resampled to")
    held, other = _amounts(directions, firings, random.random(len(firings)))
    visited = np.unique(firings.tokens)
    # a shift of 1 or more around the circle of tokens: every token but itself is equally likely
    swap = random.integers(1, len(subject.activations), len(visited))
    swap = (visited + swap) % len(subject.activations)
    zero, resample = np.zeros(len(firings)), np.zeros(len(firings))
    full = np.zeros(len(visited))
    starts = np.append(np.searchsorted(firings.tokens, visited), len(firings))
    x = subject.activations

    def work(model: Downstream, row: int, part: Int64[np.ndarray, " part"]) -> int:
        clean = model.read(subject.ids_of(row))
        for i in part:
            token, at = visited[i], slice(starts[i], starts[i + 1])
            vectors = torch.from_numpy(directions.vectors[firings.directions[at]])
            # zero ablations, then resample ablations, then the full swap
            scale = torch.from_numpy(
                np.concatenate([-held[at], other[at] - held[at]]).astype(np.float32)
            )
            deltas = torch.cat(
                [torch.cat([vectors, vectors]) * scale[:, None], (x[swap[i]] - x[token])[None]]
            )
            position = int(subject.tokens.places[token, 1])
            cost = model.kl_of_edits(clean, position, deltas, window).double().cpu().numpy()
            n = at.stop - at.start
            zero[at], resample[at], full[i] = cost[:n], cost[n : 2 * n], cost[2 * n]
        return int(sum(starts[i + 1] - starts[i] for i in part))

    for n in side_by_side(subject.downstream, list(subject.by_row(visited)), work):
        advance(n)
    return Ablations(firings, held, zero, resample, full, visited)


def _amounts(
    directions: Directions, firings: Firings, drawn: Float64[np.ndarray, " firing"]
) -> tuple[Float64[np.ndarray, " firing"], Float64[np.ndarray, " firing"]]:
    """Return the amount that each firing's token holds, and that of a random firing of its direction.

    The random firing is picked by `drawn`, uniform from 0 to 1, among all firings of the direction.
    """
    columns = directions.by_direction
    held, other = np.empty(len(firings)), np.empty(len(firings))
    for part in grouped(firings.directions):
        direction = firings.directions[part[0]]
        stored = slice(columns.indptr[direction], columns.indptr[direction + 1])
        values = columns.data[stored]
        held[part] = values[np.searchsorted(columns.indices[stored], firings.tokens[part])]
        other[part] = values[(drawn[part] * len(values)).astype(np.int64)]
    return held, other
