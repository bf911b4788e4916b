"""This module has the base of all settings, registries of kinds, and generators named by their use.

Every setting is a frozen `Spec`: unknown keys are refused, and `digest` hashes the whole value, so
that an artefact's key changes exactly when something that can change its content does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Generic, TypeVar

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from sae_placebo.core.errors import SpecError, unknown_name
from sae_placebo.core.lazy import torch

T = TypeVar("T")

LARGEST = 2**53
"""Whole numbers in settings are smaller than this: a float holds each of these, and so does everyone's
JSON."""


class Spec(BaseModel):
    """Settings: a frozen value that refuses unknown keys and that JSON can hold.

    Types are strict: neither `true` nor "5" is a number, and 64.0 is no whole number. A list serves
    where a tuple is meant, since TOML and JSON have no tuples.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    @field_validator("*", mode="before")
    @classmethod
    def _as_written(cls, value: Any) -> Any:
        """Return lists as tuples, and refuse whole numbers that no library would take."""
        if isinstance(value, int) and not -LARGEST < value < LARGEST:
            raise SpecError(
                f"{str(value)[:12]}... has {len(str(abs(value)))} digits: whole numbers are below 2**53"
            )
        return _tuples(value)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def distinct(values: tuple[T, ...]) -> tuple[T, ...]:
    """Return `values` as they are, when each is given once.

    Raises:
        SpecError: one is given twice.
    """
    for position, value in enumerate(values):
        if value in values[:position]:
            raise SpecError(f"{value!r} is given twice in {list(values)}; give each once")
    return values


Distinct = Annotated[tuple[T, ...], Field(min_length=1), AfterValidator(distinct)]
"""A setting of this type is a list that holds one value at least, and none twice."""


def canonical(value: Any) -> str:
    """Return `value` as JSON with sorted keys and no spaces: equal values have equal texts."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} has no canonical JSON form")


def digest(value: Any) -> str:
    """Return the SHA-256 of the canonical JSON of `value`, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


class Registry(Generic[T]):
    """A registry maps names to things of one kind; an unknown name is refused with the nearest known one."""

    def __init__(self, kind: str, check: Callable[[T], None] | None = None) -> None:
        """Start an empty registry.

        Args:
            kind: What the entries are, in messages: "control".
            check: Called with each new entry; it raises ValueError where the entry declares too little.
        """
        self.kind = kind
        self._check = check
        self._entries: dict[str, T] = {}

    def add(self, entry: T, *, name: str | None = None) -> T:
        """Register `entry` and return it, so that a class is registered by `@REGISTRY.add` above it.

        Args:
            entry: A class of settings, which is known by the default of its field `kind`, or a value
                that has a `name`.
            name: For entries that have neither.

        Raises:
            ValueError: the name is taken, or the registry's check refuses the entry.
        """
        if name is None:
            fields = getattr(entry, "model_fields", {})
            known = fields["kind"].default if "kind" in fields else getattr(entry, "name", None)
            if not isinstance(known, str):
                raise ValueError(f"a {self.kind} has neither a `kind` nor a `name`: {entry!r:.80}")
            name = known
        if name in self._entries:
            raise ValueError(f"two {self.kind}s are called {name!r}")
        if self._check is not None:
            self._check(entry)
        self._entries[name] = entry
        return entry

    def __getitem__(self, name: str) -> T:
        try:
            return self._entries[name]
        except KeyError:
            raise SpecError(unknown_name(self.kind, name, self._entries)) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    @property
    def entries(self) -> Mapping[str, T]:
        """Return everything registered, in order of registration."""
        return dict(self._entries)


def _seed(seed: int, names: tuple[str | int, ...]) -> int:
    text = canonical([seed, *names])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def generator(seed: int, *names: str | int, device: str = "cpu") -> torch.Generator:
    """Return torch's generator for one named use of `seed`.

    The same seed and names give the same stream; another name gives an independent one, so adding
    an arm never changes what another arm draws.
    """
    # torch takes signed 64-bit seeds
    return torch.Generator(device=device).manual_seed(_seed(seed, names) >> 1)


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return NumPy's generator for one named use of `seed`; see `generator`."""
    return np.random.default_rng(_seed(seed, names))
