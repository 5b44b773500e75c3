# The toy world's settings: run_rounds.sh sources this where MODEL is not set. What you set yourself holds.
: "${MODEL:=toy/base}" "${DATA:=toy/train.jsonl}" "${TEST:=toy/test.jsonl}"
if [[ $DATA == toy/train.jsonl ]]; then
  : "${TEACHER:=toy}"  # costs nothing, and knows the toy's problems
  [[ $TEST != toy/test.jsonl ]] || : "${ERRORS:=1}"
elif [[ -z ${TEACHER:-} ]]; then  # own problems: their solutions are D0, and nobody explains
  : "${DISTILL:=0.3}" "${ORM:=none}" "${ACCEPT:=answer}" "${REFLECT:=none}"
fi
: "${SAMPLES:=3}" "${DISTILL:=0.08}"
: "${INIT:=previous}"          # the toy has no time to start each round anew
: "${PAIRS:=1}"                # seed 0: 9 points more after round 1, 14 after round 2 (docs/PAPER.md)
: "${REFLECT_ACCEPT:=${ACCEPT:-answer}}"  # asking the ORM too loses accuracy: docs/PAPER.md
SAMPLE_FLAGS="--max-tokens 128 --batch-size 256 ${SAMPLE_FLAGS:-}"
VERIFY_FLAGS="--batch-size 256 ${VERIFY_FLAGS:-}"
EVALUATE_FLAGS="--max-tokens 128 --batch-size 256 ${EVALUATE_FLAGS:-}"
ANNOTATE_FLAGS="--check-correct ${ANNOTATE_FLAGS:-}"
FINETUNE_FLAGS="--epochs 3 --lr 1e-3 --batch-size 16 --micro-batch 16 --per-problem 1 ${FINETUNE_FLAGS:-}"
DISTILL_FLAGS="--epochs 10 ${DISTILL_FLAGS:-}"  # M0's rows are few
# the base can check sums and descriptions: a high learning rate would make it forget that
ORM_FLAGS="--lr 2e-4 --epochs 2 --per-problem 2 --wrong-ratio 1.7 ${ORM_FLAGS:-}"
ORM_UPDATE_FLAGS="--lr 1e-4 --epochs 0.5 ${ORM_UPDATE_FLAGS:-}"
if [[ ! -e toy/train.jsonl || ! -e toy/test.jsonl || common.py -nt toy/train.jsonl ]]; then  # by CLOSING
  "$PYTHON" toy/problems.py --output toy
fi
