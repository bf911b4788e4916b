"""The section on where an SAE misleads: nulls beside numbers, what to act on, curves, untrusted text."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from sae_placebo.report import Tables, read_tables
from sae_placebo.report.build import render_section
from sae_placebo.report.sections import SECTIONS, View
from sae_placebo.report.sections.misleading import BETTER, LEVEL, WORSE
from synthetic_trial import EVIL, Settings, write_trial

NAN = float("nan")


def quantity(name: str, better: str, advice: str = "Do this.", along: str = "") -> dict[str, str]:
    told = {"name": name, "unit": "share", "better": better, "null": "zero", "along": along}
    return told | {"definition": f"what {name} is", "advice": advice}


AUDITS = {
    "first": {
        "title": "First audit",
        "question": "Is it so?",
        "source": "a paper",
        "quantities": [
            quantity("bad", "lower"),
            quantity("level", "lower"),
            quantity("good", "higher"),
            quantity("unknown", "lower"),
            quantity("by_label", "higher"),
            quantity("line", "neither", along="place"),
        ],
    }
}


def row(arm: str, name: str, value: float, low: float, high: float, **more: Any) -> dict[str, Any]:
    empty = {
        "null": 0.0,
        "null_low": NAN,
        "null_high": NAN,
        "at": NAN,
        "of": "tokens",
        "reason": "",
    }
    keys = {"arm": arm, "control_kind": arm, "model_seed": 0, "sae_seed": 0}
    place = {"hookpoint": "resid_post.1", "sae": "topk", "audit": "first", "n": 100}
    return keys | place | empty | {"name": name, "value": value, "low": low, "high": high} | more


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    folder = write_trial(tmp_path_factory.mktemp("misleading") / "trial", Settings(latents=30))
    return read_tables(folder)


@pytest.fixture(scope="module")
def tables(bare: Tables) -> Tables:
    trained, control = bare.trained(), next(a for a in bare.arms if a != bare.trained())
    assert trained is not None
    rows = []
    for arm, shift in ((trained, 0.0), (control, 0.1)):
        rows += [
            row(arm, "bad", 0.4 + shift, 0.3 + shift, 0.5 + shift),
            row(arm, "level", 0.05, -0.1, 0.2),
            row(arm, "good", 0.4, 0.3, 0.5, null_low=-0.1, null_high=0.1),
            row(arm, "unknown", NAN, NAN, NAN, reason=f"too few {EVIL}"),
            row(arm, f"by_label/{EVIL}", -0.5, -0.6, -0.4),
            *(row(arm, "line", x, x - 0.1, x + 0.1, at=x) for x in (0.0, 1.0)),
        ]
    table = pd.DataFrame(rows)
    return dataclasses.replace(bare, audits=table, trial=bare.trial | {"audits": AUDITS})


def block(tables: Tables) -> dict[str, Any]:
    return dict(SECTIONS["misleading"].build(View.of(tables)).values["blocks"][0])


def test_a_number_is_worse_only_where_its_interval_lies_on_the_bad_side(tables: Tables) -> None:
    (one,) = block(tables)["audits"]
    states = {r["name"]: r["cells"][0]["state"] for r in one["rows"]}
    assert states["bad"] == WORSE
    assert states["level"] == LEVEL
    assert states["good"] == BETTER
    assert states["unknown"] == ""
    assert states[f"by_label/{EVIL}"] == WORSE


def test_what_to_act_on_is_surely_worse_and_no_single_label(tables: Tables) -> None:
    actions = block(tables)["actions"]
    assert [action["name"] for action in actions] == ["bad"]
    assert actions[0]["advice"] == "Do this."
    assert len(actions[0]["others"]) == 1


def test_what_cannot_be_estimated_has_its_reason_and_text_is_escaped(tables: Tables) -> None:
    html = render_section(SECTIONS["misleading"], View.of(tables))
    assert EVIL not in html
    assert "too few" in html
    assert "what bad is" in html


def test_curves_have_their_nulls_and_say_along_what(tables: Tables) -> None:
    content = SECTIONS["misleading"].build(View.of(tables))
    (figure,) = content.figures.values()
    assert len(figure["data"]) == 4  # two arms, each with its null
    assert figure["layout"]["xaxis"]["title"]["text"] == "place"


def test_without_audits_the_section_says_so(bare: Tables) -> None:
    assert "No SAE was audited" in render_section(SECTIONS["misleading"], View.of(bare))
