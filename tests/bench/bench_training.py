"""Time 04_finetune.py against TRL's SFTTrainer and LLaMA-Factory, on the same rows: useful (label) tokens a
second and peak memory.

    python tests/bench/bench_training.py
    python tests/bench/bench_training.py --trl VENV/bin/python --llama-factory VENV/bin/python
    python tests/bench/bench_training.py --models 7b --problems 16 --steps 1 --trl VENV/bin/python --liger
    python tests/bench/bench_training.py --architectures  # no times: is it exact, on all seven

Every arm is a process that loads model and rows once and then trains as many optimizer steps as it is asked
for, by its own training loop as it is; the peers' are in environments of their own, named by their Pythons.
The arms take turns, timed from the end of one optimizer step to the end of a later one. fp32 on a CPU, AdamW,
the loss on the response only. Before that their losses must agree on the same rows.
  trl             padded batches (it refuses to pack rows with images)
  llama-factory   packed (`neat_packing`)
  packed, shared  ours without a problem's image and question once for all its answers, and as it is
  before          shared, of another checkout of this repository (--before FOLDER)
"""

import argparse
import importlib
import json
import os
import random
import sys
import tempfile
from collections import Counter
from functools import partial
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from arms import Channel, Worker, in_turns, peak_memory, seconds, show

from mathse.cli import Parser

BATCH, MICRO_BATCH = 32, 4  # rows an optimizer step, rows a forward pass where they are not packed
END = "<|im_end|>"  # the last token learnt: the line break behind it is taken from the peers' templates
# pixels of an image's side, words of an answer
SIZES = {"tiny": (64, 24), "toy": (112, 48), "5m": (112, 48), "7b": (896, 300)}


def write_rows(folder: Path, problems: int, side: int, words: int) -> Path:
    """A training file as 04 writes it: noisy images, 4 answers each, of several lengths."""
    from models import make_rows, sampling_requests

    draw, path = random.Random(0), folder / "train.jsonl"
    with path.open("w") as file:
        for request in sampling_requests(make_rows(folder, problems, side), 4):
            for sample in request.seeds:
                count = round(min(3.0, draw.lognormvariate(-0.18, 0.6)) * words) // 6 + 1
                sums = (tuple(map(draw.randrange, (100, 100, 200))) for _ in range(count))
                response = "Step 1: " + " ".join("{} + {} is {}.".format(*each) for each in sums)
                messages = [*request.messages, {"role": "assistant", "content": response}]
                row = request.row | {"messages": messages, "sample": sample, "origin": "sample"}
                print(json.dumps(row), file=file)
    return path


# ---------------------------------------------------------------- workers


class Gate:
    """Holds a training up after each turn's last optimizer step, until the parent asks for more."""

    def __init__(self, channel: Channel):
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self.channel, self.losses, self.counts = channel, list, Counter()
        self.left, self.start = channel.next(), seconds()
        register_optimizer_step_post_hook(self.after_step)

    def count(self, labels: int, tokens: int) -> None:
        self.counts.update(labels=labels, tokens=tokens)

    def after_step(self, *_) -> None:
        self.left -= 1
        if self.left == 0:
            turn = {"seconds": seconds() - self.start, "peak_mb": peak_memory(), "losses": self.losses()}
            self.channel.answer(turn | self.counts)
            self.counts.clear()
            self.left, self.start = self.channel.next(), seconds()


def train_ours(job: dict, gate: Gate) -> None:
    import torch

    from mathse.train.pack import Packing
    from mathse.train.plan import TrainingRows

    finetune, losses = importlib.import_module("04_finetune"), Packing.losses

    def counted(self, model, batch):
        if torch.is_grad_enabled():  # else it only tries whether rows can be packed
            gate.count(len(batch.targets), batch.tokens)
        return losses(self, model, batch)

    Packing.losses = counted
    part, data = Path(job["folder"]), Path(job["data"])
    part.mkdir()
    gate.losses = lambda: [json.loads(line)["loss"] for line in (part / "train_log.jsonl").open()]
    if job["arm"] == "packed":  # each row a problem of its own: nothing is shared
        rows = [row | {"id": str(number)} for number, row in enumerate(map(json.loads, data.open()))]
        data = data.with_name(f"alone-{data.name}")
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = {"input": data, "output": part, "model": job["model"], "lr": 1e-4, "warmup": 0}
    flags |= {"epochs": job["epochs"], "batch-size": job["batch_size"], "micro-batch": job["micro_batch"]}
    flags |= {"max-pixels": 0, "workers": 0, "save-steps": 0}
    sys.argv = ["04_finetune.py", *(f"--{name}={value}" for name, value in flags.items())]
    finetune.train(finetune.parse_args(), job["model"], TrainingRows(data), part)


