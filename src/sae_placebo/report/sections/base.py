"""What a section is: a name, the tables it reads, and a function from tables to its template."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sae_placebo.core.spec import Registry
from sae_placebo.report.palette import ArmStyle, arm_styles
from sae_placebo.report.plots import Figure
from sae_placebo.report.tables import Tables
from sae_placebo.report.wording import confidence
from sae_placebo.stats.designs import ArmParts, Design, designs


@dataclass(frozen=True)
class View:
    """The tables and what every section needs to know of them."""

    tables: Tables
    arms: list[str]
    trained: str | None
    styles: dict[str, ArmStyle]
    level: str
    """How an interval is called: "95% interval"."""

    @classmethod
    def of(cls, tables: Tables) -> View:
        """Return the view of `tables`."""
        arms, trained = tables.arms, tables.trained()
        styles = arm_styles(arms, trained, tables.parts)
        return cls(tables, arms, trained, styles, confidence(tables.trial))

    @property
    def parts(self) -> dict[str, ArmParts]:
        """What each arm changes, as far as the trial describes it."""
        return self.tables.parts

    def designs(self, family: str) -> list[Design]:
        """Return the designs of one family that the arms make."""
        return [design for design in designs(self.parts) if design.family == family]

    def index(self, arm: str | None) -> int:
        """Return the number of an arm's color."""
        return self.styles[arm].index if arm in self.styles else 0


@dataclass(frozen=True)
class Content:
    """What a section's template is given.

    Attributes:
        values: Names that the template reads.
        figures: Plotly figures by the id of the element that shows them.
    """

    values: Mapping[str, Any]
    figures: Mapping[str, Figure]


@dataclass(frozen=True)
class Section:
    """One part of the report; its template is `templates/<name>.html`.

    Attributes:
        name: Identifier, anchor and template name.
        title: Heading.
        reads: Tables that it needs, by name; the page says when one is missing.
        build: Tables to content; called with empty tables too.
    """

    name: str
    title: str
    reads: tuple[str, ...]
    build: Callable[[View], Content]


SECTIONS: Registry[Section] = Registry("report section")
