"""Hedging: whether latents change once new latents are added, in directions that the new ones take over."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64
from pydantic import ValidationError

from sae_placebo.audits.base import AUDITS, Audit, Audited, Case, Finding, Quantity
from sae_placebo.audits.probes import sample
from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import generator, numpy_generator
from sae_placebo.saes import SAE
from sae_placebo.saes.kernels import Workspace
from sae_placebo.saes.training import Fit, step_all
from sae_placebo.saes.training_spec import TrainingSpec
from sae_placebo.stats.bootstrap import percentile_interval, resampled_units
from sae_placebo.stats.proportions import wilson

N_SUBSPACES = 50
"""Random subspaces that make up the null."""
_BATCH = 1_024


@dataclass(frozen=True, eq=False)
class Continued:
    """Decoder rows of the old, living latents after training went on, with new latents and without.

    Attributes:
        change: Decoder rows trained together with new latents, less those of the control.
        control: Decoder rows of the control, which was trained on without new latents.
        span: An orthonormal basis of the subspace that the new latents' decoder rows span.
        used: Share of the new latents that are active, at the end, on tokens that were trained on.
    """

    change: Float32[np.ndarray, "latent d_in"]
    control: Float32[np.ndarray, "latent d_in"]
    span: Float32[np.ndarray, "d_in new"]
    used: float


def run(case: Case) -> Audited:
    """Return the hedging rate and the projection that it is computed from.

    Raises:
        NotEstimable: too few dimensions or living latents, or the SAE's settings refuse new latents.
    """
    sae = case.reading.sae
    living = np.flatnonzero(np.diff(case.reading.by_latent.indptr))
    n_new = min(case.spec.hedging_latents, sae.d_in // 4)
    if n_new < 2 or len(living) < 2:
        raise NotEstimable(
            f"d_in is {sae.d_in} and {len(living)} latents live: hedging is asked of 2 living "
            f"latents or more "
            "in 8 dimensions or more"
        )
    continued = continue_with(case, n_new, living)
    return Audited(*_measured(continued, case.seed, sae.d_sae, living))


def continue_with(case: Case, n_new: int, living: Int64[np.ndarray, " living"]) -> Continued:
    """Return the living latents after training has gone on, with and without new random latents.

    Both trainings take the SAE's own objective and the same batches of held-out activations, in the same
    order; Adam starts afresh in both. Decoder norms are folded into the codes first.

    Args:
        case: The SAE under audit.
        n_new: Latents that are added.
        living: Latents that are active on held-out tokens.

    Raises:
        NotEstimable: the SAE's settings do not fit the new width.
    """
    tokens = sample(
        np.ones(case.n_tokens, dtype=bool), case.spec.hedging_tokens, case.seed, "hedging"
    )
    x = case.reading.activations[torch.from_numpy(tokens)].float().cpu()
    mean = x.mean(0)
    factor = float((x.shape[1] / (x - mean).square().sum(1).mean().clamp_min(1e-30)).sqrt())
    x = (x - mean) * factor
    start = _in_units(case.reading.sae, mean, factor)
    wide = extended(start, n_new, living, case.seed)
    training = TrainingSpec(batch_tokens=_BATCH)
    fits = [Fit(sae, training, len(x), copied=False) for sae in (start, wide)]
    random, workspace = numpy_generator(case.seed, "audit", "hedging", "order"), Workspace()
    order = torch.from_numpy(random.permutation(len(x)))
    with case.track("audit hedging", len(x), "tokens") as advance:
        for first in range(0, len(x), _BATCH):
            part = x[order[first : first + _BATCH]]
            step_all(fits, part, workspace)
            advance(len(part))
    control, trained = (fit.sae() for fit in fits)
    kept = torch.from_numpy(living)
    fresh = trained.params["W_dec"][start.d_sae :]
    codes = trained.encode(x[: 8 * _BATCH])
    active = len(torch.unique(codes.latents[codes.latents >= start.d_sae]))
    return Continued(
        (trained.params["W_dec"][kept] - control.params["W_dec"][kept]).numpy(),
        control.params["W_dec"][kept].numpy(),
        torch.linalg.qr(fresh.t())[0].numpy(),
        active / n_new,
    )


def _in_units(sae: SAE, mean: torch.Tensor, factor: float) -> SAE:
    """Return the SAE for (x - mean) * factor, with decoder rows of length 1; `SAE.fold` is the inverse."""
    params = {name: tensor.detach().float().cpu().clone() for name, tensor in sae.params.items()}
    lengths = params["W_dec"].norm(dim=1)
    lengths = torch.where(lengths > 0, lengths, torch.ones_like(lengths))
    params["W_dec"] = params["W_dec"] / lengths[:, None]
    params["W_enc"] = params["W_enc"] * lengths
    for name in sae.spec.in_activation_units & set(params):
        per_latent = lengths if params[name].ndim else torch.ones(())
        params[name] = params[name] * per_latent * factor
    params["b_dec"] = (params["b_dec"] - mean) * factor
    return SAE(sae.spec, params)


def extended(sae: SAE, n_new: int, living: Int64[np.ndarray, " living"], seed: int) -> SAE:
    """Return the SAE with random latents added behind its own.

    A new latent's decoder row is drawn evenly from the sphere, and its encoder column lies along it, as long
    as living latents' columns reach along their rows in the median. Every other number of a new latent is
    the median over the living latents, too.

    Args:
        sae: The SAE, with decoder rows of length 1.
        n_new: Latents that are added.
        living: Latents that medians are taken over.
        seed: The seed that the random rows are named by.

    Raises:
        NotEstimable: the architecture's settings do not fit the new width.
    """
    width = sae.d_sae + n_new
    try:
        spec = type(sae.spec).model_validate(sae.spec.model_dump() | {"d_sae": width})
    except ValidationError as problem:
        raise NotEstimable(
            f"this SAE cannot be made {width} wide: {problem.errors()[0]['msg']}"
        ) from None
    random = generator(seed, "audit", "hedging", "latents")
    rows = torch.nn.functional.normalize(torch.randn(n_new, sae.d_in, generator=random), dim=1)
    kept = torch.from_numpy(living)
    along = (sae.params["W_enc"].t()[kept] * sae.params["W_dec"][kept]).sum(1)
    params = {}
    for name, tensor in sae.params.items():
        if name == "W_dec":
            params[name] = torch.cat([tensor, rows])
        elif name == "W_enc":
            new = rows.t() * along.median().clamp_min(0.0)
            params[name] = torch.cat([tensor, new], dim=1).t().contiguous().t()
        elif tensor.ndim == 1 and name != "b_dec":
            params[name] = torch.cat([tensor, tensor[kept].median().expand(n_new)])
        else:
            params[name] = tensor.clone()
    return SAE(spec, params)


def _measured(
    continued: Continued, seed: int, d_sae: int, living: Int64[np.ndarray, " living"]
) -> tuple[list[Finding], dict[str, Float64[np.ndarray, " latent"]]]:
    """Return the findings, and for each latent the projection of its change less the mean of the null."""
    change, n = continued.change, len(living)
    d_in, n_new = continued.span.shape
    size = float(np.linalg.norm(continued.control, axis=1).mean())
    moved = np.linalg.norm(change @ continued.span, axis=1).astype(np.float64) / size
    random = numpy_generator(seed, "audit", "hedging", "subspaces")
    lengths = np.empty((N_SUBSPACES, n))
    for draw in range(N_SUBSPACES):
        basis = np.linalg.qr(random.standard_normal((d_in, n_new)))[0].astype(np.float32)
        lengths[draw] = np.linalg.norm(change @ basis, axis=1) / size
    r, r0, draws = float(moved.mean()), float(lengths.mean()), lengths.mean(1)
    picks = resampled_units(random, n, 500)
    many, null = moved[picks].mean(1), lengths.mean(0)[picks].mean(1)
    rate = float(_rate(np.array([r]), np.array([r0]))[0]), *percentile_interval(_rate(many, null))
    # what a random subspace in place of the new latents' would give
    by_chance = _rate(draws, np.full(N_SUBSPACES, r0))
    chance = float(by_chance.mean()), 0.0, percentile_interval(by_chance)[1]
    changed = np.linalg.norm(change, axis=1)
    whole = float(changed.mean()) / size
    share, share_null = (r / whole, r0 / whole) if whole else (math.nan, math.nan)
    with np.errstate(invalid="ignore"):
        shares = many / (changed.astype(np.float64) / size)[picks].mean(1)
    shared, reason = percentile_interval(shares), "" if whole else "no latent changed"
    projection, drawn = (r, *percentile_interval(many)), (r0, *percentile_interval(draws))
    used = continued.used, *wilson(round(continued.used * n_new), n_new)
    name, of = "hedging", "latents"
    findings = [
        Finding(name, "hedging", *rate, n, *chance, of=of),
        Finding(name, "projection", *projection, n, *drawn, of=of),
        Finding(name, "direction_share", share, *shared, n, share_null, of=of, reason=reason),
        Finding(name, "new_used", *used, n_new, 0.0, of="new latents"),
    ]
    by_latent = np.full(d_sae, np.nan)
    by_latent[living] = moved - lengths.mean(0)
    return findings, {"hedging_excess": by_latent}


def _rate(
    r: Float64[np.ndarray, " replicate"], r0: Float64[np.ndarray, " replicate"]
) -> Float64[np.ndarray, " replicate"]:
    """Return the hedging rate max(0, (r - r0) / (1 - r0)) of projections r and of their nulls r0."""
    return np.asarray(np.maximum(0.0, (r - r0) / np.maximum(1 - r0, 1e-30)))


AUDITS.add(
    Audit(
        name="hedging",
        title="Hedging",
        question="Do latents hold parts of features that the SAE has no latent for?",
        source="Chanin et al. 2025 (arXiv 2505.11756). Deviations: training goes on for few "
        "tokens, and on the held-out "
        "activations that the other audits read; means are over living latents; new encoder rows "
        "have the median "
        "length along the decoder. Random subspaces allow for the number of dimensions only; "
        "ordinary drift is in "
        "both trainings alike.",
        quantities=(
            Quantity(
                "hedging",
                "share",
                "lower",
                "the same with random subspaces in place of that of the new latents: about 0",
                "max(0, (r - r0) / (1 - r0)): r is `projection`, r0 its null",
                "If it exceeds its null, widen the SAE: its latents are mixed with correlated "
                "features that have none.",
            ),
            Quantity(
                "projection",
                "1",
                "lower",
                f"the mean of {N_SUBSPACES} random subspaces of as many dimensions",
                "mean length of the change of a decoder row, projected on the span of the new "
                "latents, over the mean "
                "length of decoder rows; the change is between training on with new latents and "
                "without",
                "Compare it with its null only: it grows with the length of training.",
            ),
            Quantity(
                "direction_share",
                "share",
                "neither",
                "the same with random subspaces: about sqrt(new latents / d_in)",
                "mean length of the projected change over the mean length of the change",
                "It does not grow with training: use it to compare SAEs that were trained on for "
                "different lengths.",
            ),
            Quantity(
                "new_used",
                "share",
                "neither",
                "0: none of the new latents found anything to do",
                "share of the new latents that are active at the end, on up to 8,192 of the "
                "tokens trained on",
                "If few are used, the test had no power: raise hedging_tokens or hedging_latents.",
            ),
        ),
        run=run,
    ),
)
