"""How what is said about latents scales: from 4,096 to 65,536 latents, from 0.1 to 3 million tokens.

    python benchmarks/structure.py [--quick] [--cell D_SAExTOKENS ...] [--out FILE]

One SAE is described, classified, matched and put on the ladder as a trial does it:
`latents.measurement.measure`, then `latents.profile.profile` with everything around it. Each cell is a
process of its own with one thread, as an SAE has in a trial, which takes one SAE per thread; a small SAE
goes first, so that compiled loops are loaded. Times are processor seconds; wall seconds stand beside
them. What a trial makes once for several SAEs (contexts, features, readouts, the ladder of the
activations, the assignment for both SAEs and its null) is charged in full to the one here.

`structure_inputs` says what is read. Shorter texts are the beginning of the longest. What is read is
mapped from files, as in a trial, and counts as resident once it is touched.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import machine
import numpy as np
import timing
import torch
from structure_inputs import (
    D_IN,
    SEED,
    VOCABULARY,
    K,
    activations,
    codes_of,
    prepare,
    read,
    read_codes,
    rows_of,
    sae_of,
    text,
)

from sae_placebo.core.devices import settings
from sae_placebo.latents import measurement
from sae_placebo.latents import profile as profiling
from sae_placebo.latents.base import Encoded, Folds, TokenTable
from sae_placebo.latents.columns.domains import domains_of
from sae_placebo.latents.ladder.fit_text import LadderText, Stacked
from sae_placebo.latents.ladder.ladder import ladder, whole_ladder
from sae_placebo.latents.ladder.predictors import Readouts
from sae_placebo.latents.ladder.token_features import TokenFeatures
from sae_placebo.latents.measurement import HeldOut, MeasurementSpec
from sae_placebo.latents.metrics.ladder_shares import rates_of
from sae_placebo.latents.partners import assignment
from sae_placebo.latents.spec import StructureSpec
from sae_placebo.saes import SAE
from sae_placebo.stats.effects import document_weights

Cell = tuple[int, int]
"""Latents and tokens."""
CELLS = (
    *((4_096, n) for n in (100_000, 200_000, 300_000, 1_000_000, 3_000_000)),
    *((d, 200_000) for d in (16_384, 65_536)),
)
QUICK = ((512, 40_000), (512, 80_000), (1_024, 40_000))
WARM = (512, 30_000)
# names in `latents.profile` that are clocked, and what they do
STATISTICS = (
    *("attributes", "geometry", "ngrams", "positions", "outputs", "subsets", "in_context"),
    *("induction", "nonlinear_aurocs"),
)
MATCHED = ("token_statistics", "latent_table", "best_partners")
CLOCKED = (*STATISTICS, *MATCHED, "decide", "verdicts", "passages", "sensitivity")
BEFORE = ("contexts", "by_latent", "repeats", "features", "readouts", "whole_ladder")
# by name: the clocked parts that are added up, and those that are taken off
PARTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "encode": (("measure/encode",), ()),
    "reconstruction": (("measure",), ("measure/encode", "measure/evaluate")),
    "token statistics": (
        ("measure/evaluate", "profile/token_statistics", "profile/latent_table"),
        (),
    ),
    "other statistics": ((*BEFORE[:3], *(f"profile/{name}" for name in STATISTICS)), ()),
    "readouts": (("features", "readouts"), ()),
    "ladder of activations": (("whole_ladder",), ()),
    "ladder": (("ladder",), ()),
    "partners": (("profile/best_partners",), ()),
    "assignment": (("sharing",), ()),
    "rest of profile": (("profile",), tuple(f"profile/{n}" for n in (*STATISTICS, *MATCHED))),
    "profile": (("profile",), ()),
    "everything but assignment": (("measure", *BEFORE, "ladder", "profile"), ()),
    "everything": (("measure", *BEFORE, "sharing", "ladder", "profile"), ()),
}


# --- clocks ----------------------------------------------------------------------------------------


@dataclass
class Part:
    """Seconds and calls of a part; the most that the process held meanwhile."""

    cpu: float = 0.0
    wall: float = 0.0
    peak_bytes: float = 0.0
    calls: int = 0


@dataclass
class Clocks:
    """Time and peak memory of nested parts, by path."""

    parts: dict[str, Part] = field(default_factory=dict)
    _open: list[tuple[str, list[float]]] = field(default_factory=list)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        path = "/".join([*(opened for opened, _ in self._open), name])
        if not self._open:
            with suppress(OSError, AttributeError):  # a peak is the part's, not what a heap kept
                ctypes.CDLL(None).malloc_trim(0)
        self._note_peak()
        self._open.append((name, [0.0]))
        cpu, wall = time.process_time(), time.perf_counter()
        try:
            yield
        finally:
            found = self.parts.setdefault(path, Part())
            found.cpu += time.process_time() - cpu
            found.wall += time.perf_counter() - wall
            found.calls += 1
            self._note_peak()
            found.peak_bytes = max(found.peak_bytes, self._open.pop()[1][0])
            if not self._open:
                print(f"    {path:14s} {found.cpu:8.2f} s", file=sys.stderr, flush=True)

    def _note_peak(self) -> None:
        peak = timing.peak_bytes()
        for _, most in self._open:
            most[0] = max(most[0], peak)
        timing.reset_peak()

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def clocked(*positional: Any, **named: Any) -> Any:
            with self.part(name):
                return call(*positional, **named)

        return clocked


@contextmanager
def clocked(clocks: Clocks) -> Iterator[None]:
    """Inside: what the package calls by these names is clocked."""
    places: list[tuple[Any, str]] = [(profiling, name) for name in CLOCKED]
    places += [(measurement, "evaluate"), (SAE, "encode"), (assignment, "random_assignment")]
    before = [getattr(owner, name) for owner, name in places]
    for (owner, name), call in zip(places, before, strict=True):
        setattr(owner, name, clocks.around(name, call))
    try:
        yield
    finally:
        for (owner, name), call in zip(places, before, strict=True):
            setattr(owner, name, call)


# --- a cell ----------------------------------------------------------------------------------------


def describe(clocks: Clocks, tokens: TokenTable, given: dict[str, Any], d_sae: int) -> Any:
    """Say everything about one SAE, as a trial does; return its codes."""
    spec, shown = StructureSpec(), MeasurementSpec()
    sae, x, placebo_x = sae_of(d_sae, "sae"), given["x"], given["placebo_x"]
    embedding = rows_of("token")
    table = torch.from_numpy(np.vstack([embedding, embedding.mean(0)]))
    usable = np.ones(len(tokens), dtype=bool)
    held = HeldOut(tokens.rows, tokens.places, usable, tokens.vocabulary)
    weights = document_weights(tokens.n_documents, shown.replicates, SEED)
    with clocks.part("measure"):
        lookup = (torch.arange(VOCABULARY), table)
        codes = measurement.measure(sae, x, held, lookup, None, weights, shown).codes
    with clocks.part("contexts"):
        folds = Folds.of(tokens.documents, tokens.n_documents, SEED)
        domains = domains_of(tokens, SEED)
    with clocks.part("features"):
        ladder_text = LadderText.within(tokens, folds, SEED)
        features = TokenFeatures.of(ladder_text, embedding, SEED, spec.ladder)
    with clocks.part("readouts"):
        readouts = Readouts.of(features, [placebo_x])
        _ = readouts.readings, readouts.choose, readouts.score  # made on first use
    with clocks.part("whole_ladder"):
        others = Stacked([given["placebo"]])
        whole = whole_ladder(Stacked([x.numpy()]), readouts, others)
    with clocks.part("sharing"):
        both = [_directions(one) for one in (sae, sae_of(d_sae, "sibling"))]
        shared = assignment.sharing_of_both(both[0], both[1], spec.assignment, SEED)[0]
    reading = Encoded(sae, tokens, codes, x)
    with clocks.part("by_latent"):
        _ = reading.by_latent
    with clocks.part("repeats"):
        n_repeats = spec.repeat_rows * (spec.repeat_block - 1)
        fresh = codes_of(sae, x[:n_repeats])
        repeated = codes_of(sae, x[n_repeats : 2 * n_repeats])
    with clocks.part("ladder"):
        climbed = ladder(Stacked([codes]), readouts, others, whole)
    fires = np.asarray(codes.getnnz(axis=0), dtype=np.int64)
    around = profiling.Around(
        ladder=climbed,
        placebo=given["placebo"],
        rates=rates_of(fires, shown.thresholds.min_firings),
        sibling=given["sibling"],
        shared=shared,
        repeats=(fresh, repeated),
        unembedding=torch.from_numpy(rows_of("unembedding") + embedding),
        embedding=embedding,
        domains=domains,
    )
    with clocks.part("profile"):
        profiling.profile(reading, folds, around, weights, spec, shown, SEED)
    return codes


def _directions(sae: SAE) -> tuple[np.ndarray, np.ndarray]:
    return sae.params["W_enc"].t().contiguous().numpy(), sae.params["W_dec"].numpy()


def product_rate(d_sae: int, rounds: int = 5) -> float:
    """Return the most floating point operations per processor second of the encoder's product."""
    fastest = 0.0
    for size in (512, 8_192 if d_sae <= 1 << 14 else 2_048):
        x, rows, out = torch.randn(size, D_IN), torch.randn(d_sae, D_IN), torch.empty(size, d_sae)
        operations = 2 * size * D_IN * d_sae
        repeats = math.ceil(1e10 / operations)  # clocks of processor time may be coarse
        for _ in range(rounds):
            begin = time.process_time()
            for _ in range(repeats):
                torch.mm(x, rows.t(), out=out)
            fastest = max(fastest, repeats * operations / (time.process_time() - begin))
    return fastest


