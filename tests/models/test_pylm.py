"""The model that comes with the package: it loads like any other, and it is a language model."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path

import pytest
import torch

from sae_placebo.core.errors import ModelError
from sae_placebo.models.loading import ModelSpec, load_model, load_tokenizer
from sae_placebo.models.specs import model_folder, ties_embeddings


@pytest.fixture(scope="module")
def pylm() -> torch.nn.Module:
    return load_model("pylm")


def nats(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Loss of every token but the first: [row, pos - 1]."""
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")


def test_it_is_small_untied_and_rotary(pylm: torch.nn.Module) -> None:
    folder = model_folder("pylm")
    assert folder is not None
    assert (folder / "model.safetensors").stat().st_size < 16e6
    assert ties_embeddings(ModelSpec(id="pylm")) is False
    assert pylm.lm_head.weight is not pylm.model.embed_tokens.weight
    assert 4 <= pylm.config.num_hidden_layers <= 6
    assert "rope_parameters" in pylm.config.to_dict()


def test_it_models_python_and_its_early_revision_less_so(pylm: torch.nn.Module) -> None:
    tokenizer = load_tokenizer("pylm")
    text = (Path(sysconfig.get_path("stdlib")) / "textwrap.py").read_text(encoding="utf-8")
    body = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    assert tokenizer.decode(body) == text
    rows = [body[i : i + 255] for i in range(0, len(body) - 255, 255)]
    ids = torch.tensor([[tokenizer.bos_token_id, *row] for row in rows])
    bytes_read = len(tokenizer.decode(ids[:, 1:].flatten()).encode())
    bits = {
        name: float(nats(model, ids).sum()) / 0.6931 / bytes_read
        for name, model in (("final", pylm), ("step400", load_model("pylm", "step400")))
    }
    assert bits["final"] < 1.4
    assert bits["step400"] > bits["final"] + 0.3


def test_it_copies(pylm: torch.nn.Module) -> None:
    random = torch.Generator().manual_seed(0)
    once = torch.randint(1, 4096, (8, 32), generator=random)
    loss = nats(pylm, torch.cat([torch.zeros(8, 1, dtype=torch.int64), once, once], dim=1))
    assert float(loss[:, 33:].mean()) < float(loss[:, 1:32].mean()) - 3


def test_its_record_says_what_it_was_made_of() -> None:
    folder = model_folder("pylm")
    assert folder is not None
    record = json.loads((folder / "training.json").read_text())
    assert len(record["data"]["corpus_sha256"]) == 64
    assert record["data"]["versions"]["python"]
    assert record["curve"][-1]["step"] == 2600


def test_a_revision_that_is_not_there_is_named() -> None:
    with pytest.raises(ModelError, match="pylm has no revision 'step9'; it has step400"):
        load_model("pylm", "step9")
