"""Probes of a machine: a few seconds of what a trial will do, timed."""

from __future__ import annotations

import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sae_placebo.causal.use.downstream import Downstream
from sae_placebo.causal.use.removal import _LOGITS, compared
from sae_placebo.controls import build
from sae_placebo.core.lanes import in_lanes
from sae_placebo.core.lazy import torch
from sae_placebo.core.progress import Progress
from sae_placebo.core.spec import generator, numpy_generator
from sae_placebo.core.store import file_hash
from sae_placebo.core.workers import Workers
from sae_placebo.models import loading as models
from sae_placebo.models.activations import FORWARD_ROWS
from sae_placebo.models.sites import text_config
from sae_placebo.saes.kernels import Workspace
from sae_placebo.saes.training import Fit, step_all
from sae_placebo.trial.machine import SEVERAL, Machine
from sae_placebo.trial.reference import asked_hookpoints
from sae_placebo.trial.spec import TrialSpec
from sae_placebo.trial.stages.explained_variance_null import placed

_LEAST = 0.3
"""Seconds that a probe takes at least, so that its start does not count."""
# what the probes of NumPy and of Python took where the constants of `estimates` were measured
_NUMBERS_SECONDS, _CODE_SECONDS = 0.0182, 0.0109


def probe(
    spec: TrialSpec, load: Callable[[], Any], key: str, progress: Progress, lanes: int
) -> Machine:
    """Return how fast this machine is at what a trial does.

    Args:
        spec: The trial's protocol.
        load: Loads the reference model.
        key: Names the work that the rates are for.
        progress: Where it is shown what is timed.
        lanes: How many arms `use` and `audit` ask side by side; 0 where neither is to be done.
    """
    n = 6 + len(spec.saes) + (7 if lanes else 0)
    with progress.track("probe this machine", n, "rates") as advance:

        def timed(work: Callable[[], Any], units: int = 1) -> float:
            seconds = seconds_of(work) / units
            advance(1)
            return seconds

        start = time.perf_counter()
        reference = load()
        loaded = time.perf_counter() - start
        advance(1)
        products = 2 * 1024**3 / timed(functools.partial(torch.mm, *_matrices(spec)))
        numbers = _NUMBERS_SECONDS / timed(_numbers(spec))
        code = _CODE_SECONDS / timed(_code)
        disk = (1 << 24) / timed(_disk)
        start = time.perf_counter()
        arm = next(arm for arm in spec.arms if arm != spec.trained_arm)
        # without what a calibration adds, which needs the trial's text and is estimated by its passes
        control = spec.arms[arm].control.drawn
        model, _ = build(reference, control, spec.seed, 0, source=spec.model)
        built = time.perf_counter() - start
        advance(1)
        model = model.to(spec.device)
        used = _use_rates(spec, model, timed, lanes) if lanes else {}
        reader = models.Reader(model, spec.hookpoints, fast=True)
        ids = _ids(spec, model, FORWARD_ROWS)
        reading = timed(lambda: reader.read(ids), ids.numel())
        # the widest hookpoint: steps at the others take no longer
        d_in = max(reader.widths.values())
        saes = {label: timed(*_steps(spec, label, d_in)) for label in spec.saes}
    return Machine(
        threads=torch.get_num_threads(),
        products=products,
        numbers=numbers,
        code=code,
        disk=disk,
        reading=reading,
        sae=saes,
        build=built,
        load=loaded,
        key=key,
        **used,
    )


def seconds_of(work: Callable[[], Any]) -> float:
    """Return how long some work takes once it is warm: the median of as often as fits in a short while."""
    work()
    taken: list[float] = []
    while sum(taken) < _LEAST:
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def _ids(spec: TrialSpec, model: Any, rows: int) -> torch.Tensor:
    shape = (rows, spec.text.context_tokens)
    vocabulary = text_config(model).vocab_size
    return torch.randint(0, vocabulary, shape, generator=generator(spec.seed, "probe"))


def _matrices(spec: TrialSpec) -> tuple[torch.Tensor, torch.Tensor]:
    random = generator(spec.seed, "probe", "products")
    a, b = (torch.randn(1024, 1024, generator=random).to(spec.device) for _ in range(2))
    return a, b