def run_cell(folder: Path, d_sae: int, n_tokens: int) -> dict[str, Any]:
    """Return what one cell took; called in a process of its own."""
    small, n_small = text(WARM[1]), WARM[0]
    x = torch.empty(len(small), D_IN)
    activations(small, "trained", x.numpy())
    warm = {"x": x, "placebo_x": x.roll(1, 0)}
    warm["sibling"] = codes_of(sae_of(n_small, "sibling"), x)
    warm["placebo"] = codes_of(sae_of(n_small, "placebo"), warm["placebo_x"])
    describe(Clocks(), small, warm, n_small)
    del x, warm, small
    tokens = text(n_tokens)
    given: dict[str, Any] = {
        which: read_codes(folder, which, d_sae, n_tokens) for which in ("sibling", "placebo")
    }
    given |= {
        "x": read(folder, "trained", n_tokens),
        "placebo_x": read(folder, "placebo", n_tokens),
    }
    start, rate, clocks = timing.resident_bytes(), product_rate(d_sae), Clocks()
    with clocked(clocks):
        codes = describe(clocks, tokens, given, d_sae)
    rate = max(rate, product_rate(d_sae))
    floor = 2 * n_tokens * D_IN * d_sae / rate
    return {
        "d_sae": d_sae,
        "tokens": n_tokens,
        "documents": tokens.n_documents,
        "entries": int(codes.nnz),
        "latents_that_fire": int((np.bincount(codes.indices, minlength=d_sae) > 0).sum()),
        "start_gib": start / 2**30,
        "peak_gib": max(part.peak_bytes for part in clocks.parts.values()) / 2**30,
        "product_gflops": rate / 1e9,
        "encoding_floor_seconds": floor,
        "encoding_times_floor": clocks.parts["measure/encode"].cpu / floor,
        "parts": grouped(clocks.parts),
        "details": {path: asdict(part) for path, part in sorted(clocks.parts.items())},
    }


