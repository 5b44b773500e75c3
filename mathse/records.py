"""Rows: what their fields hold, how they are read and checked, their keys and seeds; how a command ends on a
user error.

A stage reads its files with read_rows(). The first pass checks every row and ends the command at the first
fault; a second pass over the same file goes without, and what breaks meanwhile becomes an error record
where it is used.
"""

import codecs
import contextlib
import hashlib
import json
import math
import os
import re
import reprlib
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, NoReturn

from msgspec import Meta, Struct, ValidationError, convert

from mathse.images import image_problem

MAX_LINE = 16 << 20  # bytes; a longer line is refused unread
KNOWN_IMAGES = 1 << 14  # whose headers are not read again for the other samples of their problem
# marks an image in a message's text, as in the training files of TRL, ms-swift and LLaMA-Factory
IMAGE = "<image>"
LOOKALIKES = {  # of fields of ours: passed over, one would lose the images, the options or the answer
    "images": r"(local|decoded)?(image|img|pic|picture|photo|figure|diagram)s?"
    r"(path|file|filename|name|url)?s?\d*",
    "options": r"(multiple|answer)?(choice|option)s?(list|text)?s?|(choice|option|op)[a-h1-8]",
    "answer": r"answers|(gt|gold|correct|reference|standard|final)answers?|answeroption|groundtruth|gold",
    "question": r"question(text)?|problem(text)?",
    "id": "id",
}
OPTION_NAMES = ("A", "B", "C", "D", "E", "F", "G", "H")  # of options that have letters alone
NOTHING = (None, "", [], {})
# What a verdict adds to a row: not the reflection's, and made anew when a verified file is verified again.
VERDICT_FIELDS = {
    "answer_check", "orm_check", "status", "extracted", "rule", "error_step", "error_analysis", "error_type",
    "judge_reply", "judge_tokens", "judge_error", "teacher_check",
}  # fmt: skip
NO_PROBLEM_S = VERDICT_FIELDS | {"sample", "benchmark", "messages", "reason"}  # of rows that hold a problem
ERROR_TYPES = ("reasoning", "understanding", "knowledge", "calculation", "vision")  # the paper's Figure 4
Text = Annotated[str, Meta(pattern=r"\S")]
Scalar = str | int | float


class Message(Struct):
    role: Literal["system", "user", "assistant"]
    content: str


class Row(Struct):
    """What the fields of a row hold that are there, in any file; which must be there, a stage says."""

    id: Text = ""
    question: Text = ""
    prompt: Text = ""
    images: list[str] | None = None
    options: list[Scalar] | None = None
    answer: Text | int | float | Annotated[list[Scalar], Meta(min_length=1)] | None = None
    sample: Annotated[int, Meta(ge=0)] = 0
    response: str = ""
    finish: Literal["stop", "length", "error"] = "stop"
    status: Literal["correct", "wrong", "undecided"] = "correct"
    precision: Annotated[int, Meta(ge=0)] | None = None
    messages: Annotated[list[Message], Meta(min_length=2)] = []


REMEDIES = {  # for a value, {}, that is not what Row says; of other fields it is a text
    "images": 'must be a list of paths, not {}; write ["image.png"]',
    "options": 'must be a list of strings, not {}; write ["3", "4"]',
    "answer": "must be a string, a number, a list of them, or null, not {}; write null if it is not known",
    "sample": "{} is not a whole number from 0; number the samples of a problem",
    "precision": "{} is not a whole number from 0; write how many decimals count, or null",
    "finish": "{} is none of stop, length, error; is this a file of 01 or 02?",
    "status": "{} is none of correct, wrong, undecided; is this a file of 02?",
    "messages": 'must be a list of {"role", "content"} with texts, the last by the assistant',
}


def fail(message: str, code: int = 2) -> NoReturn:
    """End the command with one line on stderr. Exit code 2: a user error; 1: a fault of the machine."""
    line = " ".join(message.splitlines())  # and no escape sequence of hostile data reaches the terminal
    line = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)
    print(f"error: {line}", file=sys.stderr)
    sys.exit(code)


def is_endpoint(spec: str) -> bool:
    """Whether a model spec is the address of a server."""
    return spec.startswith(("http://", "https://"))


def row_key(row: dict) -> str:
    """What is unique in a file: problem and sample; in predictions also the benchmark, in training files the
    origin and the file of the verdict.
    """
    kind = [row.get("origin"), row.get("verified_in")] if "messages" in row else row.get("benchmark")
    return json.dumps([row["id"], row.get("sample", 0), kind])


