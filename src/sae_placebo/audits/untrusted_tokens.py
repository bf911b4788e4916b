"""Flags: tokens at which a reconstruction is not to be trusted, known without running the model.

What a reconstruction costs the model at a token is predicted from the length of the error and from the code.
A flag is the probability that the token is in the tenth of the tokens at which the reconstruction costs most.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float64, Int64

from sae_placebo.audits.base import AUDITS, RESAMPLES, Audit, Audited, Case, Finding, Quantity
from sae_placebo.audits.edits import Pushes, chosen, costs, mean_of, ordinary, ratio_of, runnable
from sae_placebo.audits.linear_predictions import ridge
from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.spec import numpy_generator
from sae_placebo.stats.bootstrap import percentile_interval, resampled_counts
from sae_placebo.stats.fits import fit_logistic
from sae_placebo.stats.quantiles import normal_quantile
from sae_placebo.stats.ranking import auroc

NAME = "untrusted_tokens"
WORST = 0.1
"""Share of the tokens that count as the worst: those at which the reconstruction costs most."""
COLUMNS = ("length", "relative length", "foretold length", "largest code", "L0", "rarity", "token")
"""What is known of a token without running the model; see `known`."""
_BINS = 5
_SHRINK = 1.0


def known(case: Case, fit: Int64[np.ndarray, " fitted"]) -> Float64[np.ndarray, "token column"]:
    """Return what is known of every token without running the model, in the order of `COLUMNS`.

    The columns are: log |e|; log |e| / |x|; log of the ridge prediction of |e|^2 from x; log of the largest
    code times its decoder norm; log(1 + L0); mean of -log rate over the latents that fire; -log rate of the
    token itself. Rates are shares of all held-out tokens. With too few tokens to fit the prediction on, its
    column is log |e|.

    Args:
        case: The SAE under audit.
        fit: Tokens that the prediction of |e|^2 is fitted on.
    """
    x, error = case.x.numpy(), case.error.numpy()
    square = (error.astype(np.float64) ** 2).sum(1)
    lengths = np.log(np.linalg.norm(x, axis=1).astype(np.float64).clip(1e-30))
    length = 0.5 * np.log(square.clip(1e-60))
    foretold = length
    try:
        predict = ridge(x[fit], square[fit, None], case.documents[fit], case.seed)
        foretold = np.log(predict(x)[:, 0].clip(1e-3 * max(float(square.mean()), 1e-60)))
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
        [length, length - lengths, foretold, np.log(largest.clip(1e-30)), np.log1p(l0), rarity, token],
        axis=1,
    )  # fmt: skip


def chance_of(
    columns: Float64[np.ndarray, "token column"], positive: Bool[np.ndarray, " token"]
) -> Callable[[Float64[np.ndarray, "token column"]], Float64[np.ndarray, " token"]]:
    """Return a logistic regression: a function from columns to the probability of being positive.

    Columns are standardized, and cut at 5 standard deviations, before the regression reads them.

    Args:
        columns: Columns of the tokens that it is fitted on.
        positive: Which of these tokens are positive.
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
    case: Case, tokens: Int64[np.ndarray, " run"], nats: Float64[np.ndarray, " run"]
) -> tuple[Float64[np.ndarray, " token"], Float64[np.ndarray, " token"], Bool[np.ndarray, " run"]]:
    """Return flags, flags from the error's length alone, and which tokens are truly among the worst.

    Flags are fitted on half of the documents for the tokens of the other half, and the other way round, so
    no flag is fitted on its token's own document. A token is among the worst where it costs more than nine
    in ten of the half that its flag is fitted on.

    Args:
        case: The SAE under audit.
        tokens: Tokens at which the model was run.
        nats: What the reconstruction costs at each of them.

    Raises:
        NotEstimable: there are fewer than four documents, or a half has fewer than 10 of the tokens.
    """
    flag, alone = np.full((2, case.n_tokens), math.nan)
    worst = np.zeros(len(tokens), dtype=bool)
    halves = case.halves()
    for fit, score in (halves, halves[::-1]):
        fitted, scored = fit[tokens], score[tokens]
        if min(fitted.sum(), scored.sum()) < 1 / WORST:
            raise NotEstimable(f"{int(fitted.sum())} tokens in a half are too few: raise tokens")
        limit = np.quantile(nats[fitted], 1 - WORST)
        random = numpy_generator(case.seed, "audit", "flag tokens")
        predicted = random.permutation(np.flatnonzero(fit))[: case.spec.ridge_tokens]
        columns = known(case, np.sort(predicted).astype(np.int64))
        positive = nats[fitted] > limit
        flag[score] = chance_of(columns[tokens[fitted]], positive)(columns[score])
        alone[score] = chance_of(columns[tokens[fitted], :1], positive)(columns[score, :1])
        worst[scored] = nats[scored] > limit
    return flag, alone, worst


