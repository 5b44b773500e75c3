"""What a judge's reply states behind its thinking: the last object that has a field, or lines.

json-repair reads what is nearly JSON: single quotes, quotes inside a text, commas too many or missing, names
without quotes, a cut-off end. Ours is the strict part: nothing that it would smooth over decides, neither a
value cut off, nor a name that stands twice, nor one of two alternatives. No text raises.
"""

import itertools
import json
import re
from typing import NamedTuple

import json_repair

MAX_OBJECT = 6000  # characters from the first object on: json-repair takes 2 s at worst, with their square
REPLY_SCHEMA = {  # of an ORM's verdicts: a server that takes one keeps replies to it
    "type": "object",
    "properties": {
        "status": {"type": "string", "enum": ["CORRECT", "WRONG"]},
        "error_step": {"type": ["string", "null"]},
        "error_analysis": {"type": ["string", "null"]},
    },
    "required": ["status", "error_step", "error_analysis"],
    "additionalProperties": False,
}
THINKING = re.compile(  # the marks around what a model thinks first; one that ends it has a group
    r"[<◁]\|?(?:begin_of_|(/|end_of_))?(?:\w{1,20}:)?"
    r"(?:think|thinking|thoughts?|reasoning|analysis|scratchpad)"
    r"\|?[>▷]|\[(/)?THINK\]|<\|channel\|>(?:analysis|(final))",
    re.IGNORECASE,
)
# Marks of a model's turns and placeholders, by their form, for no list names those of every family. None of
# them: what stands around a thought or a part of a reply, as <|begin_of_box|>.
MARK = re.compile(
    r"<[|｜](?!\w*(?:box|quad|ref|thought|think|solution|channel))[A-Za-z][^\s<>|｜]{1,40}[|｜]>"
    r"|</?s>|</?(?:image|img|video)>"
    r"|<(?:eos|bos|pad|unk|eo[adtm]|end|end_of_[a-z]+|start_of_turn|turn\||\|turn)>"
    r"|<IMG_CONTEXT>|<fake_token_around_image>|\[/?(?:INST|EOS|PAD|SEP|UNUSED_TOKEN_\d+|end of text)\]",
    re.IGNORECASE,
)
ENDS = (  # those with which a turn ends or the next one begins
    r"<[|｜](?:im_end|im_sep|im_start|start_header_id|user|observation|return|(?:assistant|message|turn)_end"
    r"|eo[adestm](?:_id|_token)?|end(?:[_▁]?of[_▁]?(?:text|turn|sentence|utterance|message|msg|document"
    r"|prompt|response|sequence)(?:_token)?)?)[|｜]>"
    r"|</s>|<(?:eos|eo[adtm]|end_of_(?:turn|utterance)|start_of_turn|turn\|)>|\[INST\]"
)
END = re.compile(  # ... if it stands right behind what is said, or if another one follows
    rf"(?:(?<=[^ \t(\[{{\"'`“‘:=,])(?:{ENDS})|(?:{ENDS})(?=\s*(?:{MARK.pattern})))"
    r"(?!\s*<\|start\|>assistant)",
    re.IGNORECASE,
)
LAST_MARK = re.compile(rf"(?:{MARK.pattern})\Z", re.IGNORECASE)
# What json-repair carries through: a number behind each name, an apostrophe that is no quote.
NUMBER, APOSTROPHE = re.compile("⸢[0-9]+⸣"), "⸥"
# `*+` gives nothing back, so that no text takes long
NAME = re.compile(r"""(?<!\\)(["']?)(?<!\w)([A-Za-z_][\w \-]{0,40}+)(\1\s*+:)""")
OBJECT = re.compile(rf"(?<!\\)\{{\s*+(?={NAME.pattern})")
ALTERNATIVE = re.compile(r"\}\s*+(?:or|[,/|])\s*+\{[^{}]*+\Z")  # behind an object, up to another's first name
WORD = re.compile(  # behind a name: a text that is closed, and then the next name, or an end
    r"""["']?\s*+:\s*+(?:(["'])([^"'\\{}\[\]]*)\1\s*+(?:\Z|```|(?=[,}]|["']?[\w \-]+⸢))"""
    r"""|(\w+)\s*+(?=[,}\n]|["']?[\w \-]+⸢))"""
)
LINE = re.compile(r"^[^\w\n{]{0,9}([A-Za-z][\w ]{0,40}+)[^\w\n]{0,9}:[^\w\n]{0,9}(.*)", re.MULTILINE)
# Commands whose backslash and first letter would also be a line feed or a tab. Not \ni: `i` on a new line.
LATEX = (
    r"(?:n(?:abla|cong|e|earrow|eg|eq|ewline|exists|geq|leq|mid|ot|otin|parallel|rightarrow|sim|subseteq|u"
    r"|warrow)|to|[tr][a-z]{2,})(?![A-Za-z])"
)
ESCAPE = re.compile(rf"\\(?:(u[0-9a-fA-F]{{4}}|[\"'\\]|(?!{LATEX})[ntr])|(/))?")
NO_TEXT = {"", "-", "-1", "n/a", "na", "nil", "none", "null", "no error", "no errors", "[]", "{}", "false"}


