"""Spikes have the laws that their settings say, and the same token always gets the same ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sae_placebo.core.errors import SpecError
from sae_placebo.data.rows import Rows
from sae_placebo.lab.generators.base import compose
from sae_placebo.lab.spikes.keys import TokenKeys, uniforms
from sae_placebo.lab.spikes.planting import Planting, Spike, plant

N = 200_000


def spike(name: str = "a", **settings: object) -> Spike:
    return Spike.model_validate({"name": name, "frequency": 0.1, "magnitude": 0.5} | settings)


def active(spikes: list[Spike], keys: TokenKeys | None = None) -> list[np.ndarray]:
    return Planting.of(spikes, 0, 16, 2.0).active(keys or TokenKeys.plain(N))


def near(share: float, expected: float, n: float) -> bool:
    """Within five standard errors."""
    return abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / n)


def test_frequencies_and_independence() -> None:
    a, b = active([spike(), spike("b", frequency=0.02)])
    assert near(a.mean(), 0.1, N)
    assert near(b.mean(), 0.02, N)
    assert near((a & b).mean(), 0.002, N)
    assert near((a[1:] & a[:-1]).mean(), 0.01, N)


def test_a_child_occurs_only_with_its_parent_and_as_often_as_asked() -> None:
    parent, child = active([spike(), spike("b", frequency=0.03, parent="a")])
    assert not (child & ~parent).any()
    assert near(child.mean(), 0.03, N)


@pytest.mark.parametrize("correlation", [0.6, -0.05])
def test_correlated_occurrences_have_the_correlation_and_both_frequencies(
    correlation: float,
) -> None:
    a, b = active([spike(), spike("b", frequency=0.08, beside="a", correlation=correlation)])
    assert near(b.mean(), 0.08, N)
    assert np.corrcoef(a, b)[0, 1] == pytest.approx(correlation, abs=0.015)


def test_a_token_set_has_a_probability_of_its_own() -> None:
    ids = np.arange(N) % 10
    plain = TokenKeys.plain(N)
    keys = TokenKeys(plain.documents, plain.positions, ids)
    one = spike(frequency=0.01, token_ids=(3, 4), token_frequency=0.5)
    (on,) = active([one], keys)
    inside = np.isin(ids, (3, 4))
    assert near(on[inside].mean(), 0.5, inside.sum())
    assert near(on[~inside].mean(), 0.01, (~inside).sum())
    truth = Planting.of([one], 0, 16, 1.0).truth(keys)
    assert float(truth.rates[0]) == pytest.approx(0.2 * 0.5 + 0.8 * 0.01)


@pytest.mark.parametrize("law", ["constant", "uniform", "lognormal"])
def test_lengths_have_the_mean_and_the_energy_that_are_stated(law: str) -> None:
    plan = Planting.of([spike(amplitude=law)], 0, 16, 2.0)
    values = plan.codes(TokenKeys.plain(N)).values.double()
    assert float(values.mean()) == pytest.approx(0.5 * 2.0, rel=0.02)
    share = float(values.square().sum()) / N / 2.0**2
    assert share == pytest.approx(plan.energy_share, rel=0.04)


def test_a_circle_has_every_angle_and_one_radius() -> None:
    plan = Planting.of([spike("line"), spike("circle", dimension=2)], 0, 16, 2.0)
    assert plan.rows == ((0,), (1, 2))
    dense = plan.codes(TokenKeys.plain(N)).dense()[:, 1:].numpy()
    on = dense[(dense != 0).any(1)]
    np.testing.assert_allclose(np.linalg.norm(on, axis=1), 1.0, rtol=1e-5)
    turns = np.exp(1j * np.arctan2(on[:, 1], on[:, 0]))
    assert abs(turns.mean()) < 0.03
    assert abs((turns**2).mean()) < 0.03
    gram = plan.dictionary @ plan.dictionary.t()
    torch.testing.assert_close(gram, torch.eye(3), atol=1e-5, rtol=0)
    assert plan.truth(TokenKeys.plain(3)).subspaces == ((1, 2),)


def test_a_token_gets_the_same_whatever_is_read_with_it() -> None:
    plan = Planting.of([spike(), spike("b", dimension=2)], 3, 16, 1.0)
    keys = TokenKeys.plain(1000)
    order = np.random.default_rng(0).permutation(1000)[:300]
    whole, part = plan.codes(keys).dense(), plan.codes(keys[order]).dense()
    assert torch.equal(whole[torch.from_numpy(order)], part)
    assert not torch.equal(whole, Planting.of(plan.spikes, 4, 16, 1.0).codes(keys).dense())
    alone = Planting.of([plan.spikes[1]], 3, 16, 1.0)
    assert torch.equal(alone.codes(keys).dense(), whole[:, 1:])


def test_keys_count_from_the_start_of_the_document_and_know_it_by_name() -> None:
    def rows(names: tuple[str, ...], documents: list[int]) -> Rows:
        n = len(documents)
        ids = np.arange(n * 4, dtype=np.int32).reshape(n, 4)
        whole = np.full(n, 4, dtype=np.int32)
        return Rows(ids, whole, np.array(documents, dtype=np.int32), names)

    one = TokenKeys.of_rows(rows(("x", "y"), [0, 1, 1]), np.array([[0, 2], [1, 2], [2, 2]]))
    other = TokenKeys.of_rows(rows(("y",), [0, 0]), np.array([[0, 2], [1, 2]]))
    assert one.positions.tolist() == [2, 2, 6]
    assert one.documents[1:].tolist() == other.documents.tolist()
    assert one.positions[1:].tolist() == other.positions.tolist()
    assert one.documents[0] != one.documents[1]
    assert one.token_ids.tolist() == [2, 6, 10]


def test_uniforms_are_uniform() -> None:
    drawn = uniforms(TokenKeys.plain(N).hashes(), 0, "x")
    assert drawn.min() > 0
    assert drawn.max() < 1
    counts = np.histogram(drawn, 64, (0, 1))[0]
    assert ((counts - N / 64) ** 2 / (N / 64)).sum() < 64 + 5 * np.sqrt(2 * 64)


def test_directions() -> None:
    many = [spike(str(i), direction="covariance") for i in range(200)]
    covariance = np.diag([100.0, 1, 1, 1])
    drawn = Planting.of(many, 0, 4, 1.0, covariance).dictionary
    assert float(drawn[:, 0].abs().median()) > 0.9
    loose = Planting.of([spike(str(i)) for i in range(20)], 0, 64, 1.0, orthogonal=False)
    assert 0.1 < loose.largest_cosine < 0.7
    assert Planting.of(loose.spikes, 0, 64, 1.0).largest_cosine < 1e-5


def test_planting_adds_the_codes_in_units_of_the_rms_norm() -> None:
    x = 3.0 + 2.0 * torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
    planted, codes, truth = plant(x, [spike(magnitude=0.5)], 0)
    torch.testing.assert_close(planted - x, compose(codes, truth.dictionary), atol=1e-5, rtol=0)
    assert float(codes.values[0]) == pytest.approx(0.5 * 2.0 * 4.0, rel=0.02)
    assert plant(x, [], 0)[0] is x


@pytest.mark.parametrize(
    ("spikes", "says"),
    [
        ([spike(), spike()], "two spikes"),
        ([spike(parent="b")], "does not come before"),
        ([spike(), spike("b", frequency=0.2, parent="a")], "more frequent than its parent"),
        ([spike(), spike("b", frequency=0.5, beside="a", correlation=0.9)], "correlation 0.9"),
        ([spike(token_ids=(1,))], "go together"),
        ([spike(direction="covariance")], "covariance"),
        ([spike(str(i)) for i in range(9)], "orthogonal"),
    ],
)
def test_refusals(spikes: list[Spike], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        Planting.of(spikes, 0, 16, 1.0)
