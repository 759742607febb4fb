#!/bin/sh
# SPDX-License-Identifier: MIT
# install.sh ROOT KIND: installs what ./inv needs: system packages with apt, and a virtual
# environment from pinned, hashed requirements. KIND is run or dev.
set -eu
root=$1
kind=$2
venv=$root/.venv

fail() {
    printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
    exit "${3-2}"
}

# The newest Python that is there; 3.11 is the oldest that will do.
python=
for name in python3 python3.14 python3.13 python3.12 python3.11; do
    if command -v "$name" >/dev/null 2>&1 &&
        "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$name
        break
    fi
done
[ -n "$python" ] || fail 'Python 3.11 or later is needed and was not found' \
    'sudo apt-get install python3 (Debian 12 and later have it)'

missing=
if command -v dpkg-query >/dev/null 2>&1; then
    for package in $(grep -v '^#' "$root/requirements/system.txt"); do
        state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
        [ "$state" = installed ] || missing="$missing $package"
    done
else
    printf 'This is no Debian-like system; these programs are expected to be there:\n' >&2
    grep -v '^#' "$root/requirements/system.txt" | tr '\n' ' ' >&2
    printf '\n' >&2
fi

printf 'First use: setting up %s.\n' "$root" >&2
if [ -n "$missing" ]; then
    printf 'Installing system packages:%s\n' "$missing" >&2
    sudo=
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null 2>&1 ||
            fail "these packages are missing:$missing" "as root: apt-get install$missing"
        sudo=sudo
    fi
    log=$(mktemp)
    trap 'rm -f "$log"' EXIT
    # shellcheck disable=SC2086 # a list of words
    if ! { $sudo apt-get update -q &&
        $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing; } >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        fail 'apt could not install the packages named above' 'see the lines above; then run the same command again' 3
    fi
fi

printf 'Installing Python packages into .venv (pinned, hashed)\n' >&2
if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    rm -rf "$venv"
    "$python" -m venv "$venv" || fail 'cannot make a virtual environment' 'sudo apt-get install python3-venv'
fi
"$venv/bin/python" -m pip install -qq --disable-pip-version-check --require-hashes --only-binary :all: \
    -r "$root/requirements/$kind.txt" ||
    fail 'pip could not install the Python packages' 'see the lines above; then run the same command again' 3
touch "$venv/.npu-bsp-$kind"
[ "$kind" = run ] || touch "$venv/.npu-bsp-run"
