"""Compare two whole answers: several blanks, sets, choices by letter or by value."""

import re

from mathse.answers.find import PARTS, SPAN, braced, clean
from mathse.answers.values import (
    LABEL,
    Equal,
    all_true,
    any_true,
    bracketed,
    key,
    same_value,
    simplify,
    split,
)

LETTERS = "ABCDEFGHIJ"  # name the choices of a problem
COMMA = r",(?!\d{3}(?!\d))|(?<!\d),"  # not the comma of 1,056
OR, AND = r"\bor\b|或者?", r"\band\b|和"


def unwrap(text: str) -> str:
    """A set without its braces: {1, 2} is 1, 2 and {x | x > 1} is x > 1."""
    text = re.sub(r"^\w ?(?:=|\\in) ?(?=\{)", "", text)
    inner = text[1:-1] if text.startswith("{") and braced(text, 1) == len(text) else text
    return inner if inner is text else re.sub(r"^ ?\w ?(?:\||\\mid|:) ?", "", inner)


def parts_of(text: str) -> tuple[list[str], bool]:
    """(parts, whether their order is fixed). Fixed: blanks, "25; 0.5" or "(1) 25 (2) 0.5". Free: sets,
    "1 or 2", "6, 8", "±3".
    """
    numbered = re.findall(r"(?:^|[\s;,])\((\d)\) ?(.+?)(?=[\s;,]+\(\d\)|$)", text)
    if len(numbered) > 1 and all(int(digit) == place for place, (digit, _) in enumerate(numbered, 1)):
        return [part.strip(" ,;") for _, part in numbered], True
    if len(blanks := split(text, ";")) > 1:
        return blanks, True
    parts = [part for piece in split(unwrap(text), rf"{OR}|{AND}|;") for part in split(piece, COMMA)]
    both = [
        [part.replace("\\pm", sign) for sign in "+-"] if part.count("\\pm") == 1 else [part] for part in parts
    ]
    return sum(both, []), False


def same_answer(given: str, reference: str, precision: int | None, equal: Equal) -> bool | None:
    """Whether two answers are the same: blanks in order, a set in any order, all their parts."""
    if key(given) == key(reference):
        return True
    (given_parts, _), (parts, ordered) = parts_of(given), parts_of(reference)
    if max(len(parts), len(given_parts)) > PARTS:
        return None
    if ordered and not given.startswith("{"):
        if len(given_parts) != len(parts):
            given_parts = split(given, rf",|{AND}")  # 100,200 for two blanks
        if len(given_parts) != len(parts):
            return False
        return all_true(same_answer(*pair, precision, equal) for pair in zip(given_parts, parts, strict=True))
    for one, other in ((given_parts, bracketed(reference)), (parts, bracketed(given))):
        if other and len(one) == len(other[1]) and all(map(LABEL.fullmatch, one)):  # x = 1, y = 2 is (1, 2)
            return all_true(same_value(*pair, precision, equal) for pair in zip(one, other[1], strict=True))
    if ordered or len(parts) > 1:
        parts = parts_of(reference.replace(";", ","))[0] if ordered else parts
        if len(given_parts) != len(parts):
            return False
        same = [[same_value(given, part, precision, equal) for given in given_parts] for part in parts]
        return all_true(map(any_true, (*same, *zip(*same))))  # each part is given, and each given is a part
    if key(reference) in ("yes", "no", "true", "false"):  # "Yes, it is"
        given_parts = given_parts[:1]
    if len(given_parts) > 1:  # two different answers are wrong, "1/2 or 0.5" is one
        return all_true(same_value(part, reference, precision, equal) for part in given_parts)
    given = given_parts[0] if given_parts else given
    return same_value(unwrap(given), unwrap(reference), precision, equal)


# ---------------------------------------------------------------- multiple choice


def option_values(options: list) -> list[str]:
    """The options' texts, simplified, without the letter that each begins with."""
    texts = [simplify(str(option)) for option in options[: len(LETTERS)]]
    lettered = [re.fullmatch(rf"\(?{name}(?:[).:,]+ ?|$)(.*)", text) for name, text in zip(LETTERS, texts)]
    return [match[1] for match in lettered] if all(lettered) else texts


