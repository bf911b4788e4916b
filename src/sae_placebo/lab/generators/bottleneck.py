"""G2: features whose directions a model has chosen, the toy model of superposition."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from jaxtyping import Bool, Float32
from pydantic import Field

from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import generator
from sae_placebo.lab.generators.base import GENERATORS, GeneratorSpec, GeneratorTruth
from sae_placebo.lab.generators.sparse_draws import packed
from sae_placebo.saes import Codes

_KEPT = 0.2
"""The model keeps a feature whose direction is at least this long; lengths are mostly near 0 or 1 after
training."""
_BATCH = 256
_RIGHT_ANGLE = 0.1
_TURN = 0.15


@GENERATORS.add
class BottleneckSpec(GeneratorSpec):
    """Features in the hidden layer of a model that was trained to keep them.

        h = W u,   u' = ReLU(W^T h + b),   loss = E sum_i importance^i (u_i - u'_i)^2
        u_i = uniform on (0, 1] with probability 1 - sparsity, else 0, independent

    W, of `d_in` by `n_features`, and b are trained; activations are h. Feature i is the i-th column of W at
    unit length, and its code is u_i times the column's length. Features whose column is shorter than 0.2
    are given up by the model: they are neither in the truth nor in the activations. `phase` says what the
    model has learned.

    The model is trained with Adam, at a step size that falls linearly from `learning_rate` to zero, for
    `steps` steps of 256 tokens. `restarts` starts are trained side by side, each on tokens of its own, and
    the one with the smallest loss over the last tenth of the steps is taken. Trained models are kept in
    memory by their settings.

    Source: Elhage et al., "Toy Models of Superposition" (2022). Differs: the best of several starts is
    taken; what the model gives up is left out of the activations, where it would have less than 4% of the
    energy of a feature of unit length.
    """

    kind: Literal["bottleneck"] = "bottleneck"
    d_in: int = Field(5, ge=2)
    n_features: int = Field(20, ge=2)
    sparsity: float = Field(0.9, ge=0, lt=1)
    """Probability that a feature is absent."""
    importance: float = Field(0.7, gt=0, le=1)
    """Ratio of a feature's weight in the loss to that of the feature before it."""
    steps: int = Field(2_000, ge=10)
    learning_rate: float = Field(1e-2, gt=0)
    restarts: int = Field(4, ge=1)

    @property
    def columns(self) -> Float32[torch.Tensor, "feature d_in"]:
        """Return the columns of W that the model has learned, as rows; those given up are included."""
        return _trained(self)

    @property
    def kept(self) -> tuple[int, ...]:
        """Return which features of the model are in the truth, in the truth's order."""
        return tuple((self.columns.norm(dim=1) >= _KEPT).nonzero()[:, 0].tolist())

    @property
    def least_directions(self) -> int:
        """Return how many directions of width `d_in` the truth is made of at least."""
        return self.n_features

    def _chunk_tokens(self, n_tokens: int) -> int:
        return n_tokens

    def _draw_codes(self, n_tokens: int, random: torch.Generator) -> Codes:
        kept = list(self.kept)
        lengths = self.columns[kept].norm(dim=1)
        active = torch.rand(n_tokens, len(kept), generator=random) >= self.sparsity
        amplitudes = 1 - torch.rand(n_tokens, len(kept), generator=random)
        return packed(amplitudes * lengths * active)

    def _draw_truth(self) -> GeneratorTruth:
        rows = torch.nn.functional.normalize(self.columns[list(self.kept)], dim=1)
        return GeneratorTruth(rows, torch.full((len(rows),), 1 - self.sparsity))


@dataclass(frozen=True)
class Arrangement:
    """The arrangement of features that a toy model has learned."""

    lengths: Float32[torch.Tensor, " feature"]
    """Length of each feature's direction: near 1 if the model keeps it, near 0 if not."""
    overlaps: Float32[torch.Tensor, " feature"]
    """Sum over the other features of (unit direction . other direction)^2. It is 0 where a feature has a
    dimension for itself, and about 1 where it shares one with another feature."""
    dimensions_per_feature: float
    """D* = d_in / sum of squared lengths. It is 1 without superposition, 1/2 for antipodal pairs and 2/5
    for a pentagon."""
    geometry: Literal["orthogonal", "antipodal", "polygon", "mixed"]
    """How the kept features lie: `orthogonal`, all at right angles; `antipodal`, each at right angles to
    all others but one, which is opposite; `polygon`, evenly spaced in a plane, 3 or more but not 4;
    `mixed`, none of these."""

    @property
    def kept(self) -> Bool[torch.Tensor, " feature"]:
        """Return which features the model represents."""
        return self.lengths >= _KEPT

    @property
    def n_kept(self) -> int:
        """Return how many features the model represents."""
        return int(self.kept.sum())


