from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from sae_placebo.core.errors import NotEstimable
from sae_placebo.data.labels.truth import best_threshold, count_outcomes, f1_scores
from sae_placebo.latents.metrics import (
    COVERAGE_COLUMNS,
    METRICS,
    Evidence,
    TokenLabels,
    coverage_table,
)
from sae_placebo.latents.metrics.coverage import coverage

N_DOCUMENTS = 20
Codes = list[tuple[int, np.ndarray, np.ndarray]]  # latent, tokens, values


def truth_of(present: np.ndarray, documents: np.ndarray, **changes: Any) -> TokenLabels:
    nothing = np.zeros_like(present)
    fields: dict[str, Any] = {
        "names": tuple(f"label{i}" for i in range(present.shape[1])),
        "groups": ("context",) * present.shape[1],
        "present": present,
        "known": np.ones(len(present), dtype=bool),
        "baselines": {
            name: count_outcomes(nothing, present, documents, N_DOCUMENTS)
            for name in ("lookup", "bigram", "window")
        },
        "second_half": np.arange(N_DOCUMENTS) % 2 == 1,
    }
    return TokenLabels(**(fields | changes))


def evidence_of(
    codes: Codes, documents: np.ndarray, d_sae: int, truth: TokenLabels | None
) -> Evidence:
    latents = np.concatenate([np.full(len(at), latent) for latent, at, _ in codes])
    tokens = np.concatenate([at for _, at, _ in codes])
    values = np.concatenate([v for _, _, v in codes]).astype(np.float32)
    order = np.argsort(tokens, kind="stable")
    n = len(documents)
    offsets = np.append(0, np.cumsum(np.bincount(tokens, minlength=n)))
    return Evidence(
        token_ids=np.zeros(n, dtype=np.int32),
        documents=documents,
        n_documents=N_DOCUMENTS,
        offsets=offsets.astype(np.int64),
        latents=latents[order],
        values=values[order],
        d_sae=d_sae,
        vocabulary=["a"],
        squared_error=np.zeros(N_DOCUMENTS),
        activation_sum=np.zeros((N_DOCUMENTS, 2)),
        activation_energy=np.zeros(N_DOCUMENTS),
        truth=truth,
    )


def documents_of(n_tokens: int) -> np.ndarray:
    return np.sort(np.arange(n_tokens) % N_DOCUMENTS).astype(np.int32)


def random_codes(draw: np.random.Generator, n_tokens: int, d_sae: int, k: int) -> Codes:
    """Return k random latents per token, whose densities spread over two powers of ten."""
    rates = 1 / np.arange(1, d_sae + 1)
    noise = np.log(rates) + draw.gumbel(size=(n_tokens, d_sae))
    active = np.argpartition(-noise, k, axis=1)[:, :k]
    values = draw.lognormal(size=active.shape)
    return [
        (latent, np.nonzero(active == latent)[0], values[active == latent])
        for latent in range(d_sae)
    ]


def mean_f1(evidence: Evidence, group: str = "context") -> float:
    weights = np.ones((evidence.n_documents, 1))
    return float(METRICS[f"coverage_{group}"].values(evidence, weights)[0])


def test_a_latent_that_is_the_label_scores_one_at_the_right_threshold() -> None:
    draw = np.random.default_rng(0)
    documents, d_sae = documents_of(2_000), 64
    present = draw.random((2_000, 3)) < [0.3, 0.02, 0.1]
    codes = random_codes(draw, 2_000, d_sae - 2, 8)
    at = np.flatnonzero(present[:, 0])
    codes.append((d_sae - 2, at, draw.lognormal(size=len(at))))
    # strongly active on label 1, weakly on everything else
    strength = np.where(present[:, 1], 5 + draw.random(2_000), draw.random(2_000) + 1e-3)
    codes.append((d_sae - 1, np.arange(2_000), strength))
    base = evidence_of(codes, documents, d_sae, truth_of(present, documents))
    table = coverage_table(base)
    assert table["f1"][:2].tolist() == [1, 1]
    assert table["latent"][:2].tolist() == [d_sae - 2, d_sae - 1]
    assert table["threshold"][0] == 0
    assert 1 < table["threshold"][1] < 5.1
    assert table["f1"][2] < 0.4


