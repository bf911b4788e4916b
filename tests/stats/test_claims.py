"""An effect is claimed where it holds against every fair placebo, and its size is that of the smallest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from sae_placebo.stats.claims import claims

FAIR = ("calibrated", "surrogate")


def effects(*rows: tuple[str, float, float, float]) -> pd.DataFrame:
    table = [
        {
            **{"metric": "m", "hookpoint": "resid_post.0", "sae": "topk", "arm": "trained"},
            **{"control": control, "effect": effect, "low": low, "high": high, "null": 0.0},
            **{"unit": "share", "reason": None if np.isfinite(effect) else "nothing is known"},
        }
        for control, effect, low, high in rows
    ]
    return pd.DataFrame(table)


def only(*rows: tuple[str, float, float, float]) -> dict[str, Any]:
    (found,) = claims(effects(*rows), ["trained"], FAIR).to_dict("records")
    return found


def test_the_smaller_effect_is_claimed_where_both_hold() -> None:
    found = only(
        ("calibrated", 0.3, 0.2, 0.4), ("surrogate", 0.2, 0.1, 0.3), ("redraw", 0.01, -1, 1)
    )
    assert found["claimed"]
    assert (found["against"], found["effect"], found["low"]) == ("surrogate", 0.2, 0.1)
    assert found["reason"] is None
    assert found["placebos"] == list(FAIR)
    below = only(("calibrated", -0.3, -0.4, -0.2), ("surrogate", -0.2, -0.3, -0.1))
    assert (below["claimed"], below["against"]) == (True, "surrogate")


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (("surrogate", 0.2, -0.1, 0.3), "against surrogate holds 0"),
        (("surrogate", -0.2, -0.3, -0.1), "higher than calibrated, lower"),
        (("surrogate", np.nan, np.nan, np.nan), "not estimable against surrogate: nothing"),
        (("surrogate", 0.2, np.nan, np.nan), "no interval against surrogate"),
        (("redraw", 0.2, 0.1, 0.3), "not compared with surrogate"),
    ],
)
def test_what_does_not_hold_against_one_is_not_claimed(second: Any, reason: str) -> None:
    found = only(("calibrated", 0.3, 0.2, 0.4), second)
    assert not found["claimed"]
    assert reason in found["reason"]


def test_without_a_fair_placebo_nothing_is_claimed() -> None:
    assert len(claims(effects(("redraw", 0.3, 0.2, 0.4)), ["trained"], ())) == 0
    assert len(claims(effects(("redraw", 0.3, 0.2, 0.4)), ["trained"], FAIR)) == 0
