"""Train the toy base model: a small Qwen2-VL that sees, counts and calculates, but was never shown how to solve a picture problem.

Writes: a folder that `from_pretrained` loads (bf16 safetensors, tokenizer, processor, chat template).

    python toy/pretrain.py --output toy/base --steps 6000 --seed 0
    python toy/pretrain.py --output /tmp/base --steps 20

Its lessons (TASKS): say what a picture shows; calculate; solve problems given in words, of six of the ten families only
(WORD_FAMILIES); check statements about pictures and sums, half of them wrong, and correct them. A picture and a
question together are answered by a description: putting the skills together is what the loop has to teach.
The first EASY_SHARE of the steps are only seeing and calculating. Beside the text, each visual token learns to name what its
cell holds: without this the plateau before the first digit is read lasts many times longer.
"""

import argparse
import itertools
import json
import multiprocessing
import random
import re
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
import problems as toy
from common import JUDGE_PROMPT, SOLVE_PROMPT, fill, question_text

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


EASY_SHARE = 0.25
SEE_WEIGHT = 1.0  # of the visual tokens' own loss


# ---------------------------------------------------------------- lessons: (picture or None, text, reply)


def describe_briefly(rng: random.Random) -> tuple:
    canvas, _, reply = describe(rng)
    return canvas, "Describe the picture.", reply


def describe(rng: random.Random) -> tuple:
    name = rng.choice(list(toy.FAMILIES))
    record, numbers, canvas = toy.make_problem(name, rng)
    question = question_text(record)
    asked = rng.choice(["Describe the picture.", "What does the picture show?", question, fill(SOLVE_PROMPT, question=question)])
    return canvas, asked, f"The picture shows {toy.FAMILIES[name].facts.format(**numbers)}."


def one_sum(rng: random.Random) -> tuple[str, int]:
    """A calculation as the families need it: ("7 * 5 =", 35)"""
    family = rng.choice(list(toy.FAMILIES.values()))
    lines, _ = toy.work_out(family, family.numbers(rng))
    left, right = rng.choice(re.findall(r"(\d+ [-+*] \d+ =) (\d+)\.", " ".join(lines)))
    return left, int(right)


def calculate(rng: random.Random) -> tuple:
    sums = [one_sum(rng) for _ in range(rng.randint(3, 6))]
    return None, "\n".join(f"{left} ?" for left, _ in sums), "\n".join(f"{left} {right}." for left, right in sums)


def in_words(rng: random.Random) -> tuple:
    """(family, its numbers, options, the problem in words)"""
    name = rng.choice(WORD_FAMILIES)
    record, numbers, _ = toy.make_problem(name, rng)
    family, options = toy.FAMILIES[name], record.get("options", [])
    return family, numbers, options, f"There is {family.facts.format(**numbers)}. {question_text(record)}"


def solve_words(rng: random.Random) -> tuple:
    family, numbers, options, words = in_words(rng)
    return None, words, toy.solution_text(family, numbers, options, "There is")[0]


def spoiled(result: int, rng: random.Random) -> int:
    return rng.choice([value for value in (result - 10, result - 2, result - 1, result + 1, result + 2, result + 10) if value >= 0])


def check_sum(rng: random.Random) -> tuple:
    """One sum, or each of several."""
    sums = [one_sum(rng) for _ in range(rng.choice([1, 1, 3, 4]))]
    said = [spoiled(result, rng) if rng.random() < 0.5 else result for _, result in sums]
    replies = ["Yes." if result == given else f"No. {left} {result}." for (left, result), given in zip(sums, said)]
    return None, "\n".join(f"{left} {given}." for (left, _), given in zip(sums, said)) + "\n\nIs this right?", "\n".join(replies)


def check_one_sum(rng: random.Random) -> tuple:
    left, result = one_sum(rng)
    wrong = rng.random() < 0.5
    return None, f"{left} {spoiled(result, rng) if wrong else result}.\n\nIs this right?", f"No. {left} {result}." if wrong else "Yes."


