"""Are two answers the same? Values of one kind are compared as that kind. What is not read is the same if its
text is, and else nobody knows."""

import re
from dataclasses import replace
from fractions import Fraction

from mathse.answers.algebra import approximate, exact
from mathse.answers.expression import names_of, variables_of
from mathse.answers.kinds import Figure, Group, Named, Region, Relation, Restated, Scalar, Words
from mathse.answers.relations import relation_of, same_relation
from mathse.answers.scalars import Rules, all_true, any_true, same_scalar
from mathse.answers.spelling import comparable, spell, split
from mathse.answers.values import readable


def same_answer(given: str, reference: str, rules: Rules) -> bool | None:
    """Whether two answers are the same; None: no telling."""
    given, reference = spell(given), spell(reference)
    if comparable(given) == comparable(reference) and given:
        return True
    if turned(given) == turned(reference) != []:
        return True
    value, wanted = readable(given), readable(reference)
    verdict = None if value is None or wanted is None else same(value, wanted, rules)
    if verdict:
        return True
    others = [(other, wanted) for other in other_readings(given, wanted)]
    others += [(value, other) for other in other_readings(reference, value, lists=False)]
    return True if any(None not in pair and same(*pair, rules) for pair in others) else verdict


def turned(text: str) -> list[str]:
    """An equation or inequality, always the same way round: BC = AD is AD = BC; none for other texts."""
    sides = [comparable(side) for side in re.split("[=<>]", text)]
    if len(sides) != 2 or not all(sides):
        return []
    if "=" in text:
        return ["=", *sorted(sides)]
    return ["<", *(sides if "<" in text else sides[::-1])]


def other_readings(given: str, wanted: object, lists: bool = True) -> list[object]:
    """What a text may also mean, where the other side is of another kind: 0,75 a decimal; 100,200 blanks."""
    readings = []
    number = re.fullmatch(r"(-?(?:\d{1,3}(?:[. ]\d{3})+|\d+)),(\d{1,2}|\d{4,}|(?<=0,)\d+)(\D.*)?", given)
    if number and isinstance(wanted, Scalar | Named | Restated):
        readings.append(f"{re.sub('[. ]', '', number[1])}.{number[2]}{number[3] or ''}")
    chosen = re.fullmatch(r"C\((\d+), ?(\d+)\)", given)
    if chosen and isinstance(wanted, Scalar):
        readings.append(f"\\binom {{{chosen[1]}}}{{{chosen[2]}}}")
    found = [readable(reading) for reading in readings]
    parts = split(given, ",| and |和")
    if lists and isinstance(wanted, Group) and len(parts) == len(wanted.items) > 1:
        items = [readable(part) for part in parts]
        if None not in items:
            found.append(Group("blanks", tuple(items)))
    return [value for value in found if value is not None]


def same(given: object, wanted: object, rules: Rules) -> bool | None:
    """Whether two values are the same."""
    if isinstance(given, Restated):
        return same_restated(given, wanted, rules)
    if isinstance(wanted, Restated):
        return same_restated(wanted, given, rules)
    if isinstance(given, Named) or isinstance(wanted, Named):
        return same_named(given, wanted, rules)
    if isinstance(given, Scalar) and isinstance(wanted, Scalar):
        return same_scalar(given, wanted, rules)
    if isinstance(given, Region | Relation) or isinstance(wanted, Region | Relation):
        return same_relation(given, wanted, rules)
    if isinstance(given, Group) or isinstance(wanted, Group):
        return same_group(given, wanted, rules)
    if isinstance(given, Figure) and isinstance(wanted, Figure):
        return given.key == wanted.key
    if isinstance(given, Words) and isinstance(wanted, Words):
        if given.key == wanted.key:
            return True
        return None if given.key in wanted.key or wanted.key in given.key else False
    return same_figure(given, wanted)


def same_figure(given: object, wanted: object) -> bool | None:
    """A segment AB may have been read as a product."""
    figures = [value for value in (given, wanted) if isinstance(value, Figure)]
    scalars = [value for value in (given, wanted) if isinstance(value, Scalar)]
    if figures and scalars and figures[0].key[0] == "segment":
        points = set(figures[0].key[1])
        return None if names_of(scalars[0].tree) != points else True
    return None


