"""Open a source of problems: a table, a benchmark, or a data set of the hub.

FILE             .jsonl, .json, .csv, .tsv or .parquet, or a folder of such files; images inside it, or as
                 paths from its folder. `fields` names the columns that are not called as ours
NAME:PATH        a benchmark (benchmarks.py) in a folder, in its own form; NAME:OWNER/NAME on the hub
hf:NAME:SPLIT    a data set that `datasets` loads from the hub or from a local folder, streamed; of several
                 configurations hf:NAME:CONFIGURATION:SPLIT
"""

import csv
import json
import os
import re
import sys
from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import count, islice
from pathlib import Path
from tempfile import TemporaryDirectory

from mathse.images import image_problem, save_image
from mathse.problems.benchmarks import BENCHMARKS
from mathse.problems.columns import (
    ABSENT,
    FIELDS,
    Fields,
    Find,
    look_up,
    passed_over,
    plain,
    read_columns,
    rest_of,
    to_problem,
    with_images,
)  # fmt: skip
from mathse.records import KNOWN_IMAGES, check_row, fail, image_finder, json_lines, shown, tell

KINDS = ("parquet", "arrow", "jsonl", "csv", "tsv")  # of a folder's files; json where there is no other
SPLIT_NAMES = {"train", "test", "testmini", "val", "valid", "validation", "dev"}
GAPS = ("", "nan", "NaN", "NaT", "<NA>")  # cells of a csv file: so pandas writes what is not there
# what an adapter raises at a field that is missing or of another type
WRONG_FORM = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
LARGEST = 1 << 28  # bytes of a member of an archive
Rows = Iterator[tuple[str, dict]]  # (where it stands, as file:line; the row)


def open_source(spec: str, folder: Path, fields: Fields, limit: int) -> tuple[str, Rows]:
    """(name, problems with absolute image paths, each with its place) of a source, streamed and checked.

    `folder`: where images that come inside rows are saved. `fields`: see parse_fields(). `limit`: rows that
    are read; 0: all. Ends the command in one line if the source cannot be read or a row is at fault.
    """
    kind, _, path = spec.partition(":")
    if kind in BENCHMARKS:
        rows, find = benchmark_rows(spec, kind, path, folder)
        return kind, checked(islice(benchmark_problems(kind, rows, folder, find), limit or None), spec)
    if kind == "hf":
        if not (parts := re.fullmatch(r"([^:]+)(?::([^:]+))?:([^:]+)", path)):
            forms = "hf:NAME:SPLIT or hf:NAME:CONFIGURATION:SPLIT"
            fail(f"{spec}: a hub data set is written {forms}, for example hf:owner/name:train")
        name, find = parts[1].strip("/").replace("/", "_"), finder(folder, parts[1])
        rows = hub_rows(spec, *parts.groups())
    else:
        files = files_of(Path(spec))
        kind, find = files[0].suffix.lower(), image_finder(files[0])
        name = Path(spec).absolute().name if Path(spec).is_dir() else Path(spec).stem
        if name in ("problems", "test"):  # which say little
            name = f"{files[0].absolute().parent.name}_{name}"
        rows = (row for file in files for row in file_rows(file))
    is_json = kind not in ("hf", ".parquet", ".arrow", ".csv", ".tsv")
    problems = table_problems(islice(rows, limit or None), spec, fields, folder, find, is_json)
    named = ((where, ({} if is_json else {"source": name}) | row) for where, row in problems)
    return name, checked(named, spec)


def checked(rows: Rows, spec: str) -> Rows:
    """The problems, each checked, and once if it stands there twice; the first fault ends the command."""
    seen, find_problem = {}, lru_cache(KNOWN_IMAGES)(image_problem)
    for number in count(1):
        try:
            where, row = next(rows, (spec, None))
        except WRONG_FORM as error:
            fail(f"{spec}:{number}: {error!r:.200}: the row is not in the source's own form; mend it")
        if row is None:
            break
        check_row(row, where, ("id", "question"), find_problem)
        content = hash(repr([row.get(field) for field in FIELDS]))
        if row["id"] not in seen:
            seen[row["id"]] = content
            yield where, row
        elif seen[row["id"]] != content:
            remedy = 'make it unique, or have ids made by --fields "id="'
            fail(f"{where}: id: {shown(row['id'])} stands there already, for another problem; {remedy}")
    if twice := number - 1 - len(seen):
        tell(f"{spec}: {twice} of {number - 1} rows stand there twice and are read once")
    if not seen:
        fail(f"{spec}: the file is empty; write at least one row")


# ---------------------------------------------------------------- tables


