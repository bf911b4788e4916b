"""What the model loses by an SAE's reconstruction, compared with random pushes of the same length.

A reconstruction moves an activation by the length of its error. That the model's predictions suffer from it
says little. That they suffer more than from another push of this length says that the error lies where the
model reads.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from jaxtyping import Float64, Int64

from sae_placebo.audits.base import AUDITS, Audit, Audited, Case, Finding, Quantity, over_documents
from sae_placebo.audits.edits import (
    FLOOR,
    KINDS,
    OUTLIER,
    ROW_SHARE,
    Pushes,
    chosen,
    costs,
    mean_of,
    ordinary,
    ratio_of,
    row_costs,
    runnable,
)
from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import numpy_generator

NAME = "random_pushes"
_QUANTILES = (0.1, 0.5, 0.9)
_Costs = dict[str, Float64[np.ndarray, "token draw"]]
"""What edits of each kind cost, in nats: `error`, `x_rescaled`, `rescaled`, and kinds of pushes."""


def self_test(case: Case, kind: str) -> Finding:
    """Return the ratio where a random push takes the place of the error: 1, within its interval.

    Args:
        case: The SAE under audit.
        kind: One of `KINDS`: the kind of that push, and of the pushes that it is compared with.
    """
    tokens = chosen(case, case.spec.tokens, ordinary(case))
    return _self_test(case, tokens, _costs_by_kind(case, tokens, (kind,)), kind)


def _self_test(case: Case, tokens: Int64[np.ndarray, " token"], nats: _Costs, kind: str) -> Finding:
    name, pushes = f"self_test_{kind}", nats[kind][:, 1:].mean(1)
    return ratio_of(NAME, name, nats[kind][:, 0], pushes, case.documents[tokens], case.seed)


def _costs_by_kind(
    case: Case, tokens: Int64[np.ndarray, " token"], kinds: tuple[str, ...]
) -> _Costs:
    """Return what the reconstruction costs, x and x_hat at each other's length, and pushes of each kind.

    Each kind is drawn once more often than the settings say: its first push takes the place of the error in
    the self-test.
    """
    pushes, draws = Pushes(case), case.spec.draws + 1
    shorter, longer = pushes.rescaled(tokens)
    edits = [pushes.draw("error", tokens, ""), shorter, longer]
    edits += [pushes.draw(kind, tokens, str(i)) for kind in kinds for i in range(draws)]
    nats = costs(case, tokens, torch.stack(edits, dim=1))
    parts = {"error": nats[:, :1], "x_rescaled": nats[:, 1:2], "rescaled": nats[:, 2:3]}
    return parts | {
        kind: nats[:, 3 + i * draws : 3 + (i + 1) * draws] for i, kind in enumerate(kinds)
    }


def _kind_findings(
    case: Case, tokens: Int64[np.ndarray, " token"], nats: _Costs, kind: str
) -> list[Finding]:
    """Return the cost, the ratio, its quantiles over tokens, and the self-test of one kind of push."""
    documents, seed = case.documents[tokens], case.seed
    error, pushes = nats["error"][:, 0], nats[kind][:, 1:].mean(1)
    nothing = _self_test(case, tokens, nats, kind)
    ratio = ratio_of(NAME, f"ratio_{kind}", error, pushes, documents, seed)
    findings = [
        mean_of(NAME, f"cost_{kind}", pushes, documents, seed),
        replace(ratio, null_low=nothing.low, null_high=nothing.high),
        nothing,
    ]
    costly = pushes > 0
    for q in _QUANTILES if costly.any() else ():
        value, low, high = _quantile(error[costly] / pushes[costly], documents[costly], q, seed)
        null = float(np.quantile(nats[kind][costly, 0] / pushes[costly], q))
        name, n = f"ratio_{kind}_by_token", int(costly.sum())
        findings.append(Finding(NAME, name, value, low, high, n, null, at=q))
    return findings


def _quantile(
    values: Float64[np.ndarray, " token"],
    documents: Int64[np.ndarray, " token"],
    q: float,
    seed: int,
) -> tuple[float, float, float]:
    """Return a quantile over tokens, and its 95% interval over documents.

    The interval is Woodruff's: that of the share of tokens below the quantile, read back as values.
    """
    value = float(np.quantile(values, q))
    parts = np.stack([(values <= value).astype(np.float64), np.ones(len(values))])
    share, low, high = over_documents(lambda s: s[0] / s[1], parts, documents, seed)
    if not math.isfinite(low):
        return value, math.nan, math.nan
    bounds = np.quantile(values, np.clip([2 * share - high, 2 * share - low], 0, 1))
    return value, float(bounds[0]), float(bounds[1])


def _row_findings(case: Case) -> list[Finding]:
    """Return the cost and the ratios where all tokens of a row are replaced at once."""
    count = max(case.spec.tokens // ROW_SHARE, 2)
    tokens = chosen(case, case.spec.tokens, ordinary(case))
    rows = np.unique(case.reading.tokens.places[tokens, 0])
    random = numpy_generator(case.seed, "audit", "rows")
    rows = np.sort(random.permutation(rows)[:count]).astype(np.int64)
    nats, documents, predictions = [], [], []
    for row, nats_of_edits, n in row_costs(case, rows, KINDS):
        nats.append(nats_of_edits)
        predictions.append(float(n))
        documents.append(int(case.reading.tokens.rows.documents[row]))
    table, owners = np.array(nats), np.array(documents, dtype=np.int64)
    cost = ratio_of(NAME, "rows_cost", table[:, 0], np.array(predictions), owners, case.seed)
    findings = [replace(cost, null=0.0)]
    for i, kind in enumerate(KINDS):
        name = f"rows_ratio_{kind}"
        findings.append(ratio_of(NAME, name, table[:, 0], table[:, i + 1], owners, case.seed))
    return [replace(finding, of="rows") for finding in findings]


def _outlier_finding(case: Case) -> Finding:
    """Return the ratio to isotropic pushes at tokens of outlying norm, which no other number counts."""
    name, outlying = "ratio_outliers", ~ordinary(case)
    if not outlying.any():
        reason = f"no held-out token is longer than {OUTLIER:g} times the median"
        return Finding(NAME, name, math.nan, null=1.0, reason=reason)
    tokens = chosen(case, max(case.spec.tokens // 8, 1), outlying)
    nats = _costs_by_kind(case, tokens, ("isotropic",))
    pushes = nats["isotropic"][:, 1:].mean(1)
    return ratio_of(NAME, name, nats["error"][:, 0], pushes, case.documents[tokens], case.seed)


def _run(case: Case) -> Audited:
    runnable(case)
    tokens = chosen(case, case.spec.tokens, ordinary(case))
    nats = _costs_by_kind(case, tokens, KINDS)
    documents, seed = case.documents[tokens], case.seed
    error = nats["error"][:, 0]
    if error.mean() <= FLOOR:
        raise NotEstimable("the reconstruction costs the model nothing: there is no error to audit")
    findings = [mean_of(NAME, "cost", error, documents, seed)]
    for kind in KINDS:
        findings += _kind_findings(case, tokens, nats, kind)
    norm = ratio_of(NAME, "norm_share", nats["x_rescaled"][:, 0], error, documents, seed)
    findings.append(replace(norm, null=0.0))
    findings.append(ratio_of(NAME, "at_norm_of_x", nats["rescaled"][:, 0], error, documents, seed))
    findings += [_outlier_finding(case), *_row_findings(case)]
    column = np.full(case.n_tokens, math.nan)
    column[tokens] = error
    return Audited(findings, tokens={"cost": column})


_KIND_WORDS = {
    "isotropic": "in a direction drawn evenly from the sphere",
    "covariance": "along z1 - z2, z drawn from a Gaussian with the activations' mean and covariance",
    "mixture": "along the difference of two other held-out activations",
    "same_cosine": "that change length and cosine to x as the error does, and are random across x",
}
_KIND_ADVICE = {
    "isotropic": "Above 1 is usual, since any push along directions that occur costs more than one "
    "drawn evenly; conclude nothing from it before the covariance ratio is read.",
    "covariance": "Above 1 the error sits where the model reads, more than its size says: do not judge "
    "this SAE by explained variance, and keep the error term in every intervention.",
    "mixture": "Read it beside the covariance ratio: where the two differ, activations are far from "
    "Gaussian and the lower one is the safer claim.",
    "same_cosine": "Where this is near 1 and the isotropic ratio is not, the cost comes from the change "
    "of length and cosine: correct shrinkage before looking further.",
}


def _kind_quantities(kind: str) -> tuple[Quantity, ...]:
    name, push = kind.replace("_", " "), f"pushes as long as the error, {_KIND_WORDS[kind]}"
    cost = "KL(P || P'), summed over the token's prediction and the next ones in the window"
    return (
        Quantity(
            f"cost_{kind}", "nats per token", "neither", "it is a null", f"Mean {cost}, of {push}.",
            "Only the unit of the ratio: compare the reconstruction's cost with it.",
        ),
        Quantity(
            f"ratio_{kind}", "1", "lower", "1; its range is that of the self-test",
            f"Mean cost of the reconstruction over mean cost of {push}.", _KIND_ADVICE[kind],
        ),
        Quantity(
            f"ratio_{kind}_by_token", "1", "lower", "the same quantile where a further push is the error",
            f"10%, 50% and 90% quantile over tokens of the ratio to {name} pushes at the same token.",
            "A high upper quantile with an ordinary median means a few tokens carry the cost: find them "
            "with the flags.", along="quantile over tokens"),
        Quantity(
            f"self_test_{kind}", "1", "neither", "1",
            f"The ratio where a further {name} push replaces the error.",
            "If 1 is outside its interval, there are too few tokens or documents: trust no ratio here.",
        ),
        Quantity(
            f"rows_ratio_{kind}", "1", "lower", "1",
            f"As ratio_{kind}, where all tokens of a row are replaced at once and all its predictions "
            "are compared.",
            "Where it exceeds the ratio of single tokens, errors of different tokens add up: check "
            "whole-text replacement apart.",
        ),
    )  # fmt: skip


_FIRST = ("cost", *(f"ratio_{kind}" for kind in KINDS))
"""Numbers that are shown first: the cost, and its ratio to the cost of each kind of push."""
_QUANTITIES = (
    Quantity(
        "cost", "nats per token", "lower", "that of the pushes beside it",
        "Mean KL(P || P') when one activation is replaced by its reconstruction, summed over the token's "
        "prediction and the next ones in the window.",
        "Large where the reconstruction cannot stand for the activation: keep the error in interventions.",
    ),
    *(quantity for kind in KINDS for quantity in _kind_quantities(kind)),
    Quantity(
        "norm_share", "1", "lower", "0",
        "Cost of x scaled to the length of x_hat, over the cost of x_hat.",
        "Near 1 the loss is one of length alone: rescale the reconstruction.",
    ),
    Quantity(
        "at_norm_of_x", "1", "lower", "1",
        "Cost of x_hat scaled to the length of x, over the cost of x_hat.",
        "Below 1, rescaling reconstructions to the length of the activation repairs that much for free.",
    ),
    Quantity(
        "ratio_outliers", "1", "lower", "1",
        "The isotropic ratio at tokens longer than 3 times the median, which no other number counts.",
        "Never pool these with other tokens; where it is high, leave such tokens out of interventions.",
    ),
    Quantity(
        "rows_cost", "nats per prediction", "lower", "0",
        "Mean KL per prediction when all tokens of a row are replaced; rows are counted.",
        "",
    ),
)  # fmt: skip

AUDITS.add(
    Audit(
        NAME,
        "What the reconstruction costs the model",
        "Does the error hurt the model's predictions more than other pushes of its length?",
        "Gurnee (2024), SAE reconstruction errors are (empirically) pathological, for the isotropic, "
        "same-cosine and rescaled pushes; Lee and Heimersheim (2024, arXiv 2410.12555) for covariance "
        "mixtures, written anew. Deviations: single tokens are replaced as well as whole rows, the "
        "same-cosine push also has the error's length, the mixture of real activations is ours, and "
        "intervals are over documents.",
        tuple(sorted(_QUANTITIES, key=lambda quantity: quantity.name not in _FIRST)),
        _run,
    ),
)
