"""One latent at a time: where it comes from, whether the model uses it, and what speaks for both."""

from __future__ import annotations

from typing import Any

from sae_placebo.core.lazy import pandas
from sae_placebo.report.sections.base import SECTIONS, Content, Section, View
from sae_placebo.report.sections.circuits import PATHS, by_latent, felt
from sae_placebo.report.sections.latents import passage_shown
from sae_placebo.report.sections.use_rows import (
    ORIGINS,
    UNJUDGED,
    USES,
    Key,
    Place,
    arm_of,
    arms_in,
    asked,
    card_anchors,
    cell_anchor,
    here,
    key,
    keys,
    of_full_swap,
    p_value,
    places,
    values,
)
from sae_placebo.report.tables import records
from sae_placebo.report.wording import Estimate, count, counted, finite, interval, number

_SHOWN = 3
"""Writers, and readers, of a card; of writers a few more where they are above their nulls."""
_PASSAGES = 3
Found = dict[tuple[Key, int], list[dict[str, Any]]]


def build(view: View) -> Content:
    """Return, per hookpoint, SAE, arm and cell of origin and use, its cards and its other latents."""
    table, anchors = asked(view), card_anchors(view)
    evidence = {
        name: by_latent(_of_cards(getattr(view.tables, name), anchors))
        for name in ("writers", "readers", "patched", "use_passages")
    }
    blocks = []
    for place in places(view.tables.use):
        cells = []
        for arm in arms_in(view, table):
            rows = here(table, place, arm)
            for origin in (*ORIGINS, UNJUDGED):
                for use in USES:
                    part = rows[(rows["origin"] == origin) & (rows["use"] == use)]
                    if len(part):
                        names = (arm, origin, use)
                        cells.append(_cell(view, place, names, part, anchors, evidence))
        if cells:
            blocks.append({"name": ", ".join(place), "cells": cells})
    return Content({"blocks": blocks, "n_places": len(blocks), "n_cards": count(len(anchors))}, {})


def _of_cards(table: pandas.DataFrame, anchors: dict[tuple[Key, int], str]) -> pandas.DataFrame:
    """Return the rows of latents that have a card."""
    latents = values(table["latent"])
    kept = [
        (one, int(latent)) in anchors if latent == latent else False
        for one, latent in zip(keys(table), latents, strict=True)
    ]
    return table[kept]


def _cell(
    view: View,
    place: Place,
    names: tuple[str, str, str],
    rows: pandas.DataFrame,
    anchors: dict[tuple[Key, int], str],
    evidence: dict[str, Found],
) -> dict[str, Any]:
    arm, origin, use = names
    cards: list[dict[str, Any]] = []
    others: dict[str, list[str]] = {}
    for row in records(rows.sort_values(["sae_seed", "latent"], kind="stable")):
        at = (key(row), int(row["latent"]))
        if at in anchors:
            cards.append(_card(row, anchors[at], {n: t.get(at, []) for n, t in evidence.items()}))
        else:
            others.setdefault(str(row["class"]), []).append(str(at[1]))
    return arm_of(view, arm) | {
        "anchor": cell_anchor(view, place, arm, origin, use),
        "origin": origin,
        "use": use,
        "n": count(len(rows)),
        "cards": cards,
        "others": sorted(others.items()),
        "n_others": count(sum(len(named) for named in others.values())),
    }


