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
from mathse.cli import Parser, real, whole

WORD_FAMILIES = [*toy.FAMILIES][:6]
# to describe: heights in a coordinate plane are learnt last, so these are shown more often
PICTURES = [*toy.FAMILIES, *["points_area"] * 5]
END, PAD, IMAGE, VIDEO = "<|im_end|>", "<|endoftext|>", "<|image_pad|>", "<|video_pad|>"
SPECIAL = [PAD, "<|im_start|>", END, "<|vision_start|>", "<|vision_end|>", IMAGE, VIDEO]
VISION = f"<|vision_start|>{IMAGE * toy.CELLS**2}<|vision_end|>"  # a picture: a token sees a cell
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The shape, as Qwen2VLConfig names it. A visual token sees 2 x 2 patches of 8 pixels: a cell of a picture.
TEXT = {"hidden_size": 128, "num_hidden_layers": 6, "intermediate_size": 256}
TEXT |= {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 4096}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5]}  # of half a head
TOWER = {"depth": 2, "embed_dim": 96, "mlp_ratio": 3, "num_heads": 4, "hidden_size": TEXT["hidden_size"]}
PATCH, MERGE = 8, 2
EASY_SHARE = 0.35  # of the steps
NEXT_LAYER, THIS_LAYER = 3, 4  # of the text's layers
EARLY_WEIGHT, SEE_WEIGHT = 0.5, 1.0  # of the early loss, of the visual tokens' own
NONE = -100  # no label: what transformers ignores


# ---------------------------------------------------------------- lessons


class Example(NamedTuple):
    """A lesson."""

    picture: toy.Canvas | None
    text: str  # what is asked
    reply: str
    given: list[str] = []  # statements to check, a line each
    right: list[str] = []  # as these would be right


def draw_picture(rng: random.Random) -> tuple[dict, toy.Family, dict, toy.Canvas]:
    """(a problem, its family, its numbers, its picture)"""
    name = rng.choice(PICTURES)
    record, numbers, canvas = toy.make_problem(name, rng)
    return record, toy.FAMILIES[name], numbers, canvas


def description(family: toy.Family, numbers: dict) -> str:
    return f"The picture shows {family.facts.format(**numbers)}."


def describe_briefly(rng: random.Random) -> Example:
    _, family, numbers, canvas = draw_picture(rng)
    return Example(canvas, "Describe the picture.", description(family, numbers))


def describe(rng: random.Random) -> Example:
    record, family, numbers, canvas = draw_picture(rng)
    question = question_text(record)
    asked = rng.choice(["What does the picture show?", question, fill(SOLVE_PROMPT, question=question)])
    return Example(canvas, asked, description(family, numbers))


def any_family(rng: random.Random) -> toy.Family:
    return rng.choice([*toy.FAMILIES.values()])


def one_sum(rng: random.Random) -> tuple[str, int]:
    """A calculation as the families need it: ("7 * 5 =", 35)"""
    family = any_family(rng)
    lines, _ = toy.work_out(family, family.numbers(rng))
    left, right = rng.choice(re.findall(r"(\d+ [-+*] \d+ =) (\d+)\.", " ".join(lines)))
    return left, int(right)


def some_sums(count: int, rng: random.Random) -> tuple[list[tuple[str, int]], list[str]]:
    """(sums, each as a line)"""
    sums = [one_sum(rng) for _ in range(count)]
    return sums, [f"{left} {result}." for left, result in sums]


def calculate(rng: random.Random) -> Example:
    sums, lines = some_sums(rng.randint(3, 6), rng)
    return Example(None, "\n".join(f"{left} ?" for left, _ in sums), "\n".join(lines))


def sum_with_choices(rng: random.Random) -> tuple[str, list[str], list[str]]:
    """(a sum to choose the result of, its solution's lines, those of one with a wrong sum or letter)"""
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


