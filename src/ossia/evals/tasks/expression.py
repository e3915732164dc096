"""The value of a few lines of Python arithmetic, computed from their syntax tree: a model's code is
never run."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable

_LARGEST = 10**40
"""No value may grow beyond this, so that no expression takes long."""

_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}


def value_of(code: str) -> int | float:
    """What the code prints, or the value of its last line: assignments to plain names, and then
    `print(expression)` or a bare expression. Raises ValueError for anything else."""
    try:
        lines = ast.parse(code.strip()).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"not Python: {error}") from None
    if not lines:
        raise ValueError("no code")
    names: dict[str, int | float] = {}
    try:
        for line in lines[:-1]:
            match line:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    names[name] = _value(value, names)
                case _:
                    raise ValueError("a line before the last that is no assignment")
        match lines[-1]:
            case (
                ast.Expr(value=ast.Call(func=ast.Name(id="print"), args=[printed], keywords=[]))
                | ast.Expr(value=printed)
            ):
                return _value(printed, names)
            case _:
                raise ValueError("the last line shows nothing")
    except (ArithmeticError, RecursionError) as error:
        raise ValueError(f"no value: {error}") from None


def _value(node: ast.expr, names: dict[str, int | float]) -> int | float:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            result = value
        case ast.Name(id=name) if name in names:
            result = names[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            result = -_value(operand, names)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            result = _value(operand, names)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            a, b = _value(left, names), _value(right, names)
            if isinstance(op, ast.Pow) and not (abs(a) <= 10**6 and 0 <= b <= 6):
                raise ValueError("a power too large")
            result = _BINARY[type(op)](a, b)
        case _:
            raise ValueError(f"{type(node).__name__} is no arithmetic")
    if not abs(result) <= _LARGEST:
        raise ValueError("a value too large")
    return result
