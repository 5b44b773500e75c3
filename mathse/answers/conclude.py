"""What a response without a statement concludes with: the value in its last sentence."""

import re

from mathse.answers.kinds import Group, Named, Words
from mathse.answers.spelling import spell
from mathse.answers.values import readable

LEADS = 12  # of a sentence that are tried, the last ones
SPAN = 400  # characters of an answer; a longer one is no answer
# Words before a statement in its sentence that make it none; of a property of the answer.
SUPPOSED = re.compile(
    r"\b(?:let (?:us|me) try|suppos\w+|assum\w+|if|imagine|pretend|let's say|unless|whether"
    r"|guess(?:ed)? that|claim\w*|(?<!clock )(?<!scale )says|said|wrote)\b"
    r"[^.!?\n]*$|(?:假设|如果|假如|若|设)[^.!?\n,]*$|\b(?:of|than|as) (?:the|this)(?: final| correct)? ?$",
    re.IGNORECASE,
)
PROSE_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}|[\u4e00-\u9fff]")
# Sentences to skip, words before and behind what a sentence concludes with.
PLEASANTRY = re.compile(
    r"i hope|i can|i am|i'm|sorry|let me know|is there anything|feel free|note\b|you should|please",
    re.IGNORECASE,
)
LEAD = re.compile(
    r"\b(?:is|are|was|were|has|have|had|be|equals?(?: to)?|needs?|takes?|took|lasts?|holds?|contains?|weighs?"
    r"|costs?|measures?|reads?|shows?|pays?|paid|gets?(?: back)?|got|bought|buys?|spends?|spent|earns?|makes?"
    r"|leaves?|gives?|gains?|travels?|walks?|becomes?|says|counts?|covers?|turns?|falls on|begins at|ends at"
    r"|starts at|and|so|thus|hence|therefore|then|get|obtain|find|that)\b,?"
    r"|[:=≈∴]|,(?!\d)|\\therefore|(?<![不并])[为是有长重宽高共在的]|等于|需要?|花了|走了|所以|因此|得到?"
)
NO_VALUE = re.compile(r",? (?:with|in(?! (?:binary|base|terms))|that|of|for|on|at|which|who)\b|, ")
DENIED = re.compile(
    r"\b(?:not|never|cannot|neither|nor|except|no longer|exclud\w*"
    r"|reject\w*|eliminat\w*|discard\w*|fails?|impossible|rules? out|too|short|cases|guesses|longer"
    r"|factorial|incorrect|wrong|other than"
    r"|maybe|perhaps|possibly|no es|nicht)\b|n't\b"
    r"|[不没未非错](?!等式)|可能",
    re.IGNORECASE,
)
CHANGED = re.compile(  # of what a value is said is no answer
    r"\b(?:half|twice|double|squared|cubed|minus|plus|reciprocal|opposite|false|bound|than the answer"
    r"|ruled out)\b"
)
DOUBT = re.compile(  # a bound, a property, a condition, an operation: no value
    r"\b(?:less|more|least|most|greater|smaller|larger|fewer|between|up to|almost|nearly|if|unless|suppose"
    r"|assume|would|could|might|may|either|instead|divide|multiply|add|subtract|figure|step|page|times"
    r"|divided|plus|minus|twice|half|double|squared?|root|cubed?|multiple|divisible"
    r"|factor|within|reciprocal|opposite|sum|product|difference|quotient|remainder|below|above|over|under"
    r"|out of|per|percent\w*|in binary|in base|answers? (?:has|have|contains?|ends?|begins?|lies?))\b"
    r"|至少|至多|大于|小于|超过|假设|如果|倍|分之|零下",
    re.IGNORECASE,
)
PROPERTY = re.compile(  # of the answer
    r"\bof (?:the|this) (?:final |correct )?answer\b"
    r"|\banswers?\b[^.]*\b(?:has|have|contains?|ends|begins|lies)\b",
    re.IGNORECASE,
)
NOTHING = re.compile(
    r"(?:ha[sv]e? )?(no (?:real )?solutions?)$|(无解|不存在|无数)"
    r"|(does not exist|is undefined|infinitely many|can(?:not|'t) be determined)\b",
    re.IGNORECASE,
)
IS_THE_ANSWER = re.compile(
    r"(?:.*[,.] |.*\b(?:so|thus|therefore|hence),? |)(.{1,80}?) (?:is|are) (?:the|our) "
    r"(?:final |correct |right )?answers?",
    re.IGNORECASE | re.DOTALL,
)
PASSIVE = re.compile(
    r"(?:(?:so|thus|therefore|hence|in total|in all|there),? )*(.{1,60}?) (?:is|are|were|was) "
    r"(?:needed|required|left|shaded|used|enough|possible|remaining|formed|sold|counted|wrong|right|correct)",
    re.IGNORECASE,
)
CLOSING = re.compile(r"(?:\$([^$]+)\$|\\\((.+?)\\\)|\*\*([^*]+)\*\*)[^$=\d]{0,20}$")
NUMERAL = r"(?:[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d{0,2}(?: \d{3})+|\d+)(?:\.\d+)?"
NUMBER = re.compile(
    r"[\d√π½¼¾零一二三四五六七八九十]"
    r"|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen|\w+ty|half|dozen"
    r"|hundred)\b"
)
GOES_ON = re.compile(
    r"[ ,]*(?:at (?:most|least)|or\b|and\b|to\b|more\b|less\b|times\b|%|percent)"
)  # not yet whole
COUNTED = [
    re.compile(rf"(?:(?:about|around|roughly) )?{NUMERAL}(?: [A-Za-z]+){{{words}}}(?= )")
    for words in (3, 2, 1)
]


