"""Read and check a source of problems, and leave out those that a test set holds too.

Reads:  --input              a table (jsonl, json, csv, tsv, parquet), NAME:PATH (a benchmark) or
                             hf:NAME:SPLIT; every image is decoded once
        --test               test sets, in the same forms
Writes: problems.jsonl       id, question, images, answer, optional options, precision, solution, subject,
                             source, level, query (a benchmark's own prompt), options_drawn (in the image)
        images/              beside it: images that came inside rows
        contamination.jsonl  beside it, for each contaminated problem: id, test_set and test_id of the nearest
                             test problem, why (pixels, image or text: mathse/problems/decontaminate.py),
                             distance (grey levels), images (the two that are alike), also (further ones)

    python -m mathse.problems --input toy/train.jsonl --test toy/test.jsonl --output out/problems.jsonl
    python -m mathse.problems --input hf:MathLLMs/MathVision:test --fields images=decoded_image \\
        --output out/problems.jsonl --limit 100
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from mathse.cli import Parser, add_output_flags, watch_references, whole
from mathse.jsonl import Output, line_of, remove, replace
from mathse.launch import stage_end
from mathse.problems.columns import parse_fields
from mathse.problems.decontaminate import HeldOut, hash_images
from mathse.problems.sources import Rows, files_of, open_source
from mathse.recipe import Recipe
from mathse.records import fail, row_key

LISTING = "contamination.jsonl"
MATHVL = 341_346  # problems of the paper's data: what a dry run counts for a source that is no file


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.prog = "python -m mathse.problems"
    add = parser.add_argument
    add("--input", required=True, help="the problems: a table, NAME:PATH or hf:NAME:SPLIT")
    add("--output", type=Path, required=True, help="problems.jsonl to write")
    add("--test", nargs="+", default=[], help="test sets, in the same forms (default: none)")
    left_out = "leave contaminated problems out, or list them only (default %(default)s)"
    add("--contaminated", choices=["drop", "warn"], default="drop", help=left_out)
    add("--fields", default="", help='columns of tables, for example "question=problem images=image"')
    add("--limit", type=whole(0), default=0, help="first N of each source (default %(default)s: all)")
    add_output_flags(parser)
    return parser.parse_args()


def open_problems(spec: str, args: argparse.Namespace, folder: Path) -> tuple[str, Rows]:
    """A source up to --limit, its images saved in `folder`. It is read when the rows are asked for."""
    name, rows = open_source(spec, folder, parse_fields(args.fields), args.limit)
    return name, watch_references(rows, spec)


def write_problems(rows: Iterator, held_out: HeldOut, output: Output) -> list[str]:
    """Write every problem that earlier calls did not, after the listing of a contaminated one. Returns the
    ids of all problems, in order.
    """
    ids = []

    def missing() -> Iterator[tuple[str, dict]]:
        for where, row in rows:
            ids.append(row["id"])
            if row_key(row) not in output.done:
                yield where, row

    for row, hashes in hash_images(missing(), "problems"):
        if matches := held_out.matches(row, hashes):
            also = [f"{match['test_set']}: {match['test_id']}" for match in matches[1:]]
            # `benchmark` tells the listing from the problem, also by its key
            output.write({"id": row["id"], "benchmark": LISTING} | matches[0] | {"also": also})
        output.write(row)
    return ids


def main() -> None:
    args = parse_args()
    with TemporaryDirectory() as folder:
        folder = args.output.parent / "images" if args.dry_run is None else Path(folder)
        (_, problems), *tests = [open_problems(spec, args, folder) for spec in (args.input, *args.test)]
        recipe = Recipe(args.output, __file__, args, inputs=("input", "test"))
        if args.dry_run is not None:
            print(f"    {planned(args, problems, folder)}")
            recipe.stands()
            return
    if recipe.is_done():
        return
    output, listing_path = Output(recipe), args.output.parent / LISTING
    try:
        tested = ((name, *found) for name, rows in tests for found in hash_images(rows, name))
        ids = write_problems(problems, HeldOut(tested), output)
        listings = [row for row in output.rows() if row.pop("benchmark", None) == LISTING]
        contaminated = {row["id"] for row in listings} if args.contaminated == "drop" else set()
        kept = [row_key({"id": name}) for name in ids if name not in contaminated]
        if not kept:
            remedy = "train on others, or keep them by --contaminated warn"
            fail(f"{args.input}: all its {len(ids)} problems are in the test sets; {remedy}")
    except SystemExit as end:
        if end.code == 2:  # a user error: mended, the source or a flag is another
            remove(recipe.part)
        raise
    found = f"{len(listings)} contaminated"
    if listings:
        part = recipe.part / "listing"
        part.write_bytes(b"".join(map(line_of, listings)))
        replace(part, listing_path)
        reasons = Counter(row["why"] for row in listings).most_common()
        found += f" ({', '.join(f'{count} by {why}' for why, count in reasons)}), listed in {listing_path}"
    else:
        remove(listing_path)  # of an earlier output, perhaps of other test sets
    output.finish(kept)
    print(f"{args.output}: {len(kept)} problems kept, {found}")


def planned(args: argparse.Namespace, problems: Iterator[tuple[str, dict]], folder: Path) -> str:
    """What there is to start from. Files of text are read to their end, so that faults are told before all
    else, of a parquet file the first row; what is not here counts as the limit, or as the paper's data.
    """
    path = Path(args.input)
    files = files_of(path) if path.exists() else []
    kind = files[0].suffix.lower() if files else ""
    if kind in (".parquet", ".arrow"):
        next(problems)
    if kind == ".parquet":
        from pyarrow.parquet import read_metadata

        rows = sum(read_metadata(file).num_rows for file in files)
        return f"{min(args.limit or rows, rows):,} rows"
    if not files or kind == ".arrow":
        return f"{args.limit or MATHVL:,} rows"
    rows = answers = solutions = 0
    for _, row in problems:
        rows, answers = rows + 1, answers + (row["answer"] is not None)
        solutions += isinstance(row.get("solution"), str)
        remove(*(path for path in map(Path, row["images"]) if path.parent == folder))
    if not answers:
        fail(f"{args.input}: no problem has an answer, and D0 is what answers confirm; write some")
    return f"{rows:,} rows, {solutions:,} with a solution"


if __name__ == "__main__":
    with stage_end():
        main()
