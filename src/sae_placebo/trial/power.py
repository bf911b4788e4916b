"""The power of a trial: which difference a design detects four times in five.

The effect is trained minus one drawn control, of a class's share of latents or another metric. Its
error has four sources, and more of each thing shrinks one of them:

    documents / n_documents  +  re-draws / M  +  (SAEs + latents / d_sae) (1 / S + 1 / (M S)),

with S SAE seeds and M re-draws. `latents` is what one SAE's share varies because it counts d_sae
latents: at most p (1 - p), that of independent draws, and less where SAEs of one model find the same
classes. `SAEs` is what is left of the variance between SAE seeds, which more latents do not lower.

A difference is **detected** where the package's own 95% interval leaves zero out on the right side.
So trials are simulated under this model, and `stats.spreads` and `stats.components` get what they would get
in a trial, the moderation included: where a trial's numbers say little of each other's variance, two seeds
give an interval whose Student quantile is wide, and that, more than the variance, is what a third seed mends.

What is not here: thresholds of classes read counts, so on more tokens some latents change class, and
a wider SAE has other classes; the numbers are for designs near the one that they were measured on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Float

from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.core.spec import Spec, numpy_generator
from sae_placebo.stats.components import (
    DOCUMENTS,
    MODEL_SEEDS,
    SAE_SEEDS,
    Component,
    half_width,
)
from sae_placebo.stats.moderation import VariancePrior, moderated
from sae_placebo.stats.spreads import JOINT, MeanSquare, components_of, mean_squares
from sae_placebo.trial.record import CONFIDENCE
from sae_placebo.trial.results import Trial
from sae_placebo.trial.variances import DEFAULTS, TrialSize, Variances, measured

DRAWS = 500
SEEDS = (2, 3, 4, 6)
_TOKENS, _WIDTHS = (1, 2, 4, 16), (1, 4, 16)
_WHY_LESS = (
    "as the documents' part of the variance shrinks, the seeds' part weighs more, and an interval from "
    "few seeds has a wide Student quantile; more seeds mend that"
)
# every SAE of every simulated trial is a number in memory
_MOST = {"heldout_tokens": 10**12, "d_sae": 10**9, "sae_seeds": 100, "model_seeds": 100}


class Simulated(Spec):
    """Simulated trials of one design: the smallest true difference that each would detect.

    Attributes:
        needed: For each trial, the interval's half-width less the estimate's error, in ascending order.
    """

    needed: tuple[float, ...]

    def power(self, difference: float) -> float:
        """Return the share of trials that detect a true difference, its sign included."""
        return float(np.searchsorted(self.needed, abs(difference))) / len(self.needed)

    def smallest(self, power: float) -> float:
        """Return the smallest true difference that is detected with this power."""
        return max(float(np.quantile(self.needed, power)), 0.0)


def simulate(
    variances: Variances, design: TrialSize, draws: int = DRAWS, seed: int = 0
) -> Simulated:
    """Return simulated trials of a design: errors are normal, and intervals are those of `stats.effects`.

    The error and the interval's width do not depend on the true difference, so one set of trials
    gives the power at every difference. Shares are taken on their own scale, not on that of counts.
    """
    random = numpy_generator(seed, "power")
    n_seeds, n_models = design.sae_seeds, design.model_seeds
    of_sae = variances.saes + variances.latents / design.d_sae
    trained = random.normal(0, of_sae**0.5, (draws, 1, n_seeds))
    control = random.normal(0, of_sae**0.5, (draws, n_models, n_seeds))
    control += random.normal(0, variances.redraws**0.5, (draws, n_models, 1))
    of_documents = variances.documents / design.n_documents
    df = 1 / (1 / (design.n_documents - 1) + 1 / (design.replicates - 1))
    documents = random.normal(0, of_documents**0.5, draws)
    estimated = of_documents * random.chisquare(df, draws) / df
    needed = np.empty(draws)
    for i in range(draws):
        parts = [Component(DOCUMENTS, float(estimated[i]), df)]
        parts += _of_seeds(trained[i], False, variances, design)
        parts += _of_seeds(control[i], True, variances, design)
        error = float(trained[i].mean() - control[i].mean() + documents[i])
        needed[i] = half_width(parts, CONFIDENCE) - error
    return Simulated(needed=tuple(np.sort(needed).tolist()))


def _of_seeds(
    y: Float[np.ndarray, "model sae_seed"], drawn: bool, variances: Variances, design: TrialSize
) -> tuple[Component, ...]:
    """Return the parts of one arm's seeds, moderated as much as in the trial that was measured."""
    of_sae = variances.saes + variances.latents / design.d_sae
    priors = {
        SAE_SEEDS: VariancePrior(of_sae, variances.seeds_df),
        JOINT: VariancePrior(of_sae, variances.seeds_df),
        MODEL_SEEDS: VariancePrior(
            of_sae + design.sae_seeds * variances.redraws, variances.redraws_df
        ),
    }
    squares = {}
    for source, own in mean_squares(y, drawn).items():
        value, df = moderated(np.array(own.value), own.df, priors[source])
        squares[source] = MeanSquare(float(value), float(df))
    least = variances.latents / design.d_sae if design.counts_latents else 0.0
    return components_of(squares, y.size, least)


