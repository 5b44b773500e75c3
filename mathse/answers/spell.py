"""One spelling for LaTeX, Unicode and number words: plain text without braces or commands, for read.py.

What carries meaning is spelled anew, never dropped: a command that is not known stays, and is then not read.
"""

import re
import unicodedata
from decimal import Decimal
from functools import lru_cache

DEPTH = 24  # of braces in braces; what stands deeper stays, and is not read
ALIKE = """
* × · ⋅ • ∙ ∗
/ ÷ ∕ ⁄
- − – ﹣
: ∶ ：
; ；
, 、 ，
( （
) ）
= ＝
< ＜
> ＞
⟨ 〈
⟩ 〉
≤ ⩽ ≦
≥ ⩾ ≧
° º ˚
' ’ ‘ ′
" “ ” ″
⊥ ⟂
% ％
△ Δ
∽ ∼
m^2 ㎡
m^3 ㎥
... …
"""  # a sign, and the signs that are spelled like it
SIGNS = """
* times cdot ast
/ div
: colon
° degree circ
' prime
± pm
π pi
∞ infty
√ sqrt
= equiv
≠ neq ne
≈ approx
< lt
> gt
≤ leq le leqslant
≥ geq ge geqslant
→ to rightarrow
∈ in
∪ cup
∅ emptyset varnothing
∠ angle measuredangle
△ triangle Delta
∥ parallel
⊥ perp
≅ cong
∽ sim
¦ mid vert lvert rvert
... ldots dots cdots
⟨ langle
⟩ rangle
⦃ lbrace
⦄ rbrace
α alpha
β beta
γ gamma
θ theta vartheta
λ lambda
μ mu
ρ rho
φ phi varphi
ω omega
"""  # a sign, and the LaTeX commands for it
SILENT = "Big Bigl Bigr big bf displaystyle enspace left limits qquad quad right rm textstyle"
FUNCTIONS = "arcsin arccos arctan sin cos tan cot sec csc ln log lg exp"


def spellings(table: str) -> dict[str, str]:
    """{what is spelled otherwise: how it is spelled} from a table with a line each, the chosen one first."""
    lines = [line.split() for line in table.strip("\n").split("\n")]
    return {other: first for first, *others in lines for other in others}


def any_of(words: str) -> str:
    """A pattern for the words of a table, in which _ is a blank. What begins with a letter is matched whole."""
    chinese, others = [], []
    for word in words.split():
        is_chinese = re.match(r"\W*[\u4e00-\u9fff]", word)
        (chinese if is_chinese else others).append(word.replace("_", " "))
    return "|".join(chinese + ([rf"\b(?:{'|'.join(others)})\b"] if others else []))


def substitutions(table: str, flags: int = 0, **parts: str) -> list[tuple[re.Pattern, str]]:
    """The rules of a table, a line each: pattern ⇒ replacement. <name> in a pattern is one of the parts, ␣ in
    a replacement a blank; a line that begins with # is a heading."""
    rules = []
    for line in table.strip("\n").split("\n"):
        if not line.startswith("# "):
            old, new = line.split(" ⇒")
            for name, part in parts.items():
                old = old.replace(f"<{name}>", part)
            rules.append((re.compile(old, flags), new[1:].replace("␣", " ")))
    return rules


def substituted(text: str, rules: list[tuple[re.Pattern, str]]) -> str:
    for old, new in rules:
        text = old.sub(new, text)
    return text


PLAIN = {ord(sign): plain for sign, plain in spellings(ALIKE).items()}
PLAIN |= {ord("。"): ". ", ord("\u200b"): ""} | {ord("①") + i: f"({i + 1})" for i in range(9)}
COMMANDS = spellings(SIGNS) | {name: f" {name} " for name in FUNCTIONS.split()}
COMMANDS |= {"land": " and ", "lor": " or "} | dict.fromkeys(SILENT.split(), " ")