def check_description(rng: random.Random) -> tuple:
    name = rng.choice(list(toy.FAMILIES))
    family = toy.FAMILIES[name]
    _, numbers, canvas = toy.make_problem(name, rng)
    said, wrong = dict(numbers), rng.random() < 0.5
    if wrong:
        key = rng.choice(family.readable)
        said[key] = toy.misread_number(numbers[key], rng)
    right = f"The picture shows {family.facts.format(**numbers)}."
    return canvas, f"The picture shows {family.facts.format(**said)}.\n\nIs this right?", f"No. {right}" if wrong else "Yes."


def judgement(rng: random.Random, picture, question: str, right: str, given: str) -> tuple:
    """A solution or statement to check: short, or as the ORM is asked. The reply corrects it, or names the mistake."""
    mistake = toy.first_mistake(right, given)
    if rng.random() < 0.5:
        correct_line = next((line for line, said in zip(right.split("\n"), given.split("\n")) if line != said), None)
        return picture, f"{question}\n\n{given}\n\nIs this right?", f"No. {correct_line}" if mistake else "Yes."
    step, analysis = mistake or (None, None)
    reply = {"status": "WRONG" if mistake else "CORRECT", "error_step": step, "error_analysis": analysis}
    return picture, fill(JUDGE_PROMPT, question=question, response=given), json.dumps(reply)


def check_words(rng: random.Random) -> tuple:
    family, numbers, options, words = in_words(rng)
    right = toy.solution_text(family, numbers, options, "There is")[0]
    wrong, _ = toy.wrong_solution(family, numbers, options, "There is", rng)
    return judgement(rng, None, words, right, rng.choice([right, wrong]))


def check_picture(rng: random.Random) -> tuple:
    """A description and sums that have nothing to do with it; half of the time one line is wrong, or each line is asked about."""
    name = rng.choice(list(toy.FAMILIES))
    family = toy.FAMILIES[name]
    record, numbers, canvas = toy.make_problem(name, rng)
    sums = [one_sum(rng) for _ in range(rng.choice([0, 1, 2, 3]))]
    right = [f"The picture shows {family.facts.format(**numbers)}.", *(f"{left} {result}." for left, result in sums)]
    each = rng.random() < 0.4
    wrong_lines = {line for line in range(len(right)) if rng.random() < 0.4} if each else rng.choice([set(), {rng.choice([0, rng.randrange(len(right))])}])
    given = list(right)
    for line in wrong_lines:
        if line == 0:
            key = rng.choice(family.readable)
            given[0] = f"The picture shows {family.facts.format(**numbers | {key: toy.misread_number(numbers[key], rng)})}."
        else:
            left, result = sums[line - 1]
            given[line] = f"{left} {spoiled(result, rng)}."
    right, given = ([f"Step {index}: {line}" for index, line in enumerate(lines, 1)] for lines in (right, given))
    if each:
        reply = "\n".join(f"Step {index}: {'Yes.' if line == said else 'No. ' + line.split(': ', 1)[1]}" for index, (line, said) in enumerate(zip(right, given), 1))
        return canvas, f"{question_text(record)}\n\n" + "\n".join(given) + "\n\nCheck each step.", reply
    return judgement(rng, canvas, question_text(record), "\n".join(right), "\n".join(given))


RIGHT = ("Yes.", '{"status": "CORRECT"')  # how the reply to a right statement begins
EASY_TASKS = [(describe_briefly, 0.7), (calculate, 0.3)]
TASKS = [
    (describe_briefly, 0.10), (describe, 0.08), (calculate, 0.10), (solve_words, 0.12),
    (check_sum, 0.22), (check_description, 0.20), (check_words, 0.08), (check_picture, 0.10),
]  # fmt: skip


CHECK_TASKS = [(check_one_sum, 0.45), (check_description, 0.35), (describe_briefly, 0.10), (solve_words, 0.06), (calculate, 0.04)]
LESSONS = {"easy": EASY_TASKS, "all": TASKS, "checks": CHECK_TASKS}


