"""Bits per token by method and arm, variance explained at the same sparsity, and marginal structure."""

from __future__ import annotations

from typing import Any

from sae_placebo.core.lazy import pandas
from sae_placebo.report.dots import BaselineLine, DotRow, dot_rows
from sae_placebo.report.palette import MUTED, ArmStyle
from sae_placebo.report.plots import Figure
from sae_placebo.report.sections.base import SECTIONS, Content, Section, View
from sae_placebo.report.sections.contrasts import (
    aa_estimate,
    bounds,
    decimals,
    effect_estimate,
    sample,
    side_estimate,
    within_aa,
)
from sae_placebo.report.sections.values import Place, values_at
from sae_placebo.report.wording import Estimate, counted, finite, fitting, interval, number, title

METRIC = "bits_saved"
TITLES = {
    "pca": "PCA",
    "pca_dense": "PCA, dense",
    "ica": "ICA",
    "nmf": "non-negative parts",
    "kmeans": "k-means",
    "neurons": "raw neurons",
    "embeddings": "rows of W_E",
    "random": "random directions",
    "covariance": "random, by covariance",
}
_NUMBERS = (
    *("sparsity", "explained_variance", "ev_low", "ev_high", "lookup_relative_ev", "distortion"),
    *("bits", "bits_low", "bits_high", "bits_indices", "bits_values", "bits_residual"),
    *("bits_dictionary", "bits_atoms", "probe_auc", "probe_selectivity"),
    *("n_tokens", "n_documents"),
)
_COLUMNS = ("arm", "hookpoint", "method", "reading", "reason", *_NUMBERS)
_PARTS = ("bits_indices", "bits_values", "bits_residual", "bits_dictionary", "bits_atoms")
_SIMPLE = ArmStyle(0, MUTED, "circle")


def _table(view: View) -> pandas.DataFrame:
    """Return the table of methods with the columns that are read, numbers as such."""
    found = getattr(view.tables, "methods", None)
    if found is None or not len(found) or not {"arm", "hookpoint", "method"} <= set(found.columns):
        return pandas.DataFrame(columns=list(_COLUMNS))
    table = found.reindex(columns=list(_COLUMNS))
    numbers = {name: pandas.to_numeric(table[name], errors="coerce") for name in _NUMBERS}
    return table.assign(**numbers, name=[_name(row) for row in table.itertuples()])


def _name(row: Any) -> str:
    """Return a method as people call it; an SAE by its recipe, so that its seeds are averaged."""
    if pandas.isna(row.reading):
        return TITLES.get(str(row.method), title(row.method))
    return f"SAE {str(row.reading).rpartition('/')[0] or row.reading}"


def _mean(rows: pandas.DataFrame, column: str) -> float | None:
    known = rows[column].dropna()
    return float(known.mean()) if len(known) else None


def _sample(rows: pandas.DataFrame) -> str:
    """Return what a row of means was computed over."""
    tokens, documents = _mean(rows, "n_tokens"), _mean(rows, "n_documents")
    fits = counted(len(rows), "fit")
    return f"{counted(tokens, 'token')}, {counted(documents, 'document')}, {fits}"


def _estimate(rows: pandas.DataFrame, names: tuple[str, str, str]) -> Estimate:
    """Return the mean over seeds; the interval's bounds are the mean bounds, over documents."""
    value, low, high = (_mean(rows, name) for name in names)
    reasons = [str(reason) for reason in rows["reason"].dropna().unique()]
    reason = reasons[0] if reasons else "no interval: fewer than two documents were scored"
    if value is None:
        return Estimate("–", None, reasons[0] if reasons else "not measured", _sample(rows))
    places = fitting(value, low, high)
    if low is None or high is None:
        return Estimate(number(value, places), None, reason, _sample(rows))
    return Estimate(number(value, places), interval(low, high, places), None, _sample(rows))


def _arm(view: View, arm: str, table: pandas.DataFrame) -> dict[str, Any]:
    """Return one arm's methods, the shortest code first, and their figure."""
    found = []
    for name, rows in table.groupby("name", sort=True):
        bits = _mean(rows, "bits")
        found.append(
            {
                "name": str(name),
                "id": str(rows["method"].iloc[0]),
                "is_sae": bool(rows["reading"].notna().any()),
                "size": bits,
                "bits": _estimate(rows, ("bits", "bits_low", "bits_high")),
                "ev": _explained(rows),
                **{part: number(_mean(rows, part), 1) for part in _PARTS},
                "sparsity": number(_mean(rows, "sparsity"), 1),
                "lookup": number(_mean(rows, "lookup_relative_ev"), 3),
                "auc": number(_mean(rows, "probe_auc"), 3),
                "selectivity": number(_mean(rows, "probe_selectivity"), 3, signed=True),
                "low": _mean(rows, "bits_low"),
                "high": _mean(rows, "bits_high"),
            }
        )
    found.sort(key=lambda row: (row["size"] is None, row["size"] or 0.0, row["name"]))
    return {
        "arm": arm,
        "index": view.index(arm),
        "rows": found,
        "figure": _figure(view, arm, found),
    }


