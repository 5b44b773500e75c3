#!/usr/bin/env bash
# MathSE, Algorithm 1: from a base model, round by round, to the model that has learnt from its reflections.
#   bash run_rounds.sh                                      the toy world: two cores, no GPU, no key
#   DRY_RUN=1 GPUS=8 MODEL=Qwen/Qwen2-VL-7B-Instruct TEACHER=https://api.openai.com/v1#gpt-4o \
#     DATA=problems.jsonl TEST=mathvision:MATH-V/testmini bash run_rounds.sh
# A killed run goes on where it stopped. A changed setting is refused; FORCE=1 makes anew what depends on it.
set -euo pipefail -o allexport
cd "$(dirname "${BASH_SOURCE[0]}")"
source mathse/environment.sh; [[ -n ${MODEL:-} ]] || source toy/settings.sh
RUN="${RUN:-default}"                # the run folder is runs/RUN
TEACHER="${TEACHER:-toy}"            # http://host:port/v1#name or a model; toy: the problems' own solutions
DATA="${DATA:-}"                     # the problems: problems.jsonl, x.parquet, NAME:FOLDER, hf:NAME:SPLIT
TEST="${TEST:-}"                     # the test sets, separated by spaces
FIELDS="${FIELDS:-}"                 # columns of a hub data set: "question=problem images=image"
LIMIT="${LIMIT:-0}"                  # first N problems of DATA and of each test set; 0: all
ROUNDS="${ROUNDS:-2}"                # K, self-evolving rounds
SAMPLES="${SAMPLES:-8}"              # paths a problem and round
DISTILL="${DISTILL:-0.3}"            # |D0|, problems that the teacher solves: a number, or a share below 1
INIT="${INIT:-base}"                 # each fine-tuning starts from: base, previous (the last round's model)
ACCEPT="${ACCEPT:-both}"             # who decides about a path: orm, answer, both
REFLECT_ACCEPT="${REFLECT_ACCEPT:-$ACCEPT}"
REFLECT="${REFLECT:-final}"          # final, every (round), none
REFLECTOR="${REFLECTOR:-TEACHER}"    # TEACHER, student (the last round's model), another model
ORM="${ORM:-}"                       # an existing ORM; empty: train one; none: no ORM, with ACCEPT=answer
ORM_UPDATE="${ORM_UPDATE:-once}"     # the ORM learns: once, from M0's paths; every: from each round's paths too
PAIRS="${PAIRS:-0}"                  # 1: it also learns from corrections of the problems that M0 does not solve
AUDIT="${AUDIT:-0}"                  # 1: the teacher tells how often the ORM is right (needs --check-correct)
MAX_PIXELS="${MAX_PIXELS:-1003520}"  # larger images are scaled down, in sampling and training alike
SEED="${SEED:-0}"
GPUS="${GPUS:-1}"                    # processes of a local model; on several nodes LAUNCH starts them
SERVE="${SERVE:-}"                   # serves local models, but not to 04: "vllm serve {model} --port {port}"
DRY_RUN="${DRY_RUN:-0}"              # 1: print every command with its calls, tokens and cost; run nothing
FORCE="${FORCE:-0}"                  # 1: make anew what changed settings concern
# More flags: SAMPLE_FLAGS (01, in the rounds), VERIFY_, EVALUATE_, FINETUNE_, REFLECT_, DISTILL_ (04: M0),
# ORM_, ORM_SAMPLE_, ANNOTATE_FLAGS (04, 01, 02: the ORM), ORM_UPDATE_ (04), DATA_FLAGS, ENDPOINT_FLAGS (as --max-cost 50).
check() { [[ ${!1} =~ ^($2)$ ]] || { echo "error: $1: ${!1}: must be $3" >&2; exit 2; }; }
check RUN '[A-Za-z0-9_][A-Za-z0-9._-]*' "letters, digits, dots, dashes and underscores"
check REFLECT 'final|every|none' "final, every or none"
check ORM_UPDATE 'once|every' "once or every"
for name in PAIRS AUDIT; do check $name '[01]' "0 or 1"; done; [[ $ORM != none ]] || AUDIT=0
for name in ROUNDS SAMPLES GPUS; do check $name '[1-9][0-9]{0,5}' "a whole number of at least 1"; done
for name in DATA TEST; do check $name '.*[^ ].*' "set, see run_rounds.sh"; done
teacher=$TEACHER; [[ $TEACHER != toy ]] || teacher=http://127.0.0.1:1/v1#teacher  # its port comes later
run=runs/$RUN same=(--max-pixels "$MAX_PIXELS" --seed "$SEED") force=($([[ $FORCE == 0 ]] || echo --force))
asked=("${same[@]}" --spent "$run/spent.tsv" ${ENDPOINT_FLAGS:-})
rows=$(head -n "${LIMIT/#0/999999999}" "$DATA" 2> /dev/null | wc -l || true)  # what a dry run counts with
[[ -f ${DATA%.parquet} ]] || rows=$([[ $LIMIT =~ ^[1-9] ]] && echo "$LIMIT" || echo 341346)  # MathVL's

