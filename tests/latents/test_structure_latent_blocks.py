from __future__ import annotations

import numpy as np
import pytest
import torch

from planted_readings import reading_of, token_table
from sae_placebo.latents.base import Folds
from sae_placebo.latents.columns.attributes import attributes
from sae_placebo.latents.columns.geometry import geometry
from sae_placebo.latents.columns.ngrams import ngrams
from sae_placebo.latents.columns.outputs import outputs
from sae_placebo.latents.columns.positions import positions
from sae_placebo.latents.latent_blocks import latent_blocks, leave_out

WORDS = tuple("abcdefghij")


@pytest.mark.parametrize(("entries", "latents"), [(1, 100), (300, 100), (10**6, 3), (10**6, 100)])
def test_blocks_hold_every_entry_once(entries, latents):
    draw = np.random.default_rng(9)
    tokens = token_table(draw.integers(0, 10, (20, 11)), 4, WORDS)
    codes = draw.random((len(tokens), 12)) * (draw.random((len(tokens), 12)) < 0.3)
    codes[:, [0, 5, 11]] = 0
    reading = reading_of(tokens, codes)
    again, cells = np.zeros_like(codes), np.zeros((12, 10))
    for block in latent_blocks(reading, entries, latents):
        assert len(block.bounds) - 1 <= latents
        again[block.tokens, block.first + block.owners] += block.values
        cells[block.latents] += block.sums(tokens.ids[block.tokens], 10, block.values)
    np.testing.assert_allclose(again, codes, rtol=1e-6)
    expected = np.stack([codes[tokens.ids == i].sum(0) for i in range(10)], axis=1)
    np.testing.assert_allclose(cells, expected, rtol=1e-5)


def test_leave_out_gives_all_then_all_but_each():
    np.testing.assert_array_equal(leave_out(np.array([[1.0, 2.0, 4.0]])), [[7.0, 6.0, 5.0, 3.0]])


def test_an_sae_that_never_fires_has_no_statistics_of_firing():
    tokens = token_table(np.random.default_rng(0).integers(0, 10, (20, 11)), 4, WORDS)
    reading, folds = (
        reading_of(tokens, np.zeros((len(tokens), 5))),
        Folds.of(tokens.documents, 4, 0, 2),
    )
    columns, names = attributes(reading, folds)
    columns |= positions(reading, folds) | ngrams(reading, folds) | geometry(reading, folds)
    columns |= outputs(
        reading, folds, torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
    )
    assert names == [None] * 5
    assert all(values.shape == (5, 3) for values in columns.values())
    # directions of the decoder are there without any firing
    assert [name for name, values in columns.items() if not np.isnan(values).all()] == ["pc_cosine"]