def peer_flags(job: dict) -> dict:
    """TrainingArguments of both peers: 04's settings."""
    import torch

    cuda = torch.cuda.is_available()
    flags = {"output_dir": job["folder"], "num_train_epochs": job["epochs"], "save_strategy": "no"}
    flags |= {"learning_rate": 1e-4, "lr_scheduler_type": "constant", "optim": "adamw_torch_fused"}
    flags |= {"adam_beta1": 0.9, "adam_beta2": 0.95, "weight_decay": 0.05, "max_grad_norm": 1.0}
    flags |= {"logging_steps": 1, "report_to": "none", "disable_tqdm": True}
    return flags | {"bf16": cuda, "use_cpu": not cuda, "gradient_checkpointing": cuda}


def watch(gate: Gate, by_forward: bool = False):
    """A callback that counts what a peer's model is given; `by_forward`: it logs no mean over tokens."""
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
                if not by_forward:
                    return [entry["loss"] for entry in state.log_history if "loss" in entry]
                total, count = map(sum, zip(*sums))
                return [total / count]

            model.register_forward_hook(after_forward, with_kwargs=True)
            gate.losses = losses

    return Watch()


def read_rows(path: str) -> list[dict]:
    rows = [json.loads(line) for line in open(path)]
    return [row | {"images": [str(Path(path).parent / image) for image in row["images"]]} for row in rows]


def train_trl(job: dict, gate: Gate) -> None:
    import datasets
    import torch
    from trl import SFTConfig, SFTTrainer

    import common
    from mathse.records import IMAGE

    def lesson(row: dict) -> dict:  # it puts the image in front by itself
        prompt = [{"role": "user", "content": row["messages"][0]["content"].removeprefix(IMAGE)}]
        return {"prompt": prompt, "completion": row["messages"][1:], "images": row["images"]}

    processor = common.load_processor(job["model"])
    ending = f"{END}{{{{ '' if loop.last and not add_generation_prompt else '\\n' }}}}{{% endfor %}}"
    processor.chat_template = processor.chat_template.replace(f"{END}\n{{% endfor %}}", ending)
    rows = datasets.Dataset.from_list([*map(lesson, read_rows(job["data"]))])
    rows = rows.cast_column("images", datasets.List(datasets.Image()))
    flags = peer_flags(job) | {"per_device_train_batch_size": job["micro_batch"], "max_length": None}
    flags["gradient_accumulation_steps"] = job["batch_size"] // job["micro_batch"]
    flags["use_liger_kernel"] = job["arm"] == "trl-liger"
    config = SFTConfig(**flags, model_init_kwargs={"dtype": torch.float32})
    trainer = {"train_dataset": rows, "processing_class": processor, "callbacks": [watch(gate)]}
    SFTTrainer(job["model"], config, **trainer).train()


def train_llama_factory(job: dict, gate: Gate) -> None:
    import common

    if find_spec("torchaudio") is None:  # it is imported, but only sound needs it
        sys.modules["torchaudio"] = module_from_spec(ModuleSpec("torchaudio", None))
    from llamafactory.data.formatter import StringFormatter
    from llamafactory.data.template import TEMPLATES
    from llamafactory.train.tuner import run_exp

    TEMPLATES["qwen2_vl"].format_assistant = StringFormatter(slots=["{{content}}" + END])
    common.load_processor(job["model"])  # without torchvision: leaves the video part of processors out
    folder, columns = Path(f"{job['folder']}-data"), {"messages": "messages", "images": "images"}
    folder.mkdir()
    rows = [{name: row[name] for name in columns} for row in read_rows(job["data"])]
    (folder / "rows.json").write_text(json.dumps(rows))
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    info = {"file_name": "rows.json", "formatting": "sharegpt", "columns": columns, "tags": tags}
    (folder / "dataset_info.json").write_text(json.dumps({"rows": info}))
    flags = peer_flags(job)
    flags |= {"stage": "sft", "do_train": True, "finetuning_type": "full", "model_name_or_path": job["model"]}
    flags |= {"template": "qwen2_vl", "default_system": "", "dataset": "rows", "dataset_dir": str(folder)}
    flags |= {"neat_packing": True, "cutoff_len": job["pack"], "flash_attn": "sdpa", "overwrite_cache": True}
    flags |= {"freeze_vision_tower": False, "freeze_multi_modal_projector": False}
    flags |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": job["packs"]}
    flags |= {"image_max_pixels": 1 << 24, "image_min_pixels": 1}
    flags["disable_gradient_checkpointing"] = not flags["gradient_checkpointing"]
    run_exp(flags, [watch(gate, by_forward=True)])


def work(job: dict) -> None:
    import torch

    gate = Gate(Channel())
    torch.set_num_threads(job["threads"])
    {"trl": train_trl, "llama": train_llama_factory}.get(job["arm"].split("-")[0], train_ours)(job, gate)


