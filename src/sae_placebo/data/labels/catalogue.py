"""Every label: its name, when it holds, and an example in which «» marks where.

Examples are tested: the label holds for exactly the marked characters, white space aside.
"""

from __future__ import annotations

from typing import NamedTuple

FAR_LINES = 20
FAR_TOKENS = 20


class Label(NamedTuple):
    """One label: `group.name`, the definition, and code with «» around what it holds for."""

    name: str
    holds_for: str
    example: str


LABELS: tuple[Label, ...] = (
    # kind: what the Python token is
    Label("kind.keyword", "keywords, with True, False and None, and soft keywords used as such",
          "«if» x «is» «None»:\n    «pass»"),
    Label("kind.operator", "operators and punctuation, brackets left out", "x «=» a«.»b(c«,» d)"),
    Label("kind.name", "identifiers", "«x» = «a».«b»(3)"),
    Label("kind.number", "numbers", "x = «0x1f» + «2.5»"),
    Label("kind.string", "string and bytes literals that are neither f-strings nor docstrings",
          "x = «'a'» + f'b'"),
    Label("kind.fstring", "f-strings, with what is in their braces", "x = «f'{a} b'» + 'c'"),
    Label("kind.docstring", "docstrings of modules, classes and functions",
          "def f():\n    «'''Doc.'''»\n    'no doc'"),
    Label("kind.comment", "comments", "x = 1  «# one»"),
    Label("kind.newline", "line ends, inside brackets too; never seen beside other characters",
          "x = 1"),
    # role: what a name is for
    Label("role.function_definition", "the name behind `def`", "def «f»(x):\n    return x"),
    Label("role.class_definition", "the name behind `class`", "class «C»(B):\n    pass"),
    Label("role.parameter", "parameters where they are declared, of lambdas too",
          "def f(«x», *«y», «z»: int = 1):\n    return x"),
    Label("role.attribute", "the name behind the dot of an expression", "x = a.«b».«c»"),
    Label("role.import", "names in import statements", "from «a».«b» import «c» as «d»"),
    Label("role.call_target", "the last name of what is called", "x = «f»(a.«g»(y))"),
    Label("role.keyword_argument", "the name of an argument given by name",
          "f(x, «key»=1, «other»=x)"),
    Label("role.assignment_target", "names and attributes that are assigned to, loops left out",
          "«x» = a.b\na.«b» = x\nwith a as «y»:\n    pass"),
    Label("role.loop_variable", "names that a loop or comprehension assigns",
          "for «i», «j» in x:\n    y = [a for «a» in i]"),
    Label("role.builtin", "names that are found in `builtins` and bound nowhere around",
          "x = «len»(«list»(y))"),
    Label("role.exception_type", "names in the type of an `except`; the class that is raised",
          "try:\n    pass\nexcept «KeyError» as e:\n    raise a.«MyError»(e)"),
    Label("role.first_use", "identifiers that the file did not hold before", "«x» = «y»\nx = x.«z»"),
    Label("role.reuse", "identifiers that the file held before", "x = y\n«x» = «x».z"),
    Label("role.reuse_far", f"identifiers last seen more than {FAR_LINES} lines before",
          "x = y" + "\n" * (FAR_LINES + 1) + "«x» = z"),
    Label("role.imported", "names, outside of imports, that an import bound",
          "import a\nfrom b import c\nx = «a».b(«c»)"),
    Label("role.enclosing_parameter", "names, in its body, of a parameter of the innermost function",
          "def f(x):\n    return «x».y + z"),
    Label("role.local_variable", "names that the innermost function binds, its parameters left out",
          "def f(x):\n    «y» = x\n    return «y» + z"),
    Label("role.global_name", "names in a function that the module binds",
          "y = 1\ndef f(x):\n    return x + «y» + z"),
    # bracket: the brackets around, f-strings left out
    Label("bracket.opening", "opening brackets", "x = f«(»a«[»0])"),
    Label("bracket.closing", "closing brackets", "x = f(a[0«]»«)»"),
    Label("bracket.in_round", "where the innermost bracket around is round; a bracket is not inside itself",
          "x = f(«a, [»b«], c»)"),
    Label("bracket.in_square", "where the innermost bracket around is square", "x = f(a, [«b»], c)"),
    Label("bracket.in_curly", "where the innermost bracket around is curly", "x = {«a: b»}"),
    Label("bracket.depth_1", "inside exactly one pair of brackets", "x = f(«a, [»b«], c»)"),
    Label("bracket.depth_2", "inside exactly two pairs of brackets", "x = f(a, [«b, ()»], c)"),
    Label("bracket.depth_3_or_more", "inside three pairs of brackets or more", "x = f((a, [«b»]), c)"),
    Label("bracket.closes_far",
          f"closing brackets more than {FAR_TOKENS} Python tokens behind their opening one",
          "x = [" + "1, " * 11 + "«]» + [2]"),
    # block: indented blocks around
    Label("block.depth_1", "inside exactly one indented block",
          "if x:\n    «y»\n    «if z:»\n        a"),
    Label("block.depth_2", "inside exactly two indented blocks",
          "if x:\n    y\n    if z:\n        «a»"),
    Label("block.depth_3_or_more", "inside three indented blocks or more",
          "class C:\n    def f(self):\n        if x:\n            «y»\n        z"),
    Label("block.colon", "the colon that opens a block",
          "if x[1:2]«:»\n    y = {1: lambda: 2}"),
    # inside: what is around, however deep
    Label("inside.call_arguments", "between the brackets of a call", "x = f(«a, b»)[c]"),
    Label("inside.subscript", "between the brackets of a subscript", "x = a[«b + c»]"),
    Label("inside.fstring_expression", "between the braces of an f-string",
          "x = f'a {«b + c»!r:>{«d»}}'"),
    Label("inside.decorator", "the expression of a decorator", "@«a.b(c)»\ndef f():\n    pass"),
    Label("inside.class_body", "body of a class, bodies of its functions left out",
          "class C:\n    «x = 1»\n    «def f(self):»\n        return self"),
    Label("inside.function_body", "body of a function", "def f(x):\n    «y = x»\n    «return y»"),
    Label("inside.method", "body of a function that is defined in a class",
          "class C:\n    def f(self):\n        «return self»\ndef g():\n    pass"),
    Label("inside.nested_function", "body of a function that is defined in a function",
          "def f(x):\n    def g():\n        «return x»\n    return g"),
    Label("inside.async", "body of an `async def`", "async def f(x):\n    «await x»"),
    Label("inside.loop", "body of a `for` or `while`", "for x in y:\n    «a = x»\nelse:\n    b"),
    Label("inside.try", "body of a `try`, its other parts left out",
          "try:\n    «a»\nexcept b:\n    c\nfinally:\n    d"),
    Label("inside.except", "body of an `except`",
          "try:\n    a\nexcept b:\n    «c»\nfinally:\n    d"),
    Label("inside.with", "body of a `with`", "with a as b:\n    «c»"),
    Label("inside.if", "body of an `if`, `elif` or `else`",
          "if a:\n    «b»\nelif c:\n    «d»\nelse:\n    «e»"),
    Label("inside.comprehension", "comprehensions and generators, brackets included",
          "x = «[a for a in b]» + c"),
    Label("inside.return", "the value of a `return`", "def f(x):\n    return «x + 1»"),
    # line: place in the line
    Label("line.first", "the first character of a physical line, white space aside",
          "«x» = f(1)\n    \n«y»y = 2"),
    Label("line.last", "the last character of a physical line, white space aside",
          "x = f(1«)»\n\nyy = «2»  "),
    Label("line.continuation", "lines that go on with a statement; inside of strings left out",
          "x = f(1,\n    «2)»\ny = 3"),
    # clause: place in the statement
    Label("clause.condition", "the condition of an `if`, `elif` or `while`",
          "if «x > 1»:\n    y\nelif «z»:\n    a"),
    Label("clause.iterable", "what a loop or comprehension runs over",
          "for x in «f(y)»:\n    z = [a for a in «x»]"),
    Label("clause.value", "the value of an assignment", "x = «f(y)»\nx += «1»"),
    Label("clause.default", "the default of a parameter", "def f(x=«1», *, y: int = «a.b»):\n    z"),
    Label("clause.annotation", "annotations", "def f(x: «int»=1) -> «a.b»:\n    y: «str» = x"),
)  # fmt: skip

NAMES: tuple[str, ...] = tuple(label.name for label in LABELS)
