"""G6: four laws of co-occurrence, and the sign that one latent makes of them."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from scipy.optimize import nnls

from sae_placebo.core.spec import generator
from sae_placebo.lab import GENERATORS
from sae_placebo.lab.experiments.base import LabTraining, fit_on
from sae_placebo.lab.generators.hedging import HedgingSpec
from sae_placebo.saes import ReLUSpec
from sae_placebo.saes.training_spec import TrainingSpec

N = 40_000
Law = Literal["independent", "hierarchical", "partial", "anti"]
# rate of the child where the parent is, elsewhere, and over all
LAWS: dict[Law, tuple[float, float, float]] = {
    "independent": (0.2, 0.2, 0.2),
    "hierarchical": (0.2, 0.0, 0.05),
    "partial": (0.2, 0.1, 0.125),
    "anti": (0.1, 0.2, 0.175),
}


@pytest.mark.parametrize("law", LAWS)
def test_the_child_depends_on_the_parent_as_stated(law: Law) -> None:
    within, outside, rate = LAWS[law]
    spec = HedgingSpec(law=law)
    draw = spec.draw(N, generator(0, "t"))
    parent, child = (draw.codes.dense() > 0).t()
    assert draw.truth.rates.tolist() == pytest.approx([0.25, rate])
    assert float(parent.double().mean()) == pytest.approx(0.25, abs=5 * math.sqrt(0.1875 / N))
    assert float(child[parent].double().mean()) == pytest.approx(within, abs=0.02)
    assert float(child[~parent].double().mean()) == pytest.approx(outside, abs=0.015)
    measured = float(torch.corrcoef(torch.stack([parent, child]).double())[0, 1])
    assert measured == pytest.approx(spec.correlation, abs=0.025)
    assert draw.truth.is_identifiable == (law != "hierarchical")
    assert draw.truth.parents == ((-1, 0) if law == "hierarchical" else ())
    assert GENERATORS["hedging"] is HedgingSpec


def test_the_stated_correlations() -> None:
    stated = {"independent": 0.0, "hierarchical": 0.397, "partial": 0.131, "anti": -0.114}
    for law in LAWS:
        assert HedgingSpec(law=law).correlation == pytest.approx(stated[law], abs=5e-4)


def test_the_composite_makes_the_very_same_tokens_under_the_hierarchy() -> None:
    spec = HedgingSpec()
    (rows,) = spec.truth.alternatives.values()
    x = spec.held_out(100).x.double().numpy()
    assert max(nnls(rows.double().numpy().T, token)[1] for token in x) < 1e-5


def test_equal_names_give_equal_tokens() -> None:
    spec = HedgingSpec(law="anti")
    first, again = (torch.cat(list(spec.stream(2_000, 256, "a"))) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, torch.cat(list(spec.stream(2_000, 256, "b"))))


@pytest.mark.parametrize(
    ("law", "child"), [("independent", 0.0), ("hierarchical", 1), ("partial", 1), ("anti", -1)]
)
def test_one_latent_takes_in_the_child_with_the_sign_of_the_correlation(
    law: Law, child: float
) -> None:
    lab = LabTraining(
        steps=400,
        bias="trained",
        training=TrainingSpec(batch_tokens=256, learning_rate=2e-2, decay_share=0.3, beta2=0.999),
    )
    spec = HedgingSpec(law=law)
    (trained,) = fit_on(spec, {"l1": ReLUSpec(d_sae=1, coefficient=1e-3)}, lab, (1,)).values()
    row = torch.nn.functional.normalize(trained.sae.params["W_dec"], dim=1)[0]
    parent_part, child_part = (spec.truth.dictionary @ row).tolist()
    # a latent may as well stand for the absence of the parent: then both parts change sign
    assert abs(parent_part) > 0.9
    relative = child_part * math.copysign(1, parent_part)
    if child:
        assert relative * child > 0.1
    else:
        assert abs(relative) < 0.05
