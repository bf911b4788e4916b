"""The source tokens of an attention head: from which earlier tokens it takes what it adds to a latent."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from sae_placebo.causal.circuits.heads import noted_patterns
from sae_placebo.causal.circuits.streams import StreamReader
from sae_placebo.causal.use.base import Subject
from sae_placebo.core.errors import ModelError, NotEstimable
from sae_placebo.core.lazy import pandas, torch
from sae_placebo.models.forward_pass import run_until_stopped

_AGREE = 1e-3
"""Two sums over source tokens agree if they differ by no more than this share of their terms' sizes."""


def sources(
    subject: Subject,
    encoder: Float[torch.Tensor, " d_in"],
    layer: int,
    head: int,
    firings: Int64[np.ndarray, " firing"],
    n: int = 5,
) -> pandas.DataFrame:
    """Return from which tokens a head takes what it adds to a latent's pre-activation.

    A head's output at token t is a sum over the tokens s that it attends to. So what it takes from s is
    exactly c_ts = a_ts e . W_O v_s, with a_ts its attention, v_s its value at s, and e the latent's encoder.
    It is checked that these sum to e . out_t, with out_t the head's output.

    Args:
        subject: The model, and its tokens.
        encoder: The latent's encoder, in model units.
        layer: The layer of the head.
        head: The number of the head in its layer.
        firings: The tokens t, as indices into the subject's.
        n: How many sources are returned for each of them, those of the largest |c|.

    Returns:
        One row per source: firing (the token t), its row and position; source (its position), source_id,
        source_text; attention, contribution (c), and `whole`, the sum of c over all sources. The last two
        are in the units of the pre-activation.

    Raises:
        NotEstimable: the head is not before the hookpoint.
        ModelError: the attention does not return its weights, or its output is not the sum of values that
            they weigh.
    """
    stream = StreamReader(subject)
    if layer not in stream.attentions or not 0 <= head < stream.attentions[layer].n_heads:
        raise NotEstimable(
            f"L{layer}.H{head} does not write to {subject.downstream.hookpoint.name}: no such head there."
        )
    table, records = subject.tokens, []
    for firing in firings:
        row, position = (int(i) for i in table.places[firing])
        ids = subject.ids_of(row)[: position + 1]
        attention, parts = _contributions(stream, encoder, layer, head, ids)
        for source in np.argsort(-np.abs(parts), kind="stable")[:n]:
            token = int(ids[source])
            records.append(
                {
                    "firing": int(firing),
                    "row": row,
                    "position": position,
                    "source": int(source),
                    "source_id": token,
                    "source_text": table.vocabulary[token],
                    "attention": float(attention[source]),
                    "contribution": float(parts[source]),
                    "whole": float(parts.sum()),
                }
            )
    return pandas.DataFrame(records)


def _contributions(
    stream: StreamReader,
    encoder: Float[torch.Tensor, " d_in"],
    layer: int,
    head: int,
    ids: Int64[torch.Tensor, " pos"],
) -> tuple[Float[np.ndarray, " pos"], Float[np.ndarray, " pos"]]:
    """Return the head's attention from the last token to every token, and what it takes from each."""
    attention = stream.attentions[layer]
    patterns: list[torch.Tensor] = []
    seen: dict[str, Any] = {}

    def keep_values(_: Any, args: Any, output: torch.Tensor) -> None:
        seen["values"] = output.reshape(len(ids), -1).float()

    def keep_mixed(_: Any, args: Any, output: torch.Tensor) -> None:
        seen["mixed"] = args[0].reshape(len(ids), -1).float()[-1]
        seen["scale"] = stream.scale(layer, output.reshape(len(ids), -1).float()[-1:])

    with ExitStack() as stack:
        stack.callback(attention.value.module.register_forward_hook(keep_values).remove)
        stack.callback(attention.output.register_forward_hook(keep_mixed).remove)
        stack.enter_context(
            noted_patterns(
                stream.model, lambda _, p: patterns.append(p[0, head, -1]), range(layer, layer + 1)
            )
        )
        run_until_stopped(stream.model, ids[None])
    if not patterns:
        raise ModelError(
            f"attention of layer {layer} of {type(stream.model).__name__} does not return its weights."
        )
    weight = stream.output_weight(layer)[head].to(seen["mixed"].device)
    read = encoder.detach().float().to(weight.device) @ weight * seen["scale"].reshape(())
    columns = torch.from_numpy(attention.value.columns[attention.group[head]])
    pattern = patterns[0].float()
    parts = pattern * (seen["values"][:, columns] @ read)
    width = attention.head_dim
    whole = seen["mixed"][head * width : (head + 1) * width] @ read
    if float((parts.sum() - whole).abs()) > _AGREE * float(parts.abs().sum() + whole.abs() + 1e-6):
        raise ModelError(
            f"what L{layer}.H{head} of {type(stream.model).__name__} writes is not its attention times "
            "its values, so its source tokens are not known."
        )
    return pattern.cpu().numpy(), parts.cpu().numpy()
