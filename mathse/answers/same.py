"""Are two answers the same? Equal as text, or as values of one kind. True, False, or None: no telling."""

import re
from collections.abc import Iterable
from contextlib import suppress
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
LEAST_PLACES = 100  # smallest last places of a reference that a finer number may be rounded to: 1.00
DECIMAL = re.compile(r"(?:.*[=≈])? ?-?\d*\.(\d+)[ %°a-zA-Z^/\d]*")
COMMA = re.compile(r"(-?(?:\d{1,3}(?:[. ]\d{3})+|\d+)),(\d{1,2}|\d{4,}|(?<=0,)\d+)(\D.*)?")


def same_answer(given: str, reference: str, rules: "Rules | None" = None) -> bool | None:
    """Whether two answers are the same, in any reading of the two."""
    given, reference, rules = spell(given), spell(reference), rules or Rules()
    if given and key(given) == key(reference):
        return True
    pairs = []
    for texts in product(readings(given), readings(reference)):
        decimals = tuple(len(found[1]) if (found := DECIMAL.fullmatch(text)) else None for text in texts)
        pairs.append((*map(read, texts), replace(rules, decimals=decimals)))
    wanted = read(reference)
    if isinstance(wanted, Many):  # 100,200 may be two blanks
        items = tuple(read(part) for part in re.split(r",|;| and |和", given))
        pairs += [(Many("list", items), wanted, rules)] if len(items) > 1 and None not in items else []
    verdicts = [rules.compare(one, other) for one, other, rules in pairs if one and other]
    return True if True in verdicts else verdicts[0] if verdicts else None


def readings(text: str) -> list[str]:
    """What a text may mean: 3,5 is 3.5 and 1.500,75 is 1500.75; C(5, 2) is a point or a binomial."""
    other = text
    if match := COMMA.fullmatch(text):
        other = f"{re.sub('[. ]', '', match[1])}.{match[2]}{match[3] or ''}"
    if re.fullmatch("[A-Z](?:-[A-Z])+", text):  # a way, from point to point
        other = text.replace("-", "→")
    return list(dict.fromkeys([text, re.sub(r"^C\((\d+), ?(\d+)\)", r"choose(\1;\2)", other)]))


def same_name(one: str, other: str) -> bool:
    """Whether two names may be of one thing: x and x_1, f(x) and y, area and area of it, x and area."""
    if one[:1] == other[:1] == " ":
        one, other = key(one), key(other)
        return one in other or other in one
    letters = [re.sub(r"_.*", "", name) for name in (one, other)]
    is_function = "y" in (one, other) and "(" in one + other
    both_indexed = "_" in one and "_" in other
    in_words = (one[:1] == " ") != (other[:1] == " ")
    return one == other or is_function or letters[0] == letters[1] and not both_indexed or in_words


def every(verdicts: Iterable[bool | None]) -> bool | None:
    verdicts = list(verdicts)
    return False if False in verdicts else None if None in verdicts else True