def derive_seed(*parts: object) -> int:
    """A seed of 31 bits from names, never from order: (run seed, round, problem id, sample)."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:4], "big") >> 1


@lru_cache(maxsize=1 << 10)
def tell(line: str) -> None:
    """A line on stderr for people, once, however often a source is read, and by the first rank alone."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr)


def shown(value: object) -> str:
    """A value as a message shows it: cut short, on one line."""
    return reprlib.repr(value)


# ---------------------------------------------------------------- reading


def finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is not a number that JSON has")
    return value


STRICT = json.JSONDecoder(parse_float=finite, parse_constant=finite)


def json_lines(path: Path, strict: bool = True) -> Iterator[tuple[str, object]]:
    """(file:line, value) of every line that is not blank. A BOM and CRLF are fine; NaN and Infinity are
    if it is not `strict`. The first line that is no JSON ends the command.
    """
    decoder = STRICT if strict else json.JSONDecoder()
    if not path.is_file():
        is_there = path.exists() and "not a plain file; it is read twice, so no folder and no pipe"
        fail(f"{path}: {is_there or 'no such file'}")
    try:
        file = path.open("rb")
    except OSError as error:
        fail(f"{path}: cannot be read ({error.strerror}); look at its permissions")
    with file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), 1):
            where = f"{path}:{number}"
            if len(line) > MAX_LINE:
                remedy = "write one JSON object a line, images as paths"
                fail(f"{where}: a line of more than {MAX_LINE >> 20} MB; {remedy}")
            if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                fail(f"{where}: not a JSON object in UTF-8 but UTF-16; save the file as UTF-8")
            try:
                text = line.removeprefix(codecs.BOM_UTF8).decode("utf-8").strip()
                value = decoder.decode(text) if text else None
            except (ValueError, RecursionError) as error:  # bad UTF-8, bad JSON, JSON nested without end
                remedy = "write one object a line: mend or remove this one"
                fail(f"{where}: not a JSON object in UTF-8 ({error}); {remedy}")
            if text:
                yield where, value


def read_rows(
    path: str | Path,
    required: Iterable[str] = ("id", "question"),
    check: bool = True,
    may_be_empty: bool = False,
    base: str | Path | None = None,
) -> Iterator[dict]:
    """The rows of a file in order, one in memory at a time, image paths absolute.

    Checked, any fault ends the command (file:line: field: what to do), also an (id, sample) that stands
    twice. `base`: the file that the rows go to; where a draft was verified is then told from its folder.
    """
    path, lines, row = Path(path), {}, None
    find_image = image_finder(path)
    find_problem = lru_cache(maxsize=KNOWN_IMAGES)(image_problem)
    for where, row in json_lines(path):
        if not isinstance(row, dict):
            form = '{"id": ..., "question": ..., ...}'
            fail(f"{where}: a {type(row).__name__} instead of a JSON object; write {form}")
        if check:
            check_row(row, where, required, lambda image: find_problem(find_image(image)))
            first = lines.setdefault(hash(row_key(row)), where.rpartition(":")[2])
            if not where.endswith(f":{first}"):
                twice = f"{shown(row['id'])}, sample {row.get('sample', '-')} stands already in line {first}"
                fail(f"{where}: id: {twice}; make it unique")
        row["images"] = [*map(find_image, row.get("images") or [])]
        draft = row.get("draft_of")
        if base and isinstance(draft, dict) and isinstance(draft.get("verified_in"), str):
            verified_in = relative(path.parent / draft["verified_in"], Path(base).parent)
            row["draft_of"] = draft | {"verified_in": verified_in}
        yield row
    if row is None and not may_be_empty:  # a round may have nothing left to sample
        fail(f"{path}: the file is empty; write at least one row")


def image_finder(path: Path) -> Callable[[str], str]:
    """Finds the images that a file names, by their way from its folder; of a file that was moved away from
    them, by their way from where its recipe says that it was made.
    """
    folder, made = path.parent.absolute(), read_json(Path(f"{path}.recipe.json")).get("folder")
    if made is None or os.path.realpath(folder) == made:
        return lambda image: str(folder / image)

    def find(image: str) -> str:
        here, there = folder / image, os.path.normpath(os.path.join(made, image))
        return there if not here.exists() and os.path.exists(there) else str(here)

    return find


