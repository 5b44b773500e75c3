#!/usr/bin/env bash
# The whole evolution (MathSE, Algorithm 1), from a base model to the last reflected one.
#
#   bash run_rounds.sh                          the toy world: 2 cores, no GPU, no key
#   RUN=smoke LIMIT=32 ROUNDS=1 bash run_rounds.sh
#   DRY_RUN=1 GPUS=8 MODEL=Qwen/Qwen2-VL-7B-Instruct TEACHER=https://api.openai.com/v1#gpt-4o \
#     DATA=problems.jsonl TEST=mathvision:MATH-V/testmini bash run_rounds.sh
#
# A killed run goes on where it stopped when called again; what is complete is skipped. Other settings are refused, or with
# FORCE=1 what they change is made anew.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

toy=0; [[ -n ${MODEL:-} ]] || toy=1
toy_or() { if [[ $toy == 1 ]]; then echo "$1"; else echo "$2"; fi; }  # default of the toy model, default of a real one

RUN="${RUN:-default}"                              # name of the run folder, runs/NAME
MODEL="${MODEL:-toy/base}"                         # M_base: model folder or hub id
TEACHER="${TEACHER:-}"                             # http://host:port/v1#model or a model; empty: toy/teacher.py, from the problems' own solutions
ORM="${ORM:-}"                                     # an existing ORM, model or endpoint; empty: one is trained; none: no ORM (needs ACCEPT=answer)
REFLECTOR="${REFLECTOR:-}"                         # who reflects; empty: the teacher; student: the last round's model
DATA="${DATA:-toy/train.jsonl}"                    # problems.jsonl, NAME:PATH or hf:NAME:SPLIT
COLUMNS_OF_DATA="${COLUMNS:-}"; [[ $COLUMNS_OF_DATA == *=* ]] || COLUMNS_OF_DATA=   # COLUMNS="question=problem images=image" (a shell's own COLUMNS is a width)
TEST="${TEST:-toy/test.jsonl}"                     # test sets, separated by spaces
DECONTAMINATE="${DECONTAMINATE:-drop}"             # problems of DATA that TEST holds too: drop, warn (keep and list them), off
ROUNDS="${ROUNDS:-3}"                              # K, self-evolving rounds
SAMPLES="${SAMPLES:-$(toy_or 3 8)}"                # paths a problem and round
DISTILL="${DISTILL:-}"                             # |D0|; empty: 8 % of the toy problems, 30 % of real ones
ACCEPT="${ACCEPT:-both}"                           # status of a path by: orm, answer, both; the ORM's diagnosis is stored in any case
REFLECT_ACCEPT="${REFLECT_ACCEPT:-$(toy_or answer "$ACCEPT")}"   # of a reflected path (the toy ORM has hardly seen a right path of the hardest families and rejects them)
RETRY_UNDECIDED="${RETRY_UNDECIDED:-1}"            # times the ORM is asked again where it gave no verdict
REFLECT="${REFLECT:-final}"                        # final, every, none
INIT="${INIT:-$(toy_or previous base)}"            # each fine-tuning starts from: base, previous (the toy has no time to start anew)
LIMIT="${LIMIT:-0}"                                # first N problems of DATA and of each test set (0: all)
SEED="${SEED:-0}"
GPUS="${GPUS:-1}"                                  # processes a local model runs on (without a GPU: on the CPU)
LAUNCH="${LAUNCH:-}"                               # how they are started; empty: torch's launcher on this node; for several nodes see the README
MAX_REQUESTS="${MAX_REQUESTS:-0}"; MAX_COST="${MAX_COST:-0}"     # stop once the run has sent so many requests, or spent so much (by PRICE_IN and PRICE_OUT, a million tokens); 0: no limit
CONCURRENCY="${CONCURRENCY:-32}"; TIMEOUT="${TIMEOUT:-600}"      # requests in flight; seconds for one reply
TEMPERATURE="${TEMPERATURE:-1.0}"; TOP_P="${TOP_P:-1.0}"
MAX_TOKENS="${MAX_TOKENS:-$(toy_or 128 2048)}"     # new tokens a path
MAX_PIXELS="${MAX_PIXELS:-1003520}"                # larger pictures are scaled down
ROWS="${ROWS:-$(toy_or 256 64)}"                   # paths decoded together in a process
PER_PROBLEM="${PER_PROBLEM:-$(toy_or 1 4)}"        # correct paths a problem to train on
EPOCHS="${EPOCHS:-$(toy_or 3 1)}"; DISTILL_EPOCHS="${DISTILL_EPOCHS:-$(toy_or 10 "$EPOCHS")}"   # of each round; of M0, whose rows are few
LR="${LR:-$(toy_or 1e-3 1e-5)}"; BATCH="${BATCH:-$(toy_or 16 128)}"; MICRO_BATCH="${MICRO_BATCH:-$(toy_or 16 4)}"
ORM_PROBLEMS="${ORM_PROBLEMS:-}"                   # problems whose M0 paths train the ORM; empty: all toy problems; D0, 15000 at most, of real ones
ORM_SAMPLES="${ORM_SAMPLES:-$(toy_or 8 4)}"; ORM_PER_PROBLEM="${ORM_PER_PROBLEM:-4}"   # paths a problem: sampled; kept of each kind
ORM_CHECK_CORRECT="${ORM_CHECK_CORRECT:-$(toy_or 1 0)}"   # 1: the teacher is asked about correct paths too, and those with a wrong step (right by luck) are left out
ORM_EPOCHS="${ORM_EPOCHS:-$(toy_or 4 1)}"; ORM_LR="${ORM_LR:-$LR}"
CLASSIFY="${CLASSIFY:-$([[ $toy$TEACHER$TEST == 1toy/test.jsonl ]] && echo TEACHER || echo none)}"   # who names the type of each wrong test answer's first mistake: TEACHER, another model, none
FINETUNE="${FINETUNE:-}"                           # more flags of 04 for every fine-tuning, such as "--warmup 0.03 --lora 64"
LOG_WITH="${LOG_WITH:-}"                           # tracker of the fine-tunings: tensorboard, wandb ...; empty: train_log.jsonl alone
DRY_RUN="${DRY_RUN:-0}"                            # 1: print every command and its size, run nothing
FORCE="${FORCE:-0}"                                # 1: go on with other settings; what they change is removed and made anew
RETRY_ERRORS="${RETRY_ERRORS:-0}"                  # 1: try again the rows of complete files that failed; what was made from them is made anew

