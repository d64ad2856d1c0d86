#!/usr/bin/env bash
# Runs a training command and starts it again after a fault, a bounded number of times:
#   bash scripts/supervise.sh [--restarts N] [--pause SECONDS] [--min-hosts N] \
#     deepspeed ... cpo_ds/train.py ...    # or: cpo-ds train ...
# With checkpoint.resume: auto (the default) each start goes on from the newest intact checkpoint.
#
# It waits --pause seconds before a restart. Without this option it waits 1 s after a start that
# lasted a minute or longer, and else 10 s, because what ended it so soon may take a while to pass.
#
# A command with --hostfile is restarted on those of its hosts that can take part by then. If these
# are fewer than --min-hosts (1), it waits --pause seconds (10) and uses up one of the --restarts.
#
# SIGTERM, Ctrl-C and SIGUSR1 ask the ranks to finish their step, save and end (exit code 4). The
# request goes to the ranks directly, not through the launcher, which would kill them after 30 s. A
# second Ctrl-C kills them.
#
# Ends with the command's exit code. 0 means done. After 2, 3 and 4 a restart would not help or is
# not wanted (see README.md). Any other code comes from the last of the restarts.
#
# A launcher that a signal ends may report 0. So a run counts as done only if it left finished.json
# in its output_dir; otherwise it is restarted, as after exit code 5. Ranks that such a launcher
# leaves behind are first asked to save and end.
set -uo pipefail

restarts=3
pause=
min_hosts=1
while [ $# -gt 0 ]; do
  case "$1" in
    --restarts | --pause | --min-hosts)
      if ! [[ "${2:-}" =~ ^[0-9]+$ ]]; then
        echo "supervise.sh: $1 needs a number." >&2
        exit 2
      fi
      case "$1" in
        --restarts) restarts=$2 ;;
        --pause) pause=$2 ;;
        --min-hosts) min_hosts=$2 ;;
      esac
      shift 2
      ;;
    -h | --help)
      sed -n '2,22s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
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
# A variable that marks the processes of this run on all hosts. Its name begins with PYTHON because
# DeepSpeed's launchers copy such variables to all hosts.
run_name="$(uname -n)-$$-$(date +%s)"
mark=PYTHON_CPO_DS_RUN

# Find the launcher's options about hosts, and the run's arguments after the script's name.
hostfile=
hostfile_at=
ssh_port=()
is_run=false
is_cpo_ds=false # `cpo-ds train`, whose own options and those of the run come in any order
run_arguments=()
words=("$@")
for ((i = 0; i < $#; i++)); do
  case "${words[i]}" in
    *cpo_ds/train.py | train.py | cpo_ds.train) # what follows is for the run
      run_arguments=("${words[@]:i+1}")
      is_run=true
      break
      ;;
    *.py) break ;;
    train)
      if [ "$i" -gt 0 ] && [[ "${words[i - 1]}" == *cpo-ds ]]; then
        is_run=true
        is_cpo_ds=true
      fi
      ;;
    -H | --hostfile)
      hostfile=${words[i + 1]:-}
      hostfile_at=$i
      i=$((i + 1))
      ;;
    --hostfile=*)
      hostfile=${words[i]#*=}
      hostfile_at=$i
      ;;
    --ssh_port | --ssh-port)
      ssh_port=(-p "${words[i + 1]:-}")
      i=$((i + 1))
      ;;
    --ssh_port=* | --ssh-port=*) ssh_port=(-p "${words[i]#*=}") ;;
    --gpus | --master-addr | --master-port) i=$((i + 1)) ;;
    --gpus=* | --master-addr=* | --master-port=* | --skip-check) ;;
    *) ! $is_cpo_ds || run_arguments+=("${words[i]}") ;;
  esac
