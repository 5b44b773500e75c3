#!/usr/bin/env bash
# The README's tables: the default run with several seeds; each ORM, and one trained on the same data with the status alone (--binary),
# on M0's paths of test problems, as many right as wrong ones (the form of the paper's Table 5).
#   bash tests/bench/seeds.sh 0 1 2        # writes runs/seed-N; prints one line a seed
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PYTHON="${PYTHON:-.venv/bin/python}"
for seed in "${@:-0}"; do
  run=runs/seed-$seed
  mkdir -p "$run"
  SEED=$seed RUN=seed-$seed bash run_rounds.sh >> "$run/log" 2>&1 || { tail -5 "$run/log" >&2; exit 1; }
  train=$(grep -- "04_finetune.py --orm" "$run/log" | head -1)  # the run's own command, with other outputs
  [[ -e $run/binary/model ]] || eval "$(sed "s/^+ //; s|--output $run/orm|--output $run/binary|; s|--train-file $run/orm|--train-file $run/binary|; s/--orm/--orm --binary/" <<< "$train")" >> "$run/log" 2>&1
  [[ -e $run/heldout.jsonl ]] || $PYTHON 01_sample.py --input toy/test.jsonl --output "$run/heldout.jsonl" --model "$run/round_0/model" --samples 4 --temperature 1.0 --max-tokens 128 \
    --batch-size 256 --seed "$seed" --origin heldout >> "$run/log" 2>&1
  for orm in orm binary; do
    [[ -e $run/heldout_$orm.jsonl ]] || $PYTHON 02_verify.py --input "$run/heldout.jsonl" --output "$run/heldout_$orm.jsonl" --model "$run/$orm/model" --batch-size 256 >> "$run/log" 2>&1
  done
  $PYTHON - "$run" <<'PY'
import json, random, sys
from pathlib import Path

sys.path.insert(0, "toy")
import problems as toy

run = Path(sys.argv[1])
metrics = json.loads((run / "metrics.json").read_text())
print(run.name, f"{metrics['seconds'] / 60:.1f} min;", *(f"{stage['stage']} {stage['benchmarks']['toy_test']['accuracy']:.1%} ({stage['train_rows']} rows)" for stage in metrics["stages"]))
for orm in ("orm", "binary"):
    rows = sorted(map(json.loads, (run / f"heldout_{orm}.jsonl").open()), key=lambda row: (row["id"], row["sample"]))
    by_answer = [(row["answer_check"], row["orm_check"]) for row in rows if row["answer_check"] in ("correct", "wrong")]
    # A path whose answer is right by luck has a wrong step: the toy world knows.
    by_steps = [("correct" if check == "correct" and not toy.first_mistake(row["solution"], row["response"]) else "wrong", row["orm_check"])
                for row in rows if (check := row["answer_check"]) in ("correct", "wrong")]
    for name, pairs in (("by the answer", by_answer), ("by answer and steps", by_steps)):
        kinds = {check: [said == check for truth, said in pairs if truth == check] for check in ("correct", "wrong")}
        count = min(map(len, kinds.values()))
        rates = {check: sum(random.Random(0).sample(right, count)) / count for check, right in kinds.items()}
        everything = ", ".join(f"{sum(right) / len(right):.1%} of {len(right)} {check}" for check, right in kinds.items())
        print(f"  {orm}, {name}: positive {rates['correct']:.1%}, negative {rates['wrong']:.1%}, overall {sum(rates.values()) / 2:.1%} of {2 * count}; of all: {everything}", flush=True)
PY
done
