"""Where problems come from: files, hub data sets and benchmarks in their own form -> problem records.

A source is written PATH.jsonl (records as in the README), NAME:PATH or NAME:OWNER/NAME for a benchmark (BENCHMARKS) in a folder or on the hub, or
hf:NAME:SPLIT for a data set that `datasets` loads from the hub or from a local folder, with its columns named by --columns.

Writes: problems.jsonl   id, question, images, answer, optional options, precision, solution, subject, source, level, query (the benchmark's own
                         prompt); pictures that come inside rows go to images/

RULES are the benchmarks' own ways to score, beside which 05_evaluate.py reports its own.

    python benchmarks.py --input mathvision:MATH-V/testmini --output problems.jsonl
    python benchmarks.py --input hf:MathLLMs/MathVision:test --columns images=decoded_image --output problems.jsonl --limit 100
"""

import argparse
import hashlib
import io
import itertools
import json
import math
import os
import re
from itertools import islice
from pathlib import Path
from typing import Callable, Iterator

from tqdm import tqdm

from answers import LETTERS
from checks import check_flags, check_row, image_problem, json_lines, read_rows, shown
from common import PLACEHOLDERS, fail, open_image, relative_images
from output import disk_errors, finished

FIELDS = ("id", "question", "images", "answer", "options", "precision", "solution", "subject", "source", "level")


def mathvision(row: dict) -> dict:
    """A row of MATH-V. Its <image1> marks are dropped when there is one; several (all drawn and labelled in one picture) stay, as text."""
    question, options = row["question"], row.get("options") or []
    choices = "".join(f"({letter}) {option}\n" for letter, option in zip(LETTERS, options)) if options != list(LETTERS[: len(options)]) else ""
    query = f'Please solve the problem step by step and put your answer in one "\\boxed{{}}". If it is a multiple choice question, only one letter is allowed in the "\\boxed{{}}".\n{question}\n{choices}'
    if len(set(re.findall(r"<image\d+>", question))) == 1:
        question = re.sub(r"\s*<image\d+>\s*", " ", question).strip()
    return {
        "id": f"mathvision/{row['id']}", "question": question, "images": row["image"], "answer": row["answer"], "options": options,
        "subject": row.get("subject"), "level": row.get("level"), "source": "mathvision", "query": query,
    }  # fmt: skip


MATHVISTA_HINTS = {  # its own words
    "choice": "Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end.",
    "integer": "Hint: Please answer the question requiring an integer answer and provide the final value, e.g., 1, 2, 3, at the end.",
    "float 1": "Hint: Please answer the question requiring a floating-point number with one decimal place and provide the final value, e.g., 1.2, 1.3, 1.4, at the end.",
    "float 2": "Hint: Please answer the question requiring a floating-point number with two decimal places and provide the final value, e.g., 1.23, 1.34, 1.45, at the end.",
    "list": "Hint: Please answer the question requiring a Python list as an answer and provide the final list, e.g., [1, 2, 3], [1.2, 1.3, 1.4], at the end.",
}


def mathvista(row: dict) -> dict:
    """A row of MathVista. Which form of answer is wanted stands in its hint only: in our prompt too, but for choices, whose letter is asked for anyway."""
    choices, precision = row.get("choices") or [], int(row["precision"]) if row.get("precision") is not None else None
    hint = MATHVISTA_HINTS["choice" if choices else f"float {precision}" if row["answer_type"] == "float" else row["answer_type"]]
    question = row["question"] + (f" (Unit: {row['unit']})" if row.get("unit") else "")
    lettered = "\nChoices:\n" + "\n".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices)) if choices else ""
    return {
        "id": f"mathvista/{row['pid']}", "question": question if choices else f"{question}\n{hint}", "images": row["image"], "answer": row["answer"], "options": choices,
        "precision": precision, "subject": row["metadata"]["task"], "level": row["metadata"]["grade"], "source": row["metadata"]["source"],
        "query": f"{hint}\nQuestion: {question}{lettered}",
    }  # fmt: skip


def mathverse(row: dict) -> dict:
    """A row of MathVerse, of one of its five versions or text only."""
    text, answer = (re.sub(r"(?<=\d)掳", "°", row[name]) for name in ("question", "answer"))  # degree signs that were once read as Chinese
    question, *choices = re.split(r"\n(?:Choices:\n)?[A-H]:", text)
    return {
        "id": f"mathverse/{row['problem_index']}/{row['problem_version'].lower().replace(' ', '-')}", "question": question.strip() or "Solve the problem that stands in the image.",
        "images": row["image"], "answer": answer, "options": choices, "subject": row["metadata"]["subject"], "level": row["metadata"]["subfield"],
        "source": row["problem_version"], "query": row.get("query_cot"),
    }  # fmt: skip