def same_restated(given: Restated, wanted: object, rules: Rules) -> bool | None:
    """One answer said in several ways: all must be the same, and one of them what is wanted."""
    first, *others = given.values
    for value, rounded in zip(others, given.rounded[1:]):
        if not consistent(first, value, rounded, rules):
            return None if rounded else False
    values = given.values
    if any(isinstance(value, Scalar) and value.unit for value in values):  # 5 m (5) is 5 m
        values = [value for value in values if not isinstance(value, Scalar) or value.unit]
    return any_true(same(value, wanted, rules) for value in values)


def consistent(first: object, value: object, rounded: bool, rules: Rules) -> bool:
    first, value = (each.value if isinstance(each, Named) else each for each in (first, value))
    if isinstance(first, Restated) or isinstance(value, Restated):
        return True
    if isinstance(first, Words) or isinstance(value, Words):
        return same(first, value, rules) is True
    scalars = isinstance(first, Scalar) and isinstance(value, Scalar)
    if rounded and scalars and not variables_of(first.tree) and not variables_of(value.tree):
        value = value if value.unit else replace(value, unit=first.unit)
        one, other = rounded_value(first), rounded_value(value)
        step = 10.0 ** -(value.decimals or 0) * float(value.unit.size if value.unit else 1)
        return None not in (one, other) and abs(one - other) <= min(0.51 * step, 0.012 * abs(one))
    return same(value, first, rules) is True


def rounded_value(value: Scalar) -> float | None:
    number = approximate(value.tree)
    return None if number is None else number * float(value.unit.size if value.unit else 1)


def same_named(given: object, wanted: object, rules: Rules) -> bool | None:
    """x = 2 and x = 2; Area: 5 and 5; y = 2x and 2x; f(x) = 2x and y = 2x."""
    if isinstance(given, Named) and isinstance(wanted, Named):
        verdict = same(given.value, wanted.value, rules)
        if verdict is True and not same_names(given, wanted):
            return False if given.name and wanted.name else None
        if verdict is not True and relation_of(given) and relation_of(wanted):
            return same_relation(given, wanted, rules)
        return verdict
    named, other = (given, wanted) if isinstance(given, Named) else (wanted, given)
    if isinstance(other, Group) and isinstance(named.value, Group) and named.name.startswith("("):
        names = re.findall("[a-zA-Z]", named.name)  # x = 1, y = 4 is (x, y) = (1, 4)
        mapping = Group("list", tuple(Named(name, "", item) for name, item in zip(names, named.value.items)))
        return same_group(*((mapping, other) if named is given else (other, mapping)), rules)
    if isinstance(other, Relation):
        return same_relation(given, wanted, rules)
    if isinstance(other, Group) and isinstance(named.value, Group):
        return same_group(*((named.value, other) if named is given else (other, named.value)), rules)
    if isinstance(other, Group) and any(isinstance(item, Named) for item in other.items):
        return same_group(given, wanted, rules)
    return same(named.value, wanted, rules) if named is given else same(given, named.value, rules)


def same_names(one: Named, other: Named) -> bool:
    if one.name and other.name:
        letters = [name.partition("_")[0] for name in (one.name, other.name)]
        indexed = "_" in one.name and "_" in other.name
        if "y" in letters and all(re.fullmatch(r"y|[a-z]\(\)", letter) for letter in letters):
            return True  # f(x) = 2x is y = 2x
        return one.name == other.name or letters[0] == letters[1] and not indexed  # x_1 is an x
    if one.words and other.words:
        words = set(one.words.split()), set(other.words.split())
        return words[0] <= words[1] or words[1] <= words[0]
    words, name = (one.words, other.name) if one.words else (other.words, one.name)
    return True if words and name else one.words == other.words


# ---------------------------------------------------------------- several values


def same_group(given: object, wanted: object, rules: Rules) -> bool | None:
    """Blanks and tuples in order, sets and alternatives in any order, named values by their names."""
    if not isinstance(given, Group) or not isinstance(wanted, Group):
        return single_of_group(given, wanted, rules)
    special = {"ratio", "remainder", "clock", "time"}
    if given.form in special or wanted.form in special:
        return same_special(given, wanted, rules)
    if is_mapping(given) and is_mapping(wanted):
        return same_mapping(given, wanted, rules)
    forms = {given.form, wanted.form}
    if not forms & ({"blanks", "bracketed", "list"} if rules.ordered else {"blanks", "bracketed"}):
        given, wanted = (distinct(group, rules) for group in (given, wanted))
        return any_order(given.items, wanted.items, rules)
    if forms == {"bracketed"} and shape(given) != shape(wanted):
        return False
    verdict = in_order(unnamed(given).items, unnamed(wanted).items, rules)
    if forms & {"either", "set"}:  # has no order
        return verdict if verdict and "bracketed" not in forms else None
    return verdict


