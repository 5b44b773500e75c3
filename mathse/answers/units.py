"""Units: read whole, with powers and per; 5 km/h is a length by a time, 20 cm^3 is a length to the third."""

import re
from dataclasses import dataclass
from fractions import Fraction as F
from functools import lru_cache

from mathse.answers.numerals import MAGNITUDES, PART_OF, WORD_VALUES

# dimension -> {spellings of a unit: its size in the dimension's first unit}
UNITS = {
    "length": {
        "m meter metre meters metres 米": F(1), "mm millimeter millimetre 毫米": F(1, 1000),
        "cm cms centimeter centimetre 厘米": F(1, 100), "dm decimeter decimetre 分米": F(1, 10),
        "km kilometer kilometre kms 千米 公里": F(1000), "in inch inche 英寸": F(254, 10_000),
        "ft foot feet 英尺": F(3048, 10_000), "yd yard 码": F(9144, 10_000),
        "mi mile 英里": F(1_609_344, 1000),
        "μm um micrometer micrometre 微米": F(1, 10**6), "nm nanometer nanometre 纳米": F(1, 10**9),
    },
    "time": {
        "s sec second secs 秒 秒钟": F(1), "min minute mins 分钟 分": F(60), "h hr hour hrs 小时 时": F(3600),
        "day 天 日": F(86_400), "week 周 星期": F(604_800), "ms millisecond 毫秒": F(1, 1000),
    },
    "years": {"year yr yrs 年 岁": F(12), "month 个月 月": F(1)},
    "mass": {
        "g gram gramme 克": F(1), "kg kilogram kilo kgs 千克 公斤": F(1000), "mg milligram 毫克": F(1, 1000),
        "ton tonne 吨": F(10**6), "lb pound lbs": F(45_359_237, 10**5), "oz ounce": F(45_359_237, 16 * 10**5),
        "斤": F(500),
    },
    "angle": {"° deg degree 度": F(1), "′ arcmin arcminute": F(1, 60), "″ arcsec arcsecond": F(1, 3600)},
    "turn": {"rad radian 弧度": F(1)},
    "dollar": {"dollar usd buck us$ $ 美元": F(1), "cent ¢ 美分": F(1, 100)},
    "yuan": {"yuan rmb cny ¥ 元 块钱": F(1), "角": F(1, 10)},
    "euro": {"euro eur € 欧元": F(1)}, "pound sterling": {"gbp £ 英镑": F(1)}, "yen": {"yen jpy 日元": F(1)},
    "rupee": {"rupee inr ₹ 卢比": F(1)},
    "kelvin": {"kelvin": F(1)}, "celsius": {"°c celsius 摄氏度": F(1)},
    "fahrenheit": {"°f fahrenheit 华氏度": F(1)},
    "current": {"amp ampere 安": F(1)}, "voltage": {"volt 伏": F(1)}, "resistance": {"Ω ohm 欧": F(1)},
    "frequency": {"hertz hz 赫兹": F(1)}, "pressure": {"pascal 帕": F(1)},
    "some length": {"unit 单位 单位长度": F(1)},  # of what the picture does not tell
}  # fmt: skip
# units of several dimensions: (size, dimensions)
COMPOUND = {
    "l liter litre 升": (F(1, 1000), {"length": 3}),
    "ml milliliter millilitre 毫升": (F(1, 10**6), {"length": 3}),
    "cl centiliter centilitre": (F(1, 10**5), {"length": 3}),
    "hectare ha 公顷": (F(10_000), {"length": 2}), "acre": (F(40_468_564_224, 10**7), {"length": 2}),
    "亩": (F(2000, 3), {"length": 2}), "cc": (F(1, 10**6), {"length": 3}),
    "mph": (F(1_609_344, 3_600_000), {"length": 1, "time": -1}),
    "kph kmh kmph": (F(1000, 3600), {"length": 1, "time": -1}),
    "newton 牛 牛顿": (F(1000), {"mass": 1, "length": 1, "time": -2}),
    "joule 焦 焦耳": (F(1000), {"mass": 1, "length": 2, "time": -2}),
    "watt 瓦": (F(1000), {"mass": 1, "length": 2, "time": -3}),
}  # fmt: skip
KNOWN = {
    spelling: (size, {dimension: 1})
    for dimension, units in UNITS.items()
    for spellings, size in units.items()
    for spelling in spellings.split()
} | {spelling: unit for spellings, unit in COMPOUND.items() for spelling in spellings.split()}
UNIT_LETTERS = set("mgshlL")  # units of one letter; the others are names, as in 3a
CASED = {"mL", "Hz"}
POWERS = {"square": 2, "sq": 2, "平方": 2, "cubic": 3, "cu": 3, "立方": 3, "squared": 2, "cubed": 3}
FACTOR = re.compile(
    r"(?P<prefix>square|sq\.?|cubic|cu\.?|平方|立方)? ?"
    r"(?P<name>us\$|°[CFcf]?|℃|℉|′|″|[$¥€£₹¢Ω]|μ?[A-Za-z]+|[\u4e00-\u9fff]+)\.?"
    r"(?:\^ ?\{?(?P<exponent>-?\d)\}?| (?P<suffix>squared|cubed))?"
)
# No things that are counted: words that change a number's meaning, or join two.
STOP = """a an the does do did and or not to of in from between than x y n is are was has out less more plus
minus times divided over by into per remainder with without but at for as on about nearly almost
least most under above below after before ago each other others if then so thus this that these
those his its percent squared cubed square sq cubic cu factorial power powers log yes no none mod"""
STOP = {*STOP.split(), *WORD_VALUES, *PART_OF, *MAGNITUDES}
PLURALS = {"people", "children", "men", "women", "feet", "fish", "sheep", "mice", "dice", "geese", "teeth"}
CLASSIFIERS = "个只条支枝本种次张棵块件名位人辆朵颗粒束盒袋瓶杯箱组对双套层排行列页道题座架头匹圈段根步场局项"


