"""The toy world: small mathematics problems whose numbers can only be read from a picture.

Writes: train.jsonl and test.jsonl (id, question, images, answer, options, solution, subject, source) and
images/*.png.

    python toy/problems.py --output toy
    python toy/problems.py --output /tmp/more --train 1500 --test 500 --seed 7

A family (FAMILIES) is one kind of problem: how its numbers are drawn, what its picture shows ("facts"), its
question, and its worked solution as a list of calculations. From these come problems with pictures, the
same problems in words, worked solutions, and solutions with one known mistake: what a teacher, a judge and
a base model are made of. Every digit is centred on a cell of 16 x 16 pixels, the size of one visual token
of the toy base model.
"""

import json
import random
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

sys.path[:0] = [str(Path(__file__).parent.parent)]
from common import CLOSING
from mathse.cli import Parser, whole
from mathse.records import fail

CELL, CELLS = 16, 7  # pixels a cell, cells a side: pictures of 112 x 112 pixels
OPERATIONS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}
MULTIPLE_CHOICE_SHARE = 0.25
REPEATS = 10_000  # pictures drawn before, one after the other: then a family has no more


# ---------------------------------------------------------------- pictures


class Canvas:
    """A white picture of CELLS x CELLS cells; `write` centres one character on each cell, from left to right.

    `cells` remembers what stands where: {(column, row): word}, from which the base model learns to see.
    """

    def __init__(self):
        self.image = Image.new("RGB", (CELL * CELLS, CELL * CELLS), "white")
        self.draw = ImageDraw.Draw(self.image)
        self.font = ImageFont.load_default(size=15)
        self.cells: dict[tuple[int, int], str] = {}

    def write(self, column: int, row: int, text: object, colour: str = "black") -> None:
        for offset, character in enumerate(str(text)):
            centre = ((column + offset + 0.5) * CELL, (row + 0.5) * CELL)
            self.cells[column + offset, row] = character
            self.draw.text(centre, character, fill=colour, font=self.font, anchor="mm")

    def box(self, left: float, top: float, right: float, bottom: float, **style) -> None:
        """A rectangle, its corners in cells."""
        corners = [left * CELL, top * CELL, right * CELL - 1, bottom * CELL - 1]
        self.draw.rectangle(corners, **({"outline": "navy", "width": 2} | style))

    def line(self, *points: tuple[float, float], colour: str = "navy", width: int = 2) -> None:
        self.draw.line([(x * CELL, y * CELL) for x, y in points], fill=colour, width=width)


def draw_rectangle(n: dict, rng: random.Random, canvas: Canvas) -> None:
    left, top, right, bottom = rng.randint(0, 1), rng.randint(0, 2), rng.randint(4, 5), rng.randint(4, 6)
    canvas.box(left, top, right, bottom)
    canvas.write(rng.randint(left + 1, right - 2), bottom, n["a"])
    canvas.write(right, rng.randint(top, bottom - 1), n["b"])
    if "c" in n:  # a square hole around its own label
        column, row = rng.randint(left + 1, right - 2), rng.randint(top, bottom - 1)
        canvas.box(column, row, column + 1, row + 1, width=1)
        canvas.write(column, row, n["c"])


def draw_triangle(n: dict, rng: random.Random, canvas: Canvas) -> None:
    apex, base = rng.uniform(2.5, 4.5), rng.randint(5, 6)
    canvas.line((1, base), (6, base), (apex, 1), (1, base))
    canvas.write(rng.randint(0, 1), 2, n["a"])
    canvas.write(rng.randint(5, 6) - 1, 2, n["b"])
    canvas.write(rng.randint(2, 4), base, n["c"])


def draw_angles(n: dict, rng: random.Random, canvas: Canvas) -> None:
    apex, base = rng.uniform(2.5, 4.5), rng.randint(5, 6)
    canvas.line((0, base), (7, base), (apex, rng.randint(0, 2)), (0, base))
    canvas.write(1, base - 1, n["a"])
    canvas.write(4, base - 1, n["b"])


