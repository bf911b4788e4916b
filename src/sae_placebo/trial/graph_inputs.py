"""What an attribution graph of a trial is made of: an arm's model, built again, and SAEs of the store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxtyping import Int64

from sae_placebo.core.errors import ModelError, SpecError, StoreError, unknown_name
from sae_placebo.core.lazy import torch
from sae_placebo.core.progress import Progress
from sae_placebo.core.store import Step, Store
from sae_placebo.data.text import TextSpec
from sae_placebo.data.tokenizing import Encoder, vocabulary
from sae_placebo.models.hookpoints import SITES, parse_hookpoint
from sae_placebo.models.loading import load_tokenizer
from sae_placebo.saes import SAE
from sae_placebo.trial.artefacts import Artefacts
from sae_placebo.trial.plan import ArmModel, Place, plan_steps
from sae_placebo.trial.recipes import read_hash
from sae_placebo.trial.spec import TrialSpec, load_trial
from sae_placebo.trial.stages.arm_models import arm_model

if TYPE_CHECKING:
    from sae_placebo.trial.results import Trial


class GraphChoice(NamedTuple):
    """Of which SAEs of a trial a graph is made; what is None is the trial's first.

    Attributes:
        arm: The arm; None for the trained one.
        sae: The label of the SAEs.
        hookpoints: The hookpoints; None for all of the trial's on the residual stream behind the embedding.
        sae_seed: The seed of the SAEs.
        model_seed: The re-draw of the arm's model, where it has several.
    """

    arm: str | None = None
    sae: str | None = None
    hookpoints: Sequence[str] | None = None
    sae_seed: int | None = None
    model_seed: int | None = None


@dataclass(frozen=True, eq=False)
class GraphInputs:
    """A model of a finished trial, with the SAEs that were trained on it.

    Attributes:
        artefacts: The trial's artefacts.
        places: Each SAE's name, the shallowest hookpoint first.
        saes: The SAEs, in model units.
        model: The arm's model.
        tokenizer: The reference's tokenizer.
        vocabulary: The text of each token id.
    """

    artefacts: Artefacts
    places: tuple[Place, ...]
    saes: tuple[SAE, ...]
    model: Any
    tokenizer: Any
    vocabulary: tuple[str, ...]

    @property
    def one(self) -> ArmModel:
        """Return the arm and its re-draw."""
        return self.places[0][0]

    @property
    def hookpoints(self) -> tuple[str, ...]:
        """Return the hookpoints, the shallowest first."""
        return tuple(place[1] for place in self.places)

    def require_heldout(self) -> None:
        """See to it that the store has all that is known of the SAEs on the trial's held-out tokens.

        Raises:
            StoreError: something of it is gone or damaged.
        """
        plan = self.artefacts.plan
        steps = [plan.tokenize, plan.text[self.one], *plan.harvests]
        require(self.artefacts.store, [*steps, *(plan.measure[place] for place in self.places)])

    def token_ids(self, prompt: str) -> Int64[torch.Tensor, " pos"]:
        """Return a prompt's token ids; see `token_ids`."""
        return token_ids(prompt, self.tokenizer, self.artefacts.spec.text)


def check_prompt(prompt: str) -> None:
    """Refuse what is no text.

    Raises:
        SpecError: it is empty, or holds half of a character.
    """
    if not isinstance(prompt, str):
        raise SpecError(f"the prompt is text; found {prompt!r:.80}")
    if not prompt:
        raise SpecError("the prompt is empty: give some text, such as 'def main('")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise SpecError(
            f"the prompt holds half of a character at position {error.start}; leave it out"
        ) from None


def token_ids(prompt: str, tokenizer: Any, text: TextSpec) -> Int64[torch.Tensor, " pos"]:
    """Return a prompt's token ids, cut as a trial's text is, behind BOS where its rows are.

    Raises:
        SpecError: it is no text or empty, it is longer than a row of the trial, or it holds a character
            that the tokenizer does not know.
    """
    check_prompt(prompt)
    ((ids, _),) = Encoder(tokenizer, text.special_tokens).encode([prompt], spans=False)
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is not None and unknown in ids:
        raise SpecError(
            f"token {ids.index(unknown) + 1} of the prompt is unknown to the model's tokenizer; leave "
            "such characters out"
        )
    bos = tokenizer.bos_token_id if text.bos == "auto" else None
    ids = [*([] if bos is None else [bos]), *ids]
    if len(ids) > text.context_tokens:
        raise SpecError(
            f"the prompt has {len(ids)} tokens, and the trial's rows, which its SAEs have read, "
            f"{text.context_tokens}; shorten it"
        )
    return torch.tensor(ids, dtype=torch.int64)


