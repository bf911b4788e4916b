"""Shares of replicated latents: those of which the SAE of another seed has a partner."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int8

from sae_placebo.latents.classes.classification import CLASS_NAMES
from sae_placebo.latents.metrics.base import Declared, Number, ratio

CROSSED = ("pair_set", "token_set", "bag_or_window", "partly_explained", "unexplained")
"""Classes of which it is also counted how many latents are in them and replicated."""
_PLACEBO = "none: the share in the placebo arms is the comparison"


def _declared() -> Iterator[Declared]:
    for name in CROSSED:
        yield Declared(
            name=f"share_{name}_replicated",
            unit="share",
            better="neither",
            null=_PLACEBO,
            definition=f"share of all latents in class {name!r} that have a partner in the "
            "SAE of another seed",
            source="This package; see `classification`.",
            counts_latents=True,
        )
    yield Declared(
        name="replicated_with_rule",
        unit="share",
        better="neither",
        null=_PLACEBO,
        definition="share, of the latents with a partner in the SAE of another seed, that a short rule over "
        "tokens, spelling and labels describes: held-out F1 of at least structure.rules.f1",
        source="This package; see `latents.rules`.",
    )
    yield Declared(
        name="replicated_unnamed",
        unit="share",
        better="lower",
        null=_PLACEBO,
        definition="share, of the latents with a partner in the SAE of another seed, that are in class "
        "'unexplained' or 'undecided' and that no such rule describes",
        source="This package; see `latents.rules`.",
    )


DECLARED: dict[str, Declared] = {number.name: number for number in _declared()}


def crossed_shares(
    classes: Int8[np.ndarray, "latent fold"],
    missing: dict[str, str],
    replicated: Bool[np.ndarray, "latent fold"] | None,
    reason: str | None,
) -> dict[str, Number]:
    """Return the share of all latents in each class of `CROSSED` that are replicated.

    Args:
        classes: Class of each latent.
        missing: Why a class cannot be decided for this SAE, by class.
        replicated: Whether the SAE of another seed has a partner; None where that cannot be decided.
        reason: Why it cannot.
    """
    made = {}
    for name in CROSSED:
        why = missing.get(name) or (reason if replicated is None else None)
        share = None
        if why is None:
            share = ((classes == CLASS_NAMES.index(name)) & replicated).mean(axis=0)
        made[f"share_{name}_replicated"] = Number(share, None, why)
    return made


def described_shares(
    classes: Int8[np.ndarray, "latent fold"],
    replicated: Bool[np.ndarray, "latent fold"] | None,
    f1: Float[np.ndarray, "latent fold"],
    least_f1: float,
    reason: str | None,
) -> dict[str, Number]:
    """Return how many replicated latents a rule describes, and how many nothing names.

    Args:
        classes: Class of each latent.
        replicated: Whether the SAE of another seed has a partner; None where that cannot be decided.
        f1: Held-out F1 of each latent's rule; NaN where it has none.
        least_f1: F1 from which a rule describes a latent.
        reason: Why there are no rules, or no SAE of another seed.
    """
    if replicated is None or reason is not None:
        return {
            name: Number(None, None, reason)
            for name in ("replicated_with_rule", "replicated_unnamed")
        }
    described = f1 >= least_f1
    open_ = np.isin(classes, [CLASS_NAMES.index(name) for name in ("unexplained", "undecided")])
    n = replicated.sum(axis=0, dtype=np.float64)

    def share(of: Any) -> Number:
        return Number(
            ratio((of & replicated).sum(axis=0, dtype=np.float64), n),
            None,
            "no latent is replicated",
        )

    return {
        "replicated_with_rule": share(described),
        "replicated_unnamed": share(open_ & ~described),
    }
