"""Local generation on tiny random models: seven architectures against transformers' generate()."""

import argparse
import json
import os
import shutil
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, DynamicCache

import common
from mathse.chat import chat_parts, encode_prompts, user_message
from mathse.generate import Request, engine, open_model
from mathse.generate.engine import Engine
from mathse.images import open_image
from mathse.records import derive_seed

KINDS = ["qwen2_vl", "internvl", "idefics3", "llava"]
MORE_KINDS = ["qwen2_5_vl", "qwen3_vl", "llava_onevision"]
BAD_PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 50


def settings(**changes) -> argparse.Namespace:
    values = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "max_tokens": 12, "max_pixels": 10_000}
    return argparse.Namespace(
        **values | {"batch_size": 64, "trust_remote_code": False, "serve": None} | changes
    )


def open_tiny(spec, **changes) -> Engine:
    return open_model(str(spec), settings(**changes), common.load)


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
        (2, "Which is larger, <image> or <image>, and why?"),
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
    assert "engine: 64 rows" in capsys.readouterr().out
    alone = texts(open_tiny(spec, batch_size=1), problems)
    assert together == alone and all(reason is None for _, _, reason in together.values())
    assert {key: text for key, (text, _, _) in together.items()} == generated(spec, requests(problems))


@pytest.mark.parametrize("kind", KINDS + MORE_KINDS)
def test_candidates_share_their_prompt(kind, stops_often, problems):
    """Greedy verdicts equal generate()'s where rows are refilled and replies stop early; and no token is
    computed twice: each row reads the last token of its prompt in its first step.
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
    assert work["prompt_tokens"] + work["tail_tokens"] + len(asked) == whole - shared
    assert work["decode_rows"] == sum(reply.tokens for reply in replies)


def test_greedy_samples_of_one_prompt_are_decoded_once(stops_often, problems):
    """Candidates that are the same text, and several samples of a request: a reply each, equal ones."""
    spec = stops_often("qwen2_vl", 4)
    once, asked = judgements(problems), judgements(problems)
    for place, request in enumerate(judgements(problems)):
        twin = {k + 10: seed for k, seed in request.seeds.items()} | {k + 20: 7 for k in request.seeds}
        asked.insert(2 * place, replace(request, seeds=twin))
    generate = open_tiny(spec, batch_size=5)
    expected = only_texts(generate(once))
    work = Counter(generate.work)
    generate.work.clear()
    replies = list(generate(asked))
    assert only_texts(replies) == {
        (row, number + more): text for (row, number), text in expected.items() for more in (0, 10, 20)
    }
    assert {reply.seed for reply in replies if reply.sample >= 20} == {7}
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
    assert generate.work["prompt_tokens"] + len(once) == sum(once.values()) and not generate.work["tails"]
    # idefics3 pads its tiles within a batch
    assert generate.work["pixel_rows"] == pixels or kind == "idefics3"
    assert generate.work["decode_rows"] == sum(reply.tokens for reply in replies)


def test_prompts_are_read_by_a_token_budget(tiny_model, problems, monkeypatch):
    """No pass over several prompts has more padded tokens than PASS_TOKENS, and the texts are the same."""
    spec, asked, budget = str(tiny_model("qwen2_vl")), judgements(problems, 8), 150
    expected = said(open_tiny(spec)(asked))
    monkeypatch.setattr(engine, "PASS_TOKENS", budget)
    passes = []
    read, forward = Engine.read, Engine.forward

    def counted_read(self, inputs, keep=1):
        passes.append((len(inputs["input_ids"]), inputs["input_ids"].numel()))
        return read(self, inputs, keep)

    def counted_forward(self, first, rows, tokens, *more):
        passes.append((len(tokens), len(tokens) * max(map(len, tokens))))
        return forward(self, first, rows, tokens, *more)

    generate = open_tiny(spec)
    monkeypatch.setattr(Engine, "read", counted_read)
    monkeypatch.setattr(Engine, "forward", counted_forward)
    assert said(generate(asked)) == expected
    assert max(rows for rows, _ in passes) > 1
    assert all(size <= budget for rows, size in passes if rows > 1)
    assert generate.work["tails"] == len(asked)


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


def decoded(generate: Engine, asked: list[Request], monkeypatch) -> dict:
    """The finished samples of requests."""
    monkeypatch.setattr(Engine, "replies", lambda self, sample: iter([sample]))
    found = {(sample.request.row["id"], sample.number): sample for sample in generate(asked)}
    monkeypatch.undo()
    return found


def test_sampled_tokens_follow_the_distribution(tiny_model, monkeypatch):
    """First tokens of many samples, in rows and by generate(), against the model's own probabilities
    (chi-square, ten likeliest tokens and the rest).
    """
    row = {"id": "a", "question": "x", "images": []}
    request = Request(row, solve_messages(row), {k: derive_seed("chi", k) for k in range(3000)})
    model, processor = common.load(str(tiny_model("qwen2_vl")))
    (inputs,) = encoded(processor, [request])
    logits = model(**inputs).logits[0, -1].float()
    generate = Engine(model, processor, settings(batch_size=1000, max_tokens=1, temperature=0.7))
    drawn = []
    for generate.why_not in ("", "tried"):
        samples = decoded(generate, [request], monkeypatch)
        drawn.append(torch.tensor([samples["a", number].tokens for number in request.seeds]))
    assert (drawn[0] == drawn[1]).all()
    probability = (logits / 0.7).softmax(-1)
    top = probability.topk(10).indices
    seen = torch.stack([(drawn[0][:, 0] == token).sum() for token in top]).float()
    expected = probability[top] * 3000
    rest = 3000 - expected.sum()
    chi = (((seen - expected) ** 2 / expected).sum() + (3000 - seen.sum() - rest) ** 2 / rest).item()
    assert chi < 29.6  # 0.1 % of 10 degrees of freedom


def test_no_token_without_probability_is_drawn():
    """Where the cumulative sum rounds up, the last token with a probability is drawn, not the last token."""
    logits = torch.full((2, 8), -torch.inf)
    logits[:, 1:4] = torch.tensor([0.0, 1.0, 0.5])
    points = torch.tensor([[1.0], [0.0]])  # 1.0: what a number just below it times the sum is rounded to
    assert engine.draw(logits, points).tolist() == [[3], [1]]


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
    cache = engine.Rows(example, rows)
    groups = [
        engine.Group([], shared=shared, behind=[shared], slot=slot) for slot, shared in enumerate((40, 33))
    ]
    for slot, group in enumerate(groups):
        cache.add_prompt(example, slot, group)
    owners = [0, 1, 1, 0, 1, 1]
    samples = [engine.Sample(None, 0, groups[owner]) for owner in owners]
    cache.begin(0, samples, [0] * rows, own)
    written = cache.update(keys(rows, own), values(rows, own), 0)
    lengths = [9, 3, 5, 1, 8, 2]
    now = cache.begin(0, samples, lengths, 1)
    query = torch.randn(rows, heads, 1, width).to(dtype)
    new = keys(rows, 1), values(rows, 1)
    module = SimpleNamespace(layer_idx=0)
    out, _ = engine.attend(module, query, *cache.update(*new, 0), now.mask)
    for row, (owner, length) in enumerate(zip(owners, lengths)):
        parts = []
        for prompts, fresh, one in zip((example.layers[0].keys, example.layers[0].values), written, new):
            start = 7 * owner  # prompt 1 has 7 tokens of padding on the left
            parts.append(torch.cat([prompts[owner, :, start:], fresh[row, :, :length], one[row]], 1).double())
        key, value = (part.repeat_interleave(heads // kv_heads, 0) for part in parts)
        weights = (query[row].double() @ key.transpose(1, 2) / width**0.5).softmax(-1)
        expected = (weights @ value)[:, 0]
        off = (out[row, 0].double() - expected).norm() / expected.norm()
        assert off < most


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_scores_on_a_gpu_need_no_copy_of_the_keys():
    query, key = (torch.randn(8, 2, n, 64, device="cuda").bfloat16() for n in (3, 4096))
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    found = engine.products(query, key[:, :, :4000])
    assert torch.cuda.max_memory_allocated() - before < key.nbytes / 2 and found.dtype == torch.float32
    expected = query.double() @ key[:, :, :4000].double().transpose(2, 3)
    assert engine.relative(found.double(), expected) < 1e-5


def deep_model(folder, init: float, dtype=torch.bfloat16):
    """A Qwen2-VL of 28 layers."""
    spec = str(tiny.make_model("qwen2_vl", folder))
    config = common.load_model(spec, "cpu", torch.float32).config
    text = config.get_text_config()
    text.num_hidden_layers, text.initializer_range = 28, init
    text.layer_types = ["full_attention"] * 28
    text.hidden_size = config.vision_config.hidden_size = 128
    text.rope_parameters["mrope_section"] = [4, 6, 6]
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(config, dtype=dtype).eval(), spec


@pytest.mark.parametrize("init", [0.02, 0.15])
def test_a_deep_model_in_bf16_is_held(init, tmp_path, capsys):
    """What its own rounding does is no fault of the rows."""
    model, spec = deep_model(tmp_path, init)
    Engine(model, common.load_processor(spec), settings())
    assert "engine: 64 rows" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_rows_change_is_not_held(dtype, tmp_path, monkeypatch, capsys):
    """As one that does not attend to all of its prompt."""
    begin = engine.Rows.begin

    def forgetful(self, *passed):
        now = begin(self, *passed)
        now.mask[..., : now.shared // 2] = -torch.inf
        return now

    monkeypatch.setattr(engine.Rows, "begin", forgetful)
    model, spec = deep_model(tmp_path, 0.15, dtype)
    Engine(model, common.load_processor(spec), settings())
    assert "one request at a time by generate() (in rows its logits" in capsys.readouterr().out


def test_a_model_that_forgets_is_decoded_by_generate(tiny_model, problems, capsys):
    """With the attention that was loaded, and a line says so."""
    spec = str(tiny_model("llava_sliding"))
    generate = open_tiny(spec)
    assert "by generate() (not all its layers" in (printed := capsys.readouterr().out)
    assert "--serve is faster" in printed
    text = generate.model.config.get_text_config()
    assert text._attn_implementation == generate.model.config._attn_implementation == "sdpa"
    assert only_texts(generate(requests(problems))) == generated(spec, requests(problems))


def test_no_neighbour_cuts_a_reply(tiny_model, problems):
    """Beside a prompt that leaves room for four tokens others have all of theirs."""
    spec = str(tiny_model("llava_sliding"))
    processor = common.load_processor(spec)
    (bare,) = encoded(processor, requests([{"id": "long", "question": "", "images": []}]))
    question = "a" * (2048 - 4 - bare["input_ids"].shape[1])
    for kind in ("llava", "llava_sliding"):
        replies = open_tiny(tiny_model(kind))(
            requests([{"id": "long", "question": question, "images": []}, *problems])
        )
        assert {reply.row["id"]: reply.tokens for reply in replies} == {
            "long": 4, "0": 12, "1": 12, "2": 12, "3": 12
        }  # fmt: skip


def test_generate_decodes_batch_size_rows_at_most(tiny_model, problems, monkeypatch):
    spec, rows = str(tiny_model("llava_sliding")), []
    expected = texts(open_tiny(spec, temperature=1.0), problems, 7)
    assert len({expected["0", k][0] for k in range(7)}) > 1
    generate = open_tiny(spec, temperature=1.0, batch_size=5)
    own = generate.model.generate

    def counted(**inputs):
        rows.append(inputs["num_return_sequences"])
        return own(**inputs)

    monkeypatch.setattr(generate.model, "generate", counted)
    assert texts(generate, problems, 7) == expected
    assert max(rows) <= 5 and sum(rows) == 28


# ---------------------------------------------------------------- the end of a reply


def test_a_reply_ends_with_the_template_s_turn(tiny_model, problems, tmp_path):
    """Also where tokenizer and generation_config name another token; a token that none names ends nothing."""
    spec = shutil.copytree(tiny_model("qwen2_vl"), tmp_path / "model")
    template = spec / "chat_template.jinja"
    template.write_text(template.read_text().replace("<eos>", "<end_of_utterance>"))
    generate = open_tiny(spec)
    assert generate.eos_ids == {tiny.SPECIAL.index(name) for name in ("<eos>", "<end_of_utterance>")}
    assert generate.model.generation_config.eos_token_id == sorted(generate.eos_ids)


@pytest.mark.parametrize("turn, own", [("", None), ("<eos>", None), ("", 1)])
def test_a_tokenizer_without_eos(turn, own, tiny_model, problems, tmp_path, capsys):
    """If neither the template's turns nor generation_config.json name an end: one line."""
    spec = shutil.copytree(tiny_model("qwen2_vl"), tmp_path / "model")
    for name, change in (
        ("tokenizer_config.json", {"eos_token": None, "pad_token": None}),
        ("generation_config.json", {"eos_token_id": own}),
        ("special_tokens_map.json", {"eos_token": None, "pad_token": None}),
    ):
        if (path := spec / name).exists():
            path.write_text(json.dumps(json.loads(path.read_text()) | change))
    template = spec / "chat_template.jinja"
    template.write_text(template.read_text().replace("<eos>", turn))
    if turn or own:
        assert len(texts(open_tiny(spec), problems)) == 4
        return
    with pytest.raises(SystemExit) as ended:
        open_tiny(spec)
    found = capsys.readouterr().err
    assert ended.value.code == 2 and found.count("\n") == 1 and "name the eos_token" in found


