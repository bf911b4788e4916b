"""The share of variance that lies between keys: planted shares are found, and documents are no keys."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sae_placebo.core.errors import NotEstimable
from sae_placebo.models.components import between_component, with_previous

N_DOCUMENTS, LENGTH, N_KEYS, D_IN = 60, 50, 40, 16


def drawn(
    seed: int, between: float, document: float, noise: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """Return activations, keys, documents, and the share that lies between keys given how often each is."""
    source = torch.Generator().manual_seed(seed)
    rates = 1.0 / torch.arange(1, N_KEYS + 1)
    keys = torch.multinomial(rates, N_DOCUMENTS * LENGTH, True, generator=source)
    documents = torch.arange(N_DOCUMENTS).repeat_interleave(LENGTH)
    means = torch.randn(N_KEYS, D_IN, generator=source) * between
    own = torch.randn(N_DOCUMENTS, D_IN, generator=source) * document
    x = means[keys] + own[documents] + torch.randn(len(keys), D_IN, generator=source) * noise + 3.0
    weights = torch.bincount(keys, minlength=N_KEYS)[:, None] / len(keys)
    spread = float((weights * (means - (weights * means).sum(0)).square()).sum())
    return x, keys, documents, spread / (spread + D_IN * (document**2 + noise**2))


@pytest.mark.parametrize("between", [0.0, 0.5, 1.0])
def test_a_planted_share_is_found_without_bias_and_with_its_error(between: float) -> None:
    off, errors = [], []
    for seed in range(60):
        x, keys, documents, share = drawn(seed, between, 0.8, 1.2)
        found = between_component(x, keys, documents)
        off.append(found.value - share)
        errors.append(found.error)
    spread = float(np.std(off))
    assert abs(float(np.mean(off))) < 4 * spread / 60**0.5
    assert 0.5 < float(np.mean(errors)) / spread < 2
    assert float(np.mean(errors)) < 0.02


def test_what_a_document_has_in_common_is_not_taken_for_the_keys() -> None:
    # each document has its own few keys but for two, so pairs in one document would say 1
    x, _, documents, _ = drawn(0, 0.0, 2.0, 0.1)
    source = torch.Generator().manual_seed(1)
    keys = torch.where(
        torch.rand(len(x), generator=source) < 0.5,
        documents + 2,
        torch.randint(0, 2, (len(x),), generator=source),
    )
    found = between_component(x, keys, documents)
    assert abs(found.value) < 0.1
    assert found.n == int((keys < 2).sum())


def test_it_is_one_where_the_key_decides_and_ignores_scale_place_and_order() -> None:
    x, keys, documents, _ = drawn(0, 1.0, 0.0, 0.0)
    found = between_component(x, keys, documents)
    assert found.value == pytest.approx(1.0)
    assert found.error == pytest.approx(0.0, abs=1e-6)
    assert found.n == len(x)
    x, keys, documents, _ = drawn(1, 1.0, 0.5, 1.0)
    plain = between_component(x, keys, documents)
    moved = between_component(7.0 * x + 100.0, keys + 5, documents * 3)
    assert moved.value == pytest.approx(plain.value, abs=1e-5)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    shuffled = between_component(x[order], keys[order], documents[order])
    assert shuffled.value == pytest.approx(plain.value, abs=1e-9)


def test_pairs_have_keys_of_their_own() -> None:
    ids = torch.tensor([[3, 5, 3, 5], [5, 3, 5, 4]])
    keys = with_previous(ids)
    assert keys[0, 1] == keys[0, 3] == keys[1, 2]
    assert len({int(keys[0, 1]), int(keys[0, 2]), int(keys[1, 3])}) == 3


@pytest.mark.parametrize(
    ("keys", "documents", "message"),
    [
        ([1, 1, 2, 2], [0, 0, 0, 0], "0 keys occur in two documents"),
        ([1, 1, 2, 3], [0, 1, 0, 1], "1 keys occur in two documents"),
        ([1, 1, 2, 2], [0, 1, 0, 1], "no variance"),
    ],
)
def test_what_cannot_be_estimated_is_told(
    keys: list[int], documents: list[int], message: str
) -> None:
    with pytest.raises(NotEstimable, match=message):
        between_component(torch.ones(4, 3), torch.tensor(keys), torch.tensor(documents))
