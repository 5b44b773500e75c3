"""How an output was made. Beside OUT stands OUT.recipe.json; in an output that is a folder, recipe.json.

A stage called again with the same recipe skips its output, with another one it is refused, and with --force
it makes the output anew. Inputs enter by a fingerprint of their content, so that what changes upstream is
noticed downstream. While an output is made, its recipe stands in OUT.part/.
"""

import contextlib
import hashlib
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mathse.jsonl import failed_rows, meet, processes, refuse_held, remove, replace, stage_end, write_json
from mathse.records import fail, is_endpoint

# Flags that do not change the output of any stage.
WITHOUT_EFFECT = {
    "output", "force", "dry_run", "retry_errors", "workers", "concurrency", "timeout",
    "max_requests", "max_cost", "spent", "trust_remote_code",
}  # fmt: skip
NO_CONTENT = {"recipe.json", "train_log.jsonl"}  # files of a model folder that hold times, not the model
BLOCKS, BLOCK = 256, 1 << 16  # bytes of a large weights file that are read: so many blocks, evenly spaced
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "math-verify", "pillow", "numpy")


class Recipe:
    """What decides an output, and what it took to make it.

    `inputs`: flags that name files, folders or models, of which the content counts, not the name.
    `without`: further flags that do not change this stage's output.
    `constants`: what a forker edits in the script, such as its prompts.
    """

    def __init__(
        self,
        output: str | Path,
        script: str,
        args: Namespace,
        inputs: Iterable[str] = (),
        without: Iterable[str] = (),
        constants: dict[str, str] | None = None,
        is_folder: bool = False,
    ):
        self.output, self.part = Path(output), Path(f"{output}.part")
        self.path = self.output / "recipe.json" if is_folder else Path(f"{output}.recipe.json")
        self.force, self.retry_errors = args.force, getattr(args, "retry_errors", False)
        for name in inputs:  # --force would remove it
            specs = getattr(args, name) or []
            for spec in specs if isinstance(specs, list) else [specs]:
                if os.path.realpath(spec) == os.path.realpath(self.output):
                    fail(f"--{name.replace('_', '-')}: {spec}: is the output too; choose another --output")
        flags = {
            name: value
            for name, value in vars(args).items()
            if name not in WITHOUT_EFFECT | {*inputs} | {*without}
        }
        self.content = {
            "stage": name_of(script),
            "flags": {
                name: str(value) if isinstance(value, Path) else value for name, value in flags.items()
            },
            "inputs": {name: fingerprints(getattr(args, name)) for name in inputs if getattr(args, name)},
            "constants": {name: digest(text) for name, text in (constants or {}).items()},
        }
        self.begun = time.monotonic()

    def is_done(self) -> bool:
        """Whether the output stands already, made by this recipe.

        Another recipe without --force ends the command.
        """
        for place, what in ((self.path, self.output), (self.part / "recipe.json", self.part)):
            if not what.exists() or (what.is_dir() and not any(what.iterdir())):
                continue
            other = read_recipe(place)
            if other is None and what is self.output:
                remedy = "choose another --output, remove it, or let --force replace it"
                if not self.force:
                    fail(f"{what}: stands there, but not how it was made ({place.name}); {remedy}")
                return False
            if other is not None and (changed := self.differences(other)):
                if self.force:
                    return False
                remedy = "set it back, choose another --output, or make it anew with --force"
                fail(f"{what}: was made with other settings: {'; '.join(changed)}; {remedy}")
            if what is self.output:
                if self.retry_errors and failed_rows(self.output):
                    return False
                if processes()[0] == 0:
                    print(f"skip {self.output}", flush=True)
                    if self.part != self.output:
                        remove(self.part)
                return True
        return False

    def differences(self, other: dict) -> list[str]:
        """In words what another recipe has otherwise."""
        ours, theirs = self.content, other
        changed = []
        if ours["stage"] != theirs.get("stage"):
            changed.append(f"stage was {theirs.get('stage')}, is {ours['stage']}")
        for name in sorted(ours["flags"].keys() | theirs.get("flags", {}).keys()):
            before, now = theirs.get("flags", {}).get(name), ours["flags"].get(name)
            if before != now:
                changed.append(f"{name} was {before!r}, is {now!r}")
        for name in sorted(ours["inputs"].keys() | theirs.get("inputs", {}).keys()):
            before, now = theirs.get("inputs", {}).get(name, []), ours["inputs"].get(name, [])
            if len(before) != len(now):
                changed.append(f"{name} was {len(before)} files, is {len(now)}")
                continue
            changed += [
                f"{name} {new['name']} has another content" if new["name"] == old["name"]
                else f"{name} was {old['name']}, is {new['name']}"
                for old, new in zip(before, now) if old["content"] != new["content"]
            ]  # fmt: skip
        for name in sorted(ours["constants"].keys() | theirs.get("constants", {}).keys()):
            if theirs.get("constants", {}).get(name) != ours["constants"].get(name):
                changed.append(f"{name} is another text")
        return changed

    # ------------------------------------------------------------ while the output is made

    def start(self, world: int | None = None) -> None:
        """Make OUT.part ready: go on with what is there, or remove what --force replaces. Called by all
        processes.
        """
        meet(world)
        if processes()[0] == 0 or world == 1:
            self.prepare()
        meet(world)
        self.begun = time.monotonic()

    def prepare(self) -> None:
        refuse_held(self.part)
        begun, standing = read_recipe(self.part / "recipe.json"), read_recipe(self.path)
        if begun is None or self.differences(begun):
            remove(self.part)
            begun = None
        retry = self.output.is_file() and standing is not None and not self.differences(standing)
        if self.output.exists() and not retry:
            print(f"{self.output}: is made anew", flush=True)
            remove(self.output, self.path)
        self.part.mkdir(parents=True, exist_ok=True)
        before = begun or (standing if retry else None) or {}
        taken = {name: before.get(name, 0) for name in ("seconds", "requests", "cost")}
        command = shlex.join(["python", *name_of(sys.argv[0]).split(), *sys.argv[1:]])
        print(f"+ {command}", flush=True)
        self.made = {"command": command} | self.content | {"processes": processes()[1]} | provenance() | taken
        write_json(self.part / "recipe.json", self.made)
        if retry:
            print(f"{self.output}: tries again the rows that failed", flush=True)
            self.output.replace(self.part / "earlier.jsonl")

    def spend(self, requests: int = 0, cost: float = 0.0) -> None:
        self.made["seconds"] = round(self.made["seconds"] + time.monotonic() - self.begun, 1)
        self.made["requests"] += requests
        self.made["cost"] = round(self.made["cost"] + cost, 6)
        self.begun = time.monotonic()

    def pause(self, **spent: float) -> None:
        """Note what a call took that ends before the output is complete."""
        self.spend(**spent)
        write_json(self.part / "recipe.json", self.made)

    def complete(self, joined: Path, requests: int = 0, cost: float = 0.0, **results: object) -> None:
        """Put the finished file, or folder, in its place, with its recipe.

        `results`: what was made, for people.
        """
        self.spend(requests, cost)
        self.made |= results
        if joined == self.part:
            write_json(self.part / "recipe.json", self.made)
            os.sync()
            self.part.replace(self.output)
            return
        write_json(self.path, self.made)
        replace(joined, self.output)
        remove(self.part)


