"""The time of each piece of a trial's work is the trial's own counts times what a machine can do.

Constants are seconds on the machine on which they were measured (an AMD EPYC of family 26, one thread), by
`benchmarks/plan_accuracy.py`; what a probe finds scales them. Passes of the model, SAE steps and
products are counted and take the rates that the probe of this machine found.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from sae_placebo.core.spec import canonical, digest
from sae_placebo.core.store import Step
from sae_placebo.core.time_left import WorkPiece
from sae_placebo.models.specs import shape_of
from sae_placebo.trial.machine import SEVERAL, Machine, side_by_side, usual_threads
from sae_placebo.trial.plan import ArmModel, Plan
from sae_placebo.trial.question_estimates import (
    Estimate,
    QuestionEstimate,
    lanes_of,
    layer_of,
    widths_of,
)
from sae_placebo.trial.sizes import fit_tokens
from sae_placebo.trial.spec import TrialSpec

_FREE, _SMALL = 4, 4
"""Baselines with as many atoms as the settings say, and those with fewer."""
_CELLS = 10
"""Pairs of settings that are tried for a code, about."""
_VISITS = 450_000
"""Tokens that k-means visits before it stops of itself, about; it makes at most eight passes."""


def of_usual_machine(spec: TrialSpec, threads: int) -> Machine:
    """Return rates from the sizes of the model and the SAEs alone, as on a usual machine."""
    shape, one = shape_of(spec.model), Machine().products
    products = one * side_by_side(threads)
    before = 1 + max(layer_of(name) for name in spec.hookpoints)
    behind = 2 * (shape.layer_weights * (shape.layers - before) + shape.width * shape.vocabulary)
    whole = 2 * (shape.layer_weights * shape.layers + shape.width * shape.vocabulary)
    weights = shape.layer_weights * shape.layers + shape.width * shape.vocabulary
    edit = (behind / 0.5 + 100 * shape.vocabulary) / products
    start = 4e-4 * (1 + shape.layers - before)
    d_in = max(widths_of(spec).values())
    alone = 1.2 * edit * (1 + spec.use.window)  # threads share its products
    return Machine(
        threads=threads,
        products=products,
        reading=2 * shape.layer_weights * before / products / 0.6,
        row=(whole / 0.6 + 100 * shape.vocabulary) / products,
        edit=edit,
        start=start / side_by_side(threads),
        single=start + alone,
        several=start + SEVERAL * alone,
        behind=(behind / 0.6 + 100 * shape.vocabulary) / products,
        slope=(3 * behind / 0.6 + 300 * shape.vocabulary) / products,
        sae={label: 6 * sae.d_sae * d_in / products for label, sae in spec.saes.items()},
        build=0.3 + 2e-8 * weights,
        load=0.5 + 5e-9 * weights,
    )


class TimeEstimate(Estimate):
    """The pieces of work that are left of a trial, in the order in which they run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.train, self.fitted = self.spec.text.train_tokens, fit_tokens(self.spec)
        self.code = 1 / self.machine.code
        self.one_thread = self.machine.products / side_by_side(self.machine.threads)

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
        ):
            found += stage()
        found += QuestionEstimate(self.plan, self.is_left, self.machine).pieces()
        seconds = 0.5 + 0.12 * len(self.plan.measure)
        return [*found, WorkPiece("report", "compare and report", seconds * self.code)]

    def _workers(self, n: int) -> float:
        """Return as how many threads work that `n` equal jobs run on side by side."""
        threads = max(1, min(self.machine.threads, n))
        # the last jobs may leave threads with nothing to do
        rounds = -(-n // threads)
        return side_by_side(threads) * n / (rounds * threads)

    # --- tokens, models, SAEs --------------------------------------------------------------------

    def _materials(self) -> Iterator[WorkPiece]:
        plan = self.plan
        any_left = any(self.is_left(step) for step in plan.steps())
        if plan.needs_conversion and self.is_left(plan.model):
            yield WorkPiece("model", "convert", 20.0 * self.code)
        if self.is_left(plan.tokenize):
            labelled = plan.readability is not None
            each = 1.5e-5 if labelled else 7e-6
            tokens = (self.train + self.held) * self.spec.text.read_per_token
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
            seconds = self.machine.build
            if self.is_left(plan.build[one]):
                seconds += self._card() + self._measured_on_text(one)
            yield WorkPiece("build", f"build {one.label}", seconds)
        together = sum(self.widths.values())
        if unread and self._is_drawn(first):  # what is drawn is fitted to the training tokens first
            read = self.machine.reading * self.spec.text.read_per_token
            seconds = self.train * read + self._moments()
            yield WorkPiece("harvest", f"moments {first.label}", seconds)
        if self.is_left(plan.harvest[first]):
            rows = self.spec.harvest.calibration_rows + 2 * self.spec.structure.repeat_rows
            tokens = self.held + rows * self.context
            bytes_ = 4 * self.held * together
            seconds = tokens * self._reading(first) + 2 * bytes_ / self.machine.disk
            yield WorkPiece("harvest", f"harvest {first.label}", 0.1 + seconds)
        if self.is_left(plan.fit_text[first]):
            bytes_ = 4 * self.fitted * together
            seconds = self.fitted * self._reading(first) + 2 * bytes_ / self.machine.disk
            label = f"read text to fit on {first.label}"
            yield WorkPiece("fit_text", label, 0.1 + seconds)
        if trained:
            yield from self._trained(first, list(trained.values()))

    def _measured_on_text(self, one: ArmModel) -> float:
        """Return what it takes to seek the gains of blocks, about nine for each, where a control has them."""
        tokens = min(self.spec.arms[one.arm].control.text_tokens, self.train)
        n_blocks = 1 + max(layer_of(name) for name in self.spec.hookpoints)
        shares = 1e-7 * self.width * n_blocks * 10 * self.numbers
        return tokens * (14 * self.machine.reading + shares)

    def _is_drawn(self, one: ArmModel) -> bool:
        """Return whether draws stand in the place of an arm's activations."""
        data = self.spec.arms[one.arm].data
        return data is not None and data.of_activations

    def _reading(self, one: ArmModel) -> float:
        """Return the seconds that reading a token takes; a draw is a product with a root of a covariance."""
        if self._is_drawn(one):
            return self._moments() / self.train
        return self.machine.reading * self.spec.text.read_per_token

    def _moments(self) -> float:
        """Return what the products take that the training tokens' second moments are, or their draws."""
        squares = sum(width**2 for width in self.widths.values())
        return 2 * self.train * squares / self.machine.products

    def _card(self) -> float:
        """Return what a model's diagnostics card takes, and writing its heads."""
        tokens = min(self.spec.harvest.card_rows * self.context, self.held)
        heads = 4 * self.width * self.shape.vocabulary
        return tokens * (self.machine.reading + self.machine.behind) + heads / self.machine.disk

    def _trained(self, first: ArmModel, arms: list[ArmModel]) -> Iterator[WorkPiece]:
        spec, machine, name = self.spec, self.machine, first.label
        places = len(spec.hookpoints)
        read, moments = self.train * self._reading(first), self._moments()
        steps = self.train * places * len(arms) * sum(machine.sae.values())
        controls = [spec.arms[one.arm].dictionary for one in arms]
        if any(one is not None and one.needs_moments for one in controls):
            yield WorkPiece("train", f"moments {name}", read + moments)
        seconds = read + moments + steps * len(spec.sae_seeds)
        yield WorkPiece("train", f"train {name}", 0.2 + seconds)
        # the null's draws are products with a root of the covariance; then it is scored
        yield WorkPiece("train", f"gaussian null {name}", 0.2 + 2 * moments + steps)

    # --- what is said about SAEs -----------------------------------------------------------------

    def _measured(self) -> Iterator[WorkPiece]:
        readability = self.plan.readability
        if readability is not None and self.is_left(readability):
            yield WorkPiece(
                "readability", "readability", (0.1 + 1.5e-5 * self.train) * self.numbers
            )
        places = self.places(self.plan.measure)
        if not places:
            return
        seconds = 0.0
        for _, hookpoint, label, _ in places:
            pairs = self.held * self.active(label)
            numbers = self.held * self.spec.saes[label].d_sae * self.widths[hookpoint]
            encode = 2 * numbers / self.one_thread
            seconds += encode + (0.25 + 0.6e-6 * pairs) * self.numbers
        yield WorkPiece("measure", "measure", seconds / self._workers(len(places)))

    def _encoded(self) -> Iterator[WorkPiece]:
        places = self.places(self.plan.encode)
        if not places:
            return
        seconds = 0.0
        for _, hookpoint, label, _ in places:
            products = 2 * self.fitted * self.spec.saes[label].d_sae * self.widths[hookpoint]
            seconds += products / self.one_thread
        yield WorkPiece("encode", "encode text to fit on", seconds / self._workers(len(places)))

    def _profiled(self) -> Iterator[WorkPiece]:
        places = self.places(self.plan.profile)
        if not places:
            return
        seconds = 0.0
        for *_, label, _ in places:
            k, m = self.active(label), self.spec.saes[label].d_sae
            seconds += 0.45 + 1.4e-8 * self.held * k**2 + 6e-7 * self.held * k + 2e-7 * m**2
            # the ladder at four portions of its text
            seconds += 8e-7 * (self.fitted + self.held) * k
        yield WorkPiece("profile", "profile", seconds * self.numbers / self._workers(len(places)))

    def _baselines(self) -> Iterator[WorkPiece]:
        left = {s.key: at for at, s in self.plan.baselines.items() if self.is_left(s)}
        if not left:
            return
        how, saes = self.spec.baselines, self.spec.saes
        k = how.k or sum(self.active(label) for label in saes) / len(saes)
        atoms = min(how.n_atoms, *(sae.d_sae for sae in saes.values()))
        fit = min(how.fit_tokens, self.fitted)
        wanted = how.choose_tokens, how.probe_tokens + how.score_tokens
        chosen, coded = (min(n, self.held / 4) for n in wanted)
        d, n_saes = max(self.widths.values()), len(saes) * len(self.spec.sae_seeds)
        # fits of k-means with m and 2m atoms, of ICA and of the non-negative dictionary
        fits = 7e-11 * min(8 * fit, _VISITS) * atoms * d + 1e-10 * fit * d**2
        fits += 1.1e-10 * how.iterations * min(how.ica_tokens, fit) * d**2
        fits += 2.7e-10 * how.iterations * min(how.nmf_tokens, fit) * how.nmf_atoms * d
        # pursuit takes k atoms for explained variance; to choose settings, a few, and as many as SAEs need
        taken = (_FREE + n_saes) * coded * k
        taken += chosen * (15 * _FREE + n_saes * (22 + 1.5 * k))
        # of methods, alone and with 2m atoms, and of each SAE, alone and beside methods
        codes = 2 * _FREE + _SMALL + 3 + 8 * n_saes
        cells = len(how.distortions) * codes * _CELLS * chosen * 2.2e-8 * d
        seconds = (3 + fits + 4e-11 * d * atoms * taken + cells) * self.numbers
        # the trained arm is first, since the others read which method is best there
        first = sum(one.arm == self.spec.trained_arm for one, _ in left.values())
        rounds = sum(n / self._workers(n) for n in (first, len(left) - first))
        yield WorkPiece("baselines", "compare baselines", seconds * rounds)


def estimate(
    plan: Plan, is_left: Callable[[Step], bool], machine: Machine | None
) -> list[WorkPiece]:
    """Return the pieces of a trial's work that are left, with their seconds on `machine`.

    Where no machine is given, they are those of a usual one.
    """
    found = machine or of_usual_machine(plan.spec, usual_threads())
    return TimeEstimate(plan, is_left, found).pieces()


def rates_key(plan: Plan) -> str:
    """Return the key of the work that a machine's rates are for: work of other sizes has another key."""
    spec = plan.spec
    sizes = [spec.hookpoints, spec.saes, spec.training.batch_tokens, spec.text.context_tokens]
    lanes = lanes_of(plan, usual_threads())
    how = [spec.device, usual_threads(), bool(plan.use or plan.ties or plan.audit), lanes]
    parts = [plan.model.key, *sizes, spec.use.window, *how]
    return digest(json.loads(canonical(parts)))
