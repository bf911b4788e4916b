"""The section on existing methods: what latents save beyond them, bits per token, and variance explained."""

from __future__ import annotations

from typing import Any

from sae_placebo.core.lazy import pandas
from sae_placebo.report.dots import BaselineLine, DotRow, dot_rows
from sae_placebo.report.palette import MUTED, ArmStyle
from sae_placebo.report.plots import Figure
from sae_placebo.report.sections.base import (
    SECTIONS,
    Content,
    Section,
    View,
    add_figure,
    by_arm,
)
from sae_placebo.report.sections.contrasts import (
    NO_REASON,
    Row,
    effect_dot,
    effect_row,
    side_estimate,
)
from sae_placebo.report.sections.values import values_at
from sae_placebo.report.tables import Place, records
from sae_placebo.report.wording import (
    Estimate,
    counted,
    estimated,
    finite,
    fitting,
    number,
    title,
)

METRIC = "marginal_structure_above_gaussian"
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
    "token_table": "token table",
    "best": "the best of them",
    "common": "that of every arm, the trained arm's best",
}
_NUMBERS = (
    *("sparsity", "explained_variance", "ev_low", "ev_high", "lookup_relative_ev", "distortion"),
    *("bits", "bits_low", "bits_high", "bits_indices", "bits_values", "bits_residual"),
    *("bits_dictionary", "bits_atoms", "probe_auc", "probe_selectivity"),
    *("n_tokens", "n_documents"),
)
_COLUMNS = ("arm", "hookpoint", "baseline", "reading", "coding", "reason", *_NUMBERS)
_PARTS = ("bits_indices", "bits_values", "bits_residual", "bits_dictionary", "bits_atoms")
_SIMPLE = ArmStyle(0, MUTED, "circle")


def _table(view: View) -> pandas.DataFrame:
    """Return the columns of the table of baselines that this section reads, with each baseline's name."""
    table = view.tables.baselines[list(_COLUMNS)]
    numbers = {name: pandas.to_numeric(table[name], errors="coerce") for name in _NUMBERS}
    return table.assign(**numbers, name=[_name(row) for row in table.itertuples()])


def _name(row: Any) -> str:
    """Return the name of a baseline in words; an SAE's is its recipe's, so that its seeds are averaged."""
    if pandas.isna(row.reading):
        return TITLES.get(str(row.baseline), title(row.baseline))
    name = f"SAE {str(row.reading).rpartition('/')[0] or row.reading}"
    return f"{name}, by pursuit" if row.coding == "pursuit" else name


def _mean(rows: pandas.DataFrame, column: str) -> float | None:
    known = rows[column].dropna()
    return float(known.mean()) if len(known) else None


def _sample(rows: pandas.DataFrame) -> str:
    """Return what a row of means was computed over, in words."""
    tokens, documents = _mean(rows, "n_tokens"), _mean(rows, "n_documents")
    fits = counted(len(rows), "fit")
    return f"{counted(tokens, 'token')}, {counted(documents, 'document')}, {fits}"


def _estimate(rows: pandas.DataFrame, names: tuple[str, str, str]) -> Estimate:
    """Return the mean over seeds; its interval, over documents, has the means of the seeds' bounds.

    Args:
        rows: Of one baseline and arm, a row per seed.
        names: Columns of the value and its bounds.
    """
    value, low, high = (_mean(rows, name) for name in names)
    missing = "no interval: fewer than two documents were scored"
    reasons = [str(reason) for reason in rows["reason"].dropna().unique()]
    reasons.append("not measured" if value is None else missing)
    return estimated(value, low, high, _sample(rows), reasons[0])


