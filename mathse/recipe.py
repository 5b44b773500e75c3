"""How an output was made. Beside OUT stands OUT.recipe.json; in an output that is a folder, recipe.json.

A stage called again with the same recipe skips its output, with another one it is refused, and with --force
it makes the output anew. Inputs enter by a fingerprint of their content, so that what changes upstream is
noticed downstream. While an output is made, its recipe stands in OUT.part/.
"""

import ast
import contextlib
import hashlib
import inspect
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import textwrap
import time
from argparse import Namespace
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mathse.jsonl import failed_rows, meet, processes, refuse_held, remove, replace, stage_end, write_json
from mathse.records import fail, is_endpoint

# Flags that do not change the output of any stage.
WITHOUT_EFFECT = {
    "output", "force", "dry_run", "retry_errors", "workers", "concurrency", "timeout",
    "max_requests", "max_cost", "spent", "trust_remote_code",
}  # fmt: skip
NO_CONTENT = {"recipe.json", "train_log.jsonl", "lock", "unused.json"}  # of a model folder: not the model
BLOCKS, BLOCK = 256, 1 << 16  # bytes of a large weights file that are read: so many blocks, evenly spaced
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "lark", "mpmath", "pillow", "numpy")


class Recipe:
    """What decides an output, and what it took to make it.

    `inputs`: flags that name files, folders or models, of which the content counts, not the name.
    `without`: further flags that do not change this stage's output.
    `code`: functions that decide the output. With them count the functions and constants of the stages'
    folder that they name, such as prompts; comments and layout do not.
    `constants`: what else decides it: {name: text}.
    """

    def __init__(
        self,
        output: str | Path,
        script: str,
        args: Namespace,
        inputs: Iterable[str] = (),
        without: Iterable[str] = (),
        constants: dict[str, str] | None = None,
        code: Iterable[Callable] = (),
        is_folder: bool = False,
    ):
        self.output, self.part = Path(output), Path(f"{output}.part")
        self.path = self.output / "recipe.json" if is_folder else Path(f"{output}.recipe.json")
        self.force, self.retry_errors = args.force, getattr(args, "retry_errors", False)
        given = {name: getattr(args, name) for name in inputs if getattr(args, name)}
        for name, value in given.items():
            self.refuse_inside(name, value if isinstance(value, list) else [value])
        decide = vars(args).keys() - WITHOUT_EFFECT - {*inputs} - {*without}
        flags = {name: getattr(args, name) for name in sorted(decide)}
        self.content = {
            "stage": name_of(script),
            "flags": {
                name: str(value) if isinstance(value, Path) else value for name, value in flags.items()
            },
            "inputs": {name: fingerprints(value) for name, value in given.items()},
            "constants": {name: digest(text) for name, text in (constants or {}).items()},
        }
        self.content["constants"] |= code_digests(code)
        self.begun = time.monotonic()

    def refuse_inside(self, name: str, specs: list) -> None:
        """End the command if an input is the output or lies in it: --force would remove it."""
        output = Path(os.path.realpath(self.output))
        for spec in specs:
            place = Path(os.path.realpath(spec))
            if output == place or output in place.parents:
                fail(f"--{name.replace('_', '-')}: {spec}: is the output too; choose another --output")

    def is_done(self) -> bool:
        """Whether the output stands already, made by this recipe.

        Another recipe ends the command, unless --force is given.
        """
        if self.output.exists() and not is_empty_folder(self.output):
            made_by = read_recipe(self.path)
            if made_by is None:
                self.refuse_foreign()
                return False
            if not self.is_same(made_by, self.output):
                return False
            if self.retry_errors and failed_rows(self.output):
                return False
            if processes()[0] == 0:
                print(f"skip {self.output}", flush=True)
                remove(self.part)
            return True
        if begun_by := read_recipe(self.part / "recipe.json"):
            self.is_same(begun_by, self.part)
        return False

    def refuse_foreign(self) -> None:
        """End the command on an output that no stage made; --force replaces a file, or a model folder."""
        model = self.path.parent == self.output and (self.output / "config.json").is_file()
        if self.output.is_dir() and not model:
            fail(f"{self.output}: a folder that no stage made; choose another --output, or remove it")
        if not self.force:
            remedy = "choose another --output, remove it, or let --force replace it"
            fail(f"{self.output}: stands there, but not how it was made ({self.path.name}); {remedy}")

    def is_same(self, other: dict, place: Path) -> bool:
        """Whether another recipe is this one; if not, and without --force, the command ends."""
        changed = self.differences(other)
        if changed and not self.force:
            remedy = "set it back, choose another --output, or make it anew with --force"
            fail(f"{place}: was made with other settings: {'; '.join(changed)}; {remedy}")
        return not changed

    def differences(self, other: dict) -> list[str]:
        """In words what another recipe has otherwise."""
        changed = []
        if self.content["stage"] != other.get("stage"):
            changed.append(f"stage was {other.get('stage')}, is {self.content['stage']}")
        for name, before, now in self.pairs(other, "flags"):
            changed.append(f"{name} was {before!r}, is {now!r}")
        for name, before, now in self.pairs(other, "inputs"):
            changed += input_changes(name, before or [], now or [])
        for name, _, _ in self.pairs(other, "constants"):
            changed.append(f"{name} was edited")
        return changed

    def pairs(self, other: dict, part: str) -> list[tuple[str, object, object]]:
        """(name, before, now) of what differs in a part of the recipes."""
        before, now = other.get(part, {}), self.content[part]
        names = sorted(before.keys() | now.keys())
        return [
            (name, before.get(name), now.get(name)) for name in names if before.get(name) != now.get(name)
        ]

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


