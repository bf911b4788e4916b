"""The protocol of a trial: its settings, checked before anything is loaded.

A protocol is read from a TOML file. Nothing here imports torch, so a wrong file is refused at once.
"""

from __future__ import annotations

import contextlib
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationError,
    model_validator,
)

from sae_placebo.audits.spec import AuditSpec
from sae_placebo.baselines.base import BaselinesSpec
from sae_placebo.causal.circuits.spec import CircuitSpec
from sae_placebo.causal.use.spec import UseSpec
from sae_placebo.core.devices import check_device
from sae_placebo.core.errors import NotEstimable, PlaceboError, SpecError, unknown_name
from sae_placebo.core.file_names import shown_name
from sae_placebo.core.spec import Spec
from sae_placebo.data.text import TextSpec
from sae_placebo.latents.measurement import MeasurementSpec
from sae_placebo.latents.spec import StructureSpec
from sae_placebo.models.activations import HarvestSpec
from sae_placebo.models.hookpoints import HookpointNames
from sae_placebo.models.loading import ModelSpec, layer_count, parse_hookpoint, position_limit
from sae_placebo.models.specs import check_centred
from sae_placebo.saes import SAESpec, parse_sae
from sae_placebo.saes.training import TrainingSpec
from sae_placebo.stats.designs import ArmParts, designs
from sae_placebo.trial.arms import ArmSpec, arm_label, parse_arm
from sae_placebo.trial.given import with_given
from sae_placebo.trial.overriding import parse_overrides, set_value
from sae_placebo.trial.reference import asked_arms, asked_hookpoints, reference_placebo, tie_arms

Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=60)]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**53)], ...], Field(min_length=1)]


def _sae(table: Any) -> Any:
    return table if isinstance(table, SAESpec) else parse_sae(table)


