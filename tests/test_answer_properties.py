"""The answer check on answers drawn from a grammar: each equals its other spellings, and nothing changed.

python -m pytest tests/test_answer_properties.py     30,000 pairs, the same at every call
"""

import random
from itertools import pairwise

import pytest

from mathse.answers import check_answer
from mathse.answers.same import same_answer

LENGTHS = [("mm", 1), ("cm", 10), ("m", 1000), ("km", 10**6)]
WORDS = "two three four five six seven eight nine".split()
CHINESE = "二三四五六七八九"
WRAPPINGS = (
    "The answer to this problem is {}.",
    "So \\boxed{{{}}}",
    "答案：{}",
    "**Answer:** {}\n\nDone.",
    "#### {}",
)
DRAWS = 40  # of each form


def integer(draw):
    number = draw.randint(13, 99_999)
    return (
        [f"{number}", f"{number:,}", f"+{number}", f"${number}$", f"{number}.0", f"\\text{{{number}}}"],
        [f"-{number}", f"{number}!", f"{number}%", f"{number}0", f"{number}/2", f"{number} million",
         f"{number}²"],
    )  # fmt: skip


def decimal(draw):
    whole, part = draw.randint(0, 999), draw.randint(1, 99)
    return (
        [f"{whole}.{part:02}", f"{whole}.{part:02}0", f"{whole}{{,}}{part:02}",
         f"\\frac{{{whole * 100 + part}}}{{100}}"],
        [f"{whole + 1}.{part:02}", f"-{whole}.{part:02}", f"{whole}.{part:02}%", f"{whole}.0{part:02}",
         f"{whole}; {part:02}"],
    )  # fmt: skip


def fraction(draw):
    below = draw.randint(3, 97)
    above = draw.choice([n for n in range(2, 40) if n % below])
    return (
        [f"{above}/{below}", f"\\frac{{{above}}}{{{below}}}", f"$\\dfrac{{{above}}}{{{below}}}$",
         f"{2 * above}/{2 * below}"],
        [f"{below}/{above}", f"-{above}/{below}", f"{above} {below}", f"{above}-{below}",
         f"{above}*{below}", f"{above}+{below}", f"{above}"],
    )  # fmt: skip


def mixed(draw):
    whole, below = draw.randint(2, 20), draw.choice([3, 4, 5, 6, 7, 8, 9, 11, 12])
    return (
        [f"{whole} 1/{below}", f"{whole}\\frac{{1}}{{{below}}}",
         f"\\frac{{{whole * below + 1}}}{{{below}}}", f"{whole}又{below}分之1"],
        [f"{whole}/{below}", f"{whole}1/{below}", f"{whole}", f"1/{below}", f"{whole}*1/{below}",
         f"{whole} - 1/{below}"],
    )  # fmt: skip


def percent(draw):
    part = draw.randint(1, 99)
    return (
        [f"{part}%", f"{part} percent", f"{part}\\%", f"{part} per cent", f"0.{part:02}", f"{part}/100"],
        [f"{part}", f"{part + 1}%", f"-{part}%", f"0.{part:02}%", f"{part} percent of 50", f"{part}‰"],
    )  # fmt: skip


def surd(draw):
    factor, of = draw.randint(2, 9), draw.choice([2, 3, 5, 6, 7])
    return (
        [f"{factor}\\sqrt{{{of}}}", f"{factor}√{of}", f"\\sqrt{{{factor * factor * of}}}",
         f"{factor}*sqrt({of})", f"{factor}\\sqrt({of})"],
        [f"{factor}", f"√{of}", f"{factor}{of}", f"{factor}∛{of}", f"-{factor}√{of}", f"{factor}+√{of}",
         f"{factor}/√{of + 4}"],
    )  # fmt: skip


def circle(draw):
    factor = draw.randint(2, 60)
    return (
        [f"{factor}π", f"{factor}\\pi", f"{factor} pi", f"\\pi \\cdot {factor}", f"{2 * factor}π/2"],
        [f"{factor}", "π", f"{factor}+π", f"{factor}/π", f"-{factor}π", f"{factor}π^2", f"{factor}π%"],
    )  # fmt: skip


