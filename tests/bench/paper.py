"""The runs of paper.sh -> docs/PAPER.md: the paper's tables, with the paper's figures beside. paper.sh calls:

python tests/bench/paper.py page docs/PAPER.md runs/paper-0 runs/paper-1
python tests/bench/paper.py passes runs/paper-0    # prints the epochs of the teacher's arm
python tests/bench/paper.py hide runs/paper-0      # writes hidden.jsonl, problems without answers
"""

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import mean

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from mathse.answers import check_answer
from mathse.records import ERROR_TYPES, row_key, written_rows
from mathse.report.metrics import label
from mathse.report.statistics import CHANGES, bootstrap

ROUNDS = ["round_1", "round_2"]
STAGES = ["base", "round_0", *ROUNDS, "final"]
# Table 1, MathVL-test: CogVLM2, Qwen2-VL-7B, InternVL2.5-8B; and rows
PAPER = {"base": "30.85 / 40.60 / 33.20", "round_0": "55.35 / 48.80 / 58.45 (100k)", "round_1": "(170k)"}
PAPER |= {"round_2": "62.35 / 55.15 / 64.45 (240k)", "final": "64.70 / 57.00 / 65.13 (280k)"}
# Table 5, ORM-2K: file of verdicts, what the ORM learnt, accepts / rejects / overall
ORMS = [("-plain/pace/round_1", "step and analysis", "94.2 / 100 / 97.10")]
ORMS += [("/arms/orm_binary", "the status alone (`--binary`)", "85.4 / 99.9 / 92.65")]
ORMS += [("/pace/round_1", "step and analysis, `PAIRS=1`", "")]
ARMS = {"-plain": "once", "": "once, `PAIRS=1`"}
ARMS |= {"-every": "every round", "-every-pairs": "every round, `PAIRS=1`"}


def rows_of(*paths: str) -> list[dict]:
    return [row for path in paths for row in written_rows(Path(path))]


def having(runs: list[str], *files: str) -> list[str]:
    """The runs that have these files: an arm may have been run with the first seeds alone."""
    return [run for run in runs if all(Path(f"{run}{file}.jsonl").is_file() for file in files)]


def scores(runs: list[str], stage: str) -> dict[str, list[int]]:
    """{id of a test problem: of each seed 1 if its answer is right, else 0}; a stage is as "/round_1"."""
    found = defaultdict(list)
    for row in rows_of(*(f"{run}{stage}/eval/predictions.jsonl" for run in runs)):
        found[row["id"]].append(int(row["answer_check"] == "correct"))
    return found


def accuracy(runs: list[str], stage: str) -> str:
    seeds = [100 * mean(seed) for seed in zip(*scores(runs, stage).values())]
    return f"**{mean(seeds):.1f}** ({', '.join(f'{value:.1f}' for value in seeds)})"


def change(runs: list[str], before: str, after: str) -> str:
    """The mean difference of two stages over problems and the seeds that have both, with its interval."""
    runs = having(runs, f"{before}/eval/predictions", f"{after}/eval/predictions")
    early, late = scores(runs, before), scores(runs, after)
    return interval([mean(late[name]) - mean(early[name]) for name in early])


def interval(differences: list[float]) -> str:
    low, high = bootstrap(differences, 0)
    return f"{100 * mean(differences):+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def effect(difference: str, sign: int = 1) -> str:
    """What a difference with its interval says of the paper's effect, which has this sign."""
    low, high = sorted(sign * float(bound) for bound in difference.partition("[")[2].strip("]").split(","))
    return "shows" if low > 0 else "is reversed" if high < 0 else "does not show"


def verdicts(runs: list[str], file: str, by_steps: bool = False) -> list[tuple[str, str, bool]]:
    """(problem, correct or wrong, whether the ORM says so) of paths; `by_steps`: a wrong step counts, too."""
    found = []
    for run in runs:
        told = rows_of(f"{run}/arms/truth.jsonl") if by_steps else []
        lucky = {row_key(row) for row in told if row["teacher_check"] == "wrong"}
        for row in rows_of(f"{run}{file}.jsonl"):
            truth = "wrong" if row_key(row) in lucky else row["answer_check"]
            if truth in ("correct", "wrong"):
                found.append((row["id"], truth, row["orm_check"] == truth))
    return found


