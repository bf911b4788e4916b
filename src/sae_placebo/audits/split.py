"""What an SAE's error is made of, and what each part of it costs the model.

Part of an error is a wrong scale, part a missing offset, part a linear function of the activation, part
what another SAE would have found. Each is repaired in another way; only the rest is news.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from sae_placebo.audits.base import AUDITS, Audit, Audited, Case, Finding, Quantity, over_documents
from sae_placebo.audits.edits import chosen, costs, mean_of, ordinary, ratio_of
from sae_placebo.audits.ridge import ridge
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import generator, numpy_generator

NAME = "split"
PARTS = ("shrinkage", "offset", "linear", "other", "rest")
"""In the order in which they are taken off."""
MAX_OTHERS = 2
_NOTHING = 1e-9


@dataclass(frozen=True, eq=False)
class ErrorParts:
    """Parts of the error at held-out tokens of documents that nothing was fitted on.

    Attributes:
        tokens: Which.
        parts: [part, token, d_in], in the order of `PARTS`; they add up to the error.
        untrained: What a dictionary that learned nothing predicts in place of the other SAE.
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
    """Return the error in parts: each is fitted on what those before it leave, on half of the documents.

    Shrinkage is (s - 1)(x_hat - b_dec) of the best number s. The offset is a vector, fitted with another
    such number. The linear part is a ridge prediction from x; the other SAE's a prediction from x and its
    reconstruction, less nothing, since the linear part is off already. Of several others it is the one
    that predicts most where it is fitted.

    Raises:
        NotEstimable: too few documents or tokens.
    """
    fit, score = (_some(case, half) for half in case.halves())
    x = case.reading.activations.float().cpu().numpy()
    found, error = case.reconstruction.numpy(), case.error.numpy()
    bias = case.reading.sae.params["b_dec"].detach().float().cpu().numpy()
    documents = case.documents[fit].astype(np.int64)

    raw = ridge(x[fit], error[fit], documents, case.seed)
    left = {"fit": error[fit].astype(np.float64), "score": error[score].astype(np.float64)}
    codes = {"fit": (found[fit] - bias).astype(np.float64), "score": found[score] - bias}
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
    untrained = _beside(case, _untrained(case), left["fit"], fit, score)
    name, other = "", np.zeros_like(untrained)
    if case.others:
        name, other = _best_other(case, left["fit"], fit, score)
    parts.append(other)
    parts.append(left["score"] - other)
    return ErrorParts(score, np.stack(parts), untrained, after_scale, raw(x[score]), name)


def _some(case: Case, half: Bool[np.ndarray, " token"]) -> Int64[np.ndarray, " some"]:
    """Return tokens of a half, without outlying norms, at most as many as are fitted on."""
    tokens = np.flatnonzero(half & ordinary(case))
    random = numpy_generator(case.seed, "audit", "ridge tokens")
    return np.sort(random.permutation(tokens)[: case.spec.ridge_tokens]).astype(np.int64)


def _slope(x: Float64[np.ndarray, "token d_in"], y: Float64[np.ndarray, "token d_in"]) -> float:
    square = float((x * x).sum())
    return float((x * y).sum()) / square if square > 0 else 0.0


def _beside(
    case: Case,
    found: Float[np.ndarray, "all d_in"],
    left: Float64[np.ndarray, "token d_in"],
    fit: Int64[np.ndarray, " token"],
    score: Int64[np.ndarray, " scored"],
) -> Float64[np.ndarray, "scored d_in"]:
    """Return what a reconstruction, beside x, predicts of what is left."""
    x = case.reading.activations.float().cpu().numpy()
    fitted = np.concatenate([x[fit], found[fit]], axis=1)
    one = ridge(fitted, left, case.documents[fit].astype(np.int64), case.seed)
    return one(np.concatenate([x[score], found[score]], axis=1))


def _untrained(case: Case) -> Float[np.ndarray, "token d_in"]:
    """Return what a random dictionary reconstructs: the largest projections, as many as the SAE's codes.

    A function of x as bent as an SAE, that learned nothing.
    """
    x = case.reading.activations.float().cpu()
    rows = torch.randn(
        4 * x.shape[1], x.shape[1], generator=generator(case.seed, "audit", "untrained")
    )
    rows = rows / rows.norm(dim=1, keepdim=True)
    k = max(round(case.reading.codes.nnz / max(case.n_tokens, 1)), 1)
    middle, parts = x.mean(0), []
    for start in range(0, len(x), 4_096):
        some = x[start : start + 4_096]
        largest = ((some - middle) @ rows.T).clamp_min(0).topk(min(k, len(rows)), dim=1)
        kept = torch.zeros(len(some), len(rows)).scatter_(1, largest.indices, largest.values)
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
        found = replace(case, reading=case.others[name]).reconstruction.numpy()
        both = _beside(case, found, left, fit, np.concatenate([fit, score]))
        gain = -float(((left - both[: len(fit)]) ** 2).sum())
        if gain > best:
            best, chosen_one = gain, (name, both[len(fit) :])
    return chosen_one