def _ranked(
    case: Case,
    tokens: Int64[np.ndarray, " token"],
    flags: tuple[Float64[np.ndarray, " token"], Float64[np.ndarray, " token"]],
    worst: Bool[np.ndarray, " token"],
) -> list[Finding]:
    """Return how well flags rank the worst tokens first, with flags from the error's length as the null."""
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
    findings = []
    for name, values, null in (
        ("auroc", full, 0.5),
        ("auroc_length", length, 0.5),
        ("auroc_gain", full - length, 0.0),
    ):
        bounds = percentile_interval(values[1:], leave_out_undefined=True)
        findings.append(Finding(NAME, name, float(values[0]), *bounds, n, null))
    alone = findings[1]
    findings[0] = replace(findings[0], null=alone.value, null_low=alone.low, null_high=alone.high)
    return findings


def _calibrated(
    case: Case,
    tokens: Int64[np.ndarray, " token"],
    flag: Float64[np.ndarray, " token"],
    worst: Bool[np.ndarray, " token"],
) -> list[Finding]:
    """Return the reliability curve, five points of equally many tokens, and flags' mean distance from it."""
    documents, findings, n = case.documents[tokens], [], len(tokens)
    random = numpy_generator(case.seed, "audit", "calibrated")
    fair = random.random((200, n)) < flag
    error, null = 0.0, np.zeros(len(fair))
    for part in np.array_split(np.argsort(flag, kind="stable"), _BINS):
        at, share = float(flag[part].mean()), worst[part].mean()
        point = mean_of(
            NAME, "reliability", worst[part].astype(np.float64), documents[part], case.seed
        )
        by_chance = fair[:, part].mean(1)
        low, high = percentile_interval(by_chance)
        findings.append(replace(point, null=at, null_low=low, null_high=high, at=at))
        error += abs(share - at) * len(part) / n
        null += np.abs(by_chance - at) * len(part) / n
    nulls = float(null.mean()), *percentile_interval(null)
    name, no_interval = "calibration_error", (math.nan, math.nan)
    return [*findings, Finding(NAME, name, float(error), *no_interval, n, *nulls)]


def _flagged(
    case: Case,
    tokens: Int64[np.ndarray, " token"],
    flag: Float64[np.ndarray, " token"],
    nats: Float64[np.ndarray, " token"],
    worst: Bool[np.ndarray, " token"],
) -> list[Finding]:
    """Return how often the most flagged tenth is rightly flagged, and its share of the whole cost.

    The third finding is the share that the truly worst tenth bears, which is the most that flags could
    reach.
    """
    documents, seed = case.documents[tokens], case.seed
    top = flag >= np.quantile(flag, 1 - WORST)
    right = mean_of(NAME, "precision", worst[top].astype(np.float64), documents[top], seed)
    rate = float(worst.mean())
    spread = normal_quantile() * math.sqrt(rate * (1 - rate) / max(int(top.sum()), 1))
    findings = [
        replace(right, null=rate, null_low=max(rate - spread, 0.0), null_high=rate + spread)
    ]
    costly = nats >= np.quantile(nats, 1 - WORST)
    for name, part in (("cost_flagged", top), ("cost_worst", costly)):
        share = ratio_of(NAME, name, nats * part, nats, documents, seed)
        findings.append(replace(share, null=float(part.mean())))
    return findings


def _run(case: Case) -> Audited:
    runnable(case)
    tokens = chosen(case, 2 * case.spec.tokens, ordinary(case))
    edits = Pushes(case).draw("error", tokens, "")[:, None]
    nats = costs(case, tokens, edits)[:, 0]
    flag, alone, worst = crossed(case, tokens, nats)
    findings = _ranked(case, tokens, (flag[tokens], alone[tokens]), worst)
    findings += _calibrated(case, tokens, flag[tokens], worst)
    findings += _flagged(case, tokens, flag[tokens], nats, worst)
    return Audited(findings, tokens={"flag": flag})


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
