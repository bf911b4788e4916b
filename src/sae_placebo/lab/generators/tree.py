"""G8: features that form trees, a child never without its parent."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import generator
from sae_placebo.lab.generators.base import GENERATORS, GeneratorSpec, GeneratorTruth, unit_rows
from sae_placebo.lab.generators.sparse_draws import codes_of, orthonormal_rows
from sae_placebo.saes import Codes

_SINGLES = 8
_SINGLE_RATE = 0.05
_WIDTH = {"matryoshka": 20, "deep": 85}
_SYMMETRY = "each child may be its sum with its ancestors, which are then off"


@GENERATORS.add
class TreeSpec(GeneratorSpec):
    """Trees of features, in which an active parent has at most one active child.

        x_t  = sum_i a_ti f_i
        a_ti = max(0, 1 + magnitude_std * e_ti) if active, e_ti ~ N(0, 1)
        P(root active) = root_rate,  P(child active | parent active) = child_rate, siblings exclusive

    so that a feature at depth k has rate root_rate * child_rate^k.

    `layout = "matryoshka"` has 20 features: 3 roots (probability 0.15) with 3 children each (0.2 given the
    root, which leaves 0.4 for no child), and 8 single features (0.05). Its mean L0 is 0.45 + 0.27 + 0.40 =
    1.12. `layout = "deep"` has `roots` trees of depth 3 with 4 children per node, 85 features each; a
    child_rate of 0.2 leaves 0.2 for no child. Features are numbered depth first.

    Rows are orthonormal where d_in allows it, else independent and uniform on the sphere.

    A tree without spread of magnitudes is not identifiable: the sum of each child and its ancestors in place
    of the child gives the same activations with fewer active features. These sums, at unit length, are then
    `truth.alternatives["composites"]`.

    Source: Nabeshima, "Matryoshka sparse autoencoders" (2024), noanabeshima/matryoshka-saes:
    `tree.json`, `toy_model.py`; the deep tree has the shape of those of SynthSAEBench (2602.14687).
    Differs: magnitudes of 1 +- 0.05 are a comment in the published code at the version read, and 0 gives
    the code as it runs. The notebook states a target L0 of 1.2338, but the tree gives 1.12.
    """

    kind: Literal["tree"] = "tree"
    layout: Literal["matryoshka", "deep"] = "matryoshka"
    d_in: int = Field(20, ge=2)
    """Width; the number of features if it is left out."""
    roots: int = Field(1, ge=1)
    """Layout `deep`: number of trees; the layout `matryoshka` always has 3."""
    root_rate: float = Field(0.15, gt=0, le=1)
    """Probability of each root."""
    child_rate: float = Field(0.2, gt=0, le=1)
    """Probability of each child, given its parent."""
    magnitude_std: float = Field(0.05, ge=0, le=0.2)
    """Standard deviation of magnitudes; beyond 0.2 some would reach 0 and leave a child alone."""

    @model_validator(mode="before")
    @classmethod
    def _width_of_features(cls, data: Any) -> Any:
        if isinstance(data, dict) and "d_in" not in data:
            deep = data.get("layout") == "deep"
            roots = data.get("roots", 1) if deep else 1
            width = _WIDTH["deep" if deep else "matryoshka"]
            return {**data, "d_in": width * roots if isinstance(roots, int) else width}
        return data

    @model_validator(mode="after")
    def _children_fit(self) -> TreeSpec:
        if self.child_rate * self._branching > 1 + 1e-9:
            raise ValueError(
                f"{self._branching} exclusive children cannot have probability {self.child_rate:g} "
                f"each: lower child_rate to {1 / self._branching:.3g} or less"
            )
        return self

    @property
    def _branching(self) -> int:
        return 3 if self.layout == "matryoshka" else 4

    @property
    def parents(self) -> tuple[int, ...]:
        """Return the parent of each feature, or -1 where it has none."""
        if self.layout == "deep":
            parents: list[int] = []
            for _ in range(self.roots):
                _grow(parents, -1, 3)
            return tuple(parents)
        return (-1, 0, 0, 0, -1, 4, 4, 4, -1, 8, 8, 8, *[-1] * _SINGLES)

    @property
    def least_directions(self) -> int:
        """Return how many directions of width `d_in` the truth is made of at least."""
        return self.roots

    def _draw_codes(self, n_tokens: int, random: torch.Generator) -> Codes:
        parents, groups = self.parents, _siblings(self.parents)
        rates = self._rates()
        active = {
            root: (torch.rand(n_tokens, generator=random) < rates[root]).nonzero()[:, 0]
            for root in range(len(parents))
            if parents[root] < 0
        }
        for parent, children in groups.items():
            # one number says which child there is, so that there is one at most
            choice = torch.rand(len(active[parent]), generator=random) / self.child_rate
            for place, child in enumerate(children):
                active[child] = active[parent][(choice >= place) & (choice < place + 1)]
        tokens = torch.cat(list(active.values()))
        features = torch.cat([torch.full_like(on, feature) for feature, on in active.items()])
        values = 1 + self.magnitude_std * torch.randn(len(tokens), generator=random)
        return codes_of(tokens, features, values.clamp_min(0), n_tokens, len(parents))

    def _draw_truth(self) -> GeneratorTruth:
        parents = self.parents
        random = generator(self.seed, self.kind, "dictionary", self.layout, self.d_in, len(parents))
        make = orthonormal_rows if len(parents) <= self.d_in else unit_rows
        rows = make(len(parents), self.d_in, random)
        constant = self.magnitude_std == 0
        composites = rows.clone()
        for child, parent in enumerate(parents):
            if parent >= 0:
                composites[child] += composites[parent]
        unit = torch.nn.functional.normalize(composites, dim=1)
        return GeneratorTruth(
            rows,
            torch.tensor(self._rates(), dtype=torch.float32),
            parents=parents,
            exclusive=tuple(tuple(group) for group in _siblings(parents).values()),
            alternatives={"composites": unit} if constant else {},
            symmetry=_SYMMETRY if constant else "",
        )

    def _rates(self) -> list[float]:
        if self.layout == "matryoshka":
            tree = [self.root_rate, *[self.root_rate * self.child_rate] * 3]
            return tree * 3 + [_SINGLE_RATE] * _SINGLES
        rates: list[float] = []
        for parent in self.parents:
            rates.append(self.root_rate if parent < 0 else rates[parent] * self.child_rate)
        return rates


def _grow(parents: list[int], parent: int, levels: int) -> None:
    """Append a node whose parent is `parent`, and `levels` levels of nodes below it."""
    parents.append(parent)
    node = len(parents) - 1
    for _ in range(4 if levels else 0):
        _grow(parents, node, levels - 1)


def _siblings(parents: tuple[int, ...]) -> dict[int, list[int]]:
    """Return the children of every feature that has any, in the order of the parents."""
    groups: dict[int, list[int]] = {}
    for child, parent in enumerate(parents):
        if parent >= 0:
            groups.setdefault(parent, []).append(child)
    return dict(sorted(groups.items()))
