"""What a model's reply states behind its thinking: objects that are meant as JSON, or lines.

As it is meant are read: single quotes, quotes and apostrophes inside a text, commas too many or missing,
unquoted names and words, Python's None, a cut-off end, and LaTeX whose backslashes nobody escaped. Nothing is
evaluated, no text raises, and the time is linear in its length.
"""

import json
import re
from typing import NamedTuple

THINKING = re.compile(  # the marks around what a model thinks first; one that ends it has a group
    r"[<◁]\|?(?:begin_of_|(/|end_of_))?(?:\w{1,20}:)?(?:think|thinking|thoughts?|reasoning|analysis|scratchpad)"
    r"\|?[>▷]|\[(/)?THINK\]|<\|channel\|>(?:analysis|(final))",
    re.IGNORECASE,
)
FIELD_NAME = r"""(?:"[\w \-]{1,40}"|'[\w \-]{1,40}'|[A-Za-z_]\w{0,40}+)\s*+:"""
# Where a quote ends a text: before the end of the object, of the reply or of a fence, or before the next name
# (perhaps cut off). Any other quote is part of the text, as in 'the triangle's side'. `*+` and `++` give
# nothing back, so that no text takes long.
ENDS = rf"\s*+(?:,\s*+)?+(?:[}}\]]|\Z|```|{FIELD_NAME}|[\"'][\w \-]{{0,40}}[\"']?\Z)"
NESTED_ENDS = rf"{ENDS}|\s*+(?::|,\s*+(?:[\"'\[{{\d-]|null|None|true|True|false|False))"


def text_in(quote: str, ends: str) -> str:
    """The pattern of a text in quotes: its content, and its closing quote if it is not cut off.

    An object that begins inside in the same quotes, unescaped, cuts it off too.
    """
    inner = rf"[^{quote}\\{{]++|\\(?:.|\Z)|\{{(?!\s*+{quote}\w{{1,40}}{quote}\s*+:)|{quote}(?!{ends})"
    return rf"{quote}((?:{inner})*+)({quote})?+"


BARE = r"""[^\s,{}\[\]"'][^,{}\[\]"'\n]*+"""
BARE_WORD = re.compile(BARE)
OBJECT = re.compile(rf"(?<!\\)\{{\s*+(?={FIELD_NAME})")
OBJECT_END = re.compile(r"[\s,]*+\}")
FIELD = re.compile(rf"[\s,]*+({FIELD_NAME})\s*+")
QUOTED = {quote: re.compile(text_in(quote, ENDS), re.DOTALL) for quote in "\"'"}
NESTED_TEXT = {quote: re.compile(text_in(quote, NESTED_ENDS), re.DOTALL) for quote in "\"'"}
NESTED = re.compile(rf"[\s,:]*+([\[\]{{}}\"']|{BARE})")
# Commands whose backslash and first letter would also be a line feed or a tab. Not \ni: `i` on a new line.
LATEX_COMMANDS = (
    r"(?:n(?:abla|cong|e|earrow|eg|eq|ewline|exists|geq|leq|mid|ot|otin|parallel|rightarrow|sim|subseteq|u"
    r"|warrow)|t(?:an|anh|ag|au|ext[a-z]*|frac|heta|herefore|ilde|imes|o|op|riangle[a-z]*)|r[a-z]+)"
    r"(?![A-Za-z])"
)
ESCAPE = re.compile(rf"\\(?:u([0-9a-fA-F]{{4}})|({LATEX_COMMANDS})|(.))", re.DOTALL)
ESCAPED = {"n": "\n", "t": "\t", "r": "\r"} | {char: char for char in "\"'\\/"}


class Field(NamedTuple):
    name: str  # letters and digits only, in lower case: "Error_Step" is errorstep
    value: str | list[str] | None  # a list: the texts of a list or an object
    start: int  # the value's place in the reply
    end: int
    whole: bool  # not cut off


class Found(NamedTuple):
    fields: list[Field]  # of the object itself, not of what is nested in it
    start: int
    end: int
    whole: bool

    def names(self) -> set[str]:
        return {field.name for field in self.fields}


def verdict_text(status: str, error_step: str | None = None, error_analysis: str | None = None) -> str:
    """A verdict in the form that 04 teaches an ORM, and that 02 foresees."""
    verdict = {"status": status, "error_step": error_step, "error_analysis": error_analysis}
    return json.dumps(verdict, ensure_ascii=False)


def thought_end(reply: str) -> int | None:
    """The place where a model has thought to the end and replies; None if it still thinks."""
    marks = list(THINKING.finditer(reply))
    if marks and not any(marks[-1].groups()):
        return None
    return marks[-1].end() if marks else 0


def find_lines(text: str, place: int, names: str) -> list[Field]:
    """Fields that stand in lines, as in **Status:** WRONG; `names` is a pattern, a space also for `_`."""
    name = names.replace(" ", "[ _]?")
    line = re.compile(rf"^[^\w\n]{{0,9}}({name})[^\w\n]{{0,9}}:[^\w\n]{{0,9}}(.*)", re.IGNORECASE | re.M)
    return [
        Field(plain_name(found[1]), found[2].strip(" \r\"',*"), *found.span(2), True)
        for found in line.finditer(text, place)
    ]


