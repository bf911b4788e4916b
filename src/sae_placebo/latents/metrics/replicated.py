"""Shares of replicated latents: those of which the SAE of another seed has a partner."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Int8

from sae_placebo.latents.classes.classification import CLASS_NAMES
from sae_placebo.latents.metrics.base import Declared, Number, ratio

CROSSED = ("pair_set", "token_set", "bag_or_window", "partly_explained", "unexplained")
"""Classes whose share of the replicated latents is counted beside their share of all."""
_OF = "replicated latents"
_PLACEBO = "none: the share in the placebo arms is the comparison"


def _declared() -> Iterator[Declared]:
    for name in CROSSED:
        yield Declared(
            name=f"replicated_{name}",
            unit="share",
            better="neither",
            null=_PLACEBO,
            definition="share, of the latents with a partner in the SAE of another seed, of those in class "
            f"{name!r}",
            source="This package; see `classification`.",
            share_of=_OF,
        )
    yield Declared(
        name="replicated_with_rule",
        unit="share",
        better="neither",
        null=_PLACEBO,
        definition="share, of the latents with a partner in the SAE of another seed, that a short rule over "
        "tokens, spelling and labels describes: held-out F1 of at least structure.rules.f1",
        source="This package; see `latents.rules`.",
        share_of=_OF,
    )
    yield Declared(
        name="replicated_unnamed",
        unit="share",
        better="lower",
        null=_PLACEBO,
        definition="share, of the latents with a partner in the SAE of another seed, that are in class "
        "'unexplained' or 'undecided' and that no such rule describes",
        source="This package; see `latents.rules`.",
        share_of=_OF,
    )


DECLARED: dict[str, Declared] = {number.name: number for number in _declared()}


def crossed_shares(
    classes: Int8[np.ndarray, "latent fold"],
    missing: dict[str, str],
    replicated: Bool[np.ndarray, "latent fold"] | None,
    reason: str | None,
) -> dict[str, Number]:
    """Return the share of each class of `CROSSED` among the replicated latents.

    Args:
        classes: Class of each latent.
        missing: Why a class cannot be decided for this SAE, by class.
        replicated: Whether the SAE of another seed has a partner; None where that cannot be decided.
        reason: Why it cannot.
    """
    made = {}
    for name in CROSSED:
        why = missing.get(name) or (reason if replicated is None else None)
        number = Number(None, None, why)
        if why is None and replicated is not None:
            number = _share(classes == CLASS_NAMES.index(name), replicated)
        made[f"replicated_{name}"] = number
    return made


def _share(
    of: Bool[np.ndarray, "latent fold"], replicated: Bool[np.ndarray, "latent fold"]
) -> Number:
    """Return the share of replicated latents of which something holds."""
    n = replicated.sum(axis=0, dtype=np.float64)
    held = (of & replicated).sum(axis=0, dtype=np.float64)
    return Number(ratio(held, n), None, "no latent is replicated")


def named_shares(
    classes: Int8[np.ndarray, "latent fold"],
    missing: dict[str, str],
    replicated: Bool[np.ndarray, "latent fold"] | None,
    described: Bool[np.ndarray, "latent fold"],
    reason: str | None,
) -> dict[str, Number]:
    """Return how many replicated latents neither a class nor a rule says anything of.

    Args:
        classes: Class of each latent.
        missing: Why a class cannot be decided for this SAE, by class.
        replicated: Whether the SAE of another seed has a partner; None where that cannot be decided.
        described: Whether a rule describes a latent.
        reason: Why there are no rules, or no SAE of another seed.
    """
    why = reason or missing.get("unexplained")
    if replicated is None or why is not None:
        return {"replicated_unnamed": Number(None, None, why)}
    unnamed = np.isin(classes, [CLASS_NAMES.index(name) for name in ("unexplained", "undecided")])
    return {"replicated_unnamed": _share(unnamed & ~described, replicated)}


def described_share(
    replicated: Bool[np.ndarray, "latent fold"] | None,
    described: Bool[np.ndarray, "latent fold"],
    reason: str | None,
) -> dict[str, Number]:
    """Return how many replicated latents a rule describes; arguments are those of `named_shares`."""
    if replicated is None or reason is not None:
        return {"replicated_with_rule": Number(None, None, reason)}
    return {"replicated_with_rule": _share(described, replicated)}
