"""Every setting of a trial file refuses what it cannot mean, in a sentence that names it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest

from conftest import trial_table
from sae_placebo.controls import CONTROLS
from sae_placebo.controls.data import DATA_CONTROLS
from sae_placebo.controls.dictionary import DICTIONARY_CONTROLS
from sae_placebo.core.errors import PlaceboError
from sae_placebo.core.spec import Spec
from sae_placebo.saes import SAES
from sae_placebo.trial.spec import TrialSpec, load_trial

WRONG: dict[str, tuple[Any, ...]] = {
    "whole": (True, False, "5", "", 5.5, 64.0, math.nan, math.inf, -1, 0, 2**53, [], {}),
    "number": (True, False, "5", "", math.nan, math.inf, -math.inf, -1, -0.5, 0, [], {}),
    "text": (5, 0.5, True, "", [], {}),
    "choice": ("nope", "", True, 1, 0.5, [], {}),
    "switch": (1, 0, "true", "", [], {}),
    "list": ("word", "", 5, True, {}, [], "twice"),
}
"""What is tried on a setting of each type; a list's elements are tried one by one, and one twice."""

NONE_OF_THEM = "0 asks for none, as the setting's description says"
OFF = "0 switches it off"
SHARES_OF_TIME = ("training.warmup_share", "training.decay_share")
LEGAL: dict[tuple[str, Any], str] = {
    ("seed", 0): "any whole number from 0 on names the draws",
    **{(f"{seeds}.element", 0): "as seed" for seeds in ("model_seeds", "sae_seeds")},
    **{(place, 0): OFF for place in SHARES_OF_TIME},
    **{(f"training.{beta}", 0): "Adam without a memory" for beta in ("beta1", "beta2")},
    **{
        (f"measurement.{shown}", 0): NONE_OF_THEM
        for shown in ("shown_per_class", "tokens_before", "tokens_after")
    },
    **{
        (f"measurement.thresholds.{limit}", 0): "a threshold of 0 takes its condition off"
        for limit in ("ultra_rare_density", "recall", "context_recall", "output_lift")
    },
    ("structure.ladder.partners", 0): NONE_OF_THEM,
    ("structure.ladder.window", "twice"): "widths of one position each: they may be alike",
    **{(f"baselines.{n}_tokens", 0): NONE_OF_THEM for n in ("sae_pursuit", "coded")},
    **{
        (f"{table}.{asked}", ()): "an empty list asks about none"
        for table in ("use", "audit")
        for asked in ("arms", "hookpoints")
    },
    ("circuits.arms", ()): "an empty list asks about none",
    **{
        (
            f"{place}hookpoints",
            "twice",
        ): "aliases of one hookpoint are one; so is a name given twice"
        for place in ("", "use.", "audit.")
    },
    **{
        (f"{part}.window", 0): "the token itself alone"
        for part in ("use", "use.masks", "circuits.patch")
    },
    **{
        (f"use.{n}", 0): NONE_OF_THEM
        for n in (
            *("pseudo", "covariance_directions", "untrained_directions"),
            *("shown_per_cell", "error_directions", "masks.n_pivots"),
        )
    },
    ("use.worst.rounds", 0): "the set is tried, and nothing leaves it",
    **{("text.positions.element", value): "a slice from there" for value in (-1, 0)},
    ("contrasts", ()): "none given: the default contrasts",
    **{
        (f"arms.other.{kind}.keep", value): "a set: nothing kept, or one group"
        for kind in ("redraw", "permute", "spectrum")
        for value in ((), "twice")
    },
    ("arms.other.cascade.only", 0): "the first layer",
    ("arms.other.soft_frozen.cosine", 0): "rows move as far as they like",
    **{(f"saes.{kind}.aux_coefficient", 0): OFF for kind in ("topk", "batchtopk", "matryoshka")},
    **{
        (f"saes.{kind}.{share}", 0): OFF
        for kind in SAES
        for share in ("warmup_share", "coefficient")
    },
    ("saes.jumprelu.pre_act_coefficient", 0): OFF,
    ("saes.p_annealed.anneal_from", 0): "from the first step on",
    (
        "saes.matryoshka.weights.element",
        0,
    ): "a prefix may have no weight of its own, but for the last",
    ("saes.matryoshka.weights", "twice"): "prefixes may weigh the same",
}

Setting = tuple[str, str, Any]
"""Its place, its type in a word, and the annotation of its elements."""


def settings_of(spec: type[Spec], above: str = "") -> Iterator[Setting]:
    for name, field in spec.model_fields.items():
        place = f"{above}{name}"
        inner = _spec_in(field.annotation)
        if place in ("arms", "saes", "given") or name == "kind":
            continue
        if inner is not None:
            yield from settings_of(inner, f"{place}.")
        else:
            yield place, *_type(field.annotation)


def _spec_in(annotation: Any) -> type[Spec] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, Spec) else None