def test_random_codes_score_as_chance_does_however_many_latents() -> None:
    draw = np.random.default_rng(1)
    n, d_sae = 6_000, 1_024
    documents = documents_of(n)
    rates = np.array([0.01, 0.03, 0.1, 0.3])
    present = draw.random((n, 4)) < rates
    base = evidence_of(
        random_codes(draw, n, d_sae, 16), documents, d_sae, truth_of(present, documents)
    )
    table = coverage_table(base)
    chance = 2 * rates / (1 + rates)
    assert (table["f1"] < chance + 0.03).all()
    # the choice on the documents that it is scored on would be taken for a finding
    assert (table["fit_f1"] > table["f1"]).all()
    assert table["fit_f1"][0] > 2 * chance[0]


def test_thresholds_and_latents_are_the_best_there_are() -> None:
    draw = np.random.default_rng(2)
    n, d_sae = 1_500, 40
    documents = documents_of(n)
    hidden = draw.normal(size=(n, 5))
    values = np.maximum(hidden @ draw.normal(size=(5, d_sae)) + draw.normal(size=(n, d_sae)), 0)
    values = np.round(values, 1)  # many equal values
    present = hidden > [0, 0.5, 1, 1.5, 2]
    codes = [
        (latent, np.flatnonzero(values[:, latent]), values[values[:, latent] > 0, latent])
        for latent in range(d_sae)
    ]
    base = evidence_of(codes, documents, d_sae, truth_of(present, documents))
    table = coverage_table(base)
    for label in range(5):
        best = max(
            2 * (says & present[:, label]).sum() / (says.sum() + present[:, label].sum())
            for latent in range(d_sae)
            for threshold in np.unique(values[:, latent])
            for says in [values[:, latent] > threshold]
        )
        # latents are compared at 40 thresholds each, so the second best may be taken
        assert 0.97 * best <= table["fit_f1"][label] <= best + 1e-9
        latent, threshold = table["latent"][label], table["threshold"][label]
        says = values[:, latent].astype(np.float32) > threshold
        found = 2 * (says & present[:, label]).sum() / (says.sum() + present[:, label].sum())
        assert table["fit_f1"][label] == pytest.approx(found)


def test_documents_that_are_scored_have_no_part_in_the_choice() -> None:
    draw = np.random.default_rng(3)
    n, d_sae = 2_000, 50
    documents = documents_of(n)
    present = draw.random((n, 2)) < 0.1
    codes = random_codes(draw, n, d_sae, 8)
    halves = np.arange(N_DOCUMENTS) % 2 == 1
    second = halves[documents]
    planted = np.flatnonzero(present[:, 0] & second)
    codes.append((d_sae, planted, np.full(len(planted), 9.0)))
    base = evidence_of(codes, documents, d_sae + 1, truth_of(present, documents))
    counts = coverage(base).counts
    found = f1_scores(counts, np.stack([~halves, halves], axis=1).astype(int))
    # chosen on the second half it is never active on the first; the first half cannot choose it
    assert found[0, 0] == 0
    assert found[0, 1] < 0.3
    assert coverage_table(base)["latent"][0] == d_sae


def test_tokens_without_labels_count_in_nothing() -> None:
    draw = np.random.default_rng(4)
    n, d_sae = 1_000, 30
    documents = documents_of(n)
    present = draw.random((n, 2)) < 0.2
    known = draw.random(n) < 0.7
    codes = random_codes(draw, n, d_sae, 6)
    truth = truth_of(present, documents, known=known)
    other = dataclasses.replace(truth, present=np.where(known[:, None], present, ~present))
    base = evidence_of(codes, documents, d_sae, truth)
    table = coverage_table(base)
    again = coverage_table(dataclasses.replace(base, truth=other))
    assert table.equals(again)
    assert table["n_tokens"][0] == known.sum()
    assert table["n_positive"].tolist() == present[known].sum(0).tolist()
    # n of a measurement is that of the tokens which its value and its null are of
    assert METRICS["coverage_context"].n_tokens(base) == known.sum()
    assert METRICS["l0"].n_tokens(base) == n


def test_a_resample_weighs_what_is_scored_and_keeps_the_choice() -> None:
    draw = np.random.default_rng(5)
    n, d_sae = 2_000, 60
    documents = documents_of(n)
    present = draw.random((n, 3)) < 0.15
    base = evidence_of(
        random_codes(draw, n, d_sae, 8), documents, d_sae, truth_of(present, documents)
    )
    weights = draw.multinomial(N_DOCUMENTS, np.full(N_DOCUMENTS, 1 / N_DOCUMENTS), size=5).T
    columns = np.concatenate([np.ones((N_DOCUMENTS, 1)), weights], axis=1)
    values = METRICS["coverage_context"].values(base, columns)
    hits, false, missed = np.moveaxis(coverage(base).counts, 2, 0)
    for column, value in zip(columns.T, values, strict=True):
        f1 = 2 * hits @ column / ((2 * hits + false + missed) @ column)
        assert value == pytest.approx(f1.mean())


