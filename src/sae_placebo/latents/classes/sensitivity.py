"""How far the classes depend on where their thresholds are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Num
from pydantic.fields import FieldInfo

from sae_placebo.core.lazy import pandas
from sae_placebo.core.tables import KEYS
from sae_placebo.core.tables.latents import SENSITIVITY
from sae_placebo.latents.classes.classification import CLASS_NAMES, ClassThresholds, decide

STEP = 0.2
COLUMNS = SENSITIVITY.without(KEYS)


def sensitivity(
    columns: Mapping[str, Num[np.ndarray, "..."]], thresholds: ClassThresholds
) -> pandas.DataFrame:
    """Return how many latents change class when each threshold moves by 20%, down and up.

    Columns: threshold, value (its present value), change (-0.2 or 0.2), moved_to (its new value; counts are
    rounded away from the present value, and the end of the allowed range is not passed), n_latents (those
    that are not dead), n_moved, share_moved (of n_latents), most_moved ("from > to", the pair of classes
    that most of them moved between; null where none moved) and reason (why there is no share).

    All other thresholds stay where they are. A threshold that no latent is near has a share of 0, and so has
    one whose columns are missing; `classification.not_estimable` distinguishes the two.

    Args:
        columns: Columns that `decide` reads, [latent] or [latent, fold]; only the first fold is read.
        thresholds: The present thresholds.
    """
    first = {name: c[:, 0] if np.ndim(c) == 2 else c for name, c in columns.items()}
    before = decide(first, thresholds)
    alive = np.asarray(first["n_active"]) > 0
    n = int(alive.sum())
    rows = []
    for name, field in ClassThresholds.model_fields.items():
        value = getattr(thresholds, name)
        for change in (-STEP, STEP):
            moved_to = _moved(value, change, field)
            after = decide(first, thresholds.model_copy(update={name: moved_to}))
            moved = alive & (after != before)
            reason = None if n else "no latent fires"
            if moved_to == value:
                reason = "the threshold is at the end of its range"
            count = int(moved.sum())
            share = np.nan if reason else count / n
            most = _most(before[moved], after[moved]) if count else None
            rows.append((name, value, change, moved_to, n, count, share, most, reason))
    return pandas.DataFrame(rows, columns=list(COLUMNS))


def _moved(value: int | float, change: float, field: FieldInfo) -> int | float:
    """Return a threshold's value after a relative change, within the range of the field."""
    moved: int | float = value * (1 + change)
    if isinstance(value, int):
        moved = int(np.floor(moved)) if change < 0 else int(np.ceil(moved))
    for bound in field.metadata:
        least = getattr(bound, "ge", getattr(bound, "gt", None))
        most = getattr(bound, "le", getattr(bound, "lt", None))
        if least is not None:
            moved = max(moved, least)
        if most is not None:
            moved = min(moved, most)
    return moved


def _most(before: Num[np.ndarray, " moved"], after: Num[np.ndarray, " moved"]) -> str:
    """Return the pair of classes that most latents moved between, in words."""
    pairs, counts = np.unique(
        before.astype(np.int64) * len(CLASS_NAMES) + after, return_counts=True
    )
    left, entered = divmod(int(pairs[counts.argmax()]), len(CLASS_NAMES))
    return f"{CLASS_NAMES[left]} > {CLASS_NAMES[entered]}"
