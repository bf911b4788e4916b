"""What comparisons a set of arms makes possible, found from what each arm is, not from its name.

A single contrast cannot tell one cause from two acting together. Arms that change two things
separately and at once can: they make a 2x2, whose interaction is the difference between two effects.
Arms that change ever more of one thing make a dose-response curve. What is lacking to complete a
design is said as a line for the trial file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

TRAINED = "trained"
_EMBEDDINGS = frozenset({"embeddings", "unembedding"})


@dataclass(frozen=True)
class ArmParts:
    """The parts of an arm: what it changes.

    Attributes:
        control: The model control's dump: its `kind` and its settings.
        data: The data control's kind; None where the text is the trial's own.
        dictionary: The dictionary control's kind; None where the SAEs are trained as usual.
        data_settings: The data control's other settings, by name.
    """

    control: Mapping[str, Any]
    data: str | None = None
    dictionary: str | None = None
    data_settings: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, control: Any, data: Any = None, dictionary: Any = None) -> ArmParts:
        """Return the parts of an arm whose controls are given as tables, kinds or None."""
        known = control if isinstance(control, Mapping) else {"kind": control or TRAINED}
        others = data.items() if isinstance(data, Mapping) else ()
        settings = tuple(sorted((str(k), _fixed(v)) for k, v in others if k != "kind"))
        return cls(known, _kind(data), _kind(dictionary), settings)

    @property
    def kind(self) -> str:
        """Return the kind of the model control."""
        return str(self.control.get("kind") or TRAINED)

    @property
    def is_trained(self) -> bool:
        """Return whether nothing at all is changed."""
        return self.kind == TRAINED and self.data is None and self.dictionary is None

    @property
    def model_only(self) -> bool:
        """Return whether text and SAEs are the trial's own."""
        return self.data is None and self.dictionary is None

    def settings(self, *without: str) -> tuple[tuple[str, str], ...]:
        """Return the model control's settings, comparable; those that are empty are left out."""
        found = {
            str(k): repr(sorted(map(str, v)) if isinstance(v, list | tuple) else v)
            for k, v in self.control.items()
            if k != "kind" and k not in without and v not in (None, [], (), "")
        }
        return ((self.kind, ""), *sorted(found.items()))


def _kind(value: Any) -> str | None:
    if isinstance(value, Mapping):
        value = value.get("kind")
    return None if value in (None, "", "none") else str(value)


def _fixed(value: Any) -> Any:
    """Return a setting as a value that can be a key."""
    return tuple(map(_fixed, value)) if isinstance(value, list | tuple) else value


class Factor(NamedTuple):
    """A factor is one thing that is varied, with the values that it takes."""

    name: str
    levels: tuple[str, ...]


class DesignCell(NamedTuple):
    """A cell is one combination of levels, with the arm that has it."""

    levels: tuple[str, ...]
    arm: str | None
    add: str = ""
    """This is to be added to `[arms]` of the trial file where there is no such arm."""


class Quad(NamedTuple):
    """Four arms of a complete 2x2: the interaction is (a - b) - (c - d)."""

    a: str
    b: str
    c: str
    d: str


