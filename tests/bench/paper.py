"""The runs of paper.sh -> docs/PAPER.md: the paper's tables, with the paper's figures beside.

python tests/bench/paper.py --output docs/PAPER.md runs/paper-0 runs/paper-1
"""

import argparse
import json
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT)]

from mathse.answers import check_answer
from mathse.records import row_key, written_rows
from mathse.report.metrics import label
from mathse.report.statistics import CHANGES, bootstrap, right_rate

TEST = "toy_test"
STAGES = ["base", "round_0", "round_1", "round_2", "round_3", "final"]
PAPER_STAGES = {  # Table 1, MathVL-test: CogVLM2, Qwen2-VL-7B, InternVL2.5-8B
    "base": (30.85, 40.60, 33.20),
    "round_0": (55.35, 48.80, 58.45),
    "round_3": (62.35, 55.15, 64.45),
    "final": (64.70, 57.00, 65.13),
}
PAPER_ROWS = {"round_0": "100k", "round_2": "170k", "round_3": "240k", "final": "280k"}
ORMS = {  # Table 5: 97.10 and 92.65 % overall on ORM-2K
    "orm_once": ("step and analysis", "94.2 / 100 / 97.10"),
    "orm_binary": ("the status alone (`--binary`)", "85.4 / 99.9 / 92.65"),
    "orm_pairs": ("step and analysis, `PAIRS=1`", ""),
    "orm_refreshed": ("the same, after the last round (`ORM_UPDATE=every`)", ""),
}
TYPES = ("reasoning", "understanding", "knowledge", "calculation", "vision")
PAPER_TEXT = """# The paper's tables in the toy world

Made by `bash tests/bench/paper.sh {seeds}` from its run folders; nothing here is written by hand. Seeds:
{count}; 300 test problems, greedy, one answer a problem, per cent. Brackets are 95 % intervals of
differences: paired, by a bootstrap over problems, of each the mean over seeds. The paper's figures stand
beside: they are of other models and other problems, so that only the direction of a difference can be
compared.
"""


# ---------------------------------------------------------------- reading


def checks(folder: Path) -> dict[str, float]:
    """{id of a test problem: 1 if its answer is right, else 0}"""
    rows = written_rows(folder / "eval" / "predictions.jsonl")
    return {row["id"]: float(row["answer_check"] == "correct") for row in rows}


def accuracy(folders: list[Path]) -> list[float]:
    return [100 * statistics.mean(checks(folder).values()) for folder in folders]


def change(before: list[Path], after: list[Path]) -> str:
    """The mean difference of two arms over seeds and problems, with its interval."""
    problems: dict[str, list[float]] = {}
    for one, other in zip(before, after):
        first, second = checks(one), checks(other)
        for name in first:
            problems.setdefault(name, []).append(second[name] - first[name])
    return interval([statistics.mean(values) for values in problems.values()])


def interval(differences: list[float]) -> str:
    low, high = bootstrap(differences, 0)
    return f"{100 * statistics.mean(differences):+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def table(heads: list[str], rows: Iterable[list[object]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def each(values: list[float]) -> str:
    return f"**{statistics.mean(values):.1f}** ({', '.join(f'{value:.1f}' for value in values)})"


def effect(difference: str, expected: int = 1) -> str:
    """What a difference with its interval comes to, in words. `expected`: its sign in the paper."""
    bounds = difference.partition("[")[2].rstrip("]").split(",")
    low, high = sorted(expected * float(bound) for bound in bounds)
    return "shows" if low > 0 else "is reversed" if high < 0 else "does not show"


# ---------------------------------------------------------------- the tables


def stages_table(runs: list[Path]) -> str:
    rows, before = [], None
    for stage in STAGES:
        folders = [run / stage for run in runs]
        trained = [sum(1 for _ in written_rows(folder / "train.jsonl")) for folder in folders]
        step = change(before, folders) if before else ""
        paper = " / ".join(f"{value:.2f}" for value in PAPER_STAGES.get(stage, ()))
        size = f"{statistics.mean(trained):,.0f}" if any(trained) else ""
        rows.append([label(stage), each(accuracy(folders)), step, size, paper, PAPER_ROWS.get(stage, "")])
        before = folders
    heads = [
        "stage",
        "right (each seed)",
        "change",
        "rows",
        "paper: CogVLM2 / Qwen2-VL / InternVL2.5",
        "rows",
    ]
    evolved = change([run / "round_0" for run in runs], [run / "round_3" for run in runs])
    said = f"Self-evolving rounds, {evolved} over the distilled model: the paper's effect {effect(evolved)}."
    return "## Stages (Table 1), data sizes\n\n" + table(heads, rows) + f"\n{said}\n"


