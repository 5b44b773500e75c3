"""How an output was made. Beside OUT stands OUT.recipe.json; in an output that is a folder, recipe.json.

A stage called again with the same recipe skips its output, with another one it is refused, and with --force
it makes the output anew. Inputs enter by a fingerprint of their content, so that what changes upstream is
noticed downstream. While an output is made, its recipe stands in OUT.part/, and what it replaces stays.
"""

import ast
import contextlib
import difflib
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path

from mathse.jsonl import EARLIER, failed_rows, hold, remove, replace, write_json
from mathse.launch import meet, processes, stage_end
from mathse.records import fail, is_endpoint, read_json

# Flags that do not change the output of any stage.
WITHOUT_EFFECT = {
    "output", "force", "dry_run", "retry_errors", "workers", "concurrency", "timeout", "max_requests",
    "max_cost", "spent", "trust_remote_code", "processes",
}  # fmt: skip
NO_CONTENT = {"recipe.json", "train_log.jsonl", "lock"}  # of a model folder: not the model
BLOCKS, BLOCK = 256, 1 << 16  # bytes of a large weights file that are read: so many blocks, evenly spaced
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "lark", "mpmath", "pillow", "numpy")
COMMON = Path(__file__).parent.parent / "common.py"


class Recipe:
    """What decides an output, and what it took to make it.

    `inputs`: flags that name files, folders or models, of which the content counts, not the name.
    `without`: further flags that do not change this stage's output. `constants`: what else decides it:
    {name: text}. The code of the stage's own file counts, and what it takes from common.py, but for the names
    in `unused`, which this call of the stage does not use.
    """

    def __init__(
        self,
        output: str | Path,
        script: str,
        args: Namespace,
        inputs: Iterable[str] = (),
        without: Iterable[str] = (),
        constants: dict[str, str] | None = None,
        unused: Iterable[str] = (),
        is_folder: bool = False,
    ):
        self.output, self.part = Path(output), Path(f"{output}.part")
        self.path = self.output / "recipe.json" if is_folder else Path(f"{output}.recipe.json")
        self.force, self.retry_errors = args.force, getattr(args, "retry_errors", False)
        given = {name: getattr(args, name) for name in inputs if getattr(args, name)}
        given = {name: value if isinstance(value, list) else [value] for name, value in given.items()}
        given = {name: [*map(str, specs)] for name, specs in given.items()}
        for name, specs in given.items():
            self.refuse_inside(name, specs)
        decide = vars(args).keys() - WITHOUT_EFFECT - {*inputs} - {*without}
        flags = {name: getattr(args, name) for name in sorted(decide)}
        self.content = {
            "stage": name_of(script),
            "flags": {name: str(flag) if isinstance(flag, Path) else flag for name, flag in flags.items()},
            "inputs": {
                name: [{"name": spec, "content": fingerprint(spec)} for spec in specs]
                for name, specs in given.items()
            },
            "constants": {name: digest(text) for name, text in (constants or {}).items()},
        }
        code = f"the code of {name_of(script)} or common.py"
        self.content["constants"][code] = code_digest(Path(script), unused)
        self.begun = time.monotonic()

    def refuse_inside(self, name: str, specs: list) -> None:
        """End the command if an input is the output or lies in it: --force would remove it. So does an output
        in an input's folder: it would change the input.
        """
        output = Path(os.path.realpath(self.output))
        for spec in specs:
            place = Path(os.path.realpath(place_of(str(spec)) or spec))
            if output == place or output in place.parents:
                fail(f"--{name.replace('_', '-')}: {spec}: is the output too; choose another --output")
            if place in output.parents:
                fail(f"--output: {self.output}: lies in {spec}, which is an input; choose another folder")

    def is_done(self) -> bool:
        """Whether the output stands already, made by this recipe; then a line says so."""
        if not self.stands():
            return False
        if processes()[0] == 0:
            print(f"skip {self.output}", flush=True)
            is_retry = (self.part / EARLIER).exists() and failed_rows(self.output)
            if self.part.is_dir() and not is_retry:  # begun with another recipe, and given up
                with hold(self.part):
                    remove(self.part)
        return True

    def stands(self) -> bool:
        """is_done() without a word. An output of another recipe ends the command, unless --force is given, or
        was when OUT.part was begun.
        """
        begun, made = read_json(self.part / "recipe.json"), read_json(self.path)
        goes_on = not self.differences(begun)
        is_folder = self.path.parent == self.output and self.output.is_dir()
        if self.output.exists() and not (is_folder and not any(self.output.iterdir())):
            if not self.differences(made):
                if goes_on and not (self.part / EARLIER).exists():  # killed while its part was removed
                    return False
                return not (self.retry_errors and failed_rows(self.output))
            if not goes_on and made:
                self.refuse(self.output, made)
            elif not goes_on:
                self.refuse_foreign()
        elif begun and not goes_on:
            self.refuse(self.part, begun)
        return False

    def refuse(self, place: Path, other: dict) -> None:
        """End the command because of another recipe, unless --force is given."""
        if not self.force:
            remedy = "set it back, choose another --output, or make it anew with --force"
            fail(f"{place}: was made with other settings: {'; '.join(self.differences(other))}; {remedy}")

    def refuse_foreign(self) -> None:
        """End the command on an output that no stage made; --force replaces a file, or a model folder."""
        model = self.path.parent == self.output and (self.output / "config.json").is_file()
        if self.output.is_dir() and not model:
            fail(f"{self.output}: a folder that no stage made; choose another --output, or remove it")
        if not self.force:
            remedy = "choose another --output, remove it, or let --force replace it"
            fail(f"{self.output}: stands there, but not how it was made ({self.path.name}); {remedy}")

    def differences(self, other: dict) -> list[str]:
        """In words what another recipe has otherwise."""
        changed = []
        for part, said in (("flags", "{} was {!r}, is {!r}"), ("constants", "{} was edited")):
            before, now = other.get(part, {}), self.content[part]
            names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
            changed += [said.format(name, before.get(name), now.get(name)) for name in names]
        before, now = other.get("inputs", {}), self.content["inputs"]
        for name in sorted(before.keys() | now.keys()):
            changed += input_changes(name, before.get(name, []), now.get(name, []))
        stages = other.get("stage"), self.content["stage"]
        return changed if stages[0] == stages[1] else ["stage was {}, is {}".format(*stages), *changed]

    # ------------------------------------------------------------ while the output is made

    def start(self) -> None:
        """Make OUT.part ready: go on with what is there, or begin. Called by all ranks of a launcher."""
        meet()
        if processes()[0] == 0:
            self.prepare()
        meet()
        self.begun = time.monotonic()

    def prepare(self) -> None:
        self.part.mkdir(parents=True, exist_ok=True)
        self.lock = hold(self.part)
        begun, standing = read_json(self.part / "recipe.json"), read_json(self.path)
        retry = self.output.is_file() and not self.differences(standing)
        if self.differences(begun):
            remove(*(path for path in self.part.iterdir() if path.name != "lock"))
            begun = {}
            if retry:  # the recipe, which is written last, says that it is there
                shutil.copyfile(self.output, self.part / "copied")
                replace(self.part / "copied", self.part / EARLIER)
        before = begun or (standing if retry else {})
        command = shlex.join(["python", *name_of(sys.argv[0]).split(), *sys.argv[1:]])
        why = "  # again, for rows that failed" if retry else "  # anew" if self.output.exists() else ""
        print(f"+ {command}{why}", flush=True)
        self.made = {"command": command} | self.content | {"folder": os.path.realpath(self.output.parent)}
        self.made |= provenance() | {"seconds": before.get("seconds", 0)}
        write_json(self.part / "recipe.json", self.made)

    def pause(self) -> None:
        """Note what a call took that ends before the output is complete."""
        self.made["seconds"] = round(self.made["seconds"] + time.monotonic() - self.begun, 1)
        write_json(self.part / "recipe.json", self.made)

    def complete(self, joined: Path, **results: object) -> None:
        """Put the finished file, or folder, in its place, with its recipe. `results`: what was made."""
        self.made |= results
        self.pause()
        if joined != self.part:
            replace(joined, self.output)  # a kill now leaves OUT.part, from which it is joined again
            write_json(self.path, self.made)
            remove(self.part / "recipe.json", self.part)  # without it what is left of a kill is nothing begun
            return
        os.sync()
        replaced = Path(f"{self.output}.replaced")
        remove(replaced)
        if self.output.exists():
            self.output.rename(replaced)
        self.part.rename(self.output)
        remove(replaced)


