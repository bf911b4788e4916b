"""G10: the twin, by sampling; of the full scale what is known without drawing a dictionary."""

from __future__ import annotations

import itertools

import pytest
import torch

from sae_placebo.core.spec import generator
from sae_placebo.lab.generators.base import GENERATORS, Sample, compose
from sae_placebo.lab.generators.synth_bench import SynthBenchSpec, _law, _rates

N = 30_000
TWIN = SynthBenchSpec()


@pytest.fixture(scope="module")
def drawn() -> Sample:
    return TWIN.draw(N, generator(0, "tokens"))


def test_the_twin_has_the_stated_rates(drawn: Sample) -> None:
    rates = TWIN.truth.rates
    counts = torch.bincount(drawn.codes.latents, minlength=2048)
    spread = (counts - N * rates) / (N * rates * (1 - rates)).sqrt()
    assert float(spread.abs().max()) < 5.5
    # roots, three levels of children, single features
    edges = [0, 16, 80, 336, 1360, 2048]
    for low, high in itertools.pairwise(edges):
        part = spread[low:high]
        assert float(part.square().mean().sqrt()) == pytest.approx(
            1, abs=4 / (2 * len(part)) ** 0.5
        )
    assert TWIN.truth.l0 == pytest.approx(10.9, abs=0.1)
    assert len(drawn.codes.values) / N == pytest.approx(TWIN.truth.l0, abs=0.1)


def test_children_follow_parents_and_siblings_exclude(drawn: Sample) -> None:
    truth, codes = TWIN.truth, drawn.codes
    parents = torch.tensor(truth.parents)
    cells = codes.tokens() * 2048 + codes.latents
    child = parents[codes.latents] >= 0
    wanted = codes.tokens()[child] * 2048 + parents[codes.latents[child]]
    assert int(child.sum()) > 10_000
    assert bool(torch.isin(wanted, cells).all())
    families = codes.tokens()[child] * 2048 + parents[codes.latents[child]]
    assert len(families.unique()) == len(families)
    assert len(truth.exclusive) == 16 * 21
    assert [truth.parents[i] for i in (0, 15, 16, 19, 20, 1359, 1360)] == [-1, -1, 0, 0, 1, 335, -1]


def test_magnitudes_fall_and_a_childs_follows_its_parent(drawn: Sample) -> None:
    law, codes = _law(TWIN), drawn.codes
    alone = torch.tensor(TWIN.truth.parents)[codes.latents] < 0
    features, values = codes.latents[alone], codes.values[alone]
    standard = (values - law.means[features]) / law.stds[features].clamp_min(0.05)
    assert float(standard.mean()) == pytest.approx(0, abs=0.02)
    assert law.means[[0, -1]].tolist() == [5.0, 4.0]
    assert float(law.stds.mean()) == pytest.approx(0.5833, abs=0.03)  # E|N(.5, .5)|
    # the parent's relative magnitude is a factor of the child's
    dense = codes.dense()
    root = int(law.stds[:16].argmax())
    for child in range(16 + 4 * root, 20 + 4 * root):
        on = dense[:, child] > 0
        factor = dense[on, root] / law.means[root]
        own = dense[on, child] / factor
        assert float(torch.corrcoef(torch.stack([factor, own]))[0, 1].abs()) < 0.1
        assert float(own.mean()) == pytest.approx(float(law.means[child]), rel=0.05)


def test_roots_are_correlated_as_their_factors_say() -> None:
    strong = SynthBenchSpec(correlation_scale=0.15, orthogonalization_steps=0)
    law = _law(strong)
    implied = (law.factors[:16] @ law.factors[:16].t()).double()
    above = torch.triu(torch.ones(16, 16), 1).bool()
    found = _root_correlations(strong)[above]
    assert float(torch.corrcoef(torch.stack([found, implied[above]]))[0, 1]) > 0.95
    clear = implied[above].abs() > 0.1
    assert int(clear.sum()) > 10
    assert bool((found[clear].sign() == implied[above][clear].sign()).all())
    none = SynthBenchSpec(correlation_scale=0.0, orthogonalization_steps=0)
    assert float(_root_correlations(none)[above].abs().max()) < 5 / N**0.5


def _root_correlations(spec: SynthBenchSpec) -> torch.Tensor:
    active = spec.draw(N, generator(0, "t")).codes.dense()[:, :16] > 0
    return torch.corrcoef(active.double().t())


def test_directions_overlap_less_than_random_ones() -> None:
    def overlap(rows: torch.Tensor) -> float:
        cosines = (rows @ rows.t()).fill_diagonal_(0).abs()
        return float(cosines.max(1).values.mean())

    rows = TWIN.truth.dictionary
    assert torch.allclose(rows.norm(dim=1), torch.ones(2048), atol=1e-5)
    # 0.224 for random rows; the full scale's is published as about 0.15
    assert overlap(rows) == pytest.approx(0.211, abs=0.003)
    plain = SynthBenchSpec(orthogonalization_steps=0).truth.dictionary
    assert overlap(plain) == pytest.approx(0.224, abs=0.003)


def test_a_constant_vector_of_the_stated_length_is_added(drawn: Sample) -> None:
    offset = drawn.x - compose(drawn.codes, TWIN.truth.dictionary)
    assert torch.allclose(offset, TWIN.offset.expand_as(offset), atol=1e-4)
    assert float(TWIN.offset.norm()) == pytest.approx(0.5, abs=1e-5)
    bare = SynthBenchSpec(bias=0.0, orthogonalization_steps=0).draw(10, generator(0, "t"))
    assert torch.equal(bare.x, compose(bare.codes, bare.truth.dictionary))


def test_the_full_scale_has_the_published_l0() -> None:
    full = SynthBenchSpec(scale="full")
    assert (full.d_in, full.n_features, full.roots) == (768, 16_384, 128)
    rates = _rates(_law(full), 0, points=256)
    # published: about 34, of which about 25 in the 4096 most frequent
    assert float(rates.sum()) == pytest.approx(34.4, abs=0.5)
    assert float(rates.sort(descending=True).values[:4096].sum()) == pytest.approx(25, abs=0.5)


def test_equal_names_give_equal_tokens() -> None:
    first, again = (TWIN.draw(300, generator(1, "t")) for _ in range(2))
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.codes.latents, again.codes.latents)
    assert GENERATORS["synth_bench"] is SynthBenchSpec


def test_rates_that_do_not_fall_are_refused() -> None:
    with pytest.raises(ValueError, match="must be below max_rate"):
        SynthBenchSpec(min_rate=0.5)
