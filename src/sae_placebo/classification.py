"""What kind of latent: a decision list, read from the top; the first class that holds is the answer.

The classes need token statistics alone: no labels, no judge, no other arm. They are a description,
not a verdict: every one of them is known or expected to occur in SAEs on random models too, and
what counts is how their shares differ between arms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int8, Num, Shaped
from pydantic import Field

from sae_placebo.lazy import pandas
from sae_placebo.spec import Spec


class ClassThresholds(Spec):
    """Where one class ends and the next begins; proposals, meant to be swept."""

    min_firings: int = Field(8, ge=1)
    """Active held-out tokens below which a latent is not judged: of n tokens, a density below
    min_firings / n cannot be told from 0 well enough to describe what the latent fires on."""
    ultra_rare_density: float = Field(1e-6, ge=0, lt=1)
    """Bricken et al. (2023) call latents below this ultra-low density. It binds only when there are
    more than min_firings / 1e-6 held-out tokens."""
    dense_density: float = Field(0.1, gt=0, lt=1)
    """Sun et al. (2025, arXiv 2506.15679) call latents above this dense."""
    mass: float = Field(0.9, gt=0, le=1)
    """Share of a latent's activation that one token, or one family, must hold."""
    recall: float = Field(0.8, ge=0, le=1)
    """Share of a token's occurrences on which a single-token latent must be active."""
    effective_tokens: float = Field(5.0, ge=1)
    """A latent spread over at most this many tokens (2 to the token entropy) is a family."""


@dataclass(frozen=True)
class LatentClass:
    """One class: its name, its rule in words, and whether random models are known to have it."""

    name: str
    definition: str
    on_random_models: str


CLASSES: tuple[LatentClass, ...] = (
    LatentClass(
        "dead",
        "Never active on the held-out tokens.",
        "Yes: known for every architecture and any activations.",
    ),
    LatentClass(
        "ultra_rare",
        "Active on fewer than min_firings held-out tokens, or with a density below "
        "ultra_rare_density: too few to say what it is active on.",
        "Yes: reported for trained models by Bricken et al. (2023); expected for random ones.",
    ),
    LatentClass(
        "dense",
        "Density above dense_density.",
        "Yes: the mean direction, norm and leading principal components exist in any model; "
        "their share there has not been published.",
    ),
    LatentClass(
        "single_token",
        "One token id holds at least `mass` of the latent's activation, and the latent is active "
        "on at least `recall` of that token's occurrences.",
        "Yes: the dominant class there (Bricken et al. 2023; Heap et al. 2025).",
    ),
    LatentClass(
        "token_family",
        "One family of tokens, equal but for case, leading space and suffix, holds at least `mass` "
        "of the activation, or the effective number of tokens is at most effective_tokens. A "
        "latent on one token that is active on only some of its occurrences is here too.",
        "Not reported anywhere; plausible where the embeddings are the trained ones. With re-drawn "
        "embeddings, families "
        "of more than one token can arise by chance alone.",
    ),
    LatentClass(
        "other",
        "None of the above: neither rare nor dense, and not explained by a few tokens.",
        "Yes: Bricken et al. (2023) saw latents on arbitrary subsets of contexts. This class is "
        "not evidence of anything by itself.",
    ),
)
CLASS_NAMES: tuple[str, ...] = tuple(kind.name for kind in CLASSES)


# nine activations out of ten are a mass of 0.9, in single precision too
_ROUNDING = 1e-6


def decide(
    columns: Mapping[str, Num[np.ndarray, "..."]], thresholds: ClassThresholds
) -> Int8[np.ndarray, "..."]:
    """Return each latent's class as an index into `CLASSES`.

    Args:
        columns: `n_active`, `density`, `effective_tokens`, `top_token_mass`, `top_token_recall`
            and `family_mass`, arrays of one shape: latents, or latents by replicates. NaN, as
            dead latents have it, satisfies no rule.
        thresholds: Where the classes end.
    """
    n_active = columns["n_active"]
    density = columns["density"]
    mass, recall = thresholds.mass - _ROUNDING, thresholds.recall - _ROUNDING
    effective_tokens = thresholds.effective_tokens * (1 + _ROUNDING)
    rules: list[Bool[np.ndarray, "..."]] = [
        n_active == 0,
        (n_active < thresholds.min_firings) | (density < thresholds.ultra_rare_density),
        density > thresholds.dense_density,
        (columns["top_token_mass"] >= mass) & (columns["top_token_recall"] >= recall),
        (columns["family_mass"] >= mass) | (columns["effective_tokens"] <= effective_tokens),
    ]
    # from the bottom of the list up, so that the first rule that holds is written last
    found = np.full(np.shape(n_active), len(rules), dtype=np.int8)
    for index in reversed(range(len(rules))):
        found[rules[index]] = index
    return found


def classify(
    table: pandas.DataFrame, thresholds: ClassThresholds | None = None
) -> Shaped[np.ndarray, " latent"]:
    """Return the class name of every row of a latent table.

    Args:
        table: Has the columns that `decide` names; nulls are allowed.
        thresholds: Where the classes end; the defaults where none are given.
    """
    names: tuple[Any, ...] = (
        "n_active",
        "density",
        "effective_tokens",
        "top_token_mass",
        "top_token_recall",
        "family_mass",
    )
    columns = {name: table[name].to_numpy(dtype=np.float64, na_value=np.nan) for name in names}
    found = decide(columns, thresholds or ClassThresholds())
    class_names: Shaped[np.ndarray, " latent"] = np.array(CLASS_NAMES, dtype=object)[found]
    return class_names
