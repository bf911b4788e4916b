"""Matryoshka: every prefix of the dictionary must reconstruct by itself."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from jaxtyping import Float, Int64
from pydantic import Field, model_validator

from sae_placebo.core.lazy import torch
from sae_placebo.saes import auxiliary
from sae_placebo.saes.base import SAES, Context, Evaluation
from sae_placebo.saes.batchtopk import BatchSpec
from sae_placebo.saes.kernels import Workspace, by_latent
from sae_placebo.saes.selection import Selection, Sites, select


@SAES.add
class MatryoshkaSpec(BatchSpec):
    """BatchTopK codes of which each nested prefix of latents reconstructs the input by itself.

    Sizes `m_1 < ... < m_G = d_sae` are shares of `d_sae`. With the codes f of `BatchTopKSpec`,
    chosen over all latents at once, and `x_hat_g = f_{1:m_g} W_dec_{1:m_g} + b_dec`,

        loss = sum_g w_g sum_t |x_t - x_hat_gt|^2 / (T d_in) + AuxK

    where AuxK is that of `TopKSpec` for the error of the whole dictionary. Early latents serve in all
    sums, so they learn what is general; late ones what those leave over. In use codes are the z above
    `threshold`, as in `BatchTopKSpec`, and all latents decode.

    Source: Bussmann, Nabeshima, Karvonen and Nanda, "Learning multi-level features with Matryoshka
    sparse autoencoders", arXiv 2503.17547, section 3: fixed sizes, BatchTopK, AuxK, weights 1; other
    weights as `group_weights` in dictionary_learning. Differs: the loss is divided by energies, as in
    `TopKSpec`; the default shares are those of this package.
    """

    kind: Literal["matryoshka"] = "matryoshka"
    prefixes: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
    """Sizes of the prefixes, as shares of `d_sae`, ascending; the last is 1."""
    weights: Annotated[tuple[float, ...], Field(min_length=1)] | None = None
    """Weight of each prefix's error; None: 1 each."""

    @model_validator(mode="after")
    def _prefixes_nest(self) -> MatryoshkaSpec:
        sizes = self.sizes
        if not sizes or self.prefixes[-1] != 1 or self.prefixes[0] <= 0:
            raise ValueError(
                f"prefixes are {list(self.prefixes)}: they are shares of d_sae above 0, and the last "
                "is 1"
            )
        if any(later <= earlier for earlier, later in itertools.pairwise(sizes)):
            raise ValueError(
                f"prefixes of d_sae {self.d_sae} have {list(sizes)} latents, and each must have more "
                "than the one before: choose shares that lie further apart"
            )
        weights = self.level_weights
        if len(weights) != len(sizes) or min(weights) < 0 or weights[-1] == 0:
            raise ValueError(
                f"weights are {list(weights)} for {len(sizes)} prefixes: give one for each, 0 or more, "
                "and the last above 0"
            )
        return self

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return the number of latents in each prefix; the last is `d_sae`."""
        return tuple(max(1, round(share * self.d_sae)) for share in self.prefixes)

    @property
    def level_weights(self) -> tuple[float, ...]:
        """Return the weight of each prefix's error."""
        return self.weights or (1.0,) * len(self.prefixes)

    def selection(
        self, params: Mapping[str, torch.Tensor], context: Context | None
    ) -> Selection | None:
        """Return the choice of all above the threshold, in use.

        In training it is None, since a site has several errors.
        """
        return super().selection(params, None) if context is None else None

    def evaluate(
        self,
        params: Mapping[str, torch.Tensor],
        x: Float[torch.Tensor, "token d_in"],
        context: Context,
    ) -> Evaluation:
        """Return the objective in dense arithmetic, differentiable by autograd."""
        z, codes = self.dense_codes(params, x)
        decoder, total = params["W_dec"], x.new_zeros(())
        error, energy = x, total
        for size, weight in zip(self.sizes, self.level_weights, strict=True):
            error = x - (codes[:, :size] @ decoder[:size] + params["b_dec"])
            energy = error.square().sum()
            total = total + weight * energy
        aux = auxiliary.plain(z, decoder, error, context.dead, *self.auxiliary(x.shape[1]))
        active = codes > 0
        buffers = self.next_buffers(params, codes[active], context)
        loss = total / x.numel() + aux
        return Evaluation(loss, energy, active.any(dim=0), active.sum(), buffers=buffers)

    def gradients(
        self,
        params: Mapping[str, torch.Tensor],
        x: Float[torch.Tensor, "token d_in"],
        context: Context,
        workspace: Workspace,
    ) -> Evaluation:
        """Return the objective and its gradients, derived by hand at active sites only.

        A code of level l (the first prefix that holds its latent) is in all reconstructions from l
        on, so where TopK has the error `e`, its derivatives have `E_l = sum_{g >= l} w_g e_g`: by the
        code, `E_l W_dec`; by its decoder row, the code times `E_l`. All else is TopK's.
        """
        with torch.no_grad():
            inputs = torch.sub(x, params["b_dec"], out=workspace.buffer("inputs", x.shape, x))
            sites = select(inputs, params, self.of_batch(params), workspace)
            levels = _by_level(sites, self.sizes)
            errors, parts = _decoded(levels, params["W_dec"], inputs)
            energies = torch.linalg.vector_norm(errors, dim=(1, 2)).square()
            error = errors[-1].clone()
            summed = _summed(errors, self.level_weights)
            scale = 2 / inputs.numel()
            (to_z,) = torch.autograd.grad(parts, levels.values, summed.flatten(0, 1))
            by = by_latent(levels.latents, levels.bags, self.d_sae)
            b_enc = by.totals(to_z.mul_(scale))
            of_tokens = replace(by, tokens=by.tokens % len(inputs))
            weights = torch.tensor(self.level_weights, dtype=x.dtype, device=x.device)
            loss = weights @ energies / inputs.numel()
            found = {
                "W_enc": of_tokens.sums(inputs, to_z),
                "b_enc": b_enc,
                "W_dec": by.sums(summed.flatten(0, 1), levels.values.detach() * scale),
                "b_dec": summed[0].sum(dim=0).mul_(scale).sub_(params["W_enc"] @ b_enc),
            }
            settings = self.auxiliary(inputs.shape[1])
            aux = auxiliary.by_hand(params, inputs, error, context.dead, *settings)
            if aux is not None:
                found["W_enc"].index_add_(0, aux.latents, aux.to_encoder)
                found["W_dec"].index_add_(0, aux.latents, aux.to_decoder)
                found["b_enc"].index_add_(0, aux.latents, aux.to_b_enc)
                found["b_dec"] += aux.to_b_dec
                loss = loss + aux.loss
            found["W_enc"] = found["W_enc"].t()
            fired = torch.zeros(self.d_sae, dtype=torch.bool, device=x.device)
            fired[sites.latents] = True
            active = sites.offsets[-1]
            buffers = self.next_buffers(params, sites.z, context)
            return Evaluation(loss, energies[-1], fired, active, found, buffers)


