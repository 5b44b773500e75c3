"""Does a response state the reference answer? The answer check shared by 02_verify.py and 05_evaluate.py.

math-verify (https://github.com/huggingface/Math-Verify) decides whether two mathematical values are equal.
Here is what it leaves open: which words of a response are its answer (the last statement counts), choices by
letter or by value, several blanks, "or"-sets, units, percent, Chinese. A verdict is "correct", "wrong" or
"undecided": no answer found, cut off, not to be read as mathematics, or a check out of time or memory.

A response is data from a model and may be hostile. Plain answers are decided by bounded text work in the
calling process; what needs math-verify goes to worker processes with a memory limit, which are killed when
their time is up (math-verify's own time limits are signals: no use in threads, nor against C code).
"""

import json
import math
import re
import select
import subprocess
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import lru_cache
from queue import SimpleQueue
from typing import Callable, Iterable, Iterator

TAIL = 8000  # characters of a response that are read: its final answer stands at the end
SPAN = 400  # characters of an answer; a longer one is no answer
PARTS = 12  # parts of an answer: two sets of this size take 144 comparisons
LETTERS = "ABCDEFGHIJ"  # of choices
DIGITS = 60  # digits of a number that is compared here
START_SECONDS = 60  # for a worker to import math-verify

# Where a final answer is stated, by rule. The last match counts.
IS = r"(?:\s*:|\s*=|\s+(?:is|are|was|should be|must be|would be|will be)\b:?)"
STATEMENTS = re.compile(
    rf"(?P<sentence>the answer to this problem\**{IS})"
    rf"|(?P<answer_line>\banswers?\b\**"
    rf"(?:\s+(?:to|of|for)\b[^.:\n]{{0,60}}?|\s+(?:choice|option|letter|here|therefore))?{IS}"
    r"|<answer>|\n?#{1,6} {0,3}(?:final )?answers?\b|\*\*(?:final )?answer\*\*)"
    rf"|(?P<choice>\b(?:correct|right|best) (?:option|choice)\b[^.:\n]{{0,30}}?{IS}"
    r"|故\s?选(?:择|项)?|[应所此]以?选(?!项)|正确(?:的)?(?:选项|答案)[是为]?|答案应?该?选)"
    r"|(?P<answer_zh>答案应?该?[是为]?|[故应]填|(?:^|\n) *答(?= ?:))"
    r"|(?P<boxed>\\f?boxed\s*\{)",
    re.IGNORECASE,
)
RETRACTED = re.compile(
    r"\bwait\s*[,.!-]|\bactually,|\bscratch that\b|\bon second thought"
    r"|不对[,.]|更正|算错|重新(?:计算|考虑|检查)"
    r"|\b(?:that|this)(?:'s| is| was| answer is)? (?:wrong|incorrect|not right)"
    r"|\b(?:i|we)(?: have| 've)? made an? (?:\w+ )?(?:mistake|error)|\blet(?:'s| me| us) (?:re\w+|try again)",
    re.IGNORECASE,
)
SENTENCE_END = re.compile(
    r"(?<!sq)(?<!cu)(?<!approx)[.!?](?=[$*\"')}\]]*(?:\s|$))|\n|</answer>"
    r"|,?\s+\(?(?:because|since|which|so that|i\.e\.)|,\s+(?:so|as|with|where)\b"
)
BRACES = re.compile(r"\\[{}]|[{}]")
SPECIAL_TOKEN = re.compile(r"</s>|<\|(?:im_|end|eot|begin|start)")
# What stands between boxes of one answer; a unit behind a box.
BETWEEN_BOXES = re.compile(r"(?:\\q?quad|\\[()\[\]]|\\text\{[^{}]{0,30}\}|\b(?:and|or)\b|和|或|[\s$,;&])*")
UNIT_BEHIND = re.compile(
    r"[\s$\\)]{0,4}(?:(?:text|mathrm|rm)\{\s?~?)?\s?"
    r"(%|percent|pct|°|\^\{?\\circ|degrees?\b|[mck]?m\b(?:\^[23])?|inch(?:es)?\b|feet\b)"
)
# Of a response that states no answer: sentences to skip, verbs before a conclusion, words after its value.
PLEASANTRY = re.compile(
    r"i hope|i can|i am|sorry|let me know|is there anything|feel free|note\b|you should", re.IGNORECASE
)
CONCLUDES = re.compile(
    r".*(?:\b(?:is|are|was|has|have|equals?(?: to)?|needs)\b|[=≈为是有])\s*(.+)", re.DOTALL
)
CLOSING = re.compile(r"(?:\$([^$]+)\$|\\\((.+?)\\\)|\*\*([^*]+)\*\*)[^$=\d]{0,20}$")
NO_VALUE = re.compile(r",? (?:with|in|that|of|for|on|at|which|who|than|more|less|long|wide|tall|high)\b|, ")

