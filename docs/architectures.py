"""Write docs/reference/architectures.md from trials of tiny models: the code that the tests run.

python docs/architectures.py           # all of them, a few minutes
python docs/architectures.py NAME ...  # these; the others stay as the page has them
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import architectures
from architecture_survey import NAMES, PAGE, SITES, Row, line, read_page, survey

_START, _END = "<!-- table -->", "<!-- /table -->"


def text(page: str, rows: dict[str, Row]) -> str:
    """Return the page with its table and sentences as `rows` are."""
    sentences: list[str] = []
    lines = [line(name, rows[name], sentences) for name in NAMES if name in rows]
    head = f"| model | type | {' | '.join(f'`{site}`' for site in SITES)} |\n|---|---|{'---|' * len(SITES)}"
    said = "\n".join(f"{n}. {sentence}" for n, sentence in enumerate(sentences, 1))
    table = "\n".join([head, *lines]) + f"\n\nThe sentences:\n\n{said}"
    before, rest = page.split(_START)
    return f"{before}{_START}\n\n{table}\n\n{_END}{rest.split(_END)[1]}"


def main(names: list[str]) -> None:
    """Survey the architectures named, or all, and write the page."""
    page = PAGE.read_text(encoding="utf-8")
    rows = read_page(page)
    failed = []
    for name in names or NAMES:
        print(name, flush=True)
        try:
            with tempfile.TemporaryDirectory() as folder, architectures.one_thread():
                rows[name] = survey(name, Path(folder))
        except Exception:  # a fault to mend: the page keeps what it had
            traceback.print_exc()
            failed.append(name)
    PAGE.write_text(text(page, rows), encoding="utf-8", newline="\n")
    if failed:
        raise SystemExit(f"failed: {' '.join(failed)}")


if __name__ == "__main__":
    main(sys.argv[1:])
