"""Are two inequalities, intervals or equations the same?"""

import re

from mathse.answers.algebra import approximate
from mathse.answers.expression import names_of, variables_of
from mathse.answers.kinds import Interval, Named, Region, Relation, Scalar
from mathse.answers.regions import region_of
from mathse.answers.scalars import Rules, all_true, same_scalar, same_tree


def same_relation(given: object, wanted: object, rules: Rules) -> bool | None:
    """Inequalities and intervals, equations."""
    regions = [as_region(value) for value in (given, wanted)]
    if None not in regions:
        return same_region(*regions, rules)
    if isinstance(given, Relation) and isinstance(wanted, Scalar):
        if given.sign != "=" or not variables_of(wanted.tree):  # x + y = 7 is not quite 7
            return None
        sides = Scalar(given.left), Scalar(given.right)  # x(x + 1) = x^2 + x
        return all_true(same_scalar(side, wanted, rules) for side in sides) or None
    if isinstance(wanted, Scalar):
        return None if variables_of(wanted.tree) else False
    if isinstance(given, Scalar):
        return False if isinstance(wanted, Relation) else None
    relations = [relation_of(value) for value in (given, wanted)]
    if None in relations:
        return None
    names = [names_of(each.left) | names_of(each.right) for each in relations]
    if (relations[0].sign == "=") != (relations[1].sign == "=") or names[0] != names[1]:
        return False
    return rules.equal(*relations, None)


def as_region(value: object) -> Region | None:
    if isinstance(value, Named):
        return region_of(value.value, value.name)
    return region_of(value, "")


def same_region(given: Region, wanted: Region, rules: Rules) -> bool | None:
    if given.variable and wanted.variable and given.variable != wanted.variable:
        return False
    if len(given.intervals) != len(wanted.intervals):
        return False
    return all_true(same_interval(*pair, rules) for pair in zip(given.intervals, wanted.intervals))


def same_interval(given: Interval, wanted: Interval, rules: Rules) -> bool | None:
    if (given.low_in, given.high_in) != (wanted.low_in, wanted.high_in):
        return False
    ends = ((given.low, wanted.low), (given.high, wanted.high))
    return all_true(one == other or same_tree(one, other, (None, None), rules) for one, other in ends)


def relation_of(value: object) -> Relation | None:
    """A named expression as an equation, an interval's inequality as a relation."""
    if isinstance(value, Relation):
        return value
    if isinstance(value, Named) and isinstance(value.value, Scalar) and re.fullmatch(r"[A-Za-z]", value.name):
        if value.value.unit:
            return None
        return Relation("=", ("name", value.name), value.value.tree)
    if isinstance(value, Region) and len(value.intervals) == 1 and value.variable:
        return region_relation(value.variable, value.intervals[0])
    return None


def region_relation(variable: str, interval: Interval) -> Relation | None:
    low, high = approximate(interval.low), approximate(interval.high)
    if low == float("-inf") and high != float("inf"):
        return Relation("≤" if interval.high_in else "<", ("name", variable), interval.high)
    if high == float("inf") and low != float("-inf"):
        return Relation("≥" if interval.low_in else ">", ("name", variable), interval.low)
    return None
