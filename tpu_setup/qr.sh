#!/usr/bin/env bash
# A TPU slice as a Cloud queued resource. First: export NAME=... ZONE=... [PROJECT=...]
#
#   qr.sh create SLICE [gcloud flags] [-- CMD...]  ask for a slice, e.g. v5litepod-64 --spot;
#                                               CMD is only checked against it
#   qr.sh wait [SECONDS]                        0 active, 3 failed or suspended, 4 timeout
#   qr.sh run -- CMD...                         start CMD on every worker, return at once
#   qr.sh status                                the slice, and the job on every worker
#   qr.sh logs [WORKER|all]                     follow a worker's output (default 0); the
#                                               last lines of all
#   qr.sh stop                                  SIGTERM: the run saves and ends for good
#   qr.sh watch SLICE [gcloud flags] -- CMD...  all of it; again after a preemption
#   qr.sh delete                                the slice and its disks; ends the bill
#
# DRY_RUN=1 prints the gcloud commands instead. REPOSITORY, REVISION: code for the
# workers (origin's https address, HEAD); REPOSITORY=gs://BUCKET/code.bundle puts HEAD
# there, for private code. BUCKET: mounted at /bucket for reading. ENV_FILE: lines NAME=VALUE for the
# job, mode 600; for secrets, which so stand in no command line. VALID: how long a request
# may wait (6h). POLL: seconds between looks (30). MAX_STARTS: of watch (20). JOB: name of
# the job (made of CMD). DELETE_WHEN_DONE=1: watch deletes the slice on success. CHECK=0:
# neither recipe nor commit is looked at beforehand.
#
# Statuses: 0 done; 2 a mistake in what was asked; 3 the slice is gone, failed or
# suspended; 4 timeout; 5 no answer, or too many starts; 6 startup.sh failed; 7 another
# job runs, or the job was stopped; else the job's, or gcloud's own.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
POLL=${POLL:-30}
job=/opt/mpo/src/tpu_setup/job.sh
# shellcheck source=tpu_setup/check.sh
source "$root/tpu_setup/check.sh"
scratch=''
trap '[[ -z $scratch ]] || rm -rf "$scratch"' EXIT

die() { echo "qr.sh: ${*:2}" >&2; exit "$1"; }
say() { echo "$(date +%T) $*" >&2; }
number() {  # WHAT VALUE: a whole number, as arithmetic takes it (08 would be octal)
  [[ $2 =~ ^(0|[1-9][0-9]{0,8})$ ]] || die 2 "$1='$2': write a whole number, such as 30"
}
dry() { [[ ${DRY_RUN:-0} == 1 ]]; }
slice() { PYTHONPATH=$root python3 -m mpo_jax.utils.slices "$@"; }
temporary() { [[ -n $scratch ]] || scratch=$(mktemp -d); }
billed() { echo "$NAME is billed until it is deleted: qr.sh delete"; }

call() {  # the only caller of gcloud
  if dry; then printf '%q ' "$@"; echo; else "$@"; fi
}
cloud() { call gcloud compute tpus "$@" --zone="$ZONE" ${PROJECT:+"--project=$PROJECT"}; }
on() { cloud tpu-vm ssh "$NAME" --quiet --worker="$1" --command="$2"; }  # WORKER COMMAND
describe() {  # state, who began it, accelerator type, reason; tabs between
  cloud queued-resources describe "$NAME" --format='value(state.state,state.stateInitiator,tpu.nodeSpec[0].node.acceleratorType,state.failedData.error.message)'
}

pause() {  # N: before try N + 1; doubles, up to ten minutes
  local most=600 seconds=$((POLL << ($1 < 10 ? $1 : 10)))
  ((POLL < most)) || most=$POLL
  sleep $((seconds < most ? seconds : most))
}

