"""How well labels can be read off the error, off the reconstruction, and off the activation itself."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from sae_placebo.audits.base import AUDITS, Audit, Audited, Case, Finding, Quantity, over_documents
from sae_placebo.audits.probes import (
    Tasks,
    areas,
    fit_probes,
    label_tasks,
    letter_tasks,
    with_null,
)
from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.spec import numpy_generator
from sae_placebo.stats.quantiles import mean_half_width

SOURCES = ("error", "reconstruction", "activation")
"""The vectors that labels are read off."""
_GROUPS = 20
"""Groups of documents between which an AUROC varies."""
_FEWEST_BITS = 0.002
"""Bits per token that must be readable off the activation for a share of them to mean something."""


class _Scores:
    """How well probes for all tasks, on one source, do on tokens that they were not fitted on.

    Args:
        logits: Answers of the probes.
        present: Whether each label holds.
        rate: Share of the fitted tokens with each label.
        groups: The group of each token's document.
    """

    def __init__(
        self,
        logits: Float32[np.ndarray, "token task"],
        present: Bool[np.ndarray, "token task"],
        rate: Float64[np.ndarray, " task"],
        groups: Int64[np.ndarray, " token"],
    ) -> None:
        self.auroc = areas(logits, present)
        self.right = (logits > np.log(rate / (1 - rate))) == present
        self.present = present
        with np.errstate(divide="ignore"):
            log = np.where(present, np.log2(rate), np.log2(1 - rate))
        signs = np.where(present, -logits, logits).astype(np.float64)
        # by how much the probe's log loss is below that of the rate alone
        self.bits = -np.logaddexp(0, signs) / math.log(2) - log
        self.groups = np.array(
            [areas(logits[groups == g], present[groups == g]) for g in range(int(groups.max()) + 1)]
        )


def _accuracy(
    case: Case, scores: _Scores, tokens: Int64[np.ndarray, " chosen"]
) -> tuple[float, float, float]:
    """Return the mean over labels of the accuracy at even odds, with its interval.

    It is the mean of the accuracies where a label holds and where it does not. A probe says yes where it
    gives the label more than the label's own rate.
    """
    n_labels = scores.present.shape[1]
    yes, no = scores.present.T, ~scores.present.T
    parts = np.concatenate([scores.right.T & yes, scores.right.T & no, yes, no])

    def mean(s: Float64[np.ndarray, "part replicate"]) -> Float64[np.ndarray, " replicate"]:
        right, total = s[: 2 * n_labels], s[2 * n_labels :]
        # a label that no token of a replicate has, or all have, is left out of it
        both = (total[:n_labels] > 0) & (total[n_labels:] > 0)
        share = right / np.maximum(total, 1)
        even = np.where(both, (share[:n_labels] + share[n_labels:]) / 2, 0)
        return np.asarray(even.sum(0) / np.where(both.any(0), both.sum(0), np.nan))

    return over_documents(mean, parts.astype(np.float64), case.documents[tokens], case.seed)


def run(case: Case) -> Audited:
    """Return how well labels are read off x, x_hat and x - x_hat, with permuted labels as the null.

    Raises:
        NotEstimable: no label can be probed.
    """
    try:
        tasks = label_tasks(case)
    except NotEstimable:
        if not case.letters:
            raise
        tasks = letter_tasks(case)
    random = numpy_generator(case.seed, "audit", "information", "labels")
    sources = {
        "error": case.error.numpy(),
        "reconstruction": case.reconstruction.numpy(),
        "activation": case.x.numpy(),
    }
    (tasks, moved), (fit, score) = with_null(case, tasks, random, "information")
    real = _scored(case, sources, tasks, fit, score)
    null = _scored(case, sources, moved, fit, score)
    findings = []
    for source in SOURCES:
        findings += _levels(case, source, real[source], null[source], score)
    return Audited(findings + _shares(case, real, null, score, tasks))


def _scored(
    case: Case,
    sources: Mapping[str, np.ndarray],
    tasks: Tasks,
    fit: Int64[np.ndarray, " fitted"],
    score: Int64[np.ndarray, " chosen"],
) -> dict[str, _Scores]:
    """Return the scores of probes for the tasks, one set of probes for each source."""
    present, truth = tasks.present[fit], tasks.present[score]
    rate = np.clip(present.mean(0), 1e-6, 1 - 1e-6)
    _, owner = np.unique(case.documents[score], return_inverse=True)
    out = {}
    for source, values in sources.items():
        probes = fit_probes(values[fit], present)
        out[source] = _Scores(probes.logits(values[score]), truth, rate, owner % _GROUPS)
    return out


def _levels(
    case: Case, source: str, real: _Scores, null: _Scores, tokens: Int64[np.ndarray, " chosen"]
) -> list[Finding]:
    """Return the AUROC, accuracy and bits of one source's probes, with those of the null."""
    n = len(tokens)
    mean = float(np.nanmean(real.auroc))
    with np.errstate(invalid="ignore"):
        groups = [np.nanmean(group) for group in real.groups if np.isfinite(group).any()]
    half = mean_half_width(np.array(groups)) if len(groups) > 2 else math.nan
    auroc = mean, mean - half, min(mean + half, 1.0)
    bits, no_bits = (_mean_bits(case, scores, tokens) for scores in (real, null))
    accuracy, chance = (_accuracy(case, scores, tokens) for scores in (real, null))
    return [
        Finding("label_information", f"auroc_{source}", *auroc, n, float(np.nanmean(null.auroc))),
        Finding("label_information", f"accuracy_{source}", *accuracy, n, *chance),
        Finding("label_information", f"bits_{source}", *bits, n, *no_bits),
    ]


