"""Planted heads are found as writers, planted readers as readers, and what was not planted is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from architectures import build
from planted_subjects import rows, subject_of
from sae_placebo.causal.circuits.readers import ReadersSpec
from sae_placebo.causal.circuits.spec import CircuitSpec
from sae_placebo.causal.circuits.ties import ties
from sae_placebo.causal.circuits.writers import WriterSpec
from sae_placebo.core.errors import SpecError
from sae_placebo.lab.planted_heads import Plant, plant, planted_directions

PLACE = "resid_post.1"
SPEC = CircuitSpec(
    readers=ReadersSpec(nulls=49, reader_nulls=49), writers=WriterSpec(tokens=2_000, pseudo=400)
)


def test_planted_ties_are_found_and_others_are_not() -> None:
    model, text = build("gpt2"), rows(140, 14, 12)
    subject = subject_of(model, PLACE, text)
    plants = [
        Plant(3, 0, 0), Plant(4, 1, 1), Plant(5, 1, 2),  # written and read
        Plant(6, 0, 3, read=False), Plant(7, 1, 0, read=False),  # written alone
        Plant(8), Plant(9),  # read alone: the embedding writes them
    ]  # fmt: skip
    vectors = plant(subject, plants, 0.5, 0)
    assert torch.allclose(vectors.T @ vectors, torch.eye(7), atol=1e-5)
    again = subject_of(model, PLACE, text)
    directions = planted_directions(again, plants, vectors)
    assert (directions.n_active >= 10).all()
    places = again.tokens.places
    at_token = text.token_ids[places[:, 0], places[:, 1]] == 8
    assert np.array_equal(directions.amounts[:, 5].toarray().ravel() > 0, at_token)
    found = ties(again, vectors, directions, SPEC, 0)
    assert found.tied[:3].sum() >= 2
    assert (found.written_p[:5] <= 0.05).all()
    assert (found.written_p[5:] > 0.05).all()
    assert (found.read_p[3:5] > 0.05).all()
    assert found.tied[3:].sum() == 0


def test_plants_that_cannot_be_are_refused() -> None:
    subject = subject_of(build("phi"), PLACE, rows(20, 12, 12))
    with pytest.raises(SpecError, match="same head"):
        plant(subject, [Plant(3, 0, 0), Plant(4, 0, 0)], 1.0, 0)
    with pytest.raises(SpecError, match="share their values"):
        plant(subject_of(build("llama"), PLACE, rows(20, 12, 12)), [Plant(3, 0, 0)], 1.0, 0)
    with pytest.raises(SpecError, match="no MLP lies behind"):
        plant(subject_of(build("phi"), "resid_post.2", rows(20, 12, 12)), [Plant(3, 0, 0)], 1.0, 0)
