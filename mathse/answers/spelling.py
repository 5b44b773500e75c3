"""One spelling for LaTeX, ASCII and Unicode. What carries meaning is respelled, never dropped."""

import re
from functools import lru_cache

from mathse.answers.expression import FUNCTIONS, GREEK_LETTERS

CHARACTERS = str.maketrans(
    "×·⋅•∙÷∕⁄−–﹣∶⩽≦⩾≧º˚’‘“”∼𝜋⟂〈〉", "*****///---:≤≤≥≥°°''\"\"∽π⊥⟨⟩", "\u200b\u2061\u2062\u2063\ufeff"
)
# full-width forms, typographic signs; control characters become blanks
TYPOGRAPHY = {code: " " for code in range(32) if code != 10}
TYPOGRAPHY |= {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
TYPOGRAPHY |= str.maketrans("、∶−–‘’“”\u3000\xa0", ",:--''\"\"  ") | {
    ord("。"): ". ",
    0xFF0E: ".",
    ord("…"): "...",
}
TYPOGRAPHY |= {ord(sign): text for sign, text in zip("㎡㎥㎝㎜㎞㎏", ("m²", "m³", "cm", "mm", "km", "kg"))}
TYPOGRAPHY |= {0x2160 + i: text for i, text in enumerate("I II III IV V VI VII VIII IX X XI XII".split())}
TYPOGRAPHY |= {0x2460 + i: f"({i + 1})" for i in range(9)}
SUPERSCRIPTS, RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
SUBSCRIPTS, LOWERED = "₀₁₂₃₄₅₆₇₈₉", str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
FRACTIONS = zip("½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞", "12 13 23 14 34 15 25 35 45 16 56 18 38 58 78".split())
FRACTIONS = {sign: f"\\frac{{{above}}}{{{below}}}" for sign, (above, below) in FRACTIONS}
HIGH, LOW = re.compile(f"[{SUPERSCRIPTS}]+"), re.compile(f"[{SUBSCRIPTS}]+")
FRACTION = re.compile(f"[{''.join(FRACTIONS)}]")
SIMPLE = re.compile(r"-?\d{1,15}(?:\.\d+)?(?: (?:[mck]?m|k?g))?|\(?[A-Z]\)?")  # most answers: nothing to do
SIGNS = {  # LaTeX command -> sign
    "times cdot ast bullet": "*", "div": "/", "pi": "π", "infty": "∞", "cup": "∪", "cap": "∩", "pm": "±",
    "leq le leqslant": "≤", "geq ge geqslant": "≥", "neq ne": "≠", "lt": "<", "gt": ">", "approx": "≈",
    "in": "∈", "emptyset varnothing": "∅", "angle measuredangle": "∠", "triangle": "△", "parallel": "∥",
    "perp": "⊥", "cong": "≅", "sim backsim": "∽", "degree circ": "°", "Delta": "Δ", "prime": "'",
    "mid vert lvert rvert": "|", "rightarrow to": "→",
    "ldots dots cdots": "...", "colon": ":", "langle": "⟨", "rangle": "⟩", "setminus": "∖", "therefore": " ",
    "land wedge": " and ", "lor vee": " or ", "quad qquad enspace": " ", "lbrace": "⦃", "rbrace": "⦄",
}  # fmt: skip
SIGN_OF = {name: sign for names, sign in SIGNS.items() for name in names.split()}
SIGN_OF |= {prefix + name: letter for letter, name in GREEK_LETTERS.items() for prefix in ("", "var")}
SIGN_OF |= {name: f" {name} " for name in (*FUNCTIONS, "log", "lg")}
KEPT_COMMANDS = {name: f"\\{name} " for name in ("frac", "binom", "overline", "begin", "end")}
COMMAND = re.compile(r"\\([A-Za-z]+)")
DRESS = r"text|math|mbox|operatorname|boldsymbol|bold|emph|underline|pmb|tag"
TEXT = re.compile(
    rf"\\(?:{DRESS})(?:rm|bf|it|sf|bb|tt|normal|up|cal)?\*?(?![A-Za-z])\s*\{{((?:[^{{}}]|\{{[^{{}}]*\}})*)\}}"
)


def rules(*pairs: tuple[str, str]) -> list[tuple[re.Pattern, str]]:
    return [(re.compile(old), new) for old, new in pairs]


LATEX_RULES = rules(  # while commands are commands
    (r"\\right ?\.", ""),
    (r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|rm|bf)(?![A-Za-z])", ""),
    (r"\\f?boxed(?![A-Za-z])|\$\$?|(?<!\\)\\[()\[\]]|__|`|~~", " "),
    (r"(?<![\w)}])\*\*\s*([^*].*?)\s*\*\*", r"\1"),
    (r"\{,\}|(?<=\d),\\! ?(?=\d)", ","),
    (r"(?<=\d)\\,(?=\d{3})", ","),
    (r"(?<!\\)\\[,;: !>]|~", " "),
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"\\[dt]binom(?![A-Za-z])", r"\\binom"),
    (r"\\([%&#_])", r"\1"),
    (r"\^\s*(?:\{\s*(?:\\circ|\\degree|°|o)\s*\}|\\circ(?![A-Za-z])|\\degree|°)", "°"),
    (r"\^\s*(?:\{\s*((?:\\prime ?)+)\s*\}|(\\prime)(?![A-Za-z]))", r"\1\2"),
    (r"\\(?:overrightarrow|vec)\s*\{?([A-Z]{2})\}?", r"vector \1"),
    (r"\\math(?:rm|bf|it|bb) ?([A-Za-z])(?![A-Za-z])", r"\1"),
    (r"\\sqrt(?![A-Za-z])\s*", "√"),
    (r"\\(?:overline|bar)\s*\{([A-Z]{2})\}", r"\1"),
    (r"\\vec\s*\{?([a-z])\}?", r"\1"),
    (r"\\bar\s*\{(\d+)\}", r"\\overline{\1}"),
    (r"(?<=[\d}])\s*\{([A-Za-z ]{4,})\}", r" \1"),
    (r"\{([^{}]*?) ?\\over(?![A-Za-z]) ?([^{}]*)\}", r"\\frac{\1}{\2}"),
    (r"(?<=\d)\s*\\frac ?\{\s*([a-z]{1,3}(?:\^\d)?)\s*\}\{\s*([a-z]{1,3}(?:\^\d)?)\s*\}(?=\s*$)", r" \1/\2"),
    (r"(?<![A-Za-z])C_\{?(\d+)\}?\^\{?(\d+)\}?|\^\{?(\d+)\}? ?C_\{?(\d+)\}?", r"\\binom{\1\3}{\2\4}"),
    (r"(?<![A-Za-z])C\((\d+), ?(\d+)\)(?= ?[=*/+-])", r"\\binom{\1}{\2}"),
    (r"\\dot\s*\{?(\d)\}?(?:(\d*)\\dot\s*\{?(\d)\}?)?", r"\\overline{\1\2\3}"),
)
SIGN_RULES = rules(  # once they are signs
    (r"\+/-", "±"),
    (r"<=|=<", "≤"),
    (r">=", "≥"),
    (r"!=|=/=|<>", "≠"),
    (r"(?<![A-Za-z√])sqrt\s*(?=[({\d])", "√"),
    (r"(?<![A-Za-z])pi(?![A-Za-z])", "π"),
    (r"(?<![A-Za-z])(?:infinity|inf)(?![A-Za-z])", "∞"),
    (r"\+∞", "∞"),
    (r"(?<=\d) ?[x✕✖*] ?(?=10 ?\^)|(?<=\d) [xX✕✖] (?=\d)", "*"),
    (r"(?<![A-Za-z\d.])(\d+(?:\.\d+)?)[eE]([-+]?\d{1,2})(?![\d.A-Za-z])", r"\1*10^{\2}"),
    (r"\*\*", "^"),
    (r"(?:° ?|(?<=\d) ?deg(?:rees?)? )[Cc](?:elsius|entigrade)?(?![A-Za-z])|℃", "°C"),
    (r"(?:° ?|(?<=\d) ?deg(?:rees?)? )[Ff](?:ahrenheit)?(?![A-Za-z])|℉", "°F"),
    (r"\*?°+|(?<=\d)度(?!数)", "°"),
    (r"(?<=[\d)}π]) ?(?:degrees?|deg)(?![A-Za-z])", "°"),
    (r"(?<=[\d)}]) ?(?:percent(?:age)?|per cent|pct)(?![A-Za-z])(?! points?)", "%"),
    (r"\s+", " "),
    (r" ?\^ ?", "^"),
    (r"\^\{(\w)\}(?!\w)", r"^\1"),
    (r"_\{(\w)\}(?!\w)", r"_\1"),
    (r"(?<=[(\[{⦃]) | (?=[)\]}⦄,;])", ""),
)


