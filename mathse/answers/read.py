"""Read an answer as a value: whole, every character of it, or not at all.

grammar.lark says which answers are read, Reader what its rules stand for, and read() what may stand around them.
A rule that does not hold raises Unread; what else the arithmetic of values refuses is not read either.
"""

import re
from functools import cache, lru_cache
from pathlib import Path

import lark

from mathse.answers import values as v
from mathse.answers.spell import (
    FUNCTIONS,
    any_of,
    key,
    spellings,
)
from mathse.answers.values import (
    Many,
    Moment,
    Named,
    Quantity,
    Region,
    Said,
    Unread,
    Words,
    counted,
    mp,
    number,
    require,
    variable,
)
from mathse.answers.words import BOUND, CHANGE, DENIAL, OPERATION

LONGEST = 300  # characters of an answer that is read
NESTING = 40  # brackets in brackets
ITEMS = 16  # of a list
NOUN = 3  # words of what is counted
PHRASE = 12  # words of a name

# A unit a line: its short name, its size in the base unit, what it measures, its other names. A plural in -s
# is known by itself; a unit that measures nothing is a number.
UNITS = """
rad 1 angle radian
° pi/180 angle
' pi/10800 angle
" pi/648000 angle
m 1 length meter metre 米
mm 0.001 length millimeter millimetre 毫米
cm 0.01 length centimeter centimetre 厘米
dm 0.1 length decimeter 分米
km 1000 length kilometer kilometre 千米 公里
in 0.0254 length inch inches 英寸
ft 0.3048 length foot feet 英尺
yd 0.9144 length yard
mi 1609.344 length mile 英里
hectare 10000 length^2 公顷
acre 4046.8564224 length^2
L 0.001 length^3 l liter litre 升
mL 0.000001 length^3 ml milliliter millilitre 毫升
s 1 time sec second 秒
min 60 time minute mins 分钟 分
h 3600 time hr hour 小时 时
day 86400 time 天 日
week 604800 time 周
month 1 calendar 个月
year 12 calendar yr 年 岁
g 1 mass gram 克
kg 1000 mass kilogram 千克 公斤
mg 0.001 mass milligram
ton 1000000 mass tonne 吨
lb 453.59237 mass pound
oz 28.349523125 mass ounce
N 1 force newton
J 1 energy joule
W 1 power watt
celsius 1 celsius 摄氏度
fahrenheit 1 fahrenheit
kelvin 1 kelvin
dollar 1 dollar ¤ 美元
cent 0.01 dollar ¢
yuan 1 yuan ¥ 元
角 0.1 yuan
euro 1 euro €
£ 1 sterling
₹ 1 rupee rupee
% 0.01 percent
‰ 0.001 percent
unit 1 unit 单位
dozen 12 -
hundred 100 - 百
thousand 1000 - 千
million 1000000 - 百万
billion 1000000000 -
万 10000 -
千万 10000000 -
亿 100000000 -
"""
CLASSIFIERS = (
    """个只条支枝本种次张棵块件名位人辆朵颗粒束盒袋瓶杯箱组对双套层排行列页道题座架头匹圈段根步场局项"""
)
LABELS = """area column fig figure height length mean median mode perimeter picture point radius range row term
volume width""".split()  # with a number behind them: figure 3, area 15
# words that say something of a number, or deny it: they name nothing that is counted
MEANING = re.compile(
    "|".join(
        [DENIAL, CHANGE, OPERATION, BOUND, any_of("additional and at but by does if only so then about n't")]
    ),
    re.IGNORECASE,
)
JOINS = re.compile(
    any_of("an? be each for from in into of out per that the to was were which with"), re.IGNORECASE
)
PLURAL = re.compile(r"(?i)[a-z]{2,}(?<![sui])s$|(?:people|children|men|women|feet|fish|sheep|mice|dice)$")
LONG_WORD = r"(?=[A-Za-z]{3})[A-Za-z]*[a-z]{2}[A-Za-z]*"
NO_NAME = r"\b(am|an|as|at|be|by|do|go|he|if|in|is|it|me|my|no|of|on|or|so|to|up|us|we)\b"  # is is not i * s
SHORT_WORD = r"(?:of|to|in|on|at|by|no|[IVX]{2,}|NE|NW|SE|SW)"


