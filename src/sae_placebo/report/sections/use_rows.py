"""What was asked about use, as the sections on use, circuits and cards read it: SAEs, shares, anchors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from sae_placebo.core.lazy import pandas
from sae_placebo.report.plots import Dot, Figure, shares
from sae_placebo.report.sections.base import View
from sae_placebo.report.tables import at, records
from sae_placebo.report.wording import Estimate, count, finite, fitting, interval, number
from sae_placebo.stats.proportions import wilson

USES = ("used", "not_used", "undetermined")
ORIGINS = ("explained", "not_explained", "undetermined")
UNJUDGED = "unjudged"
"""Origin of latents that no verdict of origin was made of."""
CARRIED = ("explained", "not_used")
"""The cell of data structure that the model carries but does not use."""
ALONE = "latents alone"
_KEY = ("arm", "model_seed", "sae_seed", "hookpoint", "sae")

Key = tuple[Any, ...]
Place = tuple[str, str]


def places(table: pandas.DataFrame) -> list[Place]:
    """Return every (hookpoint, SAE) of a table, in the order met."""
    pairs = table[["hookpoint", "sae"]].dropna().drop_duplicates()
    return [(str(h), str(s)) for h, s in pairs.itertuples(index=False)]


def asked(view: View) -> pandas.DataFrame:
    """Return the rows of the table `use` that have a verdict; origin and use are words of ours."""
    table = view.tables.use
    table = table[table["use"].isin(USES)].copy()
    table["origin"] = table["origin"].where(table["origin"].isin(ORIGINS), UNJUDGED)
    table["class"] = table["class"].fillna("unclassified")
    return table


def arms_in(view: View, table: pandas.DataFrame) -> list[str]:
    """Return the arms that a table has, in the report's order."""
    held = set(table["arm"].dropna())
    return [arm for arm in view.arms if arm in held]


def arm_of(view: View, arm: str) -> dict[str, Any]:
    """Return an arm as templates name it."""
    return {"name": arm, "index": view.index(arm)}


def keys(table: pandas.DataFrame) -> list[Key]:
    """Return the SAE of each row."""
    return [key(row) for row in records(table[list(_KEY)])]


def key(row: Mapping[str, Any]) -> Key:
    """Return the SAE that a row or record is about."""
    seeds = {name: finite(row.get(name)) for name in ("model_seed", "sae_seed")}
    return tuple(seeds[name] if name in seeds else str(row.get(name)) for name in _KEY)