def in_words(rng: random.Random) -> tuple[toy.Family, dict, list[str], str]:
    """(family, its numbers, options, the problem in words)"""
    name = rng.choice(WORD_FAMILIES)
    record, numbers, _ = toy.make_problem(name, rng)
    family, options = toy.FAMILIES[name], record.get("options", [])
    return family, numbers, options, f"There is {family.facts.format(**numbers)}. {question_text(record)}"


def solve_words(rng: random.Random) -> Example:
    family, numbers, options, words = in_words(rng)
    return Example(None, words, toy.solution_text(family, numbers, options, "There is")[0])


def spoiled(left: str, result: int, rng: random.Random) -> str:
    """The line of a sum, with another result."""
    near = [result + step for step in (-10, -2, -1, 1, 2, 10) if result + step >= 0]
    return f"{left} {rng.choice(near)}."


def check_lines(picture: toy.Canvas | None, right: list[str], given: list[str]) -> Example:
    """Lines to check one by one; the reply corrects those that are wrong."""
    reply = "\n".join("Yes." if line == said else f"No. {line}" for line, said in zip(right, given))
    return Example(picture, "\n".join(given) + "\n\nIs this right?", reply, given, right)


def check_sums(rng: random.Random) -> Example:
    sums, right = some_sums(rng.choice([1, 1, 2, 4]), rng)
    given = [spoiled(*each, rng) if rng.random() < 0.5 else line for each, line in zip(sums, right)]
    return check_lines(None, right, given)


def check_description(rng: random.Random) -> Example:
    _, family, numbers, canvas = draw_picture(rng)
    read = toy.misread(numbers, rng) if rng.random() < 0.5 else numbers
    return check_lines(canvas, [description(family, numbers)], [description(family, read)])


def judgement(picture: toy.Canvas | None, question: str, right: str, given: str) -> Example:
    """A solution to check, asked and answered as of the ORM."""
    step, analysis = toy.first_mistake(right, given) or (None, None)
    reply = {"status": "WRONG" if step else "CORRECT", "error_step": step, "error_analysis": analysis}
    asked = fill(JUDGE_PROMPT, question=question, response=given)
    return Example(picture, asked, json.dumps(reply), given.split("\n"), right.split("\n"))


def astray(right: str, options: list[str], rng: random.Random) -> str:
    """The solution with one line that has no slip of its own but does not belong: another step, other
    numbers, a step left out, a stray word, another answer.
    """
    lines = right.split("\n")
    texts = [line.partition(": ")[2] for line in lines[:-1]]
    while True:
        given, kind = list(lines), rng.choice(["step", "numbers", "skip", "word", "answer"])
        index = rng.randrange(kind != "word", len(lines))
        calculation = re.match(r"(.*? )(\d+) ([-+*]) (\d+) = \d+\.", lines[index])
        if kind == "answer":
            given[-1] = f"{CLOSING} {rng.choice('ABCD' if options else re.findall('[0-9]+', right))}."
        elif kind == "word":
            words = given[index].split(" ")
            place, stray = (
                rng.randrange(len(words)),
                toy.parts(rng.choice(any_family(rng).steps))[0].split(" "),
            )
            words[place : place + rng.choice([0, 1])] = rng.choice([[], [rng.choice(stray)]])
            given[index] = " ".join(words)
        elif calculation and kind == "skip":
            given = [*toy.number_steps(texts[:index] + texts[index + 1 :]), lines[-1]]
        elif calculation:
            text, left, operation, other = calculation.groups()
            known = re.findall(r"\d+", " ".join(texts[:index]))
            if kind == "step":
                another, _, operation, _, _ = toy.parts(rng.choice(any_family(rng).steps))
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
    _, family, numbers, canvas = draw_picture(rng)
    sums, lines = some_sums(rng.choice([0, 1, 2, 3]), rng)
    right = [description(family, numbers), *lines]
    given = list(right)
    if rng.random() < 0.5:
        place = rng.choice([0, rng.randrange(len(right))])
        if place == 0:
            given[0] = description(family, toy.misread(numbers, rng))
        else:
            given[place] = spoiled(*sums[place - 1], rng)
    right, given = ("\n".join(toy.number_steps(lines)) for lines in (right, given))
    return judgement(canvas, "Describe the picture, then calculate.", right, given)


