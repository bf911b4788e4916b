"""The section with the few effects that matter most, each in one sentence with its interval, n and null."""

from __future__ import annotations

from typing import Any

from sae_placebo.latents.classes.classification import CLASSES
from sae_placebo.report.sections.arms import kept_groups
from sae_placebo.report.sections.base import SECTIONS, Content, Section, View
from sae_placebo.report.sections.contrasts import (
    Contrast,
    Row,
    aa_estimate,
    asks_of_given,
    contrasts,
    covers_null,
    effect_estimate,
    fits,
    narrower_than_aa,
    null_of,
    ordered,
    sample,
    side_estimate,
    with_unit,
    within_aa,
)
from sae_placebo.report.sections.overview import MANY
from sae_placebo.report.sections.recorded import arm_facts
from sae_placebo.report.sections.terms import metric_terms
from sae_placebo.report.wording import (
    Estimate,
    control_kind,
    difference_unit,
    finite,
    metric_title,
    number,
)
from sae_placebo.stats.failed_fits import FailedFits, failed_fits

# one entry per question; names first, then fragments that the name of such a metric would hold
WANTED = (
    (
        "mean_token_entropy_bits",
        "token_entropy_bits",
        "token_entropy",
        "token_entropy_median_bits",
        "token*entropy",
        "entropy",
    ),
    ("share_single_token", "single_token_share", "single*token"),
    ("explained_variance_above_gaussian", "ev_above_gaussian", "variance*above", "ev*above"),
)
# what a metric means, for a reader who meets it here; any other is given by its own definition
IN_PLAIN_WORDS = {
    "mean_token_entropy_bits": "Over how many different tokens a latent's activation is spread, "
    "averaged over latents: 0 bits is a single token, and each further bit doubles the number.",
    "share_single_token": "How many of all latents are detectors of one token: nearly all their "
    "activation is on it, and they are active on most of its occurrences.",
    "explained_variance_above_gaussian": "How much better the SAE reconstructs the activations "
    "than the same recipe does on structureless Gaussian noise of the same mean and covariance: "
    "0 is no better than on noise, 1 is perfect.",
    "explained_variance": "The share of the activations' variance that the SAE reconstructs: 1 is "
    "perfect. Noise without structure gives more than 0.",
}
_FALLBACK = (("explained_variance",), ("fvu",), ("variance",))


def verdict(row: Row) -> tuple[str, str]:
    """Return an effect's verdict: its kind, which is a CSS class, and its words."""
    effect, covered = finite(row.get("effect")), covers_null(row)
    if effect is None:
        return "unknown", "Not estimable"
    if covered is None:
        return "unknown", "No interval"
    if covered:
        return "unclear", "Cannot tell"
    words = "Higher" if effect > null_of(row) else "Lower"
    return "differs", f"{words}, but within A/A" if within_aa(row) else words


def sentence(row: Row, contrast: Contrast, level: str) -> str:
    """Return an effect in one sentence, which says no more than its interval allows.

    Args:
        row: Of the effects table, as it is shown.
        contrast: Of which the row is.
        level: How the interval is called, such as "95% interval".
    """
    unit = row["unit"]
    kind, _ = verdict(row)
    effect = effect_estimate(row)
    if kind == "unknown" and finite(row.get("effect")) is None:
        return f"{contrast.arm} minus {contrast.control} cannot be estimated: {effect.reason}."
    size = effect.value.lstrip("+−")
    side = "higher" if (finite(row["effect"]) or 0.0) > null_of(row) else "lower"
    if kind == "unknown":
        return (
            f"{contrast.arm} is {side} than {contrast.control} by "
            f"{with_unit(size, unit)}, with no interval: {effect.reason}."
        )
    if kind == "unclear":
        return (
            f"This trial cannot tell {contrast.arm} from {contrast.control}: the {level} "
            f"holds the null, {number(null_of(row), 0)}."
        )
    return f"{contrast.arm} is {side} than {contrast.control} by {with_unit(size, unit)}."


