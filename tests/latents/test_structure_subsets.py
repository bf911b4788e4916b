"""Domains, what of a latent lies in one, and whether anything simple tells which tokens."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csc_matrix

from sae_placebo.data.labels.base import Labels
from sae_placebo.data.rows import Rows
from sae_placebo.latents.base import Encoded, Folds, TokenTable
from sae_placebo.latents.columns.bags import decayed_bags
from sae_placebo.latents.columns.domain_tokens import auc_by_column
from sae_placebo.latents.columns.domains import Domains, document_clusters, domains_of
from sae_placebo.latents.columns.in_context import in_context
from sae_placebo.latents.columns.mechanism import mechanism_predictions
from sae_placebo.latents.columns.nonlinear import MLPSpec, nonlinear_aurocs
from sae_placebo.latents.columns.subsets import subsets
from sae_placebo.saes import SAE, parse_sae
from sae_placebo.stats.ranking import auroc

N_DOCUMENTS, WIDTH, VOCABULARY = 160, 129, 60
EMBEDDINGS = np.random.default_rng(5).standard_normal((VOCABULARY, 4))


@pytest.fixture(scope="module")
def tokens() -> TokenTable:
    draw = np.random.default_rng(0)
    kind = np.arange(N_DOCUMENTS) % 4
    tilt = draw.lognormal(0, 1, (4, VOCABULARY))
    tilt /= tilt.sum(1, keepdims=True)
    ids = np.stack([draw.choice(VOCABULARY, WIDTH, p=tilt[k]) for k in kind]).astype(np.int32)
    rows = Rows(
        token_ids=ids,
        lengths=np.full(N_DOCUMENTS, WIDTH, dtype=np.int32),
        documents=np.arange(N_DOCUMENTS, dtype=np.int32),
        names=tuple(f"{i}" for i in range(N_DOCUMENTS)),
    )
    places = np.argwhere(rows.usable()).astype(np.int64)
    return TokenTable(rows, places, tuple(f"t{i}" for i in range(VOCABULARY)))


def reading_of(tokens: TokenTable, where: list[np.ndarray]) -> Encoded:
    active = np.stack(where, axis=1)
    sae = SAE(parse_sae({"kind": "topk", "d_sae": len(where), "k": 1}), {})
    codes = csc_matrix(active.astype(np.float32)).tocsr()
    return Encoded(sae, tokens, codes, torch.zeros(len(tokens), 1))


@pytest.fixture(scope="module")
def folds(tokens: TokenTable) -> Folds:
    return Folds.of(tokens.documents, N_DOCUMENTS, 0)


@pytest.fixture(scope="module")
def domains(tokens: TokenTable) -> Domains:
    kind = tokens.documents % 4
    return Domains(("zero", "one"), np.stack([kind == 0, kind == 1], axis=1))


@pytest.fixture(scope="module")
def planted(tokens: TokenTable) -> Encoded:
    draw = np.random.default_rng(1)
    inside = tokens.documents % 4 == 0
    n = len(tokens)
    bag = decayed_bags(tokens, np.arange(n))
    along = bag[:, :96] @ draw.standard_normal(96)
    # the sign of a number of the token, turned around by the bag
    few = decayed_bags(tokens, np.arange(n), EMBEDDINGS) @ np.eye(8)[:, 3]
    crossed = (EMBEDDINGS[tokens.ids, 0] > 0) == (few > np.median(few[inside]))
    return reading_of(
        tokens,
        [
            inside & (draw.random(n) < 0.15),
            inside & (tokens.ids < 6),
            inside & (tokens.previous < 6),
            inside & (tokens.positions < 20),
            inside & (along > np.quantile(along, 0.85)),
            inside & crossed & (draw.random(n) < 0.5),
            draw.random(n) < 0.05,
            inside & (draw.random(n) < 0.6),
            np.zeros(n, dtype=bool),
        ],
    )


def test_only_arbitrary_subsets_are_unpredictable(planted, folds, domains):
    found = subsets(planted, folds, domains)
    auc, precision = found["domain_auc"][:, 0], found["domain_precision"][:, 0]
    assert auc[0] < 0.6
    for latent in (1, 2, 3, 4):
        assert auc[latent] > 0.9, latent
    assert precision[:6] == pytest.approx(np.ones(6))
    # not in a domain; on most of one; never active
    assert np.isnan(auc[6:]).all()
    assert precision[6] == pytest.approx(0.25, abs=0.05)
    assert found["domain_recall"][7, 0] == pytest.approx(0.6, abs=0.02)
    assert np.isnan(precision[8])


def test_shares_without_a_group_are_those_of_the_rest(planted, folds, domains, tokens):
    found = subsets(planted, folds, domains)
    kept = folds.groups[tokens.documents] != 3
    active = planted.codes[:, 6].toarray().ravel() > 0
    inside = [domains.members[:, i] for i in range(2)]
    chosen = int(np.argmax([(active & one).sum() for one in inside]))
    assert found["domain_precision"][6, 4] == pytest.approx(
        (active & inside[chosen] & kept).sum() / (active & kept).sum()
    )
    assert found["domain_recall"][6, 4] == pytest.approx(
        (active & inside[chosen] & kept).sum() / (inside[chosen] & kept).sum()
    )


def test_an_mlp_finds_what_no_simple_predictor_does(planted, folds, domains):
    simple = subsets(planted, folds, domains, embeddings=EMBEDDINGS)["domain_auc"][:, 0]
    found = nonlinear_aurocs(planted, folds, domains, np.array([0, 5]), EMBEDDINGS)
    assert simple[5] < 0.6
    assert found[5] > simple[5] + 0.1
    assert found[0] < 0.6
    assert np.isnan(found[1])


def test_documents_of_a_kind_are_clustered(tokens):
    found = document_clusters(tokens, 0, 4)
    assert len({tuple(found[kind::4]) for kind in range(4)}) == 4
    assert all(len(set(found[kind::4])) == 1 for kind in range(4))
    again = domains_of(tokens, 0)
    assert "documents.0_of_4" in again.names
    assert np.array_equal(again.members, domains_of(tokens, 0).members)


def test_scopes_are_the_domains_of_labeled_text(tokens):
    names = ("kind.comment", "kind.keyword", "inside.loop", "inside.try")
    held = np.zeros((N_DOCUMENTS, WIDTH, 4), dtype=bool)
    held[:, 10:40, 0] = held[:, 10:40, 1] = True
    held[:, :100, 2] = True
    bits = np.packbits(held, axis=-1, bitorder="little")
    labels = Labels(names, bits, np.ones((N_DOCUMENTS, WIDTH), dtype=bool))
    rows = Rows(
        tokens.rows.token_ids, tokens.rows.lengths, tokens.rows.documents, tokens.rows.names, labels
    )
    found = domains_of(TokenTable(rows, tokens.places, tokens.vocabulary), 0)
    # keywords are no scope, loops hold most of the text, and nothing is in a try
    assert found.names == ("kind.comment",)
    assert found.members.sum() == 30 * N_DOCUMENTS


def test_prose_beside_code_has_domains_too(tokens):
    held = np.zeros((N_DOCUMENTS, WIDTH, 1), dtype=bool)
    known = np.zeros((N_DOCUMENTS, WIDTH), dtype=bool)
    known[::2] = True
    held[::2, 10:40] = True
    labels = Labels(("kind.comment",), np.packbits(held, axis=-1, bitorder="little"), known)
    rows = Rows(
        tokens.rows.token_ids, tokens.rows.lengths, tokens.rows.documents, tokens.rows.names, labels
    )
    found = domains_of(TokenTable(rows, tokens.places, tokens.vocabulary), 0)
    assert found.names[0] == "kind.comment"
    assert "documents.0_of_4" in found.names
    # every document without labels lies in some domain, and no token of it in a scope
    prose = tokens.documents % 2 == 1
    assert found.members[prose, 1:].any(axis=1).all()
    assert not found.members[prose, 0].any()


def test_an_mlp_is_judged_at_the_tokens_of_the_simple_predictors(
    planted, folds, domains, monkeypatch
):
    seen = {}

    def noted(name):
        def call(negatives, positives, taken, owners, n):
            seen[name] = (len(negatives), owners.tolist(), *(part.tolist() for part in taken))
            return auc_by_column(negatives, positives, taken, owners, n)

        return call

    some = np.flatnonzero(
        np.isfinite(subsets(planted, folds, domains, embeddings=EMBEDDINGS)["domain_auc"][:, 0])
    )
    for name in ("subsets", "nonlinear"):
        monkeypatch.setattr(f"sae_placebo.latents.columns.{name}.auc_by_column", noted(name))
    subsets(planted, folds, domains, embeddings=EMBEDDINGS)
    nonlinear_aurocs(planted, folds, domains, some, EMBEDDINGS, spec=MLPSpec(steps=2))
    assert seen["nonlinear"] == seen["subsets"]
    assert seen["subsets"][0] == 512


def test_without_a_domain_nothing_is_known(planted, folds):
    none = Domains((), np.zeros((len(planted.tokens), 0), dtype=bool))
    assert all(np.isnan(one).all() for one in subsets(planted, folds, none).values())


def test_auc_is_that_of_all_pairs():
    draw = np.random.default_rng(0)
    scores = draw.integers(0, 5, 80).astype(np.float32)
    active = draw.random(80) < 0.4
    places = np.flatnonzero(active)
    taken = (places, np.zeros(len(places), dtype=np.int64))
    found = auc_by_column(scores[:, None].copy(), scores[places], taken, taken[1], 1)
    above = scores[active][:, None] - scores[~active][None]
    assert found[0] == pytest.approx(((above > 0) + 0.5 * (above == 0)).mean())


def test_auc_of_each_candidate_is_the_auroc_of_its_own_tokens():
    draw = np.random.default_rng(1)
    sizes = (200, 20, 19, 0, 57)
    negatives = draw.normal(size=(64, len(sizes))).round(1).astype(np.float32)
    owners = np.repeat(np.arange(len(sizes)), sizes)
    positives = draw.normal(0.5, 1, len(owners)).round(1).astype(np.float32)
    taken = draw.random(negatives.shape) < np.array([0.2, 0, 0.1, 0, 0.8])
    found = auc_by_column(negatives, positives, np.nonzero(taken), owners, len(sizes))
    for candidate in (0, 1):
        own = negatives[~taken[:, candidate], candidate]
        scores = np.concatenate([positives[owners == candidate], own])
        assert found[candidate] == auroc(scores, np.arange(len(scores)) < sizes[candidate])
    # too few positives, none, and too few negatives
    assert (~taken[:, 4]).sum() < 20
    assert np.isnan(found[2:]).all()


def test_bags_are_decayed_sums_of_the_tokens_before(tokens):
    needed = np.array([0, 5, 200])
    found = decayed_bags(tokens, needed, np.eye(VOCABULARY)[:, :10])
    row, position = tokens.places[200]
    rows = np.eye(VOCABULARY)[:, :10]
    rows = rows - rows.mean(0)
    ahead = tokens.rows.token_ids[row, :position]
    weights = 0.8 ** np.arange(len(ahead), 0, -1)
    # the vectors are turned into principal components, which keeps lengths
    assert np.linalg.norm(found[2, :10]) == pytest.approx(
        np.linalg.norm(weights @ rows[ahead]), rel=1e-4
    )


def test_a_token_in_context_is_told_from_a_token_at_random(tokens, folds):
    draw = np.random.default_rng(2)
    inside = tokens.documents % 4 == 0
    often = tokens.ids == np.bincount(tokens.ids[inside]).argmax()
    share = (often & inside).sum() / often.sum()
    at_random = [often & (draw.random(len(tokens)) < share) for _ in range(8)]
    reading = reading_of(tokens, [often & inside, tokens.ids % 2 == 0, *at_random])
    gain = in_context(reading, folds)["context_gain"][:, 0]
    # a context that told every occurrence would gain all that the token leaves open
    scored = folds.purposes[tokens.documents] == 2
    active, n = (often & inside & scored).sum(), (often & scored).sum()
    most = active * (1 - active / n) / (active * (1 - active / scored.sum()))
    assert 0.5 * most < gain[0] < most
    assert np.isnan(gain[1])
    assert (gain[2:] < 0.02).all()
    assert gain[2:].mean() == pytest.approx(0, abs=0.02)


def test_predictions_are_told_with_their_numbers():
    draw = np.random.default_rng(0)
    n = 60
    latents = pd.DataFrame(
        {
            "arm": "redraw",
            "class": ["single_token"] * n + ["unexplained"] * n,
            "is_arbitrary": [False] * n + [True] * n,
            "seed_r": np.r_[draw.uniform(0.5, 1, n), draw.uniform(0, 0.6, n)],
            "linear_auc": 0.52,
            "mlp_auc": np.r_[np.full(n, np.nan), draw.normal(0.7, 0.05, n)],
        }
    )
    shares = pd.DataFrame(
        {
            "arm": ["a", "a", "b", "b", "c", "c"],
            "layer": [1, 2] * 3,
            "n_arbitrary": [5, 60, 10, 80, 9, 70],
            "n_latents": 1000,
            "block_ratio": [0.1, 1.0, 0.2, 2.0, 0.15, 1.5],
        }
    )
    found = {one.name: one for one in mechanism_predictions(latents, shares)}
    assert found["less_reproducible"].outcome == "holds"
    assert found["needs_attention"].outcome == "not estimable"
    assert "attention is ablated" in found["needs_attention"].reason
    assert found["needs_nonlinearity"].estimate == pytest.approx(0.18, abs=0.02)
    assert found["grows_with_depth"].outcome == "holds"
    assert found["grows_with_blocks"].outcome == "holds"
    assert "24 of 3000" in found["grows_with_depth"].n

    ablated = {one.name: one for one in mechanism_predictions(latents, shares, {"b": "c"})}
    # the arm without attention has 90 of 2000, the same one with it 79 of 2000: no fewer
    assert ablated["needs_attention"].outcome == "undecided"
    assert ablated["needs_attention"].estimate == pytest.approx(79 / 2000 - 90 / 2000)
    assert "15 of 2000" not in ablated["grows_with_depth"].n
    assert "130 of 2000" in ablated["grows_with_depth"].n  # of a and c, which attend
    alone = {one.name: one for one in mechanism_predictions(latents, shares, {"b": None})}
    assert "no arm differs from b in attention alone" in alone["needs_attention"].reason
    of_ablated = mechanism_predictions(latents, shares, {"redraw": "a"})
    assert {one.name: one.outcome for one in of_ablated}["less_reproducible"] == "not estimable"
    turned = shares.assign(n_arbitrary=shares["n_arbitrary"].to_numpy()[::-1])
    failing = {one.name: one for one in mechanism_predictions(latents.iloc[:5], turned)}
    assert failing["grows_with_depth"].outcome == "fails"
    assert failing["less_reproducible"].outcome == "not estimable"
    assert np.isnan(failing["needs_nonlinearity"].estimate)
