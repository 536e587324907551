#!/usr/bin/env bash
# A TPU slice as a Cloud queued resource. First: export NAME=... ZONE=... [PROJECT=...]
#
#   qr.sh create SLICE [gcloud flags]           ask for a slice, e.g. v5litepod-64 --spot
#   qr.sh wait [SECONDS]                        0 active, 3 failed or suspended, 4 timeout
#   qr.sh run -- CMD...                         start CMD on every worker, return at once
#   qr.sh logs [WORKER]                         follow a worker's output (default 0)
#   qr.sh stop                                  SIGTERM: the run saves and ends
#   qr.sh watch SLICE [gcloud flags] -- CMD...  all of it; again after a preemption
#   qr.sh delete                                the slice and its disks; ends the bill
#
# DRY_RUN=1 prints the gcloud commands instead. REPOSITORY, REVISION: code for the
# workers (default: origin's https address, HEAD). BUCKET: mounted at /bucket.
# VALID: how long a request may wait (6h). POLL: seconds between looks (30).
# MAX_STARTS: of watch (20). DELETE_WHEN_DONE=1: watch deletes the slice on success.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
POLL=${POLL:-30}
job=/opt/mpo/src/tpu_setup/job.sh

die() { echo "qr.sh: ${*:2}" >&2; exit "$1"; }
dry() { [[ ${DRY_RUN:-0} == 1 ]]; }
slice() { PYTHONPATH=$root python3 -m mpo_jax.utils.slices "$@"; }

cloud() {  # the only caller of gcloud
  set -- gcloud compute tpus "$@" --zone="$ZONE" ${PROJECT:+"--project=$PROJECT"}
  if dry; then printf '%q ' "$@"; echo; else "$@"; fi
}

on() { cloud tpu-vm ssh "$NAME" --quiet --worker="$1" --command="$2"; }  # WORKER COMMAND
describe() { cloud queued-resources describe "$NAME" --format='value(state.state)'; }
delete() { cloud queued-resources delete "$NAME" --force --quiet; }

create() {  # SLICE [gcloud flags]
  local accelerator runtime repository revision
  accelerator=$(slice "$1" name) && runtime=$(slice "$1" runtime_version) || exit 2
  repository=${REPOSITORY:-$(git -C "$root" remote get-url origin || true)}
  [[ $repository == https://* ]] ||
    die 2 "REPOSITORY='$repository': give an https address that workers can clone"
  revision=${REVISION:-$(git -C "$root" rev-parse HEAD)}
  echo "qr.sh: workers get $revision; uncommitted changes stay here" >&2
  cloud queued-resources create "$NAME" --node-id="$NAME" --async \
    --accelerator-type="$accelerator" --runtime-version="$runtime" \
    --valid-until-duration="${VALID:-6h}" \
    --metadata="mpo-repository=$repository,mpo-revision=$revision${BUCKET:+,mpo-bucket=$BUCKET}" \
    --metadata-from-file="startup-script=$root/tpu_setup/startup.sh" "${@:2}"
}

wait_active() {  # SECONDS
  local state try deadline=$((SECONDS + $1))
  if dry; then describe; return; fi
  while :; do
    for try in 1 2 3 4 5; do  # an API call fails now and then in hours of waiting
      state=$(describe) && break
      ((try < 5)) || die 5 "cannot read the state of $NAME in $ZONE"
      sleep "$POLL"
    done
    echo "$(date +%T) $NAME: $state" >&2
    case $state in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDING | SUSPENDED | DELETING) return 3 ;;
    esac
    ((SECONDS < deadline)) || return 4
    sleep "$POLL"
  done
}

run() {  # CMD...: quoted once, for the worker's shell; no pipe can come between
  local words
  (($#)) || die 2 "no command after --"
  printf -v words ' %q' "$@"
  on all "timeout 1800 sh -c 'until [ -e /opt/mpo/ready -o -e /opt/mpo/failed ]; do sleep 5; done'; [ -e /opt/mpo/ready ] || { echo 'startup.sh did not finish: sudo journalctl -u google-startup-scripts' >&2; exit 6; }; exec bash $job start$words"
}

verdict() {  # of all workers' jobs: running, finished, again, unknown or "failed CODE"
  local tag sub how status result=unknown failed='' running='' again=''
  while read -r tag sub how status; do
    [[ $tag == mpo-job ]] || continue
    result=finished
    case $sub/$how/$status in
      starting/* | start*/0/* | running/* | stop*/* | final*/*) running=1 ;;
      exited/1/0) ;;
      dead/* | */1/42 | */2/* | */3/*) again=1 ;;  # none, preempted, killed by a signal
      *) failed=$status; [[ $failed != 0 ]] || failed=1 ;;
    esac
  done < <(on all "if [ -e /opt/mpo/ready ]; then exec bash $job status; elif [ -e /opt/mpo/failed ]; then echo mpo-job broken 1 6; else echo mpo-job starting 0 0; fi")
  if [[ $failed ]]; then result="failed $failed"
  elif [[ $running ]]; then result=running
  elif [[ $again ]]; then result=again; fi
  echo "$result"
}

watch() {  # SLICE [gcloud flags] -- CMD...
  local flags=() now code starts=0 misses=0
  while (($#)) && [[ $1 != -- ]]; do flags+=("$1"); shift; done
  ((${#flags[@]} && $# > 1)) || die 2 "usage: watch SLICE [gcloud flags] -- CMD..."
  shift
  if dry; then create "${flags[@]}"; describe; run "$@"; return; fi
  describe >/dev/null 2>&1 || create "${flags[@]}"
  while :; do
    code=0; wait_active 86400 || code=$?
    if ((code == 3)); then
      ((++starts <= ${MAX_STARTS:-20})) || die 5 "given up after $((starts - 1)) starts"
      delete; create "${flags[@]}"; continue
    fi
    ((code == 0)) || die "$code" "$NAME did not become active; delete it or wait on"
    now=$(verdict)
    echo "$(date +%T) job: $now" >&2
    [[ $now == unknown ]] || misses=0
    case $now in
      finished) break ;;
      failed*) die "${now#failed }" "the job failed; $NAME is still billed: qr.sh logs, delete" ;;
      unknown) ((++misses < 20)) || die 5 "no worker of $NAME answers" ;;
      again) ((++starts <= ${MAX_STARTS:-20})) || die 5 "given up after $((starts - 1)) starts"
        run "$@" || true ;;  # the next look tells whether it runs
    esac
    sleep "$POLL"
  done
  if [[ ${DELETE_WHEN_DONE:-0} == 1 ]]; then delete
  else echo "qr.sh: done; $NAME is still billed: qr.sh delete" >&2; fi
}

[[ ${1:-} =~ ^(create|wait|run|logs|stop|watch|delete)$ ]] ||
  { sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
: "${NAME:?name of the slice}" "${ZONE:?zone, e.g. us-west4-a}"
case $1 in
  create) (($# > 1)) || die 2 "usage: create SLICE [gcloud flags]"; create "${@:2}" ;;
  wait) wait_active "${2:-21600}" ;;
  run) [[ ${2:-} == -- ]] || die 2 "usage: run -- CMD..."; run "${@:3}" ;;
  logs) on "${2:-0}" "sudo journalctl --unit=mpo-job --lines=200 --follow" ;;
  stop) on all "sudo systemctl stop mpo-job" ;;
  watch) watch "${@:2}" ;;
  delete) delete ;;
esac
