"""Read an answer as a value: whole, every character of it, or not at all.

grammar.lark says which answers are read, Reader what its rules stand for, read() what may stand around them.
A rule that does not hold raises Unread; what else the arithmetic of values refuses is not read either.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import cache, lru_cache

import lark
from lark.visitors import Transformer_NonRecursive

from mathse.answers.spell import FUNCTIONS, key
from mathse.answers.tables import FOLDER, pattern, sections, spellings
from mathse.answers.values import Many, Named, Quantity, Region, Said, Time, Unread, Words, chain, mp, require

LONGEST = 300  # characters of an answer that is read
ITEMS = 16  # of a list
NOUN = 3  # words of what is counted
PHRASE = 12  # words of a name
MEANING = pattern("meaning", "denial", "change", "operation", "bound")
JOINS, LABELS = pattern("joins"), pattern("labels")
PLURAL = pattern("plural", before=r"(?:[a-z]{2,}(?<![sui])s|", behind=")$")
COUNTERS = "".join(sections("words.txt")["counters"][0].split()[1:])


@cache
def units() -> dict[str, Quantity]:
    """{name: one of a unit}, of units.txt"""
    found = {}
    for name, size, measured, *others in map(str.split, sections("units.txt")["units"]):
        above, _, below = size.partition("/")
        size = (mp.pi if above == "pi" else mp.mpf(above)) / int(below or 1)
        dimension, _, exponent = measured.partition("^")
        unit = Quantity((mp.one,), ((dimension, int(exponent or 1)),), size)
        names = [name, *others, *(f"{long}s" for long in (name, *others) if len(long) > 2 and long.isascii())]
        found |= dict.fromkeys(names, Quantity((size,)) if dimension == "-" else unit)
    return found


@cache
def unit_pattern() -> str:
    """Of a unit's name. One letter is a unit only behind a blank or a sign: 3 m is a length, 3m a product."""
    names = sorted(units(), key=len, reverse=True)
    latin = "|".join(name for name in names if len(name) > 1 and name.isascii() and name != "in")
    letters = "".join(name for name in names if len(name) == 1 and name.isascii() and name.isalpha())
    han = "|".join(name for name in names if "\u4e00" <= name[0])
    return (
        rf"(?:(?<=[\d)π/*] )|(?<=[/*]))[{letters}](?![A-Za-z])"
        rf"|(?<![A-Za-z])(?i:{latin})(?![A-Za-z])|(?<![A-Za-z])in(?=$|\^|/)"
        rf"|[°%‰¢]|(?<=[\d ])['\"]|[平立]方({han})|({han})"
        rf"|[{COUNTERS}](?![以左右多余内外上下至倍]|不(?!同))[\u4e00-\u9fff]{{0,5}}"
    )


@cache
def parser() -> lark.Lark:
    grammar = (FOLDER / "grammar.lark").read_text(encoding="utf-8")
    grammar = grammar.replace("<functions>", "|".join(FUNCTIONS))
    grammar = grammar.replace("<units>", unit_pattern().replace("/", r"\/"))
    return lark.Lark(grammar, parser="lalr")