die() { echo "error: $*" >&2; exit 2; }
expect() { local pattern=$1 words=$2 name; shift 2; for name in "$@"; do [[ ${!name} =~ ^($pattern)$ ]] || die "$name: ${!name}: must be $words"; done; }  # expect PATTERN WORDS NAME...
whole='[1-9][0-9]{0,14}' above_0='([0-9]*[1-9][0-9]*\.?[0-9]*|[0-9]*\.0*[1-9][0-9]*)([eE][-+]?[0-9]{1,2})?'
expect "$whole" "a whole number of at least 1" ROUNDS SAMPLES GPUS CONCURRENCY MAX_TOKENS MAX_PIXELS ROWS PER_PROBLEM BATCH MICRO_BATCH ORM_SAMPLES ORM_PER_PROBLEM
expect "($whole)?" "a whole number of at least 1, or empty" DISTILL ORM_PROBLEMS
expect "0|$whole" "a whole number" LIMIT SEED RETRY_UNDECIDED MAX_REQUESTS
expect "$above_0" "a number above 0" EPOCHS DISTILL_EPOCHS ORM_EPOCHS LR ORM_LR TIMEOUT
expect "0|0?\.0+|$above_0" "a number of at least 0" TEMPERATURE MAX_COST
expect '0?\.[0-9]*[1-9][0-9]*|1(\.0*)?' "a number in (0, 1]" TOP_P
expect 'drop|warn|off' "drop, warn or off" DECONTAMINATE
expect '[01]' "0 or 1" DRY_RUN FORCE RETRY_ERRORS ORM_CHECK_CORRECT
[[ $TEMPERATURE =~ [1-9] || $SAMPLES == 1 && ( -n $ORM || $ORM_SAMPLES == 1 ) ]] || die "TEMPERATURE: $TEMPERATURE: several SAMPLES or ORM_SAMPLES would be the same text; set 1.0"
[[ ! $MAX_COST =~ [1-9] || ( ${PRICE_IN:-}${PRICE_OUT:-} =~ [1-9] ) ]] || die "MAX_COST: $MAX_COST: needs PRICE_IN and PRICE_OUT, the price of a million tokens read and written"
[[ $TEST =~ [^[:space:]] ]] || die "TEST: is blank; name at least one test set"
expect 'orm|answer|both' "orm, answer or both" ACCEPT REFLECT_ACCEPT
[[ $ORM != none || $ACCEPT$REFLECT_ACCEPT == answeranswer ]] || die "ORM: none: goes with ACCEPT=answer and REFLECT_ACCEPT=answer only"
expect 'final|every|none' "final, every or none" REFLECT
expect 'base|previous' "base or previous" INIT
[[ $RUN =~ ^[A-Za-z0-9._-]+$ ]] || die "RUN: $RUN: letters, digits, dot, dash and underscore only"

