"""What share of an SAE's latents the ladder explains, and how much of each: what needs text to fit on.

Each is computed once for every portion of the text to fit on, since all of them move while the ladder still
learns; `stats.convergence` decides from that whether one is told.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64

from sae_placebo.latents.ladder.fitting import RUNGS
from sae_placebo.latents.ladder.ladder import Ladder
from sae_placebo.latents.metrics.base import Declared, Number, ratio
from sae_placebo.latents.origin.rule import ORIGINS, Verdicts

N_RATES = 4
"""Number of bins of firing rates, each with as many of the trained arm's judged latents."""
_LEAST_SHARED = 0.7
"""Least share of the trained arm's latents whose bins an SAE's stable latents must fall into."""
_PLACEBO = "the same share in the placebo arms, held against another re-draw (A/A)"
_WORDS = {
    "explained": "explained by tokens, embeddings or the placebo model, or with a partner in the "
    "placebo SAE",
    "not_explained": "that nothing on the ladder explains, that have no partner in the placebo SAE, and that "
    "the SAE of another seed has too",
    "undetermined": "about which neither can be said",
}


def _declared() -> Iterator[Declared]:
    for origin, words in _WORDS.items():
        yield Declared(
            name=f"origin_{origin}",
            unit="share",
            better="neither",
            null=_PLACEBO,
            definition=f"share of all latents {words}",
            source="This package; see `latents.origin.rule`.",
            counts_latents=True,
        )
        yield Declared(
            name=f"stable_{origin}",
            unit="share",
            better="neither",
            null=_PLACEBO,
            definition="share, of the judged latents that have a partner in the SAE of another seed, of "
            f"those {words}; as if they fired as often as the trained arm's",
            source="This package; direct standardisation over four bins of the firing rate (Rothman, "
            "Greenland and Lash 2008, chapter 3).",
            share_of="replicated latents",
        )
    for rung in RUNGS[1:]:
        yield Declared(
            name=f"explained_up_to_{rung}",
            unit="share",
            better="neither",
            null="0: noise is explained by nothing; the share in the placebo arms is the comparison",
            definition=f"share of all latents that the ladder up to {rung!r} explains",
            source="This package; see `latents.origin.rule`.",
            counts_latents=True,
        )
        yield Declared(
            name=f"ladder_r2_{rung}",
            unit="share",
            better="neither",
            null="0: no better than the mean; the value in the placebo arms is the comparison",
            definition=f"mean over judged latents of held-out R2 of the ladder up to {rung!r}",
            source="This package; see `latents.ladder`.",
        )
        yield Declared(
            name=f"activations_r2_{rung}",
            unit="share",
            better="neither",
            null="0: no better than the mean; the value in the placebo arms is the comparison",
            definition=f"held-out share of the activations' variance explained by the ladder up to {rung!r}",
            source="This package; see `latents.ladder`.",
        )


DECLARED = {one.name: one for one in _declared()}
"""What each number is, by name."""


def is_r2(metric: str) -> bool:
    """Return whether a number is an R2, of which what is left of 1 is the share that is read."""
    return "_r2_" in metric


@dataclass(frozen=True, eq=False)
class LatentFacts:
    """What is known of an SAE's latents without the ladder.

    Attributes:
        judged: Whether the latent fires often enough to be judged.
        n_active: Number of tokens that it fires on.
        in_placebo: Partners in the placebo SAE, a `latents.profile.FoundPartners`.
        in_sibling: Partners in the SAE of another seed.
        rates: Ends of the bins of `n_active`, between as many of the trained arm's judged latents each; None
            where these are not known.
    """

    judged: Bool[np.ndarray, "latent fold"]
    n_active: Float[np.ndarray, " latent"]
    in_placebo: Any
    in_sibling: Any
    rates: Float[np.ndarray, " inner_end"] | None