SYSTEM = re.compile(
    r"(?:⦃ ?)?\\begin ?\{(aligned|align|gathered|cases|array)\*?\}(?:\{[lcr| ]*\})?(.*?)\\end ?\{\1\*?\}"
)


def rows_of_system(system: re.Match) -> str:
    """Equations below each other as a list; what is piecewise stays, and is not read."""
    rows = [row.replace("&", "").strip() for row in system[2].split("\\\\") if row.strip()]
    return ", ".join(rows) if all(row.count("=") == 1 and "," not in row for row in rows) else system[0]


def plain(text: str) -> str:
    """A text in plain punctuation."""
    return text.translate(TYPOGRAPHY)


@lru_cache(maxsize=4096)  # the reference answer and the options of a problem come with each of its responses
def spell(text: str) -> str:
    """A text in one spelling: operators, Greek letters and relations as single signs, √ for \\sqrt, ^2 for ²;
    money is $, a set's braces are ⦃ ⦄."""
    if SIMPLE.fullmatch(text):
        return text
    text = plain(text).translate(CHARACTERS)
    text = HIGH.sub(lambda found: f"^{{{found[0].translate(RAISED)}}}", text)
    text = LOW.sub(lambda found: f"_{{{found[0].translate(LOWERED)}}}", text)
    text = FRACTION.sub(lambda found: FRACTIONS[found[0]], text)
    if text.count("$") - text.count("\\$") == 1:  # no formula begins or ends here
        text = re.sub(r"(?<!\\)\$(?=\s*[\d.])", r"\\$", text)
    text = text.replace("\\$", "¤").replace("\\{", "⦃").replace("\\}", "⦄").replace("\\|", "|")
    for _ in range(3):
        text = TEXT.sub(r" \1 ", text)
    for old, new in LATEX_RULES:
        text = old.sub(new, text)
    text = SYSTEM.sub(rows_of_system, text)
    text = COMMAND.sub(lambda found: SIGN_OF.get(found[1]) or KEPT_COMMANDS.get(found[1], found[0]), text)
    for old, new in SIGN_RULES:
        text = old.sub(new, text)
    return trimmed(text).replace("¤", "$")