@dataclass(frozen=True)
class Design:
    """A set of arms that differ in what the factors name and in nothing else.

    Attributes:
        name: Identifier, one of its own per design.
        family: `embeddings_x_blocks`, `model_x_data`, `cascade` or `dictionary`.
        title: In words.
        factors: What is varied. Those of a 2x2 have two levels each, the original one first.
        cells: Every combination; the last factor varies fastest.
        note: What else differs between the arms, if anything.
    """

    name: str
    family: str
    title: str
    factors: tuple[Factor, ...]
    cells: tuple[DesignCell, ...]
    note: str = ""

    def arm(self, *levels: str) -> str | None:
        """Return the arm with these levels, one per factor."""
        return next((cell.arm for cell in self.cells if cell.levels == levels), None)

    @property
    def is_factorial(self) -> bool:
        """Return whether it is a 2x2."""
        return [len(factor.levels) for factor in self.factors] == [2, 2]

    @property
    def quad(self) -> Quad | None:
        """Return the four arms of a complete 2x2; None where it is none or lacks one."""
        arms = [cell.arm for cell in self.cells if cell.arm is not None]
        return Quad(*arms) if self.is_factorial and len(arms) == 4 else None

    @property
    def lacking(self) -> tuple[DesignCell, ...]:
        """Return the cells without an arm."""
        return tuple(cell for cell in self.cells if cell.arm is None)

    @property
    def margins(self) -> tuple[tuple[str, str], ...]:
        """Return the pairs of arms that differ in one factor of a 2x2, or from the first cell otherwise."""
        arms = [cell.arm for cell in self.cells]
        if self.is_factorial:
            pairs = [(arms[i], arms[j]) for i, j in ((0, 1), (2, 3), (0, 2), (1, 3))]
        else:
            pairs = [(arms[0], other) for other in arms[1:]]
        return tuple((a, b) for a, b in pairs if a is not None and b is not None)

    def contrasts(self, arms: Mapping[str, ArmParts]) -> list[tuple[str, str]]:
        """Return the pairs (arm, control) to compare, beyond trained minus each other arm."""
        return [(a, b) for a, b in self.margins if not arms[a].is_trained]


def designs(arms: Mapping[str, ArmParts]) -> list[Design]:
    """Return every design of which the arms hold at least two cells, complete or not."""
    found = [*_embeddings_by_blocks(arms), *_model_by_data(arms), *_cascades(arms)]
    found += _dictionaries(arms)
    return [design for design in found if len(design.cells) - len(design.lacking) >= 2]


def quads(arms: Mapping[str, ArmParts]) -> dict[str, Quad]:
    """Return the four arms of every complete 2x2, by the design's name."""
    found = {design.name: design.quad for design in designs(arms)}
    return {name: quad for name, quad in found.items() if quad is not None}


def _trained(arms: Mapping[str, ArmParts]) -> str | None:
    return next((name for name, parts in arms.items() if parts.is_trained), None)


# --- embeddings x blocks


def _embeddings_by_blocks(arms: Mapping[str, ArmParts]) -> list[Design]:
    models = {name: parts for name, parts in arms.items() if parts.model_only}
    redraws = {name: _kept(parts) for name, parts in models.items() if parts.kind == "redraw"}
    with_them = [name for name, kept in redraws.items() if "embeddings" in kept]
    without = [name for name, kept in redraws.items() if "embeddings" not in kept]
    keeping, redraw = _nearest_pair(redraws, with_them, without)
    swapped = next((n for n, parts in models.items() if parts.kind == "redraw_embeddings"), None)
    if keeping is None and swapped is None:
        return []
    also = redraws.get(keeping or redraw or "", frozenset()) - _EMBEDDINGS
    kept = ", ".join(f'"{group}"' for group in ["embeddings", "unembedding", *sorted(also)])
    rest = ", ".join(f'"{group}"' for group in sorted(also))
    real, drawn = "real", "re-drawn"
    line = f'redraw_keep_embeddings = {{control = "redraw", keep = [{kept}]}}'
    bare = 'redraw = {control = "redraw"' + (f", keep = [{rest}]" if rest else "") + "}"
    cells = (
        DesignCell((real, real), _trained(arms), 'trained = {control = "trained"}'),
        DesignCell((real, drawn), swapped, 'redraw_embeddings = {control = "redraw_embeddings"}'),
        DesignCell((drawn, real), keeping, line),
        DesignCell((drawn, drawn), redraw, bare),
    )
    return [
        Design(
            "embeddings_x_blocks",
            "embeddings_x_blocks",
            "Embeddings × blocks",
            (Factor("blocks", (real, drawn)), Factor("W_E", (real, drawn))),
            cells,
            _other_difference(redraws, keeping, redraw),
        )
    ]


def _kept(parts: ArmParts) -> frozenset[str]:
    return frozenset(map(str, parts.control.get("keep") or ()))