@cache
def units() -> dict[str, Quantity]:
    """{name: one of a unit}"""
    found = {}
    for line in UNITS.strip().split("\n"):
        name, size, measured, *others = line.split()
        above, _, below = size.partition("/")
        size = (mp.pi if above == "pi" else mp.mpf(above)) / int(below or 1)
        dimension, _, exponent = measured.partition("^")
        unit = Quantity((mp.one,), ((dimension, int(exponent or 1)),), size)
        unit = Quantity((size,)) if dimension == "-" else unit
        names = [name, *others]
        names += [f"{name}s" for name in names if len(name) > 2 and name.isascii()]
        found |= dict.fromkeys(names, unit)
    return found


@cache
def unit_pattern() -> str:
    """Of a unit's name. One letter is a unit only behind a blank or a sign: 3 m is a length, 3m a product."""
    names = sorted(units(), key=len, reverse=True)
    latin = "|".join(name for name in names if len(name) > 1 and name.isascii() and name != "in")
    letters = "".join(name for name in names if len(name) == 1 and name.isascii() and name.isalpha())
    han = "|".join(re.escape(name) for name in names if "\u4e00" <= name[0])
    return (
        rf"(?<=[\d)π/] )[{letters}](?![A-Za-z])|(?<=[/*])[{letters}](?![A-Za-z])"
        rf"|(?<![A-Za-z])(?i:{latin})(?![A-Za-z])|(?<![A-Za-z])in(?=$|\^|/)"
        rf"|[°%‰¢]|(?<=[\d ])['\"]|[平立]方({han})|({han})"
        rf"|[{CLASSIFIERS}](?![以左右多余内外上下至不倍])[\u4e00-\u9fff]{{0,4}}"
    )


@cache
def parser() -> lark.Lark:
    grammar = Path(__file__).with_name("grammar.lark").read_text(encoding="utf-8")
    names = {
        "functions": FUNCTIONS.replace(" ", "|"),
        "long": LONG_WORD,
        "short": SHORT_WORD,
        "no name": NO_NAME,
    }
    names["units"] = unit_pattern().replace("/", r"\/")
    for name, pattern in names.items():
        grammar = grammar.replace(f"<{name}>", pattern)
    return lark.Lark(grammar, parser="lalr", maybe_placeholders=False)