def mathvl(row: dict) -> dict:
    """A row of MathVL-test, which is not public, in a form of ours: test.jsonl beside its pictures, one problem a line,

    {"id": "1", "image": "images/1.png" (or a list, or null), "question": "…", "answer": "B", "options": ["…", "…"], "type": "choice", "subject": "…", "grade": "…"}

    with options, type (choice, blank …), subject (of knowledge) and grade where there are any; several blanks or letters are one answer: "25; 0.5", "AC".
    """
    return {
        "id": f"mathvl/{row['id']}", "question": row["question"], "images": row["image"], "answer": row["answer"], "options": row.get("options") or [],
        "subject": row.get("subject"), "level": row.get("grade"), "source": row.get("type"),
    }  # fmt: skip


BENCHMARKS = {"mathvision": mathvision, "mathvista": mathvista, "mathverse": mathverse, "mathvl": mathvl}
FILES = {  # in a benchmark's folder: of each tuple the first file that is there
    "mathvision": [("problems.jsonl", "testmini.jsonl", "test.jsonl")],
    "mathvista": [("testmini.json", "testmini.jsonl", "test.json")],
    "mathverse": [("testmini.json",), ("testmini_text_only.json", "testmini_text_only.jsonl")],
    "mathvl": [("test.jsonl", "problems.jsonl")],
}
PICTURES = {"mathverse": "images"}  # the folder inside it that `image` is relative to, where it is not the benchmark's own
HUB_PARTS = {"mathverse": [("testmini", "testmini"), ("testmini_text_only", "testmini_text_only")]}  # (configuration, split) on the hub; of the others the split testmini
SPLITS = {  # by what each is reported: name -> field; None: any other test set
    "mathvision": {"subject": "subject", "level": "level"},
    "mathvista": {"task": "subject", "grade": "level", "source": "source"},  # GPS is its task "geometry problem solving"
    "mathverse": {"version": "source", "subject": "subject", "subfield": "level"},
    "mathvl": {"subject": "subject", "type": "source", "grade": "level"},
    None: {"subject": "subject", "source": "source"},
}


def benchmark_problems(name: str, source: str, pictures: Path) -> Iterator[dict]:
    """Problem records of a benchmark: from a folder in its source form, or OWNER/NAME or OWNER/NAME:SPLIT on the hub."""
    return map(BENCHMARKS[name], folder_rows(name, Path(source)) if Path(source).is_dir() else benchmark_hub_rows(name, source, pictures))


def folder_rows(name: str, folder: Path) -> Iterator[dict]:
    """Rows of the benchmark's files, with absolute paths in `image`."""
    paths = [path for names in FILES[name] if (path := next((folder / file for file in names if (folder / file).is_file()), None))]
    if not paths:
        fail(f"{folder}: none of {', '.join(file for names in FILES[name] for file in names)} in it; give the folder of the benchmark's own files")
    for path in paths:
        for row in read_source(path):
            images = row.get("image") or []
            yield row | {"image": [str(folder.absolute() / PICTURES.get(name, "") / image) for image in (images if isinstance(images, list) else [images])]}


def read_source(path: Path) -> Iterator[dict]:
    """Rows of JSON lines, or (.json) of a list or an object of rows."""
    if path.suffix == ".json":
        try:
            rows = json.loads(path.read_text(encoding="utf-8-sig"))
        except (ValueError, RecursionError) as error:
            fail(f"{path}: not JSON ({error}); fetch the file again")
        rows = [(str(path), row) for row in (rows.values() if isinstance(rows, dict) else rows if isinstance(rows, list) else [rows])]
    else:
        rows = json_lines(path)
    for where, row in rows:
        if not isinstance(row, dict):
            fail(f"{where}: a {type(row).__name__} instead of a row; give the benchmark's own file")
        yield row


def benchmark_hub_rows(name: str, source: str, pictures: Path) -> Iterator[dict]:
    """Rows from the hub; a picture is the column decoded_image or, where `image` is decoded itself, image."""
    repository, _, split = source.partition(":")
    parts = HUB_PARTS.get(name, [(None, split or "testmini")])
    for configuration, part in [pair for pair in parts if split in ("", pair[1])]:
        for number, row in enumerate(hub_dataset(f"{name}:{source}", repository, part, configuration), 1):
            picture = row.get("decoded_image") or row.get("image")
            yield row | {"image": [save_picture(picture, pictures, f"{name}:{source}:{number}")] if picture else []}


# ---------------------------------------------------------------- the benchmarks' own rules


