#!/usr/bin/env bash
# Runs every test, in the environment that run_rounds.sh uses too.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source mathse/environment.sh
export HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false
[[ toy/train.jsonl -nt common.py ]] || "$PYTHON" toy/problems.py > /dev/null  # by its CLOSING
# three at a time, since tests wait, too
exec "$PYTHON" -m pytest -q --durations=5 -n 3 --no-loadscope-reorder tests "$@"
