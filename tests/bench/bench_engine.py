"""Time the local engine against transformers' generate(), on the same prompts, in one process.

Writes: a table on stdout; with --output the numbers as JSON.

    python tests/bench/bench_engine.py
    python tests/bench/bench_engine.py --models 7b --questions 16 --tokens 250      # on a CUDA machine

Models: `toy` is toy/base, `5m` and `7b` are Qwen2-VL with random weights (7b: the shape of Qwen2-VL-7B, made on the device).
No end of sequence: every sample has a length given beforehand, all the same or drawn from a log-normal distribution.
  fixed, log-normal  N samples of each question; generate(num_return_sequences=N), whose rows go on to the longest sample's end
  judging            a verdict on each of N candidates of a question; generate() on as many whole prompts in one batch
Before it is timed, each arm must give the same greedy tokens. Then the arms take turns; a ratio is that of the medians.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import torch
import transformers
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig, StoppingCriteria, StoppingCriteriaList

import common
import engine
from decoder import Decoder

WORDS = "Step 1: The picture shows a rectangle with sides 5 and 8. Step 2: The area is 5 * 8 = 40. The answer to this problem is 40.".split()
TEXT = {
    "5m": dict(hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=4),
    "7b": dict(hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4, vocab_size=152064, tie_word_embeddings=False),
}
VISION = {"5m": dict(hidden_size=256), "7b": dict(hidden_size=3584, embed_dim=1280, depth=32, num_heads=16, mlp_ratio=4, patch_size=14, spatial_merge_size=2)}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=("toy", "5m", "7b"), default=["toy", "5m"], help="default: %(default)s")
    parser.add_argument("--tasks", nargs="+", choices=("fixed", "log-normal", "judging"), default=["fixed", "log-normal", "judging"], help="default: all")
    parser.add_argument("--questions", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--samples", type=int, default=16, help="samples, or candidates, of a question (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=48, help="new tokens a sample, the mean of the log-normal lengths (default %(default)s)")
    parser.add_argument("--verdict-tokens", type=int, default=24, help="new tokens a verdict (default %(default)s)")
    parser.add_argument("--side", type=int, default=112, help="pixels, of a picture's sides (default %(default)s; 896 are 1,024 visual tokens of 7b)")
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="of every arm (default %(default)s)")
    parser.add_argument("--output", help="JSON file")
    return parser.parse_args()


def build(name: str, device: str, dtype) -> engine.Local:
    """The model, and the toy's processor, whose patches fit it."""
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
    if name == "toy":
        return ROOT / "toy/base"
    local = build(name, "cuda" if torch.cuda.is_available() else "cpu", torch.bfloat16 if torch.cuda.is_available() else torch.float32)
    local.model.save_pretrained(folder)
    local.processor.tokenizer.save_pretrained(folder)
    local.processor.image_processor.save_pretrained(folder)
    return folder


class Lengths(StoppingCriteria):
    """Ends each row of generate() at its own length."""

    def __init__(self, prompt: int, lengths: list[int], device):
        self.prompt, self.lengths = prompt, torch.tensor(lengths, device=device)

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids.shape[1] - self.prompt >= self.lengths


def by_generate(local: engine.Local, requests: list[engine.Request], lengths: list[int], greedy: bool) -> list[list[int]]:
    """New tokens of each sample, decoded by generate(): all prompts in one batch."""
    chats = [common.chat_parts(request.messages, engine.pictures(local, request)) for request in requests]
    inputs = common.encode_prompts(local.processor, chats).to(local.model.device)
    prompt, count = inputs["input_ids"].shape[1], len(lengths) // len(requests)
    settings = dict(do_sample=False) if greedy else dict(do_sample=True, temperature=1.0, top_k=0, num_return_sequences=count)
    if greedy and count > 1:
        inputs = common.encode_prompts(local.processor, [chat for chat in chats for _ in range(count)]).to(local.model.device)
    local.model.generation_config.eos_token_id = None
    out = local.model.generate(**inputs, max_new_tokens=max(lengths), stopping_criteria=StoppingCriteriaList([Lengths(prompt, lengths, inputs["input_ids"].device)]), **settings)
    return [row[prompt : prompt + length] for row, length in zip(out.tolist(), lengths)]


