from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import trial_table, write_toml
from sae_placebo.errors import SpecError
from sae_placebo.plans import ArmModel, plan_steps
from sae_placebo.protocol import load_trial
from sae_placebo.template import TEMPLATE


@pytest.fixture
def table(tiny_model: Path, tiny_text: Path) -> dict[str, Any]:
    return trial_table(tiny_model, tiny_text)


def test_the_template_and_the_examples_are_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the text of one of them is written by the script beside it
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "prose.jsonl").write_text('{"text": "One."}')
    (tmp_path / "trial.toml").write_text(TEMPLATE)
    assert load_trial(tmp_path / "trial.toml").name == "my-trial"
    for path in Path(__file__).parents[1].joinpath("examples").glob("*.toml"):
        assert load_trial(path).arms


def test_a_protocol_survives_its_own_json(table: dict[str, Any]) -> None:
    spec = load_trial(table)
    assert load_trial(spec.model_dump(mode="json")) == spec
    named = ("redraw_keep_embeddings", "redraw")  # what a real W_E buys on random blocks
    assert spec.compared == (("trained", "redraw"), ("trained", "redraw_keep_embeddings"), named)
    assert spec.seeds_of("trained") == (None,)
    assert spec.seeds_of("redraw") == (0, 1)


def test_aliases_of_one_hookpoint_are_one(table: dict[str, Any]) -> None:
    table["hookpoints"] = ["blocks.1.hook_resid_post", "model.layers.1", "resid_post.1"]
    assert load_trial(table).hookpoints == ("resid_post.1",)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            'arms.redraw.control="redaw"',
            r"at arms.redraw.control: .*'redaw'. Did you mean 'redraw'\?",
        ),
        ('arms.redraw.keep=["embedings"]', r"Did you mean 'embeddings'\?"),
        ('saes.topk.kind="topkk"', r"at saes.topk: .*Did you mean 'topk'\?"),
        ("saes.topk.k=65", r"65.*64"),
        ('hookpoints=["resid_post.3"]', r"past the last layer: .* has 3 layers, so 0 to 2"),
        ('hookpoints=["resid_pst.1"]', r"Did you mean 'resid_post.1'\?"),
        ('hookpoints="resid_post.1"', r"hookpoints is a list"),
        ("hookpoints=[]", r"hookpoints"),
        ('text.source="/nowhere"', r"at text: no text is at '/nowhere'"),
        ("text.train_tokens=0", r"at text.train_tokens: .*found 0"),
        (
            "text.tokens=3",
            r"at text.tokens: no setting is called 'tokens'. Did you mean 'train_tokens'",
        ),
        ("sede=1", r"at sede: no setting is called 'sede'. Did you mean 'seed'\?"),
        ("sae_seeds=[1, 1]", r"sae_seeds holds a seed twice"),
        ("model_seeds=[]", r"at model_seeds"),
        ('name="../up"', r"at name"),
        ('model.id="/nowhere/model"', r"no folder /nowhere/model"),
        ('contrasts=[["trained", "reddraw"]]', r"contrasts: .*Did you mean 'redraw'\?"),
        ('contrasts=[["redraw", "redraw"]]', r"compared with itself"),
        (
            'contrasts=[["trained", "redraw"], ["trained", "redraw"]]',
            r"contrasts holds a pair twice",
        ),
        ("model_seeds=[99999999999999999999999]", r"at model_seeds.0"),
        ("text.context_tokens=300", r"context_tokens is 300 but .* has 256 positions"),
        ('arms.trained.control="redraw"', r"0 arms with control = 'trained'"),
        ('arms.redraw.control="trained"', r"2 arms with control = 'trained'"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(
    table: dict[str, Any], override: str, words: str
) -> None:
    from sae_placebo.errors import PlaceboError

    with pytest.raises(PlaceboError, match=words):
        load_trial(table, overrides=[override])


def test_a_file_that_is_missing_or_not_toml_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="there is no trial file at"):
        load_trial(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(SpecError, match="is not TOML"):
        load_trial(tmp_path / "bad.toml")


def test_keys_change_with_what_decides_them_and_with_nothing_else(table: dict[str, Any]) -> None:
    def keys(*overrides: str) -> dict[str, str]:
        plan = plan_steps(load_trial(table, overrides=overrides))
        arm = ArmModel("redraw", 0)
        return {
            "tokenize": plan.tokenize.key,
            "build": plan.build[arm].key,
            "harvest": plan.harvest[arm].key,
            "train": plan.train[arm].key,
            "measure": plan.measure[arm, "resid_post.1", "topk", 0].key,
        }

    base = keys()
    changed = {
        'name="other"': set(),
        "measurement.replicates=50": {"measure"},
        "training.batch_tokens=128": {"train", "measure"},
        "harvest.outlier_ratio=5.0": {"build", "harvest", "train", "measure"},
        'arms.redraw.keep=["norms"]': {"build", "harvest", "train", "measure"},
        "text.train_tokens=5000": {"tokenize", "build", "harvest", "train", "measure"},
        "seed=1": {"tokenize", "build", "harvest", "train", "measure"},
    }
    for override, stages in changed.items():
        found = keys(override)
        assert {stage for stage in base if found[stage] != base[stage]} == stages, override


def test_check_refuses_without_loading_a_model(table: dict[str, Any], tmp_path: Path) -> None:
    path = write_toml(tmp_path / "trial.toml", table | {"model_seeds": []})
    code = (
        "import sys\nfrom sae_placebo.cli import main\nsys.argv = ['x', 'check', sys.argv[1]]\n"
        "try:\n    main()\nexcept SystemExit as stop:\n"
        "    print(stop.code, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "1 False False"
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
