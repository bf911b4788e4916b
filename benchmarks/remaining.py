"""Long benchmarks, row by row: rows are written as they come, and a stopped run goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import machine

Row = dict[str, Any]
Work = Callable[..., list[Row]]


def rows_in(path: Path) -> list[Row]:
    """Return the rows of a results file; none where there is no file."""
    return list(json.loads(path.read_text(encoding="utf-8"))["rows"]) if path.exists() else []


@dataclass
class Rows:
    """The rows of a results file.

    Attributes:
        path: The file; its name without the ending is the benchmark's.
        settings: What the file says it was run with.
        key: Which job a row is of.
        order: What rows are sorted by.
        summary: What the file says of all rows, before the rows themselves.
        rows: The rows that are there, as they look when they are read from the file.
    """

    path: Path
    settings: Row
    key: Callable[[Row], Hashable]
    order: Callable[[Row], Any]
    summary: Callable[[list[Row]], Row] = lambda rows: {}
    rows: list[Row] = field(default_factory=list)

    def add(self, found: list[Row]) -> None:
        """Take in a job's rows, and write the file; a stop in the middle leaves the old one."""
        # through JSON, so that what was read again and what is new look alike
        self.rows += json.loads(json.dumps(machine.rounded(found)))
        self.rows.sort(key=self.order)
        draft = self.path.with_suffix(".part")
        results = self.summary(self.rows) | {"rows": self.rows}
        machine.save(draft, self.path.stem, self.settings, results)
        draft.replace(self.path)


def run_remaining(
    rows: Rows,
    work: Work,
    jobs: Mapping[Any, tuple[Any, ...]],
    pool: Executor | None = None,
    tell: Callable[[Row], object] = lambda row: None,
) -> None:
    """Do the jobs of which there are no rows yet, and write the rows of each as it is done.

    Args:
        rows: What is there, and where it goes.
        work: Returns the rows of a job; its arguments are the job's.
        jobs: Arguments by the key that the job's rows will have.
        pool: Where the jobs are done, side by side; here, one after the other, if not given.
        tell: Called with each new row.
    """
    there = {rows.key(row) for row in rows.rows}
    for found in _each(work, [job for key, job in jobs.items() if key not in there], pool):
        rows.add(found)
        for row in found:
            tell(row)


def _each(work: Work, jobs: list[tuple[Any, ...]], pool: Executor | None) -> Iterator[list[Row]]:
    if pool is None:
        yield from (work(*job) for job in jobs)
        return
    for future in as_completed([pool.submit(work, *job) for job in jobs]):
        yield future.result()


def processes(workers: int) -> ProcessPoolExecutor:
    """Return processes that start anew, so that they share no threads with this one."""
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))


def processes_or_none(workers: int) -> AbstractContextManager[ProcessPoolExecutor | None]:
    """Return processes if there are several, else none: the jobs are then done in this process."""
    return processes(workers) if workers > 1 else nullcontext()
