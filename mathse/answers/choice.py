"""Multiple choice: an answer by letter, by an option's text, or by its value."""

import re

from mathse.answers.compare import same_answer
from mathse.answers.conclude import SPAN
from mathse.answers.find import clean
from mathse.answers.names import YES_OR_NO
from mathse.answers.scalars import Rules
from mathse.answers.spelling import comparable, spell

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # name the choices of a problem
OR_LETTER, AND_LETTER = r"\bor\b|或者?", r"\band\b|和|与"
NEGATIVE = re.compile(
    r"\b(?:not|no|except|neither|nor|cannot|never|incorrect|wrong|false|eliminat\w*|exclud\w*|reject\w*"
    r"|fails?|contradicts?"
    r"|but|other than|ruled? out|impossible|better|opposite|otherwise|if|between|worst|avoid|distractor"
    r"|consider|compare"
    r"|look at)\b"
    r"|n't\b|错|不|排除|如果",
    re.IGNORECASE,
)
CHOOSES = re.compile(  # what stands before the letter that a sentence ends with
    r"\b(?:is|be|so|thus|hence|therefore|then|leaves|choose|pick|select|get)\b,?|[:=]|所以|因此|[是为选]"
)
RIGHT = r"正确|对|符合|成立|is (?:the )?(?:correct|right|true)"
WRONG = r"错误|不正确|不对|不符合|不成立|错|is (?:wrong|incorrect|false|not)"


def key(text: str) -> str:
    """For comparing as text: without case, blanks and articles."""
    return comparable(re.sub(r"\b(?:the|an?) (?=[a-z])", "", text.casefold()))


def option_values(options: list) -> list[str]:
    """The options' texts, simplified, without the letter that each begins with."""
    texts = [spell(str(option)) for option in options[: len(LETTERS)]]
    lettered = [re.fullmatch(rf"\(?{name}(?:[).:,]+ ?|$)(.*)", text) for name, text in zip(LETTERS, texts)]
    return [match[1] for match in lettered] if all(lettered) else texts


def letters_of(text: str, values: list[str]) -> set[str]:
    """The letters of the options that read like the text."""
    wanted = key(text)
    return {letter for letter, value in zip(LETTERS, values) if value and key(value) == wanted}


def stated_letters(span: str, values: list[str]) -> set[str]:
    """The letters that an answer names: "B", "(B) 12", "B. 12", "option B", "A or B", "C, not B"."""
    letters = LETTERS[: len(values)]
    span = re.sub(
        r"^(?:it is|it's|so|therefore|thus|hence|选|是|point|figure|点|图) ?", "", span, flags=re.IGNORECASE
    )
    span = re.sub(rf"^(?:not|不是) ?\(?[{letters}]\)?,? ?(?:but|而是) ?", "", span)
    span = re.sub(
        rf",? (?:and |but )?(?:not|rather than|instead of) \(?[{letters}]\)?.*$|,? ?而?不是 ?[{letters}].*$",
        "",
        span,
    )
    if NEGATIVE.search(span) and not letters_of(re.sub(r"^\(?[A-Z]\)?[.: ]*\(?|\)$", "", span), values):
        return set()
    if re.search(r"\bor\b|或", span):
        return set(re.findall(rf"(?<![A-Za-z])[{letters}](?![A-Za-z'])", span))
    if re.fullmatch(rf"[{letters}]{{2,}}", span) and len(set(span)) == len(span):
        return set(span)
    if re.fullmatch(rf"\(?[{letters.lower()}]\)?", span) and key(span) not in map(key, values):
        return {span.strip("()").upper()}
    words = r"(?:(?:the|options?|choices?|answers?|letters?|选项?|为|是|both|either)\s*)*[:\s]*"
    marked = rf"{words}([(\[])?([{letters}])(?(1)[)\]]|(?![\w'^\\]))(\)|[.:,-]|$)? ?(.*)"
    head = re.match(marked, span, re.ASCII | re.IGNORECASE)
    if not head or head[2].islower() and not head[1]:
        last = rf"(.*?)[\s,]+(?:(?:option|choice|选项)\s*\(?([{letters}])\)?|\(([{letters}])\))"
        behind = re.fullmatch(last, span)
        if not behind:
            return set()
        return {behind[2] or behind[3]} | letters_of(behind[1], values)
    if re.match(WRONG.replace("is (?:", "(?:is )?(?:"), head[4]):
        return set()
    letter, rest = head[2].upper(), head[4].strip(" .:,()-=")
    if letters_of(rest, values):
        # the letter of one option with the value of another: two answers
        return {letter} | letters_of(rest, values)
    chain = re.match(
        rf"(?:\s*(?:{OR_LETTER}|{AND_LETTER}|[,/&、;])+\s*(?:(?:option"
        rf"|choice)\s*)?\(?[{letters}]\)?(?![A-Za-z0-9_'])(?!\s+(?!are|is|and|or)[a-z]))+",
        span[head.end(2) :].lstrip(")]"),
    )
    others = (
        set(re.findall(rf"[{letters}](?![a-z])", chain[0]))
        if chain and not (head[1] and chain[0].lstrip()[0] not in "o,&/、和或a")
        else set()
    )
    if chain and re.match(
        r"\s*(?:are|is|contradicts?|fails?) ?(?:false|wrong|incorrect|not|$)",
        span[head.end(2) :].lstrip(")]")[chain.end() :],
    ):
        return set()
    is_letter = (
        head[1] or head[3] or not rest or others or re.match(r"\(|is\b|are\b|as\b|因|是|正|选?项|-", head[4])
    )
    return {letter, *others} if is_letter else set()


