"""Write docs/concepts/glossary.md from what metrics, classes and the other terms say of themselves.

python docs/glossary.py
"""

from __future__ import annotations

from pathlib import Path

from sae_placebo.report.glossary import glossary, markdown
from sae_placebo.trial.results import EVERY_METRIC

PAGE = Path(__file__).parent / "concepts" / "glossary.md"


def text() -> str:
    """Return the page that belongs to the package as it is."""
    keys = ("unit", "null", "definition", "source")
    described = {
        name: {key: getattr(one, key) for key in keys} for name, one in EVERY_METRIC.items()
    }
    return markdown(glossary(described))


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8", newline="\n")