def trimmed(text: str) -> str:
    """Without the blanks, quotes and full stop around it. (5! keeps its sign, "parallel!" does not.)"""
    text = re.sub(r"(?<!\.)\.$", "", text.strip(' \n,;:*_"「」『』')).strip(' \n,;:*_"')
    text = text[1:-1] if text[:1] == text[-1:] == "'" else text
    return text[:-1] if re.search(r"[a-z]{3}!$", text) else text


LONG_WORD = re.compile("[A-Za-z]{3,}")
LOOSE_BLANKS = re.compile(r"\s+(?!\d)|(?<![\d,])\s+|(?<=,)\s+(?!\d{3}(?!\d))")


def comparable(text: str) -> str:
    """For comparing as text: words without case, and no blanks but those between digits and their commas."""
    return LOOSE_BLANKS.sub("", LONG_WORD.sub(lambda word: word[0].casefold(), text))


def split(text: str, separator: str) -> list[str]:
    """The parts of a text between separators that stand outside of brackets."""
    parts, depth, start = [], 0, 0
    for match in re.finditer(rf"(?P<open>[(\[{{⟨⦃])|(?P<close>[)\]}}⟩⦄])|{separator}", text):
        if match["open"]:
            depth += 1
        elif match["close"]:
            depth = max(0, depth - 1)
        elif depth == 0:
            parts.append(text[start : match.start()])
            start = match.end()
    return [part.strip() for part in (*parts, text[start:])]


def closes_at_end(text: str) -> bool:
    """Whether the bracket that opens a text is closed by its last character."""
    depth = 0
    for place, sign in enumerate(text):
        depth += (sign in "([{⟨⦃") - (sign in ")]}⟩⦄")
        if depth == 0:
            return place == len(text) - 1
    return False
