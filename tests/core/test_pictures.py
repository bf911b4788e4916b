"""Static pictures: literal text, the same bytes, no global state, a clear word without matplotlib."""

from __future__ import annotations

import subprocess
import sys
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest
from matplotlib.figure import Figure

from sae_placebo.core.errors import MissingExtra
from sae_placebo.core.pictures import plain_style, svg_of

HOSTILE = ("$x^2$", "\\frac{1", "<b>&amp;", "_{^$", "한국어 🙂")


@plain_style()
def picture() -> Any:
    figure = Figure(figsize=(4, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot([1, 2, 3], [3, 1, 2], "o-", label=HOSTILE[0])
    axes.set_xticks(range(len(HOSTILE)), HOSTILE)
    axes.set_title(HOSTILE[1])
    axes.legend()
    return figure


def test_text_is_literal_and_bytes_are_the_same_whatever_the_user_has_set() -> None:
    first = svg_of(picture(), "a < b")
    texts = {one.text for one in ElementTree.fromstring(first).iter() if one.tag.endswith("text")}
    assert set(HOSTILE) <= texts
    assert "<title>a &lt; b</title>" in first
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"text.usetex": True, "svg.fonttype": "path", "font.size": 30}):
        assert svg_of(picture(), "a < b") == first
    assert dict(matplotlib.rcParams) == before


def test_another_process_writes_the_same_bytes_without_pyplot() -> None:
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from test_pictures import picture, svg_of\n"
        "sys.stdout.buffer.write(svg_of(picture(), 't').encode())\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.decode() == svg_of(picture(), "t")


def test_without_matplotlib_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = picture()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for draw in (picture, lambda: svg_of(figure, "")):
        with pytest.raises(MissingExtra, match=r"pip install 'sae-placebo\[plots\]'"):
            draw()
