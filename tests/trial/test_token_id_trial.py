"""Whole trials: a model without a tokenizer, on token ids; positions and tokens that are left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sae_placebo as sp
from command_line import call
from conftest import save_model, trial_table, write_toml
from sae_placebo.core.errors import ModelError
from sae_placebo.data.text import TextSpec, tokenize
from sae_placebo.data.token_files import read_rows
from sae_placebo.data.tokenizing import NO_WORDS, is_numbered
from sae_placebo.trial.plan import plan_steps
from sae_placebo.trial.results import TABLES
from sae_placebo.trial.spec import load_trial

POSITIONS, EXCLUDED = (2, 20, 1), 300


@pytest.fixture(scope="module")
def bare_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny model, without a tokenizer; its config names id 0 as BOS."""
    folder = tmp_path_factory.mktemp("bare-model")
    save_model(folder, bos_token_id=0)
    return folder


@pytest.fixture(scope="module")
def id_text(tiny_text: Path, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny text, as token ids."""
    path = tmp_path_factory.mktemp("id-text") / "ids.jsonl"
    texts = [json.loads(line)["text"] for line in tiny_text.read_text().splitlines()]
    ids = tiny_tokenizer(texts, add_special_tokens=False)["input_ids"]
    path.write_text("\n".join(json.dumps({"ids": one}) for one in ids), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trial(bare_model: Path, id_text: Path, tmp_path_factory: pytest.TempPathFactory) -> sp.Trial:
    return sp.run(trial_table(bare_model, id_text), tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def masked(tiny_model: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> sp.Trial:
    table = trial_table(tiny_model, tiny_text)
    table["arms"]["shuffled"] = {"control": "trained", "data": "shuffle_tokens"}
    table["text"] |= {"positions": list(POSITIONS), "exclude_tokens": [EXCLUDED]}
    table["text"] |= {"train_tokens": 4_000}
    return sp.run(table, tmp_path_factory.mktemp("masked"))


def test_a_model_without_a_tokenizer_is_tried_on_ids(trial: sp.Trial) -> None:
    for name in TABLES:
        assert (trial.folder / f"{name}.parquet").exists(), name
    latents = trial.latents
    assert latents["attribute"].isna().all()
    assert latents["attribute_r2"].isna().all()
    assert latents["family_mass"].isna().all()
    assert latents["top_token_mass"].notna().any()
    tops = latents["top_token"].dropna()
    assert len(tops)
    assert tops.str.fullmatch(r"#\d+").all()
    assert len(set(latents["class"])) > 1
    for share, column in (("attribute", "attribute_r2"), ("token_family", "family_mass")):
        shares = trial.measurements.query(f"metric == 'share_{share}'")
        assert len(shares)
        assert shares["value"].isna().all()
        assert shares["reason"].str.contains(column).all()
    rules = latents["rule"].dropna()
    assert len(rules)
    assert not rules.str.contains("spelling").any()


def test_the_report_and_the_cards_show_numbers(trial: sp.Trial) -> None:
    shown = {token for tokens in trial.passages["tokens"] for token in tokens}
    assert shown
    assert all(token.startswith("#") for token in shown)
    assert sorted(shown)[0] in trial.report.read_text(encoding="utf-8")
    audits = trial.audits
    letters = audits[audits["reason"].astype(str).str.contains(NO_WORDS)]
    assert len(letters)


def test_bos_is_what_the_config_names(trial: sp.Trial, bare_model: Path) -> None:
    plan = plan_steps(load_trial(trial_table(bare_model, Path(trial.record["text"]["source"]))))
    rows = read_rows(trial.folder.parents[1] / "tokenize" / plan.tokenize.folder_name)
    assert np.all(rows["train"].token_ids[:, 0] == 0)


def test_the_command_line_takes_ids(
    trial: sp.Trial,
    bare_model: Path,
    id_text: Path,
    tiny_text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = trial.folder.parents[1]
    file = write_toml(tmp_path / "trial.toml", trial_table(bare_model, id_text))
    for verb in ("check", "plan", "run", "report"):
        assert call(monkeypatch, verb, file, "--store", store) == 0, capsys.readouterr().err
    capsys.readouterr()
    file = write_toml(tmp_path / "words.toml", trial_table(bare_model, tiny_text))
    for verb in ("check", "run"):
        assert call(monkeypatch, verb, file, "--store", tmp_path / "new") == 1
        error = capsys.readouterr().err
        assert "no tokenizer" in error
        assert "token ids in the place of text" in error
    table = trial_table(bare_model, id_text)
    for excluded, words in ((True, "says which tokens are special"), ([512], "holds 512")):
        table["text"]["exclude_tokens"] = excluded
        file = write_toml(tmp_path / "excluded.toml", table)
        assert call(monkeypatch, "check", file, "--store", tmp_path / "new") == 1
        assert words in capsys.readouterr().err
    with pytest.raises(ModelError, match=r"no tokenizer.*text\.field"):
        sp.load_tokenizer(str(bare_model))


def test_a_tokenizer_shows_ids_as_text(tiny_model: Path, id_text: Path, tmp_path: Path) -> None:
    from sae_placebo.core.progress import Progress
    from sae_placebo.core.store import Store
    from sae_placebo.trial.stages.materials import Materials

    plan = plan_steps(load_trial(trial_table(tiny_model, id_text)))
    materials = Materials(plan, Store(tmp_path), Progress())
    assert not is_numbered(materials.vocabulary)
    assert len(materials.vocabulary) == 512
    assert materials.rows["heldout"].usable().sum() == 2_000


def test_what_is_left_out_is_left_out_everywhere(masked: sp.Trial, tiny_tokenizer: Any) -> None:
    record = masked.record
    for split, n in (("train", 4_000), ("heldout", 2_000)):
        assert record["text"]["splits"][split]["n_tokens"] == n
        masks = record["masks"][split]
        assert masks["outside_positions"] > n / 4
        assert masks["excluded_tokens"] > 0
        assert "text.positions = [2, 20, 1]" in masks["rule"]
        assert f"the token ids {EXCLUDED} (text.exclude_tokens)" in masks["rule"]
    text = TextSpec.model_validate(record["spec"]["text"])
    rows = tokenize(text, tiny_tokenizer, record["spec"]["seed"])["heldout"]
    outside = np.ones(rows.token_ids.shape[1], dtype=bool)
    outside[slice(*POSITIONS)] = False
    real = np.arange(rows.token_ids.shape[1]) < rows.lengths[:, None]
    real[:, 0] = False
    masks = record["masks"]["heldout"]
    assert masks["outside_positions"] == (real & outside).sum()
    assert masks["excluded_tokens"] == (real & ~outside & (rows.token_ids == EXCLUDED)).sum()
    excluded = tiny_tokenizer.decode([EXCLUDED])
    assert not (masked.latents["top_token"] == excluded).any()
    assert set(masked.latents["arm"]) == set(record["arms"])
    assert (masked.latents["n_tokens"] <= 2_000).all()
    page = masked.report.read_text(encoding="utf-8")
    assert "text.positions" in page


def test_passages_show_what_is_left_out_without_an_activation(masked: sp.Trial) -> None:
    assert any(
        None in list(a) or np.isnan(np.array(a, float)).any()
        for a in masked.passages["activations"]
    )
