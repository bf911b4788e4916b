"""The protocol of a trial: its settings, checked before anything is loaded.

A protocol is read from a TOML file. Nothing here imports torch, so a wrong file is refused at once.
"""

from __future__ import annotations

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

from sae_placebo.activations import HarvestSpec
from sae_placebo.arms import ArmSpec, parse_arm
from sae_placebo.audits.spec import AuditSpec
from sae_placebo.circuits.spec import CircuitSpec
from sae_placebo.designs import ArmParts, designs
from sae_placebo.devices import check_device
from sae_placebo.errors import SpecError, unknown_name
from sae_placebo.measurement import MeasurementSpec
from sae_placebo.methods.base import MethodsSpec
from sae_placebo.models import ModelSpec, layer_count, parse_hookpoint, position_limit
from sae_placebo.saes import SAESpec, parse_sae
from sae_placebo.spec import Spec
from sae_placebo.structure.spec import StructureSpec
from sae_placebo.text import TextSpec
from sae_placebo.training import TrainingSpec
from sae_placebo.use.spec import UseSpec

Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=60)]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**53)], ...], Field(min_length=1)]


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
        arms: Label -> what is controlled: the model, the data, the dictionary; exactly one arm is
            trained, with none of them.
        model_seeds: Re-draws of every control that draws.
        saes: Label -> SAE.
        sae_seeds: Initialisations of every SAE, the same bits in every arm.
        training: How SAEs are trained.
        harvest: How activations are read and masked.
        measurement: Thresholds, document replicates, and how many latents are shown.
        structure: How latents are held against placebos.
        methods: How existing methods are fitted and counted beside SAEs.
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
    hookpoints: tuple[str, ...] = Field(min_length=1)
    arms: dict[Label, Annotated[ArmSpec, BeforeValidator(parse_arm)]]
    model_seeds: Seeds = (0, 1)
    saes: Annotated[
        dict[Label, Annotated[SerializeAsAny[SAESpec], BeforeValidator(_sae)]],
        Field(min_length=1),
    ]
    sae_seeds: Seeds = (0, 1)
    training: TrainingSpec = TrainingSpec()
    harvest: HarvestSpec = HarvestSpec()
    measurement: MeasurementSpec = MeasurementSpec()
    structure: StructureSpec = StructureSpec()
    methods: MethodsSpec = MethodsSpec()
    use: UseSpec = UseSpec()
    circuits: CircuitSpec = CircuitSpec()
    audit: AuditSpec = AuditSpec()
    contrasts: tuple[tuple[str, str], ...] = ()
    device: Annotated[str, AfterValidator(check_device)] = Field("cpu", exclude=True)

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
        for arm in self.arms.values():
            if layers is not None:
                arm.control.check_layers(layers)
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
        return next(arm for arm, one in self.arms.items() if one.is_trained)

    @property
    def parts(self) -> dict[str, ArmParts]:
        """What is controlled in each arm, as `designs` reads it."""
        return {arm: ArmParts.of(**one.model_dump(mode="json")) for arm, one in self.arms.items()}

    @property
    def compared(self) -> tuple[tuple[str, str], ...]:
        """Every contrast (arm, control) of the trial."""
        if self.contrasts:
            return self.contrasts
        trained, parts = self.trained_arm, self.parts
        pairs = [(trained, arm) for arm in self.arms if arm != trained]
        pairs += [pair for design in designs(parts) for pair in design.contrasts(parts)]
        return tuple(dict.fromkeys(pairs))

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