# --- numbers -----------------------------------------------------------------------------------------


def _squares(rows: Float[np.ndarray, "token d_in"]) -> Float64[np.ndarray, " token"]:
    return np.asarray((rows.astype(np.float64) ** 2).sum(1))


def shares(case: Case, found: ErrorParts) -> list[Finding]:
    """Return how much of the squared error each part takes off, in order."""
    documents = case.documents[found.tokens].astype(np.int64)
    error = found.parts.sum(0)
    whole, listed, left = _squares(error), [], error
    for name, part in zip(PARTS, found.parts, strict=True):
        if name == "other" and not found.other:
            reason = "no other SAE of these activations"
            listed.append(Finding(NAME, "share_other", math.nan, reason=reason))
            continue
        before, after = _squares(left), _squares(left - found.untrained)
        left = left - part
        gain = before - _squares(left)
        one = replace(ratio_of(NAME, f"share_{name}", gain, whole, documents, case.seed), null=0.0)
        if name == "other":
            null = ratio_of(NAME, "", before - after, whole, documents, case.seed)
            one = replace(one, null=null.value, null_low=null.low, null_high=null.high)
        listed.append(one)
    return listed


def explained(
    name: str,
    case: Case,
    tokens: Int64[np.ndarray, " token"],
    targets: Float64[np.ndarray, "token d"],
    predicted: Float64[np.ndarray, "token d"],
) -> Finding:
    """Return the share of variance that a prediction explains: 1 - residual over variance; null 0."""
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
    error = case.error[tokens].numpy().astype(np.float64)
    x = case.reading.activations.float().cpu().numpy()
    listed = [explained("r2_error", case, tokens, error, found.raw)]
    after = explained("r2_after_scale", case, tokens, found.after_scale, found.parts[2])
    if _squares(found.after_scale).sum() <= _NOTHING * _squares(error).sum():
        after = Finding(
            NAME, after.name, math.nan, n=len(tokens), null=0.0,
            reason="scale and offset explain all of the error",
        )  # fmt: skip
    listed.append(after)
    fit = _some(case, case.halves()[0])
    every = _squares(case.error.numpy())[:, None]
    norm = _squares(x)[:, None]
    documents = case.documents[fit].astype(np.int64)
    from_x = ridge(x[fit], every[fit], documents, seed)(x[tokens])
    from_norm = ridge(norm[fit], every[fit], documents, seed)(norm[tokens])
    size = explained("r2_size", case, tokens, every[tokens], from_x)
    null = explained("", case, tokens, every[tokens], from_norm)
    listed.append(replace(size, null=null.value, null_low=null.low, null_high=null.high))
    variance = _squares(x[tokens] - x[tokens].mean(0))
    owners = case.documents[tokens].astype(np.int64)
    plain = ratio_of(NAME, "fvu", _squares(error), variance, owners, seed)
    nonlinear = ratio_of(NAME, "fvu_nl", _squares(error - found.raw), variance, owners, seed)
    # an error independent of x is in x_hat as well: the best scale then takes off f / (1 + f) of it, f the
    # FVU, and puts in a multiple of x, which is as large a share of what is left
    listed[1] = replace(listed[1], null=plain.value / (1 + plain.value))
    listed.append(plain)
    listed.append(replace(nonlinear, null=plain.value, null_low=plain.low, null_high=plain.high))
    return listed


def _cost_findings(case: Case, found: ErrorParts) -> list[Finding]:
    """Return what each part costs: the fall of KL when it is added to what is repaired already.

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
    documents, seed = case.documents[tokens].astype(np.int64), case.seed
    after = np.concatenate([nats[:, : len(PARTS)], np.zeros((len(tokens), 1))], axis=1)
    alone = np.concatenate([nats[:, 1:2], nats[:, len(PARTS) :]], axis=1)
    sizes = [float(_squares(error).sum()) for error in errors[: len(PARTS)]] + [0.0]
    listed = [mean_of(NAME, "cost", after[:, 0], documents, seed)]
    for k, part in enumerate(PARTS):
        if part == "other" and not found.other:
            reason = "no other SAE of these activations"
            listed += [
                Finding(NAME, f"{what}_other", math.nan, reason=reason)
                for what in ("cost", "alone")
            ]
            continue
        null = (sizes[k] - sizes[k + 1]) / sizes[0] if sizes[0] > 0 else math.nan
        for what, fall in (
            ("cost", after[:, k] - after[:, k + 1]),
            ("alone", after[:, 0] - alone[:, k]),
        ):
            one = ratio_of(NAME, f"{what}_{part}", fall, after[:, 0], documents, seed)
            listed.append(replace(one, null=null))
    return listed


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