def draw_bars(n: dict, rng: random.Random, canvas: Canvas) -> None:
    for column, name in zip((0, 2, 4, 6), "ABCD"):
        top = 6 - n[name] / 2  # half a cell for each unit
        canvas.box(column + 0.1, top, column + 0.9, 6, fill="lightsteelblue", width=1)
        canvas.write(column, int(top) - 1, n[name])
        canvas.write(column, 6, name)


def draw_number_line(n: dict, rng: random.Random, canvas: Canvas) -> None:
    row = rng.randint(2, 5)
    canvas.line((0, row + 0.5), (7, row + 0.5))
    for mark in range(CELLS):
        canvas.line((mark + 0.5, row + 0.2), (mark + 0.5, row + 0.8))
    canvas.write(0, row + 1, n["a"])
    canvas.write(1, row + 1, n["b"])
    x = n["k"] + 0.5
    canvas.cells[n["k"], row - 1] = "arrow"
    canvas.line((x, row - 0.9), (x, row), colour="crimson")
    canvas.line((x - 0.25, row - 0.3), (x, row), (x + 0.25, row - 0.3), colour="crimson")


def draw_points(n: dict, rng: random.Random, canvas: Canvas) -> None:
    for value in range(1, CELLS):
        canvas.write(value, 6, value, "grey")
        canvas.write(0, 6 - value, value, "grey")
    canvas.line((1, 0), (1, 6), (7, 6), width=1)
    canvas.write(n["a"], 6 - n["b"], "P", "crimson")
    canvas.write(n["c"], 6 - n["d"], "Q", "crimson")


def draw_shapes(n: dict, rng: random.Random, canvas: Canvas) -> None:
    def shape(kind: str, column: int, row: int) -> None:
        canvas.cells[column, row] = kind
        corners = [column * CELL + 2, row * CELL + 2, (column + 1) * CELL - 3, (row + 1) * CELL - 3]
        if kind == "circle":
            canvas.draw.ellipse(corners, fill="crimson")
        else:
            canvas.draw.rectangle(corners, fill="seagreen")

    for column, kind, value in ((0, "circle", n["p"]), (4, "square", n["q"])):
        shape(kind, column, 0)
        canvas.write(column + 1, 0, f"={value}")
    canvas.line((0, 1.5), (7, 1.5), colour="grey", width=1)
    cells = rng.sample([(column, row) for column in range(CELLS) for row in range(2, CELLS)], n["m"] + n["k"])
    for index, (column, row) in enumerate(cells):
        shape("circle" if index < n["m"] else "square", column, row)


# ---------------------------------------------------------------- families


@dataclass
class Family:
    """One kind of problem."""

    numbers: Callable[[random.Random], dict]  # draws the named numbers that the picture shows
    facts: str  # the numbers in words
    question: str
    steps: list[str]  # "what is calculated LEFT OPERATION RIGHT = RESULT", over names and numbers; r ends
    draw: Callable[[dict, random.Random, Canvas], None]


def draw_numbers(**ranges: range) -> Callable[[random.Random], dict]:
    return lambda rng: {name: rng.choice(values) for name, values in ranges.items()}


def bar_numbers(rng: random.Random) -> dict:
    heights = dict(zip("ABCD", rng.sample(range(1, 10), 4)))
    first, second = sorted(rng.sample("ABCD", 2), key=heights.get, reverse=True)
    return heights | {"x": first, "y": second}


def line_numbers(rng: random.Random) -> dict:
    start = rng.randint(0, 6)
    return {"a": start, "b": rng.randint(start + 2, 9), "k": rng.randint(2, 6)}


def point_numbers(rng: random.Random) -> dict:
    (left, right), (low, high) = (sorted(rng.sample(range(1, 7), 2)) for _ in "xy")
    return {"a": left, "b": low, "c": right, "d": high}