def recorded(view: View, place: Place) -> list[dict[str, Any]]:
    """Return what `trial.json` says of each SAE asked at a place, in the order of the arms."""
    found = view.tables.trial.get("use")
    kept = [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
    kept = [one for one in kept if (str(one.get("hookpoint")), str(one.get("sae"))) == place]
    kept = [one for one in kept if str(one.get("arm")) in view.arms]
    return sorted(kept, key=lambda one: view.arms.index(str(one["arm"])))


def part(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return one entry of a record, empty where it is not known."""
    found = record.get(name)
    return found if isinstance(found, dict) else {}


# --- shares ----------------------------------------------------------------------------------


def values(column: pandas.Series) -> Float64[np.ndarray, " row"]:
    """Return a column as floats; NaN where nothing is known."""
    numbers = pandas.to_numeric(column, errors="coerce")
    return np.asarray(numbers.to_numpy(dtype=np.float64, na_value=np.nan))


def weights(table: pandas.DataFrame) -> Float64[np.ndarray, " row"]:
    """Return the latents that each row stands for; 1 where that is not recorded."""
    found = values(table["use_weight"])
    return np.where(np.isfinite(found) & (found > 0), found, 1.0)


def effective(weight: Float64[np.ndarray, " row"]) -> float:
    """Return the effective number of latents, (sum w)^2 / sum w^2 (Kish 1965)."""
    return float(weight.sum() ** 2 / (weight**2).sum()) if len(weight) else 0.0


def weighted_share(
    holds: Bool[np.ndarray, " row"], weight: Float64[np.ndarray, " row"]
) -> tuple[float, float, float] | None:
    """Return a share with Wilson's 95% interval at the effective number of latents; None of nothing."""
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
    """Return a share in percent, as shown.

    Args:
        holds: Of each latent.
        weight: Latents that each stands for; each for itself where not given.
        n: As shown; how many hold of how many where not given.
        nothing: Why there is none where there are no latents.
    """
    said = n or f"{count(int(holds.sum()))} of {count(len(holds))}"
    found = weighted_share(holds, np.ones(len(holds)) if weight is None else weight)
    return percent(found, said, nothing)


def percent(
    found: tuple[float, float, float] | None, n: str, nothing: str = "none was asked"
) -> Estimate:
    """Return a share and its bounds in percent, as shown."""
    if found is None:
        return Estimate("–", None, nothing, n)
    value, low, high = (100 * x for x in found)
    decimals = min(1, fitting(value, low, high)) if high - low > 0.5 else fitting(value, low, high)
    return Estimate(f"{number(value, decimals)}%", interval(low, high, decimals, unit="%"), None, n)


def dot(
    holds: Bool[np.ndarray, " row"], weight: Float64[np.ndarray, " row"] | None = None
) -> Dot | None:
    """Return a share in percent, as drawn; None of nothing."""
    found = weighted_share(holds, np.ones(len(holds)) if weight is None else weight)
    if found is None:
        return None
    p, low, high = (100 * x for x in found)
    return Dot(p, low, high, f"{count(int(holds.sum()))} of {count(len(holds))}")


def share_dots(
    view: View, kinds: Sequence[str], dots: Mapping[str, Mapping[str, Dot | None]], axis: str
) -> Figure | None:
    """Return a point with its interval per kind and arm; None where there is none.

    Args:
        view: For the arms' looks.
        kinds: Rows, from the top down.
        dots: By arm and kind.
        axis: What a share is of.
    """
    known = {a: {k: d for k, d in own.items() if d is not None} for a, own in dots.items()}
    known = {a: own for a, own in known.items() if own}
    if not known or not kinds:
        return None
    figure = shares(list(kinds), known, {a: view.styles[a] for a in known}, view.level)
    figure["layout"]["xaxis"]["title"]["text"] = axis
    figure["layout"]["xaxis"]["range"] = [-1, 101]
    return figure


def of_full_swap(
    value: Any, low: Any = None, high: Any = None, n: Any = None, why: str = "not measured"
) -> Estimate:
    """Return an effect, a share of a full swap, in percent of it."""
    known, under, over = (None if finite(x) is None else 100 * float(x) for x in (value, low, high))
    said = "documents not recorded" if finite(n) is None else f"{count(n)} documents"
    if known is None:
        return Estimate("–", None, why, said)
    if under is None or over is None:
        return Estimate(f"{number(known, small(known))}%", None, "a mean without interval", said)
    decimals = max(fitting(known, under, over), small(over - under))
    ends = interval(under, over, decimals, unit="%")
    return Estimate(f"{number(known, decimals)}%", ends, None, said)


def small(value: float) -> int:
    """Return the decimals that show two digits of a value, 6 at most."""
    size = abs(value)
    return 2 if size == 0 else min(6, max(0, 1 - int(np.floor(np.log10(size)))))


def p_value(p: Any, n_nulls: Any) -> Estimate:
    """Return a p-value against null directions, as shown."""
    known, n = finite(p), finite(n_nulls)
    said = "nulls not recorded" if n is None else f"{count(n)} null directions"
    if known is None:
        return Estimate("–", None, "not held against nulls", said)
    shown = "< 0.001" if known < 0.0005 else number(known, 2 if known >= 0.0095 else 3)
    return Estimate(shown, None, "p has no interval", said)


# --- anchors ---------------------------------------------------------------------------------


def cell_anchor(view: View, place: Place, arm: str, origin: str, use: str) -> str:
    """Return the anchor of the latents behind one cell of the table of origin and use."""
    where = places(view.tables.use).index(place)
    return f"cell-{where}-{view.arms.index(arm)}-{origin}-{use}"


def card_anchors(view: View) -> dict[tuple[Key, int], str]:
    """Return the anchor of every latent that has a card: a verdict, and passages."""
    found = asked(view)
    known = set(zip(keys(found), values(found["latent"]).astype(int).tolist(), strict=True))
    table = view.tables.use_passages[[*_KEY, "latent"]].drop_duplicates()
    numbers: dict[Key, int] = {}
    anchors = {}
    for one, latent in zip(keys(table), values(table["latent"]).astype(int).tolist(), strict=True):
        if (one, latent) in known:
            at_sae = numbers.setdefault(one, len(numbers))
            anchors[one, latent] = f"card-{at_sae}-{latent}"
    return anchors


def here(table: pandas.DataFrame, place: Place, arm: str) -> pandas.DataFrame:
    """Return one arm's rows at a place."""
    found = at(table, place)
    return found[found["arm"] == arm]