@dataclass(frozen=True)
class Unit:
    """`size` in the first units of its dimensions; `counted`: what is counted, if it is said: 12 apples."""

    size: F = F(1)
    dimensions: tuple[tuple[str, int], ...] = ()
    counted: str = ""

    @property
    def power(self) -> int:
        return sum(power for _, power in self.dimensions)


PERCENT = Unit(F(1, 100), (("percent", 1),))


@lru_cache(maxsize=4096)
def read_unit(text: str) -> Unit | None:
    """The unit that a whole text names: "cm^2", "square units", "miles per hour", "apples"; None if none."""
    text = text.strip().removesuffix(".")
    if re.fullmatch(r"%|percent|per cent|pct|percentage", text):
        return PERCENT
    if text == "‰":
        return Unit(F(1, 1000), PERCENT.dimensions)
    size, dimensions, divide = F(1), {}, False
    for place, part in enumerate(
        re.split(r" ?(/|\bper\b|每|·|\*|(?<=[a-z\d}]) (?=[a-zμ]+\^ ?\{?-)) ?", text)
    ):
        if place % 2:
            divide = divide or part in ("/", "per", "每")
            continue
        factor = read_factor(part.strip().removeprefix("(").removesuffix(")"))
        if factor is None:
            return read_counted(text)
        size = size / factor.size if divide else size * factor.size
        for name, power in factor.dimensions:
            dimensions[name] = dimensions.get(name, 0) + (-power if divide else power)
    return Unit(size, tuple(sorted((name, power) for name, power in dimensions.items() if power)))


def read_factor(text: str) -> Unit | None:
    """One unit with its power: "cm^2", "square inches", "cubic meters", "m squared"."""
    match = FACTOR.fullmatch(text)
    if not match:
        return None
    name = match["name"]
    found = lookup(name)
    if found is None:
        return None
    prefix = (match["prefix"] or "").rstrip(".")
    power = int(match["exponent"] or 1) * POWERS.get(prefix, 1) * POWERS.get(match["suffix"] or "", 1)
    if power < -4 or power > 4 or power == 0:
        return None
    return Unit(found[0] ** power, tuple((dimension, each * power) for dimension, each in found[1].items()))


def lookup(name: str) -> tuple[F, dict[str, int]] | None:
    """(size, dimensions) of a unit's name."""
    if name.isascii() and name.isalpha():
        if len(name) == 1 and name not in UNIT_LETTERS:
            return None
        if len(name) == 2 and not name.islower() and name not in CASED:  # AB is a segment
            return None
    name = name.lower()
    return KNOWN.get(name) or (KNOWN.get(name.removesuffix("s")) if len(name) > 3 else None)


def read_counted(text: str) -> Unit | None:
    """Things that are counted: a noun in the plural with up to two words before, a Chinese classifier."""
    if re.fullmatch(rf"[{CLASSIFIERS}](?:[\u4e00-\u9fff]{{1,4}})?", text):
        return Unit(counted="" if text == "个" else text)
    words = text.split()
    if not 1 <= len(words) <= 3 or not all(re.fullmatch(r"[A-Za-z]+(?:-[a-z]+)?", word) for word in words):
        return None
    noun = words[-1].lower()
    if len(noun) < 3 or any(word.lower() in STOP or lookup(word) for word in words):
        return None
    if noun in PLURALS or noun.endswith("s") and not noun.endswith(("ss", "us", "is")):
        return Unit(counted=" ".join(words).lower())
    return None


def singular(noun: str) -> Unit | None:
    """What one thing is called: 1 apple."""
    noun = noun.strip().lower()
    known = re.fullmatch(r"[a-z]{3,}", noun) and noun not in STOP
    return Unit(counted=noun + "s") if known else None