look() {  # sets state (NONE: there is no such slice), by, kind, reason
  local out try
  state='' by='' kind='' reason=''
  if dry; then describe; state=ACTIVE; return; fi
  temporary
  for try in 0 1 2 3 4; do  # an API call fails now and then in hours of waiting
    if out=$(describe 2>"$scratch/error"); then
      state=${out%%$'\t'*} out=${out#"$state"} out=${out#$'\t'}
      by=${out%%$'\t'*} out=${out#"$by"} out=${out#$'\t'}
      kind=${out%%$'\t'*} out=${out#"$kind"} reason=${out#$'\t'}
      return
    fi
    case $(<"$scratch/error") in
      *NOT_FOUND*) state=NONE; return ;;
      *PERMISSION_DENIED* | *UNAUTHENTICATED* | *INVALID_ARGUMENT* | *"active account"* | *"auth login"*)
        cat "$scratch/error" >&2
        die 1 "cannot look at $NAME in $ZONE: gcloud's words are above" ;;
    esac
    ((try == 4)) || pause "$try"
  done
  cat "$scratch/error" >&2
  die 5 "cannot read the state of $NAME in $ZONE; $(billed)"
}

told() {  # the slice in a line
  local why=''
  [[ -z $reason ]] || why=": $reason"
  case $state in
    NONE) echo "there is no $NAME in $ZONE" ;;
    *) echo "$NAME${kind:+ ($kind)}: $state$why" ;;
  esac
}

delete() {  # also what is half gone, or gone
  local code text try
  if dry; then cloud queued-resources delete "$NAME" --force --quiet; return; fi
  for ((try = 0; try < 40; try++)); do
    code=0
    text=$(cloud queued-resources delete "$NAME" --force --quiet 2>&1) || code=$?
    ((code)) || { echo "qr.sh: deleted $NAME; it is billed no more" >&2; return; }
    [[ $text != *NOT_FOUND* ]] || state=NONE
    [[ $text == *NOT_FOUND* ]] || look
    case $state in
      NONE) echo "qr.sh: there is no $NAME in $ZONE; nothing is billed" >&2; return ;;
      SUSPENDING | DELETING | CREATING | PROVISIONING) say "$(told); deleting it later" ;;
      *) echo "$text" >&2; die "$code" "$NAME was not deleted: gcloud's words are above" ;;
    esac
    pause "$try"
  done
  echo "$text" >&2
  die 5 "$NAME cannot be deleted while it is $state; $(billed)"
}

code() {  # sets repository and revision, which workers must be able to get
  local head
  repository=${REPOSITORY:-$(git -C "$root" remote get-url origin || true)}
  head=$(git -C "$root" rev-parse HEAD)
  revision=${REVISION:-$head}
  echo "qr.sh: workers get $revision; uncommitted changes stay here" >&2
  case $repository in
    https://*) ;;
    gs://*) [[ $revision == "$head" ]] || die 2 "REVISION=$revision: a bundle holds HEAD, $head; check it out"
      return ;;
    *) die 2 "REPOSITORY='$repository': workers have no key for it; give the https address that needs no password, or for private code REPOSITORY=gs://BUCKET/code.bundle" ;;
  esac
  if dry || [[ ${CHECK:-1} == 0 ]]; then return; fi
  temporary
  # What startup.sh will do, without its files.
  git init --quiet --bare "$scratch/probe"
  GIT_TERMINAL_PROMPT=0 git -C "$scratch/probe" fetch --quiet --depth=1 --filter=tree:0 "$repository" "$revision" ||
    die 2 "$repository gives no $revision without a password (git's words are above): git push, REVISION=... of a pushed commit, or REPOSITORY=gs://BUCKET/code.bundle for private code; CHECK=0 does not look"
}

bundle() {  # the code itself, where there is no public repository
  temporary
  dry || git -C "$root" bundle create --quiet "$scratch/code.bundle" HEAD
  call gcloud storage cp "$scratch/code.bundle" "$repository" ${PROJECT:+"--project=$PROJECT"}
}