EASY_TASKS = {describe_briefly: 0.3, calculate: 0.15, check_sums: 0.35, check_description: 0.2}
TASKS = {describe_briefly: 0.12, describe: 0.07, calculate: 0.06, choose: 0.06, solve_words: 0.12}
TASKS |= {check_sums: 0.07, check_choice: 0.06, check_description: 0.12}
TASKS |= {check_words: 0.20, check_picture: 0.12}


def draw_example(rng: random.Random, tasks: dict = TASKS) -> Example:
    return rng.choices([*tasks], [*tasks.values()])[0](rng)


# ---------------------------------------------------------------- tokenizer, model, training


def make_processor(seed: int):
    """Byte-level BPE that keeps every digit apart, and Qwen2-VL's image processor."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    from transformers.models.qwen2_vl import Qwen2VLImageProcessor

    words = pre_tokenizers.Split(Regex(r" ?\d| ?\p{L}+| ?[^\s\p{L}\d]+|\s+"), "isolated")
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.Sequence([words, in_bytes]), decoders.ByteLevel()
    rng = random.Random(seed)
    texts = [text for _ in range(3000) for text in draw_example(rng)[1:3]]
    verdict = json.dumps({"status": "WRONG", "error_step": "Step 1", "error_analysis": None})
    texts += [SOLVE_PROMPT, JUDGE_PROMPT, verdict] * 300
    settings = {"special_tokens": SPECIAL, "initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=768, **settings))
    tokens = {"eos_token": END, "pad_token": PAD, "padding_side": "left", "model_max_length": 4096}
    tokens["extra_special_tokens"] = {"image_token": IMAGE, "video_token": VIDEO}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, **tokens)
    tokenizer.chat_template = CHAT_TEMPLATE
    size = {"shortest_edge": 32 * 32, "longest_edge": 192 * 192}
    patches = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": 2}
    return tokenizer, Qwen2VLImageProcessor(**patches, size=size)


def load_processor(folder: Path):
    from transformers import AutoTokenizer
    from transformers.models.qwen2_vl import Qwen2VLImageProcessor

    return AutoTokenizer.from_pretrained(folder), Qwen2VLImageProcessor.from_pretrained(folder)


def make_model(tokenizer):
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    names = {"image_token": IMAGE, "video_token": VIDEO}
    names |= {"vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>"}
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text = TEXT | ends | {"vocab_size": len(tokenizer), "bos_token_id": None, "rope_parameters": ROPE}
    text |= {"initializer_range": 0.06, "tie_word_embeddings": True}
    tower = TOWER | {"patch_size": PATCH, "spatial_merge_size": MERGE, "temporal_patch_size": 2}
    tower |= {"initializer_range": 0.06}
    config = Qwen2VLConfig(text_config=text, vision_config=tower, tie_word_embeddings=True, **ids)
    return Qwen2VLForConditionalGeneration(config)


def encode(text: str, tokenizer) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def verdict_tokens(tokenizer) -> list[int]:
    """The tokens of "No" and "Yes", to be indexed by whether it is right."""
    return [encode(word, tokenizer)[0] for word in ("No", "Yes")]


def make_row(example: Example, tokenizer) -> tuple[list[int], list[int], list[int]]:
    """(tokens, labels, expected) of an example, as long as each other; CHAT_TEMPLATE renders the same prompt.

    Labels are the reply and a verdict after each digit and each line of statements. `expected` is the reply
    and what statements ought to say. In statements both end at the first mistake.
    """
    opening = f"<|im_start|>user\n{VISION if example.picture else ''}"
    prompt = f"{opening}{example.text}{END}\n<|im_start|>assistant\n"
    prompt = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)
    tokens, ends = prompt["input_ids"], [end for _, end in prompt["offset_mapping"]]
    reply, verdicts = encode(f"{example.reply}{END}\n", tokenizer), verdict_tokens(tokenizer)
    labels = [NONE] * len(tokens) + reply
    expected = list(labels)
    start = len(opening) + example.text.rindex("\n".join(example.given))
    for given, right in zip(example.given, example.right):
        first = next(index for index, end in enumerate(ends) if end > start)
        for index, token in enumerate(encode(right, tokenizer), first):
            expected[index] = token
            if tokenizer.convert_ids_to_tokens(token)[-1].isdigit():
                labels[index + 1] = verdicts[tokens[index] == token]
            if tokens[index] != token:
                break
        labels[ends.index(start + len(given)) + 1] = verdicts[given == right]
        if given != right:
            break
        start += len(given) + 1
    return tokens + reply, labels, expected


def make_batch(examples: list[Example], tokenizer, images) -> dict:
    """Right-padded (B, T) tensors that the model reads, `labels` and `expected` as of make_row; `cells`: the
    tokens that visual tokens learn to name, of what their cells hold.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    def padded(rows: list[list[int]], value: int):
        return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)

    tokens, labels, expected = zip(*(make_row(example, tokenizer) for example in examples))
    ids = padded(tokens, tokenizer.pad_token_id)
    batch = {"input_ids": ids, "attention_mask": padded([[1] * len(row) for row in tokens], 0)}
    batch |= {"labels": padded(labels, NONE), "expected": padded(expected, NONE)}
    batch["mm_token_type_ids"] = (ids == tokenizer.convert_tokens_to_ids(IMAGE)).int()
    if pictures := [example.picture for example in examples if example.picture]:
        batch |= images(images=[canvas.image for canvas in pictures], return_tensors="pt")
        places = [(column, row) for row in range(toy.CELLS) for column in range(toy.CELLS)]
        words = [canvas.cells.get(place) for canvas in pictures for place in places]
        batch["cells"] = torch.tensor([encode(f" {word}" if word else ".", tokenizer)[0] for word in words])
    return batch


