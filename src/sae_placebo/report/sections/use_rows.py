"""What the sections on use, circuits and cards share: verdicts of use, weighted shares, and anchors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from sae_placebo.core.lazy import pandas
from sae_placebo.report.plots import Dot, Figure, shares
from sae_placebo.report.sections.base import View, add_figure
from sae_placebo.report.tables import Place, mapping, places, records, values
from sae_placebo.report.wording import Estimate, count, estimated, finite, fitting, number
from sae_placebo.stats.proportions import wilson

USES = ("used", "not_used", "undetermined")
ORIGINS = ("explained", "not_explained", "undetermined")
UNJUDGED = "unjudged"
"""What the report writes as the origin of a latent that has no verdict of origin."""
CARRIED = ("explained", "not_used")
"""Origin and use of structure of the data that the model carries but does not use."""
ALONE = "latents alone"
"""What stands behind an interval that varies latents and nothing else."""
_KEY = ("arm", "model_seed", "sae_seed", "hookpoint", "sae")

Key = tuple[Any, ...]
"""What names one SAE: the values of the columns `_KEY`."""


def asked(view: View) -> pandas.DataFrame:
    """Return the rows of the table `use` that have a verdict of use.

    A latent without a verdict of origin is `UNJUDGED`, and one without a class is unclassified.
    """
    table = view.tables.use
    table = table[table["use"].isin(USES)].copy()
    table["origin"] = table["origin"].where(table["origin"].isin(ORIGINS), UNJUDGED)
    table["class"] = table["class"].fillna("unclassified")
    return table


def keys(table: pandas.DataFrame) -> list[Key]:
    """Return which SAE each row is about."""
    return [key(row) for row in records(table[list(_KEY)])]


def key(row: Mapping[str, Any]) -> Key:
    """Return which SAE a row or record is about."""
    seeds = {name: finite(row.get(name)) for name in ("model_seed", "sae_seed")}
    return tuple(seeds[name] if name in seeds else str(row.get(name)) for name in _KEY)


def recorded(view: View, place: Place) -> list[dict[str, Any]]:
    """Return what `trial.json` records of the test of use at one place, in the order of the arms."""
    of_place = [record for record in use_records(view) if place_of(record) == place]
    of_arms = [record for record in of_place if str(record.get("arm")) in view.arms]
    return sorted(of_arms, key=lambda record: view.arms.index(str(record["arm"])))


def use_records(view: View) -> list[dict[str, Any]]:
    """Return what `trial.json` records of the test of use: one record per SAE."""
    recorded = view.tables.trial.get("use")
    every = recorded if isinstance(recorded, list) else []
    return [record for record in every if isinstance(record, dict)]


def place_of(record: Mapping[str, Any]) -> Place:
    """Return the hookpoint and SAE of a record of the test of use."""
    return str(record.get("hookpoint")), str(record.get("sae"))


def use_places(view: View) -> list[Place]:
    """Return every hookpoint and SAE at which use was tested, also where nothing came of it."""
    return list(dict.fromkeys([*places(view.tables.use), *map(place_of, use_records(view))]))


def use_limit(view: View, name: str) -> float | None:
    """Return a limit of the test of use by the trial's settings, as a share of a full swap."""
    spec = mapping(view.tables.trial.get("spec"))
    return finite(mapping(spec.get("use")).get(name))


