#!/usr/bin/env bash
# docs/PAPER.md: the paper's tables, redrawn in the toy world by several runs with different seeds.
#   bash tests/bench/paper.sh 0 1 2 3 4      # goes on where it stopped
# Each core takes a seed at a time; where fewer seeds than cores are left, one after the other gets all cores.
# runs/paper-SEED is the default run; each arm adds its own steps in runs/paper-SEED/arms; ARMS=0: none.
set -euo pipefail
exec 3>&2
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source mathse/environment.sh
MODEL=toy/base  # what stands in toy/settings.sh, for the arms' own commands
settings() { (source toy/settings.sh > /dev/null; echo "${!1}"); }
read -ra SAMPLE <<< "$(settings SAMPLE_FLAGS)"; read -ra FINETUNE <<< "$(settings FINETUNE_FLAGS)"
read -ra VERIFY <<< "$(settings VERIFY_FLAGS)"; read -ra ORM <<< "$(settings ORM_FLAGS)"

arms() {  # arms SEED
  local run=runs/paper-$1 seed=(--seed "$1") arms=runs/paper-$1/arms teacher rows passes name
  local rounds=("$run"/round_[0-3]/verified.jsonl) last=$run/round_3/model
  teacher=$("$PYTHON" toy/teacher.py --background $$ --seed "$1" --problems toy/train.jsonl toy/test.jsonl)
  evaluate() { "$PYTHON" 05_evaluate.py --test toy/test.jsonl --output "$1/eval" --model "$1/model" \
    "${seed[@]}" "${SAMPLE[@]}"; }
  finetune() { "$PYTHON" 04_finetune.py --model "$MODEL" --output "$arms/$1/model" \
    --train-file "$arms/$1/train.jsonl" "${seed[@]}" "${FINETUNE[@]}" "${@:2}"; }

  # Table 3: the same reflections, which must please the ORM too (the run's own only need a right answer)
  "$PYTHON" 02_verify.py --input "$run/final/reflected.jsonl" --output "$arms/both/verified.jsonl" \
    --accept both --model "$run/orm_3/model" "${seed[@]}" "${VERIFY[@]}"
  finetune both --input "${rounds[@]}" "$arms/both/verified.jsonl" --init previous --previous "$last"
  evaluate "$arms/both"

  # Table 4: as many rows as after the last round, all from the teacher, and as many passes over them
  rows=$(wc -l < "$run/round_3/train.jsonl")
  passes=$("$PYTHON" tests/bench/paper.py --passes "$run")
  "$PYTHON" 01_sample.py --input "$run/problems.jsonl" --output "$arms/teacher/samples.jsonl" --model "$teacher" \
    --origin teacher "${seed[@]}"
  "$PYTHON" 02_verify.py --input "$arms/teacher/samples.jsonl" --output "$arms/teacher/verified.jsonl" \
    --accept answer
  finetune teacher --input "$arms/teacher/verified.jsonl" --limit "$rows" --epochs "$passes"
  evaluate "$arms/teacher"

  # Table 5: ORMs on M0's paths of test problems; their right and wrong steps by the teacher
  "$PYTHON" 01_sample.py --input toy/test.jsonl --output "$arms/paths.jsonl" --model "$run/round_0/model" \
    --samples 2 --temperature 1.0 --origin test "${seed[@]}" "${SAMPLE[@]}"
  "$PYTHON" 02_verify.py --annotate --check-correct --input "$arms/paths.jsonl" --output "$arms/truth.jsonl" \
    --model "$teacher" "${seed[@]}"
  for name in once binary; do
    finetune orm_$name --orm --input "$run/round_0/verified.jsonl" "$run/orm/annotated.jsonl" "${ORM[@]}" \
      $([[ $name == once ]] || echo --binary)
  done
  for name in orm_once orm_binary; do judge "$name" "$arms/$name/model"; done
  judge orm_pairs "$run/orm/model"; judge orm_refreshed "$run/orm_3/model"

  # Without reference answers: the ORM and the paths' agreement accept
  "$PYTHON" tests/bench/paper.py --hide "$run"
  mkdir -p "$run-hidden"; cp -r "$run/base" "$run-hidden"  # the same evaluation
  env RUN="paper-$1-hidden" SEED="$1" DATA="$run/hidden.jsonl" ORM="$run/orm/model" ORM_UPDATE=once \
    REFLECT=none ACCEPT=orm VERIFY_FLAGS="--agree 0.5" bash run_rounds.sh
}
judge() { "$PYTHON" 02_verify.py --input "$arms/paths.jsonl" --output "$arms/$1.jsonl" --accept orm \
  --model "$2" "${seed[@]}" "${VERIFY[@]}"; }

seed() {  # seed SEED: the run and its arms
  local log=runs/paper-$1/log
  trap '[[ $? == 0 ]] || tail -5 '"$log"' >&3' EXIT
  mkdir -p "runs/paper-$1"
  { env RUN="paper-$1" SEED="$1" bash run_rounds.sh; [[ ${ARMS:-1} == 0 ]] || arms "$1"; } >> "$log" 2>&1
  echo "seed $1 is done"
}
seeds=("${@:-0}")
read -ra cores <<< "$("$PYTHON" -c 'import os; print(*os.sched_getaffinity(0))')"
for ((first = 0; first < ${#seeds[@]}; first += ${#cores[@]})); do
  turn=("${seeds[@]:first:${#cores[@]}}")
  for place in "${!turn[@]}"; do
    if ((${#turn[@]} < ${#cores[@]})); then (seed "${turn[place]}")
    else (taskset -cp "${cores[place]}" $BASHPID > /dev/null; seed "${turn[place]}") & fi
  done
  status=0
  while [[ $(jobs -p) ]]; do wait -n || status=$?; done
  ((status == 0)) || exit "$status"
done
"$PYTHON" tests/bench/paper.py --output docs/PAPER.md $(printf 'runs/paper-%s ' "${seeds[@]}")
