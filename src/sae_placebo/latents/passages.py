"""Top activating passages of the latents that the report shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from sae_placebo.core.lazy import pandas
from sae_placebo.core.spec import numpy_generator
from sae_placebo.core.tables import KEYS
from sae_placebo.core.tables.latents import PASSAGES
from sae_placebo.latents.base import Encoded, TokenTable
from sae_placebo.latents.measurement import MeasurementSpec


def passages(reading: Encoded, latents: Any, spec: MeasurementSpec, seed: int) -> Any:
    """Return the top activating passages of latents that are drawn at random within each class.

    Columns: latent, rank (0 is the strongest), document (its name), tokens (their texts), activations (one
    for each token, null where the position is masked) and peak (place of the strongest among the tokens).

    Args:
        reading: The SAE and its tokens.
        latents: Latent table with the columns latent, class and n_active; dead latents are not drawn.
        spec: How many latents, passages and tokens there are.
        seed: It names the draw.
    """
    draw = numpy_generator(seed, "shown latents")
    chosen: list[int] = []
    alive = latents[latents["n_active"] > 0]
    for _, group in alive.groupby("class", sort=True):
        ids = group["latent"].to_numpy()
        chosen += draw.choice(ids, size=min(len(ids), spec.shown_per_class), replace=False).tolist()
    return passages_of(reading, chosen, spec)


def passages_of(reading: Encoded, chosen: Sequence[int], spec: MeasurementSpec) -> Any:
    """Return the top activating passages of the chosen latents, with the columns of `passages`.

    Each passage of a latent is from another document.
    """
    tokens, by_latent = reading.tokens, reading.by_latent
    flat = np.full(tokens.rows.token_ids.shape, -1, dtype=np.int64)
    flat[tokens.places[:, 0], tokens.places[:, 1]] = np.arange(len(tokens.places))
    rows: list[dict[str, Any]] = []
    for latent in sorted(chosen):
        part = slice(by_latent.indptr[latent], by_latent.indptr[latent + 1])
        at, values = by_latent.indices[part], by_latent.data[part]
        strength = dict(zip(at.tolist(), values.tolist(), strict=True))
        documents: set[int] = set()
        for index in at[np.argsort(-values, kind="stable")]:
            owner = int(tokens.documents[index])
            if owner in documents:
                continue
            documents.add(owner)
            window = _window(tokens, flat, strength, int(index), spec)
            rows.append({"latent": latent, "rank": len(documents) - 1} | window)
            if len(documents) == spec.passages:
                break
    return pandas.DataFrame(rows, columns=list(PASSAGES.without(KEYS)))


def _window(
    tokens: TokenTable,
    flat: Int64[np.ndarray, "row pos"],
    strength: Mapping[int, float],
    index: int,
    spec: MeasurementSpec,
) -> dict[str, Any]:
    """Return the tokens around one activation, with the latent's activation at each."""
    row, position = (int(v) for v in tokens.places[index])
    first = max(1, position - spec.tokens_before)
    last = min(int(tokens.rows.lengths[row]), position + spec.tokens_after + 1)
    measured = flat[row, first:last].tolist()
    return {
        "document": tokens.rows.names[int(tokens.rows.documents[row])],
        "tokens": [tokens.vocabulary[i] for i in tokens.rows.token_ids[row, first:last]],
        "activations": [strength.get(i, 0.0) if i >= 0 else None for i in measured],
        "peak": position - first,
    }