def read_json(path: Path) -> dict:
    """The object in a JSON file; {} if there is none, or the file cannot be read."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        if isinstance(content := json.loads(path.read_text(encoding="utf-8")), dict):
            return content
    return {}


def written_rows(path: Path) -> Iterator[dict]:
    """The whole rows of a JSONL file that a stage wrote, unchecked; none if there is no such file."""
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            yield from (json.loads(line) for line in file if line.endswith("\n"))


def relative_images(row: dict, folder: Path) -> dict:
    """The row with its image paths, if it has any, relative to `folder`, where its new file lies."""
    return row | {"images": [relative(image, folder) for image in row["images"]]} if "images" in row else row


def relative(path: str | Path, folder: str | Path) -> str:
    """The way from a folder to a file. A run folder may be a link to another disk."""
    return os.path.relpath(os.path.realpath(path), os.path.realpath(folder))


# ---------------------------------------------------------------- checking


def check_row(row: dict, where: str, required: Iterable[str], find_problem: Callable) -> None:
    """End the command if a row breaks the record table (docs/RECORDS.md). find_problem(path) says what is
    wrong with an image by its header, or None.
    """

    def refuse(field: str, problem: str) -> NoReturn:
        fail(f"{where}: {field}: {problem}")

    for field, value in row.items():
        meant = meant_field(field, row)
        if meant and is_passed_over(value, row.get(meant), meant):
            remedy = "write 'options', a list of A, B ..." if field in OPTION_NAMES else f"call it {meant!r}"
            remedy = remedy if row.get(meant) in NOTHING else f"{meant!r} must hold all, alone"
            refuse(field, f"not a field of a problem; {remedy}")
    for field in required:
        if field not in row:
            refuse(field, f"missing; this stage needs {', '.join(required)}")
    if has_half_pair(row):
        field = next(field for field, value in row.items() if has_half_pair([field, value]))
        refuse(field, "holds half a surrogate pair, which is no character; write the text anew in UTF-8")
    try:
        convert(row, Row)
    except ValidationError as error:
        field = re.search(r"\$\.(\w+)", str(error))[1]
        remedy = REMEDIES.get(field, "{} is not a string with text in it; write one")
        refuse(field, remedy.replace("{}", shown(row[field])))
    options, answer, images = row.get("options"), row.get("answer"), row.get("images") or []
    if (marks := str([row.get("question"), options]).count(IMAGE)) not in (0, len(images)):
        refuse("question", f"{marks} {IMAGE} marks for {len(images)} images; write one for each, or none")
    if options and answer is not None and not is_an_option(row):
        remedy = "write the letter or the text of one, or null if it is not known"
        refuse("answer", f"{shown(answer)} is not among the options {shown(options)}; {remedy}")
    messages = row.get("messages") or []
    marks = sum(message["content"].count(IMAGE) for message in messages if message["role"] == "user")
    if messages and messages[-1]["role"] != "assistant":
        refuse("messages", REMEDIES["messages"])
    if messages and marks != len(images):
        refuse("messages", f"{marks} {IMAGE} marks for {len(images)} images; write one for each")
    for image in images:
        if problem := find_problem(image):
            refuse("images", f"{shown(image) if len(image) > 200 else image}: {problem}")


def has_half_pair(value: object) -> bool:
    return bool(re.search(r"[\ud800-\udfff]", json.dumps(value, ensure_ascii=False)))


def is_an_option(row: dict) -> bool:
    # not at once: it takes longer than a stage that has nothing to do
    from mathse.answers import reference_letters

    return bool(reference_letters(row))


def meant_field(name: str, row: dict) -> str | None:
    """The field of ours that a row's field of another name seems to mean: `images` for image_path or Images,
    `options` for A where there is a B."""
    if name in OPTION_NAMES and row.get("A") not in NOTHING and row.get("B") not in NOTHING:
        return "options"
    return alike_field(name)


@lru_cache(maxsize=1 << 10)
def alike_field(name: str) -> str | None:
    plain = re.sub(r"[\W_]", "", name).lower()
    alike = (field for field, names in LOOKALIKES.items() if plain == field or re.fullmatch(names, plain))
    return None if name in LOOKALIKES else next(alike, None)


def is_passed_over(value: object, ours: object, field: str) -> bool:
    """Whether a value under another name would be lost; `ours`: what stands in `field`, which it means."""
    if value in NOTHING or value == ours or (isinstance(ours, list) and value in ours):
        return False
    return ours in NOTHING or field in ("images", "options", "answer")
