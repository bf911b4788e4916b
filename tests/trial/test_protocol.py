from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import trial_table, write_toml
from sae_placebo.core.errors import SpecError
from sae_placebo.trial.plan import ArmModel, plan_steps
from sae_placebo.trial.spec import load_trial
from sae_placebo.trial.template import TEMPLATE


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
    for path in Path(__file__).parents[2].joinpath("examples").glob("*.toml"):
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
        ("hookpoints=[]", r"at hookpoints: The list should have at least 1 item, not 0$"),
        (
            'contrasts=[["trained"]]',
            r"at contrasts.0: a contrast is a pair \[arm, control\] of two arms' names "
            r"\(found \['trained'\]\)$",
        ),
        (
            'contrasts=[["trained", "redraw", "x"]]',
            r"at contrasts.0: a contrast is a pair \[arm, co",
        ),
        ('contrasts=["trained"]', r"at contrasts.0: a contrast is a pair .* \(found 'trained'\)$"),
        ("contrasts=[[]]", r"at contrasts.0: a contrast is a pair .* \(found \[\]\)$"),
        ('name="a b"', r"at name: a name holds letters .*, digits, '_', '-' and '.' .*found 'a b'"),
        ('arms."a b".control="redraw"', r"at arms.a b: a name holds letters"),
        ("text={source='python-stdlib'}", r"at text.train_tokens: it is missing: set it"),
        ("use.null_firings=7", r"at use: null_firings is 7 and firings 6"),
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
        ('use.arms=["reddraw"]', r"use.arms: no arm is called 'reddraw'. Did you mean 'redraw'\?"),
        ('audit.arms=["reddraw"]', r"audit.arms: no arm is called 'reddraw'"),
        (
            'use.hookpoints=["model.layers.0"]',
            r"use.hookpoints: no hookpoint is called 'resid_post.0'. .* Known: resid_post.1",
        ),
        ('audit.hookpoints=["resid_post.7"]', r"audit.hookpoints: no hookpoint .*'resid_post.7'"),
        ('use.hookpoints=["resid_pst.1"]', r"at use.hookpoints: .*Did you mean 'resid_post.1'\?"),
        ('structure.placebo="reddraw"', r"structure.placebo: no arm is called 'reddraw'"),
        ('structure.placebo="trained"', r"'trained', which does not re-draw the weights"),
        ("use.negligible=0.1", r"negligible is 0.1 and least_effect 0.001"),
        ('arms.c={control="cascade", last=9}', r"arms.c: control 'cascade': last = 9, .* 3 layers"),
        ('arms.c={control="revision", revision="step9"}', r"arms.c: .*has no revision 'step9'"),
        ('arms.Redraw={control="init"}', r"arms.redraw and arms.Redraw differ in case only"),
        ('saes.TopK={kind="topk", d_sae=64, k=4}', r"saes.topk and saes.TopK differ in case only"),
        (
            'arms.redraw-0={dictionary="pca"}',
            r"arms.redraw-0 and a re-draw of arms.redraw .*'redraw-0': rename one",
        ),
        ('arms.Redraw-1={control="init"}', r"would both be called 'redraw-1'"),
        ("text.train_tokens=1e4", r"found 10000.0; a whole number has no point .*: 10000"),
        ('use.latents="al"', r"at use.latents: .*valid integer or 'all' \(found 'al'\)"),
        ("baselines.distortions=[]", r"at baselines.distortions: The list should have at least 1"),
        ('use.arms="trained"', r"at use.arms: Input should be a valid list \(found 'trained'\)"),
        ('model="pylm"', r"at model: Input should be a valid table \(found 'pylm'\)"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(
    table: dict[str, Any], override: str, words: str
) -> None:
    from sae_placebo.core.errors import PlaceboError

    with pytest.raises(PlaceboError, match=words):
        load_trial(table, overrides=[override])


@pytest.mark.parametrize(
    "place", ["text.source", "model.id", "model.revision", "device", "use.arms"]
)
def test_a_name_of_thousands_of_letters_is_one_short_sentence(
    table: dict[str, Any], place: str
) -> None:
    from sae_placebo.core.errors import PlaceboError

    value = f'"{"a" * 5_000}"'
    with pytest.raises(PlaceboError, match=r"aaaa") as refusal:
        load_trial(
            table, overrides=[f"{place}=[{value}]" if place == "use.arms" else f"{place}={value}"]
        )
    assert len(str(refusal.value)) < 300


def test_a_default_part_of_a_small_whole_is_all_of_it(table: dict[str, Any]) -> None:
    spec = load_trial(table, overrides=["use.nulls=3", "use.firings=2"])
    assert (spec.use.firings, spec.use.null_firings) == (2, 32)
    assert load_trial(spec.model_dump(mode="json")) == spec


def test_a_file_that_is_missing_or_not_toml_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="there is no trial file at"):
        load_trial(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(SpecError, match="is not TOML"):
        load_trial(tmp_path / "bad.toml")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "sets nothing; `sae-placebo init` writes one"),
        (b"# a comment\n", "sets nothing"),
        (bytes(range(256)), "is no UTF-8 text"),
        ('name = "x"'.encode("utf-16"), "is no UTF-8 text: save it as UTF-8"),
        (b"\x00\x01", "is not TOML"),
        (b"name = " + b"[" * 5_000, "is not TOML: it is nested too deeply"),
        (b"seed = " + b"9" * 5_000, "is not TOML: .*digits"),
    ],
)
def test_a_file_that_is_no_trial_file_says_so(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "trial.toml").write_bytes(content)
    with pytest.raises(SpecError, match=words):
        load_trial(tmp_path / "trial.toml")


