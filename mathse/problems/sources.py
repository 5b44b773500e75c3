"""Read a source of problems: a file, a benchmark, or a data set of the hub.

PATH.jsonl         problem records (docs/RECORDS.md)
PATH.parquet       a table, or a folder of such files; images inside it, or as paths from its folder
NAME:PATH          a benchmark (benchmarks.py) in a folder, in its own form; NAME:OWNER/NAME on the hub
hf:NAME:SPLIT      a data set that `datasets` loads from the hub or from a local folder, streamed; `fields`
                   names its columns, and those of a table
"""

import csv
import hashlib
import itertools
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from mathse.images import image_problem, save_image
from mathse.launch import processes
from mathse.problems.benchmarks import BENCHMARK_FILES, BENCHMARKS, COMPLETED, HUB_PARTS, IMAGE_FOLDERS
from mathse.records import check_row, fail, json_lines, meant_field, read_rows, shown

PROBLEM_FIELDS = (
    "id", "question", "images", "answer", "options", "precision", "solution", "subject", "source", "level",
)  # fmt: skip
SPLIT_NAMES = {"train", "test", "testmini", "val", "valid", "validation", "dev"}  # of parquet files
# what an adapter raises at a field that is missing or of another type
WRONG_FORM = (LookupError, TypeError, ValueError, AttributeError)
# marks of images in questions that were made for a model
PLACEHOLDERS = re.compile(
    r"<image>|<\|image_pad\|>|<\|vision_start\|>|<\|vision_end\|>|<IMG_CONTEXT>|<fake_token_around_image>"
    r"|<video>|<\|video_pad\|>|<\|im_start\|>|<\|im_end\|>"
)


def load_problems(
    spec: str, image_folder: Path, fields: dict[str, str] | None = None
) -> tuple[str, Iterator[dict]]:
    """(name, problem records with absolute image paths) of a source, streamed and checked.

    `image_folder`: where images that come inside rows are saved. `fields`: {our field: column of a data set}.
    Ends the command in one line if the source cannot be read or a row is at fault.
    """
    name, _, path = spec.partition(":")
    if name == "hf":
        data_set, _, split = path.rpartition(":")
        if not data_set:
            fail(f"{spec}: a hub data set is written hf:NAME:SPLIT, for example hf:owner/name:train")
        rows = open_data_set(spec, data_set, split)
        rows = table_problems(rows, spec, data_set, fields or {}, image_folder)
        return re.sub("[/:]", "_", path.strip("/")), checked(rows, spec)
    if name in BENCHMARKS:
        is_folder = bool(path) and Path(path).is_dir()
        if not is_folder and not re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", path):
            remedy = f"write {name}:PATH, or {name}:OWNER/NAME of the hub"
            fail(f"{spec}: no folder {path or '(none given)'}; {remedy}")
        if not is_folder and processes()[0] == 0:
            print(f"{spec}: no such folder from here; taken for a data set of the hub", file=sys.stderr)
        rows = folder_rows(name, Path(path)) if is_folder else benchmark_hub_rows(name, path, image_folder)
        return name, checked(map(BENCHMARKS[name], COMPLETED.get(name, iter)(rows)), spec)
    files = parquet_files(Path(spec))
    if not files and not Path(spec).is_file():
        names = ", ".join(BENCHMARKS)
        kinds = f"a problems.jsonl, a parquet file, hf:NAME:SPLIT, or NAME:PATH with NAME in {names}"
        fail(f"{spec}: no such file; a source is {kinds}")
    name = Path(spec).absolute().name if Path(spec).is_dir() else Path(spec).stem
    if name in ("problems", "test"):  # which say little
        name = f"{Path(spec).parent.name}_{name}"
    if not files:
        return name, read_rows(spec)
    rows = table_problems(parquet_rows(files), spec, name, fields or {}, image_folder, files[0].parent)
    return name, checked(rows, spec)


def parse_fields(text: str) -> dict[str, str]:
    """ "question=problem images=image" -> {"question": "problem", "images": "image"}"""
    fields = dict(pair.partition("=")[::2] for pair in text.split())
    if unknown := [field for field in fields if field not in PROBLEM_FIELDS]:
        names = ", ".join(PROBLEM_FIELDS)
        fail(f"--fields: {unknown[0]}: not a field of a problem; they are {names}")
    return fields


def checked(rows: Iterator[dict], spec: str) -> Iterator[dict]:
    """The records, each checked; the first fault ends the command."""
    seen = set()
    for number in itertools.count(1):
        where = f"{spec}:{number}"
        try:
            row = next(rows, None)
        except WRONG_FORM as error:
            fail(f"{where}: {shown(error)}: the row is not in the source's own form; mend it")
        except OSError as error:
            if error.errno is not None:
                raise
            # of `datasets`: the network, or an image that it cannot decode
            fail(f"{where}: cannot be read: {error}", 1)
        if row is None:
            return
        check_row(row, where, ("id", "question", "answer"), lambda image: image_problem(Path(image)))
        if row["id"] in seen:
            fail(f"{where}: id: {shown(row['id'])} stands there already; make it unique")
        seen.add(row["id"])
        yield row


# ---------------------------------------------------------------- benchmarks


def folder_rows(name: str, folder: Path) -> Iterator[dict]:
    """Rows of a benchmark's files, with absolute paths in `image`."""
    paths = []
    for names in BENCHMARK_FILES[name]:
        paths += [folder / file for file in names if (folder / file).is_file()][:1]
    if not paths:
        names = ", ".join(file for names in BENCHMARK_FILES[name] for file in names)
        fail(f"{folder}: none of {names} in it; give the folder of the benchmark's own files")
    image_folder = folder.absolute() / IMAGE_FOLDERS.get(name, "")
    for path in paths:
        for row in file_rows(path):
            images = row.get("image") or []
            images = images if isinstance(images, list) else [images]
            yield row | {"image": [str(image_folder / image) for image in images]}


