"""Time the local engine against transformers' generate() and ms-swift's sampler, and its steps against what the device can do.

Writes: a table on stdout; with --output the numbers as JSON.

    python tests/bench/bench_engine.py
    python tests/bench/bench_engine.py --tasks fixed --swift VENV/bin/python
    python tests/bench/bench_engine.py --models 7b      # on a CUDA machine; elsewhere the same with the tiny model

Models: `toy` is toy/base, the others are Qwen2-VL with random weights (7b: the shape of Qwen2-VL-7B, made on the device).
Tasks:
  decode             a step of 1, 64, 256 and 512 rows, in per cent of the bound of roofline.py by the copies and matrix products measured here
  fixed, log-normal  N samples of each question; generate(num_return_sequences=N), whose rows go on to the longest sample's end
  judging            a verdict on each of N candidates of a question; the engine with nothing shared; generate() on as many whole prompts in one batch
  round              seconds of the stages' own commands, with their start: sample, check the answers, judge, fine-tune
No end of sequence: every sample has a length given beforehand, all the same or drawn from a log-normal distribution.
Before it is timed, each arm must give the same greedy tokens. Then the arms take turns; a ratio is that of the medians.
"""

import argparse
import importlib.util
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests/bench")]

from worker import Channel, Worker, seconds, versions

WORDS = "Step 1: The picture shows a rectangle with sides 5 and 8. Step 2: The area is 5 * 8 = 40. The answer to this problem is".split()
TASKS = ("decode", "fixed", "log-normal", "judging", "round")
TEXT = {
    "tiny": dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2),
    "5m": dict(hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=4),
    "7b": dict(hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4, vocab_size=152064, tie_word_embeddings=False),
}
VISION = {
    "tiny": dict(hidden_size=64),
    "5m": dict(hidden_size=256),
    "7b": dict(hidden_size=3584, embed_dim=1280, depth=32, num_heads=16, mlp_ratio=4, patch_size=14, spatial_merge_size=2),
}
SIZES = {"tiny": (64, 16, 8), "toy": (112, 48, 24), "5m": (112, 48, 24), "7b": (896, 128, 32)}  # pixels of a picture's side; new tokens: a sample, a verdict


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SIZES, default=["toy", "5m"], help="default: %(default)s")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, help="default: all")
    parser.add_argument("--questions", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--samples", type=int, default=16, help="samples, or candidates, of a question (default %(default)s)")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 64, 256, 512], help="of the decoding steps (default %(default)s)")
    parser.add_argument("--tokens", type=int, help="new tokens a sample, the mean of the log-normal lengths (default: by the model)")
    parser.add_argument("--verdict-tokens", type=int, help="new tokens a verdict (default: by the model)")
    parser.add_argument("--side", type=int, help="pixels, of a picture's sides (default: by the model; 896 are 1,024 visual tokens of 7b)")
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="of every arm (default %(default)s)")
    parser.add_argument("--swift", metavar="PYTHON", help="of an environment with ms-swift and qwen_vl_utils: its sampler is one more arm of `fixed`; pictures of a multiple of 112 pixels, which it leaves as they are")
    parser.add_argument("--output", help="JSON file")
    return parser.parse_args()


# ---------------------------------------------------------------- models


