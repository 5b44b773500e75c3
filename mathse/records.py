"""Rows: their schema, how they are read and checked, their keys and seeds; how a command ends on a user
error.

A stage reads its files with read_rows(). The first pass checks every row and ends the command at the first
fault; a second pass over the same file goes without, and what breaks meanwhile becomes an error record
where it is used.
"""

import codecs
import hashlib
import itertools
import json
import math
import os
import re
import reprlib
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

from mathse.answers import reference_letters
from mathse.images import image_problem

MAX_LINE = 16 << 20  # bytes; a longer line is refused unread
KNOWN_IMAGES = (
    1 << 14
)  # images of a file whose headers are not read again for the other samples of their problem
# marks an image in a message's text, as in the training files of TRL, ms-swift and LLaMA-Factory
IMAGE = "<image>"
PLACEHOLDERS = re.compile(
    r"<image>|<\|image_pad\|>|<\|vision_start\|>|<\|vision_end\|>|<IMG_CONTEXT>|<fake_token_around_image>"
    r"|<video>|<\|video_pad\|>|<\|im_start\|>|<\|im_end\|>"
)
LOOKALIKES = {  # of fields of ours: passed over, one would lose the images, the options or the answer
    "images": r"(decoded)?(image|img|picture|pic|photo|figure)s?(path|file|filename|name|url)?s?\d*",
    "options": r"(multiple|answer)?(choice|option)s?(list|text)?s?|(choice|option)[a-h1-8]",
    "answer": r"answers|(gt|gold|correct|reference|standard)answers?|groundtruth|gold",
    "question": "question",
    "id": "id",
}
VALUES = {"finish": ("stop", "length", "error"), "status": ("correct", "wrong", "undecided")}
# What a verdict adds to a row: not the reflection's, and made anew when a verified file is verified again.
VERDICT_FIELDS = {
    "answer_check", "orm_check", "status", "extracted", "rule", "error_step", "error_type", "error_analysis",
    "judge_reply", "judge_tokens", "judge_error", "teacher_check",
}  # fmt: skip
Refuse = Callable[[str, str], NoReturn]  # (field, problem and remedy)


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
    """What is unique in a file: problem and sample; in predictions also the benchmark, in training files
    the origin.
    """
    kind = row.get("origin") if "messages" in row else row.get("benchmark")
    return json.dumps([row["id"], row.get("sample", 0), kind])


def derive_seed(*parts: object) -> int:
    """A seed of 31 bits from names, never from order: (run seed, round, problem id, sample)."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:4], "big") >> 1


def is_held_out(name: str, share: float, seed: int) -> bool:
    """Whether a problem is of the share that is not trained on: the same for every model of a run."""
    return derive_seed(seed, "held out", name) < share * (1 << 31)


def same_text(text: str) -> str:
    """A digest by which two responses are the same text, blank space aside. The same in every process."""
    return hashlib.sha256(" ".join(text.split()).encode("utf-8", "replace")).hexdigest()[:16]


def relative_images(row: dict, folder: Path) -> dict:
    """The row with its image paths, if it has any, relative to `folder`, where its new file lies."""
    if "images" not in row:
        return row
    folder = os.path.realpath(folder)  # a run folder may be a link to another disk
    return row | {
        "images": [os.path.relpath(os.path.realpath(image), folder) for image in row.get("images", [])]
    }


# ---------------------------------------------------------------- reading


def json_lines(path: Path) -> Iterator[tuple[str, object]]:
    """(file:line, value) of every line that is not blank.

    A BOM and CRLF are fine; NaN and Infinity are not JSON.
    """

    def finite(text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise ValueError(f"{text} is not a number that JSON has")
        return value

    decoder = json.JSONDecoder(parse_float=finite, parse_constant=finite)
    if not path.is_file():
        what = (
            "not a plain file; it is read twice, so no folder and no pipe"
            if path.exists()
            else "no such file"
        )
        fail(f"{path}: {what}")
    try:
        file = path.open("rb")
    except OSError as error:
        fail(f"{path}: cannot be read ({error.strerror}); look at its permissions")
    with file:
        for number in itertools.count(1):
            line, where = file.readline(MAX_LINE + 1), f"{path}:{number}"
            if not line:
                return
            if len(line) > MAX_LINE:
                remedy = "write one JSON object a line, images as paths"
                fail(f"{where}: a line of more than {MAX_LINE >> 20} MB; {remedy}")
            if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                fail(f"{where}: not a JSON object in UTF-8 but UTF-16; save the file as UTF-8")
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not line.strip():
                continue
            try:
                value = decoder.decode(line.decode("utf-8").strip())
            except (ValueError, RecursionError) as error:  # bad UTF-8, bad JSON, JSON nested without end
                remedy = "write one object a line: mend or remove this one"
                fail(f"{where}: not a JSON object in UTF-8 ({error}); {remedy}")
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
    twice.
    """
    path, keys, row = Path(path), {}, None
    find_problem = lru_cache(maxsize=KNOWN_IMAGES)(image_problem)
    for where, row in json_lines(path):
        if not isinstance(row, dict):
            form = '{"id": ..., "question": ..., ...}'
            fail(f"{where}: a {type(row).__name__} instead of a JSON object; write {form}")
        if check:
            check_row(row, where, required, find_problem)
            if (key := hash(row_key(row))) in keys:
                twice = (
                    f"{shown(row['id'])}, sample {row.get('sample', '-')} stands already in line {keys[key]}"
                )
                fail(f"{where}: id: {twice}; make it unique")
            keys[key] = int(where.rpartition(":")[2])
        row["images"] = [str(path.parent.absolute() / image) for image in row.get("images") or []]
        yield row
    if (
        row is None and not may_be_empty
    ):  # a round may have nothing left to sample, a problem file must not be empty
        fail(f"{path}: the file is empty; write at least one row")


