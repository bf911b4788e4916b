"""Twins are two models of the same data; one uses a variable that the other only carries along."""

from __future__ import annotations

from dataclasses import replace

from sae_placebo.core.progress import Advance, unheard
from sae_placebo.lab.worlds.base import World
from sae_placebo.lab.worlds.factored import factored
from sae_placebo.lab.worlds.grammar import FactoredSpec


def twins(
    spec: FactoredSpec | None = None, seed: int = 0, advance: Advance = unheard
) -> tuple[World, World]:
    """Return two factored worlds that differ in one thing: the target of the first one depends on b, too.

    Rows, training rows, directions, the frozen embedding, the model's initial weights and everything else in
    the rule have the same bits in both. Rows do not depend on the rule, since they are independent draws of
    tokens. A statistic of b at the embedding that is the same in both worlds measures the data: the worlds
    differ in what the model does with b.

    Args:
        spec: Settings of both worlds; None takes the defaults. The first one has its `b_weight`, or 1 where
            that is 0, and the second one has 0.
        seed: Seed of both worlds.
        advance: Called with 1 after each training step of either model.

    Raises:
        ModelError: one of the models is not within `margin_nats` of its rule.
    """
    spec = spec or FactoredSpec()
    uses = factored(spec.model_copy(update={"b_weight": spec.b_weight or 1.0}), seed, advance)
    passes = factored(spec.model_copy(update={"b_weight": 0.0}), seed, advance)
    return replace(uses, name=f"twin-uses-b-{seed}"), replace(passes, name=f"twin-passes-b-{seed}")
