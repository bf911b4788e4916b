"""At which tokens not to trust a reconstruction, told without running the model.

What a reconstruction costs the model at a token is predicted from its error's length and what the code
looks like. A flag is the probability that the token is among the tenth at which it costs most.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float64, Int64

from sae_placebo.audits.base import (
    AUDITS,
    RESAMPLES,
    Audit,
    Audited,
    Case,
    Finding,
    Quantity,
)
from sae_placebo.audits.edits import Pushes, chosen, costs, ordinary, ratio_of, runnable
from sae_placebo.audits.ridge import ridge
from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.spec import numpy_generator
from sae_placebo.stats.bootstrap import percentile_interval, resampled_counts
from sae_placebo.stats.fits import fit_logistic
from sae_placebo.stats.quantiles import normal_quantile
from sae_placebo.stats.ranking import auroc

NAME = "flags"
WORST = 0.1
"""Share of tokens that a flag is about: those at which the reconstruction costs most."""
COLUMNS = ("length", "relative length", "foretold length", "largest code", "L0", "rarity", "token")
_BINS = 5
_SHRINK = 1.0


def known(case: Case, fit: Int64[np.ndarray, " some"]) -> Float64[np.ndarray, "token column"]:
    """Return what is known of every token without running the model, in the order of `COLUMNS`.

    log |e|; log |e| / |x|; log of the ridge prediction of |e|^2 from x, fitted on the given tokens; log of
    the largest code times its decoder norm; log(1 + L0); mean of -log rate over the latents that fire;
    -log rate of the token itself. Rates are those among all held-out tokens.

    Args:
        case: What is audited.
        fit: Tokens that the prediction of |e|^2 is fitted on.
    """
    x, error = case.reading.activations.float().cpu().numpy(), case.error.numpy()
    square = (error.astype(np.float64) ** 2).sum(1)
    lengths = np.log(np.linalg.norm(x, axis=1).astype(np.float64).clip(1e-30))
    own = 0.5 * np.log(square.clip(1e-60))
    foretold = own
    try:
        one = ridge(x[fit], square[fit, None], case.documents[fit].astype(np.int64), case.seed)
        foretold = np.log(one(x)[:, 0].clip(1e-3 * max(float(square.mean()), 1e-60)))
    except NotEstimable:
        # too few tokens for their width: the column says nothing that the length does not
        pass
    codes = case.reading.codes.tocsr()
    norms = case.reading.sae.params["W_dec"].detach().float().norm(dim=1).cpu().numpy()
    sizes = codes.copy()
    sizes.data = (sizes.data * norms[sizes.indices]).astype(np.float32)
    largest = np.asarray(sizes.max(axis=1).todense(), dtype=np.float64).ravel()
    n, l0 = case.n_tokens, np.diff(codes.indptr).astype(np.float64)
    surprise = -np.log(np.bincount(codes.indices, minlength=codes.shape[1]).clip(1) / n)
    fired = codes.copy()
    fired.data = surprise[fired.indices]
    rarity = np.asarray(fired.sum(axis=1), dtype=np.float64).ravel() / l0.clip(1)
    ids = case.reading.tokens.ids
    token = -np.log(np.bincount(ids)[ids] / n)
    return np.stack(
        [own, own - lengths, foretold, np.log(largest.clip(1e-30)), np.log1p(l0), rarity, token], axis=1
    )  # fmt: skip


def chance_of(
    columns: Float64[np.ndarray, "token column"], positive: Bool[np.ndarray, " token"]
) -> Callable[[Float64[np.ndarray, "token column"]], Float64[np.ndarray, " token"]]:
    """Return a function from columns to the probability of being positive, fitted on tokens.

    Columns are standardized and cut at 5 standard deviations before the regression reads them.
    """
    from scipy.special import expit

    middle, spread = columns.mean(0), columns.std(0)
    spread = np.where(spread > 1e-9, spread, np.inf)

    def scaled(
        values: Float64[np.ndarray, "token column"],
    ) -> Float64[np.ndarray, "token column"]:
        # a column far outside of what was fitted on says no more than one at 5 standard deviations
        return np.asarray(((values - middle) / spread).clip(-5, 5))

    fitted = fit_logistic(
        scaled(columns), positive[:, None], _SHRINK / len(columns), scaling="given"
    )
    return lambda values: np.asarray(expit(fitted.logits(scaled(values))[:, 0]))


def crossed(
    case: Case, tokens: Int64[np.ndarray, " some"], nats: Float64[np.ndarray, " some"]
) -> tuple[Float64[np.ndarray, " token"], Float64[np.ndarray, " token"], Bool[np.ndarray, " some"]]:
    """Return flags, flags from the error's length alone, and which tokens are truly among the worst.

    Fitted on half of the documents for the tokens of the other, and the other way round: no token's flag
    is fitted on its own document. The worst tenth is that of the half fitted on.

    Raises:
        NotEstimable: fewer than four documents, or a half with fewer than 10 tokens.
    """
    flag, alone = np.full((2, case.n_tokens), math.nan)
    worst = np.zeros(len(tokens), dtype=bool)
    halves = case.halves()
    for fit, score in (halves, halves[::-1]):
        here, there = fit[tokens], score[tokens]
        if min(here.sum(), there.sum()) < 1 / WORST:
            raise NotEstimable(f"{int(here.sum())} tokens in a half are too few: raise tokens")
        limit = np.quantile(nats[here], 1 - WORST)
        random = numpy_generator(case.seed, "audit", "flag tokens")
        some = random.permutation(np.flatnonzero(fit))[: case.spec.ridge_tokens]
        columns = known(case, np.sort(some).astype(np.int64))
        positive = nats[here] > limit
        flag[score] = chance_of(columns[tokens[here]], positive)(columns[score])
        alone[score] = chance_of(columns[tokens[here], :1], positive)(columns[score, :1])
        worst[there] = nats[there] > limit
    return flag, alone, worst


def _ranked(
    case: Case,
    tokens: Int64[np.ndarray, " some"],
    flags: tuple[Float64[np.ndarray, " some"], Float64[np.ndarray, " some"]],
    worst: Bool[np.ndarray, " some"],
) -> list[Finding]:
    """Return how well flags tell the worst tenth from the rest, beside the error's length alone."""
    n = len(tokens)
    if not worst.any() or worst.all():
        reason = "no token costs more than the others"
        names = ("auroc", "auroc_length", "auroc_gain")
        return [Finding(NAME, name, math.nan, n=n, reason=reason) for name in names]
    present, owner = np.unique(case.documents[tokens], return_inverse=True)
    random = numpy_generator(case.seed, "audit", "flag bootstrap")
    drawn = resampled_counts(random, len(present), RESAMPLES)
    weights = np.concatenate([np.ones((n, 1)), drawn.T[owner]], axis=1)
    full, length = (auroc(flag, worst, weights) for flag in flags)
    listed = []
    for name, values, null in (
        ("auroc", full, 0.5),
        ("auroc_length", length, 0.5),
        ("auroc_gain", full - length, 0.0),
    ):
        bounds = percentile_interval(values[1:], leave_out_undefined=True)
        listed.append(Finding(NAME, name, float(values[0]), *bounds, n, null))
    only = listed[1]
    listed[0] = replace(listed[0], null=only.value, null_low=only.low, null_high=only.high)
    return listed


