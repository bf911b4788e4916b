"""A scoreboard says how SAEs score on a generator, and what chance and knowledge of the truth would score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.progress import Track, untracked
from sae_placebo.lab import GeneratorSpec, Sample, ceilings, recovery, recovery_null, support
from sae_placebo.lab.experiments.base import (
    LabTraining,
    explained_variance,
    fit_on,
    scale_of,
)
from sae_placebo.lab.experiments.kept_runs import KeptRuns
from sae_placebo.lab.experiments.phase import SeedMean, mean_of
from sae_placebo.lab.experiments.score_sets import TrainedOn
from sae_placebo.lab.experiments.sweeps import Value
from sae_placebo.lab.generators.base import compose
from sae_placebo.lab.scores.composition import composition
from sae_placebo.lab.sizes import check_generator, check_training
from sae_placebo.lab.text_tables import in_columns
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
"""Names of the scores, and how a table calls them."""
TRAINING, BOARD = "train SAEs", "scoreboard"
"""What the progress of training and of the scoreboard is called."""


@dataclass(frozen=True)
class ScoreLine:
    """A score's mean over seeds, its null, and its ceiling.

    Attributes:
        name: One of `SCORES`.
        trained: The score after training.
        null: What the score is by chance: for random directions (`mmcs`, `found`, `conjunction`, `atomic`),
            for each latent's firings in a random order of the tokens (`recall`, `precision`), or for the SAE
            before training (`ev`, `l0`, `nearest`).
        ceiling: What the true dictionary with the true codes scores; of `recall` and `precision`, what
            matching pursuit with the true dictionary scores. None where a generator has no ceiling.
        reason: Why there is no ceiling; None where there is one.
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
    track: Track = untracked,
) -> list[ScoreLine]:
    """Train SAEs of one kind on a generator with several seeds, and return their scores on held-out tokens.

    Args:
        generator: Draws the tokens.
        sae: Settings of the SAE in the generator's units.
        lab: How the SAEs are trained.
        seeds: Seeds of the initial weights and of the tokens, one per SAE.
        heldout_tokens: Number of tokens that are scored.
        track: Shows the progress of training and of scoring.
    """
    trained = train_on(generator, sae, lab, seeds, heldout_tokens=heldout_tokens, track=track)
    return board_of(trained, track)


def train_on(
    generator: GeneratorSpec,
    sae: SAESpec,
    lab: LabTraining,
    seeds: Sequence[int],
    *,
    heldout_tokens: int = 8_192,
    track: Track = untracked,
    kept: Path | None = None,
) -> list[TrainedOn]:
    """Train SAEs of one kind on a generator, and return one per seed, with the tokens that score it.

    Arguments are those of `scoreboard`; SAEs are kept in the folder `kept`, and those that are there are not
    trained again.

    Raises:
        SpecError: this machine's memory cannot hold the tokens or an SAE; nothing was drawn.
        StoreError: `kept` cannot be written.
    """
    check_training(generator, sae, len(seeds), heldout_tokens)
    draw = generator.held_out(heldout_tokens)
    scaling = scale_of(generator, lab)
    store = KeptRuns(kept, {"generator": generator, "sae": sae, "lab": lab})
    store.prepare()
    left = [seed for seed in seeds if not store.has("random", seed)]
    trained = []
    with track(TRAINING, lab.n_tokens * len(left), "tokens") as advance:
        for seed in seeds:

            def train(seed: int = seed) -> SAE:
                fits = fit_on(generator, {"sae": sae}, lab, [seed], advance=advance)
                return fits["sae", seed].sae

            after = store.trained("random", seed, sae, train)
            start = sae.create(generator.d_in, seed).fold(scaling.mean, scaling.factor)
            trained.append(TrainedOn(generator, lab, after, start, draw, seed))
    return trained


def board_of(trained: Sequence[TrainedOn], track: Track = untracked) -> list[ScoreLine]:
    """Return the scores of SAEs that differ in their seed; see `scoreboard`."""
    scores, nulls = [], []
    with track(BOARD, len(trained), "SAEs") as advance:
        for one in trained:
            of_seed, by_chance = _scores(one.sae, one.start, one.draw, one.seed)
            scores.append(of_seed)
            nulls.append(by_chance)
            advance(1)
    tops, reason = _ceilings(trained[0].draw)
    return [
        ScoreLine(name, mean_of(scores, name), mean_of(nulls, name), tops[name], reason.get(name))
        for name in SCORES
    ]


