"""Training problems that a test set holds too: planted copies are found, and nothing else."""

import random

import pytest
from conftest import read_rows, write_rows
from PIL import Image

import decontaminate
import problems as toy


def resized(image: Image.Image, across: float, down: float = 0, way=Image.Resampling.BICUBIC) -> Image.Image:
    return image.resize((round(image.width * across), round(image.height * (down or across))), way)


# How a copy of a test problem's picture is made: (change, file ending, options of saving)
COPIES = {
    "JPEG of quality 90": (lambda image: image, "jpg", {"quality": 90}),
    "JPEG of quality 75": (lambda image: image, "jpg", {"quality": 75}),
    "JPEG of quality 50": (lambda image: image, "jpg", {"quality": 50}),
    "WebP": (lambda image: image, "webp", {"quality": 80}),
    "GIF, 256 colours": (lambda image: image, "gif", {}),
    "half as large again": (lambda image: resized(image, 1.5), "png", {}),
    "twice as large": (lambda image: resized(image, 2), "png", {}),
    "three quarters": (lambda image: resized(image, 0.75), "png", {}),
    "three quarters, bilinear": (lambda image: resized(image, 0.75, 0.75, Image.Resampling.BILINEAR), "png", {}),
    "four fifths, Lanczos": (lambda image: resized(image, 0.8, 0.8, Image.Resampling.LANCZOS), "png", {}),
    "stretched": (lambda image: resized(image, 1.25, 1.0), "png", {}),
    "larger, as JPEG": (lambda image: resized(image, 1.37), "jpg", {"quality": 60}),
    "smaller, as JPEG": (lambda image: resized(image, 0.8), "jpg", {"quality": 75}),
    "the same pixels": (lambda image: image, "png", {"compress_level": 0}),
}  # fmt: skip


def spread(text: str) -> str:
    """The same words in wide letters, with other case and white space."""
    return "  " + "\n".join("".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in word) for word in text.upper().split()) + "\t"


@pytest.fixture(scope="module")
def world(tmp_path_factory, run):
    """(folder, ids of what is planted): 200 training and 60 test problems, 20 copies of test problems and 5 that only look like it."""
    folder, rng = tmp_path_factory.mktemp("planted"), random.Random(0)
    assert run("toy/problems.py", "--output", folder, "--train", 200, "--test", 60, "--seed", 5).returncode == 0
    train, test = read_rows(folder / "train.jsonl"), read_rows(folder / "test.jsonl")
    words = [
        {"id": f"words/{index}", "question": f"What is {index} + {index}?", "images": [], "answer": str(2 * index), "options": [str(2 * index + k) for k in (0, 1, 2)]}
        for index in range(6)
    ]
    write_rows(folder / "test.jsonl", [*test, *words])
    planted, innocent = [], []
    for (name, (change, ending, options)), row in zip(COPIES.items(), test):  # other words, another question: the picture gives it away
        change(Image.open(folder / row["images"][0])).save(folder / f"images/{name}.{ending}", **options)
        planted.append(row | {"id": f"planted/{name}", "images": [f"images/{name}.{ending}"], "question": f"Look: {row['question']}"})
    for row in words:
        options = [f"({letter}) {option} " for letter, option in zip("ABC", reversed(row["options"]))]
        planted.append(row | {"id": f"planted/{row['id']}", "question": spread(row["question"]), "options": options})
    innocent.append(test[20] | {"id": "innocent/same words, another picture", "images": train[0]["images"]})
    innocent.append(words[0] | {"id": "innocent/other options", "options": ["0", "3", "4"]})
    innocent.append(words[1] | {"id": "innocent/other words", "question": "What is 1 * 1?"})
    Image.new("RGB", (112, 112), "white").save(folder / "images/blank.png")
    innocent.append(train[0] | {"id": "innocent/a blank picture", "images": ["images/blank.png"]})
    write_rows(folder / "test.jsonl", [*test, *words, test[0] | {"id": "blank", "images": ["images/blank.png"], "question": "Nothing?"}])
    rows = [*train, *planted, *innocent]
    rng.shuffle(rows)
    write_rows(folder / "mixed.jsonl", rows)
    pixels = {Image.open(folder / row["images"][0]).convert("RGB").tobytes() for row in test}
    shared = {row["id"] for row in train if Image.open(folder / row["images"][0]).convert("RGB").tobytes() in pixels}  # by the chance of the draw
    return folder, {row["id"] for row in planted}, shared


