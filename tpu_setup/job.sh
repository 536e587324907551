#!/usr/bin/env bash
# On a TPU VM: the training job as systemd unit mpo-job (called by qr.sh).
#
#   job.sh start CMD...   start CMD in /opt/mpo/src, with the venv's python first in PATH
#   job.sh status         "mpo-job STATE HOW STATUS"; HOW 1 exited, 2 and 3 by a signal
#
# A unit outlives the ssh session. When the VM goes down, systemd sends SIGTERM to the
# main process alone (KillMode=mixed), which is python itself, as bash execs it: it
# saves, ends with 42, and its data workers end with it.
set -euo pipefail

show() { systemctl show mpo-job --property="$1" --value; }

case ${1:-} in
  start)
    (($# > 1)) || { echo "job.sh: no command" >&2; exit 2; }
    if [[ $(show SubState) == running ]]; then
      echo "job.sh: a job runs already on $(hostname); stop it first" >&2
      exit 7
    fi
    # What a finished job left behind; there may be nothing.
    sudo systemctl stop mpo-job 2>/dev/null || true
    sudo systemctl reset-failed mpo-job 2>/dev/null || true
    # A file, because systemd would expand $ in arguments once more.
    # shellcheck disable=SC2016  # $PATH is for the job's shell
    {
      echo 'cd /opt/mpo/src && export PATH="/opt/mpo/venv/bin:$PATH"'
      printf 'exec'
      printf ' %q' "${@:2}"
      echo
    } >"$HOME/mpo-job.sh"
    sudo systemd-run --unit=mpo-job --uid="$(id -u)" --remain-after-exit \
      --property=KillMode=mixed --property=TimeoutStopSec=300 \
      /bin/bash "$HOME/mpo-job.sh"
    ;;
  status) echo "mpo-job $(show SubState) $(show ExecMainCode) $(show ExecMainStatus)" ;;
  *)
    echo "usage: job.sh start CMD... | status" >&2
    exit 2
    ;;
esac