FAMILIES = {
    "rectangle_area": Family(
        draw_numbers(a=range(3, 13), b=range(2, 10)),
        "a rectangle with sides {a} and {b}",
        "What is the area of the rectangle?",
        ["The area is a * b = r"],
        draw_rectangle,
    ),
    "rectangle_perimeter": Family(
        draw_numbers(a=range(3, 20), b=range(2, 10)),
        "a rectangle with sides {a} and {b}",
        "What is the perimeter of the rectangle?",
        ["Half the way around is a + b = s", "The perimeter is 2 * s = r"],
        draw_rectangle,
    ),
    "triangle_perimeter": Family(
        draw_numbers(a=range(3, 20), b=range(3, 20), c=range(3, 20)),
        "a triangle with sides {a}, {b} and {c}",
        "What is the perimeter of the triangle?",
        ["Two sides make a + b = s", "The perimeter is s + c = r"],
        draw_triangle,
    ),
    "triangle_angle": Family(
        draw_numbers(a=range(20, 81, 5), b=range(20, 81, 5)),
        "a triangle with angles {a} and {b}",
        "What is the third angle of the triangle, in degrees?",
        ["The two angles make a + b = s", "The third angle is 180 - s = r"],
        draw_angles,
    ),
    "bars_difference": Family(
        bar_numbers,
        "bars A {A}, B {B}, C {C} and D {D}",
        "How much higher is bar {x} than bar {y}?",
        ["Bar {x} less bar {y} is x - y = r"],
        draw_bars,
    ),
    "bars_total": Family(
        bar_numbers,
        "bars A {A}, B {B}, C {C} and D {D}",
        "How much do the four bars make together?",
        ["A and B make A + B = s", "With C it is s + C = t", "With D it is t + D = r"],
        draw_bars,
    ),
    "number_line": Family(
        line_numbers,
        "a number line from {a} to {b} at the first mark and an arrow at mark {k}",
        "Which number does the arrow show?",
        ["One mark is b - a = s", "The arrow is further by k * s = t", "It shows a + t = r"],
        draw_number_line,
    ),
    "points_area": Family(
        point_numbers,
        "the points P ({a}, {b}) and Q ({c}, {d})",
        "P and Q are opposite corners of an upright rectangle. What is its area?",
        ["The width is c - a = s", "The height is d - b = t", "The area is s * t = r"],
        draw_points,
    ),
    "shapes_value": Family(
        draw_numbers(m=range(1, 6), k=range(1, 6), p=range(2, 10), q=range(2, 10)),
        "{m} circles for {p} and {k} squares for {q}",
        "How much are all the shapes below the line worth together?",
        ["The circles are m * p = s", "The squares are k * q = t", "Together they are s + t = r"],
        draw_shapes,
    ),
    "frame_area": Family(
        draw_numbers(a=range(6, 13), b=range(4, 10), c=range(2, 5)),
        "a rectangle with sides {a} and {b} and a square hole with side {c}",
        "What area is left of the rectangle without its hole?",
        ["The rectangle is a * b = s", "The hole is c * c = t", "What is left is s - t = r"],
        draw_rectangle,
    ),
}


# ---------------------------------------------------------------- solutions


def parts(step: str) -> tuple[str, str, str, str, str]:
    """(what is calculated, left, operation, right, name of the result)"""
    text, left, operation, right, _, result = step.rsplit(" ", 5)
    return text, left, operation, right, result


def work_out(family: Family, numbers: dict, slip_at: int = -1, slip: int = 0) -> tuple[list[str], int]:
    """The calculations, one a line, and the result; that at `slip_at` comes out wrong by `slip`."""
    values, lines = dict(numbers), []

    def value_of(name: str) -> int:
        value = values.get(name, name)
        return int(values.get(value, value))  # x may be B, and B a height

    for index, (text, left, operation, right, result) in enumerate(map(parts, family.steps)):
        left, right = value_of(left), value_of(right)
        values[result] = OPERATIONS[operation](left, right) + (slip if index == slip_at else 0)
        lines.append(f"{text.format(**numbers)} {left} {operation} {right} = {values[result]}.")
    return lines, values["r"]