create() {  # SLICE [gcloud flags]
  local accelerator runtime repository revision
  accelerator=$(slice "$1" name) && runtime=$(slice "$1" runtime_version) || exit 2
  code
  [[ $repository != gs://* ]] || bundle
  cloud queued-resources create "$NAME" --node-id="$NAME" --async \
    --accelerator-type="$accelerator" --runtime-version="$runtime" \
    --valid-until-duration="${VALID:-6h}" \
    --metadata="mpo-repository=$repository,mpo-revision=$revision${BUCKET:+,mpo-bucket=$BUCKET}" \
    --metadata-from-file="startup-script=$root/tpu_setup/startup.sh" "${@:2}"
}

wait_active() {  # SECONDS
  local deadline=$((SECONDS + $1))
  while :; do
    look
    if dry; then return; fi
    say "$(told)"
    case $state in
      ACTIVE) return 0 ;;
      NONE | FAILED | SUSPENDING | SUSPENDED | DELETING) return 3 ;;
    esac
    ((SECONDS < deadline)) || return 4
    sleep "$POLL"
  done
}

job_id() {  # CMD...: the same for the same command, so that watch finds its own again
  local id=${JOB:-}
  [[ -n $id ]] || id=$(printf '%s\0' "$@" | git hash-object --stdin | cut -c1-12)
  [[ $id =~ ^[A-Za-z0-9._-]{1,60}$ ]] || die 2 "JOB='$id': letters, digits, '.', '_' and '-' alone"
  echo "$id"
}

send_environment() {
  [[ -n ${ENV_FILE:-} ]] || return 0
  [[ -f $ENV_FILE ]] || die 2 "ENV_FILE=$ENV_FILE: there is no such file"
  [[ $(ls -ld -- "$ENV_FILE") == -r[-w]-------* ]] || die 2 "ENV_FILE=$ENV_FILE can be read by others: chmod 600"
  cloud tpu-vm scp "$ENV_FILE" "$NAME:mpo-job.env" --quiet --worker=all
}

start() {  # ID CMD...: quoted once, for the worker's shell; no pipe can come between
  local words
  printf -v words ' %q' "$1" "${ENV_FILE:+env}" "${@:2}"
  send_environment
  on all "timeout 1800 sh -c 'until [ -e /opt/mpo/ready -o -e /opt/mpo/failed ]; do sleep 5; done'; [ -e /opt/mpo/ready ] || { echo 'startup.sh did not finish: sudo journalctl -u google-startup-scripts' >&2; exit 6; }; exec bash $job start$words"
}

