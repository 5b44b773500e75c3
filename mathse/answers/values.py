"""Read an answer as a value: whole, every character of it, or not at all.

Read are:
- numbers: integers, decimals (0.333..., 0.1(6)), fractions, mixed numbers, scientific notation, percent,
  roots, π, factorials, binomials, logarithms, other bases; English and Chinese words; 3 million
- quantities: with a unit of units.py; 1 h 30 min; 60°30′; money; things that are counted
- ratios, "2 out of 3", remainders, clock times, dates
- blanks in order (";" or "(1) … (2) …"), tuples, points, sets, lists, alternatives ("2 or 3", ±), matrices
- intervals and inequalities, their unions, excluded points; equations; expressions
- named values: x = 2, Area: 5 cm, ∠A = 60°; figures: ∠ABC, △ABC, AB ∥ CD; yes and no; short names
- one answer said several times: "1/2 (50%)", "12π ≈ 37.7", "3 × 4 = 12", "5, not 6"
All else raises Unreadable.
"""

import re
from functools import lru_cache

from mathse.answers.algebra import exact
from mathse.answers.expression import Unreadable, variables_of
from mathse.answers.kinds import Group, Named, Region, Relation, Restated, Scalar, Words
from mathse.answers.names import read_figure, read_name, read_sign, read_words
from mathse.answers.quantities import BASE, number, read_clock, read_date, read_quantity, without_units
from mathse.answers.regions import intersected, read_inequality, region_of, united
from mathse.answers.spelling import closes_at_end, comparable, split, trimmed
from mathse.answers.units import read_unit

PARTS = 12  # of an answer: two sets of this size take 144 comparisons
OR, AND = r" or (?:else )?|(?<=[\d)\]])or(?=[-\d(\[])|或者?", r" and |和|与| & "
COMMA = r",(?!\d{3}(?!\d))|(?<!\d),"  # not the comma of 1,056
HEDGE = re.compile(
    r"(?:(?:so|thus|hence|therefore|then|simply|just|approximately|approx\.?|about|around|roughly|exactly"
    r"|precisely|equal to|equals|it is|it's|they are|given by|a total of"
    r"|因此|所以|即|故|则|约为?|大约|共|∴|≈|=|:)(?![A-Za-z])[\s,:]*)+",
    re.IGNORECASE,
)
LABEL = re.compile(r"([^,;:=]{1,80}?) (?:is|are|was|were|be|=) (.+)")
MEASURED = re.compile(
    r"(mean|median|mode|range|min|max|minimum|maximum|length|width|height|area|perimeter|volume|base|radius"
    r"|diameter) ?([-\d√\\$].*)|(figure|fig\.?|picture|图|point|row|column|line|step) ?(\(?\d+\)?|[A-Z])",
    re.IGNORECASE,
)
NUMBERED = re.compile(r"(?:^|[\s;,.])\(?(\d|[a-h])\)[:.]? ?(.+?)(?=[\s;,.]+\(?(?:\d|[a-h])\)|$)")
REMAINDER = re.compile(r"(\d+),? ?(?:with )?(?:a )?(?:remainder(?: of)?|rem\.?|R|r|余|\.\.\.+) ?(\d+)")
MATRIX = re.compile(r"\\begin ?\{([pbvB]?matrix|array)\}(?:\{[lcr|]+\})?(.*?)(?:\\\\)? ?\\end ?\{\1\}")
# Behind one answer: a remark, what it is not, the same again.
REMARK = re.compile(
    r" ?— ?(?=[a-z]{2,} [a-z]{2})[^=]*$|(?:,? (?:-|--|---) ?| \()"
    r"(?=(?:the|a|an|which|as|because|since|it|this|that|so|where|see|from|using|rounded) )[^=]*$"
)
TURNS = re.compile(
    r"\b(?:not|no|never|wrong|impossible|or|well|opposite|but|instead|actually)\b|n't\b", re.IGNORECASE
)
OPPOSED = re.compile(r",? (?:and |but )?(?:not|rather than|instead of) (?P<en>.+)$|,? ?而?不是(?P<zh>.+)$")
ROUNDED = r"≈|approximately|approx\.?|about|roughly|around|约"
AGAIN = rf"(?:(?:which is|that is|i\.e\.|namely|or|equals?|equivalently|即|或|也就是|{ROUNDED}|=),? ?)+"
BEHIND = re.compile(
    rf"[,;]? ?\(?(?P<again>(?:or )?(?:{ROUNDED}|i\.e\.|that is,? |namely|即).*)$", re.IGNORECASE
)


