#!/usr/bin/env bash
# MathSE, Algorithm 1: from a base model, round by round, to the model that has learnt from its reflections.
#   bash run_rounds.sh                                      the toy world: two cores, no GPU, no key
#   DRY_RUN=1 MODEL=Qwen/Qwen2-VL-7B-Instruct TEACHER=https://api.openai.com/v1#gpt-4o \
#     DATA=problems.jsonl TEST=mathvision:MATH-V/testmini bash run_rounds.sh
# A killed run goes on where it stopped. A changed setting is refused; FORCE=1 makes anew what depends on it.
{ set -euo pipefail -o allexport  # in braces, so that all is read before it runs: edit it at any time
cd "$(dirname "${BASH_SOURCE[0]}")"
source mathse/environment.sh; [[ -n ${MODEL:-} ]] || source toy/settings.sh  # others for the toy
: "${RUN:=default}"             # the run folder is runs/RUN
: "${TEACHER:=solutions}"       # http://host:port/v1#name or a model; solutions: the problems' own, for D0
: "${DATA:=}"                   # the problems: x.jsonl, x.parquet, x.csv, NAME:FOLDER, hf:NAME:SPLIT
: "${TEST:=}"                   # the test sets, separated by spaces; quote one with a space in its name
: "${FIELDS:=}"                 # columns of tables: "question=problem images=image_1,image_2"
: "${LIMIT:=0}"                 # first N problems of DATA and of each test set; 0: all
: "${ROUNDS:=2}" "${SAMPLES:=8}"  # K, self-evolving rounds; responses a problem and round
: "${DISTILL:=0.3}"             # |D0|, problems that the teacher solves: a number, a share as 0.3, or all
: "${INIT:=base}"               # each fine-tuning starts from: base, previous (the last round's model)
: "${ACCEPT:=both}" "${REFLECT_ACCEPT:=$ACCEPT}"  # who accepts a response, a reflection: orm, answer, both
: "${REFLECT:=final}"           # final, every (round), none
: "${REFLECTOR:=TEACHER}"       # TEACHER, student (the last round's model), another model
: "${ORM:=}"                    # an existing ORM; empty: train one; none: no ORM, with ACCEPT=answer
: "${ORM_UPDATE:=once}"         # the ORM learns: once, from M0's responses; every: from each round's too
: "${PAIRS:=0}"                 # 1: it also learns from corrections of the problems that M0 does not solve
: "${ERRORS:=0}"                # 1: the teacher names the error type of each wrong test answer (Figure 4)
: "${MAX_PIXELS:=1003520}" "${SEED:=0}"  # larger images are scaled down, in sampling and training alike
: "${SERVE:=}"                  # serves local models, but not to 04: "vllm serve {model} --port {port}"
: "${LAUNCH:=}"                 # on several nodes, starts what loads a model: "srun ... torchrun ..."
: "${DRY_RUN:=0}" "${FORCE:=0}"  # 1: only print commands, calls, tokens, cost; make anew what was changed
# More flags: DATA_, SAMPLE_, VERIFY_, EVALUATE_, FINETUNE_, DISTILL_ (04: M0), ORM_ (04), ORM_UPDATE_ (04),
# ANNOTATE_ (02 --annotate) and ENDPOINT_FLAGS (as --max-cost 50).
source mathse/loop.sh "$@"  # checks the settings; stage SCRIPT FLAGS...: runs it, or plans it
same=(--max-pixels "$MAX_PIXELS" --seed "$SEED")
asked=("${same[@]}" --spent "$run/spent.tsv" ${ENDPOINT_FLAGS:-})
sample() {  # sample STAGE MODEL FLAGS...
  stage 01_sample.py --input "$run/problems.jsonl" --output "$run/$1/samples.jsonl" --model "${@:2}"
}
verify() {  # verify STAGE INPUT OUTPUT POLICY FLAGS...
  D_SFT+=("$run/$1/$3"); stage 02_verify.py --input "$run/$1/$2" --output "$run/$1/$3" --accept "${@:4}"
}
annotate() {  # annotate STAGE INPUT OUTPUT FLAGS...: the teacher explains wrong responses
  stage 02_verify.py --annotate --input "$run/$1/$2" --output "$run/$1/$3" --model "$teacher" "${asked[@]}" \
    "${@:4}"
}
teach() { annotate "$@" ${ANNOTATE_FLAGS:-}; D_ORM+=("$run/$1/$3"); }  # ... and the ORM learns from them
reflect() {  # reflect STAGE OUTPUT FLAGS...
  stage 03_reflect.py --input "${D_SFT[@]}" "${@:3}" --output "$run/$1/$2" "${asked[@]}"
}
correct() {  # correct STAGE OUTPUT: the reflector thinks again about what is still wrong
  local by=$REFLECTOR who=${REFLECTOR##*[/#]}
  case $REFLECTOR in TEACHER) by=$teacher ;; student) by=$M ;; esac
  reflect "$1" reflected.jsonl --model "$by" --origin "reflection-${who,,}"
  verify "$1" reflected.jsonl "$2" "$REFLECT_ACCEPT" "${judge[@]}"
}
finetune() {  # finetune STAGE FLAGS...
  stage 04_finetune.py --model "$MODEL" --output "$run/$1/model" --train-file "$run/$1/train.jsonl" \
    --init "$INIT" "${same[@]}" ${FINETUNE_FLAGS:-} "${@:2}"
}
student() { finetune "$1" --input "${D_SFT[@]}" --previous "$M" "${@:2}"; M=$run/$1/model; evaluate "$1"; }
use_orm() { orm=$1 judge=(--model "$1" "${asked[@]}" ${VERIFY_FLAGS:-}); }
train_orm() {
  finetune "$1" --orm --input "${D_ORM[@]}" --previous "$orm" ${ORM_FLAGS:-} "${@:2}"; use_orm "$run/$1/model"
}
evaluate() {
  stage 05_evaluate.py --test "${tests[@]}" --output "$run/$1/eval" --model "$M" --limit "$LIMIT" \
    --fields "$FIELDS" "${asked[@]}" ${EVALUATE_FLAGS:-}
  if [[ $ERRORS == 1 ]]; then annotate "$1/eval" predictions.jsonl errors.jsonl; fi
}
M=$MODEL orm=$MODEL judge=(${VERIFY_FLAGS:-}) D_SFT=()  # of the files in D_SFT the correct rows count
stage -m mathse.problems --input "$DATA" --output "$run/problems.jsonl" --test "${tests[@]}" \
  --fields "$FIELDS" --limit "$LIMIT" ${DATA_FLAGS:-}
