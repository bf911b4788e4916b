"""SAEs that failed to train are found: no number about them is a result, and a trial says so first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TO_DO = (
    "no number about it is a result: lower training.learning_rate or train longer "
    "(text.train_tokens)"
)

Place = tuple[str, str, str]
"""A place is an arm, a hookpoint and an SAE."""


@dataclass(frozen=True)
class FailedFits:
    """The SAEs that failed to train, in words and by place.

    Attributes:
        sentences: One per arm that failed; empty where every SAE can be read.
        places: Where an SAE reconstructs worse than the mean, or has no live latent.
        null_places: Where the SAE of the Gaussian null does.
    """

    sentences: tuple[str, ...]
    places: frozenset[Place]
    null_places: frozenset[Place]

    def unread(self, row: Mapping[str, Any]) -> str | None:
        """Return why a row of the effects table is not to be read; None where it may be."""
        failed = self.places
        if "gaussian" in str(row["metric"]):
            failed = failed | self.null_places
        sides = (str(row["arm"]), str(row["control"]))
        where = (str(row["hookpoint"]), str(row["sae"]))
        arms = [arm for arm in sides if (arm, *where) in failed]
        return f"the training of {' and of '.join(arms)} failed" if arms else None


def failed_fits(measurements: Any) -> FailedFits:
    """Return which SAEs failed, by a trial's table of measurements.

    An SAE whose explained variance on held-out text is below 0 reconstructs worse than the mean of
    the activations, and one without a live latent reconstructs nothing: its training diverged, or had
    hardly begun.
    """
    worst: dict[Place, float] = {}
    worst_null: dict[Place, float] = {}
    silent: set[Place] = set()
    wanted = measurements["metric"].isin(["explained_variance", "l0", "share_dead"])
    for row in measurements[wanted].to_dict("records"):
        place = (str(row["arm"]), str(row["hookpoint"]), str(row["sae"]))
        if row["metric"] == "explained_variance":
            for found, value in ((worst, row["value"]), (worst_null, row["null_value"])):
                if value is not None and value < 0:
                    found[place] = min(value, found.get(place, 0.0))
        elif row["value"] == (0.0 if row["metric"] == "l0" else 1.0):
            silent.add(place)
    places, null_places = frozenset(worst) | silent, frozenset(worst_null)
    arms = dict.fromkeys(str(arm) for arm in measurements["arm"])
    sentences = [_sentence(arm, worst, silent) for arm in arms]
    sentences += [_null_sentence(arm, places, worst_null) for arm in arms]
    return FailedFits(tuple(filter(None, sentences)), places, null_places)


def _sentence(arm: str, worst: Mapping[Place, float], silent: set[Place]) -> str:
    said = []
    bad = {place: value for place, value in worst.items() if place[0] == arm}
    if bad:
        said.append(
            "reconstructs held-out activations worse than their mean would "
            f"(explained variance {min(bad.values()):.3g})"
        )
    mute = [place for place in silent if place[0] == arm]
    if mute:
        said.append("has no live latent")
    if not said:
        return ""
    where = _where([*bad, *mute])
    return f"The training of {arm} failed: its SAE at {where} {' and '.join(said)}; {TO_DO}."


def _null_sentence(arm: str, places: frozenset[Place], worst: Mapping[Place, float]) -> str:
    bad = {place: v for place, v in worst.items() if place[0] == arm and place not in places}
    if not bad:
        return ""
    return (
        f"The training of {arm}'s Gaussian null failed: its SAE at {_where(list(bad))} reconstructs "
        f"worse than the mean would (explained variance {min(bad.values()):.3g}), so that nothing "
        "can be measured against it; lower training.learning_rate or train longer (text.train_tokens)."
    )


def _where(places: list[Place]) -> str:
    """Return the first place, and how many more there are."""
    names = list(dict.fromkeys(f"{hookpoint} ({sae})" for _, hookpoint, sae in places))
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
