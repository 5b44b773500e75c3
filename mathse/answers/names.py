"""Names: of angles, triangles, segments; of what has a value; and words that are answers themselves."""

import re

from mathse.answers.expression import Unreadable
from mathse.answers.kinds import Figure, Group, Words
from mathse.answers.spelling import comparable

TRUTHS = dict.fromkeys("yes true 是 对 正确".split(), "yes")
TRUTHS |= dict.fromkeys("no false 否 不是 错 错误 不正确".split(), "no")
SAME_WORDS = {  # name -> its other spellings, without blanks
    "no solution": "nosolutions norealsolution norealsolutions emptyset ∅ 无解 无实数解 空集",
    "undefined": "dne doesnotexist notdefined itisundefined itdoesnotexist 不存在",
    "infinitely many": "infinitelymanysolutions infinite infinitesolutions 无数个 无数 无数解 无穷多个",
    "all real numbers": "allreals allrealnumber ℝ 全体实数 任意实数 一切实数",
    "right triangle": "rightangledtriangle 直角三角形", "isosceles": "isoscelestriangle",
    "equilateral": "equilateraltriangle", "counterclockwise": "anticlockwise 逆时针", "clockwise": "顺时针",
    "northeast": "ne 东北", "northwest": "nw 西北", "southeast": "se 东南", "southwest": "sw 西南",
    "monday": "星期一", "tuesday": "星期二", "wednesday": "星期三", "thursday": "星期四", "friday": "星期五",
    "saturday": "星期六", "sunday": "星期日 星期天",
}  # fmt: skip
SAME_WORD = {other: comparable(name) for name, others in SAME_WORDS.items() for other in others.split()}
MEANING = re.compile(  # words that say something of a value, or deny it
    r"\b(?:not|no|than|of|by|between|least|most|times|divided|plus|minus|and|or|odd|even|positive"
    r"|negative|prime"
    r"|number|hundred|thousand|million|one|two|three|four|five|six|seven|eight|nine|ten)\b"
    r"|[不没非或和]|[一二三四五六七八九十](?![角边棱面次象])"
)
YES_OR_NO = re.compile(  # and what follows says why
    r"\W*(yes|no)[,.;:]+\*{0,2} (?!wait|yes|no\b|it depends)(?!.*\b(?:if|unless|wait|depends)\b)",
    re.IGNORECASE | re.DOTALL,
)
NO_NAME = re.compile(  # words of what is no name of the value behind it
    r"\b(?:not|no|never|wrong|incorrect|false|half|twice|double|squared|cubed|less|more|than|except|minus"
    r"|plus"
    r"|reciprocal|opposite|bound|ruled out)\b"
    r"|\bof the answer\b|[不没非错]"
)
NAME = re.compile(
    r"(?P<letters>[A-Za-zα-ωΔ](?:_\w|_\{\w+\})?'*|[A-Z]{2}|[a-zA-Z]\([a-zα-ω]\)|\([a-zA-Z](?:, ?[a-zA-Z])+\)"
    r"|m?[∠△][A-Za-zα-ω1-9]{1,3}|(?:sin|cos|tan) ?∠?[A-Zα-ω])"
    r"|(?P<words>[A-Za-z]+(?:'s)?(?:[ -][A-Za-z]+(?:'s)?){0,11}(?: ?\([A-Za-z]\))?"
    r"|[\u4e00-\u9fff]{1,10}(?:[A-Z]{1,4})?)"
)
# word -> kind; a segment has none, because AB may stand alone
FIGURES = {name: "∠" for name in "angle 角 ∠".split()} | {
    name: "△" for name in "triangle 三角形 △ Δ rt△".split()
}
FIGURES |= {"": "", "segment": "", "line segment": "", "side": "", "线段": "", "line": "line", "直线": "line"}
FIGURES |= {"ray": "ray", "射线": "ray", "vector": "vector", "向量": "vector"}
POLYGONS = (
    "quadrilateral rectangle square parallelogram trapezoid rhombus 四边形 矩形 正方形 平行四边形 梯形 菱形"
)
FIGURES |= {name: name for name in POLYGONS.split()}
FIGURE = re.compile(
    r"(?:[Tt]he )?([A-Za-z]??[a-z ]*?|[\u4e00-\u9fff]*|[Rr]t△|∠|△|Δ) ?"
    r"([A-Z1-9]'?(?:_\d)?(?:[A-Z]'?){0,4}|[a-zα-ω])"
)


