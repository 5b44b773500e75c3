"""The kinds of values that an answer may have. What is compared is always a value of one of these."""

from dataclasses import dataclass

from mathse.answers.expression import Tree
from mathse.answers.units import Unit


@dataclass(frozen=True)
class Scalar:
    """A number, expression or quantity. `decimals`: how many a plain decimal was written with."""

    tree: Tree
    unit: Unit | None = None
    decimals: int | None = None


@dataclass(frozen=True)
class Named:
    """name = value. The name is a mathematical one (x, f(x), ∠ABC), or one in words (the area)."""

    name: str
    words: str
    value: object


@dataclass(frozen=True)
class Group:
    """Several values. `form`: blanks, bracketed, set, list (between commas), either (between or), matrix (of
    rows), ratio, remainder, clock (hour, minute, second). `brackets`: of what is bracketed."""

    form: str
    items: tuple
    brackets: str = ""


@dataclass(frozen=True)
class Interval:
    low: Tree
    low_in: bool
    high: Tree
    high_in: bool


@dataclass(frozen=True)
class Region:
    """The numbers in some intervals that do not touch, in order."""

    variable: str
    intervals: tuple[Interval, ...]


@dataclass(frozen=True)
class Relation:
    """left sign right, between expressions in variables."""

    sign: str
    left: Tree
    right: Tree


@dataclass(frozen=True)
class Figure:
    """An angle, triangle, segment …, or a relation of two. The key is the same for ∠ABC and ∠CBA."""

    key: tuple


@dataclass(frozen=True)
class Words:
    """Yes or no, a date, a short name."""

    key: str


@dataclass(frozen=True)
class Restated:
    """One answer said in several ways; `rounded`: whether each is a rounded value."""

    values: tuple
    rounded: tuple[bool, ...]
