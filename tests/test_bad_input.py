"""Bad input ends a command in one line on stderr that names file, line, field and remedy, with exit code 2,
before a model is loaded; odd but legal input works. Most cases call the checks in this process; one a stage
runs it as a user does.
"""

import argparse
import functools
import json
import os
import shutil
import sys
import tracemalloc
from pathlib import Path

import pytest
import tiny
import torch
from conftest import ROOT, one_line, read_rows
from PIL import Image
from test_rows import LEGAL_IMAGES, bomb

import common
from mathse import chat, cli, records


def problem(**changes) -> dict:
    return {"id": "a", "question": "What?", "images": ["x.png"], "answer": "1"} | changes


def line(**changes) -> str:
    return json.dumps(problem(**changes))


def sample(**changes) -> str:
    return line(**{"sample": 0, "response": "It is 1.", "finish": "stop"} | changes)


USER, REPLY = {"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "1"}


@pytest.fixture
def folder(tmp_path):
    """A folder with a sound image, x.png."""
    Image.new("RGB", (20, 20), "red").save(tmp_path / "x.png")
    return tmp_path


def refused(capsys, call, *words: str, secret: str | None = None) -> None:
    """The call ends with exit code 2 and one line that holds these words, and no secret."""
    with pytest.raises(SystemExit) as end:
        call()
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.startswith("error: "), error
    assert len(error.splitlines()) == 1 and len(error) < 1000, error
    for word in words:
        assert word in error, error
    assert secret is None or secret not in error


def read(folder: Path, content: str | bytes, *required: str) -> list[dict]:
    """The rows of a file p.jsonl with this content."""
    (folder / "p.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(records.read_rows(folder / "p.jsonl", required or ("id", "question")))


NOT_JSON = "not a JSON object in UTF-8", "write one object a line: mend or remove this one"
NUMBER = "is not a number that JSON has", "mend or remove this one"
TWICE = "stands already in line 1", "make it unique"
HALF = "half a surrogate pair", "write the text anew"
OPTION = "is not among the options ['3', '4']", "write the letter or the text"
NAME = "not a field of a problem; call it"
ALONE = "must hold all, alone"
BAD_LINES = {
    "blank lines only": ("\n \r\n\n", "", "the file is empty", "write at least one row"),
    "broken in line 3": (line() + "\n" + line(id="b") + "\n" + line(id="c")[:-1], "3:", *NOT_JSON),
    "two objects in a line": (line() + line(id="b"), "1:", "Extra data", *NOT_JSON),
    "an array": ("[1]", "1:", "a list instead of a JSON object", "write {"),
    "UTF-16": (line().encode("utf-16"), "1:", "UTF-16", "save the file as UTF-8"),
    "Latin-1": (line(question="Größe?").encode().decode("unicode_escape").encode("latin-1"), "1:", *NOT_JSON),
    "NaN": (line(answer=float("nan")), "1:", "NaN", *NUMBER),
    "a float out of range": (line().replace('"1"', "1e999"), "1:", "1e999", *NUMBER),
    "an integer of 9,999 digits": (line().replace('"1"', "1" * 9999), "1:", *NOT_JSON),
    "nested without end": ("[" * 200_000, "1:", *NOT_JSON),
    "id twice behind a blank line": (line() + "\n\n" + line(), "3: id:", *TWICE),
    "sample twice": ("\n".join(sample(sample=k) for k in (0, 1, 1)), "3: id:", "sample 1 stands already in"),
    "half a character": (line(extra={"a": ["\udc00"]}), "1: extra:", *HALF),
    "half a character in a name": (line(**{"\udc00": 1}), "1: \\udc00:", *HALF),
    "half a character of another type": (line(options="\ud800"), "1: options:", *HALF),
    "a mark for two images": (line(question="<image>?", images=["x.png"] * 2), "1: question:", "1 <image>"),
    "a mark without an image": (line(question="See <image>.", images=[]), "1: question:", "1 <image>"),
    "marks in options": (line(question="<image>?", options=["1", "<image>"]), "1: question:",
                         "2 <image> marks for 1 images", "write one for each, or none"),
    "marks of messages": (sample(messages=[USER, REPLY], images=["x.png"] * 2), "1: messages:",
                          "1 <image> marks for 2 images", "write one for each"),
    "answer not among the options": (line(options=["3", "4"]), "1: answer:", "'1'", *OPTION),
    "a letter beyond the options": (line(options=["3", "4"], answer="C"), "1: answer:", "'C'", *OPTION),
    "an image beside none": (line(image_path="x.png", images=[]), "1: image_path:", NAME, "'images'"),
    "choices beside null": (line(Choices=["1", "2"], options=None), "1: Choices:", NAME, "'options'"),
    "an answer by another name": (line(ground_truth="1", answer=None), "1: ground_truth:", NAME, "'answer'"),
    "an image beside another": (line(image_2="y.png"), "1: image_2:", "'images'", ALONE),
    "other options": (line(options=["1", "2"], option_c="3"), "1: option_c:", "'options'", ALONE),
    "another answer": (line(gold="2"), "1: gold:", "'answer'", ALONE),
    "options by their letters": (line(A="1", B="2"), "1: A:", "write 'options', a list"),
    "a capital": (line(answer=None, Answer="1"), "1: Answer:", NAME, "'answer'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_LINES)
def test_bad_lines(folder, capsys, case):
    content, place, *words = BAD_LINES[case]
    refused(capsys, lambda: read(folder, content), f"{folder}/p.jsonl:{place}", *words)


@pytest.mark.parametrize("name", ["id", "question", "sample"])
def test_a_missing_field_is_named(folder, capsys, name):
    content = json.dumps({field: value for field, value in json.loads(sample()).items() if field != name})
    words = f"p.jsonl:1: {name}: missing; this stage needs id, question, sample"
    refused(capsys, lambda: read(folder, content, "id", "question", "sample"), words)


TEXT, COUNT = "{} is not a string with text in it; write one", "{} is not a whole number from 0; "
BAD_VALUES = {  # field: (what it says of a value, wrong values)
    "id": (TEXT, None, 3, ["a"], " "),
    "question": (TEXT, None, 1.5, "\u3000\n"),
    "response": (TEXT, None),
    "images": ('must be a list of paths, not {}; write ["image.png"]',
               "x.png", {"a": "x.png"}, ["x.png", None], "x" * 100_000),
    "options": ('must be a list of strings, not {}; write ["3", "4"]',
                "1, 2", {"A": "1"}, ["1", None], ["1", True]),
    "answer": ("must be a string, a number, a list of them, or null, not {}; write null if it is not known",
               {"value": 1}, True, [], " "),
    "precision": (COUNT + "write how many decimals count", -1, [2]),
    "sample": (COUNT + "number the samples", "0", -1, True, 1.0),
    "finish": ("{} is none of stop, length, error; is this a file of 01", "done"),
    "status": ("{} is none of correct, wrong, undecided; is this a file of 02?", "ok"),
    "messages": ('must be a list of {"role", "content"} with texts, the last by the assistant',
                 "x", [], [USER], [REPLY, USER], [USER, REPLY | {"role": "tool"}, REPLY],
                 [USER, REPLY | {"content": [USER]}]),
}  # fmt: skip


@pytest.mark.parametrize("field", BAD_VALUES)
def test_bad_values(folder, capsys, field):
    said, *values = BAD_VALUES[field]
    for value in values:
        words = f"p.jsonl:1: {field}: {said.replace('{}', records.shown(value))}"
        refused(capsys, lambda value=value: read(folder, sample(**{field: value})), words)


def test_a_line_of_100_mb_is_refused_unread(folder, capsys):
    with (folder / "p.jsonl").open("wb") as file:
        file.write(line().encode() + b"\n")
        file.truncate(100 << 20)
    words = "p.jsonl:2: a line of more than 16 MB", "write one JSON object a line"
    tracemalloc.start()
    refused(capsys, lambda: list(records.read_rows(folder / "p.jsonl")), *words)
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])  # to open a pipe would wait for ever
def test_a_folder_or_a_pipe_is_no_file(tmp_path, capsys, make):
    path = tmp_path / "p.jsonl"
    make(path)
    refused(capsys, lambda: list(records.read_rows(path)), f"{path}: not a plain file")


# ---------------------------------------------------------------- images


UNREADABLE = "not an image that can be read", "save it as one of PNG, JPEG"
NO_FILE = "no such file", "write its path"
NO_IMAGE = ("not an image but a folder or a device",)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
BAD_IMAGES = {  # name: (the path as written, the file's content if one is made, words)
    "missing": ("no.png", None, *NO_FILE),
    "a dangling link": ("dangling.png", None, *NO_FILE),
    "a folder": ("sub", None, *NO_IMAGE),
    "a pipe": ("pipe", None, *NO_IMAGE),
    "a web address": ("https://example.org/x.png", None, "read from a file", "download it"),
    "a data URL": ("data:image/png;base64,iVBORw0KGgo=", None, "read from a file", "download it"),
    "NUL in the path": ("a\0.png", None, "a\\x00.png: no", "its path"),
    "a name of 5,000 letters": ("x" * 5000, None, *NO_FILE),
    "zero bytes": ("empty.png", b"", "an empty file", "fetch it again"),
    "text": ("text.png", b"not an image", *UNREADABLE),
    "EPS, which would start another program": ("x.eps", EPS, *UNREADABLE),
    "a PNG of 400 million pixels": ("bomb.png", bomb(), "more than 100000000 pixels", "scale it down"),
    "the start of a PNG": ("start.png", b"\x89PNG\r\n\x1a\n\0\0", "not an image that can be read"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_bad_images(folder, capsys, case):
    name, content, *words = BAD_IMAGES[case]
    (folder / "sub").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "dangling.png").symlink_to("nowhere.png")
    if content is not None:
        (folder / name).write_bytes(content)
    content = line(id="fine") + "\n" + line(images=["x.png", name])
    refused(capsys, lambda: read(folder, content), "p.jsonl:2: images: ", *words)


def test_an_image_of_many_rows_is_opened_once(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(records, "image_problem", lambda path: opened.append(path))
    rows = [sample(id=name, images=[f"{name}.png"], sample=k) for name in "ab" for k in range(4)]
    assert len(read(tmp_path, "\n".join(rows))) == 8
    assert opened == [str(tmp_path / name) for name in ("a.png", "b.png")]


# ---------------------------------------------------------------- legal files


IDS = ("a/b", "a b", " a", "a\0b", "../a", "多", "a" * 5000)
LEGAL_LINES = {
    "CRLF": (line() + "\r\n" + line(id="b") + "\r\n"),
    "BOMs of two files in one": f"\ufeff{line()}\n\ufeff{line(id='b')}\n",
    "blank lines": f"\n{line()}\n\n \n",
    "ids of any text": "\n".join(line(id=name) for name in IDS),
    "marks of images": line(question="Is <image> larger than <image>?", images=["x.png"] * 2),
    "a mark in an option": line(options=["1", "<image>"]),
    "the same under two names": line(image="x.png", gold="1", choices=None),
    "null fields": line(images=None, options=None, answer=None, solution=None),
    "numbers as answers and options": line(options=[1, 2.5], answer=2.5),
    "options without letters": line(options=["3 cm", "4 cm"], answer="4 cm"),
    "options with letters": line(options=["(A) 3", "(B) 4"], answer="(B)"),
    "several right options": line(options=["3", "4", "5"], answer="AC"),
    "several answers": line(answer=["1", "-1"]),
    "MATH-V's marks of several images in one": line(question="<image1> or <image2>?"),
}  # fmt: skip


@pytest.mark.parametrize("case", LEGAL_LINES)
def test_legal_lines(folder, case):
    other = folder / "data of Müller 数据"
    other.mkdir()
    (other / "x.png").symlink_to(folder / "x.png")  # data sets often lie on another disk
    rows = read(other, LEGAL_LINES[case])
    assert rows and all(Path(image).is_file() for row in rows for image in row["images"])


def test_images_of_a_question_keep_their_order(folder):
    (folder / "sub").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (5, 5)).save(folder / name)
    (row,) = read(folder, line(images=["b.png", "a.png", "sub/../b.png", str(folder / "x.png")]))
    assert [Path(image).name for image in row["images"]] == ["b.png", "a.png", "b.png", "x.png"]
    (message,) = chat.user_message(common.solve_prompt(row), row["images"])
    (parts,) = chat.chat_parts([message], row["images"])
    assert [part["image"] for part in parts["content"] if part["type"] == "image"] == row["images"]


SIZES = "one pixel", "one row of 3,000", "5 megapixels: scaled down", "16 bits: by their full range"


def test_legal_input_goes_through_a_model(folder, run):
    """Images of any size, several, none; a question longer than the context is an error row, not a crash."""
    target = folder / "data of Müller 数据"
    target.mkdir()
    lines = [line(id="none", images=[]), line(id="long", question="How many? " * 2_000, images=[])]
    lines.append(line(id="two", images=["one pixel", "../x.png"]))
    for case in SIZES:
        (target / case).write_bytes(LEGAL_IMAGES[case][0])
        lines.append(line(id=f"{case} / \0", images=[case]))
    (target / "my problems.jsonl").write_text("\n".join(lines))
    files = "--input", target / "my problems.jsonl", "--output", target / "out put.jsonl"
    flags = "--model", ROOT / "toy" / "base", "--max-tokens", 2, "--max-pixels", 20_000
    done = run("01_sample.py", *files, *flags)
    assert done.returncode == 0, done.stderr
    replies = {row["id"]: row for row in read_rows(target / "out put.jsonl")}
    assert len(replies) == len(lines)
    failed = {name: row["reason"] for name, row in replies.items() if row["finish"] == "error"}
    extreme = "one row of 3,000 / \0"  # Qwen2-VL takes no aspect ratio above 200
    assert set(failed) == {"long", extreme}, failed
    assert "context" in failed["long"] and "aspect ratio" in failed[extreme]


# ---------------------------------------------------------------- models


SEEING = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "vision_config": {}}
READING = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
TEXT_ALONE = "a 'qwen2' model reads no images, by its config.json; give an image-text-to-text model"
PICKLED = "no *.safetensors weights in it; pickled ones (pytorch_model.bin) are never loaded: convert them"
VISION = {"model_type": "vision-encoder-decoder", "encoder": {}, "decoder": {}}
REMOTE = READING | {"auto_map": {"AutoModel": "c.M"}}
MODELS = {  # name: (files of the model folder, words of the message, None where it is fine)
    "nothing in it": ({}, "no config.json in it; is it a model folder?"),
    "config is no JSON": ({"config.json": "{"}, "config.json: not a JSON object"),
    "config is a list": ({"config.json": "[]"}, "config.json: not a JSON object"),
    "a model of text alone": ({"config.json": READING, "model.safetensors": ""}, TEXT_ALONE),
    "a model of no kind": ({"config.json": {"architectures": 3}}, "a None model reads no images"),
    "no weights": ({"config.json": SEEING}, "no *.safetensors weights in it; is the download complete?"),
    "pickled weights": ({"config.json": SEEING, "pytorch_model.bin": "x"}, PICKLED),
    "two files": ({"config.json": SEEING, "a.safetensors": "", "b.safetensors": ""}, None),
    "remote code": ({"config.json": REMOTE, "model.safetensors": ""}, None),
    "two models in one": ({"config.json": VISION, "model.safetensors": ""}, None),
    "pickled too": ({"config.json": SEEING, "model.safetensors": "", "pytorch_model.bin": "x"}, None),
}
ARGS = argparse.Namespace(dry_run=None, output="out.jsonl")


@pytest.mark.parametrize("case", MODELS)
def test_models_are_checked_by_their_files(tmp_path, capsys, case):
    files, words = MODELS[case]
    for name, content in files.items():
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))

    def check():
        cli.check_model(ARGS, str(tmp_path))

    refused(capsys, check, f"--model: {tmp_path}: {words}") if words else check()


