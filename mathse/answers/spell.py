"""One spelling for LaTeX, Unicode and number words, by spelling.txt: plain text without braces or commands.

What carries meaning is spelled anew, never dropped: a command that is not known stays, and is then not read.
"""

import re
import unicodedata
from decimal import Decimal
from functools import lru_cache

from mathse.answers.tables import rules, sections, spellings, substituted

DEPTH = 24  # of braces in braces; what stands deeper stays, and is not read
LONG = 1000  # characters; a longer text stays as it is
FUNCTIONS = "arcsin arccos arctan sin cos tan cot sec csc ln log lg exp".split()
TABLES = sections("spelling.txt")
PLAIN = {ord(sign): plain for sign, plain in spellings(TABLES["alike"]).items() if len(sign) == 1}
PLAIN |= {ord("。"): ". ", ord("\u200b"): ""} | {ord("①") + i: f"({i + 1})" for i in range(9)}
COMMANDS = spellings(TABLES["commands"]) | {name: f" {name} " for name in FUNCTIONS}
COMMANDS |= {"land": " and ", "lor": " or "} | dict.fromkeys(TABLES["silent"][0].split(), " ")
RAISED, MARKUP, MATRICES = rules("raised"), rules("markup"), rules("matrices")
GROUPS, SIGNS, NUMERALS = rules("groups"), rules("words"), rules("numerals")
BRACES = re.compile(r"(?<!\\begin)(?<!\\end)\{([^{}]*)\}")


@lru_cache(maxsize=4096)
def spell(text: str) -> str:
    """A text in the one spelling: $\\frac{1}{2}$ as ((1)/(2)), 25 per cent as 25%, two thirds as 2/3."""
    if len(text) > LONG:
        return text.strip()
    text = in_plain_letters(text)
    if text.count("$") - text.count("\\$") == 1:  # no formula begins or ends here: it is money
        text = re.sub(r"(?<!\\)\$(?=\s*[\d.])", r"\\$", text)
    if re.fullmatch(r"\s*\{[^\\]*,[^\\]*\}\s*", text):  # a set, not LaTeX
        text = re.sub("[{}]", r"\\\g<0>", text)
    text = text.replace("\\$", "¤")
    text = substituted(text, MARKUP)
    for pattern, form in MATRICES:
        text = pattern.sub(lambda found, form=form: rows(found.expand(form)), text)
    text = without_groups(text.replace("\\{", "⦃").replace("\\}", "⦄").replace("\\|", "|"))
    text = re.sub(r"\\([A-Za-z]+)", lambda found: COMMANDS.get(found[1], found[0]), text)
    text = substituted(numerals(text), SIGNS)
    return re.sub(r"(?<!\.)\.$", "", text.strip(" ,;:")).strip()


def in_plain_letters(text: str) -> str:
    """Unicode's fractions, raised and lowered digits and wide letters in ASCII."""
    text = text.translate(PLAIN)
    text = re.sub("[¼-¾⅐-⅞]", lambda found: f" {unicodedata.normalize('NFKC', found[0])} ", text)
    return unicodedata.normalize("NFKC", substituted(text, RAISED)).translate(PLAIN)


def rows(text: str) -> str:
    """Rows of a matrix or a system as a list, or as a list of lists."""
    between = "],[" if text.startswith("[[") else ","
    return re.sub(r"\\\\ *", between, re.sub(r" *& *", "," if "=" not in text else "", text))


def without_groups(text: str) -> str:
    """LaTeX without braces: the innermost first, those of a command before bare ones."""
    for _ in range(DEPTH):
        before, text = text, substituted(text, GROUPS)
        if text == before:
            text = BRACES.sub(lambda f: f"({f[1]})" if re.search("[-+*/=]", f[1]) else f" {f[1]} ", text)
        if text == before:
            break
    return text


def key(text: str) -> str:
    """What two texts in this spelling have in common that are the same but for case and blanks."""
    text = text.casefold() if re.search("[A-Za-z]{3}", text) else text
    return re.sub(r'(?<![\d,])\s+|\s+(?!\d)|(?<=,)\s+(?!\d{3}(?!\d))|"|(?<=[a-z])-(?=[a-z])', "", text)


# ---------------------------------------------------------------- numbers in words

NUMBERS = sections("numbers.txt")
VALUE, SCALE, PART, HAN, HAN_SCALE = (
    {word: int(value) for value, *words in map(str.split, NUMBERS[kind]) for word in words}
    for kind in ("words", "scales", "parts", "han", "han scales")
)
WORD = f"(?i:{'|'.join([*VALUE, *SCALE])})"
ENGLISH = re.compile(
    rf"\b(?:(?:an?|\d+(?:\.\d+)?) (?=hundred|thousand|million|billion))?{WORD}"
    rf"(?:(?:[ -]|(?<=hundred) and |(?<=thousand) and ){WORD})*\b"
)
FRACTION = re.compile(rf"(?i)\b(\d+|an?)[ -]({'|'.join(PART)})\b(?!-| (?:past|to)\b)(?! of\b(?! an?\b))")
DIGITS = f"[{''.join([*HAN, *HAN_SCALE])}]{{1,20}}"
CHINESE = re.compile(rf"(?<!\d)({DIGITS}(?:点{DIGITS})?)(?![角边棱面次象样周定维下])")
TO_THE_HOUR = re.compile(r"(?:(?:a )?quarter|(\d\d?) minutes) to (\d{1,2})\b")  # 20 minutes to 9


def numerals(text: str) -> str:
    """Number words as digits: twenty-five, two thirds, three and a half, 三分之二, 百分之二十."""
    text = ENGLISH.sub(english, text)
    text = TO_THE_HOUR.sub(lambda found: f"{int(found[2]) - 1 or 12}:{60 - int(found[1] or 15):02}", text)
    text = CHINESE.sub(chinese, re.sub(r"百分之(?=[\d一-龥])", "%之", text))
    return substituted(FRACTION.sub(fraction, text), NUMERALS)


def english(found: re.Match) -> str:
    """one hundred and five as 105"""
    total = group = Decimal(0)
    for word in re.split(r"[ -]+", found[0].lower()):
        if SCALE.get(word, 0) > 100:
            total, group = total + (group or 1) * SCALE[word], Decimal(0)
        elif word == "hundred":
            group = (group or 1) * 100
        elif word not in ("and", "a", "an"):
            group += VALUE[word] if word in VALUE else Decimal(word)
    return f"{total + group:f}"


def chinese(found: re.Match) -> str:
    """三万五千 as 35000, 零点五 as 0.5, 二百五 as 250"""
    whole, _, decimals = found[1].partition("点")
    total = group = digit = last = 0
    for sign in whole:
        if sign in HAN:
            digit = HAN[sign]
        elif HAN_SCALE[sign] < 10**4:
            last = HAN_SCALE[sign]
            group, digit = group + (digit or 1) * last, 0
        else:
            total, group, digit = total + (group + digit or 1) * HAN_SCALE[sign], 0, 0
    if last > 10 and whole[-2:-1] in HAN_SCALE:
        digit *= last // 10
    places = "".join(str(HAN.get(sign, 0)) for sign in decimals)
    return f"{total + group + digit}{'.' if decimals else ''}{places}"


def fraction(found: re.Match) -> str:
    """two thirds as 2/3; 21 third is no fraction."""
    above = int(found[1]) if found[1].isdigit() else 1
    return found[0] if above > 19 and found[2][-1] != "s" else f"{above}/{PART[found[2].lower()]}"