def test_null_is_the_lookup_on_the_same_labels_and_tokens() -> None:
    draw = np.random.default_rng(6)
    n, d_sae = 2_000, 30
    documents = documents_of(n)
    present = draw.random((n, 4)) < 0.2
    # a table that finds what is there with errors, and a latent that is this table
    table = present ^ (draw.random((n, 4)) < 0.05)
    truth = truth_of(present, documents, groups=("token", "token", "context", "rare"))
    truth.baselines["lookup"] = count_outcomes(table, present, documents, N_DOCUMENTS)
    codes = random_codes(draw, n, d_sae - 4, 6)
    for label in range(4):
        at = np.flatnonzero(table[:, label])
        codes.append((d_sae - 4 + label, at, np.ones(len(at))))
    base = evidence_of(codes, documents, d_sae, truth)
    for group in ("token", "context"):
        null = METRICS[f"coverage_{group}"].null_value(base)
        assert mean_f1(base, group) == pytest.approx(null)
    rows = coverage_table(base)
    np.testing.assert_allclose(rows["f1"][:3], rows["lookup_f1"][:3])
    assert rows["lookup_f1"].notna().all()
    assert rows["reason"].isna().tolist() == [True, True, True, False]
    assert rows.loc[3, ["f1", "latent", "threshold", "fit_f1"]].isna().all()
    assert tuple(rows.columns) == COVERAGE_COLUMNS


def test_says_why_there_is_no_coverage() -> None:
    documents = documents_of(200)
    present = np.zeros((200, 2), dtype=bool)
    present[::5, 0] = True
    codes: Codes = [(0, np.arange(50), np.ones(50))]
    bare = evidence_of(codes, documents, 2, None)
    with pytest.raises(NotEstimable, match="no labels"):
        mean_f1(bare)
    assert METRICS["coverage_token"].null_value(bare) is None
    assert list(coverage_table(bare).columns) == list(COVERAGE_COLUMNS)
    assert len(coverage_table(bare)) == 0
    base = dataclasses.replace(bare, truth=truth_of(present, documents))
    with pytest.raises(NotEstimable, match="group 'token'"):
        mean_f1(base, "token")
    table = coverage_table(base)
    assert table["reason"][1] == "no held-out token has the label"
    assert np.isnan(table["f1"][1])
    never = dataclasses.replace(
        base,
        offsets=np.zeros(201, dtype=np.int64),
        latents=base.latents[:0],
        values=base.values[:0],
        truth=truth_of(present[:, :1], documents),
    )
    assert mean_f1(never) == 0  # it looked and found nothing: a score, and no missing one
    assert coverage_table(never)["latent"].isna().all()


@pytest.mark.parametrize(
    ("values", "present", "n_positive", "expected"),
    [
        ([3.0, 2.0, 1.0], [True, True, False], 2, (1.0, 1.5)),
        ([3.0, 2.0, 1.0], [True, True, True], 4, (6 / 7, 0.0)),
        ([2.0, 2.0, 1.0], [True, False, False], 1, (2 / 3, 1.5)),
        ([2.0, 2.0], [False, True], 1, (2 / 3, 0.0)),
        ([], [], 3, (0.0, 0.0)),
        ([1.0], [False], 0, (0.0, 0.0)),
    ],
)
def test_best_threshold(
    values: list[float], present: list[bool], n_positive: int, expected: tuple[float, float]
) -> None:
    found = best_threshold(np.array(values), np.array(present, dtype=bool), n_positive)
    assert found == pytest.approx(expected)


def test_f1_is_undefined_where_the_label_does_not_occur() -> None:
    counts = np.array([[[3, 1, 0], [0, 4, 0]], [[0, 2, 5], [0, 0, 0]]])
    weights = np.array([[1, 1], [1, 0], [0, 1]]).T
    expected = np.array([[6 / 11, 6 / 7, np.nan], [0, 0, np.nan]])
    np.testing.assert_allclose(f1_scores(counts, weights), expected)


def test_truth_refuses_what_does_not_fit() -> None:
    documents = documents_of(100)
    truth = truth_of(np.zeros((100, 2), dtype=bool), documents)
    with pytest.raises(ValueError, match="groups"):
        dataclasses.replace(truth, groups=("token", "sometimes"))
    with pytest.raises(ValueError, match="present"):
        dataclasses.replace(truth, names=("a",), groups=("token",))
    with pytest.raises(ValueError, match="other tokens"):
        evidence_of([(0, np.arange(5), np.ones(5))], documents[:50], 2, truth)