def read(text: str) -> object:
    """The value of a whole text in the spelling of spell(). Raises Unreadable."""
    value = readable(text)
    if value is None:
        raise Unreadable(text)
    return value


@lru_cache(maxsize=8192)  # also of what is not read: else each level of a nested text would read it anew
def readable(text: str) -> object | None:
    """read(), None for what is not read."""
    hedge = HEDGE.match(text)
    text = trimmed(text[hedge.end() :] if hedge else text)
    try:
        found = (reader(text) for reader in READERS if text)
        return next((value for value in found if value is not None), None)
    except Unreadable:
        return None


def read_side(text: str) -> Scalar | None:
    value = readable(text)
    return value if isinstance(value, Scalar) else None


def read_all(parts: list[str]) -> tuple:
    if len(parts) > PARTS or not all(parts):
        raise Unreadable(f"{len(parts)} parts")
    return tuple(map(read, parts))


# ---------------------------------------------------------------- several values


def read_blanks(text: str) -> Group | None:
    """(1) 8 (2) 0.25; also (a) … (b) …; or 8; 0.25."""
    numbered = NUMBERED.findall(text) if NUMBERED.match(text) else []
    names = "".join(sorted(name for name, _ in numbered))
    if len(names) > 1 and ("123456789".startswith(names) or "abcdefgh".startswith(names)):
        return Group("blanks", tuple(read(part.strip(" ,;.")) for _, part in sorted(numbered)))
    parts = split(text.strip("; "), r"; ?(?:and )?")
    return Group("blanks", read_all(parts)) if len(parts) > 1 else None


def read_alternatives(text: str) -> object | None:
    """2 or 3; x < 1 or x > 2; 1, 2 and 3; x = 1, y = 2; ±3."""
    if text.count("±") == 1 and len(split(text, "[=≈]")) == 1:
        return Group("either", tuple(read(text.replace("±", sign).removeprefix("+")) for sign in "+-"))
    parts = split(re.sub(r",? or,? equivalently,? |, or ", " or ", re.sub(r"^either ", "", text)), OR)
    if len(parts) > 1:
        return grouped("either", read_all([piece for part in parts for piece in split(part, COMMA)]))
    label = LABEL.fullmatch(text)
    if label and is_one_quantity(label[2]):
        return None
    plain = re.sub(r",? and ", " and ", re.sub(r"^both ", "", text))
    parts = [piece for part in split(plain, AND) for piece in split(part, COMMA)]
    if len(parts) < 2 or is_one_quantity(text):
        return None
    return grouped("list", read_all(parts))


def is_one_quantity(text: str) -> bool:
    """Whether the "and" or comma is within a number or quantity: one hundred and five, 1 h and 30 min."""
    return bool(re.search(r" and |,", text)) and read_quantity(text) is not None


def grouped(form: str, items: tuple) -> object:
    """Several values; regions of one variable are one region, "n = 1, 3" has two values of n, and of several
    calculations the last is the answer."""
    regions = [item for item in items if isinstance(item, Region)]
    if len(regions) == len(items) and len({region.variable for region in regions}) == 1:
        return (united if form == "either" else intersected)(regions)
    chains = [isinstance(item, Restated) and not isinstance(item.values[0], Words) for item in items]
    if form == "list" and all(chains):  # 5 * 7 = 35, 35 - 5 = 30
        return items[-1]
    if isinstance(items[0], Named) and not any(isinstance(item, Named) for item in items[1:]):
        items = (items[0].value, *items[1:])
    return Group(form, items)


def read_set(text: str) -> object | None:
    """{1, 2}; {x | x > 1}."""
    if not re.fullmatch(r"⦃.*⦄|\{.*[,|].*\}", text) or not closes_at_end(text):
        return None
    inner = text[1:-1].strip()
    if builder := re.match(r"[a-z](?:∈ ?(?:ℝ|R))? ?[|:] ?", inner):
        return read(inner[builder.end() :])
    return Group("set", read_all(split(inner, "[,;]"))) if inner else Words(comparable("no solution"))


def read_bracketed(text: str) -> Group | None:
    """A tuple, point, vector, list in brackets, or interval."""
    if len(text) < 5 or text[0] not in "([⟨" or text[-1] not in ")]⟩" or not closes_at_end(text):
        return None
    parts = split(text[1:-1], "[,;]")
    return Group("bracketed", read_all(parts), text[0] + text[-1]) if len(parts) > 1 else None


