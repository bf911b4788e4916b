"""What the stages of a trial have written, read back: the one reader that every later stage takes.

| stage | files |
|---|---|
| tokenize | rows.safetensors, names.json, labels.json where text is Python, text.json, vocabulary.json |
| build | recipe.json, card.json, heads.safetensors (harvest and train keep a copy of the recipe) |
| harvest | activations, norms, repeats.safetensors, calibration.safetensors and .json, precision, drawn |
| fit_text | activations, norms.safetensors, calibration.safetensors and .json, of the text to fit on |
| train | <hookpoint>/<sae>/seed-<n>/ (SAELens 6), lookup.safetensors, gaussian.json, log.parquet |
| measure | measurements, coverage.parquet, replicates and codes.safetensors |
| encode | codes.safetensors, of the text to fit on |
| profile | latents, measurements, passages, sensitivity, curve.parquet, replicates.safetensors |
| baselines | baselines, measurements, marginal.parquet, replicates.safetensors, choice.json |
| use, audit | the tables of `trial.tables` |
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sae_placebo.baselines.marginal import Choice
from sae_placebo.baselines.sampling import FitText
from sae_placebo.core.lazy import torch
from sae_placebo.core.progress import Progress
from sae_placebo.core.shared_values import Shelf
from sae_placebo.core.store import Store, read_json
from sae_placebo.data.rows import Rows
from sae_placebo.latents.base import Encoded, Folds, TokenTable
from sae_placebo.latents.code_files import read_codes
from sae_placebo.latents.columns.domains import Domains, domains_of
from sae_placebo.latents.ladder.fit_text import LadderText, Stacked, rows_to_fit_on
from sae_placebo.latents.measurement import HeldOut, held_out
from sae_placebo.models import activation_files
from sae_placebo.models.hookpoints import MODULE_INPUTS, parse_hookpoint
from sae_placebo.saes import SAE
from sae_placebo.saes.formats import saelens
from sae_placebo.trial.plan import ArmModel, Place, Plan
from sae_placebo.trial.spec import TrialSpec
from sae_placebo.trial.stages.materials import Materials
from sae_placebo.trial.table_files import read_table


def sae_folder(folder: Path, hookpoint: str, sae: str, sae_seed: int) -> Path:
    """Return where a train artefact keeps one SAE."""
    return folder / hookpoint / sae / f"seed-{sae_seed}"


class Shared(NamedTuple):
    """All that is read off the held-out tokens of one hookpoint, once for every SAE that reads them."""

    tokens: TokenTable
    domains: Domains
    folds: Folds


@dataclasses.dataclass
class Artefacts:
    """A trial's artefacts: its plan says which, its store has them.

    What several jobs read at a time is read once: a stage announces its jobs to `shelf`, which keeps a
    value until the last of them is over.

    Attributes:
        plan: The trial's plan.
        store: Where artefacts are.
        progress: Where progress is shown.
    """

    plan: Plan
    store: Store
    progress: Progress
    shelf: Shelf = dataclasses.field(default_factory=Shelf)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._shared: dict[tuple[str, str], Shared] = {}

    @property
    def spec(self) -> TrialSpec:
        """Return the trial's protocol."""
        return self.plan.spec

    @functools.cached_property
    def materials(self) -> Materials:
        """Return the reference model and the text, each made when it is first needed."""
        return Materials(self.plan, self.store, self.progress)

    # --- the held-out tokens -----------------------------------------------------------------------

    @functools.cached_property
    def heldout(self) -> dict[str, HeldOut]:
        """Return, by hookpoint, the held-out tokens that no arm leaves out."""
        folders = [self.store.path(step) for step in self.plan.harvests]
        return {
            name: held_out(
                self.materials.rows["heldout"],
                [activation_files.outliers(folder, name) for folder in folders],
                self.materials.vocabulary,
            )
            for name in self.spec.hookpoints
        }

    @functools.cached_property
    def to_fit_on(self) -> dict[str, HeldOut]:
        """Return, by hookpoint, the tokens of the text to fit on that no arm leaves out."""
        folders = [self.store.path(step) for step in self.plan.fit_texts]
        rows, vocabulary = self._rows_to_fit_on(self.materials.rows), self.materials.vocabulary
        return {
            name: held_out(rows, [activation_files.outliers(f, name) for f in folders], vocabulary)
            for name in self.spec.hookpoints
        }

    def rows_to_fit_on(self, one: ArmModel) -> Rows:
        """Return the rows of the text to fit on as one arm reads them."""
        return self._rows_to_fit_on(self.materials.rows_of(one))

    def _rows_to_fit_on(self, rows: Mapping[str, Rows]) -> Rows:
        spec = self.spec
        return rows_to_fit_on(rows["train"], spec.structure.ladder.fit_tokens, spec.seed)

    def ladder_text(self, one: ArmModel, hookpoint: str) -> LadderText:
        """Return the tokens that the ladders of an arm are fitted and scored on.

        Raises:
            NotEstimable: too few documents to fit, choose and score on.
        """
        fit, found = self.tokens_to_fit_on(one, hookpoint), self.shared(one, hookpoint)
        return LadderText.beside(found.tokens, found.folds, fit, self.spec.seed)

    def tokens_to_fit_on(self, one: ArmModel, hookpoint: str) -> TokenTable:
        """Return the tokens of the text to fit on as one arm reads them."""
        rows, places = self.rows_to_fit_on(one), self.to_fit_on[hookpoint].places
        return TokenTable(rows, places, tuple(self.materials.vocabulary))

    def tokens(self, one: ArmModel, hookpoint: str) -> TokenTable:
        """Return the held-out tokens as one arm reads them."""
        rows = self.materials.rows_of(one)["heldout"]
        return TokenTable(rows, self.heldout[hookpoint].places, tuple(self.materials.vocabulary))

    def shared(self, one: ArmModel, hookpoint: str) -> Shared:
        """Return what is read off tokens alone, made once for all arms that read the same ones."""
        key = (self.plan.text[one].key, hookpoint)
        with self._lock:
            if key not in self._shared:
                tokens, seed = self.tokens(one, hookpoint), self.spec.seed
                folds = Folds.of(tokens.documents, tokens.n_documents, seed)
                self._shared[key] = Shared(tokens, domains_of(tokens, seed), folds)
            return self._shared[key]

    # --- an arm's model ----------------------------------------------------------------------------

    def head(self, one: ArmModel, name: str) -> torch.Tensor | None:
        """Return `embedding` or `unembedding` of an arm's model, if it has it: [vocabulary, width]."""
        return activation_files.read_head(self.store.path(self.plan.build[one]), name)

    def directions(self, one: ArmModel, name: str, hookpoint: str) -> torch.Tensor | None:
        """Return what `head` does; None where a module's input is read: its rows are no directions there."""
        if parse_hookpoint(hookpoint).site in MODULE_INPUTS:
            return None
        return self.head(one, name)

    @functools.cached_property
    def embedding(self) -> Any:
        """Return the trained model's W_E [vocabulary, width], None where it has none."""
        found = self.head(ArmModel(self.spec.trained_arm, None), "embedding")
        return None if found is None else found.numpy()

    def activations_key(self, one: ArmModel, hookpoint: str) -> Hashable:
        """Return the shelf's key of an arm's activations; arms that share a harvest have the same."""
        return "activations", self.plan.harvest[one].key, hookpoint

    def activations(self, one: ArmModel, hookpoint: str) -> torch.Tensor:
        """Return an arm's activations on the held-out tokens that no arm leaves out: [token, d_in]."""
        step = self.plan.harvest[one]

        def read() -> torch.Tensor:
            found = activation_files.read_activations(self.store.path(step), hookpoint)
            usable = self.heldout[hookpoint].usable
            return found if usable.all() else found[torch.from_numpy(np.flatnonzero(usable))]

        return self.shelf.get(self.activations_key(one, hookpoint), read)

    def fit_activations(self, one: ArmModel, hookpoint: str) -> torch.Tensor:
        """Return an arm's activations on the text to fit on, at tokens that no arm leaves out."""
        folder = self.store.path(self.plan.fit_text[one])
        found = activation_files.read_activations(folder, hookpoint)
        usable = self.to_fit_on[hookpoint].usable
        return found if usable.all() else found[torch.from_numpy(np.flatnonzero(usable))]

    def text_to_fit_on(self, one: ArmModel, hookpoint: str) -> FitText:
        """Return the text that existing methods are fitted on: what an arm's SAEs were trained on."""
        spec, usable = self.spec, np.flatnonzero(self.to_fit_on[hookpoint].usable)
        places = self.to_fit_on[hookpoint].places
        codes = {
            f"{sae}/{seed}": read_codes(
                self.store.path(self.plan.encode[one, hookpoint, sae, seed])
            )
            for sae in spec.saes
            for seed in spec.sae_seeds_of(one.arm, sae)
        }
        # mapped, so that no copy of the whole is made
        folder = self.store.path(self.plan.fit_text[one])
        return FitText(
            activation_files.read_activations(folder, hookpoint),
            usable,
            self.rows_to_fit_on(one).token_ids[places[:, 0], places[:, 1]],
            codes,
            spec.text.train_tokens,
        )

    def chosen_method(self, hookpoint: str) -> Choice:
        """Return the existing method that is best in the trained arm, as its baselines have found."""
        step = self.plan.baselines[ArmModel(self.spec.trained_arm, None), hookpoint]
        return Choice(**read_json(self.store.path(step) / "choice.json"))

    def repeats(self, one: ArmModel, hookpoint: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return activations on fresh and on repeated random blocks; None where no model was read."""
        return activation_files.read_repeats(self.store.path(self.plan.harvest[one]), hookpoint)

    # --- an SAE ------------------------------------------------------------------------------------

    def sae(self, place: Place) -> SAE:
        """Return a trained SAE, in model units."""
        trained = self.store.path(self.plan.train[place[0]])
        return saelens.read(sae_folder(trained, *place[1:]))

    def codes(self, place: Place) -> Any:
        """Return an SAE's codes on the held-out tokens that no arm leaves out: CSR [token, d_sae]."""
        return read_codes(self.store.path(self.plan.measure[place]))

    def ladder_codes(self, place: Place) -> Stacked:
        """Return an SAE's codes at the tokens of `ladder_text`."""
        return Stacked([self.codes(place), read_codes(self.store.path(self.plan.encode[place]))])

    def encoded(self, place: Place) -> Encoded:
        """Return an SAE with these tokens, its codes of them, and their activations."""
        one, hookpoint, *_ = place
        return Encoded(
            self.sae(place),
            self.shared(one, hookpoint).tokens,
            self.codes(place),
            self.activations(one, hookpoint),
        )

    def latents(self, place: Place) -> Any:
        """Return what its profile says of each latent of an SAE: a DataFrame, one row per latent."""
        return read_table(self.store.path(self.plan.profile[place]) / "latents.parquet")
