"""The arm of ms-swift, in an environment with it and qwen_vl_utils: what `swift sample` does."""

import importlib.util
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]
from arms import Channel, Worker, timed

import common


def start(python: str, job: dict, requests: list, folder: Path) -> Worker:
    """A worker for these requests; `job`: model, samples, tokens (new ones of each), threads."""
    data = folder / "swift.jsonl"
    with data.open("w") as file:
        for request in requests:
            messages = [*request.messages, {"role": "assistant", "content": "40"}]
            print(json.dumps({"messages": messages, "images": request.row["images"]}), file=file)
    job |= {"data": str(data), "folder": str(folder / "swift")}
    return Worker(python, __file__, job, folder / "swift.log")


def work(job: dict) -> None:
    """Asked with the rows to decode together (its default is 1)."""
    channel = Channel()
    import torch

    torch.set_num_threads(job["threads"])
    common.load_processor(job["model"])  # without torchvision: leaves the video part of processors out
    if importlib.util.find_spec("torchvision") is None:
        pretend_torchvision()
    from swift.arguments import SamplingArguments
    from swift.pipelines.sampling.vanilla_sampler import VanillaSampler

    settings = {"model": job["model"], "model_type": "qwen2_vl", "template": "qwen2_vl"}
    settings |= {"torch_dtype": "bfloat16" if torch.cuda.is_available() else "float32"}
    settings |= {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": job["tokens"]}
    settings |= {
        "num_return_sequences": job["samples"],
        "output_dir": job["folder"],
        "dataset": [job["data"]],
    }
    settings["engine_kwargs"] = json.dumps({"template_type": "qwen2_vl"})
    sampler = VanillaSampler(SamplingArguments(**settings))
    model, template = sampler.infer_engine, sampler.infer_engine.template
    # it expects that of the published vocabulary
    template.image_token_id = json.loads(Path(job["model"], "config.json").read_text())["image_token_id"]
    template.template_meta.default_system, template.template_meta.stop_words = None, []
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
    generate = timed(lambda: sampler.generate(data))
    while True:
        model.max_batch_size = channel.next()
        replies.clear()
        took = generate()
        usage = [reply.usage for reply in replies]
        tokens = [sum(each.completion_tokens for each in usage), sum(each.prompt_tokens for each in usage)]
        channel.answer({"took": took, "tokens": tokens})


def pretend_torchvision() -> None:
    """qwen_vl_utils imports it, but only videos need it."""
    package, io, transforms = (ModuleType(f"torchvision{end}") for end in ("", ".io", ".transforms"))
    package.__spec__, package.io, package.transforms = ModuleSpec("torchvision", None), io, transforms
    transforms.InterpolationMode = None
    sys.modules |= {module.__name__: module for module in (package, io, transforms)}


if __name__ == "__main__":
    work(json.loads(sys.argv[2]))