def grouped(parts: Mapping[str, Part]) -> dict[str, dict[str, float]]:
    """Return processor and wall seconds and the peak of each part that the table names."""
    found = {}
    for name, (more, less) in PARTS.items():
        plus, minus = ([parts[path] for path in paths if path in parts] for paths in (more, less))
        found[name] = {
            "cpu": sum(p.cpu for p in plus) - sum(p.cpu for p in minus),
            "wall": sum(p.wall for p in plus) - sum(p.wall for p in minus),
            "peak_gib": max(p.peak_bytes for p in plus) / 2**30,
        }
    return found


# --- all cells -------------------------------------------------------------------------------------


def slopes(cells: list[dict[str, Any]], by: str) -> dict[str, Any]:
    """Return the slope of log seconds by log `by`, for each part: over all cells, over the last two."""
    cells = sorted(cells, key=lambda cell: float(cell[by]))
    if len(cells) < 2:
        return {}
    x = np.log([cell[by] for cell in cells])
    found: dict[str, Any] = {}
    for part in PARTS:
        y = np.log([max(cell["parts"][part]["cpu"], 1e-3) for cell in cells])
        last = (y[-1] - y[-2]) / (x[-1] - x[-2])
        found[part] = {"all": float(np.polyfit(x, y, 1)[0]), "last": float(last)}
    memory = np.log([cell["peak_gib"] for cell in cells])
    last = (memory[-1] - memory[-2]) / (x[-1] - x[-2])
    found["peak memory"] = {"all": float(np.polyfit(x, memory, 1)[0]), "last": float(last)}
    return found


def show(cells: list[dict[str, Any]], fitted: dict[str, dict[str, Any]]) -> None:
    heads = [f"{c['d_sae']}x{c['tokens'] / 1e6:g}M" for c in cells]
    print(f"\n{'processor seconds':28s}" + "".join(f"{head:>12s}" for head in heads), end="")
    print("".join(f"{'by ' + by:>14s}" for by in fitted))
    for part in PARTS:
        times = "".join(f"{cell['parts'][part]['cpu']:12.2f}" for cell in cells)
        print(f"{part:28s}{times}" + "".join(_slope(found, part) for found in fitted.values()))
    memory = "".join(f"{cell['peak_gib']:12.2f}" for cell in cells)
    print(
        f"{'peak memory (GiB)':28s}{memory}"
        + "".join(_slope(f, "peak memory") for f in fitted.values())
    )
    times = "".join(f"{cell['encoding_times_floor']:12.2f}" for cell in cells)
    print(f"{'encode / its product':28s}{times}")


