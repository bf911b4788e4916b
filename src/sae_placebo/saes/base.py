"""What every sparse autoencoder is: a frozen spec, and a dictionary of tensors.

Conventions, for every architecture:

- `W_enc [d_in, d_sae]`, `b_enc [d_sae]`, `W_dec [d_sae, d_in]`, `b_dec [d_in]`; `x @ W`, row-major.
- **Decoder rows have unit norm**, at the start and after every training step, so that the size of
  an effect on the residual stream is the code itself.
- `W_enc` starts as `W_dec` transposed times one number (`first_scale`), `b_enc` and `b_dec` at zero:
  activations arrive centered.
- Initial bits depend on the spec, d_in and the seed, never on activations: all arms start alike.
- `W_enc` may lie in memory latent by latent (a transposed view): only shapes are promised.
- An architecture may have more tensors than the four, named in `parameters`, and some that no gradient
  reaches, named in `buffers`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Any, ClassVar

from jaxtyping import Bool, Float, Int64
from pydantic import Field, ValidationError

from sae_placebo.core.errors import SpecError, unknown_name
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import Registry, Spec, generator
from sae_placebo.saes.codes import Codes
from sae_placebo.saes.kernels import Workspace
from sae_placebo.saes.selection import Selection, select

PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec")
"""Every SAE has tensors of these names, stored in this order."""


@dataclass(frozen=True)
class Context:
    """The context of a step: what an objective depends on besides the tensors and the batch.

    Attributes:
        dead: Latents that have been silent for long.
        share: Share of the training tokens that lie behind, 0 to 1.
        coefficient: Weight of the sparsity penalty at this step; unused where there is none.
    """

    dead: Bool[torch.Tensor, "d_sae"]
    share: float = 0.0
    coefficient: float = 0.0


@dataclass(frozen=True)
class Evaluation:
    """An objective on one batch, with its gradients where they were asked for."""

    loss: Float[torch.Tensor, ""]
    squared_error: Float[torch.Tensor, ""]
    """Squared reconstruction error, summed over tokens and `d_in`."""
    fired: Bool[torch.Tensor, "d_sae"]
    """Which latents were active on at least one token."""
    active: Int64[torch.Tensor, ""]
    """Number of (token, latent) pairs with a code above zero."""
    gradients: Mapping[str, torch.Tensor] | None = None
    buffers: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """New values of the tensors that no gradient reaches."""
    variance: Float[torch.Tensor, ""] | None = None
    """Squared distance of the activations from their mean, summed; None: not computed on the way."""


@dataclass(frozen=True)
class SiteGradients:
    """The derivatives that an architecture adds at its active sites, beyond the reconstruction error.

    Attributes:
        to_z: Derivative of the loss by the pre-activation at each site.
        penalty: The sparsity penalty, already in units of the loss.
        to_latents: For other tensors of shape [d_sae]: the derivative's part at each site, to be
            summed over each latent's sites.
    """

    to_z: torch.Tensor
    penalty: torch.Tensor | float = 0.0
    to_latents: Mapping[str, torch.Tensor] = field(default_factory=dict)


class SAESpec(Spec, ABC):
    """Settings of one architecture, and its arithmetic on a dictionary of tensors.

    Every architecture gives `evaluate`, the plain objective that autograd differentiates. One whose
    step touches few (token, latent) pairs also gives `selection`, `codes_at` and `at_sites`, and
    `gradients` and the compiled step follow from these; an architecture of another shape may override
    `gradients` and `encode` instead.
    """

    parameters: ClassVar[tuple[str, ...]] = PARAMETERS
    """Names of all tensors, in the order in which they are stored; the four come first."""
    buffers: ClassVar[frozenset[str]] = frozenset()
    """Those that no gradient reaches; an evaluation gives their new values."""
    ties_encoder: ClassVar[bool] = False
    """Whether `W_enc` is always the transpose of `W_dec`."""
    in_activation_units: ClassVar[frozenset[str]] = frozenset({"b_enc"})
    """Tensors of shape [d_sae] or [] that scale with pre-activations; `fold` divides them."""

    kind: str
    d_sae: int = Field(ge=1)
    """Number of latents."""

    def first_share(self) -> float | None:
        """Return the share of latents active at the start, for the scale of `W_enc`; None: no scale."""
        return None

    def create(self, d_in: int, seed: int) -> SAE:
        """Return an untrained SAE.

        Directions depend on (kind, d_in, d_sae, seed) alone; so does the one scale of `W_enc` but for
        the architecture's share of active latents, see `first_scale`.
        """
        random = generator(seed, "sae", self.kind, d_in, self.d_sae)
        rows = torch.nn.functional.normalize(torch.randn(self.d_sae, d_in, generator=random), dim=1)
        share = self.first_share()
        scale = 1.0 if share is None else first_scale(d_in, self.d_sae, share)
        params = {
            "W_enc": (rows * scale).t(),
            "b_enc": torch.zeros(self.d_sae),
            "W_dec": rows,
            "b_dec": torch.zeros(d_in),
        }
        return SAE(self, params)

    def selection(
        self, params: Mapping[str, torch.Tensor], context: Context | None
    ) -> Selection | None:
        """Return which sites a batch touches: in training, or (context None) in use.

        None: the architecture has no sparse step, and overrides `encode`.
        """
        return None

    def codes_at(
        self, params: Mapping[str, torch.Tensor], latents: Any, z: torch.Tensor
    ) -> torch.Tensor:
        """Return the codes at selected sites: z itself, where it is above zero.

        Args:
            params: The tensors.
            latents: The latent of each site; or `slice(None)` where z is [token d_sae], so that
                `params[name][latents]` fits z either way.
            z: Pre-activations.
        """
        return z.clamp_min(0.0)

    def at_sites(
        self,
        params: Mapping[str, torch.Tensor],
        latents: Any,
        z: torch.Tensor,
        to_codes: torch.Tensor,
        context: Context,
        n_tokens: int,
    ) -> SiteGradients:
        """Return the derivatives at selected sites; the plain square loss: `to_codes` where z > 0.

        Args:
            params: The tensors.
            latents: As in `codes_at`.
            z: Pre-activations at the sites.
            to_codes: Derivative of the mean square error, |x - x_hat|^2 / (n_tokens d_in), by the
                site's code.
            context: Of this step.
            n_tokens: Tokens of the batch.
        """
        return SiteGradients(to_codes * (z > 0))

    def encode(
        self, params: Mapping[str, torch.Tensor], x: Float[torch.Tensor, "token d_in"]
    ) -> Codes:
        """Return the codes of `x`, never holding more than a chunk of dense pre-activations."""
        chosen = self.selection(params, None)
        if chosen is None:
            raise TypeError(f"{type(self).__name__} gives neither a selection nor an encode")
        sites = select(x - params["b_dec"], params, chosen, Workspace())
        values = self.codes_at(params, sites.latents, sites.z)
        return Codes.from_sites(sites, values, self.d_sae)

    @abstractmethod
    def evaluate(
        self,
        params: Mapping[str, torch.Tensor],
        x: Float[torch.Tensor, "token d_in"],
        context: Context,
    ) -> Evaluation:
        """Return the training objective, differentiable by autograd: the plain reference."""

    def l0_target(self) -> float | None:
        """Return the number of active latents per token that the settings ask for; None: no number."""
        return None

    def auxiliary(self, d_in: int) -> tuple[float, int]:
        """Return the weight of the dead latents' term and how many it uses; weight 0: none."""
        return 0.0, 0

    def next_buffers(
        self, params: Mapping[str, torch.Tensor], values: torch.Tensor, context: Context
    ) -> dict[str, torch.Tensor]:
        """Return the new values of `buffers`, from the codes at a batch's sites (all those > 0)."""
        return {}

    def constrain(self, params: Mapping[str, torch.Tensor]) -> None:
        """Put tensors back, in place, where they belong after an optimizer step."""
        return None

    def first_coefficient(self) -> float:
        """Return the weight of the sparsity penalty at the start; 0 where there is none."""
        return 0.0

    def steer(self, coefficient: float, l0: float, share: float) -> float:
        """Return the next step's weight of the penalty, after a step that saw `l0` at `share`."""
        return coefficient

    def gradients(
        self,
        params: Mapping[str, torch.Tensor],
        x: Float[torch.Tensor, "token d_in"],
        context: Context,
        workspace: Workspace,
    ) -> Evaluation:
        """Return the objective and its gradients, of all tensors but `buffers`.

        Gradients may live in `workspace` and hold until its next use.
        """
        return self.plain_gradients(params, x, context)

    def plain_gradients(
        self,
        params: Mapping[str, torch.Tensor],
        x: Float[torch.Tensor, "token d_in"],
        context: Context,
    ) -> Evaluation:
        """Return the objective and its gradients by autograd: what every faster way must equal."""
        leaves = {
            name: tensor.detach().requires_grad_()
            for name, tensor in params.items()
            if name not in self.buffers
        }
        with torch.enable_grad():
            plain = self.evaluate({**params, **leaves}, x, context)
            found = torch.autograd.grad(plain.loss, list(leaves.values()), materialize_grads=True)
        return replace(
            plain,
            loss=plain.loss.detach(),
            squared_error=plain.squared_error.detach(),
            gradients=dict(zip(leaves, found, strict=True)),
        )

    def fold(
        self,
        params: Mapping[str, torch.Tensor],
        mean: Float[torch.Tensor, "d_in"],
        factor: float,
    ) -> dict[str, torch.Tensor]:
        """Return the tensors in model units; see `SAE.fold`.

        Right for every architecture whose codes scale with its pre-activations, once those of its
        tensors that are compared with pre-activations are named in `in_activation_units`.
        """
        folded = {
            name: tensor / factor if name in self.in_activation_units else tensor.clone()
            for name, tensor in params.items()
        }
        folded["W_enc"] = params["W_enc"].t().clone().t()
        folded["b_dec"] = mean.to(params["b_dec"]) + params["b_dec"] / factor
        return folded


