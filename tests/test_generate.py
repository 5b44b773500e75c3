"""Local generation on tiny random models: seven architectures against transformers' generate()."""

import os
import shutil
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny
import torch
from PIL import Image
from tiny import open_engine
from transformers import AutoModelForImageTextToText, DynamicCache

import common
from mathse.chat import chat_parts, encode_prompts, user_message
from mathse.generate import Request, engine
from mathse.generate.engine import Engine
from mathse.images import open_image
from mathse.launch import stage_end
from mathse.records import derive_seed

KINDS = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "idefics3", "llava", "llava_onevision"]
BAD_PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 50
EOS, EOU = tiny.IDS["<eos>"], tiny.IDS["<end_of_utterance>"]


def problem(name: object, question: str, *images: str) -> dict:
    return {"id": str(name), "question": question, "images": [*images]}


@pytest.fixture(scope="module")
def problems(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("images")

    def image(index: int, number: int = 0) -> str:
        path = folder / f"{index}_{number}.png"
        Image.effect_noise((40 + 9 * index, 30), 90).convert("RGB").save(path)
        return str(path)

    return [
        problem(0, "How many?", image(0)),
        problem(1, "1 + 1 = ?"),
        problem(2, "Which is larger, <image> or <image>, and why?", image(2), image(2, 1)),
        problem(3, "x", image(3)),
    ]


def requests(rows: list[dict], samples: int = 1) -> list[Request]:
    made = []
    for row in rows:
        seeds = {k: derive_seed(0, row["id"], k) for k in range(samples)}
        made.append(Request(row, user_message(common.solve_prompt(row), row["images"]), seeds))
    return made


def judgement(row: dict, number: int, response: str) -> Request:
    """A judge's prompt: the candidate stands behind what is the same for all candidates of a problem."""
    prompt = f"Problem: {row['question']}\n\nSolution: {response}\n\nIs each step right? Say yes or no."
    seeds = {number: derive_seed(row["id"], number)}
    return Request(row | {"sample": number}, user_message(prompt, row["images"]), seeds)


def judgements(rows: list[dict], candidates: int = 3) -> list[Request]:
    """Candidates of each problem, in an order that tears problems apart."""
    return [judgement(row, k, f"It is {'so ' * (2 * k)}{k}") for k in range(candidates) for row in rows]


def encoded(processor, asked: list[Request]) -> list[dict]:
    """The inputs of each request alone."""
    inputs = []
    for request in asked:
        images = [open_image(path, 10_000) for path in request.row["images"]]
        inputs.append(encode_prompts(processor, [chat_parts(request.messages, images)]))
    return inputs


def generated(spec: str, asked: list[Request]) -> dict:
    """What generate() says to each prompt alone."""
    processor = common.load_processor(spec)
    model = common.load_model(spec, "cpu", torch.float32)
    ends = model.generation_config.eos_token_id
    ends, answers = ends if isinstance(ends, list) else [ends], {}
    for request, inputs in zip(asked, encoded(processor, asked)):
        out = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        new = out[0, inputs["input_ids"].shape[1] :].tolist()
        end = next((index for index, token in enumerate(new) if token in ends), None)
        text = processor.tokenizer.decode(new[:end], skip_special_tokens=True).strip()
        answers |= {(request.row["id"], number): text for number in request.seeds}
    return answers


def by_key(replies) -> dict:
    return {(reply.row["id"], reply.sample): reply for reply in replies}


def texts(replies) -> dict:
    return {key: reply.text for key, reply in by_key(replies).items()}


@pytest.fixture
def stops_often(tiny_model, tmp_path):
    """A copy of a tiny model for which every n-th token ends a reply."""

    def copy(kind: str, n: int) -> str:
        shutil.copytree(tiny_model(kind), tmp_path / kind)
        tiny.edit(tmp_path / kind / "generation_config.json", eos_token_id=[EOS, *range(20, 272, n)])
        return str(tmp_path / kind)

    return copy


# ---------------------------------------------------------------- equal to generate(), and the work


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_replies_are_those_of_generate(kind, stops_often, problems, capsys):
    """To prompts read together and apart, and to candidates that share their prompt, where rows are refilled
    and replies stop early; and no token is computed twice: each row reads the last token of its prompt in its
    first step.
    """
    spec, asked, apart = stops_often(kind, 4), judgements(problems), requests(problems)
    generate = open_engine(spec, batch_size=5)
    assert "engine: 5 rows" in capsys.readouterr().out
    replies = [*generate(asked)]
    assert texts(replies) == generated(spec, asked)
    repeats_one_token = ("qwen2_vl", "internvl", "llava")
    assert len({reply.tokens for reply in replies}) > 1 or kind in repeats_one_token
    work = generate.work
    assert work["prompts"] == len(problems) and work["tails"] == len(asked)
    whole = sum(reply.prompt_tokens for reply in replies)
    shared = sum((len(asked) // len(problems) - 1) * length for length in shared_lengths(spec, asked))
    assert work["prompt_tokens"] + work["tail_tokens"] + len(asked) == whole - shared
    assert work["decode_rows"] == sum(reply.tokens for reply in replies)
    assert by_key(generate(apart)) == by_key(open_engine(spec)(apart))
    assert texts(generate(apart)) == generated(spec, apart)


def shared_lengths(spec: str, asked: list[Request]) -> list[int]:
    """Tokens that the prompts of each problem begin with."""
    prompts = {}
    for request, inputs in zip(asked, encoded(common.load_processor(spec), asked)):
        prompts.setdefault(request.row["id"], []).append(inputs["input_ids"][0].tolist())
    return [len(os.path.commonprefix(group)) for group in prompts.values()]


def test_greedy_samples_of_one_prompt_are_decoded_once(stops_often, problems):
    """Candidates that are the same text, and several samples of a request: a reply each, equal ones."""
    spec, once = stops_often("qwen2_vl", 4), judgements(problems)
    twins = [replace(request, seeds={k + 10: 3, k + 20: 7}) for request in once for k in request.seeds]
    asked = [request for pair in zip(twins, once) for request in pair]
    generate = open_engine(spec, batch_size=5)
    expected = texts(generate(once))
    work = Counter(generate.work)
    generate.work.clear()
    found = by_key(generate(asked))
    assert {key: reply.text for key, reply in found.items()} == {
        (row, number + more): text for (row, number), text in expected.items() for more in (0, 10, 20)
    }
    assert {reply.seed for (_, number), reply in found.items() if number >= 20} == {7}
    assert [generate.work[name] for name in ("decode_rows", "tails")] == [work["decode_rows"], work["tails"]]
    drawn = {reply.text for reply in open_engine(spec, temperature=1.0)(asked)}
    assert len(drawn) > len({*expected.values()})


def test_prompts_are_read_by_a_token_budget(tiny_model, problems, monkeypatch):
    """No pass over several prompts has more padded tokens than PASS_TOKENS, and the texts are the same."""
    generate, asked, budget = open_engine(tiny_model("qwen2_vl")), judgements(problems, 8), 150
    expected, passes = by_key(generate(asked)), []  # (prompts, padded tokens of each)
    generate.work.clear()
    read, forward = generate.read, generate.forward

    def counted_read(inputs, *more):
        passes.append(inputs["input_ids"].shape)
        return read(inputs, *more)

    def counted_forward(first, rows, tokens, *more):
        passes.append((len(tokens), max(map(len, tokens))))
        return forward(first, rows, tokens, *more)

    monkeypatch.setattr(engine, "PASS_TOKENS", budget)
    monkeypatch.setattr(generate, "read", counted_read)
    monkeypatch.setattr(generate, "forward", counted_forward)
    assert by_key(generate(asked)) == expected and generate.work["tails"] == len(asked)
    assert max(rows for rows, _ in passes) > 1
    assert all(rows * width <= budget for rows, width in passes if rows > 1)


# ---------------------------------------------------------------- sampling


@pytest.mark.parametrize("kind", ["qwen2_vl", "idefics3"])
def test_samples_share_their_prompt_and_depend_on_their_seed_only(kind, stops_often, problems):
    spec, asked = stops_often(kind, 12), requests(problems, 4)
    generate = open_engine(spec, temperature=1.0)
    replies = [*generate(asked)]
    many, once = by_key(replies), {reply.row["id"]: reply.prompt_tokens for reply in replies}
    work = generate.work
    assert work["prompt_tokens"] + len(once) == sum(once.values()) and not work["tails"]
    assert work["decode_rows"] == sum(reply.tokens for reply in replies)
    pixels = sum(len(inputs.get("pixel_values", ())) for inputs in encoded(generate.processor, asked))
    assert work["pixel_rows"] == pixels or kind == "idefics3"  # which pads its tiles within a batch
    assert len({many["0", k].text for k in range(4)}) > 1
    assert {reply.finish for reply in replies} == {"stop", "length"}
    assert many == by_key(open_engine(spec, temperature=1.0, batch_size=3)(asked))
    few = by_key(open_engine(spec, temperature=1.0, batch_size=4)(asked[:1]))
    assert len(few) == 4 and few.items() <= many.items()


def test_sampled_tokens_follow_the_distribution(tiny_model, monkeypatch):
    """First tokens of many samples, in rows and by generate(), against the model's own probabilities
    (chi-square, ten likeliest tokens and the rest).
    """
    (request,) = requests([problem("a", "x")], 3000)
    model, processor = common.load(str(tiny_model("qwen2_vl")))
    (inputs,) = encoded(processor, [request])
    logits = model(**inputs).logits[0, -1].float()
    generate, drawn = Engine(model, processor, tiny.flags(batch_size=1000, max_tokens=1, temperature=0.7)), []
    monkeypatch.setattr(generate, "replies", lambda sample: [sample])
    for generate.why_not in ("", "tried"):
        samples = {sample.number: sample.tokens for sample in generate([request])}
        drawn.append(torch.tensor([samples[number] for number in request.seeds]))
    assert (drawn[0] == drawn[1]).all()
    expected = 3000 * (logits / 0.7).softmax(-1)
    top = expected.topk(10).indices
    counts = drawn[0].flatten().bincount(minlength=len(expected)).float()
    parts = [torch.cat([part[top], 3000 - part[top].sum(0, keepdim=True)]) for part in (counts, expected)]
    chi = ((parts[0] - parts[1]) ** 2 / parts[1]).sum().item()
    assert chi < 29.6  # 0.1 % of 10 degrees of freedom


def test_no_token_without_probability_is_drawn():
    """Where the cumulative sum rounds up, the last token with a probability is drawn, not the last token."""
    logits = torch.full((2, 8), -torch.inf)
    logits[:, 1:4] = torch.tensor([0.0, 1.0, 0.5])
    points = torch.tensor([[1.0], [0.0]])  # 1.0: what a number just below it times the sum is rounded to
    assert engine.draw(logits, points).tolist() == [[3], [1]]


# ---------------------------------------------------------------- attention


def test_scores_are_fp32():
    """A step's attention in bf16 with large key biases, as Qwen2's, against one in fp64: scores that were
    rounded to bf16 would be off by more.
    """
    torch.manual_seed(0)
    heads, kv_heads, width = 8, 2, 32
    bias = 12 * torch.randn(1, kv_heads, 1, width)

    def keys_and_values(count: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = torch.randn(2, count, kv_heads, tokens, width)
        return (keys + bias).bfloat16(), values.bfloat16()

    example, groups = DynamicCache(), []
    example.update(*keys_and_values(2, 40), 0)
    owners, lengths = [0, 1, 1, 0, 1, 1], [9, 3, 5, 1, 8, 2]
    cache = engine.Rows(example, len(owners))
    for slot, shared in enumerate((40, 33)):  # prompt 1 has 7 tokens of padding on the left
        groups.append(engine.Group([], shared=shared, behind=[shared], slot=slot))
        cache.add_prompt(example, slot, groups[slot])
    samples = [engine.Sample(None, 0, groups[owner]) for owner in owners]
    cache.begin(0, samples, [0] * 6, 9)
    written = cache.update(*keys_and_values(6, 9), 0)
    now, new = cache.begin(0, samples, lengths, 1), keys_and_values(6, 1)
    query = torch.randn(6, heads, 1, width).bfloat16()
    out, _ = engine.attend(SimpleNamespace(layer_idx=0), query, *cache.update(*new, 0), now.mask)
    prompts = example.layers[0].keys, example.layers[0].values
    for row, (owner, length) in enumerate(zip(owners, lengths)):
        read = [
            torch.cat([prompt[owner, :, 7 * owner :], own[row, :, :length], one[row]], 1).double()
            for prompt, own, one in zip(prompts, written, new)
        ]
        key, value = (part.repeat_interleave(heads // kv_heads, 0) for part in read)
        weights = (query[row].double() @ key.transpose(1, 2) / width**0.5).softmax(-1)
        assert engine.relative(out[row, 0].double(), (weights @ value)[:, 0]) < 1e-2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_scores_on_a_gpu_need_no_copy_of_the_keys():
    query, key = (torch.randn(8, 2, n, 64, device="cuda").bfloat16() for n in (3, 4096))
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    found = engine.products(query, key[:, :, :4000])
    assert torch.cuda.max_memory_allocated() - before < key.nbytes / 2 and found.dtype == torch.float32
    expected = query.double() @ key[:, :, :4000].double().transpose(2, 3)
    assert engine.relative(found.double(), expected) < 1e-5


# ---------------------------------------------------------------- which models are decoded in rows


def deep_model(spec: str, init: float, dtype: torch.dtype):
    """A Qwen2-VL of 28 layers."""
    config = common.load_model(spec, "cpu", torch.float32).config
    text = config.get_text_config()
    text.num_hidden_layers, text.initializer_range = 28, init
    text.layer_types = ["full_attention"] * 28
    text.hidden_size = config.vision_config.hidden_size = 128
    text.rope_parameters["mrope_section"] = [4, 6, 6]
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()


@pytest.mark.parametrize(
    "forgets, init, dtype",
    [(False, 0.02, "bfloat16"), (False, 0.15, "bfloat16"), (True, 0.15, "bfloat16"), (True, 0.15, "float32")],
)
def test_a_deep_model_is_held_unless_rows_change_it(forgets, init, dtype, tiny_model, monkeypatch, capsys):
    """What its own rounding does is no fault of the rows; not to attend to all of the prompt is."""
    begin, spec = engine.Rows.begin, str(tiny_model("qwen2_vl"))

    def forgetful(self, *passed):
        now = begin(self, *passed)
        now.mask[..., : now.shared // 2] = -torch.inf
        return now

    if forgets:
        monkeypatch.setattr(engine.Rows, "begin", forgetful)
    model = deep_model(spec, init, getattr(torch, dtype))
    Engine(model, common.load_processor(spec), tiny.flags())
    expected = "one request at a time by generate() (in rows its logits" if forgets else "engine: 64 rows"
    assert expected in capsys.readouterr().out


def test_a_model_that_forgets_is_decoded_by_generate(tiny_model, problems, capsys, monkeypatch):
    """With the attention that was loaded, --batch-size rows at most, and a line says so."""
    spec, asked = str(tiny_model("llava_sliding")), requests(problems, 7)
    generate = open_engine(spec)
    printed = capsys.readouterr().out
    assert "by generate() (not all its layers" in printed and "--serve is faster" in printed
    text = generate.model.config.get_text_config()
    assert text._attn_implementation == generate.model.config._attn_implementation == "sdpa"
    assert texts(generate(asked)) == generated(spec, asked)
    expected = by_key(open_engine(spec, temperature=1.0)(asked))
    assert len({expected["0", k].text for k in range(7)}) > 1
    generate, rows = open_engine(spec, temperature=1.0, batch_size=5), []
    own = generate.model.generate

    def counted(**inputs):
        rows.append(inputs["num_return_sequences"])
        return own(**inputs)

    monkeypatch.setattr(generate.model, "generate", counted)
    assert by_key(generate(asked)) == expected
    assert max(rows) <= 5 and sum(rows) == 28


@pytest.mark.parametrize("kind", ["llava", "llava_sliding"])
def test_no_neighbour_cuts_a_reply(kind, tiny_model, problems):
    """Beside a prompt that leaves room for four tokens others have all of theirs."""
    generate = open_engine(tiny_model(kind))
    (bare,) = encoded(generate.processor, requests([problem("long", "")]))
    long = problem("long", "a" * (2048 - 4 - bare["input_ids"].shape[1]))
    tokens = {reply.row["id"]: reply.tokens for reply in generate(requests([long, *problems]))}
    assert tokens == {"long": 4} | {row["id"]: 12 for row in problems}


@pytest.mark.parametrize(
    "turn, eos, own, ends",
    [
        ("<end_of_utterance>", "<eos>", EOS, [EOS, EOU]),
        ("<eos>", None, None, [EOS]),
        ("", None, EOS, [EOS]),
        ("", None, None, []),
    ],
)
def test_what_ends_a_reply(turn, eos, own, ends, tiny_model, problems, tmp_path, capsys):
    """What the template's turns end with, the tokenizer or generation_config.json names; else one line."""
    spec = shutil.copytree(tiny_model("qwen2_vl"), tmp_path / "model")
    tiny.edit(spec / "generation_config.json", eos_token_id=own)
    for path in (spec / "tokenizer_config.json", spec / "special_tokens_map.json"):
        if path.exists():
            tiny.edit(path, eos_token=eos, pad_token=eos)
    template = spec / "chat_template.jinja"
    template.write_text(template.read_text().replace("<eos>", turn))
    if ends:
        generate = open_engine(spec)
        assert sorted(generate.eos_ids) == generate.model.generation_config.eos_token_id == ends
        assert len(texts(generate(requests(problems)))) == 4
        return
    with pytest.raises(SystemExit, match="2"):
        open_engine(spec)
    found = capsys.readouterr().err
    assert found.count("\n") == 1 and "name the eos_token" in found


# ---------------------------------------------------------------- faults of rows


def fails_from(call: int, error: Exception, function, of=lambda *_: True):
    """`function`, which raises `error` from its `call`-th call on, of those that are meant."""
    calls = []

    def failing(*args, **settings):
        calls.extend([args] * of(*args))
        if len(calls) >= call and of(*args):
            raise error
        return function(*args, **settings)

    return failing


def test_of_a_batch_that_fails_in_the_model_only_the_faulty_problem_fails(tiny_model, problems, monkeypatch):
    """It becomes a record for each of its candidates."""
    generate = open_engine(tiny_model("llava"))

    def of_two_images(inputs, *_) -> bool:
        return len(inputs.get("pixel_values", ())) > 1

    monkeypatch.setattr(generate, "read", fails_from(1, ValueError("no"), generate.read, of_two_images))
    found = by_key(generate(judgements(problems)))
    assert len(found) == 12
    assert {key for key, reply in found.items() if reply.finish == "error"} == {("2", k) for k in range(3)}


def test_a_prompt_that_fails_behind_the_shared_tokens_is_a_record(tiny_model, problems, monkeypatch):
    """Of three candidates a prompt, one makes the model fail, and its twin gets the same error; the other
    samples are as without it.
    """
    generate, asked = open_engine(tiny_model("llava")), judgements(problems)
    asked.append(replace(asked[5], seeds={9: 0}))
    expected = by_key(generate(asked))

    def of_one(first, rows, *_) -> bool:
        return any(sample.request is asked[5] for sample in rows)

    monkeypatch.setattr(generate, "forward", fails_from(1, IndexError("no"), generate.forward, of_one))
    found = by_key(generate(asked))
    for key in (("1", 1), ("1", 9)):
        expected.pop(key)
        failed = found.pop(key)
        assert (failed.text, failed.finish, failed.reason) == ("", "error", "IndexError: no")
    assert found == expected


def test_a_candidate_that_is_too_long_is_a_record(tiny_model, problems):
    """The others of its problem are as without it."""
    generate, asked = open_engine(tiny_model("llava")), judgements(problems)
    expected = by_key(generate(asked))
    for place in (0, 5):  # the first of its problem, and not
        found = by_key(generate([*asked[:place], judgement(problems[0], 9, "long " * 500), *asked[place:]]))
        failed = found.pop(("0", 9))
        assert (failed.text, failed.finish) == ("", "error") and "in a context of 2048" in failed.reason
        assert found == expected


@pytest.mark.parametrize("kind", ["llava", "llava_sliding"])
@pytest.mark.parametrize("fault", ["bad image", "long text"])
def test_bad_rows_are_records_however_many(fault, kind, tiny_model, problems, tmp_path):
    """An image, or a text, is the row's own fault: it ends no stage."""
    (tmp_path / "bad.png").write_bytes(BAD_PNG)
    bad = ("q", str(tmp_path / "bad.png")) if fault == "bad image" else ("word " * 500,)
    rows = [problem(f"bad {k}", *bad) for k in range(30)]
    replies = open_engine(tiny_model(kind))(requests([*problems, *rows]))
    failed = {reply.row["id"]: reply.reason for reply in replies if reply.finish == "error"}
    assert failed.keys() == {row["id"] for row in rows}
    assert all(fault == "bad image" or "in a context of 2048" in reason for reason in failed.values())


# ---------------------------------------------------------------- faults of the device


def many_requests(count: int) -> list[Request]:
    return requests([problem(k, f"{k} + 1 = ?") for k in range(count)])


def many_judgements(count: int) -> list[Request]:
    return [judgement(problem(k // 4, "1 + 1 = ?"), k, f"It is {k}") for k in range(count)]


ERRORS = {  # and how the stage ends
    "memory": (torch.OutOfMemoryError("CUDA out of memory"), "--batch-size"),
    "device": (RuntimeError("CUDA error: an illegal memory access was encountered"), "the device failed"),
    "always": (ValueError("no"), "20 prompts in a row"),  # no output full of errors
}
PLACES = {  # what fails: the model, whose part it is, its name, what is asked
    "encoding": ("llava", engine, "encode_groups", many_requests),
    "what prompts share": ("llava", Engine, "read", many_requests),
    "the rest of prompts": ("llava", Engine, "forward", many_judgements),
    "a step": ("llava", Engine, "forward", many_requests),
    "generate()": ("llava_sliding", None, "generate", many_requests),
}
FAULTS = [(place, fault) for place in PLACES for fault in ERRORS if (place, fault) != ("a step", "always")]


@pytest.mark.parametrize("place, fault", FAULTS)
def test_what_is_no_rows_fault_ends_the_stage(place, fault, tiny_model, monkeypatch, capsys):
    """One line, exit code 1; what was answered before is kept; no row is put down as an error."""
    (kind, owner, name, asked), (error, words) = PLACES[place], ERRORS[fault]
    generate = open_engine(tiny_model(kind), batch_size=8)
    owner, replies = owner or generate.model, []
    capsys.readouterr()
    of = {"of": lambda *passed: not any(passed[-1])} if place == "the rest of prompts" else {}
    monkeypatch.setattr(owner, name, fails_from(2, error, getattr(owner, name), **of))
    with pytest.raises(SystemExit, match="1"), stage_end():
        replies.extend(generate(asked(80)))
    printed = capsys.readouterr().err
    assert words in printed and printed.count("\n") == 1
    assert not any(reply.finish == "error" for reply in replies)
    assert replies or place not in ("the rest of prompts", "generate()")


def test_rows_that_have_failed_before_may_all_fail_again(tiny_model, monkeypatch):
    generate = open_engine(tiny_model("llava"), retry_errors=True)
    monkeypatch.setattr(Engine, "read", fails_from(1, ValueError("no"), Engine.read))
    assert [reply.finish for reply in generate(many_requests(40))] == ["error"] * 40


def test_memory_that_lacks_while_a_model_is_tried_ends_the_stage(tiny_model, monkeypatch, capsys):
    error, words = ERRORS["memory"]
    monkeypatch.setattr(Engine, "read", fails_from(1, error, Engine.read))
    with pytest.raises(SystemExit, match="1"):
        open_engine(tiny_model("llava"))
    assert words in capsys.readouterr().err


# ---------------------------------------------------------------- encoding


def test_requests_are_read_lazily(tiny_model, monkeypatch):
    """Only a bounded number of requests is read ahead, in the main process and in their order."""
    monkeypatch.setattr(engine, "WINDOW", 4)
    taken, window = [], 8 * engine.WINDOW

    def asked():
        for request in many_requests(3 * window):
            taken.append(request.row["id"])
            yield request

    replies = open_engine(tiny_model("llava"), batch_size=8, max_tokens=2)(asked())
    assert taken == []
    next(replies)
    assert len(taken) <= window
    assert taken == [str(k) for k in range(len(taken))]
    assert len([*replies]) == 3 * window - 1 and len(taken) == 3 * window
