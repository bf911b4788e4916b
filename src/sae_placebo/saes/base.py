"""What every sparse autoencoder is: a frozen spec, and a dictionary of tensors.

Conventions, for every architecture:

- `W_enc [d_in, d_sae]`, `b_enc [d_sae]`, `W_dec [d_sae, d_in]`, `b_dec [d_in]`; `x @ W`, row-major.
- **Decoder rows have unit norm**, at the start and after every training step, so that the size of
  an effect on the residual stream is the code itself.
- `W_enc` starts as `W_dec` transposed, `b_enc` and `b_dec` at zero: activations arrive centered.
- Initial bits depend on (kind, d_in, d_sae, seed) alone, so all arms of a trial start alike.
- `W_enc` may lie in memory latent by latent (a transposed view): only shapes are promised.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float, Float32, Int64
from pydantic import ConfigDict, Field, ValidationError

from sae_placebo.errors import SpecError, unknown_name
from sae_placebo.lazy import torch
from sae_placebo.saes.kernels import Workspace
from sae_placebo.spec import Registry, Spec, generator

PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec")
"""Names of the tensors of every SAE, in the order in which they are stored."""


@dataclass(frozen=True)
class Codes:
    """Sparse codes of some tokens: row t holds `offsets[t]` to `offsets[t + 1]`.

    Values are above zero; what is zero is not stored. The order of latents within a token is not
    promised.
    """

    offsets: Int64[torch.Tensor, "token_plus_one"]
    latents: Int64[torch.Tensor, "active"]
    values: Float32[torch.Tensor, "active"]
    d_sae: int

    @property
    def n_tokens(self) -> int:
        """Number of tokens."""
        return len(self.offsets) - 1

    def tokens(self) -> Int64[torch.Tensor, "active"]:
        """Return the token of each stored value, ascending."""
        index = torch.arange(self.n_tokens, device=self.offsets.device)
        return index.repeat_interleave(self.offsets.diff())

    def dense(self) -> Float32[torch.Tensor, "token d_sae"]:
        """Return the codes with their zeros; for small inputs."""
        out = self.values.new_zeros(self.n_tokens, self.d_sae)
        out[self.tokens(), self.latents] = self.values
        return out

    @classmethod
    def from_slots(
        cls,
        latents: Int64[torch.Tensor, "token slot"],
        values: Float[torch.Tensor, "token slot"],
        d_sae: int,
    ) -> Codes:
        """Return codes from a fixed number of slots per token; slots at or below zero are empty."""
        stored = values > 0
        offsets = torch.zeros(len(values) + 1, dtype=torch.int64, device=values.device)
        torch.cumsum(stored.sum(dim=1), dim=0, out=offsets[1:])
        return cls(offsets, latents[stored], values[stored].float(), d_sae)

    @classmethod
    def concatenate(cls, parts: Sequence[Codes]) -> Codes:
        """Return the codes of all parts' tokens, in order.

        Raises:
            ValueError: there is no part, or the parts differ in `d_sae`.
        """
        widths = {part.d_sae for part in parts}
        if len(widths) != 1:
            raise ValueError(f"codes of one d_sae are needed, not of {sorted(widths)}")
        counts = torch.cat([part.offsets.diff() for part in parts])
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        latents = torch.cat([part.latents for part in parts])
        return cls(offsets, latents, torch.cat([part.values for part in parts]), widths.pop())


@dataclass(frozen=True)
class Evaluation:
    """An objective on one batch, with its gradients where they were asked for."""

    loss: Float[torch.Tensor, ""]
    squared_error: Float[torch.Tensor, ""]
    """Squared reconstruction error, summed over tokens and `d_in`."""
    fired: Bool[torch.Tensor, "d_sae"]
    """Which latents were active on at least one token."""
    gradients: Mapping[str, torch.Tensor] | None = None


class SAESpec(Spec, ABC):
    """Settings of one architecture, and its arithmetic on a dictionary of tensors."""

    # true is no number of latents, and neither is 64.0
    model_config = ConfigDict(strict=True)

    kind: str
    d_sae: int = Field(ge=1)
    """Number of latents."""

    def create(self, d_in: int, seed: int) -> SAE:
        """Return an untrained SAE; its bits depend on (kind, d_in, d_sae, seed) only."""
        random = generator(seed, "sae", self.kind, d_in, self.d_sae)
        rows = torch.nn.functional.normalize(torch.randn(self.d_sae, d_in, generator=random), dim=1)
        params = {
            "W_enc": rows.clone().t(),
            "b_enc": torch.zeros(self.d_sae),
            "W_dec": rows,
            "b_dec": torch.zeros(d_in),
        }
        return SAE(self, params)

    @abstractmethod
    def encode(
        self, params: Mapping[str, torch.Tensor], x: Float[torch.Tensor, "token d_in"]
    ) -> Codes:
        """Return the codes of `x`, never holding more than a chunk of dense pre-activations."""

    @abstractmethod
    def evaluate(
        self,
        params: Mapping[str, torch.Tensor],
        x: Float[torch.Tensor, "token d_in"],
        dead: Bool[torch.Tensor, "d_sae"],
    ) -> Evaluation:
        """Return the training objective, differentiable by autograd: the plain reference."""

    def gradients(
        self,
        params: Mapping[str, torch.Tensor],
        x: Float[torch.Tensor, "token d_in"],
        dead: Bool[torch.Tensor, "d_sae"],
        workspace: Workspace,
    ) -> Evaluation:
        """Return the objective and its gradients; an architecture overrides this to be fast.

        Gradients may live in `workspace` and hold until its next use.
        """
        del workspace  # autograd keeps its own
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in params.items()}
        with torch.enable_grad():
            plain = self.evaluate(leaves, x, dead)
            found = torch.autograd.grad(plain.loss, list(leaves.values()))
        return Evaluation(
            plain.loss.detach(),
            plain.squared_error.detach(),
            plain.fired,
            dict(zip(leaves, found, strict=True)),
        )

    def fold(
        self,
        params: Mapping[str, torch.Tensor],
        mean: Float[torch.Tensor, "d_in"],
        factor: float,
    ) -> dict[str, torch.Tensor]:
        """Return the tensors in model units; see `SAE.fold`.

        Right for every architecture whose codes scale with its pre-activations.
        """
        return {
            "W_enc": params["W_enc"].t().clone().t(),
            "b_enc": params["b_enc"] / factor,
            "W_dec": params["W_dec"].clone(),
            "b_dec": mean.to(params["b_dec"]) + params["b_dec"] / factor,
        }


@dataclass(frozen=True)
class SAE:
    """A sparse autoencoder: its spec, and its tensors by name (see `PARAMETERS`)."""

    spec: SAESpec
    params: dict[str, torch.Tensor]

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return len(self.params["b_dec"])

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.spec.d_sae

    def encode(self, x: Float[torch.Tensor, "token d_in"]) -> Codes:
        """Return the sparse codes of `x`, without gradients."""
        with torch.no_grad():
            return self.spec.encode(self.params, x)

    def decode(self, codes: Codes) -> Float[torch.Tensor, "token d_in"]:
        """Return the reconstruction: the codes' sum of decoder rows, plus `b_dec`."""
        with torch.no_grad():
            total = torch.nn.functional.embedding_bag(
                codes.latents,
                self.params["W_dec"],
                codes.offsets,
                per_sample_weights=codes.values,
                mode="sum",
                include_last_offset=True,
            )
            return total.add_(self.params["b_dec"])

    def fold(self, mean: Float[torch.Tensor, "d_in"], factor: float) -> SAE:
        """Return the same SAE in model units, where training saw `x' = (x - mean) * factor`.

        With unit decoder rows, `W_enc` and `W_dec` stay, `b_enc` becomes `b_enc / factor` and
        `b_dec` becomes `mean + b_dec / factor`. Codes of `x` are then the codes of `x'` divided
        by `factor`, on the same latents, and reconstructions are in model units.

        Raises:
            SpecError: `factor` is not above zero.
        """
        if not factor > 0:
            raise SpecError(f"an SAE folds with a factor above zero, not {factor}")
        return SAE(self.spec, self.spec.fold(self.params, mean, factor))