def _calibrated(
    case: Case,
    tokens: Int64[np.ndarray, " some"],
    flag: Float64[np.ndarray, " some"],
    worst: Bool[np.ndarray, " some"],
) -> list[Finding]:
    """Return the reliability curve, five points of equally many tokens, and the mean distance from it."""
    documents, listed, n = case.documents[tokens].astype(np.int64), [], len(tokens)
    random = numpy_generator(case.seed, "audit", "calibrated")
    fair = random.random((200, n)) < flag
    error, null = 0.0, np.zeros(len(fair))
    for part in np.array_split(np.argsort(flag, kind="stable"), _BINS):
        at, share = float(flag[part].mean()), worst[part].mean()
        one = ratio_of(
            NAME, "reliability", worst[part].astype(np.float64), np.ones(len(part)), documents[part],
            case.seed,
        )  # fmt: skip
        by_chance = fair[:, part].mean(1)
        low, high = percentile_interval(by_chance)
        listed.append(replace(one, null=at, null_low=low, null_high=high, at=at))
        error += abs(share - at) * len(part) / n
        null += np.abs(by_chance - at) * len(part) / n
    low, high = percentile_interval(null)
    listed.append(
        Finding(
            NAME, "calibration_error", float(error), n=n, null=float(null.mean()),
            null_low=low, null_high=high,
        )
    )  # fmt: skip
    return listed


