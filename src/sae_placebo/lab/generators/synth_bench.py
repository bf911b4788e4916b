"""G10: the settings of SynthSAEBench-16k, and a twin of an eighth of its features."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from jaxtyping import Float32, Int64
from pydantic import Field, model_validator

from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import generator
from sae_placebo.lab.generators.base import (
    GENERATORS,
    GeneratorSpec,
    GeneratorTruth,
    Sample,
    unit_rows,
)
from sae_placebo.lab.generators.sparse_draws import codes_of_parts, independent_support
from sae_placebo.saes import Codes

_CHUNK_NUMBERS = 1 << 22
_SIZES = {"full": (16_384, 128, 768), "eighth": (2_048, 16, 256)}
_BRANCHING = 4
_DEPTH = 3
_TREE = sum(_BRANCHING**level for level in range(_DEPTH + 1))
_LEARNING_RATE = 3e-4
_TAIL = 0.01
"""Upper share of the noise's distribution that is drawn beforehand, without knowing the shared factors."""
_RATE_POINTS = 1 << 12


@GENERATORS.add
class SynthBenchSpec(GeneratorSpec):
    """A forest of features and rare single ones, correlated, with magnitudes that follow the parent's.

    For token t and feature i = 0 .. n - 1, with z_t ~ N(0, I) of `rank` dimensions, e_ti and m_ti ~ N(0, 1),

        x_t   = b + sum_i a_ti f_i,     |b| = bias
        p_i   = min_rate + (max_rate - min_rate) (w_i - w_n-1) / (w_0 - w_n-1),  w_i = (i + 1)^-exponent
        h_ti  = c_i . z_t + sqrt(1 - |c_i|^2) e_ti,      c_i ~ N(0, correlation_scale^2 I)
        u_ti  = max(0, mu_i + s_i m_ti) where h_ti > Phi^-1(1 - q_i), else 0
        mu_i  from 5 to 4, linear in i;  s_i ~ |N(0.5, 0.5^2)|, drawn once

    - Trees: the first features are `roots` roots, then come all children of these, and so on. A node has 4
      children, there are 3 levels below a root, and a tree has 85 features. A child of an inactive parent
      is off; one of several active siblings, uniformly chosen, stays on. a_ti = u_ti * a_tj / mu_j where i
      has a parent j, else u_ti.
    - Compensation: q_i = min(1, p_i / p_j * (1 + sum of siblings' p / p_j)) for a child of j, else p_i.
      It does not reach p_i: many q_i are cut at 1, and 4 exclusive children of similar rate cannot all
      keep it. `truth.rates` are the rates that result, not p_i.
    - Directions: random unit rows take 100 steps of Adam (rate 3e-4) on
      sum_{i != j} (f_i . f_j)^2 + n sum_i (|f_i|^2 - 1)^2 and are then brought to unit length.

    With `scale = "full"`, n is 16,384, d_in is 768 and there are 128 roots. With `scale = "eighth"`, the
    twin, n is 2,048, d_in is 256 and there are 16 roots; all else is the same. Mean L0 is 34.4 at full scale,
    25.1 of it in the 4,096 most frequent features (published: about 34 and 25), and 10.9 for the twin. The
    twin's L0 is not set: the law of p_i keeps its ends and its exponent, and about the full scale's number of
    active features per dimension follows (34.4 / 768 = 0.045, 10.9 / 256 = 0.043).

    The rates of roots and single features are exact. Those of the other features of trees are means over z
    at 4,096 scrambled Sobol points, exact given z; for the twin their error is 0.3% of the rate, 2% at
    worst.

    Source: Chanin and Garriga-Alonso, "SynthSAEBench" (2026, arXiv 2602.14687); settings from
    decoderesearch/synth-sae-bench-experiments `create_synth_bench_16k_model.py`, definitions from
    `sae_lens.synthetic` (hierarchy, correlation, firing_probabilities, activation_generator). Differs:

    - the published model is one draw (seed 42, saved on a hub); this is another draw of the same law;
    - activity is drawn in a different order, with the same distribution: single features are drawn by
      thinning, and children only where their parent is active;
    - the gradient of the directions' loss is taken by hand, through the d_in x d_in Gram matrix.
    """

    kind: Literal["synth_bench"] = "synth_bench"
    scale: Literal["full", "eighth"] = "eighth"
    d_in: int = Field(256, ge=2)
    """Width; 768 (full) or 256 (eighth) if it is left out. The published sweep is from 256 to 1536, at full
    scale."""
    max_rate: float = Field(0.4, gt=0, lt=1)
    min_rate: float = Field(5e-4, gt=0, lt=1)
    exponent: float = Field(0.5, gt=0)
    rank: int = Field(25, ge=1)
    """Number of shared factors z."""
    correlation_scale: float = Field(0.1, ge=0)
    bias: float = Field(0.5, ge=0)
    """Length of the constant vector; see `offset`."""
    orthogonalization_steps: int = Field(100, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _published_width(cls, data: Any) -> Any:
        if isinstance(data, dict) and "d_in" not in data:
            return {**data, "d_in": _SIZES["full" if data.get("scale") == "full" else "eighth"][2]}
        return data

    @model_validator(mode="after")
    def _rates_fit(self) -> SynthBenchSpec:
        if self.min_rate >= self.max_rate:
            raise ValueError(
                f"min_rate ({self.min_rate:g}) must be below max_rate ({self.max_rate:g}): "
                "exchange them"
            )
        return self

    @property
    def n_features(self) -> int:
        """Return the number of features."""
        return _SIZES[self.scale][0]

    @property
    def roots(self) -> int:
        """Return the number of trees."""
        return _SIZES[self.scale][1]

    @property
    def offset(self) -> Float32[torch.Tensor, " d_in"]:
        """Return the constant vector that is added to every token."""
        return self.bias * unit_rows(1, self.d_in, generator(self.seed, self.kind, "bias"))[0]

    def draw(self, n_tokens: int, random: torch.Generator) -> Sample:
        """Return `n_tokens` tokens with their true codes; see `GeneratorSpec.draw`."""
        sample = super().draw(n_tokens, random)
        if self.bias:
            sample.x.add_(self.offset)
        return sample

    @property
    def least_directions(self) -> int:
        """Return how many directions of width `d_in` the truth is made of at least."""
        return self.n_features

    def _chunk_tokens(self, n_tokens: int) -> int:
        # the largest tables are those of tokens by roots and by single features
        law = _law(self)
        return _CHUNK_NUMBERS // (law.roots + self.n_features - law.in_trees)

    def _draw_codes(self, n_tokens: int, random: torch.Generator) -> Codes:
        law = _law(self)
        z = torch.randn(n_tokens, self.rank, generator=random)
        parts = [_roots(law, z, random)]
        for _ in range(_DEPTH):
            parts.append(_children(law, z, parts[-1], random))
        tokens, features = _singles(law, z, random)
        parts.append((tokens, features, _magnitudes(law, features, random)))
        return codes_of_parts(parts, n_tokens, self.n_features)

    def _draw_truth(self) -> GeneratorTruth:
        n, roots = self.n_features, self.roots
        random = generator(self.seed, self.kind, "dictionary", self.d_in, n)
        rows = unit_rows(n, self.d_in, random)
        in_trees = roots * _TREE
        child = torch.arange(n)
        parents = torch.div(child - roots, _BRANCHING, rounding_mode="floor")
        parents[(child < roots) | (child >= in_trees)] = -1
        groups = range(roots, in_trees, _BRANCHING)
        return GeneratorTruth(
            _orthogonalized(rows, self.orthogonalization_steps),
            _rates(_law(self), generator(self.seed, self.kind, "rates").initial_seed()),
            parents=tuple(parents.tolist()),
            exclusive=tuple(tuple(range(first, first + _BRANCHING)) for first in groups),
        )


@dataclass(frozen=True)
class _Law:
    """What activity is drawn from: numbers for each feature, trees first.

    `means` and `stds` are those of magnitudes; `in_trees` is the number of features in trees.
    """

    roots: int
    in_trees: int
    thresholds: Float32[torch.Tensor, " feature"]
    factors: Float32[torch.Tensor, "feature rank"]
    spread: Float32[torch.Tensor, " feature"]
    """Standard deviation of h given z."""
    means: Float32[torch.Tensor, " feature"]
    stds: Float32[torch.Tensor, " feature"]


@lru_cache(maxsize=4)
def _law(spec: SynthBenchSpec) -> _Law:
    n, roots = spec.n_features, spec.roots
    in_trees = roots * _TREE
    falling = torch.arange(1, n + 1, dtype=torch.float64) ** -spec.exponent
    falling = (falling - falling[-1]) / (falling[0] - falling[-1])
    base = spec.min_rate + (spec.max_rate - spec.min_rate) * falling
    drawn = base.clone()
    # the children of feature j are roots + 4 j and the next three
    children = base[roots:in_trees].reshape(-1, _BRANCHING)
    parent = base[: len(children), None]
    others = (children.sum(1, keepdim=True) - children).clamp_min(0)
    drawn[roots:in_trees] = (children / parent * (1 + others / parent)).clamp_max(1).flatten()
    random = generator(spec.seed, spec.kind, "law", n, spec.rank)
    factors = spec.correlation_scale * torch.randn(n, spec.rank, generator=random)
    stds = (0.5 + 0.5 * torch.randn(n, generator=random)).abs()
    squares = factors.square().sum(1)
    if float(squares.max()) >= 1:
        # as in the source: the largest row is brought to 0.99, the others in proportion
        factors = factors * math.sqrt(0.99 / float(squares.max()))
        squares = factors.square().sum(1)
    return _Law(
        roots=roots,
        in_trees=in_trees,
        thresholds=torch.special.ndtri(1 - drawn).float(),
        factors=factors,
        spread=(1 - squares).sqrt(),
        means=torch.linspace(5.0, 4.0, n),
        stds=stds,
    )


def _roots(
    law: _Law, z: torch.Tensor, random: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (token, feature, value) where roots are active."""
    shared = z @ law.factors[: law.roots].t()
    noise = law.spread[: law.roots] * torch.randn(shared.shape, generator=random)
    tokens, features = (shared + noise > law.thresholds[: law.roots]).nonzero().unbind(1)
    return tokens, features, _magnitudes(law, features, random)


def _magnitudes(
    law: _Law, features: Int64[torch.Tensor, "*pair"], random: torch.Generator
) -> Float32[torch.Tensor, "*pair"]:
    noise = torch.randn(features.shape, generator=random)
    return (law.means[features] + law.stds[features] * noise).clamp_min(0)


def _children(
    law: _Law,
    z: torch.Tensor,
    above: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    random: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (token, feature, value) of the one child, if any, of each active parent."""
    tokens, parents, values = above
    tokens, parents, values = tokens[values > 0], parents[values > 0], values[values > 0]
    children = law.roots + _BRANCHING * parents[:, None] + torch.arange(_BRANCHING)
    # the factors of one parent's children are one run of memory
    families = law.factors[law.roots : law.in_trees].view(-1, _BRANCHING, law.factors.shape[1])
    shared = (families[parents] @ z[tokens, :, None])[:, :, 0]
    noise = law.spread[children] * torch.randn(children.shape, generator=random)
    magnitudes = _magnitudes(law, children, random)
    active = (shared + noise > law.thresholds[children]) & (magnitudes > 0)
    lots = torch.rand(children.shape, generator=random).masked_fill_(~active, -1)
    winner = lots.argmax(1, keepdim=True)
    any_active = active.any(1)
    scale = values / law.means[parents]
    value = magnitudes.gather(1, winner)[:, 0] * scale
    kept = children.gather(1, winner)[:, 0]
    return tokens[any_active], kept[any_active], value[any_active]


def _singles(
    law: _Law, z: torch.Tensor, random: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (token, feature) where features outside the trees are active.

    Let tau be the upper `_TAIL` quantile of e. Pairs with e > tau are few whatever z is, and among those with
    e <= tau only pairs whose shared part nearly suffices can be active. So noise is drawn for few pairs.
    """
    first, n_tokens = law.in_trees, len(z)
    shared = z @ law.factors[first:].t()
    thresholds, spread = law.thresholds[first:], law.spread[first:]
    tau = -float(torch.special.ndtri(torch.tensor(_TAIL).double()))
    rates = torch.full((len(spread),), _TAIL, dtype=torch.float64)
    high, high_features = independent_support(rates, n_tokens, random)
    near, near_features = (shared > thresholds - tau * spread).nonzero().unbind(1)
    tokens = torch.cat([high, near])
    features = torch.cat([high_features, near_features])
    u = torch.rand(len(tokens), generator=random, dtype=torch.float64)
    u[: len(high)] = 1 - _TAIL * (1 - u[: len(high)])
    u[len(high) :] *= 1 - _TAIL
    noise = torch.special.ndtri(u).float()
    on = shared[tokens, features] + spread[features] * noise > thresholds[features]
    return tokens[on], first + features[on]


def _rates(law: _Law, seed: int, points: int = _RATE_POINTS) -> Float32[torch.Tensor, " feature"]:
    """Return the rates of activity, after exclusion, averaged over the shared factors z."""
    positive = torch.special.ndtr(law.means.double() / law.stds)
    rates = torch.special.ndtr(-law.thresholds.double()) * positive
    engine: Any = torch.quasirandom.SobolEngine
    sequence = engine(law.factors.shape[1], scramble=True, seed=seed % 2**31)
    uniform = sequence.draw(points, dtype=torch.float64)
    z = torch.special.ndtri(uniform.clamp(1e-9, 1 - 1e-9)).float()
    size = max(1, _CHUNK_NUMBERS // law.in_trees)
    total = torch.zeros(law.in_trees, dtype=torch.float64)
    for part in z.split(size):
        total += _given(law, part, positive.float()).sum(0, dtype=torch.float64)
    below = slice(law.roots, law.in_trees)
    rates[below] = total[below] / points
    rounded: torch.Tensor = rates.float()
    return rounded


def _given(
    law: _Law, z: torch.Tensor, positive: torch.Tensor
) -> Float32[torch.Tensor, "point in_trees"]:
    """Return the probability that each feature of the trees is active, given the shared factors."""
    n = law.in_trees
    shared = z @ law.factors[:n].t()
    alone = torch.special.ndtr((shared - law.thresholds[:n]) / law.spread[:n]) * positive[:n]
    reached: torch.Tensor = alone.clone()
    low, high = law.roots, law.roots * (1 + _BRANCHING)
    above = 0
    for _ in range(_DEPTH):
        q = alone[:, low:high].reshape(len(z), -1, _BRANCHING)
        won = q * _share_of_winner(q)
        reached[:, low:high] = (reached[:, above:low, None] * won).flatten(1)
        above, low, high = low, high, high + (high - low) * _BRANCHING
    return reached


def _share_of_winner(q: torch.Tensor) -> torch.Tensor:
    """Return E[1 / (1 + number of active siblings)] for each sibling, active with probabilities q.

    It is the integral over s in [0, 1] of prod_j (1 - q_j + q_j s), j the other siblings. That is a cubic,
    for which two Gauss points are exact.
    """
    total = torch.zeros_like(q)
    for s in (0.5 - math.sqrt(1 / 12), 0.5 + math.sqrt(1 / 12)):
        terms = 1 - q * (1 - s)
        for place in range(_BRANCHING):
            rest = [other for other in range(_BRANCHING) if other != place]
            total[..., place] += 0.5 * terms[..., rest].prod(-1)
    return total


def _orthogonalized(
    rows: Float32[torch.Tensor, "feature d_in"], steps: int
) -> Float32[torch.Tensor, "feature d_in"]:
    """Return unit rows with less overlap, after steps of Adam with its usual decays; see the class."""
    rows = rows.clone()
    first, second = torch.zeros_like(rows), torch.zeros_like(rows)
    for step in range(1, steps + 1):
        squares = rows.square().sum(1, keepdim=True)
        gradient = 4 * (rows @ (rows.t() @ rows) + (len(rows) * (squares - 1) - squares) * rows)
        first.lerp_(gradient, 0.1)
        second.lerp_(gradient.square_(), 0.001)
        scale = (second / (1 - 0.999**step)).sqrt_().add_(1e-8)
        rows -= _LEARNING_RATE / (1 - 0.9**step) * first / scale
    return torch.nn.functional.normalize(rows, dim=1)