def _numbers(spec: TrialSpec) -> Callable[[], Any]:
    """Return work such as statistics of latents do: sparse products, sorting, sums by index."""
    from scipy.sparse import csr_matrix

    random = numpy_generator(spec.seed, "probe", "numbers")
    n, m, k = 8_000, 512, 16
    columns = random.integers(0, m, n * k).astype(np.int32)
    values = random.random(n * k, dtype=np.float32)
    codes = csr_matrix((values, columns, np.arange(0, n * k + 1, k)), shape=(n, m))
    dense = random.random((m, 64), dtype=np.float32)

    def work() -> None:
        np.asarray((codes.T @ codes).todense())
        codes @ dense
        np.argsort(values, kind="stable")
        np.bincount(columns, values, minlength=m)
        codes.tocsc().sort_indices()

    return work


def _code() -> int:
    total, table = 0, {}
    for i in range(200_000):
        table[i % 997] = i
        total += len(table)
    return total


def _disk() -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe"
        path.write_bytes(os.urandom(1 << 16) * (1 << 8))
        return file_hash(path)


def _steps(spec: TrialSpec, label: str, d_in: int) -> tuple[Callable[[], Any], int]:
    """Return a step of as many SAEs as there are threads, and the tokens of all of them."""
    sae, n = spec.saes[label], max(torch.get_num_threads(), 1)
    fits = [
        Fit(placed(sae.create(d_in, i), spec.device), spec.training, 1_000_000) for i in range(n)
    ]
    random = generator(spec.seed, "probe", label)
    x = torch.randn(spec.training.batch_tokens, d_in, generator=random).to(spec.device)
    workspace = Workspace()
    return lambda: step_all(fits, x, workspace), n * len(x)


def _use_rates(
    spec: TrialSpec, model: Any, timed: Callable[[Callable[[], Any], int], float], lanes: int
) -> dict[str, float]:
    """Return the rates of what is asked of a model behind a hookpoint."""
    hookpoint = next(iter(asked_hookpoints(spec, "use")), spec.hookpoints[0])
    behind = Downstream(model, hookpoint)
    vocabulary, context = int(text_config(model).vocab_size), spec.text.context_tokens
    n_rows = max(1, _LOGITS // vocabulary // context)
    ids = _ids(spec, model, n_rows)
    position, window = context // 2, spec.use.window
    threads = torch.get_num_threads() if behind.device.type == "cpu" else 1
    copies = [behind, *behind.copies(threads - 1)]
    row = behind.read(ids[0])
    edits = torch.randn(64, row.site.shape[1], generator=generator(spec.seed, "probe", "edits"))

    def side_by_side(job: Callable[[Downstream], Any]) -> None:
        with Workers() as workers:
            list(workers.each([functools.partial(job, one) for one in copies]))

    found = {
        "row": timed(lambda: side_by_side(lambda one: one.read(ids[0])), threads * context),
    }

    def pass_of(some: torch.Tensor) -> float:
        return timed(
            lambda: side_by_side(lambda one: one.kl_of_edits(row, position, some, window)), threads
        )

    one, many = pass_of(edits[:1]), pass_of(edits)
    each = max(many - one, 0.2 * many) / (len(edits) - 1)
    found |= {"edit": each / (window + 1), "start": max(one - each, 0.0)}

    def in_all_lanes(job: Callable[[Downstream], Any], units: int, times: int) -> float:
        """Return what a unit adds to the whole where every lane does a job so many times."""

        def repeated(one: Downstream) -> None:
            for _ in range(times):
                job(one)

        jobs = [functools.partial(repeated, one) for one in copies[:lanes]]
        return timed(lambda: in_lanes(jobs, lanes), lanes * units * times)

    for name, n in (("single", 1), ("several", SEVERAL)):

        def push(one: Downstream, some: torch.Tensor = edits[:n]) -> None:
            one.kl_of_edits(row, position, some, window)

        found[name] = in_all_lanes(push, 1, times=20)
    site, entering = behind.read_rows(ids)
    clean = behind.logits(ids, entering).float().log_softmax(-1).flatten(0, 1)
    delta = torch.zeros_like(site)

    def cost(one: Downstream, with_gradient: bool) -> None:
        some = delta.clone().requires_grad_(with_gradient)
        with torch.set_grad_enabled(with_gradient):
            logits = one.logits(ids, entering, some)
            total = compared(clean, logits.flatten(0, 1)).sum()
            if with_gradient:
                torch.autograd.grad(total, some)

    found["behind"] = in_all_lanes(lambda one: cost(one, False), ids.numel(), times=1)
    found["slope"] = in_all_lanes(lambda one: cost(one, True), ids.numel(), times=1)
    return found
