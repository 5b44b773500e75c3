"""Numbers and quantities: digits or words, with a unit, a magnitude or money; clock times and dates."""

import re
from fractions import Fraction

from mathse.answers.expression import Tree, Unreadable, read_expression, variables_of
from mathse.answers.kinds import Group, Scalar, Words
from mathse.answers.numerals import MAGNITUDES, number_in_chinese, number_in_words
from mathse.answers.units import Unit, lookup, read_unit, singular

DIMENSION = re.compile(
    r" (?:long|tall|wide|high|deep|thick|away|apart|in total|in all|altogether|total|old)$"
)
MONEY = re.compile(r"(-?)(?:US|RMB|USD)? ?([$¥€£₹]|USD|EUR) ?(-?[\d.].*)")
BELOW_ZERO = re.compile(r"(?:零下|(?:minus|negative) )(\d.*)|(\d.*) below zero")
BASE = re.compile(r"([0-9A-F]+)(?:_\{?\(?(\d\d?)\)?\}?| ?\(base (\d\d?)\)| in base (\d\d?))")
COMPOUND_PART = re.compile(
    r"(\d+(?:\.\d+)?|[a-z]+(?:-[a-z]+)?(?= [a-z])) ?(°|''|'|′|″|\"|[A-Za-z]+|[\u4e00-\u9fff]{1,2}?)"
    r"(?=[\s,\d]|and|又|$)(?:,? (?:and )?|又)?"
)
CLOCK = re.compile(
    r"(\d{1,2})(?::(\d\d))?(?::(\d\d))? ?([ap])\.?m\.?|(\d{1,2}|[a-z]+) ?o'clock", re.IGNORECASE
)
SPOKEN_CLOCK = re.compile(r"(?:a )?(half|quarter) (past|to) (\w+)")
CHINESE_CLOCK = re.compile(r"(凌晨|早上|上午|中午|下午|晚上|傍晚)(\d{1,2})[时点:](?:(\d{1,2})分?|(半))?")
MONTHS = "january february march april may june july august september october november december".split()
MONTH = "|".join(f"{name}|{name[:3]}" for name in MONTHS)
DATE = re.compile(
    rf"(?P<d1>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? (?P<m1>{MONTH}),?(?: (?P<y1>\d{{4}}))?"
    rf"|(?P<m2>{MONTH}) (?P<d2>\d{{1,2}})(?:st|nd|rd|th)?,?(?: (?P<y2>\d{{4}}))?"
    r"|(?P<y4>\d{4})-(?P<m4>\d\d)-(?P<d4>\d\d)|(?:(?P<y3>\d{4})年)?(?P<m3>\d{1,2})月(?P<d3>\d{1,2})[日号]",
    re.IGNORECASE,
)
TWO = ("number", Fraction(2))
# An operation in words, done to A and B.
OPERATIONS = [(re.compile(rf"(?:the )?{words}"), tree) for words, tree in [
    (r"(?:square )?root of (.+)|(?:root |根号)(.+)", lambda a: ("root", 2, a)),
    (r"cube root of (.+)", lambda a: ("root", 3, a)),
    (r"(.*\S) ?(?:root|根号) ?(.+)", lambda a, b: ("*", a, ("root", 2, b))),
    (r"square of (.+)|(.+) squared|(.+)的平方", lambda a: ("^", a, TWO)),
    (r"cube of (.+)|(.+) cubed", lambda a: ("^", a, ("number", Fraction(3)))),
    (r"half (?:of )?(.+)|(.+)的一半", lambda a: ("/", a, TWO)),
    (r"(?:twice|double) (.+)", lambda a: ("*", TWO, a)),
    (r"reciprocal of (.+)", lambda a: ("/", ("number", Fraction(1)), a)),
    (r"(?:opposite|negative) of (.+)", lambda a: ("neg", a)),
    (r"sum of (.+) and (.+)|(.+) plus (.+)", lambda a, b: ("+", a, b)),
    (r"difference (?:of|between) (.+) and (.+)|(.+) minus (.+)", lambda a, b: ("+", a, ("neg", b))),
    (r"product of (.+) and (.+)|(.+) (?:times|multiplied by) (.+)", lambda a, b: ("*", a, b)),
    (r"quotient of (.+) and (.+)|(.+) (?:divided by|over) (.+)", lambda a, b: ("/", a, b)),
    (r"log(?:arithm)? (?:to )?base (.+) of (.+)", lambda a, b: ("log", a, b)),
    (r"(.+) (?:raised )?to the power (?:of )?(.+)", lambda a, b: ("^", a, b)),
]]  # fmt: skip