def build(name: str, device: str, dtype):
    """An engine.Local: the model, and the toy's processor, whose patches fit it."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig

    import common
    import engine

    processor = common.load_processor(str(ROOT / "toy/base"))
    if name == "toy":
        model = common.load_model(str(ROOT / "toy/base"), device, dtype)
    else:
        config = AutoConfig.from_pretrained(ROOT / "toy/base")
        for part, changes in ((config.text_config, TEXT[name]), (config.vision_config, VISION[name])):
            for key, value in changes.items():
                setattr(part, key, value)
        pictures = processor.image_processor
        pictures.patch_size, pictures.merge_size = config.vision_config.patch_size, config.vision_config.spatial_merge_size
        if name == "7b":
            pictures.size = {"shortest_edge": 56 * 56, "longest_edge": 1 << 24}
        config.tie_word_embeddings = config.text_config.tie_word_embeddings
        text = config.text_config
        half = text.hidden_size // text.num_attention_heads // 2
        text.rope_parameters["mrope_section"] = [half - 2 * (half * 3 // 8), half * 3 // 8, half * 3 // 8]
        text.layer_types = ["full_attention"] * text.num_hidden_layers
        torch.manual_seed(0)
        with torch.device(device):
            model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model = model.eval()
    model.generation_config = GenerationConfig(pad_token_id=processor.tokenizer.pad_token_id, eos_token_id=processor.tokenizer.eos_token_id)
    return engine.Local(model, processor, processor.tokenizer, argparse.Namespace(max_pixels=0, max_tokens=1 << 10), set(), False, 1 << 20)


def save(name: str, folder: Path) -> Path:
    """The model as a folder that every tool loads."""
    import torch
    from transformers.utils import logging

    if name == "toy":
        return ROOT / "toy/base"
    logging.disable_progress_bar()
    local = build(name, *(("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)))
    for part in (local.model, local.processor.tokenizer, local.processor.image_processor):
        part.save_pretrained(folder)
    del local, part
    torch.cuda.empty_cache()  # for the processes that load it
    return folder


# ---------------------------------------------------------------- arms


def by_generate(local, requests: list, lengths: list[int], greedy: bool) -> list[list[int]]:
    """New tokens of each sample, decoded by generate(): all prompts in one batch."""
    import torch
    from transformers import StoppingCriteriaList

    import common
    from prompts import pictures

    chats = [common.chat_parts(request.messages, pictures(local, request)) for request in requests]
    count = len(lengths) // len(requests)
    if greedy:
        chats = [chat for chat in chats for _ in range(count)]
    inputs = common.encode_prompts(local.processor, chats).to(local.model.device)
    prompt, ends = inputs["input_ids"].shape[1], torch.tensor(lengths, device=local.model.device)
    settings = dict(do_sample=False) if greedy else dict(do_sample=True, temperature=1.0, top_k=0, num_return_sequences=count)
    local.model.generation_config.eos_token_id = None
    stop = StoppingCriteriaList([lambda ids, scores, **settings: ids.shape[1] - prompt >= ends])
    out = local.model.generate(**inputs, max_new_tokens=max(lengths), stopping_criteria=stop, **settings)
    return [row[prompt : prompt + length] for row, length in zip(out.tolist(), lengths)]


def by_engine(local, decoder, requests: list, lengths: list[int], greedy: bool) -> list[list[int]]:
    """The same by the engine's own encoding and decoder, which has not seen the pictures before."""
    from features import Features
    from prompts import REFILL, encode, gather

    decoder.features = Features(decoder.features.room)
    limits = iter(lengths)
    limit = {(id(request), number): next(limits) for request in requests for number in request.seeds}

    def encoded(questions):
        for batch in encode(local, questions):
            for sample in batch.samples:
                sample.limit = limit[id(sample.request), sample.number]
            yield batch

    batches = (batch for group in gather(requests, decoder.rows, max(1, decoder.rows // REFILL)) for batch in encoded(group))
    done = {(id(sample.request), sample.number): sample.tokens for sample in decoder.serve(batches, encoded, 0.0 if greedy else 1.0, 0, 1.0)}
    return [done[key] for key in limit]


def sample_by_swift(job: dict) -> None:
    """A worker: what `swift sample` does with a batch of questions. Asked with the rows to decode together (its default is 1)."""
    channel = Channel()
    import torch

    import common

    torch.set_num_threads(job["threads"])
    common.load_processor(job["model"])  # where torchvision is missing: leaves the video part of processors out
    if importlib.util.find_spec("torchvision") is None:  # qwen_vl_utils imports it, but only videos need it
        for name in ("torchvision", "torchvision.io", "torchvision.transforms"):
            sys.modules[name] = importlib.util.module_from_spec(importlib.machinery.ModuleSpec(name, None))
            if "." in name:
                setattr(sys.modules["torchvision"], name.split(".")[1], sys.modules[name])
        sys.modules["torchvision.transforms"].InterpolationMode = None
    from swift.arguments import SamplingArguments
    from swift.pipelines.sampling.vanilla_sampler import VanillaSampler

    settings = {"model_type": "qwen2_vl", "template": "qwen2_vl", "torch_dtype": "bfloat16" if torch.cuda.is_available() else "float32", "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    settings |= {"num_return_sequences": job["samples"], "max_new_tokens": job["tokens"], "engine_kwargs": json.dumps({"template_type": "qwen2_vl"})}
    sampler = VanillaSampler(SamplingArguments(model=job["model"], dataset=[job["data"]], output_dir=job["folder"], **settings))
    model, template = sampler.infer_engine, sampler.infer_engine.template
    template.image_token_id = json.loads(Path(job["model"], "config.json").read_text())["image_token_id"]  # it expects that of the published vocabulary
    template.template_meta.default_system = None
    template.template_meta.stop_words, model.generation_config.eos_token_id = [], [-1]
    infer, replies = model.infer, []

    def kept(*args, **settings):
        replies.extend(infer(*args, **settings))
        if failed := next((reply for reply in replies if isinstance(reply, Exception)), None):
            raise failed
        return replies

    model.infer = kept
    rows = [json.loads(line) for line in open(job["data"])]
    data = {"messages": [row["messages"] for row in rows], "images": [[{"path": path, "bytes": None} for path in row["images"]] for row in rows]}
    while True:
        model.max_batch_size = channel.next()
        replies.clear()
        start = seconds()
        sampler.generate(data)
        channel.answer({"seconds": seconds() - start, "new_tokens": sum(reply.usage.completion_tokens for reply in replies), "prompt_tokens": sum(reply.usage.prompt_tokens for reply in replies)})


# ---------------------------------------------------------------- tasks


def log_normal(count: int, mean: int, longest: int) -> list[int]:
    draw = random.Random(0)
    draws = [draw.lognormvariate(0, 0.6) for _ in range(count)]
    return [min(longest, max(1, round(value * mean * count / sum(draws)))) for value in draws]


def timed(arm) -> float:
    start = seconds()
    arm()
    return seconds() - start


def compare(arms: dict, repeats: int) -> dict:
    """Seconds of each arm, `repeats` times in turn: {arm: {"median", "all", "ratio" to the first arm}}. An arm returns None, or its own seconds."""
    times = {arm: [] for arm in arms}
    for _ in range(repeats):
        for arm, work in arms.items():
            start = seconds()
            own = work()
            times[arm].append(own if isinstance(own, float) else seconds() - start)
    median = {arm: statistics.median(values) for arm, values in times.items()}
    first = next(iter(median.values()))
    for arm, values in times.items():
        print(f"  {arm:34} {median[arm]:8.2f} s ({min(values):.2f}-{max(values):.2f})  {median[arm] / first:6.2f} x", flush=True)
    return {arm: {"median_s": median[arm], "all_s": values, "ratio": median[arm] / first} for arm, values in times.items()}


def decode_steps(local, requests, rows_of_steps: list[int], tokens: int, ceilings: tuple[float, float]) -> list[dict]:
    """Steps of full batches: as many requests as the rows need, each with all its samples."""
    import engine
    from decoder import Decoder
    from roofline import step_of

    results, step = [], step_of(local.model)
    for rows in rows_of_steps:
        samples = min(rows, len(requests[0].seeds))
        used = [engine.Request(requests[index % len(requests)].row | {"id": f"copy {index}"}, requests[index % len(requests)].messages, {k: k for k in range(samples)}) for index in range(-(-rows // samples))]
        decoder = Decoder(local.model, engine.probe(local), rows, tokens + 1, set(), False)
        rows = decoder.rows  # fewer where memory is short
        times, once = [], decoder.step

        def timed_step():
            start, full = seconds(), sum(map(bool, decoder.live)) == rows
            finished = once()
            if full:
                times.append(seconds() - start)
            return finished

        decoder.step = timed_step
        for _ in range(2):  # the first warms up
            times.clear()
            decoder.work.clear()
            by_engine(local, decoder, used, [tokens + 1] * (samples * len(used)), greedy=False)
        shared, own = decoder.work["prompt_tokens"] / decoder.work["prompts"], decoder.work["tail_tokens"] / decoder.work["tails"] + tokens / 2
        bound, took = step.bound(*ceilings, rows, len(used), shared, own), statistics.median(times)
        results.append({"rows": rows, "step_s": took, "bound_s": bound, "share": bound / took, "shared": shared, "own": own, "steps": len(times)})
        print(f"  {rows:4} rows, {shared:.0f} + {own:.0f} tokens: {1e3 * took:8.2f} ms a step, bound {1e3 * bound:8.3f} ms: {100 * bound / took:5.1f} %, {rows / took:8.0f} tokens/s", flush=True)
    return results


def mini_round(model: Path, folder: Path, rows: list[dict], samples: int, tokens: int, verdict_tokens: int, adapters: tuple) -> dict:
    """Seconds of the stages' commands, started as a user does. What is judged and learned is written here: a random model's own text says nothing."""
    problems, taken = folder / "problems.jsonl", {}
    problems.write_text("".join(json.dumps(row | {"answer": "40"}) + "\n" for row in rows))

    def stage(name: str, *command) -> None:
        clock, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            sys.exit(f"{name}: {done.stderr[-600:]}")
        taken[name] = {"clock_s": time.perf_counter() - clock, "processor_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}
        print(f"  {name:34} {taken[name]['clock_s']:8.2f} s, {taken[name]['processor_s']:.2f} s of the processor", flush=True)

    generation = ("--model", model, "--temperature", 1, "--batch-size", len(rows) * samples)
    stage("sample", "01_sample.py", "--input", problems, "--output", folder / "samples.jsonl", "--samples", samples, "--max-tokens", tokens, *generation)
    replies = [json.loads(line) for line in (folder / "samples.jsonl").open()]
    solved = (row | {"response": " ".join([*WORDS[row["sample"] % 8 :], str(40 + row["sample"] % 2)]), "finish": "stop"} for row in replies)
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in solved))
    stage("check the answers", "02_verify.py", "--input", folder / "samples.jsonl", "--output", folder / "checked.jsonl", "--accept", "answer")
    stage("judge", "02_verify.py", "--input", folder / "samples.jsonl", "--output", folder / "judged.jsonl", "--accept", "orm", "--max-tokens", verdict_tokens, *generation)
    learning = ("--batch-size", 8, "--max-length", 1 << 14, "--save-steps", 0)
    stage("fine-tune", "04_finetune.py", "--input", folder / "checked.jsonl", "--output", folder / "model", "--model", model, *learning, *adapters)
    print(f"    {len(replies)} samples, {sum(row['tokens'] for row in replies)} tokens; {json.loads((folder / 'model/training.json').read_text())['steps']} optimizer steps", flush=True)
    return taken


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        return sample_by_swift(json.loads(sys.argv[2]))
    args = parse_args()
    import torch
    from PIL import Image

    import common
    import engine
    from decoder import Decoder
    from prompts import pictures
    from roofline import copy_bandwidth, matmul_rate

    device, dtype, _ = common.setup_kernels(args.threads)
    if device == "cpu" and "7b" in args.models:
        print("no CUDA device: the tiny model instead of 7b")
        args.models = ["tiny" if name == "7b" else name for name in args.models]
    machine = f"{torch.cuda.get_device_name() if device != 'cpu' else 'CPU'}, {args.threads} threads, {versions('torch', 'transformers')}"
    ceilings = copy_bandwidth(device), matmul_rate(device, dtype)
    print(f"{machine}\ncopies {ceilings[0] / 1e9:.1f} GB/s, matrix products {ceilings[1] / 1e12:.3f} TFLOP/s", flush=True)
    results = {"machine": machine, "settings": vars(args), "copy_bytes_s": ceilings[0], "matmul_flop_s": ceilings[1], "models": {}}
    for name in args.models:
        side, tokens, verdict_tokens = (given or default for given, default in zip((args.side, args.tokens, args.verdict_tokens), SIZES[name]))
        found = results["models"][name] = {}
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            folder, rows = Path(folder), []
            for index in range(args.questions):
                path = f"{folder}/{index}.png"
                Image.effect_noise((side, side), 90).convert("RGB").save(path)
                rows.append({"id": str(index), "question": "What is the area of the rectangle?", "images": [path]})
            sampling = [engine.Request(row, common.solve_messages(row), {k: common.derive_seed(row["id"], k) for k in range(args.samples)}) for row in rows]
            judging, alone = [], []
            for row in rows:
                for k in range(args.samples):
                    candidate = row | {"sample": k, "response": " ".join([*WORDS[: 20 + k % 8], str(k)])}
                    judging.append(engine.Request(candidate, common.judge_messages(candidate), {0: 0}))
                    alone.append(engine.Request(candidate | {"id": f"{row['id']} {k}"}, judging[-1].messages, {0: 0}))
            count = args.questions * args.samples
            lengths = {"fixed": [tokens] * count, "log-normal": log_normal(count, tokens, 3 * tokens), "judging": [verdict_tokens] * count}
            local = build(name, device, dtype)
            print(f"{name}: {sum(part.numel() for part in local.model.parameters()) / 1e6:.1f} M parameters, pictures of {side} x {side}", flush=True)
            if "decode" in args.tasks:
                print(" decode", flush=True)
                found["decode"] = decode_steps(local, sampling, args.rows, 2 * tokens, ceilings)
            decoder = Decoder(local.model, engine.probe(local), count, 3 * tokens, set(), False)
            for task in (task for task in ("fixed", "log-normal", "judging") if task in args.tasks):
                requests, greedy = (judging, True) if task == "judging" else (sampling, False)
                same = sum(ours == theirs for ours, theirs in zip(by_engine(local, decoder, requests, lengths[task], True), by_generate(local, requests, lengths[task], True)))
                if dtype == torch.float32 and same < count:
                    sys.exit(f"{name}: {task}: only {same} of {count} greedy samples are the same; not timed")
                decoder.work.clear()
                by_engine(local, decoder, requests, lengths[task], greedy)
                work = dict(decoder.work)
                arms = {"engine": lambda: by_engine(local, decoder, requests, lengths[task], greedy), "generate()": lambda: by_generate(local, requests, lengths[task], greedy)}
                if task == "judging":
                    arms["engine, nothing shared"] = lambda: by_engine(local, decoder, alone, lengths["judging"], True)
                worker = None
                if task == "fixed" and args.swift:
                    data = folder / "swift.jsonl"
                    data.write_text("".join(json.dumps({"messages": [*common.solve_messages(row), {"role": "assistant", "content": "40"}], "images": row["images"]}) + "\n" for row in rows))
                    job = {"model": str(save(name, folder / "saved")), "data": str(data), "folder": str(folder / "swift"), "samples": args.samples, "tokens": tokens, "threads": args.threads}
                    worker = Worker(args.swift, __file__, job, folder / "swift.log")
                    first = worker.ask(count)
                    prompt_tokens = args.samples * sum(len(common.encode_prompts(local.processor, [common.chat_parts(request.messages, pictures(local, request))])["input_ids"][0]) for request in sampling)
                    if (first.get("new_tokens"), first.get("prompt_tokens")) != (tokens * count, prompt_tokens):
                        sys.exit(f"{name}: ms-swift: {first}, not {tokens * count} and {prompt_tokens} tokens; not timed")
                    arms |= {"ms-swift, all rows together": lambda: worker.ask(count)["seconds"], "ms-swift, as by default": lambda: worker.ask(1)["seconds"]}
                print(f" {task}: {count} samples, {sum(lengths[task])} new tokens, greedy tokens equal {same}/{count}; the engine's work {work}", flush=True)
                found[task] = {"arms": compare(arms, args.repeats), "equal": same, "samples": count, "new_tokens": sum(lengths[task]), "work": work}
                if worker:
                    worker.close()
            del local, decoder
            if "round" in args.tasks:
                print(" round", flush=True)
                adapters = ("--lora", 16) if name == "7b" else ()  # all of its weights, with the optimizer's state, would need 133 GB
                found["round"] = mini_round(save(name, folder / "saved"), folder, rows, args.samples, tokens, verdict_tokens, adapters)
    if args.output:
        Path(args.output).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
