"""Whole trials of tiny models, the second quarter of the architectures: see `architecture_survey`."""

from __future__ import annotations

from pathlib import Path

import pytest

from architecture_survey import TRIED, check


@pytest.mark.parametrize("name", TRIED[1::4])
def test_a_trial_says_what_the_page_says(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)
