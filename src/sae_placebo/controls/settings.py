"""The settings of a control, checked against its class, with errors that name the setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from sae_placebo.core.errors import SpecError, unknown_name
from sae_placebo.core.spec import Spec

S = TypeVar("S", bound=Spec)


def validated(
    cls: type[S], settings: Mapping[str, Any], what: str, groups: Sequence[str] = ()
) -> S:
    """Return the control of class `cls` with these settings.

    Args:
        cls: The class of the control.
        settings: The settings as a user gave them, without the kind.
        what: What errors call the control, such as "data control 'unigram'".
        groups: The names that a setting `keep` may hold.

    Raises:
        SpecError: the control has no such setting, or does not allow such a value.
    """
    known = [key for key in cls.model_fields if key != "kind"]
    for key in settings:
        if key not in known:
            raise SpecError(unknown_name(f"setting of {what}", str(key), known or ["(none)"]))
    try:
        return cls.model_validate(settings)
    except ValidationError as error:
        raise SpecError(what + _first_problem(error, groups)) from None


def _first_problem(error: ValidationError, groups: Sequence[str]) -> str:
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    if groups and problem["type"] == "literal_error" and problem["loc"][:1] == ("keep",):
        return ": " + unknown_name("tensor group to keep", str(problem["input"]), groups)
    if not where:  # the settings do not fit together: the message says it all
        return f": {problem['msg'].removeprefix('Value error, ')}"
    if (
        problem["type"] == "value_error"
    ):  # a control inside of this one: its sentence says what was found
        return f", {where}: {problem['msg'].removeprefix('Value error, ')}"
    return f", {where}: {problem['msg']} (found {problem['input']!r:.80})."
