"""What a finished trial says of the latents of an attribution graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64

from sae_placebo.causal.circuits.graph import Graph
from sae_placebo.core.lazy import pandas, torch
from sae_placebo.latents.base import Encoded, TokenTable
from sae_placebo.trial.graph_inputs import GraphInputs

if TYPE_CHECKING:
    from sae_placebo.trial.results import Trial

_KEYS = ["hookpoint", "latent"]
_SAID = ["class", "origin", "evidence"]


def latents_of(trial: Trial, inputs: GraphInputs, graph: Graph) -> pandas.DataFrame:
    """Return one row per latent of a graph, with its influence and what the trial's tables say of it.

    Columns are those of `PromptGraph.latents`.
    """
    nodes = [n for n in graph.nodes if n.kind == "latent"]
    table = pandas.DataFrame(
        {
            "hookpoint": [graph.hookpoints[n.depth - 1] for n in nodes],
            "latent": np.array([n.index for n in nodes], dtype=np.int64),
            "influence": np.array([n.influence for n in nodes], dtype=np.float64),
        }
    )
    table = table.groupby(_KEYS, as_index=False, sort=False).agg(
        influence=("influence", "sum"), n_positions=("influence", "size")
    )
    said = _of_these(trial.latents, inputs, _SAID)
    tied = _of_these(trial.use, inputs, ["tied"])
    for other in (said, tied):
        table = table.merge(other, on=_KEYS, how="left", validate="1:1")
    table["tied"] = table["tied"].astype(np.float64)
    table["passes"] = (table["origin"] == "not_explained") | (table["tied"] == 1)
    return table.sort_values("influence", ascending=False, kind="stable").reset_index(drop=True)


def _of_these(table: Any, inputs: GraphInputs, columns: list[str]) -> pandas.DataFrame:
    """Return some columns of the rows of a trial's table that are about the SAEs of a graph."""
    wanted = [*_KEYS, *columns]
    if not set(wanted) <= set(table.columns):  # the trial asked about no SAE
        empty = {"hookpoint": np.zeros(0, dtype=object), "latent": np.zeros(0, dtype=np.int64)}
        return pandas.DataFrame(empty | {name: np.zeros(0, dtype=object) for name in columns})
    one, _, sae, sae_seed = inputs.places[0]
    seeds = table["model_seed"].astype("Int64")
    drawn = seeds.isna() if one.model_seed is None else (seeds == one.model_seed).fillna(False)
    mine = (table["arm"] == one.arm) & (table["sae"] == sae) & (table["sae_seed"] == sae_seed)
    return table.loc[mine & drawn.astype(bool), wanted].astype({"latent": np.int64})


def on_the_same_tokens(first: Encoded, second: Encoded) -> tuple[Encoded, Encoded]:
    """Return two SAEs on the tokens that both have read: each hookpoint has outliers of its own."""
    width = first.tokens.rows.token_ids.shape[1]
    keys = [one.tokens.places @ np.array([width, 1]) for one in (first, second)]
    if np.array_equal(*keys):
        return first, second
    shared = np.intersect1d(*keys)
    found = [
        _part(one, np.flatnonzero(np.isin(key, shared)))
        for one, key in zip((first, second), keys, strict=True)
    ]
    return found[0], found[1]


def _part(one: Encoded, which: Int64[np.ndarray, " part"]) -> Encoded:
    tokens = TokenTable(one.tokens.rows, one.tokens.places[which], one.tokens.vocabulary)
    return Encoded(one.sae, tokens, one.codes[which], one.activations[torch.from_numpy(which)])