def read_figure(text: str) -> Figure | None:
    """∠ABC, △ABC, segment AB, AB ∥ CD, △ABC ≅ △DEF."""
    parts = re.split("([∥⊥≅∽])", text)
    if len(parts) == 3:
        figures = [figure_name(part.strip()) for part in parts[::2]]
        if None in figures:
            raise Unreadable(text)
        (kind, one), (_, other) = figures
        if parts[1] in "≅∽" and len(one) == len(other):  # corresponding vertices stand at the same place
            return Figure((parts[1], kind, tuple(min(sorted(zip(one, other)), sorted(zip(other, one))))))
        return Figure((parts[1], *sorted(figure_key(*figure) for figure in figures)))
    named = figure_name(text)
    is_figure = named and (named[0] or re.search("[a-z\u4e00-\u9fff]", text))  # AB alone may be a product
    return Figure(figure_key(*named)) if is_figure else None


def figure_name(text: str) -> tuple[str, str] | None:
    """(kind, vertices)"""
    match = FIGURE.fullmatch(text)
    kind = FIGURES.get(match[1].lower()) if match else None
    if kind is None or kind == "" and not re.fullmatch(r"[A-Z]'?[A-Z]'?", match[2]):
        return None
    return kind, match[2]


def figure_key(kind: str, vertices: str) -> tuple:
    """A key that is the same for all names of a figure."""
    points = tuple(re.findall(r"[A-Z1-9a-zα-ω]'?", vertices))
    if kind == "△":
        return kind, tuple(sorted(points))
    if len(points) > 3:  # a polygon begins anywhere and goes either way
        turns = [points[k:] + points[:k] for k in range(len(points))]
        return kind, min(turns + [turn[::-1] for turn in turns])
    return kind or "segment", points if kind in ("ray", "vector") else min(points, points[::-1])


def read_name(text: str) -> tuple[str, str] | None:
    """(mathematical name, words) of what stands before "=" or ":"; one of them is empty."""
    match = NAME.fullmatch(text.strip())
    if not match:
        return None
    if match["words"] and len(match[0]) > 2:
        words = re.sub(r"^(?:the|an?|its|their|his|her) ", "", match[0].casefold().strip())
        return None if NO_NAME.search(words) else ("", words)
    name = re.sub(r"[ {}]", "", match[0]).replace("m∠", "∠")
    if figure := figure_name(name):
        return str(figure_key(*figure)), ""
    return re.sub(r"^([a-z])\([a-zα-ω]\)$", r"\1()", name), ""


def read_sign(text: str) -> Words | Group | None:
    """Yes or no; I to XII, which are no products of letters; (1)(3), the numbers of statements."""
    if text.casefold() in TRUTHS:
        return Words(TRUTHS[text.casefold()])
    key = comparable(re.sub(r"^(?:the|an?) |^一个", "", text.casefold())).replace("-", "")
    if key in SAME_WORD or key in SAME_WORD.values():
        return Words(SAME_WORD.get(key, key))
    if start := YES_OR_NO.match(text):
        return Words(start[1].lower())
    if re.fullmatch(r"\(\d\)(?:(?:,|and|和| )*\(\d\))+", text):  # numbers of statements
        return Group("set", tuple(Words(number) for number in re.findall(r"\d", text)))
    if re.fullmatch(r"I{2,3}|IV|VI{0,3}|IX|XI{0,2}", text):
        return Words(text)
    return None


def read_words(text: str) -> Words | None:
    """A short name, as isosceles triangle, Tuesday, 等腰三角形; no text that tells of a number."""
    text = text.casefold()
    name = re.sub(r"^(?:(?:the|an?) |一个)+", "", text)
    if re.fullmatch(r"[a-z]+(?:[ -][a-z]+){0,3}|[\u4e00-\u9fff]{1,8}", name) and not MEANING.search(name):
        return Words(comparable(name).replace("-", ""))
    return None
