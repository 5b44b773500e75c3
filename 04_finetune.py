"""Fine-tune a student on accepted responses, or (--orm) an outcome reward model on explained ones.

Reads:  verified.jsonl   id, question, images, sample, response, status, finish, origin, prompt; or a training
                         file: rows with messages, images, id, sample, origin
        annotated.jsonl  with --orm, beside verified.jsonl: + teacher_check, error_step, error_analysis
Writes: OUTPUT/          a model folder that `from_pretrained` loads, with recipe.json (rows, steps, loss,
                         label_tokens, rows_left_out) and train_log.jsonl: step, loss, lr, grad_norm, tokens
                         (learnt), left_out (rows), tokens_per_second (all that pass the model)
        train.jsonl      the rows trained on: messages and images as TRL, ms-swift and LLaMA-Factory read
                         them, id, sample, origin, weight (if training_row() gives one), and where the
                         response comes from: model, seed, verified_in (the file of its verdict), of
                         reflections draft_of (the draft's); paths are relative to train.jsonl

Correct rows are learnt; with --orm also the wrong ones that the teacher explains (teacher_check "wrong"), not
what an ORM or the answer check alone calls wrong. A text counts once, in however many files it stands, and
not as correct if the teacher finds it wrong in any.

    python 04_finetune.py --input verified.jsonl --output model --model toy/base --lr 1e-3 --batch-size 32
    torchrun --nproc_per_node 8 04_finetune.py --input verified.jsonl --output model \\
        --model Qwen/Qwen2-VL-7B-Instruct --freeze vision
"""

import importlib.util
import json
import math
import random
from argparse import Namespace
from array import array
from collections import defaultdict
from functools import partial
from heapq import nsmallest
from pathlib import Path
from zlib import crc32

from common import judge_prompt, load_model, load_processor, setup_kernels
from mathse.chat import harmless, user_message
from mathse.cli import Parser, add_output_flags, check_model, real, whole
from mathse.images import MAX_PIXELS
from mathse.launch import stage_end
from mathse.recipe import Recipe
from mathse.records import fail, read_rows
from mathse.replies import verdict_text
from mathse.train.plan import TrainingRows, remove_unneeded

# As in the paper (Table 6), with cosine decay and a global batch of 128. Qwen2-VL: 1e-5 with warm-up 0.1,
# CogVLM2: 2e-5 with 0.01, InternVL2.5: 2e-5 with 0.03.
BETAS, WEIGHT_DECAY, CLIP = (0.9, 0.95), 0.05, 1.0
SUBJECT_RATIO = 4  # see balanced()
SHINGLES = 64  # see shingles()
OF_ORMS = ("judge_prompt", "balanced", "SUBJECT_RATIO")  # their edit concerns no student
WITHOUT = "train_file micro_batch recompute save_steps log_with processes model previous".split()


def parse_args() -> Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--input", nargs="+", required=True, help="verified.jsonl or train.jsonl files")
    add("--output", type=Path, required=True, help="model folder to write")
    add("--train-file", type=Path, help="training file to write (default OUTPUT.train.jsonl)")
    add("--model", required=True, help="the base: model folder or hub id")
    add("--previous", help="the model of the round before, for --init previous")
    add("--init", choices=["base", "previous"], default="base", help="first weights (default %(default)s)")
    add("--orm", action="store_true", help="train a judge on correct and wrong responses")
    add("--wrong-ratio", type=real(0, above=True), default=1.0, help="of an ORM: wrong ones a correct one")
    add("--binary", action="store_true", help="with --orm: learn the status alone (ablation)")
    add("--per-problem", type=whole(1), default=4, help="responses a problem and status (default 4)")
    add("--epochs", type=real(0, above=True), default=1.0, help="passes over the rows (default %(default)s)")
    add("--lr", type=real(0, above=True), default=1e-5, help="peak learning rate (default %(default)s)")
    add("--warmup", type=real(0, 1), default=0.1, help="share of the steps (default %(default)s)")
    add("--batch-size", type=whole(1), default=128, help="rows a step, all processes (default %(default)s)")
    add("--micro-batch", type=whole(1), default=4, help="rows a forward pass, at most (default %(default)s)")
    add("--max-length", type=whole(1), default=4096, help="tokens a row, at most (default %(default)s)")
    add("--max-pixels", type=whole(0), default=MAX_PIXELS, help="as in sampling (default %(default)s)")
    add("--freeze", choices=["vision"], help="train the language part only (default: all)")
    add("--lora", type=whole(0), default=0, metavar="RANK", help="adapters on the language part; needs peft")
    add("--recompute", type=real(0, 1), help="share of layers computed again in backward (on a GPU 1)")
    add("--save-steps", type=whole(0), default=200, help="steps a checkpoint; 0: none (default %(default)s)")
    add("--log-with", help="a tracker of accelerate, such as tensorboard, beside train_log.jsonl")
    add("--workers", type=whole(0), default=1, help="processes that prepare batches (default %(default)s)")
    add("--processes", type=whole(1), help="that train (default: as many as the machine has use for)")
    add("--limit", type=whole(0), default=0, help="the first N training rows (default: all)")
    add("--trust-remote-code", action="store_true", help="run the Python code in the model's folder")
    add("--seed", type=whole(0), default=0, help="of the order of the rows (default %(default)s)")
    add_output_flags(parser)
    return parser.parse_args()


