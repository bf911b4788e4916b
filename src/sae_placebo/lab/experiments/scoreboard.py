"""What SAEs make of a generator: each score beside what chance and what knowing the truth reach."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import torch
from sae_placebo.lab import GeneratorSpec, Sample, ceilings, recovery, recovery_null, support
from sae_placebo.lab.experiments.base import Advance, LabTraining, fit_on, scale_of
from sae_placebo.lab.experiments.phase import SeedMean, mean_of
from sae_placebo.lab.experiments.sweeps import Value
from sae_placebo.lab.generators.base import compose
from sae_placebo.lab.scores.composition import composition
from sae_placebo.saes import SAE, SAES, SAESpec, parse_sae

SCORES = {
    "ev": "explained variance",
    "l0": "L0",
    "mmcs": "feature to latent cosine (MMCS)",
    "nearest": "latent to feature cosine",
    "found": "features with a cosine > 0.9",
    "recall": "support recall",
    "precision": "support precision",
    "conjunction": "composed latents",
    "atomic": "atomic latents",
}
"""Names of the scores, and what they are called."""


@dataclass(frozen=True)
class ScoreLine:
    """A score's mean over seeds, its null, and its ceiling.

    Attributes:
        name: One of `SCORES`.
        trained: After training.
        null: Of random directions, of the same firing rates, or (`ev`, `l0`) of the SAE before training.
        ceiling: Of the true dictionary and codes; of support, of pursuit with the true dictionary. None: a
            generator that gives none; `reason` says why.
        reason: Why there is no ceiling.
    """

    name: str
    trained: SeedMean
    null: SeedMean
    ceiling: float | None
    reason: str | None = None


def scoreboard(
    generator: GeneratorSpec,
    sae: SAESpec,
    lab: LabTraining,
    seeds: Sequence[int],
    *,
    heldout_tokens: int = 8_192,
    advance: Advance = lambda _: None,
) -> list[ScoreLine]:
    """Return how SAEs of one kind, trained on a generator with several seeds, score on held-out tokens."""
    draw = generator.held_out(heldout_tokens)
    scaling = scale_of(generator, lab)
    trained = fit_on(generator, {"sae": sae}, lab, seeds, advance=advance)
    found, nulls = [], []
    for seed in seeds:
        start = sae.create(generator.d_in, seed).fold(scaling.mean, scaling.factor)
        of_seed, by_chance = _scores(trained["sae", seed].sae, start, draw, seed)
        found.append(of_seed)
        nulls.append(by_chance)
    tops, reason = _ceilings(draw)
    return [
        ScoreLine(name, mean_of(found, name), mean_of(nulls, name), tops[name], reason.get(name))
        for name in SCORES
    ]


def sae_for(generator: GeneratorSpec, kind: str, settings: Mapping[str, Value]) -> SAESpec:
    """Return an SAE for a generator: as wide, and as sparse, as its truth, where nothing else is said.

    Raises:
        SpecError: the kind or a setting is unknown, or a value is not allowed.
    """
    truth, known = generator.truth, SAES[kind].model_fields
    table: dict[str, Value] = {"kind": kind, "d_sae": truth.n_features, **settings}
    if "k" in known:
        table.setdefault("k", max(1, round(truth.l0)))
    elif "l0" in known and not {"l0", "coefficient"} & set(settings):
        # training starts with half of the latents active, and a penalty makes them fewer
        table["l0"] = min(truth.l0, float(table["d_sae"]) / 2)
    return parse_sae(table)


def in_lines(lines: Sequence[ScoreLine]) -> str:
    """Return the scores as a table of text."""
    rows = [("", "trained", "95% over seeds", "n", "null", "ceiling")]
    for line in lines:
        one = line.trained
        between = "" if one.low is None else f"{one.low:.3f} to {one.high:.3f}"
        rows.append(
            (
                SCORES[line.name],
                _number(one.mean),
                between or f"none: {one.reason}",
                str(one.n),
                _number(line.null.mean),
                _number(line.ceiling) if line.reason is None else f"none: {line.reason}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return "\n".join(
        "  ".join([*(part.ljust(width) for part, width in zip(row, widths, strict=False)), row[5]])
        for row in rows
    )


def _scores(sae: SAE, start: SAE, draw: Sample, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return an SAE's scores and their nulls; None where one cannot be estimated."""
    found: dict[str, Any] = {"reason": None} | dict.fromkeys(SCORES)
    null = dict(found)
    for scores, one in ((found, sae), (null, start)):
        codes = one.encode(draw.x)
        scores["ev"] = _explained(one.decode(codes), draw)
        scores["l0"] = len(codes.values) / codes.n_tokens
    rows, truth = sae.params["W_dec"], draw.truth.dictionary
    of_rows, of_start = recovery(rows, truth), recovery(start.params["W_dec"], truth)
    by_chance = recovery_null(truth, sae.d_sae, seed)
    found |= {"mmcs": of_rows.mmcs, "nearest": of_rows.mmcs_of_latents, "found": of_rows.share()}
    null |= {"mmcs": by_chance.mmcs, "nearest": of_start.mmcs_of_latents, "found": by_chance.share}

    def detected() -> None:
        agreed = support(sae.encode(draw.x), draw.codes, rows, truth)
        found.update(recall=agreed.recall, precision=agreed.precision)
        null.update(recall=agreed.null_recall, precision=agreed.null_precision)

    def composed() -> None:
        parts = composition(sae, draw, seed)
        for name, share in (("conjunction", parts.conjunctions()), ("atomic", parts.atomic())):
            found[name], null[name] = share.value, share.null

    for part in (detected, composed):
        _attempt(part, found, null)
    return found, null


def _attempt(part: Callable[[], None], *scores: dict[str, Any]) -> None:
    try:
        part()
    except NotEstimable as problem:
        for one in scores:
            one["reason"] = str(problem)


def _ceilings(draw: Sample) -> tuple[dict[str, float | None], dict[str, str]]:
    truth = draw.truth
    made = compose(draw.codes, truth.dictionary)
    tops: dict[str, float | None] = dict.fromkeys(SCORES)
    tops |= {"ev": _explained(made, draw), "l0": truth.l0, "mmcs": 1.0, "nearest": 1.0}
    tops |= {"found": 1.0, "conjunction": 0.0, "atomic": 1.0}
    try:
        tops["recall"] = tops["precision"] = ceilings(draw).omp
    except NotEstimable as problem:
        return tops, dict.fromkeys(("recall", "precision"), str(problem))
    return tops, {}


def _explained(made: torch.Tensor, draw: Sample) -> float:
    left = (draw.x - made).double().square().sum()
    return 1 - float(left / (draw.x - draw.x.mean(dim=0)).double().square().sum())


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
