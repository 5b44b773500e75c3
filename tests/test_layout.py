"""The house: imports run one way, and a stage imports no other stage."""

import ast
from pathlib import Path

import pytest
from conftest import ROOT

# Rooms of the package; a module imports from its own room or from one further up.
ROOMS = (
    "images answers records launch jsonl recipe chat replies attention cli generate stage train problems "
    "report"
).split()
STAGES = sorted(ROOT.glob("0?_*.py"))
MODULES = sorted((ROOT / "mathse").rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The modules of this project that a file imports, wherever the statement stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] in ("mathse", "common") or name[:1].isdigit()}


def room(name: str) -> int:
    """The place in ROOMS of a module's name; the package itself is further up than all."""
    parts = name.split(".")
    return ROOMS.index(parts[1]) if len(parts) > 1 and parts[0] == "mathse" else -1


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_every_module_has_a_room():
    assert {name_of(path).split(".")[1] for path in MODULES if name_of(path) != "mathse"} == {*ROOMS}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_run_one_way(path):
    assert "common" not in imported(path)
    later = {name for name in imported(path) if room(name) > room(name_of(path))}
    assert not later, f"{name_of(path)} imports from a later room: {later}"


def test_no_circle():
    """Also within a room no module imports, over others, itself."""
    names = {name_of(path) for path in MODULES}
    edges = {name_of(path): imported(path) & names - {name_of(path)} for path in MODULES}
    while leaves := {name for name, others in edges.items() if not others & edges.keys()}:
        edges = {name: others for name, others in edges.items() if name not in leaves}
    assert not edges


@pytest.mark.parametrize("path", [*STAGES, ROOT / "common.py"], ids=lambda path: path.name)
def test_stages_do_not_import_each_other(path):
    assert not {name for name in imported(path) if name[:1].isdigit()}
    assert path.name != "common.py" or "common" not in imported(path)