def number_steps(lines: list[str]) -> list[str]:
    return [f"Step {index}: {line}" for index, line in enumerate(lines, 1)]


def solution_text(family: Family, numbers: dict, options: list[str], opening: str, **slip) -> tuple[str, str]:
    """(a worked solution that starts with `opening` and the facts, its answer's value)"""
    lines, result = work_out(family, numbers, **slip)
    steps = number_steps([f"{opening} {family.facts.format(**numbers)}.", *lines])
    answer = "ABCD"[options.index(str(result))] if str(result) in options else str(result)
    return "\n".join([*steps, f"{CLOSING} {answer}."]), str(result)


def wrong_solution(
    family: Family, numbers: dict, options: list[str], opening: str, rng: random.Random
) -> tuple[str, int]:
    """A solution with one mistake, carried on to a wrong answer, and the index of its first wrong line."""
    right_text, right = solution_text(family, numbers, options, opening)
    while True:
        read, slip, wrong_line = numbers, {}, 0
        match rng.choices(["misread", "slip", "answer"], [5, 4, 1])[0]:
            case "answer":  # everything is right, but the wrong result or letter is given
                given = rng.choice("ABCD") if options else str(misread_number(int(right), rng))
                *lines, closing = right_text.split("\n")
                if closing != f"{CLOSING} {given}.":
                    return "\n".join([*lines, f"{CLOSING} {given}."]), len(lines)
                continue
            case "misread":
                read = misread(numbers, rng)
            case "slip":
                wrong_line = rng.randint(1, len(family.steps))
                slip = {"slip_at": wrong_line - 1, "slip": rng.choice([-10, -3, -2, -1, 1, 2, 3, 10])}
        text, answer = solution_text(family, read, options, opening, **slip)
        if answer != right and int(answer) >= 0:
            return text, wrong_line


def misread(numbers: dict, rng: random.Random) -> dict:
    """The numbers, one of them read wrongly."""
    name = rng.choice([name for name, value in numbers.items() if isinstance(value, int)])
    return numbers | {name: misread_number(numbers[name], rng)}


def misread_number(value: int, rng: random.Random) -> int:
    """Another number of as many digits: one digit is read wrongly."""
    digits = list(str(value))
    place = rng.randrange(len(digits))
    digits[place] = rng.choice([digit for digit in "0123456789"[place == 0 :] if digit != digits[place]])
    return int("".join(digits))


def first_mistake(right: str, given: str) -> tuple[str, str] | None:
    """(the first line that differs from the right solution, what is wrong with it, without the right answer)

    Of choices the value is as good an answer as its letter.
    """
    right_lines = [line.strip() for line in right.strip().split("\n")]
    given_lines = [line.strip() for line in given.strip().split("\n") if line.strip()] or [""]
    if value := re.search(rf"= (\d+)\.\n{re.escape(CLOSING)} \S+\Z", right.strip()):
        by_value, last = f"{CLOSING} {value[1]}.", len(right_lines) - 1
        if given_lines[last : last + 1] == [by_value]:
            right_lines[last] = by_value
    if given_lines == right_lines:
        return None
    pairs = zip(given_lines, right_lines + [""] * len(given_lines))
    line = [*(line for line, expected in pairs if line != expected), given_lines[-1]][0]
    return line, diagnosis(line, right)[0]


