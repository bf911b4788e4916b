from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sae_placebo.cli import main as cli
from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.stats.inference import difference as difference_of
from sae_placebo.stats.replicates import ReplicateKey, ReplicateTable
from sae_placebo.stats.spreads import Spreads
from sae_placebo.trial.power import (
    DEFAULTS,
    Simulated,
    TrialSize,
    Variances,
    answer,
    measured,
    power_table,
    simulate,
)
from sae_placebo.trial.results import Trial
from sae_placebo.trial.variances import _decomposed
from synthetic_trial import HOOKPOINT, SAE, Settings, seal_trial, write_trial

NONE = Variances(documents=0.0, redraws=0.0, saes=0.0, latents=0.0, said="nothing")


def of(**changes: float) -> Variances:
    return NONE.model_copy(update=changes)


def test_documents_alone_are_the_textbook_sample_size() -> None:
    # 80% power at 5% two-sided: 1.96 + 0.84 standard errors, less than 1% more for Student's t
    design = TrialSize(n_documents=200, counts_latents=False, replicates=2_000)
    found = simulate(of(documents=2.0), design, draws=4_000)
    assert found.smallest(0.8) == pytest.approx((1.972 + 0.843) * 0.1, rel=0.05)
    assert found.power(0.2816) == pytest.approx(0.8, abs=0.03)
    assert found.power(1e-9) == pytest.approx(0.025, abs=0.01)
    assert found.power(-0.2816) == found.power(0.2816)


def test_power_is_how_often_the_packages_interval_excludes_zero() -> None:
    variances = of(documents=0.6, redraws=0.02, saes=0.01, latents=1.0)
    design = TrialSize(n_documents=60, d_sae=100, sae_seeds=3, model_seeds=3, counts_latents=False)
    random = np.random.default_rng(0)
    hits, trials, difference = 0, 600, 0.45
    for _ in range(trials):
        weights = random.multinomial(60, np.full(60, 1 / 60), size=100)
        weights = np.concatenate([np.ones((1, 60)), weights])
        documents = random.normal(0, 0.6**0.5, 60) @ weights.T / 60
        trained = difference + documents + random.normal(0, 0.02**0.5, (1, 3, 1))
        control = random.normal(0, 0.02**0.5, (3, 3, 1)) + random.normal(0, 0.02**0.5, (3, 1, 1))
        table = ReplicateTable({"here": 60}, {"here": 60}, frozenset({"control"}))
        arms = {"arm": trained, "control": np.broadcast_to(control, (3, 3, 101))}
        for arm, values in arms.items():
            for m, s in np.ndindex(*values.shape[:2]):
                table.add(ReplicateKey(arm, "here", "sae", "x"), m, s, values[m, s])
        cells = [ReplicateKey(arm, "here", "sae", "x") for arm in arms]
        hits += difference_of(Spreads(table), (cells[0], cells[1])).bounds().low > 0
    assert simulate(variances, design, 2_000).power(difference) == pytest.approx(
        hits / trials, abs=0.06
    )


def test_more_of_what_varies_detects_less() -> None:
    latents = of(latents=0.2)
    small, large = TrialSize(d_sae=256), TrialSize(d_sae=4_096)
    ratio = simulate(latents, small).smallest(0.8) / simulate(latents, large).smallest(0.8)
    assert ratio == pytest.approx(4, rel=0.15)  # one over the root of the latents
    redraws = of(redraws=1e-3)
    two, four = TrialSize(model_seeds=2), TrialSize(model_seeds=4)
    # one degree of freedom against three: far more than the root of two
    assert simulate(redraws, two).smallest(0.8) > 3 * simulate(redraws, four).smallest(0.8)
    assert simulate(redraws, two) == simulate(redraws, two)


def test_simulated_trials_are_an_empirical_distribution() -> None:
    found = Simulated(needed=(0.1, 0.2, 0.3, 0.4))
    assert [found.power(x) for x in (0.05, 0.25, 0.45)] == [0, 0.5, 1]
    assert Simulated(needed=(-0.3, -0.2)).smallest(0.8) == 0