def _card(row: Row, contrast: Contrast, view: View, failed: FailedFits) -> dict[str, Any]:
    """Return what the template shows of an effect; of one whose SAE failed to train, that it is not read."""
    kind, words = verdict(row)
    card: dict[str, Any] = {
        "kind": kind,
        "verdict": words,
        "sentence": sentence(row, contrast, view.level),
        "effect": effect_estimate(row),
        "unit": difference_unit(row["unit"]),
        "arm": side_estimate(row, "arm"),
        "control": side_estimate(row, "control"),
        "arm_name": contrast.arm,
        "control_name": contrast.control,
        "arm_index": view.styles[contrast.arm].index,
        "control_index": view.styles[contrast.control].index,
        "aa": aa_estimate(row),
        "cautions": cautions(row),
        "sample": sample(row),
        "metric_null": own_null(row, view),
        "null": number(null_of(row), 0),
    }
    unread = failed.unread(row)
    if unread:
        card |= {
            "kind": "unknown",
            "verdict": "Not read",
            "sentence": f"{contrast.arm} minus {contrast.control} is not read: {unread}.",
            "effect": Estimate("–", None, f"not read: {unread}", sample(row)),
            "unit": "",
            "cautions": [],
        }
    return card


def cautions(row: Row) -> list[str]:
    """Return a sentence for each doubt that the A/A comparison casts on an effect."""
    doubts = []
    if within_aa(row):
        doubts.append(
            "Within A/A: the effect is no larger than its A/A interval, where nothing differs but "
            "the random draw. By this report's rule it is no finding."
        )
    if narrower_than_aa(row):
        doubts.append(
            "The interval is less than a third as wide as the A/A interval: the re-draws behind "
            "it are few, or agreed by luck, and it may be too narrow."
        )
    if covers_null(row, "aa_") is False:
        doubts.append(
            "The A/A comparison, where nothing differs but the random draw, leaves the null out "
            "as well: read this effect with care."
        )
    return doubts


def own_null(row: Row, view: View) -> str:
    """Return the null that a row records for its metric, in words.

    What the metric's general description says already is left out; the numbers of this row remain.
    """
    text = str(row.get("metric_null") or "not recorded")
    general = _recorded(view, str(row["metric"])).get("null", "")
    if not general or not text.startswith(general):
        return text
    rest = text.removeprefix(general).strip().removeprefix("(").removesuffix(")")
    same = general.partition(":")[0]
    return "" if all(part.startswith(f"{same} in ") for part in rest.split(", ")) else rest


def _recorded(view: View, metric: str) -> dict[str, str]:
    terms = metric_terms(view.tables.trial.get("metrics"))
    return next((term for term in terms if term["name"] == metric), {})


def meaning(row: Row, view: View) -> list[str]:
    """Return sentences on what a metric means, its null, and what to expect of a placebo, if known.

    They come from what the trial recorded of the metric, and from the class that it counts.
    """
    metric = str(row["metric"])
    term = _recorded(view, metric)
    sentences = [IN_PLAIN_WORDS.get(metric) or _full_stop(term.get("definition", ""))]
    if term.get("null", "not recorded") != "not recorded":
        none, _, rest = term["null"].partition(":")
        if none.strip().lower() == "none" and rest:
            sentences.append(f"It has no null of its own: {rest.strip().rstrip('.')}.")
        else:
            sentences.append(f"Its own null: {term['null'].rstrip('.')}.")
    # what others reported of random models, which is never an answer about this trial
    reported = {f"share_{kind.name}": kind.on_random_models for kind in CLASSES}
    expected = {
        "higher": "Higher is better, so a placebo would be expected to score lower.",
        "lower": "Lower is better, so a placebo would be expected to score higher.",
    }
    if metric in reported:
        report = reported[metric].removeprefix("Yes: ").rstrip(".")
        sentences.append(f"Reported elsewhere on random models: {report}.")
    else:
        neither = "Neither direction is better, and none is expected of a placebo."
        sentences.append(expected.get(str(row["better"]), neither))
    return [text for text in sentences if text]