done
used_hostfile=$hostfile
checkout=$(cd -P "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
own_bin="$checkout/.venv/bin"
if [ -n "$hostfile_at" ]; then
  if ! [ -f "$hostfile" ]; then # DeepSpeed would silently run on this host alone
    echo "supervise.sh: there is no hostfile ${hostfile:-(a name is missing)}." >&2
    exit 2
  fi
  if ! cpo_ds=$(command -v cpo-ds || command -v "$own_bin/cpo-ds"); then
    echo "supervise.sh: there is no cpo-ds, which finds the hosts of $hostfile that can take part" \
      "after a fault; run: source .venv/bin/activate" >&2
    exit 2
  fi
  left_hosts=$(mktemp) || exit
  trap 'rm -f "$left_hosts"' EXIT
fi

names_of_hosts() { awk '/^[^#]/ && NF { print $1 }' "$1"; }

# Starts the command in a session of its own, so that Ctrl-C does not reach it.
start() {
  (
    trap '' USR1 # the launchers inherit this and ignore SIGUSR1; the ranks set a handler
    export "$mark=$run_name"
    # A host that loses power does not close its connections. ssh would wait for it for ever, and
    # mpirun too once the ranks of other hosts have ended (cpo_ds/ranks/watch.py, after 45 s). These
    # options make both look whether the host is still there.
    keep_alive="-o ServerAliveInterval=15 -o ServerAliveCountMax=3"
    export PDSH_SSH_ARGS_APPEND="${PDSH_SSH_ARGS_APPEND:+$PDSH_SSH_ARGS_APPEND }$keep_alive"
    export OMPI_MCA_oob_tcp_keepalive_time="${OMPI_MCA_oob_tcp_keepalive_time:-15}"
    export OMPI_MCA_oob_tcp_keepalive_intvl="${OMPI_MCA_oob_tcp_keepalive_intvl:-5}"
    export OMPI_MCA_oob_tcp_keepalive_probes="${OMPI_MCA_oob_tcp_keepalive_probes:-3}"
    exec setsid "$@"
  ) &
  command_pid=$!
}

# A script for sh on any host, with the mark and a signal as arguments: sends the signal to this
# run's ranks on the host. Fails if there is none.
# shellcheck disable=SC2016
signal_ranks='
ranks=$(grep -lsz "^$1\$" /proc/[0-9]*/environ |
  xargs -r grep -lszE "^(OMPI_COMM_WORLD_)?RANK=" | cut -d/ -f3)
[ -n "$ranks" ] && { kill -s "$2" $ranks; true; }
'
# A script for sh on any host, with this start's name and a folder as arguments: succeeds if this
# start finished the run in the folder. A start without a name counts too, because mpirun by itself
# copies no variables to other hosts.
# shellcheck disable=SC2016
is_finished='grep -qsE "\"start\": (\"$1\"|null)" "$2/finished.json"'

# Runs a script for sh, with arguments, on this host and then on those of the hostfile, until it
# succeeds on one. In a trap a plain `return` would give the code from before the trap, hence 0.
on_some_host() {
  local text=$1 host
  shift
  sh -s "$@" <<<"$text" 2>/dev/null && return 0
  [ -n "$hostfile" ] || return 1
  for host in $(names_of_hosts "$used_hostfile"); do
    ssh -o BatchMode=yes -o ConnectTimeout=10 "${ssh_port[@]}" "$host" \
      "$(printf '%q ' sh -s "$@")" <<<"$text" 2>/dev/null && return 0
  done
  return 1
}

# Asks the ranks of one host to stop; they tell all others. Without any rank, asks the launcher. The
# second of two Ctrl-C kills them; the ranks of other hosts notice.
ask_to_stop() {
  local before=$stop
  stop=$1
  [ -n "$command_pid" ] || return 0
  if [ "$before $stop" = "SIGINT SIGINT" ]; then
    echo "supervise.sh: a second Ctrl-C: ending now." >&2
    on_some_host "$signal_ranks" "$mark=$run_name" KILL
    kill -KILL -- "-$command_pid" 2>/dev/null # the session of the launcher
    return 0
  fi
  [ "$stop" != SIGINT ] || echo "supervise.sh: Ctrl-C: asking the ranks to save and end; a second" \
    "one ends them now." >&2
  on_some_host "$signal_ranks" "$mark=$run_name" USR1 || kill -TERM "$command_pid" 2>/dev/null
}

# Ends the ranks that a launcher left behind, because they hold the run's folder. Asks them first,
# and kills those that are left after 60 s.
end_ranks_left() {
  on_some_host "$signal_ranks" "$mark=$run_name" USR1 || return 0
  echo "supervise.sh: the launcher ended but its ranks did not; asking them to save and end." >&2
  local left
  for ((left = 200; left > 0; left--)); do # not by SECONDS, which change when the clock is set
    sleep 0.3
    on_some_host "$signal_ranks" "$mark=$run_name" 0 || return 0
  done
  while on_some_host "$signal_ranks" "$mark=$run_name" KILL; do
    sleep 1
  done
}

# Succeeds if the run left its mark that it is finished. Commands that are no run leave no mark, so
# their exit code 0 is enough.
did_finish() {
  local python folder
  $is_run && [[ " ${run_arguments[*]} " != *" --help "* ]] || return 0
  python=$(command -v "$own_bin/python" || command -v python || command -v python3) || return
  # PYTHONPATH, because cpo_ds/train.py also works in a checkout that is not installed.
  folder=$(PYTHONPATH="$checkout${PYTHONPATH:+:$PYTHONPATH}" \
    "$python" "$checkout/scripts/output_folder.py" "${run_arguments[@]}") || return
  [[ "$folder" == /* ]] || folder=$PWD/$folder
  on_some_host "$is_finished" "$run_name" "$folder"
}

# Replaces the command's hostfile by one of the hosts that can take part now. Fails if these are
# fewer than --min-hosts.
choose_hosts() {
  local report count all
  report=$("$cpo_ds" doctor --hostfile "$hostfile" "${ssh_port[@]/#-p/--ssh-port}" \
    --reachable-only --write "$left_hosts" 2>&1) || : >"$left_hosts"
  count=$(names_of_hosts "$left_hosts" | wc -l)
  all=$(names_of_hosts "$hostfile" | wc -l)
  if [ "$count" -lt "$all" ]; then
    echo "$report" >&2
  fi
  if [ "$count" -lt "$min_hosts" ] || [ "$count" -eq 0 ]; then
    echo "supervise.sh: not started: $count host(s) can take part; --min-hosts is $min_hosts." >&2
    return 1
  fi
  used_hostfile=$left_hosts
  local instead=(--hostfile "$left_hosts")
  # Without --force_multi DeepSpeed runs on this host if the hostfile has only one line.
  if [ "$count" -eq 1 ] && [[ "${words[*]:0:hostfile_at}" == *deepspeed* ]]; then
    instead+=(--force_multi)
  fi
  local after=$((hostfile_at + 2))
  [[ "${words[hostfile_at]}" != *=* ]] || after=$((hostfile_at + 1))
  command=("${words[@]:0:hostfile_at}" "${instead[@]}" "${words[@]:after}")
}

for signal in TERM INT USR1; do
  # shellcheck disable=SC2064
  trap "ask_to_stop SIG$signal" "$signal"
done

give_up_if_stopped() {
  if [ -n "$stop" ]; then
    echo "supervise.sh: asked to stop by $stop; the command ended with exit code $code." >&2
    exit "$code"
  fi
}

command=("$@")
for ((attempt = 0; ; )); do
  started=$SECONDS
  start "${command[@]}"
  while :; do
    wait "$command_pid"
    code=$?
    kill -0 "$command_pid" 2>/dev/null || break # a signal to this script ends only `wait`
  done
  command_pid=
  wait_seconds=${pause:-$((SECONDS - started < 60 ? 10 : 1))}
  if [ "$code" -eq 0 ] && ! did_finish; then
    echo "supervise.sh: exit code 0, but the run is not finished: a signal ended its launcher." >&2
    code=5
    end_ranks_left
  elif [ "$code" -gt 128 ] && [ "$code" -le 192 ]; then # 128 + the signal that ended it
    end_ranks_left
  fi
  case $code in
    0 | 2 | 3 | 4) exit "$code" ;;
  esac
  while :; do
    give_up_if_stopped
    if [ "$attempt" -ge "$restarts" ]; then
      echo "supervise.sh: exit code $code, and $restarts restart(s) did not help; giving up." >&2
      exit "$code"
    fi
    attempt=$((attempt + 1))
    echo "supervise.sh: exit code $code; restart $attempt of $restarts in $wait_seconds s." >&2
    sleep "$wait_seconds" &
    wait $!
    wait_seconds=${pause:-10}
    give_up_if_stopped
    [ -n "$hostfile" ] && ! choose_hosts || break
  done
  give_up_if_stopped
done