def written_rows(path: Path) -> Iterator[dict]:
    """The whole rows of a JSONL file that a stage wrote, unchecked; none if there is no such file."""
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            yield from (json.loads(line) for line in file if line.endswith("\n"))


# ---------------------------------------------------------------- checking


def check_row(
    row: dict, where: str, required: Iterable[str], find_problem: Callable[[Path], str | None]
) -> None:
    """End the command if a row breaks the record table (docs/RECORDS.md).

    Of images `find_problem` reads the header.
    """

    def refuse(field: str, problem: str) -> NoReturn:
        fail(f"{where}: {field}: {problem}")

    for field in row:
        meant = meant_field(field)
        if meant and (meant not in row or (row[field] and row[meant] in (None, "", []))):
            refuse(field, f"not a field of a problem; call it {meant!r}")
    for field in required:
        if field not in row:
            refuse(field, f"missing; this stage needs {', '.join(required)}")
    check_texts(row, refuse)
    check_answer_and_options(row, refuse)
    if "messages" in row:
        check_messages(row, refuse)
    images = row.get("images")
    if images is not None and not (
        isinstance(images, list) and all(isinstance(image, str) for image in images)
    ):
        refuse("images", f'must be a list of paths, not {shown(images)}; write ["image.png"]')
    for image in images or []:
        if problem := find_problem(Path(where.rsplit(":", 1)[0]).parent / image):
            refuse("images", f"{shown(image) if len(image) > 200 else image}: {problem}")


@lru_cache(maxsize=1 << 10)
def meant_field(name: str) -> str | None:
    """The field of ours that a name of another spelling seems to mean: `images` for image_path or Images."""
    plain = re.sub(r"[\W_]", "", name).lower()
    if name in LOOKALIKES:
        return None
    alike = (field for field, names in LOOKALIKES.items() if plain == field or re.fullmatch(names, plain))
    return next(alike, None)


def check_texts(row: dict, refuse: Refuse) -> None:
    """Strings that must be there, fields with few values, characters that no tokenizer or file takes."""
    for field in ("id", "question", "response", "prompt", "judge_prompt"):
        if field not in row:
            continue
        if not isinstance(row[field], str) or (field != "response" and not row[field].strip()):
            refuse(field, f"{shown(row[field])} is not a string with text in it; write one")
    for field, names in VALUES.items():
        if row.get(field, names[0]) not in names:
            refuse(field, f"{shown(row[field])} is none of {', '.join(names)}; is this a file of 01 or 02?")
    if not is_count(row.get("sample", 0)):
        refuse(
            "sample", f"{shown(row['sample'])} is not a whole number from 0; number the samples of a problem"
        )
    for field, value in row.items():
        text = (
            value
            if isinstance(value, str)
            else json.dumps(value, ensure_ascii=False)
            if isinstance(value, list)
            else ""
        )
        if re.search(r"[\ud800-\udfff]", text):
            refuse(field, "holds half a surrogate pair, which is no character; write the text anew in UTF-8")


def check_answer_and_options(row: dict, refuse: Refuse) -> None:
    options, answer = row.get("options"), row.get("answer")
    if options is not None and not (isinstance(options, list) and all(map(is_scalar, options))):
        refuse("options", f'must be a list of strings, not {shown(options)}; write ["3", "4"]')
    is_list = isinstance(answer, list) and answer and all(map(is_scalar, answer))
    if answer is not None and not (is_scalar(answer) or is_list):
        refuse("answer", f"must be a string, a number, a list of them, or null, not {shown(answer)}")
    if isinstance(answer, str) and not answer.strip():
        refuse("answer", "is empty; write null if it is not known")
    for field, text in (
        ("question", row.get("question", "")),
        *(("options", str(option)) for option in options or []),
    ):
        if found := PLACEHOLDERS.search(text):
            remedy = "remove it: images go in front of the question"
            refuse(field, f"holds the image placeholder {found.group()!r}; {remedy}")
    if options and answer is not None and not reference_letters(row):
        remedy = "write the letter or the text of one, or null if it is not known"
        refuse("answer", f"{shown(answer)} is not among the options {shown(options)}; {remedy}")


def check_messages(row: dict, refuse: Refuse) -> None:
    """The messages of a training row: prompt and reply as texts, with as many IMAGE marks as images."""
    messages, roles = row["messages"], []
    for message in messages if isinstance(messages, list) else []:
        has_text = isinstance(message, dict) and isinstance(message.get("content"), str)
        roles.append(message.get("role") if has_text else None)
    if len(roles) < 2 or roles[-1] != "assistant" or not set(roles) <= {"system", "user", "assistant"}:
        refuse("messages", 'must be a list of {"role", "content"} with texts, the last by the assistant')
    marks = sum(message["content"].count(IMAGE) for message in messages if message["role"] == "user")
    images = len(row.get("images") or [])
    if marks != images:
        refuse("messages", f"{marks} {IMAGE} marks for {images} images; write one for each")


def listed(counts: dict) -> str:
    """Counts as a summary line shows them."""
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "nothing to do"


def is_scalar(value: object) -> bool:
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def shown(value: object) -> str:
    """A value as a message shows it: cut short, on one line."""
    return reprlib.repr(value)
