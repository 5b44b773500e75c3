"""Does a response state the reference answer? correct, wrong, or undecided: not found, not read, cut off."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from importlib.metadata import version

from mathse.answers.find import SPAN, clean, find_answer, is_stated, value_in
from mathse.answers.read import ARTICLE, read
from mathse.answers.same import Rules, same_answer
from mathse.answers.spell import key, spell
from mathse.answers.tables import FOLDER, pattern, words

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # name the choices of a problem
TRUTH, BEFORE_LETTER = pattern("truth"), pattern("before letter", behind=",? ?")
ASKS_PERCENT, ASKS_ORDER = pattern("asks percent"), pattern("asks order")
NEGATIVE = pattern("denial", "doubt", "not chosen")
VALUE = pattern("value")  # in whatever spelling: 0.5 is 1/2
CHOOSES = re.compile(words("chooses") + "|[:=]")
BOLD = re.compile(r"\*\*(.+?)\*\*")
RIGHT, WRONG, CALLED = words("right"), words("wrong"), words("called a choice")
VERDICTS = {True: "correct", False: "wrong", None: "undecided"}


def check_answer(response: str, problem: dict, finish: str = "stop", closing: str = "") -> dict:
    """{"answer_check": "correct" | "wrong" | "undecided" | None (no reference answer), "extracted", "rule"}.

    `problem` has an `answer`, and may have `options`, `question` and `precision`, the decimals that count;
    `finish` is how the response ended, `closing` what the prompt asks to begin the answer with. The rule says
    how the answer was found: is_stated(rule) whether it was stated as one."""
    response, answer = str(response or ""), problem.get("answer")
    if answer in (None, "", []):
        return {"answer_check": None, "extracted": None, "rule": "no reference"}
    if finish in ("length", "error"):
        rule = "cut off" if finish == "length" else "error"
        return {"answer_check": "undecided", "extracted": None, "rule": rule}
    span, rule = find_answer(response, closing)
    reference, question = reference_text(answer), str(problem.get("question"))
    percent = bool(ASKS_PERCENT.search(f"{question} {response[-SPAN:]}"))
    rules = Rules(problem.get("precision"), percent, bool(ASKS_ORDER.search(question)))
    truth = None if is_stated(rule) else TRUTH.match(clean(response) + " ")
    if problem.get("options") or re.fullmatch(r"\(?[A-Z]\)?", reference):
        problem = {"answer": reference, "options": problem.get("options") or list(LETTERS)}
        verdict, span, rule = check_choice(response, span, rule, problem, rules)
    elif truth and reference.casefold() in ("yes", "no"):
        verdict, span, rule = truth[1].casefold() == reference.casefold(), truth[1], "conclusion"
    else:
        verdict, span = check_value(span, rule, reference, rules) if span else (None, None)
    return {"answer_check": VERDICTS[verdict], "extracted": span, "rule": rule}


def check_value(span: str, rule: str, reference: str, rules: Rules) -> tuple[bool | None, str]:
    """(verdict, extracted): of a statement, or of what its words conclude with: "Answer: its area is 5"."""
    verdict = same_answer(span, reference, rules)
    if verdict is None and is_stated(rule) and rule != "boxed" and read(spell(span)) is None:
        said = value_in(span)
        return (same_answer(said, reference, rules), said) if said else (None, span)
    return verdict, span


def check_rows(rows: Iterable[dict], closing: str = "", stated_only: bool = False) -> Iterator[dict]:
    """Rows with their verdicts. `stated_only`: an answer that is only concluded from prose is undecided."""
    for row in rows:
        result = check_answer(row["response"], row, row.get("finish", "stop"), closing)
        if stated_only and result["answer_check"] and not is_stated(result["rule"]):
            result["answer_check"] = "undecided"
        yield row | result


def reference_text(answer: object) -> str:
    """A reference answer without its data set's wrapping: <answer>, ####, \\boxed, "The answer is"."""
    text = "; ".join(map(str, answer)) if isinstance(answer, list) else str(answer)
    text = re.sub(r"^\[(['\"])(.*)\1\]$", r"\2", text)
    if "boxed" not in text and read(spell(text)) is not None:
        return text
    span, rule = find_answer(text)
    return span if span and is_stated(rule) else text


