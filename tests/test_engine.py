"""Sampling on tiny random models: the engine on seven architectures."""

import argparse
import json
import os
import shutil

import pytest
import torch
from PIL import Image

import common
import decoder as decoder_module
import engine
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
    samples = sorted(decoder.serve(iter(engine.encode(local, [engine.Question([request])])), None, 0.7, 0, 1.0), key=lambda sample: sample.number)
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

    def broken(decoder, inputs, keep):
        if "pixel_values" in inputs and len(inputs["pixel_values"]) > 1 and keep == 1:  # of tiny llava: the question with two pictures
            raise ValueError("no")
        return read(decoder, inputs, keep)

    monkeypatch.setattr(Decoder, "read", broken)
    replies = list(engine.open_model(str(tiny_model("llava")), settings())(judgements(questions)))
    assert len(replies) == 12 and sorted(reply.row["id"] for reply in replies if reply.finish == "error") == ["2"] * 3


def test_a_bad_picture_is_a_record(tiny_model, questions, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes((b"\x89PNG\r\n\x1a\n" + b"\0" * 50))
    replies = texts(engine.open_model(str(tiny_model("llava")), settings()), [*questions, {"id": "bad", "question": "q", "images": [str(bad)]}])
    assert replies["bad", 0][1] == "error" and replies["bad", 0][2] and sum(finish == "error" for _, finish, _ in replies.values()) == 1


def test_a_prompt_longer_than_the_context_is_a_record(tiny_model, questions):
    long = {"id": "long", "question": "word " * 3000, "images": []}
    replies = texts(engine.open_model(str(tiny_model("llava")), settings()), [*questions, long])
    assert replies["long", 0][1] == "error" and "context" in replies["long", 0][2] and sum(finish == "error" for _, finish, _ in replies.values()) == 1
