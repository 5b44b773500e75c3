"""Training problems that a test set holds too: planted copies are found, and nothing else."""

import random
import subprocess
import sys
import time

import problems as toy
import pytest
from conftest import ROOT, read_rows, write_rows
from PIL import Image

import mathse.problems.__main__ as command
from mathse.problems import decontaminate

LISTING = "contamination.jsonl"
BICUBIC, BILINEAR, LANCZOS = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.LANCZOS


def resized(image: Image.Image, across: float, down: float = 0, way=BICUBIC) -> Image.Image:
    return image.resize((round(image.width * across), round(image.height * (down or across))), way)


# How a copy of a test problem's image is made: (change, file ending, options of saving)
COPIES = {
    "JPEG of quality 90": (lambda image: image, "jpg", {"quality": 90}),
    "JPEG of quality 75": (lambda image: image, "jpg", {"quality": 75}),
    "JPEG of quality 50": (lambda image: image, "jpg", {"quality": 50}),
    "WebP": (lambda image: image, "webp", {"quality": 80}),
    "GIF, 256 colours": (lambda image: image, "gif", {}),
    "half as large again": (lambda image: resized(image, 1.5), "png", {}),
    "twice as large": (lambda image: resized(image, 2), "png", {}),
    "three quarters": (lambda image: resized(image, 0.75), "png", {}),
    "three quarters, bilinear": (lambda image: resized(image, 0.75, way=BILINEAR), "png", {}),
    "four fifths, Lanczos": (lambda image: resized(image, 0.8, way=LANCZOS), "png", {}),
    "stretched": (lambda image: resized(image, 1.25, 1.0), "png", {}),
    "larger, as JPEG": (lambda image: resized(image, 1.37), "jpg", {"quality": 60}),
    "smaller, as JPEG": (lambda image: resized(image, 0.8), "jpg", {"quality": 75}),
    "the same pixels": (lambda image: image, "png", {"compress_level": 0}),
}  # fmt: skip


def spread(text: str) -> str:
    """The same words in wide letters, with other case, white space and end, dollar signs and marks."""
    wide = "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in text[:-1].upper())
    return "  <image1>$" + wide.replace(" ", "\n") + "$<image2>.\t"


def pixels(path) -> bytes:
    return Image.open(path).convert("RGB").tobytes()