def power(draw):
    base, exponent = draw.randint(2, 9), draw.randint(3, 6)
    raised = str(exponent).translate(str.maketrans("3456", "³⁴⁵⁶"))
    return (
        [f"{base}^{exponent}", f"{base}^{{{exponent}}}", f"{base}{raised}", f"{base**exponent}",
         f"{base}^{exponent - 1}*{base}"],
        [f"{base}{exponent}", f"{base}*{exponent}", f"{base}", f"{base}^{exponent + 1}",
         f"-{base}^{exponent}", f"{base}^{{-{exponent}}}"],
    )  # fmt: skip


def scientific(draw):
    digits, exponent = draw.randint(11, 99), draw.randint(3, 8)
    lead = f"{digits // 10}.{digits % 10}"
    return (
        [f"{lead} \\times 10^{{{exponent}}}", f"{lead}e{exponent}", f"{lead} x 10^{exponent}",
         f"{digits * 10 ** (exponent - 1)}"],
        [lead, f"{lead}*10*{exponent}", f"{lead} \\times 10^{{-{exponent}}}", f"{lead}e{exponent + 1}",
         f"{lead} + 10^{exponent}"],
    )  # fmt: skip


def length(draw):
    number, (small, size), (large, larger) = draw.randint(2, 900), *draw.sample(LENGTHS, 2)
    if size > larger:
        small, large, size, larger = large, small, larger, size
    return (
        [f"{number * larger // size} {small}", f"{number} {large}", f"{number}\\text{{ {large}}}",
         f"{number}\\,\\mathrm{{{large}}}"],
        [f"{number} {small}", f"{number} {large}^2", f"{number} {large}/s", f"{number + 1} {large}",
         f"-{number} {large}", f"{number} kg"],
    )  # fmt: skip


def area(draw):
    number = draw.randint(2, 900)
    return (
        [f"{number} cm^2", f"{number} cm²", f"{number} square centimeters", f"{number}平方厘米",
         f"{number} sq. cm"],
        [f"{number} cm", f"{number} cm^3", f"{number} m^2", f"{number} cubic centimeters",
         f"{number + 1} cm^2", f"{number} kg"],
    )  # fmt: skip


def duration(draw):
    hours, minutes = draw.randint(2, 9), draw.randint(1, 59)
    return (
        [f"{hours} h {minutes} min", f"{hours} hours and {minutes} minutes", f"{hours * 60 + minutes} min",
         f"{hours}小时{minutes}分钟"],
        [f"{hours} h", f"{minutes} min", f"{hours}.{minutes:02} h", f"{hours} min {minutes} s",
         f"{hours} h {minutes + 1} min", f"{hours + minutes} h"],
    )  # fmt: skip


def angle(draw):
    degrees, minutes = draw.randint(2, 170), draw.choice([15, 30, 45])
    return (
        [f"{degrees}°{minutes}'", f"{degrees}^\\circ {minutes}^\\prime", f"{degrees + minutes / 60}°",
         f"{degrees}度{minutes}'"],
        [f"{degrees}°", f"{minutes}'", f"{degrees}.{minutes}°", f"{degrees}°{minutes + 1}'",
         f"-{degrees}°{minutes}'"],
    )  # fmt: skip


def money(draw):
    number = draw.randint(2, 900)
    return (
        [f"\\${number}", f"{number} dollars", f"${number}.00", f"{number}00 cents", f"USD {number}"],
        [
            f"{number} cents",
            f"€{number}",
            f"{number}元",
            f"\\${number}.50",
            f"\\${number} million",
            f"-{number} dollars",
        ],
    )  # fmt: skip


def ratio(draw):
    one, other = draw.sample([2, 3, 5, 7, 11, 13], 2)
    return (
        [
            f"{one}:{other}",
            f"{one} : {other}",
            f"{2 * one}:{2 * other}",
            f"{one} to {other}",
            f"{one}比{other}",
        ],
        [
            f"{other}:{one}",
            f"{one}",
            f"{one}:{other + 1}",
            f"{one}, {other}",
            f"{one}{other}",
            f"{one}-{other}",
        ],
    )  # fmt: skip


def point(draw):
    x, y = draw.sample(range(2, 30), 2)
    return (
        [f"({x}, {y})", f"({x},{y})", f"\\left({x},\\,{y}\\right)", f"x = {x}, y = {y}", f"P({x}, {y})",
         f"({x}.0, {2 * y}/2)"],
        [f"({y}, {x})", f"(-{x}, {y})", f"({x}, -{y})", f"({x}, {y}, 0)", f"[{x}, {y}]", f"{x}",
         f"x = {y}, y = {x}", f"\\{{{x}, {y}\\}}"],
    )  # fmt: skip


