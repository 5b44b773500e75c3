"""Find the final answer of a response: which of its words are the answer, as written. The last statement
counts; what is supposed, denied, asked or taken back is none.
"""

import re

from mathse.answers.conclude import SPAN, SUPPOSED, concluded_answer
from mathse.answers.spelling import plain

TAIL = 8000  # characters of a response that are read: its final answer stands at the end
BOXES = 12  # of one answer
CLAUSE = 60  # characters before a statement that may deny it

# Where a final answer is stated, by rule. The last match counts.
IS = r"(?:\s*:|\s*=|\s+(?:is|are|was|should be|must be|would be|will be)\b:?)"
STATEMENTS = re.compile(
    rf"(?P<sentence>the answer to this problem\**{IS})"
    r"|(?P<field>\"(?:final[_ ])?answer\"\s*:\s*\"?)"
    rf"|(?P<answer_line>\banswers?\b\**"
    rf"(?:\s+(?:to|of|for)\b[^.:\n]{{0,60}}?|\s+(?:choice|option|letter|here|therefore))?{IS}"
    r"|<(?:final_)?answer>|\n?#{1,6} {0,3}(?:final )?answers?\b|\*\*(?:final )?answer\*\*|(?:^|\n)####(?!#) ?"
    r"|\b(?:antwort|réponse(?: finale)?|respuesta(?: final)?|risposta|resposta|ответ)"
    r"(?:\s*:| (?:lautet|ist|est|es|è)\b))"
    rf"|(?P<choice>\b(?:correct|right|best) (?:option|choice)\b[^.:\n]{{0,30}}?{IS}"
    r"|\bcorresponds to (?:choice|option)\b|故\s?选(?:择|项)?|[应所此]以?选(?!项)|本题选(?:择|项)?"
    r"|正确(?:的)?(?:选项|答案)[是为]?|答案应?该?选)"
    r"|(?P<answer_zh>【答案】|答案应?该?[是为]?|[故应]填|(?:^|\n) *答(?= ?:))"
    r"|(?P<boxed>\\(?:f?boxed|fbox)\s*\{)",
    re.IGNORECASE,
)
RETRACTED = re.compile(
    r"\bwait\s*[,.!-]|\bactually,|\bscratch that\b|\bon second thought|\bcontradict|\bhold on\b|\bhmm\b"
    r"|\boops\b|\bnever mind\b|\bthis is false\b|\bi was wrong\b|\bon reflection\b|\bcorrection\b"
    r"|\bsorry\b|(?:^|[.!]\s+|\n)no,"
    r"|\bnot it\b|\bhowever\b|\bno,? i mean\b|\bno, (?:it|that)\b|不对[,.]|更正|算错|重新(?:计算|考虑"
    r"|检查)|矛盾|不成立"
    r"|\b(?:that|this|it)(?:'s| is| was| answer is| can(?:no|')t be| must be)? "
    r"(?:wrong|incorrect|not right|impossible)"
    r"|\b(?:i|we)(?: have| 've)? made an? (?:\w+ )?(?:mistake|error)|\blet(?:'s| me| us) (?:re\w+|try again)",
    re.IGNORECASE,
)
CALLED_WRONG = re.compile(
    r"[}$\s,(]*(?:which )?(?:(?:is|was|would be|can(?:not|'t) be) (?:a )?(?:wrong|incorrect|not|impossible"
    r"|false|the answer|right)"
    r"|(?<=which )(?:cannot|must|should|needs))\b(?<!is right)(?<!is the answer)",
    re.IGNORECASE,
)
CORRECTED = re.compile(  # what is said instead
    r"(?:\bit(?:'s| is| should be| must be)|\bi mean|\bshould be|\bmake that|\binstead,? it is"
    r"|应该?[为是]|改为) ?"
    r"(.{1,60}?)[.!\n]?\s*$",
    re.IGNORECASE,
)
# A statement that is denied.
# A statement that is denied or another's; a box that is only a part of a formula.
NEGATION = r"(?:\b(?:not|never|false|wrong|incorrect|cannot)\b|n't\b|不认为|不是|错误|并非|不正确)"
DENIED_BEFORE = re.compile(
    rf"(?:{NEGATION}|\b(?:doubt|might|initial|previous|without|had we|other case|(?:upper|lower) bound"
    rf"|points|possible)\b"
    r"|\b(?:digits|number of|twice|half|double|more than|less than|(?:people|students) think)\b|有人认为"
    r"|[他她]的|小.的)"
    r"[^.!?\n,;]{0,30}$|\bor (?:the )?$|(?<!it)(?<!that)(?<!problem)(?<!question)'s (?:final |own )?$",
    re.IGNORECASE,
)
DENIED_BOX = re.compile(
    rf"(?:{NEGATION}|\b(?:rather than|instead of|except|excluding|mistake \w+|at (?:least|most)|(?:less"
    rf"|more|greater) than|either)\b)"
    r"[^.!?\n\\]{0,25}\$?$",
    re.IGNORECASE,
)
IN_FORMULA_BEFORE = re.compile(
    r"(?:[+/^<>≤≥≠√]\s*|-|[\w)}] - |\\(?:neq?|not|[lg]eq?|[lg]t|times|cdot|div|pm|sqrt|frac)\s*\{?\s*)$"
)
IN_FORMULA_BEHIND = re.compile(
    r"[A-Za-z!_^]|[,.]\d|\s*[-+*/^]\s*(?:\d|\\(?!text|\)|\])|[a-z]\b)|[\s$]*(?:[<>≤≥]"
    r"|\\(?:pi|times|cdot|div|pm|sqrt|frac|neq?|[lg]eq?)(?![A-Za-z])"
    r"|(?:or(?!\s*\$?\\boxed)|hundred|thousand|million|billion|dozen|times|plus|minus|divided|squared"
    r"|cubed|out of)\b)"
)
DENYING = re.compile(r" not (?!.{1,30}\bbut\b)|可能|(?:应?该?不[是为]|并非)(?!.{1,20}而是)")
ANSWER_LINES = re.compile(
    r"[ *]*:?[ *]*(?:\n[ ]*(?:[-*•] )?\S[^\n]{0,60}){2,12}(?=\n\n|\s*$)"
)  # one answer a line
SENTENCE_END = re.compile(
    r"(?<!sq)(?<!cu)(?<!approx)(?<!\.)(?:[.?]|(?<!\d)!)(?=[$*\"')}\]]*(?:\s|$))|\n(?!\s*(?:or|and)\b)"
    r"|</(?:final_)?answer>"
    r"|,?\s+\(?(?:because|since|which|so that)\b|,\s+as\b(?! well)"
)
BRACES = re.compile(r"\\[{}]|[{}]")
# What models and their training write around an answer.
SPECIAL_TOKEN = re.compile(r"</s>|<end_of_turn>|<eos>|<\|(?:im_|end|eot|begin|start|return)")
NEXT_PROBLEM = re.compile(
    r"(?<=\S)\n+(?:next (?:problem|question)\b|(?:question|problem|user|human) ?\d*:)", re.IGNORECASE
)
BOX_TOKENS = re.compile(r"<\|begin_of_box\|>(.*?)(?:<\|end_of_box\|>|$)", re.DOTALL)
SOLUTION_TOKENS = re.compile(r"<\|(?:begin|end)_of_solution\|>")
THOUGHT_ENDS = re.compile(
    r"</(?:think(?:ing)?|thought|reasoning)>|<\|end_of_thought\|>|<\|channel\|>final<\|message\|>",
    re.IGNORECASE,
)
THOUGHT_BEGINS = re.compile(
    r"<(?:think(?:ing)?|thought|reasoning|\|begin_of_thought\|)>|<\|channel\|>analysis", re.IGNORECASE
)
STRUCK_OUT = re.compile(r"~~[^~\n]{1,80}~~|^```\w*$", re.MULTILINE)
CONTRACTED = re.compile(r"\b(is|was|are|does|do)n't\b")
CONCLUSION = re.compile(r"<(conclusion|summary)>(.*?)(?:</\1>|$)", re.DOTALL | re.IGNORECASE)
EXPLAINED = re.compile(r"(【答案】.*?)【(?:解析|分析|详解|解答|点评|考点)】.*", re.DOTALL)
# What stands between boxes of one answer: a comma or "and" in one sentence, or the number of the next part.
BETWEEN_BOXES = re.compile(
    r"(?:\\q?quad|\\[()\[\]]|\\text\{[^{}]{0,30}\}|\b(?:and|or)\b|和|或|[\s$,;&])*"
    r"|[^.\n=]{0,60}?(?:[,;]|\b(?:and|or)\b|和|或)[^.\n=]{0,60}(?:[a-zA-Z]\w?\s*=\s*\$?)?"
    r"|[^\n=]{0,40}\n+[ *]*\(?[b-h2-9][).:][^\n]{0,60}"
)
NEW_BOX = re.compile(
    r"\b(?:so|thus|then|hence|therefore|but|not|gives?|instead|wait|no|which|giving)\b|所以|因此|故|则"
)
NAME_BEFORE = re.compile(r"[a-zA-Z]\w?\s*=\s*\$?$")
UNIT_BEHIND = re.compile(
    r"[\s$\\)]{0,4}(?:(?:text|mathrm|rm)\{\s?~?)?\s?"
    r"(%|percent|pct|°|\^\{?\\circ|degrees?\b|[mck]?m\b(?:\^[23])?|inch(?:es)?\b|feet\b)"
)


