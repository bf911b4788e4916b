"""What every registered section must do: render from any tables, and leave no number bare."""

from __future__ import annotations

import functools
import re
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from sae_placebo.report import Tables, read_tables
from sae_placebo.report.build import render_section
from sae_placebo.report.sections import SECTIONS, View
from sae_placebo.report.tables import COLUMNS
from synthetic_trial import FACTORIAL, Settings, write_trial

SOME = ("trained", "redraw", "redraw_keep_embeddings", "shuffle", "cascade_2")
VOID = {"br", "wbr", "meta", "link", "input", "hr"}
# text that is not about what was measured: settings as given, formulas, names of things
FREE = {"setting", "definition", "from", "text", "token", "small", "who"}
NUMBER = re.compile(r"(?<![\w.\-])\d[\d,]*\.\d+")


class Node:
    def __init__(self, tag: str, classes: set[str]) -> None:
        self.tag, self.classes = tag, classes
        self.children: list[Node | str] = []

    def walk(self) -> list[Node]:
        found = [self]
        for child in self.children:
            if isinstance(child, Node):
                found += child.walk()
        return found

    def text(self, without: set[str] | None = None) -> str:
        skipped = without or set()
        parts = []
        for child in self.children:
            if isinstance(child, str):
                parts.append(child)
            elif not child.classes & skipped:
                parts.append(child.text(skipped))
        return "".join(parts)

    def has(self, name: str) -> bool:
        return any(name in node.classes for node in self.walk())


class Tree(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.root = Node("", set())
        self._open = [self.root]
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(text)
        assert self._open == [self.root], "an element is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.attributes += [(tag, name, value) for name, value in given.items()]
        node = Node(tag, set(given.get("class", "").split()))
        if given.get("data-n"):
            node.classes.add("n")
        self._open[-1].children.append(node)
        if tag not in VOID:
            self._open.append(node)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(data)


@functools.cache
def tables(kind: str) -> Tables:
    settings = {
        "full": Settings(latents=80),
        "every control": Settings.every_control(latents=20, kept_per_sae=3, passages=1),
        "some designs": Settings(
            arms=SOME, kinds={arm: FACTORIAL[arm] for arm in SOME}, latents=20, passages=1
        ),
        "one arm": Settings(arms=("trained",), latents=80),
        "no effects": Settings(latents=80, drop=("effects",)),
        "no latents": Settings(drop=("latents", "passages")),
        "no trial.json": Settings(latents=80, drop=("trial",)),
        "empty": Settings(drop=(*COLUMNS, "trial")),
    }[kind]
    with tempfile.TemporaryDirectory() as folder:
        return read_tables(write_trial(Path(folder) / "trial", settings))


KINDS = (
    "full",
    "every control",
    "some designs",
    "one arm",
    "no effects",
    "no latents",
    "no trial.json",
    "empty",
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", list(SECTIONS))
def test_section(name: str, kind: str) -> None:
    section = SECTIONS[name]
    assert set(section.reads) <= {*COLUMNS, "trial"}
    view = View.of(tables(kind))
    tree = Tree(render_section(section, view))

    assert tree.root.text().strip(), "a section says something, even without tables"
    for tag, attribute, value in tree.attributes:
        if attribute in ("src", "href"):
            assert value.startswith("#"), (tag, value)
        assert not attribute.startswith("on")

    estimates = [node for node in tree.root.walk() if "estimate" in node.classes]
    for node in estimates:
        assert node.has("n") or node.has("sample"), node.text()
        stated = node.has("interval") or node.has("reason") or "latent" in node.classes
        assert stated, f"neither interval nor reason: {node.text()}"
    # a number with decimals that is no setting is part of an estimate
    bare = NUMBER.findall(tree.root.text(without={"estimate"} | FREE))
    assert not bare, f"numbers without n and interval: {bare[:5]}"
    if kind == "full" and name in ("arms", "headline", "effects", "classes", "latents"):
        assert estimates
    if kind == "every control" and name in ("designs", "dose", "data", "coverage"):
        assert estimates


@pytest.mark.parametrize("name", list(SECTIONS))
def test_same_tables_same_section(name: str) -> None:
    found = tables("full")
    rendered = [render_section(SECTIONS[name], View.of(found)) for _ in range(2)]
    assert rendered[0] == rendered[1]


def test_row_order_does_not_change_the_latents_drawn() -> None:
    found = tables("full")
    turned = Tables(
        trial=found.trial,
        effects=found.effects,
        latents=found.latents.iloc[::-1],
        measurements=found.measurements,
        passages=found.passages.iloc[::-1],
    )
    section = SECTIONS["latents"]
    assert render_section(section, View.of(found)) == render_section(section, View.of(turned))
