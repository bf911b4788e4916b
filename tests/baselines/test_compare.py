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
    Choice,
    FitText,
    Given,
    compare_baselines,
)
from sae_placebo.baselines.compare import COLUMNS, ENCODER, PURSUIT, methods_frame
from sae_placebo.baselines.document_bits import DocumentBits
from sae_placebo.baselines.marginal import BEST, COMMON, Gain, Marginal, Priced
from sae_placebo.baselines.savings import DECLARED, beyond_methods, saved
from sae_placebo.baselines.settings import FEWEST_TOKENS
from sae_placebo.baselines.token_table import TOKEN_TABLE
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
    probe_tokens=600,
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


def run(
    sparse: bool,
    text: FitText | None = None,
    common: Choice | None = None,
    x: np.ndarray | None = None,
    **changes: object,
) -> tuple[BaselinesResult, TokenTable]:
    table = tokens()
    drawn, reading = planted(table, sparse)
    folds = Folds.of(table.documents, table.n_documents, 0)
    spec = SPEC.model_copy(update=changes)
    embeddings = np.random.default_rng(5).standard_normal((VOCABULARY, D)).astype(np.float32)
    read = drawn if x is None else x
    given = Given(embeddings, text, common)
    return compare_baselines(read, table, folds, {"one/0": reading}, given, 0, spec), table


@pytest.fixture(scope="module")
def arms() -> tuple[BaselinesResult, BaselinesResult]:
    return run(True)[0], run(False)[0]


def test_every_method_has_a_row_and_every_number_is_in_range(
    arms: tuple[BaselinesResult, BaselinesResult],
) -> None:
    for found in arms:
        table = found.table
        assert tuple(table.columns) == COLUMNS
        assert list(table["baseline"]) == [*BASELINES, "sae", "sae"]
        assert list(table["coding"][-2:]) == [ENCODER, PURSUIT]
        said = f"settings were chosen on 600 tokens, fewer than {FEWEST_TOKENS}"
        assert set(table["reason"]) == {said}
        assert found.caveat == said
        assert (table["reached_distortion"] < 0.0505).all()
        parts = table[["bits_indices", "bits_values", "bits_residual"]].sum(axis=1)
        np.testing.assert_allclose(parts, table["bits"], rtol=1e-9)
        assert ((table["bits_low"] < table["bits"]) & (table["bits"] < table["bits_high"])).all()
        sparse = table[table["n_atoms"] > 0]
        assert (sparse["explained_variance"] <= 1).all()
        assert (sparse["sparsity"] <= K + 1e-9).all()
        assert (sparse["probe_labels"].dropna() == 2).all()
        # no id tells these activations: its bits are spent for nothing
        ids = table.set_index("baseline").loc[[TOKEN_TABLE, "pca_dense"]]
        assert ids["bits_indices"].iloc[0] == pytest.approx(np.log2(VOCABULARY), abs=0.3)
        assert ids["bits_residual"].iloc[0] == pytest.approx(ids["bits"].iloc[1], abs=1.5)


def weights_of_documents() -> np.ndarray:
    draws = np.random.default_rng(2).multinomial(40, [1 / 40] * 40, size=50).T.astype(float)
    draws[:, 0] = 1
    return draws


def test_marginal_structure_is_what_was_planted(
    arms: tuple[BaselinesResult, BaselinesResult],
) -> None:
    weights = weights_of_documents()
    spec = SPEC.model_copy(update={})
    (sparse, drawn), (gaussian, _) = (saved(found, "one/0", weights, spec) for found in arms)
    values = [table.set_index("metric")["value"] for table in (sparse, gaussian)]
    assert set(values[0].index) == set(DECLARED)
    # the true directions save bits where sparse sums are planted, beyond every method and beyond a Gaussian
    above = "marginal_structure_above_gaussian"
    assert values[0][above] > 8
    assert np.percentile(drawn[above][1:], 2.5) > 6
    found = arms[0].marginal
    for method in ("kmeans", "random", "covariance"):  # with as many latents as there are atoms
        assert found.gain("one/0", method).bits(weights)[0] > 8
    # on a Gaussian they save what they save on another Gaussian of the same covariance
    assert abs(values[1][above]) < 1.5
    gains = [float(one.marginal.gain("one/0").bits(weights)[0]) for one in arms]
    assert gains[1] < 1.5
    dense = arms[0].table.set_index("baseline").loc["pca_dense", "bits"]
    assert values[0]["marginal_structure_share"] == pytest.approx(gains[0] / dense)
    # one recipe is the envelope of itself, and is not told twice
    assert np.isnan(values[0]["marginal_structure_envelope"])
    assert "one recipe" in sparse.set_index("metric").loc["marginal_structure_envelope", "reason"]
    table = arms[0].table.set_index(["baseline", "coding"])
    assert values[0]["sae_bits"] == pytest.approx(table.loc[("sae", ENCODER), "bits"])
    assert values[0]["sae_pursuit_bits"] == pytest.approx(table.loc[("sae", PURSUIT), "bits"])


