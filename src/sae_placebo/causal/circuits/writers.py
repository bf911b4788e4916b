"""Which parts of a model write what moves a latent: embedding, attention heads, MLPs.

A residual stream is a sum, so a latent's pre-activation, linear in it, splits exactly into what each part
before the hookpoint adds. Parts that are the same at every token, such as biases, move nothing; a share
is of what is different where the latent fires.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64
from pydantic import Field

from sae_placebo.causal.circuits.streams import (
    Part,
    PartColumns,
    StreamReader,
    by_head,
    read_through,
)
from sae_placebo.causal.circuits.writer_nulls import angle_null, peers, pseudo_null
from sae_placebo.causal.use.base import Directions, Subject
from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import pandas, torch
from sae_placebo.core.progress import Track, untracked
from sae_placebo.core.spec import Spec, numpy_generator
from sae_placebo.stats.multiplicity import adjusted
from sae_placebo.stats.quantiles import student_quantile


class WriterSpec(Spec):
    """On what writers are found, and what they are held against."""

    tokens: int = Field(20_000, ge=100)
    """Held-out tokens that are read, whole rows at random."""
    groups: int = Field(10, ge=2)
    """Groups of documents, left out in turn for the intervals."""
    fewest: int = Field(10, ge=2)
    """Tokens among them that a latent must fire on."""
    pseudo: int = Field(800, ge=80)
    """Random encoders that pick their own tokens, at firing rates of the latents."""
    peers: int = Field(100, ge=10)
    """Other latents, nearest in firing rate, that each share is ranked among."""
    level: float = Field(0.05, gt=0, lt=1)
    """Of the tests of a share against its nulls."""


@dataclass(frozen=True, eq=False)
class Writers:
    """Exact shares of the parts of a model in what moves each latent; NaN where there is none.

    Attributes:
        parts: In order; the last is the rest.
        shares: Sum to 1 over parts. Below 0: the part works against the latent.
        low: Lower end of the 95% interval, over groups of documents left out in turn.
        high: Upper end.
        angle_p: Share of random encoders at the encoder's angle to the mean displacement of the
            activation, on the latent's own tokens, whose share is at least as large; exact.
        angle_null95: 95th percentile of the share of these.
        pseudo_null95: 95th percentile of the share of random encoders that pick their own tokens, about as
            many.
        pseudo_percentile: Percentage of these with a smaller share.
        pseudo_p: The share's distance from their mean in their standard deviations, ranked among the
            largest of each of them, over the heads, or over all other parts: family-wise.
        peers_null95: 95th percentile of the share of latents that fire about as often.
        peers_percentile: Percentage of these with a smaller share.
        n: Tokens that each latent fires on, of those read.
        n_pseudo: Random encoders.
        level: Of the settings.
        reasons: Why a latent has no shares; empty where it has.
    """

    parts: tuple[Part, ...]
    shares: Float64[np.ndarray, "direction part"]
    low: Float64[np.ndarray, "direction part"]
    high: Float64[np.ndarray, "direction part"]
    angle_p: Float64[np.ndarray, "direction part"]
    angle_null95: Float64[np.ndarray, "direction part"]
    pseudo_null95: Float64[np.ndarray, "direction part"]
    pseudo_percentile: Float64[np.ndarray, "direction part"]
    pseudo_p: Float64[np.ndarray, "direction part"]
    peers_null95: Float64[np.ndarray, "direction part"]
    peers_percentile: Float64[np.ndarray, "direction part"]
    n: Int64[np.ndarray, " direction"]
    n_pseudo: int
    level: float
    reasons: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.shares)

    @functools.cached_property
    def above(self) -> Bool[np.ndarray, "direction part"]:
        """Which shares are above those of random encoders that pick their own tokens, family-wise."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.pseudo_p <= self.level)

    @functools.cached_property
    def above_both(self) -> Bool[np.ndarray, "direction part"]:
        """Which of these are above encoders at the same angle as well, by Benjamini-Hochberg over parts.

        Strict: a latent that points where its tokens displace the activation reads what moved there, and
        so does any encoder at its small angle, whoever wrote it.
        """
        q = [adjusted(p) for p in self.angle_p]
        small = np.array(q).reshape(self.shares.shape) <= self.level
        return np.asarray(self.above & small)

    @functools.cached_property
    def is_head(self) -> Bool[np.ndarray, " part"]:
        """Which parts are attention heads."""
        return np.array([part.kind == "head" for part in self.parts])

    def row(self, latent: int, part: int) -> dict[str, Any]:
        """Return one share with its interval, nulls and n, as a table's row."""
        one, at = self.parts[part], (latent, part)
        return {
            "latent": latent,
            "part": one.name,
            "kind": one.kind,
            "layer": one.layer,
            "head": one.head,
            "share": float(self.shares[at]),
            "low": float(self.low[at]),
            "high": float(self.high[at]),
            "null95": float(self.pseudo_null95[at]),
            "angle_null95": float(self.angle_null95[at]),
            "angle_p": float(self.angle_p[at]),
            "pseudo_percentile": float(self.pseudo_percentile[at]),
            "pseudo_p": float(self.pseudo_p[at]),
            "peers_percentile": float(self.peers_percentile[at]),
            "above": bool(self.above[at]),
            "above_both": bool(self.above_both[at]),
            "n": int(self.n[latent]),
        }

    def top(self, latent: int, n: int = 3) -> pandas.DataFrame:
        """Return the parts with the largest shares of a latent.

        Raises:
            NotEstimable: it has no shares.
        """
        if self.reasons[latent]:
            raise NotEstimable(self.reasons[latent])
        order = np.argsort(-self.shares[latent], kind="stable")[:n]
        return pandas.DataFrame([self.row(latent, int(part)) for part in order])


