"""The section of cards: for one latent each, its origin, whether the model uses it, and the evidence."""

from __future__ import annotations

from typing import Any

from sae_placebo.core.lazy import pandas
from sae_placebo.report.sections.base import (
    SECTIONS,
    Content,
    Section,
    View,
    arm_of,
    by_arm,
)
from sae_placebo.report.sections.circuits import PATHS, by_latent, felt
from sae_placebo.report.sections.latents import passage_shown
from sae_placebo.report.sections.use_rows import (
    ORIGINS,
    UNJUDGED,
    USES,
    Key,
    asked,
    card_anchors,
    cell_anchor,
    key,
    keys,
    of_full_swap,
    p_value,
)
from sae_placebo.report.tables import Place, at, places, records, values
from sae_placebo.report.wording import Estimate, count, counted, estimated, finite, number

_SHOWN = 3
"""Writers, and readers, of a card; there are up to two more writers if they are above their nulls."""
_PASSAGES = 3
_EVIDENCE = ("writers", "readers", "patched", "use_passages")
Evidence = dict[tuple[Key, int], list[dict[str, Any]]]
"""The rows of one table by SAE and latent."""


def build(view: View) -> Content:
    """Return, per hookpoint, SAE, arm and cell of origin and use, its cards and its other latents."""
    table, anchors = asked(view), card_anchors(view)
    evidence = {
        name: by_latent(_of_cards(getattr(view.tables, name), anchors)) for name in _EVIDENCE
    }
    blocks = []
    for place in places(view.tables.use):
        cells = []
        for arm, rows in by_arm(view, at(table, place)).items():
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
        (sae, int(latent)) in anchors if latent == latent else False
        for sae, latent in zip(keys(table), latents, strict=True)
    ]
    return table[kept]


def _cell(
    view: View,
    place: Place,
    names: tuple[str, str, str],
    rows: pandas.DataFrame,
    anchors: dict[tuple[Key, int], str],
    evidence: dict[str, Evidence],
) -> dict[str, Any]:
    """Return the cards of one cell, and the other latents of it by class.

    Args:
        view: Of the trial.
        place: Hookpoint and SAE.
        names: Arm, origin and use of the cell.
        rows: The latents of the cell.
        anchors: Of the latents that have a card.
        evidence: By table: the rows about each latent that has a card.
    """
    arm, origin, use = names
    cards: list[dict[str, Any]] = []
    others: dict[str, list[str]] = {}
    for row in records(rows.sort_values(["sae_seed", "latent"], kind="stable")):
        latent = (key(row), int(row["latent"]))
        if latent in anchors:
            of_latent = {name: by_latent.get(latent, []) for name, by_latent in evidence.items()}
            cards.append(_card(row, anchors[latent], of_latent))
        else:
            others.setdefault(str(row["class"]), []).append(str(latent[1]))
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
    row: dict[str, Any], anchor: str, evidence: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """Return the card of one latent, from its row of the table `use` and its rows of other tables."""
    weight, survives = finite(row["use_weight"]), finite(row["survives_joint"])
    return {
        "anchor": anchor,
        "latent": int(row["latent"]),
        "seeds": {
            name: None if finite(row[name]) is None else count(row[name])
            for name in ("model_seed", "sae_seed")
        },
        "class": str(row["class"]),
        "origin": row["origin"],
        "evidence": str(row["evidence"] or "none recorded"),
        "use": str(row["use"]),
        "reason": str(row["use_reason"] or ""),
        "n_active": count(row["n_active"]),
        "weight": None if weight is None else number(weight, 1),
        **_effects(row),
        "survives": None if survives is None else bool(survives),
        "screen": None if finite(row["screen_p"]) is None else p_value(row["screen_p"], None).value,
        "tied": None if finite(row["tied"]) is None else bool(row["tied"]),
        "paths": _paths(row),
        "n_read": counted(evidence["readers"][0]["n"], "token") if evidence["readers"] else "",
        "writers": [_writer(writer) for writer in _telling(evidence["writers"])],
        "readers": [
            _reader(reader, evidence["patched"]) for reader in evidence["readers"][:_SHOWN]
        ],
        "passages": _passages(evidence["use_passages"]),
    }


def _effects(row: dict[str, Any]) -> dict[str, Estimate]:
    """Return a latent's effects and those of its null directions, with their p-values."""
    documents, held = row["effect_documents"], row["null_firings"]
    missing = "not held against nulls"
    return {
        "effect": of_full_swap(row["effect"], row["effect_low"], row["effect_high"], documents),
        "beside": of_full_swap(row["beside"], row["beside_low"], row["beside_high"], documents),
        "resampled": of_full_swap(row["effect_resampled"], n=documents),
        # nulls are ablated at some of the documents only, where the latent's effect may be another one
        "null": of_full_swap(row["null_effect"], n=held, why=missing),
        "at_nulls": of_full_swap(row["effect_at_nulls"], n=held, why=missing),
        "p": p_value(row["use_p"], row["n_nulls"]),
    }


def _passages(passages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the first passages of a latent, on one scale of color for all of its passages."""
    strengths = [
        finite(activation) or 0.0
        for passage in passages
        for activation in (passage["activations"] if passage["activations"] is not None else ())
    ]
    top = max(strengths, default=0.0)
    return [passage_shown(passage, top) for passage in passages[:_PASSAGES]]


def _paths(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the share of each path by which the model reads a latent; nothing where not measured."""
    shares = [finite(row[f"path_{path}"]) for path in PATHS]
    known = [100 * share for share in shares if share is not None]
    if len(known) < len(PATHS):
        return []
    return [
        {"path": path, "width": f"{share:.1f}", "share": f"{share:.0f}%"}
        for path, share in zip(PATHS, known, strict=True)
    ]


def _telling(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the largest writers, and after them the next ones that are above their nulls."""
    above = [row for row in rows[_SHOWN:] if row["above"]]
    return [*rows[:_SHOWN], *above[: _SHOWN - 1]]


def _writer(row: dict[str, Any]) -> dict[str, Any]:
    """Return what a writer writes of a latent, and the 95th percentile of its null."""
    share, low, high = (
        None if finite(row[name]) is None else 100 * row[name] for name in ("share", "low", "high")
    )
    missing = "not measured" if share is None else "no interval"
    n = counted(row["n"], "token")
    return {
        "name": str(row["part"]),
        "share": estimated(share, low, high, n, missing, decimals=1, unit="%"),
        "null": _in_percent(row["null95"]),
        "above": bool(row["above"]) if row["above"] is not None else None,
    }


def _in_percent(share: Any) -> str:
    known = finite(share)
    return "–" if known is None else f"{number(100 * known, 1)}%"


def _reader(row: dict[str, Any], patched: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what a reader reads of a latent, and the path patch of it, if there is one."""
    patch = next((patch for patch in patched if patch["reader"] == row["reader"]), None)
    n = counted(row["n"], "token")
    return {
        "name": str(row["reader"]),
        "share": Estimate(_in_percent(row["share"]), None, "first order", n),
        "percentile": _in_percent(row["percentile"]),
        "patch": None if patch is None else felt(patch),
        "p": None if patch is None else p_value(patch["p"], patch["n_nulls"]),
    }


SECTIONS.add(Section("cards", "Cards: one latent at a time", (), build))
