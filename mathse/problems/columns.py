"""A row of any table -> a problem record: which columns are a field, and what their values become."""

import ast
import contextlib
import hashlib
import json
import math
import re
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

from mathse.images import is_picture, save_image
from mathse.launch import DISK_ERRORS
from mathse.problems.marks import placed
from mathse.records import (
    NO_PROBLEM_S,
    NOTHING,
    OPTION_NAMES,
    Row,
    fail,
    is_an_option,
    is_passed_over,
    meant_field,
    shown,
)  # fmt: skip
from mathse.replies import escaped

FIELDS = (
    "id", "question", "images", "answer", "options", "precision", "solution", "subject", "source", "level",
)  # fmt: skip
GUESSES = {  # how a column may be called: to propose it where ours is missing
    "images": r"(.*[\W_])?(image|picture|figure|diagram|photo|img)s?(_?path)?",
    "question": r".*(question|problem|query|instruction|prompt|\.0\.(content|value))",
    "answer": r".*(answer|truth|label|target|correct).*|.*\.1\.(content|value)",
}
Fields = dict[str, list[str]]  # our field -> its columns, in order; "-x" is left out on purpose
Find = Callable[[str], str]  # the path of an image as a source names it -> as we open it
ABSENT = object()  # no such column
INDEX = re.compile(r"options\[(.+?)(-1)?\]")  # a column of answers that count the options from 0 (-1: from 1)
LETTER = re.compile(r"(?:^|(?<=[\s;,]))[(（]?([A-J])[).:．）、]\s*")  # in front of an option: A. or (A)


def parse_fields(text: str) -> Fields:
    """ "question=problem images=a,b" -> {"question": ["problem"], "images": ["a", "b"]}

    A name with a space stands in quotes.
    """
    try:
        pairs = [pair.partition("=") for pair in shlex.split(text)]
    except ValueError as error:
        fail(f"--fields: {text}: {error}; write a name with a space as \"'images=the image'\"")
    fields = {field: [*filter(None, columns.split(","))] for field, _, columns in pairs}
    if unknown := [field for field in fields if field not in FIELDS]:
        fail(f"--fields: {unknown[0]}: not a field of a problem; they are {', '.join(FIELDS)}")
    return fields


# ---------------------------------------------------------------- which columns


def read_columns(field: str, fields: Fields) -> list[str]:
    """The columns that a field is read from."""
    return [INDEX.sub(r"\1", name) for name in fields.get(field, [field]) if not name.startswith("-")]


def look_up(row: dict, column: str) -> object:
    """The value of a column, or of what is nested in it (reward_model.ground_truth), or ABSENT."""
    if column in row:
        return row[column]
    value = row
    try:
        for part in column.split("."):
            value = json.loads(value) if isinstance(value, str) else value
            value = value[int(part)] if isinstance(value, list) else value[part]
    except (LookupError, TypeError, ValueError):
        return ABSENT
    return value


def names_in(row: dict) -> Iterator[str]:
    """The names of a row's columns, and of what is nested in them."""
    for name, value in row.items():
        yield name
        is_list = isinstance(value, list)
        for number, part in enumerate(value[:2] if is_list else [value]):
            if isinstance(part, dict) and not is_picture(part):
                yield from (f"{name}.{number}.{key}" if is_list else f"{name}.{key}" for key in part)


def named_by(fields: Fields) -> set[str]:
    """The columns of which --fields speak."""
    columns = (column.removeprefix("-") for columns in fields.values() for column in columns)
    named = {INDEX.sub(r"\1", column) for column in columns}
    return named | {column.partition(".")[0] for column in named}


def rest_of(row: dict, fields: Fields) -> dict:
    """What else a row of JSON holds, beside its fields and what stages write: it stays."""
    gone = {*FIELDS, *Row.__struct_fields__, *NO_PROBLEM_S} | named_by(fields)
    gone |= {name for name, value in row.items() if meant_field(name, row) or is_picture(value)}
    return {name: value for name, value in row.items() if name not in gone}


def is_series(one: str, other: str) -> bool:
    """Whether two columns are of one set: image and image_2, A and B, option_a and option_b."""
    bare, rest = re.sub(r"[\W_]*\d+$", "", one), re.sub(r"[\W_]*\d+$", "", other)
    by_letter = one[:-1] == other[:-1] and (len(one) > 1 or {one, other} <= {*OPTION_NAMES})
    return bare == rest or by_letter