# ---------------------------------------------------------------- faults of rows


def test_of_a_batch_that_fails_in_the_model_only_the_faulty_problem_fails(tiny_model, problems, monkeypatch):
    """It becomes a record for each of its candidates."""
    read, generate = Engine.read, open_tiny(tiny_model("llava"))

    def broken(self, inputs, keep=1):
        # of tiny llava: the problem with two images
        if "pixel_values" in inputs and len(inputs["pixel_values"]) > 1:
            raise ValueError("no")
        return read(self, inputs, keep)

    monkeypatch.setattr(Engine, "read", broken)
    replies = list(generate(judgements(problems)))
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
    forward = Engine.forward

    def broken(self, first, rows, tokens, *more):
        if any(sample.request is asked[5] for sample in rows):
            raise IndexError("no")
        return forward(self, first, rows, tokens, *more)

    monkeypatch.setattr(Engine, "forward", broken)
    found = said(generate(asked))
    for number in (asked[5].row["sample"], 9):
        key = asked[5].row["id"], number
        assert found.pop(key) == ("", "error", "IndexError: no")
        expected.pop(key)
    assert found == expected


def test_a_candidate_that_is_too_long_is_a_record(tiny_model, problems):
    """The others of its problem are as without it."""
    spec, asked = str(tiny_model("llava")), judgements(problems)
    expected = said(open_tiny(spec)(asked))
    row = problems[0] | {"sample": 9, "response": "long " * 500}
    for place in (0, 5):  # the first of its problem, and not
        long = [*asked[:place], Request(row, judge_messages(row), {9: 0}), *asked[place:]]
        found = said(open_tiny(spec)(long))
        text, finish, reason = found.pop(("0", 9))
        assert (text, finish) == ("", "error") and "in a context of 2048" in reason
        assert found == expected