def writers(
    subject: Subject,
    encoder: Float[torch.Tensor, "d_in direction"],
    directions: Directions,
    spec: WriterSpec | None = None,
    seed: int = 0,
    track: Track = untracked,
) -> Writers:
    """Return the share of every part before the hookpoint in what moves each latent.

        W_im = mean_{t in A_i} e_i . (out_mt - mean out_m) / mean_{t in A_i} e_i . (x_t - mean x)

    with A_i the tokens that hold some of direction i, e_i its encoder, and means over the tokens read.

    Three nulls. **Angle**: an encoder in a random direction, but at e_i's angle to the mean displacement of
    x over A_i, so that the share's denominator is the same: what it has across the displacement is
    uniform on a sphere, so its share's distribution is known and nothing is drawn. A latent's tokens
    were picked by its own encoder, though, which by itself aligns every part's output with it. So
    **pseudo**: random encoders with A_k the tokens of their largest pre-activations, at firing rates
    drawn from the latents'. **Peers**: the latents that fire about as often.

    Args:
        subject: The model, read up to the hookpoint.
        encoder: W_enc of the SAE, in model units.
        directions: Whose amounts say where each latent fires; decoder directions are not used.
        spec: Settings.
        seed: Names the rows and the random encoders.
        track: Shows how many tokens are read.

    Raises:
        ModelError: the model does not add attention heads and MLPs to its residual stream.
        NotEstimable: the tokens read lie in fewer than two groups of documents.

    Source: direct logit attribution, with an encoder in the place of an unembedding; for attention
    outputs see Kissane et al. 2024 (arXiv 2406.17759). Centering and the nulls are ours.
    """
    spec = spec or WriterSpec()
    stream = StreamReader(subject)
    rows = _groups_of_rows(subject, spec, seed)
    if len(rows) < 2:
        raise NotEstimable(f"tokens of {len(rows)} document are read; two or more are needed")
    active = directions.amounts.astype(bool).astype(np.float32)
    rows_encoder = encoder.detach().float().cpu().numpy().T
    pseudo, picked = _pseudo(
        subject, active, rows_encoder.shape[1], np.concatenate(rows), spec, seed
    )
    sums = _WriterSums(stream, np.concatenate([rows_encoder, pseudo]).astype(np.float32), len(rows))
    from scipy.sparse import hstack

    both = hstack([active, picked]).tocsr()
    n = int(np.isin(subject.tokens.places[:, 0], np.concatenate(rows)).sum())
    with track("find writers", n, "tokens") as advance:
        for g, some in enumerate(rows):
            for tokens, columns, x in stream.read(some):
                sums.add(g, both[tokens].T.tocsr(), columns, x)
                advance(len(tokens))
    return _assembled(stream, sums, active.shape[1], spec)


