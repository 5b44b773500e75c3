"""Where problems come from: files, hub data sets and benchmarks in their own form -> problem records.

A source is written PATH.jsonl (records as in the README), NAME:PATH for a benchmark (BENCHMARKS), or hf:NAME:SPLIT for a data
set that `datasets` loads from the hub or from a local folder, with its columns named by --columns.

Writes: problems.jsonl   id, question, images, answer, optional options, solution, subject, source; pictures that come inside rows go to images/

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
from common import PLACEHOLDERS, check_flags, check_row, fail, json_lines, open_image, read_rows, relative_images, shown
from output import disk_errors, finished

FIELDS = ("id", "question", "images", "answer", "options", "precision", "solution", "subject", "source", "level")


def mathvision(folder: Path) -> Iterator[dict]:
    """MATH-V in its source form: problems.jsonl (or test.jsonl, testmini.jsonl) beside images/.

    Its <image1> marks are dropped when there is one; several (all drawn and labelled in one picture) stay, as text.
    """
    for row in source_rows(folder, ("problems.jsonl", "testmini.jsonl", "test.jsonl")):
        question = row["question"]
        if len(set(re.findall(r"<image\d+>", question))) == 1:
            question = re.sub(r"\s*<image\d+>\s*", " ", question).strip()
        yield {
            "id": f"mathvision/{row['id']}", "question": question, "images": [str(folder.absolute() / row["image"])],
            "answer": row["answer"], "options": row.get("options") or [], "subject": row.get("subject"), "level": row.get("level"), "source": "mathvision",
        }  # fmt: skip


def mathvista(folder: Path) -> Iterator[dict]:
    """MathVista in its source form: testmini.json (rows, or rows by pid) beside images/. Splits: by task (GPS is its task "geometry problem solving")."""
    wanted = {"integer": "Give an integer.", "float": "Give a number with {} decimal places.", "list": "Give a Python list, for example [1, 2, 3]."}
    for row in source_rows(folder, ("testmini.json", "testmini.jsonl", "test.json")):
        precision = int(row["precision"]) if row.get("precision") is not None else None
        hint = wanted[row["answer_type"]].format(precision) if row["question_type"] == "free_form" else ""
        unit = f"(Unit: {row['unit']})" if row.get("unit") else ""
        yield {
            "id": f"mathvista/{row['pid']}", "question": " ".join(filter(None, (row["question"], unit, hint))), "images": [str(folder.absolute() / row["image"])],
            "answer": row["answer"], "options": row.get("choices") or [], "precision": precision, "subject": row["metadata"]["task"],
            "level": row["metadata"]["grade"], "source": row["metadata"]["source"],
        }  # fmt: skip


def mathverse(folder: Path) -> Iterator[dict]:
    """MathVerse in its source form: testmini.json (five versions of each problem, with images/) or testmini_text_only.json. Splits: source is the version."""
    for row in source_rows(folder, ("testmini.json", "testmini_text_only.json", "testmini_text_only.jsonl")):
        question, *choices = re.split(r"\n(?:Choices:\n)?[A-H]:", row["question"])
        yield {
            "id": f"mathverse/{row['sample_index']}", "question": question or "Solve the problem that stands in the image.",
            "images": [str(folder.absolute() / "images" / row["image"])] if row["image"] else [], "answer": row["answer"], "options": choices,
            "subject": row["metadata"]["subject"], "level": row["metadata"]["subfield"], "source": row["problem_version"],
        }  # fmt: skip


BENCHMARKS = {"mathvision": mathvision, "mathvista": mathvista, "mathverse": mathverse}


def source_rows(folder: Path, names: tuple[str, ...]) -> Iterator[dict]:
    """Rows of the first of these files that is in the folder: JSON lines, or (.json) a list or an object of rows."""
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        fail(f"{folder}: none of {', '.join(names)} in it; give the folder of the benchmark's own files")
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
    from datasets import load_dataset

    name, _, split = spec.removeprefix("hf:").rpartition(":")
    if not name:
        fail(f"--input: {spec}: a hub data set is written hf:NAME:SPLIT, for example hf:owner/name:train")
    try:
        rows = load_dataset(name, split=split, streaming=True)
    except (OSError, ValueError) as error:  # not found, no such split, no network
        fail(f"--input: {spec}: cannot be loaded: {str(error).splitlines()[0]}")
    for number, row in enumerate(rows, 1):
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
        if not path or not Path(path).is_dir():
            fail(f"{spec}: no folder {path or '(none given)'}; write {name}:PATH")
        return name, checked(BENCHMARKS[name](Path(path)), spec)
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
        check_row(row, f"{spec}:{number}", ("id", "question", "answer"))
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
