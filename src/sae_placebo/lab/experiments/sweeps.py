"""A sweep varies settings of a generator or of an SAE over given or default values.

The functions here read sweeps and settings from the text of a command line, and make generators from them.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence

from pydantic import Field, ValidationError, model_validator

from sae_placebo.core.errors import SpecError, unknown_name
from sae_placebo.core.spec import Spec
from sae_placebo.lab import GENERATORS, GeneratorSpec

OF_SAE = ("lambda", "width")
"""Settings of the SAE that can be swept: the weight of its penalty, and how many latents it has."""
Value = int | float | str | bool


class Axis(Spec):
    """A setting and the values that it takes, in rising order.

    `lambda` and `width` are settings of the SAE, all others of the generator.
    """

    name: str
    values: tuple[int | float, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _values_rise(self) -> Axis:
        if any(a >= b for a, b in itertools.pairwise(self.values)):
            raise SpecError(f"the values of {self.name} must rise; found {list(self.values)}")
        return self


def parse_axes(text: str, generator: str = "composed_sets", items: int = 4) -> tuple[Axis, ...]:
    """Return the axes that a text such as `lambda,correlation=0:0.5:1,width` names.

    Args:
        text: Names separated by commas; `=` and values separated by colons may follow a name, and a name
            alone takes its default values.
        generator: The kind of generator whose settings may be named.
        items: Number of items per set, from which the default widths follow.

    Raises:
        SpecError: a name is unknown or given twice, a value is not a finite number, values do not rise, there
            is no default, or the number of sweeps is not one to three.
    """
    axes = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, values = part.partition("=")
        if name not in (known := sweepable(generator)):
            raise SpecError(unknown_name("setting to sweep", name, known))
        if not values:
            axes.append(default_axis(name, items))
            continue
        try:
            numbers = tuple(_number(value) for value in values.split(":"))
        except ValueError:
            raise SpecError(
                f"values of a sweep are numbers apart by colons, such as {name}=0.1:0.2; found {part!r}"
            ) from None
        axes.append(_axis(name, numbers))
    once([axis.name for axis in axes])
    swept = sum(len(axis.values) > 1 for axis in axes)
    if not axes or swept > 3:
        raise SpecError(
            f"a diagram has one to three sweeps (rows, columns, panels), not {swept}: for example "
            "lambda,correlation,width"
        )
    return tuple(axes)


def _axis(name: str, values: tuple[int | float, ...]) -> Axis:
    for value in values:
        if isinstance(value, float) and not math.isfinite(value):
            raise SpecError(
                f"{name} is swept over {value}: give finite numbers, such as {name}=0.1:0.2"
            )
    try:
        return Axis(name=name, values=values)
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        cause = first.get("ctx", {}).get("error", first["msg"])
        raise SpecError(f"{name} cannot be swept so: {cause}") from None


def once(names: Sequence[str]) -> None:
    """See to it that each setting is swept, or fixed by a single value, once.

    Raises:
        SpecError: one is named twice.
    """
    if len(set(names)) < len(names):
        raise SpecError(f"a setting is swept twice: {', '.join(names)}")


def default_axis(name: str, items: int = 4) -> Axis:
    """Return the axis of a setting with the values that it takes where none are given.

    Args:
        name: The setting.
        items: Number of items per set, from which the default widths follow.

    Raises:
        SpecError: the setting has no default values.
    """
    grids: dict[str, tuple[int | float, ...]] = {
        "lambda": (0.01, 0.03, 0.08, 0.2, 0.4, 0.8),
        "correlation": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
        # a latent for every item, for every pair of items, and for both
        "width": tuple(sorted({2 * items, items**2, 2 * items + items**2})),
        "solo": (0.0, 0.05, 0.1, 0.25, 0.5, 0.75),
        "items": (2, 3, 4, 6, 8),
    }
    if name not in grids:
        raise SpecError(
            f"there are no default values for a sweep of {name!r}, only of {', '.join(grids)}: give "
            f"them as {name}=a:b:c"
        )
    return Axis(name=name, values=grids[name])


def sweepable(generator: str) -> list[str]:
    """Return the names of all settings that can be swept: the generator's numbers, and `OF_SAE`.

    The generator's seed is not among them.
    """
    kinds = (int, float, int | None, float | None)
    fields = GENERATORS[generator].model_fields.items()
    of_generator = {name for name, field in fields if field.annotation in kinds}
    return sorted(of_generator - {"seed"} | set(OF_SAE))


def generator_of(kind: str, settings: Mapping[str, Value]) -> GeneratorSpec:
    """Return the generator of a kind with these settings.

    Raises:
        SpecError: the kind or a setting is unknown, or a value is not allowed.
    """
    spec = GENERATORS[kind]
    for name in settings:
        if name not in spec.model_fields:
            raise SpecError(unknown_name(f"setting of generator {kind!r}", name, spec.model_fields))
    try:
        return spec.model_validate({"kind": kind, **settings})
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        where = f"{place} = {first['input']!r:.80}: " if place else ""
        raise SpecError(f"generator {kind!r}: {where}{first['msg']}") from None


def parse_settings(texts: list[str]) -> dict[str, Value]:
    """Return the settings that texts such as `items=4` and `amplitude=constant` give, by name.

    Raises:
        SpecError: a text has no `=`, its value is a table or a list, or a setting is given twice.
    """
    settings: dict[str, Value] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise SpecError(f"a setting is given as name=value; found {text!r}")
        try:
            read = json.loads(value)
        except ValueError:
            read = value
        if not isinstance(read, Value):
            raise SpecError(f"{name} takes one number or word, not {value!r:.80}")
        if name in settings:
            raise SpecError(f"the setting {name!r} is given twice; give it once")
        settings[name] = read
    return settings


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)
