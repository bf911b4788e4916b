"""The plan of a trial: every step and the key of its artefact, before anything has run."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sae_placebo.controls import Control
from sae_placebo.controls.dictionary import Retrained
from sae_placebo.core.lanes import n_lanes
from sae_placebo.core.store import Step
from sae_placebo.data import text
from sae_placebo.models.loading import identify, ties_embeddings
from sae_placebo.models.specs import check_weights_of
from sae_placebo.trial.arms import ArmSpec, arm_label
from sae_placebo.trial.given import identity
from sae_placebo.trial.reference import asked_arms, asked_hookpoints, tie_arms
from sae_placebo.trial.sizes import fit_tokens
from sae_placebo.trial.spec import TrialSpec

# raised by hand when what a stage writes changes its meaning
VERSIONS = {
    "model": 1,
    "tokenize": 3,
    "readability": 2,
    "text": 1,
    "build": 3,
    "harvest": 3,
    "fit_text": 1,
    "train": 5,
    "measure": 5,
    "encode": 1,
    "profile": 6,
    "baselines": 4,
    "use": 8,
    "ties": 1,
    "audit": 5,
}

# in characters: most file systems take names of 255 bytes, key and all
_LONGEST_NAME = 50


@dataclass(frozen=True)
class ArmModel:
    """One model of the trial: an arm, and the re-draw of its control (None where nothing is drawn)."""

    arm: str
    model_seed: int | None

    @property
    def label(self) -> str:
        """Return the name for folders and progress: the arm and its re-draw."""
        return arm_label(self.arm, self.model_seed)


Place = tuple[ArmModel, str, str, int]
"""An SAE is named by its arm's model, the hookpoint, its label and its seed."""


@dataclass(frozen=True)
class Plan:
    """Every step of a trial, each with the key of its artefact; nothing has run yet.

    Arms that cannot differ in what a step makes share its artefact: a control of the dictionary
    reads the activations of the trained arm, and W_U of an untied model is behind every hookpoint.
    """

    spec: TrialSpec
    model: Step
    tokenize: Step
    readability: Step | None
    text: dict[ArmModel, Step]
    build: dict[ArmModel, Step]
    harvest: dict[ArmModel, Step]
    fit_text: dict[ArmModel, Step]
    train: dict[ArmModel, Step]
    measure: dict[Place, Step]
    encode: dict[Place, Step]
    profile: dict[Place, Step]
    baselines: dict[tuple[ArmModel, str], Step]
    use: dict[Place, Step]
    ties: dict[Place, Step]
    audit: dict[Place, Step]

    def steps(self) -> Iterator[Step]:
        """Yield all steps in the order in which they run, each artefact once."""
        yield from {step.key: step for step in self._in_order()}.values()

    def _in_order(self) -> Iterator[Step]:
        if self.needs_conversion:
            yield self.model
        yield self.tokenize
        if self.readability is not None:
            yield self.readability
        for group in self.groups:
            yield from (self.text[one] for one in group if self.text[one] is not self.tokenize)
            yield from (self.build[one] for one in group)
            yield self.harvest[group[0]]
            yield self.fit_text[group[0]]
            yield from (self.train[one] for one in group)
        yield from self.measure.values()
        yield from self.encode.values()
        yield from self.profile.values()
        yield from self.baselines.values()
        yield from self.use.values()
        yield from self.ties.values()
        yield from self.audit.values()

    @property
    def groups(self) -> tuple[tuple[ArmModel, ...], ...]:
        """Return the arms that read the same activations, in the order of the trial.

        The SAEs of one group are trained in one pass.
        """
        found: dict[str, list[ArmModel]] = {}
        for one, step in self.harvest.items():
            found.setdefault(step.key, []).append(one)
        return tuple(tuple(group) for group in found.values())

    @property
    def needs_conversion(self) -> bool:
        """Return whether the reference model is first converted into a folder of the store."""
        return self.spec.model.is_packaged

    @property
    def harvests(self) -> tuple[Step, ...]:
        """Return every harvest once."""
        return tuple({step.key: step for step in self.harvest.values()}.values())

    @property
    def fit_texts(self) -> tuple[Step, ...]:
        """Return every reading of the text to fit on once."""
        return tuple({step.key: step for step in self.fit_text.values()}.values())

    def lanes(self, threads: int, model_bytes: int) -> int:
        """Return how many arms are asked side by side, of `use`, `ties` and `audit` together."""
        if self.spec.device != "cpu":
            return 1
        n = len({place[0] for place in (*self.use, *self.ties, *self.audit)})
        return n_lanes(n, model_bytes, threads)

    @property
    def tied_places(self) -> tuple[Place, ...]:
        """Return the SAEs of whose latents it is asked whether they are tied: by `use`, or by `ties`."""
        return _tied_places(self.spec, self.profile)

    def same_as(self) -> dict[str, str]:
        """Return each arm whose SAEs are those of an earlier arm, and that arm."""
        owners: dict[str, str] = {}
        found = {}
        for one, step in self.train.items():
            owner = owners.setdefault(step.key, one.arm)
            if owner != one.arm:
                found[one.arm] = owner
        return found