def sae_for(generator: GeneratorSpec, kind: str, settings: Mapping[str, Value]) -> SAESpec:
    """Return the settings of an SAE that is as wide and as sparse as a generator's truth.

    Args:
        generator: Its truth gives the number of latents and, where the SAE has one, `k` or `l0`.
        kind: Kind of the SAE.
        settings: Settings of the SAE; they take the place of those from the truth.

    Raises:
        SpecError: the kind or a setting is unknown, a value is not allowed, or this machine's memory cannot
            hold the generator.
    """
    check_generator(generator)
    truth, known = generator.truth, SAES[kind].model_fields
    table: dict[str, Value] = {"kind": kind, "d_sae": truth.n_features, **settings}
    if "k" in known:
        table.setdefault("k", max(1, round(truth.l0)))
    elif "l0" in known and not {"l0", "coefficient"} & set(settings):
        # training starts with half of the latents active, and a penalty makes them fewer
        table["l0"] = min(truth.l0, float(table["d_sae"]) / 2)
    return parse_sae(table)


def in_lines(lines: Sequence[ScoreLine]) -> str:
    """Return the scores as a table of text, one row per score."""
    rows = [("", "trained", "95% over seeds", "n", "null", "ceiling")]
    for line in lines:
        trained = line.trained
        between = "" if trained.low is None else f"{trained.low:.3f} to {trained.high:.3f}"
        rows.append(
            (
                SCORES[line.name],
                _number(trained.mean),
                between or f"none: {trained.reason}",
                str(trained.n),
                _number(line.null.mean),
                _number(line.ceiling) if line.reason is None else f"none: {line.reason}",
            )
        )
    return in_columns(rows)


def _scores(sae: SAE, start: SAE, draw: Sample, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return an SAE's scores and their nulls; a score that cannot be estimated is None, with a `reason`."""
    trained: dict[str, Any] = {"reason": None} | dict.fromkeys(SCORES)
    null = dict(trained)
    for scores, scored in ((trained, sae), (null, start)):
        codes = scored.encode(draw.x)
        scores["ev"] = explained_variance(draw.x, scored.decode(codes))
        scores["l0"] = len(codes.values) / codes.n_tokens
    rows, truth = sae.params["W_dec"], draw.truth.dictionary
    of_rows, of_start = recovery(rows, truth), recovery(start.params["W_dec"], truth)
    by_chance = recovery_null(truth, sae.d_sae, seed)
    trained |= {"mmcs": of_rows.mmcs, "nearest": of_rows.mmcs_of_latents, "found": of_rows.share()}
    null |= {"mmcs": by_chance.mmcs, "nearest": of_start.mmcs_of_latents, "found": by_chance.share}
    try:
        agreed = support(sae.encode(draw.x), draw.codes, rows, truth)
        trained |= {"recall": agreed.recall, "precision": agreed.precision}
        null |= {"recall": agreed.null_recall, "precision": agreed.null_precision}
    except NotEstimable as problem:
        trained["reason"] = null["reason"] = str(problem)
    try:
        parts = composition(sae, draw, seed)
        for name, share in (("conjunction", parts.conjunctions()), ("atomic", parts.atomic())):
            trained[name], null[name] = share.value, share.null
    except NotEstimable as problem:
        trained["reason"] = null["reason"] = str(problem)
    return trained, null


def _ceilings(draw: Sample) -> tuple[dict[str, float | None], dict[str, str]]:
    """Return the ceiling of each score, and the reasons for those that there are not."""
    truth = draw.truth
    reached = explained_variance(draw.x, compose(draw.codes, truth.dictionary))
    tops: dict[str, float | None] = dict.fromkeys(SCORES)
    tops |= {"ev": reached, "l0": truth.l0, "mmcs": 1.0, "nearest": 1.0}
    tops |= {"found": 1.0, "conjunction": 0.0, "atomic": 1.0}
    try:
        tops["recall"] = tops["precision"] = ceilings(draw).omp
    except NotEstimable as problem:
        return tops, dict.fromkeys(("recall", "precision"), str(problem))
    return tops, {}


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
