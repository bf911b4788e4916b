"""What edits of single tokens cost, many tokens in one go."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Float64, Int64

from sae_placebo.causal.use.base import Subject, grouped
from sae_placebo.causal.use.downstream import Downstream
from sae_placebo.causal.use.parallel_rows import side_by_side
from sae_placebo.core.lazy import torch
from sae_placebo.core.progress import Advance, unheard

_EDITS = 128
"""How many edits of one token are run in one pass."""


def costs_of_edits(
    subject: Subject,
    tokens: Int64[np.ndarray, " firing"],
    edits: Callable[[int], Float[torch.Tensor, "edit d_in"]],
    n_edits: int,
    window: int,
    advance: Advance = unheard,
    base: Callable[[int], Float[torch.Tensor, "pos d_in"]] | None = None,
) -> Float64[np.ndarray, "firing edit"]:
    """Return KL(unedited || edited) of each edit, in nats, summed over a token and the window behind it.

    Edits of the same token share passes. Each firing is worked on by one thread, so `edits` and `base` must
    not change anything.

    Args:
        subject: The model behind the hookpoint, and the tokens.
        tokens: The token of each firing.
        edits: It returns what each edit of the i-th firing adds to its token's activation.
        n_edits: How many edits each firing has.
        window: The predictions at this many later tokens are compared too.
        advance: It is called with the number of edits done.
        base: It returns what is added to every position of a row beside the edit; None for nothing.
    """
    found = np.zeros((len(tokens), n_edits))

    def work(model: Downstream, row: int, part: Int64[np.ndarray, " part"]) -> int:
        read = model.read(subject.ids_of(row))
        if base is not None:
            read = model.on_top(read, base(row))
        for group in grouped(tokens[part]):
            together = part[group]
            position = int(subject.tokens.places[tokens[together[0]], 1])
            changes = torch.cat([edits(int(i)) for i in together])
            costs = [
                model.kl_of_edits(read, position, chunk, window)
                for chunk in torch.split(changes, _EDITS)
            ]
            found[together] = torch.cat(costs).double().cpu().numpy().reshape(len(together), -1)
        return len(part) * n_edits

    for n in side_by_side(subject.downstream, list(subject.by_row(tokens)), work):
        advance(n)
    return found
