"""All baselines of one arm together, on activations whose structure is planted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from sae_placebo.baselines import (
    BASELINES,
    BaselinesResult,
    BaselinesSpec,
    DocumentBits,
    best_simpler,
    bits_saved,
    compare_baselines,
    marginal_structure,
)
from sae_placebo.baselines.compare import COLUMNS, SAE_BASELINE, Coded
from sae_placebo.core.errors import NotEstimable
from sae_placebo.data.labels.base import Labels
from sae_placebo.data.rows import Rows
from sae_placebo.latents.base import Encoded, Folds, TokenTable
from sae_placebo.saes import SAE
from sae_placebo.saes.topk import TopKSpec

D, M, K, VOCABULARY, N_DOCUMENTS, LENGTH = 24, 96, 3, 30, 40, 61
SPEC = BaselinesSpec(
    k=K,
    n_atoms=64,
    nmf_atoms=16,
    iterations=5,
    fit_tokens=1200,
    choose_tokens=600,
    score_tokens=600,
    sae_pursuit_tokens=100,
    coded_tokens=60,
    distortions=(0.05,),
    shares_of_k=(0.34, 1.0),
)


def tokens(labeled: bool = True) -> TokenTable:
    random = np.random.default_rng(0)
    ids = random.integers(0, VOCABULARY, (N_DOCUMENTS, LENGTH)).astype(np.int32)
    labels = None
    if labeled:
        # one label that only context decides, one that the token decides
        bits = np.stack([random.random(ids.shape) < 0.3, ids % 3 == 0], axis=-1)
        packed = np.packbits(bits, axis=-1, bitorder="little")
        labels = Labels(("context", "token"), packed, np.ones(ids.shape, dtype=bool))
    rows = Rows(
        ids,
        np.full(N_DOCUMENTS, LENGTH, np.int32),
        np.arange(N_DOCUMENTS, dtype=np.int32),
        tuple(f"d{i}" for i in range(N_DOCUMENTS)),
        labels,
    )
    places = np.argwhere(rows.usable()).astype(np.int64)
    return TokenTable(rows, places, tuple(str(i) for i in range(VOCABULARY)))


def planted(table: TokenTable, sparse: bool) -> tuple[np.ndarray, Encoded]:
    """Return activations and an SAE with the true directions; without structure, a Gaussian's."""
    random = np.random.default_rng(1)
    rows = random.standard_normal((M, D)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    n = len(table)
    atoms = np.argsort(random.random((n, M)), axis=1)[:, :K]
    if table.labels is not None:
        # atom 0 is on exactly where the label of context holds
        atoms[:, 0] = np.where(table.labels.at(table.places)[:, 0], 0, atoms[:, 0] % (M - 1) + 1)
    values = (1 + random.random((n, K))).astype(np.float32)
    owner = np.repeat(np.arange(n), K)
    codes = csr_matrix((values.ravel(), (owner, atoms.ravel())), shape=(n, M), dtype=np.float32)
    x = np.asarray(codes @ rows, dtype=np.float32)
    x += 0.02 * random.standard_normal(x.shape).astype(np.float32)
    if not sparse:
        root = np.linalg.cholesky(np.cov(x.T)).T
        x = (random.standard_normal(x.shape) @ root).astype(np.float32)
    params = {
        "W_enc": torch.from_numpy(rows.T.copy()),
        "b_enc": torch.zeros(M),
        "W_dec": torch.from_numpy(rows),
        "b_dec": torch.zeros(D),
    }
    sae = SAE(TopKSpec(d_sae=M, k=K), params)
    if not sparse:
        found = sae.encode(torch.from_numpy(x))
        codes = csr_matrix(
            (found.values.numpy(), found.latents.numpy(), found.offsets.numpy()), shape=(n, M)
        )
    return x, Encoded(sae, table, codes, torch.from_numpy(x))


def run(sparse: bool, **changes: object) -> tuple[BaselinesResult, TokenTable]:
    table = tokens()
    x, reading = planted(table, sparse)
    folds = Folds.of(table.documents, table.n_documents, 0)
    spec = SPEC.model_copy(update=changes)
    embeddings = np.random.default_rng(5).standard_normal((VOCABULARY, D)).astype(np.float32)
    return compare_baselines(x, table, folds, {"one": reading}, embeddings, 0, spec), table


@pytest.fixture(scope="module")
def arms() -> tuple[BaselinesResult, BaselinesResult]:
    return run(True)[0], run(False)[0]


def test_every_method_has_a_row_and_every_number_is_in_range(
    arms: tuple[BaselinesResult, BaselinesResult],
) -> None:
    for found in arms:
        table = found.table
        assert tuple(table.columns) == COLUMNS
        assert list(table["baseline"]) == [*BASELINES, SAE_BASELINE]
        assert table["reason"].isna().all()
        np.testing.assert_allclose(table["reached_distortion"].dropna(), 0.05, rtol=0.01)
        parts = table[["bits_indices", "bits_values", "bits_residual"]].sum(axis=1)
        np.testing.assert_allclose(parts, table["bits"], rtol=1e-9)
        assert ((table["bits_low"] < table["bits"]) & (table["bits"] < table["bits_high"])).all()
        sparse = table[table["baseline"] != "pca_dense"]
        assert (sparse["explained_variance"] <= 1).all()
        assert (sparse["sparsity"] <= K + 1e-9).all()
        assert (sparse["probe_labels"] == 2).all()


def test_marginal_structure_is_what_was_planted(
    arms: tuple[BaselinesResult, BaselinesResult],
) -> None:
    weights = np.random.default_rng(2).multinomial(40, [1 / 40] * 40, size=50).T.astype(float)
    weights[:, 0] = 1
    saved = [bits_saved(found.of_sae("one", 0.05), found.simpler(0.05), weights) for found in arms]
    # the true directions save bits where sparse sums are planted, and none on a Gaussian
    assert saved[0][0] > 8
    assert saved[1][0] < 1
    found = marginal_structure(saved[0], saved[1])
    assert found[0] == pytest.approx(saved[0][0] - saved[1][0])
    assert np.percentile(found[1:], 2.5) > 6
    # without weights of documents, bits per token are those of the table
    table = arms[0].table.set_index("baseline")
    own = arms[0].bits[Coded(SAE_BASELINE, "one", 0.05)]
    assert own.per_token(weights)[0] == pytest.approx(table.loc[SAE_BASELINE, "bits"])


def test_fidelity_and_probes_tell_the_true_directions(
    arms: tuple[BaselinesResult, BaselinesResult],
) -> None:
    table = arms[0].table.set_index("baseline")
    sae, random = table.loc[SAE_BASELINE], table.loc["random"]
    assert sae["explained_variance"] > 0.97 > random["explained_variance"]
    # no token id tells these activations, so the table explains about nothing
    assert sae["lookup_relative_ev"] == pytest.approx(sae["explained_variance"], abs=0.02)
    assert sae["pursuit_ev"] > 0.97
    # of the two labels one is an atom's, the other no atom knows
    assert sae["probe_auc_1"] == pytest.approx((1 + 0.5) / 2, abs=0.05)
    assert sae["probe_selectivity_1"] > 0.15
    assert random["probe_auc_1"] < 0.68


def test_the_same_settings_give_the_same_numbers() -> None:
    first, second = run(True)[0], run(True)[0]
    assert first.table.equals(second.table)


def test_what_cannot_be_had_is_said() -> None:
    table = tokens(labeled=False)
    x, _ = planted(table, True)
    folds = Folds.of(table.documents, table.n_documents, 0)
    found = compare_baselines(x, table, folds, {}, None, 0, SPEC).table.set_index("baseline")
    assert found.loc["embeddings", "reason"] == "the rows of W_E are not known for this arm"
    assert np.isnan(found.loc["embeddings", "bits"])
    assert found.loc["pca", "probe_reason"].startswith("the text has no labels")
    few = TokenTable(table.rows, table.places[:60], table.vocabulary)
    with pytest.raises(NotEstimable, match="hold out more documents"):
        compare_baselines(x[:60], few, folds, {}, None, 0, SPEC)
    same = np.full(x.shape, 0.1, dtype=np.float32)
    for _ in range(2):
        with pytest.raises(NotEstimable, match="do not vary"):
            compare_baselines(same.astype(x.dtype), table, folds, {}, None, 0, SPEC)
        same[::7] = np.nextafter(same[::7], np.float32(1))  # and up to rounding


def test_the_best_simpler_method_is_the_shortest() -> None:
    ones = np.ones(3)
    simpler = {
        "a": DocumentBits(np.array([9.0, 9, 9]), ones),
        "b": DocumentBits(np.array([5.0, 7, 6]), ones),
    }
    sae = DocumentBits(np.array([4.0, 4, 4]), ones)
    assert best_simpler(simpler) == "b"
    weights = np.array([[1.0, 2], [1, 0], [1, 1]])
    np.testing.assert_allclose(bits_saved(sae, simpler, weights), [2, 16 / 3 - 4])
    low, high = simpler["b"].interval
    assert low < 6 < high
    with pytest.raises(NotEstimable, match="no simpler baseline"):
        best_simpler({})