def test_a_folder_or_nothing_is_no_trial_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="is no trial file: name a file in it"):
        load_trial(tmp_path)
    with pytest.raises(SpecError, match="'' is no trial file"):
        load_trial("")


def test_a_byte_order_mark_and_windows_line_ends_are_no_fault(
    table: dict[str, Any], tmp_path: Path
) -> None:
    path = write_toml(tmp_path / "trial.toml", table)
    plain = load_trial(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert load_trial(path) == plain


def test_overrides_leave_the_caller_what_it_gave(table: dict[str, Any]) -> None:
    before = copy.deepcopy(table)
    spec = load_trial(
        table, overrides=["saes.topk.k=8", "use.latents=9", 'arms.more.data="markov"']
    )
    assert table == before
    assert (spec.saes["topk"].l0_target(), spec.use.latents) == (8, 9)
    assert load_trial(load_trial(table), overrides=["use.latents=9"]).use.latents == 9


def test_overrides_reach_names_with_dots_and_take_bare_words(table: dict[str, Any]) -> None:
    table["saes"]["topk.small"] = table["saes"].pop("topk")
    overrides = ['saes."topk.small".k = 3', "arms.redraw.control=permute", "use.hookpoints=[]"]
    spec = load_trial(table, overrides=overrides)
    assert spec.saes["topk.small"].l0_target() == 3
    assert spec.arms["redraw"].kind == "permute"
    assert spec.use.hookpoints == ()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["saes.topk.k="], "dotted.key=value, not 'saes.topk.k='"),
        (["=3"], "dotted.key=value"),
        (["seed"], "dotted.key=value"),
        (["saes..k=3"], "'saes..k' is no dotted key"),
        (["saes.topk..=3"], "is no dotted key"),
        (
            ["saes.topk.k=3", "saes.topk.k=4"],
            "'saes.topk.k' and then 'saes.topk.k', which replaces",
        ),
        (["saes.topk.k=3", 'saes.topk={kind="relu"}'], "and then 'saes.topk', which replaces it"),
        (["name.deep.er=3"], "'name' is a value, not a table"),
        (["saes.topk.resid_post.1=3"], "no setting of SAE 'topk' is called 'resid_post'"),
        (["structure.ladder.decay=3"], r"structure.ladder.decay: .*Did you mean 'decays'\?"),
        (["hookpoints=[resid_post.1]"], r"'\[resid_post.1\]' is no TOML value"),
        (["seed=1\nname='other'"], "holds more than one setting"),
    ],
)
def test_an_override_that_cannot_be_meant_is_refused(
    table: dict[str, Any], overrides: list[str], words: str
) -> None:
    with pytest.raises(SpecError, match=words):
        load_trial(table, overrides=overrides)


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
        "import sys\nfrom sae_placebo.cli.main import main\nsys.argv = ['x', 'check', sys.argv[1]]\n"
        "try:\n    main()\nexcept SystemExit as stop:\n"
        "    print(stop.code, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "1 False False"
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