def _mean_bits(
    case: Case, scores: _Scores, tokens: Int64[np.ndarray, " chosen"]
) -> tuple[float, float, float]:
    """Return the bits per token and label that probes are better than the labels' rates, with an interval."""
    parts = np.stack([scores.bits.mean(1), np.ones(len(tokens))])
    return over_documents(lambda s: s[0] / s[1], parts, case.documents[tokens], case.seed)


def _shares(
    case: Case,
    real: dict[str, _Scores],
    null: dict[str, _Scores],
    tokens: Int64[np.ndarray, " chosen"],
    tasks: Tasks,
) -> list[Finding]:
    """Return bits in the error, and bits lost by the reconstruction, over bits in the activation.

    Both are given for all labels that can be read off the activation together, and for each of them.
    """
    documents, n = case.documents[tokens], len(tokens)
    readable_labels = np.flatnonzero(real["activation"].bits.mean(0) > _FEWEST_BITS)
    if not len(readable_labels):
        reason = f"no label can be read off the activations by {_FEWEST_BITS} bits per token"
        return [
            Finding("label_information", name, math.nan, reason=reason)
            for name in ("error_share", "lost_share")
        ]

    def error(s: Float64[np.ndarray, "part replicate"]) -> Float64[np.ndarray, " replicate"]:
        return np.asarray(s[0] / np.where(s[2] > 0, s[2], np.nan))

    def lost(s: Float64[np.ndarray, "part replicate"]) -> Float64[np.ndarray, " replicate"]:
        return np.asarray(1 - s[1] / np.where(s[2] > 0, s[2], np.nan))

    out = []
    single = [(f"/{tasks.names[i]}", np.array([i])) for i in readable_labels]
    for suffix, columns in [("", readable_labels), *single]:
        parts = np.stack([real[source].bits[:, columns].sum(1) for source in SOURCES])
        # what permuted labels seem to say, over what is truly readable
        none = np.array([null[source].bits[:, columns].mean() for source in SOURCES])
        readable = float(real["activation"].bits[:, columns].mean())
        nulls = {"error_share": none[0] / readable, "lost_share": (none[2] - none[1]) / readable}
        for name, statistic in (("error_share", error), ("lost_share", lost)):
            value, low, high = over_documents(statistic, parts, documents, case.seed)
            null_value = float(nulls[name])
            out.append(Finding("label_information", name + suffix, value, low, high, n, null_value))
    return out


_WORDS = {
    "error": "the error x - x_hat",
    "reconstruction": "the reconstruction x_hat",
    "activation": "the activation x",
}
_NULL = "the same with labels that changed places with those of other documents"


def _quantities() -> tuple[Quantity, ...]:
    out = []
    for source, words in _WORDS.items():
        advice = {
            "error": "If it is far above its null, the SAE drops what you may want to ask about: "
            "probe x - x_hat too "
            "before you conclude that something is absent.",
            "reconstruction": "If it is well below that of the activation, labels do not survive "
            "the SAE: do not "
            "conclude from latents that the model lacks them.",
            "activation": "This is the ceiling of the other two; near its null, no label here can "
            "tell SAEs apart.",
        }[source]
        better = "lower" if source == "error" else "higher"
        for name, unit, definition in (
            ("auroc", "1", "area under the curve"),
            ("accuracy", "share", "accuracy at even odds"),
            (
                "bits",
                "bits per token",
                "entropy of the label less the probe's log loss, a lower bound of "
                "information; below 0 where the probe misleads",
            ),
        ):
            out.append(
                Quantity(
                    f"{name}_{source}",
                    unit,
                    better,  # type: ignore[arg-type]
                    _NULL,
                    f"mean over labels of the {definition}, of a logistic probe on {words}, on "
                    f"documents that it was "
                    "not fitted on",
                    advice,
                )
            )
    return tuple(out)


AUDITS.add(
    Audit(
        name="label_information",
        title="What the error knows",
        question="How much of what is known of the tokens went into the SAE's error?",
        source="Ours. Bits of a probe as a lower bound of information: Xu et al. 2020 (arXiv "
        "2002.10689). Labels are "
        "those of the text, or first letters of tokens where it has none.",
        quantities=(
            *_quantities(),
            Quantity(
                "error_share",
                "share",
                "lower",
                "bits that permuted labels seem to have in the error, over the same bits of the "
                "activation: about 0",
                "bits of the labels in the error, over their bits in the activation; per label "
                "behind a slash. Bits may "
                "be in the error and in the reconstruction at once",
                "For labels with a large share, use the activation or the error beside the "
                "latents.",
            ),
            Quantity(
                "lost_share",
                "share",
                "lower",
                "the same with permuted labels: about 0",
                "1 less the bits in the reconstruction over those in the activation; per label "
                "behind a slash",
                "For labels with a large share, widen the SAE or raise its L0 before you study "
                "them with it.",
            ),
        ),
        run=run,
    ),
)