def in_order(given: tuple, wanted: tuple, rules: Rules) -> bool | None:
    if len(given) != len(wanted):
        return False
    return all_true(same(*pair, rules) for pair in zip(given, wanted))


def shape(group: Group) -> str:
    """The brackets where they matter: [1, 2] and (1, 2) are intervals, <1, 2, 3> and [1, 2, 3] lists."""
    return group.brackets.replace("⟨", "(").replace("⟩", ")") if len(group.items) == 2 else ""


def is_mapping(group: Group) -> bool:
    names = [item.name or item.words for item in group.items if isinstance(item, Named)]
    return len(names) == len(group.items) == len(set(names)) and all(names)


def same_mapping(given: Group, wanted: Group, rules: Rules) -> bool | None:
    pairs, left = [], list(given.items)
    if len(given.items) != len(wanted.items):
        return False
    for item in wanted.items:
        alike = [each for each in left if bool(each.name) == bool(item.name) and same_names(each, item)]
        exact_ones = [each for each in alike if (each.name, each.words) == (item.name, item.words)]
        partner = next(iter(exact_ones or alike), None)
        if partner is None:
            return None
        left.remove(partner)
        pairs.append((partner, item))
    return all_true(same(one.value, other.value, rules) for one, other in pairs)


def unnamed(group: Group) -> Group:
    """x = 1, y = 2 as 1, 2."""
    items = tuple(item.value if isinstance(item, Named) else item for item in group.items)
    return replace(group, items=items)


def distinct(group: Group, rules: Rules) -> Group:
    """Alternatives that say the same are one: 12 or 12.0. A list keeps what it says twice."""
    if group.form == "list":
        return group
    items = []
    for item in group.items:
        if not any(same(item, other, rules) for other in items):
            items.append(item)
    return replace(group, items=tuple(items))


def any_order(given: tuple, wanted: tuple, rules: Rules) -> bool | None:
    """Whether there is a partner for each. Equal values have the same partners, so the first will do."""
    if len(given) != len(wanted):
        return False
    left, unknown = list(given), False
    for item in wanted:
        verdicts = [same(each, item, rules) for each in left]
        if True in verdicts:
            left.pop(verdicts.index(True))
        elif None in verdicts:
            unknown = True
        else:
            return False
    return None if unknown else True


def single_of_group(given: object, wanted: object, rules: Rules) -> bool | None:
    """One value against several: alternatives may all be the same; a ratio 1:2 is 1/2."""
    group, single = (given, wanted) if isinstance(given, Group) else (wanted, given)
    if group.form in ("either", "list", "set"):
        items = distinct(replace(group, form="either"), rules).items
        if len(items) == 1:
            return same(items[0], single, rules) if group is given else same(single, items[0], rules)
        return False if not isinstance(single, Words) else None
    if group.form == "ratio" and isinstance(single, Scalar) and len(group.items) == 2 and single.unit is None:
        value = exact(("/", *(item.tree for item in group.items)))
        number = exact(single.tree)
        return None if None in (value, number) or value != number or value.denominator == 1 else True
    number = isinstance(single, Scalar) and not variables_of(single.tree)
    return False if number and group.form in ("blanks", "bracketed") else None


def same_special(given: Group, wanted: Group, rules: Rules) -> bool | None:
    forms = {given.form, wanted.form}
    if forms <= {"clock", "time"}:  # 15:30 and 3:30 pm
        given, wanted = padded(given), padded(wanted)
    elif len(forms) > 1 and forms != {"ratio", "time"}:
        return None
    if "ratio" in forms and len(given.items) == len(wanted.items):
        first = wanted.items[0].tree, given.items[0].tree
        pairs = [
            (("*", one.tree, first[0]), ("*", other.tree, first[1]))
            for one, other in zip(given.items[1:], wanted.items[1:])
        ]
        return all_true(same_scalar(Scalar(one), Scalar(other), rules) for one, other in pairs)
    return in_order(given.items, wanted.items, rules)


def padded(group: Group) -> Group:
    zero = Scalar(("number", Fraction(0)))
    return Group("clock", (*group.items, *[zero] * (3 - len(group.items))))