@lark.v_args(inline=True)
class Reader(lark.Transformer):
    """The value of a parsed answer: a method for each rule of the grammar."""

    from operator import add, mul, neg, pow, sub, truediv

    # ------------------------------------------------------------ numbers, names, units

    def number(self, text: str) -> Quantity:
        text = re.sub("[, ]", "", text)
        if repeating := re.fullmatch(r"(\d*)\.(\d*)\((\d+)\)", text):
            whole, digits, again = repeating.groups()
            scale = mp.mpf(10) ** len(digits)
            nines = mp.mpf(10) ** len(again) - 1
            return number((mp.mpf(whole + digits or 0) + mp.mpf(again) / nines) / scale)
        return number(text)

    def mixed(self, text: str) -> Quantity:
        whole, above, below = map(mp.mpf, re.split("[ /]", text))
        require(above < below)
        return number(whole + above / below)

    def based(self, text: str) -> Quantity:
        digits, base = re.fullmatch(r"(\w+?)(?:_| ?\(base )\(?(\d+)\)?", text).groups()
        return number(int(digits, int(base)))

    def name(self, text: str) -> Quantity:
        text = re.sub("[()]", "", text)
        if not re.fullmatch("([A-Z]'?){2}", text):
            return variable(text)
        one, other = re.findall("[A-Z]'?", text)  # a segment, or a product
        return Quantity((variable(one) * variable(other)).values, name="".join(sorted((one, other))))

    def applied(self, text: str) -> Quantity:
        return variable(str(text))

    def figure(self, text: str) -> Quantity:
        points = text[1:]
        if text[0] == "∠":
            return variable("∠" + min(points, points[::-1]))
        return variable("△" + "".join(sorted(points)) if text[0] == "△" else text)

    def unit(self, text: str, exponent: Quantity | None = None) -> Quantity:
        power = {"平方": 2, "立方": 3}.get(text[:2], 1)
        name = str(text[2:] if power > 1 else text)
        found = units().get(name) or units().get(name.lower())
        if found is None:  # a Chinese classifier, alone or with a noun
            found = counted(name) if len(name) > 1 else number(1)
        return found ** (exponent or number(power))

    def measured(self, value: Quantity, unit: Quantity) -> Quantity:
        require(value.name != "a")  # a metre
        return value * unit

    def money(self, sign: str, value: Quantity) -> Quantity:
        return value * units()[sign]

    def counted(self, value: Quantity, words: Words) -> Quantity:
        noun = words.key
        require(noun.isascii() and value.is_number and not MEANING.search(noun) and not JOINS.search(noun))
        require(len(noun.split()) <= NOUN and (PLURAL.search(noun) or value.values[0] == 1))
        return value * counted(noun)

    def labelled(self, words: Words, value: object) -> Named:
        require(words.key.lower() in LABELS)
        return Named(f" {words.key.lower()}", value)

    def words(self, *words: str) -> Words:
        text = " ".join(words)
        require(not MEANING.search(text) and len(words) <= PHRASE)
        return Words(text)

    # ------------------------------------------------------------ operations

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
        require(all(abs(value) <= v.LARGEST for value in of.bare().values))
        return Quantity(of.map(mp.factorial))

    def sqrt(self, of: Quantity) -> Quantity:
        return Quantity(of.bare().map(mp.sqrt))

    def root(self, degree: Quantity, of: Quantity, _: str) -> Quantity:
        require(degree.is_number and degree.values[0] in range(2, 100))
        return Quantity(of.bare().map(lambda value: mp.root(value, int(degree.values[0]))))

    def choose(self, one: Quantity, other: Quantity, _: str) -> Quantity:
        require(all(abs(value) <= v.LARGEST for each in (one, other) for value in each.values))
        return Quantity(one.bare().map(mp.binomial, other.bare()))

    def function(self, name: str, *factors: Quantity) -> Quantity:
        return self.power_of_function(name, number(1), *factors)

    def power_of_function(self, name: str, exponent: Quantity, first: Quantity, *rest: Quantity) -> Quantity:
        """sin 2x and sin(2) x: a bracket is the argument alone."""
        if first.name != "()":
            for factor in rest:
                first = first * factor
            rest = ()
        if first.dims:
            require(first.dims == (("angle", 1),) and name in ("sin", "cos", "tan", "cot", "sec", "csc"))
        if exponent.values == (-1,):
            name, exponent = f"arc{name}", number(1)
        arguments = Quantity(first.map(lambda value: value * first.size))
        value = Quantity(arguments.map(function_named(str(name)))) ** exponent
        for factor in rest:
            value = value * factor
        return value

    # ------------------------------------------------------------ several values

    def bracketed(self, left: str, value: object, right: str) -> object:
        form = (left + right).replace("⟨", "(").replace("⟩", ")")
        if isinstance(value, Many) and value.form in ("list", "blanks"):
            return Many(form, value.items)
        if form != "()":
            return Many(form, (value,))
        plain = isinstance(value, Quantity) and value.name != "e"
        return Quantity(value.values, value.dims, value.size, "()") if plain else value

    def set(self, value: object = None) -> object:
        if value is None:
            return Words("nosolution")
        several = isinstance(value, Many) and value.form in ("list", "blanks")
        return Many("set", value.items if several else (value,))

    def blanks(self, *items: object) -> Many:
        require(len(items) <= ITEMS)
        return Many("blanks", items)

    def one_of(self, *items: object) -> object:
        parts = [one.items if isinstance(one, Many) and one.form == "list" else (one,) for one in items]
        if all(isinstance(item, Region) for item in items):
            return v.united(items)
        return many("either", [item for part in parts for item in part])

    def listed(self, *items: object) -> object:
        if all(isinstance(item, Region) for item in items):
            return v.intersected(items)
        if all(isinstance(item, Said) for item in items):
            return items[-1]  # 5 * 7 = 35, 35 - 5 = 30
        return many("list", items)

    def united(self, *parts: object) -> Region:
        return v.united([v.region(part) for part in parts])

    def ratio(self, *items: object) -> object:
        if isinstance(items[0], Words):
            return Named(f" {items[0].key}", *items[1:])
        require(all(isinstance(item, Quantity) for item in items))
        return Many("ratio", items)

    def chain(self, *parts: object) -> object:
        sides, signs = parts[::2], [str(sign) if sign in "≈<>≤≥≠∈" else "=" for sign in parts[1::2]]
        if signs == ["∈"]:
            require(sides[0].is_name)
            return Region(v.region(sides[1]).intervals, sides[0].name)
        return v.equation(sides, signs) if {*signs} <= {"=", "≈"} else v.inequality(sides, signs)