def blanks(draw):
    one, two, three = draw.sample(range(2, 90), 3)
    return (
        [f"{one}; {two}; {three}", f"(1) {one} (2) {two} (3) {three}",
         f"（1）{one}；（2）{two}；（3）{three}"],
        [f"{two}; {one}; {three}", f"{one}; {two}", f"{one}; {two}; {three}; 1", f"{one}{two}{three}",
         f"{one}; {two}; -{three}"],
    )  # fmt: skip


def alternatives(draw):
    one, other = draw.sample(range(2, 90), 2)
    return (
        [f"{one} or {other}", f"{other} or {one}", f"x = {one} or x = {other}", f"\\{{{one}, {other}\\}}",
         f"{one}或{other}"],
        [f"{one}", f"{other}", f"{one} or {other} or 1", f"{one} or -{other}", f"{one}{other}",
         f"x = {one}", f"{one} or {one}"],
    )  # fmt: skip


def multiset(draw):
    one, other = draw.sample(range(2, 90), 2)
    return (
        [f"{one}, {one}, {other}", f"{one}, {other}, {one}", f"{one}, {one} and {other}"],
        [
            f"{one}, {other}, {other}",
            f"{one}, {other}",
            f"{one}, {one}, {other}, {other}",
            f"{one}, {one}, -{other}",
        ],
    )  # fmt: skip


def interval(draw):
    low = draw.randint(-20, 10)
    high = low + draw.randint(2, 30)
    return (
        [f"({low}, {high}]", f"{low} < x \\le {high}", f"{high} ≥ x > {low}", f"x ∈ ({low},{high}]",
         f"x > {low} and x <= {high}"],
        [f"[{low}, {high}]", f"({low}, {high})", f"{low} < x < {high}", f"{low} ≤ x ≤ {high}",
         f"({low}, {high + 1}]", f"x > {low} or x <= {high}", f"x > {low}"],
    )  # fmt: skip


def outside(draw):
    low = draw.randint(-20, 10)
    high = low + draw.randint(2, 30)
    return (
        [f"x < {low} or x > {high}", f"(-\\infty, {low}) \\cup ({high}, \\infty)",
         f"({high}, +∞) ∪ (-∞, {low})"],
        [f"x < {low} and x > {high}", f"({low}, {high})", f"x ≤ {low} or x > {high}", f"x < {low}",
         f"x < {high} or x > {low}"],
    )  # fmt: skip


def assignments(draw):
    one, other = draw.sample(range(2, 90), 2)
    return (
        [f"a = {one}, b = {other}", f"b={other}, a={one}", f"$a={one}$ and $b={other}$",
         f"a = {one}; b = {other}"],
        [f"a = {other}, b = {one}", f"a = {one}, b = -{other}", f"a = {one}, c = {other}", f"a = {one}",
         f"b = {one}, a = {other}"],
    )  # fmt: skip


def line(draw):
    slope, height = draw.randint(2, 9), draw.randint(1, 9)
    return (
        [f"y = {slope}x + {height}", f"y={height}+{slope}x", f"f(x) = {slope}x + {height}",
         f"{slope}x + {height}"],
        [f"y = {slope}x - {height}", f"y = -{slope}x + {height}", f"x = {slope}y + {height}",
         f"y = {slope}x", f"y > {slope}x + {height}", f"{slope}x + {height + 1}"],
    )  # fmt: skip


def quadratic(draw):
    one, other = draw.sample(range(1, 12), 2)
    return (
        [f"(x+{one})(x+{other})", f"x^2+{one + other}x+{one * other}",
         f"{one * other} + {one + other}x + x²", f"x(x+{one + other})+{one * other}"],
        [f"(x-{one})(x+{other})", f"x^2-{one + other}x+{one * other}", f"x^3+{one + other}x+{one * other}",
         f"(y+{one})(y+{other})", f"x^2+{one + other}x"],
    )  # fmt: skip