@dataclass(frozen=True)
class SAE:
    """A sparse autoencoder: its spec, and its tensors by name (see `PARAMETERS`)."""

    spec: SAESpec
    params: dict[str, torch.Tensor]

    @property
    def d_in(self) -> int:
        """Return the width of the activations."""
        return len(self.params["b_dec"])

    @property
    def d_sae(self) -> int:
        """Return the number of latents."""
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

    def by_rows(self, copied: bool) -> dict[str, torch.Tensor]:
        """Return the tensors, `W_enc` as [d_sae, d_in], each with memory of its own, row after row.

        Args:
            copied: Whether all are copies. If not, those of `self` are given away where they can be.
        """
        rows: dict[str, torch.Tensor] = {}
        taken: set[int] = set()
        for name in self.spec.parameters:
            given = self.params[name].detach()
            given = given.t() if name == "W_enc" else given
            if copied or not given.is_contiguous() or given.data_ptr() in taken:
                given = given.clone(memory_format=torch.contiguous_format)
            taken.add(given.data_ptr())
            rows[name] = given
        return rows

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


def first_scale(d_in: int, d_sae: int, share: float) -> float:
    """Return the scale of `W_enc` at which random directions explain the most of isotropic activations.

    The codes of many overlapping rows overshoot: their sum is longer than what it stands for. For x of
    squared norm `d_in` and unit rows in uniform directions, z is near standard normal; with the largest
    `share` of latents active and S the expected sum of their squared codes, x_hat is near S / d_in along
    x, with squared norm S + S^2 / d_in, so the least-squares scale is 1 / (1 + S / d_in). Training
    starts from there instead of first unlearning the overshoot.
    """
    normal = NormalDist()
    share = min(share, 0.5)
    limit = normal.inv_cdf(1 - share)
    energy = d_sae * (share + limit * normal.pdf(limit))
    return 1 / (1 + energy / d_in)


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
