# Sourced by run_rounds.sh and tests/run.sh. Sets PYTHON: the one given, that of an active environment with
# the packages, or that of .venv, which is made from requirements.txt.
has_packages() {  # those of the first part of requirements.txt
  python3 -c 'import re
from importlib.metadata import version
needed = open("requirements.txt").read().partition("# Tests")[0]
list(map(version, re.findall(r"^[\w-]+", needed, re.MULTILINE)))' 2> /dev/null
}
if [[ -z ${PYTHON:-} && -n ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} ]] && has_packages; then PYTHON=python3; fi
if [[ -z ${PYTHON:-} ]]; then
  PYTHON=.venv/bin/python
  if [[ ! .venv/complete -nt requirements.txt ]]; then
    python3 -m venv .venv
    .venv/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
    touch .venv/complete
  fi
fi
export PYTHON
