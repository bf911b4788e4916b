"""A trial that no memory or disk of this machine can hold is refused before it starts.

Its needs are lower bounds, made of the protocol and the model's config alone, without torch: what is held
at one time by one piece of work, and what stays on disk. A trial that passes may still need more.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sae_placebo.core.errors import SpecError, StoreError, TextError
from sae_placebo.core.memory import shown_bytes, total_memory
from sae_placebo.core.spec import canonical
from sae_placebo.data.text import library_files, paths
from sae_placebo.data.usable import excluded_ids
from sae_placebo.models.specs import (
    no_tokenizer,
    ties_embeddings,
    vocabulary_size,
    width,
    width_at,
)
from sae_placebo.trial.given import check_given
from sae_placebo.trial.spec import TrialSpec

_NUMBER, _HALF = 4, 2
"""Bytes of a number in float32, and of one in float16."""
_PLAIN = (".txt", ".md", ".rst", ".py", ".jsonl")
"""Files whose text is no longer than they are."""
_TOKENS_PER_BYTE = 2
"""No tokenizer makes so many: a token is a byte or more, but for marks that some put beside words."""
_COPIES = 3
"""Of a trained tensor: itself, and Adam's two means."""


@dataclass(frozen=True)
class Need:
    """The bytes that one setting asks for, and what they are for.

    Attributes:
        setting: Its place in the trial file.
        value: What it is set to.
        what: What it makes, in words.
        n_bytes: How large that is at least.
    """

    setting: str
    value: int
    what: str
    n_bytes: int


def check_sizes(spec: TrialSpec, store: str | Path) -> None:
    """Refuse a trial that this machine can never hold, or whose text or given SAEs do not fit it.

    Args:
        spec: The protocol.
        store: Where artefacts would be kept: its disk is asked. What lies there already counts as
            free, since it may be this trial's own.

    Raises:
        SpecError: one piece of work needs more than all memory, or the artefacts more than the disk; or a
            given SAE does not fit.
        StoreError: the file system keeps nothing, or a given SAE cannot be read.
        TextError: the text cannot hold as many tokens as are asked for, or tokens are excluded that are none.
    """
    memory = total_memory()
    largest = max(memory_needs(spec), key=lambda need: need.n_bytes)
    if memory is not None and largest.n_bytes > memory:
        raise SpecError(
            f"{largest.setting} is {largest.value:,}: {largest.what} take at least "
            f"{shown_bytes(largest.n_bytes)} of memory, and this machine has {shown_bytes(memory)}; lower it"
        )
    needs = list(disk_needs(spec))
    needed, largest = sum(n.n_bytes for n in needs), max(needs, key=lambda need: need.n_bytes)
    room = _room(Path(store))
    if room is not None and needed > room:
        raise SpecError(
            f"the artefacts of this trial take at least {shown_bytes(needed)} of disk, and "
            f"{str(store)!r} has room for {shown_bytes(room)}; most of it are {largest.what}: lower "
            f"{largest.setting} ({largest.value:,}), or choose a --store on another disk"
        )
    _check_text(spec)
    check_given(spec)


def _check_text(spec: TrialSpec) -> None:
    """Refuse more tokens than the bytes of the text can make, where these can be counted at once.

    Ids that are excluded and that the model lacks are refused too, and special ones that nobody knows.
    """
    missing, excluded = no_tokenizer(spec.model), spec.text.exclude_tokens
    if excluded is not True or missing is not None:
        excluded_ids(excluded, missing, vocabulary_size(spec.model))
    wanted = spec.text.train_tokens + spec.text.heldout_tokens
    if spec.text.source.startswith("hf:"):
        return
    stdlib = spec.text.source == "python-stdlib"
    files = library_files() if stdlib else paths(spec.text.source)
    if any(file.suffix not in _PLAIN for file in files):
        return
    n_bytes = sum(file.stat().st_size for file in files)
    if wanted > n_bytes * _TOKENS_PER_BYTE:
        raise TextError(
            f"text.train_tokens and text.heldout_tokens are {wanted:,} together, and the text at "
            f"{spec.text.source!r} has {shown_bytes(n_bytes)}, too few for so many: lower them or give more "
            "text"
        )


