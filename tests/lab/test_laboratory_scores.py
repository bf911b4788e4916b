"""Sets of scores say of trained SAEs what was planted, beside their nulls, and the commands print them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from sae_placebo.cli.toy import toy
from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.core.spec import generator
from sae_placebo.lab import GeneratorSpec, from_truth
from sae_placebo.lab.experiments.base import LabTraining
from sae_placebo.lab.experiments.chance import in_lines as chance_in_lines
from sae_placebo.lab.experiments.chance import null_table, sizes_of
from sae_placebo.lab.experiments.score_sets import SCORE_SETS, Scored, TrainedOn, in_lines, scored
from sae_placebo.lab.experiments.scored_training import sets_of, train_and_score
from sae_placebo.lab.experiments.sweeps import generator_of
from sae_placebo.lab.experiments.truth_scores import _shuffled
from sae_placebo.lab.scores.closed_forms import epsilon_star, optimum_angle
from sae_placebo.saes import ReLUSpec, SAESpec, TopKSpec

LAB = LabTraining(steps=4, bias="none")


def at_truth(made: GeneratorSpec, spec: SAESpec, tokens: int = 4096) -> TrainedOn:
    """An SAE whose rows and encoder are the features."""
    draw = made.held_out(tokens)
    start = spec.create(made.d_in, 0)
    return TrainedOn(made, LAB, from_truth(spec, draw, 0), start, draw, 0)


def scores_of(name: str, one: TrainedOn) -> dict[str, Scored]:
    (found,) = sets_of(name)
    return {score.name: score for score in found.measure(one)}


@pytest.fixture(scope="module")
def found_sets() -> TrainedOn:
    made = generator_of("composed_sets", {"items": 2, "solo": 0.5})
    return at_truth(made, TopKSpec(d_sae=4, k=2))


def test_every_set_is_named_and_has_values_or_a_reason(found_sets: TrainedOn) -> None:
    assert len(SCORE_SETS) == 15
    quick = [one for one in sets_of("all") if one.name not in ("from_truth", "references")]
    lines = scored(quick, [found_sets])
    assert {line.set for line in lines} == {one.name for one in quick}
    for line in lines:
        if line.trained.mean is None:
            assert line.first.note or line.trained.reason, line
        else:
            assert np.isfinite(line.trained.mean), line
        if line.first.low is not None and line.first.high is not None:
            assert line.first.value is not None
            assert line.first.low <= line.first.value <= line.first.high
            assert line.first.n
    text = in_lines(lines)
    for one in quick:
        assert f"{one.name}: {one.about}" in text


def test_the_truth_scores_best_and_chance_does_not(found_sets: TrainedOn) -> None:
    perfect = {"matching": "one to one, MCC", "composition": "atomic latents"}
    for name, title in perfect.items():
        score = scores_of(name, found_sets)[title]
        assert score.value == pytest.approx(1.0, abs=1e-6)
        assert score.null is not None
        assert score.null < 0.9
    codes = scores_of("matching", found_sets)["codes one to one, MCC"]
    assert codes.value is not None
    assert codes.null is not None
    assert codes.null < 0.1 < 0.9 < codes.value
    detected = scores_of("detectors", found_sets)["recall"]
    assert detected.value == pytest.approx(1.0, abs=1e-3)
    for name, score in scores_of("rates", found_sets).items():
        assert score.value == pytest.approx(1.0, abs=1e-6), name


def test_shuffled_codes_are_the_same_tokens_in_another_order(found_sets: TrainedOn) -> None:
    codes = found_sets.draw.codes
    moved, plain = _shuffled(codes, 3).dense(), codes.dense()
    assert not torch.equal(moved, plain)
    assert sorted(map(tuple, moved.tolist())) == sorted(map(tuple, plain.tolist()))


def test_only_the_right_generator_has_a_score(found_sets: TrainedOn) -> None:
    for name in ("arrangement", "shift", "dark_matter", "subspaces"):
        with pytest.raises(NotEstimable, match=r"only the generator|one dimension"):
            scores_of(name, found_sets)
    with pytest.raises(NotEstimable, match=r"coefficient=0\.1"):
        scores_of("closed_forms", found_sets)
    toy_model = generator_of("bottleneck", {"n_features": 2, "d_in": 2, "steps": 150})
    kept = scores_of("arrangement", at_truth(toy_model, TopKSpec(d_sae=2, k=1)))
    assert kept["features that are kept"].value == 2
    dark = generator_of(
        "dark_matter", {"d_in": 24, "n_features": 12, "l0": 1.0, "decay": 1.0, "dense": 2}
    )
    parts = scores_of("dark_matter", at_truth(dark, TopKSpec(d_sae=12, k=1)))
    sparse, dense = (parts[f"{part} part that is kept"].value for part in ("sparse", "dense"))
    assert sparse is not None
    assert dense is not None
    assert sparse > 0.5 > dense


def test_pairs_of_the_test_are_as_good_for_the_truth() -> None:
    made = generator_of("compositional_shift", {"items": 3})
    for score in scores_of("shift", at_truth(made, TopKSpec(d_sae=6, k=2))).values():
        assert score.value == pytest.approx(score.best, abs=0.02)
    with pytest.raises(NotEstimable, match="shift=true"):
        scores_of("shift", at_truth(made.shifted(), TopKSpec(d_sae=6, k=2)))  # type: ignore[attr-defined]


def test_closed_forms_stand_beside_what_the_truth_does() -> None:
    lam, q = 0.2, 0.2
    made = generator_of("solvable_pair", {"q": q, "p0": 0.3, "epsilon": 0.1})
    found = scores_of("closed_forms", at_truth(made, ReLUSpec(d_sae=2, coefficient=lam)))
    alone = found["child alone, and where that pays"]
    assert (alone.value, alone.best) == (0.1, epsilon_star(lam, q))
    angle = found["angle of the child's latent to the parent, degrees"]
    assert angle.value == pytest.approx(90, abs=1e-3)
    assert angle.best == optimum_angle(lam, q, 0.1)
    kept = found["share of an amplitude that is kept"]
    # at amplitude 1 the best code keeps 1 - lambda / 2, and the truth as an encoder keeps all
    assert kept.best == pytest.approx(1 - lam / 2)
    assert kept.value == pytest.approx(1.0, abs=1e-5)
    composed = generator_of("composed_sets", {"items": 2, "correlation": 0.5})
    line = scores_of("closed_forms", at_truth(composed, ReLUSpec(d_sae=4, coefficient=lam)))
    assert line["lambda, and its boundary"].best == pytest.approx(0.076, abs=1e-3)
    assert "pairs are cheaper" in line["lambda, and its boundary"].note


def test_best_codes_are_no_worse_than_the_encoders(found_sets: TrainedOn) -> None:
    scores = scores_of("codes", found_sets)
    own = scores["explained variance, the SAE's codes"].value
    best = scores["explained variance, best codes, as many"]
    assert own is not None
    assert best.value is not None
    assert best.null is not None
    assert best.value >= own - 1e-6
    assert best.value > best.null
    lam = 0.2
    made = generator_of("composed_sets", {"items": 2, "amplitude": "constant"})
    relu = at_truth(made, ReLUSpec(d_sae=4, coefficient=lam), 512)
    gap = scores_of("codes", relu)["objective above its optimum, share of energy"]
    # two features at right angles, of amplitude 1: each code is lambda / 2 too large, and energy is 2
    assert gap.value == pytest.approx(lam**2 / 4, abs=1e-5)
    assert gap.null == pytest.approx((1 - lam / 2) ** 2, abs=1e-5)
    assert "known to" in gap.note


def test_training_and_simpler_methods_are_scored_and_written(tmp_path: Path) -> None:
    made = generator_of("composed_sets", {"items": 2})
    sets = sets_of("from_truth, references")
    spec = TopKSpec(d_sae=4, k=2)
    board, more = train_and_score(made, spec, LAB, range(2), sets, folder=tmp_path)
    names = {line.name: line for line in more}
    assert names["feature to latent cosine"].trained.n == 2
    mean = names["feature to latent cosine"].trained.mean
    assert mean is not None
    assert mean > 0.95  # four steps do not leave the truth
    for kind in ("pca", "ica", "kmeans", "ksvd"):
        assert f"cosine, {kind}" in names
    table = pd.read_parquet(tmp_path / "scores.parquet")
    assert set(table["set"]) == {"scoreboard", "from_truth", "references"}
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["sae"]["k"] == 2
    assert len(written["rows"]) == len(table) == len(board) + len(more)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    assert len(files) == 2
    again, _ = train_and_score(made, spec, LAB, range(2), folder=tmp_path)
    assert again == board
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}


def test_sets_are_named_by_the_user() -> None:
    assert [one.name for one in sets_of(" rates,codes ")] == ["rates", "codes"]
    for text, said in ((",", "no set of scores is named"), ("rate", "Did you mean 'rates'")):
        with pytest.raises(SpecError, match=said):
            sets_of(text)
    with pytest.raises(SpecError, match="given twice"):
        sets_of("rates,rates")
    with pytest.raises(SpecError, match="all are asked for, and rate besides: give all alone"):
        sets_of("all,rate")


def test_the_commands_print_scores_and_chance(tmp_path: Path) -> None:
    def said(*words: Any) -> str:
        run = CliRunner().invoke(toy, [*map(str, words)], catch_exceptions=False)
        assert run.exit_code == 0
        return run.output

    out = tmp_path / "out"
    small = ["--generator-set", "items=2", "--seeds", 1, "--steps", 3]
    text = said("train", "composed_sets", *small, "--scores", "rates", "--out", out)
    assert "\nrates: features with a cosine" in text
    assert f"table: {out / 'scores.parquet'}" in text
    assert "references" in said("scores")
    assert "one to one (MCC)" in said("chance", 2, 4, 4)


def test_chance_takes_three_sizes_or_none() -> None:
    with pytest.raises(SpecError, match="all three"):
        sizes_of(3, None, 4)
    nulls = null_table(sizes_of(2, 4, 4), seed=1)
    assert chance_in_lines(nulls).count("\n") == 1
    random = torch.randn(400, 4, 2, generator=generator(0, "chance"))
    unit = torch.nn.functional.normalize(random, dim=2)
    expected = float((unit[:200] @ unit[200:].transpose(1, 2)).amax(dim=2).mean())
    assert nulls[2, 4, 4].mmcs.mean == pytest.approx(expected, abs=0.03)
