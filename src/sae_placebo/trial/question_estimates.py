"""The time of what is asked of models: use, ties to circuitry, and audits.

Constants are of the machine that `estimates.py` names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from sae_placebo.audits import AUDITS
from sae_placebo.core.errors import ModelError
from sae_placebo.core.store import Step
from sae_placebo.core.time_left import WorkPiece
from sae_placebo.models.specs import ModelSize, shape_of, width_at
from sae_placebo.trial.machine import SEVERAL, Machine, side_by_side
from sae_placebo.trial.plan import Place, Plan
from sae_placebo.trial.reference import asked_hookpoints
from sae_placebo.trial.spec import TrialSpec

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
Pieces = Iterator[tuple[str, float]]
"""Pieces of work of one SAE, each a label and the seconds that it adds to the whole."""


def layer_of(hookpoint: str) -> int:
    """Return the number in a hookpoint's name."""
    return int(hookpoint.rpartition(".")[2])


def widths_of(spec: TrialSpec) -> dict[str, int]:
    """Return the width of the activations at each hookpoint; that of a usual model where it is not known."""
    found = {}
    for name in spec.hookpoints:
        try:
            known = width_at(spec.model, name)
        except ModelError:
            known = None
        found[name] = known or shape_of(spec.model).width
    return found


def lanes_of(plan: Plan, threads: int) -> int:
    """Return how many arms are asked side by side."""
    shape = shape_of(plan.spec.model)
    weights = shape.layer_weights * shape.layers + shape.width * shape.vocabulary
    return plan.lanes(threads, 4 * weights)


@dataclass
class Estimate:
    """What every estimate of a trial's work reads.

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
        self.held, self.context = spec.text.heldout_tokens, spec.text.context_tokens
        self.width = self.shape.width
        self.widths = widths_of(spec)
        self.numbers = 1 / self.machine.numbers

    def places(self, steps: dict[Place, Step]) -> list[Place]:
        """Return one place of every artefact of a stage that is still to be made."""
        left = {step.key: place for place, step in steps.items() if self.is_left(step)}
        return list(left.values())

    def active(self, label: str) -> float:
        """Return how many latents of an SAE a token has, about."""
        sae = self.spec.saes[label]
        target = sae.l0_target()
        return float(target) if target else min(32.0, sae.d_sae / 8)


class QuestionEstimate(Estimate):
    """The pieces of work that are left of what a trial asks of its models."""

    def pieces(self) -> Iterator[WorkPiece]:
        """Yield what each arm's model is asked, each arm in a lane; the model is built first."""
        lanes = lanes_of(self.plan, self.machine.threads)
        # code of one thread adds less to the whole where another lane runs beside it
        less = 1 / (1 + _LANE * (lanes - 1))
        asked = {
            "use": (self._use, self.places(self.plan.use)),
            "ties": (self._circuits, self.places(self.plan.ties)),
            "audit": (self._audit, self.places(self.plan.audit)),
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
        layers = self.shape.layers - 1 - layer_of(hookpoint)
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
        controls = (how.pseudo, how.covariance_directions, how.untrained_directions)
        for few, shared in ((how.error_directions, every), *((n, _TOGETHER) for n in controls)):
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
        pairs = tokens * self.active(label) * self._readers(hookpoint)
        nulls = self.spec.circuits.readers.reader_nulls
        products = 4 * tokens * self._readers(hookpoint) * nulls * self.widths[hookpoint]
        read = tokens * (3 * machine.slope + 5e-5 * numbers)
        yield (
            f"find readers: {name}",
            read + 1.2e-9 * pairs * nulls * numbers + products / self.machine.products,
        )
        tokens = min(self.spec.circuits.writers.tokens, self.held)
        yield f"find writers: {name}", (0.8 + tokens * 1.5e-5) * numbers

    def _readers(self, hookpoint: str) -> float:
        """Return how many parts of the model read a hookpoint: queries, keys and values of heads, MLPs."""
        behind = self.shape.layers - 1 - layer_of(hookpoint)
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
        d, n, numbers = self.widths[hookpoint], min(how.tokens, self.held), self.numbers * less
        lanes = lanes_of(self.plan, machine.threads)
        # the clean rows are read by the first audit that asks for them
        rows = self._rows(float(n)) * machine.row * side_by_side(machine.threads) / lanes
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
