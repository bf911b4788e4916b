"""The two ends of every tiny architecture, against its own logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import architectures
from sae_placebo.heads import embedding, unembedding
from sae_placebo.sites import decoder_layers


@pytest.fixture(params=list(architectures.NAMES) if hasattr(architectures, "NAMES") else ["llama"])
def model(request: pytest.FixtureRequest) -> Any:
    return architectures.build(request.param)


def test_embedding_rows_are_what_token_ids_enter_as(model: Any) -> None:
    found = embedding(model)
    assert found.dtype == torch.float16
    ids = torch.tensor([3, 7, 11])
    expected = model.get_input_embeddings().weight[ids]
    torch.testing.assert_close(found[ids].float(), expected, atol=2e-3, rtol=2e-3)
