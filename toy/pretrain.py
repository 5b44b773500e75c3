"""Train the toy base model: a small Qwen2-VL that sees, counts and calculates, but was never shown how to solve a picture problem.

Writes: a folder that `from_pretrained` loads (bf16 safetensors, tokenizer, processor, chat template).

    python toy/pretrain.py --output toy/base --steps 6000 --seed 0
    python toy/pretrain.py --output /tmp/base --steps 20

Its lessons (TASKS): say what a picture shows; calculate; solve problems given in words, of six of the ten families only
(WORD_FAMILIES); check statements about pictures and sums, half of them wrong, and correct them. A picture and a
question together are answered by a description: putting the skills together is what the loop has to teach.
"""

import argparse
import json
import multiprocessing
import random
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
import problems as toy
from common import JUDGE_PROMPT, SOLVE_PROMPT, question_text

WORD_FAMILIES = [
    "rectangle_area", "rectangle_perimeter", "triangle_perimeter", "triangle_angle", "bars_difference", "bars_total",
]  # fmt: skip
IMAGE_TOKENS = (toy.CELLS) ** 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHAPE = {"hidden": 128, "layers": 4, "heads": 4, "mlp": 384, "vision_depth": 2, "vision_width": 96}


# ---------------------------------------------------------------- lessons: (picture or None, text, reply)


def describe(rng: random.Random) -> tuple:
    name = rng.choice(list(toy.FAMILIES))
    record, numbers, image = toy.make_problem(name, rng)
    asked = rng.choice(["Describe the picture.", "What does the picture show?", question_text(record)])
    return image, asked, f"The picture shows {toy.FAMILIES[name].facts.format(**numbers)}."


def one_sum(rng: random.Random) -> tuple[str, int]:
    operation = rng.choice("+-*")
    if operation == "*":
        a, b = rng.randint(1, 12), rng.randint(1, 9)
        a, b = rng.choice([(a, b), (b, a), (2, rng.randint(2, 30))])
    elif operation == "+":
        a, b = rng.choice([(rng.randint(0, 40), rng.randint(1, 60)), (5 * rng.randint(4, 16), 5 * rng.randint(4, 16))])
    else:
        b = rng.choice([rng.randint(1, 20), 5 * rng.randint(4, 16)])
        a = rng.choice([b + rng.randint(0, 90), 180])
    return f"{a} {operation} {b} =", toy.OPERATIONS[operation](a, b)


def calculate(rng: random.Random) -> tuple:
    sums = [one_sum(rng) for _ in range(rng.randint(2, 6))]
    asked, reply = "\n".join(f"{left} ?" for left, _ in sums), "\n".join(f"{left} {right}." for left, right in sums)
    return None, asked, reply


def in_words(rng: random.Random) -> tuple:
    """(family, its numbers, options, the problem in words)"""
    name = rng.choice(WORD_FAMILIES)
    record, numbers, _ = toy.make_problem(name, rng)
    family, options = toy.FAMILIES[name], record.get("options", [])
    words = f"There is {family.facts.format(**numbers)}. {question_text(record)}"
    return family, numbers, options, words


def solve_words(rng: random.Random) -> tuple:
    family, numbers, options, words = in_words(rng)
    return None, words, toy.solution_text(family, numbers, options, "There is")[0]


def check_words(rng: random.Random) -> tuple:
    family, numbers, options, words = in_words(rng)
    right = toy.solution_text(family, numbers, options, "There is")[0]
    if rng.random() < 0.5:
        wrong, line = toy.wrong_solution(family, numbers, options, "There is", rng)
        return None, f"{words}\n\n{wrong}\n\n{IS_IT_RIGHT}", "No. " + right.split("\n")[line]
    if rng.random() < 0.8:
        return None, f"{words}\n\n{right}\n\n{IS_IT_RIGHT}", "Yes."
    return None, f"{words}\n\n{right}\n\n{CHECK_EACH}", each_verdict({}, len(family.steps) + 1)


IS_IT_RIGHT, CHECK_EACH = "Is this right?", "Check each step."


def each_verdict(corrections: dict[int, str], steps: int) -> str:
    return "\n".join(f"Step {step}: " + (f"No. {corrections[step]}" if step in corrections else "Yes.") for step in range(1, steps + 1))


