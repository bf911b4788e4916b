from __future__ import annotations

import io
import keyword
import sysconfig
import token
import tokenize
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sae_placebo.data.labels import LABELS, NAMES, Label
from sae_placebo.data.labels.python import mark
from sae_placebo.data.labels.source import fstring_expressions, join_parts

KINDS = [name for name in NAMES if name.startswith("kind.")]
SNIPPETS = [
    "x = 1\n",
    "def f(a, b=2, *c: int) -> str:\n    return a + b\n",
    "été = 'à' + naïve(日本, key='ü')  # commentaire é\n",
    "if x:\n\ty = [1, (2, {3: 4})]\nelse:\n\tpass\n",
    "z = f'{a!r:>{w}} {{}} {b[\"k\"]:x}' 'tail'\n",
    "s = '''one\n  two é\nthree'''; t = b'\\x00'\n",
    "w = 1 + \\\n    2\n",
    "\f\nclass C(B, metaclass=M):\n    '''Doc.'''\n\n    @p.q(1)\n    async def m(self):\n"
    "        await self.x\n",
    "try:\n    a\nexcept (E, F) as e:\n    raise G from e\n",
    "# only a comment\n\n   \n",
    "call(\n    a,\n\n    # inside\n    b)\n",
    "v = [i for i in range(3) if i], lambda q: q, {**k}\n",
    "match x:\n    case [1, _]:\n        pass\n",
    "𝒳 = 'a😀b'\n",
]


def marked(code: str) -> tuple[str, list[int]]:
    """Text without its marks, and the characters between marks, white space aside."""
    text, places, inside = "", [], False
    for character in code:
        if character in "«»":
            inside = character == "«"
        else:
            places += [len(text)] * (inside and not character.isspace())
            text += character
    return text, places


def holds(text: str, label: str) -> list[int]:
    rows = mark(text, 0, len(text))
    assert rows is not None
    return [i for i in np.flatnonzero(rows[NAMES.index(label)]) if not text[i].isspace()]


def kinds(text: str) -> list[str]:
    """The kind of each character, `` for none."""
    rows = mark(text, 0, len(text))
    assert rows is not None
    found = rows[[NAMES.index(kind) for kind in KINDS]]
    assert found.sum(0).max(initial=0) <= 1
    return [KINDS[column.argmax()] if column.any() else "" for column in found.T]


def expected_kinds(text: str) -> list[str]:
    """The same from `tokenize` alone, written in another way; docstrings are strings here."""
    of_type = {
        token.OP: "kind.operator",
        token.NUMBER: "kind.number",
        token.COMMENT: "kind.comment",
        token.NEWLINE: "kind.newline",
        token.NL: "kind.newline",
        token.STRING: "kind.string",
    }
    grid = [[""] * (len(line) + 1) for line in text.split("\n")]
    inside = 0
    for one in tokenize.generate_tokens(io.StringIO(text).readline):
        name = token.tok_name[one.type]
        inside += name in ("FSTRING_START", "TSTRING_START")
        kind = of_type.get(one.type, "")
        if one.type == token.NAME:
            kind = "kind.keyword" if keyword.iskeyword(one.string) else "kind.name"
        if one.string in tuple("()[]{}"):
            kind = ""
        prefix = one.string.split("'")[0].split('"')[0].lower()
        if inside or (one.type == token.STRING and "f" in prefix):
            kind = "kind.fstring"
        inside -= name in ("FSTRING_END", "TSTRING_END")
        (line, column), end = one.start, one.end
        while kind and (line, column) < end and line <= len(grid):
            if column >= len(grid[line - 1]):
                line, column = line + 1, 0
                continue
            grid[line - 1][column] = kind
            column += 1
    return [kind for line in grid for kind in line][: len(text)]


def test_there_are_labels_of_every_group_with_names_of_their_own() -> None:
    assert 40 <= len(NAMES) <= 64
    assert len(set(NAMES)) == len(NAMES)
    groups = {name.partition(".")[0] for name in NAMES}
    assert groups == {"kind", "role", "bracket", "block", "inside", "line", "clause"}


@pytest.mark.parametrize("label", LABELS, ids=lambda label: label.name)
def test_a_label_holds_for_exactly_what_its_example_marks(label: Label) -> None:
    text, places = marked(label.example)
    assert holds(text, label.name) == places
    assert places or label.name == "kind.newline"


def test_line_ends_are_labelled_outside_of_strings_only() -> None:
    text = "x = (1,\n 2)\n'''a\nb'''\n"
    rows = mark(text, 0, len(text))
    assert rows is not None
    ends = np.flatnonzero(rows[NAMES.index("kind.newline")])
    assert [i for i, c in enumerate(text) if c == "\n" and i != text.index("a\n") + 1] == list(ends)


