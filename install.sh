#!/usr/bin/env bash
# Creates .venv and installs what is missing. `make` runs this before its other targets when setup.py has changed.
#
#     ./install.sh                      everything that can be tested
#     ./install.sh ffcv                 only another try at the ffcv package, after its system packages were installed
#     PYTHON=python3.12 ./install.sh    with another interpreter than python3
#
# What cannot be had (DALI on an unusual CUDA, ffcv without root) is named in one line, and the rest goes on without it.
set -euo pipefail
cd "$(dirname "$0")"
exec 9<. && flock 9 # two at once in one clone: one after the other

PYTHON=${PYTHON:-python3}
venv_python=.venv/bin/python

say() { echo "penstock: $*" >&2; }

fail() { say "$*"; exit 1; }

pip_install() { "$venv_python" -m pip install --disable-pip-version-check "$@"; }

# Run a command as root where that needs no password.
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@" 2>/dev/null; fi
}

apt_install() {
    if ! command -v apt-get >/dev/null || ! as_root true; then return 1; fi
    say "installing system packages: $*"
    as_root apt-get update -qq &&
        as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 \
            install -y -qq --no-install-recommends "$@" >/dev/null
}

create_venv() {
    command -v "$PYTHON" >/dev/null || fail "there is no $PYTHON: install Python 3.11 or newer, or name one: make PYTHON=python3.12"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$("$PYTHON" --version) is too old: Penstock needs 3.11 or newer; name one: make PYTHON=python3.12"
    if ! "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; then
        local package
        package=$("$PYTHON" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
        apt_install "$package" || fail "$PYTHON cannot make virtual environments; type: sudo apt-get install -y $package"
    fi
    rm -rf .venv
    "$PYTHON" -m venv .venv
}

# Said before the downloads begin, not only after; on the way they take room as well.
look_at_disk() {
    local free
    free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1024 / 1024) }')
    [ "$free" -ge 10 ] || say "only $free GB are free here, and up to 10 are needed: if it fails, make room and type the same again"
}

# An install that was killed leaves packages that pip takes for whole: make it forget them.
forget_half_installed() {
    local info
    for info in .venv/lib/python*/site-packages/*.dist-info; do
        [ -e "$info/INSTALLER" ] || rm -rf "$info"
    done
}

install_dali() {
    local cuda # a torch without CUDA can live with either build
    cuda=$("$venv_python" -c 'import torch; print((torch.version.cuda or "13").split(".")[0])')
    pip_install -q -e ".[dali-cuda$cuda]" || say "no DALI for this machine (CUDA $cuda): going on without --loader dali"
}

ffcv_can_be_built() {
    command -v g++ >/dev/null && command -v pkg-config >/dev/null && pkg-config --exists opencv4 libturbojpeg &&
        "$venv_python" -c 'import pathlib, sysconfig
(pathlib.Path(sysconfig.get_path("include")) / "Python.h").stat()' 2>/dev/null
}

install_ffcv() {
    "$venv_python" -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("ffcv"))' && return
    local packages=(g++ pkg-config libopencv-dev libturbojpeg0-dev)
    case $(readlink -f "$venv_python") in /usr/bin/*) packages+=("$(basename "$(readlink -f "$venv_python")")-dev") ;; esac
    if ! ffcv_can_be_built && ! apt_install "${packages[@]}"; then
        say "going on without --loader ffcv-package; to have it, type: sudo apt-get install -y ${packages[*]} && make ffcv"
    elif ! pip_install -q -e '.[ffcv]'; then
        say "ffcv could not be built (see above): going on without --loader ffcv-package; \`make ffcv\` tries again"
    fi
}

if [ "${1:-}" != ffcv ]; then
    "$venv_python" -m pip --version >/dev/null 2>&1 || create_venv
    forget_half_installed
    "$venv_python" -c 'import torch' 2>/dev/null || look_at_disk
    say "installing PyTorch and the rest into .venv: about 7 GB with CUDA, a few minutes"
    pip_install -e '.[albumentations,timm,export,search,slurm,dev]' || fail 'the installation did not finish (see above); type the same again to go on'
    install_dali
    pip_install -q -e '.[examples,peers]' || say "going on without what docs/examples feed and the benchmarks' peers"
fi
install_ffcv
