"""What every registered metric promises."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from sae_placebo.core.errors import NotEstimable
from sae_placebo.data.labels.truth import count_outcomes
from sae_placebo.latents.metrics import METRICS, Evidence, Metric, TokenLabels, measure

D_IN, VOCABULARY = 6, [f" word{index}" for index in range(40)] + ["Word3", " words5", "##word7"]

every_metric = pytest.mark.parametrize("metric", METRICS.entries.values(), ids=list(METRICS))


def evidence(seed: int = 0, n_documents: int = 12, d_sae: int = 30, **changes: Any) -> Evidence:
    """Return random evidence in which latents 0 to 9 follow a token and the last is dead."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(15, 60, n_documents)
    documents = np.repeat(np.arange(n_documents, dtype=np.int32), lengths)
    n = len(documents)
    rates = 1 / np.arange(1, len(VOCABULARY) + 1)
    tokens = draw.choice(len(VOCABULARY), n, p=rates / rates.sum()).astype(np.int32)
    active = draw.random((n, d_sae)) < 0.05
    active[:, 1] = draw.random(n) < 0.6
    for latent in range(2, 10):
        active[:, latent] = tokens == latent
    active[:, -1] = False
    values = draw.lognormal(size=(n, d_sae)).astype(np.float32) * active
    x, x_hat = draw.normal(1, 1, (n, D_IN)), draw.normal(1, 0.3, (n, D_IN))
    fields: dict[str, Any] = {
        "token_ids": tokens,
        "documents": documents,
        "n_documents": n_documents,
        "offsets": np.append(0, np.cumsum((values > 0).sum(1))).astype(np.int64),
        "latents": np.nonzero(values)[1].astype(np.int64),
        "values": values[values > 0],
        "d_sae": d_sae,
        "vocabulary": VOCABULARY,
        "squared_error": per_document(documents, ((x - x_hat) ** 2).sum(1), n_documents),
        "activation_sum": np.stack(
            [per_document(documents, x[:, j], n_documents) for j in range(D_IN)], axis=1
        ),
        "activation_energy": per_document(documents, (x**2).sum(1), n_documents),
        "lookup_error": per_document(documents, draw.random(n) * D_IN, n_documents),
        "gaussian_null_ev": 0.2,
        "gaussian_null_tokens": n,
        "truth": truth(draw, tokens, documents, n_documents),
    }
    return Evidence(**(fields | changes))


def truth(
    draw: np.random.Generator, tokens: np.ndarray, documents: np.ndarray, n_documents: int
) -> TokenLabels:
    """Return one label per group, each missed on some tokens by the latent that follows a token.

    That latent is wrong nowhere, so it is the best one at threshold 0 on any documents: metrics that
    choose choose the same on a resample.
    """
    present = (tokens[:, None] == [2, 3, 4, 5]) | (draw.random((len(tokens), 4)) < 0.01)
    known = draw.random(len(tokens)) < 0.9
    lookup = (tokens[:, None] == [2, 3, 4, 5])[known]
    counts = count_outcomes(lookup, present[known], documents[known], n_documents)
    return TokenLabels(
        names=("two", "three", "four", "five"),
        groups=("token", "window", "context", "rare"),
        present=present,
        known=known,
        baselines={"lookup": counts, "bigram": counts, "window": counts},
        second_half=np.arange(n_documents) % 2 == 1,
    )


