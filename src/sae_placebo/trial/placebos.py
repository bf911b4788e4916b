"""Each SAE is compared, latent by latent, with one placebo SAE and with one sibling; they are chosen here.

One arm is the trial's **reference placebo**: a calibrated re-draw of the weights, where there is one, and one
with the embeddings kept, since these are harder to beat. An SAE of any arm is held against the reference
placebo's SAE of the next SAE seed (initial bits are shared between arms, and a shared start could
match latents by itself), in the first re-draw; an arm that is drawn itself, against the next re-draw,
since two arms of one re-draw share the bits of their blocks. So a placebo's own scores are those of
placebo against placebo: A/A.

Where activations are drawn, an SAE is compared if they belong to the tokens, as a surrogate's do: the placebo
read the same ones.
"""

from __future__ import annotations

from typing import NamedTuple

from sae_placebo.core.errors import NotEstimable
from sae_placebo.trial.plan import ArmModel
from sae_placebo.trial.reference import reference_placebo
from sae_placebo.trial.spec import TrialSpec


class Held(NamedTuple):
    """An SAE is named by its arm's model and its own seed."""

    one: ArmModel
    sae_seed: int


def placebo_of(spec: TrialSpec, one: ArmModel, sae: str, sae_seed: int) -> Held:
    """Return the placebo SAE with which the SAE called `sae` of `one` is compared.

    Raises:
        NotEstimable: there is none that read the same tokens; the message says why.
    """
    arm, placebo = spec.arms[one.arm], reference_placebo(spec)
    if arm.rewrites_text:
        raise NotEstimable("its text is rewritten, and no placebo reads the same tokens")
    if arm.data is not None and not arm.data.follows_tokens:
        raise NotEstimable("its activations are drawn, so they belong to no token")
    seeds = spec.model_seeds
    if one.model_seed is None:
        drawn = seeds[0]
    elif len(seeds) > 1:
        drawn = seeds[(seeds.index(one.model_seed) + 1) % len(seeds)]
    elif arm.control.drawn.kind != spec.arms[placebo].control.drawn.kind:
        drawn = one.model_seed
    else:
        raise NotEstimable(
            "it has one re-draw, which shares bits with the placebo's; give at least two model_seeds"
        )
    return Held(ArmModel(placebo, drawn), _next(spec.sae_seeds_of(placebo, sae), sae_seed))


def sibling_of(spec: TrialSpec, one: ArmModel, sae: str, sae_seed: int) -> Held:
    """Return the SAE of the next seed on the same activations.

    Raises:
        NotEstimable: there is one SAE seed.
    """
    seeds = spec.sae_seeds_of(one.arm, sae)
    if len(seeds) < 2 <= len(spec.sae_seeds):
        raise NotEstimable("one SAE is given of this arm; give one of another seed too")
    if len(seeds) < 2:
        raise NotEstimable("one SAE seed; give at least two sae_seeds")
    return Held(one, _next(seeds, sae_seed))


def _next(seeds: tuple[int, ...], seed: int) -> int:
    if seed not in seeds:
        return seeds[0]
    return seeds[(seeds.index(seed) + 1) % len(seeds)]
