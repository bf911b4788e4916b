"""Whether a dictionary holds the true features: definitions, and what chance alone reaches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int64

from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import generator
from sae_placebo.lab.generators.base import unit_rows
from sae_placebo.saes import Codes
from sae_placebo.stats.random_dictionaries import expected_max_cosine

_FLOOR = 1e-12


@dataclass(frozen=True)
class Recovery:
    """How near a dictionary comes to the truth, feature by feature."""

    best_cosine: Float32[torch.Tensor, " feature"]
    """Largest cosine of each feature to a latent's row. Signed: the opposite direction is another."""
    best_latent: Int64[torch.Tensor, " feature"]
    """The latent that has it."""
    nearest_cosine: Float32[torch.Tensor, " latent"]
    """Largest cosine of each latent's row to a feature."""

    @property
    def mmcs(self) -> float:
        """Mean over features of the largest cosine to a latent: a recall, blind to what else there is.

        Source: Sharkey, Braun and Millidge (2022), "mean max cosine similarity".
        """
        return float(self.best_cosine.mean(dtype=torch.float64))

    @property
    def mmcs_of_latents(self) -> float:
        """Mean over latents of the largest cosine to a feature: a precision.

        Only this direction tells of latents that are mixtures, or nothing at all.
        """
        return float(self.nearest_cosine.mean(dtype=torch.float64))

    def share(self, threshold: float = 0.9) -> float:
        """Return the share of features with a cosine above `threshold` to some latent."""
        return float((self.best_cosine > threshold).double().mean())


def recovery(
    learned: Float32[torch.Tensor, "latent d_in"],
    truth: Float32[torch.Tensor, "feature d_in"],
) -> Recovery:
    """Return how near the rows of `learned` come to those of `truth`; lengths do not matter.

    A row of zeros has cosine 0 to everything.
    """
    cosines = _unit(truth) @ _unit(learned).t()
    best = cosines.max(dim=1)
    return Recovery(best.values, best.indices, cosines.max(dim=0).values)


@dataclass(frozen=True)
class RecoveryNull:
    """What dictionaries that learned nothing reach: independent directions, uniform on the sphere."""

    mmcs: float
    """Mean over draws, against this very truth."""
    mmcs_sd: float
    """Standard deviation between draws."""
    share: float
    """Mean share of features above the threshold."""
    draws: int
    expected_mmcs: float
    """In closed form, over random truths; see `random_dictionaries.expected_max_cosine`."""
    expected_share: float
    """In closed form; see `expected_share`."""


def recovery_null(
    truth: Float32[torch.Tensor, "feature d_in"],
    d_sae: int,
    seed: int,
    threshold: float = 0.9,
    draws: int = 8,
) -> RecoveryNull:
    """Return what random dictionaries of `d_sae` latents reach on `truth`.

    Raises:
        SpecError: fewer than 2 draws.
    """
    if draws < 2:
        raise SpecError(f"{draws} draws have no spread: take 2 or more")
    d_in = truth.shape[1]
    random = generator(seed, "recovery_null", d_in, d_sae)
    found = [recovery(unit_rows(d_sae, d_in, random), truth) for _ in range(draws)]
    values = np.array([one.mmcs for one in found])
    return RecoveryNull(
        mmcs=float(values.mean()),
        mmcs_sd=float(values.std(ddof=1)),
        share=float(np.mean([one.share(threshold) for one in found])),
        draws=draws,
        expected_mmcs=expected_max_cosine(d_in, d_sae),
        expected_share=expected_share(d_in, d_sae, threshold),
    )


def expected_share(d_in: int, d_sae: int, threshold: float) -> float:
    """Return the probability that one of `d_sae` random directions passes `threshold`.

    (1 + cosine) / 2 of two independent directions has a Beta((d - 1) / 2, (d - 1) / 2) distribution,
    and the directions are independent given the feature: 1 - (1 - P(cosine > threshold))^d_sae.

    Raises:
        SpecError: the threshold is no cosine, or a size is too small.
    """
    if d_in < 2 or d_sae < 1 or not -1 <= threshold <= 1:
        raise SpecError(
            f"d_in {d_in}, d_sae {d_sae}, threshold {threshold}: needed are at least 2, at least 1, "
            "and a cosine"
        )
    from scipy import special

    above = special.betainc((d_in - 1) / 2, (d_in - 1) / 2, (1 - threshold) / 2)
    if above >= 1:
        return 1.0
    return float(-np.expm1(d_sae * np.log1p(-above)))


@dataclass(frozen=True)
class Support:
    """Whether the right latents fire on the right tokens.

    Pairs (token, feature) are pooled, so frequent features weigh more.
    """

    recall: float
    """Share of active pairs on which the feature's latent fires."""
    precision: float
    """Share of all firings, of latents without a feature as well, that are such pairs."""
    null_recall: float
    """Recall that the same firing rates reach if no latent knows of its feature."""
    null_precision: float
    """The same, of precision."""
    l0: float
    """Mean number of latents that fire on a token."""


def support(
    found: Codes,
    true: Codes,
    learned: Float32[torch.Tensor, "latent d_in"],
    truth: Float32[torch.Tensor, "feature d_in"],
) -> Support:
    """Return how well firing agrees with the truth, latents being matched to features one to one.

    The matching has the largest sum of cosines of decoder rows (Hungarian), so a latent counts for
    one feature at most. With fewer latents than features, those left over are never found.

    The null is exact: with feature i active on n_i of T tokens and its latent firing on m_i, a random
    order of the latent's tokens makes them agree on n_i m_i / T on average.

    Raises:
        NotEstimable: no feature is active, or no latent fires.
        SpecError: the codes are of different tokens, by their number.
    """
    if found.n_tokens != true.n_tokens:
        raise SpecError(
            f"{found.n_tokens} tokens' codes cannot be compared with {true.n_tokens} tokens': encode "
            "the tokens of the same draw"
        )
    if not len(true.latents) or not len(found.latents):
        raise NotEstimable("no feature is active on these tokens, or no latent fires")
    from scipy.optimize import linear_sum_assignment

    cosines = (_unit(truth) @ _unit(learned).t()).numpy().astype(np.float64)
    features, latents = linear_sum_assignment(cosines, maximize=True)
    latent_of = torch.full((len(truth),), -1, dtype=torch.int64)
    latent_of[torch.from_numpy(features)] = torch.from_numpy(latents)
    matched = latent_of[true.latents]
    # a pair is one number, so that agreement is membership in a set
    wanted = (true.tokens() * found.d_sae + matched)[matched >= 0]
    agreed = float(torch.isin(wanted, found.tokens() * found.d_sae + found.latents).sum())
    active = torch.bincount(true.latents, minlength=len(truth)).double()
    fired = torch.bincount(found.latents, minlength=found.d_sae).double()
    by_chance = float((active * fired[latent_of] * (latent_of >= 0)).sum() / true.n_tokens)
    n_true, n_found = len(true.latents), len(found.latents)
    return Support(
        recall=agreed / n_true,
        precision=agreed / n_found,
        null_recall=by_chance / n_true,
        null_precision=by_chance / n_found,
        l0=n_found / found.n_tokens,
    )


def _unit(rows: Float[torch.Tensor, "row d_in"]) -> Float32[torch.Tensor, "row d_in"]:
    rows = rows.detach().float()
    lengths: torch.Tensor = rows.norm(dim=1, keepdim=True)
    return rows / lengths.clamp_min(_FLOOR)
