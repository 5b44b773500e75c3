"""Ask a model about the predictions of an evaluation: one reply a prediction, in a file beside them.

Failed predictions that are tried again (--retry-errors) leave the replies about the others valid: they are
kept, so that none is paid for twice.
"""

from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from mathse.answers import check_version
from mathse.chat import fill, question_text, user_message
from mathse.generate import Reply, Request, open_model
from mathse.jsonl import Output, expected_length, failed_rows, meet, processes, remove, share, write_json
from mathse.recipe import Recipe, fingerprint, read_recipe
from mathse.records import derive_seed, is_endpoint, read_rows, row_key, written_rows

PREDICTIONS, JUDGED, ERRORS = "predictions.jsonl", "judged.jsonl", "errors.jsonl"
MAX_TOKENS = 256  # new tokens of a reply, at most
DECIDING = {"model", "max_tokens", "max_pixels", "seed"}  # flags that decide the replies
RETRIED = "retried"  # stands for the content of predictions.jsonl while failed ones are tried again


@dataclass
class Judging:
    """What a model is asked about predictions.

    `prompt`: filled with question, answer and response. `wanted(row)`: whether a prediction is asked about.
    `read(replies, args)`: yields each reply with the fields that are stored of it.
    """

    file: str
    prompt: str
    shows_images: bool
    wanted: Callable[[dict], bool]
    read: Callable[[Iterator[Reply], Namespace], Iterator[tuple[Reply, dict]]]


def ask(judging: Judging, spec: str, args: Namespace, load: Callable, script: str) -> None:
    """Write the replies of the model `spec` to args.output / judging.file, unless they are there.

    Called by all processes. Process 0 alone asks an endpoint, and the others wait for it.
    """
    alone = is_endpoint(spec)
    if processes()[0] == 0:
        go_on_with_replies(args.output, judging.file)
    meet()
    predictions = args.output / PREDICTIONS
    asked = {"predictions": str(predictions), "model": spec, "temperature": 0.0, "max_tokens": MAX_TOKENS}
    asked = Namespace(**vars(args) | asked)
    inputs, without = ("predictions", "model"), vars(args).keys() - DECIDING
    constants = {"prompt": judging.prompt, "answer check": check_version()}
    recipe = Recipe(args.output / judging.file, script, asked, inputs, without, constants, (judging.read,))
    done = recipe.is_done()
    meet()  # no process looks while the first one already writes
    if done:
        return
    if not alone or processes()[0] == 0:
        rows = filter(judging.wanted, read_rows(predictions, check=False))
        lengths = {row_key(row): expected_length(row) for row in rows}
        write_replies(judging, spec, asked, load, Output(recipe, alone), lengths)
    if alone:
        meet()


def write_replies(
    judging: Judging, spec: str, args: Namespace, load: Callable, output: Output, lengths: dict[str, int]
) -> None:
    """Ask about the predictions with these keys, of several processes each about its part."""
    mine = set(lengths) if output.world == 1 else share(lengths)
    todo, spent = mine - output.done, {}
    if todo:
        generate = open_model(spec, args, load)
        replies = judging.read(generate(requests(judging, args, todo)), args)
        for reply, fields in tqdm(replies, total=len(todo), desc=judging.file, unit="answer", disable=None):
            row = {name: reply.row[name] for name in ("id", "sample", "benchmark")} | fields
            row |= {"judge_model": spec, "judge_reply": reply.text or reply.reason, "finish": reply.finish}
            output.write(row | {"judge_tokens": [reply.prompt_tokens, reply.tokens]})
        spent = generate.spent()
    output.finish(lengths, **spent)


def requests(judging: Judging, args: Namespace, todo: set[str]) -> Iterator[Request]:
    for row in read_rows(args.predictions, check=False):
        if row_key(row) in todo:
            question = question_text(row | {"options_drawn": False})  # a judge may not see the image
            texts = {"question": question, "answer": row["answer"], "response": row["response"]}
            images = row["images"] if judging.shows_images else []
            seed = derive_seed(args.seed, Path(judging.file).stem, row["id"], row["sample"])
            messages = user_message(fill(judging.prompt, **texts), images)
            yield Request(row | {"images": images}, messages, {row["sample"]: seed})


def replies_by_benchmark(folder: Path, name: str) -> dict[str, list[dict]]:
    """{benchmark: replies} of a file, none if they are about other predictions than those in the folder."""
    rows = defaultdict(list)
    for row in written_rows(folder / name) if current_recipe(folder, name) else ():
        rows[row["benchmark"]].append(row)
    return rows


# ---------------------------------------------------------------- replies and the predictions they are about


def start_predictions(recipe: Recipe) -> Output:
    """Start predictions.jsonl; what is made from it is put aside or removed. Called by all processes."""
    folder = recipe.output.parent
    if processes()[0] == 0:
        remove(folder / "metrics.json")
        if failed_rows(recipe.output):
            keep_replies(folder)
    output = Output(recipe)
    if processes()[0] == 0 and not output.done:  # made from the start
        remove(*(folder / f"{name}.part" for name in (JUDGED, ERRORS)))
    return output


def keep_replies(folder: Path) -> None:
    """Put replies aside while failed predictions are tried again."""
    now = fingerprint(str(folder / PREDICTIONS))
    for name in (JUDGED, ERRORS):
        part = folder / f"{name}.part"
        is_complete = (folder / name).is_file()
        recipe = read_recipe(folder / f"{name}.recipe.json" if is_complete else part / "recipe.json")
        if recipe and asked_about(recipe) == now:
            recipe["inputs"]["predictions"][0]["content"] = RETRIED
            part.mkdir(exist_ok=True)
            write_json(part / "recipe.json", recipe)
            if is_complete:
                (folder / name).replace(part / "earlier.jsonl")


def go_on_with_replies(folder: Path, name: str) -> None:
    """Let the replies that were put aside count for the predictions as they are now."""
    path = folder / f"{name}.part" / "recipe.json"
    recipe = read_recipe(path)
    if recipe and asked_about(recipe) == RETRIED:
        recipe["inputs"]["predictions"][0]["content"] = fingerprint(str(folder / PREDICTIONS))
        write_json(path, recipe)


def current_recipe(folder: Path, name: str) -> dict | None:
    """The recipe of a file of replies, if they are about predictions.jsonl as it stands."""
    recipe = read_recipe(folder / f"{name}.recipe.json")
    return recipe if recipe and asked_about(recipe) == fingerprint(str(folder / PREDICTIONS)) else None


def asked_about(recipe: dict) -> str:
    return recipe["inputs"]["predictions"][0]["content"]
