"""Read an answer as a value and compare two single values: numbers, units, percent, ratios, Chinese."""

import math
import re
from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import lru_cache

from mathse.answers.find import INTEGER, SPAN, VAGUE, clean

DIGITS = 60  # digits of a number that is compared here
# LaTeX, ASCII and Unicode spellings of one thing -> one spelling; the order matters.
SPELLINGS = [(re.compile(old), new) for old, new in [
    (r",\s*\\!\s*|\{,\}", ","), (r"(?<!\\)\\[,!]", ""), (r"\\(?:left|right|displaystyle)(?![A-Za-z])", ""),
    (r"\\f?boxed\s*", ""), (r"(?<!\\)\\[;: ]|~|\\q?quad(?![A-Za-z])", " "),
    (r"\\[dtc]frac", r"\\frac"), (r"\\([%$])", r"\1"), (r"\\varnothing|∅", r"\\emptyset"),
    *[(r"\\(?:text|math|mbox|operatorname|boldsymbol)(?:rm|bf|it|sf|bb)?\s*\{([^{}]*)\}", r" \1 ")] * 2,
    (r"(?<!\\)\\[()\[\]]|\$|\*\*|`", " "), (r"(?<=[\d}])\s*\{([A-Za-z ]{4,})\}$", r" \1"),
    (r"\^\s*\{?\s*\\circ(?![A-Za-z])\s*\}?|\*?\\degree|\bdegrees?\b|度", "°"),
    (r"\\leq?(?:slant)?(?![A-Za-z])|<=|≤|⩽", r" \\leq "),
    (r"\\geq?(?:slant)?(?![A-Za-z])|>=|≥|⩾", r" \\geq "),
    (r"\\neq?(?![A-Za-z])|!=|≠", r" \\neq "), (r"\\lt(?![A-Za-z])", "<"), (r"\\gt(?![A-Za-z])", ">"),
    (r"π|(?<![A-Za-z\\])pi\b", r"\\pi "), (r"∞", r"\\infty "), (r"∪", r"\\cup "), (r"±", r"\\pm "),
    (r"(?:√|(?<![\\\w])sqrt)\s*\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"√\s*(\d+|\w)", r"\\sqrt{\1}"), (r"√", r"\\sqrt"),
    (r"×", r"\\times "), (r"[·⋅]", r"\\cdot "), (r"÷", "/"), (r"²", "^2"), (r"³", "^3"),
    (r"½", r"\\frac{1}{2}"),
    (r"≈|\\approx", " ≈ "), (r"∈", r"\\in "),
    (r"\s*\b(?:percent(?:age)?|pct)\b", "%"), (r"\^\{(\w)\}", r"^\1"), (r"\s+", " "),
]]  # fmt: skip
NUMBER = re.compile(
    rf"(?P<sign>[-+]?) ?(?:(?P<whole>{INTEGER})(?: (?=\d+ ?/)| ?(?=\\frac)))?"
    rf"(?:\\frac ?(?:\{{ ?(?P<n1>-?\d+) ?\}} ?\{{ ?(?P<d1>\d+) ?\}}|(?P<n2>\d) ?(?P<d2>\d))|"
    rf"(?P<n3>{INTEGER}) ?/ ?(?P<d3>{INTEGER})|(?P<decimal>{INTEGER}?\.\d+)|(?P<integer>{INTEGER})\.?)"
    r"(?: ?\\times ?10 ?\^ ?\{?(?P<power>-?\d\d?)\}?)? ?(?P<percent>%?)"
)
CHINESE_DIGITS = {digit: value for value, digit in enumerate("零一二三四五六七八九")} | {"两": 2}
WORDS = "zero one two three four five six seven eight nine ten eleven twelve".split()
# unit -> its spellings; lengths also in metres
UNITS = {
    "mm": "millimeter millimetre 毫米", "cm": "centimeter centimetre 厘米", "dm": "decimeter decimetre 分米",
    "m": "meter metre 米", "km": "kilometer kilometre 千米 公里",
    "in": "inch inche", "ft": "foot feet 英尺", "yd": "yard",
    "mi": "mile", "g": "gram 克", "kg": "kilogram 千克 公斤",
    "ml": "milliliter millilitre 毫升", "l": "liter litre 升",
    "s": "sec second 秒", "min": "minute 分钟", "h": "hour hr 小时 时", "day": "天", "year": "yr 年 岁",
    "°": "deg",
    "dollar": "usd", "cent": "", "yuan": "元", "": "unit 单位 个",
}  # fmt: skip
UNIT_OF = {spelling: unit for unit, spellings in UNITS.items() for spelling in (unit, *spellings.split())}
METRES = {
    unit: Fraction(10) ** power for unit, power in (("mm", -3), ("cm", -2), ("dm", -1), ("m", 0), ("km", 3))
}
WITH_UNIT = re.compile(
    r"(?P<value>.*?) ?(?<![\\A-Za-z])(?P<power>square|sq\.?|cubic|cu\.?|平方|立方)? ?"
    r"(?P<unit>[A-Za-z]+(?: [a-z]+){0,2}|[\u4e00-\u9fff]+|°)"
    r"(?: ?(?:/|per|每) ?(?P<per>[A-Za-z]+|[\u4e00-\u9fff]+))? ?\^?\{?(?P<exponent>[23]?)\}?"
)
NOT_UNITS = {"or", "and", "to", "not", "from", "between", "than", "x", "y", "n"}
LABEL = re.compile(  # "x = ", "f(x) = ", "Area: ", "(p, q) = ", "x \in "
    r"(?P<label>(?!\\(?:frac|sqrt|pi))\\?[A-Za-z∠△][\w\\{}' ]{0,40}(?:\(\w\))?|\([a-zA-Z](?:, ?[a-zA-Z])*\))"
    r" ?(?:=|:|\\in(?![a-z])) ?(?P<value>[^=]+)"
)
VARIABLE = re.compile(r"(?<!\\)(?<![A-Za-z])[A-Za-z]")  # not the letters of \pi
Equal = Callable[[str, str, int | None], bool | None]  # given, reference, precision; None: no telling


@lru_cache(maxsize=4096)  # the reference answer and the options of a problem come with each of its responses
def simplify(text: str) -> str:
    """One spelling for LaTeX, ASCII and Unicode; no $, no bold, no punctuation around."""
    text = clean(text)[:SPAN]
    for old, new in SPELLINGS:
        text = old.sub(new, text)
    text = VAGUE.sub("", text.lstrip(" ,;:\"'*_"), count=1)
    return text.lstrip(" ,;:\"'*_").rstrip(" .,;:!?\"'*_").replace("\\{", "{").replace("\\}", "}")


def key(text: str) -> str:
    """For comparing as text: without case, blanks and articles."""
    text = re.sub(r"\{(\w)\}", r"\1", text.casefold())
    return re.sub(r"\b(?:the|an?) (?=[a-z])|(?<!\d)\s|\s(?!\d)", "", text)


def split(text: str, separator: str) -> list[str]:
    """The parts of a text between separators that stand outside of brackets."""
    parts, depth, start = [], 0, 0
    for match in re.finditer(rf"[(\[{{]|[)\]}}]|{separator}", text):
        if match[0] in "([{":
            depth += 1
        elif match[0] in ")]}":
            depth = max(0, depth - 1)
        elif depth == 0:
            parts.append(text[start : match.start()])
            start = match.end()
    return [part.strip(" ,;") for part in (*parts, text[start:]) if part.strip(" ,;")]


def number(text: str) -> Fraction | None:
    """The value of a plain number: 12, -0.5, 3/4, 1 3/4, 45%, 1,056, 1.2 × 10^3, 十二, twelve."""
    text = text.strip()
    if text.lower() in WORDS:
        return Fraction(WORDS.index(text.lower()))
    if text and set(text) <= {*CHINESE_DIGITS, "十", "百"}:
        return chinese_number(text)
    match = NUMBER.fullmatch(text)
    if not match or sum(map(str.isdigit, text)) > DIGITS:
        return None
    field = {name: re.sub(r"[, ]", "", value or "") for name, value in match.groupdict().items()}
    above, below = field["n1"] or field["n2"] or field["n3"], field["d1"] or field["d2"] or field["d3"]
    if below and int(below) == 0 or field["whole"] and not above:
        return None
    value = Fraction(int(above), int(below)) if below else Fraction(field["decimal"] or field["integer"])
    value = (value + int(field["whole"] or 0)) * (-1 if field["sign"] == "-" else 1)
    return value * Fraction(10) ** (int(field["power"] or 0) - (2 if field["percent"] else 0))


def chinese_number(text: str) -> Fraction:
    """二十五 -> 25; digits alone are read in order: 二五 -> 25."""
    total, digits = 0, 0
    for sign in text:
        if sign in CHINESE_DIGITS:
            digits = digits * 10 + CHINESE_DIGITS[sign]
        else:
            total, digits = total + (digits or 1) * {"十": 10, "百": 100}[sign], 0
    return Fraction(total + digits)


def split_unit(text: str) -> tuple[str, str | None]:
    """(value, unit): "5 sq. inches" -> ("5", "in^2"); the unit is None when there is none."""
    text = re.sub(r"^\$ ?| \([A-Za-z^23 ]+\)$", "", text).removesuffix(".")
    match = WITH_UNIT.fullmatch(text)
    if not match or not match["value"] or match["value"][-1] in "\\_^{(":
        return text, None
    word = match["unit"].lower()
    word = word if word in UNIT_OF else word.removesuffix("s")
    if word in UNIT_OF:  # but in 3x + 2m the letter is a variable
        known = len(word) > 1 or word == "°" or not VARIABLE.search(match["value"])
    else:  # whatever is counted: 12 apples
        known = number(match["value"]) is not None and not NOT_UNITS & set(word.split()) and len(word) > 1
    if not known:
        return text, None
    exponents = {"s": "2", "平": "2", "c": "3", "立": "3"}  # square, cubic
    power = match["exponent"] or exponents.get((match["power"] or " ")[0], "")
    unit = UNIT_OF.get(word, word)
    per = "/" + UNIT_OF.get(match["per"], match["per"]) if match["per"] else ""
    return match["value"], (unit + ("^" + power if power else "") + per) if unit else None


def same_value(given: str, reference: str, precision: int | None, equal: Equal) -> bool | None:
    """Whether two single values are the same; None: no telling. `equal` decides about mathematics."""

    def any_side(sign: str) -> bool | None:
        """9π ≈ 28.27, 3 + 4 = 7: one side suffices."""
        sides = [side.strip() for side in given.split(sign) if side.strip()]
        return any_true(same_value(side, reference, precision, equal) for side in sides)

    given, reference = (re.sub(r"^\(([^(),;]*)\)$", r"\1", side) for side in (given, reference))
    if key(given) == key(reference):
        return True
    if "≈" in given:
        return any_side("≈")
    labels = LABEL.fullmatch(given), LABEL.fullmatch(reference)
    if all(labels):
        names = [key(re.sub(r"_\{?\d\}?", "", label["label"])) for label in labels]  # x_1 is an x
        if names[0] != names[1] and not any(re.search(r"^[a-z]{3}|\(|^y$", name) for name in names):
            return equal(given, reference, precision)  # x = 2 against y = 2, or one line written in two ways
    if any(labels) and (labels[0] or "=" not in given) and (labels[1] or "=" not in reference):
        given, reference = (
            label["value"] if label else side for label, side in zip(labels, (given, reference))
        )
        return same_value(given.strip(), reference.strip(), precision, equal)
    if "=" in given and "=" not in reference:
        if VARIABLE.search(given):  # an equation, of which math-verify would take the right side
            return False
        return any_side("=")
    if re.fullmatch(r"\d+(?:_\{?| ?- ?)\d+\}?", reference):  # 12_5: math-verify drops the base; 0-5: a range
        return False
    for read in (ratio, bracketed):
        one, other = read(given), read(reference)
        if one and other:
            if one[0] != other[0] or len(one[1]) != len(other[1]):
                return False
            return all_true(same_value(*pair, precision, equal) for pair in zip(one[1], other[1]))
    (given_value, given_unit), (reference_value, reference_unit) = split_unit(given), split_unit(reference)
    numbers = number(given_value), number(reference_value)
    if given_unit and reference_unit and given_unit != reference_unit:
        lengths = metres(numbers[0], given_unit), metres(numbers[1], reference_unit)
        return None not in lengths and lengths[0] == lengths[1]
    if None not in numbers:
        return close(*numbers, (given_value, reference_value), precision)
    words = [not re.search(r"[\d\\=<>+^]|^\W*[A-Za-z]\W*$", side) for side in (given, reference)]
    if all(words):
        return False if max(len(given.split()), len(reference.split())) <= 3 else None
    if any(words) or is_prose(given_value) or is_prose(reference_value):
        return None
    return equal(given_value, reference_value, precision)


def is_prose(text: str) -> bool:
    """Words that math-verify would read as products of letters, or a term that breaks off."""
    if re.search(r"(?:\\sqrt|[-+*/^=(])$|[\u4e00-\u9fff]", text):
        return True
    return len(re.findall(r"(?<![\\A-Za-z])[A-Za-z]{3,}", re.sub(r"\\(?:begin|end)\{\w+\}", "", text))) > 1


def close(given: Fraction, reference: Fraction, written: tuple[str, str], precision: int | None) -> bool:
    """Equal; or within half a unit of the problem's last decimal; or the same to six written decimals."""
    if precision is not None:
        return abs(given - reference) <= Fraction(1, 2 * 10 ** min(int(precision), 12))
    decimals = [len(side.partition(".")[2]) for side in written if re.fullmatch(r"-?\d*\.\d{6,}", side)]
    return given == reference or bool(decimals) and abs(given - reference) < Fraction(1, 10 ** min(decimals))


def metres(value: Fraction | None, unit: str) -> tuple[Fraction, str] | None:
    """(value in metres, power), None for what is no number or no length: 0.5 m is 50 cm, 5 m is not 5 cm."""
    name, _, power = unit.partition("^")
    return (value * METRES[name] ** int(power or 1), power) if name in METRES and value is not None else None


def ratio(text: str) -> tuple[str, list[str]] | None:
    """The terms of 6:10 in lowest terms; of a time like 9:00 as they are."""
    if not re.fullmatch(r"\d{1,9}(?: ?: ?\d{1,9})+", text):
        return None
    terms = [int(term) for term in text.split(":")]
    return ":", [str(term // (math.gcd(*terms) if all(terms) else 1)) for term in terms]


def bracketed(text: str) -> tuple[str, list[str]] | None:
    """A tuple or an interval: its two brackets and its parts; None for anything else."""
    if len(text) <= 2 or text[0] not in "([" or text[-1] not in ")]":
        return None
    if len(split(text, r"(?<=[)\]])\s*[^\s)\]]")) > 1:  # as in (1, 2) + (3, 4)
        return None
    parts = split(text[1:-1], r"[,;]")
    return (text[0] + text[-1], parts) if len(parts) > 1 else None


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
