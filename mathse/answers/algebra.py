"""What an expression is worth: exactly if it is a rational number, or rounded."""

import math
from fractions import Fraction

from mathse.answers.expression import Tree

BITS = 4096  # of an exact number; a larger one is left to math-verify


def exact(tree: Tree) -> Fraction | None:
    """The value of a tree that is a rational number, None for others."""
    operator, *parts = tree
    if operator == "number":
        return parts[0]
    if operator == "name":
        return None
    values = [exact(part) if isinstance(part, tuple) else Fraction(part) for part in parts]
    if None in values or any(
        max(value.numerator.bit_length(), value.denominator.bit_length()) > BITS for value in values
    ):
        return None
    return EXACT[operator](*values) if operator in EXACT else None


def divide(one: Fraction, other: Fraction) -> Fraction | None:
    return one / other if other else None


def raise_to(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1:
        return (
            root(Fraction(exponent.denominator), base)
            if abs(exponent) < 1 and exponent.numerator == 1
            else None
        )
    size = max(base.numerator.bit_length(), base.denominator.bit_length()) * abs(exponent)
    if size > BITS or not base and exponent <= 0:
        return None
    return base ** int(exponent)


def root(degree: Fraction, value: Fraction) -> Fraction | None:
    """The root of a power, such as √(9/4); None if it is not rational."""
    if value < 0 and degree % 2 == 0:
        return None
    parts = [round_root(abs(part), int(degree)) for part in (value.numerator, value.denominator)]
    return None if None in parts else Fraction(parts[0] * (-1 if value < 0 else 1), parts[1])


def round_root(number: int, degree: int) -> int | None:
    if number.bit_length() > 1000:
        return None
    guess = math.isqrt(number) if degree == 2 else round(number ** (1 / degree))
    return guess if guess**degree == number else None


def factorial(value: Fraction) -> Fraction | None:
    return Fraction(math.factorial(int(value))) if value.denominator == 1 and 0 <= value <= 170 else None


def binomial(one: Fraction, other: Fraction) -> Fraction | None:
    small = all(value.denominator == 1 and 0 <= value <= 170 for value in (one, other))
    return Fraction(math.comb(int(one), int(other))) if small else None


def logarithm(base: Fraction, value: Fraction) -> Fraction | None:
    """log_2 8 is 3; None if it is no integer."""
    if base <= 1 or value <= 0:
        return None
    power = (
        round(math.log(value) / math.log(base)) if value < 1 << 1000 and value > Fraction(1, 1 << 1000) else 0
    )
    size = max(base.numerator.bit_length(), base.denominator.bit_length()) * abs(power)
    return Fraction(power) if size <= BITS and base**power == value else None


EXACT = {
    "+": lambda one, other: one + other,
    "*": lambda one, other: one * other,
    "/": divide,
    "^": raise_to,
    "neg": lambda value: -value,
    "abs": abs,
    "root": root,
    "!": factorial,
    "choose": binomial,
    "log": logarithm,
}


def approximate(tree: Tree) -> float | None:
    """The value of a tree without variables, rounded; None if it has some, or is too large."""
    operator, *parts = tree
    try:
        if operator == "number":
            return float(parts[0])
        if operator == "name":
            return {"π": math.pi, "e": math.e, "∞": math.inf}.get(parts[0])
        values = [approximate(part) if isinstance(part, tuple) else float(part) for part in parts]
        result = None if None in values or operator not in ROUNDING else ROUNDING[operator](*values)
        return result if isinstance(result, float | int) else None
    except (ArithmeticError, ValueError):
        return None


ROUNDING = {
    "+": lambda one, other: one + other,
    "*": lambda one, other: one * other,
    "/": lambda one, other: one / other,
    "^": math.pow,
    "neg": lambda value: -value,
    "abs": abs,
    "root": lambda degree, value: math.copysign(abs(value) ** (1 / degree), value),
    "!": lambda value: math.gamma(value + 1),
    "log": lambda base, value: math.log(value) / math.log(base),
    "degrees": math.radians,
    "sin": math.sin, "cos": math.cos, "tan": math.tan, "ln": math.log, "exp": math.exp,
    "arcsin": math.asin, "arccos": math.acos, "arctan": math.atan,
    "cot": lambda value: 1 / math.tan(value),
    "sec": lambda value: 1 / math.cos(value),
    "csc": lambda value: 1 / math.sin(value),
}  # fmt: skip