class Stated(NamedTuple):
    """What a reply states. Names of fields are in lower case, letters and digits alone."""

    words: list[str]  # of each field of the name that was asked for; "" where it is no text, or not certain
    fields: list[tuple[str, object]]

    def text(self, name: str) -> str | None:
        """The first text of a field; what a list or an object holds is joined. None if it says "none"."""
        texts = (unmarked(", ".join(texts_in(value))) for field, value in self.fields if field == name)
        return next((text for text in texts if text.strip(" .").lower() not in NO_TEXT), None)


def verdict_text(status: str, error_step: str | None = None, error_analysis: str | None = None) -> str:
    """A verdict in the form that 04 teaches an ORM."""
    verdict = {"status": status, "error_step": error_step, "error_analysis": error_analysis}
    return json.dumps(verdict, ensure_ascii=False)


def without_end(reply: str) -> str:
    """A reply without the marks with which the server of any model ends it, and what was written behind them,
    as the next turn.
    """
    struck = reply.find("<s>")  # then </s> is HTML
    ends = (end for end in END.finditer(reply) if end[0] != "</s>" or not 0 <= struck < end.start())
    end = next(ends, None)
    kept = reply[: end.start()] if end else reply
    while mark := LAST_MARK.search(kept.rstrip(), max(0, len(kept.rstrip()) - 50)):
        kept = kept[: mark.start()]
    return reply if kept == reply else kept.rstrip()


def ended(reply: str, finish: str) -> tuple[str, str]:
    """(without_end(reply), how it finished): what its server went on writing behind an end is not cut off."""
    said = without_end(reply)
    return said, "stop" if said != reply and finish == "length" else finish


def thought_end(reply: str) -> int | None:
    """The place where a model has thought to the end and replies; None if it still thinks."""
    marks = list(THINKING.finditer(reply))
    if marks and not any(marks[-1].groups()):
        return None
    return marks[-1].end() if marks else 0


def opened_thought(head: str) -> str:
    """The mark with which a generation prompt opens a thought, inside which replies begin; "" if none."""
    marks = [mark for mark in THINKING.finditer(head) if mark.end() == len(head.rstrip())]
    return marks[-1][0] if marks and not any(marks[-1].groups()) else ""


def last_object(reply: str, name: str) -> Stated:
    """The last object behind the thinking that has a field `name`, with those to which it is an alternative;
    of a reply without objects its lines (**Status:** WRONG). An object inside another one is not the reply's.
    """
    place = thought_end(reply)
    begin = None if place is None else OBJECT.search(reply, place)
    if place is None or (begin and len(reply) - begin.start() > MAX_OBJECT):
        return Stated([], [])
    if not begin:
        lines = [(plain(line[1]), line[2].strip(" \r\"',*")) for line in LINE.finditer(reply, place)]
        return Stated([text for field, text in lines if field == name], lines)
    text = marked(reply[begin.start() :])
    try:
        objects = json_repair.loads(text)
    except (ValueError, RecursionError):  # nested too deep
        objects = []
    last, start = [], 0
    for found in reversed(objects if isinstance(objects, list) else [objects]):
        if isinstance(found, dict) and name in map(plain, found):
            last, start = [found, *last], max(text.find(next(iter(found))) - 1, 0)
            if not ALTERNATIVE.search(text, 0, start):
                break
    fields = [(plain(key), value) for found in last for key, value in found.items()]
    return Stated(words_of(last, name, text, start), fields)


def words_of(objects: list[dict], name: str, text: str, start: int) -> list[str]:
    """What the fields `name` of objects say, which begin at `start` in a marked text: "" for all but a closed
    text or a bare word, and "" more if another object may have begun inside."""
    words, is_certain = [], True
    for found in objects:
        ends = {key: text.find(key) + len(key) for key in found if NUMBER.search(key)}
        said = [WORD.match(text, ends[key]) if key in ends else None for key in found if plain(key) == name]
        words += [(word[2] or word[3] or "") if word else "" for word in said]
        is_certain &= len({text[end] for end in ends.values()}) == 1  # else prose was taken for a name
    known = re.findall(r'(?<!\\)"[\w \-]*(⸢[0-9]+⸣)": ', json.dumps(objects, ensure_ascii=False))
    told = re.findall(rf"[\"']{name}\W*(⸢[0-9]+⸣)[\"']", text[start:], re.IGNORECASE)
    return words if is_certain and {*told} <= {*known} else [*words, ""]


def marked(text: str) -> str:
    """A text for json-repair in which no two names are alike, and LaTeX is escaped."""
    count = itertools.count()
    text = re.sub(r"(?<=\w)'(?=\w)", APOSTROPHE, re.sub("[⸢⸣⸥]", "", text))
    return NAME.sub(lambda match: f"{match[1]}{match[2]}⸢{next(count)}⸣{match[3]}", escaped(text))


def escaped(text: str) -> str:
    """A text of quoted texts in which the backslashes of LaTeX are doubled, and those of escapes are not."""
    return ESCAPE.sub(lambda match: match[2] or (match[0] if match[1] else r"\\"), text)


def unmarked(text: str) -> str:
    """The text without the marks; two halves of a character become one, a half alone becomes U+FFFD."""
    text = NUMBER.sub("", text).replace(APOSTROPHE, "'").strip()
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def plain(name: str) -> str:
    return re.sub(r"[\W_]", "", NUMBER.sub("", name)).lower()


def texts_in(value: object) -> list[str]:
    """The texts of a value, however deep, with their marks."""
    if isinstance(value, (list, dict)):
        parts = value.values() if isinstance(value, dict) else value
        return [text for part in parts for text in texts_in(part)]
    return [] if value is None else [str(value)]