def many(form: str, items: list) -> Many:
    """Several values: all of them words or none. A name before the first is one of all: n = 1, 3."""
    words = [isinstance(item, Words) for item in items]
    require(len(items) <= ITEMS and (all(words) or not any(words)))
    named = [isinstance(item, Named) for item in items]
    if named[0] and not any(named[1:]):
        items = (items[0].value, *items[1:])
    return Many(form, tuple(items))


def function_named(name: str):
    if name.startswith("log_"):
        base = mp.e if name[4:] == "e" else mp.mpf(name[4:].strip("()"))
        return lambda value: mp.log(value) / mp.log(base)
    others = {"lg": mp.log10, "log": mp.log10, "abs": abs}
    others |= {"arcsin": mp.asin, "arccos": mp.acos, "arctan": mp.atan}
    return others.get(name) or getattr(mp, name)


# ---------------------------------------------------------------- times of the day and days of the year

MONTHS = "January February March April May June July August September October November December".split()
MONTH = "|".join(f"{name}|{name[:3]}" for name in MONTHS)
WEEKDAY = r"(?:(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day,? )?"
CLOCK = re.compile(
    r"(?P<hour>\d{1,2})(?::(?P<minute>\d\d))?(?::(?P<second>\d\d))? ?(?P<half>[ap])\.?m\.?"
    r"|(?P<full>\d{1,2}) ?o'clock|(?P<special>noon|midnight)"
    r"|(?P<past>(?:a )?(?:half|quarter)|\d+(?: minutes?)?) (?P<way>past|to) (?P<of>\d{1,2})(?: o'clock)?",
    re.IGNORECASE,
)
CHINESE_CLOCK = re.compile(
    r"(?P<part>凌晨|早上|上午|中午|下午|傍晚|晚上)(?P<hour>\d{1,2})[时点:](?P<minute>半|\d{1,2}(?=分?$))?分?"
)
DATE = re.compile(
    rf"{WEEKDAY}(?:the )?(?P<d1>\d{{1,2}})(?: of)? (?P<m1>{MONTH}),?(?: (?P<y1>\d{{4}}))?"
    rf"|{WEEKDAY}(?P<m2>{MONTH}) (?P<d2>\d{{1,2}}),?(?: (?P<y2>\d{{4}}))?"
    r"|(?P<y3>\d{4})-(?P<m3>\d\d)-(?P<d3>\d\d)|(?:(?P<y4>\d{4})年)?(?P<m4>\d{1,2})月(?P<d4>\d{1,2})[日号]",
    re.IGNORECASE,
)