def by_engine(local: engine.Local, decoder: Decoder, requests: list[engine.Request], lengths: list[int], greedy: bool) -> list[list[int]]:
    """The same by the engine's own encoding and decoder."""
    limits = iter(lengths)
    limit = {(id(request), number): next(limits) for request in requests for number in request.seeds}

    def encoded(questions):
        for batch in engine.encode(local, questions):
            for sample in batch.samples:
                sample.limit = limit[id(sample.request), sample.number]
            yield batch

    batches = (batch for group in engine.gather(requests, decoder.rows, decoder.rows // engine.REFILL) for batch in encoded(group))
    done = {(id(sample.request), sample.number): sample.tokens for sample in decoder.serve(batches, encoded, 0.0 if greedy else 1.0, 0, 1.0)}
    return [done[key] for key in limit]


def log_normal(count: int, mean: int, longest: int) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(count, generator=generator).mul(0.6).exp()
    return (draws * mean / draws.mean()).round().clamp(1, longest).int().tolist()


def timed(arm) -> float:
    """Seconds: on a GPU of the clock, else of the processor (the sum of the threads), which other work on the machine disturbs less."""
    if not torch.cuda.is_available():
        start = time.process_time()
        arm()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    arm()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    args = parse_args()
    device, dtype, _ = common.setup_kernels(args.threads)
    results = []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        rows = []
        for index in range(args.questions):
            path = f"{folder}/{index}.png"
            Image.effect_noise((args.side, args.side), 90).convert("RGB").save(path)
            rows.append({"id": str(index), "question": "What is the area of the rectangle?", "images": [path]})
        sampling = [engine.Request(row, common.solve_messages(row), {k: common.derive_seed(row["id"], k) for k in range(args.samples)}) for row in rows]
        judging = []
        for row in rows:
            for k in range(args.samples):
                candidate = row | {"sample": k, "response": " ".join([*WORDS[: 20 + k % 8], str(k)])}
                judging.append(engine.Request(candidate, common.judge_messages(candidate), {0: 0}))
        count = args.questions * args.samples
        tasks = [
            ("fixed", sampling, [args.tokens] * count),
            ("log-normal", sampling, log_normal(count, args.tokens, 3 * args.tokens)),
            ("judging", judging, [args.verdict_tokens] * count),
        ]
        for name in args.models:
            local = build(name, device, dtype)
            decoder = Decoder(local.model, engine.probe(local), count, 3 * args.tokens, set(), False)
            size = sum(part.numel() for part in local.model.parameters())
            print(f"{name}: {size / 1e6:.1f} M parameters", flush=True)
            for task, requests, lengths in (task for task in tasks if task[0] in args.tasks):

                def ours(greedy: bool) -> list[list[int]]:
                    return by_engine(local, decoder, requests, lengths, greedy)

                def theirs(greedy: bool) -> list[list[int]]:
                    return by_generate(local, requests, lengths, greedy)

                same = sum(ours_row == theirs_row for ours_row, theirs_row in zip(ours(True), theirs(True)))
                if dtype == torch.float32 and same < count:
                    sys.exit(f"{name}: {task}: only {same} of {count} greedy samples are the same; not timed")
                decoder.work.clear()
                ours(task == "judging")
                work = dict(decoder.work)
                times = [(timed(lambda: ours(task == "judging")), timed(lambda: theirs(task == "judging"))) for _ in range(args.repeats)]
                mine, other = zip(*times)
                result = {
                    "model": name, "task": task, "engine_s": statistics.median(mine), "generate_s": statistics.median(other), "ratio": statistics.median(other) / statistics.median(mine),
                    "engine_all_s": mine, "generate_all_s": other, "equal": same, "samples": count, "new_tokens": sum(lengths), "work": work,
                }  # fmt: skip
                results.append(result)
                spread = [f"{min(arm):.2f}-{max(arm):.2f}" for arm in (mine, other)]
                print(f"  {task:12} engine {result['engine_s']:7.2f} s ({spread[0]})  generate {result['generate_s']:7.2f} s ({spread[1]})  {result['ratio']:5.2f} x  "
                      f"{sum(lengths) / result['engine_s']:7.0f} tokens/s  equal {same}/{count}  {work}", flush=True)  # fmt: skip
            del local, decoder
    machine = torch.cuda.get_device_name() if device != "cpu" else platform.processor() or platform.machine()
    versions = f"{machine}, {torch.get_num_threads()} threads, Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    print(versions)
    if args.output:
        Path(args.output).write_text(json.dumps({"machine": versions, "settings": vars(args), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