def balanced(found: list[tuple[str, str, bool]]) -> tuple[str, dict[str, float]]:
    """("accepts / rejects / their mean" in per cent, {problem: its part in the mean})"""
    counts, parts = Counter(truth for _, truth, _ in found), Counter()
    for problem, truth, is_right in found:
        parts[problem] += is_right / counts[truth] / 2
    right = Counter(truth for _, truth, is_right in found if is_right)
    accepts, rejects = (100 * right[truth] / max(1, counts[truth]) for truth in ("correct", "wrong"))
    cells = f"{accepts:.1f} / {rejects:.1f} / {(accepts + rejects) / 2:.1f}"
    return cells, {problem: part * len(parts) for problem, part in parts.items()}


def table(heads: str, rows: Iterable[Iterable[object]]) -> str:
    columns = heads.split(" | ")
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def arms_table(runs: list[str], heads: str, *arms: tuple[str, str, str, str]) -> str:
    """Of (text, stage, the stage that its change is from, the paper's figure)."""
    rows = []
    for text, stage, before, paper in arms:
        step = change(runs, before, stage) if before else ""
        trained = [rows_of(f"{run}{stage}/train.jsonl") for run in having(runs, f"{stage}/train")]
        size = mean(map(len, trained)) if trained else 0
        rows.append([text, accuracy(runs, stage), step, f"{size:,.0f}", paper])
    return table(heads.replace("|", "| right (each seed) | change | rows |", 1), rows)


def transitions_table(runs: list[str]) -> str:
    rows = []
    for before, stage in zip(STAGES, STAGES[1:]):
        early, late = scores(runs, f"/{before}"), scores(runs, f"/{stage}")
        pairs = Counter(pair for name in early for pair in zip(early[name], late[name]))
        rows.append([label(stage), *(pairs[pair] for pair in ((1, 1), (0, 0), (1, 0), (0, 1)))])
    return table(" | ".join(["to", *CHANGES]), rows)


def errors_table(runs: list[str]) -> str:
    rows = []
    for stage in STAGES[1:]:
        told = rows_of(*(f"{run}/{stage}/eval/errors.jsonl" for run in runs))
        counts = Counter(row["error_type"] for row in told if row["answer_check"] == "wrong")
        rows.append([label(stage), *(counts[kind] for kind in (*ERROR_TYPES, None))])
    return table(" | ".join(["stage", *ERROR_TYPES, "unclassified"]), rows)


def orm_rows(runs: list[str]) -> Iterable[list[object]]:
    first = None
    for file, text, paper in ORMS:
        found = verdicts(having(runs, file, "/arms/truth"), file, by_steps=True)
        cells, parts = balanced(found)
        step = interval([parts[problem] - first[problem] for problem in parts]) if first else ""
        first = first or parts
        yield [text, cells, step, f"{len(found):,}", paper]


def pace_table(runs: list[str]) -> str:
    files = {text: [f"{end}/pace/{stage}" for stage in ROUNDS] for end, text in ARMS.items()}
    rows = ([text, *(balanced(verdicts(runs, file))[0] for file in each)] for text, each in files.items())
    return table(" | ".join(["ORM", *map(label, ROUNDS)]), rows)


def students_table(runs: list[str]) -> str:
    stages = STAGES[2:]
    rows = [[text, *(accuracy(runs, f"{end}/{stage}") for stage in stages)] for end, text in ARMS.items()]
    changes = [[change(runs, f"-plain/{stage}", f"{end}/{stage}") for stage in stages] for end in ARMS]
    rows += [[f"{row[0]}: change", *steps] for row, steps in list(zip(rows, changes))[1:]]
    return table(" | ".join(["ORM", *map(label, stages)]), rows)


