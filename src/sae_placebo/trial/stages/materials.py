"""Every arm of a trial is made of the reference model, the tokens, and their labels."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

from sae_placebo.core.errors import TextError
from sae_placebo.core.progress import Progress
from sae_placebo.core.store import Store
from sae_placebo.data import copies, text, token_files
from sae_placebo.data.readability import PREDICTORS, Readability, readability
from sae_placebo.models import loading as models
from sae_placebo.models.centring import centre
from sae_placebo.models.specs import no_tokenizer, vocabulary_size
from sae_placebo.trial.plan import ArmModel, Plan
from sae_placebo.trial.spec import TrialSpec


@dataclasses.dataclass
class Materials:
    """The reference model and the text of a trial, each made once and only when needed."""

    plan: Plan
    store: Store
    progress: Progress

    @property
    def spec(self) -> TrialSpec:
        """Return the protocol."""
        return self.plan.spec

    @functools.cached_property
    def source(self) -> str:
        """Return where the reference model is loaded from: a folder or a hub id."""
        step = self.plan.model
        if not self.plan.needs_conversion:
            return self.spec.model.id
        if self.store.find(step) is None:
            label = f"convert {self.spec.model.id}"
            with self.progress.track(label, 1, "model") as advance, self.store.write(step) as draft:
                models.convert(self.spec.model, draft)
                advance(1)
        return str(self.store.path(step))

    @functools.cached_property
    def reference(self) -> Any:
        """Return the trained model; every control is a changed copy of it."""
        source = self.source
        with self.progress.track("load the model", 1, "model") as advance:
            model = models.load_model(source, self.spec.model.revision)
            if self.spec.model.centred:
                centre(model)
            advance(1)
        return model

    @functools.cached_property
    def tokens(self) -> Path:
        """Return the folder of the tokenized text: one tokenization serves all arms."""
        step, spec = self.plan.tokenize, self.spec.text
        if self.store.find(step) is None:
            wanted, source = spec.train_tokens + spec.heldout_tokens, self.source
            with (
                self.progress.track("tokenize", wanted) as advance,
                self.store.write(step) as draft,
            ):
                tokenizer, n_ids = tokenizer_of(self.spec, source)
                found = text.cut(spec, tokenizer, self.spec.seed, advance, n_ids)
                if text.identify(spec) != step.settings["content"]:
                    raise TextError(
                        f"files of text.source {spec.source!r} changed while they were read; run again"
                    )
                token_files.write_rows(draft, found.splits)
                token_files.write_text_facts(draft, found.skipped, found.shared)
                given = found.ids_were_given
                words = text.vocabulary(tokenizer, n_ids if given else None)
                token_files.write_vocabulary(draft, words)
            if (repeated := copies.warning(found.shared)) is not None:
                self.progress.note(f"text: {repeated}")
        return self.store.path(step)

    @functools.cached_property
    def rows(self) -> dict[str, text.Rows]:
        """Return the rows of token ids of the splits `train` and `heldout`."""
        return token_files.read_rows(self.tokens)

    def rows_of(self, one: ArmModel) -> dict[str, text.Rows]:
        """Return the rows that one arm reads: the trial's own, or what its data control made of them."""
        step, arm = self.plan.text[one], self.spec.arms[one.arm]
        if step is self.plan.tokenize:
            return self.rows
        if self.store.find(step) is None:
            assert arm.data is not None
            with self.progress.track(f"text {one.label}", 1, "text") as advance:
                rewritten = arm.data.rewrite(self.rows, self.spec.seed, one.model_seed or 0)
                with self.store.write(step) as draft:
                    token_files.write_rows(draft, rewritten)
                advance(1)
        return token_files.read_rows(self.store.path(step))

    @functools.cached_property
    def readability(self) -> Readability | None:
        """Return how far each label of the held-out tokens can be read off tokens; None without labels."""
        step, rows = self.plan.readability, self.rows
        if step is None:
            return None
        if self.store.find(step) is None:
            train, heldout = rows["train"], rows["heldout"]
            n = len(PREDICTORS)
            with self.progress.track("readability", n, "predictors") as advance:
                found = None  # Python may be allowed and yet none of it drawn
                if train.labels is not None and heldout.labels is not None:
                    size = len(self.vocabulary)
                    found = readability(train, heldout, size, self.spec.seed, advance)
                with self.store.write(step) as draft:
                    token_files.write_readability(draft, found)
        return token_files.read_readability(self.store.path(step))

    @functools.cached_property
    def vocabulary(self) -> list[str]:
        """Return the text of each token id."""
        return token_files.read_vocabulary(self.tokens)


def tokenizer_of(spec: TrialSpec, source: str) -> tuple[Any, int | None]:
    """Return the model's tokenizer, or what stands for none, and how many token ids the model has.

    Args:
        spec: The trial.
        source: Where the model is loaded from.

    Raises:
        ModelError: there is none, and the text is no token ids.
    """
    missing = no_tokenizer(spec.model)
    # a dataset is not asked beforehand; it is refused where its first record is text
    if missing is not None and text.holds_ids(spec.text) is not False:
        return missing, missing.n_ids
    tokenizer = models.load_tokenizer(source, spec.model.revision)
    return tokenizer, vocabulary_size(spec.model)