def passed_over(row: dict, fields: Fields) -> Fields:
    """{our field: the columns that look like it and are not read}"""
    named, found = named_by(fields), defaultdict(list)
    for column, value in row.items():
        if column in FIELDS or column in named or value in NOTHING:
            continue
        field = meant_field(column, row) or ("images" if is_picture(value) else "")
        if field in fields:  # the user has chosen: asked about is what belongs to the choice, or is a picture
            chosen = read_columns(field, fields)
            is_lost = any(is_series(column, name) for name in chosen) or bool(chosen) and is_image(value)
        else:
            is_lost = field and is_passed_over(value, row.get(field), field)
        if is_lost:
            found[field].append(column)
    return found


def is_image(value: object) -> bool:
    """Whether a value is an image itself, not a path or text of one."""
    return is_picture(value) and not isinstance(value, str)


def check_columns(row: dict, fields: Fields, needed: tuple[str, ...], where: str) -> None:
    """End the command if a column of a needed field is not there, or one is passed over that looks like ours.
    The line holds --fields that read it, and --fields that leave it out.
    """
    wanted = {name: field for field in needed for name in read_columns(field, fields)}
    missing = {name: field for name, field in wanted.items() if look_up(row, name) is ABSENT}
    fields = {field: columns for field, columns in fields.items() if field not in missing.values()}
    lost = passed_over(row, fields)
    for name in missing:
        remedy = f"name the right ones in --fields, for example {command(proposed(row, fields, lost))}"
        fail(f"{where}: {name}: no such column; it has {', '.join(names_in(row))[:500]}; {remedy}")
    for field, columns in lost.items():
        there = f"there is a column {columns[0]!r}" if len(columns) == 1 else f"there are columns {columns}"
        kept = kept_columns(row, fields, field)
        without = command({field: [*kept, *(f"-{column}" for column in columns if kept)]})
        read = command(proposed(row, fields, lost))
        remedy = f"set --fields, for example {read}, or {without} to do without"
        fail(f"{where}: {field}: not mapped, but {there}; {remedy}")


def kept_columns(row: dict, fields: Fields, field: str) -> list[str]:
    """The columns from which a field that is not empty is read as it is."""
    return fields.get(field) or [field] * (row.get(field) not in NOTHING)


def proposed(row: dict, fields: Fields, lost: Fields) -> Fields:
    """--fields that read what is lost, all of a set, gaps included, and what may be a missing field."""
    read = dict(fields)
    for field, columns in lost.items():
        first = [name for name in columns if is_image(row[name])] or columns[:1]  # images before their paths
        kept = kept_columns(row, fields, field) if field != "answer" else []
        more = (name for name in row if any(is_series(name, one) for one in first))
        read[field] = [*dict.fromkeys((*kept, *more))]
    for field, guess in GUESSES.items():
        alike = [name for name in names_in(row) if re.fullmatch(guess, name, re.I)]
        if alike and field not in read and field not in row:
            read[field] = alike[-1:]
    return read or {"question": ["problem"]}


def command(fields: Fields) -> str:
    pairs = [f"{field}={','.join(columns)}" for field, columns in fields.items()]
    return '"' + " ".join(f"'{pair}'" if " " in pair else pair for pair in pairs) + '"'


# ---------------------------------------------------------------- what values become


def plain(value: object) -> object:
    """A value as JSON has it: a gap (NaN, NaT) is None, decimals and dates are text. Images stay as they are.

    Raises ValueError at Infinity.
    """
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [*map(plain, value)]
    if value is None or value != value:
        return None
    if isinstance(value, float) and math.isinf(value):
        raise ValueError(f"{value} is not a number that JSON has")
    return value if isinstance(value, (str, int, float, bytes)) or is_picture(value) else str(value)


