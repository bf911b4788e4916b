"""Each arm's diagnostics card says how its activations differ from other arms', before any SAE."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sae_placebo.report.sections.base import View
from sae_placebo.report.sections.recorded import arm_facts, arm_records
from sae_placebo.report.tables import mapping
from sae_placebo.report.wording import Estimate, count, counted, finite, number, title

# the card's keys in words; a key that is not here is shown by its own name
DIAGNOSTICS = {
    "residual_norm": "Residual norm",
    "block_to_embedding_ratio": "Block output / embedding",
    "block_output_to_embedding_ratio": "Block output / embedding",
    "token_r2": "R² on current token",
    "r2_on_current_token": "R² on current token",
    "token_component": "Between tokens, other documents",
    "pair_component": "Between pairs with the previous token, other documents",
    "participation_ratio": "Participation ratio",
    "attention_entropy": "Attention entropy",
    "attention_entropy_max": "Attention entropy, possible",
    "attention_entropy_bits": "Attention entropy (bits)",
    "attention_entropy_nats": "Attention entropy (nats)",
    "outlier_share": "Norm outliers",
    "surrogate_token_variance": "Surrogate: variance between tokens",
    "surrogate_token_shrinkage": "Surrogate: shrinkage of tokens",
    "surrogate_pair_variance": "Surrogate: variance between pairs",
    "surrogate_pair_shrinkage": "Surrogate: shrinkage of pairs",
    "surrogate_direction_error": "Surrogate: table off by direction",
    "surrogate_clipped_share": "Surrogate: variance clipped",
    "surrogate_moment_error": "Surrogate: moments off by up to",
    "surrogate_unseen_share": "Surrogate: held-out tokens without a mean",
    "surrogate_unpaired_share": "Surrogate: held-out tokens without a pair's mean",
}
# the two diagnostics that say most about what kind of placebo an arm is, each by all of its names
TELLING = (("token_r2", "r2_on_current_token"), ("participation_ratio",))
_IN_A_SENTENCE = {
    "token_r2": "the current token alone explains a share (R²) of",
    "participation_ratio": "the variance fills as many dimensions (participation ratio) as",
}
_IN_A_LINE = 5
_CARD_NAMES = ("diagnostics", "card", "diagnostics_card")
_NO_INTERVAL = "one reading per re-draw, no interval"
_PURE = ("share", "ratio", "share of variance")


def rows_of(view: View) -> list[dict[str, Any]]:
    """Return a row per arm, re-draw and hookpoint: which they are, the card, and its n in words."""
    rows: list[dict[str, Any]] = []
    for arm in view.arms:
        seeds = list(arm_facts(view.tables.trial, arm).get("model_seeds") or [])
        for i, record in enumerate(arm_records(view.tables.trial, arm)):
            seed = record.get("model_seed", seeds[i] if i < len(seeds) else None)
            # a model that is given has no seed, whatever its recipe was called with
            seed = None if arm == view.trained else seed
            every = mapping(next((record[k] for k in _CARD_NAMES if record.get(k)), None))
            for place, card in _by_place(every):
                where = {"arm": arm, "index": view.styles[arm].index, "seed": seed, "place": place}
                rows.append({**where, "card": card, "n": _card_n(card, every)})
    return rows


def cards(view: View) -> dict[str, Any]:
    """Return the diagnostics as one table: a column each, and a sentence with the n of every column."""
    rows = rows_of(view)
    keys = list(dict.fromkeys(k for row in rows for k in row["card"] if not _is_count(k)))
    for row in rows:
        row["cells"] = [_cell(row["card"].get(k), row["n"]) for k in keys]
    columns = [_column(k, [row["card"].get(k) for row in rows]) for k in keys]
    return {
        "columns": columns,
        "rows": rows,
        "places": len({row["place"] for row in rows}) > 1,
        "n": _n_per_column(columns, rows),
    }


def _n_per_column(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return which n belongs to which columns, in words."""
    shared: dict[str, list[str]] = {}
    for i, column in enumerate(columns):
        known = [row["cells"][i].n for row in rows if row["cells"][i].value != "–"]
        n = " or ".join(dict.fromkeys(known))
        if n:
            shared.setdefault(n, []).append(column.split(" (")[0])
    return "; ".join(f"{n} for {', '.join(names)}" for n, names in shared.items())