def table_problems(rows: Rows, spec: str, fields: Fields, folder: Path, find: Find, is_json: bool) -> Rows:
    """The problems of a table. In JSON a row may lack columns, and what else it holds stays; another table in
    which no row has a picture ends the command. A command's --fields are for all its sources: one that has
    none of their columns is read by our names.
    """
    columns = {column for field in fields for column in read_columns(field, fields)}
    # tell whether the source is meant: that of the question, unless it is called as ours
    telling = {*read_columns("question", fields)} - {*FIELDS} or columns
    unread, chosen = columns, {field: [] for field in fields if not fields[field]}
    number = pictures = 0
    for number, (where, row) in enumerate(rows, 1):
        try:
            row = plain(row)
        except ValueError as error:
            fail(f"{where}: {error}; write null there")
        unread = {name for name in unread if look_up(row, name) is ABSENT}
        if chosen != fields and (telling - unread or (number == 1 and "question" not in row)):
            if number > 1:
                fail(f"{where}: has columns of --fields, and the rows before it have none; write null there")
            chosen = fields
        needed = ("question",) if is_json else ("question", "answer", *chosen)
        problem = to_problem(row, chosen, needed, where)
        problem = with_images(problem, where, folder, find, chosen.get("images") == [])
        pictures += bool(problem["images"])
        kept = {field: value for field, value in problem.items() if value is not None}
        known = {"question": None, "answer": None} | kept
        yield where, (rest_of(row, chosen) if is_json else {}) | known
    if not number:
        return
    if unread and chosen == fields:
        fail(f"{spec}: {min(unread)}: none of {number} rows has such a column; mend --fields")
    if unread:
        tell(f"{spec}: has none of the columns of --fields; read by our names")
    if not (pictures or is_json or fields.get("images") == []):
        remedy = 'name their column in --fields, as "images=img", or write "images=" to do without'
        fail(f"{spec}: images: none of {number} rows has a picture; {remedy}")


def files_of(path: Path) -> list[Path]:
    """The files that a path means: itself, or those of a kind in a folder, which must be of one split."""
    if path.is_file():
        return [path]
    inside = [file for place in (path, path / "data") for file in sorted(place.glob("*.*"))]
    inside = [file for file in inside if not re.match("(cache-|(dataset_|state).*json$)", file.name)]
    kinds = [kind for kind in KINDS if any(file.suffix.lower() == f".{kind}" for file in inside)] or ["json"]
    if len(kinds) > 1:
        fail(f"{path}: holds files of several kinds ({', '.join(kinds)}); give one file")
    files = [file for file in inside if file.suffix.lower() == f".{kinds[0]}"]
    if not files:
        is_there = "holds no table" if path.exists() else "no such file"
        sources = f"a file or folder of {', '.join(KINDS)} or json, hf:NAME:SPLIT, or NAME:PATH with NAME in"
        fail(f"{path}: {is_there}; a source is {sources} {', '.join(BENCHMARKS)}")
    # train-00000-of-00002 is of train
    splits = sorted({re.sub(r"\W\d+(?:-of-\d+)?$", "", file.stem) for file in files})
    if len(splits) > 1 and SPLIT_NAMES & {*splits}:
        told = f"holds several splits ({', '.join(splits)})"
        fail(f"{path}: {told}; give one file, or write hf:{path}:{splits[0]}")
    return files


def file_rows(path: Path) -> Rows:
    """The rows of a file, by its ending; one of another ending is read as JSON lines."""
    readers = {".parquet": arrow_rows, ".arrow": arrow_rows, ".csv": csv_rows, ".tsv": csv_rows}
    readers |= {".json": json_rows}
    for where, row in readers.get(path.suffix.lower(), partial(json_lines, strict=False))(path):
        if not isinstance(row, dict):
            form = '{"id": ..., "question": ..., ...}'
            fail(f"{where}: a {type(row).__name__} instead of a row; write {form}")
        yield where, row