begin; sample round_0 "$teacher" --draw "$DISTILL" --origin teacher "${asked[@]}"                  # 1
evaluate base
verify round_0 samples.jsonl verified.jsonl answer
student round_0 ${DISTILL_FLAGS:-}                                                                # 2
if [[ ! $ORM ]]; then  # train one on responses of M0: wrong ones, explained by the teacher, and correct ones
  sample orm "$M" --origin orm --draw 15000 --samples 4 --temperature 1.0 "${same[@]}" ${SAMPLE_FLAGS:-}
  D_ORM=("${D_SFT[@]}"); teach orm samples.jsonl annotated.jsonl
  if [[ $PAIRS == 1 ]]; then
    reflect orm corrected.jsonl "$run/orm/annotated.jsonl" --model "$teacher" --origin reflection-teacher
    teach orm corrected.jsonl corrected_annotated.jsonl
  fi
  train_orm orm
elif [[ $ORM != none ]]; then use_orm "$ORM"; fi
for ((i = 1; i <= ROUNDS; i++)); do                                                               # 4
  sample "round_$i" "$M" --unsolved-in "${D_SFT[@]}" --samples "$SAMPLES" --origin "round-$i" \
    --temperature 1.0 "${same[@]}" ${SAMPLE_FLAGS:-}                                              # 3, 5
  verify "round_$i" samples.jsonl verified.jsonl "$ACCEPT" "${judge[@]}"                          # 6-9
  if [[ $REFLECT == every ]]; then correct "round_$i" reflected_verified.jsonl; fi
  student "round_$i"                                                                              # 10
  [[ $i != "$ROUNDS" || $REFLECT$REFLECT_ACCEPT =~ final(orm|both) ]] || break  # the ORM has done its work
  if [[ ! $ORM && $ORM_UPDATE == every ]]; then
    teach "round_$i" verified.jsonl annotated.jsonl; train_orm "orm_$i" ${ORM_UPDATE_FLAGS:-}
  fi
done
if [[ $REFLECT == final ]]; then correct final verified.jsonl; student final; fi                  # 11-13
finish; exit; }
