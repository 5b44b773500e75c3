"""Are two expressions or relations equal? math-verify decides (https://github.com/huggingface/Math-Verify).

It gets sympy expressions, built here node by node of what was read: its own reader takes what it can of a
text, and a third of a second for a few brackets. sympy is imported late, because that takes half a second.
"""

import operator

from mathse.answers.expression import Tree
from mathse.answers.kinds import Relation

CONSTANTS = {"π": "pi", "e": "E", "i": "I", "∞": "oo"}
SYMPY_NAMES = {"arcsin": "asin", "arccos": "acos", "arctan": "atan", "ln": "log", "abs": "Abs"}
SYMPY_NAMES |= {"!": "factorial", "choose": "binomial"}
OPERATORS = {
    "+": operator.add,
    "*": operator.mul,
    "/": operator.truediv,
    "^": operator.pow,
    "neg": operator.neg,
}


def equal_in_mathematics(given: Tree | Relation, reference: Tree | Relation, precision: int | None) -> bool:
    """Whether two values are equal, to so many decimals if they are numbers and `precision` is given."""
    import logging

    from math_verify import verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time limit is off
    given, reference = in_sympy(given), in_sympy(reference)
    numbers = all(getattr(side, "is_number", False) for side in (given, reference))
    if numbers and precision is not None:
        return bool(abs((given - reference).evalf()) <= 0.5 * 10.0**-precision + 1e-12)
    same = verify(reference, given, allow_set_relation_comp=True, timeout_seconds=None)
    if same and numbers:  # it rounds to six decimals, where 2^-98 and 2^-99 are both 0
        return bool(abs((given - reference).evalf()) <= 1e-9 * abs(reference.evalf()))
    return same


def in_sympy(value: Tree | Relation) -> object:
    import sympy

    if isinstance(value, Relation):
        names = {"=": "Eq", "<": "Lt", ">": "Gt", "≤": "Le", "≥": "Ge", "≠": "Ne"}
        return getattr(sympy, names[value.sign])(in_sympy(value.left), in_sympy(value.right), evaluate=False)
    name, *parts = value
    if name == "number":
        return sympy.Rational(parts[0].numerator, parts[0].denominator)
    if name == "name":
        constant = CONSTANTS.get(parts[0])
        return getattr(sympy, constant) if constant else sympy.Symbol(parts[0])
    if name == "root":
        return root_in_sympy(*parts)
    parts = [in_sympy(part) for part in parts]
    if name == "log":
        return sympy.log(parts[1], parts[0])
    if name == "degrees":
        return parts[0] * sympy.pi / 180
    if name in OPERATORS:
        return OPERATORS[name](*parts)
    return getattr(sympy, SYMPY_NAMES.get(name, name))(*parts)


def root_in_sympy(degree: int, of: Tree) -> object:
    """A root; that of a fraction as a fraction of roots, as for the positive numbers of a picture."""
    import sympy

    if of[0] == "/":
        return root_in_sympy(degree, of[1]) / root_in_sympy(degree, of[2])
    return sympy.root(in_sympy(of), degree)