def phase(spec: BottleneckSpec) -> Arrangement:
    """Return the arrangement that the model of `spec` has learned.

    Source: Elhage et al. (2022): "dimensions per feature", and superposition as the overlap.
    """
    columns = spec.columns
    lengths = columns.norm(dim=1)
    unit = torch.nn.functional.normalize(columns, dim=1)
    products = unit @ columns.t()
    products.fill_diagonal_(0.0)
    return Arrangement(
        lengths=lengths,
        overlaps=products.square().sum(dim=1),
        dimensions_per_feature=spec.d_in / float(lengths.square().sum()),
        geometry=_geometry(unit[lengths >= _KEPT]),
    )


def _geometry(
    unit: Float32[torch.Tensor, "kept d_in"],
) -> Literal["orthogonal", "antipodal", "polygon", "mixed"]:
    cosines = unit @ unit.t()
    cosines.fill_diagonal_(0.0)
    opposite = cosines < -1 + _RIGHT_ANGLE
    if bool((cosines.abs() < _RIGHT_ANGLE).all()):
        return "orthogonal"
    apart = (cosines.abs() < _RIGHT_ANGLE) | opposite
    if bool(apart.all()) and int(opposite.sum(dim=1).max()) == 1:
        return "antipodal"
    if unit.shape[1] == 2:
        angles = torch.atan2(unit[:, 1], unit[:, 0]).sort().values
        full = 2 * torch.pi
        steps = torch.cat([angles, angles[:1] + full]).diff()
        if bool(((steps * len(unit) / full - 1).abs() < _TURN).all()):
            return "polygon"
    return "mixed"


@lru_cache(maxsize=32)
def _trained(spec: BottleneckSpec) -> Float32[torch.Tensor, "feature d_in"]:
    n, d, starts = spec.n_features, spec.d_in, spec.restarts
    random = generator(spec.seed, spec.kind, "model", n, d)
    weights = torch.randn(starts, n, d, generator=random) / n**0.5
    params = {"w": weights, "b": torch.zeros(starts, 1, n)}
    importance = spec.importance ** torch.arange(n)
    first = {name: torch.zeros_like(value) for name, value in params.items()}
    second = {name: torch.zeros_like(value) for name, value in params.items()}
    late = torch.zeros(starts)
    for step in range(1, spec.steps + 1):
        u = torch.rand(starts, _BATCH, n, generator=random)
        u *= torch.rand(starts, _BATCH, n, generator=random) >= spec.sparsity
        loss, gradients = _gradients(params, u, importance)
        rate = spec.learning_rate * (1 - (step - 1) / spec.steps)
        for name, gradient in gradients.items():
            first[name].lerp_(gradient, 0.1)
            second[name].lerp_(gradient.square(), 0.001)
            scale = (second[name] / (1 - 0.999**step)).sqrt() + 1e-8
            params[name] -= rate * first[name] / (1 - 0.9**step) / scale
        if step > 0.9 * spec.steps:
            late += loss
    best: torch.Tensor = params["w"][int(late.argmin())]
    return best.clone()


def _gradients(
    params: dict[str, torch.Tensor],
    u: Float32[torch.Tensor, "start token feature"],
    importance: Float32[torch.Tensor, " feature"],
) -> tuple[Float32[torch.Tensor, " start"], dict[str, torch.Tensor]]:
    """Return each start's loss and its gradients, which written out take half the time of autograd."""
    w = params["w"]
    hidden = u @ w
    z = hidden @ w.transpose(1, 2) + params["b"]
    error = z.relu() - u
    weighted = error * importance
    loss = (weighted * error).sum(dim=2).mean(dim=1)
    to_z = weighted * (z > 0) * (2 / u.shape[1])
    to_w = u.transpose(1, 2) @ (to_z @ w) + to_z.transpose(1, 2) @ hidden
    return loss, {"w": to_w, "b": to_z.sum(dim=1, keepdim=True)}
