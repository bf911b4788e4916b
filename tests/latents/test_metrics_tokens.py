"""Token statistics of latents against worked cases, and their null against simulation."""

from __future__ import annotations

import numpy as np
import pytest

from sae_placebo.latents.classes.classification import CLASS_NAMES, classify
from sae_placebo.latents.metrics import METRICS, Evidence, latent_table, token_statistics
from sae_placebo.latents.metrics.entropy_null import entropy_null
from sae_placebo.latents.metrics.token_families import fold, token_families

Codes = list[tuple[int, int, float]]


def evidence(
    tokens: np.ndarray, codes: Codes, d_sae: int, documents: np.ndarray, vocabulary: list[str]
) -> Evidence:
    """Return evidence with codes given as (position, latent, value)."""
    codes = sorted(codes)
    position = np.array([code[0] for code in codes], dtype=np.int64)
    counts = np.bincount(position, minlength=len(tokens))
    n_documents = int(documents.max()) + 1
    return Evidence(
        token_ids=tokens.astype(np.int32),
        documents=documents.astype(np.int32),
        n_documents=n_documents,
        offsets=np.append(0, np.cumsum(counts)).astype(np.int64),
        latents=np.array([code[1] for code in codes], dtype=np.int64),
        values=np.array([code[2] for code in codes], dtype=np.float32),
        d_sae=d_sae,
        vocabulary=vocabulary,
        squared_error=np.ones(n_documents),
        activation_sum=np.ones((n_documents, 2)),
        activation_energy=np.ones(n_documents),
    )


def test_statistics_by_hand() -> None:
    tokens = np.array([0, 0, 1, 2, 0, 1])
    vocabulary = [" dog", "Dogs", " cat"]
    # latent 0: 2 on the first dog, 2 on both Dogs, 2 on cat. latent 1: never. latent 2: 1 and 3.
    codes: Codes = [(0, 0, 2.0), (2, 0, 2.0), (5, 0, 2.0), (3, 0, 2.0), (0, 2, 1.0), (4, 2, 3.0)]
    base = evidence(tokens, codes, 3, np.array([0, 0, 0, 1, 1, 1]), vocabulary)
    table = latent_table(base)

    first = table.iloc[0]
    assert first["n_active"] == 4
    assert first["density"] == pytest.approx(4 / 6)
    assert first["token_entropy_bits"] == pytest.approx(1.5)  # shares 1/4, 1/2, 1/4
    assert first["effective_tokens"] == pytest.approx(2**1.5)
    assert first["n_effective"] == pytest.approx(4)
    assert first["top_token"] == "Dogs"
    assert first["top_token_mass"] == pytest.approx(0.5)
    assert first["top_token_recall"] == pytest.approx(1)
    assert first["family_mass"] == pytest.approx(0.75)
    assert first["mean_activation"] == first["max_activation"] == pytest.approx(2)

    dead = table.iloc[1]
    assert "class" not in table
    assert classify(table)[1] == "dead"
    assert dead[["n_tokens", "n_active", "density"]].tolist() == [6, 0, 0]
    missing = table.columns[table.columns.get_loc("token_entropy_bits") :]
    assert dead[missing].isna().all()

    last = table.iloc[2]
    assert last["token_entropy_bits"] == 0
    assert last["top_token_recall"] == pytest.approx(2 / 3)
    # 1/4 and 3/4: 2 - 3/4 log2 3 bits
    assert np.log2(last["n_effective"]) == pytest.approx(2 - 0.75 * np.log2(3))
    assert last["mean_activation"] == pytest.approx(2)
    assert last["max_activation"] == pytest.approx(3)