# The environment: PYTHON, or an active one, or .venv made from requirements.txt.
if [[ -n ${PYTHON:-} ]]; then :
elif [[ -n ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} || $DRY_RUN == 1 ]]; then PYTHON=python3
else
  PYTHON=.venv/bin/python
  [[ -e .venv/complete ]] || { python3 -m venv .venv && .venv/bin/pip install --quiet --disable-pip-version-check -r requirements.txt && touch .venv/complete; } || die "the environment .venv could not be made; see above"
fi
export TOKENIZERS_PARALLELISM=false OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
[[ $GPUS == 1 ]] || export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((($(nproc) + GPUS - 1) / GPUS))}"
launcher="${LAUNCH:-$PYTHON -m torch.distributed.run --standalone --nproc_per_node $GPUS}"
launch() {  # launch [MODEL]: how a stage is started; an endpoint needs one process
  if [[ ( $GPUS -gt 1 || -n $LAUNCH ) && ${1:-local} != http* && ! ( ${1:-local} == TEACHER && ( -z $TEACHER || $TEACHER == http* ) ) ]]; then echo "$launcher"; else echo "$PYTHON"; fi
}

run=runs/$RUN
teacher_setting=$TEACHER  # the toy teacher has another port each time
teacher_pid=
trap '[[ -z $teacher_pid ]] || kill $teacher_pid 2>/dev/null || true' EXIT

