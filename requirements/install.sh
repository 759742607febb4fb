#!/bin/sh
# SPDX-License-Identifier: MIT
# install.sh ROOT KIND [NEEDS [YES]]: installs what ./inv needs: Debian packages with apt (system.sh), and a
# virtual environment from pinned, hashed requirements. KIND is run or dev; NEEDS is python (the
# environment only) or all; YES: do not ask before installing packages.
set -eu
root=$1
kind=$2
needs=${3-all}
yes=${4-}
[ -z "${NPU_BSP_YES-}" ] || yes=1
here=$root/requirements
venv=$root/.venv

say() { printf '%s\n' "$*" >&2; }

fail() {
    printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
    exit "${3-2}"
}

# --- one at a time; what is half-made goes -----------------------------------------------------

if command -v flock >/dev/null 2>&1; then
    exec 9<"$here/install.sh"
    if ! flock -n 9 2>/dev/null; then
        say 'Another ./inv is setting this up; waiting for it.'
        flock 9 || true # a file system without locks
    fi
fi

half_made=
work=$(mktemp -d "${TMPDIR:-/tmp}/npu-bsp-install.XXXXXX")
clean_up() {
    rm -rf "$work"
    [ -z "$half_made" ] || rm -rf "$venv"
}
interrupted() {
    trap '' INT TERM HUP
    printf '\ninterrupted; the same command begins anew\n' >&2
    exit "$1"
}
trap clean_up EXIT
trap 'interrupted 130' INT
trap 'interrupted 143' TERM
trap 'interrupted 129' HUP

# --- Python ------------------------------------------------------------------------------------

# The first that will do; 3.11 is the oldest.
python=
for name in python3 python3.14 python3.13 python3.12 python3.11; do
    if command -v "$name" >/dev/null 2>&1 &&
        "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$name
        break
    fi
done

# what_has_python: prints what to do on this distribution to have Python 3.11.
what_has_python() {
    # shellcheck disable=SC1090,SC2154 # variables of os-release(5)
    case $(. "${NPU_BSP_OS_RELEASE:-/etc/os-release}" 2>/dev/null && echo "$ID-${VERSION_ID-}") in
    ubuntu-22.04) echo 'sudo apt-get install python3.11 python3.11-venv (Ubuntu 22.04 has it beside its own, in universe)' ;;
    ubuntu-1* | ubuntu-20.* | ubuntu-21.*) echo 'Ubuntu 22.04 is the oldest that has it; 24.04 and later have it as python3' ;;
    debian-11 | debian-10 | raspbian-11 | raspbian-10) echo 'Debian 12 (or Raspberry Pi OS of 2023) is the oldest that has it' ;;
    fedora-* | rhel-* | centos-* | rocky-* | almalinux-*) echo 'sudo dnf install python3.11, or python3 where that is newer' ;;
    *) echo 'sudo apt-get install python3 (Debian 12 and later have it)' ;;
    esac
}
[ -n "$python" ] || fail 'Python 3.11 or later is needed and was not found' "$(what_has_python)"
"$python" -c 'import sys; sys.exit(sys.maxsize < 2**32)' 2>/dev/null ||
    fail 'this Python is a 32-bit one, for which there is no TFLite runtime' \
        'take a 64-bit system (of Raspberry Pi OS: the 64-bit image)'

environment_works() {
    [ -x "$venv/bin/python" ] && "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
        2>/dev/null
}

# venv alone makes an environment without pip; Debian has what brings pip in a package of its own.
can_make_environment() {
    environment_works || "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        "$python" -c 'import pip, venv' 2>/dev/null
}