def mathvision_rule(row: dict, equal: Callable[[str, str], bool]) -> bool:
    """MATH-V's evaluate.py: the answer by string rules, equal as text or in value to two decimals (by `equal`), to the letter or the option's value."""
    said = row["response"].strip()
    for letter in "ABCDE":
        if said.endswith((f" {letter}.", f" ({letter}).")) or said.startswith((f"{letter}\n", f"({letter})\n", f"({letter}) {letter}\n")):
            said = letter
    if is_float(number := said.split("is ")[-1].rstrip(".")):
        said = number
    if "oxed{" not in said:
        for phrase in ("the final answer is", "the answer is", "the correct answer is", "the answer should be"):
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
    for word in (" ", "\\,", "\n", "\\text", "\\mbox", "\\left", "\\right", "^{\\circ}", "^\\circ", "{m}^3", "m^3", "{units}", "units", "{km}", "km", "\\!", "$", "\\%"):
        said = said.replace(word, "")
    said = re.sub(r"[({]([a-e])[)}]", r"\1", said).rstrip(".").lstrip(":")
    golds = [str(row["answer"])]
    if row.get("options") and golds[0] in LETTERS[: len(row["options"])]:
        golds.append(str(row["options"][LETTERS.index(golds[0])]))
    return any(said and (said == gold.lower().strip() or is_value(said) and is_value(gold) and equal(said, gold)) for gold in golds)


def mathvista_rule(row: dict, equal: Callable[[str, str], bool]) -> bool:
    """MathVista's calculate_score.py, on the answer that our rules find (the original asks GPT-4 to extract it): the letter's or the nearest option, int(float()), rounding."""
    said, answer, options = (row["extracted"] or "").strip(), str(row["answer"]), [str(option) for option in row.get("options") or []]
    if options:
        letter = re.search(r"\(([a-zA-Z])\)", said)
        said = letter[1].upper() if letter else said
        return answer == (options[LETTERS.index(said)] if said and said in LETTERS[: len(options)] else min(options, key=lambda option: edit_distance(said, option)))
    if answer.startswith("["):
        return said == answer
    if not is_float(said) or not math.isfinite(float(said)):
        return False
    return (str(int(float(said))) if row.get("precision") is None else str(round(float(said), row["precision"]))) == answer


def mathverse_rule(row: dict, equal: Callable[[str, str], bool]) -> bool:
    """MathVerse's --quick_match: the extracted answer (here by our rules; the original asks GPT-4) is the reference, character for character."""
    return (row["extracted"] or "") == str(row["answer"])


RULES = {"mathvision": mathvision_rule, "mathvista": mathvista_rule, "mathverse": mathverse_rule}


def is_value(text: str) -> bool:
    """Whether LaTeX without names: a stray word or unit makes the original's evaluation fail."""
    return bool(re.search(r"\d", text)) and not re.search(r"[^\W\d_]", re.sub(r"\\(?:[dt]?frac|sqrt|pi|cdot|times|div)", " ", text))