@pytest.mark.parametrize(
    ("label", "code"),
    [
        # an outer function's names are no locals of the inner one
        ("role.local_variable", "def f():\n    «x» = 1\n    def g():\n        return x"),
        ("role.global_name", "x = 1\ndef f():\n    global x\n    «x» = 2"),
        ("role.global_name", "class C:\n    x = 1\n    def f(self):\n        return x"),
        ("role.enclosing_parameter", "y = lambda x: «x» + [«x» for a in «x»][0]"),
        ("role.local_variable", "def f():\n    return [«a» for «a» in b if «a»]"),
        ("role.builtin", "def f(len):\n    return len(«str»(print))\nprint = 1"),
        ("role.imported", "def f():\n    import a.b as c, d.e\n    return «c» + «d» + e"),
        ("role.call_target", "x = a.b.«c»(1)(2)[0](3)"),
        ("role.import", "from . import (\n    «a»,\n    «b» as «c»)\nimport «d».«e»"),
        ("role.exception_type", "raise «E» from e\nraise error\nraise a.b.«E»"),
        ("inside.call_arguments", "x = (f)(«a, (b)») + (c)"),
        ("inside.subscript", "x = (a)[«b[c]»] + [d]"),
        ("inside.class_body", "class C:\n    «def f(s):»\n        class D:\n            «x»\n    «y»"),
        ("block.colon", "def f(x: int = {1: 2}) -> a[1:2]«:» return lambda y: y\nx: int = 1"),
        ("block.depth_1", "if x:\n    «y»\n    «# c»\n\n    «z»\na"),
        ("kind.keyword", "«match» x:\n    «case» (1, «_»):\n        match = case"),
        ("kind.docstring", "«'a'»\n'b'\nclass C:\n    «'c'»  «'d'»"),
        ("kind.string", "x = f'a' «'b'»\ny = «u'c'» rf'd'\nz = «br'e'»"),
        ("inside.if", "if a: «b»\nelse:\n    «if c:»\n        «d»"),
        ("line.continuation", "x = 1 + \\\n  «2»\ny = '''a\nb'''«.c»"),
        ("clause.value", "x: int = «1»\nif (y := «2»): pass"),
        ("role.assignment_target", "«a», *«b» = c\nd[e] = f\n«g»: int\nfor h.i in j: pass"),
        ("role.loop_variable", "for h.«i», k[0] in j: pass"),
    ],
)  # fmt: skip
def test_harder_cases(label: str, code: str) -> None:
    text, places = marked(code)
    assert holds(text, label) == places


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("f'{a}'", ["a"]),
        ("f'{{a}} {b}'", ["b"]),
        ("f'{a!r:>{w}.{p}} {c != d}'", ["a", "w", "p", "c != d"]),
        ("rf'\\{a}'", ["a"]),
        ("f'\\N{DASH} {a}\\{b}'", ["a", "b"]),
        ("f'{d[\"}\"]:x}'", ['d["}"]']),
        ("f'''{\n{1: 2}[x:y]}'''", ["\n{1: 2}[x:y]"]),
        ("f'{x=!s}'", ["x="]),
        ("f'{f\"{y}\"}{z}'", ['f"{y}"', "z"]),
        ("f'{f'{y['}']}'}{z}'", ["f'{y['}']}'", "z"]),  # quotes used again: Python 3.12
    ],
)
def test_expressions_between_the_braces_of_an_fstring(text: str, inside: list[str]) -> None:
    assert [text[i:j] for i, j in fstring_expressions(text)] == inside