@pytest.mark.parametrize("case", ["cut off", "a pointer of LFS", "a shard is missing"])
def test_weights_that_cannot_be_loaded(tmp_path, capsys, tiny_model, case):
    """from_pretrained says what is wrong; it is one line."""
    folder = shutil.copytree(tiny_model("llava"), tmp_path / "model")
    path = folder / "model.safetensors"
    if case == "cut off":
        os.truncate(path, path.stat().st_size // 2)
    elif case == "a pointer of LFS":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    else:
        path.rename(folder / "a.safetensors")
        index = {"metadata": {}, "weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    capsys.readouterr()  # the progress of making the model
    load = functools.partial(common.load_model, str(folder), "cpu", torch.float32)
    refused(capsys, load, f"--model: {folder}: cannot be loaded")


def test_a_model_with_a_tokenizer_but_no_processor(tmp_path, capsys):
    """As remote code that makes its inputs itself has it, for one CogVLM2."""
    tiny.make_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(READING))
    words = "no processor of images and texts", "an endpoint that serves it"
    refused(capsys, lambda: common.load_processor(str(tmp_path)), f"--model: {tmp_path}: has a ", *words)


NO_FOLDER, NO_ENDPOINT = "no such folder", "an endpoint is written http://host:port/v1#model-name"
BAD_SPECS = {
    "no/such/folder": "no such folder; give a model folder, a hub id",
    **dict.fromkeys(("./owner/name", "~/model", "gpt2", __file__, "localhost:8000/v1#m"), NO_FOLDER),
    **dict.fromkeys(("http://127.0.0.1:9/v1", "http://127.0.0.1:9/v1#", "http://#m"), NO_ENDPOINT),
    **dict.fromkeys(("https://h/d?api-version=1", "http://host:port/v1#m", "http://[::1/v1#m"), NO_ENDPOINT),
}


@pytest.mark.parametrize("spec", BAD_SPECS)
def test_bad_specs_of_models(capsys, spec):
    refused(capsys, lambda: cli.check_model(ARGS, spec), f"--model: {spec}: {BAD_SPECS[spec]}")


def test_a_folder_of_the_project_is_no_hub_id_from_elsewhere(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = f"--model: toy/base: no such folder from here; write {ROOT / 'toy' / 'base'}"
    refused(capsys, lambda: cli.check_model(ARGS, "toy/base"), words)


def test_every_image_text_to_text_architecture_is_let_in_by_its_config():
    """Of transformers' own mapping; the exceptions are no image-text-to-text models."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    def reads_images(name: str) -> bool:
        config = transformers.CONFIG_MAPPING[name]()
        return cli.reads_images(json.loads(config.to_json_string(use_diff=False)))

    blind = {name for name in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES if not reads_images(name)}
    assert blind <= {"evolla", "mistral4", "pi0"}  # proteins, text, a robot
    assert not any(map(reads_images, ("qwen2", "llama", "gemma3_text", "gpt2")))


# ---------------------------------------------------------------- flags


BAD_VALUES_OF_FLAGS = {  # a stage, what it says of a value: flags with such values
    ("01_sample", "a whole number of at least 1"):
        "--samples 0, --samples two, --max-tokens 0, --batch-size 0, --concurrency 0",
    ("01_sample", "a whole number of at least 0"): "--limit -1, --seed 9999999999999999999999",
    ("01_sample", "a number above 0"): "--timeout 0",
    ("01_sample", "a number of at least 0"): "--temperature nan, --max-cost -1",
    ("01_sample", "a number above 0 and at most 1"): "--top-p 0, --top-p 1.1",
    ("01_sample", "a number from 1, a share between 0 and 1, or all"): "--draw 1.0",
    ("04_finetune", "a whole number of at least 1"): "--batch-size 0, --micro-batch 0, --max-length 0",
    ("04_finetune", "a number "): "--epochs 0, --lr nan, --lr 0, --warmup 1.5, --recompute 2",
}  # fmt: skip
USUAL = "--input p.jsonl --model none/such"
BAD_CALLS = [  # of p.jsonl, which holds a problem
    ("01_sample", "--input p.jsonl --model http://127.0.0.1:9/v1#m", "cannot be reached"),
    ("01_sample", "--input p.jsonl --model http://h/v1#m --max-cost 1", "--max-cost: needs PRICE_IN"),
    ("01_sample", "--input p.jsonl", "the following arguments are required: --model"),
    ("01_sample", "--input p.jsonl --model solutions", "no problem has a `solution`"),
    ("01_sample", "--input p.jsonl --model toy/base --serve vllm={model}", "--serve: needs a model"),
    ("01_sample", "--input p.jsonl --model http://h/v1#m --serve {model}{port}", "--serve: needs a model"),
    *(("01_sample", f"--input p.jsonl --model https://{address}#m", "a name or key in an endpoint's address")
      for address in ("user:sk-1@h/v1", "h/v1?api-version=1&api-key=sk-1", "h/v1?sig=sk-1")),
    ("02_verify", "--input p.jsonl", "--model: needed for --accept both"),
    ("02_verify", "--input p.jsonl --accept answer", "sample: missing"),
    ("02_verify", "--input p.jsonl --model toy/base --orm-samples 3", "--orm-samples: more than one"),
    ("03_reflect", "--input p.jsonl --model toy/base", "prompt: missing"),
    ("04_finetune", "--input p.jsonl --model toy/base", "sample: missing"),
    ("04_finetune", "--input p.jsonl --model toy/base --init previous", "--previous: needed"),
    ("04_finetune", "--input p.jsonl --model http://127.0.0.1:9/v1#m", "an endpoint cannot be fine-tuned"),
    ("04_finetune", "--input p.jsonl --model toy/base --log-with x", "--log-with: x: not installed here"),
    ("05_evaluate", "--test p.jsonl", "both are needed"),
    ("05_evaluate", "--test nobench:p --model toy/base", "nobench:p: no such file"),
    ("05_evaluate", "--test mathvision:none --model toy/base", "no folder none"),
    ("05_evaluate", "--test p.jsonl --model toy/base --against no", "--against: no: no metrics.json"),
    ("05_evaluate", "--test p.jsonl --model toy/base --prompt benchmark", "has no prompt of its own"),
    ("01_sample", f"{USUAL} --samples 4", "--samples: more than one at --temperature 0"),
    *((script, f"{USUAL} {flag}", f"argument {flag.replace(' ', ': ')}: must be {said}")
      for (script, said), flags in BAD_VALUES_OF_FLAGS.items() for flag in flags.split(", ")),
]  # fmt: skip


@pytest.mark.parametrize("script, flags, words", BAD_CALLS)
def test_bad_flags(folder, capsys, monkeypatch, stage, script, flags, words):
    (folder / "p.jsonl").write_text(line())
    given = [str(folder / flag) if flag == "p.jsonl" else flag for flag in flags.split()]
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *given, "--output", str(folder / "out")])
    refused(capsys, stage(script).main, words, secret="sk-1")
    assert not (folder / "out").exists()


# ---------------------------------------------------------------- every stage, as a user calls it


@pytest.mark.parametrize(
    "command",
    [
        "01_sample.py --model toy/base --input FILE",
        "02_verify.py --model toy/base --accept both --input FILE",
        "03_reflect.py --model toy/base --input FILE",
        "04_finetune.py --model toy/base --input FILE",
        "05_evaluate.py --model toy/base --test FILE",
        "-m mathse.problems --input FILE",
        "-m mathse.problems --input toy/test.jsonl --test FILE",
    ],
)
def test_every_stage_ends_in_one_line(folder, run, command):
    path, verdict = folder / "rows.jsonl", {"prompt": "Q", "status": "wrong"}
    path.write_text(sample(**verdict, id="fine") + "\n" + sample(**verdict, options="1, 2"))
    words = command.replace("FILE", str(path)).split()
    done = run(*words, "--output", folder / "out")
    assert one_line(done, f"error: {path}:2: options: must be a list of strings")
    assert "kernels:" not in done.stdout  # nothing was loaded