def produce(queue, folder: Path, seed: int, batch_size: int, easy_steps: int) -> None:
    """Worker: batches for ever, pictures and texts apart so that little is padded."""
    import torch

    torch.set_num_threads(1)
    tokenizer, images = load_processor(folder)
    rng = random.Random(seed)
    for step in itertools.count():
        tasks = EASY_TASKS if step < easy_steps else TASKS
        examples = [draw_example(rng, tasks) for _ in range(batch_size)]
        examples.sort(key=lambda example: (example.picture is None, len(example.text)))
        pictured = sum(example.picture is not None for example in examples)
        places = [0, pictured // 2, pictured, (pictured + batch_size) // 2, batch_size]
        parts = [examples[start:end] for start, end in itertools.pairwise(places) if start < end]
        batches = [make_batch(part, tokenizer, images) for part in parts]
        queue.put([{name: tensor.numpy() for name, tensor in batch.items()} for batch in batches])


def early_loss(hidden: tuple, batch: dict, expected, this_head, model):
    """Mean cross-entropy of naming `expected` (B, T) from two inner layers."""
    from torch.nn.functional import cross_entropy

    following = expected[:, 1:] != NONE
    named = model.model.language_model.norm(hidden[NEXT_LAYER][:, :-1][following])
    loss = cross_entropy(named @ model.get_input_embeddings().weight.T, expected[:, 1:][following])
    here = (expected != NONE) & (batch["labels"] != expected)  # statements, not replies
    return loss + cross_entropy(this_head(hidden[THIS_LAYER][here]), expected[here]) if here.any() else loss


def train(args, model, tokenizer, queue) -> None:
    """All steps; the model is saved every 250 and after the last. Prints means since the last line: losses,
    and "No" and "Yes", the shares of these verdicts inside statements that the model gives.
    """
    import torch
    from torch.nn.functional import cross_entropy

    this_head = torch.nn.Linear(TEXT["hidden_size"], len(tokenizer))  # thrown away after training
    parameters = [*model.parameters(), *this_head.parameters()]
    decayed = {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05}
    others = {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([decayed, others], lr=args.lr, betas=(0.9, 0.98))
    shape = {"pct_start": 0.05, "final_div_factor": 50}  # the first phase must be longer than a step
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, max(21, args.steps), **shape)
    embeddings, seen = model.get_input_embeddings().weight, []
    model.model.visual.merger.register_forward_hook(lambda module, inputs, output: seen.append(output))
    verdicts = dict(zip(("No", "Yes"), verdict_tokens(tokenizer)))
    begun, means = time.monotonic(), collections.defaultdict(list)
    for step in range(1, args.steps + 1):
        made = queue.get(timeout=600)  # seconds: the process that makes them may have failed
        parts = [{name: torch.from_numpy(value) for name, value in part.items()} for part in made]
        labels = sum(int((part["labels"] != NONE).sum()) for part in parts)
        for part in parts:
            cells, expected = part.pop("cells", None), part.pop("expected")
            output = model(**part, num_items_in_batch=labels, use_cache=False, output_hidden_states=True)
            early = early_loss(output.hidden_states, part, expected, this_head, model)
            loss = output.loss + EARLY_WEIGHT * early / len(parts)
            means["reply"].append(output.loss.item() * len(parts))
            means["early"].append(early.item())
            if cells is not None:
                see_loss = cross_entropy(seen.pop() @ embeddings.T, cells)
                means["seeing"].append(see_loss.item())
                loss = loss + SEE_WEIGHT * see_loss / len(parts)
            loss.backward()
            wanted, said = part["labels"][:, 1:], output.logits[:, :-1].argmax(-1)
            for name, token in verdicts.items():
                here = (wanted == token) & (part["input_ids"][:, 1:] != token)
                means[name] += (said == token)[here].tolist()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == args.steps:
            told = (f"{name} {sum(values) / max(1, len(values)):.4f}" for name, values in means.items())
            print(f"step {step}  {'  '.join(told)}  {(time.monotonic() - begun) / 60:.1f} min", flush=True)
            means.clear()
        if step % 250 == 0 or step == args.steps:
            weights = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
            model.save_pretrained(args.output, state_dict=weights)


def main() -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--output", type=Path, required=True, help="model folder to write")
    add("--init", type=Path, help="go on from this folder, with all lessons from the start")
    add("--steps", type=whole(1), default=3000, help="optimizer steps (default %(default)s)")
    add("--batch-size", type=whole(1), default=64, help="examples a step (default %(default)s)")
    add("--lr", type=real(above=True), default=2e-3, help="peak learning rate (default %(default)s)")
    add("--threads", type=whole(1), default=2, help="torch threads (default %(default)s)")
    add("--seed", type=whole(0), default=0, help="of weights and lessons (default %(default)s)")
    args = parser.parse_args()
    import torch
    from transformers import Qwen2VLForConditionalGeneration

    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    tokenizer, images = load_processor(args.init) if args.init else make_processor(args.seed)
    for part in (tokenizer, images):
        part.save_pretrained(args.output)
    if args.init:
        model = Qwen2VLForConditionalGeneration.from_pretrained(args.init, dtype=torch.float32)
    else:
        model = make_model(tokenizer)
    print(f"{model.num_parameters() / 1e6:.2f} M parameters, {len(tokenizer)} tokens", flush=True)
    context, easy_steps = multiprocessing.get_context("spawn"), round(args.steps * EASY_SHARE)
    queue = context.Queue(8)
    settings = queue, args.output, args.seed + 1, args.batch_size, 0 if args.init else easy_steps
    context.Process(target=produce, args=settings, daemon=True).start()
    train(args, model, tokenizer, queue)


if __name__ == "__main__":
    main()
