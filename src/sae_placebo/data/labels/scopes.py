"""Which scope binds a name: a plain model of Python's rules, enough for labels."""

from __future__ import annotations

import builtins
from dataclasses import dataclass, field

# what `site` adds is no part of the language
_ADDED = {"copyright", "credits", "exit", "quit", "license", "help"}
BUILTINS = frozenset(name for name in dir(builtins) if not name.startswith("_")) - _ADDED


@dataclass(eq=False)
class Scope:
    """A module, class, function, lambda or comprehension, with the names that it binds.

    Attributes:
        kind: `module`, `class`, `function` or `comprehension`; a lambda is a function.
        parent: The scope around, None for the module.
        bound: Names bound here, parameters and imports included.
        parameters: Parameters of a function.
        imported: Names bound by imports.
        elsewhere: Name -> `global` or `nonlocal`, as declared.
    """

    kind: str
    parent: Scope | None = None
    bound: set[str] = field(default_factory=set)
    parameters: set[str] = field(default_factory=set)
    imported: set[str] = field(default_factory=set)
    elsewhere: dict[str, str] = field(default_factory=dict)

    def function(self) -> Scope | None:
        """Return the function whose code runs here, None in code of a module or class."""
        scope: Scope | None = self
        while scope is not None and scope.kind == "comprehension":
            scope = scope.parent
        return scope if scope is not None and scope.kind == "function" else None

    def module(self) -> Scope:
        """Return the outermost scope."""
        scope = self
        while scope.parent is not None:
            scope = scope.parent
        return scope

    def holder(self) -> Scope:
        """Return the scope that an assignment expression binds in: no comprehension."""
        scope = self
        while scope.kind == "comprehension" and scope.parent is not None:
            scope = scope.parent
        return scope

    def bind(self, name: str) -> None:
        """Note a binding of a name by code of this scope."""
        declared = self.elsewhere.get(name)
        if declared == "global":
            self.module().bound.add(name)
        elif declared is None:
            self.bound.add(name)

    def owner(self, name: str) -> Scope | None:
        """Return the scope that a name used here comes from, None where nothing in the file binds it."""
        scope: Scope | None = self
        while scope is not None:
            declared = scope.elsewhere.get(name)
            if declared == "global":
                module = scope.module()
                return module if name in module.bound else None
            if (
                declared is None
                and name in scope.bound
                and (scope.kind != "class" or scope is self)
            ):
                return scope
            scope = scope.parent
        return None
