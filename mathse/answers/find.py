"""Find the final answer of a response: its last statement that is not denied, supposed or taken back."""

import re
from functools import lru_cache

from mathse.answers.read import read
from mathse.answers.spell import spell
from mathse.answers.tables import pattern, rules, substituted, words
from mathse.answers.values import Many, Named, Quantity, Words

TAIL = 8000  # characters of a response that are read: its answer stands at the end
SPAN = 400  # characters of an answer
STATEMENTS = 40  # that are looked at, the last ones
BOXES = 12  # of one answer
LEADS = 12  # of a sentence that are tried, the last ones

FORMS = {  # the rule of an answer that is stated: what it is stated with
    "boxed": r"\\(?:f?boxed|fbox)\s*\{",
    "field": r"\"(?:(?:final|short)[_ ])?answer\"\s*:\s*\"?",
    "tag": r"<(?:final_)?answer>(?::? ?<<)?",
    "answer_line": words("answer line"),
    "choice": words("choice"),
}


def is_stated(rule: str) -> bool:
    """Whether an answer was stated as one; a bare value and what prose concludes with were not."""
    return rule == "sentence" or rule.replace("-", "_") in FORMS


@lru_cache(maxsize=8)
def statements(closing: str) -> re.Pattern:
    """Of what a final answer is stated with; the name of a match's group is its rule."""
    forms = {"sentence": re.escape(closing).replace(r"\ ", r"\s+")} if closing.strip() else {}
    named = (f"(?P<{rule}>{form})" for rule, form in (forms | FORMS).items())
    return re.compile("|".join(named), re.IGNORECASE)


CLAUSE = r"[^.!?\n,;。，；\\]{0,30}$"
DENIED, OTHERS = pattern("denying", behind=CLAUSE), pattern("of another", behind=CLAUSE)  # before a statement
OWN = pattern("own", behind=r" *$")  # the answer; another word before it makes it another's
SUPPOSED, PART_OF = pattern("supposition", "saying", behind=r"[^.!?\n]*$"), pattern("part of")
DENIED_BEHIND, TAKEN_BACK = pattern("denied behind"), pattern("retraction")
INSTEAD = pattern("instead", behind=r" ?([^\n]{1,60}?)[.!。\n]?\s*$")
IN_FORMULA, GOES_ON = pattern("in a formula", behind=r"\Z"), pattern("goes on")


def holds(text: str, found: re.Match) -> bool:
    """Whether a statement is not denied, supposed or another's, nor a box that is a part of a formula."""
    if found.lastgroup in ("tag", "field"):
        return True
    before = text[max(0, found.start() - SPAN) : found.start()]
    if SUPPOSED.search(before) or DENIED.search(before[-60:]):
        return False
    if found.lastgroup == "boxed":
        close = braced(text, found.end())
        return not IN_FORMULA.search(before[-60:]) and not (close and GOES_ON.match(text[close + 1 :][:40]))
    has_word = re.search(r"[A-Za-z'] $", before) and found[0].lower().startswith("answer")
    if has_word and not OWN.search(before):  # the wrong answer is
        return False
    return (
        not OTHERS.search(before)
        and not PART_OF.search(before)
        and not DENIED_BEHIND.match(text, found.end())
    )


CLEANING = rules("response", re.DOTALL | re.IGNORECASE | re.MULTILINE)
LEADING = re.compile(r"[\s*:：\"_]*(?:(?<=\n)[-•] )?(?:(?:\$\$|\\\[|\$)\s*\n\s*)?")
LISTED = re.compile(r"[ *:：]*((?:\n+ *[-*•] [^\n]{1,60}){2,12})(?=\n\n|\s*$)")  # an answer a line
END = pattern("end")
QUOTED = re.compile(r"(?:[^\"\\\n]|\\.)*")
APART = pattern("apart")
LABELLED = re.compile(r"\(([1-9a-h])\)\W*$|\b([a-zA-Z])\s*=\s*\$?$")  # (1) or x = before a box
UNIT_BEHIND = pattern("unit behind")


def clean(response: str) -> str:
    """A response's end, without its thoughts and special tokens; nothing if the thoughts never end."""
    return substituted(response[-TAIL:], CLEANING).strip()


