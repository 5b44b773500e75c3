"""A run's settings: written to RUN/config.json when it begins, compared whenever it goes on. Called by run_rounds.sh.

Reads:  stdin, every step of the run with these settings: a line of its output and the words of its command, split by tabs
        RUN/commands.tsv, such lines of the steps that were begun
Writes: RUN/config.json   settings, machine (what leaves the results alone), inputs (their fingerprints), versions, git_commit, git_dirty

A changed setting is refused. `--force` removes what it makes stale instead: a step's output is stale if its command has
changed, or if it reads an input that has changed or an output that is stale. Nothing else is made again.

    printf 'runs/x/samples.jsonl\\t01_sample.py\\t--samples\\t4\\n' | python config.py runs/x --settings SAMPLES=4 --inputs toy/train.jsonl
"""

import argparse
import contextlib
import json
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from checks import check_model
from common import fail, is_endpoint
from output import disk_errors, failed_rows, fingerprint, reopen, write_json

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "math-verify", "pillow", "numpy")
HOW = {"--concurrency", "--timeout", "--max-requests", "--max-cost", "--spent", "--micro-batch", "--recompute", "--log-with"}  # flags that leave a result alone; 04's --batch-size does not


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--settings", nargs="*", default=[], metavar="NAME=VALUE", help="what decides the results")
    parser.add_argument("--machine", nargs="*", default=[], metavar="NAME=VALUE", help="what does not; recorded only")
    parser.add_argument("--inputs", nargs="*", default=[], help="files and folders whose content is compared, also as NAME:FOLDER (of a folder its files' names and sizes)")
    parser.add_argument("--force", action="store_true", help="remove the outputs that changed settings make stale")
    parser.add_argument("--retry-errors", action="store_true", help="open outputs again that hold rows which failed, and remove what was made from them")
    return parser.parse_args()


