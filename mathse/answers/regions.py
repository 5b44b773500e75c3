"""Regions of the number line: what inequalities and intervals describe."""

import re

from mathse.answers.algebra import approximate
from mathse.answers.expression import Tree, Unreadable, variables_of
from mathse.answers.kinds import Group, Interval, Region, Relation, Scalar
from mathse.answers.quantities import read_quantity

INFINITY, MINUS_INFINITY = ("name", "∞"), ("neg", ("name", "∞"))
FLIPPED = {"<": ">", ">": "<", "≤": "≥", "≥": "≤", "≠": "≠"}
SIGN_OF_WORDS = {"at least": "≥", "no less than": "≥", "not less than": "≥", "greater than or equal to": "≥"}
SIGN_OF_WORDS |= {"at most": "≤", "no more than": "≤", "not more than": "≤", "less than or equal to": "≤"}
SIGN_OF_WORDS |= {"greater than": ">", "more than": ">", "less than": "<"}
AT_LEAST = re.compile(
    rf"(?:([a-z]) (?:is|must be) |(?:all )?(?:real )?numbers? )?({'|'.join(SIGN_OF_WORDS)}) (.+)",
    re.IGNORECASE,
)
ALL_BUT = re.compile(
    r"(?:all )?real numbers? (?:except|other than|but)(?: for)? (?:[a-z] ?= ?)?(.+)|[ℝR] ?∖ ?⦃(.+)⦄",
    re.IGNORECASE,
)


def region(variable: str, intervals: list[Interval]) -> Region:
    """A region with its intervals in order, those that touch joined. Raises Unreadable for [2, 1], [a, b]."""
    bounds = [(approximate(each.low), approximate(each.high), each) for each in intervals]
    if any(low is None or high is None or low > high for low, high, _ in bounds):
        raise Unreadable("an interval without numbers or order")
    some = [bound for bound in bounds if bound[0] < bound[1] or bound[2].low_in and bound[2].high_in]
    joined: list[tuple[float, float, Interval]] = []
    for low, high, each in sorted(some, key=lambda bound: (bound[0], not bound[2].low_in)):
        if joined and (
            low < joined[-1][1] or low == joined[-1][1] and (each.low_in or joined[-1][2].high_in)
        ):
            low, last_high, last = joined.pop()
            wider = each if (high, each.high_in) > (last_high, last.high_in) else last
            high, each = max(high, last_high), Interval(last.low, last.low_in, wider.high, wider.high_in)
        joined.append((low, high, each))
    if not joined:
        raise Unreadable("no number is in it")
    return Region(variable, tuple(each for _, _, each in joined))


def one_sided(variable: str, sign: str, bound: tuple) -> Region:
    """x > 2, x ≤ 2, x ≠ 2."""
    closed = sign in "≤≥"
    below, above = Interval(MINUS_INFINITY, False, bound, closed), Interval(bound, closed, INFINITY, False)
    kept = {"<": [below], "≤": [below], ">": [above], "≥": [above], "≠": [below, above]}
    return region(variable, kept[sign])


def united(regions: list[Region]) -> Region:
    return region(regions[0].variable, [interval for each in regions for interval in each.intervals])


def intersected(regions: list[Region]) -> Region:
    first, *others = regions
    for other in others:
        pairs = [overlap(one, two) for one in first.intervals for two in other.intervals]
        first = region(first.variable, [pair for pair in pairs if pair])
    return first


def overlap(one: Interval, other: Interval) -> Interval | None:
    """What two intervals have in common."""
    lows = [(approximate(each.low), not each.low_in, each.low) for each in (one, other)]
    highs = [(approximate(each.high), each.high_in, each.high) for each in (one, other)]
    low, high = max(lows, key=lambda bound: bound[:2]), min(highs, key=lambda bound: bound[:2])
    if low[0] > high[0] or low[0] == high[0] and (low[1] or not high[1]):
        return None
    return Interval(low[2], not low[1], high[2], high[1])


def region_of(value: object, variable: str = "") -> Region | None:
    """An interval as a region; a region as it is; None for all else."""
    if isinstance(value, Region):
        return value
    pair = isinstance(value, Group) and value.form == "bracketed" and len(value.items) == 2
    if not pair or not all(isinstance(item, Scalar) and not variables_of(item.tree) for item in value.items):
        return None
    low, high = (item.tree for item in value.items)
    try:
        return region(variable, [Interval(low, value.brackets[0] == "[", high, value.brackets[1] == "]")])
    except Unreadable:
        return None


# ---------------------------------------------------------------- inequalities


def read_inequality(text: str) -> Region | Relation | Group | None:
    """x > 2, 2 < x, -3 < x ≤ 4, x ≠ 2, |x| < 2; y > 2x; D > B > A; at least 3; all real numbers except 2."""
    if match := AT_LEAST.fullmatch(text):
        text = f"{match[1] or 'x'} {SIGN_OF_WORDS[match[2].lower()]} {match[3]}"
    if match := ALL_BUT.fullmatch(text):
        text = f"x ≠ {match[1] or match[2]}"
    signs = re.findall("[<>≤≥≠]", text)
    if not signs or "=" in text:
        return None
    sides = [read_quantity(side.strip()) for side in re.split("[<>≤≥≠]", text)]
    if None in sides or any(side.unit for side in sides):  # x > 5 m is the same only in these words
        raise Unreadable(text)
    trees = [side.tree for side in sides]
    constant = {not variables_of(tree) for tree in trees}
    if len(trees) > 2 and len(constant) == 1 and signs in (["<"] * len(signs), [">"] * len(signs)):
        return Group("bracketed", tuple(sides if signs[0] == "<" else sides[::-1]), "<>")
    if len(trees) == 3:
        return read_between(trees, signs)
    if len(trees) > 3:
        raise Unreadable(text)
    return read_one_sided(*trees, signs[0])


def read_one_sided(left: Tree, right: Tree, sign: str) -> Region | Relation:
    """x > 2, |x| < 2; y > 2x"""
    if right[0] == "name" and not variables_of(left):
        left, right, sign = right, left, FLIPPED[sign]
    if left[0] == "abs" and left[1][0] == "name" and not variables_of(right) and sign in "<≤":
        return region(left[1][1], [Interval(("neg", right), sign == "≤", right, sign == "≤")])
    if left[0] != "name" or variables_of(right):
        return Relation(sign, left, right)
    return one_sided(left[1], sign, right)


def read_between(trees: list, signs: list[str]) -> Region:
    """-3 < x ≤ 4"""
    if signs[0] in ">≥":
        trees, signs = trees[::-1], [FLIPPED[sign] for sign in signs[::-1]]
    low, middle, high = trees
    if middle[0] != "name" or variables_of(low) | variables_of(high) or not set(signs) <= {"<", "≤"}:
        raise Unreadable("an inequality of another form")
    return region(middle[1], [Interval(low, signs[0] == "≤", high, signs[1] == "≤")])
