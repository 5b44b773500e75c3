"""Sampling on tiny random models: the engine on seven architectures."""

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import common
import decoder as decoder_module
import engine
import prompts
import slots as slots_module
from decoder import Decoder

KINDS = ["qwen2_vl", "internvl", "idefics3", "llava"]
MORE_KINDS = ["qwen2_5_vl", "qwen3_vl", "llava_onevision"]


def settings(**changes) -> argparse.Namespace:
    values = dict(temperature=0.0, top_p=1.0, top_k=0, max_tokens=12, max_pixels=10_000, batch_size=64, trust_remote_code=False, concurrency=4)
    return argparse.Namespace(**(values | changes))


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for index, (count, text) in enumerate([(1, "How many?"), (0, "1 + 1 = ?"), (2, "Which of the two pictures is larger, and why?"), (1, "x")]):
        paths = []
        for number in range(count):
            path = folder / f"{index}_{number}.png"
            Image.effect_noise((40 + 9 * index, 30), 90).convert("RGB").save(path)
            paths.append(str(path))
        rows.append({"id": str(index), "question": text, "images": paths})
    return rows


def requests(rows: list[dict], samples: int = 1) -> list[engine.Request]:
    return [engine.Request(row, common.solve_messages(row), {k: common.derive_seed(0, row["id"], k) for k in range(samples)}) for row in rows]


def texts(generate, rows, samples=1) -> dict:
    return {(reply.row["id"], reply.sample): (reply.text, reply.finish, reply.reason) for reply in generate(requests(rows, samples))}


def judgements(rows: list[dict], candidates: int = 3) -> list[engine.Request]:
    """Candidates of each question, in an order that tears questions apart."""
    made = []
    for k in range(candidates):
        for row in rows:
            candidate = row | {"sample": k, "response": "It is " + "so " * (2 * k) + str(k)}
            made.append(engine.Request(candidate, common.judge_messages(candidate), {k: common.derive_seed(row["id"], k)}))
    return made


def generated(spec: str, requests: list[engine.Request], stops: bool = False) -> dict:
    """What generate() says to each prompt alone."""
    processor, model, said = common.load_processor(spec), common.load_model(spec, "cpu", torch.float32), {}
    for request in requests:
        images = [common.open_image(path, 10_000) for path in request.row["images"]]
        inputs = common.encode_prompts(processor, [common.chat_parts(request.messages, images)])
        new = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        end = next((index for index, token in enumerate(new.tolist()) if token in model.generation_config.eos_token_id), None) if stops else None
        said |= {(request.row["id"], number): processor.tokenizer.decode(new[:end], skip_special_tokens=True).strip() for number in request.seeds}
    return said


@pytest.fixture
def stops_often(tiny_model, tmp_path):
    """A copy of a tiny model for which every n-th token ends a reply."""

    def copy(kind: str, n: int) -> str:
        shutil.copytree(tiny_model(kind), tmp_path / kind)
        path = tmp_path / kind / "generation_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [1, *range(20, 272, n)]}))
        return str(tmp_path / kind)

    return copy


@pytest.mark.parametrize("kind", KINDS + MORE_KINDS)
def test_greedy_equals_generate_and_does_not_depend_on_the_batch(kind, tiny_model, questions, capsys):
    spec = str(tiny_model(kind))
    together = texts(engine.open_model(spec, settings()), questions)
    assert "engine: shared prompts, 64 rows" in capsys.readouterr().out
    alone = texts(engine.open_model(spec, settings(batch_size=1)), questions)
    assert together == alone and all(reason is None for _, _, reason in together.values())
    assert {key: text for key, (text, _, _) in together.items()} == generated(spec, requests(questions))


