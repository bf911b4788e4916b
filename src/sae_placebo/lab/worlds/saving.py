"""Worlds are built and written to folders by one call, and read again with the same bits.

A folder holds `world.json` (names, roles, hookpoints, numbers), `world.safetensors` (rows and variables) and
`model/`. The model of a factored world is saved as any Hugging Face model is, and loads as one. That of a
compiled world is a GPT-2 whose norms are identities, which no config can express: an ordinary load would
give it norms with random gains. So it has no `config.json`, which ordinary loaders need, but `gpt2.json`,
with the config and the names of the modules that are identities.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from sae_placebo.core.errors import SpecError, StoreError, unknown_name
from sae_placebo.core.file_names import ROOM, name_fault, shown_name
from sae_placebo.core.lazy import torch, transformers
from sae_placebo.core.progress import Progress
from sae_placebo.core.spec import LARGEST
from sae_placebo.core.store import read_json, write_json
from sae_placebo.core.time_left import Outlook, WorkPiece
from sae_placebo.lab.worlds.base import Swap, Variable, World
from sae_placebo.lab.worlds.compiled import Access, CompiledWorld, compiled
from sae_placebo.lab.worlds.factored import factored
from sae_placebo.lab.worlds.grammar import PRESETS
from sae_placebo.lab.worlds.programs import PROGRAMS
from sae_placebo.lab.worlds.twins import twins
from sae_placebo.models.loading import load_model

KINDS = ("factored", "twins", "compiled")
"""Kinds of world that `write_worlds` builds."""

_FORMAT = 1
_SECONDS_TO_COMPILE = 15.0
"""Roughly how long a program takes on one core; it only starts the foretold time."""
_FACTS, _ARRAYS, _MODEL = "world.json", "world.safetensors", "model"
_CONFIG, _WEIGHTS = "gpt2.json", "weights.safetensors"
_TWINS = ("uses", "passes")
_OF_VARIABLES = ("values", "train_values", "active")
"""Fields of a `Variable` that are arrays; the others are written to `world.json`."""


# --- building ----------------------------------------------------------------------------------------


def write_worlds(
    kind: str,
    folder: Path,
    seed: int,
    *,
    preset: str | None = None,
    program: str | None = None,
    progress: Progress | None = None,
) -> tuple[Path, ...]:
    """Build the worlds of a kind, write them, and return their folders.

    Args:
        kind: Kind of world, one of `KINDS`.
        folder: Where worlds are written; it must not exist, or be empty. Twins are two worlds, in the folders
            `uses` and `passes` inside.
        seed: Seed of all draws.
        preset: Name of the settings of a factored world or of twins, one of `PRESETS`; None takes `default`.
        program: Name of the program that a compiled world computes, one of `PROGRAMS`.
        progress: Shows how far the training of the models is, and how long it will take.

    Raises:
        SpecError: the kind, preset or program is unknown, the kind takes no preset or program, or the seed is
            no whole number from 0 to 2**53 - 1.
        StoreError: the folder's name is none, or the folder is not empty or cannot be written.
        ModelError: the model does not compute what it should; nothing is written.
        MissingExtra: the world is compiled, and Tracr is not installed.
    """
    check_world(kind, seed, preset, program)
    _check_name(folder)
    try:
        if folder.exists() and any(folder.iterdir()):
            raise StoreError(f"{str(folder)!r} is not empty; give another folder or remove it")
    except NotADirectoryError:
        raise StoreError(f"{str(folder)!r} is a file; give a folder") from None
    folders = []
    progress = progress or Progress()
    pieces = [WorkPiece("build", "build", _SECONDS_TO_COMPILE)] if kind == "compiled" else []
    # a compiler says nothing of how far it is, the training of models does
    whole = progress.whole(Outlook(pieces, rough=True, name="whole"))
    with whole if pieces else contextlib.nullcontext():
        worlds = build_worlds(kind, seed, preset, program, progress)
    for name, world in worlds.items():
        folders.append(folder / name)
        save_world(world, folders[-1])
    return tuple(folders)


def build_worlds(
    kind: str,
    seed: int,
    preset: str | None = None,
    program: str | None = None,
    progress: Progress | None = None,
) -> dict[str, World]:
    """Return the worlds of a kind, by the name of the folder that each gets inside a given one.

    Twins are two, and the name of a single world is empty. Arguments and errors are those of `write_worlds`.
    """
    check_world(kind, seed, preset, program)
    label = f"build {kind} {program or preset or 'default'}, seed {seed}"
    track = (progress or Progress()).track
    if kind == "compiled":
        assert program is not None
        with track(label, 1, "worlds") as advance:
            world = compiled(program, seed)
            advance(1)
        return {"": world}
    spec = PRESETS["default" if preset is None else preset]
    with track(label, spec.steps * (2 if kind == "twins" else 1), "steps") as advance:
        if kind == "twins":
            return dict(zip(_TWINS, twins(spec, seed, advance), strict=True))
        return {"": factored(spec, seed, advance)}


def _check_name(folder: Path | str) -> None:
    if (fault := name_fault(folder, ROOM)) is not None:
        raise StoreError(f"the folder {shown_name(folder)} {fault}")


def check_world(kind: str, seed: int, preset: str | None, program: str | None) -> None:
    """Refuse what cannot be built, before anything is built.

    Raises:
        SpecError: the seed is out of range, the kind, preset or program is unknown, or the kind takes no
            preset or program.
    """
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < LARGEST:
        raise SpecError(
            f"the seed is {seed!r:.80}: give a whole number from 0 to {LARGEST - 1:,}, which is 2**53 - 1"
        )
    if kind not in KINDS:
        raise SpecError(unknown_name("kind of world", kind, KINDS))
    if kind == "compiled":
        if preset is not None:
            raise SpecError("presets are of factored worlds and twins; leave out --preset")
        if program is None:
            raise SpecError(f"a compiled world needs --program: one of {', '.join(PROGRAMS)}")
        _ = PROGRAMS[program]
    else:
        if program is not None:
            raise SpecError("programs are of compiled worlds; leave out --program")
        _ = PRESETS["default" if preset is None else preset]


# --- writing -----------------------------------------------------------------------------------------


def save_world(world: World, folder: Path) -> None:
    """Write a world into a folder.

    `world.json` is written last, and a folder without it holds no world.

    Raises:
        StoreError: the folder cannot be written.
    """
    from safetensors.numpy import save_file

    _check_name(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # safetensors writes an array's memory as it lies there: views must be copied
        arrays = {name: np.ascontiguousarray(x) for name, x in _arrays(world)}
        save_file(arrays, folder / _ARRAYS)
        _save_model(world.model, folder / _MODEL, is_program=isinstance(world, CompiledWorld))
        write_json(folder / _FACTS, _facts(world))
    except OSError as error:
        reason = error.strerror or error
        raise StoreError(f"cannot write a world to {str(folder)!r} ({reason})") from None


def _arrays(world: World) -> Iterator[tuple[str, Shaped[np.ndarray, "..."]]]:
    """Yield the arrays of a world by the names that they have in its file."""
    yield "rows", world.rows
    yield "train_rows", world.train_rows
    for variable in world.variables:
        for part in _OF_VARIABLES:
            if getattr(variable, part) is not None:
                yield f"{part}.{variable.name}", getattr(variable, part)
    for name, swap in world.swaps.items():
        yield f"alternatives.{name}", swap.alternatives
        yield f"sources.{name}", swap.sources
    if isinstance(world, CompiledWorld):
        for name, levels in world.directions.items():
            yield f"directions.{name}", levels.numpy()


def _facts(world: World) -> dict[str, Any]:
    """Return all of a world that is no array, for JSON; lists of pairs keep the order of mappings."""
    facts: dict[str, Any] = {
        "format": _FORMAT,
        "kind": "factored",
        "name": world.name,
        "hookpoints": list(world.hookpoints),
        "variables": [
            {f.name: getattr(v, f.name) for f in fields(Variable) if f.name not in _OF_VARIABLES}
            for v in world.variables
        ],
        "swaps": list(world.swaps),
        "numbers": [[name, float(x)] for name, x in world.numbers.items()],
    }
    if isinstance(world, CompiledWorld):
        facts |= {
            "kind": "compiled",
            "value_names": [[name, list(x)] for name, x in world.value_names.items()],
            "access": [[_pairs(x.reads), _pairs(x.writes)] for x in world.access],
            "embedded": list(world.embedded),
            "output": world.output,
            "classes": list(world.classes),
            "tokens": list(world.tokens),
        }
    return facts


def _pairs(parts: Any) -> list[Any]:
    return [[name, list(x)] for name, x in parts.items()]


def _save_model(model: Any, folder: Path, is_program: bool) -> None:
    """Write a model as `save_pretrained` does, or a GPT-2 some of whose modules are identities."""
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    tensors = {name: x.contiguous() for name, x in model.state_dict().items()}
    if not is_program:
        model.config.save_pretrained(folder)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    identities = [
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Identity)
    ]
    save_file(tensors, folder / _WEIGHTS)
    write_json(folder / _CONFIG, {"config": model.config.to_dict(), "identities": identities})


# --- reading -----------------------------------------------------------------------------------------


def load_world(folder: Path | str) -> World:
    """Return the world in a folder, with the bits with which it was written.

    Args:
        folder: A folder that `save_world` wrote; for twins, the folder of one of the two.

    Raises:
        StoreError: the folder holds no world, or one that is damaged or of another format.
        ModelError: the model of a factored world cannot be loaded.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if (fault := name_fault(folder)) is not None:
        raise StoreError(f"the world's folder {shown_name(folder)} {fault}")
    folder = Path(folder)
    if not (folder / _FACTS).is_file():
        inside = [name for name in _TWINS if (folder / name / _FACTS).is_file()]
        hint = f"; twins are in {' and '.join(inside)} inside" if inside else ""
        raise StoreError(f"{str(folder)!r} holds no world ({_FACTS} is missing){hint}")
    try:
        facts = read_json(folder / _FACTS)
        if facts["format"] != _FORMAT:
            raise StoreError(
                f"the world in {str(folder)!r} has format {facts['format']}, and {_FORMAT} is read; "
                "build it again"
            )
        return _assembled(folder, facts, load_file(folder / _ARRAYS))
    except (
        OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError,
    ) as problem:  # fmt: skip
        raise StoreError(
            f"the world in {str(folder)!r} is damaged ({type(problem).__name__}: {problem}); build it "
            "again"
        ) from None


