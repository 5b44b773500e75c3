"""Train the toy base model: a small Qwen2-VL that sees, counts, calculates and checks, but was never shown
how to solve a picture problem.

Writes: a folder that `from_pretrained` loads (bf16 safetensors, tokenizer, processor, chat template).

    python toy/pretrain.py --output toy/base --steps 3000 --seed 0
    python toy/pretrain.py --output /tmp/base --steps 20

Its lessons (TASKS): say what a picture shows; calculate; solve problems given in words, of six of the ten
families only (WORD_FAMILIES); check statements about pictures and sums, half of them wrong, and correct
them. A picture and a question together are answered by a description: putting the skills together is what
the loop has to teach. The first EASY_SHARE of the steps are only seeing, calculating and checking single
lines.

Beside the reply, the model learns (each of these shortens a plateau that otherwise outlasts an hour):
  seeing    each visual token names what its cell holds.
  verdicts  after each digit and each line of a statement, "Yes" or "No": is it right so far?
  early     what a statement ought to say: NEXT_LAYER names the next right token, THIS_LAYER the right token
            at its own place. Only with these is a comparison with what the statement says learnt; without,
            checking stays at chance.
"""

import argparse
import collections
import itertools
import json
import multiprocessing
import random
import re
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
import problems as toy

from common import CLOSING, JUDGE_PROMPT, SOLVE_PROMPT
from mathse.chat import fill, question_text

WORD_FAMILIES = [
    "rectangle_area",
    "rectangle_perimeter",
    "triangle_perimeter",
    "triangle_angle",
    "bars_difference",
    "bars_total",
]
# to describe: heights in a coordinate plane are learnt last, so these are shown more often
PICTURES = [*toy.FAMILIES, *["points_area"] * 5]
IMAGE_TOKENS = (toy.CELLS) ** 2
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PATCH, MERGE = 8, 2  # pixels of a patch's side, patches of a visual token's: a token sees a cell of a picture
SHAPE = {"hidden": 128, "layers": 6, "heads": 4, "mlp": 256, "vision_depth": 2, "vision_width": 96}

EASY_SHARE = 0.35
NEXT_LAYER, THIS_LAYER = 3, 4  # of SHAPE's layers
EARLY_WEIGHT = 0.5  # of the early loss
SEE_WEIGHT = 1.0  # of the visual tokens' own loss


# ---------------------------------------------------------------- lessons


class Example(NamedTuple):
    """A lesson: picture (or None), what is asked, the reply; with statements to check, their lines as
    given and as they would be right.
    """

    picture: object
    text: str
    reply: str
    given: list[str] = []
    right: list[str] = []


def describe_briefly(rng: random.Random) -> Example:
    canvas, _, reply = draw_description(rng)
    return Example(canvas, "Describe the picture.", reply)


def describe(rng: random.Random) -> Example:
    canvas, record, reply = draw_description(rng)
    question = question_text(record)
    return Example(
        canvas,
        rng.choice(["What does the picture show?", question, fill(SOLVE_PROMPT, question=question)]),
        reply,
    )


def draw_description(rng: random.Random) -> tuple:
    name = rng.choice(PICTURES)
    record, numbers, canvas = toy.make_problem(name, rng)
    return canvas, record, f"The picture shows {toy.FAMILIES[name].facts.format(**numbers)}."


def one_sum(rng: random.Random) -> tuple[str, int]:
    """A calculation as the families need it: ("7 * 5 =", 35)"""
    family = rng.choice(list(toy.FAMILIES.values()))
    lines, _ = toy.work_out(family, family.numbers(rng))
    left, right = rng.choice(re.findall(r"(\d+ [-+*] \d+ =) (\d+)\.", " ".join(lines)))
    return left, int(right)


def calculate(rng: random.Random) -> Example:
    sums = [one_sum(rng) for _ in range(rng.randint(3, 6))]
    return Example(
        None,
        "\n".join(f"{left} ?" for left, _ in sums),
        "\n".join(f"{left} {right}." for left, right in sums),
    )


