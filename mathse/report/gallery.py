"""The page's gallery: cards of problems with their answers, drawn at random but the same at every call."""

import base64
import hashlib
import io
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from mathse.chat import question_text
from mathse.images import open_image
from mathse.records import written_rows
from mathse.report.metrics import VERIFIED, is_evaluated, label
from mathse.report.statistics import DISAGREEMENTS

CARDS = 12  # of each kind
CARD_PIXELS = 300_000  # larger images are scaled down
KINDS = {  # of cards, and what the filters call them
    "gained": "got right",
    "lost": "got lost",
    "never": "never right",
    "orm_accepts_wrong": "ORM accepts a wrong answer",
    "orm_rejects_right": "ORM rejects a right answer",
    "reflected": "reflected",
}
SHOWN = (
    "answer_check", "extracted", "response", "orm_check", "orm_confidence", "error_step", "error_line",
    "error_analysis",
)  # fmt: skip


def random_order(key: object) -> bytes:
    """Sorts keys in an order that is random, but the same at every call."""
    return hashlib.sha256(str(key).encode()).digest()


def card(row: dict, folder: Path, kind: str, answers: list[dict], source: str) -> dict:
    """A problem with its answers; image paths are relative to `folder`."""
    return {
        "kind": kind,
        "source": source,
        "id": row["id"],
        "question": question_text(row),
        "answer": row.get("answer"),
        "subject": str(row.get("subject") or "none"),
        "images": [image_url(folder / image) for image in row.get("images") or []],
        "answers": answers,
    }


def image_url(path: Path) -> str | None:
    """A data URL of the image, scaled down to CARD_PIXELS; None if it cannot be read."""
    file = io.BytesIO()
    try:
        image = open_image(str(path), CARD_PIXELS)
        if image.getcolors(4096):  # a drawing
            kind = "png"
            image.save(file, "PNG", optimize=True)
        else:
            kind = "jpeg"
            image.save(file, "JPEG", quality=80)
    except (OSError, ValueError, SyntaxError):
        return None
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def shown(row: dict, name: str, note: str | None = None) -> dict:
    """An answer as a card shows it."""
    return {"name": name, "note": note} | {field: row.get(field) for field in SHOWN}


# ---------------------------------------------------------------- test problems


def test_cards(folders: list[Path]) -> Iterator[dict]:
    """Test problems that the evolution got right, lost, or never solved, with each stage's answer."""
    folders = [folder for folder in folders if is_evaluated(folder)]
    chosen = choose_tests(folders)
    several = len({benchmark for benchmark, _ in chosen}) > 1
    answers, rows = {place: [] for place in chosen}, {}
    for folder in folders:
        types = error_types(folder)
        for row in written_rows(folder / "eval" / "predictions.jsonl"):
            place = row["benchmark"], row["id"]
            if place in chosen and row["sample"] == 0:
                rows[place] = row, folder / "eval"
                note = "cut off" if row["finish"] == "length" else types.get(place)
                answers[place].append(shown(row, label(folder.name), note))
    for place, kind in chosen.items():
        source = f"test problem of {place[0]}" if several else "test problem"
        yield card(*rows[place], kind, answers[place], source)


def choose_tests(folders: list[Path]) -> dict[tuple[str, str], str]:
    """{(benchmark, id): kind of its card}, by the first sample of each problem."""
    rights: dict[tuple, list[bool]] = {}
    last = {}  # the number of the last stage that has the problem
    for number, folder in enumerate(folders):
        for row in written_rows(folder / "eval" / "predictions.jsonl"):
            if row["sample"] == 0:
                place = row["benchmark"], row["id"]
                rights.setdefault(place, []).append(row["answer_check"] == "correct")
                last[place] = number
    kinds: dict[str, list] = {"gained": [], "lost": [], "never": []}
    for place, right in rights.items():
        if last[place] == len(folders) - 1 and len(right) > 1 and (kind := kind_of(right)):
            kinds[kind].append(place)
    most = {"gained": CARDS, "lost": CARDS, "never": CARDS // 2}
    drawn = {kind: sorted(places, key=random_order)[: most[kind]] for kind, places in kinds.items()}
    return {place: kind for kind, places in drawn.items() for place in places}


def kind_of(right: list[bool]) -> str | None:
    """The kind of a test problem, from whether each stage has it right; None if the first and last have."""
    if right[-1]:
        return None if right[0] else "gained"
    return "lost" if any(right) else "never"


def error_types(folder: Path) -> dict[tuple[str, str], str | None]:
    """{(benchmark, id): error type of the first sample} of a stage."""
    rows = written_rows(folder / "eval" / "errors.jsonl")
    return {(row["benchmark"], row["id"]): row["error_type"] for row in rows if row["sample"] == 0}


# ---------------------------------------------------------------- training problems


def training_cards(folders: list[Path]) -> Iterator[dict]:
    """Paths on which answer check and ORM disagree, and reflections with their drafts."""
    disagreements: dict[str, dict] = {kind: {} for kind in DISAGREEMENTS.values()}
    right, other = {}, {}
    for folder, row in verified_rows(folders):
        place = folder, row
        if kind := DISAGREEMENTS.get((row["answer_check"], row.get("orm_check"))):
            keep(disagreements[kind], row["id"], place, CARDS)
        if "draft" in row and row["status"] == "correct":
            keep(right, row["id"], place, CARDS * 2 // 3)
        elif "draft" in row:
            keep(other, row["id"], place, CARDS // 3)
    for kind, paths in disagreements.items():
        for folder, row in paths.values():
            yield card(row, folder, kind, [shown(row, label(folder.name))], "training problem")
    reflections = list(chain(right.values(), other.values()))
    # found by its text: with REFLECT=every several rounds have a reflection 0
    wanted = {(row["id"], row["draft"]) for _, row in reflections}
    drafts = {}
    for _, row in verified_rows(folders) if wanted else ():
        if (row["id"], row["response"]) in wanted:
            drafts[row["id"], row["response"]] = row
    for folder, row in reflections:
        draft = drafts.get((row["id"], row["draft"])) or {"response": row["draft"]}
        answers = [shown(draft, "before reflection"), shown(row, "after reflection")]
        yield card(row, folder, "reflected", answers, "training problem")


def verified_rows(folders: list[Path]) -> Iterator[tuple[Path, dict]]:
    for folder in folders:
        for name in VERIFIED:
            for row in written_rows(folder / name):
                yield folder, row


def keep(chosen: dict, key: str, value: object, count: int) -> None:
    """Put into `chosen`, which holds the first `count` keys in random order, each with its last value."""
    chosen[key] = value
    if len(chosen) > count:
        del chosen[max(chosen, key=random_order)]
