"""What an SAE's error is made of, and what each part of it costs the model.

One part of an error is a wrong scale, one a missing offset, one a linear function of the activation, and one
is what another SAE would have found. Each of these is repaired in another way. Only the rest is news.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from sae_placebo.audits.base import AUDITS, Audit, Audited, Case, Finding, Quantity, over_documents
from sae_placebo.audits.edits import chosen, costs, mean_of, ordinary, ratio_of
from sae_placebo.audits.linear_predictions import ridge
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import generator, numpy_generator

NAME = "error_parts"
PARTS = ("shrinkage", "offset", "linear", "other", "rest")
"""Parts of the error, in the order in which they are taken off it."""
MAX_OTHERS = 2
"""The most other SAEs that are tried."""
_NOTHING = 1e-9
"""Share of the error's square below which what is left of it is rounding."""
_NO_OTHER = "no other SAE of these activations"


@dataclass(frozen=True, eq=False)
class ErrorParts:
    """Parts of the error at held-out tokens of documents that nothing was fitted on.

    Attributes:
        tokens: The tokens, as indices of held-out tokens.
        parts: The parts in the order of `PARTS`; they add up to the error.
        untrained: What a dictionary that learned nothing predicts in the place of the other SAE.
        after_scale: The error without shrinkage and offset.
        raw: The ridge prediction of the whole error from x.
        other: Name of the other SAE; empty where there is none.
    """

    tokens: Int64[np.ndarray, " token"]
    parts: Float64[np.ndarray, "part token d_in"]
    untrained: Float64[np.ndarray, "token d_in"]
    after_scale: Float64[np.ndarray, "token d_in"]
    raw: Float64[np.ndarray, "token d_in"]
    other: str


def split(case: Case) -> ErrorParts:
    """Return the parts of the error, each fitted, on half of the documents, on what those before it leave.

    Shrinkage is (s - 1)(x_hat - b_dec) for the best number s. The offset is a vector, fitted together with
    another such number. The linear part is a ridge prediction from x. The other SAE's part is a ridge
    prediction from x and from its reconstruction; nothing linear in x is left for it, since the linear part
    is off already. Of several other SAEs, it is the one that predicts most where it is fitted.

    Raises:
        NotEstimable: there are too few documents or tokens.
    """
    fit, score = (_sample(case, half) for half in case.halves())
    x, x_hat, error = case.x.numpy(), case.reconstruction.numpy(), case.error.numpy()
    bias, documents = case.b_dec.numpy(), case.documents[fit]

    raw = ridge(x[fit], error[fit], documents, case.seed)
    left = {"fit": error[fit].astype(np.float64), "score": error[score].astype(np.float64)}
    codes = {"fit": (x_hat[fit] - bias).astype(np.float64), "score": x_hat[score] - bias}
    parts = []

    def take(predicted: dict[str, Float64[np.ndarray, "token d_in"]]) -> None:
        for half in left:
            left[half] = left[half] - predicted[half]
        parts.append(predicted["score"])

    scale = _slope(codes["fit"], left["fit"])
    take({half: scale * values for half, values in codes.items()})
    middle, level = codes["fit"].mean(0), left["fit"].mean(0)
    scale = _slope(codes["fit"] - middle, left["fit"] - level)
    take({half: scale * (values - middle) + level for half, values in codes.items()})
    after_scale = left["score"]
    linear = ridge(x[fit], left["fit"], documents, case.seed)
    take({"fit": linear(x[fit]), "score": linear(x[score])})
    untrained = _predicted(case, _untrained(case), left["fit"], fit, score)
    name, other = "", np.zeros_like(untrained)
    if case.others:
        name, other = _best_other(case, left["fit"], fit, score)
    parts.append(other)
    parts.append(left["score"] - other)
    return ErrorParts(score, np.stack(parts), untrained, after_scale, raw(x[score]), name)


def _sample(case: Case, half: Bool[np.ndarray, " token"]) -> Int64[np.ndarray, " chosen"]:
    """Return tokens of a half, without outlying norms, at most `ridge_tokens` of them."""
    tokens = np.flatnonzero(half & ordinary(case))
    random = numpy_generator(case.seed, "audit", "ridge tokens")
    return np.sort(random.permutation(tokens)[: case.spec.ridge_tokens]).astype(np.int64)


