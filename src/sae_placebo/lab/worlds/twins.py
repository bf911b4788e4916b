"""Twins: two models of the same data, of which one uses a variable that the other passes along."""

from __future__ import annotations

from dataclasses import replace

from sae_placebo.lab.worlds.base import World
from sae_placebo.lab.worlds.factored import factored
from sae_placebo.lab.worlds.grammar import FactoredSpec


def twins(spec: FactoredSpec | None = None, seed: int = 0) -> tuple[World, World]:
    """Return two factored worlds that differ in one thing: the first one's target depends on b, too.

    Rows, training rows, directions, the frozen embedding, the model's start and everything else of the
    rule have the same bits in both: rows are independent draws of tokens, and no rule has a part in
    them. A statistic of b at the embedding that is the same in both measures the data; what the model
    makes of b is where they differ.

    Args:
        spec: Settings of both; `b_weight` is that of the first, and 1 where it is 0. The second has 0.
        seed: Names both.

    Raises:
        ModelError: one of the models is not within `margin_nats` of its rule.
    """
    spec = spec or FactoredSpec()
    uses = factored(spec.model_copy(update={"b_weight": spec.b_weight or 1.0}), seed)
    passes = factored(spec.model_copy(update={"b_weight": 0.0}), seed)
    return replace(uses, name=f"twin-uses-b-{seed}"), replace(passes, name=f"twin-passes-b-{seed}")
