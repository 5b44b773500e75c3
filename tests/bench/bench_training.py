"""Time 04_finetune.py against TRL's SFTTrainer and LLaMA-Factory, on the same rows: useful (label) tokens a
second and peak memory.

Writes: a table on stdout; with --output the numbers as JSON.

    python tests/bench/bench_training.py
    python tests/bench/bench_training.py --trl VENV/bin/python --llama-factory VENV/bin/python
    python tests/bench/bench_training.py --models 7b --problems 16 --steps 1 --trl VENV/bin/python --liger
    python tests/bench/bench_training.py --architectures  # no times: is it exact, on all seven

7b needs a GPU of 141 GB; without one the tiny model takes its place.

The peers live in environments of their own, named by their Pythons; without them only our arms run. Every
arm is a process that loads model and rows once and then trains as many optimizer steps as it is asked for;
the arms take turns. Each runs its own training loop, as it is: what is timed is from the end of one
optimizer step to the end of a later one, everything between included. fp32 on a CPU, AdamW, the loss on the
response only. Before it is timed, the arms' losses at the first step must agree on the same rows.
  trl             padded batches (it refuses to pack rows with images)
  llama-factory   packed (`neat_packing`)
  alone           ours, one row a forward pass, as a model trains that cannot be packed
  packed          ours, no padding
  shared          ours as it is: packed, a problem's image and question once for all its answers
  before          shared, of another checkout of this repository (--before FOLDER)
"""

import argparse
import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests/bench")]

from worker import Channel, Worker, peak_memory, seconds, versions