def check_picture(rng: random.Random) -> tuple:
    """A description and some sums that have nothing to do with it: one of them may be wrong, or several when each is checked."""
    name = rng.choice(list(toy.FAMILIES))
    family = toy.FAMILIES[name]
    record, numbers, image = toy.make_problem(name, rng)
    sums = [one_sum(rng) for _ in range(rng.choice([0, 1, 2, 3]))]
    true_lines = [f"The picture shows {family.facts.format(**numbers)}.", *(f"{left} {right}." for left, right in sums)]
    lines = list(true_lines)

    def spoil(step: int) -> None:
        if step == 1:
            key = rng.choice(family.readable)
            lines[0] = f"The picture shows {family.facts.format(**numbers | {key: toy.misread_number(numbers[key], rng)})}."
        else:
            left, right = sums[step - 2]
            lines[step - 1] = f"{left} {rng.choice([v for v in (right - 10, right - 2, right - 1, right + 1, right + 2, right + 10) if v >= 0])}."

    each = rng.random() < 0.5
    if each:
        wrong_steps = [step for step in range(1, len(lines) + 1) if rng.random() < 0.4]
    else:
        wrong_steps = rng.choice([[], [rng.choice([1, rng.randint(1, len(lines))])]])
    for step in wrong_steps:
        spoil(step)
    text = "\n".join(f"Step {index}: {line}" for index, line in enumerate(lines, 1))
    asked = f"{question_text(record)}\n\n{text}\n\n{CHECK_EACH if each else IS_IT_RIGHT}"
    corrections = {step: true_lines[step - 1] for step in wrong_steps}
    if each:
        return image, asked, each_verdict(corrections, len(lines))
    return image, asked, "".join(f"No. Step {step}: {line}" for step, line in corrections.items()) or "Yes."


TASKS = [(describe, 0.26), (calculate, 0.10), (solve_words, 0.18), (check_words, 0.18), (check_picture, 0.28)]


def draw_example(rng: random.Random) -> tuple:
    return rng.choices([task for task, _ in TASKS], [share for _, share in TASKS])[0](rng)


# ---------------------------------------------------------------- tokenizer, processor, model


