# shellcheck shell=bash
# For qr.sh and xpk.sh, which set root: a train.py line against its slice, beforehand.

check() {  # SLICE CMD...: ends the caller with 2 if the line is wrong or they do not suit; other commands pass
  local python=${PYTHON:-$root/.venv/bin/python} code=0 word train=''
  [[ ${CHECK:-1} != 0 && $# -gt 1 ]] || return 0
  for word in "${@:2}"; do
    [[ $word != scripts/train.py && $word != */scripts/train.py ]] || train=1
  done
  if [[ ! $train ]]; then
    echo "Not checked against the slice, as it is no train.py line." >&2
    return 0
  fi
  [[ -x $python || -n ${PYTHON:-} ]] || python=python3
  PYTHONPATH=$root "$python" "$root/scripts/check_launch.py" "$1" -- "${@:2}" >&2 || code=$?
  ((code)) || return 0
  if ((code == 2)); then
    echo "Nothing was started. Mend the command, or CHECK=0 goes on all the same." >&2
  else
    echo "The check did not run with $python: PYTHON names another, which needs the" \
      "project (pip install -e .). CHECK=0 goes on without. Nothing was started." >&2
  fi
  exit 2
}
