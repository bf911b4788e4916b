"""The page of architectures has a line for each, as its script writes it; the trials check what they say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from architecture_survey import NAMES, PAGE, read_page

SCRIPT = Path(__file__).parents[2] / "docs" / "architectures.py"


def test_the_page_is_as_its_script_writes_it() -> None:
    spec = importlib.util.spec_from_file_location("docs_architectures", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = PAGE.read_text(encoding="utf-8")
    rows = read_page(page)
    assert set(rows) == set(NAMES)
    assert len(NAMES) >= 40
    assert script.text(page, rows) == page, "run: python docs/architectures.py"