def open_inputs(trial: Trial, choice: GraphChoice, prompt: str, progress: Progress) -> GraphInputs:
    """Return an arm's model of a finished trial and its SAEs, and nothing is written.

    Args:
        trial: The trial, in its store.
        choice: Which SAEs are wanted.
        prompt: The prompt, which is refused, if it must be, before a model is loaded.
        progress: Where it is shown that a model is loaded and built.

    Raises:
        SpecError: the prompt cannot be read, or the trial has no such arm, SAE, hookpoint or seed.
        StoreError: the store has no such artefacts any more, or they are of other inputs.
        ModelError: the model cannot be loaded, or built with the same weights.
    """
    check_prompt(prompt)
    folder, spec = trial.folder.absolute(), _protocol(trial)
    places = _places(spec, choice)
    one = places[0][0]
    plan, store = plan_steps(spec), Store(folder.parents[1])
    train = plan.train[one]
    if train.key not in dict(trial.record.get("artefacts") or {}).values():
        raise StoreError(
            f"model or text of the trial in {str(folder)!r} are not those that it ran on, so its SAEs are "
            "of another model; put them back, or run the trial again"
        )
    require(store, [*([plan.model] if plan.needs_conversion else []), train])
    artefacts = Artefacts(plan, store, progress)
    tokenizer = load_tokenizer(artefacts.materials.source, spec.model.revision)
    token_ids(prompt, tokenizer, spec.text)
    with progress.track(f"build {one.label} again", 1, "model") as advance:
        model, recipe = arm_model(artefacts, one, [place[1] for place in places])
        advance(1)
    if recipe["read_hash"] != read_hash(store.path(train)):
        raise ModelError(
            f"the model of arm {one.label} has other weights than its SAEs were trained on (another torch?); "
            "go back to the versions that the trial ran with, which its trial.json names"
        )
    words = vocabulary(tokenizer)
    words += [f"<{i}>" for i in range(len(words), _n_ids(model))]
    saes = tuple(artefacts.sae(place) for place in places)
    return GraphInputs(artefacts, places, saes, model, tokenizer, tuple(words))


def _protocol(trial: Trial) -> TrialSpec:
    """Return the protocol of a finished trial, with arms and SAEs in their order.

    The record has them by name. Their order, which artefacts depend on, is that of the tables.
    """
    table, found = trial.measurements, dict(trial.record["spec"])
    for setting, column in (("arms", "arm"), ("saes", "sae")):
        named = dict(found[setting])
        order = [name for name in map(str, table[column].unique()) if name in named]
        found[setting] = {name: named[name] for name in dict.fromkeys([*order, *named])}
    return load_trial(found)


def _n_ids(model: Any) -> int:
    """Return how many token ids the model predicts, some of which its tokenizer may not have."""
    head = model.get_output_embeddings()
    return 0 if head is None else len(head.weight)


def require(store: Store, steps: Iterable[Step]) -> None:
    """See to it that the store has the artefacts of these steps, undamaged.

    Raises:
        StoreError: one is gone or damaged.
    """
    for step in {step.key: step for step in steps}.values():
        store.path(step)  # it raises where one is damaged
        if not store.has(step):
            raise StoreError(
                f"the store {str(store.root)!r} holds no {step.stage}/{step.folder_name} any more, which "
                "the graph is made of; run the trial again, which makes it anew"
            )


def _places(spec: TrialSpec, choice: GraphChoice) -> tuple[Place, ...]:
    """Return the SAEs that are asked for, the shallowest hookpoint first.

    Raises:
        SpecError: the trial has no such SAE.
    """
    arm = _known("arm", choice.arm, spec.arms, spec.trained_arm)
    data = spec.arms[arm].data
    if data is not None and data.of_activations:
        raise SpecError(
            f"activations of arm {arm!r} are drawn and no model goes on from them, so there is no graph; "
            "take another arm"
        )
    sae = _known("SAE", choice.sae, spec.saes, next(iter(spec.saes)))
    sae_seed = _among("sae_seed", choice.sae_seed, spec.sae_seeds)
    model_seed = _among("model_seed", choice.model_seed, spec.seeds_of(arm))
    asked = _on_the_stream(spec.hookpoints) if choice.hookpoints is None else choice.hookpoints
    if isinstance(asked, str) or not isinstance(asked, Iterable):
        asked = (asked,)
    found = list(dict.fromkeys(parse_hookpoint(name) for name in asked))
    if not found:
        raise SpecError(
            f"a graph was asked for at no hookpoint; the trial has {', '.join(spec.hookpoints)}"
        )
    for place in found:
        _known("hookpoint", place.name, spec.hookpoints, "")
    found.sort(key=lambda place: (place.layer, SITES.index(place.site)))
    return tuple((ArmModel(arm, model_seed), place.name, sae, sae_seed) for place in found)


def _on_the_stream(hookpoints: Sequence[str]) -> Sequence[str]:
    """Return the hookpoints of which a graph can be made; all of them where there are none."""
    able = [n for n in hookpoints if n.startswith("resid_") and n != "resid_pre.0"]
    return able or hookpoints


def _known(kind: str, asked: str | None, known: Iterable[str], first: str) -> str:
    if asked is None:
        return first
    if asked not in tuple(known):
        raise SpecError(f"the trial's record says that {unknown_name(kind, asked, known)}")
    return asked


def _among(kind: str, asked: Any, known: Sequence[int | None]) -> Any:
    if asked is None:
        return known[0]
    is_whole = isinstance(asked, Integral) and not isinstance(asked, bool)
    if not is_whole or int(asked) not in known:
        has = ", ".join(map(str, known)) if known != (None,) else "none, since nothing is drawn"
        raise SpecError(f"{kind} {asked!r} is none of the trial's for this arm: {has}")
    return int(asked)