def input_changes(name: str, before: list[dict], now: list[dict]) -> list[str]:
    """In words how the files of a flag differ; [] if only their names do."""
    if len(before) != len(now):
        return [f"{name} was {len(before)} files, is {len(now)}"]
    changed = []
    for old, new in zip(before, now):
        if old["content"] != new["content"]:
            other = f"{name} was {old['name']}, is {new['name']}"
            changed.append(
                f"{name} {new['name']} has another content" if old["name"] == new["name"] else other
            )
    return changed


def is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


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


def code_digests(functions: Iterable[Callable]) -> dict[str, str]:
    """{name: digest} of functions and of what they reach by name in their own folder: functions by their
    source without comments, layout and docstring, constants (in capitals) by their value."""
    found, waiting = {}, [*functions]
    while waiting:
        function = waiting.pop()
        if (name := f"{function.__name__}()") in found:
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        if ast.get_docstring(tree.body[0]) is not None:
            tree.body[0].body.pop(0)
        found[name] = digest(ast.dump(tree))
        folder = Path(inspect.getfile(function)).parent
        for named in {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}:
            value = function.__globals__.get(named)
            if inspect.isfunction(value) and Path(inspect.getfile(value)).parent == folder:
                waiting.append(value)
            elif named.isupper() and isinstance(value, str | int | float | tuple | dict | re.Pattern):
                found[named] = digest(json.dumps(value, default=lambda some: getattr(some, "pattern", "")))
    return dict(sorted(found.items()))  # the order of a set differs between processes


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
    names = spec, spec.partition(":")[2], spec.partition(":")[2].rpartition(":")[0]  # hf:FOLDER:SPLIT
    place = next((Path(name) for name in names if name and os.path.exists(name)), None)
    if place and place.is_file():
        return content_of(place)
    if place and place.is_dir():
        files = [path for path in sorted(place.rglob("*")) if path.is_file() and is_content(path, place)]
        return digest(json.dumps([(str(path.relative_to(place)), content_of(path)) for path in files]))
    return spec


def is_content(path: Path, folder: Path) -> bool:
    """Whether a file is part of what a folder holds: not times, nor what a killed training left."""
    inside = path.relative_to(folder).parts[0]
    return path.name not in NO_CONTENT and not (inside.startswith("checkpoint") and inside != path.name)


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
