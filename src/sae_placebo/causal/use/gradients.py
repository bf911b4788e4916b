"""Gradients at a hookpoint of the log probabilities of labels that are drawn from the model itself.

With labels drawn from the model the gradient of a position's log probability has mean 0. So products of the
gradients of different positions vanish in expectation, and squares of their sum estimate the Fisher
information of all later predictions about the activation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int64

from sae_placebo.causal.use.base import Subject
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import generator, numpy_generator
from sae_placebo.models.sites import resolve

_LOGITS = 2**24
_POSITIONS = 1024
_TRACED = 2**25
"""At most so many numbers of logits, positions, and numbers of readers' gradients are held at once."""


@runtime_checkable
class Trace(Protocol):
    """A trace of a forward pass, by which the gradient is split by the readers that it comes through."""

    @property
    def n_readers(self) -> int:
        """The number of readers."""
        ...

    def recording(self) -> contextlib.AbstractContextManager[None]:
        """Follow the forward passes inside."""
        ...

    def leaves(self) -> list[torch.Tensor]:
        """Return the tensors whose gradients are needed for the split."""
        ...

    def assembled(
        self, gradients: list[torch.Tensor], kept: tuple[torch.Tensor, torch.Tensor]
    ) -> Float[torch.Tensor, "token reader d_in"]:
        """Return the gradient at the hookpoint through each reader.

        Args:
            gradients: The gradients at the leaves.
            kept: Row and position of each token wanted.
        """
        ...


@dataclass(frozen=True, eq=False)
class Gradients:
    """Gradients, at the activations of some tokens, of log probabilities summed over their rows.

    Attributes:
        tokens: The tokens, as indices into the subject's.
        site: Their activations at the hookpoint.
        sampled: The gradient with each sample of labels drawn from the model.
        readers: The part of it that comes through each reader; None where nothing is traced.
        observed: The gradient through each reader with the next tokens of the text as labels; None where
            nothing is traced.
    """

    tokens: Int64[np.ndarray, " token"]
    site: Float[torch.Tensor, "token d_in"]
    sampled: Float[torch.Tensor, "sample token d_in"]
    readers: Float[torch.Tensor, "sample token reader d_in"] | None
    observed: Float[torch.Tensor, "token reader d_in"] | None


def drawn_rows(subject: Subject, n_tokens: int, seed: int) -> Int64[np.ndarray, " row"]:
    """Return random rows, ascending, with at most `n_tokens` held-out tokens together; at least one row."""
    held, counts = np.unique(subject.tokens.places[:, 0], return_counts=True)
    order = numpy_generator(seed, "screen", "rows").permutation(len(held))
    n = max(int(np.searchsorted(np.cumsum(counts[order]), n_tokens, side="right")), 1)
    return np.sort(held[order[:n]])


