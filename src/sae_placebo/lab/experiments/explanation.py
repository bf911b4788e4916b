"""An explanation is a split that is run with its progress shown, told in words, and written to a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae_placebo.core.progress import Progress
from sae_placebo.core.time_left import Outlook, WorkPiece
from sae_placebo.lab import GeneratorSpec
from sae_placebo.lab.experiments.base import LabTraining
from sae_placebo.lab.experiments.objectives import Missing, SplitSpec, Value
from sae_placebo.lab.experiments.split import CODING, TRAINING, ObjectiveSplit, split
from sae_placebo.lab.text_tables import (
    bounds,
    in_columns,
    number,
    prepared,
    write_results,
)
from sae_placebo.saes import SAESpec

_PRODUCTS_PER_SECOND = 2e9
"""Roughly how many multiplications of a matrix product a core does; it only starts the foretold time."""
_PASSES = {TRAINING: 9, CODING: 100}
"""Roughly how many products with the dictionary a token takes."""


def explain(
    generator: GeneratorSpec,
    sae: SAESpec,
    lab: LabTraining,
    seeds: Sequence[int],
    spec: SplitSpec | None = None,
    *,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> ObjectiveSplit:
    """Say why SAEs of one kind miss a generator's truth; see `split` for what is compared.

    Args:
        generator: Draws the tokens.
        sae: Settings of the SAE, with its penalty in the generator's units.
        lab: How every run is trained.
        seeds: Seeds of ordinary training, one or more.
        spec: How the split is measured and judged; None takes the defaults.
        folder: Where the table is written, as `explanation.parquet` and `explanation.json`, and where trained
            SAEs are kept, in `runs/`, so that a stopped run goes on. None writes nothing.
        progress: Shows the work, and how long all of it will take.

    Raises:
        NotEstimable: the objective is not the same number in all runs.
        SpecError: there is no seed.
        StoreError: the folder cannot be written.
    """
    spec, progress = spec or SplitSpec(), progress or Progress()
    if folder is not None:
        prepared(folder)
    kept = None if folder is None else folder / "runs"
    with progress.whole(_outlook(generator, sae, lab, len(seeds), spec)):
        found = split(generator, sae, lab, seeds, spec, progress.track, kept)
    if folder is not None:
        settings = {"generator": generator, "sae": sae, "lab": lab, "split": spec}
        facts: dict[str, Any] = {name: x.model_dump(mode="json") for name, x in settings.items()}
        facts |= {"seeds": list(seeds), "cause": found.cause, "reason": found.reason}
        write_results(folder, "explanation", found.table(), facts)
    return found


def _outlook(
    generator: GeneratorSpec, sae: SAESpec, lab: LabTraining, n_seeds: int, spec: SplitSpec
) -> Outlook:
    """Return a rough plan of a split: training, then the best codes of each dictionary."""
    truth = generator.truth
    n_runs = n_seeds + 2 * min(n_seeds, spec.true_runs)
    tokens = {
        TRAINING: n_runs * lab.n_tokens * sae.d_sae,
        CODING: spec.tokens * (1 + len(truth.alternatives)) * truth.n_features,
    }
    pieces = [
        WorkPiece(name, name, n * generator.d_in * _PASSES[name] / _PRODUCTS_PER_SECOND + 0.1)
        for name, n in tokens.items()
    ]
    return Outlook(pieces, rough=True, name="whole")


def in_lines(found: ObjectiveSplit) -> str:
    """Return a split as text: a table of objectives and gaps, the cause, and why it is this one."""
    rows = [("", "value", "95% of the mean", "tokens", "")]
    for title, values in (("J", found.objectives), ("gap", found.gaps)):
        rows += [_line(f"{title}: {name}", value) for name, value in values.items()]
    rows += [_line(f"other dictionary: {name}", x) for name, x in found.alternatives.items()]
    rows += [
        (f"J: random, seed {seed}", number(j), "", "", "") for seed, j in found.by_seed.items()
    ]
    for name, cosine in found.mmcs.items():
        rows.append((f"feature to latent cosine: {name}", number(cosine), "", "", ""))
        nearest = number(found.mmcs_of_latents[name])
        rows.append((f"latent to feature cosine: {name}", nearest, "", "", ""))
    rows.append(("a gap below this is none", number(found.threshold), "", "", ""))
    surely = "" if found.oracle_is_exact else "\nthe oracle's codes may not be the best there are"
    return f"{in_columns(rows)}{surely}\ncause: {found.cause} ({found.reason})"


def _line(name: str, value: Value | Missing) -> tuple[str, str, str, str, str]:
    if isinstance(value, Missing):
        return name, "none", "", "", value.reason
    n = f"{value.n_tokens:,}"
    return name, number(value.mean), bounds(value.low, value.high), n, ""