def _card(
    row: dict[str, Any], anchor: str, found: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    passages = found["use_passages"]
    tops = [
        finite(v) or 0.0
        for p in passages
        for v in (p["activations"] if p["activations"] is not None else ())
    ]
    documents, held = row["effect_documents"], row["null_firings"]
    seeds = {name: finite(row[name]) for name in ("model_seed", "sae_seed")}
    survives = finite(row["survives_joint"])
    return {
        "anchor": anchor,
        "latent": int(row["latent"]),
        "seeds": {name: None if seed is None else count(seed) for name, seed in seeds.items()},
        "class": str(row["class"]),
        "origin": row["origin"],
        "evidence": str(row["evidence"] or "none recorded"),
        "use": str(row["use"]),
        "reason": str(row["use_reason"] or ""),
        "n_active": count(row["n_active"]),
        "weight": None
        if finite(row["use_weight"]) is None
        else number(finite(row["use_weight"]), 1),
        "effect": of_full_swap(row["effect"], row["effect_low"], row["effect_high"], documents),
        "beside": of_full_swap(row["beside"], row["beside_low"], row["beside_high"], documents),
        "resampled": of_full_swap(row["effect_resampled"], n=documents),
        # nulls are ablated at some of the documents only, so the latent's own effect there is beside them
        "null": of_full_swap(row["null_effect"], n=held, why="not held against nulls"),
        "at_nulls": of_full_swap(row["effect_at_nulls"], n=held, why="not held against nulls"),
        "p": p_value(row["use_p"], row["n_nulls"]),
        "p_decoders": p_value(row["use_p_decoders"], row["n_nulls"]),
        "survives": None if survives is None else bool(survives),
        "screen": None if finite(row["screen_p"]) is None else p_value(row["screen_p"], None).value,
        "tied": None if finite(row["tied"]) is None else bool(row["tied"]),
        "paths": _paths(row),
        "n_read": counted(found["readers"][0]["n"], "token") if found["readers"] else "",
        "writers": [_writer(one) for one in _telling(found["writers"])],
        "readers": [_reader(one, found["patched"]) for one in found["readers"][:_SHOWN]],
        "passages": [passage_shown(p, max(tops, default=0.0)) for p in passages[:_PASSAGES]],
    }


def _paths(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the shares by which the model reads it, and their widths; empty where not measured."""
    known = {path: finite(row[f"path_{path}"]) for path in PATHS}
    if any(one is None for one in known.values()):
        return []
    return [
        {"path": path, "width": f"{100 * (one or 0.0):.1f}", "share": f"{100 * (one or 0.0):.0f}%"}
        for path, one in known.items()
    ]


def _telling(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the largest writers, and behind them the next ones that are above their nulls."""
    above = [row for row in rows[_SHOWN:] if row["above"]]
    return [*rows[:_SHOWN], *above[: _SHOWN - 1]]


def _writer(row: dict[str, Any]) -> dict[str, Any]:
    share, low, high = (finite(row[name]) for name in ("share", "low", "high"))
    null = finite(row["null95"])
    said = counted(row["n"], "token")
    if share is None:
        shown = Estimate("–", None, "not measured", said)
    elif low is None or high is None:
        shown = Estimate(f"{number(100 * share, 1)}%", None, "no interval", said)
    else:
        ends = interval(100 * low, 100 * high, 1, unit="%")
        shown = Estimate(f"{number(100 * share, 1)}%", ends, None, said)
    return {
        "name": str(row["part"]),
        "share": shown,
        "null": "–" if null is None else f"{number(100 * null, 1)}%",
        "above": bool(row["above"]) if row["above"] is not None else None,
    }


def _reader(row: dict[str, Any], patched: list[dict[str, Any]]) -> dict[str, Any]:
    share, percentile = finite(row["share"]), finite(row["percentile"])
    said = counted(row["n"], "token")
    patch = next((one for one in patched if one["reader"] == row["reader"]), None)
    return {
        "name": str(row["reader"]),
        "share": Estimate(
            "–" if share is None else f"{number(100 * share, 1)}%",
            None,
            "first order",
            said,
        ),
        "percentile": "–" if percentile is None else f"{number(100 * percentile, 1)}%",
        "patch": None if patch is None else felt(patch),
        "p": None if patch is None else p_value(patch["p"], patch["n_nulls"]),
    }


SECTIONS.add(Section("cards", "Cards: one latent at a time", (), build))