def is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def edit_distance(one: str, other: str) -> int:
    """Levenshtein's."""
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(other, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


# ---------------------------------------------------------------- the hub, and any source


def hub_rows(spec: str, columns: dict[str, str], pictures: Path) -> Iterator[dict]:
    """hf:NAME:SPLIT, streamed. `columns`: our field -> column; an id is made from the content where there is none."""
    name, _, split = spec.removeprefix("hf:").rpartition(":")
    if not name:
        fail(f"--input: {spec}: a hub data set is written hf:NAME:SPLIT, for example hf:owner/name:train")
    for number, row in enumerate(hub_dataset(spec, name, split), 1):
        record = {field: row.get(columns.get(field, field)) for field in FIELDS}
        if missing := [columns.get(field, field) for field in ("question", "answer") if columns.get(field, field) not in row]:
            fail(f"{spec}:{number}: {missing[0]}: no such column; it has {', '.join(row)}; set COLUMNS, for example \"question=problem\"")
        if number == 1 and record["images"] is None and (likely := [column for column in row if "image" in column.lower()]):
            fail(f"{spec}: images: not mapped, but there is a column {likely[0]!r}; set COLUMNS, for example \"images={likely[0]}\"")
        values = record["images"] if isinstance(record["images"], list) else [record["images"]] if record["images"] is not None else []
        record["images"] = [save_picture(value, pictures, f"{spec}:{number}") for value in values if value is not None]
        content = json.dumps([record["question"], record["options"], record["images"]], ensure_ascii=False)
        record["id"] = str(record["id"]) if record["id"] is not None else hashlib.sha256(content.encode()).hexdigest()[:16]
        if record["images"] and isinstance(record["question"], str):
            record["question"] = re.sub(rf"\s*(?:{PLACEHOLDERS.pattern})", "", record["question"]).strip()
        answer = record["answer"] if record["answer"] != "" else None  # not known
        yield {name: value for name, value in record.items() if value is not None} | {"question": record["question"], "answer": answer, "source": record["source"] or name}


def hub_dataset(spec: str, name: str, split: str, configuration: str | None = None):
    from datasets import load_dataset

    try:
        return load_dataset(name, configuration, split=split, streaming=True)
    except (OSError, ValueError) as error:  # not found, no such split, no network
        fail(f"--input: {spec}: cannot be loaded: {str(error).splitlines()[0]}")


def save_picture(value: object, folder: Path, where: str) -> str:
    """A picture in a row (PIL image, bytes, or path) -> the path of a file; the same picture is written once."""
    if isinstance(value, str):
        return str(Path(value).absolute())
    if isinstance(value, dict):
        if not value.get("bytes"):
            return str(Path(value["path"]).absolute())
        data, ending = value["bytes"], ".img"
    elif hasattr(value, "save"):
        buffer, ending = io.BytesIO(), ".png"
        value.save(buffer, "PNG")
        data = buffer.getvalue()
    else:
        fail(f"{where}: images: a {type(value).__name__} is not a picture; name the right column in COLUMNS")
    path = folder / (hashlib.sha256(data).hexdigest()[:24] + ending)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_bytes(data)
        part.replace(path)
    return str(path.absolute())


def load_problems(spec: str, pictures: Path, columns: dict[str, str] | None = None) -> tuple[str, Iterator[dict]]:
    """(name, problem records with absolute image paths) of a source, streamed and checked."""
    name, _, path = spec.partition(":")
    if name == "hf":
        return path.strip("/").replace("/", "_").replace(":", "_"), checked(hub_rows(spec, columns or {}, pictures), spec)
    if name in BENCHMARKS:
        if (not path or not Path(path).is_dir()) and not re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", path):
            fail(f"{spec}: no folder {path or '(none given)'}; write {name}:PATH, or {name}:OWNER/NAME of the hub")
        return name, checked(benchmark_problems(name, path, pictures), spec)
    if not Path(spec).is_file():
        fail(f"{spec}: no such file; a source is a problems.jsonl, hf:NAME:SPLIT, or NAME:PATH with NAME in {', '.join(BENCHMARKS)}")
    return (Path(spec).parent.name + "_" if Path(spec).stem in ("problems", "test") else "") + Path(spec).stem, read_rows(spec)


def parse_columns(text: str) -> dict[str, str]:
    """"question=problem images=image" -> {"question": "problem", "images": "image"}"""
    columns = dict(pair.partition("=")[::2] for pair in text.split())
    if unknown := [field for field in columns if field not in FIELDS]:
        fail(f"--columns: {unknown[0]}: not a field of a problem; they are {', '.join(FIELDS)}")
    return columns


def checked(rows: Iterator[dict], spec: str) -> Iterator[dict]:
    seen = set()
    for number in itertools.count(1):
        try:
            row = next(rows, None)
        except (LookupError, TypeError, ValueError, AttributeError) as error:  # a field of the source that is missing or of another type
            fail(f"{spec}:{number}: {shown(error)}: the row is not in the source's own form; mend it")
        if row is None:
            return
        check_row(row, f"{spec}:{number}", ("id", "question", "answer"), image_problem)
        if row["id"] in seen:
            fail(f"{spec}:{number}: id: {shown(row['id'])} stands there already; make it unique")
        seen.add(row["id"])
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, help="PATH.jsonl, NAME:PATH or hf:NAME:SPLIT")
    parser.add_argument("--output", type=Path, required=True, help="problems.jsonl to write")
    parser.add_argument("--columns", default="", help='columns of a hub data set, for example "question=problem images=image"')
    parser.add_argument("--limit", type=int, default=0, help="only the first N problems (default %(default)s: all)")
    args = parser.parse_args()
    check_flags(args)
    if finished(args.output):
        return
    columns = parse_columns(args.columns)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    _, rows = load_problems(args.input, args.output.parent / "images", columns)
    part, count = Path(f"{args.output}.part"), 0
    with part.open("w", encoding="utf-8") as file:
        for row in tqdm(islice(rows, args.limit or None), desc="problems", unit="row", disable=None):
            for image in row["images"]:  # decoded once here, so that no later stage meets a broken file
                try:
                    open_image(image, max_pixels=0)
                except OSError as error:
                    fail(f"{args.input}:{count + 1}: images: {image}: cannot be decoded ({error}); repair the file or remove the row")
            file.write(json.dumps(relative_images(row, args.output.parent), ensure_ascii=False) + "\n")
            count += 1
    if not count:
        fail(f"{args.input}: no problems in it; give another source or a larger --limit")
    os.replace(part, args.output)
    print(f"{args.output}: {count} problems from {args.input}")


if __name__ == "__main__":
    with disk_errors():
        main()