def memory_needs(spec: TrialSpec) -> Iterator[Need]:
    """Yield what is held in memory at one time, one piece of work after the other.

    Where the width of the model is not known before a download, it is taken for 1.
    """
    widths = _widths(spec)
    least, most, together = min(widths), max(widths), sum(widths)
    text, use, circuits = spec.text, spec.use, spec.circuits
    label, d_sae = max(((name, sae.d_sae) for name, sae in spec.saes.items()), key=lambda s: s[1])
    n_saes = len(spec.sae_seeds) * len(widths)
    in_training = sum(sae.d_sae for sae in spec.saes.values()) * len(spec.sae_seeds) * 2 * together
    of_saes = f"the {len(spec.saes) * n_saes} SAEs that are trained at once, with their optimizer,"
    copies = _COPIES if spec.device == "cpu" else 1  # elsewhere the optimizer is on the accelerator
    yield Need(f"saes.{label}.d_sae", d_sae, of_saes, in_training * copies * _NUMBER)
    kept = text.heldout_tokens * together * _NUMBER
    yield Need("text.heldout_tokens", text.heldout_tokens, "the held-out activations", kept)
    yield Need("text.train_tokens", text.train_tokens, "the training tokens", text.train_tokens * 4)
    per_row = text.context_tokens if text.positions is None else text.row_tokens
    rows = min(spec.harvest.block_rows, -(-text.train_tokens // per_row))
    block = rows * per_row * together * _NUMBER
    yield Need("harvest.block_rows", spec.harvest.block_rows, "the activations of a block", block)
    documents = -(-text.heldout_tokens // (text.max_document_tokens or text.heldout_tokens))
    n = spec.measurement.replicates
    yield Need("measurement.replicates", n, "the documents' weights", n * documents * 8)
    n = use.masks.n_masks
    yield Need("use.masks.n_masks", n, "the masks of a row", n * _NUMBER)
    n = use.joint.replicates
    yield Need("use.joint.replicates", n, "the documents' weights", n * use.joint.min_documents * 8)
    for setting, n in (
        ("use.nulls", use.nulls),
        ("circuits.readers.nulls", circuits.readers.nulls),
        ("circuits.readers.reader_nulls", circuits.readers.reader_nulls),
        ("circuits.writers.pseudo", circuits.writers.pseudo),
        ("circuits.patch.nulls", circuits.patch.nulls),
    ):
        yield Need(setting, n, "the null directions", n * least * _NUMBER)
    n = spec.audit.hedging_latents
    yield Need("audit.hedging_latents", n, "the added latents", n * 2 * least * _COPIES * _NUMBER)
    n, block_tokens = spec.structure.repeat_rows, min(spec.structure.repeat_block, 4)
    repeats = n * 2 * block_tokens * together * _NUMBER
    yield Need("structure.repeat_rows", n, "the activations on repeated blocks", repeats)
    n = min(spec.baselines.fit_tokens, fit_tokens(spec))
    what = "the activations that existing methods are fitted on"
    yield Need("baselines.fit_tokens", n, what, n * most * _NUMBER)
    yield from _ladder_needs(spec, d_sae)


def _widths(spec: TrialSpec) -> list[int]:
    """Return the width of the activations at each hookpoint; 1 where it is not known before a download."""
    return [width_at(spec.model, name) or 1 for name in spec.hookpoints]


def _ladder_needs(spec: TrialSpec, d_sae: int) -> Iterator[Need]:
    ladder, assignment = spec.structure.ladder, spec.structure.assignment
    n, widths = fit_tokens(spec), _widths(spec)
    d_in = max(widths)
    # of every hookpoint, while a model is read; or of two models at one, with what is read of the placebo's
    each = max(sum(widths), 2 * d_in + min(ladder.readout, d_in)) * _NUMBER
    yield Need("structure.ladder.fit_tokens", n, "activations of the text to fit on", n * each)
    n = ladder.bag
    yield Need(
        "structure.ladder.bag", n, "the bags of a token", 2 * n * len(ladder.decays) * _NUMBER
    )
    n = max(ladder.window)
    yield Need("structure.ladder.window", n, "the windows of a token", sum(ladder.window) * _NUMBER)
    n = ladder.position_bins
    yield Need("structure.ladder.position_bins", n, "the bins of positions", n * 8)
    if d_sae <= assignment.optimal_up_to:
        n = assignment.optimal_up_to
        what = f"all cosines of {d_sae:,} latents with as many"
        yield Need("structure.assignment.optimal_up_to", n, what, d_sae**2 * _NUMBER)


def fit_tokens(spec: TrialSpec) -> int:
    """Return how many tokens of the training text ladders are fitted on, about."""
    return min(spec.structure.ladder.fit_tokens, spec.text.train_tokens)


def disk_needs(spec: TrialSpec) -> Iterator[Need]:
    """Yield what stays on disk of a whole trial: activations, SAEs, heads.

    Arms that share an artefact are counted once.
    """
    together, text = sum(_widths(spec)), spec.text
    tied = ties_embeddings(spec.model)
    models, harvests, trainings = set(), set(), set()
    for arm in spec.arms.values():
        seen = arm.control.seen_at_hookpoints(tied is not False)
        for seed in spec.model_seeds if arm.draws else (None,):
            drawn = seed if arm.control.draws else None
            models.add(canonical([arm.control, drawn]))
            harvests.add(canonical([seen, arm.data, seed]))
            trainings.add(canonical([seen, arm.data, seed, arm.dictionary]))
    kept = len(harvests) * text.heldout_tokens * together * _NUMBER
    yield Need("text.heldout_tokens", text.heldout_tokens, "held-out activations", kept)
    read = len(harvests) * fit_tokens(spec) * together * _NUMBER
    what = "activations of the text to fit on"
    yield Need("structure.ladder.fit_tokens", fit_tokens(spec), what, read)
    label, d_sae = max(((name, sae.d_sae) for name, sae in spec.saes.items()), key=lambda s: s[1])
    numbers = sum(sae.d_sae for sae in spec.saes.values()) * 2 * together
    trained = len(trainings) * len(spec.sae_seeds) * numbers * _NUMBER
    yield Need(f"saes.{label}.d_sae", d_sae, "trained SAEs", trained)
    heads = len(models) * (vocabulary_size(spec.model) or 0) * (width(spec.model) or 1) * _HALF
    yield Need("model_seeds", len(spec.model_seeds), "embeddings of the models", heads)


def _room(store: Path) -> int | None:
    """Return the bytes that are free on the store's disk, and those of what the store holds.

    None where the path cannot be read; whoever opens the store says why.

    Raises:
        StoreError: the file system keeps nothing.
    """
    there, held = store.absolute(), 0
    for folder, _, names in os.walk(there):
        for name in names:
            with contextlib.suppress(OSError):  # gone since
                held += os.lstat(os.path.join(folder, name)).st_size  # noqa: PTH118 - called often
    try:
        while not there.exists():
            there = there.parent
        disk = shutil.disk_usage(there)
    except OSError:
        return None
    if disk.total == 0:  # /proc, /sys
        raise StoreError(
            f"{str(store)!r} cannot hold a store: nothing is kept on that file system; choose another --store"
        )
    return disk.free + held
