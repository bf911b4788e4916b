"""Why an SAE does not hold the truth: not identifiable, the objective, the encoder, or the optimization.

All that is compared is one number, the training objective J on held-out tokens, for dictionaries and
encoders that are brought about in different ways:

- `oracle`: the true dictionary, and for each token the best code there is;
- `true`: the true dictionary, held, and an encoder trained for it;
- `from_true`: training of everything that starts from `true`;
- `random`: ordinary training, once per seed;
- the oracle's J for each other dictionary of `Truth.alternatives`.

    amortization gap = J(true) - J(oracle)           what one pass of an encoder costs
    objective gap    = J(true) - J(from_true)        what the objective gains by leaving the truth
    optimization gap = median J(random) - min(J(random), J(from_true))

Source: the gaps are those of O'Neill, Gumran and Klindt (2025, amortization) and of the usual account of
dictionary learning; that they are measured together, on one objective and the same tokens, and turned into
one cause is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float32, Float64

from sae_placebo.core.errors import SpecError
from sae_placebo.core.lazy import torch
from sae_placebo.lab import GeneratorSpec, recovery
from sae_placebo.lab.experiments.base import LabTraining, fit_on
from sae_placebo.lab.experiments.objectives import Missing, ObjectiveMeter, Run, SplitSpec, Value
from sae_placebo.lab.scores.inference import nonnegative_pursuit
from sae_placebo.saes import SAE, ReLUSpec, SAESpec

Cause = Literal[
    "non-identifiable", "objective", "amortization", "optimization", "none", "undetermined"
]
Advance = Callable[[int], None]
Losses = Float64[np.ndarray, " block"]
_LABEL = "sae"
_SAME_TOKENS = 1e-3
"""Share of a token's energy that another dictionary may leave more than the truth, told the number of
features, and still count as one that makes the same tokens."""


@dataclass(frozen=True)
class ObjectiveSplit:
    """J of each way to a dictionary, the gaps between them, and the cause that they name.

    J is per token, in squared units of the generator's activations.

    Attributes:
        objectives: J by name: `oracle`, `true`, `from_true`, `random_best`, `random_median`.
        gaps: `amortization`, `objective`, `optimization`; differences are taken block by block.
        alternatives: J(oracle) of each other dictionary that makes the same tokens, less that of the truth.
        by_seed: J of each ordinary training.
        mmcs: Mean max cosine of features to latents, after `from_true` and (median) `random`.
        mmcs_of_latents: The same of latents to features, of latents that fire.
        threshold: Below it a gap is none.
        cause: See `cause_of`.
        reason: Why this cause, in a sentence.
        oracle_is_exact: Whether the oracle's codes are surely the best.
    """

    objectives: Mapping[str, Value | Missing]
    gaps: Mapping[str, Value | Missing]
    alternatives: Mapping[str, Value | Missing]
    by_seed: Mapping[int, float]
    mmcs: Mapping[str, float]
    mmcs_of_latents: Mapping[str, float]
    threshold: float
    cause: Cause
    reason: str
    oracle_is_exact: bool

    def table(self) -> list[dict[str, str | float | int | None]]:
        """Return one row per value: what, value, low, high, n (tokens), and a note where it has none."""
        rows: list[dict[str, str | float | int | None]] = []
        for title, found in (
            ("J", self.objectives),
            ("gap", self.gaps),
            ("alternative", self.alternatives),
        ):
            rows += [_row(f"{title}: {name}", value) for name, value in found.items()]
        rows += [_plain(f"J: random, seed {seed}", value) for seed, value in self.by_seed.items()]
        rows += [_plain(f"mmcs: {name}", value) for name, value in self.mmcs.items()]
        rows += [
            _plain(f"mmcs of latents: {name}", value)
            for name, value in self.mmcs_of_latents.items()
        ]
        rows.append({**_plain("threshold", self.threshold), "note": ""})
        rows.append({**_plain("cause", None), "note": f"{self.cause}: {self.reason}"})
        return rows


def _row(what: str, value: Value | Missing) -> dict[str, str | float | int | None]:
    if isinstance(value, Missing):
        return {**_plain(what, None), "note": value.reason}
    return {
        "what": what,
        "value": value.mean,
        "low": value.low,
        "high": value.high,
        "n": value.n_tokens,
        "note": "",
    }


def _plain(what: str, value: float | None) -> dict[str, str | float | int | None]:
    return {"what": what, "value": value, "low": None, "high": None, "n": None, "note": ""}


def split(
    generator: GeneratorSpec,
    sae: SAESpec,
    lab: LabTraining,
    seeds: Sequence[int],
    spec: SplitSpec | None = None,
    advance: Advance = lambda _: None,
) -> ObjectiveSplit:
    """Return the split of one generator and one SAE.

    With `lab.bias = "none"` the truth is within reach. Where `b_dec` is held at the mean of activations, the
    oracle has the same `b_dec`, since that is what training may use. An SAE with fewer latents than there
    are features cannot hold the truth; its truth is then the most frequent features, as many as it has
    latents.

    For a penalty that is steered, and for one that changes in training (p-annealed), runs have different
    objectives and there is no split.

    Args:
        generator: Gives the tokens.
        sae: The SAE, with its penalty in the generator's units; see `fit_on`.
        lab: How every run is trained.
        seeds: Of ordinary training.
        spec: How it is measured.
        advance: Called with the number of tokens after each training step.

    Raises:
        NotEstimable: the objective is not the same number in all runs.
        SpecError: no seed.
    """
    spec = spec or SplitSpec()
    if not seeds:
        raise SpecError("a split needs at least one seed of ordinary training")
    judge = ObjectiveMeter.of(generator, sae, lab, spec)
    trained = fit_on(generator, {_LABEL: sae}, lab, seeds, advance=advance)
    runs = {seed: judge.of_sae(one.sae) for (_, seed), one in trained.items()}
    truth = _reachable(judge, sae.d_sae)
    first = list(seeds)[: spec.true_runs]
    held, moved = _from_truth(generator, lab, first, truth, judge, advance)
    return _judged(judge, truth, runs, held, moved)


def _reachable(judge: ObjectiveMeter, d_sae: int) -> Float32[torch.Tensor, "feature d_in"]:
    """Return the features; with fewer latents, the most frequent ones."""
    truth = judge.draw.truth
    if d_sae >= truth.n_features:
        return truth.dictionary
    frequent = truth.rates.argsort(descending=True, stable=True)[:d_sae]
    return truth.dictionary[frequent.sort().values]


def _from_truth(
    generator: GeneratorSpec,
    lab: LabTraining,
    seeds: Sequence[int],
    truth: Float32[torch.Tensor, "feature d_in"],
    judge: ObjectiveMeter,
    advance: Advance,
) -> tuple[Run, Run]:
    """Return the SAE with the true dictionary held, and what training makes of it; the best of all seeds."""
    narrow = _as_wide_as(judge.sae, len(truth), generator.d_in)
    held, moved = [], []
    for seed in seeds:
        start = _with_rows(judge.inner_of(narrow).create(generator.d_in, seed), truth)
        start = SAE(narrow, start.fold(judge.scaling.mean, judge.scaling.factor).params)
        frozen = fit_on(
            generator,
            {_LABEL: narrow},
            lab,
            [seed],
            starts={_LABEL: start},
            frozen=("W_dec",),
            advance=advance,
        )[_LABEL, seed].sae
        held.append(judge.of_sae(frozen))
        begin = _widened(frozen, judge, seed)
        freed = fit_on(
            generator, {_LABEL: judge.sae}, lab, [seed], starts={_LABEL: begin}, advance=advance
        )
        moved.append(judge.of_sae(freed[_LABEL, seed].sae))
    return min(held, key=lambda run: run.mean), min(moved, key=lambda run: run.mean)


def _as_wide_as(sae: SAESpec, n: int, d_in: int) -> SAESpec:
    """Return the same objective for an SAE of n latents."""
    changed: dict[str, object] = {"d_sae": n}
    if isinstance(sae, ReLUSpec) and sae.scaling == "mean_both" and sae.coefficient is not None:
        changed["coefficient"] = sae.coefficient * n / sae.d_sae
    return type(sae).model_validate({**sae.model_dump(), **changed})


def _with_rows(sae: SAE, rows: Float32[torch.Tensor, "row d_in"]) -> SAE:
    """Return the SAE whose first latents read and write `rows`."""
    decoder, encoder = sae.params["W_dec"].clone(), sae.params["W_enc"].t().clone()
    decoder[: len(rows)], encoder[: len(rows)] = rows, rows
    return SAE(sae.spec, {**sae.params, "W_dec": decoder, "W_enc": encoder.t()})


def _widened(narrow: SAE, judge: ObjectiveMeter, seed: int) -> SAE:
    """Return an SAE of full width whose first latents are those of `narrow`."""
    if narrow.d_sae == judge.sae.d_sae:
        return SAE(judge.sae, narrow.params)
    fresh = judge.inner.create(narrow.d_in, seed)
    params = dict(fresh.fold(judge.scaling.mean, judge.scaling.factor).params)
    for name, tensor in narrow.params.items():
        if name == "W_enc":
            params[name] = torch.cat([tensor, params[name][:, narrow.d_sae :]], dim=1)
        elif tensor.ndim and len(tensor) == narrow.d_sae and name != "b_dec":
            params[name] = torch.cat([tensor, params[name][narrow.d_sae :]])
        else:
            params[name] = tensor
    return SAE(judge.sae, params)


def _makes_the_same_tokens(judge: ObjectiveMeter, rows: Float32[torch.Tensor, "atom d_in"]) -> bool:
    """Return whether a dictionary explains the tokens as well as the truth, with as few atoms each."""
    n = min(2048, len(judge.draw.x))
    x, counts = judge.draw.x[:n], judge.draw.codes.offsets[: n + 1].diff()
    most = int(counts.max())
    if most == 0:
        return False
    left = []
    for dictionary in (rows, judge.draw.truth.dictionary):
        errors = nonnegative_pursuit(x, dictionary, most).errors
        lengths = counts.clamp_max(errors.shape[1] - 1)
        left.append(float(errors.gather(1, lengths[:, None]).mean()))
    return left[0] <= left[1] + _SAME_TOKENS * judge.energy


def _alternatives(
    judge: ObjectiveMeter, oracle: Losses | Missing, like: SAE
) -> dict[str, Losses | Missing]:
    """Return, for each other dictionary, J with the best codes less that of the truth, by block."""
    found: dict[str, Losses | Missing] = {}
    for name, rows in judge.draw.truth.alternatives.items():
        if isinstance(oracle, Missing):
            found[name] = oracle
        elif len(rows) > judge.sae.d_sae:
            found[name] = Missing(f"it has {len(rows)} rows, the SAE {judge.sae.d_sae} latents")
        elif not _makes_the_same_tokens(judge, rows):
            found[name] = Missing("it does not make the same tokens with as few rows")
        else:
            losses, _ = judge.oracle(rows, like)
            found[name] = losses if isinstance(losses, Missing) else losses - oracle
    return found


def _judged(
    judge: ObjectiveMeter,
    truth: Float32[torch.Tensor, "feature d_in"],
    runs: Mapping[int, Run],
    held: Run,
    moved: Run,
) -> ObjectiveSplit:
    oracle, exact = judge.oracle(truth, held.sae)
    if not isinstance(oracle, Missing) and not exact:
        # the encoder's codes are codes too, and pursuit may have missed them
        oracle = np.minimum(oracle, held.losses)
    ordered = sorted(runs.values(), key=lambda run: run.mean)
    # of an even number the worse of the two in the middle: it is one that was trained
    best, median = ordered[0], ordered[len(ordered) // 2]
    lowest = min(best, moved, key=lambda run: run.mean)
    objectives: dict[str, Losses | Missing] = {
        "oracle": oracle,
        "true": held.losses,
        "from_true": moved.losses,
        "random_best": best.losses,
        "random_median": median.losses,
    }
    gaps: dict[str, Losses | Missing] = {
        "objective": held.losses - moved.losses,
        "amortization": oracle if isinstance(oracle, Missing) else held.losses - oracle,
        "optimization": median.losses - lowest.losses,
    }
    others = _alternatives(judge, oracle, held.sae)
    recall, precision = {}, {}
    for name, run in (("from_true", moved), ("random_median", median)):
        fires = judge.fired(run.sae)
        recall[name] = recovery(run.sae.params["W_dec"], truth).mmcs
        precision[name] = recovery(run.sae.params["W_dec"][fires], truth).mmcs_of_latents
    scale = held.mean if isinstance(oracle, Missing) else float(oracle.mean())
    threshold = judge.spec.tolerance * max(scale, judge.energy / 20)
    left = min(recall["from_true"], precision["from_true"]) < 1 - judge.spec.moved
    values = {name: judge.value(gap) for name, gap in gaps.items()}
    rivals = {name: judge.value(gap) for name, gap in others.items()}
    cause, reason = cause_of(values, rivals, threshold, left_truth=left)
    return ObjectiveSplit(
        {name: judge.value(losses) for name, losses in objectives.items()},
        values,
        rivals,
        {seed: run.mean for seed, run in runs.items()},
        recall,
        precision,
        threshold,
        cause,
        reason,
        exact,
    )


def cause_of(
    gaps: Mapping[str, Value | Missing],
    alternatives: Mapping[str, Value | Missing],
    threshold: float,
    *,
    left_truth: bool,
) -> tuple[Cause, str]:
    """Return the cause that gaps name, and why, by these rules in this order.

    1. Another dictionary that makes the same tokens has a J(oracle) that is not above that of the truth by
       more than `threshold`, up to the interval's lower end: `non-identifiable`.
    2. The largest gap lies above `threshold` with its whole interval: that gap is the cause. An objective
       gap counts only if training left the truth; if it stayed, `true` was not trained to its end, and the
       cause is `undetermined`.
    3. All gaps lie below `threshold` with their whole intervals: `none`.
    4. Else `undetermined`.

    Args:
        gaps: `objective`, `amortization`, `optimization`.
        alternatives: J(oracle) less that of the truth, by dictionary.
        threshold: Below it a gap is none.
        left_truth: Whether training that started at the truth left it.
    """
    for name, rival in alternatives.items():
        if isinstance(rival, Value) and rival.low <= threshold:
            return "non-identifiable", (
                f"another dictionary ({name}) makes the same tokens, and the objective is "
                f"{rival.mean:+.3g} there against the truth"
            )
    known = {name: gap for name, gap in gaps.items() if isinstance(gap, Value)}
    largest = max(known, key=lambda name: known[name].mean)
    gap = known[largest]
    if gap.low > threshold:
        if largest == "objective" and not left_truth:
            return "undetermined", (
                f"training went on to gain {gap.mean:.3g} without leaving the truth: the encoder of the "
                "true dictionary was not trained to its end; take more steps"
            )
        return _CAUSES[largest], f"the gap {gap.mean:.3g} is the largest, and above {threshold:.3g}"
    missing = [name for name, found in gaps.items() if isinstance(found, Missing)]
    unclear = [name for name, found in known.items() if found.high >= threshold]
    if unclear:
        return "undetermined", (
            f"the interval of the {unclear[0]} gap holds {threshold:.3g}: take more tokens"
        )
    if missing:
        return "undetermined", f"the {missing[0]} gap is not known, and no other is there"
    return "none", f"no gap reaches {threshold:.3g}"


_CAUSES: Mapping[str, Cause] = {
    "objective": "objective",
    "amortization": "amortization",
    "optimization": "optimization",
}
