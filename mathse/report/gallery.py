"""The page's gallery: verified responses with their pictures, drawn at random but the same at every call."""

import base64
import io
import json
import random
from collections import defaultdict
from pathlib import Path

from mathse.images import open_image
from mathse.records import written_rows
from mathse.report.metrics import label, read_columns

CARDS = 8  # of each kind
CARD_PIXELS = 300_000  # larger images are scaled down
KINDS = {  # of cards, and what the filters call them; in a pair of checks the answer check stands first
    "correct": "accepted",
    "wrong": "rejected",
    "wrong/correct": "ORM accepts a wrong answer",
    "correct/wrong": "ORM rejects a right answer",
    "reflected": "reflected",
}


def draw_cards(paths: list[Path]) -> list[dict]:
    """{kind, stage, row, images: data URLs} of each card of verified files, kind by kind."""
    kinds, rows = defaultdict(list), {}
    for path in paths:
        checks = read_columns(path, "id", "status", "answer_check", "orm_check")
        pairs = checks.answer_check + "/" + checks.orm_check
        checks["kind"] = pairs.where(pairs.isin([*KINDS]), checks.status)
        if "draft" in next(written_rows(path), {}):
            checks["kind"] = "reflected"
        for kind, part in checks.drop_duplicates(["id", "kind"]).groupby("kind"):
            kinds[kind] += [(path, line) for line in some([*part.index])]
    drawn = {place: kind for kind in KINDS for place in some(kinds[kind])}
    for path in {path for path, _ in drawn}:
        with path.open("rb") as file:
            rows |= {(path, n): json.loads(line) for n, line in enumerate(file) if (path, n) in drawn}
    cards = []
    for place, kind in drawn.items():
        images = [image_url(place[0].parent / image) for image in rows[place].get("images") or []]
        stage = label(place[0].parent.name)
        cards.append({"kind": kind, "stage": stage, "row": rows[place], "images": images})
    return cards


def some(values: list) -> list:
    """At most CARDS of the values."""
    return random.Random(0).sample(values, min(CARDS, len(values)))


def image_url(path: Path) -> str | None:
    """An image as data URL, scaled down to CARD_PIXELS; None if it cannot be read."""
    file = io.BytesIO()
    try:
        image = open_image(str(path), CARD_PIXELS)
        image.save(file, "WEBP", quality=80, lossless=bool(image.getcolors(4096)))  # a drawing
    except (OSError, ValueError):
        return None
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