def list_of(value: object) -> object:
    """The list that a cell means: a text, a dictionary by letters or of lists, lettered text. Else itself."""
    if isinstance(value, str):
        text = value.strip()
        ahead, *parts = LETTER.split(text)
        if not ahead and len(parts) > 2 and "ABCDEFGHIJ".startswith("".join(parts[::2])):
            return [part.strip(" \n;,") for part in parts[1::2]]
        if re.fullmatch(r"\[.*\]|\{.*\}|\(.*\)", text, re.DOTALL):
            text = escaped(re.sub(r"(?<=['\"])\s+(?=['\"])", ", ", text))  # numpy writes no commas
            for read in (json.loads, ast.literal_eval):
                with contextlib.suppress(ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
                    return list_of(plain(read(text)))
    if isinstance(value, dict) and not is_picture(value):
        lists = [value[name] for name in sorted(value, reverse=True) if isinstance(value[name], list)]
        is_by_letter = all(len(name) < 3 for name in value)
        names = sorted(value, key=lambda name: (len(name), name)) if is_by_letter else value
        return lists[0] if lists else [value[name] for name in names]  # "text" stands before "label"
    return value


def images_of(value: object) -> Iterator[object]:
    """The images of a column or of a set of columns, however they are nested. Gaps are none."""
    is_one = is_picture(value) or isinstance(value, dict) and {"bytes", "path"} & value.keys()
    value = value if is_one else list_of(value)
    if isinstance(value, list):
        for one in value:
            yield from images_of(one)
    elif value not in (None, ""):
        yield value


def field_value(field: str, values: list) -> object:
    """What the values of a field's columns become. Gaps at the end of options are none."""
    if field == "images":
        return [*images_of(values)]
    if field == "options":
        options = list_of(values[0]) if len(values) == 1 else values
        while isinstance(options, list) and options and options[-1] in (None, ""):
            options = options[:-1]
        return [*map(as_text, options)] if isinstance(options, list) else options
    known = [value for value in map(as_text, values) if value not in NOTHING and str(value).strip()]
    if field == "precision" and known:
        with contextlib.suppress(ValueError, OverflowError):
            return int(float(known[0]))
    if field == "id":  # in a column with gaps whole numbers are floats
        known = [int(value) if isinstance(value, float) and value.is_integer() else value for value in known]
    if field == "answer" and len(known) > 1:
        return known
    if known and (field in ("id", "solution", "subject", "source") or len(known) > 1):
        lines = (line for value in known for line in (value if isinstance(value, list) else [value]))
        return "\n".join(map(str, lines))
    return next(iter(known), None)


def as_text(value: object) -> object:
    """Bytes and truth values as text, others as they are."""
    value = value.decode() if isinstance(value, bytes) else value
    return str(value) if isinstance(value, bool) else value


def to_problem(row: dict, fields: Fields, needed: tuple[str, ...], where: str) -> dict:
    """The problem record of a plain row of a table, its images as they stand there."""
    check_columns(row, fields, needed, where)
    problem = {}
    for field in FIELDS:
        found = [look_up(row, column) for column in read_columns(field, fields)]
        problem[field] = field_value(field, [value for value in found if value is not ABSENT] or [None])
    options, answer = problem["options"] or [], problem["answer"]
    index = next(filter(None, map(INDEX.fullmatch, fields.get("answer", []))), None)
    if index and options and answer is not None:
        number = float(answer) - bool(index[2])
        if not (number.is_integer() and 0 <= number < len(options)):
            fail(f"{where}: answer: {answer} counts none of the options {shown(options)}; mend the row")
        problem["answer"] = options[int(number)]
    elif options and type(answer) is int and isinstance(options, list) and not is_an_option(problem):
        counted = command(fields | {"answer": [f"options[{read_columns('answer', fields)[0]}]"]})
        remedy = f"if it counts them from 0, set --fields {counted}"
        fail(f"{where}: answer: {answer} is not among the options {shown(options)}; {remedy}")
    return problem


def with_images(problem: dict, where: str, folder: Path, find: Find, without: bool = False) -> dict:
    """The record with the paths of its images, which are saved in `folder` or found by find(path), with IMAGE
    where they stand, and with an id made of all that if it has none. `without`: without images on purpose.
    """
    written = [*images_of(problem["images"])]
    try:
        images = [save_image(image, folder, find) for image in written]
    except Exception as error:  # an archive raises anything
        if getattr(error, "errno", None) in DISK_ERRORS:
            raise
        fail(f"{where}: images: {error}; mend the row, or name the right column in --fields")
    problem = placed(problem | {"images": images}, where, without)
    if problem.get("id") is None:  # the same wherever images lie
        names = {path: one if isinstance(one, str) else Path(path).name for path, one in zip(images, written)}
        content = problem | {"images": [names[path] for path in problem["images"]]}
        content = json.dumps(content, ensure_ascii=False)
        problem["id"] = hashlib.sha256(content.encode("utf-8", "replace")).hexdigest()[:16]
    return problem
