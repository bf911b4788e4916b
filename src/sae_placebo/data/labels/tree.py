"""Labels that the syntax tree gives: roles of names, what is around, place in the statement.

One walk, parents first. What is inside an f-string is left out: `ast` places it wrongly up to
Python 3.11, and labels must not depend on the interpreter.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from typing import Any

from sae_placebo.data.labels.canvas import Canvas
from sae_placebo.data.labels.scopes import BUILTINS, Scope
from sae_placebo.data.labels.source import Source

_Inner = list[tuple[ast.AST, Scope]]
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def paint_tree(tree: ast.Module, source: Source, canvas: Canvas) -> None:
    """Paint all labels that come from the syntax tree, on a canvas that holds the kinds."""
    walk = _Walk(source, canvas)
    walk.docstring(tree)
    # nodes and the scope whose code they are
    waiting: _Inner = [(tree, Scope("module"))]
    while waiting:
        node, scope = waiting.pop()
        visit = _VISITS.get(type(node))
        inner = None if visit is None else visit(walk, node, scope)
        if inner is None:
            inner = [(child, scope) for child in ast.iter_child_nodes(node)]
        waiting.extend(inner)
    walk.paint_names()


class _Walk:
    def __init__(self, source: Source, canvas: Canvas) -> None:
        self.source, self.paint, self.canvas = source, canvas.paint, canvas
        self.in_loop_target: set[int] = set()
        self.names: list[tuple[ast.Name, Scope]] = []

    def span(self, node: Any) -> tuple[int, int]:
        at = self.source.position
        return at(node.lineno, node.col_offset), at(node.end_lineno, node.end_col_offset)

    def paint_node(self, label: str, node: ast.AST | None) -> None:
        if node is not None:
            self.paint(label, *self.span(node))

    def paint_body(self, label: str, body: Sequence[ast.stmt], holds: bool = True) -> None:
        if not body:
            return
        decorators = getattr(body[0], "decorator_list", [])
        start = self.span(decorators[0] if decorators else body[0])[0]
        if decorators:
            start = self.source.text.rfind("@", 0, start)
        self.paint(label, self.source.indentation(start), self.span(body[-1])[1], holds)

    def paint_name_at(self, label: str, position: int) -> None:
        self.paint(label, position, self.source.name_at.get(position, position))

    def paint_name_before(self, label: str, position: int) -> None:
        self.paint(label, self.source.name_before.get(position, position), position)

    def docstring(self, node: Any) -> None:
        first = node.body[0] if node.body else None
        if not isinstance(first, ast.Expr) or not isinstance(first.value, ast.Constant):
            return
        if isinstance(first.value.value, str):
            canvas = self.canvas
            start, stop = self.span(first.value)
            part = slice(max(start - canvas.start, 0), max(stop - canvas.start, 0))
            canvas.row("kind.docstring")[part] = canvas.row("kind.string")[part]
            canvas.row("kind.string")[part] = False

    def function(self, node: Any, scope: Scope) -> _Inner:
        self.docstring(node)
        start = self.span(node)[0]
        self.paint("role.function_definition", *self.source.name_after(start))
        self.paint_node("clause.annotation", node.returns)
        for one in node.decorator_list:
            self.paint_node("inside.decorator", one)
        body = node.body
        self.paint_body("inside.function_body", body)
        self.paint_body("inside.class_body", body, False)
        if scope.kind == "class":
            self.paint_body("inside.method", body)
        if scope.function() is not None:
            self.paint_body("inside.nested_function", body)
        if isinstance(node, ast.AsyncFunctionDef):
            self.paint_body("inside.async", body)
        scope.bind(node.name)
        inner = Scope("function", scope)
        around = [node.returns] if node.returns is not None else []
        outside: _Inner = [(one, scope) for one in (*node.decorator_list, *around)]
        outside += [(one, inner) for one in getattr(node, "type_params", ())]
        return outside + self.arguments(node.args, scope, inner) + [(one, inner) for one in body]

    def arguments(self, node: ast.arguments, scope: Scope, inner: Scope) -> _Inner:
        every = [*node.posonlyargs, *node.args, *node.kwonlyargs, node.vararg, node.kwarg]
        rest: _Inner = []
        for one in every:
            if one is None:
                continue
            inner.bound.add(one.arg)
            inner.parameters.add(one.arg)
            self.paint_name_at("role.parameter", self.span(one)[0])
            self.paint_node("clause.annotation", one.annotation)
            if one.annotation is not None:
                rest.append((one.annotation, scope))
        for value in (*node.defaults, *node.kw_defaults):
            self.paint_node("clause.default", value)
            if value is not None:
                rest.append((value, scope))
        return rest

    def lambda_(self, node: ast.Lambda, scope: Scope) -> _Inner:
        inner = Scope("function", scope)
        return [*self.arguments(node.args, scope, inner), (node.body, inner)]

    def class_(self, node: Any, scope: Scope) -> _Inner:
        self.docstring(node)
        self.paint("role.class_definition", *self.source.name_after(self.span(node)[0]))
        for one in node.decorator_list:
            self.paint_node("inside.decorator", one)
        self.paint_body("inside.class_body", node.body)
        scope.bind(node.name)
        inner = Scope("class", scope)
        head = (*node.decorator_list, *node.bases, *node.keywords)
        outside: _Inner = [(one, scope) for one in head]
        outside += [(one, inner) for one in getattr(node, "type_params", ())]
        return outside + [(one, inner) for one in node.body]

    def comprehension(self, node: ast.AST, scope: Scope) -> _Inner:
        self.paint_node("inside.comprehension", node)
        inner = Scope("comprehension", scope)
        return [(child, inner) for child in ast.iter_child_nodes(node)]

    def generator(self, node: ast.comprehension, scope: Scope) -> None:
        self.paint_node("clause.iterable", node.iter)
        self.loop_target(node.target)

    def for_(self, node: Any, scope: Scope) -> None:
        self.paint_node("clause.iterable", node.iter)
        self.paint_body("inside.loop", node.body)
        self.loop_target(node.target)

    def loop_target(self, target: ast.expr) -> None:
        for one in ast.walk(target):
            if isinstance(one, ast.Name | ast.Attribute) and isinstance(one.ctx, ast.Store):
                self.in_loop_target.add(id(one))
                self.paint_name_before("role.loop_variable", self.span(one)[1])

    def while_(self, node: ast.While, scope: Scope) -> None:
        self.paint_node("clause.condition", node.test)
        self.paint_body("inside.loop", node.body)

    def if_(self, node: ast.If, scope: Scope) -> None:
        self.paint_node("clause.condition", node.test)
        self.paint_body("inside.if", node.body)
        rest = node.orelse
        # an `elif` is the only statement of the other branch, and paints its own parts
        start = self.span(rest[0])[0] if rest else 0
        if rest and not (
            isinstance(rest[0], ast.If) and self.source.text.startswith("elif", start)
        ):
            self.paint_body("inside.if", rest)

    def with_(self, node: Any, scope: Scope) -> None:
        self.paint_body("inside.with", node.body)

    def try_(self, node: Any, scope: Scope) -> None:
        self.paint_body("inside.try", node.body)

    def handler(self, node: ast.ExceptHandler, scope: Scope) -> None:
        self.paint_body("inside.except", node.body)
        self.paint_node("role.exception_type", node.type)
        if node.name is not None:
            scope.bind(node.name)

    def raise_(self, node: ast.Raise, scope: Scope) -> None:
        # `raise error` raises a variable, `raise Error(...)` a class
        if isinstance(node.exc, ast.Call):
            self.paint_last_name("role.exception_type", node.exc.func)
        elif isinstance(node.exc, ast.Name | ast.Attribute):
            name = node.exc.id if isinstance(node.exc, ast.Name) else node.exc.attr
            if name.lstrip("_")[:1].isupper():
                self.paint_last_name("role.exception_type", node.exc)

    def return_(self, node: ast.Return, scope: Scope) -> None:
        self.paint_node("inside.return", node.value)

    def paint_last_name(self, label: str, node: ast.expr) -> None:
        if isinstance(node, ast.Name | ast.Attribute):
            self.paint_name_before(label, self.span(node)[1])

    def call(self, node: ast.Call, scope: Scope) -> None:
        self.paint_between("inside.call_arguments", node)
        self.paint_last_name("role.call_target", node.func)

    def subscript(self, node: ast.Subscript, scope: Scope) -> None:
        self.paint_between("inside.subscript", node)

    def paint_between(self, label: str, node: ast.AST) -> None:
        """Paint what is between the node's closing bracket and its partner."""
        last = self.span(node)[1] - 1
        self.paint(label, self.source.opener_of.get(last, last) + 1, last)

    def keyword(self, node: ast.keyword, scope: Scope) -> None:
        if node.arg is not None:
            self.paint_name_at("role.keyword_argument", self.span(node)[0])

    def attribute(self, node: ast.Attribute, scope: Scope) -> None:
        stop = self.span(node)[1]
        self.paint_name_before("role.attribute", stop)
        if isinstance(node.ctx, ast.Store) and id(node) not in self.in_loop_target:
            self.paint_name_before("role.assignment_target", stop)

    def name(self, node: ast.Name, scope: Scope) -> None:
        self.names.append((node, scope))
        if isinstance(node.ctx, ast.Load):
            return
        scope.bind(node.id)
        if isinstance(node.ctx, ast.Store) and id(node) not in self.in_loop_target:
            self.paint_node("role.assignment_target", node)

    def assignment(self, node: Any, scope: Scope) -> None:
        self.paint_node("clause.value", node.value)
        if isinstance(node, ast.AnnAssign):
            self.paint_node("clause.annotation", node.annotation)

    def walrus(self, node: ast.NamedExpr, scope: Scope) -> _Inner:
        self.paint_node("clause.value", node.value)
        return [(node.target, scope.holder()), (node.value, scope)]

    def import_(self, node: Any, scope: Scope) -> None:
        self.paint_node("role.import", node)
        for alias in node.names:
            name = alias.asname or alias.name.partition(".")[0]
            scope.bind(name)
            scope.imported.add(name)

    def declaration(self, node: Any, scope: Scope) -> None:
        kind = "global" if isinstance(node, ast.Global) else "nonlocal"
        scope.elsewhere.update(dict.fromkeys(node.names, kind))

    def fstring(self, node: ast.AST, scope: Scope) -> _Inner:
        return []

    def soft_keyword(self, position: int) -> None:
        stop = self.source.name_at.get(position)
        if stop is not None:
            self.paint("kind.name", position, stop, False)
            self.paint("kind.keyword", position, stop)

    def match(self, node: ast.Match, scope: Scope) -> None:
        self.soft_keyword(self.span(node)[0])
        for case in node.cases:
            start = self.span(case.pattern)[0]
            self.soft_keyword(self.source.last_before("case", start))

    def type_alias(self, node: Any, scope: Scope) -> None:
        self.soft_keyword(self.span(node)[0])
        self.paint_node("clause.value", node.value)

    def pattern(self, node: Any, scope: Scope) -> None:
        name = getattr(node, "name", None) or getattr(node, "rest", None)
        if name is not None:
            scope.bind(name)
        elif isinstance(node, ast.MatchAs) and node.pattern is None:
            self.soft_keyword(self.span(node)[0])  # the wildcard `_`

    def paint_names(self) -> None:
        """Paint what depends on who binds a name; all bindings of the file are known by now."""
        for node, scope in self.names:
            owner, function = scope.owner(node.id), scope.function()
            start, stop = self.span(node)
            if owner is None:
                if node.id in BUILTINS:
                    self.paint("role.builtin", start, stop)
                continue
            if node.id in owner.imported:
                self.paint("role.imported", start, stop)
            if function is None:
                continue
            if owner.kind == "module":
                self.paint("role.global_name", start, stop)
            elif owner is function and node.id in owner.parameters:
                self.paint("role.enclosing_parameter", start, stop)
            elif owner is function or (
                owner.kind == "comprehension" and owner.function() is function
            ):
                self.paint("role.local_variable", start, stop)


