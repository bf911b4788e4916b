"""The numbers about one SAE that are made of its latents' classes, partners and directions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int8

from sae_placebo.latents.classes.classification import CLASSES
from sae_placebo.latents.metrics import ladder_shares, replicated
from sae_placebo.latents.metrics.base import Declared, Number, ratio
from sae_placebo.latents.partners.assignment import Sharing

_BY_DIRECTION = {
    "seed_pw_mcc": (
        "cosine",
        "mean cosine of decoder rows, assigned one to one to those of the SAE of another seed",
        "Song et al. 2025 (arXiv 2505.20254), signed.",
    ),
    "seed_mmcs": (
        "cosine",
        "mean over latents of the largest cosine of decoder rows with the SAE of another seed",
        "Sharkey et al. 2022, between two SAEs.",
    ),
    "seed_shared": (
        "share",
        "share of all latents whose encoder and decoder rows are assigned to the same latent of the "
        "other seed, both with a cosine of .7 or more",
        "Paulo and Belrose 2025 (arXiv 2501.16615).",
    ),
}


def _declared() -> Iterator[Declared]:
    for kind in CLASSES:
        yield Declared(
            name=f"share_{kind.name}",
            unit="share",
            better="neither",
            null="none: the share in the placebo arms is the comparison",
            definition=f"share of all latents in class {kind.name!r}: {kind.definition}",
            source="This package; see `classification`.",
            counts_latents=True,
            reads="outputs" if kind.name == "output" else "activations",
        )
    for name, who in (("placebo", "the placebo SAE"), ("seed", "the SAE of another seed")):
        yield Declared(
            name=f"has_{name}_partner",
            unit="share",
            better="neither",
            null="the share when one side's tokens are moved within their documents",
            definition=f"share of firing latents with a partner in {who}: a latent whose activations on "
            "the same tokens correlate above the threshold, and above chance at its firing rate",
            source="Bricken et al. 2023 (universality, by correlation). Differs: the threshold and the "
            "nulls are of this package.",
            counts_latents=True,
        )


def _of_directions() -> Iterator[Declared]:
    for name, (unit, definition, source) in _BY_DIRECTION.items():
        yield Declared(
            name=name,
            unit=unit,
            better="neither",
            null="the same of random directions, as many in as many dimensions",
            definition=definition,
            source=source,
            counts_latents=name == "seed_shared",
        )


DECLARED: dict[str, Declared] = {
    number.name: number
    for number in (
        *_declared(),
        *replicated.DECLARED.values(),
        *ladder_shares.DECLARED.values(),
        *_of_directions(),
    )
}
"""What each number of a profile is, by name."""


WITHOUT_LADDER = tuple(
    f"share_{kind.name}"
    for kind in itertools.takewhile(lambda kind: kind.name != "positional", CLASSES)
)
"""Shares of the classes that are decided before any rule reads the ladder."""


def class_shares(
    classes: Int8[np.ndarray, "latent fold"], missing: dict[str, str]
) -> dict[str, Number]:
    """Return the share of latents in each class, with a value per fold.

    Args:
        classes: Class of each latent.
        missing: Why a class cannot be decided for this SAE, by class.
    """
    made: dict[str, Number] = {}
    for index, kind in enumerate(CLASSES):
        why = missing.get(kind.name)
        share = (classes == index).mean(axis=0)
        made[f"share_{kind.name}"] = Number(None if why else share, None, why)
    return made


def partner_shares(in_placebo: Any, in_sibling: Any) -> dict[str, Number]:
    """Return the shares of latents with a partner, with a value per fold.

    Args:
        in_placebo: Partners in the placebo SAE, a `latents.profile.FoundPartners`.
        in_sibling: Partners in the SAE of another seed.
    """
    made: dict[str, Number] = {}
    for name, partners in (("placebo", in_placebo), ("seed", in_sibling)):
        made[f"has_{name}_partner"] = _partner_share(partners)
    return made


def _partner_share(partners: Any) -> Number:
    """Return the share of latents with a partner, and the mean of the null as its null."""
    if partners.has is None:
        return Number(None, None, partners.reason)
    fires = np.isfinite(partners.r)
    paired = (partners.has & fires).sum(axis=0, dtype=np.float64)
    share = ratio(paired, fires.sum(axis=0, dtype=np.float64))
    known = partners.null_has[np.isfinite(partners.null_has)]
    return Number(share, float(known.mean()) if len(known) else None, "no latent fires")


def of_sharing(shared: Sharing | None, n_folds: int, reason: str | None) -> dict[str, Number]:
    """Return how much two SAEs of one model share by their directions, which depend on no documents.

    Args:
        shared: What the SAE and that of another seed share; None where there is no other.
        n_folds: How many values every number has; they are all the same.
        reason: Why there is no other.
    """
    if shared is None:
        return {name: Number(None, None, reason) for name in _BY_DIRECTION}
    made = {
        "seed_pw_mcc": (shared.pw_mcc.value, shared.pw_mcc.null),
        "seed_mmcs": (shared.mmcs.value, shared.mmcs.null),
        "seed_shared": (shared.share, shared.null_share),
    }
    return {name: Number(np.full(n_folds, value), null) for name, (value, null) in made.items()}
