"""Where an SAE misleads. Each audit is one file, which asks one question and gives its null."""

from __future__ import annotations

NAMES = (
    *("pushes", "along", "split", "flags", "shrinkage"),
    *("geometry", "meta", "families", "information", "hedging"),
)
"""The modules that hold audits, in the order in which audits are made and shown."""