class TrialSpec(Spec):
    """A trial's protocol: everything that decides its result.

    Attributes:
        name: Names the result folder, `<store>/trials/<name>/`.
        seed: All randomness is drawn from it by name.
        model: The reference model.
        text: Where the tokens come from.
        hookpoints: Where activations are read, such as `resid_post.6`.
        arms: Label -> what is controlled: the model, the data, the dictionary; exactly one arm is
            trained, with none of them.
        model_seeds: Re-draws of every control that draws.
        saes: Label -> SAE.
        given: SAE label -> arm -> where SAEs lie that are read instead of trained, one for each SAE seed;
            written as `given` in the SAE's own table. See `trial.given`.
        sae_seeds: Initialisations of every SAE, the same bits in every arm.
        training: How SAEs are trained.
        harvest: How activations are read and masked.
        measurement: Thresholds, document replicates, and how many latents are shown.
        structure: How latents are held against placebos.
        baselines: How baselines are fitted and counted beside SAEs.
        use: How it is asked whether the model uses what latents stand for.
        audit: How it is asked where SAEs mislead.
        circuits: How readers and writers of latents are looked for.
        contrasts: Pairs (arm, control) to compare; none given: trained minus every other arm, and
            the margins of every factorial that the arms make (see `designs`).
        device: Where models run and SAEs are trained: `cpu`, `cuda` or `cuda:<number>`. It cannot
            change what a result means, so it is in no key and in no dump; manifests record it.
    """

    name: Label
    seed: int = Field(0, ge=0, lt=2**53)
    model: ModelSpec
    text: TextSpec
    hookpoints: HookpointNames = Field(min_length=1)
    arms: dict[Label, Annotated[ArmSpec, BeforeValidator(parse_arm)]]
    model_seeds: Seeds = (0, 1)
    saes: Annotated[
        dict[Label, Annotated[SerializeAsAny[SAESpec], BeforeValidator(_sae)]],
        Field(min_length=1),
    ]
    given: dict[Label, dict[Label, Annotated[tuple[str, ...], Field(min_length=1)]]] = Field(
        default_factory=dict
    )
    sae_seeds: Seeds = (0, 1)
    training: TrainingSpec = TrainingSpec()
    harvest: HarvestSpec = HarvestSpec()
    measurement: MeasurementSpec = MeasurementSpec()
    structure: StructureSpec = StructureSpec()
    baselines: BaselinesSpec = BaselinesSpec()
    use: UseSpec = UseSpec()
    circuits: CircuitSpec = CircuitSpec()
    audit: AuditSpec = AuditSpec()
    contrasts: tuple[tuple[str, str], ...] = ()
    device: Annotated[str, AfterValidator(check_device)] = Field("cpu", exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _given_stands_apart(cls, table: Any) -> Any:
        return with_given(table) if isinstance(table, Mapping) else table

    @model_validator(mode="after")
    def _given_saes_have_a_place(self) -> TrialSpec:
        for label, by_arm in self.given.items():
            if label not in self.saes:
                raise SpecError(f"given: {unknown_name('SAE', label, self.saes)}")
            if len(self.hookpoints) > 1:
                raise SpecError(
                    f"saes.{label} is given, and an SAE reads one place; the trial has "
                    f"{len(self.hookpoints)} hookpoints: leave one"
                )
            for arm, paths in by_arm.items():
                self._can_be_given(label, arm, len(paths))
        return self

    def _can_be_given(self, label: str, arm: str, n: int) -> None:
        if arm not in self.arms:
            raise SpecError(f"saes.{label}.given: {unknown_name('arm', arm, self.arms)}")
        if len(self.seeds_of(arm)) > 1:
            raise SpecError(
                f"saes.{label}.given names arm {arm!r}, whose model is drawn {len(self.model_seeds)} times, "
                "and an SAE was trained on one of them: give one model_seed"
            )
        if self.arms[arm].dictionary is not None:
            raise SpecError(
                f"saes.{label}.given names arm {arm!r}, whose SAEs are what its dictionary control makes"
            )
        if n > len(self.sae_seeds):
            raise SpecError(
                f"saes.{label}.given has {n} SAEs of arm {arm!r}, and there are {len(self.sae_seeds)} "
                "sae_seeds: give as many"
            )

    @model_validator(mode="after")
    def _arms_make_a_trial(self) -> TrialSpec:
        trained = [arm for arm, one in self.arms.items() if one.is_trained]
        if len(trained) != 1:
            raise SpecError(
                f"arms holds {len(trained)} arms with control = 'trained' and nothing else; a trial has "
                "exactly one, and the others are its controls"
            )
        if len(self.arms) < 2:
            raise SpecError("arms holds no control: add at least one, such as control = 'redraw'")
        for pair in self.contrasts:
            for arm in pair:
                if arm not in self.arms:
                    raise SpecError(f"contrasts: {unknown_name('arm', arm, self.arms)}")
            if pair[0] == pair[1]:
                raise SpecError(
                    f"contrasts: {pair[0]!r} is compared with itself; A/A needs no entry"
                )
        if len(set(self.contrasts)) < len(self.contrasts):
            raise SpecError("contrasts holds a pair twice; every contrast is given once")
        for field in ("model_seeds", "sae_seeds"):
            seeds = getattr(self, field)
            if len(set(seeds)) < len(seeds):
                raise SpecError(
                    f"{field} holds a seed twice: {list(seeds)}; each counts as one draw"
                )
        return self

    @model_validator(mode="after")
    def _names_stay_apart(self) -> TrialSpec:
        """Refuse names that some file system, or a folder's name made of them, would take for one."""
        for kind, names in (("arms", self.arms), ("saes", self.saes)):
            seen: dict[str, str] = {}
            for name in names:
                other = seen.setdefault(name.casefold(), name)
                if other != name:
                    raise SpecError(
                        f"{kind}.{other} and {kind}.{name} differ in case only, and some file systems "
                        "cannot tell them apart: rename one"
                    )
        owners = {arm.casefold(): arm for arm in self.arms}
        for arm in self.arms:
            for seed in self.seeds_of(arm):
                label = arm_label(arm, seed)
                other = owners.setdefault(label.casefold(), arm)
                if other != arm:
                    raise SpecError(
                        f"arms.{other} and a re-draw of arms.{arm} (arm-seed) would both be called "
                        f"{label!r}: rename one"
                    )
        return self

    @model_validator(mode="after")
    def _what_is_asked_about_exists(self) -> TrialSpec:
        with contextlib.suppress(NotEstimable):  # no placebo: what needs one says so in the results
            reference_placebo(self)
        for table in ("use", "audit"):
            asked_arms(self, table)
            asked_hookpoints(self, table)
        tie_arms(self)
        return self

    @model_validator(mode="after")
    def _dictionaries_fit_the_saes(self) -> TrialSpec:
        tied = [label for label, sae in self.saes.items() if sae.ties_encoder]
        for name, arm in self.arms.items():
            if tied and arm.dictionary is not None and arm.dictionary.parts_encoder:
                raise SpecError(
                    f"arms.{name} parts encoder and decoder ({arm.dictionary.kind}), but "
                    f"saes.{tied[0]} has one matrix for both: leave one of them out, or use soft_frozen"
                )
        return self

    @model_validator(mode="after")
    def _layers_exist(self) -> TrialSpec:
        layers = layer_count(self.model)
        for name, arm in self.arms.items():
            try:
                arm.control.check_source(self.model)
                if layers is not None:
                    arm.control.check_layers(layers)
            except PlaceboError as error:
                raise type(error)(f"arms.{name}: {error}") from None
            silent = [h for h in self.hookpoints if parse_hookpoint(h).site == "attn_out"]
            if arm.control.ablates_attention and silent:
                raise SpecError(
                    f"arms.{name} ablates attention, so {silent[0]} is zero at every token of it and no SAE "
                    "can be trained there: leave out one of the two"
                )
        for name in self.hookpoints:
            if layers is not None and parse_hookpoint(name).layer >= layers:
                raise SpecError(
                    f"hookpoint {name!r} is past the last layer: {self.model.id} has {layers} layers, so "
                    f"0 to {layers - 1} are allowed"
                )
        return self

    @model_validator(mode="after")
    def _mean_can_be_left_out(self) -> TrialSpec:
        check_centred(self.model)
        return self

    @model_validator(mode="after")
    def _rows_fit_the_model(self) -> TrialSpec:
        limit = position_limit(self.model)
        if limit is not None and self.text.context_tokens > limit:
            raise SpecError(
                f"text.context_tokens is {self.text.context_tokens} but {self.model.id} has "
                f"{limit} positions; lower it"
            )
        return self

    @property
    def trained_arm(self) -> str:
        """Return the label of the arm that is the reference model itself."""
        return next(arm for arm, one in self.arms.items() if one.is_trained)

    @property
    def parts(self) -> dict[str, ArmParts]:
        """Return what is controlled in each arm, as `designs` reads it."""
        return {arm: ArmParts.of(**one.model_dump(mode="json")) for arm, one in self.arms.items()}

    @property
    def compared(self) -> tuple[tuple[str, str], ...]:
        """Return every contrast (arm, control) of the trial."""
        if self.contrasts:
            return self.contrasts
        trained, parts = self.trained_arm, self.parts
        pairs = [(trained, arm) for arm in self.arms if arm != trained]
        pairs += [pair for design in designs(parts) for pair in design.contrasts(parts)]
        return tuple(dict.fromkeys(pairs))

    def sae_seeds_of(self, arm: str, label: str) -> tuple[int, ...]:
        """Return the SAE seeds of an arm: as many as SAEs are given, or all where it trains its own."""
        given = self.given.get(label, {}).get(arm)
        return self.sae_seeds if given is None else self.sae_seeds[: len(given)]

    def seeds_of(self, arm: str) -> tuple[int | None, ...]:
        """Return the model seeds of an arm: one None where the control draws nothing."""
        return self.model_seeds if self.arms[arm].draws else (None,)


def load_trial(
    source: TrialSpec | Mapping[str, Any] | str | Path, *, overrides: Sequence[str] = ()
) -> TrialSpec:
    """Return the checked protocol of a trial file, a table, or a protocol (as it is).

    Args:
        source: Path of a TOML file, or its content as nested tables.
        overrides: `dotted.key=value` settings that replace the file's, values in TOML.

    Raises:
        SpecError: what is wrong, where, and what is allowed.
    """
    if isinstance(source, TrialSpec):
        if not overrides:
            return source
        where = "the trial"
        table: Any = {**source.model_dump(mode="json"), "device": source.device}
    elif isinstance(source, str | Path):
        where, table = str(source), _read_toml(source)
    elif isinstance(source, Mapping):
        where, table = "the trial", _plain(source)  # the caller's own tables stay as they are
    else:
        raise SpecError(
            f"a trial is a file's path, a table or a TrialSpec; found {type(source).__name__}"
        )
    for place, value in parse_overrides(overrides):
        set_value(table, place, value)
    try:
        return TrialSpec.model_validate(table)
    except ValidationError as error:
        raise SpecError(f"{where}: {_sentence(error)}") from None
    except SpecError as error:
        raise SpecError(f"{where}: {error}") from None
    except OSError as error:  # a path that is too long, or in a folder that may not be read
        name = str(error.filename)
        raise SpecError(f"{where}: {name!r:.80} cannot be read ({error.strerror})") from None


def _plain(value: Any) -> Any:
    """Return a copy of nested tables, all of them dicts."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list) else value


def _read_toml(source: str | Path) -> dict[str, Any]:
    path, shown = Path(source), shown_name(source)
    try:
        if "\0" in str(source):
            raise SpecError(f"{shown} is no trial file: no file's name can hold a NUL character")
        if not str(source).strip() or path.is_dir():
            raise SpecError(
                f"{shown} is no trial file" + (": name a file in it" if str(source).strip() else "")
            )
        text = path.read_bytes().decode("utf-8-sig")  # a byte order mark is no part of the text
        table = tomllib.loads(text.replace("\r\n", "\n"))
    except FileNotFoundError:
        raise SpecError(
            f"there is no trial file at {shown}; `sae-placebo init` writes one"
        ) from None
    except SpecError:
        raise
    except OSError as error:
        raise SpecError(f"the trial file {shown} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise SpecError(
            f"the trial file {shown} is no UTF-8 text: save it as UTF-8, or name another file"
        ) from None
    except RecursionError:
        raise SpecError(f"{path} is not TOML: it is nested too deeply") from None
    except ValueError as error:  # also a number of thousands of digits
        raise SpecError(f"{path} is not TOML: {error}") from None
    if not table:
        raise SpecError(
            f"the trial file {shown} sets nothing; `sae-placebo init` writes one that does"
        )
    return table


def _sentence(error: ValidationError) -> str:
    """Return the first problems of a validation, each with its place, what was found and allowed."""
    found = error.errors()
    told: dict[tuple[str, str], list[str]] = {}
    for problem in found:
        loc = tuple(part for part in problem["loc"] if not _names_a_type(part))
        if problem["type"] == "too_short" and any(
            other["loc"][: len(loc)] == loc and other is not problem for other in found
        ):
            continue  # its values were refused, so none was left
        cause = (problem.get("ctx") or {}).get("error")
        message, value = str(cause) if cause is not None else _plainly(problem), ""
        in_pair = loc[:1] == ("contrasts",) and len(loc) > 1
        if in_pair:
            loc = loc[:2]  # the pair, whatever is wrong in it
        if problem["type"] == "extra_forbidden":
            message = _unknown_key(loc)
        elif cause is None and (in_pair or problem["type"] not in ("missing", "too_short")):
            given = problem["input"]
            given = list(given) if isinstance(given, tuple) else given
            value = f" (found {given!r:.80}{_hint(problem)})"
        messages = told.setdefault((".".join(map(str, loc)), value), [])
        if message not in messages:
            messages.append(message)
    problems = [
        (f"at {place:.120}: " if place else "") + " or ".join(_alternatives(messages)) + value
        for (place, value), messages in told.items()
    ]
    more = len(problems) - 3
    text = "; ".join(problems[:3]) + (f"; and {more} more" if more > 0 else "")
    return re.sub(_OUR_TYPES, lambda match: _WORDS[match[0].split(" or ")[0]], text)


def _plainly(problem: Any) -> str:
    """Return what pydantic says of a value, in words of a trial file."""
    kind, loc = problem["type"], problem["loc"]
    if loc[0:1] == ("contrasts",) and len(loc) > 1:
        return "a contrast is a pair [arm, control] of two arms' names"
    if kind == "missing":
        return "it is missing: set it"
    if kind == "string_pattern_mismatch":
        return (
            "a name holds letters (a to z, A to Z), digits, '_', '-' and '.' alone, and begins with a letter "
            "or a digit"
        )
    return str(problem["msg"]).replace(" after validation", "")


def _alternatives(messages: list[str]) -> list[str]:
    """Return what each of the types that a setting may have asks for."""
    return [messages[0], *(message.removeprefix("Input should be ") for message in messages[1:])]


def _hint(problem: Any) -> str:
    value = problem["input"]
    if problem["type"] == "int_type" and isinstance(value, float) and value.is_integer():
        return f"; a whole number has no point and no exponent: {int(value)}"
    return ""


_WORDS = {"Tuple": "The list", "tuple": "list", "Dictionary": "The table", "dictionary": "table"}
_OUR_TYPES = (
    r"\b(?:[Tt]uple|Dictionary|dictionary or instance of \w+|dictionary)(?= should| \(found)"
)
"""What Python calls a list and a table of a trial file."""


_TYPES = r"constrained-|literal\[|function-|\[key\]"


def _names_a_type(part: int | str) -> bool:
    """Whether a part of a place is one of the types that a setting may have, and no setting."""
    return isinstance(part, str) and re.match(_TYPES, part) is not None


def _unknown_key(loc: tuple[int | str, ...]) -> str:
    model: Any = TrialSpec
    for part in loc[:-1]:
        field = getattr(model, "model_fields", {}).get(part)
        model = field.annotation if field is not None else None
    known = getattr(model, "model_fields", {})
    return (
        unknown_name("setting", str(loc[-1]), known)
        if known
        else f"no setting is called {loc[-1]!r}"
    )