def is_readable(problem: dict) -> bool:
    """Whether a problem's reference answer is read: of others only a response with the same text is right."""
    answer = problem.get("answer")
    is_text = not problem.get("options") and answer not in (None, "", [])
    return not is_text or read(spell(reference_text(answer))) is not None


def check_version() -> str:
    """What tells one answer check from another: a digest of this package's files, its libraries' versions."""
    files = sorted(file for kind in ("py", "lark", "txt") for file in FOLDER.glob(f"*.{kind}"))
    code = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]
    return f"answers {code}, lark {version('lark')}, mpmath {version('mpmath')}"


def same_value(one: str, other: str, precision: int | None = None) -> bool:
    """Whether two answers are equal as text or as values, numbers to `precision` decimals if it is given."""
    return same_answer(one, other, Rules(precision)) is True


def same_vote(one: str, other: str, options: list | None = None) -> bool:
    """Whether two answers, as extracted, are one vote: the same option or the same value."""
    if options:
        letters = [letters_in(spell(text), option_values(options)) for text in (one, other)]
        if all(letters):
            return letters[0] == letters[1]
    return same_value(one, other)


def votes(answers: Iterable[tuple[object, str | None]], options: list | None = None) -> list[list]:
    """[the keys that give one answer], in the order in which the answers come first; None is no vote."""
    groups: dict[str, list] = {}
    for name, answer in answers:
        if answer is not None:
            first = next((other for other in groups if same_vote(other, answer, options)), answer)
            groups.setdefault(first, []).append(name)
    return list(groups.values())


def reveals(explanation: str, row: dict) -> bool:
    """Whether an explanation states the right answer, in any spelling, where question and response do not.
    For a choice: the right option's text, or its letter, called a choice."""
    answers = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
    values, letters = {str(answer).strip() for answer in answers}, set()
    if row.get("options"):
        letters, texts = reference_letters(row), option_values(row["options"])
        values = {texts[LETTERS.index(letter)] for letter in letters} - {"", *LETTERS}

    def stated(text: str) -> set[str]:
        """The values and letters that a text holds."""
        literal = {value for value in values if re.search(rf"(?<![\w.]){re.escape(value)}(?!\w|\.\d)", text)}
        called = {letter for letter in letters if re.search(CALLED.replace("LETTER", letter), text)}
        said = [match[0] for match in VALUE.finditer(text)]
        return literal | called | {value for value in values if any(same_value(one, value) for one in said)}

    return bool(stated(explanation) - stated(f"{row['response']} {row['question']}"))


def option_values(options: list) -> list[str]:
    """The options' texts in the one spelling, without the letter that each begins with."""
    texts = [spell(str(option)) for option in options[: len(LETTERS)]]
    lettered = [re.fullmatch(rf"\(?{name}(?:[).:,]+ ?|$)(.*)", text) for name, text in zip(LETTERS, texts)]
    return [match[1] for match in lettered] if all(lettered) else texts


def reference_letters(problem: dict) -> set[str]:
    """The letters of the options that the reference answer names, or an empty set."""
    texts, answer = option_values(problem["options"]), reference_text(problem["answer"]).strip()
    wanted = {name for name, option in zip(LETTERS, problem["options"]) if str(option).strip() == answer}
    return wanted or letters_in(spell(answer), texts)


def letters_of(text: str, options: list[str]) -> set[str]:
    """The letters of the options that read like a text or, if none does, have its value."""
    plain = [key(ARTICLE.sub("", one)).casefold() for one in (text, *options)]
    found = {letter for letter, option in zip(LETTERS, plain[1:]) if option and option == plain[0]}
    return found or {
        letter for letter, option in zip(LETTERS, options) if option and same_value(text, option)
    }


def letters_in(text: str, options: list[str]) -> set[str]:
    """The letters of the options that an answer gives, by text or by name."""
    return letters_of(text, options) or named_letters(text, options)


