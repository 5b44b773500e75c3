# Sourced by run_rounds.sh: checks its settings, and defines how the loop runs a stage, or plans it.
error() { echo "error: $*" >&2; exit 2; }
check() { [[ ${!1} =~ ^($2)$ ]] || error "$1: ${!1:-(empty)}: must be $3"; }
(($# == 0)) || error "$1: settings stand in front of the command, as in ROUNDS=1 bash run_rounds.sh"
check RUN '[A-Za-z0-9_][A-Za-z0-9._-]*' "letters, digits, dots, dashes and underscores"
for name in PAIRS ERRORS DRY_RUN FORCE; do check $name '[01]' "0 or 1"; done
for name in ROUNDS SAMPLES; do check $name '[1-9][0-9]{0,5}' "a whole number of at least 1"; done
for name in LIMIT MAX_PIXELS SEED; do check $name '[0-9]{1,15}' "a whole number"; done
for name in DATA TEST; do check $name '.*[^ ].*' "set where MODEL is, see run_rounds.sh"; done
for name in ACCEPT REFLECT_ACCEPT; do check $name 'orm|answer|both' "orm, answer or both"; done
check DISTILL 'all|[1-9][0-9]{0,8}|0?\.[0-9]*[1-9][0-9]*' "a number from 1, a share such as 0.3, or all"
check INIT 'base|previous' "base or previous"
check REFLECT 'final|every|none' "final, every or none"
check ORM_UPDATE 'once|every' "once or every"
[[ $ORM != none || $ACCEPT$REFLECT_ACCEPT == answeranswer ]] ||
  error "ORM: none: set ACCEPT=answer, or name a TEACHER from whom an ORM can learn"
if [[ $TEACHER == solutions ]]; then
  [[ $ORM && ($REFLECT == none || $REFLECTOR != TEACHER) ]] ||
    error "TEACHER: not set: name one (http://host:port/v1#name), or set ORM=none ACCEPT=answer REFLECT=none"
fi
[[ ! $LAUNCH ]] || command -v "${LAUNCH%% *}" > /dev/null || error "LAUNCH: ${LAUNCH%% *}: not found"
run=runs/$RUN teacher=$TEACHER
[[ $TEACHER != toy ]] || teacher=http://127.0.0.1:1/v1#teacher  # until it is started
if [[ -e $TEST ]]; then tests=("$TEST")
elif said=$(xargs -n 1 <<< "$TEST" 2> /dev/null); then mapfile -t tests <<< "$said"
else error "TEST: $TEST: a quote is not closed"; fi
if [[ $DRY_RUN == 0 ]]; then  # what is wrong is said now, not after hours
  [[ ! -t 2 ]] || echo "a dry run of all stages first ..." >&2
  said=$(DRY_RUN=1 bash "${0##*/}" 2>&1 > /dev/null) ||
    { [[ $? != 2 ]] || { grep '^error: ' <<< "$said" >&2 || echo "$said" >&2; exit 2; }; }
else  # stages alone are looked at: other programs are not found, so that none does its work or ends the loop
  set +e
  command_not_found_handle() { :; }
  path=$PATH interpreter=$(command -v "$PYTHON") awk=$(command -v awk) PATH=/nowhere PYTHON=: plan=
  declare -A planned=()  # rows of each file that would have been made
fi

stage() {  # stage SCRIPT FLAGS...: run it; in a dry run print it with what it asks and costs
  local launch=("$PYTHON")
  if [[ " $* " == *" --model "* && " $* " != *" --model http"* && " $* " != *" --model solutions "* ]]; then
    if [[ $SERVE && $1 != 04_* ]]; then set -- "$@" --serve "$SERVE"
    elif [[ $LAUNCH ]]; then launch=($LAUNCH); fi
  fi
  [[ $FORCE == 0 ]] || set -- "$@" --force
  if [[ $DRY_RUN == 0 ]]; then "${launch[@]}" "$@"; else plan_stage "$@"; fi
}
plan_stage() {
  local word flag= output= rows=0 said name
  for word in "$@"; do
    if [[ $word == --* ]]; then flag=$word; elif [[ $flag == --output ]]; then output=$word; fi
    if [[ $flag == --input && ! -e $word ]]; then ((rows += ${planned[$word]:-0})) || true; fi
  done
  [[ $1 != 03_* ]] || rows=${planned[$run/problems.jsonl]:-0}  # as if every problem had a wrong response
  said=$(PATH=$path "$interpreter" "$@" --dry-run "$rows" 2>&1) || {  # the setting's name for the flag's
    for name in MODEL TEACHER REFLECTOR ORM; do said=${said/"--model: ${!name}:"/"$name: ${!name}:"}; done
    said=${said/another --output, or make it anew with --force/another RUN, or make it anew with FORCE=1}
    echo "${said//--fields/FIELDS}" >&2
    exit 2
  }
  [[ $TEACHER$said != "solutions"*", 0 with a solution"* ]] ||
    error "TEACHER: not set, and $DATA has no \`solution\` to start from; name a teacher or write some"
  [[ ! $said =~ "    "([0-9,]+)\ rows ]] || rows=${BASH_REMATCH[1]//,/}
  planned[$output]=$rows planned[$output/predictions.jsonl]=$rows plan+=$said$'\n'
  printf '+ python%s\n' "$(printf ' %q' "$@")"; [[ ! $said ]] || echo "$said"
}
begin() {  # before the first stage: the run's settings, for people and the report; the toy's teacher
  [[ $DRY_RUN == 0 ]] || { PATH=$path "$interpreter" -m mathse.recipe "" run_rounds.sh; return; }
  "$PYTHON" -m mathse.recipe "$run/config.json" run_rounds.sh
  [[ $TEACHER != toy ]] || teacher=$("$PYTHON" toy/teacher.py --background $$ --seed "$SEED" \
    --problems "$run/problems.jsonl" toy/test.jsonl)
}
finish() {  # after the last: the report, or the sum of a dry run
  if [[ $DRY_RUN == 0 ]]; then "$PYTHON" -m mathse.report "$run"; return; fi
  "$awk" '/model calls/ { gsub(/[,$]/, ""); calls += $4; read += $7; written += $11; cost += $14 }
    END { printf "in all about %.0f model calls, %.0f tokens in and %.0f out", calls, read, written
          print (cost ? sprintf(", about $%.2f", cost) : "") }' <<< "$plan"
}
