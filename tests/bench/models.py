"""Models of the benchmarks, what they are asked, and samples by generate() and by the package's engine."""

import argparse
import random
import sys
from collections.abc import Iterable
from pathlib import Path

import common
from mathse.chat import chat_parts, encode_prompts, user_message
from mathse.generate import Request
from mathse.images import open_image
from mathse.records import derive_seed

BASE = Path(__file__).resolve().parents[2] / "toy/base"
# pixels of an image's side; new tokens: of a sample, of a verdict
SIZES = {"tiny": (64, 16, 8), "toy": (112, 48, 24), "5m": (112, 48, 24), "7b": (896, 128, 32)}
SHAPE = ("hidden_size", "intermediate_size", "num_hidden_layers")
SHAPE += ("num_attention_heads", "num_key_value_heads")
SHAPES = {"tiny": (64, 128, 2, 4, 2), "5m": (256, 704, 6, 8, 4), "7b": (3584, 18944, 28, 28, 4)}
TOWER_7B = {"embed_dim": 1280, "depth": 32, "num_heads": 16, "mlp_ratio": 4, "patch_size": 14}
WORDS = "Step 1: The image shows a rectangle with sides 5 and 8. Step 2: The area is 5 * 8 = 40. The".split()
WORDS += "answer to this problem is".split()


def choose(names: list[str], device: str) -> list[str]:
    """The models to measure: without a GPU the tiny one instead of 7b."""
    return ["tiny" if (name, device) == ("7b", "cpu") else name for name in names]


def build(name: str, device: str, dtype) -> tuple:
    """(model, processor): toy/base, or a Qwen2-VL of another shape with random weights made on the device."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig

    processor = common.load_processor(str(BASE))
    tokens = processor.tokenizer
    if name == "toy":
        model = common.load_model(str(BASE), device, dtype)
    else:
        config = AutoConfig.from_pretrained(BASE)
        text, vision, images = config.text_config, config.vision_config, processor.image_processor
        text.update(dict(zip(SHAPE, SHAPES[name])))
        vision.hidden_size = text.hidden_size
        if name == "7b":
            text.vocab_size, text.tie_word_embeddings, config.tie_word_embeddings = 152064, False, False
            vision.update(TOWER_7B)
            images.patch_size, images.size = 14, {"shortest_edge": 56 * 56, "longest_edge": 1 << 24}
        half = text.hidden_size // text.num_attention_heads // 2
        text.rope_parameters["mrope_section"] = [half - 2 * (half * 3 // 8), half * 3 // 8, half * 3 // 8]
        text.layer_types = ["full_attention"] * text.num_hidden_layers
        torch.manual_seed(0)
        with torch.device(device):
            model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.generation_config = GenerationConfig(
        pad_token_id=tokens.pad_token_id, eos_token_id=tokens.eos_token_id
    )
    return model.eval(), processor


def save(name: str, folder: Path) -> Path:
    """The model as a folder that every tool loads."""
    import torch
    from transformers.utils import logging

    if name == "toy":
        return BASE
    logging.disable_progress_bar()
    kind = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    model, processor = build(name, *kind)
    for part in (model, processor.tokenizer, processor.image_processor):
        part.save_pretrained(folder)
    del model, part
    torch.cuda.empty_cache()  # for the processes that load it
    return folder


def make_rows(folder: Path, count: int, side: int) -> list[dict]:
    from PIL import Image

    rows = []
    for index in range(count):
        path = f"{folder}/{index}.png"
        Image.effect_noise((side, side), 90).convert("RGB").save(path)
        rows.append({"id": str(index), "question": "What is the area of the rectangle?", "images": [path]})
    return rows


def sampling_requests(rows: list[dict], samples: int) -> list[Request]:
    seeds = ({k: derive_seed(row["id"], k) for k in range(samples)} for row in rows)
    asked = (user_message(common.solve_prompt(row), row["images"]) for row in rows)
    return [Request(*each) for each in zip(rows, asked, seeds)]


def judging_requests(rows: list[dict], samples: int) -> list[Request]:
    """Candidates of each problem."""
    responses = [(k, " ".join([*WORDS[: 20 + k % 8], str(k)])) for k in range(samples)]
    return verdict_requests(row | {"sample": k, "response": text} for row in rows for k, text in responses)


def verdict_requests(paths: Iterable[dict]) -> list[Request]:
    asked = ((row, user_message(common.judge_prompt(row), row["images"])) for row in paths)
    return [Request(row, messages, {0: 0}) for row, messages in asked]


def log_normal(count: int, mean: int, longest: int) -> list[int]:
    draw = random.Random(0)
    draws = [draw.lognormvariate(0, 0.6) for _ in range(count)]
    return [min(longest, max(1, round(value * mean * count / sum(draws)))) for value in draws]


def chat(request: Request) -> list[dict]:
    return chat_parts(request.messages, [open_image(path, 0) for path in request.row["images"]])


def make_engine(model, processor, rows: int, max_tokens: int, temperature: float = 1.0, ends: bool = False):
    """An Engine; unless `ends`, no token ends its replies."""
    from mathse.generate.engine import Engine

    flags = {"temperature": temperature, "top_k": 0, "top_p": 1.0, "max_tokens": max_tokens, "max_pixels": 0}
    engine = Engine(model, processor, argparse.Namespace(**flags, batch_size=rows))
    if engine.why_not:
        sys.exit(engine.why_not)
    engine.eos_ids = engine.eos_ids if ends else set()
    return engine


def by_generate(model, processor, requests: list, lengths: list[int], greedy: bool) -> list[list[int]]:
    """New tokens of each sample, decoded by generate(): all prompts in one batch."""
    import torch
    from transformers import StoppingCriteriaList

    chats, count = [chat(request) for request in requests], len(lengths) // len(requests)
    settings = {"do_sample": True, "temperature": 1.0, "top_k": 0, "num_return_sequences": count}
    if greedy:
        chats, settings = [each for each in chats for _ in range(count)], {"do_sample": False}
    inputs = encode_prompts(processor, chats).to(model.device)
    prompt, ends = inputs["input_ids"].shape[1], torch.tensor(lengths, device=model.device)
    model.generation_config.eos_token_id = None
    stop = StoppingCriteriaList([lambda ids, scores, **unused: ids.shape[1] - prompt >= ends])
    out = model.generate(**inputs, max_new_tokens=max(lengths), stopping_criteria=stop, **settings)
    return [row[prompt : prompt + length] for row, length in zip(out.tolist(), lengths)]


def by_engine(engine, requests: list, lengths: list[int], greedy: bool) -> list[list[int]]:
    """The same by the package's own engine."""
    keys = [(id(request), number) for request in requests for number in request.seeds]
    limit, done, own, warpers = dict(zip(keys, lengths)), {}, type(engine).samples, engine.warpers

    def sharers(sample) -> list[tuple[int, int]]:
        return [(id(request), k) for request, k in ((sample.request, sample.number), *sample.twins)]

    def limited(group) -> list:
        samples = own(engine, group)
        for sample in samples:
            sample.limit = max(limit[key] for key in sharers(sample))
        return samples

    def kept(sample) -> list:
        done.update({key: sample.tokens[: limit[key]] for key in sharers(sample)})
        return []

    engine.samples, engine.replies, engine.warpers = limited, kept, [] if greedy else warpers
    list(engine(requests))
    engine.warpers = warpers
    return [done[key] for key in keys]
