"""The command line, run in the process of a test."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from sae_placebo.cli import main as cli


def call(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> int:
    """Run the command line in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["sae-placebo", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0
