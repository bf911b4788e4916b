"""A job of a stage that cannot be done is kept with its reason, while the rest of the trial goes on.

A refusal (`ModelError`, `NotEstimable`) is a result: its sentence is kept in the job's place and shown in
the report. Any other error is a fault, of the model's code or of this package: its sentence is kept as
well, so that the other jobs and the report are not lost, but it is noted at once, tried again by the next
run, and raised when the report is written, so that nobody takes it for a finding.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from sae_placebo.core import memory
from sae_placebo.core.errors import ModelError, NotEstimable, PlaceboError, StageFault
from sae_placebo.core.store import read_json, write_json

_FILE = "refused.json"


class Failure(NamedTuple):
    """The reason why a job could not be done, and whether it was a fault.

    Attributes:
        reason: One sentence.
        is_fault: Whether it was a fault; otherwise it was a refusal.
    """

    reason: str
    is_fault: bool


@dataclass
class Failures:
    """The failures of a trial in progress.

    Args:
        note: It is called with one sentence for each fault.
    """

    note: Callable[[str], None] = lambda message: None
    _found: list[tuple[str, Exception]] = field(default_factory=list)

    def attempt(self, what: str, work: Callable[[], None]) -> Failure | None:
        """Do `work`, and return None, or the reason why it could not be done. A fault is kept.

        Args:
            what: Names the job in the sentence of a fault.
            work: What is done.

        Raises:
            PlaceboError, OSError, MemoryError: what no other job would be spared.
        """
        try:
            work()
        except (ModelError, NotEstimable) as refusal:
            return Failure(str(refusal), is_fault=False)
        except (PlaceboError, OSError, MemoryError):
            raise
        except Exception as error:
            if memory.is_exhausted(error):  # of torch
                raise
            reason = _sentence(error)
            self._found.append((what, error))
            self.note(f"{what} failed, and the trial goes on without it: {reason}")
            return Failure(reason, is_fault=True)
        return None

    @property
    def n(self) -> int:
        """Return how many failures there were."""
        return len(self._found)

    def raised(self, report: Path) -> None:
        """Raise what went wrong, if something did, now that everything else is done.

        Raises:
            StageFault: at least one job failed; the first error is its cause.
        """
        if not self._found:
            return
        names = "; ".join(what for what, _ in self._found[:3])
        more = f" and {self.n - 3} more" if self.n > 3 else ""
        first = self._found[0][1]
        raise StageFault(
            f"{names}{more} failed by a fault of sae-placebo or of the model's own code "
            f"({_sentence(first)}); everything else is done and in {report}. Run again to try once "
            "more; --debug shows where it happened."
        ) from first


def _sentence(error: Exception) -> str:
    where = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(where[-1].filename).name}:{where[-1].lineno}" if where else ""
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}{place}: {text}" if text else f"{type(error).__name__}{place}"


def write_refusal(folder: Path, reason: str, is_fault: bool) -> None:
    """Keep in a job's folder why it was not done."""
    write_json(folder / _FILE, {"reason": reason, "fault": is_fault})


def refusal(folder: Path) -> str | None:
    """Return why a job was not done, in the words of its sentence; None where it was."""
    path = folder / _FILE
    return str(read_json(path)["reason"]) if path.exists() else None


def is_fault(folder: Path) -> bool:
    """Return whether a job failed by a fault, and is to be tried again."""
    path = folder / _FILE
    return path.exists() and bool(read_json(path).get("fault"))
