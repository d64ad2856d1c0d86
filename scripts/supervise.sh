#!/usr/bin/env bash
# Runs a training command and starts it again after a fault, a bounded number of times:
#   bash scripts/supervise.sh [--restarts N] [--pause SECONDS] deepspeed ... cpo_ds/train.py ...
# With checkpoint.resume: auto (the default) each start goes on from the newest intact checkpoint.
#
# SIGTERM, SIGINT and SIGUSR1 ask the ranks to finish their step, save and end (exit code 4). They
# reach the ranks without passing through the launcher, which would kill them after 30 seconds.
#
# Ends with the command's exit code: 0 done; 2, 3 and 4 mean that starting it again would not help
# or is not wanted (see README.md); any other after the last restart.
set -uo pipefail

restarts=3
pause=10
while [ $# -gt 0 ]; do
  case "$1" in
    --restarts | --pause)
      if ! [[ "${2:-}" =~ ^[0-9]+$ ]]; then
        echo "supervise.sh: $1 needs a number." >&2
        exit 2
      fi
      if [ "$1" = --restarts ]; then restarts=$2; else pause=$2; fi
      shift 2
      ;;
    -h | --help)
      sed -n '2,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    -*)
      echo "supervise.sh: unknown option $1; see --help." >&2
      exit 2
      ;;
    *) break ;;
  esac
done
if [ $# -eq 0 ]; then
  echo "supervise.sh: give the command to run, for example: deepspeed cpo_ds/train.py --config" \
    "recipes/demo.yaml" >&2
  exit 2
fi

command_pid=
stop=

# The command runs in a session of its own, in which only the ranks listen to SIGUSR1.
start() {
  (
    trap '' USR1
    exec setsid "$@"
  ) &
  command_pid=$!
}

# Asks the ranks on this host, which tell the others; where there is none, the launcher.
ask_to_stop() {
  local pid found=
  stop=$1
  [ -n "$command_pid" ] || return 0
  for pid in $(ps -o pid= -s "$command_pid"); do
    if grep -qz '^RANK=' "/proc/$pid/environ" 2>/dev/null; then
      kill -USR1 "$pid" 2>/dev/null && found=yes
    fi
  done
  [ -n "$found" ] || kill -TERM "$command_pid" 2>/dev/null
}

for signal in TERM INT USR1; do
  # shellcheck disable=SC2064
  trap "ask_to_stop SIG$signal" "$signal"
done

for ((attempt = 0; ; attempt++)); do
  start "$@"
  while :; do
    wait "$command_pid"
    code=$?
    kill -0 "$command_pid" 2>/dev/null || break # a signal ends the waiting, not the command
  done
  command_pid=
  case $code in
    0 | 2 | 3 | 4) exit "$code" ;;
  esac
  if [ -n "$stop" ]; then
    echo "supervise.sh: asked to stop by $stop; the command ended with exit code $code." >&2
    exit "$code"
  fi
  if [ "$attempt" -ge "$restarts" ]; then
    echo "supervise.sh: exit code $code, and $restarts restart(s) did not help; giving up." >&2
    exit "$code"
  fi
  echo "supervise.sh: exit code $code; restart $((attempt + 1)) of $restarts in $pause s." >&2
  sleep "$pause" &
  wait $!
  if [ -n "$stop" ]; then
    exit "$code"
  fi
done
