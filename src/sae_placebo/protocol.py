"""The protocol of a trial: its settings, checked before anything is loaded, and its list of steps.

A protocol is read from a TOML file. Nothing here imports torch, so a wrong file is refused at once.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError, model_validator

from sae_placebo.activations import HarvestSpec
from sae_placebo.controls import Control, parse_control
from sae_placebo.errors import SpecError, unknown_name
from sae_placebo.measurement import MeasurementSpec
from sae_placebo.models import ModelSpec, identify, layer_count, parse_hookpoint, position_limit
from sae_placebo.saes import SAESpec, parse_sae
from sae_placebo.spec import Spec
from sae_placebo.store import Step
from sae_placebo.text import TextSpec
from sae_placebo.text import identify as identify_text
from sae_placebo.training import TrainingSpec

Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=60)]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**53)], ...], Field(min_length=1)]

# raised by hand when what a stage writes changes its meaning
VERSIONS = {"model": 1, "tokenize": 1, "build": 1, "harvest": 1, "train": 1, "measure": 1}


def _control(table: Any) -> Any:
    return table if isinstance(table, Control) else parse_control(table)


def _sae(table: Any) -> Any:
    return table if isinstance(table, SAESpec) else parse_sae(table)


class TrialSpec(Spec):
    """Everything that decides a trial's result.

    Attributes:
        name: Names the result folder, `<store>/trials/<name>/`.
        seed: All randomness is drawn from it by name.
        model: The reference model.
        text: Where the tokens come from.
        hookpoints: Where activations are read, such as `resid_post.6`.
        arms: Label -> control; exactly one arm is `trained`.
        model_seeds: Re-draws of every control that draws.
        saes: Label -> SAE.
        sae_seeds: Initialisations of every SAE, the same bits in every arm.
        training: How SAEs are trained.
        harvest: How activations are read and masked.
        measurement: Thresholds, document replicates, and how many latents are shown.
        contrasts: Pairs (arm, control) to compare; none given: trained minus every other arm.
    """

    name: Label
    seed: int = Field(0, ge=0, lt=2**53)
    model: ModelSpec
    text: TextSpec
    hookpoints: tuple[str, ...] = Field(min_length=1)
    arms: dict[Label, Annotated[SerializeAsAny[Control], BeforeValidator(_control)]]
    model_seeds: Seeds = (0, 1)
    saes: Annotated[
        dict[Label, Annotated[SerializeAsAny[SAESpec], BeforeValidator(_sae)]],
        Field(min_length=1),
    ]
    sae_seeds: Seeds = (0, 1)
    training: TrainingSpec = TrainingSpec()
    harvest: HarvestSpec = HarvestSpec()
    measurement: MeasurementSpec = MeasurementSpec()
    contrasts: tuple[tuple[str, str], ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _canonical_hookpoints(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and isinstance(data.get("hookpoints"), Sequence):
            names = data["hookpoints"]
            if isinstance(names, str):
                raise SpecError(f"hookpoints is a list: write hookpoints = [{names!r}]")
            names = [parse_hookpoint(str(name)).name for name in names]
            return {**data, "hookpoints": list(dict.fromkeys(names))}
        return data

    @model_validator(mode="after")
    def _arms_make_a_trial(self) -> TrialSpec:
        trained = [arm for arm, control in self.arms.items() if control.kind == "trained"]
        if len(trained) != 1:
            raise SpecError(
                f"arms holds {len(trained)} arms with control = 'trained'; a trial has exactly one, and "
                "the others are its controls"
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
    def _hookpoints_exist(self) -> TrialSpec:
        layers = layer_count(self.model)
        for name in self.hookpoints:
            if layers is not None and parse_hookpoint(name).layer >= layers:
                raise SpecError(
                    f"hookpoint {name!r} is past the last layer: {self.model.id} has {layers} layers, so "
                    f"0 to {layers - 1} are allowed"
                )
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
        """Label of the arm that is the reference model itself."""
        return next(arm for arm, control in self.arms.items() if control.kind == "trained")

    @property
    def compared(self) -> tuple[tuple[str, str], ...]:
        """Every contrast (arm, control) of the trial."""
        trained = self.trained_arm
        return self.contrasts or tuple((trained, arm) for arm in self.arms if arm != trained)

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
        return source
    if isinstance(source, str | Path):
        where, table = str(source), _read_toml(Path(source))
    else:
        where, table = "the trial", dict(source)
    for override in overrides:
        _override(table, override)
    try:
        return TrialSpec.model_validate(table)
    except ValidationError as error:
        raise SpecError(f"{where}: {_sentence(error)}") from None
    except SpecError as error:
        raise SpecError(f"{where}: {error}") from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(
            f"there is no trial file at {str(path)!r}; `sae-placebo init` writes one"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"the trial file {str(path)!r} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{path} is not TOML: {error}") from None


def _override(table: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise SpecError(f"--set takes dotted.key=value, not {override!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = key.strip().split(".")
    # a hookpoint's name holds a dot, but it is a value, never a key
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise SpecError(f"--set {override!r}: {parent!r} is a value, not a table")
    table[last] = value


def _sentence(error: ValidationError) -> str:
    """Return the first problems of a validation, each with its place, what was found and allowed."""
    problems = []
    for problem in error.errors()[:3]:
        place = ".".join(str(part) for part in problem["loc"])
        cause = (problem.get("ctx") or {}).get("error")
        message = str(cause) if cause is not None else problem["msg"]
        if problem["type"] == "extra_forbidden":
            message = _unknown_key(problem["loc"])
        elif cause is None and problem["type"] != "missing":
            message += f" (found {problem['input']!r:.80})"
        problems.append(f"at {place}: {message}" if place else message)
    more = len(error.errors()) - len(problems)
    return "; ".join(problems) + (f"; and {more} more" if more > 0 else "")


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


@dataclass(frozen=True)
class ArmModel:
    """One model of the trial: an arm, and the re-draw of its control (None where nothing is drawn)."""

    arm: str
    model_seed: int | None

    @property
    def label(self) -> str:
        """Name for folders and progress: the arm and its re-draw."""
        return self.arm if self.model_seed is None else f"{self.arm}-{self.model_seed}"


@dataclass(frozen=True)
class Plan:
    """Every step of a trial, each with the key of its artefact; nothing has run yet."""

    spec: TrialSpec
    model: Step
    tokenize: Step
    build: dict[ArmModel, Step]
    harvest: dict[ArmModel, Step]
    train: dict[ArmModel, Step]
    measure: dict[tuple[ArmModel, str, str, int], Step]

    def steps(self) -> Iterator[Step]:
        """Yield all steps in the order in which they run."""
        if self.needs_conversion:
            yield self.model
        yield self.tokenize
        for arm_model in self.build:
            yield self.build[arm_model]
            yield self.harvest[arm_model]
            yield self.train[arm_model]
        yield from self.measure.values()

    @property
    def needs_conversion(self) -> bool:
        """Whether the reference model is first converted into a folder of the store."""
        return self.spec.model.is_packaged


def plan_steps(spec: TrialSpec) -> Plan:
    """Return the steps of a trial. Reads and hashes the text and the model's files, loads neither."""

    def step(stage: str, name: str, settings: Any, *inputs: Step) -> Step:
        return Step(stage, name, VERSIONS[stage], settings, tuple(i.key for i in inputs))

    model = step("model", spec.model.id.strip("/").split("/")[-1], identify(spec.model))
    tokenize = step(
        "tokenize",
        Path(spec.text.source).name.strip("*.") or "text",
        {"text": spec.text, "content": identify_text(spec.text), "seed": spec.seed},
        model,
    )
    build, harvest, train, measure = {}, {}, {}, {}
    for arm, control in spec.arms.items():
        for model_seed in spec.seeds_of(arm):
            one = ArmModel(arm, model_seed)
            drawn = {"control": control, "model_seed": model_seed, "seed": spec.seed}
            hookpoints = list(spec.hookpoints)
            build[one] = step(
                "build", one.label, [drawn, hookpoints, spec.harvest], model, tokenize
            )
            harvest[one] = step("harvest", one.label, spec.harvest, build[one])
            recipe = [spec.saes, list(spec.sae_seeds), spec.training]
            train[one] = step("train", one.label, recipe, harvest[one])
    for one in train:
        for hookpoint in spec.hookpoints:
            for sae in spec.saes:
                for sae_seed in spec.sae_seeds:
                    settings = [spec.measurement, hookpoint, sae, sae_seed]
                    # outliers of any arm are left out of all, so every harvest is an input
                    measure[one, hookpoint, sae, sae_seed] = step(
                        "measure",
                        f"{one.label}-{hookpoint}-{sae}-{sae_seed}",
                        settings,
                        train[one],
                        *harvest.values(),
                    )
    return Plan(spec, model, tokenize, build, harvest, train, measure)