def rates_of(n_active: Int64[np.ndarray, " latent"], least: int) -> Float[np.ndarray, " inner_end"]:
    """Return the ends of bins that hold as many judged latents each.

    Args:
        n_active: Number of tokens that each latent of the trained arm fires on.
        least: Active tokens from which a latent is judged.
    """
    judged = n_active[n_active >= least]
    if not len(judged):
        return np.zeros(N_RATES - 1)
    return np.asarray(np.quantile(judged, np.arange(1, N_RATES) / N_RATES), dtype=np.float64)


def ladder_shares(
    facts: LatentFacts, climbed: Ladder, portion: int, verdicts: Verdicts, explained: float
) -> dict[str, Number]:
    """Return every number that the ladder gives, fitted on one portion of the text to fit on.

    Args:
        facts: What is known of the latents without the ladder.
        climbed: The ladder.
        portion: Index of the portion.
        verdicts: The verdict on every latent from the same portion.
        explained: R2 from which a rung explains a latent.
    """
    made: dict[str, Number] = {}
    why = facts.in_placebo.reason if facts.in_placebo.has is None else None
    for index, origin in enumerate(ORIGINS):
        made[f"origin_{origin}"] = Number(None if why else verdicts.share(index), None, why)
        made[f"stable_{origin}"] = _given_stable(facts, verdicts.verdict == index, why)
    alive = facts.judged & facts.judged[:, :1]
    reached = np.zeros_like(alive)
    for index, rung in enumerate(RUNGS):
        if index == 0:
            continue
        r2, why = climbed.by_portion[portion, index], climbed.reasons.get(rung)
        reached |= facts.judged & (r2 >= explained)
        known = alive & np.isfinite(r2)
        mean = ratio(np.where(known, r2, 0).sum(axis=0), known.sum(axis=0, dtype=np.float64))
        made[f"explained_up_to_{rung}"] = Number(None if why else reached.mean(axis=0), 0.0, why)
        made[f"ladder_r2_{rung}"] = Number(
            None if why else mean, 0.0, why or "no latent fires often enough"
        )
        whole = climbed.whole_by_portion[portion, index]
        made[f"activations_r2_{rung}"] = Number(None if why else whole, 0.0, why)
    return made


def _given_stable(
    facts: LatentFacts, are: Bool[np.ndarray, "latent fold"], why: str | None
) -> Number:
    """Return the share of `are` among stable latents, as if these fired as often as the trained arm's.

    The share within each bin of firing rates is weighted by how many of the trained arm's latents are in
    the bin, which is as many in each. Bins without a stable latent are left out, and if too many are, the
    share is not estimable.
    """
    if why is None and facts.in_sibling.has is None:
        why = facts.in_sibling.reason
    if why is None and facts.rates is None:
        why = "the firing rates of the trained arm's latents are not known"
    if why is not None or facts.rates is None:
        return Number(None, None, why)
    stable = facts.in_sibling.has & np.isfinite(facts.in_sibling.r) & facts.judged
    bins = np.searchsorted(facts.rates, facts.n_active, side="right")
    shape = N_RATES, stable.shape[1]
    of_stable, of_both = np.zeros(shape), np.zeros(shape)
    for rate in range(N_RATES):
        of_stable[rate] = stable[bins == rate].sum(axis=0)
        of_both[rate] = (stable & are)[bins == rate].sum(axis=0)
    there = of_stable > 0
    shares = np.where(there, of_both / np.maximum(of_stable, 1), 0)
    covered = there.mean(axis=0)
    if covered[0] < _LEAST_SHARED:
        rare = int(np.sum(of_stable[:, 0]))
        return Number(
            None,
            None,
            f"{rare} of its latents are stable, and they do not fire as often as the trained arm's: "
            f"they are in {int(there[:, 0].sum())} of {N_RATES} bins of firing rates",
        )
    value = np.where(covered > 0, shares.sum(axis=0) / np.maximum(there.sum(axis=0), 1), np.nan)
    return Number(value)
