"""The numbers of every stage, from committed SAEs and text onwards, are those that were committed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import architectures
import golden_trial
from sae_placebo.trial.plan import VERSIONS

AGAIN = "write them again with `python tests/golden_trial.py numbers` and say so in the changelog"


def test_no_number_moves_without_a_version(tmp_path: Path) -> None:
    committed = json.loads(golden_trial.NUMBERS.read_text(encoding="utf-8"))
    raised = {name for name in VERSIONS if committed["versions"].get(name) != VERSIONS[name]}
    assert not raised, f"the numbers are of other versions of {sorted(raised)}: {AGAIN}"
    with architectures.one_thread():
        found = golden_trial.numbers(golden_trial.run(tmp_path))
    assert set(found) == set(committed["numbers"])
    moved = {
        name: (value, found[name])
        for name, value in committed["numbers"].items()
        if found[name]
        != pytest.approx(value, rel=0.3 if name.startswith(golden_trial.LOOSE) else 1e-4, abs=1e-6)
    }
    assert not moved, (
        f"raise the stage's version in `trial.plan.VERSIONS`, or find out why: {moved}"
    )


def test_every_stage_has_a_number_that_is_one() -> None:
    committed = json.loads(golden_trial.NUMBERS.read_text(encoding="utf-8"))["numbers"]
    stages = {name.partition(":")[0] for name in committed}
    assert stages == {"measure", "profile", "baselines", "use", "audit", "compare"}
    assert all(value == value and abs(value) < 1e6 for value in committed.values())
