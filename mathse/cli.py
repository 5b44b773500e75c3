"""Flags that several stages share, their checks, and the dry run. Torch is not needed."""

import argparse
import contextlib
import math
import os
import re
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from mathse.images import MAX_PIXELS
from mathse.records import fail, is_endpoint, read_json, shown, tell

# For the dry run: what a prompt holds beside its image, and the length of a reply, in tokens. Assumed, not
# measured.
PROMPT_TOKENS, REPLY_TOKENS, PIXELS_A_TOKEN = 300, 500, 28 * 28
TEST_ROWS, TEXTS = 1000, (".jsonl", ".csv", ".tsv")
KEY_IN_QUERY = re.compile(r"[?&]([^=&]*(key|token|secret|password)[^=&]*|sig)=", re.IGNORECASE)
SEES = re.compile(r"vision|visual|image|patch|vit_|vq_")  # keys of a config.json that speak of images
PROJECT = Path(__file__).parent.parent


class Parser(argparse.ArgumentParser):
    """Shows a script's docstring as its help; ends a user error in one line."""

    def __init__(self, description: str):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        fail(f"{self.prog}: {message}")


def whole(low: int) -> Callable[[str], int]:
    """The type of a flag: a whole number of at least `low`."""

    def parse(text: str) -> int:
        with contextlib.suppress(ValueError):
            if low <= (value := int(text)) < 1 << 63:
                return value
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number of at least {low}, below 2^63")

    return parse


def real(low: float = 0.0, high: float = math.inf, above: bool = False) -> Callable[[str], float]:
    """The type of a flag: a number from `low` (`above`: above it) to `high`."""

    def parse(text: str) -> float:
        with contextlib.suppress(ValueError):
            value = float(text)
            if low <= value <= high and not (above and value == low) and math.isfinite(value):
                return value
        least = f"above {low:g}" if above else f"of at least {low:g}"
        most = f" and at most {high:g}" if high < math.inf else ""
        raise argparse.ArgumentTypeError(f"{text}: must be a number {least}{most}")

    return parse


def share_or_count(text: str) -> int | float | str:
    """The type of a flag: a number from 1, a share below 1, or "all". 0 and 1.0 could mean two things."""
    if text == "all" or (text.isdecimal() and int(text)):
        return text if text == "all" else int(text)
    if text.replace(".", "", 1).isdecimal() and 0 < float(text) < 1:
        return float(text)
    raise argparse.ArgumentTypeError(f"{text}: must be a number from 1, a share between 0 and 1, or all")


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of every command that writes an output."""
    add = parser.add_argument_group("output").add_argument
    add("--force", action="store_true", help="make an output of another recipe anew; the same one is skipped")
    plan = "check, print calls, tokens and cost, and end; ROWS: input rows, if no file tells (default 0)"
    add("--dry-run", type=whole(0), nargs="?", const=0, metavar="ROWS", help=plan)


def add_generation_flags(parser: argparse.ArgumentParser, max_tokens: int) -> None:
    """The flags of every stage that generates text (01, 02, 03, 05)."""
    add = parser.add_argument_group("generation").add_argument
    add("--temperature", type=real(), default=0.0, help="0 is greedy (default %(default)s)")
    nucleus = "nucleus sampling; 1 is off (default %(default)s)"
    add("--top-p", type=real(0, 1, above=True), default=1.0, help=nucleus)
    likeliest = "draw from the k likeliest tokens; 0 is off (default %(default)s)"
    add("--top-k", type=whole(0), default=0, help=likeliest)
    longest = "new tokens a reply, at most (default %(default)s)"
    add("--max-tokens", type=whole(1), default=max_tokens, help=longest)
    largest = "pixels; larger images are scaled down, 0: never (default %(default)s)"
    add("--max-pixels", type=whole(0), default=MAX_PIXELS, help=largest)
    together = "replies that a rank decodes together, local models (default %(default)s)"
    add("--batch-size", type=whole(1), default=64, help=together)
    ranks = "of a local model (default: one a GPU, or one a core)"
    add("--processes", type=whole(1), metavar="RANKS", help=ranks)
    add("--seed", type=whole(0), default=0, help="the run's seed (default %(default)s)")
    add("--retry-errors", action="store_true", help="try the failed rows of a complete output again")
    add("--trust-remote-code", action="store_true", help="run the Python code in the model's folder")
    add = parser.add_argument_group("endpoint").add_argument
    served = "starts a server of --model, asks and ends it, as vllm serve {model} --port {port}"
    add("--serve", metavar="COMMAND", help=served)
    add("--concurrency", type=whole(1), help="requests in flight (default: 32, with --serve 256)")
    waited = "seconds a try; all tries of a request take three times as long at most (default %(default)s)"
    add("--timeout", type=real(0, 1e8, above=True), default=600.0, help=waited)
    asked = "stop after N requests, tries included, with exit code 3 (default %(default)s: no limit)"
    add("--max-requests", type=whole(0), default=0, metavar="N", help=asked)
    paid = "stop when so much is spent by PRICE_IN and PRICE_OUT, with exit code 3 (default: never)"
    add("--max-cost", type=real(), default=0.0, help=paid)
    add("--spent", help="file that adds up the requests and tokens of several calls: the limits hold for all")


def check_sampling(args: argparse.Namespace, flag: str, count: int) -> None:
    """Several samples need a temperature."""
    if count > 1 and args.temperature == 0:
        fail(f"{flag}: more than one at --temperature 0 would be the same text; set --temperature 1.0")


# ---------------------------------------------------------------- models


def check_model(args: argparse.Namespace, spec: str, trained: bool = False, flag: str = "--model") -> None:
    """End the command if a spec cannot be a model. What a hub id holds is known only when it is loaded.

    `trained`: it is to be fine-tuned, so no endpoint. In a dry run a model of the same run may still be made.
    """

    def refuse(problem: str) -> NoReturn:
        fail(f"{flag}: {spec}: {problem}")

    if serve := getattr(args, "serve", None):
        if is_endpoint(spec) or "{model}" not in serve or "{port}" not in serve:
            fail("--serve: needs a model folder or hub id as --model, and a command with {model} and {port}")
    if is_endpoint(spec):
        if trained:
            refuse("an endpoint cannot be fine-tuned; give a model folder or a hub id")
        return check_address(spec)
    folder = Path(spec)
    if not folder.is_dir():
        if args.dry_run is not None and folder.parent.parent == Path(args.output).parent.parent:
            return  # an earlier step of this run makes it
        if (PROJECT / spec).is_dir():
            refuse(f"no such folder from here; write {PROJECT / spec}")
        if folder.exists() or not re.fullmatch(r"\w[\w.-]*/[\w.-]+", spec):
            address = "" if trained else " or http://host:port/v1#model-name"
            refuse(f"no such folder; give a model folder, a hub id (owner/name){address}")
        return
    if not (folder / "config.json").is_file():
        refuse("no config.json in it; is it a model folder?")
    if not (config := read_json(folder / "config.json")):
        refuse("config.json: not a JSON object, or an empty one; download it again")
    if not reads_images(config):
        kind = shown(config.get("model_type"))
        refuse(f"a {kind} model reads no images, by its config.json; give an image-text-to-text model")
    if not any(folder.glob("*.safetensors")):
        pickles = [path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth")]
        convert = f"pickled ones ({', '.join(pickles[:1])}) are never loaded: convert them"
        refuse(f"no *.safetensors weights in it; {convert if pickles else 'is the download complete?'}")


def reads_images(config: dict) -> bool:
    """Whether a config.json speaks of images, or of remote code, which may see without saying so."""
    return "auto_map" in config or any(map(SEES.search, (*config, str(config.get("model_type")))))


def check_address(spec: str) -> None:
    """End the command if an endpoint's address is none, or holds what must not be written to files."""
    address = spec.partition("#")[0]
    if "@" in address or KEY_IN_QUERY.search(address):  # the spec stands in records and messages
        remedy = "would be written to files; put the key into OPENAI_API_KEY"
        fail(f"--model: a name or key in an endpoint's address {remedy}")
    with contextlib.suppress(ValueError):  # a port that is no number, a broken IPv6 address
        parts = urllib.parse.urlsplit(spec)
        if parts.hostname and parts.fragment and (parts.port or True):
            return
    fail(f"--model: {spec}: an endpoint is written http://host:port/v1#model-name")


