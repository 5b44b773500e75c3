"""The benchmarks' own rules to score a response, beside our answer check.

Only MATH-V's is here: MathVista's and MathVerse's need a language model to extract the answer first.
"""

import contextlib
import re

from mathse.answers import LETTERS, same_value

PHRASES = ("the final answer is", "the answer is", "the correct answer is", "the answer should be")
IGNORED = (
    " ", "\\,", "\n", "\\text", "\\mbox", "\\left", "\\right", "^{\\circ}", "^\\circ", "{m}^3", "m^3",
    "{units}", "units", "{km}", "km", "\\!", "$", "\\%",
)  # fmt: skip


def mathvision_rule(row: dict) -> bool:
    """MATH-V's evaluate.py: whether a response's answer is the reference's letter or value.

    Compared as text or to two decimals.
    """
    said = mathvision_answer(row["response"].strip())
    references = [str(row["answer"])]
    if row.get("options") and references[0] in LETTERS[: len(row["options"])]:
        references.append(str(row["options"][LETTERS.index(references[0])]))
    return bool(said) and any(
        said == reference.lower().strip()
        or (is_value(said) and is_value(reference) and same_value(said, reference, precision=2))
        for reference in references
    )


def mathvision_answer(said: str) -> str:
    """The answer of a response, by the string rules of MATH-V's evaluate.py."""
    for letter in "ABCDE":
        starts = f"{letter}\n", f"({letter})\n", f"({letter}) {letter}\n"
        if said.endswith((f" {letter}.", f" ({letter}).")) or said.startswith(starts):
            said = letter
    with contextlib.suppress(ValueError):
        number = said.split("is ")[-1].rstrip(".")
        float(number)
        said = number
    if "oxed{" not in said:
        for phrase in PHRASES:
            for start in (phrase, phrase.replace("the", "The")):
                if start in said:
                    said = said.split(start)[-1].strip().split("\n")[0].split(". ")[0]
    elif said.count("oxed{") > 1:
        said = "\\boxed{" + said.split("oxed{")[-1]
    said = said.lower().replace("{}", "")
    said = boxes[-1] if (boxes := re.findall(r"oxed\{(.*)\}", said, re.DOTALL)) else said
    if "}" in said and ("{" not in said or said.index("}") < said.index("{")):
        said = said.split("}")[0]
    said = said.split("=")[-1].split("\\approx")[-1]
    for word in IGNORED:
        said = said.replace(word, "")
    return re.sub(r"[({]([a-e])[)}]", r"\1", said).rstrip(".").lstrip(":")


def is_value(text: str) -> bool:
    """Whether a text is LaTeX without names: a stray word or unit makes the original's evaluation fail."""
    names = re.sub(r"\\(?:[dt]?frac|sqrt|pi|cdot|times|div)", " ", text)
    return bool(re.search(r"\d", text)) and not re.search(r"[^\W\d_]", names)


RULES = {"mathvision": mathvision_rule}
