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

import numpy as np
import pytest
import tiny
import torch
from conftest import ROOT, read_rows
from PIL import Image
from test_rows import LEGAL_IMAGES, bomb

import common
from mathse import chat, cli, records


def problem(**changes) -> dict:
    return {"id": "a", "question": "What?", "images": ["x.png"], "answer": "1"} | changes


def line(*missing: str, **changes) -> str:
    return json.dumps({name: value for name, value in problem(**changes).items() if name not in missing})


def sample(**changes) -> str:
    return line(**{"sample": 0, "response": "It is 1.", "finish": "stop"} | changes)


def trained(*messages: dict, images=("x.png",)) -> str:
    return json.dumps({"id": "a", "sample": 0, "messages": messages, "images": images})


USER, REPLY = {"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "1"}


@pytest.fixture
def folder(tmp_path):
    """A folder with a sound image, x.png."""
    Image.new("RGB", (20, 20), "red").save(tmp_path / "x.png")
    return tmp_path


def refused(capsys, call, *words: str) -> None:
    """The call ends with exit code 2 and one line that holds these words."""
    with pytest.raises(SystemExit) as end:
        call()
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.startswith("error: "), error
    assert len(error.splitlines()) == 1 and len(error) < 1000, error
    for word in words:
        assert word in error, error


EMPTY = "the file is empty", "write at least one row"
NOT_JSON = "not a JSON object in UTF-8", "write one object a line: mend or remove this one"
NOT_A_ROW = "instead of a JSON object", "write {"
NUMBER = "is not a number that JSON has", "mend or remove this one"
MISSING = "missing", "this stage needs"
TWICE = "stands already in line 1", "make it unique"
TEXT = ("is not a string with text in it; write one",)
HALF = "half a surrogate pair", "write the text anew"
MARK = ("holds our mark of an image, <image>; remove it",)
PATHS = "must be a list of paths", 'write ["image.png"]'
STRINGS = "must be a list of strings", 'write ["3", "4"]'
ANSWER = "must be a string, a number, a list of them, or null", "write null if it is not known"
OPTION = "is not among the options ['3', '4']", "write the letter or the text"
NAME = ("not a field of a problem; call it",)
ALONE = "must hold all, alone"
COUNT = "is not a whole number from 0", "number the samples"
ONE_EACH_MARK = "2 <image> marks for 1 images", "write one for each, or none"
ONE_EACH = "1 <image> marks for 2 images", "write one for each"
MESSAGES = "must be a list", "with texts, the last by the assistant"
BAD_LINES = {
    "empty file": ("", "", *EMPTY),
    "blank lines only": ("\n \r\n\n", "", *EMPTY),
    "broken JSON": ("{", "1:", *NOT_JSON),
    "broken in line 3": (line() + "\n" + line(id="b") + "\n" + line(id="c")[:-1], "3:", *NOT_JSON),
    "two objects in a line": (line() + line(id="b"), "1:", "Extra data", *NOT_JSON),
    "JSON over several lines": (json.dumps([1, 2], indent=1), "1:", *NOT_JSON),
    "an array": ("[1]", "1:", "a list", *NOT_A_ROW),
    "a number": ("7", "1:", "a int", *NOT_A_ROW),
    "null": ("null", "1:", *NOT_A_ROW),
    "UTF-16": (line().encode("utf-16"), "1:", "UTF-16", "save the file as UTF-8"),
    "UTF-16 without its mark": (line().encode("utf-16-le"), "1:", *NOT_JSON),
    "Latin-1": (line(question="Größe?").encode().decode("unicode_escape").encode("latin-1"), "1:", *NOT_JSON),
    "compressed": (b"\x1f\x8b\x08\x00" + bytes(range(128, 200)), "1:", *NOT_JSON),
    "NaN": (line(answer=float("nan")), "1:", "NaN", *NUMBER),
    "Infinity": (line(level=float("-inf")), "1:", "-Infinity", *NUMBER),
    "a float out of range": (line().replace('"1"', "1e999"), "1:", "1e999", *NUMBER),
    "an integer of 9,999 digits": (line().replace('"1"', "1" * 9999), "1:", *NOT_JSON),
    "nested without end": ("[" * 200_000, "1:", *NOT_JSON),
    "no id": (line("id"), "1: id:", *MISSING),
    "no question": (line("question"), "1: question:", *MISSING),
    "id is null": (line(id=None), "1: id:", "None", *TEXT),
    "id is a number": (line(id=3), "1: id:", "3", *TEXT),
    "id is a list": (line(id=["a"]), "1: id:", *TEXT),
    "id is blank": (line(id=" "), "1: id:", *TEXT),
    "id twice": (line() + "\n" + line(), "2: id:", *TWICE),
    "id twice behind a blank line": (line() + "\n\n" + line(), "3: id:", *TWICE),
    "id with a line feed, twice": (line(id="a\nb") + "\n" + line(id="a\nb"), "2: id:", *TWICE),
    "half a character in the id": (line(id="a\ud83d"), "1: id:", *HALF),
    "half a character deep in another field": (line(extra={"a": ["\udc00"]}), "1: extra:", *HALF),
    "half a character in an option": (line(options=["1", "\udc00"]), "1: options:", *HALF),
    "question is null": (line(question=None), "1: question:", "None", *TEXT),
    "question is a number": (line(question=1.5), "1: question:", *TEXT),
    "question is blank": (line(question="\u3000\n"), "1: question:", *TEXT),
    "two marks for an image": (line(question="See <image> and <image>."), "1: question:", *ONE_EACH_MARK),
    "a mark for two images": (line(question="<image>?", images=["x.png"] * 2), "1: question:", "1 <image>"),
    "a mark without an image": (line(question="See <image>.", images=[]), "1: question:", "1 <image>"),
    "marks in options": (line(question="<image>?", options=["1", "<image>"]), "1: question:", "2 <image>"),
    "images is a bare string": (line(images="x.png"), "1: images:", *PATHS),
    "images is an object": (line(images={"a": "x.png"}), "1: images:", *PATHS),
    "a null among images": (line(images=["x.png", None]), "1: images:", *PATHS),
    "a very long string as images": (line(images="x" * 100_000), "1: images:", *PATHS),
    "options is a string": (line(options="1, 2"), "1: options:", *STRINGS),
    "options is an object": (line(options={"A": "1"}), "1: options:", *STRINGS),
    "a null among options": (line(options=["1", None]), "1: options:", *STRINGS),
    "a truth value among options": (line(options=["1", True]), "1: options:", *STRINGS),
    "answer not among the options": (line(options=["3", "4"]), "1: answer:", "'1'", *OPTION),
    "a letter beyond the options": (line(options=["3", "4"], answer="C"), "1: answer:", "'C'", *OPTION),
    "answer is an object": (line(answer={"value": 1}), "1: answer:", *ANSWER),
    "answer is a truth value": (line(answer=True), "1: answer:", *ANSWER),
    "answer is an empty list": (line(answer=[]), "1: answer:", *ANSWER),
    "precision is below 0": (line(precision=-1), "1: precision:", "-1 is not a whole number from 0"),
    "precision is a list": (line(precision=[2]), "1: precision:", "is not a whole number from 0"),
    "a misspelt field": (line("images", image="x.png"), "1: image:", *NAME, "'images'"),
    "options by another name": (line(choices=["1", "2"]), "1: choices:", *NAME, "'options'"),
    "an image beside none": (line(image_path="x.png", images=[]), "1: image_path:", *NAME, "'images'"),
    "choices beside null": (line(Choices=["1", "2"], options=None), "1: Choices:", *NAME, "'options'"),
    "an option a field": (line(option_a="1"), "1: option_a:", *NAME, "'options'"),
    "an answer by another name": (line(ground_truth="1", answer=None), "1: ground_truth:", *NAME, "'answer'"),
    "an image beside another": (line(image_2="y.png"), "1: image_2:", "'images'", ALONE),
    "other options": (line(options=["1", "2"], option_c="3"), "1: option_c:", "'options'", ALONE),
    "another answer": (line(gold="2"), "1: gold:", "'answer'", ALONE),
    "options by their letters": (line(A="1", B="2"), "1: A:", "write 'options', a list"),
    "a capital": (line("answer", Answer="1"), "1: Answer:", *NAME, "'answer'"),
    "answer is blank": (line(answer=" "), "1: answer:", *ANSWER),
}  # fmt: skip
BAD_SAMPLES = {
    "no sample": (line(), "1: sample:", *MISSING),
    "sample is text": (sample(sample="0"), "1: sample:", "'0'", *COUNT),
    "sample is negative": (sample(sample=-1), "1: sample:", "-1", *COUNT),
    "sample is a truth value": (sample(sample=True), "1: sample:", "True", *COUNT),
    "a number with a fraction as sample": (sample(sample=1.0), "1: sample:", "1.0", *COUNT),
    "sample twice": ("\n".join(sample(sample=k) for k in (0, 1, 1)), "3: id:", "sample 1 stands already in"),
    "response is null": (sample(response=None), "1: response:", "None", *TEXT),
    "unknown finish": (sample(finish="done"), "1: finish:", "'done' is none of stop", "is this a file of 01"),
    "unknown status": (sample(status="ok"), "1: status:", "'ok' is none of correct", "is this a file of 02"),
}  # fmt: skip
BAD_TRAINING = {
    "messages is text": (line("question", messages="x"), "1: messages:", *MESSAGES),
    "no reply": (trained(USER), "1: messages:", *MESSAGES),
    "a reply alone": (trained(REPLY, images=()), "1: messages:", *MESSAGES),
    "the last by the user": (trained(REPLY, USER), "1: messages:", *MESSAGES),
    "no messages": (trained(images=()), "1: messages:", *MESSAGES),
    "content in parts": (trained(USER, REPLY | {"content": [{"type": "text"}]}), "1: messages:", *MESSAGES),
    "unknown role": (trained(USER, {"role": "tool", "content": "x"}, REPLY), "1: messages:", *MESSAGES),
    "an image without its mark": (trained(USER, REPLY, images=["x.png"] * 2), "1: messages:", *ONE_EACH),
}  # fmt: skip


@pytest.mark.parametrize("case", [*BAD_LINES, *BAD_SAMPLES, *BAD_TRAINING])
def test_bad_lines(folder, capsys, case):
    content, place, *words = (BAD_LINES | BAD_SAMPLES | BAD_TRAINING)[case]
    required = ["id", "messages", "images"] if case in BAD_TRAINING else ["id", "question"]
    required += ["sample", "response", "finish"] if case in BAD_SAMPLES else []
    path = folder / "p.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(capsys, lambda: list(records.read_rows(path, required)), f"{path}:{place}", *words)


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
    "its own folder": ("", None, *NO_IMAGE),
    "a device": ("/dev/zero", None, *NO_IMAGE),
    "a pipe": ("pipe", None, *NO_IMAGE),
    "a web address": ("https://example.org/x.png", None, "read from a file", "download it"),
    "a data URL": ("data:image/png;base64,iVBORw0KGgo=", None, "read from a file", "download it"),
    "NUL in the path": ("a\0.png", None, "a\\x00.png: no", "its path"),
    "a name of 5,000 letters": ("x" * 5000, None, *NO_FILE),
    "zero bytes": ("empty.png", b"", "an empty file", "fetch it again"),
    "text": ("text.png", b"not an image", *UNREADABLE),
    "SVG": ("x.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", *UNREADABLE),
    "PDF": ("x.pdf", b"%PDF-1.4\n", *UNREADABLE),
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
    (folder / "p.jsonl").write_text(line(id="fine") + "\n" + line(images=["x.png", name]))
    refused(capsys, lambda: list(records.read_rows(folder / "p.jsonl")), "p.jsonl:2: images: ", *words)


def test_an_image_of_many_rows_is_opened_once(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(records, "image_problem", lambda path: opened.append(path))
    rows = [sample(id=name, images=[f"{name}.png"], sample=k) for name in "ab" for k in range(4)]
    (tmp_path / "s.jsonl").write_text("\n".join(rows))
    assert len([*records.read_rows(tmp_path / "s.jsonl")]) == 8
    assert opened == [tmp_path / "a.png", tmp_path / "b.png"]


# ---------------------------------------------------------------- legal files


IDS = ("a/b", "a b", " a", "a\0b", "../a", "多", "a" * 5000)
LEGAL_LINES = {
    "BOM": b"\xef\xbb\xbf" + line().encode() + b"\n",
    "CRLF": (line() + "\r\n" + line(id="b") + "\r\n").encode(),
    "BOMs of two files in one": 2 * (b"\xef\xbb\xbf%s\n") % (line().encode(), line(id="b").encode()),
    "no line feed at the end": line().encode(),
    "blank lines": f"\n{line()}\n\n \n".encode(),
    "escaped characters": line(question="多少？ \U0001f600").encode(),
    "ids of any text": "\n".join(line(id=name) for name in IDS).encode(),
    "marks of images": line(question="Is <image> larger than <image>?", images=["x.png"] * 2).encode(),
    "a mark in an option": line(options=["1", "<image>"]).encode(),
    "the same under two names": line(image="x.png", gold="1", choices=None).encode(),
    "null fields": line(images=None, options=None, answer=None, solution=None).encode(),
    "no images": json.dumps({"id": "a", "question": "1 + 1?"}).encode(),
    "numbers as answers and options": line(options=[1, 2.5], answer=2.5).encode(),
    "options without letters": line(options=["3 cm", "4 cm"], answer="4 cm").encode(),
    "options with letters": line(options=["(A) 3", "(B) 4"], answer="(B)").encode(),
    "several right options": line(options=["3", "4", "5"], answer="AC").encode(),
    "several answers": line(answer=["1", "-1"]).encode(),
    "MATH-V's marks of several images in one": line(question="<image1> or <image2>?").encode(),
    "further fields": line(level=3, extra={"deep": [1, None]}).encode(),
}  # fmt: skip


@pytest.mark.parametrize("case", LEGAL_LINES)
def test_legal_lines(folder, case):
    path = folder / "data of Müller 数据" / "my problems.jsonl"
    path.parent.mkdir()
    (path.parent / "x.png").symlink_to(folder / "x.png")  # data sets often lie on another disk
    path.write_bytes(LEGAL_LINES[case])
    rows = list(records.read_rows(path))
    assert rows and all(Path(image).is_file() for row in rows for image in row["images"])


def test_images_of_a_question_keep_their_order(folder):
    (folder / "sub").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (5, 5)).save(folder / name)
    (folder / "p.jsonl").write_text(line(images=["b.png", "a.png", "sub/../b.png", str(folder / "x.png")]))
    (row,) = records.read_rows(folder / "p.jsonl")
    assert [Path(image).name for image in row["images"]] == ["b.png", "a.png", "b.png", "x.png"]
    (message,) = chat.user_message(common.solve_prompt(row), row["images"])
    (parts,) = chat.chat_parts([message], row["images"])
    assert [part["image"] for part in parts["content"] if part["type"] == "image"] == row["images"]


def test_legal_input_goes_through_a_model(folder, run):
    """Every legal image, several images, none, and a question longer than the context: an error row, not a
    crash."""
    target = folder / "data of Müller 数据"
    target.mkdir()
    lines = [line(id="none", images=[]), line(id="long", question="How many? " * 20_000, images=[])]
    lines.append(line(id="two", images=["0.png", "1.png"]))
    names = {case: f"image/{index} \0" for index, case in enumerate(LEGAL_IMAGES)}
    for index, (case, (content, *_)) in enumerate(LEGAL_IMAGES.items()):
        (target / f"{index}.png").write_bytes(content)
        lines.append(line(id=names[case], images=[f"{index}.png"]))
    (target / "my problems.jsonl").write_text("\n".join(lines))
    files = "--input", target / "my problems.jsonl", "--output", target / "out put.jsonl"
    flags = "--model", ROOT / "toy" / "base", "--max-tokens", 2, "--max-pixels", 20_000
    done = run("01_sample.py", *files, *flags)
    assert done.returncode == 0, done.stderr
    replies = {row["id"]: row for row in read_rows(target / "out put.jsonl")}
    assert set(replies) == {"none", "long", "two", *names.values()}
    failed = {name: row["reason"] for name, row in replies.items() if row["finish"] == "error"}
    extreme = names["one row of 3,000"]  # Qwen2-VL takes no aspect ratio above 200
    assert set(failed) == {"long", extreme}, failed
    assert "context" in failed["long"] and "aspect ratio" in failed[extreme]


# ---------------------------------------------------------------- models


SEEING = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "vision_config": {}}
READING = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}


