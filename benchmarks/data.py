"""The activations that both sides train on: one file, read by every environment.

Synthetic: sparse sums of unit directions plus noise. Real: `resid_post.2` of the package's own model,
read by this package, centered and scaled as in a trial. Both have mean squared norm d_in.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

DATA_SEED = 7919
"""Unlike every SAE's seed: equal ones would start an SAE at the truth."""
N_TRUE, N_ACTIVE, NOISE = 2048, 16, 0.05
HOOKPOINT = "resid_post.2"
_CHUNK = 16_384


def synthetic(n_tokens: int, d_in: int) -> torch.Tensor:
    """Return [token, d_in]: 16 of 2,048 directions per token, sizes uniform in [0.5, 1.5)."""
    random = torch.Generator().manual_seed(DATA_SEED)
    truth = torch.nn.functional.normalize(torch.randn(N_TRUE, d_in, generator=random), dim=1)
    found = torch.empty(n_tokens, d_in)
    for start in range(0, n_tokens, _CHUNK):
        part = found[start : start + _CHUNK]
        index = torch.randint(0, N_TRUE, (len(part), N_ACTIVE), generator=random)
        size = torch.rand(len(part), N_ACTIVE, generator=random) + 0.5
        part.copy_(
            torch.nn.functional.embedding_bag(index, truth, per_sample_weights=size, mode="sum")
        )
        part += NOISE * torch.randn(part.shape, generator=random)
    return found.mul_(math.sqrt(d_in / float(found.square().sum(dim=1).mean())))


def collected(n_tokens: int) -> torch.Tensor:
    """Return [token, 256]: shuffled activations of `pylm` on the Python library's source."""
    from sae_placebo.core import precision
    from sae_placebo.data.text import TextSpec, tokenize
    from sae_placebo.models.loading import Reader, load_model, load_tokenizer, truncate

    model = load_model("pylm")
    text = TextSpec(train_tokens=n_tokens + 2048, heldout_tokens=1_000, max_document_tokens=4_064)
    rows = tokenize(text, load_tokenizer("pylm"), seed=0)["train"]
    truncate(model, [HOOKPOINT])
    reader = Reader(model, [HOOKPOINT])
    usable, parts = torch.from_numpy(rows.usable()), []
    with precision.fast_products():
        for start in range(0, len(usable), 16):
            part = slice(start, start + 16)
            ids = torch.from_numpy(rows.token_ids[part]).long()
            parts.append(reader.read(ids)[HOOKPOINT][usable[part]])
    x = torch.cat(parts)
    norms = x.norm(dim=1)
    x = x[norms <= 3 * norms.median()]
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(DATA_SEED))[:n_tokens]]
    x = x - x.mean(dim=0)
    return x.mul_(math.sqrt(x.shape[1] / float(x.square().sum(dim=1).mean())))


def prepare(folder: Path, source: str, n_tokens: int, d_in: int) -> Path:
    """Return the file that holds the activations, made where it is missing."""
    path = folder / f"{source}-{d_in}-{n_tokens}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        x = synthetic(n_tokens, d_in) if source == "synthetic" else collected(n_tokens)
        if x.shape != (n_tokens, d_in):
            raise SystemExit(f"{source} has {list(x.shape)}, not {[n_tokens, d_in]}")
        save_file({"x": x.contiguous()}, path)
    return path


def load(path: str | Path) -> torch.Tensor:
    return load_file(path)["x"]