stage() {  # stage ROWS COMMAND...: name it to mathse.stages, with about how many input rows it has
  local words=("${@:2}") launch=$PYTHON many="-m torch.distributed.run --standalone --nproc_per_node $GPUS"
  if [[ " ${words[*]} " != *" --model "* || " ${words[*]} " == *" --model http"* ]]; then :  # no local model
  elif [[ $SERVE && ${words[0]} != 04_* ]]; then words+=(--serve "$SERVE")
  elif [[ $GPUS != 1 ]]; then launch=${LAUNCH:-$PYTHON $many}; fi
  words+=("${force[@]}"); printf '%s\0' "$1" "$launch" "${#words[@]}" "${words[@]}"
}
sample() { stage "$rows" 01_sample.py --input "$D" --output "$run/$1/samples.jsonl" --model "$2" "${@:3}"; }
verify() {  # verify ROWS STAGE INPUT OUTPUT POLICY FLAGS...
  D_SFT+=("$run/$2/$4")
  stage "$1" 02_verify.py --input "$run/$2/$3" --output "$run/$2/$4" --accept "$5" "${@:6}"
}
reflect() {  # reflect STAGE OUTPUT: on what is still wrong
  local by=$REFLECTOR; [[ $by != TEACHER ]] || by=$teacher; [[ $by != student ]] || by=$M
  stage "$rows" 03_reflect.py --input "${D_SFT[@]}" --output "$run/$1/reflected.jsonl" --model "$by" \
    "${asked[@]}" ${REFLECT_FLAGS:-}
  verify "$rows" "$1" reflected.jsonl "$2" "$REFLECT_ACCEPT" "${judge[@]}"
}
annotate() {  # annotate ROWS STAGE INPUT OUTPUT FLAGS...: the teacher explains wrong paths, for an ORM
  D_ORM+=("$run/$2/$4")
  stage "$1" 02_verify.py --annotate --input "$run/$2/$3" --output "$run/$2/$4" --model "$teacher" \
    "${asked[@]}" ${ANNOTATE_FLAGS:-} "${@:5}"
}
use_orm() { orm=$1 judge=(--model "$1" --retry-undecided 1 "${asked[@]}" ${VERIFY_FLAGS:-}); }
train_orm() {  # train_orm STAGE FLAGS...
  finetune "$1" --orm --input "${D_ORM[@]}" --init "$INIT" --previous "$orm" ${ORM_FLAGS:-} \
    "${@:2}"
  use_orm "$run/$1/model"
}
audit() { annotate "$1" "$2" verified.jsonl annotated.jsonl; }  # audit ROWS STAGE: is the ORM right?
finetune() { stage 0 04_finetune.py --model "$MODEL" --output "$run/$1/model" \
  --train-file "$run/$1/train.jsonl" "${same[@]}" ${FINETUNE_FLAGS:-} "${@:2}"; }
