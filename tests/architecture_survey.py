"""What a whole trial says of every tiny architecture: by hookpoint and stage, that it works or why not.

Both the test of architectures and the page docs/reference/architectures.md are made of this.
"""

from __future__ import annotations

import json
import os
import random
import re
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import pytest
import torch
import transformers
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as token_models

import architecture_list
import architectures
from sae_placebo.controls import CONTROLS, SampleText, build, parse_control
from sae_placebo.core.errors import ModelError
from sae_placebo.core.store import read_json
from sae_placebo.models.hookpoints import SITES
from sae_placebo.models.loading import Reader, load_model
from sae_placebo.trial.run import run

NAMES = tuple(dict.fromkeys([*architectures.CONFIGS, *architecture_list.CONFIGS]))
EVERY = "SAE_PLACEBO_ARCHITECTURES"
TRIED = NAMES if os.environ.get(EVERY) == "all" else NAMES[::3]
"""The architectures of which trials are run: a third, and all of them by `make test-architectures`."""
LAYER = 1
FIRST = "build, harvest, train, measure, profile, baselines"
STAGES = (FIRST, "use", "readers", "writers", "audit")
"""What a cell of the table is about; the first are done together or not at all."""
WORKS = "works"
CONTROLLED: tuple[dict[str, Any], ...] = (
    {"control": "redraw"},
    {"control": "init"},
    {"control": "redraw_embeddings"},
    {"control": "permute"},
    {"control": "spectrum"},
    {"control": "cascade", "last": 1},
    {"control": "noise_embeddings", "per": "type"},
    {"control": "noise_embeddings", "per": "occurrence"},
    {"control": "ablate_attention"},
    {"control": "redraw_calibrated"},
)
"""Controls that change the weights; a revision is another folder of the same kind."""
PAGE = Path(__file__).parents[1] / "docs" / "reference" / "architectures.md"

Row = dict[str, dict[str, str]]
"""By site and stage: that it works, or the sentence that it says."""


def save(name: str, folder: Path) -> None:
    """Write the tiny model called `name` to a folder."""
    if architectures.config(name).is_encoder_decoder:
        whole = transformers.AutoModelForSeq2SeqLM.from_config(architectures.config(name))
        whole.save_pretrained(folder)
    else:
        architectures.build(name).save_pretrained(folder)


def survey(name: str, folder: Path) -> Row:
    """Return what each stage of a trial says of an architecture, at every kind of hookpoint."""
    model = folder / name
    save(name, model)
    try:
        loaded = load_model(model)
    except ModelError as refusal:
        return {site: dict.fromkeys(STAGES, _plain(str(refusal), model)) for site in SITES}
    _check_controls(loaded)
    found: Row = {}
    for site in SITES:
        try:
            Reader(loaded, [f"{site}.{LAYER}"])
        except ModelError as refusal:
            found[site] = dict.fromkeys(STAGES, _plain(str(refusal), model))
    readable = [site for site in SITES if site not in found]
    if len(readable) < len(SITES):
        _check_refused(model, folder, found)
    if readable:
        found |= _ran(model, folder, readable)
    return {site: found[site] for site in SITES}


def _check_controls(reference: Any) -> None:
    """Check that every control is built of a model, and that what it gives can be read and runs."""
    assert {str(control["control"]) for control in CONTROLLED} | {"trained", "revision"} == set(
        CONTROLS
    )
    ids = architectures.token_ids()
    for control in CONTROLLED:
        try:
            model, _ = build(
                reference, parse_control(dict(control)), seed=0, model_seed=0, text=_sample_text()
            )
        except ModelError:  # of all controls, these are not for every architecture
            assert control["control"] in ("ablate_attention", "redraw_calibrated")
            continue
        Reader(model, [f"resid_post.{LAYER}"], fast=True).read(ids)
        with torch.inference_mode():
            assert model(input_ids=ids, use_cache=False).logits.isfinite().all(), control