# ---------------------------------------------------------------- which rows


def shingles(response: str) -> array:
    """What is kept of a response, to tell how like two are: a digest of it, and the SHINGLES smallest of its
    word pairs. Numbers count as words: two ways to a result differ.
    """
    words = response.split()
    pairs = {crc32(f"{first} {second}".encode()) for first, second in zip(words, words[1:])}
    return array("I", [crc32(" ".join(words).encode()), *nsmallest(SHINGLES, pairs)])


def pick_diverse(rows: list[tuple[object, array]], count: int) -> list:
    """Keys of `count` of the (key, shingles), no text twice: the first, then always the one least like those
    taken, by the share of common word pairs (Jaccard).
    """

    def likeness(some: set, others: set) -> float:
        return len(some & others) / (len(some | others) or 1)

    texts = {}
    for key, (text, *pairs) in rows:
        texts.setdefault(text, (key, {*pairs}))
    left = [*texts.values()]
    taken = [left.pop(0)] if left else []
    while left and len(taken) < count:
        alike = [max(likeness(pairs, other) for _, other in taken) for _, pairs in left]
        taken.append(left.pop(alike.index(min(alike))))
    return [key for key, _ in taken]


def balanced(keys: dict[tuple[str, str], list], seed: int, ratio: float = 1.0) -> list:
    """Correct responses and `ratio` times as many wrong ones to train an ORM on, drawn by the seed from
    {(status, subject): keys}.

    Within a subject at most SUBJECT_RATIO of one kind for each of the other: else the ORM learns which
    subjects are hard, and calls every response to them wrong.
    """
    rng, chosen = random.Random(seed), {"correct": [], "wrong": []}
    for subject in sorted({subject for _, subject in keys}):
        found = {status: keys.get((status, subject), []) for status in chosen}
        most = SUBJECT_RATIO * max(1, min(map(len, found.values())))
        for status, group in found.items():
            chosen[status] += rng.sample(group, min(most, len(group)))
    count = min(len(chosen["correct"]), math.ceil(len(chosen["wrong"]) / ratio))
    counts = {"correct": count, "wrong": min(len(chosen["wrong"]), math.ceil(count * ratio))}
    return [key for status, group in chosen.items() for key in rng.sample(group, counts[status])]


def is_usable(row: dict, orm: bool) -> bool:
    """Whether a row may be trained on: a judge cannot learn why a response is wrong unless it is told."""
    told = orm and row["status"] == row.get("teacher_check") == "wrong" and row.get("error_analysis")
    fit = row.get("finish", "stop") == "stop" and row["response"].strip()
    return bool(fit and (told or row["status"] == "correct"))


def choose_rows(args: Namespace) -> set[tuple[str, str, int]]:
    """The (file, id, sample) to train on, whatever the order of the rows in the files."""
    required = ("id", "question", "sample", "response", "status", *(() if args.orm else ("prompt",)))
    groups, subjects, doubted, chosen = defaultdict(list), {}, set(), defaultdict(list)
    for number, path in enumerate(args.input):
        for row in read_rows(path, required, may_be_empty=True):
            if args.orm and row.get("teacher_check") == "wrong":
                doubted.add(("correct", row["id"], shingles(row["response"])[0]))
            if is_usable(row, args.orm):
                groups[row["status"], row["id"]].append((number, row["sample"], shingles(row["response"])))
                subjects[row["id"]] = str(row.get("subject"))
    for (status, name), rows in sorted(groups.items()):
        rows = sorted(row for row in rows if (status, name, row[-1][0]) not in doubted)
        texts = [((str(args.input[file]), name, sample), text) for file, sample, text in rows]
        chosen[status, subjects[name]] += pick_diverse(texts, args.per_problem)
    if args.orm:
        return {*balanced(chosen, args.seed, args.wrong_ratio)}
    return {key for keys in chosen.values() for key in keys}