@lark.v_args(inline=True)
class Reader(Transformer_NonRecursive):
    """The value of a parsed answer: a method for each rule of the grammar."""

    from operator import add, mul, neg, pow, sub, truediv

    def number(self, text: str) -> Quantity:
        text = re.sub("[, ]", "", text)
        if repeating := re.fullmatch(r"(\d*)\.(\d*)\((\d+)\)", text):
            whole, digits, again = repeating.groups()
            behind = mp.mpf(again) / (mp.mpf(10) ** len(again) - 1)
            return Quantity.of((mp.mpf(whole + digits or 0) + behind) / mp.mpf(10) ** len(digits))
        return Quantity.of(text)

    def mixed(self, text: str) -> Quantity:
        whole, above, below = map(mp.mpf, re.split("[ /]", text))
        require(above < below)
        return Quantity.of(whole + above / below)

    def based(self, text: str) -> Quantity:
        digits, base = re.fullmatch(r"(\w+?)(?:_| ?\(base )\(?(\d+)\)?", text).groups()
        return Quantity.of(int(digits, int(base)))

    def name(self, text: str) -> Quantity:
        return Quantity.variable(re.sub("[()]", "", text))

    def segment(self, text: str) -> Quantity:
        one, other = re.findall("[A-Z]'?", text)
        product = Quantity.variable(one) * Quantity.variable(other)
        return replace(product, name="".join(sorted((one, other))))

    def figure(self, text: str) -> Quantity:
        points = text[1:]
        if text[0] == "∠":
            return Quantity.variable("∠" + min(points, points[::-1]))
        return Quantity.variable("△" + "".join(sorted(points)) if text[0] == "△" else text)

    def unit(self, text: str, exponent: Quantity | None = None) -> Quantity:
        power = {"平方": 2, "立方": 3}.get(text[:2], 1)
        name = str(text[2:] if power > 1 else text)
        found = units().get(name) or units().get(name.lower())
        if found is None:  # a Chinese classifier, alone or with a noun
            found = thing(name) if len(name) > 1 else Quantity.of(1)
        return found ** (exponent or Quantity.of(power))

    def measured(self, value: Quantity, unit: Quantity) -> Quantity:
        require(value.name != "a")  # a metre
        return value * unit

    def money(self, sign: str, value: Quantity) -> Quantity:
        return value * units()[sign]

    def counted(self, value: Quantity, words: Words) -> Quantity:
        noun = words.key
        require(noun.isascii() and value.is_number and not MEANING.search(noun) and not JOINS.search(noun))
        require(noun.count(" ") < NOUN and (PLURAL.search(noun) or 0 < value.values[0] <= 1))
        return value * thing(noun)

    def labelled(self, words: Words, value: object) -> Named:
        require(LABELS.fullmatch(words.key))
        return Named(f" {words.key.lower()}", value)

    def words(self, *words: str) -> Words:
        text = " ".join(words)
        require(not MEANING.search(text) and len(words) <= PHRASE)
        return Words(text)

    def times(self, one: Quantity, other: object) -> object:
        if isinstance(other, Many):  # A(1, 2)
            require(one.is_name)
            return Named(one.name, other)
        require(not one.name == other.name == "0" and other.name[:1] not in ("∠", "△", "0"))
        return one * other

    def compound(self, one: Quantity, other: Quantity) -> Quantity:
        require(one.dims == other.dims and one.size > other.size)
        return one + other

    def factorial(self, of: Quantity) -> Quantity:
        return Quantity(of.small().map(mp.factorial))

    def sqrt(self, of: Quantity) -> Quantity:
        return Quantity(of.bare().map(mp.sqrt))

    def root(self, degree: Quantity, of: Quantity, _: str) -> Quantity:
        require(degree.is_number and degree.values[0] in range(2, 100))
        return Quantity(of.bare().map(lambda value: mp.root(value, int(degree.values[0]))))

    def choose(self, one: Quantity, other: Quantity, _: str) -> Quantity:
        return Quantity(one.small().map(mp.binomial, other.small()))

    def function(self, name: str, exponent: Quantity | None, first: Quantity, *rest: Quantity) -> Quantity:
        """sin 2x and sin(2) x: a bracket is the argument alone."""
        if first.name != "()":
            for factor in rest:
                first = first * factor
            rest = ()
        if first.dims:
            require(first.dims == (("angle", 1),) and name in ("sin", "cos", "tan", "cot", "sec", "csc"))
        if exponent and exponent.values == (-1,):
            name, exponent = f"arc{name}", None
        function, size = function_named(str(name)), first.size
        value = Quantity(first.map(lambda argument: function(argument * size)), name=f"{name} {first.name}")
        value = value if first.is_name else replace(value, name="")
        value = value**exponent if exponent else value
        for factor in rest:
            value = value * factor
        return value

    def bracketed(self, left: str, value: object, right: str) -> object:
        form = (left + right).replace("⟨", "(").replace("⟩", ")")
        if form != "()" or isinstance(value, Many) and value.form in ("list", "blanks"):
            return Many(form, items_of(value))
        return replace(value, name="()") if isinstance(value, Quantity) and value.name != "e" else value

    def set(self, value: object = None) -> object:
        return Words("nosolution") if value is None else Many("set", items_of(value))

    def blanks(self, *items: object) -> Many:
        require(len(items) <= ITEMS)
        return Many("blanks", items)

    def remainder(self, whole: str, rest: str) -> Many:
        return Many("remainder", (Quantity.of(whole), Quantity.of(rest)))

    def one_of(self, *items: object) -> object:
        if all(isinstance(item, Region) for item in items):
            return Region.union(items)
        return many("either", [part for item in items for part in items_of(item)])

    def listed(self, *items: object) -> object:
        if all(isinstance(item, Region) for item in items):
            return Region.intersection(items)
        if all(isinstance(item, Said) for item in items):
            return items[-1]  # 5 * 7 = 35, 35 - 5 = 30
        return many("list", items)

    def united(self, *parts: object) -> Region:
        return Region.union([Region.of(part) for part in parts])

    def ratio(self, *items: object) -> object:
        if isinstance(items[0], Words):
            return Named(f" {items[0].key}", *items[1:])
        require(all(isinstance(item, Quantity) for item in items))
        return Many("ratio", items)

    def chain(self, *parts: object) -> object:
        signs = [str(sign) if sign in "≈<>≤≥≠∈∥⊥" else "=" for sign in parts[1::2]]
        return chain(parts[::2], signs)