def _slope(x: Float64[np.ndarray, "token d_in"], y: Float64[np.ndarray, "token d_in"]) -> float:
    """Return the number s for which s x fits y best; 0 where x is 0."""
    square = float((x * x).sum())
    return float((x * y).sum()) / square if square > 0 else 0.0


def _predicted(
    case: Case,
    x_hat: Float[np.ndarray, "all d_in"],
    left: Float64[np.ndarray, "token d_in"],
    fit: Int64[np.ndarray, " token"],
    score: Int64[np.ndarray, " scored"],
) -> Float64[np.ndarray, "scored d_in"]:
    """Return what x and a reconstruction together predict, at other tokens, of what is left."""
    x = case.x.numpy()
    fitted, scored = (np.concatenate([x[part], x_hat[part]], axis=1) for part in (fit, score))
    return ridge(fitted, left, case.documents[fit], case.seed)(scored)


def _untrained(case: Case) -> Float[np.ndarray, "token d_in"]:
    """Return what a random dictionary reconstructs from each token's largest projections on it.

    There are as many of them as the SAE has active latents per token. It is a function of x that is not
    linear, as an SAE is, but that learned nothing.
    """
    x = case.x
    rows = torch.randn(
        4 * x.shape[1], x.shape[1], generator=generator(case.seed, "audit", "untrained")
    )
    rows = rows / rows.norm(dim=1, keepdim=True)
    k = max(round(case.reading.codes.nnz / max(case.n_tokens, 1)), 1)
    middle, parts = x.mean(0), []
    for start in range(0, len(x), 4_096):
        block = x[start : start + 4_096]
        largest = ((block - middle) @ rows.T).clamp_min(0).topk(min(k, len(rows)), dim=1)
        kept = torch.zeros(len(block), len(rows)).scatter_(1, largest.indices, largest.values)
        parts.append(kept @ rows)
    return np.asarray(torch.cat(parts).numpy())


def _best_other(
    case: Case,
    left: Float64[np.ndarray, "token d_in"],
    fit: Int64[np.ndarray, " token"],
    score: Int64[np.ndarray, " scored"],
) -> tuple[str, Float64[np.ndarray, "scored d_in"]]:
    """Return the other SAE that predicts most where it is fitted, and what it predicts elsewhere."""
    best, chosen_one = -math.inf, ("", np.zeros((len(score), left.shape[1])))
    for name in sorted(case.others)[:MAX_OTHERS]:
        x_hat = replace(case, reading=case.others[name]).reconstruction.numpy()
        both = _predicted(case, x_hat, left, fit, np.concatenate([fit, score]))
        gain = -float(((left - both[: len(fit)]) ** 2).sum())
        if gain > best:
            best, chosen_one = gain, (name, both[len(fit) :])
    return chosen_one


def _squares(rows: Float[np.ndarray, "token d_in"]) -> Float64[np.ndarray, " token"]:
    """Return the squared length of each row."""
    return np.asarray((rows.astype(np.float64) ** 2).sum(1))


def _of_null(finding: Finding, null: Finding) -> Finding:
    """Return a finding with the value and interval of another one as its null."""
    return replace(finding, null=null.value, null_low=null.low, null_high=null.high)


def shares(case: Case, found: ErrorParts) -> list[Finding]:
    """Return which share of the squared error each part takes off, in order."""
    documents = case.documents[found.tokens]
    error = found.parts.sum(0)
    whole, findings, left = _squares(error), [], error
    for name, part in zip(PARTS, found.parts, strict=True):
        if name == "other" and not found.other:
            findings.append(Finding(NAME, "share_other", math.nan, reason=_NO_OTHER))
            continue
        before, after = _squares(left), _squares(left - found.untrained)
        left = left - part
        gain = before - _squares(left)
        share = ratio_of(NAME, f"share_{name}", gain, whole, documents, case.seed)
        share = replace(share, null=0.0)
        if name == "other":
            null = ratio_of(NAME, "", before - after, whole, documents, case.seed)
            share = _of_null(share, null)
        findings.append(share)
    return findings