def test_the_rows_beyond_methods_have_both_dictionaries_and_the_best_of_them(
    arms: tuple[BaselinesResult, BaselinesResult],
) -> None:
    rows, drawn = beyond_methods(arms[0], "one/0", weights_of_documents())
    by_method = {row["baseline"]: row for row in rows}
    assert set(by_method) == set(BASELINES.entries) - {"pca_dense", TOKEN_TABLE} | {BEST, COMMON}
    best = by_method[BEST]
    assert best["method"] in by_method
    chosen = {
        name: arms[0].marginal.gain("one/0", name).doubled.chosen_bits
        for name in by_method
        if name not in (BEST, COMMON)
    }
    assert best["method"] == min(chosen, key=lambda name: chosen[name])
    # those whose size is free have twice the atoms that the settings say, the others their own
    assert by_method["random"]["n_atoms"] == 2 * 64
    assert by_method["pca"]["n_atoms"] == D
    gain = best["bits_doubled"] - best["bits_joined"]
    assert drawn["best/bits"][0] == pytest.approx(gain)
    assert drawn["best/share"][0] == pytest.approx(gain / best["bits_pca"])


def priced(bits: float, chosen: float) -> Priced:
    return Priced(DocumentBits(np.full(3, float(bits)), np.ones(3)), float(chosen), 2)


def test_the_envelope_is_of_the_saes_of_a_seed_and_chosen_on_other_documents() -> None:
    dense = DocumentBits(np.full(3, 20.0), np.ones(3))
    # the second recipe promises fewer bits and keeps it; the third would keep more than it promises
    joined = {"a/0": (9.0, 8.0), "b/0": (6.0, 5.0), "c/0": (2.0, 7.0), "b/1": (1.0, 1.0)}
    gains = {
        (name, "kmeans"): Gain("kmeans", 4, dense, priced(12, 12), priced(10, 9), priced(*bits))
        for name, bits in joined.items()
    }
    kmeans = Choice("kmeans", 4)
    chance: dict[tuple[str, str], Gain | str] = {
        (name, "kmeans"): Gain("kmeans", 4, dense, priced(22, 22), priced(20, 20), priced(19, 19))
        for name in joined
    }
    found = BaselinesResult(methods_frame([]), {}, Marginal(gains, kmeans, kmeans, chance), 2, 3)
    weights = np.array([[1.0, 2], [1, 1], [1, 0]])
    for name in ("a/0", "b/0", "c/0"):
        table, drawn = saved(found, name, weights, SPEC)
        values = table.set_index("metric")
        assert values.loc["marginal_structure_envelope", "value"] == 10 - 6
        assert values.loc["bits_added_by_latents", "value"] == 12 - joined[name][0]
        assert values.loc["marginal_structure_above_gaussian", "value"] == 9 - joined[name][0]
        np.testing.assert_allclose(drawn["marginal_structure_share"], (10 - joined[name][0]) / 20)
        assert values.loc["sae_bits", "reason"] == "its bits cannot be counted: it was not coded"


def test_a_method_without_a_code_of_half_its_atoms_still_has_a_gain() -> None:
    dense = DocumentBits(np.full(3, 20.0), np.ones(3))
    gain = Gain("kmeans", 4, dense, "kmeans with half: no optimum", priced(10, 9), priced(7, 7))
    kmeans = Choice("kmeans", 4)
    one = ("a/0", "kmeans")
    marginal = Marginal({one: gain}, kmeans, kmeans, {one: gain})
    found = BaselinesResult(methods_frame([]), {}, marginal, 2, 3)
    values = saved(found, "a/0", np.ones((3, 1)), SPEC)[0].set_index("metric")
    assert np.isnan(values.loc["bits_added_by_latents", "value"])
    assert values.loc["bits_added_by_latents", "reason"] == "kmeans with half: no optimum"
    assert values.loc["marginal_structure_share", "value"] == (10 - 7) / 20
    row = beyond_methods(found, "a/0", np.ones((3, 1)))[0][0]
    assert row["reason"] == "kmeans with half: no optimum"
    assert "bits_halved" not in row
    assert row["bits_doubled"] - row["bits_joined"] == 3


def test_arms_are_compared_beyond_one_method_of_one_size(
    arms: tuple[BaselinesResult, BaselinesResult],
) -> None:
    weights = weights_of_documents()
    best = arms[0].marginal.best
    other = next(name for name in ("neurons", "pca", "random") if name != best.method)
    same = run(True, common=Choice(other, 2 * 64 if other == "random" else D))[0]
    assert same.marginal.best == best
    drawn, gains = saved(same, "one/0", weights, SPEC)[1], same.marginal
    beyond = gains.gain("one/0", other).bits(weights)
    chance = gains.gain("one/0", COMMON, by_chance=True).bits(weights)
    np.testing.assert_array_equal(drawn["marginal_structure_above_gaussian"], beyond - chance)
    rows, _ = beyond_methods(same, "one/0", weights)
    assert [row["method"] for row in rows[-2:]] == [best.method, other]
    # elsewhere it has another size, or could not be fitted, or the trained arm has none
    for common, why in (
        (Choice(other, 6), f"{other} has .* atoms here and 6 in the trained arm"),
        (Choice("ica_of_old", 6), "ica_of_old was not fitted"),
        (Choice(None, reason="kmeans: too long"), "kmeans: too long"),
    ):
        marginal = Marginal(gains.gains, best, common, gains.gaussian)
        with pytest.raises(NotEstimable, match=why):
            marginal.gain("one/0")


