"""A tiny grammar of Python expressions, evaluated without Python's own evaluator.

Models write code; this room never runs it. A function is accepted when it is one line, `def NAME(ARGUMENTS): return
EXPRESSION`, and its expression uses only what `_evaluate` below knows: whole numbers, texts, lists, arithmetic,
comparisons, `and or not`, `a if c else b`, indexing, slicing, and a few built-in functions and methods written out
here. Sizes are bounded: source text, tree, steps, whole numbers, texts and lists. There is no attribute access,
no comprehension, no loop, no name but the arguments, so nothing can escape or take long.

What it does not do: run real programs. That needs a sandbox with its own process, which is another room.
"""

import ast
import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MAX_SOURCE = 200
MAX_NODES = 80
MAX_INTEGER = 10**12
MAX_LENGTH = 1000

Value = int | str | bool | list[Any]


class ForbiddenError(Exception):
    """The text is outside the grammar, too large, or fails at evaluation. The message says which."""


@dataclass(frozen=True, slots=True)
class Function:
    """A parsed one-line function: its arguments and its expression."""

    arguments: tuple[str, ...]
    body: ast.expr

    def __call__(self, *values: Value) -> Value:
        """Evaluate the expression.

        Raises:
            ForbiddenError: A wrong number of arguments, a construct outside the grammar, or a failing operation.
        """
        if len(values) != len(self.arguments):
            raise ForbiddenError(f"takes {len(self.arguments)} arguments")
        return _evaluate(self.body, dict(zip(self.arguments, values, strict=True)))


def parse_function(source: str) -> Function:
    """Read `def f(x): return ...`.

    Raises:
        ForbiddenError: It is not a function of the grammar.
    """
    statements = _parse(source.strip())
    if len(statements) != 1 or not isinstance(statements[0], ast.FunctionDef):
        raise ForbiddenError("not one function")
    function = statements[0]
    given = function.args
    if (
        given.vararg
        or given.kwarg
        or given.kwonlyargs
        or given.posonlyargs
        or given.defaults
        or function.decorator_list
    ):
        raise ForbiddenError("only plain arguments are allowed")
    if len(function.body) != 1 or not isinstance(function.body[0], ast.Return) or function.body[0].value is None:
        raise ForbiddenError("its body is not one return")
    return Function(tuple(argument.arg for argument in given.args), function.body[0].value)


def evaluate(source: str) -> Value:
    """Evaluate an expression without names.

    Raises:
        ForbiddenError: It is outside the grammar or fails.
    """
    statements = _parse(source.strip())
    if len(statements) != 1 or not isinstance(statements[0], ast.Expr):
        raise ForbiddenError("not one expression")
    return _evaluate(statements[0].value, {})


def _parse(source: str) -> list[ast.stmt]:
    if len(source) > MAX_SOURCE:
        raise ForbiddenError("too long")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ForbiddenError("not valid Python") from error
    if sum(1 for _ in ast.walk(tree)) > MAX_NODES:
        raise ForbiddenError("too many parts")
    return tree.body


def _bounded(value: Any) -> Value:
    if isinstance(value, int) and abs(value) <= MAX_INTEGER:
        return value
    if isinstance(value, (str, list)) and len(value) <= MAX_LENGTH:
        return value
    raise ForbiddenError("the value is too large or of another type")


def _multiply(left: Any, right: Any) -> Any:
    for text, times in ((left, right), (right, left)):
        if isinstance(text, (str, list)):
            if not isinstance(times, int) or len(text) * max(times, 0) > MAX_LENGTH:
                raise ForbiddenError("too large")
            return text * times
    return left * right


def _modulo(left: Any, right: Any) -> Any:
    if not isinstance(left, int) or not isinstance(right, int):
        raise ForbiddenError("% is for whole numbers")
    return left % right


_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: _multiply,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: _modulo,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "len": len,
    "max": max,
    "min": min,
    "sorted": sorted,
    "sum": lambda values: sum(values),
}
_METHODS: dict[str, Callable[..., Any]] = {
    "upper": str.upper,
    "lower": str.lower,
    "count": lambda text, part: text.count(part),
    "startswith": str.startswith,
    "endswith": str.endswith,
}


def _evaluate(node: ast.expr, names: Mapping[str, Value]) -> Value:
    try:
        return _bounded(_value(node, names))
    except (TypeError, ValueError, ZeroDivisionError, IndexError, AttributeError, OverflowError) as error:
        raise ForbiddenError(f"fails: {type(error).__name__}") from error


def _value(node: ast.expr, names: Mapping[str, Value]) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | str() as value):
            return value
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_evaluate(left, names), _evaluate(right, names))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand, names)  # type: ignore[operator]
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _evaluate(operand, names)
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARE:
            return _COMPARE[type(op)](_evaluate(left, names), _evaluate(right, names))
        case ast.BoolOp(op=op, values=values):
            results = [_evaluate(value, names) for value in values]
            return next((r for r in results if bool(r) == isinstance(op, ast.Or)), results[-1])
        case ast.IfExp(test=test, body=body, orelse=other):
            return _evaluate(body if _evaluate(test, names) else other, names)
        case ast.List(elts=items):
            return [_evaluate(item, names) for item in items]
        case ast.Subscript(value=value, slice=ast.Slice(lower=lower, upper=upper, step=step)):
            bounds = [None if part is None else _evaluate(part, names) for part in (lower, upper, step)]
            return _evaluate(value, names)[slice(*bounds)]  # type: ignore[index]
        case ast.Subscript(value=value, slice=index):
            return _evaluate(value, names)[_evaluate(index, names)]  # type: ignore[index]
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_evaluate(argument, names) for argument in arguments))
        case ast.Call(func=ast.Attribute(value=value, attr=name), args=arguments, keywords=[]) if name in _METHODS:
            return _METHODS[name](_evaluate(value, names), *(_evaluate(argument, names) for argument in arguments))
    raise ForbiddenError(f"{type(node).__name__} is not allowed")