def read_quantity(text: str) -> Scalar | None:
    """A number or expression, with a unit: 5 cm, $3.50, 35%, 3 million, 12 apples; None if it is none."""
    text = DIMENSION.sub("", text)
    value = number_in_words(text)
    value = number_in_chinese(text) if value is None else value
    if value is not None:
        return Scalar(("number", value))
    if money := MONEY.fullmatch(text):
        inner, unit = read_quantity(f"{money[1]}{money[3]}"), read_unit(money[2])
        if inner is None or inner.unit not in (None, unit):
            return None
        return Scalar(inner.tree, unit, inner.decimals)
    if below := BELOW_ZERO.fullmatch(text):
        inner = read_quantity(re.sub(r"(?<=\d)[°度]$", "", below[1] or below[2]))
        return Scalar(("neg", inner.tree), inner.unit, inner.decimals) if inner else None
    return compound(text) or with_unit(text) or without_unit(text)


def without_unit(text: str) -> Scalar | None:
    value = number(text)
    return None if value is None else Scalar(value, None, decimals_of(text))


def with_unit(text: str) -> Scalar | None:
    """A number and its unit, divided at the first place where both are read."""
    for place in re.finditer(r"(?<=[\d)}!π√\s\u4e00-\u9fffA-Z])(?=[A-Za-zμ°%‰′″¢$¥€Ω\u4e00-\u9fff])", text):
        head, tail = text[: place.start()].strip(), text[place.start() :].strip()
        glued = text[place.start() - 1].isalnum() and text[place.start() - 1].isascii()
        if glued and (
            text[place.start() - 1].isalpha() or len(tail) == 1 and tail.isalpha() and tail.isascii()
        ):
            continue  # 4m is a product, 4 m is a length
        if tail == "°" and re.search("sin|cos|tan|sec|csc|cot", head):
            continue
        if quantity := of_magnitude(head, tail):
            return quantity
        unit = read_unit(tail)
        if unit is None and head in ("1", "one"):
            unit = singular(tail)
        if unit is None:
            continue
        if not tail.isalnum():  # 180° - 65°
            head = re.sub(rf"(?<=\d) ?{re.escape(tail)}(?![A-Za-z])", "", head)
        value = number(head)
        if value is not None:
            return Scalar(value, unit, decimals_of(head))
    return None


def of_magnitude(head: str, tail: str) -> Scalar | None:
    """3 million, 2 dozen eggs, 3万元."""
    word = re.match(r"百万|千万|[百千万亿萬億]|[A-Za-z]+", tail)
    size = MAGNITUDES.get(word[0].lower()) if word else None
    value = number(head) if size else None
    if value is None or variables_of(value):
        return None
    rest = tail[word.end() :].strip().removeprefix("of ")
    unit = read_unit(rest) if rest else None
    return Scalar(("*", value, ("number", Fraction(size))), unit) if unit or not rest else None


def number(text: str) -> Tree | None:
    """The tree of a text without a unit, also of one in words or another base; None if it is none."""
    if re.search(r"[A-Za-z]{3}|[\u4e00-\u9fff]", text):
        value = number_in_words(text)
        value = number_in_chinese(text) if value is None else value
        if value is not None:
            return ("number", value)
        for words, tree in OPERATIONS:
            if match := words.fullmatch(text):
                parts = [number(part) for part in match.groups() if part]
                return None if None in parts else tree(*parts)
    if match := BASE.fullmatch(text):
        base = int(match[2] or match[3] or match[4])
        return in_base(match[1], base)
    try:
        return read_expression(text)
    except Unreadable:
        return None


