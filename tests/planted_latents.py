"""Cases whose latents are planted: sparse codes on unit atoms, and what an SAE makes of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix

from planted_readings import reading_of, token_table
from sae_placebo.audits.base import Audited, AuditSpec, Case, Finding
from sae_placebo.data.labels.truth import TokenLabels
from sae_placebo.saes import SAE

WIDTH = 33


@dataclass(frozen=True)
class Planted:
    """True codes [token, atom] on unit atoms [atom, d_in]."""

    codes: np.ndarray
    atoms: np.ndarray

    @property
    def x(self) -> np.ndarray:
        return self.codes @ self.atoms


def planted(
    n_rows: int = 160, d_in: int = 24, n_atoms: int = 48, rate: float = 0.06, seed: int = 3
) -> Planted:
    """Independent atoms in superposition, amplitudes from .5 to 1.5."""
    draw = np.random.default_rng(seed)
    n = n_rows * (WIDTH - 1)
    atoms = draw.normal(size=(n_atoms, d_in))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    codes = (draw.random((n, n_atoms)) < rate) * draw.uniform(0.5, 1.5, size=(n, n_atoms))
    return Planted(codes, atoms)


def case_of(
    x: np.ndarray,
    codes: np.ndarray,
    decoder: np.ndarray,
    *,
    labels: np.ndarray | None = None,
    n_documents: int = 40,
    token_ids: np.ndarray | None = None,
    vocabulary: tuple[str, ...] = ("a",),
    spec: AuditSpec | None = None,
    **params: Any,
) -> Case:
    """An SAE with these codes and decoder rows, at x; labels are [token, label]."""
    n_rows = len(x) // (WIDTH - 1)
    ids = np.zeros((n_rows, WIDTH)) if token_ids is None else token_ids
    tokens = token_table(ids, n_documents, vocabulary)
    reading = reading_of(tokens, codes, x, W_dec=decoder, **({"W_enc": decoder.T} | params))
    truth = None
    if labels is not None:
        n = labels.shape[1]
        truth = TokenLabels(
            tuple(f"label {i}" for i in range(n)),
            ("context",) * n,
            labels.astype(bool),
            np.ones(len(x), dtype=bool),
            {},
            np.arange(n_documents) % 2 == 1,
        )
    return Case(reading, None, truth, {}, spec or AuditSpec(), 0)


def rescaled(case: Case) -> Case:
    """The same function of x: decoder rows times powers of two, which round nothing, codes divided."""
    reading = case.reading
    draw = np.random.default_rng(11)
    factors = 2.0 ** draw.integers(-3, 4, size=reading.d_sae)
    scale = torch.tensor(factors, dtype=torch.float32)
    params = dict(reading.sae.params)
    params["W_dec"] = params["W_dec"] * scale[:, None]
    params["W_enc"] = params["W_enc"] / scale
    params["b_enc"] = params["b_enc"] / scale
    codes = csr_matrix(reading.codes.multiply(1 / factors), dtype=np.float32)
    return replace(case, reading=replace(reading, sae=SAE(reading.sae.spec, params), codes=codes))


def named(audited: Audited, name: str, at: float | None = None) -> Finding:
    """The finding with a name, and at a place where there are several."""
    found = [f for f in audited.findings if f.name == name and (at is None or f.at == at)]
    assert len(found) == 1, [f.name for f in audited.findings]
    return found[0]


def assert_same(one: Audited, other: Audited, tolerance: float = 1e-5) -> None:
    """Every number of both is the same."""
    assert [f.name for f in one.findings] == [f.name for f in other.findings]
    for a, b in zip(one.findings, other.findings, strict=True):
        for part in ("value", "low", "high", "null", "null_low", "null_high", "n", "at"):
            first, second = getattr(a, part), getattr(b, part)
            np.testing.assert_allclose(
                first, second, rtol=tolerance, atol=tolerance, err_msg=f"{a.name} {part}"
            )
    for name, values in one.latents.items():
        np.testing.assert_allclose(values, other.latents[name], rtol=1e-4, atol=1e-4, err_msg=name)
