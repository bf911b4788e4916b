from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from planted_latents import WIDTH, assert_same, case_of, named, planted, rescaled
from sae_placebo.audits import label_families
from sae_placebo.audits.absorption import Chooser, absorbed
from sae_placebo.audits.base import Case
from sae_placebo.core.errors import NotEstimable

N = 160 * (WIDTH - 1)


def _case(codes: np.ndarray, decoder: np.ndarray, x: np.ndarray, label: np.ndarray) -> Case:
    noise = np.random.default_rng(9).normal(size=x.shape)
    return case_of(x + 0.02 * noise, codes, decoder, labels=label[:, None])


def _orthogonal(n: int = 32) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(6).normal(size=(n, n)))[0]


def _background(draw: np.random.Generator, n: int = 32) -> np.ndarray:
    return (draw.random((N, n)) < 0.05) * draw.uniform(0.5, 1.5, size=(N, n))


def test_a_label_with_a_latent_of_its_own_is_neither_split_nor_absorbed() -> None:
    draw, atoms = np.random.default_rng(0), _orthogonal()
    codes = _background(draw)
    codes[:, 0] = draw.random(N) < 0.15
    found = label_families.run(_case(codes, atoms, codes @ atoms, codes[:, 0] > 0))
    assert named(found, "label_size").value == 1
    assert named(found, "label_f1_best").value > 0.99
    assert named(found, "label_f1_probe").value > 0.98
    assert named(found, "label_full_family").value == 0
    assert named(found, "label_fraction_single").value < 0.05


def test_an_absorbed_parent_is_found_and_a_split_one_is_not_called_absorbed() -> None:
    """On a fifth of the parent's tokens a child's latent carries the parent: d = (p + c) / sqrt 2."""
    draw, atoms = np.random.default_rng(1), _orthogonal()
    codes = _background(draw)
    parent = draw.random(N) < 0.25
    child = parent & (draw.random(N) < 0.2)
    # the child is rare enough that its latent adds little to F1 and stays out of the family
    child &= draw.random(N) < 0.25
    x = codes.copy()
    x[:, 0], x[:, 1] = parent, child
    sae, rows = codes.copy(), atoms.copy()
    sae[:, 0], sae[:, 1] = parent & ~child, child * np.sqrt(2)
    rows[1] = (atoms[0] + atoms[1]) / np.sqrt(2)
    found = label_families.run(_case(sae, rows, x @ atoms, parent))
    share = child.sum() / parent.sum()
    full = named(found, "label_full_family")
    assert named(found, "label_size").value == 1
    assert full.value == pytest.approx(share, abs=0.02)
    assert full.low <= share <= full.high
    assert named(found, "label_fraction_family").value == pytest.approx(share, abs=0.03)

    halves = draw.random(N) < 0.5
    split, two = codes.copy(), atoms.copy()
    split[:, 0], split[:, 1] = parent & halves, parent & ~halves
    two[1] = two[0]
    spread = codes.copy()
    spread[:, 0], spread[:, 1] = parent, 0
    found = label_families.run(_case(split, two, spread @ atoms, parent))
    assert named(found, "label_size").value == 2
    assert named(found, "label_full_single").value == pytest.approx(0.5, abs=0.05)
    assert named(found, "label_full_family").value == 0


@pytest.mark.parametrize("rate", [0.01, 0.03])
def test_a_rare_label_keeps_the_latent_that_tells_it(rate: float) -> None:
    """A fit that overshoots weighs the latent by 0, and the label's F1 falls to that of a constant."""
    draw = np.random.default_rng(11)
    label = draw.random(16_000) < rate
    fires = draw.random((16_000, 20)) < 0.005
    fires[:, 7] |= label & (draw.random(16_000) < 0.9)
    codes = csr_matrix(fires * draw.gamma(4, 1, size=fires.shape))
    fit, score = slice(0, 8_000), slice(8_000, 16_000)
    found = Chooser(codes[fit]).family(label[fit], codes[score], label[score])
    assert list(found.latents) == [7]
    # all that fire, or none that do not: what the latent itself says
    by_hand = 2 * (fires[score, 7] & label[score]).sum()
    by_hand /= fires[score, 7].sum() + label[score].sum()
    assert found.first > by_hand - 0.05
    assert found.first > 0.6


def test_absorption_at_single_tokens_follows_its_definition() -> None:
    from scipy.sparse import csr_matrix

    codes = csr_matrix(
        np.array([[0, 1.0, 0], [1, 1, 0], [0, 0, 1], [0, 0.3, 0], [0, 1, 0], [2, 1, 0]])
    )
    cosines, along = np.array([0.9, 0.7, 0.01]), np.ones(6)
    hits = np.array([True, True, True, True, False, True])
    found = absorbed(codes, cosines, along, hits, np.array([0]))
    # third: cosine too small; fourth: too little; fifth: no hit; sixth: the main latent carries all
    assert found["full_family"].tolist() == [1, 0, 0, 0, 0, 0]
    assert found["fraction_family"] == pytest.approx([1, 0.7 / 1.6, 0, 1, 0, 0])


def test_first_letters_are_labels_and_their_documents_can_be_permuted() -> None:
    draw, atoms = np.random.default_rng(2), _orthogonal()
    vocabulary = (" apple", "Ġbee", "Cat", "12")
    ids = draw.integers(0, 4, size=(160, WIDTH))
    flat = ids[:, 1:].ravel()
    codes = _background(draw)
    codes[:, :4] = flat[:, None] == np.arange(4)
    case = case_of(codes @ atoms, codes, atoms, token_ids=ids, vocabulary=vocabulary)
    found = label_families.run(case)
    letters = [f.name for f in found.findings if f.name.startswith("letter_size/")]
    assert sorted(letters) == [f"letter_size/begins with {c}" for c in "abc"]
    assert named(found, "letter_f1_probe").value > 0.99
    assert named(found, "letter_f1_probe").null < 0.6
    assert "no labels" in named(found, "label_size").reason


def test_lengths_of_decoder_rows_do_not_matter() -> None:
    truth = planted(n_rows=80)
    case = case_of(truth.x, truth.codes, truth.atoms, labels=truth.codes[:, :2] > 0)
    assert_same(label_families.run(case), label_families.run(rescaled(case)))


def test_without_any_label_it_refuses() -> None:
    truth = planted(n_rows=40)
    with pytest.raises(NotEstimable, match="no labels"):
        label_families.run(case_of(truth.x, truth.codes, truth.atoms, vocabulary=("1",)))