def judged_letters(text: str, letters: str) -> set[str] | None:
    """The letters called right where each option is judged: "A错误，B错误，C正确"; None for no such list."""
    found = re.findall(
        rf"(?<![A-Za-z])\(?([{letters}])\)?(?:选?项)? ?(?:[^,;.\n]{{0,20}}?)({WRONG}|{RIGHT})", text
    )
    if len(found) < 2:
        return None
    right = {letter for letter, verdict in found if re.fullmatch(RIGHT, verdict)}
    return right or None


def concluded_letters(text: str, values: list[str]) -> tuple[str | None, set[str]]:
    """(words, letters) of a response without a statement: its last line or sentence, or a first yes or no."""
    lines = [line for line in clean(text).split("\n") if line.strip()]
    if not lines:
        return None, set()
    if judged := judged_letters(lines[-1][-SPAN:], LETTERS[: len(values)]):
        return lines[-1].strip()[-SPAN:], judged
    last = spell(lines[-1][-SPAN:])
    for said in (CHOOSES.split(last)[-1].strip(), last):
        if not NEGATIVE.search(re.split("[,;]", last)[-1]) and (
            letters := letters_of(said, values) or stated_letters(said, values)
        ):
            return said, letters
    sentence = re.split(r"(?<=[.!?])\s+", lines[-1].strip()[-SPAN:])[-1]
    named = r"\(([A-Z])\)|(?:\b(?:option|choice|choose|pick|select)|选项?)\s*\(?([A-Z])\b|\boption ([a-z])$"
    if not NEGATIVE.search(sentence) and not re.search(r"rule[sd]? out", sentence):
        if letters := {"".join(found).upper() for found in re.findall(named, sentence.rstrip("."))}:
            return ", ".join(sorted(letters)), letters
    start = YES_OR_NO.match(lines[0].strip() + " ")
    letters = letters_of(start[1], values) if start else set()
    return (start[1], letters) if letters else (None, set())


def reference_letters(problem: dict) -> set[str]:
    """The letters of the options that the reference answer names, or an empty set."""
    values, answer = option_values(problem["options"]), str(problem["answer"]).strip()
    options = [str(option).strip() for option in problem["options"]]
    wanted = {letter for letter, option in zip(LETTERS, options, strict=False) if option == answer}
    return wanted or stated_letters(spell(answer), values) or letters_of(spell(answer), values)


def check_choice(
    response: str, span: str | None, rule: str, problem: dict, rules: Rules
) -> tuple[bool | None, str | None, str]:
    """(verdict, extracted, rule) for multiple choice: the reference is a value, a letter or letters."""
    values, wanted = option_values(problem["options"]), reference_letters(problem)
    if not wanted:
        return None, span, rule
    given = spell(span) if span else ""
    letters = stated_letters(given, values) if given else set()
    exact = letters_of(given, values)
    if rule == "conclusion" and not letters:
        said, letters = concluded_letters(response, values)
        if letters:
            return letters == wanted, said, "choice"
    if exact or letters:
        return (exact or letters) == wanted or bool(exact & wanted), span, rule
    if rule in ("bare", "conclusion", "none"):
        said, letters = concluded_letters(response, values)
        if letters:
            return letters == wanted, said, "choice"
    value = values[LETTERS.index(min(wanted))]
    if not given or not value or len(wanted) > 1:
        return None, span, rule
    return same_answer(given, value, rules), span, rule
