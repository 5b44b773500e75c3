#!/usr/bin/env bash
# Makes the environment that run_rounds.sh makes (or uses the active one, or PYTHON) and runs every test.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ -z ${PYTHON:-} ]]; then
  if [[ -n ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} ]]; then PYTHON=python3
  else
    PYTHON=.venv/bin/python
    [[ -e .venv/complete ]] || { python3 -m venv .venv && .venv/bin/pip install --quiet --disable-pip-version-check -r requirements.txt && touch .venv/complete; }
  fi
fi
export TOKENIZERS_PARALLELISM=false OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}" HF_HUB_OFFLINE=1
exec "$PYTHON" -m pytest -q --durations=5 tests "$@"