def test_methods_are_fitted_on_the_text_and_not_on_what_is_held_out() -> None:
    table = tokens()
    x, reading = planted(table, True)
    folds = Folds.of(table.documents, table.n_documents, 0)
    there = np.flatnonzero(folds.purposes[table.documents] == 0)
    text = FitText(x.copy(), there, table.ids[there], {"one/0": reading.codes[there]}, 2_000)
    found = run(True, text)[0]
    fitted = (
        f"methods were fitted on {SPEC.fit_tokens} of the 2000 tokens that SAEs were trained on"
    )
    assert found.caveat is not None
    assert found.caveat.endswith(fitted)
    # what is held out elsewhere moves no dictionary: documents to fit on are scored, not fitted on
    moved = x.copy()
    moved[folds.purposes[table.documents] != 1] *= 1.5
    table_of = {
        name: run(True, text, x=moved if name == "moved" else None)[0].table
        for name in ("same", "moved")
    }
    sizes = [one.set_index("baseline")["bits_dictionary"] for one in table_of.values()]
    assert sizes[0].equals(sizes[1])
    ev = [one.set_index("baseline")["explained_variance"] for one in table_of.values()]
    assert ev[0]["pca"] == pytest.approx(ev[1]["pca"], abs=2e-3)
    # but the text moves them
    noise = np.random.default_rng(9).standard_normal(x.shape).astype(np.float32)
    other = FitText(noise, there, table.ids[there], text.codes, None)
    worse = run(True, other)[0].table.set_index("baseline")["explained_variance"]
    assert worse["kmeans"] < ev[0]["kmeans"] - 0.1


def test_a_finer_grid_moves_marginal_structure_by_less_than_half_its_interval(
    arms: tuple[BaselinesResult, BaselinesResult],
) -> None:
    ones = np.ones((N_DOCUMENTS, 1))
    finer = run(True, settings_per_octave=4)[0].marginal
    for method in ("kmeans", "random", BEST):
        gains = [found.gain("one/0", method) for found in (arms[0].marginal, finer)]
        moved = abs(float(gains[0].bits(ones)[0] - gains[1].bits(ones)[0]))
        low, high = gains[0].doubled.documents.less(gains[0].joined.documents).interval
        assert moved < (high - low) / 4


def test_fidelity_and_probes_tell_the_true_directions(
    arms: tuple[BaselinesResult, BaselinesResult],
) -> None:
    table = arms[0].table.set_index(["baseline", "coding"])
    sae, random = table.loc[("sae", ENCODER)], table.loc[("random", PURSUIT)]
    assert sae["explained_variance"] > 0.97 > random["explained_variance"]
    # no token id tells these activations, so the table explains about nothing
    assert sae["lookup_relative_ev"] == pytest.approx(sae["explained_variance"], abs=0.02)
    assert sae["pursuit_ev"] > 0.97
    assert table.loc[("sae", PURSUIT), "explained_variance"] > 0.97
    # of the two labels one is an atom's, the other no atom knows
    assert sae["probe_auc_1"] == pytest.approx((1 + 0.5) / 2, abs=0.05)
    assert sae["probe_selectivity_1"] > 0.15
    assert random["probe_auc_1"] < 0.68


def test_the_same_settings_give_the_same_numbers(
    arms: tuple[BaselinesResult, BaselinesResult],
) -> None:
    assert run(True)[0].table.equals(arms[0].table)


def test_what_cannot_be_had_is_said() -> None:
    table = tokens(labeled=False)
    x, _ = planted(table, True)
    folds = Folds.of(table.documents, table.n_documents, 0)
    found = compare_baselines(x, table, folds, {}, Given(), 0, SPEC).table.set_index("baseline")
    reason = found.loc["embeddings", "reason"]
    assert reason.startswith("the rows of W_E are not known for this arm")
    assert np.isnan(found.loc["embeddings", "bits"])
    assert found.loc["pca", "probe_reason"].startswith("the text has no labels")
    few = TokenTable(table.rows, table.places[:60], table.vocabulary)
    with pytest.raises(NotEstimable, match="hold out more documents"):
        compare_baselines(x[:60], few, folds, {}, Given(), 0, SPEC)
    same = np.full(x.shape, 0.1, dtype=np.float32)
    for _ in range(2):
        with pytest.raises(NotEstimable, match="do not vary"):
            compare_baselines(same.astype(x.dtype), table, folds, {}, Given(), 0, SPEC)
        same[::7] = np.nextafter(same[::7], np.float32(1))  # and up to rounding