# borrow_pip: puts pip into the environment out of its Debian package, which apt verifies; for those who
# cannot install python3-venv. apt works with lists of its own, in $work.
borrow_pip() {
    command -v apt-get >/dev/null 2>&1 && command -v dpkg-deb >/dev/null 2>&1 || return 1
    say 'Fetching pip from its Debian package, as python3-venv is not installed.'
    mkdir -p "$work/apt/lists/partial" "$work/apt/archives/partial"
    cp /var/lib/dpkg/status "$work/apt/status" || return 1
    set -- -q -o Dir::State="$work/apt" -o Dir::State::Lists="$work/apt/lists" -o Dir::Cache="$work/apt" \
        -o Dir::State::status="$work/apt/status" -o APT::Sandbox::User= -o Acquire::Languages=none \
        -o APT::Get::AllowUnauthenticated=false -o Acquire::AllowInsecureRepositories=false
    # As long as one source works.
    quietly apt-get "$@" update || true
    (cd "$work/apt" && quietly apt-get "$@" download python3-pip-whl) || return 1
    dpkg-deb --extract "$work"/apt/python3-pip-whl_*.deb "$work/apt/pip" || return 1
    for wheel in "$work"/apt/pip/usr/share/python-wheels/pip-*.whl; do
        "$venv/bin/python" -m zipfile -e "$wheel" "$("$venv/bin/python" -c \
            'import sysconfig; print(sysconfig.get_path("purelib"))')" || return 1
    done
}

# --- Debian packages ---------------------------------------------------------------------------

python_is_done() {
    # shellcheck disable=SC3013
    environment_works && [ -e "$venv/.npu-bsp-$kind" ] && [ ! "$here/$kind.txt" -nt "$venv/.npu-bsp-$kind" ]
}

if [ "$needs" = all ] || [ -n "$yes" ] || ! can_make_environment; then
    # shellcheck source=requirements/system.sh
    . "${0%/*}/system.sh"
    install_system_packages
fi

# --- the virtual environment -------------------------------------------------------------------

# Runs a program whose output is only of interest where it fails.
quietly() {
    TMPDIR=$work "$@" >"$work/log" 2>&1 9<&- || {
        tail -n 20 "$work/log" >&2
        return 1
    }
}

if ! python_is_done; then
    [ "$kind" = dev ] && size=250 || size=140
    if ! environment_works; then
        [ -w "$root" ] || fail "$root cannot be written to by $(id -un 2>/dev/null)" \
            'clone the repository into a folder of your own'
    fi
    say "Installing Python packages into .venv (pinned, hashed; some $size MB)."
    if ! environment_works; then
        rm -rf "$venv"
        half_made=yes
        if "$python" -c 'import ensurepip' 2>/dev/null; then
            quietly "$python" -m venv "$venv" || fail 'cannot make a virtual environment' 'see the lines above' 3
        else
            quietly "$python" -m venv --without-pip "$venv" ||
                fail 'cannot make a virtual environment' 'see the lines above' 3
            "$python" -c 'import pip, venv' 2>/dev/null || borrow_pip ||
                fail "$python has no pip, and python3-venv is not installed" \
                    'as root: apt-get install python3-venv, or the whole line above'
        fi
    fi
    if "$venv/bin/python" -c 'import pip' 2>/dev/null; then
        set -- "$venv/bin/python" -m pip
    else
        set -- "$python" -m pip --python "$venv/bin/python"
    fi
    quietly "$@" install -q --disable-pip-version-check --no-input --require-hashes --only-binary :all: \
        -r "$here/$kind.txt" || fail 'pip could not install the Python packages' \
        'see the lines above; then run the same command again' 3
    half_made=
    touch "$venv/.npu-bsp-$kind"
    [ "$kind" = run ] || touch "$venv/.npu-bsp-run"
fi
if [ -n "${system_is_looked_at-}" ]; then
    rm -f "$venv/.npu-bsp-missing"
    [ -z "$lacking" ] || printf '%s\n' "$lacking" >"$venv/.npu-bsp-missing"
    touch "$venv/.npu-bsp-system-$kind"
    [ "$kind" = run ] || touch "$venv/.npu-bsp-system-run"
fi
