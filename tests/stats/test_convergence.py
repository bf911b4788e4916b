"""A number that more text still moves is withheld, one that has settled is told; curves find their end."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sae_placebo.core.errors import NotEstimable
from sae_placebo.latents.metrics.ladder_shares import DECLARED
from sae_placebo.stats.convergence import change, end_of_curve
from sae_placebo.stats.effects import effects
from sae_placebo.stats.interactions import interactions
from sae_placebo.stats.replicates import ReplicateKey, Replicates, ReplicateTable

TOKENS = (125_000, 250_000, 500_000, 1_000_000)
N_DOCUMENTS = 60
DRAW = np.random.default_rng(2)
NOISE = 0.004 * DRAW.standard_normal((3, 101))
NOISE[:, 0] = 0.002 * DRAW.standard_normal(3)


def number(value: float, own: float = 0.0005) -> Replicates:
    """Return a number of three SAE seeds, whose noise is shared by all portions but for `own` of it."""
    drawn = own * np.random.default_rng(round(1e6 * value)).standard_normal(NOISE.shape)
    return Replicates((value + NOISE + drawn)[None], (0,), (0, 1, 2), drawn=False)


@pytest.mark.parametrize(
    ("half", "whole", "told"),
    [(0.30, 0.303, True), (0.30, 0.24, False), (0.061, 0.060, True), (0.05, 0.06, False)],
)
def test_what_moves_by_a_tenth_is_withheld(half: float, whole: float, told: bool) -> None:
    found = change([number(half)], [number(whole)], [1], N_DOCUMENTS)
    assert (found.withheld is None) is told
    assert found.change == pytest.approx(whole - half, abs=0.002)
    # what portions share cancels: the difference is known better than either
    assert found.se is not None
    assert found.se < 0.002
    assert found.share == pytest.approx(whole, abs=0.005)


def test_a_change_that_is_badly_known_is_withheld() -> None:
    still = change([number(0.3, own=0.05)], [number(0.3001, own=0.05)], [1], N_DOCUMENTS)
    assert still.withheld is not None


def test_an_effect_moves_with_its_arms_apart_and_not_where_they_move_together() -> None:
    halves, wholes = [number(0.40), number(0.10)], [number(0.42), number(0.12)]
    together = change(halves, wholes, [1, -1], N_DOCUMENTS)
    assert together.withheld is None
    apart = change([number(0.45), number(0.10)], wholes, [1, -1], N_DOCUMENTS)
    assert apart.withheld is not None
    assert apart.change == pytest.approx(-0.05, abs=0.004)


def test_of_an_r2_what_is_left_is_judged() -> None:
    half, whole = number(0.880), number(0.900)
    assert change([half], [whole], [1], N_DOCUMENTS).withheld is None
    rest = change([half], [whole], [1], N_DOCUMENTS, is_rest=True)
    assert rest.withheld is not None
    assert rest.share == pytest.approx(0.1, abs=0.01)


def test_a_share_of_nothing_and_one_seed_are_withheld_with_the_reason() -> None:
    nothing = Replicates(np.zeros((1, 3, 50)), (0,), (0, 1, 2), drawn=False)
    assert change([nothing], [nothing], [1], N_DOCUMENTS).withheld is not None
    one = dataclasses.replace(number(0.3), values=number(0.3).values[:, :1], sae_seeds=(0,))
    found = change([one], [one], [1], N_DOCUMENTS)
    assert found.se is None
    assert found.withheld is not None
    assert "seed" in found.withheld


@pytest.mark.parametrize(("end", "by", "exponent"), [(0.3, 0.2, 0.6), (0.75, -0.25, 1.0)])
def test_the_end_of_a_planted_curve_is_found(end: float, by: float, exponent: float) -> None:
    values = [end + by * (n / TOKENS[0]) ** -exponent for n in TOKENS]
    found = end_of_curve(TOKENS, [number(value, own=0.0) for value in values])
    assert found.point == pytest.approx(end, abs=0.01)
    assert np.abs(found.values - end).max() < 0.05


def test_curves_without_an_end_say_so() -> None:
    straight = [number(value, own=0.0) for value in (0.5, 0.4, 0.3, 0.2)]
    with pytest.raises(NotEstimable, match="exponent"):
        end_of_curve(TOKENS, straight)
    with pytest.raises(NotEstimable, match="portions"):
        end_of_curve(TOKENS[:2], straight[:2])


def test_what_is_withheld_has_no_number_and_the_reason() -> None:
    table = ReplicateTable({"h": N_DOCUMENTS}, {"h": 9_000}, frozenset())
    cells = {arm: ReplicateKey(arm, "h", "s", "origin_explained") for arm in "abcd"}
    for level, cell in zip((0.5, 0.3, 0.2, 0.1), cells.values(), strict=True):
        for seed, values in enumerate(number(level).values[0]):
            table.add(cell, 0, seed, values)
    a, b, _, d = cells.values()
    table.withheld[a, b] = "withheld: the effect moves"
    table.withheld[d,] = "withheld: the arm moves"
    pairs = [("a", "b"), ("a", "c"), ("a", "d")]
    found = effects(table, pairs, DECLARED).set_index("control")
    assert found["effect"].notna().to_dict() == {"b": False, "c": True, "d": False}
    assert found.loc["b", "reason"] == "withheld: the effect moves"
    assert found.loc["b", ["arm_value", "control_value"]].notna().all()
    assert "the arm moves" in found.loc["d", "reason"]
    assert found.loc["d", ["low", "se", "control_value"]].isna().all()
    both = interactions(table, {"design": "abcd"}, DECLARED)
    assert both["effect"].isna().all()
    assert "the arm moves" in both["reason"][0]