def reflection_table(runs: list[Path]) -> str:
    none = [run / "round_3" for run in runs]
    arms = {
        "no reflection": (none, "62.35"),
        "ORM's feedback, accepted by the answer": ([run / "final" for run in runs], ""),
        "ORM's feedback, accepted by answer and ORM": ([run / "arms/both" for run in runs], "64.70"),
    }
    rows = [
        [name, each(accuracy(folders)), change(none, folders) if folders != none else "", paper]
        for name, (folders, paper) in arms.items()
    ]
    rows.append(["teacher's own feedback", "not measured", "", "64.25"])
    gated = change([run / "final" for run in runs], [run / "arms/both" for run in runs])
    heads = ["reflection", "right (each seed)", "change from none", "paper, CogVLM2"]
    text = f"""
The toy teacher answers a request to reflect with its worked solution and reads neither draft nor diagnosis,
so that feedback of another origin would give the same texts: that effect cannot show here. Reflections that
the ORM must accept too, against all with a right answer: {gated}.
"""
    return "## Reflection (Table 3)\n\n" + table(heads, rows) + text


def teacher_table(runs: list[Path]) -> str:
    evolved, taught = [run / "round_3" for run in runs], [run / "arms/teacher" for run in runs]
    difference = change(taught, evolved)
    sizes = [sum(1 for _ in written_rows(folder / "train.jsonl")) for folder in (*taught, *evolved)]
    rows = [
        ["all from the teacher", each(accuracy(taught)), "", "58.00"],
        ["self-evolving", each(accuracy(evolved)), difference, "62.35"],
    ]
    heads = ["rows", "right (each seed)", "change", "paper, CogVLM2, 240k"]
    text = f"The paper's effect {effect(difference)}. Rows: {', '.join(map(str, sizes))}."
    return "## The same number of rows (Table 4)\n\n" + table(heads, rows) + f"\n{text}\n"


def truths(run: Path) -> dict[str, str]:
    """{key of a test path: correct or wrong, by answer and steps}: right with a wrong step is luck"""
    found = {}
    for row in written_rows(run / "arms/truth.jsonl"):
        truth = row["teacher_check"] if row["answer_check"] == "correct" else row["answer_check"]
        if truth in ("correct", "wrong"):
            found[row_key(row)] = truth
    return found


def verdicts(runs: list[Path], name: str) -> Iterator[tuple[str, str, str, bool]]:
    """(problem, what the path is by answer and steps, by the answer, whether the ORM says the former)"""
    for run in runs:
        known = truths(run)
        for row in written_rows(run / "arms" / f"{name}.jsonl"):
            if truth := known.get(row_key(row)):
                yield row["id"], truth, row["answer_check"], row["orm_check"] == truth


def balanced(rows: Iterable[tuple[str, bool]]) -> tuple[float, float, float]:
    """Shares that the ORM gets right of right and of wrong paths, and their mean, per cent."""
    right = {"correct": [], "wrong": []}
    for truth, is_right in rows:
        right[truth].append(is_right)
    accepts, rejects = (100 * statistics.mean(right[name]) for name in ("correct", "wrong"))
    return accepts, rejects, (accepts + rejects) / 2


def orm_table(runs: list[Path]) -> str:
    rows, first, steps = [], None, {}
    for name, (text, paper) in ORMS.items():
        found = list(verdicts(runs, name))
        shares = balanced((truth, is_right) for _, truth, _, is_right in found)
        # each problem's part in the mean of both shares
        counts = Counter(truth for _, truth, _, _ in found)
        parts: dict[str, float] = {}
        for problem, truth, _, is_right in found:
            parts[problem] = parts.get(problem, 0) + is_right * len(found) / counts[truth] / 2
        scale = len(parts) / len(found)
        weights = {problem: part * scale for problem, part in parts.items()}
        step = interval([weights[problem] - first[problem] for problem in weights]) if first else ""
        first = first or weights
        cells = " / ".join(f"{share:.1f}" for share in shares)
        rows.append([text, cells, step, f"{len(found):,}", paper])
        steps[name] = step
    shown = effect(steps["orm_binary"], expected=-1)
    said = f"Step and analysis against the status alone: the paper's effect {shown}."
    heads = ["ORM", "accepts / rejects / mean", "change from the first", "paths", "paper: ORM-2K"]
    note = "Two paths of M0 a test problem; a right answer with a step that the teacher calls wrong is wrong."
    return f"## The ORM (Table 5)\n\n{note}\n\n{table(heads, rows)}\n{said}\n"


def audit_table(runs: list[Path]) -> str:
    rows = []
    for stage in STAGES[2:]:
        pairs = Counter()
        for run in runs:
            metrics = json.loads((run / "metrics.json").read_text())
            found = next(each for each in metrics["stages"] if each["stage"] == stage)
            pairs.update(found["audit"].get("answer/orm", {}))
        rates = [right_rate(pairs, check) for check in ("correct", "wrong")]
        cells = [f"{100 * rate['accuracy']:.1f} of {rate['n']:,}" if rate else "–" for rate in rates]
        rows.append([label(stage), *cells])
    heads = ["stage", "accepts right answers", "rejects wrong answers"]
    note = (
        "All paths of the runs, by their answers. The ORM of a round has learnt from earlier rounds' paths."
    )
    return "## How the ORM keeps pace\n\n" + note + "\n\n" + table(heads, rows)