def find_answer(response: str, closing: str = "") -> tuple[str | None, str]:
    """(the final answer as written, the rule that found it), or (None, "none").

    The last statement counts; when it is empty, never closed or taken back there is no answer. What follows
    `closing` is a statement too. Without a statement it is a short response itself, "bare", or what the last
    sentence concludes with, "conclusion"."""
    text = clean(str(response))
    found = list(statements(closing).finditer(text))[-STATEMENTS:]
    held = [statement for statement in found if holds(text, statement)]
    if not held:
        return (None, "none") if found else conclusion(text)
    last = held[-1]
    if last.lastgroup == "boxed":
        span, end = boxes(text, held)
    elif last.lastgroup == "field":
        quoted = QUOTED.match(text, last.end())
        span, end = quoted[0].rstrip("}"), quoted.end()
    else:
        span, end = sentence(text, last.end())
    span = re.sub(r"(?<!\\)\\$|(?<!\.)\.$", "", span.strip(' \n*_"`,;:．')).strip()
    if TAKEN_BACK.search(text, last.end()):
        instead = INSTEAD.search(text, last.end())
        span = instead[1].strip(" *_") if instead else ""
    if not span or len(span) > SPAN:
        return None, "none"
    return span, last.lastgroup.replace("_", "-")


def sentence(text: str, start: int) -> tuple[str, int]:
    """(a text from where a statement ends to the end of its sentence, where that is)"""
    if listed := LISTED.match(text, start):
        return ", ".join(line.strip(" -*•") for line in listed[1].strip().split("\n")), listed.end()
    begin = LEADING.match(text, start).end()
    at, limit = begin, begin + 4 * SPAN
    if text[start:begin].count("\n") > 3:
        return "", begin
    while match := END.search(text, at, limit):
        said, behind = text[begin : match.start()], text[match.start() :][:20]
        is_listed = said.lstrip().startswith("(1)") and re.match(r"[.;\s]*\([2-9]\)", behind)
        is_letter = match[0] == "." and re.fullmatch(r"[\W_]*[A-Z]", said)  # the point of "B. 12"
        if not is_listed and not is_letter and said.strip(" $*\\[("):
            return ("" if match[0] == "?" else said), match.start()
        at = match.end()
    return text[begin:limit], len(text)


def braced(text: str, start: int) -> int | None:
    """Where the brace that is open at `start` closes."""
    depth = 1
    for brace in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if not depth:
            return brace.start()
    return None


def boxes(text: str, held: list[re.Match]) -> tuple[str, int]:
    """(the last box, or those that a response ends with: (1) … (2) …, \\boxed{2} and \\boxed{3}; its end)"""
    found, start = [], len(text)
    for match in reversed(held[-BOXES:]):
        close = braced(text, match.end()) if match.lastgroup == "boxed" else None
        if close is None or close > start:
            break
        label = LABELLED.search(text[max(0, match.start() - 20) : match.start()])
        between = text[close + 1 : start].strip(" \n$")
        if found and (len(between) > 40 or APART.search(between)) and not (label and found[0][1]):
            break
        found.insert(0, (text[match.end() : close], label))
        start = match.start()
    if not found:
        return "", len(text)
    end = braced(text, held[-1].end()) + 1
    if len(found) == 1:
        return with_unit(found[0][0], text, end)
    if all(label for _, label in found):
        named = [f"({label[1]}) {box}" if label[1] else f"{label[2]} = {box}," for box, label in found]
        return " ".join(named).strip(","), end
    alternative = re.search(r"\bor\b", text[held[-2].end() : held[-1].start()])
    return (" or " if alternative else ", ").join(box for box, _ in found), end


def with_unit(box: str, text: str, end: int) -> tuple[str, int]:
    """(a box with the unit that stands behind it, where that ends)"""
    behind = UNIT_BEHIND.match(text[end : end + 40])
    value = read(spell(f"{box} {behind[1]}")) if behind else None
    if isinstance(value, Quantity) and value.dims and not value.dims[0][0].startswith("#"):
        return f"{box} {behind[1]}", end + behind.end()
    return box, end


# ---------------------------------------------------------------- what prose concludes with

NO = pattern("denial", "doubt", "supposition", "change", "too")
VAGUE = pattern("bound", "change", "doubt", "operation", "vague")
LEAD = pattern("lead", behind=",?")
NOTHING, PLEASANTRY, DONE = pattern("nothing"), pattern("pleasantry", "check"), pattern("done")
CHECK = pattern("check", before=r"\n\W*", behind=r"(?:(?!\n\n).)*\Z")  # a last paragraph
PROPERTY = re.compile(r"(?i)\banswers?\b(?! choice|\W*$)")  # something is said of the answer, or of another
SENTENCES = re.compile(r"(?<=[.!?])(?<!i\.e\.)(?<!sq\.)(?<!cu\.)(?:\$\$)?\s+|(?<=。)|\n+")
ANSWER = r" (?:is|are) (?:the|our) (?:correct |final |right )?answers?$"
IS_THE_ANSWER = pattern("hence", before="(?:.*[,.] |.*", behind=rf",? |)(.{{1,80}}?){ANSWER}")
FORMULA = re.compile(r"(?:\$\$?([^$]+)\$\$?|\\\((.+?)\\\)|\*\*([^*]+)\*\*)[^$=\d]{0,20}$")  # at the end
PASSIVE, REASON, CLAUSES = pattern("passive"), pattern("reason"), pattern("between clauses")
NUMERAL, DIGIT = pattern("numeral"), pattern("digit")
NOUNS = re.compile(r" ?[A-Za-z°%/^2³²]+(?: [a-z]+){0,2}| ?[\u4e00-\u9fff/]{1,6}")


