"""Which parts of a model write what moves a latent: embedding, attention heads, MLPs.

A residual stream is a sum. A latent's pre-activation is linear in it, so it splits exactly into what each
part before the hookpoint adds. A **share** is of the difference between the tokens on which the latent fires
and all tokens. So a part that adds the same at every token, such as a bias, has no share.
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
    """How writers are found, and what their shares are compared with."""

    tokens: int = Field(20_000, ge=100)
    """About so many held-out tokens are read, in whole rows at random."""
    groups: int = Field(10, ge=2)
    """Documents are dealt to so many groups, which are left out in turn for the intervals."""
    fewest: int = Field(10, ge=2)
    """A latent has shares if it fires on at least so many of the tokens read."""
    pseudo: int = Field(800, ge=80)
    """How many random encoders there are that pick their own tokens, at firing rates of the latents."""
    peers: int = Field(100, ge=10)
    """Each share is ranked among those of so many other latents, the nearest in firing rate."""
    level: float = Field(0.05, gt=0, lt=1)
    """The level of the tests of a share against its nulls."""


@dataclass(frozen=True, eq=False)
class Writers:
    """The exact shares of the parts of a model in what moves each latent; NaN for latents that have none.

    Attributes:
        parts: The parts in order; the last is the rest.
        shares: The shares, which sum to 1 over parts. A part with a share below 0 works against the latent.
        low: The lower end of the 95% interval, from leaving out groups of documents in turn.
        high: The upper end.
        angle_p: The share of random encoders, at the encoder's angle to the mean displacement of the
            activation and on the latent's own tokens, for which the part has at least as large a share. It
            is exact.
        angle_null95: The 95th percentile of the part's share over these encoders.
        pseudo_null95: The 95th percentile of the part's share over random encoders that pick their own
            tokens, about as many as the latent fires on.
        pseudo_percentile: The percentage of these encoders for which the part has a smaller share.
        pseudo_p: The family-wise p-value of the share among these encoders: its distance from their mean, in
            their standard deviations, is ranked among the largest distance of each of them over the heads,
            or over all other parts.
        made_p: The p-value of the claim that some head or MLP writes the latent more than it writes these
            encoders; see `writer_nulls.PseudoNull`.
        peers_null95: The 95th percentile of the part's share over latents that fire about as often.
        peers_percentile: The percentage of these latents for which the part has a smaller share.
        n: How many of the tokens read each latent fires on.
        n_pseudo: How many random encoders have shares.
        level: The level of the tests.
        reasons: Why a latent has no shares; an empty string where it has some.
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
    made_p: Float64[np.ndarray, " direction"]
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
        """Which shares are larger than those of random encoders that pick their own tokens, family-wise."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.pseudo_p <= self.level)

    @functools.cached_property
    def above_both(self) -> Bool[np.ndarray, "direction part"]:
        """Which of these are larger than those of encoders at the same angle as well.

        The test is Benjamini-Hochberg over the parts of a latent. It is strict: a latent whose encoder
        points along the displacement of its tokens reads whatever moved there, and so does any encoder at
        its small angle, whichever part wrote it.
        """
        q = [adjusted(p) for p in self.angle_p]
        small = np.array(q).reshape(self.shares.shape) <= self.level
        return np.asarray(self.above & small)

    @functools.cached_property
    def is_head(self) -> Bool[np.ndarray, " part"]:
        """Which parts are attention heads."""
        return np.array([part.kind == "head" for part in self.parts])

    def row(self, latent: int, part: int) -> dict[str, Any]:
        """Return one share with its interval, nulls and n, as the row of a table."""
        writer, at = self.parts[part], (latent, part)
        return {
            "latent": latent,
            "part": writer.name,
            "kind": writer.kind,
            "layer": writer.layer,
            "head": writer.head,
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
        """Return the `n` parts with the largest shares in a latent, one row each.

        Raises:
            NotEstimable: the latent has no shares.
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

    Let e_i be the encoder of latent i, A_i the tokens on which it fires, x_t the activation at token t, and
    out_mt what part m adds to it. The share of part m in latent i is

        W_im = mean_{t in A_i} e_i . (out_mt - mean out_m) / mean_{t in A_i} e_i . (x_t - mean x),

    with the inner means over all tokens read: by how much part m moves the latent's pre-activation where it
    fires, over how much all parts together move it.

    A share is compared with those of three kinds of other encoders:

    - **angle**: encoders that point in a random direction at e_i's angle to the mean displacement of x over
      A_i, so that the denominator stays the same. The distribution of their shares is known exactly. But a
      latent's tokens were picked by its own encoder, which by itself aligns every part's output with it.
    - **pseudo**: random encoders that pick their own tokens, those of their largest pre-activations, at
      firing rates drawn from the latents'.
    - **peers**: the latents that fire about as often.

    Args:
        subject: The model, which is read up to the hookpoint, and its tokens.
        encoder: W_enc of the SAE, in model units.
        directions: The latents; their amounts say where each fires, and their vectors are not used.
        spec: The settings.
        seed: The seed of the rows and of the random encoders.
        track: It shows how many tokens are read.

    Raises:
        ModelError: the model does not add attention heads and MLPs to its residual stream.
        NotEstimable: the tokens read lie in fewer than two groups of documents, or no latent fires on
            enough of them.

    Source: direct logit attribution, with an encoder in the place of an unembedding; for attention
    outputs see Kissane et al. 2024 (arXiv 2406.17759). Centering and the nulls are this package's.
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
    n = len(subject.tokens_in(np.concatenate(rows)))
    with track("find writers", n, "tokens") as advance:
        for g, group in enumerate(rows):
            for tokens, columns, x in stream.read(group):
                sums.add(g, both[tokens].T.tocsr(), columns, x)
                advance(len(tokens))
    return _assembled(stream, sums, active.shape[1], spec)