@pytest.fixture
def weights(tmp_path):
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(100, np.float32)}, tmp_path / "weights")
    return (tmp_path / "weights").read_bytes()


TEXT_ALONE = "a Qwen2ForCausalLM that reads no images, by its config.json; give an image-text-to-text model"
PICKLED = "pickled ones (pytorch_model.bin) are never loaded: convert them"
# name: (files of the model folder, None standing for sound weights; words of the message)
BAD_MODELS = {
    "nothing in it": ({}, "no config.json in it; is it a model folder?"),
    "config is no JSON": ({"config.json": "{"}, "config.json: not JSON"),
    "config is a list": ({"config.json": "[]"}, "config.json: not a JSON object"),
    "a model of text alone": ({"config.json": READING, "model.safetensors": None}, TEXT_ALONE),
    "no weights": ({"config.json": SEEING}, "no *.safetensors weights in it; is the download complete?"),
    "pickled weights": ({"config.json": SEEING, "pytorch_model.bin": "x"}, PICKLED),
}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
# Weights that only loading shows to be broken: what model.safetensors holds, or how much of it.
BAD_WEIGHTS = {"zero bytes": b"", "broken": b"\x7f" * 200, "cut off": 0.5, "LFS": POINTER.encode()}


def make_model(folder: Path, files: dict, weights: bytes) -> Path:
    folder.mkdir()
    for name, content in files.items():
        content = json.dumps(content) if isinstance(content, dict) else content
        (folder / name).write_bytes(weights if content is None else content.encode())
    return folder


