"""A user's own statistic of use is found by its name, called, and held to what a statistic must return.

A statistic is a function of two arguments,

    def statistic(subject, directions): ...

`subject` (`causal.use.base.Subject`) is the model behind a hookpoint with the held-out tokens:
`subject.downstream` runs it from there on, `subject.activations` is [token, d_in]. `directions`
(`causal.use.base.Directions`) has unit `vectors` [direction, d_in] and `amounts`, scipy CSR [token,
direction]: how much of each direction every token holds. The function returns one finite number per
direction, in their order; a higher one says more use. Numbers of directions that hardly any row holds are not
read, so they may be NaN.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from sae_placebo.core.errors import PlaceboError, SpecError, in_one_line
from sae_placebo.core.interrupts import EXIT_CODES
from sae_placebo.core.spec import distinct
from sae_placebo.lab.worlds.scoring import STATISTICS
from sae_placebo.lab.worlds.units import JudgedSite


@dataclass(frozen=True)
class UserStatistic:
    """A user's function, by the name that was given for it."""

    name: str
    function: Callable[[Any, Any], Any]

    def at(self, site: JudgedSite, where: str) -> Float64[np.ndarray, " unit"]:
        """Return the function's numbers of the directions that are judged at a site.

        Args:
            site: The site and its directions.
            where: What the site is called in an error.

        Raises:
            SpecError: the function fails, or does not return one finite number per direction.
        """

        def checked(subject: Any, directions: Any) -> Float64[np.ndarray, " direction"]:
            try:
                found = self.function(subject, directions)
            except PlaceboError:
                raise
            except (Exception, SystemExit) as problem:
                raise SpecError(
                    f"the statistic {self.name!r} failed at {where} ({_said(problem)})"
                ) from problem
            return self._numbers(found, len(directions), where)

        values = site.judged(checked)
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            first = site.which[wrong[0]]
            raise SpecError(
                f"the statistic {self.name!r} is {values[wrong[0]]} for direction {first} at {where}, and "
                f"not finite for {len(wrong)} of {len(values)} in all: return a finite number for every "
                "direction that tokens hold"
            )
        return values

    def _numbers(self, found: Any, n: int, where: str) -> Float64[np.ndarray, " direction"]:
        if hasattr(found, "detach"):
            found = found.detach().cpu()
            # NumPy has no numbers of 16 bits such as bfloat16
            found = found.double() if found.is_floating_point() else found
        try:
            values = np.asarray(found)
            if values.dtype.kind not in "biuf":
                raise TypeError(f"numbers of type {values.dtype}")
        except Exception as problem:
            raise SpecError(
                f"the statistic {self.name!r} returned what is no array of numbers at {where} "
                f"({in_one_line(str(problem)):.200}): return one number per direction"
            ) from None
        if values.shape != (n,):
            raise SpecError(
                f"the statistic {self.name!r} returned shape {values.shape} at {where}: return one number "
                f"per direction, shape ({n},)"
            )
        return values.astype(np.float64)


def find_statistic(name: str) -> UserStatistic:
    """Return the function that a name such as `package.module:function` or `package.module.function` means.

    Modules are looked for in the current folder first.

    Raises:
        SpecError: there is no such module or function, it is no function of two arguments, or it is called
            as one of our statistics is.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon:
        module_name, _, attribute = name.rpartition(".")
    parts = [*module_name.split("."), *attribute.split(".")]
    if not all(part.isidentifier() for part in parts):
        raise SpecError(
            f"{name!r:.120} names no function: give package.module:function, such as mine:energy for the "
            "function energy of mine.py in this folder"
        )
    found: Any = _module(module_name, name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            known = [k for k, v in vars(found).items() if callable(v) and not k.startswith("_")]
            more = f" and {len(known) - 8} more" if len(known) > 8 else ""
            there = f"; it has {', '.join(sorted(known)[:8])}{more}" if known else ""
            raise SpecError(f"{module_name!r} has no function {attribute!r}{there}")
        found = getattr(found, part)
    if name in STATISTICS:
        raise SpecError(f"a statistic is called {name!r}, as one of ours is: rename it")
    if not callable(found):
        raise SpecError(f"{name!r} is no function, but a value of type {type(found).__name__}")
    try:
        inspect.signature(found).bind(None, None)
    except TypeError as problem:
        raise SpecError(
            f"the statistic {name!r} cannot be called with two arguments ({problem}): it takes the subject "
            "and the directions"
        ) from None
    except ValueError:
        pass  # a built-in function has no signature; its call tells
    return UserStatistic(name, found)


def find_statistics(names: Sequence[str]) -> list[UserStatistic]:
    """Return the functions that names mean; see `find_statistic`.

    Raises:
        SpecError: a name is given twice, or means no statistic.
    """
    return [find_statistic(name) for name in distinct(tuple(names))]


def _module(module_name: str, name: str) -> Any:
    """Return a module, looking in the current folder first."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as problem:
        if problem.name and (
            module_name == problem.name or module_name.startswith(f"{problem.name}.")
        ):
            raise SpecError(
                f"there is no module {module_name!r} for the statistic {name!r}: it must be installed, or be "
                f"{module_name.replace('.', '/')}.py in {here!r}"
            ) from None
        raise SpecError(
            f"the module {module_name!r} of the statistic {name!r} needs {problem.name!r}, which is not "
            "installed"
        ) from problem
    except (Exception, SystemExit) as problem:
        raise SpecError(
            f"the module {module_name!r} of the statistic {name!r} cannot be imported ({_said(problem)})"
        ) from problem
    finally:
        sys.path.remove(here)


def _said(problem: BaseException) -> str:
    """Return what a user's code raised, in one line.

    Raises:
        SystemExit: it is the stop of this process, and not one of that code.
    """
    if isinstance(problem, SystemExit) and problem.code in EXIT_CODES:
        raise problem
    return in_one_line(f"{type(problem).__name__}: {problem}")[:200]
