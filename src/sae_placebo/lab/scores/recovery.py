"""Whether a dictionary holds the true features, and what chance alone reaches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int64

from sae_placebo.core.errors import SpecError
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import generator
from sae_placebo.lab.generators.base import unit_rows
from sae_placebo.lab.scores.matching import same_tokens
from sae_placebo.saes import Codes
from sae_placebo.stats.random_dictionaries import expected_max_cosine


@dataclass(frozen=True)
class Recovery:
    """How near a dictionary comes to the truth, feature by feature."""

    best_cosine: Float32[torch.Tensor, " feature"]
    """Largest cosine of the feature to a latent's row, where the opposite direction is another."""
    best_latent: Int64[torch.Tensor, " feature"]
    """Latent that has it."""
    nearest_cosine: Float32[torch.Tensor, " latent"]
    """Largest cosine of the latent's row to a feature."""

    @property
    def mmcs(self) -> float:
        """Return the mean over features of the largest cosine to a latent.

        It is a recall, blind to what other latents there are.

        Source: Sharkey, Braun and Millidge (2022), "mean max cosine similarity".
        """
        return float(self.best_cosine.mean(dtype=torch.float64))

    @property
    def mmcs_of_latents(self) -> float:
        """Return the mean over latents of the largest cosine to a feature.

        It is a precision: latents that are mixtures, or nothing at all, lower it, which `mmcs` does not see.
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
    cosines = normalized(truth) @ normalized(learned).t()
    best = cosines.max(dim=1)
    return Recovery(best.values, best.indices, cosines.max(dim=0).values)


@dataclass(frozen=True)
class RecoveryNull:
    """What dictionaries that learned nothing reach, whose rows are independent and uniform on the sphere."""

    mmcs: float
    """Mean MMCS over draws, on this very truth."""
    mmcs_sd: float
    """Standard deviation of the MMCS between draws."""
    share: float
    """Mean over draws of the share of features above the threshold."""
    draws: int
    expected_mmcs: float
    """MMCS over random truths, in closed form; see `stats.random_dictionaries.expected_max_cosine`."""
    expected_share: float
    """Share in closed form; see `expected_share`."""


def recovery_null(
    truth: Float32[torch.Tensor, "feature d_in"],
    d_sae: int,
    seed: int,
    threshold: float = 0.9,
    draws: int = 8,
) -> RecoveryNull:
    """Return what random dictionaries of `d_sae` latents reach on `truth`.

    Raises:
        SpecError: there are fewer than 2 draws.
    """
    if draws < 2:
        raise SpecError(f"{draws} draws have no spread: take 2 or more")
    d_in = truth.shape[1]
    random = generator(seed, "recovery_null", d_in, d_sae)
    recoveries = [recovery(unit_rows(d_sae, d_in, random), truth) for _ in range(draws)]
    values = np.array([drawn.mmcs for drawn in recoveries])
    return RecoveryNull(
        mmcs=float(values.mean()),
        mmcs_sd=float(values.std(ddof=1)),
        share=float(np.mean([drawn.share(threshold) for drawn in recoveries])),
        draws=draws,
        expected_mmcs=expected_max_cosine(d_in, d_sae),
        expected_share=expected_share(d_in, d_sae, threshold),
    )


def expected_share(d_in: int, d_sae: int, threshold: float) -> float:
    """Return the probability that the cosine of one of `d_sae` random directions exceeds `threshold`.

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
    """Share of all firings, including those of latents without a feature, that are such pairs."""
    null_recall: float
    """Recall that the same rates reach if latents fire independently of their features."""
    null_precision: float
    """Precision that the same rates reach if latents fire independently of their features."""
    l0: float
    """Mean number of latents that fire on a token."""


def support(
    found: Codes,
    true: Codes,
    learned: Float32[torch.Tensor, "latent d_in"],
    truth: Float32[torch.Tensor, "feature d_in"],
) -> Support:
    """Return how well firing agrees with the truth, where latents are matched to features one to one.

    The matching has the largest sum of cosines of decoder rows (Hungarian), so a latent counts for one
    feature at most. With fewer latents than features, the features left over are never found.

    The null is exact: with feature i active on n_i of T tokens and its latent firing on m_i, a random
    order of the latent's tokens makes them agree on n_i m_i / T on average.

    Args:
        found: Codes of the SAE.
        true: True codes of the same tokens.
        learned: Decoder rows of the SAE; lengths do not matter.
        truth: True directions.

    Raises:
        SpecError: the numbers of tokens differ, so the codes are of different tokens.
        NotEstimable: no feature is active, or no latent fires.
    """
    same_tokens(found, true)
    from scipy.optimize import linear_sum_assignment

    cosines = (normalized(truth) @ normalized(learned).t()).numpy().astype(np.float64)
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


def normalized(rows: Float[torch.Tensor, "row d_in"]) -> Float32[torch.Tensor, "row d_in"]:
    """Return rows at length 1, in single precision; a row of zeros stays one."""
    return torch.nn.functional.normalize(rows.detach().float(), dim=1)