def file_rows(path: Path) -> Iterator[dict]:
    """Rows of JSON lines, of a csv file with a head line, or (.json) of a list or an object of rows."""
    if path.suffix == ".json":
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
        except (ValueError, RecursionError) as error:
            fail(f"{path}: not JSON ({error}); fetch the file again")
        content = list(content.values()) if isinstance(content, dict) else content
        rows = [(str(path), row) for row in (content if isinstance(content, list) else [content])]
    elif path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [(f"{path}:{number}", row) for number, row in enumerate(csv.DictReader(file), 2)]
    else:
        rows = json_lines(path)
    for where, row in rows:
        if not isinstance(row, dict):
            fail(f"{where}: a {type(row).__name__} instead of a row; give the benchmark's own file")
        yield row


def benchmark_hub_rows(name: str, source: str, image_folder: Path) -> Iterator[dict]:
    """Rows of a benchmark on the hub, `source` being OWNER/NAME or OWNER/NAME:SPLIT.

    The image is the column decoded_image or, where `image` itself is decoded, image.
    """
    data_set, _, wanted = source.partition(":")
    for configuration, split in HUB_PARTS.get(name, [(None, wanted or "testmini")]):
        if wanted not in ("", split):
            continue
        spec = f"{name}:{source}"
        for number, row in enumerate(open_data_set(spec, data_set, split, configuration), 1):
            image = row.get("decoded_image") or row.get("image")
            yield row | {"image": saved_images(image or [], image_folder, f"{spec}:{number}")}


# ---------------------------------------------------------------- tables: the hub, parquet files


def table_problems(
    rows: Iterator[dict],
    spec: str,
    name: str,
    fields: dict[str, str],
    image_folder: Path,
    place: Path | None = None,
) -> Iterator[dict]:
    """Problem records of a table's rows. A row without an id gets one made of its content.

    `place`: the folder from which paths of images count, if the table has one.
    """
    for number, row in enumerate(rows, 1):
        where = f"{spec}:{number}"
        check_columns(row, fields, where)
        record = {field: row.get(fields.get(field, field)) for field in PROBLEM_FIELDS}
        record["images"] = saved_images(record["images"], image_folder, where, place)
        if record["id"] is None:
            images = [os.path.relpath(image, image_folder) for image in record["images"]]
            content = json.dumps([record["question"], record["options"], images], ensure_ascii=False)
            record["id"] = hashlib.sha256(content.encode()).hexdigest()[:16]
        record["id"] = str(record["id"])
        if record["images"] and isinstance(record["question"], str):
            record["question"] = re.sub(rf"\s*(?:{PLACEHOLDERS.pattern})", "", record["question"]).strip()
        answer = None if record["answer"] == "" else record["answer"]  # not known
        known = {field: value for field, value in record.items() if value is not None}
        source = record["source"] or name
        yield known | {"question": record["question"], "answer": answer, "source": source}


def check_columns(row: dict, fields: dict[str, str], where: str) -> None:
    """End the command if question or answer is not there, or a column is passed over that looks like images
    or options; `options=` in --fields leaves them out on purpose."""
    for column in (fields.get("question", "question"), fields.get("answer", "answer")):
        if column not in row:
            remedy = 'name the right ones in --fields, for example "question=problem"'
            fail(f"{where}: {column}: no such column; it has {', '.join(row)}; {remedy}")
    for column in row:
        field = "images" if "image" in column.lower() else meant_field(column)
        if field in ("images", "options") and fields.get(field, field) not in ("", *row):
            remedy = f'set --fields, for example "{field}={column}", or "{field}=" to do without'
            fail(f"{where}: {field}: not mapped, but there is a column {column!r}; {remedy}")


def open_data_set(spec: str, name: str, split: str, configuration: str | None = None) -> Iterator[dict]:
    """The rows of a data set, streamed; opened when the first is asked for."""
    from datasets import load_dataset

    try:
        rows = load_dataset(name, configuration, split=split, streaming=True)
    except (OSError, ValueError) as error:  # not found, no such split, no network
        fail(f"{spec}: cannot be loaded: {str(error).splitlines()[0]}")
    yield from rows


def parquet_files(path: Path) -> list[Path]:
    """The parquet files that a path means: itself, or those in a folder, which must be of one split."""
    if path.is_file():
        return [path] if path.suffix == ".parquet" else []
    files = sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet"))
    # train-00000-of-00002 is of train
    splits = sorted({re.sub(r"\W\d+(?:-of-\d+)?$", "", file.stem) for file in files})
    if len(splits) > 1 and SPLIT_NAMES & {*splits}:
        remedy = f"give one file, or write hf:{path}:{splits[0]}"
        fail(f"{path}: holds several splits ({', '.join(splits)}); {remedy}")
    return files


def parquet_rows(files: list[Path]) -> Iterator[dict]:
    """The rows of parquet files, of which a few are in memory at a time."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    for path in files:
        try:
            with ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=16):
                    yield from batch.to_pylist()
        except ArrowException as error:
            fail(f"{path}: cannot be read: {str(error).splitlines()[0]}; fetch the file again")


def saved_images(value: object, folder: Path, where: str, place: Path | None = None) -> list[str]:
    """The paths of a row's images (one, a list, or None), saved in `folder` if they came inside the row."""
    values = value if isinstance(value, list) else [value]
    try:
        return [save_image(image, folder, place or Path()) for image in values if image is not None]
    except ValueError as error:
        fail(f"{where}: images: {error}; name the right column in --fields")
