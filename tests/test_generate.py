"""Local generation on tiny random models: seven architectures against transformers' generate()."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny
import torch
from conftest import ROOT
from PIL import Image
from torch.utils.data import DataLoader
from transformers import DynamicCache

import common
import mathse.generate.open as opening
from mathse.chat import chat_parts, encode_prompts, turn_end, user_message
from mathse.generate import Request, batching, decoder, kv_cache, sampling
from mathse.generate.batching import PromptDataset, gather, load_batches
from mathse.generate.decoder import Decoder
from mathse.generate.open import LocalModel
from mathse.generate.plain import decode_batch
from mathse.images import open_image
from mathse.records import derive_seed

KINDS = ["qwen2_vl", "internvl", "idefics3", "llava"]
MORE_KINDS = ["qwen2_5_vl", "qwen3_vl", "llava_onevision"]
BAD_PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 50


def settings(**changes) -> argparse.Namespace:
    values = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "max_tokens": 12, "max_pixels": 10_000}
    return argparse.Namespace(
        **values | {"batch_size": 64, "trust_remote_code": False, "serve": None, "processes": 1} | changes
    )


def open_tiny(spec, **changes) -> LocalModel:
    return opening.open_model(str(spec), settings(**changes), common.load)


def solve_messages(row: dict) -> list[dict]:
    return user_message(common.solve_prompt(row), row["images"])


def judge_messages(row: dict) -> list[dict]:
    """A judge's prompt: the candidate stands behind what is the same for all candidates of a problem."""
    return user_message(
        f"Problem: {row['question']}\n\nSolution: {row['response']}\n\nIs each step right? Say yes or no.",
        row["images"],
    )