ARGS = argparse.Namespace(dry_run=None, output="out.jsonl")


@pytest.mark.parametrize("case", BAD_MODELS)
def test_bad_models(tmp_path, capsys, weights, case):
    files, words = BAD_MODELS[case]
    folder = make_model(tmp_path / "model", files, weights)
    refused(capsys, lambda: cli.check_model(ARGS, str(folder)), f"--model: {folder}: ", words)


@pytest.mark.parametrize("case", [*BAD_WEIGHTS, "a shard is missing"])
def test_weights_that_cannot_be_loaded(tmp_path, capsys, tiny_model, case):
    """from_pretrained says what is wrong; it is one line."""
    folder = shutil.copytree(tiny_model("llava"), tmp_path / "model")
    path = folder / "model.safetensors"
    if content := BAD_WEIGHTS.get(case, 1.0):
        whole = path.read_bytes()
        content = whole[: int(len(whole) * content)] if isinstance(content, float) else content
    path.write_bytes(content)
    if case not in BAD_WEIGHTS:
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
    words = f"--model: {spec}: ", BAD_SPECS[spec]
    refused(capsys, lambda: cli.check_model(ARGS, spec), *words)


VISION = {"model_type": "vision-encoder-decoder", "encoder": {}, "decoder": {}}
LEGAL_MODELS = {
    "one file": {"config.json": SEEING, "model.safetensors": None},
    "two files": {"config.json": SEEING, "a.safetensors": None, "b.safetensors": None},
    "remote code": {"config.json": READING | {"auto_map": {"AutoModel": "c.M"}}, "model.safetensors": None},
    "two models in one": {"config.json": VISION, "model.safetensors": None},
    "pickled too": {"config.json": SEEING, "model.safetensors": None, "pytorch_model.bin": "x"},
}


