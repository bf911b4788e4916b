"""A split says why an SAE misses the truth: identifiability, the objective, the encoder or the optimization.

One number is compared, the training objective J on held-out tokens, between dictionaries and encoders that
are obtained in different ways:

- `oracle` has the true dictionary, and the best code of each token;
- `true` has the true dictionary, which is held fixed, and an encoder trained for it;
- `from_true` starts from `true` and trains everything;
- `random` is ordinary training from random weights, once per seed;
- each other dictionary of `GeneratorTruth.alternatives` has its best codes, as the oracle has.

    amortization gap = J(true) - J(oracle)           what one pass of an encoder costs
    objective gap    = J(true) - J(from_true)        what the objective gains by leaving the truth
    optimization gap = median J(random) - min(J(random), J(from_true))

Source: the gaps are those of O'Neill, Gumran and Klindt (2025, amortization) and of the usual account of
dictionary learning. Differs: they are measured together, on one objective and the same tokens, and one cause
is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from jaxtyping import Float32, Float64

from sae_placebo.core.errors import SpecError
from sae_placebo.core.lazy import torch
from sae_placebo.core.progress import Advance, Track, untracked
from sae_placebo.lab import GeneratorSpec, recovery
from sae_placebo.lab.experiments.base import LabTraining, fit_on
from sae_placebo.lab.experiments.kept_runs import KeptRuns
from sae_placebo.lab.experiments.objectives import Missing, ObjectiveMeter, Run, SplitSpec, Value
from sae_placebo.lab.scores.inference import nonnegative_pursuit
from sae_placebo.saes import SAE, ReLUSpec, SAESpec

Cause = Literal[
    "non-identifiable", "objective", "amortization", "optimization", "none", "undetermined"
]
Losses = Float64[np.ndarray, " block"]
Row = dict[str, str | float | int | None]
TRAINING, CODING = "train SAEs", "best codes"
"""The progress of a split has this name."""
_LABEL = "sae"
_SAME_TOKENS = 1e-3
"""A dictionary makes the same tokens as the truth if, with as many atoms per token as there are active
features, it leaves at most this share of a token's energy more than the truth leaves."""