def name_of(script: str) -> str:
    """A stage as one calls it: 01_sample.py, or -m mathse.problems."""
    path = Path(script)
    return f"-m mathse.{path.parent.name}" if path.name == "__main__.py" else path.name


def read_recipe(path: Path) -> dict | None:
    """A recipe, or None if there is none or it is torn."""
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else None
    return None


# ---------------------------------------------------------------- content


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def fingerprints(value: object) -> list[dict]:
    """[{"name", "content"}] of what a flag names: one spec or a list of them."""
    specs = value if isinstance(value, list) else [value]
    return [{"name": str(spec), "content": fingerprint(str(spec))} for spec in specs]


def fingerprint(spec: str) -> str:
    """The content behind a spec: of a file, of a folder (also NAME:FOLDER), an endpoint's model name, or
    the text.
    """
    if is_endpoint(spec):
        return "#" + spec.partition("#")[2]  # the same model at another address is the same model
    place = Path(spec) if os.path.exists(spec) else Path(spec.partition(":")[2])
    if place.is_file():
        return content_of(place)
    if str(place) != "." and place.is_dir():
        files = sorted(path for path in place.rglob("*") if path.is_file() and path.name not in NO_CONTENT)
        return digest(json.dumps([(str(path.relative_to(place)), content_of(path)) for path in files]))
    return spec


def content_of(path: Path) -> str:
    """A digest of a file.

    Of large weights, size and evenly spaced blocks: a training changes nearly all of them.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if path.suffix != ".safetensors" or size <= BLOCKS * BLOCK:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
        found = hashlib.sha256(str(size).encode())
        for number in range(BLOCKS):
            file.seek(number * (size - BLOCK) // (BLOCKS - 1))
            found.update(file.read(BLOCK))
    return found.hexdigest()[:16]


def provenance() -> dict:
    """Versions, and the commit of the code: dirty if files that git knows differ from it."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)

    def git(*arguments: str) -> str | None:
        with contextlib.suppress(OSError):
            done = subprocess.run(
                ["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent
            )
            return done.stdout.strip() if done.returncode == 0 else None
        return None

    changes = git("status", "--porcelain", "--untracked-files=no")
    commit = {"git_commit": git("rev-parse", "HEAD"), "git_dirty": None if changes is None else bool(changes)}
    return {"versions": versions} | commit


def write_settings(path: str, script: str) -> None:
    """Write a run's config.json, for people and the report: the variables of the environment that
    `script` sets.
    """
    text = Path(script).read_text(encoding="utf-8")
    names = ["MODEL", *re.findall(r"^([A-Z_]+)=", text, re.MULTILINE)]
    names += sorted({*re.findall(r"[A-Z_]+_FLAGS", text)})
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_json(Path(path), {"settings": {name: os.environ.get(name, "") for name in names}})


if __name__ == "__main__":  # python -m mathse.recipe runs/NAME/config.json run_rounds.sh
    with stage_end():
        write_settings(*sys.argv[1:])