def explained(
    name: str,
    case: Case,
    tokens: Int64[np.ndarray, " token"],
    targets: Float64[np.ndarray, "token d"],
    predicted: Float64[np.ndarray, "token d"],
) -> Finding:
    """Return the share of the targets' variance that a prediction explains, as a finding whose null is 0.

    It is 1 less the squared residual over the variance, and may be below 0.

    Args:
        name: Name of the number.
        case: The SAE under audit.
        tokens: The tokens that targets are of.
        targets: What is predicted.
        predicted: The prediction, fitted on other tokens.
    """
    documents = case.documents[tokens]
    total, n = float(_squares(targets - targets.mean(0)).sum()), len(tokens)
    if total <= _NOTHING * max(float(_squares(case.error[tokens].numpy()).sum()), 1e-300):
        return Finding(NAME, name, math.nan, n=n, null=0.0, reason="nothing is left to explain")
    parts = np.stack([_squares(targets - predicted), _squares(targets - targets.mean(0))])
    value, low, high = over_documents(lambda s: 1 - s[0] / s[1], parts, documents, case.seed)
    return Finding(NAME, name, value, low, high, n, null=0.0)


def linearity(case: Case, found: ErrorParts) -> list[Finding]:
    """Return how far the error and its squared length are linear in x, and the FVU that this leaves."""
    tokens, seed = found.tokens, case.seed
    error, x = case.error[tokens].numpy().astype(np.float64), case.x.numpy()
    linear = explained("r2_error", case, tokens, error, found.raw)
    after = explained("r2_after_scale", case, tokens, found.after_scale, found.parts[2])
    if _squares(found.after_scale).sum() <= _NOTHING * _squares(error).sum():
        reason = "scale and offset explain all of the error"
        after = Finding(NAME, after.name, math.nan, n=len(tokens), reason=reason)
    fit = _sample(case, case.halves()[0])
    every = _squares(case.error.numpy())[:, None]
    norm = _squares(x)[:, None]
    documents = case.documents[fit]
    from_x = ridge(x[fit], every[fit], documents, seed)(x[tokens])
    from_norm = ridge(norm[fit], every[fit], documents, seed)(norm[tokens])
    size = explained("r2_size", case, tokens, every[tokens], from_x)
    size_null = explained("", case, tokens, every[tokens], from_norm)
    variance = _squares(x[tokens] - x[tokens].mean(0))
    owners = case.documents[tokens]
    plain = ratio_of(NAME, "fvu", _squares(error), variance, owners, seed)
    nonlinear = ratio_of(NAME, "fvu_nl", _squares(error - found.raw), variance, owners, seed)
    # an error independent of x is in x_hat as well: the best scale then takes off f / (1 + f) of it, f the
    # FVU, and puts in a multiple of x, which is as large a share of what is left
    after = replace(after, null=plain.value / (1 + plain.value))
    return [linear, after, _of_null(size, size_null), plain, _of_null(nonlinear, plain)]


def _cost_findings(case: Case, found: ErrorParts) -> list[Finding]:
    """Return what each part costs: the fall of KL when it is taken off, after those before it and alone.

    The null of a part's share of the cost is its share of the squared error at the same tokens.
    """
    if case.subject is None:
        names = ["cost", *(f"{what}_{part}" for part in PARTS for what in ("cost", "alone"))]
        return [Finding(NAME, name, math.nan, reason=case.no_subject) for name in names]
    among = np.zeros(case.n_tokens, dtype=bool)
    among[found.tokens] = True
    tokens = chosen(case, case.spec.tokens, among)
    parts = found.parts[:, np.searchsorted(found.tokens, tokens)]
    # the error with the first k parts repaired, and with one alone; all parts repaired is x itself
    errors = [parts[k:].sum(0) for k in range(len(PARTS))]
    errors += [parts.sum(0) - part for part in parts[1:]]
    nats = costs(case, tokens, -torch.from_numpy(np.stack(errors, axis=1)).float())
    documents, seed = case.documents[tokens], case.seed
    after = np.concatenate([nats[:, : len(PARTS)], np.zeros((len(tokens), 1))], axis=1)
    alone = np.concatenate([nats[:, 1:2], nats[:, len(PARTS) :]], axis=1)
    sizes = [float(_squares(error).sum()) for error in errors[: len(PARTS)]] + [0.0]
    findings = [mean_of(NAME, "cost", after[:, 0], documents, seed)]
    for k, part in enumerate(PARTS):
        null = (sizes[k] - sizes[k + 1]) / sizes[0] if sizes[0] > 0 else math.nan
        falls = {"cost": after[:, k] - after[:, k + 1], "alone": after[:, 0] - alone[:, k]}
        for what, fall in falls.items():
            if part == "other" and not found.other:
                findings.append(Finding(NAME, f"{what}_other", math.nan, reason=_NO_OTHER))
                continue
            share = ratio_of(NAME, f"{what}_{part}", fall, after[:, 0], documents, seed)
            findings.append(replace(share, null=null))
    return findings


