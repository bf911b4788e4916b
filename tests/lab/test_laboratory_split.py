"""The split names the one cause that each generator was built to have."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import optimize

from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.core.spec import generator
from sae_placebo.lab import SuperpositionSpec
from sae_placebo.lab.experiments.base import LabTraining
from sae_placebo.lab.experiments.objectives import Missing, SplitSpec, Value, oracle_losses
from sae_placebo.lab.experiments.split import ObjectiveSplit, cause_of, split
from sae_placebo.lab.generators.base import unit_rows
from sae_placebo.lab.generators.composed_sets import ComposedSetsSpec
from sae_placebo.lab.generators.hedging import HedgingSpec
from sae_placebo.lab.generators.parent_child import ParentChildSpec
from sae_placebo.lab.generators.solvable_pair import SolvablePairSpec
from sae_placebo.lab.scores.closed_forms import epsilon_star, expected_cost
from sae_placebo.saes import BatchTopKSpec, GatedSpec, JumpReLUSpec, ReLUSpec, TopKSpec
from sae_placebo.saes.training_spec import TrainingSpec

SEEDS = (0, 1, 2)
LAM, Q, P0 = 0.2, 0.2, 0.3


def lab(steps: int, rate: float = 3e-3) -> LabTraining:
    training = TrainingSpec(batch_tokens=128, learning_rate=rate, decay_share=0.3, beta2=0.999)
    return LabTraining(steps=steps, training=training, bias="none")


def gap(found: ObjectiveSplit, name: str) -> Value:
    value = found.gaps[name]
    assert isinstance(value, Value)
    return value


def only(found: ObjectiveSplit, name: str) -> bool:
    """Whether this gap is the only one."""
    others = [gap(found, other) for other in found.gaps if other != name]
    return gap(found, name).low > found.threshold > max(other.mean for other in others)


def test_shared_amplitudes_are_not_identifiable() -> None:
    # one item of each set at one strength: what all of a set share may move to the other set
    found = split(
        ComposedSetsSpec(items=3, correlation=1.0),
        TopKSpec(d_sae=6, k=2),
        lab(600),
        SEEDS,
        SplitSpec(tokens=4096),
    )
    assert found.cause == "non-identifiable"
    assert "makes the same tokens" in found.reason
    # the truth is as good as can be, and training that starts there has no reason to leave
    for name in ("objective", "amortization"):
        assert gap(found, name).mean < found.threshold
    rivals = list(found.alternatives.values())
    assert all(isinstance(rival, Value) and abs(rival.mean) < 1e-6 for rival in rivals)


def test_a_child_that_is_rarely_alone_is_lost_to_the_objective() -> None:
    epsilon = 0.4 * epsilon_star(LAM, Q)
    found = split(
        SolvablePairSpec(q=Q, p0=P0, epsilon=epsilon),
        ReLUSpec(d_sae=2, coefficient=LAM),
        lab(900),
        SEEDS,
        SplitSpec(tokens=8192),
    )
    assert found.cause == "objective"
    assert only(found, "objective")
    assert found.mmcs["from_true"] < 0.97
    # J of the truth is known in closed form
    oracle = found.objectives["oracle"]
    assert isinstance(oracle, Value)
    expected = expected_cost(90.0, LAM, Q, epsilon, P0)
    assert oracle.low - 0.003 < expected < oracle.high + 0.003
    assert oracle.n_tokens == 8192


def test_a_step_size_that_is_too_small_is_found_in_the_optimization() -> None:
    generated = ParentChildSpec(law="independent")
    sae = ReLUSpec(d_sae=4, coefficient=0.02)
    found = split(generated, sae, lab(400, 3e-4), SEEDS, SplitSpec(tokens=4096))
    assert found.cause == "optimization"
    assert only(found, "optimization")
    assert found.mmcs["from_true"] > 0.99 > found.mmcs["random_median"]
    assert set(found.by_seed) == set(SEEDS)
    best, median = found.objectives["random_best"], found.objectives["random_median"]
    assert isinstance(best, Value)
    assert isinstance(median, Value)
    assert best.mean == min(found.by_seed.values())
    assert median.mean == sorted(found.by_seed.values())[1]


def test_one_pass_of_an_encoder_cannot_tell_overlapping_features_apart() -> None:
    found = split(
        SuperpositionSpec(d_in=8, n_features=24, l0=2.0, decay=1.0),
        TopKSpec(d_sae=24, k=2),
        lab(300),
        SEEDS,
        SplitSpec(tokens=2048),
    )
    assert found.cause == "amortization"
    assert found.oracle_is_exact


def test_where_everything_is_found_there_is_no_cause() -> None:
    found = split(
        ParentChildSpec(law="independent", d_in=8),
        ReLUSpec(d_sae=4, coefficient=0.05),
        lab(1500),
        SEEDS[:1],
        SplitSpec(tokens=4096),
    )
    assert found.cause == "none"
    assert found.mmcs["random_median"] > 0.99
    rows = found.table()
    assert rows[-1]["what"] == "cause"
    assert {"J: oracle", "gap: objective", "J: random, seed 0"} <= {row["what"] for row in rows}
    for row in rows:
        assert set(row) == {"what", "value", "low", "high", "n", "note"}
        assert row["value"] is not None or row["note"]


def test_an_sae_too_narrow_for_the_truth_is_compared_with_the_most_frequent_features() -> None:
    found = split(
        HedgingSpec(law="partial", d_in=6),
        ReLUSpec(d_sae=1, coefficient=0.01),
        lab(400, 1e-2),
        SEEDS[:1],
        SplitSpec(tokens=4096),
    )
    # the parent's row takes in the child: that pays
    assert gap(found, "objective").low > 0
    assert 0.9 < found.mmcs["from_true"] < 0.995


def test_spare_latents_start_beside_the_truth() -> None:
    found = split(
        ParentChildSpec(law="hierarchical", d_in=6),
        GatedSpec(d_sae=8, coefficient=0.1),
        lab(60),
        SEEDS[:1],
        SplitSpec(tokens=512),
    )
    # no best code is known for this objective, and a gap that is not known is not zero
    assert isinstance(found.gaps["amortization"], Missing)
    assert isinstance(found.objectives["oracle"], Missing)
    assert all(isinstance(rival, Missing) for rival in found.alternatives.values())
    row = next(row for row in found.table() if row["what"] == "gap: amortization")
    assert row["value"] is None
    assert "no best code" in str(row["note"])


def test_an_objective_that_changes_is_refused() -> None:
    spec = ParentChildSpec(d_in=6)
    with pytest.raises(NotEstimable, match="coefficient"):
        split(spec, ReLUSpec(d_sae=4, l0=1.0), lab(10), [0])
    with pytest.raises(SpecError, match="seed"):
        split(spec, ReLUSpec(d_sae=4, coefficient=0.1), lab(10), [])


def value(mean: float, half: float = 0.01) -> Value:
    return Value(mean, mean - half, mean + half, 100)


def test_the_rule_of_the_cause() -> None:
    nothing = {name: value(0.0) for name in ("objective", "amortization", "optimization")}
    assert cause_of(nothing, {}, 0.1, left_truth=False)[0] == "none"
    one = {**nothing, "amortization": value(0.5)}
    assert cause_of(one, {}, 0.1, left_truth=False)[0] == "amortization"
    assert cause_of(one, {"other": value(0.0)}, 0.1, left_truth=False)[0] == "non-identifiable"
    assert cause_of(one, {"worse": value(0.3)}, 0.1, left_truth=False)[0] == "amortization"
    stayed = {**nothing, "objective": value(0.5)}
    assert cause_of(stayed, {}, 0.1, left_truth=True)[0] == "objective"
    cause, reason = cause_of(stayed, {}, 0.1, left_truth=False)
    assert cause == "undetermined"
    assert "more steps" in reason
    unclear = {**nothing, "optimization": value(0.1, 0.05)}
    assert "more tokens" in cause_of(unclear, {}, 0.1, left_truth=False)[1]
    unknown: dict[str, Value | Missing] = {**nothing, "amortization": Missing("no code")}
    assert cause_of(unknown, {}, 0.1, left_truth=False)[0] == "undetermined"


def test_oracles_of_each_objective_by_hand_and_by_brute_force() -> None:
    x = torch.tensor([[1.0, 0.2], [0.5, 0.5], [0.0, 0.0]])
    axes = torch.eye(2)

    def losses(sae: ReLUSpec | TopKSpec | BatchTopKSpec | JumpReLUSpec) -> list[float]:
        found = oracle_losses(sae, x, axes)
        assert found is not None
        return found[0].tolist()

    assert losses(TopKSpec(d_sae=2, k=1)) == pytest.approx([0.04, 0.25, 0.0])
    # three atoms for three tokens, and the empty one needs none
    assert losses(BatchTopKSpec(d_sae=2, k=1.0)) == pytest.approx([0.04, 0.0, 0.0])
    # an atom that costs 0.1 is worth it where it takes away more
    assert losses(JumpReLUSpec(d_sae=2, coefficient=0.1)) == pytest.approx([0.14, 0.2, 0.0])
    lasso = [0.1 * r - 0.05**2 for r in (1.0, 0.2, 0.5)]
    assert losses(ReLUSpec(d_sae=2, coefficient=0.1)) == pytest.approx(
        [lasso[0] + lasso[1], 2 * lasso[2], 0.0], abs=1e-6
    )
    rows = unit_rows(7, 3, generator(0, "brute force"))
    tokens = torch.rand(10, 3, generator=generator(1, "brute force"))
    found = oracle_losses(TopKSpec(d_sae=7, k=2), tokens, rows)
    assert found is not None
    for token, loss in zip(tokens.double().numpy(), found[0], strict=True):
        best = min(
            optimize.nnls(rows[list(pair)].double().numpy().T, token)[1] ** 2
            for pair in itertools.combinations(range(7), 2)
        )
        assert np.isclose(float(loss), best, atol=1e-6)
