"""Edges between latents of two hookpoints: planted ones are found and confirmed, others are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from test_circuits_writers import make_subject

from architectures import D_IN, build
from sae_placebo.causal.circuits.edge_nulls import (
    Chance,
    Readouts,
    Standard,
    pseudo_targets,
    sources_of,
    unit_rows,
)
from sae_placebo.causal.circuits.edges import EdgeSpec, edges
from sae_placebo.causal.use.base import Directions, Subject, latent_directions
from sae_placebo.core.errors import SpecError
from sae_placebo.latents.base import Encoded
from sae_placebo.models.hookpoints import parse_hookpoint
from sae_placebo.models.reading import Reader, replaced
from sae_placebo.saes import SAE
from sae_placebo.saes.topk import TopKSpec

N_SOURCES, N_TARGETS, N_PLANTED = 90, 60, 50


def sae_at(x: torch.Tensor, d_sae: int, seed: int) -> SAE:
    """An SAE that fires where a random direction is far above its mean."""
    made = TopKSpec(d_sae=d_sae, k=d_sae).create(D_IN, seed)
    draw = torch.Generator().manual_seed(seed)
    encoder = torch.nn.functional.normalize(torch.randn(D_IN, d_sae, generator=draw), dim=0)
    z = (x - x.mean(0)) @ encoder
    bias = -torch.quantile(z, 0.7, dim=0)
    params = {"W_enc": encoder, "b_enc": bias, "W_dec": encoder.T.clone(), "b_dec": x.mean(0)}
    return SAE(made.spec, params)


def reading(subject: Subject, x: torch.Tensor, sae: SAE) -> Encoded:
    codes = csr_matrix(sae.encode(x).dense().numpy())
    return Encoded(sae, subject.tokens, codes, x)


def bed(plant: bool, n_rows: int = 60) -> tuple[Subject, Directions, Encoded]:
    model = build("llama")
    subject = make_subject(model, "resid_post.0", n_rows)
    later = make_subject(model, "resid_post.1", n_rows)
    earlier_sae = sae_at(subject.activations, N_SOURCES, 1)
    later_sae = sae_at(later.activations, N_TARGETS, 2)
    sources = latent_directions(reading(subject, subject.activations, earlier_sae))
    if plant:  # target i reads what source 10 + i writes
        encoder, n = later_sae.params["W_enc"], N_PLANTED
        encoder[:, :n] = 2 * torch.from_numpy(sources.vectors[10 : 10 + n].T)
        z = (later.activations - later.activations.mean(0)) @ encoder
        later_sae.params["b_enc"][:n] = -torch.quantile(z[:, :n], 0.7, dim=0)
    return subject, sources, reading(subject, later.activations, later_sae)


SPEC = EdgeSpec(keep=3, confirm=8, firings=6, block=16, level=0.05)


def test_planted_edges_are_found_and_confirmed() -> None:
    subject, sources, target = bed(plant=True)
    table = edges(subject, sources, target, "resid_post.1", SPEC, 0)
    best = table[table["confirmed"] == True]  # noqa: E712
    assert len(best) >= 6
    assert (best["source"] == best["target"] + 10).all()
    one = best.iloc[0]
    assert one["alignment"] == pytest.approx(2, abs=1e-5)
    assert one["p"] == pytest.approx(1 / 20)
    assert one["effect"] > one["null_effect"]
    assert one["n_firings"] == 6
    assert one["null_percentile"] > 95
    assert one["reason"] == ""
    assert len(table) <= 3 * N_TARGETS
    rest = table[table["confirmed"].isna()]
    assert rest["p"].isna().all()
    assert (rest["reason"] != "").all()


def test_weight_is_the_formula_whatever_the_block() -> None:
    subject, sources, target = bed(plant=True)
    table = edges(
        subject, sources, target, "resid_post.1", SPEC.model_copy(update={"confirm": 0}), 0
    )
    again = edges(
        subject, sources, target, "resid_post.1",
        SPEC.model_copy(update={"confirm": 0, "block": 7}), 0,
    )  # fmt: skip
    np.testing.assert_allclose(table["weight"], again["weight"], rtol=1e-5)
    amounts, codes = sources.amounts.toarray(), target.codes.toarray()
    encoder = target.sae.params["W_enc"].numpy()
    for _, row in table.head(20).iterrows():
        i, j = int(row["source"]), int(row["target"])
        mean = amounts[codes[:, j] > 0, i].mean()
        expected = float(encoder[:, j] @ sources.vectors[i]) * mean
        assert row["weight"] == pytest.approx(expected, rel=1e-4)
        both = (codes[:, j] > 0) & (amounts[:, i] > 0)
        assert row["n"] == both.sum()


def test_random_dictionaries_have_few_edges() -> None:
    subject, sources, target = bed(plant=False)
    table = edges(
        subject, sources, target, "resid_post.1", SPEC.model_copy(update={"confirm": 0}), 0
    )
    assert (table["q"] <= 0.05).sum() <= 2
    assert table["q"].notna().mean() > 0.9
    assert table["confirmed"].isna().all()


def test_edges_into_readouts_that_mean_nothing_are_as_surprising_as_said() -> None:
    """The reduced form of `benchmarks/circuits.py edges`: a normal tail gives 6% and 1.7% here."""
    _, sources, target = bed(plant=False)
    encoders = unit_rows(target.sae.params["W_enc"].numpy().T)
    targets = Readouts(encoders, (target.by_latent > 0).astype(np.float32))
    standard, x = Standard(targets, sources, 4), target.activations.numpy()

    def scores(seed: int, n: int) -> list[np.ndarray]:
        readouts = pseudo_targets(targets, x, n, 10, seed)
        return [standard(one)[0] for one in sources_of(readouts, sources, 10, 512)]

    chance = Chance(scores(0, 200))
    p = np.concatenate([chance.p(z) for z in scores(1, 300)])
    assert len(p) > 20_000
    assert (p <= 0.05).mean() == pytest.approx(0.05, abs=0.01)
    assert (p <= 0.01).mean() == pytest.approx(0.01, abs=0.005)
    # beyond the null's values the tail goes on falling
    far = chance.p(np.array([20.0, -20.0, 40.0] + [0.1] * 87))
    assert far[0] == far[1]
    assert 0 < far[2] < far[0] < 1e-5


def test_targets_with_few_sources_are_not_tested() -> None:
    subject, sources, target = bed(plant=False)
    few = Directions(sources.vectors[:15], sources.amounts[:, :15])
    table = edges(subject, few, target, "resid_post.1", SPEC.model_copy(update={"confirm": 0}), 0)
    assert len(table)
    assert table["q"].isna().all()
    assert table["reason"].str.startswith("fewer than 20 sources").all()


def test_the_effect_is_that_of_a_whole_forward() -> None:
    subject, sources, target = bed(plant=True, n_rows=16)
    spec = SPEC.model_copy(update={"firings": 500, "nulls": 1, "confirm": 2, "level": 0.6})
    row = edges(subject, sources, target, "resid_post.1", spec, 0).iloc[0]
    i, j = int(row["source"]), int(row["target"])
    both = np.flatnonzero(
        (sources.amounts.toarray()[:, i] > 0) & (target.codes.toarray()[:, j] > 0)
    )
    assert row["n_firings"] == len(both)
    model, drops = subject.downstream.model, []
    reader = Reader(model, ["resid_post.1"])
    for token in both:
        r, position = subject.tokens.places[token]
        ids = subject.ids_of(int(r))
        delta = -float(sources.amounts[token, i]) * torch.from_numpy(sources.vectors[i])

        def edit(
            x: torch.Tensor, position: int = position, delta: torch.Tensor = delta
        ) -> torch.Tensor:
            out = x.clone()
            out[:, position] += delta
            return out

        clean = reader.read(ids[None])["resid_post.1"][0, position]
        with replaced(model, "resid_post.0", edit):
            edited = reader.read(ids[None])["resid_post.1"][0, position]
        codes = target.sae.encode(torch.stack([clean, edited])).dense()[:, j]
        drops.append(float(codes[0] - codes[1]))
    assert row["effect"] == pytest.approx(np.mean(drops), rel=1e-3, abs=1e-4)


def test_earlier_hookpoints_and_other_tokens_are_refused() -> None:
    subject, sources, target = bed(plant=False)
    with pytest.raises(SpecError, match="not behind"):
        edges(subject, sources, target, "attn_out.0", SPEC, 0)
    short = Directions(sources.vectors, sources.amounts[:-1])
    with pytest.raises(SpecError, match="tokens"):
        edges(subject, short, target, parse_hookpoint("resid_post.1").name, SPEC, 0)
