"""A toy that no memory of this machine can hold is refused before anything is drawn.

As in `trial.sizes`, needs are lower bounds, made of the settings alone: a toy that passes may need more.
"""

from __future__ import annotations

from sae_placebo.core.errors import SpecError
from sae_placebo.core.memory import shown_bytes, total_memory
from sae_placebo.lab.generators.base import GeneratorSpec
from sae_placebo.saes import PenalizedSpec, SAESpec

SCALE_TOKENS = 32_768
"""Tokens from which the scale of a generator is estimated; all are in memory at once."""
_NUMBER, _INDEX = 4, 8
"""Bytes of a number in float32, and of a latent's index."""
_COPIES = 3
"""Of a trained tensor: itself, and Adam's two means."""


def check_generator(generator: GeneratorSpec) -> None:
    """Refuse a generator whose directions or tokens this machine's memory can never hold.

    Raises:
        SpecError: it is one.
    """
    d_in, directions = generator.d_in, generator.least_directions
    of_tokens = f"d_in is {d_in:,}: the {SCALE_TOKENS:,} tokens that give its scale"
    _refuse_beyond(SCALE_TOKENS * d_in * _NUMBER, of_tokens, "lower d_in")
    of_directions = (
        f"the generator {generator.kind!r} has {directions:,} directions or more, and these"
    )
    _refuse_beyond(directions * d_in * _NUMBER, of_directions, "lower its number of features")


def check_training(
    generator: GeneratorSpec, sae: SAESpec, n_seeds: int, heldout_tokens: int
) -> None:
    """Refuse an SAE that this machine's memory can never hold in training, or whose codes it cannot.

    Args:
        generator: Draws the tokens.
        sae: Settings of the SAE.
        n_seeds: Number of SAEs, which are trained one after the other and kept.
        heldout_tokens: Number of tokens that are encoded at once.

    Raises:
        SpecError: it is one.
    """
    check_generator(generator)
    weights = 2 * generator.d_in * sae.d_sae * _NUMBER
    of_sae = f"an SAE has {sae.d_sae:,} latents: its weights in training"
    _refuse_beyond(weights * _COPIES, of_sae, "lower its width (d_sae)")
    of_all = f"the {n_seeds:,} SAEs of {sae.d_sae:,} latents"
    _refuse_beyond(weights * n_seeds, of_all, "lower the number of seeds or the width (d_sae)")
    if isinstance(sae, PenalizedSpec):  # it is scored before training too, with that many active
        share = sae.first_share() or sae.active_at_start
        active = int(heldout_tokens * sae.d_sae * share)
        of_codes = (
            f"an SAE has {sae.d_sae:,} latents: before training {share:.3g} of them are active, and their "
            f"codes of {heldout_tokens:,} held-out tokens"
        )
        _refuse_beyond(active * (_NUMBER + _INDEX), of_codes, "lower its width (d_sae)")


def check_dictionaries(d_in: int, n_features: int, n_latents: int) -> None:
    """Refuse random dictionaries that this machine's memory can never hold beside their cosines.

    Raises:
        SpecError: they are so.
    """
    numbers = d_in * (n_features + n_latents) + n_features * n_latents
    of_rows = f"{n_features:,} features and {n_latents:,} latents in {d_in:,} dimensions, and their cosines,"
    _refuse_beyond(numbers * _NUMBER, of_rows, "lower one of the three")


def _refuse_beyond(n_bytes: int, what: str, remedy: str) -> None:
    memory = total_memory()
    if memory is not None and n_bytes > memory:
        raise SpecError(
            f"{what} take at least {shown_bytes(n_bytes)} of memory, and this machine has "
            f"{shown_bytes(memory)}; {remedy}"
        )
