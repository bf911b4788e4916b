"""G8: the trees' rates, who may be on with whom, and the composites that explain them as well."""

from __future__ import annotations

import pytest
import torch

from sae_placebo.core.spec import generator
from sae_placebo.lab.generators.base import GENERATORS
from sae_placebo.lab.generators.tree import TreeSpec

N = 40_000
SPECS = [TreeSpec(), TreeSpec(layout="deep", roots=2, root_rate=0.4, child_rate=0.25)]


@pytest.mark.parametrize("spec", SPECS)
def test_rates_hierarchy_and_exclusion(spec: TreeSpec) -> None:
    truth, drawn = spec.truth, spec.draw(N, generator(0, "t"))
    active = drawn.codes.dense() > 0
    counts = active.sum(0)
    assert ((counts - N * truth.rates).abs() < 5 * (N * truth.rates).sqrt() + 3).all()
    pairs = truth.coactive()
    assert pairs
    for child, parent in pairs:
        assert not (active[:, child] & ~active[:, parent]).any()
    for group in truth.exclusive:
        assert int(active[:, list(group)].sum(1).max()) == 1
    assert {child for child, _ in pairs} == {i for group in truth.exclusive for i in group}


def test_the_matryoshka_tree_is_the_published_one() -> None:
    truth = SPECS[0].truth
    assert truth.n_features == SPECS[0].d_in == 20
    assert truth.l0 == pytest.approx(3 * 0.15 + 9 * 0.15 * 0.2 + 8 * 0.05, abs=1e-6)
    assert len(truth.exclusive) == 3
    assert [parent for parent in truth.parents if parent >= 0] == [0] * 3 + [4] * 3 + [8] * 3
    values = SPECS[0].draw(N, generator(0, "t")).codes.values
    assert values.mean() == pytest.approx(1, abs=0.002)
    assert values.std() == pytest.approx(0.05, abs=0.002)


def test_the_deep_tree_has_three_levels_of_four() -> None:
    spec = TreeSpec(layout="deep")
    parents = spec.truth.parents
    assert len(parents) == spec.d_in == 85
    depth = [0] * 85
    for child, parent in spec.truth.coactive():
        assert parent < child
        depth[child] = depth[parent] + 1
    assert [depth.count(level) for level in range(4)] == [1, 4, 16, 64]
    assert all(parents.count(i) in (0, 4) for i in range(85))
    # independent of one another: a child's rate given its parent is child_rate
    assert spec.truth.rates[1] / spec.truth.rates[0] == pytest.approx(0.2)
    narrow = TreeSpec(layout="deep", d_in=32).truth.dictionary
    assert torch.allclose(narrow.norm(dim=1), torch.ones(85), atol=1e-5)


@pytest.mark.parametrize("layout", ["matryoshka", "deep"])
def test_without_spread_composites_make_the_same_tokens(layout: str) -> None:
    spec = TreeSpec.model_validate({"layout": layout, "magnitude_std": 0.0, "root_rate": 0.5})
    truth, drawn = spec.truth, spec.draw(2_000, generator(0, "t"))
    assert not truth.is_identifiable
    composites = truth.alternatives["composites"]
    dense = drawn.codes.dense()
    # the deepest active feature of each tree stands for all of its ancestors
    lengths = torch.ones(truth.n_features)
    for child, parent in truth.coactive():
        lengths[child] = (lengths[parent] ** 2 + 1) ** 0.5
        dense[:, parent] *= 1 - drawn.codes.dense()[:, child]
    assert torch.allclose((dense * lengths) @ composites, drawn.x, atol=1e-4)
    assert SPECS[0].truth.is_identifiable


def test_equal_names_give_equal_tokens() -> None:
    first, again = (SPECS[1].draw(300, generator(1, "t")) for _ in range(2))
    assert torch.equal(first.x, again.x)
    assert GENERATORS["tree"] is TreeSpec


def test_children_that_cannot_exclude_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match=r"3 exclusive children .* lower child_rate to 0\.333"):
        TreeSpec(child_rate=0.4)
    with pytest.raises(ValueError, match="4 exclusive children"):
        TreeSpec(layout="deep", child_rate=0.3)
    with pytest.raises(ValueError, match=r"less than or equal to 0\.2"):
        TreeSpec(magnitude_std=0.5)
