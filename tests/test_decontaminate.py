"""Training problems that a test set holds too: planted copies are found, and nothing else."""

import random
import subprocess
import sys

import problems as toy
import pytest
from conftest import begin, lines_of, read_rows, write_rows
from PIL import Image
from test_bad_input import refused

import mathse.problems.__main__ as command
from mathse.problems import decontaminate

LISTING = "contamination.jsonl"
BICUBIC, BILINEAR, LANCZOS = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.LANCZOS
COPIES = {  # of a test problem's image: its scale across and down, file ending, options of saving
    "JPEG": (1, 1, BICUBIC, "jpg", {"quality": 50}),
    "WebP": (1, 1, BICUBIC, "webp", {"quality": 80}),
    "GIF, 256 colours": (1, 1, BICUBIC, "gif", {}),
    "half as large again": (1.5, 1.5, BICUBIC, "png", {}),
    "twice as large": (2, 2, BICUBIC, "png", {}),
    "three quarters, bilinear": (0.75, 0.75, BILINEAR, "png", {}),
    "four fifths, Lanczos": (0.8, 0.8, LANCZOS, "png", {}),
    "stretched": (1.25, 1, BICUBIC, "png", {}),
    "larger, as JPEG": (1.37, 1.37, BICUBIC, "jpg", {"quality": 60}),
    "smaller, as JPEG": (0.8, 0.8, BICUBIC, "jpg", {"quality": 75}),
    "the same pixels": (1, 1, BICUBIC, "png", {"compress_level": 0}),
}


def spread(text: str) -> str:
    """The same words in wide letters, with other case, white space and end, dollar signs and marks."""
    wide = "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in text[:-1].upper())
    return "  <image1>$" + wide.replace(" ", "\n") + "$<image2>.\t"


def pixels(path) -> bytes:
    return Image.open(path).convert("RGB").tobytes()


@pytest.fixture(scope="module")
def world(tmp_path_factory, run):
    """(folder, ids of 17 planted copies, ids that share an image by the chance of the draw)"""
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
    for (name, (across, down, way, ending, options)), row in zip(COPIES.items(), test):
        image, path = Image.open(folder / row["images"][0]), f"images/{name}.{ending}"
        size = round(image.width * across), round(image.height * down)
        image.resize(size, way).save(folder / path, **options)
        planted.append(
            row | {"id": f"planted/{name}", "images": [path], "question": f"Look: {row['question']}"}
        )
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
def clean(tmp_path, call, capsys):
    """Decontaminate a file into clean.jsonl; what is printed."""

    def run(source, *flags):
        call(command.main, "--input", source, "--output", tmp_path / "clean.jsonl", *flags)
        return capsys.readouterr().out

    return run


def ids(path) -> list[str]:
    return [row["id"] for row in read_rows(path)]


@pytest.mark.parametrize("action", ["drop", "warn"])
def test_planted_copies_are_found_and_nothing_else(world, clean, tmp_path, action):
    folder, planted, shared = world
    said = clean(folder / "mixed.jsonl", "--test", folder / "test.jsonl", "--contaminated", action)
    listed = {row["id"]: row for row in read_rows(tmp_path / LISTING)}
    assert len(planted) == 17 and set(listed) == planted | shared
    expected = [name for name in ids(folder / "mixed.jsonl") if action == "warn" or name not in listed]
    assert ids(tmp_path / "clean.jsonl") == expected
    assert not any("test_set" in row for row in read_rows(tmp_path / "clean.jsonl"))
    tests = ids(folder / "test.jsonl")
    for name, row in listed.items():
        assert set(row) == {"id", "test_set", "test_id", "why", "distance", "images", "also"}
        assert row["test_id"] in tests and row["test_set"] == f"{folder.name}_test"
        assert row["distance"] <= decontaminate.LEVEL_LIMIT
        same = "pixels" in name or "GIF" in name or name in shared
        assert row["why"] == ("text" if "words" in name else "pixels" if same else "image")
        there = [(tmp_path / image).is_file() for image in row["images"]]
        assert there == ([] if row["why"] == "text" else [True, True])
    assert f"{len(listed)} contaminated" in said


