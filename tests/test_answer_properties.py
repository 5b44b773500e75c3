"""The answer check on answers drawn from a table: each equals its other spellings, and nothing changed.

python -m pytest tests/test_answer_properties.py     30,000 pairs, the same at every call
"""

import random
import re
from itertools import pairwise

import pytest

from mathse.answers import check_answer
from mathse.answers.same import same_answer

DRAWS = 31  # of each form
WRAPPINGS = (
    "The answer to this problem is {}.", "So \\boxed{{{}}}", "答案：{}", "**Answer:** {}\n\nDone.", "#### {}"
)  # fmt: skip
TABLES = {
    "WORD": "- - two three four five six seven eight nine".split(),
    "HAN": "--二三四五六七八九",
    "UP": "---³⁴⁵⁶",
}
# A form: its name and what is drawn for it, all different; its spellings; what is none of them.
FORMS = r"""
integer n=13..99999
= <n> | <n:,> | +<n> | $<n>$ | <n>.0 | \text{<n>}
! -<n> | <n>! | <n>% | <n>0 | <n>/2 | <n> million | <n>²
decimal w=100..999 p=1..99
= <w>.<p:02> | <w>.<p:02>0 | <w>{,}<p:02> | \frac{<w*100+p>}{100}
! <w+1>.<p:02> | -<w>.<p:02> | <w>.<p:02>% | <w>.0<p:02> | <w>; <p:02>
fraction a=2..39 b=41..97
= <a>/<b> | \frac{<a>}{<b>} | $\dfrac{<a>}{<b>}$ | <2*a>/<2*b>
! <b>/<a> | -<a>/<b> | <a> <b> | <a>-<b> | <a>*<b> | <a>+<b> | <a>
mixed w=13..20 b=3..9
= <w> 1/<b> | <w>\frac{1}{<b>} | \frac{<w*b+1>}{<b>} | <w>又<b>分之1
! <w>/<b> | <w>1/<b> | <w> | 1/<b> | <w>*1/<b> | <w> - 1/<b>
percent p=1..99
= <p>% | <p> percent | <p>\% | <p> per cent | 0.<p:02> | <p>/100
! <p> | <p+1>% | -<p>% | 0.<p:02>% | <p> percent of 50 | <p>‰
surd f=8..19 r=2,3,5,6,7
= <f>\sqrt{<r>} | <f>√<r> | \sqrt{<f*f*r>} | <f>*sqrt(<r>) | <f>\sqrt(<r>)
! <f> | √<r> | <f><r> | <f>∛<r> | -<f>√<r> | <f>+√<r> | <f>/√<r+4>
circle f=2..60
= <f>π | <f>\pi | <f> pi | \pi \cdot <f> | <2*f>π/2
! <f> | π | <f>+π | <f>/π | -<f>π | <f>π^2 | <f>π%
power b=7..19 e=3,4,5,6
= <b>^<e> | <b>^{<e>} | <b><UP[e]> | <b**e> | <b>^<e-1>*<b>
! <b><e> | <b>*<e> | <b> | <b>^<e+1> | -<b>^<e> | <b>^{-<e>}
scientific d=11..99 e=3..8
= <d/10> \times 10^{<e>} | <d/10>e<e> | <d/10> x 10^<e> | <d*10**(e-1)>
! <d/10> | <d/10>*10*<e> | <d/10> \times 10^{-<e>} | <d/10>e<e+1> | <d/10> + 10^<e>
length n=2..900
= <n*100> cm | <n> m | <n>\text{ m} | <n>\,\mathrm{m} | <n*1000> mm
! <n> cm | <n> m^2 | <n> m/s | <n+1> m | -<n> m | <n> kg | <n> km
area n=2..900
= <n> cm^2 | <n> cm² | <n> square centimeters | <n>平方厘米 | <n> sq. cm
! <n> cm | <n> cm^3 | <n> m^2 | <n> cubic centimeters | <n+1> cm^2 | <n> kg
duration h=2..9 m=11..59
= <h> h <m> min | <h> hours and <m> minutes | <h*60+m> min | <h>小时<m>分钟
! <h> h | <m> min | <h>.<m> h | <h> min <m> s | <h> h <m+1> min | <h+m> h
angle d=2..170 m=15,30,45
= <d>°<m>' | <d>^\circ <m>^\prime | <d+m/60>° | <d>度<m>'
! <d>° | <m>' | <d>.<m>° | <d>°<m+1>' | -<d>°<m>'
money n=2..900
= \$<n> | <n> dollars | $<n>.00 | <n>00 cents | USD <n>
! <n> cents | €<n> | <n>元 | \$<n>.50 | \$<n> million | -<n> dollars
ratio a=2,3,5,7,11,13 b=2,3,5,7,11,13
= <a>:<b> | <a> : <b> | <2*a>:<2*b> | <a> to <b> | <a>比<b>
! <b>:<a> | <a> | <a>:<b+1> | <a>, <b> | <a><b> | <a>-<b>
clock h=1..11 m=10..59
= <h>:<m> pm | <h+12>:<m> | <h>:<m> p.m. | 下午<h>点<m>分
! <h>:<m> am | <h+12>:<m-1> | <h>:<m-1> pm | <h>, <m> | <h>/<m>
date d=13..28 y=1990..2030
= March <d>, <y> | <d> March <y> | the <d>th of March <y> | <y>年3月<d>日 | <y>-03-<d>
! May <d>, <y> | March <d-1>, <y> | March <d>, <y+1> | <d> | <y>
point x=2..29 y=2..29
= (<x>, <y>) | (<x>,<y>) | \left(<x>,\,<y>\right) | x = <x>, y = <y> | P(<x>, <y>) | (<x>.0, <2*y>/2)
! (<y>, <x>) | (-<x>, <y>) | (<x>, -<y>) | (<x>, <y>, 0) | [<x>, <y>] | <x> | x = <y>, y = <x> | \{<x>, <y>\}
blanks a=2..89 b=2..89 c=2..89
= <a>; <b>; <c> | (1) <a> (2) <b> (3) <c> | （1）<a>；（2）<b>；（3）<c>
! <b>; <a>; <c> | <a>; <b> | <a>; <b>; <c>; 1 | <a><b><c> | <a>; <b>; -<c>
alternatives a=2..89 b=2..89
= <a> or <b> | <b> or <a> | x = <a> or x = <b> | \{<a>, <b>\} | <a>或<b>
! <a> | <b> | <a> or <b> or 1 | <a> or -<b> | <a><b> | x = <a> | <a> or <a>
multiset a=2..89 b=2..89
= <a>, <a>, <b> | <a>, <b>, <a> | <a>, <a> and <b>
! <a>, <b>, <b> | <a>, <b> | <a>, <a>, <b>, <b> | <a>, <a>, -<b>
interval l=-20..10 h=12..40
= (<l>, <h>] | <l> < x \le <h> | <h> ≥ x > <l> | x ∈ (<l>,<h>] | x > <l> and x <= <h>
! [<l>, <h>] | (<l>, <h>) | <l> < x < <h> | <l> ≤ x ≤ <h> | (<l>, <h+1>] | x > <l> or x <= <h> | x > <l>
outside l=-20..10 h=12..40
= x < <l> or x > <h> | (-\infty, <l>) \cup (<h>, \infty) | (<h>, +∞) ∪ (-∞, <l>)
! x < <l> and x > <h> | (<l>, <h>) | x ≤ <l> or x > <h> | x < <l> | x < <h> or x > <l>
assignments a=2..89 b=2..89
= a = <a>, b = <b> | b=<b>, a=<a> | $a=<a>$ and $b=<b>$ | a = <a>; b = <b>
! a = <b>, b = <a> | a = <a>, b = -<b> | a = <a>, c = <b> | a = <a> | b = <a>, a = <b>
line m=2..9 h=11..19
= y = <m>x + <h> | y=<h>+<m>x | f(x) = <m>x + <h> | <m>x + <h>
! y = <m>x - <h> | y = -<m>x + <h> | x = <m>y + <h> | y = <m>x | y > <m>x + <h> | <m>x + <h+1>
quadratic a=1..11 b=1..11
= (x+<a>)(x+<b>) | x^2+<a+b>x+<a*b> | <a*b> + <a+b>x + x² | x(x+<a+b>)+<a*b>
! (x-<a>)(x+<b>) | x^2-<a+b>x+<a*b> | x^3+<a+b>x+<a*b> | (y+<a>)(y+<b>) | x^2+<a+b>x
figure a=A,B,C,D b=E,F,G,H c=K,L,M
= ∠<a><b><c> | \angle <c><b><a> | angle <a><b><c> | $\angle <a><b><c>$
! ∠<a><c><b> | ∠<b><a><c> | △<a><b><c> | <a><b><c> | ∠<a><b> | ∠<b>
count n=2..90
= <n> apples | <n> | <n> red apples | <n>个
! <n+1> apples | <n> dozen apples | <n> out of 100 | <n> divided by 2 | <n> more than 3 | not <n> | over <n>
worded d=2..9
= <WORD[d]> hundred and <WORD[d]> | <d>0<d> | <HAN[d]>百零<HAN[d]> | <WORD[d]> hundred <WORD[d]>
! <WORD[d]> hundred | <WORD[d]> | <HAN[d]>百<HAN[d]>十 | minus <WORD[d]> hundred | <HAN[d]>千零<HAN[d]>
restated n=2..90
= <n> (<n>.0) | <n>, not <n+1> | <n-1> + 1 = <n> | <n> | x = <n> = <2*n>/2
! <n> (<n+1>) | <n+1>, not <n> | <n> + 1 = <n+2> | <n> or <n+1> | <n> - 1 = <n-1>
"""
FIELD = re.compile(r"<([A-Za-z][^<> ]*|2\*[a-z])>")
LINES = FORMS.strip().split("\n")
FORMS = {head.split()[0]: (head.split()[1:], same, other) for head, same, other in zip(*[iter(LINES)] * 3)}


