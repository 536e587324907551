#!/usr/bin/env bash
# Start a workload on GKE through xpk:
#
#   CLUSTER=... IMAGE=... [ZONE=...] [PROJECT=...] \
#     xpk.sh WORKLOAD SLICE [xpk flags, e.g. --dry-run] -- CMD...
#
# MAX_RESTARTS (20) counts restarts: after exit status 42 (saved at a preemption), 75
# (storage or peers failed) or a signal. Any other status ends the workload. A train.py
# line is checked against the slice first (scripts/check_launch.py); CHECK=0 skips that,
# PYTHON names the interpreter. Made for xpk 1.16.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

text() { sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
usage() { text >&2; exit 2; }

case ${1:-} in -h | --help | help) text; exit ;; esac
(($# > 3)) || usage
workload=$1
name=$(PYTHONPATH=$root python3 -m mpo_jax.utils.slices "$2" name) || exit 2
shift 2
: "${CLUSTER:?name of the GKE cluster}" "${IMAGE:?image made from tpu_setup/Dockerfile}"

argv=(
  xpk workload create
  --cluster="$CLUSTER" --workload="$workload" --tpu-type="$name" --docker-image="$IMAGE"
  --max-restarts="${MAX_RESTARTS:-20}" --restart-on-exit-codes=75
  --termination-grace-period-seconds=300
)
[[ -z ${ZONE:-} ]] || argv+=(--zone="$ZONE")
[[ -z ${PROJECT:-} ]] || argv+=(--project="$PROJECT")
slices=1
while (($#)) && [[ $1 != -- ]]; do
  # Python takes --num-slices=3, --num-slices 3, and beginnings of the name.
  case $1 in
    --num-s*=*) slices=${1#*=} ;;
    --num-s*) slices=${2:-} ;;
  esac
  argv+=("$1")
  shift
done
(($# > 1)) || usage
if [[ ! $slices =~ ^[1-9][0-9]{0,3}$ ]]; then
  echo "xpk.sh: --num-slices='$slices': write a whole number from 1 on" >&2
  exit 2
fi

# shellcheck source=tpu_setup/check.sh
source "$root/tpu_setup/check.sh"
where=$name
((slices == 1)) || where+="*$slices"
check "$where" "${@:2}"

# Quoted word by word, so that no pipe can stand in it: behind `python ... | tee`, the
# SIGTERM of a preemption would never reach python, and exit status 42 would be lost.
printf -v words ' %q' "${@:2}"
exec "${argv[@]}" --command="exec$words"
