"""Jobs that only read what other stages left: as many at a time as there are threads."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

from sae_placebo.core import memory
from sae_placebo.core.lanes import blas_threads
from sae_placebo.core.progress import Advance, Progress
from sae_placebo.core.workers import Workers

At = TypeVar("At")


def each_job(
    progress: Progress,
    label: str,
    batches: Sequence[Sequence[At]],
    parts: int,
    work: Callable[[At, Advance], None],
) -> None:
    """Do the work at every place, one batch after the other.

    Args:
        progress: Shows the parts that are done.
        label: Of the progress.
        batches: The places; those of a batch run side by side.
        parts: By how many parts each job advances.
        work: Called with a place and what advances the progress.
    """
    n = sum(map(len, batches))
    if not n:
        return
    with (
        progress.track(label, n * parts, "parts") as advance,
        warnings.catch_warnings(),  # here, since filters belong to all threads at once
        blas_threads(1),
        Workers() as workers,
    ):
        warnings.filterwarnings("ignore", module=r"sklearn\.decomposition\.")
        for batch in batches:
            for _ in workers.each([functools.partial(work, at, advance) for at in batch]):
                pass
            memory.give_back()