SAES: Registry[type[SAESpec]] = Registry("SAE")
"""Every architecture, by kind."""


def parse_sae(table: object) -> SAESpec:
    """Return the spec that a table of a trial file describes.

    Raises:
        SpecError: not a table, the kind or a setting is unknown (the nearest known name is given),
            or a value is not allowed.
    """
    if not isinstance(table, Mapping):
        raise SpecError(
            f'an SAE is a table such as {{kind = "topk", d_sae = 4096}}; found {table!r:.80}'
        )
    if "kind" not in table:
        raise SpecError(f"an SAE needs a `kind`. Known: {', '.join(sorted(SAES))}.")
    kind = str(table["kind"])
    architecture = SAES[kind]
    for key in table:
        if key not in architecture.model_fields:
            raise SpecError(
                unknown_name(f"setting of SAE {kind!r}", key, architecture.model_fields)
            )
    try:
        return architecture.model_validate(dict(table))
    except ValidationError as problem:
        raise SpecError("; ".join(map(_sentence, problem.errors(include_url=False)))) from None


def _sentence(problem: Mapping[str, Any]) -> str:
    cause = problem.get("ctx", {}).get("error")
    place = ".".join(["sae", *map(str, problem["loc"])]) + ": " if problem["loc"] else ""
    if cause is not None:  # raised by a spec's own check, which says what it found
        return f"{place}{cause}"
    found = "" if problem["type"] == "missing" else f" (found {problem['input']!r:.80})"
    return f"{place}{problem['msg']}{found}"