def answer(
    difference: float,
    trial: str | Path | None = None,
    *,
    metric: str | None = None,
    control: str | None = None,
    **changes: int | None,
) -> str:
    """Return `power_table` for a finished trial, or for the demo's variances and design.

    Args:
        difference: The difference that should be detected.
        trial: Folder of a finished trial, `<store>/trials/<name>`.
        metric: The metric in that trial; `share_token_family` unless given.
        control: The control that the trained arm is compared with; every drawn control, pooled, unless given.
        changes: Any of heldout_tokens, d_sae, sae_seeds and model_seeds, where the design differs in them.

    Raises:
        SpecError: a number is out of its range, the trial has no such metric or control, or one of these is
            named without a trial.
        NotEstimable: the trial has no interval to take variances from, or nothing varies.
    """
    if trial is not None:
        variances, design = measured(Trial(trial), metric or "share_token_family", control)
    elif metric is not None or control is not None:
        raise SpecError(
            "a metric or a control is known from a finished trial only; give one with --from, such as "
            "runs/trials/demo"
        )
    else:
        variances, design = DEFAULTS, TrialSize()
    given = {name: value for name, value in changes.items() if value is not None}
    for name, value in given.items():
        least = 2 if name.endswith("seeds") else 1
        if value < least:
            raise SpecError(f"{name} is {value}; an interval needs at least {least}")
        if value > _MOST[name]:
            raise SpecError(f"{name} is {value}; give at most {_MOST[name]:,}")
    tokens = given.pop("heldout_tokens", None)
    return power_table(variances, design.of(**given), difference, tokens)


def power_table(
    variances: Variances,
    measured_on: TrialSize,
    difference: float,
    tokens: int | None = None,
    target: float = 0.8,
) -> str:
    """Return as text what this design detects, and what other designs would.

    Args:
        variances: Variances of the metric.
        measured_on: The design of the trial at hand.
        difference: The difference that should be detected.
        tokens: Held-out tokens of the design whose power is wanted; those of the trial unless given.
        target: Power from which on a difference counts as detected.

    Raises:
        SpecError: the difference, the power or the number of tokens is out of its range.
        NotEstimable: no source varies.
    """
    if not 0 < difference < math.inf:
        raise SpecError(f"the difference is {difference}; it must be finite and above 0")
    if not 0.05 < target < 1:
        raise SpecError(f"the power is {target}; it must be above 0.05 and below 1")
    design = measured_on if tokens is None else measured_on.with_tokens(tokens)
    now = simulate(variances, design)
    parts = _parts(variances, design)
    total = sum(parts.values())
    if total == 0:
        raise NotEstimable("nothing varies at all, so any difference would be detected")
    shares = ", ".join(f"{name} {100 * part / total:.0f}%" for name, part in parts.items())
    lines = [
        f"{variances.said}.",
        f"standard deviation of the effect {total**0.5:.2g}: {shares}.",
        "",
        f"this design: {_described(design)}.",
        f"it detects {_number(now.smallest(target))} or more {100 * target:g}% of the time; "
        f"{difference:g} is detected {100 * now.power(difference):.0f}% of the time.",
        "",
        f"smallest difference detected {100 * target:g}% of the time (power at {difference:g})",
        "re-draws \\ SAE seeds" + "".join(f"{n:>16}" for n in SEEDS),
    ]
    enough: list[tuple[int, int, int]] = []
    for models in SEEDS:
        cells = []
        for seeds in SEEDS:
            found = simulate(variances, design.of(sae_seeds=seeds, model_seeds=models))
            cells.append(_cell(found, target, difference))
            if found.smallest(target) <= difference:
                enough.append(((1 + models) * seeds, models, seeds))
        lines.append(f"{models:>20}" + "".join(f"{cell:>16}" for cell in cells))
    lines += [
        "",
        _fewest(enough, difference, target),
        "",
        *_sizes(variances, measured_on, design, target),
    ]
    lines += ["", *_enough_tokens(variances, measured_on, difference, target)]
    return "\n".join(lines)


