"""What is written into an artefact is read back as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix, random_array

from sae_placebo.latents.code_files import read_codes, write_codes
from sae_placebo.models.activation_files import read_head, read_repeats, write_heads, write_repeats


@pytest.mark.parametrize("density", [0.0, 0.05])
def test_codes_come_back_as_they_were(tmp_path: Path, density: float) -> None:
    drawn = random_array((90, 700), density=density, format="csr", dtype=np.float32, rng=4)
    codes = csr_matrix(drawn)
    codes.resize((95, 700))  # the last tokens have no code
    write_codes(tmp_path, codes)
    found = read_codes(tmp_path)
    assert found.shape == (95, 700)
    assert found.dtype == np.float32
    assert found.nnz == codes.nnz
    for name in ("indptr", "indices", "data"):
        np.testing.assert_array_equal(getattr(found, name), getattr(codes, name))


def test_heads_come_back_and_one_that_is_missing_is_none(tmp_path: Path) -> None:
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).half()
    write_heads(tmp_path, {"embedding": weight.T, "unembedding": None})
    found = read_head(tmp_path, "embedding")
    assert found is not None
    assert found.dtype == torch.float32
    assert torch.equal(found, weight.T.float())
    assert read_head(tmp_path, "unembedding") is None


def test_a_model_without_heads_leaves_a_file_that_says_so(tmp_path: Path) -> None:
    write_heads(tmp_path, {"embedding": None, "unembedding": None})
    assert read_head(tmp_path, "embedding") is None


def test_repeats_come_back_by_hookpoint(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    places = [f"{place}.{kind}" for place in ("a", "b") for kind in ("fresh", "repeated")]
    given = {name: torch.randn(5, 3, generator=draw) for name in places}
    write_repeats(tmp_path, given)
    for place in ("a", "b"):
        found = read_repeats(tmp_path, place)
        assert found is not None
        assert torch.equal(found[0], given[f"{place}.fresh"])
        assert torch.equal(found[1], given[f"{place}.repeated"])


def test_no_repeats_are_none(tmp_path: Path) -> None:
    write_repeats(tmp_path, {})
    assert read_repeats(tmp_path, "a") is None