def plan_steps(spec: TrialSpec) -> Plan:
    """Return the steps of a trial.

    This reads and hashes the text and the model's files, and loads neither.

    Raises:
        ModelError: the model's folder lacks weights, or a file that they need.
        TextError: a file of the text cannot be read.
    """
    check_weights_of(spec.model)
    return _Planner(spec).plan()


def _tied_places(spec: TrialSpec, places: Iterable[Place]) -> tuple[Place, ...]:
    """Return each re-draw with the first SAE seed, or each SAE seed of an arm that is not drawn."""
    arms, hookpoints = tie_arms(spec), asked_hookpoints(spec, "use")
    return tuple(
        place
        for place in places
        if place[0].arm in arms
        and place[1] in hookpoints
        and (place[0].model_seed is None or place[3] == spec.sae_seeds[0])
    )


class _Planner:
    """Makes the steps of a trial in order; a step that was made already is found, not made again."""

    def __init__(self, spec: TrialSpec) -> None:
        self.spec = spec
        self._made: dict[str, Step] = {}

    def step(self, stage: str, name: str, settings: Any, *inputs: Step) -> Step:
        made = Step(stage, name, VERSIONS[stage], settings, tuple(i.key for i in inputs))
        return self._made.setdefault(made.key, made)

    def plan(self) -> Plan:
        spec = self.spec
        model_name = spec.model.id.strip("/").split("/")[-1][:_LONGEST_NAME]
        model = self.step("model", model_name, identify(spec.model))
        labelled = text.may_have_labels(spec.text)
        content = {"text": spec.text.key, "content": text.identify(spec.text), "seed": spec.seed}
        if labelled:  # labels are what this interpreter's grammar says
            content["python"] = list(sys.version_info[:2])
        name = Path(spec.text.source).name.strip("*.")[:_LONGEST_NAME] or "text"
        tokenize = self.step("tokenize", name, content, model)
        readability = None
        if labelled:
            readability = self.step("readability", tokenize.name, spec.seed, tokenize)
        read = model
        if spec.model.centred:  # the text is the same; what is read of it is not
            read = self.step("model", model_name, identify(spec.model) | {"centred": True})
        tied = ties_embeddings(spec.model) is not False
        parts: dict[str, dict[ArmModel, Step]] = {
            s: {} for s in ("text", "build", "harvest", "fit_text", "train")
        }
        for arm, controls in spec.arms.items():
            for model_seed in spec.seeds_of(arm):
                one = ArmModel(arm, model_seed)
                for stage, made in self._arm(one, controls, tied, read, tokenize).items():
                    parts[stage][one] = made
        measure = self._measure(parts["train"], parts["harvest"], readability)
        encode = self._encode(measure, parts)
        profile, baselines = (
            self._profile(measure, encode, parts),
            self._baselines(measure, encode, parts),
        )
        use = self._use(profile, parts)
        return Plan(
            spec=spec,
            model=model,
            tokenize=tokenize,
            readability=readability,
            text=parts["text"],
            build=parts["build"],
            harvest=parts["harvest"],
            fit_text=parts["fit_text"],
            train=parts["train"],
            measure=measure,
            encode=encode,
            profile=profile,
            baselines=baselines,
            use=use,
            ties=self._ties(use, profile, parts),
            audit=self._audit(measure, parts),
        )

    def _arm(
        self, one: ArmModel, controls: ArmSpec, tied: bool, model: Step, tokenize: Step
    ) -> dict[str, Step]:
        spec, words, data = self.spec, tokenize, None
        if controls.data is not None:
            draw = one.model_seed if controls.data.draws else None
            data = {"data": controls.data, "model_seed": draw, "seed": spec.seed}
        if controls.rewrites_text:
            words = self.step("text", one.label, data, tokenize)

        def drawn(control: Control) -> dict[str, Any]:
            draw = one.model_seed if control.draws else None
            source = control.identity(spec.model)
            return {"control": control, "model_seed": draw, "seed": spec.seed, "source": source}

        hookpoints = list(spec.hookpoints)
        build = self.step(
            "build", one.label, [drawn(controls.control), hookpoints, spec.harvest], model, words
        )
        seen = drawn(controls.control.seen_at_hookpoints(tied))
        replaced = None if controls.rewrites_text else data
        harvest = self.step(
            "harvest",
            one.label,
            [seen, replaced, hookpoints, spec.harvest, spec.structure.repeats],
            model,
            words,
        )
        n = fit_tokens(spec)
        fit_text = self.step("fit_text", one.label, [n, spec.seed], harvest)
        retrained = isinstance(controls.dictionary, Retrained)
        dictionary = None if retrained else controls.dictionary
        recipe = [spec.saes, list(spec.sae_seeds), spec.training, dictionary]
        given = {
            label: [identity(path) for path in by_arm[one.arm]]
            for label, by_arm in spec.given.items()
            if one.arm in by_arm
        }
        recipe += [given] if given else []
        train = self.step("train", one.label, recipe, harvest)
        made = {"text": words, "build": build, "harvest": harvest}
        return made | {"fit_text": fit_text, "train": train}

    def _measure(
        self,
        train: Mapping[ArmModel, Step],
        harvest: Mapping[ArmModel, Step],
        readability: Step | None,
    ) -> dict[Place, Step]:
        spec, found = self.spec, {}
        # outliers of any arm are left out of all, so every harvest is an input
        inputs = list({step.key: step for step in harvest.values()}.values())
        inputs += [] if readability is None else [readability]
        for one in train:
            for hookpoint in spec.hookpoints:
                for sae in spec.saes:
                    for sae_seed in spec.sae_seeds_of(one.arm, sae):
                        found[one, hookpoint, sae, sae_seed] = self.step(
                            "measure",
                            f"{one.label}-{hookpoint}-{sae}-{sae_seed}",
                            [spec.measurement, hookpoint, sae, sae_seed],
                            train[one],
                            *inputs,
                        )
        return found

    def _encode(
        self, measure: Mapping[Place, Step], parts: Mapping[str, Mapping[ArmModel, Step]]
    ) -> dict[Place, Step]:
        """Return one step per SAE; outliers of any arm are left out of all, so it reads every arm's text."""
        read = list({step.key: step for step in parts["fit_text"].values()}.values())
        return {
            place: self.step("encode", step.name, list(place[1:]), parts["train"][place[0]], *read)
            for place, step in measure.items()
        }

    def _profile(
        self,
        measure: Mapping[Place, Step],
        encode: Mapping[Place, Step],
        parts: Mapping[str, Mapping[ArmModel, Step]],
    ) -> dict[Place, Step]:
        """Return one step per SAE; it reads every SAE of its hookpoint."""
        spec, found = self.spec, {}
        reference = parts["build"][ArmModel(spec.trained_arm, None)]
        for place, step in measure.items():
            one, hookpoint, sae, sae_seed = place
            others = [s for of in (measure, encode) for p, s in of.items() if p[1] == hookpoint]
            inputs = list({s.key: s for s in others}.values())
            settings = [spec.structure, spec.measurement, hookpoint, sae, sae_seed]
            found[place] = self.step(
                "profile", step.name, settings, reference, parts["build"][one], step, *inputs
            )
        return found

    def _baselines(
        self,
        measure: Mapping[Place, Step],
        encode: Mapping[Place, Step],
        parts: Mapping[str, Mapping[ArmModel, Step]],
    ) -> dict[tuple[ArmModel, str], Step]:
        """Return one step per arm's model and hookpoint; it reads all SAEs there.

        The trained arm's is read by all others, since it chooses the method that arms are compared beyond.
        """
        spec, trained = self.spec, ArmModel(self.spec.trained_arm, None)
        build = parts["build"]
        found: dict[tuple[ArmModel, str], Step] = {}
        for one in (trained, *parts["harvest"]):
            for at in [(one, hookpoint) for hookpoint in spec.hookpoints]:
                inputs = [build[trained], build[one], parts["harvest"][one]]
                inputs += [s for of in (measure, encode) for p, s in of.items() if p[:2] == at]
                inputs += [] if one == trained else [found[trained, at[1]]]
                settings = [spec.baselines, spec.measurement.replicates, at[1]]
                found[at] = self.step("baselines", f"{one.label}-{at[1]}", settings, *inputs)
        return found

    def _use(
        self, profile: Mapping[Place, Step], parts: Mapping[str, Mapping[ArmModel, Step]]
    ) -> dict[Place, Step]:
        """Return one step per SAE of which it is asked what the model uses."""
        spec, found = self.spec, {}
        how = spec.use.model_dump(mode="json", exclude={"arms", "hookpoints"})
        circuits = spec.circuits.model_dump(mode="json", exclude={"arms"})
        for place in self._asked("use", profile):
            settings, step = [how, circuits, *place[1:]], profile[place]
            inputs = [parts[stage][place[0]] for stage in ("build", "harvest", "train")]
            found[place] = self.step("use", step.name, settings, *inputs, step)
        return found

    def _ties(
        self,
        use: Mapping[Place, Step],
        profile: Mapping[Place, Step],
        parts: Mapping[str, Mapping[ArmModel, Step]],
    ) -> dict[Place, Step]:
        """Return one step per SAE that is asked for ties, but for those that `use` asks anyway."""
        spec, found = self.spec, {}
        how = spec.circuits.model_dump(mode="json", include={"readers", "writers", "level"})
        for place in _tied_places(spec, profile):
            if place not in use:
                settings = [how, *place[1:]]
                inputs = [parts[stage][place[0]] for stage in ("build", "harvest", "train")]
                found[place] = self.step("ties", profile[place].name, settings, *inputs)
        return found

    def _audit(
        self, measure: Mapping[Place, Step], parts: Mapping[str, Mapping[ArmModel, Step]]
    ) -> dict[Place, Step]:
        """Return one step per SAE that is audited; it reads the other SAEs of the same activations."""
        spec, found = self.spec, {}
        how = spec.audit.model_dump(mode="json", exclude={"arms", "hookpoints"})
        for place in self._asked("audit", measure):
            others = [s for p, s in measure.items() if p[:2] == place[:2]]
            settings, inputs = [how, *place[1:]], list({s.key: s for s in others}.values())
            name = measure[place].name
            found[place] = self.step("audit", name, settings, parts["build"][place[0]], *inputs)
        return found

    def _asked(self, table: Literal["use", "audit"], places: Iterable[Place]) -> Iterator[Place]:
        """Yield the first re-draw and SAE seed of the arms and hookpoints that are asked about."""
        spec = self.spec
        arms, hookpoints = asked_arms(spec, table), asked_hookpoints(spec, table)
        for place in places:
            one, hookpoint, _, sae_seed = place
            first = one.model_seed == spec.seeds_of(one.arm)[0] and sae_seed == spec.sae_seeds[0]
            if one.arm in arms and hookpoint in hookpoints and first:
                yield place
