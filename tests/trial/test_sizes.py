from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import trial_table
from sae_placebo.core.errors import SpecError, StoreError, TextError
from sae_placebo.trial import sizes
from sae_placebo.trial.spec import TrialSpec, load_trial


@pytest.fixture
def table(tiny_model: Path, tiny_text: Path) -> dict[str, Any]:
    return trial_table(tiny_model, tiny_text)


def largest(spec: TrialSpec) -> sizes.Need:
    return max(sizes.memory_needs(spec), key=lambda need: need.n_bytes)


def test_the_optimizer_of_all_seeds_and_hookpoints_is_counted(table: dict[str, Any]) -> None:
    two = ["saes.topk.d_sae=1_000_000", 'hookpoints=["resid_post.0", "resid_post.1"]']
    need = largest(load_trial(table, overrides=two))
    # W_enc and W_dec of 32 x d_sae, thrice in float32 (the tensor, two means), 2 seeds, 2 hookpoints
    assert need.n_bytes == 2 * 32 * 1_000_000 * 3 * 4 * 2 * 2
    assert need.setting == "saes.topk.d_sae"


@pytest.mark.parametrize(
    "override",
    [
        "saes.topk.d_sae=1_000_000_000_000",
        "text.heldout_tokens=1_000_000_000_000",
        "text.train_tokens=1_000_000_000_000_000",
        "measurement.replicates=1_000_000_000_000",
        "use.joint.replicates=1_000_000_000_000",
        "use.masks.n_masks=1_000_000_000_000",
        "use.nulls=1_000_000_000_000",
        "circuits.readers.nulls=1_000_000_000_000",
        "circuits.readers.reader_nulls=1_000_000_000_000",
        "circuits.writers.pseudo=1_000_000_000_000",
        "circuits.patch.nulls=1_000_000_000_000",
        "audit.hedging_latents=1_000_000_000_000",
        "structure.repeat_rows=1_000_000_000_000",
        "structure.ladder.bag=1_000_000_000_000",
        "structure.ladder.window=[1_000_000_000_000]",
        "structure.ladder.position_bins=1_000_000_000_000",
    ],
)
def test_what_no_memory_holds_is_named_with_its_numbers(
    table: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str
) -> None:
    monkeypatch.setattr(sizes, "total_memory", lambda: 2 * 10**12)
    setting, _, value = override.partition("=")
    spec = load_trial(table, overrides=[override])
    with pytest.raises(SpecError, match=f"^{setting} is ") as refusal:
        sizes.check_sizes(spec, tmp_path)
    assert f"{int(value.strip('[]')):,}" in str(refusal.value)
    assert "this machine has 2 TB" in str(refusal.value)


def test_best_assignments_of_many_latents_are_counted(table: dict[str, Any]) -> None:
    wide = ["saes.topk.d_sae=1_000_000", "structure.assignment.optimal_up_to=1_000_000"]
    assert largest(load_trial(table, overrides=wide)).n_bytes == 10**12 * 4


def test_a_trial_that_is_merely_close_is_not_refused(
    table: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = load_trial(table, overrides=["saes.topk.d_sae=1_000_000"])
    need = largest(spec).n_bytes
    monkeypatch.setattr(sizes, "total_memory", lambda: need)
    sizes.check_sizes(spec, tmp_path)
    monkeypatch.setattr(sizes, "total_memory", lambda: need - 1)
    with pytest.raises(SpecError, match="lower it"):
        sizes.check_sizes(spec, tmp_path)


def test_a_disk_that_cannot_hold_the_artefacts_is_named(
    table: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizes, "total_memory", lambda: None)
    spec = load_trial(table, overrides=["text.heldout_tokens=100_000"])
    needed = sum(need.n_bytes for need in sizes.disk_needs(spec))
    # trained, and two re-draws of each of two controls
    assert needed > 5 * 100_000 * 32 * 4
    asked = []

    def usage(path: Path) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(total=2 * needed, free=needed - 1)

    monkeypatch.setattr(sizes.shutil, "disk_usage", usage)
    store = tmp_path / "not" / "yet"
    with pytest.raises(
        SpecError, match=r"most of it are held-out activations: lower text.heldout_t"
    ):
        sizes.check_sizes(spec, store)
    assert asked == [tmp_path]
    store.mkdir(parents=True)
    (store / "artefact").write_bytes(b"x")  # what is there already may be this trial's own
    sizes.check_sizes(spec, store)


def test_arms_that_share_activations_need_their_disk_once(table: dict[str, Any]) -> None:
    def heldout() -> int:
        needs = sizes.disk_needs(load_trial(table))
        return next(need.n_bytes for need in needs if need.setting == "text.heldout_tokens")

    before = heldout()
    table["arms"]["frozen"] = {"dictionary": "frozen_decoder"}
    assert heldout() == before
    table["arms"]["markov"] = {"data": "markov"}
    assert heldout() > before


def test_a_model_whose_width_is_not_known_yet_is_refused_by_a_lower_bound(
    table: dict[str, Any], tmp_path: Path
) -> None:
    table["model"] = {"id": "nobody/nothing-of-this-name"}
    with pytest.raises(SpecError, match=r"saes.topk.d_sae is 1,000,000,000,000"):
        sizes.check_sizes(
            load_trial(table, overrides=["saes.topk.d_sae=1_000_000_000_000"]), tmp_path
        )


def test_a_text_that_cannot_hold_so_many_tokens_is_refused(
    table: dict[str, Any], tmp_path: Path
) -> None:
    sizes.check_sizes(load_trial(table, overrides=["text.train_tokens=100_000"]), tmp_path)
    more = load_trial(table, overrides=["text.train_tokens=10_000_000"])
    with pytest.raises(TextError, match=r"are 10,002,000 together, and the text at .* has 1\d\d"):
        sizes.check_sizes(more, tmp_path)


def test_a_file_system_that_keeps_nothing_holds_no_store(
    table: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def usage(path: Path) -> Any:
        asked.append(path)
        return SimpleNamespace(total=0, used=0, free=0)

    monkeypatch.setattr(sizes.shutil, "disk_usage", usage)
    with pytest.raises(
        StoreError, match=r"/x/y' cannot hold a store: nothing is kept on that file"
    ):
        sizes.check_sizes(load_trial(table), tmp_path / "x" / "y")
    assert asked == [tmp_path]
