"""Are two answers the same? Equal as text, or equal as values of one kind. True, False, or None: no telling."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product

from mathse.answers.read import read
from mathse.answers.spell import key, spell
from mathse.answers.values import Many, Named, Quantity, Region, Relation, Said, Time, Words, close, mp

EXACT_DECIMALS = 6  # so many written decimals are as good as exact: 1.414214 is √2
EXACT_SHARE = 10**5  # and must then agree to this part of the value
MOST_DECIMALS = 12  # of a problem's precision
PARTS_OF_PI = 5040  # a number of whole parts is taken for an angle in radians
TOLERANCE = mp.mpf(10) ** -50
COMMA = re.compile(r"(-?(?:\d{1,3}(?:[. ]\d{3})+|\d+)),(\d{1,2}|\d{4,}|(?<=0,)\d+)(\D.*)?")


@dataclass(frozen=True)
class Rules:
    """How to compare. `precision`: decimals that count, None for all; `percent`: the question asks for one, so
    35 is 35%; `ordered`: it asks for an order; `decimals`: that both sides are written with."""

    precision: int | None = None
    percent: bool = False
    ordered: bool = False
    decimals: tuple[int, ...] = ()


def same_answer(given: str, reference: str, rules: Rules = Rules()) -> bool | None:
    """Whether two answers are the same, in any reading of the two."""
    given, reference = spell(given), spell(reference)
    if given and key(given) == key(reference):
        return True
    verdicts = []
    for pair in product(readings(given), readings(reference)):
        value, wanted = map(read, pair)
        if value is not None and wanted is not None:
            decimals = tuple(
                len(text.partition(".")[2]) for text in pair if re.fullmatch(r"-?\d*\.\d+", text)
            )
            verdicts.append(compare(value, wanted, replace(rules, decimals=decimals)))
    wanted = read(reference)
    if True not in verdicts and isinstance(wanted, Many):  # 100,200 may be two blanks
        items = [read(part) for part in re.split(r",|;| and |和", given)]
        if len(items) > 1 and None not in items:
            verdicts.append(compare(Many("list", tuple(items)), wanted, rules))
    return True if True in verdicts else verdicts[0] if verdicts else None


def readings(text: str) -> list[str]:
    """What a text may mean: 3,5 is 3.5 and 1.500,75 is 1500.75; C(5, 2) is a point or a binomial."""
    other = text
    if match := COMMA.fullmatch(text):
        other = f"{re.sub('[. ]', '', match[1])}.{match[2]}{match[3] or ''}"
    return list(dict.fromkeys([text, re.sub(r"^C\((\d+), ?(\d+)\)", r"choose(\1;\2)", other)]))


def compare(one: object, other: object, rules: Rules) -> bool | None:
    """same(), and no telling where the arithmetic refuses."""
    try:
        return same(one, other, rules)
    except ArithmeticError:  # Unread is one too
        return None


def every(verdicts: Iterable[bool | None]) -> bool | None:
    verdicts = list(verdicts)
    return False if False in verdicts else None if None in verdicts else True


def same(one: object, other: object, rules: Rules) -> bool | None:
    """Whether two values are the same. Which of them is the reference does not matter."""
    for kind in (Named | Relation, Said):
        if isinstance(other, kind) and not isinstance(one, kind):
            one, other = other, one
    if isinstance(one, Said):  # with a unit, where one is said
        values = [value for value in one.values if value.dims] or one.values
        verdicts = [same(value, other, rules) for value in values]
        return True if True in verdicts else None if None in verdicts else False
    if isinstance(one, Named | Relation):
        return same_named(one, other, rules)
    if isinstance(one, Words) and isinstance(other, Words):
        one, other = key(one.key), key(other.key)
        return one == other or (None if one in other or other in one else False)
    if isinstance(one, Quantity) and isinstance(other, Quantity):
        return same_quantity(one, other, rules)
    if isinstance(one, Region) or isinstance(other, Region):
        return Region.of(one).is_same(Region.of(other))
    if isinstance(one, Time) and isinstance(other, Time):
        return one.is_same(other)
    if isinstance(one, Many | Time) and isinstance(other, Many | Time):
        return same_many(*(each.ratio() if isinstance(each, Time) else each for each in (one, other)), rules)
    return same_single(one, other, rules)


def same_named(one: Named | Relation, other: object, rules: Rules) -> bool | None:
    """x = 2 and 2, x = 2 and x = 2, y = 2x and 2x - y = 0, (x, y) = (1, 4) and x = 1, y = 4."""
    relations = Relation.of(one), Relation.of(other)
    if isinstance(one, Relation) or isinstance(other, Relation):
        return relations[0].is_same(relations[1]) if None not in relations else None
    if isinstance(other, Named):
        if same_name(one.name, other.name):
            return same(one.value, other.value, rules)
        numbers = [isinstance(each.value, Quantity) and each.value.is_number for each in (one, other)]
        if None not in relations and not all(numbers) and "(" not in one.name + other.name:
            return relations[0].is_same(relations[1])
        return False if same(one.value, other.value, rules) else None
    if isinstance(other, Region):
        return relations[0].is_same(relations[1]) if None not in relations else None
    if isinstance(other, Many) and isinstance(one.value, Many) and "," in one.name:
        if any(isinstance(item, Named) for item in other.items):
            items = tuple(map(Named, one.name.split(","), one.value.items))
            return same(Many("list", items), other, rules)
    return same(one.value, other, rules)


def same_name(one: str, other: str) -> bool:
    """Whether two names may be of one thing: x and x_1, f(x) and y, area and area of the square, x and area."""
    if one[:1] == other[:1] == " ":
        one, other = key(one), key(other)
        return one in other or other in one
    letters = [re.sub(r"_.*", "", name) for name in (one, other)]
    is_function = "y" in (one, other) and "(" in one + other
    both_indexed = "_" in one and "_" in other
    in_words = (one[:1] == " ") != (other[:1] == " ")
    return one == other or is_function or letters[0] == letters[1] and not both_indexed or in_words


def same_quantity(one: Quantity, other: Quantity, rules: Rules) -> bool | None:
    """Numbers, expressions, quantities: 0.5 is 1/2; 5 cm is 50 mm, is 5, and not 50; 50% is 1/2; 60° is π/3."""
    dims = [dict(each.dims) for each in (one, other)]
    sizes = one.size if one.dims else 1, other.size if other.dims else 1
    if {"percent": 1} in dims and all(each in ({}, {"percent": 1}) for each in dims):
        if agree(one, other, rules, *sizes):
            return True
        return rules.percent and not all(dims) and agree(one, other, rules)
    if all(dims):
        if dims[0] == dims[1]:
            return agree(one, other, rules, *(sizes if one.size != other.size else ()))
        things = any(name[0] == "#" for each in dims for name in each)
        return None if things and agree(one, other, rules) else False
    if agree(one, other, rules):
        return True
    turns = (other if dims[0] else one).values[0] / mp.pi * PARTS_OF_PI
    is_radian = {"angle": 1} in dims and turns and abs(turns - mp.nint(mp.re(turns))) < TOLERANCE
    return is_radian and agree(one, other, rules, *sizes)


def agree(one: Quantity, other: Quantity, rules: Rules, size: object = 1, other_size: object = 1) -> bool:
    """Whether two are the same at all points, or as numbers to the decimals that count."""
    pairs = [(a * size, b * other_size) for a, b in one.pairs(other)]
    if one.is_number and other.is_number:
        if rules.precision is not None:
            decimals = min(int(rules.precision), MOST_DECIMALS)
            return close(*pairs[0], mp.mpf("0.5") * mp.mpf(10) ** -decimals + TOLERANCE)
        written = [count for count in rules.decimals if count >= EXACT_DECIMALS]
        if written and size == other_size == 1 and close(*pairs[0], mp.mpf(10) ** -min(written)):
            return bool(abs(pairs[0][0] - pairs[0][1]) <= abs(pairs[0][1]) / EXACT_SHARE)
    return all(close(*pair) for pair in pairs)


def same_single(one: object, other: object, rules: Rules) -> bool | None:
    """One value against several: alternatives may all be the same; a ratio 1:2 is 1/2."""
    several, single = (one, other) if isinstance(one, Many) else (other, one)
    if not isinstance(several, Many) or not isinstance(single, Quantity):
        return None
    if several.form == "ratio" and len(several.items) == 2 and not single.dims:
        above, below = (item.values[0] for item in several.items)
        return True if below and below != 1 and close(above / below, single.values[0]) else None
    items = without_doubles(several, rules)
    return same(items[0], single, rules) if len(items) == 1 else False


def without_doubles(several: Many, rules: Rules) -> list:
    """The values of 12 or 12.0 are one; a list keeps what it says twice."""
    items = []
    for item in several.items:
        if several.form != "either" or not any(same(item, other, rules) for other in items):
            items.append(item)
    return items


def same_many(one: Many, other: Many, rules: Rules) -> bool | None:
    """Blanks and tuples in order, sets and alternatives in any order, named values by their names."""
    forms, sizes = {one.form, other.form}, {len(one.items), len(other.items)}
    if forms & {"ratio", "remainder"} and len(forms) > 1:
        return None
    if forms == {"ratio"}:
        return same_ratio(one, other, rules)
    names = [{item.name for item in each.items if isinstance(item, Named)} for each in (one, other)]
    if len(sizes) == 1 and all(len(each) == len(one.items) for each in names):
        return every(same_of_name(item, one.items, rules) for item in other.items)
    bracketed = [len(each.form) == 2 for each in (one, other)]
    if all(bracketed) and sizes == {2} and one.form != other.form:
        return False  # intervals
    if any(bracketed) or forms & {"blanks", "ordered", "remainder"} or rules.ordered and forms == {"list"}:
        if len(sizes) > 1:
            return False
        if any(bracketed) and forms & {"either", "set"}:
            return None
        items = [
            [each.value if isinstance(each, Named) else each for each in many.items] for many in (one, other)
        ]
        return every(same(*pair, rules) for pair in zip(*items))
    left = without_doubles(one, rules)
    for item in without_doubles(other, rules):
        partner = next((each for each in left if same(each, item, rules)), None)
        if partner is None:
            return False
        left.remove(partner)
    return not left


def same_of_name(item: Named, items: tuple[Named, ...], rules: Rules) -> bool | None:
    """Whether the one value of that name is the same."""
    found = [each for each in items if same_name(each.name, item.name)]
    return same(found[0].value, item.value, rules) if len(found) == 1 else None


def same_ratio(one: Many, other: Many, rules: Rules) -> bool | None:
    """3:5 and 6:10."""
    if len(one.items) != len(other.items):
        return False
    if any(0 in item.values for item in one.items + other.items):
        return None
    first = one.items[0], other.items[0]
    return all(agree(a * first[1], b * first[0], rules) for a, b in zip(one.items, other.items))