@dataclass(frozen=True)
class Rules:
    """How values are compared. `precision`: decimals that count, None for all; `percent`: the question asks
    for one, so 35 is 35%; `ordered`: it asks for an order; `decimals`: that the given answer and the
    reference are written with, None for other numbers."""

    precision: int | None = None
    percent: bool = False
    ordered: bool = False
    decimals: tuple[int | None, int | None] = (None, None)

    def compare(self, one: object, other: object) -> bool | None:
        """same(), and no telling where the values refuse. A set of one is what is in it."""
        sets = [
            isinstance(each, Many) and each.form == "set" and len(each.items) == 1 for each in (one, other)
        ]
        one, other = (each.items[0] if is_set else each for each, is_set in zip((one, other), sets))
        with suppress(ArithmeticError):  # Unread is one too
            return self.same(one, other)
        return None

    def same(self, one: object, other: object) -> bool | None:
        """Whether two values are the same. Which of them is the reference does not matter."""
        for kind in (Named | Relation, Said):
            if isinstance(other, kind) and not isinstance(one, kind):
                one, other = other, one
        if isinstance(one, Said):
            unit = next((value for value in one.values if value.dims), one.values[0])
            values = [
                value if value.dims else replace(value, dims=unit.dims, size=unit.size)
                for value in one.values
            ]
            verdicts = [self.same(value, other) for value in values]
            return True if True in verdicts else None if None in verdicts else False
        if isinstance(one, Named | Relation):
            return self.same_named(one, other)
        if isinstance(one, Words) and isinstance(other, Words):
            one, other = key(one.key), key(other.key)
            return one == other or (None if one in other or other in one else False)
        if isinstance(one, Quantity) and isinstance(other, Quantity):
            return self.same_quantity(one, other)
        if isinstance(one, Region) or isinstance(other, Region):
            return Region.of(one).is_same(Region.of(other))
        if isinstance(one, Time) and isinstance(other, Time):
            return one.is_same(other)
        if isinstance(one, Many | Time) and isinstance(other, Many | Time):
            one, other = (each.ratio() if isinstance(each, Time) else each for each in (one, other))
            return self.same_many(one, other)
        return self.same_single(one, other)

    def same_named(self, one: Named | Relation, other: object) -> bool | None:
        """x = 2 and 2, x = 2 and x = 2, y = 2x and 2x - y = 0, (x, y) = (1, 4) and x = 1, y = 4."""
        relations = Relation.of(one), Relation.of(other)
        if isinstance(one, Relation) or isinstance(other, Relation | Region):
            return relations[0].is_same(relations[1]) if None not in relations else None
        if isinstance(other, Named):
            if same_name(one.name, other.name):
                return self.same(one.value, other.value)
            numbers = [isinstance(each.value, Quantity) and each.value.is_number for each in (one, other)]
            if None not in relations and not all(numbers) and "(" not in one.name + other.name:
                return relations[0].is_same(relations[1])
            return False if self.same(one.value, other.value) else None
        if isinstance(other, Many) and isinstance(one.value, Many) and "," in one.name:
            if any(isinstance(item, Named) for item in other.items):
                return self.same(Many("list", tuple(map(Named, one.name.split(","), one.value.items))), other)
        return self.same(one.value, other)

    def same_quantity(self, one: Quantity, other: Quantity) -> bool | None:
        """0.5 is 1/2; 5 cm is 50 mm, is 5, and not 50; 50% is 1/2; 60° is π/3."""
        dims = [dict(each.dims) for each in (one, other)]
        sizes = one.size if one.dims else 1, other.size if other.dims else 1
        if {"percent": 1} in dims and all(each in ({}, {"percent": 1}) for each in dims):
            if self.agree(one, other, *sizes):
                return True
            return self.percent and not all(dims) and self.agree(one, other)
        if all(dims):
            if dims[0] == dims[1]:
                return self.agree(one, other, *(sizes if one.size != other.size else ()))
            things = any(name[0] == "#" for each in dims for name in each)
            return None if things and self.agree(one, other) else False
        if self.agree(one, other):
            return True
        turns = (other if dims[0] else one).values[0] / mp.pi * PARTS_OF_PI
        is_radian = {"angle": 1} in dims and turns and abs(turns - mp.nint(mp.re(turns))) < TOLERANCE
        return is_radian and self.agree(one, other, *sizes)

    def agree(self, one: Quantity, other: Quantity, size: object = 1, other_size: object = 1) -> bool:
        """Whether two are the same at all points, or as numbers to the decimals that count."""
        pairs = [(a * size, b * other_size) for a, b in one.pairs(other)]
        if one.is_number and other.is_number:
            if self.precision is not None:
                decimals = min(int(self.precision), MOST_DECIMALS)
                return close(*pairs[0], mp.mpf(10) ** -decimals / 2 + TOLERANCE)
            given, wanted = self.decimals
            decimals = min((each for each in self.decimals if each is not None), default=0)
            if decimals >= EXACT_DECIMALS and given != wanted and size == other_size == 1:
                return close(*pairs[0], min(mp.mpf(10) ** -decimals, abs(pairs[0][1]) / EXACT_SHARE))
            if given and wanted and given > wanted >= 2 and size == other_size:  # 4.514 is 4.51
                place = mp.mpf(10) ** -wanted * size
                return abs(pairs[0][1]) >= LEAST_PLACES * place and close(*pairs[0], place / 2 + TOLERANCE)
        return all(close(*pair) for pair in pairs)

    def same_single(self, one: object, other: object) -> bool | None:
        """One value against several: alternatives may all be the same; a ratio 1:2 is 1/2."""
        several, single = (one, other) if isinstance(one, Many) else (other, one)
        if not isinstance(several, Many) or several.form == "set" or not isinstance(single, Quantity):
            return None
        if several.form == "ratio" and len(several.items) == 2 and not single.dims:
            above, below = (item.values[0] for item in several.items)
            return True if below and below != 1 and close(above / below, single.values[0]) else None
        items = self.without_doubles(several)
        return self.same(items[0], single) if len(items) == 1 else False

    def without_doubles(self, several: Many) -> list:
        """The values of 12 or 12.0 are one; a list keeps what it says twice."""
        items = []
        for item in several.items:
            if several.form != "either" or not any(self.same(item, other) for other in items):
                items.append(item)
        return items

    def same_many(self, one: Many, other: Many) -> bool | None:
        """Blanks and tuples in order, sets and alternatives in any order, named values by their names."""
        forms, same_size = {one.form, other.form}, len(one.items) == len(other.items)
        if forms & {"ratio", "remainder"} and len(forms) > 1:
            return None
        if forms == {"ratio"}:
            return same_size and self.same_ratio(one, other)
        names = [{item.name for item in each.items if isinstance(item, Named)} for each in (one, other)]
        if same_size and all(len(each) == len(one.items) for each in names):
            found = [[each for each in one.items if same_name(each.name, item.name)] for item in other.items]
            pairs = zip((each[0] if len(each) == 1 else None for each in found), other.items)
            return every(self.same(one.value, other.value) if one else None for one, other in pairs)
        bracketed = [len(each.form) == 2 for each in (one, other)]
        if all(bracketed) and len(one.items) == 2 and one.form != other.form:
            return False  # intervals
        if any(bracketed) or forms & {"blanks", "ordered", "remainder"} or self.ordered and forms == {"list"}:
            if same_size and any(bracketed) and forms & {"either", "set"}:
                return None
            items = ([getattr(item, "value", item) for item in many.items] for many in (one, other))
            return same_size and every(map(self.same, *items))
        left = self.without_doubles(one)
        for item in self.without_doubles(other):
            partner = next((each for each in left if self.same(each, item)), None)
            if partner is None:
                return False
            left.remove(partner)
        return not left

    def same_ratio(self, one: Many, other: Many) -> bool | None:
        """3:5 and 6:10."""
        if any(0 in item.values for item in one.items + other.items):
            return None
        first = one.items[0], other.items[0]
        return all(self.agree(a * first[1], b * first[0]) for a, b in zip(one.items, other.items))