# LaTeX, before its groups are resolved
MARKUP = substitutions(
    r"""
# markup without meaning
\\f?boxed(?![A-Za-z])|\$\$?|(?<!\\)\\[()\[\]]|`|\\right ?\.|\*\*(?=\W|$)|(?<!\d)\*\*|~~ ⇒ ␣
# digits in groups
\{,\}|(?<=\d),\\! ?(?=\d)|(?<=\d)\\,(?=\d{3}) ⇒ ,
(?<!\\)\\[,;: !>]|~ ⇒ ␣
\\([%&#_]) ⇒ \1
# degrees, primes, overlines, repeating decimals
\^ *(?:\{ *(?:\\circ|\\degree|°|o) *\}|\\circ(?![a-z])|\\degree|°) ⇒ °
\^ *(?:\{ *((?:\\prime *)+)\}|(\\prime)(?![a-z])) ⇒ \1\2
\\(?:overrightarrow|vec) *\{?([A-Z]{2})\}? ⇒ vector \1
\\(?:overline|bar|vec) *\{?([A-Z]{2}|[a-z])\}? ⇒ ␣\1␣
\\dot *\{?(\d)\}?(\d*)\\dot *\{?(\d)\}? ⇒ (\1\2\3)
(?<=[\d.])\\(?:overline|bar|dot) *\{?(\d+)\}? ⇒ (\1)
\\mathbb *\{?R\}? ⇒ ℝ
# arguments without braces; mixed numbers; units in a fraction
\\[dtc]frac(?![a-z]) ⇒ \\frac
(\\frac|\\binom) *(\w) ⇒ \1{\2}
(\\frac *\{[^{}]*\}) *(\w) ⇒ \1{\2}
\\sqrt *(\w) ⇒ \\sqrt{\1}
(?<![\d.^_}\w])(\d+) *\\frac *\{(\d+)\} *\{(\d+)\} ⇒ ␣\1 \2/\3␣
(?<![A-Za-z])C_\{?(\d+)\}?\^\{?(\d+)\}? ⇒ choose(\1;\2)
(?<=\d) *\\frac *\{<unit>\} *\{<unit>\} ⇒ ␣\1/\2
""",
    unit=r"\\?(?:text|mathrm)? *\{? *([a-z]+) *\}?",
)
MATRICES = substitutions(
    r"""
# a column or a row is a list, a matrix a list of lists, a system its equations
\\begin *\{(?:[a-z]*matrix|array)\} *(?:\{[lcr|]+\})?((?:(?!\\begin|&).)*?)(?:\\\\)? *<end> ⇒ (\1)
\\begin *\{[a-z]*matrix\}((?:(?!\\begin|\\\\).)*?)<end> ⇒ (\1)
\\begin *\{[a-z]*matrix\}((?:(?!\\begin).)*?)(?:\\\\)? *<end> ⇒ [[\1]]
(?:\\\{ *)?\\begin *\{(?:aligned|align|cases)\*?\}((?:<equation>\\\\)+<equation>)<end> ⇒ \1
""",
    end=r"\\end *\{[a-z]*\*?\}",
    equation=r"[^=,]*=[^=,]*?",
)
GROUPS = substitutions(r"""
# the innermost braces of a command
\\frac *\{([^{}]*)\} *\{([^{}]*)\} ⇒ ((\1)/(\2))
\\sqrt *\[([^\[\]{}]*)\] *\{([^{}]*)\} ⇒ root(\1;\2)
\\sqrt *\{([^{}]*)\} ⇒ √(\1)
\\[dt]?binom *\{([^{}]*)\} *\{([^{}]*)\} ⇒ choose(\1;\2)
\\(?:text|math|mbox|operatorname|boldsymbol|emph|bold)(?:rm|bf|it|sf|tt|normal)?\*? *\{([^{}]*)\} ⇒ ␣\1␣
 *([\^_]) *\{([^{}]*)\} ⇒ \1(\2)
""")
BRACES = re.compile(r"(?<!\\begin)(?<!\\end)\{([^{}]*)\}")
WORDS = substitutions(
    r"""
# signs in ASCII
\+/- ⇒ ±
<=|=< ⇒ ≤
>= ⇒ ≥
!=|<> ⇒ ≠
# roots, constants, powers of ten
∛ *(\w+) ⇒ root(3;\1)
(?<![a-z])sqrt *(?=[(\d])|(?i:the )?(?i:square )?root of (?=[\d(])|(?<=\d) ?root (?=\d)|根号 ⇒ √
(?<![A-Za-z])pi(?![A-Za-z]) ⇒ π
(?<![A-Za-z])(?:infinity|inf)(?![A-Za-z])|\+∞ ⇒ ∞
(?<=\d) ?[x✕✖] ?(?=10 ?\^)|(?<=\d) [xX✕✖] (?=\d)|(?<=\d) (?:times|multiplied by) (?=[\d√]) ⇒ *
(?<![A-Za-z\d.])(\d+(?:\.\d+)?)[eE]([-+]?\d{1,2})(?![\d.A-Za-z]) ⇒ \1*10^(\2)
(\d\.\d*?)(\d+)\2\2\.\.\. ⇒ \1(\2)
\*\* ⇒ ^
# sets and bars
^⦃ ?[a-z](?: ?∈ ?[ℝR])? ?[|:¦] ?(.*)⦄$ ⇒ \1
[|¦]([^|¦]+)[|¦] ⇒ abs(\1)
# degrees, percent, signs in words
℃|° ?C(?![a-z])|(?i:degrees celsius) ⇒ ␣celsius
°F(?![a-z])|(?i:degrees fahrenheit) ⇒ ␣fahrenheit
(?<=[\d)π]) ?(?:[Dd]egrees?|deg|度)(?![a-z]| [cf]) ⇒ °
(?<=\d) ?(?i:percent(?:age)?|per cent|pct)(?! ?points?)(?![a-z]) ⇒ %
\b(?i:minus|negative) (?=[\d√π(])|(?:负|零下)(?=\d) ⇒ -
# figures
(?i:angle) ?(?=[A-Z\d])|∠ ⇒ ∠
m?∠ +(?=\w)|m∠ ⇒ ∠
\b(?i:(?:rt ?)?triangle) (?=[A-Z]{3}\b)|△ + ⇒ △
(?i:line )?(?i:segment) (?=[A-Z]{2}\b) ⇒
# powers and compounds of units
\b(?i:square|sq\.?) (?!root)([a-z]+) ⇒ \1^2
\b(?i:cubic|cu\.?) ([a-z]+) ⇒ \1^3
\b(\w+) squared\b|the square of (\d+) ⇒ \1\2^2
\b(\w+) cubed\b|the cube of (\d+) ⇒ \1\2^3
(?<=[a-z\d)]) per (?=[a-z])|(?<=[\d\u4e00-\u9fff])每 ⇒ /
\bmph\b ⇒ mi/h
\bkm/?ph\b|\bkph\b ⇒ km/h
\bUSD ?(?=\d) ⇒ ¤
# operations in words
(?<=\d) (?:out of|of|in)(?: every| the)? (?=\d+$)|(?<=\d) (?:out of(?: every)?|divided by|over) (?=\d) ⇒ /
(?<=\d),? (?:with )?(?:a )?<remainder> ?(?=\d)|(?<=\d)(?:余|\.{3,6})(?=\d) ⇒ ⋮
(?:the )?sum of (\S+) and (\S+) ⇒ \1+\2
(?:the )?product of (\S+) and (\S+) ⇒ \1*\2
(?:the )?difference (?:of|between) (\S+) and (\S+) ⇒ \1-\2
(?:the )?(?:twice|double) (?=\d) ⇒ 2*
(?<=\d) plus (?=\d) ⇒ +
(?<=\d) (?:raised )?to the power (?:of )?(?=\d) ⇒ ^
(?i:log(?:arithm)? (?:to )?base) (\d+) of[ ] ⇒ log_\1␣
(?<![A-Za-z])C\((\d+), ?(\d+)\)(?= ?=) ⇒ choose(\1;\2)
# between numbers
, ?(?=(?:or|and)\b) ⇒ ␣
(?<=\d)又(?=\d) ⇒ ␣
(?<=\d)比(?=\d)|(?<=\d) to (?=[\d√])|(?<=\d) : ?(?=\d)|(?<=\d): (?=\d) ⇒ ∶
\b(?:the )?(\d+)(?:st|nd|rd|th)\b ⇒ \1
(?<=[a-z\d]) (?:long|wide|tall|high|deep|old|in total|in all|altogether)$ ⇒
# blanks
\s+ ⇒ ␣
 ?([\^_]) ? ⇒ \1
([\^_])\((\w)\)(?!\w) ⇒ \1\2
(?<=[(\[⦃]) | (?=[)\]⦄,;!%°]) ⇒
""",
    remainder=r"(?:[Rr]emainder(?: of)?|[Rr]em\.?|[Rr])",
)


