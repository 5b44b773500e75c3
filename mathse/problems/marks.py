"""Marks of images in a question and its options, as data sets spell them -> IMAGE, each once, in the images'
order."""

import itertools
import re

from mathse.records import IMAGE, fail

MARK = re.compile(  # of data sets and models; MMMU and MATH-V number theirs
    r"<\|vision_start\|><\|image_pad\|><\|vision_end\|>"
    r"|<\|?image(?:_pad|_placeholder|here|([ _]?)(\d+))?\|?>",
    re.I,
)


def placed(problem: dict, where: str, without: bool) -> dict:
    """The record with marks spelt as IMAGE, its images in their order. Ends the command if their number is
    wrong; `without`: there are no images, on purpose, and words stand for them.
    """
    has_options = isinstance(problem.get("options"), list)
    texts = [problem.get("question"), *(problem["options"] if has_options else [])]
    marks = [mark for text in texts if isinstance(text, str) for mark in MARK.finditer(text)]
    images, numbers = problem["images"], [int(mark[2]) for mark in marks if mark[2]]
    order = [*dict.fromkeys(numbers)] or [*range(len(marks))]
    are_of_mathv = all(mark[1] == "" for mark in marks)  # <image1>: of several drawn in one, or any number
    if not marks or (are_of_mathv and len(images) == 1 < len(order)):
        return problem
    first = min(order)
    is_whole = sorted(order) == [*range(first, first + len(images))] and (are_of_mathv or first < 2)
    if not without and not (is_whole and len(numbers) in (0, len(marks))):
        remedy = 'write one for each, or set --fields "images=" to do without'
        fail(f"{where}: question: has marks of {len(order)} images, and {len(images)} images; {remedy}")
    unnumbered, left = itertools.count(), [] if without else [*order]

    def spelt(mark: re.Match) -> str:
        number = int(mark[2]) if mark[2] else next(unnumbered)
        if number in left:
            left.remove(number)
            return IMAGE
        return "the image" if without else f"image {order.index(number) + 1}"

    question, *options = (MARK.sub(spelt, text) if isinstance(text, str) else text for text in texts)
    images = [] if without else [images[number - first] for number in order]
    spelled = {"question": in_front(question, len(images)), "images": images}
    return problem | spelled | ({"options": options} if has_options else {})


def in_front(question: str, images: int) -> str:
    """The question without marks that stand outside its sentences: images without marks go in front."""
    marks = rf"(?:\s*{IMAGE}){{{images}}}" if images else "(?!)"
    ahead = re.match(rf"{marks}\s*(?:(?<=\n)|(?=[A-Z]))(?=\S)", question)
    is_last = question.rstrip().endswith(IMAGE)
    behind = is_last and re.search(rf"(?:\n|(?<=[.?!。？！])){marks}\s*$", question)
    return question[ahead.end() :] if ahead else question[: behind.start()] if behind else question