@dataclass(frozen=True)
class _Levels:
    """Sites sorted by level, and by token within a level: bag `l * n_tokens + t` is token t's."""

    offsets: Int64[torch.Tensor, "bag_plus_one"]
    bags: Int64[torch.Tensor, "site"]
    latents: Int64[torch.Tensor, "site"]
    values: Float[torch.Tensor, "site"]
    """Codes, of which a derivative can be asked."""


def _by_level(sites: Sites, sizes: tuple[int, ...]) -> _Levels:
    n_tokens = len(sites.offsets) - 1
    inner = torch.tensor(sizes[:-1], dtype=torch.int64, device=sites.latents.device)
    level = torch.bucketize(sites.latents, inner, right=True)
    bags, order = (level * n_tokens + sites.tokens()).sort(stable=True)
    bounds = torch.arange(len(sizes) * n_tokens + 1, device=bags.device)
    offsets = torch.searchsorted(bags, bounds)
    return _Levels(offsets, bags, sites.latents[order], sites.z[order].requires_grad_())


def _decoded(
    levels: _Levels,
    decoder: Float[torch.Tensor, "d_sae d_in"],
    inputs: Float[torch.Tensor, "token d_in"],
) -> tuple[Float[torch.Tensor, "level token d_in"], Float[torch.Tensor, "bag d_in"]]:
    """Return `x_hat_g - x` of every prefix, and what each level adds, which autograd can follow."""
    with torch.enable_grad():
        parts = torch.nn.functional.embedding_bag(
            levels.latents,
            decoder,
            levels.offsets,
            per_sample_weights=levels.values,
            mode="sum",
            include_last_offset=True,
        )
    errors = parts.detach().reshape(-1, *inputs.shape)
    errors[0].sub_(inputs)
    for index in range(1, len(errors)):
        errors[index].add_(errors[index - 1])
    return errors, parts


def _summed(
    errors: Float[torch.Tensor, "level token d_in"], weights: tuple[float, ...]
) -> Float[torch.Tensor, "level token d_in"]:
    """Return `sum_{g >= l} w_g e_g` for each level l, in place of the errors."""
    errors[-1].mul_(weights[-1])
    for index in range(len(errors) - 2, -1, -1):
        errors[index].mul_(weights[index]).add_(errors[index + 1])
    return errors