def make_processor(folder: Path, seed: int):
    """Byte-level BPE that keeps every digit apart, and Qwen2-VL's image processor at a patch size of 8."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    from transformers.models.qwen2_vl import Qwen2VLImageProcessor, Qwen2VLProcessor

    rng = random.Random(seed)
    tokenizer = Tokenizer(models.BPE())
    words = Regex(r" ?\d| ?\p{L}+| ?[^\s\p{L}\d]+|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    texts = [text for _ in range(3000) for text in draw_example(rng)[1:]] + [SOLVE_PROMPT, JUDGE_PROMPT] * 300
    texts += [json.dumps({"status": "WRONG", "error_step": "Step 1", "error_analysis": None})] * 300
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=768, special_tokens=SPECIAL, initial_alphabet=alphabet))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left",
        model_max_length=4096, extra_special_tokens={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
    )  # fmt: skip
    images = Qwen2VLImageProcessor(
        patch_size=8, merge_size=2, temporal_patch_size=2,
        size={"shortest_edge": 32 * 32, "longest_edge": 192 * 192},
    )  # fmt: skip
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    images.save_pretrained(folder)
    return fast, images


def make_model(tokenizer):
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    half_head = SHAPE["hidden"] // SHAPE["heads"] // 2
    config = Qwen2VLConfig(
        text_config=dict(
            vocab_size=len(tokenizer), hidden_size=SHAPE["hidden"], intermediate_size=SHAPE["mlp"], num_hidden_layers=SHAPE["layers"],
            num_attention_heads=SHAPE["heads"], num_key_value_heads=SHAPE["heads"], max_position_embeddings=4096,
            bos_token_id=None, eos_token_id=ids["<|im_end|>"], pad_token_id=ids["<|endoftext|>"], tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [half_head - 2 * (half_head // 3), half_head // 3, half_head // 3]},
        ),
        vision_config=dict(depth=SHAPE["vision_depth"], embed_dim=SHAPE["vision_width"], hidden_size=SHAPE["hidden"], mlp_ratio=3,
                           num_heads=4, patch_size=8, spatial_merge_size=2, temporal_patch_size=2),
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"], vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"], tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen2VLForConditionalGeneration(config)


def make_batch(examples: list[tuple], tokenizer, images) -> dict:
    """Right-padded tensors with labels on the reply; prompts are what CHAT_TEMPLATE renders."""
    import torch

    vision = "<|vision_start|>" + "<|image_pad|>" * IMAGE_TOKENS + "<|vision_end|>"
    heads = [f"<|im_start|>user\n{vision if image else ''}{text}<|im_end|>\n<|im_start|>assistant\n" for image, text, _ in examples]
    heads = tokenizer(heads, add_special_tokens=False)["input_ids"]
    replies = tokenizer([f"{reply}<|im_end|>\n" for *_, reply in examples], add_special_tokens=False)["input_ids"]
    length = max(len(head) + len(reply) for head, reply in zip(heads, replies))
    pad = tokenizer.pad_token_id
    ids = torch.tensor([head + reply + [pad] * (length - len(head) - len(reply)) for head, reply in zip(heads, replies)])
    mask = torch.tensor([[1] * (len(head) + len(reply)) + [0] * (length - len(head) - len(reply)) for head, reply in zip(heads, replies)])
    labels = torch.tensor([[-100] * len(head) + reply + [-100] * (length - len(head) - len(reply)) for head, reply in zip(heads, replies)])
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels, "mm_token_type_ids": (ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).int()}
    pictures = [image for image, *_ in examples if image]
    return batch | (dict(images(images=pictures, return_tensors="pt")) if pictures else {})


def produce(queue, folder: Path, seed: int, batch_size: int) -> None:
    """Worker: batches for ever, pictures and texts apart so that little is padded."""
    import torch
    from transformers import AutoTokenizer
    from transformers.models.qwen2_vl import Qwen2VLImageProcessor

    torch.set_num_threads(1)
    tokenizer, images = AutoTokenizer.from_pretrained(folder), Qwen2VLImageProcessor.from_pretrained(folder)
    rng = random.Random(seed)
    while True:
        examples = sorted((draw_example(rng) for _ in range(batch_size)), key=lambda example: (example[0] is None, len(example[1])))
        with_picture = sum(example[0] is not None for example in examples)
        halves = [with_picture // 2, with_picture, (with_picture + len(examples)) // 2]
        parts = [part for part in (examples[i:j] for i, j in zip([0, *halves], [*halves, len(examples)])) if part]
        queue.put([{key: value.numpy() for key, value in make_batch(part, tokenizer, images).items()} for part in parts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="model folder to write")
    parser.add_argument("--steps", type=int, default=6000, help="optimizer steps (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="examples a step (default %(default)s)")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    import torch

    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)
    tokenizer, images = make_processor(args.output, args.seed)
    model = make_model(tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(tokenizer)} tokens", flush=True)
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}], lr=args.lr, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, args.steps, pct_start=0.05, final_div_factor=50)

    context = multiprocessing.get_context("spawn")
    queue = context.Queue(8)
    worker = context.Process(target=produce, args=(queue, args.output, args.seed + 1, args.batch_size), daemon=True)
    worker.start()
    start, losses = time.monotonic(), []
    for step in range(1, args.steps + 1):
        parts = [{key: torch.from_numpy(value) for key, value in part.items()} for part in queue.get()]
        labels = sum(int((part["labels"] != -100).sum()) for part in parts)
        total = 0.0
        for part in parts:
            loss = model(**part, num_items_in_batch=labels, use_cache=False).loss
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(), schedule.step(), optimizer.zero_grad()
        losses.append(total)
        if step % 50 == 0 or step == args.steps:
            print(f"step {step} loss {sum(losses[-50:]) / len(losses[-50:]):.4f} {(time.monotonic() - start) / 60:.1f} min", flush=True)
        if step % 1000 == 0 or step == args.steps:
            model.to(torch.bfloat16).save_pretrained(args.output)
            model.to(torch.float32)
    worker.terminate()


if __name__ == "__main__":
    main()