def figure(draw):
    a, b, c = draw.sample("ABCDEFGHKLM", 3)
    return (
        [f"∠{a}{b}{c}", f"\\angle {c}{b}{a}", f"angle {a}{b}{c}", f"$\\angle {a}{b}{c}$"],
        [f"∠{a}{c}{b}", f"∠{b}{a}{c}", f"△{a}{b}{c}", f"{a}{b}{c}", f"∠{a}{b}", f"∠{b}"],
    )  # fmt: skip


def count_of(draw):
    number = draw.randint(2, 90)
    return (
        [f"{number} apples", f"{number}", f"{number} red apples", f"{number}个"],
        [f"{number + 1} apples", f"{number} dozen apples", f"{number} out of 100", f"{number} divided by 2",
         f"{number} more than 3", f"not {number}", f"at least {number}", f"{number} thirds"],
    )  # fmt: skip


def worded(draw):
    digit = draw.randint(2, 9)
    word, sign = WORDS[digit - 2], CHINESE[digit - 2]
    return (
        [f"{word} hundred and {word}", f"{digit}0{digit}", f"{sign}百零{sign}", f"{word} hundred {word}"],
        [f"{word} hundred", word, f"{sign}百{sign}十", f"{word} thousand and {word}",
         f"minus {word} hundred and {word}", f"{sign}千零{sign}"],
    )  # fmt: skip


def restated(draw):
    number = draw.randint(2, 90)
    return (
        [f"{number} ({number}.0)", f"{number}, not {number + 1}", f"{number - 1} + 1 = {number}",
         f"{number}", f"x = {number} = {2 * number}/2"],
        [f"{number} ({number + 1})", f"{number + 1}, not {number}", f"{number} + 1 = {number + 2}",
         f"{number} or {number + 1}", f"{number} - 1 = {number - 1}"],
    )  # fmt: skip


FORMS = [
    integer, decimal, fraction, mixed, percent, surd, circle, power, scientific, length, area, duration,
    angle, money, ratio, point, blanks, alternatives, multiset, interval, outside, assignments, line,
    quadratic, figure, count_of, worded, restated,
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_spellings_are_equal_and_changes_are_not(form):
    draw = random.Random(form.__name__)
    for _ in range(DRAWS):
        spellings, others = form(draw)
        for one, two in pairwise([*spellings, spellings[0]]):
            assert same_answer(one, two) is True, (one, two)
            assert same_answer(one, one) is True, one
        for spelling in spellings[:2]:
            for other in others:
                assert same_answer(spelling, other) is not True, (spelling, other)
                assert same_answer(other, spelling) is not True, (other, spelling)


def test_there_are_many_pairs():
    sizes = {form.__name__: [len(texts) for texts in form(random.Random(0))] for form in FORMS}
    pairs = [DRAWS * (2 * equal + 4 * other) for name, (equal, other) in sizes.items()]
    assert sum(pairs) >= 30_000


def test_wrapped_answers_are_found_whole():
    draw = random.Random(1)
    for form in FORMS:
        for wrapping in WRAPPINGS:
            spellings, others = form(draw)
            said = check_answer(wrapping.format(spellings[0]), {"answer": spellings[1]})
            assert said["answer_check"] == "correct", (wrapping, spellings[:2], said)
            for other in others:
                said = check_answer(wrapping.format(other), {"answer": spellings[0]})
                assert said["answer_check"] != "correct", (wrapping, other, spellings[0], said)


def test_no_content_raises():
    """Answers with characters changed, dropped and doubled: a verdict for each, and soon."""
    draw = random.Random(2)
    alphabet = "0123456789.,;:=<>()[]{}\\^_/*+-!%$°'\"|√π∠≤ abcxyzABC是万\n"
    items = []
    for _ in range(3000):
        text = list(draw.choice(draw.choice(draw.choice(FORMS)(draw))))
        for _ in range(draw.randint(1, 4)):
            place = draw.randrange(len(text) + 1)
            text[place : place + draw.randint(0, 2)] = draw.choices(alphabet, k=draw.randint(0, 3))
        wrapped = draw.choice(WRAPPINGS).format("".join(text))
        items.append((wrapped, {"answer": draw.choice(draw.choice(FORMS)(draw)[0])}, "stop"))
    rules = {check_answer(*item)["rule"] for item in items}
    assert rules <= {"answer-line", "boxed", "bare", "conclusion", "choice", "none"}