def letters_of(text: str, values: list[str]) -> set[str]:
    """The letters of the options that read like the text."""
    wanted = key(text)
    return {letter for letter, value in zip(LETTERS, values) if value and key(value) == wanted}


def stated_letters(span: str, values: list[str]) -> set[str]:
    """The letters that an answer names: "B", "(B) 12", "B. 12", "option B", "12 (B)", "A or B"."""
    letters = LETTERS[: len(values)]
    if re.fullmatch(rf"[{letters}]{{2,}}", span):
        return set(span)
    if re.fullmatch(rf"\(?[{letters.lower()}]\)?", span) and key(span) not in map(key, values):
        return {span.strip("()").upper()}
    words = r"(?:(?:the|option|choice|answer|letter|选项?|为|是)\s*)*[:\s]*"
    marked = rf"{words}(\()?([{letters}])(?(1)\)|(?![\w'^\\]))(\)|[.:,-]|$)? ?(.*)"
    head = re.match(marked, span, re.ASCII | re.IGNORECASE)
    if not head or head[2].islower():
        last = rf"(.*?)[\s,]+(?:(?:option|choice|选项)\s*\(?([{letters}])\)?|\(([{letters}])\))"
        behind = re.fullmatch(last, span)
        if not behind:
            return set()
        return {behind[2] or behind[3]} | letters_of(behind[1], values)
    letter, rest = head[2], head[4].strip(" .:,()-=")
    if letters_of(rest, values):
        # the letter of one option with the value of another: two answers
        return {letter} | letters_of(rest, values)
    others = re.findall(rf"(?:{OR}|{AND}|[,/&])\s*\(?([{letters}])(?![A-Za-z0-9_'])", span)
    others += re.findall(rf"\(([{letters}])\)", span)
    is_letter = head[1] or head[3] or not rest or others or re.match(r"\(|is\b|as\b|因|是|正", head[4])
    return {letter, *others} if is_letter else set()


def concluded_letters(text: str, values: list[str]) -> tuple[str | None, set[str]]:
    """(words, letters) of a response without a statement: its last line or sentence, or a first yes or no."""
    lines = [line for line in clean(text).split("\n") if line.strip()]
    if not lines:
        return None, set()
    last = simplify(lines[-1][-SPAN:])
    if stated_letters(last, values):
        return last, stated_letters(last, values)
    sentence = re.split(r"(?<=[.!?])\s+", lines[-1].strip()[-SPAN:])[-1]
    named = r"\(([A-J])\)|(?:\b(?:option|choice|choose|pick|select)|选项?)\s*\(?([A-J])\b"
    pairs = re.findall(named, sentence)
    if letters := {one or other for one, other in pairs}:
        return ", ".join(sorted(letters)), letters
    start = re.match(r"(yes|no)\b", lines[0].strip(), re.IGNORECASE)
    letters = letters_of(start[0], values) if start else set()
    return (start[0], letters) if letters else (None, set())


def reference_letters(problem: dict) -> set[str]:
    """The letters of the options that the reference answer names, or an empty set."""
    values, answer = option_values(problem["options"]), str(problem["answer"]).strip()
    options = [str(option).strip() for option in problem["options"]]
    wanted = {letter for letter, option in zip(LETTERS, options, strict=False) if option == answer}
    return wanted or stated_letters(simplify(answer), values) or letters_of(simplify(answer), values)


def check_choice(
    response: str, span: str | None, rule: str, problem: dict, equal: Equal
) -> tuple[bool | None, str | None, str]:
    """(verdict, extracted, rule) for multiple choice: the reference is a value, a letter or letters."""
    values, wanted = option_values(problem["options"]), reference_letters(problem)
    if not wanted:
        return None, span, rule
    given = simplify(span) if span else ""
    letters = stated_letters(given, values) if given else set()
    exact = letters_of(given, values)
    if exact or letters:
        return (exact or letters) == wanted or bool(exact & wanted), span, rule
    if rule in ("bare", "conclusion", "none"):
        said, letters = concluded_letters(response, values)
        if letters:
            return letters == wanted, said, "choice"
    value = values[LETTERS.index(min(wanted))]
    if not given or not value or len(wanted) > 1:
        return None, span, rule
    return same_answer(given, value, problem.get("precision"), equal), span, rule
