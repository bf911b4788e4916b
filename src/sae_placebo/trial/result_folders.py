"""A trial's results lie in a folder of its name; results of other settings under it are not lost.

A store holds one result per name, `<store>/trials/<name>/`. A trial of the same name with other
settings is refused before it starts, unless the old results are to be replaced: they are then kept
until the new ones are complete, and moved aside.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sae_placebo.core.errors import StoreError
from sae_placebo.core.file_names import ROOM, name_fault, shown_name
from sae_placebo.core.spec import canonical
from sae_placebo.core.store import explained, read_json
from sae_placebo.core.trial_files import RECORD
from sae_placebo.trial.spec import TrialSpec

_LABELLED = (("arms",), ("saes",))
_SHOWN = 3


def store_folder(store: str | Path) -> Path:
    """Return the store's path.

    Raises:
        StoreError: it is no path, is empty, which would be the current folder, or is a name that a file
            system or a library cannot take.
    """
    if (fault := name_fault(store, ROOM)) is not None:
        raise StoreError(f"the folder {shown_name(store)} {fault}")
    if not str(store).strip():
        raise StoreError(
            "the name of the folder is empty: name one, such as runs, or . for this one"
        )
    return Path(store)


def in_the_way(folder: Path, spec: TrialSpec, replace: bool = False) -> str | None:
    """Return why this trial's results cannot be put in `folder`; None where they can.

    Results of other settings are there, or a trial beside it is called the same but for upper and lower case.

    A setting that only one of the two protocols knows is of another version of this package, and no
    difference; an arm or an SAE that only one of them has is one. Where results are to be replaced, other
    settings are not in the way.
    """
    if (twin := _but_for_case(folder)) is not None:
        return (
            f"{str(folder.parent)!r} holds a trial called {twin!r}, which differs from {spec.name!r} in case "
            "only, and some file systems cannot tell them apart: give this trial another name"
        )
    before = None if replace else _settings_of(folder)
    if before is None:
        return None
    differ = list(_differences(before, spec.model_dump(mode="json")))
    if not differ:
        return None
    more = len(differ) - _SHOWN
    listed = "; ".join(differ[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
    return (
        f"{str(folder)!r} holds results of a trial called {spec.name!r} with other settings ({listed}): "
        "give this trial another name, or --replace (replace=True), which moves the old results aside"
    )


def _but_for_case(folder: Path) -> str | None:
    """Return the folder beside this one that has its name in other case; None where there is none."""
    try:
        beside = sorted(path.name for path in folder.parent.iterdir())
    except OSError:  # there are no results yet, or whoever opens the store says why
        return None
    name = folder.name
    return next((n for n in beside if n != name and n.casefold() == name.casefold()), None)


def not_yet(folder: Path, spec: TrialSpec, left: int, command: str) -> str:
    """Return why there are no results of this trial in `folder` to report on, and what to do.

    Args:
        folder: Where they would lie.
        spec: The trial.
        left: How many of its steps are not done.
        command: The command that runs it.
    """
    said = f"trial {spec.name!r} has no results of these settings yet: "
    said += f"{left} of its stages are left" if left else "all of its stages are done"
    if (taken := in_the_way(folder, spec)) is not None:
        return f"{said}, and `{command}` will refuse to make them: {taken}"
    if left:
        return f"{said}; `{command}` finishes them"
    what = "is of another version" if os.path.lexists(folder / RECORD) else "is missing"
    return f"{said}, but {str(folder / RECORD)!r} {what}; `{command}` makes tables and report anew from them"


@contextmanager
def written_beside(folder: Path, spec: TrialSpec, tell: Callable[[str], None]) -> Iterator[Path]:
    """Yield the folder to write results of `spec` to; at the end they are in `folder`.

    Where `folder` holds results of other settings, the new ones are written beside it; when they are
    complete, the old ones are moved to `<name>.old-<n>`.
    """
    if _settings_of(folder) in (None, spec.model_dump(mode="json")):
        yield folder
        return
    draft = folder.with_name(f".{folder.name}.draft")
    with explained(folder.parent):
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
    yield draft
    numbers = (
        n for n in range(1, 10**6) if not folder.with_name(f"{folder.name}.old-{n}").exists()
    )
    aside = folder.with_name(f"{folder.name}.old-{next(numbers)}")
    with explained(folder.parent):
        folder.rename(aside)
        draft.rename(folder)
    tell(f"the results that were called {folder.name!r} are in {str(aside)!r}")


def _settings_of(folder: Path) -> dict[str, Any] | None:
    """Return the protocol whose results lie in `folder`; None where there are none, or unreadable ones."""
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        found = read_json(path)
    except (StoreError, OSError, ValueError):
        return None
    settings = found.get("spec") if isinstance(found, Mapping) else None
    return dict(settings) if isinstance(settings, Mapping) else None


def _differences(
    before: Mapping[str, Any], now: Mapping[str, Any], place: tuple[str, ...] = ()
) -> Iterator[str]:
    """Yield the settings that differ, by their dotted keys, with the old value and the new one."""
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differences(old, new, (*place, key))
        elif key in before and key in now:
            if canonical(old) != canonical(new):
                yield f"{'.'.join((*place, key))} was {_short(old)}, now {_short(new)}"
        elif place in _LABELLED:
            yield f"{'.'.join((*place, key))} is {'new' if key in now else 'gone'}"


def _short(value: Any) -> str:
    text = "not given" if value is None else canonical(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