def named_letters(text: str, options: list[str]) -> set[str]:
    """The letters that an answer names: B, (B) 12, B. 12, option B, A or B, C, not B."""
    letters = LETTERS[: len(options)]
    text = text[start.end() :] if (start := BEFORE_LETTER.match(text)) else text
    text = re.sub(rf"^(?:not|不是) ?\(?[{letters}]\)?,? ?(?:but|而是) ?", "", text)
    text = re.sub(rf",? (?:and |but )?(?:not|rather than|instead of) \(?[{letters}]\)?.*$", "", text)
    text = re.sub(rf",? ?而?不是 ?[{letters}].*$", "", text)
    if NEGATIVE.search(text) and not letters_of(re.sub(r"^\(?[A-Z]\)?[.: ]*\(?|\)$", "", text), options):
        return set()
    is_run = re.fullmatch(rf"[{letters}]{{2,}}", text) and len(set(text)) == len(text)  # ACD
    if is_run or re.search(r"\bor\b|或", text):
        return set(re.findall(rf"(?<![a-z])[{letters}](?![a-z'])", text))
    if re.fullmatch(rf"\(?[{letters.lower()}]\)?", text) and not letters_of(text, options):
        return {text.strip("()").upper()}
    head = re.match(
        rf"(?:(?i:{words('called')})\s*)*[:\s]*(?P<open>[(\[])?(?P<letter>[{letters}])"
        r"(?(open)[)\]]|(?![\w'^\\]))(?P<mark>\)|[.:,-]|$)? ?(?P<rest>.*)",
        text,
        re.ASCII,
    )
    if not head:
        last = rf"(.*?)[\s,]+(?:\(?(?:option|choice|选项)\s*\(?([{letters}])\)*|\(([{letters}])\))"
        behind = re.fullmatch(last, text)
        return {behind[2] or behind[3]} | letters_of(behind[1], options) if behind else set()
    rest, letter = head["rest"].strip(" .:,-="), head["letter"]
    if re.match(WRONG, f"is {rest}") or re.match(WRONG, rest):
        return set()
    if same := letters_of(rest.strip("()"), options) or letters_of(rest, options):
        return {letter} | same  # the letter of one option with the value of another: two answers
    others = text[head.end("letter") :].strip(" ).")
    joined = rf"(?:[\s,/&、;)]*(?:and|和|与|(?:option|choice)s?)?[\s(]*[{letters}]\)?)+"
    if others and re.fullmatch(joined, others):
        return {letter, *re.findall(f"[{letters}](?![a-z])", others)}
    marked = head["open"] or head["mark"] or not rest
    return {letter} if marked or re.match(r"\(|is\b|as\b|因|是|正|选?项|-", head["rest"]) else set()


def concluded_letters(text: str, options: list[str]) -> set[str]:
    """The letters that a response without a statement ends with: A wrong, B right; so B; Yes, …"""
    lines = [line.strip()[-SPAN:] for line in clean(text).split("\n") if line.strip()] or [""]
    letters = LETTERS[: len(options)]
    verdict = rf"(?<![A-Za-z])\(?([{letters}])\)?(?:选?项)? ?(?:[^,，;.\n]{{0,20}}?)({WRONG}|{RIGHT})"
    judged = re.findall(verdict, lines[-1])
    if len(judged) > 1:
        return {letter for letter, verdict in judged if re.fullmatch(RIGHT, verdict)}
    last = spell(lines[-1])
    for said in (*map(spell, BOLD.findall(lines[-1])[-1:]), CHOOSES.split(last)[-1].strip(" ,"), last):
        found = letters_in(said, options)
        if found and not NEGATIVE.search(re.split("[,;]", last)[-1]):
            return found
    start = TRUTH.match(lines[0] + " ")
    return letters_of(start[1], options) if start else set()


def check_choice(response: str, span: str | None, rule: str, problem: dict, rules: Rules) -> tuple:
    """(verdict, extracted, rule) for multiple choice: by letter, by an option's text, or by its value."""
    texts, wanted = option_values(problem["options"]), reference_letters(problem)
    given = spell(span or "")
    letters = letters_in(given, texts)
    if not letters and not is_stated(rule):
        letters = concluded_letters(response, texts)
        span, rule = (", ".join(sorted(letters)), "conclusion") if letters else (span, rule)
    if not wanted or letters:
        return letters == wanted if wanted else None, span, rule
    value = texts[LETTERS.index(min(wanted))]
    verdict = same_answer(given, value, rules) if given and value and len(wanted) == 1 else None
    return verdict, span, rule