def telling(view: View) -> dict[str, Any] | None:
    """Return the two most telling diagnostics of every arm, at the first hookpoint, for a sentence."""
    rows = rows_of(view)
    places = list(dict.fromkeys(row["place"] for row in rows))
    parts = []
    for names in TELLING:
        sizes: list[str] = []
        values: dict[str, list[float]] = {}
        for row in rows:
            entry = next((row["card"][k] for k in names if k in row["card"]), None)
            known = _number_of(entry)
            if row["place"] == places[0] and known is not None:
                values.setdefault(row["arm"], []).append(known)
                sizes.append(_cell(entry, row["n"]).n)
        if values:
            parts.append(
                {
                    "name": _IN_A_SENTENCE[names[0]],
                    "n": " or ".join(dict.fromkeys(sizes)),
                    "arms": _in_short(view, values),
                }
            )
    if not parts:
        return None
    return {"parts": parts, "place": places[0] if len(places) > 1 else ""}


def _in_short(view: View, values: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Return the range of each arm's values, or one range of all controls where these are many."""
    controls = {arm: of_arm for arm, of_arm in values.items() if arm != view.trained}
    groups: list[tuple[str, Sequence[float]]] = list(values.items())
    if len(controls) > _IN_A_LINE:
        groups = [(arm, of_arm) for arm, of_arm in groups if arm == view.trained]
        every = [value for of_arm in controls.values() for value in of_arm]
        groups.append((f"the {len(controls)} other arms", every))
    return [{"arm": name, "range": _range(of_group)} for name, of_group in groups]


def _range(values: Sequence[float]) -> str:
    texts = [number(v, _three_digits(v)) for v in (min(values), max(values))]
    return " to ".join(dict.fromkeys(texts))


def _is_count(key: str) -> bool:
    return key.startswith("n_") or key == "n"


def _by_place(card: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the card of each hookpoint; entries that belong to no hookpoint are in every one."""
    nested = {k: v for k, v in card.items() if isinstance(v, Mapping) and "value" not in v}
    plain = {k: v for k, v in card.items() if k not in nested}
    if not nested:
        return [("", plain)] if plain else []
    return [(str(place), {**plain, **values}) for place, values in nested.items()]


def _card_n(card: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    """Return over how many tokens a hookpoint's card was computed: as it says, or the whole card."""
    for source in (card, whole):
        for key in ("n_tokens", "n"):
            if finite(source.get(key)) is not None:
                return f"{count(source[key])} tokens"
    return "tokens not recorded"


def _number_of(value: Any) -> float | None:
    return finite(value.get("value")) if isinstance(value, Mapping) else finite(value)


def _three_digits(value: float) -> int:
    return max(0, min(4, 2 - math.floor(math.log10(abs(value))))) if value else 0


def _column(key: str, values: Sequence[Any]) -> str:
    name = DIAGNOSTICS.get(key, title(key))
    units = [str(v["unit"]) for v in values if isinstance(v, Mapping) and v.get("unit")]
    return f"{name} ({units[0]})" if units and "(" not in name and units[0] not in _PURE else name


def _cell(value: Any, n: str) -> Estimate:
    known = _number_of(value)
    tokens = finite(mapping(value).get("n"))
    n = n if tokens is None else counted(tokens, "token")
    if known is not None:
        return Estimate(number(known, _three_digits(known)), None, _NO_INTERVAL, n)
    if isinstance(value, Sequence) and not isinstance(value, str):
        layers = ", ".join(number(finite(v), 2) for v in value)
        return Estimate(layers, None, _NO_INTERVAL, n)
    missing = value if isinstance(value, str) else "not measured"
    return Estimate("–", None, str(mapping(value).get("reason") or missing), n)