def drawn(name: str, draw: random.Random) -> tuple[list[str], list[str]]:
    """(spellings of one answer, other answers)"""
    ranges, same, other = FORMS[name]
    names = {}
    for variable, _, values in (text.partition("=") for text in ranges):
        low, _, high = values.partition("..")
        some = [int(one) if one.isdigit() else one for one in values.split(",")]
        some = range(int(low), int(high) + 1) if high else some
        value = draw.choice(some)
        while value in names.values():
            value = draw.choice(some)
        names[variable] = value
    known = TABLES | names
    lines = (FIELD.sub(lambda field: eval(f"f'{{{field[1]}}}'", known), line) for line in (same, other))
    return tuple(line[2:].split(" | ") for line in lines)


@pytest.mark.parametrize("name", FORMS)
def test_spellings_are_equal_and_changes_are_not(name):
    draw = random.Random(name)
    for _ in range(DRAWS):
        spellings, others = drawn(name, draw)
        for one, two in pairwise([*spellings, spellings[0]]):
            assert same_answer(one, two) is True, (one, two)
            assert same_answer(one, one) is True, one
        for spelling in spellings[:2]:
            for other in others:
                assert same_answer(spelling, other) is not True, (spelling, other)
                assert same_answer(other, spelling) is not True, (other, spelling)


