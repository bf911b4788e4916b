"""What may be claimed of an arm: what differs from every fair placebo, and by how much from the nearest.

An arm that is told from an easy placebo may not be told from a fair one. So an effect is a claim only where
the intervals against all fair placebos leave the null out on one side; its size is that of the smallest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sae_placebo.core.lazy import pandas

_KEYS = ["metric", "hookpoint", "sae"]
_OF_EFFECT = ("effect", "low", "high", "null", "unit")


def claims(effects: pandas.DataFrame, arms: Sequence[str], fair: Sequence[str]) -> pandas.DataFrame:
    """Return one row per arm, metric, hookpoint and SAE: whether the arm differs from every fair placebo.

    The row has the effect that is smallest in size, with its interval and the placebo (`against`); where one
    is not estimable, that one. `claimed` is whether all intervals leave the null out on the same side, and
    `reason` says why not.

    Args:
        effects: Columns of `stats.effects.COLUMNS`; rows of other arms are not read.
        arms: The arms of which something is claimed.
        fair: The fair placebos; without any there are no rows.
    """
    rows = []
    for arm in arms:
        own = effects[(effects["arm"] == arm) & effects["control"].isin(list(fair))]
        for names, part in own.groupby(_KEYS, sort=False):
            found = _claim(part.to_dict("records"), fair)
            rows.append({**dict(zip(_KEYS, names, strict=True)), "arm": arm, **found})
    columns = [*_KEYS, "arm", "against", *_OF_EFFECT, "claimed", "reason", "placebos"]
    return pandas.DataFrame(rows, columns=columns)


def _claim(rows: Sequence[Mapping[str, Any]], fair: Sequence[str]) -> dict[str, Any]:
    unknown = [row for row in rows if pandas.isna(row["effect"])]
    nearest = unknown[0] if unknown else min(rows, key=lambda r: abs(r["effect"] - r["null"]))
    reason = _why_not(rows, fair)
    values = {name: None if pandas.isna(nearest[name]) else nearest[name] for name in _OF_EFFECT}
    return {
        "against": nearest["control"],
        **values,
        "claimed": reason is None,
        "reason": reason,
        "placebos": [str(row["control"]) for row in rows],
    }


def _why_not(rows: Sequence[Mapping[str, Any]], fair: Sequence[str]) -> str | None:
    """Return why an effect is not claimed; None where it is."""
    missing = [name for name in fair if name not in {row["control"] for row in rows}]
    if missing:
        return f"not compared with {', '.join(missing)}"
    for row in rows:
        if pandas.isna(row["effect"]):
            return f"not estimable against {row['control']}: {row['reason']}"
        if pandas.isna(row["low"]):
            return f"no interval against {row['control']}: {row['reason']}"
    told = [row for row in rows if not row["low"] <= row["null"] <= row["high"]]
    if len(told) < len(rows):
        names = ", ".join(str(row["control"]) for row in rows if row not in told)
        return f"the interval against {names} holds {rows[0]['null']:g}"
    if len({row["low"] > row["null"] for row in rows}) > 1:
        higher = ", ".join(str(row["control"]) for row in rows if row["low"] > row["null"])
        return f"higher than {higher}, lower than the other"
    return None
