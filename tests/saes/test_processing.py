"""What the arguments by which a model was loaded did to the activations that an SAE was trained on."""

from __future__ import annotations

import re
from typing import Any

import pytest

from sae_placebo.core.errors import SpecError
from sae_placebo.saes.formats.processing import processing


def test_nothing_is_processed_unless_it_is_asked_for() -> None:
    off = {
        "center_writing_weights": False,
        "fold_ln": False,
        "fold_value_biases": None,
        "n_ctx": None,
    }
    for arguments in ({}, off, {"device": "cuda", "local_files_only": True}):
        found = processing(arguments, "mlp_in.3")
        assert not found.centred
        assert not found.notes


def test_centred_writing_weights_are_told() -> None:
    found = processing({"center_writing_weights": True, "device": "cpu"})
    assert found.centred
    assert not found.notes


@pytest.mark.parametrize(
    ("name", "place"),
    [
        *(("fold_ln", place) for place in ("mlp_in.3", None)),
        *(("fold_value_biases", place) for place in ("z.3", None)),
        *(("refactor_factored_attn_matrices", place) for place in ("z.3", None)),
    ],
)
def test_processing_that_makes_other_activations_is_refused_by_name(
    name: str, place: str | None
) -> None:
    with pytest.raises(SpecError, match=f"{name} = True.* take an SAE that was trained without it"):
        processing({name: True}, place)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"fold_ln": True}, "changes nothing at resid_post.3"),
        ({"fold_value_biases": True}, "changes nothing at resid_post.3"),
        ({"center_unembed": True}, "no activation"),
        ({"dtype": "bfloat16"}, "read here in float32"),
        ({"torch_dtype": "torch.float32"}, "as it is read here"),
        ({"n_ctx": 128}, "no longer than that"),
        ({"revision": "step1000"}, r"\[model\] revision"),
        ({"checkpoint_index": 4}, r"checkpoint_index = 4.*\[model\] revision"),
        ({"load_in_4bit": True}, "load_in_4bit = True, and what that does"),
    ],
)
def test_what_is_accepted_is_noted_by_name(arguments: dict[str, Any], said: str) -> None:
    found = processing(arguments, "resid_post.3")
    assert not found.centred
    (note,) = found.notes
    assert re.search(said, note), note
