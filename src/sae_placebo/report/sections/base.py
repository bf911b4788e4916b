"""A section of the report: its name, the tables that it reads, and a function that fills its template."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sae_placebo.core.lazy import pandas
from sae_placebo.core.spec import Registry
from sae_placebo.report.palette import ArmStyle, arm_styles
from sae_placebo.report.plots import Figure
from sae_placebo.report.tables import Tables
from sae_placebo.report.wording import confidence
from sae_placebo.stats.designs import ArmParts, Design, designs


@dataclass(frozen=True)
class View:
    """A trial's tables, and what every section needs to know of its arms.

    Attributes:
        tables: The tables and the record.
        arms: Every arm, in the report's order: the trained one first.
        trained: The arm without a control; None where there is none.
        styles: Each arm's color and marker.
        level: How an interval is called, such as "95% interval".
    """

    tables: Tables
    arms: list[str]
    trained: str | None
    styles: dict[str, ArmStyle]
    level: str

    @classmethod
    def of(cls, tables: Tables) -> View:
        """Return the view of a trial's tables."""
        arms, trained = tables.arms, tables.trained()
        styles = arm_styles(arms, trained, tables.parts)
        return cls(tables, arms, trained, styles, confidence(tables.trial))

    @property
    def parts(self) -> dict[str, ArmParts]:
        """What each arm changes of the model, the data and the dictionary, if the trial describes it."""
        return self.tables.parts

    def designs(self, family: str) -> list[Design]:
        """Return the designs of one family, such as `cascade`, that the trial's arms make."""
        return [design for design in designs(self.parts) if design.family == family]

    def index(self, arm: str | None) -> int:
        """Return the number of an arm's color; 0 for an arm that the trial does not have."""
        return self.styles[arm].index if arm in self.styles else 0


def arm_of(view: View, arm: str) -> dict[str, Any]:
    """Return an arm's name and the number of its color, as templates read them."""
    return {"name": arm, "index": view.index(arm)}


def arms_in(view: View, table: pandas.DataFrame) -> list[str]:
    """Return the arms that a table has rows of, in the report's order."""
    held = set(table["arm"].dropna())
    return [arm for arm in view.arms if arm in held]


def by_arm(view: View, table: pandas.DataFrame) -> dict[str, pandas.DataFrame]:
    """Return a table's rows by arm, in the report's order; arms without rows are left out."""
    return {arm: table[table["arm"] == arm] for arm in arms_in(view, table)}


def add_figure(figures: dict[str, Figure], key: str, figure: Figure | None) -> dict[str, Any]:
    """Add a figure under a key, and return what a template needs in order to show it.

    Returns:
        `figure`, the key, and `height` in pixels; `figure` is None and nothing added where there is none.
    """
    if figure is None:
        return {"figure": None, "height": 0}
    figures[key] = figure
    return {"figure": key, "height": figure["layout"]["height"]}


@dataclass(frozen=True)
class Content:
    """What a section's template shows.

    Attributes:
        values: By the name under which the template reads it.
        figures: Plotly figures by the id of the element that shows them.
    """

    values: Mapping[str, Any]
    figures: Mapping[str, Figure]


@dataclass(frozen=True)
class Section:
    """One part of the report; its template is `templates/<name>.html`.

    Attributes:
        name: Its identifier, which is also its anchor and its template's name.
        title: Its heading.
        reads: Names of the tables that it needs; the page says which of them are missing or empty.
        build: Function that makes the section's content; it must work with empty tables too.
    """

    name: str
    title: str
    reads: tuple[str, ...]
    build: Callable[[View], Content]


SECTIONS: Registry[Section] = Registry("report section")
