"""A long benchmark that was stopped does what is left, and its file is that of an uninterrupted one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from remaining import Row, Rows, processes_or_none, rows_in, run_remaining

JOBS = {(name, seed): (name, seed) for seed in range(3) for name in ("b", "a")}


def work(name: str, seed: int) -> list[Row]:
    return [{"name": name, "seed": seed, "value": (seed + 1) / 3, "part": part} for part in (1, 0)]


def results(path: Path) -> Rows:
    return Rows(
        path,
        {"jobs": len(JOBS)},
        key=lambda row: (row["name"], row["seed"]),
        order=lambda row: (row["name"], row["seed"], row["part"]),
        summary=lambda rows: {"total": sum(row["value"] for row in rows)},
        rows=rows_in(path),
    )


def test_a_stopped_run_does_what_is_left_and_writes_the_same(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole.json", tmp_path / "stopped.json"
    run_remaining(results(whole), work, JOBS)
    done: list[Any] = []

    def until_the_third(name: str, seed: int) -> list[Row]:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append((name, seed))
        return work(name, seed)

    with pytest.raises(KeyboardInterrupt):
        run_remaining(results(stopped), until_the_third, JOBS)
    assert {(row["name"], row["seed"]) for row in rows_in(stopped)} == set(done)

    told: list[Row] = []
    run_remaining(results(stopped), work, JOBS, tell=told.append)
    assert {(row["name"], row["seed"]) for row in told} == set(JOBS) - set(done)
    first, second = (json.loads(path.read_text()) for path in (whole, stopped))
    assert second == first | {"benchmark": "stopped"}
    assert [row["name"] for row in second["rows"]] == ["a"] * 6 + ["b"] * 6
    # what is summed up is what is read from the file: six digits
    assert second["total"] == pytest.approx(4 * sum((0.333333, 0.666667, 1.0)), abs=1e-9)
    assert not list(tmp_path.glob("*.part"))


def test_processes_side_by_side_write_the_same(tmp_path: Path) -> None:
    found = []
    for workers in (1, 2):
        path = tmp_path / str(workers) / "x.json"
        with processes_or_none(workers) as pool:
            assert (pool is None) == (workers == 1)
            run_remaining(results(path), work, JOBS, pool)
        found.append(rows_in(path))
    assert found[0] == found[1]
    assert len(found[0]) == 2 * len(JOBS)