def test_statistics_equal_their_definitions() -> None:
    draw = np.random.default_rng(8)
    vocabulary = [f"{word}{form}" for word in ("dog", "cat", "tree") for form in ("", "s", "ing")]
    tokens = draw.integers(0, len(vocabulary), 300)
    codes: Codes = [
        (position, int(latent), float(draw.lognormal()))
        for position in range(300)
        for latent in draw.choice(20, 3, replace=False)
    ]
    base = evidence(tokens, codes, 20, np.arange(300) // 30, vocabulary)
    table = latent_table(base)
    for latent in range(20):
        mine = {position: value for position, owner, value in codes if owner == latent}
        total = sum(mine.values())
        mass = np.bincount(tokens[list(mine)], weights=list(mine.values()), minlength=9) / total
        families = [sum(mass[index : index + 3]) for index in (0, 3, 6)]
        top = int(mass.argmax())
        share = np.array(list(mine.values())) / total
        row = table.iloc[latent]
        assert row["n_active"] == len(mine)
        assert row["token_entropy_bits"] == pytest.approx(
            -sum(p * np.log2(p) for p in mass if p > 0), rel=1e-5
        )
        assert row["n_effective"] == pytest.approx(2 ** -(share * np.log2(share)).sum(), rel=1e-5)
        assert row["top_token"] == vocabulary[top]
        assert row["top_token_mass"] == pytest.approx(mass[top], rel=1e-5)
        on_top = [position for position in mine if tokens[position] == top]
        assert row["top_token_recall"] == pytest.approx(len(on_top) / (tokens == top).sum())
        assert row["family_mass"] == pytest.approx(max(families), rel=1e-5)
    judged = table["token_entropy_bits"][table["n_active"] >= 8]
    found = METRICS["mean_token_entropy_bits"].values(base, np.ones((10, 1)))[0]
    assert found == pytest.approx(judged.mean(), rel=1e-5)


def test_nine_equal_activations_of_ten_are_nine_tenths() -> None:
    tokens = np.array([0] * 9 + [1] + [2] * 190)
    codes: Codes = [(position, 0, 0.3) for position in range(10)]
    base = evidence(tokens, codes, 1, np.zeros(200, dtype=int), ["a", "b", "c"])
    table = latent_table(base)
    assert classify(table).tolist() == ["single_token"]


def test_the_top_token_is_that_of_the_resample() -> None:
    tokens, documents = np.array([0, 1, 1]), np.array([0, 1, 1])
    base = evidence(tokens, [(0, 0, 1.0), (1, 0, 3.0)], 1, documents, ["a", "b"])
    found = token_statistics(base, np.array([[1.0, 2.0], [1.0, 0.0]]))
    assert found.top_token.tolist() == [[1, 0]]
    np.testing.assert_allclose(found.top_token_mass, [[0.75, 1]])
    np.testing.assert_allclose(found.top_token_recall, [[0.5, 1]])
    np.testing.assert_allclose(found.n_active, [[2, 2]])


def test_blocks_of_latents_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    base = random_positions(np.random.default_rng(3), n_latents=40, n=30, skew=1.0)
    columns = np.ones((base.n_documents, 1))
    whole = token_statistics(base, columns)
    monkeypatch.setattr("sae_placebo.latents.metrics.tokens._BLOCK", 50)
    again = token_statistics(
        random_positions(np.random.default_rng(3), n_latents=40, n=30, skew=1.0), columns
    )
    np.testing.assert_allclose(again.token_entropy_bits, whole.token_entropy_bits, rtol=1e-5)
    np.testing.assert_array_equal(again.top_token, whole.top_token)
    np.testing.assert_allclose(again.family_mass, whole.family_mass, rtol=1e-5)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (" dog", "Dogs", True),
        ("ĠRunning", "run", True),
        ("▁cities", "City", True),
        ("##making", " make", True),
        (" classes", "class", True),
        (" dog's", "dog", True),
        (".", " .", True),
        ("\n", "\n\n", False),
        (" 1990s", "1990", False),
        ("this", "thing", False),
        (" ran", " run", False),
        (" he", " her", False),
    ],
)
def test_families(one: str, other: str, same: bool) -> None:
    assert (fold(one) == fold(other)) is same


def test_pieces_of_characters_are_no_family() -> None:
    """Text of three tokens a character: its pieces all look like U+FFFD, and are many tokens still."""
    words = ("\ufffd", " \ufffd", "\ufffd", "run", "Ġruns", "a\ufffd", "a\ufffd")
    families = token_families(words, np.arange(len(words)))
    assert families[3] == families[4]
    assert len(set(families.tolist())) == len(words) - 1


ZIPF = 1 / np.arange(1, 50_001)
ZIPF /= ZIPF.sum()


@pytest.mark.parametrize(
    ("n", "bits"), [(20, 4.2), (50, 5.2), (100, 6.0), (200, 6.8), (1_000, 8.2), (10_000, 9.7)]
)
def test_null_on_zipf_tokens(n: int, bits: float) -> None:
    null = entropy_null(np.rint(ZIPF * 5e7)[:, None])
    assert null.at(np.array([[float(n)]]))[0, 0] == pytest.approx(bits, abs=0.1)