def moment(text: str) -> Moment | None:
    """3:30 pm, half past three, 下午3时30分; March 5, 5 March 2024, 3月5日."""
    if match := CHINESE_CLOCK.fullmatch(text):
        half = "a" if match["part"] in ("凌晨", "早上", "上午") else "p"
        minute = 30 if match["minute"] == "半" else int(match["minute"] or 0)
        return Moment("clock", (int(match["hour"]), minute, 0), half)
    if match := CLOCK.fullmatch(text):
        if match["special"]:
            return Moment("clock", (12, 0, 0), "p" if match["special"].lower() == "noon" else "a")
        if match["past"]:
            word = (
                match["past"].split()[-1].lower()
                if not match["past"][0].isdigit()
                else match["past"].split()[0]
            )
            minutes = {"half": 30, "quarter": 15}.get(word) or int(word)
            hour, minute = int(match["of"]), minutes
            if match["way"].lower() == "to":
                hour, minute = hour - 1 or 12, 60 - minutes
            return Moment("clock", (hour, minute, 0))
        time = [int(match[name] or 0) for name in ("hour", "minute", "second")]
        time[0] = int(match["full"] or time[0])
        return Moment("clock", tuple(time), (match["half"] or "").lower())
    if match := DATE.fullmatch(text):
        field = {name[0]: value for name, value in match.groupdict().items() if value}
        month = field["m"]
        month = int(month) if month.isdigit() else 1 + [name[:3] for name in MONTHS].index(month[:3].title())
        return Moment("date", (month, int(field["d"]), int(field.get("y", 0))))
    return None


# ---------------------------------------------------------------- a whole text

ARTICLE = re.compile(rf"(?i)\b(?:the |an? (?!(?:{FUNCTIONS.replace(' ', '|')}|or|and|is)\b))(?=[a-z]{{2}})")
ABOUT = any_of("about approximately approx\\.? around roughly 约") + "|≈"
HEDGE = re.compile(
    r"(?i)(?:(?:so|thus|hence|therefore|then|simply|just|exactly|precisely|equal to|equals|it is|it's|they are"
    r"|given by|both|either|≈|约|approximately|approx\.?|about|roughly|around|因此|所以|即|故|则|大约|共|∴|=|:)(?![a-z])[\s,:]*)+"
)
AGAIN = re.compile(
    rf"[,;]? ?\(? ?(?:(?:or|which is|that is|i\.e\.|namely|equivalently|即|也就是|{ABOUT})[, ]*)+"
    r"(?=[-\d√π(.⦃a-z])(?<!\bor )(?<!\bor)"
)
REMARK = re.compile(
    r"(.+?) ?(?:\(|- |— )((?:the|a|an|which|as|because|since|it|this|that|so|where|see|from|using|rounded) [a-z ,\d]+)\)?"
)
NUMBERED = re.compile(r"(?:^|[\s;,.])\(?(\d|[a-h])\)[:.]? ?(.+?)(?=[\s;,.]+\(?(?:\d|[a-h])\)|$)")
SAME_WORDS = spellings("""
yes true 是 对 正确
no false 否 不是 错 错误 不正确
undefined dne doesnotexist notdefined 不存在
nosolution nosolutions norealsolution norealsolutions emptyset ∅ 无解
infinitelymany infinitelymanysolutions infinite 无数
allrealnumbers allreals ℝ
right rightangled righttriangle 直角三角形
isosceles isoscelestriangle 等腰三角形
equilateral equilateraltriangle 等边三角形
northeast ne 东北
northwest nw 西北
southeast se 东南
southwest sw 西南
counterclockwise anticlockwise 逆时针
""")
SAME_WORDS |= {word: word for word in SAME_WORDS.values()}