def clean(text: str) -> str:
    """The tail of a text in plain punctuation, without a thought before it or what follows an end token."""
    text = plain(str(text)[-TAIL:].replace("\x0crac", "\\frac"))  # a \f is no form feed
    text = THOUGHT_ENDS.split(text)[-1]
    if THOUGHT_BEGINS.search(text):  # and never ended
        return ""
    text = BOX_TOKENS.sub(r"\n<answer>\1</answer>", SOLUTION_TOKENS.sub("", text))
    text = EXPLAINED.sub(r"\1", SPECIAL_TOKEN.split(text, maxsplit=1)[0])
    text = NEXT_PROBLEM.split(text, maxsplit=1)[0]
    text = CONTRACTED.sub(r"\1 not", STRUCK_OUT.sub("", text))
    concluded = [content for _, content in CONCLUSION.findall(text)]
    return (concluded[-1] if concluded else text).strip()


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
        if close is None or parts and (not BETWEEN_BOXES.fullmatch(between) or NEW_BOX.search(between)):
            break
        end, start = end or close, box.start()
        name = NAME_BEFORE.search(text[max(0, start - 8) : start])
        parts.insert(0, (name[0].strip("$") if name else "", text[box.end() : close - 1]))
    if not parts:
        return "", 0
    named = len(parts) > 1 and all(name for name, _ in parts)
    answer = ", ".join(name + part if named else part for name, part in parts)
    letter = re.search(r"\([A-Z]\)[\s$\\(]*$", text[max(0, start - 12) : start])
    behind = UNIT_BEHIND.match(text[end : end + 40])
    if letter and len(parts) == 1:
        answer = f"{letter[0].strip(' $' + chr(92))} {answer}"
    return answer + (" " + behind[1] if behind else ""), end