def concluded_answer(text: str) -> tuple[str | None, str]:
    """The answer of a response that states none: all of a short text, or where its last sentence ends."""
    if len(text) <= SPAN and "\n" in text and readable(spell(text)) is not None:  # (1) 5 \n (2) 7
        return text, "bare"
    ends = r"(?<=[.!?])(?<!i\.e\.)(?<!approx\.)(?<!sq\.)(?<!cu\.)(?:\$\$)?\s+|\n+"
    sentences = [part.strip() for part in re.split(ends, text[-4 * SPAN :]) if part.strip()]
    while len(sentences) > 1 and PLEASANTRY.match(sentences[-1]):
        sentences.pop()
    last = re.sub(r"(?<!\.)\.$", "", sentences[-1]).strip() if sentences else ""
    if not last or len(last) > 2 * SPAN or last.endswith("?"):
        return None, "none"
    if PLEASANTRY.match(last) or SUPPOSED.search(last) or PROPERTY.search(last):
        return None, "none"
    if nothing := NOTHING.search(last):
        return next(filter(None, nothing.groups())).removeprefix("is "), "conclusion"
    reading = readable(spell(last))
    said = reading.value if isinstance(reading, Named) else reading
    short = not isinstance(said, Words) or not LEAD.search(last) and len(last.split()) <= 3
    if reading is not None and short and (len(sentences) == 1 or NUMBER.search(last)):
        return last, "bare"
    if answer := IS_THE_ANSWER.match(last):
        return answer[1], "conclusion"
    whole = sentences[-1].endswith((".", "$", ")", "*"))  # only a whole sentence concludes
    if value := concluded_value(last, whole):
        return value, "conclusion"
    said = LEAD.split(last)[-1].replace("**", "").strip()
    is_name = said and said != last and len(said.split()) <= 3 and not NUMBER.search(said)
    if is_name and not DENIED.search(last):
        return said, "conclusion"
    alone = len(sentences) == 1 and len(PROSE_WORD.findall(last)) <= 2
    return (last, "bare") if alone and len(last) <= SPAN else (None, "none")


def concluded_value(sentence: str, whole: bool) -> str | None:
    """The value that a sentence names: behind a verb to its end, in its last formula, behind a verb with more
    words to follow, or its only number with its unit."""
    affirmed = [lead for lead in LEAD.finditer(sentence) if affirms(sentence, lead)][-LEADS:]
    leads = [sentence[lead.end() :].strip(" *:") for lead in affirmed]
    for said in leads:
        if NUMBER.search(said) and is_one_answer(readable(spell(said))):
            return said
    closing = CLOSING.search(sentence) if whole else None
    if closing and not DENIED.search(sentence) and not DOUBT.search(sentence[: closing.start()][-30:]):
        return "".join(filter(None, closing.groups()))
    for said in reversed(leads):
        if not re.search(r"\bin (?:binary|base)", said) and (value := value_of(said)):
            return value
    needed = PASSIVE.fullmatch(sentence)
    if needed and NUMBER.search(needed[1]) and readable(spell(needed[1])) is not None:
        return needed[1]
    if not whole or DENIED.search(sentence) or DOUBT.search(sentence):
        return None
    return only_value(sentence)


def is_one_answer(value: object) -> bool:
    """Whether something was read, and not a value with others that have names: "8, AD = 6"."""
    if isinstance(value, Group):
        return isinstance(value.items[0], Named) or not isinstance(value.items[-1], Named)
    return value is not None


def affirms(sentence: str, lead: re.Match) -> bool:
    """Whether the clause before a value does not deny it."""
    clause = re.split(r"[,;]", sentence[: lead.end()].rstrip(" ,"))[-1]
    if DENIED.search(clause) or CHANGED.search(clause):
        return False
    return not re.search(r"[-+*/^][^=]*=$", clause)


def value_of(said: str) -> str | None:
    """The value that words begin with: "6 dots in each group" names 6 dots."""
    counted = [pattern.match(said) for pattern in COUNTED]
    for text in (NO_VALUE.split(said)[0], *(match[0] for match in counted if match)):
        goes_on = GOES_ON.match(said[len(text) :])
        if NUMBER.search(text) and not goes_on and readable(spell(text)) is not None:
            return text
    return None


def only_value(sentence: str) -> str | None:
    """The only formula of a sentence, or its only number with its unit."""
    formulas = {first or second for first, second in re.findall(r"\$([^$]+)\$|\\\((.+?)\\\)", sentence)}
    if len(formulas) == 1:
        return formulas.pop()
    numbers = [*re.finditer(rf"(?<![A-Za-z0-9_.])-?{NUMERAL}%?(?![A-Za-z0-9_])", sentence)]
    if len({number[0] for number in numbers}) != 1:
        return None
    return number_with_unit(numbers[0][0], sentence[numbers[0].end() :])


def number_with_unit(number: str, rest: str) -> str | None:
    """A number with the words behind it that are its unit; None if it goes on in a way that is not read."""
    words = re.match(r" ?[A-Za-z°%/^2³²]+(?: [a-z]+){0,2}| ?[\u4e00-\u9fff/]{1,6}", rest)
    for size in range(len(words[0]), 0, -1) if words else ():
        unit = words[0][:size]
        ends = size == len(words[0]) or "\u4e00" <= unit[-1] or not words[0][size].isalpha()
        if ends and readable(spell(number + unit)) is not None:
            return number + unit
    return None if re.match(r" ?[\u4e00-\u9fff°/*+^(]|-\d", rest) else number