@lru_cache(maxsize=8192)
def read(text: str) -> object | None:
    """The value of a whole text in the spelling of spell(), None for what is not read."""
    hedge = HEDGE.match(text)
    text = (text[hedge.end() :] if hedge else text).strip(" ,;")
    if not text or len(text) > LONGEST or nesting(text) > NESTING:
        return None
    if word := SAME_WORDS.get(key(ARTICLE.sub("", text)).casefold()):
        return Words(word)
    numbered = sorted(NUMBERED.findall(text)) if NUMBERED.match(text) else []
    if len(numbered) > 1 and "".join(name for name, _ in numbered) in "123456789abcdefgh":
        items = tuple(read(part.strip(" ,;.")) for _, part in numbered)
        return None if None in items else Many("blanks", items)
    if match := re.fullmatch(r"(\d+) ?⋮ ?(\d+)", text):
        return Many("remainder", tuple(map(number, match.groups())))
    if found := moment(text):
        return found
    if re.search(r"(?<=[\w%°]) \([^()]+\)$", text) or AGAIN.search(text):
        value = restated(text)
        if value is not None or re.search(r"\d[^()]* \([-\d.,/ ]+\)$", text):
            return value
    value = parsed(text)
    return restated(text) if value is None else value


def nesting(text: str) -> int:
    """How deep the brackets of a text stand in one another."""
    depth = deepest = 0
    for bracket in re.findall("[][(){}⦃⦄⟨⟩]", text):
        depth += 1 if bracket in "[({⦃⟨" else -1
        deepest = max(deepest, depth)
    return deepest


@cache
def compound_pattern() -> re.Pattern:
    return re.compile(rf"(?<=\d) ?({unit_pattern()}) ?(?:and )?(?=\d+(?:\.\d+)? ?(?:{unit_pattern()}))")


def parsed(text: str) -> object | None:
    """The value of a text by the grammar: of 1 h 30 min as 1 h ⊕ 30 min, of ±3 as 3 or -3."""
    if "±" in text:
        signed = [parsed(text.replace("±", sign)) for sign in "+-"]
        return (
            None
            if None in signed
            else Many("either", tuple(item for one in signed for item in items_of(one)))
        )
    value, plain = None, ARTICLE.sub("", text)
    for spelled in dict.fromkeys((compound_pattern().sub(r" \1 ⊕ ", plain), plain)):
        try:
            value = value or Reader().transform(parser().parse(spelled))
        except lark.exceptions.LarkError:  # a VisitError holds what a method of Reader raised
            continue
    if isinstance(value, Words):
        return Words(key(value.key))
    if isinstance(value, Quantity) and value.dims == (("angle", 1),) and value.size < units()["°"].size:
        return None  # 5' may be feet
    is_time = isinstance(value, Many) and value.form == "ratio" and re.fullmatch(r"\d{1,2}:[0-5]\d", text)
    return Many("time", value.items) if is_time else value


def items_of(value: object) -> tuple:
    return value.items if isinstance(value, Many) and value.form in ("list", "either") else (value,)


def restated(text: str) -> object | None:
    """One answer said again: 1/2 (50%); 12π, about 37.7; 5, not 6; not 5 but 6; 5 (as in the figure)."""
    if match := re.fullmatch(r"(?:not|不是) ?(.+?),? (?:but|而是) ?(.+)", text):
        return read(match[2]) if read(match[1]) else None
    if match := re.fullmatch(r"(.+?)(,?) (?:and |but )?(?:not|rather than|instead of) (.+)", text):
        other = read(match[3])
        return read(match[1]) if other and (match[2] or not isinstance(other, Words)) else None
    if match := REMARK.fullmatch(text):
        return None if MEANING.search(match[2].replace("above", "")) else read(match[1])
    match = AGAIN.search(text) or re.search(r"(?<=[^\s(√^]) ?\((?=[^()]+\)$)", text)
    if not match or not match.start():
        return None
    sides = [read(text[: match.start()]), read(text[match.end() :].removesuffix(")"))]
    flat = [one for side in sides for one in (side.values if isinstance(side, Said) else (side,))]
    try:
        return v.said(flat, ["≈" if re.search(ABOUT, match[0]) else "="] * (len(flat) - 1))
    except Unread:
        return None
