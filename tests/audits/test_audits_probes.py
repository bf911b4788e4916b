"""Labels that are known of some tokens only, as first letters are: nulls are of the same tokens."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest

from planted_latents import WIDTH, case_of, named, planted
from sae_placebo.audits import label_families, label_information
from sae_placebo.audits.base import AUDITS, Case, audit
from sae_placebo.audits.probes import Tasks, first_letters, with_null
from sae_placebo.core.errors import NotEstimable

LENGTHS = (300, 20, 180, 90, 240, 70, 150, 310, 40, 200)


def _uneven() -> tuple[Tasks, np.ndarray]:
    """Documents of unequal length, whose labels are their own numbers; every third token is unknown."""
    documents = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    known = np.arange(len(documents)) % 3 > 0
    present = (documents[:, None] == np.arange(len(LENGTHS))) & known[:, None]
    return Tasks(tuple(f"of {i}" for i in range(len(LENGTHS))), present, known), documents


def test_moved_labels_stay_on_the_known_tokens_with_the_same_rates() -> None:
    tasks, documents = _uneven()
    for seed in range(20):
        moved = tasks.permuted(documents, np.random.default_rng(seed))
        assert np.array_equal(moved.known, tasks.known)
        assert np.array_equal(moved.present.sum(0), tasks.present.sum(0))
        assert not moved.present[~tasks.known].any()
        # each label says which document it is from: none is that of its token's own document
        assert not (moved.present & tasks.present).any()


def test_labels_of_one_document_have_nowhere_to_go() -> None:
    tasks, documents = _uneven()
    alone = replace(tasks, known=tasks.known & (documents == 3))
    with pytest.raises(NotEstimable, match="1 documents: labels change places among 2 or more"):
        alone.permuted(documents, np.random.default_rng(0))


def _spelled(vocabulary: tuple[str, ...], seed: int = 2) -> Case:
    """Tokens at random; each has a latent of its own, and most begin with no letter."""
    draw = np.random.default_rng(seed)
    ids = draw.integers(0, len(vocabulary), size=(160, WIDTH))
    flat = ids[:, 1:].ravel()
    truth = planted(n_atoms=24)
    codes = truth.codes.copy()
    codes[:, : len(vocabulary)] = flat[:, None] == np.arange(len(vocabulary))
    noise = 0.05 * draw.normal(size=(len(codes), 24))
    x = codes @ truth.atoms + noise
    return case_of(x, codes, truth.atoms, token_ids=ids, vocabulary=vocabulary, n_documents=37)


PUNCTUATED = (" apple", "Ġbee", "Cat", "12", ",", ".", "--", "\n", "!", "?")


def test_information_in_first_letters_has_a_null_on_the_same_tokens() -> None:
    case = _spelled(PUNCTUATED)
    found = label_information.run(case)
    n = named(found, "auroc_activation").n
    letters = first_letters(case.reading.tokens).known
    assert 0 < n < letters.sum() < case.n_tokens / 2
    for source in ("error", "reconstruction", "activation"):
        for kind in ("auroc", "accuracy", "bits"):
            assert named(found, f"{kind}_{source}").n == n
    assert named(found, "auroc_activation").value > 0.95
    # a null that were asked of tokens with no letter too would find these, and be far from chance
    assert named(found, "auroc_activation").null == pytest.approx(0.5, abs=0.08)
    assert abs(named(found, "bits_activation").null) < 0.05
    accuracy = named(found, "accuracy_activation")
    assert accuracy.null_low < 0.5 < accuracy.null_high


def test_a_null_of_families_has_the_rates_of_its_labels() -> None:
    """At a rate of p the F1 of "always yes" is 2p / (1 + p): with p = 1/3 it is .5, with p = 1/10 .18."""
    case = _spelled(PUNCTUATED)
    found = label_families.run(case)
    probe = named(found, "letter_f1_probe")
    assert probe.value > 0.9
    # each of three letters begins a third of the tokens that begin with one, and a tenth of all
    assert 0.35 < probe.null < 0.55
    assert probe.n == 3


def test_a_value_and_its_null_are_of_labels_that_occur_in_both() -> None:
    case = _spelled(PUNCTUATED)
    tasks = first_letters(case.reading.tokens)
    # a label that one document alone has is moved to another: in one of the halves nobody has it
    lonely = tasks.known & (case.documents == 5)
    two = Tasks(("common", "lonely"), np.stack([tasks.present[:, 0], lonely], axis=1), tasks.known)
    (real, null), (fit, score) = with_null(case, two, np.random.default_rng(0), "test")
    assert real.names == null.names == ("common",)
    for part in (fit, score):
        assert real.known[part].all()
        assert 0 < real.present[part].mean() < 1
        assert 0 < null.present[part].mean() < 1


@pytest.mark.parametrize(
    ("words", "letters"),
    [
        ((" яблоко", "Ġбык", "Вол", " груша"), "бвгя"),
        (("אבא", " בית", "גמל"), "אבג"),
        (("猫", " 犬", "馬", "魚"), "犬猫馬魚"),
        (("Äpfel", "İki", "straße"), "isä"),
    ],
)
def test_first_letters_are_of_any_script(words: tuple[str, ...], letters: str) -> None:
    case = _spelled((*words, "🙂", "\ufffd", "42"))
    found = first_letters(case.reading.tokens)
    assert sorted(name.removeprefix("begins with ") for name in found.names) == sorted(letters)
    sizes = [f.name for f in label_families.run(case).findings if f.name.startswith("letter_size/")]
    assert sorted(name[-1] for name in sizes) == sorted(letters)
    assert np.isfinite(named(label_information.run(case), "auroc_activation").null)


def test_an_arm_of_rewritten_text_is_not_asked_for_other_labels_than_the_rest() -> None:
    case = _spelled(PUNCTUATED)
    assert np.isfinite(named(label_information.run(case), "auroc_error").value)
    with pytest.raises(NotEstimable, match="the text has no labels"):
        label_information.run(replace(case, letters=False))


def test_tokens_without_letters_are_refused_in_words_that_say_what_is_missing() -> None:
    case = _spelled(("1", "🙂", "\ufffd"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("label_families", "label_information"):
            for finding in audit(case, (name,))[name].findings:
                assert "first letter" in finding.reason
    assert {"label_families", "label_information"} <= set(AUDITS.entries)