@lru_cache(maxsize=4096)
def spell(text: str) -> str:
    """A text in the one spelling: $\\frac{1}{2}$ as ((1)/(2)), 25 per cent as 25%, two thirds as 2/3."""
    text = dressed_down(text)
    if text.count("$") - text.count("\\$") == 1:  # no formula begins or ends here: it is money
        text = re.sub(r"(?<!\\)\$(?=\s*[\d.])", r"\\$", text)
    text = re.sub(r"^\s*\{([^{}]*,[^{}]*)\}\s*$", r"\\{\1\\}", text).replace("\\$", "¤")
    text = substituted(text, MARKUP)
    for old, new in MATRICES:
        text = old.sub(lambda found, form=new: rows(found.expand(form)), text)
    text = without_groups(text.replace("\\{", "⦃").replace("\\}", "⦄").replace("\\|", "|"))
    text = re.sub(r"\\([A-Za-z]+)", lambda found: COMMANDS.get(found[1], found[0]), text)
    text = substituted(numerals(text), WORDS)
    return re.sub(r"(?<!\.)\.$", "", text.strip(" ,;:")).strip()


def dressed_down(text: str) -> str:
    """Unicode's fractions, raised and lowered digits and wide letters as plain ones."""
    text = text.translate(PLAIN)
    text = re.sub("[¼-¾⅐-⅞]", lambda found: f" {unicodedata.normalize('NFKC', found[0])} ", text)
    for sign, signs in ("^", "[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+"), ("_", "[₀-₉]+"):
        text = re.sub(signs, lambda found, s=sign: f"{s}({unicodedata.normalize('NFKC', found[0])})", text)
    return unicodedata.normalize("NFKC", text).translate(PLAIN)


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
    """What two texts have in common that are the same but for case and blanks."""
    text = spell(text)
    text = text.casefold() if re.search("[A-Za-z]{3}", text) else text
    return re.sub(r'(?<![\d,])\s+|\s+(?!\d)|(?<=,)\s+(?!\d{3}(?!\d))|"|(?<=[a-z])-(?=[a-z])', "", text)