def _groups_of_rows(
    subject: Subject, spec: WriterSpec, seed: int
) -> list[Int64[np.ndarray, " row"]]:
    """Return random rows with about as many tokens as wanted, in groups that share no document."""
    table = subject.tokens
    usable, counts = np.unique(table.places[:, 0], return_counts=True)
    order = numpy_generator(seed, "rows for writers").permutation(len(usable))
    before = np.cumsum(counts[order]) - counts[order]
    drawn = usable[order[before < spec.tokens]]
    documents = np.unique(table.rows.documents[drawn], return_inverse=True)[1]
    groups = [np.sort(drawn[documents % spec.groups == g]) for g in range(spec.groups)]
    return [rows.astype(np.int64) for rows in groups if len(rows)]


def _pseudo(
    subject: Subject,
    active: Any,
    d_in: int,
    rows: Int64[np.ndarray, " row"],
    spec: WriterSpec,
    seed: int,
) -> tuple[Float[np.ndarray, "pseudo d_in"], Any]:
    """Return random encoders, and the tokens that each picks, as CSR [token, encoder] of ones.

    An encoder picks the tokens of its largest pre-activations, as many as a randomly drawn latent fires on.
    """
    from scipy.sparse import csc_matrix

    random = numpy_generator(seed, "pseudo encoders")
    drawn = random.standard_normal((spec.pseudo, d_in))
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    read = subject.tokens_in(rows)
    fires = np.asarray(active[read].sum(0), dtype=np.int64).ravel()
    fires = fires[fires >= spec.fewest]
    if not len(fires):
        raise NotEstimable(f"no latent fires on {spec.fewest} of the {len(read)} tokens read")
    # no more than half of the tokens: an encoder that fires everywhere would not pick any
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
    """Sums of what each part adds, over the tokens on which each encoder fires, and over all tokens.

    Args:
        stream: The parts.
        encoders: The encoders of the latents, then the random ones.
        n_groups: How many groups of documents there are.

    Attributes:
        active: [group, encoder, part] Products of each encoder with the sum over the tokens that it fires on.
        all: The same with the sum over all tokens. The last part is the activation itself.
        n_active: [group, encoder] How many tokens each fires on.
        n: How many tokens each group has.
    """

    def __init__(
        self, stream: StreamReader, encoders: Float32[np.ndarray, "any d_in"], n_groups: int
    ) -> None:
        self.blocks = [*stream.blocks, PartColumns((Part("x"),))]
        self.encoders = encoders
        n_parts = sum(len(block.parts) for block in self.blocks)
        m = len(encoders)
        self.read = [read_through(encoders, block) for block in self.blocks]
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
        """Add some tokens of a group.

        Args:
            group: The group of documents.
            active: CSR [encoder, token] of ones, where each encoder fires.
            columns: The columns of each block of parts.
            x: The activations.
        """
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
        """Return by how much the mean of each block's columns differs where each encoder fires.

        These are the first `m` encoders, and the difference is from the mean over all tokens.
        """
        n = np.maximum(self.n_active.sum(0)[:m, None], 1)
        means = zip(self.vectors, self.totals, strict=True)
        return [active[:m] / n - total / self.n.sum() for active, total in means]


def _shares(
    active: Float64[np.ndarray, "any part"],
    everywhere: Float64[np.ndarray, "any part"],
    n_active: Float64[np.ndarray, " any"],
    n: float,
) -> Float64[np.ndarray, "any part"]:
    """Return the shares from sums; the last part is the activation in these, and the rest in the shares."""
    with np.errstate(invalid="ignore", divide="ignore"):
        moved = active / n_active[:, None] - everywhere / n
        # an encoder whose tokens do not move it up, beyond rounding, has no shares
        size = np.abs(moved[:, :-1]).sum(1)
        moved[moved[:, -1] <= 1e-5 * size] = np.nan
        shares = moved[:, :-1] / moved[:, -1:]
    return np.concatenate([shares, 1 - shares.sum(1, keepdims=True)], axis=1)


def _assembled(
    stream: StreamReader, sums: _WriterSums, n_latents: int, spec: WriterSpec
) -> Writers:
    """Return shares, intervals and nulls of the latents, which are the first `n_latents` encoders."""
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
    null = pseudo_null(shares, pseudo, parts, n)
    peers_percentile, peers95 = peers(shares, n[:n_latents], spec.peers)
    return Writers(
        parts=parts,
        shares=shares,
        low=(whole - half)[:n_latents],
        high=(whole + half)[:n_latents],
        angle_p=angle_p,
        angle_null95=angle95,
        pseudo_null95=null.null95,
        pseudo_percentile=null.percentile,
        pseudo_p=null.p,
        made_p=null.made_p,
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
    """Return why a latent has no shares; an empty string where it has some."""
    if n[latent] < fewest:
        return f"fires on {n[latent]} of the tokens read; {fewest} are needed"
    if np.isnan(shares[latent, 0]):
        return "its tokens do not move its pre-activation up"
    return ""