def thing(noun: str) -> Quantity:
    """One of what a noun names."""
    return Quantity((mp.one,), ((f"#{noun.lower()}", 1),))


def items_of(value: object) -> tuple:
    return value.items if isinstance(value, Many) and value.form in ("list", "blanks") else (value,)


def many(form: str, items: list) -> Many:
    """Several values: all of them words or none. A name before the first is one of all: n = 1, 3."""
    words = [isinstance(item, Words) for item in items]
    require(len(items) <= ITEMS and (all(words) or not any(words)))
    named = [isinstance(item, Named) for item in items]
    if named[0] and not any(named[1:]):
        items = (items[0].value, *items[1:])
    return Many(form, tuple(items))


def function_named(name: str) -> Callable:
    if name.startswith("log_"):
        base = mp.e if name[4:] == "e" else mp.mpf(name[4:].strip("()"))
        return lambda value: mp.log(value) / mp.log(base)
    return {"lg": mp.log10, "log": mp.log10, "abs": abs}.get(name) or getattr(mp, name.replace("arc", "a"))


ARTICLE = re.compile(rf"(?i)\b(?:the |an? (?!(?:{'|'.join(FUNCTIONS)}|or|and|is)\b))(?=[a-z]{{2}})")
HEDGE, ABOUT = pattern("hedge", "about", before="(?:", behind=r"(?![a-z])[\s,:.]*)+"), pattern("about")
AGAIN = pattern("again", "about", before=r"[,;]? ?\(? ?(?:", behind=r"[,. ]*)+(?=[-\d√π(.⦃a-z])(?<!\bor )")
REMARK = pattern("remark", before=r"(.+?) ?(?:\(|- |— )(", behind=r" [a-z ,\d]+)\)?")
NUMBERED = re.compile(r"(?:^|[\s;,.])\(?(\d|[a-h])\)[:.]? ?(.+?)(?=[\s;,.]+\(?(?:\d|[a-h])\)|$)")
DOUBTFUL = re.compile(r"(?<![A-Za-z])[a-z]/\d+[a-zπ√(](?![a-z])")  # x/2y is x/(2y) or xy/2
TIME = re.compile(r"(\d{1,2}):([0-5]\d)(?: ([apAP])m)?")
MONTH = re.compile(r"(?i)\b(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)|\d月|^\d{4}-")
WEEKDAY = re.compile(r"(?i)\b(?:mon|tues|wednes|thurs|fri|satur|sun)day,? |,|\b(?:the|of) ")
DATES = "%B %d %Y", "%d %B %Y", "%B %d", "%d %B", "%b %d", "%d %b", "%Y-%m-%d", "%Y年%m月%d日", "%m月%d日"
SAME_WORDS = spellings(sections("words.txt")["same words"])


