#!/usr/bin/env bash
# Looks at every host of a hostfile before a run: logins, versions, code, folders, ports, bandwidth.
# Prints what is wrong and what to do; exit code 2 where something has to be put right.
#   bash scripts/check_hosts.sh HOSTFILE [--config recipes/demo.yaml] [options of cpo-ds doctor]
#   bash scripts/check_hosts.sh --help
set -euo pipefail
# Run from the folder that the run is launched from: its .deepspeed_env and relative paths count.
python="$(cd -P "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv/bin/python"

if ! "$python" -c '' 2>/dev/null; then
  echo "check_hosts.sh: there is no $python yet; run bash scripts/setup.sh first." >&2
  exit 2
fi
case "${1:-}" in
  '')
    echo "check_hosts.sh: give a hostfile, for example: bash scripts/check_hosts.sh hostfiles/a100" >&2
    exit 2
    ;;
  -*) exec "$python" -m cpo_ds.cli doctor "$@" ;;
esac
exec "$python" -m cpo_ds.cli doctor --hostfile "$@"
