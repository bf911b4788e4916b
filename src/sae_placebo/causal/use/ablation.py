"""What it costs the model to lose a set of directions at a token, by finite ablations.

With x the activation of a token and v what the set's members add to it, two edits are made at one token each:

- zero ablation, x -> x - v: the set is removed;
- resample ablation, x -> x + (a' / a - 1) v: its length a becomes a', that of another firing of it.

The unit of effects is the mean cost of a **full swap**, x -> x': the whole activation becomes that of another
token.

Ablations leave the rest of the activation as it was, the SAE's error included. The cost of an edit is
KL(unedited || edited), summed over the predictions at the token and at a few tokens after it, in nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

from sae_placebo.causal.use.base import DirectionSets, Subject, grouped
from sae_placebo.causal.use.edits import costs_of_edits
from sae_placebo.causal.use.firings import Firings
from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import torch
from sae_placebo.core.progress import Advance, unheard
from sae_placebo.core.spec import numpy_generator

_NOTHING = 1e-9
"""A full swap that costs no more nats than this changes predictions by rounding alone."""


@dataclass(frozen=True, eq=False)
class Ablations:
    """The costs of ablations by firing, in nats.

    Attributes:
        firings: The firings that were ablated.
        zero: The cost of each firing's zero ablation.
        resample: The cost of each firing's resample ablation.
    """

    firings: Firings
    zero: Float64[np.ndarray, " firing"]
    resample: Float64[np.ndarray, " firing"]


def full_swap(subject: Subject, window: int, n_tokens: int, seed: int) -> float:
    """Return the unit of effects: what swapping the activation of a random token costs on average, in nats.

    It is a property of the hookpoint and the tokens, and hangs on no direction. It is measured once and kept.

    Args:
        subject: The model behind the hookpoint, and the tokens.
        window: The predictions at this many tokens after the edited one are compared too.
        n_tokens: At so many tokens it is measured, or at all where there are fewer.
        seed: The seed of the tokens, and of those that take their places.

    Raises:
        NotEstimable: a full swap costs nothing.
    """
    key = ("full swap", window, n_tokens, seed)
    if key in subject.kept:
        return float(subject.kept[key])
    x = subject.activations
    random = numpy_generator(seed, "full swaps")
    tokens = np.sort(random.permutation(len(x))[:n_tokens])
    # a shift of 1 or more around the circle of tokens: every token but itself is equally likely
    other = (tokens + random.integers(1, max(len(x), 2), len(tokens))) % len(x)

    def edits(i: int) -> Float[torch.Tensor, "edit d_in"]:
        change: torch.Tensor = (x[int(other[i])] - x[int(tokens[i])])[None].float()
        return change

    unit = float(costs_of_edits(subject, tokens, edits, 1, window).mean())
    if not unit > _NOTHING:  # nor is a number that is none
        raise NotEstimable(
            f"the swap of a token's whole activation costs {unit:.1g} nats, so predictions do not depend "
            "on this hookpoint in a way that effects could be shares of"
        )
    subject.kept[key] = unit
    return unit


def ablate(
    subject: Subject,
    sets: DirectionSets,
    firings: Firings,
    window: int,
    seed: int,
    advance: Advance = unheard,
) -> Ablations:
    """Return what it costs the model to lose each firing, or to have it resampled.

    Args:
        subject: The model behind the hookpoint, and the tokens.
        sets: The sets of directions that are ablated.
        firings: The firings at which they are ablated.
        window: The predictions at this many tokens after the edited one are compared too.
        seed: The seed of the lengths that firings are resampled to.
        advance: It is called with the number of edits done.

    Source: zero and resample ablation are those of Chan et al. (2022, causal scrubbing) and Li and Janson
    (2024, arXiv 2409.09951). Ablating one latent with the reconstruction error left in place is that of
    Marks et al. (2024, arXiv 2403.19647).
    """
    scale = torch.from_numpy(_resampled(sets, firings, seed).astype(np.float32))
    taken = torch.from_numpy(sets.taken_away(firings.sets, firings.tokens))

    def edits(i: int) -> Float[torch.Tensor, "edit d_in"]:
        return torch.stack([-taken[i], scale[i] * taken[i]])

    cost = costs_of_edits(subject, firings.tokens, edits, 2, window, advance)
    return Ablations(firings, cost[:, 0], cost[:, 1])


def _resampled(sets: DirectionSets, firings: Firings, seed: int) -> Float64[np.ndarray, " firing"]:
    """Return a' / a - 1 of each firing, where a' is the length of a random firing of its set."""
    by, scale = sets.by_set, np.empty(len(firings))
    for part in grouped(firings.sets):
        i = int(firings.sets[part[0]])
        stored = slice(by.indptr[i], by.indptr[i + 1])
        lengths = by.data[stored].astype(np.float64)
        held = lengths[np.searchsorted(by.indices[stored], firings.tokens[part])]
        random = numpy_generator(seed, "lengths that firings are resampled to", sets.kind, i)
        scale[part] = random.choice(lengths, len(part)) / held - 1
    return scale
