"""Dead, dense and antipodal latents, overlap and interference: what weights and firing rates alone show."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

from sae_placebo.audits.base import AUDITS, Audit, Audited, Case, Finding, Quantity
from sae_placebo.audits.interference import N_PAIRS, interference
from sae_placebo.audits.overlap import DRAWS, overlap, projection
from sae_placebo.causal.use.base import Directions, latent_directions
from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import torch
from sae_placebo.latents.columns.geometry import principal_components
from sae_placebo.stats.proportions import wilson

DENSE_RATE = 0.1
"""Share of the tokens above which a latent that is active on them is dense."""
ANTIPODAL = 0.5
"""Antipodality above which two latents are a pair: both of their cosines are then below about -.7."""
ALIGNED = 0.5
"""Share of a decoder row within the largest principal components, above which it is aligned with them."""
PLACED = 0.1
"""Share of the variance of firing that position explains, above which a latent is one of position."""
KINDS = ("antipodal", "pc", "position")
"""Kinds of dense latents, in the order in which they are tried."""
N_POSITIONS = 32
"""Bins of positions in a row."""
_BLOCK = 1024


@dataclass(frozen=True, eq=False)
class LatentGeometry:
    """Geometry of one SAE's latents. All but `rate` is NaN for latents that are dead.

    Attributes:
        rate: Share of the tokens that a latent is active on.
        antipodality: Largest product, over other living latents, of the cosine between encoder columns and
            that between decoder rows, where both are negative; 0 where there is no such latent.
        aligned: Share of the squared decoder row within the largest principal components.
        placed: Share of the variance of a latent's firing that its position in the row explains.
        overlap: Mean |cos| of a decoder row to those of the other living latents.
    """

    rate: Float64[np.ndarray, " latent"]
    antipodality: Float64[np.ndarray, " latent"]
    aligned: Float64[np.ndarray, " latent"]
    placed: Float64[np.ndarray, " latent"]
    overlap: Float64[np.ndarray, " latent"]

    def kinds(self) -> dict[str, Bool[np.ndarray, " latent"]]:
        """Return which latents, dense or not, are of each of `KINDS`; each is of the first that holds."""
        with np.errstate(invalid="ignore"):
            tests = (
                self.antipodality > ANTIPODAL,
                self.aligned > ALIGNED,
                self.placed > PLACED,
            )
        free = np.ones(len(self.rate), dtype=bool)
        out = {}
        for kind, holds in zip(KINDS, tests, strict=True):
            out[kind] = holds & free
            free &= ~holds
        return out


def run(case: Case) -> Audited:
    """Return the shares of dead and dense latents, the overlap of decoder rows, and interference.

    Raises:
        NotEstimable: fewer than two latents are active on held-out tokens.
    """
    directions = latent_directions(case.reading)
    living = directions.n_active > 0
    if living.sum() < 2:
        raise NotEstimable("fewer than 2 latents are active on the held-out tokens: hold out more")
    shape = shape_of(case, directions)
    findings = _dead(directions) + _dense(shape) + overlap(shape.overlap, directions, case.seed)
    findings += projection(case, directions)
    between, by_latent = interference(case, directions)
    return Audited(
        findings + between,
        {
            "rate": shape.rate,
            "antipodality": shape.antipodality,
            "pc_share": shape.aligned,
            "position_share": shape.placed,
            "overlap": shape.overlap,
            "interference": by_latent,
        },
    )


def shape_of(case: Case, directions: Directions) -> LatentGeometry:
    """Return the geometry of each latent. The lengths of encoder and decoder rows play no part."""
    living = np.flatnonzero(directions.n_active)
    params = case.reading.sae.params
    encoder = torch.nn.functional.normalize(
        params["W_enc"].detach().float().cpu().t()[torch.from_numpy(living)], dim=1
    )
    decoder = torch.from_numpy(directions.vectors[living])
    twins, overlap = torch.zeros(len(living)), torch.zeros(len(living))
    for start in range(0, len(living), _BLOCK):
        block = slice(start, start + _BLOCK)
        cosines = decoder[block] @ decoder.t()
        overlap[block] = (cosines.abs().sum(1) - 1).clamp_min(0) / (len(living) - 1)
        product = (encoder[block] @ encoder.t()).clamp_(max=0).mul_(cosines.clamp_(max=0))
        twins[block] = product.amax(1)
    components = principal_components(case.reading.activations).cpu()
    n = len(directions)
    out = {name: np.full(n, np.nan) for name in ("twins", "aligned", "overlap")}
    out["twins"][living] = twins.numpy()
    out["overlap"][living] = overlap.numpy()
    out["aligned"][living] = (decoder @ components).square().sum(1).numpy()
    return LatentGeometry(
        directions.n_active / max(case.n_tokens, 1),
        out["twins"],
        out["aligned"],
        _placed(case, directions),
        out["overlap"],
    )


def _placed(case: Case, directions: Directions) -> Float64[np.ndarray, " latent"]:
    """Return the share of the variance of each latent's firing (eta^2) that bins of position explain.

    It is corrected for what so many bins explain by chance, so that it may be below 0.
    """
    positions = case.reading.tokens.positions
    edges = np.unique(np.quantile(positions, np.linspace(0, 1, N_POSITIONS + 1)[1:-1]))
    # the first positions are the usual suspects, so each of them is a bin of its own
    edges = np.unique(np.concatenate([edges, np.arange(1, 9)]))
    bins = np.searchsorted(edges, positions, side="right")
    sizes = np.bincount(bins, minlength=len(edges) + 1)
    by = directions.by_direction
    owner = np.repeat(np.arange(len(directions)), np.diff(by.indptr))
    cell = owner * len(sizes) + bins[by.indices]
    hits = np.bincount(cell, minlength=len(directions) * len(sizes)).reshape(-1, len(sizes))
    n, total = case.n_tokens, hits.sum(1)
    between = np.divide(
        hits.astype(np.float64) ** 2, sizes, where=sizes > 0, out=np.zeros(hits.shape)
    )
    rate = total / n
    spread = n * rate * (1 - rate)
    eta = np.divide(
        between.sum(1) - n * rate**2, spread, out=np.full(len(rate), np.nan), where=spread > 0
    )
    df = int((sizes > 0).sum()) - 1
    return np.asarray(1 - (1 - eta) * (n - 1) / max(n - 1 - df, 1))


def _dead(directions: Directions) -> list[Finding]:
    """Return the share of dead latents, and the rate above which a silent latent would have been seen."""
    n, counts = directions.amounts.shape[0], directions.n_active
    m, dead = len(counts), int((counts == 0).sum())
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    # Chao 1984, in the form that needs no latent seen twice
    unseen = min(once * (once - 1) / (2 * (twice + 1)), dead)
    return [
        Finding(
            "latent_geometry", "dead_share", dead / m, *wilson(dead, m), m, unseen / m, of="latents"
        ),
        Finding("latent_geometry", "dead_rate_bound", 3 / n, n=n, null=0.0),
    ]


def _dense(shape: LatentGeometry) -> list[Finding]:
    """Return the share of dense latents, and which share of these is of each kind."""
    dense = shape.rate > DENSE_RATE
    sparse = (shape.rate > 0) & ~dense
    m, n = len(dense), int(dense.sum())
    uniform = float(shape.rate.mean() > DENSE_RATE)
    out = [
        Finding("latent_geometry", "dense_share", n / m, *wilson(n, m), m, uniform, of="latents")
    ]
    kinds = shape.kinds()
    kinds["other"] = ~np.any(list(kinds.values()), axis=0)
    for kind, holds in kinds.items():
        name = f"dense_{kind}"
        null = float(holds[sparse].mean()) if sparse.any() else math.nan
        if n == 0:
            reason = f"no latent is active on more than {DENSE_RATE:.0%} of the tokens"
            out.append(
                Finding("latent_geometry", name, math.nan, null=null, of="latents", reason=reason)
            )
            continue
        hits = int(holds[dense].sum())
        out.append(
            Finding("latent_geometry", name, hits / n, *wilson(hits, n), n, null, of="latents")
        )
    return out


_OF_DENSE = "the same share among the living latents that are not dense"
AUDITS.add(
    Audit(
        name="latent_geometry",
        title="Dead, dense and overlapping latents",
        question="What do weights and firing rates alone say against this dictionary?",
        source="c_dec and s_n: Chanin and Garriga-Alonso 2025 (arXiv 2508.16560); s_n is in units "
        "of the root "
        "mean square of x - b_dec. Antipodality and kinds of dense latents: Sun et al. 2025 (arXiv "
        "2506.15679); both cosines must be negative here, and thresholds are ours. Interference: "
        "Costa and "
        "Tolooshams 2026. Unseen latents: Chao 1984.",
        quantities=(
            Quantity(
                "dead_share",
                "share",
                "lower",
                "share of all latents that are alive but too rare for so few tokens, by Chao's "
                "estimate from those "
                "seen once and twice",
                "share of latents that are active on no held-out token",
                "If it is above its null, train longer with an auxiliary loss for dead latents or "
                "use fewer latents.",
            ),
            Quantity(
                "dead_rate_bound",
                "share",
                "lower",
                "0: with endless tokens",
                "3 / tokens: a latent that is silent on all of them is active on fewer than this "
                "share, at 95%",
                "Call a latent dead only below this rate; hold out more tokens to say more.",
            ),
            Quantity(
                "dense_share",
                "share",
                "neither",
                "1 or 0: what it is if all latents are active equally often",
                f"share of latents active on more than {DENSE_RATE:.0%} of the tokens",
                "Dense is not broken: see what kind they are before you drop them.",
            ),
            Quantity(
                "dense_antipodal",
                "share",
                "neither",
                _OF_DENSE,
                f"share of dense latents with max over j of cos(enc_i, enc_j) cos(dec_i, dec_j) > "
                f"{ANTIPODAL}, both "
                "cosines negative",
                "Read both latents of such a pair as one signed direction.",
            ),
            Quantity(
                "dense_pc",
                "share",
                "neither",
                _OF_DENSE,
                f"share of dense latents, not antipodal, whose decoder row lies by more than "
                f"{ALIGNED:.0%} of its "
                "square within the 10 largest principal components",
                "Do not interpret them: any cloud of this shape has them, placebo included.",
            ),
            Quantity(
                "dense_position",
                "share",
                "neither",
                _OF_DENSE,
                f"share of dense latents of neither kind of which position in the row tells more "
                f"than {PLACED:.0%} of "
                "the variance of firing",
                "Compare tokens at like positions before you give them a meaning.",
            ),
            Quantity(
                "dense_other",
                "share",
                "neither",
                _OF_DENSE,
                "share of dense latents of none of these kinds",
                "Look at these by hand: they may carry a dense feature of the model.",
            ),
            Quantity(
                "c_dec",
                "1",
                "lower",
                "that of random directions, about sqrt(2 / (pi d_in))",
                "mean |cos| of the decoder rows of two living latents",
                "Train at several L0: where this is smallest, L0 is about right; too low an L0 "
                "mixes correlated "
                "features.",
            ),
            Quantity(
                "c_dec_matched",
                "1",
                "lower",
                "that of random unit rows with the mean and covariance of the decoder rows; range "
                "of "
                f"{DRAWS} draws",
                "the same, beside the fair null where rows share few directions",
                "If only the isotropic null is exceeded, the overlap is the shape of the cloud, "
                "not mixing.",
            ),
            Quantity(
                "s_n",
                "1",
                "lower",
                "that of random unit rows on the same tokens",
                "the n-th largest projection per token of x - b_dec on unit decoder rows, over "
                "the root mean square of "
                "x - b_dec: of all projections of a batch, the one of rank n times tokens; the "
                "place is n",
                "Compare SAEs that differ in L0 alone: large values behind n = L0 say that L0 is "
                "wrong.",
                along="n",
            ),
            Quantity(
                "interference_share",
                "share",
                "neither",
                "that of codes shuffled over tokens, in closed form",
                "sum over i != j of d_i . d_j E[a_i a_j], over E|x_hat - b_dec|^2; a is code "
                "times decoder norm",
                "Far above the null: latents add up to one thing together, so do not read single "
                "codes as amounts; "
                "below 0: they cancel.",
            ),
            Quantity(
                "interference_pairs",
                "share",
                "neither",
                "that of the same pairs with codes shuffled over tokens",
                f"the part of it that is due to the {N_PAIRS} pairs active together on most tokens",
                "If it is large, ablate these latents in pairs, never one by one.",
            ),
        ),
        run=run,
    ),
)