def _parts(variances: Variances, design: TrialSize) -> dict[str, float]:
    n, m = design.sae_seeds, design.model_seeds
    per_sae = 1 / n + 1 / (m * n)
    return {
        "documents": variances.documents / design.n_documents,
        "re-draws": variances.redraws / m,
        "SAEs": variances.saes * per_sae,
        "latents": variances.latents / design.d_sae * per_sae,
    }


def _described(design: TrialSize) -> str:
    return (
        f"{design.heldout_tokens:,} held-out tokens in {design.n_documents:,} documents, d_sae "
        f"{design.d_sae:,}, {design.sae_seeds} SAE seeds, {design.model_seeds} re-draws"
    )


def _number(value: float) -> str:
    return f"{value:.2g}" if value < 0.1 else f"{value:.3f}"


def _cell(found: Simulated, target: float, difference: float) -> str:
    return f"{_number(found.smallest(target))} ({100 * found.power(difference):.0f}%)"


def _fewest(enough: Sequence[tuple[int, int, int]], difference: float, target: float) -> str:
    if not enough:
        return (
            f"no design in this table detects {difference:g} {100 * target:g}% of the time; hold out "
            "more documents or use more seeds"
        )
    saes, models, seeds = min(enough)
    return (
        f"fewest SAEs that detect {difference:g}: {models} re-draws x {seeds} SAE seeds, {saes} SAEs in "
        "the trained arm and one control"
    )


def _sizes(
    variances: Variances, measured_on: TrialSize, design: TrialSize, target: float
) -> list[str]:
    """Return the smallest difference by held-out tokens and width, at the design's seeds."""
    widths = [design.d_sae * k for k in _WIDTHS]
    lines = [
        f"with {design.sae_seeds} SAE seeds and {design.model_seeds} re-draws",
        f"{'tokens held out':>20}" + "".join(f"{f'd_sae {w:,}':>16}" for w in widths),
    ]
    columns = []
    for factor in _TOKENS:
        wider = measured_on.with_tokens(design.heldout_tokens * factor)
        found = [simulate(variances, wider.of(d_sae=w)).smallest(target) for w in widths]
        cells = "".join(f"{_number(value):>16}" for value in found)
        lines.append(f"{wider.heldout_tokens:>20,}{cells}")
        columns.append(found)
    if any(y > x for some, more in pairwise(columns) for x, y in zip(some, more, strict=True)):
        lines.append(f"more text detects less in places: {_WHY_LESS}.")
    return lines


def _enough_tokens(
    variances: Variances, measured_on: TrialSize, difference: float, target: float
) -> list[str]:
    """Return the fewest held-out tokens, in doublings, that detect the difference with these seeds.

    Every doubling is simulated: what detects it with some text may not with more.
    """
    enough: dict[int, bool] = {}
    for factor in (2.0**doublings for doublings in range(-5, 11)):
        if round(measured_on.n_documents * factor) >= 5:
            some = measured_on.with_tokens(round(measured_on.heldout_tokens * factor))
            found = simulate(variances, some).smallest(target)
            enough[some.heldout_tokens] = found <= difference
    with_these = "with these seeds and this width,"
    fewest = next((tokens for tokens, is_enough in enough.items() if is_enough), None)
    if fewest is None:
        return [f"{with_these} no number of held-out tokens detects {difference:g}: add seeds."]
    said = f"{with_these} {fewest:,} held-out tokens detect {difference:g} (in doublings)."
    fails = [tokens for tokens, is_enough in enough.items() if tokens > fewest and not is_enough]
    if fails:
        said += f" {fails[0]:,} do not: {_WHY_LESS}."
    return [said]
