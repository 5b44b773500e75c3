#!/usr/bin/env bash
# The README's table: the default run with several seeds, and each ORM on paths of test problems that it never saw.
#   bash tests/bench/seeds.sh 0 1 2        # writes runs/seed-N; prints one line a seed
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PYTHON="${PYTHON:-.venv/bin/python}"
for seed in "${@:-0}"; do
  run=runs/seed-$seed
  SEED=$seed RUN=seed-$seed bash run_rounds.sh > "runs-seed-$seed.log" 2>&1 || { tail -5 "runs-seed-$seed.log" >&2; exit 1; }
  mv "runs-seed-$seed.log" "$run/log"
  [[ -e $run/heldout.jsonl ]] || $PYTHON 01_sample.py --input toy/test.jsonl --output "$run/heldout.jsonl" --model "$run/round_0/model" --samples 4 --temperature 1.0 --max-tokens 128 \
    --batch-size 256 --seed "$seed" --origin heldout > /dev/null
  [[ -e $run/heldout_verified.jsonl ]] || $PYTHON 02_verify.py --input "$run/heldout.jsonl" --output "$run/heldout_verified.jsonl" --model "$run/orm/model" --batch-size 256 > "$run/heldout.log"
  $PYTHON - "$run" <<'PY'
import json, sys
from pathlib import Path

run = Path(sys.argv[1])
metrics = json.loads((run / "metrics.json").read_text())
accuracy = " ".join(f"{stage['stage']} {stage['benchmarks']['toy_test']['accuracy']:.1%} ({stage['train_rows']} rows)" for stage in metrics["stages"])
rows = [json.loads(line) for line in (run / "heldout_verified.jsonl").open()]
rates = []
for check in ("correct", "wrong"):
    part = [row for row in rows if row["answer_check"] == check]
    rates.append(f"{sum(row['orm_check'] == check for row in part) / max(1, len(part)):.1%} of {len(part)} {check}")
print(f"{run.name}: {metrics['seconds'] / 60:.1f} min; {accuracy}; ORM right on {' and '.join(rates)} held-out paths", flush=True)
PY
done
