from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import pytest
import torch

from sae_placebo.core.errors import ModelError
from sae_placebo.core.spec import generator
from sae_placebo.data.text import Rows
from sae_placebo.models.activations import (
    ActivationBlock,
    TokenMeans,
    batches,
    blocks,
    calibrate,
    row_order,
)
from sae_placebo.models.gaussian import SecondMoments


class Echo:
    """A reader whose activation at each place says which token and place it is."""

    names = ("resid_post.0",)
    widths: ClassVar = {"resid_post.0": 3}

    def read(self, token_ids: torch.Tensor) -> Mapping[str, torch.Tensor]:
        place = torch.arange(token_ids.shape[1]).expand_as(token_ids)
        return {self.names[0]: torch.stack([token_ids, place, token_ids * place], dim=2).float()}


@pytest.fixture
def rows() -> Rows:
    random = np.random.default_rng(0)
    lengths = random.integers(2, 9, size=50).astype(np.int32)
    token_ids = random.integers(1, 20, size=(50, 8)).astype(np.int32)
    token_ids[np.arange(8) >= lengths[:, None]] = 0
    documents = np.repeat(np.arange(10), 5).astype(np.int32)
    return Rows(token_ids, lengths, documents, tuple("abcdefghij"))


def read_all(rows: Rows, block_rows: int) -> list[ActivationBlock]:
    order = row_order(len(rows.lengths), 0)
    found = []
    for block in blocks(Echo(), rows, order, block_rows):
        found.append(
            ActivationBlock(
                block.token_ids,
                block.documents,
                block.places,
                {name: x.clone() for name, x in block.activations.items()},
            )
        )
    return found


def test_every_usable_token_is_read_once_with_its_own_activation(rows: Rows) -> None:
    found = read_all(rows, 16)
    places = torch.cat([block.places for block in found])
    assert len(places) == rows.usable().sum() == len(torch.unique(places, dim=0))
    for block in found:
        row, position = block.places.T
        x = block.activations["resid_post.0"]
        assert torch.equal(x[:, 0], block.token_ids.float())
        assert torch.equal(x[:, 1], position.float())
        assert torch.equal(block.token_ids, torch.from_numpy(rows.token_ids).long()[row, position])
        assert torch.equal(block.documents, torch.from_numpy(rows.documents).long()[row])


def test_block_size_changes_no_activation(rows: Rows) -> None:
    one, many = read_all(rows, 50), read_all(rows, 7)
    joined = torch.cat([block.activations["resid_post.0"] for block in many])
    assert torch.equal(one[0].activations["resid_post.0"], joined)


def test_calibration_centers_scales_and_finds_outliers() -> None:
    x = torch.randn(1_000, 4, generator=generator(0, "test")) * 3 + 1
    x[7] = 500.0
    one = ActivationBlock(
        torch.zeros(1_000).long(), torch.zeros(1_000).long(), torch.zeros(1_000, 2).long(), {"h": x}
    )
    found = calibrate(one, 10.0)["h"]
    assert found.n_outliers == 1
    assert found.largest_norm == pytest.approx(1_000.0)
    kept = (torch.cat([x[:7], x[8:]]) - found.mean) * found.factor
    assert float(kept.square().sum(1).mean()) == pytest.approx(4.0, rel=1e-4)
    assert kept.mean(0).abs().max() < 1e-4


def test_constant_activations_are_refused() -> None:
    zero = torch.zeros(5).long()
    # 0.1 is no sum of powers of two: the mean of five of them is not quite 0.1
    for x in (torch.ones(5, 3), torch.full((5, 3), 0.1), torch.full((5, 3), 1e4 / 3)):
        x[1, 0] = x[1, 0].nextafter(torch.tensor(2.0))
        with pytest.raises(ModelError, match=r"constant over 5 tokens.*raise text\.train_tokens"):
            calibrate(ActivationBlock(zero, zero, torch.zeros(5, 2).long(), {"h": x}), 10.0)
    many = torch.zeros(200).long()
    with pytest.raises(ModelError, match=r"constant over 200 tokens.*another hookpoint"):
        calibrate(ActivationBlock(many, many, many[:, None], {"h": torch.ones(200, 3)}), 10.0)