def plain_name(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def find_objects(text: str, place: int = 0) -> list[Found]:
    """The objects in a text from `place` on, in order; an object in a list counts, one in an object does
    not."""
    found = []
    while begin := OBJECT.search(text, place):
        fields, place = [], begin.end()
        while name := FIELD.match(text, place):
            value, span, whole, place = read_value(text, name.end())
            fields.append(Field(plain_name(name[1]), value, *span, whole))
        end = OBJECT_END.match(text, place)
        place = end.end() if end else place
        found.append(Found(fields, begin.start(), place, bool(end)))
    return found


def read_value(text: str, place: int) -> tuple[str | list[str] | None, tuple[int, int], bool, int]:
    """(value, its span, whether it is whole, the place behind it) of the value at `place`."""
    first = text[place : place + 1]
    if first and first in "[{":
        values, whole, end = read_nested(text, place)
        return values, (place, end), whole, end
    if first in QUOTED:
        found = QUOTED[first].match(text, place)
        return unescape(found[1]), found.span(1), bool(found[2]), found.end()
    if found := BARE_WORD.match(text, place):
        return bare(found[0]), found.span(), found.end() < len(text), found.end()
    return None, (place, place), False, place


def read_nested(text: str, place: int) -> tuple[list[str], bool, int]:
    """(its texts, whether it is whole, the place behind it) of a list or an object, however deep."""
    values, depth = [], 0
    while found := NESTED.match(text, place):
        token, place = found[1], found.end()
        if token in "[{":
            depth += 1
        elif token in "]}":
            depth -= 1
        elif token in QUOTED:
            found = NESTED_TEXT[token].match(text, place - 1)
            place = found.end()
            is_name = text[place : place + 20].lstrip().startswith(":")
            values += [] if is_name else [unescape(found[1])]
        elif (value := bare(token)) is not None:
            values.append(value)
        if not depth:
            return values, True, place
    return values, False, place


def bare(word: str) -> str | None:
    """A value without quotes: a number or a word."""
    return None if word.strip() in ("null", "None") else word.strip()


def unescape(text: str) -> str:
    """A text as JSON means it, except that `\\times`, `\\neq` and the like stay LaTeX; half a surrogate pair
    becomes U+FFFD."""

    def plain(match: re.Match) -> str:
        if match[1]:
            return chr(int(match[1], 16))
        return match[0] if match[2] else ESCAPED.get(match[3], match[0])

    text = ESCAPE.sub(plain, text)
    if re.search(r"[\ud800-\udfff]", text):  # two halves become the character that they are
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


ALTERNATIVES = re.compile(r"\s*(?:or|[,/|])\s*")  # between two objects, of which then neither is the last
NO_STEP = {"", "-", "-1", "n/a", "na", "nil", "none", "null", "no error", "no errors", "[]", "{}", "false"}
WORDS = {"CORRECT": "correct", "WRONG": "wrong", "INCORRECT": "wrong"}


def drafts_of_verdict(response: str) -> tuple[str, ...]:
    """How the verdict of an ORM that 04 has trained may begin: CORRECT, or WRONG with a line of the response.
    What is fixed in it, or copied, need not be decoded token by token. The analysis stays open.
    """
    lines = response.split("\n")[:100]
    return verdict_text("CORRECT"), *(verdict_text("WRONG", line, "")[: -len('"}')] for line in lines)


def read_fields(reply: str) -> list[Field]:
    """The fields of the last object that has a status, behind all thinking. A status inside another object,
    or quoted in a text, is not the reply's."""
    place = thought_end(reply)
    if place is None:
        return []
    objects = find_objects(reply, place)
    if not objects:
        return find_lines(reply, place, "status|error step|error analysis")
    stated = [found for found in objects if "status" in found.names()]
    if not stated:
        return []
    last = stated.pop()
    fields = list(last.fields)
    while stated and is_one_statement(stated[-1], last, reply):
        last = stated.pop()
        fields += last.fields
    return fields


def is_one_statement(first: Found, second: Found, reply: str) -> bool:
    """Whether neither of two objects has the last word: alternatives, or a first that breaks off."""
    between = reply[first.end : second.start]
    return bool(ALTERNATIVES.fullmatch(between)) or not (first.whole or between.strip())


def status_of(fields: list[Field]) -> str:
    """The verdict that every field `status` gives in one word."""
    values = [field.value if field.whole else None for field in fields if field.name == "status"]
    words = [value.strip(" \t\r\n.!*") if isinstance(value, str) else "" for value in values]
    verdicts = {WORDS.get(word.upper(), "undecided") for word in words}
    return verdicts.pop() if len(verdicts) == 1 else "undecided"


def field_text(fields: list[Field], name: str) -> str | None:
    """The text of the first field of this name that has one; what a list or an object holds is joined."""
    for field in fields:
        if field.name == name and field.value is not None:
            text = ", ".join(field.value) if isinstance(field.value, list) else field.value.strip()
            if text.strip(" .").lower() not in NO_STEP:
                return text
    return None