def test_there_are_many_pairs():
    sizes = [[len(texts) for texts in drawn(name, random.Random(0))] for name in FORMS]
    assert sum(DRAWS * (2 * equal + 4 * other) for equal, other in sizes) >= 30_000


def test_wrapped_answers_are_found_whole():
    draw = random.Random(1)
    for name in FORMS:
        for wrapping in WRAPPINGS:
            spellings, others = drawn(name, draw)
            said = check_answer(wrapping.format(spellings[0]), {"answer": spellings[1]})
            assert said["answer_check"] == "correct", (wrapping, spellings[:2], said)
            for other in others:
                said = check_answer(wrapping.format(other), {"answer": spellings[0]})
                assert said["answer_check"] != "correct", (wrapping, other, spellings[0], said)


def test_no_content_raises():
    """Answers with characters changed, dropped and doubled: a verdict for each."""
    draw = random.Random(2)
    alphabet = "0123456789.,;:=<>()[]{}\\^_/*+-!%$°'\"|√π∠≤±∞⋮ abcxyzABC是万百半点月\n\x00\ud800"
    pool, rules = [drawn(name, draw) for name in FORMS for _ in range(DRAWS)], set()
    for _ in range(3000):
        text = list(draw.choice(draw.choice(draw.choice(pool))))
        for _ in range(draw.randint(1, 4)):
            place = draw.randrange(len(text) + 1)
            text[place : place + draw.randint(0, 2)] = draw.choices(alphabet, k=draw.randint(0, 3))
        reference = draw.choice(draw.choice(pool)[0])
        rules.add(check_answer(draw.choice(WRAPPINGS).format("".join(text)), {"answer": reference})["rule"])
    assert rules <= {"answer-line", "boxed", "bare", "conclusion", "choice", "none"}