# ---------------------------------------------------------------- the parent


def measure(name: str, args: argparse.Namespace, folder: Path, rate: float, on_gpu: bool) -> None:
    """All arms with one model."""
    import models
    from roofline import training_flops

    data, few = write_rows(folder, args.problems, *SIZES[name]), folder / "first.jsonl"
    few.write_text("".join(data.read_text().splitlines(keepends=True)[:BATCH]))
    model, here = models.save(name, folder / name), sys.executable
    pythons = {"shared": here, "packed": here, "before": args.before and here, "trl": args.trl}
    pythons |= {"trl-liger": args.liger and args.trl, "llama-factory": args.llama_factory}
    pythons = {arm: python for arm, python in pythons.items() if python}

    def start(arm: str, rows: Path, packs: int, epochs: int) -> Worker:
        job = {"arm": arm, "model": str(model), "data": str(rows), "folder": f"{folder}/{arm}-{rows.stem}"}
        job |= {"packs": packs, "epochs": epochs, "pack": args.pack, "threads": args.threads}
        job |= {"batch_size": BATCH, "micro_batch": MICRO_BATCH}
        script = f"{args.before}/tests/bench/bench_training.py" if arm == "before" else __file__
        return Worker(pythons[arm], script, job, Path(f"{job['folder']}.log"))

    losses, sizes = [], {}
    for arm in pythons:  # packs that are left over at an epoch's end are a step of their own
        worker = start(arm, few, BATCH, 3)
        first, later = worker.ask(1), worker.ask(1)  # some log a step's loss only in the next
        worker.close()
        losses.append((first["losses"] + later["losses"])[0])
        sizes[arm] = first["tokens"] / BATCH
        told = f"{first['labels'] / BATCH:.1f} labels and {sizes[arm]:.1f} tokens computed a row"
        print(f"{name}: {arm:14} loss of the first {BATCH} rows {losses[-1]:.5f}, {told}", flush=True)
    if max(losses) - min(losses) > (2e-2 if on_gpu else 1e-3) * max(losses):
        sys.exit(f"{name}: the losses differ; not timed")
    length = sizes["packed"]
    flops, packs, found = training_flops(model, length), max(1, round(length * BATCH / args.pack)), {}

    def turn(worker: Worker) -> dict[str, float]:
        told = worker.ask(args.steps)
        labels, tokens, taken = told["labels"], told["tokens"], told["seconds"]
        shares = {"% labels": 100 * labels / tokens, "% of products": 100 * tokens * flops / taken / rate}
        return {"label tokens/s": labels / taken} | shares | {"MB": told["peak_mb"]}

    for group in [[arm] for arm in pythons] if on_gpu else [list(pythons)]:  # a GPU holds one at a time
        workers = {arm: start(arm, data, packs, 1000) for arm in group}
        for worker in workers.values():
            worker.ask(1)  # loads everything
        found |= in_turns({arm: partial(turn, worker) for arm, worker in workers.items()}, args.repeats)
        for worker in workers.values():
            worker.close()
    show(found)


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        return work(json.loads(sys.argv[2]))
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--models", nargs="+", choices=SIZES, default=["toy", "5m"], help="default: %(default)s")
    add("--trl", metavar="PYTHON", help="of an environment with trl and peft")
    add("--liger", action="store_true", help="trl once more with Liger's kernels, which need a GPU")
    add("--llama-factory", metavar="PYTHON", help="of an environment with llamafactory")
    add("--pack", type=int, default=512, help="tokens a forward pass of llama-factory (default %(default)s)")
    add("--problems", type=int, default=64, help="of 4 rows each (default %(default)s)")
    add("--steps", type=int, default=2, help="optimizer steps a turn (default %(default)s)")
    add("--repeats", type=int, default=5, help="default: %(default)s")
    add("--threads", type=int, default=1, help="of every arm (default %(default)s)")
    add("--before", metavar="FOLDER", help="another checkout, as one more arm")
    add("--architectures", action="store_true", help="try seven, by tests/test_training.py")
    args = parser.parse_args()
    if args.architectures:
        tests = ["tests/test_training.py", "-k", "one_row_at_a_time or overfits"]
        os.chdir(ROOT)
        os.environ["ARCHITECTURES"] = "all"
        os.execv(sys.executable, [sys.executable, "-m", "pytest", "-q", "-n", "2", *tests])
    import models
    import torch
    from roofline import matmul_rate

    import common

    torch.set_num_threads(args.threads)
    device, dtype, _ = common.setup_kernels()
    rate = matmul_rate(device, dtype)
    print(f"matrix products {rate / 1e12:.3f} TFLOP/s", flush=True)
    for name in models.choose(args.models, device):
        with tempfile.TemporaryDirectory() as folder:
            measure(name, args, Path(folder), rate, device != "cpu")


if __name__ == "__main__":
    main()