def test_planted_variances_are_found_again() -> None:
    import pandas as pd

    random = np.random.default_rng(1)
    sums = {"documents": 0.0, "redraws": 0.0, "saes": 0.0}
    trials = 400
    for _ in range(trials):
        arm = random.normal(0, 1, (1, 3))
        control = random.normal(0, 1, (40, 3)) + random.normal(0, 3, (40, 1))
        se2 = 0.5 + 9 / 40 + 1 / 3 + 1 / 120
        row = pd.DataFrame([{"arm": "t", "control": "c", "se": se2**0.5}])
        for name, value in _decomposed(row, {"t": arm, "c": control}).items():
            sums[name] += value / trials
    assert sums["documents"] == pytest.approx(0.5, abs=0.03)
    assert sums["redraws"] == pytest.approx(9, rel=0.15)
    assert sums["saes"] == pytest.approx(1, rel=0.1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store") / "trials" / "synthetic"
    settings = Settings()
    seal_trial(write_trial(folder, settings))
    return folder


def test_a_finished_trial_tells_its_design_and_variances(finished: Path) -> None:
    variances, design = measured(Trial(finished), "share_single_token", "redraw")
    assert (design.sae_seeds, design.model_seeds, design.n_documents) == (2, 2, 160)
    assert design.d_sae == 2_048
    assert variances.documents > 0
    assert variances.latents <= 0.25
    assert HOOKPOINT in variances.said
    assert SAE in variances.said
    other, _ = measured(Trial(finished), "mean_token_entropy_bits")
    assert other.latents == 0
    with pytest.raises(SpecError, match="share_single_token"):
        measured(Trial(finished), "share_single_tokn")
    with pytest.raises(SpecError, match="no drawn control"):
        measured(Trial(finished), "share_single_token", "redrawn")


def test_the_table_says_the_design_and_what_suffices() -> None:
    said = power_table(DEFAULTS, TrialSize(), 0.02)
    assert "55 documents, d_sae 1,024, 2 SAE seeds, 2 re-draws" in said
    assert "fewest SAEs that detect 0.02" in said
    assert "documents 6" in said  # percent of the variance
    assert "no design in this table" in power_table(of(redraws=1.0), TrialSize(), 0.02)
    with pytest.raises(SpecError, match="above 0"):
        power_table(DEFAULTS, TrialSize(), 0.0)
    with pytest.raises(NotEstimable, match="nothing varies"):
        power_table(NONE, TrialSize(), 0.1)


def test_a_question_without_an_answer_is_one_sentence() -> None:
    with pytest.raises(SpecError, match="--from"):
        answer(0.05, metric="share_dead")
    with pytest.raises(SpecError, match="sae_seeds is 1"):
        answer(0.05, sae_seeds=1)


def test_the_text_that_suffices_does_not_depend_on_the_text_asked_about() -> None:
    least = 1_819  # of 55 documents with 50,000 tokens, two hold this many
    asked = (least, 5_000)
    said = [answer(0.05, heldout_tokens=tokens).splitlines()[-1] for tokens in asked]
    assert set(said) == {answer(0.05).splitlines()[-1]}
    assert "12,500 held-out tokens detect 0.05" in said[0]
    with pytest.raises(SpecError, match="two documents hold 1,819"):
        answer(0.05, heldout_tokens=least - 1)


def test_that_more_text_can_detect_less_is_said_with_its_reason() -> None:
    # two seeds: one degree of freedom once the text is large
    seeds = of(documents=1.3e-3, saes=4e-5, latents=1.2e-2, redraws=1e-6)
    seeds_matter = power_table(seeds, TrialSize(), 0.052)
    assert "more text detects less in places: as the documents' part" in seeds_matter
    assert "do not: as the documents' part" in seeds_matter
    text_alone = power_table(of(documents=1e-3), TrialSize(counts_latents=False), 0.02)
    assert "held-out tokens detect 0.02 (in doublings)." in text_alone
    assert "detects less" not in text_alone
    assert "do not" not in text_alone


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"model_seeds": 10**9}, "model_seeds is 1000000000; give at most 100"),
        ({"sae_seeds": 10**23}, "sae_seeds is 1.*; give at most 100"),
        ({"sae_seeds": 101}, "sae_seeds is 101; give at most 100"),
        ({"d_sae": 10**400}, "d_sae is 1.*; give at most 1,000,000,000"),
        ({"heldout_tokens": 10**400}, "heldout_tokens is 1.*; give at most"),
        ({"difference": float("inf")}, "difference is inf; it must be finite and above 0"),
        ({"difference": float("nan")}, "difference is nan; it must be finite and above 0"),
    ],
)
def test_numbers_too_large_to_simulate_are_refused(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        answer(**{"difference": 0.05, **asked})


def test_the_verb(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = ["sae-placebo", "power", "--from", str(finished), "--metric", "share_single_token"]
    monkeypatch.setattr(sys, "argv", [*said, "--tokens", "236000", "--latents", "4096"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "236,000 held-out tokens in 320 documents, d_sae 4,096" in out
    assert "trained minus redraw or redraw_keep_embeddings" in out
