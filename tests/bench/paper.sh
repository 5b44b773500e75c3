#!/usr/bin/env bash
# docs/PAPER.md: the paper's tables, redrawn in the toy world by several runs with different seeds.
#   bash tests/bench/paper.sh 0 1 2 3 4      # goes on where it stopped
# All runs come first, then their arms. Each core takes a seed at a time; where fewer seeds than cores are
# left, one after the other gets all cores.
# runs/paper-SEED is the default run; arms have their steps in runs/paper-SEED/arms, or runs of their own.
set -euo pipefail
exec 3>&2
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source mathse/environment.sh
MODEL=toy/base  # what stands in toy/settings.sh, for the arms' own commands
settings() { (source toy/settings.sh > /dev/null; echo "${!1}"); }
SAMPLE=($(settings SAMPLE_FLAGS)) FINETUNE=($(settings FINETUNE_FLAGS))
VERIFY=($(settings VERIFY_FLAGS)) ORM=($(settings ORM_FLAGS))
paper() { "$PYTHON" tests/bench/paper.py "$@"; }
loop() { env RUN="$1" SEED="$number" "${@:2}" bash run_rounds.sh; }  # loop RUN SETTINGS...
share() {  # share FROM TO OUTPUTS...: the run TO begins with these outputs of FROM
  [[ ! -e runs/$2 ]] || return 0
  mkdir -p "runs/$2.part"; (cd "runs/$1"; cp -r --parents ${@:3} "../$2.part"); mv "runs/$2.part" "runs/$2"
}
call() { "$PYTHON" "$@" --seed "$number"; }
judge() {  # judge PATHS OUTPUT ORM
  call 02_verify.py --input "$1" --output "$2" --accept orm --model "$3" "${VERIFY[@]}"
}

arms() {  # arms SEED
  local number=$1 name=paper-$1 run=runs/paper-$1 arms=runs/paper-$1/arms limit=(--limit "${LIMIT:-0}")
  local teacher end i orm
  teacher=$(call toy/teacher.py --background $$ --problems toy/train.jsonl toy/test.jsonl)
  evaluate() {
    call 05_evaluate.py --test toy/test.jsonl --output "$1/eval" --model "$1/model" "${limit[@]}" \
      "${SAMPLE[@]}"
  }
  finetune() {
    call 04_finetune.py --model "$MODEL" --output "$arms/$1/model" --train-file "$arms/$1/train.jsonl" \
      "${FINETUNE[@]}" "${@:2}"
  }

  # The ORM once or every round, with and without PAIRS: what is the same is not made again
  share "$name" "$name-plain" "problems.jsonl* base round_0 orm/samples.jsonl* orm/annotated.jsonl*"
  loop "$name-plain" PAIRS=0
  share "$name-plain" "$name-every" "problems.jsonl* base round_0 orm round_1"
  loop "$name-every" PAIRS=0 ORM_UPDATE=every
  share "$name" "$name-every-pairs" "problems.jsonl* base round_0 orm round_1"
  loop "$name-every-pairs" ORM_UPDATE=every
  for end in -plain -every -every-pairs ""; do  # their ORMs on paths of test problems, by round
    for i in 1 2; do
      orm=$run$end/orm_$((i - 1))/model; [[ -e $orm ]] || orm=$run$end/orm/model
      call 01_sample.py --input toy/test.jsonl --output "$run$end/pace/paths_$i.jsonl" --samples 2 \
        --temperature 1.0 --model "$run$end/round_$((i - 1))/model" --origin test "${limit[@]}" "${SAMPLE[@]}"
      judge "$run$end/pace/paths_$i.jsonl" "$run$end/pace/round_$i.jsonl" "$orm"
    done
  done

  # Table 3: the same reflections, which must please the ORM too (the run's own only need a right answer)
  call 02_verify.py --input "$run/final/reflected.jsonl" --output "$arms/both/verified.jsonl" --accept both \
    --model "$run/orm/model" "${VERIFY[@]}"
  finetune both --input "$run"/round_[0-2]/verified.jsonl "$arms/both/verified.jsonl" --init previous \
    --previous "$run/round_2/model"
  evaluate "$arms/both"

  # Table 4: as many rows as after the last round, all from the teacher, and as many passes over them
  call 01_sample.py --input "$run/problems.jsonl" --output "$arms/teacher/samples.jsonl" --model "$teacher" \
    --origin teacher
  call 02_verify.py --input "$arms/teacher/samples.jsonl" --output "$arms/teacher/verified.jsonl" \
    --accept answer
  finetune teacher --input "$arms/teacher/verified.jsonl" --limit "$(wc -l < "$run/round_2/train.jsonl")" \
    --epochs "$(paper passes "$run")"
  evaluate "$arms/teacher"

  # Table 5: ORMs on M0's paths of test problems; their right and wrong steps by the teacher
  call 02_verify.py --annotate --check-correct --input "$run/pace/paths_1.jsonl" \
    --output "$arms/truth.jsonl" --model "$teacher"
  finetune orm_binary --orm --binary --input "$run/round_0/verified.jsonl" "$run/orm/annotated.jsonl" \
    "${ORM[@]}"
  judge "$run/pace/paths_1.jsonl" "$arms/orm_binary.jsonl" "$arms/orm_binary/model"

  # Without reference answers but for D0's, whose solutions M0 learns: the ORM and the paths' agreement accept
  paper hide "$run"
  share "$name" "$name-hidden" base  # the same evaluation
  loop "$name-hidden" DATA="$run/hidden.jsonl" TEACHER=solutions DISTILL=all ORM="$run/orm/model" \
    REFLECT=none ACCEPT=orm VERIFY_FLAGS="--agree 0.5"
}

run() { loop "paper-$1"; }
step() {  # step run|arms SEED
  local log=runs/paper-$2/log number=$2
  trap '[[ $? == 0 ]] || tail -5 '"$log"' >&3' EXIT
  mkdir -p "runs/paper-$2"; "$1" "$2" >> "$log" 2>&1
  echo "seed $2: $1 done"
}
seeds=("${@:-0}")
read -ra cores <<< "$("$PYTHON" -c 'import os; print(*os.sched_getaffinity(0))')"
for what in run arms; do
  for ((first = 0; first < ${#seeds[@]}; first += ${#cores[@]})); do
    turn=("${seeds[@]:first:${#cores[@]}}")
    for place in "${!turn[@]}"; do
      if ((${#turn[@]} < ${#cores[@]})); then (step "$what" "${turn[place]}")
      else (taskset -cp "${cores[place]}" $BASHPID > /dev/null; step "$what" "${turn[place]}") & fi
    done
    status=0
    while [[ $(jobs -p) ]]; do wait -n || status=$?; done
    ((status == 0)) || exit "$status"
  done
done
paper page docs/PAPER.md $(printf 'runs/paper-%s ' "${seeds[@]}")
