"""Examining an SAE that one has: from its folder or an object to a table of latents."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import sae_placebo as sp
from conftest import trial_table
from sae_placebo.cli.main import app
from sae_placebo.core.errors import PlaceboError, SpecError
from sae_placebo.saes.base import SAE, parse_sae
from sae_placebo.saes.formats import read_sae, saelens
from sae_placebo.saes.formats.objects import save_object
from sae_placebo.trial.examine_file import ExamineSpec, write_trial
from sae_placebo.trial.spec import load_trial

PLACE = "resid_post.1"
FORMATS = Path(__file__).parents[1] / "saes" / "given"


def small(model: Path, text: Path) -> tuple[str, ...]:
    """Settings of a trial that takes a few seconds, as `--set` takes them."""
    table = trial_table(model, text)
    table["use"] |= {"latents": 4}
    found = []

    def flat(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                flat(f"{prefix}.{key}", inner)
        else:
            found.append(f"{prefix}={json.dumps(value)}")

    for name in (
        "text",
        "training",
        "harvest",
        "measurement",
        "baselines",
        "use",
        "circuits",
        "audit",
    ):
        flat(name, table[name])
    return tuple(one for one in found if not one.startswith("text.source"))


@pytest.fixture(scope="module")
def settings(tiny_model: Path, tiny_text: Path) -> ExamineSpec:
    return ExamineSpec(name="mine", overrides=small(tiny_model, tiny_text))


@pytest.fixture(scope="module")
def sae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JumpReLU SAE of the tiny model's width, in a folder of SAELens, which does not say its L0."""
    spec = parse_sae({"kind": "jumprelu", "d_sae": 64, "coefficient": 0.0})
    made = spec.create(32, 3)
    params = dict(made.params) | {"threshold": torch.full((64,), 0.6)}
    folder = tmp_path_factory.mktemp("given") / "sae"
    saelens.write(SAE(spec, params), folder, {"hook_name": "blocks.1.hook_resid_post"})
    config = json.loads((folder / "cfg.json").read_text())
    del config["metadata"]["sae_placebo_spec"]
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def found(
    sae: Path,
    tiny_model: Path,
    tiny_text: Path,
    settings: ExamineSpec,
    tmp_path_factory: pytest.TempPathFactory,
) -> sp.Examined:
    store = tmp_path_factory.mktemp("examined")
    return sp.examine(sae, str(tiny_model), tiny_text, store, settings=settings)


def test_every_latent_has_what_is_said_of_it_and_why(found: sp.Examined) -> None:
    table = found.latents
    assert set(table["arm"]) == {"given", "retrained"}
    assert len(table.query("arm == 'given'")) == 64
    assert table["placebo"].isin(["better", "no better", "cannot tell"]).all()
    assert (table["why"].str.len() > 0).all()
    assert table["class"].notna().all()
    dead = table[table["class"] == "dead"]
    assert (dead["placebo"] == "no better").all()
    asked = table["use"].notna()
    assert asked.any()
    assert (table.loc[~asked, "use_reason"] == "not among the latents that were asked").all()
    # one given seed: nothing is known of another
    assert table.query("arm == 'given'")["has_seed_partner"].isna().all()
    assert table.query("arm == 'retrained'")["has_seed_partner"].notna().any()
    read = pd.read_csv(found.table)
    assert len(read) == len(table)
    assert list(read["why"]) == list(table["why"])


def test_the_summary_has_the_placebos_own_rows(found: sp.Examined) -> None:
    said = found.summary()
    assert "given: 64 latents of 1 SAE\n" in said
    assert "redraw_calibrated: 64 latents of 1 SAE" in said
    assert "no better" in said


def test_the_recipes_l0_is_the_given_saes(found: sp.Examined, sae: Path) -> None:
    spec = load_trial(found.trial.folder.parents[1] / "mine.toml")
    (record,) = found.trial.record["arms"]["given"]["records"]
    (said,) = record["given"]
    assert spec.saes["mine"].l0_target() == pytest.approx(said["l0"], rel=0.2)
    assert spec.measurement.l0_tolerance == 0.03
    assert spec.given == {"mine": {"given": (str(sae),)}}


def test_the_trial_file_is_repeated_to_the_same_results(found: sp.Examined) -> None:
    store = found.trial.folder.parents[1]
    again = sp.run(store / "mine.toml", store)
    pd.testing.assert_frame_equal(again.latents, found.trial.latents)


class Dense:
    """An SAE as a user writes one: dense codes, any attributes."""

    def __init__(self, d_in: int, d_sae: int, k: int = 0, take_off: bool = True) -> None:
        draw = torch.Generator().manual_seed(5)
        self.W_enc = torch.randn(d_in, d_sae, generator=draw) / d_in**0.5
        self.W_dec = torch.nn.functional.normalize(torch.randn(d_sae, d_in, generator=draw), dim=1)
        self.b_enc = 0.1 * torch.randn(d_sae, generator=draw)
        self.b_dec = torch.randn(d_in, generator=draw)
        self.k, self.take_off = k, take_off

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        z = torch.relu((x - self.b_dec * self.take_off) @ self.W_enc + self.b_enc)
        if not self.k:
            return z
        values, latents = z.topk(self.k)
        return torch.zeros_like(z).scatter(1, latents, values)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return codes @ self.W_dec + self.b_dec