step() {  # step OUTPUT MODEL-CALLS COMMAND...: skip what is complete, else run it and note command and seconds (a line a call)
  local out=$1 calls=$2 start=$SECONDS; shift 2
  local noted=("${@/#TEACHER/${teacher_setting:-TEACHER}}"); printf -v noted '\t%s' "${noted[@]}"
  if [[ $mode == plan ]]; then printf '%s%s\n' "$out" "$noted"; return; fi
  if [[ $mode == dry ]]; then
    local words=("$@"); words=("${words[@]/#TEACHER/${TEACHER:-http://127.0.0.1:PORT/v1#teacher}}")
    printf '+'; printf ' %q' "${words[@]}"; echo
    [[ $calls == 0 ]] || echo "    about $calls model calls, $((calls * $(toy_or 150 1600))) tokens in and $((calls * $(toy_or 60 400))) out"
    return
  fi
  if [[ -e $out ]]; then echo "skip $out"; return; fi
  if [[ -z $TEACHER && " $* " == *" TEACHER "* ]]; then start_teacher; fi
  if [[ -f $run/.step && $(<"$run/.step") == "${out#"$run"/}"$'\t'* ]]; then  # a call was killed in this step: its seconds until it last wrote
    local last; last=$(stat -c %Y "${out%/*}"/*.part* "${out%/*}"/*.part/* 2>/dev/null | sort -n | tail -1) || true
    last=$((${last:-0} - $(stat -c %Y "$run/.step"))); ((last <= 0)) || printf '%s\t%s\n' "${out#"$run"/}" "$last" >> "$run/timings.tsv"
  fi
  printf '%s\t%s\n' "${out#"$run"/}" "$calls" > "$run/.step"  # for report.py --watch
  local command=(); for word in "$@"; do [[ $word == TEACHER ]] && word=$TEACHER; command+=("$word"); done
  printf '+'; printf ' %q' "${command[@]}"; echo
  printf '%s%s\n' "$out" "$noted" >> "$run/commands.tsv"
  "${command[@]}"
  [[ -e $out ]] || { echo "error: $out was not written; call again to go on" >&2; exit 1; }
  printf '%s\t%s\n' "${out#"$run"/}" $((SECONDS - start)) >> "$run/timings.tsv"
}

start_teacher() {  # the toy teacher, on a free port
  rm -f "$run/teacher.port"
  local known=("$run/problems.jsonl") test
  [[ $CLASSIFY != TEACHER ]] || for test in "${tests[@]}"; do [[ ! -f $test ]] || known+=("$test"); done
  $PYTHON toy/teacher.py --problems "${known[@]}" --port-file "$run/teacher.port" --seed "$SEED" > "$run/teacher.log" 2>&1 9>&- &
  teacher_pid=$!
  for _ in $(seq 300); do [[ -s $run/teacher.port ]] && break; kill -0 $teacher_pid 2>/dev/null || break; sleep 0.1; done
  [[ -s $run/teacher.port ]] || { cat "$run/teacher.log" >&2; die "the toy teacher did not start"; }
  TEACHER="http://127.0.0.1:$(cat "$run/teacher.port")/v1#teacher"
}

if [[ $DATA == toy/train.jsonl || " $TEST " == *" toy/test.jsonl "* ]] && [[ ! ( -e toy/train.jsonl && -e toy/test.jsonl ) && $DRY_RUN != 1 ]]; then
  $PYTHON toy/problems.py --output toy
fi
generate=(--max-tokens "$MAX_TOKENS" --max-pixels "$MAX_PIXELS" --batch-size "$ROWS" --seed "$SEED")
finetune=(--model "$MODEL" --init "$INIT" --batch-size "$BATCH" --micro-batch "$MICRO_BATCH" --max-pixels "$MAX_PIXELS" --seed "$SEED")
[[ -z $LOG_WITH ]] || finetune+=(--log-with "$LOG_WITH")
for word in $FINETUNE; do [[ $word != --* ]] || grep -qF "\"$word\"" 04_finetune.py || die "FINETUNE: $word: not a flag of 04_finetune.py"; finetune+=("$word"); done
student=("${finetune[@]}" --lr "$LR" --per-problem "$PER_PROBLEM")
limits=(--spent "$run/spent.tsv" --max-requests "$MAX_REQUESTS" --max-cost "$MAX_COST" --concurrency "$CONCURRENCY" --timeout "$TIMEOUT")
accept=(--max-pixels "$MAX_PIXELS") judgements=0; [[ $ORM == none ]] || { accept+=(--model "${ORM:-$run/orm/model}" --retry-undecided "$RETRY_UNDECIDED" "${limits[@]}"); judgements=1; }
read -ra tests <<< "$TEST"
count() { if [[ -f $1 ]]; then wc -l < "$1"; else echo "${LIMIT/#0/$(toy_or 1200 341346)}"; fi; }
judge=(); [[ $CLASSIFY == none ]] || judge=(--classify "$CLASSIFY" "${limits[@]}")
evaluate() { step "$run/$1/eval/metrics.json" "$((${LIMIT/#0/300} * ${#tests[@]} * (1 + (${#judge[@]} > 0))))" $(launch) 05_evaluate.py --test "${tests[@]}" --output "$run/$1/eval" --model "$2" --limit "$LIMIT" --columns "$COLUMNS_OF_DATA" "${judge[@]}" "${generate[@]}"; }

reflect() {  # reflect FOLDER NAME VERIFIED...: reconsider what is still wrong, verify it, add it to D_SFT
  local folder=$1 name=$2 by=${REFLECTOR:-TEACHER}; shift 2
  [[ $by == student ]] && by=$previous
  step "$folder/reflected.jsonl" $((N - DISTILL)) $(launch "$by") 03_reflect.py --input "$@" --output "$folder/reflected.jsonl" --model "$by" "${generate[@]}" "${limits[@]}"
  step "$folder/$name" $(((N - DISTILL) * judgements)) $(launch "$ORM") 02_verify.py --input "$folder/reflected.jsonl" --output "$folder/$name" --accept "$REFLECT_ACCEPT" "${accept[@]}" --seed "$SEED" --batch-size "$ROWS"
  verified+=("$folder/$name")
}

evolution() {  # Algorithm 1
  # D: all problems, checked, without those of the test sets; the base model's accuracy
  local data=$run/data.jsonl; [[ $DECONTAMINATE != off ]] || data=$run/problems.jsonl
  step "$data" 0 $PYTHON benchmarks.py --input "$DATA" --output "$data" --columns "$COLUMNS_OF_DATA" --limit "$LIMIT"
  [[ $DECONTAMINATE == off ]] || step "$run/problems.jsonl" 0 $PYTHON decontaminate.py --input "$data" --test "${tests[@]}" --output "$run/problems.jsonl" --action "$DECONTAMINATE" \
    --columns "$COLUMNS_OF_DATA" --limit "$LIMIT"
  N=$(count "$run/problems.jsonl"); [[ $DRY_RUN != 1 || ! -f $DATA ]] || { N=$(wc -l < "$DATA"); ((LIMIT == 0 || N < LIMIT)) || N=$LIMIT; }
  DISTILL="${DISTILL:-$((N * $(toy_or 8 30) / 100 + 1))}"
  ORM_PROBLEMS="${ORM_PROBLEMS:-$(toy_or "$N" $((DISTILL < 15000 ? DISTILL : 15000)))}"
  evaluate base "$MODEL"

  # 1-2  D_SFT: the teacher's solutions of D0 that verify as correct; M0
  step "$run/round_0/samples.jsonl" "$DISTILL" $(launch TEACHER) 01_sample.py --input "$run/problems.jsonl" --output "$run/round_0/samples.jsonl" --model TEACHER --draw "$DISTILL" --origin teacher "${generate[@]}" "${limits[@]}"
  step "$run/round_0/verified.jsonl" 0 $PYTHON 02_verify.py --input "$run/round_0/samples.jsonl" --output "$run/round_0/verified.jsonl" --accept answer
  verified=("$run/round_0/verified.jsonl")
  step "$run/round_0/model" 0 $(launch) 04_finetune.py --input "${verified[@]}" --output "$run/round_0/model" --train-file "$run/round_0/train.jsonl" "${student[@]}" --epochs "$DISTILL_EPOCHS" --previous "$MODEL"
  evaluate round_0 "$run/round_0/model"

  # The ORM: paths of M0, the wrong ones annotated by the teacher, as many correct ones; fine-tuned from the base
  if [[ -z $ORM ]]; then
    step "$run/orm/samples.jsonl" $((ORM_PROBLEMS * ORM_SAMPLES)) $(launch) 01_sample.py --input "$run/problems.jsonl" --output "$run/orm/samples.jsonl" --model "$run/round_0/model" \
      --draw "$ORM_PROBLEMS" --samples "$ORM_SAMPLES" --temperature "$TEMPERATURE" --top-p "$TOP_P" --origin orm "${generate[@]}"
    step "$run/orm/annotated.jsonl" $((ORM_PROBLEMS * ORM_SAMPLES * (1 + ORM_CHECK_CORRECT) / 2)) $(launch TEACHER) 02_verify.py --annotate --input "$run/orm/samples.jsonl" \
      --balance-with "$run/round_0/verified.jsonl" $([[ $ORM_CHECK_CORRECT == 0 ]] || echo --check-correct) --output "$run/orm/annotated.jsonl" --model TEACHER --seed "$SEED" --max-pixels "$MAX_PIXELS" "${limits[@]}"
    step "$run/orm/model" 0 $(launch) 04_finetune.py --orm --input "$run/orm/annotated.jsonl" "$run/round_0/verified.jsonl" --output "$run/orm/model" --train-file "$run/orm/train.jsonl" "${finetune[@]}" \
      --init base --epochs "$ORM_EPOCHS" --lr "$ORM_LR" --per-problem "$ORM_PER_PROBLEM"
  fi

  # 4-10  K rounds: sample what is unsolved, verify, fine-tune on all that is accepted so far
  previous=$run/round_0/model
  for ((i = 1; i <= ROUNDS; i++)); do
    round=$run/round_$i
    step "$round/samples.jsonl" $(((N - DISTILL) * SAMPLES)) $(launch) 01_sample.py --input "$run/problems.jsonl" --output "$round/samples.jsonl" --model "$previous" \
      --unsolved-in "${verified[@]}" --samples "$SAMPLES" --temperature "$TEMPERATURE" --top-p "$TOP_P" --origin "round-$i" "${generate[@]}"
    step "$round/verified.jsonl" $(((N - DISTILL) * SAMPLES * judgements)) $(launch "$ORM") 02_verify.py --input "$round/samples.jsonl" --output "$round/verified.jsonl" --accept "$ACCEPT" "${accept[@]}" --seed "$SEED" --batch-size "$ROWS"
    verified+=("$round/verified.jsonl")
    [[ $REFLECT != every ]] || reflect "$round" reflected_verified.jsonl "${verified[@]}"
    step "$round/model" 0 $(launch) 04_finetune.py --input "${verified[@]}" --output "$round/model" --train-file "$round/train.jsonl" "${student[@]}" --epochs "$EPOCHS" --previous "$previous"
    previous=$round/model
    evaluate "round_$i" "$previous"
  done

  # 11-13  reflect on what is still wrong; the final model
  if [[ $REFLECT == final ]]; then
    reflect "$run/final" verified.jsonl "${verified[@]}"
    step "$run/final/model" 0 $(launch) 04_finetune.py --input "${verified[@]}" --output "$run/final/model" --train-file "$run/final/train.jsonl" "${student[@]}" --epochs "$EPOCHS" --previous "$previous"
    evaluate final "$run/final/model"
  fi
  step "$run/report.html" 0 $PYTHON report.py "$run"   # metrics.json, the table, the page
}

mode=run; [[ $DRY_RUN != 1 ]] || mode=dry
if [[ $mode == dry ]]; then evolution; exit; fi

mkdir -p "$run" && touch "$run/.lock" || die "$run: cannot be written; see above"
exec 9>> "$run/.lock"; flock -w 5 9 || die "$run is being written by another call; wait for it or choose another RUN"
settings=(); for name in MODEL TEACHER ORM REFLECTOR DATA COLUMNS_OF_DATA TEST DECONTAMINATE ROUNDS SAMPLES DISTILL ACCEPT REFLECT_ACCEPT RETRY_UNDECIDED REFLECT INIT LIMIT SEED TEMPERATURE TOP_P MAX_TOKENS \
  MAX_PIXELS PER_PROBLEM EPOCHS DISTILL_EPOCHS LR BATCH FINETUNE ORM_PROBLEMS ORM_SAMPLES ORM_PER_PROBLEM ORM_CHECK_CORRECT ORM_EPOCHS ORM_LR CLASSIFY; do settings+=("$name=${!name}"); done
machine=(); for name in GPUS LAUNCH ROWS MICRO_BATCH CONCURRENCY TIMEOUT MAX_REQUESTS MAX_COST LOG_WITH; do machine+=("$name=${!name}"); done
force=(); [[ $FORCE != 1 ]] || force+=(--force); [[ $RETRY_ERRORS != 1 ]] || force+=(--retry-errors)
$PYTHON -c 'import sys, pathlib, benchmarks; [benchmarks.load_problems(source, pathlib.Path()) for source in sys.argv[1:]]' "$DATA" $TEST  # do they exist?
(mode=plan; evolution) | $PYTHON config.py "$run" --settings "${settings[@]}" --machine "${machine[@]}" --inputs "$DATA" "${tests[@]}" "$MODEL" ${force[@]+"${force[@]}"}  # refuses other settings
evolution