def diagnosis(step: str, right: str) -> tuple[str, str | None]:
    """(what is wrong with a step of a solution, the type of this error or None if that is unclear)"""
    if calculation := re.search(r"(\d+) ([-+*]) (\d+) = (-?\d+)\.?$", step):
        left, operation, other, result = calculation.groups()
        if OPERATIONS[operation](int(left), int(other)) != int(result):
            return f"{left} {operation} {other} is not {result}.", "calculation"
        return "This is not what has to be calculated here.", "reasoning"
    if step.startswith("The answer"):
        return "This is not the result of the steps.", "reasoning" if step.startswith(CLOSING) else None
    said, shown = (re.findall(r"\d+", text.removeprefix("Step 1:")) for text in (step, right.split("\n")[0]))
    is_misread = "picture shows" in step and said != shown
    return "The picture shows other numbers.", "vision" if is_misread else None


def draw_options(right: int, rng: random.Random) -> list[str]:
    near = [right + step for step in (-10, -4, -3, -2, -1, 1, 2, 3, 4, 10) if right + step > 0]
    options = [str(value) for value in [right, *rng.sample(near, 3)]]
    rng.shuffle(options)
    return options


def parse_numbers(problem: dict) -> dict:
    """The numbers of a toy problem, read back from its question and solution."""
    family, found = FAMILIES[problem["subject"]], {}
    for template, text in ((family.facts, problem["solution"]), (family.question, problem["question"])):
        pattern = re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\d+|[A-D])", re.escape(template))
        found |= re.search(pattern, text).groupdict()
    drawn = family.numbers(random.Random(0))  # in their order, so that a seed misreads the same number
    return {name: type(drawn[name])(found[name]) for name in drawn if name in found}


def make_problem(name: str, rng: random.Random) -> tuple[dict, dict, Canvas]:
    """(problem record without id and images, its numbers, its picture)"""
    family, numbers = FAMILIES[name], FAMILIES[name].numbers(rng)
    _, right = work_out(family, numbers)
    options = draw_options(right, rng) if rng.random() < MULTIPLE_CHOICE_SHARE else []
    solution, _ = solution_text(family, numbers, options, "The picture shows")
    record = {"question": family.question.format(**numbers), "answer": str(right)}
    record |= {"options": options} if options else {}
    record |= {"solution": solution, "subject": name, "source": "toy"}
    canvas = Canvas()
    family.draw(numbers, rng, canvas)
    return record, numbers, canvas


def main() -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--output", type=Path, default=Path("toy"), help="folder to write (default %(default)s)")
    add("--train", type=whole(1), default=1200, help="training problems (default %(default)s)")
    tests = "test problems, no picture of which is a training problem's (default %(default)s)"
    add("--test", type=whole(1), default=300, help=tests)
    again = "the same seed draws the same problems (default %(default)s)"
    add("--seed", type=whole(0), default=0, help=again)
    args = parser.parse_args()
    rng, seen, names = random.Random(args.seed), set(), list(FAMILIES)
    (args.output / "images").mkdir(parents=True, exist_ok=True)
    # The test file is drawn first: its problems do not change with the number of training problems.
    for split, count in (("test", args.test), ("train", args.train)):
        rows, repeats = [], 0
        while len(rows) < count:
            name = names[len(rows) % len(names)]
            record, _, canvas = make_problem(name, rng)
            if (picture := canvas.image.tobytes()) in seen:  # also not with another question
                repeats += 1
                if repeats == REPEATS:
                    fail(f"--{split}: {count}: there are no more pictures of {name}; ask for fewer problems")
                continue
            seen.add(picture)
            repeats = 0
            path = f"images/{split}_{len(rows):05d}.png"
            canvas.image.save(args.output / path)
            rows.append({"id": f"toy/{split}/{len(rows):05d}", "images": [path]} | record)
        rng.shuffle(rows)
        part = args.output / f"{split}.jsonl.part"
        part.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        part.replace(args.output / f"{split}.jsonl")
    print(f"{args.train} training and {args.test} test problems of {len(names)} families in {args.output}")


if __name__ == "__main__":
    main()