def sum_with_choices(rng: random.Random) -> tuple[str, list[str], list[str]]:
    """(a sum to choose the result of, its solution's lines, the lines of one that goes wrong in the sum
    or the letter)
    """
    left, result = one_sum(rng)
    options = toy.draw_options(result, rng)
    letter = "ABCD"[options.index(str(result))]
    other = rng.choice([name for name in "ABCD" if name != letter])
    said = rng.choice([result, int(options["ABCD".index(other)])])
    lines = [[f"{left} {value}.", f"{CLOSING} {name}."] for value, name in ((result, letter), (said, other))]
    return question_text({"question": f"{left} ?", "options": options}), *lines


def choose(rng: random.Random) -> Example:
    question, right, _ = sum_with_choices(rng)
    return Example(None, question, "\n".join(right))


def check_choice(rng: random.Random) -> Example:
    question, right, wrong = sum_with_choices(rng)
    example = check_lines(None, right, rng.choice([right, wrong]))
    return example._replace(text=f"{question}\n\n{example.text}")


def in_words(rng: random.Random) -> tuple:
    """(family, its numbers, options, the problem in words)"""
    name = rng.choice(WORD_FAMILIES)
    record, numbers, _ = toy.make_problem(name, rng)
    family, options = toy.FAMILIES[name], record.get("options", [])
    return family, numbers, options, f"There is {family.facts.format(**numbers)}. {question_text(record)}"


def solve_words(rng: random.Random) -> Example:
    family, numbers, options, words = in_words(rng)
    return Example(None, words, toy.solution_text(family, numbers, options, "There is")[0])


def spoiled(result: int, rng: random.Random) -> int:
    return rng.choice(
        [
            value
            for value in (result - 10, result - 2, result - 1, result + 1, result + 2, result + 10)
            if value >= 0
        ]
    )


def spoiled_description(family, numbers: dict, rng: random.Random) -> str:
    key = rng.choice(family.readable)
    return (
        f"The picture shows {family.facts.format(**numbers | {key: toy.misread_number(numbers[key], rng)})}."
    )


def check_lines(picture, right: list[str], given: list[str]) -> Example:
    """Lines to check one by one; the reply corrects those that are wrong."""
    reply = "\n".join("Yes." if line == said else f"No. {line}" for line, said in zip(right, given))
    return Example(picture, "\n".join(given) + "\n\nIs this right?", reply, given, right)


def check_sums(rng: random.Random) -> Example:
    sums = [one_sum(rng) for _ in range(rng.choice([1, 1, 2, 4]))]
    right = [f"{left} {result}." for left, result in sums]
    return check_lines(
        None,
        right,
        [
            f"{left} {spoiled(result, rng)}." if rng.random() < 0.5 else line
            for (left, result), line in zip(sums, right)
        ],
    )


def check_description(rng: random.Random) -> Example:
    name = rng.choice(PICTURES)
    family = toy.FAMILIES[name]
    _, numbers, canvas = toy.make_problem(name, rng)
    right = f"The picture shows {family.facts.format(**numbers)}."
    return check_lines(
        canvas, [right], [spoiled_description(family, numbers, rng) if rng.random() < 0.5 else right]
    )


def judgement(picture, question: str, right: str, given: str) -> Example:
    """A solution to check, asked and answered as of the ORM."""
    step, analysis = toy.first_mistake(right, given) or (None, None)
    reply = {"status": "WRONG" if step else "CORRECT", "error_step": step, "error_analysis": analysis}
    return Example(
        picture,
        fill(JUDGE_PROMPT, question=question, response=given),
        json.dumps(reply),
        given.split("\n"),
        right.split("\n"),
    )


