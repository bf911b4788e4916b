"""What was compared and how: arms, model, text, SAEs, masks, and each arm's diagnostics card."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sae_placebo.report.sections.base import SECTIONS, Content, Section, View
from sae_placebo.report.wording import (
    Estimate,
    control_kind,
    count,
    counted,
    finite,
    number,
    title,
    visible,
)

# what the card's keys stand for; a key that is not here is shown by its own name
DIAGNOSTICS = {
    "residual_norm": "Residual norm",
    "block_to_embedding_ratio": "Block output / embedding ",
    "block_output_to_embedding_ratio": "Block output / embedding ",
    "token_r2": "R² on current token",
    "r2_on_current_token": "R² on current token",
    "participation_ratio": "Participation ratio",
    "attention_entropy": "Attention entropy",
    "attention_entropy_bits": "Attention entropy (bits)",
    "attention_entropy_nats": "Attention entropy (nats)",
}
_CARD_NAMES = ("diagnostics", "card", "diagnostics_card")
_NO_INTERVAL = "one reading per re-draw, no interval"


def _dict(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with its recipe's keys lifted to the top."""
    return {**_dict(record.get("recipe")), **record}


def text_of(value: Any) -> str:
    """Return a setting as short text; lists by comma, mappings as key = value."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return count(value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(
            f"{title(k).lower()} {text_of(v)}" for k, v in value.items() if v is not None
        )
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(text_of(v) for v in value)
    return visible(value)


def _listing(value: Any) -> dict[str, Any] | None:
    """Return a list as its first names and its length; None when it was not recorded.

    A mapping of names to reasons is listed with its reasons.
    """
    if value is None or value == "":
        return None
    if isinstance(value, Mapping):
        value = [f"{name} ({text_of(why)})" for name, why in value.items()]
    if isinstance(value, Sequence) and not isinstance(value, str):
        names = [text_of(v) for v in value]
        return {"shown": names[:3], "rest": names[3:], "n": len(names)}
    return {"shown": [text_of(value)], "rest": [], "n": 1}


def _picked(records: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> Any:
    for record in records:
        for key in keys:
            if record.get(key) not in (None, ""):
                return record[key]
    return None


def _arm_rows(view: View) -> list[dict[str, Any]]:
    described = _dict(view.tables.trial.get("arms"))
    rows = []
    for arm in view.arms:
        facts = _dict(described.get(arm))
        control = facts.get("control")
        records = [_flat(_dict(r)) for r in facts.get("records") or []]
        settings = {k: v for k, v in _dict(control).items() if k != "kind"}
        seeds = [s for s in facts.get("model_seeds") or [] if s is not None]
        rows.append(
            {
                "arm": arm,
                "index": view.styles[arm].index,
                "kind": _kind(view, arm, control),
                "settings": text_of(settings) if settings else "",
                "about": _picked(records, ("description", "summary", "definition")),
                "kept": _listing(_picked(records, ("kept", "keeps", "preserves", "holds"))),
                "destroys": _listing(_picked(records, ("destroys", "destroyed"))),
                "touched": _listing(
                    _picked(records, ("touched", "tensors_touched", "touches", "tensors"))
                ),
                "tied": _listing(_picked(records, ("tied", "tied_embeddings", "tying", "notes"))),
                "seeds": ", ".join(map(str, seeds)),
                "n_models": len(seeds) or 1,
            }
        )
    return rows


def _kind(view: View, arm: str, control: Any) -> str:
    if arm == view.trained:
        return "none: the model as trained"
    return control_kind(control) if control is not None else "not recorded"


def _cards(view: View) -> dict[str, Any]:
    """Return the diagnostics as one table: a row per arm, re-draw and hookpoint."""
    described = _dict(view.tables.trial.get("arms"))
    rows: list[dict[str, Any]] = []
    for arm in view.arms:
        facts = _dict(described.get(arm))
        seeds = list(facts.get("model_seeds") or [])
        for i, record in enumerate(facts.get("records") or []):
            record = _flat(_dict(record))
            seed = record.get("model_seed", seeds[i] if i < len(seeds) else None)
            found = next((record[k] for k in _CARD_NAMES if record.get(k)), None)
            for place, card in _by_place(_dict(found)):
                where = {"arm": arm, "index": view.styles[arm].index, "seed": seed, "place": place}
                rows.append({**where, "card": card, "n": _card_n(card, _dict(found))})
    keys = list(dict.fromkeys(k for row in rows for k in row["card"] if not _is_count(k)))
    decimals = {k: _column_decimals([row["card"].get(k) for row in rows]) for k in keys}
    for row in rows:
        row["cells"] = [_cell(row["card"].get(k), decimals[k], row["n"]) for k in keys]
        counts = dict.fromkeys(e.n for e in row["cells"] if e.value != "–")
        row["n"] = "; ".join(counts) or row["n"]
    return {
        "columns": [_column(k, [row["card"].get(k) for row in rows]) for k in keys],
        "rows": rows,
        "places": any(row["place"] for row in rows),
    }


def _is_count(key: str) -> bool:
    return key.startswith("n_") or key == "n"


def _by_place(card: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    nested = {k: v for k, v in card.items() if isinstance(v, Mapping) and "value" not in v}
    plain = {k: v for k, v in card.items() if k not in nested}
    if not nested:
        return [("", plain)] if plain else []
    return [(str(place), {**plain, **values}) for place, values in nested.items()]


def _card_n(card: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    for source in (card, whole):
        for key in ("n_tokens", "n"):
            if finite(source.get(key)) is not None:
                return f"{count(source[key])} tokens"
    return "tokens not recorded"


def _number_of(value: Any) -> float | None:
    return finite(value.get("value")) if isinstance(value, Mapping) else finite(value)


def _column_decimals(values: Sequence[Any]) -> int:
    """Return the decimals that give the largest value of a column three digits."""
    known = [abs(v) for v in map(_number_of, values) if v is not None]
    largest = max(known, default=0.0)
    return max(0, min(4, 2 - math.floor(math.log10(largest)))) if largest else 2


def _column(key: str, values: Sequence[Any]) -> str:
    name = DIAGNOSTICS.get(key, title(key))
    units = [str(v["unit"]) for v in values if isinstance(v, Mapping) and v.get("unit")]
    return f"{name} ({units[0]})" if units and "(" not in name else name


def _cell(value: Any, decimals: int, n: str) -> Estimate:
    known = _number_of(value)
    own = finite(_dict(value).get("n"))
    n = n if own is None else counted(own, "token")
    if known is not None:
        return Estimate(number(known, decimals), None, _NO_INTERVAL, n)
    if isinstance(value, Sequence) and not isinstance(value, str):
        layers = ", ".join(number(finite(v), 2) for v in value)
        return Estimate(layers, None, _NO_INTERVAL, n)
    reason = str(
        _dict(value).get("reason") or (value if isinstance(value, str) else "not measured")
    )
    return Estimate("–", None, reason, n)


def _facts(view: View) -> list[dict[str, str]]:
    trial = view.tables.trial
    spec = _dict(trial.get("spec"))
    text = {**_dict(spec.get("text")), **_dict(trial.get("text"))}
    splits = {k: v for k, v in text.items() if isinstance(v, Mapping)}
    splits.update(_dict(splits.pop("splits", None)))
    facts: list[tuple[str, Any]] = [
        ("Model", spec.get("model")),
        ("Hookpoints", spec.get("hookpoints") or [place[0] for place in view.tables.places]),
        ("Text", {k: v for k, v in text.items() if not isinstance(v, Mapping) and v is not None}),
        *((f"Text, {title(name).lower()} split", values) for name, values in splits.items()),
    ]
    saes = spec.get("saes") or spec.get("sae")
    if isinstance(saes, Mapping) and all(isinstance(v, Mapping) for v in saes.values()):
        facts += [(f"SAE {name}", values) for name, values in saes.items()]
    elif saes:
        facts.append(("SAE", saes))
    facts += [
        ("Training", spec.get("training")),
        *_masks(trial.get("masks")),
        ("Harvest", spec.get("harvest")),
        ("Measurement", spec.get("measurement")),
        ("Precision", trial.get("precision") or spec.get("dtype")),
        ("SAE seeds", spec.get("sae_seeds")),
        ("Model seeds", spec.get("model_seeds")),
        ("Seed of the trial", spec.get("seed")),
        ("Statistics", spec.get("statistics")),
        ("Versions", trial.get("versions")),
        ("Seconds per stage", _rounded(trial.get("seconds"))),
    ]
    return [
        {"name": name, "text": text_of(value)}
        for name, value in facts
        if value not in (None, "", {}, [], ())
    ]


def _masks(value: Any) -> list[tuple[str, Any]]:
    masks = _dict(value)
    if masks and all(isinstance(v, Mapping) for v in masks.values()):
        return [(f"Masked positions, {title(split).lower()}", v) for split, v in masks.items()]
    return [("Masked positions", value)]


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _rounded(v) for k, v in value.items()}
    known = finite(value)
    return round(known, 1) if known is not None else value


def build(view: View) -> Content:
    """Return the arms, the settings and the diagnostics."""
    trial = view.tables.trial
    model = _dict(_dict(trial.get("spec")).get("model")).get("id")
    values = {
        "name": view.tables.name,
        "model": model,
        "arms": _arm_rows(view),
        "placebos": [arm for arm in view.arms if arm != view.trained],
        "trained": view.trained,
        "facts": _facts(view),
        "cards": _cards(view),
        "spec": json.dumps(trial.get("spec"), indent=2, sort_keys=True, ensure_ascii=False)
        if trial.get("spec")
        else "",
    }
    return Content(values, {})


SECTIONS.add("compared", Section("compared", "What was compared and how", ("trial",), build))
