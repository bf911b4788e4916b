"""Every term of the report with its definition, unit, null and source.

It is one list for two readers: `docs/concepts/glossary.md` is what `markdown` makes of it, and the
section "Definitions" shows it for one trial.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from sae_placebo.latents.classes.classification import CLASSES
from sae_placebo.report import words
from sae_placebo.report.words import Term


class Group(NamedTuple):
    """The terms of one kind, such as the metrics.

    Attributes:
        kind: Part of each term's anchor, `term-<kind>-<name>`.
        title: Heading of the group.
        terms: In the order in which they are read.
    """

    kind: str
    title: str
    terms: tuple[Term, ...]


_PAGES = (
    ("coverage_", "coverage"),
    ("share_", "classes"),
    ("origin_", "origin"),
    ("stable_", "origin"),
    ("explained_up_to_", "ladder"),
    ("ladder_", "ladder"),
    ("has_", "partners"),
    ("seed_", "partners"),
    ("r2_", "ladder"),
    ("activations_r2_", "ladder"),
    ("marginal_structure", "structure"),
    ("sae_bits", "description-length"),
    ("sae_pursuit_bits", "description-length"),
)
"""The beginning of metrics' names, and the page of docs/concepts that says more about them."""
_DESCRIBED = ("definition", "unit", "null", "source")
_MISSING = "not recorded"


def _classes() -> tuple[Term, ...]:
    """Return the classes of latents as terms, in the order in which their rules are tried."""
    return tuple(
        Term(
            kind.name,
            kind.definition,
            "share of all latents",
            f"the share in the placebo arms. On random models: {_lower(kind.on_random_models)}",
            "`classification.CLASSES`.",
            "classes",
        )
        for kind in CLASSES
    )


def _metrics(described: Mapping[str, Mapping[str, Any]]) -> tuple[Term, ...]:
    """Return the metrics as terms.

    Args:
        described: By name of the metric: its unit, null, definition and source.
    """
    return tuple(
        Term(
            name=name,
            page=next((page for start, page in _PAGES if name.startswith(start)), ""),
            **{key: str(metric.get(key) or _MISSING) for key in _DESCRIBED},
        )
        for name, metric in described.items()
    )


def glossary(metrics: Mapping[str, Mapping[str, Any]]) -> tuple[Group, ...]:
    """Return every term, in groups by kind.

    Args:
        metrics: By name: each metric's unit, null, definition and source, as `trial.json` records them.
    """
    return (
        Group("word", "Words", words.WORDS),
        Group("metric", "Metrics", _metrics(metrics)),
        Group("class", "Classes of latents", _classes()),
        Group("origin", "Origin", words.ORIGINS),
        Group("rung", "Rungs of the ladder", words.RUNGS),
        Group("score", "Scores that decoys are held against", words.SCORES),
        Group("baseline", "Simpler baselines", words.BASELINES),
        Group("control", "Controls", words.CONTROLS),
    )


def markdown(groups: Iterable[Group]) -> str:
    """Return the terms as the text of `docs/concepts/glossary.md`: a table per group."""
    lines = [
        "# Glossary",
        "",
        "Every term of the report: what it is, its unit, the value that it has where there is nothing to "
        "find, and its source. Written by `docs/glossary.py` from what the package says of itself; a test "
        "holds the two equal.",
    ]
    for group in groups:
        lines += ["", f"## {group.title}", ""]
        lines += ["| term | definition | unit | null | source |", "|---|---|---|---|---|"]
        lines += [_row(term, group.kind) for term in group.terms]
    return "\n".join(lines) + "\n"


def _row(term: Term, kind: str) -> str:
    name = term.name if kind == "word" else f"`{term.name}`"
    more = f"[{term.page}]({term.page}.md)" if term.page else ""
    source = " ".join(part for part in (term.source, more) if part)
    cells = (name, term.definition, term.unit, term.null, source)
    return "| " + " | ".join(cell.replace("|", "\\|") or "–" for cell in cells) + " |"


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