@pytest.mark.parametrize("case", LEGAL_MODELS)
def test_legal_models(tmp_path, weights, case):
    cli.check_model(ARGS, str(make_model(tmp_path / "model", LEGAL_MODELS[case], weights)))


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


BAD_FLAGS = {
    "--samples 0": "argument --samples: 0: must be a whole number of at least 1",
    "--samples -3": "argument --samples: -3: must be a whole number of at least 1",
    "--samples two": "argument --samples: two: must be a whole number of at least 1",
    "--limit -1": "argument --limit: -1: must be a whole number of at least 0",
    "--limit 1.5": "argument --limit: 1.5: must be a whole number",
    "--max-tokens 0": "argument --max-tokens: 0: must be",
    "--batch-size 0": "argument --batch-size: 0: must be",
    "--concurrency 0": "argument --concurrency: 0: must be",
    "--timeout 0": "argument --timeout: 0: must be a number above 0",
    "--temperature nan": "argument --temperature: nan: must be a number of at least 0",
    "--temperature inf": "argument --temperature: inf: must be a number",
    "--temperature -0.5": "argument --temperature: -0.5: must be a number of at least 0",
    "--top-p 0": "argument --top-p: 0: must be a number above 0 and at most 1",
    "--top-p 1.1": "argument --top-p: 1.1: must be a number above 0 and at most 1",
    "--max-cost -1": "argument --max-cost: -1: must be a number of at least 0",
    "--seed 9999999999999999999999": "argument --seed: 9999999999999999999999: must be a whole number",
    "--samples 4": "--samples: more than one at --temperature 0",
    "--sampels 4": "unrecognized arguments: --sampels 4",
}
BAD_TRAINING_FLAGS = (
    "--epochs 0", "--lr nan", "--lr 0", "--warmup 1.5", "--batch-size 0", "--micro-batch 0", "--max-length 0",
    "--recompute 2",
)  # fmt: skip
USUAL = "--input p.jsonl --model none/such"
BAD_CALLS = [  # of p.jsonl, which holds a problem
    ("01_sample", "--input p.jsonl --model http://127.0.0.1:9/v1#m", "cannot be reached"),
    ("01_sample", "--input p.jsonl", "the following arguments are required: --model"),
    ("01_sample", "--input p.jsonl --model solutions", "no problem has a `solution`"),
    ("01_sample", "--input p.jsonl --model toy/base --draw 1.0", "argument --draw: 1.0: must be"),
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
    *(("01_sample", f"{USUAL} {flags}", words) for flags, words in BAD_FLAGS.items()),
    *(("04_finetune", f"{USUAL} {flags}", f"argument {flags.replace(' ', ': ')}: must be a")
      for flags in BAD_TRAINING_FLAGS),
]  # fmt: skip


@pytest.mark.parametrize("script, flags, words", BAD_CALLS)
def test_bad_flags(folder, capsys, monkeypatch, stage, script, flags, words):
    (folder / "p.jsonl").write_text(line())
    given = [str(folder / flag) if flag == "p.jsonl" else flag for flag in flags.split()]
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *given, "--output", str(folder / "out")])
    refused(capsys, stage(script).main, words)


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

    def refusal(output: str) -> str:
        words = [str(path) if word == "FILE" else word for word in command.split()]
        done = run(*words, "--output", folder / output)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert "kernels:" not in done.stdout  # nothing was loaded
        return done.stderr

    assert refusal("out").startswith(f"error: {path}:2: options: must be a list of strings")
    path.unlink()
    assert refusal("other").startswith(f"error: {path}: no such file")