def astray(right: str, options: list[str], rng: random.Random) -> str:
    """The solution with one line that has no slip of its own but does not belong: another step, other
    numbers, a step left out, a stray word, another answer.
    """
    lines = right.split("\n")
    while True:
        given, kind = list(lines), rng.choice(["step", "numbers", "skip", "word", "answer"])
        index = rng.randrange(kind != "word", len(lines))
        sums = re.match(r"(.*? )(\d+) ([-+*]) (\d+) = \d+\.", lines[index])
        if kind == "answer":
            letters = "ABCD" if options else re.findall(r"[0-9]+", right)
            given[-1] = f"{CLOSING} {rng.choice(letters)}."
        elif kind == "word":
            words = given[index].split(" ")
            place, stray = (
                rng.randrange(len(words)),
                rng.choice(rng.choice(list(toy.FAMILIES.values())).steps)[0].split(" "),
            )
            words[place : place + rng.choice([0, 1])] = rng.choice([[], [rng.choice(stray)]])
            given[index] = " ".join(words)
        elif sums and kind == "skip":
            given[index:-1] = [
                f"Step {number}: {line.split(': ', 1)[1]}"
                for number, line in enumerate(given[index + 1 : -1], index + 1)
            ]
        elif sums:
            text, left, operation, other = sums.groups()
            known = re.findall(r"\d+", " ".join(line.split(": ", 1)[1] for line in lines[:index]))
            if kind == "step":
                another, _, operation, _, _ = rng.choice(rng.choice(list(toy.FAMILIES.values())).steps)
                text = f"Step {index + 1}: {another.format(x=rng.choice('ABCD'), y=rng.choice('ABCD'))} "
                left, other = rng.choice([(left, other), rng.choices(known, k=2)])
            else:
                left, other = rng.choice([(left, rng.choice(known)), (rng.choice(known), other)])
            result = toy.OPERATIONS[operation](int(left), int(other))
            if result < 0:
                continue
            given[index] = f"{text}{left} {operation} {other} = {result}."
        if given != lines:
            return "\n".join(given)


def check_words(rng: random.Random) -> Example:
    """A solution of a problem in words; a quarter has a slip that is carried on, a quarter goes astray."""
    family, numbers, options, words = in_words(rng)
    right = toy.solution_text(family, numbers, options, "There is")[0]
    slipped, _ = toy.wrong_solution(family, numbers, options, "There is", rng)
    return judgement(None, words, right, rng.choice([right, right, slipped, astray(right, options, rng)]))


def check_picture(rng: random.Random) -> Example:
    """A description and sums that have nothing to do with it; half of the time one line is wrong."""
    name = rng.choice(PICTURES)
    family = toy.FAMILIES[name]
    _, numbers, canvas = toy.make_problem(name, rng)
    sums = [one_sum(rng) for _ in range(rng.choice([0, 1, 2, 3]))]
    right = [
        f"The picture shows {family.facts.format(**numbers)}.",
        *(f"{left} {result}." for left, result in sums),
    ]
    given = list(right)
    if rng.random() < 0.5:
        line = rng.choice([0, rng.randrange(len(right))])
        given[line] = (
            spoiled_description(family, numbers, rng)
            if line == 0
            else f"{sums[line - 1][0]} {spoiled(sums[line - 1][1], rng)}."
        )
    right, given = (
        "\n".join(f"Step {index}: {line}" for index, line in enumerate(lines, 1)) for lines in (right, given)
    )
    return judgement(canvas, "Describe the picture, then calculate.", right, given)


EASY_TASKS = [(describe_briefly, 0.3), (calculate, 0.15), (check_sums, 0.35), (check_description, 0.2)]
TASKS = [
    (describe_briefly, 0.12),
    (describe, 0.07),
    (calculate, 0.06),
    (choose, 0.06),
    (solve_words, 0.12),
    (check_sums, 0.07),
    (check_choice, 0.06),
    (check_description, 0.12),
    (check_words, 0.20),
    (check_picture, 0.12),
]


def draw_example(rng: random.Random, tasks: list = TASKS) -> Example:
    return rng.choices([task for task, _ in tasks], [share for _, share in tasks])[0](rng)


# ---------------------------------------------------------------- tokenizer, processor, model


