#!/usr/bin/env bash
# Checks every host of a hostfile before a run: logins, versions, code, folders, ports, bandwidth.
# Prints each problem with its remedy. Exit code 2 if a run would fail.
#   bash scripts/check_hosts.sh HOSTFILE [--config recipes/demo.yaml] [options of cpo-ds doctor]
#   bash scripts/check_hosts.sh --help
set -euo pipefail
# No cd: the folder that the run is launched from has .deepspeed_env, and paths may be relative.
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