def test_batches_share_their_order_and_lose_only_outliers() -> None:
    x = torch.arange(1_000.0)[:, None].repeat(1, 2) / 100 + 1
    spiked = x.clone()
    spiked[13] = 1e6
    zero = torch.zeros(1_000).long()
    places = torch.zeros(1_000, 2).long()
    block, other = (ActivationBlock(zero, zero, places, {"h": values}) for values in (x, spiked))
    calibrations = calibrate(block, 10.0)
    first, second = (
        [batch["h"] for _, batch in batches(b, calibrations, 256, seed=3, index=1)]
        for b in (block, other)
    )
    assert [len(batch) for batch in first] == [250] * 4
    assert sum(len(batch) for batch in second) == 999
    restored = torch.cat(first) / calibrations["h"].factor + calibrations["h"].mean
    assert torch.allclose(restored.sort(0).values, x, atol=1e-4)
    left = torch.cat(first)
    place = int((restored[:, 0] - x[13, 0]).abs().argmin())
    assert torch.equal(torch.cat([left[:place], left[place + 1 :]]), torch.cat(second))
    again = [batch["h"] for _, batch in batches(block, calibrations, 256, seed=3, index=2)]
    offered = [size for size, _ in batches(other, calibrations, 256, seed=3, index=1)]
    assert offered == [250] * 4
    assert not torch.equal(torch.cat(again), torch.cat(first))


def test_token_means_shrink_towards_the_mean_by_their_noise() -> None:
    random = generator(0, "tokens")
    true = torch.randn(50, 6, generator=random) * 2
    ids = torch.randint(0, 50, (4_000,), generator=random)
    x = true[ids] + torch.randn(4_000, 6, generator=random)
    means = TokenMeans(60, x[0])
    for part in range(0, 4_000, 1_000):
        means.add(ids[part : part + 1_000], x[part : part + 1_000])
    seen, table = means.table()
    assert torch.equal(seen, torch.arange(50))
    assert torch.allclose(table[-1], x.mean(0), atol=1e-4)
    raw = torch.stack([x[ids == token].mean(0) for token in range(50)])
    shrunk = (table[:-1] - table[-1]).norm() / (raw - table[-1]).norm()
    expected = 4.0 / (4.0 + 1.0 / 80)
    assert float(shrunk) == pytest.approx(expected, abs=0.01)


def test_token_means_of_pure_noise_are_the_mean() -> None:
    random = generator(1, "noise")
    ids = torch.randint(0, 500, (1_000,), generator=random)
    means = TokenMeans(500, torch.zeros(8))
    means.add(ids, torch.randn(1_000, 8, generator=random))
    _, table = means.table()
    assert (table - table[-1]).norm(dim=1).mean() < 0.5  # unshrunk: about 2


def test_gaussian_draws_have_the_activations_mean_and_covariance() -> None:
    random = generator(2, "cloud")
    mixing = torch.randn(5, 5, generator=random)
    x = torch.randn(40_000, 5, generator=random).abs() @ mixing + 3
    one = ActivationBlock(
        torch.zeros(40_000).long(),
        torch.zeros(40_000).long(),
        torch.zeros(40_000, 2).long(),
        {"h": x},
    )
    calibration = calibrate(one, 10.0)["h"]
    moments = SecondMoments(x[0])
    for part in x.chunk(7):
        moments.add(part)
    drawn = moments.sampler(calibration)(40_000, generator(3, "draws"))
    scaled = (x - calibration.mean) * calibration.factor
    assert torch.allclose(drawn.T.cov(), scaled.T.cov(), atol=0.06)
    assert torch.allclose(drawn.mean(0), scaled.mean(0), atol=0.03)