def _groups_of_rows(
    subject: Subject, spec: WriterSpec, seed: int
) -> list[Int64[np.ndarray, " row"]]:
    """Return rows at random with about as many tokens as wanted, dealt to groups by document."""
    table = subject.tokens
    there, counts = np.unique(table.places[:, 0], return_counts=True)
    order = numpy_generator(seed, "rows for writers").permutation(len(there))
    before = np.cumsum(counts[order]) - counts[order]
    some = there[order[before < spec.tokens]]
    documents = np.unique(table.rows.documents[some], return_inverse=True)[1]
    groups = [np.sort(some[documents % spec.groups == g]) for g in range(spec.groups)]
    return [rows.astype(np.int64) for rows in groups if len(rows)]


def _pseudo(
    subject: Subject,
    active: Any,
    d_in: int,
    rows: Int64[np.ndarray, " row"],
    spec: WriterSpec,
    seed: int,
) -> tuple[Float[np.ndarray, "pseudo d_in"], Any]:
    """Return random encoders, and the tokens that each picks: those of its largest pre-activations."""
    from scipy.sparse import csc_matrix

    random = numpy_generator(seed, "pseudo encoders")
    drawn = random.standard_normal((spec.pseudo, d_in))
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    read = np.flatnonzero(np.isin(subject.tokens.places[:, 0], rows))
    fires = np.asarray(active[read].sum(0), dtype=np.int64).ravel()
    fires = fires[fires >= spec.fewest]
    if not len(fires):
        raise NotEstimable(f"no latent fires on {spec.fewest} of the {len(read)} tokens read")
    # no more than half of the tokens: an encoder that fires everywhere picks nothing
    counts = np.minimum(random.choice(fires, spec.pseudo), len(read) // 2)
    x = subject.activations[torch.from_numpy(read)].float().cpu()
    scores = (x @ torch.from_numpy(drawn.T.astype(np.float32))).numpy()
    tokens = [np.sort(np.argpartition(-scores[:, k], n)[:n]) for k, n in enumerate(counts)]
    pointers = np.concatenate([[0], np.cumsum(counts)])
    shape = (active.shape[0], spec.pseudo)
    indices = read[np.concatenate(tokens)]
    picked = csc_matrix((np.ones(len(indices), dtype=np.float32), indices, pointers), shape=shape)
    return drawn.astype(np.float32), picked.tocsr()


class _WriterSums:
    """Sums over the tokens of each direction, by block of parts; their products with encoders by group."""

    def __init__(
        self, stream: StreamReader, encoders: Float32[np.ndarray, "any d_in"], n_groups: int
    ) -> None:
        self.blocks = [*stream.blocks, PartColumns((Part("x"),))]
        self.encoders = encoders
        n_parts = sum(len(block.parts) for block in self.blocks)
        m = len(encoders)
        self.read = [read_through(encoders, block) for block in self.blocks]
        # e_i . sum over A_i of each part's output; e_i . sum over all tokens
        self.active = np.zeros((n_groups, m, n_parts))
        self.all = np.zeros((n_groups, m, n_parts))
        self.n_active = np.zeros((n_groups, m))
        self.n = np.zeros(n_groups)
        self.vectors = [np.zeros(r.shape, dtype=np.float32) for r in self.read]
        self.totals = [np.zeros(r.shape[1]) for r in self.read]

    def add(
        self,
        group: int,
        active: Any,
        columns: list[Float[np.ndarray, "token _"]],
        x: Float[np.ndarray, "token d_in"],
    ) -> None:
        """Take in some tokens of a group; `active` is CSR [direction, token] of ones."""
        start = 0
        for k, (block, values) in enumerate(zip(self.blocks, [*columns, x], strict=True)):
            heads = len(block.parts)
            held = active @ values
            total = values.sum(0, dtype=np.float64)
            self.vectors[k] += held
            self.totals[k] += total
            parts = slice(start, start + heads)
            self.active[group, :, parts] += by_head(self.read[k], held, heads)
            whole = np.broadcast_to(total.astype(np.float32), held.shape)
            self.all[group, :, parts] += by_head(self.read[k], whole, heads)
            start += heads
        self.n_active[group] += np.diff(active.indptr)
        self.n[group] += len(x)

    def moved(self, m: int) -> list[Float64[np.ndarray, "direction width"]]:
        """Return by how much each block's columns differ where the first `m` directions are active."""
        n = np.maximum(self.n_active.sum(0)[:m, None], 1)
        means = zip(self.vectors, self.totals, strict=True)
        return [active[:m] / n - total / self.n.sum() for active, total in means]


def _shares(
    active: Float64[np.ndarray, "any part"],
    everywhere: Float64[np.ndarray, "any part"],
    n_active: Float64[np.ndarray, " any"],
    n: float,
) -> Float64[np.ndarray, "any part"]:
    """Return the shares from sums; the last column, the activation itself, becomes the rest."""
    with np.errstate(invalid="ignore", divide="ignore"):
        moved = active / n_active[:, None] - everywhere / n
        # an encoder that its tokens do not move, beyond rounding, has no shares
        size = np.abs(moved[:, :-1]).sum(1)
        moved[moved[:, -1] <= 1e-5 * size] = np.nan
        shares = moved[:, :-1] / moved[:, -1:]
    return np.concatenate([shares, 1 - shares.sum(1, keepdims=True)], axis=1)


def _assembled(
    stream: StreamReader, sums: _WriterSums, n_latents: int, spec: WriterSpec
) -> Writers:
    whole = _shares(sums.active.sum(0), sums.all.sum(0), sums.n_active.sum(0), sums.n.sum())
    without = [
        _shares(*(x.sum(0) - x[g] for x in (sums.active, sums.all, sums.n_active, sums.n)))
        for g in range(len(sums.n))
    ]
    g = len(without)
    spread = np.stack(without) - whole
    se = np.sqrt((g - 1) / g * (spread**2).sum(0))
    half = student_quantile(g - 1) * se
    n = sums.n_active.sum(0).astype(np.int64)
    few = n < spec.fewest
    whole[few] = np.nan
    shares, pseudo = whole[:n_latents], whole[n_latents:]
    parts = (*stream.parts, Part("rest"))
    angle_p, angle95 = angle_null(sums.blocks, sums.moved(n_latents), sums.encoders[:n_latents])
    angle_p[np.isnan(shares)] = angle95[np.isnan(shares)] = np.nan
    percentile, family, pseudo95 = pseudo_null(shares, pseudo, parts, n)
    peers_percentile, peers95 = peers(shares, n[:n_latents], spec.peers)
    return Writers(
        parts=parts,
        shares=shares,
        low=(whole - half)[:n_latents],
        high=(whole + half)[:n_latents],
        angle_p=angle_p,
        angle_null95=angle95,
        pseudo_null95=pseudo95,
        pseudo_percentile=percentile,
        pseudo_p=family,
        peers_null95=peers95,
        peers_percentile=peers_percentile,
        n=n[:n_latents],
        n_pseudo=int(np.isfinite(pseudo[:, 0]).sum()),
        level=spec.level,
        reasons=tuple(_reason(i, n, shares, spec.fewest) for i in range(n_latents)),
    )


def _reason(
    latent: int,
    n: Int64[np.ndarray, " any"],
    shares: Float64[np.ndarray, "direction part"],
    fewest: int,
) -> str:
    if n[latent] < fewest:
        return f"fires on {n[latent]} of the tokens read; {fewest} are needed"
    if np.isnan(shares[latent, 0]):
        return "its tokens do not move its pre-activation up"
    return ""
