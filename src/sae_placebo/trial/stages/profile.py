"""The stages behind measuring: profiles of latents, and existing methods beside the SAEs.

Both read what other stages left, and every SAE is a job of its own, so that as many run at once as there
are threads.
"""

from __future__ import annotations

import functools
import itertools
import threading
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from sae_placebo.baselines.base import METHODS, MethodsSpec
from sae_placebo.baselines.compare import compare_methods
from sae_placebo.baselines.saved import refused, saved
from sae_placebo.core import memory
from sae_placebo.core.crew import Crew
from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lanes import blas_threads
from sae_placebo.core.lazy import torch
from sae_placebo.core.progress import Advance, Progress
from sae_placebo.core.shared_values import Shelf
from sae_placebo.core.store import Step, Store
from sae_placebo.latents.base import Encoded, Folds, Placebo, TokenTable
from sae_placebo.latents.columns.domains import Domains, domains_of
from sae_placebo.latents.ladder.ladder import whole_ladder
from sae_placebo.latents.ladder.predictors import Readouts
from sae_placebo.latents.ladder.token_features import TokenFeatures
from sae_placebo.latents.measurement import HeldOut
from sae_placebo.latents.partners.assignment import Sharing, sharing_of_both
from sae_placebo.latents.profile import PARTS, Around, Profile, profile
from sae_placebo.saes import SAE
from sae_placebo.saes.formats import saelens
from sae_placebo.stats.effects import document_weights
from sae_placebo.trial import artefacts
from sae_placebo.trial.placebos import Held, placebo_of, sibling_of
from sae_placebo.trial.plan import ArmModel, Place, Plan
from sae_placebo.trial.spec import TrialSpec
from sae_placebo.trial.stages.materials import Materials


class Shared(NamedTuple):
    """All that is read off the held-out tokens of one hookpoint, once for every SAE that reads them."""

    tokens: TokenTable
    domains: Domains
    folds: Folds


class _Held(NamedTuple):
    """What an SAE is held against, and why there is none."""

    against: Held | None
    sibling: Held | None
    reasons: dict[str, str]