_Visit = Callable[[_Walk, Any, Scope], _Inner | None]
_VISITS: dict[type, _Visit] = {
    **dict.fromkeys(_FUNCTIONS, _Walk.function),
    **dict.fromkeys(
        (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp), _Walk.comprehension
    ),
    **dict.fromkeys((ast.For, ast.AsyncFor), _Walk.for_),
    **dict.fromkeys((ast.With, ast.AsyncWith), _Walk.with_),
    **dict.fromkeys((ast.Try, ast.TryStar), _Walk.try_),
    **dict.fromkeys((ast.Assign, ast.AugAssign, ast.AnnAssign), _Walk.assignment),
    **dict.fromkeys((ast.Import, ast.ImportFrom), _Walk.import_),
    **dict.fromkeys((ast.Global, ast.Nonlocal), _Walk.declaration),
    **dict.fromkeys((ast.MatchAs, ast.MatchStar, ast.MatchMapping), _Walk.pattern),
    ast.Lambda: _Walk.lambda_,
    ast.ClassDef: _Walk.class_,
    ast.comprehension: _Walk.generator,
    ast.While: _Walk.while_,
    ast.If: _Walk.if_,
    ast.ExceptHandler: _Walk.handler,
    ast.Raise: _Walk.raise_,
    ast.Return: _Walk.return_,
    ast.Call: _Walk.call,
    ast.Subscript: _Walk.subscript,
    ast.keyword: _Walk.keyword,
    ast.Attribute: _Walk.attribute,
    ast.Name: _Walk.name,
    ast.NamedExpr: _Walk.walrus,
    ast.JoinedStr: _Walk.fstring,
    ast.Match: _Walk.match,
}
# nodes of newer interpreters
for _name, _visit in (("TemplateStr", _Walk.fstring), ("TypeAlias", _Walk.type_alias)):
    if hasattr(ast, _name):
        _VISITS[getattr(ast, _name)] = _visit