def hidden_share(runs: list[str]) -> str:
    """Of what the rounds without reference answers accepted, how much is right."""
    right = []
    for run in runs:
        answers = {row["id"]: row["answer"] for row in rows_of(f"{run}/problems.jsonl")}
        for row in rows_of(*(f"{run}-hidden/{stage}/verified.jsonl" for stage in ROUNDS)):
            if row["status"] == "correct":
                check = check_answer(row["response"], row | {"answer": answers[row["id"]]})
                right.append(check["answer_check"] == "correct")
    return f"{mean(right or [0]):.1%} of {len(right):,}"


def page(output: str, *runs: str) -> None:
    """Fill paper.md."""
    evolved, taught = change(runs, "/round_0", "/round_2"), change(runs, "/arms/teacher", "/round_2")
    before = dict(zip(STAGES[1:], (f"/{stage}" for stage in STAGES)))
    stages = [(label(stage), f"/{stage}", before.get(stage), PAPER.get(stage, "")) for stage in STAGES]
    orms = list(orm_rows(runs))
    reflected = rows_of(*(f"{run}/arms/both/verified.jsonl" for run in runs))
    accepted = [row["orm_check"] == "correct" for row in reflected if row["answer_check"] == "correct"]
    reflections = [("no reflection", "/round_2", "", "62.35")]
    reflections += [("ORM's feedback, accepted by the answer", "/final", "/round_2", "")]
    reflections += [("ORM's feedback, accepted by answer and ORM", "/arms/both", "/round_2", "64.70")]
    same = [("all from the teacher", "/arms/teacher", "", "58.00")]
    same += [("self-evolving", "/round_2", "/arms/teacher", "62.35")]
    hidden = [(label(stage), f"-hidden/{stage}", f"/{stage}", "") for stage in STAGES[1:4]]
    template = Path(__file__).with_suffix(".md").read_text(encoding="utf-8")
    text = template.format(
        seeds=" ".join(run.rpartition("-")[2] for run in runs),
        problems=len(scores(runs, "/base")),
        stages=arms_table(runs, "stage | paper: CogVLM2 / Qwen2-VL / InternVL2.5 (rows)", *stages),
        evolved=evolved,
        evolved_effect=effect(evolved),
        transitions=transitions_table(runs),
        errors=errors_table(runs),
        reflections=arms_table(runs, "reflection | paper, CogVLM2", *reflections),
        accepted=f"{sum(accepted):,} of {len(accepted):,}",
        gated=change(runs, "/final", "/arms/both"),
        same=arms_table(runs, "rows | paper, CogVLM2, 240k", *same),
        same_effect=effect(taught),
        orms=table("ORM | accepts / rejects / mean | change from the first | paths | paper: ORM-2K", orms),
        orm_effect=effect(orms[1][2], sign=-1),
        students=students_table(runs),
        pace=pace_table(runs),
        hidden=arms_table(runs, "stage | ", *hidden),
        hidden_share=hidden_share(runs),
    )
    Path(output).write_text(text, encoding="utf-8")


def passes(run: str) -> None:
    """Print the epochs over the last round's rows that are as many passes as all trainings took together."""
    taken = 0.0
    for stage in STAGES[1:4]:
        rows = len(rows_of(f"{run}/{stage}/train.jsonl"))
        taken += rows * json.loads(Path(f"{run}/{stage}/model/recipe.json").read_text())["flags"]["epochs"]
    print(round(taken / rows, 2))


def hide(run: str) -> None:
    """Write hidden.jsonl: the run's problems, with the reference answers of D0 alone."""
    known = {row["id"] for row in rows_of(f"{run}/round_0/samples.jsonl")}
    with open(f"{run}/hidden.jsonl", "w") as file:
        for row in rows_of(f"{run}/problems.jsonl"):
            print(json.dumps(row if row["id"] in known else row | {"answer": None}), file=file)


if __name__ == "__main__":
    {"page": page, "passes": passes, "hide": hide}[sys.argv[1]](*sys.argv[2:])
