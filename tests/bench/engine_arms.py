"""The arms that bench_engine.py compares: models, and the ways to get the same samples from one."""

import argparse
import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from worker import Channel, seconds

import common
from mathse.chat import chat_parts, encode_prompts
from mathse.images import open_image

ROOT = Path(__file__).resolve().parent.parent.parent
TEXT = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "5m": {
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
}
VISION = {
    "tiny": {"hidden_size": 64},
    "5m": {"hidden_size": 256},
    "7b": {
        "hidden_size": 3584,
        "embed_dim": 1280,
        "depth": 32,
        "num_heads": 16,
        "mlp_ratio": 4,
        "patch_size": 14,
        "spatial_merge_size": 2,
    },
}


# ---------------------------------------------------------------- models


@dataclass
class Local:
    """A model, and the toy's processor, whose patches fit it."""

    model: object
    processor: object

    def engine(self, rows: int, max_tokens: int):
        """An Engine whose replies no token ends."""
        from mathse.generate.engine import Engine

        settings = {"batch_size": rows, "max_tokens": max_tokens, "max_pixels": 0}
        sampling = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
        engine = Engine(self.model, self.processor, argparse.Namespace(**settings, **sampling))
        if engine.why_not:
            sys.exit(engine.why_not)
        engine.eos_ids = set()
        return engine


def build(name: str, device: str, dtype) -> Local:
    from transformers import GenerationConfig

    processor = common.load_processor(str(ROOT / "toy/base"))
    if name == "toy":
        model = common.load_model(str(ROOT / "toy/base"), device, dtype).eval()
    else:
        model = random_model(name, processor.image_processor, device, dtype).eval()
    tokenizer = processor.tokenizer
    model.generation_config = GenerationConfig(
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id
    )
    return Local(model, processor)


def random_model(name: str, image_processor, device: str, dtype):
    """Qwen2-VL of another shape than toy/base, with random weights made on the device."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(ROOT / "toy/base")
    for part, changes in ((config.text_config, TEXT[name]), (config.vision_config, VISION[name])):
        for key, value in changes.items():
            setattr(part, key, value)
    image_processor.patch_size = config.vision_config.patch_size
    image_processor.merge_size = config.vision_config.spatial_merge_size
    if name == "7b":
        image_processor.size = {"shortest_edge": 56 * 56, "longest_edge": 1 << 24}
    text = config.text_config
    config.tie_word_embeddings = text.tie_word_embeddings
    half = text.hidden_size // text.num_attention_heads // 2
    text.rope_parameters["mrope_section"] = [half - 2 * (half * 3 // 8), half * 3 // 8, half * 3 // 8]
    text.layer_types = ["full_attention"] * text.num_hidden_layers
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation="sdpa")


def save(name: str, folder: Path) -> Path:
    """The model as a folder that every tool loads."""
    import torch
    from transformers.utils import logging

    if name == "toy":
        return ROOT / "toy/base"
    logging.disable_progress_bar()
    on_gpu = torch.cuda.is_available()
    local = build(name, *(("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)))
    for part in (local.model, local.processor.tokenizer, local.processor.image_processor):
        part.save_pretrained(folder)
    del local, part
    torch.cuda.empty_cache()  # for the processes that load it
    return folder


# ---------------------------------------------------------------- arms


def chat(request) -> list[dict]:
    images = [open_image(path, 0) for path in request.row["images"]]
    return chat_parts(request.messages, images)


def by_generate(local: Local, requests: list, lengths: list[int], greedy: bool) -> list[list[int]]:
    """New tokens of each sample, decoded by generate(): all prompts in one batch."""
    import torch
    from transformers import StoppingCriteriaList

    model, count = local.model, len(lengths) // len(requests)
    chats = [chat(request) for request in requests]
    settings = {"do_sample": True, "temperature": 1.0, "top_k": 0, "num_return_sequences": count}
    if greedy:
        chats = [each for each in chats for _ in range(count)]
        settings = {"do_sample": False}
    inputs = encode_prompts(local.processor, chats).to(model.device)
    prompt = inputs["input_ids"].shape[1]
    ends = torch.tensor(lengths, device=model.device)
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


def sample_by_swift(job: dict) -> None:
    """A worker: what `swift sample` does with a batch of problems. Asked with the rows to decode together
    (its default is 1).
    """
    channel = Channel()
    import torch

    torch.set_num_threads(job["threads"])
    # where torchvision is missing: leaves the video part of processors out
    common.load_processor(job["model"])
    if importlib.util.find_spec("torchvision") is None:
        pretend_torchvision()
    from swift.arguments import SamplingArguments
    from swift.pipelines.sampling.vanilla_sampler import VanillaSampler

    settings = {
        "model_type": "qwen2_vl",
        "template": "qwen2_vl",
        "torch_dtype": "bfloat16" if torch.cuda.is_available() else "float32",
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "num_return_sequences": job["samples"],
        "max_new_tokens": job["tokens"],
        "engine_kwargs": json.dumps({"template_type": "qwen2_vl"}),
        "dataset": [job["data"]],
        "output_dir": job["folder"],
    }
    sampler = VanillaSampler(SamplingArguments(model=job["model"], **settings))
    model, template = sampler.infer_engine, sampler.infer_engine.template
    # it expects that of the published vocabulary
    config = json.loads(Path(job["model"], "config.json").read_text())
    template.image_token_id = config["image_token_id"]
    template.template_meta.default_system = None
    template.template_meta.stop_words = []
    model.generation_config.eos_token_id = [-1]
    infer, replies = model.infer, []

    def kept(*args, **settings):
        replies.extend(infer(*args, **settings))
        if failed := next((reply for reply in replies if isinstance(reply, Exception)), None):
            raise failed
        return replies

    model.infer = kept
    rows = [json.loads(line) for line in open(job["data"])]
    images = [[{"path": path, "bytes": None} for path in row["images"]] for row in rows]
    data = {"messages": [row["messages"] for row in rows], "images": images}
    while True:
        model.max_batch_size = channel.next()
        replies.clear()
        start = seconds()
        sampler.generate(data)
        took = seconds() - start
        new_tokens = sum(reply.usage.completion_tokens for reply in replies)
        prompt_tokens = sum(reply.usage.prompt_tokens for reply in replies)
        channel.answer({"seconds": took, "new_tokens": new_tokens, "prompt_tokens": prompt_tokens})


def pretend_torchvision() -> None:
    """qwen_vl_utils imports it, but only videos need it."""
    for name in ("torchvision", "torchvision.io", "torchvision.transforms"):
        spec = importlib.machinery.ModuleSpec(name, None)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        if "." in name:
            setattr(sys.modules["torchvision"], name.split(".")[1], sys.modules[name])
    sys.modules["torchvision.transforms"].InterpolationMode = None
