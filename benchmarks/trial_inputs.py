"""What both sides of `whole_trial.py` are given: a model folder, a trial file, rows of token ids."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

MODEL_SEED = 11


@dataclass(frozen=True)
class Case:
    """One model, one layer, one SAE shape.

    Attributes:
        name: Of the result.
        layer: The residual stream after this block, counted from 0, is read.
        hook: The same place as SAELens names it in a Hugging Face model.
        d_in: Width of the model.
        d_sae: Latents.
        train_tokens: Training tokens of one SAE.
        heldout_tokens: Of our trial; the peer measures nothing.
    """

    name: str
    layer: int
    hook: str
    d_in: int
    d_sae: int
    train_tokens: int
    heldout_tokens: int


CASES = {
    "pylm": Case("pylm", 2, "model.layers.2", 256, 4096, 120_000, 50_000),
    "gpt2-small": Case("gpt2-small", 6, "transformer.h.6", 768, 12288, 60_000, 20_000),
}
ARMS = {
    "trained": 'control = "trained"',
    "redraw": 'control = "redraw"',
    "redraw_keep_embeddings": 'control = "redraw"\nkeep = ["embeddings", "unembedding"]',
    "init": 'control = "init"',
    "shuffle_tokens": 'data = "shuffle_tokens"',
}


def model_folder(case: Case, cache: Path) -> Path:
    """Return a saved model: the package's own, or one of GPT-2 small's shape with random weights.

    The second has the first's tokenizer; its embedding keeps GPT-2's size.
    """
    import sae_placebo

    packaged = Path(sae_placebo.__file__).parent / "pylm"
    if case.name == "pylm":
        return packaged
    folder = cache / f"model-{case.name}"
    if not (folder / "config.json").exists():
        import transformers

        torch.manual_seed(MODEL_SEED)
        folder.mkdir(parents=True, exist_ok=True)
        model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(bos_token_id=0, eos_token_id=0)
        )
        for path in packaged.glob("tokenizer*.json"):
            shutil.copyfile(path, folder / path.name)
        model.save_pretrained(folder)  # config.json comes with the weights
    return folder


def trial_file(case: Case, folder: Path, model: Path, k: int, context_tokens: int) -> Path:
    """Write a trial of five arms, one re-draw and two SAE seeds; its model is given as a folder."""
    arms = "\n".join(f"[arms.{name}]\n{table}\n" for name, table in ARMS.items())
    path = folder / "trial.toml"
    path.write_text(
        f"""name = "benchmark"
hookpoints = ["resid_post.{case.layer}"]
model_seeds = [0]
sae_seeds = [0, 1]

[model]
id = {json.dumps("pylm" if case.name == "pylm" else str(model.resolve()))}

[text]
source = "python-stdlib"
context_tokens = {context_tokens}
train_tokens = {case.train_tokens}
heldout_tokens = {case.heldout_tokens}

{arms}
[saes.topk]
kind = "topk"
d_sae = {case.d_sae}
k = {k}
""",
        encoding="utf-8",
    )
    return path


def rows_file(case: Case, folder: Path, model: Path, context_tokens: int) -> Path:
    """Write the trial's own training tokens, so that the peer need not tokenize.

    The peer takes full rows only, so tokens are packed: padding is cut out, and a row goes on where
    the last one ended.
    """
    from sae_placebo.data.text import TextSpec, tokenize
    from sae_placebo.models.loading import load_tokenizer

    spec = TextSpec(
        context_tokens=context_tokens,
        train_tokens=case.train_tokens,
        heldout_tokens=case.heldout_tokens,
    )
    rows = tokenize(spec, load_tokenizer(model), seed=0)["train"]
    path = folder / "rows.safetensors"
    real = np.arange(context_tokens) < rows.lengths[:, None]
    packed = rows.token_ids[real]
    packed = packed[: len(packed) // context_tokens * context_tokens].reshape(-1, context_tokens)
    save_file({"token_ids": torch.from_numpy(packed)}, path)
    return path
