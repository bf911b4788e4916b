"""Tiny models with tokens and directions to ask about, for tests of use and circuits."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csr_matrix

from architectures import VOCABULARY, build
from sae_placebo.causal.use.base import Directions, Subject
from sae_placebo.causal.use.downstream import Downstream
from sae_placebo.data.rows import Rows
from sae_placebo.latents.base import TokenTable

N_ROWS, LENGTH = 40, 16


def rows(n_rows: int = N_ROWS, length: int = LENGTH, vocabulary: int = VOCABULARY) -> Rows:
    """Return random rows, each a document of its own."""
    random = np.random.default_rng(5)
    return Rows(
        random.integers(3, vocabulary, (n_rows, length)).astype(np.int32),
        np.full(n_rows, length, dtype=np.int32),
        np.arange(n_rows, dtype=np.int32),
        tuple(f"document {i}" for i in range(n_rows)),
    )


def subject_of(
    model: torch.nn.Module, hookpoint: str = "resid_post.0", given: Rows | None = None
) -> Subject:
    """Return a model behind a hookpoint, asked on random tokens."""
    given = rows() if given is None else given
    behind = Downstream(model, hookpoint)
    row, position = np.nonzero(given.usable())
    site, _ = behind.read_rows(torch.from_numpy(given.token_ids.astype(np.int64)))
    return Subject(
        behind,
        TokenTable(given, np.stack([row, position], axis=1).astype(np.int64), ()),
        site[torch.from_numpy(row), torch.from_numpy(position)].clone(),
    )


def random_directions(
    subject: Subject, n: int = 40, per_token: int = 3, seed: int = 0
) -> Directions:
    """Return random directions, held by random tokens."""
    random = np.random.default_rng(seed)
    n_tokens, d_in = subject.activations.shape
    vectors = random.standard_normal((n, d_in))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    held = np.stack([random.choice(n, per_token, replace=False) for _ in range(n_tokens)])
    size = float(subject.activations.norm(dim=1).mean()) * 0.3
    values = size * random.uniform(0.5, 1.5, held.size)
    starts = np.arange(0, held.size + 1, per_token)
    amounts = csr_matrix((values.astype(np.float32), held.ravel(), starts), shape=(n_tokens, n))
    amounts.sort_indices()
    return Directions(vectors.astype(np.float32), amounts)


def tiny_subject(name: str = "llama_untied", hookpoint: str = "resid_post.0") -> Subject:
    """Return a tiny random model, asked on random tokens."""
    return subject_of(build(name), hookpoint)
