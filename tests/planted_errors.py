"""SAEs with a planted reconstruction error, on a tiny model."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csr_matrix

from architectures import build
from planted_subjects import rows, subject_of
from sae_placebo.audits.base import AuditSpec, Case, Finding
from sae_placebo.causal.use.base import Subject
from sae_placebo.latents.base import Encoded, TokenTable
from sae_placebo.saes import SAE
from sae_placebo.saes.topk import TopKSpec

SPEC = AuditSpec(tokens=160, draws=2, window=2, steps=5)


def reading_with(
    tokens: TokenTable, x: torch.Tensor, error: torch.Tensor, bias: float = 0.0
) -> Encoded:
    """A reading whose reconstruction is x - error: codes are its positive and its negative part."""
    d_in = x.shape[1]
    found = (x - error - bias).numpy()
    params = {
        "W_enc": torch.zeros(d_in, 2 * d_in),
        "b_enc": torch.zeros(2 * d_in),
        "W_dec": torch.cat([torch.eye(d_in), -torch.eye(d_in)]),
        "b_dec": torch.full((d_in,), bias),
    }
    codes = np.concatenate([found.clip(0), (-found).clip(0)], axis=1)
    return Encoded(SAE(TopKSpec(d_sae=2 * d_in, k=d_in), params), tokens, csr_matrix(codes), x)


def tiny(n_rows: int = 60, length: int = 24) -> Subject:
    """A tiny random model on random tokens."""
    return subject_of(build("llama_untied"), "resid_post.0", rows(n_rows, length))


def case_of(subject: Subject, error: torch.Tensor, spec: AuditSpec = SPEC) -> Case:
    """A case whose SAE errs by exactly `error`."""
    reading = reading_with(subject.tokens, subject.activations.clone(), error)
    return Case(reading, subject, None, {}, spec, 0)


def lengths(subject: Subject, share: float = 0.4) -> torch.Tensor:
    """Lengths of planted errors."""
    return share * subject.activations.norm(dim=1, keepdim=True)


def noise(subject: Subject) -> torch.Tensor:
    """Isotropic errors."""
    free = torch.randn(subject.activations.shape, generator=torch.Generator().manual_seed(3))
    return free / free.norm(dim=1, keepdim=True) * lengths(subject)


def named(findings: list[Finding], name: str) -> Finding:
    """The finding of a name that has one."""
    (found,) = [one for one in findings if one.name == name]
    return found