# the first rows are written before all images are decoded
IN_CHUNKS = "from mathse.problems import __main__, decontaminate as it; it.CHUNK = 8; __main__.main()"


def test_a_killed_call_goes_on(world, clean, tmp_path):
    """Killed in the middle, then torn in the middle of a line: the rerun writes the same files."""
    words = [world[0] / "mixed.jsonl", "--test", world[0] / "test.jsonl"]
    clean(*words)
    whole = {name: (tmp_path / name).read_text() for name in ("clean.jsonl", LISTING)}
    for name in (*whole, "clean.jsonl.recipe.json"):
        (tmp_path / name).unlink()
    part = tmp_path / "clean.jsonl.part/rank_0.jsonl"
    command = [sys.executable, "-c", IN_CHUNKS, "--output", tmp_path / "clean.jsonl", "--input", *words]
    process = begin(command, lambda _: lines_of(part) > 20, stdout=subprocess.DEVNULL)
    process.kill()
    process.wait()
    assert not (tmp_path / "clean.jsonl").exists()
    part.write_bytes(part.read_bytes()[:-30])
    assert 10 < lines_of(part) < lines_of(words[0])
    clean(*words)
    assert {name: (tmp_path / name).read_text() for name in whole} == whole
    assert clean(*words).startswith("skip ")


OTHER = {"id": "o", "question": "What is 3.5 + 3?", "images": [], "answer": "6", "options": ["6", "7", "8"]}


def test_a_listing_of_other_test_sets_does_not_outlive_its_output(world, clean, tmp_path, capsys):
    folder, planted, shared = world
    mixed, test = folder / "mixed.jsonl", ("--test", folder / "test.jsonl")
    other = "--test", write_rows(tmp_path / "other.jsonl", [OTHER])
    clean(mixed, *test)
    refused(capsys, lambda: clean(mixed, *other), "test was", "--force")
    for tests, expected in ((other, {"planted/words/3"}), (test, planted | shared)):
        clean(mixed, *tests, "--force")
        assert set(ids(tmp_path / LISTING)) == expected
        assert set(ids(tmp_path / "clean.jsonl")) == set(ids(mixed)) - expected
    write_rows(other[1], [OTHER | {"question": "Nothing like it?"}])
    for tests in (other, ()):  # nothing is contaminated
        clean(mixed, *test, "--force")
        assert (tmp_path / LISTING).exists()
        clean(mixed, *tests, "--force")
        assert not (tmp_path / LISTING).exists() and ids(tmp_path / "clean.jsonl") == ids(mixed)


def test_a_training_file_that_is_the_test_file_is_refused(toy_world, clean, tmp_path, capsys):
    path = toy_world / "test.jsonl"
    said = f"error: {path}: all its 10 problems are in the test sets"
    refused(capsys, lambda: clean(path, "--test", path), said)
    assert not list(tmp_path.iterdir())
    clean(path, "--test", path, "--contaminated", "warn")
    assert len(ids(tmp_path / "clean.jsonl")) == 10


@pytest.mark.parametrize("name", list(toy.FAMILIES))
def test_one_other_number_is_another_image(tmp_path, name):
    """Of ten drawings of a family, no two with different numbers are taken for one, and each is for its own
    JPEG.
    """
    rng, seen = random.Random(name), {}
    for index in range(10):
        _, _, canvas = toy.make_problem(name, rng)
        canvas.image.save(tmp_path / f"{index}.png")
        canvas.image.save(tmp_path / f"{index}.jpg", quality=75)
        seen[tmp_path / f"{index}.png"] = canvas.image.tobytes()
    hashes = {path: decontaminate.hash_image(str(path)) for path in seen}
    held = decontaminate.HeldOut(
        ("set", {"id": path, "question": "?"}, [found]) for path, found in hashes.items()
    )
    for path, content in seen.items():
        copy = decontaminate.hash_image(str(path.with_suffix(".jpg")))
        matches = held.matches({"question": "!"}, [copy])
        assert {match["test_id"] for match in matches} == {other for other in seen if seen[other] == content}