@dataclass
class Profiles:
    """The stages that profile latents and fit existing methods, once all SAEs are measured.

    Args:
        plan: The trial's plan.
        store: Where artefacts are.
        given: Has the tokens and the vocabulary.
        heldout: By hookpoint, the held-out tokens that no arm leaves out.
        progress: Where progress is shown.
    """

    plan: Plan
    store: Store
    given: Materials
    heldout: Mapping[str, HeldOut]
    progress: Progress

    @property
    def spec(self) -> TrialSpec:
        """Return the trial's protocol."""
        return self.plan.spec

    def run(self) -> None:
        """Profile every SAE, then fit existing methods on every arm; what is there is kept."""
        self._each("profile", "SAEs", self.plan.profile, self._profile, 1 + PARTS)
        n = len(METHODS.entries) + len(self.spec.saes) * len(self.spec.sae_seeds)
        self._each("compare methods on", "models", self.plan.methods, self._methods, n)

    def _each(
        self,
        verb: str,
        unit: str,
        steps: Mapping[Any, Step],
        work: Callable[..., None],
        parts: int,
    ) -> None:
        """Do the work of every step that is left; each advances by `parts` parts."""
        left = {s.key: at for at, s in steps.items() if self.store.find(s) is None}
        if not left:
            return
        batches = [list(left.values())]
        if steps is self.plan.profile:
            batches = self._batches(batches[0])
            for place in left.values():
                self._shelf.announce(self._used(*place))
        label = f"{verb} {len(left)} {unit}"
        with (
            self.progress.track(label, len(left) * parts, "parts") as advance,
            warnings.catch_warnings(),  # here, since filters belong to all threads at once
            blas_threads(1),
            Crew() as crew,
        ):
            warnings.filterwarnings("ignore", module=r"sklearn\.decomposition\.")
            for batch in batches:
                for _ in crew.each([functools.partial(work, advance, *at) for at in batch]):
                    pass
                memory.give_back()

    def _batches(self, places: Sequence[Place]) -> list[list[Place]]:
        """Return the SAEs that are held against one model together, so that few models are in memory.

        In a batch there is a lane of models for each thread, one SAE of a model after the other, so that
        two that run at once seldom wait for what both read.
        """
        models: dict[Hashable, list[Place]] = {}
        for at in places:
            models.setdefault(at[:2], []).append(at)
        batches: dict[Hashable, list[list[Place]]] = {}
        for own in models.values():
            one, hookpoint, _, sae_seed = own[0]
            key = self._readouts_key(one, hookpoint, self._held(one, sae_seed).against)
            lanes = batches.setdefault(key, [[] for _ in range(torch.get_num_threads())])
            min(lanes, key=len).extend(own)
        return [
            [at for row in itertools.zip_longest(*lanes) for at in row if at is not None]
            for lanes in batches.values()
        ]

    # --- what several jobs read --------------------------------------------------------------------

    def __post_init__(self) -> None:
        self._shelf = Shelf()
        self._lock = threading.Lock()
        self._shared: dict[tuple[str, str], Shared] = {}

    def _used(self, one: ArmModel, hookpoint: str, sae: str, sae_seed: int) -> list[Hashable]:
        """Return the keys of all that an SAE shares with others."""
        held = self._held(one, sae_seed)
        against = held.against
        models = [one] if against is None else [one, against.one]
        keys = [self._activations_key(model, hookpoint) for model in models]
        keys += [self._features_key(one, hookpoint), ("whole", one, hookpoint)]
        keys.append(self._readouts_key(one, hookpoint, against))
        if held.sibling is not None:
            pair = frozenset((sae_seed, held.sibling.sae_seed))
            keys.append(("sharing", one, hookpoint, sae, pair))
        return keys

    def _activations_key(self, one: ArmModel, hookpoint: str) -> Hashable:
        return "activations", self.plan.harvest[one].key, hookpoint

    def _features_key(self, one: ArmModel, hookpoint: str) -> Hashable:
        return "features", self.plan.text[one].key, hookpoint

    def _readouts_key(self, one: ArmModel, hookpoint: str, against: Held | None) -> Hashable:
        model = None if against is None else against.one
        return "readouts", self.plan.text[one].key, hookpoint, model

    def _held(self, one: ArmModel, sae_seed: int) -> _Held:
        """Return what an SAE is held against."""
        reasons: dict[str, str] = {}

        def held(name: str, find: Callable[..., Held]) -> Held | None:
            try:
                return find(self.spec, one, sae_seed)
            except NotEstimable as refusal:
                reasons[name] = str(refusal)
                return None

        return _Held(held("placebo", placebo_of), held("sibling", sibling_of), reasons)

    def shared(self, one: ArmModel, hookpoint: str) -> Shared:
        """Return what is read off tokens alone, made once for all arms that read the same ones."""
        key = (self.plan.text[one].key, hookpoint)
        with self._lock:
            if key not in self._shared:
                tokens, seed = self.tokens(one, hookpoint), self.spec.seed
                folds = Folds.of(tokens.documents, tokens.n_documents, seed)
                self._shared[key] = Shared(tokens, domains_of(tokens, seed), folds)
            return self._shared[key]

    def _features(self, one: ArmModel, hookpoint: str) -> tuple[TokenFeatures | None, str | None]:
        """Return what the ladder reads off tokens, or why there is nothing."""

        def make() -> tuple[TokenFeatures | None, str | None]:
            found, spec = self.shared(one, hookpoint), self.spec
            try:
                made = TokenFeatures.of(
                    found.tokens, found.folds, self._embedding, spec.seed, spec.structure.ladder
                )
            except NotEstimable as refusal:
                return None, str(refusal)
            return made, None

        return self._shelf.get(self._features_key(one, hookpoint), make)

    def tokens(self, one: ArmModel, hookpoint: str) -> TokenTable:
        """Return the held-out tokens as one arm reads them."""
        kept = self.heldout[hookpoint]
        rows = self.given.rows_of(one)["heldout"]
        return TokenTable(rows, kept.places, tuple(self.given.vocabulary))

    @functools.cached_property
    def _embedding(self) -> Any:
        trained = ArmModel(self.spec.trained_arm, None)
        found = artefacts.read_head(self.store.path(self.plan.build[trained]), "embedding")
        return None if found is None else found.numpy()

    def _codes(self, one: ArmModel, hookpoint: str, sae: str, sae_seed: int) -> Any:
        step = self.plan.measure[one, hookpoint, sae, sae_seed]
        return artefacts.read_codes(self.store.path(step))

    def _activations(self, one: ArmModel, hookpoint: str) -> torch.Tensor:
        def make() -> torch.Tensor:
            read = artefacts.read_activations(self.store.path(self.plan.harvest[one]), hookpoint)
            usable = self.heldout[hookpoint].usable
            return read if usable.all() else read[torch.from_numpy(np.flatnonzero(usable))]

        return self._shelf.get(self._activations_key(one, hookpoint), make)

    def reading(self, one: ArmModel, hookpoint: str, sae: str, sae_seed: int) -> Encoded:
        """Return one SAE on the held-out tokens."""
        return Encoded(
            self._sae(one, hookpoint, sae, sae_seed),
            self.shared(one, hookpoint).tokens,
            self._codes(one, hookpoint, sae, sae_seed),
            self._activations(one, hookpoint),
        )

    def _sae(self, one: ArmModel, hookpoint: str, sae: str, sae_seed: int) -> SAE:
        trained = self.store.path(self.plan.train[one])
        return saelens.read(artefacts.sae_folder(trained, hookpoint, sae, sae_seed))

    @property
    def _method_settings(self) -> MethodsSpec:
        """The methods' settings; a dictionary's own bits are spread over the training tokens."""
        given, tokens = self.spec.methods, self.spec.text.train_tokens
        if given.stream_tokens is not None:
            return given
        return given.model_copy(update={"stream_tokens": tokens})

    # --- the jobs ----------------------------------------------------------------------------------

    def _profile(
        self, advance: Advance, one: ArmModel, hookpoint: str, sae: str, sae_seed: int
    ) -> None:
        """Profile the latents of one SAE."""
        place = (one, hookpoint, sae, sae_seed)
        with (
            self._shelf.serving(self._used(*place)),
            self.store.write(self.plan.profile[place]) as draft,
        ):
            artefacts.write_profile(draft, self._profiled(place, advance))

    def _profiled(self, place: Place, advance: Advance) -> Profile:
        one, hookpoint, _, _ = place
        reading, folds, spec = self.reading(*place), self.shared(one, hookpoint).folds, self.spec
        weights = document_weights(
            reading.tokens.n_documents, spec.measurement.replicates, spec.seed
        )
        around = self._around(place, reading.sae)
        advance(1)
        return profile(
            reading, folds, around, weights, spec.structure, spec.measurement, spec.seed, advance
        )

    def _around(self, place: Place, sae: SAE) -> Around:
        one, hookpoint, label, sae_seed = place
        against, sibling, reasons = self._held(one, sae_seed)
        placebo = None
        if against is not None:
            placebo = Placebo(
                f"{against.one.label}, SAE seed {against.sae_seed}",
                self._activations(against.one, hookpoint),
                self._codes(against.one, hookpoint, label, against.sae_seed),
            )
        why = self._features(one, hookpoint)[1]
        if why is not None:
            reasons["ladder"] = why
        return Around(
            placebo,
            None if sibling is None else self._codes(one, hookpoint, label, sibling.sae_seed),
            None if sibling is None else self._sharing(place, sibling.sae_seed),
            self._repeats(one, hookpoint, sae, reasons),
            artefacts.read_head(self.store.path(self.plan.build[one]), "unembedding"),
            self._embedding,
            self._readouts(one, hookpoint, against),
            self._whole(one, hookpoint, against),
            self.shared(one, hookpoint).domains,
            reasons,
        )

    def _sharing(self, place: Place, sibling: int) -> Sharing:
        """Return what an SAE has in common with that of another seed, found once for both."""
        one, hookpoint, label, sae_seed = place
        pair = frozenset((sae_seed, sibling))

        def make() -> dict[int, Sharing]:
            low, high = sorted(pair)
            rows = [_rows(self._sae(one, hookpoint, label, seed)) for seed in (low, high)]
            found = sharing_of_both(
                rows[0], rows[1], self.spec.structure.assignment, self.spec.seed
            )
            return {low: found[0], high: found[1]}

        return self._shelf.get(("sharing", one, hookpoint, label, pair), make)[sae_seed]

    def _whole(self, one: ArmModel, hookpoint: str, against: Held | None) -> Any:
        """Return the ladder of the activations themselves, made once per arm's model.

        Its last rung has the latents of the placebo's first SAE, whichever SAE is profiled.
        """
        readouts = self._readouts(one, hookpoint, against)
        if readouts is None:
            return None

        def make() -> Any:
            codes, spec = None, self.spec
            if against is not None:
                first = next(iter(spec.saes))
                codes = self._codes(against.one, hookpoint, first, spec.sae_seeds[0])
            values = self._activations(one, hookpoint).float().numpy()
            return whole_ladder(values, readouts, codes, spec.structure.ladder)

        return self._shelf.get(("whole", one, hookpoint), make)

    def _readouts(self, one: ArmModel, hookpoint: str, against: Held | None) -> Readouts | None:
        """Return what the ladder reads, made once for all SAEs that are held against one model."""
        features, _ = self._features(one, hookpoint)
        if features is None:
            return None

        def make() -> Readouts:
            x = None if against is None else self._activations(against.one, hookpoint)
            return Readouts.of(features, x)

        return self._shelf.get(self._readouts_key(one, hookpoint, against), make)

    def _repeats(
        self, one: ArmModel, hookpoint: str, sae: SAE, reasons: dict[str, str]
    ) -> tuple[Any, Any] | None:
        read = artefacts.read_repeats(self.store.path(self.plan.harvest[one]), hookpoint)
        if read is None:
            reasons["repeats"] = "its activations are drawn: no model reads repeated blocks"
            return None
        fresh, repeated = (_csr(sae, x) for x in read)
        return fresh, repeated

    def _methods(self, advance: Advance, one: ArmModel, hookpoint: str) -> None:
        """Fit existing methods on one arm's activations, and count bits beside its SAEs."""
        spec = self.spec
        tokens, _, folds = self.shared(one, hookpoint)
        saes = {
            (label, seed): self.reading(one, hookpoint, label, seed)
            for label in spec.saes
            for seed in spec.sae_seeds
        }
        shown = spec.measurement
        weights = document_weights(tokens.n_documents, shown.replicates, spec.seed)
        step = self.plan.methods[one, hookpoint]
        with self.store.write(step) as draft:
            try:
                found = compare_methods(
                    self._activations(one, hookpoint),
                    tokens,
                    folds,
                    {f"{label}/{seed}": reading for (label, seed), reading in saes.items()},
                    artefacts.read_head(self.store.path(self.plan.build[one]), "embedding"),
                    spec.seed,
                    self._method_settings,
                    advance,
                )
            except NotEstimable as refusal:
                found = refused(str(refusal))
            measured = [
                (label, seed, *saved(found, f"{label}/{seed}", weights, spec.methods))
                for label, seed in saes
            ]
            artefacts.write_methods(draft, found, measured)


def _rows(sae: SAE) -> tuple[np.ndarray, np.ndarray]:
    """Return the encoder's and the decoder's directions, a row per latent."""
    return sae.params["W_enc"].t().contiguous().numpy(), sae.params["W_dec"].numpy()


def _csr(sae: SAE, x: torch.Tensor) -> Any:
    """Return the SAE's codes of `x` as scipy CSR [token, d_sae]."""
    from scipy.sparse import csr_matrix

    codes = sae.encode(x)
    parts = (codes.values.numpy(), codes.latents.numpy().astype(np.int32), codes.offsets.numpy())
    return csr_matrix(parts, shape=(len(x), sae.d_sae))
