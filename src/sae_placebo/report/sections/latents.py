"""The section that shows latents of every arm side by side, drawn at random within each class."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sae_placebo.core.escaping import visible
from sae_placebo.core.lazy import pandas
from sae_placebo.core.spec import numpy_generator
from sae_placebo.report.sections.base import SECTIONS, Content, Section, View
from sae_placebo.report.sections.classes import in_class_order
from sae_placebo.report.tables import records
from sae_placebo.report.wording import count, finite, number, title, token_label

SHOWN_PER_CLASS = 3
"""Latents that are shown per class and arm."""
SHOWN_PASSAGES = 5
"""Passages that are shown of a latent, all but the first ones folded."""
_MANY_ARMS = 6
_OPEN_PASSAGES = 2
_BEFORE, _AFTER = 24, 12
_STEPS = 9
_KEY = ["arm", "model_seed", "sae_seed", "hookpoint", "sae", "latent"]

Key = tuple[Any, ...]
"""What names a latent: the values of the columns `_KEY`."""
Piece = tuple[str, int, bool]
"""A piece of a passage: its text, its step of color from 0 to 9, and whether the peak is in it."""


def clip(tokens: list[str], activations: list[Any], peak: int) -> tuple[int, int]:
    """Return the first token that is shown around the peak, and the one behind the last."""
    return max(0, peak - _BEFORE), min(len(tokens), peak + _AFTER + 1)


def _pieces(tokens: list[str], strengths: list[float], peak: int, top: float) -> list[Piece]:
    """Return a passage in pieces, a token each; neighbors on which the latent is silent are one piece."""
    pieces: list[Piece] = []
    for i, (token, strength) in enumerate(zip(tokens, strengths, strict=True)):
        step = min(_STEPS, math.ceil(_STEPS * strength / top)) if strength > 0 and top > 0 else 0
        text = visible(token)
        if step == 0 and i != peak and pieces and pieces[-1][1:] == (0, False):
            pieces[-1] = (pieces[-1][0] + text, 0, False)
        else:
            pieces.append((text, step, i == peak))
    return pieces


def passage_shown(row: dict[str, Any], top: float) -> dict[str, Any]:
    """Return one passage as templates show it; an activation of `top` has the strongest color."""
    tokens = [str(t) for t in row["tokens"]] if row["tokens"] is not None else []
    raw = list(row["activations"]) if row["activations"] is not None else []
    values = [_known(v) for v in raw][: len(tokens)]
    values += [0.0] * (len(tokens) - len(values))
    peak = int(row["peak"]) if row["peak"] is not None and 0 <= row["peak"] < len(tokens) else 0
    first, last = clip(tokens, values, peak)
    strongest = values[peak] if values else 0.0
    return {
        "document": visible(row["document"] or "unnamed document"),
        "pieces": _pieces(tokens[first:last], values[first:last], peak - first, top),
        "cut_before": first > 0,
        "cut_after": last < len(tokens),
        "peak": number(strongest),
        "n_tokens": len(tokens),
    }


def _card(latent: dict[str, Any], passages: list[dict[str, Any]]) -> dict[str, Any]:
    peaks = [finite(max(map(_known, p["activations"]), default=0.0)) or 0.0 for p in passages]
    top = max([finite(latent["max_activation"]) or 0.0, *peaks])
    shown = [passage_shown(p, top) for p in passages[:SHOWN_PASSAGES]]
    entropy, null = finite(latent["token_entropy_bits"]), finite(latent["token_entropy_null_bits"])
    return {
        "latent": count(latent["latent"]).replace(",", ""),
        "model_seed": None if latent["model_seed"] is None else count(latent["model_seed"]),
        "sae_seed": count(latent["sae_seed"]),
        "hookpoint": latent["hookpoint"],
        "sae": latent["sae"],
        "density": _share(latent["density"]),
        "entropy": number(entropy, 1),
        "null": number(null, 1),
        "why_no_entropy": "too few active tokens" if entropy is None else "",
        "top_token": None if latent["top_token"] is None else token_label(latent["top_token"]),
        "mass": _share(latent["top_token_mass"]),
        "recall": _share(latent["top_token_recall"]),
        "n_active": count(latent["n_active"]),
        "n_tokens": count(latent["n_tokens"]),
        "rule": _rule(latent),
        "max_activation": number(finite(latent["max_activation"])),
        "open": shown[:_OPEN_PASSAGES],
        "folded": shown[_OPEN_PASSAGES:],
    }


def _rule(latent: dict[str, Any]) -> dict[str, str] | None:
    """Return a latent's rule with its held-out scores, or why it has none; None where nothing is recorded."""
    text, reason = latent.get("rule"), latent.get("rule_reason")
    if text is None or text != text:
        return None if reason is None or reason != reason else {"text": "", "reason": str(reason)}
    names = ("precision", "recall", "f1")
    scores = {name: number(finite(latent[f"rule_{name}"]), 2) for name in names}
    bits = number(finite(latent["rule_bits"]), 0)
    return {"text": visible(text), "reason": "", "bits": bits} | scores


