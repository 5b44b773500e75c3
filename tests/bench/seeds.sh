#!/usr/bin/env bash
# The tables of docs/RESULTS.md: the default run with several seeds; each ORM, and one trained on the same
# data with the status alone (--binary), on M0's paths of test problems, as many right as wrong ones (the form
# of the paper's Table 5).
#   bash tests/bench/seeds.sh 0 1 2        # writes runs/seed-N; prints a few lines a seed
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source mathse/environment.sh
for seed in "${@:-0}"; do
  run=runs/seed-$seed
  mkdir -p "$run"
  SEED=$seed RUN=seed-$seed bash run_rounds.sh >> "$run/log" 2>&1 || { tail -5 "$run/log" >&2; exit 1; }
  recipe=$run/orm/model/recipe.json
  train=$("$PYTHON" -c 'import json, sys; print(json.load(sys.stdin)["command"])' < "$recipe")
  binary=${train//"$run/orm/model"/"$run/binary/model"}  # the run's own command, with another output
  binary=${binary//"$run/orm/train.jsonl"/"$run/binary/train.jsonl"}
  { "$PYTHON" ${binary#python } --binary
    "$PYTHON" 01_sample.py --input toy/test.jsonl --output "$run/heldout/samples.jsonl" \
      --model "$run/round_0/model" --samples 4 --temperature 1.0 --max-tokens 128 --batch-size 256 \
      --seed "$seed" --origin heldout
    for orm in orm binary; do
      "$PYTHON" 02_verify.py --input "$run/heldout/samples.jsonl" --output "$run/heldout/$orm.jsonl" \
        --model "$run/$orm/model" --batch-size 256
    done
  } >> "$run/log" 2>&1
  "$PYTHON" tests/bench/seeds.py "$run"
done
