"""Are two numbers or quantities the same? Units of one dimension are converted, another one is wrong."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction

from mathse.answers.algebra import approximate, exact
from mathse.answers.expression import Tree, names_of, variables_of
from mathse.answers.kinds import Scalar
from mathse.answers.units import Unit

Equal = Callable[[object, object, int | None], bool | None]  # of two trees or relations, to so many decimals
KELVIN = {  # temperature -> its size and zero in kelvin
    "kelvin": (Fraction(1), Fraction(0)),
    "celsius": (Fraction(1), Fraction(27_315, 100)),
    "fahrenheit": (Fraction(5, 9), Fraction(45_967, 180)),
}


@dataclass(frozen=True)
class Rules:
    """`equal` compares what is no rational number; `precision`: decimals that count; `percent`: 35 is 35%."""

    equal: Equal
    precision: int | None = None
    percent: bool = False
    ordered: bool = False  # the question asks for an order


def same_scalar(given: Scalar, wanted: Scalar, rules: Rules) -> bool | None:
    """Numbers and quantities: units of one dimension are converted, another dimension is wrong."""
    decimals = given.decimals, wanted.decimals
    units = given.unit, wanted.unit
    if None not in units:
        return same_quantity(given, wanted, rules)
    percent = [unit is not None and unit.dimensions == (("percent", 1),) for unit in units]
    if any(percent):
        sizes = [unit.size if part else Fraction(1) for unit, part in zip(units, percent)]
        trees = [scaled(value.tree, size) for value, size in zip((given, wanted), sizes)]
        if same_tree(*trees, decimals, rules):
            return True
        return same_tree(given.tree, wanted.tree, decimals, rules) if rules.percent else False
    verdict = same_tree(given.tree, wanted.tree, decimals, rules)
    bare = given if given.unit is None else wanted
    if not verdict and ("π" in names_of(bare.tree) or bare.tree[0].startswith("arc")):  # π/6 is 30°
        angles = {angle_of(value) for value in (given, wanted)}
        return (
            same_tree(*map(angle_of, (given, wanted)), (None, None), rules) if None not in angles else verdict
        )
    return verdict


def angle_of(value: Scalar) -> Tree | None:
    """An angle in radians; without a unit it is one; None for what is no angle."""
    dimensions = value.unit.dimensions if value.unit else (("turn", 1),)
    if dimensions == (("angle", 1),):
        return ("degrees", scaled(value.tree, value.unit.size))
    return value.tree if dimensions == (("turn", 1),) else None


def scaled(tree: Tree, size: Fraction) -> Tree:
    return tree if size == 1 else ("*", tree, ("number", size))


def same_quantity(given: Scalar, wanted: Scalar, rules: Rules) -> bool | None:
    """Two values with units."""
    one, other = given.unit, wanted.unit
    decimals = given.decimals, wanted.decimals
    if not one.dimensions or not other.dimensions:
        verdict = same_tree(given.tree, wanted.tree, decimals, rules)
        names = sorted((one.counted, other.counted), key=len)
        ends = not names[0] or f" {names[1]}".endswith(f" {names[0]}")
        return (
            verdict if ends and one.dimensions == other.dimensions or not verdict else None
        )  # 12 ways, 12 other ways
    if one == other:
        return same_tree(given.tree, wanted.tree, decimals, rules)
    if one.dimensions == other.dimensions:
        trees = scaled(given.tree, one.size), scaled(wanted.tree, other.size)
        return same_tree(*trees, (None, None), rules)
    for convert in (in_kelvin, angle_of):
        trees = convert(given), convert(wanted)
        if None not in trees:
            return same_tree(*trees, (None, None), rules)
    if names_of_unit(one) | names_of_unit(other) == {"length", "some length"} and one.power == other.power:
        return same_tree(given.tree, wanted.tree, decimals, rules)
    return False


def names_of_unit(unit: Unit) -> set[str]:
    return {name for name, _ in unit.dimensions}


def in_kelvin(value: Scalar) -> Tree | None:
    """A temperature in kelvin, None for what is none."""
    name = value.unit.dimensions[0][0] if len(value.unit.dimensions) == 1 else ""
    size, zero = KELVIN.get(name, (None, None))
    return None if size is None else ("+", scaled(value.tree, size), ("number", zero))


def same_tree(
    given: Tree, wanted: Tree, decimals: tuple[int | None, int | None], rules: Rules
) -> bool | None:
    """Whether two expressions have one value."""
    numbers = exact(given), exact(wanted)
    if None not in numbers:
        return close(*numbers, decimals, rules.precision)
    written = [count for count in decimals if count and count >= 6]
    names = variables_of(given), variables_of(wanted)
    if not names[0] != (not names[1]):
        return False
    if not names[0]:  # a number that is far off needs no math-verify
        one, other = approximate(given), approximate(wanted)
        allowed = 0.6 * 10.0 ** -(5 if rules.precision is None else rules.precision)
        if one is not None and other is not None and abs(one - other) > allowed + 1e-6 * abs(other):
            return False
        if written and one is not None and other is not None and abs(one - other) < 10.0 ** -min(written):
            return abs(one - other) <= 1e-5 * abs(other)  # 1.41421356 is √2
    return rules.equal(given, wanted, rules.precision)


def close(
    given: Fraction, wanted: Fraction, decimals: tuple[int | None, int | None], precision: int | None
) -> bool:
    """Equal; or within half a unit of the problem's last decimal; or the same to six written decimals."""
    if precision is not None:
        return abs(given - wanted) <= Fraction(1, 2 * 10 ** min(int(precision), 12))
    written = [count for count in decimals if count and count >= 6]
    off = abs(given - wanted)
    return not off or bool(written) and off < Fraction(1, 10 ** min(written)) and off <= abs(wanted) / 10**5


def all_true(verdicts: Iterable[bool | None]) -> bool | None:
    """False if one is False, else None if one is None, else True."""
    unknown = False
    for verdict in verdicts:
        if verdict is False:
            return False
        unknown |= verdict is None
    return None if unknown else True


def any_true(verdicts: Iterable[bool | None]) -> bool | None:
    """True if one is True, else None if one is None, else False."""
    denied = all_true(None if verdict is None else not verdict for verdict in verdicts)
    return None if denied is None else not denied