def test_an_fstring_in_parts_is_one_token(monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_placebo.data.labels import source

    monkeypatch.setattr(source, "_OPENS_PARTS", {901})
    monkeypatch.setattr(source, "_CLOSES_PARTS", {902})
    text = "x = f'a{f'{b}'}'\n"

    def part(kind: int, start: int, stop: int) -> tokenize.TokenInfo:
        return tokenize.TokenInfo(kind, text[start:stop], (1, start), (1, stop), text)

    stream = [
        part(token.NAME, 0, 1), part(token.OP, 2, 3), part(901, 4, 6), part(903, 6, 7),
        part(token.OP, 7, 8), part(901, 8, 10), part(token.OP, 10, 11), part(token.NAME, 11, 12),
        part(token.OP, 12, 13), part(902, 13, 14), part(token.OP, 14, 15), part(902, 15, 16),
        part(token.NEWLINE, 16, 17),
    ]  # fmt: skip
    found = join_parts(stream, text, [0, 17])
    assert [(one.text, one.is_fstring) for one in found] == [
        ("x", False), ("=", False), ("f'a{f'{b}'}'", True), ("\n", False)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ["def f(:\n", "x = (\n", "'''open", "if x:\npass\n", "x = 1\0\n", "x = '\ud800'\n", "print 1",
     "$", "(" * 300 + ")" * 300, "  x = 1\n y\n", "\ufeff\ufeffx"],
)  # fmt: skip
def test_what_does_not_parse_is_unknown(text: str) -> None:
    assert mark(text, 0, len(text)) is None


def test_warnings_of_the_parser_stay_inside() -> None:
    assert mark("x = '\\d' is 1\nassert (x, 1)\n", 0, 5) is not None  # warnings are errors here


def test_deep_nesting_is_labelled_or_unknown_and_never_an_error() -> None:
    for text in ("x = " + "-" * 5_000 + "1", "x = " + "a+" * 20_000 + "a", "x" + ".y" * 5_000):
        rows = mark(text, 0, len(text))
        assert rows is None or rows.shape == (len(NAMES), len(text))


def test_a_part_is_labelled_as_in_the_whole() -> None:
    text = "".join(SNIPPETS)
    whole = mark(text, 0, len(text))
    assert whole is not None
    for start in range(0, len(text), 37):
        part = mark(text, start, min(start + 61, len(text)))
        assert np.array_equal(part, whole[:, start : start + 61])


sources = st.lists(st.sampled_from(SNIPPETS), min_size=1, max_size=5).map("".join)
relaxed = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@relaxed
@given(sources)
def test_painted_kinds_are_the_tokens_of_tokenize(text: str) -> None:
    found = kinds(text)
    expected = expected_kinds(text)
    soft = {"match", "case", "_"}
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        one = one.replace("docstring", "string")
        if one == "kind.keyword" and other == "kind.name":
            assert any(text.startswith(word, max(i - len(word) + 1, 0) + k)
                       for word in soft for k in range(len(word)))  # fmt: skip
        else:
            assert one == other, (i, text[max(i - 10, 0) : i + 10])


@relaxed
@given(sources, st.randoms(use_true_random=False), st.booleans())
def test_line_ends_and_a_byte_order_mark_change_no_label(
    text: str, random: object, bom: bool
) -> None:
    plain = mark(text, 0, len(text))
    assert plain is not None
    pieces = ["\ufeff"] if bom else []
    origin = [-1] if bom else []
    for i, character in enumerate(text):
        end = random.choice(["\n", "\r", "\r\n"]) if character == "\n" else character
        if end == "\n" and pieces and pieces[-1] == "\r":
            end = "\r\n"  # after a bare \r, \n would be its second half
        pieces += list(end)
        origin += [i] * len(end)
    changed = "".join(pieces)
    rows = mark(changed, 0, len(changed))
    assert rows is not None
    for column, i in zip(rows.T, origin, strict=True):
        assert np.array_equal(column, plain[:, i] if i >= 0 else np.zeros(len(NAMES), bool))
    middle = len(changed) // 2
    assert np.array_equal(mark(changed, 0, middle), rows[:, :middle])
    assert np.array_equal(mark(changed, middle, len(changed)), rows[:, middle:])


@relaxed
@given(st.text(alphabet="ab1 \n\t'\"(){}[]:=,.#\\é\r\f@fd", max_size=40))
def test_any_text_is_labelled_or_unknown(text: str) -> None:
    rows = mark(text, 0, len(text))
    assert rows is None or rows.shape == (len(NAMES), len(text))


def test_real_files_round_trip() -> None:
    root = Path(sysconfig.get_path("stdlib"))
    for name in ("textwrap.py", "dataclasses.py", "contextlib.py"):
        text = (root / name).read_text(encoding="utf-8")[:40_000].rpartition("\n\n\ndef ")[0]
        text = text or (root / name).read_text(encoding="utf-8")
        found = [kind.replace("docstring", "string") for kind in kinds(text)]
        expected = expected_kinds(text)
        wrong = [text[i] for i in range(len(text)) if found[i] != expected[i] and text[i] != "_"]
        assert not wrong
        assert set(found) > {"kind.name", "kind.string", "kind.comment", "kind.operator"}


def test_the_table_in_the_documentation_is_the_catalogue() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "labels.md"
    rows = [
        line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| `")
    ]
    assert [row.split("|")[1].strip(" `") for row in rows] == list(NAMES)
    assert [row.split("|")[2].strip() for row in rows] == [label.holds_for for label in LABELS]