def in_base(digits: str, base: int) -> Tree | None:
    try:
        return ("number", Fraction(int(digits, base)))
    except ValueError:  # no such base or digit
        return None


def decimals_of(text: str) -> int | None:
    match = re.fullmatch(r"-?[\d,]*\.(\d+)", text)
    return len(match[1]) if match else None


def compound(text: str) -> Scalar | None:
    """1 h 30 min, 60°30', two hours and 15 minutes, 3元5角: parts of one dimension, ever smaller."""
    at, total, units = 0, ("number", Fraction(0)), []
    while at < len(text):
        match = COMPOUND_PART.match(text, at)
        unit = read_unit(part_name(match[2], "°" in text)) if match else None
        amount = "one" if match and match[1] in ("a", "an") else match and match[1]
        value = number(amount) if unit and unit.dimensions and not unit.counted else None
        if value is None or variables_of(value):
            return None
        units.append(unit)
        total = ("+", total, ("*", value, ("number", unit.size)))
        at = match.end()
    sizes = [unit.size for unit in units]
    if (
        len(sizes) < 2
        or len({unit.dimensions for unit in units}) > 1
        or sizes != sorted(set(sizes), reverse=True)
    ):
        return None
    return Scalar(total, Unit(dimensions=units[0].dimensions))


def part_name(name: str, of_angle: bool) -> str:
    return {"'": "′", "''": "″", '"': "″"}.get(name, name) if of_angle else name


def without_units(text: str) -> str:
    """A calculation with its known units left out: 5 cm * 3 cm."""
    return re.sub(
        r"(?<=[\d)}]) ?(?:([A-Za-z]+)(?:\^\d)?|[°%])(?![A-Za-z])",
        lambda found: "" if not found[1] or lookup(found[1]) else found[0],
        text,
    )


# ---------------------------------------------------------------- times of the day and the year


def read_clock(text: str) -> Group | None:
    """3:30 pm, 3 o'clock, half past three, 下午3时30分."""
    if match := CLOCK.fullmatch(text):
        hour, minute = match[1] or match[5], match[2] or 0
        half = {"p": "pm", "a": "am"}.get((match[4] or "").lower())
        return clock(hour, minute, half, match[3] or 0)
    if match := SPOKEN_CLOCK.fullmatch(text):
        minutes, hour = {"half": 30, "quarter": 15}[match[1]], number_in_words(match[3])
        if hour is None:
            return None
        return clock(hour - (match[2] == "to"), minutes if match[2] == "past" else 60 - minutes, None)
    if match := CHINESE_CLOCK.fullmatch(text):
        half = "am" if match[1] in ("凌晨", "早上", "上午") else "pm"
        return clock(match[2], 30 if match[4] else match[3] or 0, half)
    return None


def clock(hour: object, minute: object, half: str | None, second: object = 0) -> Group | None:
    hour = number(str(hour))
    if hour is None or hour[0] != "number" or not 0 <= hour[1] <= 24:
        return None
    value = hour[1] % 12 + (12 if half == "pm" else 0) if half else hour[1]
    return Group("clock", tuple(Scalar(("number", Fraction(part))) for part in (value, minute, second)))


def read_date(text: str) -> Words | None:
    """March 5, the 5th of March, 5 March 2024, 3月5日."""
    match = DATE.fullmatch(text.removeprefix("the "))
    if not match:
        return None
    field = {name: value for name, value in match.groupdict().items() if value}
    month, day, year = (
        next((value for name, value in field.items() if name[0] == part), "") for part in "mdy"
    )
    if not month.isdigit():
        month = 1 + [name[:3] for name in MONTHS].index(month[:3].lower())
    return Words(f"date {int(month)}-{int(day)}-{year}")