BETAS, WEIGHT_DECAY, CLIP = (0.9, 0.95), 0.05, 1.0  # of every arm
# the last token learnt: the peers would learn the line break behind it, too, so it is taken from their
# templates
END = "<|im_end|>"
# pixels of a image's side, words of an answer
SIZES = {"tiny": (64, 24), "toy": (112, 48), "5m": (112, 48), "7b": (896, 300)}
OURS = ("shared", "packed", "alone")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models",
        nargs="+",
        choices=SIZES,
        default=["toy", "5m"],
        help="as in bench_engine.py (default %(default)s)",
    )
    parser.add_argument("--arms", nargs="+", choices=OURS, default=OURS, help="ours (default: all)")
    parser.add_argument("--trl", metavar="PYTHON", help="of an environment with trl and peft")
    parser.add_argument(
        "--liger", action="store_true", help="trl once more with Liger's kernels, which need a GPU"
    )
    parser.add_argument("--llama-factory", metavar="PYTHON", help="of an environment with llamafactory")
    parser.add_argument("--problems", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--answers", type=int, default=4, help="of a problem (default %(default)s)")
    parser.add_argument(
        "--words", type=int, help="of an answer, on average; log-normal (default: by the model)"
    )
    parser.add_argument("--side", type=int, help="pixels, of a image's sides (default: by the model)")
    parser.add_argument(
        "--batch-size", type=int, default=32, help="rows an optimizer step (default %(default)s)"
    )
    parser.add_argument(
        "--micro-batch", type=int, default=4, help="rows a forward pass of the others (default %(default)s)"
    )
    parser.add_argument(
        "--pack",
        type=int,
        default=512,
        help="tokens a forward pass of llama-factory (default %(default)s, its fastest on a CPU)",
    )
    parser.add_argument("--steps", type=int, default=2, help="optimizer steps a turn (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="of every arm (default %(default)s)")
    parser.add_argument("--before", metavar="FOLDER", help="another checkout, as one more arm")
    parser.add_argument("--architectures", action="store_true", help="try seven, by tests/test_training.py")
    parser.add_argument("--output", help="JSON file")
    return parser.parse_args()


def write_rows(folder: Path, problems: int, answers: int, side: int, words: int) -> Path:
    """A training file as 04 writes it: problems with a noisy image, each with answers of several
    lengths.
    """
    from PIL import Image

    from common import solve_prompt
    from mathse.chat import user_message

    draw = random.Random(0)
    path = folder / "train.jsonl"
    with path.open("w") as file:
        for problem in range(problems):
            Image.effect_noise((side, side), 90).convert("RGB").save(folder / f"{problem}.png")
            for sample in range(answers):
                count = round(min(3.0, draw.lognormvariate(-0.18, 0.6)) * words)
                response = "Step 1: " + " ".join(
                    f"{draw.randrange(100)} + {draw.randrange(100)} is {draw.randrange(200)}."
                    for _ in range(count // 6 + 1)
                )
                row = {
                    "id": str(problem),
                    "question": f"What is the area of the rectangle with sides {problem} and 8?",
                    "images": [f"{problem}.png"],
                }
                messages = [
                    *user_message(solve_prompt(row), row["images"]),
                    {"role": "assistant", "content": response},
                ]
                file.write(
                    json.dumps(
                        {
                            "messages": messages,
                            "images": row["images"],
                            "id": row["id"],
                            "sample": sample,
                            "origin": "sample",
                        }
                    )
                    + "\n"
                )
    return path


# ---------------------------------------------------------------- workers


class Gate:
    """Holds a training up after each turn's last optimizer step, until the parent asks for more."""

    def __init__(self, channel: Channel):
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self.channel, self.left, self.counts, self.losses = channel, channel.next(), [0, 0], list
        register_optimizer_step_post_hook(self.after_step)
        self.start = seconds()

    def count(self, labels: int, tokens: int) -> None:
        self.counts = [self.counts[0] + labels, self.counts[1] + tokens]

    def after_step(self, *_) -> None:
        self.left -= 1
        if self.left == 0:
            answer = {
                "seconds": seconds() - self.start,
                "labels": self.counts[0],
                "tokens": self.counts[1],
                "peak_mb": peak_memory(),
                "losses": self.losses(),
            }
            self.channel.answer(answer)
            self.left, self.counts, self.start = self.channel.next(), [0, 0], seconds()


def train_ours(job: dict, gate: Gate) -> None:
    import torch

    from mathse.train import fit
    from mathse.train.pack import Packing
    from mathse.train.plan import TrainingRows

    finetune = importlib.import_module("04_finetune")
    losses = Packing.losses

    def counted(self, model, batch):
        if torch.is_grad_enabled():  # else it only tries whether rows can be packed
            gate.count(len(batch.targets), batch.tokens)
        return losses(self, model, batch)

    Packing.losses = counted
    part = Path(job["folder"])
    part.mkdir()
    gate.losses = lambda: [json.loads(line)["loss"] for line in (part / "train_log.jsonl").open()]
    data = Path(job["data"])
    if job["arm"] == "packed":  # each row a problem of its own: nothing is shared
        rows = [row | {"id": str(number)} for number, row in enumerate(map(json.loads, data.open()))]
        data = data.with_name(f"alone-{data.name}")
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = {"input": data, "output": part, "model": job["model"], "lr": 1e-4, "warmup": 0}
    flags |= {"epochs": job["epochs"], "batch-size": job["batch_size"], "micro-batch": job["micro_batch"]}
    if job["arm"] == "alone":
        fit.why_not = lambda *_: "for comparison"
    flags |= {"max-pixels": 0, "workers": 0, "save-steps": 0}
    words = (word for name, value in flags.items() for word in (f"--{name}", value))
    sys.argv = ["04_finetune.py", *map(str, words)]
    finetune.train(finetune.parse_args(), job["model"], TrainingRows(data), part)


def peer_flags(job: dict) -> dict:
    """TrainingArguments of both peers."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "output_dir": job["folder"],
        "num_train_epochs": job["epochs"],
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "adam_beta1": BETAS[0],
        "adam_beta2": BETAS[1],
        "weight_decay": WEIGHT_DECAY,
        "max_grad_norm": CLIP,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": cuda,
        "use_cpu": not cuda,
        "gradient_checkpointing": cuda,
        "dataloader_num_workers": 0,
        "disable_tqdm": True,
    }


def watch(gate: Gate, by_forward: bool = False):
    """A callback that counts what a peer's model is given.

    `by_forward`: the peer logs the mean over forward passes, so the mean over tokens is taken here.
    """
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **settings):
            sums = []

            def after_forward(module, args, inputs, out) -> None:
                labels = int((inputs["labels"] != -100).sum())
                gate.count(labels, inputs["input_ids"].numel())
                if by_forward:
                    sums.append((float(out.loss.detach()) * labels, labels))

            def losses() -> list[float]:
                return [sum(loss for loss, _ in sums) / sum(count for _, count in sums)]

            model.register_forward_hook(after_forward, with_kwargs=True)
            gate.losses = (
                losses
                if by_forward
                else lambda: [entry["loss"] for entry in state.log_history if "loss" in entry]
            )

    return Watch()


def read_rows(path: Path) -> list[dict]:
    rows = [json.loads(line) for line in path.open()]
    return [row | {"images": [str(path.parent / image) for image in row["images"]]} for row in rows]


def train_trl(job: dict, gate: Gate) -> None:
    import datasets
    import torch
    from trl import SFTConfig, SFTTrainer

    import common
    from mathse.records import IMAGE

    def row(row: dict) -> dict:  # it puts the image in front by itself
        prompt = [{"role": "user", "content": row["messages"][0]["content"].removeprefix(IMAGE)}]
        return {"prompt": prompt, "completion": row["messages"][1:], "images": row["images"]}

    processor = common.load_processor(job["model"])
    processor.chat_template = processor.chat_template.replace(
        f"{END}\n{{% endfor %}}",
        f"{END}{{{{ '' if loop.last and not add_generation_prompt else '\\n' }}}}{{% endfor %}}",
    )
    rows = datasets.Dataset.from_list([row(each) for each in read_rows(Path(job["data"]))]).cast_column(
        "images", datasets.List(datasets.Image())
    )
    config = SFTConfig(
        **peer_flags(job),
        per_device_train_batch_size=job["micro_batch"],
        gradient_accumulation_steps=job["batch_size"] // job["micro_batch"],
        max_length=None,
        use_liger_kernel=job["arm"] == "trl-liger",
        model_init_kwargs={"dtype": torch.float32},
    )
    SFTTrainer(
        job["model"], config, train_dataset=rows, processing_class=processor, callbacks=[watch(gate)]
    ).train()


def train_llama_factory(job: dict, gate: Gate) -> None:
    import common

    if importlib.util.find_spec("torchaudio") is None:  # it is imported, but only sound needs it
        sys.modules["torchaudio"] = importlib.util.module_from_spec(
            importlib.machinery.ModuleSpec("torchaudio", None)
        )
    from llamafactory.data.formatter import StringFormatter
    from llamafactory.data.template import TEMPLATES
    from llamafactory.train.tuner import run_exp

    TEMPLATES["qwen2_vl"].format_assistant = StringFormatter(slots=["{{content}}" + END])
    # where torchvision is missing: leaves the video part of processors out
    common.load_processor(job["model"])
    folder = Path(f"{job['folder']}-data")
    folder.mkdir()
    (folder / "rows.json").write_text(
        json.dumps(
            [{"messages": row["messages"], "images": row["images"]} for row in read_rows(Path(job["data"]))]
        )
    )
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    columns = {"messages": "messages", "images": "images"}
    (folder / "dataset_info.json").write_text(
        json.dumps(
            {"rows": {"file_name": "rows.json", "formatting": "sharegpt", "columns": columns, "tags": tags}}
        )
    )
    run_exp(
        peer_flags(job)
        | {
            "stage": "sft",
            "do_train": True,
            "finetuning_type": "full",
            "model_name_or_path": job["model"],
            "template": "qwen2_vl",
            "default_system": "",
            "dataset": "rows",
            "dataset_dir": str(folder),
            "neat_packing": job["arm"] == "llama-factory",
            "cutoff_len": job["pack"],
            "flash_attn": "sdpa",
            "freeze_vision_tower": False,
            "freeze_multi_modal_projector": False,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": job["packs"],
            "overwrite_cache": True,
            "image_max_pixels": 1 << 24,
            "image_min_pixels": 1,
            "disable_gradient_checkpointing": not peer_flags(job)["bf16"],
        },
        [watch(gate, by_forward=True)],
    )


def work(job: dict) -> None:
    import torch

    gate = Gate(Channel())
    torch.set_num_threads(job["threads"])
    {"trl": train_trl, "llama": train_llama_factory}.get(job["arm"].split("-")[0], train_ours)(job, gate)


# ---------------------------------------------------------------- the parent


def training_flops(model: Path, length: float) -> float:
    """Of a token in a sequence of `length`: 6 a weight and what attention computes; what is recomputed,
    and the vision tower, not counted.
    """
    import torch
    from roofline import step_of
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        step = step_of(AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(model)))
    return 6 * step.weights + 3 * step.token_flops * length / 2


def start_arm(
    args: argparse.Namespace,
    model: Path,
    folder: Path,
    pythons: dict,
    arm: str,
    data: Path,
    packs: int,
    epochs: int,
) -> Worker:
    place = folder / f"{arm}-{data.stem}"
    job = {"arm": arm, "model": str(model), "data": str(data), "folder": str(place)}
    job |= {"packs": packs, "epochs": epochs, "pack": args.pack, "threads": args.threads}
    job |= {"batch_size": args.batch_size, "micro_batch": args.micro_batch}
    script = __file__
    if arm == "before":
        job["arm"], script = "shared", f"{args.before}/tests/bench/bench_training.py"
    return Worker(pythons[arm], script, job, Path(f"{place}.log"))


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        return work(json.loads(sys.argv[2]))
    args = parse_args()
    if args.architectures:
        tests = ["tests/test_training.py", "-k", "one_row_at_a_time or overfits"]
        command = [sys.executable, "-m", "pytest", "-q", "-n", "2", *tests]
        sys.exit(subprocess.run(command, cwd=ROOT, env=os.environ | {"ARCHITECTURES": "all"}).returncode)
    import bench_engine
    import torch
    from roofline import matmul_rate

    import common
    from mathse.train.pack import encode
    from mathse.train.plan import TrainingRows

    device, dtype, _ = common.setup_kernels(args.threads)
    if device == "cpu" and "7b" in args.models:
        print("no CUDA device: the tiny model instead of 7b")
        args.models = ["tiny" if name == "7b" else name for name in args.models]
    rate = matmul_rate(device, dtype)
    kind = torch.cuda.get_device_name() if device != "cpu" else "CPU"
    machine = f"{kind}, {args.threads} threads, {versions('torch', 'transformers')}"
    print(f"{machine}\nmatrix products {rate / 1e12:.3f} TFLOP/s", flush=True)
    pythons = {arm: sys.executable for arm in args.arms}
    pythons |= {"before": sys.executable} if args.before else {}
    pythons |= {"trl": args.trl} if args.trl else {}
    pythons |= {"trl-liger": args.trl} if args.trl and args.liger else {}
    pythons |= {"llama-factory": args.llama_factory} if args.llama_factory else {}
    results = []
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            data = write_rows(
                folder,
                args.problems,
                args.answers,
                *(given or default for given, default in zip((args.side, args.words), SIZES[name])),
            )
            first = folder / "first.jsonl"
            first.write_text("".join(data.read_text().splitlines(keepends=True)[: args.batch_size]))
            model = bench_engine.save(name, folder / name)
            settings = {"rows": TrainingRows(first), "processor": common.load_processor(str(model))}
            settings["args"] = argparse.Namespace(max_pixels=0, max_length=1 << 30)
            alone = [encode([k], packed=False, **settings)[0] for k in range(args.batch_size)]
            length = statistics.mean(row.tokens for row in alone)
            learnt = statistics.mean(len(row.targets) for row in alone)
            print(f"{name}: rows of {length:.0f} tokens, {learnt:.0f} labels, {args.answers} to a problem")

            start = partial(start_arm, args, model, folder, pythons)
            loss = {}
            # one step on the same rows; packs that are left over at the end of an epoch are a step of their
            # own
            for arm in pythons:
                worker = start(arm, first, args.batch_size, 3)
                answers = [worker.ask(1), worker.ask(1)]  # some log a step's loss only in the next
                worker.close()
                if error := answers[0].get("error"):
                    sys.exit(f"{name}: {arm}: {error}")
                loss[arm] = (answers[0]["losses"] + answers[1]["losses"])[0]
                print(
                    f"  {arm:14} loss of the first {args.batch_size} rows {loss[arm]:.5f}, "
                    f"{answers[0]['labels']} label tokens, {answers[0]['tokens']} tokens computed",
                    flush=True,
                )
            if max(loss.values()) - min(loss.values()) > (1e-3 if device == "cpu" else 2e-2) * max(
                loss.values()
            ):
                sys.exit(f"{name}: the losses differ; not timed")

            answers = {arm: [] for arm in pythons}
            # a GPU holds one at a time
            for group in [[arm] for arm in pythons] if device != "cpu" else [list(pythons)]:
                workers = {
                    arm: start(arm, data, max(1, round(length * args.batch_size / args.pack)), 1000)
                    for arm in group
                }
                for worker in workers.values():
                    worker.ask(1)  # loads everything
                for _ in range(args.repeats):
                    for arm, worker in workers.items():
                        answers[arm].append(worker.ask(args.steps))
                for worker in workers.values():
                    worker.close()
            flops, speed = training_flops(model, length), {}
            for arm, turns in answers.items():
                speeds = [turn["labels"] / turn["seconds"] for turn in turns]
                speed[arm] = statistics.median(speeds)
                labels, tokens, spent = (
                    sum(turn[key] for turn in turns) for key in ("labels", "tokens", "seconds")
                )
                result = {
                    "model": name,
                    "arm": arm,
                    "label_tokens_s": speed[arm],
                    "share": labels / tokens,
                    "mfu": tokens * flops / spent / rate,
                    "peak_mb": turns[-1]["peak_mb"],
                    "first_loss": loss[arm],
                    "turns": turns,
                }
                results.append(result)
                first = next(iter(speed))
                print(
                    f"  {arm:14} {speed[arm]:7.0f} label tokens/s ({min(speeds):.0f}-{max(speeds):.0f}), "
                    f"{first} is {speed[first] / speed[arm]:.2f} x as fast; "
                    f"{100 * result['share']:.0f} % of the tokens computed are labels; "
                    f"{100 * result['mfu']:.0f} % of the matrix products; peak {result['peak_mb']:.0f} MB",
                    flush=True,
                )
    if args.output:
        Path(args.output).write_text(
            json.dumps(
                {"machine": machine, "settings": vars(args), "matmul_flop_s": rate, "results": results},
                indent=1,
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
