"""The section on what was compared: the arms, and the few facts that a reader of the findings needs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sae_placebo.core.escaping import visible
from sae_placebo.report.palette import CHANGED, many
from sae_placebo.report.sections.base import SECTIONS, Content, Section, View
from sae_placebo.report.sections.diagnostics import telling
from sae_placebo.report.sections.recorded import (
    arm_facts,
    arm_records,
    names_of,
    outliers_of,
    picked,
    repeated_of,
    saes_of,
    splits_of,
    text_of,
)
from sae_placebo.report.tables import mapping
from sae_placebo.report.wording import control_kind, count, counted, finite

# what a control changes and how; between the two stands what is excepted. A kind that is not here is
# shown by its own name and settings.
CONTROLS_IN_WORDS = {
    "redraw": ("every tensor", " re-drawn as Gaussian noise of its own mean and variance"),
    "init": ("every tensor", " drawn fresh by the architecture's own initializer"),
    "revision": ("the same model", ", another checkpoint of its training"),
    "redraw_embeddings": ("W_E", " re-drawn with matched row norms, the blocks as trained"),
    "permute": ("every tensor", " shuffled: its own entries in random order"),
    "spectrum": ("every matrix", " with its own singular values and random singular vectors"),
    "ablate_attention": ("attention", " ablated: it writes zero to the residual stream"),
    "redraw_calibrated": (
        "what blocks add",
        " scaled until the current token explains as much as in the trained model",
    ),
    "cascade": ("the last blocks, or one alone,", " re-drawn as Gaussian noise"),
    "noise_embeddings": ("token embeddings", " replaced by noise of their scale"),
}
_TIED = re.compile(r"(?P<name>\S+) is (?P<roles>.+): keeping one kept both")
_SAE_KINDS = {
    "topk": "TopK",
    "batchtopk": "BatchTopK",
    "matryoshka": "Matryoshka",
    "relu": "ReLU",
    "p_annealed": "p-annealed",
    "jumprelu": "JumpReLU",
    "gated": "Gated",
    "tied": "Tied ReLU",
}
_KEPT = ("kept", "keeps", "preserves", "holds")
_TOUCHED = ("touched", "tensors_touched", "touches", "tensors")
_NOTES = ("tied", "tied_embeddings", "tying", "notes")


def kept_groups(view: View, arm: str) -> tuple[str, ...] | None:
    """Return the groups of tensors that an arm keeps as trained; None where they are not recorded."""
    kept = picked(arm_records(view.tables.trial, arm), _KEPT)
    if isinstance(kept, Mapping):
        return tuple(dict.fromkeys(str(group) for group in kept.values()))
    return None if kept is None else tuple(names_of(kept))


def _kept_in_words(view: View, arm: str, notes: Sequence[str]) -> str:
    """Return what an arm keeps as trained; `notes` say which groups are one tensor in this model."""
    if arm == view.trained or _has_the_trained_model(view, arm):
        return "everything"
    groups = kept_groups(view, arm)
    if groups is None:
        return "not recorded"
    tied: dict[str, list[str]] = {}
    kept = mapping(picked(arm_records(view.tables.trial, arm), _KEPT))
    for tie in filter(None, map(_TIED.fullmatch, notes)):
        group = str(kept.get(tie["name"], ""))
        others = [role for role in tie["roles"].split(" and ") if role != group]
        tied.setdefault(group, []).extend(others)
    shown = []
    for group in groups:
        more = ", ".join(dict.fromkeys(tied.get(group, [])))
        shown.append(f"{group} (tied: {more} too)" if more else group)
    return ", ".join(shown) or "nothing"


def _arm_row(view: View, arm: str) -> dict[str, Any]:
    facts, records = arm_facts(view.tables.trial, arm), arm_records(view.tables.trial, arm)
    notes = names_of(picked(records, _NOTES))
    touched = picked(records, _TOUCHED)
    seeds = [s for s in facts.get("model_seeds") or [] if s is not None]
    models = f"{len(seeds)} ({'seed' if len(seeds) == 1 else 'seeds'} {text_of(seeds)})"
    kept = names_of(picked(records, _KEPT))
    return {
        "arm": arm,
        "index": view.styles[arm].index,
        "control": _control_in_words(view, arm, facts),
        "about": picked(records, ("description", "summary", "definition")),
        "destroys": ", ".join(names_of(picked(records, ("destroys", "destroyed")))),
        "kept": _kept_in_words(view, arm, notes),
        "n_touched": "not recorded" if touched is None else str(len(names_of(touched)) or "none"),
        "models": models if seeds else "1, as given",
        "touched_names": names_of(touched),
        "kept_names": [] if arm == view.trained else kept,
        "n_kept": len(kept),
        "notes": notes,
    }


def _has_the_trained_model(view: View, arm: str) -> bool:
    """Return whether an arm's model is the trained one, so that its data or dictionary is controlled."""
    parts = view.parts.get(arm)
    return parts is not None and parts.kind == "trained"


def _control_in_words(view: View, arm: str, facts: Mapping[str, Any]) -> str:
    """Return in words what an arm's controls do to the model, the data and the dictionary."""
    words = [_model_in_words(view, arm, facts.get("control"))]
    for slot in ("data", "dictionary"):
        if facts.get(slot):
            settings = {k: v for k, v in mapping(facts[slot]).items() if k != "kind"}
            known = {k: v for k, v in settings.items() if v not in (None, [], "")}
            kind = control_kind(facts[slot]).replace("_", " ")
            words.append(f"{slot}: {kind}" + (f" ({text_of(known)})" if known else ""))
    return "; ".join(words)