def sampled_gradients(
    subject: Subject,
    rows: Int64[np.ndarray, " row"],
    samples: int,
    seed: int,
    trace: Trace | None = None,
) -> Iterator[Gradients]:
    """Yield the gradients at the tokens of some rows, a few rows at a time.

    Each batch takes one forward pass and one backward pass for each sample of labels. Labels are drawn row
    by row, so that they do not depend on which rows are run together.

    Args:
        subject: The model and its held-out tokens.
        rows: The rows that are read.
        samples: How many labels are drawn for each position.
        seed: The seed of the labels.
        trace: It splits gradients by reader; None for no split.
    """
    lengths = subject.tokens.rows.lengths[rows]
    longest = int(lengths.max())
    vocabulary = int(subject.downstream.model.get_output_embeddings().weight.shape[0])
    most = min(_POSITIONS, _LOGITS // vocabulary)
    if trace is not None:
        width = subject.activations.shape[1]
        most = min(most, _TRACED // (trace.n_readers * width * (samples + 1)))
    at_once = max(most // longest, 1)
    for start in range(0, len(rows), at_once):
        yield _of_rows(subject, rows[start : start + at_once], samples, seed, trace)


def _of_rows(
    subject: Subject,
    rows: Int64[np.ndarray, " row"],
    samples: int,
    seed: int,
    trace: Trace | None,
) -> Gradients:
    """Return the gradients at the tokens of rows that are run together."""
    behind = subject.downstream
    ids, real = _padded(subject, rows)
    tokens, row_of, position = _kept(subject, rows)
    width = subject.activations.shape[1]
    delta = torch.zeros(*ids.shape, width, device=behind.device, requires_grad=True)
    sites = resolve(behind.model, [behind.hookpoint])
    seen: list[torch.Tensor] = []

    def edit(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.detach())
        return x.detach() + delta

    recording = contextlib.nullcontext() if trace is None else trace.recording()
    with torch.enable_grad(), sites.hooked({behind.hookpoint: edit}), recording:
        logits = behind.model(input_ids=ids, use_cache=False).logits.float()
    leaves = [delta] + ([] if trace is None else trace.leaves())
    kept = (row_of, position)
    probs = logits.detach().softmax(-1)
    labels = _labels(probs, rows, samples, seed)
    sampled, readers = [], []
    for s in range(samples):
        at_site, *parts = _backward(logits, leaves, labels[s], probs, real)
        sampled.append(at_site[kept].float())
        if trace is not None:
            readers.append(trace.assembled(parts, kept))
    observed = None
    if trace is not None:
        followed = real & torch.nn.functional.pad(real[:, 1:], (0, 1))
        following = torch.nn.functional.pad(ids[:, 1:], (0, 1))
        observed = trace.assembled(_backward(logits, leaves, following, probs, followed)[1:], kept)
    return Gradients(
        tokens,
        seen[0][kept].float(),
        torch.stack(sampled),
        torch.stack(readers) if readers else None,
        observed,
    )


def _backward(
    logits: torch.Tensor,
    leaves: list[torch.Tensor],
    labels: Int64[torch.Tensor, "row pos"],
    probs: torch.Tensor,
    counted: torch.Tensor,
) -> list[torch.Tensor]:
    """Return the gradients at the leaves of the labels' log probabilities, summed over counted positions.

    At the logits this gradient is the one-hot label less the probabilities.
    """
    pull = -probs
    pull.scatter_add_(-1, labels[..., None], torch.ones_like(pull[..., :1]))
    pull *= counted[..., None]
    slopes = torch.autograd.grad(
        logits, leaves, grad_outputs=pull, retain_graph=True, allow_unused=True
    )
    return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, slopes, strict=True)]


def _labels(
    probs: Float[torch.Tensor, "row pos vocabulary"],
    rows: Int64[np.ndarray, " row"],
    samples: int,
    seed: int,
) -> Int64[torch.Tensor, "sample row pos"]:
    """Return labels drawn from the model's predictions.

    They are found by inverting the cumulative probabilities, so that every device draws the same ones.
    """
    length = probs.shape[1]
    draws = []
    for row in rows:
        # by position first, so that padding does not change what the real positions draw
        uniform = torch.rand(length, samples, generator=generator(seed, "labels", int(row)))
        draws.append(uniform.T)
    uniform = torch.stack(draws, 1).to(probs.device)
    cumulative = probs.cumsum(-1)
    wanted = (uniform * cumulative[None, ..., -1]).permute(1, 2, 0).contiguous()
    labels = torch.searchsorted(cumulative, wanted)
    return labels.clamp_max(probs.shape[-1] - 1).permute(2, 0, 1)


def _padded(
    subject: Subject, rows: Int64[np.ndarray, " row"]
) -> tuple[Int64[torch.Tensor, "row pos"], torch.Tensor]:
    """Return the token ids of rows padded on the right, and which of them are real.

    Attention is causal, so what is behind a row's end changes nothing before it.
    """
    table = subject.tokens.rows
    lengths = table.lengths[rows]
    longest = int(lengths.max())
    ids = table.token_ids[rows, :longest].astype(np.int64)
    real = np.arange(longest)[None] < lengths[:, None]
    device = subject.downstream.device
    return (
        torch.from_numpy(np.where(real, ids, ids[:, :1])).to(device),
        torch.from_numpy(real).to(device),
    )


def _kept(
    subject: Subject, rows: Int64[np.ndarray, " row"]
) -> tuple[Int64[np.ndarray, " token"], torch.Tensor, torch.Tensor]:
    """Return the held-out tokens in some rows, and the row in the batch and the position of each."""
    places = subject.tokens.places
    tokens = subject.tokens_in(rows)
    row_of = np.searchsorted(rows, places[tokens, 0])
    device = subject.downstream.device
    return (
        tokens,
        torch.from_numpy(row_of).to(device),
        torch.from_numpy(places[tokens, 1].copy()).to(device),
    )