# ---------------------------------------------------------------- numbers in words

SMALL = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen""".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
PARTS = "half third quarter fifth sixth seventh eighth ninth tenth".split()
VALUE = {word: value for value, word in enumerate(SMALL)}
VALUE |= {word: 10 * value for value, word in enumerate(TENS, 2)}
SCALE = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9}
PART = {word: value for value, word in enumerate(PARTS, 2)} | {"hundredth": 100, "thousandth": 1000}
PART |= {f"{word}s": value for word, value in PART.items()} | {"halves": 2, "fourth": 4, "fourths": 4}
HAN = {digit: value for value, digit in enumerate("零一二三四五六七八九")} | {"两": 2, "〇": 0}
HAN_SCALE = {"十": 10, "百": 100, "千": 1000, "万": 10**4, "亿": 10**8}
WORD = f"(?i:{'|'.join([*VALUE, *SCALE])})"
ENGLISH = re.compile(
    rf"\b(?:(?:an?|\d+(?:\.\d+)?) (?=hundred|thousand|million|billion))?{WORD}"
    rf"(?:(?:[ -]|(?<=hundred) and |(?<=thousand) and ){WORD})*\b"
)
FRACTION = re.compile(rf"\b(\d+|[Aa]n?)[ -]({'|'.join(PART)})\b(?!-)(?! of\b(?! an?\b))", re.IGNORECASE)
NUMERALS = f"[{''.join([*HAN, *HAN_SCALE])}]+"
CHINESE = re.compile(rf"(?<!\d)({NUMERALS}(?:点{NUMERALS})?)(?![角边棱面次象样周定维])")
IN_WORDS = substitutions(r"""
# what is left to say of a number in digits
%之(\d+(?:\.\d+)?) ⇒ \1%
(\d+)分之(\d+) ⇒ \2/\1
(?<![\w-])half(?: an?(?= dozen| hour| million))?$|(?<![\w-])half an?(?= ) ⇒ 1/2
(?<![\w-])half (?:of )?(?=\d) ⇒ 1/2*
\b(\d+) and (?:an? )?half\b ⇒ \1 1/2
\b(\d+) and (?:an? )?(\d+/\d+) ⇒ \1 \2
""")


def numerals(text: str) -> str:
    """Number words as digits: twenty-five, two thirds, three and a half, 三分之二, 百分之二十."""
    text = ENGLISH.sub(english, text)
    text = CHINESE.sub(chinese, re.sub(r"百分之(?=[\d一-龥])", "%之", text))
    return substituted(FRACTION.sub(fraction, text), IN_WORDS)


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
    if last > 10 and whole[-2] in HAN_SCALE:
        digit *= last // 10
    places = "".join(str(HAN.get(sign, 0)) for sign in decimals)
    return f"{total + group + digit}{'.' if decimals else ''}{places}"


def fraction(found: re.Match) -> str:
    """two thirds as 2/3; 21 third is no fraction."""
    above = int(found[1]) if found[1].isdigit() else 1
    return found[0] if above > 19 and found[2][-1] != "s" else f"{above}/{PART[found[2].lower()]}"