@pytest.fixture(scope="module")
def problems(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("images")
    questions = [
        (1, "How many?"),
        (0, "1 + 1 = ?"),
        (2, "Which of the two images is larger, and why?"),
        (1, "x"),
    ]
    rows = []
    for index, (count, text) in enumerate(questions):
        paths = []
        for number in range(count):
            path = folder / f"{index}_{number}.png"
            Image.effect_noise((40 + 9 * index, 30), 90).convert("RGB").save(path)
            paths.append(str(path))
        rows.append({"id": str(index), "question": text, "images": paths})
    return rows


def requests(rows: list[dict], samples: int = 1) -> list[Request]:
    made = []
    for row in rows:
        seeds = {k: derive_seed(0, row["id"], k) for k in range(samples)}
        made.append(Request(row, solve_messages(row), seeds))
    return made


def said(replies) -> dict:
    return {(reply.row["id"], reply.sample): (reply.text, reply.finish, reply.reason) for reply in replies}


def texts(generate, rows, samples=1) -> dict:
    return said(generate(requests(rows, samples)))


def judgements(rows: list[dict], candidates: int = 3) -> list[Request]:
    """Candidates of each problem, in an order that tears problems apart."""
    made = []
    for k in range(candidates):
        for row in rows:
            candidate = row | {"sample": k, "response": "It is " + "so " * (2 * k) + str(k)}
            made.append(Request(candidate, judge_messages(candidate), {k: derive_seed(row["id"], k)}))
    return made


def encoded(processor, asked: list[Request]) -> list[dict]:
    """The inputs of each request alone."""
    inputs = []
    for request in asked:
        images = [open_image(path, 10_000) for path in request.row["images"]]
        inputs.append(encode_prompts(processor, [chat_parts(request.messages, images)]))
    return inputs


def generated(spec: str, asked: list[Request], stops: bool = False) -> dict:
    """What generate() says to each prompt alone."""
    processor = common.load_processor(spec)
    model = common.load_model(spec, "cpu", torch.float32)
    answers = {}
    for request, inputs in zip(asked, encoded(processor, asked)):
        out = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        new = out[0, inputs["input_ids"].shape[1] :].tolist()
        eos_ids = model.generation_config.eos_token_id if stops else []
        end = next((index for index, token in enumerate(new) if token in eos_ids), None)
        text = processor.tokenizer.decode(new[:end], skip_special_tokens=True).strip()
        answers |= {(request.row["id"], number): text for number in request.seeds}
    return answers


def only_texts(replies) -> dict:
    return {(reply.row["id"], reply.sample): reply.text for reply in replies}


@pytest.fixture
def stops_often(tiny_model, tmp_path):
    """A copy of a tiny model for which every n-th token ends a reply."""

    def copy(kind: str, n: int) -> str:
        shutil.copytree(tiny_model(kind), tmp_path / kind)
        path = tmp_path / kind / "generation_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [1, *range(20, 272, n)]}))
        return str(tmp_path / kind)

    return copy


# ---------------------------------------------------------------- equal to generate(), and the work


@pytest.mark.parametrize("kind", KINDS + MORE_KINDS)
def test_greedy_equals_generate_and_does_not_depend_on_the_batch(kind, tiny_model, problems, capsys):
    spec = str(tiny_model(kind))
    together = texts(open_tiny(spec), problems)
    assert "engine: shared prompts, 64 rows" in capsys.readouterr().out
    alone = texts(open_tiny(spec, batch_size=1), problems)
    assert together == alone and all(reason is None for _, _, reason in together.values())
    assert {key: text for key, (text, _, _) in together.items()} == generated(spec, requests(problems))


@pytest.mark.parametrize("kind", KINDS + MORE_KINDS)
def test_candidates_share_their_prompt(kind, stops_often, problems):
    """Greedy verdicts equal generate()'s where rows are refilled and replies stop early; and no token is
    computed twice.
    """
    spec, asked = stops_often(kind, 4), judgements(problems)
    generate = open_tiny(spec, batch_size=5)
    replies = list(generate(asked))
    assert only_texts(replies) == generated(spec, asked, stops=True)
    repeats_one_token = ("qwen2_vl", "internvl", "llava")
    assert len({reply.tokens for reply in replies}) > 1 or kind in repeats_one_token
    work = generate.work
    assert work["prompts"] == len(problems) and work["tails"] == len(asked)
    whole = sum(reply.prompt_tokens for reply in replies)
    shared = sum((len(asked) // len(problems) - 1) * length for length in shared_lengths(spec, asked))
    assert work["prompt_tokens"] + work["tail_tokens"] == whole - shared
    assert work["decode_rows"] == sum(reply.tokens - 1 for reply in replies)


def test_greedy_samples_of_one_prompt_are_decoded_once(stops_often, problems):
    """Candidates that are the same text, and several samples of a request: a reply each, equal ones."""
    spec = stops_often("qwen2_vl", 4)
    once, asked = judgements(problems), judgements(problems)
    for place, request in enumerate(judgements(problems)):
        twin = {k + 10: seed for k, seed in request.seeds.items()} | {k + 20: 7 for k in request.seeds}
        asked.insert(2 * place, replace(request, seeds=twin))
    generate = open_tiny(spec, batch_size=5)
    generate.logprobs = generate.decoder.logprobs = True
    expected = only_texts(generate(once))
    work = Counter(generate.work)
    generate.work.clear()
    replies = list(generate(asked))
    assert only_texts(replies) == {
        (row, number + more): text for (row, number), text in expected.items() for more in (0, 10, 20)
    }
    assert {reply.seed for reply in replies if reply.sample >= 20} == {7}
    probabilities = {(reply.row["id"], reply.sample): reply.token_logprobs for reply in replies}
    assert all(found == probabilities[row, k % 10] for (row, k), found in probabilities.items())
    assert generate.work["decode_rows"] == work["decode_rows"]
    assert generate.work["tails"] == work["tails"]
    assert len({reply.text for reply in open_tiny(spec, temperature=1.0)(asked)}) > len({*expected.values()})


def shared_lengths(spec: str, asked: list[Request]) -> list[int]:
    """Tokens that the prompts of each problem begin with."""
    prompts = {}
    for request, inputs in zip(asked, encoded(common.load_processor(spec), asked)):
        prompts.setdefault(request.row["id"], []).append(inputs["input_ids"][0].tolist())
    return [len(os.path.commonprefix(group)) for group in prompts.values()]


@pytest.mark.parametrize("kind", ["qwen2_vl", "idefics3"])
def test_a_prompt_is_read_once_for_all_samples(kind, tiny_model, problems):
    generate = open_tiny(tiny_model(kind), temperature=1.0)
    replies = list(generate(requests(problems, 6)))
    once = {reply.row["id"]: reply.prompt_tokens for reply in replies}
    inputs = encoded(common.load_processor(str(tiny_model(kind))), requests(problems))
    pixels = sum(len(each.get("pixel_values", ())) for each in inputs)
    assert generate.work["prompt_tokens"] + generate.work["tail_tokens"] == sum(once.values())
    # idefics3 pads its tiles within a batch
    assert generate.work["pixel_rows"] == pixels or kind == "idefics3"
    assert generate.work["decode_rows"] == sum(reply.tokens - 1 for reply in replies)


def test_prompts_are_read_by_a_token_budget(tiny_model, problems, monkeypatch):
    """No pass over several prompts has more padded tokens than PASS_TOKENS, and the texts are the same."""
    spec, asked, budget = str(tiny_model("qwen2_vl")), judgements(problems, 8), 150
    expected = said(open_tiny(spec)(asked))
    for module in (batching, decoder):
        monkeypatch.setattr(module, "PASS_TOKENS", budget)
    passes = []
    read, forward = Decoder.read, Decoder.forward

    def counted_read(self, inputs, keep):
        passes.append((len(inputs["input_ids"]), inputs["input_ids"].size))
        return read(self, inputs, keep)

    def counted_forward(self, first, tokens):
        passes.append((len(tokens), len(tokens) * max(map(len, tokens))))
        return forward(self, first, tokens)

    generate = open_tiny(spec)
    monkeypatch.setattr(Decoder, "read", counted_read)
    monkeypatch.setattr(Decoder, "forward", counted_forward)
    assert said(generate(asked)) == expected
    assert max(rows for rows, _ in passes) > 1
    assert all(size <= budget for rows, size in passes if rows > 1)
    assert generate.work["tails"] == len(asked)


# ---------------------------------------------------------------- the end of a turn


@pytest.mark.parametrize(
    "turn, end",
    [
        ("<user>{{ text }}<eos>\n", "<eos>"),  # Qwen and Idefics break the line behind it
        ("{{ role }}: {{ text }} ", None),  # LLaVA-1.5 writes no end
        ("{{ role }}: {{ text }}\n###", None),
        ("{{ role }}: {{ text | trim }}<end_of_utterance>", "<end_of_utterance>"),
        ("<user>{{ text }}\n<end_of_utterance><eos>", "<end_of_utterance>"),
        ("{{ role }}: <img></img>{{ text }}<eos>", "<eos>"),  # a thought that is not there
        ("{{ role }}: {{ text.split('</think>')[-1] }}<eos>\n", "<eos>"),
    ],
)
def test_the_token_that_ends_a_turn(turn, end):
    tokenizer = tiny.make_tokenizer()
    text = "{% for m in messages %}{% set role, text = m['role'], m['content'][0]['text'] %}" + turn
    tokenizer.chat_template = text + "{% endfor %}"

    def template(chat, **settings):
        return tokenizer.apply_chat_template(chat, tokenize=False, **settings)

    found = turn_end(SimpleNamespace(tokenizer=tokenizer, apply_chat_template=template))
    assert found == (end and tokenizer.convert_tokens_to_ids(end))


@pytest.mark.parametrize("kind", KINDS + MORE_KINDS)
def test_turns_end_alike_in_all_architectures(kind, tiny_model):
    assert turn_end(common.load_processor(str(tiny_model(kind)))) == tiny.SPECIAL.index("<eos>")


# ---------------------------------------------------------------- sampling


@pytest.mark.parametrize("kind", ["qwen2_vl", "idefics3"])
def test_samples_depend_on_their_seed_only(kind, stops_often, problems):
    spec = stops_often(kind, 12)
    many = texts(open_tiny(spec, temperature=1.0), problems, 4)
    refilled = texts(open_tiny(spec, temperature=1.0, batch_size=3), problems, 4)
    few = texts(open_tiny(spec, temperature=1.0, batch_size=4), problems[:1], 4)
    assert len({many["0", k][0] for k in range(4)}) > 1
    assert {finish for _, finish, _ in many.values()} == {"stop", "length"}
    assert many == refilled and few == {key: value for key, value in many.items() if key[0] == "0"}


@pytest.mark.parametrize(
    "kind, temperature", [("qwen2_vl", 0.0), *((kind, 1.0) for kind in KINDS + MORE_KINDS)]
)
def test_drafts_change_no_reply(kind, temperature, stops_often, problems, monkeypatch):
    """Right ones, wrong ones, two that begin alike, none, too long; several passes, few logits at once."""
    spec = stops_often(kind, 60 if temperature else 300)
    monkeypatch.setattr(batching.Batch, "join_twins", lambda self: self.samples)
    monkeypatch.setattr(PromptDataset, "draft_tokens", lambda self, drafts: [*map(json.loads, drafts)])

    def decoded(asked: list[Request]) -> tuple[dict, Counter]:
        model = open_tiny(spec, batch_size=5)
        model.decoder.logprobs = True
        found = {
            (sample.request.row["id"], sample.number): sample for sample in model.samples(asked, temperature)
        }
        return found, model.work

    whole, work = decoded(requests(problems, 4))
    assert work["draft_tokens"] == 0
    asked = []
    for request in requests(problems, 4):
        for number, seed in request.seeds.items():
            tokens = whole[request.row["id"], number].tokens
            wrong = [*tokens[:3], 1 + tokens[3] if len(tokens) > 3 else 1, 5, 6]
            kinds = [tokens], [wrong, tokens[:-1]], [tokens + [7] * 40], []
            drafts = tuple(map(json.dumps, kinds[(number + int(request.row["id"])) % 4]))
            asked.append(Request(request.row, request.messages, {number: seed}, drafts))
    for count in (decoder.DRAFT_LOGITS, 1):
        monkeypatch.setattr(decoder, "DRAFT_LOGITS", count)
        drafted, work = decoded(asked)
        assert work["draft_tokens"] >= work["draft_kept"] > 10
        assert drafted.keys() == whole.keys()
        for key, sample in whole.items():
            assert drafted[key].tokens == sample.tokens, key
            assert drafted[key].logprobs == pytest.approx(sample.logprobs, abs=1e-3)


@pytest.mark.parametrize(
    "guesses, read",
    [
        ([], []),
        ([None, None], []),
        ([[1, 2], [3]], [[1, 2], [3]]),
        ([[1, 2], None, None, None], [[1, 2], [], [], []]),
        ([[1, 2], None, None, None, None], []),  # one of five is too few
        ([[1, 2], [3], [], [], []], [[1], [3], [], [], []]),  # no pass is as wide as only one needs it
        ([[], [], None], [[], [], []]),  # where all drafts part they are followed again behind that
    ],
)
def test_drafts_are_read_as_far_as_a_quarter_of_the_rows_has_them(guesses, read):
    assert batching.worth_reading(guesses) == read


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of memory"), ValueError("odd shapes")])
def test_a_pass_over_drafts_that_fails_is_done_token_by_token(error, tiny_model, problems, monkeypatch):
    whole = texts(open_tiny(tiny_model("llava")), problems, 2)
    model, calls = open_tiny(tiny_model("llava")), []
    monkeypatch.setattr(PromptDataset, "draft_tokens", lambda self, drafts: [*map(json.loads, drafts)])
    drafts = tuple(f"[{first}, 7, 8]" for first in range(300))

    def fail(*_):
        calls.append(1)
        raise error

    monkeypatch.setattr(model.decoder, "read_guesses", fail)
    asked = [Request(one.row, one.messages, one.seeds, drafts) for one in requests(problems, 2)]
    assert said(model(asked)) == whole and calls


def test_the_temperature_of_a_call_replaces_that_of_the_flags(tiny_model, problems):
    spec = str(tiny_model("llava"))
    generate = open_tiny(spec, temperature=1.0, top_k=40, top_p=0.95)
    sampled = texts(generate, problems, 4)
    assert len({sampled["0", k][0] for k in range(4)}) > 1
    assert only_texts(generate(requests(problems), 0.0)) == generated(spec, requests(problems))
    assert texts(generate, problems, 4) == sampled


def test_sampled_tokens_follow_the_distribution(tiny_model):
    """First tokens of many samples, on both paths, against the model's own probabilities (chi-square, ten
    likeliest tokens and the rest); log-probabilities are those at temperature 1.
    """
    row = {"id": "a", "question": "x", "images": []}
    request = Request(row, solve_messages(row), {k: derive_seed("chi", k) for k in range(3000)})
    model, processor = common.load(str(tiny_model("qwen2_vl")))
    (inputs,) = encoded(processor, [request])
    logits = model(**inputs).logits[0, -1].float()
    local = LocalModel(model, processor, settings(batch_size=1000, max_tokens=1), logprobs=True)
    samples = sorted(local.samples([request], 0.7), key=lambda sample: sample.number)
    tokens = torch.tensor([sample.tokens for sample in samples])
    shared = tokens, torch.tensor([sample.logprobs for sample in samples])
    plain = decode_batch(model, inputs, [list(request.seeds.values())], 1, 0.7, settings())
    assert (plain[0] == shared[0]).all()
    for tokens, logprobs in (plain, shared):
        assert torch.allclose(logprobs[:, 0], logits.log_softmax(-1)[tokens[:, 0]], atol=1e-4)
        probability = (logits / 0.7).softmax(-1)
        top = probability.topk(10).indices
        seen = torch.stack([(tokens[:, 0] == token).sum() for token in top]).float()
        expected = probability[top] * 3000
        rest = 3000 - expected.sum()
        chi = (((seen - expected) ** 2 / expected).sum() + (3000 - seen.sum() - rest) ** 2 / rest).item()
        assert chi < 29.6  # 0.1 % of 10 degrees of freedom


def test_replies_carry_token_logprobs(tiny_model, problems):
    """On request, text and log-probability of each token; on both paths."""
    for kind in ("llava", "llava_sliding"):
        generate = opening.open_model(str(tiny_model(kind)), settings(), common.load, logprobs=True)
        for reply in generate(requests(problems)):
            assert len(reply.token_logprobs) == reply.tokens == 12
            assert all(isinstance(text, str) and value <= 0 for text, value in reply.token_logprobs)


def test_no_token_without_probability_is_drawn():
    """Where the cumulative sum rounds up, the last token with a probability is drawn, not the last token."""
    logits = torch.full((2, 8), -torch.inf)
    logits[:, 1:4] = torch.tensor([0.0, 1.0, 0.5])
    points = torch.tensor([[1.0], [0.0]])  # 1.0: what a number just below it times the sum is rounded to
    assert sampling.draw(logits, points).tolist() == [[3], [1]]


# ---------------------------------------------------------------- attention


@pytest.mark.parametrize("dtype, most", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_scores_are_fp32(dtype, most):
    """A step's attention with large key biases, as Qwen2's, against attention in fp64: scores that were
    rounded to bf16 would be off by more.
    """
    torch.manual_seed(0)
    rows, heads, kv_heads, width, prompt, own = 6, 8, 2, 32, 40, 9
    bias = 12 * torch.randn(1, kv_heads, 1, width)

    def keys(count: int, tokens: int) -> torch.Tensor:
        return (torch.randn(count, kv_heads, tokens, width) + bias).to(dtype)

    def values(count: int, tokens: int) -> torch.Tensor:
        return torch.randn(count, kv_heads, tokens, width).to(dtype)

    example = DynamicCache()
    example.update(keys(2, prompt), values(2, prompt), 0)
    cache = kv_cache.SharedKVCache(example, rows)
    cache.add_prompts(example, [prompt, prompt - 7], torch.tensor([[prompt], [prompt - 7]]))
    owners = [0, 1, 1, 0, 1, 1]
    cache.add_rows(0, owners)
    cache.begin_rows(0, rows, own)
    written = cache.update(keys(rows, own), values(rows, own), 0)
    lengths = torch.tensor([9, 3, 5, 1, 8, 2])
    cache.end_rows(0, lengths)
    now = cache.begin_step(rows)
    query = torch.randn(rows, heads, 1, width).to(dtype)
    new = keys(rows, 1), values(rows, 1)
    module = SimpleNamespace(layer_idx=0)
    out, _ = kv_cache.attend(module, query, *cache.update(*new, 0), now.mask)
    for row, (owner, length) in enumerate(zip(owners, lengths.tolist())):
        parts = []
        for prompts, fresh, one in zip((example.layers[0].keys, example.layers[0].values), written, new):
            start = 7 * owner  # prompt 1 has 7 tokens of padding on the left
            parts.append(torch.cat([prompts[owner, :, start:], fresh[row, :, :length], one[row]], 1).double())
        key, value = (part.repeat_interleave(heads // kv_heads, 0) for part in parts)
        weights = (query[row].double() @ key.transpose(1, 2) / width**0.5).softmax(-1)
        expected = (weights @ value)[:, 0]
        off = (out[row, 0].double() - expected).norm() / expected.norm()
        assert off < most


def test_the_mask_is_repeated_once_a_pass(tiny_model, problems, monkeypatch):
    made = []
    mask_of = kv_cache.PromptPass.mask_of

    def counted(self, heads):
        made.append((id(self), id(mask := mask_of(self, heads)), self))
        return mask

    monkeypatch.setattr(kv_cache.PromptPass, "mask_of", counted)
    texts(open_tiny(tiny_model("llava")), problems)
    passes = {number for number, _, _ in made}
    assert len(made) > len(passes) == len({(number, mask) for number, mask, _ in made})


def test_a_model_that_forgets_takes_the_plain_path(tiny_model, problems, capsys):
    """Through generate(), with the attention that was loaded."""
    spec = str(tiny_model("llava_sliding"))
    generate = open_tiny(spec)
    assert "engine: plain path, 64 rows (ValueError: not all its layers" in capsys.readouterr().out
    text = generate.decoder.model.config.get_text_config()
    assert text._attn_implementation == generate.decoder.model.config._attn_implementation == "sdpa"
    assert only_texts(generate(requests(problems))) == generated(spec, requests(problems))


def test_the_plain_path_decodes_batch_size_rows_at_most(tiny_model, problems, monkeypatch):
    spec, rows = str(tiny_model("llava_sliding")), []
    expected = texts(open_tiny(spec, temperature=1.0), problems, 7)
    generate = open_tiny(spec, temperature=1.0, batch_size=5)
    decode = type(generate.decoder).decode

    def counted(self, batch, temperature):
        rows.append(len(batch.samples))
        return decode(self, batch, temperature)

    monkeypatch.setattr(type(generate.decoder), "decode", counted)
    assert texts(generate, problems, 7) == expected
    assert max(rows) <= 5 and sum(rows) == 28


# ---------------------------------------------------------------- faults of rows


def test_a_batch_that_fails_in_the_model_is_halved(tiny_model, problems, monkeypatch):
    """The faulty problem alone becomes a record for each of its candidates."""
    read = Decoder.read

    def broken(self, inputs, keep):
        # of tiny llava: the problem with two images
        if "pixel_values" in inputs and len(inputs["pixel_values"]) > 1 and keep == 1:
            raise ValueError("no")
        return read(self, inputs, keep)

    monkeypatch.setattr(Decoder, "read", broken)
    replies = list(open_tiny(tiny_model("llava"))(judgements(problems)))
    assert len(replies) == 12
    assert sorted(reply.row["id"] for reply in replies if reply.finish == "error") == ["2"] * 3


def test_a_prompt_that_fails_behind_the_shared_tokens_is_a_record(tiny_model, problems, monkeypatch):
    """Of three candidates a prompt, one makes the model fail, and its twin gets the same error; the other
    samples are as without it.
    """
    spec, asked = str(tiny_model("llava")), judgements(problems)
    asked.append(replace(asked[5], seeds={9: 0}))
    expected = said(open_tiny(spec)(asked))
    generate = open_tiny(spec)
    forward = Decoder.forward

    def broken(self, first, tokens):
        samples = self.live[first : first + len(tokens)]
        if any(sample.request is asked[5] for sample in samples):
            raise IndexError("no")
        return forward(self, first, tokens)

    monkeypatch.setattr(Decoder, "forward", broken)
    found = said(generate(asked))
    for number in (asked[5].row["sample"], 9):
        key = asked[5].row["id"], number
        assert found.pop(key) == ("", "error", "IndexError: no")
        expected.pop(key)
    assert found == expected


def test_a_bad_image_is_a_record(tiny_model, problems, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(BAD_PNG)
    rows = [*problems, {"id": "bad", "question": "q", "images": [str(bad)]}]
    for kind in ("llava", "llava_sliding"):
        replies = texts(open_tiny(tiny_model(kind)), rows)
        assert replies["bad", 0][1] == "error" and replies["bad", 0][2]
        assert sum(finish == "error" for _, finish, _ in replies.values()) == 1


def test_a_prompt_longer_than_the_context_is_a_record(tiny_model, problems):
    rows = [*problems, {"id": "long", "question": "word " * 3000, "images": []}]
    for kind in ("llava", "llava_sliding"):
        replies = texts(open_tiny(tiny_model(kind)), rows)
        assert replies["long", 0][1] == "error" and "context" in replies["long", 0][2]
        assert sum(finish == "error" for _, finish, _ in replies.values()) == 1


def test_many_bad_rows_do_not_end_a_stage(tiny_model, problems, tmp_path):
    """An image is the row's own fault, however many there are in a row."""
    bad = tmp_path / "bad.png"
    bad.write_bytes(BAD_PNG)
    rows = [{"id": f"bad {k}", "question": "q", "images": [str(bad)]} for k in range(30)]
    for kind in ("llava", "llava_sliding"):
        replies = texts(open_tiny(tiny_model(kind)), [*problems, *rows])
        assert sum(finish == "error" for _, finish, _ in replies.values()) == 30


# ---------------------------------------------------------------- faults of the device


def many_requests(count: int) -> list[Request]:
    return requests([{"id": str(k), "question": f"{k} + 1 = ?", "images": []} for k in range(count)])


def fails_from(call: int, error: Exception, function):
    """`function`, which raises `error` from its `call`-th call on."""
    calls = []

    def failing(*args, **settings):
        calls.append(args)
        if len(calls) >= call:
            raise error
        return function(*args, **settings)

    return failing


OUT_OF_MEMORY = (torch.OutOfMemoryError("CUDA out of memory"), "--batch-size")
DEVICE_FAULTS = [
    OUT_OF_MEMORY,
    (RuntimeError("CUDA error: an illegal memory access was encountered"), "the device failed"),
]


@pytest.mark.parametrize("error, line", DEVICE_FAULTS)
@pytest.mark.parametrize("method", ["read", "forward", "next_logits"])
def test_a_device_that_fails_ends_the_stage(method, error, line, tiny_model, monkeypatch, capsys):
    """Reading what prompts share, reading the rest, a step: one line, exit code 1, no error rows."""
    generate = open_tiny(tiny_model("llava"), batch_size=8)
    capsys.readouterr()
    monkeypatch.setattr(Decoder, method, fails_from(5, error, getattr(Decoder, method)))
    replies = []
    with pytest.raises(SystemExit) as ended:
        replies.extend(generate(many_requests(80)))
    found = capsys.readouterr().err
    assert ended.value.code == 1 and line in found and found.count("\n") == 1
    assert all(reply.finish != "error" for reply in replies)


@pytest.mark.parametrize("error, line", DEVICE_FAULTS)
def test_a_device_that_fails_ends_the_plain_path_too(error, line, tiny_model, monkeypatch, capsys):
    generate = open_tiny(tiny_model("llava_sliding"), batch_size=8)
    model = generate.decoder.model
    monkeypatch.setattr(model, "generate", fails_from(3, error, model.generate))
    replies = []
    with pytest.raises(SystemExit) as ended:
        for reply in generate(many_requests(80)):
            replies.append(reply)
    assert ended.value.code == 1 and line in capsys.readouterr().err and len(replies) == 16


@pytest.mark.parametrize("kind, method", [("llava", "read"), ("llava", "forward"), ("llava_sliding", None)])
def test_a_model_that_always_fails_ends_the_stage(kind, method, tiny_model, monkeypatch, capsys):
    """20 prompts in a row that fail for whatever reason: no output full of errors."""
    generate = open_tiny(tiny_model(kind), batch_size=8)
    place, name = (Decoder, method) if method else (generate.decoder.model, "generate")
    monkeypatch.setattr(place, name, fails_from(5, ValueError("no"), getattr(place, name)))
    replies = []
    with pytest.raises(SystemExit) as ended:
        for reply in generate(many_requests(80)):
            replies.append(reply)
    assert ended.value.code == 1 and "20 prompts in a row" in capsys.readouterr().err
    assert 0 < sum(reply.finish == "error" for reply in replies) < 20


def test_memory_that_lacks_while_a_model_is_tried_ends_the_stage(tiny_model, monkeypatch, capsys):
    monkeypatch.setattr(Decoder, "read", fails_from(1, OUT_OF_MEMORY[0], Decoder.read))
    with pytest.raises(SystemExit) as ended:
        open_tiny(tiny_model("llava"))
    assert ended.value.code == 1 and "--batch-size" in capsys.readouterr().err


# ---------------------------------------------------------------- encoding ahead


def test_requests_are_read_lazily(tiny_model):
    """Only a bounded number of requests is read ahead, in the main process and in their order."""
    taken, window = [], 8 * batching.LOOK_AHEAD

    def asked():
        for request in many_requests(3 * window):
            taken.append(request.row["id"])
            yield request

    replies = open_tiny(tiny_model("llava"), batch_size=8, max_tokens=2)(asked())
    assert taken == []
    next(replies)
    assert len(taken) <= window
    assert taken == [str(k) for k in range(len(taken))]
    assert len(list(replies)) == 3 * window - 1 and len(taken) == 3 * window


def workers_of(monkeypatch, count: int) -> list[int]:
    """Let models encode in `count` workers; returns the process ids of those that will be started."""
    made = []

    class Watched(DataLoader):
        def _get_iterator(self):
            iterator = super()._get_iterator()
            made.extend(worker.pid for worker in getattr(iterator, "_workers", []))
            return iterator

    monkeypatch.setattr(torch.utils.data, "DataLoader", Watched)
    monkeypatch.setattr(opening, "worker_count", lambda device: count)
    return made


def test_workers_encode_the_same(tiny_model, problems, tmp_path, monkeypatch, capsys):
    """The same replies, an image that cannot be read included; and a worker that is killed ends the stage
    with a line.
    """
    spec, bad = str(tiny_model("idefics3")), tmp_path / "bad.png"
    bad.write_bytes(BAD_PNG)
    broken = {"id": "bad", "question": "q", "images": [str(bad)]}
    long = {"id": "long", "question": "word " * 3000, "images": []}
    asked = judgements([*problems, broken, long])
    here = said(open_tiny(spec)(asked))
    workers = workers_of(monkeypatch, 2)
    generate = open_tiny(spec, batch_size=8)
    apart = said(generate(asked))
    assert here == apart and len(workers) == 2
    assert [apart[name, 0][1] for name in ("0", "bad", "long")] == ["length", "error", "error"]
    replies = generate(judgements(problems, 60))
    next(replies)
    capsys.readouterr()
    os.kill(workers[-1], signal.SIGKILL)
    with pytest.raises(SystemExit) as ended:
        list(replies)
    found = capsys.readouterr().err
    assert ended.value.code == 1 and found.count("\n") == 1
    assert "error: a process that prepares images and prompts was ended" in found


def test_workers_hand_over_arrays(tiny_model, problems):
    """Tensors would need /dev/shm."""
    processor = common.load_processor(str(tiny_model("qwen2_vl")))
    dataset = PromptDataset(processor, settings(), 2048)
    (groups,) = gather(requests(problems), 64, alone=True)
    (batch,) = dataset[groups]
    assert batch.inputs and not any(isinstance(value, torch.Tensor) for value in batch.inputs.values())
    (batch,) = load_batches(dataset, iter([groups]), 0)
    inputs = batching.on_device(batch.inputs, torch.device("cpu"))
    assert isinstance(inputs["pixel_values"], torch.Tensor)


@pytest.mark.parametrize(
    "device, cores, world, count",
    [("cpu", 64, 1, 0), ("cuda", 64, 1, 4), ("cuda", 16, 8, 1), ("cuda", 1, 1, 0)],
)
def test_the_number_of_workers(device, cores, world, count, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(cores))
    monkeypatch.setenv("WORLD_SIZE", str(world))
    assert batching.worker_count(torch.device(device)) == count


ENDED = """
import argparse, signal, sys, time
import common
from mathse.chat import user_message
from mathse.generate import Request
from mathse.generate.batching import PromptDataset, gather, load_batches

def main():
    # a shell that runs the tests in the background ignores it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    args = argparse.Namespace(max_pixels=0, max_tokens=9)
    dataset = PromptDataset(common.load_processor(sys.argv[1]), args, 2048)
    rows = ({"id": str(index), "question": "x", "images": []} for index in range(10**7))
    requests = (Request(row, user_message("x", []), {0: 0}) for row in rows)
    for batch in load_batches(dataset, gather(requests, 64), 1):
        print("going", flush=True)
        time.sleep(60)

if __name__ == "__main__":
    main()
"""


def test_workers_end_with_their_parent(tiny_model, tmp_path):
    """Ctrl-C ends all with one traceback; a parent that is killed leaves none behind."""
    script = tmp_path / "ended.py"
    script.write_text(ENDED)
    command = [sys.executable, script, tiny_model("llava")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parents = [subprocess.Popen(command, env=environment, **pipes) for _ in range(2)]
    for parent in parents:
        assert parent.stdout.readline() == "going\n"
    time.sleep(1)  # what was asked for ahead is done: the workers wait
    os.killpg(parents[0].pid, signal.SIGINT)
    parents[1].kill()
    errors = [parent.communicate(timeout=60)[1] for parent in parents]
    assert [parent.returncode for parent in parents] == [-signal.SIGINT, -signal.SIGKILL]
    assert [error.count("Traceback") for error in errors] == [1, 0], errors[0]
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
