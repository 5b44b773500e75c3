"""The arm of ms-swift, in an environment with it and qwen_vl_utils: what `swift sample` does."""

import json
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from pathlib import Path

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
    if find_spec("torchvision") is None:
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
        usage = ((reply.usage.completion_tokens, reply.usage.prompt_tokens) for reply in replies)
        channel.answer({"took": took, "tokens": [*map(sum, zip(*usage))]})


def pretend_torchvision() -> None:
    """qwen_vl_utils imports it, but only videos need it."""
    names = ("torchvision", "torchvision.io", "torchvision.transforms")
    package, package.io, package.transforms = (module_from_spec(ModuleSpec(name, None)) for name in names)
    package.transforms.InterpolationMode = None
    sys.modules |= dict(zip(names, (package, package.io, package.transforms)))


if __name__ == "__main__":
    work(json.loads(sys.argv[2]))