def read_order(text: str) -> Group | None:
    """B → C → A"""
    return Group("bracketed", read_all(text.split("→")), "<>") if "→" in text else None


def read_based(text: str) -> Scalar | None:
    """101_2, 101 (base 2)"""
    return read_quantity(text) if BASE.fullmatch(text) else None


def read_matrix(text: str) -> Group | None:
    r"""\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"""
    match = MATRIX.fullmatch(text)
    if not match:
        return None
    rows = [row.split("&") for row in match[2].split("\\\\")]
    if len({len(row) for row in rows}) != 1 or sum(map(len, rows)) > 4 * PARTS:
        raise Unreadable(text)
    if len(rows[0]) == 1 or len(rows) == 1:  # a vector
        return Group("bracketed", tuple(read(cell) for row in rows for cell in row), "()")
    return Group("bracketed", tuple(Group("bracketed", tuple(map(read, row)), "[]") for row in rows), "[]")


def read_ratio(text: str) -> Group | None:
    """6:10, 3 to 2, 3比2, 1:√2; what may also be a time, such as 9:00, has a form of its own."""
    parts = split(text.replace(" to ", ":").replace("比", ":"), ":")
    trees = [number(part) for part in parts]
    if not 1 < len(parts) < 6 or None in trees or any(map(variables_of, trees)):
        return None
    is_time = re.fullmatch(r"\d{1,2}:[0-5]\d(?::[0-5]\d)?", text)  # perhaps: 6:10 may be a ratio too
    return Group("time" if is_time else "ratio", tuple(map(Scalar, trees)))


def read_division(text: str) -> object | None:
    """2 out of 3, 1 in 3; 3 remainder 2, 3 R 2; 3 and 1/2."""
    if match := re.fullmatch(r"(\d+) and (?:a )?(\d+/\d+)( [a-z]+)?", text):
        return read_quantity(f"{match[1]} {match[2]}{match[3] or ''}")
    if match := re.fullmatch(r"(\w+) (?:out of|of|in every|in)(?: every| the)? (\w+)", text):
        above, below = (read_side(part) for part in match.groups())
        parts = [exact(each.tree) if each and each.unit is None else None for each in (above, below)]
        if None not in parts and 0 <= parts[0] <= parts[1] > 0 and parts[0].denominator == 1:
            return Scalar(("number", parts[0] / parts[1]))
        return None
    if match := REMAINDER.fullmatch(text):
        return Group("remainder", tuple(Scalar(number(part)) for part in match.groups()))
    return None


# ---------------------------------------------------------------- one answer said several times


def read_restated(text: str) -> object | None:
    """5, not 6; not 6 but 5; five (5); 12 cm (120 mm); 10/3, about 3.33; 5 — the smallest prime above 3."""
    remark = REMARK.search(text)
    if remark and TURNS.search(remark[0]):
        raise Unreadable(text)
    if remark and remark[0].startswith(" (") == text.endswith(")"):
        return read(text[: remark.start()])
    if match := re.fullmatch(r"(?:not|不是) ?(.+?),? ?(?:but|而是)(?: rather)? ?(.+)", text):
        return read(match[2]) if readable(match[1]) is not None else None
    opposed = OPPOSED.search(text)
    other = readable(opposed["en"] or opposed["zh"]) if opposed else None
    if other is not None and ("," in opposed[0] or not isinstance(other, Words)):
        return read(text[: opposed.start()])
    if match := re.fullmatch(r"(.*[^\s(√^.,;]) ?\(([^()]+)\)", text):
        return said_again(match[1], match[2], spaced=text[match.end(1)] == " ")
    behind = BEHIND.search(text)
    if not behind or not behind.start():
        return None
    return said_again(text[: behind.start()], behind["again"].removesuffix(")"))


def said_again(first: str, second: str, spaced: bool = True) -> object | None:
    """The value of "first (second)"; None if that is one term, as in 2(3), f(x), A(1, 2)."""
    marked = re.match(AGAIN, second)
    again = second[marked.end() :] if marked else second
    unit = read_unit(again)
    if not spaced and not marked and not unit and not re.search(r"[A-Za-z]{3}$|[\u4e00-\u9fff]$", first):
        return None
    value = readable(first)
    if value is None or isinstance(value, Words) or not is_constant(value):
        return None
    if isinstance(value, Relation):  # 3x = 21, that is x = 7
        return readable(again)
    if isinstance(value, Scalar) and value.unit is None and unit:
        return Scalar(value.tree, unit, value.decimals)
    other = readable(again)
    return Restated((value, other), (False, bool(re.match(ROUNDED, second)))) if other is not None else None


