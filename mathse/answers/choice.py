"""Multiple choice: an answer by its letter, by an option's text, or by its value."""

import re

from mathse.answers.find import SPAN, clean, is_stated
from mathse.answers.read import ARTICLE
from mathse.answers.same import Rules, same_answer
from mathse.answers.spell import key, spell
from mathse.answers.tables import words

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # name the choices of a problem
TRUTH = re.compile(  # a response that begins with yes or no
    r"(?is)\W*(yes|no)[,.;:]+\*{0,2} (?!wait|yes|no\b|it depends)(?!.*\b(?:if|unless|wait|depends)\b)"
)
NEGATIVE = re.compile(rf"(?i){words('denial', 'not chosen')}|n't\b")
CHOOSES = re.compile(words("chooses") + "|[:=]")
RIGHT, WRONG = words("right"), words("wrong")
BEFORE_LETTER = re.compile(r"(?i)^(?:it is|it's|so|therefore|thus|hence|选|是|point|figure|点|图) ?")
CALLED = r"(?:(?:[Tt]he|[Oo]ptions?|[Cc]hoices?|[Aa]nswers?|[Ll]etters?|选项?|为|是|[Bb]oth)\s*)*[:\s]*"
NAMED = re.compile(r"\(([A-Z])\)|(?:\b(?:option|choice|choose|pick|select)|选项?)\s*\(?([A-Z])\b")


def option_values(options: list) -> list[str]:
    """The options' texts in the one spelling, without the letter that each begins with."""
    texts = [spell(str(option)) for option in options[: len(LETTERS)]]
    lettered = [re.fullmatch(rf"\(?{name}(?:[).:,]+ ?|$)(.*)", text) for name, text in zip(LETTERS, texts)]
    return [match[1] for match in lettered] if all(lettered) else texts


def reference_letters(problem: dict) -> set[str]:
    """The letters of the options that the reference answer names, or an empty set."""
    texts, answer = option_values(problem["options"]), str(problem["answer"]).strip()
    wanted = {name for name, option in zip(LETTERS, problem["options"]) if str(option).strip() == answer}
    return wanted or named_letters(spell(answer), texts) or letters_of(spell(answer), texts)


def letters_of(text: str, options: list[str]) -> set[str]:
    """The letters of the options that read like a text."""
    plain = [key(ARTICLE.sub("", one)).casefold() for one in (text, *options)]
    return {letter for letter, option in zip(LETTERS, plain[1:]) if option and option == plain[0]}


def named_letters(text: str, options: list[str]) -> set[str]:
    """The letters that an answer names: B, (B) 12, B. 12, option B, A or B, C, not B."""
    letters = LETTERS[: len(options)]
    text = BEFORE_LETTER.sub("", text)
    text = re.sub(rf"^(?:not|不是) ?\(?[{letters}]\)?,? ?(?:but|而是) ?", "", text)
    opposed = (
        rf",? (?:and |but )?(?:not|rather than|instead of) \(?[{letters}]\)?.*$|,? ?而?不是 ?[{letters}].*$"
    )
    text = re.sub(opposed, "", text)
    if NEGATIVE.search(text) and not letters_of(re.sub(r"^\(?[A-Z]\)?[.: ]*\(?|\)$", "", text), options):
        return set()
    is_run = re.fullmatch(rf"[{letters}]{{2,}}", text) and len(set(text)) == len(text)  # ACD
    if is_run or re.search(r"\bor\b|或", text):
        return set(re.findall(rf"(?<![a-z])[{letters}](?![a-z'])", text))
    if re.fullmatch(rf"\(?[{letters.lower()}]\)?", text) and not letters_of(text, options):
        return {text.strip("()").upper()}
    head = re.match(
        rf"{CALLED}(?P<open>[(\[])?(?P<letter>[{letters}])(?(open)[)\]]|(?![\w'^\\]))"
        r"(?P<mark>\)|[.:,-]|$)? ?(?P<rest>.*)",
        text,
        re.ASCII,
    )
    if not head:
        last = rf"(.*?)[\s,]+(?:(?:option|choice|选项)\s*\(?([{letters}])\)?|\(([{letters}])\))"
        behind = re.fullmatch(last, text)
        return {behind[2] or behind[3]} | letters_of(behind[1], options) if behind else set()
    rest, letter = head["rest"].strip(" .:,()-="), head["letter"]
    if re.match(WRONG, f"is {rest}") or re.match(WRONG, rest):
        return set()
    if same := letters_of(rest, options):
        return {letter} | same  # the letter of one option with the value of another: two answers
    others = text[head.end("letter") :].strip(" ).")
    joined = rf"(?:[\s,/&、;)]*(?:and|和|与|(?:option|choice)s?)?[\s(]*[{letters}]\)?)+"
    if others and re.fullmatch(joined, others):
        return {letter, *re.findall(f"[{letters}](?![a-z])", others)}
    marked = (
        head["open"] or head["mark"] or not rest or re.match(r"\(|is\b|as\b|因|是|正|选?项|-", head["rest"])
    )
    return {letter} if marked else set()


def concluded_letters(text: str, options: list[str]) -> set[str]:
    """The letters that a response without a statement ends with: A wrong, B right; so B; Yes, …"""
    lines = [line.strip()[-SPAN:] for line in clean(text).split("\n") if line.strip()] or [""]
    letters = LETTERS[: len(options)]
    verdict = rf"(?<![A-Za-z])\(?([{letters}])\)?(?:选?项)? ?(?:[^,，;.\n]{{0,20}}?)({WRONG}|{RIGHT})"
    judged = re.findall(verdict, lines[-1])
    if len(judged) > 1:
        return {letter for letter, verdict in judged if re.fullmatch(RIGHT, verdict)}
    last = spell(lines[-1])
    for said in (CHOOSES.split(last)[-1].strip(" ,"), last):
        found = letters_of(said, options) or named_letters(said, options)
        if found and not NEGATIVE.search(re.split("[,;]", last)[-1]):
            return found
    sentence = re.split(r"(?<=[.!?])\s+", lines[-1])[-1]
    named = NAMED.findall(sentence)
    if named and not NEGATIVE.search(sentence):
        return {"".join(found) for found in named}
    start = TRUTH.match(lines[0] + " ")
    return letters_of(start[1], options) if start else set()


def check_choice(
    response: str, span: str | None, rule: str, problem: dict, rules: Rules
) -> tuple[bool | None, str | None, str]:
    """(verdict, extracted, rule) for multiple choice: by letter, by an option's text, or by its value."""
    texts, wanted = option_values(problem["options"]), reference_letters(problem)
    given = spell(span or "")
    letters = letters_of(given, texts) or named_letters(given, texts)
    if not letters and not is_stated(rule) and (rule != "none" or span is None):
        letters = concluded_letters(response, texts)
        if letters:
            span, rule = ", ".join(sorted(letters)), "conclusion"
    if not wanted or letters:
        return letters == wanted if wanted else None, span, rule
    value = texts[LETTERS.index(min(wanted))]
    verdict = same_answer(given, value, rules) if given and value and len(wanted) == 1 else None
    return verdict, span, rule


CALLED_CHOICE = (  # called a choice
    r"\(LETTER\)|(?:\b(?i:option|choice|answer)(?i: is| should be| must be)?|选项?|答案[为是]?)"
    r"[\s:：(*\"']*LETTER(?![\w'])"
)


def calls_choice(text: str, letter: str) -> bool:
    """Whether a text calls a letter a choice: (B), option B, the answer is B, 选B."""
    return bool(re.search(CALLED_CHOICE.replace("LETTER", letter), text))
