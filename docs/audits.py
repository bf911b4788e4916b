"""Write the tables of docs/concepts/misleading.md from what audits say of themselves.

python docs/audits.py
"""

from __future__ import annotations

import re
from pathlib import Path

from sae_placebo.audits import AUDITS

PAGE = Path(__file__).parent / "concepts" / "misleading.md"


def text(page: str) -> str:
    """Return the page with its tables as the package is."""
    parts = []
    for name in AUDITS:
        one = AUDITS[name]
        rows = "\n".join(
            f"| `{q.name}` | {q.unit} | {_cell(q.null)} | {_cell(q.definition)} | {_cell(q.advice)} |"
            for q in one.quantities
        )
        parts.append(
            f"### {one.title}\n\n{one.question}\n\n| number | unit | null | definition | what to do |\n"
            f"|---|---|---|---|---|\n{rows}\n\nSource: {one.source}"
        )
    filled = "<!-- audits -->\n\n" + "\n\n".join(parts) + "\n\n<!-- /audits -->"
    return re.sub(r"<!-- audits -->.*?<!-- /audits -->", lambda _: filled, page, flags=re.DOTALL)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").strip() or "–"


if __name__ == "__main__":
    PAGE.write_text(text(PAGE.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
