"""What an answer is read as: quantities and their arithmetic, words, names, several values, regions, relations.

A number or expression is its value at four points, where its variables have values drawn from their names: two
expressions are the same if they agree there. No symbolic algebra is done, so nothing can run away. What makes
no sense raises Unread, or an error of the arithmetic.
"""

import operator
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from mpmath import MPContext

mp = MPContext()
mp.dps = 100  # digits that are computed with
TINY = mp.mpf(10) ** -70  # numbers that are no further apart, for their size, are equal
ROUNDED = mp.mpf("0.012")  # part of a number by which what is said to be about it may differ
POINTS = 4  # at which an expression with variables is evaluated
LARGEST = 4000  # exponent and factorial
FLIPPED = {"<": ">", ">": "<", "≤": "≥", "≥": "≤", "≠": "≠"}


class Unread(ArithmeticError):
    """A text has no value that is known here."""


def require(holds: object) -> None:
    if not holds:
        raise Unread


@dataclass(frozen=True)
class Quantity:
    """A number, expression or quantity: 7, 2x + 1, 5 cm.

    `values`: at each of the points; only one if there are no variables. `dims`: the powers of what it
    measures, (("length", 2),); a noun counts as "#apples". `size`: of its unit in the base unit, 0.01 for cm.
    `name`: of a variable that stands alone; "0" for digits, "()" for a bracket.
    """

    values: tuple
    dims: tuple = ()
    size: object = 1
    name: str = ""

    @classmethod
    def of(cls, value: object) -> "Quantity":
        """A number, as digits."""
        return cls((mp.mpf(value),), name="0")

    @classmethod
    def variable(cls, name: str) -> "Quantity":
        """A variable with values drawn from its name, some negative; π, e, i and ∞ are what they are."""
        constants = {"π": mp.pi, "e": mp.e, "i": mp.j, "∞": mp.inf}
        if name in constants:
            return cls((+constants[name],), name=name)
        seeds = [zlib.crc32(f"{name} {point}".encode()) for point in range(POINTS)]
        sizes = [mp.mpf(seed % 10007) / 3511 + mp.mpf("0.3") for seed in seeds]
        signs = [-1 if point > 1 and seed % 2 else 1 for point, seed in enumerate(seeds)]
        return cls(tuple(map(operator.mul, sizes, signs)), name=name)

    @property
    def is_number(self) -> bool:
        return len(self.values) == 1

    @property
    def is_name(self) -> bool:
        return self.name not in ("", "0", "()")

    def map(self, function: Callable, other: "Quantity | None" = None) -> tuple:
        """The results of a function at each point, of these values or of these and another's."""
        if other is None:
            return tuple(map(function, self.values))
        points = max(len(self.values), len(other.values))
        return tuple(map(function, *(each.values * (points // len(each.values)) for each in (self, other))))

    def pairs(self, other: "Quantity") -> list[tuple]:
        """These values and another's at the points where both are real, if they are anywhere."""
        pairs = self.map(lambda a, b: (a, b), other)
        real = [pair for pair in pairs if not any(mp.im(value) for value in pair)]
        return real if len(real) > 1 else list(pairs)

    def bare(self) -> "Quantity":
        """Itself, which must have no unit."""
        require(not self.dims)
        return self

    def small(self) -> "Quantity":
        """Itself, which must be an exponent or of a factorial that can be computed."""
        require(all(abs(value) <= LARGEST for value in self.bare().values))
        return self

    def scaled(self, function: Callable, other: "Quantity", sign: int) -> "Quantity":
        """A product or, with a negative sign, a quotient."""
        powers = dict(self.dims)
        for name, exponent in other.dims:
            powers[name] = powers.get(name, 0) + sign * exponent
        dims = tuple(sorted((name, exponent) for name, exponent in powers.items() if exponent))
        return Quantity(self.map(function, other), dims, self.size * other.size**sign)

    def __neg__(self) -> "Quantity":
        return replace(self, values=self.map(operator.neg), name="")

    def __add__(self, other: "Quantity") -> "Quantity":
        require(self.dims == other.dims or not self.dims or not other.dims)
        unit = self if self.dims else other
        scale = other.size / self.size if self.dims == other.dims else 1
        name = f"{self.name}+{other.name}" if self.is_name and other.is_name else ""
        return Quantity(self.map(lambda a, b: a + b * scale, other), unit.dims, unit.size, name)

    def __sub__(self, other: "Quantity") -> "Quantity":
        return self + -other

    def __mul__(self, other: "Quantity") -> "Quantity":
        return self.scaled(operator.mul, other, 1)

    def __truediv__(self, other: "Quantity") -> "Quantity":
        return self.scaled(operator.truediv, other, -1)

    def __pow__(self, other: "Quantity") -> "Quantity":
        values = self.map(lambda a, b: mp.one if a == b == 0 else mp.power(a, b), other.small())
        exponent = int(other.values[0].real) if self.dims else 1
        require(not self.dims or other.is_number and other.values[0] == exponent)
        return Quantity(values, tuple((name, n * exponent) for name, n in self.dims), self.size**exponent)


def close(one: object, other: object, allowed: object = None) -> bool:
    """Whether two numbers are the same, or no further apart than is allowed."""
    if mp.isinf(one) or mp.isinf(other):
        return one == other
    return abs(one - other) <= (TINY * (1 + max(abs(one), abs(other))) if allowed is None else allowed)


class Words(NamedTuple):
    """A name or a phrase: red, no solution."""

    key: str


class Time(NamedTuple):
    """A time of the day; `half` is a or p, if it is said."""

    hour: int
    minute: int
    half: str

    def is_same(self, other: "Time") -> bool:
        """15:30 is 3:30 pm; 3:30 may be."""
        hours = [
            time.hour % 12 + 12 * (time.half == "p") if time.half else time.hour for time in (self, other)
        ]
        same_hour = hours[0] == hours[1] or self.hour == other.hour and "" in (self.half, other.half)
        return same_hour and self.minute == other.minute

    def ratio(self) -> "Many":
        """3:30 as a ratio; 3:05 is none."""
        require(self.minute > 9)
        return Many("ratio", (Quantity.of(self.hour), Quantity.of(self.minute)))


class Named(NamedTuple):
    """name = value; a name in words begins with a blank: " area". `side` is what stands left of the sign."""

    name: str
    value: object
    side: Quantity | None = None


class Many(NamedTuple):
    """Several values. `form`: blanks, list, either, set, ratio, remainder, ordered (a < b), or brackets."""

    form: str
    items: tuple


class Said(NamedTuple):
    """One number, said several times: 1/2 (50%), 3 + 4 = 7."""

    values: tuple

    @classmethod
    def of(cls, values: list, signs: list[str]) -> object:
        """A value said once, or several times and each time the same; ≈ allows for rounding."""
        first, *others = values
        require(not others or all(isinstance(value, Quantity) and value.is_number for value in values))
        for other, sign in zip(others, signs):
            require(first.dims == other.dims or not first.dims or not other.dims)
            ways = [other.size / first.size, *([1] if first.dims != other.dims else [])]  # 5 and 5 cm
            allowed = abs(first.values[0]) * ROUNDED if sign == "≈" else None
            require(any(close(first.values[0], other.values[0] * way, allowed) for way in ways))
        return cls(tuple(values)) if others else first


class Interval(NamedTuple):
    """A part of the number line, and whether its ends belong to it."""

    low: object
    low_in: bool
    high: object
    high_in: bool

    @classmethod
    def of(cls, low: Quantity, low_in: bool, high: Quantity, high_in: bool) -> "Interval":
        (low,), (high,) = low.bare().values, high.bare().values
        require(not mp.im(low) and not mp.im(high) and low <= high)
        return cls(mp.re(low), low_in, mp.re(high), high_in)


class Region(NamedTuple):
    """Intervals of the number line, of a variable if one is named: x > 2."""

    intervals: tuple[Interval, ...]
    name: str = ""

    @classmethod
    def of(cls, value: object) -> "Region":
        """A region, or the one that a bracket of two numbers may mean: (1, 5]."""
        if isinstance(value, Region):
            return value
        require(isinstance(value, Many) and value.form in ("()", "(]", "[)", "[]") and len(value.items) == 2)
        require(all(isinstance(end, Quantity) and end.is_number for end in value.items))
        low, high = value.items
        return cls((Interval.of(low, value.form[0] == "[", high, value.form[1] == "]"),))

    @classmethod
    def union(cls, regions: list["Region"]) -> "Region":
        return cls(tuple(sorted(one for each in regions for one in each.intervals)), regions[0].name)

    @classmethod
    def intersection(cls, regions: list["Region"]) -> "Region":
        """What x > 1 and x ≤ 5 say together."""
        require(all(isinstance(one, Region) and len(one.intervals) == 1 for one in regions))
        require(len({one.name for one in regions}) == 1)
        intervals = [one.intervals[0] for one in regions]
        low, low_out = max((one.low, not one.low_in) for one in intervals)
        high, high_in = min((one.high, one.high_in) for one in intervals)
        require(low < high)
        return cls((Interval(low, not low_out, high, high_in),), regions[0].name)

    def is_same(self, other: "Region") -> bool:
        """Regions of two variables differ."""
        if (
            self.name
            and other.name
            and self.name != other.name
            or len(self.intervals) != len(other.intervals)
        ):
            return False
        pairs = list(zip(self.intervals, other.intervals))
        ends = all(close(one.low, two.low) and close(one.high, two.high) for one, two in pairs)
        return ends and all(one[1::2] == two[1::2] for one, two in pairs)


class Relation(NamedTuple):
    """difference sign 0: 2x + y = 3 and x < y."""

    sign: str
    difference: Quantity

    @classmethod
    def of(cls, value: object) -> "Relation | None":
        """An equation or inequality as one; y = 2x and x > 1 are two too."""
        if (
            isinstance(value, Named)
            and value.side
            and isinstance(value.value, Quantity)
            and not value.value.dims
        ):
            side = Quantity.variable("y") if "(" in value.name else value.side  # f(x) = 2x
            return cls("=", side - value.value)
        if isinstance(value, Region) and value.name and len(value.intervals) == 1:
            low, low_in, high, high_in = value.intervals[0]
            if mp.isinf(low) or mp.isinf(high):
                sign, bound = ("<≤"[high_in], high) if mp.isinf(low) else (">≥"[low_in], low)
                return cls(sign, Quantity.variable(value.name) - Quantity((bound,)))
        return value if isinstance(value, Relation) else None

    def is_same(self, other: "Relation") -> bool:
        """Whether one is the other times a constant, whose sign turns the relation's."""
        pairs = self.difference.pairs(other.difference)
        if len(pairs) < 2 or any(not a or not b for a, b in pairs):
            return False
        ratios = [a / b for a, b in pairs]
        sign = FLIPPED.get(self.sign, self.sign) if mp.re(ratios[0]) < 0 else self.sign
        return sign == other.sign and all(close(ratio, ratios[0]) for ratio in ratios)


def chain(sides: list, signs: list[str]) -> object:
    """x = 5; y = 2x; 3 + 4 = 7; 1 < x ≤ 4; x ∈ (1, 4]; AB ∥ CD."""
    if signs[0] in "∈∥⊥":
        require(len(sides) == 2 and all(isinstance(side, Quantity) and side.is_name for side in sides[:1]))
        if signs[0] == "∈":
            return Region(Region.of(sides[1]).intervals, sides[0].name)
        require(isinstance(sides[1], Quantity) and sides[1].is_name)
        return Words(signs[0].join(sorted(side.name for side in sides)))
    return equation(sides, signs) if {*signs} <= {"=", "≈"} else inequality(sides, signs)


def equation(sides: list, signs: list[str]) -> object:
    """x = 5; area = 5; (x, y) = (1, 2); y = 2x; 2x + y = 3; 3 + 4 = 7; x = 3 + 4 = 7."""
    first, rest = sides[0], sides[1:]
    if isinstance(first, Words):
        return Named(f" {first.key}", Said.of(rest, signs[1:]))
    if isinstance(first, Many):
        require(first.form in ("()", "ratio") and all(isinstance(item, Quantity) for item in first.items))
        return Named(",".join(item.name for item in first.items), Said.of(rest, signs[1:]))
    require(isinstance(first, Quantity))
    if not all(isinstance(side, Quantity) for side in rest):
        require(first.is_name and len(rest) == 1)
        return Named(first.name, rest[0], first)
    if all(side.is_number for side in sides) and first.name not in ("e", "i"):
        return Said.of(sides, signs)
    if first.is_number and len(rest) == 1 and rest[0].is_name:
        return Named(rest[0].name, first, rest[0])  # 5 = x
    if first.is_name and ("+" not in first.name or len(rest) > 1):  # x = (y - 1)/2 = 6/2 = 3 is 3
        numbers = [(side, sign) for side, sign in zip(rest, signs) if side.is_number]
        results, signs = zip(*(numbers if rest[-1].is_number else [(rest[-1], "=")]))
        return Named(first.name, Said.of(results, signs[1:]), first)
    require(len(rest) == 1)
    difference = first.bare() - rest[0].bare()
    return rest[0] if all(close(value, 0) for value in difference.values) else Relation("=", difference)


def inequality(sides: list, signs: list[str]) -> object:
    """x > 2; 1 < x ≤ 5; y < 2x; a < b < c."""
    sides = [side.bare() for side in sides]
    ascending = {*signs} <= {"<"} or {*signs} <= {">"}
    if len(sides) > 2 and ascending and len({side.is_number for side in sides}) == 1:
        return Many("ordered", tuple(sides if signs[0] == "<" else sides[::-1]))
    if len(sides) == 3:
        require({*signs} <= {"<", "≤"} or {*signs} <= {">", "≥"})
        return Region.intersection([inequality(sides[:2], signs[:1]), inequality(sides[1:], signs[1:])])
    left, right, sign = *sides, *signs
    if left.is_number and right.is_name:
        left, right, sign = right, left, FLIPPED[sign]
    if not left.is_name or left.is_number or not right.is_number:
        return Relation(sign, left - right)
    below = Interval.of(-Quantity.of("inf"), False, right, sign == "≤")
    above = Interval.of(right, sign == "≥", Quantity.of("inf"), False)
    intervals = {"<": (below,), "≤": (below,), ">": (above,), "≥": (above,), "≠": (below, above)}
    return Region(intervals[sign], left.name)