# One character for another: full-width forms, typographic signs; control characters become blanks.
CHARACTERS = {code: " " for code in range(32) if code != 10}
CHARACTERS |= {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
CHARACTERS |= str.maketrans("、∶−–‘’“”\u3000\xa0", ",:--''\"\"  ") | {ord("。"): ". "}
CHARACTERS |= {0x2460 + i: f"({i + 1})" for i in range(9)}
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
VAGUE = re.compile(  # words before a value
    r"^(?:(?:so|thus|hence|therefore|then|simply|just|approximately|about|around|roughly|exactly"
    r"|equal to|it is|given by|因此|所以|即|故|则|约为?|大约|∴|\\therefore|≈|=|:)[\s,:]*)+",
    re.IGNORECASE,
)

INTEGER = r"(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d+)"
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
COMMA = r",(?!\d{3}(?!\d))|(?<!\d),"  # not the comma of 1,056
OR, AND = r"\bor\b|或者?", r"\band\b|和"
Equal = Callable[[str, str, int | None], bool | None]  # given, reference, precision; None: no telling


# ---------------------------------------------------------------- the final answer of a response


def clean(text: str) -> str:
    """The tail of a text in plain punctuation, without what follows a model's end token."""
    text = str(text)[-TAIL:].replace("\x0crac", "\\frac").translate(CHARACTERS)  # a \f is no form feed
    return SPECIAL_TOKEN.split(text, 1)[0].strip()


def braced(text: str, start: int) -> int | None:
    """The end (after the brace) of the group whose content begins at `start`; None if it is never closed."""
    depth = 1
    for match in BRACES.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return match.end()
    return None


def boxed_answer(text: str, boxes: list[re.Match]) -> tuple[str, int]:
    """(the last box with those listed right before it, its letter before, its unit behind; where it ends)"""
    parts, start, end = [], len(text), 0
    for box in reversed(boxes):
        close = braced(text, box.end())
        between = text[close or 0 : start]
        if close is None or (parts and (len(between) > 60 or not BETWEEN_BOXES.fullmatch(between))):
            break
        end, start = end or close, box.start()
        parts.insert(0, text[box.end() : close - 1])
    if not parts:
        return "", 0
    letter = re.search(r"\([A-J]\)[\s$\\(]*$", text[max(0, start - 12) : start])
    behind = UNIT_BEHIND.match(text[end : end + 40])
    answer = (letter[0].strip(" $\\") + " " if letter and len(parts) == 1 else "") + ", ".join(parts)
    return answer + (" " + behind[1] if behind else ""), end


def stated_span(text: str, start: int) -> tuple[str, int]:
    """(what a sentence says from `start`, where it ends); a list (1) … (2) … may take several lines."""
    rest = re.compile(r"[\s*:\"_]*(?:(?:\$\$|\\\[|\$)\s*\n\s*)?").match(text, start).end()
    if text[start:rest].count("\n") > 3:
        return "", rest
    at = rest
    while match := SENTENCE_END.search(text, at, rest + 4 * SPAN):
        said = text[rest : match.start()]
        numbered = said.lstrip().startswith("(1)") and re.match(r"\s*\([2-9]\)", text[match.start() :][:20])
        lettered = match[0] == "." and re.fullmatch(r"[\W_]*[A-J]", said)  # the point of "B. 12"
        if not numbered and not lettered and said.strip(" $*\\[("):
            return said, match.start()
        at = match.end()
    return text[rest : rest + 4 * SPAN], len(text)


def find_answer(response: str) -> tuple[str | None, str]:
    """(the final answer as written, the rule that found it), or (None, "none").

    The last statement counts; when it is empty, never closed or taken back there is no answer. Without a
    statement the whole of a short response, or what its last sentence concludes with, is the answer.
    """
    text = clean(response).rpartition("</think>")[2].strip()
    matches = [
        found for found in STATEMENTS.finditer(text) if not text.startswith((" not ", "n't"), found.end())
    ]
    if not matches:
        return concluded_answer(text)
    last = matches[-1]
    if last.lastgroup != "boxed":
        span, end = stated_span(text, last.end())
    else:
        boxes = []
        while matches and matches[-1].lastgroup == "boxed":
            boxes.insert(0, matches.pop())
        span, end = boxed_answer(text, boxes[-PARTS:])
    span = span.strip(" \n*_\"'`,;:").removesuffix(".").strip()
    if not span or len(span) > SPAN or RETRACTED.search(text, end):
        return None, "none"
    return span, "answer-line" if last.lastgroup.startswith("answer") else last.lastgroup


def concluded_answer(text: str) -> tuple[str | None, str]:
    """The answer of a response that states none: all of a short line, or where its last sentence ends."""
    sentences = [part.strip() for part in re.split(r"(?<=[.!?])\s+|\n+", text[-4 * SPAN :]) if part.strip()]
    while len(sentences) > 1 and PLEASANTRY.match(sentences[-1]):
        sentences.pop()
    last = sentences[-1].removesuffix(".").strip() if sentences else ""
    if not last or len(last) > 2 * SPAN or PLEASANTRY.match(last):
        return None, "none"
    verb = CONCLUDES.fullmatch(last)
    before = last[: verb.start(1)] if verb else ""
    alone = len(sentences) == 1 and not re.search(r"[A-Za-z]{2,} |[\u4e00-\u9fff]{2}", before)
    if alone and len(re.findall(r"(?<![\\A-Za-z])[A-Za-z]{2,}|[\u4e00-\u9fff]", last)) <= 2:
        return last, "bare"
    whole = sentences[-1].endswith((".", "$", ")", "*"))  # only a whole sentence concludes
    if whole and (closing := CLOSING.search(last)):
        return "".join(filter(None, closing.groups())), "conclusion"
    said = VAGUE.sub("", NO_VALUE.split(verb[1].strip(" *"))[0]) if verb else ""
    if re.match(r"[-+]?[\d\\√π(\[]|\$[^$]+\$", said):
        counted = re.match(rf"{INTEGER}(?:\.\d+)?(?: [A-Za-z]+){{1,3}}(?= )", said)  # not "above 5"
        return counted[0] if counted else said, "conclusion"
    if whole:
        formulas = {first or second for first, second in re.findall(r"\$([^$]+)\$|\\\((.+?)\\\)", last)}
        numbers = set(re.findall(rf"(?<![A-Za-z0-9_.]){INTEGER}(?:\.\d+)?%?(?![A-Za-z0-9_])", last))
        if len(formulas or numbers) == 1:
            return (formulas or numbers).pop(), "conclusion"
    if said and len(said.split()) <= 3:
        return said, "conclusion"
    return (last, "bare") if alone and len(last) <= SPAN else (None, "none")


# ---------------------------------------------------------------- comparing two values


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


def unwrap(text: str) -> str:
    """A set without its braces: {1, 2} is 1, 2 and {x | x > 1} is x > 1."""
    text = re.sub(r"^\w ?(?:=|\\in) ?(?=\{)", "", text)
    inner = text[1:-1] if text.startswith("{") and braced(text, 1) == len(text) else text
    return inner if inner is text else re.sub(r"^ ?\w ?(?:\||\\mid|:) ?", "", inner)


def parts_of(text: str) -> tuple[list[str], bool]:
    """(parts, is their order fixed?): blanks "25; 0.5" and "(1) 25 (2) 0.5"; sets "1 or 2", "6, 8", "±3"."""
    numbered = re.findall(r"(?:^|[\s;,])\((\d)\) ?(.+?)(?=[\s;,]+\(\d\)|$)", text)
    if len(numbered) > 1 and all(int(digit) == place for place, (digit, _) in enumerate(numbered, 1)):
        return [part.strip(" ,;") for _, part in numbered], True
    if len(blanks := split(text, ";")) > 1:
        return blanks, True
    parts = [part for piece in split(unwrap(text), rf"{OR}|{AND}|;") for part in split(piece, COMMA)]
    both = [
        [part.replace("\\pm", sign) for sign in "+-"] if part.count("\\pm") == 1 else [part] for part in parts
    ]
    return sum(both, []), False


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
    power = match["exponent"] or {"s": "2", "平": "2", "c": "3", "立": "3"}.get(
        (match["power"] or " ")[0], ""
    )
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
    if (
        len(text) > 2
        and text[0] in "(["
        and text[-1] in ")]"
        and len(split(text, r"(?<=[)\]])\s*[^\s)\]]")) == 1
    ):
        parts = split(text[1:-1], r"[,;]")
        return (text[0] + text[-1], parts) if len(parts) > 1 else None
    return None


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


def same_answer(given: str, reference: str, precision: int | None, equal: Equal) -> bool | None:
    """Whether two answers are the same: blanks in order, a set in any order, all their parts."""
    if key(given) == key(reference):
        return True
    (given_parts, _), (parts, ordered) = parts_of(given), parts_of(reference)
    if max(len(parts), len(given_parts)) > PARTS:
        return None
    if ordered and not given.startswith("{"):
        if len(given_parts) != len(parts):
            given_parts = split(given, rf",|{AND}")  # 100,200 for two blanks
        if len(given_parts) != len(parts):
            return False
        return all_true(same_answer(*pair, precision, equal) for pair in zip(given_parts, parts, strict=True))
    for one, other in ((given_parts, bracketed(reference)), (parts, bracketed(given))):
        if other and len(one) == len(other[1]) and all(map(LABEL.fullmatch, one)):  # x = 1, y = 2 is (1, 2)
            return all_true(same_value(*pair, precision, equal) for pair in zip(one, other[1], strict=True))
    if ordered or len(parts) > 1:
        parts = parts_of(reference.replace(";", ","))[0] if ordered else parts
        if len(given_parts) != len(parts):
            return False
        same = [[same_value(given, part, precision, equal) for given in given_parts] for part in parts]
        return all_true(map(any_true, (*same, *zip(*same))))  # each part is given, and each given is a part
    if key(reference) in ("yes", "no", "true", "false"):  # "Yes, it is"
        given_parts = given_parts[:1]
    if len(given_parts) > 1:  # two different answers are wrong, "1/2 or 0.5" is one
        return all_true(same_value(part, reference, precision, equal) for part in given_parts)
    given = given_parts[0] if given_parts else given
    return same_value(unwrap(given), unwrap(reference), precision, equal)


# ---------------------------------------------------------------- multiple choice


def option_values(options: list) -> list[str]:
    """The options' texts, simplified, without the letter that each begins with."""
    texts = [simplify(str(option)) for option in options[: len(LETTERS)]]
    lettered = [re.fullmatch(rf"\(?{name}(?:[).:,]+ ?|$)(.*)", text) for name, text in zip(LETTERS, texts)]
    return [match[1] for match in lettered] if all(lettered) else texts


def letters_of(text: str, values: list[str]) -> set[str]:
    """The letters of the options that read like the text."""
    return {
        letter for letter, value in zip(LETTERS, values, strict=False) if value and key(value) == key(text)
    }


def stated_letters(span: str, values: list[str]) -> set[str]:
    """The letters that an answer names: "B", "(B) 12", "B. 12", "option B", "12 (B)", "A or B"."""
    letters = LETTERS[: len(values)]

    if re.fullmatch(rf"[{letters}]{{2,}}", span):
        return set(span)
    if re.fullmatch(rf"\(?[{letters.lower()}]\)?", span) and key(span) not in map(key, values):
        return {span.strip("()").upper()}
    words = r"(?:(?:the|option|choice|answer|letter|选项?|为|是)\s*)*[:\s]*"
    head = re.match(
        rf"{words}(\()?([{letters}])(?(1)\)|(?![\w'^\\]))(\)|[.:,-]|$)? ?(.*)", span, re.ASCII | re.IGNORECASE
    )
    if not head or head[2].islower():
        behind = re.fullmatch(
            rf"(.*?)[\s,]+(?:(?:option|choice|选项)\s*\(?([{letters}])\)?|\(([{letters}])\))", span
        )
        if not behind:
            return set()
        return {behind[2] or behind[3]} | letters_of(behind[1], values)
    letter, rest = head[2], head[4].strip(" .:,()-=")
    if letters_of(rest, values):
        return {letter} | letters_of(
            rest, values
        )  # the letter of one option with the value of another: two answers
    others = re.findall(rf"(?:{OR}|{AND}|[,/&])\s*\(?([{letters}])(?![A-Za-z0-9_'])", span)
    others += re.findall(rf"\(([{letters}])\)", span)
    marked = head[1] or head[3] or not rest or others or re.match(r"\(|is\b|as\b|因|是|正", head[4])
    return {letter, *others} if marked else set()


def concluded_letters(text: str, values: list[str]) -> tuple[str | None, set[str]]:
    """(words, letters) of a response without a statement: its last line or sentence, or a first yes or no."""
    lines = [line for line in clean(text).split("\n") if line.strip()]
    if not lines:
        return None, set()
    last = simplify(lines[-1][-SPAN:])
    if stated_letters(last, values):
        return last, stated_letters(last, values)
    sentence = re.split(r"(?<=[.!?])\s+", lines[-1].strip()[-SPAN:])[-1]
    pairs = re.findall(
        r"\(([A-J])\)|(?:\b(?:option|choice|choose|pick|select)|选项?)\s*\(?([A-J])\b", sentence
    )
    if letters := {one or other for one, other in pairs}:
        return ", ".join(sorted(letters)), letters
    start = re.match(r"(yes|no)\b", lines[0].strip(), re.IGNORECASE)
    named = letters_of(start[0], values) if start else set()
    return (start[0], named) if named else (None, set())


def reference_letters(problem: dict) -> set[str]:
    """The letters of the options that the reference answer names, by letter or by value; none if it is not among them."""
    values, answer = option_values(problem["options"]), str(problem["answer"]).strip()
    options = [str(option).strip() for option in problem["options"]]
    wanted = {letter for letter, option in zip(LETTERS, options, strict=False) if option == answer}
    return wanted or stated_letters(simplify(answer), values) or letters_of(simplify(answer), values)


def check_choice(
    response: str, span: str | None, rule: str, problem: dict, equal: Equal
) -> tuple[bool | None, str | None, str]:
    """(verdict, extracted, rule) for multiple choice: the reference is a value, a letter or letters."""
    values, wanted = option_values(problem["options"]), reference_letters(problem)
    if not wanted:
        return None, span, rule
    given = simplify(span) if span else ""
    letters = stated_letters(given, values) if given else set()
    exact = letters_of(given, values)
    if exact or letters:
        return (exact or letters) == wanted or bool(exact & wanted), span, rule
    if rule in ("bare", "conclusion", "none"):
        said, letters = concluded_letters(response, values)
        if letters:
            return letters == wanted, said, "choice"
    value = values[LETTERS.index(min(wanted))]
    if not given or not value or len(wanted) > 1:
        return None, span, rule
    return same_answer(given, value, problem.get("precision"), equal), span, rule


# ---------------------------------------------------------------- one check


def check(response: str, problem: dict, finish: str, equal: Equal) -> dict:
    """The verdict, with `equal` for what needs a mathematician."""
    response, answer = str(response or ""), problem.get("answer")
    if answer is None or answer == "" or answer == []:
        return {"answer_check": None, "extracted": None, "rule": "no reference"}
    if finish in ("length", "error"):
        rule = "cut off" if finish == "length" else "error"
        return {"answer_check": "undecided", "extracted": None, "rule": rule}
    span, rule = find_answer(response)
    if problem.get("options") or re.fullmatch(r"\(?[A-J]\)?", str(answer)):
        problem = problem if problem.get("options") else problem | {"options": list(LETTERS)}
        verdict, span, rule = check_choice(response, span, rule, problem, equal)
    elif span is None:
        verdict = None
    else:
        reference = "; ".join(map(str, answer)) if isinstance(answer, list) else str(answer)
        reference = find_answer(reference)[0] if "boxed" in reference else reference
        given, reference = simplify(span), simplify(reference or "")
        verdict = same_answer(given, reference, problem.get("precision"), equal)
        about = f"{problem.get('question')} {response[-SPAN:]}"
        if verdict is False and "%" in given and re.search(r"percentage|what percent|百分", about):
            verdict = same_answer(given.replace("%", ""), reference, problem.get("precision"), equal)
        if verdict is None and rule not in ("bare", "conclusion"):  # "Answer: its area is 5"
            said = concluded_answer(span + ".")[0] or span
            if said != span:
                verdict, span = same_answer(simplify(said), reference, problem.get("precision"), equal), said
    verdict = {True: "correct", False: "wrong", None: "undecided"}[verdict]
    return {"answer_check": verdict, "extracted": span, "rule": rule}


def check_answer(response: str, problem: dict, finish: str = "stop") -> dict:
    """{"answer_check": "correct" | "wrong" | "undecided" | None (no reference answer), "extracted", "rule"}.

    Works in this process without limits: for a response from a model use AnswerChecker.
    """
    return check(response, problem, finish, equal_in_mathematics)


def equal_in_mathematics(given: str, reference: str, precision: int | None) -> bool | None:
    """math-verify's opinion; None when one side is no mathematics."""
    import logging

    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time limit is off
    given, reference = (parse(f"${side}$", parsing_timeout=None) for side in (given, reference))
    if not given or not reference or isinstance(given[0], str) or isinstance(reference[0], str):
        return None
    numbers = all(getattr(side[0], "is_number", False) for side in (given, reference))
    if numbers and precision is not None:
        return bool(abs(given[0].evalf() - reference[0].evalf()) <= 0.5 * 10.0**-precision + 1e-12)
    same = verify(reference, given, allow_set_relation_comp=True, timeout_seconds=None)
    if same and numbers:  # it rounds to six decimals, where 2^-98 and 2^-99 are both 0
        one, other = given[0].evalf(), reference[0].evalf()
        return bool(abs(one - other) <= 1e-6 * abs(other))
    return same


# ---------------------------------------------------------------- many checks, in processes to be killed


class NeedsMathematics(Exception):
    """Raised on the cheap path where math-verify would be asked."""


def ask_a_worker(given: str, reference: str, precision: int | None) -> bool | None:
    raise NeedsMathematics


class Worker:
    """A process that answers one check a line; started when it is needed, killed when it is late."""

    def __init__(self, seconds: float, megabytes: int):
        self.seconds, self.process = seconds, None
        self.command = [sys.executable, __file__, "--worker", str(megabytes), str(seconds)]

    def check(self, response: str, problem: dict, finish: str) -> dict:
        """The worker's verdict, or an undecided one when it does not come in time or the worker dies."""
        try:
            if self.process is None:
                pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
                self.process = subprocess.Popen(self.command, **pipes)
                if self.read_line(START_SECONDS) != b"ready\n":
                    raise RuntimeError(f"no worker starts; see what this says: {' '.join(self.command)}")
            self.process.stdin.write(json.dumps([response, problem, finish]).encode() + b"\n")
            self.process.stdin.flush()
            return json.loads(self.read_line(self.seconds))
        except (OSError, ValueError, TimeoutError) as error:
            self.kill()
            rule = "timeout" if isinstance(error, TimeoutError) else "crash"
            return {"answer_check": "undecided", "extracted": find_answer(response)[0], "rule": rule}

    def read_line(self, seconds: float) -> bytes:
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            raise TimeoutError
        return self.process.stdout.readline()

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.communicate()
        self.process = None


class AnswerChecker:
    """Checks plain answers here and the others in up to `workers` processes, in order."""

    def __init__(self, workers: int = 1, seconds: float = 5.0, megabytes: int = 2048):
        self.idle: SimpleQueue[Worker] = SimpleQueue()
        self.workers = [Worker(seconds, megabytes) for _ in range(max(1, workers))]
        for worker in self.workers:
            self.idle.put(worker)
        self.threads = ThreadPoolExecutor(len(self.workers))  # each waits for a worker's reply

    def __enter__(self) -> "AnswerChecker":
        return self

    def __exit__(self, *error: object) -> None:
        self.threads.shutdown(cancel_futures=True)
        for worker in self.workers:
            worker.kill()

    def in_worker(self, response: str, problem: dict, finish: str) -> dict:
        worker = self.idle.get()
        try:
            return worker.check(response, problem, finish)
        finally:
            self.idle.put(worker)

    def same(self, given: str, reference: str) -> bool:
        """Whether two values are equal to two decimals, whatever is around them."""
        return next(self.check_many([(f"\\boxed{{{given[:SPAN]}}}", {"answer": reference, "precision": 2}, "stop")]))["answer_check"] == "correct"

    def check_many(self, items: Iterable[tuple[str, dict, str]]) -> Iterator[dict]:
        """One result an item, in order; only a window of the items is held in memory."""
        window = deque()
        for response, problem, finish in items:
            try:
                window.append(check(response, problem, finish, ask_a_worker))
            except NeedsMathematics:
                needed = {name: problem.get(name) for name in ("answer", "options", "precision", "question")}
                window.append(self.threads.submit(self.in_worker, str(response)[-TAIL:], needed, finish))
            full = 32 * len(self.workers)
            while window and (isinstance(window[0], dict) or window[0].done() or len(window) > full):
                result = window.popleft()
                yield result if isinstance(result, dict) else result.result()
        for result in window:
            yield result if isinstance(result, dict) else result.result()


def check_rows(rows: Iterable[dict], workers: int = 1) -> Iterator[dict]:
    """Rows with a problem's and a sample's fields, each with its verdict added."""
    waiting = deque()

    def items() -> Iterator[tuple[str, dict, str]]:
        for row in rows:
            waiting.append(row)
            yield row["response"], row, row.get("finish", "stop")

    with AnswerChecker(workers) as checker:
        for result in checker.check_many(items()):
            yield waiting.popleft() | result


def serve(megabytes: int, seconds: float) -> None:
    """The worker: a check a line on stdin, its result a line on stdout."""
    import resource
    import signal

    resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
    equal_in_mathematics("\\sqrt{4}", "2", None)  # import and warm up before the clock runs
    print("ready", flush=True)
    for line in sys.stdin:
        signal.alarm(int(seconds) + 2)  # ends this process (the default action) should its parent be gone
        try:
            result = check_answer(*json.loads(line))
        except Exception:  # of sympy, on strange input: RecursionError, MemoryError, TypeError …
            result = {"answer_check": "undecided", "extracted": None, "rule": "crash"}
        print(json.dumps(result), flush=True)
        signal.alarm(0)


if __name__ == "__main__":
    serve(int(sys.argv[2]), float(sys.argv[3]))