def _nearest_pair(
    redraws: Mapping[str, frozenset[str]], with_them: list[str], without: list[str]
) -> tuple[str | None, str | None]:
    """Return the two re-draws, with and without embeddings, that differ in the least else."""
    if not with_them or not without:
        return next(iter(with_them), None), next(iter(without), None)
    pairs = [(a, b) for a in with_them for b in without]
    # the output head comes and goes with the embeddings; positions, norms and biases should not
    return min(
        pairs,
        key=lambda pair: (
            len((redraws[pair[0]] ^ redraws[pair[1]]) - _EMBEDDINGS),
            # in a tied model an arm that keeps the head keeps the embedding
            "unembedding" in redraws[pair[1]],
            "unembedding" not in redraws[pair[0]],
        ),
    )


def _other_difference(
    redraws: Mapping[str, frozenset[str]], keeping: str | None, redraw: str | None
) -> str:
    if keeping is None or redraw is None:
        return ""
    more = sorted((redraws[keeping] ^ redraws[redraw]) - _EMBEDDINGS)
    return f"{keeping} and {redraw} differ in {', '.join(more)} as well" if more else ""


# --- model x data


_Data = tuple[str, tuple[tuple[str, Any], ...]]
"""The kind of a data control and its settings; the kind is empty where the text is the trial's own."""


def _model_by_data(arms: Mapping[str, ArmParts]) -> list[Design]:
    usual = {name: parts for name, parts in arms.items() if parts.dictionary is None}
    data = {name: one for name, one in _data_of(arms).items() if name in usual}
    changed = dict.fromkeys(one for one in data.values() if one[0])
    found = []
    for one in changed:
        on = {name: parts for name, parts in usual.items() if data[name] == one}
        rewritten = next((name for name, parts in on.items() if parts.kind == TRAINED), None)
        placebos = {
            parts.settings(): parts.control for parts in on.values() if parts.kind != TRAINED
        }
        same_kind = sum(kind == one[0] for kind, _ in changed) > 1
        label = ".".join([one[0], *(str(v) for _, v in one[1])]) if same_kind else one[0]
        for settings, control in (placebos or _first_placebo(usual)).items():
            design = _one_model_by_data(arms, list(on), label, rewritten, settings, control)
            found.append(design)
    return found


def _data_of(arms: Mapping[str, ArmParts]) -> dict[str, _Data]:
    """Return each arm's data control, with the settings that every arm with one of its kind has."""
    named: dict[str, set[str]] = {}
    for parts in arms.values():
        names = {name for name, _ in parts.data_settings}
        named[parts.data or ""] = named.get(parts.data or "", names) & names
    return {
        arm: (
            kind := parts.data or "",
            tuple(s for s in parts.data_settings if s[0] in named[kind]),
        )
        for arm, parts in arms.items()
    }


def _data_toml(parts: ArmParts) -> str:
    """Return an arm's data control as a trial file writes it."""
    if not parts.data_settings:
        return f'data = "{parts.data}"'
    written = [f"{k} = {_toml_value(v)}" for k, v in (("kind", parts.data), *parts.data_settings)]
    return f"data = {{{', '.join(written)}}}"


def _first_placebo(
    usual: Mapping[str, ArmParts],
) -> dict[tuple[tuple[str, str], ...], Mapping[str, Any]]:
    """Return the placebo to cross with the data where none is yet: the one that keeps least."""
    models = [parts for parts in usual.values() if parts.data is None and parts.kind != TRAINED]
    models.sort(key=lambda parts: (parts.kind != "redraw", len(_kept(parts))))
    return {models[0].settings(): models[0].control} if models else {}