def input_changes(name: str, before: list[dict], now: list[dict]) -> list[str]:
    """In words how the files of a flag differ; [] if only their names do, or if one is still to be made."""
    if len(before) != len(now):
        return [f"{name} was {len(before)} files, is {len(now)}"]
    changed = []
    for old, new in zip(before, now):
        if new["content"] is not None and old["content"] != new["content"]:
            same = old["name"] == new["name"]
            other = f"{name} was {old['name']}, is {new['name']}"
            changed.append(f"{name} {new['name']} has another content" if same else other)
    return changed


def name_of(script: str) -> str:
    """A stage as one calls it: 01_sample.py, or -m mathse.problems."""
    path = Path(script)
    return f"-m mathse.{path.parent.name}" if path.name == "__main__.py" else path.name


# ---------------------------------------------------------------- content


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def code_digest(script: Path, unused: Iterable[str] = ()) -> str:
    """A digest of a stage's file and of what it takes from common.py, by whatever way, without the names in
    `unused`: comments, layout and docstrings aside.
    """
    stage, common = ast.parse(script.read_text("utf-8")), ast.parse(COMMON.read_text("utf-8"))
    stage.body = [node for node in stage.body if not {*names_defined(node)} & {*unused}]
    defined = {name: node for node in common.body for name in names_defined(node)}
    parts, waiting = {"": stage}, [stage]
    while waiting:
        names = {*re.findall(r"'(\w+)'", ast.dump(waiting.pop()))}  # common.X, too
        new = (names & defined.keys()) - parts.keys() - {*unused}
        parts |= {name: defined[name] for name in new}
        waiting += [defined[name] for name in new]
    return digest("\n".join(plain_code(parts[name]) for name in sorted(parts)))