@pytest.mark.parametrize("kind", KINDS + MORE_KINDS)
def test_candidates_share_their_question(kind, stops_often, questions):
    """Greedy verdicts equal generate()'s where rows are refilled and replies stop early; and no token is computed twice."""
    spec, asked = stops_often(kind, 4), judgements(questions)
    generate = engine.open_model(spec, settings(batch_size=5))
    replies = list(generate(asked))
    assert {(reply.row["id"], reply.sample): reply.text for reply in replies} == generated(spec, asked, stops=True)
    assert len({reply.tokens for reply in replies}) > 1 or kind in ("qwen2_vl", "internvl", "llava")  # which repeat one token
    assert generate.work["prompts"] == len(questions) and generate.work["tails"] == len(asked)
    prompts = sum(reply.prompt_tokens for reply in replies)
    shared = sum((len(asked) // len(questions) - 1) * length for length in shared_lengths(spec, asked))
    assert generate.work["prompt_tokens"] + generate.work["tail_tokens"] == prompts - shared
    assert generate.work["decode_rows"] == sum(reply.tokens - 1 for reply in replies)


def shared_lengths(spec: str, asked: list[engine.Request]) -> list[int]:
    """Tokens that the prompts of each question begin with."""
    processor, prompts = common.load_processor(spec), {}
    for request in asked:
        images = [common.open_image(path, 10_000) for path in request.row["images"]]
        prompts.setdefault(request.row["id"], []).append(common.encode_prompts(processor, [common.chat_parts(request.messages, images)])["input_ids"][0].tolist())
    return [len(os.path.commonprefix(group)) for group in prompts.values()]


@pytest.mark.parametrize("kind", ["qwen2_vl", "idefics3"])
def test_a_question_is_read_once_for_all_samples(kind, tiny_model, questions):
    generate = engine.open_model(str(tiny_model(kind)), settings(temperature=1.0))
    replies = list(generate(requests(questions, 6)))
    once = {reply.row["id"]: reply.prompt_tokens for reply in replies}
    pixels = common.encode_prompts(common.load_processor(str(tiny_model(kind))), [
        common.chat_parts(common.solve_messages(row), [common.open_image(path, 10_000) for path in row["images"]]) for row in questions
    ])["pixel_values"]  # fmt: skip
    assert generate.work["prompt_tokens"] + generate.work["tail_tokens"] == sum(once.values())
    assert generate.work["pixel_rows"] == len(pixels) or kind == "idefics3"  # pads its tiles within a batch
    assert generate.work["decode_rows"] == sum(reply.tokens - 1 for reply in replies)


@pytest.mark.parametrize("kind", KINDS + MORE_KINDS)
def test_pictures_are_encoded_once(kind, tiny_model, questions, decoders, tmp_path):
    """A second pass, with other prompts: no pixels, and what generate() says. A picture that has changed is another one; what does not fit is not kept."""
    spec, rows = str(tiny_model(kind)), [row | {"images": [shutil.copy(image, tmp_path) for image in row["images"]]} for row in questions]
    generate = engine.open_model(spec, settings(batch_size=3))
    texts(generate, rows)
    pixels = generate.work["pixel_rows"]
    if not decoders[0].features.kept:
        pytest.skip("this version of transformers does not take features")
    asked = judgements(rows, 2)
    assert {(reply.row["id"], reply.sample): reply.text for reply in generate(asked)} == generated(spec, asked)
    assert generate.work["pixel_rows"] == pixels > 0
    shutil.copy(questions[2]["images"][0], rows[0]["images"][0])
    assert {(reply.row["id"], reply.sample): reply.text for reply in generate(asked)} == generated(spec, asked)
    assert generate.work["pixel_rows"] > pixels
    features = decoders[0].features
    assert features.used == sum(piece.nbytes for pieces in features.kept.values() for piece in pieces)
    features.room = features.used - 1
    shutil.copy(questions[3]["images"][0], rows[0]["images"][0])
    texts(generate, rows)
    assert features.used <= features.room and len(features.kept) > 1


@pytest.mark.parametrize("kind", ["qwen2_vl", "idefics3"])
def test_samples_depend_on_their_seed_only(kind, stops_often, questions):
    spec = stops_often(kind, 12)
    many = texts(engine.open_model(spec, settings(temperature=1.0)), questions, 4)
    refilled = texts(engine.open_model(spec, settings(temperature=1.0, batch_size=3)), questions, 4)
    few = texts(engine.open_model(spec, settings(temperature=1.0, batch_size=4)), questions[:1], 4)
    assert len({many["0", k][0] for k in range(4)}) > 1 and {finish for _, finish, _ in many.values()} == {"stop", "length"}
    assert many == refilled and few == {key: value for key, value in many.items() if key[0] == "0"}


def test_sampled_tokens_follow_the_distribution(tiny_model):
    """First tokens of many samples, on both paths, against the model's own probabilities (chi-square, ten likeliest tokens and the rest)."""
    spec, row = str(tiny_model("qwen2_vl")), {"id": "a", "question": "x", "images": []}
    processor, model = common.load_processor(spec), common.load_model(spec, "cpu", torch.float32)
    inputs = dict(common.encode_prompts(processor, [common.chat_parts(common.solve_messages(row))]))
    request = engine.Request(row, common.solve_messages(row), {k: common.derive_seed("chi", k) for k in range(3000)})
    model.generation_config.eos_token_id = None
    logits = model(**inputs).logits[0, -1].float()
    plain = engine.decode_batch(model, inputs, [list(request.seeds.values())], 1, 0.7, settings())
    local = engine.Local(model, processor, processor.tokenizer, settings(max_tokens=1), set(), True, 2048)
    decoder = Decoder(model, engine.probe(local), 1000, 1, set(), True)
    samples = sorted(decoder.serve(iter(prompts.encode(local, [engine.Question([request])])), None, 0.7, 0, 1.0), key=lambda sample: sample.number)
    shared = torch.tensor([sample.tokens for sample in samples]), torch.tensor([sample.chances for sample in samples])
    assert (plain[0] == shared[0]).all()
    for tokens, logprobs in (plain, shared):
        assert torch.allclose(logprobs[:, 0], logits.log_softmax(-1)[tokens[:, 0]], atol=1e-4)  # at temperature 1, whatever it was sampled at
        probability = (logits / 0.7).softmax(-1)
        top = probability.topk(10).indices
        seen = torch.stack([(tokens[:, 0] == token).sum() for token in top]).float()
        expected = probability[top] * 3000
        rest = 3000 - expected.sum()
        chi = (((seen - expected) ** 2 / expected).sum() + (3000 - seen.sum() - rest) ** 2 / rest).item()
        assert chi < 29.6  # 0.1 % of 10 degrees of freedom


def test_a_model_that_forgets_takes_the_plain_path(tiny_model, questions, capsys):
    spec = str(tiny_model("llava_sliding"))
    replies = texts(engine.open_model(spec, settings()), questions)
    assert "engine: plain path, 64 rows (ValueError: not all its layers" in capsys.readouterr().out
    assert {key: text for key, (text, _, _) in replies.items()} == generated(spec, requests(questions))


class Tape(TorchDispatchMode):
    """What a graph is on CUDA: a step's operations and the memory that they read and write, to be done again without the Python around them."""

    def __init__(self):
        super().__init__()
        self.done = []

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        out = operation(*arguments, **(keywords or {}))
        self.done.append((operation, arguments, keywords or {}, out))
        return out

    def replay(self) -> None:
        for operation, arguments, keywords, out in self.done:
            for place, value in zip(tree_leaves(out), tree_leaves(operation(*arguments, **keywords))):
                if place.data_ptr() != value.data_ptr():
                    place.copy_(value)


def record(decoders: list):
    """Records a step of the last decoder; which leaves no trace, as on CUDA."""

    def capture(step):
        state, chances = decoders[-1].slots.state, decoders[-1].slots.chances
        before = state.clone(), chances.clone()
        with Tape() as tape:
            step()
        state.copy_(before[0])
        chances.copy_(before[1])
        return tape.replay

    return capture


@pytest.fixture
def decoders(monkeypatch) -> list:
    """All decoders that are made."""
    made, init = [], Decoder.__init__

    def remember(decoder, *arguments):
        made.append(decoder)
        init(decoder, *arguments)

    monkeypatch.setattr(Decoder, "__init__", remember)
    return made


@pytest.mark.parametrize("kind", KINDS + MORE_KINDS)
def test_recorded_steps_decode_the_same(kind, stops_often, questions, decoders, monkeypatch, capsys):
    """With refills and early stops, through recorded steps of rounded shapes: so nothing that changes is left to the host, and no memory moves unnoticed."""
    spec, sampled = stops_often(kind, 16), settings(batch_size=6, temperature=1.0, top_k=40, top_p=0.95)
    expected = texts(engine.open_model(spec, sampled), questions, 4)
    monkeypatch.setattr(decoder_module, "graph_capture", lambda device: record(decoders))
    monkeypatch.setattr(decoder_module, "CAPTURE_AT", 1)
    monkeypatch.setattr(decoder_module, "GRAPHS", 3)
    generate = engine.open_model(spec, sampled)
    assert texts(generate, questions, 4) == expected
    assert generate.work["replays"] == generate.work["steps"] > generate.work["graphs"] > 0
    for asked in (requests(questions, 4), judgements(questions)):
        assert {(reply.row["id"], reply.sample): reply.text for reply in generate(asked, 0.0)} == generated(spec, asked, stops=True)
    assert 0 < len(decoders[-1].graphs) <= 3 < generate.work["graphs"] and "not captured" not in capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS + MORE_KINDS)
def test_a_step_stays_on_the_device(kind, tiny_model, questions, decoders, monkeypatch):
    """On torch's device without data, where to read a value is an error: no operation of a step sees a tensor of the host."""
    generate, sampled = engine.open_model(str(tiny_model(kind)), settings(temperature=1.0, top_k=40, top_p=0.95)), Decoder.one_token

    class OneDevice(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
            out = operation(*arguments, **(keywords or {}))
            seen = [leaf.device.type for leaf in tree_leaves((arguments, keywords, out)) if isinstance(leaf, torch.Tensor)]
            assert {*seen} == {"meta"}, operation
            operations.append(operation)
            return out

    operations, slots = [], decoders[-1].slots

    def on_meta(decoder, shape):
        decoder.model.to("meta")
        for name, part in vars(decoder.slots).items():
            if isinstance(part, torch.Tensor) and name not in ("lengths", "owners", "question_lengths", "next_positions"):
                setattr(decoder.slots, name, part.to("meta"))
        slots.own, slots.prefix = ([[part.to("meta") for part in layer] for layer in layers] for layers in (slots.own, slots.prefix))
        slots.device, slots.cells = torch.device("meta"), {}
        with OneDevice():
            sampled(decoder, shape)
        raise InterruptedError

    monkeypatch.setattr(Decoder, "one_token", on_meta)
    with pytest.raises(InterruptedError):
        texts(generate, questions, 2)
    assert len(operations) > 100


def test_without_graphs_it_goes_on(tiny_model, questions, decoders, monkeypatch, capsys):
    """A capture that fails, when the model is loaded or later, and a graph that does something else."""
    spec = str(tiny_model("llava"))
    expected = texts(engine.open_model(spec, settings()), questions)

    def fails_later(step, calls=[]):
        calls.append(step)
        if len(calls) > 1:
            raise RuntimeError("operation not permitted when stream is capturing")
        return record(decoders)(step)

    def fails(step):
        raise RuntimeError("no graphs")

    for capture, reason in ((fails, "(RuntimeError: no graphs)"), (fails_later, "(RuntimeError: operation not permitted"), (lambda step: lambda: None, "(they are off by")):
        monkeypatch.setattr(decoder_module, "graph_capture", lambda device: capture)
        assert texts(engine.open_model(spec, settings()), questions) == expected
        assert f"engine: steps are not captured {reason}" in capsys.readouterr().out


@pytest.mark.parametrize("number, unit, up", [(1, 1, 1), (7, 1, 7), (9, 1, 10), (17, 1, 20), (256, 1, 256), (257, 1, 320), (0, 64, 0), (1, 64, 64), (600, 64, 640), (64 * 17, 64, 64 * 20)])
def test_shapes_are_rounded_up(number, unit, up):
    assert slots_module.rounded(number, unit) == up == slots_module.rounded(up, unit)


def test_without_memory_fewer_rows(tiny_model, questions, capsys, monkeypatch):
    """A step that does not fit is done with fewer rows; a sample that does not fit alone is a record; few rows where little is free."""
    spec = str(tiny_model("llava"))
    expected = texts(engine.open_model(spec, settings(temperature=1.0)), questions, 4)
    forward = Decoder.forward

    def narrow(decoder, first, tokens, limit=3):
        if first + len(tokens) > limit:
            raise torch.OutOfMemoryError("out of memory")
        return forward(decoder, first, tokens)

    monkeypatch.setattr(Decoder, "forward", narrow)
    assert texts(engine.open_model(spec, settings(temperature=1.0)), questions, 4) == expected
    assert "going on with 2 rows" in capsys.readouterr().out
    monkeypatch.setattr(Decoder, "forward", forward)
    one_token = Decoder.one_token

    def narrow_step(decoder, shape):
        if shape.rows > 3:
            raise torch.OutOfMemoryError("out of memory")
        one_token(decoder, shape)

    monkeypatch.setattr(Decoder, "one_token", narrow_step)
    assert texts(engine.open_model(spec, settings(temperature=1.0)), questions, 4) == expected
    assert "going on with 2 rows" in capsys.readouterr().out
    monkeypatch.setattr(Decoder, "one_token", one_token)
    generate = engine.open_model(spec, settings())
    monkeypatch.setattr(Decoder, "forward", lambda decoder, first, tokens: narrow(decoder, first, tokens, 0))
    assert {finish for _, finish, _ in texts(generate, questions[:2]).values()} == {"error"}
    monkeypatch.setattr(Decoder, "forward", forward)
    monkeypatch.setattr(decoder_module, "free_memory", lambda device: 3_000_000)
    assert texts(engine.open_model(spec, settings(temperature=1.0)), questions, 4) == expected
    assert "engine: memory for 5 rows, not for 64" in capsys.readouterr().out


def test_a_batch_that_fails_on_the_device_is_halved(tiny_model, questions, monkeypatch):
    """The faulty question alone becomes a record for each of its candidates."""
    read = Decoder.read

    def broken(decoder, inputs, keep, pictures):
        if "pixel_values" in inputs and len(inputs["pixel_values"]) > 1 and keep == 1:  # of tiny llava: the question with two pictures
            raise ValueError("no")
        return read(decoder, inputs, keep, pictures)

    monkeypatch.setattr(Decoder, "read", broken)
    replies = list(engine.open_model(str(tiny_model("llava")), settings())(judgements(questions)))
    assert len(replies) == 12 and sorted(reply.row["id"] for reply in replies if reply.finish == "error") == ["2"] * 3


def test_a_bad_picture_is_a_record(tiny_model, questions, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes((b"\x89PNG\r\n\x1a\n" + b"\0" * 50))
    replies = texts(engine.open_model(str(tiny_model("llava")), settings()), [*questions, {"id": "bad", "question": "q", "images": [str(bad)]}])
    assert replies["bad", 0][1] == "error" and replies["bad", 0][2] and sum(finish == "error" for _, finish, _ in replies.values()) == 1


def test_processes_prepare_what_a_thread_does(tiny_model, questions, tmp_path, monkeypatch, capsys):
    """The same replies, a picture that cannot be read included; and one that is killed ends the stage with a line."""
    spec, bad = str(tiny_model("idefics3")), tmp_path / "bad.png"
    bad.write_bytes((b"\x89PNG\r\n\x1a\n" + b"\0" * 50))
    asked = judgements([*questions, {"id": "bad", "question": "q", "images": [str(bad)]}, {"id": "long", "question": "word " * 3000, "images": []}])
    said = [engine.open_model(spec, settings())(asked)]
    monkeypatch.setattr(engine, "worker_count", lambda device: 2)
    before = {*multiprocessing.active_children()}
    generate = engine.open_model(spec, settings(batch_size=8))
    workers = {*multiprocessing.active_children()} - before
    assert len(workers) == 2
    said.append(generate(asked))
    thread, apart = ({(reply.row["id"], reply.row["sample"]): (reply.text, reply.finish, reply.reason) for reply in replies} for replies in said)
    assert thread == apart and [apart[name, 0][1] for name in ("0", "bad", "long")] == ["length", "error", "error"]
    for worker in workers:
        worker.kill()
    with pytest.raises(SystemExit) as ended:
        list(generate(asked))
    assert ended.value.code == 1 and "error: a process that prepares pictures and prompts was ended" in capsys.readouterr().err


ENDED = """
import argparse, signal, sys, time
import common, prompts
from engine import Request

def main():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs the tests in the background has it ignored
    local = argparse.Namespace(args=argparse.Namespace(max_pixels=0, max_tokens=9, trust_remote_code=False), context=2048)
    submit = prompts.submit_to(prompts.open_pool(sys.argv[1], False, 1), sys.argv[1], local)
    rows = ({"id": str(index), "question": "x", "images": []} for index in range(10**7))
    for batch in prompts.ahead(submit, prompts.gather((Request(row, common.solve_messages(row), {0: 0}) for row in rows), 64, 8)):
        print("going", flush=True)
        time.sleep(60)

if __name__ == "__main__":
    main()
"""


def test_processes_end_with_their_parent(tiny_model, tmp_path):
    """Ctrl-C ends all with one traceback; a parent that is killed leaves none behind."""
    script = tmp_path / "ended.py"
    script.write_text(ENDED)
    command, environment = [sys.executable, script, tiny_model("llava")], os.environ | {"PYTHONPATH": str(ROOT)}
    parents = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True) for _ in range(2)]
    for parent in parents:
        assert parent.stdout.readline() == "going\n"
    time.sleep(1)  # what was asked for ahead is done: the workers wait
    os.killpg(parents[0].pid, signal.SIGINT)
    parents[1].kill()
    errors = [parent.communicate(timeout=60)[1] for parent in parents]
    assert [parent.returncode for parent in parents] == [-signal.SIGINT, -signal.SIGKILL] and [error.count("Traceback") for error in errors] == [1, 0], errors[0]
    deadline = time.monotonic() + 20
    while any(alive(parent.pid) for parent in parents):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
        return True
    except ProcessLookupError:
        return False


def test_a_prompt_longer_than_the_context_is_a_record(tiny_model, questions):
    long = {"id": "long", "question": "word " * 3000, "images": []}
    replies = texts(engine.open_model(str(tiny_model("llava")), settings()), [*questions, long])
    assert replies["long", 0][1] == "error" and "context" in replies["long", 0][2] and sum(finish == "error" for _, finish, _ in replies.values()) == 1