def part(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return one entry of a record; empty where the record lacks it."""
    return mapping(record.get(name))


def placed(
    figures: dict[str, Figure], start: str, drawn: Mapping[str, Figure | None]
) -> dict[str, dict[str, Any]]:
    """Add those of a block's figures that could be drawn, and return what the template needs, by name.

    Args:
        figures: The section's figures.
        start: Beginning of the figures' keys.
        drawn: Figures by their names within the block.
    """
    return {
        name: add_figure(figures, f"{start}-{name}", figure)
        for name, figure in drawn.items()
        if figure
    }


# --- shares ----------------------------------------------------------------------------------


def weights(table: pandas.DataFrame) -> Float64[np.ndarray, " row"]:
    """Return how many latents each row stands for; 1 where that is not recorded."""
    recorded = values(table["use_weight"])
    return np.where(np.isfinite(recorded) & (recorded > 0), recorded, 1.0)


def effective(weight: Float64[np.ndarray, " row"]) -> float:
    """Return the effective number of latents, (sum w)^2 / sum w^2 (Kish 1965)."""
    return float(weight.sum() ** 2 / (weight**2).sum()) if len(weight) else 0.0


def weighted_share(
    holds: Bool[np.ndarray, " row"], weight: Float64[np.ndarray, " row"]
) -> tuple[float, float, float] | None:
    """Return a share with the bounds of Wilson's 95% interval, at the effective number of latents.

    None is returned where there are no latents.
    """
    n = effective(weight)
    if n <= 0:
        return None
    p = float((weight * holds).sum() / weight.sum())
    return p, *wilson(p * n, n)


def share(
    holds: Bool[np.ndarray, " row"],
    weight: Float64[np.ndarray, " row"] | None = None,
    n: str = "",
    nothing: str = "none was asked",
) -> Estimate:
    """Return a share of latents in percent, as it is shown.

    Args:
        holds: Whether each latent counts.
        weight: How many latents each one stands for; 1 where not given.
        n: What the share was computed over, in words; how many of how many where not given.
        nothing: Why there is no share where there are no latents.
    """
    hits = n or f"{count(int(holds.sum()))} of {count(len(holds))}"
    known = weighted_share(holds, np.ones(len(holds)) if weight is None else weight)
    return percent(known, hits, nothing)


def percent(
    bounded_share: tuple[float, float, float] | None, n: str, nothing: str = "none was asked"
) -> Estimate:
    """Return a share and its bounds in percent, as they are shown; `nothing` says why there is none."""
    if bounded_share is None:
        return Estimate("–", None, nothing, n)
    value, low, high = (100 * x for x in bounded_share)
    decimals = min(1, fitting(value, low, high)) if high - low > 0.5 else fitting(value, low, high)
    return estimated(value, low, high, n, nothing, decimals=decimals, unit="%")


def dot(
    holds: Bool[np.ndarray, " row"], weight: Float64[np.ndarray, " row"] | None = None
) -> Dot | None:
    """Return a share of latents in percent, as it is drawn; None where there are no latents."""
    known = weighted_share(holds, np.ones(len(holds)) if weight is None else weight)
    if known is None:
        return None
    p, low, high = (100 * x for x in known)
    return Dot(p, low, high, f"{count(int(holds.sum()))} of {count(len(holds))}")


def share_dots(
    view: View, kinds: Sequence[str], dots: Mapping[str, Mapping[str, Dot | None]], axis: str
) -> Figure | None:
    """Return a figure with a row per kind and, in it, a point with its interval per arm.

    None is returned where there is no point.

    Args:
        view: Of the trial.
        kinds: Rows, from the top down.
        dots: By arm and kind: the share in percent.
        axis: Title of the axis: of what the shares are.
    """
    known = {
        arm: {kind: share for kind, share in of_arm.items() if share is not None}
        for arm, of_arm in dots.items()
        if any(of_arm.values())
    }
    if not known or not kinds:
        return None
    figure = shares(list(kinds), known, {a: view.styles[a] for a in known}, view.level)
    figure["layout"]["xaxis"]["title"]["text"] = axis
    figure["layout"]["xaxis"]["range"] = [-1, 101]
    return figure


def of_full_swap(
    value: Any, low: Any = None, high: Any = None, n: Any = None, why: str = "not measured"
) -> Estimate:
    """Return an effect in percent of a full swap, as it is shown.

    Args:
        value: The effect, as a share of a full swap; None where it is missing.
        low: Lower bound of its interval; None where it has none.
        high: Upper bound of its interval; None where it has none.
        n: Number of documents.
        why: Why there is no effect where it is missing.
    """
    known, under, over = (None if finite(x) is None else 100 * float(x) for x in (value, low, high))
    documents = "documents not recorded" if finite(n) is None else f"{count(n)} documents"
    if known is None:
        return Estimate("–", None, why, documents)
    decimals = small(known)
    if under is not None and over is not None:
        decimals = max(fitting(known, under, over), small(over - under))
    reason = "a mean without interval"
    return estimated(known, under, over, documents, reason, decimals=decimals, unit="%")


def small(value: float) -> int:
    """Return how many decimals show two digits of a value, 6 at most."""
    size = abs(value)
    return 2 if size == 0 else min(6, max(0, 1 - int(np.floor(np.log10(size)))))


def p_value(p: Any, n_nulls: Any) -> Estimate:
    """Return a p-value, as it is shown; `n_nulls` is how many null directions it comes from."""
    known, n = finite(p), finite(n_nulls)
    nulls = "nulls not recorded" if n is None else f"{count(n)} null directions"
    if known is None:
        return Estimate("–", None, "not held against nulls", nulls)
    shown = "< 0.001" if known < 0.0005 else number(known, 2 if known >= 0.0095 else 3)
    return Estimate(shown, None, "p has no interval", nulls)


# --- anchors ---------------------------------------------------------------------------------


def cell_anchor(view: View, place: Place, arm: str, origin: str, use: str) -> str:
    """Return the anchor of the latents that one cell of the table of origin and use counts."""
    where = places(view.tables.use).index(place)
    return f"cell-{where}-{view.arms.index(arm)}-{origin}-{use}"


def card_anchors(view: View) -> dict[tuple[Key, int], str]:
    """Return the anchor of every latent that has a card: those with a verdict of use and passages."""
    judged = set(_latents(asked(view)))
    numbers: dict[Key, int] = {}
    anchors = {}
    for sae, latent in _latents(view.tables.use_passages[[*_KEY, "latent"]].drop_duplicates()):
        if (sae, latent) in judged:
            anchors[sae, latent] = f"card-{numbers.setdefault(sae, len(numbers))}-{latent}"
    return anchors


def _latents(table: pandas.DataFrame) -> list[tuple[Key, int]]:
    """Return which SAE and which of its latents each row is about."""
    latents = values(table["latent"]).astype(int).tolist()
    return list(zip(keys(table), latents, strict=True))