def _known(value: Any) -> float:
    return finite(value) or 0.0


def _share(value: Any) -> str:
    """Return a share in percent with two significant digits."""
    known = finite(value)
    if known is None:
        return "–"
    if known == 0:
        return "0%"
    percent = 100 * known
    digits = 0 if percent >= 9.95 else min(6, 1 - math.floor(math.log10(percent)))
    return f"{percent:.{digits}f}%"


def _joined(view: View) -> pandas.DataFrame:
    """Return a row per latent that has passages: its row of the table of latents."""
    kept = view.tables.passages[_KEY].drop_duplicates()
    if not len(kept):
        return view.tables.latents.iloc[:0]
    described = view.tables.latents.drop_duplicates(_KEY)
    joined = _comparable(kept).merge(_comparable(described), on=_KEY, how="left")
    joined["class"] = joined["class"].fillna("unclassified")
    return joined


def _comparable(table: pandas.DataFrame) -> pandas.DataFrame:
    """Return a table in which a missing seed, such as the trained model's, is -1 and equals itself."""
    seeds = {
        name: table[name].to_numpy(dtype=np.float64, na_value=-1.0)
        for name in ("model_seed", "sae_seed")
    }
    return table.assign(**seeds)


def _drawn(table: pandas.DataFrame, shown: int, *names: str) -> pandas.DataFrame:
    """Return at most `shown` rows; the draw is seeded by `names`, not by the order of the rows."""
    table = table.sort_values(_KEY, kind="stable")
    if len(table) <= shown:
        return table
    chosen = numpy_generator(0, "report", *names).choice(len(table), shown, replace=False)
    return table.iloc[sorted(int(i) for i in chosen)]


def _passages_by_latent(view: View) -> dict[Key, list[dict[str, Any]]]:
    table = _comparable(view.tables.passages).sort_values("rank", kind="stable")
    passages: dict[Key, list[dict[str, Any]]] = {}
    for row in records(table):
        passages.setdefault(tuple(row[k] for k in _KEY), []).append(row)
    return passages


def build(view: View) -> Content:
    """Return a group per class, with a column of latents per arm."""
    latents, joined = view.tables.latents, _joined(view)
    passages = _passages_by_latent(view) if len(joined) else {}
    totals = latents.groupby(["arm", "class"]).size().to_dict() if len(latents) else {}
    kinds = in_class_order(joined["class"].unique())
    groups: list[dict[str, Any]] = []
    # a page with very many arms has room for one latent of each
    shown = SHOWN_PER_CLASS if len(view.arms) <= _MANY_ARMS else 1
    for kind in kinds:
        columns = []
        for arm in view.arms:
            kept = joined[(joined["arm"] == arm) & (joined["class"] == kind)]
            cards = []
            for row in records(_drawn(kept, shown, arm, kind)):
                key = tuple(row[k] for k in _KEY)
                row["model_seed"] = None if row["model_seed"] == -1.0 else row["model_seed"]
                cards.append(_card(row, passages.get(key, [])))
            columns.append(
                {
                    "arm": arm,
                    "index": view.styles[arm].index,
                    "cards": cards,
                    "kept": len(kept),
                    "total": totals.get((arm, kind), 0),
                }
            )
        groups.append({"kind": kind, "title": title(kind), "columns": columns})
    # classes that most arms have come first, since only they put latents side by side
    groups.sort(key=lambda group: -sum(bool(column["cards"]) for column in group["columns"]))
    values = {
        "groups": groups,
        "shown_per_class": shown,
        "many_places": len(view.tables.places) > 1,
        "n_kept": f"{len(joined):,}",
        "n_all": f"{len(latents):,}",
        "dead": sum(n for (_, kind), n in totals.items() if kind == "dead"),
    }
    return Content(values, {})


SECTIONS.add(Section("latents", "Latents side by side", ("latents", "passages"), build))
