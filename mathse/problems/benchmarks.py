"""The benchmarks: a row in a benchmark's own form -> a problem record.

Another benchmark needs an adapter here and an entry in BENCHMARKS. Its adapter puts into `images` what the
source has there: paths, or images, one or a list, or null. `query` is the benchmark's own prompt.
"""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from mathse.answers import LETTERS

MATHVISION_QUERY = (
    'Please solve the problem step by step and put your answer in one "\\boxed{}". '
    'If it is a multiple choice question, only one letter is allowed in the "\\boxed{}".\n'
)
MATHVISTA_HINT = "Hint: Please answer the question {}, at the end."
MATHVISTA_FORMS = {  # the form of answer that a hint asks for
    "choice": "and provide the correct option letter, e.g., A, B, C, D",
    "integer": "requiring an integer answer and provide the final value, e.g., 1, 2, 3",
    "float 1": "requiring a floating-point number with one decimal place and provide the final value, "
    "e.g., 1.2, 1.3, 1.4",
    "float 2": "requiring a floating-point number with two decimal places and provide the final value, "
    "e.g., 1.23, 1.34, 1.45",
    "list": "requiring a Python list as an answer and provide the final list, "
    "e.g., [1, 2, 3], [1.2, 1.3, 1.4]",
}


def mathvision(row: dict) -> dict:
    """A row of MATH-V. Several <image1> marks of one image, in which all are drawn, stay as text."""
    question, options = row["question"], row.get("options") or []
    drawn = options == list(LETTERS[: len(options)])  # the choices stand in the image
    return {
        "id": f"mathvision/{row['id']}",
        "question": question,
        "images": picture(row),
        "answer": row["answer"],
        "options": options,
        "subject": row.get("subject"),
        "level": row.get("level"),
        "source": "mathvision",
        "query": f"{MATHVISION_QUERY}{question}\n{'' if drawn else lettered(options)}",
    }


def mathvista(row: dict) -> dict:
    """A row of MathVista. Only its hint says which form of answer is wanted, so the question gets the hint.

    A question with choices does without: the solve prompt asks for the letter.
    """
    choices = row.get("choices") or []
    precision = None if row.get("precision") is None else int(row["precision"])
    form = f"float {precision}" if row["answer_type"] == "float" else row["answer_type"]
    hint = MATHVISTA_HINT.format(MATHVISTA_FORMS["choice" if choices else form])
    question = row["question"] + (f" (Unit: {row['unit']})" if row.get("unit") else "")
    listed = f"\nChoices:\n{lettered(choices)}".rstrip("\n") if choices else ""
    return {
        "id": f"mathvista/{row['pid']}",
        "question": question if choices else f"{question}\n{hint}",
        "images": picture(row),
        "answer": row["answer"],
        "options": choices,
        "precision": precision,
        "subject": row["metadata"]["task"],
        "level": row["metadata"]["grade"],
        "source": row["metadata"]["source"],
        "query": f"{hint}\nQuestion: {question}{listed}",
    }


def picture(row: dict) -> object:
    """The image of a row: on the hub it stands beside its path."""
    return row.get("decoded_image") or row["image"]


def lettered(options: list) -> str:
    """A line for each option: (A) 3"""
    return "".join(f"({letter}) {option}\n" for letter, option in zip(LETTERS, options))


def mathverse(row: dict) -> dict:
    """A row of MathVerse, of one of its five versions or text only."""
    question, *choices = verse_parts(row["question"])
    drawn = [] if choices else row.get("choices", [])
    version = row["problem_version"]
    return {
        "id": f"mathverse/{row['problem_index']}/{version.lower().replace(' ', '-')}",
        "question": question.strip() or "Solve the problem that stands in the image.",
        "images": row.get("image") if version == "Text Only" else row["image"],
        "answer": degrees(row["answer"]),
        "options": choices or drawn,
        **({"options_drawn": True} if drawn else {}),
        "subject": row["metadata"]["subject"],
        "level": row["metadata"]["subfield"],
        "source": version,
        "query": row.get("query_cot"),
    }


def verse_parts(text: str) -> list[str]:
    """[question, its choices ...]"""
    return re.split(r"(?:^|\n)(?:Choices:\s*\n)?[A-H]:", degrees(text))


def degrees(text: str) -> str:
    """A text of MathVerse, whose degree signs were once decoded as Chinese."""
    return re.sub(r"(?<=\d)掳", "°", text)


def with_choices(rows: Iterator[tuple[str, dict]]) -> Iterator[tuple[str, dict]]:
    """Rows of MathVerse, those of Vision Only with `choices`: their images show them, and they stand in the
    text for the evaluation or in another version of the problem. A row before such a version is put last.
    """
    known, waiting = {}, []
    for where, row in rows:
        index, texts = row["problem_index"], (row["question"], row.get("question_for_eval") or "")
        choices = next((choices for _, *choices in map(verse_parts, texts) if choices), [])
        known[index] = known.get(index) or choices
        if row["problem_version"] != "Vision Only" or row.get("question_type") == "free-form":
            yield where, row
        elif known[index]:
            yield where, row | {"choices": known[index]}
        else:
            waiting.append((where, row))
    for where, row in waiting:
        yield where, row | {"choices": known[row["problem_index"]]}


class Benchmark(NamedTuple):
    adapter: Callable[[dict], dict]
    files: list[tuple[str, ...]]  # in its folder, any table: the first of each tuple that is there is read
    splits: dict[str, str]  # by what it is reported: name -> field of the problem
    images: str = ""  # what paths of images are relative to, from its folder
    hub: tuple[tuple[str | None, str], ...] = ((None, "testmini"),)  # (configuration, split) on the hub
    complete: Callable[[Iterator], Iterator] = iter  # rows -> rows with what other rows tell


BENCHMARKS = {
    "mathvision": Benchmark(
        mathvision,
        [("problems.jsonl", "testmini.jsonl", "test.jsonl")],
        {"subject": "subject", "level": "level"},
    ),
    "mathvista": Benchmark(  # "GPS" of the papers is the task "geometry problem solving"
        mathvista,
        [("testmini.json", "testmini.jsonl", "test.json")],
        {"task": "subject", "grade": "level", "source": "source"},
    ),
    "mathverse": Benchmark(
        mathverse,
        [("testmini.json",), ("testmini_text_only.json", "testmini_text_only.jsonl")],
        {"version": "source", "subject": "subject", "subfield": "level"},
        images="images",
        hub=(("testmini", "testmini"), ("testmini_text_only", "testmini_text_only")),
        complete=with_choices,
    ),
}
SPLITS = {name: benchmark.splits for name, benchmark in BENCHMARKS.items()}
SPLITS[None] = {"subject": "subject", "source": "source", "level": "level"}  # of any other test set
