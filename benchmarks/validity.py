"""What was measured of the validity of headlines, written into the package for every report to show.

    import validity
    validity.write("used", {"power": validity.rate(32, 40, "used variables of worlds")}, "python …", out)

One file holds all headlines; a script writes the entries that it measured, and leaves the others. A kind that
is missing is shown as not measured.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import machine

import sae_placebo
from sae_placebo.report.sections.validity import FILE, HEADLINES, KINDS
from sae_placebo.stats.proportions import wilson


def rate(hits: int, n: int, of: str) -> dict[str, Any]:
    """Return a measured rate with its interval.

    Args:
        hits: How many intervals left the null out (`aa`), held the truth (`coverage`), or how many planted
            things were found (`power`).
        n: Of how many.
        of: What these are, in words.
    """
    low, high = wilson(hits, n)
    return {"value": hits / n, "low": low, "high": high, "n": n, "of": of}


def write(headline: str, found: dict[str, Any], command: str, out: Path) -> None:
    """Write what was measured of one headline into the package, if `out` is where results are kept.

    Args:
        headline: One of `HEADLINES`.
        found: A rate by kind: `aa`, `coverage`, `power`.
        command: What measures it again.
        out: Where the results are written. Those elsewhere are trials, and the package is left alone.
    """
    if out.resolve().parent != machine.RESULTS.resolve():
        return
    wrong = [headline] * (headline not in HEADLINES) + [kind for kind in found if kind not in KINDS]
    if wrong:
        raise SystemExit(f"unknown: {', '.join(wrong)}; see sae_placebo.report.sections.validity")
    known = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    mine = known.setdefault(headline, {})
    for kind, one in found.items():
        mine[kind] = machine.rounded(one) | {
            "command": command,
            "version": sae_placebo.__version__,
        }
    text = json.dumps(known, indent=1, sort_keys=True, allow_nan=False)
    FILE.write_text(text + "\n", encoding="utf-8")
