"""The house: imports run one way, and a stage imports no other stage."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

from conftest import ROOT

# Rooms of the package; a module imports from its own room or from one further up.
ROOMS = (
    "images answers records launch jsonl recipe chat replies attention cli generate stage train problems "
    "report"
).split()


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


def test_imports_run_one_way():
    """Over others, no module imports itself: TopologicalSorter raises."""
    paths = sorted((ROOT / "mathse").rglob("*.py"))
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths
    ]
    modules = {name: imported(path) for name, path in zip(names, paths)}
    assert {name.split(".")[1] for name in modules if name != "mathse"} == {*ROOMS}
    for name, others in modules.items():
        assert "common" not in others, name
        later = {other for other in others if room(other) > room(name)}
        assert not later, f"{name} imports from a later room: {later}"
    graph = {name: others & modules.keys() - {name} for name, others in modules.items()}
    TopologicalSorter(graph).prepare()


def test_stages_do_not_import_each_other():
    for path in [*ROOT.glob("0?_*.py"), ROOT / "common.py"]:
        assert not {name for name in imported(path) if name[:1].isdigit()}, path