@pytest.mark.parametrize(("n", "draws"), [(8, 2000), (100, 500), (3_000, 30), (18_000, 30)])
def test_null_is_the_mean_over_samples_without_replacement(n: int, draws: int) -> None:
    draw = np.random.default_rng(n)
    tokens = draw.choice(len(ZIPF), 20_000, p=ZIPF)
    simulated = []
    for _ in range(draws):
        counts = np.bincount(draw.choice(tokens, n, replace=False))
        share = counts[counts > 0] / n
        simulated.append(-(share * np.log2(share)).sum())
    error = 4 * np.std(simulated) / draws**0.5
    null = entropy_null(np.bincount(tokens)[:, None]).at(np.array([[float(n)]]))[0, 0]
    assert null == pytest.approx(np.mean(simulated), abs=error + 0.005)


def test_null_of_one_position_and_of_all() -> None:
    counts = np.array([[5], [3], [2]])
    null = entropy_null(counts).at(np.array([[1.0], [10.0], [np.nan]]))[:, 0]
    share = counts[:, 0] / 10
    assert null[0] == 0
    assert null[1] == pytest.approx(-(share * np.log2(share)).sum())
    assert np.isnan(null[2])


def random_positions(
    draw: np.random.Generator, n_latents: int, n: int, skew: float, n_tokens: int = 20_000
) -> Evidence:
    """Return latents that fire at n random positions with log-normal activations."""
    tokens = draw.choice(len(ZIPF), n_tokens, p=ZIPF)
    positions = [draw.choice(n_tokens, n, replace=False) for _ in range(n_latents)]
    codes: Codes = [
        (int(position), latent, float(np.exp(skew * draw.normal())))
        for latent, chosen in enumerate(positions)
        for position in chosen
    ]
    documents = np.sort(draw.integers(0, 40, n_tokens))
    documents[-1] = 39
    return evidence(tokens, codes, n_latents, documents, [f"t{i}" for i in range(len(ZIPF))])


@pytest.mark.parametrize(("n", "skew"), [(10, 0.0), (10, 1.0), (100, 0.5), (100, 1.0), (800, 1.0)])
def test_latents_at_random_positions_score_the_null(n: int, skew: float) -> None:
    base = random_positions(np.random.default_rng(0), 80, n, skew)
    table = latent_table(base)
    excess = table["token_entropy_bits"] - table["token_entropy_null_bits"]
    assert abs(excess.mean()) < 0.04 + 3 * excess.std() / len(excess) ** 0.5
    columns = np.ones((base.n_documents, 1))
    metric = METRICS["mean_token_entropy_bits"]
    assert metric.values(base, columns)[0] == pytest.approx(metric.null_value(base), abs=0.1)
    share = METRICS["token_entropy_share_of_null"].values(base, columns)[0]
    assert share == pytest.approx(1, abs=0.03)


def test_classes_are_found_where_they_were_planted() -> None:
    draw = np.random.default_rng(4)
    n = 5_000
    vocabulary = [" the", " Dog", "dogs", *(f"t{i}" for i in range(300))]
    tokens = draw.integers(0, len(vocabulary), n)
    tokens[draw.random(n) < 0.05] = 0
    positions = {
        "dead": np.arange(0),
        "ultra_rare": np.arange(3),
        "dense": np.flatnonzero(draw.random(n) < 0.2),
        "single_token": np.flatnonzero(tokens == 0),
        "token_family": np.flatnonzero((tokens == 1) | (tokens == 2)),
        "undecided": draw.choice(n, 60, replace=False),
    }
    codes: Codes = [
        (int(position), latent, float(draw.lognormal()))
        for latent, name in enumerate(positions)
        for position in positions[name]
    ]
    # the last latent fires on half of one token's occurrences: one token, but partial recall
    half = np.flatnonzero(tokens == 0)[::2]
    codes += [(int(position), len(positions), 1.0) for position in half]
    base = evidence(tokens, codes, len(positions) + 1, np.sort(tokens * 0), vocabulary)
    assert set(positions) < set(CLASS_NAMES)
    assert classify(latent_table(base)).tolist() == [*positions, "token_family"]