@pytest.mark.parametrize("kind", ["llava", "llava_sliding"])
@pytest.mark.parametrize("fault", ["bad image", "long text"])
def test_bad_rows_are_records_however_many(fault, kind, tiny_model, problems, tmp_path):
    """An image, or a text, is the row's own fault: it ends no stage."""
    (tmp_path / "bad.png").write_bytes(BAD_PNG)
    question, images = ("q", [str(tmp_path / "bad.png")]) if fault == "bad image" else ("word " * 3000, [])
    rows = [{"id": f"bad {k}", "question": question, "images": images} for k in range(30)]
    replies = texts(open_tiny(tiny_model(kind)), [*problems, *rows])
    failed = {name: reason for (name, _), (_, finish, reason) in replies.items() if finish == "error"}
    assert failed.keys() == {row["id"] for row in rows}
    assert all(fault == "bad image" or "in a context of 2048" in reason for reason in failed.values())


# ---------------------------------------------------------------- faults of the device


def many_requests(count: int) -> list[Request]:
    return requests([{"id": str(k), "question": f"{k} + 1 = ?", "images": []} for k in range(count)])


def judge_requests(count: int) -> list[Request]:
    rows = [{"id": str(k // 4), "question": "1 + 1 = ?", "images": [], "sample": k} for k in range(count)]
    rows = [row | {"response": f"It is {row['sample']}"} for row in rows]
    return [Request(row, judge_messages(row), {0: 0}) for row in rows]


def fails_from(call: int, error: Exception, function, of=lambda *_: True):
    """`function`, which raises `error` from its `call`-th call on, of those that are meant."""
    calls = []

    def failing(*args, **settings):
        calls.extend([args] * of(*args))
        if len(calls) >= call and of(*args):
            raise error
        return function(*args, **settings)

    return failing


ERRORS = {  # and how the stage ends
    "memory": (torch.OutOfMemoryError("CUDA out of memory"), "--batch-size"),
    "device": (RuntimeError("CUDA error: an illegal memory access was encountered"), "the device failed"),
    "always": (ValueError("no"), "20 prompts in a row"),  # no output full of errors
}
PLACES = {  # what fails: the model, whose part it is, its name, what is asked
    "encoding": ("llava", engine, "encode_groups", many_requests),
    "what prompts share": ("llava", Engine, "read", many_requests),
    "the rest of prompts": ("llava", Engine, "forward", judge_requests),
    "a step": ("llava", Engine, "forward", many_requests),
    "generate()": ("llava_sliding", None, "generate", many_requests),
}
FAULTS = [(place, fault) for place in PLACES for fault in ERRORS if (place, fault) != ("a step", "always")]


@pytest.mark.parametrize("place, fault", FAULTS)
def test_what_is_no_rows_fault_ends_the_stage(place, fault, tiny_model, monkeypatch, capsys):
    """One line, exit code 1; what was answered before is kept; a device's fault makes no error row."""
    (kind, owner, name, asked), (error, words) = PLACES[place], ERRORS[fault]
    generate = open_tiny(tiny_model(kind), batch_size=8)
    owner, replies = owner or generate.model, []
    capsys.readouterr()
    of = {"of": lambda *passed: not any(passed[-1])} if place == "the rest of prompts" else {}
    monkeypatch.setattr(owner, name, fails_from(2, error, getattr(owner, name), **of))
    with pytest.raises(SystemExit) as ended:
        replies.extend(generate(asked(80)))
    printed = capsys.readouterr().err
    assert ended.value.code == 1 and words in printed and printed.count("\n") == 1
    failed = sum(reply.finish == "error" for reply in replies)
    assert 0 < failed < 80 if fault == "always" else not failed
    assert len(replies) > failed or place not in ("the rest of prompts", "generate()")


def test_memory_that_lacks_while_a_model_is_tried_ends_the_stage(tiny_model, monkeypatch, capsys):
    error, words = ERRORS["memory"]
    monkeypatch.setattr(Engine, "read", fails_from(1, error, Engine.read))
    with pytest.raises(SystemExit) as ended:
        open_tiny(tiny_model("llava"))
    assert ended.value.code == 1 and words in capsys.readouterr().err


# ---------------------------------------------------------------- encoding


def test_requests_are_read_lazily(tiny_model):
    """Only a bounded number of requests is read ahead, in the main process and in their order."""
    taken, window = [], 8 * engine.WINDOW

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
