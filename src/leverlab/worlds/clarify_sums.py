"""Chains of calculations, as the solutions of GSM8K write them, and their answers when a number is another one."""

import ast
import re
from collections.abc import Mapping, Sequence

FIGURES = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+"
_OTHERS = (1.0, 2.0, 7.0)  # so much is added to a number to see whether the answer changes
_NOTHING = 0.01  # results are written with two digits after the point


def answers_without(value: float, chain: Sequence[tuple[str, str]], answer: str) -> list[str]:
    """Return other answers that a chain of calculations has when the given number `value` is another one.

    chain: what is calculated, and what comes out of it, in order; a later calculation may go on from what came out.
    Tried with `value` + 1, + 2 and + 7. None as well when the chain cannot be followed: it holds something else than
    + - * / and numbers, does not end in `answer`, or finds `value` itself on its way, which is then no given number.
    """
    try:
        results = [number_of(right.strip().strip("$%")) for _, right in chain]
        if not results or results[-1] != number_of(answer) or value in results:
            return []
        base = _follow(chain, results, {})
        tried = [_follow(chain, results, {value: value + more}) for more in _OTHERS]
    except (ValueError, SyntaxError, ArithmeticError, RecursionError, MemoryError):
        return []
    return [f"{round(other, 2):.10g}" for other in tried if abs(other - base) > _NOTHING]


def operands(text: str) -> set[float]:
    """Return the numbers of a calculation."""
    return {number_of(found) for found in re.findall(FIGURES, text)}


def number_of(text: str) -> float:
    """Return the number that figures say, with or without commas between its thousands."""
    return float(text.replace(",", ""))


def _follow(chain: Sequence[tuple[str, str]], results: Sequence[float], known: dict[float, float]) -> float:
    known, last = dict(known), 0.0
    for (left, _), result in zip(chain, results, strict=True):
        readable = left.strip().replace(",", "").replace("$", "").replace("%", "*0.01").replace("x", "*")
        last = _calculated(ast.parse(readable, mode="eval").body, known)
        known[result] = last
    return last


def _calculated(node: ast.expr, known: Mapping[float, float]) -> float:
    match node:
        case ast.Constant(value=int() | float() as number):
            return known.get(float(number), float(number))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_calculated(operand, known)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _calculated(left, known) + _calculated(right, known)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return _calculated(left, known) - _calculated(right, known)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _calculated(left, known) * _calculated(right, known)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _calculated(left, known) / _calculated(right, known)
    raise ValueError(f"{ast.dump(node)} is no calculation")