def json_rows(path: Path) -> Rows:
    """The rows of a list, of an object of rows, of a list in an object, or of JSON lines after all."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        if "Extra data" not in str(error):
            fail(f"{path}: not JSON ({error}); fetch the file again")
        yield from json_lines(path, strict=False)
        return
    if isinstance(content, dict) and "question" not in content:  # no row
        lists = ((name, value) for name, value in content.items() if isinstance(value, list))
        names = [name for name, value in lists if isinstance(next(iter(value), None), dict)]
        if len(names) > 1:
            told = f"holds several lists of rows ({', '.join(names)})"
            fail(f"{path}: {told}; write each into a file of its own")
        if names:
            content = content[names[0]]
        elif all(isinstance(value, dict) for value in content.values()):
            content = [*content.values()]
    rows = content if isinstance(content, list) else [content]
    yield from ((f"{path}:{number}", row) for number, row in enumerate(rows, 1))


def csv_rows(path: Path) -> Rows:
    """The rows of a file whose cells are parted by commas, semicolons or tabs, as its head line shows."""
    csv.field_size_limit(sys.maxsize)  # images as base64 text are long
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, delimiter=max(",;\t", key=file.readline().count), strict=True)
            file.seek(0)
            for row in rows:
                where = f"{path}:{rows.line_num}"
                if None in row or len({*rows.fieldnames}) < len(rows.fieldnames):
                    told = "more cells than names in the head line, or a name twice"
                    fail(f"{where}: {told}; put a text with commas into quotes")
                yield where, {name: None if cell in GAPS else cell for name, cell in row.items()}
    except (csv.Error, UnicodeDecodeError) as error:
        fail(f"{path}: cannot be read: {error}; save it anew as CSV in UTF-8")


def arrow_rows(path: Path) -> Rows:
    """The rows of a parquet file, or of one that Dataset.save_to_disk() wrote; a few are in memory."""
    from pyarrow import ArrowException, ipc
    from pyarrow.parquet import ParquetFile

    try:
        with path.open("rb") as file:
            is_parquet = path.suffix.lower() == ".parquet"
            parts = ParquetFile(file).iter_batches(batch_size=16) if is_parquet else ipc.open_stream(file)
            rows = (row for part in parts for row in part.to_pylist())
            yield from ((f"{path}:{number}", row) for number, row in enumerate(rows, 1))
    except (ArrowException, OSError) as error:
        if getattr(error, "errno", None):
            raise
        fail(f"{path}: cannot be read: {str(error).splitlines()[0]}; fetch the file again")


# ---------------------------------------------------------------- the hub


def hub_rows(spec: str, name: str, configuration: str | None, split: str) -> Rows:
    """The rows of a data set, streamed, images as they are stored; opened when the first is asked for."""
    from datasets import load_dataset

    number = 0
    try:  # not found, no such split, no network, a script, a broken file: `datasets` raises anything
        with TemporaryDirectory() as cache:  # what is streamed leaves nothing; a home may be read-only
            rows = load_dataset(name, configuration, split=split, streaming=True, cache_dir=cache)
            for number, row in enumerate(rows.decode(False) if rows.features else rows, 1):
                yield f"{spec}:{number}", row
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
        fail(f"{spec}:{number + 1}: cannot be loaded: {reason}", 1 if number else 2)


def finder(folder: Path, name: str) -> Find:
    """Finds the images that the data set `name` names: files, or members of archives, which are saved in
    `folder`. Raises OSError at what is neither on this machine nor a part of the data set.
    """

    def find(path: str) -> str:
        if not re.match("(zip|tar|gzip|hf)://", path):
            return os.path.abspath(path)
        place = path.rpartition("::")[2]
        if "://" in place and not re.match(rf"hf://datasets/{re.escape(name)}[@/]", place):
            raise OSError(f"{shown(path)} is no part of the data set")
        import fsspec

        with fsspec.open(path, "rb") as file:
            if len(content := file.read(LARGEST + 1)) > LARGEST:
                raise OSError(f"{shown(path)} has more than {LARGEST >> 20} MB")
            return save_image(content, folder)

    return find


# ---------------------------------------------------------------- benchmarks


def benchmark_rows(spec: str, name: str, path: str, folder: Path) -> tuple[Rows, Find]:
    """The rows of a benchmark: of a folder of its own files or of parquet files, or of the hub."""
    benchmark, place, wanted = BENCHMARKS[name], Path(path or "no folder"), ""
    found = [[place / file for file in names if (place / file).is_file()][:1] for names in benchmark.files]
    if files := sum(found, []):
        images = place.absolute() / benchmark.images
        return (row for file in files for row in file_rows(file)), lambda image: str(images / image)
    if place.is_dir():
        if not [*place.rglob("*.parquet")]:
            files = ", ".join(sum(benchmark.files, ()))
            fail(f"{place}: none of {files} in it; give the folder of the benchmark's own files")
    elif re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", path):
        tell(f"{spec}: no such folder from here; taken for a data set of the hub")
        path, _, wanted = path.partition(":")
    else:
        remedy = f"write {name}:PATH, or {name}:OWNER/NAME of the hub"
        fail(f"{spec}: no folder {path or '(none given)'}; {remedy}")
    parts = [part for part in benchmark.hub if wanted in ("", part[1])] or [(None, wanted)]
    return (row for part in parts for row in hub_rows(spec, path, *part)), finder(folder, path)


def benchmark_problems(name: str, rows: Rows, folder: Path, find: Find) -> Rows:
    for where, row in BENCHMARKS[name].complete(rows):
        problem = BENCHMARKS[name].adapter(plain(row))
        if not problem.get("images") and (lost := passed_over(row, {}).get("images")):
            told = f"the adapter of {name} reads none, but there is a column {lost[0]!r}"
            fail(f"{where}: images: {told}; mend the adapter")
        yield where, with_images(problem, where, folder, find)