def make_processor(folder: Path, seed: int):
    """Byte-level BPE that keeps every digit apart, and Qwen2-VL's image processor."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    from transformers.models.qwen2_vl import Qwen2VLImageProcessor

    rng = random.Random(seed)
    tokenizer = Tokenizer(models.BPE())
    words = Regex(r" ?\d| ?\p{L}+| ?[^\s\p{L}\d]+|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    texts = [text for _ in range(3000) for text in draw_example(rng)[1:3]] + [
        SOLVE_PROMPT,
        JUDGE_PROMPT,
    ] * 300
    texts += [json.dumps({"status": "WRONG", "error_step": "Step 1", "error_analysis": None})] * 300
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=768, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        model_max_length=4096,
        extra_special_tokens={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
    )
    images = Qwen2VLImageProcessor(
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=2,
        size={"shortest_edge": 32 * 32, "longest_edge": 192 * 192},
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    images.save_pretrained(folder)
    return fast, images


def load_processor(folder: Path, copy_to: Path | None = None):
    from transformers import AutoTokenizer
    from transformers.models.qwen2_vl import Qwen2VLImageProcessor

    tokenizer, images = AutoTokenizer.from_pretrained(folder), Qwen2VLImageProcessor.from_pretrained(folder)
    if copy_to:
        tokenizer.save_pretrained(copy_to), images.save_pretrained(copy_to)
    return tokenizer, images


def make_model(tokenizer):
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    half_head = SHAPE["hidden"] // SHAPE["heads"] // 2
    config = Qwen2VLConfig(
        text_config=dict(
            vocab_size=len(tokenizer),
            hidden_size=SHAPE["hidden"],
            intermediate_size=SHAPE["mlp"],
            num_hidden_layers=SHAPE["layers"],
            num_attention_heads=SHAPE["heads"],
            num_key_value_heads=SHAPE["heads"],
            max_position_embeddings=4096,
            initializer_range=0.06,
            bos_token_id=None,
            eos_token_id=ids["<|im_end|>"],
            pad_token_id=ids["<|endoftext|>"],
            tie_word_embeddings=True,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [half_head - 2 * (half_head // 3), half_head // 3, half_head // 3],
            },
        ),
        vision_config=dict(
            depth=SHAPE["vision_depth"],
            embed_dim=SHAPE["vision_width"],
            hidden_size=SHAPE["hidden"],
            mlp_ratio=3,
            num_heads=4,
            initializer_range=0.06,
            patch_size=PATCH,
            spatial_merge_size=MERGE,
            temporal_patch_size=2,
        ),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    return Qwen2VLForConditionalGeneration(config)


def make_batch(examples: list[Example], tokenizer, images) -> dict:
    """Right-padded (B, T) tensors; prompts are what CHAT_TEMPLATE renders. `labels` are set on the reply
    and, as verdicts, in statements;
    `expected` is what a statement ought to say at each place up to its first mistake, and the reply."""
    import torch

    vision = "<|vision_start|>" + "<|image_pad|>" * IMAGE_TOKENS + "<|vision_end|>"
    openings = [f"<|im_start|>user\n{vision if example.picture else ''}" for example in examples]
    prompts = [
        f"{opening}{example.text}<|im_end|>\n<|im_start|>assistant\n"
        for opening, example in zip(openings, examples)
    ]
    prompts = tokenizer(prompts, add_special_tokens=False, return_offsets_mapping=True)
    replies = tokenizer([f"{example.reply}<|im_end|>\n" for example in examples], add_special_tokens=False)[
        "input_ids"
    ]
    length = max(len(prompt) + len(reply) for prompt, reply in zip(prompts["input_ids"], replies))
    ids = torch.full((len(examples), length), tokenizer.pad_token_id)
    labels, expected, mask = torch.full_like(ids, -100), torch.full_like(ids, -100), torch.zeros_like(ids)
    for row, (example, opening, prompt, offsets, reply) in enumerate(
        zip(examples, openings, prompts["input_ids"], prompts["offset_mapping"], replies)
    ):
        whole = len(prompt) + len(reply)
        ids[row, :whole] = torch.tensor(prompt + reply)
        labels[row, len(prompt) : whole] = expected[row, len(prompt) : whole] = torch.tensor(reply)
        mask[row, :whole] = 1
        if example.given:
            start = len(opening) + example.text.rindex("\n".join(example.given))
            mark_statements(example, start, prompt, offsets, labels[row], expected[row], tokenizer)
    image_token = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    batch = {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "expected": expected,
        "mm_token_type_ids": (ids == image_token).int(),
    }
    pictures = [example.picture for example in examples if example.picture]
    if pictures:
        batch |= dict(images(images=[canvas.image for canvas in pictures], return_tensors="pt"))
        cells = [
            canvas.cells.get((column, row), "")
            for canvas in pictures
            for row in range(toy.CELLS)
            for column in range(toy.CELLS)
        ]
        batch["cells"] = torch.tensor([cell_token(word, tokenizer) for word in cells])
    return batch


def verdict_tokens(tokenizer) -> list[int]:
    """The tokens of "No" and "Yes", to be indexed by whether it is right."""
    return [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("No", "Yes")]


def mark_statements(
    example: Example, start: int, prompt: list[int], offsets: list, labels, expected, tokenizer
) -> None:
    """Set one row's `labels` to a verdict after each digit and each line of the statements, and
    `expected`; both end at the first mistake.
    """
    verdicts = verdict_tokens(tokenizer)
    for given, right in zip(example.given, example.right):
        first = next(index for index, (_, end) in enumerate(offsets) if end > start)
        for index, token in enumerate(tokenizer(right, add_special_tokens=False)["input_ids"], first):
            expected[index] = token
            if tokenizer.convert_ids_to_tokens(token)[-1].isdigit():
                labels[index + 1] = verdicts[prompt[index] == token]
            if prompt[index] != token:
                break
        last = next(index for index, (_, end) in enumerate(offsets) if end == start + len(given))
        labels[last + 1] = verdicts[given == right]
        if given != right:
            return
        start += len(given) + 1


def cell_token(word: str, tokenizer) -> int:
    """The token that a visual token learns to name: of its cell's character, of the shape's word, or of
    a blank.
    """
    return tokenizer(f" {word}" if word else ".", add_special_tokens=False)["input_ids"][0]


def produce(queue, folder: Path, seed: int, batch_size: int, easy_steps: int) -> None:
    """Worker: batches for ever, pictures and texts apart so that little is padded."""
    import torch

    torch.set_num_threads(1)
    tokenizer, images = load_processor(folder)
    rng = random.Random(seed)
    for step in itertools.count():
        tasks = EASY_TASKS if step < easy_steps else TASKS
        examples = sorted(
            (draw_example(rng, tasks) for _ in range(batch_size)),
            key=lambda example: (example.picture is None, len(example.text)),
        )
        with_picture = sum(example.picture is not None for example in examples)
        halves = [with_picture // 2, with_picture, (with_picture + len(examples)) // 2]
        parts = [
            part for part in (examples[i:j] for i, j in zip([0, *halves], [*halves, len(examples)])) if part
        ]
        queue.put(
            [
                {key: value.numpy() for key, value in make_batch(part, tokenizer, images).items()}
                for part in parts
            ]
        )


def early_loss(hidden: tuple, batch: dict, expected, this_head, model):
    """Mean cross-entropy of naming `expected` (B, T) from two inner layers; `this_head` is thrown away
    after training.
    """
    from torch.nn.functional import cross_entropy

    following = expected[:, 1:] != -100
    named = model.model.language_model.norm(hidden[NEXT_LAYER][:, :-1][following])
    loss = cross_entropy(named @ model.get_input_embeddings().weight.T, expected[:, 1:][following])
    here = (expected != -100) & (batch["labels"] != expected)  # statements, not replies
    return loss + cross_entropy(this_head(hidden[THIS_LAYER][here]), expected[here]) if here.any() else loss


def count_verdicts(logits, batch: dict, verdicts: list[int], counts: dict) -> None:
    """Add to counts[("No" or "Yes", "right" or "all")]: verdicts inside statements, as the model gives
    them.
    """
    wanted = batch["labels"][:, 1:]
    for name, token in zip(("No", "Yes"), verdicts):
        here = (wanted == token) & (batch["input_ids"][:, 1:] != token)
        counts[name, "right"] += int((logits[:, :-1].argmax(-1) == token)[here].sum())
        counts[name, "all"] += int(here.sum())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="model folder to write")
    parser.add_argument("--init", type=Path, help="go on from this folder, with all lessons from the start")
    parser.add_argument("--steps", type=int, default=3000, help="optimizer steps (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="examples a step (default %(default)s)")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    import torch
    from transformers import Qwen2VLForConditionalGeneration

    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)
    tokenizer, images = (
        load_processor(args.init, args.output) if args.init else make_processor(args.output, args.seed)
    )
    model = (
        Qwen2VLForConditionalGeneration.from_pretrained(args.init, dtype=torch.float32)
        if args.init
        else make_model(tokenizer)
    )
    print(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(tokenizer)} tokens",
        flush=True,
    )
    this_head = torch.nn.Linear(SHAPE["hidden"], len(tokenizer))
    parameters = [*model.parameters(), *this_head.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, args.steps, pct_start=0.05, final_div_factor=50
    )

    context = multiprocessing.get_context("spawn")
    queue = context.Queue(8)
    easy_steps = 0 if args.init else round(args.steps * EASY_SHARE)
    worker = context.Process(
        target=produce, args=(queue, args.output, args.seed + 1, args.batch_size, easy_steps), daemon=True
    )
    worker.start()
    seen = []
    model.model.visual.merger.register_forward_hook(lambda module, inputs, output: seen.append(output))
    verdicts = verdict_tokens(tokenizer)
    start, losses, counts = time.monotonic(), collections.defaultdict(list), collections.Counter()
    for step in range(1, args.steps + 1):
        parts = [{key: torch.from_numpy(value) for key, value in part.items()} for part in queue.get()]
        labels = sum(int((part["labels"] != -100).sum()) for part in parts)
        for part in parts:
            cells, expected = part.pop("cells", None), part.pop("expected")
            output = model(**part, num_items_in_batch=labels, use_cache=False, output_hidden_states=True)
            early = early_loss(output.hidden_states, part, expected, this_head, model)
            loss = output.loss + EARLY_WEIGHT * early / len(parts)
            losses["reply"].append(output.loss.item() * len(parts))
            losses["early"].append(early.item())
            if step % 50 > 40:
                count_verdicts(output.logits, part, verdicts, counts)
            if cells is not None:
                see_loss = torch.nn.functional.cross_entropy(
                    seen.pop() @ model.get_input_embeddings().weight.T, cells
                )
                losses["seeing"].append(see_loss.item())
                loss = loss + SEE_WEIGHT * see_loss / len(parts)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(), schedule.step(), optimizer.zero_grad()
        if step % 50 == 0 or step == args.steps:
            means = "  ".join(f"{name} {sum(values) / len(values):.4f}" for name, values in losses.items())
            rates = "  ".join(
                f"{name} {counts[name, 'right'] / max(1, counts[name, 'all']):.2f}" for name in ("No", "Yes")
            )
            minutes = (time.monotonic() - start) / 60
            print(
                f"step {step}  losses: {means}  verdicts right: {rates}  {minutes:.1f} min",
                flush=True,
            )
            losses.clear(), counts.clear()
        if step % 250 == 0 or step == args.steps:
            model.save_pretrained(
                args.output,
                state_dict={name: tensor.bfloat16() for name, tensor in model.state_dict().items()},
            )
    worker.terminate()


if __name__ == "__main__":
    main()