def _one_model_by_data(
    arms: Mapping[str, ArmParts],
    on: Sequence[str],
    label: str,
    rewritten: str | None,
    settings: tuple[tuple[str, str], ...],
    control: Mapping[str, Any],
) -> Design:
    usual = {name: parts for name, parts in arms.items() if parts.dictionary is None}
    alike = {name: parts for name, parts in usual.items() if parts.settings() == settings}
    plain = next((name for name, parts in alike.items() if parts.data is None), None)
    both = next((name for name in alike if name in on), None)
    data, written = arms[on[0]].data, _data_toml(arms[on[0]])
    kind = str(control.get("kind"))
    line = _toml(control)
    placebo = plain or both or kind
    cells = (
        DesignCell((TRAINED, "as it is"), _trained(arms), 'trained = {control = "trained"}'),
        DesignCell((TRAINED, label), rewritten, f"{data} = {{{written}}}"),
        DesignCell((placebo, "as it is"), plain, f"{kind} = {{{line}}}"),
        DesignCell((placebo, label), both, f"{plain or kind}_{data} = {{{line}, {written}}}"),
    )
    return Design(
        f"model_x_data.{label}.{placebo}",
        "model_x_data",
        f"Model × data: {label.replace('_', ' ')}, with {placebo} as the placebo",
        (Factor("model", (TRAINED, placebo)), Factor("text", ("as it is", label))),
        cells,
    )


def _toml(control: Mapping[str, Any]) -> str:
    """Return a control's settings as in an arm of a trial file."""
    parts = [f'control = "{control.get("kind")}"']
    for name, value in control.items():
        if name == "kind" or value in (None, [], (), ""):
            continue
        parts.append(f"{name} = {_toml_value(value)}")
    return ", ".join(parts)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    if isinstance(value, Mapping):
        return f"{{{_toml(value)}}}"
    return f'"{value}"'


# --- dose-response, dictionaries


def _cascades(arms: Mapping[str, ArmParts]) -> list[Design]:
    """Return a curve for each set of cascade arms that differ in how many last blocks they re-draw."""
    doses: dict[tuple[tuple[str, str], ...], dict[int, str]] = {}
    for name, parts in arms.items():
        last = parts.control.get("last")
        if parts.kind == "cascade" and parts.model_only and isinstance(last, int):
            doses.setdefault(parts.settings("last"), {}).setdefault(last, name)
    trained = _trained(arms)
    found = []
    for i, (settings, curve) in enumerate(doses.items()):
        cells = [DesignCell(("0",), trained, 'trained = {control = "trained"}')]
        cells += [DesignCell((str(last),), curve[last]) for last in sorted(curve)]
        also = ", ".join(f"{k} {v}" for k, v in settings[1:])
        found.append(
            Design(
                "cascade" if i == 0 else f"cascade.{i + 1}",
                "cascade",
                "Re-drawing more and more blocks from the last" + (f" ({also})" if also else ""),
                (Factor("last blocks re-drawn", tuple(cell.levels[0] for cell in cells)),),
                tuple(cells),
            )
        )
    return found


def _dictionaries(arms: Mapping[str, ArmParts]) -> list[Design]:
    """Return, for each model and text, the SAE trained as usual and its dictionary controls."""
    groups: dict[tuple[Any, ...], dict[str, ArmParts]] = {}
    data_of = _data_of(arms)
    for name, parts in arms.items():
        groups.setdefault((parts.settings(), data_of[name]), {})[name] = parts
    found = []
    for members in groups.values():
        usual = _first(name for name, parts in members.items() if parts.dictionary is None)
        controls = [name for name, parts in members.items() if parts.dictionary is not None]
        if not controls:
            continue
        one = members[controls[0]]
        data = "" if one.data is None else f", {_data_toml(one)}"
        cells = [
            DesignCell(("trained SAE",), usual, f"{one.kind} = {{{_toml(one.control)}{data}}}")
        ]
        cells += [DesignCell((name,), name) for name in controls]
        found.append(
            Design(
                f"dictionary.{usual or one.kind}",
                "dictionary",
                f"Dictionary of {usual or one.kind}",
                (Factor("dictionary", tuple(cell.levels[0] for cell in cells)),),
                tuple(cells),
            )
        )
    return found


def _first(names: Iterable[str]) -> str | None:
    return next(iter(names), None)