@dataclass(frozen=True)
class ObjectiveSplit:
    """J of each way to a dictionary, the gaps between them, and the cause that they name.

    J is per token, in squared units of the generator's activations.

    Attributes:
        objectives: J by name: `oracle`, `true`, `from_true`, `random_best`, `random_median`.
        gaps: Gaps by name: `amortization`, `objective`, `optimization`; differences are taken block by block.
        alternatives: J(oracle) of each other dictionary that makes the same tokens, less J(oracle) of the
            truth, by the dictionary's name.
        by_seed: J of each ordinary training, by seed.
        mmcs: Mean over features of the largest cosine to a latent, for `from_true` and `random_median`.
        mmcs_of_latents: Mean over latents that fire of the largest cosine to a feature, for both as well.
        threshold: A gap below this counts as none; its unit is that of J.
        cause: The cause by the rules of `cause_of`.
        reason: Why it is this cause, in a sentence.
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

    def table(self) -> list[Row]:
        """Return one row per value, with its name (`what`), its interval, n (tokens) and a note.

        A value that does not exist is None, and its note says why.
        """
        groups: dict[str, Mapping[Any, Value | Missing | float]] = {
            "J: ": self.objectives,
            "gap: ": self.gaps,
            "alternative: ": self.alternatives,
            "J: random, seed ": self.by_seed,
            "mmcs: ": self.mmcs,
            "mmcs of latents: ": self.mmcs_of_latents,
            "threshold": {"": self.threshold},
            "cause": {"": Missing(f"{self.cause}: {self.reason}")},
        }
        return [
            _row(f"{title}{name}", value)
            for title, values in groups.items()
            for name, value in values.items()
        ]


def _row(what: str, value: Value | Missing | float) -> Row:
    row: Row = {"what": what, "value": None, "low": None, "high": None, "n": None, "note": ""}
    if isinstance(value, Missing):
        return row | {"note": value.reason}
    if isinstance(value, Value):
        interval = {"low": value.low, "high": value.high, "n": value.n_tokens}
        return row | {"value": value.mean} | interval
    return row | {"value": value}


def split(
    generator: GeneratorSpec,
    sae: SAESpec,
    lab: LabTraining,
    seeds: Sequence[int],
    spec: SplitSpec | None = None,
    track: Track = untracked,
    kept: Path | None = None,
) -> ObjectiveSplit:
    """Train SAEs on a generator in all ways, and return the split of their objectives.

    With `lab.bias = "none"` the truth is within reach. Where `b_dec` is held at the mean of activations, the
    oracle has the same `b_dec`, since that is what training may use. An SAE with fewer latents than there
    are features cannot hold the truth; its truth is then the most frequent features, as many as it has
    latents.

    For a penalty that is steered, and for one that changes in training (p-annealed), runs have different
    objectives and there is no split.

    Args:
        generator: Draws the tokens.
        sae: Settings of the SAE, with its penalty in the generator's units; see `fit_on`.
        lab: How every run is trained.
        seeds: Seeds of ordinary training, one or more.
        spec: How the split is measured and judged; None takes the defaults.
        track: Shows the progress of training and of finding the best codes, in tokens.
        kept: A folder in which trained SAEs are kept: the same split, called again, does not train them
            again. None keeps nothing.

    Raises:
        NotEstimable: the objective is not the same number in all runs.
        SpecError: there is no seed.
        StoreError: `kept` cannot be written.
    """
    spec = spec or SplitSpec()
    if not seeds:
        raise SpecError("a split needs at least one seed of ordinary training")
    meter = ObjectiveMeter.of(generator, sae, lab, spec)
    store = KeptRuns(kept, {"generator": generator, "sae": sae, "lab": lab})
    store.prepare()
    truth = _reachable(meter, sae.d_sae)
    first = list(seeds)[: spec.true_runs]
    ways = [("random", seed) for seed in seeds]
    ways += [(way, seed) for seed in first for way in ("true", "from_true")]
    before = sum(store.has(way, seed) for way, seed in ways) * lab.n_tokens
    total = len(ways) * lab.n_tokens
    with track(TRAINING, total - before, "tokens") as advance:
        trainer = _Trainer(generator, lab, store, advance)
        runs = {seed: meter.of_sae(trainer.trained("random", sae, seed)) for seed in seeds}
        held, moved = _from_truth(trainer, first, truth, meter)
    n_dictionaries = 1 + len(meter.draw.truth.alternatives)
    with track(CODING, n_dictionaries * len(meter.draw.x), "tokens") as advance:
        return _judged(meter, truth, runs, (held, moved), advance)


@dataclass(frozen=True)
class _Trainer:
    """Trains SAEs on one generator, each once."""

    generator: GeneratorSpec
    lab: LabTraining
    kept: KeptRuns
    advance: Advance

    def trained(
        self,
        way: str,
        sae: SAESpec,
        seed: int,
        start: SAE | None = None,
        frozen: Sequence[str] = (),
    ) -> SAE:
        """Return the SAE that is trained with one seed, from random weights or from `start`."""

        def train() -> SAE:
            fits = fit_on(
                self.generator,
                {_LABEL: sae},
                self.lab,
                [seed],
                starts=None if start is None else {_LABEL: start},
                frozen=frozen,
                advance=self.advance,
            )
            return fits[_LABEL, seed].sae

        return self.kept.trained(way, seed, sae, train)


def _reachable(meter: ObjectiveMeter, d_sae: int) -> Float32[torch.Tensor, "feature d_in"]:
    """Return the features, or the `d_sae` most frequent ones where there are more."""
    truth = meter.draw.truth
    if d_sae >= truth.n_features:
        return truth.dictionary
    frequent = truth.rates.argsort(descending=True, stable=True)[:d_sae]
    return truth.dictionary[frequent.sort().values]


def _from_truth(
    trainer: _Trainer,
    seeds: Sequence[int],
    truth: Float32[torch.Tensor, "feature d_in"],
    meter: ObjectiveMeter,
) -> tuple[Run, Run]:
    """Return the runs `true` and `from_true`, of each the one with the lowest J over seeds."""
    narrow = _as_wide_as(meter.sae, len(truth))
    held, moved = [], []
    for seed in seeds:
        start = _with_rows(meter.inner_of(narrow).create(trainer.generator.d_in, seed), truth)
        start = SAE(narrow, start.fold(meter.scaling.mean, meter.scaling.factor).params)
        frozen = trainer.trained("true", narrow, seed, start, ("W_dec",))
        held.append(meter.of_sae(frozen))
        begin = _widened(frozen, meter, seed)
        moved.append(meter.of_sae(trainer.trained("from_true", meter.sae, seed, begin)))
    return min(held, key=lambda run: run.mean), min(moved, key=lambda run: run.mean)


def _as_wide_as(sae: SAESpec, n: int) -> SAESpec:
    """Return the settings of the same objective for an SAE of n latents."""
    changed: dict[str, object] = {"d_sae": n}
    if isinstance(sae, ReLUSpec) and sae.scaling == "mean_both" and sae.coefficient is not None:
        changed["coefficient"] = sae.coefficient * n / sae.d_sae
    return type(sae).model_validate({**sae.model_dump(), **changed})


def _with_rows(sae: SAE, rows: Float32[torch.Tensor, "row d_in"]) -> SAE:
    """Return the SAE whose first latents read and write `rows`."""
    decoder, encoder = sae.params["W_dec"].clone(), sae.params["W_enc"].t().clone()
    decoder[: len(rows)], encoder[: len(rows)] = rows, rows
    return SAE(sae.spec, {**sae.params, "W_dec": decoder, "W_enc": encoder.t()})


def _widened(narrow: SAE, meter: ObjectiveMeter, seed: int) -> SAE:
    """Return an SAE of full width whose first latents are those of `narrow`; the others are untrained."""
    if narrow.d_sae == meter.sae.d_sae:
        return SAE(meter.sae, narrow.params)
    fresh = meter.inner.create(narrow.d_in, seed)
    params = dict(fresh.fold(meter.scaling.mean, meter.scaling.factor).params)
    for name, tensor in narrow.params.items():
        if name == "W_enc":
            params[name] = torch.cat([tensor, params[name][:, narrow.d_sae :]], dim=1)
        elif tensor.ndim and len(tensor) == narrow.d_sae and name != "b_dec":
            params[name] = torch.cat([tensor, params[name][narrow.d_sae :]])
        else:
            params[name] = tensor
    return SAE(meter.sae, params)


def _makes_the_same_tokens(meter: ObjectiveMeter, rows: Float32[torch.Tensor, "atom d_in"]) -> bool:
    """Return whether a dictionary explains the tokens as well as the truth, with as few atoms per token."""
    n = min(2048, len(meter.draw.x))
    x, counts = meter.draw.x[:n], meter.draw.codes.offsets[: n + 1].diff()
    most = int(counts.max())
    if most == 0:
        return False
    left = []
    for dictionary in (rows, meter.draw.truth.dictionary):
        errors = nonnegative_pursuit(x, dictionary, most).errors
        lengths = counts.clamp_max(errors.shape[1] - 1)
        left.append(float(errors.gather(1, lengths[:, None]).mean()))
    return left[0] <= left[1] + _SAME_TOKENS * meter.energy


def _alternatives(
    meter: ObjectiveMeter, oracle: Losses | Missing, like: SAE, advance: Advance
) -> dict[str, Losses | Missing]:
    """Return, for each other dictionary, J with the best codes less that of the truth, by block."""
    gains: dict[str, Losses | Missing] = {}
    for name, rows in meter.draw.truth.alternatives.items():
        if isinstance(oracle, Missing):
            gains[name] = oracle
        elif len(rows) > meter.sae.d_sae:
            gains[name] = Missing(f"it has {len(rows)} rows, the SAE {meter.sae.d_sae} latents")
        elif not _makes_the_same_tokens(meter, rows):
            gains[name] = Missing("it does not make the same tokens with as few rows")
        else:
            losses, _ = meter.oracle(rows, like)
            gains[name] = losses if isinstance(losses, Missing) else losses - oracle
        advance(len(meter.draw.x))
    return gains


def _judged(
    meter: ObjectiveMeter,
    truth: Float32[torch.Tensor, "feature d_in"],
    runs: Mapping[int, Run],
    from_truth: tuple[Run, Run],
    advance: Advance,
) -> ObjectiveSplit:
    """Return the split of runs that are trained: `runs` by seed, and the runs `true` and `from_true`."""
    held, moved = from_truth
    oracle, exact = meter.oracle(truth, held.sae)
    advance(len(meter.draw.x))
    if not isinstance(oracle, Missing) and not exact:
        # the encoder's codes are codes too, and pursuit may have missed them
        oracle = np.minimum(oracle, held.losses)
    ordered = sorted(runs.values(), key=lambda run: run.mean)
    # the median of an even number of runs is the worse of the two in the middle, which was trained
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
    others = _alternatives(meter, oracle, held.sae, advance)
    recall, precision = {}, {}
    for name, run in (("from_true", moved), ("random_median", median)):
        fires = meter.fired(run.sae)
        recall[name] = recovery(run.sae.params["W_dec"], truth).mmcs
        precision[name] = recovery(run.sae.params["W_dec"][fires], truth).mmcs_of_latents
    scale = held.mean if isinstance(oracle, Missing) else float(oracle.mean())
    threshold = meter.spec.tolerance * max(scale, meter.energy / 20)
    left = min(recall["from_true"], precision["from_true"]) < 1 - meter.spec.moved
    values = {name: meter.value(gap) for name, gap in gaps.items()}
    rivals = {name: meter.value(gap) for name, gap in others.items()}
    cause, reason = cause_of(values, rivals, threshold, left_truth=left)
    return ObjectiveSplit(
        {name: meter.value(losses) for name, losses in objectives.items()},
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
    """Return the cause that gaps name, and the reason in a sentence; the first rule that holds decides.

    1. The cause is `non-identifiable` if, for another dictionary that makes the same tokens, the interval of
       its J(oracle) less that of the truth begins at `threshold` or below.
    2. The cause is the largest gap if the whole interval of that gap lies above `threshold`. An objective gap
       counts only if training left the truth; if it stayed, `true` was not trained to its end, and the cause
       is `undetermined`.
    3. The cause is `none` if the whole intervals of all gaps lie below `threshold`.
    4. In all other cases the cause is `undetermined`.

    Args:
        gaps: The gaps `objective`, `amortization` and `optimization`, by name.
        alternatives: J(oracle) of other dictionaries less that of the truth, by the dictionary's name.
        threshold: A gap below this counts as none; its unit is that of J.
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
        reason = f"the gap {gap.mean:.3g} is the largest, and above {threshold:.3g}"
        return cast(Cause, largest), reason
    missing = [name for name, value in gaps.items() if isinstance(value, Missing)]
    unclear = [name for name, value in known.items() if value.high >= threshold]
    if unclear:
        return "undetermined", (
            f"the interval of the {unclear[0]} gap holds {threshold:.3g}: take more tokens"
        )
    if missing:
        return "undetermined", f"the {missing[0]} gap is not known, and no other is there"
    return "none", f"no gap reaches {threshold:.3g}"