def load_worlds(folder: Path) -> list[World]:
    """Return the world in a folder, or the worlds in the folders inside it, by name.

    Raises:
        StoreError: there is none, or one is damaged.
        ModelError: the model of a factored world cannot be loaded.
    """
    inside = sorted(path.parent for path in folder.glob(f"*/{_FACTS}"))
    if (folder / _FACTS).is_file() or not inside:
        return [load_world(folder)]
    return [load_world(path) for path in inside]


def _assembled(
    folder: Path, facts: dict[str, Any], arrays: dict[str, Shaped[np.ndarray, "..."]]
) -> World:
    """Return the world that the contents of its files describe."""
    is_program = facts["kind"] == "compiled"
    model = _load_program(folder / _MODEL) if is_program else load_model(folder / _MODEL)
    common: dict[str, Any] = {
        "name": facts["name"],
        "model": model,
        "rows": arrays["rows"],
        "train_rows": arrays["train_rows"],
        "variables": tuple(_variable(variable, arrays) for variable in facts["variables"]),
        "hookpoints": tuple(facts["hookpoints"]),
        "swaps": {
            name: Swap(arrays[f"alternatives.{name}"], arrays[f"sources.{name}"])
            for name in facts["swaps"]
        },
        "numbers": dict(facts["numbers"]),
    }
    if not is_program:
        return World(**common)
    return CompiledWorld(
        **common,
        directions={
            name: torch.from_numpy(arrays[f"directions.{name}"]) for name, _ in facts["value_names"]
        },
        value_names=_tuples(facts["value_names"]),
        access=tuple(Access(_tuples(r), _tuples(w)) for r, w in facts["access"]),
        embedded=tuple(facts["embedded"]),
        output=facts["output"],
        classes=tuple(facts["classes"]),
        tokens=tuple(facts["tokens"]),
    )


def _tuples(pairs: list[Any]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(x) for name, x in pairs}


def _variable(facts: dict[str, Any], arrays: dict[str, Shaped[np.ndarray, "..."]]) -> Variable:
    parts: dict[str, Any] = {part: arrays.get(f"{part}.{facts['name']}") for part in _OF_VARIABLES}
    if parts["values"] is None or parts["train_values"] is None:
        raise KeyError(f"values of {facts['name']}")
    return Variable(**facts, **parts)


def _load_program(folder: Path) -> Any:
    """Return a GPT-2 some of whose modules are identities."""
    from safetensors.torch import load_file

    facts = read_json(folder / _CONFIG)
    with torch.random.fork_rng(devices=[]):
        model: Any = transformers.GPT2LMHeadModel(transformers.GPT2Config(**facts["config"]))
    for name in facts["identities"]:
        model.set_submodule(name, torch.nn.Identity())
    model.load_state_dict(load_file(folder / _WEIGHTS))
    model.requires_grad_(False)
    model.eval()
    return model