def stated_span(text: str, start: int) -> tuple[str, int]:
    """(what a sentence says from `start`, where it ends); a list (1) … (2) … may take several lines."""
    rest = re.compile(r"[\s*:\"_]*(?:(?<=\n)[-•] )?(?:(?:\$\$|\\\[|\$)\s*\n\s*)?").match(text, start).end()
    if text[start:rest].count("\n") > 3:
        return "", rest
    at = rest
    while match := SENTENCE_END.search(text, at, rest + 4 * SPAN):
        said = text[rest : match.start()]
        numbered = said.lstrip().startswith("(1)") and re.match(r"\s*\([2-9]\)", text[match.start() :][:20])
        lettered = match[0] == "." and re.fullmatch(r"[\W_]*[A-Z]", said)  # the point of "B. 12"
        if not numbered and not lettered and said.strip(" $*\\[("):
            return ("" if match[0] == "?" else said), match.start()
        at = match.end()
    return text[rest : rest + 4 * SPAN], len(text)


def is_stated(text: str, found: re.Match) -> bool:
    """Whether a statement is none that is denied or only supposed, nor part of a larger formula."""
    before = text[max(0, found.start() - SPAN) : found.start()]
    clause = before[-CLAUSE:]
    of_another = re.search(r"\bprevious\b|\bpart \(", found[0])
    if of_another or DENYING.match(text, found.end()) or SUPPOSED.search(before):
        return False
    if found.lastgroup != "boxed":
        return not DENIED_BEFORE.search(clause)
    close = braced(text, found.end())
    behind = text[close : close + 40] if close else ""
    in_formula = IN_FORMULA_BEFORE.search(clause) or IN_FORMULA_BEHIND.match(behind)
    return not in_formula and not DENIED_BOX.search(clause)


def is_called_wrong(text: str, span: str, end: int) -> bool:
    """Whether an answer is called wrong right behind it, or where it stands again."""
    places = [found.start() for found in CALLED_WRONG.finditer(text, end)]
    return bool(span) and any(place == end or text.endswith(span, 0, place) for place in places)


def find_answer(response: str) -> tuple[str | None, str]:
    """(the final answer as written, the rule that found it), or (None, "none").

    The last statement counts; when it is empty, never closed or taken back there is no answer. Without a
    statement the whole of a short response, or what its last sentence concludes with, is the answer.
    """
    text = clean(response)
    statements = list(STATEMENTS.finditer(text))
    matches = [found for found in statements if is_stated(text, found)]
    if not matches:
        return (None, "none") if statements else concluded_answer(text)
    last = matches[-1]
    if last.lastgroup == "field":
        span = re.compile(r"(?:[^\"\\\n]|\\.)*").match(text, last.end())[0].rstrip("}")
        end = last.end() + len(span)
    elif last.lastgroup != "boxed":
        span, end = stated_span(text, last.end())
        listed = ANSWER_LINES.match(text, last.end()) if "answers" in last[0].lower() else None
        if listed:  # one answer a line
            span, end = ", ".join(listed[0].split("\n")[1:]).strip(), listed.end()
    else:
        boxes = []
        while matches and matches[-1].lastgroup == "boxed":
            boxes.insert(0, matches.pop())
        span, end = boxed_answer(text, boxes[-BOXES:])
    span = span.strip(' \n*_"`') if span.rstrip().endswith("\\,") else span.strip(' \n*_"`,;:')
    span = span.removesuffix(".").strip() if not span.endswith("...") else span
    if is_called_wrong(text, span, end) or RETRACTED.search(text, last.end()):
        corrected = CORRECTED.search(text, end)
        span = corrected[1].strip(" *_") if corrected else ""
    if not span or len(span) > SPAN:
        return None, "none"
    return span, "answer-line" if last.lastgroup in ("answer_line", "answer_zh", "field") else last.lastgroup