def pairs(words: list[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in words)


def read_steps(lines) -> dict[str, list[str]]:
    """{output: words of its command, from the script on, without what leaves the result alone}; the last line of an output counts."""
    steps = {}
    for line in lines:
        out, *words = line.rstrip("\n").split("\t")
        start = next((index for index, word in enumerate(words) if word.endswith(".py")), None)
        if start is None:  # torn by a kill
            continue
        how = HOW | (set() if words[start] == "04_finetune.py" else {"--batch-size"})
        kept = [word for index, word in enumerate(words) if index > start and word not in how and words[index - 1] not in how]
        steps[out] = [words[start], *(fingerprint(word) if word.startswith("http") else word for word in kept)]
    return steps


def reads(words: list[str], out: str, others: set[str]) -> bool:
    """Whether a command names one of the other outputs, or a folder that holds it."""
    return any(other == word or other.startswith(f"{word}/") for other in others - {out} for word in words)


def but_classify(words: list[str]) -> list[str]:
    """A command without the model that names the types of errors: other types leave the answers as they are."""
    return [word for index, word in enumerate(words) if "--classify" not in (word, words[index - 1])]


def stale_outputs(plan: dict[str, list[str]], begun: dict[str, list[str]], changed: set[str]) -> list[str]:
    """Outputs to make again, in order: with another command, reading what has changed or is stale, or no longer asked for."""
    stale = []
    for out, words in plan.items():
        if but_classify(begun.get(out, [])) != but_classify(words) or reads(words, out, changed | set(stale)):
            stale.append(out)
    return stale + [out for out in begun if out not in plan]


def rows_files(out: str) -> list[Path]:
    """The files with the rows of a step: of an evaluation, beside its metrics, the predictions and what models were asked about them."""
    path = Path(out)
    names = ("predictions.jsonl", "judged.jsonl", "errors.jsonl") if path.parent.name == "eval" else (path.name,) if path.suffix == ".jsonl" else ()
    return [path.with_name(name) for name in names]


def is_there(out: str) -> bool:
    return any(Path(f"{path}{end}").exists() for path in (out, *rows_files(out)) for end in ("", ".part"))


def remove(out: str, names: list[str] | None = None) -> None:
    """Remove an output with the files of its rows, or only those of them that are named."""
    for path in {Path(out), *(path for path in rows_files(out) if names is None or path.name in names)}:
        for end in ("", ".part", ".part.json", ".part.new"):
            item = Path(f"{path}{end}")
            if item.is_dir():
                shutil.rmtree(item)
            else:
                item.unlink(missing_ok=True)


def provenance() -> dict:
    """Versions, and the commit of the code, dirty if files that git knows differ from it."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)

    def git(*arguments: str) -> str | None:
        with contextlib.suppress(OSError):
            done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent)
            return done.stdout.strip() if done.returncode == 0 else None

    changes = git("status", "--porcelain", "--untracked-files=no")
    return {"versions": versions, "git_commit": git("rev-parse", "HEAD"), "git_dirty": None if changes is None else bool(changes)}


def main() -> None:
    args = parse_args()
    path = args.run / "config.json"
    for name, spec in pairs(args.settings).items():
        if name in ("MODEL", "TEACHER", "ORM", "REFLECTOR", "CLASSIFY") and spec not in ("", "none", "student") and (name, spec) != ("CLASSIFY", "TEACHER"):  # some are used only days later
            check_model(spec, name)
        if name == "MODEL" and is_endpoint(spec):
            fail(f"MODEL: {spec}: an endpoint cannot be fine-tuned; give a model folder or a hub id")
    inputs = {name: found for name in args.inputs if (found := fingerprint(name)) != name}
    now = {"settings": pairs(args.settings), "machine": pairs(args.machine), "inputs": inputs} | provenance()
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else now
    plan, begun = read_steps(sys.stdin), {}
    if (args.run / "commands.tsv").exists():
        with (args.run / "commands.tsv").open(encoding="utf-8") as file:
            begun = {out: words for out, words in read_steps(file).items() if Path(out).is_relative_to(args.run)}  # a copied folder names the other run's files
    changed = [f"{name} was {old!r}, is {value!r}" for name, value in now["settings"].items() if fingerprint(old := before["settings"].get(name, "")) != fingerprint(value)]
    edited = [name for name, value in inputs.items() if before.get("inputs", {}).get(name, value) != value]
    changed += [f"{name} has another content" for name in edited]
    if changed and not args.force:
        fail(f"{path}: {'; '.join(changed)}; set it back, choose another RUN, or start anew what this changes with FORCE=1")
    made_with = [entry["versions"] | {"git commit": entry["git_commit"]} for entry in (before, now)]
    if other := [f"{name} was {old}, is {made_with[1].get(name)}" for name, old in made_with[0].items() if made_with[1].get(name) != old]:
        print(f"note: {path}: {'; '.join(other)}", file=sys.stderr)
    failed = {out for out in plan if any(map(failed_rows, rows_files(out)))} if args.retry_errors else set()
    begun = begun if args.force else plan
    unclassified = {out for out, words in plan.items() if begun.get(out, words) != words and but_classify(begun[out]) == but_classify(words)}
    stale = [out for out in stale_outputs(plan, begun, {*edited, *failed, *unclassified}) if is_there(out)]
    if stale:
        print(f"{'; '.join(changed) or ('rows that failed are tried again' if failed else 'the commands have changed')}; starts anew: {' '.join(stale)}", flush=True)
        for out in reversed(stale):  # a kill in between leaves the first ones, and the settings that they were made with
            remove(out)
    for out in sorted(unclassified - set(stale)):
        print(f"{out}: classifies its errors anew", flush=True)
        remove(out, ["errors.jsonl"])
    for out in sorted(failed - set(stale)):
        print(f"{out}: tries again the rows that failed", flush=True)
        if Path(out) not in rows_files(out):
            Path(out).unlink(missing_ok=True)
        reopen(reversed(rows_files(out)))  # also what is whole: new predictions are to be asked about, and old replies are kept
    if changed or not path.exists():
        write_json(path, now | {"inputs": before.get("inputs", {}) | inputs})


if __name__ == "__main__":
    with disk_errors():
        main()
