"""The stages behind measuring: profiles of latents, and existing methods beside the SAEs.

Both read what other stages left, and every SAE is a job of its own, so that as many run at once as there
are threads.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from sae_placebo import artefacts
from sae_placebo.errors import NotEstimable
from sae_placebo.interop import saelens
from sae_placebo.lazy import torch
from sae_placebo.materials import Materials
from sae_placebo.measurement import HeldOut
from sae_placebo.methods.base import MethodsSpec
from sae_placebo.methods.compare import compare_methods
from sae_placebo.methods.saved import refused, saved
from sae_placebo.placebos import Held, placebo_of, sibling_of
from sae_placebo.plans import ArmModel, Place, Plan
from sae_placebo.profiling import Around, profile
from sae_placebo.progress import Progress
from sae_placebo.protocol import TrialSpec
from sae_placebo.saes import SAE
from sae_placebo.saes.crew import Crew
from sae_placebo.statistics import document_weights
from sae_placebo.store import Step, Store
from sae_placebo.structure.base import Folds, Placebo, Reading, TokenTable
from sae_placebo.structure.domains import Domains, domains_of
from sae_placebo.structure.ladder import whole_ladder
from sae_placebo.structure.predictors import Readouts, TokenFeatures


class Shared(NamedTuple):
    """What is read off the held-out tokens of one hookpoint, for every SAE that reads them."""

    tokens: TokenTable
    features: TokenFeatures | None
    domains: Domains
    folds: Folds
    why: str | None = None
    """Why there are no features."""


@dataclass
class Profiles:
    """What is said about SAEs once all of them are measured.

    Args:
        plan: Of the trial.
        store: Where artefacts are.
        given: Tokens and vocabulary.
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
        """The trial's protocol."""
        return self.plan.spec

    def run(self) -> None:
        """Profile every SAE, then fit existing methods on every arm; what is there is kept."""
        self._each("profile", "SAEs", self.plan.match, self._match)
        self._each("compare methods on", "models", self.plan.methods, self._methods)

    def _each(
        self, verb: str, unit: str, steps: Mapping[Any, Step], work: Callable[..., None]
    ) -> None:
        left = {s.key: at for at, s in steps.items() if self.store.find(s) is None}
        if not left:
            return
        # one seed after the other: two at a time are then of two models, and neither waits for what
        # SAEs of one model share
        places = sorted(left.values(), key=lambda at: at[3] if len(at) > 3 else 0)
        jobs = [functools.partial(work, *at) for at in places]
        label = f"{verb} {len(jobs)} {unit}"
        with (
            self.progress.track(label, len(jobs), unit) as advance,
            warnings.catch_warnings(),  # here, since filters belong to all threads at once
            _one_blas_thread(),
            Crew() as crew,
        ):
            warnings.filterwarnings("ignore", module=r"sklearn\.decomposition\.")
            for _ in crew.each(jobs):
                advance(1)

    # --- what several jobs read --------------------------------------------------------------------

    def tokens(self, one: ArmModel, hookpoint: str) -> TokenTable:
        """Return the held-out tokens as one arm reads them."""
        kept = self.heldout[hookpoint]
        rows = self.given.rows_of(one)["heldout"]
        return TokenTable(rows, kept.places, tuple(self.given.vocabulary))

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._features: dict[tuple[str, str], Shared] = {}
        self._locks: dict[tuple[ArmModel, str], threading.Lock] = {}
        self._wholes: dict[tuple[ArmModel, str], Any] = {}
        self._made: dict[tuple[str, str, ArmModel | None], Readouts] = {}

    def features(self, one: ArmModel, hookpoint: str) -> Shared:
        """Return what is read off tokens alone, made once for all arms that read the same ones."""
        key = (self.plan.text[one].key, hookpoint)
        with self._lock:
            if key not in self._features:
                tokens, spec = self.tokens(one, hookpoint), self.spec
                folds = Folds.of(tokens.documents, tokens.n_documents, spec.seed)
                made, why = None, None
                try:
                    made = TokenFeatures.of(
                        tokens, folds, self._embedding, spec.seed, spec.structure.ladder
                    )
                except NotEstimable as refusal:
                    why = str(refusal)
                domains = domains_of(tokens, spec.seed)
                self._features[key] = Shared(tokens, made, domains, folds, why)
            return self._features[key]

    @functools.cached_property
    def _embedding(self) -> Any:
        trained = ArmModel(self.spec.trained_arm, None)
        found = artefacts.read_head(self.store.path(self.plan.build[trained]), "embedding")
        return None if found is None else found.numpy()

    def _codes(self, one: ArmModel, hookpoint: str, sae: str, sae_seed: int) -> Any:
        step = self.plan.measure[one, hookpoint, sae, sae_seed]
        return artefacts.read_codes(self.store.path(step))

    def _activations(self, one: ArmModel, hookpoint: str) -> torch.Tensor:
        read = artefacts.read_activations(self.store.path(self.plan.harvest[one]), hookpoint)
        return read[torch.from_numpy(self.heldout[hookpoint].usable)]

    def reading(self, one: ArmModel, hookpoint: str, sae: str, sae_seed: int) -> Reading:
        """Return one SAE on the held-out tokens."""
        return Reading(
            self._sae(one, hookpoint, sae, sae_seed),
            self.features(one, hookpoint).tokens,
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

    def _match(self, one: ArmModel, hookpoint: str, sae: str, sae_seed: int) -> None:
        """Profile the latents of one SAE."""
        spec, place = self.spec, (one, hookpoint, sae, sae_seed)
        reading, folds = self.reading(*place), self.features(one, hookpoint).folds
        n_documents, shown = reading.tokens.n_documents, spec.measurement
        weights = document_weights(n_documents, shown.replicates, spec.seed)
        with self.store.write(self.plan.match[place]) as draft:
            found = profile(
                reading,
                folds,
                self._around(place, reading.sae),
                weights,
                spec.structure,
                shown,
                spec.seed,
            )
            artefacts.write_profile(draft, found)

    def _around(self, place: Place, sae: SAE) -> Around:
        one, hookpoint, label, sae_seed = place
        reasons: dict[str, str] = {}

        def held(name: str, find: Callable[..., Held]) -> Held | None:
            try:
                return find(self.spec, one, sae_seed)
            except NotEstimable as refusal:
                reasons[name] = str(refusal)
                return None

        against, sibling = held("placebo", placebo_of), held("sibling", sibling_of)
        placebo = None
        if against is not None:
            placebo = Placebo(
                f"{against.one.label}, SAE seed {against.sae_seed}",
                self._activations(against.one, hookpoint),
                self._codes(against.one, hookpoint, label, against.sae_seed),
            )
        shared = self.features(one, hookpoint)
        if shared.why is not None:
            reasons["ladder"] = shared.why
        return Around(
            placebo,
            None if sibling is None else self._codes(one, hookpoint, label, sibling.sae_seed),
            None if sibling is None else self._sae(one, hookpoint, label, sibling.sae_seed),
            self._repeats(one, hookpoint, sae, reasons),
            artefacts.read_head(self.store.path(self.plan.build[one]), "unembedding"),
            self._embedding,
            self._readouts(one, hookpoint, None if against is None else against.one),
            self._whole(one, hookpoint, against),
            shared.domains,
            reasons,
        )

    def _whole(self, one: ArmModel, hookpoint: str, against: Held | None) -> Any:
        """Return the ladder of the activations themselves, made once per arm's model.

        Its last rung has the latents of the placebo's first SAE, whichever SAE is profiled.
        """
        readouts = self._readouts(one, hookpoint, None if against is None else against.one)
        if readouts is None:
            return None
        with self._lock:
            lock = self._locks.setdefault((one, hookpoint), threading.Lock())
        with lock:
            if (one, hookpoint) not in self._wholes:
                codes, spec = None, self.spec
                if against is not None:
                    first = next(iter(spec.saes))
                    codes = self._codes(against.one, hookpoint, first, spec.sae_seeds[0])
                values = self._activations(one, hookpoint).float().numpy()
                whole = whole_ladder(values, readouts, codes, spec.structure.ladder)
                self._wholes[one, hookpoint] = whole
            return self._wholes[one, hookpoint]

    def _readouts(self, one: ArmModel, hookpoint: str, against: ArmModel | None) -> Readouts | None:
        """Return what the ladder reads, made once for all SAEs that are held against one model."""
        key = (self.plan.text[one].key, hookpoint, against)
        features = self.features(one, hookpoint).features
        if features is None:
            return None
        with self._lock:
            if key not in self._made:
                x = None if against is None else self._activations(against, hookpoint)
                self._made[key] = Readouts.of(features, x)
            return self._made[key]

    def _repeats(
        self, one: ArmModel, hookpoint: str, sae: SAE, reasons: dict[str, str]
    ) -> tuple[Any, Any] | None:
        read = artefacts.read_repeats(self.store.path(self.plan.harvest[one]), hookpoint)
        if read is None:
            reasons["repeats"] = "its activations are drawn: no model reads repeated blocks"
            return None
        fresh, repeated = (_csr(sae, x) for x in read)
        return fresh, repeated

    def _methods(self, one: ArmModel, hookpoint: str) -> None:
        """Fit existing methods on one arm's activations, and count bits beside its SAEs."""
        spec = self.spec
        shared = self.features(one, hookpoint)
        tokens, folds = shared.tokens, shared.folds
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
                )
            except NotEstimable as refusal:
                found = refused(str(refusal))
            measured = [
                (label, seed, *saved(found, f"{label}/{seed}", weights, spec.methods))
                for label, seed in saes
            ]
            artefacts.write_methods(draft, found, measured)


@contextlib.contextmanager
def _one_blas_thread() -> Iterator[None]:
    """Keep NumPy's and SciPy's products to one thread each: the jobs are what runs side by side.

    How such a product is split among threads depends on what else runs at the moment, and its last bits
    on how it is split.
    """
    import scipy.linalg  # noqa: F401  its library is limited only once it is loaded

    try:
        threadpoolctl: Any = importlib.import_module("threadpoolctl")
    except ImportError:  # comes with scikit-learn
        yield
        return
    with threadpoolctl.threadpool_limits(1, "blas"):
        yield


def _csr(sae: SAE, x: torch.Tensor) -> Any:
    """Return the SAE's codes of `x` as scipy CSR [token, d_sae]."""
    from scipy.sparse import csr_matrix

    codes = sae.encode(x)
    parts = (codes.values.numpy(), codes.latents.numpy().astype(np.int32), codes.offsets.numpy())
    return csr_matrix(parts, shape=(len(x), sae.d_sae))