def per_document(documents: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
    return np.bincount(documents, weights=values, minlength=n)


def weights(n_documents: int, seed: int = 1, replicates: int = 7) -> np.ndarray:
    draws = np.random.default_rng(seed).multinomial(
        n_documents, np.full(n_documents, 1 / n_documents), size=replicates
    )
    return np.concatenate([np.ones((1, n_documents)), draws]).T


def with_codes(
    base: Evidence,
    rows: np.ndarray,
    latent_of: np.ndarray | None = None,
    **changes: Any,
) -> Evidence:
    """Return the evidence with its tokens at `rows`, in that order, latents renumbered."""
    spans = [np.arange(base.offsets[row], base.offsets[row + 1]) for row in rows]
    codes = np.concatenate(spans) if len(spans) else np.arange(0)
    latents = base.latents[codes]
    labels = dataclasses.replace(
        base.truth, present=base.truth.present[rows], known=base.truth.known[rows]
    )
    fields: dict[str, Any] = {
        "token_ids": base.token_ids[rows],
        "documents": base.documents[rows],
        "offsets": np.append(0, np.cumsum([len(span) for span in spans])).astype(np.int64),
        "latents": latents if latent_of is None else latent_of[latents],
        "values": base.values[codes],
        "truth": labels,
    }
    return dataclasses.replace(base, **(fields | changes))


def copied(base: Evidence, times: np.ndarray) -> Evidence:
    """Return the evidence with document d there times[d] times, as documents of their own."""
    order = np.repeat(np.arange(base.n_documents), times)
    rows = [np.flatnonzero(base.documents == document) for document in order]
    sums = ("squared_error", "activation_sum", "activation_energy", "lookup_error")
    tokens = np.concatenate(rows)
    labels = dataclasses.replace(
        base.truth,
        present=base.truth.present[tokens],
        known=base.truth.known[tokens],
        baselines={name: counts[:, order] for name, counts in base.truth.baselines.items()},
        second_half=base.truth.second_half[order],
    )
    return with_codes(
        base,
        tokens,
        truth=labels,
        documents=np.repeat(np.arange(len(order), dtype=np.int32), [len(row) for row in rows]),
        n_documents=len(order),
        **{name: getattr(base, name)[order] for name in sums},
    )


@every_metric
def test_declares_what_a_reader_needs(metric: Metric) -> None:
    assert METRICS[metric.name] is metric
    for text in (metric.unit, metric.null, metric.definition, metric.source):
        assert text
    assert metric.better in {"higher", "lower", "neither"}
    null = metric.null_value(evidence())
    assert null is None or np.isfinite(null)


@every_metric
def test_order_of_latents_does_not_matter(metric: Metric) -> None:
    base, columns = evidence(), weights(12)
    order = np.random.default_rng(5).permutation(base.d_sae)
    renumbered = with_codes(base, np.arange(base.n_tokens), order)
    np.testing.assert_allclose(
        metric.values(renumbered, columns), metric.values(base, columns), rtol=1e-5
    )


@every_metric
def test_order_of_tokens_in_a_document_does_not_matter(metric: Metric) -> None:
    base, columns = evidence(), weights(12)
    keys = np.random.default_rng(6).random(base.n_tokens)
    shuffled = with_codes(base, np.lexsort((keys, base.documents)))
    np.testing.assert_allclose(
        metric.values(shuffled, columns), metric.values(base, columns), rtol=1e-5
    )


@every_metric
def test_order_of_codes_in_a_token_does_not_matter(metric: Metric) -> None:
    base, columns = evidence(), weights(12)
    order = np.lexsort((-base.values, base.code_tokens))
    shuffled = dataclasses.replace(base, latents=base.latents[order], values=base.values[order])
    np.testing.assert_allclose(
        metric.values(shuffled, columns), metric.values(base, columns), rtol=1e-5
    )


@every_metric
def test_a_weight_is_a_multiplicity(metric: Metric) -> None:
    base, columns = evidence(), weights(12)
    for replicate in range(columns.shape[1]):
        times = columns[:, replicate].astype(int)
        again = copied(base, times)
        np.testing.assert_allclose(
            metric.values(base, np.stack([np.ones(12), columns[:, replicate]], axis=1))[1],
            metric.values(again, np.ones((again.n_documents, 1)))[0],
            rtol=1e-4,
        )


@every_metric
def test_a_column_does_not_depend_on_its_neighbors(metric: Metric) -> None:
    base, columns = evidence(), weights(12)
    alone = metric.values(base, columns[:, :1])
    np.testing.assert_allclose(metric.values(base, columns)[0], alone[0], rtol=1e-6)


@every_metric
@pytest.mark.parametrize(
    "case", ["no tokens", "all dead", "one document", "an empty document", "one token"]
)
def test_finite_or_a_reason(metric: Metric, case: str) -> None:
    base = evidence(n_documents=1 if case == "one document" else 12)
    if case == "no tokens":
        base = with_codes(base, np.arange(0))
    elif case == "one token":
        base = with_codes(base, np.arange(1))
    elif case == "all dead":
        base = dataclasses.replace(
            base,
            offsets=np.zeros_like(base.offsets),
            latents=base.latents[:0],
            values=base.values[:0],
        )
    elif case == "an empty document":
        base = with_codes(base, np.flatnonzero(base.documents != 3))
    try:
        found = metric.values(base, weights(base.n_documents))
    except NotEstimable as refusal:
        reason = str(refusal)
        assert len(reason) > 10
        return
    assert np.isfinite(found[0])
    assert case != "no tokens"


@every_metric
def test_a_resample_without_tokens_is_undefined_and_not_zero(metric: Metric) -> None:
    base = copied(evidence(), np.ones(12, dtype=int))
    left = np.arange(12) != 3
    sums = ("squared_error", "activation_energy", "lookup_error")
    base = with_codes(
        base,
        np.flatnonzero(base.documents != 3),
        activation_sum=base.activation_sum * left[:, None],
        **{name: getattr(base, name) * left for name in sums},
    )
    found = metric.values(base, np.stack([np.ones(12), 12.0 * ~left], axis=1))
    assert np.isfinite(found[0])
    assert np.isnan(found[1])


def test_measure_reports_reasons() -> None:
    bare = dataclasses.replace(evidence(), gaussian_null_ev=None, lookup_error=None, truth=None)
    found = measure(bare, weights(12))
    assert list(found) == list(METRICS)
    for name in (
        "explained_variance_above_gaussian",
        "lookup_relative_explained_variance",
        "coverage_context",
    ):
        assert found[name].values is None
        assert found[name].reason
    assert found["explained_variance"].values is not None
    assert found["explained_variance"].null_value is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offsets": np.zeros(3, dtype=np.int64)}, "number of tokens"),
        ({"d_sae": 2}, "outside 0 to d_sae"),
        ({"vocabulary": ["a"]}, "vocabulary"),
        ({"n_documents": 13}, "13"),
    ],
)
def test_refuses_parts_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(evidence(), **changes)
