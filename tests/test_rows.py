"""Rows, pictures and replies, which are hostile, by tables."""

import base64
import io
import json
import random
import re
import zlib
from pathlib import Path

import json_repair
import numpy as np
import pytest
from PIL import Image

from mathse import images, records, replies
from mathse.generate import Reply

GOOD = '{"status": "WRONG", "error_step": "Step 2: 3 + 4 = 8", "error_analysis": "3 + 4 is not 8."}'
STEP = "Step 2: 3 + 4 = 8"
RIGHT = '{"status": "CORRECT", "error_step": null, "error_analysis": null}'
C, W, U = "correct", "wrong", "undecided"


def wrong(step: str) -> str:
    """A reply whose error step is spelt like this, with the quotes."""
    return '{"status": "WRONG", "error_step": ' + step + ', "error_analysis": "x"}'


def status(text: str) -> str:
    return '{"status": ' + text + "}"


THOUGHTS = [  # how models mark what they think first
    ("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<reasoning>\n", "\n</reasoning>\n"),
    ("<seed:think>", "</seed:think>"), ("\u25c1think\u25b7", "\u25c1/think\u25b7"), ("[THINK]", "[/THINK]"),
    ("<|begin_of_thought|>", "<|end_of_thought|>\n"),
    ("<|channel|>analysis<|message|>", "<|end|><|channel|>final<|message|>"),
]  # fmt: skip
REPLIES = {  # group: [(a judge's reply, verdict, error step)]
    "plain": [
        (GOOD, W, STEP),
        (f"Here it is:\n```json\n{GOOD}\n```\nI hope this helps: {{x}}.", W, STEP),
        (f"<|begin_of_box|>{GOOD}<|end_of_box|>", W, STEP),
        (f"[{GOOD}]", W, STEP),
        (RIGHT, C, None),
        ("The solution is correct.", U, None),
        ("", U, None),
    ],
    "nearly JSON": [
        ("{'status': 'WRONG', 'error_step': 'Step 1', 'error_analysis': 'no',}", W, "Step 1"),
        ("{'status': 'WRONG', 'error_step': 'the triangle's side', }", W, "the triangle's side"),
        ("{'status': 'WRONG', 'error_step': \"it's 4\", 'error_analysis': None}", W, "it's 4"),
        ('{"status": "WRONG" "error_step": "Step 1"}', W, "Step 1"),
        ('{"error_step": "Step 1",\n"error_analysis": "a",\n"status": "WRONG"\n}', W, "Step 1"),
        ('{status: "WRONG", error_step: "Step 1"}', W, "Step 1"),
        ('{"status": "WRONG", "error_step": "he calls it "big", but"}', W, 'he calls it "big", but'),
        ('{"status": "WRONG", "error_step": "3 + 4\n= 8"}', W, "3 + 4\n= 8"),
        ('{"Status": " wrong ", "Error_Step": "Step 1"}', W, "Step 1"),
        ("**Status:** WRONG\n**Error step:** Step 1", W, "Step 1"),
        ('"status": "WRONG",\n"error_step": "Step 1"\n}', W, "Step 1"),
    ],
    "the word": [
        *((status(word), W, None) for word in ("WRONG", '"INCORRECT"')),
        *((status(word), C, None) for word in ('"correct."', '"**CORRECT**"')),
        *((status(word), U, None) for word in ('"Right"', '"NOT CORRECT"', "true", '["CORRECT"]')),
        (status('"CORRECT answer but WRONG reasoning"'), U, None),
        (status('"CORRECT" or "WRONG"'), U, None),  # the form, repeated
        (status('"CORRECT", "status": "WRONG"'), U, None),
    ],
    "behind the thinking": [
        *((f"{begin}{RIGHT}{end}{GOOD}", W, STEP) for begin, end in THOUGHTS),
        *((f"{begin.upper()}{RIGHT} but let me check", U, None) for begin, _ in THOUGHTS),
        (f'It says {{"status": "CORRECT"}}, but step 2 ...</think>{GOOD}', W, STEP),  # opened by the template
        (f"<think>{RIGHT}</think>", U, None),
        (f"<think>a</think>{RIGHT}<think>Wait,", U, None),
    ],
    "which object": [
        (f"Status: CORRECT for step 1. Status: WRONG for step 2.\n{GOOD}", W, STEP),
        (f"Step 2: \\frac{{1}}{{2}}, {{x}}, \\{{a: b\\}}. {GOOD}", W, STEP),
        ('{"status": "CORRECT", "error_analysis": "Not {\\"status\\": \\"WRONG\\"}."}', C, None),
        ('{"steps": [{"status": "CORRECT"}, {"status": "WRONG"}], "status": "WRONG"}', W, None),
        ('{"status": "CORRECT", "steps": [{"status": "CORRECT"}, {"status": "WRONG"}]}', C, None),
        ('{"steps": {"1": {"status": "WRONG", "note": "it\'s {"}}, "status": "CORRECT"}', C, None),
        ('{\n "steps": [\n  {\n   "status": "CORRECT"\n  }\n ]\n}', U, None),
        ('[{"step": 1, "status": "WRONG"}, {"step": 2, "status": "CORRECT"}]', U, None),
        (f"{RIGHT}\nWait, step 2 is wrong:\n{GOOD}", W, STEP),
        (f'{GOOD}\n{{"confidence": 0.9}}', W, STEP),
        (f'The form: {{"status": "CORRECT" or "WRONG", "error_step": a step or null}}\n{GOOD}', W, STEP),
        ('{"status": "CORRECT"} or {"status": "WRONG"}', U, None),
        ('[{"status": "CORRECT"}, {"status": "CORRECT"}]', C, None),
        (f'{GOOD}\nAgain: {{"status": "COR', U, None),  # what it would have been is not known
        (f'{{"status": "CORRECT", "error_analysis": "Step {GOOD}', U, None),  # one breaks off in another
    ],
    "cut off": [
        ('{"status": "WRONG", "error_step": "Step \\"1\\"', W, 'Step "1"'),
        ('{"status": "WRONG", "error_step": "Step 1\\', W, "Step 1\\"),
        ('{"status": "WRONG", "error_st', W, None),
        ('{"status": "CORRECT", "error_step": "Step 1', U, None),
        ('{"status": "CORRECT', U, None),
        ('{"status": "CORRECT}', U, None),
        ('{"status": CORRECT', U, None),
        (f'{RIGHT[:-1]}\nWait, step 2 is wrong:\n{GOOD}', U, None),  # json-repair takes GOOD for a field
        (f'{GOOD}\nWait, [2 is right: {RIGHT}', U, None),  # and here RIGHT for a text
        ('{"status": "WRONG", "error_analysis": "Not {"status": "CORRECT"}', U, None),
    ],
    "the step": [
        (wrong("2"), W, "2"),
        (wrong('["Step 1", "Step 2"]'), W, "Step 1, Step 2"),
        (wrong("['the triangle's side', 'b']"), W, "the triangle's side, b"),
        (wrong('{"step": 2, "content": "3 + 4 = 8", "next": null}'), W, "2, 3 + 4 = 8"),
        *((wrong(no), W, None) for no in ('""', '"None"', "null", '"null"', '"N/A"', "[]", "{}", "[null]")),
        *((status(f'"CORRECT", "error_step": {no}'), C, None) for no in ('"none"', '" "', "[]", "None")),
        (status('"CORRECT", "error_step": "Step 2"'), U, None),
        (status('"CORRECT", "error_step": ["Step 2"]'), U, None),
    ],
    "backslashes": [
        (wrong(r'"$3 \times 4 \neq \theta$"'), W, r"$3 \times 4 \neq \theta$"),
        (wrong(r'"$3 \\times 4 \\neq 14$"'), W, r"$3 \times 4 \neq 14$"),
        (wrong(r'"\frac{1}{2} \beta \rho \nu \nabla \not \ne \tan\tau \text{cm} \to \right)"'),
         W, r"\frac{1}{2} \beta \rho \nu \nabla \not \ne \tan\tau \text{cm} \to \right)"),
        (wrong(r'"\sqrt{2}, \alpha_1, \upsilon, 5\%, \(\)"'), W, r"\sqrt{2}, \alpha_1, \upsilon, 5\%, \(\)"),
        (wrong(r'"a\nStep 2\nnot so\n3"'), W, "a\nStep 2\nnot so\n3"),
        (wrong(r'"a\tb\r\nc\/d"'), W, "a\tb\r\nc/d"),
        (wrong(r'"a \"b\" \u00e9 \ud83d\ude00"'), W, 'a "b" \u00e9 \U0001f600'),
        (wrong(r'"half \ud83d"'), W, "half \ufffd"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("group", REPLIES)
def test_parse_verdict(stage, group):
    parse = stage("02_verify").parse_verdict
    for reply, verdict, step in REPLIES[group]:
        parsed = parse(reply)
        assert (parsed["verdict"], parsed["error_step"]) == (verdict, step), reply


def test_parse_verdict_has_the_analysis_and_the_type(stage):
    parse = stage("02_verify").parse_verdict
    assert parse(GOOD)["error_analysis"] == "3 + 4 is not 8." and parse(RIGHT)["error_analysis"] is None
    assert parse('{"status": "WRONG", "error_type": "Vision"}')["error_type"] == "vision"
    assert parse('{"status": "CORRECT", "error_type": "vision"}')["error_type"] is None
    reply = r'{"status": "WRONG", "error_analysis": ["$\tan\theta = \frac{1}{2}$", "it\'s"]}'
    assert parse(reply)["error_analysis"] == r"$\tan\theta = \frac{1}{2}$, it's"


WHOLE = [  # a reply, how it finished, its verdict
    (RIGHT, "length", C),
    (f"```json\n{GOOD[:-5]}", "length", W),
    (f"Perhaps {RIGHT}, but", "length", U),  # in a thought, it may be, which the template has opened
    (f"Perhaps {RIGHT}, but", "stop", C),
    (f"Status: CORRECT\n{RIGHT}", "length", U),
]


@pytest.mark.parametrize("text, finish, verdict", WHOLE)
def test_a_cut_off_reply_counts_if_its_object_stands_first(stage, text, finish, verdict):
    reply, row = Reply({}, 0, text, finish), {"answer_check": "correct"}
    assert stage("02_verify").judged(row, [reply])["orm_check"] == verdict
    assert stage("02_verify").annotated(row, [reply])["teacher_check"] == verdict


HOSTILE = [
    "{", "[", "}", '"', "'", "\\", " ", "\n", ",", ":", "<", "```", '{"a":', '{"a":[', '{"status": "', '"}',
    '" ', "it's ", '\\"', "\\ud83d", "\ud83d", "\0", "<think>", "</think>", "status:", "\n- ", "{a", "{   ",
    '{"status": "WRONG"}', '{"status": "WRONG"} or ', ', "a": 1', '"x" ,  ', "<w:",
]  # fmt: skip


@pytest.mark.parametrize(
    "start", ["", '{"status": "WRONG", "error_step": ', '{"a": ["', "{'status': 'WRONG', 'error_step': 'x"]
)
def test_parse_verdict_takes_any_text(stage, start):
    parse = stage("02_verify").parse_verdict
    for piece in HOSTILE:
        for length in (1000, 200_000):
            json.dumps(parse(start + piece * (length // len(piece))), ensure_ascii=False)


def test_parse_verdict_takes_any_mixture(stage):
    parse, random_ = stage("02_verify").parse_verdict, random.Random(0)
    for _ in range(3000):
        parsed = parse("".join(random_.choices([*HOSTILE, *GOOD.split(), *RIGHT.split()], k=30)))
        assert parsed["verdict"] in (C, W, U)
        (parsed["error_step"] or "").encode()  # no half of a surrogate pair, which no file takes


def test_json_repair_is_given_short_texts_alone(stage, monkeypatch):
    """Its time grows with the square of a text."""
    given, parse = [], stage("02_verify").parse_verdict
    monkeypatch.setattr(json_repair, "loads", lambda text: given.append(len(text)))
    for reply in (" " * 10**6 + GOOD, GOOD + " " * 10**6, '{"a": ' * 10**6, "{" * 10**6, GOOD * 10**4):
        parse(reply)
    assert len(given) == 1 and max(given) < 2 * replies.MAX_OBJECT


# ---------------------------------------------------------------- pictures


def coded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def blue(mode: str = "RGB", size: tuple = (9, 7)) -> Image.Image:
    return Image.new("RGB", size, "blue").convert(mode)


def palette() -> Image.Image:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    return image


def turned(kind: str, orientation: object = 6) -> bytes:
    """40 x 20, its left half black, with EXIF that says to turn it by 90 degrees clockwise."""
    image, exif = Image.new("RGB", (40, 20), "white"), Image.Exif()
    image.paste("black", (0, 0, 20, 20))
    exif[0x0112] = orientation
    return coded(image, kind, exif=exif, quality=95)


def with_chunk(kind: bytes, body: bytes, png: bytes = b"", checksum: int | None = None, place=33) -> bytes:
    """A PNG with one chunk more, behind its header or, at -12, behind its pixels."""
    png, checksum = png or coded(blue()), zlib.crc32(kind + body) if checksum is None else checksum
    chunk = len(body).to_bytes(4, "big") + kind + body + checksum.to_bytes(4, "big")
    return png[:place] + chunk + png[place:]


def frames(kind: str) -> bytes:
    red, *others = (Image.new("RGB", (30, 20), colour) for colour in ("red", "lime", "blue"))
    return coded(red, kind, save_all=True, append_images=others)


LONG = zlib.compress(b"<cell/>" * 2_000_000)  # 14 MB
FLOATS = Image.fromarray(np.full((7, 9), 0.5, np.float32))
SIXTEEN = Image.fromarray(np.full((7, 9), 32896, np.uint16))
# name: (content, size that is read at 100,000 pixels, colour at the top left)
LEGAL_IMAGES = {
    "grayscale": (coded(Image.new("L", (9, 7), 100)), (9, 7), (100, 100, 100)),
    "black and white": (coded(Image.new("1", (9, 7), 1)), (9, 7), (255, 255, 255)),
    "16 bits: by their full range": (coded(SIXTEEN), (9, 7), (128, 128, 128)),
    "TIFF of 16 bits, dark": (coded(Image.new("I;16B", (9, 7), 200), "TIFF"), (9, 7), (1, 1, 1)),
    "PPM of 16 bits, dark": (b"P5 2 1 65535\n" + b"\x02\x02" * 2, (2, 1), (2, 2, 2)),
    "16 bits, one shade transparent": (coded(SIXTEEN, transparency=32896), (9, 7), (255, 255, 255)),
    "16 bits, another one transparent": (coded(SIXTEEN, transparency=32897), (9, 7), (128, 128, 128)),
    "32 bits, fractions": (coded(FLOATS, "TIFF"), (9, 7), (128, 128, 128)),
    "32 bits up to 255": (coded(Image.new("I", (9, 7), 128), "TIFF"), (9, 7), (128, 128, 128)),
    "32 bits beyond": (coded(Image.new("I", (9, 7), 1 << 20), "TIFF"), (9, 7), (255, 255, 255)),
    "32 bits below 0": (coded(Image.new("F", (9, 7), -3), "TIFF"), (9, 7), (0, 0, 0)),
    "RGBA: on white": (coded(Image.new("RGBA", (9, 7), (0, 0, 0, 0))), (9, 7), (255, 255, 255)),
    "one colour transparent": (coded(blue(), transparency=(0, 0, 255)), (9, 7), (255, 255, 255)),
    "one shade transparent": (coded(Image.new("L", (9, 7), 100), transparency=100), (9, 7), (255, 255, 255)),
    "palette with a transparent colour": (coded(palette(), transparency=1), (4, 4), (255, 255, 255)),
    "palette, half transparent": (coded(palette(), transparency=b"\xff\x80"), (4, 4), (255, 127, 127)),
    "CMYK": (coded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"), (16, 16), (254, 0, 0)),
    "TIFF in LAB": (coded(Image.new("LAB", (9, 7), (255, 128, 128)), "TIFF"), (9, 7), (255, 255, 255)),
    **{f"EXIF: {kind}": (turned(kind), (20, 40), (0, 0, 0)) for kind in ("JPEG", "PNG", "WEBP", "TIFF")},
    "EXIF: turned, a long text": (with_chunk(b"zTXt", b"a\0\0" + LONG, turned("PNG")), (20, 40), (0, 0, 0)),
    "an orientation that there is not": (turned("JPEG", 77), (40, 20), (0, 0, 0)),
    "a broken EXIF in a JPEG": (coded(blue(), "JPEG", exif=b"Exif\0\0broken"), (9, 7), (0, 0, 254)),
    "an EXIF with a wrong checksum": (with_chunk(b"eXIf", b"broken", checksum=1), (9, 7), (0, 0, 255)),
    "a long zTXt": (with_chunk(b"zTXt", b"a\0\0" + LONG), (9, 7), (0, 0, 255)),
    "a long iTXt": (with_chunk(b"iTXt", b"a\0\1\0\0\0" + LONG), (9, 7), (0, 0, 255)),
    "a long iCCP": (with_chunk(b"iCCP", b"a\0\0" + LONG), (9, 7), (0, 0, 255)),
    "a long text behind the pixels": (with_chunk(b"zTXt", b"a\0\0" + LONG, place=-12), (9, 7), (0, 0, 255)),
    "a text with a wrong checksum": (with_chunk(b"tEXt", b"a\0b", checksum=1), (9, 7), (0, 0, 255)),
    "animated GIF: its first frame": (frames("GIF"), (30, 20), (255, 0, 0)),
    "two pictures in a JPEG: the first": (frames("MPO"), (30, 20), (254, 0, 0)),
    "one pixel": (coded(blue(size=(1, 1))), (1, 1), (0, 0, 255)),
    "one row of 3,000": (coded(blue(size=(3000, 1))), (3000, 1), (0, 0, 255)),
    "5 megapixels: scaled down": (coded(blue(size=(2500, 2000)), "JPEG"), (353, 282), (0, 0, 254)),
    "WebP": (coded(blue(), "WEBP", lossless=True), (9, 7), (0, 0, 255)),
    "BMP": (coded(blue(), "BMP"), (9, 7), (0, 0, 255)),
}  # fmt: skip


def in_file(data: bytes, folder: Path) -> str:
    (folder / "image").write_bytes(data)  # a name tells nothing
    return str(folder / "image")


def sent(data: bytes, folder: Path) -> bytes:
    return base64.b64decode(images.data_url(in_file(data, folder), 100_000).partition(",")[2])


SOURCES = {"file": in_file, "bytes": lambda data, folder: data, "sent": sent}


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize("case", LEGAL_IMAGES)
def test_legal_images(tmp_path, case):
    content, size, colour = LEGAL_IMAGES[case]
    for source, form in SOURCES.items():
        image = images.open_image(form(content, tmp_path), 100_000)
        assert (image.mode, image.size) == ("RGB", size), source
        assert max(abs(one - other) for one, other in zip(image.getpixel((0, 0)), colour)) <= 2, source
        assert not case.startswith("EXIF") or image.getpixel((10, 35)) > (250, 250, 250), source
    assert images.image_problem(tmp_path / "image") is None


def test_an_image_of_a_data_set_is_saved_or_found(tmp_path):
    path = in_file(PHOTOGRAPH, tmp_path)
    assert images.save_image({"path": "image"}, tmp_path, lambda name: str(tmp_path / name)) == path
    for value in (
        PHOTOGRAPH,
        {"bytes": PHOTOGRAPH, "path": "x"},
        f"data:image/png;base64,{text(PHOTOGRAPH)}",
    ):
        assert Path(images.save_image(value, tmp_path)).read_bytes() == PHOTOGRAPH


MODES = "1 L P RGB RGBA RGBX RGBa CMYK YCbCr LAB HSV I F LA La PA I;16 I;16L I;16B I;16N"


@pytest.mark.parametrize("mode", MODES.split())
def test_every_mode_becomes_rgb(mode):
    image = images.as_shown(Image.new(mode, (4, 3)), 0)
    assert (image.mode, image.size) == ("RGB", (4, 3))


def bomb() -> bytes:
    """A PNG whose header claims 20,000 x 20,000 pixels."""
    header = (20_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    begin = with_chunk(b"IHDR", header, b"\x89PNG\r\n\x1a\n", place=8)
    return begin + with_chunk(b"IDAT", zlib.compress(bytes(1000)))[33:]


NOISE, PHOTOGRAPH = (coded(Image.effect_noise((99, 99), 50), kind) for kind in ("PNG", "JPEG"))
CUT = "not an image that can be read \\(OSError: .*; mend the file"
BROKEN_IMAGES = {  # name: (content, words of the error)
    "a PNG cut off": (NOISE[:3000], CUT),
    "a JPEG cut off": (PHOTOGRAPH[:2000], CUT),
    "a PNG of 400 million pixels": (bomb(), "more than 100000000 pixels; scale it down"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN_IMAGES)
def test_what_cannot_be_read_is_said_in_plain_words(tmp_path, case):
    content, words = BROKEN_IMAGES[case]
    for form in SOURCES.values():
        with pytest.raises(OSError, match=words):
            images.open_image(form(content, tmp_path), 100_000)


@pytest.mark.parametrize("kind", images.FORMATS)
def test_a_damaged_image_raises_one_kind_of_error(kind):
    """What a stage meets mid-run becomes an error record: open_image raises OSError or returns an image,
    whatever bytes it is given."""
    rng = np.random.default_rng(0)
    whole = np.frombuffer(coded(Image.fromarray(rng.integers(0, 255, (40, 30, 3), np.uint8)), kind), np.uint8)
    outcomes = set()
    for _ in range(100):
        damaged = whole.copy()
        places = rng.integers(0, min(len(whole), rng.choice([60, len(whole)])), rng.integers(1, 6))
        damaged[places] = rng.integers(0, 256, len(places))
        end = rng.integers(1, len(whole) + 1) if rng.random() < 0.3 else None
        try:
            outcomes.add(images.open_image(damaged[:end].tobytes(), 100_000).mode)
        except OSError as error:
            outcomes.add("said" if re.match("not an image|more than", str(error)) else str(error))
    assert outcomes <= {"RGB", "said"} and "said" in outcomes


def test_small_files_are_sent_as_they_are(tmp_path):
    """Pixels that nobody would see are not sent: another decoder would show them as black."""
    for name, content in {"PNG": coded(blue()), "JPEG": coded(blue(), "JPEG")}.items():
        assert sent(content, tmp_path) == content, name
    large = coded(blue(size=(900, 900)))
    assert sent(large, tmp_path) != large
    for case in ("RGBA: on white", "CMYK", "EXIF: JPEG", "a long zTXt", "a broken EXIF in a JPEG"):
        content = LEGAL_IMAGES[case][0]
        with Image.open(io.BytesIO(sent(content, tmp_path))) as image:
            assert image.tobytes() == images.open_image(content, 100_000).tobytes(), case


# ---------------------------------------------------------------- rows


def test_each_sample_has_a_seed_of_its_own():
    assert len({records.derive_seed(0, "round-1", "p", k) for k in range(1000)}) == 1000