def _model_in_words(view: View, arm: str, control: Any) -> str:
    if arm == view.trained:
        return "none: the model as trained"
    if control is None:
        return "not recorded"
    if _has_the_trained_model(view, arm):
        return "the model as trained"
    kind = control_kind(control)
    settings = {k: v for k, v in mapping(control).items() if k != "kind" and v not in (None, [])}
    words = kind
    if "of" in settings and mapping(settings["of"]).get("kind") != "trained":
        other = _model_in_words(view, arm, settings["of"])
        settings = {k: v for k, v in settings.items() if k != "of"}
        return (
            f"{other}; {''.join(CONTROLS_IN_WORDS[kind])}" if kind in CONTROLS_IN_WORDS else other
        )
    settings.pop("of", None)
    if kind in CONTROLS_IN_WORDS:
        but = " but the kept ones" if settings.pop("keep", None) else ""
        words = but.join(CONTROLS_IN_WORDS[kind])
    return f"{words}; {text_of(settings)}" if settings else words


def _key_facts(view: View) -> list[str]:
    """Return the facts of one line: hookpoints, SAEs, seeds, text, and what was left out of it."""
    trial = view.tables.trial
    spec = mapping(trial.get("spec"))
    facts = []
    hookpoints = spec.get("hookpoints") or list(dict.fromkeys(p[0] for p in view.tables.places))
    if hookpoints:
        facts.append(f"activations at {text_of(hookpoints)}")
    for name, sae in saes_of(spec).items():
        kind = str(sae.get("kind") or name)
        sizes = [f"{k} {text_of(sae[k])}" for k in ("d_sae", "k", "l0") if sae.get(k) is not None]
        facts.append(f"{_sae_kind(kind)} SAE" + (f" ({', '.join(sizes)})" if sizes else ""))
    seeds = spec.get("sae_seeds")
    if isinstance(seeds, Sequence) and not isinstance(seeds, str) and len(seeds):
        facts.append(f"{counted(len(seeds), 'SAE seed')} per model")
    source = mapping(trial.get("text")).get("source") or mapping(spec.get("text")).get("source")
    splits = splits_of(trial)
    for name, doing in (("train", "trained on"), ("heldout", "measured on")):
        split = splits.get(name, {})
        if finite(split.get("n_tokens")) is not None:
            text = f"{doing} {count(split['n_tokens'])} tokens"
            if finite(split.get("n_documents")) is not None:
                text += f" of {counted(split['n_documents'], 'document')}"
            if name == "train":
                text += f" ({text_of(source)})" if source else ""
                facts.append(text + _left_out_of_training(view))
            else:
                facts.append(f"{text} held out{_left_out(view)}")
    return facts


def _sae_kind(kind: str) -> str:
    """Return an SAE's kind, as papers write it."""
    return _SAE_KINDS.get(kind, text_of(kind))


def _left_out(view: View) -> str:
    """Return how many held-out tokens the rule on outlying norms leaves out of every arm's numbers."""
    masks = mapping(mapping(view.tables.trial.get("masks")).get("heldout"))
    counts = [(str(k), n) for k, v in masks.items() if (n := finite(v)) is not None]
    union = [(k, n) for k, n in counts if "any arm" in k]
    if not union:
        return ""
    texts = [count(n) for _, n in union]
    where = " (by hookpoint)" if len(texts) > 1 else ""
    return f", less {', '.join(texts)}{where} of outlying norm in some arm"


def _left_out_of_training(view: View) -> str:
    """Return how many training tokens were left out, for each model where any were."""
    outliers = outliers_of(mapping(mapping(view.tables.trial.get("masks")).get("train")))
    many_places = len({hookpoint for hookpoint, _, _ in outliers}) > 1
    parts = [
        f"{count(n)} of the tokens left out in {visible(model)}"
        + (f" at {visible(hookpoint)}" if many_places else "")
        for hookpoint, model, n in outliers
        if n > 0
    ]
    return f", {', '.join(parts)} for outlying norm" if parts else ""


def _counted(view: View) -> dict[str, Any]:
    """Return how many arms control the model, and how many the data or the dictionary alone."""
    controls = [arm for arm in view.arms if arm != view.trained]
    others = [arm for arm in controls if _has_the_trained_model(view, arm)]
    parts = [view.parts[arm] for arm in others]
    return {
        "n_placebos": len(controls) - len(others),
        "n_data": len([part for part in parts if part.data is not None]),
        "n_dictionary": len([part for part in parts if part.data is None]),
    }


def _changed(view: View) -> list[dict[str, Any]]:
    """Return what each color stands for, where several arms share one; else nothing."""
    if not many(view.arms, view.trained):
        return []
    used = {view.styles[arm].index for arm in view.arms if arm != view.trained}
    return [{"what": what, "index": i} for i, what in enumerate(CHANGED, 1) if i in used]


def build(view: View) -> Content:
    """Return the arms as a short table, the key facts, and the two most telling diagnostics."""
    trial = view.tables.trial
    values = {
        "model": mapping(mapping(trial.get("spec")).get("model")).get("id"),
        "model_note": text_of(trial["model_note"]) if trial.get("model_note") else "",
        "arms": [_arm_row(view, arm) for arm in view.arms],
        **_counted(view),
        "changed": _changed(view),
        "facts": _key_facts(view),
        "repeated": repeated_of(trial),
        "telling": telling(view),
    }
    return Content(values, {})


SECTIONS.add(Section("arms", "What was compared", ("trial",), build))
