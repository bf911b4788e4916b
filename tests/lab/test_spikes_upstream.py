"""Spikes planted upstream in a real forward pass: what arrives, and where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.data.rows import Rows
from sae_placebo.lab.spikes.kept_activations import KeptActivations, reading_of
from sae_placebo.lab.spikes.planting import Planting, Spike
from sae_placebo.lab.spikes.upstream import Upstream, became
from sae_placebo.models import loading as models
from sae_placebo.models.activations import HarvestSpec
from sae_placebo.models.reading import Reader

SPIKES = [Spike(name=name, frequency=0.05, magnitude=0.5) for name in "ab"]


@pytest.fixture(scope="module")
def rows() -> Rows:
    random = np.random.default_rng(0)
    ids = random.integers(3, 512, size=(40, 20)).astype(np.int32)
    lengths = np.full(40, 20, dtype=np.int32)
    lengths[5] = 12
    return Rows(
        ids, lengths, np.repeat(np.arange(20, dtype=np.int32), 2), tuple(map(str, range(20)))
    )


def width_of(reader: Reader) -> int:
    """Return the width of the residual stream, where spikes are planted."""
    return int(reader.model.config.hidden_size)


def upstream(tiny_model: Path, at: str, read: list[str], scale: float = 1.0) -> Upstream:
    reader = Reader(models.load_model(tiny_model), read)
    return Upstream(reader, Planting.of(SPIKES, 0, width_of(reader), scale), at, block_rows=16)


def test_what_is_planted_where_it_is_read_arrives_as_it_is(tiny_model: Path, rows: Rows) -> None:
    one = upstream(tiny_model, "resid_post.1", ["resid_post.1"])
    told = became(one, rows, np.arange(40), "resid_post.1")
    np.testing.assert_allclose(told.gain, 1, atol=1e-4)
    np.testing.assert_allclose(told.kept, 1, atol=1e-4)
    np.testing.assert_allclose(told.cosine, 1, atol=1e-4)
    assert told.spilled < 1e-9
    assert told.explained == pytest.approx(1, abs=1e-6)
    on = one.plan.active(one.block(rows, np.arange(40), planted=False)[1])
    assert told.n_tokens.tolist() == [int(a.sum()) for a in on]


def test_later_blocks_turn_it_and_attention_carries_it_on(tiny_model: Path, rows: Rows) -> None:
    one = upstream(tiny_model, "resid_pre.1", ["resid_post.2"], scale=20.0)
    told = became(one, rows, np.arange(40), "resid_post.2")
    assert 0.001 < told.spilled < 0.9
    assert (told.kept < 0.999).all()
    assert ((told.cosine > 0.3) & (told.cosine < 0.9999)).all()
    torch.testing.assert_close(told.plan.dictionary.norm(dim=1), torch.ones(2))
    assert 0 < told.explained < 1


def test_the_difference_is_the_mean_difference_with_and_without(
    tiny_model: Path, rows: Rows
) -> None:
    one = upstream(tiny_model, "resid_pre.1", ["resid_post.2"], scale=2.0)
    alone = Upstream(
        one.reader, Planting.of(SPIKES[:1], 0, width_of(one.reader), 2.0), one.hookpoint
    )
    told = became(alone, rows, np.arange(40), "resid_post.2")
    (planted, keys), (plain, _) = (alone.block(rows, np.arange(40), p) for p in (True, False))
    (on,) = alone.plan.active(keys)
    mean = (planted.activations["resid_post.2"] - plain.activations["resid_post.2"])[on].mean(0)
    expected = torch.nn.functional.normalize(mean, dim=0)
    torch.testing.assert_close(told.plan.dictionary[0], expected, atol=1e-4, rtol=0)
    assert told.gain[0] == pytest.approx(float(mean.norm()) / (0.5 * 2.0), rel=1e-3)


def test_a_bed_of_planted_rows_differs_only_where_spikes_reach(
    tiny_model: Path, rows: Rows
) -> None:
    one = upstream(tiny_model, "resid_post.0", ["resid_post.0"])
    splits, harvest = (
        {"train": rows, "heldout": rows},
        HarvestSpec(block_rows=16, outlier_ratio=100.0),
    )
    planted = KeptActivations.of(one, splits, "resid_post.0", harvest, 0)
    plain = KeptActivations.of(reading_of(one.reader, harvest), splits, "resid_post.0", harvest, 0)
    assert len(plain.x) == int(rows.usable().sum())
    np.testing.assert_array_equal(plain.keys.positions, planted.keys.positions)
    expected, _ = one.plan.plant(plain.x, plain.keys)
    torch.testing.assert_close(planted.x, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        planted.heldout, one.plan.plant(plain.heldout, plain.heldout_keys)[0]
    )


def test_refusals(tiny_model: Path, rows: Rows) -> None:
    with pytest.raises(SpecError, match="lies before"):
        next(iter(upstream(tiny_model, "resid_post.2", ["resid_post.1"])(rows, np.arange(4))))
    with pytest.raises(SpecError, match="residual stream"):
        became(
            upstream(tiny_model, "mlp_out.0", ["resid_post.1"]), rows, np.arange(4), "resid_post.1"
        )
    with pytest.raises(NotEstimable, match="read more"):
        became(
            upstream(tiny_model, "resid_pre.1", ["resid_post.1"]),
            rows,
            np.arange(1),
            "resid_post.1",
        )
