"""What no memory holds is refused before it is drawn; what is drawn was counted in full."""

from __future__ import annotations

from pathlib import Path

import pytest

from sae_placebo.core.errors import SpecError, StoreError
from sae_placebo.lab import GENERATORS, sizes
from sae_placebo.lab.experiments.base import LabTraining, scale_of
from sae_placebo.lab.experiments.chance import null_table
from sae_placebo.lab.experiments.phase import phase_spec, run_phase
from sae_placebo.lab.experiments.scoreboard import sae_for, scoreboard
from sae_placebo.lab.experiments.sweeps import generator_of, parse_axes
from sae_placebo.saes import parse_sae


@pytest.fixture(autouse=True)
def _memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "total_memory", lambda: 24 * 10**9)


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("hedging", {"d_in": 99_999_999}, "d_in is 99,999,999"),
        ("composed_sets", {"items": 1_000_000}, "d_in is 2,000,000"),
        ("superposition", {"n_features": 10**6, "d_in": 10_000}, "has 1,000,000 directions"),
    ],
)
def test_a_generator_that_fits_in_no_memory_is_refused_undrawn(
    kind: str, settings: dict[str, int], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = generator_of(kind, dict(settings))
    monkeypatch.setattr(type(made), "_draw_truth", lambda _: pytest.fail("it was drawn"))
    with pytest.raises(SpecError, match=f"{said}.*of memory, and this machine has 24 GB; lower"):
        sae_for(made, "relu", {})


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        *[(kind, "n_features") for kind in ("superposition", "dark_matter", "high_expansion")],
        *[("multidimensional", name) for name in ("circles", "spheres", "tori")],
        *[("bottleneck", "n_features"), ("compositional_shift", "n_features")],
        *[("heterogeneous", "gated_pairs"), ("composed_sets", "items")],
    ],
)
def test_a_truth_of_a_billion_directions_is_refused_before_they_are_listed(
    kind: str, setting: str
) -> None:
    with pytest.raises(SpecError, match=r"10,?000,?000") as refusal:
        generator_of(kind, {setting: 10**9})
    assert "\n" not in str(refusal.value)


def test_random_dictionaries_that_fit_in_no_memory_are_refused_undrawn() -> None:
    said = "1,000,000 features and 2 latents in 100,000 dimensions.* lower one of the three"
    with pytest.raises(SpecError, match=said):
        null_table([(2, 4, 4), (100_000, 1_000_000, 2)])


def test_a_sweep_that_fits_in_no_memory_runs_no_cell(tmp_path: Path) -> None:
    spec = phase_spec(parse_axes("width=4:1000000,lambda=0.1"), {}, seeds=2, steps=2)
    # half of a million latents on 8,192 tokens, a number and an index each
    with pytest.raises(SpecError, match=r"has 1,000,000 latents.* at least 49.15 GB of memory"):
        run_phase(spec, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_and_seeds_are_counted() -> None:
    made = generator_of("composed_sets", {})
    topk = parse_sae({"kind": "topk", "d_sae": 10**9, "k": 1})
    with pytest.raises(SpecError, match="its weights in training take at least 192 GB"):
        scoreboard(made, topk, LabTraining(steps=1), range(2))
    small = parse_sae({"kind": "topk", "d_sae": 64, "k": 1})
    with pytest.raises(SpecError, match="the 10,000,000 SAEs of 64 latents"):
        scoreboard(made, small, LabTraining(steps=1), range(10**7))


@pytest.mark.parametrize("kind", list(GENERATORS))
def test_no_truth_has_fewer_directions_than_were_counted(kind: str) -> None:
    made = GENERATORS[kind]()
    assert made.d_in >= 2
    if kind != "bottleneck":  # its toy model has that many, and the truth those that it has learned
        assert 1 <= made.least_directions <= made.truth.n_features
    sizes.check_generator(made)


def test_an_untrained_sae_has_the_codes_that_were_counted() -> None:
    made = generator_of("composed_sets", {})
    sae = parse_sae({"kind": "relu", "d_sae": 4_096, "coefficient": 0.1})
    scaling = scale_of(made, LabTraining(bias="none"))
    start = sae.create(made.d_in, 0).fold(scaling.mean, scaling.factor)
    codes = start.encode(made.held_out(512).x)
    assert len(codes.values) / (512 * 4_096) == pytest.approx(0.5, abs=0.02)
    assert codes.values.element_size() + codes.latents.element_size() == 12


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "bad\udcff"])
def test_what_is_no_folder_is_said(name: str) -> None:
    spec = phase_spec(parse_axes("lambda=0.1"), {}, seeds=2, steps=2)
    with pytest.raises(StoreError, match=r"is too long|NUL character|not UTF-8"):
        run_phase(spec, Path(name))
