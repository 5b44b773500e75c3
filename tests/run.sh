#!/usr/bin/env bash
# Runs every test, in the environment that run_rounds.sh uses too.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source mathse/environment.sh
export HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false
[[ -e toy/test.jsonl ]] || "$PYTHON" toy/problems.py > /dev/null
# each file stays with one of the two processes: the longest first, so that they end together
longest=(loop training generate serve processes evaluate crash bad_input report)
exec "$PYTHON" -m pytest -q --durations=5 -n 2 --dist loadfile --no-loadscope-reorder \
  $(printf 'tests/test_%s.py ' "${longest[@]}") tests "$@"