def conclusion(text: str) -> tuple[str | None, str]:
    """(all of a short response, "bare", or the value that its last sentence names, "conclusion")"""
    if check := CHECK.search(text):
        text = text[: check.start()] if not TAKEN_BACK.search(check[0]) else ""
    if len(text) <= SPAN and "\n" in text and isinstance(read(spell(text)), Many):
        return text, "bare"
    sentences = [part.strip() for part in SENTENCES.split(text[-4 * SPAN :]) if part.strip()] or [""]
    while len(sentences) > 1 and PLEASANTRY.match(sentences[-1]):
        if TAKEN_BACK.search(sentences.pop()):
            return None, "none"
    last = re.sub(r"(?<!\.)[.。．]$", "", sentences[-1]).strip()
    none = SUPPOSED.search(last) or PLEASANTRY.match(last) or last.endswith("?") or len(last) > 2 * SPAN
    answer = None if none else IS_THE_ANSWER.match(last)
    if answer or none or not last or PROPERTY.search(last):
        return (answer[1], "conclusion") if answer else (None, "none")
    value = None if NOTHING.search(last) else read(spell(last))
    if value is not None and (not isinstance(value, Words) or len(last.split()) <= 3):
        return last, "bare"
    said = value_in(last, whole=sentences[-1][-1] in ".。$)*．")
    return said, "conclusion" if said else "none"


def value_in(last: str, whole: bool = False) -> str | None:
    """What a sentence names: behind a verb to its end, its last formula or only number. `whole`: it ends."""
    if (nothing := NOTHING.search(last)) and not NO.search(CLAUSES.split(last[: nothing.start()])[-1]):
        return nothing[0]
    last = REASON.sub("", last)
    for lead in list(LEAD.finditer(last))[-LEADS:]:
        clause = re.split(r"[,;，]", last[: lead.end()].rstrip(" ,"))[-1]
        said = last[lead.end() :].strip(" *:")
        if NO.search(clause):
            continue
        value = read(spell(said))
        if value is None and (done := PASSIVE.search(said)) and not VAGUE.search(done[0]):
            said = said[: done.start()].strip(" *")  # 8 boats are needed
            value = read(spell(said))
        if isinstance(value, Words) and not re.search(r"\d", said):  # and no date
            value = None if len(said.split()) > 3 or DIGIT.search(clause) or DONE.search(said) else value
        if isinstance(value, Many) and isinstance(value.items[-1], Named):  # 9, and the next is 34
            value = value if isinstance(value.items[0], Named) else None
        if value is not None and not contradicts(clause, said):
            return said
    if NO.search(last):
        return None
    if (formula := FORMULA.search(last)) and not VAGUE.search(last[: formula.start()][-30:]):
        value = "".join(filter(None, formula.groups()))
    else:
        value = None if VAGUE.search(last) else only_number(last) or only_number(spell(last))
    return value if value and (whole or last.rstrip(" $*)\\").endswith(value)) else None


def contradicts(clause: str, said: str) -> bool:
    """Whether a clause that ends with = or ≈ has another number in front of it: 7/2 ≈ 3."""
    left = re.split("[=≈]", clause)[-2] if clause[-1] in "=≈" else ""
    values = [read(spell(side)) for side in (left, said)]
    are_numbers = all(isinstance(value, Quantity) and value.is_number for value in values)
    return are_numbers and read(spell(f"{left}{clause[-1]}{said}")) is None


def only_number(text: str) -> str | None:
    """The only number of a sentence, with as many of the words behind it as are its unit."""
    numbers = list(NUMERAL.finditer(text))
    if len({number[0] for number in numbers}) != 1:
        return None
    number, rest = numbers[0][0], text[numbers[0].end() :]
    words = NOUNS.match(rest)
    for size in range(len(words[0]), 0, -1) if words else ():
        ends = size == len(words[0]) or not words[0][size].isalpha()
        if ends and read(spell(number + words[0][:size])) is not None:
            return number + words[0][:size]
    return None if re.match(r" ?[\u4e00-\u9fff°/*+^(]|-\d", rest) else number
