"""Find the final answer of a response: which of its words are the answer, as written. The last statement
counts.
"""

import re

TAIL = 8000  # characters of a response that are read: its final answer stands at the end
SPAN = 400  # characters of an answer; a longer one is no answer
PARTS = 12  # parts of an answer: two sets of this size take 144 comparisons

# digits, with commas or blanks between thousands
INTEGER = r"(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d+)"

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
# For a response that states no answer: sentences to skip, verbs before a conclusion, words after its value.
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
VAGUE = re.compile(  # words before a value
    r"^(?:(?:so|thus|hence|therefore|then|simply|just|approximately|about|around|roughly|exactly"
    r"|equal to|it is|given by|因此|所以|即|故|则|约为?|大约|∴|\\therefore|≈|=|:)[\s,:]*)+",
    re.IGNORECASE,
)


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