def _explained(rows: pandas.DataFrame) -> Estimate:
    if _mean(rows, "explained_variance") is None and _mean(rows, "bits") is not None:
        return Estimate("–", None, "no sparse code", _sample(rows))
    return _estimate(rows, ("explained_variance", "ev_low", "ev_high"))


def _figure(view: View, arm: str, found: list[dict[str, Any]]) -> Figure | None:
    known = [row for row in found if row["size"] is not None]
    dots = [
        DotRow(
            name=row["name"],
            style=view.styles[arm] if row["is_sae"] else _SIMPLE,
            value=row["size"],
            low=row["low"],
            high=row["high"],
            decimals=fitting(row["size"], row["low"], row["high"]),
            n=row["bits"].n,
        )
        for row in known
    ]
    if not dots:
        return None
    shortest = [row["size"] for row in known if not row["is_sae"]][:1]
    lines = [BaselineLine("shortest without an SAE:", value, "dash") for value in shortest]
    return dot_rows(dots, "bits per token, the dictionary not counted: fewer is better", lines)


def _marginal(view: View, place: Place) -> dict[str, Any] | None:
    """Return bits saved by the SAE on the trained arm minus those on each control."""
    values = values_at(view, place)
    effects, dots = [], []
    for (pair, metric), row in values.rows.items():
        if metric != METRIC or pair[0] != view.trained:
            continue
        effects.append(
            {
                "arm": pair[1],
                "index": view.index(pair[1]),
                "effect": effect_estimate(row),
                "trained": side_estimate(row, "arm"),
                "control": side_estimate(row, "control"),
                "aa": aa_estimate(row),
                "within_aa": bool(within_aa(row)),
            }
        )
        value = finite(row["effect"])
        if value is not None:
            (low, high), (aa_low, aa_high) = bounds(row), bounds(row, "aa_")
            band = None if aa_low is None or aa_high is None else (aa_low, aa_high)
            faint = bool(within_aa(row))
            name, style = f"against {pair[1]}", view.styles[pair[1]]
            dots.append(
                DotRow(name, style, value, low, high, decimals(row), sample(row), band, faint)
            )
    if not effects:
        return None
    axis = "bits per token saved by the SAE, trained − control"
    return {
        "place": ", ".join(place),
        "effects": effects,
        "figure": dot_rows(dots, axis, floor=0.0, signed=True) if dots else None,
    }


def build(view: View) -> Content:
    """Return marginal structure per place, then bits by method per hookpoint and arm."""
    table = _table(view)
    figures: dict[str, Figure] = {}
    marginal = []
    for place in view.tables.places:
        found = _marginal(view, place)
        if found is not None:
            figure = found.pop("figure")
            found |= _placed(figures, figure, "marginal")
            marginal.append(found)
    blocks = []
    for hookpoint, here in table.groupby("hookpoint", sort=False):
        headline = here["distortion"].dropna()
        shown = here
        if len(headline):
            first = float(headline.iloc[0])
            shown = here[here["distortion"].isna() | (here["distortion"] == first)]
        arms = []
        for arm in [arm for arm in view.arms if arm in set(shown["arm"])]:
            one = _arm(view, arm, shown[shown["arm"] == arm])
            one |= _placed(figures, one.pop("figure"), "methods")
            arms.append(one)
        left = f"{100 * float(headline.iloc[0]):g}%" if len(headline) else "the stated share"
        blocks.append({"hookpoint": str(hookpoint), "left": left, "arms": arms})
    return Content({"marginal": marginal, "blocks": blocks}, figures)


def _placed(figures: dict[str, Figure], figure: Figure | None, kind: str) -> dict[str, Any]:
    """Add a figure under a new name; returns what the template needs of it."""
    if figure is None:
        return {"figure": None}
    key = f"{kind}-{len(figures)}"
    figures[key] = figure
    return {"figure": key, "height": figure["layout"]["height"]}


SECTIONS.add(Section("methods", "Against simpler methods", (), build))
