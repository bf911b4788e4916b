"""A trial with every control of the model, the data and the dictionary, on an untied tiny model."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sae_placebo as sp
from conftest import save_model, save_tokenizer, trial_table
from sae_placebo.controls import CONTROLS
from sae_placebo.controls.data import DATA_CONTROLS
from sae_placebo.controls.dictionary import DICTIONARY_CONTROLS
from sae_placebo.core.errors import ModelError, PlaceboError, SpecError
from sae_placebo.core.store import Store
from sae_placebo.data.token_files import read_rows
from sae_placebo.latents.classes.classification import CLASS_NAMES
from sae_placebo.saes.formats import saelens
from sae_placebo.trial.artefacts import sae_folder
from sae_placebo.trial.plan import ArmModel, plan_steps
from sae_placebo.trial.spec import load_trial

ARMS: dict[str, Any] = {
    "trained": {"control": "trained"},
    "redraw": {"control": "redraw"},
    "keep_W_E": {"control": "redraw", "keep": ["embeddings"]},
    "keep_both": {"control": "redraw", "keep": ["embeddings", "unembedding"]},
    "init": {"control": "init"},
    "revision": {"control": "revision", "revision": "early"},
    "redraw_embeddings": {"control": "redraw_embeddings"},
    "permute": {"control": "permute"},
    "spectrum": {"control": "spectrum"},
    "cascade": {"control": "cascade", "last": 2},
    "occurrence": {"control": "noise_embeddings", "per": "occurrence"},
    "unattending": {"control": "ablate_attention", "of": {"control": "redraw"}},
    "calibrated": {
        "control": "redraw_calibrated",
        "of": {"control": "redraw", "keep": ["embeddings"]},
        "tokens": 4_000,
    },
    "shuffle": {"data": "shuffle_tokens"},
    "redraw_shuffle": {"control": "redraw", "data": "shuffle_tokens"},
    "unigram": {"data": "unigram"},
    "markov": {"data": "markov"},
    "gaussian": {"data": "gaussian"},
    "surrogate": {"data": "surrogate"},
    "frozen_decoder": {"dictionary": {"kind": "frozen_decoder", "init": "cov"}},
    "frozen_encoder": {"dictionary": "frozen_encoder"},
    "soft_frozen": {"dictionary": "soft_frozen"},
    "untrained": {"dictionary": "untrained"},
    "pca": {"dictionary": "pca"},
    "retrained": {"dictionary": "retrained"},
}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    model = tmp_path_factory.mktemp("untied")
    save_model(model, tie_word_embeddings=False)
    save_tokenizer(model)
    save_model(model / "revisions" / "early", tie_word_embeddings=False, initializer_range=0.1)
    text = tmp_path_factory.mktemp("python-text")
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:90]:
        shutil.copy(path, text / path.name)
    table = trial_table(model, text, arms=ARMS, model_seeds=[0], name="arms")
    table["text"] |= {"train_tokens": 9_000, "heldout_tokens": 6_000}
    return table


@pytest.fixture(scope="module")
def finished(table: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> sp.Trial:
    return sp.run(table, tmp_path_factory.mktemp("arms"))


def test_every_control_that_exists_is_in_this_trial() -> None:
    spec = [arm.get("control", "trained") for arm in ARMS.values()]
    assert set(spec) == set(CONTROLS)
    assert {arm["data"] for arm in ARMS.values() if "data" in arm} == set(DATA_CONTROLS)
    given = [arm["dictionary"] for arm in ARMS.values() if "dictionary" in arm]
    assert {d if isinstance(d, str) else d["kind"] for d in given} == set(DICTIONARY_CONTROLS)


def test_every_arm_has_its_effects_and_its_latents(finished: sp.Trial) -> None:
    effects = finished.effects[finished.effects["arm"] == "trained"]
    assert set(effects["control"]) == set(ARMS) - {"trained"}
    found = effects[effects["metric"] == "explained_variance"]
    assert found["effect"].notna().all()
    assert set(finished.latents["arm"]) == set(ARMS)
    assert (finished.folder / "report" / "index.html").exists()


def test_w_u_lies_behind_every_hookpoint_so_its_arm_is_not_trained_twice(
    table: dict[str, Any], finished: sp.Trial
) -> None:
    plan = plan_steps(load_trial(table))
    # nor is the recipe's own arm, where no SAE is given
    same = {"keep_both": "keep_W_E", "retrained": "trained"}
    assert plan.same_as() == same
    assert {one["arm"]: one["same_as"] for one in finished.record["shared"]} == same
    # what a latent promotes is read off W_U, and decides only from the class `output` downwards
    below = CLASS_NAMES[CLASS_NAMES.index("output") :]
    of_heads = {f"share_{name}" for name in below}
    measured = finished.measurements[~finished.measurements["metric"].isin(of_heads)]
    a, b = (measured.query(f"arm == '{arm}'") for arm in ("keep_W_E", "keep_both"))
    assert a["metric"].tolist() == b["metric"].tolist()
    assert a["value"].tolist() == pytest.approx(b["value"].tolist(), nan_ok=True)
    a, b = (finished.latents.query(f"arm == '{arm}'") for arm in ("keep_W_E", "keep_both"))
    for name in set(a.columns) - {
        "arm",
        "control_kind",
        "class",
        "output_lift",
        "unembedding_kurtosis",
    }:
        assert a[name].reset_index(drop=True).equals(b[name].reset_index(drop=True)), name
    assert not np.allclose(a["unembedding_kurtosis"], b["unembedding_kurtosis"], equal_nan=True)
    trained = len(list(finished.folder.parents[1].glob("train/*")))
    assert trained == len(ARMS) - len(same)


def test_only_an_untied_head_is_behind_the_hookpoints(
    table: dict[str, Any], tiny_model: Path
) -> None:
    keep = {"control": "redraw", "keep": ["unembedding"]}
    arms = {"trained": ARMS["trained"], "redraw": ARMS["redraw"], "keep_W_U": keep}
    untied = load_trial(table | {"arms": arms})
    assert plan_steps(untied).same_as() == {"keep_W_U": "redraw"}
    tied = load_trial(table | {"model": {"id": str(tiny_model)}, "arms": arms})
    assert plan_steps(tied).same_as() == {}


def test_controls_of_the_dictionary_read_the_trained_arms_activations(
    table: dict[str, Any], finished: sp.Trial
) -> None:
    plan = plan_steps(load_trial(table))
    trained = ArmModel("trained", None)
    for arm in ("frozen_decoder", "frozen_encoder", "soft_frozen", "untrained", "pca"):
        assert plan.harvest[ArmModel(arm, None)] is plan.harvest[trained]
        assert plan.train[ArmModel(arm, None)].key != plan.train[trained].key


def test_every_sae_says_what_was_controlled(table: dict[str, Any], finished: sp.Trial) -> None:
    spec = load_trial(table)
    plan, store = plan_steps(spec), Store(finished.folder.parents[1])
    for one, step in plan.train.items():
        folder = sae_folder(store.path(step), "resid_post.1", "topk", 0)
        text = (folder / "cfg.json").read_text()
        controls = spec.arms[plan.same_as().get(one.arm, one.arm)]
        for part in (controls.control, controls.data, controls.dictionary):
            assert part is None or f'"{part.kind}"' in text, one


def test_a_frozen_decoder_kept_its_start_and_a_trained_one_did_not(
    table: dict[str, Any], finished: sp.Trial
) -> None:
    spec = load_trial(table)
    plan, store = plan_steps(spec), Store(finished.folder.parents[1])

    def decoder(arm: str) -> torch.Tensor:
        folder = store.path(plan.train[ArmModel(arm, None)])
        sae = saelens.read(sae_folder(folder, "resid_post.1", "topk", 0))
        return sae.params["W_dec"]

    start = spec.saes["topk"].create(32, 0).params["W_dec"]
    assert torch.equal(decoder("untrained"), start)
    cosine = (decoder("soft_frozen") * start).sum(dim=1)
    assert float(cosine.min()) >= 0.8 - 1e-5
    assert float((decoder("trained") * start).sum(dim=1).max()) < 0.99


def test_rewritten_text_keeps_its_layout_and_has_no_labels(
    table: dict[str, Any], finished: sp.Trial
) -> None:
    plan, store = plan_steps(load_trial(table)), Store(finished.folder.parents[1])
    own = read_rows(store.path(plan.tokenize))["heldout"]
    for arm in ("shuffle", "unigram", "markov"):
        step = plan.text[ArmModel(arm, 0)]
        rows = read_rows(store.path(step))["heldout"]
        assert rows.labels is None
        assert np.array_equal(rows.lengths, own.lengths)
        assert rows.names == own.names
        assert not np.array_equal(rows.token_ids, own.token_ids)
    # the placebo and the trained model read the very same shuffled tokens
    assert plan.text[ArmModel("redraw_shuffle", 0)] is plan.text[ArmModel("shuffle", 0)]


def test_coverage_is_there_where_labels_are_and_says_why_where_not(finished: sp.Trial) -> None:
    found = finished.measurements.query("metric == 'coverage_context'").set_index("arm")
    assert found.loc[["trained", "redraw", "gaussian", "surrogate", "pca"], "value"].notna().all()
    assert found.loc[["shuffle", "markov"], "value"].isna().all()
    assert found.loc["shuffle", "reason"].str.contains("a control of the data rewrote it").all()
    assert set(finished.coverage["arm"]) == set(ARMS) - {
        "shuffle", "redraw_shuffle", "unigram", "markov",
    }  # fmt: skip


def test_designs_have_interactions(finished: sp.Trial) -> None:
    designs = set(finished.interactions["design"])
    assert "embeddings_x_blocks" in designs
    assert any(name.startswith("model_x_data.shuffle_tokens") for name in designs)


@pytest.mark.parametrize(
    ("arm", "kind", "message"),
    [
        (
            {"data": "shufle_tokens"},
            SpecError,
            r"arms\.wrong\.data: .*Did you mean 'shuffle_tokens'",
        ),
        (
            {"dictionary": {"kind": "frozen_decoder", "init": "isotropic"}},
            SpecError,
            r"arms\.wrong\.dictionary.*frozen_decoder",
        ),
        ({}, SpecError, "an arm names a control, a data control or a dictionary control"),
        (
            {"control": "cascade", "last": 9},
            SpecError,
            r"arms\.wrong: .*last = 9, and the model has 3 layers; give 1 to 3",
        ),
        (
            {"control": "revision", "revision": "late"},
            ModelError,
            r"arms\.wrong: .* has no revision 'late'; it has early",
        ),
        (
            {"control": "ablate_attention", "of": {"control": "cascade", "last": 9}},
            SpecError,
            r"arms\.wrong: .*last = 9, and the model has 3 layers; give 1 to 3",
        ),
        (
            {"control": "ablate_attention", "of": "redaw"},
            SpecError,
            r"arms\.wrong.*of: no control is called 'redaw'. Did you mean 'redraw'",
        ),
    ],
)
def test_wrong_arms_are_refused_before_anything_runs(
    table: dict[str, Any],
    arm: dict[str, Any],
    kind: type[PlaceboError],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # no weights are read: a model's settings are all that is needed to refuse an arm
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", _not_loaded)
    arms = {"trained": ARMS["trained"], "wrong": arm}
    with pytest.raises(PlaceboError, match=message) as caught:
        plan_steps(load_trial(table | {"arms": arms}))
    assert type(caught.value) is kind


def test_attention_that_is_ablated_has_no_hookpoint(table: dict[str, Any]) -> None:
    wrong = {"hookpoints": ["resid_post.1", "attn_out.1"]}
    arms = {"trained": ARMS["trained"], "unattending": ARMS["unattending"]}
    with pytest.raises(
        SpecError, match=r"arms.unattending ablates attention, so attn_out.1 is zero"
    ):
        load_trial(table | wrong | {"arms": arms})


def _not_loaded(*_: object, **__: object) -> None:
    raise AssertionError("a model was loaded before its arms were checked")