# ---------------------------------------------------------------- equations and named values


def read_chain(text: str) -> object | None:
    """x = 2; x = 7/2 = 3.5; 3 + 4 = 7; a + b = 145 + 27 = 172; 9π ≈ 28.27; y = 2x - 6; an equation."""
    sides = split(text, "(?=[=≈])")
    if len(sides) < 2 or re.search("[<>≤≥≠]", text):
        return read_label(text)
    if len(sides) > PARTS:
        raise Unreadable(text)
    first, rest = sides[0], [side[1:].strip() for side in sides[1:]]
    rounded = [side[0] == "≈" for side in sides[1:]]
    if len(rest) == 1 and not rounded[0]:
        return read_equation(first, rest[0])
    named, left = read_name(first), read_side(first)
    if left and is_constant(left):
        return restate([left, *numbers_of_chain(rest)], [False, *rounded])
    values = numbers_of_chain(rest)
    if named or left and joins_names(left.tree):
        return Named(*(named or (comparable(first), "")), restate(values, rounded))
    raise Unreadable(text)


def read_equation(first: str, second: str) -> object:
    """A named value, a calculation, or an equation."""
    named, left, right = read_name(first), read_side(first), read_side(second)
    if not left and not named:
        left = read_side(without_units(first))  # 5 cm * 3 cm = 15 cm^2
    if left and right and is_constant(left) and right.tree[0] == "name":  # 5 = x
        return Named(right.tree[1], "", left)
    if left and right and is_constant(left) and is_constant(right):
        return restate([left, right], [False, False])
    if left and right and not (named and named[0] not in variables_of(right.tree)):
        if left.unit or right.unit:
            raise Unreadable(first)
        return Relation("=", left.tree, right.tree)
    if not named:
        raise Unreadable(first)
    return Named(*named, read(second))


def numbers_of_chain(sides: list[str]) -> list:
    """The sides that have no variables, if the last has none; 2(a + b) is no value where 16 follows."""
    values = [readable(side) or read_side(without_units(side)) for side in sides[:-1]] + [read(sides[-1])]
    if None in values:
        raise Unreadable("a side")
    if not is_constant(values[-1]):
        return values[-1:]
    return [value for value in values if is_constant(value)]


def is_constant(value: object) -> bool:
    return not isinstance(value, Scalar) or not variables_of(value.tree)


def restate(values: list, rounded: list[bool]) -> object:
    """Several values said to be the same."""
    return values[0] if len(values) == 1 else Restated(tuple(values), tuple(rounded[-len(values) :]))


def joins_names(tree: tuple) -> bool:
    """Whether an expression just joins names, as a + b does: what it equals is its value."""
    operator, *parts = tree
    return operator == "name" or operator in ("+", "*", "/", "neg") and all(map(joins_names, parts))


def read_label(text: str) -> Named | None:
    """Area: 5 cm; the area is 5 cm; perimeter 20 cm; x ∈ (1, 2); A(1, 2)."""
    if match := re.fullmatch(r"([a-zA-Z]) ?∈ ?(.+)", text):
        value = read(match[2])
        return region_of(value, match[1]) or Named(match[1], "", value)
    if match := re.fullmatch(r"([A-Z]'?) ?(\(.+\))", text):
        value = read(match[2])
        return Named(match[1], "", value) if isinstance(value, Group) else None
    if match := MEASURED.fullmatch(text):
        return Named("", (match[1] or match[3]).casefold(), read(match[2] or match[4]))
    if match := LABEL.fullmatch(text):
        named, value = read_name(match[1]), readable(match[2])
        return Named(*named, value) if named and value is not None else None
    name, colon, rest = text.partition(":")
    named = read_name(name) if colon and rest.strip() else None
    if named is None or named[0] and not rest.startswith(" "):
        return None
    return Named(*named, read(rest.strip()))


def read_union(text: str) -> Region | None:
    """(-∞, 1) ∪ (2, 3]"""
    parts = split(text, "∪")
    if len(parts) < 2:
        return None
    regions = [region_of(read(part)) for part in parts]
    if None in regions:
        raise Unreadable(text)
    return united(regions)


READERS = [
    read_sign, read_order, read_based, read_restated, read_blanks, read_matrix, read_set, read_union,
    read_clock, read_date, read_division, read_alternatives, read_chain, read_inequality, read_bracketed,
    read_figure, read_ratio, read_quantity, read_words,
]  # fmt: skip