def _run(case: Case) -> Audited:
    found = split(case)
    return Audited([*shares(case, found), *linearity(case, found), *_cost_findings(case, found)])


_WORDS = {
    "shrinkage": (
        "the best scale of x_hat - b_dec",
        "Rescale the reconstruction, or train without an L1 penalty on the code.",
    ),
    "offset": ("a vector added, with the scale fitted anew", "Add the offset to b_dec: it costs nothing."),
    "linear": (
        "a ridge prediction from x of what is left",
        "A dense subspace is missing from the dictionary: add a low-rank linear part beside it, or ask at a "
        "higher L0.",
    ),
    "other": (
        "a ridge prediction from x and another SAE's reconstruction, of what is left",
        "Above its null, another dictionary finds what this one misses: read features off both, or train "
        "wider.",
    ),
    "rest": (
        "what no part before predicts",
        "Not linear in x, nor in another dictionary of this kind: no claim about the model's use of this SAE "
        "holds for it.",
    ),
}  # fmt: skip


def _part_quantities(part: str) -> tuple[Quantity, ...]:
    words, advice = _WORDS[part]
    null = "0" if part != "other" else "the same with an untrained dictionary of 4 d_in rows"
    order = ", ".join(PARTS)
    return (
        Quantity(
            f"share_{part}", "share", "neither", null,
            f"Share of squared error on held-out documents taken off by {words}; in the order {order}.",
            advice,
        ),
        Quantity(
            f"cost_{part}", "share", "neither", "its share of squared error at the same tokens",
            f"Share of the reconstruction's KL that goes when the error loses its part {part}, those before "
            "it being off already.",
            "Above its null this part hurts the model more than its size says: repair it first.",
        ),
        Quantity(
            f"alone_{part}", "share", "neither", "its share of squared error at the same tokens",
            f"Share of the reconstruction's KL that goes when the error loses its part {part} only.",
            "Where it differs much from the cost in order, parts of the error cancel: repair none alone.",
        ),
    )  # fmt: skip


_QUANTITIES = (
    *(quantity for part in PARTS for quantity in _part_quantities(part)),
    Quantity(
        "cost", "nats per token", "lower", "see the audit of pushes",
        "Mean KL(P || P') of the reconstruction of one token, at documents that nothing was fitted on.",
        "The whole of which the costs of parts are shares.",
    ),
    Quantity(
        "r2_error", "share", "lower", "0 for noise; 1 for mere shrinkage",
        "Variance of the error explained by a ridge prediction from x, on held-out documents.",
        "",
    ),
    Quantity(
        "r2_after_scale", "share", "lower", "FVU / (1 + FVU), for an error independent of x",
        "The same of the error without shrinkage and offset.",
        "High: a dense linear subspace is missing; a linear map beside the SAE would repair that share.",
    ),
    Quantity(
        "r2_size", "share", "neither", "that of a prediction from |x|^2 alone",
        "Variance of |e|^2 explained by a ridge prediction from x, on held-out documents.",
        "High: where the SAE is bad is known in advance; use the flags.",
    ),
    Quantity(
        "fvu", "share", "lower", "1 for the mean as reconstruction",
        "Squared error over variance of x, on held-out documents.",
        "Compare FVU only at equal L0.",
    ),
    Quantity(
        "fvu_nl", "share", "lower", "the FVU itself: nothing in the error is linear",
        "FVU of x_hat plus the ridge prediction of the error from x.",
        "This part stays when the dictionary grows: do not expect width to cure it.",
    ),
)  # fmt: skip

AUDITS.add(
    Audit(
        NAME,
        "What the error is made of",
        "How much of the error is scale, offset, linear in x, or known to another SAE, and what does each "
        "part cost?",
        "Engels, Riggs and Tegmark (2024, arXiv 2410.14670) for the linear part, |e|^2 and FVU_nl; Wright "
        "and Sharkey (2024) for scale. Deviations: always scored on other documents than those fitted on, "
        "with a penalty; scale and offset come off first; the other SAE enters by its reconstruction, held "
        "against that of random directions, the largest kept, as many as the SAE keeps; the KL of parts is "
        "ours.",
        tuple(sorted(_QUANTITIES, key=lambda quantity: not quantity.name.startswith("share_"))),
        _run,
    ),
)