def names_defined(node: ast.stmt) -> list[str]:
    """The names of a module's function, class or constants."""
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    return [target.id for target in targets if isinstance(target, ast.Name)] or [getattr(node, "name", "")]


def plain_code(tree: ast.AST) -> str:
    """Code as text, without comments, layout and docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            node.body = node.body[1:]
    return ast.dump(tree)


def place_of(spec: str) -> Path | None:
    """The file or folder that a spec names, also as NAME:FOLDER or hf:FOLDER:SPLIT."""
    names = spec, spec.partition(":")[2], spec.partition(":")[2].rpartition(":")[0]
    return next((Path(name) for name in names if name and os.path.exists(name)), None)


def fingerprint(spec: str) -> str | None:
    """The content behind a spec: of a file or folder, an endpoint's model name, or the text. None for a file
    of a run that an earlier stage has yet to make.
    """
    if is_endpoint(spec):
        return "#" + spec.partition("#")[2]  # the same model at another address is the same model
    place = place_of(spec)
    if place and place.is_file():
        return content_of(place)
    if place and place.is_dir():
        files = [path for path in sorted(place.rglob("*")) if path.is_file() and is_content(path, place)]
        return digest(json.dumps([(str(path.relative_to(place)), content_of(path)) for path in files]))
    return None if spec.count("/") > 1 and ":" not in spec else spec


def is_content(path: Path, folder: Path) -> bool:
    """Whether a file is part of what a folder holds: not times, nor what a killed training left."""
    inside = path.relative_to(folder).parts[0]
    return path.name not in NO_CONTENT and not (inside.startswith("checkpoint") and inside != path.name)


def content_of(path: Path) -> str:
    """A digest of a file. Of large weights, size and evenly spaced blocks: a training changes nearly all."""
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
    """Versions, and the commit of the code: "-dirty" stands behind it if files that git knows differ."""
    from importlib.metadata import PackageNotFoundError, version

    versions, commit = {"python": platform.python_version()}, None
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    describe = "describe --always --dirty --abbrev=40 --exclude=*".split()
    command = ["git", "-C", str(COMMON.parent), *describe]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        commit = subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).strip()
    return {"versions": versions, "git_commit": commit}


def write_settings(path: str, script: str) -> None:
    """Write a run's config.json, for people and the report: the variables of the environment that `script`
    sets. A line says which others look like one of them. An empty path: nothing but that.
    """
    names = re.findall(r"\$\{([A-Z_]+)[:}]", Path(script).read_text(encoding="utf-8"))
    for name in sorted(os.environ.keys() - {*names}):
        for meant in difflib.get_close_matches(name, names, 1, 0.88):
            print(f"{name}: no setting of {script}; did you mean {meant}?", file=sys.stderr)
    if not path:
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_json(Path(path), {"settings": {name: os.environ.get(name, "") for name in dict.fromkeys(names)}})


if __name__ == "__main__":  # python -m mathse.recipe runs/NAME/config.json run_rounds.sh
    with stage_end():
        write_settings(*sys.argv[1:])
