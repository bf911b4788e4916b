"""The time of each piece of a trial's work is the trial's own counts times what a machine can do.

Constants are seconds on the machine on which they were measured (an AMD EPYC of family 26, one thread), by
`benchmarks/plan_accuracy.py`; what a probe finds scales them. Passes of the model, SAE steps and
products are counted and take the rates that the probe of this machine found.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from sae_placebo.audits import AUDITS
from sae_placebo.core.spec import canonical, digest
from sae_placebo.core.store import Step
from sae_placebo.core.time_left import WorkPiece
from sae_placebo.models.specs import ModelSize, shape_of
from sae_placebo.trial.machine import SEVERAL, Machine, usual_threads
from sae_placebo.trial.plan import ArmModel, Place, Plan
from sae_placebo.trial.reference import asked_hookpoints
from sae_placebo.trial.sizes import fit_tokens
from sae_placebo.trial.spec import TrialSpec

_CREW = 0.9
"""What a further thread adds where jobs run side by side."""
_LANE = 0.4
"""What a further lane adds to the speed of code that computes nothing large."""
_CANDIDATES = 0.15
"""Share of directions that are asked at uniform firings."""
_GROUPS = 0.2
"""Groups of related latents per latent asked."""
_TOGETHER = 1.2
"""Firings that share a token: each latent draws its own."""
_ROUNDS = 2
"""Rounds in which directions leave S*, about."""
_FREE, _SMALL = 4, 4
"""Baselines with as many atoms as the settings say, and those with fewer."""
_CELLS = 12
"""Pairs of settings that are tried for a code, about."""
Pieces = Iterator[tuple[str, float]]
"""Pieces of work of one SAE, each a label and the seconds that it adds to the whole."""


def of_usual_machine(spec: TrialSpec, threads: int) -> Machine:
    """Return rates from the sizes of the model and the SAEs alone, as on a usual machine."""
    shape, one = shape_of(spec.model), Machine().products
    products = one * _side_by_side(threads)
    before = 1 + max(_layer(name) for name in spec.hookpoints)
    behind = 2 * (shape.layer_weights * (shape.layers - before) + shape.width * shape.vocabulary)
    whole = 2 * (shape.layer_weights * shape.layers + shape.width * shape.vocabulary)
    weights = shape.layer_weights * shape.layers + shape.width * shape.vocabulary
    edit = (behind / 0.5 + 100 * shape.vocabulary) / products
    start = 4e-4 * (1 + shape.layers - before)
    alone = 1.2 * edit * (1 + spec.use.window)  # threads share its products
    return Machine(
        threads=threads,
        products=products,
        reading=2 * shape.layer_weights * before / products / 0.6,
        row=(whole / 0.6 + 100 * shape.vocabulary) / products,
        edit=edit,
        start=start / _side_by_side(threads),
        single=start + alone,
        several=start + SEVERAL * alone,
        behind=(behind / 0.6 + 100 * shape.vocabulary) / products,
        slope=(3 * behind / 0.6 + 300 * shape.vocabulary) / products,
        sae={label: 3 * 2 * sae.d_sae * shape.width / products for label, sae in spec.saes.items()},
        build=0.3 + 2e-8 * weights,
        load=0.5 + 5e-9 * weights,
    )


def _side_by_side(threads: int) -> float:
    return 1 + _CREW * (threads - 1)


def _layer(hookpoint: str) -> int:
    return int(hookpoint.rpartition(".")[2])


@dataclass
class TimeEstimate:
    """The pieces of work that are left of a trial, in the order in which they run.

    Args:
        plan: The trial's plan.
        is_left: Returns whether a step is still to be done.
        machine: Rates of the machine.
    """

    plan: Plan
    is_left: Callable[[Step], bool]
    machine: Machine

    def __post_init__(self) -> None:
        spec = self.spec = self.plan.spec
        self.shape: ModelSize = shape_of(spec.model)
        self.train, self.held = spec.text.train_tokens, spec.text.heldout_tokens
        self.fitted = fit_tokens(spec)
        self.context = spec.text.context_tokens
        self.width = self.shape.width
        self.numbers = 1 / self.machine.numbers
        self.code = 1 / self.machine.code
        self.one_thread = self.machine.products / _side_by_side(self.machine.threads)

    def pieces(self) -> list[WorkPiece]:
        """Return every piece of work that is left."""
        found = [*self._materials()]
        for group in self.plan.groups:
            found += self._arms(group)
        for stage in (
            self._measured,
            self._encoded,
            self._profiled,
            self._baselines,
            self._questions,
        ):
            found += stage()
        seconds = 0.5 + 0.12 * len(self.plan.measure)
        return [*found, WorkPiece("report", "compare and report", seconds * self.code)]

    def _workers(self, n: int) -> float:
        """Return as how many threads work that `n` equal jobs run on side by side."""
        threads = max(1, min(self.machine.threads, n))
        # the last jobs may leave threads with nothing to do
        rounds = -(-n // threads)
        return _side_by_side(threads) * n / (rounds * threads)

    # --- tokens, models, SAEs --------------------------------------------------------------------

    def _materials(self) -> Iterator[WorkPiece]:
        plan = self.plan
        any_left = any(self.is_left(step) for step in plan.steps())
        if plan.needs_conversion and self.is_left(plan.model):
            yield WorkPiece("model", "convert", 20.0 * self.code)
        if self.is_left(plan.tokenize):
            labelled = plan.readability is not None
            each = 1.5e-5 if labelled else 7e-6
            tokens = self.train + self.held
            yield WorkPiece("tokenize", "tokenize", (0.6 + each * tokens) * self.code)
        if any_left:
            yield WorkPiece("build", "load the model", self.machine.load)

    def _arms(self, group: tuple[ArmModel, ...]) -> Iterator[WorkPiece]:
        plan, first = self.plan, group[0]
        for one in group:
            if plan.text[one] is not plan.tokenize and self.is_left(plan.text[one]):
                seconds = (0.5 + 2e-6 * (self.train + self.held)) * self.numbers
                yield WorkPiece("text", f"text {one.label}", seconds)
        trained = {plan.train[one].key: one for one in group if self.is_left(plan.train[one])}
        unread = bool(trained) or any(
            self.is_left(of[first]) for of in (plan.harvest, plan.fit_text)
        )
        built = [one for one in group if self.is_left(plan.build[one])]
        for one in built or ([first] if unread else []):
            seconds = self.machine.build + (self._card() if self.is_left(plan.build[one]) else 0.0)
            yield WorkPiece("build", f"build {one.label}", seconds)
        n_places = len(self.spec.hookpoints)
        if self.is_left(plan.harvest[first]):
            rows = self.spec.harvest.calibration_rows + 2 * self.spec.structure.repeat_rows
            tokens = self.held + rows * self.context
            bytes_ = 4 * self.held * self.width * n_places
            seconds = tokens * self.machine.reading + 2 * bytes_ / self.machine.disk
            yield WorkPiece("harvest", f"harvest {first.label}", 0.1 + seconds)
        if self.is_left(plan.fit_text[first]):
            bytes_ = 4 * self.fitted * self.width * n_places
            seconds = self.fitted * self.machine.reading + 2 * bytes_ / self.machine.disk
            label = f"read text to fit on {first.label}"
            yield WorkPiece("fit_text", label, 0.1 + seconds)
        if trained:
            yield from self._trained(first, list(trained.values()))

    def _card(self) -> float:
        """Return what a model's diagnostics card takes, and writing its heads."""
        tokens = min(self.spec.harvest.card_rows * self.context, self.held)
        heads = 4 * self.width * self.shape.vocabulary
        return tokens * (self.machine.reading + self.machine.behind) + heads / self.machine.disk

    def _trained(self, first: ArmModel, arms: list[ArmModel]) -> Iterator[WorkPiece]:
        spec, machine, name = self.spec, self.machine, first.label
        places = len(spec.hookpoints)
        read = self.train * machine.reading
        moments = 2 * self.train * places * self.width**2 / machine.products
        steps = self.train * places * len(arms) * sum(machine.sae.values())
        controls = [spec.arms[one.arm].dictionary for one in arms]
        if any(one is not None and one.needs_moments for one in controls):
            yield WorkPiece("train", f"moments {name}", read + moments)
        seconds = read + moments + steps * len(spec.sae_seeds)
        yield WorkPiece("train", f"train {name}", 0.2 + seconds)
        # the null's draws are products with a root of the covariance; then it is scored
        yield WorkPiece("train", f"gaussian null {name}", 0.2 + 2 * moments + steps)

    # --- what is said about SAEs -----------------------------------------------------------------

    def _places(self, steps: dict[Place, Step]) -> list[Place]:
        left = {step.key: place for place, step in steps.items() if self.is_left(step)}
        return list(left.values())

    def _active(self, label: str) -> float:
        """Return how many latents a token has, about."""
        sae = self.spec.saes[label]
        target = sae.l0_target()
        return float(target) if target else min(32.0, sae.d_sae / 8)

    def _measured(self) -> Iterator[WorkPiece]:
        readability = self.plan.readability
        if readability is not None and self.is_left(readability):
            yield WorkPiece(
                "readability", "readability", (0.1 + 1.5e-5 * self.train) * self.numbers
            )
        places = self._places(self.plan.measure)
        if not places:
            return
        seconds = 0.0
        for *_, label, _ in places:
            pairs = self.held * self._active(label)
            encode = 2 * self.held * self.spec.saes[label].d_sae * self.width / self.one_thread
            seconds += encode + (0.25 + 0.6e-6 * pairs) * self.numbers
        yield WorkPiece("measure", "measure", seconds / self._workers(len(places)))

    def _encoded(self) -> Iterator[WorkPiece]:
        places = self._places(self.plan.encode)
        if not places:
            return
        seconds = 0.0
        for *_, label, _ in places:
            products = 2 * self.fitted * self.spec.saes[label].d_sae * self.width
            seconds += products / self.one_thread
        yield WorkPiece("encode", "encode text to fit on", seconds / self._workers(len(places)))

    def _profiled(self) -> Iterator[WorkPiece]:
        places = self._places(self.plan.profile)
        if not places:
            return
        seconds = 0.0
        for *_, label, _ in places:
            k, m = self._active(label), self.spec.saes[label].d_sae
            seconds += 0.45 + 1.4e-8 * self.held * k**2 + 6e-7 * self.held * k + 2e-7 * m**2
            # the ladder at four portions of its text
            seconds += 8e-7 * (self.fitted + self.held) * k
        yield WorkPiece("profile", "profile", seconds * self.numbers / self._workers(len(places)))

    def _baselines(self) -> Iterator[WorkPiece]:
        left = {s.key: at for at, s in self.plan.baselines.items() if self.is_left(s)}
        if not left:
            return
        how, saes = self.spec.baselines, self.spec.saes
        k = how.k or sum(self._active(label) for label in saes) / len(saes)
        atoms = min(how.n_atoms, *(sae.d_sae for sae in saes.values()))
        fit = min(how.fit_tokens, self.held / 2)
        wanted = how.choose_tokens, how.probe_tokens + how.score_tokens
        chosen, coded = (min(n, self.held / 4) for n in wanted)
        d, n_saes = self.width, len(saes) * len(self.spec.sae_seeds)
        # fits of k-means with m and 2m atoms, of ICA and of the non-negative dictionary
        fits = 0.75e-9 * fit * atoms * d
        fits += 1.1e-10 * how.iterations * min(how.ica_tokens, fit) * d**2
        fits += 2.7e-10 * how.iterations * min(how.nmf_tokens, fit) * how.nmf_atoms * d
        # pursuit takes k atoms for explained variance; to choose settings, a few, and as many as SAEs need
        taken = (_FREE + n_saes) * coded * k
        taken += chosen * (15 * _FREE + n_saes * (22 + 1.5 * k))
        # of methods, alone and with 2m atoms, and of each SAE, alone and beside methods
        codes = 2 * (_FREE + _SMALL) + 3 + 9 * n_saes
        cells = len(how.distortions) * codes * _CELLS * chosen * 2.2e-8 * d
        seconds = (0.8 + fits + 4e-11 * d * atoms * taken + cells) * self.numbers
        yield WorkPiece(
            "baselines", "compare baselines", seconds * len(left) / self._workers(len(left))
        )

    # --- what is asked of models -----------------------------------------------------------------

    def _drawn(self, n: int, per_direction: int) -> float:
        """Return how many firings `n` directions are ablated at, about: some draws fall on the same."""
        return 0.9 * n * per_direction

    def _at(self, hookpoint: str) -> Machine:
        """Return the rates behind a hookpoint; probes are of the first that is asked about."""
        probed = next(iter(asked_hookpoints(self.spec, "use")), self.spec.hookpoints[0])
        here, there = (self._behind(name) for name in (hookpoint, probed))
        names = ("edit", "start", "single", "several", "behind", "slope")
        rates = {name: getattr(self.machine, name) * here / there for name in names}
        return replace(self.machine, **rates)

    def _behind(self, hookpoint: str) -> float:
        layers = self.shape.layers - 1 - _layer(hookpoint)
        return float(self.shape.layer_weights * layers + self.width * self.shape.vocabulary)

    def _rows(self, tokens: float) -> float:
        """Return the tokens of the rows that are read for so many firings."""
        rows = self.held / self.context
        return self.context * min(rows, tokens)

    def _screened(self, machine: Machine) -> float:
        """Return what the gradients take that tell which firings are important."""
        return min(self.spec.use.screen_tokens, self.held) * 2 * machine.slope

    def _edited(self, firings: float, edits: int, machine: Machine, together: float) -> float:
        """Return what so many edits of each of some firings take; `together` of these share a token."""
        places = firings / together
        passes = firings * edits * (self.spec.use.window + 1) * machine.edit
        return passes + places * machine.start + self._rows(places) * machine.row

    def _ablated(self, n: int, machine: Machine, together: float = _TOGETHER) -> float:
        """Return what the ablations of `n` sets of directions take: two edits of each firing."""
        return self._edited(self._drawn(n, self.spec.use.firings), 2, machine, together)

    def _against_nulls(self, n: int, machine: Machine, together: float = _TOGETHER) -> float:
        how = self.spec.use
        firings = self._drawn(n, min(how.null_firings, how.firings))
        return self._edited(firings, how.nulls, machine, together)

    def _uniform(self, n: int, machine: Machine) -> float:
        """Return what is asked at uniform firings of those that may not be used."""
        how = self.spec.use
        firings = _CANDIDATES * n * how.uniform_firings
        rows = self._rows(firings) * machine.row
        return self._edited(firings, 3 + how.uniform_nulls, machine, 1.0) + 2 * rows

    def _questions(self) -> Iterator[WorkPiece]:
        """Yield what each arm's model is asked, each arm in a lane; the model is built first."""
        lanes = lanes_of(self.plan, self.machine.threads)
        # code of one thread adds less to the whole where another lane runs beside it
        less = 1 / (1 + _LANE * (lanes - 1))
        asked = {
            "use": (self._use, self._places(self.plan.use)),
            "ties": (self._circuits, self._places(self.plan.ties)),
            "audit": (self._audit, self._places(self.plan.audit)),
        }
        for one in dict.fromkeys(place[0] for _, places in asked.values() for place in places):
            own = [
                (stage, work(place, less))
                for stage, (work, places) in asked.items()
                for place in places
                if place[0] == one
            ]
            again = iter([(f"build {one.label} again", self.machine.build)])
            for stage, pieces in ((own[0][0], again), *own):
                for label, seconds in pieces:
                    yield WorkPiece(stage, label, seconds, one.label if lanes > 1 else "", lanes)

    def _use(self, place: Place, less: float) -> Pieces:
        one, hookpoint, label, _ = place
        name = f"{one.label}, {hookpoint}, {label}"
        how, d_sae, numbers = self.spec.use, self.spec.saes[label].d_sae, self.numbers * less
        machine = self._at(hookpoint)
        n = d_sae if how.latents == "all" else min(how.latents, d_sae)
        null = f"hold against null directions: {name}"
        yield f"screen firings: {name}", self._screened(machine)
        yield f"ablate: {name}", self._ablated(n, machine)
        yield null, self._against_nulls(n, machine)
        if how.group_size > 1:
            groups = int(_GROUPS * n)
            yield f"ablate, groups: {name}", self._ablated(groups, machine)
            of_groups = f"hold against null directions, groups: {name}"
            yield of_groups, self._against_nulls(groups, machine)
        yield from self._removed(name, n, machine, numbers)
        yield f"ablate at uniform firings: {name}", self._uniform(n, machine)
        yield from self._circuits(place, less)
        # every token holds all directions of the error
        every = float(max(how.error_directions, 1))
        for few, shared in ((how.error_directions, every), (how.pseudo, _TOGETHER)):
            if few:
                yield f"ablate: {name}", self._ablated(few, machine, shared)
                yield null, self._against_nulls(few, machine, shared)
        shown = 6 * how.shown_per_cell
        edits = shown * 16 * (1 + self.spec.circuits.patch.nulls) * (how.window + 5)
        yield f"patch readers: {name}", edits * machine.edit

    def _circuits(self, place: Place, less: float) -> Pieces:
        one, hookpoint, label, _ = place
        name, machine = f"{one.label}, {hookpoint}, {label}", self._at(hookpoint)
        numbers = self.numbers * less
        tokens = min(self.spec.circuits.readers.tokens, self.held)
        pairs = tokens * self._active(label) * self._readers(hookpoint)
        nulls = self.spec.circuits.readers.reader_nulls
        products = 4 * tokens * self._readers(hookpoint) * nulls * self.width
        read = tokens * (3 * machine.slope + 5e-5 * numbers)
        yield (
            f"find readers: {name}",
            read + 1.2e-9 * pairs * nulls * numbers + products / self.machine.products,
        )
        tokens = min(self.spec.circuits.writers.tokens, self.held)
        yield f"find writers: {name}", (0.8 + tokens * 1.5e-5) * numbers

    def _readers(self, hookpoint: str) -> float:
        """Return how many parts of the model read a hookpoint: queries, keys and values of heads, MLPs."""
        behind = self.shape.layers - 1 - _layer(hookpoint)
        return 1 + behind * (1 + 2 * max(self.width / 64, 4.0))

    def _removed(self, name: str, n: int, machine: Machine, numbers: float) -> Pieces:
        how = self.spec.use
        half = self.held / 2
        tokens = min(how.masks.n_tokens, half)
        passes = how.masks.n_masks * machine.behind + how.masks.n_pivots * machine.slope
        yield f"remove among others: {name}", tokens * (passes + 1e-4 * numbers)
        readings = 2 + min(n.bit_length(), 9) + 3 * 4
        tokens = min(how.joint.n_tokens, half)
        yield f"remove together: {name}", tokens * readings * machine.behind
        rounds = min(how.worst.rounds + 1, _ROUNDS)
        tokens = min(how.worst.n_tokens, half) * (1 + rounds * (how.worst.steps + 2))
        yield f"look for the worst masks: {name}", tokens * machine.slope

    def _audit(self, place: Place, less: float) -> Pieces:
        one, hookpoint, label, _ = place
        how, machine, m = self.spec.audit, self._at(hookpoint), self.spec.saes[label].d_sae
        d, n, numbers = self.width, min(how.tokens, self.held), self.numbers * less
        lanes = lanes_of(self.plan, machine.threads)
        # the clean rows are read by the first audit that asks for them
        rows = self._rows(float(n)) * machine.row * _side_by_side(machine.threads) / lanes
        labels = 4e-6 * how.labels * self.held * numbers

        def edited(tokens: float, edits: int) -> float:
            """Return what passes of so many edits of a token take, one token after the other."""
            further = (machine.several - machine.single) / (SEVERAL - 1)
            return tokens * (machine.single + (edits - 1) * further)

        fitted = min(how.ridge_tokens, self.held / 2)
        few = (1 + how.draws) * (how.steps - 1)
        seconds = {
            "random_pushes": rows + edited(float(n), 3 + 4 * (how.draws + 1)),
            "interpolation": edited(n / 2, few),
            "error_parts": edited(float(n), 9) + 8e-7 * fitted * d * numbers,
            "untrusted_tokens": 2 * edited(float(n), 1) + 0.6 * numbers,
            "shrinkage": (0.3 + 2.2e-5 * self.held) * numbers,
            "latent_geometry": 0.3 * numbers,
            "meta_sae": 3 * how.meta_steps * (5e-4 + 1e-9 * m * d) * numbers,
            "label_families": 0.1 * numbers + labels,
            "label_information": 0.1 * numbers + labels,
            "hedging": 2 * min(how.hedging_tokens, self.held) * machine.sae[label],
        }
        for audit in AUDITS:
            yield f"audit {audit}: {one.label}, {hookpoint}, {label}", seconds[audit]


def estimate(
    plan: Plan, is_left: Callable[[Step], bool], machine: Machine | None
) -> list[WorkPiece]:
    """Return the pieces of a trial's work that are left, with their seconds on `machine`.

    Where no machine is given, they are those of a usual one.
    """
    found = machine or of_usual_machine(plan.spec, usual_threads())
    return TimeEstimate(plan, is_left, found).pieces()


def lanes_of(plan: Plan, threads: int) -> int:
    """Return how many arms are asked side by side."""
    shape = shape_of(plan.spec.model)
    weights = shape.layer_weights * shape.layers + shape.width * shape.vocabulary
    return plan.lanes(threads, 4 * weights)


def rates_key(plan: Plan) -> str:
    """Return the key of the work that a machine's rates are for: work of other sizes has another key."""
    spec = plan.spec
    sizes = [spec.hookpoints, spec.saes, spec.training.batch_tokens, spec.text.context_tokens]
    lanes = lanes_of(plan, usual_threads())
    how = [spec.device, usual_threads(), bool(plan.use or plan.ties or plan.audit), lanes]
    parts = [plan.model.key, *sizes, spec.use.window, *how]
    return digest(json.loads(canonical(parts)))