def _arm(view: View, arm: str, table: pandas.DataFrame) -> dict[str, Any]:
    """Return one arm's baselines, the shortest code first, and their figure."""
    baselines = []
    for name, rows in table.groupby("name", sort=True):
        baselines.append(
            {
                "name": str(name),
                "id": str(rows["baseline"].iloc[0]),
                "is_sae": bool(rows["reading"].notna().any()),
                "size": _mean(rows, "bits"),
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
    baselines.sort(key=lambda row: (row["size"] is None, row["size"] or 0.0, row["name"]))
    return {
        "arm": arm,
        "index": view.index(arm),
        "rows": baselines,
        "figure": _figure(view, arm, baselines),
    }


def _explained(rows: pandas.DataFrame) -> Estimate:
    if _mean(rows, "explained_variance") is None and _mean(rows, "bits") is not None:
        return Estimate("–", None, "no sparse code", _sample(rows))
    return _estimate(rows, ("explained_variance", "ev_low", "ev_high"))


def _figure(view: View, arm: str, baselines: list[dict[str, Any]]) -> Figure | None:
    """Return the bits per token of an arm's baselines, a row each; None where no baseline has any."""
    known = [row for row in baselines if row["size"] is not None]
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


def _marginal(view: View, place: Place) -> dict[str, Any]:
    """Return what latents save at one place: the difference to each control, and each arm beside methods."""
    rows = [
        row
        for ((arm, _), metric), row in values_at(view, place).rows.items()
        if metric == METRIC and arm == view.trained
    ]
    dots = [effect_dot(view, f"against {row['control']}", row) for row in rows]
    known = [dot for dot in dots if dot is not None]
    axis = "marginal structure above a Gaussian's, bits per token, trained − control"
    table = view.tables.marginal
    own = table[(table["hookpoint"] == place[0]) & (table["sae"] == place[1])]
    methods = [_beyond(view, row) for rows in by_arm(view, own).values() for row in records(rows)]
    return {
        "place": ", ".join(place),
        "effects": [effect_row(view, row) | {"trained": side_estimate(row, "arm")} for row in rows],
        "methods": methods,
        "figure": dot_rows(known, axis, floor=0.0, signed=True) if known else None,
    }


def _beyond(view: View, row: Row) -> dict[str, Any]:
    """Return what the latents of one arm save beyond one existing method, as the table shows it."""
    reason, n = str(row["reason"] or NO_REASON), counted(finite(row["n_saes"]), "SAE")

    def shown(name: str, scale: float = 1.0, unit: str = "") -> Estimate:
        parts = [finite(row[f"{name}{end}"]) for end in ("", "_low", "_high")]
        value, low, high = (None if part is None else scale * part for part in parts)
        return estimated(value, low, high, n, reason, unit=unit, signed=True)

    chosen = row["baseline"] in ("best", "common")
    name = TITLES.get(str(row["baseline"]), title(row["baseline"]))
    if chosen and (method := row["method"]) is not None:
        found = [TITLES.get(one, title(one)) for one in str(method).split(", ")]
        name = f"{name}: {', '.join(found)}"
    return {
        "arm": str(row["arm"]),
        "index": view.index(str(row["arm"])),
        "name": name,
        "is_chosen": chosen,
        "n_atoms": number(finite(row["n_atoms"]), 0),
        **{
            bits: number(finite(row[bits]), 1)
            for bits in ("bits_pca", "bits_halved", "bits_doubled", "bits_joined")
        },
        "gain": shown("gain"),
        "share": shown("share", 100.0, "%"),
        "gaussian": shown("gaussian") if chosen else None,
        "above": shown("above") if chosen else None,
        "n": n,
    }


def build(view: View) -> Content:
    """Return marginal structure per place, then bits by baseline per hookpoint and arm."""
    table = _table(view)
    figures: dict[str, Figure] = {}
    marginal = []
    for place in view.tables.places:
        saved = _marginal(view, place)
        if saved["effects"] or saved["methods"]:
            saved |= add_figure(figures, f"marginal-{len(figures)}", saved["figure"])
            marginal.append(saved)
    blocks = []
    for hookpoint, rows in table.groupby("hookpoint", sort=False):
        distortions, left = rows["distortion"].dropna(), "the stated share"
        if len(distortions):
            # codes are compared at the first distortion; one without any is shown all the same
            first = float(distortions.iloc[0])
            rows = rows[rows["distortion"].isna() | (rows["distortion"] == first)]
            left = f"{100 * first:g}%"
        arms = []
        for arm, of_arm in by_arm(view, rows).items():
            baselines = _arm(view, arm, of_arm)
            baselines |= add_figure(figures, f"baselines-{len(figures)}", baselines["figure"])
            arms.append(baselines)
        blocks.append({"hookpoint": str(hookpoint), "left": left, "arms": arms})
    return Content({"marginal": marginal, "blocks": blocks}, figures)


SECTIONS.add(Section("baselines", "Beside existing methods", (), build))