def transitions_table(runs: list[Path]) -> str:
    rows = []
    for stage in STAGES[1:]:
        counts = Counter()
        for run in runs:
            metrics = json.loads((run / "metrics.json").read_text())
            found = next(each for each in metrics["stages"] if each["stage"] == stage)
            counts.update(found["changes"][TEST]["changes"])
        rows.append([label(stage), *(counts[name] for name in CHANGES)])
    text = "## Transitions (Figure 2)\n\nTest problems of all seeds, from the stage before.\n\n"
    return text + table(["to", *CHANGES], rows)


def errors_table(runs: list[Path]) -> str:
    rows = []
    for stage in STAGES[1:]:
        files = [run / stage / "eval/errors.jsonl" for run in runs]
        wrong = (row for path in files for row in written_rows(path) if row["answer_check"] == "wrong")
        counts = Counter(row["error_type"] for row in wrong)
        rows.append([label(stage), *(counts[kind] for kind in TYPES), counts[None]])
    text = "## Error types (Figure 4)\n\nWrong answers of all seeds, by the teacher.\n\n"
    return text + table(["stage", *TYPES, "unclassified"], rows)


def hidden_table(runs: list[Path]) -> str:
    hidden, rows = [run.parent / f"{run.name}-hidden" for run in runs], []
    for stage in STAGES[1:5]:
        with_answers, without = ([run / stage for run in arm] for arm in (runs, hidden))
        difference = change(with_answers, without)
        rows.append([label(stage), each(accuracy(with_answers)), each(accuracy(without)), difference])
    right, accepted = 0, 0
    for run, arm in zip(runs, hidden):
        truth = {row["id"]: row["answer"] for row in written_rows(run / "problems.jsonl")}
        for stage in STAGES[2:5]:
            for row in written_rows(arm / stage / "verified.jsonl"):
                if row["status"] == "correct":
                    known = row | {"answer": truth[row["id"]]}
                    right += check_answer(row["response"], known)["answer_check"] == "correct"
                    accepted += 1
    share = f"{right / max(1, accepted):.1%} of {accepted:,}"
    text = f"""## Without reference answers

In the rounds no answer is known: `ACCEPT=orm VERIFY_FLAGS="--agree 0.5"` accepts a path if the ORM does and
at least half of the problem's paths give its answer. M0 and the ORM are the run's first ones, made with
answers: the ORM learnt from paths of these problems. In the right answer end {share} accepted paths.

"""
    return text + table(["stage", "with answers", "without", "change"], rows)


TABLES = {  # and the last file that each reads; a run without it is left out
    stages_table: "",
    reflection_table: "/arms/both/eval/predictions.jsonl",
    teacher_table: "/arms/teacher/eval/predictions.jsonl",
    orm_table: "/arms/orm_refreshed.jsonl",
    audit_table: "",
    transitions_table: "",
    errors_table: "",
    hidden_table: "-hidden/round_3/eval/predictions.jsonl",
}


# ---------------------------------------------------------------- for paper.sh


def passes(run: Path) -> float:
    """Epochs over the rows of the last round that are as many passes as all its trainings took together."""
    taken = 0.0
    for stage in STAGES[1:5]:
        flags = json.loads((run / stage / "model/recipe.json").read_text())["flags"]
        taken += flags["epochs"] * sum(1 for _ in written_rows(run / stage / "train.jsonl"))
    return round(taken / sum(1 for _ in written_rows(run / "round_3/train.jsonl")), 2)


def hide(run: Path) -> None:
    """hidden.jsonl: the run's problems, with the reference answers of D0 alone."""
    known = {row["id"] for row in written_rows(run / "round_0/samples.jsonl")}
    with (run / "hidden.jsonl").open("w") as file:
        for row in written_rows(run / "problems.jsonl"):
            file.write(json.dumps(row if row["id"] in known else row | {"answer": None}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--output", type=Path, help="the page to write")
    parser.add_argument("--passes", type=Path, metavar="RUN", help="print the epochs of the teacher's arm")
    parser.add_argument("--hide", type=Path, metavar="RUN", help="write the problems without answers")
    args = parser.parse_args()
    if args.passes:
        print(passes(args.passes))
    if args.hide:
        hide(args.hide)
    if not args.output:
        return
    seeds = " ".join(run.name.rpartition("-")[2] for run in args.runs)
    parts = [PAPER_TEXT.format(seeds=seeds, count=len(args.runs))]
    for make, last in TABLES.items():
        complete = [run for run in args.runs if Path(f"{run}{last}").exists()]
        parts += [make(complete)] if complete else []
        if 0 < len(complete) < len(args.runs):
            parts[-1] += f"\nOf {', '.join(run.name for run in complete)} alone.\n"
    args.output.write_text("\n".join(parts), encoding="utf-8")
    print(f"{args.output}: {len(args.runs)} seeds")


if __name__ == "__main__":
    main()