def _type(annotation: Any) -> tuple[str, Any]:
    """Return the type of a setting in a word, and what its elements are."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(parts[0])
    if origin in (Union, UnionType):
        return _type(next(part for part in parts if part is not NoneType))
    if origin is tuple:
        return "list", parts[0]
    if origin is Literal:
        return "choice", None
    return {int: "whole", float: "number", str: "text", bool: "switch"}[annotation], None


SETTINGS = [
    *settings_of(TrialSpec),
    *(s for kind, sae in SAES.entries.items() for s in settings_of(sae, f"saes.{kind}.")),
    *(
        setting
        for registry in (CONTROLS, DATA_CONTROLS, DICTIONARY_CONTROLS)
        for kind, control in registry.entries.items()
        for setting in settings_of(control, f"arms.other.{kind}.")
    ),
]


def table_with(base: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """Return the trial with one setting changed; what excludes it is left out."""
    table = copy.deepcopy(base)
    *parents, last = place.split(".")
    if parents[:1] == ["saes"]:
        kind = parents[1]
        strength = {"k": 4} if kind in ("topk", "batchtopk", "matryoshka") else {"l0": 4}
        strength = {} if last == "coefficient" else strength
        table["saes"] = {"one": {"kind": kind, "d_sae": 64, **strength, last: value}}
    elif parents[:1] == ["arms"]:
        kind = parents[2]
        if kind in CONTROLS:
            beside = {"cascade": {"last": 1}, "revision": {"source": base["model"]["id"]}}
            others = {} if (kind, last) == ("cascade", "only") else beside.get(kind, {})
            table["arms"]["other"] = {"control": kind, **others, last: value}
        else:
            part = "data" if kind in DATA_CONTROLS else "dictionary"
            table["arms"]["other"] = {part: {"kind": kind, last: value}}
    else:
        inner = table
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return table


def tried(place: str, kind: str, element: Any, given: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Yield each wrong value of a setting, what the sentence must show of it, and its name in `LEGAL`."""
    for wrong in WRONG[kind]:
        if wrong == "twice":
            yield [given, given], None, "twice"
        else:
            yield wrong, wrong, () if wrong == [] else wrong
    if kind == "list":
        for wrong, shown, name in (
            tried(place, *_type(element), None) if element is not None else ()
        ):
            if name != "twice":
                yield [wrong], shown, ("element", name)


GIVEN = {
    "text.positions": 2,
    "hookpoints": "resid_post.1",
    "use.hookpoints": "resid_post.1",
    "audit.hookpoints": "resid_post.1",
    "use.arms": "trained",
    "audit.arms": "trained",
    "circuits.arms": "trained",
    "contrasts": ["trained", "redraw"],
    "saes.matryoshka.prefixes": 1.0,
    "saes.matryoshka.weights": 1.0,
}


def valid_element(place: str) -> Any:
    """Return a value that a list may hold."""
    if place in GIVEN:
        return GIVEN[place]
    if place.startswith("arms."):
        return "embeddings"
    spec: Any = TrialSpec
    *parents, last = place.split(".")
    for parent in parents:
        spec = spec.model_fields[parent].annotation
    return spec.model_fields[last].default[0]


@pytest.fixture(scope="module")
def base(tiny_model: Path, tiny_text: Path) -> dict[str, Any]:
    table = trial_table(tiny_model, tiny_text)
    load_trial(table)
    return table


@pytest.mark.parametrize(("place", "kind", "element"), SETTINGS, ids=[s[0] for s in SETTINGS])
def test_a_setting_refuses_what_it_cannot_mean(
    base: dict[str, Any], place: str, kind: str, element: Any
) -> None:
    given = valid_element(place) if kind == "list" else None
    for value, shown, name in tried(place, kind, element, given):
        in_list = isinstance(name, tuple) and name[:1] == ("element",)
        key = (f"{place}.element", name[1]) if in_list else (place, name)
        if _hashable(key) and any(key == k and type(key[1]) is type(k[1]) for k in LEGAL):
            continue
        with pytest.raises(PlaceboError) as refusal:
            pytest.fail(
                f"{place} = {value!r} is taken: {load_trial(table_with(base, place, value))!r:.0}"
            )
        sentence = str(refusal.value)
        assert place.rpartition(".")[2] in sentence, (value, sentence)
        assert "\n" not in sentence
        if isinstance(shown, int | float) or (isinstance(shown, str) and shown):
            assert str(shown)[:12] in sentence, (value, sentence)


def _hashable(key: tuple[str, Any]) -> bool:
    return not isinstance(key[1], dict | list)


def test_what_is_listed_as_legal_is_taken(base: dict[str, Any]) -> None:
    """A list that names what is refused after all would hide what is taken."""
    kinds = {place: kind for place, kind, _ in SETTINGS}
    for place, name in LEGAL:
        where, value = place.removesuffix(".element"), name
        if where.startswith("saes.") and where not in kinds:
            continue  # not every architecture has every setting of the others
        if value == "twice":
            value = [valid_element(where)] * 2
        elif place.endswith(".element"):
            value = [value]
        elif value == ():
            value = []
        if where == "saes.matryoshka.weights":
            value = [0, 0, 1.0, 1.0, 1.0]
        load_trial(table_with(base, where, value))


def test_the_walk_reaches_every_setting() -> None:
    found = {place for place, _, _ in SETTINGS}
    assert {"structure.ladder.decays", "use.worst.drop", "saes.matryoshka.prefixes"} <= found
    assert {"arms.other.cascade.last", "arms.other.frozen_encoder.scaled", "device"} <= found
    assert len(found) > 170