run() {  # CMD...
  local id
  (($#)) || die 2 "no command after --"
  id=$(job_id "$@")
  if ! dry; then
    look
    [[ $state == ACTIVE ]] || die 3 "$(told); qr.sh wait"
    [[ -z $kind ]] || check "$kind" "$@"
  fi
  start "$id" "$@"
}

# Lines "mpo-job HOST ID STATE HOW STATUS" of all workers that answer.
jobs_of_all() {
  on all "if [ -e /opt/mpo/ready ]; then exec bash $job status; elif [ -e /opt/mpo/failed ]; then echo mpo-job \$(hostname) - broken 1 6; else echo mpo-job \$(hostname) - starting 0 0; fi"
}

ask_all() {  # sets lines; what ssh says beside them is kept for a failure
  temporary
  lines=$(jobs_of_all 2>"$scratch/ssh" || true)
}

hosts() { slice "$1" hosts || exit 2; }

# Statuses of a job: 0 done; 42 saved after SIGTERM, 75 storage or peers failed, a signal
# (128 to 199 where a shell reports it): again; everything else is a mistake.
verdict() {  # ID EXPECTED: sets result and answered, from lines
  local tag host id sub how status seen=' ' failed='' other='' running='' installing='' stopped='' again='' none=''
  answered=0
  while read -r tag host id sub how status; do
    [[ $tag == mpo-job && $status =~ ^[0-9]+$ && $seen != *" $host "* ]] || continue
    seen+="$host "
    ((++answered))
    case $sub in
      broken) failed=broken; continue ;;
      starting) installing=1; continue ;;
    esac
    if [[ $id != "$1" ]]; then
      case $sub in start* | running | reload* | stop | stop-* | final*) other=$id ;; *) none=1 ;; esac
      continue
    fi
    case $sub/$how/$status in
      start*/* | running/* | reload*/* | stop/* | stop-*/* | final*/*) running=1 ;;
      exited/1/0) ;;
      stopped/*) stopped=1 ;;
      dead/0/*) none=1 ;;
      */1/42 | */1/75 | */1/12[89] | */1/1[3-9][0-9] | */2/* | */3/*) again=1 ;;
      *) failed=$status; ((failed)) || failed=1 ;;
    esac
  done <<<"$lines"
  if [[ $failed == broken ]]; then result=broken
  elif [[ $failed ]]; then result="failed $failed"
  elif [[ $other ]]; then result="other $other"
  elif ((answered == 0)); then result=missing
  elif [[ $running && $none && ! $installing ]]; then result=partial
  elif [[ $running || $installing ]]; then result=running
  elif ((answered < $2)); then result=missing
  elif [[ $stopped ]]; then result=stopped
  elif [[ $again || $none ]]; then result=again
  else result=finished; fi
}

status() {
  local state by kind reason lines expected answered=0 host id sub how code
  look
  if dry; then jobs_of_all; return; fi
  told
  [[ $state == ACTIVE ]] || return 0
  ask_all
  while read -r _ host id sub how code; do
    ((++answered))
    case $sub/$how in
      dead/0) sub="no job" ;;
      */2 | */3) sub="ended by signal $code" ;;
      failed/1 | exited/1) sub="ended with $code" ;;
      stopped/*) sub="stopped by qr.sh stop, ended with $code" ;;
      broken/*) sub="startup.sh failed: sudo journalctl -u google-startup-scripts" ;;
    esac
    echo "  $host  job $id  $sub"
  done < <(grep '^mpo-job ' <<<"$lines" | sort -u)
  expected=$answered
  [[ -z $kind ]] || expected=$(hosts "$kind")
  echo "$answered of $expected workers answered; $(billed)"
  ((answered == expected)) || { tail -n 3 "$scratch/ssh" >&2; return 5; }
}

count_start() { ((++starts <= ${MAX_STARTS:-20})) || die 5 "given up after $((starts - 1)) starts; $(told); $(billed)"; }

attend() {  # ID CMD...: one look at the job; 1 when it is finished
  local lines
  ask_all
  verdict "$1" "$expected"
  say "job $1: $result; $answered of $expected workers answered"
  [[ $result == missing ]] || misses=0
  [[ $result == partial ]] || partials=0
  case $result in
    finished) return 1 ;;
    running) [[ $ran ]] || ran=$SECONDS
      ((SECONDS - ran < 600)) || restarts=0 ;;  # it got somewhere
    broken) die 6 "startup.sh failed on a worker: qr.sh status; $(billed)" ;;
    stopped) die 7 "the job was stopped; $(billed)" ;;
    other*) die 7 "job ${result#other } runs on $NAME: qr.sh stop it, or watch with its command; $(billed)" ;;
    failed*) ((starts)) || [[ $ran ]] || { say "it failed before this watch began; starting it again"; result=again; }
      [[ $result == again ]] || die "${result#failed }" "the job failed: qr.sh logs all; $(billed)" ;;
    missing) if ((++misses >= 20)); then
        tail -n 3 "$scratch/ssh" >&2
        die 5 "$answered of $expected workers of $NAME answer; $(billed)"
      fi ;;
  esac
  # A worker without the job beside others that run it: its VM was set up anew, or ssh
  # failed. Twice, because the others may be about to end.
  if [[ $result == partial ]] && ((++partials >= 2)); then result=again partials=0; fi
  if [[ $result == again ]]; then
    count_start
    ((restarts == 0)) || pause "$restarts"
    restarts=$((restarts + 1)) ran=''
    start "$@" || true  # the next look tells whether it runs
  fi
}

anew() {  # SLICE [gcloud flags]: after a preemption
  [[ $by != USER ]] || die 3 "$(told) by a person, not by a preemption; qr.sh delete"
  count_start
  ((restarts == 0)) || pause "$restarts"
  restarts=$((restarts + 1))
  delete
  create "$@"
  fresh=5 waiting=$((SECONDS + 86400))
}

watch() {  # SLICE [gcloud flags] -- CMD...
  local flags=() id expected starts=0 misses=0 partials=0 restarts=0 ran='' fresh=0 waiting=$((SECONDS + 86400))
  local state by kind reason result answered
  while (($#)) && [[ $1 != -- ]]; do flags+=("$1"); shift; done
  ((${#flags[@]} && $# > 1)) || die 2 "usage: watch SLICE [gcloud flags] -- CMD..."
  shift
  id=$(job_id "$@") && expected=$(hosts "${flags[0]}") || exit 2
  check "${flags[0]}" "$@"
  if dry; then create "${flags[@]}"; describe; start "$id" "$@"; return; fi
  look
  [[ $state != NONE ]] || { create "${flags[@]}"; fresh=5; }
  while :; do
    look
    case $state in
      ACTIVE) attend "$id" "$@" || break; fresh=0 waiting=$((SECONDS + 86400)) ;;
      FAILED) die 3 "$(told); this is no preemption: mend it, then qr.sh delete" ;;
      SUSPENDED) say "$(told)"; anew "${flags[@]}" ;;
      NONE) ((fresh-- > 0)) || die 3 "$NAME was deleted by somebody; nothing is billed" ;;
      DELETING) die 3 "$NAME is being deleted by somebody" ;;
      *) say "$(told)"; fresh=0
        ((SECONDS < waiting)) || die 4 "$NAME did not become active in a day; wait on, or qr.sh delete" ;;
    esac
    sleep "$POLL"
  done
  if [[ ${DELETE_WHEN_DONE:-0} == 1 ]]; then delete
  else echo "qr.sh: job $id is done; $(billed)" >&2; fi
}

create_checked() {  # SLICE [gcloud flags] [-- CMD...]
  local flags=()
  while (($#)) && [[ $1 != -- ]]; do flags+=("$1"); shift; done
  ((${#flags[@]})) || die 2 "usage: create SLICE [gcloud flags] [-- CMD...]"
  check "${flags[0]}" "${@:2}"
  create "${flags[@]}"
}

usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
case ${1:-} in
  -h | --help | help) usage; exit ;;
  create | wait | run | status | logs | stop | watch | delete) ;;
  *) usage >&2; exit 2 ;;
esac
: "${NAME:?name of the slice}" "${ZONE:?zone, e.g. us-west4-a}"
number POLL "$POLL"
number MAX_STARTS "${MAX_STARTS:-20}"
case $1 in
  create) create_checked "${@:2}" ;;
  wait) number 'wait SECONDS' "${2:-21600}"; wait_active "${2:-21600}" ;;
  run) [[ ${2:-} == -- ]] || die 2 "usage: run -- CMD..."; run "${@:3}" ;;
  status) status ;;
  logs) case ${2:-0} in
      all) on all "sudo journalctl --unit=mpo-job --lines=50 --no-pager" ;;
      *) on "${2:-0}" "sudo journalctl --unit=mpo-job --lines=200 --follow" ;;
    esac ;;
  stop) on all "bash $job stop" ;;
  watch) watch "${@:2}" ;;
  delete) delete ;;
esac