def _slope(found: Mapping[str, Any], part: str) -> str:
    return f"{found[part]['all']:14.2f}" if part in found else f"{'':14s}"


def child(arguments: list[str], given: argparse.Namespace) -> str:
    """Run this file again with other arguments; return the last line that it prints."""
    several = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(given.threads))
    command = [sys.executable, __file__, "--threads", str(given.threads), *arguments]
    command += ["--limit", str(given.limit)]
    environment = os.environ | several
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    return done.stdout.strip().rpartition("\n")[2]


def compare(cells: list[Cell], folder: Path, arguments: argparse.Namespace) -> None:
    """Run the cells; what the file of results has of others, where some were asked for, stays."""
    where = ["--folder", str(folder)]
    found: dict[Cell, dict[str, Any]] = {}
    if arguments.cell and arguments.out.exists():
        before = json.loads(arguments.out.read_text(encoding="utf-8"))["cells"]
        found = {(cell["d_sae"], cell["tokens"]): cell for cell in before}
    sizes = {d: max(n for e, n in cells if e == d) for d, _ in cells}
    request = json.dumps({"tokens": max(n for _, n in cells), "sizes": list(sizes.items())})
    child([*where, "--prepare", request], arguments)
    skipped: list[dict[str, Any]] = []
    for d_sae, n in cells:
        needed = expected_gib(found, d_sae, n)
        if needed > arguments.most_gib:
            skipped.append({"d_sae": d_sae, "tokens": n, "expected_gib": needed})
            report(found, skipped, arguments)
            continue
        print(f"  {d_sae} latents, {n} tokens", file=sys.stderr, flush=True)
        try:
            found[d_sae, n] = json.loads(child([*where, "--one", f"{d_sae}x{n}"], arguments))
        except subprocess.CalledProcessError as problem:
            skipped.append({"d_sae": d_sae, "tokens": n, "exit": problem.returncode})
        report(
            found, skipped, arguments
        )  # after each: a long run that is cut off has told something


def expected_gib(found: Mapping[Cell, dict[str, Any]], d_sae: int, n_tokens: int) -> float:
    """Return the peak that a cell should reach, by the line through the two longest of its width."""
    known = sorted(n for d, n in found if d == d_sae)[-2:]
    if len(known) < 2:
        return 0.0
    peaks = [found[d_sae, n]["peak_gib"] for n in known]
    slope = (peaks[1] - peaks[0]) / (known[1] - known[0])
    return float(peaks[1] + slope * (n_tokens - known[1]))


def report(
    found: Mapping[Cell, dict[str, Any]],
    skipped: list[dict[str, Any]],
    arguments: argparse.Namespace,
) -> None:
    if not found:
        print(f"no cell was run: {skipped}", file=sys.stderr)
        return
    usual, common = (Counter(at[i] for at in found).most_common(1)[0][0] for i in (0, 1))
    cells = [found[at] for at in sorted(found)]
    fitted = {
        "entries": slopes([cell for cell in cells if cell["d_sae"] == usual], "entries"),
        "latents": slopes([cell for cell in cells if cell["tokens"] == common], "d_sae"),
    }
    show(cells, fitted)
    held = {"d_in": D_IN, "k": K, "vocabulary": VOCABULARY, "threads": arguments.threads}
    versions = machine.versions("torch", "numpy", "scipy", "numba", "sae-placebo")
    results = {"cells": cells, "slopes": fitted, "skipped": skipped, "versions": versions}
    machine.save(arguments.out, "structure", held, results)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--cell", action="append", metavar="D_SAExTOKENS")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--limit", type=int, default=1200, help="processor seconds of a cell, at most"
    )
    parser.add_argument("--most-gib", type=float, default=14.0, help="skip cells that need more")
    parser.add_argument("--cache", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--quick", action="store_true", help="three small cells")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "structure.json")
    for name in ("--folder", "--prepare", "--one"):  # this file calls itself with them
        parser.add_argument(name, help=argparse.SUPPRESS)
    return parser.parse_args()


def _pair(cell: str) -> Cell:
    d_sae, _, tokens = cell.partition("x")
    return int(d_sae), int(tokens)


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    if arguments.folder:
        resource.setrlimit(resource.RLIMIT_CPU, (arguments.limit, arguments.limit))
    with settings("cpu"):
        if arguments.prepare:
            request = json.loads(arguments.prepare)
            prepare(Path(arguments.folder), request["tokens"], dict(request["sizes"]))
            return
        if arguments.one:
            print(json.dumps(run_cell(Path(arguments.folder), *_pair(arguments.one))))
            return
    asked = [_pair(cell) for cell in arguments.cell or ()]
    cells = asked or list(QUICK if arguments.quick else CELLS)
    arguments.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.cache) as folder:
        compare(cells, Path(folder), arguments)


if __name__ == "__main__":
    main()