student() { finetune "$1" --input "${D_SFT[@]}" --init "$INIT" --previous "$M" "${@:2}"; M=$run/$1/model; }
evaluate() { stage 1000 05_evaluate.py --test $TEST --output "$run/$1/eval" --model "$M" --limit "$LIMIT" \
  --fields "$FIELDS" "${asked[@]}" ${EVALUATE_FLAGS:+${EVALUATE_FLAGS//TEACHER/$teacher}}; }
evolution() {  # Algorithm 1 and its line numbers. D_SFT: files, the correct rows count; M: last model
  local D=$run/problems.jsonl D_SFT=() D_ORM=() M=$MODEL orm=$MODEL judge=(${VERIFY_FLAGS:-}) i
  stage 0 -m mathse.problems --input "$DATA" --output "$D" --test $TEST --fields "$FIELDS" --limit "$LIMIT" \
    ${DATA_FLAGS:-}
  evaluate base
  sample round_0 "$teacher" --draw "$DISTILL" --origin teacher "${asked[@]}"                        # 1
  verify 0 round_0 samples.jsonl verified.jsonl answer
  student round_0 ${DISTILL_FLAGS:-}; evaluate round_0                                              # 2
  if [[ $ORM ]]; then [[ $ORM == none ]] || use_orm "$ORM"
  else  # train one on paths of M0: wrong ones, explained by the teacher, and correct ones
    sample orm "$M" --origin orm --draw 15000 --samples 4 --temperature 1.0 "${same[@]}" ${SAMPLE_FLAGS:-} \
      ${ORM_SAMPLE_FLAGS:-}
    annotate $((rows * 4)) orm samples.jsonl annotated.jsonl --add-correct "${D_SFT[@]}"
    if [[ $PAIRS != 0 ]]; then
      stage "$rows" 03_reflect.py --input "$run/orm/annotated.jsonl" --output "$run/orm/corrected.jsonl" \
        --model "$teacher" "${asked[@]}" ${REFLECT_FLAGS:-}
      annotate "$rows" orm corrected.jsonl corrected_annotated.jsonl
    fi
    train_orm orm
  fi
  for ((i = 1; i <= ROUNDS; i++)); do                                                               # 4
    sample "round_$i" "$M" --unsolved-in "${D_SFT[@]}" --samples "$SAMPLES" --temperature 1.0 \
      --origin "round-$i" "${same[@]}" ${SAMPLE_FLAGS:-}                                            # 3, 5
    verify $((rows * SAMPLES)) "round_$i" samples.jsonl verified.jsonl "$ACCEPT" "${judge[@]}"       # 6-9
    if [[ $REFLECT == every ]]; then reflect "round_$i" reflected_verified.jsonl; fi
    student "round_$i"; evaluate "round_$i"                                                         # 10
    local again=$([[ $ORM || $ORM_UPDATE == once || $i$REFLECT == ${ROUNDS}none ]] || echo yes)
    if [[ $again || $AUDIT != 0 ]]; then audit $((rows * SAMPLES)) "round_$i"; fi
    if [[ $again ]]; then train_orm "orm_$i" ${ORM_UPDATE_FLAGS:-}; fi
  done
  if [[ $REFLECT == final ]]; then reflect final verified.jsonl; student final; evaluate final; fi  # 11-13
  if [[ $REFLECT == final && $AUDIT != 0 ]]; then audit "$rows" final; fi
}

evolution | "$PYTHON" -m mathse.stages --check $([[ $DRY_RUN != 0 ]] || echo --quiet)
[[ $DRY_RUN == 0 ]] || exit 0  # a wrong setting has been refused by now
[[ $TEACHER != toy ]] ||
  teacher=$("$PYTHON" toy/teacher.py --background $$ --seed "$SEED" --problems "$run/problems.jsonl" $TEST)
[[ -e $run/config.json ]] || "$PYTHON" -m mathse.recipe "$run/config.json" run_rounds.sh
evolution | "$PYTHON" -m mathse.stages
"$PYTHON" -m mathse.recipe "$run/config.json" run_rounds.sh
"$PYTHON" -m mathse.report "$run"
