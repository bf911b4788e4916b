"""G4 and G5: co-occurrence as stated, what else makes the same tokens, and absorption by training."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import nnls

from sae_placebo.core.spec import generator
from sae_placebo.lab import GENERATORS, GeneratorSpec
from sae_placebo.lab.experiments.base import LabTraining, TrainedSAE, fit_on
from sae_placebo.lab.generators.parent_child import ParentChildSpec
from sae_placebo.lab.generators.solvable_pair import SolvablePairSpec
from sae_placebo.saes import ReLUSpec
from sae_placebo.saes.training_spec import TrainingSpec

N = 40_000


def near(share: float, expected: float) -> bool:
    return abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / N) + 1e-9


def test_a_child_occurs_with_its_parent_alone() -> None:
    spec = ParentChildSpec()
    draw = spec.draw(N, generator(0, "t"))
    active = draw.codes.dense() > 0
    for share, rate in zip(active.double().mean(dim=0), (0.25, 0.05, 0.05, 0.05), strict=True):
        assert near(float(share), rate)
    assert not bool((active[:, 1] & ~active[:, 0]).any())
    given = float(active[active[:, 0], 1].double().mean())
    assert given == pytest.approx(0.2, abs=0.02)
    assert near(float((active[:, 0] & active[:, 2]).double().mean()), 0.0125)
    assert draw.truth.coactive() == ((1, 0),)
    assert set(draw.codes.values.tolist()) == {1.0}
    assert torch.allclose(draw.x, draw.codes.dense() @ draw.truth.dictionary, atol=1e-6)
    rows = draw.truth.dictionary
    assert torch.allclose(rows @ rows.t(), torch.eye(4), atol=1e-6)
    assert GENERATORS["parent_child"] is ParentChildSpec


def test_the_independent_law_has_the_same_rates_and_no_hierarchy() -> None:
    draw = ParentChildSpec(law="independent").draw(N, generator(0, "t"))
    active = draw.codes.dense() > 0
    for share, rate in zip(active.double().mean(dim=0), draw.truth.rates, strict=True):
        assert near(float(share), float(rate))
    assert near(float((active[:, 0] & active[:, 1]).double().mean()), 0.0125)
    assert draw.truth.is_identifiable
    assert draw.truth.parents == ()


@pytest.mark.parametrize(
    "spec", [ParentChildSpec(), SolvablePairSpec(), SolvablePairSpec(background=2)]
)
def test_composites_make_the_very_same_tokens(spec: GeneratorSpec) -> None:
    (rows,) = spec.truth.alternatives.values()
    assert not spec.truth.is_identifiable
    x = spec.held_out(100).x.double().numpy()
    assert max(nnls(rows.double().numpy().T, token)[1] for token in x) < 1e-5
    child = rows[1] @ spec.truth.dictionary.t()
    assert child[:2].tolist() == pytest.approx([0.5**0.5] * 2, abs=1e-5)


def test_events_of_a_solvable_pair_have_their_probabilities() -> None:
    spec = SolvablePairSpec(epsilon=0.05, background=1)
    draw = spec.draw(N, generator(0, "t"))
    active = draw.codes.dense() > 0
    for first in (0, 2):
        parent, child = active[:, first], active[:, first + 1]
        assert near(float((parent & child).double().mean()), 0.2)
        assert near(float((parent & ~child).double().mean()), 0.3)
        assert near(float((child & ~parent).double().mean()), 0.05)
    # pairs are independent of each other
    assert near(float((active[:, 0] & active[:, 2]).double().mean()), 0.25)
    assert draw.truth.rates.tolist() == pytest.approx([0.5, 0.25] * 2)
    assert draw.truth.is_identifiable
    assert draw.truth.parents == ()
    assert draw.x.shape == (N, 4)


def test_children_that_never_come_alone_have_parents() -> None:
    spec = SolvablePairSpec(background=1, d_in=10)
    assert spec.truth.coactive() == ((1, 0), (3, 2))
    assert spec.truth.dictionary.shape == (4, 10)
    assert SolvablePairSpec(background=3).d_in == 8


def test_probabilities_and_widths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sum to 1\.1"):
        SolvablePairSpec(q=0.5, p0=0.5, epsilon=0.1)
    with pytest.raises(ValueError, match="4 orthonormal features do not fit in 3"):
        SolvablePairSpec(background=1, d_in=3)


@pytest.mark.parametrize("spec", [ParentChildSpec(), SolvablePairSpec(epsilon=0.1)])
def test_equal_names_give_equal_tokens(spec: GeneratorSpec) -> None:
    first, again = (torch.cat(list(spec.stream(2_000, 256, "a"))) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, torch.cat(list(spec.stream(2_000, 256, "b"))))
    other = spec.model_copy(update={"seed": 1})
    assert not torch.equal(spec.truth.dictionary, other.truth.dictionary)


LAB = LabTraining(
    steps=600,
    bias="trained",
    training=TrainingSpec(batch_tokens=256, learning_rate=1e-2, decay_share=0.3, beta2=0.999),
)


def recalls(trained: TrainedSAE, spec: ParentChildSpec, latent: int) -> tuple[float, float]:
    """Return how often a latent fires on tokens of the parent alone, and of parent and child."""
    draw = spec.held_out(4_000)
    true = draw.codes.dense() > 0
    fires = trained.sae.encode(draw.x).dense()[:, latent] > 0.05
    alone, both = true[:, 0] & ~true[:, 1], true[:, 0] & true[:, 1]
    return float(fires[alone].double().mean()), float(fires[both].double().mean())


def test_training_absorbs_the_parent_into_the_child() -> None:
    # of the starts 0 to 3, 1 and 2 end at the optimum, 0 and 3 at dense codes of a larger objective
    spec = ParentChildSpec()
    found = fit_on(spec, {"l1": ReLUSpec(d_sae=4, coefficient=0.05)}, LAB, (1,))
    for trained in found.values():
        rows = torch.nn.functional.normalize(trained.sae.params["W_dec"], dim=1)
        cosines = rows @ spec.truth.dictionary.t()
        child, parent = int(cosines[:, 1].argmax()), int(cosines[:, 0].argmax())
        assert child != parent
        assert cosines[child, :2].tolist() == pytest.approx([0.5**0.5] * 2, abs=0.01)
        alone, both = recalls(trained, spec, parent)
        assert alone > 0.99
        assert both < 0.01


def test_training_on_independent_features_absorbs_nothing() -> None:
    spec = ParentChildSpec(law="independent")
    (trained,) = fit_on(spec, {"l1": ReLUSpec(d_sae=4, coefficient=0.05)}, LAB, (1,)).values()
    rows = torch.nn.functional.normalize(trained.sae.params["W_dec"], dim=1)
    cosines = rows @ spec.truth.dictionary.t()
    child, parent = int(cosines[:, 1].argmax()), int(cosines[:, 0].argmax())
    assert float(cosines[child, 1]) > 0.99
    assert abs(float(cosines[child, 0])) < 0.03
    alone, both = recalls(trained, spec, parent)
    assert min(alone, both) > 0.99
