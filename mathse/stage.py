"""What every stage that asks a model does, in one call: run_stage().

A stage checks its flags and calls. Then come the dry run, the recipe, one pass that checks every row, the
ranks, the join of their rows, the summary. A call that was killed goes on where it stopped.
"""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from mathse.cli import input_rows, print_plan
from mathse.generate import Generator, Reply, Request, open_model
from mathse.jsonl import Output, keys_of_rank
from mathse.launch import launch, processes, rank_count
from mathse.recipe import Recipe
from mathse.records import is_endpoint, row_key, written_rows

LEAST_ROWS = 16  # for each rank: fewer are not worth another
COPIES = 4  # of the weights in a rank's memory: in fp32, of a file in bf16, with what it computes


def counted(rows: Iterable[dict]) -> Iterator[str]:
    """Summary lines: rows by how they finished, why the first failed, and a warning if nearly all problems
    have one text in all samples: then somebody decodes greedily, such as a server with a folder's habits.
    """
    counts, texts, reason = Counter(), defaultdict(list), None
    for row in rows:
        counts[row["finish"]] += 1
        if row["finish"] == "error":
            reason = reason or row.get("reason")
        else:
            texts[row["id"], row.get("benchmark")].append(hash(row["response"]))
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in counts.most_common())
    failed = f"; first error: {reason}" if reason else ""
    yield f"{counts.total():,} rows: {kinds or 'nothing to do'}{failed}"
    several = [found for found in texts.values() if len(found) > 1]
    same = sum(len({*found}) == 1 for found in several)
    if len(several) >= 3 and same >= 0.9 * len(several):
        yield f"all samples of {same} of {len(several)} problems are one text: is the model decoded greedily?"


def run_stage(
    args: argparse.Namespace,
    script: str,
    load: Callable | None,
    inputs: Iterable[str],
    keys: Callable[[bool], dict[str, int]],
    rows: Callable[[Generator | None, dict[str, list[int]]], Iterable[dict]],
    output: Path | None = None,
    samples: int = 1,
    count: Callable[[int], int] = lambda rows: rows,
    calls: int = 1,
    responses: int = 0,
    constants: dict[str, str] | None = None,
    without: Iterable[str] = (),
    unused: Iterable[str] = (),
    schema: dict | None = None,
    settle: Callable[[list[dict]], Iterable[dict]] = iter,
    summary: Callable[[Iterable[dict]], Iterable[str]] = counted,
) -> None:
    """Write the rows that a stage makes to args.output, or `output`.

    `inputs`, `constants`, `without`, `unused`: see Recipe. `load`, `schema`: see open_model(); without
    args.model or `load` no model is asked. `keys(check)`: {row_key() of each row to make, with `samples` of
    its sample 0: expected length}; with `check` the inputs are checked. `rows(generate, missing)`: rows of
    these keys, with the numbers of their samples. For a dry run: `count(N)`: keys of N input rows; `calls`:
    model calls a row; `responses`: that a prompt shows. `settle`: see Output.finish(). `summary(rows)`: lines
    about all rows.
    """
    if is_endpoint(args.model or ""):
        unused = ("load", *unused)  # what loads a model decides nothing
    recipe = Recipe(output or args.output, script, args, inputs, {"batch_size", *without}, constants, unused)
    if args.dry_run is not None:
        made = count(input_rows(args)) * samples
        return print_plan(args, made, 0 if recipe.stands() else made * calls, responses)
    if recipe.is_done():
        return
    lengths = keys(True) if processes()[0] == 0 else {}
    written = Output(recipe)  # here other ranks of a launcher wait for the check
    lengths = lengths or keys(False)
    missing = {key: [k for k in range(samples) if sample_key(key, k) not in written.done] for key in lengths}
    missing = {key: numbers for key, numbers in missing.items() if numbers}

    def work() -> None:
        mine = {key: missing[key] for key in keys_of_rank(lengths) if key in missing}
        if not mine:
            return
        generate = open_model(args.model, args, load, schema) if args.model and load else None
        bar = {"total": sum(map(len, mine.values())), "desc": written.path.stem, "unit": "row"}
        for row in tqdm(rows(generate, mine), **bar, disable=True if processes()[0] else None):
            written.write(row)
        if generate:
            generate.close()

    local = args.model if load and not args.serve else None
    ranks = rank_count(args.processes, sum(map(len, missing.values())) // LEAST_ROWS, local, COPIES)
    if ranks > 1:
        import mathse.generate.engine  # noqa: F401  # once, for all ranks

        print(f"ranks: {ranks}", flush=True)
    launch(ranks, work)
    written.finish([sample_key(key, k) for key in lengths for k in range(samples)], settle)
    if processes()[0] == 0:
        print(f"{written.path}: " + "\n  ".join(summary(written_rows(written.path))), flush=True)


def ask(
    rows: Iterable[dict], request_of: Callable[[dict], Request | None], generate: Generator | None
) -> Iterator[tuple[dict, list[Reply]]]:
    """(row, the replies to its request) of each row, none of a row that has no request, in any order."""
    unasked, waiting, wanted = [], defaultdict(list), {}

    def requests() -> Iterator[Request]:
        for row in rows:
            if request := request_of(row):
                wanted[row_key(row)] = len(request.seeds)
                yield request
            else:
                unasked.append((row, []))

    if generate is None:
        yield from ((row, []) for row in rows)
        return
    for reply in generate(requests()):
        key = row_key(reply.row)
        waiting[key].append(reply)
        if len(waiting[key]) == wanted[key]:
            del wanted[key]
            yield reply.row, sorted(waiting.pop(key), key=lambda reply: reply.sample)
        while unasked:
            yield unasked.pop()
    yield from unasked


def sample_key(key: str, sample: int) -> str:
    """The key of a sample, from that of sample 0."""
    name, first, kind = json.loads(key)
    return json.dumps([name, first + sample, kind])
