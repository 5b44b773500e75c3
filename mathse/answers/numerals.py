"""Numbers in words: twenty-five, two thirds, half, 三分之二, 百分之二十, 2.5 million, 3 dozen, 3万."""

import re
from fractions import Fraction

SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
PART_WORDS = (
    "half third quarter fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
)  # one of 2, 3, 4 …
WORD_VALUES = {word: value for value, word in enumerate(SMALL)}
WORD_VALUES |= {word: 10 * value for value, word in enumerate(TENS, 2)}
PART_OF = {word: value for value, word in enumerate(PART_WORDS, 2)} | {
    "fourth": 4,
    "hundredth": 100,
    "thousandth": 1000,
}
PART_OF |= {f"{word}s": value for word, value in PART_OF.items()} | {"halves": 2}
ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
ORDINALS = {word: value for value, word in enumerate(ORDINALS, 1)}
# what a number may be followed by: 3 million, 2 dozen, 3万
MAGNITUDES = SCALES | {"hundred": 100, "dozen": 12, "score": 20, "k": 1000, "mn": 10**6, "bn": 10**9}
MAGNITUDES |= {f"{word}s": value for word, value in MAGNITUDES.items() if len(word) > 2}
CHINESE_MAGNITUDES = {"百": 10**2, "千": 10**3, "万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
MAGNITUDES |= CHINESE_MAGNITUDES | {"百万": 10**6, "千万": 10**7}
CHINESE = {digit: value for value, digit in enumerate("零一二三四五六七八九")} | {"两": 2, "〇": 0, "○": 0}
CHINESE_TENS = {"十": 10, "百": 100, "千": 1000}
NUMBER_WORD = re.compile(
    rf"\b(?:{'|'.join(sorted([*WORD_VALUES, *SCALES, 'hundred', 'dozen'], key=len, reverse=True))})\b"
)
CHINESE_NUMERAL = "".join([*CHINESE, *CHINESE_TENS, "万亿"])


def english_integer(words: list[str]) -> int | None:
    """The value of ["one", "hundred", "and", "five"], None if the words are no number."""
    total, group, last = 0, 0, ""
    for word in words:
        if word == "and":
            if last not in ("hundred", *SCALES):
                return None
        elif word in WORD_VALUES or word.isdigit() and word == words[0]:
            value = WORD_VALUES.get(word) if word in WORD_VALUES else int(word)
            if last.isdigit() or last in WORD_VALUES and not (last in TENS and 0 < value < 10):
                return None
            group += value
        elif word == "hundred" and last in WORD_VALUES and 0 < group < 100:
            group *= 100
        elif word in SCALES and group and (not total or total % (SCALES[word] * 1000) == 0):
            total, group = total + group * SCALES[word], 0
        elif word == "dozen" and last in WORD_VALUES and word == words[-1]:
            group *= 12
        else:
            return None
        last = word
    return total + group if last and last != "and" else None


def number_in_words(text: str) -> Fraction | None:
    """The value of a whole text in English words, None if it is none."""
    text = text.strip().lower()
    if ordinal := re.fullmatch(r"(?:the )?(\d+)(?:st|nd|rd|th)|the (\w+)", text):
        value = ordinal[1] or ORDINALS.get(ordinal[2])
        return None if value is None else Fraction(value)
    sign = re.match(r"(?:minus|negative) ", text)
    if sign:
        value = number_in_words(text[sign.end() :])
        return None if value is None else -value
    if ordinal := re.fullmatch(rf"(?:the )?({'|'.join(TENS)})-({'|'.join(ORDINALS)})", text):
        return Fraction(WORD_VALUES[ordinal[1]] + ORDINALS[ordinal[2]])
    words = re.split(r"[ -]+", text)
    if words[0] in ("a", "an", "one") and len(words) > 1 and (words[1] in PART_OF or words[1] in MAGNITUDES):
        words = ["one", *words[1:]]
    if words[0] == "half" and words[1:2] in (["a"], ["of"]) and len(words) == 3 and words[2] in MAGNITUDES:
        return Fraction(MAGNITUDES[words[2]], 2)
    if words in (["one", "dozen"], ["one", "hundred"]) or words[-1] in SCALES and words[0] == "one":
        return Fraction(english_integer(words) or 0) or None
    if "point" in words:
        return with_point(words)
    if words[-1] in PART_OF:
        return with_part(words)
    value = english_integer(words)
    return None if value is None else Fraction(value)


def with_point(words: list[str]) -> Fraction | None:
    """three point one four"""
    place = words.index("point")
    whole, digits = english_integer(words[:place]), [WORD_VALUES.get(word, 10) for word in words[place + 1 :]]
    if whole is None or not digits or max(digits) > 9:
        return None
    return whole + Fraction(int("".join(map(str, digits))), 10 ** len(digits))


def with_part(words: list[str]) -> Fraction | None:
    """two thirds, one half, half, three and a half, two and three quarters."""
    below = PART_OF[words[-1]]
    if words[:-1] in ([], ["the"]):
        return Fraction(1, below) if below in (2,) else None
    whole = 0
    if "and" in words:
        place = len(words) - 1 - words[::-1].index("and")
        whole, words = english_integer(words[:place]), words[place + 1 :]
    above = 1 if words[:-1] in (["a"], ["one"]) else english_integer(words[:-1])
    if whole is None or above is None or not 0 < above < 1000 or whole and above >= below:
        return None
    return whole + Fraction(above, below)


def number_in_chinese(text: str) -> Fraction | None:
    """二十五, 二五, 三分之二, 百分之二十, 三点五, 负三, 零下五, 一半, 三又二分之一; None if it is none."""
    text = text.strip()
    if match := re.fullmatch(r"(?:负|零下)(.+)", text):
        value = number_in_chinese(match[1])
        return None if value is None else -value
    if text in ("一半", "半"):
        return Fraction(1, 2)
    if match := re.fullmatch(r"(\d+)又(\d+)/(\d+)", text):
        return Fraction(match[1]) + Fraction(int(match[2]), int(match[3])) if int(match[3]) else None
    if match := re.fullmatch(r"(?:(.+)又)?(.+)分之(.+)", text):
        parts = [chinese_integer(part) if part else 0 for part in match.groups()]
        return None if None in parts or not parts[1] else parts[0] + Fraction(parts[2], parts[1])
    whole, point, digits = text.partition("点")
    value = chinese_integer(whole)
    if value is None or point and not (digits and set(digits) <= CHINESE.keys()):
        return None
    return value + (
        Fraction(int("".join(str(CHINESE[digit]) for digit in digits)), 10 ** len(digits)) if point else 0
    )


def chinese_integer(text: str) -> Fraction | None:
    """两千零五, 三万二; plain digits too. None if it is none."""
    if re.fullmatch(r"\d{1,15}", text):
        return Fraction(text)
    if not text or not set(text) <= {*CHINESE_NUMERAL, *"0123456789"} or not set(text) & {*CHINESE_NUMERAL}:
        return None
    if set(text) <= CHINESE.keys():
        return Fraction(int("".join(str(CHINESE[digit]) for digit in text)))
    for large in "亿億万萬":  # what stands before it, times it, and the rest
        before, found, rest = text.rpartition(large)
        if found:
            size, parts = (
                CHINESE_MAGNITUDES[large],
                [chinese_integer(part) if part else 0 for part in (before, rest)],
            )
            if len(rest) == 1 and rest in CHINESE:  # 三万二
                parts[1] = CHINESE[rest] * size // 10
            return None if None in parts or not before else parts[0] * size + parts[1]
    total, group, digit = 0, 0, 0
    if re.search(r"[百千][一二三四五六七八九两]$", text):  # 二百五
        text += "十" if text[-2] == "百" else "百"
    for sign in text:
        if sign.isdigit() and sign.isascii():
            digit = 10 * digit + int(sign)
        elif sign in CHINESE:
            digit = CHINESE[sign]
        elif sign in CHINESE_TENS:
            group, digit = group + (digit or 1) * CHINESE_TENS[sign], 0
        else:
            total, group, digit = (total + group + digit) * CHINESE_MAGNITUDES[sign], 0, 0
    return Fraction(total + group + digit)
