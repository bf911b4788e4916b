"""Every SAE's latents are profiled: what each is, and what of it a placebo and another seed have too."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import torch
from sae_placebo.core.progress import Advance
from sae_placebo.latents.code_files import read_codes
from sae_placebo.latents.ladder.fit_text import Stacked
from sae_placebo.latents.ladder.ladder import NO_PLACEBO, Ladder, ladder, no_ladder, whole_ladder
from sae_placebo.latents.ladder.predictors import Readouts
from sae_placebo.latents.ladder.token_features import TokenFeatures
from sae_placebo.latents.metrics.ladder_shares import rates_of
from sae_placebo.latents.partners.assignment import Sharing, sharing_of_both
from sae_placebo.latents.profile import PARTS, Around, Profile, profile
from sae_placebo.latents.rules.rules import RuleText
from sae_placebo.saes import SAE
from sae_placebo.stats.effects import document_weights
from sae_placebo.trial.artefacts import Artefacts
from sae_placebo.trial.placebos import Held, placebo_of, sibling_of
from sae_placebo.trial.plan import ArmModel, Place
from sae_placebo.trial.spec import TrialSpec
from sae_placebo.trial.stages.jobs import each_job
from sae_placebo.trial.table_files import write_replicates, write_table


def profile_saes(artefacts: Artefacts) -> None:
    """Profile every SAE that was not; those that read the same placebo model run together."""
    profiling, steps = _Profiling(artefacts), artefacts.plan.profile
    left = {s.key: place for place, s in steps.items() if artefacts.store.find(s) is None}
    places = list(left.values())
    for place in places:
        artefacts.shelf.announce(profiling.used(place))
    label = f"profile {len(places)} SAEs"
    each_job(artefacts.progress, label, profiling.batches(places), 2 + PARTS, profiling.work)


class _Held(NamedTuple):
    """The SAEs that an SAE is compared with, latent by latent; and why there is none, by which."""

    against: Held | None
    sibling: Held | None
    reasons: dict[str, str]


@dataclass
class _Profiling:
    """The profiles of one trial's SAEs, and what several of them read."""

    artefacts: Artefacts

    @property
    def spec(self) -> TrialSpec:
        """Return the trial's protocol."""
        return self.artefacts.spec

    def work(self, place: Place, advance: Advance) -> None:
        """Profile the latents of one SAE and write what is found."""
        step = self.artefacts.plan.profile[place]
        with (
            self.artefacts.shelf.serving(self.used(place)),
            self.artefacts.store.write(step) as draft,
        ):
            found = self._profiled(place, advance)
            for name in ("latents", "measurements", "passages", "sensitivity", "curve"):
                write_table(draft / f"{name}.parquet", getattr(found, name))
            write_replicates(draft, found.replicates)

    def batches(self, places: Sequence[Place]) -> list[list[Place]]:
        """Return the SAEs that are compared with one model together, so that few models are in memory.

        In a batch there is a lane of models for each thread, one SAE of a model after the other, so that
        two that run at once seldom wait for what both read.
        """
        models: dict[Hashable, list[Place]] = {}
        for at in places:
            models.setdefault(at[:2], []).append(at)
        batches: dict[Hashable, list[list[Place]]] = {}
        for own in models.values():
            one, hookpoint = own[0][:2]
            key = self._readouts_key(one, hookpoint, self._held(own[0]).against)
            lanes = batches.setdefault(key, [[] for _ in range(torch.get_num_threads())])
            min(lanes, key=len).extend(own)
        return [
            [at for row in itertools.zip_longest(*lanes) for at in row if at is not None]
            for lanes in batches.values()
        ]

    # --- what several jobs read --------------------------------------------------------------------

    def used(self, place: Place) -> list[Hashable]:
        """Return the shelf's keys of all that an SAE's profile shares with others."""
        one, hookpoint, sae, sae_seed = place
        held = self._held(place)
        against = held.against
        models = [one] if against is None else [one, against.one]
        keys = [self.artefacts.activations_key(model, hookpoint) for model in models]
        keys += [self._fit_key(model, hookpoint) for model in models]
        keys += [
            ("rates", hookpoint, sae, sae_seed),
            self._features_key(one, hookpoint),
            self._rules_key(one, hookpoint),
            ("whole", one, hookpoint),
        ]
        keys.append(self._readouts_key(one, hookpoint, against))
        if held.sibling is not None:
            pair = frozenset((sae_seed, held.sibling.sae_seed))
            keys.append(("sharing", one, hookpoint, sae, pair))
        return keys

    def _fit_key(self, one: ArmModel, hookpoint: str) -> Hashable:
        return "activations to fit on", self.artefacts.plan.fit_text[one].key, hookpoint

    def _features_key(self, one: ArmModel, hookpoint: str) -> Hashable:
        return "features", self.artefacts.plan.text[one].key, hookpoint

    def _rules_key(self, one: ArmModel, hookpoint: str) -> Hashable:
        return "rules", self.artefacts.plan.text[one].key, hookpoint

    def _readouts_key(self, one: ArmModel, hookpoint: str, against: Held | None) -> Hashable:
        model = None if against is None else against.one
        return "readouts", self.artefacts.plan.text[one].key, hookpoint, model

    def _held(self, place: Place) -> _Held:
        """Return what an SAE is held against."""
        one, _, sae, sae_seed = place
        reasons: dict[str, str] = {}

        def held(name: str, find: Callable[..., Held]) -> Held | None:
            try:
                return find(self.spec, one, sae, sae_seed)
            except NotEstimable as refusal:
                reasons[name] = str(refusal)
                return None

        return _Held(held("placebo", placebo_of), held("sibling", sibling_of), reasons)

    def _features(self, one: ArmModel, hookpoint: str) -> tuple[TokenFeatures | None, str | None]:
        """Return what the ladder reads off tokens, or why there is nothing."""

        def make() -> tuple[TokenFeatures | None, str | None]:
            spec = self.spec
            try:
                text = self.artefacts.ladder_text(one, hookpoint)
            except NotEstimable as refusal:
                return None, str(refusal)
            how, embedding = spec.structure.ladder, self.artefacts.embedding
            return TokenFeatures.of(text, embedding, spec.seed, how), None

        return self.artefacts.shelf.get(self._features_key(one, hookpoint), make)

    # --- one SAE -----------------------------------------------------------------------------------

    def _profiled(self, place: Place, advance: Advance) -> Profile:
        one, hookpoint, _, _ = place
        reading, spec = self.artefacts.encoded(place), self.spec
        folds = self.artefacts.shared(one, hookpoint).folds
        weights = document_weights(
            reading.tokens.n_documents, spec.measurement.replicates, spec.seed
        )
        climbed = self._climbed(place)
        advance(1)
        around = self._around(place, reading.sae, climbed)
        advance(1)
        return profile(
            reading, folds, around, weights, spec.structure, spec.measurement, spec.seed, advance
        )

    def _climbed(self, place: Place) -> Ladder:
        """Return the ladder of an SAE's latents."""
        one, hookpoint, label, _ = place
        against, _, reasons = self._held(place)
        readouts = self._readouts(one, hookpoint, against)
        if readouts is None:
            n_groups = self.artefacts.shared(one, hookpoint).folds.n_groups
            why = self._features(one, hookpoint)[1] or "no features were read off the tokens"
            return no_ladder(self.spec.saes[label].d_sae, 1 + n_groups, why)
        codes, whole = self.artefacts.ladder_codes(place), self._whole(one, hookpoint, against)
        others = None
        if against is not None:
            other = (against.one, hookpoint, label, against.sae_seed)
            others = self.artefacts.ladder_codes(other)
        climbed = ladder(codes, readouts, others, whole)
        told = climbed.reasons.items()
        better = {r: reasons["placebo"] if why == NO_PLACEBO else why for r, why in told}
        return dataclasses.replace(climbed, reasons=better)

    def _around(self, place: Place, sae: SAE, climbed: Ladder) -> Around:
        one, hookpoint, label, _ = place
        against, sibling, reasons = self._held(place)
        placebo = None
        if against is not None:
            placebo = self.artefacts.codes((against.one, hookpoint, label, against.sae_seed))
        return Around(
            climbed,
            placebo,
            self._rates(place),
            None
            if sibling is None
            else self.artefacts.codes((one, hookpoint, label, sibling.sae_seed)),
            None if sibling is None else self._sharing(place, sibling.sae_seed),
            self._repeats(one, hookpoint, sae, reasons),
            self.artefacts.directions(one, "unembedding", hookpoint),
            self.artefacts.embedding,
            self.artefacts.shared(one, hookpoint).domains,
            self._rule_text(one, hookpoint),
            read_codes(self.artefacts.store.path(self.artefacts.plan.encode[place])),
            reasons,
        )

    def _rule_text(self, one: ArmModel, hookpoint: str) -> RuleText:
        """Return the text of rules, made once for all arms that read it."""

        def make() -> RuleText:
            fit, held = (
                self.artefacts.tokens_to_fit_on(one, hookpoint),
                self.artefacts.shared(one, hookpoint),
            )
            return RuleText.of(held.tokens, fit, self.spec.structure.rules, self.spec.seed)

        return self.artefacts.shelf.get(self._rules_key(one, hookpoint), make)

    def _rates(self, place: Place) -> Any:
        """Return the bins of how often the trained arm's latents fire, of the SAE of the same seed."""
        _, hookpoint, label, sae_seed = place
        trained = ArmModel(self.spec.trained_arm, None)
        seeds = self.spec.sae_seeds_of(trained.arm, label)
        own = sae_seed if sae_seed in seeds else seeds[0]
        least = self.spec.measurement.thresholds.min_firings

        def make() -> Any:
            codes = self.artefacts.codes((trained, hookpoint, label, own))
            return rates_of(np.asarray(codes.getnnz(axis=0), dtype=np.int64), least)

        return self.artefacts.shelf.get(("rates", hookpoint, label, sae_seed), make)

    def _sharing(self, place: Place, sibling: int) -> Sharing:
        """Return what an SAE has in common with that of another seed, found once for both."""
        one, hookpoint, label, sae_seed = place
        pair = frozenset((sae_seed, sibling))

        def make() -> dict[int, Sharing]:
            low, high = sorted(pair)
            rows = [
                _rows(self.artefacts.sae((one, hookpoint, label, seed))) for seed in (low, high)
            ]
            found = sharing_of_both(
                rows[0], rows[1], self.spec.structure.assignment, self.spec.seed
            )
            return {low: found[0], high: found[1]}

        return self.artefacts.shelf.get(("sharing", one, hookpoint, label, pair), make)[sae_seed]

    def _ladder_activations(self, one: ArmModel, hookpoint: str) -> list[torch.Tensor]:
        """Return the activations at the tokens of `Artefacts.ladder_text`, in the parts that were read."""

        def read() -> torch.Tensor:
            return self.artefacts.fit_activations(one, hookpoint)

        to_fit_on = self.artefacts.shelf.get(self._fit_key(one, hookpoint), read)
        return [self.artefacts.activations(one, hookpoint), to_fit_on]

    def _whole(self, one: ArmModel, hookpoint: str, against: Held | None) -> Any:
        """Return the ladder of the activations themselves, made once per arm's model.

        Its last rung has the latents of the placebo's first SAE, whichever SAE is profiled.
        """

        def make() -> Any:
            codes, spec = None, self.spec
            if against is not None:
                first = next(iter(spec.saes))
                other = (against.one, hookpoint, first, spec.sae_seeds[0])
                codes = self.artefacts.ladder_codes(other)
            parts = self._ladder_activations(one, hookpoint)
            values, readouts = (
                Stacked([x.numpy() for x in parts]),
                self._readouts(one, hookpoint, against),
            )
            assert readouts is not None
            return whole_ladder(values, readouts, codes)

        return self.artefacts.shelf.get(("whole", one, hookpoint), make)

    def _readouts(self, one: ArmModel, hookpoint: str, against: Held | None) -> Readouts | None:
        """Return what the ladder reads, made once for all SAEs that are held against one model."""
        features, _ = self._features(one, hookpoint)
        if features is None:
            return None

        def make() -> Readouts:
            x = () if against is None else self._ladder_activations(against.one, hookpoint)
            return Readouts.of(features, x)

        return self.artefacts.shelf.get(self._readouts_key(one, hookpoint, against), make)

    def _repeats(
        self, one: ArmModel, hookpoint: str, sae: SAE, reasons: dict[str, str]
    ) -> tuple[Any, Any] | None:
        read = self.artefacts.repeats(one, hookpoint)
        if read is None:
            data = self.spec.arms[one.arm].data
            drawn = data is not None and data.of_activations
            reasons["repeats"] = (
                "its activations are drawn: no model reads repeated blocks"
                if drawn
                else "text.positions leaves out every position at which a random block is repeated"
            )
            return None
        fresh, repeated = (_csr(sae, x) for x in read)
        return fresh, repeated


def _rows(sae: SAE) -> tuple[np.ndarray, np.ndarray]:
    """Return the encoder's and the decoder's directions, a row per latent."""
    return sae.params["W_enc"].t().contiguous().numpy(), sae.params["W_dec"].numpy()


def _csr(sae: SAE, x: torch.Tensor) -> Any:
    """Return the SAE's codes of `x` as scipy CSR [token, d_sae]."""
    from scipy.sparse import csr_matrix

    codes = sae.encode(x)
    parts = (codes.values.numpy(), codes.latents.numpy().astype(np.int32), codes.offsets.numpy())
    return csr_matrix(parts, shape=(len(x), sae.d_sae))
