"""Which passages are kept, and what they say of the latent."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix

from sae_placebo.core.spec import generator
from sae_placebo.data.rows import Rows
from sae_placebo.latents.base import Encoded, TokenTable
from sae_placebo.latents.measurement import MeasurementSpec
from sae_placebo.latents.passages import passages
from sae_placebo.saes import parse_sae

WORDS = tuple(f"w{i}" for i in range(12))


@pytest.fixture
def rows() -> Rows:
    random = np.random.default_rng(3)
    lengths = random.integers(5, 11, size=24).astype(np.int32)
    token_ids = random.integers(1, 12, size=(24, 10)).astype(np.int32)
    token_ids[np.arange(10) >= lengths[:, None]] = 0
    documents = np.repeat(np.arange(6), 4).astype(np.int32)
    return Rows(token_ids, lengths, documents, tuple("abcdef"))


def reading_at(rows: Rows, places: np.ndarray) -> Encoded:
    """A top-k SAE on activations that a token's id mostly decides."""
    tokens, random = TokenTable(rows, places, WORDS), generator(0, "activations")
    of_token = torch.randn(12, 8, generator=random)
    ids = torch.from_numpy(tokens.ids.astype(np.int64))
    x = of_token[ids] + 0.1 * torch.randn(len(ids), 8, generator=random)
    sae = parse_sae({"kind": "topk", "d_sae": 16, "k": 3}).create(8, 0)
    return Encoded(sae, tokens, csr_matrix(sae.encode(x).dense().numpy()), x)


def latents_of(reading: Encoded, classes: str = "unexplained") -> pd.DataFrame:
    active = np.diff(reading.by_latent.indptr)
    return pd.DataFrame({"latent": np.arange(reading.d_sae), "n_active": active, "class": classes})


def test_passages_peak_where_the_latent_is_strongest(rows: Rows) -> None:
    reading = reading_at(rows, np.argwhere(rows.usable()))
    spec = MeasurementSpec(passages=3, tokens_before=2, tokens_after=1)
    shown = passages(reading, latents_of(reading), spec, seed=0)
    dense = reading.codes.toarray()
    assert len(shown) > 0
    for latent, group in shown.groupby("latent"):
        assert group["document"].is_unique
        assert group["rank"].tolist() == list(range(len(group)))
        peaks = [row.activations[row.peak] for row in group.itertuples()]
        assert peaks == sorted(peaks, reverse=True)
        assert peaks[0] == pytest.approx(dense[:, latent].max())
        for row in group.itertuples():
            assert len(row.tokens) == len(row.activations) <= 4
            assert row.peak <= 2


def test_a_masked_position_is_shown_without_an_activation(rows: Rows) -> None:
    places = np.argwhere(rows.usable())
    reading = reading_at(rows, places[places[:, 1] != 1])
    spec = MeasurementSpec(tokens_before=9)
    shown = passages(reading, latents_of(reading), spec, seed=0)
    assert len(shown) > 0
    assert all(row.activations[0] is None for row in shown.itertuples())


def test_so_many_latents_are_drawn_of_each_class_and_none_that_is_silent(rows: Rows) -> None:
    reading = reading_at(rows, np.argwhere(rows.usable()))
    table = latents_of(reading)
    table["class"] = ["rare" if i % 2 else "unexplained" for i in range(len(table))]
    table.loc[:3, "n_active"] = 0
    spec = MeasurementSpec(shown_per_class=2)
    shown = passages(reading, table, spec, seed=0)
    drawn = table.set_index("latent").loc[shown["latent"].unique()]
    assert drawn["class"].value_counts().to_dict() == {"rare": 2, "unexplained": 2}
    assert (drawn["n_active"] > 0).all()
    assert shown.equals(passages(reading, table, spec, seed=0))
    others = [set(passages(reading, table, spec, seed=s)["latent"]) for s in range(1, 6)]
    assert any(one != set(shown["latent"]) for one in others)
    assert not len(passages(reading, table, MeasurementSpec(shown_per_class=0), seed=0))