@lru_cache(maxsize=8192)
def read(text: str) -> object | None:
    """The value of a whole text in the spelling of spell(), None for what is not read."""
    hedge = HEDGE.match(text)
    text = (text[hedge.end() :] if hedge else text).strip(" ,;")
    if not text or len(text) > LONGEST:
        return None
    if word := SAME_WORDS.get(key(ARTICLE.sub("", text)).casefold()):
        return Words(word)
    numbered = sorted(NUMBERED.findall(text)) if NUMBERED.match(text) else []
    if len(numbered) > 1 and "".join(name for name, _ in numbered) in "123456789abcdefgh":
        items = tuple(read(part.strip(" ,;.")) for _, part in numbered)
        return None if None in items else Many("blanks", items)
    if match := TIME.fullmatch(text):  # which may be a ratio too
        return Time(int(match[1]), int(match[2]), (match[3] or "").lower())
    if day := date(text):
        return day
    if re.search(r"(?<=[\w%°)]) \([^()]+\)$", text) or AGAIN.search(text):
        value = restated(text)
        if value is not None or re.search(r"\d[^()]* \([-\d.,/ ]+\)$", text):
            return value
    value = parsed(text)
    return restated(text) if value is None else value


def date(text: str) -> Words | None:
    """March 5, the 5th of March, Friday, 5 March 2024, 3月5日: each a name of the day."""
    for form in DATES if MONTH.search(text) else ():
        with suppress(ValueError):
            day = datetime.strptime(WEEKDAY.sub("", text), form)
            return Words(day.strftime("date %m-%d %Y" if "%Y" in form else "date %m-%d"))
    return None


def parsed(text: str) -> object | None:
    """The value of a text by the grammar: ±3 is 3 or -3, 6 km / 2 h 6 km/(2 h), 1 h 30 min 1 h ⊕ 30 min."""
    if "±" in text:
        text = " or ".join(text.replace("±", sign) for sign in "+-")
    if DOUBTFUL.search(text):
        return None
    text = re.sub(rf"(?<=[a-z]) ?/ ?(\d[\d.]* (?:{unit_pattern()})(?:\^\d)?)", r"/(\1)", text)
    value, plain = None, ARTICLE.sub("", text)
    compound = rf"(?<=\d) ?({unit_pattern()}) ?(?:and )?(?=\d+(?:\.\d+)? ?(?:{unit_pattern()}))"
    for spelled in dict.fromkeys((re.sub(compound, r" \1 ⊕ ", plain), plain)):
        with suppress(lark.exceptions.LarkError):  # a VisitError holds what a method of Reader raised
            value = value or Reader().transform(parser().parse(spelled))
    if isinstance(value, Quantity) and value.dims == (("angle", 1),) and value.size < units()["°"].size:
        return None  # 5' may be feet
    return value


def restated(text: str) -> object | None:
    """One answer said again: 1/2 (50%); 12π, about 37.7; 5, not 6; not 5 but 6; 5 (as in the figure)."""
    if match := re.fullmatch(r"(?:not|不是) ?(.+?),? (?:but|而是) ?(.+)", text):
        return read(match[2]) if read(match[1]) else None
    if match := re.fullmatch(r"(.+?)(,?) (?:and |but )?(?:not|rather than|instead of) (.+)", text):
        other = read(match[3])
        return read(match[1]) if other and (match[2] or not isinstance(other, Words)) else None
    if match := REMARK.fullmatch(text):
        return None if MEANING.search(match[2].replace("above", "")) else read(match[1])
    match = AGAIN.search(text) or re.search(r"(?<=[^\s(√^]) ?\((?:or )?(?=[^()]+\)$)", text)
    if not match or not match.start():
        return None
    sides = [read(text[: match.start()]), read(text[match.end() :].removesuffix(")"))]
    if sides[0] == sides[1]:
        return sides[0]
    sides[0] = sides[0].value if isinstance(sides[0], Named) else sides[0]
    flat = [one for side in sides for one in (side.values if isinstance(side, Said) else (side,))]
    with suppress(Unread):
        return Said.of(flat, ["≈" if ABOUT.search(match[0]) else "="] * (len(flat) - 1))
    return None