def _flagged(
    case: Case,
    tokens: Int64[np.ndarray, " some"],
    flag: Float64[np.ndarray, " some"],
    nats: Float64[np.ndarray, " some"],
    worst: Bool[np.ndarray, " some"],
) -> list[Finding]:
    """Return how often the most flagged tenth is rightly flagged, and its share of the whole cost."""
    documents, n = case.documents[tokens].astype(np.int64), len(tokens)
    top = flag >= np.quantile(flag, 1 - WORST)
    right = ratio_of(
        NAME, "precision", worst[top].astype(np.float64), np.ones(int(top.sum())), documents[top],
        case.seed,
    )  # fmt: skip
    share = ratio_of(NAME, "cost_flagged", nats * top, nats, documents, case.seed)
    rate = float(worst.mean())
    spread = normal_quantile() * math.sqrt(rate * (1 - rate) / max(int(top.sum()), 1))
    return [
        replace(right, null=rate, null_low=max(rate - spread, 0.0), null_high=rate + spread),
        replace(share, null=float(top.mean())),
        _best_possible(case, nats, documents, n),
    ]


def _best_possible(
    case: Case, nats: Float64[np.ndarray, " some"], documents: Int64[np.ndarray, " some"], n: int
) -> Finding:
    """Return the share of the whole cost that the truly worst tenth bears: what flags could reach."""
    top = nats >= np.quantile(nats, 1 - WORST)
    return replace(
        ratio_of(NAME, "cost_worst", nats * top, nats, documents, case.seed), null=float(top.mean())
    )


def _run(case: Case) -> Audited:
    runnable(case)
    tokens = chosen(case, 2 * case.spec.tokens, ordinary(case))
    edits = Pushes(case).draw("error", tokens, "")[:, None]
    nats = costs(case, tokens, edits)[:, 0]
    flag, alone, worst = crossed(case, tokens, nats)
    here = flag[tokens]
    found = _ranked(case, tokens, (here, alone[tokens]), worst)
    found += _calibrated(case, tokens, here, worst)
    found += _flagged(case, tokens, here, nats, worst)
    return Audited(found, tokens={"flag": flag})


_QUANTITIES = (
    Quantity(
        "auroc", "1", "higher", "that of the error's length alone; .5 is chance",
        "Chance that a token of the tenth at which the reconstruction costs most (KL at the token and the "
        "next ones in the window) has a higher flag than another; flags are fitted on other documents.",
        "Near .5: flags do not help with this SAE, and its reconstruction must be checked by running the "
        "model.",
    ),
    Quantity(
        "auroc_length", "1", "higher", ".5",
        "The same with |e| as the only thing known.",
        "Where it is as high as the full flag, sort tokens by |e| and forget the flag.",
    ),
    Quantity(
        "auroc_gain", "1", "higher", "0",
        "Full flag less |e| alone, on the same bootstrap documents.",
        "Use the full flag only where this interval lies above 0.",
    ),
    Quantity(
        "reliability", "share", "neither", "`at`: the mean flag of the bin",
        "Share of tokens truly among the worst tenth, in five bins of equally many tokens by flag.",
        "Points outside the null's range: read flags as ranks, not as probabilities.", along="mean flag"),
    Quantity(
        "calibration_error", "share", "lower", "mean where flags are exact, by chance alone",
        "Mean distance between flag and true share over the five bins.",
        "Above the null's range: read flags as ranks, not as probabilities.",
    ),
    Quantity(
        "precision", "share", "higher", "share of all tokens that are among the worst",
        "Share of the most flagged tenth that is truly among the worst tenth.",
        "So often a flagged token is rightly distrusted: leave flagged tokens out of examples when it is "
        "well above the null.",
    ),
    Quantity(
        "cost_flagged", "share", "higher", "their share of tokens",
        "Share of the reconstruction's whole cost that the most flagged tenth of tokens bears.",
        "So much of the loss goes when activations are kept at flagged tokens.",
    ),
    Quantity(
        "cost_worst", "share", "neither", "their share of tokens",
        "Share of the whole cost that the truly worst tenth bears: the most that flags could reach.",
        "Near the null the cost is even: no flag can help.",
    ),
)  # fmt: skip

AUDITS.add(
    Audit(
        NAME,
        "Where not to trust the reconstruction",
        "Can the tokens at which the reconstruction misleads the model be told without running it?",
        "Ours; that |e|^2 is nearly linear in x is from Engels, Riggs and Tegmark (2024, arXiv 2410.14670). "
        "Logistic regression on |e|, |e|/|x|, the prediction of |e|^2 from x, the largest code, L0, the "
        "rarity of the latents that fire and of the token.",
        _QUANTITIES,
        _run,
    ),
)
