"""Where an SAE misleads: audits, each with its null, one file each."""

from __future__ import annotations

NAMES = (
    *("pushes", "along", "split", "flags", "shrinkage"),
    *("geometry", "meta", "families", "information", "hedging"),
)
"""Modules that hold audits, in the order in which they are made and shown."""