def draw_example(rng: random.Random, tasks: list = TASKS) -> tuple:
    return rng.choices([task for task, _ in tasks], [share for _, share in tasks])[0](rng)


# ---------------------------------------------------------------- tokenizer, processor, model


def make_processor(folder: Path, seed: int):
    """Byte-level BPE that keeps every digit apart, and Qwen2-VL's image processor at a patch size of 8."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    from transformers.models.qwen2_vl import Qwen2VLImageProcessor

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
        patch_size=16, merge_size=1, temporal_patch_size=2,
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
            num_attention_heads=SHAPE["heads"], num_key_value_heads=SHAPE["heads"], max_position_embeddings=4096, initializer_range=0.06,
            bos_token_id=None, eos_token_id=ids["<|im_end|>"], pad_token_id=ids["<|endoftext|>"], tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [half_head - 2 * (half_head // 3), half_head // 3, half_head // 3]},
        ),
        vision_config=dict(depth=SHAPE["vision_depth"], embed_dim=SHAPE["vision_width"], hidden_size=SHAPE["hidden"], mlp_ratio=3,
                           num_heads=4, initializer_range=0.06, patch_size=16, spatial_merge_size=1, temporal_patch_size=2),
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"], vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"], tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen2VLForConditionalGeneration(config)


def make_batch(examples: list[tuple], tokenizer, images, read_along: bool = False) -> dict:
    """Right-padded tensors with labels on the reply; prompts are what CHAT_TEMPLATE renders.

    With `read_along` a statement that is right is learnt as well: who expects the right digit notices a wrong one.
    """
    import torch

    vision = "<|vision_start|>" + "<|image_pad|>" * IMAGE_TOKENS + "<|vision_end|>"
    heads = [f"<|im_start|>user\n{vision if canvas else ''}{text}<|im_end|>\n<|im_start|>assistant\n" for canvas, text, _ in examples]
    heads = tokenizer(heads, add_special_tokens=False)["input_ids"]
    replies = tokenizer([f"{reply}<|im_end|>\n" for *_, reply in examples], add_special_tokens=False)["input_ids"]
    length = max(len(head) + len(reply) for head, reply in zip(heads, replies))
    pad = tokenizer.pad_token_id
    ids = torch.tensor([head + reply + [pad] * (length - len(head) - len(reply)) for head, reply in zip(heads, replies)])
    mask = torch.tensor([[1] * (len(head) + len(reply)) + [0] * (length - len(head) - len(reply)) for head, reply in zip(heads, replies)])
    asked = [head if read_along and reply.startswith(RIGHT) and len(head) > 60 else [-100] * len(head) for head, (*_, reply) in zip(heads, examples)]
    labels = torch.tensor([first + reply + [-100] * (length - len(first) - len(reply)) for first, reply in zip(asked, replies)])
    image_token = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    labels[labels == image_token] = -100
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels, "mm_token_type_ids": (ids == image_token).int()}
    pictures = [canvas for canvas, *_ in examples if canvas]
    if pictures:
        batch |= dict(images(images=[canvas.image for canvas in pictures], return_tensors="pt"))
        cells = [canvas.cells.get((column, row), "") for canvas in pictures for row in range(toy.CELLS) for column in range(toy.CELLS)]
        batch["cells"] = torch.tensor([cell_token(word, tokenizer) for word in cells])
    return batch


def cell_token(word: str, tokenizer) -> int:
    """The token that a visual token learns to name: of its cell's character, of the shape's word, or of a blank."""
    return tokenizer(f" {word}" if word else ".", add_special_tokens=False)["input_ids"][0]


def produce(queue, folder: Path, seed: int, batch_size: int, easy_steps: int, lessons: str, read_along: bool) -> None:
    """Worker: batches for ever, pictures and texts apart so that little is padded."""
    import torch
    from transformers import AutoTokenizer
    from transformers.models.qwen2_vl import Qwen2VLImageProcessor

    torch.set_num_threads(1)
    tokenizer, images = AutoTokenizer.from_pretrained(folder), Qwen2VLImageProcessor.from_pretrained(folder)
    rng = random.Random(seed)
    for step in itertools.count():
        tasks = EASY_TASKS if step < easy_steps else LESSONS[lessons]
        examples = sorted((draw_example(rng, tasks) for _ in range(batch_size)), key=lambda example: (example[0] is None, len(example[1])))
        with_picture = sum(example[0] is not None for example in examples)
        halves = [with_picture // 2, with_picture, (with_picture + len(examples)) // 2]
        parts = [part for part in (examples[i:j] for i, j in zip([0, *halves], [*halves, len(examples)])) if part]
        queue.put([{key: value.numpy() for key, value in make_batch(part, tokenizer, images, read_along).items()} for part in parts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="model folder to write")
    parser.add_argument("--steps", type=int, default=6000, help="optimizer steps (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="examples a step (default %(default)s)")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate (default %(default)s)")
    parser.add_argument("--init", type=Path, help="model folder to go on from, without the easy steps; a new schedule")
    parser.add_argument("--stop", type=int, default=0, help="stop after this many of the steps (default %(default)s: at the end)")
    parser.add_argument("--lessons", choices=list(LESSONS), default="all", help="what is taught (default %(default)s)")
    parser.add_argument("--read-along", action="store_true", help="also learn to predict right statements that are to be checked")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    import torch

    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)
    if args.init:
        from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration
        from transformers.models.qwen2_vl import Qwen2VLImageProcessor

        tokenizer, images = AutoTokenizer.from_pretrained(args.init), Qwen2VLImageProcessor.from_pretrained(args.init)
        model = Qwen2VLForConditionalGeneration.from_pretrained(args.init, dtype=torch.float32)
        tokenizer.save_pretrained(args.output), images.save_pretrained(args.output)
    else:
        tokenizer, images = make_processor(args.output, args.seed)
        model = make_model(tokenizer)
    easy_steps = 0 if args.init else round(args.steps * EASY_SHARE)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(tokenizer)} tokens", flush=True)
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}], lr=args.lr, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, args.steps, pct_start=0.05, final_div_factor=50)

    context = multiprocessing.get_context("spawn")
    queue = context.Queue(8)
    worker = context.Process(target=produce, args=(queue, args.output, args.seed + 1, args.batch_size, easy_steps, args.lessons, args.read_along), daemon=True)
    worker.start()
    seen = []
    model.model.visual.merger.register_forward_hook(lambda module, inputs, output: seen.append(output))
    start, losses, see_losses = time.monotonic(), [], [0.0]
    for step in range(1, args.steps + 1):
        parts = [{key: torch.from_numpy(value) for key, value in part.items()} for part in queue.get()]
        labels = sum(int((part["labels"] != -100).sum()) for part in parts)
        total = 0.0
        for part in parts:
            cells = part.pop("cells", None)
            loss = model(**part, num_items_in_batch=labels, use_cache=False).loss
            total += loss.item()
            if cells is not None:
                see_loss = torch.nn.functional.cross_entropy(seen.pop() @ model.get_input_embeddings().weight.T, cells)
                see_losses.append(see_loss.item())
                loss = loss + SEE_WEIGHT * see_loss / len(parts)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(), schedule.step(), optimizer.zero_grad()
        losses.append(total)
        if step % 50 == 0 or step == args.steps:
            print(f"step {step} loss {sum(losses[-50:]) / len(losses[-50:]):.4f} seeing {see_losses[-1]:.4f} {(time.monotonic() - start) / 60:.1f} min", flush=True)
        if step % 250 == 0 or step in (args.stop, args.steps):
            model.save_pretrained(args.output, state_dict={name: tensor.bfloat16() for name, tensor in model.state_dict().items()})
        if step == args.stop:
            break
    worker.terminate()


if __name__ == "__main__":
    main()
