"""The tables of this folder, units.txt, spelling.txt and words.txt: sections of lines, each below its [name],
which may have an explanation behind a colon. A line that begins with # is a remark."""

import re
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent


@cache
def sections(file: str) -> dict[str, list[str]]:
    """{name of a section: its lines}"""
    found: dict[str, list[str]] = {}
    for line in (FOLDER / file).read_text(encoding="utf-8").split("\n"):
        if heading := re.fullmatch(r"\[([\w ]+)(?::.*)?\]", line):
            lines = found[heading[1]] = []
        elif line and not line.startswith("# "):
            lines.append(line)
    return found


def spellings(lines: list[str]) -> dict[str, str]:
    """{a spelling: the chosen one} of lines with the chosen one first."""
    return {spelling: line.split()[0] for line in lines for spelling in line.split()}


def words(*kinds: str) -> str:
    """A pattern for the words and patterns of these kinds. A word of letters is matched whole."""
    patterns, others = [], []
    for language, _, line in (line.partition(" ") for kind in kinds for line in sections("words.txt")[kind]):
        if language == "~":
            patterns.append(re.sub(r"<([a-z ]+)>", lambda kind: words(kind[1]), line))
        else:
            written = [word.replace("_", " ") for word in line.split()]
            (patterns if re.search("[\u3040-\u9fff]", line) else others).extend(written)
    return "|".join(patterns + ([rf"\b(?:{'|'.join(others)})\b"] if others else []))


def pattern(*kinds: str, before: str = "", behind: str = "") -> re.Pattern:
    """words() compiled, between two other patterns."""
    return re.compile(f"{before}(?:{words(*kinds)}){behind}", re.IGNORECASE | re.DOTALL)


def rules(name: str, flags: int = 0) -> list[tuple[re.Pattern, str]]:
    """The (pattern, replacement) of a section of spelling.txt."""
    table, found = sections("spelling.txt"), []
    parts = dict(line.split(" ⇒ ") for line in table["parts"])
    for line in table[name]:
        line = re.sub(f"<({'|'.join(parts)})>", lambda part: parts[part[1]], line)
        pattern, replacement = line.split(" ⇒")
        found.append((re.compile(pattern, flags), replacement[1:].replace("␣", " ")))
    return found


def substituted(text: str, rules: list[tuple[re.Pattern, str]]) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text