@pytest.mark.parametrize("action", ["drop", "warn"])
def test_planted_copies_are_found_and_nothing_else(world, run, tmp_path, action):
    folder, planted, shared = world
    done = run("decontaminate.py", "--input", folder / "mixed.jsonl", "--test", folder / "test.jsonl", "--output", tmp_path / "clean.jsonl", "--action", action)
    assert done.returncode == 0, done.stderr
    listed = {row["id"]: row for row in read_rows(tmp_path / "contamination.jsonl")}
    assert len(planted) == 20 and set(listed) == planted | shared
    rows = read_rows(folder / "mixed.jsonl")
    assert [row["id"] for row in read_rows(tmp_path / "clean.jsonl")] == [row["id"] for row in rows if action == "warn" or row["id"] not in listed]
    tests = {row["id"]: row for row in read_rows(folder / "test.jsonl")}
    for name, row in listed.items():
        assert row["test_id"] in tests and row["test_set"] == f"{folder.name}_test" and row["distance"] <= decontaminate.LIMIT
        assert row["why"] == ("text" if "words" in name else "pixels" if "pixels" in name or "GIF" in name or name in shared else "picture")
        assert [(tmp_path / image).is_file() for image in row["images"]] == [True, True][: 2 * (row["why"] != "text")]
    assert f"{len(listed)} contaminated" in done.stdout


def test_an_interrupted_call_goes_on(world, run, tmp_path):
    folder, _, _ = world
    command = ["decontaminate.py", "--input", folder / "mixed.jsonl", "--test", folder / "test.jsonl", "--output", tmp_path / "clean.jsonl"]
    assert run(*command).returncode == 0
    whole = {name: (tmp_path / name).read_text() for name in ("clean.jsonl", "contamination.jsonl")}
    for name, text in whole.items():  # as when it is killed in the middle of a line
        (tmp_path / f"{name}.part").write_text(text[: len(text) // 2])
        (tmp_path / name).unlink()
    assert run(*command).returncode == 0
    assert {name: sorted((tmp_path / name).read_text().splitlines()) for name in whole} == {name: sorted(text.splitlines()) for name, text in whole.items()}
    assert run(*command).stdout.startswith("skip ")


def test_a_list_of_other_test_sets_does_not_outlive_its_output(world, run, tmp_path):
    """As FORCE=1 does: the output is removed, the same folder is written anew."""
    folder, planted, shared = world
    output = tmp_path / "clean.jsonl"
    write_rows(tmp_path / "other.jsonl", [{"id": "o", "question": "What is 3 + 3?", "images": [], "answer": "6", "options": ["6", "7", "8"]}])
    for tests, expected in ((folder / "test.jsonl", planted | shared), (tmp_path / "other.jsonl", {"planted/words/3"}), (folder / "test.jsonl", planted | shared)):
        assert run("decontaminate.py", "--input", folder / "mixed.jsonl", "--test", tests, "--output", output).returncode == 0
        assert {row["id"] for row in read_rows(tmp_path / "contamination.jsonl")} == expected
        assert {row["id"] for row in read_rows(output)} == {row["id"] for row in read_rows(folder / "mixed.jsonl")} - expected
        output.unlink()


def test_a_training_file_that_is_the_test_file_is_refused(toy_world, run, tmp_path):
    path = toy_world / "test.jsonl"
    done = run("decontaminate.py", "--input", path, "--test", path, "--output", tmp_path / "clean.jsonl")
    assert done.returncode == 2 and f"error: {path}: all its 10 problems are in the test sets" in done.stderr and not (tmp_path / "clean.jsonl").exists()


@pytest.mark.parametrize("name", list(toy.FAMILIES))
def test_one_other_number_is_another_picture(tmp_path, name):
    """Of ten drawings of a family, no two with different numbers are taken for one, and each is for its own JPEG."""
    rng, seen = random.Random(name), []
    for index in range(10):
        _, numbers, canvas = toy.make_problem(name, rng)
        canvas.image.save(tmp_path / f"{index}.png")
        canvas.image.save(tmp_path / f"{index}.jpg", quality=75)
        seen.append((tmp_path / f"{index}.png", tmp_path / f"{index}.jpg", canvas.image.tobytes()))
    held = decontaminate.HeldOut(({"id": str(png), "question": "?", "benchmark": "b"}, [decontaminate.fingerprint(str(png))]) for png, _, _ in seen)
    for png, jpg, pixels in seen:
        found = {match["test_id"] for match in held.matches({"question": "!"}, [decontaminate.fingerprint(str(jpg))])}
        assert found == {str(other) for other, _, others in seen if others == pixels}


@pytest.mark.parametrize(
    "one, other, same",
    [
        (("What is x?", ["1", "2"]), ("what is  X ?", ["2", "1"]), True),
        (("What is x?", ["1", "2"]), ("What is x", ["(A) 2", "(B) 1"]), True),
        (("<image1> What is $x$?", []), ("What is x?", None), True),
        (("多少？", ["１", "２"]), ("多少?", ["1", "2"]), True),
        (("What is x?", ["1", "2"]), ("What is x?", ["1", "3"]), False),
        (("What is x?", ["1", "2"]), ("What is x?", []), False),
        (("What is 3 + 4?", []), ("What is 3 - 4?", []), False),
        (("What is 3.5?", []), ("What is 35?", []), False),
    ],
)
def test_text_key(one, other, same):
    keys = [decontaminate.text_key({"question": question, "options": options}) for question, options in (one, other)]
    assert (keys[0] == keys[1]) == same
