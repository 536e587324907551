#!/usr/bin/env bash
# On a TPU VM: the training job as systemd unit mpo-job (called by qr.sh).
#
#   job.sh start ID ENV CMD...  start CMD in /opt/mpo/src, with the venv's python first in
#                               PATH; ENV is '' or env: with the variables of ~/mpo-job.env
#   job.sh status               "mpo-job HOST ID STATE HOW STATUS"; HOW 1 exited, 2 and 3
#                               by a signal; STATE is systemd's, or stopped
#   job.sh stop                 SIGTERM, and remember that somebody wanted it
#
# A unit outlives the ssh session. When the VM goes down, systemd sends SIGTERM to the
# main process alone (KillMode=mixed), which is python itself, as bash execs it: it
# saves, ends with 42, and its data workers end with it. The unit's description carries
# the job's ID, so that nobody takes an old job for his own.
set -euo pipefail

show() { systemctl show mpo-job --property="$1" --value; }

id_of_unit() {  # - where there is no unit
  local text
  text=$(show Description)
  [[ $text == 'mpo job '* ]] && echo "${text#mpo job }" || echo -
}

status() {
  local id sub how code
  id=$(id_of_unit) sub=$(show SubState) how=$(show ExecMainCode) code=$(show ExecMainStatus)
  case $sub in
    running | start* | stop | stop-* | reload* | final*) ;;
    *) if [[ $how/$code != 1/0 && -f $HOME/mpo-job.stopped ]]; then
        # systemd forgets a unit that was stopped and ended with 0.
        [[ $id != - ]] || id=$(<"$HOME/mpo-job.stopped")
        [[ $id != "$(<"$HOME/mpo-job.stopped")" ]] || sub=stopped
      fi ;;
  esac
  echo "mpo-job $(hostname) $id $sub $how $code"
}

start() {  # ID ENV CMD...
  local id=$1 environment=()
  if [[ $2 == env ]]; then
    chmod 600 "$HOME/mpo-job.env"
    environment=("--property=EnvironmentFile=$HOME/mpo-job.env")
  fi
  shift 2
  if [[ $(show SubState) == running ]]; then
    if [[ $(id_of_unit) == "$id" ]]; then
      echo "job.sh: job $id runs already on $(hostname)" >&2
      return
    fi
    echo "job.sh: another job, $(id_of_unit), runs already on $(hostname); stop it first" >&2
    exit 7
  fi
  # What a finished job left behind; there may be nothing.
  sudo systemctl stop mpo-job 2>/dev/null || true
  sudo systemctl reset-failed mpo-job 2>/dev/null || true
  rm -f "$HOME/mpo-job.stopped"
  # A file, because systemd would expand $ in arguments once more.
  # shellcheck disable=SC2016  # $PATH is for the job's shell
  {
    echo 'cd /opt/mpo/src && export PATH="/opt/mpo/venv/bin:$PATH"'
    printf 'exec'
    printf ' %q' "$@"
    echo
  } >"$HOME/mpo-job.sh"
  # A TPU's driver pins host memory; checkpoints and shards open many files.
  sudo systemd-run --unit=mpo-job --description="mpo job $id" --uid="$(id -u)" \
    --remain-after-exit --property=KillMode=mixed --property=TimeoutStopSec=300 \
    --property=LimitMEMLOCK=infinity --property=LimitNOFILE=1048576 \
    ${environment[@]+"${environment[@]}"} /bin/bash "$HOME/mpo-job.sh"
}

stop() {
  local id
  id=$(id_of_unit)
  if [[ $id == - ]]; then
    echo "job.sh: no job on $(hostname)" >&2
    return
  fi
  echo "$id" >"$HOME/mpo-job.stopped"
  sudo systemctl stop mpo-job
}

case ${1:-} in
  start)
    (($# > 3)) || { echo "job.sh: no command" >&2; exit 2; }
    start "${@:2}"
    ;;
  status) status ;;
  stop) stop ;;
  *)
    echo "usage: job.sh start ID ENV CMD... | status | stop" >&2
    exit 2
    ;;
esac