def _full_stop(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "." if text else ""


def question(contrast: Contrast, view: View) -> str:
    """Return the question that a contrast with a re-draw answers; empty where the records do not say.

    It follows from the groups of tensors that the two arms keep as trained, or from whether an SAE was given.
    """
    if of_given := asks_of_given(view, contrast.arm, contrast.control):
        return of_given
    parts = [view.parts.get(name) for name in (contrast.arm, contrast.control)]
    if any(part is not None and not part.model_only for part in parts):
        # a control of the data or the dictionary changes more than the model, which the question is about
        return ""
    kinds = [
        control_kind(arm_facts(view.tables.trial, name).get("control"))
        for name in (contrast.arm, contrast.control)
    ]
    if kinds[1] != "redraw":
        return ""
    kept = [kept_groups(view, name) for name in (contrast.arm, contrast.control)]
    if kept[1] is None:
        return ""
    if contrast.arm == view.trained:
        beyond = ", ".join(kept[1])
        return (
            f"what training put into the weights beyond {beyond}"
            if beyond
            else ("what training put into the weights, all together")
        )
    if kinds[0] != "redraw" or kept[0] is None or not set(kept[0]) > set(kept[1]):
        return ""
    more = ", ".join(group for group in kept[0] if group not in kept[1])
    return f"what trained {more} alone change"


def build(view: View) -> Content:
    """Return a card per leading metric and contrast, those of the trained arm first."""
    groups = []
    leading = contrasts(view)
    failed = failed_fits(view.tables.measurements)
    metrics = list(dict.fromkeys(str(row["metric"]) for c in leading for row in c.rows))
    chosen = ordered(metrics, WANTED)
    if not any("variance" in m or m.startswith("ev_") for m in chosen):
        chosen += [m for m in ordered(metrics, _FALLBACK)[:1] if m not in chosen]
    for metric in chosen or metrics[:3]:
        rows = [(row, c) for c in leading for row in c.rows if row["metric"] == metric]
        by_place: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row, contrast in rows:
            place = (contrast.hookpoint, contrast.sae)
            by_place.setdefault(place, []).append(_card(row, contrast, view, failed))
        of_latents = metric.startswith("share_") or "entropy" in metric
        can_fit = {p for p in by_place if not any((a, *p) in failed.places for a in view.arms)}
        unit = rows[0][0]["unit"]
        groups.append(
            {
                "metric": metric_title(metric, unit),
                "meaning": meaning(rows[0][0], view),
                "places": [
                    {
                        "name": ", ".join(place),
                        "cards": cards,
                        "fit": _fit(place, leading) if of_latents and place in can_fit else None,
                    }
                    for place, cards in by_place.items()
                ],
            }
        )
    values = {
        "groups": groups,
        "questions": _questions(leading, view),
        "many": MANY,
        "n_places": len({(c.hookpoint, c.sae) for c in leading}),
    }
    return Content(values, {})


def _fit(place: tuple[str, str], leading: list[Contrast]) -> dict[str, Any] | None:
    """Return how much variance the SAEs of each arm explain at one place, and whether arms differ in it."""
    at_place = [c for c in leading if (c.hookpoint, c.sae) == place]
    explained = fits(at_place)
    if len(explained) < 2:
        return None
    rows = [row for c in at_place for row in c.rows if row["metric"] == "explained_variance"]
    return {
        "arms": [{"arm": arm, "estimate": estimate} for arm, estimate in explained],
        "sample": " or ".join(dict.fromkeys(estimate.n for _, estimate in explained)),
        "unequal": any(covers_null(row) is False for row in rows),
    }


def _questions(every: list[Contrast], view: View) -> list[dict[str, Any]]:
    questions = {(c.arm, c.control): question(c, view) for c in every}
    return [
        {
            "arm": arm,
            "control": control,
            "arm_index": view.styles[arm].index,
            "control_index": view.styles[control].index,
            "asks": asks,
        }
        for (arm, control), asks in questions.items()
        if asks
    ]


SECTIONS.add(Section("headline", "Headline", ("effects",), build))