@pytest.fixture(scope="module")
def world(tmp_path_factory, run):
    """(folder, ids of what is planted, ids that share an image by the chance of the draw).

    200 training and 60 test problems, 20 copies of test problems and 6 that only look like it.
    """
    folder = tmp_path_factory.mktemp("planted")
    made = run("toy/problems.py", "--output", folder, "--train", 200, "--test", 60, "--seed", 5)
    assert made.returncode == 0
    train, test = read_rows(folder / "train.jsonl"), read_rows(folder / "test.jsonl")
    Image.new("RGB", (112, 112), "white").save(folder / "images/blank.png")
    blank = {"images": ["images/blank.png"]}  # is none
    words = [  # without an image
        {
            "id": f"words/{k}", "question": f"What is {k}.5 + {k}?", "images": [], "answer": str(2 * k),
            "options": [str(2 * k + more) for more in range(3)],
        }
        for k in range(6)
    ]  # fmt: skip
    words[5] |= {"question": "多少？", "options": []}
    planted = []
    # other words, another question: the image gives it away
    for (name, (change, ending, options)), row in zip(COPIES.items(), test):
        change(Image.open(folder / row["images"][0])).save(folder / f"images/{name}.{ending}", **options)
        changes = {"images": [f"images/{name}.{ending}"], "question": f"Look: {row['question']}"}
        planted.append(row | {"id": f"planted/{name}"} | changes)
    for row in words:
        options = [f"({letter}) {option} " for letter, option in zip("ABC", reversed(row["options"]))]
        changes = {"question": spread(row["question"]), "options": options or None}
        planted.append(row | {"id": f"planted/{row['id']}"} | changes | blank)
    innocent = [
        test[20] | {"id": "innocent/same words, another image", "images": train[0]["images"]},
        words[0] | {"id": "innocent/other options", "options": ["0", "3", "4"]},
        words[1] | {"id": "innocent/other words", "question": "What is 1.5 * 1?"},
        words[2] | {"id": "innocent/a point", "question": "What is 25 + 2?"},
        words[3] | {"id": "innocent/no options", "options": []},
        train[0] | {"id": "innocent/a blank image"} | blank,
    ]
    blank_test = test[0] | {"id": "blank", "question": "Nothing?"} | blank
    write_rows(folder / "test.jsonl", [*test, *words, blank_test])
    rows = [*train, *planted, *innocent]
    random.Random(0).shuffle(rows)
    write_rows(folder / "mixed.jsonl", rows)
    tested = {pixels(folder / row["images"][0]) for row in test}
    shared = {row["id"] for row in train if pixels(folder / row["images"][0]) in tested}
    return folder, {row["id"] for row in planted}, shared


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Decontaminate a file into clean.jsonl, in this process: (exit code, stdout, stderr)."""

    def run(source, test, *flags):
        words = ["--input", source, "--output", tmp_path / "clean.jsonl", *flags]
        words += ["--test", test] if test else []
        monkeypatch.setattr(sys, "argv", ["mathse.problems", *map(str, words)])
        try:
            code = command.main() or 0
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


def ids(path) -> list[str]:
    return [row["id"] for row in read_rows(path)]


@pytest.mark.parametrize("action", ["drop", "warn"])
def test_planted_copies_are_found_and_nothing_else(world, call, tmp_path, action):
    folder, planted, shared = world
    code, said, errors = call(folder / "mixed.jsonl", folder / "test.jsonl", "--contaminated", action)
    assert code == 0, errors
    listed = {row["id"]: row for row in read_rows(tmp_path / LISTING)}
    assert len(planted) == 20 and set(listed) == planted | shared
    expected = [name for name in ids(folder / "mixed.jsonl") if action == "warn" or name not in listed]
    assert ids(tmp_path / "clean.jsonl") == expected
    assert not any("test_set" in row for row in read_rows(tmp_path / "clean.jsonl"))
    tests = {row["id"]: row for row in read_rows(folder / "test.jsonl")}
    for name, row in listed.items():
        assert set(row) == {"id", "test_set", "test_id", "why", "distance", "images", "also"}
        assert row["test_id"] in tests and row["test_set"] == f"{folder.name}_test"
        assert row["distance"] <= decontaminate.LEVEL_LIMIT
        same = "pixels" in name or "GIF" in name or name in shared
        assert row["why"] == ("text" if "words" in name else "pixels" if same else "image")
        there = [(tmp_path / image).is_file() for image in row["images"]]
        assert there == ([] if row["why"] == "text" else [True, True])
    assert f"{len(listed)} contaminated" in said


def test_a_killed_call_goes_on(world, call, tmp_path):
    """Killed in the middle, then torn in the middle of a line: the rerun writes the same files."""
    mixed, test = world[0] / "mixed.jsonl", world[0] / "test.jsonl"
    assert call(mixed, test)[0] == 0
    whole = {name: (tmp_path / name).read_text() for name in ("clean.jsonl", LISTING)}
    for name in (*whole, "clean.jsonl.recipe.json"):
        (tmp_path / name).unlink()
    part = tmp_path / "clean.jsonl.part" / "rank_0.jsonl"
    # chunks of 8: the first rows are written before all images are decoded
    code = "import runpy; from mathse.problems import decontaminate; decontaminate.CHUNK = 8; "
    code += "runpy.run_module('mathse.problems', run_name='__main__')"
    words = ["--input", mixed, "--test", test, "--output", tmp_path / "clean.jsonl"]
    process = subprocess.Popen([sys.executable, "-c", code, *words], cwd=ROOT, stdout=subprocess.DEVNULL)
    while process.poll() is None and not (part.exists() and part.read_bytes().count(b"\n") > 20):
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert part.exists() and not (tmp_path / "clean.jsonl").exists()
    part.write_bytes(part.read_bytes()[:-30])
    assert 10 < part.read_bytes().count(b"\n") < len(read_rows(mixed))
    assert call(mixed, test)[0] == 0
    assert {name: (tmp_path / name).read_text() for name in whole} == whole
    assert call(mixed, test)[1].startswith("skip ")


OTHER = {"id": "o", "question": "What is 3.5 + 3?", "images": [], "answer": "6", "options": ["6", "7", "8"]}


def test_a_listing_of_other_test_sets_does_not_outlive_its_output(world, call, tmp_path):
    folder, planted, shared = world
    mixed, test, other = folder / "mixed.jsonl", folder / "test.jsonl", tmp_path / "other.jsonl"
    write_rows(other, [OTHER])
    assert call(mixed, test)[0] == 0
    code, _, errors = call(mixed, other)
    assert code == 2 and "test was" in errors and "--force" in errors
    for tests, expected in ((other, {"planted/words/3"}), (test, planted | shared)):
        assert call(mixed, tests, "--force")[0] == 0
        assert set(ids(tmp_path / LISTING)) == expected
        assert set(ids(tmp_path / "clean.jsonl")) == set(ids(mixed)) - expected
    write_rows(other, [OTHER | {"question": "Nothing like it?"}])
    for tests in (other, None):  # nothing is contaminated
        assert call(mixed, test, "--force")[0] == 0 and (tmp_path / LISTING).exists()
        assert call(mixed, tests, "--force")[0] == 0 and not (tmp_path / LISTING).exists()
        assert ids(tmp_path / "clean.jsonl") == ids(mixed)


def test_a_training_file_that_is_the_test_file_is_refused(toy_world, call, tmp_path):
    path = toy_world / "test.jsonl"
    code, _, errors = call(path, path)
    assert code == 2 and errors.startswith(f"error: {path}: all its 10 problems are in the test sets")
    assert len(errors.splitlines()) == 1 and not list(tmp_path.iterdir())
    assert call(path, path, "--contaminated", "warn")[0] == 0 and len(ids(tmp_path / "clean.jsonl")) == 10


@pytest.mark.parametrize("name", list(toy.FAMILIES))
def test_one_other_number_is_another_image(tmp_path, name):
    """Of ten drawings of a family, no two with different numbers are taken for one, and each is for its own
    JPEG.
    """
    rng, seen = random.Random(name), []
    for index in range(10):
        _, numbers, canvas = toy.make_problem(name, rng)
        canvas.image.save(tmp_path / f"{index}.png")
        canvas.image.save(tmp_path / f"{index}.jpg", quality=75)
        seen.append((tmp_path / f"{index}.png", tmp_path / f"{index}.jpg", canvas.image.tobytes()))
    tests = [({"id": str(png), "question": "?"}, decontaminate.hash_image(str(png))) for png, _, _ in seen]
    held = decontaminate.HeldOut(("set", row, [found]) for row, found in tests)
    for _, jpg, content in seen:
        matches = held.matches({"question": "!"}, [decontaminate.hash_image(str(jpg))])
        same = {str(other) for other, _, others in seen if others == content}
        assert {match["test_id"] for match in matches} == same