class Linear(torch.nn.Module):
    """Another's SAE as a module: an encoder that is a layer, thresholds, a square matrix."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder = torch.nn.Linear(width, width)
        self.W_dec = torch.nn.Parameter(torch.eye(width))
        self.threshold = torch.nn.Parameter(torch.full((width,), 0.3))
        self.b_dec = torch.nn.Parameter(torch.zeros(width))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        z = self.encoder(x)
        return z * (z > self.threshold)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return codes @ self.W_dec + self.b_dec


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: Dense(32, 96), "relu"),
        (lambda: Dense(32, 96, take_off=False), "relu"),
        (lambda: Dense(32, 96, k=5), "topk"),
        (lambda: Linear(32), "jumprelu"),
    ],
)
def test_an_object_is_read_as_what_its_codes_are(
    make: Callable[[], Any], kind: str, tmp_path: Path
) -> None:
    asked = make()
    x = torch.randn(300, 32, generator=torch.Generator().manual_seed(1))
    save_object(asked, tmp_path / "sae", lambda: x)
    given = read_sae(tmp_path / "sae")
    assert given.sae.spec.kind == kind
    with torch.no_grad():
        torch.testing.assert_close(given.encode(x).dense(), asked.encode(x), atol=1e-5, rtol=1e-4)


def test_an_object_whose_codes_are_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    x = torch.randn(50, 32, generator=torch.Generator().manual_seed(1))
    odd = Dense(32, 96)
    encode = odd.encode
    odd.encode = lambda x: torch.tanh(encode(x))  # type: ignore[method-assign]
    with pytest.raises(SpecError, match="as no architecture here does"):
        save_object(odd, tmp_path / "sae", lambda: x)
    with pytest.raises(SpecError, match="activations have width 16"):
        save_object(Dense(32, 96), tmp_path / "sae", lambda: x[:, :16])
    bare = Dense(32, 96)
    del bare.W_enc
    with pytest.raises(SpecError, match="no matrix W_enc"):
        save_object(bare, tmp_path / "sae", lambda: x)


def test_an_object_is_examined_like_its_folder(
    tiny_model: Path, tiny_text: Path, tmp_path: Path, settings: ExamineSpec
) -> None:
    path = write_trial(Dense(32, 64, k=4), str(tiny_model), tiny_text, tmp_path, PLACE, settings)
    spec = load_trial(path)
    assert spec.hookpoints == (PLACE,)
    assert spec.saes["mine"].kind == "topk"
    assert spec.saes["mine"].l0_target() == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sae": "nowhere"}, "nowhere"),
        ({"sae": []}, "no SAE is given"),
        ({"sae": 3}, "found int"),
        ({"hookpoint": "resid_post.0"}, "trained at blocks.1.hook_resid_post"),
        ({"model": "no-such-model-here"}, "no-such-model-here"),
        ({"text": "no-such-text.jsonl"}, "no text is at"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(
    change: dict[str, Any],
    message: str,
    sae: Path,
    tiny_model: Path,
    tiny_text: Path,
    tmp_path: Path,
    settings: ExamineSpec,
) -> None:
    given = {"sae": sae, "model": str(tiny_model), "text": tiny_text, "hookpoint": None} | change
    with pytest.raises(PlaceboError, match=message):
        write_trial(
            given["sae"], given["model"], given["text"], tmp_path, given["hookpoint"], settings
        )


def test_a_place_that_the_file_does_not_say_is_asked_for(
    sae: Path, tiny_model: Path, tiny_text: Path, tmp_path: Path, settings: ExamineSpec
) -> None:
    silent = tmp_path / "silent"
    shutil.copytree(sae, silent)
    config = json.loads((silent / "cfg.json").read_text())
    del config["metadata"]["hook_name"]
    config["metadata"].pop("hookpoint", None)
    (silent / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(SpecError, match="--hookpoint resid_post"):
        write_trial(silent, str(tiny_model), tiny_text, tmp_path, None, settings)
    path = write_trial(silent, str(tiny_model), tiny_text, tmp_path, PLACE, settings)
    assert load_trial(path).hookpoints == (PLACE,)


def test_the_command_writes_the_trial_and_prints_its_plan(
    sae: Path, tiny_model: Path, tiny_text: Path, tmp_path: Path
) -> None:
    files = [tmp_path / "corpus.jsonl", tmp_path / "more.jsonl"]
    for file in files:
        shutil.copy(tiny_text, file)
    store = tmp_path / "store"
    sets = [part for one in small(tiny_model, tiny_text) for part in ("--set", one)]
    # the files as a shell hands over a pattern that is not quoted
    given = ["examine", str(sae), "--model", str(tiny_model), "--text", *map(str, files)]
    done = CliRunner().invoke(
        app, [*given, "--store", str(store), "--name", "mine", "--plan", *sets]
    )
    assert done.exit_code == 0, done.output
    assert "minutes are left" in done.output
    assert load_trial(store / "mine.toml").text.source == str(tmp_path / "*.jsonl")
    assert not (store / "trials").exists()


@pytest.mark.parametrize(
    ("metadata", "table", "expected"),
    [
        ({"prepend_bos": False}, "text", {"bos": "none"}),
        ({"context_size": 16}, "text", {"context_tokens": 16}),
        ({"context_size": 32, "seqpos_slice": [None]}, "text", {"positions": None}),
        ({"context_size": 32, "seqpos_slice": [2]}, "text", {"positions": (2,)}),
        ({"context_size": 32, "seqpos_slice": [2, 20]}, "text", {"positions": (2, 20)}),
        ({"context_size": 32, "seqpos_slice": [None, None, 2]}, "text", {"positions": (0, 32, 2)}),
        ({"exclude_special_tokens": True}, "text", {"exclude_tokens": True}),
        ({"exclude_special_tokens": [1, 3]}, "text", {"exclude_tokens": (1, 3)}),
        # the tiny model has RMSNorms, which TransformerLens does not centre
        (
            {"model_from_pretrained_kwargs": {"center_writing_weights": True}},
            "model",
            {"centred": False},
        ),
    ],
)
def test_what_its_file_says_of_its_training_is_followed(
    metadata: dict[str, Any],
    table: str,
    expected: dict[str, Any],
    sae: Path,
    tiny_model: Path,
    tiny_text: Path,
    tmp_path: Path,
) -> None:
    other = tmp_path / "other"
    shutil.copytree(sae, other)
    config = json.loads((other / "cfg.json").read_text())
    config["metadata"] |= metadata
    (other / "cfg.json").write_text(json.dumps(config))
    settings = ExamineSpec(2_000, 800, 4, "mine", ("text.max_document_tokens=310",))
    spec = load_trial(write_trial(other, str(tiny_model), tiny_text, tmp_path, None, settings))
    found = getattr(spec, table)
    assert {name: getattr(found, name) for name in expected} == expected


def _truncated(folder: Path) -> None:
    path = folder / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def corrupt(folder: Path) -> None:
        path = folder / "sae_weights.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return corrupt


def _settings(**changes: Any) -> Callable[[Path], None]:
    def corrupt(folder: Path) -> None:
        path = folder / "cfg.json"
        config = json.loads(path.read_text())
        for name, value in changes.items():
            (config["metadata"] if name in config["metadata"] else config)[name] = value
        path.write_text(json.dumps(config))

    return corrupt


def _second_format(folder: Path) -> None:
    shutil.copy(FORMATS / "sparsify" / "topk" / "layers.2" / "sae.safetensors", folder)


def _pickle(folder: Path) -> None:
    (folder / "sae_weights.safetensors").unlink()
    torch.save({"W_enc": torch.zeros(2)}, folder / "ae.pt")
    (folder / "cfg.json").unlink()


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (_truncated, "sae_weights.safetensors"),
        (_tensors(lambda t: t.pop("W_enc")), "W_enc"),
        (_tensors(lambda t: t.update(b_enc=torch.zeros(7))), "b_enc"),
        (_tensors(lambda t: t["W_dec"].fill_(float("nan"))), "W_dec"),
        (_settings(architecture="lattice"), "lattice"),
        (
            _settings(hook_name="blocks.9.hook_resid_post"),
            r"resid_post\.9' is past .* 0 to 2 are",
        ),
        (_settings(hook_name="blocks.1.attn.hook_pattern"), r"--hookpoint resid_post"),
        (_settings(apply_b_dec_to_input="perhaps"), "apply_b_dec_to_input"),
        (_second_format, "more than one SAE"),
        (_pickle, "name the file itself"),
    ],
)
def test_what_is_wrong_with_the_sae_is_one_sentence(
    corrupt: Callable[[Path], None],
    message: str,
    sae: Path,
    tiny_model: Path,
    tiny_text: Path,
    tmp_path: Path,
) -> None:
    other = tmp_path / "other"
    shutil.copytree(sae, other)
    corrupt(other)
    given = ["examine", str(other), "--model", str(tiny_model), "--text", str(tiny_text)]
    sets = [part for one in small(tiny_model, tiny_text) for part in ("--set", one)]
    done = CliRunner().invoke(app, [*given, "--store", str(tmp_path / "store"), *sets])
    assert isinstance(done.exception, PlaceboError), done.output
    said = str(done.exception)
    assert re.search(message, said), said
    assert "\n" not in said
    assert not (tmp_path / "store" / "trials").exists()


def test_too_little_text_is_said_with_what_there_is(
    sae: Path, tiny_model: Path, tmp_path: Path
) -> None:
    text = tmp_path / "little.jsonl"
    text.write_text("".join(json.dumps({"text": f"one line, {i}"}) + "\n" for i in range(9)))
    with pytest.raises(PlaceboError, match=r"tokens") as refusal:
        sp.examine(sae, str(tiny_model), text, tmp_path / "store")
    assert "170,000" in str(refusal.value)