# ---------------------------------------------------------------- dry run


def price(name: str) -> float:
    """A price of a million tokens from the environment (PRICE_IN, PRICE_OUT), 0 if it is not set."""
    try:
        value = float(os.environ.get(name) or 0)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        fail(f"{name}: {os.environ[name]!r}: must be a number, the price of a million tokens")
    return value


def input_rows(args: argparse.Namespace) -> int:
    """About how many rows a stage reads, up to --limit: the lines of its files and, for those that earlier
    stages have yet to make, what --dry-run says. A test set that is no such file counts as TEST_ROWS.
    """
    tests = getattr(args, "test", [])
    sources = tests or args.input
    files = [path for path in map(Path, sources) if path.is_file() and path.suffix.lower() in TEXTS]
    rows = sum(line.count(b"\n") for path in files for line in path.open("rb"))
    rows += TEST_ROWS * (len(tests) - len(files)) if tests else args.dry_run
    return min(rows, args.limit * max(1, len(tests))) if args.limit else rows


def print_plan(args: argparse.Namespace, rows: int, calls: int, responses: int) -> None:
    """The line of a dry run: the rows to be made, model calls, tokens by the assumptions above, and what an
    endpoint would cost. `responses`: that a prompt shows beside the problem.
    """
    image = (args.max_pixels or MAX_PIXELS) // PIXELS_A_TOKEN
    read, written = PROMPT_TOKENS + image + responses * REPLY_TOKENS, min(args.max_tokens, REPLY_TOKENS)
    read, written = calls * read, calls * written
    cost = (read * price("PRICE_IN") + written * price("PRICE_OUT")) / 1e6
    paid = f", about ${cost:,.2f}" if cost and is_endpoint(args.model or "") else ""
    asked = f"about {calls:,} model calls, {read:,} tokens in and {written:,} out{paid}"
    print(f"    {rows:,} rows: {asked}", flush=True)


# ---------------------------------------------------------------- references


def watch_references(rows: Iterable, what: str) -> Iterator:
    """The problems, or (place, problem); behind the last a line about the references that the answer check
    cannot read."""
    from mathse.answers import is_readable

    unread, total, told = [], 0, None
    for told in rows:
        row = told[1] if isinstance(told, tuple) else told
        total += row.get("answer") is not None
        if not is_readable(row):
            unread.append(f"{shown(row['id'])}: {shown(row['answer'])}")
        yield told
    if told and not total:
        tell(f"{what}: no problem has an answer, so that no response can be checked by one")
    if unread:
        first = "; ".join(unread[:3]) + ("; …" if len(unread) > 3 else "")
        effect = "of them only a response with the same text is right, all others stay undecided"
        tell(f"{what}: {len(unread)} of {total} answers are not read as values: {effect} ({first})")