def training_row(row: dict, args: Namespace) -> dict:
    """What a verified row teaches: its prompt, or the judge's, and the reply to it. A "weight" beside them
    counts for each label of the row: 2 is the row twice, the default is 1.
    """
    prompt, reply, more = row.get("prompt"), row["response"], {}
    if args.orm:
        prompt, more = judge_prompt(row), {"status": row["status"]}
        told = (row.get("error_step"), row["error_analysis"]) if row["status"] == "wrong" else ()
        status = "WRONG" if told else "CORRECT"
        reply = json.dumps({"status": status}) if args.binary else verdict_text(status, *told)
    said = {"role": "assistant", "content": harmless(reply)}
    return {"messages": [*user_message(prompt, row["images"]), said], "images": row["images"]} | more


# ---------------------------------------------------------------- loss, optimizer, schedule


def token_loss(logits, targets):
    """The loss of each label (n), from logits (n, V) in fp32: cross-entropy."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits, targets, reduction="none")


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Linear warm-up over the first share of the steps, then a cosine to zero."""
    rise = max(1, round(steps * warmup))
    if step < rise:
        return peak * (step + 1) / rise
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def make_optimizer(model):
    """AdamW; norms and biases do not decay. The learning rate is set at each step."""
    from torch.optim import AdamW

    trained = [weight for weight in model.parameters() if weight.requires_grad]
    matrices = {"params": [weight for weight in trained if weight.ndim > 1], "weight_decay": WEIGHT_DECAY}
    vectors = {"params": [weight for weight in trained if weight.ndim <= 1], "weight_decay": 0.0}
    return AdamW([group for group in (matrices, vectors) if group["params"]], betas=BETAS, fused=True)


# ---------------------------------------------------------------- training


def train(args: Namespace, spec: str, rows: TrainingRows, part: Path) -> dict:
    """Train in the folder `part`, from its last checkpoint on; what the recipe tells of it. A step's loss is
    sum(weight * loss of a label) / sum(weight) over the labels of all processes.
    """
    from mathse.train.fit import Session

    device, _, attention = setup_kernels()
    session = Session(args, rows, part, device)
    processor = load_processor(spec, args.trust_remote_code)
    model = load_model(spec, device, session.dtype, attention, args.trust_remote_code)
    session.open(model, processor, make_optimizer, token_loss)
    for step in session.remaining():
        batches, weight = session.take(step)
        rate = learning_rate(step, session.steps, args.lr, args.warmup)
        loss = 0.0
        for batch in session.accumulate(batches):
            part_loss = (session.losses(batch) * batch.weights).sum() / weight
            session.backward(part_loss)
            loss += part_loss.detach()
        norm, loss = session.clip(CLIP), session.sum(loss).item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            remedy = f"look at the rows of this step, or remove {part} and start anew with a lower --lr"
            fail(f"step {step}: the loss is {loss}, the norm of its gradient {norm}; {remedy}")
        session.update(rate)
        session.finish_step(step, {"step": step, "loss": loss, "lr": rate, "grad_norm": norm})
    return session.save(spec)


def main() -> None:
    args = parse_args()
    source = args.init.replace("base", "model")  # the flag that names the first weights
    if not (spec := getattr(args, source)):
        fail("--previous: needed for --init previous; name the model folder of the round before")
    check_model(args, spec, trained=True, flag=f"--{source}")
    if args.lora and not importlib.util.find_spec("peft"):
        fail("--lora: peft is not installed here; pip install peft")
    if args.log_with:
        from mathse.train.fit import check_tracker

        check_tracker(args.log_with)
    unused = () if args.orm else OF_ORMS
    recipe = Recipe(args.output, __file__, args, ("input", source), WITHOUT, unused=unused, is_folder=True)
    recipe.refuse_inside("train_file", [args.train_file] if args.train_file else [])
    if args.dry_run is not None:
        return recipe.stands()
    if recipe.is_done():
        return remove_unneeded(args.output)
    from mathse.train.fit import run

    choose, make = partial(choose_rows, args), partial(training_row, args=args)
    run(args, spec, recipe, choose, make, partial(train, args, spec))


if __name__ == "__main__":
    with stage_end():
        main()