def _sample_text() -> SampleText:
    """Return text that a control may measure models on: a few tokens recur in many documents."""
    ids = torch.randint(3, 20, (16, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, 0] = False
    return SampleText(ids, mask, torch.arange(16) // 2, (f"resid_post.{LAYER}",))


def _check_refused(model: Path, folder: Path, found: Row) -> None:
    """Check that a trial says the same sentence before it trains anything."""
    site = next(iter(found))
    with pytest.raises(ModelError) as refusal:
        _run(model, folder, [site])
    assert found[site]["use"] in _plain(str(refusal.value), model)
    assert not list((folder / "store").glob("train/*"))


def _ran(model: Path, folder: Path, sites: list[str]) -> Row:
    result = _run(model, folder, sites)
    told = {str(one["hookpoint"]): one for one in read_json(result / "trial.json")["use"]}
    audits = pd.read_parquet(result / "audits.parquet")
    found: Row = {}
    for site in sites:
        place = f"{site}.{LAYER}"
        use, reasons = told[place], told[place].get("reasons", {})
        pushed = audits[(audits["hookpoint"] == place) & (audits["audit"] == "random_pushes")]
        why = set(pushed["reason"]) if not pushed["value"].notna().any() else {""}
        said = {
            "use": use.get("refused"),
            "readers": use.get("refused") or reasons.get("readers"),
            "writers": use.get("refused") or reasons.get("writers"),
            "audit": next(iter(why)),
        }
        found[site] = {stage: _plain(said.get(stage) or WORKS, model) for stage in STAGES}
    return found


def _plain(sentence: str, model: Path) -> str:
    """Return a sentence without what differs from machine to machine: the folder, and fractions."""
    return re.sub(r"\d+\.\d+", "N", sentence.replace(str(model), "the model"))


# --- a tiny trial ------------------------------------------------------------------------------------


def word_tokenizer(*_: Any) -> Any:
    """Return a tokenizer of words: those of the models themselves differ, and are not the question."""
    names = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(architectures.VOCABULARY - 3))]
    plain = Tokenizer(token_models.WordLevel({n: i for i, n in enumerate(names)}, unk_token="w0"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<s>", eos_token="</s>", unk_token="w0"
    )


def word_text(path: Path) -> Path:
    """Write documents in which a word often decides the next one."""
    drawn, lines, n = random.Random(0), [], architectures.VOCABULARY - 3
    for _ in range(40):
        words = [drawn.randrange(n)]
        while len(words) < 60:
            follows = (words[-1] * 3 + 1) % n
            words.append(follows if drawn.random() < 0.5 else int(n * drawn.random() ** 2))
        lines.append(json.dumps({"text": " ".join(f"w{i}" for i in words)}))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _run(model: Path, folder: Path, sites: list[str]) -> Path:
    table = tiny_table(
        model, word_text(folder / "text.jsonl"), [f"{site}.{LAYER}" for site in sites]
    )
    with (
        mock.patch("sae_placebo.models.loading.load_tokenizer", word_tokenizer),
        mock.patch(
            "sae_placebo.trial.results.build_report"
        ),  # it is the same for every architecture
    ):
        return run(table, folder / "store").folder


def tiny_table(model: Path, text: Path, hookpoints: list[str]) -> dict[str, Any]:
    asked = {"arms": ["trained"]}
    return {
        "name": "tiny",
        "hookpoints": hookpoints,
        "model_seeds": [0],
        "sae_seeds": [0],
        "model": {"id": str(model)},
        "text": {
            **{"source": str(text), "context_tokens": 16, "max_document_tokens": 45},
            **{"train_tokens": 1_000, "heldout_tokens": 300},
        },
        "arms": {"trained": {"control": "trained"}, "redraw": {"control": "redraw"}},
        "saes": {"topk": {"kind": "topk", "d_sae": 24, "k": 4}},
        "training": {"batch_tokens": 128, "learning_rate": 3e-3, "dead_after_tokens": 1_000},
        "harvest": {"block_rows": 64, "calibration_rows": 16, "card_rows": 4},
        "measurement": {"replicates": 20, "shown_per_class": 1},
        "baselines": {
            **{"n_atoms": 8, "nmf_atoms": 4, "fit_tokens": 100, "ica_tokens": 100},
            **{"nmf_tokens": 100, "iterations": 1, "choose_tokens": 50, "score_tokens": 50},
            **{"sae_pursuit_tokens": 4, "coded_tokens": 4, "n_labels": 1},
            **{"distortions": [0.2], "probe_tokens": 50, "most_atoms": 2},
        },
        "use": asked
        | {
            **{"latents": 3, "firings": 2, "documents": 4, "nulls": 3, "swap_tokens": 24},
            **{"null_firings": 1, "pseudo": 0, "error_directions": 0},
            **{"covariance_directions": 0, "untrained_directions": 0},
            **{"shown_per_cell": 1},
            "masks": {"n_masks": 2, "n_pivots": 0, "n_tokens": 60},
            "joint": {"n_tokens": 60, "replicates": 100, "min_documents": 2},
            "worst": {"n_tokens": 40, "steps": 1},
        },
        "circuits": {
            "readers": {"tokens": 100, "nulls": 5, "reader_nulls": 5},
            "writers": {"tokens": 100, "pseudo": 80, "fewest": 5},
        },
        "audit": asked
        | {
            **{"tokens": 64, "draws": 1, "window": 1, "steps": 3, "ridge_tokens": 100},
            **{"meta_steps": 10, "labels": 1, "hedging_latents": 2, "hedging_tokens": 1_000},
        },
    }


# --- the page ----------------------------------------------------------------------------------------


def line(name: str, row: Row, sentences: list[str]) -> str:
    """Return an architecture's line of the page; sentences that are new are added to the list."""
    cells = []
    for site in SITES:
        said = {stage: why for stage, why in row[site].items() if why != WORKS}
        for why in said.values():
            if why not in sentences:
                sentences.append(why)
        marks = {stage: f"[{sentences.index(why) + 1}]" for stage, why in said.items()}
        if FIRST in said:
            cells.append(f"no {marks[FIRST]}")
        else:
            cells.append(", ".join(f"no {stage} {mark}" for stage, mark in marks.items()) or WORKS)
    kind = architectures.config(name).model_type
    return f"| {name} | `{kind}` | {' | '.join(cells)} |"


def read_page(page: str) -> dict[str, Row]:
    """Return what the page says of every architecture."""
    sentences = dict(re.findall(r"^(\d+)\. (.+)$", page, flags=re.MULTILINE))
    found: dict[str, Row] = {}
    for name, cells in re.findall(r"^\| (\w+) \| `[\w-]+` \| (.+) \|$", page, flags=re.MULTILINE):
        found[name] = {}
        for site, cell in zip(SITES, cells.split(" | "), strict=True):
            row = found[name][site] = dict.fromkeys(STAGES, WORKS)
            for stage, mark in re.findall(r"no (?:(\w+) )?\[(\d+)\]", cell):
                row |= dict.fromkeys([stage] if stage else STAGES, sentences[mark])
    return found


def check(name: str, folder: Path) -> None:
    """Check that a trial of an architecture says what the page says."""
    with architectures.one_thread():
        found = survey(name, folder)
    expected = read_page(PAGE.read_text(encoding="utf-8"))[name]
    assert found == expected, "if this is as it should be: python docs/architectures.py " + name
